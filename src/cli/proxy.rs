//! `proxy`: standard input and output are the control socket. The far end of `-H`.
//!
//! Ends when the daemon hangs up or nobody reads its replies any more. After the end of standard
//! input, replies that are under way are still passed on.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::args::Global;
use super::{Error, Exit, Outcome, client};

/// Most bytes that are on their way in one direction.
const READ_BYTES: usize = 64 * 1024;
/// A pipe that can be written to takes so many bytes without a wait: `PIPE_BUF` of pipe(7).
const WRITE_BYTES: usize = 4096;
/// How long, after the end of standard input, the daemon may be silent, in milliseconds: replies
/// that it has come at once, and whoever asked may be gone.
const LAST_REPLIES_MILLIS: u16 = 1000;

/// `opm proxy`.
pub(super) fn proxy(global: &Global) -> Outcome {
    let socket =
        client::socket(global)?.ok_or_else(|| client::nobody(global, client::START_ONE))?;
    let fail = |error: &io::Error| {
        let reason = crate::system::plain(&error.to_string());
        Error::new(Exit::Failed, format!("cannot connect the two: {reason}"))
    };
    // Not Rust's own, which read ahead and wait for the end of a line.
    let stdin = io::stdin().as_fd().try_clone_to_owned().map_err(|error| fail(&error))?;
    let stdout = io::stdout().as_fd().try_clone_to_owned().map_err(|error| fail(&error))?;
    socket.set_nonblocking(true).map_err(|error| fail(&error))?;
    let mut lanes = Lanes {
        stdin: Some(File::from(stdin)),
        stdout: File::from(stdout),
        socket,
        up: Vec::new(),
        down: Vec::new(),
    };
    while lanes.turn().map_err(|error| fail(&error))? {}
    Ok(Exit::Done)
}

struct Lanes {
    /// None after its end.
    stdin: Option<File>,
    stdout: File,
    socket: UnixStream,
    /// What the daemon has not taken yet.
    up: Vec<u8>,
    /// What standard output has not taken yet.
    down: Vec<u8>,
}

/// What a turn found.
struct Found {
    stdin: PollFlags,
    stdout: PollFlags,
    socket: PollFlags,
}

impl Lanes {
    /// Waits for whatever can go on, and lets it; whether there will be more.
    fn turn(&mut self) -> io::Result<bool> {
        let Some(found) = self.wait()? else { return Ok(false) };
        let broken = PollFlags::POLLERR | PollFlags::POLLHUP | PollFlags::POLLNVAL;
        if found.stdout.intersects(broken) {
            return Ok(false);
        }
        if found.stdout.contains(PollFlags::POLLOUT) {
            let most = self.down.len().min(WRITE_BYTES);
            match self.stdout.write(self.down.get(..most).unwrap_or_default()) {
                Ok(length) => drop(self.down.drain(..length)),
                Err(error) if is_no_matter(&error) => {}
                Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        if !found.stdin.is_empty() {
            self.take_input()?;
        }
        if !found.socket.is_empty() {
            return self.exchange(found.socket);
        }
        Ok(true)
    }

    /// What has happened; none when nothing more will.
    fn wait(&self) -> io::Result<Option<Found>> {
        let none = PollFlags::empty();
        let when = |wanted, flag| if wanted { flag } else { none };
        let out = when(!self.down.is_empty(), PollFlags::POLLOUT);
        let socket = when(self.down.is_empty(), PollFlags::POLLIN)
            | when(!self.up.is_empty(), PollFlags::POLLOUT);
        let mut fds = vec![PollFd::new(self.stdout.as_fd(), out)];
        // A socket that hung up says so at every look: it is looked at when something can follow.
        let socket_at = (!socket.is_empty()).then_some(fds.len());
        if socket_at.is_some() {
            fds.push(PollFd::new(self.socket.as_fd(), socket));
        }
        let stdin = self.stdin.as_ref().filter(|_| self.up.is_empty());
        let stdin_at = stdin.map(|_| fds.len());
        fds.extend(stdin.map(|stdin| PollFd::new(stdin.as_fd(), PollFlags::POLLIN)));
        let is_last = self.stdin.is_none() && self.down.is_empty();
        let patience =
            if is_last { PollTimeout::from(LAST_REPLIES_MILLIS) } else { PollTimeout::NONE };
        loop {
            match poll(&mut fds, patience) {
                Ok(0) => return Ok(None),
                Ok(_) => break,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        let of = |place: Option<usize>| {
            place.and_then(|place| fds.get(place)).and_then(PollFd::revents).unwrap_or(none)
        };
        Ok(Some(Found { stdout: of(Some(0)), socket: of(socket_at), stdin: of(stdin_at) }))
    }

    fn take_input(&mut self) -> io::Result<()> {
        let Some(stdin) = &mut self.stdin else { return Ok(()) };
        let mut buffer = vec![0u8; READ_BYTES];
        match stdin.read(&mut buffer) {
            Ok(0) => {
                self.stdin = None;
                self.socket.shutdown(Shutdown::Write).or_else(|error| {
                    if error.kind() == ErrorKind::NotConnected { Ok(()) } else { Err(error) }
                })
            }
            Ok(length) => {
                buffer.truncate(length);
                self.up = buffer;
                Ok(())
            }
            Err(error) if is_no_matter(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Writes to the daemon and reads from it; whether it is still there.
    fn exchange(&mut self, found: PollFlags) -> io::Result<bool> {
        if found.contains(PollFlags::POLLOUT) && !self.up.is_empty() {
            match self.socket.write(&self.up) {
                Ok(length) => drop(self.up.drain(..length)),
                Err(error) if is_no_matter(&error) => {}
                // What it said before is read first.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => self.up.clear(),
                Err(error) => return Err(error),
            }
        }
        if !self.down.is_empty() {
            return Ok(true);
        }
        let mut buffer = vec![0u8; READ_BYTES];
        match self.socket.read(&mut buffer) {
            Ok(0) => Ok(false),
            Ok(length) => {
                buffer.truncate(length);
                self.down = buffer;
                Ok(true)
            }
            Err(error) if is_no_matter(&error) => Ok(true),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Whether to try again later is all there is to do.
fn is_no_matter(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
