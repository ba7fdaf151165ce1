//! The stop ladder: dependents first, then the unit's own hooks and steps, then the kill, then the
//! hooks that follow when everything is gone.

use super::{Due, Hurry, Shutdown, View, ends, first_stop_rung, helper_time, order, restart};
use crate::model::{
    Action, Instance, InstanceId, Monotonic, Process, Reason, Role, Run, Rung, Span, Spec,
    StopCause, StopStage, Verdict,
};

/// A run that is being ended.
pub(super) struct Stopping<'a> {
    pub(super) id: &'a InstanceId,
    pub(super) instance: &'a Instance,
    pub(super) run: &'a Run,
    pub(super) cause: &'a StopCause,
    pub(super) rung: Rung,
    /// Since when it is on this rung.
    pub(super) since: Monotonic,
    /// Since when its own end is under way.
    pub(super) own_since: Monotonic,
    pub(super) now: Monotonic,
}

impl Stopping<'_> {
    pub(super) fn decide(&self, view: &View<'_>) -> Due {
        let now = self.now;
        let fallback = Spec::default();
        let spec = view.unit(self.id).map_or(&fallback, |unit| &*unit.spec);
        let over = view.shutdown.and_then(Shutdown::end).filter(|at| now >= *at);
        if self.rung < Rung::Kill && (over.is_some() || view.hurry() == Hurry::Kill) {
            return self.climb(Rung::Kill, Reason::BudgetSpent);
        }
        match self.rung {
            Rung::Dependents => self.at_dependents(view, spec),
            Rung::PreStop(n) => match self.helper(view, spec, Role::PreStop(n)) {
                Some(due) => due,
                None => self.climb(self.after_pre_stop(spec, n), Reason::Next),
            },
            Rung::Step(n) => self.at_step(view, spec, n),
            Rung::Kill => self.when_gone(view, spec).unwrap_or(Due::NOTHING),
            Rung::PostStop(n) => match self.helper(view, spec, Role::PostStop(n)) {
                Some(due) => due,
                None => self.after_post_stop(view, spec, n),
            },
        }
    }

    fn climb(&self, rung: Rung, reason: Reason) -> Due {
        Due::step(self.id, Action::Climb(self.run.id, rung), reason)
    }

    fn count(&self) -> Due {
        Due::step(self.id, Action::WatchTree(self.run.id), Reason::Next)
    }

    fn at_dependents(&self, view: &View<'_>, spec: &Spec) -> Due {
        let ordered = view.hurry() == Hurry::Ordered;
        if ordered && order::dependents_are_up(view, self.id, self.cause) {
            return self.capped_wake(view, None);
        }
        if !self.run.is_alive() {
            return match self.run.left {
                None => self.count(),
                Some(0) => self.finish(view, spec, None),
                Some(_) => self.climb(first_stop_rung(spec, false), self.reason()),
            };
        }
        let main_alive = self.run.main.as_ref().is_some_and(Process::is_alive);
        let with_hooks = view.runs_hooks() && self.cause.spreads() && main_alive;
        self.climb(first_stop_rung(spec, with_hooks), self.reason())
    }

    fn reason(&self) -> Reason {
        Reason::Stop(self.cause.clone())
    }

    fn after_pre_stop(&self, spec: &Spec, n: u16) -> Rung {
        let next = n.saturating_add(1);
        let main_alive = self.run.main.as_ref().is_some_and(Process::is_alive);
        match spec.hooks.pre_stop.get(usize::from(next)) {
            Some(_) if main_alive => Rung::PreStop(next),
            _ => first_stop_rung(spec, false),
        }
    }

    fn at_step(&self, view: &View<'_>, spec: &Spec, n: u16) -> Due {
        if let Some(due) = self.when_gone(view, spec) {
            return due;
        }
        let wait = spec.stop.steps.get(usize::from(n)).map_or(Span::ZERO, |step| step.wait);
        let deadline = self.deadline(view, spec, wait, self.run.words.more_time);
        if let Some((_, reason)) = deadline.clone().filter(|(at, _)| self.now >= *at) {
            let next = n.saturating_add(1);
            let more = spec.stop.steps.get(usize::from(next)).is_some();
            let rung = if more { Rung::Step(next) } else { Rung::Kill };
            return self.climb(rung, reason);
        }
        self.capped_wake(view, deadline.map(|(at, _)| at))
    }

    /// The end of a wait on this rung, or of the time that was asked for beyond it, within the time
    /// that a shutdown leaves to this stage; and what it means.
    fn deadline(
        &self,
        view: &View<'_>,
        spec: &Spec,
        wait: Span,
        extended: Option<Monotonic>,
    ) -> Option<(Monotonic, Reason)> {
        let own = (wait != Span::FOREVER).then(|| {
            (self.since.after(wait).max(extended.unwrap_or_default()), Reason::StopTimedOut)
        });
        let share = self.stage_end(view).map(|end| {
            let (rest, ahead) = (end.since(self.since), self.waits_ahead(view, spec));
            (self.since.after(part(rest, wait, &ahead)), Reason::ShareSpent)
        });
        [own, share].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// When a shutdown has to be done with this stage: of the time that was left when its end began it has
    /// an equal share with all stages that were to come then, or all that those do not need.
    fn stage_end(&self, view: &View<'_>) -> Option<Monotonic> {
        let shutdown = view.shutdown?;
        let ordered = shutdown.hurry == Hurry::Ordered;
        let alone = StopStage { count: 1, below: Span::ZERO };
        let stage = shutdown.stages.get(&self.id.unit).copied().filter(|_| ordered);
        let StopStage { count, below } = stage.unwrap_or(alone);
        let began = self.own_since.max(shutdown.began);
        let left = shutdown.end()?.since(began);
        Some(began.after(left.share(count).max(left.less(below))))
    }

    /// The waits of this rung and of all that may follow, each in its own time.
    fn waits_ahead(&self, view: &View<'_>, spec: &Spec) -> Vec<Span> {
        let helpers = |hooks: usize, done: u16| {
            let left = hooks.saturating_sub(usize::from(done));
            std::iter::repeat_n(helper_time(spec), left)
        };
        let (pre, steps, post) = match self.rung {
            Rung::Dependents => (Some(0), 0, 0),
            Rung::PreStop(n) => (Some(n), 0, 0),
            Rung::Step(n) => (None, n, 0),
            Rung::Kill => (None, u16::MAX, 0),
            Rung::PostStop(n) => (None, u16::MAX, n),
        };
        let pre = pre.into_iter().flat_map(|done| helpers(spec.hooks.pre_stop.len(), done));
        let steps = spec.stop.steps.iter().skip(usize::from(steps)).map(|step| step.wait);
        let hooks = if view.runs_hooks() { spec.hooks.post_stop.len() } else { 0 };
        pre.chain(steps).chain(helpers(hooks, post)).collect()
    }

    /// Look again at the end of the wait, or when the whole shutdown is over.
    fn capped_wake(&self, view: &View<'_>, wait: Option<Monotonic>) -> Due {
        let over = view.shutdown.and_then(Shutdown::end).filter(|at| *at > self.now);
        let wake = [wait, over].into_iter().flatten().min();
        Due { wake, ..Due::NOTHING }
    }

    /// What is due once no process with a role lives: count the rest, or finish.
    fn when_gone(&self, view: &View<'_>, spec: &Spec) -> Option<Due> {
        if self.run.is_alive() {
            return None;
        }
        match self.run.left {
            None => Some(self.count()),
            Some(0) => Some(self.finish(view, spec, None)),
            Some(_) => None,
        }
    }

    /// Everything is gone: the next hook, or the verdict.
    fn finish(&self, view: &View<'_>, spec: &Spec, last_hook: Option<u16>) -> Due {
        let next = last_hook.map_or(0, |n| n.saturating_add(1));
        let any = self.run.main.is_some() || self.run.helper.is_some();
        let hooks = any && view.runs_hooks();
        if hooks && spec.hooks.post_stop.get(usize::from(next)).is_some() {
            return self.climb(Rung::PostStop(next), Reason::Next);
        }
        let end = self.run.as_end(self.cause.clone(), self.instance.since, self.now);
        let wanted = view.wants(self.id);
        let verdict = view
            .unit(self.id)
            .map_or(Verdict::Down, |unit| restart::verdict(unit, self.instance, &end, wanted));
        let at_limit = verdict == Verdict::Failed { at_limit: true };
        let reason = if at_limit { Reason::Limit } else { Reason::Ended(end.outcome) };
        // What is to follow is wanted first: a crash between the two asks for it again, and a start
        // of what is started changes nothing.
        let mut due = Due::default();
        if let Some(unit) = ends::starts_unit(spec, &verdict) {
            due.steps.extend(Due::step(self.id, Action::StartUnit(unit), reason.clone()).steps);
        }
        due.steps.extend(Due::step(self.id, Action::Settle(verdict), reason).steps);
        due
    }

    fn after_post_stop(&self, view: &View<'_>, spec: &Spec, n: u16) -> Due {
        match self.run.left {
            None => self.count(),
            Some(0) => self.finish(view, spec, Some(n)),
            // What a hook left behind is nobody's: away with it.
            Some(_) => {
                let action = Action::KillHelper(self.run.id, Role::PostStop(n));
                Due::step(self.id, action, Reason::Next)
            }
        }
    }

    /// What is due for a helper on this rung; `None` once it has ended.
    fn helper(&self, view: &View<'_>, spec: &Spec, role: Role) -> Option<Due> {
        let process = self.run.process(role)?;
        if !process.is_alive() {
            return None;
        }
        let deadline = self.deadline(view, spec, helper_time(spec), None);
        if view.hurry() == Hurry::Kill || deadline.as_ref().is_some_and(|(at, _)| self.now >= *at) {
            let action = Action::KillHelper(self.run.id, role);
            return Some(Due::step(self.id, action, Reason::StopTimedOut));
        }
        Some(self.capped_wake(view, deadline.map(|(at, _)| at)))
    }
}

/// How long a stop of this spec may take by its own times, its hooks among them; [`Span::FOREVER`]:
/// without an end.
pub fn stop_time(spec: &Spec) -> Span {
    let hooks = spec.hooks.pre_stop.len().saturating_add(spec.hooks.post_stop.len());
    let helpers = std::iter::repeat_n(helper_time(spec), hooks);
    helpers.fold(spec.stop.time(), Span::plus)
}

/// What of the time that is left is for one of these waits: all that the others leave, or, where there is
/// not enough for all, in proportion to what each could use.
fn part(rest: Span, wait: Span, ahead: &[Span]) -> Span {
    let could_use = |wait: Span| wait.min(rest).as_nanos();
    let all = ahead.iter().fold(0, |all: u64, wait| all.saturating_add(could_use(*wait)));
    if all <= rest.as_nanos() {
        return rest.less(Span::nanos(all.saturating_sub(could_use(wait))));
    }
    #[expect(clippy::cast_precision_loss, reason = "a wait needs no nanosecond")]
    rest.scale(could_use(wait) as f64 / all as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_a_stage_is_shared_among_its_waits() {
        let seconds = Span::seconds;
        for (rest, ahead, most) in [
            (10, vec![4, 3], 7),
            (7, vec![4, 3], 4),
            (6, vec![6, 3], 4),
            (9, vec![10], 9),
            (9, vec![10, 10, 10], 3),
            (0, vec![10], 0),
        ] {
            let ahead: Vec<Span> = ahead.into_iter().map(seconds).collect();
            let got = part(seconds(rest), ahead[0], &ahead);
            assert!(got.as_nanos().abs_diff(seconds(most).as_nanos()) < 1_000, "{rest}: {got}");
        }
        let forever = [Span::FOREVER, seconds(8)];
        assert_eq!(part(seconds(8), forever[0], &forever), seconds(4));
    }
}
