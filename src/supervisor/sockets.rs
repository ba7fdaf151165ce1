//! Socket units: they listen while they have a run, and are watched while their service waits for a
//! connection.

use std::sync::Arc;

use super::Supervisor;
use crate::model::{
    Blocker, Happening, InstanceId, Outcome, Phase, Reason, Role, RunId, Spec, StopCause, UnitName,
    Until, Verdict,
};
use crate::plan;
use crate::system::{Listening, RunRef, System};

impl<S: System> Supervisor<S> {
    /// Listens at the addresses of a socket unit for its run.
    pub(super) fn listen(&mut self, id: &InstanceId, run: RunId, spec: &Spec) {
        let Some(socket) = &spec.socket else { return };
        let before = self.instance(id).and_then(|instance| instance.run.as_ref());
        let before = before.map(|run| run.bound.clone()).unwrap_or_default();
        let holders = if before.is_empty() { Vec::new() } else { self.runs_of(&socket.service) };
        let (before, holders) = (before.as_slice(), holders.as_slice());
        let (desired, observed) = (&self.desired, &self.observed);
        let leaves = |other: &InstanceId| {
            let unit = desired.units.get(&other.unit).filter(|unit| !unit.removed);
            let hash = observed.get(other).map(|instance| instance.hash);
            unit.is_none_or(|unit| hash.is_some_and(|hash| hash != unit.hash))
        };
        let leaves = &leaves;
        let listening = Listening { instance: id, run, spec, before, holders, leaves };
        let what = match self.system.listen(&listening) {
            Ok(bound) => Happening::Listens { run, bound },
            Err(error) => {
                let outcome = Outcome::NotStarted(error);
                Happening::Ended { run, role: Role::Main, outcome }
            }
        };
        self.happens(id, what, None);
    }

    fn runs_of(&self, unit: &UnitName) -> Vec<RunRef> {
        self.observed.of_unit(unit).filter_map(|(id, _)| self.run_ref(id)).collect()
    }

    /// After a boot: every socket unit with a run listens, with the sockets of before where they can
    /// be had.
    pub(super) fn regain_sockets(&mut self) {
        let listens = |phase: &Phase| matches!(phase, Phase::Starting | Phase::Up);
        let runs: Vec<(InstanceId, RunId, Arc<Spec>)> = self
            .observed
            .iter()
            .filter(|(_, instance)| listens(&instance.phase))
            .filter_map(|(id, instance)| {
                let spec = &self.desired.units.get(&id.unit)?.spec;
                spec.socket.as_ref()?;
                Some((id.clone(), instance.run.as_ref()?.id, Arc::clone(spec)))
            })
            .collect();
        for (id, run, spec) in runs {
            self.listen(&id, run, &spec);
        }
    }

    /// A run of a socket unit is over: its sockets are closed, unless the next run has them in a
    /// moment.
    pub(super) fn leave_sockets(&mut self, id: &InstanceId, verdict: &Verdict) {
        let is_socket = self.spec_of(id).is_some_and(|spec| spec.socket.is_some());
        let cause = self.instance(id).and_then(|instance| {
            if let Phase::Stopping { cause, .. } = &instance.phase {
                return Some(cause.clone());
            }
            instance.last.as_ref().map(|end| end.cause.clone())
        });
        // One that is of another kind by now has no sockets any more.
        let comes_back = is_socket
            && self.view().wants(id)
            && match verdict {
                Verdict::Backoff { .. } => true,
                Verdict::Down => matches!(cause, Some(StopCause::Changed | StopCause::Restart)),
                Verdict::Failed { .. } | Verdict::Done | Verdict::Skipped { .. } => false,
            };
        if !comes_back {
            self.system.close_sockets(id);
        }
    }

    /// Whether an instance would wait for a connection, so that a start is a wish of its own. One that
    /// is not known yet is from now on: it is told by the wish what it has not served.
    pub(super) fn waits_for_callers(&mut self, id: &InstanceId) -> bool {
        if !plan::is_lazy(&self.view(), &id.unit) {
            return false;
        }
        match self.instance(id).map(|instance| &instance.phase) {
            None => {
                self.happens(
                    id,
                    Happening::Settled { verdict: Verdict::Down, ends_opm: false },
                    Some(Reason::Asked),
                );
                true
            }
            Some(Phase::Down | Phase::Waiting { .. }) => true,
            Some(
                Phase::Starting
                | Phase::Up
                | Phase::Stopping { .. }
                | Phase::Backoff { .. }
                | Phase::Failed { .. }
                | Phase::Done
                | Phase::Skipped { .. }
                | Phase::Unproven { .. },
            ) => false,
        }
    }

    /// The epoch that an instance serves by beginning to wait: all wishes up to now are granted where
    /// nothing but a connection is missing, and where nobody knows what was granted before, as after a
    /// reboot. (It may become a lazy service while it waits.) A task that was due serves none: that it
    /// waits is known to the next supervisor, which would take its time for one that was missed.
    pub(super) fn epoch_served(&self, id: &InstanceId, on: &[Blocker]) -> Option<u64> {
        let calls = on.iter().any(|blocker| blocker.until == Until::Connection);
        let unit = self.desired.units.get(&id.unit)?;
        let (epoch, known) = (unit.epoch_of(id), self.instance(id).map(|instance| instance.epoch));
        let is_untold = known.is_none() && epoch > 0;
        let is_due = unit.spec.schedule.as_ref().map(|_| known.unwrap_or_default());
        if calls || is_untold { Some(epoch) } else { is_due }
    }

    /// Watches the sockets of a service exactly while it waits for a connection.
    pub(super) fn watch_for_callers(&mut self, id: &InstanceId) {
        let Some(node) = self.graph.node(&id.unit).filter(|node| node.is_lazy()) else { return };
        let waits = |socket: &UnitName| {
            let mut instances = self.observed.of_unit(&id.unit);
            instances.any(|(_, instance)| plan::waits_at(instance).any(|at| at == socket))
        };
        let watches: Vec<(InstanceId, bool)> = node
            .sockets
            .iter()
            .map(|(socket, _)| (InstanceId::single(socket), waits(socket)))
            .collect();
        for (socket, watch) in watches {
            self.system.watch_sockets(&socket, watch);
        }
    }
}
