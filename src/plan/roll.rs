//! A restart in turns: of a unit with several instances only so many are away at a time.
//!
//! There is no state of a roll but the instances themselves. Who is up as it was before goes when
//! its turn has come: when fewer than a batch of the others are away, in the order of their names.
//! So a roll goes on after a crash of opm where it was, and stops by itself where an instance does
//! not come up again: then the others stay as they were.

use super::View;
use crate::model::{Instance, InstanceId, Kind, Phase, Unit};

/// Whether an instance that is up and outdated may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It goes now.
    Now,
    /// Others come first.
    Later,
    /// Others do not come up again: it stays as it is.
    Halted,
}

/// Whether the run of an instance is another one than is wanted.
pub fn is_outdated(view: &View<'_>, id: &InstanceId) -> bool {
    let (unit, known) = (view.unit(id), view.observed.get(id));
    unit.zip(known).is_some_and(|(unit, instance)| is_other(unit, id, instance))
}

/// The same of a known instance: by its definition, or since a restart was asked for.
pub(super) fn is_other(unit: &Unit, id: &InstanceId, instance: &Instance) -> bool {
    // A task in progress is not altered by a new definition.
    let is_changed = instance.hash != unit.hash && unit.spec.kind != Kind::Task;
    is_changed || instance.epoch != unit.epoch_of(id)
}

/// Whether the turn of an outdated instance has come; nothing for one that is neither up nor
/// outdated, or whose unit restarts as one.
pub fn turn(view: &View<'_>, id: &InstanceId) -> Option<Turn> {
    let unit = view.unit(id)?;
    let batch = usize::try_from(unit.rolling?).unwrap_or(usize::MAX);
    let is_waiting = |id: &InstanceId| {
        let known = view.observed.get(id);
        view.wants(id) && known.is_some_and(|i| i.phase == Phase::Up && is_other(unit, id, i))
    };
    if !is_waiting(id) {
        return None;
    }
    // What has run to its end as it should is not missing.
    let is_there = |phase: Option<&Phase>| {
        let is_over = unit.spec.kind == Kind::Task && phase == Some(&Phase::Done);
        phase == Some(&Phase::Up) || is_over
    };
    let (mut away, mut moving, mut before) = (0usize, false, 0usize);
    for other in unit.spec.instance_ids().iter().filter(|other| view.wants(other)) {
        let phase = view.observed.get(other).map(|instance| &instance.phase);
        if !is_there(phase) {
            away = away.saturating_add(1);
            moving |= is_moving(phase);
        } else if other < id && is_waiting(other) {
            before = before.saturating_add(1);
        }
    }
    let is_now = away.saturating_add(before) < batch;
    Some(match (is_now, away < batch || moving) {
        (true, _) => Turn::Now,
        (false, true) => Turn::Later,
        (false, false) => Turn::Halted,
    })
}

/// Whether something will come of an instance that is away by itself, and soon.
fn is_moving(phase: Option<&Phase>) -> bool {
    match phase {
        None | Some(Phase::Down | Phase::Starting | Phase::Stopping { .. }) => true,
        Some(Phase::Waiting { on, .. }) => !on.iter().any(|blocker| blocker.stuck),
        Some(
            Phase::Up
            | Phase::Backoff { .. }
            | Phase::Failed { .. }
            | Phase::Done
            | Phase::Skipped { .. }
            | Phase::Unproven { .. },
        ) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{
        Agenda, Blocker, Condition, Desired, Event, Graph, Happening, Instances, Monotonic,
        Observed, RunId, Spec, UnitName, Until, Wall,
    };

    fn id(text: &str) -> InstanceId {
        InstanceId::parse(text).unwrap()
    }

    /// Four instances that are up, of a unit of which a restart is wanted.
    fn scene(rolling: Option<u32>) -> (Desired, Observed) {
        let mut spec = Spec::new(Kind::Service, UnitName::parse("web").unwrap());
        spec.instances = Instances::Count(4).into();
        let mut unit = Unit::new(Arc::new(spec), "-".to_owned());
        (unit.epoch, unit.rolling) = (1, rolling);
        let mut observed = Observed::default();
        for instance in unit.spec.instance_ids() {
            up(&mut observed, &instance, 0, unit.hash);
        }
        let mut desired = Desired::default();
        desired.units.insert(unit.spec.name.clone(), unit);
        (desired, observed)
    }

    fn up(
        observed: &mut Observed,
        instance: &InstanceId,
        epoch: u64,
        hash: crate::model::SpecHash,
    ) {
        let (run, wall) = (RunId(epoch), Wall(0));
        let began = Happening::Began { run, epoch, hash, wall, fresh: true, due: None };
        for what in [began, Happening::Ready { run }, Happening::Up { run }] {
            let event = Event { instance: instance.clone(), at: Monotonic::default(), what };
            assert!(observed.apply(&event));
        }
    }

    fn turns(desired: &Desired, observed: &Observed) -> Vec<Option<Turn>> {
        let (graph, agenda) = (Graph::build(desired), Agenda::default());
        let (shutdown, wall, agenda) = (None, Wall(0), &agenda);
        let view = View { desired, graph: &graph, observed, shutdown, agenda, wall };
        ["web@1", "web@2", "web@3", "web@4"].map(|name| turn(&view, &id(name))).to_vec()
    }

    fn put(observed: &mut Observed, name: &str, phase: Phase) {
        let mut instance = observed.get(&id(name)).unwrap().clone();
        (instance.phase, instance.epoch, instance.run) = (phase, 1, None);
        observed.insert(id(name), instance);
    }

    #[test]
    fn so_many_go_at_once_as_the_batch_says() {
        let later = Some(Turn::Later);
        for batch in 1..=5 {
            let (desired, observed) = scene(Some(batch));
            let now = turns(&desired, &observed).iter().filter(|t| **t == Some(Turn::Now)).count();
            assert_eq!(now, usize::try_from(batch.min(4)).unwrap());
        }
        let (desired, observed) = scene(Some(1));
        assert_eq!(turns(&desired, &observed), [Some(Turn::Now), later, later, later]);
        let (desired, observed) = scene(None);
        assert_eq!(turns(&desired, &observed), [None; 4], "they restart as one");
    }

    #[test]
    fn the_next_goes_when_the_one_before_is_up_and_none_while_it_is_away() {
        let (later, now) = (Some(Turn::Later), Some(Turn::Now));
        let (desired, mut observed) = scene(Some(1));
        for phase in [Phase::Down, Phase::Starting] {
            put(&mut observed, "web@1", phase);
            assert_eq!(turns(&desired, &observed), [None, later, later, later]);
        }
        put(&mut observed, "web@1", Phase::Up);
        assert_eq!(turns(&desired, &observed), [None, now, later, later]);
    }

    #[test]
    fn who_does_not_come_up_halts_the_others() {
        let halted = Some(Turn::Halted);
        let (desired, mut observed) = scene(Some(1));
        let blocker = Blocker {
            unit: UnitName::parse("db").unwrap(),
            until: Until::Is(Condition::Ready),
            stuck: true,
        };
        for phase in [
            Phase::Failed { at_limit: true },
            Phase::Backoff { until: Monotonic::default() },
            Phase::Waiting { on: vec![blocker], fresh: true },
        ] {
            put(&mut observed, "web@1", phase);
            assert_eq!(turns(&desired, &observed), [None, halted, halted, halted]);
        }
        // Another one that is up in time lets them go on.
        let (desired, mut observed) = scene(Some(2));
        put(&mut observed, "web@1", Phase::Failed { at_limit: true });
        let later = Some(Turn::Later);
        assert_eq!(turns(&desired, &observed), [None, Some(Turn::Now), later, later]);
    }

    #[test]
    fn a_task_that_is_done_lets_the_next_one_go() {
        let (mut desired, mut observed) = scene(Some(1));
        put(&mut observed, "web@1", Phase::Done);
        let (halted, later) = (Some(Turn::Halted), Some(Turn::Later));
        assert_eq!(turns(&desired, &observed), [None, halted, halted, halted], "a service is gone");
        let unit = desired.units.values_mut().next().unwrap();
        Arc::make_mut(&mut unit.spec).kind = Kind::Task;
        assert_eq!(turns(&desired, &observed), [None, Some(Turn::Now), later, later]);
    }

    #[test]
    fn who_is_held_is_not_waited_for() {
        let (mut desired, mut observed) = scene(Some(1));
        put(&mut observed, "web@1", Phase::Down);
        let unit = desired.units.values_mut().next().unwrap();
        let hold = crate::model::Hold {
            by: "me".to_owned(),
            reason: String::new(),
            at: Wall(0),
            until: None,
            until_boot: false,
        };
        unit.instances.entry(id("web@1")).or_default().hold = Some(Box::new(hold));
        let later = Some(Turn::Later);
        assert_eq!(turns(&desired, &observed), [None, Some(Turn::Now), later, later]);
    }
}
