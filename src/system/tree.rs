//! Which processes belong to a run, without cgroups.
//!
//! A process is a run's if it descends from one with a role, was in the session of one while that
//! lived, or carries the run's cookie (`OPM_RUN`) in its environment. Since opm is PID 1 or a subreaper, whatever
//! loses its parent becomes a child of opm: to find the strays of a run it is enough to look at
//! opm's own children and what descends from them. Only for runs of an earlier supervisor, whose
//! strays went elsewhere, all of `/proc` is read.

use std::cell::{Cell, OnceCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::rc::Rc;

use super::RunRef;
use super::process::{self, Stat};
use super::sys;
use crate::model::{Gather, Identity, RunId};

/// The variable that marks the processes of a run.
pub(super) const COOKIE: &str = "OPM_RUN";

/// Links to the directory of a process's threads where there is one: its own, its name, and the thread's.
const TASK_LINKS_OF_ONE: u64 = 3;
/// How often the environment of a process is looked at that is between two programs, or about to end: for about
/// a millisecond.
const LOOKS_BETWEEN: usize = 32;
/// Bytes of a list of children that are read at once; the kernel gives no more.
const CHILDREN_BYTES: usize = 4096;

/// When the ends of a run's leaders were noticed, in clock ticks since boot.
///
/// The number of a dead leader may be given to a stranger, who may begin a session of that number.
/// While the leader lived the session was its own: who was in it by then is of the run.
#[derive(Debug, Clone, Default)]
pub(super) struct Ends {
    noticed: BTreeMap<i32, u64>,
    /// For those that had ended when this supervisor began: what is in their sessions then counts.
    earlier: u64,
}

impl Ends {
    /// `earlier`: when this supervisor began.
    pub(super) fn since(earlier: u64) -> Self {
        Self { noticed: BTreeMap::new(), earlier }
    }

    pub(super) fn note(&mut self, pid: i32, at: u64) {
        self.noticed.insert(pid, at);
    }

    fn of(&self, leader: &Identity) -> u64 {
        self.noticed.get(&leader.pid).copied().unwrap_or(self.earlier)
    }
}

/// A living process of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) identity: Identity,
    /// Whether it leads a session: then it is in the group of its own number for good, setsid(2).
    pub(super) leads_session: bool,
}

/// The processes of a run that were found.
#[derive(Debug, Default)]
pub(super) struct Members {
    /// Those that live, those with a role included.
    pub(super) living: Vec<Member>,
    /// Whether a stray has ended since the list of them was made: what it had begun may have come to
    /// us since, and is not in the list.
    pub(super) is_stale: bool,
    /// Whether somebody could not be looked at for want of a descriptor or of memory: there may be more.
    pub(super) is_short: bool,
}

/// How looks at processes came out: one that fails for a shortage does not say that nobody is there.
#[derive(Debug, Default)]
struct Sight {
    is_short: Cell<bool>,
}

impl Sight {
    /// What was seen; nothing where there is nothing, or it could not be looked at.
    fn of<T>(&self, look: io::Result<T>) -> Option<T> {
        if let Err(error) = &look
            && sys::is_shortage(error)
        {
            self.is_short.set(true);
        }
        look.ok()
    }

    fn stat(&self, pid: i32) -> Option<Stat> {
        self.of(process::try_stat(pid))
    }
}

/// All children of opm; `None` where the kernel does not tell.
pub(super) fn own_children() -> Option<Vec<i32>> {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    children_of_threads(own).ok()
}

/// The orphans that came to opm, without those that have a role in a run; `None` where the kernel does
/// not tell.
///
/// Orphans are the children of the first thread (`find_new_reaper` in the kernel's exit.c), which makes
/// none of its own, `daemon/mod.rs`. After `opm reexec` the services of before are among them, and have
/// a role.
pub(super) fn strays(has_role: impl Fn(i32) -> bool) -> Option<Vec<i32>> {
    let own = std::process::id();
    let mut strays = children_of_thread(format!("/proc/{own}/task/{own}/children")).ok()?;
    strays.retain(|pid| !has_role(*pid));
    Some(strays)
}

/// All processes of a run. `strays`: our children without a role. `everybody`: asked where these do not
/// tell.
pub(super) fn members(
    run: &RunRef,
    strays: Option<&[i32]>,
    ends: &Ends,
    everybody: impl FnOnce() -> Rc<Everybody>,
) -> Members {
    let (found, is_stale, is_short) = if let Some(strays) = strays.filter(|_| !run.adopted) {
        family(run, strays, ends)
    } else {
        let everybody = everybody();
        (everybody.of(run, ends), false, everybody.sight.is_short.get())
    };
    let living = found
        .into_iter()
        .filter(|(_, stat)| !stat.is_dead())
        .map(|(pid, stat)| Member {
            identity: Identity { pid, start: stat.start, inode: None },
            leads_session: stat.session == pid,
        })
        .collect();
    Members { living, is_stale, is_short }
}

/// What descends from a run's processes with a role, and those of the strays that are of it; whether a stray has ended
/// since, and whether any could not be looked at.
fn family(run: &RunRef, strays: &[i32], ends: &Ends) -> (BTreeMap<i32, Stat>, bool, bool) {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let sight = Sight::default();
    let mut family = Family { own, members: BTreeMap::new(), sight: &sight };
    for (_, leader) in &run.leaders {
        if let Some(stat) = sight.stat(leader.pid)
            && stat.start == leader.start
        {
            family.add_seen(leader.pid, stat);
        }
    }
    let seen: Vec<(i32, Stat)> =
        strays.iter().filter_map(|pid| Some((*pid, sight.stat(*pid)?))).collect();
    let mut is_stale = seen.len() < strays.len() || seen.iter().any(|(_, stat)| stat.is_dead());
    for (stray, stat) in &seen {
        if in_session(stat, run, ends) {
            family.add(*stray, own);
            continue;
        }
        match mark_of(*stray, &sight) {
            Mark::Of(of) if of == run.run => family.add(*stray, own),
            Mark::Gone => is_stale = true,
            Mark::Of(_) | Mark::Nobodys => {}
        }
    }
    let sessions = sessions(run, &family.members);
    for (stray, stat) in &seen {
        if sessions.contains(&stat.session) {
            family.add(*stray, own);
        }
    }
    (family.members, is_stale, sight.is_short.get())
}

/// A process and everything that descends from it.
struct Family<'a> {
    own: i32,
    members: BTreeMap<i32, Stat>,
    sight: &'a Sight,
}

impl Family<'_> {
    /// Adds a process that was looked at just now.
    fn add_seen(&mut self, pid: i32, stat: Stat) {
        if self.members.insert(pid, stat).is_none() {
            let children = self.children(pid, &stat).into_iter();
            self.add_all(children.map(|child| (child, pid)).collect());
        }
    }

    fn add(&mut self, root: i32, parent: i32) {
        self.add_all(vec![(root, parent)]);
    }

    fn add_all(&mut self, mut queue: Vec<(i32, i32)>) {
        while let Some((pid, parent)) = queue.pop() {
            if self.members.contains_key(&pid) {
                continue;
            }
            // Between the list of a process's children and this look one may have ended, and its
            // number be another's; or its parent has, and it is ours now.
            let stat = self.sight.stat(pid);
            if let Some(stat) = stat.filter(|stat| [parent, self.own].contains(&stat.parent)) {
                self.members.insert(pid, stat);
                queue.extend(self.children(pid, &stat).into_iter().map(|child| (child, pid)));
            }
        }
    }

    /// The children of a process.
    fn children(&self, pid: i32, stat: &Stat) -> Vec<i32> {
        // Most have one thread, which has their number.
        let of_one = || children_of_thread(format!("/proc/{pid}/task/{pid}/children"));
        let found = if stat.threads == 1 { of_one() } else { children_of_threads(pid) };
        self.sight.of(found).unwrap_or_default()
    }
}

/// Whether a process has one thread, and that no children. `false` where the kernel does not tell.
pub(super) fn is_childless(pid: i32) -> bool {
    // A directory for each thread is a link to this one (`proc_task_getattr`, in the kernel's base.c).
    let threads = fs::metadata(format!("/proc/{pid}/task")).map(|tasks| tasks.nlink());
    threads.is_ok_and(|links| links == TASK_LINKS_OF_ONE)
        && children_of_thread(format!("/proc/{pid}/task/{pid}/children"))
            .is_ok_and(|children| children.is_empty())
}

/// The children of a process, by all its threads; an error where the kernel does not tell
/// (`CONFIG_PROC_CHILDREN`).
fn children_of_threads(pid: i32) -> io::Result<Vec<i32>> {
    let (mut found, mut is_told) = (Vec::new(), false);
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        match children_of_thread(thread?.path().join("children")) {
            Ok(children) => {
                is_told = true;
                found.extend(children);
            }
            // A thread that has ended since has left its children to another one.
            Err(error) if sys::is_shortage(&error) => return Err(error),
            Err(_) => {}
        }
    }
    if is_told { Ok(found) } else { Err(io::ErrorKind::NotFound.into()) }
}

fn children_of_thread(path: impl AsRef<Path>) -> io::Result<Vec<i32>> {
    let mut file = fs::File::open(path)?;
    let mut text = Vec::new();
    let mut part = [0u8; CHILDREN_BYTES];
    loop {
        let got = file.read(&mut part)?;
        if got == 0 {
            break;
        }
        text.extend_from_slice(part.get(..got).unwrap_or_default());
    }
    let numbers = text.split(|byte| *byte == b' ');
    Ok(numbers.filter_map(|pid| std::str::from_utf8(pid).ok()?.parse().ok()).collect())
}

/// Whether a process is in the session of one of a run's leaders, and not in one that has got the
/// number later.
fn in_session(stat: &Stat, run: &RunRef, ends: &Ends) -> bool {
    let mut leaders = run.leaders.iter().map(|(_, leader)| leader);
    leaders.any(|leader| {
        leader.pid == stat.session
            && leader.start <= stat.start
            && match process::stat(leader.pid) {
                // A number is not given away while a session has it.
                Some(now) => now.start == leader.start,
                None => stat.start <= ends.of(leader),
            }
    })
}

/// The leaders' sessions in which one of these members lives: all of such a session is of the run,
/// since its number was not given away.
fn sessions(run: &RunRef, members: &BTreeMap<i32, Stat>) -> BTreeSet<i32> {
    let leaders: BTreeSet<i32> = run.leaders.iter().map(|(_, leader)| leader.pid).gather();
    members.values().map(|stat| stat.session).filter(|session| leaders.contains(session)).gather()
}

/// The environment of a process, or what is seen of it at this moment.
struct Env {
    bytes: Vec<u8>,
    /// Whether that is all of it: amid an exec the end of it is not to be had any more.
    is_whole: bool,
}

impl Env {
    /// Of a process or thread, by its directory; an error where nobody can look.
    fn read(dir: &Path) -> io::Result<Self> {
        let stat = fs::read(dir.join("stat"))?;
        let stat = String::from_utf8_lossy(&stat);
        let length = process::environment_bytes(&stat);
        let (is_ending, is_stuck) = process::is_ending(&stat);
        let bytes = match fs::read(dir.join("environ")) {
            // It has no memory: a thread of the kernel's, or one that ends, which is root's by then.
            Err(error) if is_gone(&error) => Vec::new(),
            Err(error) if is_ending && error.kind() == io::ErrorKind::PermissionDenied => {
                Vec::new()
            }
            read => read?,
        };
        // One that is stuck in its end would keep all others from theirs.
        let is_whole = is_stuck || length == u64::try_from(bytes.len()).ok();
        Ok(Self { bytes, is_whole })
    }

    fn of(pid: i32) -> io::Result<Self> {
        let env = Self::read(Path::new(&format!("/proc/{pid}")))?;
        if env.is_whole || !env.bytes.is_empty() {
            return Ok(env);
        }
        // A first thread that has ended has none any more, and the others have.
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            match Self::read(&thread?.path()) {
                Ok(env) if env.bytes.is_empty() => {}
                Err(error) if !sys::is_shortage(&error) => {}
                found => return found,
            }
        }
        Ok(env)
    }

    /// The number of a run in it, as it stands there.
    fn cookie(&self) -> Option<&[u8]> {
        let mut entries = self.bytes.split(|byte| *byte == 0);
        entries.find_map(|entry| entry.strip_prefix(COOKIE.as_bytes())?.strip_prefix(b"="))
    }

    fn run(&self) -> Option<RunId> {
        u64::from_str_radix(std::str::from_utf8(self.cookie()?).ok()?, 16).ok().map(RunId)
    }
}

/// Of which run a process says that it is.
#[derive(Debug, PartialEq, Eq)]
enum Mark {
    /// Of this one, by the number in its environment.
    Of(RunId),
    /// Of none, or nobody can look.
    Nobodys,
    /// It has ended since it was seen.
    Gone,
}

/// Of which run a process says that it is. One that stays between two programs, or is long about its end, may be
/// of any: that is a shortage of sight.
fn mark_of(pid: i32, sight: &Sight) -> Mark {
    for _ in 0..LOOKS_BETWEEN {
        let env = match Env::of(pid) {
            Err(error) if is_gone(&error) => None,
            read => match sight.of(read) {
                Some(env) => Some(env),
                None => return Mark::Nobodys,
            },
        };
        if let Some(run) = env.as_ref().and_then(Env::run) {
            return Mark::Of(run);
        }
        if env.is_some_and(|env| env.is_whole) {
            return Mark::Nobodys;
        }
        match process::try_stat(pid) {
            Ok(stat) if !stat.is_dead() => std::thread::yield_now(),
            Ok(_) | Err(_) => return Mark::Gone,
        }
    }
    sight.is_short.set(true);
    Mark::Nobodys
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// Whether a process has the number of any run in its environment, or may have; `None` where nobody can look.
pub(super) fn has_any_cookie(pid: i32) -> Option<bool> {
    let env = Env::of(pid).ok()?;
    Some(env.cookie().is_some() || !env.is_whole)
}

/// Every process that can be seen, at one moment. It is read once for all runs that are looked for in it.
#[derive(Debug)]
pub(super) struct Everybody {
    all: BTreeMap<i32, Stat>,
    sight: Sight,
    /// By their cookies, once that was asked.
    by_cookie: OnceCell<BTreeMap<RunId, Vec<i32>>>,
}

impl Everybody {
    pub(super) fn now() -> Self {
        let own = i32::try_from(std::process::id()).unwrap_or(0);
        let sight = Sight::default();
        let entries = sight.of(fs::read_dir("/proc")).into_iter().flatten();
        let entries = entries.filter_map(|entry| sight.of(entry));
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let all =
            pids.filter(|pid| *pid != own).filter_map(|pid| Some((pid, sight.stat(pid)?))).gather();
        Self { all, sight, by_cookie: OnceCell::new() }
    }

    /// Those with the number of this run in their environment.
    fn with_cookie(&self, run: RunId) -> &[i32] {
        let by_cookie = self.by_cookie.get_or_init(|| {
            let mut found: BTreeMap<RunId, Vec<i32>> = BTreeMap::new();
            for pid in self.all.keys() {
                if let Mark::Of(run) = mark_of(*pid, &self.sight) {
                    found.entry(run).or_default().push(*pid);
                }
            }
            found
        });
        by_cookie.get(&run).map_or(&[], Vec::as_slice)
    }

    /// The processes of a run: by session, cookie, and descent.
    fn of(&self, run: &RunRef, ends: &Ends) -> BTreeMap<i32, Stat> {
        let cookies = self.with_cookie(run.run);
        let is_root = |pid: &i32, stat: &Stat| {
            let is_it = |leader: &Identity| leader.pid == *pid && leader.start == stat.start;
            run.leaders.iter().any(|(_, leader)| is_it(leader))
                || cookies.contains(pid)
                || in_session(stat, run, ends)
        };
        let roots = self.all.iter().filter(|(pid, stat)| is_root(pid, stat));
        let mut members: BTreeMap<i32, Stat> = roots.map(|(pid, stat)| (*pid, *stat)).gather();
        loop {
            let before = members.len();
            let sessions = sessions(run, &members);
            for (pid, stat) in &self.all {
                if members.contains_key(&stat.parent) || sessions.contains(&stat.session) {
                    members.insert(*pid, *stat);
                }
            }
            if members.len() == before {
                return members;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn of_everybody_who_stays_it_can_be_told_whose_it_is() {
        let everybody = Everybody::now();
        let _all = everybody.with_cookie(RunId(0));
        // Who has ended, or is amid an exec for long, is looked at once more.
        let unclear = |pid: &i32| {
            let sight = Sight::default();
            let mark = mark_of(*pid, &sight);
            mark == Mark::Nobodys && sight.is_short.get()
        };
        let mut pids: Vec<i32> = everybody.all.keys().copied().collect();
        for _ in 0..50 {
            pids.retain(unclear);
        }
        assert!(pids.is_empty(), "{pids:?}");
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a test may start a program")]
    fn one_thread_without_children_is_told_from_all_else() {
        // It says when it has got there.
        for (script, is_alone) in [
            ("echo there; read line", true),
            ("sleep 1000 & echo there; read line; kill $!", false),
            ("true & wait; echo there; read line", true),
        ] {
            let mut shell = Command::new("sh");
            let shell = shell.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut shell = shell.spawn().unwrap();
            let mut line = String::new();
            BufReader::new(shell.stdout.take().unwrap()).read_line(&mut line).unwrap();
            let pid = i32::try_from(shell.id()).unwrap();
            assert_eq!(is_childless(pid), is_alone, "{script}");
            drop(shell.stdin.take());
            shell.wait().unwrap();
            assert!(!is_childless(pid), "it is gone");
        }
        // We ourselves: the test's own thread, and the first one, which waits for it.
        assert!(!is_childless(i32::try_from(std::process::id()).unwrap()));
    }
}
