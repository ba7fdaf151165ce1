//! What is done with finished files: they are compressed, and kept within a [`Quota`]. A thread of its
//! own does it, so that no log waits for it.
//!
//! It begins with the first file and sleeps when there is none. It has the lowest priority, and
//! needs the memory of one piece of a file. When the keeper dies it dies too, wherever it is: a
//! finished file is replaced at once or not at all, and one that was not is found by the next
//! keeper. What cannot be compressed stays as it is, and is tried again with the next file.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::Builder;

use super::place::Finished;
use super::quota::Quota;
use crate::logs::packed;
use crate::system;

/// Name of the file that grows beside a log while one is compressed, or was when a keeper was
/// killed: the next one overwrites it.
const ROOM: &str = ".packing";

/// What waits.
#[derive(Debug, Default)]
struct Work {
    /// Logs with files to be compressed: each once, however many of its files are.
    logs: BTreeSet<Finished>,
    /// Whether there is a new file that may be too much.
    is_more: bool,
}

#[derive(Debug)]
struct Queue {
    work: Mutex<Work>,
    filled: Condvar,
    quota: Option<Quota>,
}

/// Gives files to the thread.
#[derive(Debug)]
pub(super) struct Packer {
    quota: Option<Quota>,
    queue: Option<Arc<Queue>>,
}

impl Packer {
    /// With the directory of logs and the most bytes of finished files there, where there is a limit.
    pub(super) fn new(quota: Option<(PathBuf, u64)>) -> Self {
        let quota = quota.map(|(dir, bytes)| Quota { dir, bytes });
        let mut packer = Self { quota, queue: None };
        packer.look_at_quota();
        packer
    }

    /// Has all finished files of a log compressed that are not.
    pub(super) fn pack(&mut self, log: Finished) {
        self.tell(|work| {
            work.logs.insert(log);
        });
    }

    /// Has the oldest files of all logs removed where they are too much.
    pub(super) fn look_at_quota(&mut self) {
        if self.quota.is_some() {
            self.tell(|work| work.is_more = true);
        }
    }

    fn tell(&mut self, change: impl FnOnce(&mut Work)) {
        if self.queue.is_none() {
            let (work, filled) = (Mutex::default(), Condvar::new());
            let queue = Arc::new(Queue { work, filled, quota: self.quota.clone() });
            let theirs = Arc::clone(&queue);
            let begun = Builder::new().name("packer".to_owned()).spawn(move || serve(&theirs));
            if let Err(error) = begun {
                log::warn!("cannot begin to look after finished logs: {error}");
                return;
            }
            self.queue = Some(queue);
        }
        if let Some(queue) = &self.queue {
            change(&mut queue.work.lock().unwrap_or_else(PoisonError::into_inner));
            queue.filled.notify_one();
        }
    }
}

/// The thread.
fn serve(queue: &Queue) {
    system::be_in_background();
    loop {
        let work = queue.work.lock().unwrap_or_else(PoisonError::into_inner);
        let is_idle = |work: &mut Work| work.logs.is_empty() && !work.is_more;
        let waited = queue.filled.wait_while(work, is_idle);
        let mut work = waited.unwrap_or_else(PoisonError::into_inner);
        let (log, is_more) = (work.logs.pop_first(), std::mem::take(&mut work.is_more));
        drop(work);
        if let Some(log) = log
            && let Err(error) = pack_all(&log)
        {
            log::warn!("cannot compress the log `{}`: {error}", log.path().display());
        }
        if let Some(quota) = queue.quota.as_ref().filter(|_| is_more)
            && let Err(error) = quota.keep()
        {
            log::warn!("cannot remove old logs in `{}`: {error}", quota.dir.display());
        }
    }
}

/// Compresses the finished files of a log, the oldest first.
fn pack_all(log: &Finished) -> io::Result<()> {
    let room = room(log.path());
    for number in log.numbers()? {
        let finished = log.path_of(number);
        if !finished.exists() {
            continue;
        }
        match packed::replace(&finished, &room) {
            // It was removed meanwhile: it was too old, or one too many.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            replaced => replaced?,
        }
    }
    Ok(())
}

/// Where the compressed form of a log's file grows.
fn room(log: &Path) -> PathBuf {
    let mut name = log.file_name().unwrap_or_default().to_owned();
    name.push(ROOM);
    log.with_file_name(name)
}
