//! One log from its end to its begin: where the last records start, and when they were written.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};

use super::find::Bounds;
use super::record::Record;
use super::segment::{self, Files, Segment};

/// How much is read at once, in bytes.
const BLOCK_BYTES: u64 = 16 * 1024;
/// Longest line that is looked for as a whole, in bytes. What is longer was written by no keeper:
/// reading begins in the middle of it.
const LINE_BYTES_MAX: usize = 1024 * 1024;

/// Later than any stamp.
const TIME_OF_LAST: &str = "9999-12-31T23:59:59.999999Z";

/// A place in a log: a file, and the offset of a record in it.
#[derive(Debug)]
pub(super) struct Start {
    pub(super) segment: Segment,
    pub(super) offset: u64,
    /// The largest number of a finished file that is older than this one.
    pub(super) after: u64,
}

impl Start {
    /// Whether it is a place in this file, which all files up to the number `after` are older than.
    pub(super) fn is_in(&self, segment: &Segment, after: u64) -> bool {
        match (self.segment.number, segment.number) {
            (Some(one), Some(other)) => one == other,
            (None, Some(other)) => other > self.after && segment.is(&self.segment),
            (Some(one), None) => one > after && self.segment.is(segment),
            (None, None) => self.segment.id == segment.id,
        }
    }

    /// The same place once more.
    pub(super) fn try_clone(&self) -> io::Result<Self> {
        let segment = self.segment.try_clone()?;
        Ok(Self { segment, offset: self.offset, after: self.after })
    }
}

/// A log, read backwards.
#[derive(Debug)]
pub(super) struct Backward {
    dir: PathBuf,
    /// The numbers of the finished files that were not opened yet, the oldest first.
    older: VecDeque<u64>,
    /// The file in which we are; `None`: there is no file.
    at: Option<Start>,
    /// Bytes of that file which end where the last record that was seen starts.
    block: Vec<u8>,
    /// Where the block starts.
    base: u64,
    /// The record that was taken last, where that is in a younger file.
    taken: Option<Start>,
    /// The time of the record that was seen last, or of the last write of its file, if that is earlier: so
    /// old lines at its end are that are no records.
    time: String,
    /// Whether that is of no record.
    is_guess: bool,
    /// Before this place nothing is wanted.
    first: Option<Start>,
}

impl Backward {
    /// Goes to the end of what is wanted of a log.
    pub(super) fn new(dir: &Path, bounds: Bounds) -> io::Result<Self> {
        let mut back = Self {
            dir: dir.to_owned(),
            older: VecDeque::new(),
            at: None,
            block: Vec::new(),
            base: 0,
            taken: None,
            time: TIME_OF_LAST.to_owned(),
            is_guess: true,
            first: bounds.first,
        };
        if let Some(end) = bounds.end {
            back.older = segment::finished(dir)?.into();
            back.older.retain(|number| *number <= end.after);
            back.base = end.offset;
            back.is_written(&end.segment)?;
            back.at = Some(end);
            return Ok(back);
        }
        let files = Files::of(dir)?;
        back.older = files.older.into();
        match files.current {
            Some(current) => back.enter(current)?,
            None => back.enter_older()?,
        }
        Ok(back)
    }

    /// Goes to the end of a file: behind its last full line, where it may grow.
    fn enter(&mut self, segment: Segment) -> io::Result<()> {
        self.is_written(&segment)?;
        self.base = segment.length()?;
        self.block.clear();
        let after = self.older.back().copied().unwrap_or(0);
        let offset = self.base;
        let is_finished = segment.number.is_some();
        self.at = Some(Start { segment, offset, after });
        if is_finished {
            // What stands behind the last newline is a line too: it grows no more.
            return Ok(());
        }
        while !self.block.contains(&b'\n') && self.block.len() < LINE_BYTES_MAX && self.fill()? {}
        if let Some(end) = self.block.iter().rposition(|byte| *byte == b'\n') {
            self.block.truncate(end + 1);
        } else if self.base == 0 {
            self.block.clear();
        }
        let end = self.base + self.block.len() as u64;
        if let Some(at) = &mut self.at {
            at.offset = end;
        }
        Ok(())
    }

    /// Takes over when a file was written last.
    fn is_written(&mut self, segment: &Segment) -> io::Result<()> {
        let written = segment.written()?;
        if written < self.time {
            (self.time, self.is_guess) = (written, true);
        }
        Ok(())
    }

    /// Goes to the next older file that is still there; without one, stays.
    fn enter_older(&mut self) -> io::Result<()> {
        while let Some(number) = self.older.pop_back() {
            if let Some(segment) = Segment::open_sound(&self.dir, Some(number))? {
                return self.enter(segment);
            }
        }
        Ok(())
    }

    /// Puts an earlier piece of the file in front of the block; false at the file's begin.
    fn fill(&mut self) -> io::Result<bool> {
        let Some(at) = &mut self.at else { return Ok(false) };
        let length = self.base.min(BLOCK_BYTES);
        if length == 0 {
            return Ok(false);
        }
        let mut block = vec![0; usize::try_from(length).unwrap_or(0)];
        match at.segment.read_exact_at(&mut block, self.base - length) {
            // Whoever reads it from its begin says that it is damaged; older files may be whole.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                self.block.clear();
                self.base = 0;
                return Ok(false);
            }
            read => read?,
        }
        block.append(&mut self.block);
        self.block = block;
        self.base -= length;
        Ok(true)
    }

    /// Looks at the record before; `None` where there is no record before.
    ///
    /// A line that is no record is as old as the record behind it.
    pub(super) fn step(&mut self, instance: &str) -> io::Result<Option<Record>> {
        if self.is_at_first() {
            return Ok(None);
        }
        while self.block.is_empty() && !self.fill()? {
            if self.older.is_empty() || self.at.is_none() {
                return Ok(None);
            }
            let left = self.at.take();
            if self.taken.is_none() {
                self.taken = left;
            }
            self.enter_older()?;
            if self.at.is_none() || self.is_at_first() {
                return Ok(None);
            }
        }
        let start = loop {
            // Without its last byte, which is the newline of the record that we look at; or none,
            // at the end of a file.
            let before = self.block.split_last().map_or(&[][..], |(_, before)| before);
            match before.iter().rposition(|byte| *byte == b'\n') {
                Some(end) => break end + 1,
                None if self.block.len() >= LINE_BYTES_MAX => break 0,
                None => {
                    if !self.fill()? {
                        break 0;
                    }
                }
            }
        };
        let line = self.block.split_off(start);
        let text = line.strip_suffix(b"\n").unwrap_or(&line);
        let record = Record::parse(text, instance, &self.time);
        if !record.stream.is_empty() {
            self.is_guess = false;
        }
        self.time.clone_from(&record.time);
        Ok(Some(record))
    }

    /// Whether the record that was looked at last has no time, and neither has one behind it.
    pub(super) fn is_without_time(&self) -> bool {
        self.is_guess
    }

    /// Whether all that is before was written before what is wanted.
    fn is_at_first(&self) -> bool {
        let (Some(first), Some(at)) = (&self.first, &self.at) else { return false };
        let place = self.base + self.block.len() as u64;
        if first.is_in(&at.segment, at.after) {
            return place <= first.offset;
        }
        // All that is not younger than the file before the first one is older.
        at.segment.number.is_some_and(|number| number <= first.after)
    }

    /// Before the first step: where it began, in the file that is being written.
    pub(super) fn end(&self) -> io::Result<Option<Start>> {
        let current = self.at.as_ref().filter(|at| at.segment.number.is_none());
        current.map(Start::try_clone).transpose()
    }

    /// Where the record that was looked at last starts.
    pub(super) fn place(&self) -> io::Result<Option<Start>> {
        let start = self.base + self.block.len() as u64;
        let place = self.at.as_ref().map(Start::try_clone).transpose()?;
        Ok(place.map(|place| Start { offset: start, ..place }))
    }

    /// Takes the record that was looked at last: reading begins with it, or with one before.
    pub(super) fn take(&mut self) {
        self.taken = None;
        let start = self.base + self.block.len() as u64;
        if let Some(at) = &mut self.at {
            at.offset = start;
        }
    }

    /// Where the record that was taken last starts; without one, the end.
    pub(super) fn into_start(self) -> Option<Start> {
        self.taken.or(self.at)
    }
}
