//! What `graph` and `simulate` look at: a daemon's state, or the units of a directory alone.

use std::path::Path;

use serde_json::json;

use super::args::Global;
use super::client::Client;
use super::{Error, Exit, apply, output};
use crate::supervisor::{Source, State};

/// What the daemon knows now.
pub(super) fn live(global: &Global) -> Result<State, Error> {
    let instead = "start one, or give a directory of unit files";
    let reply = Client::connect_or(global, instead)?.call("State", json!({}))?;
    let state = reply.get("state").cloned().unwrap_or_default();
    // By its text, as it is read from disk: each way of reading is compiled for itself.
    serde_json::from_slice(state.to_string().as_bytes()).map_err(|error| {
        let message = format!("the daemon's state is not that of this opm: {error}");
        Error::new(Exit::Failed, message)
    })
}

/// The units of a source to which nothing has happened yet; mistakes are shown, and nothing else.
pub(super) fn of_source(source: &Source) -> Result<State, Error> {
    let loaded = apply::load(source)?;
    if !loaded.diagnostics.is_empty() {
        let colour = output::stderr_is_terminal();
        let text = crate::config::render(&loaded.diagnostics, &source.shown(), colour);
        output::note(text.trim_end());
    }
    Ok(State::of_specs(loaded.specs, &source.name))
}

/// The units of a directory, one file, or standard input.
pub(super) fn of_files(dir: &Path) -> Result<State, Error> {
    of_source(&apply::source(dir)?)
}
