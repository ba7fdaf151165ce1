//! The nouns of opm. Everything else is about these; read this first.
//!
//! A **unit** is what one YAML document declares; its parsed form is a [`Spec`]. An **instance**
//! ([`InstanceId`]) is what runs: `web`, or `web@eu` where a unit asks for several. What is wanted
//! of all of them is [`Desired`]; what is known of them is [`Observed`]. One life of an instance's
//! processes is a **run**. When a task with a [`Schedule`] runs next is in the [`Agenda`]; what was
//! applied before is a [`Record`].
//!
//! An instance is always in one [`Phase`]:
//!
//! ```text
//!             begin                 ready, hooks done
//!   Down ───────────────► Starting ───────────────► Up
//!    ▲  Waiting (for what)   │                       │
//!    │                       │ asked to stop, main process ended, hook failed, too slow
//!    │ settle                ▼                       ▼
//!    ├──────────────────── Stopping: dependents → pre_stop → steps → kill → post_stop
//!    │ settle                                                 (only when the tree is empty)
//!    ├─► Backoff (until) ──► begin
//!    ├─► Failed, Done, Skipped: stay until asked, changed, or recovered
//!    └─  Unproven: the ledger names processes that can be neither proven nor excluded; held
//! ```
//!
//! - A run exists exactly in `Starting`, `Up`, `Stopping` and `Unproven`. It is over only when all
//!   its processes are gone, and only then can the next one begin.
//! - Facts change by an [`Event`] through [`Observed::apply`] and by nothing else. What is due is a
//!   [`Step`]; carrying it out changes no fact until its result comes back as an event.
//! - Nothing on this floor reads a clock, a file, the environment or a random number.

mod agenda;
mod desired;
mod event;
mod gather;
mod graph;
mod history;
mod logs;
mod name;
mod observed;
mod outcome;
mod path;
mod probe;
mod process;
mod relations;
mod restart;
mod run;
mod schedule;
mod shared;
mod signal;
mod socket;
mod spec;
mod step;
mod stop;
mod template;
mod time;
mod watch;

pub use agenda::{Agenda, Due, Entry};
pub use desired::{Automatic, Desired, Gone, Hold, InstanceWish, Unit};
pub use event::{Blocker, Doing, Event, Happening, Rung, StopCause, Until, Verdict, Word};
pub use gather::Gather;
pub use graph::{DEFAULT_TARGET, Graph, Need, Node, StopStage, Strength, find_loop, needs_of};
pub use history::{Author, Cause, KeptFile, MESSAGE_BYTES_MAX, Record, Revision, Sources, Trial};
pub use logs::{
    FACILITIES, LogFormat, LogRate, LogTarget, Logs, NoSyslogAddress, Syslog, SyslogAddress,
    SyslogForm,
};
pub use name::{InstanceId, NAME_BYTES_MAX, NameError, UnitName};
pub use observed::{Instance, Observed, Phase};
pub use outcome::{EXIT_NEVER_STARTED, ExitMatch, Outcome, Stage, StartError};
pub use path::FilePath;
pub use probe::{
    Health, HealthAction, PROBE_NO, PROBE_NOT_HTTP, PROBE_STATUS, Probe, Question, RETRIES_MAX,
};
pub use process::{
    Command, EnvFile, InheritEnv, Limit, Output, ProcessSpec, Ready, Resource, Stdin,
};
pub use relations::{Condition, Dependency, OnDependencyRestart, Relations};
pub use restart::{AtLimit, Restart, RestartPolicy, StartLimit};
pub use run::{Asked, End, Identity, Life, Process, Role, Run, RunId, STATUS_BYTES_MAX, Words};
pub use schedule::{Calendar, Cron, EVERY_MIN, Overlap, Schedule, ScheduleError, When};
pub use shared::Shared;
pub use signal::Signal;
pub use socket::{Accept, Address, Bound, LISTEN_MAX, Listen, SOCKET_PATH_MAX, Socket, UNIX_MODE};
pub use spec::{
    Conditions, EndAction, Hook, Hooks, INSTANCES_MAX, Instances, Kind, Reload, Spec, SpecHash,
};
pub use step::{Action, Reason, Step};
pub use stop::{Stop, StopAction, StopStep, StopTo};
pub use template::{Template, TemplateError, Variable};
pub use time::{Monotonic, Span, SpanError, Wall};
pub use watch::{Watch, WatchAction};
