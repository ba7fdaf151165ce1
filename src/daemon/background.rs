//! A daemon in the background: a session of its own, a clean environment, and a word to whoever
//! started it once it can be reached.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::{BootFailure, Options, PassedOver};
use crate::system::{self, LockError};

/// How a start in the background went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Started {
    /// The daemon can be reached. Where its directory was not applied: why not. What was saved runs.
    Running(Option<PassedOver>),
    /// There is one already; in its own words.
    Already(String),
    /// There is none, since its units have mistakes and nothing is saved.
    BadUnits,
    /// There is none; why.
    Failed(String),
    /// We are the daemon, and it is over: the exit code.
    Over(u8),
}

/// Starts a daemon in the background. Returns in both processes: with [`Started::Over`] in the
/// daemon's own, when it is over.
pub fn start_in_background(options: Options, log_to: &std::path::Path) -> Started {
    let (mut ours, mut theirs) = match UnixStream::pair() {
        Ok(pair) => pair,
        Err(error) => return Started::Failed(error.to_string()),
    };
    match system::detach(log_to) {
        Err(error) => Started::Failed(error.to_string()),
        Ok(true) => {
            drop(ours);
            system::forget_environment(is_kept);
            Started::Over(be_daemon(options, &mut theirs))
        }
        Ok(false) => {
            drop(theirs);
            let mut word = String::new();
            match ours.read_to_string(&mut word) {
                Ok(_) => understood(word),
                Err(error) => Started::Failed(error.to_string()),
            }
        }
    }
}

/// Whether the daemon keeps a variable of its caller: by those it finds its directories again at a
/// `reexec`. Schedules, among others, are not to depend on the shell of whoever started it.
fn is_kept(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    name == b"HOME" || [&b"OPM_"[..], b"XDG_", b"RUST_"].iter().any(|begin| name.starts_with(begin))
}

/// What the daemon says of its start.
fn understood(word: String) -> Started {
    let passed_over = |text: &str, is_mistaken| {
        Started::Running(Some(PassedOver { is_mistaken, text: text.to_owned() }))
    };
    if let Some(holder) = word.strip_prefix('=') {
        return Started::Already(holder.to_owned());
    }
    if let Some(text) = word.strip_prefix("+!") {
        return passed_over(text, true);
    }
    if let Some(text) = word.strip_prefix("+-") {
        return passed_over(text, false);
    }
    match word.as_str() {
        "+" => Started::Running(None),
        "!" => Started::BadUnits,
        "" => Started::Failed("it ended without a word".to_owned()),
        _ => Started::Failed(word),
    }
}

fn be_daemon(options: Options, starter: &mut UnixStream) -> u8 {
    // Whoever started us said only what went wrong.
    log::set_max_level(log::max_level().max(log::LevelFilter::Info));
    let mut told = false;
    let result = super::run(options, &mut |passed_over| {
        told = true;
        let word = passed_over.map_or_else(
            || "+".to_owned(),
            |over| format!("{}{}", if over.is_mistaken { "+!" } else { "+-" }, over.text),
        );
        tell(starter, &word);
    });
    match result {
        Ok(code) => code,
        Err(failure) => {
            log::error!("{failure}");
            if !told {
                let word = match failure {
                    BootFailure::BadUnits => "!".to_owned(),
                    BootFailure::Lock(LockError::Held { .. }) => format!("={failure}"),
                    BootFailure::Lock(LockError::Failed(_)) | BootFailure::System(_) => {
                        failure.to_string()
                    }
                };
                tell(starter, &word);
            }
            1
        }
    }
}

fn tell(starter: &mut UnixStream, word: &str) {
    let result = starter
        .write_all(word.as_bytes())
        .and_then(|()| starter.shutdown(std::net::Shutdown::Both));
    if let Err(error) = result {
        log::debug!("whoever started us is gone: {error}");
    }
}
