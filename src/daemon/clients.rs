//! The control socket and its clients: who they are, what they ask, what they wait for.
//!
//! Nothing blocks on a client: input and output are buffered up to limits, and a client that does
//! not read is dropped.

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use mio::net::{UnixListener, UnixStream};
use mio::{Interest, Registry, Token};
use nix::sys::stat::{Mode, umask};

use super::FIRST_CLIENT;
use super::wait::Wait;
use crate::model::Monotonic;
use crate::protocol::{
    APPLY_BYTES_MAX, CALL_BYTES_MAX, CLIENTS_MAX, Call, Decoder, Failure, REPLY_BYTES_MAX, Reply,
};
use crate::supervisor::{Notice, Supervisor};
use crate::system::{self, Linux, SOCKET_PATH_MAX, SystemError};

/// Bytes read from a client at once.
const READ_BYTES: usize = 64 * 1024;
/// Calls taken from one client in a turn: one that floods us does not hold up the others.
const CALLS_PER_TURN: usize = 64;
/// Clients taken in a turn.
const ACCEPTS_PER_TURN: usize = 64;

/// The listening socket and everyone connected to it.
pub(super) struct Clients {
    path: PathBuf,
    listener: UnixListener,
    connected: BTreeMap<Token, Client>,
    next: usize,
}

/// One connection.
struct Client {
    stream: UnixStream,
    decoder: Decoder,
    output: Vec<u8>,
    peer: Peer,
    pending: Option<Pending>,
    /// Closed by the peer, or to be dropped.
    over: bool,
}

/// Who is at the other end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer {
    pub(super) uid: u32,
    pub(super) pid: i32,
}

impl Peer {
    /// Whether it may change anything: root, and whoever the daemon runs as.
    pub(super) fn may_change(self) -> bool {
        self.uid == 0 || self.uid == system::own_uid()
    }
}

/// What a client waits for.
pub(super) enum Pending {
    /// Everything that happens.
    Events,
    /// Some instances to be somewhere.
    Wait(Wait),
}

impl Clients {
    /// Binds the control socket: private from its first moment, and replaced only by rename. The
    /// caller holds the lock, so that a socket that is there is nobody's.
    pub(super) fn bind(
        path: &Path,
        registry: &Registry,
        token: Token,
    ) -> Result<Self, SystemError> {
        let fail =
            |reason: &dyn std::fmt::Display| SystemError::new("listen on", path.display(), reason);
        let length = path.as_os_str().len();
        if length > SOCKET_PATH_MAX {
            let reason = format!(
                "its path has {length} bytes, and the kernel allows {SOCKET_PATH_MAX} (unix(7): \
                 sun_path has 108 with its end); use a shorter --root"
            );
            return Err(fail(&reason));
        }
        match fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(fail(&"something that is no socket is there; it is left alone"));
            }
            Ok(_) | Err(_) => {}
        }
        // As long as the final name, so that it fits whenever that one does.
        let new = path.with_file_name("control.new_");
        match fs::remove_file(&new) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(fail(&error)),
            _ => {}
        }
        let old = umask(Mode::from_bits_truncate(0o177));
        let bound = UnixListener::bind(&new);
        umask(old);
        let listener = bound.map_err(|error| fail(&error))?;
        fs::rename(&new, path).map_err(|error| fail(&error))?;
        Self::watch(listener, path, registry, token)
    }

    /// Goes on listening on a socket that an opm before us has bound.
    pub(super) fn listen(
        listener: std::os::unix::net::UnixListener,
        path: &Path,
        registry: &Registry,
        token: Token,
    ) -> Result<Self, SystemError> {
        Self::watch(UnixListener::from_std(listener), path, registry, token)
    }

    fn watch(
        mut listener: UnixListener,
        path: &Path,
        registry: &Registry,
        token: Token,
    ) -> Result<Self, SystemError> {
        registry
            .register(&mut listener, token, Interest::READABLE)
            .map_err(|error| SystemError::new("listen on", path.display(), error))?;
        let connected = BTreeMap::new();
        Ok(Self { path: path.to_owned(), listener, connected, next: FIRST_CLIENT })
    }

    /// Lets the socket live on over an exec of opm; returns its descriptor.
    pub(super) fn hand_over(&self) -> i32 {
        system::set_inheritable(self.listener.as_fd(), true);
        self.listener.as_raw_fd()
    }

    /// The exec failed: children are not to have the socket.
    pub(super) fn take_back(&self) {
        system::set_inheritable(self.listener.as_fd(), false);
    }

    /// Takes some of those who knock, and asks to be told of the rest: whoever was taken is heard
    /// first, and many a one is gone again.
    pub(super) fn accept(&mut self, registry: &Registry) {
        for _ in 0..ACCEPTS_PER_TURN {
            match self.listener.accept() {
                Ok((stream, _)) => self.welcome(stream, registry),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    log::warn!("cannot accept a client: {error}");
                    return;
                }
            }
        }
        let (token, interest) = (super::LISTENER, Interest::READABLE);
        if let Err(error) = registry.reregister(&mut self.listener, token, interest) {
            log::error!("cannot watch the control socket: {error}");
        }
    }

    fn welcome(&mut self, mut stream: UnixStream, registry: &Registry) {
        if self.connected.len() >= CLIENTS_MAX {
            log::warn!("more than {CLIENTS_MAX} clients; one is turned away");
            return;
        }
        let peer = match system::peer_credentials(stream.as_fd()) {
            Ok((uid, _, pid)) => Peer { uid, pid },
            Err(error) => {
                log::warn!("cannot tell who a client is: {error}; it is turned away");
                return;
            }
        };
        let token = self.free_token();
        let interest = Interest::READABLE | Interest::WRITABLE;
        if let Err(error) = registry.register(&mut stream, token, interest) {
            log::warn!("cannot watch a client: {error}");
            return;
        }
        let limit = if peer.may_change() { APPLY_BYTES_MAX } else { CALL_BYTES_MAX };
        let decoder = Decoder::new(limit);
        let client =
            Client { stream, decoder, output: Vec::new(), peer, pending: None, over: false };
        self.connected.insert(token, client);
    }

    fn free_token(&mut self) -> Token {
        loop {
            let token = Token(self.next);
            self.next =
                if self.next + 1 >= Linux::FIRST_TOKEN { FIRST_CLIENT } else { self.next + 1 };
            if !self.connected.contains_key(&token) {
                return token;
            }
        }
    }

    pub(super) fn peer(&self, token: Token) -> Option<Peer> {
        self.connected.get(&token).map(|client| client.peer)
    }

    pub(super) fn set_pending(&mut self, token: Token, pending: Pending) {
        if let Some(client) = self.connected.get_mut(&token) {
            client.pending = Some(pending);
        }
    }

    /// The calls that a client has sent whole by now.
    pub(super) fn read(&mut self, token: Token, registry: &Registry) -> Vec<(Token, Call)> {
        let Some(client) = self.connected.get_mut(&token) else { return Vec::new() };
        let mut buffer = vec![0u8; READ_BYTES];
        let mut calls = Vec::new();
        loop {
            match client.stream.read(&mut buffer) {
                Ok(0) => {
                    client.over = true;
                    break;
                }
                Ok(length) => {
                    client.decoder.push(buffer.get(..length).unwrap_or_default());
                    if !client.take_calls(token, &mut calls) {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => {
                    client.over = true;
                    break;
                }
            }
        }
        // One that is told why it is dropped goes when that is written.
        if client.over && calls.is_empty() && client.output.is_empty() {
            self.drop_client(token, registry);
        }
        calls
    }

    /// Answers a client. One that is over stays until [`Clients::flush`]: it may have asked more.
    pub(super) fn send(&mut self, token: Token, reply: &Reply, registry: &Registry) {
        let Some(client) = self.connected.get_mut(&token) else { return };
        client.queue(reply);
        if !client.write() {
            self.drop_client(token, registry);
        }
    }

    /// Writes what waits for a client, as far as it takes it.
    pub(super) fn flush(&mut self, token: Token, registry: &Registry) {
        let Some(client) = self.connected.get_mut(&token) else { return };
        if !client.write() || (client.over && client.output.is_empty()) {
            self.drop_client(token, registry);
        }
    }

    fn drop_client(&mut self, token: Token, registry: &Registry) {
        if let Some(mut client) = self.connected.remove(&token)
            && let Err(error) = registry.deregister(&mut client.stream)
        {
            log::debug!("cannot stop watching a client: {error}");
        }
    }

    /// Tells those who wait what happened.
    pub(super) fn notify(
        &mut self,
        supervisor: &Supervisor<Linux>,
        notices: &[Notice],
        registry: &Registry,
    ) {
        let waiting: Vec<Token> = self
            .connected
            .iter()
            .filter(|(_, client)| client.pending.is_some())
            .map(|(token, _)| *token)
            .collect();
        for token in waiting {
            let Some(client) = self.connected.get_mut(&token) else { continue };
            client.notify(supervisor, notices);
            self.flush(token, registry);
        }
        self.rebind_if_removed(registry);
    }

    /// A socket that somebody removed is bound again, when something happens anyway.
    fn rebind_if_removed(&mut self, registry: &Registry) {
        if self.path.exists() {
            return;
        }
        log::warn!("{} was removed; binding it again", self.path.display());
        match Self::bind(&self.path, registry, super::LISTENER) {
            Ok(new) => {
                if let Err(error) = registry.deregister(&mut self.listener) {
                    log::debug!("cannot stop watching the old socket: {error}");
                }
                self.listener = new.listener;
            }
            Err(error) => log::error!("{error}"),
        }
    }

    /// The nearest end of a client's patience.
    pub(super) fn wake_at(&self) -> Option<Monotonic> {
        self.connected
            .values()
            .filter_map(|client| match &client.pending {
                Some(Pending::Wait(wait)) => wait.deadline(),
                Some(Pending::Events) | None => None,
            })
            .min()
    }

    /// opm is over: nobody is to find a socket where nobody listens.
    pub(super) fn close(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            log::debug!("cannot remove {}: {error}", self.path.display());
        }
        self.connected.clear();
    }
}

impl Client {
    /// Takes whole calls from the decoder. Returns whether reading goes on.
    fn take_calls(&mut self, token: Token, calls: &mut Vec<(Token, Call)>) -> bool {
        loop {
            if calls.len() >= CALLS_PER_TURN {
                log::warn!(
                    "process {} sent more than {CALLS_PER_TURN} calls at once",
                    self.peer.pid
                );
                self.over = true;
                return false;
            }
            match self.decoder.take() {
                Ok(None) => return true,
                Ok(Some(message)) => match Call::parse(&message) {
                    Ok(call) => calls.push((token, call)),
                    Err(reason) => {
                        self.queue(&Failure::InvalidParameter(reason).into());
                        self.over = true;
                        return false;
                    }
                },
                Err(error) => {
                    self.queue(&Failure::InvalidParameter(error.to_string()).into());
                    self.over = true;
                    return false;
                }
            }
        }
    }

    fn queue(&mut self, reply: &Reply) {
        let bytes = reply.encode();
        if self.output.len().saturating_add(bytes.len()) > REPLY_BYTES_MAX {
            log::warn!("process {} does not read its replies; it is dropped", self.peer.pid);
            self.over = true;
            self.output.clear();
            return;
        }
        self.output.extend(bytes);
    }

    /// Returns whether the client is still there.
    fn write(&mut self) -> bool {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(length) => drop(self.output.drain(..length)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }

    fn notify(&mut self, supervisor: &Supervisor<Linux>, notices: &[Notice]) {
        let (reply, over) = match &mut self.pending {
            None => return,
            Some(Pending::Events) => {
                for notice in notices {
                    let own = supervisor.is_own(&notice.event.instance);
                    self.queue(&Reply::one_of_more(super::report::event_json(notice, own)));
                }
                return;
            }
            Some(Pending::Wait(wait)) => wait.update(supervisor, notices),
        };
        if let Some(reply) = reply {
            self.queue(&reply);
        }
        if over {
            self.pending = None;
        }
    }
}
