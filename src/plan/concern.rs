//! Who looks again when something happened to a unit that it needs: of those that need thousands only who
//! can see a difference. Decisions do not depend on it; that nothing is passed over is held by
//! `tests/reconcile.rs` and `tests/sim/hubs.rs`.

use super::View;
use super::order::{blocker, is_lost};
use crate::model::{
    Blocker, InstanceId, Need, OnDependencyRestart, Phase, Strength, UnitName, Until,
};

/// Most blockers that an instance is noted to wait for. Where there are more, these stand for all until
/// none of them is left: who waits for thousands does not look at all of them whenever one is there.
pub const BLOCKERS_MAX: usize = 16;

/// What an instance that waits is noted to wait for, of everything in its way; `known`: what it was
/// noted to wait for before.
pub(super) fn noted(mut all: Vec<Blocker>, known: &[Blocker]) -> Vec<Blocker> {
    let is_stuck = |blocker: &Blocker| blocker.stuck;
    // It stands for more; one of it blocks still; who was stuck is so; and if nobody was, nobody is.
    let stands = known.len() >= BLOCKERS_MAX
        && known.iter().any(|blocker| all.contains(blocker))
        && known.iter().filter(|blocker| blocker.stuck).all(|blocker| all.contains(blocker))
        && all.iter().any(is_stuck) == known.iter().any(is_stuck);
    if stands {
        return known.to_vec();
    }
    let Some(more) = all.len().checked_sub(BLOCKERS_MAX).filter(|more| *more > 0) else {
        return all;
    };
    // Who is stuck decides what others think of it. Of the rest the last ones, as units start in the
    // order of their names.
    all.sort_by_key(is_stuck);
    all.drain(..more);
    all.sort_by(|a, b| a.unit.cmp(&b.unit));
    all
}

/// Whether what happened to a unit can make a difference to an instance that needs it. False: where
/// nothing was due for that instance before, nothing is now. What each of thousands does is no news to
/// who needs them all.
///
/// `need`: the need of the unit, as [`Node::dependents`](crate::model::Node) has it. Conflicts, sockets
/// and times are not looked at here.
pub fn concerns(view: &View<'_>, id: &InstanceId, needed: &UnitName, need: &Need) -> bool {
    let (Some(instance), Some(unit)) = (view.observed.get(id), view.unit(id)) else { return true };
    let need = need.from_other_end(needed);
    match &instance.phase {
        // What it is noted to wait for stands while one of that is in its way, and nobody else is stuck.
        Phase::Waiting { on, .. } if on.len() >= BLOCKERS_MAX => {
            let mut stuck = on.iter().filter(|noted| noted.stuck).peekable();
            if stuck.peek().is_some() {
                return stuck
                    .any(|noted| noted.unit == *needed || !matches!(noted.until, Until::Is(_)));
            }
            let is_stuck = blocker(view, &need).is_some_and(|blocker| blocker.stuck);
            let mut others = on.iter().rev().filter(|noted| noted.unit != *needed);
            is_stuck || !others.any(|noted| still_blocks(view, noted))
        }
        // A run goes on while what it requires does, unless it follows restarts.
        Phase::Starting | Phase::Up => {
            unit.spec.relations.on_dependency_restart != OnDependencyRestart::Ignore
                || view.graph.node(&id.unit).is_none_or(|node| !node.sockets.is_empty())
                || (need.strength == Strength::Requires && is_lost(view, &need))
        }
        Phase::Down
        | Phase::Waiting { .. }
        | Phase::Stopping { .. }
        | Phase::Backoff { .. }
        | Phase::Failed { .. }
        | Phase::Done
        | Phase::Skipped { .. }
        | Phase::Unproven { .. } => true,
    }
}

/// Whether one that was not stuck is in the way as it was, however strong the need is.
fn still_blocks(view: &View<'_>, noted: &Blocker) -> bool {
    let Until::Is(condition) = noted.until else { return false };
    let need = Need { unit: noted.unit.clone(), condition, strength: Strength::After };
    blocker(view, &need).is_some()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{
        Agenda, Condition, Dependency, Desired, Graph, Instance, Kind, Monotonic, Observed, Spec,
        Unit, Wall,
    };

    /// A target that requires these, and what is known of all.
    struct Hub {
        desired: Desired,
        observed: Observed,
    }

    impl Hub {
        fn new(members: usize) -> Self {
            let mut target = Spec::new(Kind::Target, UnitName::parse("hub").unwrap());
            let names = (0..members).map(|n| UnitName::parse(&format!("u{n:02}")).unwrap());
            let specs: Vec<Spec> = names.map(|name| Spec::new(Kind::Service, name)).collect();
            let need =
                |spec: &Spec| Dependency { unit: spec.name.clone(), condition: Condition::Ready };
            target.relations.requires = specs.iter().map(need).collect();
            let all = specs.into_iter().chain([target]);
            let units = all.map(|spec| (spec.name.clone(), Unit::new(Arc::new(spec), "-")));
            let desired = Desired { generation: 1, units: units.collect(), ..Desired::default() };
            Self { desired, observed: Observed::default() }
        }

        fn set(&mut self, unit: &str, phase: Phase) {
            let id = InstanceId::parse(unit).unwrap();
            let hash = self.desired.units[&id.unit].hash;
            self.observed.insert(id, Instance { phase, hash, ..Instance::default() });
        }

        fn is_concerned_by(&self, unit: &str) -> bool {
            let graph = Graph::build(&self.desired);
            let (agenda, wall) = (&Agenda::default(), Wall::default());
            let (desired, observed) = (&self.desired, &self.observed);
            let view = View { desired, graph: &graph, observed, shutdown: None, agenda, wall };
            let unit = UnitName::parse(unit).unwrap();
            let need = &graph.node(&unit).unwrap().dependents[0];
            concerns(&view, &InstanceId::single(&need.unit), &unit, need)
        }
    }

    #[test]
    fn who_runs_is_concerned_where_what_it_requires_is_lost() {
        let mut hub = Hub::new(3);
        hub.set("hub", Phase::Up);
        for (phase, concerned) in [
            (Phase::Starting, false),
            (Phase::Up, false),
            (Phase::Backoff { until: Monotonic::default() }, false),
            (Phase::Failed { at_limit: true }, true),
            (Phase::Done, true),
        ] {
            hub.set("u01", phase.clone());
            assert_eq!(hub.is_concerned_by("u01"), concerned, "{phase:?}");
        }
        hub.set("u01", Phase::Up);
        let target = hub.desired.units.get_mut(&UnitName::parse("hub").unwrap()).unwrap();
        let relations = &mut Arc::make_mut(&mut target.spec).relations;
        relations.on_dependency_restart = OnDependencyRestart::Restart;
        assert!(hub.is_concerned_by("u01"), "it follows restarts");
    }

    #[test]
    fn who_waits_for_many_is_concerned_by_the_last_that_it_noted_and_by_who_is_stuck() {
        let mut hub = Hub::new(40);
        let on = noted(blockers(0..40, &[]), &[]);
        hub.set("hub", Phase::Waiting { on, fresh: true });
        for n in 0..40 {
            hub.set(&format!("u{n:02}"), Phase::Starting);
        }
        hub.set("u03", Phase::Up);
        assert!(!hub.is_concerned_by("u03"), "there are others");
        for n in 24..39 {
            hub.set(&format!("u{n}"), Phase::Up);
            assert!(!hub.is_concerned_by(&format!("u{n}")), "u39 stands for all");
        }
        hub.set("u04", Phase::Failed { at_limit: true });
        assert!(hub.is_concerned_by("u04"), "it is stuck");
        hub.set("u39", Phase::Up);
        assert!(hub.is_concerned_by("u39"), "nothing that it noted is left");
    }

    #[test]
    fn who_waits_for_one_that_is_stuck_is_concerned_by_that_one() {
        let mut hub = Hub::new(40);
        let on = noted(blockers(0..40, &[5]), &[]);
        hub.set("hub", Phase::Waiting { on, fresh: true });
        for unit in ["u05", "u06", "u39"] {
            hub.set(unit, Phase::Failed { at_limit: true });
            assert_eq!(hub.is_concerned_by(unit), unit == "u05", "{unit}");
        }
    }

    fn blockers(numbers: impl IntoIterator<Item = usize>, stuck: &[usize]) -> Vec<Blocker> {
        let blocker = |n| Blocker {
            unit: UnitName::parse(&format!("u{n:02}")).unwrap(),
            until: Until::Is(Condition::Ready),
            stuck: stuck.contains(&n),
        };
        numbers.into_iter().map(blocker).collect()
    }

    #[test]
    fn a_few_blockers_are_noted_as_they_are() {
        let all = blockers(1..=BLOCKERS_MAX, &[]);
        assert_eq!(noted(all.clone(), &[]), all);
        let fewer = blockers(2..BLOCKERS_MAX, &[]);
        assert_eq!(noted(fewer.clone(), &blockers(1..BLOCKERS_MAX, &[])), fewer);
    }

    #[test]
    fn of_many_blockers_some_stand_for_all_until_none_of_them_is_left() {
        let known = noted(blockers(0..40, &[]), &[]);
        assert_eq!(known, blockers(24..40, &[]));
        for left in [0..40, 10..40, 39..60, 39..40] {
            assert_eq!(noted(blockers(left, &[]), &known), known);
        }
        assert_eq!(noted(blockers(0..24, &[]), &known), blockers(8..24, &[]));
        assert_eq!(noted(blockers(0..3, &[]), &known), blockers(0..3, &[]));
        assert_eq!(noted(Vec::new(), &known), []);
    }

    #[test]
    fn who_is_stuck_is_among_those_that_stand_for_all() {
        let known = noted(blockers(0..40, &[]), &[]);
        let with = noted(blockers(0..40, &[3]), &known);
        assert_eq!(with.iter().filter(|blocker| blocker.stuck).count(), 1);
        assert_eq!(with.len(), BLOCKERS_MAX);
        assert_eq!(noted(blockers(0..40, &[3, 5]), &with), with, "one of them is enough");
        assert_eq!(noted(blockers(0..40, &[]), &with), known, "and no longer than it is stuck");
        let moved = noted(blockers(0..40, &[5]), &with);
        assert!(moved.contains(&blockers([5], &[5])[0]) && !moved.contains(&with[0]));
    }
}
