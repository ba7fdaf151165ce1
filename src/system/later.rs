//! What could not be watched, or done, for want of a descriptor or of an event, and is tried again.

use std::collections::{BTreeMap, BTreeSet};

use super::{Launch, RunRef};
use crate::model::{Identity, Monotonic, Role, RunId, Span, Wall};

/// The wait before it is looked at again.
const LOOK_AGAIN: Span = Span::seconds(1);

/// What could not be watched. It is looked at from time to time, until it is watched, or gone.
#[derive(Debug, Default)]
pub(super) struct Later {
    pub(super) processes: Vec<(Launch, Identity)>,
    /// What an earlier supervisor let go, and has not become its program: nothing would tell of that.
    pub(super) execs: Vec<(Launch, Identity)>,
    pub(super) readiness: Vec<(Launch, Identity)>,
    pub(super) trees: BTreeSet<RunId>,
    /// Runs whose processes were not all reached by a kill.
    pub(super) kills: BTreeMap<RunId, RunRef>,
    /// What the timer could not be set to.
    pub(super) alarm: Option<Wall>,
    at: Option<Monotonic>,
}

impl Later {
    /// The next look, where one is due.
    pub(super) fn at(&self) -> Option<Monotonic> {
        self.at
    }

    /// A look is due after a while.
    pub(super) fn again(&mut self, now: Monotonic) {
        if self.at.is_none() {
            self.at = Some(now.after(LOOK_AGAIN));
        }
    }

    /// Everything to be looked at, if it is time.
    pub(super) fn take_due(&mut self, now: Monotonic) -> Option<Self> {
        self.at.filter(|at| now >= *at).map(|_| std::mem::take(self))
    }

    /// A run is over.
    pub(super) fn forget(&mut self, run: RunId) {
        self.processes.retain(|(launch, _)| launch.run != run);
        self.execs.retain(|(launch, _)| launch.run != run);
        self.readiness.retain(|(launch, _)| launch.run != run);
        self.trees.remove(&run);
        self.kills.remove(&run);
    }

    /// A process has ended.
    pub(super) fn ended(&mut self, run: RunId, role: Role) {
        let is_another =
            |(launch, _): &(Launch, Identity)| (launch.run, launch.role) != (run, role);
        self.processes.retain(is_another);
        self.execs.retain(is_another);
    }
}
