//! What becomes of instances if nobody does anything.
//!
//! Who waits for one goes on for as long as it may come; who looks at many is told which have come to
//! rest. Both are about now: time that passes in a backoff is no rest, and nobody knows how it ends.

use std::collections::{BTreeMap, BTreeSet};

use super::{Turn, View, blockers, rests_until_due, turn};
use crate::model::{Blocker, Instance, InstanceId, Kind, Phase, Unit, Until};

/// Whether nothing will happen to an instance by itself, apart from time passing in a backoff.
pub fn is_settled(view: &View<'_>, id: &InstanceId) -> bool {
    let phase = view.observed.get(id).map_or(&Phase::Down, |instance| &instance.phase);
    match turn(view, id) {
        Some(turn) => turn == Turn::Halted,
        None => rests_until_due(view, id) || settled(phase, view.wants(id), view.unit(id)),
    }
}

/// Whether nothing is under way. A unit that waits for one that is stuck has come to rest too; a task
/// that runs has not.
fn settled(phase: &Phase, wanted: bool, unit: Option<&Unit>) -> bool {
    let is_task = unit.is_some_and(|unit| unit.spec.kind == Kind::Task);
    match phase {
        Phase::Down => !wanted,
        Phase::Waiting { on, .. } => on.iter().any(|blocker| blocker.stuck),
        Phase::Starting | Phase::Stopping { .. } => false,
        Phase::Up => !is_task,
        Phase::Backoff { .. }
        | Phase::Failed { .. }
        | Phase::Done
        | Phase::Skipped { .. }
        | Phase::Unproven { .. } => true,
    }
}

/// Whether an instance waits for nothing but what somebody holds down, or what runs when it is due: what it is
/// down for is as it was asked for. Each of those in between is looked at once.
pub fn awaits_held(view: &View<'_>, id: &InstanceId) -> bool {
    let (mut seen, mut queue) = (BTreeSet::new(), vec![id.clone()]);
    while let Some(id) = queue.pop() {
        if seen.contains(&id) {
            continue;
        }
        let Some(absent) = absent_in_the_way(view, &id) else { return false };
        queue.extend(absent.into_iter().filter(|id| !is_held_or_due(view, id)));
        seen.insert(id);
    }
    true
}

/// The instances for which this one waits that nothing brings up; `None` where it does not wait for such alone.
fn absent_in_the_way(view: &View<'_>, id: &InstanceId) -> Option<Vec<InstanceId>> {
    let Phase::Waiting { on, .. } = &view.observed.get(id)?.phase else { return None };
    on.iter().find(|blocker| blocker.stuck)?;
    // What is noted may stand for others.
    let all = blockers(view, &id.unit);
    let mut absent = Vec::new();
    for blocker in all.iter().chain(on).filter(|blocker| blocker.stuck) {
        let unit = view.desired.units.get(&blocker.unit)?;
        let ids = unit.spec.instance_ids().into_iter().filter(|id| !is_there(view, unit, id));
        let before = absent.len();
        absent.extend(ids.filter(|_| matches!(blocker.until, Until::Is(_))));
        (absent.len() > before).then_some(())?;
    }
    Some(absent)
}

fn is_held_or_due(view: &View<'_>, id: &InstanceId) -> bool {
    let is_held = view.unit(id).is_some_and(|unit| unit.hold_of(id).is_some());
    let has_failed = view.observed.get(id).is_some_and(has_failed);
    is_held || (!has_failed && rests_until_due(view, id))
}

fn has_failed(instance: &Instance) -> bool {
    matches!(instance.phase, Phase::Failed { .. })
}

fn is_there(view: &View<'_>, unit: &Unit, id: &InstanceId) -> bool {
    match view.observed.get(id).map(|instance| &instance.phase) {
        Some(Phase::Up) => true,
        Some(Phase::Done) => unit.spec.kind == Kind::Task,
        _ => false,
    }
}

/// What becomes of an instance if nobody does anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outlook {
    /// It will be elsewhere: something is under way, or time will tell.
    Moves,
    /// It is where it will be.
    Stays,
}

/// The outlooks of instances, each worked out once.
#[derive(Debug)]
pub struct Outlooks<'a> {
    /// Of what they are worked out.
    pub view: View<'a>,
    known: BTreeMap<InstanceId, Outlook>,
}

impl<'a> Outlooks<'a> {
    /// None is known yet.
    pub fn of_all(view: View<'a>) -> Self {
        Self { view, known: BTreeMap::new() }
    }

    /// What becomes of this one.
    pub fn of(&mut self, id: &InstanceId) -> Outlook {
        if let Some(known) = self.known.get(id) {
            return *known;
        }
        // Units do not wait in a circle; if they did, nothing would come of it.
        self.known.insert(id.clone(), Outlook::Stays);
        let outlook = if self.stays(id) { Outlook::Stays } else { Outlook::Moves };
        self.known.insert(id.clone(), outlook);
        outlook
    }

    fn stays(&mut self, id: &InstanceId) -> bool {
        let wanted = self.view.wants(id);
        if rests_until_due(&self.view, id) {
            return true;
        }
        let Some(instance) = self.view.observed.get(id) else { return !wanted };
        let unit = self.view.unit(id);
        let anew = wanted
            && unit.is_some_and(|unit| {
                instance.epoch != unit.epoch_of(id) || instance.hash != unit.hash
            });
        match &instance.phase {
            Phase::Down => !wanted,
            Phase::Waiting { on, .. } => {
                let is_stuck = wanted && on.iter().any(|blocker| blocker.stuck);
                // What is noted may stand for others.
                let all = if is_stuck { blockers(&self.view, &id.unit) } else { Vec::new() };
                let mut stuck = all.iter().chain(on).filter(|blocker| blocker.stuck);
                is_stuck && stuck.any(|blocker| self.does_not_come(blocker))
            }
            Phase::Starting | Phase::Stopping { .. } | Phase::Backoff { .. } => false,
            Phase::Up => unit.is_none_or(|unit| unit.spec.kind != Kind::Task),
            Phase::Failed { .. } | Phase::Done | Phase::Skipped { .. } => !anew,
            Phase::Unproven { .. } => true,
        }
    }

    /// Whether a unit that is waited for stays where it is.
    fn does_not_come(&mut self, blocker: &Blocker) -> bool {
        let Some(unit) = self.view.desired.units.get(&blocker.unit) else { return true };
        match blocker.until {
            Until::Is(_) => {
                let ids = unit.spec.instance_ids();
                unit.removed
                    || ids.iter().any(|id| self.of(id) == Outlook::Stays && !self.is_up(id))
            }
            Until::Connection => true,
            // Of two that conflict, a task makes room by coming to its end.
            Until::Down => {
                let ids = self.view.instances(&blocker.unit);
                unit.spec.kind != Kind::Task || ids.iter().any(|id| self.of(id) == Outlook::Stays)
            }
        }
    }

    /// Whether nothing comes of it for whoever waits for it: it stays where it is, neither up nor done.
    pub fn is_still(&mut self, id: &InstanceId) -> bool {
        let is_there = self.view.unit(id).is_some_and(|unit| is_there(&self.view, unit, id));
        !is_there && self.of(id) == Outlook::Stays
    }

    fn is_up(&self, id: &InstanceId) -> bool {
        self.view.observed.get(id).is_some_and(|instance| instance.phase == Phase::Up)
    }
}
