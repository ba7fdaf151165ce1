//! How a process comes to be: whether there is room for it, what it is given, and what is heard of it
//! until it runs its program.

use std::ffi::OsString;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::rc::Rc;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

use super::super::child::{Prepared, REPORT_BYTES};
use super::super::launch::{self, Launcher};
use super::super::ledger::Ledger;
use super::super::spawn::{self, BirthError, Nursery};
use super::super::stacks::STACKS;
use super::super::{Launch, accounts, plain, sys};
use super::pid_file::Awaited;
use super::readiness::Readiness;
use super::{Child, Linux, Token, Watched};
use crate::model::{
    EXIT_NEVER_STARTED, Event, Happening, Identity, InstanceId, Monotonic, Outcome, Output,
    ProcessSpec, Role, RunId, Span, Spec, Stage, StartError, Stdin,
};
use crate::system::System;

/// Most processes that are on their way to their program at a time: more only hold each other up, and
/// each has copies of the descriptors of all the others.
const STARTING_MAX: usize = STACKS;
/// One that has not come there in this time hangs, and holds up nobody.
const STARTING_TIME: Span = Span::seconds(1);

/// A process on its way to its program.
#[derive(Debug)]
pub(super) struct Launching {
    pub(super) launch: Launch,
    pub(super) prepared: Rc<Prepared>,
    pub(super) channel: UnixStream,
}

/// What a process is given beside its command.
struct Given {
    /// Descriptors, and their numbers in the child.
    numbered: Vec<(RawFd, RawFd)>,
    /// Variables.
    extra: Vec<(&'static str, OsString)>,
    /// Those of the descriptors that are open for it alone, until it has its own.
    held: Vec<OwnedFd>,
}

impl Linux {
    /// Whether what a unit asks of its surroundings is there; else what is not.
    pub(super) fn conditions_of(
        &self,
        id: &InstanceId,
        index: u32,
        spec: &Spec,
    ) -> Result<(), String> {
        let conditions = &spec.conditions;
        if conditions.is_trivial() {
            return Ok(());
        }
        let base = spec.process.as_ref().map(|process| process.base_dir.as_path().to_owned());
        let base = base.unwrap_or_else(|| PathBuf::from("/"));
        for template in &conditions.path_exists {
            let path = base.join(launch::fill(template, &self.origin, id, index, spec));
            if let Err(error) = fs::metadata(&path) {
                return Err(format!("path `{}`: {}", path.display(), plain(&error.to_string())));
            }
        }
        let (Some(process), false) = (&spec.process, conditions.env.is_empty()) else {
            return Ok(());
        };
        let launch = Launch {
            instance: id.clone(),
            index,
            run: RunId(0),
            role: Role::Main,
            spec: std::sync::Arc::new(spec.clone()),
        };
        let launcher = Launcher { origin: &self.origin, launch: &launch, process };
        let env = launcher.variables_for_conditions().map_err(|error| error.to_string())?;
        for name in &conditions.env {
            if env.get(name).is_none_or(std::ffi::OsStr::is_empty) {
                return Err(format!("environment variable `{name}` is not set"));
            }
        }
        Ok(())
    }

    /// Whether one more can be made now, beside those that are on their way and those promised room.
    pub(super) fn has_room_to_start(&mut self, promised: usize) -> bool {
        if self.starting.len() + promised >= STARTING_MAX {
            let now = self.now();
            let is_young = |since: &&Monotonic| now.since(**since) < STARTING_TIME;
            if self.starting.values().filter(is_young).count() + promised >= STARTING_MAX {
                // If none of them gets on, nothing else would have us ask again.
                self.later.again(now);
                return false;
            }
        }
        let is_alone = self.starting.is_empty() && promised == 0;
        is_alone || self.descriptors.for_start(self.null.as_fd())
    }

    /// Makes a process: it is in the ledger before it is let go.
    pub(super) fn start(&mut self, launch: &Launch, at: Monotonic) -> Result<Identity, StartError> {
        let Some(spec) = &launch.spec.process else {
            return Err(prepare_error("", &std::io::Error::other("the unit has no process")));
        };
        self.kept(&launch.instance, launch.run);
        let is_main = launch.role == Role::Main;
        // What ends a run may take the last ones.
        if !is_of_end(launch.role) && !self.descriptors.for_start(self.null.as_fd()) {
            return Err(prepare_error("", &std::io::Error::from_raw_os_error(libc::EMFILE)));
        }
        let Given { numbered, extra, held } = self.given(launch, spec)?;
        let prepared = {
            let launcher = Launcher { origin: &self.origin, launch, process: spec };
            Rc::new(launcher.prepare(numbered, &extra)?)
        };
        let pid_file = if is_main { self.expect_main(launch)? } else { None };
        let owner = owner_of(&launch.spec)
            .map_err(|error| prepare_error("the owner of its files", &error))?;
        let ledger = self.lasting.as_mut().map(|lasting| &mut lasting.ledger);
        self.nursery.keep_from_children(self.outputs.len());
        let born = give_birth(&mut self.nursery, &prepared, launch, at, ledger)?;
        drop(held);
        let identity = born.identity;
        self.kept(&launch.instance, launch.run).has_begun = true;
        if is_main && let Some(kept) = self.runs.get_mut(&launch.run) {
            kept.awaited = pid_file.map(|path| Box::new(Awaited { path, owner, first: identity }));
        }
        let Launch { run, role, ref instance, .. } = *launch;
        let (instance, leads_session) = (instance.clone(), prepared.own_session);
        self.children.insert(
            identity.pid,
            Child { instance, run, role, start: identity.start, leads_session },
        );
        let fd = born.channel.as_raw_fd();
        let launching = Launching { launch: launch.clone(), prepared, channel: born.channel };
        let watched = Watched::Channel(Box::new(launching));
        if let Err(error) = self.watch(Some(launch.run), fd, watched) {
            // The process runs and is in the ledger; only its exec goes unseen. Its end will tell.
            log::error!("cannot watch the start of {}: {error}", launch.instance);
            self.later.execs.push((launch.clone(), identity));
            self.later.again(self.now());
        }
        Ok(identity)
    }

    /// Opens what a process is given: its standard descriptors, and for a main process all by which it
    /// is spoken to and speaks.
    fn given(&mut self, launch: &Launch, spec: &ProcessSpec) -> Result<Given, StartError> {
        let is_main = launch.role == Role::Main;
        // A question is no word of the unit's.
        let to = if launch.role.is_probe() { Output::Null } else { spec.output };
        let output = match to {
            Output::Keeper => Some(self.output(launch)?),
            Output::Inherit | Output::Null => None,
        };
        if output.is_some() {
            self.mark_run(launch, spec);
        }
        let readiness =
            if is_main { self.open_channels(launch, spec)? } else { Readiness::default() };
        let input =
            if is_main && spec.stdin == Stdin::Logs { Some(self.input(launch)?) } else { None };
        let null = self.null.as_raw_fd();
        let mut numbered = Vec::new();
        if !(is_main && spec.stdin == Stdin::Inherit) {
            numbered.push((input.as_ref().map_or(null, AsRawFd::as_raw_fd), 0));
        }
        match (&output, to) {
            (Some(fd), _) => numbered.extend([(fd.as_raw_fd(), 1), (fd.as_raw_fd(), 2)]),
            (None, Output::Null) => numbered.extend([(null, 1), (null, 2)]),
            (None, Output::Inherit | Output::Keeper) => {}
        }
        let Readiness { owned, mut extra } = readiness;
        numbered.extend(owned.iter().map(|(fd, number)| (fd.as_raw_fd(), *number)));
        if is_main {
            self.give_sockets(launch, &mut numbered, &mut extra);
        }
        let held = owned.into_iter().map(|(fd, _)| fd).chain(output).chain(input).collect();
        Ok(Given { numbered, extra, held })
    }

    /// What is on the channel of a process that has ended: its exec, or why there was none.
    pub(super) fn drain_channel(
        &mut self,
        run: RunId,
        role: Role,
        outcome: &Outcome,
        events: &mut Vec<Event>,
    ) -> Outcome {
        let token = self.runs.get(&run).and_then(|kept| {
            kept.tokens.iter().copied().find(|token| match self.watched.get(token) {
                Some(Watched::Channel(launching)) => launching.launch.role == role,
                _ => false,
            })
        });
        let Some(token) = token else { return outcome.clone() };
        let before = events.len();
        self.channel_ready(token, events);
        match events.get(before).map(|event| &event.what) {
            Some(Happening::Ended { outcome, .. }) => {
                let outcome = outcome.clone();
                events.truncate(before);
                outcome
            }
            _ if *outcome == Outcome::Exited(EXIT_NEVER_STARTED) => {
                Outcome::NotStarted(StartError {
                    stage: Stage::Gate,
                    subject: String::new(),
                    reason: "the gate was closed".to_owned(),
                    passing: true,
                })
            }
            _ => outcome.clone(),
        }
    }

    pub(super) fn channel_ready(&mut self, token: Token, events: &mut Vec<Event>) {
        let Some(Watched::Channel(launching)) = self.watched.get(&token) else { return };
        let mut report = [0u8; REPORT_BYTES];
        let fd = launching.channel.as_raw_fd();
        let got = match recv(fd, &mut report, MsgFlags::MSG_DONTWAIT) {
            Ok(got) => got,
            Err(Errno::EAGAIN) => return,
            Err(_) => 0,
        };
        let Some(Watched::Channel(launching)) = self.unwatch(token) else { return };
        self.nursery.look();
        let Launch { run, role, ref instance, .. } = launching.launch;
        if got != REPORT_BYTES {
            events.push(self.event(instance, Happening::Execed { run, role }));
            return;
        }
        let [stage, a, b, c, d, which] = report;
        let errno = i32::from_le_bytes([a, b, c, d]);
        let stage = Stage::from_number(stage).unwrap_or(Stage::Exec);
        let Some(process) = &launching.launch.spec.process else { return };
        let launcher = Launcher { origin: &self.origin, launch: &launching.launch, process };
        let error = launcher.explain(stage, errno, which, &launching.prepared);
        let outcome = Outcome::NotStarted(error);
        events.push(self.event(instance, Happening::Ended { run, role, outcome }));
        // That it exits is no second end of it.
        if let Some(pid) = self.children.in_role(run, role) {
            self.children.remove(pid);
        }
    }
}

/// Whether a process has a part in the end of a run, or only in its life.
fn is_of_end(role: Role) -> bool {
    match role {
        Role::Reload | Role::PreStop(_) | Role::Stop(_) | Role::PostStop(_) => true,
        Role::Condition
        | Role::PreStart(_)
        | Role::Main
        | Role::PostStart(_)
        | Role::ReadyProbe
        | Role::HealthProbe
        | Role::Former(_) => false,
    }
}

pub(super) fn prepare_error(subject: impl std::fmt::Display, error: &std::io::Error) -> StartError {
    StartError {
        stage: Stage::Prepare,
        subject: subject.to_string(),
        reason: plain(&error.to_string()),
        passing: sys::is_shortage(error),
    }
}

/// Who has to be able to open what is made for a unit; `None`: we ourselves.
pub(super) fn owner_of(spec: &Spec) -> std::io::Result<Option<u32>> {
    let user = spec.process.as_ref().and_then(|process| process.user.as_ref());
    match user.filter(|_| nix::unistd::geteuid().is_root()) {
        Some(user) => Ok(accounts::user(user)?.map(|account| account.uid)),
        None => Ok(None),
    }
}

/// Makes the process, with its ledger entry between its birth and its exec.
fn give_birth(
    nursery: &mut Nursery,
    prepared: &Rc<Prepared>,
    launch: &Launch,
    at: Monotonic,
    mut ledger: Option<&mut Ledger>,
) -> Result<spawn::Born, StartError> {
    let Launch { run, role, .. } = *launch;
    let mut record = |identity: Identity| -> Result<(), String> {
        let Some(ledger) = ledger.as_deref_mut() else { return Ok(()) };
        // Whoever reads of one that was let go and is dead cannot tell whether its program ran. What
        // broke off between the two lines was not let go, and has not run.
        let spawned = Happening::Spawned { run, role, identity };
        let lines = [spawned, Happening::Execed { run, role }];
        let count = lines.len();
        for what in lines {
            ledger.note(&Event { instance: launch.instance.clone(), at, what });
        }
        ledger.flush().map_err(|error| {
            ledger.forget_last_notes(count);
            error.reason
        })
    };
    spawn::birth(nursery, prepared, &mut record).map_err(|error| {
        let (stage, reason, passing) = match error {
            BirthError::Fork(error) => (Stage::Fork, plain(&error.to_string()), true),
            BirthError::Unseen => (Stage::Fork, "its start time cannot be read".to_owned(), true),
            BirthError::Record(reason) => (Stage::Ledger, reason, true),
        };
        StartError { stage, subject: launch.instance.to_string(), reason, passing }
    })
}
