//! The machine below the supervisor: processes and their numbers, two clocks, a disk, and the wire
//! on which the kernel tells what happened, late, merged, twice, and out of order.
//!
//! It knows the truth and judges nothing: what it saw goes to the checks in [`crate::check`].

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::panic::resume_unwind;
use std::rc::Rc;

use opm::model::{
    EXIT_NEVER_STARTED, Identity, InstanceId, Monotonic, Outcome, Role, RunId, Signal, Span,
    UnitName, Wall,
};

use crate::chance::Chance;
use crate::drive::Drive;
use crate::ports::Ports;
use crate::program;
use crate::scene::Seen;
use crate::setting::{Doom, Fault, Setting};

/// Process numbers are few, so that they are used again soon.
const PIDS: std::ops::Range<i32> = 100..160;
/// The kernel counts the starts of processes in so many milliseconds.
const TICK_MILLIS: u64 = 10;

/// A machine that several hold: the world, and the supervisor's system.
pub(crate) type Shared = Rc<RefCell<Machine>>;

/// Whose a process is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) instance: InstanceId,
    pub(crate) run: RunId,
    /// `None`: left behind by one that had a role.
    pub(crate) role: Option<Role>,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let role = self.role.map_or("child".to_owned(), |role| format!("{role:?}"));
        write!(f, "{} {role} of {:04x}", self.instance, self.run.0 >> 48)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parent {
    Supervisor,
    /// It reaps at once.
    Init,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Life {
    /// Before the gate.
    Gated,
    /// Its program begins then.
    Born(Monotonic),
    Running,
    Zombie(Outcome),
}

/// A process.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    pub(crate) identity: Identity,
    pub(crate) parent: Parent,
    /// `None`: a stranger.
    pub(crate) owner: Option<Owner>,
    pub(crate) program: String,
    pub(crate) life: Life,
    pub(crate) ready_at: Option<Monotonic>,
    /// When it says next that it is well, and when it began.
    ping_at: Option<Monotonic>,
    /// When it says that its child is the main process.
    names_at: Option<Monotonic>,
    began: Monotonic,
    pub(crate) end_at: Option<(Monotonic, Outcome)>,
    /// Whether it has said that it is ready, where a rule asks for that.
    pub(crate) is_ready: bool,
    /// Whether its unit's rule asks that it says so.
    pub(crate) says: bool,
}

impl Process {
    pub(crate) fn is_alive(&self) -> bool {
        !matches!(self.life, Life::Zombie(_))
    }

    pub(crate) fn is_of(&self, run: RunId) -> bool {
        self.owner.as_ref().is_some_and(|owner| owner.run == run)
    }

    /// Whether it is the main process of its run.
    pub(crate) fn is_main(&self) -> bool {
        self.role() == Some(Role::Main)
    }

    fn role(&self) -> Option<Role> {
        self.owner.as_ref().and_then(|owner| owner.role)
    }
}

/// What the kernel tells the supervisor: that there is something to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wire {
    /// A child has ended.
    Child,
    /// The channel of a start has something.
    Channel(Identity),
    /// One that is not our child has ended.
    Foreign(Identity),
    /// One without a role has ended.
    Member(RunId),
    /// Somebody has connected to a socket of this run.
    Caller(RunId),
    /// A run says that it is ready.
    Ready(RunId),
    /// A run says that it is well.
    Ping(RunId),
    /// A run says that this is its main process.
    MainIs(RunId, Identity),
    /// A file that a run watches has changed.
    Touched(RunId),
}

/// The machine.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) setting: Setting,
    pub(crate) now: Monotonic,
    wall_offset: i64,
    /// By how many seconds the wall clock is off at the next looks at it, one each; then it is right.
    pub(crate) wall_looks: VecDeque<i64>,
    pub(crate) chance: Chance,
    pub(crate) drive: Drive,
    pub(crate) processes: BTreeMap<i32, Process>,
    pub(crate) ports: Ports,
    wire: Vec<(Monotonic, Wire)>,
    /// Trees whose members' ends are told.
    pub(crate) watched_trees: BTreeSet<RunId>,
    /// Grows when all processes end at once: another ledger belongs to each.
    pub(crate) life: u64,
    pub(crate) is_locked: bool,
    /// How many operations there were.
    pub(crate) ops: u64,
    /// At which operation the supervisor's life is cut off.
    pub(crate) doom: Option<(u64, Doom)>,
    /// Until then the disk is full, if it is.
    pub(crate) full_until: Monotonic,
    /// Until then no process can be made.
    pub(crate) no_forks_until: Monotonic,
    /// How long it takes to look at the conditions of a start.
    pub(crate) slowness: Span,
    /// Until then /proc shows nothing.
    pub(crate) hidden_until: Monotonic,
    /// Whether what is signalled now was asked for by hand.
    pub(crate) is_by_hand: bool,
    /// When the wall clock wakes the supervisor.
    pub(crate) alarm: Option<Wall>,
    pub(crate) seen: Vec<(Monotonic, Seen)>,
    next_pid: i32,
    next_inode: u64,
    used: BTreeMap<i32, u64>,
    /// How those ended that somebody else has reaped.
    ends: BTreeMap<(i32, u64), Outcome>,
}

/// One more operation; the supervisor's life may end here.
pub(crate) fn tick(machine: &Shared) {
    let doom = {
        let mut machine = machine.borrow_mut();
        machine.ops += 1;
        let ops = machine.ops;
        machine.doom.take_if(|(at, _)| *at <= ops)
    };
    if let Some((_, doom)) = doom {
        resume_unwind(Box::new(doom));
    }
}

impl Machine {
    pub(crate) fn new(seed: u64, setting: Setting) -> Self {
        Self {
            setting,
            now: Monotonic::default().after(Span::seconds(1)),
            wall_offset: 1_700_000_000_000_000,
            wall_looks: VecDeque::new(),
            chance: Chance::new(seed),
            drive: Drive::default(),
            processes: BTreeMap::new(),
            ports: Ports::default(),
            wire: Vec::new(),
            watched_trees: BTreeSet::new(),
            life: 0,
            is_locked: false,
            ops: 0,
            doom: None,
            full_until: Monotonic::default(),
            no_forks_until: Monotonic::default(),
            slowness: Span::ZERO,
            hidden_until: Monotonic::default(),
            is_by_hand: false,
            alarm: None,
            seen: Vec::new(),
            next_pid: PIDS.start,
            next_inode: 0,
            used: BTreeMap::new(),
            ends: BTreeMap::new(),
        }
    }

    pub(crate) fn see(&mut self, seen: Seen) {
        self.seen.push((self.now, seen));
    }

    pub(crate) fn has_fault(&self, fault: Fault) -> bool {
        self.setting.fault == Some(fault)
    }

    pub(crate) fn millis(&self) -> u64 {
        self.now.since(Monotonic::default()).as_millis_up()
    }

    pub(crate) fn wall(&self) -> Wall {
        Wall(i64::try_from(self.millis()).unwrap() * 1_000 + self.wall_offset)
    }

    /// Somebody sets the wall clock.
    pub(crate) fn step_wall(&mut self, seconds: i64) {
        self.wall_offset += seconds * 1_000_000;
    }

    // The wire.

    pub(crate) fn tell(&mut self, wire: Wire) {
        let copies = if self.setting.is_unordered && self.chance.one_in(8) { 2 } else { 1 };
        for _ in 0..copies {
            let delay = Span::millis(self.chance.below(self.setting.delay_max + 1));
            self.wire.push((self.now.after(delay), wire));
        }
    }

    /// What the supervisor can be told by now.
    pub(crate) fn take_wire(&mut self) -> Vec<Wire> {
        let now = self.now;
        let wall = self.wall();
        self.alarm.take_if(|at| *at <= wall);
        let (mut due, later): (Vec<_>, Vec<_>) =
            self.wire.drain(..).partition(|(at, _)| *at <= now);
        self.wire = later;
        if self.setting.is_unordered {
            for place in (1..due.len()).rev() {
                due.swap(place, self.chance.place(place + 1));
            }
        }
        due.into_iter().map(|(_, wire)| wire).collect()
    }

    /// How often a run has said by now that it is well, and nobody was told yet.
    pub(crate) fn take_pings(&mut self, run: RunId) -> usize {
        let now = self.now;
        let before = self.wire.len();
        self.wire.retain(|(at, wire)| *at > now || *wire != Wire::Ping(run));
        before - self.wire.len()
    }

    /// The next time at which anything happens by itself.
    pub(crate) fn next(&self) -> Option<Monotonic> {
        let living = self.processes.values().filter(|p| p.is_alive());
        let own = living.flat_map(|p| {
            let begins = if let Life::Born(at) = p.life { Some(at) } else { None };
            let runs = p.life == Life::Running;
            let ready = p.ready_at.filter(|_| runs);
            let ping = p.ping_at.filter(|_| runs);
            let names = p.names_at.filter(|_| runs);
            let end = p.end_at.as_ref().map(|(at, _)| *at).filter(|_| runs);
            [begins, ready, ping, names, end].into_iter().flatten()
        });
        own.chain(self.wire.iter().map(|(at, _)| *at)).chain(self.alarm_at()).min()
    }

    /// When the alarm rings, as things stand.
    fn alarm_at(&self) -> Option<Monotonic> {
        let wait = self.alarm?.since(self.wall());
        Some(self.now.after(Span::millis(wait.as_millis_up())))
    }

    // Processes.

    fn ticks(&self) -> u64 {
        self.millis() / TICK_MILLIS
    }

    /// A number that nobody has, and that nobody got in this tick.
    fn identity(&mut self) -> Identity {
        let tick = self.ticks();
        let mut tries = 0;
        loop {
            self.next_pid =
                if self.next_pid + 1 < PIDS.end { self.next_pid + 1 } else { PIDS.start };
            let pid = self.next_pid;
            let is_free = !self.processes.contains_key(&pid);
            if is_free && self.used.get(&pid).is_none_or(|used| *used != tick) {
                self.used.insert(pid, tick);
                self.next_inode += 1;
                let inode = self.setting.has_inodes.then_some(self.next_inode);
                return Identity { pid, start: tick, inode };
            }
            tries += 1;
            assert!(tries <= 2 * PIDS.len(), "no process number is free");
            if tries == PIDS.len() {
                // All that are free were had in this tick: so small a machine takes them again.
                self.used.clear();
            }
        }
    }

    pub(crate) fn has_room(&self) -> bool {
        self.now >= self.no_forks_until && self.processes.len() + 8 < PIDS.len()
    }

    /// A new process, which waits at the gate.
    pub(crate) fn fork(&mut self, owner: Option<Owner>, program: &str, says: bool) -> Identity {
        let identity = self.identity();
        let process = Process {
            identity,
            parent: Parent::Supervisor,
            owner,
            program: program.to_owned(),
            life: Life::Gated,
            ready_at: None,
            ping_at: None,
            names_at: None,
            began: self.now,
            end_at: None,
            is_ready: false,
            says,
        };
        self.processes.insert(identity.pid, process);
        identity
    }

    /// One that has nothing to do with us, and takes a number.
    pub(crate) fn stranger(&mut self) {
        if !self.has_room() {
            return;
        }
        let identity = self.fork(None, "forever", false);
        let lifetime = Span::millis(self.chance.below(3_000));
        let end = (self.now.after(lifetime), Outcome::Exited(0));
        let process = self.processes.get_mut(&identity.pid).unwrap();
        (process.parent, process.life, process.end_at) = (Parent::Init, Life::Running, Some(end));
    }

    /// The gate opens: its program begins in a moment.
    pub(crate) fn open_gate(&mut self, identity: &Identity) {
        let at = self.now.after(Span::millis(1 + self.chance.below(3)));
        if let Some(process) = self.by_identity(identity)
            && process.life == Life::Gated
        {
            process.life = Life::Born(at);
        }
    }

    /// Whoever waits at a gate that nobody can open any more ends.
    pub(crate) fn close_gates(&mut self) {
        let gated = self.processes.values().filter(|p| p.life == Life::Gated);
        let pids: Vec<i32> = gated.map(|p| p.identity.pid).collect();
        for pid in pids {
            self.end(pid, Outcome::Exited(EXIT_NEVER_STARTED));
        }
    }

    pub(crate) fn by_identity(&mut self, identity: &Identity) -> Option<&mut Process> {
        self.processes.get_mut(&identity.pid).filter(|p| p.identity == *identity)
    }

    /// Everything that happens up to now.
    pub(crate) fn pass(&mut self) {
        let now = self.now;
        if now >= self.full_until {
            self.drive.room = None;
        }
        let pids: Vec<i32> = self.processes.keys().copied().collect();
        for pid in pids {
            let process = &self.processes[&pid];
            if let Life::Born(at) = process.life
                && at <= now
            {
                self.begin(pid);
            }
            let Some(process) = self.processes.get_mut(&pid) else { continue };
            if process.life != Life::Running {
                continue;
            }
            if process.ready_at.take_if(|at| *at <= now).is_some() {
                process.is_ready = true;
                let owner = process.owner.clone();
                if let Some(owner) = owner {
                    self.tell(Wire::Ready(owner.run));
                    self.see(Seen::Ready { owner });
                }
            }
            self.pass_ping(pid);
            self.pass_name(pid);
            let process = self.processes.get_mut(&pid).unwrap();
            if let Some((_, outcome)) = process.end_at.take_if(|(at, _)| *at <= now) {
                self.end(pid, outcome);
            }
        }
    }

    /// Time passes, and nobody is told anything.
    pub(crate) fn pass_until(&mut self, until: Monotonic) {
        loop {
            self.pass();
            let now = self.now;
            let Some(next) = self.next().filter(|at| *at > now && *at <= until) else { break };
            self.now = next;
        }
        self.now = until;
    }

    fn pass_ping(&mut self, pid: i32) {
        let now = self.now;
        let process = self.processes.get_mut(&pid).unwrap();
        if process.ping_at.take_if(|at| *at <= now).is_none() {
            return;
        }
        process.ping_at = program::pings_next(&process.program, process.began, now);
        let owner = process.owner.clone();
        // What is said to nobody is lost.
        if let Some(owner) = owner.filter(|_| self.is_locked) {
            self.tell(Wire::Ping(owner.run));
            self.see(Seen::Pings { run: owner.run });
        }
    }

    fn pass_name(&mut self, pid: i32) {
        let now = self.now;
        let process = self.processes.get_mut(&pid).unwrap();
        if process.names_at.take_if(|at| *at <= now).is_none() {
            return;
        }
        let Some(run) = process.owner.as_ref().map(|owner| owner.run) else { return };
        let mut strays = self.processes.values().filter(|p| p.is_of(run) && p.role().is_none());
        let child = strays.find(|p| p.is_alive()).map(|p| p.identity);
        if let Some(child) = child.filter(|_| self.is_locked) {
            self.tell(Wire::MainIs(run, child));
        }
    }

    /// Which main processes a run has named, and nobody was told yet.
    pub(crate) fn take_names(&mut self, run: RunId) -> Vec<Identity> {
        let named =
            self.wire.extract_if(.., |(_, wire)| matches!(wire, Wire::MainIs(of, _) if *of == run));
        let named = named.filter_map(|(_, wire)| match wire {
            Wire::MainIs(_, identity) => Some(identity),
            _ => None,
        });
        named.collect()
    }

    fn begin(&mut self, pid: i32) {
        let now = self.now;
        let process = self.processes.get_mut(&pid).unwrap();
        if process.program == "missing" {
            self.end(pid, Outcome::Exited(EXIT_NEVER_STARTED));
            return;
        }
        process.life = Life::Running;
        process.began = now;
        process.names_at = program::names_child(&process.program, now);
        process.ping_at = program::pings_next(&process.program, now, now);
        let end = program::end(&process.program, now);
        // A signal that came before is as strong as one that comes now.
        process.end_at =
            [process.end_at.take(), end].into_iter().flatten().min_by_key(|(at, _)| *at);
        process.ready_at =
            if process.says { program::says_ready(&process.program, now) } else { None };
        let process = process.clone();
        let owner = process.owner.clone().unwrap();
        self.see(Seen::Begins { pid, owner: owner.clone() });
        self.take_callers();
        self.tell(Wire::Channel(process.identity));
        if program::forks(&process.program) {
            self.leave_child(&owner, process.parent);
        }
    }

    /// A child without a role, of the same run.
    fn leave_child(&mut self, of: &Owner, parent: Parent) {
        if self.processes.len() + 4 >= PIDS.len() {
            return;
        }
        let owner = Owner { role: None, ..of.clone() };
        let identity = self.fork(Some(owner.clone()), "forever", false);
        let process = self.processes.get_mut(&identity.pid).unwrap();
        // Its parent is of the run too; what counts is who reaps it when that is gone.
        (process.life, process.parent) = (Life::Running, parent);
        self.see(Seen::Begins { pid: identity.pid, owner });
    }

    fn end(&mut self, pid: i32, outcome: Outcome) {
        let process = self.processes.get_mut(&pid).unwrap();
        let had_begun = process.life == Life::Running;
        process.life = Life::Zombie(outcome.clone());
        let process = process.clone();
        if let Some(owner) = process.owner.clone().filter(|_| had_begun) {
            self.see(Seen::Ends { pid, owner, outcome: outcome.clone() });
        }
        let parent = process.parent;
        match parent {
            Parent::Supervisor => self.tell(Wire::Child),
            Parent::Init => {
                self.processes.remove(&pid);
                self.ends.insert((process.identity.pid, process.identity.start), outcome);
                self.tell(Wire::Foreign(process.identity));
            }
        }
        if let Some(owner) = &process.owner
            && process.role().is_none()
            && self.watched_trees.contains(&owner.run)
        {
            self.tell(Wire::Member(owner.run));
        }
    }

    /// A signal to a process: `meant` is the run for which it was sent.
    pub(crate) fn deliver(&mut self, pid: i32, signal: Signal, meant: RunId) {
        let (now, is_by_hand) = (self.now, self.is_by_hand);
        let Some(process) = self.processes.get_mut(&pid) else { return };
        if !process.is_alive() {
            return;
        }
        let target = process.owner.clone();
        let outcome = Outcome::Killed { signal, core: false };
        let mut breeds = false;
        if let Some(wait) = program::patience(&process.program, signal) {
            let at = now.after(wait);
            breeds = process.program == "breeder" && signal == Signal::TERM;
            if process.life == Life::Gated || matches!(process.life, Life::Born(_)) {
                // Its program has not begun: nothing is ignored.
                self.end(pid, outcome);
            } else if process.end_at.as_ref().is_none_or(|(end, _)| *end > at) {
                process.end_at = Some((at, outcome));
                if signal == Signal::KILL {
                    process.end_at = None;
                    self.end(pid, Outcome::Killed { signal, core: false });
                }
            }
        }
        if let Some(owner) = target.clone().filter(|owner| breeds && owner.role.is_some()) {
            let parent = self.processes.get(&pid).map_or(Parent::Init, |process| process.parent);
            self.leave_child(&owner, parent);
        }
        self.see(Seen::Signalled { target, meant, signal, is_by_hand });
    }

    /// The processes of a run: their numbers.
    pub(crate) fn members(&self, run: RunId) -> Vec<i32> {
        let members = self.processes.values().filter(|p| p.is_alive() && p.is_of(run));
        members.map(|p| p.identity.pid).collect()
    }

    /// How many processes of a run are none of these.
    pub(crate) fn strays(&self, run: RunId, leaders: &[(Role, Identity)]) -> u32 {
        let leads = |p: &Process| leaders.iter().any(|(_, leader)| *leader == p.identity);
        let strays = |p: &&Process| p.is_alive() && p.is_of(run) && !leads(p);
        u32::try_from(self.processes.values().filter(strays).count()).unwrap()
    }

    /// How many processes of a unit run their programs.
    pub(crate) fn living(&self, unit: &str) -> usize {
        let of = |p: &&Process| {
            p.life == Life::Running
                && p.owner.as_ref().is_some_and(|owner| owner.instance.unit.as_str() == unit)
        };
        self.processes.values().filter(of).count()
    }

    /// One of our own that was never let go.
    pub(crate) fn reap_one(&mut self, identity: &Identity) {
        self.processes.remove(&identity.pid);
    }

    /// How a process ended that is not ours, where the kernel tells it.
    pub(crate) fn seen_outcome(&self, identity: &Identity) -> Option<Outcome> {
        self.ends
            .get(&(identity.pid, identity.start))
            .cloned()
            .filter(|_| self.setting.tells_foreign)
    }

    /// A new supervisor looks who has ended.
    pub(crate) fn tell_child(&mut self) {
        self.wire.push((self.now, Wire::Child));
    }

    /// A run has said that it is ready while nobody listened, where that is kept.
    pub(crate) fn tell_ready(&mut self, run: RunId) {
        self.tell(Wire::Ready(run));
    }

    /// Our children that have ended, and are gone with this.
    pub(crate) fn reap(&mut self) -> Vec<Process> {
        let dead = self.processes.values().filter(|p| !p.is_alive()).cloned();
        let dead: Vec<Process> = dead.collect();
        for process in &dead {
            self.processes.remove(&process.identity.pid);
        }
        dead
    }

    /// Somebody changes the files that a unit watches.
    pub(crate) fn edit(&mut self, unit: &UnitName) {
        self.see(Seen::Edited { unit: unit.clone() });
        let owners = self.processes.values().filter_map(|process| process.owner.as_ref());
        let runs: BTreeSet<RunId> =
            owners.filter(|owner| owner.instance.unit == *unit).map(|owner| owner.run).collect();
        for run in runs {
            self.tell(Wire::Touched(run));
        }
    }

    // Ends.

    /// The supervisor's process is gone: gates close, children have another parent.
    pub(crate) fn lose_supervisor(&mut self) {
        self.alarm = None;
        self.see(Seen::SupervisorDies);
        self.lose_ports();
        self.is_locked = false;
        self.doom = None;
        self.close_gates();
        for process in self.processes.values_mut() {
            process.parent = Parent::Init;
        }
        self.reap();
        self.wire.clear();
        self.watched_trees.clear();
        if self.setting.is_pid_one {
            self.lose_processes();
        }
    }

    /// The supervisor runs another program in its place: it keeps its children.
    pub(crate) fn exec_supervisor(&mut self) {
        self.alarm = None;
        self.leave_ports();
        self.is_locked = false;
        self.doom = None;
        self.wire.clear();
        self.watched_trees.clear();
        self.tell(Wire::Child);
    }

    fn lose_processes(&mut self) {
        self.processes.clear();
        self.ports.open_none();
        self.wire.clear();
        self.watched_trees.clear();
        self.life += 1;
        self.see(Seen::AllEnd);
    }

    /// The machine goes down and comes up again, with another monotonic clock.
    pub(crate) fn lose_power(&mut self) {
        self.lose_supervisor();
        self.lose_processes();
        self.drive.lose_power(&mut self.chance);
        let up = self.millis();
        self.wall_offset += i64::try_from(up).unwrap() * 1_000;
        self.now = Monotonic::default().after(Span::millis(self.chance.below(2_000)));
        (self.no_forks_until, self.hidden_until) = (self.now, self.now);
        self.full_until = self.now;
    }
}
