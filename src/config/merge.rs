//! One tree laid over another: maps merge, whatever else replaces, and `null` takes a key away.
//!
//! Works on trees before they are decoded, so that each value keeps the place where it was written.
//! Keys that exclude each other replace each other.

use std::collections::BTreeMap;

use super::keys::{self, Key};
use super::source::At;
use super::suggest;
use super::yaml::{Entry, Node, Value};
use crate::model::{Gather, Kind};

/// Keys of one map of which only those of one side can be given.
struct Exclusive {
    /// The map; empty for the unit itself.
    parent: &'static str,
    /// Its sides.
    sides: &'static [&'static [&'static str]],
    /// Keys that mean something with these keys only.
    beside: &'static [(&'static str, &'static [&'static str])],
}

/// What [`Ready`](crate::model::Ready) asks for again and again.
const ASKED: &[&str] = &["tcp", "unix", "http", "exec"];

/// All keys that exclude each other, as decoding has them.
const EXCLUSIVE: [Exclusive; 6] = [
    Exclusive { parent: "", sides: &[&["command"], &["shell"]], beside: &[] },
    Exclusive {
        parent: "",
        sides: &[&["schedule"], &["every"], &["calendar"]],
        beside: &[("timezone", &["schedule", "calendar"])],
    },
    Exclusive {
        parent: "ready",
        sides: &[
            &["notify"],
            &["fd"],
            &["file"],
            &["delay"],
            &["tcp"],
            &["unix"],
            &["http"],
            &["exec"],
            &["log"],
        ],
        beside: &[("expect", &["http"]), ("interval", ASKED), ("timeout", ASKED)],
    },
    Exclusive {
        parent: "health",
        sides: &[&["http"], &["tcp"], &["exec"], &["memory"]],
        beside: &[],
    },
    Exclusive { parent: "reload", sides: &[&["signal"], &["command"]], beside: &[] },
    Exclusive { parent: "stop", sides: &[&["signal", "timeout"], &["steps"]], beside: &[] },
];

/// The key whose value may be written as the value of one of its own keys alone.
const SHORT: (&str, &str) = ("restart", "policy");

/// Most keys that are not there for which the nearest one is looked for; each looks at all keys.
const SUGGESTED_MAX: usize = 100;

/// A `null` that takes nothing away.
#[derive(Debug, PartialEq)]
pub(super) struct Vain {
    /// The key.
    pub path: String,
    /// Where.
    pub at: At,
    /// The key that was probably meant.
    pub meant: Option<String>,
}

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Merged {
    /// How many keys and values were copied.
    pub copied: usize,
    /// What was meant to be taken away and was not there.
    pub vain: Vec<Vain>,
}

impl Merged {
    /// A copy of a value, which is counted.
    fn copy(&mut self, node: &Node) -> Node {
        self.copied = self.copied.saturating_add(size(node));
        node.clone()
    }

    /// A copy of a key with its value.
    pub(super) fn copy_entry(&mut self, entry: &Entry) -> Entry {
        let value = self.copy(&entry.value);
        Entry { key: entry.key.clone(), key_at: entry.key_at, value }
    }

    /// Lays the keys of a map over those of another one; `parent` is the path of both.
    pub(super) fn lay(&mut self, lower: &mut Vec<Entry>, upper: &[Entry], parent: &str) {
        for group in EXCLUSIVE.iter().filter(|group| group.parent == parent) {
            give_way(lower, upper, group);
        }
        let mut over: BTreeMap<&str, &Entry> =
            upper.iter().map(|entry| (entry.key.as_str(), entry)).gather();
        lower.retain_mut(|low| {
            let Some(entry) = over.remove(low.key.as_str()) else { return true };
            let path = join(parent, &low.key);
            if entry.value.value == Value::Null && !takes_null(&path) {
                // What had no value before is wrong, and stays so.
                return low.value.value == Value::Null;
            }
            self.replace(low, entry, &path);
            true
        });
        for entry in upper.iter().filter(|entry| over.contains_key(entry.key.as_str())) {
            self.add(lower, entry, parent);
        }
    }

    /// Adds a key that is not there.
    fn add(&mut self, lower: &mut Vec<Entry>, entry: &Entry, parent: &str) {
        let path = join(parent, &entry.key);
        match &entry.value.value {
            Value::Null if !takes_null(&path) && may_be_absent(parent, &entry.key) => {
                let is_looked_for = self.vain.len() < SUGGESTED_MAX;
                let known = lower.iter().map(|low| low.key.as_str()).filter(|_| is_looked_for);
                let meant = suggest::nearest(&entry.key, known).map(str::to_owned);
                self.vain.push(Vain { path, at: entry.key_at, meant });
            }
            Value::Map(inside) => {
                let mut value = Vec::with_capacity(inside.len());
                self.lay(&mut value, inside, &path);
                let value = Node { value: Value::Map(value), at: entry.value.at };
                self.copied = self.copied.saturating_add(1);
                lower.push(Entry { key: entry.key.clone(), key_at: entry.key_at, value });
            }
            Value::Null | Value::Text(_) | Value::List(_) => lower.push(self.copy_entry(entry)),
        }
    }

    /// A value in the place of another one, or over it where both are maps.
    fn replace(&mut self, low: &mut Entry, entry: &Entry, path: &str) {
        let short = (path == SHORT.0).then_some(SHORT.1);
        match (&mut low.value.value, &entry.value.value, short) {
            (Value::Map(lower), Value::Map(upper), _) => self.lay(lower, upper, path),
            // As if it had been written in full.
            (Value::Text(_), Value::Map(upper), Some(key)) => {
                let at = low.value.at;
                let word = std::mem::replace(&mut low.value.value, Value::Null);
                let value = Node { value: word, at };
                let mut lower = vec![Entry { key: key.to_owned(), key_at: low.key_at, value }];
                self.lay(&mut lower, upper, path);
                low.value.value = Value::Map(lower);
            }
            (Value::Map(lower), Value::Text(_), Some(key)) => {
                let value = entry.value.clone();
                let upper = Entry { key: key.to_owned(), key_at: entry.key_at, value };
                self.lay(lower, &[upper], path);
            }
            (_, _, _) => *low = self.copy_entry(entry),
        }
    }
}

/// Takes away what the keys that are laid over it exclude.
fn give_way(lower: &mut Vec<Entry>, upper: &[Entry], group: &Exclusive) {
    let is_given =
        |key: &str| upper.iter().any(|entry| entry.key == key && entry.value.value != Value::Null);
    let chosen = |side: &&&[&str]| side.iter().any(|key| is_given(key));
    if !group.sides.iter().any(|side| chosen(&side)) {
        return;
    }
    let left = group.sides.iter().filter(|side| !chosen(side)).copied().flatten();
    let idle = group.beside.iter().filter(|(_, with)| !with.iter().any(|key| is_given(key)));
    let gone: Vec<&str> = left.chain(idle.map(|(key, _)| key)).copied().collect();
    lower.retain(|entry| !gone.contains(&entry.key.as_str()));
}

/// How many keys and values a tree has.
pub(super) fn size(node: &Node) -> usize {
    let inside = match &node.value {
        Value::Null | Value::Text(_) => 0,
        Value::List(items) => items.iter().map(size).sum(),
        Value::Map(entries) => entries.iter().map(|entry| size(&entry.value)).sum(),
    };
    inside.saturating_add(1)
}

/// The path of a key of this map.
pub(super) fn join(parent: &str, key: &str) -> String {
    if parent.is_empty() { key.to_owned() } else { format!("{parent}.{key}") }
}

/// Whether `null` is a value of this key, and not its absence.
fn takes_null(path: &str) -> bool {
    keys::key(path).is_some_and(Key::takes_null)
}

/// Whether this could be a key here, so that its absence is no mistake.
fn may_be_absent(parent: &str, key: &str) -> bool {
    keys::child(parent, key).is_some() || is_free(parent)
}

/// Whether this is a map in which every key is the operator's own.
pub(super) fn is_free(path: &str) -> bool {
    keys::key(path).is_some_and(Key::is_free)
}

/// The kind that a unit with these keys has; nothing where it says another word.
pub(super) fn kind_of(entries: &[Entry]) -> Option<Kind> {
    match entries.iter().find(|entry| entry.key == "kind").map(|entry| &entry.value.value) {
        None => Some(Kind::Service),
        Some(Value::Text(text)) => Kind::ALL.into_iter().find(|kind| kind.as_str() == text),
        Some(Value::Null | Value::List(_) | Value::Map(_)) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::source::{Sink, SourceFile};
    use crate::config::yaml::parse;
    use crate::model::FilePath;

    fn tree(text: &str) -> Vec<Entry> {
        let file = SourceFile { path: FilePath::from("/u/a.yaml"), text: text.into() };
        let mut sink = Sink::new();
        sink.open(&file);
        let documents = parse(&mut sink, text.len());
        match documents.trees.into_iter().next().map(|tree| tree.root.value) {
            Some(Value::Map(entries)) => entries,
            other => panic!("{text}: {other:?}"),
        }
    }

    fn short(node: &Node) -> String {
        match &node.value {
            Value::Null => "~".to_owned(),
            Value::Text(text) => text.clone(),
            Value::List(items) => {
                format!("[{}]", items.iter().map(short).collect::<Vec<_>>().join(" "))
            }
            Value::Map(entries) => format!("{{{}}}", all(entries)),
        }
    }

    fn all(entries: &[Entry]) -> String {
        let entry = |entry: &Entry| format!("{}={}", entry.key, short(&entry.value));
        entries.iter().map(entry).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn each_kind_of_value_is_laid_over_each() {
        for (lower, upper, expected) in [
            ("{nice: 1, umask: '022'}", "{nice: 2}", "nice=2 umask=022"),
            ("{env: {A: a, B: b}}", "{env: {B: c, C: d}}", "env={A=a B=c C=d}"),
            ("{requires: [a, b]}", "{requires: [c]}", "requires=[c]"),
            (
                "{restart: {limit: {starts: 1, within: 2s}}}",
                "{restart: {limit: {starts: 3}}}",
                "restart={limit={starts=3 within=2s}}",
            ),
            ("{command: [a], nice: 1}", "{shell: b}", "nice=1 shell=b"),
            ("{shell: a}", "{command: b}", "command=b"),
            ("{command: a}", "{command: b, shell: c}", "command=b shell=c"),
            ("{restart: always}", "{restart: {delay: 1s}}", "restart={policy=always delay=1s}"),
            ("{restart: {delay: 1s}}", "{restart: never}", "restart={delay=1s policy=never}"),
            ("{on_failure: {start: a}}", "{on_failure: none}", "on_failure=none"),
            (
                "{ready: {http: a, expect: 200, interval: 1s}}",
                "{ready: {tcp: b}}",
                "ready={interval=1s tcp=b}",
            ),
            ("{ready: {http: a, expect: 200, interval: 1s}}", "{ready: {fd: 3}}", "ready={fd=3}"),
            ("{ready: {http: a}}", "{ready: {interval: 2s}}", "ready={http=a interval=2s}"),
            ("{health: {http: a, retries: 2}}", "{health: {tcp: b}}", "health={retries=2 tcp=b}"),
            ("{stop: {signal: INT, to: main}}", "{stop: {steps: [a]}}", "stop={to=main steps=[a]}"),
            ("{stop: {steps: [a]}}", "{stop: {timeout: 1s}}", "stop={timeout=1s}"),
            ("{stop: {signal: INT}}", "{stop: {timeout: 1s}}", "stop={signal=INT timeout=1s}"),
            ("{calendar: a, timezone: b}", "{every: 1h}", "every=1h"),
            ("{calendar: a, timezone: b}", "{schedule: c}", "timezone=b schedule=c"),
            // Nothing is taken away.
            ("{env: {A: a, B: b}, nice: 1}", "{env: {A: ~}, nice: null}", "env={B=b}"),
            ("{shell: a}", "{command: ~}", "shell=a"),
            ("{stdin: {file: a}}", "{stdin: null}", "stdin=~"),
            ("{logs: {to: console}}", "{logs: {to: null}}", "logs={to=~}"),
            ("{nice: ~}", "{nice: ~}", "nice=~"),
            ("{command: a}", "{evn: ~}", "command=a evn=~"),
        ] {
            let mut entries = tree(lower);
            let upper = tree(upper);
            Merged::default().lay(&mut entries, &upper, "");
            assert_eq!(all(&entries), expected, "{lower} and {upper:?}");
        }
    }

    #[test]
    fn what_is_taken_away_and_is_not_there_is_told() {
        let mut entries = tree("{command: a, env: {PORT: '1'}}");
        let upper = tree("{env: {PROT: ~}, nice: ~, labels: {a: ~, b: c}, logs: {keep: ~}}");
        let mut merged = Merged::default();
        merged.lay(&mut entries, &upper, "");
        assert_eq!(all(&entries), "command=a env={PORT=1} labels={b=c} logs={}");
        let paths: Vec<&str> = merged.vain.iter().map(|vain| vain.path.as_str()).collect();
        assert_eq!(paths, ["env.PROT", "nice", "labels.a", "logs.keep"]);
        assert_eq!(merged.vain[0].meant.as_deref(), Some("PORT"));
    }

    #[test]
    fn keys_that_exclude_each_other_are_in_the_table() {
        for group in &EXCLUSIVE {
            let beside = group
                .beside
                .iter()
                .flat_map(|(key, with)| [*key].into_iter().chain(with.iter().copied()));
            for key in group.sides.iter().copied().flatten().copied().chain(beside) {
                assert!(keys::child(group.parent, key).is_some(), "{} {key}", group.parent);
            }
        }
        assert!(keys::child(SHORT.0, SHORT.1).is_some());
    }

    #[test]
    fn what_is_copied_is_counted() {
        let mut merged = Merged::default();
        merged.lay(&mut tree("{command: a}"), &tree("{command: [a, b], env: {A: b}}"), "");
        assert_eq!(merged.copied, 5);
    }
}
