//! One instance's log: whole records, exact sizes, and a mark where something is missing.
//!
//! Invariants: a record is in a file whole or not at all; a file is larger than `max_size` only by
//! a single record; nothing here waits or fails for the caller. What cannot be written is dropped
//! and counted, and a record says so as soon as one can be written again.
//!
//! The path is looked up once per batch and compared with the open file. So a file that was
//! deleted, renamed or cut by others is noticed at once, and several instances may share a path.
//!
//! What goes elsewhere than into a file has the same batches and the same marks, and an
//! [`Outlet`] in the place of the file.

mod batch;

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, RawFd};

use super::clock::now_ms;
use super::form::Form;
use super::outlet::Outlet;
use super::packer::Packer;
use super::place::{Open, Place};
use super::stamp::Stamp;
use crate::model::RunId;
use crate::system::{self, instruction::Instruction};
use batch::Batch;

/// Shortest time between two messages about one instance's log, in seconds; others are left out.
const REPORT_SECONDS: i64 = 10;
/// How often at least a text log says which run its lines are of, in bytes: whoever reads from the
/// middle need not look further back.
pub(super) const RUN_EVERY_BYTES: u64 = 64 * 1024;

/// What went wrong with a file.
#[derive(Debug)]
pub(super) struct Failure {
    /// What was being done, as in "cannot ...".
    pub(super) doing: &'static str,
    /// What the kernel said, in its words.
    pub(super) cause: String,
}

impl Failure {
    /// For `map_err`.
    pub(super) fn of(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self { doing, cause: system::plain(&error.to_string()) }
    }
}

/// What a record says that is missing.
#[derive(Debug)]
struct Told {
    note: Option<String>,
    dropped: u64,
    dropped_at: Option<Stamp>,
    limited: (u64, u64),
}

/// Where one instance's output is kept.
#[derive(Debug)]
pub(super) struct Store {
    name: String,
    place: Place,
    form: Form,
    max_size: u64,
    open: Option<Open>,
    /// The way to somewhere else than a file.
    outlet: Option<Outlet>,
    /// Ways that are used no more, on which something may still be lost.
    left: Vec<Outlet>,
    /// The run whose lines come now, where it is known.
    run: Option<RunId>,
    /// How many bytes of a text log stand behind the last word about the run; `None`: there is none.
    since_run: Option<u64>,
    /// What is to be said about the log before its next record.
    note: Option<String>,
    /// Bytes of output that are in no file, since the last record that says so.
    dropped: u64,
    /// When the first of them was dropped, where that is known.
    dropped_at: Option<Stamp>,
    /// Lines and bytes of output that `logs.rate` left out, since the last record that says so.
    limited: (u64, u64),
    /// What that rate is.
    limit: String,
    /// Why nothing can be written at the moment.
    failing: Option<String>,
    /// Why something was dropped last.
    reason: String,
    /// When the last message about this log was given, in seconds since 1970.
    reported: Option<i64>,
    /// When the last batch was received, in microseconds since 1970.
    received: i64,
    /// When the oldest file becomes too old.
    age_due: Option<u64>,
    /// Whether a file was finished since this was asked last.
    rotated: bool,
}

impl Store {
    pub(super) fn new(name: &str, instruction: &Instruction) -> Self {
        let mut store = Self {
            name: name.to_owned(),
            place: Place::new(instruction),
            form: Form::new(name, instruction),
            max_size: instruction.max_size,
            open: None,
            outlet: None,
            left: Vec::new(),
            run: None,
            since_run: None,
            note: None,
            dropped: 0,
            dropped_at: None,
            limited: (0, 0),
            limit: String::new(),
            failing: None,
            reason: String::new(),
            reported: None,
            received: i64::MIN,
            age_due: None,
            rotated: false,
        };
        if instruction.max_age.is_some() {
            store.prune();
        }
        store
    }

    /// Takes over a changed instruction. What was dropped is told at the new place; where that is no file,
    /// [`Store::go_to`] follows.
    pub(super) fn change(&mut self, instruction: &Instruction) {
        self.max_size = instruction.max_size;
        self.form = Form::new(&self.name, instruction);
        if !self.place.change(instruction) {
            self.open = None;
        }
        self.prune();
    }

    /// Has records go elsewhere than into a file. What is on its way stays there, and what of it is lost is
    /// told at the new place.
    pub(super) fn go_to(&mut self, outlet: Option<Outlet>) {
        self.left.extend(mem::replace(&mut self.outlet, outlet));
        self.take_lost();
    }

    /// Whether something is on its way to where records do not go any more.
    pub(super) fn is_leaving(&self) -> bool {
        !self.left.is_empty()
    }

    /// Whether nothing more is to be read that would be pushed.
    pub(super) fn is_full(&self) -> bool {
        self.outlet.as_ref().is_some_and(Outlet::is_full)
    }

    /// Has something said in the log itself before the next record.
    pub(super) fn note(&mut self, text: &str) {
        self.note = Some(text.to_owned());
    }

    /// Begins a batch: what is pushed is in the file when the batch is finished, or counted.
    pub(super) fn batch<'a>(&'a mut self, out: &'a mut Vec<u8>, stamp: Stamp) -> Batch<'a> {
        out.clear();
        Batch::new(self, out, stamp)
    }

    /// Closes the file; the next batch opens it again.
    pub(super) fn close(&mut self) {
        self.open = None;
    }

    /// The open file's descriptor.
    pub(super) fn descriptor(&self) -> Option<RawFd> {
        self.open.as_ref().map(|open| open.file.as_raw_fd())
    }

    /// Makes sure that the open file is the one at the path, and that its length is known.
    fn refresh(&mut self) -> Result<(), Failure> {
        if let Some(open) = &mut self.open
            && self.place.still_has(open)
        {
            return Ok(());
        }
        // The old descriptor is closed before a new one is made: there is never more than one.
        self.open = None;
        if self.place.is_nowhere() {
            return Ok(());
        }
        let open = self.place.open()?;
        self.run = self.run.or(open.run);
        self.since_run = None;
        if self.received == i64::MIN {
            self.received = open.last.unwrap_or(i64::MIN);
        }
        self.open = Some(open);
        Ok(())
    }

    /// Finishes the current file and begins a new one.
    fn rotate(&mut self) -> Result<(), Failure> {
        self.place.finish()?;
        self.open = None;
        self.since_run = None;
        self.open = Some(self.place.open()?);
        self.prune();
        self.rotated = true;
        Ok(())
    }

    /// Removes finished files that are too many or too old.
    pub(super) fn prune(&mut self) {
        if self.place.is_nowhere() {
            return;
        }
        let now = system::wall_now();
        match self.place.prune(now) {
            Ok(None) => self.age_due = None,
            Ok(Some(due)) => {
                // One millisecond later than too early.
                let left = u64::try_from(due.0.saturating_sub(now.0) / 1_000).unwrap_or(0) + 1;
                self.age_due = Some(now_ms().saturating_add(left));
            }
            Err(failure) => {
                self.age_due = None;
                let path = self.place.path().display();
                log::warn!("cannot {} of `{path}`: {}", failure.doing, failure.cause);
            }
        }
    }

    /// Whether a file was finished since the last time.
    pub(super) fn take_rotated(&mut self) -> bool {
        mem::take(&mut self.rotated)
    }

    /// Has finished files compressed, where that is wanted.
    pub(super) fn pack(&self, packer: &mut Packer) {
        if let Some(finished) = self.place.to_pack() {
            packer.pack(finished);
        }
    }

    /// When finished files have to be looked at again.
    pub(super) fn age_due(&self) -> Option<u64> {
        self.age_due
    }

    /// Whether `logs.rate` has cost something that no record tells yet.
    pub(super) fn has_limited(&self) -> bool {
        self.limited.0 > 0
    }

    /// Whether output was dropped that no record tells of yet.
    pub(super) fn has_dropped(&self) -> bool {
        self.dropped > 0
    }

    /// What is said about what is missing, where there is no file to say it in.
    pub(super) fn take_missing(&mut self) -> String {
        let text = self.missing();
        self.take_told();
        text
    }

    /// The run that the next record has to name.
    fn run_to_say(&self) -> Option<RunId> {
        let is_said = self.since_run.is_some_and(|since| since < RUN_EVERY_BYTES);
        self.run.filter(|_| !(is_said && self.form.says_run_rarely()))
    }

    /// Takes over what was lost on the way to somewhere else.
    pub(super) fn take_lost(&mut self) {
        // Asked before: what is lost after that is on its way then, or counted.
        let is_busy: Vec<bool> = self.left.iter().map(Outlet::is_busy).collect();
        for outlet in self.left.iter().chain(&self.outlet) {
            if let Some((lost, reason)) = outlet.take_lost() {
                self.dropped += lost;
                self.reason = reason;
            }
        }
        let mut is_busy = is_busy.into_iter();
        self.left.retain(|_| is_busy.next().unwrap_or(false));
    }

    /// Counts output that is in no file.
    fn lose(&mut self, bytes: u64, stamp: Stamp) {
        if bytes > 0 {
            self.dropped += bytes;
            self.dropped_at.get_or_insert(stamp);
        }
    }

    /// The text about all that is missing.
    fn missing(&self) -> String {
        let Self { note, dropped, reason, limit, limited: (lines, bytes), .. } = self;
        let dropped = (*dropped > 0).then(|| format!("dropped {dropped} bytes: {reason}"));
        let limited =
            (*lines > 0).then(|| format!("dropped {lines} lines of {bytes} bytes: {limit}"));
        let said = [note.as_deref(), dropped.as_deref(), limited.as_deref()];
        let said: Vec<&str> = said.into_iter().flatten().collect();
        format!("[opm: {}]", said.join("; "))
    }

    fn fail(&mut self, failure: Failure, now: i64) {
        if self.failing.is_none() && self.may_report(now) {
            let (name, path) = (&self.name, self.place.path().display());
            log::error!(
                "cannot {} `{path}`: {}; the output of `{name}` is dropped until this works",
                failure.doing,
                failure.cause
            );
        }
        self.reason.clone_from(&failure.cause);
        self.failing = Some(failure.cause);
    }

    fn works(&mut self, now: i64) {
        if self.failing.take().is_some() && self.may_report(now) {
            log::info!("the log of `{}` is written again", self.name);
        }
    }

    fn has_to_tell(&self) -> bool {
        self.note.is_some() || self.has_dropped() || self.has_limited()
    }

    /// Takes what is told now: what is counted from here on is told with another record.
    fn take_told(&mut self) -> Told {
        Told {
            note: self.note.take(),
            dropped: mem::take(&mut self.dropped),
            dropped_at: self.dropped_at.take(),
            limited: mem::take(&mut self.limited),
        }
    }

    /// Takes back what a record told that is lost.
    fn take_back(&mut self, told: Told) {
        self.note = self.note.take().or(told.note);
        self.dropped += told.dropped;
        self.dropped_at = told.dropped_at.or(self.dropped_at);
        self.limited.0 += told.limited.0;
        self.limited.1 += told.limited.1;
    }

    fn may_report(&mut self, now: i64) -> bool {
        let may = self.reported.is_none_or(|last| now < last || now >= last + REPORT_SECONDS);
        if may {
            self.reported = Some(now);
        }
        may
    }
}
