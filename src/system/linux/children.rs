//! Our children with a role: found by their number when they end, and by their run when that is asked
//! about, without a look at those of all other runs.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{InstanceId, Role, RunId};

/// One of them.
#[derive(Debug, Clone)]
pub(super) struct Child {
    pub(super) instance: InstanceId,
    pub(super) run: RunId,
    pub(super) role: Role,
    /// When it was started, in clock ticks since boot.
    pub(super) start: u64,
    /// Whether it is known to lead a session, as soon as it runs its program.
    pub(super) leads_session: bool,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Children {
    by_pid: BTreeMap<i32, Child>,
    by_run: BTreeSet<(RunId, i32)>,
}

impl Children {
    pub(super) fn get(&self, pid: i32) -> Option<&Child> {
        self.by_pid.get(&pid)
    }

    pub(super) fn insert(&mut self, pid: i32, child: Child) {
        self.remove(pid);
        self.by_run.insert((child.run, pid));
        self.by_pid.insert(pid, child);
    }

    pub(super) fn remove(&mut self, pid: i32) -> Option<Child> {
        let child = self.by_pid.remove(&pid)?;
        self.by_run.remove(&(child.run, pid));
        Some(child)
    }

    /// Those of a run.
    pub(super) fn of(&self, run: RunId) -> impl Iterator<Item = (i32, Role)> {
        let pids = self.by_run.range((run, i32::MIN)..=(run, i32::MAX)).map(|(_, pid)| *pid);
        pids.filter_map(|pid| Some((pid, self.by_pid.get(&pid)?.role)))
    }

    /// Who has this role in a run.
    pub(super) fn in_role(&self, run: RunId, role: Role) -> Option<i32> {
        self.of(run).find(|(_, its)| *its == role).map(|(pid, _)| pid)
    }

    /// Gives a child of a run another role.
    pub(super) fn set_role(&mut self, pid: i32, role: Role) {
        if let Some(child) = self.by_pid.get_mut(&pid) {
            child.role = role;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::UnitName;

    #[test]
    fn a_number_that_is_given_again_is_of_its_last_run_alone() {
        let child = |run, role| Child {
            instance: InstanceId::single(&UnitName::parse("a").unwrap()),
            run: RunId(run),
            role,
            start: 1,
            leads_session: false,
        };
        let mut children = Children::default();
        children.insert(7, child(1, Role::Main));
        children.insert(8, child(1, Role::Reload));
        children.insert(7, child(2, Role::Main));
        let of = |children: &Children, run| children.of(RunId(run)).collect::<Vec<_>>();
        assert_eq!(of(&children, 1), [(8, Role::Reload)]);
        assert_eq!(of(&children, 2), [(7, Role::Main)]);
        children.set_role(7, Role::Former(0));
        assert_eq!(children.in_role(RunId(2), Role::Main), None);
        assert_eq!(children.in_role(RunId(2), Role::Former(0)), Some(7));
        assert!(children.remove(7).is_some() && children.remove(7).is_none());
        assert_eq!(of(&children, 2), []);
    }
}
