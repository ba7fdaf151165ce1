//! Bytes in any chunking -> lines. Pure: no descriptor, no clock.
//!
//! A line longer than [`PART_BYTES_MAX`] comes out in parts of that length and a last one; a part is
//! shorter where it would end in a mark of the supervisor, which comes out in one part. Nothing
//! is changed, added or left out: the parts, with a newline after each that is full, are the input.
//! Memory: at most one part is held, and none while no line is unfinished.

use std::io::BufRead;
use std::mem;

use crate::system::run_mark;

/// Longest part of a line, in bytes. A longer line is stored as several records marked `P`.
pub const PART_BYTES_MAX: usize = 48 * 1024;

/// A line, or a part of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part<'a> {
    /// The bytes, without the newline.
    pub bytes: &'a [u8],
    /// Whether a newline followed: the line is complete with this part.
    pub full: bool,
}

/// Cuts one stream into lines.
#[derive(Debug, Default)]
pub struct Splitter {
    /// The begin of a line whose end has not come yet.
    held: Vec<u8>,
}

impl Splitter {
    /// Takes the next bytes of the stream and gives every line that is complete with them.
    pub fn feed(&mut self, chunk: &[u8], mut give: impl FnMut(Part<'_>)) {
        let mut rest = chunk;
        while !rest.is_empty() {
            let (line, ended, after) = cut(rest);
            rest = after;
            self.piece(line, ended, &mut give);
        }
    }

    /// Gives the unfinished line, if there is one, as a part.
    pub fn flush(&mut self, mut give: impl FnMut(Part<'_>)) {
        let held = mem::take(&mut self.held);
        if !held.is_empty() {
            give(Part { bytes: &held, full: false });
        }
    }

    /// Whether the begin of a line waits for its end.
    pub fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }

    /// Takes bytes without a newline, behind which the line ended or not.
    fn piece(&mut self, bytes: &[u8], ended: bool, give: &mut impl FnMut(Part<'_>)) {
        let mut rest = bytes;
        while !self.held.is_empty() {
            let room = PART_BYTES_MAX.saturating_sub(self.held.len()).min(rest.len());
            let (fitting, after) = rest.split_at_checked(room).unwrap_or((rest, &[]));
            self.hold(fitting);
            rest = after;
            if rest.is_empty() && !ended {
                return;
            }
            let mut held = mem::take(&mut self.held);
            if rest.is_empty() {
                give(Part { bytes: &held, full: true });
                return;
            }
            let begun = held.split_off(held.len() - run_mark::begun(&held));
            give(Part { bytes: &held, full: false });
            self.hold(&begun);
        }
        while let Some((part, after)) = rest.split_at_checked(PART_BYTES_MAX)
            && !after.is_empty()
        {
            let length = part.len() - run_mark::begun(part);
            let (part, after) = rest.split_at_checked(length).unwrap_or((part, after));
            give(Part { bytes: part, full: false });
            rest = after;
        }
        if ended {
            give(Part { bytes: rest, full: true });
        } else {
            self.hold(rest);
        }
    }

    /// Keeps bytes; the room for them doubles as it grows and ends at one part.
    fn hold(&mut self, bytes: &[u8]) {
        let length = self.held.len();
        if self.held.capacity() < length + bytes.len() {
            let wanted = (2 * length).max(length + bytes.len()).min(PART_BYTES_MAX);
            self.held.reserve_exact(wanted.saturating_sub(length));
        }
        self.held.extend_from_slice(bytes);
    }
}

/// The bytes before the first newline, whether there is one, and the bytes behind it.
fn cut(bytes: &[u8]) -> (&[u8], bool, &[u8]) {
    // `skip_until` of a slice is memchr(3): there is no faster search without another crate.
    let mut after = bytes;
    let length = after.skip_until(b'\n').unwrap_or(bytes.len());
    match bytes.get(..length).and_then(<[u8]>::split_last) {
        Some((b'\n', line)) => (line, true, after),
        Some(_) | None => (bytes, false, &[]),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::RunId;
    use crate::system::run_mark::Begin;

    fn split(chunks: &[&[u8]]) -> Vec<(Vec<u8>, bool)> {
        let mut splitter = Splitter::default();
        let mut parts = Vec::new();
        for chunk in chunks {
            splitter.feed(chunk, |part| parts.push((part.bytes.to_vec(), part.full)));
            assert!(splitter.held.capacity() <= PART_BYTES_MAX);
        }
        splitter.flush(|part| parts.push((part.bytes.to_vec(), part.full)));
        assert_eq!(splitter.held.capacity(), 0);
        parts
    }

    fn join(parts: &[(Vec<u8>, bool)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (part, full) in parts {
            bytes.extend_from_slice(part);
            bytes.extend(full.then_some(b'\n'));
        }
        bytes
    }

    #[test]
    fn lines_come_out_whatever_the_chunks_are() {
        let expected = [(b"one".to_vec(), true), (b"".to_vec(), true), (b"tw".to_vec(), false)];
        assert_eq!(split(&[b"one\n\ntw"]), expected);
        assert_eq!(split(&[b"on", b"e", b"\n", b"\nt", b"w"]), expected);
        assert_eq!(split(&[]), []);
    }

    #[test]
    fn a_line_of_exactly_one_part_is_full() {
        for extra in [0, 1] {
            let line = vec![b'x'; PART_BYTES_MAX + extra];
            let mut whole = line.clone();
            whole.push(b'\n');
            for chunks in [vec![&whole[..]], vec![&line[..], b"\n"], vec![&line[..9], &whole[9..]]]
            {
                let lengths: Vec<(usize, bool)> =
                    split(&chunks).iter().map(|(part, full)| (part.len(), *full)).collect();
                if extra == 0 {
                    assert_eq!(lengths, [(PART_BYTES_MAX, true)]);
                } else {
                    assert_eq!(lengths, [(PART_BYTES_MAX, false), (1, true)]);
                }
            }
        }
    }

    #[test]
    fn a_mark_is_in_one_part_wherever_it_stands() {
        let mark = run_mark::text(Begin::Main, RunId(0x9130_aa90_b299_6fff));
        let length = mark.len() - 1;
        for before in PART_BYTES_MAX - length - 2..PART_BYTES_MAX + 2 {
            let text = [&vec![b'x'; before][..], &mark].concat();
            for chunks in [vec![&text[..]], vec![&text[..before], &text[before..]]] {
                let parts = split(&chunks);
                assert_eq!(join(&parts), text);
                let (last, is_full) = parts.last().unwrap();
                assert!(*is_full && run_mark::find(last).is_some(), "{before}");
            }
        }
    }

    proptest! {
        #[test]
        fn nothing_is_lost_or_changed(
            pieces in prop::collection::vec(
                prop_oneof![
                    prop::collection::vec(any::<u8>(), 0..200),
                    prop::collection::vec(Just(b'\n'), 0..4),
                    Just(run_mark::text(Begin::Run, RunId(7))),
                    (0..2 * PART_BYTES_MAX).prop_map(|n| vec![b'x'; n]),
                ],
                0..12,
            ),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let input: Vec<u8> = pieces.concat();
            let mut places: Vec<usize> =
                cuts.iter().map(|cut| cut.index(input.len() + 1)).collect();
            places.extend([0, input.len()]);
            places.sort_unstable();
            let chunks: Vec<&[u8]> =
                places.windows(2).map(|pair| &input[pair[0]..pair[1]]).collect();
            let parts = split(&chunks);
            prop_assert_eq!(join(&parts), input.clone());
            prop_assert!(parts.iter().all(|(part, _)| part.len() <= PART_BYTES_MAX));
            prop_assert!(parts.iter().all(|(part, _)| !part.contains(&b'\n')));
            prop_assert_eq!(parts, split(&[&input]));
        }
    }
}
