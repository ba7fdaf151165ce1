//! What is known of the due times of instances with a schedule. Unlike other facts it outlives a
//! reboot, so that nothing runs twice for one due time and what was missed is known.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::name::InstanceId;
use super::run::RunId;
use super::spec::SpecHash;
use super::time::Wall;

/// The due times of all instances with a schedule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct Agenda {
    entries: BTreeMap<InstanceId, Entry>,
}

/// The due times of one instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Fingerprint of the schedule that all this is about.
    pub schedule: SpecHash,
    /// The latest due time that was served; at first the time when the schedule was first seen.
    pub last: Wall,
    /// Its latest run.
    #[serde(default)]
    pub run: Option<RunId>,
    /// When that began.
    pub ran: Option<Wall>,
    /// The epoch that the latest run served.
    pub epoch: u64,
    /// Whether a due time came while it ran, and it is to run once more.
    pub queued: bool,
    /// The next due time; `None` where there is none any more.
    #[serde(skip)]
    pub next: Option<Due>,
}

/// A due time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    /// By the schedule.
    pub time: Wall,
    /// When it is to run: later by its part of chance.
    pub at: Wall,
}

impl Agenda {
    /// What is known of an instance.
    pub fn get(&self, id: &InstanceId) -> Option<&Entry> {
        self.entries.get(id)
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, id: &InstanceId) -> Option<&mut Entry> {
        self.entries.get_mut(id)
    }

    /// Begins to know an instance, or begins anew.
    pub fn insert(&mut self, id: InstanceId, entry: Entry) {
        self.entries.insert(id, entry);
    }

    /// Forgets all instances but these. Returns whether there was one.
    pub fn retain(&mut self, is_kept: impl Fn(&InstanceId) -> bool) -> bool {
        let before = self.entries.len();
        self.entries.retain(|id, _| is_kept(id));
        before != self.entries.len()
    }

    /// All instances, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&InstanceId, &Entry)> {
        self.entries.iter()
    }

    /// Whether no instance has a schedule.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}
