//! When to look at which instance again.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::InstanceId;

/// At most one time for each instance, and the first of them all at hand.
#[derive(Debug)]
pub(super) struct Wakes<T> {
    times: BTreeSet<(T, InstanceId)>,
    time_of: BTreeMap<InstanceId, T>,
}

impl<T: Ord + Copy> Wakes<T> {
    pub(super) fn new() -> Self {
        Self { times: BTreeSet::new(), time_of: BTreeMap::new() }
    }

    /// The first time of all.
    pub(super) fn first(&self) -> Option<T> {
        self.times.first().map(|(time, _)| *time)
    }

    /// Sets an instance's time, or takes it away.
    pub(super) fn set(&mut self, id: &InstanceId, time: Option<T>) {
        if self.time_of.get(id) == time.as_ref() {
            return;
        }
        if let Some(old) = self.time_of.remove(id) {
            self.times.remove(&(old, id.clone()));
        }
        if let Some(time) = time {
            self.time_of.insert(id.clone(), time);
            self.times.insert((time, id.clone()));
        }
    }

    /// Takes an instance whose time has come.
    pub(super) fn pop(&mut self, now: T) -> Option<InstanceId> {
        if self.first()? > now {
            return None;
        }
        let (_, id) = self.times.pop_first()?;
        self.time_of.remove(&id);
        Some(id)
    }

    pub(super) fn clear(&mut self) {
        self.times.clear();
        self.time_of.clear();
    }
}
