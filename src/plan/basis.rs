//! What a plan was made from, so that one that was saved is carried out only while that is so.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Plan;
use crate::model::{Desired, Gather, InstanceId, Observed};

/// Most differences that a refusal names.
const NAMED_MAX: usize = 5;

/// The desired state by its generation, and how the instances are that the plan touches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Basis {
    /// The generation in force.
    pub generation: u64,
    /// The phase of each instance, by its word.
    pub phases: BTreeMap<InstanceId, String>,
}

impl Basis {
    /// What a plan is made from now.
    pub fn of(plan: &Plan, desired: &Desired, observed: &Observed) -> Self {
        let touched = plan.changes.iter().flat_map(|change| observed.of_unit(&change.unit));
        let phases = touched.map(|(id, known)| (id.clone(), known.phase.as_str().to_owned()));
        Self { generation: desired.generation, phases: phases.gather() }
    }

    /// Whether things are as they were; else what moved. `plan` is what the same source would change
    /// now, and `now` what that is made from: an instance that is not in it needs no change any more.
    pub fn compare(&self, now: &Self, plan: &Plan) -> Result<(), String> {
        let mut moved = Vec::new();
        if self.generation != now.generation {
            moved.push(format!(
                "generation {} is in force, and the plan was made from {}",
                now.generation, self.generation
            ));
        }
        let is_touched = |id: &InstanceId| plan.changes.iter().any(|change| change.unit == id.unit);
        for (id, was) in &self.phases {
            match now.phases.get(id) {
                Some(is) if is == was => {}
                Some(is) => moved.push(format!("`{id}` was {was} and is {is}")),
                None if is_touched(id) => moved.push(format!("`{id}` was {was} and is gone")),
                // That all of it is so is said once.
                None if plan.changes.is_empty() => {}
                None => moved.push(format!("`{id}` needs no change any more")),
            }
        }
        for (id, is) in now.phases.iter().filter(|(id, _)| !self.phases.contains_key(*id)) {
            moved.push(format!("`{id}` is {is}, which the plan does not know"));
        }
        let is_in_force = plan.changes.is_empty() && !self.phases.is_empty();
        if moved.is_empty() && !is_in_force {
            return Ok(());
        }
        let more = moved.len().saturating_sub(NAMED_MAX);
        moved.truncate(NAMED_MAX);
        if more > 0 {
            moved.push(format!("and {more} more"));
        }
        let moved = moved.join(", ");
        Err(if plan.changes.is_empty() {
            let moved = if moved.is_empty() { moved } else { format!("{moved}; ") };
            format!("the plan is out of date: {moved}what it plans is in force already")
        } else {
            format!("the plan is out of date: {moved}; make a new one")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::UnitName;
    use crate::plan::{Change, Effect};

    fn basis(generation: u64, phases: &[(&str, &str)]) -> Basis {
        let id = |name: &str| InstanceId::single(&UnitName::parse(name).unwrap());
        let phases = phases.iter().map(|(name, phase)| (id(name), (*phase).to_owned()));
        Basis { generation, phases: phases.collect() }
    }

    /// A plan that changes these units.
    fn plan(units: &[&str]) -> Plan {
        let change = |unit: &&str| Change {
            unit: UnitName::parse(unit).unwrap(),
            effect: Effect::Restart,
            fields: Vec::new(),
            because: None,
            rolling: None,
            down_ms: None,
            held: None,
        };
        Plan { changes: units.iter().map(change).collect() }
    }

    #[test]
    fn what_moved_is_said_and_nothing_else() {
        let old = basis(3, &[("web", "up"), ("db", "up")]);
        let both = plan(&["web", "db", "new"]);
        assert_eq!(old.compare(&old, &both), Ok(()));
        let new = basis(3, &[("web", "failed"), ("db", "up"), ("new", "down")]);
        let said = old.compare(&new, &both).unwrap_err();
        assert_eq!(
            said,
            "the plan is out of date: `web` was up and is failed, `new` is down, which the plan does \
             not know; make a new one"
        );
        let said = old.compare(&basis(4, &[("web", "up"), ("db", "up")]), &both).unwrap_err();
        assert!(said.contains("generation 4 is in force"), "{said}");
    }

    #[test]
    fn what_is_not_changed_any_more_is_not_said_to_be_gone() {
        let old = basis(3, &[("web", "up"), ("db", "up")]);
        let said = old.compare(&basis(3, &[("db", "up")]), &plan(&["db"])).unwrap_err();
        assert!(said.contains("`web` needs no change any more; make"), "{said}");
        let said = old.compare(&basis(3, &[("db", "up")]), &plan(&["db", "web"])).unwrap_err();
        assert!(said.contains("`web` was up and is gone"), "{said}");
        let said = old.compare(&basis(4, &[]), &plan(&[])).unwrap_err();
        assert_eq!(
            said,
            "the plan is out of date: generation 4 is in force, and the plan was made from 3; what \
             it plans is in force already"
        );
        assert!(old.compare(&basis(3, &[]), &plan(&[])).is_err());
        // A plan without changes is one too.
        assert_eq!(basis(3, &[]).compare(&basis(3, &[]), &plan(&[])), Ok(()));
    }

    #[test]
    fn a_long_list_is_cut() {
        let names: Vec<String> = (0..20).map(|n| format!("u{n}")).collect();
        let phases: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "up")).collect();
        let said = basis(1, &phases).compare(&basis(1, &[]), &plan(&["u0"])).unwrap_err();
        assert!(said.contains("and 15 more"), "{said}");
    }
}
