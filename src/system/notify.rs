//! What a service says by `sd_notify(3)`: the messages, and the socket on which they come.
//!
//! A message is lines of assignments. What is not known here is passed over: descriptors to be kept
//! (`FDSTORE=1`), error codes, barriers. A barrier (`BARRIER=1`) is a descriptor that is to be closed
//! when the messages before it were taken: messages are taken in their order, and the kernel closes
//! every descriptor that comes with one, as we have no place for it.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use nix::sys::socket::{UnixAddr, bind, setsockopt, sockopt};

use super::sys;
use crate::model::SOCKET_PATH_MAX;
use crate::model::{Doing, Span};

/// Longest notify message, in bytes; the rest is cut. `sd_notify(3)` messages are far shorter.
const MESSAGE_BYTES_MAX: usize = 4096;

/// What a service said on its notify socket.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NotifyMessage {
    /// Whether it is ready.
    pub ready: bool,
    /// What it is doing; a `READY=1` behind it ends that.
    pub doing: Option<Doing>,
    /// How it is doing, in its words.
    pub status: Option<String>,
    /// What it has to say to its watchdog.
    pub ping: Option<Ping>,
    /// The longest silence from now on.
    pub watchdog: Option<Span>,
    /// How much more time it needs for what it is doing.
    pub more_time: Option<Span>,
    /// The process that is its main one from now on.
    pub main_pid: Option<i32>,
    /// The first assignment that means something, and whose value means nothing.
    pub unread: Option<&'static str>,
    /// Who said so.
    pub sender: Option<i32>,
}

/// What a service has to say to its watchdog; the graver word counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ping {
    /// It is well.
    Well,
    /// It has failed.
    Failed,
}

/// Reads the assignments of a message, `sd_notify(3)`. Unknown ones are passed over; of those that
/// are there twice the last one counts.
pub fn parse_notify(bytes: &[u8]) -> NotifyMessage {
    let mut message = NotifyMessage::default();
    for line in bytes.split(|byte| *byte == b'\n') {
        let Some(equals) = line.iter().position(|byte| *byte == b'=') else { continue };
        let Some((name, value)) = line.split_at_checked(equals) else { continue };
        let value = value.get(1..).unwrap_or_default();
        let read = match (name, value) {
            (b"READY", b"1") => {
                (message.ready, message.doing) = (true, None);
                Ok(())
            }
            (b"RELOADING", b"1") => {
                message.doing = Some(Doing::Reloading);
                Ok(())
            }
            (b"STOPPING", b"1") => {
                message.doing = Some(Doing::Stopping);
                Ok(())
            }
            (b"STATUS", status) => {
                message.status = Some(String::from_utf8_lossy(status).into_owned());
                Ok(())
            }
            (b"WATCHDOG", b"1") => {
                message.ping = message.ping.max(Some(Ping::Well));
                Ok(())
            }
            (b"WATCHDOG", b"trigger") => {
                message.ping = Some(Ping::Failed);
                Ok(())
            }
            (b"WATCHDOG", _) => Err("WATCHDOG"),
            (b"WATCHDOG_USEC", value) => set(&mut message.watchdog, span(value), "WATCHDOG_USEC"),
            (b"EXTEND_TIMEOUT_USEC", value) => {
                set(&mut message.more_time, span(value), "EXTEND_TIMEOUT_USEC")
            }
            (b"MAINPID", value) => set(&mut message.main_pid, pid(value), "MAINPID"),
            _ => Ok(()),
        };
        if let Err(name) = read {
            message.unread = message.unread.or(Some(name));
        }
    }
    message
}

/// Takes a value over, if it could be read.
fn set<T>(to: &mut Option<T>, value: Option<T>, name: &'static str) -> Result<(), &'static str> {
    *to = Some(value.ok_or(name)?);
    Ok(())
}

/// Decimal digits and nothing else.
fn number(value: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(value).ok()?;
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_number)
}

/// A number of microseconds; one that is too large for us is forever.
fn span(value: &[u8]) -> Option<Span> {
    number(value).map(|micros| Span::nanos(micros.saturating_mul(1_000)))
}

fn pid(value: &[u8]) -> Option<i32> {
    number(value).and_then(|pid| i32::try_from(pid).ok()).filter(|pid| *pid > 0)
}

/// A socket of one instance for `sd_notify(3)`.
#[derive(Debug)]
pub(super) struct NotifySocket {
    socket: UnixDatagram,
}

impl NotifySocket {
    /// Binds the socket, private to `owner`.
    pub(super) fn bind(path: &Path, owner: Option<u32>) -> Result<Self, String> {
        let length = path.as_os_str().len();
        if length > SOCKET_PATH_MAX {
            return Err(format!(
                "the path of its notify socket has {length} bytes, and the kernel allows \
                 {SOCKET_PATH_MAX}; use a shorter --root"
            ));
        }
        let bound = || -> io::Result<UnixDatagram> {
            match fs::remove_file(path) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let socket = UnixDatagram::unbound()?;
            socket.set_nonblocking(true)?;
            // Before it can be reached: no message comes without its sender.
            setsockopt(&socket, sockopt::PassCred, &true)?;
            bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
            if let Some(uid) = owner {
                std::os::unix::fs::chown(path, Some(uid), None)?;
            }
            Ok(socket)
        };
        let socket = bound().map_err(|error| super::plain(&error.to_string()))?;
        Ok(Self { socket })
    }

    /// One that an opm before us has bound.
    pub(super) fn inherited(fd: OwnedFd) -> Self {
        Self { socket: UnixDatagram::from(fd) }
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The next message, if one is there.
    pub(super) fn receive(&self) -> Option<NotifyMessage> {
        let mut bytes = [0u8; MESSAGE_BYTES_MAX];
        let (length, sender) = loop {
            match sys::receive(self.socket.as_fd(), &mut bytes) {
                Ok(received) => break received,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        };
        let message = parse_notify(bytes.get(..length).unwrap_or_default());
        Some(NotifyMessage { sender, ..message })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_lines_of_assignments() {
        let message = parse_notify(b"STATUS=almost\xff\nREADY=1\nX=1\nREADY=0");
        assert!(message.ready);
        assert_eq!(message.status.as_deref(), Some("almost\u{fffd}"));
        for other in [
            "READY=11",
            "READY",
            "=",
            "",
            "BARRIER=1",
            "FDSTORE=1\nFDNAME=x",
            "ERRNO=x",
            "EXIT_STATUS=-1\nBUSERROR=org.x",
            "MONOTONIC_USEC=soon",
            " WATCHDOG=1",
            "watchdog=1",
        ] {
            assert_eq!(parse_notify(other.as_bytes()), NotifyMessage::default(), "{other}");
        }
    }

    #[test]
    fn what_a_service_is_doing_is_what_it_said_last() {
        let doing =
            |text: &str| (parse_notify(text.as_bytes()).ready, parse_notify(text.as_bytes()).doing);
        assert_eq!(doing("RELOADING=1\nMONOTONIC_USEC=7"), (false, Some(Doing::Reloading)));
        assert_eq!(doing("RELOADING=1\nREADY=1"), (true, None));
        assert_eq!(doing("READY=1\nSTOPPING=1"), (true, Some(Doing::Stopping)));
    }

    #[test]
    fn a_watchdog_hears_the_graver_word() {
        for (text, ping) in [
            ("WATCHDOG=1", Ping::Well),
            ("WATCHDOG=trigger\nWATCHDOG=1", Ping::Failed),
            ("WATCHDOG=1\nWATCHDOG=trigger", Ping::Failed),
        ] {
            let message = parse_notify(text.as_bytes());
            assert_eq!((message.ping, message.unread), (Some(ping), None), "{text}");
        }
    }

    #[test]
    fn numbers_are_digits_and_the_first_that_is_none_is_named() {
        let message = parse_notify(b"WATCHDOG_USEC=2000000\nEXTEND_TIMEOUT_USEC=5\nMAINPID=42");
        assert_eq!(message.watchdog, Some(Span::seconds(2)));
        assert_eq!(message.more_time, Some(Span::nanos(5_000)));
        assert_eq!((message.main_pid, message.unread), (Some(42), None));
        let forever = parse_notify(format!("WATCHDOG_USEC={}", u64::MAX).as_bytes());
        assert_eq!(forever.watchdog, Some(Span::FOREVER));
        for value in ["", "-1", "+1", "1e3", "1 ", "0x1", "\u{663}", "18446744073709551616"] {
            for name in ["WATCHDOG_USEC", "EXTEND_TIMEOUT_USEC", "MAINPID"] {
                let message = parse_notify(format!("{name}={value}\nWATCHDOG=0").as_bytes());
                let unread = NotifyMessage { unread: Some(name), ..NotifyMessage::default() };
                assert_eq!(message, unread, "{value}");
            }
        }
        for pid in ["0", "2147483648"] {
            assert_eq!(parse_notify(format!("MAINPID={pid}").as_bytes()).main_pid, None, "{pid}");
        }
    }

    #[test]
    fn descriptors_that_come_with_a_message_are_closed_and_its_sender_is_known() {
        use std::io::{IoSlice, Read};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let socket = NotifySocket::bind(&path, None).unwrap();
        let (mut reading, writing) = std::os::unix::net::UnixStream::pair().unwrap();
        let sender = UnixDatagram::unbound().unwrap();
        // The most that the kernel takes.
        let rights = [writing.as_raw_fd(); 253];
        let control = [nix::sys::socket::ControlMessage::ScmRights(&rights)];
        let address = UnixAddr::new(&path).unwrap();
        let text = [IoSlice::new(b"BARRIER=1\nREADY=1")];
        let flags = nix::sys::socket::MsgFlags::empty();
        let fd = sender.as_raw_fd();
        nix::sys::socket::sendmsg(fd, &text, &control, flags, Some(&address)).unwrap();
        drop(writing);
        let message = socket.receive().unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!((message.ready, message.sender), (true, Some(own)));
        assert_eq!(reading.read(&mut [0]).unwrap(), 0, "nobody has the other end");
        assert!(socket.receive().is_none());
    }
}
