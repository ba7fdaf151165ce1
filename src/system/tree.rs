//! Which processes belong to a run, without cgroups.
//!
//! A process is a run's if it descends from one with a role, was in the session of one while that
//! lived, or carries the run's cookie (`OPM_RUN`) in its environment. Since opm is PID 1 or a subreaper, whatever
//! loses its parent becomes a child of opm: to find the strays of a run it is enough to look at
//! opm's own children and what descends from them. Only for runs of an earlier supervisor, whose
//! strays went elsewhere, all of `/proc` is read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use super::RunRef;
use super::process::{self, Stat};
use crate::model::Identity;

/// The variable that marks the processes of a run.
pub(super) const COOKIE: &str = "OPM_RUN";

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

/// All living processes of a run, those with a role included.
///
/// `known` are the children of opm that have a role in any run: they are no strays.
pub(super) fn members(run: &RunRef, known: &BTreeSet<i32>, ends: &Ends) -> Vec<Identity> {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let found = match (run.adopted, children(own)) {
        (false, Some(children)) => {
            let mut family = Family { own, members: BTreeMap::new() };
            for (_, leader) in &run.leaders {
                if let Some(stat) = process::stat(leader.pid)
                    && stat.start == leader.start
                {
                    family.add(leader.pid, stat.parent);
                }
            }
            let strays: Vec<(i32, Stat)> = children
                .into_iter()
                .filter(|pid| !known.contains(pid))
                .filter_map(|pid| Some((pid, process::stat(pid)?)))
                .collect();
            for (stray, stat) in &strays {
                if belongs(*stray, stat, run, ends) {
                    family.add(*stray, own);
                }
            }
            let sessions = sessions(run, &family.members);
            for (stray, stat) in &strays {
                if sessions.contains(&stat.session) {
                    family.add(*stray, own);
                }
            }
            family.members
        }
        _ => by_all_of_proc(run, ends),
    };
    found
        .into_iter()
        .filter(|(_, stat)| !stat.is_dead())
        .map(|(pid, stat)| Identity { pid, start: stat.start, inode: None })
        .collect()
}

/// A process and everything that descends from it.
struct Family {
    own: i32,
    members: BTreeMap<i32, Stat>,
}

impl Family {
    fn add(&mut self, root: i32, parent: i32) {
        let mut queue = vec![(root, parent)];
        while let Some((pid, parent)) = queue.pop() {
            if self.members.contains_key(&pid) {
                continue;
            }
            // Between the list of a process's children and this look one may have ended, and its
            // number be another's; or its parent has, and it is ours now.
            let stat = process::stat(pid);
            if let Some(stat) = stat.filter(|stat| [parent, self.own].contains(&stat.parent)) {
                self.members.insert(pid, stat);
                let children = children(pid).unwrap_or_default();
                queue.extend(children.into_iter().map(|child| (child, pid)));
            }
        }
    }
}

/// The children of a process, by all its threads; `None` where the kernel does not tell
/// (`CONFIG_PROC_CHILDREN`).
fn children(pid: i32) -> Option<Vec<i32>> {
    let mut found = Vec::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
        let text = fs::read_to_string(thread.path().join("children")).ok()?;
        found.extend(text.split_ascii_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
    }
    Some(found)
}

/// Whether a process without a role is of this run, by its session or its cookie.
fn belongs(pid: i32, stat: &Stat, run: &RunRef, ends: &Ends) -> bool {
    in_session(stat, run, ends) || has_cookie(pid, run)
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
    let leaders: BTreeSet<i32> = run.leaders.iter().map(|(_, leader)| leader.pid).collect();
    members.values().map(|stat| stat.session).filter(|session| leaders.contains(session)).collect()
}

fn has_cookie(pid: i32, run: &RunRef) -> bool {
    let cookie = format!("{COOKIE}={}", run.run);
    fs::read(format!("/proc/{pid}/environ"))
        .is_ok_and(|env| env.split(|byte| *byte == 0).any(|entry| entry == cookie.as_bytes()))
}

/// Whether a process has the number of any run in its environment; `None` where nobody can look.
pub(super) fn has_any_cookie(pid: i32) -> Option<bool> {
    let begin = format!("{COOKIE}=");
    let env = fs::read(format!("/proc/{pid}/environ")).ok()?;
    Some(env.split(|byte| *byte == 0).any(|entry| entry.starts_with(begin.as_bytes())))
}

/// Every process on the machine is looked at: by session, cookie, and descent.
fn by_all_of_proc(run: &RunRef, ends: &Ends) -> BTreeMap<i32, Stat> {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let Ok(entries) = fs::read_dir("/proc") else { return BTreeMap::new() };
    let all: BTreeMap<i32, Stat> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != own)
        .filter_map(|pid| Some((pid, process::stat(pid)?)))
        .collect();
    let is_root = |pid: i32, stat: &Stat| {
        let leads =
            run.leaders.iter().any(|(_, leader)| leader.pid == pid && leader.start == stat.start);
        leads || belongs(pid, stat, run, ends)
    };
    let mut members: BTreeMap<i32, Stat> =
        all.iter().filter(|(pid, stat)| is_root(**pid, stat)).map(|(p, s)| (*p, *s)).collect();
    loop {
        let before = members.len();
        let sessions = sessions(run, &members);
        for (pid, stat) in &all {
            if members.contains_key(&stat.parent) || sessions.contains(&stat.session) {
                members.insert(*pid, *stat);
            }
        }
        if members.len() == before {
            return members;
        }
    }
}
