//! The thread that carries records to one destination, and may wait for it.
//!
//! A destination that is away, or takes nothing, is waited for, up to [`PATIENCE`] in all: meanwhile the
//! instances that write to it are not read. Then records are dropped and counted, and it is tried again
//! from time to time. A service is held up once, and not for good. When the keeper is about to end, it is
//! not waited for.
//!
//! What is sent is sent whole: a message, or a line, is not cut where a connection breaks.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::outlet::{Address, Chunk, Piece, Queue};
use super::sink::now_ms;
use super::store::plain;
use crate::logs::segment::FileId;
use crate::model::SyslogAddress;

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
    let mut courier = Courier { to, carrier: None, failing: None, rest: Vec::new() };
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
    /// The end of a line whose begin was taken.
    rest: Vec<u8>,
}

impl Courier<'_> {
    /// Delivers records, or gives up on them; how many bytes of output that cost.
    fn deliver(&mut self, chunk: &Chunk, queue: &Queue) -> u64 {
        let mut sent = 0;
        while sent < chunk.pieces.len() {
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
            self.carrier = Some(Carrier::open(self.to)?);
        }
        let Some(carrier) = &mut self.carrier else { return Ok(()) };
        let result = carrier.send(chunk, sent, &mut self.rest);
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
        failing.reason = format!("{} takes nothing: {}", name(self.to), plain(error));
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
            Address::Input(_, path) => open_input(path).map(Self::Fifo),
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

    fn send(&mut self, chunk: &Chunk, sent: &mut usize, rest: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Self::Fifo(file) => into_fifo(file, chunk, sent, rest),
            Self::Unix(socket) => {
                each(chunk, sent, &mut |message| socket.send(message).map(drop).map_err(slow))
            }
            Self::Udp(socket) => each(chunk, sent, &mut |message| socket.send(message).map(drop)),
            Self::Tcp(stream) => into_stream(stream, chunk, sent),
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

/// Also open for reading: what is in it stays while nobody else has it open.
fn open_input(path: &Path) -> io::Result<File> {
    let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW;
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)
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
fn into_stream(stream: &mut TcpStream, chunk: &Chunk, sent: &mut usize) -> io::Result<()> {
    if is_hung_up(stream)? {
        return Err(ErrorKind::ConnectionReset.into());
    }
    let (mut begin, _, pieces) = from(chunk, *sent);
    let mut out = Vec::new();
    let mut count = 0;
    for (index, piece) in pieces.iter().enumerate() {
        let message = chunk.bytes.get(begin..piece.end).unwrap_or_default();
        out.extend_from_slice(format!("{} ", message.len()).as_bytes());
        out.extend_from_slice(message);
        begin = piece.end;
        count += 1;
        if out.len() >= STREAM_BYTES_MAX || index + 1 == pieces.len() {
            // A message that was cut off ends the connection: the next one begins with it anew.
            stream.write_all(&out).map_err(|error| match slow(error) {
                late if late.kind() == ErrorKind::TimedOut => ErrorKind::ConnectionAborted.into(),
                error => error,
            })?;
            *sent += count;
            count = 0;
            out.clear();
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

/// Writes lines. Of one that is cut off the rest is kept, to be written before anything else.
fn into_fifo(
    file: &mut File,
    chunk: &Chunk,
    sent: &mut usize,
    rest: &mut Vec<u8>,
) -> io::Result<()> {
    while !rest.is_empty() {
        let count = write_some(file, rest)?;
        rest.drain(..count);
    }
    let (begin, bytes, _) = from(chunk, *sent);
    let mut written = 0;
    while let Some(left) = bytes.get(written..)
        && !left.is_empty()
    {
        match write_some(file, left) {
            Ok(count) => written += count,
            Err(error) => {
                // The piece in which it was cut off counts as sent.
                let place = begin + written;
                let next = chunk.pieces.iter().position(|piece| piece.end >= place);
                let next = next.filter(|_| written > 0);
                let end = next.and_then(|next| chunk.pieces.get(next)).map_or(place, |p| p.end);
                *sent = next.map_or(*sent, |next| next + 1);
                rest.extend_from_slice(chunk.bytes.get(place..end).unwrap_or_default());
                return Err(error);
            }
        }
    }
    *sent = chunk.pieces.len();
    Ok(())
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
