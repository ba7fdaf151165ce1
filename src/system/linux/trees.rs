//! The processes of runs: signalled, killed, and watched until none is left.
//!
//! Whoever loses its parent comes to us, into the list of the first thread's children, in which no
//! service is (`daemon/mod.rs`): it does not grow with the number of units. It is read once for all that
//! is done about trees in one turn. That is enough: an orphan of a leader is in a list that was read
//! after the leader was reaped, and one of any other process of a run is looked for in a new list when
//! that other one is found dead.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd};
use std::rc::Rc;

use super::super::process::{Found, Handle};
use super::super::tree::{Everybody, Member, Members};
use super::super::{RunRef, process, sys, tree};
use super::{Kept, Linux, System, Token, Watched};
use crate::model::{Gather, Identity, Role, RunId, Signal};

/// Processes without a role that are watched in one tree. When these are gone it is counted anew,
/// and others are watched: more would only take descriptors.
const MEMBERS_WATCHED_MAX: usize = 64;
/// How often a tree is killed again because something in it was born meanwhile.
const KILL_ROUNDS_MAX: usize = 16;
/// How often the list of our children is read again because somebody in it has ended meanwhile.
const LISTS_MAX: usize = 16;

/// Signals that ask for an end, by their numbers.
const ENDING: [i32; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGQUIT];

/// Who of a run had the signal that was to end it, by pid and start time.
#[derive(Debug)]
pub(super) struct Told {
    signal: Signal,
    all: BTreeSet<(i32, u64)>,
}

/// What was seen in this turn.
#[derive(Debug, Default)]
pub(super) struct Look {
    strays: Strays,
    /// All processes, where those of an earlier supervisor's runs were looked for.
    everybody: Option<Rc<Everybody>>,
    /// The tree that was signalled last, and how.
    signalled: Option<(RunId, Signal, Vec<Member>)>,
}

/// Our children without a role.
#[derive(Debug, Clone, Default)]
enum Strays {
    /// Nobody has looked yet.
    #[default]
    Unseen,
    /// The kernel does not tell.
    Untold,
    /// These.
    Seen(Rc<[i32]>),
}

impl Look {
    /// Something may have changed since.
    pub(super) fn is_over(&mut self) {
        *self = Self::default();
    }
}

impl Linux {
    /// Our children without a role, as of this turn.
    pub(super) fn strays(&mut self) -> Option<Rc<[i32]>> {
        if matches!(self.look.strays, Strays::Unseen) {
            let found = self.look_for_strays();
            self.look.strays = found.map_or(Strays::Untold, |found| Strays::Seen(found.into()));
        }
        match &self.look.strays {
            Strays::Seen(strays) => Some(Rc::clone(strays)),
            Strays::Unseen | Strays::Untold => None,
        }
    }

    fn look_for_strays(&self) -> Option<Vec<i32>> {
        tree::strays(|pid| self.children.get(pid).is_some())
    }

    /// All living processes of a run, by a list of our children that is not older than they are.
    pub(super) fn members_now(&self, run: &RunRef) -> Members {
        let mut before: Option<Vec<i32>> = None;
        let mut found = Members::default();
        for _ in 0..LISTS_MAX {
            let strays = self.look_for_strays();
            let everybody = || Rc::new(Everybody::now());
            found = tree::members(run, strays.as_deref(), &self.ends(run.run), everybody);
            if !found.is_stale || strays == before {
                return found;
            }
            before = strays;
        }
        // They are born faster than they are seen.
        found.is_short = true;
        found
    }

    /// All living processes of a run, by the list of this turn as far as that can be.
    fn members(&mut self, run: &RunRef) -> Members {
        let strays = self.strays();
        let ends = self.ends(run.run);
        let seen = &mut self.look.everybody;
        let everybody = || Rc::clone(seen.get_or_insert_with(|| Rc::new(Everybody::now())));
        let found = tree::members(run, strays.as_deref(), &ends, everybody);
        if !found.is_stale {
            return found;
        }
        self.look.is_over();
        self.members_now(run)
    }

    /// The one process of a run, where a glance tells that there is no other: a child of ours, so that its
    /// number is its own, that leads its session and has no children, while nobody is around who
    /// has lost a parent. It may have ended. Most services are such, and to look at one more closely costs
    /// more than all else that its stop does.
    fn alone(&mut self, run: &RunRef) -> Option<Member> {
        let [(_, identity)] = run.leaders.as_slice() else { return None };
        let child = self.children.get(identity.pid)?;
        let is_known = !run.adopted && child.run == run.run && child.leads_session;
        let is_alone = is_known
            && self.strays().is_some_and(|strays| strays.is_empty())
            && tree::is_childless(identity.pid);
        is_alone.then_some(Member { identity: *identity, leads_session: true })
    }

    /// Sends a signal to every process of a run. Returns to how many.
    pub(super) fn signal_tree_of(&mut self, run: &RunRef, signal: Signal) -> u32 {
        // To go on is for those that had the signal before.
        let before = self.look.signalled.take().filter(|(of, ..)| *of == run.run);
        let members = match before.filter(|_| signal == Signal::CONT) {
            Some((_, signal, members)) => {
                self.note_told(run, signal, &members);
                members
            }
            None => self.alone(run).map_or_else(|| self.members(run).living, |member| vec![member]),
        };
        // Whom a signal of a stop does not reach, its kill does.
        let _is_all = self.signal_members(run, &members, signal);
        let reached = u32::try_from(members.len()).unwrap_or(u32::MAX);
        self.look.signalled = Some((run.run, signal, members));
        reached
    }

    /// Returns whether all of them had the signal, or are gone.
    fn signal_members(&self, run: &RunRef, members: &[Member], signal: Signal) -> bool {
        // The groups first, in one call each: nothing in them can be born in between and missed.
        let mut groups = BTreeSet::new();
        for (_, leader) in &run.leaders {
            // A number alone is nobody: a dead leader's may be another unit's process by now.
            let own = self.children.get(leader.pid).is_some_and(|child| child.run == run.run);
            let is_it =
                |one: &Member| (one.identity.pid, one.identity.start) == (leader.pid, leader.start);
            let alive = own || members.iter().any(is_it);
            if !alive || groups.contains(&leader.pid) {
                continue;
            }
            match sys::kill(-leader.pid, signal) {
                Ok(()) => drop(groups.insert(leader.pid)),
                // One that was let go just now leads no group yet: it is reached alone, below.
                Err(error) => log::debug!("cannot signal group {}: {error}", leader.pid),
            }
        }
        let mut is_all = true;
        for member in members {
            let Member { identity, leads_session } = member;
            let group = if *leads_session {
                Some(identity.pid)
            } else {
                process::stat(identity.pid).map(|stat| stat.group)
            };
            let in_group = group.is_some_and(|group| groups.contains(&group));
            if !in_group
                && let Err(error) = process::signal(identity, self.handle(identity), signal)
            {
                log::warn!("{}: {error}", run.instance);
                is_all = false;
            }
        }
        is_all
    }

    /// By what a process that we watch is known, without a look.
    pub(super) fn handle(&self, identity: &Identity) -> Option<Handle<'_>> {
        if let Some(child) = self.children.get(identity.pid) {
            return (child.start == identity.start).then_some(Handle::Child);
        }
        let watched = self.watched.get(self.foreign.get(&identity.pid)?)?;
        let Watched::Foreign { start, pidfd, .. } = watched else { return None };
        (*start == identity.start).then(|| Handle::Pidfd(pidfd.as_fd()))
    }

    /// Kills every process of a run, those included that are born meanwhile; whoever cannot be reached now, for
    /// want of a descriptor, is killed a while later.
    pub(super) fn kill_tree_of(&mut self, run: &RunRef) {
        let mut is_all = true;
        for _ in 0..KILL_ROUNDS_MAX {
            self.look.is_over();
            let members = self.members_now(run);
            is_all = self.signal_members(run, &members.living, Signal::KILL) && !members.is_short;
            if members.living.is_empty() {
                break;
            }
        }
        if !is_all {
            self.later.kills.insert(run.run, run.clone());
            self.later.again(self.now());
        }
    }

    /// Counts the processes of a run that have no role, and has their ends told.
    pub(super) fn watch_tree_of(&mut self, run: &RunRef) -> u32 {
        // Starts fail by the thousands where there is a shortage.
        let has_begun = self.runs.get(&run.run).is_none_or(|kept| kept.has_begun);
        if !run.adopted && !has_begun {
            return 0;
        }
        let leaders: BTreeSet<i32> = run.leaders.iter().map(|(_, leader)| leader.pid).gather();
        let nobody = !run.adopted
            && leaders.iter().all(|pid| !sys::group_exists(*pid))
            && self.strays().is_some_and(|strays| strays.is_empty());
        if nobody {
            return 0;
        }
        let Members { living: mut members, is_short, .. } = self.members(run);
        // The end of those with a role is told anyway.
        members.retain(|Member { identity, .. }| {
            let mut leaders = run.leaders.iter();
            !leaders.any(|(_, leader)| (leader.pid, leader.start) == (identity.pid, identity.start))
        });
        self.tell_newcomers(run, &members);
        let watched: Vec<Token> = self.runs.get(&run.run).map_or_else(Vec::new, |kept| {
            let is_member =
                |t: &&Token| matches!(self.watched.get(t), Some(Watched::Member { .. }));
            kept.tokens.iter().filter(is_member).copied().collect()
        });
        for token in watched {
            self.unwatch(token);
        }
        self.kept(&run.instance, run.run).tree = Some(Box::new(run.clone()));
        self.watch_members(run.run, &members, is_short)
    }

    /// A signal that a stop sends is followed by CONT, others are not.
    fn note_told(&mut self, run: &RunRef, signal: Signal, members: &[Member]) {
        if ENDING.contains(&signal.number()) {
            let all = members.iter().map(|member| (member.identity.pid, member.identity.start));
            let told = Told { signal, all: all.gather() };
            self.kept(&run.instance, run.run).told = Some(Box::new(told));
        }
    }

    /// Who came after the signal that was to end all of the run gets it too, before it is killed.
    fn tell_newcomers(&mut self, run: &RunRef, members: &[Member]) {
        let Some(told) = self.runs.get_mut(&run.run).and_then(|kept| kept.told.as_mut()) else {
            return;
        };
        let is_new = |one: &&Member| told.all.insert((one.identity.pid, one.identity.start));
        let newcomers: Vec<Member> = members.iter().filter(is_new).copied().collect();
        let signal = told.signal;
        if !newcomers.is_empty() {
            // Whom it does not reach, the kill does.
            let _is_all = self.signal_members(run, &newcomers, signal);
        }
    }

    /// Watches for the ends of these processes. Returns how many of them live, and at least one where there may be
    /// more.
    fn watch_members(&mut self, run: RunId, members: &[Member], is_short: bool) -> u32 {
        let (mut left, mut watching) = (0u32, 0usize);
        for Member { identity, .. } in members {
            if watching >= MEMBERS_WATCHED_MAX {
                left = left.saturating_add(1);
                continue;
            }
            let found = process::find(identity);
            left = left.saturating_add(u32::from(!matches!(found, Found::Dead)));
            if let Found::Alive(Some(pidfd)) = found
                && self.descriptors.for_member(pidfd.as_raw_fd())
            {
                let fd = pidfd.as_raw_fd();
                match self.watch(Some(run), fd, Watched::Member { run, pidfd }) {
                    Ok(_) => watching = watching.saturating_add(1),
                    Err(error) => log::error!("cannot watch process {}: {error}", identity.pid),
                }
            }
        }
        if is_short || (left > 0 && watching == 0) {
            self.later.trees.insert(run);
            self.later.again(self.now());
        }
        left.max(u32::from(is_short))
    }

    /// Whether a process that lives is of a run.
    pub(super) fn is_member(&self, run: RunId, process: &Identity, session: i32) -> bool {
        let Some(kept) = self.runs.get(&run) else { return false };
        let tree = self.family(run, kept);
        let is_living = |leader: &Identity| {
            process::stat(leader.pid).is_some_and(|stat| stat.start == leader.start)
        };
        let mut leaders = tree.leaders.iter().map(|(_, leader)| leader);
        if leaders.any(|leader| [process.pid, session].contains(&leader.pid) && is_living(leader)) {
            return true;
        }
        let members = self.members_now(&tree).living;
        let mut members = members.iter().map(|member| member.identity);
        members.any(|member| (member.pid, member.start) == (process.pid, process.start))
    }

    /// A run by its processes with a role, as far as they are known here.
    fn family(&self, run: RunId, kept: &Kept) -> RunRef {
        let own = self.children.of(run).filter_map(|(pid, role)| {
            let start = process::stat(pid)?.start;
            Some((role, Identity { pid, start, inode: None }))
        });
        let mut leaders: Vec<(Role, Identity)> = own.collect();
        let foreign = kept.tokens.iter().filter_map(|token| match self.watched.get(token) {
            Some(Watched::Foreign { role, pid, start, .. }) => {
                Some((*role, Identity { pid: *pid, start: *start, inode: None }))
            }
            _ => None,
        });
        let foreign: Vec<(Role, Identity)> = foreign.collect();
        // What an earlier supervisor's run left behind went elsewhere.
        let adopted = kept.is_adopted || leaders.is_empty();
        leaders.extend(foreign);
        // It may have ended by now; what it began is of the run.
        leaders.extend(kept.awaited.iter().map(|awaited| (Role::Main, awaited.first)));
        leaders
            .extend((0..).map(Role::Former).zip(kept.said.iter().flat_map(|said| said.former())));
        RunRef { instance: kept.instance.clone(), run, leaders, adopted }
    }
}
