//! A mark in an instance's output that says where a run begins: written by the supervisor, taken out
//! by the log keeper. It goes the way of the lines, so that it stands where it belongs, whoever of the
//! two was killed meanwhile.
//!
//! A mark is a line of its own with NUL bytes around it. It also ends the line that it stands in: the
//! last words of a run are no begin of the next one's first line.

use crate::model::RunId;

/// Begins a mark.
const BEGIN: &[u8] = b"\0opm ";
/// Ends it; a newline follows.
const END: u8 = b'\0';
/// So many digits has a run's number.
const DIGITS: usize = 16;

/// What begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// The run.
    Run,
    /// Its main process, whose readiness is looked for in what it writes.
    Main,
}

impl Begin {
    fn letter(self) -> u8 {
        match self {
            Self::Run => b'r',
            Self::Main => b'm',
        }
    }
}

/// The mark with its newline. Shorter than `PIPE_BUF`: written whole or not at all, pipe(7).
pub fn text(begin: Begin, run: RunId) -> Vec<u8> {
    let run = run.to_string();
    [BEGIN, &[begin.letter(), b' '], run.as_bytes(), &[END, b'\n']].concat()
}

/// The mark that a line, without its newline, ends with: what is before it, what begins, and the run.
pub fn find(line: &[u8]) -> Option<(&[u8], Begin, &str)> {
    let rest = line.strip_suffix(&[END])?;
    let (rest, run) = rest.split_at_checked(rest.len().checked_sub(DIGITS)?)?;
    let (rest, begin) = match rest.strip_suffix(b"r ") {
        Some(rest) => (rest, Begin::Run),
        None => (rest.strip_suffix(b"m ")?, Begin::Main),
    };
    let before = rest.strip_suffix(BEGIN)?;
    Some((before, begin, std::str::from_utf8(run).ok()?))
}

/// How many of the last bytes may be the begin of a mark, or one whose newline has not come: whoever cuts
/// a line must not cut there.
pub fn begun(line: &[u8]) -> usize {
    let longest = BEGIN.len() + 2 + DIGITS + 1;
    let is_begin = |length: &usize| {
        let tail = line.len().checked_sub(*length).and_then(|from| line.get(from..));
        tail.is_some_and(|tail| tail.iter().enumerate().all(|(place, byte)| fits(place, *byte)))
    };
    (1..=longest).rev().find(is_begin).unwrap_or(0)
}

/// Whether a mark may have this byte there.
fn fits(place: usize, byte: u8) -> bool {
    match place.checked_sub(BEGIN.len()) {
        None => BEGIN.get(place) == Some(&byte),
        Some(0) => matches!(byte, b'r' | b'm'),
        Some(1) => byte == b' ',
        Some(place) if place < 2 + DIGITS => byte.is_ascii_hexdigit(),
        Some(_) => byte == END,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_found_behind_whatever_stands_before_it() {
        let run = RunId(0x0123_4567_89ab_cdef);
        for begin in [Begin::Run, Begin::Main] {
            for before in [&b""[..], b"half a line", b"\0", b"\0opm r "] {
                let mark = text(begin, run);
                let line = [before, mark.strip_suffix(b"\n").unwrap()].concat();
                assert_eq!(find(&line), Some((before, begin, "0123456789abcdef")));
            }
        }
        assert_eq!(text(Begin::Run, RunId(1)).len(), BEGIN.len() + DIGITS + 4);
        for line in [&b""[..], b"\0", b"\0opm r 0123456789abcdef", b"opm r 0123456789abcdef\0"] {
            assert_eq!(find(line), None);
        }
    }
}
