//! The simulated machine is only worth what it has in common with Linux: one list of scripts, run on
//! both systems, has to give equal answers and equal events.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit};
use opm::model::{
    Command, Desired, Event, FilePath, Happening, Identity, InstanceId, Kind, Monotonic, Observed,
    Outcome, Output, ProcessSpec, Ready, Role, RunId, Signal, Span, Spec, Template, Unit,
};
use opm::system::{Dirs, Launch, Linux, Options, Proof, RunRef, System, become_subreaper};

use crate::setting::Setting;
use crate::story::name;
use crate::system::Simulated;
use crate::world::World;

/// How long an event may take to come, in the real world.
const DEADLINE: Duration = Duration::from_secs(10);
const RUN: RunId = RunId(7);
/// How often something is tried that depends on which of two processes is quicker.
const AT_ONCE: u32 = 100;

/// Something that is asked of a system.
#[derive(Debug, Clone, Copy)]
enum Ask {
    /// Make a process in this role; the program is one of `program.rs`.
    Spawn(Role, &'static str),
    Signal(Role, Signal),
    SignalTree(Signal),
    KillTree,
    WatchTree,
    /// Write the ledger, and begin again with another system in the same process.
    Reopen,
    /// Begin again beside the one that runs.
    OpenAnother,
    /// Take over what the ledger names.
    Adopt(Role),
    Save(u64),
}

/// What is asked, what is answered, and what is told afterwards.
type Script = &'static [(Ask, &'static str, &'static [&'static str])];

const MAIN: Role = Role::Main;
const HOOK: Role = Role::PreStart(0);

const SCRIPTS: [(&str, Script); 9] = [
    (
        "a program ends by itself",
        &[
            (Ask::Spawn(HOOK, "exit:0"), "born", &["execed hook", "hook exited 0"]),
            (Ask::Spawn(MAIN, "exit:3"), "born", &["execed main", "main exited 3"]),
            (Ask::WatchTree, "0 left", &[]),
        ],
    ),
    ("there is no such program", &[(Ask::Spawn(MAIN, "missing"), "born", &["main not started"])]),
    (
        "a program obeys a signal",
        &[
            (Ask::Spawn(MAIN, "forever"), "born", &["execed main"]),
            (Ask::Signal(MAIN, Signal::TERM), "done", &["main killed by SIGTERM"]),
            (Ask::Signal(MAIN, Signal::TERM), "done", &[]),
        ],
    ),
    (
        "a program ignores a signal, and cannot ignore another one",
        &[
            (Ask::Spawn(MAIN, "stubborn"), "born", &["execed main", "ready"]),
            (Ask::SignalTree(Signal::TERM), "1 reached", &[]),
            (Ask::KillTree, "done", &["main killed by SIGKILL"]),
        ],
    ),
    (
        "what a program leaves behind is of its run",
        &[
            (Ask::Spawn(MAIN, "orphan:0:1"), "born", &["execed main", "main exited 1"]),
            (Ask::WatchTree, "1 left", &[]),
            (Ask::KillTree, "done", &["0 left"]),
            (Ask::WatchTree, "0 left", &[]),
        ],
    ),
    (
        "a signal to all reaches the child",
        &[
            (Ask::Spawn(MAIN, "child"), "born", &["execed main", "ready"]),
            (Ask::WatchTree, "1 left", &[]),
            (Ask::SignalTree(Signal::TERM), "2 reached", &["0 left", "main killed by SIGTERM"]),
        ],
    ),
    (
        "another system takes over what lives",
        &[
            (Ask::Spawn(MAIN, "forever"), "born", &["execed main"]),
            (Ask::Reopen, "main in the ledger", &[]),
            (Ask::Adopt(MAIN), "alive", &[]),
            (Ask::Signal(MAIN, Signal::KILL), "done", &["main killed by SIGKILL"]),
            (Ask::Reopen, "main in the ledger", &[]),
            (Ask::Adopt(MAIN), "dead", &[]),
        ],
    ),
    (
        "another system hears that it is ready",
        &[
            (Ask::Spawn(MAIN, "late"), "born", &["execed main"]),
            (Ask::Reopen, "main in the ledger", &[]),
            (Ask::Adopt(MAIN), "alive", &["ready"]),
            (Ask::KillTree, "done", &["main killed by SIGKILL"]),
        ],
    ),
    (
        "what was saved is found, and one has the lock",
        &[
            (Ask::Save(1), "done", &[]),
            (Ask::Save(2), "done", &[]),
            (Ask::Reopen, "generation 2", &[]),
            (Ask::OpenAnother, "refused", &[]),
            (Ask::Save(3), "done", &[]),
            (Ask::Reopen, "generation 3", &[]),
        ],
    ),
];

/// A system with its events.
trait Rig {
    type System: System;

    fn system(&mut self) -> &mut Self::System;

    /// Begins again; what the ledger and the saved state say.
    fn reopen(&mut self) -> (Observed, Option<Desired>);

    /// Whether a second one may begin now.
    fn opens_another(&mut self) -> bool;

    /// What is told within a moment, or until there are so many events.
    fn events(&mut self, count: usize) -> Vec<Event>;

    /// The command that does what a program of the simulated machine does.
    fn command(&self, program: &str) -> Command;
}

fn id() -> InstanceId {
    InstanceId::single(&name("web"))
}

fn role(role: Role) -> &'static str {
    if role == Role::Main { "main" } else { "hook" }
}

/// An event in words that do not depend on the system.
fn words(event: &Event) -> String {
    match &event.what {
        Happening::Execed { role, .. } => format!("execed {}", self::role(*role)),
        Happening::Ended { role, outcome: Outcome::NotStarted(_), .. } => {
            format!("{} not started", self::role(*role))
        }
        Happening::Ended { role, outcome, .. } => format!("{} {outcome}", self::role(*role)),
        Happening::Ready { .. } => "ready".to_owned(),
        Happening::Tree { left, .. } => format!("{left} left"),
        other => format!("{other:?}"),
    }
}

fn launch<R: Rig>(rig: &R, role: Role, program: &str) -> Launch {
    let mut spec = Spec::new(Kind::Service, name("web"));
    let mut process = ProcessSpec::new(rig.command(program), FilePath::from("/"));
    process.output = Output::Null;
    if matches!(program, "stubborn" | "child" | "late") {
        process.ready = Ready::Fd(3).into();
    }
    let command = process.command.clone();
    spec.hooks.pre_start = vec![opm::model::Hook { command, ignore_failure: false, user: None }];
    spec.process = Some(process);
    Launch { instance: id(), index: 1, run: RUN, role, spec: Arc::new(spec) }
}

/// What has become of a run so far.
#[derive(Default)]
struct Known {
    leaders: Vec<(Role, Identity)>,
    launch: Option<Launch>,
}

impl Known {
    fn identity(&self, role: Role) -> Identity {
        self.leaders.iter().rev().find(|(of, _)| *of == role).unwrap().1
    }

    fn run(&self) -> RunRef {
        let leaders = self.leaders.clone();
        RunRef { instance: id(), run: RUN, leaders, adopted: false }
    }
}

fn ask<R: Rig>(rig: &mut R, known: &mut Known, ask: Ask) -> String {
    let done = |result: Result<(), opm::system::SystemError>| match result {
        Ok(()) => "done".to_owned(),
        Err(error) => error.to_string(),
    };
    match ask {
        Ask::Spawn(role, program) => {
            let launch = launch(rig, role, program);
            let at = rig.system().now();
            known.launch = Some(launch.clone());
            match rig.system().spawn(&launch, at) {
                Ok(identity) => known.leaders.push((role, identity)),
                Err(error) => return error.to_string(),
            }
            "born".to_owned()
        }
        Ask::Signal(role, signal) => done(rig.system().signal(&known.identity(role), signal)),
        Ask::SignalTree(signal) => {
            format!("{} reached", rig.system().signal_tree(&known.run(), signal))
        }
        Ask::KillTree => {
            rig.system().kill_tree(&known.run());
            "done".to_owned()
        }
        Ask::WatchTree => format!("{} left", rig.system().watch_tree(&known.run())),
        Ask::Reopen => {
            let (observed, desired) = rig.reopen();
            let run = observed.get(&id()).and_then(|instance| instance.run.clone());
            match (run.and_then(|run| run.main), desired) {
                (Some(main), _) => {
                    assert_eq!(main.identity, Some(known.identity(Role::Main)));
                    "main in the ledger".to_owned()
                }
                (None, Some(desired)) => format!("generation {}", desired.generation),
                (None, None) => "nothing".to_owned(),
            }
        }
        Ask::OpenAnother => {
            let is_let_in = rig.opens_another();
            if is_let_in { "let in" } else { "refused" }.to_owned()
        }
        Ask::Adopt(role) => {
            let launch = known.launch.clone().unwrap();
            match rig.system().adopt(&launch, &known.identity(role)) {
                Proof::Alive => "alive".to_owned(),
                Proof::Dead => "dead".to_owned(),
                Proof::Unknown(why) => why,
            }
        }
        Ask::Save(generation) => {
            let unit = Unit::new(Arc::new(Spec::new(Kind::Target, name("t"))), "-".to_owned());
            let units = [(name("t"), unit)].into();
            done(rig.system().save(&Desired { generation, units, ..Desired::default() }))
        }
    }
}

fn follow<R: Rig>(rig: &mut R, what: &str, script: Script) {
    let mut known = Known::default();
    // A run is begun before it has processes; this is what the supervisor notes.
    let at = rig.system().now();
    let wall = rig.system().wall();
    let hash = opm::model::SpecHash(0);
    let began = Happening::Began { run: RUN, epoch: 0, hash, wall, fresh: true, due: None };
    rig.system().note(&Event { instance: id(), at, what: began });
    for (step, (asked, answer, told)) in script.iter().enumerate() {
        let place = format!("{what}, step {step}: {asked:?}");
        assert_eq!(ask(rig, &mut known, *asked), *answer, "{place}");
        let mut heard: Vec<String> = rig.events(told.len()).iter().map(words).collect();
        heard.sort();
        let mut told: Vec<String> = told.iter().map(ToString::to_string).collect();
        told.sort();
        assert_eq!(heard, told, "{place}");
    }
}

struct Simulation {
    world: World,
    system: Option<Simulated>,
}

impl Rig for Simulation {
    type System = Simulated;

    fn system(&mut self) -> &mut Simulated {
        self.system.as_mut().unwrap()
    }

    fn reopen(&mut self) -> (Observed, Option<Desired>) {
        if let Some(system) = &mut self.system {
            system.flush().unwrap();
            self.world.machine().exec_supervisor();
        }
        let (system, loaded, replay) = Simulated::open(self.world.shared()).unwrap();
        self.system = Some(system);
        (replay.observed, loaded.desired)
    }

    fn opens_another(&mut self) -> bool {
        Simulated::open(self.world.shared()).is_ok()
    }

    fn events(&mut self, count: usize) -> Vec<Event> {
        let mut events = Vec::new();
        let mut rest = 3;
        while rest > 0 {
            let wires = {
                let mut machine = self.world.machine();
                machine.pass();
                let now = machine.now;
                machine.now = now.after(Span::millis(10));
                machine.take_wire()
            };
            for wire in wires {
                events.extend(self.system().look(wire));
            }
            rest -= i32::from(events.len() >= count);
            assert!(self.world.machine().now < Monotonic::default().after(Span::seconds(60)));
        }
        events
    }

    fn command(&self, program: &str) -> Command {
        Command::Argv(vec![Template::literal(program)])
    }
}

struct Reality {
    root: tempfile::TempDir,
    poll: mio::Poll,
    system: Option<Linux>,
}

impl Reality {
    fn open(&self) -> Result<(Linux, Observed, Option<Desired>), opm::system::LockError> {
        let mut dirs = Dirs::under(self.root.path());
        dirs.prepare().unwrap();
        let registry = self.poll.registry().try_clone().unwrap();
        let nofile = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let path = [("PATH".into(), "/usr/bin:/bin".into())].into();
        let options = Options { env: path, nofile, stateless: false };
        let (linux, loaded, replay) = Linux::open(dirs, options, registry)?;
        Ok((linux, replay.observed, loaded.desired))
    }
}

impl Rig for Reality {
    type System = Linux;

    fn system(&mut self) -> &mut Linux {
        self.system.as_mut().unwrap()
    }

    fn reopen(&mut self) -> (Observed, Option<Desired>) {
        if let Some(mut system) = self.system.take() {
            system.flush().unwrap();
        }
        let (system, observed, desired) = self.open().unwrap();
        self.system = Some(system);
        (observed, desired)
    }

    fn opens_another(&mut self) -> bool {
        self.open().is_ok()
    }

    fn events(&mut self, count: usize) -> Vec<Event> {
        let began = Instant::now();
        let mut events = Vec::new();
        let mut kernel = mio::Events::with_capacity(16);
        // Once more when all have come: what is one too many is wrong too.
        let mut is_last = false;
        loop {
            self.poll.poll(&mut kernel, Some(Duration::from_millis(5))).unwrap();
            for event in &kernel {
                events.extend(self.system().ready(event.token()));
            }
            events.extend(self.system().reap());
            if is_last {
                return events;
            }
            is_last = events.len() >= count;
            assert!(began.elapsed() < DEADLINE, "{count} were to come: {events:?}");
        }
    }

    fn command(&self, program: &str) -> Command {
        let shell = |text: &str| Command::Shell(Template::literal(text));
        match program {
            "forever" => shell("exec sleep 1000"),
            "stubborn" => shell("trap '' TERM; echo >&3; exec sleep 1000"),
            "child" => shell("sleep 1000 & echo >&3; exec sleep 1000"),
            "late" => shell("sleep 0.2; echo >&3; exec sleep 1000"),
            "orphan:0:1" => shell("sleep 1000 & exit 1"),
            "exit:0" => shell("exit 0"),
            "exit:3" => shell("exit 3"),
            "missing" => Command::Argv(vec![Template::literal("/no/such/program")]),
            other => panic!("no command for {other}"),
        }
    }
}

/// A signal to a whole run, or to a group, at the moment at which its process is let go: it may not lead a session yet.
fn signal_what_was_born_just_now() {
    let root = tempfile::tempdir().unwrap();
    let mut reality = Reality { root, poll: mio::Poll::new().unwrap(), system: None };
    reality.reopen();
    for time in 0..AT_ONCE {
        let launch = launch(&reality, MAIN, "forever");
        let at = reality.system().now();
        let identity = reality.system().spawn(&launch, at).unwrap();
        let leaders = vec![(MAIN, identity)];
        let run = RunRef { instance: id(), run: RUN, leaders, adopted: false };
        let end = if time % 2 == 0 {
            reality.system().signal_tree(&run, Signal::TERM);
            "main killed by SIGTERM"
        } else {
            reality.system().kill_group(&identity).unwrap();
            "main killed by SIGKILL"
        };
        let heard: Vec<String> = reality.events(2).iter().map(words).collect();
        assert_eq!(heard, ["execed main", end], "time {time}");
    }
}

#[test]
fn both_systems_answer_and_tell_the_same() {
    become_subreaper().unwrap();
    // In one test, as what is reaped is whoever's child it is.
    signal_what_was_born_just_now();
    for (what, script) in SCRIPTS {
        let world = World::new(1, Setting { delay_max: 3, ..Setting::default() });
        let mut simulation = Simulation { world, system: None };
        simulation.reopen();
        follow(&mut simulation, what, script);

        let root = tempfile::tempdir().unwrap();
        let mut reality = Reality { root, poll: mio::Poll::new().unwrap(), system: None };
        reality.reopen();
        follow(&mut reality, what, script);
    }
}
