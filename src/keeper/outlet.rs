//! Output that goes elsewhere than into a file: queues in front of the threads that carry it
//! ([`courier`](super::courier)), one for each destination.
//!
//! - The keeper's loop never waits for a destination: it puts records into a queue, of bounded length
//!   for each instance and in all. An instance whose share is full is not read until there is room
//!   again, so that it slows its own writer and no other.
//! - A destination that takes nothing for some time costs records, with a count, and no more waits: see
//!   [`courier`](super::courier). The count is told with the next record.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::Builder;
use std::time::Duration;

use mio::Waker;

use super::courier;
use super::sink::now_ms;
use crate::model::SyslogAddress;

/// Most bytes of one instance in a queue before it is not read any more: the records of a turn come on
/// top.
const SHARE_BYTES_MAX: usize = 128 * 1024;
/// Most bytes in a queue before nobody is read any more who writes to it.
const QUEUE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How long the end of the keeper waits for what is queued, in milliseconds.
const LINGER_MS: u64 = 3_000;

/// Where records go.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Address {
    /// A syslog daemon.
    Syslog(SyslogAddress),
    /// The standard input of a unit: its name, and the FIFO.
    Input(String, PathBuf),
}

/// A record, or what of it is one message.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    /// Where it ends.
    pub(super) end: usize,
    /// How many bytes of output are in it.
    pub(super) content: usize,
}

/// Records of one instance.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    share: u64,
    pub(super) bytes: Vec<u8>,
    pub(super) pieces: Vec<Piece>,
}

/// What is known of an instance.
#[derive(Debug, Default)]
struct Share {
    /// How many bytes of it are queued or on their way.
    queued: usize,
    /// How many bytes of its output were lost, since this was told last.
    lost: u64,
}

#[derive(Debug, Default)]
struct State {
    chunks: VecDeque<Chunk>,
    queued: usize,
    shares: BTreeMap<u64, Share>,
    next_share: u64,
    /// Whether somebody is not read.
    is_awaited: bool,
    /// Why something was lost last.
    reason: String,
    /// Nobody puts anything in any more.
    is_closed: bool,
    /// The thread has ended.
    is_over: bool,
}

/// One destination's queue.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    waker: Arc<Waker>,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For the thread: the next records; `None` when there are none and none will come. Blocking.
    pub(super) fn next(&self) -> Option<Chunk> {
        let mut state = self.lock();
        loop {
            if let Some(chunk) = state.chunks.pop_front() {
                return Some(chunk);
            }
            if state.is_closed {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// For the thread: it is done with records, of whose output so many bytes were lost, and why.
    pub(super) fn done(&self, chunk: &Chunk, lost: Option<(u64, &str)>) {
        let mut state = self.lock();
        state.queued = state.queued.saturating_sub(chunk.bytes.len());
        if let Some(share) = state.shares.get_mut(&chunk.share) {
            share.queued = share.queued.saturating_sub(chunk.bytes.len());
            share.lost += lost.map_or(0, |(bytes, _)| bytes);
        }
        if let Some((_, reason)) = lost {
            reason.clone_into(&mut state.reason);
        }
        let has_room = state.queued <= QUEUE_BYTES_MAX / 2;
        if has_room && std::mem::take(&mut state.is_awaited) {
            drop(state);
            if let Err(error) = self.waker.wake() {
                log::error!("cannot wake the log keeper: {error}");
            }
        }
    }

    /// For the thread: waits for so long, or until the keeper is about to end; whether it is.
    pub(super) fn pause(&self, time: Duration) -> bool {
        let state = self.lock();
        let paused = self.changed.wait_timeout_while(state, time, |state| !state.is_closed);
        paused.unwrap_or_else(PoisonError::into_inner).0.is_closed
    }

    fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }

    fn end(&self) {
        self.lock().is_over = true;
        self.changed.notify_all();
    }

    /// Waits until the thread has ended; how many bytes it left.
    fn wait_for_end(&self, until: u64) -> usize {
        let left = Duration::from_millis(until.saturating_sub(now_ms()));
        let ended = self.changed.wait_timeout_while(self.lock(), left, |state| !state.is_over);
        let (state, _) = ended.unwrap_or_else(PoisonError::into_inner);
        if state.is_over { 0 } else { state.queued }
    }
}

/// The keeper's end of a queue: without it the thread ends.
#[derive(Debug)]
struct Tap(Arc<Queue>);

impl Drop for Tap {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// One instance's way to a destination.
#[derive(Debug)]
pub(super) struct Outlet {
    tap: Arc<Tap>,
    share: u64,
}

impl Outlet {
    /// Whether no more is to be read of the instance. If so, the keeper is woken when that may have
    /// changed.
    pub(super) fn is_full(&self) -> bool {
        let mut state = self.tap.0.lock();
        let queued = state.shares.get(&self.share).map_or(0, |share| share.queued);
        let is_full = queued >= SHARE_BYTES_MAX || state.queued >= QUEUE_BYTES_MAX;
        state.is_awaited |= is_full;
        is_full
    }

    /// Queues records.
    pub(super) fn push(&self, bytes: &[u8], pieces: Vec<Piece>) {
        let mut state = self.tap.0.lock();
        state.queued += bytes.len();
        state.shares.entry(self.share).or_default().queued += bytes.len();
        state.chunks.push_back(Chunk { share: self.share, bytes: bytes.to_vec(), pieces });
        self.tap.0.changed.notify_all();
    }

    /// How many bytes of output were lost since this was asked last, and why.
    pub(super) fn take_lost(&self) -> Option<(u64, String)> {
        let mut state = self.tap.0.lock();
        let share = state.shares.get_mut(&self.share)?;
        let lost = std::mem::take(&mut share.lost);
        (lost > 0).then(|| (lost, state.reason.clone()))
    }

    /// Whether something of the instance is queued or on its way.
    pub(super) fn is_busy(&self) -> bool {
        self.tap.0.lock().shares.get(&self.share).is_some_and(|share| share.queued > 0)
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        self.tap.0.lock().shares.remove(&self.share);
    }
}

/// All destinations.
#[derive(Debug)]
pub(super) struct Outlets {
    taps: BTreeMap<Address, Weak<Tap>>,
    queues: Vec<Arc<Queue>>,
    waker: Arc<Waker>,
}

impl Outlets {
    pub(super) fn new(waker: Waker) -> Self {
        Self { taps: BTreeMap::new(), queues: Vec::new(), waker: Arc::new(waker) }
    }

    /// A way to a destination. The first one to it begins its thread.
    pub(super) fn open(&mut self, address: &Address) -> Outlet {
        let known = self.taps.get(address).and_then(Weak::upgrade);
        let tap = known.unwrap_or_else(|| {
            let tap = Arc::new(Tap(self.begin(address)));
            self.taps.insert(address.clone(), Arc::downgrade(&tap));
            tap
        });
        let mut state = tap.0.lock();
        let share = state.next_share;
        state.next_share = share.wrapping_add(1);
        state.shares.insert(share, Share::default());
        drop(state);
        Outlet { tap, share }
    }

    fn begin(&mut self, address: &Address) -> Arc<Queue> {
        self.taps.retain(|_, tap| tap.strong_count() > 0);
        self.queues.retain(|queue| !queue.lock().is_over);
        let queue = Arc::new(Queue {
            state: Mutex::default(),
            changed: Condvar::new(),
            waker: Arc::clone(&self.waker),
        });
        let theirs = Arc::clone(&queue);
        let to = address.clone();
        let begun = Builder::new().name("courier".to_owned()).spawn(move || {
            courier::work(&to, &theirs);
            theirs.end();
        });
        match begun {
            Ok(_) => self.queues.push(Arc::clone(&queue)),
            Err(error) => log::error!("cannot begin to send logs: {error}"),
        }
        queue
    }

    /// Waits until all that is queued is sent, when no instance is left that could add to it, but not
    /// for ever.
    pub(super) fn finish(&self) {
        let until = now_ms() + LINGER_MS;
        let left: usize = self.queues.iter().map(|queue| queue.wait_for_end(until)).sum();
        if left > 0 {
            log::error!("{left} bytes of logs were not sent before the end");
        }
    }
}
