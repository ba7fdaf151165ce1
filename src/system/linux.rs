//! The real world: what is open, and the [`System`] over the files beside it. A process is made in
//! `births`, ends in `ends`, and is taken over from an earlier supervisor in `adoption`; in between it
//! tells of itself by the descriptors in `watched`, which the daemon's poll wakes, and its tree is
//! counted in `trees`.

mod adoption;
mod births;
mod children;
mod ends;
mod listening;
mod main_process;
mod outputs;
mod pid_file;
mod readiness;
mod said;
mod trees;
mod watched;

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use jiff::tz::TimeZone;
use mio::{Registry, Token};

use super::alarm::Alarm;
use super::archive::Archive;
use super::descriptors::Descriptors;
use super::dirs::Lock;
use super::disk::Files;
use super::env::Inherited;
use super::file_waits::{FileWaits, Tells};
use super::instruction::{self, Instruction, ReadyLine};
use super::later::Later;
use super::launch::{self, Origin};
use super::ledger::{self, Ledger};
use super::paths::Paths;
use super::places;
use super::sockets::Sockets;
use super::spawn::Nursery;
use super::store::Store;
use super::tree::Ends;
use super::{
    Dirs, Environment, Launch, Listening, Loaded, LockError, Proof, Replay, RunRef, System,
    SystemError, process, sys,
};
use crate::model::{
    Agenda, Bound, Desired, Event, Happening, Identity, InstanceId, LogTarget, Monotonic, Observed,
    Ready, Record, Revision, RunId, Signal, Sources, Spec, StartError, UnitName, Wall,
};
use births::{owner_of, prepare_error};
use children::{Child, Children};
use pid_file::Awaited;
use said::Said;
use trees::{Look, Told};
use watched::Watched;

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
    descriptors: Descriptors,
    later: Later,
    nursery: Nursery,
    /// Those on their way to their program, and since when.
    starting: BTreeMap<Token, Monotonic>,
    next_token: usize,
    watched: BTreeMap<Token, Watched>,
    runs: BTreeMap<RunId, Box<Kept>>,
    /// Our children with a role.
    children: Children,
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
    boot: String,
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
    /// Whether the next opm will find it where it is.
    is_noted: bool,
}

/// What is kept for a run.
#[derive(Debug)]
struct Kept {
    instance: InstanceId,
    tokens: Vec<Token>,
    /// Whether its tree is watched.
    tree: Option<Box<RunRef>>,
    /// The signal that was to end all of it, and who had it.
    told: Option<Box<Told>>,
    ends: Ends,
    notify: Option<PathBuf>,
    /// What came of its messages, where there were any.
    said: Option<Box<Said>>,
    /// Set while its pid file has yet to name its main process.
    awaited: Option<Box<Awaited>>,
    /// Whether an earlier supervisor began it.
    is_adopted: bool,
    /// Whether the log keeper was told where in the output it begins.
    is_marked: bool,
    /// Whether any process of it was ever made.
    has_begun: bool,
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
            let name = ledger::name().map_err(LockError::Failed)?;
            let (ledger, replay) =
                Ledger::open(Files, &dirs.run, &name).map_err(LockError::Failed)?;
            let mut store = Store::new(Files, &dirs.state);
            let loaded = store.load().map_err(LockError::Failed)?;
            let archive = Archive::new(Files, &dirs.state);
            (Some(Lasting { lock, ledger, store, archive, is_noted: false }), loaded, replay)
        };
        let file = |path: &str| {
            fs::OpenOptions::new()
                .read(true)
                .write(path == "/dev/null")
                .open(path)
                .map_err(|error| LockError::Failed(SystemError::new("open", path, error)))
        };
        let mut linux = Self {
            dirs,
            origin: Origin { env: Inherited::of(options.env), nofile: options.nofile },
            lasting,
            registry,
            null: file("/dev/null")?.into(),
            descriptors: Descriptors::now(),
            later: Later::default(),
            nursery: Nursery::new(),
            next_token: Self::FIRST_TOKEN,
            watched: BTreeMap::new(),
            runs: BTreeMap::new(),
            children: Children::default(),
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
            boot: ledger::boot().map_err(LockError::Failed)?,
            own: i32::try_from(std::process::id()).unwrap_or(0),
            began: process::ticks_now(),
        };
        linux.note_places();
        Ok((linux, loaded, replay))
    }

    /// Notes which directories are used, where the next opm looks, unless that was done. What cannot be written now
    /// is tried again at the next change.
    fn note_places(&mut self) {
        if let Some(lasting) = self.lasting.as_mut().filter(|lasting| !lasting.is_noted) {
            let noted = places::note(&self.dirs);
            if let Err(error) = &noted {
                log::warn!("cannot note which directories are used: {error}");
            }
            lasting.is_noted = noted.is_ok();
        }
    }

    /// The directories in use.
    pub fn dirs(&self) -> &Dirs {
        &self.dirs
    }

    /// The limit of open descriptors before it was raised: soft, hard.
    pub fn limit_of_descriptors(&self) -> (u64, u64) {
        self.origin.nofile
    }

    /// The first descriptor number that no client may have.
    pub fn clients_end(&self) -> u64 {
        self.descriptors.clients_end()
    }

    /// Whether anything outlives this process.
    pub fn is_lasting(&self) -> bool {
        self.lasting.is_some()
    }

    /// Keeps the lock over an exec; returns the variables that hand it over.
    pub fn hand_over_lock(&self) -> Option<[(&'static str, RawFd); 2]> {
        self.lasting.as_ref().map(|lasting| lasting.lock.hand_over())
    }

    /// Makes the directories anew that somebody removed, and takes their lock.
    pub fn make_again(&mut self) -> Result<(), LockError> {
        self.dirs.make_again().map_err(LockError::Failed)?;
        let Some(lasting) = &mut self.lasting else { return Ok(()) };
        lasting.lock.renew(&self.dirs)?;
        lasting.is_noted = false;
        self.note_places();
        Ok(())
    }

    /// The exec failed: the lock is close-on-exec again.
    pub fn take_back_lock(&self) {
        if let Some(lasting) = &self.lasting {
            lasting.lock.take_back();
        }
    }

    /// What has come about before anybody watched: who died, and which files are there.
    pub fn catch_up(&mut self) -> Vec<Event> {
        // Nobody was adopted who had these.
        self.handed_notify.clear();
        let mut events = self.reap();
        self.files_ready(true, &mut events);
        events
    }

    fn event(&self, instance: &InstanceId, what: Happening) -> Event {
        Event { instance: instance.clone(), at: self.now(), what }
    }

    fn event_of(&self, run: RunId, what: Happening) -> Option<Event> {
        self.runs.get(&run).map(|kept| self.event(&kept.instance, what))
    }

    /// What is kept for a run, from its first process on.
    fn kept(&mut self, instance: &InstanceId, run: RunId) -> &mut Kept {
        let began = self.began;
        self.runs.entry(run).or_insert_with(|| {
            Box::new(Kept {
                instance: instance.clone(),
                tokens: Vec::new(),
                tree: None,
                told: None,
                ends: Ends::since(began),
                notify: None,
                said: None,
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
        self.boot.clone()
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
        self.later.alarm = None;
        if let Err(error) = self.arm(at) {
            log::error!("cannot set a timer: {error}; schedules are late");
            self.later.alarm = at;
            self.later.again(self.now());
        }
    }

    fn random(&mut self) -> u64 {
        let mut bytes = [0u8; 8];
        if let Err(error) = self.urandom.read_exact(&mut bytes) {
            // Without it two runs could share a number; the clock keeps them apart.
            log::error!("cannot read /dev/urandom: {error}");
            return self.now().since(Monotonic::default()).as_nanos();
        }
        u64::from_le_bytes(bytes)
    }

    fn conditions(&mut self, id: &InstanceId, index: u32, spec: &Spec) -> Result<(), String> {
        self.conditions_of(id, index, spec)
    }

    fn has_room(&mut self, promised: usize) -> bool {
        self.has_room_to_start(promised)
    }

    fn spawn(&mut self, launch: &Launch, at: Monotonic) -> Result<Identity, StartError> {
        self.start(launch, at)
    }

    fn signal(&mut self, target: &Identity, signal: Signal) -> Result<(), SystemError> {
        process::signal(target, self.handle(target), signal)
    }

    fn kill_group(&mut self, leader: &Identity) -> Result<(), SystemError> {
        process::kill_group(leader, self.handle(leader))
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
            self.dirs.readiness(instance),
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
        let ready = match spec.process.as_ref().map(|process| &*process.ready) {
            Some(Ready::Log(pattern)) => {
                let (pattern, answer) = (pattern.clone(), self.dirs.readiness(id).into());
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

    fn adopt(&mut self, launch: &Launch, identity: &Identity) -> Proof {
        self.adopt_process(launch, identity)
    }

    fn has_execed(&mut self, launch: &Launch, identity: &Identity) -> bool {
        self.has_become_program(launch, identity).unwrap_or(true)
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

    fn doubt_saved(&mut self) {
        if let Some(lasting) = &mut self.lasting {
            lasting.store.doubt();
        }
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
        self.note_places();
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
