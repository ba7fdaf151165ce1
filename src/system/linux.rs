//! The real world. Glue over the files beside it; its events come from the descriptors that it
//! registers with the daemon's poll, and from reaping.

mod listening;
mod outputs;
mod pid_file;
mod readiness;
mod said;
mod trees;

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use jiff::tz::TimeZone;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

use super::alarm::Alarm;
use super::archive::Archive;
use super::channels::{self, FileWaits, Tells};
use super::child::{Prepared, REPORT_BYTES};
use super::dirs::Lock;
use super::disk::Files;
use super::env::inheritable;
use super::instruction::{self, Instruction, ReadyLine};
use super::launch::{self, Launcher, Origin};
use super::ledger::{self, Ledger};
use super::notify::NotifySocket;
use super::paths::Paths;
use super::process::Found;
use super::room::{Later, Room};
use super::sockets::Sockets;
use super::spawn::{self, BirthError, Nursery};
use super::stacks::STACKS;
use super::store::Store;
use super::tree::Ends;
use super::{
    Dirs, Environment, Launch, Listening, Loaded, LockError, Proof, Replay, RunRef, System,
    SystemError, accounts, plain, process, sys, tree,
};
use crate::model::{
    Agenda, Bound, Desired, EXIT_NEVER_STARTED, Event, Happening, Identity, InstanceId, LogTarget,
    Monotonic, Observed, Outcome, Output, Ready, Record, Revision, Role, RunId, Signal, Sources,
    Span, Spec, Stage, StartError, Stdin, UnitName, Wall,
};
use pid_file::Awaited;
use readiness::Readiness;
use said::Said;
use trees::Look;

/// How long the death of a process that is not our child may take to be reaped by its parent, in
/// milliseconds: until then the kernel does not tell how it ended.
const FOREIGN_REAP_MILLIS: u8 = 20;
/// Most processes that are on their way to their program at a time: more only hold each other up, and
/// each has copies of the descriptors of all the others.
const STARTING_MAX: usize = STACKS;
/// One that has not come there in this time hangs, and holds up nobody.
const STARTING_TIME: Span = Span::seconds(1);

/// What the supervisor's process was started with.
#[derive(Debug, Default)]
pub struct Options {
    /// Its environment.
    pub env: Environment,
    /// Its limit of open descriptors before it was raised: soft, hard.
    pub nofile: (u64, u64),
    /// Without lock, ledger and saved state: the supervisor of one command.
    pub stateless: bool,
}

/// The real [`System`].
#[derive(Debug)]
pub struct Linux {
    dirs: Dirs,
    origin: Origin,
    /// `None` for the supervisor of one command, which leaves nothing behind.
    lasting: Option<Lasting>,
    registry: Registry,
    null: OwnedFd,
    room: Room,
    later: Later,
    nursery: Nursery,
    /// Those on their way to their program, and since when.
    starting: BTreeMap<Token, Monotonic>,
    next_token: usize,
    watched: BTreeMap<Token, Watched>,
    runs: BTreeMap<RunId, Box<Kept>>,
    /// Our children with a role.
    children: BTreeMap<i32, (InstanceId, RunId, Role)>,
    /// What was seen of our other children.
    look: Look,
    /// Both ends of the instances' output FIFOs, so that nothing in them is lost with their writer.
    outputs: BTreeMap<InstanceId, OwnedFd>,
    /// Open while their units are known: what is in them outlives all who write and read it.
    inputs: BTreeMap<UnitName, OwnedFd>,
    /// Open for services, whether or not these run.
    sockets: Sockets,
    /// Notify sockets of the program before us, until their runs are adopted.
    handed_notify: BTreeMap<InstanceId, OwnedFd>,
    /// By its number, what is watched for the end of a process that is not our child.
    foreign: BTreeMap<i32, Token>,
    files: FileWaits,
    /// Only where something is watched.
    paths: Option<Paths>,
    /// Only where something is due by the wall clock.
    alarm: Option<Alarm>,
    urandom: fs::File,
    own: i32,
    /// When this supervisor began, on the clock of start times.
    began: u64,
}

#[derive(Debug)]
struct Lasting {
    lock: Lock,
    ledger: Ledger,
    store: Store,
    archive: Archive,
}

/// What is kept for a run.
#[derive(Debug)]
struct Kept {
    instance: InstanceId,
    tokens: Vec<Token>,
    /// Whether its tree is watched.
    tree: Option<RunRef>,
    ends: Ends,
    notify: Option<PathBuf>,
    said: Said,
    /// Set while its pid file has yet to name its main process.
    awaited: Option<Awaited>,
    /// Whether an earlier supervisor began it.
    is_adopted: bool,
    /// Whether the log keeper was told where in the output it begins.
    is_marked: bool,
    /// Whether any process of it was ever made.
    has_begun: bool,
}

/// A descriptor that tells something.
#[derive(Debug)]
enum Watched {
    /// The channel of a process that has not run its program yet.
    Channel(Box<Launching>),
    /// The end of a process that is not our child.
    Foreign { run: RunId, role: Role, pid: i32, start: u64, pidfd: OwnedFd },
    /// The end of a process without a role, in a tree that is watched.
    Member { run: RunId, pidfd: OwnedFd },
    /// A notify socket, and whether the run says on it that it is ready.
    Notify { run: RunId, is_readiness: bool, socket: NotifySocket },
    /// A readiness descriptor.
    ReadyFd { run: RunId, fifo: OwnedFd },
    /// Where the log keeper says that a run's line has come, and when the run's main process began, if it
    /// is our child.
    ReadyLog { run: RunId, began: Option<Monotonic>, fifo: OwnedFd },
    /// The inotify instance of all file waits.
    Files,
    /// A socket whose service waits for a connection.
    Caller { socket: InstanceId, fd: RawFd },
    /// The inotify instance of all that units watch.
    Paths,
    /// The timer of all schedules.
    Alarm,
}

#[derive(Debug)]
struct Launching {
    launch: Launch,
    prepared: Rc<Prepared>,
    channel: UnixStream,
}

impl Linux {
    /// First token of the system's own descriptors; smaller ones are the daemon's.
    pub const FIRST_TOKEN: usize = 1 << 16;

    /// Takes the lock and reads what was saved and what was let run.
    pub fn open(
        dirs: Dirs,
        options: Options,
        registry: Registry,
    ) -> Result<(Self, Loaded, Replay), LockError> {
        let (lasting, loaded, replay) = if options.stateless {
            (None, Loaded::default(), Replay::default())
        } else {
            let lock = Lock::take(&dirs)?;
            let (ledger, replay) =
                Ledger::open(Files, &dirs.run, &ledger::name()).map_err(LockError::Failed)?;
            let mut store = Store::new(Files, &dirs.state);
            let loaded = store.load().map_err(LockError::Failed)?;
            let archive = Archive::new(Files, &dirs.state);
            (Some(Lasting { lock, ledger, store, archive }), loaded, replay)
        };
        let file = |path: &str| {
            fs::OpenOptions::new()
                .read(true)
                .write(path == "/dev/null")
                .open(path)
                .map_err(|error| LockError::Failed(SystemError::new("open", path, error)))
        };
        let linux = Self {
            dirs,
            origin: Origin { env: inheritable(options.env), nofile: options.nofile },
            lasting,
            registry,
            null: file("/dev/null")?.into(),
            room: Room::now(),
            later: Later::default(),
            nursery: Nursery::new(),
            next_token: Self::FIRST_TOKEN,
            watched: BTreeMap::new(),
            runs: BTreeMap::new(),
            children: BTreeMap::new(),
            look: Look::default(),
            starting: BTreeMap::new(),
            outputs: BTreeMap::new(),
            inputs: BTreeMap::new(),
            sockets: Sockets::new(),
            handed_notify: BTreeMap::new(),
            foreign: BTreeMap::new(),
            files: FileWaits::default(),
            paths: None,
            alarm: None,
            urandom: file("/dev/urandom")?,
            own: i32::try_from(std::process::id()).unwrap_or(0),
            began: process::ticks_now(),
        };
        Ok((linux, loaded, replay))
    }

    /// The directories in use.
    pub fn dirs(&self) -> &Dirs {
        &self.dirs
    }

    /// The first descriptor number that no client may have.
    pub fn clients_end(&self) -> u64 {
        self.room.clients_end()
    }

    /// When to look again at what could not be watched for want of a descriptor.
    pub fn wake_at(&self) -> Option<Monotonic> {
        self.later.at()
    }

    /// Looks again at what could not be watched, if it is time.
    pub fn look_again(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        self.look.is_over();
        let Some(due) = self.later.take_due(self.now()) else { return events };
        for (launch, identity) in due.processes {
            let Launch { run, role, ref instance, .. } = launch;
            if self.runs.contains_key(&run) && self.take_over(&launch, &identity) == Proof::Dead {
                self.note_end(run, identity.pid);
                let outcome = Outcome::Unknown;
                events.push(self.event(instance, Happening::Ended { run, role, outcome }));
            }
        }
        for (launch, identity) in due.readiness {
            self.reopen_channels(&launch, &identity);
        }
        for run in due.trees {
            let tree = self.runs.get(&run).and_then(|kept| kept.tree.clone());
            if let Some(tree) = tree {
                let left = self.watch_tree(&tree);
                events.push(self.event(&tree.instance, Happening::Tree { run, left }));
            }
        }
        events
    }

    /// Whether anything outlives this process.
    pub fn is_lasting(&self) -> bool {
        self.lasting.is_some()
    }

    /// Keeps the lock over an exec; returns the variables that hand it over.
    pub fn hand_over_lock(&self) -> Option<[(&'static str, RawFd); 2]> {
        self.lasting.as_ref().map(|lasting| lasting.lock.hand_over())
    }

    /// The exec failed: the lock is close-on-exec again.
    pub fn take_back_lock(&self) {
        if let Some(lasting) = &self.lasting {
            lasting.lock.take_back();
        }
    }

    /// Reaps every child that has ended. Children without a role change no unit's state.
    pub fn reap(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        self.look.is_over();
        while let Some(pid) = sys::ended_child() {
            // What it said comes before its end: it may have named another main process.
            if let Some((_, run, Role::Main)) = self.children.get(&pid) {
                let run = *run;
                events.extend(self.messages_of(run));
                events.extend(self.take_pid_file(run));
            }
            // One that was not our child is it since its parent ended.
            let foreign = self.foreign_child(pid);
            let Some(outcome) = sys::reap(pid) else { break };
            self.nursery.gone(pid);
            if let Some(Watched::Foreign { run, role, .. }) = foreign.and_then(|t| self.unwatch(t))
            {
                self.note_end(run, pid);
                events.extend(self.event_of(run, Happening::Ended { run, role, outcome }));
                continue;
            }
            let Some((instance, run, role)) = self.children.remove(&pid) else {
                log::debug!("reaped {pid}, which has no role: {outcome}");
                continue;
            };
            self.note_end(run, pid);
            let outcome = self.drain_channel(run, role, &outcome, &mut events);
            if role == Role::Main && outcome != Outcome::Exited(0) {
                self.main_is_known(run);
            }
            events.push(self.event(&instance, Happening::Ended { run, role, outcome }));
        }
        events.extend(self.left_by_those_that_forked_away());
        events
    }

    /// What is watched for the end of a child that has ended, where it was watched by a pidfd.
    fn foreign_child(&self, pid: i32) -> Option<Token> {
        let token = *self.foreign.get(&pid)?;
        let Some(Watched::Foreign { start, .. }) = self.watched.get(&token) else { return None };
        process::stat(pid).filter(|stat| stat.start == *start).map(|_| token)
    }

    /// What the descriptor with this token has to tell.
    pub fn ready(&mut self, token: Token) -> Vec<Event> {
        let mut events = Vec::new();
        self.look.is_over();
        match self.watched.get(&token) {
            None => {}
            Some(Watched::Channel(_)) => self.channel_ready(token, &mut events),
            Some(Watched::Foreign { run, role, pid, .. }) => {
                let (run, role, pid) = (*run, *role, *pid);
                if role == Role::Main {
                    events.extend(self.messages_of(run));
                    events.extend(self.take_pid_file(run));
                }
                // If its parent ended since, it is our child, and nobody else can say how it ended.
                if process::stat(pid).is_some_and(|stat| stat.parent == self.own) {
                    events.extend(self.reap());
                }
                self.foreign_ready(token, &mut events);
            }
            Some(Watched::Member { run, .. }) => {
                let run = *run;
                self.unwatch(token);
                let tree = self.runs.get(&run).and_then(|kept| kept.tree.clone());
                if let Some(tree) = tree {
                    let left = self.watch_tree(&tree);
                    events.push(self.event(&tree.instance, Happening::Tree { run, left }));
                }
            }
            Some(Watched::Notify { .. }) => events.extend(self.take_messages(token)),
            Some(Watched::ReadyLog { run, began, fifo }) => {
                let run = *run;
                if channels::answer_came(fifo, run, *began) {
                    events.extend(self.event_of(run, Happening::Ready { run }));
                }
            }
            Some(Watched::ReadyFd { run, fifo }) => {
                let run = *run;
                if channels::newline_came(fifo) {
                    events.extend(self.event_of(run, Happening::Ready { run }));
                }
            }
            Some(Watched::Files) => self.files_ready(&mut events),
            Some(Watched::Caller { socket, .. }) => {
                let socket = socket.clone();
                self.watch_sockets_of(&socket, false);
                let run = self.sockets.get(&socket).and_then(|held| held.run);
                events.extend(run.map(|run| self.event(&socket, Happening::Called { run })));
            }
            Some(Watched::Paths) => {
                let touched = self.paths.as_mut().map(Paths::look).unwrap_or_default();
                for run in touched {
                    events.extend(self.event_of(run, Happening::Touched { run }));
                }
            }
            // The turn that follows looks at the clock.
            Some(Watched::Alarm) => {
                if let Some(Err(error)) = self.alarm.as_mut().map(Alarm::take) {
                    log::error!("cannot read a timer: {error}");
                }
            }
        }
        events
    }

    fn foreign_ready(&mut self, token: Token, events: &mut Vec<Event>) {
        let Some(Watched::Foreign { run, role, pid, pidfd, .. }) = self.watched.get(&token) else {
            return;
        };
        let (run, role, pid) = (*run, *role, *pid);
        if let Some(outcome) = foreign_end(pidfd) {
            self.note_end(run, pid);
            self.unwatch(token);
            events.extend(self.event_of(run, Happening::Ended { run, role, outcome }));
        }
    }

    /// What has come about before anybody watched: who died, and which files are there.
    pub fn catch_up(&mut self) -> Vec<Event> {
        // Nobody was adopted who had these.
        self.handed_notify.clear();
        let mut events = self.reap();
        self.files_ready(&mut events);
        events
    }

    fn files_ready(&mut self, events: &mut Vec<Event>) {
        for (run, tells) in self.files.look() {
            match tells {
                Tells::Ready => {
                    self.files.remove(run, tells);
                    events.extend(self.event_of(run, Happening::Ready { run }));
                }
                Tells::Main => events.extend(self.take_pid_file(run)),
            }
        }
    }

    fn note_end(&mut self, run: RunId, pid: i32) {
        if let Some(kept) = self.runs.get_mut(&run) {
            kept.ends.note(pid, process::ticks_now());
        }
    }

    fn ends(&self, run: RunId) -> Ends {
        self.runs.get(&run).map_or_else(|| Ends::since(self.began), |kept| kept.ends.clone())
    }

    fn event(&self, instance: &InstanceId, what: Happening) -> Event {
        Event { instance: instance.clone(), at: self.now(), what }
    }

    fn event_of(&self, run: RunId, what: Happening) -> Option<Event> {
        self.runs.get(&run).map(|kept| self.event(&kept.instance, what))
    }

    /// What is on the channel of a process that has ended: its exec, or why there was none.
    fn drain_channel(
        &mut self,
        run: RunId,
        role: Role,
        outcome: &Outcome,
        events: &mut Vec<Event>,
    ) -> Outcome {
        let token = self.runs.get(&run).and_then(|kept| {
            kept.tokens.iter().copied().find(|token| match self.watched.get(token) {
                Some(Watched::Channel(launching)) => launching.launch.role == role,
                _ => false,
            })
        });
        let Some(token) = token else { return outcome.clone() };
        let before = events.len();
        self.channel_ready(token, events);
        match events.get(before).map(|event| &event.what) {
            Some(Happening::Ended { outcome, .. }) => {
                let outcome = outcome.clone();
                events.truncate(before);
                outcome
            }
            _ if *outcome == Outcome::Exited(EXIT_NEVER_STARTED) => {
                Outcome::NotStarted(StartError {
                    stage: Stage::Gate,
                    subject: String::new(),
                    reason: "the gate was closed".to_owned(),
                    passing: true,
                })
            }
            _ => outcome.clone(),
        }
    }

    fn channel_ready(&mut self, token: Token, events: &mut Vec<Event>) {
        let Some(Watched::Channel(launching)) = self.watched.get(&token) else { return };
        let mut report = [0u8; REPORT_BYTES];
        let fd = launching.channel.as_raw_fd();
        let got = match recv(fd, &mut report, MsgFlags::MSG_DONTWAIT) {
            Ok(got) => got,
            Err(Errno::EAGAIN) => return,
            Err(_) => 0,
        };
        let Some(Watched::Channel(launching)) = self.unwatch(token) else { return };
        self.nursery.look();
        let Launch { run, role, ref instance, .. } = launching.launch;
        if got != REPORT_BYTES {
            events.push(self.event(instance, Happening::Execed { run, role }));
            return;
        }
        let [stage, a, b, c, d, which] = report;
        let errno = i32::from_le_bytes([a, b, c, d]);
        let stage = Stage::from_number(stage).unwrap_or(Stage::Exec);
        let Some(process) = &launching.launch.spec.process else { return };
        let launcher = Launcher { origin: &self.origin, launch: &launching.launch, process };
        let error = launcher.explain(stage, errno, which, &launching.prepared);
        let outcome = Outcome::NotStarted(error);
        events.push(self.event(instance, Happening::Ended { run, role, outcome }));
        // That it exits is no second end of it.
        self.children.retain(|_, (_, of, its)| (*of, *its) != (run, role));
    }

    fn watch(&mut self, run: Option<RunId>, fd: RawFd, watched: Watched) -> std::io::Result<Token> {
        let token = Token(self.next_token);
        self.next_token = self.next_token.wrapping_add(1).max(Self::FIRST_TOKEN);
        self.registry.register(&mut SourceFd(&fd), token, Interest::READABLE)?;
        match &watched {
            Watched::Foreign { pid, .. } => {
                self.foreign.insert(*pid, token);
            }
            Watched::Channel(_) => {
                self.starting.insert(token, self.now());
            }
            Watched::Member { .. }
            | Watched::Notify { .. }
            | Watched::ReadyFd { .. }
            | Watched::ReadyLog { .. }
            | Watched::Files
            | Watched::Caller { .. }
            | Watched::Paths
            | Watched::Alarm => {}
        }
        self.watched.insert(token, watched);
        if let Some(kept) = run.and_then(|run| self.runs.get_mut(&run)) {
            kept.tokens.push(token);
        }
        Ok(token)
    }

    fn unwatch(&mut self, token: Token) -> Option<Watched> {
        let watched = self.watched.remove(&token)?;
        let (fd, run) = match &watched {
            Watched::Channel(launching) => {
                self.starting.remove(&token);
                (launching.channel.as_raw_fd(), Some(launching.launch.run))
            }
            Watched::Foreign { run, pid, pidfd, .. } => {
                if self.foreign.get(pid) == Some(&token) {
                    self.foreign.remove(pid);
                }
                (pidfd.as_raw_fd(), Some(*run))
            }
            Watched::Caller { fd, .. } => (*fd, None),
            Watched::Member { run, pidfd } => (pidfd.as_raw_fd(), Some(*run)),
            Watched::Notify { run, socket, .. } => (socket.as_fd().as_raw_fd(), Some(*run)),
            Watched::ReadyFd { run, fifo } | Watched::ReadyLog { run, fifo, .. } => {
                (fifo.as_raw_fd(), Some(*run))
            }
            Watched::Files | Watched::Paths | Watched::Alarm => return Some(watched),
        };
        if let Err(error) = self.registry.deregister(&mut SourceFd(&fd)) {
            log::debug!("cannot stop watching a descriptor: {error}");
        }
        if let Some(kept) = run.and_then(|run| self.runs.get_mut(&run)) {
            kept.tokens.retain(|known| *known != token);
        }
        Some(watched)
    }

    fn keep(&mut self, instance: &InstanceId, run: RunId) -> &mut Kept {
        let began = self.began;
        self.runs.entry(run).or_insert_with(|| {
            Box::new(Kept {
                instance: instance.clone(),
                tokens: Vec::new(),
                tree: None,
                ends: Ends::since(began),
                notify: None,
                said: Said::default(),
                awaited: None,
                is_adopted: false,
                is_marked: false,
                has_begun: false,
            })
        })
    }

    fn path_of(&self, launch: &Launch, template: &crate::model::Template) -> PathBuf {
        let Launch { instance, index, spec, .. } = launch;
        let text = launch::fill(template, &self.origin, instance, *index, spec);
        spec.base_dir().unwrap_or(Path::new("/")).join(text)
    }

    fn begin_to_watch(&mut self, run: RunId, roots: &[PathBuf]) -> std::io::Result<()> {
        if self.paths.is_none() {
            if roots.is_empty() {
                return Ok(());
            }
            let paths = Paths::new()?;
            self.watch(None, paths.as_fd().as_raw_fd(), Watched::Paths)?;
            self.paths = Some(paths);
        }
        if let Some(paths) = &mut self.paths {
            paths.watch(run, roots);
        }
        Ok(())
    }

    fn arm(&mut self, at: Option<Wall>) -> std::io::Result<()> {
        if let Some(alarm) = &mut self.alarm {
            return alarm.set(at);
        }
        let mut alarm = Alarm::new()?;
        alarm.set(at)?;
        self.watch(None, alarm.as_fd().as_raw_fd(), Watched::Alarm)?;
        self.alarm = Some(alarm);
        Ok(())
    }

    /// Counts what is left at the very end: processes that descend from us and that no unit owns any
    /// more; as PID 1 that is everything else. They get the signal, if there is one.
    pub fn sweep(&self, signal: Option<Signal>) -> usize {
        let run = RunRef {
            instance: InstanceId::single(&Spec::default().name),
            run: RunId(0),
            leaders: vec![(
                Role::Main,
                Identity {
                    pid: self.own,
                    start: process::stat(self.own).map_or(0, |stat| stat.start),
                    inode: None,
                },
            )],
            adopted: false,
        };
        let strays = tree::own_children();
        let members = tree::members(&run, strays.as_deref(), &Ends::default()).living;
        let all = members.iter().map(|member| &member.identity);
        let others: Vec<&Identity> = all.filter(|one| one.pid != self.own).collect();
        for other in signal.iter().flat_map(|_| &others) {
            if let Some(signal) = signal
                && let Err(error) = process::signal(other, signal)
            {
                log::warn!("{error}");
            }
        }
        others.len()
    }
}

/// Whether a process has a part in the end of a run, or only in its life.
fn is_of_end(role: Role) -> bool {
    match role {
        Role::Reload | Role::PreStop(_) | Role::Stop(_) | Role::PostStop(_) => true,
        Role::Condition
        | Role::PreStart(_)
        | Role::Main
        | Role::PostStart(_)
        | Role::ReadyProbe
        | Role::HealthProbe
        | Role::Former(_) => false,
    }
}

fn prepare_error(subject: impl std::fmt::Display, error: &std::io::Error) -> StartError {
    let passing = matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM));
    StartError {
        stage: Stage::Prepare,
        subject: subject.to_string(),
        reason: plain(&error.to_string()),
        passing,
    }
}

/// Who has to be able to open what is made for a unit; `None`: we ourselves.
fn owner_of(spec: &Spec) -> Option<u32> {
    let root = nix::unistd::geteuid().is_root();
    let user = spec.process.as_ref()?.user.as_ref().filter(|_| root)?;
    accounts::user(user).map(|account| account.uid)
}

/// How a process that is not our child ended; `None` while it lives.
fn foreign_end(pidfd: &OwnedFd) -> Option<Outcome> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let ended = |flags: PollFlags, wait: u8| {
        let mut fds = [PollFd::new(pidfd.as_fd(), flags)];
        match poll(&mut fds, PollTimeout::from(wait)) {
            Ok(1..) => fds.first().and_then(PollFd::revents).unwrap_or(PollFlags::empty()),
            _ => PollFlags::empty(),
        }
    };
    if !ended(PollFlags::POLLIN, 0).contains(PollFlags::POLLIN) {
        return None;
    }
    // The kernel tells how it ended only when its parent has reaped it.
    if let Some(outcome) = sys::pidfd_outcome(pidfd.as_fd()) {
        return Some(outcome);
    }
    ended(PollFlags::empty(), FOREIGN_REAP_MILLIS);
    Some(sys::pidfd_outcome(pidfd.as_fd()).unwrap_or(Outcome::Unknown))
}

impl System for Linux {
    fn now(&self) -> Monotonic {
        sys::monotonic_now()
    }

    fn wall(&self) -> Wall {
        sys::wall_now()
    }

    fn steady(&self) -> Monotonic {
        sys::steady_now()
    }

    fn boot(&self) -> String {
        sys::boot_id()
    }

    fn zone(&self, name: Option<&str>) -> TimeZone {
        let Some(name) = name else { return TimeZone::system() };
        TimeZone::get(name).unwrap_or_else(|error| {
            // It was there when the unit was applied.
            log::error!("cannot find time zone `{name}`: {error}; using UTC");
            TimeZone::UTC
        })
    }

    fn set_alarm(&mut self, at: Option<Wall>) {
        if let Err(error) = self.arm(at) {
            log::error!("cannot set a timer: {error}; schedules are late");
        }
    }

    fn random(&mut self) -> u64 {
        let mut bytes = [0u8; 8];
        if let Err(error) = self.urandom.read_exact(&mut bytes) {
            // Without it two runs could share a number; the clock keeps them apart.
            log::error!("cannot read /dev/urandom: {error}");
            return Monotonic::default().since(Monotonic::default()).as_nanos()
                ^ self.now().since(Monotonic::default()).as_nanos();
        }
        u64::from_le_bytes(bytes)
    }

    fn conditions(&mut self, id: &InstanceId, index: u32, spec: &Spec) -> Result<(), String> {
        let conditions = &spec.conditions;
        if conditions.is_trivial() {
            return Ok(());
        }
        let base = spec.process.as_ref().map(|process| process.base_dir.as_path().to_owned());
        let base = base.unwrap_or_else(|| PathBuf::from("/"));
        for template in &conditions.path_exists {
            let path = base.join(launch::fill(template, &self.origin, id, index, spec));
            if let Err(error) = fs::metadata(&path) {
                return Err(format!("path `{}`: {}", path.display(), plain(&error.to_string())));
            }
        }
        let (Some(process), false) = (&spec.process, conditions.env.is_empty()) else {
            return Ok(());
        };
        let launch = Launch {
            instance: id.clone(),
            index,
            run: RunId(0),
            role: Role::Main,
            spec: std::sync::Arc::new(spec.clone()),
        };
        let launcher = Launcher { origin: &self.origin, launch: &launch, process };
        let env = launcher.environment_for_conditions().map_err(|error| error.to_string())?;
        for name in &conditions.env {
            if env.get(std::ffi::OsStr::new(name)).is_none_or(|value| value.is_empty()) {
                return Err(format!("environment variable `{name}` is not set"));
            }
        }
        Ok(())
    }

    fn has_room(&mut self, promised: usize) -> bool {
        if self.starting.len() + promised >= STARTING_MAX {
            let now = self.now();
            let is_young = |since: &&Monotonic| now.since(**since) < STARTING_TIME;
            if self.starting.values().filter(is_young).count() + promised >= STARTING_MAX {
                // If none of them gets on, nothing else would have us ask again.
                self.later.again(now);
                return false;
            }
        }
        let is_alone = self.starting.is_empty() && promised == 0;
        is_alone || self.room.for_start(self.null.as_fd())
    }

    fn spawn(&mut self, launch: &Launch, at: Monotonic) -> Result<Identity, StartError> {
        let Some(spec) = &launch.spec.process else {
            return Err(prepare_error("", &std::io::Error::other("the unit has no process")));
        };
        self.keep(&launch.instance, launch.run);
        let is_main = launch.role == Role::Main;
        // What ends a run may take the last ones.
        if !is_of_end(launch.role) && !self.room.for_start(self.null.as_fd()) {
            return Err(prepare_error("", &std::io::Error::from_raw_os_error(libc::EMFILE)));
        }
        // A question is no word of the unit's.
        let to = if launch.role.is_probe() { Output::Null } else { spec.output };
        let output = match to {
            Output::Keeper => Some(self.output(launch)?),
            Output::Inherit | Output::Null => None,
        };
        if output.is_some() {
            self.mark_run(launch, spec);
        }
        let Readiness { owned, mut extra } =
            if is_main { self.open_channels(launch, spec)? } else { Readiness::default() };
        let null = self.null.as_raw_fd();
        let input =
            if is_main && spec.stdin == Stdin::Logs { Some(self.input(launch)?) } else { None };
        let mut descriptors = Vec::new();
        if !(is_main && spec.stdin == Stdin::Inherit) {
            descriptors.push((input.as_ref().map_or(null, AsRawFd::as_raw_fd), 0));
        }
        match (&output, to) {
            (Some(fd), _) => descriptors.extend([(fd.as_raw_fd(), 1), (fd.as_raw_fd(), 2)]),
            (None, Output::Null) => descriptors.extend([(null, 1), (null, 2)]),
            (None, Output::Inherit | Output::Keeper) => {}
        }
        descriptors.extend(owned.iter().map(|(fd, number)| (fd.as_raw_fd(), *number)));
        if is_main {
            self.give_sockets(launch, &mut descriptors, &mut extra);
        }
        let prepared = {
            let launcher = Launcher { origin: &self.origin, launch, process: spec };
            Rc::new(launcher.prepare(descriptors, &extra)?)
        };
        let pid_file = if is_main { self.expect_main(launch)? } else { None };
        let owner = owner_of(&launch.spec);
        let ledger = self.lasting.as_mut().map(|lasting| &mut lasting.ledger);
        let born = give_birth(&mut self.nursery, &prepared, launch, at, ledger)?;
        let identity = born.identity;
        self.keep(&launch.instance, launch.run).has_begun = true;
        if is_main && let Some(kept) = self.runs.get_mut(&launch.run) {
            kept.awaited = pid_file.map(|path| Awaited { path, owner, first: identity });
        }
        let child = (launch.instance.clone(), launch.run, launch.role);
        self.children.insert(identity.pid, child);
        let fd = born.channel.as_raw_fd();
        let launching = Launching { launch: launch.clone(), prepared, channel: born.channel };
        let watched = Watched::Channel(Box::new(launching));
        if let Err(error) = self.watch(Some(launch.run), fd, watched) {
            // The process runs and is in the ledger; only its exec goes unseen. Its end will tell.
            log::error!("cannot watch the start of {}: {error}", launch.instance);
        }
        Ok(identity)
    }

    fn signal(&mut self, target: &Identity, signal: Signal) -> Result<(), SystemError> {
        process::signal(target, signal)
    }

    fn kill_group(&mut self, leader: &Identity) -> Result<(), SystemError> {
        process::kill_group(leader)
    }

    fn signal_tree(&mut self, run: &RunRef, signal: Signal) -> u32 {
        self.signal_tree_of(run, signal)
    }

    fn kill_tree(&mut self, run: &RunRef) {
        self.kill_tree_of(run);
    }

    fn watch_tree(&mut self, run: &RunRef) -> u32 {
        self.watch_tree_of(run)
    }

    fn release(&mut self, instance: &InstanceId, run: RunId, idle: bool) {
        // What the keeper has yet to read is not to be lost with the last descriptor.
        let read = |fifo: &OwnedFd| sys::bytes_queued(fifo.as_fd()) == 0;
        if idle && self.outputs.get(instance).is_some_and(read) {
            self.outputs.remove(instance);
        }
        self.files.remove(run, Tells::Ready);
        self.files.remove(run, Tells::Main);
        if let Some(paths) = &mut self.paths {
            paths.remove(run);
        }
        self.later.forget(run);
        let tokens = self.runs.get(&run).map(|kept| kept.tokens.clone()).unwrap_or_default();
        for token in tokens {
            self.unwatch(token);
        }
        if let Some(kept) = self.runs.remove(&run)
            && let Some(path) = kept.notify
            && let Err(error) = fs::remove_file(&path)
        {
            log::debug!("cannot remove {}: {error}", path.display());
        }
    }

    fn forget(&mut self, instance: &InstanceId, is_gone: bool) {
        self.outputs.remove(instance);
        let input = is_gone.then(|| instruction::input_path(&self.dirs.run, &instance.unit));
        if is_gone {
            self.inputs.remove(&instance.unit);
        }
        let of_instance = [
            instruction::instruction_path(&self.dirs.run, instance),
            instruction::fifo_path(&self.dirs.run, instance),
            self.dirs.notify().join(format!("{instance}.ready")),
        ];
        for path in of_instance.into_iter().chain(input) {
            if let Err(error) = fs::remove_file(&path)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                log::warn!("cannot remove {}: {error}", path.display());
            }
        }
    }

    fn listen(&mut self, listening: &Listening<'_>) -> Result<Vec<Bound>, StartError> {
        self.listen_at(listening)
    }

    fn close_sockets(&mut self, instance: &InstanceId) {
        self.close_sockets_of(instance);
    }

    fn watch_sockets(&mut self, instance: &InstanceId, watch: bool) {
        self.watch_sockets_of(instance, watch);
    }

    fn watch_paths(&mut self, launch: &Launch) {
        let templates = launch.spec.watch.iter().flat_map(|watch| &watch.paths);
        let paths: Vec<PathBuf> = templates.map(|path| self.path_of(launch, path)).collect();
        if let Err(error) = self.begin_to_watch(launch.run, &paths) {
            log::error!("{}: cannot watch files: {error}", launch.instance);
        }
    }

    fn instruct(&mut self, id: &InstanceId, index: u32, spec: &Spec) -> Result<(), SystemError> {
        let name = id.to_string();
        if let LogTarget::Unit(reader) = &spec.logs.to {
            // Before the keeper looks for it.
            self.open_input(reader, None).map_err(|error| {
                SystemError::new("make the input of", reader.to_string(), error)
            })?;
        }
        let text = |template: &crate::model::Template| {
            let base = spec.process.as_ref().map(|process| process.base_dir.as_path().to_owned());
            let text = launch::fill(template, &self.origin, id, index, spec);
            base.unwrap_or_else(|| PathBuf::from("/")).join(text)
        };
        let ready = match spec.process.as_ref().map(|process| &process.ready) {
            Some(Ready::Log(pattern)) => {
                let (pattern, answer) = (pattern.clone(), self.answer_path(id).into());
                Some(ReadyLine { pattern, answer })
            }
            _ => None,
        };
        let new = Instruction::of(&spec.logs, ready, &self.dirs.logs.join(&name), &text);
        // Most starts say what was said before.
        if Instruction::read(&self.dirs.run, id).is_ok_and(|known| known.as_ref() == Some(&new)) {
            return Ok(());
        }
        new.write(&self.dirs.run, id)
            .map_err(|error| SystemError::new("instruct the log keeper about", name, error))
    }

    fn adopt(&mut self, launch: &Launch, identity: &Identity, _: bool) -> Proof {
        match self.take_over(launch, identity) {
            Proof::Alive => {}
            Proof::Dead => {
                // Its end is told here, and not once more when it is reaped: another process may
                // have its role by then.
                let known = self.children.get(&identity.pid).map(|(_, run, role)| (*run, *role));
                if known == Some((launch.run, launch.role)) {
                    self.children.remove(&identity.pid);
                }
                return Proof::Dead;
            }
            other @ Proof::Unknown(_) => return other,
        }
        if launch.role == Role::Main
            && let Some(process) = &launch.spec.process
        {
            if process.output == Output::Keeper
                && self.room.for_start(self.null.as_fd())
                && let Err(error) = self.output(launch)
            {
                log::warn!("{}: {error}", launch.instance);
            }
            self.reopen_channels(launch, identity);
        }
        Proof::Alive
    }

    fn await_main(&mut self, launch: &Launch, first: &Identity) {
        self.await_main_of(launch, first);
    }

    fn hear(&mut self, run: RunId) -> Vec<Event> {
        let mut events = self.messages_of(run);
        events.extend(self.take_pid_file(run));
        events
    }

    fn note(&mut self, event: &Event) {
        if let Some(lasting) = &mut self.lasting {
            lasting.ledger.note(event);
        }
    }

    fn flush(&mut self) -> Result<(), SystemError> {
        self.lasting.as_mut().map_or(Ok(()), |lasting| lasting.ledger.flush())
    }

    fn recall(&mut self) -> Option<Replay> {
        self.lasting.as_mut()?.ledger.recall()
    }

    fn compact(&mut self, observed: &Observed, always: bool) -> Result<(), SystemError> {
        self.lasting.as_mut().map_or(Ok(()), |lasting| lasting.ledger.compact(observed, always))
    }

    fn has_lost(&self, generation: u64) -> bool {
        self.lasting
            .as_ref()
            .is_some_and(|lasting| lasting.ledger.is_lost() || lasting.store.has_lost(generation))
    }

    fn put_back(&mut self, desired: &Desired, observed: &Observed) -> Result<(), SystemError> {
        let Some(lasting) = &mut self.lasting else { return Ok(()) };
        if lasting.ledger.is_lost() {
            lasting.ledger.compact(observed, true)?;
        }
        if lasting.store.has_lost(desired.generation) {
            log::warn!("the saved state was removed, or is not synced; it is written again");
            lasting.store.save(desired)?;
        }
        Ok(())
    }

    fn save(&mut self, desired: &Desired) -> Result<(), SystemError> {
        self.lasting.as_mut().map_or(Ok(()), |lasting| lasting.store.save(desired))
    }

    fn keep(
        &mut self,
        record: &Record,
        revisions: &[Revision],
        pinned: Option<&Sources>,
    ) -> Result<(), SystemError> {
        let Some(lasting) = &mut self.lasting else { return Ok(()) };
        lasting.archive.keep(record, revisions, pinned)
    }

    fn records(&self, latest: u64) -> (Vec<Record>, Option<SystemError>) {
        let lasting = self.lasting.as_ref();
        lasting.map_or_else(Default::default, |lasting| lasting.archive.records(latest))
    }

    fn revision(&self, source: &str, generation: u64) -> Result<Revision, SystemError> {
        let none = || SystemError::new("read the history of", source, "this opm keeps none");
        self.lasting.as_ref().ok_or_else(none)?.archive.revision(source, generation)
    }

    fn save_agenda(&mut self, agenda: &Agenda) -> Result<(), SystemError> {
        self.lasting.as_mut().map_or(Ok(()), |lasting| lasting.store.save_agenda(agenda))
    }
}

impl Linux {
    /// Watches a process that an earlier supervisor made, if it lives. Where that cannot be told for
    /// want of a descriptor it counts as alive, and is looked at again.
    fn take_over(&mut self, launch: &Launch, identity: &Identity) -> Proof {
        let Launch { run, role, .. } = *launch;
        let pidfd = match process::find(identity) {
            Found::Dead => return Proof::Dead,
            Found::Unknown(why) => return Proof::Unknown(why),
            Found::Alive(pidfd) => pidfd,
            Found::NoDescriptor => {
                self.keep(&launch.instance, run).has_begun = true;
                self.look_later(launch, identity);
                return Proof::Alive;
            }
        };
        self.keep(&launch.instance, run).has_begun = true;
        self.forget_role(run, role, identity);
        if process::stat(identity.pid).is_some_and(|stat| stat.parent == self.own) {
            self.children.insert(identity.pid, (launch.instance.clone(), run, role));
            return Proof::Alive;
        }
        let Some(pidfd) = pidfd else {
            return Proof::Unknown("this kernel has no pidfd to watch it with".to_owned());
        };
        let fd = pidfd.as_raw_fd();
        self.keep(&launch.instance, run).is_adopted = true;
        let (pid, start) = (identity.pid, identity.start);
        let watched = Watched::Foreign { run, role, pid, start, pidfd };
        if !self.room.for_adopted(fd) {
            self.look_later(launch, identity);
        } else if let Err(error) = self.watch(Some(run), fd, watched) {
            log::warn!("{}: cannot watch process {}: {error}", launch.instance, identity.pid);
            self.look_later(launch, identity);
        }
        Proof::Alive
    }

    /// What was known of this process and of another one in its role is known better now: after a
    /// cycle that broke off, what was said last may be lost.
    fn forget_role(&mut self, run: RunId, role: Role, identity: &Identity) {
        let Some(kept) = self.runs.get_mut(&run) else { return };
        let tokens = kept.tokens.clone();
        if let Role::Former(number) = role {
            kept.said.knows_former(number, *identity);
        }
        let is_main = role == Role::Main;
        if is_main && kept.said.has_former() {
            let is_it = |pid: i32| pid == identity.pid;
            self.children.retain(|pid, (_, of, its)| (*of, *its) != (run, role) || is_it(*pid));
        }
        for token in tokens {
            if let Some(Watched::Foreign { role: its, pid, .. }) = self.watched.get(&token)
                && (*pid == identity.pid || (is_main && *its == role))
            {
                self.unwatch(token);
            }
        }
    }

    fn look_later(&mut self, launch: &Launch, identity: &Identity) {
        self.later.ended(launch.run, launch.role);
        self.later.processes.push((launch.clone(), *identity));
        self.later.again(self.now());
    }
}

/// Makes the process, with its ledger entry between its birth and its exec.
fn give_birth(
    nursery: &mut Nursery,
    prepared: &Rc<Prepared>,
    launch: &Launch,
    at: Monotonic,
    mut ledger: Option<&mut Ledger>,
) -> Result<spawn::Born, StartError> {
    let Launch { run, role, .. } = *launch;
    let mut record = |identity: Identity| -> Result<(), String> {
        let Some(ledger) = ledger.as_deref_mut() else { return Ok(()) };
        // Whoever reads of one that was let go and is dead cannot tell whether its program ran. What
        // broke off between the two lines was not let go, and has not run.
        let spawned = Happening::Spawned { run, role, identity };
        let lines = [spawned, Happening::Execed { run, role }];
        let count = lines.len();
        for what in lines {
            ledger.note(&Event { instance: launch.instance.clone(), at, what });
        }
        ledger.flush().map_err(|error| {
            ledger.forget_last_notes(count);
            error.reason
        })
    };
    spawn::birth(nursery, prepared, &mut record).map_err(|error| {
        let (stage, reason, passing) = match error {
            BirthError::Fork(error) => (Stage::Fork, plain(&error.to_string()), true),
            BirthError::Unseen => (Stage::Fork, "its start time cannot be read".to_owned(), true),
            BirthError::Record(reason) => (Stage::Ledger, reason, true),
        };
        StartError { stage, subject: launch.instance.to_string(), reason, passing }
    })
}
