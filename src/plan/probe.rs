//! Questions to a run: when to put one, when to give it up, and what follows from the answers.

use super::{Due, View};
use crate::model::{
    Action, Health, HealthAction, InstanceId, Monotonic, Outcome, Probe, Reason, Role, Run, Spec,
    StopCause,
};

/// What is due for a question that is put until it is answered with yes.
pub(super) enum Next {
    /// The answer is yes.
    Yes,
    /// This is due.
    Do(Action),
    /// Nothing, until then.
    Wait(Monotonic),
}

/// What is due for a question that was first to be put at `since`.
pub(super) fn next(run: &Run, role: Role, probe: &Probe, since: Monotonic, now: Monotonic) -> Next {
    let due = match run.asked.as_ref().filter(|asked| asked.role == role) {
        None => since,
        Some(asked) if asked.process.is_alive() => {
            let deadline = asked.at.after(probe.timeout);
            let is_late = now >= deadline;
            return if is_late {
                Next::Do(Action::KillHelper(run.id, role))
            } else {
                Next::Wait(deadline)
            };
        }
        Some(asked) if asked.process.outcome() == Some(&Outcome::Exited(0)) => {
            if role == Role::ReadyProbe {
                return Next::Yes;
            }
            asked.at.after(probe.interval)
        }
        Some(asked) => asked.at.after(probe.interval),
    };
    if now >= due { Next::Do(Action::Spawn(run.id, role)) } else { Next::Wait(due) }
}

/// How many health checks in a row have failed, as far as they count.
pub fn failures(health: &Health, run: &Run) -> u32 {
    let Some(ready) = run.ready else { return 0 };
    let from = if run.was_healthy { ready } else { ready.after(health.start_period) };
    let counts = run.unhealthy.iter().filter(|at| **at >= from).count();
    u32::try_from(counts).unwrap_or(u32::MAX)
}

/// Whether a run counts as unhealthy.
pub fn is_unhealthy(spec: &Spec, run: &Run) -> bool {
    spec.health.as_ref().is_some_and(|health| failures(health, run) >= health.retries)
}

/// What is due for the health of a run that is up.
pub(super) fn health(
    view: &View<'_>,
    spec: &Spec,
    id: &InstanceId,
    run: &Run,
    now: Monotonic,
) -> Due {
    let (Some(health), Some(ready)) = (&spec.health, run.ready) else { return Due::NOTHING };
    // One that waits for its turn to be as it is defined now may not know these questions.
    let begun = view.observed.get(id).map(|instance| instance.hash);
    if view.unit(id).is_some_and(|unit| begun != Some(unit.hash)) {
        return Due::NOTHING;
    }
    if is_unhealthy(spec, run) {
        let cause = StopCause::Unhealthy;
        let reason = Reason::Stop(cause.clone());
        match health.on_failure {
            HealthAction::Restart => {
                return Due::step(id, Action::StopBegin(run.id, cause), reason);
            }
            HealthAction::Shutdown if view.shutdown.is_none() => {
                return Due::step(id, Action::Shutdown(1), reason);
            }
            HealthAction::Shutdown | HealthAction::None => {}
        }
    }
    let first = ready.after(health.probe.interval);
    match next(run, Role::HealthProbe, &health.probe, first, now) {
        Next::Do(action) => Due::step(id, action, Reason::Next),
        Next::Wait(at) => Due::at(at),
        Next::Yes => Due::NOTHING,
    }
}
