//! Commands that change what is wanted: `start`, `stop`, `restart` and their kin.

use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::args::{Change, Global, Kill, Names, Restart, Stop, Until, Waiting};
use super::client::{Client, dirs_found};
use super::progress::{self, Progress};
use super::{Error, Exit, Outcome, logs, output, remote};
use crate::model::{Span, Wall};
use crate::supervisor::Row;
use crate::system::wall_now;

/// Lines of a failed unit's log that are shown with its failure.
const LAST_LINES: usize = 5;
/// Most failed instances of another machine whose logs are asked for: each is a connection.
const REMOTE_LOGS_MAX: usize = 3;

/// `opm start`.
pub(super) fn start(global: &Global, args: &Change) -> Outcome {
    change(global, "Start", json!({ "units": args.units }), args, Aim::Started)
}

/// `opm stop`.
pub(super) fn stop(global: &Global, args: &Stop) -> Outcome {
    let until = args.until.map(|until| match until {
        Until::At(time) => time.as_microsecond(),
        Until::After(span) => wall_now().after(span).map_or(i64::MAX, |Wall(micros)| micros),
    });
    let parameters =
        json!({ "units": args.change.units, "reason": args.reason, "until_us": until });
    change(global, "Stop", parameters, &args.change, Aim::Stopped)
}

/// `opm restart`.
pub(super) fn restart(global: &Global, args: &Restart) -> Outcome {
    let parameters = json!({ "units": args.change.units, "rolling": args.rolling.batch() });
    change(global, "Restart", parameters, &args.change, Aim::Started)
}

fn change(global: &Global, method: &str, parameters: Value, args: &Change, aim: Aim) -> Outcome {
    let mut client = Client::connect(global)?;
    let reply = client.call(method, parameters)?;
    // Those that are meant: not what their unit does not ask for any more.
    let meant: Vec<String> = reply
        .get("instances")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|id| id.as_str().map(str::to_owned))
        .collect();
    let units = if aim == Aim::Started && !meant.is_empty() { &meant } else { &args.units };
    let Waiting { no_wait, timeout, .. } = args.waiting;
    if no_wait {
        return Ok(Exit::Done);
    }
    wait(global, &mut client, units, aim, timeout)
}

/// Where units are to get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Aim {
    /// To rest: up, done, or as they are declared.
    Settled,
    /// To rest, and nobody is to want them down meanwhile.
    Started,
    /// Down.
    Down,
    /// Down, and nobody is to want them up meanwhile.
    Stopped,
    /// To have read their configuration again.
    Reloaded,
}

impl Aim {
    /// The condition of a wait for it.
    fn condition(self) -> &'static str {
        match self {
            Self::Settled | Self::Started => "settled",
            Self::Down => "down",
            Self::Stopped => "stopped",
            Self::Reloaded => "reloaded",
        }
    }
}

/// Waits, showing who waits for what; then says what did not get where it should.
pub(super) fn wait(
    global: &Global,
    client: &mut Client,
    units: &[String],
    aim: Aim,
    timeout: Option<Span>,
) -> Outcome {
    progress::tell_at_interrupt();
    let mut progress = Progress::new(global);
    // Who reloads stays up on the way.
    let mut show = |rows: &[Row]| {
        if aim != Aim::Reloaded {
            progress.show(rows);
        }
    };
    // One that nobody wants is well, but for who has just started it; one that is up, but for who stopped it.
    let is_brief = !matches!(aim, Aim::Started | Aim::Stopped);
    let waited = client.wait(units, aim.condition(), timeout, is_brief, &mut show)?;
    progress.end();
    if waited.is_over()? {
        return Ok(Exit::Done);
    }
    if waited.end == "timeout" {
        let (rest, open): (Vec<Row>, Vec<Row>) =
            waited.rows.into_iter().partition(|row| row.settled);
        report(global, &rest, aim);
        let names: Vec<String> =
            open.iter().map(|row| format!("{} ({})", row.instance, row.phase)).collect();
        let message = format!("not finished in time, and still going on: {}", names.join(", "));
        return Err(Error::new(Exit::TimedOut, message));
    }
    let is_left = |row: &&Row| match aim {
        Aim::Settled => false,
        Aim::Started => !row.wanted,
        // Of what nobody can prove nobody can say that it is gone.
        Aim::Down => row.phase == "unproven",
        Aim::Stopped => row.phase == "unproven" || row.wanted,
        Aim::Reloaded => waited.end != "reached",
    };
    let left: Vec<&Row> = waited.rows.iter().filter(is_left).collect();
    for row in &left {
        let why = output::plain(&row.why);
        output::error(&format!("`{}` is {}: {why}", row.instance, row.phase));
    }
    let exit = if left.is_empty() { Exit::Done } else { Exit::Failed };
    match aim {
        Aim::Settled | Aim::Started => {
            let reported = report(global, &waited.rows, aim);
            Ok(if exit == Exit::Done { reported } else { exit })
        }
        Aim::Down | Aim::Stopped | Aim::Reloaded => Ok(exit),
    }
}

/// Whether an instance is where it should be; so is one that waits for its time, or for
/// somebody who connects.
pub(super) fn is_well(row: &Row) -> bool {
    match row.phase.as_str() {
        "up" | "done" => true,
        "down" => row.next_run.is_some(),
        "waiting" => row.awaits_connection,
        _ => false,
    }
}

/// Says which of these wanted instances failed, each root cause once, with its last words, and which
/// were skipped.
fn report(global: &Global, rows: &[Row], aim: Aim) -> Exit {
    // Its own conditions say that it is not to run: no failure, and nothing to pass over in silence.
    for row in rows.iter().filter(|row| row.wanted && row.phase == "skipped") {
        output::error(&format!("`{}` is skipped: {}", row.instance, output::plain(&row.why)));
    }
    // Nobody has asked for just these, and somebody has for what they wait for.
    let awaits_held = |row: &Row| row.awaits_held && aim == Aim::Settled;
    for row in rows.iter().filter(|row| row.wanted && awaits_held(row)) {
        output::error(&format!("`{}` is waiting: {}", row.instance, output::plain(&row.why)));
    }
    let is_well = |row: &Row| row.phase == "skipped" || awaits_held(row) || is_well(row);
    let failed: Vec<&Row> = rows.iter().filter(|row| row.wanted && !is_well(row)).collect();
    for (place, row) in failed.iter().enumerate() {
        let why = if row.why.is_empty() { "no reason is known" } else { &row.why };
        let phase = if row.phase == "backoff" { "to be restarted" } else { &row.phase };
        output::error(&format!("`{}` is {phase}: {}", row.instance, output::plain(why)));
        if matches!(row.phase.as_str(), "failed" | "backoff") {
            for line in last_lines(global, &row.instance, place) {
                output::note(&format!("    {} | {}", row.instance, output::plain(&line)));
            }
        }
    }
    if failed.is_empty() { Exit::Done } else { Exit::Failed }
}

/// The last words of the failed instance in this place, from the log files of its machine.
fn last_lines(global: &Global, instance: &str, place: usize) -> Vec<String> {
    match global.host() {
        None => logs::last_lines(&dirs_found(global), instance, LAST_LINES),
        Some(host) if place < REMOTE_LOGS_MAX => {
            remote::last_lines(global, host, instance, LAST_LINES)
        }
        Some(_) => Vec::new(),
    }
}

/// `opm reload`.
pub(super) fn reload(global: &Global, args: &Change) -> Outcome {
    change(global, "Reload", json!({ "units": args.units }), args, Aim::Reloaded)
}

/// `opm release`.
pub(super) fn release(global: &Global, args: &Names) -> Outcome {
    Client::connect(global)?.call("Release", json!({ "units": args.units }))?;
    Ok(Exit::Done)
}

/// `opm kill`.
pub(super) fn kill(global: &Global, args: &Kill) -> Outcome {
    let parameters =
        json!({ "units": args.units, "signal": args.signal.number().to_string(), "all": args.all });
    let reply = Client::connect(global)?.call("Kill", parameters)?;
    let reached = reply.get("instances").and_then(Value::as_array).map_or(0, Vec::len);
    if reached == 0 {
        output::note("opm: none of them runs; nothing was signalled");
    }
    Ok(Exit::Done)
}

/// `opm save`.
pub(super) fn save(global: &Global) -> Outcome {
    let reply = Client::connect(global)?.call("Save", json!({}))?;
    if global.json {
        output::json(&reply)?;
    } else {
        let generation = reply.get("generation").and_then(Value::as_u64).unwrap_or(0);
        output::line(&format!("saved, generation {generation}"))?;
    }
    Ok(Exit::Done)
}

/// `opm restore`: a daemon that runs has restored already, so that there is nothing to do.
pub(super) fn restore(global: &Global) -> Outcome {
    use crate::daemon::{SourceOptions, Started};
    let mut client = match Client::try_connect(global)? {
        Some(client) => client,
        None => match super::serve::start(super::serve::background(
            global,
            None,
            SourceOptions::default(),
            None,
        ))? {
            Started::Over(_) => return Err(Error::new(Exit::Done, "")),
            Started::BadUnits => return Err(Error::new(Exit::Bad, "it has units with mistakes")),
            Started::Failed(reason) => {
                return Err(Error::new(Exit::Failed, format!("cannot start the daemon: {reason}")));
            }
            Started::Running(_) | Started::Already(_) => Client::connect(global)?,
        },
    };
    let reply = client.call("Restore", json!({}))?;
    if global.json {
        output::json(&reply)?;
        return Ok(Exit::Done);
    }
    let generation = reply.get("generation").and_then(Value::as_u64).unwrap_or(0);
    let pending: Vec<String> =
        serde_json::from_value(reply.get("pending").cloned().unwrap_or_default())
            .unwrap_or_default();
    if pending.is_empty() {
        output::line(&format!("no change, generation {generation}"))?;
    } else {
        output::line(&format!("under way, generation {generation}: {}", pending.join(", ")))?;
    }
    Ok(Exit::Done)
}

/// `opm reexec`.
pub(super) fn reexec(global: &Global) -> Outcome {
    let mut client = Client::connect(global)?;
    let before = client.call("Info", json!({}))?;
    // Whatever is run in the place of pid 1 and is no opm takes everything with it. What another user
    // names is not run here, and an opm of before named nothing.
    let program = before.get("program").and_then(Value::as_str);
    if let Some(program) = program.filter(|_| client.is_own()) {
        is_opm(program).map_err(|reason| {
            let message = format!("cannot run `{program}`: {reason}; the old program goes on");
            Error::new(Exit::Refused, message)
        })?;
    }
    match Client::connect(global)?.call("Reexec", json!({})) {
        // It is answered where it fails; else the connection ends with the old program.
        Err(error) if error.exit == Exit::NoDaemon => {}
        Err(error) => return Err(error),
        Ok(_) => {}
    }
    // The new program listens on a new socket, under the same name.
    let info = Client::connect(global)?.call("Info", json!({}))?;
    let version = info.get("version").and_then(Value::as_str).unwrap_or_default();
    let pid = info.get("pid").and_then(Value::as_u64).unwrap_or(0);
    output::line(&format!("opm {version} goes on as process {pid}"))?;
    Ok(Exit::Done)
}

/// Whether this program says that it is opm.
fn is_opm(program: &str) -> Result<(), String> {
    let words = |error: std::io::Error| crate::system::plain(&error.to_string());
    #[expect(clippy::disallowed_methods, reason = "nothing is supervised here")]
    let mut asked = Command::new(program);
    let said = asked.arg("--version").stdin(Stdio::null()).output().map_err(words)?;
    if said.status.success() && said.stdout.starts_with(b"opm ") {
        return Ok(());
    }
    Err("it does not say that it is opm when asked for its `--version`".to_owned())
}

/// `opm shutdown`: returns when the daemon is gone.
pub(super) fn shutdown(global: &Global) -> Outcome {
    let mut client = Client::connect(global)?;
    client.call("Shutdown", json!({}))?;
    client.until_closed()?;
    Ok(Exit::Done)
}
