//! Runs whose definition has changed since they began.
//!
//! Until it has stopped, whatever is done to such a run is done with what it was begun with: its stop commands
//! and hooks talk to the port that it listens at, and not to that of the next one. This ends with the
//! supervisor; whoever adopts such a run knows only how it is defined now.

use std::sync::Arc;

use super::Supervisor;
use crate::model::{Desired, InstanceId, RunId, Spec, Unit};
use crate::system::System;

/// What a run was begun with.
#[derive(Debug, Clone)]
pub(super) struct Former {
    run: RunId,
    index: u32,
    spec: Arc<Spec>,
}

impl<S: System> Supervisor<S> {
    /// Notes what runs were begun with whose definition is about to be another one.
    pub(super) fn note_former(&mut self, new: &Desired) {
        for (name, old) in &self.desired.units {
            let is_same = |unit: &Unit| Arc::ptr_eq(&unit.spec, &old.spec);
            if new.units.get(name).is_some_and(is_same) {
                continue;
            }
            let is_fixed = |id: &InstanceId| {
                new.units.get(name).is_some_and(|new| {
                    let index = |spec: &Spec| spec.instance_index(id);
                    new.spec.process == old.spec.process && index(&new.spec) == index(&old.spec)
                })
            };
            for (id, instance) in self.observed.of_unit(name) {
                let Some(run) = instance.run.as_ref().map(|run| run.id) else { continue };
                // What one was begun with that is older still is known already, or not any more.
                if instance.hash != old.hash || is_fixed(id) {
                    continue;
                }
                let index = old.spec.index_of(id);
                let former = Former { run, index, spec: Arc::clone(&old.spec) };
                let known = self.former.entry(id.clone()).or_insert_with(|| former.clone());
                if known.run != run {
                    *known = former;
                }
            }
        }
    }

    /// For a run that was begun by another definition than `spec`: this one, with all that is fixed when a
    /// run starts as it was then; and its place among the instances.
    pub(super) fn former_of(
        &self,
        id: &InstanceId,
        run: RunId,
        spec: &Spec,
    ) -> Option<(Arc<Spec>, u32)> {
        let former = self.former.get(id).filter(|former| former.run == run)?;
        let process = former.spec.process.clone();
        Some((Arc::new(Spec { process, ..spec.clone() }), former.index))
    }
}
