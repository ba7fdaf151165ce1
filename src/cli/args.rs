//! The arguments, and the text of `--help`. The manual is opm(1).

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::model::Span;
use crate::simulate::Wish;

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
#[derive(Debug, clap::Args)]
pub(super) struct Global {
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

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Supervise in the foreground: the units of DIR, or one command
    Run(Run),
    /// Supervise in the background
    Daemon(Daemon),
    /// Make the running state what the units of a directory say
    Apply(Apply),
    /// Show what an apply would do
    #[command(visible_alias = "diff")]
    Plan(Plan),
    /// Check unit files, without a daemon
    Check(Check),
    /// Show how units are
    Status(Status),
    /// Start units, and lift their holds
    Start(Change),
    /// Stop units, and hold them down
    Stop(Stop),
    /// Restart units
    Restart(Change),
    /// Tell units to read their configuration again
    Reload(Names),
    /// Send a signal to units
    Kill(Kill),
    /// Lift holds, and let go of what could not be proven
    Release(Names),
    /// Show what units wrote
    Logs(Logs),
    /// Show all that is known of a unit
    Show(Name),
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

/// A duration with a unit.
fn span(text: &str) -> Result<Span, String> {
    Span::parse(text).map_err(|error| error.to_string())
}

/// Which files of a directory are read, and how.
#[derive(Debug, clap::Args)]
pub(super) struct Files {
    /// Read all directories below DIR too
    #[arg(short = 'R', long, requires = "dir")]
    pub(super) recursive: bool,
    /// Lay the files UNIT.NAME.yaml over their units
    #[arg(long, value_name = "NAME", requires = "dir")]
    pub(super) profile: Vec<String>,
}

/// The same with settings, for commands of one moment.
#[derive(Debug, clap::Args)]
pub(super) struct Composed {
    #[command(flatten)]
    pub(super) files: Files,
    /// Give a key of a unit this value, over all files
    #[arg(long, value_name = "UNIT.KEY=VALUE")]
    pub(super) set: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Run {
    /// Directory of unit files
    pub(super) dir: Option<PathBuf>,
    #[command(flatten)]
    pub(super) files: Files,
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
    /// Longest time for a shutdown [default: as long as the units' own]
    #[arg(long, value_parser = span, value_name = "TIME")]
    pub(super) shutdown_timeout: Option<Span>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Apply {
    /// Directory of unit files, one file, or - for standard input
    pub(super) dir: PathBuf,
    #[command(flatten)]
    pub(super) composed: Composed,
    /// Only show what would be done
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Do not start a daemon where none runs
    #[arg(long)]
    pub(super) no_daemon: bool,
    #[command(flatten)]
    pub(super) waiting: Waiting,
}

/// Whether and how long a command waits for what it asked for.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct Waiting {
    /// Wait until it is done (this is the default)
    #[arg(long, conflicts_with = "no_wait")]
    pub(super) wait: bool,
    /// Return as soon as the new desired state is saved
    #[arg(long)]
    pub(super) no_wait: bool,
    /// Wait so long at most; then exit 5
    #[arg(long, value_parser = span, value_name = "TIME")]
    pub(super) timeout: Option<Span>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Plan {
    /// Directory of unit files, one file, or - for standard input
    pub(super) dir: PathBuf,
    #[command(flatten)]
    pub(super) composed: Composed,
    /// Exit 2 where there are changes
    #[arg(long)]
    pub(super) exit_code: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// Snippets for people
    Text,
    /// One JSON array
    Json,
}

#[derive(Debug, clap::Args)]
pub(super) struct Check {
    /// Directory of unit files, one file, or - for standard input
    pub(super) dir: PathBuf,
    #[command(flatten)]
    pub(super) composed: Composed,
    /// How mistakes are printed
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(super) format: Format,
    /// Print every key of this unit, with the file and line that gave it
    #[arg(long, value_name = "UNIT")]
    pub(super) origin: Option<String>,
    /// Warn where the units may take longer to stop, one after the other
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
pub(super) struct Stop {
    #[command(flatten)]
    pub(super) change: Change,
    /// Why, for those who find it stopped
    #[arg(long, default_value = "")]
    pub(super) reason: String,
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
pub(super) struct Kill {
    /// Units or instances
    #[arg(required = true)]
    pub(super) units: Vec<String>,
    /// Which signal
    #[arg(short, long, default_value = "TERM")]
    pub(super) signal: String,
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
    /// Only the last N lines
    #[arg(short = 'n', long, value_name = "N")]
    pub(super) lines: Option<usize>,
    /// Print lines as they were written, without time and unit
    #[arg(long, conflicts_with = "json")]
    pub(super) raw: bool,
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
    /// After this time, as 2026-03-29T00:00:00Z [default: now]
    #[arg(long, value_name = "TIME", requires = "expression")]
    pub(super) from: Option<jiff::Timestamp>,
    /// So many times
    #[arg(short = 'n', long, value_name = "N", default_value_t = 5, requires = "expression")]
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
}
