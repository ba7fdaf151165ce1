//! The cycle: take events, note them as facts, reconcile what they touched, carry out what is due;
//! each result is an event again, until nothing is due.
//!
//! - Nobody else writes facts, the ledger, the desired state, due times or the history.
//! - Wishes before acts: every wish to stop has spread through the graph before anything is
//!   signalled or started.
//! - The work of a turn grows with what was touched, not with how many units there are.

mod act;
mod agenda;
mod apply;
mod boot;
mod former;
mod history;
mod holds;
mod keeper_unit;
mod neighbours;
mod queue;
mod requests;
mod running;
mod sockets;
mod source;
mod state;
mod status;
mod targets;
mod wakes;

use std::collections::{BTreeMap, BTreeSet};

pub use apply::{Applied, Manner};
pub use boot::Boot;
pub use history::{History, RolledBack};
pub use keeper_unit::{COMMAND_SOURCE, KeeperOptions};
pub use requests::Refusal;
pub use source::Source;
pub use state::State;
pub use status::Row;

use agenda::Timetable;
use former::Former;
use neighbours::Visible;
use queue::Queue;
use running::Running;
use wakes::Wakes;

use crate::config::Cache;
use crate::model::{
    Action, Desired, Event, Gather, Graph, Happening, Instance, InstanceId, Monotonic, Observed,
    Phase, Reason, Rung, Span, Step, StopCause, UnitName, Wall, Word,
};
use crate::plan::{self, Hurry, Shutdown, View};
use crate::system::System;

/// Most rounds of one turn. A start takes fewer than ten; a chain of a thousand units that stops
/// takes one per link. What is left at the end is taken up in the next turn.
const ROUNDS_MAX: usize = 20_000;

/// Most instances that a message names.
const NAMED_MAX: usize = 8;
/// How long opm waits before it tries again to write its ledger.
const WRITES_AGAIN: Span = Span::seconds(1);
/// What a stage of a shutdown leaves to each that follows beyond its own times: from the end of one to the
/// beginning of the next it takes a moment.
const BETWEEN_STAGES: Span = Span::millis(50);
/// The part of the time for a shutdown that is left to the log keeper, which goes last: one of so many.
const KEEPER_SHARE: u32 = 10;
/// No more than this is left to it: it has only to write what it has read.
const KEEPER_TIME_MAX: Span = Span::seconds(1);

/// Something that was done, or happened, for those who watch.
#[derive(Debug, Clone, PartialEq)]
pub struct Notice {
    /// What happened.
    pub event: Event,
    /// Why, where it was decided here.
    pub reason: Option<Reason>,
}

/// The supervisor over a world `S`.
#[derive(Debug)]
pub struct Supervisor<S> {
    system: S,
    desired: Desired,
    graph: Graph,
    observed: Observed,
    shutdown: Option<Shutdown>,
    keeper: Option<KeeperOptions>,
    /// How long a shutdown may take; `None`: as long as the units' own times.
    shutdown_budget: Option<Span>,
    /// What there is for all that may be up; `None`: enough.
    capacity: Option<plan::Capacity>,
    /// Instances that a new look may find something due for.
    dirty: BTreeSet<InstanceId>,
    /// Instances whose next process is due, and waits until there is room, [`System::has_room`].
    queued: Queue,
    wakes: Wakes<Monotonic>,
    /// When instances with a schedule are due.
    times: Timetable,
    /// When the first hold ends by itself.
    hold_ends: Option<Wall>,
    /// Not before this are they lifted again where that failed.
    lift_after: Option<Monotonic>,
    /// Not before this is a revert tried that failed.
    revert_after: Option<Monotonic>,
    running: Running,
    /// Of runs whose definition has changed since they began.
    former: BTreeMap<InstanceId, Former>,
    notices: Vec<Notice>,
    /// Set by the first failed write to the ledger, so that it is said once.
    ledger_fails: bool,
    /// Why the ledger could not be replaced, so that it is said once.
    replace_fails: Option<String>,
    /// Set by a turn that did not come to rest, so that it is said once.
    is_restless: bool,
    /// Set after too many bugs.
    minimal: bool,
    /// What was read of the files of each source when it was last looked at.
    read: BTreeMap<String, Cache>,
}

impl<S: System> Supervisor<S> {
    /// The world.
    pub fn system(&self) -> &S {
        &self.system
    }

    /// The world, for those who bring its events.
    pub fn system_mut(&mut self) -> &mut S {
        &mut self.system
    }

    /// What is wanted.
    pub fn desired(&self) -> &Desired {
        &self.desired
    }

    /// What is known.
    pub fn observed(&self) -> &Observed {
        &self.observed
    }

    /// Set while opm is going down.
    pub fn shutdown(&self) -> Option<&Shutdown> {
        self.shutdown.as_ref()
    }

    /// How long a shutdown may take; `None`: as long as the units' own times.
    pub fn shutdown_budget(&self) -> Option<Span> {
        self.shutdown_budget
    }

    /// Everything that a decision may look at.
    pub fn view(&self) -> View<'_> {
        View {
            desired: &self.desired,
            graph: &self.graph,
            observed: &self.observed,
            shutdown: self.shutdown.as_ref(),
            agenda: &self.times.agenda,
            wall: if self.times.agenda.is_empty() { Wall::default() } else { self.schedule_wall() },
        }
    }

    /// What happened since this was last asked.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    /// When to take the next turn if no event comes before.
    pub fn wake_at(&self) -> Option<Monotonic> {
        if !self.dirty.is_empty() && !self.minimal {
            return Some(self.system.now());
        }
        let is_idle = self.shutdown.is_some() || self.minimal;
        let trial = self.trial_ends(self.system.now()).filter(|_| !is_idle);
        let lift = self.lift_after.filter(|_| !is_idle);
        let gives_up = self.shutdown.as_ref().and_then(Shutdown::gives_up);
        let writes = self.ledger_fails.then(|| self.system.now().after(WRITES_AGAIN));
        let wakes = self.wakes.first().into_iter().chain(writes);
        wakes.chain(trial).chain(lift).chain(gives_up).min()
    }

    /// The exit code, once opm is going down and all runs are over.
    pub fn is_over(&self) -> Option<u8> {
        let shutdown = self.shutdown.as_ref()?;
        if self.running.is_over() {
            return Some(shutdown.code);
        }
        let gives_up = shutdown.gives_up().is_some_and(|at| self.system.now() >= at);
        gives_up.then_some(shutdown.code.max(1))
    }

    /// One turn: facts first, then whatever is due, until nothing is.
    pub fn turn(&mut self, events: Vec<Event>) {
        for event in events {
            self.apply(event, None);
        }
        let now = self.system.now();
        while let Some(id) = self.wakes.pop(now) {
            self.dirty.insert(id);
        }
        if !self.minimal {
            self.look_at_trial();
            self.lift_holds();
        }
        self.look_at_the_wall();
        for _ in 0..ROUNDS_MAX {
            if self.minimal && self.shutdown.is_none() {
                break;
            }
            if self.dirty.is_empty() {
                self.queued.expire();
                if !self.take_from_queue() {
                    break;
                }
            }
            self.round();
        }
        self.renew_graph();
        self.tell_restless();
        self.save_agenda();
        self.arm();
        self.flush();
        let failure = self.system.compact(&self.observed, false).err().map(|e| e.to_string());
        if let Some(error) = failure.as_ref().filter(|_| failure != self.replace_fails) {
            log::warn!("{error}");
        }
        self.replace_fails = failure;
    }

    /// Units that begin and end again and again within one turn are a bug that an operator must see:
    /// said once.
    fn tell_restless(&mut self) {
        let is_restless = !self.dirty.is_empty() && !self.minimal;
        if is_restless && !self.is_restless {
            let names: Vec<String> =
                self.dirty.iter().take(NAMED_MAX).map(ToString::to_string).collect();
            let names = names.join("`, `");
            log::error!(
                "`{names}` do not come to rest in {ROUNDS_MAX} rounds; this is a bug of opm"
            );
        }
        self.is_restless = is_restless;
    }

    /// Takes up those that wait for room, as many as there is some for now. Returns whether any.
    fn take_from_queue(&mut self) -> bool {
        while !self.queued.is_empty() && self.system.has_room(self.queued.promised(None)) {
            self.dirty.extend(self.queued.next());
        }
        !self.dirty.is_empty()
    }

    /// Whether a step may be carried out now. One that makes a process may have to wait for its turn.
    fn may_go(&mut self, step: &Step) -> bool {
        if !self.makes_process(step) {
            return true;
        }
        let id = &step.instance;
        let may = self.queued.lets(id) && self.system.has_room(self.queued.promised(Some(id)));
        if !may {
            self.queued.push(id.clone());
        } else if matches!(step.action, Action::Begin { .. }) {
            // Its process follows in the next round.
            self.queued.admit(id);
        } else {
            self.queued.done(id);
        }
        may
    }

    /// Looks at everything touched. Where anything wishes to stop, only wishes are carried out, so
    /// that they spread; else everything is.
    fn round(&mut self) {
        self.renew_graph();
        // Runs that began in the last round make their processes in this one.
        self.save_agenda();
        let now = self.system.now();
        let dirty = std::mem::take(&mut self.dirty);
        let mut due: Vec<Step> = Vec::new();
        let mut wakes = Vec::with_capacity(dirty.len());
        for id in &dirty {
            self.watch_for_callers(id);
        }
        let view = self.view();
        for id in dirty {
            let found = plan::decide(&view, &id, now);
            due.extend(found.steps);
            wakes.push((id, found.wake, found.alarm));
        }
        for (id, wake, alarm) in wakes {
            self.wakes.set(&id, wake);
            self.times.alarms.set(&id, alarm);
        }
        let wishes = due.iter().any(|step| step.action.is_wish());
        for step in due {
            if wishes && !step.action.is_wish() {
                self.dirty.insert(step.instance);
            } else if self.may_go(&step) && !self.is_heard_after_all(&step) {
                self.carry_out(step);
            }
        }
    }

    /// Before a run's silence is held against it: whether it has said something that nobody has taken
    /// yet, as this turn took long. It is looked at anew then.
    fn is_heard_after_all(&mut self, step: &Step) -> bool {
        let Action::StopBegin(run, StopCause::Watchdog) = step.action else { return false };
        let mut is_heard = false;
        for event in self.system.hear(run) {
            is_heard |= matches!(event.what, Happening::Word { word: Word::Well, .. });
            self.apply(event, None);
        }
        is_heard
    }

    /// The one way by which a fact changes.
    fn apply(&mut self, event: Event, reason: Option<Reason>) {
        let id = event.instance.clone();
        let known = self.observed.get(&id);
        let before = known.map(Visible::of);
        let is_touched = known
            .and_then(|instance| instance.run.as_ref())
            .is_some_and(|run| run.touched.is_some());
        let is_touched_again = is_touched && matches!(event.what, Happening::Touched { .. });
        if !self.observed.apply(&event) {
            log::debug!("passed over: {} {:?}", event.instance, event.what);
            return;
        }
        let after = self.observed.get(&id).map(Visible::of);
        if self.running.change(&id.unit, before.as_ref(), after.as_ref()) {
            self.last_stage();
        }
        // The entry of a process was written before it was let go; of many changes of files the first
        // is enough.
        let written = matches!(event.what, Happening::Spawned { .. }) || is_touched_again;
        if event.what.is_lasting() && !written {
            self.system.note(&event);
        }
        if before != after {
            self.touch_neighbours(&id);
        }
        self.dirty.insert(id.clone());
        let killing = matches!(event.what, Happening::Tree { left: 1.., .. })
            && self.observed.get(&id).is_some_and(|instance| {
                matches!(instance.phase, Phase::Stopping { rung: Rung::Kill, .. })
            });
        if killing && let Some(run) = self.run_ref(&id) {
            self.system.kill_tree(&run);
        }
        // Of a run that goes on being well there is no news.
        if !matches!(event.what, Happening::Word { word: Word::Well, .. }) {
            self.notices.push(Notice { event, reason });
        }
    }

    /// The log keeper goes when nobody else is left.
    fn last_stage(&mut self) {
        if let Some(shutdown) = &mut self.shutdown
            && self.running.is_none()
        {
            shutdown.spared.clear();
            self.dirty.insert(keeper_unit::instance());
        }
    }

    /// Everything is looked at anew.
    fn touch_all(&mut self) {
        let known = self.observed.iter().map(|(id, _)| id.clone());
        let wanted = self.desired.units.values().flat_map(|unit| unit.spec.instance_ids());
        self.dirty.extend(known.chain(wanted).collect::<Vec<_>>());
    }

    fn flush(&mut self) {
        let result = self.system.flush();
        match &result {
            Ok(()) if self.ledger_fails => log::info!("the ledger can be written again"),
            Err(error) if !self.ledger_fails => {
                log::error!("{error}; nothing is started until it can be written");
            }
            Ok(()) | Err(_) => {}
        }
        self.ledger_fails = result.is_err();
    }

    /// Puts back what was taken away under our feet, the saved state and the ledger; what a save that
    /// broke off may have left in force goes with it.
    pub fn put_back(&mut self) -> Result<(), crate::system::SystemError> {
        if !self.system.has_lost(self.desired.generation) {
            return Ok(());
        }
        let saved = keeper_unit::without_internal(&self.desired);
        self.system.put_back(&saved, &self.observed)
    }

    /// Shuts down because somebody asks for it; who asks again has less patience.
    pub fn ask_to_shut_down(&mut self, budget: Option<Span>, why: String) {
        let Some(shutdown) = &mut self.shutdown else {
            let code = plan::code_of_what_ends(&self.view(), self.system.now());
            self.begin_shutdown(code, budget, why, true);
            return;
        };
        if !std::mem::replace(&mut shutdown.is_asked, true) {
            log::info!("{why}: it is shutting down, as {}", shutdown.why);
            return;
        }
        shutdown.hurry = match shutdown.hurry {
            Hurry::Ordered => Hurry::Unordered,
            Hurry::Unordered | Hurry::Kill => Hurry::Kill,
        };
        if shutdown.hurry == Hurry::Kill {
            shutdown.kills_since.get_or_insert(self.system.now());
        }
        shutdown.why = why;
        self.touch_all();
    }

    /// Shuts down; where that has begun nothing changes.
    fn begin_shutdown(&mut self, code: u8, budget: Option<Span>, why: String, is_asked: bool) {
        if self.shutdown.is_some() {
            return;
        }
        let began = self.system.now();
        let keeps = self.desired.units.values().any(|unit| unit.spec.needs_keeper());
        let reserve = budget.filter(|_| keeps).map(|budget| budget.share(KEEPER_SHARE));
        // What has no process is gone at once, and what cannot be proven nobody waits for.
        let takes = |unit: &UnitName| {
            let is_there = |instance: &Instance| {
                instance.run.is_some() && !matches!(instance.phase, Phase::Unproven { .. })
            };
            let spec = self.desired.units.get(unit).map(|unit| &unit.spec);
            let spec = spec.filter(|spec| spec.process.is_some())?;
            let mut instances = self.observed.of_unit(unit);
            let any = instances.any(|(_, instance)| is_there(instance));
            any.then(|| plan::stop_time(spec).plus(BETWEEN_STAGES))
        };
        let stages = self.graph.stages(takes).into_iter();
        self.shutdown = Some(Shutdown {
            began,
            deadline: budget.map(|budget| began.after(budget)),
            reserve: reserve.map_or(Span::ZERO, |reserve| reserve.min(KEEPER_TIME_MAX)),
            stages: stages.map(|(unit, stages)| (unit.clone(), stages)).gather(),
            hurry: Hurry::Ordered,
            kills_since: None,
            is_asked,
            code,
            why,
            spared: [keeper_unit::instance().unit].into(),
        });
        self.touch_all();
        self.last_stage();
    }

    /// Looks at everything anew in the next turn, as at boot.
    pub fn look_at_everything(&mut self) {
        self.graph = Graph::build(&self.desired);
        self.touch_all();
    }

    /// Builds the graph once for all units that went.
    fn renew_graph(&mut self) {
        if self.graph.is_stale() {
            self.graph = Graph::build(&self.desired);
        }
    }

    /// After too many bugs: reap, answer, obey a shutdown, and start nothing.
    pub fn enter_minimal_mode(&mut self) {
        log::error!("minimal mode: nothing is started or stopped any more but by a shutdown");
        self.minimal = true;
        self.dirty.clear();
        self.wakes.clear();
        self.times.alarms.clear();
    }

    /// Passes a signal on to the command that opm was started with: to its whole group.
    pub fn signal_command(&mut self, signal: crate::model::Signal) {
        let ids: Vec<InstanceId> = self.observed.iter().map(|(id, _)| id.clone()).collect();
        let runs: Vec<_> = ids.iter().filter_map(|id| self.run_ref(id)).collect();
        for run in runs {
            self.system.signal_tree(&run, signal);
        }
    }

    fn instance(&self, id: &InstanceId) -> Option<&Instance> {
        self.observed.get(id)
    }

    fn event(&self, id: &InstanceId, what: Happening) -> Event {
        Event { instance: id.clone(), at: self.system.now(), what }
    }

    /// What is due at this moment by a look at everything, and could be done; for tests of the
    /// incremental pass.
    pub fn due_by_full_look(&mut self) -> Vec<Action> {
        let has_room = self.system.has_room(0);
        let due = plan::reconcile(&self.view(), self.system.now()).steps.into_iter();
        due.filter(|step| has_room || !self.makes_process(step)).map(|step| step.action).collect()
    }
}
