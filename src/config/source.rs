//! Unit files as texts: from a byte offset to file, line and column, and the mistakes in them.
//!
//! The texts of a load stand one behind the other, and a place ([`At`]) counts from the beginning of
//! the first: so a value knows its file wherever it is carried. Reads no file: whoever calls brings
//! the bytes.

use std::collections::BTreeSet;

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

/// A piece of a text, in bytes from the beginning of the first text of the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct At {
    /// Where it begins.
    pub start: usize,
    /// Where the first byte after it is.
    pub end: usize,
}

impl At {
    /// From this byte, for so many bytes.
    pub(super) fn new(start: usize, length: usize) -> Self {
        Self { start, end: start.saturating_add(length) }
    }

    /// Whether another piece lies in it.
    pub(super) fn holds(self, other: Self) -> bool {
        self.start <= other.start && other.end <= self.end
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
    /// Where it begins among all texts.
    pub start: usize,
    lines: Vec<usize>,
    /// How many characters begin before each block of [`BLOCK_BYTES`]: a file may be one line, and
    /// counting each column from its beginning would take the square of its length.
    blocks: Vec<usize>,
}

/// Length of the blocks in which characters are counted beforehand.
const BLOCK_BYTES: usize = 1024;

impl<'a> Source<'a> {
    /// Takes the text of a file, as far as it is text. Other texts of `start` bytes are before it.
    pub(super) fn new(file: &'a SourceFile, start: usize) -> Self {
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
        Self { path: &file.path, text, bad_byte, start, lines, blocks: blocks.collect() }
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

    /// What was written there.
    fn written(&self, at: At) -> &'a str {
        let at = self.own(at);
        self.text.get(at.start..at.end).unwrap_or_default()
    }

    /// A piece of this text, counted from its own beginning.
    fn own(&self, at: At) -> At {
        let from = |offset: usize| offset.saturating_sub(self.start);
        At { start: from(at.start), end: from(at.end) }
    }

    /// The place of a piece of text, and how many characters of it are on its first line.
    pub(super) fn spot(&self, at: At) -> Spot {
        let at = self.own(at);
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

/// A text, and how many of its mistakes were told and not told.
#[derive(Debug)]
struct Text<'a> {
    source: Source<'a>,
    noted: usize,
    passed_over: usize,
}

/// A unit that has keys of another one, while it is read.
#[derive(Debug)]
struct Heir {
    /// The texts that are its own.
    own: Vec<At>,
    /// Where it takes the other unit's keys.
    spot: Spot,
    /// What is said there.
    text: String,
}

/// All texts of a load, and the mistakes in them.
#[derive(Debug)]
pub(super) struct Sink<'a> {
    texts: Vec<Text<'a>>,
    /// A place where there is no text.
    nowhere: Spot,
    /// Which of them is being read.
    current: usize,
    found: Vec<Diagnostic>,
    /// Takes what is said beside a mistake that is not told.
    spare: Diagnostic,
    is_last_told: bool,
    errors: usize,
    heir: Option<Heir>,
    /// Where something is wrong: told once, and not again for each heir.
    told: BTreeSet<At>,
}

impl<'a> Sink<'a> {
    /// No text yet.
    pub(super) fn new() -> Self {
        let place = Place { file: FilePath::from(""), line: 1, column: 1 };
        let nowhere = Spot { place, length: 0 };
        Self {
            texts: Vec::new(),
            spare: Diagnostic::error(nowhere.clone(), ""),
            nowhere,
            current: 0,
            found: Vec::new(),
            is_last_told: false,
            errors: 0,
            heir: None,
            told: BTreeSet::new(),
        }
    }

    /// Takes one more file, which is now read.
    pub(super) fn open(&mut self, file: &'a SourceFile) {
        // One byte between two texts: the end of one is not the beginning of the next.
        let end = |text: &Text<'_>| text.source.start.saturating_add(text.source.text.len());
        let start = self.texts.last().map_or(0, |last| end(last).saturating_add(1));
        self.current = self.texts.len();
        let source = Source::new(file, start);
        self.texts.push(Text { source, noted: 0, passed_over: 0 });
    }

    /// The number of the file that is read, for [`Sink::turn_to`].
    pub(super) fn number(&self) -> usize {
        self.current
    }

    /// Goes on with a file that was opened before.
    pub(super) fn turn_to(&mut self, file: usize) {
        self.current = file;
    }

    /// The text that is being read, its beginning among all texts, and its first bad byte.
    pub(super) fn reading(&self) -> (&'a str, usize, Option<u8>) {
        let source = self.texts.get(self.current).map(|text| &text.source);
        source.map_or(("", 0, None), |source| (source.text, source.start, source.bad_byte))
    }

    /// The beginning of the text that is being read.
    pub(super) fn start(&self) -> At {
        At::new(self.reading().1, 0)
    }

    /// The number of the text that holds this piece.
    fn index(&self, at: At) -> usize {
        let is_in = |text: &Text<'_>| {
            let start = text.source.start;
            start <= at.start && at.start <= start.saturating_add(text.source.text.len())
        };
        if self.texts.get(self.current).is_some_and(is_in) {
            return self.current;
        }
        self.texts.partition_point(|text| text.source.start <= at.start).saturating_sub(1)
    }

    /// The file in which a piece stands.
    pub(super) fn file(&self, at: At) -> Option<&'a FilePath> {
        self.texts.get(self.index(at)).map(|text| text.source.path)
    }

    /// What was written there.
    pub(super) fn written(&self, at: At) -> &'a str {
        self.texts.get(self.index(at)).map_or("", |text| text.source.written(at))
    }

    /// The place of a piece of text.
    pub(super) fn spot(&self, at: At) -> Spot {
        let text = self.texts.get(self.index(at));
        text.map_or_else(|| self.nowhere.clone(), |text| text.source.spot(at))
    }

    /// Whether the file has had all the mistakes that are told.
    pub(super) fn is_full(&self) -> bool {
        self.texts.get(self.current).is_some_and(|text| text.passed_over > 0)
    }

    /// How many mistakes and warnings there are so far, as far as they are told. Of what is not told
    /// some was told before.
    pub(super) fn noted(&self) -> usize {
        self.found.len()
    }

    /// How many errors there are so far; whoever sees it grow knows that something was wrong.
    pub(super) fn errors(&self) -> usize {
        self.errors
    }

    /// From now on a unit is read of which only `own` is its own: what is wrong elsewhere is told
    /// once, whoever takes it over.
    pub(super) fn begin_heir(&mut self, own: Vec<At>, at: At, text: String) {
        let spot = self.spot(at);
        self.heir = Some(Heir { own, spot, text });
    }

    /// The unit is read.
    pub(super) fn end_heir(&mut self) {
        self.heir = None;
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
        if let Some(found) = self.found.last_mut().filter(|_| self.is_last_told) {
            found.help(text);
        }
    }

    fn note(
        &mut self,
        make: fn(Spot, &str) -> Diagnostic,
        at: At,
        message: &str,
    ) -> &mut Diagnostic {
        let heir = self.heir.as_ref().filter(|heir| !heir.own.iter().any(|own| own.holds(at)));
        let is_told = heir.is_some() && self.told.contains(&at);
        let index = self.index(at);
        let text = self.texts.get_mut(index).filter(|_| !is_told);
        let is_room = text.is_some_and(|text| {
            let is_room = text.noted < MISTAKES_MAX;
            let count = if is_room { &mut text.noted } else { &mut text.passed_over };
            *count = count.saturating_add(1);
            is_room
        });
        self.is_last_told = is_room;
        if !is_room {
            self.spare.help.clear();
            self.spare.related.clear();
            return &mut self.spare;
        }
        let mut found = make(self.spot(at), message);
        if let Some(heir) = heir {
            found.related(heir.spot.clone(), &heir.text);
        }
        self.told.insert(at);
        self.found.push(found);
        self.found.last_mut().unwrap_or(&mut self.spare)
    }

    /// All that was found.
    pub(super) fn finish(mut self) -> Vec<Diagnostic> {
        for text in self.texts.iter().filter(|text| text.passed_over > 0) {
            let end = text.source.start.saturating_add(text.source.text.len());
            let message =
                format!("more than {MISTAKES_MAX} mistakes in this file; is it a unit file?");
            self.found.push(Diagnostic::error(text.source.spot(At::new(end, 0)), &message));
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
        let source = Source::new(&file, 0);
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
        let source = Source::new(&file, 0);
        let spot = source.spot(At::new(source.text.len() - 1, 1));
        assert_eq!((spot.place.line, spot.place.column), (2, 5_001));
    }

    #[test]
    fn a_byte_order_mark_is_no_text_and_a_bad_byte_ends_it() {
        assert_eq!(Source::new(&file(b"\xef\xbb\xbfa: b"), 0).text, "a: b");
        let latin = file(b"a: \xe9b");
        let source = Source::new(&latin, 0);
        assert_eq!((source.text, source.bad_byte), ("a: ", Some(0xe9)));
    }

    #[test]
    fn a_place_is_of_the_file_in_which_it_stands() {
        let one = file(b"a: b\n");
        let two = SourceFile { path: FilePath::from("/u/b.yaml"), text: b"c: d".to_vec() };
        let mut sink = Sink::new();
        sink.open(&one);
        sink.open(&two);
        let (_, start, _) = sink.reading();
        for (offset, file, line, column) in
            [(0, "/u/a.yaml", 1, 1), (5, "/u/a.yaml", 2, 1), (start, "/u/b.yaml", 1, 1)]
        {
            let place = sink.spot(At::new(offset, 1)).place;
            let file = FilePath::from(file);
            assert_eq!(place, Place { file, line, column }, "{offset}");
        }
        assert_eq!((sink.written(At::new(start + 3, 1)), sink.written(At::new(3, 1))), ("d", "b"));
    }

    #[test]
    fn what_an_heir_takes_over_is_wrong_once() {
        let file = file(b"base\nheir");
        let mut sink = Sink::new();
        sink.open(&file);
        sink.error(At::new(0, 4), "wrong");
        sink.begin_heir(vec![At::new(5, 4)], At::new(5, 0), "taken over here".to_owned());
        sink.error(At::new(0, 4), "wrong in the heir").help("x");
        sink.error(At::new(1, 1), "wrong only there");
        sink.error(At::new(5, 4), "its own");
        assert_eq!(sink.errors(), 4);
        let found = sink.finish();
        let said: Vec<(&str, usize)> =
            found.iter().map(|d| (d.message.as_str(), d.related.len())).collect();
        assert_eq!(said, [("wrong", 0), ("wrong only there", 1), ("its own", 0)]);
    }

    #[test]
    fn the_mistakes_of_one_file_are_bounded() {
        let file = file(b"a");
        let mut sink = Sink::new();
        sink.open(&file);
        for n in 0..2 * MISTAKES_MAX {
            sink.error(sink.start(), format!("{n}"));
        }
        assert_eq!(sink.finish().len(), MISTAKES_MAX + 1);
    }
}
