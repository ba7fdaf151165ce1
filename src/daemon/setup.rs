//! Building the daemon: what the process needs, the lock, the control socket, the first state.

use std::collections::BTreeMap;
use std::ffi::{CString, OsString};
use std::fmt;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mio::Poll;

use super::clients::Clients;
use super::files::read_source;
use super::lean::Lean;
use super::signals::Signals;
use super::{Daemon, LISTENER, MAKE_AGAIN, Options, PassedOver, SIGNALS, report};
use crate::model::{
    Author, Command, Desired, FilePath, Gather, Kind, Output, ProcessSpec, RestartPolicy, Spec,
    Stdin, Template, Unit, UnitName,
};
use crate::plan::Capacity;
use crate::supervisor::{Boot, COMMAND_SOURCE, KeeperOptions, Manner, Refusal, Supervisor};
use crate::system::{self, Dirs, Linux, LockError, System, SystemError, places};

/// Name of the unit of `opm run -- CMD`.
const COMMAND_UNIT: &str = "command";

/// Variable that hands the control socket over an exec: clients that knock meanwhile just wait.
const LISTEN_FD: &str = "OPM_LISTEN_FD";

/// Variable that hands the sockets of units over an exec.
const SOCKET_FDS: &str = "OPM_SOCKET_FDS";
/// The same with notify sockets.
const NOTIFY_FDS: &str = "OPM_NOTIFY_FDS";

/// Variable that says that the program before us was a supervisor that could not begin.
const BEGINS_AGAIN: &str = "OPM_BEGINS_AGAIN";

/// Why there is no daemon.
#[derive(Debug)]
pub enum BootFailure {
    /// Another opm owns the state directory, or it cannot be used.
    Lock(LockError),
    /// Something that the daemon needs cannot be had.
    System(SystemError),
    /// The units have mistakes, they were shown, and there is no saved state to run instead.
    BadUnits,
}

impl fmt::Display for BootFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lock(error) => error.fmt(f),
            Self::System(error) => error.fmt(f),
            Self::BadUnits => f.write_str("the units have mistakes"),
        }
    }
}

impl std::error::Error for BootFailure {}

impl From<SystemError> for BootFailure {
    fn from(error: SystemError) -> Self {
        Self::System(error)
    }
}

fn fail(doing: &'static str, error: &std::io::Error) -> BootFailure {
    BootFailure::System(SystemError::new(doing, "opm", error))
}

/// Whether this process was the supervisor before it exec'd itself.
fn is_reexec() -> bool {
    std::env::var_os("OPM_LOCK_FD").is_some()
}

/// How the log keeper is started, where there may be one.
fn keeper_options(options: &Options) -> Option<KeeperOptions> {
    (!options.stateless).then(|| KeeperOptions {
        run_dir: options.dirs.run.clone(),
        console: options.console,
        colour: options.colour,
        quota: options.log_quota.map(|bytes| (options.dirs.logs.clone(), bytes)),
    })
}

/// Who listens on the control socket, where there may be one: it is bound, or was handed over an exec.
fn clients(options: &Options, poll: &Poll) -> Result<Option<Clients>, SystemError> {
    if options.stateless {
        return Ok(None);
    }
    let socket = options.dirs.socket();
    let clients = match system::inherited_listener(LISTEN_FD, &socket) {
        Some(listener) => Clients::listen(listener, &socket, poll.registry(), LISTENER),
        None => Clients::bind(&socket, poll.registry(), LISTENER),
    };
    clients.map(Some)
}

/// Makes the directories, or has those that the program before us had: it is not to look for places itself.
fn settle_in(dirs: &mut Dirs) -> Result<(), BootFailure> {
    if let Some(handed) = places::handed_over(dirs).filter(|_| is_reexec()) {
        *dirs = handed;
        return Ok(());
    }
    for moved in dirs.prepare().map_err(BootFailure::Lock)? {
        log::warn!("{moved}");
    }
    Ok(())
}

/// Everything up to the first turn.
pub(super) fn build(mut options: Options) -> Result<(Daemon, Option<PassedOver>), BootFailure> {
    let pid_one = std::process::id() == 1;
    have_proc(pid_one, options.stateless)?;
    system::close_on_exec_from(3);
    if !pid_one {
        system::become_subreaper().map_err(|error| fail("become a subreaper for", &error))?;
    }
    let nofile = system::raise_descriptor_limit();
    // Before those that the supervisor of one command takes, to pass them on.
    system::survive_large_files();
    let poll = Poll::new().map_err(|error| fail("make a poll for", &error))?;
    let signals = Signals::install(poll.registry(), SIGNALS, options.stateless)
        .map_err(|error| fail("install signal handlers for", &error))?;
    if !options.stateless {
        settle_in(&mut options.dirs)?;
    }
    let registry =
        poll.registry().try_clone().map_err(|error| fail("share the poll of", &error))?;
    let system_options = system::Options {
        env: std::mem::take(&mut options.env),
        nofile,
        stateless: options.stateless,
    };
    let (mut linux, mut loaded, replay) =
        Linux::open(options.dirs.clone(), system_options, registry).map_err(BootFailure::Lock)?;
    let same_process = is_reexec();
    if same_process {
        linux.take_sockets(&std::env::var(SOCKET_FDS).unwrap_or_default());
        linux.take_notify(&std::env::var(NOTIFY_FDS).unwrap_or_default());
    }
    let clients = clients(&options, &poll)?;
    let saved = loaded.desired.as_mut().and_then(take_command);
    let had_state = loaded.desired.as_ref().is_some_and(|desired| !desired.units.is_empty());
    if !options.command.is_empty() {
        let mut unit = command_unit(&options.command, options.stateless)?;
        // That of the same command is held, or was restarted, still.
        if let Some(saved) = saved.filter(|saved| saved.spec.process == unit.spec.process) {
            unit = Unit { spec: unit.spec, ..saved };
        }
        let name = unit.spec.name.clone();
        loaded.desired.get_or_insert_default().units.insert(name, unit);
    } else if let Some(saved) = saved {
        // Nobody asks for it any more: it goes as what was removed does.
        let unit = Unit { removed: true, ..saved };
        loaded.desired.get_or_insert_default().units.insert(unit.spec.name.clone(), unit);
    }
    let (keeper, shutdown_budget) = (keeper_options(&options), options.shutdown_budget);
    let (descriptors, processes) = system::limits();
    let capacity = Some(Capacity { descriptors, processes });
    let boot =
        Boot { system: linux, loaded, replay, keeper, shutdown_budget, capacity, same_process };
    let supervisor = boot.supervisor();
    let lean = Lean::new(supervisor.system().now());
    let mut daemon = Daemon {
        poll,
        signals,
        supervisor,
        clients,
        options,
        reexec: false,
        unmade: None,
        panics: Vec::new(),
        repeats: report::Repeats::default(),
        cut_short: report::CutShort::default(),
        hurry: None,
        lean,
    };
    let mut passed_over = None;
    if !same_process && let Some(dir) = daemon.options.units.clone() {
        passed_over = daemon.apply_first(&dir, had_state)?;
    }
    Ok((daemon, passed_over))
}

/// Makes sure that processes can be looked at.
fn have_proc(pid_one: bool, stateless: bool) -> Result<(), BootFailure> {
    if pid_one {
        mount_missing()?;
    }
    if stateless { Ok(()) } else { is_proc_ours() }
}

/// What PID 1 of a bare root has to bring itself.
fn mount_missing() -> Result<(), BootFailure> {
    if !Path::new("/proc/self/stat").exists() {
        system::mount_proc().map_err(|error| fail("mount /proc for", &error))?;
    }
    if !Path::new("/dev/null").exists() {
        system::mount_dev().map_err(|error| fail("mount /dev for", &error))?;
    }
    Ok(())
}

/// Whether `/proc` is that of our own pid namespace. In another one's processes have other numbers: nobody could be
/// told from anybody.
fn is_proc_ours() -> Result<(), BootFailure> {
    let own = std::process::id().to_string();
    match fs::read_link("/proc/self") {
        Ok(found) if found != Path::new(&own) => {
            let reason = format!(
                "it is of another pid namespace, in which this process is {} and not {own}; \
                 `unshare --pid --fork --mount-proc` mounts one of its own",
                found.display()
            );
            Err(BootFailure::System(SystemError::new("use", "/proc", reason)))
        }
        Ok(_) | Err(_) => Ok(()),
    }
}

impl Daemon {
    /// Applies the directory that the daemon was started with. With mistakes in it, or where it cannot
    /// be read, what was saved runs on; where nothing was, there is no daemon. Returns why it was not
    /// applied.
    fn apply_first(
        &mut self,
        dir: &Path,
        had_state: bool,
    ) -> Result<Option<PassedOver>, BootFailure> {
        let over = |is_mistaken, text| Ok(Some(PassedOver { is_mistaken, text }));
        let source = match read_source(dir, &self.options.reading) {
            Ok(source) => source,
            Err(error) if had_state => {
                log::error!("{error}; what was saved runs on");
                return over(true, error.to_string());
            }
            Err(error) => return Err(error.into()),
        };
        match self.supervisor.apply_source(&source, &own_manner("at the start of opm")) {
            Ok(applied) => {
                let bad = crate::config::has_errors(&applied.diagnostics);
                let told = crate::config::render(&applied.diagnostics, &source.shown(), false);
                report::applied(&applied, &source);
                match (bad, had_state) {
                    (true, true) => over(true, told),
                    (true, false) => Err(BootFailure::BadUnits),
                    (false, _) => Ok(None),
                }
            }
            // What was saved runs on; a trial that goes on is such a case.
            Err(refusal) if had_state => {
                let text = format!("cannot apply `{}`: {refusal}", source.name);
                log::error!("{text}");
                over(false, text)
            }
            Err(refusal) => {
                Err(BootFailure::System(SystemError::new("apply", &source.name, refusal)))
            }
        }
    }
}

/// How opm applies its own directory.
pub(super) fn own_manner(when: &str) -> Manner {
    let author = Author { by: "opm".to_owned(), message: when.to_owned() };
    Manner { author, ..Manner::default() }
}

/// Takes the unit of an `opm run -- CMD` out of what was saved.
fn take_command(desired: &mut Desired) -> Option<Unit> {
    let is_it = |_: &UnitName, unit: &mut Unit| *unit.source == *COMMAND_SOURCE;
    desired.units.extract_if(.., is_it).next().map(|(_, unit)| unit)
}

/// The unit of `opm run -- CMD`: it has our own input and output, and ends us with its exit code.
fn command_unit(command: &[OsString], alone: bool) -> Result<Unit, BootFailure> {
    let mut argv = Vec::with_capacity(command.len());
    for word in command {
        let text = word.to_str().ok_or_else(|| {
            BootFailure::System(SystemError::new("run", word.display(), "it is not UTF-8"))
        })?;
        argv.push(Template::literal(text));
    }
    let name = UnitName::parse(COMMAND_UNIT).unwrap_or_else(|_| unreachable!("a valid name"));
    let here = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    let mut process = ProcessSpec::new(Command::Argv(argv), FilePath::from(here));
    process.stdin = Stdin::Inherit.into();
    process.output = Output::Inherit;
    process.own_session = !alone;
    let mut spec = Spec::new(Kind::Service, name);
    "the command that opm was started with".clone_into(&mut spec.description);
    spec.process = Some(process);
    spec.essential = true;
    spec.restart.policy = RestartPolicy::Never;
    let mut unit = Unit::new(Arc::new(spec), COMMAND_SOURCE);
    unit.started = true;
    Ok(unit)
}

/// The program on disk that we are.
pub(super) fn program() -> std::io::Result<PathBuf> {
    let path = fs::read_link("/proc/self/exe")?;
    // An upgrade replaced the file: its name is what counts.
    let text = path.as_os_str().as_bytes();
    let text = text.strip_suffix(b" (deleted)").unwrap_or(text);
    Ok(PathBuf::from(std::ffi::OsStr::from_bytes(text)))
}

/// Makes sure that the next program finds all that is known, and a place to begin in.
pub(super) fn hand_over(supervisor: &mut Supervisor<Linux>) -> Result<(), Refusal> {
    let made = supervisor.system_mut().make_again();
    made.map_err(|error| Refusal::Impossible(error.to_string()))?;
    supervisor.hand_over()
}

/// Runs the program on disk in our place, with the same arguments, and hands over the lock.
pub(super) fn exec_again(
    options: &Options,
    linux: &Linux,
    clients: Option<&Clients>,
) -> SystemError {
    let error = |reason: &dyn fmt::Display| SystemError::new("exec", "opm", reason);
    let program = match program() {
        Ok(program) => program,
        Err(reason) => return error(&reason),
    };
    let Some(locks) = linux.hand_over_lock() else {
        return error(&"it keeps no state to hand over");
    };
    let args: Result<Vec<CString>, _> =
        options.arguments.iter().map(|arg| CString::new(arg.as_bytes())).collect();
    let listener = clients.map(|clients| (LISTEN_FD, clients.hand_over()));
    let numbers = locks.into_iter().chain(listener).map(|(name, fd)| (name, fd.to_string()));
    let sockets = (SOCKET_FDS, linux.hand_over_sockets());
    let notify = (NOTIFY_FDS, linux.hand_over_notify());
    let handed: BTreeMap<&str, OsString> = numbers
        .chain([sockets, notify])
        .map(|(name, value)| (name, OsString::from(value)))
        .chain(places::hand_over(&options.dirs).map(|(name, dir)| (name, dir.into_os_string())))
        .gather();
    let values = handed.iter().map(|(name, value)| (OsString::from(name), value.clone()));
    let env: Result<Vec<CString>, _> = std::env::vars_os()
        .filter(|(known, _)| known.to_str().is_none_or(|known| !handed.contains_key(known)))
        .chain(values)
        .map(|(name, value)| CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()))
        .collect();
    let (Ok(args), Ok(env)) = (args, env) else { return error(&"an argument holds a NUL byte") };
    // The next one raises it again, and has to know what the units are to have.
    system::lower_descriptor_limit(linux.limit_of_descriptors());
    let reason = system::exec_again(program.as_os_str(), &args, &env);
    system::raise_descriptor_limit();
    linux.take_back_lock();
    linux.take_back_sockets();
    linux.take_back_notify();
    if let Some(clients) = clients {
        clients.take_back();
    }
    error(&reason)
}

/// What to do where there is no daemon: comes back with the failure, unless it would end PID 1 after a reexec, and
/// with it all that runs. What it needs may be wanting just now, as a descriptor. So the program runs again
/// after a while, for as often as it takes, or until it is asked to end. What was handed over is lost by
/// then, and it finds what runs as after a crash. `limit`: that of descriptors as it was.
pub(super) fn begin_again(
    arguments: &[OsString],
    limit: (u64, u64),
    failure: BootFailure,
) -> BootFailure {
    let may_pass = match &failure {
        BootFailure::System(_) | BootFailure::Lock(LockError::Failed(_)) => true,
        BootFailure::Lock(LockError::Held { .. }) | BootFailure::BadUnits => false,
    };
    let has_begun = is_reexec() || std::env::var_os(BEGINS_AGAIN).is_some();
    if std::process::id() != 1 || !has_begun || !may_pass || !system::has_children() {
        return failure;
    }
    log::error!("{failure}; trying again, as processes run that nobody else would look after");
    system::messages::finish();
    let given = std::env::vars_os().filter(|(name, _)| !system::is_handed_over(name));
    let env = given.chain([(BEGINS_AGAIN.into(), "1".into())]);
    let env = env.map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes()].concat());
    let strings = |texts: Vec<Vec<u8>>| texts.into_iter().map(CString::new).collect();
    let args: Result<Vec<CString>, _> =
        strings(arguments.iter().map(|arg| arg.as_bytes().to_vec()).collect());
    let env: Result<Vec<CString>, _> = strings(env.collect());
    let (Ok(args), Ok(env)) = (args, env) else { return failure };
    while !system::is_asked_to_end() {
        system::pause(MAKE_AGAIN);
        let error = match mount_missing().map(|()| program()) {
            Ok(Ok(program)) => {
                system::lower_descriptor_limit(limit);
                system::exec_again(program.as_os_str(), &args, &env).to_string()
            }
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        log::error!("cannot begin again: {error}");
    }
    failure
}
