//! What follows from the end of a run: again, when, or not any more.

use super::{Due, View, begin, lazy, order};
use crate::model::{
    Action, Automatic, End, Instance, InstanceId, Kind, Monotonic, Outcome, Phase, Ready, Reason,
    RestartPolicy, RunId, Span, Spec, StopCause, Unit, Verdict,
};

/// The shortest wait after a start that failed for want of a process or descriptor.
const PASSING_DELAY: Span = Span::millis(100);
/// The shortest wait after another start that made no process: nothing else takes time in one that comes to
/// nothing, and opm would do nothing else.
const UNSTARTED_DELAY: Span = Span::millis(10);

/// What an instance without a run does next.
pub(super) enum Next {
    /// Nothing, until then.
    Stay(Option<Monotonic>),
    /// Another phase without a run.
    Settle(Verdict, Reason),
    /// A new run.
    Begin { fresh: bool, reason: Reason },
}

impl Next {
    /// The same as what is due.
    pub(super) fn due(self, view: &View<'_>, id: &InstanceId, instance: &Instance) -> Due {
        match self {
            Self::Stay(wake) => wake.map_or(Due::NOTHING, Due::at),
            Self::Settle(verdict, reason) => Due::step(id, Action::Settle(verdict), reason),
            Self::Begin { fresh, reason } => begin(view, id, instance, fresh, reason),
        }
    }
}

/// What a wanted instance without a run does next.
pub(super) fn after(
    view: &View<'_>,
    unit: &Unit,
    id: &InstanceId,
    instance: &Instance,
    now: Monotonic,
) -> Next {
    let asked = instance.epoch != unit.epoch_of(id);
    let changed = instance.hash != unit.hash;
    let recovered = || order::recovered_since(view, &id.unit, instance.since);
    let is_automatic = asked && !changed && recovered().is_none();
    if let Some(next) = after_another(unit, id, instance, now).filter(|_| is_automatic) {
        return next;
    }
    let anew = match (asked, changed) {
        (true, _) => Some(Reason::Asked),
        (_, true) => Some(Reason::Changed),
        _ => None,
    };
    match &instance.phase {
        // It was to run by another definition, which was taken back, or held, before it could.
        Phase::Down | Phase::Waiting { .. } if anew.is_none() && has_done(unit, instance) => {
            Next::Settle(Verdict::Done, Reason::Changed)
        }
        Phase::Down => {
            let reason = if instance.last.is_some() { anew } else { None };
            Next::Begin { fresh: true, reason: reason.unwrap_or(Reason::Wanted) }
        }
        Phase::Waiting { fresh, .. } => {
            // Counters begin anew too where it was asked for, or changed, or what it needs came back, while
            // it waited.
            let is_anew = || anew.is_some() || recovered().is_some();
            let fresh = *fresh || (instance.last.is_some() && is_anew());
            Next::Begin { fresh, reason: Reason::Next }
        }
        Phase::Backoff { until } => {
            if let Some(reason) = anew {
                return Next::Begin { fresh: true, reason };
            }
            if let Some(unit) = recovered() {
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
        Phase::Failed { .. } => match anew.or_else(|| recovered().map(Reason::Recovered)) {
            Some(reason) => Next::Begin { fresh: true, reason },
            None => Next::Stay(None),
        },
        Phase::Done | Phase::Skipped { .. } => match anew {
            Some(reason) => Next::Begin { fresh: true, reason },
            None if instance.phase == Phase::Done => match lazy::again_at(view, id, instance) {
                Some(at) if now >= at => Next::Begin { fresh: true, reason: Reason::Next },
                again => Next::Stay(again),
            },
            None => Next::Stay(None),
        },
        Phase::Starting | Phase::Up | Phase::Stopping { .. } | Phase::Unproven { .. } => {
            Next::Stay(None)
        }
    }
}

/// What one does that has run, and is to run again because another unit came to its end; `None` where
/// nothing asks for that. It is an automatic start like any other: units that start each other in a circle
/// wait longer and longer, and keep to their limits.
pub(super) fn after_another(
    unit: &Unit,
    id: &InstanceId,
    instance: &Instance,
    now: Monotonic,
) -> Option<Next> {
    let (Automatic { chain, .. }, end) = (unit.automatic(id)?, instance.last.as_ref()?);
    let at = match &instance.phase {
        Phase::Backoff { until } => *until,
        Phase::Down
        | Phase::Waiting { .. }
        | Phase::Failed { .. }
        | Phase::Done
        | Phase::Skipped { .. } => {
            // The first of a chain follows something else: a due time, a hand, a run that was well.
            let attempt = chain.saturating_sub(1);
            let wait = if attempt > 0 { wait(&unit.spec, attempt, end) } else { Span::ZERO };
            // The first of those that count has to be forgotten before there is room for another.
            let room = unit.spec.restart.limit.and_then(|limit| {
                let over = instance.starts.len().checked_sub(limit.starts as usize)?;
                instance.starts.get(over).map(|first| first.after(limit.within))
            });
            end.at.after(wait).max(room.unwrap_or_default())
        }
        Phase::Starting | Phase::Up | Phase::Stopping { .. } | Phase::Unproven { .. } => {
            return None;
        }
    };
    if now < at {
        return Some(Next::Stay(Some(at)));
    }
    Some(Next::Begin { fresh: false, reason: Reason::Follows })
}

/// What follows from the end of a run.
pub fn verdict(unit: &Unit, instance: &Instance, end: &End, wanted: bool) -> Verdict {
    if let StopCause::ConditionUnmet(condition) = &end.cause {
        return Verdict::Skipped { condition: condition.clone() };
    }
    if end.cause == StopCause::Due {
        return Verdict::Down;
    }
    // A task that came to its end has done so, whatever is wanted of it now.
    let finished =
        unit.spec.kind == Kind::Task && end.cause == StopCause::MainEnded && !is_passing(end);
    if end.cause.spreads() || (!wanted && !finished) {
        return Verdict::Down;
    }
    let restart = &unit.spec.restart;
    if is_passing(end) {
        if !wanted {
            return Verdict::Down;
        }
        // No process or descriptor to be had: no fault of the unit's, whatever its policy.
        let attempt = instance.attempt.saturating_add(1);
        let wait = wait(&unit.spec, attempt, end);
        return Verdict::Backoff { until: end.at.after(wait), attempt };
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
    let attempt = if was_stable(unit, end) { 1 } else { instance.attempt.saturating_add(1) };
    let wait = wait(&unit.spec, attempt, end);
    Verdict::Backoff { until: end.at.after(wait), attempt }
}

/// Whether a run was well for long enough that what follows it begins anew.
pub fn was_stable(unit: &Unit, end: &End) -> bool {
    // A task is ready when it has completed: however long one runs that fails, it was not.
    let was_there = unit.spec.kind != Kind::Task || is_success(&unit.spec, end);
    was_there && end.ready_for.is_some_and(|span| span >= unit.spec.restart.reset_after)
}

/// Whether the run that stops now, or the last one, was well for long enough: the attempts that it took before
/// are no longer held against the unit.
pub(super) fn is_or_was_stable(unit: &Unit, instance: &Instance) -> bool {
    let stops = matches!(instance.phase, Phase::Stopping { .. });
    match instance.run.as_ref().filter(|_| stops) {
        Some(run) => run.ready.is_some_and(|ready| {
            unit.spec.kind != Kind::Task
                && instance.since.since(ready) >= unit.spec.restart.reset_after
        }),
        None => instance.last.as_ref().is_some_and(|end| was_stable(unit, end)),
    }
}

/// The verdict on a run that ended by itself and after which no other comes.
fn final_verdict(unit: &Unit, end: &End) -> Option<Verdict> {
    let success = is_success(&unit.spec, end);
    let again = match unit.spec.restart.policy {
        // `health` or `watchdog` asks for it, and is the nearer word.
        _ if end.cause.is_watched() => true,
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

/// Whether a task has done what it should, and nobody asked for more.
pub fn has_done(unit: &Unit, instance: &Instance) -> bool {
    let last = instance.last.as_ref().filter(|_| unit.spec.kind == Kind::Task);
    last.and_then(|end| final_verdict(unit, end)) == Some(Verdict::Done)
}

/// Whether a service that ended well would have gone on by what its unit says now.
pub fn goes_on_by_policy(unit: &Unit, instance: &Instance) -> bool {
    let is_over = instance.phase == Phase::Done && unit.spec.kind == Kind::Service;
    let last = instance.last.as_ref().filter(|_| is_over);
    last.is_some_and(|end| final_verdict(unit, end).is_none())
}

/// Whether a start failed for want of something that may be there again soon.
fn is_passing(end: &End) -> bool {
    matches!(&end.outcome, Some(Outcome::NotStarted(error)) if error.passing)
}

/// Whether a run that ended by itself has done what it should.
pub(super) fn is_success(spec: &Spec, end: &End) -> bool {
    let ended_well = end.outcome.as_ref().is_some_and(|outcome| spec.is_success(outcome));
    let process = spec.process.as_ref();
    let says_when = process.is_some_and(|p| p.ready != Ready::Started || p.pid_file.is_some());
    // A service that says when it is ready and ends before has failed to start.
    let came_up = spec.kind == Kind::Task || !says_when || end.ready_for.is_some();
    end.cause == StopCause::MainEnded && ended_well && came_up
}

/// The wait after a run's end before the automatic start number `attempt`.
fn wait(spec: &Spec, attempt: u32, end: &End) -> Span {
    let least = match &end.outcome {
        Some(Outcome::NotStarted(_)) if is_passing(end) => PASSING_DELAY,
        Some(Outcome::NotStarted(_)) => UNSTARTED_DELAY,
        Some(Outcome::Exited(_) | Outcome::Killed { .. } | Outcome::Unknown) | None => Span::ZERO,
    };
    delay(spec, attempt, end.run).max(least)
}

/// The wait before the automatic start number `attempt` as the spec has it, with its part of chance.
fn delay(spec: &Spec, attempt: u32, run: RunId) -> Span {
    let restart = &spec.restart;
    let exponent = i32::try_from(attempt.saturating_sub(1)).unwrap_or(i32::MAX);
    let grown = restart.delay.scale(restart.factor.powi(exponent)).min(restart.max_delay);
    let chance = f64::from(u16::try_from(run.0 >> 48).unwrap_or(0)) / f64::from(u16::MAX);
    grown.scale(1.0 - restart.jitter / 2.0 + restart.jitter * chance).min(restart.max_delay)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Arc;

    use super::*;
    use crate::model::{
        Command, FilePath, ProcessSpec, Signal, Stage, StartError, StartLimit, Template, UnitName,
    };

    /// A run id whose part of chance is the least, the middle, or the most.
    const LEAST: RunId = RunId(0);
    const MIDDLE: RunId = RunId(0x8000 << 48);
    const MOST: RunId = RunId(u64::MAX);

    fn unit(kind: Kind) -> Unit {
        let mut spec = Spec::new(kind, UnitName::parse("web").unwrap());
        let command = Command::Argv(vec![Template::literal("true")]);
        spec.process = Some(ProcessSpec::new(command, FilePath::from("/")));
        Unit::new(Arc::new(spec), "/units".to_owned())
    }

    fn second(n: u64) -> Monotonic {
        Monotonic::default().after(Span::seconds(n))
    }

    fn end(outcome: Outcome) -> End {
        End {
            run: MIDDLE,
            cause: StopCause::MainEnded,
            outcome: Some(outcome),
            at: second(100),
            ready_for: Some(Span::millis(5)),
            ends_opm: false,
        }
    }

    fn exited(code: u8) -> End {
        end(Outcome::Exited(code))
    }

    fn near(span: Span, millis: u64) -> bool {
        let (lower, upper) = (Span::millis(millis).scale(0.999), Span::millis(millis).scale(1.001));
        lower <= span && span <= upper
    }

    #[test]
    fn waits_grow_by_the_factor_up_to_the_longest() {
        let mut unit = unit(Kind::Service);
        let spec = Arc::make_mut(&mut unit.spec);
        for (attempt, millis) in
            [(1, 200), (2, 400), (3, 800), (8, 25_600), (9, 30_000), (1_000, 30_000)]
        {
            let wait = delay(spec, attempt, MIDDLE);
            assert!(near(wait, millis), "{attempt}: {wait}");
        }
        assert!(delay(spec, u32::MAX, MOST) <= spec.restart.max_delay);
        spec.restart.factor = 1.0;
        assert!(near(delay(spec, 50, MIDDLE), 200), "a factor of 1 is a constant wait");
        spec.restart.delay = Span::ZERO;
        spec.restart.factor = 2.0;
        assert_eq!(delay(spec, u32::MAX, MOST), Span::ZERO);
    }

    #[test]
    fn chance_moves_a_wait_by_half_its_part_to_both_sides() {
        let mut unit = unit(Kind::Service);
        let spec = Arc::make_mut(&mut unit.spec);
        assert!(near(delay(spec, 1, LEAST), 190) && near(delay(spec, 1, MOST), 210));
        assert!(delay(spec, 50, MOST) <= spec.restart.max_delay, "the longest wait is the longest");
        spec.restart.jitter = 0.0;
        assert_eq!(delay(spec, 1, LEAST), delay(spec, 1, MOST));
        spec.restart.jitter = 1.0;
        assert!(near(delay(spec, 1, LEAST), 100) && near(delay(spec, 1, MOST), 300));
    }

    #[test]
    fn a_stable_run_and_only_that_lets_waits_begin_anew() {
        let unit = unit(Kind::Service);
        let instance = Instance { attempt: 6, ..Instance::default() };
        for (ready_for, attempt) in [
            (None, 7),
            (Some(Span::millis(9_999)), 7),
            (Some(Span::seconds(10)), 1),
            (Some(Span::FOREVER), 1),
        ] {
            let end = End { ready_for, ..exited(1) };
            let Verdict::Backoff { until, attempt: next } = verdict(&unit, &instance, &end, true)
            else {
                unreachable!("{ready_for:?}")
            };
            assert_eq!(next, attempt, "{ready_for:?}");
            assert_eq!(until, end.at.after(delay(&unit.spec, attempt, end.run)));
        }
        let tired = Instance { attempt: u32::MAX, ..Instance::default() };
        assert!(matches!(
            verdict(&unit, &tired, &exited(1), true),
            Verdict::Backoff { attempt: u32::MAX, .. }
        ));
    }

    #[test]
    fn the_limit_counts_the_starts_of_its_time() {
        let mut unit = unit(Kind::Service);
        let limit = StartLimit { starts: 3, within: Span::seconds(60) };
        Arc::make_mut(&mut unit.spec).restart.limit = Some(limit);
        for (starts, at_limit) in [
            (vec![99], false),
            (vec![98, 99], false),
            (vec![97, 98, 99], true),
            (vec![40, 98, 99], true),
            (vec![39, 98, 99], false),
            (vec![1, 2, 3, 4, 5, 99], false),
        ] {
            let instance = Instance {
                starts: starts.iter().map(|at| second(*at)).collect::<VecDeque<_>>(),
                ..Instance::default()
            };
            let verdict = verdict(&unit, &instance, &exited(1), true);
            let is_limit = verdict == Verdict::Failed { at_limit: true };
            assert_eq!(is_limit, at_limit, "{starts:?}: {verdict:?}");
        }
    }

    #[test]
    fn the_policy_decides_by_how_it_ended() {
        let killed = || end(Outcome::Killed { signal: Signal::KILL, core: false });
        let unknown = || end(Outcome::Unknown);
        let late = || End { cause: StopCause::StartTimeout, ..exited(0) };
        let silent = |cause| End { cause, ..exited(0) };
        for (policy, end, again) in [
            (RestartPolicy::Never, silent(StopCause::Watchdog), true),
            (RestartPolicy::OnFailure, silent(StopCause::Triggered), true),
            (RestartPolicy::Never, silent(StopCause::Unhealthy), true),
            (RestartPolicy::Always, exited(0), true),
            (RestartPolicy::OnFailure, exited(0), false),
            (RestartPolicy::OnFailure, exited(1), true),
            (RestartPolicy::OnFailure, killed(), true),
            (RestartPolicy::OnFailure, unknown(), true),
            (RestartPolicy::OnFailure, late(), true),
            (RestartPolicy::Never, exited(1), false),
            (RestartPolicy::Never, killed(), false),
        ] {
            let mut unit = unit(Kind::Service);
            Arc::make_mut(&mut unit.spec).restart.policy = policy;
            let verdict = verdict(&unit, &Instance::default(), &end, true);
            let backs_off = matches!(verdict, Verdict::Backoff { .. });
            assert_eq!(backs_off, again, "{policy:?} {end:?}: {verdict:?}");
            let failed = matches!(verdict, Verdict::Failed { .. });
            assert!(again || failed != (end == exited(0)), "{policy:?} {end:?}: {verdict:?}");
        }
    }

    #[test]
    fn what_was_asked_for_is_stronger_than_any_policy() {
        let mut unit = unit(Kind::Service);
        Arc::make_mut(&mut unit.spec).restart.policy = RestartPolicy::Always;
        let instance = Instance::default();
        assert_eq!(verdict(&unit, &instance, &exited(1), false), Verdict::Down);
        for cause in [StopCause::GoalDown, StopCause::Restart, StopCause::Shutdown] {
            let end = End { cause, ..exited(1) };
            assert_eq!(verdict(&unit, &instance, &end, true), Verdict::Down);
        }
        let task = self::unit(Kind::Task);
        let done = verdict(&task, &instance, &exited(0), false);
        assert_eq!(done, Verdict::Done, "a task that came to its end has done so");
    }

    #[test]
    fn a_service_that_ends_before_it_said_that_it_is_ready_has_failed() {
        let mut unit = unit(Kind::Service);
        if let Some(process) = &mut Arc::make_mut(&mut unit.spec).process {
            process.ready = Ready::Notify.into();
        }
        let early = End { ready_for: None, ..exited(0) };
        let instance = Instance::default();
        assert!(matches!(verdict(&unit, &instance, &early, true), Verdict::Backoff { .. }));
        assert_eq!(verdict(&unit, &instance, &exited(0), true), Verdict::Done);
    }

    fn error(passing: bool) -> StartError {
        let reason = "resource temporarily unavailable".to_owned();
        StartError { stage: Stage::Fork, subject: String::new(), reason, passing }
    }

    #[test]
    fn what_makes_no_process_waits_for_a_moment_also_without_a_delay() {
        let mut unit = unit(Kind::Service);
        let spec = Arc::make_mut(&mut unit.spec);
        spec.restart.delay = Span::ZERO;
        let instance = Instance::default();
        for (outcome, least) in
            [(Outcome::NotStarted(error(false)), UNSTARTED_DELAY), (Outcome::Exited(1), Span::ZERO)]
        {
            let end = end(outcome);
            let until = end.at.after(least);
            let again = Verdict::Backoff { until, attempt: 1 };
            assert_eq!(verdict(&unit, &instance, &end, true), again);
        }
    }

    #[test]
    fn a_shortage_is_waited_out_whatever_the_policy_and_the_limit() {
        let mut unit = unit(Kind::Task);
        let spec = Arc::make_mut(&mut unit.spec);
        spec.restart.delay = Span::ZERO;
        spec.restart.limit = Some(StartLimit { starts: 1, within: Span::FOREVER });
        let end = end(Outcome::NotStarted(error(true)));
        let instance = Instance { starts: [second(99)].into(), ..Instance::default() };
        let until = end.at.after(PASSING_DELAY);
        let again = Verdict::Backoff { until, attempt: 1 };
        assert_eq!(verdict(&unit, &instance, &end, true), again);
        assert_eq!(verdict(&unit, &instance, &end, false), Verdict::Down);
    }
}
