//! A run on its way up, and while it is up.

use super::roll::{self, Turn};
use super::{Due, View, lazy, order, probe, schedule, watchdog};
use crate::model::{
    Action, Instance, InstanceId, Kind, Life, Monotonic, OnDependencyRestart, Outcome, Phase,
    Process, Ready, Reason, Reload, Role, Run, Spec, StopCause, Unit, WatchAction,
};

/// What is due for an instance with a run that is not being ended.
pub(super) fn running(
    view: &View<'_>,
    id: &InstanceId,
    instance: &Instance,
    run: &Run,
    now: Monotonic,
) -> Due {
    // A run whose unit nobody knows is left over when all saved state was broken: it is left alone
    // until an apply says what it is. (A unit that was removed is known until its run is over.)
    let Some(unit) = view.unit(id) else {
        return view.shutdown.map_or(Due::NOTHING, |_| {
            let cause = StopCause::Shutdown;
            let reason = Reason::Stop(cause.clone());
            Due::step(id, Action::StopBegin(run.id, cause), reason)
        });
    };
    if let Some(cause) = leave_cause(view, unit, id, instance, run) {
        let reason = Reason::Stop(cause.clone());
        return Due::step(id, Action::StopBegin(run.id, cause), reason);
    }
    let begun_by = (instance.hash == unit.hash).then_some(&*unit.spec);
    let deadline = match watchdog::look(begun_by, run, now) {
        Ok(deadline) => deadline,
        Err(cause) => {
            let reason = Reason::Stop(cause.clone());
            return Due::step(id, Action::StopBegin(run.id, cause), reason);
        }
    };
    let scheduled = unit.spec.schedule.as_ref();
    let called = scheduled.map_or(Due::NOTHING, |s| schedule::running(view, unit, s, id, run));
    if !called.steps.is_empty() {
        return called;
    }
    let due = if instance.phase == Phase::Up {
        up(view, unit, id, run, now)
    } else {
        starting(&unit.spec, id, instance, run, now)
    };
    let wake = [due.wake, deadline].into_iter().flatten().min();
    Due { steps: due.steps, wake, alarm: called.alarm }
}

/// Why the run must end now, if it must.
fn leave_cause(
    view: &View<'_>,
    unit: &Unit,
    id: &InstanceId,
    instance: &Instance,
    run: &Run,
) -> Option<StopCause> {
    if !view.wants(id) {
        let shutdown = view.shutdown.is_some();
        return Some(if shutdown { StopCause::Shutdown } else { StopCause::GoalDown });
    }
    // One that has forked away may still say who goes on, while there is anybody to do so.
    let has_left = run.awaits_main(&unit.spec) && run.left != Some(0);
    if run.main.as_ref().is_some_and(|main| !main.is_alive()) && !has_left {
        return Some(StopCause::MainEnded);
    }
    // A task in progress is not altered by a new definition; it runs once more afterwards.
    if roll::is_other(unit, id, instance) && roll::turn(view, id).is_none_or(|t| t == Turn::Now) {
        let is_asked = instance.epoch != unit.epoch_of(id);
        return Some(if is_asked { StopCause::Restart } else { StopCause::Changed });
    }
    if let Some(lost) = order::lost(view, &id.unit) {
        return Some(StopCause::Dependency(lost));
    }
    if let Some(other) = order::conflict(view, &id.unit) {
        return Some(StopCause::Conflict(other));
    }
    if let Some(socket) = lazy::newer_socket(view, id, run) {
        return Some(StopCause::DependencyRestarted(socket));
    }
    if unit.spec.relations.on_dependency_restart == OnDependencyRestart::Restart {
        return order::recovered_since(view, &id.unit, run.began)
            .map(StopCause::DependencyRestarted);
    }
    None
}

/// The next thing in a start: condition, hooks, main process, readiness, hooks, up.
fn starting(spec: &Spec, id: &InstanceId, instance: &Instance, run: &Run, now: Monotonic) -> Due {
    let deadline =
        instance.since.after(spec.start_timeout).max(run.words.more_time.unwrap_or_default());
    let due = match next_in_start(spec, run, now) {
        Next::Do(action) => return Due::step(id, action, Reason::Next),
        Next::Fail(cause) => {
            let reason = Reason::Stop(cause.clone());
            return Due::step(id, Action::StopBegin(run.id, cause), reason);
        }
        Next::WaitUntil(at) => at,
        Next::Wait => None,
    };
    if now >= deadline {
        let cause = StopCause::StartTimeout;
        let reason = Reason::Stop(cause.clone());
        return Due::step(id, Action::StopBegin(run.id, cause), reason);
    }
    Due::at(due.map_or(deadline, |at| at.min(deadline)))
}

enum Next {
    Do(Action),
    Fail(StopCause),
    WaitUntil(Option<Monotonic>),
    Wait,
}

fn next_in_start(spec: &Spec, run: &Run, now: Monotonic) -> Next {
    if run.helper_alive().is_some() {
        return Next::Wait;
    }
    let Some(process) = &spec.process else {
        let marked = run.ready.is_some();
        return Next::Do(if marked { Action::MarkUp(run.id) } else { Action::MarkReady(run.id) });
    };
    match &run.main {
        None => match before_main(spec, run.helper.as_deref()) {
            Ok(role) => Next::Do(Action::Spawn(run.id, role)),
            Err(cause) => Next::Fail(cause),
        },
        Some(_) if run.awaits_main(spec) => Next::Wait,
        Some(Process { state: Life::Running(since), .. }) if run.ready.is_none() => match &*process
            .ready
        {
            _ if spec.kind == Kind::Task => Next::Do(Action::MarkReady(run.id)),
            Ready::Started => Next::Do(Action::MarkReady(run.id)),
            Ready::Delay(span) if now >= since.after(*span) => Next::Do(Action::MarkReady(run.id)),
            Ready::Delay(span) => Next::WaitUntil(Some(since.after(*span))),
            Ready::Asked(asked) => match probe::next(run, Role::ReadyProbe, asked, *since, now) {
                probe::Next::Yes => Next::Do(Action::MarkReady(run.id)),
                probe::Next::Do(action) => Next::Do(action),
                probe::Next::Wait(at) => Next::WaitUntil(Some(at)),
            },
            Ready::Notify | Ready::Fd(_) | Ready::File(_) | Ready::Log(_) => Next::Wait,
        },
        Some(Process { state: Life::Running(_), .. }) => after_ready(spec, run),
        Some(_) => Next::Wait,
    }
}

/// The next process before or with the main one, or why there is none.
fn before_main(spec: &Spec, helper: Option<&(Role, Process)>) -> Result<Role, StopCause> {
    let hook = |n: u16| match spec.hooks.pre_start.get(usize::from(n)) {
        Some(_) => Role::PreStart(n),
        None => Role::Main,
    };
    match helper {
        None if spec.conditions.command.is_some() => Ok(Role::Condition),
        None => Ok(hook(0)),
        // Nobody saw how it ended, as the supervisor was away: once more.
        Some((role @ (Role::Condition | Role::PreStart(_)), process))
            if process.outcome() == Some(&Outcome::Unknown) =>
        {
            Ok(*role)
        }
        Some((Role::Condition, process)) => match process.outcome() {
            Some(Outcome::Exited(0)) => Ok(hook(0)),
            Some(Outcome::NotStarted(_)) => Err(StopCause::HookFailed(Role::Condition)),
            outcome => {
                let how = outcome.map(ToString::to_string).unwrap_or_default();
                Err(StopCause::ConditionUnmet(format!("its command {how}")))
            }
        },
        Some((Role::PreStart(n), process)) => {
            let ignored =
                spec.hooks.pre_start.get(usize::from(*n)).is_none_or(|h| h.ignore_failure);
            match process.outcome() {
                Some(Outcome::Exited(0)) => Ok(hook(n.saturating_add(1))),
                _ if ignored => Ok(hook(n.saturating_add(1))),
                _ => Err(StopCause::HookFailed(Role::PreStart(*n))),
            }
        }
        Some(_) => Ok(Role::Main),
    }
}

/// Hooks once ready, then up.
fn after_ready(spec: &Spec, run: &Run) -> Next {
    let hooks = &spec.hooks.post_start;
    let next = match run.helper.as_deref() {
        Some((role @ Role::PostStart(_), process))
            if process.outcome() == Some(&Outcome::Unknown) =>
        {
            return Next::Do(Action::Spawn(run.id, *role));
        }
        Some((Role::PostStart(n), process)) => {
            let ignored = hooks.get(usize::from(*n)).is_none_or(|hook| hook.ignore_failure);
            if !ignored && process.outcome() != Some(&Outcome::Exited(0)) {
                return Next::Fail(StopCause::HookFailed(Role::PostStart(*n)));
            }
            n.saturating_add(1)
        }
        _ => 0,
    };
    match hooks.get(usize::from(next)) {
        Some(_) => Next::Do(Action::Spawn(run.id, Role::PostStart(next))),
        None => Next::Do(Action::MarkUp(run.id)),
    }
}

/// While a run is up: its reloads, then its health.
fn up(view: &View<'_>, unit: &Unit, id: &InstanceId, run: &Run, now: Monotonic) -> Due {
    let due = reloads(view, unit, id, run, now);
    if !due.steps.is_empty() {
        return due;
    }
    let health = probe::health(view, &unit.spec, id, run, now);
    let wake = [due.wake, health.wake].into_iter().flatten().min();
    Due { steps: health.steps, wake, alarm: None }
}

/// Follow the reload of a required unit, and bound a reload command's time.
fn reloads(view: &View<'_>, unit: &Unit, id: &InstanceId, run: &Run, now: Monotonic) -> Due {
    let spec = &unit.spec;
    if let Some((role @ Role::Reload, process)) = run.helper.as_deref() {
        match process.state {
            // That it runs its program is told, and so is its end.
            Life::Born => return Due::NOTHING,
            Life::Running(since) => {
                let deadline = since.after(spec.start_timeout);
                if now >= deadline {
                    return Due::step(id, Action::KillHelper(run.id, *role), Reason::StopTimedOut);
                }
                return Due::at(deadline);
            }
            Life::Ended(_) => {}
        }
    }
    let touched = touched(spec, id, run, now);
    let follows = spec.relations.on_dependency_restart == OnDependencyRestart::Reload;
    if !follows || !touched.steps.is_empty() {
        return touched;
    }
    let since = run.reloaded.unwrap_or(run.began);
    match order::recovered_since(view, &id.unit, since) {
        Some(cause) => {
            let action = reload_action(spec, run);
            action
                .map_or(touched, |action| Due::step(id, action, Reason::DependencyRestarted(cause)))
        }
        None => touched,
    }
}

/// What follows from a change of something that a run watches, once it has been quiet for a while.
fn touched(spec: &Spec, id: &InstanceId, run: &Run, now: Monotonic) -> Due {
    let (Some(watch), Some(at)) = (&spec.watch, run.touched) else { return Due::NOTHING };
    let due = at.after(watch.debounce);
    if now < due {
        return Due::at(due);
    }
    let restart = Action::StopBegin(run.id, StopCause::Touched);
    let action = match watch.action {
        WatchAction::Restart => restart,
        // A check sees to it that there is a way to reload.
        WatchAction::Reload => reload_action(spec, run).unwrap_or(restart),
    };
    Due::step(id, action, Reason::Touched)
}

/// The action that reloads this run, if its spec has one.
pub fn reload_action(spec: &Spec, run: &Run) -> Option<Action> {
    Some(match spec.reload.as_deref()? {
        Reload::Signal(_) => Action::ReloadSignal(run.id),
        Reload::Command(_) => Action::Spawn(run.id, Role::Reload),
    })
}
