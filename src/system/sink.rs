//! Standard output and error, without ever waiting for them and without changing them for others.
//!
//! `O_NONBLOCK` belongs to the open file description, which is shared with the units' processes and
//! with whoever started opm, so it is never set there. Where a description of our own can be had,
//! through `/proc/self/fd`, that one is non-blocking. Else each write is preceded by poll(2).

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::sys::monotonic_now;

/// Where something is written, by what it is.
#[derive(Debug)]
pub enum Sink {
    /// Not there, or not there any more.
    Off,
    /// A regular file or the like, for which there is no readiness: written at once.
    Direct(File),
    /// A pipe or terminal, by a non-blocking description of our own.
    Own(File),
    /// A socket, or what else cannot be opened again: written when poll says so.
    Shared(File),
}

/// What became of a write.
#[derive(Debug)]
pub enum Write {
    /// So many bytes were written.
    Done(usize),
    /// Not now.
    Wait,
    /// Not these bytes; others perhaps.
    Lost,
    /// Never again.
    Gone(io::Error),
}

impl Sink {
    /// Finds out what a descriptor is.
    pub fn of(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let file = File::from(fd.try_clone_to_owned()?);
        if file.metadata().is_ok_and(|metadata| metadata.is_file()) {
            return Ok(Self::Direct(file));
        }
        let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let own = OpenOptions::new()
            .write(true)
            .custom_flags(flags.bits())
            .open(format!("/proc/self/fd/{}", file.as_raw_fd()));
        Ok(own.map_or_else(|_| Self::Shared(file), Self::Own))
    }

    /// Registers it for when it can be written, where there is such a time.
    pub fn watched(self, registry: &Registry, token: Token) -> io::Result<Self> {
        if matches!(self, Self::Direct(_)) {
            return Ok(self);
        }
        match self.register(registry, token) {
            // epoll(7) refuses what is always ready, such as /dev/null.
            Err(error) if error.raw_os_error() == Some(Errno::EPERM as i32) => Ok(self.direct()),
            registered => registered.map(|()| self),
        }
    }

    fn file(&self) -> Option<&File> {
        match self {
            Self::Off => None,
            Self::Direct(file) | Self::Own(file) | Self::Shared(file) => Some(file),
        }
    }

    fn direct(self) -> Self {
        match self {
            Self::Off => Self::Off,
            Self::Direct(file) | Self::Own(file) | Self::Shared(file) => Self::Direct(file),
        }
    }

    fn register(&self, registry: &Registry, token: Token) -> io::Result<()> {
        match self.file() {
            Some(file) => {
                registry.register(&mut SourceFd(&file.as_raw_fd()), token, Interest::WRITABLE)
            }
            None => Ok(()),
        }
    }

    /// Writes some of these bytes, of which there are no more than a pipe takes at once.
    pub fn write(&self, bytes: &[u8]) -> Write {
        let mut file = match self {
            Self::Off => return Write::Lost,
            Self::Direct(file) | Self::Own(file) => file,
            Self::Shared(file) if is_writable(file) => file,
            Self::Shared(_) => return Write::Wait,
        };
        loop {
            let error = match file.write(bytes) {
                Ok(0) => ErrorKind::WriteZero.into(),
                Ok(count) => return Write::Done(count),
                Err(error) => error,
            };
            let kind = error.kind();
            if kind == ErrorKind::WouldBlock {
                return Write::Wait;
            }
            if matches!(kind, ErrorKind::StorageFull | ErrorKind::QuotaExceeded) {
                return Write::Lost;
            }
            if kind != ErrorKind::Interrupted {
                return Write::Gone(error);
            }
        }
    }

    /// Waits until it can be written, for so many milliseconds at most; how many are left.
    pub fn wait(&self, left_ms: u16) -> u16 {
        let Some(file) = self.file() else { return 0 };
        let start = monotonic_now();
        let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLOUT)];
        match poll(&mut fds, PollTimeout::from(left_ms)) {
            Ok(0) => 0,
            // At least one millisecond passes, so that this comes to an end.
            Ok(_) | Err(Errno::EINTR) => {
                let passed = monotonic_now().since(start).as_millis_up();
                left_ms.saturating_sub(u16::try_from(passed.max(1)).unwrap_or(u16::MAX))
            }
            Err(_) => 0,
        }
    }
}

fn is_writable(file: &File) -> bool {
    let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLOUT)];
    // An error condition counts: the write then says which one.
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}
