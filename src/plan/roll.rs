//! A restart in turns: of a unit with several instances only so many are away at a time.
//!
//! There is no state of a roll but the instances themselves. Who is up as it was before goes when
//! its turn has come: when fewer than a batch of the others are away, in the order of their names.
//! So a roll goes on after a crash of opm where it was, and stops by itself where an instance does
//! not come up again: then the others stay as they were.

use super::View;
use crate::model::{Instance, InstanceId, Kind, Phase, Unit};

/// Whether an instance that is up and outdated may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It goes now.
    Now,
    /// Others come first.
    Later,
    /// Others do not come up again: it stays as it is.
    Halted,
}

/// Whether the run of an instance is another one than is wanted.
pub fn is_outdated(view: &View<'_>, id: &InstanceId) -> bool {
    let (unit, known) = (view.unit(id), view.observed.get(id));
    unit.zip(known).is_some_and(|(unit, instance)| is_other(unit, id, instance))
}

/// The same of a known instance: by its definition, or since a restart was asked for.
pub(super) fn is_other(unit: &Unit, id: &InstanceId, instance: &Instance) -> bool {
    // A task in progress is not altered by a new definition.
    let is_changed = instance.hash != unit.hash && unit.spec.kind != Kind::Task;
    is_changed || instance.epoch != unit.epoch_of(id)
}

/// Whether the turn of an outdated instance has come; nothing for one that is neither up nor
/// outdated, or whose unit restarts as one.
pub fn turn(view: &View<'_>, id: &InstanceId) -> Option<Turn> {
    let unit = view.unit(id)?;
    let batch = usize::try_from(unit.rolling?).unwrap_or(usize::MAX);
    let is_waiting = |id: &InstanceId| {
        let known = view.observed.get(id);
        view.wants(id) && known.is_some_and(|i| i.phase == Phase::Up && is_other(unit, id, i))
    };
    if !is_waiting(id) {
        return None;
    }
    let (mut away, mut moving, mut before) = (0usize, false, 0usize);
    for other in unit.spec.instance_ids().iter().filter(|other| view.wants(other)) {
        let phase = view.observed.get(other).map(|instance| &instance.phase);
        if phase != Some(&Phase::Up) {
            away = away.saturating_add(1);
            moving |= is_moving(phase);
        } else if other < id && is_waiting(other) {
            before = before.saturating_add(1);
        }
    }
    let is_now = away.saturating_add(before) < batch;
    Some(match (is_now, away < batch || moving) {
        (true, _) => Turn::Now,
        (false, true) => Turn::Later,
        (false, false) => Turn::Halted,
    })
}

/// Whether something will come of an instance that is away by itself, and soon.
fn is_moving(phase: Option<&Phase>) -> bool {
    match phase {
        None | Some(Phase::Down | Phase::Starting | Phase::Stopping { .. }) => true,
        Some(Phase::Waiting { on, .. }) => !on.iter().any(|blocker| blocker.stuck),
        Some(
            Phase::Up
            | Phase::Backoff { .. }
            | Phase::Failed { .. }
            | Phase::Done
            | Phase::Skipped { .. }
            | Phase::Unproven { .. },
        ) => false,
    }
}
