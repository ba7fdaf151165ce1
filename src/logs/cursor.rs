//! One log from some record on, over all files that come: no record left out, none given twice.
//!
//! A file keeps its identity when it is finished. So when another file is `current`, ours is read
//! to its end, which does not move any more, and the next one is that with the smallest number
//! above ours, or `current` where there is none.

use std::io::{self, BufRead, ErrorKind};
use std::mem;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::LogsError;
use super::backward::Start;
use super::find;
use super::record::{Record, STREAM_OPM};
use super::runs;
use super::segment::{self, Segment, packed_path};
use super::select::Select;
use crate::model::RunId;

/// How much is read at once, in bytes.
const BLOCK_BYTES: usize = 32 * 1024;
/// Longest line that is given as one record, in bytes. What is longer was written by no keeper and
/// comes out in pieces.
const LINE_BYTES_MAX: usize = 1024 * 1024;

/// A place in a log that moves forward.
#[derive(Debug)]
pub(super) struct Cursor {
    dir: PathBuf,
    instance: String,
    segment: Option<Segment>,
    /// Where in the file the buffer starts.
    offset: u64,
    buffer: Vec<u8>,
    /// How much of the buffer is given.
    given: usize,
    /// The number of the last finished file before this one; younger files have larger ones.
    after: u64,
    /// Whether a number that is left out is worth a word: not before the first file.
    began: bool,
    next: Option<Record>,
    /// The time of the last record that had one.
    time: String,
    /// How old lines of the file count before the first stamp, where that was asked.
    unstamped: Option<String>,
    /// The run that was named last.
    run: Option<RunId>,
    select: Arc<Select>,
    /// Where to end for good.
    end: Option<Start>,
    is_over: bool,
}

impl Cursor {
    /// Before the oldest record.
    pub(super) fn at_begin(dir: &Path, instance: &str, select: &Arc<Select>) -> Self {
        Self {
            dir: dir.join(instance),
            instance: instance.to_owned(),
            segment: None,
            offset: 0,
            buffer: Vec::new(),
            given: 0,
            after: 0,
            began: false,
            next: None,
            time: String::new(),
            unstamped: None,
            run: None,
            select: Arc::clone(select),
            end: None,
            is_over: false,
        }
    }

    /// Goes to a place that was found; without one, stays before the oldest record.
    pub(super) fn go_to(&mut self, start: Option<Start>) {
        if let Some(start) = start {
            self.offset = start.offset;
            self.after = start.after;
            self.began = true;
            self.segment = Some(start.segment);
        }
    }

    /// Says which run the next record is of.
    pub(super) fn is_of(&mut self, run: Option<RunId>) {
        self.run = run;
    }

    /// Finds out which run the next record is of, where it does not say so itself.
    pub(super) fn find_run(&mut self) -> io::Result<()> {
        if self.run.is_none()
            && let Some(segment) = &self.segment
        {
            let (offset, after) = (self.offset, self.after);
            let place = Start { segment: segment.try_clone()?, offset, after };
            self.run = runs::before(&self.dir, &place)?;
        }
        Ok(())
    }

    /// Has it end at a place that was found.
    pub(super) fn end_at(&mut self, end: Start) {
        self.end = Some(end);
    }

    /// Has it give nothing.
    pub(super) fn end_at_once(&mut self) {
        self.is_over = true;
    }

    /// Leaves out what is written from now on.
    pub(super) fn end_here(&mut self) -> io::Result<()> {
        if self.end.is_some() || self.is_over {
            return Ok(());
        }
        // What is finished now is older than `current`.
        let after = segment::finished(&self.dir)?.last().copied().unwrap_or(0);
        match Segment::open(&self.dir, None)? {
            Some(segment) => {
                let offset = segment.length()?;
                self.end = Some(Start { segment, offset, after });
            }
            None if self.segment.is_none() && segment::finished(&self.dir)?.is_empty() => {
                self.is_over = true;
            }
            None => {}
        }
        Ok(())
    }

    /// Forgets the numbers: the directory was made anew.
    pub(super) fn forget_numbers(&mut self) {
        self.after = 0;
        self.began = false;
    }

    pub(super) fn instance(&self) -> &str {
        &self.instance
    }

    /// What an error of this log is for the caller.
    pub(super) fn error(&self, error: io::Error) -> LogsError {
        LogsError::Read { path: self.dir.clone(), error }
    }

    pub(super) fn has_next(&self) -> bool {
        self.next.is_some()
    }

    /// When the next record was written; a line without a stamp has its place by how old it counts.
    pub(super) fn next_time(&self) -> Option<&str> {
        let time = self.next.as_ref()?.time.as_str();
        Some(if time.is_empty() { self.unstamped.as_deref().unwrap_or_default() } else { time })
    }

    pub(super) fn take(&mut self) -> Option<Record> {
        self.next.take()
    }

    /// Reads the next record, where there is one.
    pub(super) fn advance(&mut self) -> io::Result<()> {
        // Whether the file is known to grow no more, so that its end is the end.
        let mut is_finished = self.segment.as_ref().is_some_and(|s| s.number.is_some());
        while !self.is_over && self.next.is_none() {
            if self.take_line() {
                continue;
            }
            match self.fill() {
                Ok(true) => continue,
                Ok(false) => {}
                Err(error) if error.kind() == ErrorKind::InvalidData => {
                    self.skip_file()?;
                    continue;
                }
                Err(error) => return Err(error),
            }
            if self.segment.is_some() && !is_finished {
                let current = segment::current_id(&self.dir)?;
                if current.is_some() && current == self.segment.as_ref().map(|s| s.id) {
                    break;
                }
                // Once more: something may have been written before it was finished.
                is_finished = true;
                continue;
            }
            if self.rest_of_file() {
                continue;
            }
            if !self.go_on()? {
                break;
            }
            is_finished = self.segment.as_ref().is_some_and(|s| s.number.is_some());
        }
        if self.next.as_ref().is_some_and(|next| next.time.is_empty())
            && self.unstamped.is_none()
            && let Some(segment) = &mut self.segment
        {
            self.unstamped = Some(find::time_of_unstamped(segment)?);
        }
        if self.next.is_none() {
            // An unfinished line is read anew when there is more: it may have been cut off.
            self.forget_buffer();
        }
        Ok(())
    }

    /// Takes the next full line out of the buffer.
    fn take_line(&mut self) -> bool {
        let rest = self.buffer.get(self.given..).unwrap_or_default();
        // `skip_until` of a slice is memchr(3).
        let mut behind = rest;
        let taken = behind.skip_until(b'\n').unwrap_or(0);
        let (length, newline) = match rest.get(..taken).and_then(<[u8]>::split_last) {
            Some((b'\n', line)) => (line.len(), 1),
            Some(_) if rest.len() >= LINE_BYTES_MAX => (rest.len(), 0),
            Some(_) | None => return false,
        };
        if self.is_behind_end(length) {
            self.is_over = true;
            return false;
        }
        self.give(length);
        self.given += length + newline;
        true
    }

    /// Whether a line of this length at the present place was written after our end.
    fn is_behind_end(&self, length: usize) -> bool {
        match (&self.end, &self.segment) {
            (Some(end), Some(segment)) if end.is_in(segment, self.after) => {
                self.offset + (self.given + length) as u64 >= end.offset
            }
            _ => false,
        }
    }

    fn give(&mut self, length: usize) {
        let rest = self.buffer.get(self.given..).unwrap_or_default();
        let line = rest.get(..length).unwrap_or(rest);
        let mut record = Record::parse(line, &self.instance, &self.time);
        self.time.clone_from(&record.time);
        self.run = record.run.or(self.run);
        record.run = self.run;
        self.next = Some(record).filter(|record| self.select.wants(record));
    }

    /// Reads more of the file; false at its end.
    fn fill(&mut self) -> io::Result<bool> {
        let Some(segment) = &mut self.segment else { return Ok(false) };
        self.buffer.drain(..self.given.min(self.buffer.len()));
        self.offset += mem::take(&mut self.given) as u64;
        let have = self.buffer.len();
        self.buffer.resize(have + BLOCK_BYTES, 0);
        let room = self.buffer.get_mut(have..).unwrap_or_default();
        let read = segment.read_at(room, self.offset + have as u64);
        self.buffer.truncate(have + read.as_ref().copied().unwrap_or(0));
        if read? > 0 {
            return Ok(true);
        }
        if segment.length()? < self.offset {
            // Cut by someone else: whatever is in it now is new.
            self.offset = 0;
            self.buffer.clear();
            return Ok(segment.length()? > 0);
        }
        Ok(false)
    }

    /// Gives the bytes behind the last newline of a file that grows no more.
    fn rest_of_file(&mut self) -> bool {
        let length = self.buffer.len().saturating_sub(self.given);
        if length == 0 || self.is_behind_end(length) {
            return false;
        }
        self.give(length);
        self.given += length;
        true
    }

    fn forget_buffer(&mut self) {
        self.offset += self.given as u64;
        self.given = 0;
        self.buffer = Vec::new();
    }

    /// Goes over to the next file; false where there is none yet.
    fn go_on(&mut self) -> io::Result<bool> {
        let left = self.segment.take();
        if let (Some(left), Some(end)) = (&left, &self.end)
            && end.is_in(left, self.after)
        {
            self.is_over = true;
            return Ok(false);
        }
        // First `current`: whatever was finished before it began is in the list then.
        let current = Segment::open(&self.dir, None)?;
        let numbers = segment::finished(&self.dir)?;
        let number = self.number_of(left.as_ref(), &numbers)?;
        // A file without a number was deleted as `current`, or finished, numbered and removed.
        let uncertain = u64::from(left.is_some() && number.is_none());
        self.after = number.unwrap_or(0).max(self.after);
        let mut found = None;
        for number in numbers.into_iter().filter(|number| *number > self.after) {
            found = match Segment::open(&self.dir, Some(number)) {
                Err(error) if error.kind() == ErrorKind::InvalidData => {
                    (self.after, self.began) = (number, true);
                    self.note_damage(number);
                    return Ok(true);
                }
                found => found?,
            };
            if found.is_some() {
                break;
            }
        }
        let next = match (found, current) {
            (Some(found), Some(current)) if found.id == current.id => Some(current),
            (Some(found), _) => Some(found),
            (None, current) => current,
        };
        let Some(next) = next else { return Ok(false) };
        self.note_gap(next.number, uncertain);
        self.began = true;
        if let Some(number) = next.number {
            self.after = number;
        }
        self.forget_buffer();
        self.offset = 0;
        self.unstamped = None;
        self.segment = Some(next);
        Ok(true)
    }

    /// The number that a file was given when it was finished.
    fn number_of(&self, left: Option<&Segment>, numbers: &[u64]) -> io::Result<Option<u64>> {
        let Some(left) = left else { return Ok(None) };
        if left.number.is_some() {
            return Ok(left.number);
        }
        for number in numbers.iter().copied().filter(|number| *number > self.after) {
            if Segment::open_sound(&self.dir, Some(number))?.is_some_and(|found| found.is(left)) {
                return Ok(Some(number));
            }
        }
        Ok(None)
    }

    /// Says that files were removed before they were read, where their numbers are missing.
    fn note_gap(&mut self, number: Option<u64>, uncertain: u64) {
        let read = self.after + 1 + uncertain;
        let missing = number.map_or(0, |number| number.saturating_sub(read));
        if self.began && missing > 0 {
            self.note(&format!("{missing} log files were removed before they were read"));
        }
    }

    /// Goes to the end of a file that cannot be read any further.
    fn skip_file(&mut self) -> io::Result<()> {
        self.forget_buffer();
        let Some(segment) = &self.segment else { return Ok(()) };
        self.offset = segment.length()?;
        self.note_damage(segment.number.unwrap_or(0));
        Ok(())
    }

    fn note_damage(&mut self, number: u64) {
        let path = packed_path(&segment::finished_path(Path::new(""), number));
        self.note(&format!("{} is damaged; lines are missing here", path.display()));
    }

    /// Gives a record of opm that stands in no file.
    fn note(&mut self, text: &str) {
        let record = Record {
            time: self.time.clone(),
            stream: STREAM_OPM.to_owned(),
            partial: false,
            bytes: format!("[opm: {text}]").into_bytes(),
            instance: self.instance.clone(),
            run: self.run,
        };
        self.next = Some(record).filter(|record| self.select.wants(record));
    }
}
