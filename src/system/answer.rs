//! What the log keeper says on a FIFO when the line has come by which a run is ready: the run's number, or,
//! where it did not see the run begin, since when it looks.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::OwnedFd;

use crate::model::{Monotonic, RunId};

/// Before the time, in milliseconds of the monotonic clock, since when it looks.
const ANY: &str = "any ";

/// The answer for a run whose number is known, as a mark has it.
pub fn of_run(run: &str) -> String {
    format!("{run}\n")
}

/// The answer for whatever run has written the line, by a keeper that looks since a time, in milliseconds
/// of the monotonic clock.
pub fn since(millis: u64) -> String {
    format!("{ANY}{millis}\n")
}

/// Bytes that are read of what it says at once: what a pipe holds, and no more where somebody else writes
/// on, as units without another user can.
const READ_BYTES_MAX: u64 = 64 * 1024;

/// Whether the log keeper has said that this run is ready; what it said of others is passed over. A keeper
/// that does not know the number is believed where it looks only since the run has begun, or where that
/// is not known: before that it heard another run.
pub(super) fn came(fifo: &OwnedFd, run: RunId, began: Option<Monotonic>) -> bool {
    let Ok(fd) = fifo.try_clone() else { return false };
    let mut file = File::from(fd).take(READ_BYTES_MAX);
    let mut text = Vec::new();
    // It ends with an error, as there is always a writer: ourselves.
    if let Err(error) = file.read_to_end(&mut text)
        && error.kind() != ErrorKind::WouldBlock
    {
        log::error!("cannot read what the log keeper says: {error}");
    }
    let own = run.to_string();
    let is_heard = |since: &str| {
        let since = since.parse().unwrap_or(0);
        began.is_none_or(|began| began.as_nanos() / 1_000_000 <= since)
    };
    String::from_utf8_lossy(&text)
        .lines()
        .any(|line| line == own || line.strip_prefix(ANY).is_some_and(is_heard))
}
