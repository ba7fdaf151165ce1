//! One record of a log: a line, or a part of one, with its stamp.
//!
//! `2026-11-25T10:32:00.123456Z stdout F the line` is the form that container runtimes write
//! (CRI): stamp, stream, `F` for a full line or `P` for a part, and the bytes as they came. Now and then
//! the mark is followed by the run, `F:0123456789abcdef`: what comes behind is of the same one.
//!
//! A log of `format: json` has the same in objects ([`Json`]), each with the run. What is one is seen by
//! how it begins, so that a log may have both.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::model::RunId;

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
/// How an object begins: with the time.
const JSON_HEAD: &[u8] = b"{\"time\":\"";

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
    /// The run it belongs to, where that is known.
    pub run: Option<RunId>,
}

impl Record {
    /// Reads a line of a log, without its newline. Text that is no record comes out whole.
    pub fn parse(line: &[u8], instance: &str, time_before: &str) -> Self {
        let instance = instance.to_owned();
        let found = if line.starts_with(JSON_HEAD) { of_json(line) } else { of_text(line) };
        found.map_or_else(
            || Self {
                time: time_before.to_owned(),
                stream: String::new(),
                partial: false,
                bytes: line.to_vec(),
                instance: instance.clone(),
                run: None,
            },
            |record| Self { instance: instance.clone(), ..record },
        )
    }

    /// The same as an object.
    pub fn json(&self) -> Json<'_> {
        Json {
            time: self.time.as_str().into(),
            instance: self.instance.as_str().into(),
            run: self.run.map(|run| run.to_string().into()),
            stream: self.stream.as_str().into(),
            partial: self.partial,
            line: JsonLine(self.bytes.as_slice().into()),
        }
    }

    /// Whether it says that something is missing. Of opm's records all do but one.
    pub(super) fn is_gap(&self) -> bool {
        !self.bytes.starts_with(CLOCK_BACK.as_bytes())
    }
}

/// The stamp at the head of a line, where there is one.
pub fn time_of(line: &[u8]) -> Option<&str> {
    let (time, _) = match line.strip_prefix(JSON_HEAD) {
        Some(rest) => word(rest, b'"')?,
        None => word(line, b' ')?,
    };
    is_time(time).then_some(time)
}

fn of_text(line: &[u8]) -> Option<Record> {
    let (time, rest) = word(line, b' ')?;
    let (stream, rest) = word(rest, b' ')?;
    let (mark, bytes) = word(rest, b' ')?;
    let (mark, run) = mark.split_once(':').map_or((mark, None), |(mark, run)| (mark, Some(run)));
    let partial = match mark {
        FULL => false,
        PART => true,
        _ => return None,
    };
    let run = run.map(run_of).transpose().ok()?;
    let (time, stream, instance) = (time.to_owned(), stream.to_owned(), String::new());
    let is_record = is_time(&time) && !stream.is_empty();
    is_record.then(|| Record { time, stream, partial, bytes: bytes.to_vec(), instance, run })
}

fn of_json(line: &[u8]) -> Option<Record> {
    let json: Json<'_> = serde_json::from_slice(line).ok()?;
    let run = json.run.as_deref().map(run_of).transpose().ok()?;
    let (time, stream) = (json.time.into_owned(), json.stream.into_owned());
    let (partial, bytes, instance) = (json.partial, json.line.0.into_owned(), String::new());
    is_time(&time).then_some(Record { time, stream, partial, bytes, instance, run })
}

fn run_of(text: &str) -> Result<RunId, std::num::ParseIntError> {
    u64::from_str_radix(text, 16).map(RunId)
}

/// A record as a JSON object on one line: what `logs.format: json` keeps and `logs --json` prints.
#[derive(Debug, Serialize, Deserialize)]
pub struct Json<'a> {
    /// When the keeper received it. First, so that it is found without reading the rest.
    #[serde(borrow)]
    pub time: Cow<'a, str>,
    /// The instance.
    #[serde(borrow)]
    pub instance: Cow<'a, str>,
    /// The run, where it is known.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub run: Option<Cow<'a, str>>,
    /// The stream.
    #[serde(borrow)]
    pub stream: Cow<'a, str>,
    /// Whether the line goes on.
    pub partial: bool,
    /// The line.
    #[serde(borrow)]
    pub line: JsonLine<'a>,
}

/// The bytes of a line: a string, or a list of numbers where they are no UTF-8, as journalctl(1) has it.
#[derive(Debug)]
pub struct JsonLine<'a>(pub Cow<'a, [u8]>);

impl Serialize for JsonLine<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => serializer.collect_seq(self.0.iter()),
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for JsonLine<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;

        impl<'de> Visitor<'de> for Bytes {
            type Value = Vec<u8>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of bytes")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<u8>, E> {
                Ok(text.as_bytes().to_vec())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<u8>, A::Error> {
                let mut bytes = Vec::new();
                while let Some(byte) = items.next_element()? {
                    bytes.push(byte);
                }
                Ok(bytes)
            }
        }

        deserializer.deserialize_any(Bytes).map(|bytes| Self(Cow::Owned(bytes)))
    }
}

/// The text up to the first byte of this value, and what is behind it.
fn word(bytes: &[u8], end: u8) -> Option<(&str, &[u8])> {
    let end = bytes.iter().take(WORD_BYTES_MAX).position(|byte| *byte == end)?;
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
    fn a_run_stands_behind_the_mark_or_in_the_object() {
        let time = "2026-11-25T10:32:00.123456Z";
        let line = format!("{time} stdout F:00000000000000ff a:b");
        let record = Record::parse(line.as_bytes(), "web", "");
        assert_eq!((record.run, record.bytes.as_slice()), (Some(RunId(255)), &b"a:b"[..]));
        let bytes: [&[u8]; 4] = [b"plain", b"\"quoted\" \\ \t\0", "\u{fc}".as_bytes(), b"\xff\n"];
        for (bytes, run) in bytes.into_iter().zip([None, Some(RunId(1)), Some(RunId(255)), None]) {
            let run_text = run.map(|run| run.to_string().into());
            let json = Json {
                time: time.into(),
                instance: "web".into(),
                run: run_text,
                stream: STREAM_OUTPUT.into(),
                partial: true,
                line: JsonLine(bytes.into()),
            };
            let line = serde_json::to_vec(&json).unwrap();
            assert!(!line.contains(&b'\n'));
            assert_eq!(time_of(&line), Some(time));
            let record = Record::parse(&line, "web", "");
            assert_eq!((record.run, record.bytes.as_slice()), (run, bytes));
            assert!(record.partial && record.stream == STREAM_OUTPUT && record.time == time);
        }
    }

    #[test]
    fn what_is_no_record_comes_out_whole() {
        for line in [
            &br#"{"time":"2026-11-25T10:32:00Z","line":"without the rest"}"#[..],
            br#"{"time":"now","instance":"a","stream":"stdout","partial":false,"line":""}"#,
            b"2026-11-25T10:32:00Z stdout F:run a",
            b"2026-11-25T10:32:00Z stdout F: a",
            b"hello",
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
