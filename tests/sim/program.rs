//! What a command does in the simulated machine: the first word of its argv is a small program.
//!
//! | word | what it does |
//! | --- | --- |
//! | `forever` | runs until it is told to end |
//! | `stubborn` | the same, and ignores SIGTERM |
//! | `slow:MILLIS` | takes so long to end after SIGTERM |
//! | `late` | says that it is ready after a second |
//! | `mute` | never says so |
//! | `pings` | says every second to its watchdog that it is well |
//! | `faints:MILLIS` | does so for a while, and runs on in silence |
//! | `child` | leaves a child behind as it begins |
//! | `breeder` | leaves one behind when it is told to end |
//! | `hands:MILLIS` | leaves a child, says after a while that it is the main process, and exits 1 |
//! | `exit:CODE` | ends at once |
//! | `after:MILLIS:CODE` | ends after a while |
//! | `orphan:MILLIS:CODE` | the same, and leaves a child behind as it begins |
//! | `missing` | there is no such program |

use opm::model::{
    Command, FilePath, Hook, Monotonic, Outcome, Ready, Reload, Role, Signal, Span, StopAction,
};
use opm::system::Launch;

/// How often those that have a watchdog say that they are well.
const PING_EVERY: Span = Span::seconds(1);

/// The program that a launch runs; `None` where its unit has no such command any more.
pub(crate) fn program(launch: &Launch) -> Option<String> {
    let spec = &launch.spec;
    let hook = |hooks: &[Hook], n: u16| hooks.get(usize::from(n)).map(|hook| hook.command.clone());
    let base = FilePath::from("/");
    let command = match launch.role {
        Role::Main => spec.process.as_ref()?.command.clone(),
        Role::Condition => spec.conditions.command.clone()?,
        Role::PreStart(n) => hook(&spec.hooks.pre_start, n)?,
        Role::PostStart(n) => hook(&spec.hooks.post_start, n)?,
        Role::PreStop(n) => hook(&spec.hooks.pre_stop, n)?,
        Role::PostStop(n) => hook(&spec.hooks.post_stop, n)?,
        Role::Stop(n) => match &spec.stop.steps.get(usize::from(n))?.action {
            StopAction::Command(command) => command.clone(),
            StopAction::Signal(..) => return None,
        },
        Role::ReadyProbe => match &*spec.process.as_ref()?.ready {
            Ready::Asked(probe) => probe.question.command(&base),
            _ => return None,
        },
        Role::HealthProbe => spec.health.as_ref()?.probe.question.command(&base),
        Role::Former(_) => return None,
        Role::Reload => match spec.reload.as_deref()? {
            Reload::Command(command) => command.clone(),
            Reload::Signal(_) => return None,
        },
    };
    Some(match command {
        Command::Argv(words) => words[0].raw().to_owned(),
        Command::Shell(text) => text.raw().to_owned(),
    })
}

/// When and how a program that began at this time ends by itself.
pub(crate) fn end(program: &str, began: Monotonic) -> Option<(Monotonic, Outcome)> {
    let mut words = program.split(':');
    let (name, first, second) = (words.next()?, words.next(), words.next());
    let code = |text: &str| Outcome::Exited(text.parse().unwrap());
    match (name, first, second) {
        ("hands", Some(wait), None) => {
            let wait = Span::millis(wait.parse().unwrap());
            Some((began.after(wait).after(Span::millis(20)), Outcome::Exited(1)))
        }
        ("exit", Some(text), None) => Some((began, code(text))),
        ("after" | "orphan", Some(wait), Some(text)) => {
            Some((began.after(Span::millis(wait.parse().unwrap())), code(text)))
        }
        _ => None,
    }
}

/// When a program that began at this time says next to its watchdog that it is well.
pub(crate) fn pings_next(program: &str, began: Monotonic, now: Monotonic) -> Option<Monotonic> {
    let next = now.after(PING_EVERY);
    match program.split_once(':') {
        Some(("faints", wait)) => {
            Some(next).filter(|at| *at <= began.after(Span::millis(wait.parse().unwrap())))
        }
        _ => (program == "pings").then_some(next),
    }
}

/// When a program that began at this time says that its child is the main process.
pub(crate) fn names_child(program: &str, began: Monotonic) -> Option<Monotonic> {
    let wait = program.strip_prefix("hands:")?;
    Some(began.after(Span::millis(wait.parse().unwrap())))
}

/// How long a program takes to end after this signal; `None` when it does not.
pub(crate) fn patience(program: &str, signal: Signal) -> Option<Span> {
    match (signal, program.split_once(':')) {
        (Signal::KILL, _) => Some(Span::ZERO),
        (Signal::TERM, Some(("slow", wait))) => Some(Span::millis(wait.parse().unwrap())),
        (Signal::TERM, _) => (program != "stubborn").then(|| Span::millis(1)),
        _ => None,
    }
}

/// Whether a program leaves a child behind as it begins.
pub(crate) fn forks(program: &str) -> bool {
    program == "child" || program.starts_with("orphan") || program.starts_with("hands")
}

/// When a program that began at this time says that it is ready.
pub(crate) fn says_ready(program: &str, began: Monotonic) -> Option<Monotonic> {
    match program {
        "late" => Some(began.after(Span::seconds(1))),
        "mute" => None,
        _ => Some(began),
    }
}
