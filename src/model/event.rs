//! All that can happen. An [`Event`] is the only way a fact reaches [`super::Observed`]; the ones
//! that must outlive a crash of the supervisor are lines of the ledger, so that replaying the
//! ledger is applying the same events again.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::name::{InstanceId, UnitName};
use super::outcome::Outcome;
use super::relations::Condition;
use super::run::{Identity, Role, RunId};
use super::socket::Bound;
use super::spec::SpecHash;
use super::time::{Monotonic, Span, Wall};

/// Why a run is being ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StopCause {
    /// The unit is to be down: held, disabled, removed, or no longer one of the instances.
    GoalDown,
    /// A restart was asked for.
    Restart,
    /// Its definition changed.
    Changed,
    /// A unit it requires is going or is gone.
    Dependency(UnitName),
    /// A unit it requires has restarted by itself, and this one follows.
    DependencyRestarted(UnitName),
    /// A unit with which it is never to be up runs too, and goes first.
    Conflict(UnitName),
    /// opm is shutting down.
    Shutdown,
    /// Its main process ended.
    MainEnded,
    /// A process before or beside the main one failed.
    HookFailed(Role),
    /// It was not ready in time.
    StartTimeout,
    /// A condition does not hold.
    ConditionUnmet(String),
    /// Its health check failed too often.
    Unhealthy,
    /// It was silent for longer than its watchdog allows.
    Watchdog,
    /// It said by its watchdog that it failed.
    Triggered,
    /// Something that it watches changed.
    Touched,
    /// Its next due time came, and its schedule says that a run does not outlast that.
    Due,
}

impl StopCause {
    /// Whether the units that require this one have to go first.
    pub fn spreads(&self) -> bool {
        match self {
            Self::GoalDown
            | Self::Restart
            | Self::Changed
            | Self::Dependency(_)
            | Self::DependencyRestarted(_)
            | Self::Conflict(_)
            | Self::Touched
            | Self::Shutdown => true,
            Self::MainEnded
            | Self::HookFailed(_)
            | Self::StartTimeout
            | Self::ConditionUnmet(_)
            | Self::Unhealthy
            | Self::Watchdog
            | Self::Triggered
            | Self::Due => false,
        }
    }

    /// Whether the run failed, or went along with one that restarts by itself.
    pub fn is_failure(&self) -> bool {
        match self {
            Self::MainEnded
            | Self::HookFailed(_)
            | Self::StartTimeout
            | Self::Unhealthy
            | Self::Watchdog
            | Self::Triggered
            | Self::DependencyRestarted(_) => true,
            Self::GoalDown
            | Self::Restart
            | Self::Changed
            | Self::Dependency(_)
            | Self::Conflict(_)
            | Self::Shutdown
            | Self::ConditionUnmet(_)
            | Self::Touched
            | Self::Due => false,
        }
    }

    /// Whether the run was watched, and did not do well: then another one follows, whatever the
    /// restart policy says of ends.
    pub fn is_watched(&self) -> bool {
        match self {
            Self::Unhealthy | Self::Watchdog | Self::Triggered => true,
            Self::GoalDown
            | Self::Restart
            | Self::Changed
            | Self::Dependency(_)
            | Self::DependencyRestarted(_)
            | Self::Conflict(_)
            | Self::Shutdown
            | Self::MainEnded
            | Self::HookFailed(_)
            | Self::StartTimeout
            | Self::ConditionUnmet(_)
            | Self::Touched
            | Self::Due => false,
        }
    }
}

impl fmt::Display for StopCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::GoalDown => f.write_str("it is to be down"),
            Self::Restart => f.write_str("a restart was asked for"),
            Self::Changed => f.write_str("its definition changed"),
            Self::Dependency(unit) => write!(f, "it requires `{unit}`, which is not up"),
            Self::DependencyRestarted(unit) => write!(f, "`{unit}`, which it requires, restarted"),
            Self::Conflict(unit) => write!(f, "it conflicts with `{unit}`, which runs"),
            Self::Shutdown => f.write_str("opm is shutting down"),
            Self::MainEnded => f.write_str("its main process ended"),
            Self::HookFailed(role) => write!(f, "its {role} failed"),
            Self::StartTimeout => f.write_str("it was not ready in time"),
            Self::ConditionUnmet(what) => write!(f, "a condition does not hold: {what}"),
            Self::Unhealthy => f.write_str("its health check failed too often"),
            Self::Touched => f.write_str("a file that it watches changed"),
            Self::Due => f.write_str("its next run is due"),
            Self::Watchdog => f.write_str("it was silent for longer than its watchdog allows"),
            Self::Triggered => f.write_str("it said by its watchdog that it failed"),
        }
    }
}

/// What a run says that it is doing, beside what is known of it. It changes no phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Doing {
    /// It reads its configuration again.
    Reloading,
    /// It is about to end.
    Stopping,
}

impl Doing {
    /// The word for it in output.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reloading => "reloading",
            Self::Stopping => "stopping",
        }
    }
}

/// What a run says on its notify socket, beside its status and that it is ready, `sd_notify(3)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Word {
    /// What it is doing; `None`: nothing beside its work.
    Does(Option<Doing>),
    /// To its watchdog that it is well. Where nobody listened for a while, that clock begins anew.
    Well,
    /// To its watchdog that it has failed.
    Failed,
    /// How long it may be silent from now on; [`Span::ZERO`] and [`Span::FOREVER`]: nobody watches.
    Silence(Span),
    /// Until when it needs more time for what it is doing: for its start, or this step of its stop.
    MoreTime(Monotonic),
    /// Which of its processes is the main one from now on.
    MainIs {
        /// That one.
        identity: Identity,
        /// The one before is [`Role::Former`] with this number.
        was: u16,
    },
}

impl Word {
    /// Whether it must outlive a crash of the supervisor.
    pub fn is_lasting(self) -> bool {
        match self {
            Self::Failed | Self::Silence(_) | Self::MoreTime(_) | Self::MainIs { .. } => true,
            Self::Does(_) | Self::Well => false,
        }
    }
}

/// How far a stop has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rung {
    /// The units that need this one are still going down.
    Dependents,
    /// A hook before the stop runs.
    PreStop(u16),
    /// This step of the unit's stop settings was taken.
    Step(u16),
    /// Everything that is left was killed.
    Kill,
    /// All processes are gone; a hook after that runs.
    PostStop(u16),
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dependents => f.write_str("waiting for units that need it"),
            Self::PreStop(n) => write!(f, "pre_stop {}", n.saturating_add(1)),
            Self::Step(n) => write!(f, "stop step {}", n.saturating_add(1)),
            Self::Kill => f.write_str("killed"),
            Self::PostStop(n) => write!(f, "post_stop {}", n.saturating_add(1)),
        }
    }
}

/// What an instance that wants to start waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocker {
    /// The unit in the way.
    pub unit: UnitName,
    /// What it has to do.
    pub until: Until,
    /// Whether nothing is under way that would make it do so.
    pub stuck: bool,
}

/// What a blocking unit has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Until {
    /// Come this far.
    Is(Condition),
    /// Go down: because of a conflict, or, of the own unit, an instance that it asks for no more.
    Down,
    /// Get a connection or a datagram.
    Connection,
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.until {
            Until::Is(condition) => write!(f, "`{}` to be {}", self.unit, condition.as_str()),
            Until::Down => write!(f, "`{}` to be down", self.unit),
            Until::Connection => write!(f, "a connection to `{}`", self.unit),
        }
    }
}

/// What follows from the end of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It is down, as it should be, or as it must be for a moment.
    Down,
    /// It is to start again.
    Backoff {
        /// Not before this time.
        until: Monotonic,
        /// How many automatic starts in a row this makes.
        attempt: u32,
    },
    /// It has failed for good.
    Failed {
        /// Whether that is because it used up its starts.
        at_limit: bool,
    },
    /// It has ended well, for good.
    Done,
    /// It was not started, because a condition does not hold.
    Skipped {
        /// Which one.
        condition: String,
    },
}

/// Something that happened to an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// To which one.
    #[serde(rename = "i")]
    pub instance: InstanceId,
    /// When.
    #[serde(rename = "t")]
    pub at: Monotonic,
    /// What.
    #[serde(rename = "e")]
    pub what: Happening,
}

/// What happened. Those with a run are about that run and are passed over when it is not current.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Happening {
    /// A run began; no process exists yet.
    Began {
        /// The new run.
        run: RunId,
        /// The epoch it serves.
        epoch: u64,
        /// Fingerprint of what was fixed at its start.
        hash: SpecHash,
        /// The wall clock, for people.
        wall: Wall,
        /// Whether restart counters begin anew.
        fresh: bool,
        /// The due time it serves, where the unit has a schedule.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        due: Option<Wall>,
    },
    /// A process was let through the gate.
    Spawned {
        /// Of this run.
        run: RunId,
        /// For this purpose.
        role: Role,
        /// Who it is.
        identity: Identity,
    },
    /// A process runs its program. In the ledger it stands before the process is let go, as from then
    /// on it may have run.
    Execed {
        /// Of this run.
        run: RunId,
        /// For this purpose.
        role: Role,
    },
    /// A process that was let go has not become its program yet: it was found so by another supervisor.
    HeldUp {
        /// Of this run.
        run: RunId,
        /// For this purpose.
        role: Role,
    },
    /// A process ended, or could not be started.
    Ended {
        /// Of this run.
        run: RunId,
        /// For this purpose.
        role: Role,
        /// How.
        outcome: Outcome,
    },
    /// The run's own readiness rule is met.
    Ready {
        /// The run.
        run: RunId,
    },
    /// The run is ready and its hooks have run.
    Up {
        /// The run.
        run: RunId,
    },
    /// The run was told to read its configuration again.
    Reloaded {
        /// The run.
        run: RunId,
    },
    /// The run is to end.
    StopBegan {
        /// The run.
        run: RunId,
        /// Why.
        cause: StopCause,
    },
    /// A stop came so far.
    Rung {
        /// Of this run.
        run: RunId,
        /// Where it stands.
        rung: Rung,
    },
    /// The run's processes were counted, apart from those whose end is still to be told.
    Tree {
        /// The run.
        run: RunId,
        /// How many live.
        left: u32,
    },
    /// What follows from the end of the run, or from a change of mind without one.
    Settled {
        /// What follows.
        verdict: Verdict,
        /// Whether opm ends with it.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        ends_opm: bool,
    },
    /// It would start, but for these.
    Waits {
        /// What is in the way.
        on: Vec<Blocker>,
        /// Whether restart counters begin anew when it starts.
        fresh: bool,
        /// Where it waits for a connection: the epoch that this serves. Another one is a wish that
        /// it starts without.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        epoch: Option<u64>,
    },
    /// A socket unit listens at all its addresses.
    Listens {
        /// Its run.
        run: RunId,
        /// Where.
        bound: Vec<Bound>,
    },
    /// Somebody has connected to a socket, or sent to it, and was not taken by anybody yet.
    Called {
        /// The socket's run.
        run: RunId,
    },
    /// Something that the run watches changed.
    Touched {
        /// The run.
        run: RunId,
    },
    /// The run said how it is doing.
    Said {
        /// The run.
        run: RunId,
        /// In these words.
        status: String,
    },
    /// The run said something else on its notify socket, or is taken to have said it.
    Word {
        /// The run.
        run: RunId,
        /// What.
        word: Word,
    },
    /// How it is is asked by another question from now on.
    AskedAnew {
        /// The run.
        run: RunId,
    },
    /// The run was found alive by the ledger and taken over.
    Adopted {
        /// The run.
        run: RunId,
    },
    /// The ledger names processes that can be neither proven nor excluded.
    Unproven {
        /// The run.
        run: RunId,
        /// Why not.
        why: String,
    },
    /// Nothing is left to be known about it.
    Forgotten,
}

impl Happening {
    /// Whether the fact must outlive a crash of the supervisor.
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Began { .. }
            | Self::Spawned { .. }
            | Self::Execed { .. }
            | Self::Ended { .. }
            | Self::Ready { .. }
            | Self::Up { .. }
            | Self::Reloaded { .. }
            | Self::StopBegan { .. }
            | Self::Rung { .. }
            | Self::Settled { .. }
            | Self::Listens { .. }
            | Self::AskedAnew { .. }
            | Self::Adopted { .. }
            | Self::Touched { .. }
            | Self::Forgotten => true,
            Self::Waits { epoch, .. } => epoch.is_some(),
            Self::Word { word, .. } => word.is_lasting(),
            Self::HeldUp { .. }
            | Self::Tree { .. }
            | Self::Called { .. }
            | Self::Said { .. }
            | Self::Unproven { .. } => false,
        }
    }
}
