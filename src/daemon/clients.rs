//! The control socket and its clients: who they are, what they ask, what they wait for.
//!
//! Nothing blocks on a client: input and output are buffered up to limits, and a client that does
//! not read is dropped.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use mio::net::{UnixListener, UnixStream};
use mio::{Interest, Registry, Token};
use nix::sys::stat::{Mode, umask};

use super::FIRST_CLIENT;
use super::wait::Wait;
use crate::model::SOCKET_PATH_MAX;
use crate::model::{Monotonic, Span};
use crate::protocol::{
    APPLY_BYTES_MAX, CALL_BYTES_MAX, CLIENTS_MAX, Call, Decoder, Failure, REPLY_BYTES_MAX, Reply,
};
use crate::supervisor::{Notice, Supervisor};
use crate::system::{self, Linux, SystemError};

/// Bytes read from a client at once.
const READ_BYTES: usize = 64 * 1024;
/// While so many bytes of replies wait for a client to read them, no further call of its is taken.
const UNREAD_REPLY_BYTES: usize = 256 * 1024;
/// Clients taken in a turn.
const ACCEPTS_PER_TURN: usize = 64;
/// The wait before clients are taken again when there was no descriptor for one.
const ACCEPT_AGAIN: Span = Span::seconds(1);

/// The listening socket and everyone connected to it.
pub(super) struct Clients {
    path: PathBuf,
    /// Device and inode of the socket's file.
    file: Option<(u64, u64)>,
    listener: UnixListener,
    connected: BTreeMap<Token, Client>,
    next: usize,
    /// Who may have sent more than was taken: their turn comes again without an event.
    busy: BTreeSet<Token>,
    /// Whose calls are being carried out.
    heard: Option<Token>,
    /// Set while clients knock for whom there is no descriptor: when to try again.
    accept_at: Option<Monotonic>,
}

/// Device and inode of what is at a path.
fn identity_of(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

/// One connection.
struct Client {
    stream: UnixStream,
    decoder: Decoder,
    output: Vec<u8>,
    /// How much of the output is written already.
    written: usize,
    peer: Peer,
    /// What it was promised and waits for: replies keep the order of calls, so that no other call
    /// is taken meanwhile.
    pending: Option<Pending>,
    /// Whether it may have sent more than was taken.
    unread: bool,
    /// No call comes any more: it has closed its side, or is to be dropped.
    over: bool,
    /// Nobody is there to read a reply; what it asked before is done all the same.
    gone: bool,
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
    /// The program to be replaced: that it was, the end of the connection tells.
    Reexec,
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
        let busy = BTreeSet::new();
        let (path, file, next) = (path.to_owned(), identity_of(path), FIRST_CLIENT);
        Ok(Self { path, file, listener, connected, next, busy, heard: None, accept_at: None })
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
    /// first, and many a one is gone again. Descriptors from `end` on are not for clients: who gets
    /// one is turned away.
    pub(super) fn accept(&mut self, registry: &Registry, now: Monotonic, end: u64) {
        for _ in 0..ACCEPTS_PER_TURN {
            match self.listener.accept() {
                Ok((stream, _)) if u64::try_from(stream.as_raw_fd()).is_ok_and(|fd| fd >= end) => {
                    log::warn!("too few descriptors for a client; it is turned away");
                }
                Ok((stream, _)) => self.welcome(stream, registry),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.accept_at = None;
                    return;
                }
                Err(error) => {
                    if self.accept_at.is_none() {
                        log::warn!("cannot accept a client: {error}; trying again");
                    }
                    self.accept_at = Some(now.after(ACCEPT_AGAIN));
                    return;
                }
            }
        }
        let (token, interest) = (super::LISTENER, Interest::READABLE);
        if let Err(error) = registry.reregister(&mut self.listener, token, interest) {
            log::error!("cannot watch the control socket: {error}");
        }
    }

    pub(super) fn may_accept_again(&self, now: Monotonic) -> bool {
        self.accept_at.is_some_and(|at| now >= at)
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
        let client = Client {
            stream,
            decoder,
            output: Vec::new(),
            written: 0,
            peer,
            pending: None,
            unread: true,
            over: false,
            gone: false,
        };
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
        if let Some(client) = self.connected.get_mut(&token).filter(|client| !client.gone) {
            client.pending = Some(pending);
        }
    }

    /// Something came from a client, it takes replies again, or it is gone.
    pub(super) fn stirred(&mut self, token: Token, gone: bool) {
        if let Some(client) = self.connected.get_mut(&token) {
            client.unread = true;
            client.gone |= gone;
            client.pending.take_if(|_| gone);
            self.busy.insert(token);
        }
    }

    /// Those whose turn it is.
    pub(super) fn busy(&self) -> Vec<Token> {
        self.busy.iter().copied().collect()
    }

    /// From now on, and until its [`Clients::flush`], what is done is done for this one.
    pub(super) fn begin_to_hear(&mut self, token: Token) {
        self.busy.remove(&token);
        self.heard = Some(token);
    }

    /// A bug broke off what was done for a client: nobody will answer it.
    pub(super) fn drop_heard(&mut self, registry: &Registry) {
        if let Some(token) = self.heard.take() {
            self.drop_client(token, registry);
        }
    }

    /// The next call that a client has sent whole, in order, or what is wrong with what it sent.
    pub(super) fn next_call(&mut self, token: Token) -> Option<Result<Call, Failure>> {
        self.connected.get_mut(&token)?.next_call()
    }

    /// Nothing more is taken from a client; it goes when its replies are written.
    pub(super) fn dismiss(&mut self, token: Token) {
        if let Some(client) = self.connected.get_mut(&token) {
            client.over = true;
        }
    }

    /// Answers a client. One that is over stays until [`Clients::flush`]: it may have asked more.
    pub(super) fn send(&mut self, token: Token, reply: &Reply, registry: &Registry) {
        let Some(client) = self.connected.get_mut(&token) else { return };
        client.queue(reply);
        if !client.write() {
            self.drop_client(token, registry);
        }
    }

    /// Writes what waits for a client, as far as it takes it. One that has more to ask has its turn
    /// again; one that is done goes.
    pub(super) fn flush(&mut self, token: Token, registry: &Registry) {
        self.heard = None;
        let Some(client) = self.connected.get_mut(&token) else { return };
        let there = client.write();
        if !there || (client.over && client.pending.is_none() && client.output.is_empty()) {
            self.drop_client(token, registry);
        } else if client.may_ask() {
            self.busy.insert(token);
        }
    }

    fn drop_client(&mut self, token: Token, registry: &Registry) {
        self.busy.remove(&token);
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
    }

    /// Answers all who asked for the program to be replaced.
    pub(super) fn answer_reexec(&mut self, reply: &Reply, registry: &Registry) {
        let asks = |client: &Client| matches!(client.pending, Some(Pending::Reexec));
        let all = self.connected.iter().filter(|(_, client)| asks(client));
        for token in all.map(|(token, _)| *token).collect::<Vec<_>>() {
            if let Some(client) = self.connected.get_mut(&token) {
                client.pending = None;
                client.queue(reply);
            }
            self.flush(token, registry);
        }
    }

    /// Whether somebody removed the socket, or put another one in its place.
    pub(super) fn is_removed(&self) -> bool {
        identity_of(&self.path) != self.file
    }

    /// Binds a socket that somebody removed again.
    pub(super) fn rebind(&mut self, registry: &Registry) -> Result<(), SystemError> {
        let new = Self::bind(&self.path, registry, super::LISTENER)?;
        if let Err(error) = registry.deregister(&mut self.listener) {
            log::debug!("cannot stop watching the old socket: {error}");
        }
        (self.listener, self.file) = (new.listener, new.file);
        Ok(())
    }

    /// The nearest end of a client's patience; at once where one has more to ask.
    pub(super) fn wake_at(&self, now: Monotonic) -> Option<Monotonic> {
        if !self.busy.is_empty() {
            return Some(now);
        }
        self.connected
            .values()
            .filter_map(|client| match &client.pending {
                Some(Pending::Wait(wait)) => wait.deadline(),
                Some(Pending::Events | Pending::Reexec) | None => None,
            })
            .chain(self.accept_at)
            .min()
    }

    /// opm is over: nobody is to find a socket where nobody listens. Who is connected learns of it after
    /// the lock is free, so that it may begin another opm then: connections are dropped last.
    pub(super) fn close(&mut self) {
        // Another one is somebody else's.
        if !self.is_removed()
            && let Err(error) = fs::remove_file(&self.path)
        {
            log::debug!("cannot remove {}: {error}", self.path.display());
        }
    }
}

impl Client {
    /// Whether a further call of its may be taken now.
    fn may_ask(&self) -> bool {
        self.unread
            && !self.over
            && self.pending.is_none()
            && self.unwritten().len() < UNREAD_REPLY_BYTES
    }

    fn next_call(&mut self) -> Option<Result<Call, Failure>> {
        let mut buffer = Vec::new();
        while self.may_ask() {
            match self.decoder.take() {
                Ok(None) => {}
                Ok(Some(message)) => {
                    return Some(Call::parse(&message).map_err(Failure::InvalidParameter));
                }
                Err(error) => return Some(Err(Failure::InvalidParameter(error.to_string()))),
            }
            buffer.resize(READ_BYTES, 0u8);
            match self.stream.read(&mut buffer) {
                Ok(0) => self.over = true,
                Ok(length) => self.decoder.push(buffer.get(..length).unwrap_or_default()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.unread = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.over = true,
            }
        }
        None
    }

    fn queue(&mut self, reply: &Reply) {
        let bytes = reply.encode();
        if self.unwritten().len().saturating_add(bytes.len()) > REPLY_BYTES_MAX {
            log::warn!("process {} does not read its replies; it is dropped", self.peer.pid);
            self.over = true;
            self.pending = None;
            self.output.clear();
            self.written = 0;
            return;
        }
        // What is written is taken away when it is most of it, so that each byte moves but once.
        if self.written >= self.unwritten().len() {
            self.output.drain(..self.written);
            self.written = 0;
        }
        if self.output.is_empty() {
            self.output = bytes;
        } else {
            self.output.extend(bytes);
        }
    }

    fn unwritten(&self) -> &[u8] {
        self.output.get(self.written..).unwrap_or_default()
    }

    /// Returns whether the client is still there.
    fn write(&mut self) -> bool {
        while !self.unwritten().is_empty() {
            let rest = self.output.get(self.written..).unwrap_or_default();
            match self.stream.write(rest) {
                Ok(length) => self.written = self.written.saturating_add(length),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        self.output = Vec::new();
        self.written = 0;
        true
    }

    fn notify(&mut self, supervisor: &Supervisor<Linux>, notices: &[Notice]) {
        let (reply, over) = match &mut self.pending {
            Some(Pending::Reexec) | None => return,
            Some(Pending::Events) => {
                for notice in notices {
                    self.queue(&Reply::one_of_more(super::report::event_json(supervisor, notice)));
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
