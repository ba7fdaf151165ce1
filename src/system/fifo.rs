//! FIFOs: a unit's output and input, and those on which it is said that a run is ready. Each has a name,
//! so that the next supervisor opens it again, and is open for both ends, so that it has no end while we
//! live.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::OnceLock;

use super::sys;

/// Bytes that are read from a descriptor of a service at once, and how often before others have their
/// turn.
const READ_BYTES: usize = 1024;
const READS_AT_ONCE: usize = 16;

/// Makes a FIFO, or takes the one that is there, and opens it for reading and writing, so that it
/// has no end while we live.
pub(super) fn make(path: &Path, owner: Option<u32>) -> io::Result<OwnedFd> {
    use nix::sys::stat::Mode;
    // Write only: a unit cannot read back what others wrote.
    let mode = if overrides_modes() { Mode::S_IWUSR } else { Mode::S_IRUSR | Mode::S_IWUSR };
    match nix::unistd::mkfifo(path, mode) {
        Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    if let Some(uid) = owner.filter(|_| overrides_modes()) {
        std::os::unix::fs::chown(path, Some(uid), None)?;
    }
    open_both_ends(path).map(OwnedFd::from)
}

/// Opens a FIFO that is there for reading and writing: what is in it stays while nobody else has it open.
pub fn open_both_ends(path: &Path) -> io::Result<File> {
    let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW;
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)
}

/// Lets whoever has a descriptor of a FIFO open it again for writing, as `/dev/stdout`, whichever
/// user it has become. By its path nobody else comes to it: the directory is its owner's alone.
/// Without privileges nobody becomes another user.
pub(super) fn let_openers_write(fifo: &OwnedFd) -> io::Result<()> {
    use nix::sys::stat::{Mode, fchmod};
    if !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let own = if overrides_modes() { Mode::empty() } else { Mode::S_IRUSR };
    fchmod(fifo, own | Mode::S_IWUSR | Mode::S_IWGRP | Mode::S_IWOTH).map_err(io::Error::from)
}

/// Whether we open what its mode and owner keep from us, capabilities(7): else we would lock ourselves out
/// of what we make. Root in a container may be without.
fn overrides_modes() -> bool {
    /// `CAP_DAC_OVERRIDE`.
    const BIT: u64 = 1 << 1;
    static OVERRIDES: OnceLock<bool> = OnceLock::new();
    *OVERRIDES.get_or_init(|| {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        let bits = effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
        bits.is_some_and(|bits| bits & BIT != 0)
    })
}

/// Lets the owner of a FIFO open it again for reading, as `/dev/stdin`.
pub(super) fn let_owner_read(fifo: BorrowedFd<'_>) -> io::Result<()> {
    use nix::sys::stat::{Mode, fchmod};
    fchmod(fifo, Mode::S_IRUSR | Mode::S_IWUSR).map_err(io::Error::from)
}

/// A second opening of a FIFO that a child gets: blocking, whatever ours is.
pub(super) fn child_end(fifo: &OwnedFd) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", fifo.as_raw_fd());
    Ok(OpenOptions::new().read(true).write(true).open(path)?.into())
}

/// Whether anybody has a FIFO open for writing, or left something in it.
pub(super) fn has_writer(path: &Path) -> io::Result<bool> {
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW)
        .open(path)?;
    if sys::bytes_queued(file.as_fd()) > 0 {
        return Ok(true);
    }
    match file.read(&mut [0]) {
        Ok(count) => Ok(count > 0),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(true),
        Err(error) => Err(error),
    }
}

/// Says in the place of one that had nobody to listen that it is ready.
pub(super) fn say_newline(path: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW)
        .open(path)?;
    file.write_all(b"\n")
}

/// What was read from a readiness FIFO.
pub(super) struct Heard {
    /// Whether a newline was in it.
    pub(super) newline: bool,
    /// Whether there may be more.
    pub(super) more: bool,
}

/// Reads a readiness FIFO, of one that writes without end no more than is taken at once.
pub(super) fn hear(fifo: &OwnedFd) -> Heard {
    let mut heard = Heard { newline: false, more: true };
    let mut bytes = [0u8; READ_BYTES];
    for _ in 0..READS_AT_ONCE {
        let Ok(length @ 1..) = nix::unistd::read(fifo, &mut bytes) else {
            heard.more = false;
            break;
        };
        heard.newline |= bytes.get(..length).unwrap_or_default().contains(&b'\n');
    }
    heard
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_writes_without_end_to_its_readiness_descriptor_is_read_in_parts() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = make(&dir.path().join("ready"), None).unwrap();
        let mut file = File::from(fifo.try_clone().unwrap());
        file.write_all(&vec![b'x'; 2 * READS_AT_ONCE * READ_BYTES]).unwrap();
        file.write_all(b"\n").unwrap();
        let heard = [(); 4].map(|()| hear(&fifo)).map(|heard| (heard.newline, heard.more));
        assert_eq!(heard, [(false, true), (false, true), (true, false), (false, false)]);
    }
}
