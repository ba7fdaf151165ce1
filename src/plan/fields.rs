//! A spec as an operator wrote it: its keys with their values, for plans and `opm show`.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::Class;
use crate::model::{Signal, Span, Spec};

/// Names whose values are never shown.
const SECRET_WORDS: [&str; 6] = ["PASSWORD", "PASSWD", "SECRET", "TOKEN", "KEY", "CREDENTIAL"];
/// Keys whose values are lengths of time.
const SPANS: [&str; 8] = [
    "start_timeout",
    "restart.delay",
    "restart.max_delay",
    "restart.reset_after",
    "ready.delay",
    "watchdog",
    "logs.max_age",
    "logs.rate.per",
];

/// Keys with their values, and what a change of each costs.
pub(super) type Fields = BTreeMap<String, (Value, Class)>;

/// Every key of a spec under the name it has in a unit file, with what its change costs.
pub fn fields_of(spec: &Spec) -> Fields {
    let mut fields = Fields::new();
    let Ok(Value::Object(top)) = serde_json::to_value(spec) else { return fields };
    for (key, value) in top {
        let (class, lifted) = match key.as_str() {
            "process" | "socket" => (Class::Restart, true),
            "relations" | "hooks" => (Class::Live, true),
            "kind" => (Class::Restart, false),
            _ => (Class::Live, false),
        };
        if !lifted {
            add(key, value, class, &mut fields);
        } else if let Value::Object(inner) = value {
            for (key, value) in inner {
                let class = if key == "accept" { Class::Live } else { class };
                add(key, value, class, &mut fields);
            }
        }
    }
    // Where its output goes is one key to an operator.
    match fields.remove("output") {
        Some((Value::String(to), class)) if to != "keeper" => {
            fields.retain(|key, _| !key.starts_with("logs."));
            fields.insert("logs.to".to_owned(), (Value::String(to), class));
        }
        _ => {}
    }
    fields.remove("base_dir");
    fields.remove("own_session");
    fields
}

/// Adds a key; maps become one key per entry, and what is empty or absent is none.
fn add(key: String, value: Value, class: Class, fields: &mut Fields) {
    if key == "stop" {
        fields.insert(key, (stop(&value), class));
        return;
    }
    if let Value::Object(map) = &value {
        if key == "command"
            || key == "instances"
            || (key == "reload" && map.contains_key("command"))
        {
            let inner = map.values().next().cloned().unwrap_or_default();
            fields.insert(key, (inner, class));
            return;
        }
        for (inner, value) in map {
            add(format!("{key}.{inner}"), value.clone(), class, fields);
        }
        return;
    }
    let empty = [Value::Null, Value::Array(Vec::new()), Value::String(String::new())];
    if !empty.contains(&value) {
        let value = present(&key, value);
        fields.insert(key, (value, class));
    }
}

/// A value as an operator would write it.
fn present(key: &str, value: Value) -> Value {
    let number = value.as_u64();
    match (key, number) {
        ("listen", _) => listen(value),
        ("umask", Some(mask)) => json!(format!("{mask:03o}")),
        ("reload.signal", Some(_)) => signal(&value),
        _ if SPANS.contains(&key) => number.map_or(value, span),
        _ => value,
    }
}

/// Addresses, with the mode of a Unix socket in octal digits.
fn listen(mut value: Value) -> Value {
    for one in value.as_array_mut().into_iter().flatten() {
        if let Some(mode) = one.get_mut("mode") {
            *mode = json!(mode.as_u64().map(|mode| format!("{mode:04o}")));
        }
    }
    value
}

fn span(nanos: u64) -> Value {
    json!(Span::nanos(nanos).to_string())
}

fn signal(value: &Value) -> Value {
    let number = value.as_i64().and_then(|number| i32::try_from(number).ok());
    number.and_then(Signal::from_number).map_or_else(|| value.clone(), |s| json!(s.to_string()))
}

/// The steps of a stop.
fn stop(value: &Value) -> Value {
    let steps = value.get("steps").and_then(Value::as_array);
    let step = |step: &Value| {
        let wait = step.get("wait").and_then(Value::as_u64).map(span);
        let action = step.get("action");
        match action.and_then(|action| action.get("signal")) {
            Some(pair) => json!({
                "signal": pair.get(0).map(signal), "to": pair.get(1), "wait": wait,
            }),
            None => json!({ "command": action.and_then(|a| a.get("command")), "wait": wait }),
        }
    };
    Value::Array(steps.into_iter().flatten().map(step).collect())
}

/// Keeps values of names like `DB_PASSWORD` out of plans, output and logs.
pub fn conceal(key: &str, value: Value) -> Value {
    let upper = key.to_ascii_uppercase();
    if key.starts_with("env.") && SECRET_WORDS.iter().any(|word| upper.contains(word)) {
        return Value::String("(not shown)".to_owned());
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Command, Kind, ProcessSpec, Template, UnitName};

    #[test]
    fn values_are_shown_as_they_are_written() {
        let mut spec = Spec::new(Kind::Service, UnitName::parse("web").unwrap());
        let command = Command::Argv(vec![Template::literal("true")]);
        let mut process = ProcessSpec::new(command, "/units".into());
        process.umask = Some(0o27);
        process.env.insert("A".to_owned(), Template::literal("x"));
        spec.process = Some(process);
        let fields = fields_of(&spec);
        for (key, value) in [
            ("command", json!(["true"])),
            ("umask", json!("027")),
            ("env.A", json!("x")),
            ("restart.delay", json!("200ms")),
            ("start_timeout", json!("1m")),
            ("stop", json!([{ "signal": "SIGTERM", "to": "all", "wait": "10s" }])),
            ("logs.to", json!("file")),
            ("instances", json!(1)),
        ] {
            assert_eq!(fields.get(key).map(|(value, _)| value), Some(&value), "{key}");
        }
        for key in ["base_dir", "output", "user", "hooks.pre_start", "pre_start"] {
            assert_eq!(fields.get(key), None, "{key}");
        }
    }
}
