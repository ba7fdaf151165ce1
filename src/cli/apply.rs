//! `apply`, `plan`, `check`: units in.

use std::io::Read;
use std::path::Path;

use serde_json::{Value, json};

use super::args::{Apply, Check, Format, Global, Plan, Waiting};
use super::client::Client;
use super::{Error, Exit, Outcome, files, output, serve, units};
use crate::config::{self, Loaded, SourceFile};
use crate::daemon::{SourceOptions, Started, read_source};
use crate::model::FilePath;
use crate::plan;
use crate::protocol::FileText;
use crate::supervisor::{Source, State};

/// Longest standard input that is taken as a unit file, in bytes.
const STDIN_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// The source that an argument means.
pub(super) fn source(dir: &Path) -> Result<Source, Error> {
    source_with(dir, &SourceOptions::default())
}

/// The source that an argument means, with what is laid over its units.
fn source_with(dir: &Path, options: &SourceOptions) -> Result<Source, Error> {
    if dir == Path::new("-") {
        let mut text = Vec::new();
        let read = std::io::stdin().take(STDIN_BYTES_MAX).read_to_end(&mut text);
        read.map_err(|error| {
            Error::new(Exit::Bad, format!("cannot read standard input: {error}"))
        })?;
        let file = SourceFile { path: FilePath::from("/standard-input.yaml"), text };
        let SourceOptions { profiles, sets, .. } = options.clone();
        return Ok(Source { name: "-".to_owned(), files: vec![file], profiles, sets });
    }
    read_source(dir, options).map_err(|error| Error::new(Exit::Bad, error))
}

fn parameters(source: &Source) -> Value {
    let files: Vec<Value> = source
        .files
        .iter()
        .map(|file| json!({ "path": file.path, "text": FileText::from(file.text.clone()) }))
        .collect();
    let (profiles, sets) = (&source.profiles, &source.sets);
    json!({ "source": source.name, "files": files, "profiles": profiles, "sets": sets })
}

/// `opm apply`.
pub(super) fn apply(global: &Global, args: &Apply) -> Outcome {
    let source = source_with(&args.dir, &(&args.composed).into())?;
    if args.dry_run {
        return show_plan(global, &source, false);
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
    let reply = client.call("Apply", parameters(&source))?;
    warnings(&reply);
    let count = reply.get("changes").and_then(Value::as_array).map_or(0, Vec::len);
    if global.json {
        output::json(&reply)?;
    } else {
        print_changes(&reply)?;
        let generation = reply.get("generation").and_then(Value::as_u64).unwrap_or(0);
        if count == 0 {
            output::line(&format!("no change, generation {generation}"))?;
        } else {
            output::line(&format!("{count} changed, generation {generation}"))?;
        }
    }
    let names: Vec<String> =
        serde_json::from_value(reply.get("units").cloned().unwrap_or_default()).unwrap_or_default();
    let removed: Vec<String> = reply
        .get("changes")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter(|change| change.get("effect").and_then(Value::as_str) == Some("remove"))
        .filter_map(|change| change.get("unit").and_then(Value::as_str).map(str::to_owned))
        .collect();
    settle(global, &mut client, &names, &removed, args.waiting)
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
    if !removed.is_empty() {
        units::wait_settled(global, client, removed, "down", waiting.timeout)?;
    }
    if names.is_empty() {
        return Ok(Exit::Done);
    }
    units::wait_settled(global, client, names, "settled", waiting.timeout)
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

/// The mistakes in a directory's units, as an error: for a daemon that said that there are any.
pub(super) fn mistakes_in(dir: &Path, options: &SourceOptions) -> Error {
    match source_with(dir, options).and_then(|source| refuse_mistakes(&source)) {
        Err(error) => error,
        Ok(()) => Error::new(Exit::Bad, "the units had mistakes a moment ago"),
    }
}

/// Starts a daemon; where somebody else was faster, uses theirs.
fn start_daemon(global: &Global) -> Result<Client, Error> {
    match serve::start(serve::background(global, None, SourceOptions::default(), None))? {
        Started::Running => output::note("opm: no daemon ran; one was started"),
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
    show_plan(global, &source_with(&args.dir, &(&args.composed).into())?, args.exit_code)
}

fn show_plan(global: &Global, source: &Source, exit_code: bool) -> Outcome {
    let mut client = Client::connect(global)?;
    let reply = client.call("Plan", parameters(source))?;
    warnings(&reply);
    let changes = reply.get("changes").and_then(Value::as_array).map_or(0, Vec::len);
    if global.json {
        output::json(&reply)?;
    } else if changes == 0 {
        output::line("no change")?;
    } else {
        print_changes(&reply)?;
        output::line(&format!("{changes} to change"))?;
    }
    Ok(if exit_code && changes > 0 { Exit::Bad } else { Exit::Done })
}

fn warnings(reply: &Value) {
    if let Some(text) =
        reply.get("warnings").and_then(Value::as_str).filter(|text| !text.is_empty())
    {
        output::note(text.trim_end());
    }
}

/// One line for each unit, and one for each of its keys.
fn print_changes(reply: &Value) -> Result<(), Error> {
    let text = |value: &Value, name: &str| {
        value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    for change in reply.get("changes").and_then(Value::as_array).into_iter().flatten() {
        let effect = text(change, "effect");
        let sign = match effect.as_str() {
            "create" => "+",
            "remove" => "-",
            "restart" => "±",
            _ => "~",
        };
        let word = if effect == "live" { "change live" } else { effect.as_str() };
        let because = text(change, "because");
        let because =
            if because.is_empty() { because } else { format!(", because of `{because}`") };
        let held = text(change, "held");
        let held = if held.is_empty() { held } else { format!(", held down by {held}") };
        output::line(&format!("{sign} {} ({word}{because}{held})", text(change, "unit")))?;
        for field in change.get("fields").and_then(Value::as_array).into_iter().flatten() {
            let shown =
                |name: &str| field.get(name).map_or_else(|| "-".to_owned(), Value::to_string);
            let class = text(field, "class");
            let key = text(field, "key");
            output::line(&format!("    {key}: {} → {} ({class})", shown("old"), shown("new")))?;
        }
    }
    Ok(())
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
    match args.format {
        Format::Json => output::json(&loaded.diagnostics)?,
        Format::Text if loaded.diagnostics.is_empty() => {
            output::line(&format!("{units} units, no mistakes"))?;
            files::left_out(&loaded)?;
        }
        Format::Text => {
            let colour = output::stderr_is_terminal();
            output::note(config::render(&loaded.diagnostics, &source.shown(), colour).trim_end());
        }
    }
    Ok(if bad { Exit::Bad } else { Exit::Done })
}
