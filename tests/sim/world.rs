//! A machine with its supervisor: what the daemon's loop does, with a clock that jumps.

use std::cell::RefMut;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::rc::Rc;

use opm::model::{Action, Event, Happening, Monotonic, Role, RunId, Span};
use opm::supervisor::{Boot, KeeperOptions, Supervisor};
use opm::system::{Launch, System};

use crate::check::Checks;
use crate::machine::{Machine, Shared};
use crate::scene::Seen;
use crate::setting::{Doom, Fault, Setting};
use crate::system::Simulated;

/// Most turns until a wait is over; more is a supervisor that spins.
const TURNS_MAX: usize = 5_000;
/// As in the daemon: so many panics in so long a time, and nothing is started any more.
const PANICS_MAX: usize = 3;
const PANICS_WITHIN: Span = Span::seconds(60);
/// Most moments of a world; more is one in which something goes on without end.
const MOMENTS_MAX: usize = 200_000;
/// How often the monitor of the planted fault looks.
const MONITOR_EVERY: Span = Span::millis(500);

/// A machine, its supervisor, and those who judge it.
pub(crate) struct World {
    machine: Shared,
    supervisor: Option<Supervisor<Simulated>>,
    pub(crate) checks: Checks,
    /// What happened, for people.
    pub(crate) timeline: Vec<Moment>,
    panics: Vec<Monotonic>,
    is_minimal: bool,
    /// Whether each turn is compared with a look at everything.
    compares: bool,
    /// How often a supervisor came to an end in order.
    pub(crate) closed: u32,
}

impl World {
    /// A machine on which nothing has happened.
    pub(crate) fn new(seed: u64, setting: Setting) -> Self {
        let mut machine = Machine::new(seed, setting);
        machine.drive.lies = machine.has_fault(Fault::NoSync);
        machine.drive.never_cuts = machine.has_fault(Fault::TornLedger);
        Self {
            machine: Rc::new(std::cell::RefCell::new(machine)),
            supervisor: None,
            checks: Checks::default(),
            timeline: Vec::new(),
            panics: Vec::new(),
            is_minimal: false,
            compares: seed.is_multiple_of(3),
            closed: 0,
        }
    }

    /// The machine, for a system of one's own.
    pub(crate) fn shared(&self) -> &Shared {
        &self.machine
    }

    pub(crate) fn machine(&self) -> RefMut<'_, Machine> {
        self.machine.borrow_mut()
    }

    /// The supervisor, if it runs or can be started.
    pub(crate) fn supervisor(&mut self) -> Option<&mut Supervisor<Simulated>> {
        if self.supervisor.is_none() {
            self.boot(false);
        }
        self.supervisor.as_mut()
    }

    /// How many verbs the supervisor asked of its system, the clocks apart.
    pub(crate) fn verbs(&self) -> u64 {
        self.supervisor.as_ref().map_or(0, |supervisor| supervisor.system().verbs)
    }

    pub(crate) fn is_minimal(&self) -> bool {
        self.is_minimal
    }

    pub(crate) fn wrong(&mut self, text: String) {
        self.timeline.push(Moment::Text(format!("WRONG: {text}")));
        self.checks.wrongs.push(text);
    }

    /// Notes what was seen, and has it judged.
    fn look(&mut self) {
        let seen = std::mem::take(&mut self.machine.borrow_mut().seen);
        let from = self.timeline.len().saturating_sub(80);
        assert!(
            self.timeline.len() < MOMENTS_MAX,
            "a world without end:\n{}",
            lines(&self.timeline[from..])
        );
        for (at, seen) in seen {
            let wrongs = self.checks.wrongs.len();
            self.checks.see(at, &seen);
            self.timeline.push(Moment::Seen(at, seen));
            for wrong in &self.checks.wrongs[wrongs..] {
                self.timeline.push(Moment::Text(format!("WRONG: {wrong}")));
            }
        }
    }

    /// Something for the checks, at this time.
    pub(crate) fn see(&mut self, seen: Seen) {
        self.machine.borrow_mut().see(seen);
        self.look();
    }

    // Lives and ends.

    fn boot(&mut self, same_process: bool) {
        let booted = catch_unwind(AssertUnwindSafe(|| {
            let (system, mut loaded, replay) = Simulated::open(&self.machine)?;
            let desired = loaded.desired.clone().unwrap_or_default();
            let is_sure = system.is_sure(desired.generation);
            self.machine.borrow_mut().see(Seen::Boots { desired, is_sure });
            if self.machine.borrow().has_fault(Fault::HoldsForgotten) {
                let units =
                    loaded.desired.iter_mut().flat_map(|desired| desired.units.values_mut());
                units.for_each(|unit| unit.hold = None);
            }
            let keeper = system.has_keeper().then(|| KeeperOptions {
                run_dir: PathBuf::from("/run/opm"),
                console: false,
                colour: false,
                quota: None,
            });
            let (shutdown_budget, capacity) = (None, None);
            let boot =
                Boot { system, loaded, replay, keeper, shutdown_budget, capacity, same_process };
            Ok::<_, String>(boot.supervisor())
        }));
        match booted {
            Ok(Ok(supervisor)) => {
                self.supervisor = Some(supervisor);
                self.is_minimal = false;
                self.machine.borrow_mut().tell_child();
            }
            Ok(Err(why)) => self.timeline.push(Moment::Text(format!("cannot boot: {why}"))),
            Err(payload) => match payload.downcast::<Doom>() {
                // A panic at boot is no different from a kill.
                Ok(doom) if *doom == Doom::PowerLoss => self.lose_power(),
                Ok(_) => self.crash(),
                Err(payload) => resume_unwind(payload),
            },
        }
        self.look();
    }

    /// A second supervisor is started beside the one that runs.
    pub(crate) fn second(&mut self) {
        if self.supervisor.is_none() {
            return;
        }
        let first = self.supervisor.take();
        // What is to befall the first does not befall the second.
        let doom = self.machine().doom.take();
        self.boot(false);
        if let Some(mut second) = self.supervisor.take() {
            // It was let in. It does what it thinks is right, and goes.
            second.turn(Vec::new());
            self.look();
        }
        self.supervisor = first;
        self.machine().doom = doom;
    }

    /// `kill -9`: what it did not write is lost, and what it held at the gate ends.
    pub(crate) fn crash(&mut self) {
        self.supervisor = None;
        self.machine.borrow_mut().lose_supervisor();
        self.look();
    }

    pub(crate) fn lose_power(&mut self) {
        self.supervisor = None;
        self.machine.borrow_mut().lose_power();
        self.look();
    }

    /// `opm reexec`: another supervisor in the same process.
    pub(crate) fn reexec(&mut self) {
        let is_ready = self.act(|supervisor| supervisor.hand_over().is_ok());
        if is_ready == Some(true) && self.supervisor.take().is_some() {
            self.machine.borrow_mut().exec_supervisor();
            self.boot(true);
        }
    }

    fn doomed(&mut self, doom: Doom) {
        match doom {
            Doom::Kill => self.crash(),
            Doom::PowerLoss => self.lose_power(),
            Doom::Panic => self.panicked(),
        }
    }

    /// What the daemon does: PID 1 goes on, others end with a code and are adopted back.
    fn panicked(&mut self) {
        self.timeline.push(Moment::Text("a panic".to_owned()));
        let (is_pid_one, now, is_deaf) = {
            let mut machine = self.machine.borrow_mut();
            machine.close_gates();
            let is_deaf = machine.has_fault(Fault::NoRecovery);
            (machine.setting.is_pid_one, machine.now, is_deaf)
        };
        if !is_pid_one || self.supervisor.is_none() {
            self.crash();
            return;
        }
        self.panics.retain(|at| now.since(*at) < PANICS_WITHIN);
        self.panics.push(now);
        let is_last = self.panics.len() >= PANICS_MAX;
        self.is_minimal |= is_last;
        if is_deaf {
            return;
        }
        self.act(|supervisor| {
            supervisor.recover();
            if is_last {
                supervisor.enter_minimal_mode();
            }
        });
        self.in_force();
    }

    /// What the supervisor goes on with is what it had, whatever was saved before the panic.
    fn in_force(&mut self) {
        if let Some(supervisor) = &self.supervisor {
            self.checks.scene.proves_anew(supervisor.desired());
        }
    }

    /// Lets the supervisor do something, in which it may die.
    pub(crate) fn act<T>(
        &mut self,
        act: impl FnOnce(&mut Supervisor<Simulated>) -> T,
    ) -> Option<T> {
        let supervisor = self.supervisor()?;
        let done = catch_unwind(AssertUnwindSafe(|| act(supervisor)));
        self.look();
        match done {
            Ok(done) => Some(done),
            Err(payload) => match payload.downcast::<Doom>() {
                Ok(doom) => {
                    self.doomed(*doom);
                    None
                }
                Err(payload) => resume_unwind(payload),
            },
        }
    }

    // Time.

    /// Time passes; the supervisor takes a turn whenever it is told something or has to wake.
    pub(crate) fn pass(&mut self, span: Span) {
        let lasts = span.as_millis_up();
        let mut passed = 0;
        let mut turns = 0;
        let has_monitor = self.machine().has_fault(Fault::Monitor);
        loop {
            self.turn();
            if has_monitor {
                self.monitor();
            }
            turns += 1;
            if turns > TURNS_MAX {
                self.wrong("the supervisor spins".to_owned());
                return;
            }
            let now = self.machine().now;
            // A power loss sets the clock back: what is left to pass stays.
            let until = now.after(Span::millis(lasts - passed));
            // By the supervisor's own clock, which may be a wrong one.
            let wake = self.supervisor.as_ref().and_then(|supervisor| {
                let at = supervisor.wake_at()?;
                Some(now.after(at.since(supervisor.system().now())))
            });
            let look = has_monitor.then(|| now.after(MONITOR_EVERY));
            let next = [self.machine().next(), wake, look].into_iter().flatten().min();
            let Some(next) = next.filter(|at| *at <= until) else { break };
            passed += next.max(now).since(now).as_millis_up();
            passed = passed.min(lasts);
            self.machine().now = next.max(now);
        }
        let rest = Span::millis(lasts - passed);
        let now = self.machine().now;
        self.machine().now = now.after(rest);
    }

    /// Time passes, and the supervisor does not run.
    pub(crate) fn freeze(&mut self, span: Span) {
        let until = self.machine().now.after(span);
        self.machine().pass_until(until);
        self.look();
    }

    fn turn(&mut self) {
        self.machine().pass();
        self.look();
        if self.supervisor().is_none() {
            return;
        }
        let wires = self.machine().take_wire();
        let done = self.act(|supervisor| {
            let mut events: Vec<Event> = Vec::new();
            for wire in wires {
                events.extend(supervisor.system_mut().look(wire));
            }
            supervisor.turn(events);
            supervisor.take_notices()
        });
        if let Some(notices) = done {
            for notice in notices {
                self.machine().see(Seen::Noticed(notice));
            }
            self.machine().see(Seen::TurnOver);
            self.look();
            if self.supervisor.as_ref().is_some_and(|s| s.is_over().is_some()) {
                self.close();
            } else {
                self.compare_with_a_full_look();
            }
        }
    }

    /// Everything is down: the supervisor's process ends, in order.
    fn close(&mut self) {
        self.act(Supervisor::close);
        if self.supervisor.take().is_some() {
            self.closed += 1;
            self.machine.borrow_mut().lose_supervisor();
            self.look();
        }
    }

    /// What the turn left undone must not be due.
    fn compare_with_a_full_look(&mut self) {
        // A look at everything is a fifth of a world's cost: one world in three has it.
        if self.is_minimal || !self.compares {
            return;
        }
        let Some(supervisor) = self.supervisor.as_mut() else { return };
        let now = supervisor.system().now();
        let late = supervisor.wake_at().filter(|at| *at <= now);
        // A kill stays due until the end of what was killed is told.
        let mut due = supervisor.due_by_full_look();
        due.retain(|action| !matches!(action, Action::KillHelper(..)));
        if late.is_some() || !due.is_empty() {
            self.wrong(format!("after a turn: due {due:?}, wake {late:?}"));
        }
    }

    /// The planted monitor: it looks at what is recorded, takes a pid for a process, and starts
    /// whatever it sees dead.
    fn monitor(&mut self) {
        let Some(supervisor) = self.supervisor.as_mut() else { return };
        let units: Vec<_> = supervisor.desired().units.values().cloned().collect();
        for unit in units {
            let id = unit.spec.instance_ids().remove(0);
            let known = supervisor.observed().get(&id);
            let main = known.and_then(|known| known.run.as_ref()?.main.as_ref()?.identity);
            let is_dead =
                main.is_none_or(|main| !self.machine.borrow().processes.contains_key(&main.pid));
            if is_dead && unit.spec.process.is_some() {
                let run = RunId(supervisor.system_mut().random());
                let spec = unit.spec;
                let launch = Launch { instance: id, index: 1, run, role: Role::Main, spec };
                let now = supervisor.system().now();
                // Whether it could does not matter to it.
                drop(supervisor.system_mut().spawn(&launch, now));
            }
        }
        self.look();
    }
}

/// Something that happened, for people who look for the cause of a failure.
#[derive(Debug)]
pub(crate) enum Moment {
    Seen(Monotonic, Seen),
    Text(String),
}

impl Moment {
    /// A line for it, where it is worth one.
    pub(crate) fn line(&self) -> Option<String> {
        match self {
            Self::Seen(at, seen) => {
                let millis = at.since(Monotonic::default()).as_millis_up();
                words(seen).map(|text| format!("{millis:>8} ms  {text}"))
            }
            Self::Text(text) => Some(format!("             {text}")),
        }
    }

    fn is_wrong(&self) -> bool {
        matches!(self, Self::Text(text) if text.starts_with("WRONG"))
    }
}

/// Lines for all that happened.
pub(crate) fn lines(moments: &[Moment]) -> String {
    moments.iter().filter_map(Moment::line).collect::<Vec<_>>().join("\n")
}

/// What was seen, in a few words.
fn words(seen: &Seen) -> Option<String> {
    Some(match seen {
        Seen::Goes { owner } => format!("{owner} goes"),
        Seen::Begins { pid, owner } => format!("{owner} runs as {pid}"),
        Seen::Ready { owner } => format!("{owner} says that it is ready"),
        Seen::Ends { owner, outcome, .. } => format!("{owner} {outcome}"),
        Seen::Signalled { target: Some(owner), signal, .. } => format!("{owner} gets {signal}"),
        Seen::Noticed(notice) => {
            let because = notice.reason.as_ref().map(|reason| format!(", because {reason}"));
            let (id, what) = (&notice.event.instance, brief(&notice.event.what));
            format!("    done: {id} {what}{}", because.unwrap_or_default())
        }
        Seen::Saves { desired } => format!("saves generation {}", desired.generation),
        Seen::Saved { desired } => format!("saved generation {}", desired.generation),
        Seen::Boots { desired, .. } => {
            format!("a supervisor boots, generation {}", desired.generation)
        }
        Seen::Told(_)
        | Seen::TurnOver
        | Seen::Pings { .. }
        | Seen::Flushed { is_ok: true }
        | Seen::AgendaSaved { is_ok: false } => return None,
        Seen::AgendaSaved { is_ok: true } => "saves due times".to_owned(),
        other => format!("{other:?}"),
    })
}

/// A fact without the numbers of runs.
fn brief(what: &Happening) -> String {
    let text = format!("{what:?}");
    let mut parts = text.split("run: RunId(");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |all, part| all + part.split_once(')').map_or(part, |(_, rest)| rest))
}

/// Everything wrong, with what led to it.
pub(crate) fn verdict(world: &World) -> Result<(), String> {
    let wrongs = &world.checks.wrongs;
    if wrongs.is_empty() {
        return Ok(());
    }
    let first = world.timeline.iter().position(Moment::is_wrong);
    let end = first.map_or(world.timeline.len(), |first| first + 1);
    let from = end.saturating_sub(80);
    Err(format!("{wrongs:#?}\n{}", lines(&world.timeline[from..end])))
}
