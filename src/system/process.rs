//! Who a process is, and whether it still is: pid and kernel start time, held by a pidfd.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use nix::time::{ClockId, clock_gettime};

use super::{SystemError, sys};
use crate::model::{Identity, Signal, Wall};

/// More than `/proc/PID/stat` ever has: 52 numbers, and a name.
const STAT_BYTES_MAX: usize = 2048;

/// What `/proc/PID/stat` says, `proc_pid_stat(5)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// `R`, `S`, `Z`, …
    pub state: char,
    /// Its parent.
    pub parent: i32,
    /// Its process group.
    pub group: i32,
    /// Its session.
    pub session: i32,
    /// How many threads it has.
    pub threads: u32,
    /// When it was started, in clock ticks since boot.
    pub start: u64,
}

impl Stat {
    /// Whether the process has ended, and waits only to be reaped.
    pub fn is_dead(&self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x')
    }
}

/// Reads the text of `/proc/PID/stat`. The name of the program stands in parentheses and may hold
/// anything, parentheses too: what counts comes after the last one.
pub fn parse_stat(text: &str) -> Option<Stat> {
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    let group = fields.next()?.parse().ok()?;
    let session = fields.next()?.parse().ok()?;
    // Field 20 is the 18th after the name, and 22 the 20th; four are read.
    let threads = fields.nth(13)?.parse().ok()?;
    let start = fields.nth(1)?.parse().ok()?;
    Some(Stat { state, parent, group, session, threads, start })
}

fn stat_path(pid: i32) -> String {
    format!("/proc/{pid}/stat")
}

/// What the kernel says about a process; `None` when there is none.
pub(super) fn stat(pid: i32) -> Option<Stat> {
    let mut bytes = [0u8; STAT_BYTES_MAX];
    // The kernel gives all of it at once.
    let got = File::open(stat_path(pid)).ok()?.read(&mut bytes).ok()?;
    parse_stat(&String::from_utf8_lossy(bytes.get(..got)?))
}

/// The clock of start times now: ticks since boot, hundredths of a second for programs.
pub(super) fn ticks_now() -> u64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(u64::MAX, |time| {
        let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
        let part = u64::try_from(time.tv_nsec() / 10_000_000).unwrap_or(0);
        seconds.saturating_mul(100).saturating_add(part)
    })
}

/// When a process with this start time was started.
pub(super) fn started_at(start: u64) -> Wall {
    // For programs the kernel counts in hundredths, proc_pid_stat(5).
    let start = i64::try_from(start).unwrap_or(i64::MAX).saturating_mul(10_000);
    let up = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |time| {
        time.tv_sec().saturating_mul(1_000_000).saturating_add(time.tv_nsec() / 1_000)
    });
    Wall(sys::wall_now().0.saturating_sub(up).saturating_add(start))
}

/// When process 1 was started, and with it the machine or the container; `None` without `/proc`.
pub fn first_process_began() -> Option<Wall> {
    stat(1).map(|stat| started_at(stat.start))
}

/// As whom a process acts; `None` when there is none.
pub(super) fn user(pid: i32) -> Option<u32> {
    let bytes = std::fs::read(format!("/proc/{pid}/status")).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let users = text.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    // Real, effective, saved, of files: proc_pid_status(5).
    users.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// The inode of a pidfd, where pidfds have inodes of their own (Linux 6.9; before, all share one).
fn inode(pidfd: &OwnedFd) -> Option<u64> {
    use std::sync::OnceLock;
    static SHARED: OnceLock<Option<u64>> = OnceLock::new();
    let of = |fd: &OwnedFd| nix::sys::stat::fstat(fd).ok().map(|stat| stat.st_ino);
    let shared = SHARED.get_or_init(|| {
        // Our own and pid 1's: equal numbers say that the numbers mean nothing.
        let own = sys::pidfd_open(i32::try_from(std::process::id()).ok()?).ok()?;
        of(&own)
    });
    let inode = of(pidfd)?;
    (Some(inode) != *shared).then_some(inode)
}

/// The identity of a child that we have just made and not reaped: nobody else can have its number.
/// Without a start time it would be mistaken for dead: then it has none.
pub(super) fn identity_of_child(pid: i32, pidfd: Option<&OwnedFd>) -> Option<Identity> {
    let start = stat(pid)?.start;
    Some(Identity { pid, start, inode: pidfd.and_then(inode) })
}

/// Who has this number now, if it lives, and a handle on it.
pub(super) fn identify(pid: i32) -> Option<(Identity, OwnedFd)> {
    let pidfd = sys::pidfd_open(pid).ok()?;
    let stat = stat(pid).filter(|stat| !stat.is_dead())?;
    let identity = Identity { pid, start: stat.start, inode: inode(&pidfd) };
    // What was read is about the one that the handle is on, if that one lives still.
    sys::pidfd_exists(pidfd.as_fd()).ok()?;
    Some((identity, pidfd))
}

/// What is found of a process with a known identity.
#[derive(Debug)]
pub(super) enum Found {
    /// It lives. The handle cannot go stale; a kernel before 5.3 has none.
    Alive(Option<OwnedFd>),
    /// It is gone.
    Dead,
    /// It can be neither proven nor excluded.
    Unknown(String),
    /// Nobody can look now: there is no descriptor to be had.
    NoDescriptor,
}

/// Whether the process that has this identity lives; if so, a handle on it.
///
/// The handle is opened first and the start time read after: from then on it cannot go stale.
pub(super) fn find(identity: &Identity) -> Found {
    let pidfd = match sys::pidfd_open(identity.pid) {
        Ok(pidfd) => Some(pidfd),
        Err(error) if sys::is_shortage(&error) => return Found::NoDescriptor,
        Err(error) => match error.raw_os_error() {
            Some(libc::ESRCH | libc::EINVAL) => return Found::Dead,
            // No such call here: the start time alone has to do.
            _ => None,
        },
    };
    let stat = match std::fs::read(stat_path(identity.pid)) {
        Ok(bytes) => parse_stat(&String::from_utf8_lossy(&bytes)),
        Err(error) if sys::is_shortage(&error) => return Found::NoDescriptor,
        Err(_) => None,
    };
    let Some(stat) = stat else {
        return if sys::exists(identity.pid) {
            Found::Unknown(format!("process {} exists and /proc does not show it", identity.pid))
        } else {
            Found::Dead
        };
    };
    if stat.start != identity.start || stat.is_dead() {
        return Found::Dead;
    }
    match (&pidfd, identity.inode) {
        (Some(fd), Some(known)) if inode(fd).is_some_and(|inode| inode != known) => Found::Dead,
        _ => Found::Alive(pidfd),
    }
}

/// Sends a signal to the process with this identity, through a handle that was proven; one that is
/// gone is no error.
pub(super) fn signal(identity: &Identity, signal: Signal) -> Result<(), SystemError> {
    with_found(identity, |pidfd| match pidfd {
        Some(pidfd) => sys::pidfd_send_signal(pidfd.as_fd(), signal),
        None => sys::kill(identity.pid, signal),
    })
}

/// Kills the process with this identity, which leads a group, with that group: while it lives,
/// nobody else's group has its number.
pub(super) fn kill_group(identity: &Identity) -> Result<(), SystemError> {
    with_found(identity, |_| sys::kill(-identity.pid, Signal::KILL))
}

fn with_found(
    identity: &Identity,
    send: impl FnOnce(Option<OwnedFd>) -> std::io::Result<()>,
) -> Result<(), SystemError> {
    let fail = |reason: String| Err(SystemError::new("signal process", identity.pid, reason));
    let result = match find(identity) {
        Found::Alive(pidfd) => send(pidfd),
        Found::Dead => return Ok(()),
        Found::Unknown(why) => return fail(why),
        Found::NoDescriptor => return fail("there is no descriptor to be had".to_owned()),
    };
    match result {
        Err(error) if error.raw_os_error() != Some(libc::ESRCH) => fail(error.to_string()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_may_have_any_name() {
        let tail = "S 1 42 43 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 777 9 10";
        for name in ["sh", "a b", ") Z 9 9 9 (", "((", "x)"] {
            let stat = parse_stat(&format!("42 ({name}) {tail}")).unwrap();
            assert_eq!((stat.state, stat.parent, stat.group), ('S', 1, 42), "{name}");
            assert_eq!((stat.session, stat.threads, stat.start), (43, 1, 777), "{name}");
        }
    }

    #[test]
    fn what_is_no_stat_is_refused() {
        for text in ["", "1 (x", "1 (x)", "1 (x) S", "1 (x) S 1 2 3", "1 (x) S a b c"] {
            assert_eq!(parse_stat(text), None, "{text}");
        }
    }

    #[test]
    fn we_are_who_we_are() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let own = Identity { pid, start: stat(pid).unwrap().start, inode: None };
        assert!(matches!(find(&own), Found::Alive(_)));
        let other = Identity { start: own.start + 1, ..own };
        assert!(matches!(find(&other), Found::Dead));
    }
}
