//! What is fixed when a run starts: a change of it restarts the run.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::path::FilePath;
use super::probe::Probe;
use super::shared::Shared;
use super::template::Template;
use super::time::Span;

/// What is fixed when a run starts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// The program and its arguments.
    pub command: Command,
    /// The directory of the unit's file: relative paths start here.
    pub base_dir: FilePath,
    /// Where the program runs; the unit file's directory where nothing is said.
    pub working_dir: Option<Box<Template>>,
    /// Variables set for it.
    pub env: Shared<BTreeMap<String, Template>>,
    /// Files with more variables; later ones win, `env` wins over all.
    pub env_files: Shared<Vec<EnvFile>>,
    /// What it gets of the supervisor's own environment.
    pub inherit_env: Shared<InheritEnv>,
    /// Its standard input.
    pub stdin: Shared<Stdin>,
    /// Its standard output and error.
    pub output: Output,
    /// The user it runs as: a name or a number.
    pub user: Option<String>,
    /// The group it runs as: a name or a number; the user's own where nothing is said.
    pub group: Option<String>,
    /// Groups beside those that the user has anyway.
    pub supplementary_groups: Shared<Vec<String>>,
    /// File mode creation mask.
    pub umask: Option<u32>,
    /// Resource limits.
    pub limits: Shared<BTreeMap<Resource, Limit>>,
    /// Scheduling niceness, -20 to 19.
    pub nice: Option<i32>,
    /// The kernel's out-of-memory preference, -1000 to 1000.
    pub oom_score_adjust: Option<i32>,
    /// How the run says that it is ready.
    pub ready: Shared<Ready>,
    /// The longest silence on the notify socket once it is ready; `None`: nobody watches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watchdog: Option<Span>,
    /// Where a program that forks away writes who its main process is; `None`: it stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid_file: Option<Box<Template>>,
    /// Whether the run has a session of its own; only the command of `opm run -- CMD` has not.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub own_session: bool,
}

fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
fn is_yes(value: &bool) -> bool {
    *value
}

impl ProcessSpec {
    /// A process with nothing said beyond its command.
    pub fn new(command: Command, base_dir: FilePath) -> Self {
        Self {
            command,
            base_dir,
            working_dir: None,
            env: Shared::default(),
            env_files: Shared::default(),
            inherit_env: Shared::default(),
            stdin: Shared::default(),
            output: Output::Keeper,
            user: None,
            group: None,
            supplementary_groups: Shared::default(),
            umask: None,
            limits: Shared::default(),
            nice: None,
            oom_score_adjust: None,
            ready: Shared::default(),
            watchdog: None,
            pid_file: None,
            own_session: true,
        }
    }
}

/// A program with its arguments.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Command {
    /// Run as written; never empty.
    Argv(Vec<Template>),
    /// Run by `/bin/sh -c`.
    Shell(Template),
}

/// What a run gets of the supervisor's own environment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InheritEnv {
    /// All of it.
    All,
    /// These variables.
    Only(Vec<String>),
}

/// A file of `NAME=value` lines.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EnvFile {
    /// Which file.
    pub path: Template,
    /// Whether it may be missing.
    pub optional: bool,
}

/// Standard input of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stdin {
    /// `/dev/null`.
    Null,
    /// This file.
    File(Template),
    /// A FIFO, in which the log keeper puts what others write whose `logs.to` names the unit.
    Logs,
    /// The supervisor's own; only for the command of `opm run -- CMD`.
    Inherit,
}

/// Standard output and error of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Output {
    /// A FIFO that the log keeper reads; [`Logs`] says what becomes of it.
    Keeper,
    /// The supervisor's own.
    Inherit,
    /// `/dev/null`.
    Null,
}

/// How a run says that it is ready.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ready {
    /// As soon as its program runs. A task is ready when it has completed.
    Started,
    /// By `READY=1` on the notify socket, `sd_notify(3)`.
    Notify,
    /// By a newline on this descriptor.
    Fd(u16),
    /// This time after its program runs.
    Delay(Span),
    /// When this file is there, made or changed since the start.
    File(Template),
    /// When a line of its output matches this regular expression.
    Log(String),
    /// When the answer to this question is yes.
    Asked(Box<Probe>),
}

/// A resource with a limit, getrlimit(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the names are those of getrlimit(2) without RLIMIT_")]
pub enum Resource {
    As,
    Core,
    Cpu,
    Data,
    Fsize,
    Locks,
    Memlock,
    Msgqueue,
    Nice,
    Nofile,
    Nproc,
    Rss,
    Rtprio,
    Rttime,
    Sigpending,
    Stack,
}

impl Resource {
    /// Every resource with its name in unit files.
    pub const ALL: [(&str, Self); 16] = [
        ("as", Self::As),
        ("core", Self::Core),
        ("cpu", Self::Cpu),
        ("data", Self::Data),
        ("fsize", Self::Fsize),
        ("locks", Self::Locks),
        ("memlock", Self::Memlock),
        ("msgqueue", Self::Msgqueue),
        ("nice", Self::Nice),
        ("nofile", Self::Nofile),
        ("nproc", Self::Nproc),
        ("rss", Self::Rss),
        ("rtprio", Self::Rtprio),
        ("rttime", Self::Rttime),
        ("sigpending", Self::Sigpending),
        ("stack", Self::Stack),
    ];

    /// The resource's name in unit files.
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(_, resource)| *resource == self).map_or("", |(name, _)| name)
    }
}

/// A soft and a hard limit; `None` is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// What the process meets first and may raise up to the hard limit.
    pub soft: Option<u64>,
    /// What it may not exceed.
    pub hard: Option<u64>,
}
