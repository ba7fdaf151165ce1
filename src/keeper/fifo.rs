//! The reading end of an instance's FIFO.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::logs::segment::FileId;

/// Fewest bytes that are taken from a FIFO before it is left for good: the largest pipe that an
/// ordinary user can have. A writer that goes on writing does not keep it open for ever.
const LAST_BYTES_MIN: u64 = 1024 * 1024;

/// What follows a read.
#[derive(Debug)]
pub(super) enum Input {
    /// Perhaps more bytes.
    More,
    /// Nothing now.
    Empty,
    /// Nothing, and nobody has it open for writing.
    NoWriter,
    /// Nothing any more.
    Failed(io::Error),
}

/// An open FIFO.
#[derive(Debug)]
pub(super) struct Fifo {
    file: File,
    id: FileId,
}

impl Fifo {
    /// Opens a FIFO; `None` where there is none.
    pub(super) fn open(path: &Path) -> io::Result<Option<Self>> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits())
            .open(path);
        let file = match file {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let metadata = file.metadata()?;
        if !metadata.file_type().is_fifo() {
            return Err(io::Error::other("not a FIFO"));
        }
        Ok(Some(Self { file, id: FileId::of(&metadata) }))
    }

    /// Whether another file is at the path now.
    pub(super) fn is_replaced(&self, path: &Path) -> bool {
        fs::metadata(path).is_ok_and(|metadata| FileId::of(&metadata) != self.id)
    }

    pub(super) fn descriptor(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Asks for an event when there is something to read.
    pub(super) fn register(&self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.register(&mut SourceFd(&self.file.as_raw_fd()), token, Interest::READABLE)
    }

    /// Takes what is there until the buffer is full: many small writes become one batch. How much
    /// that was, and what follows.
    pub(super) fn read(&self, buffer: &mut [u8]) -> (usize, Input) {
        let mut count = 0;
        while let Some(room) = buffer.get_mut(count..)
            && !room.is_empty()
        {
            match (&self.file).read(room) {
                Ok(0) => return (count, Input::NoWriter),
                Ok(more) => count += more,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return (count, Input::Empty);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return (count, Input::Failed(error)),
            }
        }
        (count, Input::More)
    }

    /// How many bytes have to be taken so that all that is in it now was taken.
    pub(super) fn last_bytes(&self) -> u64 {
        let capacity = fcntl(&self.file, FcntlArg::F_GETPIPE_SZ).unwrap_or(0);
        u64::try_from(capacity).unwrap_or(0).max(LAST_BYTES_MIN)
    }
}
