//! What inotify(7) has to tell, a part at a time: where files change faster than one reads, all else would
//! wait.

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, Inotify, InotifyEvent};

/// How often it is read before others have their turn; each read gives 4 KiB of events at most.
const READS_AT_ONCE_MAX: usize = 16;

/// A part of what has happened.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) events: Vec<InotifyEvent>,
    /// Whether the kernel lost count: anything may have happened.
    pub(super) is_lossy: bool,
    /// Whether there may be more.
    pub(super) has_more: bool,
}

/// Reads what has happened, as far as that is taken at once. It does not block where `inotify` does not.
pub(super) fn read(inotify: &Inotify) -> Told {
    let mut told = Told { has_more: true, ..Told::default() };
    for _ in 0..READS_AT_ONCE_MAX {
        match inotify.read_events() {
            Ok(events) => told.events.extend(events),
            Err(Errno::EINTR) => {}
            Err(errno) => {
                if errno != Errno::EAGAIN {
                    log::error!("cannot read what happened to files: {}", errno.desc());
                    told.is_lossy = true;
                }
                told.has_more = false;
                break;
            }
        }
    }
    let is_loss = |event: &InotifyEvent| event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW);
    told.is_lossy |= told.events.iter().any(is_loss);
    told
}
