//! What a plan was made from, so that one that was saved is carried out only while that is so.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Plan;
use crate::model::{Desired, InstanceId, Observed};

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
        Self { generation: desired.generation, phases: phases.collect() }
    }

    /// Whether things are as they were; else what moved.
    pub fn compare(&self, now: &Self) -> Result<(), String> {
        let mut moved = Vec::new();
        if self.generation != now.generation {
            moved.push(format!(
                "generation {} is in force, and the plan was made from {}",
                now.generation, self.generation
            ));
        }
        let none = "unknown".to_owned();
        for id in
            self.phases.keys().chain(now.phases.keys().filter(|id| !self.phases.contains_key(*id)))
        {
            let (was, is) =
                (self.phases.get(id).unwrap_or(&none), now.phases.get(id).unwrap_or(&none));
            if was != is {
                moved.push(format!("`{id}` was {was} and is {is}"));
            }
        }
        if moved.is_empty() {
            return Ok(());
        }
        let more = moved.len().saturating_sub(NAMED_MAX);
        moved.truncate(NAMED_MAX);
        if more > 0 {
            moved.push(format!("and {more} more"));
        }
        Err(format!("the plan is out of date: {}; make a new one", moved.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::UnitName;

    fn basis(generation: u64, phases: &[(&str, &str)]) -> Basis {
        let id = |name: &str| InstanceId::single(&UnitName::parse(name).unwrap());
        let phases = phases.iter().map(|(name, phase)| (id(name), (*phase).to_owned()));
        Basis { generation, phases: phases.collect() }
    }

    #[test]
    fn what_moved_is_said_and_nothing_else() {
        let old = basis(3, &[("web", "up"), ("db", "up")]);
        assert_eq!(old.compare(&old), Ok(()));
        let new = basis(3, &[("web", "failed"), ("db", "up"), ("new", "down")]);
        let said = old.compare(&new).unwrap_err();
        assert!(
            said.contains("`web` was up and is failed, `new` was unknown and is down"),
            "{said}"
        );
        assert!(!said.contains("db") && !said.contains("generation"), "{said}");
        let said = old.compare(&basis(4, &[("web", "up"), ("db", "up")])).unwrap_err();
        assert!(said.contains("generation 4 is in force"), "{said}");
    }

    #[test]
    fn a_long_list_is_cut() {
        let names: Vec<String> = (0..20).map(|n| format!("u{n}")).collect();
        let phases: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "up")).collect();
        let said = basis(1, &phases).compare(&basis(1, &[])).unwrap_err();
        assert!(said.contains("and 15 more"), "{said}");
    }
}
