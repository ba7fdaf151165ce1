//! Who looks again when something happens to an instance: those that wait for it, need it or are needed
//! by it, and only where they can see a difference.

use super::Supervisor;
use crate::model::{Instance, InstanceId, Life, Monotonic, Phase, Rung};
use crate::plan;
use crate::system::System;

impl<S: System> Supervisor<S> {
    pub(super) fn touch_neighbours(&mut self, id: &InstanceId) {
        let view = self.view();
        let node = self.graph.node(&id.unit);
        let dependents = node.into_iter().flat_map(|node| &node.dependents);
        // Few have thousands that need them change, and many need thousands: who needs the unit is asked.
        let concerned = dependents.flat_map(|need| {
            let all = view.instances(&need.unit).into_iter();
            all.filter(|other| plan::concerns(&view, other, &id.unit, need))
        });
        let mut touched: Vec<InstanceId> = concerned.collect();
        let needs = node.into_iter().flat_map(|node| &node.needs).map(|need| &need.unit);
        let conflicts = node.into_iter().flat_map(|node| &node.conflicts);
        // Whether a service can be called, which those that need it look at, is a matter of its
        // sockets.
        let socket = view.unit(id).and_then(|unit| unit.spec.socket.as_ref());
        let service = socket.into_iter().flat_map(|socket| self.graph.neighbours(&socket.service));
        let neighbours = needs.chain(conflicts).chain(service);
        touched.extend(neighbours.flat_map(|unit| view.instances(unit)));
        // Of its own unit only those look at others that wait for the unit's dependents to go, for their
        // turn, or for one to go that the unit does not ask for any more.
        let is_rolling = view.unit(id).is_some_and(|unit| unit.rolling.is_some());
        let siblings = self.observed.of_unit(&id.unit).filter(|(_, instance)| {
            is_rolling
                || match &instance.phase {
                    Phase::Stopping { rung, .. } => *rung == Rung::Dependents,
                    Phase::Waiting { on, .. } => on.iter().any(|blocker| blocker.unit == id.unit),
                    Phase::Down
                    | Phase::Starting
                    | Phase::Up
                    | Phase::Backoff { .. }
                    | Phase::Failed { .. }
                    | Phase::Done
                    | Phase::Skipped { .. }
                    | Phase::Unproven { .. } => false,
                }
        });
        touched.extend(siblings.map(|(id, _)| id.clone()));
        self.dirty.extend(touched);
    }
}

/// What neighbours can see of an instance.
#[derive(PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "a key to compare, not a state")]
pub(super) struct Visible {
    phase: std::mem::Discriminant<Phase>,
    pub(super) run: bool,
    /// Whether its run keeps a shutdown from its end: what cannot be proven does not.
    pub(super) is_open: bool,
    ready: bool,
    started: bool,
    stuck: bool,
    called: Option<Monotonic>,
    /// Whether nothing is missing but a connection.
    waits_for_callers: bool,
}

impl Visible {
    pub(super) fn of(instance: &Instance) -> Self {
        let run = instance.run.as_ref();
        let main = run.and_then(|run| run.main.as_ref());
        Self {
            phase: std::mem::discriminant(&instance.phase),
            run: run.is_some(),
            is_open: run.is_some() && !matches!(instance.phase, Phase::Unproven { .. }),
            ready: run.is_some_and(|run| run.ready.is_some()),
            started: main.is_some_and(|main| matches!(main.state, Life::Running(_))),
            stuck: matches!(&instance.phase, Phase::Waiting { on, .. }
                if on.iter().any(|blocker| blocker.stuck)),
            called: run.and_then(|run| run.called),
            waits_for_callers: plan::waits_at(instance).next().is_some(),
        }
    }
}
