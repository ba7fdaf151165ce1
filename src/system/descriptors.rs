//! How many descriptors are left, and for whom.
//!
//! The kernel gives out the lowest free number, so that a number tells how full the table is: who
//! keeps to numbers below a bound leaves those above it to others. From below: the runs of an earlier
//! supervisor, which can also be looked at from time to time; starts; what is left of a run; clients.
//! What is above is always there for looks at `/proc`, signals and the ledger: a look that failed for
//! want of a descriptor would find no processes, where there are some.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use super::sys;

/// Descriptors that are kept free of starts: for clients, watches and all that follows.
const KEPT: u64 = 32;
/// With a low limit no more than this part of it is kept.
const KEPT_SHARE: u64 = 4;
/// From here on what stays has its numbers, and what comes and goes has those below, so that a child needs
/// only these: there are those of all that are on their way to their programs, and clients.
const LASTING_FROM: RawFd = 256;
/// So many of what stays may be below.
const LASTING_BELOW: RawFd = 32;

/// The descriptors of this process.
#[derive(Debug, Clone, Copy)]
pub(super) struct Descriptors {
    limit: u64,
    kept: u64,
}

impl Descriptors {
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
        any.try_clone_to_owned().is_ok_and(|probe| self.for_started(probe.as_raw_fd()))
    }

    /// Whether this descriptor may be one of a start.
    pub(super) fn for_started(self, fd: RawFd) -> bool {
        self.is_below(fd, self.kept)
    }

    /// Gives a descriptor that stays while many others come and go a higher number, where they are many and
    /// there is one.
    pub(super) fn out_of_the_way(self, fd: OwnedFd) -> OwnedFd {
        if fd.as_raw_fd() < LASTING_BELOW {
            return fd;
        }
        match sys::lift(fd.as_fd(), LASTING_FROM) {
            Ok(higher) if self.for_started(higher.as_raw_fd()) => higher,
            Ok(_) | Err(_) => fd,
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_leaves_numbers_to_what_does_not() {
        let all = Descriptors::of(1024);
        let adopted = |number| all.for_adopted(number);
        assert_eq!([975, 976].map(adopted), [true, false]);
        assert_eq!([991, 992].map(|number| all.for_started(number)), [true, false]);
        assert_eq!([999, 1_000].map(|number| all.for_member(number)), [true, false]);
        assert_eq!(all.clients_end(), 1_008);
        assert!(Descriptors::of(20).for_started(14), "with a low limit less is kept");
        assert!(
            !Descriptors::of(0).for_member(0) && Descriptors::of(u64::MAX).for_adopted(RawFd::MAX)
        );
    }
}
