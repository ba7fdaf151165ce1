//! Files that are waited for: one by which a run is ready, and one that names its main process.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

use super::inotify;
use crate::model::{Gather, RunId, Wall};

/// How often a file's directory is looked for again while directories come one after the other.
const WATCHED_AGAIN_MAX: usize = 16;
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

/// Who waits for a file, and for what.
type Waiter = (RunId, Tells);

/// Runs that wait for a file, and one inotify instance for all of them.
#[derive(Debug, Default)]
pub(super) struct FileWaits {
    inotify: Option<Inotify>,
    waits: BTreeMap<Waiter, FileWait>,
    /// The same by what is watched for them, so that nobody looks for what happens to others.
    by_place: BTreeMap<WatchDescriptor, BTreeMap<OsString, BTreeSet<Waiter>>>,
    /// Those for which nothing could be watched: they look at whatever happens.
    unplaced: BTreeSet<Waiter>,
    /// Whether more has happened than was taken at once.
    is_behind: bool,
}

#[derive(Debug)]
struct FileWait {
    path: PathBuf,
    before: Mark,
    place: Option<Place>,
}

/// What is watched for a file: a directory, and the name in it that leads to the file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    dir: WatchDescriptor,
    name: OsString,
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
        self.take((run, tells));
        let place = self.watch(&path);
        self.waits.insert((run, tells), FileWait { path, before, place: None });
        self.put((run, tells), place);
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
        let place = self.take((run, tells));
        self.waits.remove(&(run, tells));
        if let Some(place) = place {
            self.end(place.dir);
        }
    }

    /// Notes what is watched for one.
    fn put(&mut self, waiter: Waiter, place: Option<Place>) {
        let Some(wait) = self.waits.get_mut(&waiter) else { return };
        wait.place.clone_from(&place);
        match place {
            Some(Place { dir, name }) => {
                self.by_place.entry(dir).or_default().entry(name).or_default().insert(waiter);
            }
            None => {
                self.unplaced.insert(waiter);
            }
        }
    }

    /// Nothing is watched for one any more. Returns what was.
    fn take(&mut self, waiter: Waiter) -> Option<Place> {
        self.unplaced.remove(&waiter);
        let place = self.waits.get_mut(&waiter)?.place.take()?;
        if let Some(names) = self.by_place.get_mut(&place.dir) {
            if let Some(waiters) = names.get_mut(&place.name) {
                waiters.remove(&waiter);
                if waiters.is_empty() {
                    names.remove(&place.name);
                }
            }
            if names.is_empty() {
                self.by_place.remove(&place.dir);
            }
        }
        Some(place)
    }

    /// Ends a watch that nobody needs any more.
    fn end(&self, watch: WatchDescriptor) {
        if self.by_place.contains_key(&watch) {
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
    pub(super) fn look(&mut self, everything: bool) -> Vec<Waiter> {
        let stirred = self.stirred();
        let stirred = if everything { self.waits.keys().copied().gather() } else { stirred };
        // The directory may have come only now: watch before looking, so that nothing is missed.
        for waiter in &stirred {
            let Some(wait) = self.waits.get(waiter) else { continue };
            let place = self.watch(&wait.path);
            let dir = place.as_ref().map(|place| place.dir);
            let before = self.take(*waiter);
            self.put(*waiter, place);
            if let Some(before) = before.filter(|before| Some(before.dir) != dir) {
                // It is farther up than what there is now, where others may be busy.
                self.end(before.dir);
            }
        }
        let is_there = |waiter: &Waiter| self.waits.get(waiter).is_some_and(FileWait::is_there);
        stirred.into_iter().filter(is_there).collect()
    }

    /// Those whom it concerns what has happened since this was last asked.
    fn stirred(&mut self) -> BTreeSet<Waiter> {
        self.is_behind = false;
        let mut stirred = self.unplaced.clone();
        let Some(inotify) = &self.inotify else { return stirred };
        let told = inotify::read(inotify);
        self.is_behind = told.has_more;
        if told.is_lossy {
            return self.waits.keys().copied().collect();
        }
        for event in told.events {
            let Some(names) = self.by_place.get(&event.wd) else { continue };
            match event.name {
                Some(name) => stirred.extend(names.get(&name).into_iter().flatten()),
                // Of the directory itself.
                None => stirred.extend(names.values().flatten()),
            }
        }
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
        assert_eq!(waits.stirred(), BTreeSet::from([(RunId(2), Tells::Ready)]));
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

    #[test]
    fn what_was_waited_for_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let mut waits = FileWaits::default();
        for run in (1..=9).map(RunId) {
            // Three in each directory, of which one comes later, and two wait for one name.
            let path = dir.path().join(format!("{}/ready{}", run.0 % 3, run.0 % 2));
            waits.add(run, Tells::Ready, path.clone(), None).unwrap();
            if run.0 == 5 {
                fs::create_dir(path.parent().unwrap()).unwrap();
            }
        }
        waits.look(false);
        assert_eq!(waits.by_place.values().flat_map(BTreeMap::values).flatten().count(), 9);
        fs::write(dir.path().join("2/ready1"), "").unwrap();
        assert_eq!(waits.look(false), [(RunId(5), Tells::Ready)]);
        for run in (1..=9).map(RunId) {
            waits.remove(run, Tells::Ready);
        }
        assert!(waits.by_place.is_empty() && waits.unplaced.is_empty() && waits.waits.is_empty());
    }
}
