//! The copy of all lines on standard output: `web      | the line`.
//!
//! A bounded queue in front of a [`Sink`]: a reader that is slow, stuck or gone costs lines here,
//! with a count, and never a line of the logs, and never a wait.

use std::os::fd::AsFd;

use mio::{Registry, Token};

use crate::system::{Sink, Written};

/// Most bytes that wait for the reader. What comes on top is dropped and counted.
const QUEUE_BYTES_MAX: usize = 1024 * 1024;
/// After a loss, lines are taken again when no more bytes than this wait, so that losses come in
/// few long gaps and not in many short ones.
const QUEUE_BYTES_RESUME: usize = QUEUE_BYTES_MAX / 2;
/// Most bytes in one write: a pipe that is said to be writable takes so many without a wait.
const CHUNK_BYTES_MAX: usize = 4096;
/// Widest column of names. Longer names push their lines to the right.
const NAME_WIDTH_MAX: usize = 20;
/// How much room the queue keeps when it is empty, in bytes.
const IDLE_BYTES_MAX: usize = 64 * 1024;
/// How long the end waits for the reader to take what is queued, in milliseconds.
const LINGER_MS: u16 = 500;
/// The colours of names, as SGR parameters.
const COLOURS: [&str; 6] = ["36", "33", "32", "35", "34", "31"];

/// Lines on their way to standard output.
#[derive(Debug)]
pub(super) struct Console {
    sink: Sink,
    queue: Vec<u8>,
    /// How much of the queue is written.
    sent: usize,
    width: usize,
    colour: bool,
    dropped: u64,
}

impl Console {
    /// Takes descriptor 1 as it is.
    pub(super) fn open(registry: &Registry, token: Token, colour: bool) -> Self {
        let sink = Sink::of(std::io::stdout().as_fd());
        let sink = sink.and_then(|sink| sink.watched(registry, token));
        let sink = sink.unwrap_or_else(|error| {
            log::warn!("cannot use standard output: {error}");
            Sink::Off
        });
        Self::to(sink, colour)
    }

    fn to(sink: Sink, colour: bool) -> Self {
        Self { sink, queue: Vec::new(), sent: 0, width: 0, colour, dropped: 0 }
    }

    /// Queues a line, or a part of one: on the console each part is a line.
    pub(super) fn push(&mut self, name: &str, bytes: &[u8]) {
        if matches!(self.sink, Sink::Off) {
            return;
        }
        self.width = self.width.max(name.len().min(NAME_WIDTH_MAX));
        let length = name.len().max(self.width) + bytes.len() + 4;
        let limit = if self.dropped > 0 { QUEUE_BYTES_RESUME } else { QUEUE_BYTES_MAX };
        if self.waiting() + length > limit {
            self.dropped += length as u64;
            return;
        }
        self.tell();
        self.line(name, bytes);
    }

    /// Writes what can be written without a wait.
    pub(super) fn flush(&mut self) {
        loop {
            let Some(chunk) = self.queue.get(self.sent..).and_then(chunk) else {
                self.tidy();
                if self.dropped == 0 {
                    return;
                }
                self.tell();
                continue;
            };
            let length = chunk.len();
            match self.sink.write(chunk) {
                Written::Done(count) => self.sent += count,
                Written::Wait => break,
                Written::Lost => {
                    self.sent += length;
                    self.dropped += length as u64;
                    break;
                }
                Written::Gone(error) => {
                    log::warn!("cannot write to standard output: {error}; not tried again");
                    self.sink = Sink::Off;
                    self.queue = Vec::new();
                    (self.sent, self.dropped) = (0, 0);
                    return;
                }
            }
        }
        self.tidy();
    }

    /// Gives the reader a last chance to take what is queued.
    pub(super) fn finish(&mut self) {
        self.flush();
        let mut left = LINGER_MS;
        while self.waiting() > 0 && left > 0 {
            left = self.sink.wait(left);
            self.flush();
        }
    }

    fn waiting(&self) -> usize {
        self.queue.len().saturating_sub(self.sent)
    }

    /// Queues the line that says how much is missing.
    fn tell(&mut self) {
        if self.dropped > 0 {
            let text = format!("dropped {} bytes of console output", self.dropped);
            self.dropped = 0;
            self.line("opm", text.as_bytes());
        }
    }

    fn line(&mut self, name: &str, bytes: &[u8]) {
        let width = self.width;
        let head = if self.colour {
            format!("\x1b[0;{}m{name:width$} |\x1b[0m ", colour_of(name))
        } else {
            format!("{name:width$} | ")
        };
        self.queue.extend_from_slice(head.as_bytes());
        self.queue.extend_from_slice(bytes);
        self.queue.push(b'\n');
    }

    /// Gives back the room of what is written.
    fn tidy(&mut self) {
        if self.sent >= self.queue.len() {
            self.queue.clear();
            self.queue.shrink_to(IDLE_BYTES_MAX);
            self.sent = 0;
        } else if self.sent > self.queue.len() / 2 {
            self.queue.drain(..self.sent);
            self.sent = 0;
        }
    }
}

/// The next bytes to write: whole lines where one fits, so that other writers do not get between.
fn chunk(bytes: &[u8]) -> Option<&[u8]> {
    let most = bytes.get(..CHUNK_BYTES_MAX).unwrap_or(bytes);
    let end = most.iter().rposition(|byte| *byte == b'\n').map_or(most.len(), |end| end + 1);
    most.get(..end).filter(|chunk| !chunk.is_empty())
}

/// The colour that a name always has, as SGR parameters.
pub fn colour_of(name: &str) -> &'static str {
    let sum = name.bytes().fold(0_usize, |sum, byte| (sum * 31 + usize::from(byte)) % 65_521);
    COLOURS.get(sum % COLOURS.len()).copied().unwrap_or("0")
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::{PipeReader, Read};

    use super::*;

    fn piped() -> (PipeReader, Console) {
        let (reader, writer) = std::io::pipe().unwrap();
        let file = File::from(std::os::fd::OwnedFd::from(writer));
        (reader, Console::to(Sink::Shared(file), false))
    }

    #[test]
    fn names_are_padded_to_the_widest_seen() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut console = Console::to(Sink::Direct(file.reopen().unwrap()), false);
        for name in ["web", "database", "a-name-of-more-than-20-bytes", "web"] {
            console.push(name, b"x");
        }
        console.flush();
        let expected = "web | x\ndatabase | x\na-name-of-more-than-20-bytes | x\n\
                        web                  | x\n";
        assert_eq!(fs::read_to_string(file.path()).unwrap(), expected);
        console.colour = true;
        console.push("web", b"y");
        console.flush();
        let text = fs::read_to_string(file.path()).unwrap();
        assert!(text.ends_with("mweb                  |\x1b[0m y\n"), "{text:?}");
    }

    #[test]
    fn a_stuck_reader_costs_lines_and_is_told_how_many() {
        let (mut reader, mut console) = piped();
        let line = vec![b'x'; 1000];
        let pushed = 3_000;
        for _ in 0..pushed {
            console.push("web", &line);
            console.flush();
        }
        assert!(console.waiting() <= QUEUE_BYTES_MAX);
        assert!(console.dropped > 0);
        let mut text = Vec::new();
        let mut buffer = vec![0; 65_536];
        while console.waiting() > 0 || console.dropped > 0 {
            let count = reader.read(&mut buffer).unwrap();
            text.extend_from_slice(&buffer[..count]);
            console.flush();
        }
        drop(console);
        reader.read_to_end(&mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        let (mut kept, mut dropped) = (0, 0);
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("opm | dropped ") {
                dropped += rest.split(' ').next().unwrap().parse::<usize>().unwrap();
            } else {
                assert_eq!(line.len(), 1006);
                kept += 1;
            }
        }
        assert!(kept > 500, "{kept}");
        assert_eq!(kept * 1007 + dropped, pushed * 1007);
    }

    #[test]
    fn a_reader_that_is_gone_ends_the_copy() {
        let (reader, mut console) = piped();
        drop(reader);
        console.push("web", b"x");
        console.flush();
        assert!(matches!(console.sink, Sink::Off));
        console.push("web", b"x");
        assert_eq!(console.queue.capacity(), 0);
    }

    #[test]
    fn a_full_disk_behind_standard_output_is_no_end() {
        let file = File::options().write(true).open("/dev/full").unwrap();
        let mut console = Console::to(Sink::Direct(file), false);
        console.push("web", b"x");
        console.flush();
        assert!(matches!(console.sink, Sink::Direct(_)));
        assert!(console.dropped > 0);
    }
}
