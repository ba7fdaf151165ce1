//! For how long a plan takes units away.

use std::collections::BTreeMap;

use super::changes::{Change, Effect};
use crate::model::{Desired, Graph, Kind, Span, UnitName};

/// For how long each restart takes a unit away at most: its own times, and those of what it needs and
/// what comes before it.
pub(super) fn measure(changes: &mut [Change], old: &Desired, new: &Desired, graph: &Graph) {
    let mut times: BTreeMap<UnitName, Option<Span>> = BTreeMap::new();
    let depth = |change: &Change| graph.node(&change.unit).map_or(1, |node| node.depth);
    changes.sort_by_key(depth);
    for change in changes {
        let needs = graph.node(&change.unit).map_or(&[][..], |node| &node.needs);
        let before = needs.iter().filter_map(|need| times.get(&need.unit).copied());
        let before = before.reduce(|a, b| Some(a?.max(b?))).unwrap_or(Some(Span::ZERO));
        let time = own_time(change, old, new).and_then(|own| {
            let turns = turns(change, new);
            (0..turns).try_fold(before?, |sum, _| Some(sum.plus(own)))
        });
        let is_away = matches!(change.effect, Effect::Restart | Effect::Start | Effect::Create);
        if is_away {
            times.insert(change.unit.clone(), time);
        }
        let is_told = change.effect == Effect::Restart && change.rolling.is_none();
        let is_process = new.units.get(&change.unit).is_some_and(|it| it.spec.process.is_some());
        change.down_ms = time.filter(|_| is_told && is_process).map(Span::as_millis_up);
    }
}

/// In how many turns the instances of a unit restart.
fn turns(change: &Change, new: &Desired) -> usize {
    let instances = || Some(new.units.get(&change.unit)?.spec.instance_ids().len());
    let batch = change.rolling.and_then(|batch| usize::try_from(batch).ok());
    batch.map_or(1, |batch| instances().unwrap_or(1).div_ceil(batch.max(1)))
}

/// How long a unit's own stop and start take at most, where they have an end.
fn own_time(change: &Change, old: &Desired, new: &Desired) -> Option<Span> {
    let new = &new.units.get(&change.unit)?.spec;
    let goes = change.effect == Effect::Restart;
    let old = old.units.get(&change.unit).filter(|_| goes);
    let stop = old.map_or(Span::ZERO, |old| old.spec.stop.time());
    // A task is there when it has completed, which may take as long as it likes.
    let start = if new.kind == Kind::Task { Span::FOREVER } else { new.start_timeout };
    (stop != Span::FOREVER && start != Span::FOREVER).then(|| stop.plus(start))
}
