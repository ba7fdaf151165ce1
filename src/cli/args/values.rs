//! What an argument may say, read from text. An error says what would be right.

use crate::config;
use crate::model::{Signal, Span};

/// A signal by its name or number.
pub(super) fn signal(text: &str) -> Result<Signal, String> {
    Signal::parse(text).ok_or_else(|| {
        let near = config::nearest_signal(text);
        let meant = near.map_or_else(String::new, |name| format!("; did you mean `{name}`?"));
        format!("no such signal; write it as `TERM`, `SIGTERM`, `15` or `RTMIN+3`{meant}")
    })
}

/// A duration with a unit.
pub(super) fn span(text: &str) -> Result<Span, String> {
    Span::parse(text).map_err(|error| error.to_string())
}

/// When a hold ends.
#[derive(Debug, Clone, Copy)]
pub(in crate::cli) enum Until {
    /// After so long a time.
    After(Span),
    /// At this time.
    At(jiff::Timestamp),
}

/// When a hold ends: after a time, or at one.
pub(super) fn until(text: &str) -> Result<Until, String> {
    if let Ok(time) = text.parse() {
        return Ok(Until::At(time));
    }
    span(text).map(Until::After).map_err(|_| {
        "neither a duration as `2h` nor a time with its zone as `2026-03-29T06:00:00Z`".to_owned()
    })
}

/// A number of bytes, as in unit files.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let size = config::parse_size(text);
    size.ok_or_else(|| "write it as `512M`, `10G` (of 1024) or `10GB` (of 1000)".to_owned())
}
