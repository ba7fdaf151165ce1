//! One instance in the keeper: its FIFO, its unfinished line and its log.

use std::io;
use std::path::{Path, PathBuf};

use mio::{Registry, Token};

use super::clock::now_ms;
use super::console::Console;
use super::fifo::{Fifo, Input};
use super::limit::Limit;
use super::outlet::{Address, Outlets};
use super::packer::Packer;
use super::ready::ReadyWatch;
use super::room::{self, Room};
use super::split::{Part, Splitter};
use super::stamp::Stamp;
use super::store::Store;
use crate::model::{InstanceId, RunId};
use crate::system::instruction::{self, Destination, Instruction};
use crate::system::run_mark;

/// Most bytes of one instance in one turn. The others come before it has the next.
pub(super) const TURN_BYTES_MAX: usize = 64 * 1024;
/// How long the begin of a line waits for its end before it is stored as a part, in milliseconds:
/// prompts become visible, and a keeper that is killed loses no old text.
const PART_WAIT_MS: u64 = 1_000;
/// How long until a record is tried again that no line waits for, in milliseconds: a full disk is not
/// asked all the time. Twice as long each time, up to the longest.
const TELL_AGAIN_MS: u64 = 1_000;
const TELL_AGAIN_MS_MAX: u64 = 30_000;
/// What stands in a log where a keeper was killed: it had read so much and not written it.
const GAP: &str = "the log keeper was killed; up to 112 KiB are missing here, and the next line may \
                   be the end of one";

/// What all instances use in turn.
#[derive(Debug)]
pub(super) struct Shared {
    /// For one read.
    pub(super) buffer: Vec<u8>,
    /// For the records of one read.
    pub(super) out: Vec<u8>,
    /// The copy on standard output.
    pub(super) console: Console,
    /// Whether every line is copied, not only those of `to: console`.
    pub(super) copy_all: bool,
    /// How many descriptors are left.
    pub(super) room: Room,
    /// Compresses finished files.
    pub(super) packer: Packer,
    /// What goes elsewhere than into files.
    pub(super) outlets: Outlets,
    /// Where the inputs of units are that read what others write.
    pub(super) run_dir: PathBuf,
}

impl Shared {
    /// The way to where an instruction sends records, where that is no file.
    fn address(&self, instruction: &Instruction) -> Option<Address> {
        match &instruction.to {
            Destination::File | Destination::Console | Destination::Path(_) => None,
            Destination::Syslog(syslog) => Some(Address::Syslog(syslog.address.clone())),
            Destination::Unit(unit) => {
                let path = instruction::input_path(&self.run_dir, unit);
                Some(Address::Input(unit.to_string(), path))
            }
        }
    }
}

/// Whether an instance needs another turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// There may be more to read.
    Again,
    /// There is nothing to read until an event says so.
    Idle,
    /// What was read before has yet to be sent: nothing is read until the keeper is woken for that.
    Blocked,
    /// It is drained and can be forgotten.
    Over,
}

/// An instance.
#[derive(Debug)]
pub(super) struct Unit {
    /// Which one it is.
    pub(super) id: InstanceId,
    name: String,
    fifo: Option<Fifo>,
    splitter: Splitter,
    /// Whether the last part that was stored has no newline yet.
    in_line: bool,
    store: Store,
    /// Where the records go, if not into a file.
    address: Option<Address>,
    to_console_only: bool,
    /// How many lines are taken, where not all are.
    limit: Option<Limit>,
    /// The line that is looked for, if one is.
    ready: Option<ReadyWatch>,
    /// Whether it is in the list of those that get a turn.
    pub(super) is_queued: bool,
    /// How many more bytes are read before it is forgotten; `None`: it stays.
    last_bytes: Option<u64>,
    /// When the unfinished line is stored as a part.
    part_due: Option<u64>,
    /// It is not tried before to say what is missing.
    tell_not_before: u64,
    /// How long after that, in milliseconds.
    tell_wait: u64,
}

impl Unit {
    pub(super) fn new(id: InstanceId, instruction: &Instruction, shared: &mut Shared) -> Self {
        let name = id.to_string();
        let mut store = Store::new(&name, instruction);
        store.pack(&mut shared.packer);
        let address = shared.address(instruction);
        store.go_to(address.as_ref().map(|address| shared.outlets.open(address)));
        Self {
            id,
            name,
            fifo: None,
            splitter: Splitter::default(),
            in_line: false,
            store,
            address,
            to_console_only: instruction.to == Destination::Console,
            limit: instruction.rate.map(Limit::new),
            ready: instruction.ready.as_ref().map(ReadyWatch::new),
            is_queued: false,
            last_bytes: None,
            part_due: None,
            tell_not_before: 0,
            tell_wait: TELL_AGAIN_MS,
        }
    }

    /// Takes over a changed instruction; an instance that was to be forgotten stays.
    pub(super) fn change(&mut self, instruction: &Instruction, shared: &mut Shared) {
        self.last_bytes = None;
        self.to_console_only = instruction.to == Destination::Console;
        self.store.change(instruction);
        let address = shared.address(instruction);
        if address != self.address {
            self.store.go_to(address.as_ref().map(|address| shared.outlets.open(address)));
            self.address = address;
        }
        self.store.pack(&mut shared.packer);
        match (&mut self.limit, instruction.rate) {
            (Some(limit), Some(rate)) => limit.change(rate),
            (limit, rate) => *limit = rate.map(Limit::new),
        }
        let is_same =
            |watch: &ReadyWatch| instruction.ready.as_ref().is_some_and(|l| watch.is_for(l));
        if !self.ready.as_ref().is_some_and(is_same) {
            self.ready = instruction.ready.as_ref().map(ReadyWatch::new);
        }
    }

    /// Says in the log that the keeper before was killed.
    pub(super) fn note_gap(&mut self) {
        self.store.note(GAP);
    }

    /// Opens the FIFO where that was not done yet, or where there is another one now.
    pub(super) fn attach(
        &mut self,
        path: &Path,
        registry: &Registry,
        token: Token,
        shared: &mut Shared,
    ) -> io::Result<()> {
        if let Some(old) = &self.fifo {
            if !old.is_replaced(path) {
                return Ok(());
            }
            let mut left = old.last_bytes();
            while left > 0 && self.turn(shared) == Turn::Again {
                left = left.saturating_sub(TURN_BYTES_MAX as u64);
            }
            self.fifo = None;
        }
        if let Some(fifo) = Fifo::open(path)? {
            if !shared.room.has_for(fifo.descriptor()) {
                return Err(room::lack());
            }
            fifo.register(registry, token)?;
            self.fifo = Some(fifo);
        }
        Ok(())
    }

    /// Closes the log until something is written to it.
    pub(super) fn close_log(&mut self) {
        self.store.close();
    }

    /// Has the instance forgotten as soon as what is in its FIFO now was read.
    pub(super) fn leave(&mut self) {
        let last_bytes = self.fifo.as_ref().map_or(0, Fifo::last_bytes);
        self.last_bytes.get_or_insert(last_bytes);
    }

    /// Reads up to [`TURN_BYTES_MAX`] and stores what was read.
    pub(super) fn turn(&mut self, shared: &mut Shared) -> Turn {
        if self.store.is_full() {
            return Turn::Blocked;
        }
        let Some(fifo) = &self.fifo else { return self.idle() };
        let (count, input) = fifo.read(&mut shared.buffer);
        if count > 0 {
            self.take(count, shared);
        }
        match input {
            Input::More => match &mut self.last_bytes {
                None => Turn::Again,
                Some(left) => {
                    *left = left.saturating_sub(count as u64);
                    if *left == 0 { Turn::Over } else { Turn::Again }
                }
            },
            Input::Empty => {
                self.is_at_end();
                self.idle()
            }
            Input::NoWriter => {
                self.end_line(shared);
                self.is_at_end();
                self.idle()
            }
            Input::Failed(error) => {
                log::error!("cannot read output of `{}`: {error}", self.name);
                self.fifo = None;
                self.idle()
            }
        }
    }

    fn is_at_end(&mut self) {
        if let Some(ready) = &mut self.ready {
            ready.is_at_end();
        }
    }

    fn idle(&self) -> Turn {
        if self.last_bytes.is_some() { Turn::Over } else { Turn::Idle }
    }

    /// Stores the first bytes of the buffer.
    fn take(&mut self, count: usize, shared: &mut Shared) {
        let was_holding = self.splitter.is_holding();
        let gave = self.store(shared, |splitter, buffer, give| {
            splitter.feed(buffer.get(..count).unwrap_or_default(), give);
        });
        if !self.splitter.is_holding() {
            self.part_due = None;
        } else if gave || !was_holding {
            self.part_due = Some(now_ms() + PART_WAIT_MS);
        }
    }

    /// When something is due.
    pub(super) fn due(&self) -> Option<u64> {
        let due = self.part_due.into_iter().chain(self.tell_due()).chain(self.store.age_due());
        due.min()
    }

    /// When it is to be said what is missing. What could not be written: at once. What the limit has
    /// cost: when its time is over, at once where there is another limit. Later where that could not be
    /// written.
    fn tell_due(&self) -> Option<u64> {
        let until = self.limit.as_ref().and_then(Limit::until).unwrap_or(0);
        let due = if self.store.has_dropped() { 0 } else { until };
        let is_missing = self.store.has_dropped() || self.store.has_limited();
        // It is asked now and then what was lost of what is still on its way.
        let leaving_due = self.store.is_leaving().then_some(self.tell_not_before);
        is_missing.then(|| due.max(self.tell_not_before)).or(leaving_due)
    }

    /// Does what is due.
    pub(super) fn do_due(&mut self, now: u64, shared: &mut Shared) {
        let is_due = |due: Option<u64>| due.is_some_and(|due| due <= now);
        if is_due(self.part_due) {
            self.end_line(shared);
        }
        if is_due(self.tell_due()) {
            self.tell_missing(shared);
            self.tell_not_before = now + self.tell_wait;
            let is_told = self.tell_due().is_none();
            self.tell_wait =
                if is_told { TELL_AGAIN_MS } else { TELL_AGAIN_MS_MAX.min(2 * self.tell_wait) };
        }
        if is_due(self.store.age_due()) {
            self.store.prune();
        }
    }

    /// Stores all that is left.
    pub(super) fn end(&mut self, shared: &mut Shared) {
        self.end_line(shared);
        self.tell_missing(shared);
    }

    /// Says what is missing, where something is.
    fn tell_missing(&mut self, shared: &mut Shared) {
        self.store.take_lost();
        if !self.store.has_dropped() && !self.store.has_limited() {
            return;
        }
        if self.to_console_only {
            let text = self.store.take_missing();
            shared.console.push(&self.name, text.as_bytes());
            return;
        }
        let mut batch = self.store.batch(&mut shared.out, Stamp::now());
        batch.tell_now();
        batch.finish();
    }

    /// Stores an unfinished line as a part.
    fn end_line(&mut self, shared: &mut Shared) {
        self.part_due = None;
        self.store(shared, |splitter, _, give| splitter.flush(give));
    }

    /// Stores what the splitter gives; whether that was anything.
    fn store(
        &mut self,
        shared: &mut Shared,
        split: impl FnOnce(&mut Splitter, &[u8], &mut dyn FnMut(Part<'_>)),
    ) -> bool {
        let now = now_ms();
        if self.to_console_only && self.limit.as_ref().is_none_or(|limit| limit.is_over(now)) {
            self.tell_missing(shared);
        }
        let Self { name, splitter, in_line, store, to_console_only, limit, ready, .. } = self;
        let Shared { buffer, out, console, copy_all, room, packer, .. } = shared;
        let copy = *copy_all || *to_console_only;
        let mut gave = false;
        let mut batch = store.batch(out, Stamp::now());
        split(splitter, buffer, &mut |part| {
            gave = true;
            let mut part = part;
            let mut begun = None;
            if let Some((before, begin, run)) = run_mark::find(part.bytes).filter(|_| part.full) {
                if let Some(ready) = ready {
                    ready.begin(begin, run);
                }
                begun = u64::from_str_radix(run, 16).ok().map(RunId);
                // It ends the line that it stands in, and is none itself.
                if before.is_empty() && !*in_line {
                    batch.begin_run(begun);
                    return;
                }
                part.bytes = before;
            } else if let Some(ready) = ready {
                ready.look(part);
            }
            if let Some(limit) = limit
                && !limit.takes(!*in_line, now)
            {
                batch.limit(part, !*in_line, limit);
                *in_line = !part.full;
                batch.begin_run(begun);
                return;
            }
            batch.push(part);
            batch.begin_run(begun);
            // A newline that came after the text of its line adds no empty one to the console.
            if copy && !(*in_line && part.bytes.is_empty()) {
                console.push(name, part.bytes);
            }
            *in_line = !part.full;
        });
        batch.finish();
        if store.take_rotated() {
            store.pack(packer);
            packer.look_at_quota();
        }
        if store.descriptor().is_some_and(|fd| !room.has_for(fd)) {
            store.close();
        }
        gave
    }
}
