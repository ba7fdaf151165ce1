//! Looks for the line by which a run says that it is ready, until it has come.
//!
//! The supervisor writes a mark into the output of each such run before its main process: what
//! comes before it is another run's. The answer is the run's number on a FIFO that the keeper holds
//! open, so that it waits there for a supervisor that is away.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use regex_lite::Regex;

use crate::system::instruction::ReadyLine;

/// What a keeper answers that was started in the middle of a run, whose number it does not know.
const ANY: &str = "any";

/// The line that is looked for.
#[derive(Debug)]
pub(super) struct ReadyWatch {
    line: ReadyLine,
    regex: Option<Regex>,
    answer: Option<File>,
    /// The run that has not said it yet.
    run: Option<String>,
}

impl ReadyWatch {
    /// A watch that begins in the middle of a run.
    pub(super) fn new(line: &ReadyLine) -> Self {
        // A check has seen the pattern before it was saved.
        let regex = Regex::new(&line.pattern);
        if let Err(error) = &regex {
            log::error!("cannot use `{}`: {error}", line.pattern);
        }
        let run = Some(ANY.to_owned());
        Self { line: line.clone(), regex: regex.ok(), answer: None, run }
    }

    /// Whether it looks for this.
    pub(super) fn is_for(&self, line: &ReadyLine) -> bool {
        self.line == *line
    }

    /// A run begins.
    pub(super) fn begin(&mut self, run: &str) {
        self.run = Some(run.to_owned());
    }

    /// Looks at a line. Costs nothing once the run is ready.
    pub(super) fn look(&mut self, line: &[u8]) {
        let (Some(regex), Some(run)) = (&self.regex, &self.run) else { return };
        if !regex.is_match(&String::from_utf8_lossy(line)) {
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
