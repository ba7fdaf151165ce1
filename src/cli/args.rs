//! The arguments, and the text of `--help`. The manual is opm(1).

mod deploy;
mod values;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

use super::ssh;
use crate::model::{Signal, Span};
use crate::simulate::Wish;
pub(super) use deploy::{
    Apply, Check, Composed, Diff, Files, Format, History, Plan, Rollback, Rolling, Waiting,
};
pub(super) use values::Until;
use values::{signal, size, span, until};

/// A declarative init and supervisor: YAML units in, running processes out.
#[derive(Debug, Parser)]
#[command(name = "opm", version, max_term_width = 100)]
#[command(after_help = "The manual: opm(1), opm-unit(5), opm-daemon(8), opm(7).")]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// What every command understands.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Global {
    /// Talk to the opm of HOST over ssh; several times: one host after the other
    #[arg(short = 'H', long = "host", global = true, value_name = "HOST")]
    #[arg(value_parser = ssh::destination)]
    pub(super) hosts: Vec<String>,
    /// The ssh client for -H, with its options [default: ssh]
    #[arg(long, global = true, value_name = "COMMAND", env = "OPM_SSH")]
    #[arg(value_parser = ssh::command)]
    pub(super) ssh: Option<ssh::Words>,
    /// What runs opm on HOST, as `sudo -n opm` [default: opm]
    #[arg(long, global = true, value_name = "COMMAND", env = "OPM_REMOTE")]
    #[arg(value_parser = ssh::command)]
    pub(super) remote_opm: Option<ssh::Words>,
    /// Keep everything under DIR: sockets in DIR/run, saved state in DIR/state, logs in DIR/log
    #[arg(long, global = true, value_name = "DIR", env = "OPM_ROOT")]
    pub(super) root: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    pub(super) json: bool,
    /// Say more on standard error; twice: everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(super) verbose: u8,
}

impl Global {
    /// The other machine that is meant; of several the one whose turn it is.
    pub(super) fn host(&self) -> Option<&str> {
        self.hosts.first().map(String::as_str)
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Supervise in the foreground: the units of DIR, or one command
    Run(Run),
    /// Supervise in the background
    Daemon(Daemon),
    /// Make the running state what the units of a directory say
    Apply(Apply),
    /// Show what an apply would do
    Plan(Plan),
    /// Compare: units with what is applied, two generations, or what runs with what is wanted
    Diff(Diff),
    /// Keep what was applied on trial
    Confirm,
    /// Go back to what was applied before
    Rollback(Rollback),
    /// Show what was applied, and when
    History(History),
    /// Check unit files, without a daemon
    Check(Check),
    /// Show how units are
    Status(Status),
    /// Start units, and lift their holds
    Start(Change),
    /// Stop units, and hold them down
    Stop(Stop),
    /// Restart units
    Restart(Restart),
    /// Tell units to read their configuration again
    Reload(Change),
    /// Send a signal to units
    Kill(Kill),
    /// Lift holds, and let go of what could not be proven
    Release(Names),
    /// Show what units wrote
    Logs(Logs),
    /// Show all that is known of a unit
    Show(Show),
    /// Explain why a unit is as it is
    Why(Name),
    /// Explain a key of unit files, or print when a schedule is due
    Explain(Explain),
    /// Draw how units hang together
    Graph(Graph),
    /// Tell what would happen, and do nothing
    Simulate(Simulate),
    /// Wait until units are up, ready, down, completed or settled
    Wait(Wait),
    /// Follow what happens
    Events,
    /// Save the desired state now
    Save,
    /// Reconcile with the saved desired state, as at boot
    Restore,
    /// Replace the running opm by the program on disk
    Reexec,
    /// Stop everything in order, and end
    Shutdown,
    /// Connect standard input and output with the daemon's control socket
    Proxy,
    /// Print a completion script
    Completions {
        /// For this shell
        shell: clap_complete::Shell,
    },
    /// Put a question to a unit (opm starts this itself)
    #[command(hide = true)]
    Probe {
        /// What is asked, and of whom
        #[arg(required = true)]
        question: Vec<OsString>,
    },
    /// Read the units' output and keep it (opm starts this itself)
    #[command(hide = true)]
    LogKeeper(LogKeeper),
}

impl Command {
    /// Whether the command is a supervisor, whose log is for an operator.
    pub(super) fn is_supervisor(&self) -> bool {
        matches!(self, Self::Run(_) | Self::Daemon(_) | Self::LogKeeper(_))
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct Run {
    /// Directory of unit files
    pub(super) dir: Option<PathBuf>,
    #[command(flatten)]
    pub(super) files: Files,
    /// Most bytes of all finished log files together, as 10G [default: no limit]
    #[arg(long, env = "OPM_LOG_QUOTA", value_parser = size, value_name = "SIZE")]
    pub(super) log_quota: Option<u64>,
    /// Longest time for a shutdown [default: 9s as PID 1, else as long as the units' own]
    #[arg(long, value_parser = span, value_name = "TIME")]
    pub(super) shutdown_timeout: Option<Span>,
    /// Do not copy the units' output to standard output
    #[arg(long)]
    pub(super) quiet: bool,
    /// Run this command: opm ends with it and its exit code
    #[arg(last = true, value_name = "CMD")]
    pub(super) command: Vec<OsString>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Daemon {
    /// Directory of unit files to apply
    pub(super) dir: Option<PathBuf>,
    #[command(flatten)]
    pub(super) files: Files,
    /// Most bytes of all finished log files together, as 10G [default: no limit]
    #[arg(long, env = "OPM_LOG_QUOTA", value_parser = size, value_name = "SIZE")]
    pub(super) log_quota: Option<u64>,
    /// Longest time for a shutdown [default: as long as the units' own]
    #[arg(long, value_parser = span, value_name = "TIME")]
    pub(super) shutdown_timeout: Option<Span>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Status {
    /// Units or instances; one of them sets the exit code: 0 up, 3 not up, 4 unknown
    pub(super) units: Vec<String>,
    /// Only units with this label
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub(super) label: Vec<String>,
    /// Show opm's own units too
    #[arg(short, long)]
    pub(super) all: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Change {
    /// Units or instances
    #[arg(required = true)]
    pub(super) units: Vec<String>,
    #[command(flatten)]
    pub(super) waiting: Waiting,
}

#[derive(Debug, clap::Args)]
pub(super) struct Restart {
    #[command(flatten)]
    pub(super) change: Change,
    #[command(flatten)]
    pub(super) rolling: Rolling,
}

#[derive(Debug, clap::Args)]
pub(super) struct Stop {
    #[command(flatten)]
    pub(super) change: Change,
    /// Why, for those who find it stopped
    #[arg(long, default_value = "")]
    pub(super) reason: String,
    /// Until then: a duration as 2h, or a time as 2026-03-29T06:00:00Z
    #[arg(long, value_parser = until, value_name = "WHEN")]
    pub(super) until: Option<Until>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Names {
    /// Units or instances
    #[arg(required = true)]
    pub(super) units: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Name {
    /// Unit or instance
    pub(super) unit: String,
}

#[derive(Debug, clap::Args)]
pub(super) struct Show {
    /// Unit or instance
    pub(super) unit: String,
    /// Say which line of which file gave each key
    #[arg(long)]
    pub(super) origin: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Kill {
    /// Units or instances
    #[arg(required = true)]
    pub(super) units: Vec<String>,
    /// Which signal, as TERM, SIGTERM or 15
    #[arg(short, long, default_value = "TERM", value_parser = signal)]
    pub(super) signal: Signal,
    /// To every process of the run, not only the main one
    #[arg(long)]
    pub(super) all: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Logs {
    /// Units or instances; all of them where none is named
    pub(super) units: Vec<String>,
    /// Go on as more is written
    #[arg(short, long)]
    pub(super) follow: bool,
    /// Only the last N lines of those that match
    #[arg(short = 'n', long, value_name = "N")]
    pub(super) lines: Option<usize>,
    /// Of this time or later: 2026-11-26T10:00:00Z, "2026-11-26 10:00", 10:00, today, -1h
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub(super) since: Option<String>,
    /// Of this time or earlier
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, conflicts_with = "follow")]
    pub(super) until: Option<String>,
    /// Since the machine, or the container, was started
    #[arg(short, long, conflicts_with = "since")]
    pub(super) boot: bool,
    /// Of one run: 0 the latest, -1 the one before, or the first digits of its number
    #[arg(long, value_name = "RUN", allow_hyphen_values = true, conflicts_with = "follow")]
    pub(super) run: Option<String>,
    /// In which this regular expression matches
    #[arg(short, long, value_name = "RE")]
    pub(super) grep: Option<String>,
    /// Take upper and lower case for the same
    #[arg(short, long, requires = "grep")]
    pub(super) ignore_case: bool,
    /// Units with this label, NAME=VALUE; several times: all of them
    #[arg(short, long, value_name = "LABEL")]
    pub(super) label: Vec<String>,
    #[command(flatten)]
    pub(super) form: LogForm,
}

/// Which lines, and how they are printed.
#[derive(Debug, clap::Args)]
pub(super) struct LogForm {
    /// Of this stream only
    #[arg(long, value_enum)]
    pub(super) stream: Option<Stream>,
    /// Only what opm says about lines that are missing
    #[arg(long, conflicts_with = "stream")]
    pub(super) gaps: bool,
    /// How lines are printed [default: iso]
    #[arg(short, long, value_enum, conflicts_with = "json")]
    pub(super) output: Option<LogOutput>,
    /// Print lines as they were written: --output cat
    #[arg(long, conflicts_with_all = ["json", "output"])]
    pub(super) raw: bool,
}

/// Who wrote a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Stream {
    /// The unit
    Stdout,
    /// opm, about the log
    Opm,
}

/// How a line is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum LogOutput {
    /// Local time to the millisecond, unit, line
    Short,
    /// Time in UTC to the microsecond, unit, line
    Iso,
    /// One JSON object for each line
    Json,
    /// The line as it was written
    Cat,
}

#[derive(Debug, clap::Args)]
pub(super) struct Graph {
    /// Directory of unit files, to look at these alone; then units: only what hangs on them
    #[arg(value_names = ["DIR", "UNIT"], num_args = 0..)]
    pub(super) what: Vec<String>,
    /// For graphviz
    #[arg(long, conflicts_with = "json")]
    pub(super) dot: bool,
    /// For mermaid
    #[arg(long, conflicts_with_all = ["json", "dot"])]
    pub(super) mermaid: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Simulate {
    /// Directory of unit files, to look at these alone; all that is wanted is up at the beginning
    pub(super) dir: Option<PathBuf>,
    #[command(flatten)]
    pub(super) wishes: Wishes,
    /// Only SIGKILL ends this unit
    #[arg(long, value_name = "UNIT")]
    pub(super) stubborn: Vec<String>,
    /// This unit fails whenever it is started
    #[arg(long, value_name = "UNIT")]
    pub(super) broken: Vec<String>,
}

/// What is imagined to happen, in the order of the command line.
#[derive(Debug)]
pub(super) struct Wishes(pub(super) Vec<Wish>);

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = true)]
struct WishArgs {
    /// Its processes fail
    #[arg(long, value_name = "UNIT")]
    fail: Vec<String>,
    /// It is stopped by hand
    #[arg(long, value_name = "UNIT")]
    stop: Vec<String>,
    /// opm shuts down [default: in the daemon's own time]
    #[arg(long, value_name = "TIME", num_args = 0..=1, default_missing_value = "")]
    #[arg(action = clap::ArgAction::Append, value_parser = budget)]
    shutdown: Vec<Budget>,
}

/// The time of a shutdown; none: the daemon's own.
#[derive(Debug, Clone, Copy)]
struct Budget(Option<Span>);

fn budget(text: &str) -> Result<Budget, String> {
    if text.is_empty() { Ok(Budget(None)) } else { span(text).map(|time| Budget(Some(time))) }
}

impl clap::Args for Wishes {
    fn augment_args(command: clap::Command) -> clap::Command {
        WishArgs::augment_args(command)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        WishArgs::augment_args_for_update(command)
    }
}

impl clap::FromArgMatches for Wishes {
    fn from_arg_matches(matches: &clap::ArgMatches) -> Result<Self, clap::Error> {
        let WishArgs { fail, stop, shutdown } = WishArgs::from_arg_matches(matches)?;
        let places = |name: &str| matches.indices_of(name).into_iter().flatten();
        let mut wishes: Vec<(usize, Wish)> = Vec::new();
        wishes.extend(places("fail").zip(fail.into_iter().map(Wish::Fail)));
        wishes.extend(places("stop").zip(stop.into_iter().map(Wish::Stop)));
        let shutdowns = shutdown.into_iter().map(|Budget(time)| Wish::Shutdown(time));
        wishes.extend(places("shutdown").zip(shutdowns));
        wishes.sort_by_key(|(place, _)| *place);
        Ok(Self(wishes.into_iter().map(|(_, wish)| wish).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct Wait {
    /// Units or instances; all of them where none is named
    pub(super) units: Vec<String>,
    /// Until they are so
    #[arg(long = "for", value_name = "CONDITION", default_value = "ready")]
    #[arg(value_parser = ["up", "ready", "down", "completed", "settled"])]
    pub(super) condition: String,
    /// So long at most; then exit 5
    #[arg(long, value_parser = span, value_name = "TIME")]
    pub(super) timeout: Option<Span>,
}

/// Times of an expression that are printed at most.
const TIMES_MAX: i64 = 1_000;

#[derive(Debug, clap::Args)]
pub(super) struct Explain {
    /// A key, as `restart.delay`; all of them where none is named
    pub(super) key: Option<String>,
    /// For schedule, calendar and every: print when this is due
    #[arg(value_name = "EXPR")]
    pub(super) expression: Option<String>,
    /// In this time zone [default: the system's]
    #[arg(long, value_name = "ZONE", requires = "expression")]
    pub(super) timezone: Option<String>,
    /// After this time, as 2026-03-29 or yesterday [default: now]
    #[arg(long, value_name = "TIME", requires = "expression")]
    pub(super) from: Option<String>,
    /// So many times, 1 to 1000
    #[arg(short = 'n', long, value_name = "N", default_value_t = 5, requires = "expression")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=TIMES_MAX))]
    pub(super) lines: u16,
}

#[derive(Debug, clap::Args)]
pub(super) struct LogKeeper {
    /// Directory of FIFOs and instructions
    #[arg(long)]
    pub(super) run_dir: PathBuf,
    /// Copy every line to standard output
    #[arg(long)]
    pub(super) console: bool,
    /// Colour those
    #[arg(long)]
    pub(super) colour: bool,
    /// The directory of logs, for --quota
    #[arg(long, requires = "quota")]
    pub(super) log_dir: Option<PathBuf>,
    /// Most bytes of finished files in it
    #[arg(long, requires = "log_dir")]
    pub(super) quota: Option<u64>,
}
