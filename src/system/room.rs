//! How many descriptors are left, and for whom.
//!
//! The kernel gives out the lowest free number, so that a number tells how full the table is: who
//! keeps to numbers below a bound leaves those above it to others. From below: the runs of an earlier
//! supervisor, which can also be looked at from time to time; starts; what is left of a run; clients.
//! What is above is always there for looks at `/proc`, signals and the ledger: a look that failed for
//! want of a descriptor would find no processes, where there are some.

use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use crate::model::{Identity, Monotonic, Role, RunId, Span};
use crate::system::Launch;

/// Descriptors that are kept free of starts: for clients, watches and all that follows.
const KEPT: u64 = 32;
/// With a low limit no more than this part of it is kept.
const KEPT_SHARE: u64 = 4;
/// The wait before what could not be watched is looked at again.
const LOOK_AGAIN: Span = Span::seconds(1);

/// The descriptors of this process.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    limit: u64,
    kept: u64,
}

impl Room {
    /// By the limit that is in force now.
    pub(super) fn now() -> Self {
        use nix::sys::resource::{Resource, getrlimit};
        Self::of(getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft))
    }

    fn of(limit: u64) -> Self {
        Self { limit, kept: KEPT.min(limit / KEPT_SHARE) }
    }

    /// Whether there are descriptors for a start. `any` is some open descriptor.
    pub(super) fn for_start(self, any: BorrowedFd<'_>) -> bool {
        any.try_clone_to_owned().is_ok_and(|probe| self.is_below(probe.as_raw_fd(), self.kept))
    }

    /// Whether a run of an earlier supervisor may be watched by this descriptor.
    pub(super) fn for_adopted(self, fd: RawFd) -> bool {
        self.is_below(fd, self.kept.saturating_add(self.kept / 2))
    }

    /// Whether what is left of a run may be watched by this descriptor.
    pub(super) fn for_member(self, fd: RawFd) -> bool {
        self.is_below(fd, self.kept - self.kept / 4)
    }

    /// The first number that no client may have.
    pub(super) fn clients_end(self) -> u64 {
        self.limit.saturating_sub(self.kept / 2)
    }

    fn is_below(self, fd: RawFd, kept: u64) -> bool {
        u64::try_from(fd).is_ok_and(|fd| fd.saturating_add(kept) < self.limit)
    }
}

/// What could not be watched for want of a descriptor. It is looked at from time to time, until it
/// is watched, or gone.
#[derive(Debug, Default)]
pub(super) struct Later {
    pub(super) processes: Vec<(Launch, Identity)>,
    pub(super) readiness: Vec<(Launch, Identity)>,
    pub(super) trees: BTreeSet<RunId>,
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
        self.readiness.retain(|(launch, _)| launch.run != run);
        self.trees.remove(&run);
    }

    /// A process has ended.
    pub(super) fn ended(&mut self, run: RunId, role: Role) {
        self.processes.retain(|(launch, _)| (launch.run, launch.role) != (run, role));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_leaves_numbers_to_what_does_not() {
        let room = Room::of(1024);
        let adopted = |number| room.for_adopted(number);
        assert_eq!([975, 976].map(adopted), [true, false]);
        assert_eq!([991, 992].map(|number| room.is_below(number, room.kept)), [true, false]);
        assert_eq!([999, 1_000].map(|number| room.for_member(number)), [true, false]);
        assert_eq!(room.clients_end(), 1_008);
        assert!(Room::of(20).is_below(14, Room::of(20).kept), "with a low limit less is kept");
        assert!(!Room::of(0).for_member(0) && Room::of(u64::MAX).for_adopted(RawFd::MAX));
    }
}
