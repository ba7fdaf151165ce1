//! When a task with a schedule begins: at its due times, and when it is asked for.

use super::{Due, View, begin, restart};
use crate::model::{
    Action, Entry, Instance, InstanceId, Monotonic, Overlap, Phase, Reason, Run, Schedule, Span,
    StopCause, Unit, UnitName, Wall,
};

/// A run that would begin so much after its time was missed: opm or the machine was not there.
pub const MISSED_AFTER: Span = Span::seconds(60);

/// What an instance's schedule calls for.
enum Call {
    /// Its times are not known yet.
    Enrol,
    /// Nothing before this time.
    Rest(Option<Wall>),
    /// A run.
    Run(Reason),
    /// To pass over a due time.
    Pass(Reason),
}

fn call(view: &View<'_>, unit: &Unit, id: &InstanceId, schedule: &Schedule) -> Call {
    let Some(entry) = entry(view, id, schedule) else { return Call::Enrol };
    if entry.epoch != unit.epoch_of(id) {
        return Call::Run(Reason::Asked);
    }
    if entry.queued {
        return Call::Run(Reason::Due);
    }
    if let Some(needed) = cut_short_by(view, id) {
        return Call::Run(Reason::Recovered(needed.clone()));
    }
    match entry.next {
        Some(due) if view.wall < due.at => Call::Rest(Some(due.at)),
        Some(due) if view.wall.since(due.at) <= MISSED_AFTER => Call::Run(Reason::Due),
        Some(_) if schedule.catch_up => Call::Run(Reason::Missed),
        Some(_) => Call::Pass(Reason::Missed),
        None => Call::Rest(None),
    }
}

/// The unit because of which an instance's last run could not go on: its work is still to be done.
fn cut_short_by<'a>(view: &View<'a>, id: &InstanceId) -> Option<&'a UnitName> {
    let instance = view.observed.get(id)?;
    match (&instance.phase, &instance.last.as_ref()?.cause) {
        (Phase::Down | Phase::Waiting { .. }, StopCause::Dependency(needed)) => Some(needed),
        _ => None,
    }
}

/// What is known of an instance's due times by this schedule.
fn entry<'a>(view: &View<'a>, id: &InstanceId, schedule: &Schedule) -> Option<&'a Entry> {
    view.agenda.get(id).filter(|entry| entry.schedule == schedule.hash())
}

/// What is due for a wanted instance without a run.
pub(super) fn idle(
    view: &View<'_>,
    unit: &Unit,
    schedule: &Schedule,
    id: &InstanceId,
    instance: &Instance,
    now: Monotonic,
) -> Due {
    let (anew, alarm) = match call(view, unit, id, schedule) {
        Call::Enrol => return Due::step(id, Action::Enrol, Reason::Wanted),
        Call::Run(reason) => (Some(reason), None),
        // What waits for other units is late for that reason, and still to run.
        Call::Pass(reason) if matches!(instance.phase, Phase::Waiting { .. }) => {
            (Some(reason), None)
        }
        Call::Pass(reason) => return Due::step(id, Action::PassOver, reason),
        Call::Rest(alarm) => (None, alarm),
    };
    let due = match (anew, &instance.phase) {
        (Some(Reason::Asked), _) if unit.automatic(id).is_some() && instance.last.is_some() => {
            let next = restart::after_another(unit, id, instance, now);
            next.map_or(Due::NOTHING, |next| next.due(view, id, instance))
        }
        (_, Phase::Waiting { fresh, .. }) => begin(view, id, instance, *fresh, Reason::Next),
        (Some(reason), _) => begin(view, id, instance, true, reason),
        // A run that failed may be tried again before the next due time.
        (None, Phase::Backoff { .. }) => {
            restart::after(view, unit, id, instance, now).due(view, id, instance)
        }
        (None, _) => Due::NOTHING,
    };
    Due { alarm, ..due }
}

/// What is due because the next due time comes while a run goes on.
pub(super) fn running(
    view: &View<'_>,
    unit: &Unit,
    schedule: &Schedule,
    id: &InstanceId,
    run: &Run,
) -> Due {
    let Some(entry) = entry(view, id, schedule) else {
        return Due::step(id, Action::Enrol, Reason::Wanted);
    };
    if entry.queued && schedule.overlap == Overlap::Kill && entry.epoch == unit.epoch_of(id) {
        let reason = Reason::Stop(StopCause::Due);
        return Due::step(id, Action::StopBegin(run.id, StopCause::Due), reason);
    }
    match entry.next {
        Some(due) if view.wall < due.at => Due { alarm: Some(due.at), ..Due::NOTHING },
        Some(_) => match schedule.overlap {
            Overlap::Skip => Due::step(id, Action::PassOver, Reason::StillRuns),
            Overlap::Queue | Overlap::Kill => Due::step(id, Action::Queue, Reason::StillRuns),
        },
        None => Due::NOTHING,
    }
}

/// Whether an instance is without a run until its next due time: nothing is under way.
pub fn rests_until_due(view: &View<'_>, id: &InstanceId) -> bool {
    let Some(unit) = view.unit(id) else { return false };
    let Some(schedule) = unit.spec.schedule.as_ref() else { return false };
    let rests = match view.observed.get(id).map(|instance| &instance.phase) {
        None | Some(Phase::Down | Phase::Failed { .. } | Phase::Done | Phase::Skipped { .. }) => {
            true
        }
        Some(
            Phase::Waiting { .. }
            | Phase::Starting
            | Phase::Up
            | Phase::Stopping { .. }
            | Phase::Backoff { .. }
            | Phase::Unproven { .. },
        ) => false,
    };
    rests && matches!(call(view, unit, id, schedule), Call::Rest(_))
}
