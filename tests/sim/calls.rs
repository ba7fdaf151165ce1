//! What must hold of services with lazy sockets: they start because somebody connects, or wishes it.

use std::collections::{BTreeMap, BTreeSet};

use opm::model::{
    AtLimit, EndAction, Happening, InstanceId, Monotonic, Reason, Spec, UnitName, Verdict,
};

use crate::check::Check;
use crate::scene::{Scene, Seen};

/// No service behind a lazy socket starts without a connection or a wish since its last start.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    /// When there was last a reason for a start of a unit.
    reasons: BTreeMap<UnitName, Monotonic>,
    begun: BTreeMap<InstanceId, Monotonic>,
    /// Those that are to start again by themselves.
    again: BTreeSet<InstanceId>,
    /// Those that a new definition lets begin anew.
    ended: BTreeSet<InstanceId>,
}

impl Calls {
    fn reason(&mut self, unit: &UnitName, at: Monotonic) {
        self.reasons.insert(unit.clone(), at);
    }

    fn begins(&mut self, scene: &Scene, id: &InstanceId, at: Monotonic) -> Result<(), String> {
        let before = self.begun.insert(id.clone(), at);
        let is_again = self.again.remove(id);
        let reason = self.reasons.get(&id.unit);
        let has_reason = reason.is_some_and(|reason| before.is_none_or(|before| *reason >= before));
        if scene.is_lazy(&id.unit) && !is_again && !has_reason {
            return Err(format!("{id} starts, and nobody has connected or asked for it"));
        }
        Ok(())
    }
}

/// The units that the end of another one starts.
fn started_by(spec: &Spec) -> impl Iterator<Item = &UnitName> {
    let ends = [&spec.on_success, &spec.on_failure].into_iter().filter_map(|end| match &**end {
        EndAction::Start(unit) => Some(unit),
        EndAction::None | EndAction::Shutdown => None,
    });
    let limit = if let AtLimit::Start(unit) = &spec.restart.at_limit { Some(unit) } else { None };
    ends.chain(limit)
}

impl Check for Calls {
    fn see(&mut self, scene: &Scene, at: Monotonic, seen: &Seen) -> Result<(), String> {
        match seen {
            Seen::Connects { unit } => self.reason(unit, at),
            Seen::Asks { units: Some(units) } => {
                for unit in units {
                    self.reason(unit, at);
                }
            }
            // What was decided last is not told.
            Seen::SupervisorDies | Seen::Unanswered => {
                for unit in scene.desired.units.keys() {
                    self.reason(unit, at);
                }
            }
            // A unit of another kind is another unit, and begins as one.
            Seen::Saved { desired } => {
                for (name, unit) in &desired.units {
                    let old = scene.spec(name).filter(|old| **old != *unit.spec);
                    let is_other = old.is_some_and(|old| old.kind != unit.spec.kind);
                    let has_ended = self.ended.iter().any(|id| id.unit == *name);
                    // What it began before, for no reason of a socket's, may be told only now.
                    let was_eager = scene.spec(name).is_some() && !scene.is_lazy(name);
                    if is_other || (old.is_some() && has_ended) || was_eager {
                        self.reason(name, at);
                    }
                }
            }
            Seen::AllEnd => *self = Self::default(),
            Seen::Noticed(notice) => {
                let id = &notice.event.instance;
                match &notice.event.what {
                    // It comes back as it was.
                    Happening::StopBegan { cause, .. } if cause.spreads() => {
                        self.reason(&id.unit, at);
                    }
                    // The connection may have waited since before the last start.
                    Happening::Called { .. } => {
                        let socket = scene.spec(&id.unit).and_then(|spec| spec.socket.as_ref());
                        if let Some(socket) = socket {
                            self.reason(&socket.service, at);
                        }
                    }
                    Happening::Settled { verdict, .. } => {
                        if matches!(verdict, Verdict::Down | Verdict::Done) {
                            self.ended.remove(id);
                        } else {
                            self.ended.insert(id.clone());
                        }
                        if matches!(verdict, Verdict::Backoff { .. }) {
                            self.again.insert(id.clone());
                        } else {
                            self.again.remove(id);
                        }
                        for unit in scene.spec(&id.unit).into_iter().flat_map(started_by) {
                            self.reason(unit, at);
                        }
                    }
                    Happening::Began { fresh, .. } => {
                        if !fresh || matches!(notice.reason, Some(Reason::Recovered(_))) {
                            self.again.insert(id.clone());
                        }
                        return self.begins(scene, id, at);
                    }
                    _ => {}
                }
            }
            _ => {}
        }
        Ok(())
    }
}
