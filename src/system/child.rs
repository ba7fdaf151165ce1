//! The child's half of a start, from its birth to exec.
//!
//! The child shares the supervisor's memory, or is a copy of it: it may not allocate, lock, log or
//! panic, since any of these may need something that is half changed, or not its own. It makes only
//! the calls of `raw.rs`, which do not even touch `errno`, and writes nowhere but to its stack and
//! to the places of its own number ([`Pointers`]). All strings and arrays are made before by the
//! parent ([`Prepared`]), and stay until the child has left this memory, `stacks.rs`.
//!
//! Whatever can hang (a dead NFS server, a FIFO that nobody writes) comes after the gate; and after the child
//! has let go of all that is the supervisor's, and takes signals. It holds up nobody then, is ended as its
//! program would be, and is found by the next supervisor. (Before Linux 5.9, where `close_range(2)` is wanting, it
//! keeps what is the supervisor's until its exec.)
#![expect(unsafe_code, reason = "execve takes arrays of pointers")]

use std::cell::Cell;
use std::ffi::{CStr, CString};
use std::os::fd::RawFd;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::raw;
use crate::model::{EXIT_NEVER_STARTED, Stage};

/// What the parent writes to let the child go.
pub(super) const GO: u8 = b'g';
/// How far a child is that shares its parent's memory: in it, and where it shares the table of descriptors in
/// that too. The kernel makes it zero when the child has left the memory.
pub(super) const BORN: u32 = 1;
/// It has a table of descriptors of its own.
pub(super) const APART: u32 = 2;
/// Bytes of a failure report: stage, errno (little endian), and which of several.
pub(super) const REPORT_BYTES: usize = 6;
/// Variables whose value is the child's own number, which it writes where they are empty: that of
/// `sd_watchdog_enabled(3)`, and that of `sd_listen_fds(3)`.
pub(super) const WATCHDOG_PID: &str = "WATCHDOG_PID";
pub(super) const LISTEN_PID: &str = "LISTEN_PID";
/// Below this, descriptors are closed one by one where the kernel cannot close all at once: the supervisor's lock and
/// where it listens are among its first.
const CLOSED_SINGLY_END: RawFd = 256;
/// Bytes of a number of at most ten digits, and NUL.
const PID_BYTES: usize = 11;

/// Everything the child needs, made by the parent before the fork.
#[derive(Debug, Default)]
pub(super) struct Prepared {
    /// The program's file.
    pub(super) program: CString,
    /// Its arguments; they own what [`Prepared::argv`] points to.
    pub(super) args: Vec<CString>,
    /// Its environment, `NAME=value`.
    pub(super) env: Vec<Rc<CStr>>,
    /// Where it runs: it is entered as the user.
    pub(super) dir: CString,
    /// Whether `dir` was asked for: then it must be open to the user, else `/` will do.
    pub(super) dir_asked: bool,
    /// File for standard input.
    pub(super) stdin: Option<CString>,
    /// Descriptors to hand over: (ours, the child's).
    pub(super) descriptors: Vec<(RawFd, RawFd)>,
    /// Limits: resource, soft, hard.
    pub(super) limits: Vec<(u32, u64, u64)>,
    /// Supplementary groups; `None` leaves them.
    pub(super) groups: Option<Vec<u32>>,
    /// Group; `None` leaves it.
    pub(super) gid: Option<u32>,
    /// User; `None` leaves it.
    pub(super) uid: Option<u32>,
    /// File mode creation mask.
    pub(super) umask: u32,
    /// Niceness.
    pub(super) nice: Option<i32>,
    /// Text for `/proc/self/oom_score_adj`.
    pub(super) oom_score_adjust: Option<CString>,
    /// A session of its own, or only a process group, in the foreground of the terminal if any.
    pub(super) own_session: bool,
}

impl Prepared {
    /// Whether the child may share our memory until its exec.
    ///
    /// One that becomes another user may not: whoever is that user may send it signals, and the kernel
    /// marks the memory as not to be dumped, which is ours. One that changes its out-of-memory
    /// preference would change ours with it.
    pub(super) fn may_share(&self) -> bool {
        let is_other = self.uid.is_some() || self.gid.is_some() || self.groups.is_some();
        !is_other && self.oom_score_adjust.is_none()
    }
}

/// What a child begins with.
#[derive(Debug)]
pub(super) struct Start {
    pub(super) prepared: Rc<Prepared>,
    pub(super) pointers: Pointers,
    /// Its end of the channel.
    pub(super) gate: RawFd,
    /// The parent's end, of which it has a copy.
    pub(super) other: RawFd,
    /// Set for one that shares the parent's table of descriptors at first, if it shares its memory: all
    /// that it needs is below this number.
    pub(super) descriptors_end: Option<RawFd>,
    /// The signals that have no default disposition at its birth, a bit for each.
    pub(super) reset: u64,
}

/// Arrays of pointers as execve(2) wants them, made before the fork.
#[derive(Debug)]
pub(super) struct Pointers {
    argv: Vec<*const libc::c_char>,
    envp: Vec<*const libc::c_char>,
    /// What some of `envp` point to.
    own_pids: Vec<OwnPid>,
}

impl Pointers {
    pub(super) fn of(prepared: &Prepared) -> Self {
        let argv = prepared.args.iter().map(|text| text.as_ptr());
        let mut own_pids = Vec::new();
        let mut envp: Vec<*const libc::c_char> = Vec::new();
        for entry in &prepared.env {
            match OwnPid::of(entry) {
                Some(own) => {
                    envp.push(own.as_ptr());
                    own_pids.push(own);
                }
                None => envp.push(entry.as_ptr()),
            }
        }
        envp.push(std::ptr::null());
        Self { argv: argv.chain([std::ptr::null()]).collect(), envp, own_pids }
    }
}

/// An entry `NAME=PID` of the environment. In cells, as the child writes the number.
#[derive(Debug)]
struct OwnPid {
    bytes: Vec<Cell<u8>>,
    /// Where the number begins.
    at: usize,
}

impl OwnPid {
    /// The entry with room for the number, where it is one of those.
    fn of(entry: &CStr) -> Option<Self> {
        let name = entry.to_bytes().strip_suffix(b"=")?;
        let is_own = [WATCHDOG_PID, LISTEN_PID].iter().any(|own| own.as_bytes() == name);
        is_own.then(|| {
            let mut bytes: Vec<Cell<u8>> =
                entry.to_bytes().iter().copied().map(Cell::new).collect();
            let at = bytes.len();
            bytes.resize(at.saturating_add(PID_BYTES), Cell::new(0));
            Self { bytes, at }
        })
    }

    fn as_ptr(&self) -> *const libc::c_char {
        self.bytes.as_ptr().cast()
    }

    /// Writes a number, without allocating.
    fn write(&self, pid: u32) {
        let mut divisor = 1;
        while pid / divisor >= 10 {
            divisor *= 10;
        }
        for place in self.bytes.iter().skip(self.at).take(PID_BYTES - 1) {
            if divisor == 0 {
                return;
            }
            // A digit fits.
            place.set(b'0'.wrapping_add((pid / divisor % 10) as u8));
            divisor /= 10;
        }
    }
}

/// A step that failed: stage and errno, and which of several it was.
struct Failure(Stage, i32, u8);

/// Waits at the gate, then becomes the program. `there`: where one that shares the parent's memory says
/// how far it is.
pub(super) fn run(start: &Start, there: Option<&AtomicU32>) -> ! {
    let Start { prepared, pointers, gate, other, descriptors_end, reset } = start;
    if let (Some(end), Some(there)) = (descriptors_end, there) {
        if let Err(errno) = raw::own_descriptors_below(*end) {
            report(*gate, &Failure(Stage::Descriptors, errno, 0));
            leave();
        }
        there.store(APART, Ordering::Release);
        let _woken = raw::wake(there);
    }
    // Our copy: else we would hold the gate's other end open ourselves.
    let _closed = raw::close(*other);
    default_dispositions(*reset);
    if !passes(*gate) {
        leave();
    }
    let gate = lift(prepared, *gate);
    let pid = raw::pid().unsigned_abs();
    pointers.own_pids.iter().for_each(|own| own.write(pid));
    report(gate, &become_program(prepared, pointers, gate));
    leave();
}

fn report(gate: RawFd, Failure(stage, errno, which): &Failure) {
    let [a, b, c, d] = errno.to_le_bytes();
    let report: [u8; REPORT_BYTES] = [*stage as u8, a, b, c, d, *which];
    let _told = raw::send(gate, &report);
}

/// Moves the gate out of the way of the numbers that the program is given.
fn lift(prepared: &Prepared, gate: RawFd) -> RawFd {
    let highest = highest_given(prepared);
    if gate > highest {
        return gate;
    }
    let Ok(lifted) = raw::lift(gate, highest.saturating_add(1)) else { return gate };
    // The new number stands for the same end.
    let _closed = raw::close(gate);
    RawFd::try_from(lifted).unwrap_or(gate)
}

/// The highest number that the program is given.
fn highest_given(prepared: &Prepared) -> RawFd {
    prepared.descriptors.iter().map(|(_, theirs)| *theirs).max().unwrap_or(0)
}

fn leave() -> ! {
    raw::exit(EXIT_NEVER_STARTED)
}

/// Reads the one byte that lets us go. The end of the channel means that the parent is gone.
fn passes(gate: RawFd) -> bool {
    loop {
        let mut byte = [0u8];
        match raw::read(gate, &mut byte) {
            Err(libc::EINTR) => {}
            got => return got == Ok(1) && byte == [GO],
        }
    }
}

/// Handlers and ignored signals of the supervisor mean nothing to the program. What is ignored
/// stays so over clone3(2) with `CLONE_CLEAR_SIGHAND` and over exec: SIGPIPE, by Rust's runtime; 32
/// and 33, by `posix_spawn` of whoever started opm, which the `signal` of glibc does not touch.
fn default_dispositions(reset: u64) {
    for signal in 1..=raw::SIGNAL_MAX {
        if reset & signal_bit(signal) != 0 {
            // KILL and STOP give an error and stay.
            let _done = raw::default_disposition(signal);
        }
    }
}

/// The bit of a signal in a set of them.
pub(super) fn signal_bit(signal: i32) -> u64 {
    1u64.wrapping_shl(signal.unsigned_abs().wrapping_sub(1))
}

fn become_program(prepared: &Prepared, pointers: &Pointers, gate: RawFd) -> Failure {
    let steps = [session, descriptors, limits, identity_of_group, user];
    if let Err(failure) = steps.iter().try_for_each(|step| step(prepared, gate)) {
        return failure;
    }
    // A signal that was sent meanwhile arrives with default dispositions.
    let _done = raw::unblock_all();
    let steps = [directory, stdin];
    if let Err(failure) = steps.iter().try_for_each(|step| step(prepared, gate)) {
        return failure;
    }
    // SAFETY: both arrays end with a null pointer, and what they point to lives in `prepared` and
    // `pointers`.
    let errno = unsafe { raw::execve(&prepared.program, &pointers.argv, &pointers.envp) };
    Failure(Stage::Exec, errno, 0)
}

/// The failure of a stage, and which of several it was.
fn failure(stage: Stage, which: u8) -> impl FnOnce(i32) -> Failure {
    move |errno| Failure(stage, errno, which)
}

fn session(prepared: &Prepared, _gate: RawFd) -> Result<(), Failure> {
    if prepared.own_session {
        // We are no group leader yet, so it cannot fail.
        raw::setsid().map_err(failure(Stage::Session, 0))?;
        return Ok(());
    }
    raw::lead_group().map_err(failure(Stage::Session, 1))?;
    // Where standard input is our terminal, the program gets it: with every signal blocked, that is
    // allowed from the background. Elsewhere this fails, and need not work.
    let _done = raw::to_foreground(0, raw::pid());
    Ok(())
}

fn descriptors(prepared: &Prepared, gate: RawFd) -> Result<(), Failure> {
    // One that has a number which another one is to have moves above all of them first.
    let highest = highest_given(prepared);
    let taken = prepared.descriptors.iter().map(|(ours, _)| *ours);
    let free = taken.chain([highest, gate]).max().unwrap_or(0).saturating_add(1);
    let is_in_the_way = |ours: RawFd, theirs: RawFd| ours <= highest && ours != theirs;
    for (place, (ours, theirs)) in (0u8..).zip(&prepared.descriptors) {
        let to = free.saturating_add(RawFd::from(place));
        if is_in_the_way(*ours, *theirs) {
            raw::dup3(*ours, to, libc::O_CLOEXEC).map_err(failure(Stage::Descriptors, place))?;
        }
    }
    for (place, (ours, theirs)) in (0u8..).zip(&prepared.descriptors) {
        if *theirs == gate {
            return Err(Failure(Stage::Descriptors, libc::EBUSY, place));
        }
        let lifted = free.saturating_add(RawFd::from(place));
        let from = if is_in_the_way(*ours, *theirs) { lifted } else { *ours };
        let done =
            if from == *theirs { raw::keep_over_exec(from) } else { raw::dup3(from, *theirs, 0) };
        done.map_err(failure(Stage::Descriptors, place))?;
    }
    // The rest is the supervisor's: its lock, and where it listens.
    let is_given = |fd: RawFd| prepared.descriptors.iter().any(|(_, theirs)| *theirs == fd);
    for fd in 3..=highest {
        if fd != gate && !is_given(fd) {
            let _closed = raw::close(fd);
        }
    }
    let first = highest.max(2).saturating_add(1);
    if raw::close_from_but(first, gate).is_err() {
        // Older kernels lack it. What lies higher is close-on-exec.
        for fd in (first..CLOSED_SINGLY_END).filter(|fd| *fd != gate) {
            let _closed = raw::close(fd);
        }
    }
    Ok(())
}

fn limits(prepared: &Prepared, _gate: RawFd) -> Result<(), Failure> {
    for (place, (resource, soft, hard)) in (0u8..).zip(&prepared.limits) {
        raw::limit(*resource, *soft, *hard).map_err(failure(Stage::Limits, place))?;
    }
    if let Some(nice) = prepared.nice {
        raw::nice(nice).map_err(failure(Stage::Nice, 0))?;
    }
    if let Some(text) = &prepared.oom_score_adjust {
        write_file(c"/proc/self/oom_score_adj", text).map_err(failure(Stage::OomScore, 0))?;
    }
    raw::umask(prepared.umask);
    Ok(())
}

fn write_file(path: &CStr, text: &CStr) -> Result<(), i32> {
    let fd = raw::open(path, libc::O_WRONLY | libc::O_CLOEXEC)?;
    let fd = RawFd::try_from(fd).map_err(|_| libc::EBADF)?;
    let wrote = raw::write(fd, text.to_bytes())?;
    if wrote == text.to_bytes().len() { Ok(()) } else { Err(libc::EIO) }
}

fn identity_of_group(prepared: &Prepared, _gate: RawFd) -> Result<(), Failure> {
    if let Some(groups) = &prepared.groups {
        raw::setgroups(groups).map_err(failure(Stage::Groups, 0))?;
    }
    if let Some(gid) = prepared.gid {
        raw::setgid(gid).map_err(failure(Stage::Gid, 0))?;
    }
    Ok(())
}

fn user(prepared: &Prepared, _gate: RawFd) -> Result<(), Failure> {
    if let Some(uid) = prepared.uid {
        raw::setuid(uid).map_err(failure(Stage::Uid, 0))?;
    }
    Ok(())
}

fn directory(prepared: &Prepared, _gate: RawFd) -> Result<(), Failure> {
    let entered = raw::chdir(&prepared.dir);
    let entered = if prepared.dir_asked { entered } else { entered.or_else(|_| raw::chdir(c"/")) };
    entered.map_err(failure(Stage::WorkingDir, 0))?;
    Ok(())
}

fn stdin(prepared: &Prepared, _gate: RawFd) -> Result<(), Failure> {
    let Some(path) = &prepared.stdin else { return Ok(()) };
    let fd = raw::open(path, libc::O_RDONLY | libc::O_CLOEXEC);
    let fd = fd.map_err(failure(Stage::Stdin, 0))?;
    let fd = RawFd::try_from(fd).map_err(|_| Failure(Stage::Stdin, libc::EBADF, 0))?;
    let done = if fd == 0 { raw::keep_over_exec(0) } else { raw::dup3(fd, 0, 0) };
    done.map_err(failure(Stage::Stdin, 0))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_written_without_allocating() {
        assert!(OwnPid::of(c"WATCHDOG_PID=1").is_none() && OwnPid::of(c"PID=").is_none());
        for pid in [0, 1, 42, 32_768, 4_194_304, u32::MAX] {
            let entry = OwnPid::of(c"WATCHDOG_PID=").unwrap();
            entry.write(pid);
            let bytes: Vec<u8> = entry.bytes.iter().map(Cell::get).collect();
            let text = CStr::from_bytes_until_nul(&bytes).unwrap();
            assert_eq!(text.to_str(), Ok(format!("WATCHDOG_PID={pid}").as_str()));
        }
    }
}
