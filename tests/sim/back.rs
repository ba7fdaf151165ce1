//! The way back in random worlds: trials, rollbacks, restarts in turns. What a record was of is known
//! here apart from the history itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use opm::model::{Author, Span, Spec, UnitName};
use opm::supervisor::{Manner, Supervisor};

use crate::scene::Seen;
use crate::story::Story;
use crate::system::Simulated;

/// Longest trial.
const TRIAL_MAX: Span = Span::millis(6_000);

/// What units said.
type Specs = BTreeMap<UnitName, Arc<Spec>>;

/// What is known of what was applied.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// What was in force at each record that was acknowledged.
    records: BTreeMap<u64, Specs>,
    /// What was in force before the trial, where that is sure.
    before: Option<Specs>,
}

fn specs(supervisor: &Supervisor<Simulated>) -> Specs {
    let units = supervisor.desired().units.iter();
    let is_applied = |name: &UnitName| !name.as_str().starts_with('_');
    units
        .filter(|(name, unit)| !unit.removed && is_applied(name))
        .map(|(name, unit)| (name.clone(), Arc::clone(&unit.spec)))
        .collect()
}

impl Story {
    /// What is in force now is what its record is of.
    pub(crate) fn note_applied(&mut self) {
        let Some(supervisor) = self.world.supervisor() else { return };
        let (applied, specs) = (supervisor.desired().applied, specs(supervisor));
        self.known.records.insert(applied, specs);
    }

    /// Something that an operator does who is not sure.
    pub(crate) fn hesitate(&mut self) -> Result<(), String> {
        match self.chance.below(5) {
            0 | 1 => {
                let place = self.chance.place(self.files.len());
                self.change(place);
                let confirm = Some(Span::millis(1 + self.chance.below(TRIAL_MAX.as_millis_up())));
                let rolling = self.chance.one_in(2).then_some(1);
                let before =
                    self.world.supervisor().map(|s| (s.desired().trial.is_some(), specs(s)));
                let manner = Manner { confirm, rolling, ..Manner::default() };
                if self.apply_as(&manner) {
                    match before {
                        Some((false, specs)) => self.known.before = Some(specs),
                        Some((true, _)) => {}
                        None => self.known.before = None,
                    }
                } else {
                    self.known.before = None;
                }
                Ok(())
            }
            2 => {
                if self.ask(0, |supervisor| supervisor.confirm().is_ok()) {
                    self.known.before = None;
                }
                Ok(())
            }
            3 => {
                let place = self.chance.place(self.files.len());
                let names = [crate::story::NAMES[place].to_owned()];
                self.ask(place, |supervisor| supervisor.restart(&names, Some(1)).is_ok());
                Ok(())
            }
            _ => self.roll_back(),
        }
    }

    fn roll_back(&mut self) -> Result<(), String> {
        let records: Vec<u64> = self.known.records.keys().copied().collect();
        if records.is_empty() {
            return Ok(());
        }
        let to = *self.chance.pick(&records);
        self.world.see(Seen::Asks { units: None });
        let manner = Manner { author: Author::default(), ..Manner::default() };
        let answer =
            self.world.act(|supervisor| supervisor.roll_back(Some(to), &manner, false).map(drop));
        match answer {
            None => {
                self.world.see(Seen::Unanswered);
                self.known.before = None;
                Ok(())
            }
            Some(Err(_)) => Ok(()),
            Some(Ok(())) => {
                self.known.before = None;
                let supervisor = self.world.supervisor().ok_or("it answered and is gone")?;
                let now = specs(supervisor);
                let was = &self.known.records[&to];
                if now != *was {
                    let (now, was): (Vec<_>, Vec<_>) = (now.keys().collect(), was.keys().collect());
                    return Err(format!(
                        "back to generation {to}, {was:?}, and {now:?} is in force"
                    ));
                }
                self.note_applied();
                Ok(())
            }
        }
    }

    /// What is in force can be gone back to, and so can what a trial is taken back to: nobody has taken
    /// their history away.
    pub(crate) fn has_history(&mut self) -> Result<(), String> {
        let Some(supervisor) = self.world.supervisor() else { return Ok(()) };
        let generation = supervisor.desired().applied;
        if generation == 0 {
            return Ok(());
        }
        let before = supervisor.desired().trial.as_ref().map(|trial| trial.sources.clone());
        let lacks = |why| format!("generation {generation} has no history: {why:?}");
        let mut record = supervisor.record(generation).map_err(lacks)?;
        supervisor.revisions(&record).map_err(lacks)?;
        record.sources = before.unwrap_or_default();
        supervisor.revisions(&record).map_err(lacks)?;
        Ok(())
    }

    /// Whatever is on trial when there are no more faults is taken back in time.
    pub(crate) fn end_trial(&mut self) -> Result<(), String> {
        let is_on_trial = |supervisor: &mut Supervisor<Simulated>| {
            supervisor.desired().trial.is_some() && supervisor.shutdown().is_none()
        };
        if !self.world.supervisor().is_some_and(is_on_trial) {
            return Ok(());
        }
        self.world.see(Seen::Asks { units: None });
        self.world.pass(TRIAL_MAX);
        self.world.pass(Span::seconds(6));
        let Some(supervisor) = self.world.supervisor() else { return Ok(()) };
        if supervisor.desired().trial.is_some() {
            let why = supervisor.roll_back(None, &Manner::default(), false).err();
            let minimal = self.world.is_minimal();
            return Err(format!("a trial is over and was not taken back: {why:?}, {minimal}"));
        }
        let now = specs(supervisor);
        match self.known.before.take() {
            Some(before) if before != now => {
                let (now, before): (Vec<_>, Vec<_>) =
                    (now.keys().collect(), before.keys().collect());
                Err(format!("taken back to {now:?}, and before it was {before:?}"))
            }
            _ => Ok(()),
        }
    }
}
