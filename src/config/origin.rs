//! Where each value of a unit was written: which file, drop-in or setting gave it.

use std::collections::BTreeMap;

use super::diagnostic::Place;
use super::merge::join;
use super::source::Sink;
use super::yaml::{Entry, Value};

/// The places of a unit's keys. What is not in it is a default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origins(BTreeMap<String, Place>);

impl Origins {
    /// The places of all keys of a map that hold a value of their own.
    pub(super) fn new(entries: &[Entry], sink: &Sink<'_>) -> Self {
        let mut origins = Self::default();
        origins.add(entries, "", sink);
        origins
    }

    fn add(&mut self, entries: &[Entry], parent: &str, sink: &Sink<'_>) {
        for entry in entries {
            let path = join(parent, &entry.key);
            match &entry.value.value {
                Value::Map(inside) => self.add(inside, &path, sink),
                Value::Null | Value::Text(_) | Value::List(_) => {
                    self.0.insert(path, sink.spot(entry.key_at).place);
                }
            }
        }
    }

    /// The keys as they were written, with their places.
    pub fn keys(&self) -> impl Iterator<Item = (&str, &Place)> {
        self.0.iter().map(|(key, place)| (key.as_str(), place))
    }

    /// Where a key was written as `plan` names them: it, what stands for it, the
    /// map it is in, or the first of its own keys.
    pub fn of(&self, key: &str) -> Option<&Place> {
        let other = (key == "command").then_some("shell");
        let inside = format!("{key}.");
        let above = || {
            let dots = key.match_indices('.').map(|(dot, _)| dot);
            dots.rev().find_map(|dot| key.get(..dot).and_then(|parent| self.0.get(parent)))
        };
        let below = || self.0.iter().find(|(path, _)| path.starts_with(&inside));
        self.0
            .get(key)
            .or_else(|| other.and_then(|key| self.0.get(key)))
            .or_else(above)
            .or_else(|| below().map(|(_, place)| place))
    }
}
