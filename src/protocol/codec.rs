//! Frames: bytes up to a NUL.

use std::fmt;

/// A message has more bytes than is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLong(pub usize);

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a message has more than {} bytes", self.0)
    }
}

impl std::error::Error for TooLong {}

/// Collects bytes until a message is whole. Holds at most the limit.
#[derive(Debug)]
pub struct Decoder {
    bytes: Vec<u8>,
    /// Where the search for the next NUL goes on.
    seen: usize,
    limit: usize,
}

impl Decoder {
    /// A decoder for messages of at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), seen: 0, limit }
    }

    /// Takes bytes as they came.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole message, without its NUL.
    ///
    /// # Errors
    /// When what has come of it is longer than the limit.
    pub fn take(&mut self) -> Result<Option<Vec<u8>>, TooLong> {
        let unseen = self.bytes.get(self.seen..).unwrap_or_default();
        let Some(end) = unseen.iter().position(|byte| *byte == 0) else {
            self.seen = self.bytes.len();
            return if self.bytes.len() > self.limit { Err(TooLong(self.limit)) } else { Ok(None) };
        };
        let end = self.seen.saturating_add(end);
        if end > self.limit {
            return Err(TooLong(self.limit));
        }
        let rest = self.bytes.split_off(end.saturating_add(1));
        let mut message = std::mem::replace(&mut self.bytes, rest);
        message.pop();
        self.seen = 0;
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_whole_however_they_come() {
        let stream = b"{\"a\":1}\0{}\0\0tail";
        for size in 1..=stream.len() {
            let mut decoder = Decoder::new(100);
            let mut messages = Vec::new();
            for chunk in stream.chunks(size) {
                decoder.push(chunk);
                while let Some(message) = decoder.take().unwrap() {
                    messages.push(message);
                }
            }
            assert_eq!(messages, [&b"{\"a\":1}"[..], b"{}", b""], "chunks of {size}");
        }
    }

    #[test]
    fn a_message_over_the_limit_is_refused() {
        let mut decoder = Decoder::new(4);
        decoder.push(b"1234\0");
        assert_eq!(decoder.take(), Ok(Some(b"1234".to_vec())));
        decoder.push(b"12345");
        assert_eq!(decoder.take(), Err(TooLong(4)));
    }
}
