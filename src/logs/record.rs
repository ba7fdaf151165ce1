//! One record of a log: a line, or a part of one, with its stamp.
//!
//! `2026-11-25T10:32:00.123456Z stdout F the line` is the form that container runtimes write
//! (CRI): stamp, stream, `F` for a full line or `P` for a part, and the bytes as they came.

/// Stream of what the instance wrote; its standard output and error are one FIFO.
pub const STREAM_OUTPUT: &str = "stdout";
/// Stream of what opm itself has to say about the log.
pub const STREAM_OPM: &str = "opm";
/// How a record of opm begins that is no gap: the clock was set back.
pub const CLOCK_BACK: &str = "[opm: the clock was set back";
/// Mark of a full line, and of the last part of a longer one.
pub const FULL: &str = "F";
/// Mark of a part that is not the last of its line, or that has no newline yet.
pub const PART: &str = "P";

/// A record as it is read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// When the keeper received it: RFC 3339 in UTC with microseconds, sorts as text. A line that
    /// is no record has the time of the record before.
    pub time: String,
    /// [`STREAM_OUTPUT`] or [`STREAM_OPM`]; empty for a line that is no record.
    pub stream: String,
    /// Whether the line goes on with the instance's next record of the same stream.
    pub partial: bool,
    /// The bytes of the line, without a newline.
    pub bytes: Vec<u8>,
    /// The instance it belongs to.
    pub instance: String,
}

impl Record {
    /// Reads a line of a log, without its newline. Text that is no record comes out whole.
    pub fn parse(line: &[u8], instance: &str, time_before: &str) -> Self {
        let instance = instance.to_owned();
        match fields(line) {
            Some((time, stream, partial, bytes)) => Self {
                time: time.to_owned(),
                stream: stream.to_owned(),
                partial,
                bytes: bytes.to_vec(),
                instance,
            },
            None => Self {
                time: time_before.to_owned(),
                stream: String::new(),
                partial: false,
                bytes: line.to_vec(),
                instance,
            },
        }
    }

    /// Whether it says that something is missing. Of opm's records all do but one.
    pub(super) fn is_gap(&self) -> bool {
        !self.bytes.starts_with(CLOCK_BACK.as_bytes())
    }
}

/// The stamp at the head of a line, where there is one.
pub(super) fn time_of(line: &[u8]) -> Option<&str> {
    let (time, _) = word(line)?;
    is_time(time).then_some(time)
}

fn fields(line: &[u8]) -> Option<(&str, &str, bool, &[u8])> {
    let (time, rest) = word(line)?;
    let (stream, rest) = word(rest)?;
    let (flag, bytes) = word(rest)?;
    let partial = match flag {
        FULL => false,
        PART => true,
        _ => return None,
    };
    (is_time(time) && !stream.is_empty()).then_some((time, stream, partial, bytes))
}

/// The text up to the first blank, and what is behind the blank.
fn word(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let end = bytes.iter().take(WORD_BYTES_MAX).position(|byte| *byte == b' ')?;
    let (word, rest) = bytes.split_at_checked(end)?;
    Some((std::str::from_utf8(word).ok()?, rest.get(1..)?))
}

/// Longest stamp, stream or mark that is looked for, in bytes. Longer: the line is no record.
pub(super) const WORD_BYTES_MAX: usize = 64;

fn is_time(text: &str) -> bool {
    text.len() >= 20
        && text.ends_with('Z')
        && text.starts_with(|c: char| c.is_ascii_digit())
        && text.bytes().all(|byte| byte.is_ascii_digit() || b"-:.TZ".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_byte_for_byte() {
        let line = b"2026-11-25T10:32:00.123456Z stdout P a \xc1 \0 b ";
        let record = Record::parse(line, "web", "");
        assert_eq!(record.time, "2026-11-25T10:32:00.123456Z");
        assert_eq!(record.stream, STREAM_OUTPUT);
        assert!(record.partial);
        assert_eq!(record.bytes, b"a \xc1 \0 b ");
        let empty = Record::parse(b"2026-11-25T10:32:00.123456Z opm F ", "web", "");
        assert_eq!((empty.stream.as_str(), empty.bytes.len()), (STREAM_OPM, 0));
    }

    #[test]
    fn what_is_no_record_comes_out_whole() {
        for line in [
            &b"hello"[..],
            b"",
            b"2026-11-25T10:32:00Z stdout X a",
            b"2026-11-25T10:32:00Z  F a",
            b"yesterday.............Z stdout F a",
            b"2026-11-25T10:32:00Z stdout F",
        ] {
            let record = Record::parse(line, "web", "before");
            assert_eq!((record.time.as_str(), record.stream.as_str()), ("before", ""));
            assert_eq!(record.bytes, line);
        }
    }
}
