//! How processes end: our children, which are reaped, and those of others, which a pidfd tells of.

use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use super::super::sys::{self, ForeignEnd};
use super::super::tree::{self, Ends, Everybody};
use super::super::{RunRef, process};
use super::{Child, Linux, Token, Watched};
use crate::model::{Event, Happening, Identity, InstanceId, Outcome, Role, RunId, Signal, Spec};

/// How long the death of a process that is not our child may take to be reaped by its parent, in
/// milliseconds: until then the kernel does not tell how it ended.
const FOREIGN_REAP_MILLIS: u8 = 20;

impl Linux {
    /// Reaps every child that has ended. Children without a role change no unit's state.
    pub fn reap(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        self.look.is_over();
        while let Some(pid) = sys::ended_child() {
            // What it said comes before its end: it may have named another main process.
            if let Some(&Child { run, role: Role::Main, .. }) = self.children.get(pid) {
                events.extend(self.messages_of(run));
                events.extend(self.take_pid_file(run));
            }
            // One that was not our child is it since its parent ended.
            let foreign = self.foreign_child(pid);
            let Some(outcome) = sys::reap(pid) else { break };
            self.nursery.gone(pid);
            if let Some(Watched::Foreign { run, role, .. }) = foreign.and_then(|t| self.unwatch(t))
            {
                self.note_end(run, pid);
                events.extend(self.event_of(run, Happening::Ended { run, role, outcome }));
                continue;
            }
            let Some(Child { instance, run, role, .. }) = self.children.remove(pid) else {
                log::debug!("reaped {pid}, which has no role: {outcome}");
                continue;
            };
            self.note_end(run, pid);
            let outcome = self.drain_channel(run, role, &outcome, &mut events);
            if role == Role::Main && outcome != Outcome::Exited(0) {
                self.main_is_known(run);
            }
            events.push(self.event(&instance, Happening::Ended { run, role, outcome }));
        }
        events.extend(self.left_by_those_that_forked_away());
        events
    }

    /// What is watched for the end of a child that has ended, where it was watched by a pidfd.
    fn foreign_child(&self, pid: i32) -> Option<Token> {
        let token = *self.foreign.get(&pid)?;
        let Some(Watched::Foreign { start, .. }) = self.watched.get(&token) else { return None };
        process::stat(pid).filter(|stat| stat.start == *start).map(|_| token)
    }

    pub(super) fn foreign_ready(&mut self, token: Token, events: &mut Vec<Event>) {
        let Some(Watched::Foreign { run, role, pid, pidfd, .. }) = self.watched.get(&token) else {
            return;
        };
        let (run, role, pid) = (*run, *role, *pid);
        if let Some(outcome) = foreign_end(pidfd) {
            self.note_end(run, pid);
            self.unwatch(token);
            events.extend(self.event_of(run, Happening::Ended { run, role, outcome }));
        }
    }

    pub(super) fn note_end(&mut self, run: RunId, pid: i32) {
        if let Some(kept) = self.runs.get_mut(&run) {
            kept.ends.note(pid, process::ticks_now());
        }
    }

    pub(super) fn ends(&self, run: RunId) -> Ends {
        self.runs.get(&run).map_or_else(|| Ends::since(self.began), |kept| kept.ends.clone())
    }

    /// Counts what is left at the very end: processes that descend from us and that no unit owns any
    /// more; as PID 1 that is everything else. They get the signal, if there is one.
    pub fn sweep(&self, signal: Option<Signal>) -> usize {
        let run = RunRef {
            instance: InstanceId::single(&Spec::default().name),
            run: RunId(0),
            leaders: vec![(
                Role::Main,
                Identity {
                    pid: self.own,
                    start: process::stat(self.own).map_or(0, |stat| stat.start),
                    inode: None,
                },
            )],
            adopted: false,
        };
        let strays = tree::own_children();
        let everybody = || Rc::new(Everybody::now());
        let found = tree::members(&run, strays.as_deref(), &Ends::default(), everybody);
        let all = found.living.iter().map(|member| &member.identity);
        let others: Vec<&Identity> = all.filter(|one| one.pid != self.own).collect();
        for other in signal.iter().flat_map(|_| &others) {
            if let Some(signal) = signal
                && let Err(error) = process::signal(other, self.handle(other), signal)
            {
                log::warn!("{error}");
            }
        }
        others.len().max(usize::from(found.is_short))
    }
}

/// How a process that is not our child ended; `None` while it lives.
fn foreign_end(pidfd: &OwnedFd) -> Option<Outcome> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let ended = |flags: PollFlags, wait: u8| {
        let mut fds = [PollFd::new(pidfd.as_fd(), flags)];
        match poll(&mut fds, PollTimeout::from(wait)) {
            Ok(1..) => fds.first().and_then(PollFd::revents).unwrap_or(PollFlags::empty()),
            _ => PollFlags::empty(),
        }
    };
    if !ended(PollFlags::POLLIN, 0).contains(PollFlags::POLLIN) {
        return None;
    }
    // The kernel tells how it ended only when its parent has reaped it.
    if matches!(sys::pidfd_outcome(pidfd.as_fd()), ForeignEnd::NotYet) {
        ended(PollFlags::empty(), FOREIGN_REAP_MILLIS);
    }
    Some(match sys::pidfd_outcome(pidfd.as_fd()) {
        ForeignEnd::Told(outcome) => outcome,
        ForeignEnd::NotYet | ForeignEnd::Never => Outcome::Unknown,
    })
}
