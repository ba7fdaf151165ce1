//! A map against the table of keys: what is unknown, not built, or not for this kind of unit.

use super::Decoder;
use super::value::{alternatives, described};
use crate::config::diagnostic::quoted;
use crate::config::keys::{self, Key};
use crate::config::suggest;
use crate::config::yaml::{Entry, Node, Value};

/// The legal keys of a map, with their values.
#[derive(Debug)]
pub(super) struct Fields<'n> {
    /// What was written, in that order.
    pub known: Vec<(&'static Key, &'n Entry)>,
}

impl<'n> Fields<'n> {
    /// The value of a key, where it is given.
    pub(super) fn get(&self, name: &str) -> Option<&'n Node> {
        self.known.iter().find(|(key, _)| key.is_named(name)).map(|(_, entry)| &entry.value)
    }
}

impl Decoder<'_, '_> {
    /// The keys of a map that are legal there; each that is not is a mistake.
    pub(super) fn fields<'n>(
        &mut self,
        parent: &'static str,
        node: &'n Node,
    ) -> Option<Fields<'n>> {
        let Value::Map(entries) = &node.value else {
            self.wrong(parent, "a map", node);
            let here =
                keys::children(parent).filter(|key| key.supported && key.units.has(self.kind));
            let here: Vec<&str> = here.map(Key::name).collect();
            if node.value != Value::Null && !here.is_empty() {
                self.sink.help_last(&format!("its keys are {}", alternatives(&here)));
            }
            return None;
        };
        let mut known = Vec::with_capacity(entries.len());
        for entry in entries {
            if self.sink.is_full() {
                break;
            }
            match keys::child(parent, &entry.key) {
                None => self.unknown_key(parent, entry),
                Some(key) if !key.supported => {
                    let message = format!("{} is not supported yet", quoted(key.path));
                    self.sink.error(entry.key_at, message);
                }
                Some(key) if !key.units.has(self.kind) => {
                    let kind = self.kind.as_str();
                    let message = format!("{} is not a key of a {kind}", quoted(key.path));
                    let help = format!("it belongs to {}", key.units.as_str());
                    self.sink.error(entry.key_at, message).help(help);
                }
                Some(key) => known.push((key, entry)),
            }
        }
        Some(Fields { known })
    }

    fn unknown_key(&mut self, parent: &'static str, entry: &Entry) {
        let kind = self.kind;
        let legal = || {
            let here = keys::children(parent).filter(move |key| key.units.has(kind));
            here.map(Key::name)
        };
        let meant = suggest::nearest(&entry.key, legal())
            .or_else(|| suggest::translated(&entry.key, legal()));
        self.is_command_excused |= parent.is_empty() && matches!(meant, Some("command" | "shell"));
        let place = match (parent, self.unit.as_str()) {
            ("", "") => String::new(),
            ("", unit) => format!(" in unit `{unit}`"),
            (parent, _) => format!(" in `{parent}`"),
        };
        let message = format!("unknown key {}{place}", quoted(&entry.key));
        let elsewhere = match meant {
            Some(_) => None,
            None => elsewhere(parent, &entry.key, &legal().collect::<Vec<_>>()),
        };
        let found = self.sink.error(entry.key_at, message).did_you_mean(meant);
        if let Some(help) = elsewhere {
            found.help(help);
        }
    }

    /// The one key of a map of which exactly one may be given.
    pub(super) fn only<'n>(
        &mut self,
        parent: &'static str,
        node: &'n Node,
    ) -> Option<(&'static Key, &'n Node)> {
        self.one_of(parent, node, &[]).map(|(_, key, value)| (key, value))
    }

    /// The one key of a map of which exactly one may be given, beside others that go with it.
    pub(super) fn one_of<'n>(
        &mut self,
        parent: &'static str,
        node: &'n Node,
        beside: &[&str],
    ) -> Option<(Fields<'n>, &'static Key, &'n Node)> {
        let errors = self.sink.errors();
        let fields = self.fields(parent, node)?;
        let mut known = fields.known.iter().filter(|(key, _)| !beside.contains(&key.name()));
        let Some((key, entry)) = known.next().copied() else {
            // One that is wrong is not missing too.
            if self.sink.errors() == errors {
                let kind = self.kind;
                let legal = keys::children(parent).filter(|key| {
                    key.supported && key.units.has(kind) && !beside.contains(&key.name())
                });
                let legal: Vec<&str> = legal.map(Key::name).collect();
                self.sink.error(node.at, format!("`{parent}` needs {}", alternatives(&legal)));
            }
            return None;
        };
        for (other, entry) in known {
            let message =
                format!("{} and {} exclude each other", quoted(key.path), quoted(other.path));
            self.sink.error(entry.key_at, message);
        }
        Some((fields, key, &entry.value))
    }

    /// Says what a key must be, and what it is.
    pub(super) fn wrong(&mut self, key: &str, expected: &str, node: &Node) {
        if node.value == Value::Null {
            let message = format!("`{key}` has no value");
            self.sink.error(node.at, message).help(format!("leave it out, or give it {expected}"));
        } else {
            let message = format!("`{key}` must be {expected}, not {}", described(node));
            self.sink.error(node.at, message);
        }
    }
}

/// Where else the key would be right, or which keys are legal here.
fn elsewhere(parent: &str, name: &str, legal: &[&str]) -> Option<String> {
    if !parent.is_empty() && keys::child("", name).is_some() {
        return Some(format!(
            "{} is a key of the unit itself: look at its indentation",
            quoted(name)
        ));
    }
    let inside = keys::KEYS.iter().find(|key| {
        key.name() == name
            && key.supported
            && key.parent() != parent
            && legal.contains(&key.parent())
    });
    match inside {
        Some(key) => Some(format!("it belongs into `{}`", key.parent())),
        None if parent.is_empty() || legal.is_empty() => None,
        None => Some(format!("known here: {}", legal.join(", "))),
    }
}
