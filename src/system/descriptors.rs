//! How many descriptors are left, and for whom.
//!
//! The kernel gives out the lowest free number, so that a number tells how full the table is: who
//! keeps to numbers below a bound leaves those above it to others. From below: the runs of an earlier
//! supervisor, which can also be looked at from time to time; starts; what is left of a run; clients.
//! What is above is always there for looks at `/proc`, signals and the ledger: a look that failed for
//! want of a descriptor would find no processes, where there are some.
//!
//! What stays, and there is one of for each unit, moves up where that is many, but never into what is kept free: so
//! that the lowest free number still tells whether there are so many left, and a child needs only low ones.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use super::sys;

/// Descriptors that are kept free of starts: for clients, watches and all that follows.
const KEPT: u64 = 32;
/// With a low limit no more than this part of it is kept.
const KEPT_SHARE: u64 = 4;
/// From here on what stays has its numbers. Those below are enough for all processes on their way to their
/// programs, and for clients.
const LASTING_FROM: RawFd = 256;
/// A descriptor with a number below this one may keep it.
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
        any.try_clone_to_owned().is_ok_and(|probe| self.is_below(probe.as_raw_fd(), self.kept))
    }

    /// Gives a descriptor that stays a higher number, out of the way of those that come and go, where they
    /// are many and there is one.
    pub(super) fn out_of_the_way(self, fd: OwnedFd) -> OwnedFd {
        if fd.as_raw_fd() < LASTING_BELOW {
            return fd;
        }
        match sys::lift(fd.as_fd(), LASTING_FROM) {
            Ok(higher) if self.is_below(higher.as_raw_fd(), self.kept) => higher,
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
    fn where_many_are_open_what_stays_moves_up_but_not_into_what_is_kept() {
        let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let at = |number| sys::lift(null().as_fd(), number).unwrap();
        let all = Descriptors::of(1024);
        let low = at(LASTING_BELOW);
        assert!(low.as_raw_fd() < LASTING_FROM, "others of this test are not that many");
        assert!(all.out_of_the_way(low).as_raw_fd() >= LASTING_FROM);
        // The last number that is not kept is 255.
        let tight = Descriptors::of(256 + KEPT);
        let low = at(LASTING_BELOW);
        let number = low.as_raw_fd();
        assert_eq!(tight.out_of_the_way(low).as_raw_fd(), number);
    }

    #[test]
    fn what_stays_leaves_numbers_to_what_does_not() {
        let all = Descriptors::of(1024);
        let adopted = |number| all.for_adopted(number);
        assert_eq!([975, 976].map(adopted), [true, false]);
        assert_eq!([991, 992].map(|number| all.is_below(number, all.kept)), [true, false]);
        assert_eq!([999, 1_000].map(|number| all.for_member(number)), [true, false]);
        assert_eq!(all.clients_end(), 1_008);
        assert!(
            Descriptors::of(20).is_below(14, Descriptors::of(20).kept),
            "with a low limit less is kept"
        );
        assert!(
            !Descriptors::of(0).for_member(0) && Descriptors::of(u64::MAX).for_adopted(RawFd::MAX)
        );
    }
}
