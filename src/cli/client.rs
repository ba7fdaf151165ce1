//! Talking to the daemon: here over its socket, on another machine over ssh. Whoever asks sees no
//! difference.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::args::Global;
use super::ssh::Ssh;
use super::{Error, Exit, output};
use crate::model::{Monotonic, SOCKET_PATH_MAX, Span};
use crate::protocol::{Call, Decoder, REPLY_BYTES_MAX, Reply};
use crate::supervisor::{Refusal, Row};
use crate::system::{Dirs, monotonic_now, parse_stat};

/// The directories that a command means.
pub(super) fn dirs(global: &Global) -> Dirs {
    match &global.root {
        Some(root) => {
            // A relative one is the caller's, and the daemon has another directory.
            let root = std::path::absolute(root).unwrap_or_else(|_| root.clone());
            Dirs::under(&root)
        }
        None => Dirs::of_scope(&|name| std::env::var_os(name).map(PathBuf::from)),
    }
}

/// Those of the daemon that runs, or ran last: it may have had to go elsewhere.
pub(super) fn dirs_found(global: &Global) -> Dirs {
    dirs(global).where_found()
}

/// What to do where no daemon runs.
pub(super) const START_ONE: &str = "start one with `opm daemon` or `opm apply`";

/// The control socket of this machine's daemon; `None` where no daemon listens.
pub(super) fn socket(global: &Global) -> Result<Option<UnixStream>, Error> {
    let dirs = dirs_found(global);
    if let Some(uid) = dirs.stranger() {
        let message = format!("`{}` belongs to user {uid}, and is not used", dirs.run.display());
        return Err(Error::new(Exit::Refused, message));
    }
    let path = dirs.socket();
    let length = path.as_os_str().len();
    if length > SOCKET_PATH_MAX {
        let message = format!(
            "cannot connect to `{}`: its path has {length} bytes, and the kernel allows \
             {SOCKET_PATH_MAX}; use a shorter --root",
            path.display()
        );
        return Err(Error::new(Exit::Refused, message));
    }
    match UnixStream::connect(&path) {
        Ok(stream) => Ok(Some(stream)),
        Err(error) => {
            let kind = error.kind();
            if matches!(kind, ErrorKind::NotFound | ErrorKind::ConnectionRefused) {
                return Ok(None);
            }
            let refused = kind == ErrorKind::PermissionDenied;
            let exit = if refused { Exit::Refused } else { Exit::NoDaemon };
            let reason = crate::system::plain(&error.to_string());
            let message = format!("cannot connect to `{}`: {reason}", path.display());
            Err(Error::new(exit, message))
        }
    }
}

/// Says that no daemon runs, and what can be done instead.
pub(super) fn nobody(global: &Global, instead: &str) -> Error {
    let dirs = dirs(global);
    let socket = dirs.socket();
    let message = match dirs.holder() {
        None => format!("no daemon runs (nobody listens on `{}`); {instead}", socket.display()),
        Some(pid) => format!(
            "nobody listens on `{}`, though process {pid} lives, which was to do so; where somebody \
             removed its socket, `kill -USR1 {pid}` has it made again",
            socket.display()
        ),
    };
    Error::new(Exit::NoDaemon, message)
}

/// After so long without a word it is looked at whether the daemon can say one.
const SILENCE: Span = Span::seconds(5);

/// So much later than it should an answer may come.
const GRACE: Span = Span::seconds(1);

/// What carries the bytes.
enum Link {
    Socket(UnixStream),
    Ssh(Ssh),
}

/// A connection to the daemon.
pub(super) struct Client {
    link: Link,
    decoder: Decoder,
    /// When the daemon is late with its answer.
    late: Option<Monotonic>,
    /// Whether it was said that it is stopped.
    is_told: bool,
}

impl Client {
    /// Connects; `None` where no daemon listens here. On another machine that is an error.
    pub(super) fn try_connect(global: &Global) -> Result<Option<Self>, Error> {
        let link = match global.host() {
            Some(host) => Some(Link::Ssh(Ssh::proxy(global, host)?)),
            None => socket(global)?.map(Link::Socket),
        };
        if let Some(Link::Socket(stream)) = &link {
            let silence = Duration::from_nanos(SILENCE.as_nanos());
            stream.set_read_timeout(Some(silence)).map_err(|error| lost(&error.to_string()))?;
        }
        let decoder = Decoder::new(REPLY_BYTES_MAX);
        Ok(link.map(|link| Self { link, decoder, late: None, is_told: false }))
    }

    /// Connects, or says that no daemon runs.
    pub(super) fn connect(global: &Global) -> Result<Self, Error> {
        Self::connect_or(global, START_ONE)
    }

    /// Connects, or says that no daemon runs, and what can be done instead.
    pub(super) fn connect_or(global: &Global, instead: &str) -> Result<Self, Error> {
        Self::try_connect(global)?.ok_or_else(|| nobody(global, instead))
    }

    /// Whether the daemon runs as the user of this command.
    pub(super) fn is_own(&self) -> bool {
        match &self.link {
            Link::Socket(stream) => crate::system::peer_credentials(stream.as_fd())
                .is_ok_and(|(uid, ..)| uid == crate::system::own_uid()),
            Link::Ssh(_) => false,
        }
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let sent = match &mut self.link {
            Link::Socket(stream) => stream.write_all(bytes),
            Link::Ssh(ssh) => ssh.write_all(bytes),
        };
        sent.map_err(|error| self.cut_off(&error))
    }

    /// The next reply to what was asked last.
    pub(super) fn receive(&mut self) -> Result<Reply, Error> {
        let mut buffer = vec![0u8; 64 * 1024];
        loop {
            match self.decoder.take() {
                Ok(Some(message)) => {
                    return Reply::parse(&message).map_err(|error| self.lost(&error));
                }
                Err(error) => return Err(self.lost(&error.to_string())),
                Ok(None) => {}
            }
            let read = match &mut self.link {
                Link::Socket(stream) => stream.read(&mut buffer),
                Link::Ssh(ssh) => ssh.read(&mut buffer),
            };
            match read {
                Ok(0) => return Err(self.cut_off(&"it closed the connection")),
                Ok(length) => self.decoder.push(buffer.get(..length).unwrap_or_default()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.bear_silence()?,
                Err(error) => return Err(self.cut_off(&error)),
            }
        }
    }

    /// Nothing came for a while: of a daemon that somebody has stopped nothing will. It does what it was asked once
    /// it goes on, so that it is waited for, unless only for a time.
    fn bear_silence(&mut self) -> Result<(), Error> {
        let Link::Socket(stream) = &self.link else { return Ok(()) };
        let pid = crate::system::peer_credentials(stream.as_fd()).map_or(0, |(.., pid)| pid);
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let is_stopped = parse_stat(&stat).is_some_and(|stat| matches!(stat.state, 'T' | 't'));
        if is_stopped && !self.is_told {
            self.is_told = true;
            output::note(&format!(
                "opm: process {pid}, which is to answer, is stopped; `kill -CONT {pid}` lets it go on"
            ));
        }
        if self.late.is_some_and(|late| late <= monotonic_now()) {
            let message = format!("process {pid} does not answer; what was asked for may go on");
            return Err(Error::new(Exit::TimedOut, message));
        }
        Ok(())
    }

    /// The connection is over; of ssh's end more is known than of the pipe's.
    fn cut_off(&mut self, reason: &dyn std::fmt::Display) -> Error {
        match &mut self.link {
            Link::Socket(_) => lost(&reason.to_string()),
            Link::Ssh(ssh) => ssh.lost(None),
        }
    }

    /// What came makes no sense.
    fn lost(&mut self, reason: &str) -> Error {
        match &mut self.link {
            Link::Socket(_) => lost(reason),
            Link::Ssh(ssh) => ssh.lost(Some(reason)),
        }
    }

    /// Waits until the daemon closes the connection, as it does when it is over.
    pub(super) fn until_closed(&mut self) -> Result<(), Error> {
        loop {
            let Err(error) = self.receive() else { continue };
            let was_closed = match &mut self.link {
                Link::Socket(_) => true,
                Link::Ssh(ssh) => ssh.was_closed_there(),
            };
            return if was_closed { Ok(()) } else { Err(error) };
        }
    }

    /// Asks, and takes the one reply.
    pub(super) fn call(
        &mut self,
        method: &str,
        parameters: impl Serialize,
    ) -> Result<Value, Error> {
        self.send(&Call::encode_control(method, &parameters))?;
        let reply = self.receive()?;
        result(reply)
    }

    /// Asks for everything that happens from now on.
    pub(super) fn follow(&mut self, method: &str, parameters: Value) -> Result<(), Error> {
        self.send(&Call::control(method, parameters).with_more().encode())
    }

    /// Waits until instances are somewhere; tells of every change on the way. `brief`: of what is at
    /// rest where it should be nothing is said at the end.
    pub(super) fn wait(
        &mut self,
        units: &[String],
        condition: &str,
        timeout: Option<Span>,
        brief: bool,
        progress: &mut dyn FnMut(&[Row]),
    ) -> Result<Waited, Error> {
        self.late = timeout.map(|timeout| monotonic_now().after(timeout).after(GRACE));
        let timeout = timeout.map(Span::as_millis_up);
        let parameters = json!({
            "units": units, "condition": condition, "timeout_ms": timeout, "brief": brief,
        });
        self.follow("Wait", parameters)?;
        loop {
            let reply = self.receive()?;
            let continues = reply.continues;
            let value = result(reply)?;
            let rows = rows(&value);
            if continues {
                progress(&rows);
                continue;
            }
            self.late = None;
            let end = value.get("result").and_then(Value::as_str).unwrap_or_default().to_owned();
            let why = value.get("why").and_then(Value::as_str).unwrap_or_default().to_owned();
            let is_well = value.get("code").and_then(Value::as_u64) == Some(0);
            return Ok(Waited { end, rows, why, is_well });
        }
    }
}

/// How a wait ended.
pub(super) struct Waited {
    /// `reached`, `failed`, `timeout` or `shutdown`.
    pub(super) end: String,
    /// How the instances were then.
    pub(super) rows: Vec<Row>,
    /// Why opm goes down, where it does.
    pub(super) why: String,
    /// Whether it does so because a unit that ended well says so.
    pub(super) is_well: bool,
}

impl Waited {
    /// Whether opm goes down. Then nothing comes up, and nobody knows whether it would have: that fails,
    /// but where a unit that ended well says so.
    pub(super) fn is_over(&self) -> Result<bool, Error> {
        if self.end != "shutdown" {
            return Ok(false);
        }
        let message = format!("opm is shutting down: {}", crate::system::plain(&self.why));
        if self.is_well {
            output::note(&format!("opm: {message}"));
            return Ok(true);
        }
        Err(Error::new(Exit::Failed, message))
    }
}

/// The instances of a reply.
pub(super) fn rows(value: &Value) -> Vec<Row> {
    let list = value.get("instances").unwrap_or(&Value::Null);
    Vec::deserialize(list).unwrap_or_default()
}

fn lost(reason: &str) -> Error {
    let reason = crate::system::plain(reason);
    Error::new(Exit::NoDaemon, format!("lost the daemon: {reason}"))
}

/// A refusal, as the daemon would tell it.
pub(super) fn refused(refusal: &Refusal) -> Error {
    Error::new(Exit::Refused, refusal)
}

/// The result of a reply, or its error with the exit code that goes with it.
pub(super) fn result(reply: Reply) -> Result<Value, Error> {
    let Some(error) = reply.error else { return Ok(reply.parameters) };
    let text = |name: &str| {
        reply.parameters.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let name = error.rsplit('.').next().unwrap_or_default();
    Err(match name {
        "BadUnits" => {
            output::note(text("text").trim_end());
            Error::new(Exit::Bad, "")
        }
        "PermissionDenied" => {
            Error::new(Exit::Refused, "only root and the daemon's own user may do this")
        }
        "NoSuchUnit" | "Refused" => Error::new(Exit::Refused, text("reason")),
        _ => Error::new(Exit::Failed, format!("{error}: {}", reply.parameters)),
    })
}
