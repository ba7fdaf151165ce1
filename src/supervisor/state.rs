//! Everything that decisions look at, as one value: what a command takes home to draw it, or to try
//! in imagination what would follow. It holds no word of a unit that decides nothing, and no secret.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Supervisor;
use super::keeper_unit::is_internal;
use crate::model::{
    Command, Desired, Gather, Hooks, Instance, InstanceId, Monotonic, Observed, ProcessSpec,
    Question, Ready, Reload, Shared, Span, Spec, StopAction, StopStep, Unit, UnitName, Wall,
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
        let source: Arc<str> = source.into();
        let unit = |spec: Arc<Spec>| Unit::new(spec, Arc::clone(&source));
        let units = specs.into_iter().map(|spec| (spec.name.clone(), unit(spec))).gather();
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
            .gather();
        let known = self.observed.iter().filter(|(id, _)| !self.is_own(id));
        State {
            instances: known.map(|(id, instance)| (id.clone(), instance.clone())).gather(),
            desired: Desired { generation: self.desired.generation, units, ..Desired::default() },
            now: self.system.now(),
            wall: self.system.wall(),
            shutdown_timeout: self.shutdown_budget,
            shutting_down: self.shutdown.is_some(),
        }
    }
}

/// A unit without what decides nothing: its variables and commands may be secret, its words are long.
/// Its fingerprint is kept as it is.
fn bare(unit: &Unit) -> Unit {
    let mut unit = unit.clone();
    let Spec {
        description,
        documentation,
        process,
        conditions,
        stop,
        reload,
        health,
        hooks,
        kind: _,
        name: _,
        labels: _,
        enabled: _,
        socket: _,
        relations: _,
        instances: _,
        restart: _,
        success_exit: _,
        on_success: _,
        on_failure: _,
        essential: _,
        start_timeout: _,
        watch: _,
        schedule: _,
        logs: _,
    } = Arc::make_mut(&mut unit.spec);
    description.clear();
    *documentation = Shared::default();
    if let Some(process) = process {
        bare_process(process);
    }
    // What is shared stays so where there is nothing to leave out.
    if conditions.command.is_some()
        && let Some(command) = &mut conditions.command
    {
        clear(command);
    }
    let has_command = |step: &StopStep| matches!(step.action, StopAction::Command(_));
    if stop.steps.iter().any(has_command) {
        for step in &mut stop.steps {
            if let StopAction::Command(command) = &mut step.action {
                clear(command);
            }
        }
    }
    if let Some(Reload::Command(command)) = reload.as_deref_mut() {
        clear(command);
    }
    if let Some(health) = health {
        bare_question(&mut health.probe.question);
    }
    if **hooks != Hooks::default() {
        let Hooks { pre_start, post_start, pre_stop, post_stop } = &mut **hooks;
        for hook in [pre_start, post_start, pre_stop, post_stop].into_iter().flatten() {
            clear(&mut hook.command);
        }
    }
    unit
}

fn bare_process(process: &mut ProcessSpec) {
    clear(&mut process.command);
    process.env = Shared::default();
    process.env_files = Shared::default();
    if matches!(*process.ready, Ready::Asked(_))
        && let Ready::Asked(probe) = &mut *process.ready
    {
        bare_question(&mut probe.question);
    }
}

fn bare_question(question: &mut Question) {
    if let Question::Exec(command) = question {
        clear(command);
    }
}

fn clear(command: &mut Command) {
    *command = Command::Argv(Vec::new());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, SourceFile};
    use crate::model::FilePath;

    #[test]
    fn no_command_and_no_variable_is_taken_home() {
        let text = "\
            command: [run, SECRET]\n\
            env: {A: SECRET}\n\
            env_files: [SECRET]\n\
            description: SECRET\n\
            conditions: {command: [test, SECRET]}\n\
            ready: {exec: [ask, SECRET], interval: 1s}\n\
            health: {exec: 'ask SECRET'}\n\
            reload: {command: [hup, SECRET]}\n\
            stop: {steps: [{command: [end, SECRET], wait: 1s}, {signal: TERM, wait: 1s}]}\n\
            pre_start: [{command: [one, SECRET]}]\n\
            post_stop: ['two SECRET']\n";
        let path = FilePath::from("/units/a.yaml");
        let files = [SourceFile { path, text: text.as_bytes().to_vec() }];
        let loaded = config::load(&files, &BTreeMap::new(), &[]);
        let drawn = config::render(&loaded.diagnostics, &files, false);
        assert!(loaded.diagnostics.is_empty(), "{drawn}");
        let state = State::of_specs(loaded.specs, "/units");
        let unit = state.desired.units.values().next().unwrap();
        let said = |unit: &Unit| serde_json::to_string(unit).unwrap();
        assert_eq!(said(unit).matches("SECRET").count(), 11);
        let bare = bare(unit);
        assert_eq!(said(&bare).matches("SECRET").count(), 0, "{}", said(&bare));
        assert_eq!((bare.hash, bare.spec.stop.steps.len()), (unit.hash, 2));
    }
}
