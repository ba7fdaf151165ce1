//! One log from its end to its begin: where the last records start, and when they were written.

use std::collections::VecDeque;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::record::time_of;
use super::segment::{self, Segment};

/// How much is read at once, in bytes.
const BLOCK_BYTES: u64 = 16 * 1024;
/// Longest line that is looked for as a whole, in bytes. What is longer was written by no keeper:
/// reading begins in the middle of it.
const LINE_BYTES_MAX: usize = 1024 * 1024;

/// The time of lines at the end that are no records: they are the youngest.
const TIME_OF_LAST: &str = "9999-12-31T23:59:59.999999Z";

/// A place in a log: a file, and the offset of a record in it.
#[derive(Debug)]
pub(super) struct Start {
    pub(super) segment: Segment,
    pub(super) offset: u64,
    /// The largest number of a finished file that is older than this one.
    pub(super) after: u64,
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
    /// The time of the record that was seen last.
    time: String,
}

impl Backward {
    /// Goes to the end of a log.
    pub(super) fn new(dir: &Path) -> io::Result<Self> {
        // First `current`, then the others: one that is finished in between is in the list, and
        // is recognised; one that begins in between is younger than this look.
        let current = Segment::open(dir, None)?;
        let mut back = Self {
            dir: dir.to_owned(),
            older: segment::finished(dir)?.into(),
            at: None,
            block: Vec::new(),
            base: 0,
            taken: None,
            time: TIME_OF_LAST.to_owned(),
        };
        match current {
            Some(current) => {
                let same = back.older.iter().rev().copied().find(|number| {
                    matches!(Segment::open(dir, Some(*number)), Ok(Some(found)) if found.id == current.id)
                });
                if let Some(same) = same {
                    back.older.retain(|number| *number < same);
                }
                back.enter(Segment { number: same, ..current })?;
            }
            None => back.enter_older()?,
        }
        Ok(back)
    }

    /// Goes to the end of a file: behind its last full line, where it may grow.
    fn enter(&mut self, segment: Segment) -> io::Result<()> {
        self.base = segment.file.metadata()?.len();
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

    /// Goes to the next older file that is still there; without one, stays.
    fn enter_older(&mut self) -> io::Result<()> {
        while let Some(number) = self.older.pop_back() {
            if let Some(segment) = Segment::open(&self.dir, Some(number))? {
                return self.enter(segment);
            }
        }
        Ok(())
    }

    /// Puts an earlier piece of the file in front of the block; false at the file's begin.
    fn fill(&mut self) -> io::Result<bool> {
        let Some(at) = &self.at else { return Ok(false) };
        let length = self.base.min(BLOCK_BYTES);
        if length == 0 {
            return Ok(false);
        }
        let mut block = vec![0; usize::try_from(length).unwrap_or(0)];
        at.segment.file.read_exact_at(&mut block, self.base - length)?;
        block.append(&mut self.block);
        self.block = block;
        self.base -= length;
        Ok(true)
    }

    /// Looks at the record before; its time, or `None` where there is no record before.
    ///
    /// A line that is no record is as old as the record behind it.
    pub(super) fn step(&mut self) -> io::Result<Option<String>> {
        while self.block.is_empty() && !self.fill()? {
            if self.older.is_empty() || self.at.is_none() {
                return Ok(None);
            }
            let left = self.at.take();
            if self.taken.is_none() {
                self.taken = left;
            }
            self.enter_older()?;
            if self.at.is_none() {
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
        if let Some(time) = time_of(&line) {
            time.clone_into(&mut self.time);
        }
        Ok(Some(self.time.clone()))
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
