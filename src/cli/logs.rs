//! `logs`: what units wrote. Reads the files, so that it works with no daemon.

use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;

use nix::poll::PollTimeout;
use serde_json::json;

use super::args::{Global, Logs};
use super::client::dirs;
use super::{Error, Exit, Outcome};
use crate::logs::{self, LogsError, Query, Record};
use crate::system::{self, Dirs};

/// How often, and how long each time, a message waits for a unit's last words.
const KEEPER_WAITS_MAX: usize = 20;
const KEEPER_WAIT_MILLIS: u8 = 10;

/// `opm logs`.
pub(super) fn logs(global: &Global, args: &Logs) -> Outcome {
    let dirs = dirs(global).where_found();
    let query = Query {
        dir: dirs.logs.clone(),
        instances: args.units.clone(),
        lines: args.lines,
        follow: args.follow,
    };
    if let Some(unknown) = args.units.iter().find(|name| !args.follow && !is_known(&dirs, name)) {
        let message = format!("no log of `{unknown}` in {}", dirs.logs.display());
        return Err(Error::new(Exit::Refused, message));
    }
    let stdout = io::stdout();
    let mut out = io::BufWriter::new(stdout.lock());
    let mut each = |record: Record| {
        write(&mut out, &record, global.json, args.raw)?;
        if args.follow { out.flush() } else { Ok(()) }
    };
    let result = logs::read(&query, Some(stdout.as_fd()), &mut each);
    let flushed = out.flush();
    match result {
        Ok(()) => match flushed {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(failed(&error)),
            _ => Ok(Exit::Done),
        },
        Err(LogsError::Output(error)) if error.kind() == ErrorKind::BrokenPipe => Ok(Exit::Done),
        Err(LogsError::Read { error, .. }) if error.kind() == ErrorKind::NotFound => {
            let message = format!("there are no logs in {}", dirs.logs.display());
            Err(Error::new(Exit::Failed, message))
        }
        Err(error) => Err(failed(&error)),
    }
}

fn failed(error: &dyn std::fmt::Display) -> Error {
    Error::new(Exit::Failed, error)
}

/// Whether there is a log of an instance, or of any instance of a unit.
fn is_known(dirs: &Dirs, name: &str) -> bool {
    let Ok(entries) = std::fs::read_dir(&dirs.logs) else { return true };
    entries.flatten().any(|entry| {
        let found = entry.file_name();
        let found = found.to_string_lossy();
        found.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('@'))
    })
}

fn write(out: &mut dyn Write, record: &Record, json: bool, raw: bool) -> io::Result<()> {
    if json {
        let line = json!({
            "time": record.time, "instance": record.instance, "stream": record.stream,
            "partial": record.partial, "line": String::from_utf8_lossy(&record.bytes),
        });
        return writeln!(out, "{line}");
    }
    if !raw {
        write!(out, "{} {} | ", record.time, record.instance)?;
    }
    out.write_all(&record.bytes)?;
    // As they were written: the parts of a long line are one line again.
    if raw && record.partial { Ok(()) } else { out.write_all(b"\n") }
}

/// The last lines of an instance's log, for a message about its failure. What the unit wrote before
/// it ended may still be on its way through the log keeper: waits for it, but not for long.
pub(super) fn last_lines(dirs: &Dirs, instance: &str, lines: usize) -> Vec<String> {
    let fifo = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(dirs.fifos().join(format!("{instance}.fifo")));
    for _ in 0..KEEPER_WAITS_MAX {
        let found = logs::last_lines(&dirs.logs, instance, lines);
        let under_way = fifo.as_ref().is_ok_and(|fifo| system::bytes_queued(fifo.as_fd()) > 0);
        if !under_way && (!found.is_empty() || fifo.is_err()) {
            let texts = found.iter().map(|record| String::from_utf8_lossy(&record.bytes));
            return texts.map(std::borrow::Cow::into_owned).collect();
        }
        if let Err(errno) = nix::poll::poll(&mut [], PollTimeout::from(KEEPER_WAIT_MILLIS)) {
            log::debug!("interrupted: {errno}");
        }
    }
    Vec::new()
}
