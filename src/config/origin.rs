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

    /// Where a key was written, by the name that the table of keys has for it; nothing for a default.
    /// A map was written where its first key was.
    pub fn of(&self, key: &str) -> Option<&Place> {
        let exact = |key: &str| self.0.get(key);
        let other = OTHER_NAMES.iter().find(|(name, _)| *name == key).map(|(_, other)| *other);
        if let Some(place) = exact(key).or_else(|| other.and_then(exact)) {
            return Some(place);
        }
        let inside = format!("{key}.");
        let mut below = self.0.range(inside.clone()..);
        below.next().filter(|(path, _)| path.starts_with(&inside)).map(|(_, place)| place)
    }
}

/// Keys that say the same as others do in another form.
const OTHER_NAMES: [(&str, &str); 3] =
    [("restart.policy", "restart"), ("stop.signal", "stop.steps"), ("stop.timeout", "stop.steps")];
