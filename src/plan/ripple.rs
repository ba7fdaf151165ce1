//! Whom a change of a unit takes along: those who require it, and theirs; and those who have waited for it.
//!
//! Foretells what `order.rs` will find; `tests/sim/foretold.rs` holds the two together.

use std::collections::{BTreeMap, BTreeSet};

use super::changes::{Change, Effect};
use super::{View, order};
use crate::model::{
    Blocker, Desired, Gather, Graph, Need, Observed, OnDependencyRestart, Phase, Strength, Unit,
    UnitName, Until,
};

/// Units that go, since they require from now on what is not to be had.
pub(super) fn mark_lost(changes: &mut [Change], view: &View<'_>) {
    for change in changes {
        let stays = matches!(change.effect, Effect::Live | Effect::Restart);
        if !stays || !runs(view.observed, &change.unit) {
            continue;
        }
        if let Some(cause) = order::lost(view, &change.unit) {
            change.effect = Effect::Stop;
            change.because = Some(cause);
        }
    }
}

/// Units that have waited for what would not have come, and begin now that it does, or that they need it no more.
pub(super) fn add_waiting(changes: &mut Vec<Change>, was: &Graph, view: &View<'_>) {
    let mut places: BTreeMap<UnitName, usize> = places(changes);
    let mut queue: Vec<UnitName> = places.keys().cloned().collect();
    let begins = |change: &&Change| matches!(change.effect, Effect::Create | Effect::Start);
    let begin = changes.iter().filter(begins).map(|change| change.unit.clone());
    let mut coming: BTreeSet<UnitName> = begin.gather();
    while let Some(cause) = queue.pop() {
        let nodes = [was.node(&cause), view.graph.node(&cause)];
        let others = nodes.into_iter().flatten().flat_map(|node| {
            let dependents = node.dependents.iter().map(|need| &need.unit);
            dependents.chain(&node.conflicts).cloned()
        });
        for unit in [cause.clone()].into_iter().chain(others) {
            if coming.contains(&unit) || !has_waited_enough(view, &unit, &coming) {
                continue;
            }
            match places.get(&unit).and_then(|place| changes.get_mut(*place)) {
                Some(change) if change.effect == Effect::Live => change.effect = Effect::Start,
                Some(_) => continue,
                None => {
                    places.insert(unit.clone(), changes.len());
                    changes.push(Change::by(&cause, unit.clone(), Effect::Start));
                }
            }
            coming.insert(unit.clone());
            queue.push(unit);
        }
    }
}

/// Whether a unit is down because something is in its way that would not go, and that is so no more.
fn has_waited_enough(view: &View<'_>, unit: &UnitName, coming: &BTreeSet<UnitName>) -> bool {
    let is_gone = |blocker: &Blocker| {
        let comes = matches!(blocker.until, Until::Is(_)) && coming.contains(&blocker.unit);
        !blocker.stuck || comes
    };
    let waits = view.observed.of_unit(unit).any(|(id, instance)| {
        let Phase::Waiting { on, .. } = &instance.phase else { return false };
        view.wants(id) && on.iter().any(|blocker| blocker.stuck)
    });
    waits && !runs(view.observed, unit) && order::blockers(view, unit).iter().all(is_gone)
}

fn runs(observed: &Observed, unit: &UnitName) -> bool {
    observed.of_unit(unit).any(|(_, known)| known.run.is_some())
}

fn places(changes: &[Change]) -> BTreeMap<UnitName, usize> {
    let place = |(place, change): (usize, &Change)| (change.unit.clone(), place);
    changes.iter().enumerate().map(place).gather()
}

/// Units that have to go down and come back because one that they require does, or because they go
/// along with its restarts.
pub(super) fn add_dependents(
    changes: &mut Vec<Change>,
    new: &Desired,
    graph: &Graph,
    observed: &Observed,
) {
    let mut queue: Vec<(UnitName, Loss)> = changes
        .iter()
        .filter_map(|change| Some((change.unit.clone(), loss(change, new, observed)?)))
        .collect();
    let mut known: BTreeMap<UnitName, Loss> = queue.iter().cloned().gather();
    let mut places = places(changes);
    while let Some((cause, loss)) = queue.pop() {
        let dependents = graph.node(&cause).map(|node| node.dependents.clone()).unwrap_or_default();
        for Need { unit, strength, .. } in dependents {
            let Some(dependent) = new.units.get(&unit) else { continue };
            let restarts = dependent.spec.relations.on_dependency_restart;
            let follows = loss != Loss::Part || restarts == OnDependencyRestart::Restart;
            if strength != Strength::Requires || !follows || !runs(observed, &unit) {
                continue;
            }
            let (effect, follow) = match loss {
                Loss::Good => (Effect::Stop, Loss::Good),
                Loss::Whole | Loss::Part => (Effect::Restart, Loss::Whole),
            };
            let follow = if others_come(dependent, observed) { Loss::Part } else { follow };
            if known.get(&unit).is_some_and(|known| *known >= follow) {
                continue;
            }
            known.insert(unit.clone(), follow);
            queue.push((unit.clone(), follow));
            match places.get(&unit).and_then(|place| changes.get_mut(*place)) {
                Some(change) if change.effect == Effect::Stop => {}
                Some(change) => {
                    change.effect = effect;
                    change.because = Some(cause.clone());
                }
                None => {
                    places.insert(unit.clone(), changes.len());
                    changes.push(Change::by(&cause, unit, effect));
                }
            }
        }
    }
}

/// What those who require a unit lose by a change of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Loss {
    /// Instances restart, and others are there or come meanwhile.
    Part,
    /// All of it is away for a while.
    Whole,
    /// All of it, for good.
    Good,
}

/// Whether instances are wanted that are not there: those who require the unit wait for these.
fn others_come(unit: &Unit, observed: &Observed) -> bool {
    let runs = |id| observed.get(id).is_some_and(|known| known.run.is_some());
    unit.spec.instance_ids().iter().any(|id| !runs(id) && unit.hold_of(id).is_none())
}

/// Whether instances go on as they run, where others of the unit restart: those whose number has changed.
fn others_stay(unit: &Unit, observed: &Observed) -> bool {
    unit.spec.instance_ids().iter().any(|id| {
        observed.get(id).is_some_and(|known| {
            let is_as_wanted = known.hash == unit.hash && known.epoch == unit.epoch_of(id);
            known.run.is_some() && is_as_wanted && unit.hold_of(id).is_none()
        })
    })
}

fn loss(change: &Change, new: &Desired, observed: &Observed) -> Option<Loss> {
    let unit = new.units.get(&change.unit);
    match change.effect {
        // A service goes on without the socket that it had.
        Effect::Remove if unit.is_some_and(|unit| unit.spec.socket.is_some()) => Some(Loss::Whole),
        // It is wanted still: instances that are to come keep those who require it.
        Effect::Stop
            if change.because.is_some() && unit.is_some_and(|it| others_come(it, observed)) =>
        {
            Some(Loss::Part)
        }
        Effect::Remove | Effect::Stop => Some(Loss::Good),
        Effect::Restart => {
            let has_others =
                unit.is_some_and(|unit| others_come(unit, observed) || others_stay(unit, observed));
            let is_part = has_others || rolling(change, new).is_some();
            Some(if is_part { Loss::Part } else { Loss::Whole })
        }
        // A service that runs is given a new socket by a restart.
        Effect::Create => unit.filter(|unit| unit.spec.socket.is_some()).map(|_| Loss::Whole),
        Effect::Live | Effect::Start => None,
    }
}

/// How many instances restart at a time, where others go on meanwhile.
pub(super) fn rolling(change: &Change, new: &Desired) -> Option<u32> {
    let unit = new.units.get(&change.unit).filter(|_| change.effect == Effect::Restart)?;
    let batch = usize::try_from(unit.rolling?).unwrap_or(usize::MAX);
    unit.rolling.filter(|_| batch < unit.spec.instance_ids().len())
}
