//! Everything that decisions look at, as one value: what a command takes home to draw it, or to try
//! in imagination what would follow. It holds no word of a unit that decides nothing, and no secret.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Supervisor;
use super::keeper_unit::is_internal;
use crate::model::{
    Command, Desired, Instance, InstanceId, Monotonic, Observed, Span, Spec, Unit, UnitName, Wall,
};
use crate::system::System;

/// What is wanted and what is known, at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
pub struct State {
    /// What is wanted; opm's own units are not in it.
    pub desired: Desired,
    /// What is known.
    pub instances: BTreeMap<InstanceId, Instance>,
    /// The moment.
    pub now: Monotonic,
    /// The same for people.
    pub wall: Wall,
    /// How long a shutdown may take; absent: as long as the units' own times.
    pub shutdown_timeout: Option<Span>,
    /// Whether opm is going down.
    pub shutting_down: bool,
}

impl State {
    /// Units that nothing has happened to yet.
    pub fn of_specs(specs: Vec<Arc<Spec>>, source: &str) -> Self {
        let unit = |spec: Arc<Spec>| Unit::new(spec, source.to_owned());
        let units = specs.into_iter().map(|spec| (spec.name.clone(), unit(spec))).collect();
        Self { desired: Desired { generation: 1, units, ..Desired::default() }, ..Self::default() }
    }

    /// What is known, as decisions take it.
    pub fn observed(&self) -> Observed {
        let mut observed = Observed::default();
        for (id, instance) in &self.instances {
            observed.insert(id.clone(), instance.clone());
        }
        observed
    }
}

impl<S: System> Supervisor<S> {
    /// Everything that decisions look at now.
    pub fn state(&self) -> State {
        let units: BTreeMap<UnitName, Unit> = self
            .desired
            .units
            .iter()
            .filter(|(_, unit)| !is_internal(unit))
            .map(|(name, unit)| (name.clone(), bare(unit)))
            .collect();
        let known = self.observed.iter().filter(|(id, _)| !self.is_own(id));
        State {
            instances: known.map(|(id, instance)| (id.clone(), instance.clone())).collect(),
            desired: Desired { generation: self.desired.generation, units, ..Desired::default() },
            now: self.system.now(),
            wall: self.system.wall(),
            shutdown_timeout: self.shutdown_budget,
            shutting_down: self.shutdown.is_some(),
        }
    }
}

/// A unit without what decides nothing: its variables may be secret, its words are long. Its
/// fingerprint is kept as it is.
fn bare(unit: &Unit) -> Unit {
    let mut unit = unit.clone();
    let spec = Arc::make_mut(&mut unit.spec);
    spec.description.clear();
    spec.documentation.clear();
    if let Some(process) = &mut spec.process {
        process.command = Command::Argv(Vec::new());
        process.env.clear();
        process.env_files.clear();
    }
    unit
}
