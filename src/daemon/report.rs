//! What happens, as lines of opm's own log and as events for clients.

use std::collections::{BTreeMap, BTreeSet};

use log::Level;
use serde_json::{Value, json};

use crate::config;
use crate::model::{
    Doing, Event, Happening, InstanceId, Monotonic, Outcome, Question, Ready, Reason, Role, RunId,
    Rung, Span, StartError, StopCause, Verdict, Word,
};
use crate::plan::{self, Hurry, Plan, Shutdown};
use crate::supervisor::{Applied, Notice, Source, Supervisor};
use crate::system::{Linux, System};

/// How long a failure that repeats is only counted.
const REPEAT_SPAN: Span = Span::seconds(60);
/// Kinds of failures that are counted apart; there are few reasons for a shortage.
const KINDS_MAX: usize = 16;

/// What was said already. A shortage meets every start of every instance, again and again: it is
/// said once, and then now and then, with how often it was met.
#[derive(Debug, Default)]
pub(super) struct Repeats {
    shortages: BTreeMap<String, Shortage>,
}

#[derive(Debug)]
struct Shortage {
    said: Monotonic,
    unsaid: usize,
}

impl Repeats {
    /// What to say of a start that failed by a shortage, if anything.
    fn shortage(&mut self, error: &StartError, now: Monotonic) -> Option<String> {
        let known = self.shortages.get_mut(&error.reason);
        let others = match known {
            Some(known) if now.since(known.said) < REPEAT_SPAN => {
                known.unsaid = known.unsaid.saturating_add(1);
                return None;
            }
            Some(known) => known.unsaid,
            None => 0,
        };
        if self.shortages.len() >= KINDS_MAX {
            self.shortages.clear();
        }
        self.shortages.insert(error.reason.clone(), Shortage { said: now, unsaid: 0 });
        let others = if others > 0 {
            format!(", as {others} more since this was said")
        } else {
            String::new()
        };
        Some(format!("{error}; it is tried again{others}"))
    }
}

/// Whether a run failed to start by a shortage that may pass.
fn shortage(outcome: &Outcome) -> Option<&StartError> {
    match outcome {
        Outcome::NotStarted(error) if error.passing => Some(error),
        Outcome::NotStarted(_) | Outcome::Exited(_) | Outcome::Killed { .. } | Outcome::Unknown => {
            None
        }
    }
}

/// Writes what happened to the log, where an operator wants to know it.
pub(super) fn log<S: System>(supervisor: &Supervisor<S>, notice: &Notice, repeats: &mut Repeats) {
    if let Happening::Ended { outcome, .. } = &notice.event.what
        && let Some(error) = shortage(outcome)
    {
        if let Some(text) = repeats.shortage(error, supervisor.system().now()) {
            log::error!("{}: {text}", notice.event.instance);
        }
        return;
    }
    if let Some((level, text)) = line(supervisor, notice) {
        // opm's own units are of interest only when something is wrong with them.
        let own = supervisor.is_own(&notice.event.instance) && level == Level::Info;
        let level = if own { Level::Debug } else { level };
        log::log!(level, "{}: {text}", notice.event.instance);
    }
}

/// Whether a process could not be started: nobody else says so.
pub(super) fn is_failed_start(notice: &Notice) -> bool {
    matches!(notice.event.what, Happening::Ended { outcome: Outcome::NotStarted(_), .. })
}

/// Who was killed in a shutdown before its own time was over.
#[derive(Debug, Default)]
pub(super) struct CutShort {
    cut: BTreeSet<InstanceId>,
    killed: BTreeSet<InstanceId>,
}

impl CutShort {
    pub(super) fn hear<S: System>(&mut self, supervisor: &Supervisor<S>, notice: &Notice) {
        let Happening::Rung { rung, .. } = notice.event.what else { return };
        let Some(shutdown) = supervisor.shutdown() else { return };
        // When somebody has no patience left, that was said.
        if shutdown.hurry == Hurry::Kill {
            return;
        }
        if notice.reason.as_ref().is_some_and(Reason::is_cut) {
            self.cut.insert(notice.event.instance.clone());
        }
        if rung == Rung::Kill {
            self.killed.insert(notice.event.instance.clone());
        }
    }

    /// Says it, at the end.
    pub(super) fn say<S: System>(&self, supervisor: &Supervisor<S>) {
        let time = |shutdown: &Shutdown| Some(shutdown.deadline?.since(shutdown.began));
        let Some(budget) = supervisor.shutdown().and_then(time) else { return };
        let view = supervisor.view();
        let own = |id: &InstanceId| {
            let own = view.unit(id).map_or(Span::ZERO, |unit| unit.spec.stop.time());
            if own == Span::FOREVER { format!("`{id}`") } else { format!("`{id}` ({own})") }
        };
        let all: Vec<String> = self.cut.intersection(&self.killed).map(own).collect();
        if !all.is_empty() {
            log::warn!(
                "killed before their own time was over, as a shutdown has {budget}: {}",
                all.join(", ")
            );
        }
    }
}

/// Says who lives although opm ends.
pub(super) fn left_behind<S: System>(supervisor: &Supervisor<S>) {
    let left: Vec<String> = supervisor.left_behind().iter().map(ToString::to_string).collect();
    if !left.is_empty() {
        log::error!(
            "not gone although they were killed: `{}`; opm ends all the same",
            left.join("`, `")
        );
    }
}

/// Says that opm is going down, and with how much patience.
pub(super) fn shutdown<S: System>(supervisor: &Supervisor<S>) {
    let Some(shutdown) = supervisor.shutdown() else { return };
    match shutdown.hurry {
        Hurry::Ordered => log::info!("shutting down: {}", shutdown.why),
        Hurry::Unordered => log::warn!("{} again: stopping everything at once", shutdown.why),
        Hurry::Kill => log::warn!("{} again: killing everything", shutdown.why),
    }
}

fn line<S: System>(supervisor: &Supervisor<S>, notice: &Notice) -> Option<(Level, String)> {
    let because = notice.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
    Some(match &notice.event.what {
        Happening::Began { .. } => (Level::Debug, format!("starting{because}")),
        Happening::Up { .. } => {
            let row = supervisor.row(&notice.event.instance);
            let pid = row.pid.map(|pid| format!(", pid {pid}")).unwrap_or_default();
            (Level::Info, format!("up{pid}"))
        }
        Happening::Ended { role, outcome, .. } => match outcome {
            Outcome::NotStarted(error) if *role == Role::Main => (Level::Error, error.to_string()),
            Outcome::NotStarted(error) => (Level::Error, format!("{role}: {error}")),
            Outcome::Exited(0) => (Level::Debug, format!("{role} exited 0")),
            // Nothing else tells of it: the service goes on as before.
            Outcome::Exited(_) | Outcome::Killed { .. } if *role == Role::Reload => {
                (Level::Warn, format!("{role} {outcome}; it goes on as before"))
            }
            Outcome::Exited(_) | Outcome::Killed { .. } | Outcome::Unknown => {
                let question = question(supervisor, &notice.event.instance, *role);
                let said =
                    question.map(|question| format!("{role}: {}", question.refusal(outcome)));
                (Level::Info, said.unwrap_or_else(|| format!("{role} {outcome}")))
            }
        },
        // Said once for all, and by the process's own end.
        Happening::StopBegan { cause: StopCause::MainEnded | StopCause::Shutdown, .. } => {
            return None;
        }
        Happening::StopBegan {
            cause: cause @ (StopCause::StartTimeout | StopCause::Watchdog | StopCause::Triggered),
            ..
        } => (Level::Error, format!("stopping: {cause}")),
        Happening::StopBegan { cause, .. } => (Level::Info, format!("stopping: {cause}")),
        Happening::Rung { rung: Rung::Kill, .. } => {
            (Level::Warn, format!("killing what is left{because}"))
        }
        Happening::Tree { left: left @ 1.., .. } => {
            (Level::Info, format!("its main process is gone, {left} others are left"))
        }
        Happening::Settled { verdict, .. } => {
            let by_shortage = match &notice.reason {
                Some(Reason::Ended(Some(outcome))) => shortage(outcome).is_some(),
                _ => false,
            };
            let (level, text) = settled(supervisor, verdict, &because);
            // Said once for all that it meets.
            (if by_shortage { Level::Debug } else { level }, text)
        }
        Happening::Waits { on, .. } => {
            (Level::Info, format!("waits for {}", plan::waited_for(on, ToString::to_string)))
        }
        Happening::Listens { bound, .. } => {
            let at: Vec<&str> = bound.iter().map(|bound| bound.at.as_str()).collect();
            (Level::Info, format!("listens at {}", at.join(", ")))
        }
        Happening::Called { .. } => (Level::Info, "somebody has connected".to_owned()),
        Happening::Touched { .. } => (Level::Debug, "a file that it watches changed".to_owned()),
        Happening::Said { status, .. } => (Level::Debug, status.clone()),
        Happening::Word { word, .. } => return said(supervisor, *word),
        Happening::Adopted { .. } => (Level::Debug, "adopted".to_owned()),
        Happening::Reloaded { .. } => (Level::Info, format!("reloaded{because}")),
        Happening::Spawned { .. }
        | Happening::Execed { .. }
        | Happening::HeldUp { .. }
        | Happening::AskedAnew { .. }
        | Happening::Ready { .. }
        | Happening::Rung { .. }
        | Happening::Tree { .. }
        | Happening::Unproven { .. }
        | Happening::Forgotten => return None,
    })
}

/// What a process with this role asks, where it asks something.
fn question<S: System>(
    supervisor: &Supervisor<S>,
    id: &InstanceId,
    role: Role,
) -> Option<Question> {
    let view = supervisor.view();
    let spec = &view.unit(id)?.spec;
    match (role, &*spec.process.as_ref()?.ready) {
        (Role::ReadyProbe, Ready::Asked(probe)) => Some(probe.question.clone()),
        (Role::HealthProbe, _) => Some(spec.health.as_ref()?.probe.question.clone()),
        _ => None,
    }
}

/// What a run said on its notify socket.
fn said<S: System>(supervisor: &Supervisor<S>, word: Word) -> Option<(Level, String)> {
    Some(match word {
        Word::Does(doing) => {
            (Level::Debug, doing.map_or("at its work again", Doing::as_str).to_owned())
        }
        Word::Silence(silence) => {
            (Level::Debug, format!("its watchdog waits {silence} from now on"))
        }
        Word::MoreTime(until) => {
            let more = until.since(supervisor.system().now());
            (Level::Debug, format!("asked for {more} more"))
        }
        Word::MainIs { identity, .. } => {
            (Level::Info, format!("its main process is {} from now on", identity.pid))
        }
        // What follows is told.
        Word::Well | Word::Failed => return None,
    })
}

fn settled<S: System>(
    supervisor: &Supervisor<S>,
    verdict: &Verdict,
    because: &str,
) -> (Level, String) {
    match verdict {
        Verdict::Down => (Level::Info, format!("down{because}")),
        Verdict::Backoff { until, attempt } => {
            let wait = until.since(supervisor.system().now());
            (Level::Info, format!("restart number {attempt} in {wait}{because}"))
        }
        Verdict::Failed { at_limit: true } => {
            (Level::Error, "failed: it used up its starts".to_owned())
        }
        Verdict::Failed { at_limit: false } => (Level::Error, format!("failed{because}")),
        Verdict::Done => (Level::Info, format!("done{because}")),
        Verdict::Skipped { condition } => (Level::Info, format!("skipped: {condition}")),
    }
}

/// An event as clients get it: with the time for people, and the run by the name that it has in the logs.
pub(super) fn event_json(supervisor: &Supervisor<Linux>, notice: &Notice) -> Value {
    let Event { instance, at, what } = &notice.event;
    let system = supervisor.system();
    let ago = i64::try_from(system.now().since(*at).as_nanos() / 1_000).unwrap_or(i64::MAX);
    let time = jiff::Timestamp::from_microsecond(system.wall().0.saturating_sub(ago)).ok();
    let what = serde_json::to_value(what).unwrap_or_default();
    let parts = what.as_object().and_then(|what| what.values().next());
    let run = parts.and_then(|parts| parts.get("run")).and_then(Value::as_u64);
    json!({ "event": {
        "own": supervisor.is_own(instance),
        "instance": instance,
        "time": time.map(|time| format!("{time:.6}")),
        "at_ns": at,
        "run": run.map(|run| RunId(run).to_string()),
        "what": what,
        "reason": notice.reason.as_ref().map(Reason::to_string),
    } })
}

/// Tells the log what an apply of the daemon's own did.
pub(super) fn applied(applied: &Applied, source: &Source) {
    if !applied.diagnostics.is_empty() {
        let text = config::render(&applied.diagnostics, &source.shown(), false);
        if config::has_errors(&applied.diagnostics) {
            log::error!("cannot apply `{}`:\n{text}", source.name);
            return;
        }
        log::warn!("{text}");
    }
    for warning in &applied.warnings {
        log::warn!("{warning}");
    }
    let Plan { changes } = &applied.plan;
    if changes.is_empty() {
        log::info!("`{}` is applied already, generation {}", source.name, applied.generation);
    } else {
        let (count, generation) = (config::plural(changes.len(), "unit"), applied.generation);
        log::info!("applied `{}`: {count} changed, generation {generation}", source.name);
    }
}
