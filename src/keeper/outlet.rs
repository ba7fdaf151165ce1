//! Output that goes elsewhere than into a file: queues in front of the threads that carry it
//! ([`courier`](super::courier)), one for each destination.
//!
//! - The keeper's loop never waits for a destination: it puts records into a queue, of bounded length
//!   for each instance and in all. An instance whose share is full is not read until there is room
//!   again, so that it slows its own writer and no other.
//! - A destination that takes nothing for some time costs records, with a count, and no more waits: see
//!   [`courier`](super::courier). The count is told with the next record.
//! - Where no thread can be made it is the same: a sandbox may forbid them. It is tried again now and then.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::Builder;
use std::time::Duration;

use mio::Waker;

use super::clock::now_ms;
use super::courier;
use crate::model::SyslogAddress;
use crate::system;

/// Most bytes of one instance in a queue before it is not read any more: the records of a turn come on
/// top.
const SHARE_BYTES_MAX: usize = 128 * 1024;
/// Most bytes in a queue before nobody is read any more who writes to it.
const QUEUE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How long until it is tried again to make a thread, in milliseconds.
const BEGIN_AGAIN_MS: u64 = 1_000;
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
    /// There is no thread, or not any more.
    is_over: bool,
    /// Where none could be made: it is not tried before, in milliseconds.
    begin_at: Option<u64>,
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
struct Tap {
    queue: Arc<Queue>,
    to: Address,
    begin: Begin,
}

impl Tap {
    /// Begins the thread where there is none and it is time to try; whether there is one.
    fn has_thread(&self) -> bool {
        match self.queue.lock().begin_at {
            None => return true,
            Some(begin_at) if now_ms() < begin_at => return false,
            Some(_) => {}
        }
        self.queue.lock().is_over = false;
        let begun = (self.begin)(&self.queue, &self.to);
        let mut state = self.queue.lock();
        match begun {
            Ok(()) => state.begin_at = None,
            Err(error) => {
                log::error!(
                    "cannot begin to send logs: {error}; they are dropped until this works"
                );
                state.reason =
                    format!("cannot begin to send: {}", system::plain(&error.to_string()));
                state.is_over = true;
                state.begin_at = Some(now_ms() + BEGIN_AGAIN_MS);
            }
        }
        state.begin_at.is_none()
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.queue.close();
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
        let mut state = self.tap.queue.lock();
        let queued = state.shares.get(&self.share).map_or(0, |share| share.queued);
        let is_full = queued >= SHARE_BYTES_MAX || state.queued >= QUEUE_BYTES_MAX;
        state.is_awaited |= is_full;
        is_full
    }

    /// Queues records. Where there is no thread to carry them they are lost.
    pub(super) fn push(&self, bytes: &[u8], pieces: Vec<Piece>) {
        let has_thread = self.tap.has_thread();
        let mut state = self.tap.queue.lock();
        if !has_thread {
            let content = pieces.iter().map(|piece| piece.content as u64).sum::<u64>();
            state.shares.entry(self.share).or_default().lost += content;
            return;
        }
        state.queued += bytes.len();
        state.shares.entry(self.share).or_default().queued += bytes.len();
        state.chunks.push_back(Chunk { share: self.share, bytes: bytes.to_vec(), pieces });
        self.tap.queue.changed.notify_all();
    }

    /// How many bytes of output were lost since this was asked last, and why.
    pub(super) fn take_lost(&self) -> Option<(u64, String)> {
        let mut state = self.tap.queue.lock();
        let share = state.shares.get_mut(&self.share)?;
        let lost = std::mem::take(&mut share.lost);
        (lost > 0).then(|| (lost, state.reason.clone()))
    }

    /// Whether something of the instance is queued or on its way.
    pub(super) fn is_busy(&self) -> bool {
        self.tap.queue.lock().shares.get(&self.share).is_some_and(|share| share.queued > 0)
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        self.tap.queue.lock().shares.remove(&self.share);
    }
}

/// All destinations.
#[derive(Debug)]
pub(super) struct Outlets {
    taps: BTreeMap<Address, Weak<Tap>>,
    queues: Vec<Arc<Queue>>,
    waker: Arc<Waker>,
    begin: Begin,
}

/// Begins a queue's thread.
type Begin = fn(&Arc<Queue>, &Address) -> io::Result<()>;

impl Outlets {
    pub(super) fn new(waker: Waker) -> Self {
        let (taps, queues) = (BTreeMap::new(), Vec::new());
        Self { taps, queues, waker: Arc::new(waker), begin: begin_thread }
    }

    /// A way to a destination. The first one to it begins its thread.
    pub(super) fn open(&mut self, address: &Address) -> Outlet {
        let known = self.taps.get(address).and_then(Weak::upgrade);
        let tap = known.unwrap_or_else(|| {
            let (queue, to) = (self.queue(), address.clone());
            let tap = Arc::new(Tap { queue, to, begin: self.begin });
            tap.has_thread();
            self.taps.insert(address.clone(), Arc::downgrade(&tap));
            tap
        });
        let mut state = tap.queue.lock();
        let share = state.next_share;
        state.next_share = share.wrapping_add(1);
        state.shares.insert(share, Share::default());
        drop(state);
        Outlet { tap, share }
    }

    fn queue(&mut self) -> Arc<Queue> {
        self.taps.retain(|_, tap| tap.strong_count() > 0);
        // What nobody else has will have no thread any more.
        self.queues.retain(|queue| !queue.lock().is_over || Arc::strong_count(queue) > 1);
        let state = State { is_over: true, begin_at: Some(0), ..State::default() };
        let queue = Arc::new(Queue {
            state: Mutex::new(state),
            changed: Condvar::new(),
            waker: Arc::clone(&self.waker),
        });
        self.queues.push(Arc::clone(&queue));
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

fn begin_thread(queue: &Arc<Queue>, to: &Address) -> io::Result<()> {
    let (theirs, to) = (Arc::clone(queue), to.clone());
    let serve = move || {
        courier::work(&to, &theirs);
        theirs.end();
    };
    Builder::new().name("courier".to_owned()).spawn(serve).map(drop)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::os::unix::net::UnixDatagram;

    use mio::{Poll, Token};

    use super::*;

    thread_local! {
        /// Whether threads can be made.
        static HAS_THREADS: Cell<bool> = const { Cell::new(false) };
    }

    fn begin(queue: &Arc<Queue>, to: &Address) -> io::Result<()> {
        if HAS_THREADS.get() {
            begin_thread(queue, to)
        } else {
            Err(io::ErrorKind::PermissionDenied.into())
        }
    }

    #[test]
    fn without_a_thread_nobody_is_held_up_and_what_is_lost_is_told_when_there_is_one() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("socket");
        let socket = UnixDatagram::bind(&path).unwrap();
        let poll = Poll::new().unwrap();
        let mut outlets =
            Outlets { begin, ..Outlets::new(Waker::new(poll.registry(), Token(0)).unwrap()) };
        let outlet = outlets.open(&Address::Syslog(SyslogAddress::Unix(path.into())));
        let piece = || vec![Piece { end: 100_000, content: 99_000 }];
        for _ in 0..200 {
            outlet.push(&vec![b'x'; 100_000], piece());
            assert!(!outlet.is_full());
        }
        assert_eq!(outlet.take_lost().map(|(bytes, _)| bytes), Some(200 * 99_000));
        assert_eq!(outlet.take_lost(), None);
        // It is tried again, though not at once.
        HAS_THREADS.set(true);
        let start = now_ms();
        let mut buffer = [0; 16];
        socket.set_nonblocking(true).unwrap();
        while socket.recv(&mut buffer).is_err() {
            assert!(now_ms() < start + 10_000);
            outlet.push(b"line", vec![Piece { end: 4, content: 4 }]);
        }
        assert_eq!(&buffer[..4], b"line");
        drop(outlet);
        outlets.finish();
    }
}
