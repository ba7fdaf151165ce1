//! What must hold, one check per promise. The checks know nothing of the supervisor's own state:
//! they judge what the machine saw, what clients were told, and what the supervisor gave as reasons.
//!
//! | check | promise (docs/ARCHITECTURE.md) |
//! | --- | --- |
//! | [`NeverTwo`] | I1: one run of an instance, one process of a role |
//! | [`Starts`] | order: what is required is there first; what is held or unknown does not start |
//! | [`Stops`] | I4: dependents are gone before what they need is signalled |
//! | [`Patience`] | restart delays and limits |
//! | [`Once`] | a task that is done is done |
//! | [`DueOnce`] | no schedule runs twice for one due time |
//! | [`Calls`] | a lazy service starts by a connection or a wish |
//! | [`Kept`] | I6: what was acknowledged is what the next supervisor finds |
//! | [`NoStranger`] | I9: a signal reaches the run it is for |
//! | [`Over`] | I5: a run is over when its processes are gone |
//! | [`Silence`] | a watchdog ends no run that was not silent for so long |
//! | [`Edits`] | files that change end a run once, and when it is quiet |
//! | [`Reasons`] | every decision has a reason |
//!
//! What can only be asked of the supervisor itself (incremental = full, quiescence, convergence)
//! is asked by the world and the stories.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use opm::model::{
    Condition, Desired, Happening, InstanceId, Monotonic, Outcome, Reason, Role, RunId, Rung,
    Signal, SpecHash, StopCause, UnitName, Verdict,
};

use crate::calls::Calls;
use crate::edits::Edits;
use crate::machine::Owner;
use crate::once::{DueOnce, Once};
use crate::scene::{Scene, Seen};
use crate::watchdog::Silence;

/// A promise: `Err` says how it was broken.
pub(crate) trait Check: std::fmt::Debug {
    fn see(&mut self, scene: &Scene, at: Monotonic, seen: &Seen) -> Result<(), String>;
}

/// All checks.
#[derive(Debug)]
pub(crate) struct Checks {
    pub(crate) scene: Scene,
    all: Vec<Box<dyn Check>>,
    pub(crate) wrongs: Vec<String>,
}

impl Default for Checks {
    fn default() -> Self {
        let all: Vec<Box<dyn Check>> = vec![
            Box::new(NeverTwo),
            Box::new(Starts::default()),
            Box::new(Stops::default()),
            Box::new(Patience::default()),
            Box::new(Once::default()),
            Box::new(DueOnce::default()),
            Box::new(Calls::default()),
            Box::new(Kept::default()),
            Box::new(NoStranger),
            Box::new(Over),
            Box::new(Silence::default()),
            Box::new(Edits::default()),
            Box::new(Reasons),
        ];
        Self { scene: Scene::default(), all, wrongs: Vec::new() }
    }
}

impl Checks {
    pub(crate) fn see(&mut self, at: Monotonic, seen: &Seen) {
        for check in &mut self.all {
            if let Err(wrong) = check.see(&self.scene, at, seen) {
                self.wrongs.push(wrong);
            }
        }
        self.scene.see(seen);
    }
}

#[derive(Debug)]
struct NeverTwo;

impl Check for NeverTwo {
    fn see(&mut self, scene: &Scene, _: Monotonic, seen: &Seen) -> Result<(), String> {
        let Seen::Begins { owner, .. } = seen else { return Ok(()) };
        let other = scene.live.values().find(|other| {
            other.instance == owner.instance
                && (other.run != owner.run || (owner.role.is_some() && other.role == owner.role))
        });
        other.map_or(Ok(()), |other| Err(format!("two of one: {owner:?} beside {other:?}")))
    }
}

/// What is held or unknown does not start, and what is required is there first.
#[derive(Debug, Default)]
struct Starts {
    begun: BTreeSet<RunId>,
    /// Units that a client was told are held.
    held: BTreeSet<UnitName>,
}

impl Check for Starts {
    fn see(&mut self, scene: &Scene, _: Monotonic, seen: &Seen) -> Result<(), String> {
        match seen {
            Seen::Held { units } => self.held.extend(units.iter().cloned()),
            // What is asked for in this moment may be done or not.
            Seen::Asks { units: Some(units) } => self.held.retain(|unit| !units.contains(unit)),
            Seen::Saved { desired } | Seen::Boots { desired, .. } => {
                // A unit that was removed and comes back is another one; and one that conflicts
                // with what was started, or whose instance was started, is held otherwise.
                self.held.retain(|unit| desired.units.get(unit).is_some_and(|unit| !unit.removed));
            }
            Seen::Known { run } => {
                self.begun.insert(*run);
            }
            Seen::Goes { owner } => {
                let is_first = self.begun.insert(owner.run);
                // Of a run whose start was refused the hooks of its end may be all that goes.
                let starts =
                    matches!(owner.role, Some(Role::Condition | Role::PreStart(_) | Role::Main));
                return if is_first && starts { self.judge(scene, owner) } else { Ok(()) };
            }
            _ => {}
        }
        Ok(())
    }
}

impl Starts {
    fn judge(&self, scene: &Scene, owner: &Owner) -> Result<(), String> {
        let id = &owner.instance;
        if id.unit.as_str().starts_with('_') {
            return Ok(());
        }
        let unit = scene.desired.units.get(&id.unit).filter(|unit| !unit.removed);
        let Some(unit) = unit.filter(|unit| unit.spec.has_instance(id)) else {
            return Err(format!("{id} starts and is unknown"));
        };
        if unit.hold_of(id).is_some() || self.held.contains(&id.unit) {
            return Err(format!("{id} starts and is held"));
        }
        if scene.is_ordered.is_some() {
            return Err(format!("{id} starts while opm goes down"));
        }
        for other in &unit.spec.relations.conflicts {
            if scene.lives(other) {
                return Err(format!("{id} starts beside {other}, with which it conflicts"));
            }
        }
        let required = unit.spec.relations.requires.iter();
        let required = required.map(|need| (&need.unit, need.condition));
        let ordered = scene.also_ordered.iter().filter(|(later, _)| *later == id.unit);
        let ordered = ordered.map(|(_, earlier)| (earlier, Condition::Ready));
        for (other, condition) in required.chain(ordered) {
            let Some(other) = scene.spec(other) else { continue };
            for needed in other.instance_ids() {
                if !scene.is_met(other, &needed, condition) {
                    return Err(format!("{id} starts before {needed}, which has to come first"));
                }
            }
        }
        Ok(())
    }
}

/// Dependents are gone before what they need is signalled.
#[derive(Debug, Default)]
struct Stops {
    /// Runs that go down.
    judged: BTreeSet<RunId>,
    /// Runs that did so while these units lived; the cause is told at the end of the turn.
    doubts: Vec<(RunId, InstanceId, Vec<UnitName>)>,
}

impl Check for Stops {
    fn see(&mut self, scene: &Scene, _: Monotonic, seen: &Seen) -> Result<(), String> {
        match seen {
            // A reload is no step of a stop, nor is the end of a question that took too long.
            Seen::Signalled { target: Some(owner), meant, signal, is_by_hand: false }
                if owner.run == *meant
                    && *signal != Signal::HUP
                    && !matches!(owner.role, Some(Role::HealthProbe | Role::ReadyProbe)) =>
            {
                self.goes_down(scene, *meant, &owner.instance);
            }
            // A supervisor that dies in this turn says nothing of the rung.
            Seen::Goes { owner }
                if matches!(owner.role, Some(Role::PreStop(_) | Role::Stop(_))) =>
            {
                self.goes_down(scene, owner.run, &owner.instance);
            }
            Seen::Noticed(notice) => match notice.event.what {
                // What follows the first hook after it follows that.
                Happening::Rung { run, rung }
                    if !matches!(rung, Rung::Dependents | Rung::PostStop(1..)) =>
                {
                    self.goes_down(scene, run, &notice.event.instance);
                }
                // It went down under a supervisor that died before it let the command of the step go.
                Happening::Ended { run, role: Role::PreStop(_) | Role::Stop(_), .. } => {
                    self.judged.insert(run);
                    self.doubts.retain(|(doubted, ..)| *doubted != run);
                }
                _ => {}
            },
            Seen::SupervisorDies => self.doubts.clear(),
            Seen::TurnOver => {
                for (run, id, mut living) in self.doubts.drain(..) {
                    // Those that were lost sight of in this turn are waited for by nobody.
                    living.retain(|unit| !scene.is_unproven(unit));
                    if living.is_empty() {
                        continue;
                    }
                    let spreads = scene.causes.get(&run).is_some_and(StopCause::spreads);
                    if spreads && scene.is_ordered != Some(false) {
                        return Err(format!("{id} goes down before {living:?} is gone"));
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}

impl Stops {
    /// What counts is the moment in which it stops to wait for others.
    fn goes_down(&mut self, scene: &Scene, run: RunId, id: &InstanceId) {
        if !self.judged.insert(run) {
            return;
        }
        let later = leaves_for(scene, id);
        let living: Vec<UnitName> = later.into_iter().filter(|unit| scene.lives(unit)).collect();
        if !living.is_empty() {
            self.doubts.push((run, id.clone(), living));
        }
    }
}

/// The units that have to go before this instance.
fn leaves_for(scene: &Scene, id: &InstanceId) -> Vec<UnitName> {
    let unit = scene.desired.units.get(&id.unit);
    // One that is no longer asked for, while others of its unit are, leaves them what they need.
    let is_surplus = unit
        .is_some_and(|unit| !unit.removed && unit.hold.is_none() && !unit.spec.has_instance(id));
    if is_surplus && scene.is_ordered.is_none() { Vec::new() } else { dependents(scene, &id.unit) }
}

/// The units that have to go before this one.
fn dependents(scene: &Scene, unit: &UnitName) -> Vec<UnitName> {
    let names = |needs: &[opm::model::Dependency]| needs.iter().any(|need| need.unit == *unit);
    // While other instances stay, those who need the unit need not go.
    let instances = scene.spec(unit).map_or(0, |spec| spec.instance_ids().len());
    if instances > 1 && scene.is_ordered.is_none() {
        return Vec::new();
    }
    let units = scene.desired.units.iter().filter(|(_, other)| {
        let relations = &other.spec.relations;
        let soft =
            scene.is_ordered.is_some() && (names(&relations.wants) || names(&relations.after));
        let is_socket = scene.spec(unit).is_some_and(|spec| {
            spec.socket.as_ref().is_some_and(|socket| socket.service == other.spec.name)
        });
        names(&relations.requires) || soft || is_socket
    });
    units.map(|(name, _)| name.clone()).collect()
}

/// A run that ended by itself.
#[derive(Debug, Clone, Copy)]
struct Gone {
    at: Monotonic,
    /// Whether its start was refused.
    passing: bool,
    /// By which definition of its unit.
    spec: Option<SpecHash>,
}

/// Restart delays and limits.
#[derive(Debug, Default)]
struct Patience {
    /// The last run of an instance that ended by itself.
    ended: BTreeMap<InstanceId, Gone>,
    /// Automatic starts since the last one that was asked for.
    starts: BTreeMap<InstanceId, VecDeque<Monotonic>>,
}

impl Patience {
    fn clear(&mut self, id: &InstanceId) {
        self.ended.remove(id);
        self.starts.remove(id);
    }
}

impl Check for Patience {
    fn see(&mut self, scene: &Scene, at: Monotonic, seen: &Seen) -> Result<(), String> {
        match seen {
            // Whoever asks, or a new spec, lets it begin anew; what it requires, too.
            Seen::Asks { .. } | Seen::AllEnd | Seen::Unanswered => *self = Self::default(),
            // What could not be written is not known to the next one.
            Seen::SupervisorDies if !scene.is_written => *self = Self::default(),
            Seen::Noticed(notice) => {
                let id = &notice.event.instance;
                match &notice.event.what {
                    Happening::StopBegan { cause, .. } if cause.spreads() => self.clear(id),
                    Happening::Up { .. } | Happening::Ready { .. } => {
                        // Those who require it may have a reason to start at once.
                        for other in dependents(scene, &id.unit) {
                            self.ended.retain(|id, _| id.unit != other);
                            self.starts.retain(|id, _| id.unit != other);
                        }
                    }
                    Happening::Settled { verdict: Verdict::Backoff { .. }, .. } => {
                        let at = at.min(notice.event.at);
                        let gone = Gone { at, passing: false, spec: spec_of(scene, id) };
                        let ended = self.ended.entry(id.clone()).or_insert(gone);
                        // Whoever saw that start refused may have died before it told.
                        let is_passing = matches!(&notice.reason,
                            Some(Reason::Ended(Some(Outcome::NotStarted(e)))) if e.passing);
                        ended.passing |= is_passing;
                        // Such a start counts towards no limit.
                        if let Some(starts) = self.starts.get_mut(id).filter(|_| is_passing) {
                            starts.pop_back();
                        }
                    }
                    Happening::Settled { .. } => self.clear(id),
                    Happening::Ended { role, outcome, .. } => {
                        let passing = matches!(outcome, Outcome::NotStarted(e) if e.passing);
                        if passing || *role == Role::Main {
                            // Told later than it happened; by a wrong clock never earlier.
                            let at = at.min(notice.event.at);
                            let passing = passing || self.ended.get(id).is_some_and(|e| e.passing);
                            let gone = Gone { at, passing, spec: spec_of(scene, id) };
                            self.ended.insert(id.clone(), gone);
                        }
                    }
                    Happening::Began { fresh, .. } => {
                        let is_fresh = *fresh && notice.reason != Some(Reason::BackoffOver);
                        return self.begins(scene, id, at, is_fresh);
                    }
                    _ => {}
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// The definition of an instance's unit that is in force.
fn spec_of(scene: &Scene, id: &InstanceId) -> Option<SpecHash> {
    scene.desired.units.get(&id.unit).map(|unit| unit.hash)
}

impl Patience {
    fn begins(
        &mut self,
        scene: &Scene,
        id: &InstanceId,
        at: Monotonic,
        is_fresh: bool,
    ) -> Result<(), String> {
        let Some(spec) = scene.spec(&id.unit) else { return Ok(()) };
        let ended = self.ended.remove(id);
        // A definition that came without being asked for, as when a trial is taken back, counts for what
        // ends from then on.
        let is_other = ended.is_some_and(|ended| ended.spec != spec_of(scene, id));
        let is_fresh = is_fresh || is_other;
        let least = spec.restart.delay.scale(1.0 - spec.restart.jitter / 2.0);
        if let Some(Gone { at: end, .. }) = ended
            && !is_fresh
            && at < end.after(least)
        {
            return Err(format!("{id} starts again after {:?}, not {least:?}", at.since(end)));
        }
        let is_passing = ended.is_some_and(|ended| ended.passing);
        if is_fresh {
            self.starts.remove(id);
        }
        let starts = self.starts.entry(id.clone()).or_default();
        starts.push_back(at);
        if let Some(limit) = spec.restart.limit {
            while starts.front().is_some_and(|start| at.since(*start) > limit.within) {
                starts.pop_front();
            }
            if starts.len() > limit.starts as usize && !is_passing {
                return Err(format!("{id} starts {} times in its limit's time", starts.len()));
            }
        }
        Ok(())
    }
}

/// What was acknowledged is what the next supervisor finds.
#[derive(Debug, Default)]
struct Kept {
    acknowledged: Option<Desired>,
    /// Saved, or begun to be, without a word to anybody.
    possible: Vec<Desired>,
}

impl Check for Kept {
    fn see(&mut self, _: &Scene, _: Monotonic, seen: &Seen) -> Result<(), String> {
        match seen {
            Seen::Saves { desired } => self.possible.push(desired.clone()),
            Seen::Saved { desired } => {
                self.acknowledged = Some(desired.clone());
                self.possible.clear();
            }
            Seen::Boots { desired, is_sure } => {
                let known = units_of(desired);
                let is_kept = self.acknowledged.as_ref().is_none_or(|d| units_of(d) == known);
                if !is_kept && !self.possible.iter().any(|other| units_of(other) == known) {
                    let was = self.acknowledged.as_ref().map_or(0, |desired| desired.generation);
                    let is = desired.generation;
                    return Err(format!("generation {was} was acknowledged, {is} is found"));
                }
                // What was found and cannot be synced is in force, and acknowledged to nobody.
                if *is_sure {
                    self.acknowledged = Some(desired.clone());
                    self.possible.clear();
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// The units that are not on their way out.
fn units_of(desired: &Desired) -> Vec<&opm::model::Unit> {
    desired.units.values().filter(|unit| !unit.removed).collect()
}

#[derive(Debug)]
struct NoStranger;

impl Check for NoStranger {
    fn see(&mut self, _: &Scene, _: Monotonic, seen: &Seen) -> Result<(), String> {
        let Seen::Signalled { target, meant, signal, .. } = seen else { return Ok(()) };
        match target {
            Some(owner) if owner.run == *meant => Ok(()),
            other => Err(format!("{signal} for run {meant} reaches {other:?}")),
        }
    }
}

#[derive(Debug)]
struct Over;

impl Check for Over {
    fn see(&mut self, scene: &Scene, _: Monotonic, seen: &Seen) -> Result<(), String> {
        let Seen::Released { instance, run } = seen else { return Ok(()) };
        let left = scene.live.values().filter(|owner| owner.run == *run).count();
        if left == 0 {
            return Ok(());
        }
        Err(format!("{instance}: a run is over and {left} of its processes live"))
    }
}

#[derive(Debug)]
struct Reasons;

impl Check for Reasons {
    fn see(&mut self, _: &Scene, _: Monotonic, seen: &Seen) -> Result<(), String> {
        let Seen::Noticed(notice) = seen else { return Ok(()) };
        let is_decision = matches!(
            notice.event.what,
            Happening::Began { .. }
                | Happening::StopBegan { .. }
                | Happening::Rung { .. }
                | Happening::Settled { .. }
                | Happening::Waits { .. }
        );
        if is_decision && notice.reason.is_none() {
            return Err(format!("no reason for {:?}", notice.event));
        }
        Ok(())
    }
}
