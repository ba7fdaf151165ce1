//! What becomes of a unit's output.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{FilePath, Span, Template, UnitName};

/// Where syslog messages go where nothing is said: whoever keeps the machine's log listens there.
const SYSLOG_SOCKET: &str = "/dev/log";
/// The port of syslog where none is said, RFC 5426.
const SYSLOG_PORT: u16 = 514;

/// What the log keeper does with a unit's output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Logs {
    /// Where it goes.
    pub to: LogTarget,
    /// How a line stands there; `None`: as is usual in such a place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<LogFormat>,
    /// How large one file may become, in bytes.
    pub max_size: u64,
    /// How many finished files are kept.
    pub keep: u32,
    /// How long finished files are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_age: Option<Span>,
    /// Whether finished files are compressed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub compress: bool,
    /// How many lines are taken; `None`: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<LogRate>,
}

impl Default for Logs {
    fn default() -> Self {
        let max_size = 10 * 1024 * 1024;
        let to = LogTarget::File;
        Self { to, format: None, max_size, keep: 5, max_age: None, compress: false, rate: None }
    }
}

/// How many lines of an instance are taken. What comes on top is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRate {
    /// So many lines.
    pub lines: u32,
    /// In this time.
    pub per: Span,
}

/// How a line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// Time, stream and mark before it, as container runtimes write it.
    Text,
    /// As a JSON object.
    Json,
    /// As it came.
    Raw,
}

/// Where the log keeper writes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogTarget {
    /// To the instance's directory under opm's log directory.
    File,
    /// Only to opm's own standard output.
    Console,
    /// To this file.
    Path(Template),
    /// To a syslog daemon.
    Syslog(Syslog),
    /// To the standard input of this unit.
    Unit(UnitName),
}

/// A syslog daemon, and how it is spoken to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Syslog {
    /// Where it listens.
    pub address: SyslogAddress,
    /// What kind of program the unit is, 0 to 23, RFC 5424 section 6.2.1.
    pub facility: u8,
    /// Which of the two forms of message it understands.
    pub form: SyslogForm,
}

impl Syslog {
    /// The machine's own, by [`SyslogForm::usual_for`], as a daemon.
    pub fn at(address: SyslogAddress) -> Self {
        let form = SyslogForm::usual_for(&address);
        Self { address, facility: 3, form }
    }
}

/// Where a syslog daemon listens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SyslogAddress {
    /// At this socket for datagrams.
    Unix(FilePath),
    /// At this name or number and port, for datagrams: RFC 5426.
    Udp(String, u16),
    /// At this name or number and port, for a stream of messages with their lengths: RFC 6587.
    Tcp(String, u16),
}

impl SyslogAddress {
    /// Whether it is on this machine for sure, so that nobody has to be told which one it is.
    pub fn is_local(&self) -> bool {
        matches!(self, Self::Unix(_))
    }
}

impl Default for SyslogAddress {
    fn default() -> Self {
        Self::Unix(FilePath::from(SYSLOG_SOCKET))
    }
}

impl fmt::Display for SyslogAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bracket = |host: &String| {
            if host.contains(':') { format!("[{host}]") } else { host.clone() }
        };
        match self {
            Self::Unix(path) => write!(f, "{}", path.as_path().display()),
            Self::Udp(host, port) => write!(f, "udp://{}:{port}", bracket(host)),
            Self::Tcp(host, port) => write!(f, "tcp://{}:{port}", bracket(host)),
        }
    }
}

/// Text that is no address of a syslog daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoSyslogAddress;

impl FromStr for SyslogAddress {
    type Err = NoSyslogAddress;

    fn from_str(text: &str) -> Result<Self, NoSyslogAddress> {
        if text.starts_with('/') {
            return Ok(Self::Unix(FilePath::from(text)));
        }
        let (scheme, rest) = text.split_once("://").ok_or(NoSyslogAddress)?;
        let (host, port) = match rest.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or(NoSyslogAddress)?;
                let port = if port.is_empty() { None } else { Some(port.strip_prefix(':')) };
                (host, port.map(|port| port.ok_or(NoSyslogAddress)).transpose()?)
            }
            None => rest.split_once(':').map_or((rest, None), |(host, port)| (host, Some(port))),
        };
        let port = match port {
            Some(port) => port.parse().ok().filter(|port| *port > 0).ok_or(NoSyslogAddress)?,
            None => SYSLOG_PORT,
        };
        let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:%".contains(&byte);
        if host.is_empty() || !host.bytes().all(is_host) {
            return Err(NoSyslogAddress);
        }
        match scheme {
            "udp" => Ok(Self::Udp(host.to_owned(), port)),
            "tcp" => Ok(Self::Tcp(host.to_owned(), port)),
            _ => Err(NoSyslogAddress),
        }
    }
}

/// A form of syslog messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SyslogForm {
    /// The documented one: RFC 5424.
    Rfc5424,
    /// The one before, of which RFC 3164 tells: what syslog(3) writes.
    Rfc3164,
}

impl SyslogForm {
    /// What listens at such a place: on the machine itself what syslog(3) speaks with, which journald,
    /// rsyslog and busybox take for granted there.
    pub fn usual_for(address: &SyslogAddress) -> Self {
        if address.is_local() { Self::Rfc3164 } else { Self::Rfc5424 }
    }
}

/// The names of facilities, in the order of their numbers, as syslog.conf(5) has them. Three numbers
/// have none there.
pub const FACILITIES: [&str; 24] = [
    "kern",
    "user",
    "mail",
    "daemon",
    "auth",
    "syslog",
    "lpr",
    "news",
    "uucp",
    "cron",
    "authpriv",
    "ftp",
    "ntp",
    "security",
    "console",
    "solaris-cron",
    "local0",
    "local1",
    "local2",
    "local3",
    "local4",
    "local5",
    "local6",
    "local7",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        for (text, written) in [
            ("/dev/log", "/dev/log"),
            ("udp://loghost", "udp://loghost:514"),
            ("tcp://loghost.example.com:601", "tcp://loghost.example.com:601"),
            ("tcp://[::1]:601", "tcp://[::1]:601"),
            ("udp://[fe80::1%eth0]", "udp://[fe80::1%eth0]:514"),
            ("udp://127.0.0.1:5140", "udp://127.0.0.1:5140"),
        ] {
            assert_eq!(text.parse::<SyslogAddress>().unwrap().to_string(), written);
        }
        for wrong in [
            "",
            "dev/log",
            "loghost",
            "loghost:514",
            "http://a",
            "udp://",
            "udp://:514",
            "udp://a:0",
            "udp://a:70000",
            "udp://a b",
            "tcp://[::1",
            "tcp://[::1]601",
            "tcp://a:",
        ] {
            assert_eq!(wrong.parse::<SyslogAddress>(), Err(NoSyslogAddress), "{wrong}");
        }
    }
}
