//! Records on their way to a [`Store`]: formatted, put together, and written with as few writes as exact
//! sizes allow.

use std::io::{self, Write};
use std::mem;

use super::super::form::Words;
use super::super::limit::Limit;
use super::super::outlet::Piece;
use super::super::place::Open;
use super::super::split::Part;
use super::super::stamp::Stamp;
use super::{Failure, Store, Told};
use crate::logs::record::{CLOCK_BACK, Record, STREAM_OPM};
use crate::model::{RunId, Span};
use crate::system;

/// Most bytes that are formatted before they are written. A batch of empty lines grows 38-fold.
const BATCH_BYTES_MAX: usize = 256 * 1024;
/// A clock that goes back by less is not spoken of, in microseconds.
const CLOCK_BACK_MICROS_MIN: i64 = 1_000_000;

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
pub(in crate::keeper) struct Batch<'a> {
    store: &'a mut Store,
    out: &'a mut Vec<u8>,
    stamp: Stamp,
    state: State,
    /// What the record tells that `out` begins with, where it does with one about what is missing.
    told: Option<Told>,
    /// What of `out` is one record or message each, where that goes elsewhere.
    pieces: Vec<Piece>,
}

impl<'a> Batch<'a> {
    /// Begins with nothing.
    pub(super) fn new(store: &'a mut Store, out: &'a mut Vec<u8>, stamp: Stamp) -> Self {
        Self { store, out, stamp, state: State::Untouched, told: None, pieces: Vec::new() }
    }

    /// Adds a line or a part of one.
    pub(in crate::keeper) fn push(&mut self, part: Part<'_>) {
        if self.store.place.is_nowhere() && self.store.outlet.is_none() {
            return;
        }
        self.tell_now();
        self.tell_of_clock();
        let run = self.store.run_to_say();
        self.add(Words { bytes: part.bytes, full: part.full, is_ours: false, told: 0, run });
        if self.state == State::Dropping {
            self.store.lose(part.bytes.len() as u64 + u64::from(part.full), self.stamp);
        }
    }

    /// A run begins, if one does: what is pushed from now on is of it.
    pub(in crate::keeper) fn begin_run(&mut self, run: Option<RunId>) {
        if let Some(run) = run
            && self.store.run.replace(run) != Some(run)
        {
            self.store.since_run = None;
        }
    }

    /// Counts a part of a line that is too much.
    pub(in crate::keeper) fn limit(&mut self, part: Part<'_>, begins: bool, limit: &Limit) {
        let (lines, bytes) = &mut self.store.limited;
        if *lines == 0 {
            self.store.limit = limit.reason();
        }
        *lines += u64::from(begins);
        *bytes += part.bytes.len() as u64 + u64::from(part.full);
    }

    /// Says what is missing, before any line comes.
    pub(in crate::keeper) fn tell_now(&mut self) {
        if self.state == State::Untouched {
            self.begin();
        }
        if self.state == State::Writing && self.told.is_none() && self.store.has_to_tell() {
            // What was dropped has an earlier time, before the clock went back.
            if self.store.dropped_at.is_none() {
                self.tell_of_clock();
            }
            self.tell();
        }
    }

    /// Writes what was added.
    pub(in crate::keeper) fn finish(mut self) {
        self.write();
    }

    fn begin(&mut self) {
        self.store.take_lost();
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

    /// Adds the record that says what is missing here. It has the time of the loss: nothing was written
    /// since.
    fn tell(&mut self) {
        let told = self.store.dropped + self.store.limited.1;
        let text = self.store.missing();
        // It is the first one of what is written at once.
        self.write();
        let now = self.stamp;
        self.stamp = self.store.dropped_at.unwrap_or(now);
        self.add(Words { bytes: text.as_bytes(), full: true, is_ours: true, told, run: None });
        self.stamp = now;
        if self.state == State::Writing {
            self.told = Some(self.store.take_told());
        }
    }

    /// Says that stamps are smaller from here on, in a new file: each is in the order of time by itself.
    fn tell_of_clock(&mut self) {
        let back = self.store.received.saturating_sub(self.stamp.micros);
        self.store.received = self.stamp.micros;
        if back >= CLOCK_BACK_MICROS_MIN && self.store.form.is_stamped() {
            let back = Span::millis(u64::try_from(back / 1_000).unwrap_or(0));
            let text = format!("{CLOCK_BACK} by {back}]");
            self.write();
            let is_file = |open: &Open| open.regular && open.length > 0;
            if self.state == State::Writing && self.store.open.as_ref().is_some_and(is_file) {
                self.rotate();
            }
            self.add(Words {
                bytes: text.as_bytes(),
                full: true,
                is_ours: true,
                told: 0,
                run: None,
            });
        }
    }

    /// Adds one record, in a new file where the old one has no room for it.
    fn add(&mut self, words: Words<'_>) {
        if self.out.len() >= BATCH_BYTES_MAX {
            self.write();
        }
        if self.state != State::Writing {
            return;
        }
        let mut words = words;
        let before = self.put(words);
        if !self.fits(before) {
            self.out.truncate(before);
            self.write();
            if self.state == State::Writing {
                self.rotate();
            }
            if self.state != State::Writing {
                return;
            }
            // Each file says itself which run it is about.
            words.run = words.run.or(self.store.run.filter(|_| !words.is_ours));
            self.put(words);
        }
        let length = (self.out.len() - before.min(self.out.len())) as u64;
        let since = &mut self.store.since_run;
        *since = if words.run.is_some() { Some(0) } else { since.map(|since| since + length) };
    }

    /// Puts a record behind the others; where it begins.
    fn put(&mut self, words: Words<'_>) -> usize {
        let Self { store, out, stamp, pieces, .. } = self;
        let before = out.len();
        let has_pieces = store.outlet.is_some();
        store.form.put(out, stamp, words, &mut |end, content| {
            if has_pieces {
                pieces.push(Piece { end, content });
            }
        });
        before
    }

    /// Whether the record that begins there has room in the file.
    fn fits(&self, before: usize) -> bool {
        let Some(open) = self.store.open.as_ref().filter(|open| open.regular) else { return true };
        let begin = open.length + before as u64;
        begin == 0 || open.length + self.out.len() as u64 <= self.store.max_size
    }

    /// Writes the whole records that the disk takes; drops and counts the others.
    fn write(&mut self) {
        if self.out.is_empty() {
            return;
        }
        if let Some(outlet) = &self.store.outlet {
            outlet.push(self.out, mem::take(&mut self.pieces));
            self.told = None;
            self.out.clear();
            return;
        }
        let Some(open) = &mut self.store.open else { return self.forget_told() };
        match write_all(open, self.out) {
            Ok(()) => {
                open.length += self.out.len() as u64;
                open.first.get_or_insert(self.stamp.micros);
                self.store.works(self.stamp.second);
            }
            Err((written, error)) => {
                let kept = keep_whole(open, self.out, written);
                if open.regular && kept < written {
                    // Looked at anew before the next record, and mended where need be.
                    self.store.open = None;
                }
                self.count(kept);
                let failure =
                    Failure { doing: "write log", cause: system::plain(&error.to_string()) };
                self.store.fail(failure, self.stamp.second);
                self.state = State::Dropping;
            }
        }
        self.told = None;
        self.out.clear();
    }

    /// What was to be told is told another time.
    fn forget_told(&mut self) {
        if let Some(told) = self.told.take() {
            self.store.take_back(told);
        }
    }

    /// Counts the output in the records behind the first `kept` bytes of the batch.
    fn count(&mut self, kept: usize) {
        let lost = self.out.get(kept..).unwrap_or_default();
        let skip = usize::from(self.told.is_some() && kept == 0);
        let lines = lost.split_inclusive(|byte| *byte == b'\n').skip(skip);
        let bytes: usize = if self.store.form.is_stamped() {
            let records = lines.map(|line| {
                let line = line.strip_suffix(b"\n").unwrap_or(line);
                Record::parse(line, "", "")
            });
            let content = |record: Record| record.bytes.len() + usize::from(!record.partial);
            records.filter(|record| record.stream != STREAM_OPM).map(content).sum()
        } else {
            lines.map(<[u8]>::len).sum()
        };
        // What was said last about the run may be lost.
        self.store.since_run = None;
        self.store.lose(bytes as u64, self.stamp);
        if kept == 0 {
            self.forget_told();
        }
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
        log::error!("cannot cut a torn record off a log: {}", system::plain(&error.to_string()));
    }
    open.length = length;
    whole
}
