//! Commands that look: `status`, `show`, `why`, `wait`, `events`.

use serde_json::{Value, json};

use super::args::{Global, Name, Show, Status, Wait};
use super::client::{Client, result, rows};
use super::units::Aim;
use super::{Error, Exit, Outcome, output, units};
use crate::model::Span;
use crate::supervisor::Row;

/// `opm status`.
pub(super) fn status(global: &Global, args: &Status) -> Outcome {
    let mut client = Client::connect(global)?;
    let parameters = json!({ "units": args.units, "internal": args.all });
    let mut rows = rows(&client.call("List", parameters)?);
    retain_labelled(&mut rows, &args.label)?;
    if global.json {
        output::json(&rows)?;
    } else {
        output::raw(table(&rows).as_bytes())?;
    }
    let up = rows.iter().all(units::is_well);
    Ok(if args.units.is_empty() || up { Exit::Done } else { Exit::NoDaemon })
}

/// Leaves only instances with all of these labels, each `NAME=VALUE`.
pub(super) fn retain_labelled(rows: &mut Vec<Row>, labels: &[String]) -> Result<(), Error> {
    for label in labels {
        let (name, value) = label
            .split_once('=')
            .ok_or_else(|| Error::new(Exit::Bad, format!("`{label}` is no NAME=VALUE")))?;
        rows.retain(|row| row.labels.get(name).is_some_and(|known| known == value));
    }
    Ok(())
}

fn table(rows: &[Row]) -> String {
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let says = match &row.doing {
                Some(doing) if row.says.is_empty() => doing.clone(),
                Some(doing) => format!("{doing}: {}", row.says),
                None => row.says.clone(),
            };
            let why = if row.why.is_empty() { &says } else { &row.why };
            let restarts = if row.restarts > 0 { row.restarts.to_string() } else { String::new() };
            vec![
                row.instance.clone(),
                row.phase.clone(),
                if row.since_ms > 0 {
                    Span::millis(row.since_ms).to_string()
                } else {
                    String::new()
                },
                row.pid.map(|pid| pid.to_string()).unwrap_or_default(),
                restarts,
                output::plain(why),
            ]
        })
        .collect();
    output::table(&["UNIT", "PHASE", "FOR", "PID", "RESTARTS", "WHY"], &cells)
}

/// `opm show`.
pub(super) fn show(global: &Global, args: &Show) -> Outcome {
    let reply = Client::connect(global)?
        .call("Show", json!({ "unit": args.unit, "origin": args.origin }))?;
    let unit = reply.get("unit").cloned().unwrap_or_default();
    if global.json {
        output::json(&unit)?;
        return Ok(Exit::Done);
    }
    let mut text = String::new();
    let mut say = |key: &str, value: &Value| {
        if value.is_null() {
            return;
        }
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        text.extend([&output::plain(key), ": ", &output::plain(&value), "\n"]);
    };
    for key in ["source", "hold", "epoch"] {
        say(key, unit.get(key).unwrap_or(&Value::Null));
    }
    let origin = |key: &str| {
        let place = unit.get("origins").filter(|origins| origins.is_object())?.get(key)?;
        Some(place.as_str().unwrap_or("default").to_owned())
    };
    for (key, value) in unit.get("spec").and_then(Value::as_object).into_iter().flatten() {
        match origin(key) {
            None => say(key, value),
            Some(place) => {
                let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                say(key, &json!(format!("{value}   {place}")));
            }
        }
    }
    text.push('\n');
    text.push_str(&table(&rows(&unit)));
    output::raw(text.as_bytes())?;
    Ok(Exit::Done)
}

/// `opm why`.
pub(super) fn why(global: &Global, args: &Name) -> Outcome {
    let reply = Client::connect(global)?.call("Why", json!({ "unit": args.unit }))?;
    if global.json {
        output::json(&reply)?;
        return Ok(Exit::Done);
    }
    let lines = reply.get("lines").and_then(Value::as_array).cloned().unwrap_or_default();
    for line in lines.iter().filter_map(Value::as_str) {
        output::line(&output::plain(line))?;
    }
    Ok(Exit::Done)
}

/// `opm wait`.
pub(super) fn wait(global: &Global, args: &Wait) -> Outcome {
    let mut client = Client::connect(global)?;
    if args.condition == "settled" {
        return units::wait(global, &mut client, &args.units, Aim::Settled, args.timeout);
    }
    let waited = client.wait(&args.units, &args.condition, args.timeout, false, &mut |_| {})?;
    if waited.is_over()? {
        return Ok(Exit::Done);
    }
    if global.json {
        output::json(&waited.rows)?;
    }
    match waited.end.as_str() {
        "reached" => Ok(Exit::Done),
        "timeout" => {
            let message = format!("not {} in time, and still going on", args.condition);
            Err(Error::new(Exit::TimedOut, message))
        }
        _ => {
            let is_there = |phase: &str| match args.condition.as_str() {
                "completed" => phase == "done",
                "down" => phase != "unproven",
                _ => matches!(phase, "up" | "done"),
            };
            let why = |row: &Row| {
                let why = if row.why.is_empty() { "" } else { ": " };
                format!("`{}` is {}{why}{}", row.instance, row.phase, row.why)
            };
            let rows = waited.rows.iter().filter(|row| !is_there(&row.phase));
            let never: Vec<String> = rows.map(why).collect();
            let message = format!("will not be {}: {}", args.condition, never.join("; "));
            Err(Error::new(Exit::Failed, message))
        }
    }
}

/// `opm events`: until the daemon ends, or nobody reads.
pub(super) fn events(global: &Global) -> Outcome {
    let mut client = Client::connect(global)?;
    client.follow("Events", json!({}))?;
    loop {
        let reply = client.receive()?;
        let value = result(reply)?;
        let event = value.get("event").cloned().unwrap_or_default();
        // opm's own units are shown as in `status`: only when asked for.
        if event.get("own") == Some(&Value::Bool(true)) && global.verbose == 0 {
            continue;
        }
        if global.json {
            output::line(&event.to_string())?;
            continue;
        }
        let text = |name: &str| event.get(name).and_then(Value::as_str).unwrap_or_default();
        let (what, detail) = match event.get("what") {
            Some(Value::String(what)) => (what.clone(), String::new()),
            Some(Value::Object(map)) => map.iter().next().map_or_else(
                || (String::new(), String::new()),
                |(what, detail)| (what.clone(), detail.to_string()),
            ),
            _ => (String::new(), String::new()),
        };
        let reason = text("reason");
        let reason = if reason.is_empty() { String::new() } else { format!(" ({reason})") };
        let line = format!("{} {} {what} {detail}{reason}", text("time"), text("instance"));
        output::line(&output::plain(&line))?;
    }
}
