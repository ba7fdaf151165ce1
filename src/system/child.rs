//! The child's half of a start, from its birth to exec.
//!
//! The child is a copy of the supervisor: it may not allocate, lock, log or panic, since any of
//! these may need something that is half changed in the copy. It calls only: read, write, close,
//! dup2, dup3, fcntl, `close_range`, setsid, setpgid, tcsetpgrp, open, prlimit, setpriority, umask, chdir,
//! `rt_sigaction`, `rt_sigprocmask`, getpid, the raw set*id calls (glibc's wrappers signal all threads), execve
//! and _exit. All strings and arrays are made before by the parent ([`Prepared`]).
//!
//! Whatever can hang (a dead NFS server) comes after the gate.
#![expect(unsafe_code, reason = "between fork and exec only raw system calls are sound")]

use std::cell::Cell;
use std::ffi::{CStr, CString};
use std::os::fd::RawFd;

use crate::model::{EXIT_NEVER_STARTED, Stage};

/// What the parent writes to let the child go.
pub(super) const GO: u8 = b'g';
/// Bytes of a failure report: stage, errno (little endian), and which of several.
pub(super) const REPORT_BYTES: usize = 6;
/// `CLOSE_RANGE_CLOEXEC` (Linux 5.11).
const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
/// Variables whose value is the child's own number, which it writes where they are empty: that of
/// `sd_watchdog_enabled(3)`, and that of `sd_listen_fds(3)`.
pub(super) const WATCHDOG_PID: &str = "WATCHDOG_PID";
pub(super) const LISTEN_PID: &str = "LISTEN_PID";
/// Bytes of a number of at most ten digits, and NUL.
const PID_BYTES: usize = 11;
/// The largest signal number.
const SIGNAL_MAX: libc::c_int = 64;

/// Everything the child needs, made by the parent before the fork.
#[derive(Debug)]
pub(super) struct Prepared {
    /// The program's file.
    pub(super) program: CString,
    /// Its arguments; they own what [`Prepared::argv`] points to.
    pub(super) args: Vec<CString>,
    /// Its environment, `NAME=value`.
    pub(super) env: Vec<CString>,
    /// Where it runs: before or after the change of user.
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

/// Waits at the gate, then becomes the program. `gate` is our end of the channel, `other` the
/// parent's end, of which we are a copy.
pub(super) fn run(prepared: &Prepared, pointers: &Pointers, gate: RawFd, other: RawFd) -> ! {
    // SAFETY: closing our copy: else we would hold the gate's other end open ourselves.
    unsafe { libc::close(other) };
    default_dispositions();
    if !passes(gate) {
        leave();
    }
    let gate = lift(prepared, gate);
    let pid = std::process::id();
    pointers.own_pids.iter().for_each(|own| own.write(pid));
    let Failure(stage, errno, which) = become_program(prepared, pointers, gate);
    let [a, b, c, d] = errno.to_le_bytes();
    let report: [u8; REPORT_BYTES] = [stage as u8, a, b, c, d, which];
    // SAFETY: sends bytes of a local array; MSG_NOSIGNAL: a parent that is gone must not kill us.
    unsafe {
        libc::send(gate, report.as_ptr().cast(), report.len(), libc::MSG_NOSIGNAL);
    }
    leave();
}

/// Moves the gate out of the way of the numbers that the program is given.
fn lift(prepared: &Prepared, gate: RawFd) -> RawFd {
    let highest = highest_given(prepared);
    if gate > highest {
        return gate;
    }
    // SAFETY: takes numbers, and gives a new descriptor that nobody has yet.
    let lifted = unsafe { libc::fcntl(gate, libc::F_DUPFD_CLOEXEC, highest.saturating_add(1)) };
    if lifted < 0 {
        return gate;
    }
    // SAFETY: our own copy; the new number stands for the same end.
    unsafe { libc::close(gate) };
    lifted
}

/// The highest number that the program is given.
fn highest_given(prepared: &Prepared) -> RawFd {
    prepared.descriptors.iter().map(|(_, theirs)| *theirs).max().unwrap_or(0)
}

fn leave() -> ! {
    // SAFETY: ends the process at once, running nothing of the copy.
    unsafe { libc::_exit(i32::from(EXIT_NEVER_STARTED)) }
}

/// Reads the one byte that lets us go. The end of the channel means that the parent is gone.
fn passes(gate: RawFd) -> bool {
    loop {
        let mut byte = 0u8;
        // SAFETY: one byte is read into a local.
        let got = unsafe { libc::read(gate, (&raw mut byte).cast(), 1) };
        if got < 0 && errno() == libc::EINTR {
            continue;
        }
        return got == 1 && byte == GO;
    }
}

fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

fn fail(stage: Stage, which: u8) -> Failure {
    Failure(stage, errno(), which)
}

/// Handlers and ignored signals of the supervisor mean nothing to the program. What is ignored
/// stays so over clone3(2) with `CLONE_CLEAR_SIGHAND` and over exec: SIGPIPE, by Rust's runtime; 32
/// and 33, by `posix_spawn` of whoever started opm, which the `signal` of glibc does not touch.
fn default_dispositions() {
    // The kernel's struct sigaction: SIG_DFL, no flags, an empty mask, all of them zero.
    let default = [0u64; 4];
    for signal in 1..=SIGNAL_MAX {
        // SAFETY: reads a local array, as long as the struct is anywhere; the mask has 8 bytes.
        // KILL and STOP give an error and stay.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                std::ptr::null_mut::<u64>(),
                8usize,
            )
        };
    }
}

fn become_program(prepared: &Prepared, pointers: &Pointers, gate: RawFd) -> Failure {
    let steps = [session, descriptors, limits, identity_of_group, user, stdin];
    for step in steps {
        if let Err(failure) = step(prepared, gate) {
            return failure;
        }
    }
    // The mask last: a signal that was sent meanwhile arrives with default dispositions.
    let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: fills in the local set.
    unsafe { libc::sigemptyset(none.as_mut_ptr()) };
    // SAFETY: the set was filled in above; no old set is asked for.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut()) };
    let envp = pointers.envp.as_ptr();
    // SAFETY: both arrays end with a null pointer, and what they point to lives in `prepared` and
    // `pointers`.
    unsafe { libc::execve(prepared.program.as_ptr(), pointers.argv.as_ptr(), envp) };
    fail(Stage::Exec, 0)
}

fn session(prepared: &Prepared, _gate: RawFd) -> Result<(), Failure> {
    if prepared.own_session {
        // SAFETY: no arguments. We are no group leader yet, so it cannot fail.
        let session = unsafe { libc::setsid() };
        return if session < 0 { Err(fail(Stage::Session, 0)) } else { Ok(()) };
    }
    // SAFETY: takes numbers.
    if unsafe { libc::setpgid(0, 0) } < 0 {
        return Err(fail(Stage::Session, 1));
    }
    // Where standard input is our terminal, the program gets it: with every signal blocked,
    // tcsetpgrp(3) is allowed from the background. Elsewhere this fails, and need not work.
    // SAFETY: no arguments.
    let group = unsafe { libc::getpgrp() };
    // SAFETY: takes numbers.
    unsafe { libc::tcsetpgrp(0, group) };
    Ok(())
}

fn descriptors(prepared: &Prepared, gate: RawFd) -> Result<(), Failure> {
    // SAFETY: takes numbers; nothing is closed before exec. Older kernels lack it: there the
    // supervisor's own descriptors are close-on-exec one by one.
    unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, CLOSE_RANGE_CLOEXEC) };
    // One that has a number which another one is to have moves above all of them first.
    let highest = highest_given(prepared);
    let taken = prepared.descriptors.iter().map(|(ours, _)| *ours);
    let free = taken.chain([highest, gate]).max().unwrap_or(0).saturating_add(1);
    let is_in_the_way = |ours: RawFd, theirs: RawFd| ours <= highest && ours != theirs;
    for (place, (ours, theirs)) in (0u8..).zip(&prepared.descriptors) {
        let to = free.saturating_add(RawFd::from(place));
        // SAFETY: takes numbers; nothing has the new one.
        if is_in_the_way(*ours, *theirs) && unsafe { libc::dup3(*ours, to, libc::O_CLOEXEC) } < 0 {
            return Err(fail(Stage::Descriptors, place));
        }
    }
    for (place, (ours, theirs)) in (0u8..).zip(&prepared.descriptors) {
        if *theirs == gate {
            return Err(Failure(Stage::Descriptors, libc::EBUSY, place));
        }
        let lifted = free.saturating_add(RawFd::from(place));
        let from = if is_in_the_way(*ours, *theirs) { lifted } else { *ours };
        if from == *theirs {
            // SAFETY: clears a flag of an open descriptor.
            if unsafe { libc::fcntl(from, libc::F_SETFD, 0) } < 0 {
                return Err(fail(Stage::Descriptors, place));
            }
        // SAFETY: takes numbers.
        } else if unsafe { libc::dup2(from, *theirs) } < 0 {
            return Err(fail(Stage::Descriptors, place));
        }
    }
    Ok(())
}

fn limits(prepared: &Prepared, _gate: RawFd) -> Result<(), Failure> {
    for (place, (resource, soft, hard)) in (0u8..).zip(&prepared.limits) {
        let limit = libc::rlimit { rlim_cur: *soft, rlim_max: *hard };
        // SAFETY: reads a local struct; no old limit is asked for.
        let result = unsafe { libc::prlimit(0, *resource, &raw const limit, std::ptr::null_mut()) };
        if result < 0 {
            return Err(fail(Stage::Limits, place));
        }
    }
    if let Some(nice) = prepared.nice {
        // SAFETY: takes numbers.
        if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) } < 0 {
            return Err(fail(Stage::Nice, 0));
        }
    }
    if let Some(text) = &prepared.oom_score_adjust {
        write_file(c"/proc/self/oom_score_adj", text).map_err(|()| fail(Stage::OomScore, 0))?;
    }
    // SAFETY: takes a number and cannot fail.
    unsafe { libc::umask(prepared.umask) };
    Ok(())
}

fn write_file(path: &CStr, text: &CStr) -> Result<(), ()> {
    // SAFETY: the path ends with NUL.
    let fd = unsafe { libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) };
    if fd < 0 {
        return Err(());
    }
    let length = text.count_bytes();
    // SAFETY: `text` has that many bytes.
    let wrote = unsafe { libc::write(fd, text.as_ptr().cast(), length) };
    if usize::try_from(wrote) == Ok(length) { Ok(()) } else { Err(()) }
}

fn identity_of_group(prepared: &Prepared, _gate: RawFd) -> Result<(), Failure> {
    if !prepared.dir_asked {
        change_dir(&prepared.dir)
            .or_else(|()| change_dir(c"/"))
            .map_err(|()| fail(Stage::WorkingDir, 0))?;
    }
    if let Some(groups) = &prepared.groups {
        // SAFETY: the array has that many members.
        let result = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
        if result < 0 {
            return Err(fail(Stage::Groups, 0));
        }
    }
    if let Some(gid) = prepared.gid {
        // SAFETY: takes numbers.
        if unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) } < 0 {
            return Err(fail(Stage::Gid, 0));
        }
    }
    Ok(())
}

fn user(prepared: &Prepared, _gate: RawFd) -> Result<(), Failure> {
    if let Some(uid) = prepared.uid {
        // SAFETY: takes numbers.
        if unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) } < 0 {
            return Err(fail(Stage::Uid, 0));
        }
    }
    if prepared.dir_asked {
        change_dir(&prepared.dir).map_err(|()| fail(Stage::WorkingDir, 0))?;
    }
    Ok(())
}

fn change_dir(path: &CStr) -> Result<(), ()> {
    // SAFETY: the path ends with NUL.
    if unsafe { libc::chdir(path.as_ptr()) } < 0 { Err(()) } else { Ok(()) }
}

fn stdin(prepared: &Prepared, _gate: RawFd) -> Result<(), Failure> {
    let Some(path) = &prepared.stdin else { return Ok(()) };
    // SAFETY: the path ends with NUL.
    let fd = unsafe { libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
    // SAFETY: takes numbers; a refused open gives -1, which dup2 refuses too.
    if fd < 0 || unsafe { libc::dup2(fd, 0) } < 0 {
        return Err(fail(Stage::Stdin, 0));
    }
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
