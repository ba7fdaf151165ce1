//! The parent's half of a start: fork, record, go.
//!
//! 1. A channel (a socket pair) is made; the child is born and waits on it, see `child.rs`. Where it
//!    can, it shares our memory until its exec: a copy would cost the more the larger we are.
//!    Where we have many descriptors it shares these too, until it has made a table of its own with the
//!    few that it needs: to copy all of them, and to close them again at exec, would cost the more the
//!    more units there are.
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
use std::time::Duration;

use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};

use super::child::{self, BORN, GO, Pointers, Prepared, Start};
use super::process::StartTimes;
use super::raw;
use super::stacks::{Berth, Stacks};
use super::sys;
use crate::model::{Identity, Signal, Span};

/// `CLONE_VM`.
const CLONE_VM: u64 = 0x100;
/// `CLONE_FILES`.
const CLONE_FILES: u64 = 0x400;
/// `CLONE_PIDFD` (Linux 5.2).
const CLONE_PIDFD: u64 = 0x1000;
/// `CLONE_CHILD_CLEARTID`: a zero is written when the child has left the memory.
const CLONE_CHILD_CLEARTID: u64 = 0x20_0000;
/// `CLONE_CLEAR_SIGHAND` (Linux 5.5).
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
/// Before this version a child that dumps core takes with it whoever shares its memory.
const SHARES_SINCE: (u32, u32) = (5, 16);
/// From so many descriptors on that are for no child, one has its own table late: to copy and to close them
/// costs it a tenth of a microsecond for each, and the parent has to wait for it.
const NOT_FOR_CHILDREN_MANY: usize = 128;
/// How long a child may take until it has a table of descriptors of its own; one that takes longer was
/// stopped by somebody, and is killed.
const APART_TIME: Span = Span::seconds(1);

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
    start_times: StartTimes,
    /// Whether a child can leave our table of descriptors for one of its own.
    can_leave_descriptors: bool,
    /// How many descriptors we have that are for no child.
    not_for_children: usize,
}

impl Nursery {
    /// By the kernel that runs.
    pub(super) fn new() -> Self {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            way: Way::first(&release),
            stacks: Stacks::default(),
            ignored: None,
            start_times: StartTimes::new(),
            can_leave_descriptors: raw::can_leave_descriptors(),
            not_for_children: 0,
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

    /// So many of our descriptors are for no child.
    pub(super) fn keep_from_children(&mut self, count: usize) {
        self.not_for_children = count;
    }

    fn shares_descriptors(&self) -> bool {
        self.can_leave_descriptors && self.not_for_children >= NOT_FOR_CHILDREN_MANY
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

/// Makes a child, records it, and lets it go.
pub(super) fn birth(
    nursery: &mut Nursery,
    prepared: &Rc<Prepared>,
    record: &mut dyn FnMut(Identity) -> Result<(), String>,
) -> Result<Born, BirthError> {
    let (ours, theirs) = UnixStream::pair().map_err(BirthError::Fork)?;
    let mut way = nursery.way;
    if way == Way::Shared && !prepared.may_share() {
        way = Way::Clone3;
    }
    let mut berth = None;
    let (pid, identity) = loop {
        let leaves = way == Way::Shared && nursery.shares_descriptors();
        let start = Start {
            prepared: Rc::clone(prepared),
            pointers: Pointers::of(prepared),
            gate: theirs.as_raw_fd(),
            other: ours.as_raw_fd(),
            descriptors_end: leaves.then(|| descriptors_end(prepared, &theirs)),
            reset: nursery.reset(way),
        };
        let stacks = &mut nursery.stacks;
        match nursery.start_times.witness(|| fork(way, start, stacks, &mut berth)) {
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
    // Until then it uses ours, of which none that it needs may be closed.
    if berth.is_some_and(|berth| !is_apart(&berth)) {
        let _gone = sys::kill(pid, Signal::KILL);
        return Err(BirthError::Fork(io::ErrorKind::TimedOut.into()));
    }
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

/// The number below which all descriptors are that a child needs.
fn descriptors_end(prepared: &Prepared, gate: &UnixStream) -> RawFd {
    let given = prepared.descriptors.iter().map(|(ours, _)| *ours);
    given.chain([gate.as_raw_fd(), libc::STDERR_FILENO]).max().unwrap_or(0).saturating_add(1)
}

/// Waits until a child does not use our descriptors any more: it has its own, or is gone.
fn is_apart(berth: &Berth) -> bool {
    if berth.start.descriptors_end.is_none() {
        return true;
    }
    let until = sys::monotonic_now().after(APART_TIME);
    while berth.there.load(Ordering::Acquire) == BORN {
        let left = until.since(sys::monotonic_now());
        if left.as_nanos() == 0 {
            return false;
        }
        let _woken = raw::wait(&berth.there, BORN, Duration::from_nanos(left.as_nanos()));
    }
    true
}

/// Makes the child; `berth`: where it is in our memory, if it is. All signals are blocked around it, so
/// that none ends it before it is prepared.
fn fork(
    way: Way,
    start: Start,
    stacks: &mut Stacks,
    berth: &mut Option<Rc<Berth>>,
) -> io::Result<(i32, Option<OwnedFd>)> {
    let mut old = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut old))?;
    let mut pidfd: RawFd = -1;
    let made = match way {
        Way::Shared => match stacks.take(start) {
            Ok(place) => shared(berth.insert(place), &mut pidfd),
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
        child::run(start, None);
    }
    match i32::try_from(result) {
        Ok(pid) if pid > 0 => Ok(pid),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes a child that shares our memory. It begins in [`enter`], on a stack of its own.
fn shared(berth: &Rc<Berth>, pidfd: &mut RawFd) -> io::Result<i32> {
    let files = if berth.start.descriptors_end.is_some() { CLONE_FILES } else { 0 };
    let args = CloneArgs {
        flags: CLONE_VM | CLONE_PIDFD | CLONE_CLEAR_SIGHAND | CLONE_CHILD_CLEARTID | files,
        pidfd: std::ptr::from_mut(pidfd) as u64,
        child_tid: berth.there.as_ptr() as u64,
        exit_signal: u64::from(libc::SIGCHLD.unsigned_abs()),
        stack: berth.stack as u64,
        stack_size: u64::try_from(berth.bytes).unwrap_or(0),
        ..CloneArgs::default()
    };
    let place: *const Berth = Rc::as_ptr(berth);
    // SAFETY: the berth's stack is this child's alone, and the berth stays in `stacks.rs` until the
    // kernel has said that the child has left our memory.
    let made = unsafe { raw::clone_onto(&args, enter, place) };
    let pid = made.and_then(|pid| i32::try_from(pid).map_err(|_| libc::EINVAL));
    pid.inspect(|pid| berth.pid.set(*pid)).map_err(|errno| {
        berth.there.store(0, Ordering::Release);
        io::Error::from_raw_os_error(errno)
    })
}

/// Where a child begins that shares our memory.
extern "C" fn enter(berth: *const Berth) -> ! {
    // SAFETY: it is kept for as long as we are here.
    let berth = unsafe { &*berth };
    child::run(&berth.start, Some(&berth.there))
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
    fn a_child_is_waited_for_only_while_it_may_use_our_descriptors() {
        let mut stacks = Stacks::default();
        let prepared = Rc::new(Prepared::default());
        for (descriptors_end, there, apart) in [
            (Some(3), child::APART, true),
            (Some(3), 0, true),
            (None, BORN, true),
            // Nobody ever says that it has its own: it was stopped.
            (Some(3), BORN, false),
        ] {
            let pointers = Pointers::of(&prepared);
            let prepared = Rc::clone(&prepared);
            let start =
                Start { prepared, pointers, gate: -1, other: -1, descriptors_end, reset: 0 };
            let berth = stacks.take(start).unwrap();
            berth.there.store(there, Ordering::Release);
            assert_eq!(is_apart(&berth), apart, "{descriptors_end:?}, {there}");
            berth.there.store(0, Ordering::Release);
        }
    }

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
