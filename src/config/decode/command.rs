//! Commands and hooks. A list is argv as it was written; a text is split as a shell would split
//! it, and no shell is run.

use super::Decoder;
use super::fields::Fields;
use crate::config::diagnostic::quoted;
use crate::config::source::At;
use crate::config::yaml::{Node, Value};
use crate::model::{Command, Hook, Template};

/// Words that mean something to a shell only.
const SHELL_WORDS: [&str; 12] =
    ["|", "||", "&", "&&", ";", "<", ">", ">>", "<<", "2>", "2>&1", "&>"];

impl Decoder<'_, '_> {
    /// A command: a list, or a text that is split.
    pub(super) fn command(&mut self, key: &str, node: &Node) -> Option<Command> {
        let words = match &node.value {
            Value::List(items) => self.words(key, items)?,
            Value::Text(text) => self.split(key, node, text)?,
            Value::Null | Value::Map(_) => {
                self.wrong(key, "a list of texts, or a text", node);
                return None;
            }
        };
        let program = words.first().map_or("", |word| word.raw());
        if program.is_empty() {
            let message = format!("`{key}` names no program");
            self.sink.error(node.at, message).help("the first word is the program");
            return None;
        }
        if program.starts_with('-') {
            let message = format!("`{key}`: {} is an option, not a program", quoted(program));
            self.sink
                .error(node.at, message)
                .help("each command is a list: `[[nginx, -t], [other]]`");
            return None;
        }
        Some(Command::Argv(words))
    }

    /// The items of a list, none of them split again.
    fn words(&mut self, key: &str, items: &[Node]) -> Option<Vec<Template>> {
        let mut words = Vec::with_capacity(items.len());
        for item in items {
            if item.value == Value::Null {
                self.sink
                    .error(item.at, format!("`{key}` holds an empty item"))
                    .help("write `\"\"` for an empty argument, `\"null\"` for that text");
            } else if let Some(word) = self.template(key, item) {
                words.push(word);
            }
        }
        (words.len() == items.len()).then_some(words)
    }

    fn split(&mut self, key: &str, node: &Node, text: &str) -> Option<Vec<Template>> {
        self.template(key, node)?;
        let words = match split_words(text) {
            Ok(words) => words,
            Err(error) => {
                let at = self.inside(node, text, error.at);
                let at = if at == node.at { at } else { At::new(at.start, 1) };
                self.sink.error(at, format!("`{key}`: {}", error.problem));
                return None;
            }
        };
        if let Some(word) = words.iter().find(|word| word.is_bare && is_shell_word(&word.text)) {
            let message = format!("`{key}`: {} goes to the program as it is", quoted(&word.text));
            self.sink.warning(node.at, message).help(
                "no shell runs this; write `shell:` instead of `command:`, or quote the word",
            );
        }
        let mut templates = Vec::with_capacity(words.len());
        for word in words {
            match Template::parse(&word.text) {
                Ok(template) => templates.push(template),
                // The whole text was a template; but a quote may end inside of a `${…}`.
                Err(error) => {
                    self.sink.error(node.at, format!("`{key}`: {}", error.problem));
                    return None;
                }
            }
        }
        Some(templates)
    }

    /// A text for `/bin/sh -c`.
    pub(super) fn shell(&mut self, node: &Node) -> Option<Command> {
        let text = self.template("shell", node)?;
        if text.raw().trim().is_empty() {
            self.sink.error(node.at, "`shell` is empty");
            return None;
        }
        Some(Command::Shell(text))
    }

    /// The commands of one kind of hook.
    pub(super) fn hooks(&mut self, key: &'static str, fields: &Fields<'_>) -> Vec<Hook> {
        let Some(node) = fields.get(key) else { return Vec::new() };
        let items = self.list(key, node).unwrap_or_default();
        items.iter().filter_map(|item| self.hook(key, item)).collect()
    }

    fn hook(&mut self, key: &'static str, node: &Node) -> Option<Hook> {
        match &node.value {
            Value::Map(_) => {}
            Value::Null | Value::Text(_) | Value::List(_) => {
                let command = self.command(key, node)?;
                return Some(Hook { command, ignore_failure: false, user: None });
            }
        }
        let errors = self.sink.errors();
        let fields = self.fields(key, node)?;
        let Some(command) = fields.get("command") else {
            if self.sink.errors() == errors {
                self.sink.error(node.at, format!("`{key}`: a hook without a `command`"));
            }
            return None;
        };
        let path = |name: &str| format!("{key}.{name}");
        let ignored = fields.get("ignore_failure");
        let ignore_failure = ignored.and_then(|node| self.boolean(&path("ignore_failure"), node));
        let user = fields.get("user").and_then(|node| self.account(&path("user"), node));
        let command = self.command(&path("command"), command)?;
        Some(Hook { command, ignore_failure: ignore_failure.unwrap_or(false), user })
    }
}

fn is_shell_word(word: &str) -> bool {
    SHELL_WORDS.contains(&word)
}

/// The words of a command line, quoted as in a unit file.
///
/// # Errors
/// When a quote is left open.
pub fn command_words(text: &str) -> Result<Vec<String>, String> {
    let words = split_words(text).map_err(|error| error.problem.to_owned())?;
    Ok(words.into_iter().map(|word| word.text).collect())
}

/// A word of a command line.
#[derive(Debug, PartialEq)]
struct Word {
    text: String,
    /// Whether nothing of it was quoted.
    is_bare: bool,
}

/// Why a text cannot be split, and the byte where that begins.
#[derive(Debug, PartialEq)]
struct SplitError {
    at: usize,
    problem: &'static str,
}

/// Splits as a shell does: blanks part words; `'…'`, `"…"` and `\` keep them together. `${…}` stays
/// whole, whatever is in it; `$`, `*` and `~` are themselves.
fn split_words(text: &str) -> Result<Vec<Word>, SplitError> {
    let mut words = Vec::new();
    let mut word: Option<Word> = None;
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let at = text.len().saturating_sub(rest.len());
        let after = rest.get(c.len_utf8()..).unwrap_or_default();
        if c.is_ascii_whitespace() {
            words.extend(word.take());
            rest = after;
            continue;
        }
        let current = word.get_or_insert_with(|| Word { text: String::new(), is_bare: true });
        let before = current.text.len();
        current.is_bare &= !matches!(c, '\'' | '"' | '\\');
        rest = match c {
            '\'' => {
                let problem = "`'` without its end";
                let (inside, after) = after.split_once('\'').ok_or(SplitError { at, problem })?;
                current.text.push_str(inside);
                after
            }
            '"' => double_quoted(after, &mut current.text)
                .map_err(|problem| SplitError { at, problem })?,
            '\\' => {
                let next = after.chars().next();
                let next = next.ok_or(SplitError { at, problem: "`\\` at the end" })?;
                if next != '\n' {
                    current.text.push(next);
                }
                after.get(next.len_utf8()..).unwrap_or_default()
            }
            _ => plain(rest, &mut current.text),
        };
        if is_torn(&current.text, before) {
            return Err(SplitError { at, problem: TORN });
        }
    }
    words.extend(word);
    Ok(words)
}

/// What [`is_torn`] finds, in words.
const TORN: &str = "`$` and `{` are quoted apart; write `$${` for a literal `${`";

/// Whether what was quoted as `$` would be read as the beginning of a `${` or `$${` with what was
/// added to the word from this byte on.
fn is_torn(word: &str, added: usize) -> bool {
    let (before, added) = word.split_at_checked(added).unwrap_or((word, ""));
    before.ends_with('$') && (added.starts_with('{') || added.starts_with("${"))
}

/// Takes what is between double quotes; gives what follows them, or what is wrong.
fn double_quoted<'t>(mut rest: &'t str, out: &mut String) -> Result<&'t str, &'static str> {
    const OPEN: &str = "`\"` without its end";
    loop {
        let c = rest.chars().next().ok_or(OPEN)?;
        let after = rest.get(c.len_utf8()..).unwrap_or_default();
        let before = out.len();
        rest = match c {
            '"' => return Ok(after),
            '\\' => {
                let next = after.chars().next().ok_or(OPEN)?;
                match next {
                    '"' | '\\' | '$' | '`' => out.push(next),
                    '\n' => {}
                    _ => out.extend([c, next]),
                }
                after.get(next.len_utf8()..).unwrap_or_default()
            }
            _ => plain(rest, out),
        };
        if is_torn(out, before) {
            return Err(TORN);
        }
    }
}

/// Takes one character, or one `${…}` or `$${` whole; gives what follows.
fn plain<'t>(rest: &'t str, out: &mut String) -> &'t str {
    let length = if rest.starts_with("$${") {
        3
    } else if rest.starts_with("${") {
        rest.find('}').map_or(2, |end| end.saturating_add(1))
    } else {
        rest.chars().next().map_or(0, char::len_utf8)
    };
    let (taken, rest) = rest.split_at_checked(length).unwrap_or((rest, ""));
    out.push_str(taken);
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(text: &str) -> Vec<String> {
        split_words(text).unwrap().into_iter().map(|word| word.text).collect()
    }

    #[test]
    fn a_text_is_split_as_a_shell_splits_it() {
        for (text, words) in [
            ("", &[][..]),
            ("  a\tb \n c ", &["a", "b", "c"]),
            ("a 'b c' \"d e\" f\\ g", &["a", "b c", "d e", "f g"]),
            ("x'y z'w \"\" ''", &["xy zw", "", ""]),
            (r#""a\"b\n\\\$" \n"#, &["a\"b\\n\\$", "n"]),
            ("echo $HOME * ~ #x %s", &["echo", "$HOME", "*", "~", "#x", "%s"]),
            (
                "a ${env:X:-b c}d '${unit.dir} e' $${ f",
                &["a", "${env:X:-b c}d", "${unit.dir} e", "$${", "f"],
            ),
            ("wörk 'é'", &["wörk", "é"]),
            ("a\\\nb", &["ab"]),
        ] {
            assert_eq!(split(text), words, "{text:?}");
        }
    }

    #[test]
    fn a_dollar_and_a_brace_that_are_quoted_apart_make_no_variable() {
        for (text, at) in [
            ("a '$'{HOME}", 5),
            ("a b\\${unit.name}", 5),
            ("'$'${unit.name}", 3),
            ("a \"b\\${unit.name}\"", 2),
            ("$\\\n{x}", 3),
            ("'$''{'", 3),
        ] {
            assert_eq!(split_words(text), Err(SplitError { at, problem: TORN }), "{text}");
        }
        for text in ["$$${x}", "'$'$${x}", "'$' {x}", "'$$${x}'"] {
            assert!(split_words(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn an_open_quote_is_refused_where_it_begins() {
        for (text, at) in [("a 'b", 2), ("é \"b\\\"", 3), ("ab\\", 2)] {
            assert_eq!(split_words(text).unwrap_err().at, at, "{text}");
        }
    }
}
