//! Stands by the control socket and wakes the loop when somebody takes it away: without the socket no
//! client could.

use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

/// What watches the file of the socket, and nothing else in its directory.
#[derive(Debug)]
pub(super) struct Sentinel {
    /// Where there is none, the file is missed when anything else wakes the loop.
    inotify: Option<Inotify>,
}

impl Sentinel {
    /// Watches this file, and has `token` told when anything happens to it.
    pub(super) fn new(path: &Path, registry: &Registry, token: Token) -> Self {
        let made = Self::watch(path, registry, token);
        let inotify = made.map_err(|error| {
            log::warn!("cannot watch {}: {error}", path.display());
        });
        Self { inotify: inotify.ok() }
    }

    fn watch(path: &Path, registry: &Registry, token: Token) -> std::io::Result<Inotify> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        // A name that goes is a change of the file's count of names.
        let flags = AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_DONT_FOLLOW;
        inotify.add_watch(path, flags)?;
        let fd = inotify.as_fd().as_raw_fd();
        registry.register(&mut SourceFd(&fd), token, Interest::READABLE)?;
        Ok(inotify)
    }

    /// Takes what it has told: the loop looks for itself.
    pub(super) fn take(&self) {
        let Some(inotify) = &self.inotify else { return };
        loop {
            match inotify.read_events() {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    }
}
