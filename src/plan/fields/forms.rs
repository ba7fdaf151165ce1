//! Values in the form in which an operator writes them in a unit file.

use serde::Serialize;
use serde_json::{Value, json};

use crate::model::{
    Address, Command, Condition, Dependency, EnvFile, ExitMatch, Hook, Limit, Listen, Probe,
    Question, Resource, Signal, Span, StopAction, StopStep,
};

/// The word for one of several choices.
pub(super) fn word(choice: &impl Serialize) -> Value {
    json!(choice)
}

pub(super) fn span(length: Span) -> Value {
    json!(length.in_full())
}

/// A number of bytes in the largest unit of which it is a whole number.
pub(super) fn size(bytes: u64) -> Value {
    let units = [("T", 40), ("G", 30), ("M", 20), ("K", 10)];
    let whole = units.into_iter().find(|(_, power)| bytes > 0 && bytes.trailing_zeros() >= *power);
    json!(
        whole
            .map_or_else(|| bytes.to_string(), |(unit, power)| format!("{}{unit}", bytes >> power))
    )
}

/// A signal by its name; a few have none.
pub(super) fn signal(signal: Signal) -> Value {
    let name = signal.to_string();
    if Signal::parse(&name).is_some() { json!(name) } else { json!(signal.number()) }
}

pub(super) fn exit(exit: ExitMatch) -> Value {
    match exit {
        ExitMatch::Code(code) => json!(code),
        ExitMatch::Signal(by) => signal(by),
    }
}

/// A command as a list of its words, or the text for a shell.
pub(super) fn words(command: &Command) -> Value {
    match command {
        Command::Argv(argv) => json!(argv),
        Command::Shell(text) => json!(text),
    }
}

pub(super) fn env_file(file: &EnvFile) -> Value {
    let EnvFile { path, optional } = file;
    if *optional { json!({ "path": path, "optional": true }) } else { json!(path) }
}

pub(super) fn dependency(dependency: &Dependency) -> Value {
    let Dependency { unit, condition } = dependency;
    match condition {
        Condition::Ready => json!(unit),
        Condition::Started | Condition::Completed => {
            json!({ "unit": unit, "condition": condition.as_str() })
        }
    }
}

pub(super) fn hook(hook: &Hook) -> Value {
    let Hook { command, ignore_failure, user } = hook;
    if !*ignore_failure && user.is_none() {
        return words(command);
    }
    let mut map = serde_json::Map::new();
    map.insert("command".to_owned(), words(command));
    if *ignore_failure {
        map.insert("ignore_failure".to_owned(), json!(true));
    }
    if let Some(user) = user {
        map.insert("user".to_owned(), json!(user));
    }
    Value::Object(map)
}

pub(super) fn stop_step(step: &StopStep) -> Value {
    let wait = span(step.wait);
    match &step.action {
        StopAction::Signal(by, _) => json!({ "signal": signal(*by), "wait": wait }),
        StopAction::Command(command) => json!({ "command": words(command), "wait": wait }),
    }
}

/// An address, with the mode of a Unix socket in octal digits.
pub(super) fn listens(listen: &Listen) -> Value {
    let Listen { address, name, mode, user, group } = listen;
    let (key, at) = match address {
        Address::Tcp(at) => ("tcp", json!(at)),
        Address::Udp(at) => ("udp", json!(at)),
        Address::Unix(path) => ("unix", json!(path)),
    };
    let mode = mode.map(|mode| format!("{mode:04o}"));
    let rest = [("name", json!(name)), ("mode", json!(mode)), ("user", json!(user))];
    let all = [(key, at), ("group", json!(group))].into_iter().chain(rest);
    let given = all.filter(|(_, value)| !value.is_null());
    given.map(|(key, value)| (key.to_owned(), value)).collect()
}

/// A question with how often it is put, by the keys of `ready` and `health`.
pub(super) fn asked(probe: &Probe) -> Vec<(&'static str, Value)> {
    let Probe { question, interval, timeout } = probe;
    let mut keys = match question {
        Question::Tcp(address) => vec![("tcp", json!(address))],
        Question::Unix(path) => vec![("unix", json!(path))],
        Question::Http { url, expect: None } => vec![("http", json!(url))],
        Question::Http { url, expect: Some(status) } => {
            vec![("http", json!(url)), ("expect", json!(status))]
        }
        Question::Exec(command) => vec![("exec", words(command))],
        Question::Memory(bytes) => vec![("memory", size(*bytes))],
    };
    keys.extend([("interval", span(*interval)), ("timeout", span(*timeout))]);
    keys
}

/// `N`, `SOFT:HARD`, or `unlimited` for either.
pub(super) fn limit(resource: Resource, limit: Limit) -> Value {
    let is_size = match resource {
        Resource::As
        | Resource::Core
        | Resource::Data
        | Resource::Fsize
        | Resource::Memlock
        | Resource::Msgqueue
        | Resource::Rss
        | Resource::Stack => true,
        Resource::Cpu
        | Resource::Locks
        | Resource::Nice
        | Resource::Nofile
        | Resource::Nproc
        | Resource::Rtprio
        | Resource::Rttime
        | Resource::Sigpending => false,
    };
    let one = |limit: Option<u64>| match limit {
        None => json!("unlimited"),
        Some(bytes) if is_size => size(bytes),
        Some(number) => json!(number),
    };
    let bare = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let (soft, hard) = (one(limit.soft), one(limit.hard));
    if limit.soft == limit.hard { soft } else { json!(format!("{}:{}", bare(&soft), bare(&hard))) }
}
