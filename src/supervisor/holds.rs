//! Holds that end by themselves, by the wall clock: "stopped until six".

use super::Supervisor;
use crate::model::{Desired, Hold, Unit, Wall};
use crate::system::System;

impl<S: System> Supervisor<S> {
    /// Works out when the first hold ends: whenever the desired state changes.
    pub(super) fn note_holds(&mut self) {
        let ends = self.desired.units.values().flat_map(holds).filter_map(|hold| hold.until);
        self.hold_ends = ends.min();
    }

    /// Lifts the holds that are over. What cannot be saved is tried again in the next turn.
    pub(super) fn lift_holds(&mut self) {
        let wall = match self.hold_ends {
            None => return,
            Some(end) => {
                let wall = self.system.wall();
                if end > wall {
                    return;
                }
                wall
            }
        };
        let mut desired = self.desired.clone();
        let lifted = lift(&mut desired, wall);
        match self.commit(desired) {
            Ok(()) => lifted.iter().for_each(|said| log::info!("{said}")),
            Err(refusal) => log::error!("cannot lift holds that are over: {refusal}"),
        }
    }
}

fn holds(unit: &Unit) -> impl Iterator<Item = &Hold> {
    let instances = unit.instances.values().filter_map(|wish| wish.hold.as_ref());
    unit.hold.iter().chain(instances)
}

/// Takes away the holds that are over; says which.
fn lift(desired: &mut Desired, wall: Wall) -> Vec<String> {
    let mut said = Vec::new();
    let is_over = |hold: &mut Hold| hold.until.is_some_and(|until| until <= wall);
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
