//! One instance's log on disk: whole records, exact sizes, and a mark where something is missing.
//!
//! Invariants: a record is in a file whole or not at all; a file is larger than `max_size` only by
//! a single record; nothing here waits or fails for the caller. What cannot be written is dropped
//! and counted, and the first record that can be written again is preceded by one that says so.
//!
//! The path is looked up once per batch and compared with the open file. So a file that was
//! deleted, renamed or cut by others is noticed at once, and several instances may share a path.

use std::io::{self, Write};
use std::mem;
use std::os::fd::{AsRawFd, RawFd};

use nix::errno::Errno;

use super::limit::Limit;
use super::packer::Packer;
use super::place::{Open, Place};
use super::sink::now_ms;
use super::split::Part;
use super::stamp::{STAMP_BYTES, Stamp};
use crate::logs::record::CLOCK_BACK;
use crate::model::Span;
use crate::system::{
    self,
    instruction::{Destination, Instruction},
};

/// Most bytes that are formatted before they are written. A batch of empty lines grows 38-fold.
const BATCH_BYTES_MAX: usize = 256 * 1024;
/// Shortest time between two messages about one instance's log, in seconds; others are left out.
const REPORT_SECONDS: i64 = 10;
/// A clock that goes back by less is not spoken of, in microseconds.
const CLOCK_BACK_MICROS_MIN: i64 = 1_000_000;
/// What stands between stamp and bytes of a full line.
const HEAD_FULL: &[u8] = b" stdout F ";
/// What stands between stamp and bytes of a part.
const HEAD_PART: &[u8] = b" stdout P ";
/// What stands between stamp and bytes of what opm has to say.
const HEAD_OPM: &[u8] = b" opm F ";

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
        move |error| Self { doing, cause: plain(&error) }
    }
}

/// The kernel's words without Rust's "(os error 28)".
fn plain(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => Errno::from_raw(number).desc().to_owned(),
        None => error.to_string(),
    }
}

/// Where one instance's output is kept.
#[derive(Debug)]
pub(super) struct Store {
    name: String,
    place: Place,
    max_size: u64,
    open: Option<Open>,
    /// What is to be said about the log before its next record.
    note: Option<String>,
    /// Bytes of output that are in no file, since the last record that says so.
    dropped: u64,
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
            max_size: instruction.max_size,
            open: None,
            note: None,
            dropped: 0,
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

    /// Takes over a changed instruction. What was dropped is told at the new place.
    pub(super) fn change(&mut self, instruction: &Instruction) {
        self.max_size = instruction.max_size;
        if !self.place.change(instruction) {
            self.open = None;
        }
        if instruction.to != Destination::Console {
            self.prune();
        }
    }

    /// Has something said in the log itself before the next record.
    pub(super) fn note(&mut self, text: &str) {
        self.note = Some(text.to_owned());
    }

    /// Begins a batch: what is pushed is in the file when the batch is finished, or counted.
    pub(super) fn batch<'a>(&'a mut self, out: &'a mut Vec<u8>, stamp: Stamp) -> Batch<'a> {
        out.clear();
        Batch { store: self, out, stamp, state: State::Untouched, told: false }
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
        self.open = Some(self.place.open()?);
        Ok(())
    }

    /// Finishes the current file and begins a new one.
    fn rotate(&mut self) -> Result<(), Failure> {
        self.place.finish()?;
        self.open = None;
        self.open = Some(self.place.open()?);
        self.prune();
        self.rotated = true;
        Ok(())
    }

    /// Removes finished files that are too many or too old.
    pub(super) fn prune(&mut self) {
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

    /// What is said about that, where there is no file to say it in.
    pub(super) fn take_limited(&mut self) -> String {
        let text = format!("[opm: {}]", self.limited_text());
        self.limited = (0, 0);
        text
    }

    fn limited_text(&self) -> String {
        let (lines, bytes) = self.limited;
        format!("dropped {lines} lines of {bytes} bytes: {}", self.limit)
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
        self.note.is_some() || self.dropped > 0 || self.has_limited()
    }

    fn has_told(&mut self) {
        self.note = None;
        self.dropped = 0;
        self.limited = (0, 0);
    }

    fn may_report(&mut self, now: i64) -> bool {
        let may = self.reported.is_none_or(|last| now < last || now >= last + REPORT_SECONDS);
        if may {
            self.reported = Some(now);
        }
        may
    }
}

/// How far a batch has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing was pushed yet.
    Untouched,
    /// The file is open.
    Writing,
    /// Something failed: the rest of the batch is dropped.
    Dropping,
}

/// Records on their way to a file.
#[derive(Debug)]
pub(super) struct Batch<'a> {
    store: &'a mut Store,
    out: &'a mut Vec<u8>,
    stamp: Stamp,
    state: State,
    /// Whether `out` begins with the record about what was dropped.
    told: bool,
}

impl Batch<'_> {
    /// Adds a line or a part of one.
    pub(super) fn push(&mut self, part: Part<'_>) {
        if self.store.place.is_nowhere() {
            return;
        }
        self.tell_now();
        self.tell_of_clock();
        let head = if part.full { HEAD_FULL } else { HEAD_PART };
        self.add(head, part.bytes, part.full);
        if self.state == State::Dropping {
            self.store.dropped += part.bytes.len() as u64 + u64::from(part.full);
        }
    }

    /// Counts a part of a line that is too much.
    pub(super) fn limit(&mut self, part: Part<'_>, begins: bool, limit: &Limit) {
        let (lines, bytes) = &mut self.store.limited;
        if *lines == 0 {
            self.store.limit = limit.reason();
        }
        *lines += u64::from(begins);
        *bytes += part.bytes.len() as u64 + u64::from(part.full);
    }

    /// Says what is missing, before any line comes.
    pub(super) fn tell_now(&mut self) {
        if self.state == State::Untouched {
            self.begin();
        }
        if self.state == State::Writing && !self.told && self.store.has_to_tell() {
            self.tell();
        }
    }

    /// Writes what was added.
    pub(super) fn finish(mut self) {
        self.write();
    }

    fn begin(&mut self) {
        self.state = match self.store.refresh() {
            Ok(()) => State::Writing,
            Err(failure) => {
                self.store.fail(failure, self.stamp.second);
                State::Dropping
            }
        };
        if self.state == State::Writing
            && self.store.place.is_old(self.store.open.as_ref(), self.stamp)
        {
            self.rotate();
        }
    }

    fn rotate(&mut self) {
        if let Err(failure) = self.store.rotate() {
            self.store.fail(failure, self.stamp.second);
            self.state = State::Dropping;
        }
    }

    /// Adds the record that says what is missing here.
    fn tell(&mut self) {
        let Store { note, dropped, reason, .. } = &*self.store;
        let dropped = (*dropped > 0).then(|| format!("dropped {dropped} bytes: {reason}"));
        let limited = self.store.has_limited().then(|| self.store.limited_text());
        let said = [note.as_deref(), dropped.as_deref(), limited.as_deref()];
        let said: Vec<&str> = said.into_iter().flatten().collect();
        let text = format!("[opm: {}]", said.join("; "));
        self.add(HEAD_OPM, text.as_bytes(), true);
        self.told = self.state == State::Writing;
    }

    /// Says that stamps are smaller from here on.
    fn tell_of_clock(&mut self) {
        let back = self.store.received.saturating_sub(self.stamp.micros);
        self.store.received = self.stamp.micros;
        if back >= CLOCK_BACK_MICROS_MIN && self.store.place.is_stamped() {
            let back = Span::millis(u64::try_from(back / 1_000).unwrap_or(0));
            self.add(HEAD_OPM, format!("{CLOCK_BACK} by {back}]").as_bytes(), true);
        }
    }

    /// Adds one record, in a new file where the old one has no room for it.
    fn add(&mut self, head: &[u8], bytes: &[u8], newline: bool) {
        let stamped = self.store.place.is_stamped();
        let head_length = if stamped { STAMP_BYTES + head.len() } else { 0 };
        let length = head_length + bytes.len() + usize::from(stamped || newline);
        self.make_room(length as u64);
        if self.state != State::Writing {
            return;
        }
        if stamped {
            self.out.extend_from_slice(&self.stamp.text);
            self.out.extend_from_slice(head);
        }
        self.out.extend_from_slice(bytes);
        if stamped || newline {
            self.out.push(b'\n');
        }
    }

    fn make_room(&mut self, length: u64) {
        let Some(open) = &self.store.open else { return };
        let end = open.length + self.out.len() as u64;
        let full = open.regular && end > 0 && end + length > self.store.max_size;
        if full || self.out.len() >= BATCH_BYTES_MAX {
            self.write();
        }
        if full && self.state == State::Writing {
            self.rotate();
        }
    }

    /// Writes the whole records that the disk takes; drops and counts the others.
    fn write(&mut self) {
        let Some(open) = &mut self.store.open else { return };
        if self.out.is_empty() {
            return;
        }
        match write_all(open, self.out) {
            Ok(()) => {
                open.length += self.out.len() as u64;
                open.first.get_or_insert(self.stamp.micros);
                if self.told {
                    self.store.has_told();
                }
                self.store.works(self.stamp.second);
            }
            Err((written, error)) => {
                let kept = keep_whole(open, self.out, written);
                if open.regular && kept < written {
                    // Looked at anew before the next record, and mended where need be.
                    self.store.open = None;
                }
                self.count(kept);
                let failure = Failure { doing: "write log", cause: plain(&error) };
                self.store.fail(failure, self.stamp.second);
                self.state = State::Dropping;
            }
        }
        self.told = false;
        self.out.clear();
    }

    /// Counts the output in the records behind the first `kept` bytes of the batch.
    fn count(&mut self, kept: usize) {
        if self.told && kept > 0 {
            self.store.has_told();
        }
        let lost = self.out.get(kept..).unwrap_or_default();
        let skip = usize::from(self.told && kept == 0);
        let lines = lost.split_inclusive(|byte| *byte == b'\n').skip(skip);
        let bytes: usize = if self.store.place.is_stamped() {
            let head = STAMP_BYTES + HEAD_FULL.len();
            let has_head = |line: &[u8], head: &[u8]| {
                line.get(STAMP_BYTES..).is_some_and(|rest| rest.starts_with(head))
            };
            let newline = |line: &[u8]| usize::from(has_head(line, HEAD_FULL));
            lines
                .filter(|line| !has_head(line, HEAD_OPM))
                .map(|line| (line.len() + newline(line)).saturating_sub(head + 1))
                .sum()
        } else {
            lines.map(<[u8]>::len).sum()
        };
        self.store.dropped += bytes as u64;
    }
}

/// Writes it all, or says how much was written and why not more.
fn write_all(open: &mut Open, bytes: &[u8]) -> Result<(), (usize, io::Error)> {
    let mut written = 0;
    while let Some(rest) = bytes.get(written..)
        && !rest.is_empty()
    {
        match open.file.write(rest) {
            Ok(0) => return Err((written, io::ErrorKind::WriteZero.into())),
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err((written, error)),
        }
    }
    Ok(())
}

/// Cuts a torn record off the file; how many bytes of the batch stay in it.
fn keep_whole(open: &mut Open, batch: &[u8], written: usize) -> usize {
    let in_file = batch.get(..written).unwrap_or_default();
    let whole = in_file.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    if !open.regular {
        return written;
    }
    let length = open.length + whole as u64;
    if whole < written
        && let Err(error) = open.file.set_len(length)
    {
        log::error!("cannot cut a torn record off a log: {}", plain(&error));
    }
    open.length = length;
    whole
}
