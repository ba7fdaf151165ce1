//! The parent's half of a start: fork, record, go.
//!
//! 1. A channel (a socket pair) is made; the child is born and waits on it, see `child.rs`.
//! 2. `record` writes the child's identity to the ledger, with one write.
//! 3. `record` writes that it is let go, and one byte on the channel does so. If we die before, it
//!    sees the end of the channel and ends without exec; if we die after, it is in the ledger. So no
//!    program ever runs that the ledger does not know, and none that has run is taken for one that
//!    has not.
//! 4. Our end of the channel becomes readable when the child has exec'd (end of file: it is
//!    close-on-exec) or could not (a report).
#![expect(unsafe_code, reason = "clone3 and fork return twice")]

use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};

use super::child::{self, GO, Pointers, Prepared};
use super::process;
use super::sys;
use crate::model::Identity;

/// `CLONE_PIDFD` (Linux 5.2).
const CLONE_PIDFD: u64 = 0x1000;
/// `CLONE_CLEAR_SIGHAND` (Linux 5.5).
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;

/// How processes are made; each is tried once, and what does not work here is not tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
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
            Self::Clone3 => Some(Self::Clone),
            Self::Clone => Some(Self::Fork),
            Self::Fork => None,
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

/// What has to be in the ledger before the next step of a start.
#[derive(Debug, Clone, Copy)]
pub(super) enum Entry {
    /// The child that was born.
    Born(Identity),
    /// It is let go: from now on it may have run.
    Goes,
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

/// Makes a child, records it, and lets it go.
pub(super) fn birth(
    way: &mut Way,
    prepared: &Prepared,
    record: &mut dyn FnMut(Entry) -> Result<(), String>,
) -> Result<Born, BirthError> {
    let (ours, theirs) = sys::socket_pair().map_err(BirthError::Fork)?;
    let pointers = Pointers::of(prepared);
    let (pid, pidfd) = loop {
        match fork(*way, prepared, &pointers, &theirs, &ours) {
            Ok(born) => break born,
            Err(error) => match (error.raw_os_error(), way.next()) {
                (Some(libc::ENOSYS | libc::EPERM | libc::EINVAL | libc::E2BIG), Some(next)) => {
                    log::info!("cannot make a process by {way:?}: {error}; using {next:?}");
                    *way = next;
                }
                _ => return Err(BirthError::Fork(error)),
            },
        }
    };
    drop(theirs);
    // The gate closes with our end; the child ends with a code that is nobody's.
    let identity = process::identity_of_child(pid, pidfd.as_ref()).ok_or(BirthError::Unseen)?;
    record(Entry::Born(identity)).map_err(BirthError::Record)?;
    record(Entry::Goes).map_err(BirthError::Record)?;
    let mut channel = ours;
    // A child that was killed meanwhile has closed its end: its death is told by its parent's wait.
    if let Err(error) = channel.write_all(&[GO]) {
        log::debug!("child {pid} was gone before it was let go: {error}");
    }
    channel.set_nonblocking(true).map_err(BirthError::Fork)?;
    Ok(Born { identity, channel })
}

/// Makes the child. All signals are blocked around it, so that no handler of ours runs in the copy.
fn fork(
    way: Way,
    prepared: &Prepared,
    pointers: &Pointers,
    theirs: &UnixStream,
    ours: &UnixStream,
) -> io::Result<(i32, Option<OwnedFd>)> {
    let mut old = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut old))?;
    let mut pidfd: RawFd = -1;
    let pid = match way {
        Way::Clone3 => clone3(&mut pidfd),
        Way::Clone => clone(&mut pidfd),
        // SAFETY: the child below runs only what `child.rs` allows.
        Way::Fork => i64::from(unsafe { libc::fork() }),
    };
    if pid == 0 {
        child::run(prepared, pointers, theirs.as_raw_fd(), ours.as_raw_fd());
    }
    let error = io::Error::last_os_error();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&old), None)?;
    match i32::try_from(pid) {
        Ok(pid) if pid > 0 => {
            // SAFETY: the kernel made this descriptor for us in the call above.
            let pidfd = (pidfd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(pidfd) });
            Ok((pid, pidfd.or_else(|| sys::pidfd_open(pid).ok())))
        }
        _ => Err(error),
    }
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
