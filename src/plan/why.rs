//! The chain from how an instance is to the cause of it.

use std::collections::BTreeSet;

use super::{BLOCKERS_MAX, View, blockers, restart};
use crate::model::{
    Blocker, End, Hold, Instance, InstanceId, Phase, Question, Ready, Role, Run, Spec, StopCause,
    Unit, UnitName, Until,
};

/// Longest chain that is told; longer ones are cut, loops cannot be.
const CHAIN_MAX: usize = 32;
/// Of more things that are waited for, so many are named.
const NAMED_MAX: usize = 8;

/// Those that are waited for, in words: all, or the first ones and how many more.
pub fn few<T>(all: &[T], words: impl FnMut(&T) -> String) -> String {
    let mut named: Vec<String> = all.iter().take(NAMED_MAX).map(words).collect();
    if let Some(more) = all.len().checked_sub(NAMED_MAX).filter(|more| *more > 0) {
        named.push(format!("{more} more"));
    }
    named.join(", ")
}

/// What an instance is noted to wait for, in words.
pub fn waited_for(on: &[Blocker], words: impl FnMut(&Blocker) -> String) -> String {
    let others = if on.len() < BLOCKERS_MAX { "" } else { ", perhaps others" };
    format!("{}{others}", few(on, words))
}

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

/// By whom an instance is held, for how long, and why.
fn held(hold: &Hold, id: &InstanceId) -> String {
    let reason = if hold.reason.is_empty() { "stopped by hand" } else { &hold.reason };
    let until = hold.until.and_then(|until| jiff::Timestamp::from_microsecond(until.0).ok());
    let until = until.map_or_else(String::new, |until| format!(" until {until:.0}"));
    format!("held by {}{until}: {reason} (`opm start {id}` lifts it)", hold.by)
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
    let is_unproven = |instance: &Instance| matches!(instance.phase, Phase::Unproven { .. });
    // A hold is no reason not to be gone.
    let is_unproven = view.observed.get(id).is_some_and(is_unproven);
    if let Some(hold) = unit.hold_of(id).filter(|_| !is_unproven) {
        say(held(hold, id));
        return None;
    }
    let Some(instance) = view.observed.get(id) else {
        say(unwanted(view, id));
        return None;
    };
    let last = instance.last.as_ref();
    let ended = last.map_or_else(String::new, |end| match &end.outcome {
        Some(outcome) if is_early(unit, end) => format!("{outcome}, before it was ready"),
        Some(outcome) if end.cause == StopCause::MainEnded => outcome.to_string(),
        Some(outcome) => format!("{outcome}; {}", end.cause),
        None => end.cause.to_string(),
    });
    match &instance.phase {
        Phase::Down if ended.is_empty() || !view.wants(id) => say(unwanted(view, id)),
        Phase::Waiting { on, .. } => {
            // What is noted may stand for others.
            let now = blockers(view, &id.unit);
            let on = if now.is_empty() { on } else { &now };
            say(format!("waits for {}", few(on, |blocker| blocks(view, blocker))));
            let blocker = on.iter().find(|blocker| blocker.stuck).or_else(|| on.first())?;
            match blocker.until {
                Until::Down | Until::Connection => return None,
                Until::Is(_) => {}
            }
            return in_the_way(view, &blocker.unit).or_else(|| {
                lines.push(format!("`{}` is not known", blocker.unit));
                None
            });
        }
        Phase::Starting => say(starting(unit, instance)),
        Phase::Up => say(unwell(view, id).unwrap_or_else(|| is_well(unit))),
        Phase::Stopping { cause, rung, .. } => {
            say(format!("{cause} ({rung})"));
            if let StopCause::Dependency(unit) | StopCause::DependencyRestarted(unit) = cause {
                return in_the_way(view, unit);
            }
        }
        Phase::Backoff { .. } => {
            say(format!("{ended}; automatic restart number {} follows", instance.attempt));
        }
        Phase::Failed { at_limit: true } => say(format!("{ended}; it used up its starts")),
        Phase::Failed { at_limit: false } | Phase::Done | Phase::Down => say(ended),
        Phase::Skipped { condition } => say(format!("a condition does not hold: {condition}")),
        Phase::Unproven { why, .. } => say(format!(
            "{why}; it is neither started nor killed until `opm release {id}` or a reboot"
        )),
    }
    None
}

/// What a start waits for.
fn starting(unit: &Unit, instance: &Instance) -> String {
    let run = instance.run.as_ref();
    if let Some(role) = run.and_then(Run::helper_alive) {
        return format!("its {role} runs");
    }
    if run.is_some_and(|run| run.awaits_main(&unit.spec)) {
        return "its `pid_file` has not named its main process yet".to_owned();
    }
    match unit.spec.process.as_ref().map(|process| &*process.ready) {
        Some(Ready::Asked(probe)) => {
            let answer = run.and_then(|run| answer(run, &probe.question)).unwrap_or_default();
            format!("`{}` has not said yet that it is ready{answer}", probe.question.words())
        }
        Some(Ready::Log(pattern)) => format!("no line of its output has matched `{pattern}` yet"),
        _ => "its run has begun and is not ready".to_owned(),
    }
}

/// Whether a run ended well, but for that it was to say first that it is ready.
fn is_early(unit: &Unit, end: &End) -> bool {
    let ended_well = end.outcome.as_ref().is_some_and(|outcome| unit.spec.is_success(outcome));
    end.cause == StopCause::MainEnded && ended_well && !restart::is_success(&unit.spec, end)
}

/// What the latest question whether it is ready came to.
fn answer(run: &Run, question: &Question) -> Option<String> {
    let asked = run.asked.as_ref().filter(|asked| asked.role == Role::ReadyProbe)?;
    Some(format!(": {}", question.refusal(asked.outcome()?)))
}

/// What is to be said of one that is up and well.
fn is_well(unit: &Unit) -> String {
    let socket = unit.spec.socket.as_ref();
    let listens = socket.map(|socket| format!("it listens at {}", socket.words()));
    listens.unwrap_or_else(|| "it is wanted, and ready".to_owned())
}

/// Of the instances of a unit the first that is not up or done; the first, where all are.
fn in_the_way(view: &View<'_>, unit: &UnitName) -> Option<InstanceId> {
    let all = view.instances(unit);
    let is_there = |id: &&InstanceId| {
        let known = view.observed.get(id).map(|instance| &instance.phase);
        !matches!(known, Some(Phase::Up | Phase::Done))
    };
    all.iter().find(is_there).or(all.first()).cloned()
}

/// What is in the way, and where it is to come from.
fn blocks(view: &View<'_>, blocker: &Blocker) -> String {
    let unit = view.desired.units.get(&blocker.unit);
    match (blocker.until, unit.and_then(|unit| unit.spec.socket.as_ref())) {
        (Until::Connection, Some(socket)) => {
            format!("a connection on {} (`{}`)", socket.words(), blocker.unit)
        }
        (Until::Connection | Until::Is(_) | Until::Down, _) => blocker.to_string(),
    }
}

/// What is to be said of something that an instance waits for and that does not come because somebody says so, and how
/// it comes then. Each of those in between is looked at once.
pub fn held_up(view: &View<'_>, id: &InstanceId) -> Option<String> {
    let (mut seen, mut queue) = (BTreeSet::new(), vec![id.clone()]);
    while let Some(waits) = queue.pop() {
        let phase = view.observed.get(&waits).map(|instance| &instance.phase);
        let Some(Phase::Waiting { on, .. }) = phase.filter(|_| seen.insert(waits)) else {
            continue;
        };
        let stuck = on.iter().filter(|on| on.stuck && matches!(on.until, Until::Is(_)));
        for id in stuck.filter_map(|blocker| in_the_way(view, &blocker.unit)) {
            if let Some(hold) = view.unit(&id).and_then(|unit| unit.hold_of(&id)) {
                return Some(format!("`{id}` is held by {} (`opm start {id}` lifts it)", hold.by));
            }
            if super::rests_until_due(view, &id) {
                return Some(format!("`{id}` runs when it is due (`opm start {id}` runs it now)"));
            }
            queue.push(id);
        }
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
    } else if super::rests_until_due(view, id) {
        "it runs when it is due".to_owned()
    } else {
        "it is about to start".to_owned()
    }
}

/// What is wrong with an instance that is up, if anything is: its health, its last reload.
pub fn unwell(view: &View<'_>, id: &InstanceId) -> Option<String> {
    let run = view.observed.get(id)?.run.as_ref()?;
    let reload = run.failed_reload().map(|outcome| format!("its last reload failed: {outcome}"));
    let all: Vec<String> = health(&view.unit(id)?.spec, run).into_iter().chain(reload).collect();
    (!all.is_empty()).then(|| all.join("; "))
}

fn health(spec: &Spec, run: &Run) -> Option<String> {
    let health = spec.health.as_ref()?;
    let count = super::failures(health, run);
    let how = if count >= health.retries { "unhealthy" } else { "doubtful" };
    let words = health.probe.question.words();
    let asked = run.asked.as_ref().filter(|asked| asked.role == Role::HealthProbe);
    let refusal = asked.and_then(|asked| asked.outcome());
    let refusal = refusal.map(|outcome| health.probe.question.refusal(outcome));
    let refusal = refusal.map(|refusal| format!(": {refusal}")).unwrap_or_default();
    (count > 0).then(|| format!("{how}: `{words}` failed {count} times in a row{refusal}"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{
        Agenda, Blocker, Condition, Dependency, Desired, End, Graph, Instance, Kind, Monotonic,
        Observed, Outcome, RunId, Spec, Unit, UnitName, Wall,
    };

    fn name(text: &str) -> UnitName {
        UnitName::parse(text).unwrap()
    }

    /// Units each of which requires the one before it.
    fn chain(names: &[&str]) -> Desired {
        let mut desired = Desired::default();
        let mut before = None;
        for unit in names {
            let mut spec = Spec::new(Kind::Service, name(unit));
            spec.relations.requires = before
                .map(|unit| Dependency { unit, condition: Condition::Ready })
                .into_iter()
                .collect();
            before = Some(name(unit));
            desired.units.insert(name(unit), Unit::new(Arc::new(spec), "-".to_owned()));
        }
        desired
    }

    fn waits_for(unit: &str) -> Phase {
        let until = Until::Is(Condition::Ready);
        Phase::Waiting { on: vec![Blocker { unit: name(unit), until, stuck: true }], fresh: true }
    }

    fn why_of(desired: &Desired, phases: Vec<(&str, Phase)>, unit: &str) -> Vec<String> {
        let mut observed = Observed::default();
        for (unit, phase) in phases {
            let last = End {
                run: RunId(1),
                cause: StopCause::MainEnded,
                outcome: Some(Outcome::Exited(1)),
                at: Monotonic::default(),
                ready_for: None,
                ends_opm: false,
            };
            let last = (!matches!(phase, Phase::Waiting { .. })).then(|| Box::new(last));
            let instance = Instance { phase, last, attempt: 3, ..Instance::default() };
            observed.insert(InstanceId::single(&name(unit)), instance);
        }
        let graph = Graph::build(desired);
        let (agenda, wall) = (&Agenda::default(), Wall::default());
        let view =
            View { desired, graph: &graph, observed: &observed, shutdown: None, agenda, wall };
        why(&view, &InstanceId::parse(unit).unwrap())
    }

    #[test]
    fn the_chain_goes_to_the_root_cause_and_says_each_link_once() {
        let desired = chain(&["db", "app", "web"]);
        let failed = Phase::Failed { at_limit: true };
        let phases = vec![("web", waits_for("app")), ("app", waits_for("db")), ("db", failed)];
        assert_eq!(
            why_of(&desired, phases, "web"),
            [
                "`web` is waiting: waits for `app` to be ready",
                "`app` is waiting: waits for `db` to be ready",
                "`db` is failed: exited 1; it used up its starts",
            ]
        );
    }

    #[test]
    fn what_is_reached_by_many_ways_is_looked_at_once() {
        // Two on each floor, each of which requires both below: the ways double with each floor.
        let (mut desired, mut phases) = (chain(&["base"]), Vec::new());
        let floors: Vec<[String; 2]> =
            (0..60).map(|n| [format!("a{n:02}"), format!("b{n:02}")]).collect();
        let mut below = vec!["base".to_owned()];
        for floor in &floors {
            for unit in floor {
                let mut spec = Spec::new(Kind::Service, name(unit));
                let condition = Condition::Ready;
                let needs = below.iter().map(|unit| Dependency { unit: name(unit), condition });
                spec.relations.requires = needs.collect();
                desired.units.insert(name(unit), Unit::new(Arc::new(spec), "-".to_owned()));
                let until = Until::Is(Condition::Ready);
                let on = below.iter().map(|unit| Blocker { unit: name(unit), until, stuck: true });
                phases.push((unit.as_str(), Phase::Waiting { on: on.collect(), fresh: true }));
            }
            below = floor.to_vec();
        }
        for (base, is_held) in [(Phase::Failed { at_limit: false }, false), (Phase::Down, true)] {
            if is_held {
                let by = "uid 7".to_owned();
                let hold =
                    Hold { by, reason: String::new(), at: Wall(0), until: None, until_boot: false };
                desired.units.get_mut(&name("base")).unwrap().hold = Some(Box::new(hold));
            }
            let mut observed = Observed::default();
            for (unit, phase) in phases.iter().cloned().chain([("base", base)]) {
                let instance = Instance { phase, ..Instance::default() };
                observed.insert(InstanceId::single(&name(unit)), instance);
            }
            let graph = Graph::build(&desired);
            let view = View {
                desired: &desired,
                graph: &graph,
                observed: &observed,
                shutdown: None,
                agenda: &Agenda::default(),
                wall: Wall(0),
            };
            let top = InstanceId::single(&name("a59"));
            assert_eq!(held_up(&view, &top).is_some(), is_held);
            assert_eq!(crate::plan::awaits_held(&view, &top), is_held);
        }
    }

    #[test]
    fn the_chain_ends_at_who_holds_a_unit() {
        let mut desired = chain(&["db", "web"]);
        let hold = Hold {
            by: "uid 7".to_owned(),
            reason: "disks".to_owned(),
            at: Wall(0),
            until: None,
            until_boot: false,
        };
        desired.units.get_mut(&name("db")).unwrap().hold = Some(Box::new(hold));
        let phases = vec![("web", waits_for("db")), ("db", Phase::Down)];
        assert_eq!(
            why_of(&desired, phases, "web"),
            [
                "`web` is waiting: waits for `db` to be ready",
                "`db` is down: held by uid 7: disks (`opm start db` lifts it)",
            ]
        );
    }

    #[test]
    fn a_loop_of_facts_does_not_go_round() {
        let desired = chain(&["a", "b"]);
        let phases = vec![("a", waits_for("b")), ("b", waits_for("a"))];
        assert_eq!(why_of(&desired, phases, "a").len(), 2);
    }

    #[test]
    fn a_long_chain_is_cut() {
        let names: Vec<String> = (0..CHAIN_MAX + 8).map(|n| format!("u{n}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let links = names.iter().zip(names.iter().skip(1));
        let phases = links.map(|(unit, next)| (*unit, waits_for(next))).collect();
        let needed_first: Vec<&str> = names.iter().rev().copied().collect();
        assert_eq!(why_of(&chain(&needed_first), phases, "u0").len(), CHAIN_MAX);
    }

    #[test]
    fn one_link_says_enough() {
        let mut desired = chain(&["web"]);
        let until = Monotonic::default();
        for (phase, said) in [
            (Phase::Up, "`web` is up: it is wanted, and ready"),
            (
                Phase::Backoff { until },
                "`web` is to be restarted: exited 1; automatic restart number 3 follows",
            ),
            (Phase::Done, "`web` is done: exited 1"),
        ] {
            assert_eq!(why_of(&desired, vec![("web", phase)], "web"), [said]);
        }
        let unknown = why_of(&desired, Vec::new(), "other");
        assert_eq!(unknown, ["`other` is not known: no unit of that name was applied"]);
        let unit = desired.units.get_mut(&name("web")).unwrap();
        Arc::make_mut(&mut unit.spec).enabled = false;
        assert_eq!(
            why_of(&desired, Vec::new(), "web"),
            ["`web` is down: `enabled: false` (`opm start web` starts it)"]
        );
    }

    #[test]
    fn of_many_a_few_are_named() {
        let said = |count: usize| few(&vec![(); count], |()| "a".to_owned());
        assert_eq!(said(1), "a");
        assert_eq!(said(NAMED_MAX), ["a"; NAMED_MAX].join(", "));
        assert_eq!(said(1_000), format!("{}, 992 more", ["a"; NAMED_MAX].join(", ")));
    }
}
