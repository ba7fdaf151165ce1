//! What only the whole set shows of sockets: whom they are for, and whether two want one address or
//! one number.

use std::collections::BTreeMap;

use super::decode::Decoded;
use super::diagnostic::{Diagnostic, Spot, quoted};
use crate::model::{Address, Kind, Ready, Socket, Spec, UnitName};

/// The first descriptor that is a socket, `sd_listen_fds(3)`.
const FIRST: usize = 3;

/// Every mistake with sockets.
pub(super) fn check(
    units: &BTreeMap<&UnitName, &Decoded>,
    specs: &BTreeMap<&UnitName, &Spec>,
    found: &mut Vec<Diagnostic>,
) {
    for (name, socket) in sockets(specs) {
        let Some(spot) = for_spot(units, name) else { continue };
        let kind = specs.get(&socket.service).map_or(Kind::Service, |spec| spec.kind);
        if kind != Kind::Service && socket.service != *name {
            let (service, kind) = (&socket.service, kind.as_str());
            let message = format!("`for` of `{name}` names `{service}`, which is a {kind}");
            let mut wrong = Diagnostic::error(spot.clone(), &message);
            wrong.help("only a service gets sockets");
            found.push(wrong);
        }
    }
    numbers(units, specs, found);
    addresses(units, specs, found);
}

/// All socket units, in order.
fn sockets<'a>(
    specs: &'a BTreeMap<&'a UnitName, &'a Spec>,
) -> impl Iterator<Item = (&'a UnitName, &'a Socket)> {
    specs.iter().filter_map(|(name, spec)| Some((*name, spec.socket.as_deref()?)))
}

/// Where a unit of this source says whom it is for.
fn for_spot<'a>(units: &BTreeMap<&UnitName, &'a Decoded>, name: &UnitName) -> Option<&'a Spot> {
    let mut references = units.get(name)?.references.iter();
    references.find(|reference| reference.key == "for").map(|reference| &reference.spot)
}

/// Services that say by a descriptor that they are ready which is to be a socket.
fn numbers(
    units: &BTreeMap<&UnitName, &Decoded>,
    specs: &BTreeMap<&UnitName, &Spec>,
    found: &mut Vec<Diagnostic>,
) {
    let mut counts: BTreeMap<&UnitName, (usize, Option<&Spot>)> = BTreeMap::new();
    for (name, socket) in sockets(specs) {
        let (count, spot) = counts.entry(&socket.service).or_default();
        *count = count.saturating_add(socket.listen.len());
        *spot = spot.or(for_spot(units, name));
    }
    for (service, (count, socket_spot)) in counts {
        let ready = specs.get(service).and_then(|spec| spec.process.as_ref()).map(|p| &*p.ready);
        let Some(Ready::Fd(number)) = ready else { continue };
        let last = FIRST.saturating_add(count).saturating_sub(1);
        let spot = units.get(service).map(|unit| &unit.spot).or(socket_spot);
        let Some(spot) = spot.filter(|_| usize::from(*number) <= last) else { continue };
        let message = format!("`ready.fd: {number}` of `{service}` is the number of a socket");
        let mut clash = Diagnostic::error(spot.clone(), &message);
        clash.help(format!("its sockets are {FIRST} to {last}: use a higher number"));
        found.push(clash);
    }
}

/// Units that would listen at the same address.
fn addresses(
    units: &BTreeMap<&UnitName, &Decoded>,
    specs: &BTreeMap<&UnitName, &Spec>,
    found: &mut Vec<Diagnostic>,
) {
    let mut first: BTreeMap<String, &UnitName> = BTreeMap::new();
    for (name, socket) in sockets(specs) {
        for one in &socket.listen {
            let words = match &one.address {
                Address::Unix(path) => {
                    socket.base_dir.as_path().join(path.raw()).display().to_string()
                }
                Address::Tcp(_) | Address::Udp(_) => one.address.to_string(),
            };
            let other = *first.entry(words.clone()).or_insert(name);
            if other == name {
                continue;
            }
            let spots = [name, other].map(|name| units.get(name).map(|unit| &unit.spot));
            let [here, there] = spots;
            let Some(spot) = here.or(there) else { continue };
            let message = format!("`{other}` and `{name}` would both listen at {}", quoted(&words));
            let mut clash = Diagnostic::error(spot.clone(), &message);
            if let (Some(_), Some(there)) = (here, there) {
                clash.related(there.clone(), "this one too");
            }
            found.push(clash);
        }
    }
}
