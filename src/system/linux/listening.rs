//! The sockets of socket units: opened, handed on, kept over another supervisor, and watched while
//! their service waits for a connection.

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;

use super::super::sockets::{self, Open, Place};
use super::super::{Launch, Listening, RunRef, child, errno_words, launch};
use super::{Linux, Watched};
use crate::model::{Address, Bound, InstanceId, Listen, Stage, StartError};

/// The first descriptor of a service that is a socket, `sd_listen_fds(3)`.
const FIRST_SOCKET: RawFd = 3;

impl Linux {
    /// What [`System::listen`] says.
    pub(super) fn listen_at(
        &mut self,
        listening: &Listening<'_>,
    ) -> Result<Vec<Bound>, StartError> {
        let Listening { instance, run, spec, .. } = *listening;
        let Some(socket) = &spec.socket else { return Ok(Vec::new()) };
        let watched = self.sockets.get(instance).is_some_and(|held| !held.tokens.is_empty());
        self.watch_sockets_of(instance, false);
        let places: Vec<Place> =
            socket.listen.iter().map(|one| self.place(listening, &one.address)).collect();
        let held = self.sockets.entry(instance.clone()).or_default();
        (held.run, held.service) = (Some(run), Some(socket.service.clone()));
        let (mut kept, gone) = std::mem::take(&mut held.open)
            .into_iter()
            .partition::<Vec<Open>, _>(|open| places.contains(&open.place));
        for open in &mut kept {
            open.recall(listening.before);
        }
        close_all(&gone);
        drop(gone);
        let (open, failed) = self.open_all(listening, &places, &mut kept);
        let bound = open.iter().map(Open::bound).collect();
        if let Some(held) = self.sockets.get_mut(instance) {
            held.open = open;
        }
        self.watch_sockets_of(instance, watched);
        failed.map_or(Ok(bound), Err)
    }

    /// What [`System::close_sockets`] says.
    pub(super) fn close_sockets_of(&mut self, instance: &InstanceId) {
        self.watch_sockets_of(instance, false);
        let held = self.sockets.remove(instance).unwrap_or_default();
        close_all(&held.open);
    }

    /// What [`System::watch_sockets`] says.
    pub(super) fn watch_sockets_of(&mut self, instance: &InstanceId, watch: bool) {
        let Some(held) = self.sockets.get_mut(instance) else { return };
        if !watch {
            for token in std::mem::take(&mut held.tokens) {
                self.unwatch(token);
            }
            return;
        }
        if !held.tokens.is_empty() {
            return;
        }
        let numbers: Vec<RawFd> = held.open.iter().map(|open| open.fd.as_raw_fd()).collect();
        let mut tokens = Vec::with_capacity(numbers.len());
        for fd in numbers {
            match self.watch(None, fd, Watched::Caller { socket: instance.clone(), fd }) {
                Ok(token) => tokens.push(token),
                Err(error) => log::error!("{instance}: cannot watch a socket: {error}"),
            }
        }
        if let Some(held) = self.sockets.get_mut(instance) {
            held.tokens = tokens;
        }
    }

    /// Keeps all sockets open over an exec; returns the variable's value that hands them over.
    pub fn hand_over_sockets(&self) -> String {
        sockets::hand_over(&self.sockets)
    }

    /// The exec failed: the sockets are close-on-exec again.
    pub fn take_back_sockets(&self) {
        sockets::take_back(&self.sockets);
    }

    /// Takes the sockets that the program before us handed over by this value.
    pub fn take_sockets(&mut self, handed: &str) {
        self.sockets = sockets::inherited(handed);
    }

    /// Adds the sockets of a service to what its main process is given.
    pub(super) fn give_sockets(
        &self,
        launch: &Launch,
        descriptors: &mut Vec<(RawFd, RawFd)>,
        extra: &mut Vec<(&'static str, OsString)>,
    ) {
        let given = sockets::given_to(&self.sockets, &launch.spec.name);
        if given.is_empty() {
            return;
        }
        let names: Vec<&str> = given.iter().map(|(_, name)| name.as_str()).collect();
        // The child adds its number.
        extra.push((child::LISTEN_PID, OsString::new()));
        extra.push(("LISTEN_FDS", given.len().to_string().into()));
        extra.push(("LISTEN_FDNAMES", names.join(":").into()));
        let numbers = given.iter().map(|(fd, _)| *fd);
        descriptors.extend(numbers.zip(FIRST_SOCKET..));
    }

    /// An address with everything filled in.
    fn place(&self, listening: &Listening<'_>, address: &Address) -> Place {
        let Listening { instance, spec, .. } = *listening;
        match address {
            Address::Tcp(address) => Place::Tcp(*address),
            Address::Udp(address) => Place::Udp(*address),
            Address::Unix(path) => {
                let path = launch::fill(path, &self.origin, instance, 1, spec);
                Place::Unix(spec.base_dir().unwrap_or(Path::new("/")).join(path))
            }
        }
    }

    /// All sockets of a unit in their order, or those that were kept and why there are no others.
    fn open_all(
        &mut self,
        listening: &Listening<'_>,
        places: &[Place],
        kept: &mut Vec<Open>,
    ) -> (Vec<Open>, Option<StartError>) {
        let Listening { instance, spec, .. } = *listening;
        // Nobody can reach one whose file somebody removed.
        let is_lost = |open: &mut Open| !open.is_in_place();
        let lost: Vec<Open> = kept.extract_if(.., is_lost).collect();
        close_all(&lost);
        let mut new = Vec::new();
        let mut all: Vec<Option<Open>> = Vec::new();
        let listen = spec.socket.as_ref().map_or(&[][..], |socket| socket.listen.as_slice());
        for (place, one) in places.iter().zip(listen) {
            if let Some(open) = kept.iter().find(|open| open.place == *place) {
                set_owner(instance, open, one);
                continue;
            }
            match self.open_socket(listening, place, one) {
                Ok(open) => new.push(open),
                Err(error) => {
                    close_all(&new);
                    return (std::mem::take(kept), Some(error));
                }
            }
        }
        kept.append(&mut new);
        for (place, one) in places.iter().zip(listen) {
            let number = kept.iter().position(|open| open.place == *place);
            let mut open = number.map(|number| kept.swap_remove(number));
            if let Some(open) = &mut open {
                let name = one.name.as_deref().unwrap_or(spec.name.as_str());
                name.clone_into(&mut open.name);
            }
            all.push(open);
        }
        (all.into_iter().flatten().collect(), None)
    }

    /// A socket that the unit does not have: from a unit that leaves it, from a process that has it still,
    /// or a new one.
    fn open_socket(
        &mut self,
        listening: &Listening<'_>,
        place: &Place,
        one: &Listen,
    ) -> Result<Open, StartError> {
        let fail = |reason: String, passing: bool| {
            let (stage, subject) = (Stage::Listen, place.to_string());
            StartError { stage, subject, reason, passing }
        };
        if let Some(open) = self.take_from_other(listening, place) {
            set_owner(listening.instance, &open, one);
            return Ok(open);
        }
        if !self.descriptors.for_start(self.null.as_fd()) {
            return Err(fail(errno_words(libc::EMFILE), true));
        }
        let at = place.to_string();
        let before = listening.before.iter().find(|bound| bound.at == at);
        if let Some(bound) = before {
            if let Some(mut open) = self.regain(listening.holders, bound.inode, place) {
                open.recall(listening.before);
                if open.is_in_place() {
                    set_owner(listening.instance, &open, one);
                    return Ok(open);
                }
            }
            log::warn!("{}: {at} could not be kept; it is opened anew", listening.instance);
        }
        sockets::open(place, one).map_err(|reason| fail(reason, false))
    }

    /// A socket of another unit, which is about to close it: nobody who connects meanwhile is refused.
    fn take_from_other(&mut self, listening: &Listening<'_>, place: &Place) -> Option<Open> {
        let is_it = |open: &Open| open.place == *place && open.is_in_place();
        let leaves = |other: &InstanceId| other != listening.instance && (listening.leaves)(other);
        let mut others = self.sockets.iter();
        let (other, held) = others.find(|(id, held)| held.open.iter().any(is_it) && leaves(id))?;
        let (other, watched) = (other.clone(), !held.tokens.is_empty());
        self.watch_sockets_of(&other, false);
        let held = self.sockets.get_mut(&other)?;
        let number = held.open.iter().position(is_it)?;
        let open = held.open.remove(number);
        self.watch_sockets_of(&other, watched);
        log::info!("{}: took {place} over from {other}", listening.instance);
        Some(open)
    }

    /// A socket of an earlier supervisor, from a process of the runs that were given it.
    fn regain(&self, holders: &[RunRef], inode: u64, place: &Place) -> Option<Open> {
        holders.iter().find_map(|run| {
            let leaders = run.leaders.iter().map(|(_, identity)| *identity);
            let members = self.members_now(run).living.into_iter();
            let mut all = leaders.chain(members.map(|member| member.identity));
            all.find_map(|holder| sockets::regain(&holder, inode, place))
        })
    }
}

/// Gives a socket that was open before the mode and owner that it is to have now.
fn set_owner(instance: &InstanceId, open: &Open, listen: &Listen) {
    if let Err(reason) = sockets::set_owner(open, listen) {
        log::warn!("{instance}: {}: {reason}", open.place);
    }
}

/// Takes away the files of sockets that are closed.
fn close_all(sockets: &[Open]) {
    for open in sockets {
        open.remove_file();
    }
}
