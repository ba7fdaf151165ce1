//! The arguments of the commands by which units come in, and go back: which files, how, and how long
//! to wait.

use std::path::PathBuf;

use super::values::span;
use crate::model::Span;

/// Longest name of a source, in bytes: as long as a file's. It stands in messages.
const SOURCE_NAME_BYTES_MAX: usize = 255;

/// A name for a source: words for people, on one line, and none that opm gives itself.
fn source_name(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > SOURCE_NAME_BYTES_MAX {
        return Err(format!("a name has 1 to {SOURCE_NAME_BYTES_MAX} bytes"));
    }
    if text.starts_with('(') || text.chars().any(char::is_control) {
        return Err("a name begins with no `(` and has no control characters".to_owned());
    }
    Ok(text.to_owned())
}

/// Which files of a directory are read, and how.
#[derive(Debug, Clone, PartialEq, Eq, Default, clap::Args)]
pub(in crate::cli) struct Files {
    /// Read all directories below DIR too
    #[arg(short = 'R', long, requires = "dir")]
    pub(in crate::cli) recursive: bool,
    /// Lay the files UNIT.NAME.yaml over their units
    #[arg(long, value_name = "NAME", requires = "dir")]
    pub(in crate::cli) profile: Vec<String>,
}

/// The same with settings, for commands of one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default, clap::Args)]
pub(in crate::cli) struct Composed {
    #[command(flatten)]
    pub(in crate::cli) files: Files,
    /// Give a key of a unit this value, over all files
    #[arg(long, value_name = "UNIT.KEY=VALUE")]
    pub(in crate::cli) set: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Apply {
    /// Directory of unit files, one file, a saved plan, or - for standard input
    pub(in crate::cli) dir: PathBuf,
    /// The source that owns these units [default: where they were found]
    #[arg(long, value_name = "NAME", value_parser = source_name)]
    pub(in crate::cli) source: Option<String>,
    #[command(flatten)]
    pub(in crate::cli) composed: Composed,
    /// Only show what would be done
    #[arg(long)]
    pub(in crate::cli) dry_run: bool,
    /// Only these units of it; the others stay as they are
    #[arg(long, value_name = "UNIT")]
    pub(in crate::cli) only: Vec<String>,
    /// Why, for those who read the history
    #[arg(short, long, default_value = "", hide_default_value = true)]
    pub(in crate::cli) message: String,
    /// Take it back unless `opm confirm` follows in so long a time
    #[arg(long, value_parser = span, value_name = "TIME", conflicts_with = "dry_run")]
    pub(in crate::cli) confirm: Option<Span>,
    /// Take it back where a unit does not come up
    #[arg(long, conflicts_with_all = ["dry_run", "no_wait"])]
    pub(in crate::cli) rollback_on_failure: bool,
    #[command(flatten)]
    pub(in crate::cli) rolling: Rolling,
    /// Do not start a daemon where none runs
    #[arg(long)]
    pub(in crate::cli) no_daemon: bool,
    #[command(flatten)]
    pub(in crate::cli) waiting: Waiting,
}

impl Apply {
    /// Whether the command line says which units these are, and of what.
    pub(in crate::cli) fn is_described(&self) -> bool {
        self.source.is_some() || self.composed != Composed::default()
    }
}

/// Whether and how long a command waits for what it asked for.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(in crate::cli) struct Waiting {
    /// Wait until it is done (this is the default)
    #[arg(long, conflicts_with = "no_wait")]
    pub(in crate::cli) wait: bool,
    /// Return as soon as the new desired state is saved
    #[arg(long)]
    pub(in crate::cli) no_wait: bool,
    /// Wait so long at most; then exit 5
    #[arg(long, value_parser = span, value_name = "TIME")]
    pub(in crate::cli) timeout: Option<Span>,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Plan {
    /// Directory of unit files, one file, or - for standard input
    pub(in crate::cli) dir: PathBuf,
    /// The source that owns these units [default: where they were found]
    #[arg(long, value_name = "NAME", value_parser = source_name)]
    pub(in crate::cli) source: Option<String>,
    /// Only these units of it; the others stay as they are
    #[arg(long, value_name = "UNIT")]
    pub(in crate::cli) only: Vec<String>,
    #[command(flatten)]
    pub(in crate::cli) rolling: Rolling,
    /// Save the plan, for `opm apply FILE`
    #[arg(short, long, value_name = "FILE")]
    pub(in crate::cli) out: Option<PathBuf>,
    #[command(flatten)]
    pub(in crate::cli) composed: Composed,
    /// Exit 2 where there are changes
    #[arg(long)]
    pub(in crate::cli) exit_code: bool,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Diff {
    /// A directory, or one or two generations [default: what is applied now]
    #[arg(value_names = ["DIR|N", "M"], num_args = 0..=2)]
    pub(in crate::cli) what: Vec<String>,
    /// What runs otherwise than it is wanted
    #[arg(long, conflicts_with = "what")]
    pub(in crate::cli) live: bool,
    /// Exit 2 where there is a difference
    #[arg(long)]
    pub(in crate::cli) exit_code: bool,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Rollback {
    /// To what was applied at this generation [default: before the last change]
    pub(in crate::cli) generation: Option<u64>,
    /// Only show what would be done
    #[arg(long)]
    pub(in crate::cli) dry_run: bool,
    /// Why, for those who read the history
    #[arg(short, long, default_value = "", hide_default_value = true)]
    pub(in crate::cli) message: String,
    #[command(flatten)]
    pub(in crate::cli) rolling: Rolling,
    #[command(flatten)]
    pub(in crate::cli) waiting: Waiting,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct History {
    /// Show this generation, and how it differs from the one before
    pub(in crate::cli) generation: Option<u64>,
    /// Print the unit files as they were then
    #[arg(long, requires = "generation")]
    pub(in crate::cli) files: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(in crate::cli) enum Format {
    /// Snippets for people
    Text,
    /// One JSON array
    Json,
}

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Check {
    /// Directory of unit files, one file, or - for standard input
    pub(in crate::cli) dir: PathBuf,
    #[command(flatten)]
    pub(in crate::cli) composed: Composed,
    /// How mistakes are printed
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(in crate::cli) format: Format,
    /// Print every key of this unit, with the file and line that gave it
    #[arg(long, value_name = "UNIT")]
    pub(in crate::cli) origin: Option<String>,
    /// Warn where the units may take longer to stop, one after the other
    #[arg(long, value_parser = span, value_name = "TIME")]
    pub(in crate::cli) shutdown_timeout: Option<Span>,
}

/// In turns, or all at once.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(in crate::cli) struct Rolling {
    /// Of a unit's instances one after the other, each when the one before is ready
    #[arg(long)]
    rolling: bool,
    /// So many at a time
    #[arg(long, value_name = "N", requires = "rolling", value_parser = clap::value_parser!(u32).range(1..))]
    batch: Option<u32>,
}

impl Rolling {
    /// How many instances may be away at a time; all where it is not said.
    pub(in crate::cli) fn batch(self) -> Option<u32> {
        self.rolling.then(|| self.batch.unwrap_or(1))
    }
}
