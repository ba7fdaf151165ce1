//! Order: may it start now, must it go, who has to be down before it.

use std::collections::BTreeSet;

use super::{View, lazy, restart};
use crate::model::{
    Blocker, Condition, Gather, Instance, InstanceId, Instances, Kind, Life, Need, Phase, Run,
    StopCause, Strength, Unit, UnitName, Until,
};

/// So many automatic starts in a row, or runs that were never ready, are a failure, not an accident.
const FAILING_ATTEMPTS: u32 = 2;

/// How a needed unit stands towards what is needed of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// It is so.
    Met,
    /// It is not so yet, and something is under way.
    Pending,
    /// It is not so, and nothing is under way that would make it so.
    Stuck,
}

/// Everything in the way of a start of this unit; nothing where it may start.
pub fn blockers(view: &View<'_>, unit: &UnitName) -> Vec<Blocker> {
    let Some(node) = view.graph.node(unit) else { return Vec::new() };
    let mut on: Vec<Blocker> = node.needs.iter().filter_map(|need| blocker(view, need)).collect();
    for other in &node.conflicts {
        let runs = view.observed.of_unit(other).any(|(_, instance)| instance.run.is_some());
        // Of two that are wanted and both down, the first by name goes first.
        let first = other < unit && view.graph.is_wanted(other) && may_run(view, other);
        if runs || first {
            // One that is on its way down is no reason to give up.
            let unproven =
                |(_, instance): (_, &Instance)| matches!(instance.phase, Phase::Unproven { .. });
            let held = view.observed.of_unit(other).any(unproven);
            let stuck = first || held || may_run(view, other);
            on.push(Blocker { unit: other.clone(), until: Until::Down, stuck });
        }
    }
    on.sort_by(|a, b| a.unit.cmp(&b.unit));
    on.dedup_by(|a, b| a.unit == b.unit && a.until == b.until);
    on
}

/// Another instance that runs, and that the unit does not ask for any more, or not with the number that it
/// has: one that has not run yet, or has another number now, may want what that one has still. Who
/// changes its number in turns waits only for the first kind: else they would wait for one another.
pub(super) fn former_instance(
    view: &View<'_>,
    id: &InstanceId,
    instance: &Instance,
) -> Option<Blocker> {
    let unit = view.desired.units.get(&id.unit)?;
    let is_new = instance.last.is_none();
    let may_change = matches!(*unit.spec.instances, Instances::Names(_));
    let is_other = |id: &InstanceId, known: &Instance| {
        may_change && unit.rolling.is_none() && known.epoch != unit.epoch_of(id)
    };
    let is_renumbered = may_change && instance.epoch != unit.epoch_of(id);
    let mut others = view.observed.of_unit(&id.unit).filter(|(other, _)| *other != id).peekable();
    if !(is_new || is_renumbered) || others.peek().is_none() {
        return None;
    }
    let declared: BTreeSet<InstanceId> = unit.spec.instance_ids().into_iter().gather();
    let mut leaving =
        others.filter(|(other, known)| !declared.contains(*other) || is_other(other, known));
    leaving.find(|(_, instance)| instance.run.is_some()).map(|(_, instance)| {
        let stuck = matches!(instance.phase, Phase::Unproven { .. });
        Blocker { unit: id.unit.clone(), until: Until::Down, stuck }
    })
}

/// A unit that runs, and with which this one that runs too is not to be up at the same time, as a change
/// says: of two that are wanted the first by name stays.
pub(super) fn conflict(view: &View<'_>, unit: &UnitName) -> Option<UnitName> {
    let runs = |other: &&UnitName| {
        let mut instances = view.observed.of_unit(other);
        instances.any(|(_, instance)| matches!(instance.phase, Phase::Starting | Phase::Up))
    };
    // A task in progress is not disturbed by a change.
    if view.desired.units.get(unit).is_some_and(|unit| unit.spec.kind == Kind::Task) {
        return None;
    }
    let mut others = view.graph.node(unit)?.conflicts.iter().filter(|other| *other < unit);
    // One that has to go itself is in nobody's way.
    let stays = |other: &&UnitName| conflict(view, other).is_none();
    others.find(|other| may_run(view, other) && runs(other) && stays(other)).cloned()
}

/// A need that is in the way of a start.
pub(super) fn blocker(view: &View<'_>, need: &Need) -> Option<Blocker> {
    let standing = standing(view, need);
    let blocks = match need.strength {
        Strength::Requires => standing != Standing::Met,
        Strength::Wants | Strength::After => {
            standing == Standing::Pending && !is_failing(view, &need.unit)
        }
    };
    blocks.then(|| Blocker {
        unit: need.unit.clone(),
        until: Until::Is(need.condition),
        // One that is about to try in vain again is no hope to others either.
        stuck: standing == Standing::Stuck || is_failing(view, &need.unit),
    })
}

/// Whether a unit fails again and again, by itself or with what it requires: who only wants it does not
/// wait for that.
fn is_failing(view: &View<'_>, unit: &UnitName) -> bool {
    let was_stable = |instance: &Instance| {
        let unit = view.desired.units.get(unit);
        unit.is_some_and(|unit| restart::is_or_was_stable(unit, instance))
    };
    view.observed.of_unit(unit).any(|(_, instance)| {
        let tries_in_vain = instance.in_vain >= FAILING_ATTEMPTS;
        tries_in_vain || (instance.attempt >= FAILING_ATTEMPTS && !was_stable(instance))
    })
}

/// Whether any instance of the unit is wanted.
fn may_run(view: &View<'_>, unit: &UnitName) -> bool {
    view.desired
        .units
        .get(unit)
        .is_some_and(|unit| unit.spec.instance_ids().iter().any(|id| view.wants(id)))
}

/// How a needed unit stands: as its worst instance.
pub fn standing(view: &View<'_>, need: &Need) -> Standing {
    let Some(unit) = view.desired.units.get(&need.unit).filter(|unit| !unit.removed) else {
        return Standing::Stuck;
    };
    let ids = unit.spec.instance_ids();
    ids.iter().map(|id| standing_of(view, unit, id, need.condition)).max().unwrap_or(Standing::Met)
}

fn standing_of(view: &View<'_>, unit: &Unit, id: &InstanceId, wanted: Condition) -> Standing {
    let wants = view.wants(id);
    let is_moving = wants && !super::rests_until_due(view, id);
    let idle = if is_moving { Standing::Pending } else { Standing::Stuck };
    let Some(instance) = view.observed.get(id) else { return idle };
    // That another unit's end is to start it again is no more than a restart that is to come.
    let serves = instance.epoch == unit.epoch_of(id) || unit.automatic(id).is_some();
    let current = serves && (instance.hash == unit.hash || !wants || unit.spec.kind == Kind::Task);
    let completes = must_complete(unit, wanted);
    if current && has_completed(view, unit, id, instance) {
        return Standing::Met;
    }
    match &instance.phase {
        Phase::Done if completes => {
            // A task whose definition changed has yet to run as it is now; until it is due nothing is under
            // way.
            if (current && instance.hash == unit.hash) || !wants { Standing::Met } else { idle }
        }
        // One that waits for its turn to restart serves meanwhile.
        Phase::Up if !current && unit.rolling.is_none() => Standing::Pending,
        Phase::Up => match wanted {
            Condition::Started => Standing::Met,
            Condition::Ready if !completes => Standing::Met,
            Condition::Ready | Condition::Completed => Standing::Pending,
        },
        Phase::Starting => {
            let started = instance.run.as_ref().is_some_and(is_started);
            if started && wanted == Condition::Started { Standing::Met } else { Standing::Pending }
        }
        // Whoever connects is served: it may as well be who needs it.
        phase if wanted != Condition::Completed && lazy::can_be_called(view, id, phase) => {
            Standing::Met
        }
        Phase::Waiting { on, .. } if on.iter().any(|blocker| blocker.stuck) => Standing::Stuck,
        Phase::Stopping { .. } | Phase::Down | Phase::Waiting { .. } => idle,
        Phase::Failed { .. } | Phase::Skipped { .. } | Phase::Done if !current => idle,
        Phase::Backoff { .. }
        | Phase::Failed { .. }
        | Phase::Done
        | Phase::Skipped { .. }
        | Phase::Unproven { .. } => Standing::Stuck,
    }
}

/// Whether a task with a schedule has completed, and goes on running when it is due: whatever its
/// next run is at.
fn has_completed(view: &View<'_>, unit: &Unit, id: &InstanceId, instance: &Instance) -> bool {
    let goes = matches!(&instance.phase, Phase::Stopping { cause, .. } if cause.spreads());
    unit.spec.schedule.is_some()
        && !goes
        && view.wants(id)
        && instance.last.as_ref().is_some_and(|end| restart::is_success(&unit.spec, end))
}

/// Whether what is needed of this unit is a success that ends: a task is ready when it has completed.
fn must_complete(unit: &Unit, wanted: Condition) -> bool {
    wanted == Condition::Completed || unit.spec.kind == Kind::Task
}

fn is_started(run: &Run) -> bool {
    run.main.as_ref().is_some_and(|main| matches!(main.state, Life::Running(_)))
}

/// The required unit because of which a running instance must go, if there is one.
pub(super) fn lost(view: &View<'_>, unit: &UnitName) -> Option<UnitName> {
    let needs = view.graph.node(unit)?.needs.iter();
    needs
        .filter(|need| need.strength == Strength::Requires)
        .find(|need| is_lost(view, need))
        .map(|need| need.unit.clone())
}

/// Whether no instance of a required unit is what it has to be, or on its way there.
pub(super) fn is_lost(view: &View<'_>, need: &Need) -> bool {
    let Some(unit) = view.desired.units.get(&need.unit) else { return true };
    let completes = must_complete(unit, need.condition);
    view.instances(&need.unit).iter().all(|id| {
        let Some(instance) = view.observed.get(id) else { return !view.wants(id) };
        if has_completed(view, unit, id, instance) {
            return false;
        }
        match &instance.phase {
            Phase::Failed { .. } | Phase::Skipped { .. } => {
                let is_anew = instance.epoch != unit.epoch_of(id) && unit.automatic(id).is_none();
                !is_anew || !view.wants(id)
            }
            Phase::Stopping { cause, .. } => cause.spreads() || !view.wants(id),
            Phase::Done => !completes && !lazy::is_lazy(view, &need.unit),
            Phase::Down
            | Phase::Waiting { .. }
            | Phase::Backoff { .. }
            | Phase::Unproven { .. } => !view.wants(id),
            Phase::Starting | Phase::Up => false,
        }
    })
}

/// A required unit that came up again after `since`. A task that has completed and runs once more
/// was not away.
pub(super) fn recovered_since(
    view: &View<'_>,
    unit: &UnitName,
    since: crate::model::Monotonic,
) -> Option<UnitName> {
    let needs = view.graph.node(unit)?.needs.iter();
    needs
        .filter(|need| need.strength == Strength::Requires)
        .filter(|need| {
            let unit = view.desired.units.get(&need.unit);
            unit.is_some_and(|unit| !must_complete(unit, need.condition))
        })
        // One that a connection starts has not restarted.
        .filter(|need| !lazy::is_lazy(view, &need.unit))
        .find(|need| {
            let came = |instance: &Instance| {
                let run = instance.run.as_ref().filter(|_| instance.phase == Phase::Up)?;
                match need.condition {
                    // Who waits for no more than its start begins before it is ready.
                    Condition::Started => Some(run.began),
                    Condition::Ready | Condition::Completed => run.ready,
                }
            };
            let all = || view.observed.of_unit(&need.unit).map(|(_, instance)| instance);
            let stayed = || all().any(|instance| came(instance).is_some_and(|at| at <= since));
            // One more beside those that were there all the time is nothing that came back.
            let is_back = |instance: &Instance| instance.last.is_some() || !stayed();
            all().any(|instance| came(instance).is_some_and(|at| at > since) && is_back(instance))
        })
        .map(|need| need.unit.clone())
}

/// Whether units that need this one are still to go down before it may.
pub(super) fn dependents_are_up(view: &View<'_>, id: &InstanceId, cause: &StopCause) -> bool {
    let Some(node) = view.graph.node(&id.unit) else { return false };
    // While other instances stay, those who need the unit need not go.
    let unit_leaves = view.observed.of_unit(&id.unit).all(|(other, instance)| {
        match (&instance.phase, &instance.run) {
            // One that ended by itself comes back only where it is wanted.
            (Phase::Stopping { cause, .. }, Some(_)) => cause.spreads() || !view.wants(other),
            // Nobody knows whether it is there.
            (Phase::Unproven { .. }, _) => true,
            (_, run) => run.is_none(),
        }
    });
    cause.spreads()
        && unit_leaves
        // The last ones first: in the order of their names the first ones are gone already.
        && node.dependents.iter().rev().any(|dependent| {
            // Where it stays, as other instances are what it needs, nobody may wait for it to go.
            let follows = || {
                let need = dependent.from_other_end(&id.unit);
                need.strength == Strength::Requires && is_lost(view, &need)
            };
            view.observed.of_unit(&dependent.unit).any(|(_, instance)| match instance.phase {
                Phase::Stopping { .. } => true,
                // Nobody knows whether it is there, and nothing will stop it.
                Phase::Unproven { .. } => false,
                Phase::Down
                | Phase::Waiting { .. }
                | Phase::Starting
                | Phase::Up
                | Phase::Backoff { .. }
                | Phase::Failed { .. }
                | Phase::Done
                | Phase::Skipped { .. } => instance.run.is_some() && follows(),
            })
        })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{
        Agenda, Desired, Entry, Graph, Observed, Overlap, Schedule, Span, Spec, Wall, When,
    };

    #[test]
    fn a_task_that_became_another_one_and_rests_until_it_is_due_is_not_under_way() {
        let when = When::Every(Span::seconds(3_600));
        let (jitter, overlap) = (Span::ZERO, Overlap::Skip);
        let schedule = Schedule { when, timezone: None, jitter, catch_up: false, overlap };
        let mut spec = Spec::new(Kind::Task, UnitName::parse("job").unwrap());
        let (id, hash) = (InstanceId::single(&spec.name), schedule.hash());
        spec.schedule = Some(Box::new(schedule));
        let need = Need {
            unit: spec.name.clone(),
            condition: Condition::Ready,
            strength: Strength::Requires,
        };
        let units = [(spec.name.clone(), Unit::new(Arc::new(spec), "-"))].into();
        let desired = Desired { generation: 1, units, ..Desired::default() };
        let (mut observed, mut agenda) = (Observed::default(), Agenda::default());
        observed.insert(id.clone(), Instance { phase: Phase::Done, ..Instance::default() });
        let next = crate::model::Due { time: Wall(9_000_000), at: Wall(9_000_000) };
        let entry = Entry {
            schedule: hash,
            last: Wall(0),
            run: None,
            ran: None,
            epoch: 0,
            queued: false,
            next: Some(next),
        };
        agenda.insert(id, entry);
        let graph = Graph::build(&desired);
        let standing_at = |wall| {
            let (observed, agenda) = (&observed, &agenda);
            let view =
                View { desired: &desired, graph: &graph, observed, shutdown: None, agenda, wall };
            standing(&view, &need)
        };
        assert_eq!(standing_at(Wall(1_000_000)), Standing::Stuck);
        assert_eq!(standing_at(Wall(9_000_000)), Standing::Pending);
    }

    #[test]
    fn who_only_wants_a_unit_waits_for_one_start_in_vain_and_not_for_the_next() {
        let spec = Spec::new(Kind::Service, UnitName::parse("db").unwrap());
        let id = InstanceId::single(&spec.name);
        let units = [(spec.name.clone(), Unit::new(Arc::new(spec), "-"))].into();
        let desired = Desired { generation: 1, units, ..Desired::default() };
        let graph = Graph::build(&desired);
        for (strength, in_vain, waits) in [
            (Strength::Wants, 1, true),
            (Strength::Wants, 2, false),
            (Strength::After, 2, false),
            (Strength::Requires, 2, true),
        ] {
            let mut observed = Observed::default();
            let instance = Instance { phase: Phase::Starting, in_vain, ..Instance::default() };
            observed.insert(id.clone(), instance);
            let (agenda, wall) = (&Agenda::default(), Wall::default());
            let view = View {
                desired: &desired,
                graph: &graph,
                observed: &observed,
                shutdown: None,
                agenda,
                wall,
            };
            let need = Need { unit: id.unit.clone(), condition: Condition::Ready, strength };
            assert_eq!(blocker(&view, &need).is_some(), waits, "{strength:?} {in_vain}");
        }
    }
}
