//! Whether the time that a shutdown has can be enough: the longest chain of stops against it.

use std::collections::BTreeMap;

use crate::model::{Desired, Graph, Kind, Span, Stop, Unit, UnitName};

/// Most units of a chain that a warning names; of more it names the first and the last ones.
const NAMED_MAX: usize = 8;

/// Units that stop one after the other, those that need others first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Chain {
    /// The units, in the order in which they stop.
    pub units: Vec<UnitName>,
    /// How long the stop steps of all of them together wait; [`Span::FOREVER`]: without an end.
    pub time: Span,
}

/// The longest chain from one unit on.
struct Found<'a> {
    /// From its own stop on.
    time: Span,
    /// What of that is for those that need it: a task has completed where they run.
    passes: Span,
    /// The unit after it.
    next: Option<&'a UnitName>,
}

/// The chain of stops that may take the longest; an empty one where nothing is to be stopped.
///
/// A unit that is not to be up parts a chain: it is not there to be waited for.
pub fn longest_stop(desired: &Desired) -> Chain {
    let graph = Graph::build(desired);
    let is_up =
        |unit: &&Unit| !unit.removed && unit.hold.is_none() && graph.is_wanted(&unit.spec.name);
    let mut units: Vec<&Unit> = desired.units.values().filter(is_up).collect();
    let depth = |unit: &Unit| graph.node(&unit.spec.name).map_or(1, |node| node.depth);
    units.sort_by_key(|unit| depth(unit));
    let mut found: BTreeMap<&UnitName, Found<'_>> = BTreeMap::new();
    for unit in units {
        let name = &unit.spec.name;
        let own = unit.spec.process.as_ref().map_or(Span::ZERO, |_| unit.spec.stop.time());
        let needs = graph.node(name).into_iter().flat_map(|node| &node.needs);
        let below = needs.filter_map(|need| found.get_key_value(&need.unit));
        let next = below.max_by(|a, b| a.1.passes.cmp(&b.1.passes).then_with(|| b.0.cmp(a.0)));
        let below = next.map_or(Span::ZERO, |(_, next)| next.passes);
        let time = own.plus(below);
        let passes = if unit.spec.kind == Kind::Task { below } else { time };
        let next = next.map(|(next, _)| *next);
        found.insert(name, Found { time, passes, next });
    }
    let first = found.iter().max_by(|a, b| a.1.time.cmp(&b.1.time).then_with(|| b.0.cmp(a.0)));
    let time = first.map_or(Span::ZERO, |(_, found)| found.time);
    let mut chain = Chain { units: Vec::new(), time };
    let mut at = first.map(|(name, _)| *name);
    while let Some(name) = at {
        let spec = desired.units.get(name).map(|unit| &unit.spec);
        let is_task = spec.is_some_and(|spec| spec.kind == Kind::Task);
        if spec.is_some_and(|spec| spec.process.is_some()) && (!is_task || chain.units.is_empty()) {
            chain.units.push(name.clone());
        }
        at = found.get(name).and_then(|found| found.next);
    }
    chain
}

/// What to say where the longest chain of stops does not fit into the time of a shutdown.
///
/// Nothing of a unit alone that says nothing of its stop: the default of that is longer than what
/// PID 1 has, and nobody asked for it.
pub fn budget_warning(desired: &Desired, budget: Option<Span>) -> Option<String> {
    let budget = budget?;
    let chain = longest_stop(desired);
    let is_silent = |name: &UnitName| {
        desired.units.get(name).is_some_and(|unit| *unit.spec.stop == Stop::default())
    };
    let is_default = matches!(chain.units.as_slice(), [only] if is_silent(only));
    if chain.time <= budget || is_default {
        return None;
    }
    let time = match chain.time {
        Span::FOREVER => "for ever".to_owned(),
        time => time.to_string(),
    };
    Some(format!(
        "stopping {} may take {time}, and a shutdown has {budget}: who is not gone when its part of \
         that is over is killed",
        named(&chain.units)
    ))
}

/// The names in their order; of many the first and the last ones.
fn named(units: &[UnitName]) -> String {
    let mut names: Vec<String> = units.iter().map(|name| format!("`{name}`")).collect();
    if let Some(more) = names.len().checked_sub(NAMED_MAX).filter(|more| *more > 0) {
        let half = NAMED_MAX / 2;
        let cut = half..half.saturating_add(more);
        names.splice(cut, [format!("{more} others")]);
    }
    names.join(", then ")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{
        Command, Condition, Dependency, FilePath, Hold, Kind, ProcessSpec, Spec, Template, Wall,
    };

    /// A unit with so many seconds to stop; 0 for a target.
    fn unit(name: &str, seconds: u64, wants: &[&str]) -> Unit {
        let kind = if seconds == 0 { Kind::Target } else { Kind::Service };
        let mut spec = Spec::new(kind, UnitName::parse(name).unwrap());
        if seconds > 0 {
            let command = Command::Argv(vec![Template::literal("true")]);
            spec.process = Some(ProcessSpec::new(command, FilePath::from("/")));
            spec.stop.steps[0].wait = Span::seconds(seconds);
        }
        let depends = |unit: &&str| Dependency {
            unit: UnitName::parse(unit).unwrap(),
            condition: Condition::Ready,
        };
        spec.relations.wants = wants.iter().map(depends).collect();
        Unit::new(Arc::new(spec), "-".to_owned())
    }

    fn desired(units: Vec<Unit>) -> Desired {
        let units = units.into_iter().map(|unit| (unit.spec.name.clone(), unit)).collect();
        Desired { generation: 1, units, ..Desired::default() }
    }

    fn chain_of(desired: &Desired) -> String {
        let chain = longest_stop(desired);
        let names: Vec<&str> = chain.units.iter().map(UnitName::as_str).collect();
        format!("{} {}", names.join(" "), chain.time)
    }

    #[test]
    fn the_longest_chain_is_the_one_of_most_time_and_not_of_most_units() {
        let mut all = desired(vec![
            unit("a", 1, &["b"]),
            unit("b", 1, &["c"]),
            unit("c", 1, &[]),
            unit("x", 4, &["t"]),
            unit("t", 0, &["y"]),
            unit("y", 5, &[]),
        ]);
        assert_eq!(chain_of(&all), "x y 9s", "a target stops at once, and passes the order on");
        let t = all.units.get_mut(&UnitName::parse("t").unwrap()).unwrap();
        let by = "me".to_owned();
        let hold = Hold { by, reason: String::new(), at: Wall(0), until: None, until_boot: false };
        t.hold = Some(Box::new(hold));
        assert_eq!(chain_of(&all), "y 5s", "what is held is not there to be waited for");
        let y = all.units.get_mut(&UnitName::parse("y").unwrap()).unwrap();
        y.removed = true;
        assert_eq!(chain_of(&all), "x 4s");
        assert_eq!(longest_stop(&Desired::default()), Chain::default());
        let mut all = desired(vec![unit("a", 2, &["t"]), unit("t", 9, &["b"]), unit("b", 1, &[])]);
        let t = all.units.get_mut(&UnitName::parse("t").unwrap()).unwrap();
        Arc::make_mut(&mut t.spec).kind = Kind::Task;
        assert_eq!(chain_of(&all), "t b 10s", "it may run when they do not");
        all.units.get_mut(&UnitName::parse("a").unwrap()).unwrap().spec =
            unit("a", 20, &["t"]).spec;
        assert_eq!(chain_of(&all), "a b 21s", "who needs a task runs when that has completed");
    }

    #[test]
    fn a_warning_names_chain_sum_and_budget() {
        let two = desired(vec![unit("a", 10, &["b"]), unit("b", 10, &[])]);
        assert_eq!(budget_warning(&two, None), None);
        assert_eq!(budget_warning(&two, Some(Span::seconds(20))), None);
        let warning = budget_warning(&two, Some(Span::seconds(9))).unwrap();
        assert!(warning.starts_with("stopping `a`, then `b` may take 20s, and a shutdown has 9s:"));
        let one = |seconds| desired(vec![unit("a", seconds, &[])]);
        assert_eq!(budget_warning(&one(10), Some(Span::seconds(9))), None, "nobody asked for it");
        assert!(budget_warning(&one(11), Some(Span::seconds(9))).is_some());
        let mut ever = unit("a", 1, &[]);
        Arc::make_mut(&mut ever.spec).stop.steps[0].wait = Span::FOREVER;
        let warning = budget_warning(&desired(vec![ever]), Some(Span::seconds(9))).unwrap();
        assert!(warning.starts_with("stopping `a` may take for ever"), "{warning}");
    }

    #[test]
    fn of_a_long_chain_the_ends_are_named() {
        let names: Vec<UnitName> =
            (0..1000).map(|n| UnitName::parse(&format!("u{n}")).unwrap()).collect();
        assert_eq!(
            named(&names),
            "`u0`, then `u1`, then `u2`, then `u3`, then 992 others, then `u996`, then `u997`, then \
             `u998`, then `u999`"
        );
        assert_eq!(named(&names[..8]).matches('`').count(), 16);
    }
}
