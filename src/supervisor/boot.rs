//! The first state: what was saved, and what is found alive. Boot, restore after a crash, and the
//! new image after `opm reexec` are all this; starting is left to the first turn.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::agenda::Timetable;
use super::keeper_unit::{self, KeeperOptions};
use super::queue::Queue;
use super::running::Running;
use super::wakes::Wakes;
use super::{Refusal, Supervisor};
use crate::model::{
    Event, Graph, Happening, Instance, InstanceId, Kind, Life, Outcome, Phase, Role, RunId, Rung,
    Span, Spec, Stage, StartError, Word,
};
use crate::plan::{self, Capacity};
use crate::system::{Launch, Loaded, Proof, Replay, System};

/// What a supervisor begins with.
#[derive(Debug)]
pub struct Boot<S> {
    /// The world.
    pub system: S,
    /// What was saved.
    pub loaded: Loaded,
    /// What was let run.
    pub replay: Replay,
    /// The log keeper, unless none is to run.
    pub keeper: Option<KeeperOptions>,
    /// How long a shutdown may take; `None`: as long as the units' own times.
    pub shutdown_budget: Option<Span>,
    /// What there is for all that may be up; `None`: enough.
    pub capacity: Option<Capacity>,
    /// Whether this process was the supervisor before, by `opm reexec`: its children are ours.
    pub same_process: bool,
}

impl<S: System> Boot<S> {
    /// Takes over what lives, notes what is dead, and is ready for its first turn.
    pub fn supervisor(self) -> Supervisor<S> {
        for problem in self.loaded.problems.iter().chain(&self.replay.problems) {
            log::warn!("{problem}");
        }
        let mut desired = self.loaded.desired.unwrap_or_default();
        let observed = self.replay.observed;
        desired.take_out_removed(|name| observed.of_unit(name).next().is_some());
        if self.replay.is_first {
            desired.forget_until_boot();
        }
        if let Some(keeper) = &self.keeper {
            keeper_unit::add_to(&mut desired, keeper);
        }
        let running = Running::of(&observed);
        let graph = Graph::build(&desired);
        let mut supervisor = Supervisor {
            system: self.system,
            desired,
            graph,
            observed,
            shutdown: None,
            keeper: self.keeper,
            shutdown_budget: self.shutdown_budget,
            capacity: self.capacity,
            dirty: BTreeSet::new(),
            queued: Queue::default(),
            wakes: Wakes::new(),
            times: Timetable::new(self.loaded.agenda),
            hold_ends: None,
            former: BTreeMap::new(),
            lift_after: None,
            revert_after: None,
            running,
            notices: Vec::new(),
            ledger_fails: false,
            replace_fails: None,
            is_restless: false,
            minimal: false,
            read: BTreeMap::new(),
        };
        supervisor.adopt_all(self.same_process);
        supervisor.prune_agenda();
        supervisor.resume_trial();
        supervisor.note_holds();
        supervisor.work_out();
        supervisor.touch_all();
        supervisor
    }
}

impl<S: System> Supervisor<S> {
    /// After a bug in the middle of a cycle: what is known may lack what was done last, and events
    /// may be lost. The facts are taken from the ledger, every process is proven anew, as at boot,
    /// and everything is looked at.
    pub fn recover(&mut self) {
        if let Some(replay) = self.system.recall() {
            for problem in &replay.problems {
                log::warn!("{problem}");
            }
            self.observed = replay.observed;
        }
        self.running = Running::of(&self.observed);
        self.wakes.clear();
        self.times.alarms.clear();
        self.adopt_all(true);
        self.work_out();
        self.last_stage();
        self.look_at_everything();
    }
}

/// A process that the ledger names.
struct Claim {
    run: RunId,
    role: Role,
    identity: crate::model::Identity,
    execed: bool,
    /// Whether opm itself made it, for a program of its own.
    may_be_held_up: bool,
}

impl<S: System> Supervisor<S> {
    fn adopt_all(&mut self, same_process: bool) {
        let ids: Vec<InstanceId> = self
            .observed
            .iter()
            .filter(|(_, instance)| instance.run.is_some())
            .map(|(id, _)| id.clone())
            .collect();
        let mut alive = 0usize;
        for id in &ids {
            alive += usize::from(self.adopt(id, same_process));
        }
        self.regain_sockets();
        if !ids.is_empty() {
            log::info!("of {} runs in the ledger, {alive} are alive and adopted", ids.len());
        }
    }

    /// Proves every process of an instance's run. Returns whether any lives.
    pub(super) fn adopt(&mut self, id: &InstanceId, same_process: bool) -> bool {
        let Some(run) = self.instance(id).and_then(|instance| instance.run.as_ref()) else {
            return false;
        };
        let run_id = run.id;
        // The program of a run may have made another process the main one, which need not become any program.
        let has_another = run.processes().any(|(role, _)| matches!(role, Role::Former(_)));
        let claims: Vec<Claim> = run
            .processes()
            .filter(|(_, process)| process.is_alive())
            .filter_map(|(role, process)| {
                let execed = process.state != Life::Born;
                let is_anothers = role == Role::Main && has_another;
                let may_be_held_up = !is_anothers && !matches!(role, Role::Former(_));
                let identity = process.identity?;
                Some(Claim { run: run_id, role, identity, execed, may_be_held_up })
            })
            .collect();
        if !same_process {
            let event = self.event(id, Happening::Adopted { run: run_id });
            self.apply(event, None);
        }
        let mut any = false;
        for claim in claims {
            any |= self.adopt_process(id, &claim);
        }
        self.await_main(id, run_id);
        let spec = self.desired.units.get(&id.unit).map(|unit| &unit.spec);
        if any && spec.is_some_and(|spec| spec.watch.is_some()) {
            self.watch_paths(id);
        }
        // Nobody listened for a while: the silence is not the run's. Also where nobody asks now, since the
        // definition that it began with may come back.
        if any {
            self.happened(id, Happening::Word { run: run_id, word: Word::Well });
        }
        // Whoever killed it before may not have been able to.
        let is_killed = |instance: &Instance| {
            matches!(instance.phase, Phase::Stopping { rung: Rung::Kill, .. })
        };
        if any
            && self.instance(id).is_some_and(is_killed)
            && let Some(tree) = self.run_ref(id)
        {
            self.system.kill_tree(&tree);
        }
        any
    }

    /// Has the system look for the file in which a run names its main process, where it has not yet.
    fn await_main(&mut self, id: &InstanceId, run_id: RunId) {
        let Some(spec) = self.spec_of(id) else { return };
        let run = self.instance(id).and_then(|instance| instance.run.as_ref());
        let first = run.filter(|run| run.awaits_main(&spec)).and_then(|run| run.main.as_ref());
        let Some(first) = first.and_then(|main| main.identity) else { return };
        if let Some(launch) = self.launch(id, run_id, Role::Main) {
            self.system.await_main(&launch, &first);
        }
    }

    fn adopt_process(&mut self, id: &InstanceId, claim: &Claim) -> bool {
        let Claim { run, role, identity, execed, may_be_held_up } = *claim;
        let spec = self.desired.units.get(&id.unit).map(|unit| Arc::clone(&unit.spec));
        let spec = spec.unwrap_or_else(|| Arc::new(Spec::new(Kind::Service, id.unit.clone())));
        let index = spec.index_of(id);
        let launch = Launch { instance: id.clone(), index, run, role, spec };
        match self.system.adopt(&launch, &identity) {
            Proof::Alive => {
                // That it has become its program stands in the ledger before it is let go.
                let is_held_up = may_be_held_up && !self.system.has_execed(&launch, &identity);
                match (execed, is_held_up) {
                    (true, true) => self.happened(id, Happening::HeldUp { run, role }),
                    (false, false) => self.happened(id, Happening::Execed { run, role }),
                    (true, false) | (false, true) => {}
                }
                true
            }
            Proof::Dead => {
                // One that was never seen to run its program had, as far as is known, not begun:
                // the gate closes when a supervisor dies.
                let outcome = if execed { Outcome::Unknown } else { never_started() };
                self.happened(id, Happening::Ended { run, role, outcome });
                false
            }
            Proof::Unknown(why) => {
                log::error!("{id}: {why}; it is held, and neither started nor killed");
                self.happened(id, Happening::Unproven { run, why });
                false
            }
        }
    }

    fn happened(&mut self, id: &InstanceId, what: Happening) {
        let event: Event = self.event(id, what);
        self.apply(event, None);
    }

    /// Makes sure that another supervisor in this process's place will know all that is known here.
    ///
    /// Refused while opm goes down, which the other one would not know.
    pub fn hand_over(&mut self) -> Result<(), Refusal> {
        if self.shutdown.is_some() {
            return Err(Refusal::Impossible("opm is shutting down".to_owned()));
        }
        self.put_back().map_err(|error| Refusal::NotSaved(error.to_string()))?;
        self.system.flush().map_err(|error| Refusal::Impossible(error.to_string()))
    }

    /// Leaves a ledger that says what a new supervisor of this boot must know after an orderly
    /// end: which tasks have run, and nothing that would keep a service down. A task with which opm ended
    /// would end the next one too before it has begun: it runs once in the life of each.
    pub fn close(&mut self) {
        self.save_agenda();
        let settled: Vec<InstanceId> = self
            .observed
            .iter()
            .filter(|(_, instance)| {
                instance.run.is_none()
                    && (instance.phase != Phase::Done || instance.has_ended_opm())
            })
            // One that was to run by another definition, which may be taken back, has run by its own.
            .filter(|(id, instance)| {
                let unit = self.desired.units.get(&id.unit);
                instance.has_ended_opm() || !unit.is_some_and(|unit| plan::has_done(unit, instance))
            })
            .map(|(id, _)| id.clone())
            .collect();
        for id in settled {
            self.happened(&id, Happening::Forgotten);
        }
        let services: Vec<InstanceId> = self
            .observed
            .iter()
            .filter(|(id, _)| {
                let unit = self.desired.units.get(&id.unit);
                unit.is_none_or(|unit| unit.spec.kind != Kind::Task)
            })
            .filter(|(_, instance)| instance.run.is_none())
            .map(|(id, _)| id.clone())
            .collect();
        for id in services {
            self.happened(&id, Happening::Forgotten);
        }
        if let Err(error) = self.system.compact(&self.observed, true) {
            log::warn!("{error}");
        }
    }
}

fn never_started() -> Outcome {
    Outcome::NotStarted(StartError {
        stage: Stage::Gate,
        subject: String::new(),
        reason: "the supervisor ended before it was let go".to_owned(),
        passing: true,
    })
}
