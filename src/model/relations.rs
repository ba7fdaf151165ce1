//! How a unit hangs together with others.

use serde::{Deserialize, Serialize};

use super::name::UnitName;

/// How a unit hangs together with others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct Relations {
    /// Ordered after these, and not up unless they are.
    pub requires: Vec<Dependency>,
    /// Ordered after these, and goes on without one that fails.
    pub wants: Vec<Dependency>,
    /// Ordered after these, where they are wanted anyway.
    pub after: Vec<Dependency>,
    /// Ordered before these, where they are wanted anyway.
    pub before: Vec<Dependency>,
    /// Never up at the same time as these.
    pub conflicts: Vec<UnitName>,
    /// What follows when a required unit restarted by itself.
    pub on_dependency_restart: OnDependencyRestart,
}

/// Another unit, and how far it must have come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dependency {
    /// The other unit.
    pub unit: UnitName,
    /// How far it must have come.
    pub condition: Condition,
}

/// How far a unit must have come for those that are ordered after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Condition {
    /// Its program runs.
    Started,
    /// It is ready; a task: it has completed.
    Ready,
    /// It has ended well.
    Completed,
}

impl Condition {
    /// The word for it in unit files.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Ready => "ready",
            Self::Completed => "completed",
        }
    }
}

/// What follows when a required unit restarted by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum OnDependencyRestart {
    /// Nothing.
    #[default]
    Ignore,
    /// This unit restarts too.
    Restart,
    /// This unit reloads.
    Reload,
}
