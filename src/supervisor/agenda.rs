//! The due times of tasks with a schedule: worked out, served, kept over reboots, and put right when
//! the wall clock is set.

use super::Supervisor;
use super::targets::Target;
use super::wakes::Wakes;
use crate::model::{
    Agenda, Due, Entry, Instance, InstanceId, Reason, RunId, Schedule, Span, UnitName, Wall,
};
use crate::plan;
use crate::system::System;

/// A change of the wall clock against the time that passes which is no drift.
const STEP_MIN: Span = Span::seconds(1);
/// A due time that was served so far in the future was served by a wrong clock, and counts no more.
const AHEAD_MAX: Span = Span::seconds(24 * 3_600);

/// When instances are due, and when to look at the wall clock for that.
#[derive(Debug)]
pub(super) struct Timetable {
    pub(super) agenda: Agenda,
    /// Whether it is to be saved.
    changed: bool,
    /// Set by a failed save, so that it is said once.
    fails: bool,
    /// By how much the wall clock was ahead of the time that passed when all was worked out.
    offset: i64,
    pub(super) alarms: Wakes<Wall>,
    /// What the system was last told to wake us at.
    armed: Option<Wall>,
}

impl Timetable {
    pub(super) fn new(agenda: Agenda) -> Self {
        Self { agenda, changed: false, fails: false, offset: 0, alarms: Wakes::new(), armed: None }
    }
}

impl<S: System> Supervisor<S> {
    fn schedule_of(&self, id: &InstanceId) -> Option<&Schedule> {
        self.desired.units.get(&id.unit)?.spec.schedule.as_deref()
    }

    /// The next due time of an instance after one.
    fn due_after(&self, id: &InstanceId, last: Wall) -> Option<Due> {
        let schedule = self.schedule_of(id)?;
        let zone = self.system.zone(schedule.timezone.as_deref());
        schedule.due_after(id, last, &zone)
    }

    /// Whether an instance is without a run until its next due time. One that nobody has wanted so far gets its
    /// due times before, so that what is asked of it now counts as not yet done.
    pub(super) fn rests_until_due(&mut self, id: &InstanceId) -> bool {
        let schedule = self.schedule_of(id).map(Schedule::hash);
        let known = self.times.agenda.get(id).map(|entry| entry.schedule);
        if schedule.is_some() && schedule != known {
            self.enrol(id);
        }
        plan::rests_until_due(&self.view(), id)
    }

    /// Begins to know when an instance is due: from now on.
    pub(super) fn enrol(&mut self, id: &InstanceId) {
        let Some(schedule) = self.schedule_of(id).map(Schedule::hash) else { return };
        let epoch = self.desired.units.get(&id.unit).map_or(0, |unit| unit.epoch_of(id));
        let old = self.times.agenda.get(id);
        // What was asked for by hand is still to be done under another schedule.
        let epoch = old.map_or(epoch, |entry| entry.epoch);
        let (run, ran) = old.map_or((None, None), |entry| (entry.run, entry.ran));
        let last = self.schedule_wall();
        let next = self.due_after(id, last);
        let entry = Entry { schedule, last, run, ran, epoch, queued: false, next };
        self.times.agenda.insert(id.clone(), entry);
        self.times.changed = true;
        self.touch(id);
    }

    /// So that a wish for these counts as not yet served where nobody has wanted them so far.
    pub(super) fn know_before_wish(&mut self, target: &Target) {
        for id in self.ids(target) {
            self.rests_until_due(&id);
            self.waits_for_callers(&id);
        }
    }

    /// Forgets all due times: each instance is due from now on, as one that is new.
    pub fn begin_schedules_anew(&mut self) {
        self.times = Timetable::new(Agenda::default());
        self.touch_all();
    }

    /// Notes that the latest due time that has come is served: by a run that begins, by one that is
    /// to begin later, or by none.
    pub(super) fn serve(&mut self, id: &InstanceId, change: impl FnOnce(&mut Entry)) {
        self.serve_until(id, self.schedule_wall(), change);
    }

    /// Passes over the due times that have come; where they were missed, over those of which that is
    /// true: the latest may have come just now.
    pub(super) fn pass_over(&mut self, id: &InstanceId, reason: &Reason) {
        let mut until = self.schedule_wall();
        if *reason == Reason::Missed {
            until = until.before(plan::MISSED_AFTER);
        }
        self.serve_until(id, until, |_| {});
    }

    fn serve_until(&mut self, id: &InstanceId, wall: Wall, change: impl FnOnce(&mut Entry)) {
        let Some(entry) = self.times.agenda.get(id) else { return };
        let mut last = entry.last;
        if let Some(due) = entry.next.filter(|due| due.at <= wall)
            && let Some(schedule) = self.schedule_of(id)
        {
            let zone = self.system.zone(schedule.timezone.as_deref());
            last = schedule.when.latest(due.time, wall, &zone);
        }
        let next = self.due_after(id, last);
        if let Some(entry) = self.times.agenda.get_mut(id) {
            (entry.last, entry.next) = (last, next);
            change(entry);
        }
        self.times.changed = true;
        self.touch(id);
    }

    /// A unit's schedule has perhaps become another one: its next due time is worked out anew.
    pub(super) fn reschedule(&mut self, unit: &UnitName) {
        let of_unit = self.times.agenda.iter().filter(|(id, _)| id.unit == *unit);
        let entries: Vec<_> = of_unit.map(|(id, entry)| (id.clone(), entry.last)).collect();
        for (id, last) in entries {
            let next = self.due_after(&id, last);
            if let Some(entry) = self.times.agenda.get_mut(&id) {
                entry.next = next;
            }
            self.touch(&id);
        }
    }

    /// Notes that a run begins. Returns the due time that it serves.
    pub(super) fn serve_by_run(&mut self, id: &InstanceId, run: RunId, epoch: u64) -> Option<Wall> {
        self.schedule_of(id)?;
        let wall = self.schedule_wall();
        self.serve(id, |entry| {
            (entry.epoch, entry.queued) = (epoch, false);
            (entry.run, entry.ran) = (Some(run), Some(wall));
        });
        self.times.agenda.get(id).map(|entry| entry.last)
    }

    /// Works out all due times: at boot, and when the wall clock was set.
    pub(super) fn work_out(&mut self) {
        self.times.offset = self.offset();
        let wall = self.system.wall();
        let ids: Vec<InstanceId> = self.times.agenda.iter().map(|(id, _)| id.clone()).collect();
        for id in ids {
            let latest = self.observed.get(&id).and_then(latest_run);
            let Some(entry) = self.times.agenda.get_mut(&id) else { continue };
            // The ledger knows of a run that began just before the supervisor died.
            if let Some((run, due, epoch)) = latest
                && entry.run != Some(run)
                && (due > entry.last || (due == entry.last && entry.queued))
            {
                (entry.last, entry.epoch, entry.queued) = (due, epoch, false);
                entry.run = Some(run);
                self.times.changed = true;
            }
            if entry.last.since(wall) > AHEAD_MAX {
                log::warn!("{id}: its last due time is in the future; its schedule begins anew");
                entry.last = wall;
                self.times.changed = true;
            }
            let last = entry.last;
            let next = self.due_after(&id, last);
            if let Some(entry) = self.times.agenda.get_mut(&id) {
                entry.next = next;
            }
            self.touch(&id);
        }
    }

    /// Looks who is due by the wall clock, and whether that was set.
    pub(super) fn look_at_the_wall(&mut self) {
        let offset = self.offset();
        let step = offset.saturating_sub(self.times.offset);
        if self.times.agenda.is_empty() {
            self.times.offset = offset;
            return;
        }
        if step.unsigned_abs() > STEP_MIN.as_nanos() / 1_000 {
            log::info!("the wall clock was set; schedules are worked out anew");
            self.shift_intervals(step);
            self.work_out();
        }
        self.times.offset = offset;
        let now = self.schedule_wall();
        while let Some(id) = self.times.alarms.pop(now) {
            self.touch(&id);
        }
    }

    /// Whether an instance rests until it is due is something that its neighbours look at.
    fn touch(&mut self, id: &InstanceId) {
        self.dirty.insert(id.clone());
        self.touch_neighbours(id);
    }

    /// Lets the system wake us when the next instance is due by the wall clock.
    pub(super) fn arm(&mut self) {
        let next = self.times.alarms.first().into_iter().chain(self.hold_ends).min();
        if next != self.times.armed {
            self.system.set_alarm(next);
            self.times.armed = next;
        }
    }

    /// An interval is a length of time: it ends as much later as the clock was set on.
    fn shift_intervals(&mut self, step: i64) {
        let is_interval = |id: &&InstanceId| {
            let schedule = self.schedule_of(id);
            schedule.is_some_and(|s| matches!(s.when, crate::model::When::Every(_)))
        };
        let ids: Vec<InstanceId> =
            self.times.agenda.iter().map(|(id, _)| id).filter(is_interval).cloned().collect();
        for id in ids {
            if let Some(entry) = self.times.agenda.get_mut(&id) {
                entry.last = Wall(entry.last.0.saturating_add(step));
                self.times.changed = true;
            }
        }
    }

    /// The wall clock less the time that passed, in microseconds.
    fn offset(&self) -> i64 {
        self.system.wall().0.saturating_sub(self.passed())
    }

    fn passed(&self) -> i64 {
        i64::try_from(self.system.steady().as_nanos() / 1_000).unwrap_or(i64::MAX)
    }

    /// The wall clock as it was when due times were last looked at, and the time that passed since: one
    /// that is set in the middle of a turn makes nobody due before all is worked out anew.
    pub(super) fn schedule_wall(&self) -> Wall {
        Wall(self.times.offset.saturating_add(self.passed()))
    }

    /// Forgets the due times of what has no schedule any more.
    pub(super) fn prune_agenda(&mut self) {
        let units = &self.desired.units;
        let is_kept = |id: &InstanceId| {
            let unit = units.get(&id.unit).filter(|unit| !unit.removed);
            unit.is_some_and(|unit| unit.spec.schedule.is_some() && unit.spec.has_instance(id))
        };
        self.times.changed |= self.times.agenda.retain(is_kept);
    }

    /// Saves the due times, where they changed: before anything runs because of them.
    pub(super) fn save_agenda(&mut self) {
        if !self.times.changed {
            return;
        }
        // The ledger has them too, for as long as the machine runs: what is due runs all the same.
        let result = self.system.save_agenda(&self.times.agenda);
        match &result {
            Err(error) if !self.times.fails => {
                log::error!("{error}; after a reboot a schedule may run twice for one due time");
            }
            Ok(()) if self.times.fails => log::info!("due times can be saved again"),
            Ok(()) | Err(_) => {}
        }
        // What could not be saved is tried again in the next round.
        self.times.fails = result.is_err();
        self.times.changed = result.is_err();
    }
}

/// The latest run of an instance with a schedule, the due time that it served, and its epoch.
fn latest_run(instance: &Instance) -> Option<(RunId, Wall, u64)> {
    let run = instance.run.as_ref().map(|run| run.id);
    let run = run.or_else(|| instance.last.as_ref().map(|end| end.run))?;
    Some((run, instance.due?, instance.epoch))
}
