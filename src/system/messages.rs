//! The supervisor's own messages, on standard error: whoever does not read them holds up nothing.
//!
//! What is not taken at once waits here, up to a limit, and is tried again by the loop. Beyond that it is
//! lost, and counted.

use std::io;
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};

use super::sink::{Sink, Write};
use crate::model::Span;

/// How long what was not taken waits until it is tried again.
pub const AGAIN: Span = Span::millis(50);
/// Bytes of messages that wait at most.
const WAITING_BYTES_MAX: usize = 1 << 20;
/// How long the end waits for whoever reads, in milliseconds.
const FINISH_MS: u16 = 500;
/// Bytes that are written at once: no more than a pipe takes as a whole, pipe(7).
const CHUNK_BYTES: usize = 4096;

/// Where messages go once nobody may be waited for; before, to standard error itself.
static MESSAGES: Mutex<Option<Messages>> = Mutex::new(None);

#[derive(Debug)]
struct Messages {
    sink: Sink,
    waiting: Vec<u8>,
    /// Messages that found no room.
    lost: u64,
}

impl Messages {
    fn take(&mut self, message: &[u8]) {
        self.write();
        if self.waiting.len().saturating_add(message.len()) > WAITING_BYTES_MAX {
            self.lost = self.lost.saturating_add(1);
            return;
        }
        self.waiting.extend_from_slice(message);
        self.write();
    }

    /// Writes what waits, as far as it is taken.
    fn write(&mut self) {
        let mut sent = 0usize;
        while let Some(rest) = self.waiting.get(sent..).filter(|rest| !rest.is_empty()) {
            match self.sink.write(rest.get(..CHUNK_BYTES).unwrap_or(rest)) {
                Write::Done(count) => sent = sent.saturating_add(count),
                Write::Wait => break,
                Write::Lost => sent = self.waiting.len(),
                Write::Gone(_) => {
                    self.sink = Sink::Off;
                    sent = self.waiting.len();
                }
            }
        }
        self.waiting.drain(..sent.min(self.waiting.len()));
        if self.waiting.is_empty() && self.lost > 0 {
            let lost = std::mem::take(&mut self.lost);
            let message = format!("opm: warning: {lost} messages were lost, as nobody read them\n");
            self.waiting.extend_from_slice(message.as_bytes());
            self.write();
        }
    }
}

fn with<T>(act: impl FnOnce(&mut Messages) -> T) -> Option<T> {
    MESSAGES.lock().unwrap_or_else(PoisonError::into_inner).as_mut().map(act)
}

/// Where a logger writes.
#[derive(Debug)]
pub struct Writer;

impl io::Write for Writer {
    fn write(&mut self, message: &[u8]) -> io::Result<usize> {
        match with(|messages| messages.take(message)) {
            Some(()) => Ok(message.len()),
            None => io::Write::write(&mut io::stderr(), message),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// From now on nobody is waited for. To be called where standard error is what it is to be.
pub fn wait_for_nobody() {
    match Sink::of(io::stderr().as_fd()) {
        Ok(sink) => {
            let messages = Messages { sink, waiting: Vec::new(), lost: 0 };
            *MESSAGES.lock().unwrap_or_else(PoisonError::into_inner) = Some(messages);
        }
        // Closed: then nothing that is written can wait for anybody.
        Err(error) => log::debug!("cannot use standard error: {error}"),
    }
}

/// Tries again what waits. Returns whether something still does.
pub fn try_again() -> bool {
    let is_waiting = |messages: &mut Messages| {
        messages.write();
        !messages.waiting.is_empty()
    };
    with(is_waiting).unwrap_or(false)
}

/// Writes what waits, before the end: not for long.
pub fn finish() {
    let mut left_ms = FINISH_MS;
    while left_ms > 0 && try_again() {
        left_ms = with(|messages| messages.sink.wait(left_ms)).unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn who_does_not_read_costs_messages_and_is_told_so() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let sink = Sink::of(ours.as_fd()).unwrap();
        let mut messages = Messages { sink, waiting: Vec::new(), lost: 0 };
        let message = [b'x'; 1023];
        let most = 4 * WAITING_BYTES_MAX / 1024;
        for _ in 0..most {
            messages.take(&message);
            messages.take(b"\n");
        }
        assert!(messages.lost > 0 && messages.waiting.len() <= WAITING_BYTES_MAX);
        theirs.set_nonblocking(true).unwrap();
        let mut read = Vec::new();
        while !messages.waiting.is_empty() {
            let _would_block = theirs.read_to_end(&mut read);
            messages.write();
        }
        let _would_block = theirs.read_to_end(&mut read);
        let text = String::from_utf8(read).unwrap();
        let last = text.lines().last().unwrap();
        assert!(last.ends_with("messages were lost, as nobody read them"), "{last}");
        // All others are whole, and go on.
        messages.take(b"there\n");
        let mut read = [0u8; 6];
        theirs.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"there\n");
    }
}
