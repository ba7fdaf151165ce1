//! The commands: arguments, output, exit codes. One file for each group of commands.

mod apply;
mod args;
mod changes;
mod client;
mod draw;
mod explain;
mod files;
mod graph;
mod history;
mod logs;
mod output;
mod plan_file;
mod probe;
mod progress;
mod proxy;
mod query;
mod remote;
mod serve;
mod simulate;
mod ssh;
mod units;
mod when;
mod world;

use std::process::ExitCode;

use clap::CommandFactory;

use args::{Args, Command, Global};

use crate::system;

/// How a command ends. The table stands in opm(1), EXIT STATUS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done, or yes.
    Done = 0,
    /// No, or a unit failed.
    Failed = 1,
    /// Wrong usage, or units with mistakes.
    Bad = 2,
    /// The daemon cannot be reached. For `status UNIT`: the unit is not up.
    NoDaemon = 3,
    /// Refused. For `status UNIT`: there is no such unit.
    Refused = 4,
    /// Not finished in time, and still going on.
    TimedOut = 5,
}

impl Exit {
    /// Every exit code with its meaning, for the manual's test.
    pub const ALL: [(Self, &str); 6] = [
        (Self::Done, "done, or yes"),
        (Self::Failed, "no, or a unit failed"),
        (Self::Bad, "wrong usage, or units with mistakes"),
        (Self::NoDaemon, "the daemon cannot be reached"),
        (Self::Refused, "refused"),
        (Self::TimedOut, "timed out, still going on"),
    ];
}

/// A command that did not do what it should: what to print, and the exit code.
#[derive(Debug)]
pub(crate) struct Error {
    message: String,
    exit: Exit,
}

impl Error {
    fn new(exit: Exit, message: impl std::fmt::Display) -> Self {
        Self { message: message.to_string(), exit }
    }
}

type Outcome = Result<Exit, Error>;

/// Reads the arguments, does what they say, and says how it went.
pub fn main() -> ExitCode {
    let (args, words) = match remote::parse(&std::env::args_os().collect::<Vec<_>>()) {
        Ok(parsed) => parsed,
        Err(error) => {
            let code = if error.use_stderr() { Exit::Bad } else { Exit::Done };
            return match error.print() {
                Ok(()) | Err(_) => ExitCode::from(code as u8),
            };
        }
    };
    start_log(&args);
    let done = if args.global.hosts.is_empty() {
        dispatch(&args.global, &args.command)
    } else {
        remote::dispatch(&args, &words)
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            if !error.message.is_empty() {
                output::error(&error.message);
            }
            ExitCode::from(error.exit as u8)
        }
    }
}

/// Does what the arguments say. The supervisor's exit code is its units' business; all others are
/// in [`Exit`].
fn dispatch(global: &Global, command: &Command) -> Result<u8, Error> {
    let exit = match command {
        Command::Run(run) => return serve::run(global, run),
        Command::Daemon(daemon) => return serve::daemon(global, daemon),
        Command::Probe { question } => return Ok(probe::run(question)),
        Command::LogKeeper(keeper) => return Ok(serve::log_keeper(keeper)),
        Command::Apply(apply) => apply::apply(global, apply),
        Command::Plan(plan) => apply::plan(global, plan),
        Command::Diff(diff) => history::diff(global, diff),
        Command::Confirm => history::confirm(global),
        Command::Rollback(rollback) => history::rollback(global, rollback),
        Command::History(history) => history::history(global, history),
        Command::Check(check) => apply::check(global, check),
        Command::Status(status) => query::status(global, status),
        Command::Show(unit) => query::show(global, unit),
        Command::Why(unit) => query::why(global, unit),
        Command::Explain(explain) => explain::explain(global, explain),
        Command::Wait(wait) => query::wait(global, wait),
        Command::Events => query::events(global),
        Command::Start(change) => units::start(global, change),
        Command::Stop(stop) => units::stop(global, stop),
        Command::Restart(change) => units::restart(global, change),
        Command::Reload(names) => units::reload(global, names),
        Command::Kill(kill) => units::kill(global, kill),
        Command::Release(names) => units::release(global, names),
        Command::Graph(args) => graph::graph(global, args),
        Command::Simulate(args) => simulate::simulate(global, args),
        Command::Logs(logs) => logs::logs(global, logs),
        Command::Save => units::save(global),
        Command::Restore => units::restore(global),
        Command::Reexec => units::reexec(global),
        Command::Shutdown => units::shutdown(global),
        Command::Proxy => proxy::proxy(global),
        Command::Completions { shell } => {
            let mut command = Args::command();
            let mut text = Vec::new();
            clap_complete::generate(*shell, &mut command, "opm", &mut text);
            output::raw(&text).map(|()| Exit::Done)
        }
    };
    exit.map(|exit| exit as u8)
}

/// opm's own messages go to standard error, each once and with no more than it needs: the time only in
/// a file.
fn start_log(args: &Args) {
    use std::io::Write;
    let level = match args.global.verbose {
        0 if args.command.is_supervisor() => log::LevelFilter::Info,
        0 => log::LevelFilter::Warn,
        1 => log::LevelFilter::Debug,
        _ => log::LevelFilter::Trace,
    };
    let mut builder = env_logger::Builder::new();
    // A daemon that another command starts says as much as one that was started by itself.
    let most = level.max(log::LevelFilter::Info);
    if args.command.is_supervisor() {
        builder.target(env_logger::Target::Pipe(Box::new(system::messages::Writer)));
    }
    builder.filter_level(most).filter_module("mio", log::LevelFilter::Warn);
    builder.format(|out, record| {
        let sign = match record.level() {
            log::Level::Error => "error: ",
            log::Level::Warn => "warning: ",
            log::Level::Info | log::Level::Debug | log::Level::Trace => "",
        };
        // Whoever reads a terminal or a pipe knows when; a file is read later.
        if system::is_file(std::io::stderr()) {
            let now = jiff::Timestamp::from_microsecond(system::wall_now().0).ok();
            write!(out, "{} ", now.and_then(when::stamp).unwrap_or_default())?;
        }
        writeln!(out, "opm: {sign}{}", record.args())
    });
    builder.init();
    log::set_max_level(level);
}
