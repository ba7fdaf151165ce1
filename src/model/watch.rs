//! Files whose change restarts or reloads a service.

use serde::{Deserialize, Serialize};

use super::template::Template;
use super::time::Span;

/// What is watched while a service is up, and what follows from a change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Watch {
    /// Files, and directories with all that is below them; never empty.
    pub paths: Vec<Template>,
    /// How long it must be quiet after a change.
    pub debounce: Span,
    /// What follows.
    pub action: WatchAction,
}

/// What follows from a change of a watched file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WatchAction {
    /// The service is restarted.
    Restart,
    /// It is told to read its configuration again.
    Reload,
}
