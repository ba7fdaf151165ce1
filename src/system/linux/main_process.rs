//! Which process is a run's main one: what says that another is it from now on is checked here, and the
//! end of each is told under the role that it has then.

use std::os::fd::AsRawFd;

use super::super::process;
use super::said::Complaint;
use super::{Child, Linux, Watched};
use crate::model::{Happening, Identity, Role, RunId, Word};

impl Linux {
    /// Another process is a run's main one from now on, if it is the run's own and lives.
    pub(super) fn name_main(&mut self, run: RunId, pid: i32) -> Option<Happening> {
        let main = self.pid_of_main(run)?;
        if main == pid {
            return None;
        }
        let Some((identity, role)) = self.main_to_be(run, pid) else {
            self.complain(run, Complaint::NoMain, || {
                format!("process {pid}, named by `MAINPID=`, is no process of the unit; ignored")
            });
            return None;
        };
        if !self.may_change(run) || !self.watch_main(run, &identity, role) {
            return None;
        }
        let kept = self.runs.get_mut(&run)?;
        let said = kept.said.get_or_insert_default();
        let was = said.next_former();
        if let Some(stat) = process::stat(main) {
            said.knows_former(was, Identity { pid: main, start: stat.start, inode: None });
        }
        self.set_role(run, main, Role::Former(was));
        self.main_is_known(run);
        Some(Happening::Word { run, word: Word::MainIs { identity, was } })
    }

    /// The main process of a run, while its end is still to be told.
    pub(super) fn pid_of_main(&self, run: RunId) -> Option<i32> {
        self.children.in_role(run, Role::Main).or_else(|| {
            self.runs.get(&run)?.tokens.iter().find_map(|token| match self.watched.get(token) {
                Some(Watched::Foreign { role: Role::Main, pid, .. }) => Some(*pid),
                _ => None,
            })
        })
    }

    /// A living process of the run that can be its main one.
    fn main_to_be(&self, run: RunId, pid: i32) -> Option<(Identity, Option<Role>)> {
        let (identity, role) = self.free_process(run, pid)?;
        let session = process::stat(pid)?.session;
        self.is_member(run, &identity, session).then_some((identity, role))
    }

    /// A living process that has no role, or one by which it can be the main one of this run: it is
    /// that, or was before.
    pub(super) fn free_process(&self, run: RunId, pid: i32) -> Option<(Identity, Option<Role>)> {
        let (identity, _) = process::identify(pid)?;
        let role = match (self.children.get(pid), self.foreign.get(&pid)) {
            (Some(child), _) => Some((child.run, child.role)),
            (None, Some(token)) => match self.watched.get(token) {
                Some(Watched::Foreign { run, role, .. }) => Some((*run, *role)),
                _ => None,
            },
            (None, None) => None,
        };
        let can_be = |role| matches!(role, Role::Main | Role::Former(_));
        let is_free = role.is_none_or(|(of, role)| of == run && can_be(role));
        (is_free && pid != self.own).then_some((identity, role.map(|(_, role)| role)))
    }

    /// Sees to it that the end of a new main process is told. `role`: what it was before.
    pub(super) fn watch_main(
        &mut self,
        run: RunId,
        identity: &Identity,
        role: Option<Role>,
    ) -> bool {
        let pid = identity.pid;
        if role.is_some() {
            return self.set_role(run, pid, Role::Main);
        }
        if process::stat(pid).is_some_and(|stat| stat.parent == self.own) {
            let Some(kept) = self.runs.get(&run) else { return false };
            let instance = kept.instance.clone();
            let (role, start) = (Role::Main, identity.start);
            let child = Child { instance, run, role, start, leads_session: false };
            self.children.insert(pid, child);
            return true;
        }
        let watched =
            process::identify(pid).filter(|(now, _)| now == identity).map(|(_, pidfd)| {
                let fd = pidfd.as_raw_fd();
                let (role, start) = (Role::Main, identity.start);
                let is_room = self.descriptors.for_adopted(fd);
                (is_room, fd, Watched::Foreign { run, role, pid, start, pidfd })
            });
        match watched {
            Some((true, fd, watched)) => match self.watch(Some(run), fd, watched) {
                Ok(_) => true,
                Err(error) => {
                    log::warn!("cannot watch process {pid}: {error}");
                    false
                }
            },
            Some((false, ..)) | None => false,
        }
    }

    /// Changes the role of a process whose end is still to be told. Whether there is such a one.
    pub(super) fn set_role(&mut self, run: RunId, pid: i32, new: Role) -> bool {
        if let Some(child) = self.children.get(pid) {
            let is_it = child.run == run;
            if is_it {
                self.children.set_role(pid, new);
            }
            return is_it;
        }
        let token = self.foreign.get(&pid).copied();
        match token.and_then(|token| self.watched.get_mut(&token)) {
            Some(Watched::Foreign { run: of, role, .. }) if *of == run => {
                *role = new;
                true
            }
            _ => false,
        }
    }
}
