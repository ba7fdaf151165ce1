//! Who a process is, and whether it still is: pid and kernel start time, held by a pidfd.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use super::{SystemError, sys};
use crate::model::{Identity, Signal, Wall};

/// More than `/proc/PID/stat` ever has: 52 numbers, and a name.
const STAT_BYTES_MAX: usize = 2048;
/// Among the flags of a process: forked, and no exec since then; `include/linux/sched.h` of the kernel.
const PF_FORKNOEXEC: u32 = 0x40;
/// It ends, and has no memory any more, or will have none.
const PF_EXITING: u32 = 0x4;
/// It is a thread of the kernel's, which never has any.
const PF_KTHREAD: u32 = 0x20_0000;
/// For programs the kernel counts start times in hundredths of a second, `proc_pid_stat(5)`.
const TICK: Duration = Duration::from_millis(10);
/// How near to the next tick the clock says nothing of the start of a process.
const TICK_MARGIN: Duration = Duration::from_micros(10);
/// How many times the clock has to be right before it is believed.
const PROOFS: u8 = 4;

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
    /// Whether it has become another program since it was forked.
    pub has_execed: bool,
    /// How many threads it has.
    pub threads: u32,
    /// When it was started, in clock ticks since boot.
    pub start: u64,
}

impl Stat {
    /// Whether the process has ended, and waits only to be reaped. One whose first thread has ended looks so too, and
    /// lives on in others, `pthread_exit(3)`.
    pub fn is_dead(&self) -> bool {
        match self.state {
            'Z' => self.threads <= 1,
            state => matches!(state, 'X' | 'x'),
        }
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
    // Field 9 is the 7th after the name, 20 the 18th, and 22 the 20th; four are read.
    let flags: u32 = fields.nth(2)?.parse().ok()?;
    let threads = fields.nth(10)?.parse().ok()?;
    let start = fields.nth(1)?.parse().ok()?;
    let has_execed = flags & PF_FORKNOEXEC == 0;
    Some(Stat { state, parent, group, session, has_execed, threads, start })
}

fn stat_path(pid: i32) -> String {
    format!("/proc/{pid}/stat")
}

/// What the kernel says about a process; `None` when there is none.
pub(super) fn stat(pid: i32) -> Option<Stat> {
    try_stat(pid).ok()
}

/// The same, with what stands in the way.
pub(super) fn try_stat(pid: i32) -> std::io::Result<Stat> {
    let mut bytes = [0u8; STAT_BYTES_MAX];
    // The kernel gives all of it at once.
    let got = File::open(stat_path(pid))?.read(&mut bytes)?;
    let text = String::from_utf8_lossy(bytes.get(..got).unwrap_or_default());
    parse_stat(&text).ok_or_else(|| std::io::ErrorKind::InvalidData.into())
}

/// How many bytes the environment of a process has, by the text of its `stat`; `None` while that is not known: on its
/// way from one program to the next, and to its end, a process does not show the memory that it had any
/// more, and that of the next one not yet (`bprm_execve` and `exit_mm` in the kernel).
pub(super) fn environment_bytes(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // The first field after the name is the third.
    let field = |number: usize| fields.get(number.checked_sub(3)?)?.parse::<u64>().ok();
    let (flags, code, begin, end) = (field(9)?, field(26)?, field(50)?, field(51)?);
    if flags & u64::from(PF_KTHREAD) != 0 {
        return Some(0);
    }
    // Where the code is is set last, after the begin and the end of the environment, `load_elf_binary`.
    let is_there = flags & u64::from(PF_EXITING) == 0 && code != 0 && begin != 0;
    is_there.then(|| end.saturating_sub(begin))
}

/// Whether a process ends, by the text of its `stat`; and whether that takes long, as where a file system does
/// not answer.
pub(super) fn is_ending(stat: &str) -> (bool, bool) {
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next().unwrap_or_default();
    let flags = fields.nth(5).and_then(|flags| flags.parse::<u32>().ok()).unwrap_or(0);
    let is_ending = flags & PF_EXITING != 0;
    (is_ending, is_ending && state == "D")
}

/// How long the machine is up, on the clock of start times.
fn up() -> Option<Duration> {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).ok()
}

fn ticks(up: Duration) -> u64 {
    u64::try_from(up.as_millis() / TICK.as_millis()).unwrap_or(u64::MAX)
}

/// The clock of start times now: ticks since boot.
pub(super) fn ticks_now() -> u64 {
    up().map_or(u64::MAX, ticks)
}

/// When a process with this start time was started.
pub(super) fn started_at(start: u64) -> Wall {
    let micros = |time: Duration| i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
    let start = i64::try_from(start).unwrap_or(i64::MAX).saturating_mul(micros(TICK));
    Wall(sys::wall_now().0.saturating_sub(up().map_or(0, micros)).saturating_add(start))
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

/// Tells the start times of our children as they are made, by the clock where that can.
///
/// To read `/proc/PID/stat` costs a tenth of a start. What stands there is the clock of boots at the
/// fork (`copy_process`, in the kernel's fork.c), in ticks: where a fork began and ended within one,
/// that is it. For the first children both are looked at; a kernel on which they are not the same is
/// asked about each.
#[derive(Debug, Default)]
pub(super) struct StartTimes {
    /// How many times the clock was right; `None` once it was not.
    proofs: Option<u8>,
}

impl StartTimes {
    pub(super) fn new() -> Self {
        Self { proofs: Some(0) }
    }

    /// Makes a child by `fork`, which returns its number and a handle on it. Its identity is that of a
    /// process that is not reaped: nobody else can have its number. Without a start time it would be
    /// mistaken for dead: then it has none.
    pub(super) fn witness<E>(
        &mut self,
        fork: impl FnOnce() -> Result<(i32, Option<OwnedFd>), E>,
    ) -> Result<(i32, Option<Identity>), E> {
        let before = up();
        let (pid, pidfd) = fork()?;
        let after = up();
        // Only a kernel that gives handles numbers of their own is known to keep time like this.
        let inode = pidfd.as_ref().and_then(inode);
        let time = before.zip(after).filter(|_| inode.is_some());
        let told = time.and_then(|(before, after)| tick_of(before, after));
        let identity = self.start(told, || Some(stat(pid)?.start));
        Ok((pid, identity.map(|start| Identity { pid, start, inode })))
    }

    /// The start time, by what the clock told or what is `read`.
    fn start(&mut self, told: Option<u64>, read: impl FnOnce() -> Option<u64>) -> Option<u64> {
        if let (Some(told), Some(PROOFS..)) = (told, self.proofs) {
            return Some(told);
        }
        let start = read()?;
        if let Some(told) = told {
            let was_right = |proofs: &u8| told == start && *proofs < u8::MAX;
            self.proofs = self.proofs.filter(was_right).map(|proofs| proofs.saturating_add(1));
        }
        Some(start)
    }
}

/// The tick in which something lies that began and ended then, where it is one.
fn tick_of(before: Duration, after: Duration) -> Option<u64> {
    let first = ticks(before.saturating_sub(TICK_MARGIN));
    (first == ticks(after.saturating_add(TICK_MARGIN))).then_some(first)
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

/// By what a process is known to be the one with an identity, without a look.
#[derive(Debug, Clone, Copy)]
pub(super) enum Handle<'a> {
    /// It is our child, and was not reaped: nobody else has its number.
    Child,
    /// It was proven when this was opened.
    Pidfd(BorrowedFd<'a>),
}

/// Sends a signal to the process with this identity; one that is gone is no error. Without a handle it takes a
/// descriptor, and fails where there is none.
pub(super) fn signal(
    identity: &Identity,
    handle: Option<Handle<'_>>,
    signal: Signal,
) -> Result<(), SystemError> {
    with_found(identity, handle, |pidfd| send(identity, pidfd, signal))
}

/// Kills the process with this identity, which leads a group, with that group: while it lives,
/// nobody else's group has its number. One that was let go just now may lead none yet, and is alone.
pub(super) fn kill_group(
    identity: &Identity,
    handle: Option<Handle<'_>>,
) -> Result<(), SystemError> {
    with_found(identity, handle, |pidfd| match sys::kill(-identity.pid, Signal::KILL) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {
            send(identity, pidfd, Signal::KILL)
        }
        done => done,
    })
}

fn send(identity: &Identity, pidfd: Option<BorrowedFd<'_>>, signal: Signal) -> std::io::Result<()> {
    match pidfd {
        Some(pidfd) => sys::pidfd_send_signal(pidfd, signal),
        None => sys::kill(identity.pid, signal),
    }
}

fn with_found(
    identity: &Identity,
    handle: Option<Handle<'_>>,
    send: impl FnOnce(Option<BorrowedFd<'_>>) -> std::io::Result<()>,
) -> Result<(), SystemError> {
    let fail = |reason: String| Err(SystemError::new("signal process", identity.pid, reason));
    let result = match handle {
        Some(Handle::Child) => send(None),
        Some(Handle::Pidfd(pidfd)) => send(Some(pidfd)),
        None => match find(identity) {
            Found::Alive(pidfd) => send(pidfd.as_ref().map(AsFd::as_fd)),
            Found::Dead => return Ok(()),
            Found::Unknown(why) => return fail(why),
            Found::NoDescriptor => return fail("there is no descriptor to be had".to_owned()),
        },
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
    fn who_lives_in_another_thread_than_the_first_is_alive() {
        for (state, threads, is_dead) in
            [('Z', 1, true), ('Z', 0, true), ('Z', 2, false), ('X', 2, true), ('S', 1, false)]
        {
            let text =
                format!("42 (sh) {state} 1 42 42 0 -1 0 1 2 3 4 5 6 7 8 20 0 {threads} 0 777");
            assert_eq!(parse_stat(&text).unwrap().is_dead(), is_dead, "{text}");
        }
    }

    #[test]
    fn a_program_may_have_any_name() {
        let tail = "S 1 42 43 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 777 9 10";
        for name in ["sh", "a b", ") Z 9 9 9 (", "((", "x)"] {
            let stat = parse_stat(&format!("42 ({name}) {tail}")).unwrap();
            assert_eq!((stat.state, stat.parent, stat.group), ('S', 1, 42), "{name}");
            assert_eq!((stat.session, stat.threads, stat.start), (43, 1, 777), "{name}");
            assert!(stat.has_execed, "{name}");
        }
        let forked = tail.replace("4194560", "4194624");
        assert!(!parse_stat(&format!("42 (sh) {forked}")).unwrap().has_execed);
    }

    #[test]
    fn the_clock_tells_a_start_time_only_within_one_tick_and_only_once_it_was_right() {
        let at = Duration::from_micros;
        for (before, after, tick) in [
            (20_500, 20_900, Some(2)),
            (20_010, 29_989, Some(2)),
            (20_009, 20_900, None),
            (20_500, 29_990, None),
            (19_999, 20_500, None),
            (20_500, 40_500, None),
        ] {
            assert_eq!(tick_of(at(before), at(after)), tick, "{before} {after}");
        }
        let mut times = StartTimes::new();
        for n in 0..u64::from(PROOFS) {
            assert_eq!(times.start(None, || Some(7)), Some(7), "nothing was told");
            assert_eq!(times.start(Some(n), || Some(n)), Some(n));
        }
        assert_eq!(times.start(Some(8), || unreachable!("it is believed")), Some(8));
        assert_eq!(times.start(None, || None), None);
        let mut wrong = StartTimes::new();
        assert_eq!(wrong.start(Some(1), || Some(1)), Some(1));
        assert_eq!(wrong.start(Some(2), || Some(3)), Some(3));
        for _ in 0..=PROOFS {
            assert_eq!(wrong.start(Some(4), || Some(4)), Some(4));
        }
        assert_eq!(wrong.start(Some(5), || Some(6)), Some(6), "it was wrong once");
    }

    #[test]
    fn the_clock_is_right_about_real_children() {
        let mut times = StartTimes::new();
        for _ in 0..300 {
            let mut child = None;
            let fork = || {
                #[expect(clippy::disallowed_methods, reason = "a test may start a program")]
                let made = std::process::Command::new("true").spawn()?;
                let pid = i32::try_from(made.id()).unwrap();
                child = Some(made);
                Ok::<_, std::io::Error>((pid, sys::pidfd_open(pid).ok()))
            };
            let (pid, identity) = times.witness(fork).unwrap();
            assert_eq!(identity.unwrap().start, stat(pid).unwrap().start);
            child.unwrap().wait().unwrap();
        }
        assert!(times.proofs.is_some());
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
