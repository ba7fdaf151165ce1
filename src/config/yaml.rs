//! Text -> trees with a place on every key and value, one tree for each document.
//!
//! The tree is built from the parser's events and not through serde: serde's map hides tags,
//! how a scalar was written and every duplicate key but the first. A scalar stays the text that
//! was written; only the field that receives it knows whether `010` is a text or a mistake.
//!
//! Not read: tags (a field's key says what it is) and merge keys `<<` (YAML 1.1; two keys of one
//! name and no way to see which one won). Aliases are, within [`NODES_MAX`].

use std::collections::{BTreeMap, BTreeSet};

use serde_yaml::granit_parser::{self, ErrorKind, Event, Parser, ScalarStyle, ScanError, Tag};

use super::diagnostic::quoted;
use super::source::{At, FILE_BYTES_MAX, Sink};
use super::syntax;
use crate::model::Gather;

/// Deepest nesting of lists and maps. Units need five; the rest of the file is not read.
pub const DEPTH_MAX: usize = 64;

/// Most keys and values of a file, after aliases are filled in. A file of [`FILE_BYTES_MAX`] has
/// fewer of its own, so only aliases of aliases get here; the rest of the file is not read.
pub const NODES_MAX: usize = 600_000;

/// Most aliases of a file; the rest of it is not read.
pub const ALIASES_MAX: usize = 10_000;

/// Most documents of a file; the rest of it is not read.
pub const DOCUMENTS_MAX: usize = 10_000;

/// A value and its place.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    /// What it is.
    pub value: Value,
    /// Where it is.
    pub at: At,
}

/// What stands in a unit file.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    /// Nothing, or one of the words for it, without quotes.
    Null,
    /// A scalar's text, without its quotes.
    Text(String),
    /// A list.
    List(Vec<Node>),
    /// A map, in the order in which it was written; no key twice.
    Map(Vec<Entry>),
}

/// A key with its value.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    /// The key.
    pub key: String,
    /// Where the key is.
    pub key_at: At,
    /// Its value.
    pub value: Node,
}

/// The documents of a file that hold anything, and whether it could be read to its end.
#[derive(Debug)]
pub(super) struct Documents {
    /// One tree for each.
    pub trees: Vec<Tree>,
    /// How many keys and values they have, with aliases filled in.
    pub nodes: usize,
    /// False: there is a mistake after which nothing can be read.
    pub complete: bool,
}

/// A document.
#[derive(Debug)]
pub(super) struct Tree {
    /// What it holds.
    pub root: Node,
    /// False: something of it was complained of and left out.
    pub complete: bool,
}

/// Reads the file that the sink has at hand.
pub(super) fn parse(sink: &mut Sink<'_>, bytes: usize) -> Documents {
    if !is_readable(sink, bytes) {
        return Documents { trees: Vec::new(), nodes: 0, complete: false };
    }
    let (text, start, _) = sink.reading();
    parse_piece(sink, text, start)
}

/// Reads a piece of the file that the sink has at hand; `start` is where it begins.
pub(super) fn parse_piece(sink: &mut Sink<'_>, text: &str, start: usize) -> Documents {
    let options = granit_parser::options! { emit_comments: false, emit_unresolved_aliases: true };
    let mut builder = Builder {
        trees: Vec::new(),
        errors: sink.errors(),
        open: Vec::new(),
        anchors: BTreeMap::new(),
        nodes: 0,
        aliases: 0,
    };
    let mut complete = true;
    for next in Parser::new_from_str_with_options(text, options) {
        let step = match next {
            Ok((event, span)) => {
                if let Some(tag) = event.tag() {
                    refuse_tag(sink, tag, place(&span.tag_span().unwrap_or(span), start));
                }
                builder.take(sink, event, place(&span, start))
            }
            Err(error) => Err(not_yaml(sink, text, start, &error)),
        };
        if step.is_err() || sink.is_full() {
            complete = false;
            break;
        }
    }
    Documents { trees: builder.trees, nodes: builder.nodes, complete }
}

/// Whether the bytes of the file at hand are text that YAML allows, in bounds.
pub(super) fn is_readable(sink: &mut Sink<'_>, bytes: usize) -> bool {
    let (text, start, bad_byte) = sink.reading();
    if bytes > FILE_BYTES_MAX {
        sink.error(
            sink.start(),
            format!("file has {bytes} bytes, a unit file has at most {FILE_BYTES_MAX}"),
        );
        return false;
    }
    if let Some(byte) = bad_byte {
        sink.error(
            At::new(start.saturating_add(text.len()), 0),
            format!("byte 0x{byte:02x} is not UTF-8; unit files are UTF-8 text"),
        );
        return false;
    }
    let is_forbidden = |c: char| c.is_control() && !matches!(c, '\t' | '\n' | '\r' | '\u{85}');
    if let Some((at, c)) = text.char_indices().find(|(_, c)| is_forbidden(*c)) {
        let code = u32::from(c);
        sink.error(
            At::new(start.saturating_add(at), c.len_utf8()),
            format!("control character U+{code:04X} may not stand in YAML"),
        )
        .help(format!("in double quotes it is written as `\\x{code:02x}`"));
        return false;
    }
    true
}

/// Where an event of a text is that begins at `base`. The parser reads a whole text and so always
/// knows bytes.
fn place(span: &granit_parser::Span, base: usize) -> At {
    let start = span.start.byte_offset().unwrap_or(0);
    let end = span.end.byte_offset().unwrap_or(start).max(start);
    At { start: base.saturating_add(start), end: base.saturating_add(end) }
}

/// Notes what the parser could not read.
fn not_yaml(sink: &mut Sink<'_>, text: &str, base: usize, error: &ScanError) -> Stop {
    let mut start = error.marker().byte_offset().unwrap_or(0).min(text.len());
    while !text.is_char_boundary(start) {
        start = start.saturating_sub(1);
    }
    let start = base.saturating_add(start);
    if *error.kind() == ErrorKind::RecursionLimitExceeded {
        sink.error(At::new(start, 0), format!("nested more than {DEPTH_MAX} deep"));
    } else {
        let problem = error.kind().to_string();
        let help = syntax::help(text, start.saturating_sub(base), &problem);
        let found = sink.error(At::new(start, 0), format!("not YAML: {problem}"));
        if let Some(help) = help {
            found.help(help);
        }
    }
    Stop
}

/// Nothing more can be read; the mistake is noted.
struct Stop;

/// A list or map that is not at its end.
struct Open {
    start: usize,
    anchor: usize,
    nodes_before: usize,
    content: Content,
}

enum Content {
    List(Vec<Node>),
    /// With the key that waits for its value; a key that is no text waits as `None`.
    Map(Vec<Entry>, Option<(Option<String>, At)>),
}

/// Puts events together to trees, without recursion.
struct Builder {
    trees: Vec<Tree>,
    /// How many mistakes there were before the document.
    errors: usize,
    open: Vec<Open>,
    /// The nodes that can be named again, with their size.
    anchors: BTreeMap<usize, (Node, usize)>,
    nodes: usize,
    aliases: usize,
}

impl Builder {
    fn take(&mut self, sink: &mut Sink<'_>, event: Event<'_>, at: At) -> Result<(), Stop> {
        match event {
            Event::DocumentStart(..) => {
                self.anchors.clear();
                self.errors = sink.errors();
            }
            Event::Scalar(text, style, anchor, _) => {
                self.count(sink, 1, at)?;
                let is_null = style == ScalarStyle::Plain
                    && matches!(&*text, "" | "~" | "null" | "Null" | "NULL");
                let value = if is_null { Value::Null } else { Value::Text(text.into_owned()) };
                let node = Node { value, at };
                self.remember(sink, anchor, &node, 1)?;
                self.place(sink, node)?;
            }
            Event::SequenceStart(_, anchor, _) => {
                self.begin(sink, at, anchor, Content::List(Vec::new()))?;
            }
            Event::MappingStart(_, anchor, _) => {
                self.begin(sink, at, anchor, Content::Map(Vec::new(), None))?;
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(sink, at)?,
            Event::Alias(anchor) => self.alias(sink, anchor, at)?,
            Event::UnresolvedAlias(name) => {
                sink.error(
                    at,
                    format!("no anchor {} before this alias", quoted(&format!("&{name}"))),
                );
                self.leave_out(at);
            }
            // Beginnings and ends of documents, and whatever is about presentation only.
            Event::StreamStart | Event::StreamEnd | Event::DocumentEnd | Event::Anchor(..) | _ => {}
        }
        Ok(())
    }

    /// Counts what was read against the limit.
    fn count(&mut self, sink: &mut Sink<'_>, nodes: usize, at: At) -> Result<(), Stop> {
        self.nodes = self.nodes.saturating_add(nodes);
        if self.nodes <= NODES_MAX {
            return Ok(());
        }
        sink.error(at, format!("more than {NODES_MAX} keys and values, with aliases filled in"));
        Err(Stop)
    }

    fn begin(
        &mut self,
        sink: &mut Sink<'_>,
        at: At,
        anchor: usize,
        content: Content,
    ) -> Result<(), Stop> {
        self.count(sink, 1, at)?;
        if self.open.len() >= DEPTH_MAX {
            sink.error(At::new(at.start, 1), format!("nested more than {DEPTH_MAX} deep"));
            return Err(Stop);
        }
        self.open.push(Open { start: at.start, anchor, nodes_before: self.nodes, content });
        Ok(())
    }

    fn end(&mut self, sink: &mut Sink<'_>, at: At) -> Result<(), Stop> {
        let Some(open) = self.open.pop() else { return Ok(()) };
        let value = match open.content {
            Content::List(items) => Value::List(items),
            Content::Map(mut entries, _) => {
                refuse_duplicates(sink, &mut entries);
                Value::Map(entries)
            }
        };
        let node = Node { value, at: At { start: open.start, end: at.end.max(open.start) } };
        let size = self.nodes.saturating_sub(open.nodes_before).saturating_add(1);
        self.remember(sink, open.anchor, &node, size)?;
        self.place(sink, node)
    }

    /// Keeps a copy of what an anchor names. It counts too, or anchors in anchors would fill the
    /// memory without a single alias.
    fn remember(
        &mut self,
        sink: &mut Sink<'_>,
        anchor: usize,
        node: &Node,
        size: usize,
    ) -> Result<(), Stop> {
        if anchor != 0 {
            self.count(sink, size, node.at)?;
            self.anchors.insert(anchor, (node.clone(), size));
        }
        Ok(())
    }

    fn alias(&mut self, sink: &mut Sink<'_>, anchor: usize, at: At) -> Result<(), Stop> {
        self.aliases = self.aliases.saturating_add(1);
        if self.aliases > ALIASES_MAX {
            sink.error(at, format!("more than {ALIASES_MAX} aliases"));
            return Err(Stop);
        }
        let Some(size) = self.anchors.get(&anchor).map(|(_, size)| *size) else {
            sink.error(at, "an alias inside what it stands for");
            return Err(Stop);
        };
        // Counted before it is copied, so that aliases of aliases cannot fill the memory.
        self.count(sink, size, at)?;
        match self.anchors.get(&anchor).cloned() {
            Some((node, _)) => self.place(sink, node),
            None => Ok(()),
        }
    }

    /// Passes over a value that was complained of, with its key.
    fn leave_out(&mut self, at: At) {
        match self.open.last_mut().map(|open| &mut open.content) {
            None | Some(Content::List(_)) => {}
            Some(Content::Map(_, waiting)) => {
                *waiting = if waiting.is_some() { None } else { Some((None, at)) };
            }
        }
    }

    /// Puts a finished node where it belongs.
    fn place(&mut self, sink: &mut Sink<'_>, node: Node) -> Result<(), Stop> {
        match self.open.last_mut().map(|open| &mut open.content) {
            None if node.value == Value::Null => {}
            None => {
                if self.trees.len() >= DOCUMENTS_MAX {
                    sink.error(node.at, format!("more than {DOCUMENTS_MAX} documents in one file"));
                    return Err(Stop);
                }
                let complete = sink.errors() == self.errors;
                self.trees.push(Tree { root: node, complete });
            }
            Some(Content::List(items)) => items.push(node),
            Some(Content::Map(entries, waiting)) => match waiting.take() {
                None => *waiting = Some(key(sink, node)),
                Some((Some(key), key_at)) => entries.push(Entry { key, key_at, value: node }),
                Some((None, _)) => {}
            },
        }
        Ok(())
    }
}

/// A key; `None`, and the mistake noted, for what is none.
fn key(sink: &mut Sink<'_>, node: Node) -> (Option<String>, At) {
    let key = match node.value {
        Value::Text(text) if text == "<<" => {
            sink.error(node.at, "merge keys `<<` are not read: they are no YAML 1.2")
                .help("write the keys out");
            None
        }
        Value::Text(text) => Some(text),
        Value::Null => {
            sink.error(node.at, "a key is missing before the `:`");
            None
        }
        Value::List(_) | Value::Map(_) => {
            sink.error(node.at, "a key is a text, not a list or a map");
            None
        }
    };
    (key, node.at)
}

/// Notes every key that comes again, and keeps the first of each.
fn refuse_duplicates(sink: &mut Sink<'_>, entries: &mut Vec<Entry>) {
    let mut first: BTreeMap<&str, At> = BTreeMap::new();
    let mut again: Vec<(At, At)> = Vec::new();
    for entry in entries.iter() {
        match first.get(entry.key.as_str()) {
            Some(at) => again.push((entry.key_at, *at)),
            None => {
                first.insert(&entry.key, entry.key_at);
            }
        }
    }
    for (at, first_at) in &again {
        if sink.is_full() {
            break;
        }
        let name = sink.written(*at);
        let first = sink.spot(*first_at);
        let line = sink.spot(*at).place.line;
        let message =
            format!("duplicate key {}: lines {} and {line}", quoted(name), first.place.line);
        sink.error(*at, message).label("again here").related(first, "first here");
    }
    if !again.is_empty() {
        let again: BTreeSet<At> = again.into_iter().map(|(at, _)| at).gather();
        entries.retain(|entry| !again.contains(&entry.key_at));
    }
}

fn refuse_tag(sink: &mut Sink<'_>, tag: &Tag, at: At) {
    sink.error(at, format!("tag {} is not read", quoted(&tag.original())))
        .help("leave it out: the key says what its value is");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::source::SourceFile;
    use crate::model::FilePath;

    /// The trees in short, and the messages.
    fn read(text: &str) -> (Vec<String>, Vec<String>) {
        let file = SourceFile { path: FilePath::from("/u/a.yaml"), text: text.into() };
        let mut sink = Sink::new();
        sink.open(&file);
        let documents = parse(&mut sink, text.len());
        let trees = documents.trees.iter().map(|tree| short(&tree.root)).collect();
        let messages = sink.finish().into_iter().map(|found| found.message).collect();
        (trees, messages)
    }

    fn short(node: &Node) -> String {
        match &node.value {
            Value::Null => "~".to_owned(),
            Value::Text(text) => format!("{text:?}"),
            Value::List(items) => {
                format!("[{}]", items.iter().map(short).collect::<Vec<_>>().join(" "))
            }
            Value::Map(entries) => {
                let entry = |entry: &Entry| format!("{}={}", entry.key, short(&entry.value));
                format!("{{{}}}", entries.iter().map(entry).collect::<Vec<_>>().join(" "))
            }
        }
    }

    #[test]
    fn scalars_stay_what_was_written() {
        let text = "[no, 010, 1_000, 22:22, 0x1F, 1e3, ~, null, 'null', \"\", 1.10, 2024-01-02, ]";
        let (trees, messages) = read(text);
        let expected =
            r#"["no" "010" "1_000" "22:22" "0x1F" "1e3" ~ ~ "null" "" "1.10" "2024-01-02"]"#;
        assert_eq!((trees, messages), (vec![expected.to_owned()], vec![]));
    }

    #[test]
    fn empty_documents_are_none() {
        for text in ["", "# only\n", "---\n---\n", "\n\n", "--- ~\n...\n"] {
            assert_eq!(read(text), (vec![], vec![]), "{text:?}");
        }
        assert_eq!(read("a: b\r\n---\r\nc: d\r\n").0, [r#"{a="b"}"#, r#"{c="d"}"#]);
    }

    #[test]
    fn all_duplicate_keys_are_found_and_the_first_stays() {
        let (trees, messages) = read("a: 1\nb: {c: 1, c: 2}\na: 2\na: 3\n");
        assert_eq!(trees, [r#"{a="1" b={c="1"}}"#]);
        assert_eq!(messages.len(), 3);
        assert!(messages[1].contains("`a`: lines 1 and 3"), "{messages:?}");
    }

    #[test]
    fn aliases_are_filled_in_up_to_a_limit() {
        assert_eq!(read("a: &x [1]\nb: *x\n").0, [r#"{a=["1"] b=["1"]}"#]);
        assert!(read("a: &x [*x]\n").1[0].contains("inside what it stands for"));
        assert!(read("a: *x\n").1[0].contains("no anchor `&x`"));
        assert!(read("a: &x 1\n---\nb: *x\n").1[0].contains("no anchor"), "not over documents");
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for n in 1..12 {
            let list = vec![format!("*a{}", n - 1); 10].join(",");
            bomb = format!("{bomb}a{n}: &a{n} [{list}]\n");
        }
        assert!(read(&bomb).1[0].contains("keys and values"));
    }

    #[test]
    fn what_is_not_read_is_refused() {
        for (text, message) in [
            ("a: !x b", "tag `!x`"),
            ("a: !!str b", "tag `!!str`"),
            ("<<: {a: b}", "merge keys"),
            ("[a]: b", "a key is a text"),
            (": b", "a key is missing"),
            ("a: [", "not YAML"),
            ("a: \u{0}", "U+0000"),
            ("a: \u{1b}", "U+001B"),
        ] {
            let messages = read(text).1;
            assert!(messages.iter().any(|m| m.contains(message)), "{text:?}: {messages:?}");
        }
        let deep = "[".repeat(100_000);
        assert!(read(&deep).1[0].contains("nested more than 64 deep"));
    }
}
