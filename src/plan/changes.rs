//! The difference of two desired states: what an operator reads before it happens.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::Value;

use super::fields::{Fields, conceal, fields_of};
use crate::model::{Desired, Graph, Kind, Observed, Spec, Strength, UnitName};

/// What an apply will do.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// Unit by unit, in the order in which it happens.
    pub changes: Vec<Change>,
}

/// What happens to one unit.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Change {
    /// Which one.
    pub unit: UnitName,
    /// What.
    pub effect: Effect,
    /// The keys that differ.
    pub fields: Vec<FieldChange>,
    /// The unit because of which it happens, where it is not its own change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub because: Option<UnitName>,
    /// The hold that keeps it down all the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held: Option<String>,
}

/// What happens to a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Effect {
    /// It goes away.
    Remove,
    /// It restarts.
    Restart,
    /// It changes without a restart.
    Live,
    /// It is new.
    Create,
}

impl Effect {
    /// The mark before its line in a plan.
    pub fn sign(self) -> &'static str {
        match self {
            Self::Remove => "-",
            Self::Restart => "±",
            Self::Live => "~",
            Self::Create => "+",
        }
    }

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Remove => "remove",
            Self::Restart => "restart",
            Self::Live => "change live",
            Self::Create => "create",
        }
    }
}

/// What a change of a key costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Taken over at once.
    Live,
    /// The run restarts.
    Restart,
}

/// A key that differs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FieldChange {
    /// The key, as in `restart.delay`.
    pub key: String,
    /// Its old value, as JSON; absent where it was not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub old: Option<Value>,
    /// Its new value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new: Option<Value>,
    /// What the change costs.
    pub class: Class,
}

/// What going from `old` to `new` does to what runs.
pub fn plan(old: &Desired, new: &Desired, observed: &Observed) -> Plan {
    let graph = Graph::build(new);
    let names: BTreeSet<&UnitName> = old.units.keys().chain(new.units.keys()).collect();
    let mut changes: Vec<Change> =
        names.into_iter().filter_map(|name| change(old, new, observed, name)).collect();
    add_dependents(&mut changes, new, &graph, observed);
    changes.sort_by_key(|change| {
        let depth = graph.node(&change.unit).map_or(1, |node| node.depth);
        // What goes down does so dependents first, what comes up does so the other way round.
        let stage = match change.effect {
            Effect::Remove => u32::MAX.saturating_sub(depth),
            Effect::Restart | Effect::Live | Effect::Create => depth,
        };
        (
            change.effect == Effect::Create,
            change.effect != Effect::Remove,
            stage,
            change.unit.clone(),
        )
    });
    Plan { changes }
}

fn change(old: &Desired, new: &Desired, observed: &Observed, name: &UnitName) -> Option<Change> {
    let before = old.units.get(name).filter(|unit| !unit.removed);
    let after = new.units.get(name).filter(|unit| !unit.removed);
    let held = after.and_then(|unit| unit.hold.as_ref()).map(|hold| hold.by.clone());
    let (effect, fields) = match (before, after) {
        (None, None) => return None,
        (None, Some(_)) => (Effect::Create, Vec::new()),
        (Some(_), None) => (Effect::Remove, Vec::new()),
        (Some(before), Some(after)) => {
            let fields = fields_that_differ(&before.spec, &after.spec);
            let runs = observed.of_unit(name).any(|(_, instance)| instance.run.is_some());
            let restarts = before.hash != after.hash && after.spec.kind != Kind::Task;
            match (fields.is_empty(), restarts && runs) {
                (true, _) => return None,
                (false, true) => (Effect::Restart, fields),
                (false, false) => (Effect::Live, fields),
            }
        }
    };
    Some(Change { unit: name.clone(), effect, fields, because: None, held })
}

/// Units that have to go down and come back because one that they require does.
fn add_dependents(changes: &mut Vec<Change>, new: &Desired, graph: &Graph, observed: &Observed) {
    let mut known: BTreeSet<UnitName> = changes
        .iter()
        .filter(|change| matches!(change.effect, Effect::Restart | Effect::Remove))
        .map(|change| change.unit.clone())
        .collect();
    let mut queue: Vec<UnitName> = known.iter().cloned().collect();
    while let Some(cause) = queue.pop() {
        let dependents = graph.node(&cause).map(|node| node.dependents.clone()).unwrap_or_default();
        for (unit, strength) in dependents {
            let runs = observed.of_unit(&unit).any(|(_, instance)| instance.run.is_some());
            if strength != Strength::Requires || !runs || !new.units.contains_key(&unit) {
                continue;
            }
            if !known.insert(unit.clone()) {
                continue;
            }
            queue.push(unit.clone());
            match changes.iter_mut().find(|change| change.unit == unit) {
                Some(change) => {
                    change.effect = Effect::Restart;
                    change.because = Some(cause.clone());
                }
                None => changes.push(Change {
                    unit,
                    effect: Effect::Restart,
                    fields: Vec::new(),
                    because: Some(cause.clone()),
                    held: None,
                }),
            }
        }
    }
}

/// The keys in which two specs differ.
fn fields_that_differ(old: &Spec, new: &Spec) -> Vec<FieldChange> {
    if old == new {
        return Vec::new();
    }
    let (old, new) = (fields_of(old), fields_of(new));
    let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    keys.into_iter()
        .filter(|key| {
            old.get(*key).map(|(value, _)| value) != new.get(*key).map(|(value, _)| value)
        })
        .map(|key| {
            let class =
                old.get(key).or_else(|| new.get(key)).map_or(Class::Live, |(_, class)| *class);
            let shown =
                |fields: &Fields| fields.get(key).map(|(value, _)| conceal(key, value.clone()));
            FieldChange { key: key.clone(), old: shown(&old), new: shown(&new), class }
        })
        .collect()
}
