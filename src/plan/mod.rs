//! What is due. [`decide`] looks at what is wanted and what is known of one instance, and says what
//! to do about it and when to look again.
//!
//! It has no memory of its own and reads no clock: level-triggered, so that lost, doubled or late
//! events may delay it and never mislead it. Each decision looks at an instance, its unit, and its
//! unit's neighbours in the graph (with a lazy service, at its sockets too), and at nothing farther
//! away: a wish to stop spreads as facts
//! (`Phase::Stopping` with [`Rung::Dependents`]) from neighbour to neighbour, before anything is
//! signalled.

mod basis;
mod budget;
mod capacity;
mod changes;
mod concern;
mod downtime;
mod ends;
mod fields;
mod lazy;
mod order;
mod outlook;
mod probe;
mod restart;
mod ripple;
mod roll;
mod schedule;
mod start;
mod stop;
mod watchdog;
mod why;

pub use basis::Basis;
pub use budget::{Chain, budget_warning, longest_stop};
pub use capacity::Capacity;
pub use changes::{Change, Class, Effect, FieldChange, Plan, plan};
pub use concern::{BLOCKERS_MAX, concerns};
pub use ends::{code_of_what_ends, ends_opm};
pub use fields::{conceal, fields_of};
pub use lazy::{is_lazy, waits_at};
pub use order::{Standing, blockers, standing};
pub use outlook::{Outlook, Outlooks, awaits_held, is_settled};
pub use probe::{failures, is_unhealthy};
pub use restart::{goes_on_by_policy, has_done, verdict, was_stable};
pub use roll::{Turn, is_outdated, turn};
pub use schedule::{MISSED_AFTER, rests_until_due};
pub use start::reload_action;
pub use stop::stop_time;
pub use why::{few, held_up, unwell, waited_for, why};

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{
    Action, Agenda, Desired, Gather, Graph, Instance, InstanceId, Monotonic, Observed, Phase,
    Reason, Rung, Span, Spec, Step, StopStage, Unit, UnitName, Wall,
};

/// Everything a decision may look at.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// What is wanted.
    pub desired: &'a Desired,
    /// How the units of `desired` hang together.
    pub graph: &'a Graph,
    /// What is known.
    pub observed: &'a Observed,
    /// Set while opm is shutting down.
    pub shutdown: Option<&'a Shutdown>,
    /// When instances with a schedule are due.
    pub agenda: &'a Agenda,
    /// The wall clock, for those.
    pub wall: Wall,
}

/// How long a shutdown waits for those that it has killed.
const GIVES_UP_AFTER: Span = Span::seconds(2);

/// opm is going down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shutdown {
    /// Since when.
    pub began: Monotonic,
    /// When everything must be gone; `None`: when each unit's own time is over.
    pub deadline: Option<Monotonic>,
    /// What of that time is for those that are spared.
    pub reserve: Span,
    /// The stages from each unit's on, as it was when it began: only what runs takes one.
    pub stages: BTreeMap<UnitName, StopStage>,
    /// How much patience is left.
    pub hurry: Hurry,
    /// Since when everything is to be killed.
    pub kills_since: Option<Monotonic>,
    /// Whether anybody has asked for it: opm also goes down by itself, and to ask for that is not to
    /// ask again.
    pub is_asked: bool,
    /// The exit code that opm will have.
    pub code: u8,
    /// Why, in words.
    pub why: String,
    /// Units that stay up until everything else is gone.
    pub spared: BTreeSet<UnitName>,
}

impl Shutdown {
    /// When all that is stopped now must be gone.
    pub(crate) fn end(&self) -> Option<Monotonic> {
        let reserve = if self.spared.is_empty() { Span::ZERO } else { self.reserve };
        self.deadline.map(|deadline| self.began.after(deadline.since(self.began).less(reserve)))
    }

    /// When opm ends although somebody lives still: what was killed by then and is not gone nobody can end.
    pub(crate) fn gives_up(&self) -> Option<Monotonic> {
        let killed = self.deadline.into_iter().chain(self.kills_since).min();
        killed.map(|killed| killed.after(GIVES_UP_AFTER))
    }
}

/// How much patience a shutdown has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hurry {
    /// Dependents first, each in its own time.
    Ordered,
    /// Everything at once, each in its own time.
    Unordered,
    /// Everything is killed.
    Kill,
}

/// What is due for one instance.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Due {
    /// What to do now; usually one step or none.
    pub steps: Vec<Step>,
    /// When to look again if nothing happens before.
    pub wake: Option<Monotonic>,
    /// The same by the wall clock.
    pub alarm: Option<Wall>,
}

impl Due {
    const NOTHING: Self = Self { steps: Vec::new(), wake: None, alarm: None };

    fn step(id: &InstanceId, action: Action, reason: Reason) -> Self {
        Self { steps: vec![Step { instance: id.clone(), action, reason }], ..Self::NOTHING }
    }

    fn at(wake: Monotonic) -> Self {
        Self { wake: Some(wake), ..Self::NOTHING }
    }
}

impl<'a> View<'a> {
    /// The unit of an instance.
    pub fn unit(&self, id: &InstanceId) -> Option<&'a Unit> {
        self.desired.units.get(&id.unit)
    }

    /// Whether an instance is to be up.
    pub fn wants(&self, id: &InstanceId) -> bool {
        self.shutdown.is_none_or(|shutdown| shutdown.spared.contains(&id.unit))
            && self.graph.is_wanted(&id.unit)
            && self.unit(id).is_some_and(|unit| {
                !unit.removed && unit.hold_of(id).is_none() && unit.spec.has_instance(id)
            })
    }

    /// All instances of a unit that are wanted or known.
    pub fn instances(&self, unit: &UnitName) -> Vec<InstanceId> {
        let mut ids: BTreeSet<InstanceId> =
            self.observed.of_unit(unit).map(|(id, _)| id.clone()).gather();
        if let Some(unit) = self.desired.units.get(unit).filter(|unit| !unit.removed) {
            ids.extend(unit.spec.instance_ids());
        }
        ids.into_iter().collect()
    }

    /// Whether stops run their hooks: who leaves the order out leaves each unit its own stop.
    fn runs_hooks(&self) -> bool {
        self.hurry() < Hurry::Kill
    }

    /// The patience of the shutdown, if there is one.
    fn hurry(&self) -> Hurry {
        self.shutdown.map_or(Hurry::Ordered, |shutdown| shutdown.hurry)
    }
}

/// What is due for one instance now.
pub fn decide(view: &View<'_>, id: &InstanceId, now: Monotonic) -> Due {
    let blank = Instance::default();
    let instance = view.observed.get(id).unwrap_or(&blank);
    match (&instance.phase, &instance.run) {
        (Phase::Unproven { .. }, _) => Due::NOTHING,
        (Phase::Stopping { cause, rung, rung_since, own_since }, Some(run)) => {
            let (rung, since, own_since) = (*rung, *rung_since, *own_since);
            stop::Stopping { id, instance, run, cause, rung, since, own_since, now }.decide(view)
        }
        (_, Some(run)) => start::running(view, id, instance, run, now),
        (_, None) => idle(view, id, instance, now),
    }
}

/// What is due for all instances: what an incremental pass must agree with.
pub fn reconcile(view: &View<'_>, now: Monotonic) -> Due {
    let mut all = Due::default();
    let known = view.observed.iter().map(|(id, _)| id.clone());
    let wanted = view.desired.units.values().flat_map(|unit| unit.spec.instance_ids());
    let ids: BTreeSet<InstanceId> = known.chain(wanted).gather();
    for id in ids {
        let due = decide(view, &id, now);
        all.steps.extend(due.steps);
        all.wake = [all.wake, due.wake].into_iter().flatten().min();
        all.alarm = [all.alarm, due.alarm].into_iter().flatten().min();
    }
    all
}

/// What is due for an instance without a run.
fn idle(view: &View<'_>, id: &InstanceId, instance: &Instance, now: Monotonic) -> Due {
    let known = view.observed.get(id).is_some();
    let Some(unit) = view.unit(id) else { return Due::NOTHING };
    let spec = &unit.spec;
    if unit.removed || !spec.has_instance(id) {
        return if known { Due::step(id, Action::Forget, Reason::Removed) } else { Due::NOTHING };
    }
    if let Some(code) = ends::code_of_end(view, unit, id, instance) {
        let outcome = instance.last.as_ref().and_then(|end| end.outcome.clone());
        return Due::step(id, Action::Shutdown(code), Reason::Ended(outcome));
    }
    if !view.wants(id) {
        let settles = match instance.phase {
            Phase::Waiting { .. } | Phase::Backoff { .. } => true,
            Phase::Failed { .. } | Phase::Skipped { .. } => view.shutdown.is_none(),
            Phase::Down
            | Phase::Starting
            | Phase::Up
            | Phase::Stopping { .. }
            | Phase::Done
            | Phase::Unproven { .. } => false,
        };
        if settles {
            let down = crate::model::Verdict::Down;
            return Due::step(id, Action::Settle(down), Reason::GoalDown);
        }
        return Due::NOTHING;
    }
    match &spec.schedule {
        Some(schedule) => schedule::idle(view, unit, schedule, id, instance, now),
        None => restart::after(view, unit, id, instance, now).due(view, id, instance),
    }
}

/// Begin, or wait for what is in the way.
fn begin(
    view: &View<'_>,
    id: &InstanceId,
    instance: &Instance,
    fresh: bool,
    reason: Reason,
) -> Due {
    let known = if let Phase::Waiting { on, .. } = &instance.phase { on.as_slice() } else { &[] };
    let mut on = concern::noted(blockers(view, &id.unit), known);
    if on.is_empty() {
        on.extend(order::former_instance(view, id, instance));
    }
    if on.is_empty() {
        // All of them are listened for.
        on = lazy::callers(view, id, instance, fresh);
    }
    if on.is_empty() {
        return Due::step(id, Action::Begin { fresh }, reason);
    }
    if on == known {
        return Due::NOTHING;
    }
    Due::step(id, Action::Wait { on, fresh }, Reason::Blocked)
}

/// The first rung above `Dependents` at which a stop of this spec acts.
fn first_stop_rung(spec: &Spec, with_hooks: bool) -> Rung {
    if with_hooks && !spec.hooks.pre_stop.is_empty() {
        Rung::PreStop(0)
    } else if spec.stop.steps.is_empty() {
        Rung::Kill
    } else {
        Rung::Step(0)
    }
}

/// The time that a helper beside the stop steps may take.
fn helper_time(spec: &Spec) -> Span {
    spec.stop.steps.first().map_or(Span::seconds(10), |step| step.wait)
}
