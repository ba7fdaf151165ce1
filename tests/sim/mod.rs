//! A small world in memory for the real supervisor: a clock that jumps, processes with simple
//! programs, a ledger and a saved state that outlive a crash of the supervisor.
//!
//! A program is the first word of a command: `forever`; `stubborn` ignores SIGTERM; `late` says
//! that it is ready after a second; `child` leaves a child behind; `exit:CODE`; `after:MILLIS:CODE`;
//! `orphan:MILLIS:CODE` ends so and leaves a child behind.
//!
//! The world looks on: a second live run, a start of what is held, a run that is called over while
//! it lives, and a signal out of order are noted in [`Universe::wrongs`].

use std::cell::{RefCell, RefMut};
use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

use opm::model::{
    Action, Command, Desired, Event, Happening, Identity, Instance, InstanceId, Monotonic,
    Observed, Outcome, Ready, Role, RunId, Signal, Span, Spec, Stage, StartError, StopAction,
    UnitName, Wall,
};
use opm::supervisor::{Boot, Supervisor};
use opm::system::{Launch, Loaded, Proof, Replay, RunRef, System, SystemError};

/// Most turns until a wait is over; more is a supervisor that spins.
const TURNS_MAX: usize = 5_000;
/// A ledger of more lines is replaced by the facts.
const LEDGER_LINES_MAX: usize = 80;
/// Process numbers are few, so that they are used again.
const PIDS: std::ops::Range<i32> = 100..140;

/// Numbers that look random, the same for the same seed.
#[derive(Debug)]
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        let place = self.below(u64::try_from(from.len()).unwrap());
        &from[usize::try_from(place).unwrap()]
    }
}

/// Where the supervisor dies next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CrashAt {
    /// The process waits at the gate; the ledger does not know of it.
    BeforeLedger,
    /// The ledger knows of it; the gate is shut.
    BeforeGo,
    /// It is let go; nobody was told.
    AfterGo,
    /// The desired state is not saved yet.
    BeforeSave,
    /// It is saved, and nobody was told.
    AfterSave,
}

#[derive(Debug)]
struct Crash;

#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "facts that come one by one")]
struct Process {
    identity: Identity,
    instance: InstanceId,
    run: RunId,
    role: Option<Role>,
    program: String,
    /// It runs nothing until the gate opens, and ends with the supervisor that shut it.
    is_gated: bool,
    is_alive: bool,
    /// Whether the supervisor of now is told what becomes of it.
    is_watched: bool,
    /// Whether it was taken over: nobody is told how it ended.
    is_adopted: bool,
    exec_at: Option<Monotonic>,
    ready_at: Option<Monotonic>,
    end_at: Option<(Monotonic, Outcome)>,
    is_ready: bool,
}

enum Line {
    Event(Event),
    Facts(InstanceId, Box<Instance>),
}

/// All that outlives a supervisor.
pub(crate) struct Universe {
    pub(crate) now: Monotonic,
    pub(crate) chance: Chance,
    pub(crate) crash: Option<CrashAt>,
    pub(crate) is_ledger_full: bool,
    /// How much later than it happened something is told, at most, in milliseconds.
    pub(crate) delay_max: u64,
    /// What has to be gone before the second one is signalled.
    pub(crate) stop_order: Vec<(UnitName, UnitName)>,
    /// What may only start when the second one is ready.
    pub(crate) start_order: Vec<(UnitName, UnitName)>,
    pub(crate) saved: Option<Desired>,
    pub(crate) wrongs: Vec<String>,
    pub(crate) timeline: Vec<String>,
    processes: Vec<Process>,
    completed: Vec<UnitName>,
    ledger: Vec<Line>,
    told: VecDeque<(Monotonic, Event)>,
    watched_trees: BTreeMap<RunId, InstanceId>,
    next_pid: i32,
    next_start: u64,
}

impl Universe {
    fn note(&mut self, text: &str) {
        let millis = self.now.since(Monotonic::default()).as_millis_up();
        self.timeline.push(format!("{millis:>8} ms  {text}"));
    }

    fn wrong(&mut self, text: String) {
        self.note(&format!("WRONG: {text}"));
        self.wrongs.push(text);
    }

    /// Those who run: what waits at a gate has not begun.
    pub(crate) fn living(&self, unit: &UnitName) -> usize {
        let runs = |process: &&Process| process.is_alive && !process.is_gated;
        self.processes.iter().filter(runs).filter(|p| p.instance.unit == *unit).count()
    }

    fn is_ready(&self, unit: &UnitName) -> bool {
        let ready = |p: &Process| p.is_alive && p.is_ready && p.instance.unit == *unit;
        self.completed.contains(unit) || self.processes.iter().any(ready)
    }

    fn by_identity(&mut self, identity: &Identity) -> Option<&mut Process> {
        self.processes.iter_mut().find(|p| p.is_alive && p.identity == *identity)
    }

    fn tell(&mut self, instance: &InstanceId, what: Happening) {
        let delay = Span::millis(self.chance.below(self.delay_max + 1));
        let last = self.told.back().map_or(self.now, |(at, _)| *at);
        let at = self.now.after(delay).max(last);
        self.told.push_back((at, Event { instance: instance.clone(), at: self.now, what }));
    }

    /// The next time at which anything happens by itself.
    fn next(&self) -> Option<Monotonic> {
        let alive = self.processes.iter().filter(|p| p.is_alive && !p.is_gated);
        let own = alive.flat_map(|p| {
            let end = p.end_at.as_ref().map(|(at, _)| *at);
            [p.exec_at, p.ready_at, end].into_iter().flatten()
        });
        own.chain(self.told.front().map(|(at, _)| *at)).min()
    }

    /// Everything that happens up to now.
    fn pass(&mut self) {
        let now = self.now;
        for place in 0..self.processes.len() {
            let mut process = self.processes[place].clone();
            if !process.is_alive || process.is_gated {
                continue;
            }
            let (run, role) = (process.run, process.role);
            let mut told = Vec::new();
            if process.exec_at.take_if(|at| *at <= now).is_some() {
                process.is_ready = process.program != "late" && !process.program.contains(':');
                told.extend(role.map(|role| Happening::Execed { run, role }));
                if process.program == "child" || process.program.starts_with("orphan") {
                    self.leave_child(&process);
                }
            }
            if process.exec_at.is_none() && process.ready_at.take_if(|at| *at <= now).is_some() {
                process.is_ready = true;
                told.push(Happening::Ready { run });
            }
            if let Some((_, outcome)) = process.end_at.take_if(|(at, _)| *at <= now) {
                process.is_alive = false;
                self.note(&format!("{} {role:?} {outcome}", process.instance));
                if role == Some(Role::Main) && outcome == Outcome::Exited(0) {
                    self.completed.push(process.instance.unit.clone());
                }
                let outcome = if process.is_adopted { Outcome::Unknown } else { outcome };
                told.extend(role.map(|role| Happening::Ended { run, role, outcome }));
            }
            self.processes[place] = process.clone();
            if !process.is_alive && role.is_none() && self.watched_trees.contains_key(&run) {
                told.push(Happening::Tree { run, left: self.strays(run) });
            }
            if process.is_watched || role.is_none() {
                for what in told {
                    self.tell(&process.instance, what);
                }
            }
        }
        self.processes.retain(|process| process.is_alive);
    }

    fn strays(&self, run: RunId) -> u32 {
        let of = self.processes.iter().filter(|p| p.is_alive && p.run == run && p.role.is_none());
        u32::try_from(of.count()).unwrap()
    }

    fn identity(&mut self) -> Identity {
        self.next_start += 1;
        loop {
            self.next_pid =
                if PIDS.contains(&self.next_pid) { self.next_pid + 1 } else { PIDS.start };
            let taken = |p: &Process| p.is_alive && p.identity.pid == self.next_pid;
            if !self.processes.iter().any(taken) {
                return Identity { pid: self.next_pid, start: self.next_start, inode: None };
            }
        }
    }

    fn leave_child(&mut self, parent: &Process) {
        let identity = self.identity();
        let program = "forever".to_owned();
        let (role, end_at) = (None, None);
        self.processes.push(Process { identity, role, program, end_at, ..parent.clone() });
    }

    fn deliver(&mut self, place: usize, signal: Signal) {
        let now = self.now;
        let process = &mut self.processes[place];
        let outcome = Outcome::Killed { signal, core: false };
        if signal == Signal::KILL {
            process.end_at = Some((now, outcome));
        } else if signal == Signal::TERM && process.program != "stubborn" {
            let at = now.after(Span::millis(1));
            if process.end_at.as_ref().is_none_or(|(end, _)| *end > at) {
                process.end_at = Some((at, outcome));
            }
        }
    }

    fn check_start(&mut self, launch: &Launch) {
        let id = &launch.instance;
        let other = self.processes.iter().find(|p| {
            let second = p.run != launch.run || p.role == Some(launch.role);
            p.is_alive && !p.is_gated && p.instance == *id && second
        });
        if let Some(other) = other {
            let text = format!("{id}: {:?} of a second run beside {other:?}", launch.role);
            self.wrong(text);
        }
        if launch.role != Role::Main {
            return;
        }
        let unit = self.saved.as_ref().and_then(|desired| desired.units.get(&id.unit));
        if unit.is_none_or(|unit| unit.removed || unit.hold_of(id).is_some()) {
            self.wrong(format!("{id} starts though it is held or unknown"));
        }
        for (later, earlier) in self.start_order.clone() {
            if later == id.unit && !self.is_ready(&earlier) {
                self.wrong(format!("{id} starts before `{earlier}` is ready"));
            }
        }
    }

    fn check_stop(&mut self, id: &InstanceId) {
        for (later, earlier) in self.stop_order.clone() {
            if earlier == id.unit && self.living(&later) > 0 {
                self.wrong(format!("{id} is signalled before `{later}` is gone"));
            }
        }
    }
}

/// The first word of the command for a role.
fn program(launch: &Launch) -> String {
    let spec = &launch.spec;
    let hook = |hooks: &[opm::model::Hook], n: u16| hooks[usize::from(n)].command.clone();
    let command = match launch.role {
        Role::Main => spec.process.as_ref().unwrap().command.clone(),
        Role::Condition => spec.conditions.command.clone().unwrap(),
        Role::PreStart(n) => hook(&spec.hooks.pre_start, n),
        Role::PostStart(n) => hook(&spec.hooks.post_start, n),
        Role::PreStop(n) => hook(&spec.hooks.pre_stop, n),
        Role::PostStop(n) => hook(&spec.hooks.post_stop, n),
        Role::Stop(n) => match &spec.stop.steps[usize::from(n)].action {
            StopAction::Command(command) => command.clone(),
            StopAction::Signal(..) => panic!("a signal is no command"),
        },
        Role::Reload => panic!("no unit here has a reload command"),
    };
    match command {
        Command::Argv(words) => words[0].raw().to_owned(),
        Command::Shell(text) => text.raw().to_owned(),
    }
}

/// How long a program runs, and how it ends.
fn end_of(program: &str) -> Option<(Span, Outcome)> {
    let mut words = program.split(':');
    let (name, first, second) = (words.next()?, words.next()?, words.next());
    let code = |text: &str| Outcome::Exited(text.parse().unwrap());
    match second {
        None if name == "exit" => Some((Span::ZERO, code(first))),
        None => None,
        Some(second) => Some((Span::millis(first.parse().unwrap()), code(second))),
    }
}

/// What one supervisor has of the world.
pub(crate) struct Fake {
    universe: Rc<RefCell<Universe>>,
    noted: Vec<Event>,
}

impl Fake {
    fn world(&self) -> RefMut<'_, Universe> {
        self.universe.borrow_mut()
    }

    fn crash_if(&self, at: CrashAt) {
        let due = self.world().crash.take_if(|crash| *crash == at).is_some();
        if due {
            resume_unwind(Box::new(Crash));
        }
    }

    fn members(&self, run: RunId) -> Vec<usize> {
        let world = self.world();
        let all = world.processes.iter().enumerate();
        all.filter(|(_, p)| p.is_alive && p.run == run).map(|(place, _)| place).collect()
    }
}

impl System for Fake {
    fn now(&self) -> Monotonic {
        self.world().now
    }

    fn wall(&self) -> Wall {
        Wall(i64::try_from(self.now().since(Monotonic::default()).as_millis_up()).unwrap())
    }

    fn random(&mut self) -> u64 {
        self.world().chance.next()
    }

    fn conditions(&mut self, _: &InstanceId, _: u32, _: &Spec) -> Result<(), String> {
        Ok(())
    }

    fn spawn(&mut self, launch: &Launch, at: Monotonic) -> Result<Identity, StartError> {
        let program = program(launch);
        let identity = {
            let mut world = self.world();
            let identity = world.identity();
            let notifies = launch.role == Role::Main
                && launch.spec.process.as_ref().is_some_and(|p| p.ready == Ready::Notify);
            let exec_at = at.after(Span::millis(1));
            world.processes.push(Process {
                identity,
                instance: launch.instance.clone(),
                run: launch.run,
                role: Some(launch.role),
                end_at: end_of(&program).map(|(span, outcome)| (exec_at.after(span), outcome)),
                ready_at: notifies.then(|| exec_at.after(Span::seconds(1))),
                exec_at: Some(exec_at),
                program,
                is_gated: true,
                is_alive: true,
                is_watched: true,
                is_adopted: false,
                is_ready: false,
            });
            identity
        };
        self.crash_if(CrashAt::BeforeLedger);
        let what = Happening::Spawned { run: launch.run, role: launch.role, identity };
        self.noted.push(Event { instance: launch.instance.clone(), at, what });
        if let Err(error) = self.flush() {
            self.noted.pop();
            self.world().processes.retain(|process| process.identity != identity);
            let (stage, subject) = (Stage::Ledger, launch.instance.to_string());
            return Err(StartError { stage, subject, reason: error.reason, passing: true });
        }
        self.crash_if(CrashAt::BeforeGo);
        {
            let mut world = self.world();
            world.check_start(launch);
            world.note(&format!("{} {:?} goes", launch.instance, launch.role));
            if let Some(process) = world.by_identity(&identity) {
                process.is_gated = false;
            }
        }
        self.crash_if(CrashAt::AfterGo);
        Ok(identity)
    }

    fn signal(&mut self, process: &Identity, signal: Signal) -> Result<(), SystemError> {
        let mut world = self.world();
        let place = world.processes.iter().position(|p| p.is_alive && p.identity == *process);
        if let Some(place) = place {
            world.deliver(place, signal);
        }
        Ok(())
    }

    fn signal_tree(&mut self, run: &RunRef, signal: Signal) -> u32 {
        let members = self.members(run.run);
        let mut world = self.world();
        world.check_stop(&run.instance);
        world.note(&format!("{} gets {signal}", run.instance));
        for place in &members {
            world.deliver(*place, signal);
        }
        u32::try_from(members.len()).unwrap()
    }

    fn kill_tree(&mut self, run: &RunRef) {
        self.signal_tree(run, Signal::KILL);
    }

    fn watch_tree(&mut self, run: &RunRef) -> u32 {
        let mut world = self.world();
        world.watched_trees.insert(run.run, run.instance.clone());
        world.strays(run.run)
    }

    fn release(&mut self, instance: &InstanceId, run: RunId, _idle: bool) {
        let left = self.members(run).len();
        let mut world = self.world();
        world.watched_trees.remove(&run);
        if left > 0 {
            world.wrong(format!("{instance}: a run is over and {left} of its processes live"));
        }
    }

    fn forget(&mut self, _: &InstanceId) {}

    fn instruct(&mut self, _: &InstanceId, _: u32, _: &Spec) -> Result<(), SystemError> {
        Ok(())
    }

    fn adopt(&mut self, _: &Launch, identity: &Identity, _: bool) -> Proof {
        match self.world().by_identity(identity) {
            Some(process) => {
                (process.is_watched, process.is_adopted) = (true, true);
                Proof::Alive
            }
            None => Proof::Dead,
        }
    }

    fn note(&mut self, event: &Event) {
        self.noted.push(event.clone());
    }

    fn flush(&mut self) -> Result<(), SystemError> {
        if self.world().is_ledger_full {
            return Err(SystemError::new("write to ledger", "ledger", "no space left on device"));
        }
        let noted = std::mem::take(&mut self.noted);
        self.world().ledger.extend(noted.into_iter().map(Line::Event));
        Ok(())
    }

    fn compact(&mut self, observed: &Observed, always: bool) -> Result<(), SystemError> {
        let mut world = self.universe.borrow_mut();
        if always || (world.ledger.len() > LEDGER_LINES_MAX && !world.is_ledger_full) {
            let facts = observed.iter();
            let facts = facts.map(|(id, facts)| Line::Facts(id.clone(), Box::new(facts.clone())));
            world.ledger = facts.collect();
            self.noted.clear();
        }
        Ok(())
    }

    fn put_back(&mut self, _: &Desired, _: &Observed) -> Result<(), SystemError> {
        Ok(())
    }

    fn save(&mut self, desired: &Desired) -> Result<(), SystemError> {
        self.crash_if(CrashAt::BeforeSave);
        self.world().saved = Some(desired.clone());
        self.crash_if(CrashAt::AfterSave);
        Ok(())
    }
}

/// A universe and its supervisor.
pub(crate) struct World {
    pub(crate) universe: Rc<RefCell<Universe>>,
    supervisor: Option<Supervisor<Fake>>,
    turns: usize,
}

impl World {
    /// A world in which nothing has happened, with this saved desired state.
    pub(crate) fn new(seed: u64, saved: Option<Desired>) -> Self {
        let universe = Universe {
            now: Monotonic::default().after(Span::seconds(1)),
            chance: Chance::new(seed),
            crash: None,
            is_ledger_full: false,
            delay_max: 0,
            stop_order: Vec::new(),
            start_order: Vec::new(),
            saved,
            wrongs: Vec::new(),
            timeline: Vec::new(),
            processes: Vec::new(),
            completed: Vec::new(),
            ledger: Vec::new(),
            told: VecDeque::new(),
            watched_trees: BTreeMap::new(),
            next_pid: 0,
            next_start: 0,
        };
        Self { universe: Rc::new(RefCell::new(universe)), supervisor: None, turns: 0 }
    }

    pub(crate) fn universe(&self) -> RefMut<'_, Universe> {
        self.universe.borrow_mut()
    }

    /// The supervisor; one that died is started again.
    pub(crate) fn supervisor(&mut self) -> &mut Supervisor<Fake> {
        if self.supervisor.is_none() {
            self.boot();
        }
        self.supervisor.as_mut().unwrap()
    }

    fn boot(&mut self) {
        let mut observed = Observed::default();
        let desired = {
            let mut world = self.universe();
            for line in &world.ledger {
                match line {
                    Line::Event(event) => {
                        observed.apply(event);
                    }
                    Line::Facts(id, facts) => observed.insert(id.clone(), (**facts).clone()),
                }
            }
            world.note("a supervisor boots");
            world.saved.clone()
        };
        let boot = Boot {
            system: Fake { universe: Rc::clone(&self.universe), noted: Vec::new() },
            loaded: Loaded { desired, problems: Vec::new() },
            replay: Replay { observed, problems: Vec::new() },
            keeper: None,
            shutdown_budget: None,
            same_process: false,
        };
        self.supervisor = Some(boot.supervisor());
    }

    /// `kill -9`: what it did not write is lost, and what it held at the gate ends.
    pub(crate) fn crash(&mut self) {
        self.supervisor = None;
        let mut world = self.universe();
        world.note("the supervisor dies");
        world.told.clear();
        world.watched_trees.clear();
        world.crash = None;
        world.processes.retain(|process| !process.is_gated);
        for process in &mut world.processes {
            process.is_watched = false;
        }
    }

    /// Lets the supervisor do something, in which it may die.
    pub(crate) fn act<T>(&mut self, act: impl FnOnce(&mut Supervisor<Fake>) -> T) -> Option<T> {
        let supervisor = self.supervisor();
        match catch_unwind(AssertUnwindSafe(|| act(supervisor))) {
            Ok(done) => Some(done),
            Err(panic) if panic.is::<Crash>() => {
                self.crash();
                None
            }
            Err(panic) => resume_unwind(panic),
        }
    }

    /// Time passes; the supervisor takes a turn whenever it is told something or has to wake.
    pub(crate) fn pass(&mut self, span: Span) {
        let until = self.universe().now.after(span);
        loop {
            self.turn();
            let wake = self.supervisor().wake_at();
            let next = [self.universe().next(), wake].into_iter().flatten().min();
            let now = self.universe().now;
            let Some(next) = next.filter(|at| *at <= until) else { break };
            self.turns += 1;
            if self.turns > TURNS_MAX {
                self.universe().wrong("the supervisor spins".to_owned());
                return;
            }
            self.universe().now = next.max(now);
        }
        self.universe().now = until;
        self.turns = 0;
    }

    fn turn(&mut self) {
        let mut events = Vec::new();
        {
            let mut world = self.universe();
            world.pass();
            let now = world.now;
            while let Some((_, event)) = world.told.pop_front_if(|(at, _)| *at <= now) {
                events.push(event);
            }
        }
        if self.act(|supervisor| supervisor.turn(events)).is_some() {
            self.compare_with_a_full_look();
        }
    }

    /// What the turn left undone must not be due.
    fn compare_with_a_full_look(&mut self) {
        let now = self.universe().now;
        let supervisor = self.supervisor();
        let late = supervisor.wake_at().filter(|at| *at <= now);
        // A kill stays due until the end of what was killed is told.
        let mut due = supervisor.due_by_full_look();
        due.retain(|action| !matches!(action, Action::KillHelper(..)));
        if late.is_some() || !due.is_empty() {
            self.universe().wrong(format!("after a turn: due {due:?}, wake {late:?}"));
        }
    }
}
