//! What a source says becomes what is wanted: plan and apply are one computation, and only an apply
//! puts its result in force.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Supervisor;
use super::keeper_unit::{self, is_internal, without_internal};
use super::requests::Refusal;
use super::source::Source;
use crate::config::{self, Diagnostic, Loaded, SourceFile};
use crate::model::{
    Author, Cause, Desired, Gather, Happening, Instance, InstanceId, KeptFile, Kind, Phase,
    Revision, Role, Span, Spec, StopCause, Unit, UnitName, find_loop,
};
use crate::plan::{self, Plan};
use crate::system::System;

/// How a source is applied.
#[derive(Debug, Clone, Default)]
pub struct Manner {
    /// Who applies it, and why.
    pub author: Author,
    /// Only these units of it; the others stay as they are. Empty: all of it.
    pub only: Vec<UnitName>,
    /// How many instances of a unit may be away at a time; all where it is not said.
    pub rolling: Option<u32>,
    /// It is taken back unless it is confirmed in so long a time.
    pub confirm: Option<Span>,
    /// Whoever applies it will confirm it where all comes up. That would confirm another trial too.
    pub confirms_itself: bool,
    /// It is refused where not all that is to be up then can be up at a time. Else that is a warning:
    /// at boot as much as can be is better than nothing.
    pub must_fit: bool,
    /// It is applied only if things are still so.
    pub basis: Option<plan::Basis>,
}

/// What an apply does, or did.
#[derive(Debug)]
pub struct Applied {
    /// What changes.
    pub plan: Plan,
    /// The generation in force; the old one where nothing changed.
    pub generation: u64,
    /// What the plan was made from.
    pub basis: plan::Basis,
    /// The units that the source has now, but for tasks with a schedule, which no apply runs.
    pub units: Vec<UnitName>,
    /// Warnings; with an error nothing is applied.
    pub diagnostics: Vec<Diagnostic>,
    /// What is legal, has no place in a file, and is hardly meant.
    pub warnings: Vec<String>,
}

/// What a source declares from now on.
pub(super) struct Declared {
    pub(super) source: String,
    pub(super) specs: Vec<Arc<Spec>>,
}

impl<S: System> Supervisor<S> {
    /// What applying a source would do. Changes nothing.
    pub fn plan(&mut self, source: &Source, manner: &Manner) -> Result<Applied, Refusal> {
        self.with_source(source, manner).map(|(applied, _)| applied)
    }

    /// Makes a source what it is to be. With any mistake in it, nothing changes.
    pub fn apply_source(&mut self, source: &Source, manner: &Manner) -> Result<Applied, Refusal> {
        let (mut applied, desired) = self.with_source(source, manner)?;
        if config::has_errors(&applied.diagnostics) {
            return Ok(applied);
        }
        self.stays()?;
        self.beside_trial(manner)?;
        if let Some(basis) = &manner.basis {
            basis.compare(&applied.basis, &applied.plan).map_err(Refusal::Impossible)?;
        }
        let Some(mut desired) = desired.filter(|desired| desired.units != self.desired.units)
        else {
            self.put_back().map_err(|error| Refusal::NotSaved(error.to_string()))?;
            return Ok(applied);
        };
        if manner.must_fit
            && let Some(shortage) = self.shortage(&desired)
        {
            return Err(Refusal::Impossible(shortage));
        }
        self.begin_history()?;
        desired.sources.clone_from(&self.desired.sources);
        desired.applied = self.desired.applied;
        self.try_out(&mut desired, manner)?;
        let revision = Revision {
            source: source.name.clone(),
            specs: declared(&desired, &source.name),
            files: kept(&source.files),
            dir: source.dir.clone(),
            profiles: source.profiles.clone(),
            sets: source.sets.clone(),
        };
        let cause = Cause::Apply { source: source.name.clone() };
        self.put_in_force(desired, &applied.plan, &manner.author, cause, &[revision])?;
        applied.generation = self.desired.generation;
        Ok(applied)
    }

    /// What a source says now. What its files said when they were last looked at is not read again.
    fn load(&mut self, source: &Source) -> Loaded {
        let foreign =
            |unit: &&Unit| *unit.source != source.name && !unit.removed && !is_internal(unit);
        let others: BTreeMap<UnitName, String> = self
            .desired
            .units
            .iter()
            .filter(|(_, unit)| foreign(unit))
            .map(|(name, unit)| (name.clone(), unit.source.to_string()))
            .gather();
        let specs: Vec<_> =
            self.desired.units.values().filter(foreign).map(|unit| &*unit.spec).collect();
        let is_applied = |name: &str| self.desired.sources.contains_key(name);
        self.read.retain(|name, _| *name == source.name || is_applied(name));
        let cache = self.read.entry(source.name.clone()).or_default();
        let layers = source.layers();
        let mut loaded = config::load_again(&source.files, &layers, &others, &specs, cache);
        // A spec that did not change is in memory once, and told by that. Both are in order.
        let mut known = self.desired.units.iter().peekable();
        let mut has_copies = false;
        for spec in &mut loaded.specs {
            while known.next_if(|(name, _)| **name < spec.name).is_some() {}
            let Some((_, unit)) = known.next_if(|(name, _)| **name == spec.name) else { continue };
            if !Arc::ptr_eq(&unit.spec, spec) && unit.spec == *spec {
                *spec = Arc::clone(&unit.spec);
                has_copies = true;
            }
        }
        if has_copies {
            cache.share(&|name| self.desired.units.get(name).map(|unit| &unit.spec));
        }
        loaded
    }

    /// Whether a source declares just this already, so that nothing changes.
    fn is_declared(&self, source: &str, specs: &[Arc<Spec>]) -> bool {
        let mut specs = specs.iter();
        let mut units = self.desired.units.values();
        units.all(|unit| {
            let is_same = |spec: &Arc<Spec>| Arc::ptr_eq(spec, &unit.spec);
            !unit.removed && (*unit.source != *source || specs.next().is_some_and(is_same))
        }) && specs.next().is_none()
    }

    /// What a source does, and the desired state that it makes; none where nothing changes.
    fn with_source(
        &mut self,
        source: &Source,
        manner: &Manner,
    ) -> Result<(Applied, Option<Desired>), Refusal> {
        let only = manner.only.as_slice();
        let mut loaded = self.load(source);
        let mut diagnostics = std::mem::take(&mut loaded.diagnostics);
        // What an apply does not run it has not to wait for.
        let scheduled: BTreeSet<UnitName> = loaded
            .specs
            .iter()
            .filter(|spec| spec.schedule.is_some())
            .map(|spec| spec.name.clone())
            .gather();
        let mut units: Vec<_> = loaded.specs.iter().map(|spec| spec.name.clone()).collect();
        let is_same = only.is_empty() && self.is_declared(&source.name, &loaded.specs);
        let desired = if is_same || config::has_errors(&diagnostics) {
            None
        } else {
            let mut specs = std::mem::take(&mut loaded.specs);
            if !only.is_empty() {
                specs = self.only_these(&source.name, specs, only)?;
                units = only.to_vec();
            }
            let declared = Declared { source: source.name.clone(), specs };
            let desired = self.declaring(vec![declared], manner.rolling, false);
            if only.is_empty() {
                self.leaves_whole(&desired)?;
            } else {
                whole(&desired, only)?;
                let rest = desired.units.iter().filter(|(name, unit)| {
                    !unit.removed && !only.contains(name) && !is_internal(unit)
                });
                let rest: Vec<&Spec> = rest.map(|(_, unit)| &*unit.spec).collect();
                diagnostics.extend(loaded.check_beside(only, &rest));
            }
            (!config::has_errors(&diagnostics)).then_some(desired)
        };
        units.retain(|unit| !scheduled.contains(unit));
        let plan = desired.as_ref().map(|desired| self.plan_to(desired)).unwrap_or_default();
        let basis = plan::Basis::of(&plan, &self.desired, &self.observed);
        let generation = self.desired.generation;
        let budget = self.shutdown_budget.and_then(|budget| {
            let own = without_internal(desired.as_ref().unwrap_or(&self.desired));
            plan::budget_warning(&own, Some(budget))
        });
        let shortage = desired.as_ref().and_then(|desired| self.shortage(desired));
        let warnings = budget.into_iter().chain(shortage).collect();
        Ok((Applied { plan, generation, basis, units, diagnostics, warnings }, desired))
    }

    /// Refuses to take away what a unit of another source cannot do without.
    fn leaves_whole(&self, desired: &Desired) -> Result<(), Refusal> {
        let goes =
            |name: &UnitName| is_declared(&self.desired, name) && !is_declared(desired, name);
        let gone: BTreeSet<&UnitName> =
            self.desired.units.keys().filter(|name| goes(name)).gather();
        if gone.is_empty() {
            return Ok(());
        }
        for unit in desired.units.values().filter(|unit| !unit.removed) {
            let lost = indispensable(&unit.spec).find(|(_, name)| gone.contains(*name));
            if let Some((how, name)) = lost {
                return Err(Refusal::Impossible(format!(
                    "`{}` of source `{}` {how} `{name}`, which is not declared any more; apply that \
                     source without this first",
                    unit.spec.name, unit.source
                )));
            }
        }
        Ok(())
    }

    /// Why not all of a desired state can be up at a time.
    fn shortage(&self, desired: &Desired) -> Option<String> {
        if desired.units == self.desired.units {
            return None;
        }
        self.capacity?.shortage(&self.desired, desired)
    }

    /// What a source declares where only some of its units are taken from its files.
    fn only_these(
        &self,
        source: &str,
        specs: Vec<Arc<Spec>>,
        only: &[UnitName],
    ) -> Result<Vec<Arc<Spec>>, Refusal> {
        let mut all: BTreeMap<UnitName, Arc<Spec>> = declared(&self.desired, source)
            .into_iter()
            .map(|spec| (spec.name.clone(), spec))
            .gather();
        let mut new: BTreeMap<UnitName, Arc<Spec>> =
            specs.into_iter().map(|spec| (spec.name.clone(), spec)).gather();
        for name in only {
            // One that the files do not have any more goes.
            let old = all.remove(name);
            match new.remove(name) {
                Some(spec) => drop(all.insert(name.clone(), spec)),
                None if old.is_some() => {}
                None => {
                    let names = new.keys().map(UnitName::as_str);
                    let similar = config::nearest(name.as_str(), names).map(str::to_owned);
                    return Err(Refusal::Unknown { name: name.to_string(), similar });
                }
            }
        }
        Ok(all.into_values().collect())
    }

    /// The desired state in which sources declare this and nothing else. What is wanted by hand stays. `is_back`: they
    /// did so before, and what was started by hand then is up again.
    pub(super) fn declaring(
        &self,
        all: Vec<Declared>,
        rolling: Option<u32>,
        is_back: bool,
    ) -> Desired {
        let mut desired = self.desired.clone();
        let sources: BTreeSet<String> = all.iter().map(|one| one.source.clone()).gather();
        let mut kept: BTreeSet<UnitName> = BTreeSet::new();
        for Declared { source, specs } in all {
            let source: Arc<str> = source.into();
            for spec in specs {
                kept.insert(spec.name.clone());
                let renumbered = set_spec(&mut desired, spec, &source, rolling, is_back);
                // Where nothing runs, nothing has another number than it should.
                let runs = |id: &InstanceId| self.observed.get(id).is_some_and(|i| i.run.is_some());
                for id in renumbered.into_iter().filter(runs) {
                    desired.raise_epoch(&id);
                }
            }
        }
        self.try_anew(&mut desired);
        for (name, unit) in &mut desired.units {
            if sources.contains(&*unit.source) && !kept.contains(name) {
                unit.removed = true;
            }
        }
        // Made anew, as what is in order, the map has no room to spare.
        desired.take_out_removed(|name| self.observed.of_unit(name).next().is_some());
        desired.units = std::mem::take(&mut desired.units).into_iter().collect();
        if let Some(keeper) = &self.keeper {
            keeper_unit::add_to(&mut desired, keeper);
        }
        desired
    }

    /// What going to a desired state does, the log keeper apart.
    pub(super) fn plan_to(&self, desired: &Desired) -> Plan {
        let mut plan = plan::plan(&self.desired, desired, &self.observed);
        plan.changes.retain(|change| !keeper_unit::is_keeper(&change.unit));
        plan
    }

    /// A changed spec clears what an instance came to under the old one, and changed conditions what
    /// is about to come of a look at the old ones. One that ended well runs on where its end would not
    /// have been one by the new policy.
    fn try_anew(&self, desired: &mut Desired) {
        let changed = |id: &&InstanceId| {
            let spec = |desired: &'_ Desired| Some(Arc::clone(&desired.units.get(&id.unit)?.spec));
            match (spec(desired), spec(&self.desired)) {
                (Some(new), Some(old)) => !Arc::ptr_eq(&new, &old) && says_other(&new, &old),
                (new, old) => new.is_some() != old.is_some(),
            }
        };
        let conditions = |desired: &'_ Desired, id: &InstanceId| {
            desired.units.get(&id.unit).map(|unit| unit.spec.conditions.clone())
        };
        let ended = self.observed.iter().filter(|(id, instance)| {
            let has_ended = matches!(
                instance.phase,
                Phase::Failed { .. } | Phase::Skipped { .. } | Phase::Backoff { .. }
            );
            let goes_on = |id: &InstanceId| {
                let unit = desired.units.get(&id.unit);
                unit.is_some_and(|unit| plan::goes_on_by_policy(unit, instance))
            };
            // No apply runs what runs when it is due.
            let is_due = |unit: &Unit| unit.spec.schedule.is_some();
            let is_due = desired.units.get(&id.unit).is_some_and(is_due);
            let has_ended = (has_ended && !is_due) || goes_on(id);
            let has_other = || conditions(desired, id) != conditions(&self.desired, id);
            has_ended || (looks_at_conditions(instance) && has_other())
        });
        let ids: Vec<InstanceId> = ended.map(|(id, _)| id).filter(changed).cloned().collect();
        for id in ids {
            desired.raise_epoch(&id);
        }
    }

    /// What is not the supervisor's own business is taken over while a run goes on: where its output
    /// goes, and which files are watched.
    pub(super) fn take_over_live(&mut self, plan: &Plan) {
        for change in &plan.changes {
            let Some(unit) = self.desired.units.get(&change.unit) else { continue };
            let spec = Arc::clone(&unit.spec);
            if spec.schedule.is_some() {
                self.reschedule(&change.unit);
            }
            let running =
                self.observed.of_unit(&change.unit).filter(|(_, instance)| instance.run.is_some());
            let ids: Vec<InstanceId> = running.map(|(id, _)| id.clone()).collect();
            let is_asked_anew = change.fields.iter().any(|field| field.key.starts_with("health"));
            for id in ids {
                if is_asked_anew {
                    self.ask_anew(&id);
                }
                self.watch_paths(&id);
                let index = spec.index_of(&id);
                if spec.needs_keeper()
                    && let Err(error) = self.system.instruct(&id, index, &spec)
                {
                    log::error!("{id}: {error}");
                }
            }
        }
    }
}

impl<S: System> Supervisor<S> {
    /// What was answered so far was the answer to another question.
    fn ask_anew(&mut self, id: &InstanceId) {
        let run = self.instance(id).and_then(|instance| instance.run.as_ref()).map(|run| run.id);
        if let Some(run) = run {
            self.happens(id, Happening::AskedAnew { run }, None);
        }
    }
}

/// Whether a spec says anything else of what runs than another, and of when: not only what it is
/// called, and where its output goes.
fn says_other(new: &Spec, old: &Spec) -> bool {
    let bare = |spec: &Spec| Spec {
        description: old.description.clone(),
        documentation: old.documentation.clone(),
        labels: old.labels.clone(),
        logs: old.logs.clone(),
        ..spec.clone()
    };
    bare(new) != *old
}

/// Whether nothing has come of an instance's run yet but a look at its conditions.
fn looks_at_conditions(instance: &Instance) -> bool {
    if let Phase::Stopping { cause, .. } = &instance.phase {
        return matches!(cause, StopCause::ConditionUnmet(_));
    }
    instance.phase == Phase::Starting
        && instance.run.as_ref().is_some_and(|run| {
            let helper = run.helper.as_ref().map(|helper| helper.0);
            run.main.is_none() && helper.is_none_or(|role| role == Role::Condition)
        })
}

/// What a source declares in a desired state.
pub(super) fn declared(desired: &Desired, source: &str) -> Vec<Arc<Spec>> {
    let own = desired.units.values().filter(|unit| *unit.source == *source && !unit.removed);
    own.map(|unit| Arc::clone(&unit.spec)).collect()
}

/// The files as the history keeps them. With bytes that are no text nothing is applied.
fn kept(files: &[SourceFile]) -> Vec<KeptFile> {
    let text = |file: &SourceFile| String::from_utf8_lossy(&file.text).into_owned();
    files.iter().map(|file| KeptFile { path: file.path.clone(), text: text(file) }).collect()
}

/// Whether a unit is there and stays.
fn is_declared(desired: &Desired, name: &UnitName) -> bool {
    desired.units.get(name).is_some_and(|unit| !unit.removed)
}

/// The units that a unit cannot do without, each with how it says so.
fn indispensable(spec: &Spec) -> impl Iterator<Item = (Cow<'static, str>, &UnitName)> {
    let required =
        spec.relations.requires.iter().map(|need| (Cow::Borrowed("requires"), &need.unit));
    let named = spec.named().map(|(key, name)| (Cow::Owned(format!("names in `{key}`")), name));
    required.chain(named)
}

/// Units of two versions of a source must fit as one, where only these are applied: the files alone did not show it.
fn whole(desired: &Desired, only: &[UnitName]) -> Result<(), Refusal> {
    let units = || desired.units.values().filter(|unit| !unit.removed).map(|unit| &*unit.spec);
    for spec in units() {
        let lost = indispensable(spec).find(|(_, name)| !is_declared(desired, name));
        if let Some((how, name)) = lost {
            // What goes by that is still needed by the version of another unit that stays.
            let goes = only.contains(name);
            let (what, also) = if goes { ("goes", &spec.name) } else { ("is not applied", name) };
            return Err(Refusal::Impossible(format!(
                "`{}` {how} `{name}`, which {what}; apply `{also}` too, with `--only {also}`",
                spec.name
            )));
        }
    }
    match find_loop(units()) {
        None => Ok(()),
        Some(names) => {
            let names: Vec<&str> = names.iter().map(UnitName::as_str).collect();
            let names = names.join("` waits for `");
            Err(Refusal::Impossible(format!("with only these, `{names}` wait for one another")))
        }
    }
}

/// Returns the instances whose runs have another number now, and are to restart.
fn set_spec(
    desired: &mut Desired,
    spec: Arc<Spec>,
    source: &Arc<str>,
    rolling: Option<u32>,
    is_back: bool,
) -> Vec<InstanceId> {
    let is_there =
        |old: &Unit| Arc::ptr_eq(&old.spec, &spec) && old.source == *source && !old.removed;
    if desired.units.get(&spec.name).is_some_and(is_there) {
        // What follows would make the same unit again.
        return Vec::new();
    }
    let mut restarts = Vec::new();
    let name = spec.name.clone();
    let mut unit = Unit::new(spec, Arc::clone(source));
    if let Some(old) = desired.units.get(&name) {
        if old.spec.starts_like(&unit.spec) {
            unit.hash = old.hash;
        }
        let renumbered = unit.spec.renumbered(&old.spec);
        // What goes on already goes on as it was asked for.
        let goes_on = unit.hash == old.hash && renumbered.is_empty();
        unit.rolling = if goes_on { old.rolling } else { rolling };
        unit.hold.clone_from(&old.hold);
        (unit.started, unit.until_boot) = (old.started, old.until_boot);
        // The run of a service is no task in progress, which a new definition would leave alone.
        let is_other_kind = old.spec.kind != unit.spec.kind;
        unit.epoch = old.epoch.saturating_add(u64::from(is_other_kind));
        unit.instances.clone_from(&old.instances);
        if unit.spec.kind != Kind::Task {
            restarts = renumbered;
        }
    } else {
        desired.give_back(&mut unit, is_back);
    }
    desired.units.insert(name, unit);
    restarts
}
