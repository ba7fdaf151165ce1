//! Where in a log a run begins and ends, by what the log itself says of it.
//!
//! The first record of a run names it, and others now and then: what comes between is of the same one.
//! So a run is found backwards from the end, and costs what was written since.

use std::io;
use std::path::Path;

use super::backward::{Backward, Start};
use super::find::Bounds;
use crate::model::RunId;

/// How far back the run of a record in the middle is looked for, in bytes: a keeper says it more often.
const SCAN_BYTES_MAX: usize = 512 * 1024;
/// Fewest digits of a run that are asked for: fewer are a number of runs.
const DIGITS_MIN: usize = 4;

/// Which run is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// The latest one that wrote something, or so many before it.
    Back(u64),
    /// The one whose number begins with these digits.
    Digits(String),
}

impl Which {
    /// Reads `0`, `-1`, or at least four digits of a run's number; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let is_hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if text == "0" {
            return Some(Self::Back(0));
        }
        if let Some(back) = text.strip_prefix('-') {
            return back.parse().ok().map(Self::Back);
        }
        let is_digits = text.len() >= DIGITS_MIN && is_hex(text);
        is_digits.then(|| Self::Digits(text.to_ascii_lowercase()))
    }

    fn is(&self, run: RunId, back: u64) -> bool {
        match self {
            Self::Back(wanted) => *wanted == back,
            Self::Digits(digits) => run.to_string().starts_with(digits),
        }
    }
}

/// The records of a run; empty bounds where the log has none of it.
pub(super) fn bounds(dir: &Path, which: &Which) -> io::Result<(Bounds, Option<RunId>)> {
    let mut back = Backward::new(dir, Bounds::default())?;
    let mut end: Option<Start> = None;
    // The youngest run whose begin was not seen yet, and the first record that is known of it.
    let mut last: Option<(RunId, Start)> = None;
    let mut count = 0;
    while let Some(record) = back.step("")? {
        let Some(run) = record.run else { continue };
        let Some(place) = back.place()? else { continue };
        match &mut last {
            Some((known, begin)) if *known == run => *begin = place,
            Some((known, begin)) => {
                if which.is(*known, count) {
                    break;
                }
                count += 1;
                end = Some(begin.try_clone()?);
                last = Some((run, place));
            }
            None => last = Some((run, place)),
        }
    }
    let Some((run, begin)) = last.filter(|(run, _)| which.is(*run, count)) else {
        return Ok((Bounds { is_empty: true, ..Bounds::default() }, None));
    };
    Ok((Bounds { first: Some(begin), end, is_empty: false }, Some(run)))
}

/// The run of the records before a place, where the log says so nearby.
pub(super) fn before(dir: &Path, place: &Start) -> io::Result<Option<RunId>> {
    let end = Some(place.try_clone()?);
    let mut back = Backward::new(dir, Bounds { end, ..Bounds::default() })?;
    let mut seen = 0;
    while seen < SCAN_BYTES_MAX
        && let Some(record) = back.step("")?
    {
        if record.run.is_some() {
            return Ok(record.run);
        }
        seen += record.bytes.len() + 1;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const TIME: &str = "2026-11-25T10:32:00.000000Z";

    fn log(dir: &Path) {
        let line = |run: Option<u64>, text: &str| match run {
            Some(run) => format!("{TIME} stdout F:{run:016x} {text}\n"),
            None => format!("{TIME} stdout F {text}\n"),
        };
        let files = [
            ("00000001.log", vec![(None, "old"), (Some(0xaaaa), "a1"), (None, "a2")]),
            ("00000002.log", vec![(Some(0xaaaa), "a3"), (Some(0xbbbb), "b1"), (None, "b2")]),
            ("current", vec![(Some(0xbbbb), "b3"), (None, "b4"), (Some(0xcccc), "c1")]),
        ];
        for (name, lines) in files {
            let text: Vec<String> = lines.into_iter().map(|(run, text)| line(run, text)).collect();
            fs::write(dir.join(name), text.concat()).unwrap();
        }
    }

    #[test]
    fn what_is_asked_for_is_a_number_of_runs_or_the_digits_of_one() {
        for (text, expected) in [
            ("0", Some(Which::Back(0))),
            ("-2", Some(Which::Back(2))),
            ("00AB", Some(Which::Digits("00ab".to_owned()))),
            ("1", None),
            ("abc", None),
            ("-", None),
            ("last", None),
        ] {
            assert_eq!(Which::parse(text), expected, "{text}");
        }
    }

    #[test]
    fn a_run_is_found_over_files_with_its_begin_and_its_end() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("web");
        fs::create_dir(&dir).unwrap();
        log(&dir);
        for (which, expected) in [
            ("0", "c1"),
            ("-1", "b1 b2 b3 b4"),
            ("-2", "a1 a2 a3"),
            ("-3", ""),
            ("000000000000bb", "b1 b2 b3 b4"),
            ("ffff", ""),
        ] {
            for lines in [None, Some(2)] {
                let query = super::super::Query {
                    run: Which::parse(which),
                    lines,
                    ..super::super::Query::of(root.path(), &["web"])
                };
                let mut found = Vec::new();
                let mut each = |record: super::super::Record| {
                    found.push(String::from_utf8(record.bytes).unwrap());
                    Ok(())
                };
                super::super::read(&query, None, &mut each).unwrap();
                let expected: Vec<&str> = expected.split(' ').filter(|t| !t.is_empty()).collect();
                let skip = lines.map_or(0, |lines| expected.len().saturating_sub(lines));
                assert_eq!(found, expected[skip..], "{which} {lines:?}");
            }
        }
    }

    #[test]
    fn a_reader_in_the_middle_knows_the_run_where_it_asks() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("web");
        fs::create_dir(&dir).unwrap();
        log(&dir);
        let query = super::super::Query {
            lines: Some(3),
            names_runs: true,
            ..super::super::Query::of(root.path(), &["web"])
        };
        let mut found = Vec::new();
        let mut each = |record: super::super::Record| {
            found.push((String::from_utf8(record.bytes).unwrap(), record.run.map(|run| run.0)));
            Ok(())
        };
        super::super::read(&query, None, &mut each).unwrap();
        let expected = [("b3", 0xbbbb), ("b4", 0xbbbb), ("c1", 0xcccc)];
        assert_eq!(found, expected.map(|(text, run)| (text.to_owned(), Some(run))));
    }
}
