//! Whom a change of a unit takes along: those who require it, and theirs.
//!
//! Foretells what `order.rs` will find; `tests/sim/foretold.rs` holds the two together.

use std::collections::BTreeMap;

use super::changes::{Change, Effect};
use crate::model::{
    Desired, Gather, Graph, Need, Observed, OnDependencyRestart, Strength, Unit, UnitName,
};

/// Units that have to go down and come back because one that they require does, or because they go
/// along with its restarts.
pub(super) fn add_dependents(
    changes: &mut Vec<Change>,
    new: &Desired,
    graph: &Graph,
    observed: &Observed,
) {
    let runs = |unit: &UnitName| observed.of_unit(unit).any(|(_, known)| known.run.is_some());
    let mut queue: Vec<(UnitName, Loss)> = changes
        .iter()
        .filter_map(|change| Some((change.unit.clone(), loss(change, new, observed)?)))
        .collect();
    let mut known: BTreeMap<UnitName, Loss> = queue.iter().cloned().gather();
    let place = |(place, change): (usize, &Change)| (change.unit.clone(), place);
    let mut places: BTreeMap<UnitName, usize> = changes.iter().enumerate().map(place).gather();
    while let Some((cause, loss)) = queue.pop() {
        let dependents = graph.node(&cause).map(|node| node.dependents.clone()).unwrap_or_default();
        for Need { unit, strength, .. } in dependents {
            let Some(dependent) = new.units.get(&unit) else { continue };
            let restarts = dependent.spec.relations.on_dependency_restart;
            let follows = loss != Loss::Part || restarts == OnDependencyRestart::Restart;
            if strength != Strength::Requires || !follows || !runs(&unit) {
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
                    changes.push(Change {
                        unit,
                        effect,
                        fields: Vec::new(),
                        because: Some(cause.clone()),
                        rolling: None,
                        down_ms: None,
                        held: None,
                    });
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
