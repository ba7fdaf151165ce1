//! The supervisor's own messages, on standard error: whoever does not read them holds up nothing.
//!
//! What is not taken at once waits here, up to a limit, and is tried again by the loop. Beyond that it is
//! lost, and counted.

use std::io;
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};

use super::sink::{Sink, Write};
use crate::model::Span;

/// How long what was not taken waits until it is tried again: twice as long each time, up to the longest.
const AGAIN: Span = Span::millis(50);
const AGAIN_MAX: Span = Span::seconds(2);
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
    /// Messages that found no room, or could not be written.
    lost: usize,
    /// The wait before what waits is tried again.
    again: Span,
}

impl Messages {
    fn to(sink: Sink) -> Self {
        Self { sink, waiting: Vec::new(), lost: 0, again: AGAIN }
    }

    fn take(&mut self, message: &[u8]) {
        self.write();
        if self.waiting.len().saturating_add(message.len()) > WAITING_BYTES_MAX {
            self.lost = self.lost.saturating_add(1);
            return;
        }
        self.waiting.extend_from_slice(message);
        self.write();
    }

    /// Writes what waits, as far as it is taken; then says what was lost, if anything was.
    fn write(&mut self) {
        if self.write_waiting() && self.lost > 0 {
            let lost = std::mem::take(&mut self.lost);
            let message = format!("opm: warning: {lost} messages were lost, as nobody read them\n");
            self.waiting.extend_from_slice(message.as_bytes());
            self.write_waiting();
        }
    }

    /// Returns whether something was written, and nothing waits any more.
    fn write_waiting(&mut self) -> bool {
        let mut sent = 0usize;
        while let Some(rest) = self.waiting.get(sent..).filter(|rest| !rest.is_empty()) {
            match self.sink.write(rest.get(..CHUNK_BYTES).unwrap_or(rest)) {
                Write::Done(count) => sent = sent.saturating_add(count),
                Write::Wait => break,
                // The next one may be taken: a disk has room again, a FIFO another reader.
                Write::Lost | Write::Gone(_) => {
                    let lines = rest.split(|byte| *byte == b'\n').count();
                    self.lost = self.lost.saturating_add(lines.saturating_sub(1));
                    self.waiting.clear();
                    return false;
                }
            }
        }
        self.waiting.drain(..sent);
        if sent > 0 {
            self.again = AGAIN;
        }
        sent > 0 && self.waiting.is_empty()
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

/// From now on nobody is waited for, not by a panic either. To be called where standard error is what it is to be.
pub fn wait_for_nobody() {
    match Sink::of(io::stderr().as_fd()) {
        Ok(sink) => {
            let messages = Messages::to(sink);
            *MESSAGES.lock().unwrap_or_else(PoisonError::into_inner) = Some(messages);
        }
        // Closed: then nothing that is written can wait for anybody.
        Err(error) => return log::debug!("cannot use standard error: {error}"),
    }
    std::panic::set_hook(Box::new(|panic| {
        // One amid a message has it locked.
        if let Ok(mut messages) = MESSAGES.try_lock()
            && let Some(messages) = messages.as_mut()
        {
            messages.take(format!("opm: error: {panic}\n").as_bytes());
        }
    }));
}

/// Tries again what waits. Returns after what time to do so once more, if something still waits.
pub fn try_again() -> Option<Span> {
    with(|messages| {
        messages.write();
        let again = messages.again;
        (!messages.waiting.is_empty()).then(|| {
            messages.again = again.scale(2.0).min(AGAIN_MAX);
            again
        })
    })
    .flatten()
}

/// Writes what waits, before the end: not for long.
pub fn finish() {
    let mut left_ms = FINISH_MS;
    while left_ms > 0 && try_again().is_some() {
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
        let mut messages = Messages::to(sink);
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
