//! The thread that carries records to one destination, and may wait for it.
//!
//! A destination that is away, or takes nothing, is waited for, up to [`PATIENCE`] in all: meanwhile the
//! instances that write to it are not read. Then records are dropped and counted, and it is tried again
//! from time to time. A service is held up once, and not for good. When the keeper is about to end, it is
//! not waited for.
//!
//! What is sent is sent whole: a message, or a line, is not cut where a connection breaks.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::clock::now_ms;
use super::outlet::{Address, Chunk, Piece, Queue};
use crate::logs::segment::FileId;
use crate::model::SyslogAddress;
use crate::system::{self, fifo};

/// How long a destination that takes nothing is waited for before records are dropped.
const PATIENCE: Duration = Duration::from_millis(PATIENCE_MS);
const PATIENCE_MS: u64 = 5_000;
/// How long until a destination that failed is tried again, in milliseconds.
const RETRY_MS: u64 = 200;
/// The same once records are dropped.
const RETRY_LATER_MS: u64 = 1_000;
/// Longest wait inside one system call.
const STEP: Duration = Duration::from_millis(500);
/// Most bytes of messages that are put together for one write.
const STREAM_BYTES_MAX: usize = 64 * 1024;

/// Carries what is in a queue until nothing comes any more.
pub(super) fn work(to: &Address, queue: &Queue) {
    let mut courier = Courier::new(to);
    while let Some(chunk) = queue.next() {
        let lost = courier.deliver(&chunk, queue);
        let reason = courier.failing.as_ref().map_or("", |failing| failing.reason.as_str());
        queue.done(&chunk, (lost > 0).then_some((lost, reason)));
    }
}

/// A destination that takes nothing. Times are of the monotonic clock, in milliseconds.
#[derive(Debug)]
struct Failing {
    since: u64,
    /// Not tried before.
    next: u64,
    reason: String,
    /// Whether records are dropped.
    is_dropping: bool,
}

#[derive(Debug)]
struct Courier<'a> {
    to: &'a Address,
    carrier: Option<Carrier>,
    failing: Option<Failing>,
    /// The line or message whose begin was taken.
    cut_off: CutOff,
}

impl<'a> Courier<'a> {
    fn new(to: &'a Address) -> Self {
        Self { to, carrier: None, failing: None, cut_off: CutOff::default() }
    }

    /// Delivers records, or gives up on them; how many bytes of output that cost.
    fn deliver(&mut self, chunk: &Chunk, queue: &Queue) -> u64 {
        let mut sent = 0;
        while sent < chunk.pieces.len() || !self.cut_off.bytes.is_empty() {
            if let Some(failing) = &self.failing {
                let left = failing.next.saturating_sub(now_ms());
                if failing.is_dropping {
                    if left > 0 {
                        break;
                    }
                } else if queue.pause(Duration::from_millis(left))
                    || now_ms() >= failing.since + PATIENCE_MS
                {
                    self.give_up();
                    break;
                }
            }
            let before = sent;
            match self.send(chunk, &mut sent) {
                Ok(()) => self.works(),
                Err(error) => {
                    // It takes something, if slowly.
                    if sent > before && error.kind() == ErrorKind::TimedOut {
                        self.failing = None;
                    }
                    self.fail(&error);
                }
            }
        }
        chunk.pieces.get(sent..).into_iter().flatten().map(|piece| piece.content as u64).sum()
    }

    /// Sends the pieces from `sent` on, and counts them.
    fn send(&mut self, chunk: &Chunk, sent: &mut usize) -> io::Result<()> {
        if self.carrier.as_ref().is_none_or(|carrier| carrier.is_replaced(self.to)) {
            self.cut_off.written = 0;
            self.carrier = Some(Carrier::open(self.to)?);
        }
        let Some(carrier) = &mut self.carrier else { return Ok(()) };
        let result = carrier.send(chunk, sent, &mut self.cut_off);
        if result.as_ref().is_err_and(|error| error.kind() != ErrorKind::TimedOut) {
            self.carrier = None;
        }
        result
    }

    fn fail(&mut self, error: &io::Error) {
        let now = now_ms();
        let failing = self.failing.get_or_insert_with(|| Failing {
            since: now,
            next: now,
            reason: String::new(),
            is_dropping: false,
        });
        failing.next = now + if failing.is_dropping { RETRY_LATER_MS } else { RETRY_MS };
        failing.reason =
            format!("{} takes nothing: {}", name(self.to), system::plain(&error.to_string()));
    }

    fn give_up(&mut self) {
        if let Some(failing) = &mut self.failing {
            failing.is_dropping = true;
            failing.next = now_ms() + RETRY_LATER_MS;
            log::error!("{}; what is for it is dropped until it does", failing.reason);
        }
    }

    fn works(&mut self) {
        if self.failing.take().is_some_and(|failing| failing.is_dropping) {
            log::info!("{} takes logs again", name(self.to));
        }
    }
}

fn name(to: &Address) -> String {
    match to {
        Address::Syslog(address) => format!("`{address}`"),
        Address::Input(unit, _) => format!("`{unit}`"),
    }
}

/// A way to send.
#[derive(Debug)]
enum Carrier {
    Fifo(File),
    Unix(UnixDatagram),
    Udp(UdpSocket),
    Tcp(TcpStream),
}

impl Carrier {
    /// Blocking: for the resolution of a name, and for [`PATIENCE`] for a connection.
    fn open(to: &Address) -> io::Result<Self> {
        match to {
            Address::Input(_, path) => fifo::open_both_ends(path).map(Self::Fifo),
            Address::Syslog(SyslogAddress::Unix(path)) => {
                let socket = UnixDatagram::unbound()?;
                socket.connect(path.as_path())?;
                socket.set_write_timeout(Some(STEP))?;
                Ok(Self::Unix(socket))
            }
            Address::Syslog(SyslogAddress::Udp(host, port)) => first(host, *port, |address| {
                let local = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                let socket = UdpSocket::bind(local)?;
                socket.connect(address)?;
                Ok(Self::Udp(socket))
            }),
            Address::Syslog(SyslogAddress::Tcp(host, port)) => first(host, *port, |address| {
                let stream = TcpStream::connect_timeout(address, PATIENCE)?;
                stream.set_write_timeout(Some(STEP))?;
                Ok(Self::Tcp(stream))
            }),
        }
    }

    /// Whether another file is there now.
    fn is_replaced(&self, to: &Address) -> bool {
        let (Self::Fifo(file), Address::Input(_, path)) = (self, to) else { return false };
        let id = |metadata: std::fs::Metadata| FileId::of(&metadata);
        file.metadata().ok().map(id) != std::fs::metadata(path).ok().map(id)
    }

    fn send(&mut self, chunk: &Chunk, sent: &mut usize, cut_off: &mut CutOff) -> io::Result<()> {
        match self {
            Self::Fifo(file) => into_fifo(file, chunk, sent, cut_off),
            Self::Unix(socket) => {
                each(chunk, sent, &mut |message| socket.send(message).map(drop).map_err(slow))
            }
            Self::Udp(socket) => each(chunk, sent, &mut |message| socket.send(message).map(drop)),
            Self::Tcp(stream) => into_stream(stream, chunk, sent, cut_off),
        }
    }
}

/// The first address of a name that works, or the last error.
fn first(
    host: &str,
    port: u16,
    open: impl Fn(&std::net::SocketAddr) -> io::Result<Carrier>,
) -> io::Result<Carrier> {
    let mut failed = io::Error::new(ErrorKind::NotFound, "the name has no address");
    for address in (host, port).to_socket_addrs()? {
        match open(&address) {
            Err(error) => failed = error,
            carrier => return carrier,
        }
    }
    Err(failed)
}

/// A time limit, as what it is.
fn slow(error: io::Error) -> io::Error {
    if error.kind() == ErrorKind::WouldBlock { ErrorKind::TimedOut.into() } else { error }
}

/// The bytes of a chunk from one piece on.
fn from(chunk: &Chunk, sent: usize) -> (usize, &[u8], &[Piece]) {
    let begin = sent.checked_sub(1).and_then(|last| chunk.pieces.get(last)).map_or(0, |p| p.end);
    let bytes = chunk.bytes.get(begin..).unwrap_or_default();
    (begin, bytes, chunk.pieces.get(sent..).unwrap_or_default())
}

/// Sends each message by itself.
fn each(
    chunk: &Chunk,
    sent: &mut usize,
    carry: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let (mut begin, _, pieces) = from(chunk, *sent);
    for piece in pieces {
        carry(chunk.bytes.get(begin..piece.end).unwrap_or_default())?;
        begin = piece.end;
        *sent += 1;
    }
    Ok(())
}

/// Writes messages with their lengths before them, RFC 6587 section 3.4.1.
fn into_stream(
    stream: &mut TcpStream,
    chunk: &Chunk,
    sent: &mut usize,
    cut_off: &mut CutOff,
) -> io::Result<()> {
    if is_hung_up(stream)? {
        return Err(ErrorKind::ConnectionReset.into());
    }
    let mut write = |bytes: &[u8]| stream.write(bytes).map_err(slow);
    cut_off.end(&mut write)?;
    let (mut begin, _, pieces) = from(chunk, *sent);
    let (mut out, mut ends) = (Vec::new(), Vec::new());
    for (index, piece) in pieces.iter().enumerate() {
        let message = chunk.bytes.get(begin..piece.end).unwrap_or_default();
        out.extend_from_slice(format!("{} ", message.len()).as_bytes());
        out.extend_from_slice(message);
        ends.push(out.len());
        begin = piece.end;
        if out.len() >= STREAM_BYTES_MAX || index + 1 == pieces.len() {
            write_frames(&out, &ends, sent, cut_off, &mut write)?;
            out.clear();
            ends.clear();
        }
    }
    Ok(())
}

/// Whether the other side has closed: what is written then is lost without an error.
fn is_hung_up(stream: &mut TcpStream) -> io::Result<bool> {
    stream.set_nonblocking(true)?;
    let read = stream.read(&mut [0; 256]);
    stream.set_nonblocking(false)?;
    match read {
        Ok(count) => Ok(count == 0),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes lines.
fn into_fifo(
    file: &mut File,
    chunk: &Chunk,
    sent: &mut usize,
    cut_off: &mut CutOff,
) -> io::Result<()> {
    let mut write = |bytes: &[u8]| write_some(file, bytes);
    cut_off.end(&mut write)?;
    let (begin, bytes, pieces) = from(chunk, *sent);
    let ends: Vec<usize> = pieces.iter().map(|piece| piece.end - begin).collect();
    write_frames(bytes, &ends, sent, cut_off, &mut write)
}

/// A line or message that counts as sent since its begin was taken: its rest is written before anything
/// else, or all of it where the way to the destination is a new one.
#[derive(Debug, Default)]
struct CutOff {
    bytes: Vec<u8>,
    written: usize,
}

impl CutOff {
    /// Writes the rest.
    fn end(&mut self, write: &mut WriteSome<'_>) -> io::Result<()> {
        while let Some(rest) = self.bytes.get(self.written..)
            && !rest.is_empty()
        {
            self.written += some(write(rest))?;
        }
        *self = Self::default();
        Ok(())
    }
}

/// Writes some of the bytes: how many.
type WriteSome<'a> = dyn FnMut(&[u8]) -> io::Result<usize> + 'a;

/// Writes lines or messages, of which each has its end in `ends`, and counts those that were written. One
/// that is cut off by a time limit counts too, and is kept: what was taken of it is with the receiver. Where
/// the way breaks it is sent again.
fn write_frames(
    bytes: &[u8],
    ends: &[usize],
    sent: &mut usize,
    cut_off: &mut CutOff,
    write: &mut WriteSome<'_>,
) -> io::Result<()> {
    let mut written = 0;
    while let Some(rest) = bytes.get(written..)
        && !rest.is_empty()
    {
        match some(write(rest)) {
            Ok(count) => written += count,
            Err(error) => {
                let whole = ends.iter().take_while(|end| **end <= written).count();
                *sent += whole;
                let begin =
                    whole.checked_sub(1).and_then(|last| ends.get(last)).map_or(0, |end| *end);
                if written > begin
                    && error.kind() == ErrorKind::TimedOut
                    && let Some(frame) = ends.get(whole).and_then(|end| bytes.get(begin..*end))
                {
                    *cut_off = CutOff { bytes: frame.to_vec(), written: written - begin };
                    *sent += 1;
                }
                return Err(error);
            }
        }
    }
    *sent += ends.len();
    Ok(())
}

/// That nothing was taken is an error; that a signal came is none.
fn some(written: io::Result<usize>) -> io::Result<usize> {
    match written {
        Ok(0) => Err(ErrorKind::WriteZero.into()),
        Err(error) if error.kind() == ErrorKind::Interrupted => Ok(0),
        written => written,
    }
}

/// Writes what there is room for; waits for some for a while.
fn write_some(file: &mut File, bytes: &[u8]) -> io::Result<usize> {
    loop {
        match file.write(bytes) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let timeout = PollTimeout::try_from(STEP).unwrap_or(PollTimeout::MAX);
                let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLOUT)];
                match poll(&mut fds, timeout) {
                    Ok(0) => return Err(ErrorKind::TimedOut.into()),
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
            written => return written,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::mpsc;

    use super::*;

    /// More than all buffers of a connection take, and what a receiver sees of it.
    fn messages() -> (Chunk, Vec<u8>) {
        let (mut chunk, mut seen) = (Chunk::default(), Vec::new());
        for number in 0..4_000 {
            let message = format!("{number} {}", "x".repeat(7_000));
            chunk.bytes.extend_from_slice(message.as_bytes());
            chunk.pieces.push(Piece { end: chunk.bytes.len(), content: message.len() });
            seen.extend(format!("{} {message}", message.len()).into_bytes());
        }
        (chunk, seen)
    }

    fn local(listener: &TcpListener) -> Address {
        let port = listener.local_addr().unwrap().port();
        Address::Syslog(SyslogAddress::Tcp("127.0.0.1".to_owned(), port))
    }

    #[test]
    fn a_receiver_that_pauses_gets_each_message_once() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = local(&listener);
        let (chunk, seen) = messages();
        let (mut courier, mut sent) = (Courier::new(&to), 0);
        // Nobody reads until it has waited in vain.
        courier.send(&chunk, &mut sent).unwrap_err();
        let (give, received) = mpsc::channel();
        std::thread::Builder::new()
            .spawn(move || {
                for stream in listener.incoming() {
                    let mut bytes = Vec::new();
                    stream.and_then(|mut stream| stream.read_to_end(&mut bytes)).unwrap();
                    give.send(bytes).unwrap();
                }
            })
            .unwrap();
        while sent < chunk.pieces.len() {
            courier.send(&chunk, &mut sent).ok();
        }
        drop(courier);
        assert!(received.recv().unwrap() == seen, "something is missing, torn or there twice");
    }

    #[test]
    fn where_a_stream_breaks_a_message_is_sent_again_that_was_cut_off_and_no_other() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = local(&listener);
        let (chunk, seen) = messages();
        let (mut courier, mut sent) = (Courier::new(&to), 0);
        courier.send(&chunk, &mut sent).unwrap_err();
        // All that was written is read, and the connection breaks.
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(STEP)).unwrap();
        let (mut first, mut block) = (Vec::new(), vec![0; 1 << 20]);
        while let Ok(count @ 1..) = stream.read(&mut block) {
            first.extend_from_slice(&block[..count]);
        }
        drop(stream);
        let next = std::thread::Builder::new()
            .spawn(move || {
                let mut bytes = Vec::new();
                listener.accept().unwrap().0.read_to_end(&mut bytes).unwrap();
                bytes
            })
            .unwrap();
        while sent < chunk.pieces.len() {
            courier.send(&chunk, &mut sent).ok();
        }
        drop(courier);
        let next = next.join().unwrap();
        assert!(seen.starts_with(&first) && seen.ends_with(&next), "something is torn");
        let twice = (first.len() + next.len()).checked_sub(seen.len()).unwrap();
        assert!(twice < 7_020, "{twice} bytes came twice");
    }
}
