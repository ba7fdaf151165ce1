//! All that can be done. A [`Step`] is what `reconcile` returns: an action and its typed reason.

use std::fmt;

use super::event::{Blocker, Rung, StopCause, Verdict};
use super::name::{InstanceId, UnitName};
use super::outcome::Outcome;
use super::run::{Role, RunId};

/// Something that is due for an instance, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// For which one.
    pub instance: InstanceId,
    /// What.
    pub action: Action,
    /// Why.
    pub reason: Reason,
}

/// What is to be done. Carrying it out changes nothing that is known until the result comes back
/// as an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Begin a run.
    Begin {
        /// Whether restart counters begin anew.
        fresh: bool,
    },
    /// Make a process of the run.
    Spawn(RunId, Role),
    /// Note that the run is ready.
    MarkReady(RunId),
    /// Note that the run is up.
    MarkUp(RunId),
    /// Send the reload signal to the main process.
    ReloadSignal(RunId),
    /// Decide to end the run. A wish: it spreads through the graph before anything is signalled.
    StopBegin(RunId, StopCause),
    /// Take this rung of the stop: its signal, its command, or nothing but the note.
    Climb(RunId, Rung),
    /// Kill what is left of a helper that overran its time.
    KillHelper(RunId, Role),
    /// Count the run's processes, and tell when none is left.
    WatchTree(RunId),
    /// Note what follows from the end of the run.
    Settle(Verdict),
    /// Note what is in the way of a start.
    Wait {
        /// What is in the way.
        on: Vec<Blocker>,
        /// Whether restart counters begin anew when it starts.
        fresh: bool,
    },
    /// Work out when the instance is due by its schedule.
    Enrol,
    /// Pass over a due time.
    PassOver,
    /// Note that a due time came while it ran, and that it is to run once more.
    Queue,
    /// Forget the instance.
    Forget,
    /// Start this unit, as the spec of another one says.
    StartUnit(UnitName),
    /// Shut opm down, because this unit ended; with this exit code.
    Shutdown(u8),
}

impl Action {
    /// Whether this is a wish, to be spread before anything is acted on.
    pub fn is_wish(&self) -> bool {
        matches!(self, Self::StopBegin(..))
    }
}

/// Why something is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// It is declared to be up, and is not.
    Wanted,
    /// It was asked for by hand.
    Asked,
    /// Its definition changed.
    Changed,
    /// A wait before a restart is over.
    BackoffOver,
    /// Another unit came to its end, and says so.
    Follows,
    /// A unit it requires has recovered.
    Recovered(UnitName),
    /// What it needs is there; the run goes its way.
    Next,
    /// What is in the way changed.
    Blocked,
    /// The stop has this cause.
    Stop(StopCause),
    /// A step of the stop did not work in time.
    StopTimedOut,
    /// The part of a shutdown's time that this stage may use is over.
    ShareSpent,
    /// The whole shutdown has no time left.
    BudgetSpent,
    /// A process ended like this.
    Ended(Option<Outcome>),
    /// The unit is to be down.
    GoalDown,
    /// The unit is gone from the desired state.
    Removed,
    /// A required unit restarted.
    DependencyRestarted(UnitName),
    /// The unit's limit of starts is used up.
    Limit,
    /// Something that it watches changed.
    Touched,
    /// It is due by its schedule.
    Due,
    /// It was due by its schedule while opm or the machine was not there.
    Missed,
    /// It is due by its schedule, and its last run goes on.
    StillRuns,
}

impl Reason {
    /// Whether a stop is cut short: the unit's own time for it was longer.
    pub fn is_cut(&self) -> bool {
        matches!(self, Self::ShareSpent | Self::BudgetSpent)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wanted => f.write_str("it is wanted"),
            Self::Asked => f.write_str("asked for by hand"),
            Self::Follows => f.write_str("the end of another unit starts it"),
            Self::Changed => f.write_str("its definition changed"),
            Self::BackoffOver => f.write_str("restart"),
            Self::Recovered(unit) => write!(f, "`{unit}` has recovered"),
            Self::Next => f.write_str("next in its start"),
            Self::Blocked => f.write_str("it cannot start yet"),
            Self::Stop(cause) => cause.fmt(f),
            Self::StopTimedOut => f.write_str("it did not stop in time"),
            Self::ShareSpent => f.write_str("its part of the time for shutting down is used up"),
            Self::BudgetSpent => f.write_str("the time for shutting down is used up"),
            Self::Ended(Some(outcome)) => outcome.fmt(f),
            Self::Ended(None) => f.write_str("it ended"),
            Self::GoalDown => f.write_str("it is to be down"),
            Self::Removed => f.write_str("it was removed"),
            Self::DependencyRestarted(unit) => write!(f, "`{unit}` restarted"),
            Self::Limit => f.write_str("it used up its starts"),
            Self::Touched => f.write_str("a file that it watches changed"),
            Self::Due => f.write_str("it is due"),
            Self::Missed => f.write_str("it was due while nobody was there to start it"),
            Self::StillRuns => f.write_str("it is due, and its last run goes on"),
        }
    }
}
