//! How a run tells that it is ready, beside the notify socket: by a descriptor, or a file.
//!
//! Each exists before the process does, and outlives a crash of the supervisor by its name: the
//! next supervisor opens it again.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

use super::instruction::ANY;
use super::sys;
use crate::model::{Monotonic, RunId, Wall};

/// Makes a FIFO, or takes the one that is there, and opens it for reading and writing, so that it
/// has no end while we live.
pub(super) fn open_fifo(path: &Path, owner: Option<u32>) -> io::Result<OwnedFd> {
    use nix::sys::stat::Mode;
    // Write only: a unit cannot read back what others wrote. Without privileges we would lock
    // ourselves out too.
    let mode = if nix::unistd::geteuid().is_root() {
        Mode::S_IWUSR
    } else {
        Mode::S_IRUSR | Mode::S_IWUSR
    };
    match nix::unistd::mkfifo(path, mode) {
        Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    if let Some(uid) = owner {
        std::os::unix::fs::chown(path, Some(uid), None)?;
    }
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW)
        .open(path)?;
    Ok(file.into())
}

/// Lets whoever has a descriptor of a FIFO open it again for writing, as `/dev/stdout`, whichever
/// user it has become. By its path nobody else comes to it: the directory is its owner's alone.
/// Without privileges nobody becomes another user.
pub(super) fn let_openers_write(fifo: &OwnedFd) -> io::Result<()> {
    use nix::sys::stat::{Mode, fchmod};
    if !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    fchmod(fifo, Mode::S_IWUSR | Mode::S_IWGRP | Mode::S_IWOTH).map_err(io::Error::from)
}

/// Lets the owner of a FIFO open it again for reading, as `/dev/stdin`.
pub(super) fn let_owner_read(fifo: BorrowedFd<'_>) -> io::Result<()> {
    use nix::sys::stat::{Mode, fchmod};
    fchmod(fifo, Mode::S_IRUSR | Mode::S_IWUSR).map_err(io::Error::from)
}

/// A second opening of a FIFO that a child gets: blocking, whatever ours is.
pub(super) fn child_end(fifo: &OwnedFd) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", fifo.as_raw_fd());
    Ok(fs::OpenOptions::new().read(true).write(true).open(path)?.into())
}

/// Whether anybody has a FIFO open for writing, or left something in it.
pub(super) fn has_writer(path: &Path) -> io::Result<bool> {
    let mut file = fs::OpenOptions::new()
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
    let mut file = fs::OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW)
        .open(path)?;
    file.write_all(b"\n")
}

/// Whether a newline came on a readiness FIFO.
pub(super) fn newline_came(fifo: &OwnedFd) -> bool {
    let Ok(fd) = fifo.try_clone() else { return false };
    let mut file = fs::File::from(fd);
    let mut bytes = [0u8; 256];
    let mut came = false;
    while let Ok(length @ 1..) = file.read(&mut bytes) {
        came |= bytes.get(..length).unwrap_or_default().contains(&b'\n');
    }
    came
}

/// Whether the log keeper has said that this run is ready; what it said of others is passed over. A keeper
/// that does not know the number is believed where it looks only since the run has begun, or where that
/// is not known: before that it heard another run.
pub(super) fn answer_came(fifo: &OwnedFd, run: RunId, began: Option<Monotonic>) -> bool {
    let Ok(fd) = fifo.try_clone() else { return false };
    let mut file = fs::File::from(fd);
    let mut text = Vec::new();
    // It ends with an error, as there is always a writer: ourselves.
    if let Err(error) = file.read_to_end(&mut text)
        && error.kind() != ErrorKind::WouldBlock
    {
        log::error!("cannot read what the log keeper says: {error}");
    }
    let own = run.to_string();
    let is_heard = |since: &str| {
        let since = since.parse().unwrap_or(0);
        began.is_none_or(|began| began.as_nanos() / 1_000_000 <= since)
    };
    String::from_utf8_lossy(&text)
        .lines()
        .any(|line| line == own || line.strip_prefix(ANY).is_some_and(is_heard))
}

/// A file's identity and last change: enough to tell whether it was made or changed since.
pub(super) type Mark = Option<(u64, i64, i64)>;

pub(super) fn mark(path: &Path) -> Mark {
    fs::metadata(path).ok().map(|file| (file.ino(), file.ctime(), file.ctime_nsec()))
}

/// The mark of a file that was last changed before a time: whatever was started then has nothing to
/// do with it.
pub(super) fn mark_older_than(path: &Path, time: Wall) -> Mark {
    // The clock for files ticks more coarsely than others.
    const TICK_MICROS: i64 = 50_000;
    mark(path).filter(|(_, seconds, nanos)| {
        let changed = seconds.saturating_mul(1_000_000).saturating_add(nanos / 1_000);
        changed.saturating_add(TICK_MICROS) < time.0
    })
}

/// What a file says of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Tells {
    /// By being there: that it is ready.
    Ready,
    /// By what is in it: which process is its main one.
    Main,
}

/// Runs that wait for a file, and one inotify instance for all of them.
#[derive(Debug, Default)]
pub(super) struct FileWaits {
    inotify: Option<Inotify>,
    waits: BTreeMap<(RunId, Tells), FileWait>,
}

#[derive(Debug)]
struct FileWait {
    path: PathBuf,
    before: Mark,
    watch: Option<WatchDescriptor>,
}

impl FileWaits {
    /// Begins to wait for a file that is not as `before`. Returns the descriptor to be watched, the
    /// first time.
    pub(super) fn add(
        &mut self,
        run: RunId,
        tells: Tells,
        path: PathBuf,
        before: Mark,
    ) -> io::Result<Option<i32>> {
        let new = if self.inotify.is_none() {
            let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
            Some(self.inotify.insert(inotify).as_fd().as_raw_fd())
        } else {
            None
        };
        let mut wait = FileWait { path, before, watch: None };
        wait.watch = self.watch(&wait.path);
        self.waits.insert((run, tells), wait);
        Ok(new)
    }

    /// Watches the nearest directory above the file that exists.
    fn watch(&self, path: &Path) -> Option<WatchDescriptor> {
        let inotify = self.inotify.as_ref()?;
        let flags = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_DELETE_SELF;
        path.ancestors().skip(1).find_map(|dir| {
            let dir =
                if dir.as_os_str().is_empty() { OsStr::from_bytes(b".") } else { dir.as_os_str() };
            inotify.add_watch(dir, flags).ok()
        })
    }

    pub(super) fn remove(&mut self, run: RunId, tells: Tells) {
        let Some(gone) = self.waits.remove(&(run, tells)) else { return };
        if let Some(watch) = gone.watch {
            self.end(watch);
        }
    }

    /// Ends a watch that nobody needs any more.
    fn end(&self, watch: WatchDescriptor) {
        if self.waits.values().any(|wait| wait.watch == Some(watch)) {
            return;
        }
        if let Some(Err(error)) = self.inotify.as_ref().map(|inotify| inotify.rm_watch(watch)) {
            log::debug!("cannot end a file watch: {error}");
        }
    }

    /// The runs that wait for a file that tells this.
    pub(super) fn waiting(&self, tells: Tells) -> Vec<RunId> {
        let all = self.waits.keys();
        all.filter(|(_, what)| *what == tells).map(|(run, _)| *run).collect()
    }

    /// Whether the file of a run that waits for one is there, and is not the one of before.
    pub(super) fn is_there(&self, run: RunId, tells: Tells) -> bool {
        self.waits.get(&(run, tells)).is_some_and(FileWait::is_there)
    }

    /// The runs whose file is there now.
    pub(super) fn look(&mut self) -> Vec<(RunId, Tells)> {
        if let Some(inotify) = &self.inotify {
            while inotify.read_events().is_ok_and(|events| !events.is_empty()) {}
        }
        // The directory may have come only now: watch before looking, so that nothing is missed.
        let pending: Vec<((RunId, Tells), PathBuf)> =
            self.waits.iter().map(|(run, wait)| (*run, wait.path.clone())).collect();
        for (run, path) in pending {
            let watch = self.watch(&path);
            let wait = self.waits.get_mut(&run);
            let before = wait.map(|wait| std::mem::replace(&mut wait.watch, watch));
            if let Some(before) = before.flatten().filter(|before| Some(*before) != watch) {
                // It is farther up than what there is now, where others may be busy.
                self.end(before);
            }
        }
        self.waits.iter().filter(|(_, wait)| wait.is_there()).map(|(run, _)| *run).collect()
    }
}

impl FileWait {
    fn is_there(&self) -> bool {
        let now = mark(&self.path);
        now.is_some() && now != self.before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_nearer_to_the_file_is_watched_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/ready");
        let mut waits = FileWaits::default();
        waits.add(RunId(1), Tells::Ready, path.clone(), mark(&path)).unwrap();
        fs::create_dir(dir.path().join("deep")).unwrap();
        assert!(waits.look().is_empty());
        let news = |waits: &FileWaits| {
            let all = waits.inotify.as_ref().unwrap().read_events().unwrap_or_default();
            all.iter().filter(|event| !event.mask.contains(AddWatchFlags::IN_IGNORED)).count()
        };
        news(&waits);
        fs::write(dir.path().join("busy"), "1").unwrap();
        assert_eq!(news(&waits), 0, "what others do farther up");
        fs::write(&path, "1").unwrap();
        assert!(news(&waits) > 0);
    }

    #[test]
    fn a_file_counts_only_when_it_is_new_or_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/down/ready");
        let mut waits = FileWaits::default();
        waits.add(RunId(1), Tells::Ready, path.clone(), mark(&path)).unwrap();
        assert!(waits.look().is_empty());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        assert!(waits.look().is_empty());
        fs::write(&path, "1").unwrap();
        assert_eq!(waits.look(), [(RunId(1), Tells::Ready)]);
        waits.remove(RunId(1), Tells::Ready);
        waits.add(RunId(2), Tells::Ready, path.clone(), mark(&path)).unwrap();
        assert!(waits.look().is_empty(), "a file of an earlier run does not count");
    }
}
