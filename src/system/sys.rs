//! System calls for which there is no safe wrapper, one function each.
#![expect(unsafe_code, reason = "raw system calls; each function proves its own duties")]

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;

use nix::time::{ClockId, clock_gettime};

use crate::model::{Monotonic, Outcome, Signal, Span, Wall};

/// `PIDFD_GET_INFO`, `include/uapi/linux/pidfd.h` (Linux 6.13): `_IOWR(0xFF, 11, 64 bytes)`.
const PIDFD_GET_INFO: libc::c_ulong = 0xC040_FF0B;
/// Bit of its mask that says the exit code is there (Linux 6.15).
const PIDFD_INFO_EXIT: u64 = 8;
/// `CLOSE_RANGE_CLOEXEC` (Linux 5.11).
const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;

/// The name of this machine.
pub fn host_name() -> String {
    let name = nix::unistd::gethostname().unwrap_or_default();
    if name.is_empty() { "localhost".to_owned() } else { name.to_string_lossy().into_owned() }
}

/// The monotonic clock.
pub fn monotonic_now() -> Monotonic {
    read_clock(ClockId::CLOCK_MONOTONIC)
}

/// The clock that counts the time that the machine sleeps too.
pub(super) fn steady_now() -> Monotonic {
    read_clock(ClockId::CLOCK_BOOTTIME)
}

fn read_clock(clock: ClockId) -> Monotonic {
    let nanos = clock_gettime(clock).map_or(0, |time| {
        let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
        seconds
            .saturating_mul(1_000_000_000)
            .saturating_add(u64::try_from(time.tv_nsec()).unwrap_or(0))
    });
    Monotonic::from_nanos(nanos)
}

/// The wall clock.
pub fn wall_now() -> Wall {
    let micros = clock_gettime(ClockId::CLOCK_REALTIME).map_or(0, |time| {
        time.tv_sec().saturating_mul(1_000_000).saturating_add(time.tv_nsec() / 1_000)
    });
    Wall(micros)
}

/// A handle on a process that cannot go stale, `pidfd_open(2)` (Linux 5.3).
pub(super) fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes two numbers and returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    owned(fd)
}

/// A copy of another process's descriptor, `pidfd_getfd(2)` (Linux 5.6): close-on-exec. It needs the
/// rights of a debugger.
pub(super) fn pidfd_getfd(fd: BorrowedFd<'_>, number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: takes three numbers and returns a new descriptor or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, fd.as_raw_fd(), number, 0) };
    owned(fd)
}

/// Sends a signal through a pidfd: to that very process or to none.
pub(super) fn pidfd_send_signal(fd: BorrowedFd<'_>, signal: Signal) -> io::Result<()> {
    let null: *const libc::siginfo_t = std::ptr::null();
    // SAFETY: a null siginfo is allowed, pidfd_send_signal(2); the descriptor is open.
    let result = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, fd.as_raw_fd(), signal.number(), null, 0)
    };
    check(result)
}

/// Whether the process that a handle is on has not been reaped; an error says that it has.
pub(super) fn pidfd_exists(fd: BorrowedFd<'_>) -> io::Result<()> {
    let null: *const libc::siginfo_t = std::ptr::null();
    // SAFETY: signal 0 only asks; a null siginfo is allowed, pidfd_send_signal(2).
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd.as_raw_fd(), 0, null, 0) };
    match check(result) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(()),
        other => other,
    }
}

/// What the kernel says of the end of a process that is not our child.
pub(super) enum ForeignEnd {
    /// This.
    Told(Outcome),
    /// Nothing before somebody has reaped it.
    NotYet,
    /// Nothing, ever: it is older than Linux 6.13.
    Never,
}

/// How a process ended, once somebody has reaped it; the kernel tells since Linux 6.15.
pub(super) fn pidfd_outcome(fd: BorrowedFd<'_>) -> ForeignEnd {
    // The kernel's struct pidfd_info, first version: 64 bytes.
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        mask: u64,
        cgroup: u64,
        ids: [u32; 11],
        exit_code: i32,
    }
    let mut info = Info { mask: PIDFD_INFO_EXIT, ..Info::default() };
    // SAFETY: the request says 64 bytes, and `Info` has just these.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), PIDFD_GET_INFO, &raw mut info) };
    match check(result.into()) {
        Ok(()) if info.mask & PIDFD_INFO_EXIT != 0 => ForeignEnd::Told(outcome_of(info.exit_code)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL)) => {
            ForeignEnd::Never
        }
        Ok(()) | Err(_) => ForeignEnd::NotYet,
    }
}

/// Makes files and directories with the modes that are asked for, whatever mask we were started with.
pub fn take_usual_umask() {
    let usual = nix::sys::stat::Mode::from_bits_truncate(0o022);
    let _before = nix::sys::stat::umask(usual);
}

/// Keeps of the environment only what `keep` says. To be called while there is one thread.
pub fn forget_environment(keep: impl Fn(&OsStr) -> bool) {
    let all: Vec<_> = std::env::vars_os().map(|(name, _)| name).collect();
    for name in all.iter().filter(|name| !keep(name)) {
        // SAFETY: nobody else reads or changes it meanwhile, as there is one thread.
        unsafe { std::env::remove_var(name) };
    }
}

/// Lets everybody else have the processor before this thread.
pub fn be_in_background() {
    /// The lowest priority that there is.
    const NICE_MAX: libc::c_int = 19;
    // SAFETY: takes three numbers; 0 is the thread that calls. A refusal changes nothing.
    if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE_MAX) } < 0 {
        log::debug!("cannot lower the priority: {}", io::Error::last_os_error());
    }
}

/// What a wait status says.
pub(super) fn outcome_of(status: i32) -> Outcome {
    if libc::WIFSIGNALED(status) {
        match Signal::from_number(libc::WTERMSIG(status)) {
            Some(signal) => Outcome::Killed { signal, core: libc::WCOREDUMP(status) },
            None => Outcome::Unknown,
        }
    } else {
        Outcome::Exited(u8::try_from(libc::WEXITSTATUS(status)).unwrap_or(u8::MAX))
    }
}

/// Whether this process has children, ended ones among them.
pub fn has_children() -> bool {
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: nothing is written where there is no place for it, waitid(2).
    let result = unsafe { libc::waitid(libc::P_ALL, 0, std::ptr::null_mut(), flags) };
    result == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ECHILD)
}

/// Whether one of the signals that end opm came while they are blocked.
pub fn is_asked_to_end() -> bool {
    let mut pending = std::mem::MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: `pending` is a place for one set.
    if unsafe { libc::sigpending(pending.as_mut_ptr()) } < 0 {
        return false;
    }
    // SAFETY: it was all zeros, which is a set, and sigpending(2) has written over it.
    let pending = unsafe { pending.assume_init() };
    // SAFETY: looks at a set.
    let has = |signal| unsafe { libc::sigismember(&raw const pending, signal) } == 1;
    has(libc::SIGTERM) || has(libc::SIGINT)
}

/// Waits, where there is no loop yet that could.
pub fn pause(span: Span) {
    let timeout = std::time::Duration::from_nanos(span.as_nanos());
    let timeout = nix::sys::time::TimeSpec::from_duration(timeout);
    if let Err(errno) = nix::poll::ppoll(&mut [], Some(timeout), None) {
        log::debug!("the wait was cut short: {errno}");
    }
}

/// A child that has ended, and keeps its number until it is reaped; `None` when there is none now.
pub(super) fn ended_child() -> Option<i32> {
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    loop {
        let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
        // SAFETY: `info` is a place for one siginfo_t.
        let result = unsafe { libc::waitid(libc::P_ALL, 0, info.as_mut_ptr(), flags) };
        if result == 0 {
            // SAFETY: it was all zeros, which is a value of this plain struct, and waitid(2) has
            // written over it or left it.
            let info = unsafe { info.assume_init() };
            // SAFETY: waitid(2) fills in this field, or leaves it 0 where no child has ended.
            let pid = unsafe { info.si_pid() };
            return (pid > 0).then_some(pid);
        }
        if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return None;
        }
    }
}

/// Reaps a child that has ended.
pub(super) fn reap(pid: i32) -> Option<Outcome> {
    let mut status = 0;
    loop {
        // SAFETY: `status` is a place for one number.
        let reaped = unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) };
        if reaped == pid {
            return Some(outcome_of(status));
        }
        if reaped == 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return None;
        }
    }
}

/// A datagram from a socket with `SO_PASSCRED`: its length, and the process that sent it.
///
/// There is room for the credentials and for nothing behind them: descriptors that come with it
/// are closed by the kernel, unix(7), and never in our table.
pub(super) fn receive(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
) -> io::Result<(usize, Option<i32>)> {
    #[repr(C)]
    struct Control {
        header: libc::cmsghdr,
        sender: libc::ucred,
    }
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let mut control = std::mem::MaybeUninit::<Control>::zeroed();
    // SAFETY: a struct of numbers and pointers, of which all zeros are a value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of::<Control>() as _;
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the message points to `bytes` and `control`, with their lengths, and both outlive the
    // call.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: it was all zeros, which is a value of these plain structs, and the kernel has written
    // over a part of it.
    let Control { header, sender } = unsafe { control.assume_init() };
    let is_sender = header.cmsg_level == libc::SOL_SOCKET
        && header.cmsg_type == libc::SCM_CREDENTIALS
        && sender.pid > 0;
    Ok((length, is_sender.then_some(sender.pid)))
}

/// Sends a signal to a process or, by a negative number, to a group.
pub(super) fn kill(pid: i32, signal: Signal) -> io::Result<()> {
    // SAFETY: takes two numbers.
    let result = unsafe { libc::kill(pid, signal.number()) };
    check(result.into())
}

/// Whether a process with this number exists, whoever it is.
pub(super) fn exists(pid: i32) -> bool {
    // SAFETY: signal 0 only asks.
    let result = unsafe { libc::kill(pid, 0) };
    result == 0 || io::Error::last_os_error().raw_os_error() == Some(libc::EPERM)
}

/// Whether a process group has any member.
pub(super) fn group_exists(group: i32) -> bool {
    exists(-group)
}

/// Makes orphans of the caller's descendants its children, `PR_SET_CHILD_SUBREAPER` (Linux 3.4).
pub fn become_subreaper() -> io::Result<()> {
    // SAFETY: takes numbers.
    let result = unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
    check(result.into())
}

/// Marks every open descriptor from `first` on close-on-exec.
pub fn close_on_exec_from(first: RawFd) {
    let first = u32::try_from(first).unwrap_or(0);
    // SAFETY: takes numbers; no descriptor is closed.
    let result =
        unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, CLOSE_RANGE_CLOEXEC) };
    if result == 0 {
        return;
    }
    // Before Linux 5.11: one by one.
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return };
    for fd in entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
    {
        if u32::try_from(fd).is_ok_and(|fd| fd >= first) {
            // SAFETY: changes a flag of a descriptor; one that is gone gives an error.
            unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
}

/// From now on a write beyond the limit of a file's size is an error, `EFBIG`, and not our end: setrlimit(2). What is
/// started has the default again.
pub fn survive_large_files() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: to ignore a signal runs no handler.
    if let Err(errno) = unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) } {
        log::warn!("cannot ignore SIGXFSZ: {errno}");
    }
}

/// Raises the soft limit of open descriptors to the hard one. Returns what it was before.
pub fn raise_descriptor_limit() -> (u64, u64) {
    use nix::sys::resource::{Resource, setrlimit};
    let (soft, hard) = limit_of_descriptors();
    if soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_err() {
        log::warn!("cannot raise the limit of open descriptors from {soft}");
    }
    (soft, hard)
}

/// The limit of open descriptors, soft and hard.
pub fn limit_of_descriptors() -> (u64, u64) {
    use nix::sys::resource::{Resource, getrlimit};
    getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024))
}

/// Puts the limit of open descriptors back to what it was before it was raised.
pub fn lower_descriptor_limit((soft, hard): (u64, u64)) {
    use nix::sys::resource::{Resource, setrlimit};
    if let Err(errno) = setrlimit(Resource::RLIMIT_NOFILE, soft, hard) {
        log::warn!("cannot put the limit of open descriptors back to {soft}: {errno}");
    }
}

/// The limit of open descriptors that is in force, and how many numbers there are for processes.
pub fn limits() -> (u64, u64) {
    let (descriptors, _) = limit_of_descriptors();
    let numbers = std::fs::read_to_string("/proc/sys/kernel/pid_max");
    let numbers = numbers.ok().and_then(|text| text.trim().parse().ok());
    (descriptors, numbers.unwrap_or(u64::MAX))
}

/// User and process at the other end of a unix socket, `SO_PEERCRED`.
pub fn peer_credentials(stream: BorrowedFd<'_>) -> io::Result<(u32, u32, i32)> {
    let credentials =
        nix::sys::socket::getsockopt(&stream, nix::sys::socket::sockopt::PeerCredentials)
            .map_err(io::Error::from)?;
    Ok((credentials.uid(), credentials.gid(), credentials.pid()))
}

/// The caller's effective user.
pub fn own_uid() -> u32 {
    nix::unistd::geteuid().as_raw()
}

/// Whether a descriptor is a terminal.
pub fn isatty(fd: BorrowedFd<'_>) -> bool {
    nix::unistd::isatty(fd).unwrap_or(false)
}

/// Whether an error says that something is wanting now that may be there again soon: descriptors,
/// processes, memory.
pub(super) fn is_shortage(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(is_shortage_number)
}

/// The same by its number.
pub(super) fn is_shortage_number(errno: i32) -> bool {
    matches!(errno, libc::EAGAIN | libc::EMFILE | libc::ENFILE | libc::ENOMEM)
}

/// Whether a descriptor is that of a file on disk.
pub fn is_file(fd: impl std::os::fd::AsFd) -> bool {
    let kind = nix::sys::stat::fstat(fd.as_fd()).map(|found| found.st_mode & libc::S_IFMT);
    kind == Ok(libc::S_IFREG)
}

/// Mounts `/proc` where it is missing: as PID 1 of a bare root.
pub fn mount_proc() -> io::Result<()> {
    mount_new("proc", "/proc", nix::mount::MsFlags::MS_NODEV)
}

/// Mounts the kernel's own `/dev` where it is missing.
pub fn mount_dev() -> io::Result<()> {
    mount_new("devtmpfs", "/dev", nix::mount::MsFlags::empty())
}

/// Mounts a file system of the kernel's, at a place that may not even be there.
fn mount_new(kind: &str, path: &str, more: nix::mount::MsFlags) -> io::Result<()> {
    use nix::mount::{MsFlags, mount};
    if let Err(error) = std::fs::create_dir(path)
        && error.kind() != io::ErrorKind::AlreadyExists
    {
        return Err(error);
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | more;
    mount(Some(kind), path, Some(kind), flags, None::<&str>).map_err(io::Error::from)
}

/// Replaces the running program. Returns only with an error.
pub fn exec_again(program: &OsStr, args: &[CString], env: &[CString]) -> io::Error {
    let Ok(program) = CString::new(program.as_bytes()) else {
        return io::Error::from_raw_os_error(libc::EINVAL);
    };
    match nix::unistd::execve(&program, args, env) {
        Ok(never) => match never {},
        Err(errno) => io::Error::from(errno),
    }
}

/// How many bytes wait in a pipe to be read.
pub fn bytes_queued(pipe: BorrowedFd<'_>) -> usize {
    let mut bytes: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int, and `bytes` is one.
    let result = unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
    if result == 0 { usize::try_from(bytes).unwrap_or(0) } else { 0 }
}

/// Whether a descriptor lives on over an exec.
pub fn set_inheritable(fd: BorrowedFd<'_>, inheritable: bool) {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    let flag = if inheritable { FdFlag::empty() } else { FdFlag::FD_CLOEXEC };
    if let Err(errno) = fcntl(fd, FcntlArg::F_SETFD(flag)) {
        log::error!("cannot change a close-on-exec flag: {errno}");
    }
}

/// The listening socket that the program before us left open for us in the variable `name`, if it
/// is the one at `path`.
pub fn inherited_listener(
    name: &str,
    path: &std::path::Path,
) -> Option<std::os::unix::net::UnixListener> {
    let fd: RawFd = std::env::var(name).ok()?.parse().ok()?;
    let link = std::fs::read_link(format!("/proc/self/fd/{fd}")).ok()?;
    if !link.as_os_str().as_bytes().starts_with(b"socket:") {
        return None;
    }
    let listener = std::os::unix::net::UnixListener::from(take_inherited(fd));
    set_inheritable(std::os::fd::AsFd::as_fd(&listener), false);
    listener.set_nonblocking(true).ok()?;
    // It was bound under another name and renamed; that it is in the right place is what counts.
    let bound = listener.local_addr().ok()?;
    let directory = bound.as_pathname()?.parent()?;
    (Some(directory) == path.parent() && path.exists()).then_some(listener)
}

/// The owner of a descriptor that came by exec from the program before us, which is gone.
pub(super) fn take_inherited(fd: RawFd) -> OwnedFd {
    // SAFETY: the caller has seen that it is open and what it is; nobody else in this program
    // knows its number.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Splits off a process in a session of its own, with `/dev/null` as input and `log_to` as output.
/// Returns true in it, false in the caller, which goes on.
pub fn detach(log_to: &std::path::Path) -> io::Result<bool> {
    use std::os::unix::fs::OpenOptionsExt;
    let null = std::fs::File::open("/dev/null")?;
    let log = std::fs::OpenOptions::new().append(true).create(true).mode(0o640).open(log_to)?;
    // SAFETY: there is one thread yet, so that the child is a whole copy.
    match unsafe { libc::fork() } {
        -1 => return Err(io::Error::last_os_error()),
        0 => {}
        _ => return Ok(false),
    }
    nix::unistd::setsid()?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&log)?;
    nix::unistd::dup2_stderr(&log)?;
    std::env::set_current_dir("/")?;
    // Nobody waits for this one: it is init's at once.
    Ok(true)
}

/// The same descriptor under the lowest free number that is not below `least`, close-on-exec.
pub(super) fn lift(fd: BorrowedFd<'_>, least: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the descriptor is open, and the call takes a number.
    let lifted = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, least) };
    owned(lifted.into())
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    match RawFd::try_from(fd) {
        // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}
