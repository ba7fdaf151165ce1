//! When and how a unit is started again.

use serde::{Deserialize, Serialize};

use super::name::UnitName;
use super::time::Span;

/// When and how a unit is started again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Restart {
    /// Which ends lead to another run.
    pub policy: RestartPolicy,
    /// The wait before the first restart.
    pub delay: Span,
    /// By how much each further wait grows.
    pub factor: f64,
    /// The longest wait.
    pub max_delay: Span,
    /// Which part of the wait is left to chance, 0 to 1.
    pub jitter: f64,
    /// So long ready counts as stable: waits begin anew.
    pub reset_after: Span,
    /// How many starts are too many.
    pub limit: Option<StartLimit>,
    /// What follows at the limit.
    pub at_limit: AtLimit,
}

impl Default for Restart {
    fn default() -> Self {
        Self {
            policy: RestartPolicy::OnFailure,
            delay: Span::millis(200),
            factor: 2.0,
            max_delay: Span::seconds(30),
            jitter: 0.1,
            reset_after: Span::seconds(10),
            limit: None,
            at_limit: AtLimit::Fail,
        }
    }
}

/// Which ends of a run lead to another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// All.
    Always,
    /// Those that are no success.
    OnFailure,
    /// None.
    Never,
}

impl RestartPolicy {
    /// The word for it in unit files.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::OnFailure => "on-failure",
            Self::Never => "never",
        }
    }
}

/// So many starts in so long a time are too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartLimit {
    /// The most starts, at most [`StartLimit::STARTS_MAX`].
    pub starts: u32,
    /// In this time.
    pub within: Span,
}

impl StartLimit {
    /// The most starts that are remembered for one instance.
    pub const STARTS_MAX: u32 = 100;
}

/// What follows when a unit has used up its starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AtLimit {
    /// The unit has failed.
    Fail,
    /// The unit has failed, and opm shuts down.
    Shutdown,
    /// The unit has failed, and this one is started.
    Start(UnitName),
}
