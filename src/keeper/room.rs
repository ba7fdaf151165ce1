//! Descriptors where there are few of them. The FIFO of an instance stays open for as long as the
//! instance is known; its log is closed after each batch where it takes up what others need.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::RawFd;

use nix::sys::resource::{Resource, getrlimit};

use super::clock::now_ms;
use crate::model::InstanceId;

/// Descriptors that nothing keeps for long: for instructions, directories, the log that is being
/// written. The supervisor keeps more than that free, so that it starts none that we cannot read.
const SPARE: u64 = 8;
/// How long until what could not be opened is tried again, in milliseconds.
const RETRY_MS: u64 = 1_000;

/// How much room there is, and who waits for some.
#[derive(Debug)]
pub(super) struct Room {
    /// The lowest number that no descriptor can have.
    limit: u64,
    waiting: BTreeSet<InstanceId>,
    /// When those that wait are tried again.
    pub(super) retry_at: Option<u64>,
}

impl Room {
    pub(super) fn new() -> Self {
        let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft);
        Self { limit, waiting: BTreeSet::new(), retry_at: None }
    }

    /// Whether a descriptor may stay open: the lowest free number is given out, so that this one
    /// says how many are left.
    pub(super) fn has_for(&self, fd: RawFd) -> bool {
        u64::try_from(fd).is_ok_and(|fd| fd.saturating_add(SPARE) < self.limit)
    }

    /// Has an instance tried again later; whether it did not wait before.
    pub(super) fn wait(&mut self, id: &InstanceId) -> bool {
        self.retry_at = Some(now_ms() + RETRY_MS);
        self.waiting.insert(id.clone())
    }

    /// Something was closed: those that wait are tried at once.
    pub(super) fn is_made(&mut self) {
        if !self.waiting.is_empty() {
            self.retry_at = Some(now_ms());
        }
    }

    /// Those that are to be tried again now.
    pub(super) fn take_due(&mut self) -> BTreeSet<InstanceId> {
        if self.retry_at.is_none_or(|at| now_ms() < at) {
            return BTreeSet::new();
        }
        self.retry_at = None;
        self.waiting.clone()
    }

    /// An instance has what it needs, or needs it no more.
    pub(super) fn settle(&mut self, id: &InstanceId) {
        self.waiting.remove(id);
    }
}

/// Whether it failed for want of descriptors or memory.
pub(super) fn is_lack(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM))
}

/// For want of descriptors.
pub(super) fn lack() -> io::Error {
    io::Error::from_raw_os_error(libc::EMFILE)
}
