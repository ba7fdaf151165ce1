//! `run`, `daemon`, and the log keeper: the commands that stay.

use super::args::{Daemon, Global, LogKeeper, Run};
use super::{Error, Exit, client, output};
use crate::daemon::{self, BootFailure, Options, SourceOptions, Started};
use crate::keeper;
use crate::model::{Gather, Span};
use crate::system::{Environment, LockError};
use std::ffi::OsString;
use std::path::PathBuf;

/// A container runtime kills after ten seconds: be gone before.
const BUDGET_AS_PID_ONE: Span = Span::seconds(9);

/// `opm run`.
pub(super) fn run(global: &Global, run: &Run) -> Result<u8, Error> {
    if run.dir.is_none() && run.command.is_empty() {
        let message = "run what? `opm run DIR`, `opm run -- CMD`, or both (`opm daemon` runs only \
                       what is saved)";
        return Err(Error::new(Exit::Bad, message));
    }
    let pid_one = std::process::id() == 1;
    let reading = (&run.files).into();
    let options = Options {
        dirs: client::dirs(global),
        stateless: run.dir.is_none() && global.root.is_none(),
        units: run.dir.as_ref().map(absolute),
        reading,
        command: run.command.clone(),
        shutdown_budget: run.shutdown_timeout.or(pid_one.then_some(BUDGET_AS_PID_ONE)),
        console: !run.quiet,
        colour: output::is_terminal(),
        log_quota: run.log_quota,
        env: std::env::vars_os().gather(),
        arguments: std::env::args_os().collect(),
    };
    daemon::run(options, &mut |_| {}).map_err(|failure| boot_error(&failure))
}

fn boot_error(failure: &BootFailure) -> Error {
    let exit = match failure {
        BootFailure::Lock(LockError::Held { .. }) => Exit::Refused,
        BootFailure::Lock(LockError::Failed(_)) | BootFailure::System(_) => Exit::Failed,
        BootFailure::BadUnits => Exit::Bad,
    };
    Error::new(exit, failure)
}

/// A directory as the daemon finds it, which has another one of its own.
fn absolute(dir: &PathBuf) -> PathBuf {
    std::path::absolute(dir).unwrap_or_else(|_| dir.clone())
}

/// `opm daemon`.
pub(super) fn daemon(global: &Global, args: &Daemon) -> Result<u8, Error> {
    let units = args.dir.as_ref().map(absolute);
    let mut options =
        background(global, units.clone(), (&args.files).into(), args.shutdown_timeout);
    if let Some(quota) = args.log_quota {
        options.arguments.extend(["--log-quota".into(), quota.to_string().into()]);
        options.log_quota = Some(quota);
    }
    // After `opm reexec` we are the daemon already.
    if std::env::var_os("OPM_LOCK_FD").is_some() {
        return daemon::run(options, &mut |_| {}).map_err(|failure| boot_error(&failure));
    }
    match start(options)? {
        Started::Running(None) => {
            output::note("opm: the daemon runs");
            Ok(0)
        }
        Started::Running(Some(over)) => {
            output::note("opm: the daemon runs what was saved, and not what the directory says");
            Err(match units.filter(|_| over.is_mistaken) {
                Some(dir) => super::apply::mistakes_in(&dir, &(&args.files).into(), &over.text),
                None => Error::new(Exit::Refused, over.text),
            })
        }
        Started::Already(holder) => Err(Error::new(Exit::Refused, holder)),
        Started::BadUnits => Err(units.map_or_else(
            || Error::new(Exit::Bad, BootFailure::BadUnits),
            |dir| {
                let told = "opm: the units had mistakes a moment ago";
                super::apply::mistakes_in(&dir, &(&args.files).into(), told)
            },
        )),
        Started::Failed(reason) => {
            Err(Error::new(Exit::Failed, format!("cannot start the daemon: {reason}")))
        }
        Started::Over(code) => Ok(code),
    }
}

/// The options of a daemon in the background: nothing of the caller's terminal or environment.
pub(super) fn background(
    global: &Global,
    units: Option<PathBuf>,
    reading: SourceOptions,
    shutdown_budget: Option<Span>,
) -> Options {
    let mut arguments: Vec<OsString> = vec!["opm".into()];
    if let Some(root) = &global.root {
        let root = std::path::absolute(root).unwrap_or_else(|_| root.clone());
        arguments.extend(["--root".into(), root.into_os_string()]);
    }
    arguments.push("daemon".into());
    arguments.extend(units.iter().map(|dir| dir.clone().into_os_string()));
    if reading.recursive {
        arguments.push("--recursive".into());
    }
    for profile in &reading.profiles {
        arguments.extend(["--profile".into(), profile.into()]);
    }
    if let Some(budget) = shutdown_budget {
        let millis = format!("{}ms", budget.as_millis_up());
        arguments.extend(["--shutdown-timeout".into(), millis.into()]);
    }
    Options {
        dirs: client::dirs(global),
        arguments,
        units,
        reading,
        command: Vec::new(),
        shutdown_budget,
        console: false,
        colour: false,
        log_quota: None,
        stateless: false,
        env: Environment::new(),
    }
}

/// Starts a daemon in the background.
pub(super) fn start(mut options: Options) -> Result<Started, Error> {
    let fail = |error: &dyn std::fmt::Display| {
        Error::new(Exit::Failed, format!("cannot start the daemon: {error}"))
    };
    crate::system::take_usual_umask();
    match options.dirs.prepare() {
        Ok(moved) => {
            for moved in moved {
                log::warn!("{moved}");
            }
        }
        Err(held @ LockError::Held { .. }) => return Ok(Started::Already(held.to_string())),
        Err(LockError::Failed(error)) => return Err(fail(&error)),
    }
    let log_to = options.dirs.logs.join("opm.log");
    Ok(daemon::start_in_background(options, &log_to))
}

/// `opm log-keeper`, which the supervisor starts.
pub(super) fn log_keeper(args: &LogKeeper) -> u8 {
    let options = keeper::Options {
        run_dir: args.run_dir.clone(),
        console: args.console,
        colour: args.colour,
        quota: args.log_dir.clone().zip(args.quota),
    };
    u8::from(keeper::run(&options) != std::process::ExitCode::SUCCESS)
}
