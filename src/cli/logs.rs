//! `logs`: what units wrote. Reads the files, so that it works with no daemon.

use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use nix::poll::PollTimeout;
use serde_json::json;

use super::args::{Global, LogOutput, Logs, Stream};
use super::client::{Client, dirs_found, rows};
use super::{Error, Exit, Outcome, output, query, when};
use crate::keeper::colour_of;
use crate::logs::{self, LogsError, Pattern, Query, Record, Select, Which, Whose};
use crate::system::{self, Dirs};

/// How often a message looks for a unit's last words while there is something for the log keeper to read,
/// how often once there is nothing, and how long it waits each time.
const KEEPER_LOOKS_MAX: usize = 200;
const KEEPER_LOOKS_AT_END_MAX: usize = 20;
const KEEPER_WAIT_MILLIS: u8 = 10;

/// `opm logs`.
pub(super) fn logs(global: &Global, args: &Logs) -> Outcome {
    let dirs = dirs_found(global);
    let query = Query {
        dir: dirs.logs.clone(),
        instances: instances(global, args)?,
        lines: args.lines,
        follow: args.follow,
        select: Arc::new(select(args)?),
        run: args.run.as_deref().map(run).transpose()?,
        names_runs: global.json || args.form.output == Some(LogOutput::Json),
    };
    let unknown: Vec<&str> =
        args.units.iter().map(String::as_str).filter(|name| !is_known(&dirs, name)).collect();
    let no_log = (!unknown.is_empty())
        .then(|| format!("no log of `{}` in {}", unknown.join("`, `"), dirs.logs.display()));
    if let Some(message) = no_log.as_ref().filter(|_| args.follow) {
        output::error(&format!("{message}; waiting for one"));
    }
    let form = Form {
        output: match args.form.output {
            Some(output) => output,
            None if global.json => LogOutput::Json,
            None if args.form.raw => LogOutput::Cat,
            None => LogOutput::Iso,
        },
        zone: TimeZone::system(),
        colour: output::is_terminal(),
    };
    let stdout = io::stdout();
    let mut out = io::BufWriter::new(stdout.lock());
    let mut each = |record: Record| {
        form.write(&mut out, &record)?;
        if args.follow { out.flush() } else { Ok(()) }
    };
    let result = logs::read(&query, Some(stdout.as_fd()), &mut each);
    let flushed = out.flush();
    match result {
        Ok(()) => match flushed {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(failed(&error)),
            // After what there is of the others.
            _ => no_log.map_or(Ok(Exit::Done), |message| Err(Error::new(Exit::Refused, message))),
        },
        Err(LogsError::Output(error)) if error.kind() == ErrorKind::BrokenPipe => Ok(Exit::Done),
        Err(LogsError::Read { error, .. }) if error.kind() == ErrorKind::NotFound => {
            let message = format!("there are no logs in {}", dirs.logs.display());
            Err(Error::new(Exit::Failed, message))
        }
        Err(error) => Err(failed(&error)),
    }
}

/// The instances that are asked for by name and by label; none: all.
fn instances(global: &Global, args: &Logs) -> Result<Vec<String>, Error> {
    if args.label.is_empty() {
        return Ok(args.units.clone());
    }
    let instead = "labels are known to it alone: name the units instead";
    let mut client = Client::connect_or(global, instead)?;
    let parameters = json!({ "units": args.units, "internal": false });
    let mut rows = rows(&client.call("List", parameters)?);
    query::retain_labelled(&mut rows, &args.label)?;
    if rows.is_empty() {
        let labels = args.label.join("`, `");
        return Err(Error::new(Exit::Refused, format!("no unit has the label `{labels}`")));
    }
    Ok(rows.into_iter().map(|row| row.instance).collect())
}

/// What the options say about records.
fn select(args: &Logs) -> Result<Select, Error> {
    let now = Timestamp::now();
    let zone = TimeZone::system();
    let time = |option: &str, text: &Option<String>| {
        let text = text.as_ref().map(|text| when::parse(text, now, &zone));
        text.transpose().map_err(|why| Error::new(Exit::Bad, format!("cannot use {option}: {why}")))
    };
    let grep = args.grep.as_ref().map(|text| Pattern::parse(text, args.ignore_case));
    let grep = grep.transpose().map_err(|why| {
        let text = args.grep.as_deref().unwrap_or_default();
        Error::new(Exit::Bad, format!("cannot use --grep `{text}`: {why}"))
    })?;
    let whose = match args.form.stream {
        None if args.form.gaps => Whose::Gaps,
        None => Whose::All,
        Some(Stream::Stdout) => Whose::Unit,
        Some(Stream::Opm) => Whose::Opm,
    };
    let (since, until) = (time("--since", &args.since)?, time("--until", &args.until)?);
    let since = if args.boot { Some(boot()?) } else { since };
    Ok(Select { since, until, grep, whose })
}

/// The stamp of the time at which the machine was started, or the container.
fn boot() -> Result<String, Error> {
    let began = system::first_process_began();
    let time = began.and_then(|began| Timestamp::from_microsecond(began.0).ok());
    time.and_then(when::stamp).ok_or_else(|| {
        let message = "cannot read from /proc/1/stat when this machine was started";
        Error::new(Exit::Failed, message)
    })
}

/// Which run `--run` names.
fn run(text: &str) -> Result<Which, Error> {
    Which::parse(text).ok_or_else(|| {
        let message = format!("cannot use --run `{text}`");
        let help =
            "write 0 for the latest run, -1 for the one before, or 4 digits of its number or more";
        Error::new(Exit::Bad, format!("{message}: {help}"))
    })
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

/// How records are printed.
struct Form {
    output: LogOutput,
    zone: TimeZone,
    colour: bool,
}

impl Form {
    fn write(&self, out: &mut dyn Write, record: &Record) -> io::Result<()> {
        let Record { time, instance, partial, bytes, .. } = record;
        match self.output {
            LogOutput::Json => {
                serde_json::to_writer(&mut *out, &record.json())?;
                return out.write_all(b"\n");
            }
            LogOutput::Cat => {
                out.write_all(bytes)?;
                // As they were written: the parts of a long line are one line again.
                return if *partial { Ok(()) } else { out.write_all(b"\n") };
            }
            LogOutput::Short => self.head(out, &self.local(time), instance)?,
            LogOutput::Iso => self.head(out, time, instance)?,
        }
        out.write_all(bytes)?;
        out.write_all(b"\n")
    }

    /// What stands before a line.
    fn head(&self, out: &mut dyn Write, time: &str, instance: &str) -> io::Result<()> {
        if self.colour {
            return write!(out, "{time} \x1b[0;{}m{instance} |\x1b[0m ", colour_of(instance));
        }
        write!(out, "{time} {instance} | ")
    }

    /// A stamp in local time; one that cannot be read as it is.
    fn local(&self, time: &str) -> String {
        match time.parse::<Timestamp>() {
            Ok(time) => {
                let local = time.to_zoned_datetime(self.zone.clone());
                local.strftime("%b %d %H:%M:%S%.3f").to_string()
            }
            Err(_) => time.to_owned(),
        }
    }
}

/// The last lines of an instance's log, for a message about its failure. What the unit wrote before
/// it ended may still be on its way through the log keeper: waits for it, but not for long.
pub(super) fn last_lines(dirs: &Dirs, instance: &str, lines: usize) -> Vec<String> {
    let fifo = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(dirs.fifos().join(format!("{instance}.fifo")));
    let is_under_way = || fifo.as_ref().is_ok_and(|fifo| system::bytes_queued(fifo.as_fd()) > 0);
    let mut found = Vec::new();
    let mut looks_at_end = 0;
    for _ in 0..KEEPER_LOOKS_MAX {
        let at_end = !is_under_way();
        found = logs::last_lines(&dirs.logs, instance, lines);
        looks_at_end = if at_end { looks_at_end + 1 } else { 0 };
        // What was read last may be on its way to the file: once more.
        let has_all = looks_at_end > 1 && !found.is_empty();
        if has_all || fifo.is_err() || looks_at_end >= KEEPER_LOOKS_AT_END_MAX {
            break;
        }
        if let Err(errno) = nix::poll::poll(&mut [], PollTimeout::from(KEEPER_WAIT_MILLIS)) {
            log::debug!("interrupted: {errno}");
        }
    }
    let texts = found.iter().map(|record| String::from_utf8_lossy(&record.bytes));
    texts.map(std::borrow::Cow::into_owned).collect()
}
