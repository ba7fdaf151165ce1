//! What units print: bytes in chunks to lines, and log files to records.

use std::cell::RefCell;
use std::fs;
use std::path::Path;

use opm::keeper::split::{PART_BYTES_MAX, Splitter};
use opm::logs::{self, Query, Record, record};

/// A line or a part of one: its bytes, and whether the line ends with it.
type Part = (Vec<u8>, bool);

/// Sizes of chunks: a pipe gives any.
const SIZES: [usize; 12] = [
    1,
    2,
    3,
    7,
    100,
    1024,
    PART_BYTES_MAX - 1,
    PART_BYTES_MAX,
    PART_BYTES_MAX + 1,
    64 * 1024,
    2 * PART_BYTES_MAX,
    0,
];

/// The first byte says how many of the next ones are sizes of chunks, which take turns, and from
/// [`GROWS`] on that some bytes of the rest are to grow; the rest is the stream. The same lines come
/// out however it is cut, and none of it is lost or doubled, also where an unfinished line was given
/// out of turn.
pub fn split(bytes: &[u8]) {
    let Some((count, rest)) = bytes.split_first() else { return };
    let (sizes, stream) = rest.split_at(usize::from(count % 8).min(rest.len()));
    let stream = expanded(stream, *count, PART_BYTES_MAX, 4);
    let expected = model(&stream);
    assert_eq!(parts_of(&[&stream], |_| false), expected);
    let chunks = cut(&stream, sizes);
    assert_eq!(parts_of(&chunks, |_| false), expected, "in chunks {sizes:?}");
    let flushed = parts_of(&chunks, |n| sizes.is_empty() || sizes[n % sizes.len()] >= 0x80);
    let mut joined = Vec::new();
    for (bytes, is_full) in &flushed {
        assert!(bytes.len() <= PART_BYTES_MAX && !bytes.contains(&b'\n'));
        joined.extend_from_slice(bytes);
        joined.extend(is_full.then_some(b'\n'));
    }
    assert!(joined == stream, "something was lost or changed");
}

/// The stream in chunks of these sizes.
fn cut<'a>(stream: &'a [u8], sizes: &[u8]) -> Vec<&'a [u8]> {
    let mut chunks = Vec::new();
    let mut rest = stream;
    for n in 0.. {
        let size = sizes.get(n % sizes.len().max(1)).copied().unwrap_or(9);
        let size = SIZES[usize::from(size & 0x7f) % SIZES.len()].min(rest.len());
        // A size of nothing alone would never end.
        let size = if size == 0 && n % 2 == 1 { rest.len().min(1) } else { size };
        let (chunk, after) = rest.split_at(size);
        chunks.push(chunk);
        rest = after;
        if rest.is_empty() {
            break;
        }
    }
    chunks
}

/// What the splitter gives; `flushes` says after which chunks it is told not to wait.
fn parts_of(chunks: &[&[u8]], flushes: impl Fn(usize) -> bool) -> Vec<Part> {
    let mut splitter = Splitter::default();
    let mut parts: Vec<Part> = Vec::new();
    for (n, chunk) in chunks.iter().enumerate() {
        splitter.feed(chunk, |part| parts.push((part.bytes.to_vec(), part.full)));
        if flushes(n) {
            splitter.flush(|part| parts.push((part.bytes.to_vec(), part.full)));
            assert!(!splitter.is_holding());
        }
    }
    splitter.flush(|part| parts.push((part.bytes.to_vec(), part.full)));
    assert!(!splitter.is_holding());
    parts
}

/// Lines, those that are too long in pieces of the greatest length and a last one.
fn model(stream: &[u8]) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut lines = stream.split(|byte| *byte == b'\n').peekable();
    while let Some(line) = lines.next() {
        let is_ended = lines.peek().is_some();
        if line.is_empty() && is_ended {
            parts.push((Vec::new(), true));
        }
        let mut pieces = line.chunks(PART_BYTES_MAX).peekable();
        while let Some(piece) = pieces.next() {
            parts.push((piece.to_vec(), is_ended && pieces.peek().is_none()));
        }
    }
    parts
}

/// A first byte from here on has some bytes grow. Most inputs do without: they are faster.
const GROWS: u8 = 0xc0;

/// The bytes, where `first` says so with a few that stand for long runs: of nearly, exactly and just
/// over `limit` bytes, of a thousand bytes, and of many newlines. Not more than `most` long ones.
fn expanded(bytes: &[u8], first: u8, limit: usize, most: usize) -> Vec<u8> {
    if first < GROWS {
        return bytes.to_vec();
    }
    let mut long = 0;
    let mut stream = Vec::new();
    for byte in bytes {
        let (count, byte) = match byte {
            0xfd => (limit - 1, b'x'),
            0xfe => (limit, b'y'),
            0xff => (limit + 1, b'z'),
            0xfc => (1000, b'w'),
            0xfb => (200, b'\n'),
            byte => (1, *byte),
        };
        long += usize::from(count >= limit - 1);
        let count = if long > most { 1 } else { count };
        stream.resize(stream.len() + count, byte);
    }
    stream
}

/// Parts one file of a log from the next.
const NEXT_FILE: u8 = 0x1c;
/// Parts the log of one instance from that of the other.
const NEXT_LOG: u8 = 0x1d;
/// Most files of one log: the last is `current`, the others are finished.
const FILES_MAX: usize = 4;
/// Length of a line about which the reader may do as it likes, in bytes; the keeper's are shorter.
const LINE_BYTES_MAX: usize = 1024 * 1024;

thread_local! {
    /// Where the logs are written; the same place again and again.
    static PLACE: RefCell<tempfile::TempDir> = RefCell::new(tempfile::tempdir().unwrap());
}

/// The first byte is how many records are asked for, and from [`GROWS`] on that some bytes are to
/// grow; the rest is what is in the files of one or two logs. All lines come out, once and in order;
/// the last ones are the last of all.
pub fn reader(bytes: &[u8]) {
    let Some((count, rest)) = bytes.split_first() else { return };
    PLACE.with_borrow(|place| read_back(place.path(), *count, rest));
}

fn read_back(dir: &Path, first: u8, bytes: &[u8]) {
    let count = usize::from(first % 32);
    let names = ["a", "b@1"];
    let mut logs: Vec<Log> = Vec::new();
    for (n, name) in names.iter().enumerate() {
        let of_log = bytes.splitn(2, |byte| *byte == NEXT_LOG).nth(n);
        logs.push(of_log.map_or(Log::default(), |bytes| write_log(&dir.join(name), first, bytes)));
        if of_log.is_none() {
            drop(fs::remove_dir_all(dir.join(name)));
        }
    }
    let all = records(dir, &[], None);
    let mut is_any_long = false;
    for (name, Log { lines, unfinished }) in names.iter().zip(&logs) {
        let own: Vec<&Record> = all.iter().filter(|record| record.instance == *name).collect();
        let is_long = |line: &[u8]| line.len() >= LINE_BYTES_MAX;
        let may_be_long = is_long(lines) || is_long(unfinished);
        let mut all_lines = lines.split(|byte| *byte == b'\n');
        let has_long = may_be_long && (all_lines.any(is_long) || is_long(unfinished));
        let joined: Vec<u8> = own.iter().map(|record| raw(record)).collect::<Vec<_>>().concat();
        is_any_long |= has_long;
        if has_long {
            // It comes in pieces, also while it is unfinished: no byte of it is missing.
            let no_newlines =
                |bytes: &[u8]| bytes.split(|byte| *byte == b'\n').collect::<Vec<_>>().concat();
            let (joined, lines) = (no_newlines(&joined), no_newlines(lines));
            let all = [&lines[..], unfinished].concat();
            assert!(joined.starts_with(&lines) && all.starts_with(&joined), "bytes of {name}");
        } else {
            assert!(joined == *lines, "the log of {name} is not what was written");
        }
        if !has_long {
            let last = records(dir, &[name], Some(count));
            let from = own.len().saturating_sub(count);
            assert_eq!(
                last.iter().map(raw).collect::<Vec<_>>(),
                own[from..].iter().map(|r| raw(r)).collect::<Vec<_>>(),
                "the last {count} of {name}"
            );
            assert_eq!(logs::last_lines(dir, name, count).len(), last.len());
        }
    }
    if !is_any_long {
        assert_eq!(records(dir, &[], Some(count)).len(), count.min(all.len()));
    }
}

/// What a reader finds in a log.
#[derive(Default)]
struct Log {
    /// All full lines, and what stands behind the last one of a finished file, as a line.
    lines: Vec<u8>,
    /// What stands behind the last line of `current`.
    unfinished: Vec<u8>,
}

/// Writes the files of one log.
fn write_log(dir: &Path, first: u8, bytes: &[u8]) -> Log {
    fs::create_dir_all(dir).unwrap();
    let files: Vec<&[u8]> = bytes.splitn(FILES_MAX, |byte| *byte == NEXT_FILE).collect();
    let mut lines = Vec::new();
    for number in 1..FILES_MAX {
        let path = dir.join(format!("{number:08}.log"));
        if number < files.len() {
            let text = expanded(files[number - 1], first, 16 * 1024, 3);
            fs::write(path, &text).unwrap();
            let is_open = text.last().is_some_and(|last| *last != b'\n');
            lines.extend(text);
            lines.extend(is_open.then_some(b'\n'));
        } else {
            drop(fs::remove_file(path));
        }
    }
    let mut text = expanded(files[files.len() - 1], first, 64 * 1024, 17);
    fs::write(dir.join("current"), &text).unwrap();
    let full = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let unfinished = text.split_off(full);
    lines.extend(text);
    Log { lines, unfinished }
}

fn records(dir: &Path, instances: &[&str], lines: Option<usize>) -> Vec<Record> {
    let query = Query { lines, ..Query::of(dir, instances) };
    let mut records = Vec::new();
    let mut each = |record| {
        records.push(record);
        Ok(())
    };
    logs::read(&query, None, &mut each).expect("files can be read");
    records
}

/// The line that a record was read from, newline included.
pub(super) fn raw(record: &Record) -> Vec<u8> {
    let mut line = Vec::new();
    if !record.stream.is_empty() {
        let mark = if record.partial { record::PART } else { record::FULL };
        line.extend(format!("{} {} {mark} ", record.time, record.stream).bytes());
    }
    line.extend_from_slice(&record.bytes);
    line.push(b'\n');
    line
}
