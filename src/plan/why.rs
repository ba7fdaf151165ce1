//! The chain from how an instance is to the cause of it.

use super::View;
use crate::model::{InstanceId, Phase, StopCause, Until};

/// Longest chain that is told; longer ones are cut, loops cannot be.
const CHAIN_MAX: usize = 32;

/// One line for each link, from the instance asked about to the root cause.
pub fn why(view: &View<'_>, id: &InstanceId) -> Vec<String> {
    let mut lines = Vec::new();
    let mut seen = Vec::new();
    let mut next = Some(id.clone());
    while let Some(id) = next.take() {
        if seen.contains(&id) || seen.len() >= CHAIN_MAX {
            break;
        }
        next = link(view, &id, &mut lines);
        seen.push(id);
    }
    lines
}

/// Says how one instance is and why; returns the one to be asked next.
fn link(view: &View<'_>, id: &InstanceId, lines: &mut Vec<String>) -> Option<InstanceId> {
    let Some(unit) = view.unit(id) else {
        lines.push(format!("`{id}` is not known: no unit of that name was applied"));
        return None;
    };
    let phase = view.observed.get(id).map_or("down", |instance| instance.phase.as_str());
    let phase = if phase == "backoff" { "to be restarted" } else { phase };
    let mut say = |text: String| lines.push(format!("`{id}` is {phase}: {text}"));
    if let Some(hold) = unit.hold_of(id) {
        let reason = if hold.reason.is_empty() { "stopped by hand" } else { &hold.reason };
        say(format!("held by {}: {reason} (`opm start {id}` lifts it)", hold.by));
        return None;
    }
    let Some(instance) = view.observed.get(id) else {
        say(unwanted(view, id));
        return None;
    };
    let last = instance.last.as_ref();
    let ended = last.map_or_else(String::new, |end| match &end.outcome {
        Some(outcome) if end.cause == StopCause::MainEnded => outcome.to_string(),
        Some(outcome) => format!("{outcome}; {}", end.cause),
        None => end.cause.to_string(),
    });
    match &instance.phase {
        Phase::Down if ended.is_empty() || !view.wants(id) => say(unwanted(view, id)),
        Phase::Waiting { on, .. } => {
            let what: Vec<String> = on.iter().map(ToString::to_string).collect();
            say(format!("waits for {}", what.join(", ")));
            let blocker = on.iter().find(|blocker| blocker.stuck).or_else(|| on.first())?;
            if blocker.until == Until::Down {
                return None;
            }
            return view.instances(&blocker.unit).into_iter().next().or_else(|| {
                lines.push(format!("`{}` is not known", blocker.unit));
                None
            });
        }
        Phase::Starting => {
            let helper = instance.run.as_ref().and_then(crate::model::Run::helper_alive);
            say(helper.map_or_else(
                || "its run has begun and is not ready".to_owned(),
                |role| format!("its {role} runs"),
            ));
        }
        Phase::Up => say("it is wanted, and ready".to_owned()),
        Phase::Stopping { cause, rung, .. } => {
            say(format!("{cause} ({rung})"));
            if let StopCause::Dependency(unit) | StopCause::DependencyRestarted(unit) = cause {
                return view.instances(unit).into_iter().next();
            }
        }
        Phase::Backoff { .. } => {
            say(format!("{ended}; automatic restart number {} is due", instance.attempt));
        }
        Phase::Failed { at_limit: true } => say(format!("{ended}; it used up its starts")),
        Phase::Failed { at_limit: false } | Phase::Done | Phase::Down => say(ended),
        Phase::Skipped { condition } => say(format!("a condition does not hold: {condition}")),
        Phase::Unproven { why } => say(format!(
            "{why}; it is neither started nor killed until `opm release {id}` or a reboot"
        )),
    }
    None
}

/// Why nothing brings an instance up.
fn unwanted(view: &View<'_>, id: &InstanceId) -> String {
    let Some(unit) = view.unit(id) else { return "its unit was removed".to_owned() };
    if view.shutdown.is_some() {
        "opm is shutting down".to_owned()
    } else if unit.removed {
        "its unit was removed".to_owned()
    } else if !unit.spec.has_instance(id) {
        "its unit does not ask for it any more".to_owned()
    } else if !unit.spec.enabled && !unit.started {
        format!("`enabled: false` (`opm start {id}` starts it)")
    } else if !view.graph.is_wanted(&id.unit) {
        "the target `default` does not want it".to_owned()
    } else {
        "it is about to start".to_owned()
    }
}
