//! System calls for a child that has not run its program yet.
//!
//! Such a child may share our memory, and may not touch what is ours: no allocation, no lock, and
//! no `errno`, which is the calling thread's, and it is made with ours. So these go to the kernel
//! directly, and their errors come back as numbers. A few are the parent's: how it makes such a child,
//! what it has to know before, and how it waits for it.
#![expect(unsafe_code, reason = "system calls without the C library")]

use std::ffi::{CStr, c_long};
use std::os::fd::RawFd;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

/// Bytes of the kernel's set of signals, one bit for each of 64.
const SIGNAL_SET_BYTES: usize = 8;
/// `CLOSE_RANGE_UNSHARE` (Linux 5.9).
const CLOSE_RANGE_UNSHARE: i32 = 2;
/// The largest signal number.
pub(super) const SIGNAL_MAX: i32 = 64;

/// What the kernel answers: a number, or an errno.
pub(super) type Answer = Result<usize, i32>;

/// Whether a child can share our memory on this machine: elsewhere calls go by the C library.
pub(super) const CAN_SHARE: bool =
    cfg!(all(target_arch = "x86_64", target_pointer_width = "64", target_os = "linux"));

/// Makes a system call.
///
/// # Safety
///
/// What the arguments point to must be what this call expects.
#[cfg(all(target_arch = "x86_64", target_pointer_width = "64", target_os = "linux"))]
unsafe fn call<const N: usize>(number: c_long, args: [usize; N]) -> Answer {
    let mut all = [0usize; 6];
    for (place, arg) in all.iter_mut().zip(args) {
        *place = arg;
    }
    let [first, second, third, fourth, fifth, sixth] = all;
    let answer: isize;
    // SAFETY: the kernel's convention on x86-64: it changes rax, rcx and r11, and beside them only
    // what the caller has promised to be right.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") number => answer,
            in("rdi") first, in("rsi") second, in("rdx") third,
            in("r10") fourth, in("r8") fifth, in("r9") sixth,
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    usize::try_from(answer).map_err(|_| i32::try_from(answer.saturating_neg()).unwrap_or(0))
}

/// Makes a system call, with `errno`: the memory is the child's own here.
///
/// # Safety
///
/// What the arguments point to must be what this call expects.
#[cfg(not(all(target_arch = "x86_64", target_pointer_width = "64", target_os = "linux")))]
unsafe fn call<const N: usize>(number: c_long, args: [usize; N]) -> Answer {
    let mut all = [0usize; 6];
    for (place, arg) in all.iter_mut().zip(args) {
        *place = arg;
    }
    let [first, second, third, fourth, fifth, sixth] = all;
    // SAFETY: the caller has promised that the arguments are right.
    let answer = unsafe { libc::syscall(number, first, second, third, fourth, fifth, sixth) };
    usize::try_from(answer).map_err(|_| std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
}

/// A number as an argument: with its sign, as the kernel cuts it to what it takes.
fn int(number: i32) -> usize {
    (number as isize).cast_unsigned()
}

/// Makes a call whose arguments are numbers.
fn numbers<const N: usize>(number: c_long, args: [i32; N]) -> Answer {
    // SAFETY: nothing is pointed to.
    unsafe { call(number, args.map(int)) }
}

/// Makes a process by `clone3(2)` that goes on in `entry` with `start`, on the stack that `args`
/// name.
///
/// # Safety
///
/// `args` must name a stack that nobody else uses until the child has left this memory; `start` must
/// be what `entry` expects, and stay so as long.
#[cfg(all(target_arch = "x86_64", target_pointer_width = "64", target_os = "linux"))]
pub(super) unsafe fn clone_onto<A, T>(
    args: &A,
    entry: extern "C" fn(*const T) -> !,
    start: *const T,
) -> Answer {
    let answer: isize;
    // SAFETY: for the parent a system call as any other. The child has its registers and the top of
    // the new stack, which is aligned for a call; it calls what never returns.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r13",
            "call r12",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 => answer,
            in("rdi") std::ptr::from_ref(args), in("rsi") size_of::<A>(),
            in("r12") entry, in("r13") start,
            lateout("rcx") _, lateout("r11") _,
        );
    }
    usize::try_from(answer).map_err(|_| i32::try_from(answer.saturating_neg()).unwrap_or(0))
}

/// There is no such way on this machine.
///
/// # Safety
///
/// It does nothing.
#[cfg(not(all(target_arch = "x86_64", target_pointer_width = "64", target_os = "linux")))]
pub(super) unsafe fn clone_onto<A, T>(
    _args: &A,
    _entry: extern "C" fn(*const T) -> !,
    _start: *const T,
) -> Answer {
    Err(libc::ENOSYS)
}

/// Ends the process at once.
pub(super) fn exit(code: u8) -> ! {
    loop {
        // It does not return.
        let _never = numbers(libc::SYS_exit_group, [i32::from(code)]);
    }
}

/// The number of the process that asks.
pub(super) fn pid() -> i32 {
    numbers(libc::SYS_getpid, []).map_or(0, |pid| i32::try_from(pid).unwrap_or(0))
}

pub(super) fn close(fd: RawFd) -> Answer {
    numbers(libc::SYS_close, [fd])
}

pub(super) fn read(fd: RawFd, bytes: &mut [u8]) -> Answer {
    // SAFETY: as many bytes are written to as there are.
    unsafe { call(libc::SYS_read, [int(fd), bytes.as_mut_ptr() as usize, bytes.len()]) }
}

pub(super) fn write(fd: RawFd, bytes: &[u8]) -> Answer {
    // SAFETY: as many bytes are read as there are.
    unsafe { call(libc::SYS_write, [int(fd), bytes.as_ptr() as usize, bytes.len()]) }
}

/// Sends to a socket whose other end may be gone, without a signal.
pub(super) fn send(fd: RawFd, bytes: &[u8]) -> Answer {
    let (from, flags) = (bytes.as_ptr() as usize, int(libc::MSG_NOSIGNAL));
    // SAFETY: as many bytes are read as there are; no address is given.
    unsafe { call(libc::SYS_sendto, [int(fd), from, bytes.len(), flags, 0, 0]) }
}

/// The same descriptor under a number that is not below `least`, close-on-exec.
pub(super) fn lift(fd: RawFd, least: RawFd) -> Answer {
    numbers(libc::SYS_fcntl, [fd, libc::F_DUPFD_CLOEXEC, least])
}

/// Takes close-on-exec from a descriptor.
pub(super) fn keep_over_exec(fd: RawFd) -> Answer {
    numbers(libc::SYS_fcntl, [fd, libc::F_SETFD, 0])
}

/// The same descriptor under another number, which is not its own.
pub(super) fn dup3(fd: RawFd, to: RawFd, flags: i32) -> Answer {
    numbers(libc::SYS_dup3, [fd, to, flags])
}

/// Closes all descriptors from `first` on, but for one of them (Linux 5.9).
pub(super) fn close_from_but(first: RawFd, kept: RawFd) -> Answer {
    if first < kept {
        close_range(first, kept.saturating_sub(1), 0)?;
    }
    close_range(kept.saturating_add(1), LAST, 0)
}

/// Leaves a table of descriptors that is shared with others for one of our own, with copies of those
/// below `end` alone: the others are neither copied nor closed (Linux 5.9).
pub(super) fn own_descriptors_below(end: RawFd) -> Answer {
    close_range(end, LAST, CLOSE_RANGE_UNSHARE)
}

/// As an unsigned number the last descriptor that there can be.
const LAST: RawFd = -1;

/// Does what the flags say with all descriptors from `first` to `last`.
fn close_range(first: RawFd, last: RawFd, flags: i32) -> Answer {
    numbers(libc::SYS_close_range, [first, last, flags])
}

/// Whether a table of descriptors can be left: some containers refuse the call.
pub(super) fn can_leave_descriptors() -> bool {
    // There are none from here on.
    close_range(RawFd::MAX, LAST, 0).is_ok()
}

/// Wakes who waits for a change of this number, [`wait`].
pub(super) fn wake(number: &AtomicU32) -> Answer {
    let all = usize::try_from(i32::MAX).unwrap_or(usize::MAX);
    // SAFETY: the place of the number is all that is looked at.
    unsafe { call(libc::SYS_futex, [number.as_ptr() as usize, int(libc::FUTEX_WAKE), all]) }
}

/// Waits until a number is changed, for at most `most`; not at all where it is not `old`. May end for
/// no reason. As the kernel wakes when a child has left our memory, it is no private futex.
pub(super) fn wait(number: &AtomicU32, old: u32, most: Duration) -> Answer {
    let time = [most.as_secs(), u64::from(most.subsec_nanos())];
    let (place, old) = (number.as_ptr() as usize, int(old.cast_signed()));
    let time = time.as_ptr() as usize;
    // SAFETY: the kernel's struct timespec on 64 bits is two such numbers, in a local array.
    unsafe { call(libc::SYS_futex, [place, int(libc::FUTEX_WAIT), old, time]) }
}

/// Gives a signal its default disposition. KILL and STOP give an error and have no other.
pub(super) fn default_disposition(signal: i32) -> Answer {
    // The kernel's struct sigaction: SIG_DFL, no flags, an empty mask, all of them zero.
    let default = [0u64; 4];
    let new = default.as_ptr() as usize;
    // SAFETY: reads a local array, as long as the struct is anywhere; no old one is asked for.
    unsafe { call(libc::SYS_rt_sigaction, [int(signal), new, 0, SIGNAL_SET_BYTES]) }
}

/// Whether a signal is ignored.
pub(super) fn is_ignored(signal: i32) -> bool {
    let mut old = [0u64; 4];
    let place = old.as_mut_ptr() as usize;
    // SAFETY: writes to a local array, as long as the struct is anywhere; no new one is set.
    let asked = unsafe { call(libc::SYS_rt_sigaction, [int(signal), 0, place, SIGNAL_SET_BYTES]) };
    // The handler is the first field, and SIG_IGN is 1.
    asked.is_ok() && old.first() == Some(&1)
}

/// Lets all signals through.
pub(super) fn unblock_all() -> Answer {
    let none = [0u8; SIGNAL_SET_BYTES];
    let (how, new) = (int(libc::SIG_SETMASK), none.as_ptr() as usize);
    // SAFETY: reads a local array of the length that is said; no old set is asked for.
    unsafe { call(libc::SYS_rt_sigprocmask, [how, new, 0, SIGNAL_SET_BYTES]) }
}

/// Becomes a program; returns the errno where that cannot be.
///
/// # Safety
///
/// Both arrays must end with a null pointer, and point to texts that end with NUL.
pub(super) unsafe fn execve(
    program: &CStr,
    argv: &[*const libc::c_char],
    envp: &[*const libc::c_char],
) -> i32 {
    let all = [program.as_ptr() as usize, argv.as_ptr() as usize, envp.as_ptr() as usize];
    // SAFETY: the caller has promised it of the arrays; the path ends with NUL.
    unsafe { call(libc::SYS_execve, all) }.err().unwrap_or(0)
}

pub(super) fn setsid() -> Answer {
    numbers(libc::SYS_setsid, [])
}

/// Becomes the leader of a process group of its own.
pub(super) fn lead_group() -> Answer {
    numbers(libc::SYS_setpgid, [0, 0])
}

/// Puts a process group in the foreground of a terminal.
pub(super) fn to_foreground(terminal: RawFd, group: i32) -> Answer {
    let request = usize::try_from(libc::TIOCSPGRP).unwrap_or(0);
    // SAFETY: the request reads one number, and `group` is one.
    unsafe { call(libc::SYS_ioctl, [int(terminal), request, (&raw const group) as usize]) }
}

pub(super) fn limit(resource: u32, soft: u64, hard: u64) -> Answer {
    let resource = usize::try_from(resource).unwrap_or(usize::MAX);
    // The kernel's struct rlimit64.
    let limit = [soft, hard];
    // SAFETY: reads a local array of two numbers; no old limit is asked for.
    unsafe { call(libc::SYS_prlimit64, [0, resource, limit.as_ptr() as usize, 0]) }
}

pub(super) fn nice(nice: i32) -> Answer {
    numbers(libc::SYS_setpriority, [0, 0, nice])
}

/// Sets the file mode creation mask, which cannot fail.
pub(super) fn umask(mask: u32) {
    let _old = numbers(libc::SYS_umask, [mask.cast_signed()]);
}

pub(super) fn open(path: &CStr, flags: i32) -> Answer {
    let path = path.as_ptr() as usize;
    // SAFETY: the path ends with NUL; nothing is made, so that there is no mode.
    unsafe { call(libc::SYS_openat, [int(libc::AT_FDCWD), path, int(flags), 0]) }
}

pub(super) fn chdir(path: &CStr) -> Answer {
    // SAFETY: the path ends with NUL.
    unsafe { call(libc::SYS_chdir, [path.as_ptr() as usize]) }
}

pub(super) fn setgroups(groups: &[u32]) -> Answer {
    // SAFETY: the array has that many members.
    unsafe { call(libc::SYS_setgroups, [groups.len(), groups.as_ptr() as usize]) }
}

/// Sets the real, the effective and the saved group.
pub(super) fn setgid(gid: u32) -> Answer {
    numbers(libc::SYS_setresgid, [gid.cast_signed(); 3])
}

/// Sets the real, the effective and the saved user.
pub(super) fn setuid(uid: u32) -> Answer {
    numbers(libc::SYS_setresuid, [uid.cast_signed(); 3])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_answers_with_a_number_or_an_errno() {
        assert_eq!(Ok(pid()), i32::try_from(std::process::id()));
        assert_eq!(close(-1), Err(libc::EBADF));
        assert_eq!(open(c"/nowhere", libc::O_RDONLY), Err(libc::ENOENT));
        assert_eq!(write(-1, b"x"), Err(libc::EBADF));
    }

    #[test]
    fn an_ignored_signal_is_seen() {
        // By the runtime of Rust; nobody has a handler for the last one.
        assert!(is_ignored(libc::SIGPIPE) && !is_ignored(SIGNAL_MAX));
    }
}
