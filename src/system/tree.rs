//! Which processes belong to a run, without cgroups.
//!
//! A process is a run's if it descends from one with a role, is in the session of one, or carries
//! the run's cookie (`OPM_RUN`) in its environment. Since opm is PID 1 or a subreaper, whatever
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

/// All living processes of a run, those with a role included.
///
/// `known` are the children of opm that have a role in any run: they are no strays.
pub(super) fn members(run: &RunRef, known: &BTreeSet<i32>) -> Vec<Identity> {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let found = match (run.adopted, children(own)) {
        (false, Some(children)) => {
            let mut family = Family::default();
            for (_, leader) in &run.leaders {
                if process::stat(leader.pid).is_some_and(|stat| stat.start == leader.start) {
                    family.add(leader.pid);
                }
            }
            for stray in children.into_iter().filter(|pid| !known.contains(pid)) {
                if belongs(stray, run) {
                    family.add(stray);
                }
            }
            family.members
        }
        _ => by_all_of_proc(run),
    };
    found
        .into_iter()
        .filter(|(_, stat)| !stat.is_dead())
        .map(|(pid, stat)| Identity { pid, start: stat.start, inode: None })
        .collect()
}

/// A process and everything that descends from it.
#[derive(Default)]
struct Family {
    members: BTreeMap<i32, Stat>,
}

impl Family {
    fn add(&mut self, root: i32) {
        let mut queue = vec![root];
        while let Some(pid) = queue.pop() {
            if self.members.contains_key(&pid) {
                continue;
            }
            if let Some(stat) = process::stat(pid) {
                self.members.insert(pid, stat);
                queue.extend(children(pid).unwrap_or_default());
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
fn belongs(pid: i32, run: &RunRef) -> bool {
    let session = process::stat(pid).map(|stat| stat.session);
    run.leaders.iter().any(|(_, leader)| {
        Some(leader.pid) == session && !is_reused(leader, process::stat(leader.pid))
    }) || has_cookie(pid, run)
}

/// Whether a leader's number belongs to another process now. A number is not given away while a
/// session has it: the session of that number is the other one's then.
fn is_reused(leader: &Identity, now: Option<Stat>) -> bool {
    now.is_some_and(|stat| stat.start != leader.start)
}

fn has_cookie(pid: i32, run: &RunRef) -> bool {
    let cookie = format!("{COOKIE}={}", run.run);
    fs::read(format!("/proc/{pid}/environ"))
        .is_ok_and(|env| env.split(|byte| *byte == 0).any(|entry| entry == cookie.as_bytes()))
}

/// Every process on the machine is looked at: by session, cookie, and descent.
fn by_all_of_proc(run: &RunRef) -> BTreeMap<i32, Stat> {
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
        let session = run.leaders.iter().any(|(_, leader)| {
            leader.pid == stat.session
                && leader.start <= stat.start
                && !is_reused(leader, all.get(&leader.pid).copied())
        });
        leads || session || has_cookie(pid, run)
    };
    let mut members: BTreeMap<i32, Stat> =
        all.iter().filter(|(pid, stat)| is_root(**pid, stat)).map(|(p, s)| (*p, *s)).collect();
    loop {
        let before = members.len();
        for (pid, stat) in &all {
            if members.contains_key(&stat.parent) {
                members.insert(*pid, *stat);
            }
        }
        if members.len() == before {
            return members;
        }
    }
}
