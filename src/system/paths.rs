//! Files and trees under watch, by inotify(7): one instance for all runs.
//!
//! A directory is watched, not a file: what an editor puts in a file's place is seen too. Where a
//! path does not exist, the nearest directory above it is watched until it does. Links on the way to a
//! path are watched as such: one that is turned is a change, and what it leads to now is watched then.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

use super::inotify;
use crate::model::RunId;

/// Most directories that are watched for one run; what is deeper or later in a larger tree is not.
/// The kernel's own limit for all of a user's watches is often 8,192 or more.
const DIRS_MAX: usize = 8_192;

/// How often the directory above a path is looked for again because a nearer one came meanwhile.
const WATCHED_AGAIN_MAX: usize = 64;

/// Most links that follow one another; the kernel follows no more.
const LINKS_MAX: usize = 40;

/// All that is watched.
#[derive(Debug)]
pub(super) struct Paths {
    inotify: Inotify,
    dirs: BTreeMap<WatchDescriptor, Dir>,
    runs: BTreeMap<RunId, Watched>,
}

#[derive(Debug)]
struct Dir {
    path: PathBuf,
    runs: BTreeSet<RunId>,
}

#[derive(Debug)]
struct Watched {
    /// As they were asked for.
    given: Vec<PathBuf>,
    /// The same without links and dots, and the links on the way.
    roots: Vec<PathBuf>,
    dirs: BTreeSet<WatchDescriptor>,
    /// Set when there was no room for a directory, so that it is said once.
    is_partial: bool,
}

impl Paths {
    pub(super) fn new() -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        Ok(Self { inotify, dirs: BTreeMap::new(), runs: BTreeMap::new() })
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }

    /// Watches these paths for a run, and no others.
    pub(super) fn watch(&mut self, run: RunId, paths: &[PathBuf]) {
        self.remove(run);
        let mut roots: Vec<PathBuf> = paths.iter().flat_map(|path| links(path)).collect();
        roots.extend(paths.iter().map(|path| real(path)));
        roots.sort_unstable();
        roots.dedup();
        let (given, dirs) = (paths.to_vec(), BTreeSet::new());
        let watched = Watched { given, roots: roots.clone(), dirs, is_partial: false };
        self.runs.insert(run, watched);
        for root in roots {
            self.watch_root(run, &root);
        }
    }

    /// Ends what was watched for a run.
    pub(super) fn remove(&mut self, run: RunId) {
        let Some(watched) = self.runs.remove(&run) else { return };
        for key in watched.dirs {
            let Some(dir) = self.dirs.get_mut(&key) else { continue };
            dir.runs.remove(&run);
            if dir.runs.is_empty()
                && let Some(gone) = self.dirs.remove(&key)
                && let Err(error) = self.inotify.rm_watch(key)
            {
                log::debug!("cannot end the watch on {}: {error}", gone.path.display());
            }
        }
    }

    /// The nearest directory above a path, and the tree below it where it is one.
    fn watch_root(&mut self, run: RunId, root: &Path) {
        let nearest = || root.ancestors().skip(1).find(|dir| dir.is_dir());
        let mut above = nearest();
        for _ in 0..WATCHED_AGAIN_MAX {
            if let Some(dir) = above {
                self.watch_dir(run, dir);
            }
            // A nearer one may have come before that one was watched.
            let before = std::mem::replace(&mut above, nearest());
            if before == above {
                break;
            }
        }
        self.watch_tree(run, root);
    }

    /// A directory with all below it. Links are not followed: a loop of them has no end.
    fn watch_tree(&mut self, run: RunId, top: &Path) {
        let mut open = vec![top.to_owned()];
        while let Some(path) = open.pop() {
            if !fs::symlink_metadata(&path).is_ok_and(|file| file.is_dir())
                || !self.watch_dir(run, &path)
            {
                continue;
            }
            // Watched before it is read: what comes meanwhile is told.
            let Ok(entries) = fs::read_dir(&path) else { continue };
            let is_dir = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
            open.extend(entries.flatten().filter(is_dir).map(|entry| entry.path()));
        }
    }

    /// Returns whether it is watched now.
    fn watch_dir(&mut self, run: RunId, path: &Path) -> bool {
        let flags = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR
            | AddWatchFlags::IN_DONT_FOLLOW;
        let Some(watched) = self.runs.get_mut(&run) else { return false };
        let has_room = watched.dirs.len() < DIRS_MAX;
        let added = if has_room { self.inotify.add_watch(path, flags) } else { Err(Errno::ENOSPC) };
        let key = match added {
            Ok(key) => key,
            // It is gone again, and that is no error.
            Err(Errno::ENOENT | Errno::ENOTDIR) => return false,
            Err(errno) => {
                if !std::mem::replace(&mut watched.is_partial, true) {
                    log::warn!("cannot watch `{}`: {}", path.display(), errno.desc());
                }
                return false;
            }
        };
        watched.dirs.insert(key);
        let new = || Dir { path: path.to_owned(), runs: BTreeSet::new() };
        let dir = self.dirs.entry(key).or_insert_with(new);
        path.clone_into(&mut dir.path);
        dir.runs.insert(run);
        true
    }

    /// The runs for which something changed, and whether there may be more to tell.
    pub(super) fn look(&mut self) -> (BTreeSet<RunId>, bool) {
        let told = inotify::read(&self.inotify);
        let mut touched = BTreeSet::new();
        if told.is_lossy {
            // Nobody knows what was lost: everything may have changed.
            touched.extend(self.runs.keys().copied());
            for run in &touched {
                self.watch_anew(*run);
            }
            return (touched, told.has_more);
        }
        for event in told.events {
            let name = event.name.unwrap_or_default();
            self.happened(event.wd, event.mask, Path::new(&name), &mut touched);
        }
        (touched, told.has_more)
    }

    fn watch_anew(&mut self, run: RunId) {
        if let Some(given) = self.runs.get(&run).map(|watched| watched.given.clone()) {
            self.watch(run, &given);
        }
    }

    fn happened(
        &mut self,
        key: WatchDescriptor,
        mask: AddWatchFlags,
        name: &Path,
        touched: &mut BTreeSet<RunId>,
    ) {
        let Some(dir) = self.dirs.get(&key) else { return };
        let path = if name.as_os_str().is_empty() { dir.path.clone() } else { dir.path.join(name) };
        let runs: Vec<RunId> = dir.runs.iter().copied().collect();
        let is_gone = mask.contains(AddWatchFlags::IN_IGNORED);
        if is_gone {
            self.dirs.remove(&key);
        }
        if mask.contains(AddWatchFlags::IN_MOVE_SELF) {
            // It has another name now, with all below it, and another one may be in its place.
            for run in &runs {
                self.watch_anew(*run);
            }
            touched.extend(runs);
            return;
        }
        let is_new = mask.intersects(AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO);
        for run in runs {
            let Some(watched) = self.runs.get_mut(&run) else { continue };
            if is_gone {
                watched.dirs.remove(&key);
            }
            let roots: Vec<PathBuf> =
                watched.roots.iter().filter(|root| related(root, &path)).cloned().collect();
            if is_new && path.is_symlink() && roots.contains(&path) {
                self.watch_anew(run);
                touched.insert(run);
                continue;
            }
            for root in &roots {
                // What it waits for may be there now, nearer or farther than before.
                if is_gone || root.starts_with(&path) {
                    self.watch_root(run, root);
                } else if is_new {
                    self.watch_tree(run, &path);
                }
            }
            // What came with a directory above it came before anybody watched: one looks after that.
            let came = |root: &PathBuf| is_new && root.starts_with(&path) && root.exists();
            if roots.iter().any(|root| path.starts_with(root) || came(root)) {
                touched.insert(run);
            }
        }
    }
}

/// The links on the way to a path, each in a directory without links.
fn links(path: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    for part in path.ancestors() {
        let mut at = part.to_owned();
        while at.is_symlink() && found.len() < LINKS_MAX {
            let (Some(dir), Some(name)) = (at.parent(), at.file_name()) else { break };
            let dir = real(dir);
            let Ok(leads_to) = fs::read_link(&at) else { break };
            found.push(dir.join(name));
            at = dir.join(leads_to);
        }
    }
    found
}

/// A path without links and dots as far as it exists: names in events are those of directories.
fn real(path: &Path) -> PathBuf {
    let known = path.ancestors().find_map(|dir| Some((dir, fs::canonicalize(dir).ok()?)));
    match known.map(|(dir, real)| (path.strip_prefix(dir), real)) {
        Some((Ok(rest), real)) if rest.as_os_str().is_empty() => real,
        Some((Ok(rest), real)) => real.join(rest),
        Some((Err(_), _)) | None => path.to_owned(),
    }
}

/// Whether one of two paths is in the other.
fn related(root: &Path, path: &Path) -> bool {
    path.starts_with(root) || root.starts_with(path)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    #[test]
    fn where_files_change_without_end_others_have_their_turn() {
        let dir = tempfile::tempdir().unwrap();
        let mut paths = Paths::new().unwrap();
        paths.watch(RunId(1), &[dir.path().to_owned()]);
        // The same event twice in a row is told once.
        for file in ["a", "b"].iter().cycle().take(2_000) {
            fs::write(dir.path().join(file), "").unwrap();
        }
        let looks: Vec<bool> = std::iter::repeat_with(|| paths.look().1).take(8).collect();
        let parts = looks.iter().position(|has_more| !has_more).unwrap();
        assert!(parts > 0, "all of it was read at once");
    }

    #[test]
    fn what_the_kernel_could_not_keep_counts_as_a_change_of_everything() {
        let dir = tempfile::tempdir().unwrap();
        let mut paths = Paths::new().unwrap();
        let [busy, quiet] = ["busy", "quiet"].map(|name| dir.path().join(name));
        for (run, path) in [(RunId(1), &busy), (RunId(2), &quiet)] {
            fs::create_dir(path).unwrap();
            paths.watch(run, std::slice::from_ref(path));
        }
        let most = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
        for file in ["a", "b"].iter().cycle().take(most.trim().parse().unwrap()) {
            fs::write(busy.join(file), "").unwrap();
        }
        let mut touched = BTreeSet::new();
        while let (some, true) = paths.look() {
            touched.extend(some);
        }
        assert_eq!(touched, BTreeSet::from([RunId(1), RunId(2)]));
        fs::write(quiet.join("later"), "").unwrap();
        assert_eq!(paths.look().0, BTreeSet::from([RunId(2)]));
    }

    #[test]
    fn what_comes_with_the_directories_above_it_is_seen_however_fast_it_comes() {
        for round in 0..1_000u32 {
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("a/b/conf");
            let mut paths = Paths::new().unwrap();
            paths.watch(RunId(1), std::slice::from_ref(&file));
            thread::scope(|scope| {
                scope.spawn(|| {
                    fs::create_dir_all(file.parent().unwrap()).unwrap();
                    // In the midst of a look at what has come.
                    for _ in 0..(round % 400) * 15 {
                        std::hint::spin_loop();
                    }
                    fs::write(&file, "x").unwrap();
                });
                let mut is_told = false;
                while !is_told {
                    let mut descriptors = [PollFd::new(paths.as_fd(), PollFlags::POLLIN)];
                    let ready = poll(&mut descriptors, PollTimeout::from(10_000u16)).unwrap();
                    assert_eq!(ready, 1, "round {round}: it is there, and nothing is told");
                    is_told = paths.look().0.contains(&RunId(1));
                }
            });
        }
    }
}
