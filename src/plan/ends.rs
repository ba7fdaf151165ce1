//! What the end of one instance means for others: for opm itself, and for the unit that is to be started
//! because of it.

use super::View;
use super::restart::verdict;
use crate::model::{
    AtLimit, End, EndAction, Instance, InstanceId, Monotonic, Outcome, Phase, Spec, Unit, UnitName,
    Verdict,
};

/// Whether opm goes down because an instance comes to its end with this verdict.
pub fn ends_opm(view: &View<'_>, id: &InstanceId, verdict: &Verdict) -> bool {
    let (Some(unit), Some(instance)) = (view.unit(id), view.observed.get(id)) else { return false };
    let spec = &*unit.spec;
    // One that has rested since another end of it comes to no end now.
    let has_ended = matches!(instance.phase, Phase::Stopping { .. } | Phase::Backoff { .. });
    has_ended
        && match verdict {
            Verdict::Failed { at_limit } => {
                spec.essential
                    || *spec.on_failure == EndAction::Shutdown
                    || (*at_limit && spec.restart.at_limit == AtLimit::Shutdown)
            }
            Verdict::Done => {
                let ends = spec.essential || *spec.on_success == EndAction::Shutdown;
                ends && are_others_done(view, unit, id)
            }
            Verdict::Down | Verdict::Backoff { .. } | Verdict::Skipped { .. } => false,
        }
}

/// Whether all other instances of a unit have ended well, or have nothing to do: only then has the unit.
fn are_others_done(view: &View<'_>, unit: &Unit, id: &InstanceId) -> bool {
    let is_done = |other: &InstanceId| {
        let phase = view.observed.get(other).map(|instance| &instance.phase);
        matches!(phase, Some(Phase::Done | Phase::Skipped { .. }))
    };
    let all = unit.spec.instance_ids();
    all.iter().all(|other| other == id || !view.wants(other) || is_done(other))
}

/// The exit code with which opm has to shut down because of how this instance ended for good; where it
/// is to begin anew that is over.
pub(super) fn code_of_end(
    view: &View<'_>,
    unit: &Unit,
    id: &InstanceId,
    instance: &Instance,
) -> Option<u8> {
    // A task with a schedule does not run because it changed.
    let is_other = instance.hash != unit.hash && unit.spec.schedule.is_none();
    let is_anew = instance.epoch != unit.epoch_of(id) || is_other;
    let is_over = instance.run.is_none() && instance.has_ended_opm();
    if view.shutdown.is_some() || !is_over || is_anew || !view.wants(id) {
        return None;
    }
    let has_failed = matches!(instance.phase, Phase::Failed { .. });
    Some(code_of(instance.last.as_deref(), has_failed))
}

/// The code of opm after this end.
fn code_of(end: Option<&End>, has_failed: bool) -> u8 {
    let outcome = end.and_then(|end| end.outcome.as_ref());
    outcome.map_or(1, Outcome::code).max(u8::from(has_failed))
}

/// The exit code of opm where it is asked to go down while an instance comes to an end by itself that
/// opm would have ended with: the first cause counts.
pub fn code_of_what_ends(view: &View<'_>, now: Monotonic) -> u8 {
    let ends = view.observed.iter().filter_map(|(id, instance)| {
        let Phase::Stopping { cause, .. } = &instance.phase else { return None };
        let (run, unit) = (instance.run.as_ref()?, view.unit(id)?);
        let end = run.as_end(cause.clone(), instance.since, now);
        let verdict = verdict(unit, instance, &end, true);
        let has_failed = matches!(verdict, Verdict::Failed { .. });
        ends_opm(view, id, &verdict).then(|| (instance.since, code_of(Some(&end), has_failed)))
    });
    ends.min_by_key(|(since, _)| *since).map_or(0, |(_, code)| code)
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
    match &**action {
        EndAction::Start(unit) => Some(unit.clone()),
        EndAction::None | EndAction::Shutdown => None,
    }
}
