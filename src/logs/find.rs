//! Where in a log a time begins and ends: a look at both ends of each file, then bisection in one.
//!
//! The records of a file stand in the order of time, but for [`SLACK`]: where the clock is set back by
//! more, the keeper begins a new file. So files are judged by both of their ends, each on its own. A place
//! that is found leaves out what need not be read; whether a record is wanted is decided by its own
//! stamp.

use std::io;
use std::path::Path;

use jiff::{SignedDuration, Timestamp};

use super::backward::Start;
use super::record::{WORD_BYTES_MAX, time_of};
use super::segment::{Files, Segment, stamp};
use super::select::Select;

/// How much is read at once, in bytes, and how near to the place bisection comes.
const BLOCK_BYTES: usize = 16 * 1024;
/// How far a stamp is looked for at the begin or the end of a file, in bytes: a keeper's longest
/// record is shorter. A file without a stamp there may hold any time.
const SCAN_BYTES_MAX: u64 = 128 * 1024;

/// By how much a clock goes back of which the keeper does not speak.
const SLACK: SignedDuration = SignedDuration::from_secs(1);

/// What of a log is worth reading.
#[derive(Debug, Default)]
pub(super) struct Bounds {
    /// Where to begin; `None`: with the oldest record.
    pub(super) first: Option<Start>,
    /// Where to end; `None`: nowhere.
    pub(super) end: Option<Start>,
    /// Nothing.
    pub(super) is_empty: bool,
}

impl Bounds {
    /// Looks for the times of a selection.
    pub(super) fn of(dir: &Path, select: &Select) -> io::Result<Self> {
        let first = match &select.since {
            Some(since) => first_since(dir, &shifted(since, -SLACK))?,
            None => None,
        };
        let Some(until) = &select.until else { return Ok(Self { first, ..Self::default() }) };
        let end = end_until(dir, &shifted(until, SLACK))?;
        let is_empty = end.is_none();
        Ok(Self { first, end, is_empty })
    }

    /// The end once more, for somebody who reads on his own.
    pub(super) fn end_of_cursor(&self) -> io::Result<Option<Start>> {
        self.end.as_ref().map(Start::try_clone).transpose()
    }
}

/// A stamp earlier or later.
fn shifted(time: &str, by: SignedDuration) -> String {
    let shifted = time.parse::<Timestamp>().ok().and_then(|time| time.checked_add(by).ok());
    shifted.map_or_else(|| time.to_owned(), stamp)
}

/// A place at or before the first record since a time; `None` where there is no file.
fn first_since(dir: &Path, since: &str) -> io::Result<Option<Start>> {
    let files = Files::of(dir)?;
    let mut found = None;
    let mut after = 0;
    for number in files.older {
        let Some(mut segment) = Segment::open_sound(dir, Some(number))? else { continue };
        let (first, last) = ends(&mut segment)?;
        if first.as_deref().is_none_or(|first| first >= since) {
            return Ok(Some(Start { segment, offset: 0, after }));
        }
        if last.is_none_or(|last| *last >= *since) {
            let (offset, _) = bisect(&mut segment, &|time| time < since)?;
            return Ok(Some(Start { segment, offset, after }));
        }
        // In case that nothing comes behind it.
        let offset = segment.length()?;
        found = Some(Start { segment, offset, after });
        after = number;
    }
    let Some(mut segment) = files.current else { return Ok(found) };
    let (first, _) = ends(&mut segment)?;
    let is_behind = first.is_none_or(|first| *first >= *since);
    let offset = if is_behind { 0 } else { bisect(&mut segment, &|time| time < since)?.0 };
    Ok(Some(Start { segment, offset, after }))
}

/// A place at or behind the last record until a time; `None`: all are younger.
fn end_until(dir: &Path, until: &str) -> io::Result<Option<Start>> {
    let files = Files::of(dir)?;
    let last = files.older.last().copied().unwrap_or(0);
    if let Some(current) = files.current
        && let Some(end) = end_in(current, until, last)?
    {
        return Ok(Some(end));
    }
    let mut older = files.older;
    while let Some(number) = older.pop() {
        let after = older.last().copied().unwrap_or(0);
        if let Some(segment) = Segment::open_sound(dir, Some(number))?
            && let Some(end) = end_in(segment, until, after)?
        {
            return Ok(Some(end));
        }
    }
    Ok(None)
}

fn end_in(mut segment: Segment, until: &str, after: u64) -> io::Result<Option<Start>> {
    let (first, last) = ends(&mut segment)?;
    let offset = if last.is_none_or(|last| *last <= *until) {
        segment.length()?
    } else if first.is_none_or(|first| *first <= *until) {
        bisect(&mut segment, &|time| time <= until)?.1
    } else {
        return Ok(None);
    };
    Ok(Some(Start { segment, offset, after }))
}

/// The first and the last stamp of a file.
pub(super) fn ends(segment: &mut Segment) -> io::Result<(Option<String>, Option<String>)> {
    if let Some(ends) = segment.known_ends() {
        return Ok(ends);
    }
    let length = segment.length()?;
    let first = stamped_from(segment, 0, length.min(SCAN_BYTES_MAX))?.map(|(_, time)| time);
    let from = length.saturating_sub(SCAN_BYTES_MAX);
    let mut tail = vec![0; usize::try_from(length - from).unwrap_or(0)];
    segment.read_exact_at(&mut tail, from)?;
    let mut lines = tail.split(|byte| *byte == b'\n').rev();
    let last = lines.find_map(time_of).map(str::to_owned);
    // In a large tail the first line is cut off; where it is the only one, it has no stamp.
    Ok((first, last))
}

/// How old the lines are that stand before the first stamp of a file: as old as that, or where there is
/// none as the last write.
pub(super) fn time_of_unstamped(segment: &mut Segment) -> io::Result<String> {
    let (first, _) = ends(segment)?;
    first.map_or_else(|| segment.written(), Ok)
}

/// Two places between which the first record lies that is not `before`: the begins of a record
/// that is, and of one that is not, or the ends of the file.
fn bisect(segment: &mut Segment, before: &dyn Fn(&str) -> bool) -> io::Result<(u64, u64)> {
    let end = segment.length()?;
    let (mut low, mut high, mut found) = (0, end, end);
    while high - low > BLOCK_BYTES as u64 {
        let middle = low + (high - low) / 2;
        match stamped_from(segment, middle, high)? {
            Some((offset, time)) if before(&time) => low = offset,
            Some((offset, _)) => (high, found) = (middle, offset),
            None => high = middle,
        }
    }
    Ok((low, found))
}

/// The first line with a stamp that begins at a place or behind it, and before the limit.
fn stamped_from(segment: &mut Segment, from: u64, limit: u64) -> io::Result<Option<(u64, String)>> {
    // One byte earlier: whether a line begins at the place itself is seen by what is before it.
    let mut offset = from.saturating_sub(1);
    let mut in_line = from > 0;
    let mut block = vec![0; BLOCK_BYTES];
    while offset < limit {
        let count = segment.read_at(&mut block, offset)?;
        let read = block.get(..count).unwrap_or_default();
        if read.is_empty() {
            return Ok(None);
        }
        let mut rest = read;
        loop {
            if in_line {
                let Some(end) = rest.iter().position(|byte| *byte == b'\n') else { break };
                rest = rest.get(end + 1..).unwrap_or_default();
            }
            let place = offset + (count - rest.len()) as u64;
            if place >= limit {
                return Ok(None);
            }
            if rest.len() < WORD_BYTES_MAX && rest.len() < count {
                // A stamp may go on in the next block.
                in_line = false;
                break;
            }
            if let Some(time) = time_of(rest) {
                return Ok(Some((place, time.to_owned())));
            }
            in_line = true;
        }
        offset += if in_line { count } else { count - rest.len() } as u64;
    }
    Ok(None)
}
