//! The way back: every apply leaves a record, a rollback puts an old one in force, and a trial goes
//! back by itself.
//!
//! A record is kept before the desired state that names it is saved. So whatever is in force has its
//! record, and one that was left by a crash in between belongs to no history.

use std::collections::BTreeSet;

use super::Supervisor;
use super::apply::{Declared, Manner, declared};
use super::keeper_unit::{COMMAND_SOURCE, is_internal};
use super::requests::Refusal;
use super::source::Source;
use crate::config::Origins;
use crate::model::{
    Author, Cause, Desired, Gather, Monotonic, Observed, Record, Revision, Sources, Span, Trial,
    Unit, UnitName,
};
use crate::plan::{self, Class, Effect, Plan};
use crate::system::System;

/// After so long a revert that could not be saved is tried again.
const REVERT_AGAIN: Span = Span::seconds(5);
/// Who goes back when nobody confirms.
const SELF: &str = "opm";

/// The history as it can be read.
#[derive(Debug)]
pub struct History {
    /// The records, the latest first.
    pub records: Vec<Record>,
    /// What could not be read; the records before it are out of reach.
    pub problem: Option<String>,
}

/// What a rollback does, or did.
#[derive(Debug)]
pub struct RolledBack {
    /// The record that it goes back to; 0: nothing is applied any more.
    pub to: u64,
    /// What changes.
    pub plan: Plan,
    /// The generation in force.
    pub generation: u64,
}

impl<S: System> Supervisor<S> {
    /// What was applied, the latest first.
    pub fn history(&self) -> History {
        let (records, problem) = self.system.records(self.desired.applied);
        History { records, problem: problem.map(|error| error.to_string()) }
    }

    /// What sources said at a record.
    pub fn revisions(&self, record: &Record) -> Result<Vec<Revision>, Refusal> {
        let read = |(source, generation): (&String, &u64)| {
            let revision = self.system.revision(source, *generation);
            revision.map_err(|error| Refusal::Impossible(error.to_string()))
        };
        record.sources.iter().map(read).collect()
    }

    /// Which place of its files gave which key of a unit, when it was last applied.
    pub fn origins(&self, unit: &UnitName) -> Result<Origins, Refusal> {
        let untold = || Refusal::Impossible(format!("the history has no file of `{unit}`"));
        let source = &*self.desired.units.get(unit).ok_or_else(untold)?.source;
        let generation = *self.desired.sources.get(source).ok_or_else(untold)?;
        let revision = self.system.revision(source, generation);
        let revision = revision.map_err(|error| Refusal::Impossible(error.to_string()))?;
        Source::from(revision).origins().remove(unit).ok_or_else(untold)
    }

    /// The record of a generation, or the one that was in force then.
    pub fn record(&self, generation: u64) -> Result<Record, Refusal> {
        let History { records, problem } = self.history();
        let oldest = records.last().map_or(0, |record| record.generation);
        let found = records.into_iter().find(|record| record.generation <= generation);
        found.filter(|_| generation <= self.desired.generation).ok_or_else(|| {
            let now = self.desired.generation;
            Refusal::Impossible(problem.unwrap_or_else(|| {
                format!("no generation {generation}; the history goes from {oldest} to {now}")
            }))
        })
    }

    /// How what was applied at one record differs from what was at another.
    pub fn difference(&self, from: u64, to: u64) -> Result<Plan, Refusal> {
        let (from, to) = (self.applied_at(from)?, self.applied_at(to)?);
        let mut plan = plan::plan(&from, &to, &Observed::default());
        // With nobody running nothing restarts; but it would.
        for change in &mut plan.changes {
            if change.fields.iter().any(|field| field.class == Class::Restart) {
                change.effect = Effect::Restart;
            }
        }
        Ok(plan)
    }

    /// What was applied at a generation, as if nobody had done anything by hand.
    fn applied_at(&self, generation: u64) -> Result<Desired, Refusal> {
        let record = self.record(generation)?;
        let mut desired = Desired { generation: record.generation, ..Desired::default() };
        for revision in self.revisions(&record)? {
            for spec in revision.specs {
                let unit = Unit::new(spec, revision.source.as_str());
                desired.units.insert(unit.spec.name.clone(), unit);
            }
        }
        Ok(desired)
    }

    /// Goes back to what was applied at a generation; to what was before the last change where none
    /// is named. A trial ends with it. With `dry` nothing changes.
    pub fn roll_back(
        &mut self,
        to: Option<u64>,
        manner: &Manner,
        dry: bool,
    ) -> Result<RolledBack, Refusal> {
        if !dry {
            self.stays()?;
        }
        let (to, sources) = match (to, &self.desired.trial) {
            (Some(generation), _) => {
                let record = self.record(generation)?;
                (record.generation, record.sources)
            }
            (None, Some(trial)) => (trial.before, trial.sources.clone()),
            (None, None) => self.before_the_last()?,
        };
        self.go_back(to, &sources, Cause::Rollback { to }, manner, dry)
    }

    /// The record before the one that made what is in force. Who goes back twice goes back two
    /// changes: a rollback is no change to go back to, and neither is what it took back.
    fn before_the_last(&self) -> Result<(u64, Sources), Refusal> {
        let History { records, problem } = self.history();
        let nothing = || {
            let nothing =
                || "there is nothing to go back to: nothing was applied before".to_owned();
            Refusal::Impossible(problem.clone().unwrap_or_else(nothing))
        };
        let mut rest = records.as_slice();
        loop {
            let (at, older) = rest.split_first().ok_or_else(nothing)?;
            match at.cause {
                Cause::Rollback { to } | Cause::Revert { to } => {
                    let place = older.iter().position(|record| record.generation == to);
                    rest = older.get(place.ok_or_else(nothing)?..).unwrap_or_default();
                }
                Cause::Apply { .. } => {
                    let before = older.iter().find(|record| record.sources != at.sources);
                    let before = before.ok_or_else(nothing)?;
                    return Ok((before.generation, before.sources.clone()));
                }
            }
        }
    }

    fn go_back(
        &mut self,
        to: u64,
        sources: &Sources,
        cause: Cause,
        manner: &Manner,
        dry: bool,
    ) -> Result<RolledBack, Refusal> {
        let mut all = Vec::new();
        for (source, generation) in sources {
            if self.desired.sources.get(source) == Some(generation) {
                continue;
            }
            let revision = self.system.revision(source, *generation);
            let revision = revision.map_err(|error| Refusal::Impossible(error.to_string()))?;
            all.push(Declared { source: source.clone(), specs: revision.specs });
        }
        let gone = self.desired.sources.keys().filter(|source| !sources.contains_key(*source));
        all.extend(gone.map(|source| Declared { source: source.clone(), specs: Vec::new() }));
        let mut desired = self.declaring(all, manner.rolling, true);
        desired.sources.clone_from(sources);
        desired.trial = None;
        let plan = self.plan_to(&desired);
        if !dry && desired != self.desired {
            self.put_in_force(desired, &plan, &manner.author, cause, &[])?;
        }
        Ok(RolledBack { to, plan, generation: self.desired.generation })
    }

    /// Refuses where it is not what was applied at this generation that is in force.
    pub fn is_in_force(&self, generation: Option<u64>) -> Result<(), Refusal> {
        let now = self.desired.applied;
        match generation.filter(|generation| *generation != now) {
            None => Ok(()),
            Some(gone) => Err(Refusal::Impossible(format!(
                "generation {gone} is not in force any more, generation {now} is"
            ))),
        }
    }

    /// Says that what is tried out is to stay, or stays already. Returns the generation that was. Refused where it
    /// has been taken back, or nothing was applied.
    pub fn confirm(&mut self) -> Result<u64, Refusal> {
        if self.desired.trial.is_none() {
            let (records, _) = self.system.records(self.desired.applied);
            let why = match records.first().map(|record| &record.cause) {
                Some(Cause::Apply { .. }) => return Ok(self.desired.applied),
                Some(Cause::Revert { .. }) => "it was not confirmed in time, and taken back",
                Some(Cause::Rollback { .. }) => "it was rolled back",
                None => "nothing waits to be confirmed",
            };
            return Err(Refusal::Impossible(why.to_owned()));
        }
        let mut desired = self.desired.clone();
        desired.trial = None;
        self.commit(desired)?;
        Ok(self.desired.applied)
    }

    /// Keeps a record, then puts the desired state in force that it is of.
    pub(super) fn put_in_force(
        &mut self,
        mut desired: Desired,
        plan: &Plan,
        author: &Author,
        cause: Cause,
        revisions: &[Revision],
    ) -> Result<(), Refusal> {
        // A save that broke off may have left this number in force, and its history is its own then.
        self.put_back().map_err(|error| Refusal::NotSaved(error.to_string()))?;
        let generation = self.desired.generation.saturating_add(1);
        for revision in revisions {
            desired.sources.insert(revision.source.clone(), generation);
        }
        let record = Record {
            generation,
            before: self.desired.applied,
            at: self.system.wall(),
            author: author.clone(),
            cause,
            sources: desired.sources.clone(),
        };
        let pinned = desired.trial.as_ref().map(|trial| &trial.sources);
        self.system.keep(&record, revisions, pinned).map_err(|error| {
            Refusal::NotSaved(format!("{error}; generation {} stays", self.desired.generation))
        })?;
        desired.applied = generation;
        self.commit(desired)?;
        self.take_over_live(plan);
        Ok(())
    }

    /// Before the first record: what an opm without a history has applied is where one can go back
    /// to.
    pub(super) fn begin_history(&mut self) -> Result<(), Refusal> {
        let units =
            self.desired.units.values().filter(|unit| {
                !unit.removed && !is_internal(unit) && *unit.source != *COMMAND_SOURCE
            });
        let untold: BTreeSet<&str> = units
            .map(|unit| &*unit.source)
            .filter(|source| !self.desired.sources.contains_key(*source))
            .gather();
        if untold.is_empty() {
            return Ok(());
        }
        let revisions: Vec<Revision> = untold
            .into_iter()
            .map(|source| Revision {
                source: source.to_owned(),
                specs: declared(&self.desired, source),
                ..Revision::default()
            })
            .collect();
        let first = revisions.first().map(|revision| revision.source.clone()).unwrap_or_default();
        let by = SELF.to_owned();
        let author = Author { by, message: "what was found without a history".to_owned() };
        let desired = self.desired.clone();
        self.put_in_force(
            desired,
            &Plan::default(),
            &author,
            Cause::Apply { source: first },
            &revisions,
        )
    }

    /// While a trial goes on only another one may follow, which goes back to what was before both.
    pub(super) fn beside_trial(&self, manner: &Manner) -> Result<(), Refusal> {
        match &self.desired.trial {
            Some(_) if manner.confirm.is_none() || manner.confirms_itself => {
                Err(Refusal::Impossible(format!(
                    "generation {} waits to be confirmed; `opm confirm` or `opm rollback` first",
                    self.desired.applied
                )))
            }
            _ => Ok(()),
        }
    }

    /// Lets a change be a trial, or refuses one that would end the trial that there is.
    pub(super) fn try_out(&self, desired: &mut Desired, manner: &Manner) -> Result<(), Refusal> {
        let Some(span) = manner.confirm else { return Ok(()) };
        let (wall, steady) = (self.system.wall(), self.system.steady());
        let (sources, before) = match &self.desired.trial {
            Some(trial) => (trial.sources.clone(), trial.before),
            None => (self.desired.sources.clone(), self.desired.applied),
        };
        let until = wall.after(span).ok_or_else(|| {
            Refusal::Impossible("the time to confirm ends after the end of time".to_owned())
        })?;
        let (deadline, boot) = (steady.after(span), self.system.boot());
        desired.trial =
            Some(Trial { sources, before, rolling: manner.rolling, span, until, deadline, boot });
        Ok(())
    }

    /// At boot: a trial of another boot ends by this boot's clock from now on.
    pub(super) fn resume_trial(&mut self) {
        let (boot, steady, wall) = (self.system.boot(), self.system.steady(), self.system.wall());
        let Some(trial) = &mut self.desired.trial else { return };
        let left = trial.left(&boot, steady, wall);
        log::warn!(
            "generation {} waits to be confirmed; it is taken back in {left}",
            self.desired.applied
        );
        if trial.boot == boot {
            return;
        }
        (trial.deadline, trial.boot) = (steady.after(left), boot);
        let saved = super::keeper_unit::without_internal(&self.desired);
        if let Err(error) = self.system.save(&saved) {
            log::error!("{error}; after another crash the trial may take longer");
        }
    }

    /// Goes back where nobody has confirmed in time: before anything is started by what was tried.
    pub(super) fn look_at_trial(&mut self) {
        let now = self.system.now();
        if self.trial_ends(now).is_none_or(|end| end > now) || self.shutdown.is_some() {
            return;
        }
        let Some(trial) = self.desired.trial.clone() else { return };
        let generation = self.desired.applied;
        let author = Author { by: SELF.to_owned(), message: "it was not confirmed".to_owned() };
        let cause = Cause::Revert { to: trial.before };
        let manner = Manner { author, rolling: trial.rolling, ..Manner::default() };
        match self.go_back(trial.before, &trial.sources, cause, &manner, false) {
            Ok(_) => log::warn!(
                "generation {generation} was not confirmed in {}; back to what was before, as \
                 generation {}",
                trial.span,
                self.desired.generation
            ),
            Err(refusal) => {
                log::error!("cannot take back generation {generation}: {refusal}");
                self.revert_after = Some(now.after(REVERT_AGAIN));
            }
        }
    }

    /// When the trial ends, if there is one.
    pub(super) fn trial_ends(&self, now: Monotonic) -> Option<Monotonic> {
        let trial = self.desired.trial.as_ref()?;
        let left = trial.deadline.since(self.system.steady());
        let end = now.after(left);
        Some(self.revert_after.map_or(end, |after| end.max(after)))
    }
}
