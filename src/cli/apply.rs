//! `apply`, `plan`, `check`: units in.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::sync::OnceLock;

use serde_json::{Value, json};

use super::args::{Apply, Check, Format, Global, Plan, Waiting};
use super::client::Client;
use super::{Error, Exit, Outcome, output, remote, serve, units};
use crate::config::{self, Loaded, SourceFile};
use crate::daemon::{Started, read_source};
use crate::model::FilePath;
use crate::plan;
use crate::protocol::FileText;
use crate::supervisor::{Source, State};

/// Longest standard input that is taken as a unit file, in bytes.
const STDIN_BYTES_MAX: u64 = 4 * 1024 * 1024;

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
    if dir == Path::new("-") {
        let text = standard_input()?;
        let file = SourceFile { path: FilePath::from("/standard-input.yaml"), text };
        return Ok(Source { name: "-".to_owned(), files: vec![file] });
    }
    read_source(dir).map_err(|error| Error::new(Exit::Bad, error))
}

/// The source that `apply` and `plan` mean: by the name it is given, or by where its files are.
fn named_source(global: &Global, dir: &Path, name: Option<&String>) -> Result<Source, Error> {
    let mut source = source(dir)?;
    source.name = match name {
        Some(name) => name.clone(),
        None if global.host().is_some() => remote::source_name(&source.name),
        None => source.name,
    };
    Ok(source)
}

fn parameters(source: &Source) -> Value {
    let files: Vec<Value> = source
        .files
        .iter()
        .map(|file| json!({ "path": file.path, "text": FileText::from(file.text.clone()) }))
        .collect();
    json!({ "source": source.name, "files": files })
}

/// `opm apply`.
pub(super) fn apply(global: &Global, args: &Apply) -> Outcome {
    let source = named_source(global, &args.dir, args.source.as_ref())?;
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
    let loaded = config::load(&source.files, &BTreeMap::new(), &[]);
    if config::has_errors(&loaded.diagnostics) {
        let colour = output::stderr_is_terminal();
        output::note(config::render(&loaded.diagnostics, &source.files, colour).trim_end());
        return Err(Error::new(Exit::Bad, ""));
    }
    Ok(loaded)
}

/// The mistakes in a directory's units, as an error: for a daemon that said that there are any.
pub(super) fn mistakes_in(dir: &Path) -> Error {
    match source(dir).and_then(|source| refuse_mistakes(&source)) {
        Err(error) => error,
        Ok(()) => Error::new(Exit::Bad, "the units had mistakes a moment ago"),
    }
}

/// Starts a daemon; where somebody else was faster, uses theirs.
fn start_daemon(global: &Global) -> Result<Client, Error> {
    match serve::start(serve::background(global, None, None))? {
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
    let source = named_source(global, &args.dir, args.source.as_ref())?;
    show_plan(global, &source, args.exit_code)
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
pub(super) fn check(args: &Check) -> Outcome {
    let source = source(&args.dir)?;
    let loaded = config::load(&source.files, &BTreeMap::new(), &[]);
    let bad = config::has_errors(&loaded.diagnostics);
    let units = loaded.specs.len();
    if !bad {
        let state = State::of_specs(loaded.specs, &source.name);
        if let Some(warning) = plan::budget_warning(&state.desired, args.shutdown_timeout) {
            output::note(&format!("warning: {warning}"));
        }
    }
    match args.format {
        Format::Json => output::json(&loaded.diagnostics)?,
        Format::Text if loaded.diagnostics.is_empty() => {
            output::line(&format!("{units} units, no mistakes"))?;
        }
        Format::Text => {
            let colour = output::stderr_is_terminal();
            output::note(config::render(&loaded.diagnostics, &source.files, colour).trim_end());
        }
    }
    Ok(if bad { Exit::Bad } else { Exit::Done })
}
