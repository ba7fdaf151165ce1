//! Questions to a run: is it ready, is it healthy. A question is put by a process of its own, which
//! exits 0 for yes: nothing that can hang, and no name look-up, is in the supervisor.

use serde::{Deserialize, Serialize};

use super::outcome::Outcome;
use super::path::FilePath;
use super::process::Command;
use super::signal::Signal;
use super::template::Template;
use super::time::Span;

/// Most failures in a row that can be asked for.
pub const RETRIES_MAX: u32 = 100;

/// Exit code of `opm probe` for a no: nobody takes a connection, or something is too large.
pub const PROBE_NO: u8 = 1;
/// Exit code for an answer that is not HTTP.
pub const PROBE_NOT_HTTP: u8 = 4;
/// Added to this, the first digit of a status that is none that was asked for is an exit code.
pub const PROBE_STATUS: u8 = 10;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Question {
    /// Whether this address, `HOST:PORT`, takes a connection.
    Tcp(Template),
    /// Whether this socket takes a connection.
    Unix(Template),
    /// What this URL answers.
    Http {
        /// `http://HOST[:PORT]/PATH`.
        url: Template,
        /// The status that it must answer; `None`: any from 200 to 399.
        expect: Option<u16>,
    },
    /// Whether this command exits 0.
    Exec(Command),
    /// Whether the run's processes hold less than so many bytes of memory.
    Memory(u64),
}

impl Question {
    /// The command that finds the answer: the unit's own, or opm itself. Relative paths start at
    /// `base`.
    pub fn command(&self, base: &FilePath) -> Command {
        let own = |kind: &str, rest: Vec<Template>| {
            let first = ["/proc/self/exe", "probe", kind].map(Template::literal);
            Command::Argv(first.into_iter().chain(rest).collect())
        };
        match self {
            Self::Tcp(address) => own("tcp", vec![address.clone()]),
            Self::Unix(path) => {
                let base = base.as_path().to_string_lossy();
                own("unix", vec![path.clone(), Template::literal(&base)])
            }
            Self::Http { url, expect: None } => own("http", vec![url.clone()]),
            Self::Http { url, expect: Some(status) } => {
                own("http", vec![url.clone(), Template::literal(&status.to_string())])
            }
            Self::Memory(bytes) => own("memory", vec![Template::literal(&bytes.to_string())]),
            Self::Exec(command) => command.clone(),
        }
    }

    /// The question in a few words.
    pub fn words(&self) -> String {
        match self {
            Self::Tcp(address) => format!("tcp {}", address.raw()),
            Self::Unix(path) => format!("unix {}", path.raw()),
            Self::Http { url, .. } => format!("http {}", url.raw()),
            Self::Exec(Command::Argv(argv)) => {
                format!("exec {}", argv.first().map_or("", |program| program.raw()))
            }
            Self::Exec(Command::Shell(text)) => format!("exec {}", text.raw()),
            Self::Memory(bytes) => format!("memory below {bytes} bytes"),
        }
    }

    /// What a no was, in words.
    pub fn refusal(&self, outcome: &Outcome) -> String {
        let in_vain = match outcome {
            Outcome::NotStarted(error) => return error.to_string(),
            Outcome::Exited(code) => Some(*code),
            // So it is ended when its time is over; by another signal it ends with its run.
            Outcome::Killed { signal, .. } if *signal == Signal::KILL => None,
            Outcome::Killed { .. } => return format!("its question was {outcome}"),
            Outcome::Unknown => return "nobody saw the answer".to_owned(),
        };
        match (self, in_vain) {
            (_, None) => "no answer in time".to_owned(),
            (Self::Exec(_), Some(_)) => format!("it {outcome}"),
            (Self::Memory(_), Some(_)) => "it holds more".to_owned(),
            (Self::Http { .. }, Some(PROBE_NOT_HTTP)) => "its answer is not HTTP".to_owned(),
            (Self::Http { .. }, Some(code @ 11_u8..=19)) => {
                format!("its answer is {}xx", code.saturating_sub(PROBE_STATUS))
            }
            (Self::Tcp(_) | Self::Unix(_) | Self::Http { .. }, Some(_)) => {
                "nobody takes a connection".to_owned()
            }
        }
    }
}

/// A question, how often it is put, and how long an answer may take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Probe {
    /// What is asked.
    pub question: Question,
    /// From one question to the next; one that is under way is never joined by another.
    pub interval: Span,
    /// A process that takes longer is killed, with its group, and counts as a no.
    pub timeout: Span,
}

/// How a run is watched while it is up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Health {
    /// What is asked.
    pub probe: Probe,
    /// So many failures in a row make it unhealthy.
    pub retries: u32,
    /// So long after it was ready failures do not count; a success ends that time.
    pub start_period: Span,
    /// What follows.
    pub on_failure: HealthAction,
}

/// What follows when a run is unhealthy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HealthAction {
    /// The run is ended, and another one follows, whatever the restart policy.
    Restart,
    /// It is shown.
    None,
    /// opm shuts down with exit code 1.
    Shutdown,
}
