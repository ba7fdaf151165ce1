//! What changes in the directory of instructions and FIFOs, by inotify(7).

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::model::InstanceId;
use crate::system::instruction::instance_of;

/// What happened.
#[derive(Debug)]
pub(super) struct Changes {
    /// The instances whose files changed, or all that there are where events were lost.
    pub(super) instances: BTreeSet<InstanceId>,
    /// The directory itself is gone.
    pub(super) is_gone: bool,
    /// Events were lost: instances that have no file any more are not in the set.
    pub(super) is_all: bool,
}

/// The directory under watch.
#[derive(Debug)]
pub(super) struct Watch {
    dir: PathBuf,
    inotify: Inotify,
}

impl Watch {
    pub(super) fn new(dir: &Path, registry: &Registry, token: Token) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        // Not IN_MODIFY and IN_CLOSE_WRITE: the FIFOs' own traffic is none of ours.
        let flags = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        inotify.add_watch(dir, flags)?;
        let fd = inotify.as_fd().as_raw_fd();
        registry.register(&mut SourceFd(&fd), token, Interest::READABLE)?;
        Ok(Self { dir: dir.to_owned(), inotify })
    }

    /// The instances that have files now.
    pub(super) fn present(&self) -> io::Result<BTreeSet<InstanceId>> {
        let mut found = BTreeSet::new();
        for entry in fs::read_dir(&self.dir)? {
            found.extend(instance_of(&entry?.file_name()));
        }
        Ok(found)
    }

    /// Takes all events that are there.
    pub(super) fn take(&self) -> io::Result<Changes> {
        let mut changes = Changes { instances: BTreeSet::new(), is_gone: false, is_all: false };
        let gone = AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_IGNORED
            | AddWatchFlags::IN_UNMOUNT;
        loop {
            let events = match self.inotify.read_events() {
                Ok(events) => events,
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            for event in events {
                changes.is_gone |= event.mask.intersects(gone);
                changes.is_all |= event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW);
                changes.instances.extend(event.name.as_deref().and_then(instance_of));
            }
        }
        if changes.is_all && !changes.is_gone {
            changes.instances = self.present()?;
        }
        Ok(changes)
    }
}
