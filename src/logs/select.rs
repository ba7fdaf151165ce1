//! Which records of a log are wanted.
//!
//! A record is judged alone, by what stands in it: its own stamp, its stream, its text.

use std::fmt;

use regex_lite::{Regex, RegexBuilder};

use super::record::{Record, STREAM_OPM};

/// What records have to be like. The default wants all.
#[derive(Debug, Clone, Default)]
pub struct Select {
    /// The first wanted stamp.
    pub since: Option<String>,
    /// The last wanted stamp.
    pub until: Option<String>,
    /// What stands in them.
    pub grep: Option<Pattern>,
    /// Whose they are.
    pub whose: Whose,
}

/// Whose words a record has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Whose {
    /// Anybody's.
    #[default]
    All,
    /// The unit's.
    Unit,
    /// opm's.
    Opm,
    /// opm's, about something that is missing.
    Gaps,
}

impl Select {
    /// Whether this record is wanted.
    pub(super) fn wants(&self, record: &Record) -> bool {
        self.since.as_ref().is_none_or(|since| record.time >= *since)
            && self.until.as_ref().is_none_or(|until| record.time <= *until)
            && self.whose.has(record)
            && self.grep.as_ref().is_none_or(|grep| grep.is_in(&record.bytes))
    }
}

impl Whose {
    fn has(self, record: &Record) -> bool {
        let is_opm = record.stream == STREAM_OPM;
        match self {
            Self::All => true,
            Self::Unit => !is_opm,
            Self::Opm => is_opm,
            Self::Gaps => is_opm && record.is_gap(),
        }
    }
}

/// What is looked for in the text of records.
#[derive(Debug, Clone)]
pub struct Pattern(Search);

#[derive(Debug, Clone)]
enum Search {
    /// A text without special characters, which is found many times faster.
    Text(String),
    Regex(Regex),
}

/// A regular expression that is none.
#[derive(Debug)]
pub struct BadPattern(regex_lite::Error);

impl fmt::Display for BadPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for BadPattern {}

impl Pattern {
    /// Reads a regular expression.
    pub fn parse(text: &str, ignore_case: bool) -> Result<Self, BadPattern> {
        if !ignore_case && regex_lite::escape(text) == text {
            return Ok(Self(Search::Text(text.to_owned())));
        }
        let regex = RegexBuilder::new(text).case_insensitive(ignore_case).build();
        regex.map(|regex| Self(Search::Regex(regex))).map_err(BadPattern)
    }

    /// Whether it matches somewhere in these bytes; what is no UTF-8 counts as U+FFFD.
    fn is_in(&self, bytes: &[u8]) -> bool {
        let text = String::from_utf8_lossy(bytes);
        match &self.0 {
            Search::Text(wanted) => text.contains(wanted.as_str()),
            Search::Regex(regex) => regex.is_match(&text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_a_regular_expression_over_any_bytes() {
        for (pattern, ignore_case, line, found) in [
            ("b", false, &b"abc"[..], true),
            ("B", false, b"abc", false),
            ("B", true, b"abc", true),
            ("a.c", false, b"abc", true),
            ("a.c", false, b"a\xffc", true),
            ("^b", false, b"abc", false),
            ("a-b", false, b"xa-by", true),
            ("", false, b"", true),
        ] {
            let pattern = Pattern::parse(pattern, ignore_case).unwrap();
            assert_eq!(pattern.is_in(line), found, "{pattern:?}");
        }
        assert!(Pattern::parse("(", false).is_err());
    }
}
