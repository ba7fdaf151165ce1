//! How a unit is stopped.

use serde::{Deserialize, Serialize};

use super::process::Command;
use super::signal::Signal;
use super::time::Span;

/// How a unit is stopped: step by step, then by `SIGKILL` to all of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stop {
    /// What is tried, in order.
    pub steps: Vec<StopStep>,
}

impl Default for Stop {
    fn default() -> Self {
        Self {
            steps: vec![StopStep {
                action: StopAction::Signal(Signal::TERM, StopTo::All),
                wait: Span::seconds(10),
            }],
        }
    }
}

impl Stop {
    /// How long all its steps together wait at most; [`Span::FOREVER`] where one waits for ever.
    pub fn time(&self) -> Span {
        let nanos = self.steps.iter().map(|step| step.wait.as_nanos());
        Span::nanos(nanos.fold(0, u64::saturating_add))
    }
}

/// One thing to try.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StopStep {
    /// What is done.
    pub action: StopAction,
    /// How long it may take to work; [`Span::FOREVER`]: the next step is never taken.
    pub wait: Span,
}

/// What a stop step does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StopAction {
    /// Sends a signal.
    Signal(Signal, StopTo),
    /// Runs a command.
    Command(Command),
}

/// Who gets a stop signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StopTo {
    /// Every process of the run.
    All,
    /// The main process.
    Main,
}
