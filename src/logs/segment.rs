//! The files of one instance's log: `current` and the finished `NNNNNNNN.log`, by number.
//!
//! Numbers grow and are not used again while a keeper runs; the file with the largest number is
//! the youngest finished one. A file keeps its identity (device and inode) when it is finished.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

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

/// The numbers of a directory's files `PREFIX` + digits + `SUFFIX`, the oldest first.
pub(crate) fn numbers_in(dir: &Path, prefix: &[u8], suffix: &[u8]) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir)? {
        numbers.extend(number_of(&entry?.file_name(), prefix, suffix));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// The numbers of the finished files of a log, the oldest first; none where there is no directory.
pub(super) fn finished(dir: &Path) -> io::Result<Vec<u64>> {
    #[cfg(test)]
    super::tests::before_a_look();
    match numbers_in(dir, b"", SUFFIX.as_bytes()) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        numbers => numbers,
    }
}

/// Where the finished file with this number is.
pub(crate) fn finished_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:0NUMBER_DIGITS_MIN$}{SUFFIX}"))
}

/// An open file of a log.
#[derive(Debug)]
pub(super) struct Segment {
    file: File,
    pub(super) id: FileId,
    /// Its number; `None`: it was `current` when it was opened.
    pub(super) number: Option<u64>,
}

impl Segment {
    /// Opens `current`, or the finished file of this number; `None` where it does not exist.
    pub(super) fn open(dir: &Path, number: Option<u64>) -> io::Result<Option<Self>> {
        let path = match number {
            None => dir.join(CURRENT),
            Some(number) => finished_path(dir, number),
        };
        let file = match File::open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let id = FileId::of(&file.metadata()?);
        Ok(Some(Self { file, id, number }))
    }

    /// The same file once more.
    pub(super) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { file: self.file.try_clone()?, id: self.id, number: self.number })
    }

    /// How long it is now, in bytes.
    pub(super) fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Reads some bytes at a place; none at its end.
    pub(super) fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
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

    /// Whether both are one file.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.id == other.id
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
        // First `current`, then the others: one that is finished in between is in the list, and is
        // recognised; one that begins in between is younger than this look.
        let current = Segment::open(dir, None)?;
        let mut older = finished(dir)?;
        let Some(current) = current else { return Ok(Self { current, older }) };
        let same = older.iter().rev().copied().find(|number| {
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
