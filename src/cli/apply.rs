//! `apply`, `plan`, `check`: units in.

use std::io::Read;
use std::path::Path;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::args::{Apply, Check, Composed, Format, Global, Plan, Waiting};
use super::client::Client;
use super::history::list;
use super::plan_file::PlanFile;
use super::units::Aim;
use super::{Error, Exit, Outcome, changes, files, output, remote, serve, units};
use crate::config::{self, Loaded, SourceFile};
use crate::daemon::{SourceOptions, Started, read_what_can_be};
use crate::model::{FilePath, MESSAGE_BYTES_MAX, Span};
use crate::plan::{self, Basis};
use crate::protocol::FileToSend;
use crate::supervisor::{Source, State};
use crate::system::monotonic_now;

/// Longest standard input that is taken as a unit file, in bytes.
const STDIN_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// How long an apply that is taken back where it fails may take, where nobody says.
const ROLLBACK_AFTER: Span = Span::seconds(600);
/// How long it takes at most to confirm what came up in time.
const DECIDE: Span = Span::seconds(60);

/// Standard input, read once: each of several hosts gets the same.
fn standard_input() -> Result<Vec<u8>, Error> {
    static TEXT: OnceLock<Vec<u8>> = OnceLock::new();
    if let Some(text) = TEXT.get() {
        return Ok(text.clone());
    }
    let mut text = Vec::new();
    let read = std::io::stdin().take(STDIN_BYTES_MAX).read_to_end(&mut text);
    read.map_err(|error| Error::new(Exit::Bad, format!("cannot read standard input: {error}")))?;
    Ok(TEXT.get_or_init(|| text).clone())
}

/// The source that an argument means.
pub(super) fn source(dir: &Path) -> Result<Source, Error> {
    source_with(dir, &SourceOptions::default())
}

/// The source that an argument means, with what is laid over its units.
fn source_with(dir: &Path, options: &SourceOptions) -> Result<Source, Error> {
    if dir == Path::new("-") {
        let text = standard_input()?;
        let file = SourceFile { path: FilePath::from("/standard-input.yaml"), text };
        let SourceOptions { profiles, sets, .. } = options.clone();
        let (name, files) = ("-".to_owned(), vec![file]);
        return Ok(Source { name, dir: None, files, profiles, sets });
    }
    let read = read_what_can_be(dir, options);
    let (source, unread) = read.map_err(|error| Error::new(Exit::Bad, error))?;
    if unread.is_empty() {
        return Ok(source);
    }
    // One file that cannot be read hides no mistake in another.
    let loaded = source.load();
    if config::has_errors(&loaded.diagnostics) {
        let colour = output::stderr_is_terminal();
        output::note(config::render(&loaded.diagnostics, &source.shown(), colour).trim_end());
    }
    let all: Vec<String> = unread.iter().map(ToString::to_string).collect();
    Err(Error::new(Exit::Bad, all.join("\nopm: ")))
}

/// What is to be done where no daemon can say what would change.
const PLANS: &str = "with none everything would be created, and nothing runs: `opm check` reads the \
                     units, `opm daemon` restores what was saved, for a plan against that";

/// Which of a source's units, and how: a part of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Manner {
    pub(super) only: Vec<String>,
    pub(super) rolling: Option<u32>,
}

/// The source that `apply` and `plan` mean: by the name it is given, or by where its files are.
pub(super) fn named_source(
    global: &Global,
    dir: &Path,
    name: Option<&String>,
    composed: &Composed,
) -> Result<Source, Error> {
    let mut source = source_with(dir, &composed.into())?;
    source.dir = Some(source.name.clone());
    source.name = match name {
        Some(name) => name.clone(),
        None if global.host().is_some() => remote::source_name(&source.name),
        None => source.name,
    };
    Ok(source)
}

/// What `Plan` and `Apply` are told. There may be thousands of files: none is copied.
#[derive(Serialize)]
struct Parameters<'a> {
    source: &'a str,
    dir: Option<&'a str>,
    files: Vec<FileToSend<'a>>,
    profiles: &'a [String],
    sets: &'a [String],
    only: &'a [String],
    rolling: Option<u32>,
    message: &'a str,
    basis: Option<&'a Basis>,
    confirm_ms: Option<u64>,
    confirms_itself: bool,
}

impl<'a> Parameters<'a> {
    fn new(source: &'a Source, manner: &'a Manner) -> Self {
        let files = source.files.iter();
        Self {
            source: &source.name,
            dir: source.dir.as_deref(),
            files: files.map(|file| FileToSend::new(&file.path, &file.text)).collect(),
            profiles: &source.profiles,
            sets: &source.sets,
            only: &manner.only,
            rolling: manner.rolling,
            message: "",
            basis: None,
            confirm_ms: None,
            confirms_itself: false,
        }
    }
}

/// `opm apply`.
pub(super) fn apply(global: &Global, args: &Apply) -> Outcome {
    let mut manner = Manner { only: args.only.clone(), rolling: args.rolling.batch() };
    let (source, basis) = match PlanFile::read(&args.dir)? {
        Some(_) if manner != Manner::default() || args.is_described() => {
            let message = "a saved plan says itself what it is for, and how";
            return Err(Error::new(Exit::Bad, message));
        }
        Some(plan) => {
            manner = plan.manner.clone();
            let basis = plan.basis.clone();
            (plan.source()?, Some(basis))
        }
        None => (named_source(global, &args.dir, args.source.as_ref(), &args.composed)?, None),
    };
    if args.dry_run {
        return show_plan(global, &source, &manner).map(|_| Exit::Done);
    }
    let mut client = match Client::try_connect(global)? {
        Some(client) => client,
        None if args.no_daemon => return Err(Client::connect(global).err().unwrap_or_else(gone)),
        None => {
            // Mistakes are no reason to leave a daemon behind.
            refuse_mistakes(&source)?;
            start_daemon(global)?
        }
    };
    let trial = args.confirm.or_else(|| args.rollback_on_failure.then(|| trial_of(args)));
    let parameters = Parameters {
        message: &args.message,
        basis: basis.as_ref(),
        confirm_ms: trial.map(Span::as_millis_up),
        confirms_itself: args.rollback_on_failure && args.confirm.is_none(),
        ..Parameters::new(&source, &manner)
    };
    let reply = client.call("Apply", parameters)?;
    warnings(&reply);
    let found = list(&reply, "changes");
    if global.json {
        output::json(&reply)?;
    } else {
        changes::print(found)?;
        let generation = reply.get("generation").and_then(Value::as_u64).unwrap_or(0);
        let count = found.len();
        if count == 0 {
            output::line(&format!("no change, generation {generation}"))?;
        } else {
            output::line(&format!("{count} changed, generation {generation}"))?;
        }
    }
    if let Some(time) = args.confirm.filter(|_| !found.is_empty()) {
        output::note(&format!("opm: taken back in {time} unless `opm confirm` follows"));
    }
    let settled = settle_changes(global, &mut client, &reply, waiting_of(args));
    if found.is_empty() || trial.is_none() {
        return settled;
    }
    let tried = reply.get("generation").and_then(Value::as_u64).unwrap_or(0);
    if args.rollback_on_failure {
        return back_on_failure(global, &mut client, args, tried, settled);
    }
    if settled.is_ok() {
        is_still_in_force(&mut client, tried)?;
    }
    settled
}

/// How an apply is waited for: where it is taken back when it fails, not without end.
fn waiting_of(args: &Apply) -> Waiting {
    let timeout = args.waiting.timeout.or(args.rollback_on_failure.then_some(ROLLBACK_AFTER));
    Waiting { timeout, ..args.waiting }
}

/// How long an apply may take that is taken back where it fails: as long as somebody waits for it,
/// and a while to decide.
fn trial_of(args: &Apply) -> Span {
    let wait = args.waiting.timeout.unwrap_or(ROLLBACK_AFTER);
    Span::nanos(wait.as_nanos().saturating_add(DECIDE.as_nanos()))
}

/// Fails where something else is in force by now: what came to rest is that.
fn is_still_in_force(client: &mut Client, tried: u64) -> Result<(), Error> {
    let info = client.call("Info", json!({}))?;
    match info.get("applied").and_then(Value::as_u64).filter(|applied| *applied != tried) {
        None => Ok(()),
        Some(applied) => {
            let message =
                format!("generation {tried} is not in force any more, generation {applied} is");
            Err(Error::new(Exit::Failed, message))
        }
    }
}

/// Keeps what came up, and takes back what did not. Where this process ends before, the daemon does
/// so itself when the time is over.
fn back_on_failure(
    global: &Global,
    client: &mut Client,
    args: &Apply,
    tried: u64,
    settled: Outcome,
) -> Outcome {
    let reason = match settled {
        Ok(Exit::Done) => {
            is_still_in_force(client, tried)?;
            if args.confirm.is_none() {
                client.call("Confirm", json!({ "of": tried }))?;
            }
            return Ok(Exit::Done);
        }
        Ok(_) => "a unit failed".to_owned(),
        Err(error) if error.exit == Exit::NoDaemon => return Err(error),
        Err(error) => error.message,
    };
    let mut message = format!("taken back: {reason}");
    message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
    let rolling = args.rolling.batch();
    let parameters = json!({ "of": tried, "message": message, "rolling": rolling });
    let reply = client.call("Rollback", parameters).map_err(|error| {
        Error::new(Exit::Failed, format!("{reason}; it is not taken back now: {}", error.message))
    })?;
    let to = reply.get("to").and_then(Value::as_u64).unwrap_or(0);
    let generation = reply.get("generation").and_then(Value::as_u64).unwrap_or(0);
    let to = if to == 0 { "nothing".to_owned() } else { format!("generation {to}") };
    let came_back = settle_changes(global, client, &reply, waiting_of(args));
    let well = if matches!(came_back, Ok(Exit::Done)) { "" } else { ", where a unit fails too" };
    let message = format!("{reason}; taken back to {to}, as generation {generation}{well}");
    Err(Error::new(Exit::Failed, message))
}

/// Waits for what a reply says has changed: first for what goes, then for what comes.
pub(super) fn settle_changes(
    global: &Global,
    client: &mut Client,
    reply: &Value,
    waiting: Waiting,
) -> Outcome {
    let removed: Vec<String> = list(reply, "changes")
        .iter()
        .filter(|change| change.get("effect").and_then(Value::as_str) == Some("remove"))
        .filter_map(|change| change.get("unit").and_then(Value::as_str).map(str::to_owned))
        .collect();
    let mut names: Vec<String> =
        serde_json::from_value(reply.get("units").cloned().unwrap_or_default()).unwrap_or_default();
    names.retain(|name| !removed.contains(name));
    settle(global, client, &names, &removed, waiting)
}

fn gone() -> Error {
    Error::new(Exit::NoDaemon, "no daemon runs")
}

/// Waits until the units have come to rest, and says which did not get where they should.
fn settle(
    global: &Global,
    client: &mut Client,
    names: &[String],
    removed: &[String],
    waiting: Waiting,
) -> Outcome {
    if waiting.no_wait {
        return Ok(Exit::Done);
    }
    let began = monotonic_now();
    if !removed.is_empty() {
        units::wait(global, client, removed, Aim::Down, waiting.timeout)?;
    }
    if names.is_empty() {
        return Ok(Exit::Done);
    }
    // One wait for both.
    let waited = monotonic_now().since(began);
    let left = waiting.timeout.map(|timeout| timeout.less(waited));
    units::wait(global, client, names, Aim::Settled, left)
}

fn refuse_mistakes(source: &Source) -> Result<(), Error> {
    load(source).map(drop)
}

/// The units of a source; with any mistake in them all mistakes are shown instead.
pub(super) fn load(source: &Source) -> Result<Loaded, Error> {
    let loaded = source.load();
    if config::has_errors(&loaded.diagnostics) {
        let colour = output::stderr_is_terminal();
        output::note(config::render(&loaded.diagnostics, &source.shown(), colour).trim_end());
        return Err(Error::new(Exit::Bad, ""));
    }
    Ok(loaded)
}

/// The mistakes in a directory's units, as an error, for a daemon that said that there are any. `told`: what
/// it said of them, as some are none by themselves, but with what it knows of other sources.
pub(super) fn mistakes_in(dir: &Path, options: &SourceOptions, told: &str) -> Error {
    if let Err(error) = source_with(dir, options).and_then(|source| refuse_mistakes(&source)) {
        return error;
    }
    output::note(told.trim_end());
    Error::new(Exit::Bad, "")
}

/// Starts a daemon; where somebody else was faster, uses theirs.
fn start_daemon(global: &Global) -> Result<Client, Error> {
    match serve::start(serve::background(global, None, SourceOptions::default(), None))? {
        Started::Running(_) => output::note("opm: no daemon ran; one was started"),
        Started::Already(holder) => {
            output::note(&format!("opm: {holder}; using that one"));
            return wait_for_socket(global);
        }
        Started::BadUnits => return Err(Error::new(Exit::Bad, "it has units with mistakes")),
        Started::Failed(reason) => {
            return Err(Error::new(Exit::Failed, format!("cannot start the daemon: {reason}")));
        }
        // We are the daemon, and it is over.
        Started::Over(_) => return Err(Error::new(Exit::Done, "")),
    }
    Client::connect(global)
}

/// Another daemon has the lock and is about to listen.
fn wait_for_socket(global: &Global) -> Result<Client, Error> {
    for _ in 0..500 {
        if let Some(client) = Client::try_connect(global)? {
            return Ok(client);
        }
        if let Err(errno) = nix::poll::poll(&mut [], nix::poll::PollTimeout::from(10u8)) {
            log::debug!("interrupted: {errno}");
        }
    }
    Client::connect(global)
}

/// `opm plan`.
pub(super) fn plan(global: &Global, args: &Plan) -> Outcome {
    let source = named_source(global, &args.dir, args.source.as_ref(), &args.composed)?;
    let manner = Manner { only: args.only.clone(), rolling: args.rolling.batch() };
    let reply = show_plan(global, &source, &manner)?;
    if let Some(path) = &args.out {
        PlanFile::new(&source, &args.dir, (&args.composed).into(), manner, &reply)?.write(path)?;
    }
    let is_change = !list(&reply, "changes").is_empty();
    Ok(if args.exit_code && is_change { Exit::Bad } else { Exit::Done })
}

/// Prints what an apply would do; returns what the daemon said.
pub(super) fn show_plan(global: &Global, source: &Source, manner: &Manner) -> Result<Value, Error> {
    let mut client = Client::connect_or(global, PLANS)?;
    let reply = client.call("Plan", Parameters::new(source, manner))?;
    warnings(&reply);
    let found = list(&reply, "changes");
    if global.json {
        output::json(&reply)?;
    } else if found.is_empty() {
        output::line("no change")?;
    } else {
        changes::print(found)?;
        output::line(&changes::summary(found))?;
    }
    Ok(reply)
}

fn warnings(reply: &Value) {
    if let Some(text) =
        reply.get("warnings").and_then(Value::as_str).filter(|text| !text.is_empty())
    {
        output::note(text.trim_end());
    }
}

/// `opm check`.
pub(super) fn check(global: &Global, args: &Check) -> Outcome {
    let source = source_with(&args.dir, &(&args.composed).into())?;
    let mut loaded = source.load();
    let bad = config::has_errors(&loaded.diagnostics);
    if let Some(unit) = args.origin.as_deref().filter(|_| !bad) {
        if !loaded.diagnostics.is_empty() {
            let colour = output::stderr_is_terminal();
            output::note(config::render(&loaded.diagnostics, &source.shown(), colour).trim_end());
        }
        return files::origin(global, &source, &loaded, unit);
    }
    let units = loaded.specs.len();
    if !bad {
        let specs = std::mem::take(&mut loaded.specs);
        let state = State::of_specs(specs, &source.name);
        if let Some(warning) = plan::budget_warning(&state.desired, args.shutdown_timeout) {
            output::note(&format!("warning: {warning}"));
        }
    }
    let format = if global.json { Format::Json } else { args.format };
    match format {
        Format::Json => output::json(&loaded.diagnostics)?,
        Format::Text if loaded.diagnostics.is_empty() => {
            output::line(&format!("{}, no mistakes", config::plural(units, "unit")))?;
            files::left_out(&loaded)?;
        }
        Format::Text => {
            let colour = output::stderr_is_terminal();
            output::note(config::render(&loaded.diagnostics, &source.shown(), colour).trim_end());
        }
    }
    Ok(if bad { Exit::Bad } else { Exit::Done })
}
