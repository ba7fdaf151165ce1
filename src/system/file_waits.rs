//! Files that are waited for: one by which a run is ready, and one that names its main process.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};

use crate::model::{RunId, Wall};

/// How often a file's directory is looked for again while directories come one after the other.
const WATCHED_AGAIN_MAX: usize = 16;
/// How often what happened is read before others have their turn.
const READS_AT_ONCE_MAX: usize = 16;

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
    /// Whether more has happened than was taken at once.
    is_behind: bool,
}

#[derive(Debug)]
struct FileWait {
    path: PathBuf,
    before: Mark,
    watch: Option<Place>,
}

/// What is watched for a file: a directory, and the name in it that leads to the file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    dir: WatchDescriptor,
    name: OsString,
}

/// What the kernel says has happened.
#[derive(Debug, Default)]
struct Stirred {
    /// It has lost count, or that is not asked.
    everything: bool,
    events: Vec<InotifyEvent>,
}

impl Stirred {
    /// Whether it concerns who waits for this; where nothing could be watched, everything does.
    fn concerns(&self, place: Option<&Place>) -> bool {
        let Some(place) = place.filter(|_| !self.everything) else { return true };
        self.events.iter().any(|event| {
            event.wd == place.dir && event.name.as_ref().is_none_or(|name| *name == place.name)
        })
    }
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
    fn watch(&self, path: &Path) -> Option<Place> {
        let mut found = self.nearest(path);
        for _ in 0..WATCHED_AGAIN_MAX {
            // What leads to the file may have come before the directory above it was watched.
            let has_come = |below: &Path| below != path && below.exists();
            if !found.as_ref().is_some_and(|(below, _)| has_come(below)) {
                break;
            }
            found = self.nearest(path);
        }
        found.map(|(_, place)| place)
    }

    fn nearest<'a>(&self, path: &'a Path) -> Option<(&'a Path, Place)> {
        let inotify = self.inotify.as_ref()?;
        let flags = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_DELETE_SELF;
        path.ancestors().zip(path.ancestors().skip(1)).find_map(|(below, dir)| {
            let dir =
                if dir.as_os_str().is_empty() { OsStr::from_bytes(b".") } else { dir.as_os_str() };
            let name = below.file_name().unwrap_or_default().to_owned();
            let dir = inotify.add_watch(dir, flags).ok()?;
            Some((below, Place { dir, name }))
        })
    }

    pub(super) fn remove(&mut self, run: RunId, tells: Tells) {
        let Some(gone) = self.waits.remove(&(run, tells)) else { return };
        if let Some(place) = gone.watch {
            self.end(place.dir);
        }
    }

    /// Ends a watch that nobody needs any more.
    fn end(&self, watch: WatchDescriptor) {
        let is_it = |place: &Place| place.dir == watch;
        if self.waits.values().any(|wait| wait.watch.as_ref().is_some_and(is_it)) {
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

    /// The descriptor that has more to tell.
    pub(super) fn behind(&self) -> Option<i32> {
        let inotify = self.inotify.as_ref().filter(|_| self.is_behind)?;
        Some(inotify.as_fd().as_raw_fd())
    }

    /// The runs whose file is there now, of those to whose file something happened, or of all.
    pub(super) fn look(&mut self, everything: bool) -> Vec<(RunId, Tells)> {
        let mut stirred = self.stirred();
        stirred.everything |= everything;
        let of_stirred =
            self.waits.iter().filter(|(_, wait)| stirred.concerns(wait.watch.as_ref()));
        let pending: Vec<((RunId, Tells), PathBuf)> =
            of_stirred.map(|(run, wait)| (*run, wait.path.clone())).collect();
        // The directory may have come only now: watch before looking, so that nothing is missed.
        for (run, path) in &pending {
            let place = self.watch(path);
            let dir = place.as_ref().map(|place| place.dir);
            let wait = self.waits.get_mut(run);
            let before = wait.map(|wait| std::mem::replace(&mut wait.watch, place));
            if let Some(before) = before.flatten().filter(|before| Some(before.dir) != dir) {
                // It is farther up than what there is now, where others may be busy.
                self.end(before.dir);
            }
        }
        let is_there = |run: &(RunId, Tells)| self.waits.get(run).is_some_and(FileWait::is_there);
        pending.into_iter().map(|(run, _)| run).filter(is_there).collect()
    }

    /// What has happened since this was last asked.
    fn stirred(&mut self) -> Stirred {
        let mut stirred = Stirred::default();
        self.is_behind = false;
        let Some(inotify) = &self.inotify else { return stirred };
        let mut read = || match inotify.read_events() {
            Ok(events) => {
                let has_some = !events.is_empty();
                stirred.events.extend(events);
                has_some
            }
            Err(nix::errno::Errno::EAGAIN) => false,
            Err(errno) => {
                log::error!("cannot read what happened to files: {errno}");
                stirred.everything = true;
                false
            }
        };
        self.is_behind = (0..READS_AT_ONCE_MAX).all(|_| read());
        let lost = |event: &InotifyEvent| event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW);
        stirred.everything |= stirred.events.iter().any(lost);
        stirred
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
        assert!(waits.look(false).is_empty());
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
    fn what_happens_to_others_is_no_reason_to_look() {
        let dir = tempfile::tempdir().unwrap();
        let mut waits = FileWaits::default();
        let paths = [1, 2, 3].map(|run| dir.path().join(format!("ready{run}")));
        for (run, path) in (1..).map(RunId).zip(&paths) {
            waits.add(run, Tells::Ready, path.clone(), mark(path)).unwrap();
        }
        fs::write(&paths[1], "1").unwrap();
        let stirred = waits.stirred();
        let concerned: Vec<bool> =
            waits.waits.values().map(|wait| stirred.concerns(wait.watch.as_ref())).collect();
        assert_eq!(concerned, [false, true, false]);
        assert!(waits.look(false).is_empty(), "that was taken");
        assert_eq!(waits.look(true), [(RunId(2), Tells::Ready)]);
    }

    #[test]
    fn a_file_counts_only_when_it_is_new_or_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/down/ready");
        let mut waits = FileWaits::default();
        waits.add(RunId(1), Tells::Ready, path.clone(), mark(&path)).unwrap();
        assert!(waits.look(false).is_empty());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        assert!(waits.look(false).is_empty());
        fs::write(&path, "1").unwrap();
        assert_eq!(waits.look(false), [(RunId(1), Tells::Ready)]);
        waits.remove(RunId(1), Tells::Ready);
        waits.add(RunId(2), Tells::Ready, path.clone(), mark(&path)).unwrap();
        assert!(waits.look(false).is_empty(), "a file of an earlier run does not count");
    }
}
