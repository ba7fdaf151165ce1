//! How a process or a run ended, and whether the spec calls that success.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::signal::Signal;

/// Exit code of opm's own child when it may not go through the gate: no program was run.
pub const EXIT_NEVER_STARTED: u8 = 111;

/// The step of a start that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Stage {
    /// Reading an env file.
    EnvFile = 1,
    /// Looking up the user or group.
    User,
    /// Finding the program on the unit's PATH.
    Resolve,
    /// Making a socket, pipe, directory or log file for the run.
    Prepare,
    /// Making the process.
    Fork,
    /// Writing the run to the ledger.
    Ledger,
    /// The gate was closed: the supervisor ended before it let the run go.
    Gate,
    /// Starting a session of its own.
    Session,
    /// Arranging descriptors.
    Descriptors,
    /// Opening standard input.
    Stdin,
    /// Setting a resource limit.
    Limits,
    /// Setting the nice value.
    Nice,
    /// Setting the OOM score adjustment.
    OomScore,
    /// Setting supplementary groups.
    Groups,
    /// Setting the group.
    Gid,
    /// Setting the user.
    Uid,
    /// Changing to the working directory.
    WorkingDir,
    /// Running the program.
    Exec,
    /// Listening at an address.
    Listen,
    /// Looking up a group.
    Group,
}

impl Stage {
    const ALL: [Self; 20] = [
        Self::EnvFile,
        Self::User,
        Self::Resolve,
        Self::Prepare,
        Self::Fork,
        Self::Ledger,
        Self::Gate,
        Self::Session,
        Self::Descriptors,
        Self::Stdin,
        Self::Limits,
        Self::Nice,
        Self::OomScore,
        Self::Groups,
        Self::Gid,
        Self::Uid,
        Self::WorkingDir,
        Self::Exec,
        Self::Listen,
        Self::Group,
    ];

    /// The stage a child reported by its number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|stage| *stage as u8 == number)
    }

    /// What was being done, as in "cannot …".
    pub fn doing(self) -> &'static str {
        match self {
            Self::EnvFile => "read env file",
            Self::User => "find user",
            Self::Resolve => "find program",
            Self::Prepare => "prepare",
            Self::Fork => "make a process for",
            Self::Ledger => "write to the ledger",
            Self::Gate => "pass the gate",
            Self::Session => "start a session",
            Self::Descriptors => "arrange descriptors",
            Self::Stdin => "open standard input",
            Self::Limits => "set limit",
            Self::Nice => "set nice",
            Self::OomScore => "set oom_score_adjust",
            Self::Groups => "set supplementary groups",
            Self::Gid => "set group",
            Self::Uid => "set user",
            Self::WorkingDir => "change to working directory",
            Self::Exec => "run",
            Self::Listen => "listen at",
            Self::Group => "find group",
        }
    }
}

/// A start that came to nothing: which step, on what, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartError {
    /// The step that failed.
    pub stage: Stage,
    /// What the step was about: a path, a user, a limit.
    pub subject: String,
    /// The reason, in words.
    pub reason: String,
    /// Whether trying again soon may help (no process or descriptor to be had).
    pub passing: bool,
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}", self.stage.doing())?;
        if !self.subject.is_empty() {
            write!(f, " `{}`", self.subject)?;
        }
        write!(f, ": {}", self.reason)
    }
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It exited with this code.
    Exited(u8),
    /// A signal ended it.
    Killed {
        /// Which one.
        signal: Signal,
        /// Whether a core was written.
        core: bool,
    },
    /// It never ran its program.
    NotStarted(StartError),
    /// It ended, but its status went to somebody else: it was adopted and the kernel does not tell.
    Unknown,
}

impl Outcome {
    /// The exit code that stands for this end: 128+n for a signal, as shells do.
    pub fn code(&self) -> u8 {
        match self {
            Self::Exited(code) => *code,
            Self::Killed { signal, .. } => {
                128u8.saturating_add(u8::try_from(signal.number()).unwrap_or(0))
            }
            Self::NotStarted(error) if error.stage == Stage::Resolve => 127,
            Self::NotStarted(_) => 126,
            Self::Unknown => 1,
        }
    }

    /// Whether one of `matches` names this end.
    pub fn is_one_of(&self, matches: &[ExitMatch]) -> bool {
        matches.iter().any(|entry| match (entry, self) {
            (ExitMatch::Code(code), Self::Exited(exited)) => code == exited,
            (ExitMatch::Signal(signal), Self::Killed { signal: killed, .. }) => signal == killed,
            (
                ExitMatch::Code(_) | ExitMatch::Signal(_),
                Self::Exited(_) | Self::Killed { .. } | Self::NotStarted(_) | Self::Unknown,
            ) => false,
        })
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exited {code}"),
            Self::Killed { signal, core: false } => write!(f, "killed by {signal}"),
            Self::Killed { signal, core: true } => write!(f, "killed by {signal} (core dumped)"),
            Self::NotStarted(error) => error.fmt(f),
            Self::Unknown => f.write_str("ended, status unknown (adopted)"),
        }
    }
}

/// An entry of `success_exit`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExitMatch {
    /// This exit code.
    Code(u8),
    /// Death by this signal.
    Signal(Signal),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stage_survives_its_number() {
        for stage in Stage::ALL {
            assert_eq!(Stage::from_number(stage as u8), Some(stage));
        }
        assert_eq!(Stage::from_number(0), None);
    }

    #[test]
    fn death_by_a_signal_is_128_and_its_number() {
        let killed = Outcome::Killed { signal: Signal::KILL, core: false };
        assert_eq!(killed.code(), 137);
        assert!(killed.is_one_of(&[ExitMatch::Code(0), ExitMatch::Signal(Signal::KILL)]));
        assert!(!killed.is_one_of(&[ExitMatch::Code(137)]));
        assert_eq!(Outcome::Exited(3).code(), 3);
        assert_eq!(Outcome::Unknown.code(), 1);
    }
}
