//! Holds that end by themselves, by the wall clock: "stopped until six".

use super::Supervisor;
use crate::model::{Desired, Hold, Span, Unit, Wall};
use crate::system::System;

/// How long after a failure holds are lifted again.
const LIFT_AGAIN: Span = Span::seconds(5);

impl<S: System> Supervisor<S> {
    /// Works out when the first hold ends: whenever the desired state changes.
    pub(super) fn note_holds(&mut self) {
        let ends = self.desired.units.values().flat_map(holds).filter_map(|hold| hold.until);
        self.hold_ends = ends.min();
        self.lift_after = None;
    }

    /// Lifts the holds that are over. What cannot be saved is tried again after a while, and told once
    /// more then.
    pub(super) fn lift_holds(&mut self) {
        let Some(end) = self.hold_ends else { return };
        let now = self.system.now();
        if self.lift_after.is_some_and(|after| now < after) {
            return;
        }
        self.lift_after = None;
        let wall = self.system.wall();
        if end > wall {
            return;
        }
        let mut desired = self.desired.clone();
        let lifted = lift(&mut desired, wall);
        match self.commit(desired) {
            Ok(()) => lifted.iter().for_each(|said| log::info!("{said}")),
            Err(refusal) => {
                log::error!("cannot lift holds that are over: {refusal}");
                self.lift_after = Some(now.after(LIFT_AGAIN));
            }
        }
    }
}

fn holds(unit: &Unit) -> impl Iterator<Item = &Hold> {
    let instances = unit.instances.values().filter_map(|wish| wish.hold.as_deref());
    unit.hold.as_deref().into_iter().chain(instances)
}

/// Takes away the holds that are over; says which.
fn lift(desired: &mut Desired, wall: Wall) -> Vec<String> {
    let mut said = Vec::new();
    let is_over = |hold: &mut Box<Hold>| hold.until.is_some_and(|until| until <= wall);
    for (name, unit) in &mut desired.units {
        if let Some(hold) = unit.hold.take_if(is_over) {
            said.push(format!("{name}: the hold of {} is over", hold.by));
        }
        for (id, wish) in &mut unit.instances {
            if let Some(hold) = wish.hold.take_if(is_over) {
                said.push(format!("{id}: the hold of {} is over", hold.by));
            }
        }
    }
    said
}
