//! How a record stands where it is kept or sent.

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::stamp::Stamp;
use crate::logs::record::{FULL, Json, JsonLine, PART, STREAM_OPM, STREAM_OUTPUT};
use crate::model::{LogFormat, RunId, Syslog, SyslogForm};
use crate::system::{
    self,
    instruction::{Destination, Instruction},
};

/// Longest text of one syslog message, in bytes. Receivers need not take more than 2 KiB, RFC 5424
/// section 6.1; the usual ones take 8.
const MESSAGE_BYTES_MAX: usize = 7 * 1024;
/// Longest name in a message, RFC 5424 section 6.2.5.
const APP_NAME_BYTES_MAX: usize = 48;
/// Severities, RFC 5424 section 6.2.1.
const WARNING: u8 = 4;
const INFO: u8 = 6;

/// What is to be written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Words<'a> {
    /// The bytes, without a newline.
    pub(super) bytes: &'a [u8],
    /// Whether the line ends with them.
    pub(super) full: bool,
    /// Whether they are opm's own.
    pub(super) is_ours: bool,
    /// How many bytes of output these tell of that are missing: they count as missing once more where
    /// this is lost too.
    pub(super) told: u64,
    /// The run they belong to, where it is known and to be said.
    pub(super) run: Option<RunId>,
}

/// The form of an instance's records.
#[derive(Debug)]
pub(super) struct Form {
    name: String,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Text,
    Json,
    Raw {
        /// Whether a part gets a newline too, since the next words are another instance's.
        ends_parts: bool,
    },
    Syslog {
        syslog: Syslog,
        host: String,
        zone: TimeZone,
    },
}

impl Form {
    pub(super) fn new(name: &str, instruction: &Instruction) -> Self {
        let kind = match (&instruction.to, instruction.format) {
            (Destination::Syslog(syslog), _) => Kind::Syslog {
                syslog: syslog.clone(),
                host: system::host_name(),
                zone: TimeZone::system(),
            },
            (_, LogFormat::Text) => Kind::Text,
            (_, LogFormat::Json) => Kind::Json,
            (to, LogFormat::Raw) => Kind::Raw { ends_parts: matches!(to, Destination::Unit(_)) },
        };
        Self { name: name.to_owned(), kind }
    }

    /// Whether each record is a line that says of itself what it is.
    pub(super) fn is_stamped(&self) -> bool {
        matches!(self.kind, Kind::Text | Kind::Json)
    }

    /// Whether the run is said only now and then.
    pub(super) fn says_run_rarely(&self) -> bool {
        matches!(self.kind, Kind::Text)
    }

    /// Adds a record to `out`; for syslog the pieces of it, of which each is a message of its own.
    pub(super) fn put(
        &self,
        out: &mut Vec<u8>,
        stamp: &Stamp,
        words: Words<'_>,
        piece: &mut dyn FnMut(usize, usize),
    ) {
        let Words { bytes, full, is_ours, told, run } = words;
        let told = usize::try_from(told).unwrap_or(usize::MAX);
        let content = if is_ours { told } else { bytes.len() + usize::from(full) };
        match &self.kind {
            Kind::Text => {
                out.extend_from_slice(&stamp.text);
                out.extend_from_slice(text_head(full, is_ours));
                if let Some(run) = run {
                    out.extend_from_slice(format!(":{run}").as_bytes());
                }
                out.push(b' ');
                out.extend_from_slice(bytes);
                out.push(b'\n');
            }
            Kind::Json => {
                self.put_json(out, stamp, words);
                out.push(b'\n');
            }
            Kind::Raw { ends_parts } => {
                out.extend_from_slice(bytes);
                if full || *ends_parts {
                    out.push(b'\n');
                }
            }
            Kind::Syslog { syslog, host, zone } => {
                let (severity, bytes) = if is_ours { (WARNING, bytes) } else { severity(bytes) };
                let head = self.syslog_head((syslog, host, zone), stamp, severity, words);
                let mut left = content;
                let mut chunks = bytes.chunks(MESSAGE_BYTES_MAX).peekable();
                // An empty line is a message too.
                let mut next = Some(chunks.next().unwrap_or_default());
                while let Some(chunk) = next {
                    out.extend_from_slice(head.as_bytes());
                    out.extend_from_slice(chunk);
                    next = chunks.next();
                    let content = if next.is_some() { chunk.len().min(left) } else { left };
                    left -= content;
                    piece(out.len(), content);
                }
                return;
            }
        }
        piece(out.len(), content);
    }

    fn put_json(&self, out: &mut Vec<u8>, stamp: &Stamp, words: Words<'_>) {
        let json = Json {
            time: String::from_utf8_lossy(&stamp.text),
            instance: self.name.as_str().into(),
            run: words.run.map(|run| run.to_string().into()),
            stream: stream(words.is_ours).into(),
            partial: !words.full,
            line: JsonLine(words.bytes.into()),
        };
        // Memory does not refuse, and every value has a form.
        if let Err(error) = serde_json::to_writer(out, &json) {
            log::error!("cannot write a record: {error}");
        }
    }

    fn syslog_head(
        &self,
        (syslog, host, zone): (&Syslog, &str, &TimeZone),
        stamp: &Stamp,
        severity: u8,
        words: Words<'_>,
    ) -> String {
        let priority = u32::from(syslog.facility) * 8 + u32::from(severity);
        let name = self.name.get(..APP_NAME_BYTES_MAX).unwrap_or(&self.name);
        match syslog.form {
            SyslogForm::Rfc5424 => {
                let time = String::from_utf8_lossy(&stamp.text);
                // A change of the process number tells a receiver of a discontinuity, section 6.2.6.
                let run = words.run.map_or_else(|| "-".to_owned(), |run| run.to_string());
                let stream = stream(words.is_ours);
                format!("<{priority}>1 {time} {host} {name} {run} {stream} - ")
            }
            SyslogForm::Rfc3164 => {
                let time =
                    Timestamp::from_microsecond(stamp.micros).unwrap_or(Timestamp::UNIX_EPOCH);
                let time =
                    time.to_zoned_datetime(zone.clone()).strftime("%b %e %H:%M:%S").to_string();
                if syslog.address.is_local() {
                    return format!("<{priority}>{time} {name}: ");
                }
                format!("<{priority}>{time} {host} {name}: ")
            }
        }
    }
}

fn stream(is_ours: bool) -> &'static str {
    if is_ours { STREAM_OPM } else { STREAM_OUTPUT }
}

/// What stands between the stamp and the run or the bytes, `stream mark`.
fn text_head(full: bool, is_ours: bool) -> &'static [u8] {
    const { assert!(FULL.len() == 1 && PART.len() == 1) }
    match (full, is_ours) {
        (true, false) => b" stdout F",
        (false, false) => b" stdout P",
        (_, true) => b" opm F",
    }
}

/// The severity that a line begins with as `<3>`, sd-daemon(3), and the line without it.
fn severity(bytes: &[u8]) -> (u8, &[u8]) {
    match bytes {
        [b'<', digit @ b'0'..=b'7', b'>', rest @ ..] => (digit - b'0', rest),
        _ => (INFO, bytes),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::model::SyslogAddress;

    const RUN: RunId = RunId(255);

    fn put(to: Destination, format: LogFormat, words: Words<'_>) -> Vec<(String, usize)> {
        let instruction = Instruction { to, format, ..Instruction::in_dir(Path::new("/logs/web")) };
        let mut form = Form::new("web", &instruction);
        if let Kind::Syslog { host, zone, .. } = &mut form.kind {
            "box".clone_into(host);
            *zone = TimeZone::UTC;
        }
        let mut out = Vec::new();
        let mut pieces = Vec::new();
        let stamp = Stamp::at(1_795_602_720, 5_000);
        form.put(&mut out, &stamp, words, &mut |end, content| pieces.push((end, content)));
        let mut begin = 0;
        let text = |(end, content)| {
            let piece = String::from_utf8(out[begin..end].to_vec()).unwrap();
            begin = end;
            (piece, content)
        };
        pieces.into_iter().map(text).collect()
    }

    fn line(bytes: &[u8]) -> Words<'_> {
        Words { bytes, full: true, is_ours: false, told: 0, run: Some(RUN) }
    }

    fn syslog(address: &str) -> Destination {
        Destination::Syslog(Syslog::at(address.parse::<SyslogAddress>().unwrap()))
    }

    #[test]
    fn each_form_is_as_documented() {
        let said = Words { is_ours: true, told: 7, run: None, ..line(b"[opm: gap]") };
        for (to, format, words, expected) in [
            (
                Destination::File,
                LogFormat::Text,
                line(b"a b"),
                "2026-11-25T10:32:00.000005Z stdout F:00000000000000ff a b\n",
            ),
            (
                Destination::File,
                LogFormat::Text,
                said,
                "2026-11-25T10:32:00.000005Z opm F [opm: gap]\n",
            ),
            (
                Destination::File,
                LogFormat::Json,
                Words { full: false, ..line(b"a\"\xff") },
                "{\"time\":\"2026-11-25T10:32:00.000005Z\",\"instance\":\"web\",\
                 \"run\":\"00000000000000ff\",\"stream\":\"stdout\",\"partial\":true,\
                 \"line\":[97,34,255]}\n",
            ),
            (Destination::File, LogFormat::Raw, line(b"a b"), "a b\n"),
            (Destination::File, LogFormat::Raw, Words { full: false, ..line(b"a b") }, "a b"),
            (
                syslog("udp://loghost"),
                LogFormat::Text,
                line(b"<3>a b"),
                "<27>1 2026-11-25T10:32:00.000005Z box web 00000000000000ff stdout - a b",
            ),
            (
                syslog("/dev/log"),
                LogFormat::Text,
                line(b"<9>a b"),
                "<30>Nov 25 10:32:00 web: <9>a b",
            ),
            (syslog("/dev/log"), LogFormat::Text, said, "<28>Nov 25 10:32:00 web: [opm: gap]"),
        ] {
            let content = match (words.is_ours, words.full) {
                (true, _) => 7,
                (false, full) => words.bytes.len() + usize::from(full),
            };
            assert_eq!(put(to, format, words), [(expected.to_owned(), content)]);
        }
    }

    #[test]
    fn a_long_line_is_several_messages_and_an_empty_one_is_one() {
        let long = vec![b'x'; 2 * MESSAGE_BYTES_MAX + 5];
        let pieces = put(syslog("tcp://loghost"), LogFormat::Text, line(&long));
        let lengths: Vec<usize> =
            pieces.iter().map(|(text, _)| text.matches('x').count()).collect();
        // One is in `box`.
        assert_eq!(lengths, [MESSAGE_BYTES_MAX + 1, MESSAGE_BYTES_MAX + 1, 6]);
        assert_eq!(pieces.iter().map(|(_, content)| content).sum::<usize>(), long.len() + 1);
        let empty = put(syslog("/dev/log"), LogFormat::Text, line(b""));
        assert_eq!(empty, [("<30>Nov 25 10:32:00 web: ".to_owned(), 1)]);
    }
}
