//! Records as they are written, by inotify(7): no timer, no polling.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};

use super::cursor::Cursor;
use super::{Each, LogsError, Merge, Query, start};

/// Most records that are given before a look at what else has changed.
const RECORDS_MAX: usize = 10_000;

/// A query that is followed.
struct Follower<'a> {
    query: &'a Query,
    inotify: Inotify,
    merge: Merge,
    /// For each cursor, the watch of its directory; `None` while there is none.
    watches: Vec<Option<WatchDescriptor>>,
    /// The cursors whose directories have changed.
    changed: BTreeSet<usize>,
}

/// Gives the wanted records and then those that come; see [`super::read`].
pub(super) fn follow(
    query: &Query,
    output: Option<BorrowedFd<'_>>,
    each: &mut Each<'_>,
) -> Result<(), LogsError> {
    let mut follower = Follower::new(query)?;
    loop {
        for index in std::mem::take(&mut follower.changed) {
            follower.merge.wake(index)?;
        }
        let mut is_more = true;
        for _ in 0..RECORDS_MAX {
            is_more = follower.merge.step(each)?;
            if !is_more {
                break;
            }
        }
        if !wait(&follower.inotify, output, is_more).map_err(|error| follower.error(error))? {
            return Ok(());
        }
        follower.take_events()?;
    }
}

impl<'a> Follower<'a> {
    fn new(query: &'a Query) -> Result<Self, LogsError> {
        let fail = |error: Errno| LogsError::Read { path: query.dir.clone(), error: error.into() };
        let flags = InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC;
        let inotify = Inotify::init(flags).map_err(fail)?;
        // Everything is watched before it is looked at, so that nothing comes in between.
        let mask =
            AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_ONLYDIR;
        inotify.add_watch(&query.dir, mask).map_err(fail)?;
        let names = query.present()?;
        let mut follower = Self {
            query,
            inotify,
            merge: Merge::new(Vec::new()),
            watches: Vec::new(),
            changed: BTreeSet::new(),
        };
        for name in &names {
            let watch = follower.watch(name)?;
            follower.watches.push(watch);
        }
        follower.merge = Merge::new(start(query, &names)?);
        follower.changed.extend(0..names.len());
        Ok(follower)
    }

    fn error(&self, error: io::Error) -> LogsError {
        LogsError::Read { path: self.query.dir.clone(), error }
    }

    /// Watches an instance's directory; `None` where it is gone already.
    fn watch(&self, name: &str) -> Result<Option<WatchDescriptor>, LogsError> {
        let mask = AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_ONLYDIR;
        match self.inotify.add_watch(&self.query.dir.join(name), mask) {
            Ok(watch) => Ok(Some(watch)),
            Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
            Err(error) => {
                Err(LogsError::Read { path: self.query.dir.join(name), error: error.into() })
            }
        }
    }

    fn take_events(&mut self) -> Result<(), LogsError> {
        loop {
            match self.inotify.read_events() {
                Ok(events) => {
                    for event in &events {
                        self.take_event(event)?;
                    }
                }
                Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(self.error(error.into())),
            }
        }
    }

    fn take_event(&mut self, event: &InotifyEvent) -> Result<(), LogsError> {
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            for name in self.query.present()? {
                self.appear(&name)?;
            }
            self.changed.extend(0..self.watches.len());
            return Ok(());
        }
        let index = self.watches.iter().position(|watch| *watch == Some(event.wd));
        if let Some(index) = index {
            self.changed.insert(index);
            if event.mask.contains(AddWatchFlags::IN_IGNORED)
                && let Some(watch) = self.watches.get_mut(index)
            {
                *watch = None;
            }
            return Ok(());
        }
        match event.name.as_ref().and_then(|name| name.to_str()) {
            Some(name) if event.mask.contains(AddWatchFlags::IN_ISDIR) => self.appear(name),
            Some(_) | None => Ok(()),
        }
    }

    /// Takes in an instance's directory that is new, or new again.
    fn appear(&mut self, name: &str) -> Result<(), LogsError> {
        if !self.query.wants(name) {
            return Ok(());
        }
        let watch = self.watch(name)?;
        let known = self.merge.cursors.iter().position(|cursor| cursor.instance() == name);
        let index = if let Some(index) = known {
            if let (Some(old), Some(cursor)) =
                (self.watches.get_mut(index), self.merge.cursors.get_mut(index))
                && *old != watch
            {
                cursor.forget_numbers();
                *old = watch;
            }
            index
        } else {
            self.merge.cursors.push(Cursor::at_begin(&self.query.dir, name, &self.query.select));
            self.watches.push(watch);
            self.watches.len().saturating_sub(1)
        };
        self.changed.insert(index);
        Ok(())
    }
}

/// Waits for an event, or only looks; false when the output has lost its reader.
fn wait(inotify: &Inotify, output: Option<BorrowedFd<'_>>, only_look: bool) -> io::Result<bool> {
    let mut fds = vec![PollFd::new(inotify.as_fd(), PollFlags::POLLIN)];
    // No event is asked for: an error is told anyway, and a pipe without a reader is one.
    fds.extend(output.map(|fd| PollFd::new(fd, PollFlags::empty())));
    let timeout = if only_look { PollTimeout::ZERO } else { PollTimeout::NONE };
    match poll(&mut fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(error) => return Err(error.into()),
    }
    let is_lost = fds.get(1).and_then(PollFd::revents).is_some_and(|events| !events.is_empty());
    Ok(!is_lost)
}
