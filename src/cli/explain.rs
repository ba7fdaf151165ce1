//! `opm explain`: what a key of unit files means, and when a schedule is due. Needs no daemon.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::json;

use super::args::{Explain, Global};
use super::{Error, Exit, Outcome, output, when};
use crate::config::{KEYS, Key, due_times, key_of, nearest_key};
use crate::model::Wall;

pub(super) fn explain(global: &Global, args: &Explain) -> Outcome {
    if let Some(expression) = &args.expression {
        let name = args.key.as_deref().unwrap_or_default();
        return times(global, args, name, expression);
    }
    let Some(name) = &args.key else { return list(global) };
    // As in `web.restart`: the unit's name may stand before the key.
    let without_unit = || name.split_once('.').and_then(|(_, rest)| key_of(rest));
    let Some(found) = key_of(name).or_else(without_unit) else {
        let hint = nearest_key(name).map(|key| format!("; did you mean `{key}`?"));
        let hint = hint.unwrap_or_else(|| "; `opm explain` lists all".to_owned());
        return Err(Error::new(Exit::Bad, format!("there is no key `{name}`{hint}")));
    };
    let inside = || KEYS.iter().filter(|key| key.parent() == found.path);
    if global.json {
        output::json(&json!({ "key": found, "keys": inside().collect::<Vec<_>>() }))?;
        return Ok(Exit::Done);
    }
    let default = if found.default.is_empty() { "none" } else { found.default };
    let mut text = format!(
        "{}: {}\n  value    {}\n  default  {default}\n  of       {}\n  change   {}\n",
        found.path,
        found.meaning,
        found.types,
        found.units.as_str(),
        found.change.as_str(),
    );
    if !found.supported {
        text.push_str("  This opm does not support it yet.\n");
    }
    text.extend(inside().map(|key| format!("  {}: {}\n", key.path, key.meaning)));
    text.push_str("The manual: opm-unit(5)\n");
    output::raw(text.as_bytes()).map(|()| Exit::Done)
}

fn list(global: &Global) -> Outcome {
    if global.json {
        output::json(&KEYS)?;
        return Ok(Exit::Done);
    }
    let is_built = |key: &&Key| key.supported;
    let rows: Vec<Vec<String>> = KEYS
        .iter()
        .filter(is_built)
        .map(|key| vec![key.path.to_owned(), key.types.to_owned(), key.meaning.to_owned()])
        .collect();
    output::raw(output::table(&["KEY", "VALUE", "MEANING"], &rows).as_bytes())?;
    Ok(Exit::Done)
}

/// The next due times of an expression, one a line.
fn times(global: &Global, args: &Explain, key: &str, expression: &str) -> Outcome {
    let bad = |why: String| Error::new(Exit::Bad, format!("cannot explain `{expression}`: {why}"));
    if !["schedule", "calendar", "every"].contains(&key) {
        let why = format!("`{key}` has no due times; `schedule`, `calendar` and `every` have");
        return Err(bad(why));
    }
    let when = due_times(key, expression).map_err(|unread| {
        let help = unread.help.map_or_else(String::new, |help| format!("; {help}"));
        bad(format!("{}{help}", unread.problem))
    })?;
    let zone = match &args.timezone {
        None => TimeZone::system(),
        Some(name) => TimeZone::get(name)
            .map_err(|_| bad(format!("there is no time zone `{name}` on this system")))?,
    };
    let now = Timestamp::now();
    let from = match &args.from {
        Some(text) => when::moment(text, now, &zone).map_err(bad)?,
        None => now,
    };
    let mut last = Wall(from.as_microsecond());
    let mut times = Vec::new();
    for _ in 0..args.lines {
        let Some(next) = when.next_after(last, &zone).filter(|next| *next > last) else { break };
        let Ok(time) = Timestamp::from_microsecond(next.0) else { break };
        times.push(time.to_zoned_datetime(zone.clone()));
        last = next;
    }
    if global.json {
        let times: Vec<String> = times.iter().map(|time| time.timestamp().to_string()).collect();
        output::json(&times)?;
    } else {
        let line =
            |time: &jiff::ZonedDateTime| format!("{}\n", time.strftime("%a %Y-%m-%d %H:%M:%S %Z"));
        let text: String = times.iter().map(line).collect();
        output::raw(text.as_bytes())?;
    }
    if times.is_empty() {
        return Err(Error::new(Exit::Failed, format!("`{expression}` is never due after {from}")));
    }
    Ok(Exit::Done)
}
