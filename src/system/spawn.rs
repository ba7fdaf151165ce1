//! The parent's half of a start: fork, record, go.
//!
//! 1. A channel (a socket pair) is made; the child is born and waits on it, see `child.rs`. Where it
//!    can, it shares our memory until its exec: a copy would cost the more the larger we are.
//! 2. `record` writes the child's identity, and that it is let go, to the ledger, with one write.
//! 3. One byte on the channel lets it go. If we die before, it sees the end of the channel and ends
//!    without exec; if we die after, it is in the ledger. So no program ever runs that the ledger does
//!    not know. Of one that is in the ledger and dead nobody can say whether its program has run.
//! 4. Our end of the channel becomes readable when the child has exec'd (end of file: it is
//!    close-on-exec) or could not (a report).
#![expect(unsafe_code, reason = "clone3 and fork return twice")]

use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};

use super::child::{self, GO, Pointers, Prepared, Start};
use super::process::Births;
use super::raw;
use super::stacks::{Berth, Stacks};
use super::sys;
use crate::model::Identity;

/// `CLONE_VM`.
const CLONE_VM: u64 = 0x100;
/// `CLONE_PIDFD` (Linux 5.2).
const CLONE_PIDFD: u64 = 0x1000;
/// `CLONE_CHILD_CLEARTID`: a zero is written when the child has left the memory.
const CLONE_CHILD_CLEARTID: u64 = 0x20_0000;
/// `CLONE_CLEAR_SIGHAND` (Linux 5.5).
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
/// Before this version a child that dumps core takes with it whoever shares its memory.
const SHARES_SINCE: (u32, u32) = (5, 16);

/// How processes are made; each is tried once, and what does not work here is not tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// clone3(2) without a copy of our memory (Linux 5.16), for those that may share it.
    Shared,
    /// clone3(2), which gives a pidfd and clears handlers (Linux 5.5).
    Clone3,
    /// clone(2) with a pidfd: container filters that refuse clone3 let it through.
    Clone,
    /// fork(2), and a pidfd afterwards where there is such a thing.
    Fork,
}

impl Way {
    fn next(self) -> Option<Self> {
        match self {
            Self::Shared => Some(Self::Clone3),
            Self::Clone3 => Some(Self::Clone),
            Self::Clone => Some(Self::Fork),
            Self::Fork => None,
        }
    }

    /// The best one for a kernel of this release.
    fn first(release: &str) -> Self {
        let mut numbers = release.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
        let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        if raw::CAN_SHARE && version >= SHARES_SINCE { Self::Shared } else { Self::Clone3 }
    }
}

/// Where processes are made.
#[derive(Debug)]
pub(super) struct Nursery {
    way: Way,
    stacks: Stacks,
    /// The signals that we ignore, a bit for each, once that was looked at.
    ignored: Option<u64>,
    births: Births,
}

impl Nursery {
    /// By the kernel that runs.
    pub(super) fn new() -> Self {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            way: Way::first(&release),
            stacks: Stacks::default(),
            ignored: None,
            births: Births::new(),
        }
    }

    /// Takes back what those had who have become their programs.
    pub(super) fn look(&mut self) {
        self.stacks.look();
    }

    /// A child was reaped.
    pub(super) fn gone(&mut self, pid: i32) {
        self.stacks.gone(pid);
    }

    /// The signals whose disposition a child has to set anew.
    fn reset(&mut self, way: Way) -> u64 {
        match way {
            Way::Shared | Way::Clone3 => *self.ignored.get_or_insert_with(|| {
                let all = 1..=raw::SIGNAL_MAX;
                let ignored = all.filter(|signal| raw::is_ignored(*signal));
                ignored.fold(0, |set, signal| set | child::signal_bit(signal))
            }),
            // Handlers too are copied.
            Way::Clone | Way::Fork => u64::MAX,
        }
    }
}

/// A child behind or past the gate.
#[derive(Debug)]
pub(super) struct Born {
    pub(super) identity: Identity,
    /// Readable once its program runs, or could not.
    pub(super) channel: UnixStream,
}

/// Why there is no child.
#[derive(Debug)]
pub(super) enum BirthError {
    /// No process could be made.
    Fork(io::Error),
    /// Its start time could not be read, without which nobody could tell later whether it lives. It
    /// was let end without exec.
    Unseen,
    /// It could not be recorded, and was let end without exec.
    Record(String),
}

/// Makes a child, records it, and lets it go. `channel`: our end, and the child's.
pub(super) fn birth(
    nursery: &mut Nursery,
    prepared: &Rc<Prepared>,
    channel: (UnixStream, UnixStream),
    record: &mut dyn FnMut(Identity) -> Result<(), String>,
) -> Result<Born, BirthError> {
    let (ours, theirs) = channel;
    let mut way = nursery.way;
    if way == Way::Shared && !prepared.may_share() {
        way = Way::Clone3;
    }
    let (pid, identity) = loop {
        let start = Start {
            prepared: Rc::clone(prepared),
            pointers: Pointers::of(prepared),
            gate: theirs.as_raw_fd(),
            other: ours.as_raw_fd(),
            reset: nursery.reset(way),
        };
        let stacks = &mut nursery.stacks;
        match nursery.births.witness(|| fork(way, start, stacks)) {
            Ok(born) => break born,
            Err(error) => match (error.raw_os_error(), way.next()) {
                (Some(libc::ENOSYS | libc::EPERM | libc::EINVAL | libc::E2BIG), Some(next)) => {
                    log::info!("cannot make a process by {way:?}: {error}; using {next:?}");
                    way = next;
                    nursery.way = next;
                }
                _ => return Err(BirthError::Fork(error)),
            },
        }
    };
    drop(theirs);
    // The gate closes with our end; the child ends with a code that is nobody's.
    let identity = identity.ok_or(BirthError::Unseen)?;
    record(identity).map_err(BirthError::Record)?;
    let mut channel = ours;
    // A child that was killed meanwhile has closed its end: its death is told by its parent's wait.
    if let Err(error) = channel.write_all(&[GO]) {
        log::debug!("child {pid} was gone before it was let go: {error}");
    }
    Ok(Born { identity, channel })
}

/// Makes the child. All signals are blocked around it, so that none ends it before it is prepared.
fn fork(way: Way, start: Start, stacks: &mut Stacks) -> io::Result<(i32, Option<OwnedFd>)> {
    let mut old = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut old))?;
    let mut pidfd: RawFd = -1;
    let made = match way {
        Way::Shared => match stacks.take(start) {
            Ok(berth) => shared(&berth, &mut pidfd),
            Err(start) => copied(&start, clone3(&mut pidfd)),
        },
        Way::Clone3 => copied(&start, clone3(&mut pidfd)),
        Way::Clone => copied(&start, clone(&mut pidfd)),
        // SAFETY: the child runs only what `child.rs` allows.
        Way::Fork => copied(&start, i64::from(unsafe { libc::fork() })),
    };
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&old), None)?;
    let pid = made?;
    // SAFETY: the kernel made this descriptor for us in the call above.
    let pidfd = (pidfd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(pidfd) });
    Ok((pid, pidfd.or_else(|| sys::pidfd_open(pid).ok())))
}

/// What comes after a call that returns twice, `result` being what it returned: only the parent
/// comes back from here.
fn copied(start: &Start, result: i64) -> io::Result<i32> {
    if result == 0 {
        child::run(start);
    }
    match i32::try_from(result) {
        Ok(pid) if pid > 0 => Ok(pid),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes a child that shares our memory. It begins in [`enter`], on a stack of its own.
fn shared(berth: &Rc<Berth>, pidfd: &mut RawFd) -> io::Result<i32> {
    let args = CloneArgs {
        flags: CLONE_VM | CLONE_PIDFD | CLONE_CLEAR_SIGHAND | CLONE_CHILD_CLEARTID,
        pidfd: std::ptr::from_mut(pidfd) as u64,
        child_tid: berth.there.as_ptr() as u64,
        exit_signal: u64::from(libc::SIGCHLD.unsigned_abs()),
        stack: berth.stack as u64,
        stack_size: u64::try_from(berth.bytes).unwrap_or(0),
        ..CloneArgs::default()
    };
    let start: *const Start = &raw const berth.start;
    // SAFETY: the berth's stack is this child's alone, and the berth stays in `stacks.rs` until the
    // kernel has said that the child has left our memory.
    let made = unsafe { raw::clone_onto(&args, enter, start) };
    let pid = made.and_then(|pid| i32::try_from(pid).map_err(|_| libc::EINVAL));
    pid.inspect(|pid| berth.pid.set(*pid)).map_err(|errno| {
        berth.there.store(0, Ordering::Release);
        io::Error::from_raw_os_error(errno)
    })
}

/// Where a child begins that shares our memory.
extern "C" fn enter(start: *const Start) -> ! {
    // SAFETY: it is the berth's own, which stays as it is for as long as we are here.
    child::run(unsafe { &*start })
}

/// The kernel's struct `clone_args`, first version: eight numbers, 64 bytes.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
}

fn clone3(pidfd: &mut RawFd) -> i64 {
    let args = CloneArgs {
        flags: CLONE_PIDFD | CLONE_CLEAR_SIGHAND,
        pidfd: std::ptr::from_mut(pidfd) as u64,
        exit_signal: u64::from(libc::SIGCHLD.unsigned_abs()),
        ..CloneArgs::default()
    };
    // SAFETY: without CLONE_VM and a stack it returns twice like fork(2); the size is the
    // struct's; `pidfd` outlives the call.
    unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) }
}

fn clone(pidfd: &mut RawFd) -> i64 {
    let flags = CLONE_PIDFD | u64::from(libc::SIGCHLD.unsigned_abs());
    let null = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: without CLONE_VM and a stack it returns twice like fork(2); with CLONE_PIDFD the
    // third argument is where the descriptor goes, clone(2).
    unsafe { libc::syscall(libc::SYS_clone, flags, null, std::ptr::from_mut(pidfd), null, null) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_shared_where_the_kernel_is_new_enough() {
        for (release, shares) in [
            ("6.18.5", true),
            ("5.16.0-rc1", true),
            ("5.15.99", false),
            ("4.19", false),
            ("10.0", true),
            ("", false),
        ] {
            let is_shared = Way::first(release) == Way::Shared;
            assert_eq!(is_shared, shares && raw::CAN_SHARE, "{release}");
        }
    }
}
