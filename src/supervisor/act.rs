//! Carrying out steps. Nothing here changes a fact: every result comes back as an event.

use super::Supervisor;
use crate::model::{
    Action, Event, Happening, InstanceId, Outcome, Output, Phase, Reason, Reload, Role, RunId,
    Rung, Signal, Spec, StartError, Step, StopAction, StopCause, StopTo, Verdict,
};
use crate::plan;
use crate::system::{Launch, RunRef, System, SystemError};
use std::sync::Arc;

impl<S: System> Supervisor<S> {
    pub(super) fn carry_out(&mut self, step: Step) {
        let Step { instance: id, action, reason } = step;
        log::debug!("{id}: {action:?}: {reason}");
        match action {
            Action::Begin { fresh } => self.begin(&id, fresh, reason),
            Action::Spawn(run, role) => {
                self.spawn(&id, run, role, Some(reason));
                if role == Role::Reload {
                    self.happens(&id, Happening::Reloaded { run }, None);
                }
            }
            Action::MarkReady(run) => self.happens(&id, Happening::Ready { run }, Some(reason)),
            Action::MarkUp(run) => {
                self.happens(&id, Happening::Up { run }, Some(reason));
                if self.spec_of(&id).is_some_and(|spec| spec.watch.is_some()) {
                    self.watch_paths(&id);
                }
            }
            Action::ReloadSignal(run) => self.reload_signal(&id, run, reason),
            Action::StopBegin(run, cause) => {
                self.happens(&id, Happening::StopBegan { run, cause }, Some(reason));
            }
            Action::Climb(run, rung) => self.climb(&id, run, rung, reason),
            Action::KillHelper(run, role) => self.kill_helper(&id, run, role),
            Action::WatchTree(run) => {
                let left = self.run_ref(&id).map_or(0, |run| self.system.watch_tree(&run));
                self.happens(&id, Happening::Tree { run, left }, None);
            }
            Action::Settle(verdict) => {
                if let Some(run) = self.instance(&id).and_then(|instance| instance.run.as_ref()) {
                    let run = run.id;
                    let idle = !matches!(verdict, Verdict::Backoff { .. });
                    self.system.release(&id, run, idle);
                }
                self.leave_sockets(&id, &verdict);
                self.former.remove(&id);
                let ends_opm = plan::ends_opm(&self.view(), &id, &verdict);
                self.happens(&id, Happening::Settled { verdict, ends_opm }, Some(reason));
            }
            Action::Wait { on, fresh } => {
                let epoch = self.epoch_served(&id, &on);
                self.happens(&id, Happening::Waits { on, fresh, epoch }, Some(reason));
            }
            Action::Enrol => self.enrol(&id),
            Action::PassOver => {
                log::info!("{id}: passed over: {reason}");
                self.pass_over(&id, &reason);
            }
            Action::Queue => self.serve(&id, |entry| entry.queued = true),
            Action::Forget => {
                let unit = self.desired.units.get(&id.unit);
                self.system.forget(&id, unit.is_none_or(|unit| unit.removed));
                self.system.close_sockets(&id);
                self.happens(&id, Happening::Forgotten, Some(reason));
                self.wakes.set(&id, None);
                self.times.alarms.set(&id, None);
                self.dirty.remove(&id);
                self.purge(&id);
            }
            Action::StartUnit(unit) => self.start_by_spec(&unit, &id),
            Action::Shutdown(code) => {
                let budget = self.shutdown_budget;
                let why = format!("`{id}` ended for good: {reason}");
                self.begin_shutdown(code, budget, why, false);
            }
        }
    }

    /// Whether a step makes a process, or leads to one at once.
    pub(super) fn makes_process(&self, step: &Step) -> bool {
        match step.action {
            Action::Spawn(..) => true,
            Action::Begin { .. } => {
                self.spec_of(&step.instance).is_some_and(|spec| spec.process.is_some())
            }
            Action::Climb(_, rung) => match rung {
                Rung::PreStop(_) | Rung::PostStop(_) => true,
                Rung::Step(n) => self.spec_of(&step.instance).is_some_and(|spec| {
                    let step = spec.stop.steps.get(usize::from(n));
                    step.is_some_and(|step| matches!(step.action, StopAction::Command(_)))
                }),
                Rung::Dependents | Rung::Kill => false,
            },
            Action::MarkReady(_)
            | Action::MarkUp(_)
            | Action::ReloadSignal(_)
            | Action::StopBegin(..)
            | Action::KillHelper(..)
            | Action::WatchTree(_)
            | Action::Settle(_)
            | Action::Wait { .. }
            | Action::Enrol
            | Action::PassOver
            | Action::Queue
            | Action::Forget
            | Action::StartUnit(_)
            | Action::Shutdown(_) => false,
        }
    }

    pub(super) fn happens(&mut self, id: &InstanceId, what: Happening, reason: Option<Reason>) {
        let event = self.event(id, what);
        self.apply(event, reason);
    }

    pub(super) fn spec_of(&self, id: &InstanceId) -> Option<Arc<Spec>> {
        self.desired.units.get(&id.unit).map(|unit| Arc::clone(&unit.spec))
    }

    fn begin(&mut self, id: &InstanceId, fresh: bool, reason: Reason) {
        let Some(unit) = self.desired.units.get(&id.unit) else { return };
        let (epoch, hash, spec) = (unit.epoch_of(id), unit.hash, Arc::clone(&unit.spec));
        let run = RunId(self.system.random());
        let wall = self.system.wall();
        let due = self.serve_by_run(id, run, epoch);
        let began = Happening::Began { run, epoch, hash, wall, fresh, due };
        self.happens(id, began, Some(reason));
        let index = spec.index_of(id);
        if let Err(condition) = self.system.conditions(id, index, &spec) {
            let cause = StopCause::ConditionUnmet(condition);
            self.happens(
                id,
                Happening::StopBegan { run, cause: cause.clone() },
                Some(Reason::Stop(cause)),
            );
            return;
        }
        self.listen(id, run, &spec);
        let reads = spec.process.as_ref().is_some_and(|process| process.output == Output::Keeper);
        if reads && let Err(error) = self.system.instruct(id, index, &spec) {
            self.not_started(id, run, Role::Main, &error);
        }
    }

    fn not_started(&mut self, id: &InstanceId, run: RunId, role: Role, error: &SystemError) {
        let error = StartError {
            stage: crate::model::Stage::Prepare,
            subject: error.subject.clone(),
            reason: error.reason.clone(),
            passing: true,
        };
        let outcome = Outcome::NotStarted(error);
        self.happens(id, Happening::Ended { run, role, outcome }, None);
    }

    /// What a process of a run is made from: whatever is fixed when a run starts stays as it was then.
    pub(super) fn launch(&self, id: &InstanceId, run: RunId, role: Role) -> Option<Launch> {
        let spec = self.spec_of(id)?;
        let (spec, index) = self.former_of(id, run, &spec).unwrap_or_else(|| {
            let index = spec.index_of(id);
            (spec, index)
        });
        Some(Launch { instance: id.clone(), index, run, role, spec })
    }

    fn spawn(&mut self, id: &InstanceId, run: RunId, role: Role, reason: Option<Reason>) {
        let Some(launch) = self.launch(id, run, role) else { return };
        let at = self.system.now();
        let what = match self.system.spawn(&launch, at) {
            Ok(identity) => Happening::Spawned { run, role, identity },
            Err(error) => Happening::Ended { run, role, outcome: Outcome::NotStarted(error) },
        };
        self.apply(Event { instance: id.clone(), at, what }, reason);
    }

    /// Has the files watched that a run watches while it is up.
    pub(super) fn watch_paths(&mut self, id: &InstanceId) {
        let up = self.instance(id).filter(|instance| instance.phase == Phase::Up);
        let run = up.and_then(|instance| instance.run.as_ref()).map(|run| run.id);
        if let Some(launch) = run.and_then(|run| self.launch(id, run, Role::Main)) {
            self.system.watch_paths(&launch);
        }
    }

    fn reload_signal(&mut self, id: &InstanceId, run: RunId, reason: Reason) {
        let Some(spec) = self.spec_of(id) else { return };
        if let Some(Reload::Signal(signal)) = spec.reload.as_deref() {
            self.signal_main(id, *signal);
        }
        self.happens(id, Happening::Reloaded { run }, Some(reason));
    }

    /// Sends a signal to the main process of an instance, where there is one.
    pub(super) fn signal_main(&mut self, id: &InstanceId, signal: Signal) -> bool {
        let main = self
            .instance(id)
            .and_then(|instance| instance.run.as_ref()?.main.as_ref())
            .filter(|main| main.is_alive())
            .and_then(|main| main.identity);
        let Some(identity) = main else { return false };
        if let Err(error) = self.system.signal(&identity, signal) {
            log::error!("{id}: {error}");
        }
        true
    }

    /// A rung is noted before its command is run, which must not run twice; a signal is sent before
    /// its rung is noted, since one that was lost would be waited for.
    fn climb(&mut self, id: &InstanceId, run: RunId, rung: Rung, reason: Reason) {
        let role = match rung {
            Rung::Dependents => None,
            Rung::PreStop(n) => Some(Role::PreStop(n)),
            Rung::PostStop(n) => Some(Role::PostStop(n)),
            Rung::Kill => {
                if let Some(tree) = self.run_ref(id) {
                    self.system.kill_tree(&tree);
                }
                None
            }
            Rung::Step(n) => self.take_step(id, n),
        };
        self.happens(id, Happening::Rung { run, rung }, Some(reason));
        if let Some(role) = role {
            self.spawn(id, run, role, None);
        }
    }

    /// Sends the signal of a stop step, or returns the role of its command.
    fn take_step(&mut self, id: &InstanceId, n: u16) -> Option<Role> {
        let spec = self.spec_of(id)?;
        match spec.stop.steps.get(usize::from(n)).map(|step| &step.action)? {
            StopAction::Command(_) => return Some(Role::Stop(n)),
            // Where it is gone, what it leaves behind is told.
            // What is stopped (SIGSTOP) could not end: it has to go on.
            StopAction::Signal(signal, StopTo::Main) if self.signal_main(id, *signal) => {
                self.signal_main(id, Signal::CONT);
            }
            StopAction::Signal(signal, StopTo::Main | StopTo::All) => {
                let tree = self.run_ref(id)?;
                self.system.signal_tree(&tree, *signal);
                self.system.signal_tree(&tree, Signal::CONT);
            }
        }
        None
    }

    fn kill_helper(&mut self, id: &InstanceId, run: RunId, role: Role) {
        let Some(tree) = self.run_ref(id) else { return };
        if let Role::PostStop(_) = role {
            self.system.kill_tree(&tree);
            let left = self.system.watch_tree(&tree);
            self.happens(id, Happening::Tree { run, left }, None);
            return;
        }
        let helper = tree.leaders.iter().find(|(of, _)| *of == role).map(|(_, identity)| *identity);
        if let Some(identity) = helper
            && let Err(error) = self.system.kill_group(&identity)
        {
            log::error!("{id}: {error}");
        }
    }

    /// An instance's run as its processes are found.
    pub(super) fn run_ref(&self, id: &InstanceId) -> Option<RunRef> {
        let run = self.instance(id)?.run.as_ref()?;
        let leaders =
            run.processes().filter_map(|(role, process)| Some((role, process.identity?))).collect();
        Some(RunRef { instance: id.clone(), run: run.id, leaders, adopted: run.adopted })
    }
}
