//! Printing. A closed pipe is no error: whoever read it has seen enough.

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::sync::{PoisonError, RwLock};

use serde::Serialize;

use super::{Error, Exit};

/// Writes bytes to standard output.
pub(super) fn raw(bytes: &[u8]) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        // Quietly done: the message is empty.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Error::new(Exit::Done, "")),
        Err(error) => Err(Error::new(Exit::Failed, format!("cannot print: {error}"))),
    }
}

/// Writes a line to standard output.
pub(super) fn line(text: &str) -> Result<(), Error> {
    raw(format!("{text}\n").as_bytes())
}

/// Of which of several hosts the output is.
static OF_HOST: RwLock<Option<String>> = RwLock::new(None);

/// What is printed as JSON from now on is one host's among several, and names it.
pub(super) fn name_host(host: &str) {
    *OF_HOST.write().unwrap_or_else(PoisonError::into_inner) = Some(host.to_owned());
}

/// Writes a value as JSON.
pub(super) fn json<T: Serialize>(value: &T) -> Result<(), Error> {
    let host = OF_HOST.read().unwrap_or_else(PoisonError::into_inner);
    let text = match host.as_ref() {
        Some(host) => serde_json::to_string_pretty(&OfHost { host, value }),
        None => serde_json::to_string_pretty(value),
    };
    let text = text.map_err(|error| Error::new(Exit::Failed, format!("cannot print: {error}")))?;
    line(&text)
}

/// What one of several hosts says.
#[derive(Serialize)]
struct OfHost<'a, T> {
    host: &'a str,
    value: &'a T,
}

/// Writes an error message to standard error.
pub(super) fn error(message: &str) {
    note(&format!("opm: {message}"));
}

/// Writes a line to standard error.
pub(super) fn note(message: &str) {
    if let Err(error) = writeln!(io::stderr(), "{message}") {
        log::trace!("nobody reads our messages: {error}");
    }
}

/// Whether people look at standard output.
pub(super) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Whether people look at standard error.
pub(super) fn stderr_is_terminal() -> bool {
    io::stderr().is_terminal()
}

/// Text with control characters made visible: what a unit says about itself is not to move a
/// cursor.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Rows in columns as wide as their widest cell; the last one is as long as it is.
pub(super) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let head: Vec<String> = head.iter().map(|cell| (*cell).to_owned()).collect();
    for row in [&head].into_iter().chain(rows) {
        let mut line = String::new();
        for (place, (width, cell)) in widths.iter().zip(row).enumerate() {
            if place > 0 {
                line.push_str("  ");
            }
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width.saturating_sub(cell.chars().count())));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}
