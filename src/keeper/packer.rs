//! The compression of finished files: a thread of its own, so that no log waits for it.
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
use crate::logs::packed;
use crate::system;

/// Name of the file that grows beside a log while one is compressed, or was when a keeper was
/// killed: the next one overwrites it.
const ROOM: &str = ".packing";

/// What waits: each log once, however many of its files do.
#[derive(Debug, Default)]
struct Queue {
    logs: Mutex<BTreeSet<Finished>>,
    filled: Condvar,
}

/// Gives files to the thread.
#[derive(Debug, Default)]
pub(super) struct Packer(Option<Arc<Queue>>);

impl Packer {
    /// Has all finished files of a log compressed that are not.
    pub(super) fn pack(&mut self, log: Finished) {
        if self.0.is_none() {
            let queue = Arc::new(Queue::default());
            let theirs = Arc::clone(&queue);
            let begun = Builder::new().name("packer".to_owned()).spawn(move || work(&theirs));
            if let Err(error) = begun {
                log::warn!("cannot begin to compress logs: {error}");
                return;
            }
            self.0 = Some(queue);
        }
        if let Some(queue) = &self.0 {
            queue.logs.lock().unwrap_or_else(PoisonError::into_inner).insert(log);
            queue.filled.notify_one();
        }
    }
}

/// The thread.
fn work(queue: &Queue) {
    system::be_in_background();
    loop {
        let mut logs = queue.logs.lock().unwrap_or_else(PoisonError::into_inner);
        let log = loop {
            match logs.pop_first() {
                Some(log) => break log,
                None => logs = queue.filled.wait(logs).unwrap_or_else(PoisonError::into_inner),
            }
        };
        drop(logs);
        if let Err(error) = pack_all(&log) {
            log::warn!("cannot compress the log `{}`: {error}", log.path().display());
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
