//! A [`System`] in which nothing is real: no process, no file, and a clock that jumps.
//!
//! Processes obey. A start takes no time, what is asked is answered with yes, tasks and hooks end
//! well at once, and whatever a stop sends ends a process at once. The exceptions are told to it:
//! units that only `SIGKILL` ends, units that fail at each start, and tasks that fail once.

use std::collections::{BTreeMap, BTreeSet};

use jiff::tz::TimeZone;

use crate::model::{
    Agenda, Bound, Desired, Event, ExitMatch, Happening, Identity, InstanceId, Kind, Monotonic,
    Observed, Outcome, Ready, Record, Revision, Role, RunId, Signal, Sources, Spec, StartError,
    UnitName, Wall,
};
use crate::system::{Launch, Listening, Proof, Replay, RunRef, System, SystemError};

/// The first imagined process number: above all that Linux gives out, of which some are taken over.
const FIRST_PID: i32 = 1 << 30;
/// The part of a run's number by which chance moves a wait: the middle, which moves nothing.
const NO_CHANCE: u64 = 0x8000 << 48;

/// An imagined process.
#[derive(Debug, Clone)]
struct Process {
    instance: InstanceId,
    run: RunId,
    role: Role,
}

/// The imagined world.
#[derive(Debug, Default)]
pub(super) struct Imagined {
    now: Monotonic,
    wall: Wall,
    runs: u64,
    made: i32,
    processes: BTreeMap<i32, Process>,
    of_run: BTreeMap<RunId, BTreeSet<i32>>,
    /// Runs that are being ended.
    stopping: BTreeSet<RunId>,
    /// Runs that a stop had signalled before the beginning, and how.
    signalled: BTreeMap<RunId, Signal>,
    /// What is to be told next.
    told: Vec<Event>,
    /// Units that only `SIGKILL` ends.
    pub(super) stubborn: BTreeSet<UnitName>,
    /// Whether that is so with all of them.
    pub(super) all_stubborn: bool,
    /// Units that fail at each start.
    pub(super) broken: BTreeSet<UnitName>,
    /// Instances that fail at their next start.
    pub(super) fails_next: BTreeSet<InstanceId>,
}

impl Imagined {
    /// A world at this moment, in which nothing runs that will not be taken over.
    pub(super) fn new(now: Monotonic, wall: Wall) -> Self {
        Self { now, wall, ..Self::default() }
    }

    /// A run that a stop had begun to end, and what it had sent already.
    pub(super) fn was_stopping(&mut self, run: RunId, sent: Option<Signal>) {
        self.stopping.insert(run);
        if let Some(signal) = sent {
            self.signalled.insert(run, signal);
        }
    }

    /// Everything that happened by itself since this was last asked.
    pub(super) fn take_told(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.told)
    }

    /// Whether something is to be told.
    pub(super) fn has_news(&self) -> bool {
        !self.told.is_empty()
    }

    /// The clock jumps.
    pub(super) fn jump(&mut self, to: Monotonic) {
        let micros = to.since(self.now).as_nanos() / 1_000;
        self.wall.0 = self.wall.0.saturating_add(i64::try_from(micros).unwrap_or(i64::MAX));
        self.now = self.now.max(to);
    }

    /// The main process of a run ends badly. Returns whether there was one.
    pub(super) fn fail(&mut self, run: RunId, spec: &Spec) -> bool {
        let of_run = self.of_run.get(&run).into_iter().flatten();
        let mut mains = of_run.filter(|pid| {
            self.processes.get(pid).is_some_and(|process| process.role == Role::Main)
        });
        let Some(pid) = mains.next().copied() else { return false };
        self.end(pid, failure(spec));
        true
    }

    fn tell(&mut self, instance: &InstanceId, what: Happening) {
        self.told.push(Event { instance: instance.clone(), at: self.now, what });
    }

    fn end(&mut self, pid: i32, outcome: Outcome) {
        let Some(Process { instance, run, role }) = self.processes.remove(&pid) else { return };
        if let Some(pids) = self.of_run.get_mut(&run) {
            pids.remove(&pid);
        }
        self.tell(&instance, Happening::Ended { run, role, outcome });
    }

    fn pids_of(&self, run: RunId) -> Vec<i32> {
        self.of_run.get(&run).into_iter().flatten().copied().collect()
    }

    fn add(&mut self, launch: &Launch, pid: i32) {
        let (instance, run, role) = (launch.instance.clone(), launch.run, launch.role);
        self.processes.insert(pid, Process { instance, run, role });
        self.of_run.entry(run).or_default().insert(pid);
    }

    fn is_stubborn(&self, unit: &UnitName) -> bool {
        self.all_stubborn || self.stubborn.contains(unit)
    }

    /// A signal that is no part of a stop, such as one to reload, is survived.
    fn deliver(&mut self, pid: i32, signal: Signal) {
        let Some(process) = self.processes.get(&pid) else { return };
        let obeys = self.stopping.contains(&process.run)
            && signal != Signal::CONT
            && !self.is_stubborn(&process.instance.unit);
        if signal == Signal::KILL || obeys {
            self.end(pid, Outcome::Killed { signal, core: false });
        }
    }

    /// What a process does once its program runs.
    fn live(&mut self, launch: &Launch, pid: i32) {
        let Launch { instance, run, role, spec, .. } = launch;
        match role {
            Role::Main => {
                let fails = self.broken.contains(&instance.unit) | self.fails_next.remove(instance);
                if fails {
                    self.end(pid, failure(spec));
                } else if spec.kind == Kind::Task {
                    self.end(pid, success(spec));
                } else if says_ready(spec) {
                    self.tell(instance, Happening::Ready { run: *run });
                }
            }
            // A command that stops the unit does so.
            Role::Stop(_) => {
                self.end(pid, Outcome::Exited(0));
                for pid in self.pids_of(*run) {
                    self.deliver(pid, Signal::TERM);
                }
            }
            Role::Condition
            | Role::PreStart(_)
            | Role::PostStart(_)
            | Role::Reload
            | Role::PreStop(_)
            | Role::Former(_)
            | Role::PostStop(_)
            | Role::ReadyProbe
            | Role::HealthProbe => self.end(pid, Outcome::Exited(0)),
        }
    }
}

/// Whether a run says by itself that it is ready.
fn says_ready(spec: &Spec) -> bool {
    spec.process.as_ref().is_some_and(|process| match *process.ready {
        Ready::Notify | Ready::Fd(_) | Ready::File(_) | Ready::Log(_) => true,
        Ready::Started | Ready::Delay(_) | Ready::Asked(_) => false,
    })
}

/// An end that is no success of this unit.
fn failure(spec: &Spec) -> Outcome {
    let mut codes = (1..=u8::MAX).map(Outcome::Exited);
    let killed = Outcome::Killed { signal: Signal::KILL, core: false };
    codes.find(|outcome| !spec.is_success(outcome)).unwrap_or(killed)
}

/// An end that is a success of this unit.
fn success(spec: &Spec) -> Outcome {
    match spec.success_exit.first() {
        Some(ExitMatch::Signal(signal)) => Outcome::Killed { signal: *signal, core: false },
        Some(ExitMatch::Code(code)) => Outcome::Exited(*code),
        None => Outcome::Exited(0),
    }
}

impl System for Imagined {
    fn now(&self) -> Monotonic {
        self.now
    }

    fn wall(&self) -> Wall {
        self.wall
    }

    fn steady(&self) -> Monotonic {
        self.now
    }

    fn boot(&self) -> String {
        String::new()
    }

    fn zone(&self, name: Option<&str>) -> TimeZone {
        name.and_then(|name| TimeZone::get(name).ok()).unwrap_or_else(TimeZone::system)
    }

    fn watch_paths(&mut self, _: &Launch) {}

    /// The clock jumps to what follows from what is asked about, not to the next due time.
    fn set_alarm(&mut self, _: Option<Wall>) {}

    fn random(&mut self) -> u64 {
        self.runs = self.runs.saturating_add(1);
        NO_CHANCE | self.runs
    }

    fn conditions(&mut self, _: &InstanceId, _: u32, _: &Spec) -> Result<(), String> {
        Ok(())
    }

    fn spawn(&mut self, launch: &Launch, _: Monotonic) -> Result<Identity, StartError> {
        let pid = FIRST_PID.saturating_add(self.made);
        self.made = self.made.saturating_add(1);
        self.add(launch, pid);
        self.tell(&launch.instance, Happening::Execed { run: launch.run, role: launch.role });
        self.live(launch, pid);
        Ok(Identity { pid, start: 0, inode: None })
    }

    fn signal(&mut self, process: &Identity, signal: Signal) -> Result<(), SystemError> {
        self.deliver(process.pid, signal);
        Ok(())
    }

    fn kill_group(&mut self, leader: &Identity) -> Result<(), SystemError> {
        self.deliver(leader.pid, Signal::KILL);
        Ok(())
    }

    fn signal_tree(&mut self, run: &RunRef, signal: Signal) -> u32 {
        let pids = self.pids_of(run.run);
        for pid in &pids {
            self.deliver(*pid, signal);
        }
        u32::try_from(pids.len()).unwrap_or(u32::MAX)
    }

    fn kill_tree(&mut self, run: &RunRef) {
        self.signal_tree(run, Signal::KILL);
    }

    fn watch_tree(&mut self, _: &RunRef) -> u32 {
        0
    }

    fn release(&mut self, _: &InstanceId, run: RunId, _: bool) {
        self.of_run.remove(&run);
        self.stopping.remove(&run);
    }

    fn forget(&mut self, _: &InstanceId, _: bool) {}

    /// All addresses are free, and nobody connects.
    fn listen(&mut self, _: &Listening<'_>) -> Result<Vec<Bound>, StartError> {
        Ok(Vec::new())
    }

    fn close_sockets(&mut self, _: &InstanceId) {}

    fn watch_sockets(&mut self, _: &InstanceId, _: bool) {}

    fn instruct(&mut self, _: &InstanceId, _: u32, _: &Spec) -> Result<(), SystemError> {
        Ok(())
    }

    /// Whoever was alive when the state was taken is; what it is in the middle of ends well.
    fn adopt(&mut self, launch: &Launch, process: &Identity) -> Proof {
        self.add(launch, process.pid);
        if let Some(signal) = self.signalled.get(&launch.run) {
            self.deliver(process.pid, *signal);
        }
        if self.processes.contains_key(&process.pid) {
            self.live(launch, process.pid);
        }
        Proof::Alive
    }

    fn note(&mut self, event: &Event) {
        if let Happening::StopBegan { run, .. } = &event.what {
            self.stopping.insert(*run);
        }
    }

    fn flush(&mut self) -> Result<(), SystemError> {
        Ok(())
    }

    fn recall(&mut self) -> Option<Replay> {
        None
    }

    fn compact(&mut self, _: &Observed, _: bool) -> Result<(), SystemError> {
        Ok(())
    }

    fn has_lost(&self, _: u64) -> bool {
        false
    }

    fn doubt_saved(&mut self) {}

    fn put_back(&mut self, _: &Desired, _: &Observed) -> Result<(), SystemError> {
        Ok(())
    }

    fn save(&mut self, _: &Desired) -> Result<(), SystemError> {
        Ok(())
    }

    fn keep(&mut self, _: &Record, _: &[Revision], _: Option<&Sources>) -> Result<(), SystemError> {
        Ok(())
    }

    fn records(&self, _: u64) -> (Vec<Record>, Option<SystemError>) {
        (Vec::new(), None)
    }

    fn revision(&self, source: &str, _: u64) -> Result<Revision, SystemError> {
        Err(SystemError::new("read the history of", source, "nothing is kept in imagination"))
    }

    fn save_agenda(&mut self, _: &Agenda) -> Result<(), SystemError> {
        Ok(())
    }
}
