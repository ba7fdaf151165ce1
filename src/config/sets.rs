//! `UNIT.KEY=VALUE` of a command line: one value, laid over a unit after everything else.
//!
//! What begins with a bracket, a brace or a quote is read as YAML, and the word `null` as in YAML; whatever
//! else is the text that was written, so that `#`, `*` or `: ` in it mean nothing.

use std::collections::BTreeMap;

use super::diagnostic::quoted;
use super::merge::{is_free, join};
use super::source::{At, Sink, SourceFile};
use super::suggest;
use super::yaml::{self, DEPTH_MAX, Entry, Node, Tree, Value};
use crate::model::FilePath;

/// Where the words of a command line stand, as if it were a file: one a line.
const SET_FILE: &str = "--set";

/// The settings of a command line as a file, one a line.
pub(super) fn file(sets: &[String]) -> SourceFile {
    // A line is one setting; one that has several lines is refused.
    let lines: Vec<String> = sets.iter().map(|set| set.replace(['\n', '\r'], " ")).collect();
    SourceFile { path: FilePath::from(SET_FILE), text: lines.join("\n").into_bytes() }
}

/// Reads the settings, which the sink has at hand as [`file`] wrote them. Gives the units that they
/// are for by number, with what is laid over them, in order.
pub(super) fn read(
    sets: &[String],
    names: &BTreeMap<String, usize>,
    is_unread: &dyn Fn(&str) -> bool,
    sink: &mut Sink<'_>,
) -> Vec<(usize, Tree)> {
    let (text, mut start, _) = sink.reading();
    if !yaml::is_readable(sink, text.len()) {
        return Vec::new();
    }
    let mut trees = Vec::new();
    for (set, line) in sets.iter().zip(text.split('\n')) {
        let at = At::new(start, line.len());
        if set.contains(['\n', '\r']) {
            let message = "a setting is one line";
            sink.error(at, message).help("in double quotes, `\\n` begins a new line");
        } else if let Some(found) = one(line, start, names, is_unread, sink) {
            trees.push(found);
        }
        start = start.saturating_add(line.len()).saturating_add(1);
    }
    trees
}

fn one(
    line: &str,
    start: usize,
    names: &BTreeMap<String, usize>,
    is_unread: &dyn Fn(&str) -> bool,
    sink: &mut Sink<'_>,
) -> Option<(usize, Tree)> {
    let at = At::new(start, line.len());
    let form = "write it as `UNIT.KEY=VALUE`, as in `web.env.PORT=8080`";
    let Some((left, value)) = line.split_once('=').filter(|(left, _)| left.contains('.')) else {
        sink.error(at, format!("{} sets nothing", quoted(line))).help(form);
        return None;
    };
    // A unit's name may hold dots: the longest one counts.
    let dots = left.match_indices('.').map(|(dot, _)| dot);
    let split = |dot: usize| Some((left.get(..dot)?, left.get(dot.saturating_add(1)..)?));
    let known = dots.clone().rev().filter_map(split).find(|(unit, _)| names.contains_key(*unit));
    let Some((unit, path)) = known else {
        let (unit, _) = left.split_once('.')?;
        let is_unread = dots.clone().filter_map(split).any(|(unit, _)| is_unread(unit));
        if !is_unread {
            let near = |(unit, _)| suggest::nearest(unit, names.keys().map(String::as_str));
            let meant = dots.filter_map(split).find_map(near);
            let message = format!("there is no unit {} in this source", quoted(unit));
            sink.error(At::new(start, unit.len()), message).did_you_mean(meant);
        }
        return None;
    };
    let key_start = start.saturating_add(unit.len()).saturating_add(1);
    let keys = split_path(path);
    if keys.iter().any(|key| key.is_empty()) || keys.len() >= DEPTH_MAX {
        let message = format!("{} is no key", quoted(path));
        sink.error(At::new(key_start, path.len()), message).help(form);
        return None;
    }
    let value_start = start.saturating_add(left.len()).saturating_add(1);
    let errors = sink.errors();
    let mut node = read_value(value, value_start, sink)?;
    let end = at.end;
    let mut key_end = key_start.saturating_add(path.len());
    for key in keys.iter().rev() {
        let key_start = key_end.saturating_sub(key.len());
        let key_at = At { start: key_start, end: key_end };
        let entry = Entry { key: (*key).to_owned(), key_at, value: node };
        node = Node { value: Value::Map(vec![entry]), at: At { start: key_start, end } };
        key_end = key_start.saturating_sub(1);
    }
    node.at = at;
    let complete = sink.errors() == errors;
    names.get(unit).map(|unit| (*unit, Tree { root: node, complete }))
}

/// The keys of a path. In a map of the operator's own keys, dots are part of them.
fn split_path(path: &str) -> Vec<&str> {
    let mut keys = Vec::new();
    let mut parent = String::new();
    let mut rest = path;
    while let Some((key, after)) = rest.split_once('.').filter(|_| !is_free(&parent)) {
        keys.push(key);
        parent = join(&parent, key);
        rest = after;
    }
    keys.push(rest);
    keys
}

fn read_value(text: &str, start: usize, sink: &mut Sink<'_>) -> Option<Node> {
    let begin = text.len().saturating_sub(text.trim_start().len());
    let text = text.trim();
    let start = start.saturating_add(begin);
    let at = At::new(start, text.len());
    if text.starts_with(['[', '{', '"', '\'']) {
        let documents = yaml::parse_piece(sink, text, start);
        let tree = documents.trees.into_iter().next().filter(|_| documents.complete);
        return tree.map(|tree| tree.root);
    }
    let value = if text == "null" { Value::Null } else { Value::Text(text.to_owned()) };
    Some(Node { value, at })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_split_at_dots_but_in_maps_of_free_keys() {
        for (path, keys) in [
            ("nice", &["nice"][..]),
            ("restart.limit.starts", &["restart", "limit", "starts"]),
            ("env.A.B", &["env", "A.B"]),
            ("labels.app.example/part", &["labels", "app.example/part"]),
            ("env", &["env"]),
            ("nope.a", &["nope", "a"]),
        ] {
            assert_eq!(split_path(path), keys, "{path}");
        }
    }
}
