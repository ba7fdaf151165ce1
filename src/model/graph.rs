//! How units hang together: who waits for whom, who is wanted at all, and loops.

use super::gather::Gather;
use std::collections::{BTreeMap, BTreeSet};

use super::desired::Desired;
use super::name::UnitName;
use super::relations::{Condition, Dependency};
use super::shared::Shared;
use super::socket::Accept;
use super::spec::Spec;
use super::time::Span;

/// The target that boot brings up, where there is one.
pub const DEFAULT_TARGET: &str = "default";

/// How strongly a unit depends on another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Strength {
    /// Order only.
    After,
    /// Order, and goes on without.
    Wants,
    /// Not up unless the other one is.
    Requires,
}

/// One dependency, seen from one of its ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// The unit at the other end.
    pub unit: UnitName,
    /// How far the one that is needed must have come.
    pub condition: Condition,
    /// How strongly.
    pub strength: Strength,
}

impl Need {
    /// The same, seen from the end that it names; `unit` is the one from which it was seen.
    #[must_use]
    pub fn from_other_end(&self, unit: &UnitName) -> Self {
        Self { unit: unit.clone(), ..*self }
    }
}

/// A unit's place in the graph.
#[derive(Debug, Clone, Default)]
pub struct Node {
    /// What it is ordered after. It stops before these.
    pub needs: Vec<Need>,
    /// Who is ordered after it. These stop first.
    pub dependents: Vec<Need>,
    /// Who may not be up at the same time.
    pub conflicts: Shared<Vec<UnitName>>,
    /// The socket units that are for it, in order, and what starts it as far as each is concerned.
    pub sockets: Shared<Vec<(UnitName, Accept)>>,
    /// Whether anything brings it up: the default target, or being enabled, or `opm start`.
    pub wanted: bool,
    /// How many stages the order has from this unit's on, whether or not they run: 1 for one that needs
    /// nobody.
    pub depth: u32,
}

/// How all units hang together; built anew when the desired state changes.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    nodes: BTreeMap<UnitName, Node>,
    is_stale: bool,
}

impl Node {
    /// Whether it starts with the first connection, and not before.
    pub fn is_lazy(&self) -> bool {
        let mut sockets = self.sockets.iter();
        !self.sockets.is_empty() && sockets.all(|(_, accept)| *accept == Accept::Lazy)
    }
}

impl Graph {
    /// Works out the graph of a desired state. Dependencies on units that do not exist are kept.
    pub fn build(desired: &Desired) -> Self {
        let mut nodes: BTreeMap<UnitName, Node> = BTreeMap::new();
        for unit in desired.units.values() {
            for (from, need) in needs_of(&unit.spec) {
                let dependent = need.from_other_end(&from);
                nodes.entry(need.unit.clone()).or_default().dependents.push(dependent);
                nodes.entry(from).or_default().needs.push(need);
            }
            let name = &unit.spec.name;
            nodes.entry(name.clone()).or_default();
            if let Some(socket) = unit.spec.socket.as_ref().filter(|_| !unit.removed) {
                let node = nodes.entry(socket.service.clone()).or_default();
                node.sockets.push((name.clone(), socket.accept));
            }
            for other in &unit.spec.relations.conflicts {
                nodes.entry(name.clone()).or_default().conflicts.push(other.clone());
                nodes.entry(other.clone()).or_default().conflicts.push(name.clone());
            }
        }
        for node in nodes.values_mut() {
            node.needs.shrink_to_fit();
            node.dependents.shrink_to_fit();
        }
        // A map that is made of what is in order has no room to spare.
        let nodes = nodes.into_iter().collect();
        let mut graph = Self { nodes, is_stale: false };
        graph.mark_wanted(desired);
        graph.measure_depth();
        graph
    }

    /// A unit is gone. Many may go at once: it keeps its place until the graph is built anew.
    pub fn go_stale(&mut self) {
        self.is_stale = true;
    }

    /// Whether units went since it was built.
    pub fn is_stale(&self) -> bool {
        self.is_stale
    }

    /// A unit's place; `None` for one that nobody names.
    pub fn node(&self, unit: &UnitName) -> Option<&Node> {
        self.nodes.get(unit)
    }

    /// Whether anything brings the unit up.
    pub fn is_wanted(&self, unit: &UnitName) -> bool {
        self.node(unit).is_some_and(|node| node.wanted)
    }

    /// All units that have to do with this one: what it needs, who needs it, and conflicts.
    pub fn neighbours<'a>(&'a self, unit: &UnitName) -> impl Iterator<Item = &'a UnitName> + 'a {
        self.node(unit).into_iter().flat_map(|node| {
            let needs = node.needs.iter().map(|need| &need.unit);
            needs.chain(node.dependents.iter().map(|need| &need.unit)).chain(&node.conflicts)
        })
    }

    /// From the roots along `requires` and `wants`, and from sockets to their services. `enabled: false` is stronger than being needed.
    fn mark_wanted(&mut self, desired: &Desired) {
        let is_up = |name: &UnitName| {
            desired
                .units
                .get(name)
                .is_some_and(|unit| !unit.removed && (unit.spec.enabled || unit.started))
        };
        let default = UnitName::parse(DEFAULT_TARGET).ok().filter(|name| is_up(name));
        let mut queue: Vec<UnitName> = desired
            .units
            .iter()
            .filter(|(name, unit)| match &default {
                Some(default) => *name == default || unit.started,
                None => true,
            })
            .map(|(name, _)| name.clone())
            .collect();
        while let Some(name) = queue.pop() {
            if !is_up(&name) {
                continue;
            }
            let Some(node) = self.nodes.get_mut(&name).filter(|node| !node.wanted) else {
                continue;
            };
            node.wanted = true;
            let pulled = node.needs.iter().filter(|need| need.strength > Strength::After);
            queue.extend(pulled.map(|need| need.unit.clone()));
            let socket = desired.units.get(&name).and_then(|unit| unit.spec.socket.as_ref());
            queue.extend(socket.map(|socket| socket.service.clone()));
        }
    }

    /// Counts the stages of all units.
    fn measure_depth(&mut self) {
        let stages = self.stages(|_| Some(Span::ZERO));
        let depths: Vec<u32> = stages.into_values().map(|stage| stage.count).collect();
        for (node, depth) in self.nodes.values_mut().zip(depths) {
            node.depth = depth;
        }
    }

    /// The stages of a shutdown from each unit's on. `takes`: how long a unit may take by its own times, or
    /// nothing for one that takes no stage, which passes on those below.
    pub fn stages(
        &self,
        takes: impl Fn(&UnitName) -> Option<Span>,
    ) -> BTreeMap<&UnitName, StopStage> {
        let own = |unit| StopStage { count: u32::from(takes(unit).is_some()), below: Span::ZERO };
        let mut stages: BTreeMap<&UnitName, StopStage> =
            self.nodes.keys().map(|unit| (unit, own(unit))).gather();
        // Without recursion: units in order of readiness.
        let mut open: BTreeMap<&UnitName, usize> =
            self.nodes.iter().map(|(unit, node)| (unit, node.needs.len())).gather();
        let mut ready: Vec<&UnitName> =
            open.iter().filter(|(_, left)| **left == 0).map(|(unit, _)| *unit).collect();
        while let Some(unit) = ready.pop() {
            let below = stages.get(unit).copied().unwrap_or_default();
            let time = below.below.plus(takes(unit).unwrap_or_default());
            for Need { unit: dependent, .. } in self.node(unit).map_or(&[][..], |it| &it.dependents)
            {
                if let Some(stage) = stages.get_mut(dependent) {
                    let count = below.count.saturating_add(own(dependent).count);
                    stage.count = stage.count.max(count);
                    stage.below = stage.below.max(time);
                }
                if let Some(left) = open.get_mut(dependent) {
                    *left = left.saturating_sub(1);
                    if *left == 0 {
                        ready.push(dependent);
                    }
                }
            }
        }
        stages
    }
}

/// What of a shutdown is still to come when a unit's own stop begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StopStage {
    /// How many stages, the unit's own among them.
    pub count: u32,
    /// How long those after it may take by their own times.
    pub below: Span,
}

/// Every order edge that a spec declares, as (the unit that waits, what it waits for).
pub fn needs_of(spec: &Spec) -> impl Iterator<Item = (UnitName, Need)> + '_ {
    let own = |list: &'_ [Dependency], strength| {
        let needs: Vec<_> = list
            .iter()
            .map(|dependency| Need {
                unit: dependency.unit.clone(),
                condition: dependency.condition,
                strength,
            })
            .collect();
        needs.into_iter().map(|need| (spec.name.clone(), need))
    };
    let relations = &spec.relations;
    let before = relations.before.iter().map(|dependency| {
        let need = Need {
            unit: spec.name.clone(),
            condition: dependency.condition,
            strength: Strength::After,
        };
        (dependency.unit.clone(), need)
    });
    // A service requires its sockets.
    let socket = spec.socket.as_ref().map(|socket| {
        let (unit, strength) = (spec.name.clone(), Strength::Requires);
        (socket.service.clone(), Need { unit, condition: Condition::Ready, strength })
    });
    own(&relations.requires, Strength::Requires)
        .chain(own(&relations.wants, Strength::Wants))
        .chain(own(&relations.after, Strength::After))
        .chain(before)
        .chain(socket)
}

/// One loop in the order of these units, if there is any: each waits for the next, the last for
/// the first.
pub fn find_loop<'a>(specs: impl IntoIterator<Item = &'a Spec>) -> Option<Vec<UnitName>> {
    let mut after: BTreeMap<UnitName, BTreeSet<UnitName>> = BTreeMap::new();
    for (from, need) in specs.into_iter().flat_map(needs_of) {
        after.entry(from).or_default().insert(need.unit);
    }
    // Take away what waits for nobody until nothing changes; what is left waits for one another.
    let mut waited_by: BTreeMap<&UnitName, Vec<&UnitName>> = BTreeMap::new();
    let mut open: BTreeMap<&UnitName, usize> = BTreeMap::new();
    for (from, needs) in &after {
        open.insert(from, needs.len());
        for need in needs {
            waited_by.entry(need).or_default().push(from);
            open.entry(need).or_insert(0);
        }
    }
    let mut free: Vec<&UnitName> =
        open.iter().filter(|(_, left)| **left == 0).map(|(name, _)| *name).collect();
    while let Some(name) = free.pop() {
        open.remove(name);
        for from in waited_by.get(name).into_iter().flatten() {
            if let Some(left) = open.get_mut(from) {
                *left = left.saturating_sub(1);
                if *left == 0 {
                    free.push(from);
                }
            }
        }
    }
    // Every unit that is left waits for another that is left: walk until one comes again.
    let mut path: Vec<&UnitName> = Vec::new();
    let mut at = *open.keys().next()?;
    loop {
        if let Some(start) = path.iter().position(|seen| *seen == at) {
            let mut cycle: Vec<UnitName> = path.into_iter().skip(start).cloned().collect();
            let first = cycle.iter().enumerate().min_by_key(|(_, name)| (*name).clone());
            let turn = first.map_or(0, |(place, _)| place);
            cycle.rotate_left(turn);
            return Some(cycle);
        }
        path.push(at);
        at = after.get(at)?.iter().find(|need| open.contains_key(need))?;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::desired::Unit;
    use crate::model::spec::Kind;

    fn name(text: &str) -> UnitName {
        UnitName::parse(text).unwrap()
    }

    fn spec(text: &str, requires: &[&str]) -> Spec {
        let mut spec = Spec::new(Kind::Service, name(text));
        spec.relations.requires = requires
            .iter()
            .map(|unit| Dependency { unit: name(unit), condition: Condition::Ready })
            .collect();
        spec
    }

    fn graph(specs: Vec<Spec>) -> Graph {
        let units = specs
            .into_iter()
            .map(|spec| (spec.name.clone(), Unit::new(Arc::new(spec), "-")))
            .collect();
        Graph::build(&Desired { generation: 1, units, ..Desired::default() })
    }

    #[test]
    fn a_loop_is_found_and_begins_with_its_first_name() {
        let specs = [spec("c", &["a"]), spec("a", &["b"]), spec("b", &["c"]), spec("x", &["a"])];
        assert_eq!(find_loop(&specs), Some(vec![name("a"), name("b"), name("c")]));
        assert_eq!(find_loop(&[spec("x", &["x"])]), Some(vec![name("x")]));
        assert_eq!(find_loop(&[spec("a", &["b"]), spec("b", &["missing"])]), None);
    }

    #[test]
    fn before_is_after_seen_from_the_other_side() {
        let mut first = spec("first", &[]);
        first.relations.before =
            vec![Dependency { unit: name("second"), condition: Condition::Started }];
        let graph = graph(vec![first, spec("second", &[])]);
        let need = &graph.node(&name("second")).unwrap().needs[0];
        assert_eq!((need.unit.as_str(), need.condition), ("first", Condition::Started));
    }

    #[test]
    fn the_default_target_decides_what_is_wanted() {
        let mut off = spec("off", &[]);
        off.enabled = false;
        let mut default = spec("default", &["web", "off"]);
        default.kind = Kind::Target;
        let graph =
            graph(vec![default, spec("web", &["db"]), spec("db", &[]), spec("x", &[]), off]);
        for (unit, wanted) in [("default", true), ("web", true), ("db", true), ("x", false)] {
            assert_eq!(graph.is_wanted(&name(unit)), wanted, "{unit}");
        }
        assert!(!graph.is_wanted(&name("off")), "enabled: false is stronger than being needed");
    }

    #[test]
    fn who_takes_no_stage_passes_on_those_below() {
        let all = [("a", vec![]), ("b", vec!["a"]), ("c", vec!["b"]), ("d", vec!["c", "a"])];
        let graph = graph(all.iter().map(|(unit, needs)| spec(unit, needs)).collect());
        let takes = |unit: &UnitName| {
            let is_there = *unit != name("b") && *unit != name("c");
            is_there.then(|| Span::seconds(if *unit == name("a") { 3 } else { 5 }))
        };
        let stages = graph.stages(takes);
        let stages: Vec<(u32, Span)> = stages.into_values().map(|s| (s.count, s.below)).collect();
        let three = Span::seconds(3);
        assert_eq!(stages, [(1, Span::ZERO), (1, three), (1, three), (2, three)]);
    }

    #[test]
    fn depth_counts_the_stages_below() {
        let graph = graph(vec![spec("c", &["b", "a"]), spec("b", &["a"]), spec("a", &[])]);
        for (unit, depth) in [("a", 1), ("b", 2), ("c", 3)] {
            assert_eq!(graph.node(&name(unit)).unwrap().depth, depth, "{unit}");
        }
    }
}
