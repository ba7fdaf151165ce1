//! Sockets that opm opens for services, and keeps open while these come and go.
//!
//! opm binds and listens, and never accepts: what comes waits in the kernel until the service takes
//! it. A socket is known by its place; one whose place is named again is left as it is.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use mio::Token;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockProtocol, SockType, SockaddrLike, SockaddrStorage,
    UnixAddr, bind, getsockname, getsockopt, listen, setsockopt, socket, sockopt,
};

use super::{accounts, plain, set_inheritable, sys};
use crate::model::{Bound, Identity, InstanceId, Listen, RunId, UNIX_MODE, UnitName};

/// How many connections wait in the kernel for the service to take them: as many as it allows.
const BACKLOG: Backlog = Backlog::MAXCONN;
/// Most descriptors of one process that are looked through for a socket.
const DESCRIPTORS_MAX: usize = 65_536;

/// Where a socket is, with everything filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    Tcp(SocketAddr),
    Udp(SocketAddr),
    Unix(PathBuf),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "tcp {address}"),
            Self::Udp(address) => write!(f, "udp {address}"),
            Self::Unix(path) => write!(f, "unix {}", path.display()),
        }
    }
}

/// A socket that is open.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) fd: OwnedFd,
    pub(super) place: Place,
    /// Its name for the service.
    pub(super) name: String,
    /// Device and inode of its file, where it has one and they are known.
    file: Option<(u64, u64)>,
}

impl Open {
    fn new(fd: OwnedFd, place: Place) -> Self {
        Self { fd, place, name: String::new(), file: None }
    }

    /// What an earlier supervisor knew of it. One that told nothing of its file made what is there now.
    pub(super) fn recall(&mut self, before: &[Bound]) {
        let Place::Unix(path) = &self.place else { return };
        let inode = self.inode();
        let known = before.iter().find(|bound| bound.inode == inode).and_then(|bound| bound.file);
        self.file = self.file.or(known).or_else(|| identity_of(path));
    }

    /// Whether its file, where it has one, is where it was made: no link, and nobody else's.
    pub(super) fn is_in_place(&self) -> bool {
        match &self.place {
            Place::Unix(path) => self.file.is_some() && identity_of(path) == self.file,
            Place::Tcp(_) | Place::Udp(_) => true,
        }
    }

    /// What is kept of it in the ledger.
    pub(super) fn bound(&self) -> Bound {
        Bound { at: self.place.to_string(), inode: self.inode(), file: self.file }
    }

    /// The inode by which the socket is found in a process that has it.
    pub(super) fn inode(&self) -> u64 {
        nix::sys::stat::fstat(&self.fd).map_or(0, |stat| stat.st_ino)
    }

    /// Takes its file away, unless there is another one by now.
    pub(super) fn remove_file(&self) {
        let Place::Unix(path) = &self.place else { return };
        if self.file.is_some()
            && identity_of(path) == self.file
            && let Err(error) = fs::remove_file(path)
        {
            log::warn!("cannot remove {}: {error}", path.display());
        }
    }
}

/// The sockets of one instance.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// Its run; nothing for what the program before us left, until it is asked for.
    pub(super) run: Option<RunId>,
    pub(super) service: Option<UnitName>,
    pub(super) open: Vec<Open>,
    /// By which they are watched, while they are.
    pub(super) tokens: Vec<Token>,
}

/// The sockets of all instances.
pub(super) type Sockets = BTreeMap<InstanceId, Held>;

/// What a service is given: descriptors in their order, and their names.
pub(super) fn given_to(sockets: &Sockets, service: &UnitName) -> Vec<(RawFd, String)> {
    let of_service = sockets.values().filter(|held| held.service.as_ref() == Some(service));
    let open = of_service.flat_map(|held| &held.open);
    open.map(|open| (open.fd.as_raw_fd(), open.name.clone())).collect()
}

/// Opens a socket that nobody has yet.
pub(super) fn open(place: &Place, listen: &Listen) -> Result<Open, String> {
    let fd = match place {
        Place::Tcp(address) => open_internet(*address, SockType::Stream),
        Place::Udp(address) => open_internet(*address, SockType::Datagram),
        Place::Unix(path) => return open_unix(path, listen),
    };
    let fd = fd.map_err(|error| reason(&error))?;
    Ok(Open::new(fd, place.clone()))
}

fn reason(error: &io::Error) -> String {
    plain(&error.to_string())
}

fn open_internet(address: SocketAddr, kind: SockType) -> io::Result<OwnedFd> {
    let family = if address.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let fd = socket(family, kind, SockFlag::SOCK_CLOEXEC, None::<SockProtocol>)?;
    if address.is_ipv6() {
        // What it listens at does not depend on a setting of the system.
        setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
    }
    let is_stream = kind == SockType::Stream;
    if is_stream {
        // With UDP it would let two have the same address.
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    }
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    if is_stream {
        listen(&fd, BACKLOG)?;
    }
    Ok(fd)
}

/// Mode and owner are set before anybody can connect.
fn open_unix(path: &Path, spec: &Listen) -> Result<Open, String> {
    clear_the_way(path)?;
    let fail = |error: nix::Error| reason(&error.into());
    let address = UnixAddr::new(path).map_err(fail)?;
    let none = None::<SockProtocol>;
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, none)
        .map_err(fail)?;
    bind(fd.as_raw_fd(), &address).map_err(fail)?;
    let mut open = Open::new(fd, Place::Unix(path.to_owned()));
    open.file = identity_of(path);
    let done = set_owner(&open, spec).and_then(|()| listen(&open.fd, BACKLOG).map_err(fail));
    if let Err(reason) = done {
        open.remove_file();
        return Err(reason);
    }
    Ok(open)
}

/// Gives the file of a Unix socket its mode and owner; of any other socket nothing. Never of another file: who may
/// write in its directory could have put a link in its place.
pub(super) fn set_owner(open: &Open, spec: &Listen) -> Result<(), String> {
    let Place::Unix(path) = &open.place else { return Ok(()) };
    let user = |name: &String| {
        let account = accounts::user(name).map_err(|error| reason(&error))?;
        Ok::<u32, String>(account.ok_or_else(|| format!("there is no user `{name}`"))?.uid)
    };
    let group = |name: &String| {
        let group = accounts::group(name).map_err(|error| reason(&error))?;
        group.ok_or_else(|| format!("there is no group `{name}`"))
    };
    let user = spec.user.as_ref().map(user).transpose()?;
    let group = spec.group.as_ref().map(group).transpose()?;
    // By root it may have been given away before.
    let own = nix::unistd::geteuid();
    let (user, group) = if own.is_root() {
        let own_group = nix::unistd::getegid().as_raw();
        (user.or(Some(own.as_raw())), group.or(Some(own_group)))
    } else {
        (user, group)
    };
    let file = File::options().read(true).custom_flags(libc::O_PATH | libc::O_NOFOLLOW).open(path);
    let file = file.map_err(|error| reason(&error))?;
    let found = file.metadata().map_err(|error| reason(&error))?;
    if !found.file_type().is_socket() || Some((found.dev(), found.ino())) != open.file {
        return Err("there is another file in its place".to_owned());
    }
    // The file itself, whatever is at its path by now, proc_pid_fd(5).
    let itself = format!("/proc/self/fd/{}", file.as_raw_fd());
    if user.is_some() || group.is_some() {
        std::os::unix::fs::chown(&itself, user, group)
            .map_err(|error| format!("cannot change its owner: {}", reason(&error)))?;
    }
    let mode = fs::Permissions::from_mode(spec.mode.unwrap_or(UNIX_MODE));
    fs::set_permissions(&itself, mode)
        .map_err(|error| format!("cannot change its mode: {}", reason(&error)))
}

/// Removes a socket at which nobody listens any more.
fn clear_the_way(path: &Path) -> Result<(), String> {
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(reason(&error)),
        Ok(found) => found,
    };
    if !found.file_type().is_socket() {
        return Err("there is a file of that name, and it is no socket".to_owned());
    }
    match knock(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|error| reason(&error))
        }
        Ok(()) | Err(_) => Err("somebody listens there already".to_owned()),
    }
}

/// Asks whether a socket is open, so that nobody who listens is called: where it is one for connections it
/// has the wrong type, `EPROTOTYPE`, and a dead one refuses (`unix_find_bsd` in the kernel's `af_unix.c`).
fn knock(path: &Path) -> io::Result<()> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let none = None::<SockProtocol>;
    let fd = socket(AddressFamily::Unix, SockType::Datagram, flags, none)?;
    Ok(nix::sys::socket::connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?)
}

/// Device and inode of the file of a socket.
fn identity_of(path: &Path) -> Option<(u64, u64)> {
    let found = fs::symlink_metadata(path).ok().filter(|found| found.file_type().is_socket())?;
    Some((found.dev(), found.ino()))
}

/// Where a descriptor listens; nothing for one that does not.
pub(super) fn place_of(fd: &OwnedFd) -> Option<Place> {
    let kind = getsockopt(fd, sockopt::SockType).ok()?;
    let listens = getsockopt(fd, sockopt::AcceptConn).ok()?;
    let name: SockaddrStorage = getsockname(fd.as_raw_fd()).ok()?;
    let internet = || {
        let four = name.as_sockaddr_in().map(|address| SocketAddr::V4((*address).into()));
        four.or_else(|| name.as_sockaddr_in6().map(|address| SocketAddr::V6((*address).into())))
    };
    match (name.family()?, kind, listens) {
        (AddressFamily::Unix, SockType::Stream, true) => {
            let path = getsockname::<UnixAddr>(fd.as_raw_fd()).ok()?;
            path.path().map(|path| Place::Unix(path.to_owned()))
        }
        (AddressFamily::Inet | AddressFamily::Inet6, SockType::Stream, true) => {
            internet().map(Place::Tcp)
        }
        (AddressFamily::Inet | AddressFamily::Inet6, SockType::Datagram, _) => {
            internet().map(Place::Udp)
        }
        _ => None,
    }
}

/// The socket with this inode from a process that has it, where that is allowed.
pub(super) fn regain(holder: &Identity, inode: u64, place: &Place) -> Option<Open> {
    let wanted = format!("socket:[{inode}]");
    let entries = fs::read_dir(format!("/proc/{}/fd", holder.pid)).ok()?;
    let is_it = |path: &PathBuf| fs::read_link(path).is_ok_and(|link| link.as_os_str() == &*wanted);
    let paths = entries.take(DESCRIPTORS_MAX).flatten().map(|entry| entry.path());
    let number = paths.filter(is_it).find_map(|path| path.file_name()?.to_str()?.parse().ok())?;
    let process = sys::pidfd_open(holder.pid).ok()?;
    let fd = match sys::pidfd_getfd(process.as_fd(), number) {
        Ok(fd) => fd,
        Err(error) => {
            log::warn!("cannot take {place} from process {}: {error}", holder.pid);
            return None;
        }
    };
    // The number may be another's by now; the place says what it is.
    let open = Open::new(fd, place.clone());
    (place_of(&open.fd).as_ref() == Some(place) && open.inode() == inode).then_some(open)
}

/// Keeps all sockets open over an exec. Returns the text that hands them over.
pub(super) fn hand_over(sockets: &Sockets) -> String {
    let mut all = Vec::new();
    for (id, held) in sockets {
        for open in &held.open {
            set_inheritable(open.fd.as_fd(), true);
            all.push(format!("{}:{id}", open.fd.as_raw_fd()));
        }
    }
    all.join(" ")
}

/// The exec failed: all sockets are close-on-exec again.
pub(super) fn take_back(sockets: &Sockets) {
    for open in sockets.values().flat_map(|held| &held.open) {
        set_inheritable(open.fd.as_fd(), false);
    }
}

/// What the program before us handed over by that text.
pub(super) fn inherited(text: &str) -> Sockets {
    let mut sockets = Sockets::new();
    for (id, fd) in inherited_descriptors(text) {
        if let Some(place) = place_of(&fd) {
            sockets.entry(id).or_default().open.push(Open::new(fd, place));
        }
    }
    sockets
}

/// The sockets that a text of `NUMBER:INSTANCE` names, one after the other with a blank between.
pub(super) fn inherited_descriptors(text: &str) -> Vec<(InstanceId, OwnedFd)> {
    let items = text.split(' ').filter_map(|item| item.split_once(':'));
    let named = items.filter_map(|(number, id)| {
        let (number, id) = (number.parse::<RawFd>().ok()?, InstanceId::parse(id).ok()?);
        let link = fs::read_link(format!("/proc/self/fd/{number}")).ok()?;
        link.to_string_lossy().starts_with("socket:").then_some((id, number))
    });
    let taken = named.map(|(id, number)| {
        let fd = sys::take_inherited(number);
        set_inheritable(fd.as_fd(), false);
        (id, fd)
    });
    taken.collect()
}
