//! The log keeper: one process that reads the output of all instances and writes their logs.
//!
//! The supervisor starts, watches and adopts it like any unit; this is its own loop, and it knows
//! nothing of units, runs or plans. What it is to do it reads from `RUN/log` ([`instruction`]).
//!
//! - It sleeps until there is something to do: no timer runs while no line is unfinished.
//! - Turns go round: at most 64 KiB of one instance, then the next. A flood slows its own writer.
//! - Memory is bounded: one part of a line per instance, one read, one batch, the queues of the console
//!   and of each destination that is no file ([`outlet`]).
//! - Nothing that happens to a log file or to standard output stops it ([`store`], [`console`]).
//! - Where a keeper was killed, each log says so: a missing line means something.
//! - One keeper per directory, by a lock: two readers of a FIFO would tear its lines.

mod clock;
mod console;
mod courier;
mod fifo;
mod form;
mod limit;
mod outlet;
mod packer;
mod place;
mod quota;
mod ready;
mod room;
pub mod split;
mod stamp;
mod store;
mod unit;
mod watch;

#[cfg(test)]
mod store_tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use mio::{Events, Interest, Poll, Token, Waker};
use nix::fcntl::{Flock, FlockArg};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook_mio::v1_0::Signals;

use crate::model::InstanceId;
use crate::system::{
    self, LET_GO_AFTER,
    instruction::{self, Instruction},
    messages,
};
use clock::now_ms;
use console::Console;
pub use console::colour_of;
use outlet::Outlets;
use packer::Packer;
use room::Room;
use unit::{Shared, TURN_BYTES_MAX, Turn, Unit};
use watch::Watch;

const WATCH: Token = Token(0);
const SIGNALS: Token = Token(1);
const CONSOLE: Token = Token(2);
/// Something was sent, so that there is room for more.
const SENT: Token = Token(3);
/// Name of the file that is there while a keeper runs. Found at the start: one was killed.
const RUNNING: &str = ".keeper";
/// The first token of an instance; they are not used again.
const FIRST_UNIT: usize = 4;
/// Most events taken from the kernel at once; others wait for the next round.
const EVENTS_MAX: usize = 256;

/// What the keeper is started with.
#[derive(Debug, Clone)]
pub struct Options {
    /// The directory with `log/` in it.
    pub run_dir: PathBuf,
    /// Whether every line is copied to standard output, not only those of `to: console`.
    pub console: bool,
    /// Whether the names on standard output have colours.
    pub colour: bool,
    /// The directory of logs, and the most bytes of all finished files in it.
    pub quota: Option<(PathBuf, u64)>,
}

/// Runs until `SIGTERM`, then stores what is in the FIFOs and ends.
///
/// `SIGINT` and `SIGHUP` are taken and do nothing: a terminal sends them to everyone, and the
/// lines of the shutdown that follows are still to be stored.
pub fn run(options: &Options) -> ExitCode {
    // One descriptor for each FIFO and each file: the supervisor's own raised limit is not ours.
    system::raise_descriptor_limit();
    system::survive_large_files();
    messages::wait_for_nobody();
    let done = match Keeper::new(options).and_then(|mut keeper| keeper.run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("cannot keep logs in `{}`: {error}", options.run_dir.display());
            ExitCode::FAILURE
        }
    };
    messages::finish();
    done
}

struct Keeper {
    run_dir: PathBuf,
    poll: Poll,
    watch: Watch,
    signals: Signals,
    units: BTreeMap<Token, Unit>,
    tokens: BTreeMap<InstanceId, Token>,
    next_token: usize,
    /// Those that may have something to read, in the order of their turns.
    ready: VecDeque<Token>,
    /// Those that are not read until something was sent.
    blocked: BTreeSet<Token>,
    shared: Shared,
    /// When something is due of an instance, such as an unfinished line.
    unit_due: Option<u64>,
    /// When messages are tried again that nobody has read.
    talk_due: Option<u64>,
    /// When memory is to be given back that was needed to look at instances.
    lean_due: Option<u64>,
    stopping: bool,
    /// Whether the keeper before had no time to store what it had read.
    was_killed: bool,
    /// Whether the directory went away: an end that is no success.
    is_gone: bool,
    /// Held for as long as we are.
    _lock: Flock<File>,
}

impl Keeper {
    fn new(options: &Options) -> io::Result<Self> {
        let dir = instruction::log_dir(&options.run_dir);
        instruction::make_dir(&dir)?;
        let lock = Flock::lock(File::open(&dir)?, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, _)| io::Error::other("another keeper has it"))?;
        let running = dir.join(RUNNING);
        let was_killed = running.exists();
        File::create(&running)?;
        let poll = Poll::new()?;
        let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
        poll.registry().register(&mut signals, SIGNALS, Interest::READABLE)?;
        let watch = Watch::new(&dir, poll.registry(), WATCH)?;
        let shared = Shared {
            buffer: vec![0; TURN_BYTES_MAX],
            out: Vec::new(),
            console: Console::open(poll.registry(), CONSOLE, options.colour),
            copy_all: options.console,
            room: Room::new(),
            packer: Packer::new(options.quota.clone()),
            outlets: Outlets::new(Waker::new(poll.registry(), SENT)?),
            run_dir: options.run_dir.clone(),
        };
        Ok(Self {
            run_dir: options.run_dir.clone(),
            poll,
            watch,
            signals,
            units: BTreeMap::new(),
            tokens: BTreeMap::new(),
            next_token: FIRST_UNIT,
            ready: VecDeque::new(),
            blocked: BTreeSet::new(),
            shared,
            unit_due: None,
            talk_due: None,
            lean_due: None,
            stopping: false,
            was_killed,
            is_gone: false,
            _lock: lock,
        })
    }

    fn run(&mut self) -> io::Result<()> {
        for id in self.watch.present()? {
            self.look_at(&id);
        }
        if self.was_killed {
            self.units.values_mut().for_each(Unit::note_gap);
        }
        let mut events = Events::with_capacity(EVENTS_MAX);
        while !(self.stopping && self.units.is_empty()) {
            self.rest();
            match self.poll.poll(&mut events, self.timeout()) {
                Err(error) if error.kind() == ErrorKind::Interrupted => events.clear(),
                polled => polled?,
            }
            let (mut changed, mut signalled) = (false, false);
            for event in &events {
                match event.token() {
                    WATCH => changed = true,
                    SIGNALS => signalled = true,
                    CONSOLE => {}
                    SENT => {
                        for token in std::mem::take(&mut self.blocked) {
                            self.wake(token);
                        }
                    }
                    token => self.wake(token),
                }
            }
            if changed {
                self.take_changes()?;
            }
            if signalled && self.signals.pending().any(|signal| signal == SIGTERM) {
                // Instructions that were written before the signal count.
                self.take_changes()?;
                self.stop();
            }
            self.take_turns();
            self.do_due();
            self.try_again();
            self.shared.console.flush();
            let again = messages::try_again();
            self.talk_due = again.map(|again| now_ms().saturating_add(again.as_millis_up()));
        }
        self.shared.console.finish();
        self.shared.outlets.finish();
        if self.is_gone {
            return Err(io::Error::other("it was removed or moved"));
        }
        fs::remove_file(instruction::log_dir(&self.run_dir).join(RUNNING))
    }

    /// Gives back what is of no more use, if that is due: what is read of instances comes by pages of the
    /// program that lines do not need.
    fn rest(&mut self) {
        if self.lean_due.take_if(|due| *due <= now_ms()).is_some() {
            system::become_lean();
        }
    }

    fn timeout(&self) -> Option<Duration> {
        if self.ready.is_empty() {
            [self.unit_due, self.shared.room.retry_at, self.lean_due, self.talk_due]
                .into_iter()
                .flatten()
                .min()
                .map(|due| Duration::from_millis(due.saturating_sub(now_ms())))
        } else {
            Some(Duration::ZERO)
        }
    }

    /// Gives an instance a turn.
    fn wake(&mut self, token: Token) {
        if let Some(unit) = self.units.get_mut(&token)
            && !unit.is_queued
        {
            unit.is_queued = true;
            self.ready.push_back(token);
        }
    }

    fn take_changes(&mut self) -> io::Result<()> {
        if self.stopping {
            return Ok(());
        }
        let mut changes = self.watch.take()?;
        if changes.is_gone {
            self.is_gone = true;
            self.stop();
            return Ok(());
        }
        if changes.is_all {
            changes.instances.extend(self.tokens.keys().cloned());
        }
        for id in changes.instances {
            self.look_at(&id);
        }
        Ok(())
    }

    /// Does what an instance's files say now.
    fn look_at(&mut self, id: &InstanceId) {
        self.lean_due = Some(now_ms().saturating_add(LET_GO_AFTER.as_millis_up()));
        let known = self.tokens.get(id).copied();
        let instruction = match Instruction::read(&self.run_dir, id) {
            Ok(instruction) => instruction,
            Err(error) => return self.cannot("read log instruction of", id, &error),
        };
        let token = match (instruction, known) {
            (None, None) => return self.shared.room.settle(id),
            (None, Some(token)) => {
                if let Some(unit) = self.units.get_mut(&token) {
                    unit.leave();
                }
                token
            }
            (Some(instruction), Some(token)) => {
                if let Some(unit) = self.units.get_mut(&token) {
                    unit.change(&instruction, &mut self.shared);
                }
                self.attach(id, token);
                token
            }
            (Some(instruction), None) => {
                let token = Token(self.next_token);
                self.next_token = self.next_token.saturating_add(1);
                self.units.insert(token, Unit::new(id.clone(), &instruction, &mut self.shared));
                self.tokens.insert(id.clone(), token);
                self.attach(id, token);
                token
            }
        };
        self.unit_due = sooner(self.unit_due, self.units.get(&token).and_then(Unit::due));
        self.wake(token);
    }

    /// Opens the FIFO of an instance. Where there is no descriptor left, the logs are closed; each is
    /// opened again when it is written to.
    fn attach(&mut self, id: &InstanceId, token: Token) {
        let path = instruction::fifo_path(&self.run_dir, id);
        let mut opened = self.open_fifo(&path, token);
        if opened.as_ref().is_err_and(room::is_lack) {
            self.units.values_mut().for_each(Unit::close_log);
            opened = self.open_fifo(&path, token);
        }
        match opened {
            Ok(()) => self.shared.room.settle(id),
            Err(error) => self.cannot("open FIFO of", id, &error),
        }
    }

    fn open_fifo(&mut self, path: &Path, token: Token) -> io::Result<()> {
        let Some(unit) = self.units.get_mut(&token) else { return Ok(()) };
        unit.attach(path, self.poll.registry(), token, &mut self.shared)
    }

    /// Says why an instance is not read; where something was short, it is tried again.
    fn cannot(&mut self, doing: &str, id: &InstanceId, error: &io::Error) {
        if !room::is_lack(error) {
            log::error!("cannot {doing} `{id}`: {error}");
        } else if self.shared.room.wait(id) {
            log::error!("cannot {doing} `{id}`: {error}; trying again until this works");
        }
    }

    /// Looks again at the instances that found no room.
    fn try_again(&mut self) {
        for id in self.shared.room.take_due() {
            self.look_at(&id);
        }
    }

    fn stop(&mut self) {
        self.stopping = true;
        // Nobody is taken in any more.
        self.shared.room = Room::new();
        let tokens: Vec<Token> = self.units.keys().copied().collect();
        for token in tokens {
            if let Some(unit) = self.units.get_mut(&token) {
                unit.leave();
            }
            self.wake(token);
        }
    }

    /// One turn for each instance that is ready.
    fn take_turns(&mut self) {
        for _ in 0..self.ready.len() {
            let Some(token) = self.ready.pop_front() else { break };
            let Some(unit) = self.units.get_mut(&token) else { continue };
            match unit.turn(&mut self.shared) {
                Turn::Again => self.ready.push_back(token),
                Turn::Idle => unit.is_queued = false,
                Turn::Blocked => {
                    unit.is_queued = false;
                    self.blocked.insert(token);
                }
                Turn::Over => {
                    // Closing the FIFO takes it out of the poll set: nobody else has it.
                    unit.end(&mut self.shared);
                    self.tokens.remove(&unit.id);
                    self.units.remove(&token);
                    self.shared.room.is_made();
                    continue;
                }
            }
            self.unit_due = sooner(self.unit_due, unit.due());
        }
    }

    /// Does what of the instances is due: unfinished lines, and old files.
    fn do_due(&mut self) {
        let Some(due) = self.unit_due else { return };
        let now = now_ms();
        if now < due {
            return;
        }
        self.unit_due = None;
        for unit in self.units.values_mut() {
            unit.do_due(now, &mut self.shared);
            self.unit_due = sooner(self.unit_due, unit.due());
        }
    }
}

/// The sooner of two times, where there is any.
fn sooner(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    one.into_iter().chain(other).min()
}
