//! Looks for the line by which a run says that it is ready, until it has come.
//!
//! The supervisor writes a mark into the output of each such run before its main process: what
//! comes before it is another run's. The answer is the run's number on a FIFO that the keeper holds
//! open, so that it waits there for a supervisor that is away.

use std::fs::File;
use std::io::Write;

use regex_lite::Regex;

use super::clock::now_ms;
use super::split::{PART_BYTES_MAX, Part};
use crate::system::instruction::ReadyLine;
use crate::system::run_mark::Begin;
use crate::system::{answer, fifo};

/// Most of one line that is looked at where it comes in parts, in bytes: its end.
const LINE_BYTES_MAX: usize = 2 * PART_BYTES_MAX;
/// Bytes behind a line in which a mark is looked for where the FIFO is never empty: no pipe of a user holds
/// more, pipe(7).
const BEHIND_BYTES_MAX: usize = 1024 * 1024;

/// Whose line it is.
#[derive(Debug)]
enum Whose {
    /// That of the run with this number, as its mark had it.
    Run(String),
    /// That of whichever run writes it, since this time.
    AnySince(u64),
}

/// The line that is looked for.
#[derive(Debug)]
pub(super) struct ReadyWatch {
    line: ReadyLine,
    regex: Option<Regex>,
    answer: Option<File>,
    /// The run that has not said it yet.
    looks_for: Option<Whose>,
    /// What is said of a run whose number is not known, if no other begins in what is there to be read:
    /// it may be the words of an earlier one.
    held: Option<String>,
    /// How much has come behind its line.
    behind: usize,
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
        Self {
            line: line.clone(),
            regex: regex.ok(),
            answer: None,
            looks_for: Some(Whose::AnySince(now_ms())),
            held: None,
            behind: 0,
            line_begin: Vec::new(),
        }
    }

    /// Whether it looks for this.
    pub(super) fn is_for(&self, line: &ReadyLine) -> bool {
        self.line == *line
    }

    /// A run begins, or its main process does: what comes before that is none of its words.
    pub(super) fn begin(&mut self, begin: Begin, run: &str) {
        self.looks_for = match begin {
            Begin::Run => None,
            Begin::Main => Some(Whose::Run(run.to_owned())),
        };
        self.held = None;
        self.line_begin = Vec::new();
    }

    /// All that was there to be read was read.
    pub(super) fn is_at_end(&mut self) {
        if let Some(answer) = self.held.take() {
            self.say(&answer);
        }
    }

    /// Looks at a line, or at what has come of it. Costs nothing once the run is ready.
    pub(super) fn look(&mut self, part: Part<'_>) {
        if self.held.is_some() {
            self.behind = self.behind.saturating_add(part.bytes.len());
            if self.behind > BEHIND_BYTES_MAX {
                self.is_at_end();
            }
        }
        let (Some(regex), Some(whose)) = (&self.regex, &self.looks_for) else { return };
        let mut line = std::mem::take(&mut self.line_begin);
        line.extend_from_slice(part.bytes);
        line.drain(..line.len().saturating_sub(LINE_BYTES_MAX));
        if !regex.is_match(&String::from_utf8_lossy(&line)) {
            if !part.full {
                self.line_begin = line;
            }
            return;
        }
        match whose {
            Whose::Run(run) => {
                let answer = answer::of_run(run);
                self.say(&answer);
            }
            Whose::AnySince(since) => {
                (self.held, self.behind) = (Some(answer::since(*since)), 0);
            }
        }
        self.looks_for = None;
    }

    fn say(&mut self, answer: &str) {
        if let Err(error) = self.write(answer) {
            log::error!("cannot tell that a run is ready: {error}");
        }
    }

    fn write(&mut self, answer: &str) -> std::io::Result<()> {
        if self.answer.is_none() {
            self.answer = Some(fifo::open_both_ends(self.line.answer.as_path())?);
        }
        self.answer.as_mut().map_or(Ok(()), |file| file.write_all(answer.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::model::FilePath;

    #[test]
    fn words_of_a_run_that_was_not_seen_to_begin_count_when_no_other_begins_behind_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.ready");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut fifo = fifo::open_both_ends(&path).unwrap();
        let mut said = || {
            let mut bytes = [0; 64];
            let count = fifo.read(&mut bytes).unwrap_or(0);
            String::from_utf8(bytes[..count].to_vec()).unwrap()
        };
        let line = ReadyLine { pattern: "listening".to_owned(), answer: FilePath::from(path) };
        let words = Part { bytes: b"listening", full: true };
        let mut watch = ReadyWatch::new(&line);
        watch.look(words);
        assert_eq!(said(), "");
        watch.begin(Begin::Run, "2");
        watch.begin(Begin::Main, "2");
        watch.is_at_end();
        assert_eq!(said(), "", "it was another run");
        watch.look(words);
        assert_eq!(said(), "2\n");
        let mut watch = ReadyWatch::new(&line);
        watch.look(words);
        watch.is_at_end();
        assert!(said().starts_with("any "));
        // Where it is never at the end, enough was seen at some time.
        let mut watch = ReadyWatch::new(&line);
        watch.look(words);
        let much = Part { bytes: &[b'x'; 4096], full: true };
        let said = (0..1_000).position(|_| {
            watch.look(much);
            !said().is_empty()
        });
        assert_eq!(said, Some(BEHIND_BYTES_MAX / 4096));
    }
}
