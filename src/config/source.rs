//! One unit file as text: from a byte offset to line and column, and the file's mistakes.
//!
//! Reads no file: whoever calls brings the bytes.

use super::diagnostic::{Diagnostic, Place, Spot};
use crate::model::FilePath;

/// Largest unit file, in bytes. Units are some hundred bytes; a larger file is no unit file, and
/// reading it would hold up the supervisor. It is refused unread.
pub const FILE_BYTES_MAX: usize = 1024 * 1024;

/// Most mistakes told of one file. More come from a file that is something else; the rest is
/// counted.
pub const MISTAKES_MAX: usize = 1_000;

/// A file as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// Where it was found; absolute.
    pub path: FilePath,
    /// Its bytes; they need not be UTF-8.
    pub text: Vec<u8>,
}

/// A piece of a text, in bytes from its beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct At {
    /// Where it begins.
    pub start: usize,
    /// Where the first byte after it is.
    pub end: usize,
}

impl At {
    /// The beginning of the text.
    pub(super) const START: Self = Self { start: 0, end: 0 };

    /// From this byte, for so many bytes.
    pub(super) fn new(start: usize, length: usize) -> Self {
        Self { start, end: start.saturating_add(length) }
    }
}

/// The text of a file, with the places of its lines.
#[derive(Debug)]
pub(super) struct Source<'a> {
    /// The file's name.
    pub path: &'a FilePath,
    /// Its text, without a byte order mark; up to the first byte that is not UTF-8.
    pub text: &'a str,
    /// The first byte that is not UTF-8.
    pub bad_byte: Option<u8>,
    lines: Vec<usize>,
    /// How many characters begin before each block of [`BLOCK_BYTES`]: a file may be one line, and
    /// counting each column from its beginning would take the square of its length.
    blocks: Vec<usize>,
}

/// Length of the blocks in which characters are counted beforehand.
const BLOCK_BYTES: usize = 1024;

impl<'a> Source<'a> {
    /// Takes the text of a file, as far as it is text.
    pub(super) fn new(file: &'a SourceFile) -> Self {
        let bytes = file.text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&file.text);
        let (text, bad_byte) = match std::str::from_utf8(bytes) {
            Ok(text) => (text, None),
            Err(error) => {
                let (good, bad) = bytes.split_at(error.valid_up_to());
                (std::str::from_utf8(good).unwrap_or_default(), bad.first().copied())
            }
        };
        let breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        let lines = std::iter::once(0).chain(breaks.map(|(at, _)| at + 1)).collect();
        let mut chars = 0usize;
        let blocks = text.as_bytes().chunks(BLOCK_BYTES).map(|block| {
            let before = chars;
            chars = chars.saturating_add(characters(block));
            before
        });
        Self { path: &file.path, text, bad_byte, lines, blocks: blocks.collect() }
    }

    /// The index of the line that holds this byte.
    fn line_index(&self, offset: usize) -> usize {
        self.lines.partition_point(|start| *start <= offset).saturating_sub(1)
    }

    /// The text of a line, counted from 1, without its end.
    pub(super) fn line(&self, number: u32) -> Option<&'a str> {
        let index = usize::try_from(number).ok()?.checked_sub(1)?;
        let start = *self.lines.get(index)?;
        let rest = self.text.get(start..)?;
        let line = rest.split('\n').next().unwrap_or(rest);
        Some(line.strip_suffix('\r').unwrap_or(line))
    }

    /// How many characters begin before this byte.
    fn chars_before(&self, offset: usize) -> usize {
        let block = offset / BLOCK_BYTES;
        let rest = self.text.as_bytes().get(block.saturating_mul(BLOCK_BYTES)..offset);
        let counted = self.blocks.get(block).copied().unwrap_or(0);
        counted.saturating_add(rest.map_or(0, characters))
    }

    /// The place of a piece of text, and how many characters of it are on its first line.
    pub(super) fn spot(&self, at: At) -> Spot {
        let index = self.line_index(at.start);
        let line_start = self.lines.get(index).copied().unwrap_or(0);
        let before = self.chars_before(at.start).saturating_sub(self.chars_before(line_start));
        let inside = self.text.get(at.start..at.end).unwrap_or_default();
        let first_line = inside.split(['\n', '\r']).next().unwrap_or_default().trim_end();
        Spot {
            place: Place {
                file: self.path.clone(),
                line: count(index + 1),
                column: count(before.saturating_add(1)),
            },
            length: count(first_line.chars().count()),
        }
    }
}

/// How many characters begin in these bytes of UTF-8.
fn characters(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte & 0xc0 != 0x80).count()
}

/// A count that fits the wire; a file of at most [`FILE_BYTES_MAX`] never reaches the end.
fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Collects the mistakes of one file.
#[derive(Debug)]
pub(super) struct Sink<'a> {
    /// The file.
    pub source: &'a Source<'a>,
    found: Vec<Diagnostic>,
    spare: Diagnostic,
    passed_over: usize,
    errors: usize,
}

impl<'a> Sink<'a> {
    /// Nothing found yet.
    pub(super) fn new(source: &'a Source<'a>) -> Self {
        let spare = Diagnostic::error(source.spot(At::START), "");
        Self { source, found: Vec::new(), spare, passed_over: 0, errors: 0 }
    }

    /// Whether the file has had all the mistakes that are told.
    pub(super) fn is_full(&self) -> bool {
        self.passed_over > 0
    }

    /// How many errors there are so far; whoever sees it grow knows that something was wrong.
    pub(super) fn errors(&self) -> usize {
        self.errors
    }

    /// Notes a mistake; what comes back can be given a label and help.
    pub(super) fn error(&mut self, at: At, message: impl AsRef<str>) -> &mut Diagnostic {
        self.errors = self.errors.saturating_add(1);
        self.note(Diagnostic::error, at, message.as_ref())
    }

    /// Notes what is legal and yet hardly meant.
    pub(super) fn warning(&mut self, at: At, message: impl AsRef<str>) -> &mut Diagnostic {
        self.note(Diagnostic::warning, at, message.as_ref())
    }

    /// Adds help to what was noted last.
    pub(super) fn help_last(&mut self, text: &str) {
        if let Some(found) = self.found.last_mut() {
            found.help(text);
        }
    }

    fn note(
        &mut self,
        make: fn(Spot, &str) -> Diagnostic,
        at: At,
        message: &str,
    ) -> &mut Diagnostic {
        if self.found.len() >= MISTAKES_MAX {
            self.passed_over = self.passed_over.saturating_add(1);
            return &mut self.spare;
        }
        self.found.push(make(self.source.spot(at), message));
        self.found.last_mut().unwrap_or(&mut self.spare)
    }

    /// All that was found.
    pub(super) fn finish(mut self) -> Vec<Diagnostic> {
        if self.passed_over > 0 {
            let at = At::new(self.source.text.len(), 0);
            let message =
                format!("more than {MISTAKES_MAX} mistakes in this file; is it a unit file?");
            self.found.push(Diagnostic::error(self.source.spot(at), &message));
        }
        self.found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &[u8]) -> SourceFile {
        SourceFile { path: FilePath::from("/u/a.yaml"), text: text.to_vec() }
    }

    #[test]
    fn columns_count_characters_and_begin_at_one() {
        let file = file("a: é\r\nwörk: x\n".as_bytes());
        let source = Source::new(&file);
        for (needle, line, column, length) in [("é", 1, 4, 1), ("wörk", 2, 1, 4), ("x", 2, 7, 1)]
        {
            let spot = source.spot(At::new(source.text.find(needle).unwrap(), needle.len()));
            assert_eq!((spot.place.line, spot.place.column, spot.length), (line, column, length));
        }
        assert_eq!(source.line(1), Some("a: é"));
        assert_eq!(source.line(3), Some(""));
        assert_eq!(source.line(4), None);
    }

    #[test]
    fn columns_are_right_far_into_a_line() {
        let file = file(format!("first\n{}x", "é".repeat(5_000)).as_bytes());
        let source = Source::new(&file);
        let spot = source.spot(At::new(source.text.len() - 1, 1));
        assert_eq!((spot.place.line, spot.place.column), (2, 5_001));
    }

    #[test]
    fn a_byte_order_mark_is_no_text_and_a_bad_byte_ends_it() {
        assert_eq!(Source::new(&file(b"\xef\xbb\xbfa: b")).text, "a: b");
        let latin = file(b"a: \xe9b");
        let source = Source::new(&latin);
        assert_eq!((source.text, source.bad_byte), ("a: ", Some(0xe9)));
    }

    #[test]
    fn the_mistakes_of_one_file_are_bounded() {
        let file = file(b"a");
        let source = Source::new(&file);
        let mut sink = Sink::new(&source);
        for n in 0..2 * MISTAKES_MAX {
            sink.error(At::START, format!("{n}"));
        }
        assert_eq!(sink.finish().len(), MISTAKES_MAX + 1);
    }
}
