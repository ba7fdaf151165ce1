//! A finished file, compressed: gzip(1) reads it, and so does anybody who wants only a piece.
//!
//! It is a row of gzip members, each of at most [`MEMBER_BYTES`] of the log. An extra field of each
//! head (RFC 1952) says how long the member is, so that the others are skipped without a look at
//! them; which file the log was, so that who had it open knows it again; and its first and last
//! stamp. Bounded memory: one member when it is written, one when it is read.

use std::cell::Cell;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;
use flate2::{Compression, Crc};

use super::find;
use super::segment::{FileId, Segment, packed_path};

/// What follows the name of a compressed file.
pub(crate) const SUFFIX: &str = ".gz";
/// How much of a log is in one member, in bytes: little to read for one line, and enough for a good
/// ratio.
const MEMBER_BYTES: usize = 256 * 1024;
/// Longest member that is read, compressed or not, in bytes. What is longer was not written here.
const MEMBER_BYTES_MAX: u32 = 1024 * 1024;
/// Magic number, deflate, with an extra field; no time, nothing of the compressor, Unix.
const HEAD: [u8; 10] = [0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 3];
/// Our extra field.
const FIELD: [u8; 2] = *b"op";
/// A stamp in the field; zeros where there is none.
const STAMP_BYTES: usize = 27;
/// Two lengths, device, inode, two stamps.
const FIELD_BYTES: usize = 4 + 4 + 8 + 8 + 2 * STAMP_BYTES;
/// The head with the field and both of its lengths.
const HEAD_BYTES: usize = HEAD.len() + 2 + 4 + FIELD_BYTES;
/// Checksum and length.
const TAIL_BYTES: usize = 8;

/// Compresses a finished file into a new one beside it.
///
/// Complete on disk when this returns; with the same mode and time of last change.
pub(crate) fn pack(from: &Path, to: &Path) -> io::Result<()> {
    let file = File::open(from)?;
    let metadata = file.metadata()?;
    let mut segment = Segment::plain(file.try_clone()?, None)?;
    let id = FileId::of(&metadata);
    let (first, last) = find::ends(&mut segment)?;
    let mode = metadata.mode() & 0o777;
    let mut open = OpenOptions::new();
    let mut out = open.write(true).create(true).truncate(true).mode(mode).open(to)?;
    let mut plain = vec![0; MEMBER_BYTES];
    let mut offset = 0;
    loop {
        let count = file.read_at(&mut plain, offset)?;
        // An empty file has one member too: it is to be a gzip file.
        if count == 0 && offset > 0 {
            break;
        }
        let bytes = plain.get(..count).unwrap_or_default();
        out.write_all(&member(bytes, id, [first.as_deref(), last.as_deref()])?)?;
        offset += count as u64;
        if count == 0 {
            break;
        }
    }
    out.set_modified(metadata.modified()?)?;
    out.sync_all()
}

/// One member.
fn member(plain: &[u8], id: FileId, stamps: [Option<&str>; 2]) -> io::Result<Vec<u8>> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(plain)?;
    let body = encoder.finish()?;
    let mut crc = Crc::new();
    crc.update(plain);
    let too_long = |_| io::Error::other("a member that is too long");
    let length = u32::try_from(plain.len()).map_err(too_long)?;
    let packed = u32::try_from(HEAD_BYTES + body.len() + TAIL_BYTES).map_err(too_long)?;
    let field_length = u16::try_from(FIELD_BYTES).unwrap_or(0);
    let mut out = HEAD.to_vec();
    out.extend((field_length + 4).to_le_bytes());
    out.extend(FIELD);
    out.extend(field_length.to_le_bytes());
    out.extend(packed.to_le_bytes());
    out.extend(length.to_le_bytes());
    let (device, inode) = id.numbers();
    out.extend(device.to_le_bytes());
    out.extend(inode.to_le_bytes());
    for stamp in stamps {
        let stamp = stamp.map(str::as_bytes).filter(|stamp| stamp.len() == STAMP_BYTES);
        out.extend(stamp.unwrap_or(&[0; STAMP_BYTES]));
    }
    out.extend(body);
    out.extend(crc.sum().to_le_bytes());
    out.extend(length.to_le_bytes());
    Ok(out)
}

/// A compressed file that is read.
#[derive(Debug)]
pub(super) struct Packed {
    file: File,
    members: Vec<Member>,
    length: u64,
    /// Which file it was.
    pub(super) was: FileId,
    /// Its first and last stamp.
    pub(super) ends: (Option<String>, Option<String>),
    /// The member that was read last, and its index.
    block: Option<(usize, Vec<u8>)>,
}

/// Where a member is in the compressed file, and where its bytes are in the log.
#[derive(Debug, Clone, Copy)]
struct Member {
    at: u64,
    packed: u32,
    start: u64,
    length: u32,
}

/// What the head of a member says.
struct Head {
    packed: u32,
    length: u32,
    was: FileId,
    ends: (Option<String>, Option<String>),
}

fn broken() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "not a log that opm has compressed, or damaged")
}

impl Packed {
    /// Reads the heads of all members.
    pub(super) fn open(file: File) -> io::Result<Self> {
        let end = file.metadata()?.len();
        let (mut at, mut start) = (0, 0);
        let mut members = Vec::new();
        let mut first = None;
        while at < end {
            let head = Head::read(&file, at)?;
            members.push(Member { at, packed: head.packed, start, length: head.length });
            at += u64::from(head.packed);
            start += u64::from(head.length);
            first.get_or_insert(head);
        }
        let first = first.filter(|_| at == end).ok_or_else(broken)?;
        Ok(Self { file, members, length: start, was: first.was, ends: first.ends, block: None })
    }

    /// The properties of the compressed file; its last write is that of the log.
    pub(super) fn metadata(&self) -> io::Result<fs::Metadata> {
        self.file.metadata()
    }

    /// The same file once more.
    pub(super) fn try_clone(&self) -> io::Result<Self> {
        let (file, members) = (self.file.try_clone()?, self.members.clone());
        let (length, was, ends) = (self.length, self.was, self.ends.clone());
        Ok(Self { file, members, length, was, ends, block: None })
    }

    /// How long the log is.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Reads some bytes of the log; none at its end.
    pub(super) fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let index = self.members.partition_point(|m| m.start + u64::from(m.length) <= offset);
        let Some(member) = self.members.get(index).copied() else { return Ok(0) };
        if self.block.as_ref().is_none_or(|(known, _)| *known != index) {
            self.block = None;
            self.block = Some((index, self.unpack(member)?));
        }
        let block = self.block.as_ref().map_or(&[][..], |(_, block)| block);
        let from = usize::try_from(offset.saturating_sub(member.start)).unwrap_or(usize::MAX);
        let bytes = block.get(from..).unwrap_or_default();
        let count = bytes.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..count), bytes.get(..count)) {
            to.copy_from_slice(from);
        }
        Ok(count)
    }

    fn unpack(&self, member: Member) -> io::Result<Vec<u8>> {
        let mut packed = vec![0; usize::try_from(member.packed).unwrap_or(0)];
        self.file.read_exact_at(&mut packed, member.at)?;
        let body = packed.get(HEAD_BYTES..packed.len().saturating_sub(TAIL_BYTES));
        let mut plain = Vec::with_capacity(usize::try_from(member.length).unwrap_or(0));
        let mut decoder = DeflateDecoder::new(body.ok_or_else(broken)?);
        // One byte more than there may be: a longer one is damaged.
        let most = u64::from(member.length) + 1;
        decoder.by_ref().take(most).read_to_end(&mut plain).map_err(|_| broken())?;
        let mut crc = Crc::new();
        crc.update(&plain);
        let tail = [crc.sum().to_le_bytes(), member.length.to_le_bytes()].concat();
        let is_whole = plain.len() as u64 + 1 == most && packed.ends_with(&tail);
        if is_whole { Ok(plain) } else { Err(broken()) }
    }
}

impl Head {
    fn read(file: &File, at: u64) -> io::Result<Self> {
        let mut head = [0; HEAD_BYTES];
        file.read_exact_at(&mut head, at).map_err(|_| broken())?;
        let rest = Cell::new(&head[..]);
        let take = |count: usize| {
            let (taken, left) = rest.get().split_at_checked(count).ok_or_else(broken)?;
            rest.set(left);
            Ok::<_, io::Error>(taken)
        };
        let number = |count: usize| {
            let bytes = take(count)?.iter().rev();
            Ok::<_, io::Error>(bytes.fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte)))
        };
        let is_ours = take(HEAD.len())? == HEAD
            && number(2)? == FIELD_BYTES as u64 + 4
            && take(FIELD.len())? == FIELD
            && number(2)? == FIELD_BYTES as u64;
        let (packed, length) = (number(4)?, number(4)?);
        let was = FileId::from_numbers(number(8)?, number(8)?);
        let stamp = || {
            let text = std::str::from_utf8(take(STAMP_BYTES)?).map_err(|_| broken())?;
            Ok::<_, io::Error>(Some(text.to_owned()).filter(|text| !text.starts_with('\0')))
        };
        let ends = (stamp()?, stamp()?);
        let shortest = (HEAD_BYTES + TAIL_BYTES) as u64;
        let fits = |length: u64| u32::try_from(length).ok().filter(|n| *n <= MEMBER_BYTES_MAX);
        match (fits(packed), fits(length)) {
            (Some(packed), Some(length)) if is_ours && u64::from(packed) >= shortest => {
                Ok(Self { packed, length, was, ends })
            }
            _ => Err(broken()),
        }
    }
}

/// Puts the compressed file in place of a finished one: there is always at least one of them, and
/// where both are, the finished one counts.
///
/// `room` is where it grows; whatever is there from a try before is overwritten.
pub(crate) fn replace(finished: &Path, room: &Path) -> io::Result<()> {
    let packed = pack(finished, room).and_then(|()| {
        // One that was removed meanwhile, being too old, does not come back.
        fs::metadata(finished)?;
        fs::rename(room, packed_path(finished))?;
        fs::remove_file(finished)
    });
    if packed.is_err() && room.exists() {
        fs::remove_file(room)?;
    }
    packed
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    /// A log of some lines, and its compressed form.
    fn packed(root: &Path, plain: &[u8]) -> std::path::PathBuf {
        let (from, to) = (root.join("00000001.log"), root.join("00000001.log.gz"));
        fs::write(&from, plain).unwrap();
        pack(&from, &to).unwrap();
        to
    }

    fn lines(count: usize) -> Vec<u8> {
        let line = |n: usize| {
            format!("2026-11-25T10:{:02}:{:02}.000000Z stdout F line {n}\n", n / 60 % 60, n % 60)
        };
        (0..count).flat_map(|n| line(n).into_bytes()).collect()
    }

    fn unpacked(path: &Path, step: usize) -> io::Result<Vec<u8>> {
        let mut packed = Packed::open(File::open(path)?)?;
        let mut plain = Vec::new();
        let mut buffer = vec![0; step];
        loop {
            match packed.read_at(&mut buffer, plain.len() as u64)? {
                0 => break,
                count => plain.extend_from_slice(&buffer[..count]),
            }
        }
        assert_eq!(plain.len() as u64, packed.length());
        Ok(plain)
    }

    #[test]
    fn any_bytes_come_back_and_gzip_reads_them_too() {
        let root = tempfile::tempdir().unwrap();
        let (long, binary) = (lines(20_000), vec![0xff; 100_000]);
        for plain in [&b""[..], b"no stamp", &long, &long[..MEMBER_BYTES], &binary] {
            let path = packed(root.path(), plain);
            for step in [1_000, 300_000] {
                assert!(unpacked(&path, step).unwrap() == plain, "{} bytes", plain.len());
            }
            #[expect(clippy::disallowed_methods, reason = "another program's word on the format")]
            let gzip = Command::new("gzip").arg("-dc").arg(&path).output();
            match gzip {
                Ok(output) => assert!(output.stdout == plain, "{:?}", output.stderr),
                Err(error) => eprintln!("skipped: no gzip: {error}"),
            }
        }
        let mut open = Packed::open(File::open(packed(root.path(), &long)).unwrap()).unwrap();
        assert_eq!(open.ends.0.as_deref(), Some("2026-11-25T10:00:00.000000Z"));
        assert_eq!(open.ends.1.as_deref(), Some("2026-11-25T10:33:19.000000Z"));
        let mut piece = [0; 9];
        open.read_at(&mut piece, MEMBER_BYTES as u64 + 5).unwrap();
        assert_eq!(piece, long[MEMBER_BYTES + 5..][..9]);
    }

    proptest! {
        #[test]
        fn what_is_damaged_is_an_error_and_never_other_bytes(
            place in any::<prop::sample::Index>(), value in any::<u8>(), cut in any::<bool>(),
        ) {
            let root = tempfile::tempdir().unwrap();
            let plain = lines(100);
            let file = packed(root.path(), &plain);
            let mut bytes = fs::read(&file).unwrap();
            let at = place.index(bytes.len());
            if cut { bytes.truncate(at) } else { bytes[at] = value }
            fs::write(&file, &bytes).unwrap();
            if let Ok(found) = unpacked(&file, 1_000) {
                prop_assert!(found == plain);
            }
        }
    }

    #[test]
    fn there_is_always_one_of_both_and_time_and_mode_stay() {
        let root = tempfile::tempdir().unwrap();
        let finished = root.path().join("00000007.log");
        let grows = root.path().join(".room");
        fs::write(&grows, "left behind").unwrap();
        fs::write(&finished, lines(10)).unwrap();
        let old = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
        File::options().write(true).open(&finished).unwrap().set_modified(old).unwrap();
        replace(&finished, &grows).unwrap();
        let names: Vec<_> =
            fs::read_dir(root.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["00000007.log.gz"]);
        let metadata = fs::metadata(root.path().join("00000007.log.gz")).unwrap();
        assert_eq!(metadata.modified().unwrap(), old);
        assert!(replace(&finished, &grows).is_err());
        assert!(!grows.exists());
    }
}
