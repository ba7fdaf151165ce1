//! What must hold of tasks: each runs as often as it should.

use std::collections::{BTreeMap, BTreeSet};

use opm::model::{
    Happening, InstanceId, Kind, Monotonic, Reason, RestartPolicy, RunId, SpecHash, Verdict, Wall,
    When,
};

use crate::check::Check;
use crate::scene::{Scene, Seen};

/// A task that is done is done, for this definition and until somebody asks.
#[derive(Debug, Default)]
pub(crate) struct Once {
    /// What the latest run of an instance serves.
    begun: BTreeMap<InstanceId, (RunId, (u64, SpecHash))>,
    /// Ended, and not yet in the ledger.
    told: BTreeMap<InstanceId, (u64, SpecHash)>,
    done: BTreeMap<InstanceId, (u64, SpecHash)>,
}

impl Check for Once {
    fn see(&mut self, scene: &Scene, _: Monotonic, seen: &Seen) -> Result<(), String> {
        match seen {
            Seen::Noticed(notice) => {
                let id = &notice.event.instance;
                match &notice.event.what {
                    Happening::Settled { verdict: Verdict::Done, ends_opm: false } => {
                        // One that has a schedule now, and none later, is another task then.
                        let schedule = scene.spec(&id.unit).and_then(|spec| spec.schedule.as_ref());
                        let begun = self.begun.get(id).filter(|_| schedule.is_none());
                        self.told.extend(begun.map(|(_, wish)| (id.clone(), *wish)));
                    }
                    Happening::Forgotten => {
                        self.told.remove(id);
                        self.done.remove(id);
                    }
                    // What it serves was told to nobody where its supervisor died at once.
                    Happening::Adopted { run }
                        if self.begun.get(id).is_some_and(|(begun, _)| begun != run) =>
                    {
                        self.begun.remove(id);
                        self.done.remove(id);
                    }
                    Happening::Began { run, epoch, hash, .. } => {
                        let wish = (*epoch, *hash);
                        self.begun.insert(id.clone(), (*run, wish));
                        self.told.remove(id);
                        let Some(unit) = scene.desired.units.get(&id.unit) else { return Ok(()) };
                        let was_done = self.done.remove(id).is_some_and(|done| done == wish);
                        let runs_again = unit.spec.kind == Kind::Task
                            && unit.spec.schedule.is_none()
                            && was_done;
                        if runs_again && unit.spec.restart.policy != RestartPolicy::Always {
                            return Err(format!("{id} was done, and runs again"));
                        }
                    }
                    _ => {}
                }
            }
            Seen::SupervisorDies => self.told.clear(),
            Seen::TurnOver => {
                // Notices come after the turn's write.
                let told = std::mem::take(&mut self.told);
                if scene.is_written {
                    self.done.extend(told);
                }
            }
            // A unit or an instance that was removed and comes back is another one.
            Seen::Saved { desired } | Seen::Boots { desired, .. } => {
                let is_there = |id: &InstanceId| {
                    let unit = desired.units.get(&id.unit).filter(|unit| !unit.removed);
                    unit.is_some_and(|unit| unit.spec.has_instance(id))
                };
                self.begun.retain(|id, _| is_there(id));
                self.told.retain(|id, _| is_there(id));
                self.done.retain(|id, _| is_there(id));
            }
            Seen::AllEnd => *self = Self::default(),
            _ => {}
        }
        Ok(())
    }
}

/// No schedule runs twice for one due time, over reboots too.
#[derive(Debug, Default)]
pub(crate) struct DueOnce {
    /// The due time that the latest run of an instance served, by which schedule.
    served: BTreeMap<InstanceId, (Wall, SpecHash)>,
    /// Those whose schedule is an interval.
    intervals: BTreeSet<InstanceId>,
}

impl Check for DueOnce {
    fn see(&mut self, scene: &Scene, _: Monotonic, seen: &Seen) -> Result<(), String> {
        match seen {
            Seen::Noticed(notice) => {
                let id = &notice.event.instance;
                let Happening::Began { due: Some(due), .. } = notice.event.what else {
                    return Ok(());
                };
                let schedule = scene.spec(&id.unit).and_then(|spec| spec.schedule.as_ref());
                let Some(schedule) = schedule else { return Ok(()) };
                let is_due = matches!(notice.reason, Some(Reason::Due | Reason::Missed));
                let this = (due, schedule.hash());
                if matches!(schedule.when, When::Every(_)) {
                    self.intervals.insert(id.clone());
                } else {
                    self.intervals.remove(id);
                }
                let last = self.served.insert(id.clone(), this);
                // The clock may have been set back by so much that it begins anew.
                if is_due && last == Some(this) {
                    return Err(format!("{id} runs twice for {due:?}"));
                }
            }
            // Another schedule begins anew, and so does what was away.
            Seen::Saved { desired } | Seen::Boots { desired, .. } => {
                self.served.retain(|id, (_, hash)| {
                    let unit = desired.units.get(&id.unit).filter(|unit| !unit.removed);
                    let unit = unit.filter(|unit| unit.spec.has_instance(id));
                    let schedule = unit.and_then(|unit| unit.spec.schedule.as_ref());
                    schedule.is_some_and(|schedule| schedule.hash() == *hash)
                });
            }
            // What could not be saved anywhere is not known to the next one.
            Seen::SupervisorDies if scene.is_agenda_lost && !scene.is_written => {
                self.served.clear();
            }
            // An interval goes along with a clock that is set while somebody sees it; by how much it was
            // set in the moment of a crash nobody knows.
            Seen::SupervisorDies => {
                let intervals = std::mem::take(&mut self.intervals);
                self.served.retain(|id, _| !intervals.contains(id));
            }
            Seen::AllEnd if scene.is_agenda_lost => self.served.clear(),
            _ => {}
        }
        Ok(())
    }
}
