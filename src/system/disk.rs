//! The file system as far as the ledger and the saved state use it. [`Files`] is the real one;
//! the tests run the same ledger and the same saved state over a simulated one, which loses what
//! was not synced.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// What is asked of a file system. All of it blocks until the kernel has answered.
pub trait Disk: fmt::Debug {
    /// A file that is open for writing.
    type File: fmt::Debug;

    /// A file's content, or as much of it as `limit` bytes.
    fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>>;

    /// Opens a file to write at its end; makes it where it is not there.
    fn append(&self, path: &Path) -> io::Result<Self::File>;

    /// Opens an empty file to write; empties one that is there.
    fn create(&self, path: &Path) -> io::Result<Self::File>;

    /// Writes all of these bytes; an error may leave a part of them written.
    fn write(&self, file: &mut Self::File, bytes: &[u8]) -> io::Result<()>;

    /// Cuts a file to this length, in bytes.
    fn cut(&self, file: &Self::File, length: u64) -> io::Result<()>;

    /// Returns when the content survives power loss.
    fn sync(&self, file: &Self::File) -> io::Result<()>;

    /// Returns when the names in a directory survive power loss.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Gives a file another name, in place of whatever has it.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes a directory that its owner alone can read; one that is there is no error.
    fn make_dir(&self, dir: &Path) -> io::Result<()>;

    /// Whether there is a file of this name.
    fn exists(&self, path: &Path) -> bool;

    /// The names in a directory.
    fn names(&self, dir: &Path) -> io::Result<Vec<OsString>>;
}

/// The real file system. What is made is readable by its owner only.
#[derive(Debug, Clone, Copy, Default)]
pub struct Files;

impl Disk for Files {
    type File = File;

    fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        // A FIFO would have us wait for whoever writes to it.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        file.take(limit).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn append(&self, path: &Path) -> io::Result<File> {
        OpenOptions::new().append(true).create(true).mode(0o600).open(path)
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
    }

    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        file.write_all(bytes)
    }

    fn cut(&self, file: &File, length: u64) -> io::Result<()> {
        file.set_len(length)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        match DirBuilder::new().mode(0o700).create(dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    }

    fn exists(&self, path: &Path) -> bool {
        path.exists()
    }

    fn names(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        Ok(fs::read_dir(dir)?.flatten().map(|entry| entry.file_name()).collect())
    }
}
