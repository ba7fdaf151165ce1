//! Sockets that opm opens and keeps open for a service.

use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::name::UnitName;
use super::path::FilePath;
use super::template::Template;

/// Longest path of a unix socket, in bytes: `sun_path` has 108 with the final NUL, unix(7).
pub const SOCKET_PATH_MAX: usize = 107;

/// Most addresses of one socket unit. Each takes a descriptor of opm and one of the service.
pub const LISTEN_MAX: usize = 32;
/// Mode of a Unix socket whose unit names none.
pub const UNIX_MODE: u32 = 0o660;

/// Where a socket unit listens, and for whom.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Socket {
    /// Its addresses; never empty.
    pub listen: Vec<Listen>,
    /// The service that gets the sockets.
    #[serde(rename = "for")]
    pub service: UnitName,
    /// What starts the service.
    #[serde(default)]
    pub accept: Accept,
    /// The directory of the unit's file: relative paths start here.
    pub base_dir: FilePath,
}

/// What starts the service of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Accept {
    /// The first connection or datagram.
    #[default]
    Lazy,
    /// Whatever starts the socket.
    Eager,
}

/// One address.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Listen {
    /// Where.
    #[serde(flatten)]
    pub address: Address,
    /// Its name for the service; the unit's where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Mode of a Unix socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
    /// Owner of a Unix socket, by name or number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Group of a Unix socket, by name or number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
}

/// Where a socket listens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Address {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A UDP address.
    Udp(SocketAddr),
    /// A Unix stream socket at this path.
    Unix(Template),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "tcp {address}"),
            Self::Udp(address) => write!(f, "udp {address}"),
            Self::Unix(path) => write!(f, "unix {}", path.raw()),
        }
    }
}

impl Socket {
    /// All addresses in a few words.
    pub fn words(&self) -> String {
        let words: Vec<String> = self.listen.iter().map(|one| one.address.to_string()).collect();
        words.join(", ")
    }
}

/// An address that is listened at: by its words, and the inode of its socket, by which it is found
/// in a process that has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// `tcp 0.0.0.0:80`.
    pub at: String,
    /// As in `/proc/PID/fd`.
    pub inode: u64,
    /// Device and inode of its file, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<(u64, u64)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_saved_as_an_operator_writes_it() {
        let socket = Socket {
            listen: vec![
                Listen {
                    address: Address::Tcp("[::1]:80".parse().unwrap()),
                    name: Some("http".to_owned()),
                    mode: None,
                    user: None,
                    group: None,
                },
                Listen {
                    address: Address::Unix(Template::literal("web.sock")),
                    name: None,
                    mode: Some(0o600),
                    user: None,
                    group: None,
                },
            ],
            service: UnitName::parse("web").unwrap(),
            accept: Accept::Lazy,
            base_dir: FilePath::from("/units"),
        };
        let json = serde_json::to_value(&socket).unwrap();
        assert_eq!(json["listen"][0], serde_json::json!({"tcp": "[::1]:80", "name": "http"}));
        assert_eq!(serde_json::from_value::<Socket>(json).unwrap(), socket);
        assert_eq!(socket.words(), "tcp [::1]:80, unix web.sock");
    }
}
