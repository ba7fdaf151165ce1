//! Single values: a text is what the field that receives it takes it for.
//!
//! Quotes change nothing, with one exception: `null` in quotes is a text.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::Decoder;
use crate::config::diagnostic::quoted;
use crate::config::keys;
use crate::config::source::At;
use crate::config::suggest;
use crate::config::yaml::{Node, Value};
use crate::model::{SOCKET_PATH_MAX, Signal, Span, Template, UnitName};

/// What a node is, in words.
pub(in crate::config) fn described(node: &Node) -> String {
    match &node.value {
        Value::Null => "empty".to_owned(),
        Value::Text(text) if text.is_empty() => "an empty text".to_owned(),
        Value::Text(text) => quoted(text),
        Value::List(_) => "a list".to_owned(),
        Value::Map(_) => "a map".to_owned(),
    }
}

impl<'a> Decoder<'_, 'a> {
    /// A text as it was written.
    pub(super) fn text<'n>(&mut self, key: &str, node: &'n Node) -> Option<&'n str> {
        self.scalar(key, "a text", node)
    }

    /// A scalar that should be what `expected` says.
    pub(super) fn scalar<'n>(
        &mut self,
        key: &str,
        expected: &str,
        node: &'n Node,
    ) -> Option<&'n str> {
        match &node.value {
            // The kernel ends texts at this byte.
            Value::Text(text) if text.contains('\0') => {
                self.sink.error(node.at, format!("`{key}` holds a NUL character"));
                None
            }
            Value::Text(text) => Some(text),
            Value::Null | Value::List(_) | Value::Map(_) => {
                self.wrong(key, expected, node);
                None
            }
        }
    }

    /// A list.
    pub(super) fn list<'n>(&mut self, key: &str, node: &'n Node) -> Option<&'n [Node]> {
        match &node.value {
            Value::List(items) => Some(items),
            Value::Text(text) => {
                self.sink
                    .error(node.at, format!("`{key}` must be a list, not {}", quoted(text)))
                    .help(format!("write {}", quoted(&format!("[{text}]"))));
                None
            }
            Value::Null | Value::Map(_) => {
                self.wrong(key, "a list", node);
                None
            }
        }
    }

    /// A list of texts.
    pub(super) fn texts(&mut self, key: &str, node: &Node) -> Vec<String> {
        let items = self.list(key, node).unwrap_or_default();
        items.iter().filter_map(|item| self.text(key, item)).map(str::to_owned).collect()
    }

    /// A text with `${…}` in it.
    pub(super) fn template(&mut self, key: &str, node: &Node) -> Option<Template> {
        let text = self.scalar(key, "a text", node)?;
        match Template::parse(text) {
            Ok(template) => Some(template),
            Err(error) => {
                let at = self.inside(node, text, error.at);
                self.sink.error(at, format!("`{key}`: {}", error.problem));
                None
            }
        }
    }

    /// The place of a byte of a scalar, where the scalar stands in the file as it is.
    pub(super) fn inside(&self, node: &Node, text: &str, offset: usize) -> At {
        let written = self.sink.written(node.at);
        let quote = usize::from(written.starts_with(['"', '\'']));
        let is_same = written.get(quote..).is_some_and(|written| written.starts_with(text));
        if !is_same {
            return node.at;
        }
        let rest = text.get(offset..).unwrap_or_default();
        let length = rest.find('}').map_or(rest.len(), |end| end.saturating_add(1));
        At::new(node.at.start.saturating_add(quote).saturating_add(offset), length)
    }

    /// A path: a text with `${…}` in it that is not empty.
    pub(super) fn path(&mut self, key: &str, node: &Node) -> Option<Template> {
        let path = self.template(key, node)?;
        if path.raw().is_empty() {
            self.sink.error(node.at, format!("`{key}` must be a path, not empty"));
            return None;
        }
        let Some(dir) = self.foreign_dir(node) else { return Some(path) };
        let from_there = dir.to_str().map(|dir| path.from_dir(dir));
        if from_there.is_none() {
            let message = format!("`{key}` starts at a directory whose name is not UTF-8");
            self.sink.error(node.at, message).help("write it from `/` on");
        }
        from_there
    }

    /// The path of a socket, where all of it is known: the kernel allows less than for a file.
    pub(super) fn socket_path(&mut self, key: &str, node: &Node) -> Option<Template> {
        let path = self.path(key, node)?;
        let raw = path.raw();
        let whole = self.dir.map_or_else(|| raw.into(), |dir| dir.as_path().join(raw));
        let length = whole.as_os_str().len();
        if !raw.contains("${") && length > SOCKET_PATH_MAX {
            let message = format!(
                "`{key}` has {length} bytes from `/` on, and the kernel allows {SOCKET_PATH_MAX} for \
                 the path of a socket"
            );
            self.sink.error(node.at, message).help("use a shorter directory, as one under `/run`");
            return None;
        }
        Some(path)
    }

    /// The directory of the file in which a value stands, where it is not that of the unit. The
    /// command line is in none.
    fn foreign_dir(&self, node: &Node) -> Option<&'a Path> {
        let own = self.dir?.as_path();
        let file = self.sink.file(node.at)?.as_path();
        let dir = file.parent().filter(|dir| file.is_absolute() && *dir != own)?;
        Some(dir)
    }

    /// `true` or `false`.
    pub(super) fn boolean(&mut self, key: &str, node: &Node) -> Option<bool> {
        let text = self.scalar(key, "true or false", node)?;
        let meant = match text.to_ascii_lowercase().as_str() {
            _ if text == "true" => return Some(true),
            _ if text == "false" => return Some(false),
            "true" | "yes" | "on" | "y" | "1" => Some("true"),
            "false" | "no" | "off" | "n" | "0" => Some("false"),
            _ => None,
        };
        let message = format!("`{key}` must be true or false, not {}", quoted(text));
        let found = self.sink.error(node.at, message).did_you_mean(meant);
        if let Some(help) = other_forms(key) {
            found.help(help);
        }
        None
    }

    /// A whole number in these bounds, in decimal digits.
    pub(super) fn number(&mut self, key: &str, node: &Node, from: i64, to: i64) -> Option<i64> {
        let expected = format!("a whole number from {from} to {to}");
        let text = self.scalar(key, &expected, node)?;
        let digits = text.strip_prefix('-').unwrap_or(text);
        let is_decimal = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        if is_decimal && digits.len() > 1 && digits.starts_with('0') {
            self.ambiguous(key, node, text);
            return None;
        }
        let number = text.parse::<i64>().ok().filter(|_| is_decimal);
        if number.is_none_or(|number| number < from || number > to) {
            self.wrong(key, &expected, node);
            return None;
        }
        number
    }

    /// Refuses a number that is octal for some and decimal for others.
    pub(super) fn ambiguous(&mut self, key: &str, node: &Node, text: &str) {
        let decimal = text.trim_start_matches('0');
        let decimal = if decimal.is_empty() { "0" } else { decimal };
        self.sink
            .error(node.at, format!("`{key}`: {} is ambiguous: octal or decimal?", quoted(text)))
            .help(format!("numbers are decimal and have no leading zero: `{decimal}`"));
    }

    /// A number in these bounds, with decimals where wanted.
    pub(super) fn decimal(&mut self, key: &str, node: &Node, from: f64, to: f64) -> Option<f64> {
        let expected = format!("a number from {from} to {to}");
        let text = self.scalar(key, &expected, node)?;
        let is_plain = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        let number = text.parse::<f64>().ok().filter(|_| is_plain);
        if number.is_none_or(|number| number < from || number > to) {
            self.wrong(key, &expected, node);
            return None;
        }
        number
    }

    /// A length of time.
    pub(super) fn span(&mut self, key: &str, node: &Node) -> Option<Span> {
        let text = self.scalar(key, "a duration", node)?;
        match Span::parse(text) {
            Ok(span) => Some(span),
            Err(error) => {
                let message = format!("`{key}`: {} is not a duration", quoted(text));
                self.sink
                    .error(node.at, message)
                    .help(error.to_string().trim_start_matches("not a duration; "));
                None
            }
        }
    }

    /// A length of time, or `never`.
    pub(super) fn wait(&mut self, key: &str, node: &Node) -> Option<Span> {
        match &node.value {
            Value::Text(text) if text == "never" => Some(Span::FOREVER),
            Value::Null | Value::Text(_) | Value::List(_) | Value::Map(_) => self.span(key, node),
        }
    }

    /// A number of bytes, as in `64K`, `10MiB`, `10MB`.
    pub(super) fn size(&mut self, key: &str, node: &Node) -> Option<u64> {
        let text = self.scalar(key, "a size", node)?;
        let size = parse_size(text);
        if size.is_none() {
            self.sink.error(node.at, format!("`{key}`: {} is not a size", quoted(text))).help(
                "write it as `512`, `64K`, `10M`, `1G` (of 1024), `10MiB`, or `10MB` (of 1000)",
            );
        }
        size
    }

    /// A signal by its name or number.
    pub(super) fn signal(&mut self, key: &str, node: &Node) -> Option<Signal> {
        let text = self.scalar(key, "a signal", node)?;
        let signal = Signal::parse(text);
        if signal.is_none() {
            let meant = suggest::nearest_signal(text);
            let message = format!("`{key}`: no signal {}", quoted(text));
            let found = self.sink.error(node.at, message).did_you_mean(meant);
            if meant.is_none() {
                found.help(
                    "write a name of signal(7), as `TERM`, `SIGUSR1` or `RTMIN+3`, or its number",
                );
            }
        }
        signal
    }

    /// One of these words. `later` are words of the unit format that are not built.
    pub(super) fn choice<T: Clone>(
        &mut self,
        key: &str,
        node: &Node,
        words: &[(&str, T)],
        later: &[&str],
    ) -> Option<T> {
        let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let text = self.scalar(key, &alternatives(&known), node)?;
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
            return Some(value.clone());
        }
        if later.contains(&text) {
            let message = format!("`{key}: {text}` is not supported yet");
            self.sink.error(node.at, message);
            return None;
        }
        let meant = suggest::nearest(text, known.iter().copied());
        let message = format!("`{key}` must be {}, not {}", alternatives(&known), quoted(text));
        let found = self.sink.error(node.at, message).did_you_mean(meant);
        if let Some(help) = other_forms(key) {
            found.help(help);
        }
        None
    }

    /// The name of a unit.
    pub(super) fn unit_name(&mut self, key: &str, node: &Node) -> Option<UnitName> {
        let text = self.scalar(key, "a name", node)?;
        match UnitName::parse(text) {
            Ok(name) => Some(name),
            Err(error) => {
                self.sink.error(node.at, format!("`{key}`: {} is no name: {error}", quoted(text)));
                None
            }
        }
    }

    /// A list of names of environment variables.
    pub(super) fn variables(&mut self, key: &str, node: &Node) -> Vec<String> {
        let mut names = Vec::new();
        for item in self.list(key, node).unwrap_or_default() {
            let Some(name) = self.text(key, item) else { continue };
            if self.is_variable(key, name, item.at) {
                names.push(name.to_owned());
            }
        }
        names
    }

    /// Whether this can be the name of an environment variable.
    pub(super) fn is_variable(&mut self, key: &str, name: &str, at: At) -> bool {
        let problem = match name {
            "" => "is empty",
            _ if name.contains('=') => "holds `=`",
            _ if name.contains('\0') => "holds a NUL character",
            _ => return true,
        };
        self.sink.error(at, format!("`{key}`: a variable's name {problem}: {}", quoted(name)));
        false
    }

    /// The unit's labels.
    pub(super) fn labels(&mut self, node: &Node) -> BTreeMap<String, String> {
        let Value::Map(entries) = &node.value else {
            self.wrong("labels", "a map", node);
            return BTreeMap::new();
        };
        let mut labels = BTreeMap::new();
        for entry in entries {
            if entry.key.is_empty() || entry.key.contains(['=', ',', '\0']) {
                let message = format!("label {} is empty or holds `=` or `,`", quoted(&entry.key));
                self.sink.error(entry.key_at, message);
                continue;
            }
            let key = format!("labels.{}", entry.key);
            if let Some(text) = self.text(&key, &entry.value) {
                labels.insert(entry.key.clone(), text.to_owned());
            }
        }
        labels
    }

    /// Complains of each entry that was there before.
    pub(super) fn distinct<'n>(
        &mut self,
        key: &str,
        items: impl IntoIterator<Item = (&'n str, At)>,
    ) {
        let mut seen = BTreeSet::new();
        for (text, at) in items {
            if !seen.insert(text.to_owned()) {
                self.sink.error(at, format!("`{key}` names {} twice", quoted(text)));
            }
        }
    }
}

/// Words with commas and `or`.
pub(super) fn alternatives(words: &[&str]) -> String {
    match words.split_last() {
        Some((last, [])) => format!("`{last}`"),
        Some((last, rest)) => {
            let rest: Vec<String> = rest.iter().map(|word| format!("`{word}`")).collect();
            format!("{} or `{last}`", rest.join(", "))
        }
        None => String::new(),
    }
}

/// Reads a number of bytes. A letter alone means 1024, as systemd and Docker mean it.
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    if digits.len() > 1 && digits.starts_with('0') {
        return None;
    }
    let unit = unit.trim_start().to_ascii_lowercase();
    let (letter, rest) = unit.split_at_checked(1).unwrap_or((unit.as_str(), ""));
    let power = match letter {
        "" | "b" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        _ => return None,
    };
    let base: u64 = match (letter, rest) {
        ("" | "b", "") => 1,
        ("" | "b", _) => return None,
        (_, "" | "ib") => 1024,
        (_, "b") => 1000,
        (_, _) => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(base.checked_pow(power)?)
}

/// What else than words a key takes, as the table of keys has it.
fn other_forms(key: &str) -> Option<String> {
    let types = keys::key(key)?.types;
    let is_more = ["map", "list", "{"].iter().any(|form| types.contains(form));
    is_more.then(|| format!("it may be {types}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        for (text, size) in [
            ("0", Some(0)),
            ("512", Some(512)),
            ("512B", Some(512)),
            ("64K", Some(64 << 10)),
            ("64k", Some(64 << 10)),
            ("10M", Some(10 << 20)),
            ("10MiB", Some(10 << 20)),
            ("10 MB", Some(10_000_000)),
            ("1G", Some(1 << 30)),
            ("2T", Some(2 << 40)),
            ("", None),
            ("K", None),
            ("1.5G", None),
            ("-1", None),
            ("010", None),
            ("1Kb1", None),
            ("10Mi", None),
            ("1é", None),
            ("99999999999999999999", None),
            ("99999999999T", None),
        ] {
            assert_eq!(parse_size(text), size, "{text}");
        }
    }
}
