//! What an earlier supervisor began: taken over where it lives, and looked at again where a descriptor
//! to watch it with is wanting, or it has not become its program yet.

use std::os::fd::{AsFd, AsRawFd};

use super::super::process::Found;
use super::super::{Launch, Proof, process};
use super::{Child, Linux, Watched};
use crate::model::{Event, Happening, Identity, Monotonic, Outcome, Output, Role, RunId};
use crate::system::System;

impl Linux {
    /// Takes over a process that was let run, with its channels.
    pub(super) fn adopt_process(&mut self, launch: &Launch, identity: &Identity) -> Proof {
        match self.take_over(launch, identity) {
            Proof::Alive => {}
            Proof::Dead => {
                // Its end is told here, and not once more when it is reaped: another process may
                // have its role by then.
                let known = self.children.get(identity.pid).map(|child| (child.run, child.role));
                if known == Some((launch.run, launch.role)) {
                    self.children.remove(identity.pid);
                }
                return Proof::Dead;
            }
            other @ Proof::Unknown(_) => return other,
        }
        if launch.role == Role::Main
            && let Some(process) = &launch.spec.process
        {
            if process.output == Output::Keeper
                && self.descriptors.for_start(self.null.as_fd())
                && let Err(error) = self.output(launch)
            {
                log::warn!("{}: {error}", launch.instance);
            }
            self.reopen_channels(launch, identity);
        }
        Proof::Alive
    }

    /// Watches a process that an earlier supervisor made, if it lives. Where that cannot be told for
    /// want of a descriptor it counts as alive, and is looked at again.
    fn take_over(&mut self, launch: &Launch, identity: &Identity) -> Proof {
        let Launch { run, role, .. } = *launch;
        // Our own child is told of by its end, which is still to come where it is dead already.
        let found = process::stat(identity.pid).filter(|found| found.start == identity.start);
        if found.is_some_and(|found| found.parent == self.own) {
            self.kept(&launch.instance, run).has_begun = true;
            self.forget_role(run, role, identity);
            let (instance, start) = (launch.instance.clone(), identity.start);
            let child = Child { instance, run, role, start, leads_session: false };
            self.children.insert(identity.pid, child);
            return Proof::Alive;
        }
        let pidfd = match process::find(identity) {
            Found::Dead => return Proof::Dead,
            Found::Unknown(why) => return Proof::Unknown(why),
            Found::Alive(pidfd) => pidfd,
            Found::NoDescriptor => {
                self.kept(&launch.instance, run).has_begun = true;
                self.look_later(launch, identity);
                return Proof::Alive;
            }
        };
        self.kept(&launch.instance, run).has_begun = true;
        self.forget_role(run, role, identity);
        let Some(pidfd) = pidfd else {
            return Proof::Unknown("this kernel has no pidfd to watch it with".to_owned());
        };
        let fd = pidfd.as_raw_fd();
        self.kept(&launch.instance, run).is_adopted = true;
        let (pid, start) = (identity.pid, identity.start);
        let watched = Watched::Foreign { run, role, pid, start, pidfd };
        if !self.descriptors.for_adopted(fd) {
            self.look_later(launch, identity);
        } else if let Err(error) = self.watch(Some(run), fd, watched) {
            log::warn!("{}: cannot watch process {}: {error}", launch.instance, identity.pid);
            self.look_later(launch, identity);
        }
        Proof::Alive
    }

    /// What was known of this process and of another one in its role is known better now: after a
    /// cycle that broke off, what was said last may be lost.
    fn forget_role(&mut self, run: RunId, role: Role, identity: &Identity) {
        let Some(kept) = self.runs.get_mut(&run) else { return };
        let tokens = kept.tokens.clone();
        if let Role::Former(number) = role {
            kept.said.get_or_insert_default().knows_former(number, *identity);
        }
        let is_main = role == Role::Main;
        if is_main && kept.said.as_ref().is_some_and(|said| said.has_former()) {
            let others =
                self.children.of(run).filter(|(pid, its)| *its == role && *pid != identity.pid);
            for (pid, _) in others.collect::<Vec<_>>() {
                self.children.remove(pid);
            }
        }
        for token in tokens {
            if let Some(Watched::Foreign { role: its, pid, .. }) = self.watched.get(&token)
                && (*pid == identity.pid || (is_main && *its == role))
            {
                self.unwatch(token);
            }
        }
    }

    fn look_later(&mut self, launch: &Launch, identity: &Identity) {
        self.later.ended(launch.run, launch.role);
        self.later.processes.push((launch.clone(), *identity));
        self.later.again(self.now());
    }

    /// Whether a process has become its program; nothing where it is gone. Where it has not, it is looked at
    /// again.
    pub(super) fn has_become_program(
        &mut self,
        launch: &Launch,
        identity: &Identity,
    ) -> Option<bool> {
        let found = process::stat(identity.pid).filter(|found| found.start == identity.start);
        let has = found.filter(|found| !found.is_dead())?.has_execed;
        if !has {
            self.later.execs.push((launch.clone(), *identity));
            self.later.again(self.now());
        }
        Some(has)
    }

    /// When to look again at what could not be watched for want of a descriptor.
    pub fn wake_at(&self) -> Option<Monotonic> {
        self.later.at()
    }

    /// Looks again at what could not be watched, if it is time.
    pub fn look_again(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        self.look.is_over();
        let Some(due) = self.later.take_due(self.now()) else { return events };
        for (launch, identity) in due.processes {
            let Launch { run, role, ref instance, .. } = launch;
            if !self.runs.contains_key(&run) {
                continue;
            }
            let what = match self.take_over(&launch, &identity) {
                Proof::Alive => continue,
                Proof::Dead => {
                    self.note_end(run, identity.pid);
                    Happening::Ended { run, role, outcome: Outcome::Unknown }
                }
                Proof::Unknown(why) => Happening::Unproven { run, why },
            };
            events.push(self.event(instance, what));
        }
        for (launch, identity) in due.execs {
            // The end of one that is gone is told by whoever watches it.
            if self.has_become_program(&launch, &identity) == Some(true) {
                let Launch { run, role, ref instance, .. } = launch;
                events.push(self.event(instance, Happening::Execed { run, role }));
            }
        }
        for (launch, identity) in due.readiness {
            self.reopen_channels(&launch, &identity);
        }
        for tree in due.kills.into_values() {
            self.kill_tree_of(&tree);
        }
        if due.alarm.is_some() {
            self.set_alarm(due.alarm);
        }
        for run in due.trees {
            let tree = self.runs.get(&run).and_then(|kept| kept.tree.clone());
            if let Some(tree) = tree {
                let left = self.watch_tree(&tree);
                events.push(self.event(&tree.instance, Happening::Tree { run, left }));
            }
        }
        events
    }
}
