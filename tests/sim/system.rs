//! [`System`] over the simulated machine: the same order of steps as the real one, with the real
//! ledger and the real saved state on a simulated disk. Each operation may be the supervisor's last.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::path::Path;

use jiff::tz::TimeZone;
use opm::model::{
    Agenda, Bound, Desired, EXIT_NEVER_STARTED, Event, Happening, Identity, InstanceId, Monotonic,
    Observed, Outcome, Ready, Record, Revision, Role, RunId, Signal, Sources, Spec, Stage,
    StartError, Wall, Word,
};
use opm::system::{
    Archive, Disk, Launch, Ledger, Listening, Loaded, Proof, Replay, RunRef, Store, System,
    SystemError,
};

use crate::machine::{Life, Owner, Parent, Shared, Wire, tick};
use crate::program::program;
use crate::scene::Seen;
use crate::setting::Fault;

const RUN_DIR: &str = "/run/opm";
const STATE_DIR: &str = "/state";

/// The machine's disk, where each operation may be the last.
#[derive(Debug, Clone)]
pub(crate) struct SharedDisk(Shared);

impl SharedDisk {
    /// An operation may be the last before it is done, and after.
    fn op<T>(&self, op: impl FnOnce(&mut crate::drive::Drive) -> io::Result<T>) -> io::Result<T> {
        tick(&self.0);
        let done = op(&mut self.0.borrow_mut().drive);
        tick(&self.0);
        done
    }
}

impl Disk for SharedDisk {
    type File = usize;

    fn read(&self, path: &Path, _: u64) -> io::Result<Vec<u8>> {
        self.op(|drive| drive.read(path))
    }

    fn append(&self, path: &Path) -> io::Result<usize> {
        self.op(|drive| drive.open(path, false))
    }

    fn create(&self, path: &Path) -> io::Result<usize> {
        self.op(|drive| drive.open(path, true))
    }

    fn write(&self, file: &mut usize, bytes: &[u8]) -> io::Result<()> {
        self.op(|drive| drive.write(*file, bytes))
    }

    fn cut(&self, file: &usize, length: u64) -> io::Result<()> {
        self.op(|drive| drive.cut(*file, usize::try_from(length).unwrap()))
    }

    fn sync(&self, file: &usize) -> io::Result<()> {
        self.op(|drive| drive.sync(*file))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.op(|drive| drive.sync_dir(dir))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.op(|drive| drive.rename(from, to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.op(|drive| drive.remove(path))
    }

    fn make_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn exists(&self, path: &Path) -> bool {
        self.0.borrow().drive.exists(path)
    }

    fn names(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        Ok(self.0.borrow().drive.names(dir))
    }
}

/// What one supervisor has of the machine.
#[derive(Debug)]
pub(crate) struct Simulated {
    machine: Shared,
    ledger: Ledger<SharedDisk>,
    store: Store<SharedDisk>,
    archive: Archive<SharedDisk>,
    /// Our children with a role, as in the real system.
    children: BTreeMap<i32, Owner>,
    /// Starts whose exec is not seen yet.
    channels: BTreeMap<i32, Identity>,
    /// Processes that are not our children and whose end is told.
    foreign: BTreeMap<i32, (Identity, Owner)>,
    trees: BTreeMap<RunId, RunRef>,
    runs: BTreeMap<RunId, InstanceId>,
    /// Runs whose files are under watch.
    watching: BTreeSet<RunId>,
    /// How many verbs there were, the clocks apart.
    pub(crate) verbs: u64,
}

impl Simulated {
    /// Takes the lock, and reads what was saved and what was let run.
    pub(crate) fn open(machine: &Shared) -> Result<(Self, Loaded, Replay), String> {
        tick(machine);
        let life = {
            let mut machine = machine.borrow_mut();
            if machine.is_locked && !machine.has_fault(Fault::NoLock) {
                return Err("another supervisor has the lock".to_owned());
            }
            machine.is_locked = true;
            machine.life
        };
        tick(machine);
        let disk = SharedDisk(std::rc::Rc::clone(machine));
        let name = format!("ledger-{life}.jsonl");
        let opened = Ledger::open(disk.clone(), Path::new(RUN_DIR), &name);
        let (ledger, replay) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                machine.borrow_mut().is_locked = false;
                return Err(error.to_string());
            }
        };
        see_known(machine, &replay);
        let archive = Archive::new(disk.clone(), Path::new(STATE_DIR));
        let mut store = Store::new(disk, Path::new(STATE_DIR));
        let loaded = store.load().map_err(|error| {
            machine.borrow_mut().is_locked = false;
            error.to_string()
        })?;
        let system = Self {
            machine: std::rc::Rc::clone(machine),
            ledger,
            store,
            archive,
            children: BTreeMap::new(),
            channels: BTreeMap::new(),
            foreign: BTreeMap::new(),
            trees: BTreeMap::new(),
            runs: BTreeMap::new(),
            watching: BTreeSet::new(),
            verbs: 0,
        };
        Ok((system, loaded, replay))
    }

    /// Whether the saved state survives a loss of power.
    pub(crate) fn is_sure(&self, generation: u64) -> bool {
        !self.store.has_lost(generation)
    }

    /// Whether this machine's supervisor has a log keeper.
    pub(crate) fn has_keeper(&self) -> bool {
        self.machine.borrow().setting.has_keeper
    }

    fn verb(&mut self) {
        self.verbs += 1;
        tick(&self.machine);
    }

    fn has_fault(&self, fault: Fault) -> bool {
        self.machine.borrow().has_fault(fault)
    }

    fn event(&self, instance: &InstanceId, what: Happening) -> Event {
        Event { instance: instance.clone(), at: self.now(), what }
    }

    /// What there is to see where the wire said that there is something.
    pub(crate) fn look(&mut self, wire: Wire) -> Vec<Event> {
        let events = self.look_at(wire);
        for event in &events {
            self.machine.borrow_mut().see(Seen::Told(event.clone()));
        }
        events
    }

    fn look_at(&mut self, wire: Wire) -> Vec<Event> {
        match wire {
            Wire::Child => self.reap(),
            Wire::Channel(identity) => self.channel(&identity).into_iter().collect(),
            Wire::Foreign(identity) => {
                let owner = self.foreign.get(&identity.pid).map(|(_, owner)| owner.clone());
                let mut events = owner.map(|owner| self.names_of(&owner)).unwrap_or_default();
                events.extend(self.foreign_end(&identity));
                events
            }
            Wire::Member(run) => {
                let Some(tree) = self.trees.get(&run).cloned() else { return Vec::new() };
                let left = self.watch_tree(&tree);
                vec![self.event(&tree.instance, Happening::Tree { run, left })]
            }
            Wire::Caller(socket) => {
                let run = self.machine.borrow_mut().called(socket);
                let Some((instance, run)) = run else { return Vec::new() };
                vec![self.event(&instance, Happening::Called { run })]
            }
            Wire::Ready(run) => {
                let Some(instance) = self.runs.get(&run).cloned() else { return Vec::new() };
                vec![self.event(&instance, Happening::Ready { run })]
            }
            Wire::MainIs(run, identity) => self.main_is(run, identity).into_iter().collect(),
            Wire::Touched(run) => {
                let instance = self.runs.get(&run).filter(|_| self.watching.contains(&run));
                let Some(instance) = instance.cloned() else { return Vec::new() };
                vec![self.event(&instance, Happening::Touched { run })]
            }
            Wire::Ping(run) => {
                let Some(instance) = self.runs.get(&run).cloned() else { return Vec::new() };
                vec![self.event(&instance, Happening::Word { run, word: Word::Well })]
            }
        }
    }

    /// All children that have ended; at the start those too that ended before anybody looked.
    pub(crate) fn reap(&mut self) -> Vec<Event> {
        let dead = self.machine.borrow_mut().reap();
        let mut events = Vec::new();
        for process in dead {
            let pid = process.identity.pid;
            if let Some(owner) = self.children.get(&pid).cloned() {
                events.extend(self.names_of(&owner));
            }
            let Some(owner) = self.children.remove(&pid) else { continue };
            let Life::Zombie(mut outcome) = process.life else { continue };
            let (run, role) = (owner.run, owner.role.unwrap());
            if self.channels.remove(&pid).is_some() {
                if process.program == "missing" {
                    outcome = not_started(Stage::Exec, "no such file or directory", false);
                } else if outcome == Outcome::Exited(EXIT_NEVER_STARTED) {
                    outcome = not_started(Stage::Gate, "the gate was closed", true);
                } else {
                    let what = Happening::Execed { run, role };
                    events.push(self.event(&owner.instance, what));
                }
            }
            events.push(self.event(&owner.instance, Happening::Ended { run, role, outcome }));
        }
        events
    }

    /// What a main process that has ended said before.
    fn names_of(&mut self, owner: &Owner) -> Vec<Event> {
        if owner.role != Some(Role::Main) {
            return Vec::new();
        }
        let named = self.machine.borrow_mut().take_names(owner.run);
        named.into_iter().filter_map(|identity| self.main_is(owner.run, identity)).collect()
    }

    /// Another process has the role of the main one, if that one's end is still to be told.
    fn main_is(&mut self, run: RunId, identity: Identity) -> Option<Event> {
        let pid = self.prove(&identity)?;
        let is_known = self.children.contains_key(&pid) || self.foreign.contains_key(&pid);
        let is_main = |owner: &Owner| (owner.run, owner.role) == (run, Some(Role::Main));
        let own = self.children.values_mut();
        let mut owners = own.chain(self.foreign.values_mut().map(|(_, owner)| owner));
        let main = owners.find(|owner| is_main(owner)).filter(|_| !is_known)?;
        let owner = main.clone();
        // Each program of the machine names one.
        main.role = Some(Role::Former(0));
        match self.machine.borrow().processes[&pid].parent {
            Parent::Supervisor => {
                self.children.insert(pid, owner.clone());
            }
            Parent::Init => {
                self.foreign.insert(pid, (identity, owner.clone()));
            }
        }
        let word = Word::MainIs { identity, was: 0 };
        Some(self.event(&owner.instance, Happening::Word { run, word }))
    }

    fn channel(&mut self, identity: &Identity) -> Option<Event> {
        let known = self.channels.get(&identity.pid).filter(|known| *known == identity)?;
        let pid = known.pid;
        let owner = self.children.get(&pid)?.clone();
        self.channels.remove(&pid);
        let (run, role) = (owner.run, owner.role.unwrap());
        Some(self.event(&owner.instance, Happening::Execed { run, role }))
    }

    fn foreign_end(&mut self, identity: &Identity) -> Option<Event> {
        let known = self.foreign.get(&identity.pid).filter(|(known, _)| known == identity);
        let owner = known?.1.clone();
        self.foreign.remove(&identity.pid);
        let (run, role) = (owner.run, owner.role.unwrap());
        // What the machine has seen is told by a kernel that tells it.
        let told = self.machine.borrow().seen_outcome(identity);
        let outcome = told.unwrap_or(Outcome::Unknown);
        Some(self.event(&owner.instance, Happening::Ended { run, role, outcome }))
    }

    /// The process that an identity stands for, if it lives.
    fn prove(&self, identity: &Identity) -> Option<i32> {
        let trusting = self.has_fault(Fault::PidIsIdentity);
        let machine = self.machine.borrow();
        let process = machine.processes.get(&identity.pid)?;
        let is_same = process.identity == *identity || trusting;
        (is_same && process.is_alive()).then_some(identity.pid)
    }
}

/// Runs that the ledger knows have begun, with processes or without.
fn see_known(machine: &Shared, replay: &Replay) {
    let runs = replay.observed.iter().filter_map(|(_, instance)| instance.run.as_ref());
    for run in runs {
        machine.borrow_mut().see(Seen::Known { run: run.id });
    }
}

fn not_started(stage: Stage, reason: &str, passing: bool) -> Outcome {
    let (subject, reason) = (String::new(), reason.to_owned());
    Outcome::NotStarted(StartError { stage, subject, reason, passing })
}

fn start_error(stage: Stage, reason: &str) -> StartError {
    let (subject, reason) = (String::new(), reason.to_owned());
    StartError { stage, subject, reason, passing: true }
}

impl System for Simulated {
    fn now(&self) -> Monotonic {
        let machine = self.machine.borrow();
        if machine.has_fault(Fault::WallDeadlines) {
            let micros = u64::try_from(machine.wall().0).unwrap_or(0);
            return Monotonic::default().after(opm::model::Span::millis(micros / 1_000));
        }
        machine.now
    }

    fn wall(&self) -> Wall {
        let mut machine = self.machine.borrow_mut();
        let off = machine.wall_looks.pop_front().unwrap_or(0);
        Wall(machine.wall().0 + off * 1_000_000)
    }

    fn steady(&self) -> Monotonic {
        self.machine.borrow().now
    }

    fn boot(&self) -> String {
        self.machine.borrow().life.to_string()
    }

    fn zone(&self, _: Option<&str>) -> TimeZone {
        TimeZone::UTC
    }

    fn watch_paths(&mut self, launch: &Launch) {
        self.verb();
        if launch.spec.watch.is_some() {
            self.watching.insert(launch.run);
        } else {
            self.watching.remove(&launch.run);
        }
    }

    fn set_alarm(&mut self, at: Option<Wall>) {
        self.verb();
        self.machine.borrow_mut().alarm = at;
    }

    fn random(&mut self) -> u64 {
        self.machine.borrow_mut().chance.next()
    }

    fn conditions(&mut self, _: &InstanceId, _: u32, _: &Spec) -> Result<(), String> {
        self.verb();
        let mut machine = self.machine.borrow_mut();
        let until = machine.now.after(machine.slowness);
        machine.pass_until(until);
        Ok(())
    }

    fn has_room(&mut self, promised: usize) -> bool {
        let machine = self.machine.borrow();
        let waits = |pid: &&i32| machine.processes.get(pid).is_some_and(|p| p.life == Life::Gated);
        let starting = || self.channels.keys().filter(waits).count();
        machine.setting.slots.is_none_or(|slots| starting() + promised < slots)
    }

    fn spawn(&mut self, launch: &Launch, at: Monotonic) -> Result<Identity, StartError> {
        self.verb();
        let Some(program) = program(launch) else {
            let error = start_error(Stage::Resolve, "the command is gone");
            return Err(StartError { passing: false, ..error });
        };
        self.runs.insert(launch.run, launch.instance.clone());
        let owner =
            Owner { instance: launch.instance.clone(), run: launch.run, role: Some(launch.role) };
        let says = launch.role == Role::Main
            && launch.spec.process.as_ref().is_some_and(|process| match *process.ready {
                Ready::Notify | Ready::Fd(_) | Ready::File(_) | Ready::Log(_) => true,
                Ready::Started | Ready::Delay(_) | Ready::Asked(_) => false,
            });
        let identity = {
            let mut machine = self.machine.borrow_mut();
            if !machine.has_room() {
                let reason = "resource temporarily unavailable";
                return Err(start_error(Stage::Fork, reason));
            }
            machine.fork(Some(owner.clone()), &program, says)
        };
        // It is let go when that is in the ledger; that it goes is seen from then on, whether or not
        // there is time to open the gate.
        let is_let_go =
            |system: &Self| system.machine.borrow_mut().see(Seen::Goes { owner: owner.clone() });
        let goes = |system: &Self| system.machine.borrow_mut().open_gate(&identity);
        let goes_early = self.has_fault(Fault::NoGate) || self.has_fault(Fault::LedgerAfterGo);
        if goes_early {
            is_let_go(self);
            goes(self);
        }
        tick(&self.machine);
        let run = launch.run;
        let what = Happening::Spawned { run, role: launch.role, identity };
        let goes_on = Happening::Execed { run, role: launch.role };
        for what in [what, goes_on] {
            self.ledger.note(&Event { instance: launch.instance.clone(), at, what });
        }
        if let Err(error) = self.ledger.flush() {
            self.ledger.forget_last_notes(2);
            let mut machine = self.machine.borrow_mut();
            if !goes_early {
                machine.close_gates();
                machine.reap_one(&identity);
            }
            return Err(start_error(Stage::Ledger, &error.reason));
        }
        tick(&self.machine);
        if !goes_early {
            is_let_go(self);
        }
        tick(&self.machine);
        if !goes_early {
            goes(self);
        }
        tick(&self.machine);
        self.children.insert(identity.pid, owner);
        self.channels.insert(identity.pid, identity);
        Ok(identity)
    }

    fn signal(&mut self, process: &Identity, signal: Signal) -> Result<(), SystemError> {
        self.verb();
        let Some(pid) = self.prove(process) else { return Ok(()) };
        let mut machine = self.machine.borrow_mut();
        // Whoever has this identity is meant; another one that has its number is not.
        let meant = machine.by_identity(process).and_then(|p| p.owner.as_ref().map(|o| o.run));
        machine.deliver(pid, signal, meant.unwrap_or(RunId(0)));
        Ok(())
    }

    fn kill_group(&mut self, leader: &Identity) -> Result<(), SystemError> {
        self.signal(leader, Signal::KILL)
    }

    fn signal_tree(&mut self, run: &RunRef, signal: Signal) -> u32 {
        self.verb();
        let leaders: BTreeSet<i32> =
            run.leaders.iter().filter_map(|(_, leader)| self.prove(leader)).collect();
        let is_leader_only = self.has_fault(Fault::LeaderOnly);
        let is_trusting = self.has_fault(Fault::PidIsIdentity);
        let members = self.machine.borrow().members(run.run);
        let mut reached: BTreeSet<i32> =
            if is_leader_only { leaders.clone() } else { members.into_iter().collect() };
        if is_trusting {
            reached.extend(leaders);
        }
        for pid in &reached {
            self.machine.borrow_mut().deliver(*pid, signal, run.run);
            tick(&self.machine);
        }
        u32::try_from(reached.len()).unwrap()
    }

    fn kill_tree(&mut self, run: &RunRef) {
        self.signal_tree(run, Signal::KILL);
    }

    fn watch_tree(&mut self, run: &RunRef) -> u32 {
        self.verb();
        if self.has_fault(Fault::LeaderOnly) {
            return 0;
        }
        self.trees.insert(run.run, run.clone());
        let mut machine = self.machine.borrow_mut();
        machine.watched_trees.insert(run.run);
        machine.strays(run.run, &run.leaders)
    }

    fn release(&mut self, instance: &InstanceId, run: RunId, _: bool) {
        self.verb();
        self.trees.remove(&run);
        self.runs.remove(&run);
        self.watching.remove(&run);
        let mut machine = self.machine.borrow_mut();
        machine.watched_trees.remove(&run);
        machine.see(Seen::Released { instance: instance.clone(), run });
    }

    fn forget(&mut self, _: &InstanceId, _: bool) {
        self.verb();
    }

    fn listen(&mut self, listening: &Listening<'_>) -> Result<Vec<Bound>, StartError> {
        self.verb();
        let mut machine = self.machine.borrow_mut();
        let bound = machine.listen(listening).map_err(|place| StartError {
            passing: false,
            subject: place,
            ..start_error(Stage::Listen, "address already in use")
        })?;
        drop(machine);
        tick(&self.machine);
        Ok(bound)
    }

    fn close_sockets(&mut self, instance: &InstanceId) {
        self.verb();
        self.machine.borrow_mut().close_sockets(instance);
    }

    fn watch_sockets(&mut self, instance: &InstanceId, watch: bool) {
        self.machine.borrow_mut().watch_sockets(instance, watch);
    }

    fn instruct(&mut self, _: &InstanceId, _: u32, _: &Spec) -> Result<(), SystemError> {
        self.verb();
        Ok(())
    }

    fn adopt(&mut self, launch: &Launch, identity: &Identity) -> Proof {
        self.verb();
        let is_hidden = {
            let machine = self.machine.borrow();
            machine.now < machine.hidden_until
        };
        if is_hidden && self.machine.borrow().processes.contains_key(&identity.pid) {
            return Proof::Unknown("/proc does not show it".to_owned());
        }
        let Some(pid) = self.prove(identity) else {
            // Its end is told here, and by nobody else.
            let is_it = |owner: &Owner| (owner.run, owner.role) == (launch.run, Some(launch.role));
            if self.children.get(&identity.pid).is_some_and(is_it) {
                self.children.remove(&identity.pid);
            }
            return Proof::Dead;
        };
        self.runs.insert(launch.run, launch.instance.clone());
        let owner =
            Owner { instance: launch.instance.clone(), run: launch.run, role: Some(launch.role) };
        // After a cycle that broke off, who was named last may be forgotten.
        let is_other = |other: i32, of: &Owner| other == pid || *of != owner;
        self.children.retain(|other, of| is_other(*other, of));
        self.foreign.retain(|other, (_, of)| is_other(*other, of));
        let (parent, is_ready) = {
            let machine = self.machine.borrow();
            let process = &machine.processes[&pid];
            (process.parent, process.is_ready)
        };
        match parent {
            Parent::Supervisor => {
                self.children.insert(pid, owner);
            }
            Parent::Init => {
                self.foreign.insert(pid, (*identity, owner));
            }
        }
        // A FIFO keeps what was said meanwhile, and a file is there; a datagram is lost.
        let keeps = launch.spec.process.as_ref().is_some_and(|process| match *process.ready {
            Ready::Fd(_) | Ready::File(_) | Ready::Log(_) => true,
            Ready::Started | Ready::Notify | Ready::Delay(_) | Ready::Asked(_) => false,
        });
        if launch.role == Role::Main && keeps && is_ready {
            self.machine.borrow_mut().tell_ready(launch.run);
        }
        Proof::Alive
    }

    fn hear(&mut self, run: RunId) -> Vec<Event> {
        let pings = self.machine.borrow_mut().take_pings(run);
        let instance = self.runs.get(&run).filter(|_| pings > 0);
        let word = Word::Well;
        instance.map(|id| self.event(id, Happening::Word { run, word })).into_iter().collect()
    }

    fn note(&mut self, event: &Event) {
        if matches!(event.what, Happening::Ended { .. }) && self.has_fault(Fault::EndsNotKept) {
            return;
        }
        self.ledger.note(event);
    }

    fn flush(&mut self) -> Result<(), SystemError> {
        let result = self.ledger.flush();
        self.machine.borrow_mut().see(Seen::Flushed { is_ok: result.is_ok() });
        result
    }

    fn recall(&mut self) -> Option<Replay> {
        self.verb();
        let replay = self.ledger.recall()?;
        see_known(&self.machine, &replay);
        Some(replay)
    }

    fn compact(&mut self, observed: &Observed, always: bool) -> Result<(), SystemError> {
        self.ledger.compact(observed, always)
    }

    fn has_lost(&self, generation: u64) -> bool {
        self.ledger.is_lost() || self.store.has_lost(generation)
    }

    fn doubt_saved(&mut self) {
        self.store.doubt();
    }

    fn put_back(&mut self, desired: &Desired, observed: &Observed) -> Result<(), SystemError> {
        self.verb();
        if self.ledger.is_lost() {
            self.ledger.compact(observed, true)?;
        }
        if self.store.has_lost(desired.generation) {
            self.store.save(desired)?;
            self.machine.borrow_mut().see(Seen::Saved { desired: desired.clone() });
        }
        Ok(())
    }

    fn keep(
        &mut self,
        record: &Record,
        revisions: &[Revision],
        pinned: Option<&Sources>,
    ) -> Result<(), SystemError> {
        self.verb();
        self.archive.keep(record, revisions, pinned)
    }

    fn records(&self, latest: u64) -> (Vec<Record>, Option<SystemError>) {
        self.archive.records(latest)
    }

    fn revision(&self, source: &str, generation: u64) -> Result<Revision, SystemError> {
        self.archive.revision(source, generation)
    }

    fn save_agenda(&mut self, agenda: &Agenda) -> Result<(), SystemError> {
        self.verb();
        // Cut off in the middle it is not saved either.
        self.machine.borrow_mut().see(Seen::AgendaSaved { is_ok: false });
        let result = self.store.save_agenda(agenda);
        self.machine.borrow_mut().see(Seen::AgendaSaved { is_ok: result.is_ok() });
        result
    }

    fn save(&mut self, desired: &Desired) -> Result<(), SystemError> {
        self.verb();
        self.machine.borrow_mut().see(Seen::Saves { desired: desired.clone() });
        let result = self.store.save(desired);
        let is_deaf = self.has_fault(Fault::SaveErrorsIgnored);
        if result.is_err() && !is_deaf {
            return result;
        }
        self.machine.borrow_mut().see(Seen::Saved { desired: desired.clone() });
        Ok(())
    }
}
