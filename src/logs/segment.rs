//! The files of one instance's log: `current` and the finished `NNNNNNNN.log`, by number. A finished
//! one may be compressed, as `NNNNNNNN.log.gz`; where both are there, it counts once.
//!
//! Numbers grow and are not used again while a keeper runs; the file with the largest number is
//! the youngest finished one. A file keeps its identity (device and inode) when it is finished.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::packed::{self, Packed};

/// Name of the file that is being written.
pub const CURRENT: &str = "current";
/// Fewest digits of a finished file's number; larger numbers have more.
pub const NUMBER_DIGITS_MIN: usize = 8;
/// What follows the number in a finished file's name.
pub const SUFFIX: &str = ".log";

/// What a file is, whatever its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    /// Device and inode.
    pub(super) fn numbers(self) -> (u64, u64) {
        (self.device, self.inode)
    }

    pub(super) fn from_numbers(device: u64, inode: u64) -> Self {
        Self { device, inode }
    }

    /// The identity of the file that these are the properties of.
    pub(crate) fn of(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }
}

/// The number of a file named `PREFIX` + digits + `SUFFIX`.
pub(crate) fn number_of(name: &OsStr, prefix: &[u8], suffix: &[u8]) -> Option<u64> {
    let digits = name.as_encoded_bytes().strip_prefix(prefix)?.strip_suffix(suffix)?;
    if digits.len() < NUMBER_DIGITS_MIN || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// The numbers of a directory's files that have one by their name, compressed or not, the oldest first.
pub(crate) fn numbers_in(
    dir: &Path,
    number_of: &dyn Fn(&OsStr) -> Option<u64>,
) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let stem = name.as_encoded_bytes().strip_suffix(packed::SUFFIX.as_bytes());
        numbers.extend(number_of(stem.map_or(name.as_os_str(), OsStr::from_bytes)));
    }
    numbers.sort_unstable();
    numbers.dedup();
    Ok(numbers)
}

/// The numbers of the finished files of a log, the oldest first; none where there is no directory.
pub(super) fn finished(dir: &Path) -> io::Result<Vec<u64>> {
    #[cfg(test)]
    super::tests::before_a_look();
    match numbers_in(dir, &|name| number_of(name, b"", SUFFIX.as_bytes())) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        numbers => numbers,
    }
}

/// Where the finished file with this number is.
pub(crate) fn finished_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:0NUMBER_DIGITS_MIN$}{SUFFIX}"))
}

/// Where a finished file is when it is compressed.
pub(crate) fn packed_path(finished: &Path) -> PathBuf {
    let mut path = finished.as_os_str().to_owned();
    path.push(packed::SUFFIX);
    path.into()
}

/// A time as it stands at the head of a record.
pub(super) fn stamp(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

/// Opens a file of a log; `None` where something of that name is no regular file, which opm has not made:
/// whoever opens a FIFO waits for somebody to write.
fn open_file(path: &Path) -> io::Result<Option<File>> {
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    Ok(file.metadata()?.is_file().then_some(file))
}

/// An open file of a log.
#[derive(Debug)]
pub(super) struct Segment {
    body: Body,
    pub(super) id: FileId,
    /// Its number; `None`: it was `current` when it was opened.
    pub(super) number: Option<u64>,
}

/// What is in a file.
#[derive(Debug)]
enum Body {
    /// The log.
    Plain(File),
    /// The log, compressed.
    Packed(Box<Packed>),
}

impl Segment {
    /// Opens `current`, or the finished file of this number; `None` where it does not exist.
    pub(super) fn open(dir: &Path, number: Option<u64>) -> io::Result<Option<Self>> {
        let path = match number {
            None => dir.join(CURRENT),
            Some(number) => finished_path(dir, number),
        };
        match open_file(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Ok(None) => return Ok(None),
            file => return file?.map(|file| Self::plain(file, number)).transpose(),
        }
        if number.is_none() {
            return Ok(None);
        }
        // The compressed one is there before the other is removed.
        let file = match open_file(&packed_path(&path)) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let Some(file) = file else { return Ok(None) };
        let id = FileId::of(&file.metadata()?);
        let body = Body::Packed(Box::new(Packed::open(file)?));
        Ok(Some(Self { body, id, number }))
    }

    /// The same, but `None` too where a compressed file is damaged.
    pub(super) fn open_sound(dir: &Path, number: Option<u64>) -> io::Result<Option<Self>> {
        match Self::open(dir, number) {
            Err(error) if error.kind() == ErrorKind::InvalidData => Ok(None),
            segment => segment,
        }
    }

    /// A file that is not compressed.
    pub(super) fn plain(file: File, number: Option<u64>) -> io::Result<Self> {
        let id = FileId::of(&file.metadata()?);
        Ok(Self { body: Body::Plain(file), id, number })
    }

    /// Its first and last stamp, where they are written down.
    pub(super) fn known_ends(&self) -> Option<(Option<String>, Option<String>)> {
        match &self.body {
            Body::Plain(_) => None,
            Body::Packed(packed) => Some(packed.ends.clone()),
        }
    }

    /// The same file once more.
    pub(super) fn try_clone(&self) -> io::Result<Self> {
        let body = match &self.body {
            Body::Plain(file) => Body::Plain(file.try_clone()?),
            Body::Packed(packed) => Body::Packed(Box::new(packed.try_clone()?)),
        };
        Ok(Self { body, id: self.id, number: self.number })
    }

    /// How long it is now, in bytes.
    pub(super) fn length(&self) -> io::Result<u64> {
        match &self.body {
            Body::Plain(file) => Ok(file.metadata()?.len()),
            Body::Packed(packed) => Ok(packed.length()),
        }
    }

    /// When it was written last, as a stamp.
    pub(super) fn written(&self) -> io::Result<String> {
        let metadata = match &self.body {
            Body::Plain(file) => file.metadata()?,
            Body::Packed(packed) => packed.metadata()?,
        };
        let time = Timestamp::try_from(metadata.modified()?).unwrap_or(Timestamp::UNIX_EPOCH);
        Ok(stamp(time))
    }

    /// Reads some bytes at a place; none at its end.
    pub(super) fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        match &mut self.body {
            Body::Plain(file) => file.read_at(buffer, offset),
            Body::Packed(packed) => packed.read_at(buffer, offset),
        }
    }

    /// Reads so many bytes at a place.
    pub(super) fn read_exact_at(
        &mut self,
        mut buffer: &mut [u8],
        mut offset: u64,
    ) -> io::Result<()> {
        while !buffer.is_empty() {
            match self.read_at(buffer, offset) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    buffer = buffer.get_mut(count..).unwrap_or_default();
                    offset += count as u64;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether it is the same file as one that is open now and was `current` a while ago, or is
    /// what that one was compressed into.
    ///
    /// An inode is used again when nobody has it open. So only files with a number larger than all
    /// that there were before the other was opened may be asked: older ones can have been in the
    /// same inode before.
    pub(super) fn is(&self, other: &Self) -> bool {
        match &self.body {
            Body::Plain(_) => self.id == other.id,
            Body::Packed(packed) => self.id == other.id || packed.was == other.id,
        }
    }
}

/// The files of a log at one moment.
#[derive(Debug)]
pub(super) struct Files {
    /// What is being written, with its number where it was finished just now.
    pub(super) current: Option<Segment>,
    /// The numbers of the finished files that are older, the oldest first.
    pub(super) older: Vec<u64>,
}

impl Files {
    /// Looks at a log.
    pub(super) fn of(dir: &Path) -> io::Result<Self> {
        // What is finished now is older than `current`. First `current`, then the others once more:
        // one that is finished in between is in the list, and is recognised; one that begins in
        // between is younger than this look.
        let before = finished(dir)?.last().copied().unwrap_or(0);
        let current = Segment::open(dir, None)?;
        let mut older = finished(dir)?;
        let Some(current) = current else { return Ok(Self { current, older }) };
        let same = older.iter().rev().copied().take_while(|number| *number > before).find(|number| {
            matches!(Segment::open(dir, Some(*number)), Ok(Some(found)) if found.is(&current))
        });
        if let Some(same) = same {
            older.retain(|number| *number < same);
        }
        Ok(Self { current: Some(Segment { number: same, ..current }), older })
    }
}

/// The identity of the file that is `current` now; `None` where there is none.
pub(super) fn current_id(dir: &Path) -> io::Result<Option<FileId>> {
    #[cfg(test)]
    super::tests::before_a_look();
    match fs::metadata(dir.join(CURRENT)) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        metadata => metadata.map(|metadata| Some(FileId::of(&metadata))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_has_at_least_eight_digits_and_nothing_else() {
        for (name, number) in [
            ("00000001.log", Some(1)),
            ("100000000.log", Some(100_000_000)),
            ("1.log", None),
            ("0000000x.log", None),
            ("+0000001.log", None),
            ("00000001.log.gz", None),
            ("current", None),
            ("99999999999999999999999.log", None),
        ] {
            assert_eq!(number_of(OsStr::new(name), b"", b".log"), number, "{name}");
        }
        assert_eq!(number_of(OsStr::new("app.log.00000007"), b"app.log.", b""), Some(7));
        assert_eq!(finished_path(Path::new("/d"), 7), Path::new("/d/00000007.log"));
    }
}
