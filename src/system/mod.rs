//! The seam to the outside. [`System`] is some three dozen verbs at the supervisor's height;
//! [`Linux`] is the real one. Nothing here decides what should be done, or why.
//!
//! All `unsafe` of opm is on this floor, in `child.rs`, `raw.rs`, `spawn.rs`, `stacks.rs` and `sys.rs`.

mod accounts;
mod alarm;
pub mod answer;
mod archive;
mod child;
mod descriptors;
mod dirs;
mod disk;
mod env;
pub mod fifo;
mod file_waits;
mod inotify;
pub mod instruction;
mod later;
mod launch;
mod ledger;
mod linux;
mod memory;
pub mod messages;
mod notify;
mod paths;
pub(crate) mod places;
mod process;
mod program;
mod raw;
pub mod run_mark;
mod seal;
mod sink;
mod sockets;
mod spawn;
mod stacks;
mod store;
mod sys;
mod tree;

use std::fmt;
use std::sync::Arc;

pub use archive::{Archive, RECORDS_MAX};
pub use dirs::{Dirs, LockError};
pub use disk::{Disk, Files};
pub use env::{Environment, is_handed_over};
pub use ledger::{Ledger, Replay, compact_text, replay_text};
pub use linux::{Linux, Options};
pub use memory::{LET_GO_AFTER, become_lean, give_back_memory, keep_memory_small};
pub use notify::{NotifyMessage, Ping, parse_notify};
pub use process::{Stat, first_process_began, parse_stat};
pub use sink::{Sink, Write as Written};
pub use store::{Loaded, Store, decode as decode_saved, encode as encode_saved};
pub use sys::{
    be_in_background, become_subreaper, bytes_queued, close_on_exec_from, detach, exec_again,
    forget_environment, has_children, host_name, inherited_listener, is_asked_to_end, is_file,
    isatty, limit_of_descriptors, limits, lower_descriptor_limit, monotonic_now, mount_dev,
    mount_proc, own_uid, pause, peer_credentials, raise_descriptor_limit, set_inheritable,
    survive_large_files, take_usual_umask, wall_now,
};

use jiff::tz::TimeZone;

use crate::model::{
    Agenda, Bound, Desired, Event, Identity, InstanceId, Monotonic, Observed, Record, Revision,
    Role, RunId, Signal, Sources, Spec, StartError, Wall,
};

/// What the kernel, the disk or the state directory refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemError {
    /// What was being done, as in "cannot …".
    pub doing: &'static str,
    /// To what.
    pub subject: String,
    /// The reason, in words.
    pub reason: String,
}

impl SystemError {
    /// An error with a reason that the system gave.
    pub fn new(doing: &'static str, subject: impl fmt::Display, reason: impl fmt::Display) -> Self {
        Self { doing, subject: subject.to_string(), reason: plain(&reason.to_string()) }
    }
}

impl fmt::Display for SystemError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {} `{}`: {}", self.doing, self.subject, self.reason)
    }
}

impl std::error::Error for SystemError {}

/// The words of a system error without the number that Rust adds.
pub fn plain(text: &str) -> String {
    let text = text.split(" (os error ").next().unwrap_or(text);
    let mut chars = text.chars();
    match chars.next() {
        Some(first) if text.chars().nth(1).is_some_and(char::is_lowercase) => {
            first.to_lowercase().chain(chars).collect()
        }
        _ => text.to_owned(),
    }
}

/// The words for an errno.
pub fn errno_words(errno: i32) -> String {
    plain(&std::io::Error::from_raw_os_error(errno).to_string())
}

/// A process to be made.
#[derive(Debug, Clone)]
pub struct Launch {
    /// For which instance.
    pub instance: InstanceId,
    /// The instance's place in its unit's list, from 1.
    pub index: u32,
    /// For which run.
    pub run: RunId,
    /// For what in that run.
    pub role: Role,
    /// The unit.
    pub spec: Arc<Spec>,
}

/// A run as its processes are found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunRef {
    /// Whose run.
    pub instance: InstanceId,
    /// Which one.
    pub run: RunId,
    /// The processes with a role, living or not: each leads a session of its own.
    pub leaders: Vec<(Role, Identity)>,
    /// Whether it was taken over from an earlier supervisor.
    pub adopted: bool,
}

/// A socket unit that is to listen.
pub struct Listening<'a> {
    /// Its instance.
    pub instance: &'a InstanceId,
    /// Its run.
    pub run: RunId,
    /// The unit.
    pub spec: &'a Spec,
    /// Where an earlier supervisor listened for this run.
    pub before: &'a [Bound],
    /// The runs that may have those sockets still.
    pub holders: &'a [RunRef],
    /// Whether a socket unit is about to close what it has, or some of it: an address that it listens at may
    /// be taken over.
    pub leaves: &'a dyn Fn(&InstanceId) -> bool,
}

impl fmt::Debug for Listening<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { instance, run, spec, before, holders, leaves: _ } = self;
        f.debug_tuple("Listening").field(&(instance, run, &spec.name, before, holders)).finish()
    }
}

/// What is known of a process that the ledger names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proof {
    /// It lives, and its end will be told.
    Alive,
    /// It is gone.
    Dead,
    /// It can be neither proven nor excluded.
    Unknown(String),
}

/// What the supervisor asks of the world. Every fact reaches it through these or as an [`Event`].
pub trait System {
    /// The monotonic clock.
    fn now(&self) -> Monotonic;

    /// The wall clock.
    fn wall(&self) -> Wall;

    /// A clock that never steps and counts the time that the machine sleeps.
    fn steady(&self) -> Monotonic;

    /// The name of this boot of the machine.
    fn boot(&self) -> String;

    /// The time zone of this name, or the system's own; UTC where there is no such.
    fn zone(&self, name: Option<&str>) -> TimeZone;

    /// Brings about a turn when the wall clock comes to this time, or is set; instead of the time
    /// before.
    fn set_alarm(&mut self, at: Option<Wall>);

    /// A number nobody can guess, never the same.
    fn random(&mut self) -> u64;

    /// Whether the conditions of a unit hold that need no command; else which does not.
    fn conditions(&mut self, id: &InstanceId, index: u32, spec: &Spec) -> Result<(), String>;

    /// Whether a process may be made now, and so many others that were promised room. If not, others
    /// that are on their way up hold what it would need: the exec or the end of one of them is an
    /// event, and then is the time to ask again.
    fn has_room(&mut self, promised: usize) -> bool {
        let _ = promised;
        true
    }

    /// Makes one process: it is in the ledger before it runs its program. `at` stamps the entry.
    /// The events of its later life come from the system's loop.
    fn spawn(&mut self, launch: &Launch, at: Monotonic) -> Result<Identity, StartError>;

    /// Sends a signal to one process; one that is gone is no error.
    fn signal(&mut self, process: &Identity, signal: Signal) -> Result<(), SystemError>;

    /// Kills a process that leads a group, with the group; one that is gone is no error.
    fn kill_group(&mut self, leader: &Identity) -> Result<(), SystemError>;

    /// Sends a signal to every process of a run. Returns to how many.
    fn signal_tree(&mut self, run: &RunRef, signal: Signal) -> u32;

    /// Kills every process of a run, those included that are born meanwhile.
    fn kill_tree(&mut self, run: &RunRef);

    /// Counts the processes of a run that have no role, and tells by an event when that changes.
    fn watch_tree(&mut self, run: &RunRef) -> u32;

    /// Lets go of everything that was kept for a run: it is over. `idle`: no other is to follow
    /// soon, so that what the instance keeps over its runs can go too.
    fn release(&mut self, instance: &InstanceId, run: RunId, idle: bool);

    /// Lets go of everything that was kept for an instance: it is forgotten; and of what was kept for
    /// its unit, where that `is_gone` too.
    fn forget(&mut self, instance: &InstanceId, is_gone: bool);

    /// Listens at all addresses of a socket unit, or at none that it did not listen at before: what the
    /// instance has open and still names stays open as it is, and the rest is closed. A process that
    /// is made later for the unit's service gets the sockets. Returns where it listens, in the order
    /// of the unit.
    fn listen(&mut self, listening: &Listening<'_>) -> Result<Vec<Bound>, StartError>;

    /// Closes the sockets of an instance.
    fn close_sockets(&mut self, instance: &InstanceId);

    /// Tells by an event, once, when somebody has connected to a socket of an instance and was not
    /// taken; or does so no more.
    fn watch_sockets(&mut self, instance: &InstanceId, watch: bool);

    /// Tells by events when something changes that a run watches: what its spec says now, and nothing
    /// else.
    fn watch_paths(&mut self, launch: &Launch);

    /// Tells the log keeper how to treat the instances' output from now on.
    fn instruct(&mut self, id: &InstanceId, index: u32, spec: &Spec) -> Result<(), SystemError>;

    /// Whether a process that the ledger names lives; if so, its end will be told.
    fn adopt(&mut self, launch: &Launch, process: &Identity) -> Proof;

    /// Whether a process that was adopted has become its program; where it has not, that it has will be told.
    fn has_execed(&mut self, _launch: &Launch, _process: &Identity) -> bool {
        true
    }

    /// For a run of an earlier supervisor whose main process is not known yet: its pid file counts
    /// from now on, and what it named while nobody looked. `first`: the process that was made.
    fn await_main(&mut self, _launch: &Launch, _first: &Identity) {}

    /// What a run has said and nobody has taken yet.
    fn hear(&mut self, _run: RunId) -> Vec<Event> {
        Vec::new()
    }

    /// Notes an event for the ledger; it is written with the next one that must be there first.
    fn note(&mut self, event: &Event);

    /// Writes what was noted.
    fn flush(&mut self) -> Result<(), SystemError>;

    /// The facts as the ledger has them, with what was noted and is not written yet: what a cycle
    /// that broke off has really done. `None` where the ledger cannot tell.
    fn recall(&mut self) -> Option<Replay>;

    /// Replaces the ledger by these facts, if it has grown so much that this pays.
    fn compact(&mut self, observed: &Observed, always: bool) -> Result<(), SystemError>;

    /// Whether the ledger or the saved state, which is of this generation, was removed, or the latter
    /// may be another than the one in force.
    fn has_lost(&self, generation: u64) -> bool;

    /// The saved state is not the one in force any more: it is as if it were lost.
    fn doubt_saved(&mut self);

    /// Writes those of the two again that are lost.
    fn put_back(&mut self, desired: &Desired, observed: &Observed) -> Result<(), SystemError>;

    /// Saves the desired state so that it survives power loss.
    fn save(&mut self, desired: &Desired) -> Result<(), SystemError>;

    /// Keeps a record of what is applied, and what sources said with it, so that they survive power
    /// loss; what is pinned is not removed for its age.
    fn keep(
        &mut self,
        record: &Record,
        revisions: &[Revision],
        pinned: Option<&Sources>,
    ) -> Result<(), SystemError>;

    /// The records from the latest back, and what was wrong with the first that cannot be read.
    fn records(&self, latest: u64) -> (Vec<Record>, Option<SystemError>);

    /// What a source said when it was applied at a generation.
    fn revision(&self, source: &str, generation: u64) -> Result<Revision, SystemError>;

    /// Saves the due times of schedules so that they survive power loss.
    fn save_agenda(&mut self, agenda: &Agenda) -> Result<(), SystemError>;
}
