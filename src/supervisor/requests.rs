//! What commands ask for: each changes the desired state, and is acknowledged when that is saved.
//! The processes follow in the next turn.

use std::collections::BTreeSet;
use std::fmt;

use super::Supervisor;
use super::keeper_unit::without_internal;
use super::targets::Target;
use crate::model::{
    Desired, Graph, Happening, Hold, Instance, InstanceId, Phase, Reason, Role, Signal, Step,
    Strength, UnitName, Wall,
};
use crate::plan;
use crate::system::System;

/// Why a request changes nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such unit or instance.
    Unknown {
        /// What was asked for.
        name: String,
        /// A known name that is close to it.
        similar: Option<String>,
    },
    /// It cannot be done now, or not with this unit.
    Impossible(String),
    /// The desired state could not be saved; the old one is in force.
    NotSaved(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { name, similar: Some(similar) } => {
                write!(f, "no unit `{name}`; did you mean `{similar}`?")
            }
            Self::Unknown { name, similar: None } => write!(f, "no unit `{name}`"),
            Self::Impossible(why) | Self::NotSaved(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for Refusal {}

impl<S: System> Supervisor<S> {
    /// Saves a desired state and puts it in force.
    pub(super) fn commit(&mut self, mut desired: Desired) -> Result<(), Refusal> {
        desired.generation = self.desired.generation.saturating_add(1);
        self.system.save(&without_internal(&desired)).map_err(|error| {
            Refusal::NotSaved(format!("{error}; generation {} stays", self.desired.generation))
        })?;
        self.want_from_now_on(desired);
        Ok(())
    }

    fn want_from_now_on(&mut self, desired: Desired) {
        let graph = Graph::build(&desired);
        self.note_former(&desired);
        self.graph = graph;
        self.desired = desired;
        self.prune_agenda();
        self.note_holds();
        self.touch_all();
    }

    /// Refuses what would bring something up while opm goes down.
    pub(super) fn stays(&self) -> Result<(), Refusal> {
        match &self.shutdown {
            None => Ok(()),
            Some(_) => Err(Refusal::Impossible("opm is shutting down".to_owned())),
        }
    }

    /// Saves the desired state again; returns its generation.
    pub fn save(&mut self) -> Result<u64, Refusal> {
        let saved = self.system.save(&without_internal(&self.desired));
        saved.map_err(|error| Refusal::NotSaved(error.to_string()))?;
        self.touch_all();
        Ok(self.desired.generation)
    }

    /// Starts units or instances: lifts holds, wants what they require, and tries anew what failed
    /// or is done.
    pub fn start(&mut self, names: &[String]) -> Result<Vec<InstanceId>, Refusal> {
        self.stays()?;
        let targets = self.targets(names)?;
        let mut desired = self.desired.clone();
        for target in &targets {
            lift_hold(&mut desired, target);
        }
        let desired = self.starting(desired, &targets, None);
        self.commit_changed(desired)?;
        Ok(self.declared_ids(&targets))
    }

    /// The same with a start of these, as far as no hold keeps them down. `chain`: by the end of another unit, and
    /// how many such starts came one after the other.
    fn starting(
        &mut self,
        mut desired: Desired,
        targets: &[Target],
        chain: Option<u32>,
    ) -> Desired {
        let by_hand = chain.is_none();
        for target in targets {
            self.want(&mut desired, target.unit(), by_hand);
            for id in self.ids(target) {
                let is_due_later = self.rests_until_due(&id);
                let ended = self.observed.get(&id).is_some_and(|instance| match &instance.phase {
                    Phase::Failed { .. } | Phase::Done | Phase::Skipped { .. } => true,
                    Phase::Backoff { .. } => by_hand,
                    // What it comes to would follow from its end, and not from what is asked for now.
                    Phase::Stopping { cause, .. } => !cause.spreads(),
                    Phase::Waiting { fresh, .. } => !fresh && by_hand,
                    Phase::Down | Phase::Starting | Phase::Up | Phase::Unproven { .. } => false,
                });
                // Whoever asks by hand does not wait as an automatic start does.
                let waits_its_turn = by_hand && self.waits_its_turn(&id);
                let waits = self.waits_for_callers(&id);
                if ended || is_due_later || waits_its_turn || waits {
                    desired.raise_epoch(&id);
                    if let Some(chain) = chain {
                        desired.note_automatic(&id, chain);
                    }
                }
            }
        }
        desired
    }

    /// Holds units or instances down, until somebody starts or releases them, or until this time.
    pub fn stop(
        &mut self,
        names: &[String],
        by: &str,
        reason: &str,
        until: Option<Wall>,
    ) -> Result<Vec<InstanceId>, Refusal> {
        let targets = self.targets(names)?;
        let at = self.system.wall();
        if until.is_some_and(|until| until <= at) {
            return Err(Refusal::Impossible("the end of the hold is in the past".to_owned()));
        }
        let mut desired = self.desired.clone();
        for target in &targets {
            let Some(unit) = desired.units.get_mut(target.unit()) else { continue };
            let known = match target {
                Target::Unit(_) => {
                    (unit.started, unit.until_boot) = (false, false);
                    &mut unit.hold
                }
                Target::Instance(id) => &mut unit.instances.entry(id.clone()).or_default().hold,
            };
            // Who stops it last says for how long, and why, if they do; else who stopped it first stays
            // named.
            let kept = known.as_ref().map_or("", |known| known.reason.as_str());
            let reason = if reason.is_empty() { kept } else { reason }.to_owned();
            let is_same =
                |known: &Hold| known.until == until && known.reason == reason && !known.until_boot;
            if !known.as_deref().is_some_and(is_same) {
                *known = Some(Box::new(Hold {
                    by: by.to_owned(),
                    reason,
                    at,
                    until,
                    until_boot: false,
                }));
            }
        }
        self.commit_changed(desired)?;
        Ok(self.all_ids(&targets))
    }

    /// Asks for one restart of units or instances; what is down is started. Of the instances of a unit only so many
    /// are away at a time where `rolling` says so.
    pub fn restart(
        &mut self,
        names: &[String],
        rolling: Option<u32>,
    ) -> Result<Vec<InstanceId>, Refusal> {
        self.stays()?;
        let targets = self.targets(names)?;
        let mut desired = self.desired.clone();
        for target in &targets {
            lift_hold(&mut desired, target);
            self.know_before_wish(target);
            self.want(&mut desired, target.unit(), true);
            if let Some(unit) = desired.units.get_mut(target.unit()) {
                unit.rolling = rolling;
            }
            match target {
                Target::Unit(unit) => {
                    if let Some(unit) = desired.units.get_mut(unit) {
                        unit.epoch = unit.epoch.saturating_add(1);
                    }
                }
                Target::Instance(id) => desired.raise_epoch(id),
            }
        }
        self.commit_changed(desired)?;
        Ok(self.declared_ids(&targets))
    }

    /// Lifts holds, and lets go of what could not be proven.
    pub fn release(&mut self, names: &[String]) -> Result<Vec<InstanceId>, Refusal> {
        let ids = self.reachable(names)?;
        let mut desired = self.desired.clone();
        for name in names {
            match self.target(name) {
                Ok(target) => lift_hold(&mut desired, &target),
                // What was removed has nothing to come up for, and may be such that it does not go.
                Err(_) if self.is_unproven(name) => {}
                Err(refusal) => return Err(refusal),
            }
        }
        self.commit_changed(desired)?;
        for id in &ids {
            self.let_go(id);
        }
        Ok(ids)
    }

    fn is_unproven(&self, name: &str) -> bool {
        let ids = self.reachable(&[name.to_owned()]).unwrap_or_default();
        ids.iter().any(|id| self.observed.get(id).is_some_and(is_unproven))
    }

    /// Looks once more for what could not be proven; what still cannot is forgotten, since somebody
    /// said so.
    fn let_go(&mut self, id: &InstanceId) {
        if !self.observed.get(id).is_some_and(is_unproven) {
            return;
        }
        self.adopt(id, false);
        let unproven = self.observed.get(id).filter(|known| is_unproven(known));
        if let Some(run) = unproven.and_then(|instance| instance.run.as_ref()).map(|run| run.id) {
            self.system.release(id, run, true);
            let event = self.event(id, Happening::Forgotten);
            self.apply(event, Some(Reason::Asked));
        }
    }

    /// Tells runs to read their configuration again.
    pub fn reload(&mut self, names: &[String]) -> Result<Vec<InstanceId>, Refusal> {
        let targets = self.targets(names)?;
        let ids = self.all_ids(&targets);
        let mut steps = Vec::new();
        for id in &ids {
            let instance = self.observed.get(id).filter(|instance| instance.phase == Phase::Up);
            let run = instance.and_then(|instance| instance.run.as_ref());
            let run = run.ok_or_else(|| Refusal::Impossible(format!("`{id}` is not up")))?;
            let unit = self.desired.units.get(&id.unit);
            let action = unit.and_then(|unit| plan::reload_action(&unit.spec, run));
            let action = action.ok_or_else(|| {
                Refusal::Impossible(format!("`{}` has no `reload:` in its unit file", id.unit))
            })?;
            if run.helper_alive() == Some(Role::Reload) {
                return Err(Refusal::Impossible(format!("`{id}` is reloading already")));
            }
            steps.push(Step { instance: id.clone(), action, reason: Reason::Asked });
        }
        for step in steps {
            self.carry_out(step);
        }
        Ok(ids)
    }

    /// Sends a signal to the main processes of running instances, or to whole runs.
    pub fn kill(
        &mut self,
        names: &[String],
        signal: Signal,
        all: bool,
    ) -> Result<Vec<InstanceId>, Refusal> {
        let ids = self.reachable(names)?;
        let mut reached = Vec::new();
        for id in ids {
            if all {
                if let Some(run) = self.run_ref(&id) {
                    self.system.signal_tree(&run, signal);
                    reached.push(id);
                }
            } else if self.signal_main(&id, signal) {
                reached.push(id);
            }
        }
        Ok(reached)
    }

    /// Starts a unit because another one's spec says so. What was stopped by hand stays down.
    pub(super) fn start_by_spec(&mut self, unit: &UnitName, because: &InstanceId) {
        let held = self.desired.units.get(unit).and_then(|unit| unit.hold.as_ref());
        if let Some(hold) = held {
            log::warn!("{because} is to start `{unit}` at its end, which is held by {}", hold.by);
            return;
        }
        let targets = self.targets(&[unit.to_string()]);
        let chain = self.chain_of(because).saturating_add(1);
        let started = targets.and_then(|targets| {
            let desired = self.desired.clone();
            let desired = self.starting(desired, &targets, Some(chain));
            let saved = self.commit_changed(desired.clone());
            if let Err(Refusal::NotSaved(why)) = &saved {
                // It may be an alarm that says so, and is wanted until the next boot at most.
                log::warn!("{because} starts `{unit}`, which a crash of opm would undo: {why}");
                self.want_from_now_on(desired);
                self.system.doubt_saved();
                return Ok(());
            }
            saved
        });
        if let Err(refusal) = started {
            log::error!("{because} is to start `{unit}` at its end: {refusal}");
        }
    }

    /// Whether the end of another unit has asked for a start that is still to come.
    fn waits_its_turn(&self, id: &InstanceId) -> bool {
        let asked = self.desired.units.get(&id.unit).and_then(|unit| unit.automatic(id));
        let served = self.observed.get(id).map(|instance| instance.epoch);
        asked.is_some_and(|asked| Some(asked.epoch) != served)
    }

    /// How many starts by the ends of others led to the run of an instance that comes to its end, one
    /// after the other. A run that was well for a while begins anew.
    fn chain_of(&self, id: &InstanceId) -> u32 {
        let (unit, instance) = (self.desired.units.get(&id.unit), self.observed.get(id));
        let (Some(unit), Some(instance)) = (unit, instance) else { return 0 };
        let Some(automatic) = unit.automatic(id) else { return 0 };
        let was_well = match (&instance.phase, &instance.run) {
            (Phase::Stopping { cause, .. }, Some(run)) => {
                let end = run.as_end(cause.clone(), instance.since, self.system.now());
                plan::was_stable(unit, &end)
            }
            _ => false,
        };
        // What was begun on purpose since has nothing to do with it.
        let is_automatic = instance.restarts > 0 && !was_well;
        if is_automatic { automatic.chain } else { 0 }
    }

    /// An instance is forgotten: with the last one, a removed unit is gone.
    pub(super) fn purge(&mut self, id: &InstanceId) {
        let gone = self.desired.units.get(&id.unit).is_some_and(|unit| unit.removed)
            && self.observed.of_unit(&id.unit).next().is_none();
        if gone {
            // A service goes on without the socket that was removed.
            self.touch_neighbours(id);
            self.desired.take_out(&id.unit);
            self.graph.go_stale();
        }
    }

    /// Puts a desired state in force, or makes sure that the one that is in force is saved.
    pub(super) fn commit_changed(&mut self, desired: Desired) -> Result<(), Refusal> {
        if desired == self.desired {
            return self.put_back().map_err(|error| Refusal::NotSaved(error.to_string()));
        }
        self.commit(desired)
    }

    /// Wants a unit, and whatever it requires that nothing else would bring up. What nobody asks for by hand is wanted
    /// until the next boot.
    fn want(&self, desired: &mut Desired, asked: &UnitName, by_hand: bool) {
        // What is up until the next boot alone is not wanted as somebody wants it who asks by hand.
        let lasting = (by_hand && desired.units.values().any(|unit| unit.until_boot)).then(|| {
            let mut lasting = desired.clone();
            lasting.forget_until_boot();
            Graph::build(&lasting)
        });
        let graph = lasting.as_ref().unwrap_or(&self.graph);
        let mut queue = vec![asked.clone()];
        let mut seen = BTreeSet::new();
        while let Some(name) = queue.pop() {
            if !seen.insert(name.clone()) {
                continue;
            }
            if let Some(unit) = desired.units.get_mut(&name)
                && !graph.is_wanted(&name)
                && unit.hold.is_none()
            {
                (unit.started, unit.until_boot) = (true, !by_hand);
            }
            // What is required is tried anew where it has failed.
            let is_anew = by_hand && name != *asked && !plan::is_lazy(&self.view(), &name);
            let has_failed = |known: &Instance| matches!(known.phase, Phase::Failed { .. });
            let known = self.observed.of_unit(&name).filter(|(_, known)| has_failed(known));
            known.filter(|_| is_anew).for_each(|(id, _)| desired.raise_epoch(id));
            // What is held comes not, and takes nothing along and nothing away.
            let is_free = desired.units.get(&name).is_none_or(|unit| unit.hold.is_none());
            let Some(node) = self.graph.node(&name).filter(|_| is_free) else { continue };
            let required = node.needs.iter().filter(|need| need.strength == Strength::Requires);
            queue.extend(required.map(|need| need.unit.clone()));
            // The one that was asked for last is the one that is meant.
            for other in &node.conflicts {
                if let Some(unit) = desired.units.get_mut(other)
                    && self.graph.is_wanted(other)
                {
                    let reason = format!("conflicts with `{name}`, which was started");
                    let at = self.system.wall();
                    let by = "opm".to_owned();
                    let (until, until_boot) = (None, !by_hand);
                    let hold = Hold { by, reason, at, until, until_boot };
                    let known = unit.hold.get_or_insert(Box::new(hold));
                    known.until_boot &= !by_hand;
                    // After a boot it is as it was.
                    unit.started &= !by_hand;
                    unit.until_boot &= !by_hand;
                }
            }
        }
    }
}

fn is_unproven(instance: &Instance) -> bool {
    matches!(instance.phase, Phase::Unproven { .. })
}

fn lift_hold(desired: &mut Desired, target: &Target) {
    let Some(unit) = desired.units.get_mut(target.unit()) else { return };
    match target {
        Target::Unit(_) => {
            unit.hold = None;
            for wish in unit.instances.values_mut() {
                wish.hold = None;
            }
        }
        Target::Instance(id) => {
            // A hold of the whole unit stays with the others.
            if let Some(hold) = unit.hold.take() {
                for other in unit.spec.instance_ids().into_iter().filter(|other| other != id) {
                    unit.instances.entry(other).or_default().hold.get_or_insert(hold.clone());
                }
            }
            if let Some(wish) = unit.instances.get_mut(id) {
                wish.hold = None;
            }
        }
    }
}
