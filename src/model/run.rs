//! One life of an instance's processes: who they are and what for, how they ended, and what they said.
//!
//! What changes it is an event that [`super::Observed::apply`] takes.

use std::collections::VecDeque;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::event::{Doing, StopCause};
use super::outcome::Outcome;
use super::probe::RETRIES_MAX;
use super::shared::Shared;
use super::socket::Bound;
use super::spec::Spec;
use super::time::{Monotonic, Span, Wall};

/// Longest status text that a run may say about itself, in bytes; the rest is cut.
pub const STATUS_BYTES_MAX: usize = 256;

/// One life of an instance's processes: a random number, never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(pub u64);

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Who a process is within this boot and pid namespace: never mistaken for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its number, which another process may have later.
    pub pid: i32,
    /// When the kernel started it, in clock ticks since boot: field 22 of `/proc/PID/stat`.
    pub start: u64,
    /// The inode of its pidfd, where that is unique (Linux 6.9 and later).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inode: Option<u64>,
}

/// What a process is for within its run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The command of `conditions`.
    Condition,
    /// A hook before the main process, by its place in the list.
    PreStart(u16),
    /// The main process.
    Main,
    /// A hook once the run is ready.
    PostStart(u16),
    /// The command that reloads.
    Reload,
    /// A hook before a stop that was asked for.
    PreStop(u16),
    /// The command of a stop step.
    Stop(u16),
    /// A hook after all processes are gone.
    PostStop(u16),
    /// It asks whether the run is ready.
    ReadyProbe,
    /// It asks whether the run is healthy.
    HealthProbe,
    /// It was the main process until the run named another one; by how many had been named before.
    Former(u16),
}

impl Role {
    /// Whether it puts a question; what it says is no word of the unit's.
    pub fn is_probe(self) -> bool {
        matches!(self, Self::ReadyProbe | Self::HealthProbe)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, place) = match self {
            Self::Condition => ("condition command", None),
            Self::PreStart(n) => ("pre_start", Some(n)),
            Self::Main => ("command", None),
            Self::PostStart(n) => ("post_start", Some(n)),
            Self::Reload => ("reload command", None),
            Self::PreStop(n) => ("pre_stop", Some(n)),
            Self::Stop(n) => ("stop step", Some(n)),
            Self::PostStop(n) => ("post_stop", Some(n)),
            Self::ReadyProbe => ("readiness check", None),
            Self::HealthProbe => ("health check", None),
            Self::Former(_) => ("former main process", None),
        };
        match place {
            None => f.write_str(name),
            Some(n) => write!(f, "{name} {}", n.saturating_add(1)),
        }
    }
}

/// One life of an instance's processes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Which one.
    pub id: RunId,
    /// When it began.
    pub began: Monotonic,
    /// The same for people.
    pub wall: Wall,
    /// The main process, once there is one.
    pub main: Option<Process>,
    /// The latest hook, condition or stop command.
    pub helper: Option<Box<(Role, Process)>>,
    /// Helpers before that one which still live, because a stop did not wait for them, or failed; and
    /// the main processes before the one that the run named.
    #[serde(default)]
    pub earlier: Vec<(Role, Process)>,
    /// The latest question to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<Box<Asked>>,
    /// When health checks failed since the last one that did not, at most [`RETRIES_MAX`].
    #[serde(default, skip_serializing_if = "Shared::is_common")]
    pub unhealthy: Shared<VecDeque<Monotonic>>,
    /// Whether a health check has ever succeeded.
    #[serde(default)]
    pub was_healthy: bool,
    /// When its readiness rule was met.
    pub ready: Option<Monotonic>,
    /// When it was last told to read its configuration again.
    pub reloaded: Option<Monotonic>,
    /// When something that it watches last changed, while it was up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub touched: Option<Monotonic>,
    /// How many of its processes live beside those with a role, as far as they were counted. Whoever
    /// reads the ledger has to count anew, as only who counted is told when that changes.
    #[serde(skip)]
    pub left: Option<u32>,
    /// Where it listens, if it is a socket's.
    #[serde(default, skip_serializing_if = "Shared::is_common")]
    pub bound: Shared<Vec<Bound>>,
    /// When somebody was last seen to connect there while nobody took connections. One that is not in
    /// the ledger and waits still is seen again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub called: Option<Monotonic>,
    /// What it last said about itself.
    pub status: String,
    /// What else it said on its notify socket.
    #[serde(default, skip_serializing_if = "Shared::is_common")]
    pub words: Shared<Words>,
    /// Whether it was taken over from an earlier supervisor.
    pub adopted: bool,
}

/// What a run said on its notify socket, as far as it counts still.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct Words {
    /// What it says that it is doing.
    pub doing: Option<Doing>,
    /// When it last said to its watchdog that it is well, or that clock began anew.
    pub well: Option<Monotonic>,
    /// Whether it said to its watchdog that it has failed.
    pub failed: bool,
    /// How long it said that it may be silent; what its spec says where it said nothing.
    pub silence: Option<Span>,
    /// Until when it asked for more time for its start, or for this step of its stop.
    pub more_time: Option<Monotonic>,
    /// Whether it has named its main process, be it another one or the same.
    pub named: bool,
}

/// A question that was put to a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Asked {
    /// Which one.
    pub role: Role,
    /// Who asks; its end is the answer.
    pub process: Process,
    /// When it was put.
    pub at: Monotonic,
    /// What the one before came to, where it was the same one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Outcome>,
}

impl Asked {
    /// What it came to; while it is under way, what the one before did.
    pub fn outcome(&self) -> Option<&Outcome> {
        self.process.outcome().or(self.before.as_ref())
    }
}

/// A process of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Process {
    /// Who it is; one that could not be made is nobody.
    pub identity: Option<Identity>,
    /// Where it is.
    pub state: Life,
}

/// Where a process is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Life {
    /// Let through the gate; its program does not run yet.
    Born,
    /// Its program runs since then.
    Running(Monotonic),
    /// It ended.
    Ended(Outcome),
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct End {
    /// Which run it was.
    pub run: RunId,
    /// Why it was ended.
    pub cause: StopCause,
    /// How the process ended that decides: the main one, or the hook that failed.
    pub outcome: Option<Outcome>,
    /// When all its processes were gone.
    pub at: Monotonic,
    /// How long it had been ready, if it was.
    pub ready_for: Option<Span>,
    /// Whether opm ends because of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ends_opm: bool,
}

impl Process {
    /// Whether its end is still to be told.
    pub fn is_alive(&self) -> bool {
        match self.state {
            Life::Born | Life::Running(_) => true,
            Life::Ended(_) => false,
        }
    }

    /// Whether it lives, or its end may be that of a program that forked away.
    fn may_have_forked(&self) -> bool {
        match self.outcome() {
            // What nobody saw may have been that too.
            None | Some(Outcome::Exited(0) | Outcome::Unknown) => true,
            Some(Outcome::Exited(_) | Outcome::Killed { .. } | Outcome::NotStarted(_)) => false,
        }
    }

    /// How it ended, if it did.
    pub fn outcome(&self) -> Option<&Outcome> {
        match &self.state {
            Life::Ended(outcome) => Some(outcome),
            Life::Born | Life::Running(_) => None,
        }
    }
}

impl Run {
    /// The process whose end decides what follows: the main one, or the hook that failed.
    fn decisive(&self, cause: &StopCause) -> Option<&Process> {
        if let StopCause::HookFailed(role) = cause {
            return self.process(*role);
        }
        self.main.as_ref()
    }

    /// How it ended, when all of it is gone. `stops_since`: when its end began; until then it counts as
    /// having been ready.
    pub fn as_end(&self, cause: StopCause, stops_since: Monotonic, at: Monotonic) -> End {
        End {
            run: self.id,
            outcome: self.decisive(&cause).and_then(Process::outcome).cloned(),
            ready_for: self.ready.map(|ready| stops_since.since(ready)),
            cause,
            at,
            ends_opm: false,
        }
    }

    /// The process with this role.
    pub fn process(&self, role: Role) -> Option<&Process> {
        if role == Role::Main {
            return self.main.as_ref();
        }
        if role.is_probe() {
            return self.asked.as_ref().filter(|a| a.role == role).map(|asked| &asked.process);
        }
        let mut helpers = self.helper.as_deref().into_iter().chain(&self.earlier);
        helpers.find(|(helper, _)| *helper == role).map(|(_, process)| process)
    }

    fn process_mut(&mut self, role: Role) -> Option<&mut Process> {
        if role == Role::Main {
            return self.main.as_mut();
        }
        if role.is_probe() {
            let asked = self.asked.as_deref_mut().filter(|asked| asked.role == role);
            return asked.map(|asked| &mut asked.process);
        }
        let mut helpers = self.helper.as_deref_mut().into_iter().chain(&mut self.earlier);
        helpers.find(|(helper, _)| *helper == role).map(|(_, process)| process)
    }

    /// Whether a process with a role lives.
    pub fn is_alive(&self) -> bool {
        self.processes().any(|(_, process)| process.is_alive())
    }

    /// The latest helper, while it lives.
    pub fn helper_alive(&self) -> Option<Role> {
        self.helper.as_deref().filter(|(_, process)| process.is_alive()).map(|(role, _)| *role)
    }

    /// How the last command ended that reloads it, unless well.
    pub fn failed_reload(&self) -> Option<&Outcome> {
        let outcome = self.process(Role::Reload).and_then(Process::outcome);
        outcome.filter(|outcome| **outcome != Outcome::Exited(0))
    }

    /// Whether a process of this spec has yet to name its main one: it may have forked away, and who
    /// goes on in its name is not known.
    pub fn awaits_main(&self, spec: &Spec) -> bool {
        spec.process.as_ref().is_some_and(|process| process.pid_file.is_some())
            && !self.words.named
            && self.main.as_ref().is_some_and(Process::may_have_forked)
    }

    /// All processes with a role, living or not.
    pub fn processes(&self) -> impl Iterator<Item = (Role, &Process)> {
        let main = self.main.as_ref().map(|process| (Role::Main, process));
        let helpers = self.helper.as_deref().into_iter().chain(&self.earlier);
        let asked = self.asked.iter().map(|asked| (asked.role, &asked.process));
        main.into_iter().chain(helpers.map(|(role, process)| (*role, process))).chain(asked)
    }
}

impl Run {
    pub(super) fn asked_anew(&mut self) -> bool {
        self.unhealthy = Shared::default();
        if let Some(asked) = &mut self.asked {
            asked.before = None;
        }
        true
    }

    pub(super) fn held_up(&mut self, role: Role) -> bool {
        // What a run that is ready is made of runs.
        let is_ready = self.ready.is_some();
        let process = self.process_mut(role);
        let process =
            process.filter(|process| !is_ready && matches!(process.state, Life::Running(_)));
        process.is_some_and(|process| {
            process.state = Life::Born;
            true
        })
    }

    pub(super) fn execed(&mut self, role: Role, at: Monotonic) -> bool {
        let born = self.process_mut(role).filter(|process| process.state == Life::Born);
        born.is_some_and(|process| {
            process.state = Life::Running(at);
            true
        })
    }

    /// What it asked for was for the phase that is over. True, as this is a part of a change.
    pub(super) fn forget_more_time(&mut self) -> bool {
        // Only what it said changes what most runs share.
        if self.words.more_time.is_some() {
            self.words.more_time = None;
        }
        true
    }

    pub(super) fn set(&mut self, role: Role, process: Process, at: Monotonic) -> bool {
        self.left = None;
        if role.is_probe() {
            let before = self.asked.take().filter(|before| before.role == role);
            let before = before.and_then(|before| before.outcome().cloned());
            self.asked = Some(Box::new(Asked { role, process, at, before }));
        } else if role == Role::Main {
            self.main = Some(process);
        } else if let Some(before) = self.helper.replace(Box::new((role, process)))
            && before.1.outcome() != Some(&Outcome::Exited(0))
        {
            let (role, process) = *before;
            self.earlier.retain(|(other, earlier)| *other != role || earlier.is_alive());
            self.earlier.push((role, process));
        }
        true
    }

    /// Another process of its own is the main one from now on. The one before goes on as it likes,
    /// or has forked away and ended; its end is no more the run's.
    pub(super) fn change_main(&mut self, identity: Identity, was: u16, at: Monotonic) -> bool {
        let is_it = |process: &Process| {
            process
                .identity
                .is_some_and(|known| (known.pid, known.start) == (identity.pid, identity.start))
        };
        // Only the first one forks away; what was named is followed by nobody when it has ended.
        let is_first = !self.words.named;
        let may_name = |main: &Process| main.is_alive() || (is_first && main.may_have_forked());
        if self.main.as_ref().is_some_and(|main| main.is_alive() && is_it(main)) {
            return !std::mem::replace(&mut self.words.named, true);
        }
        let Some(mut before) = self.main.take_if(|main| may_name(main) && !is_it(main)) else {
            return false;
        };
        // Whoever can name another one runs its program.
        let since = if let Life::Running(since) = before.state { since } else { at };
        if before.is_alive() {
            before.state = Life::Running(since);
        }
        self.earlier.retain(|(_, process)| !is_it(process));
        self.earlier.push((Role::Former(was), before));
        self.main = Some(Process { identity: Some(identity), state: Life::Running(since) });
        self.left = None;
        self.words.named = true;
        true
    }

    /// What it says about itself, as far as there is room for it.
    pub(super) fn say(&mut self, status: &str) -> bool {
        let end = (0..=STATUS_BYTES_MAX.min(status.len()))
            .rev()
            .find(|end| status.is_char_boundary(*end));
        status.get(..end.unwrap_or(0)).unwrap_or_default().clone_into(&mut self.status);
        true
    }

    /// A process ended; one that never came to be is noted as such.
    pub(super) fn end(&mut self, role: Role, outcome: &Outcome, at: Monotonic) -> bool {
        let never_began = matches!(outcome, Outcome::NotStarted(_));
        match self.process_mut(role) {
            Some(process) if process.is_alive() => {
                process.state = Life::Ended(outcome.clone());
                self.left = None;
            }
            // It was to run once more, as nobody saw how it ended, and could not.
            Some(process) if never_began && process.outcome() == Some(&Outcome::Unknown) => {
                process.state = Life::Ended(outcome.clone());
            }
            // That it was the main one once is not known: it has no role.
            None if matches!(role, Role::Former(_)) => return false,
            // A question is put again and again, as is a reload asked for; this time it could not be.
            Some(_) if !never_began || !(role.is_probe() || role == Role::Reload) => return false,
            Some(_) | None => {
                let process = Process { identity: None, state: Life::Ended(outcome.clone()) };
                self.set(role, process, at);
            }
        }
        if role == Role::HealthProbe {
            self.answer(outcome, at);
        }
        true
    }

    /// A health check ended. One that nobody saw end, or for which there was no room, says nothing.
    fn answer(&mut self, outcome: &Outcome, at: Monotonic) {
        match outcome {
            Outcome::Exited(0) => {
                self.unhealthy = Shared::default();
                self.was_healthy = true;
            }
            Outcome::Unknown => {}
            Outcome::NotStarted(error) if error.passing => {}
            Outcome::Exited(_) | Outcome::Killed { .. } | Outcome::NotStarted(_) => {
                self.unhealthy.push_back(at);
                while self.unhealthy.len() > RETRIES_MAX as usize {
                    self.unhealthy.pop_front();
                }
            }
        }
    }
}
