//! Looks for the line by which a run says that it is ready, until it has come.
//!
//! The supervisor writes a mark into the output of each such run before its main process: what
//! comes before it is another run's. The answer is the run's number on a FIFO that the keeper holds
//! open, so that it waits there for a supervisor that is away.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use regex_lite::Regex;

use super::clock::now_ms;
use super::split::{PART_BYTES_MAX, Part};
use crate::system::instruction::{ANY, ReadyLine};
use crate::system::run_mark::Begin;

/// Most of one line that is looked at where it comes in parts, in bytes: its end.
const LINE_BYTES_MAX: usize = 2 * PART_BYTES_MAX;

/// The line that is looked for.
#[derive(Debug)]
pub(super) struct ReadyWatch {
    line: ReadyLine,
    regex: Option<Regex>,
    answer: Option<File>,
    /// The run that has not said it yet.
    run: Option<String>,
    /// The begin of a line that comes in parts.
    line_begin: Vec<u8>,
}

impl ReadyWatch {
    /// A watch that begins in the middle of a run, whose number it does not know. It says since when it
    /// looks: a run that is younger begins with a mark.
    pub(super) fn new(line: &ReadyLine) -> Self {
        // A check has seen the pattern before it was saved.
        let regex = Regex::new(&line.pattern);
        if let Err(error) = &regex {
            log::error!("cannot use `{}`: {error}", line.pattern);
        }
        let run = Some(format!("{ANY}{}", now_ms()));
        let line_begin = Vec::new();
        Self { line: line.clone(), regex: regex.ok(), answer: None, run, line_begin }
    }

    /// Whether it looks for this.
    pub(super) fn is_for(&self, line: &ReadyLine) -> bool {
        self.line == *line
    }

    /// A run begins, or its main process does: what comes before that is none of its words.
    pub(super) fn begin(&mut self, begin: Begin, run: &str) {
        self.run = match begin {
            Begin::Run => None,
            Begin::Main => Some(run.to_owned()),
        };
        self.line_begin = Vec::new();
    }

    /// Looks at a line, or at what has come of it. Costs nothing once the run is ready.
    pub(super) fn look(&mut self, part: Part<'_>) {
        let (Some(regex), Some(run)) = (&self.regex, &self.run) else { return };
        let mut line = std::mem::take(&mut self.line_begin);
        line.extend_from_slice(part.bytes);
        line.drain(..line.len().saturating_sub(LINE_BYTES_MAX));
        if !regex.is_match(&String::from_utf8_lossy(&line)) {
            if !part.full {
                self.line_begin = line;
            }
            return;
        }
        let answer = format!("{run}\n");
        self.run = None;
        if let Err(error) = self.say(&answer) {
            log::error!("cannot tell that a run is ready: {error}");
        }
    }

    fn say(&mut self, answer: &str) -> std::io::Result<()> {
        if self.answer.is_none() {
            let mut open = OpenOptions::new();
            open.read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW);
            self.answer = Some(open.open(self.line.answer.as_path())?);
        }
        self.answer.as_mut().map_or(Ok(()), |file| file.write_all(answer.as_bytes()))
    }
}
