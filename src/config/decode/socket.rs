//! Where a socket unit listens, and for whom.

use std::net::SocketAddr;

use super::fields::Fields;
use super::{Decoder, Tie};
use crate::config::diagnostic::quoted;
use crate::config::source::At;
use crate::config::yaml::Node;
use crate::model::{Accept, Address, FilePath, LISTEN_MAX, Listen, Socket, UnitName};

/// The keys beside the one that says where; most of them are for a Unix socket only.
const BESIDE: [&str; 4] = ["name", "mode", "user", "group"];
const OF_UNIX: [&str; 3] = ["mode", "user", "group"];
/// Longest name of an address, as systemd has it.
const NAME_MAX: usize = 255;

impl Decoder<'_, '_> {
    /// All that a socket unit says beyond what every unit does.
    pub(super) fn socket(
        &mut self,
        unit: &Node,
        fields: &Fields<'_>,
        base: &FilePath,
    ) -> Option<Socket> {
        let start = At::new(unit.at.start, 0);
        let listen = if let Some(node) = fields.get("listen") {
            self.listen(node)
        } else {
            self.sink.error(start, "a socket needs `listen`");
            None
        };
        let service = if let Some(node) = fields.get("for") {
            self.service_of(node)
        } else {
            self.sink.error(start, "a socket needs `for`").help("name the service that gets it");
            None
        };
        let words = [("lazy", Accept::Lazy), ("eager", Accept::Eager)];
        let accept = fields.get("accept").and_then(|n| self.choice("accept", n, &words, &[]));
        let accept = accept.unwrap_or_default();
        Some(Socket { listen: listen?, service: service?, accept, base_dir: base.clone() })
    }

    /// It is ordered before its service.
    fn service_of(&mut self, node: &Node) -> Option<UnitName> {
        let service = self.unit_name("for", node)?;
        self.refer(Tie::Before, "for", &service, node.at);
        Some(service)
    }

    fn listen(&mut self, node: &Node) -> Option<Vec<Listen>> {
        let items = self.list("listen", node)?;
        if items.is_empty() {
            self.sink.error(node.at, "`listen` names no address");
        }
        if items.len() > LISTEN_MAX {
            let message = format!("`listen` has {} addresses, at most {LISTEN_MAX}", items.len());
            self.sink.error(node.at, message).help("make a second socket unit for the service");
            return None;
        }
        let mut all: Vec<Listen> = Vec::new();
        for item in items {
            let Some(one) = self.listen_at(item) else { continue };
            if all.iter().any(|other| other.address == one.address) {
                let message = format!("`listen` names {} twice", quoted(&one.address.to_string()));
                self.sink.error(item.at, message);
            }
            all.push(one);
        }
        Some(all)
    }

    fn listen_at(&mut self, node: &Node) -> Option<Listen> {
        let (fields, key, value) = self.one_of("listen", node, &BESIDE)?;
        let place = key.name();
        for other in OF_UNIX.iter().filter(|_| place != "unix") {
            if let Some(node) = fields.get(other) {
                let message = format!("`listen.{other}` means nothing with {}", quoted(key.path));
                self.sink.error(node.at, message).help("it belongs to a Unix socket");
            }
        }
        let address = match place {
            "tcp" => self.internet(key.path, value).map(Address::Tcp),
            "udp" => self.internet(key.path, value).map(Address::Udp),
            _ => self.socket_path(key.path, value).map(Address::Unix),
        };
        let name = fields.get("name").and_then(|node| self.descriptor_name(node));
        let mode = fields.get("mode").and_then(|node| self.octal("listen.mode", "0660", node));
        let user = fields.get("user").and_then(|node| self.account("listen.user", node));
        let group = fields.get("group").and_then(|node| self.account("listen.group", node));
        Some(Listen { address: address?, name, mode, user, group })
    }

    /// An address in numbers: looking up a name can take as long as it likes.
    fn internet(&mut self, key: &str, node: &Node) -> Option<SocketAddr> {
        let text = self.text(key, node)?;
        let Ok(address) = text.parse::<SocketAddr>() else {
            self.wrong(key, "`ADDRESS:PORT` in numbers", node);
            self.sink.help_last("write it as `0.0.0.0:80`, `127.0.0.1:80` or `[::]:80`");
            return None;
        };
        if address.port() == 0 {
            self.sink
                .error(node.at, format!("`{key}`: port 0 is no port"))
                .help("nobody could know at which port it listens");
            return None;
        }
        Some(address)
    }

    /// As `sd_listen_fds_with_names(3)` has it: what separates names can be in none.
    fn descriptor_name(&mut self, node: &Node) -> Option<String> {
        let text = self.text("listen.name", node)?;
        let is_bad = |c: char| c == ':' || c.is_control() || !c.is_ascii();
        if text.is_empty() || text.len() > NAME_MAX || text.contains(is_bad) {
            let expected = format!("1 to {NAME_MAX} ASCII characters without `:`");
            self.wrong("listen.name", &expected, node);
            return None;
        }
        Some(text.to_owned())
    }
}
