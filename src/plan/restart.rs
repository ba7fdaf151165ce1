//! What follows from the end of a run: again, when, or not any more.

use super::{View, order};
use crate::model::{
    AtLimit, End, EndAction, Instance, InstanceId, Kind, Monotonic, Outcome, Phase, Ready, Reason,
    RestartPolicy, RunId, Span, Spec, StopCause, Unit, UnitName, Verdict,
};

/// The shortest wait after a start that failed for want of a process or descriptor.
const PASSING_DELAY: Span = Span::millis(100);

/// What an instance without a run does next.
pub(super) enum Next {
    /// Nothing, until then.
    Stay(Option<Monotonic>),
    /// Another phase without a run.
    Settle(Verdict, Reason),
    /// A new run.
    Begin { fresh: bool, reason: Reason },
}

/// What a wanted instance without a run does next.
pub(super) fn due(
    view: &View<'_>,
    unit: &Unit,
    id: &InstanceId,
    instance: &Instance,
    now: Monotonic,
) -> Next {
    let asked = instance.epoch != unit.epoch_of(id);
    let changed = instance.hash != unit.hash;
    let anew = match (asked, changed) {
        (true, _) => Some(Reason::Asked),
        (_, true) => Some(Reason::Changed),
        _ => None,
    };
    match &instance.phase {
        Phase::Down => {
            let reason = if instance.last.is_some() { anew } else { None };
            Next::Begin { fresh: true, reason: reason.unwrap_or(Reason::Wanted) }
        }
        Phase::Waiting { fresh, .. } => {
            // Counters begin anew too where it was asked for, or changed, while it waited.
            let fresh = *fresh || (instance.last.is_some() && anew.is_some());
            Next::Begin { fresh, reason: Reason::Next }
        }
        Phase::Backoff { until } => {
            if let Some(reason) = anew {
                return Next::Begin { fresh: true, reason };
            }
            if let Some(unit) = order::recovered_since(view, &id.unit, instance.since) {
                return Next::Begin { fresh: true, reason: Reason::Recovered(unit) };
            }
            let end = instance.last.as_ref().filter(|end| !is_passing(end));
            if let Some(verdict) = end.and_then(|end| final_verdict(unit, end)) {
                return Next::Settle(verdict, Reason::Changed);
            }
            if now >= *until {
                return Next::Begin { fresh: false, reason: Reason::BackoffOver };
            }
            Next::Stay(Some(*until))
        }
        Phase::Failed { .. } => {
            let recovered =
                || order::recovered_since(view, &id.unit, instance.since).map(Reason::Recovered);
            match anew.or_else(recovered) {
                Some(reason) => Next::Begin { fresh: true, reason },
                None => Next::Stay(None),
            }
        }
        Phase::Done | Phase::Skipped { .. } => match anew {
            Some(reason) => Next::Begin { fresh: true, reason },
            None => Next::Stay(None),
        },
        Phase::Starting | Phase::Up | Phase::Stopping { .. } | Phase::Unproven { .. } => {
            Next::Stay(None)
        }
    }
}

/// The exit code with which opm has to shut down because of how this instance ended for good.
pub(super) fn ends_opm(view: &View<'_>, spec: &Spec, instance: &Instance) -> Option<u8> {
    if view.shutdown.is_some() {
        return None;
    }
    let outcome = instance.last.as_ref().and_then(|end| end.outcome.as_ref());
    let code = outcome.map_or(1, Outcome::code);
    match &instance.phase {
        Phase::Failed { at_limit } => {
            let ends = spec.essential
                || spec.on_failure == EndAction::Shutdown
                || (*at_limit && spec.restart.at_limit == AtLimit::Shutdown);
            ends.then_some(code.max(1))
        }
        Phase::Done => (spec.essential || spec.on_success == EndAction::Shutdown).then_some(code),
        Phase::Down
        | Phase::Waiting { .. }
        | Phase::Starting
        | Phase::Up
        | Phase::Stopping { .. }
        | Phase::Backoff { .. }
        | Phase::Skipped { .. }
        | Phase::Unproven { .. } => None,
    }
}

/// The unit that is to be started because this one came to its end.
pub(super) fn starts_unit(spec: &Spec, verdict: &Verdict) -> Option<UnitName> {
    let action = match verdict {
        Verdict::Failed { at_limit: true } => {
            if let AtLimit::Start(unit) = &spec.restart.at_limit {
                return Some(unit.clone());
            }
            &spec.on_failure
        }
        Verdict::Failed { at_limit: false } => &spec.on_failure,
        Verdict::Done => &spec.on_success,
        Verdict::Down | Verdict::Backoff { .. } | Verdict::Skipped { .. } => return None,
    };
    match action {
        EndAction::Start(unit) => Some(unit.clone()),
        EndAction::None | EndAction::Shutdown => None,
    }
}

/// What follows from the end of a run.
pub fn verdict(unit: &Unit, instance: &Instance, end: &End, wanted: bool) -> Verdict {
    if let StopCause::ConditionUnmet(condition) = &end.cause {
        return Verdict::Skipped { condition: condition.clone() };
    }
    // A task that came to its end has done so, whatever is wanted of it now.
    let finished = unit.spec.kind == Kind::Task && end.cause == StopCause::MainEnded;
    if end.cause.spreads() || (!wanted && !finished) {
        return Verdict::Down;
    }
    let restart = &unit.spec.restart;
    if wanted && is_passing(end) {
        // No process or descriptor to be had: no fault of the unit's, whatever its policy.
        let attempt = instance.attempt.saturating_add(1);
        let delay = delay(&unit.spec, attempt, end.run).max(PASSING_DELAY);
        return Verdict::Backoff { until: end.at.after(delay), attempt };
    }
    if let Some(verdict) = final_verdict(unit, end) {
        return verdict;
    }
    if !wanted {
        return Verdict::Down;
    }
    if let Some(limit) = restart.limit {
        let recent = instance.starts.iter().filter(|at| end.at.since(**at) <= limit.within).count();
        if recent >= limit.starts as usize {
            return Verdict::Failed { at_limit: true };
        }
    }
    let stable = end.ready_for.is_some_and(|span| span >= restart.reset_after);
    let attempt = if stable { 1 } else { instance.attempt.saturating_add(1) };
    let delay = delay(&unit.spec, attempt, end.run);
    Verdict::Backoff { until: end.at.after(delay), attempt }
}

/// The verdict on a run that ended by itself and after which no other comes.
fn final_verdict(unit: &Unit, end: &End) -> Option<Verdict> {
    let success = is_success(&unit.spec, end);
    let again = match unit.spec.restart.policy {
        RestartPolicy::Always => true,
        RestartPolicy::OnFailure => !success,
        RestartPolicy::Never => false,
    };
    match (again, success) {
        (true, _) => None,
        (false, true) => Some(Verdict::Done),
        (false, false) => Some(Verdict::Failed { at_limit: false }),
    }
}

/// Whether a start failed for want of something that may be there again soon.
fn is_passing(end: &End) -> bool {
    matches!(&end.outcome, Some(Outcome::NotStarted(error)) if error.passing)
}

/// Whether a run that ended by itself has done what it should.
fn is_success(spec: &Spec, end: &End) -> bool {
    let ended_well = end.outcome.as_ref().is_some_and(|outcome| spec.is_success(outcome));
    let ready = spec.process.as_ref().map_or(&Ready::Started, |process| &process.ready);
    // A service that says when it is ready and ends before has failed to start.
    let came_up = spec.kind == Kind::Task || *ready == Ready::Started || end.ready_for.is_some();
    end.cause == StopCause::MainEnded && ended_well && came_up
}

/// The wait before the automatic start number `attempt`, with its part of chance.
fn delay(spec: &Spec, attempt: u32, run: RunId) -> Span {
    let restart = &spec.restart;
    let exponent = i32::try_from(attempt.saturating_sub(1)).unwrap_or(i32::MAX);
    let grown = restart.delay.scale(restart.factor.powi(exponent)).min(restart.max_delay);
    let chance = f64::from(u16::try_from(run.0 >> 48).unwrap_or(0)) / f64::from(u16::MAX);
    grown.scale(1.0 - restart.jitter / 2.0 + restart.jitter * chance).min(restart.max_delay)
}
