//! What was applied before: `history`, `diff`, `rollback`, `confirm`.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Value, json};

use super::args::{Composed, Diff, Global, History, Rollback};
use super::client::{Client, rows};
use super::{Error, Exit, Outcome, apply, changes, output};

/// `opm history`.
pub(super) fn history(global: &Global, args: &History) -> Outcome {
    let mut client = Client::connect(global)?;
    if let Some(generation) = args.generation {
        return one(global, &mut client, generation, args.files);
    }
    let reply = client.call("History", json!({}))?;
    if global.json {
        output::json(&reply)?;
        return Ok(Exit::Done);
    }
    let cells: Vec<Vec<String>> = list(&reply, "records")
        .iter()
        .map(|record| {
            let mark = if record.get("current") == Some(&Value::Bool(true)) { "*" } else { "" };
            vec![
                format!("{}{mark}", number(record, "generation")),
                time(record, "at_us"),
                output::plain(text(record, "by")),
                output::plain(&what(record)),
                output::plain(text(record, "message")),
            ]
        })
        .collect();
    let head = ["GENERATION", "WHEN", "BY", "WHAT", "MESSAGE"];
    output::raw(output::table(&head, &cells).as_bytes())?;
    if let Some(problem) = reply.get("problem").and_then(Value::as_str) {
        output::error(problem);
    }
    Ok(Exit::Done)
}

fn one(global: &Global, client: &mut Client, generation: u64, files: bool) -> Outcome {
    let mut reply = client.call("Record", json!({ "generation": generation }))?;
    if global.json {
        let sources = reply.get_mut("sources").and_then(Value::as_array_mut);
        // The files have secrets in them.
        for source in sources.into_iter().flatten().filter_map(Value::as_object_mut) {
            if !files {
                source.remove("files");
            }
        }
        output::json(&reply)?;
        return Ok(Exit::Done);
    }
    let record = reply.get("record").cloned().unwrap_or_default();
    let sources = list(&reply, "sources");
    if files {
        for file in sources.iter().flat_map(|source| list(source, "files")) {
            output::line(&format!("# {}", output::plain(text(file, "path"))))?;
            output::raw(text(file, "text").as_bytes())?;
        }
        return Ok(Exit::Done);
    }
    output::line(&format!("generation {}", number(&record, "generation")))?;
    output::line(&format!(
        "{}, by {}: {}",
        time(&record, "at_us"),
        output::plain(text(&record, "by")),
        output::plain(&what(&record))
    ))?;
    if !text(&record, "message").is_empty() {
        output::line(&format!("message: {}", output::plain(text(&record, "message"))))?;
    }
    for source in sources {
        let units: Vec<&str> = list(source, "units").iter().filter_map(Value::as_str).collect();
        let (name, units) = (output::plain(text(source, "source")), units.join(", "));
        output::line(&format!("{name} (of {}): {units}", number(source, "generation")))?;
    }
    let before = number(&record, "before");
    if before > 0 {
        let parameters = json!({ "from": before, "to": number(&record, "generation") });
        let reply = client.call("Difference", parameters)?;
        output::line(&format!("against generation {before}:"))?;
        changes::print(list(&reply, "changes"))?;
    }
    Ok(Exit::Done)
}

/// `opm diff`.
pub(super) fn diff(global: &Global, args: &Diff) -> Outcome {
    let numbers: Option<Vec<u64>> = args.what.iter().map(|word| word.parse().ok()).collect();
    match (args.what.as_slice(), numbers.as_deref()) {
        ([], _) => live(global, args.exit_code),
        (_, Some([from])) => generations(global, *from, None, args.exit_code),
        (_, Some([from, to])) => generations(global, *from, Some(*to), args.exit_code),
        ([dir], _) => {
            let source = apply::named_source(global, dir.as_ref(), None, &Composed::default())?;
            let reply = apply::show_plan(global, &source, &apply::Manner::default())?;
            let is_same = list(&reply, "changes").is_empty();
            Ok(if args.exit_code && !is_same { Exit::Bad } else { Exit::Done })
        }
        _ => {
            Err(Error::new(Exit::Bad, "compare one directory, or two generations by their numbers"))
        }
    }
}

fn generations(global: &Global, from: u64, to: Option<u64>, exit_code: bool) -> Outcome {
    let mut client = Client::connect(global)?;
    let to = match to {
        Some(to) => to,
        None => number(&client.call("Info", json!({}))?, "generation"),
    };
    let reply = client.call("Difference", json!({ "from": from, "to": to }))?;
    let found = list(&reply, "changes");
    if global.json {
        output::json(&reply)?;
    } else if found.is_empty() {
        output::line("no difference")?;
    } else {
        changes::print(found)?;
    }
    Ok(if exit_code && !found.is_empty() { Exit::Bad } else { Exit::Done })
}

/// What runs otherwise than it is wanted.
fn live(global: &Global, exit_code: bool) -> Outcome {
    let reply = Client::connect(global)?.call("List", json!({ "units": [] }))?;
    let mut drift = Vec::new();
    for row in rows(&reply) {
        let why = if row.why.is_empty() { String::new() } else { format!(": {}", row.why) };
        if let Some(by) = &row.held_by {
            let until = row.held_until.as_ref().map_or_else(String::new, |t| format!(" until {t}"));
            drift.push((row.instance, format!("held down by {by}{until}")));
        } else if row.outdated {
            drift.push((row.instance, format!("{}, by an older definition", row.phase)));
        } else if row.wanted && !super::units::is_well(&row) {
            drift.push((row.instance, format!("{}{why}", row.phase)));
        } else if !row.wanted && !matches!(row.phase.as_str(), "down" | "done") {
            drift.push((row.instance, format!("{}, and not wanted", row.phase)));
        }
    }
    if global.json {
        let rows: Vec<Value> = drift
            .iter()
            .map(|(instance, what)| json!({ "instance": instance, "what": what }))
            .collect();
        output::json(&rows)?;
    } else if drift.is_empty() {
        output::line("everything is as it is wanted")?;
    } else {
        for (instance, what) in &drift {
            output::line(&format!("{instance}: {}", output::plain(what)))?;
        }
    }
    Ok(if exit_code && !drift.is_empty() { Exit::Bad } else { Exit::Done })
}

/// `opm rollback`.
pub(super) fn rollback(global: &Global, args: &Rollback) -> Outcome {
    let mut client = Client::connect(global)?;
    let parameters = json!({
        "to": args.generation, "dry_run": args.dry_run, "message": args.message,
        "rolling": args.rolling.batch(),
    });
    let reply = client.call("Rollback", parameters)?;
    let found = list(&reply, "changes");
    let to = number(&reply, "to");
    let to = if to == 0 { "nothing".to_owned() } else { format!("generation {to}") };
    if global.json {
        output::json(&reply)?;
    } else {
        changes::print(found)?;
        let (count, generation) = (found.len(), number(&reply, "generation"));
        output::line(&if args.dry_run {
            format!("{count} to change, back to {to}")
        } else {
            format!("{count} changed, back to {to}, generation {generation}")
        })?;
    }
    if args.dry_run {
        return Ok(Exit::Done);
    }
    apply::settle_changes(global, &mut client, &reply, args.waiting)
}

/// `opm confirm`.
pub(super) fn confirm(global: &Global) -> Outcome {
    let reply = Client::connect(global)?.call("Confirm", json!({}))?;
    if global.json {
        output::json(&reply)?;
    } else {
        output::line(&format!("generation {} stays", number(&reply, "generation")))?;
    }
    Ok(Exit::Done)
}

/// What a record is of, in words.
fn what(record: &Value) -> String {
    let trial = record.get("confirm_until_us").filter(|until| !until.is_null());
    let trial = trial.map_or_else(String::new, |_| {
        format!(", to be confirmed until {}", time(record, "confirm_until_us"))
    });
    let to = match number(record, "to") {
        0 => "nothing".to_owned(),
        to => to.to_string(),
    };
    match text(record, "cause") {
        "apply" => format!("apply {}{trial}", text(record, "source")),
        "revert" => format!("back to {to}, not confirmed"),
        _ => format!("rollback to {to}"),
    }
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn number(value: &Value, name: &str) -> u64 {
    value.get(name).and_then(Value::as_u64).unwrap_or(0)
}

pub(super) fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// A time in the reader's own zone.
fn time(value: &Value, name: &str) -> String {
    let micros = value.get(name).and_then(Value::as_i64).unwrap_or(0);
    let time = Timestamp::from_microsecond(micros).unwrap_or_default();
    time.to_zoned_datetime(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string()
}
