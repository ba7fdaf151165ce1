//! What only the whole set of units shows: names that are missing or taken, loops, units that
//! shut one another out, two writers of one file.
//!
//! A unit with a mistake of its own still counts as declared, and its references are still looked
//! at: correcting one mistake should not bring up the next.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::decode::{Decoded, Reference, Tie};
use super::diagnostic::{Diagnostic, Spot, quoted};
use super::source::MISTAKES_MAX;
use super::{shippers, sockets, suggest};
use crate::model::{
    Condition, DEFAULT_TARGET, Dependency, Desired, Gather, Graph, InstanceId, Kind, LogTarget,
    Spec, Template, Unit, UnitName, Variable, find_loop, needs_of,
};

/// Most loops told at once: each may have thousands of places.
const LOOPS_MAX: usize = 10;

/// Most places told of one loop; the rest of it is in the message.
const LOOP_PLACES_MAX: usize = 12;

/// Most names in the message about a loop; others are counted. A loop of all units is one too.
const LOOP_NAMES_MAX: usize = 64;

/// Most unknown names for which the nearest one is looked for; each looks at all names.
const SUGGESTED_MAX: usize = 100;

/// All units of one source, and what else there is.
#[derive(Debug)]
pub(super) struct Set<'a> {
    /// What the source declares.
    pub units: &'a [Arc<Decoded>],
    /// Names that are declared in a way that could not be read.
    pub unread: &'a BTreeSet<String>,
    /// Which units other sources declare.
    pub others: &'a BTreeMap<UnitName, String>,
    /// What those units say.
    pub other_specs: &'a [&'a Spec],
    /// Units that the source declares too, and that are not applied.
    pub not_applied: BTreeSet<&'a UnitName>,
}

impl<'a> Set<'a> {
    /// The source's units by name, the first of each name.
    pub(super) fn by_name(&self) -> BTreeMap<&'a UnitName, &'a Decoded> {
        by_name(self.units)
    }

    /// What each unit says, those of other sources too.
    fn specs<'s>(
        &'s self,
        units: &BTreeMap<&UnitName, &'s Decoded>,
    ) -> BTreeMap<&'s UnitName, &'s Spec> {
        let others = self.other_specs.iter().filter(|spec| !units.contains_key(&spec.name));
        let own = units.values().filter_map(|unit| unit.spec.as_deref());
        others.copied().chain(own).map(|spec| (&spec.name, spec)).gather()
    }

    /// Every mistake of the set, whose units are these by name.
    pub(super) fn check(&self, units: &BTreeMap<&UnitName, &Decoded>) -> Vec<Diagnostic> {
        let mut found = Vec::new();
        self.names(units, &mut found);
        self.unknown(units, &mut found);
        self.loops(units, &mut found);
        self.conflicts(units, &mut found);
        self.log_files(units, &mut found);
        let specs = self.specs(units);
        sockets::check(units, &specs, &mut found);
        shippers::check(units, &specs, &mut found);
        found
    }

    /// Names that are declared twice, here or by another source.
    fn names(&self, units: &BTreeMap<&UnitName, &Decoded>, found: &mut Vec<Diagnostic>) {
        if units.len() == self.units.len() && self.others.is_empty() {
            return;
        }
        for unit in self.units {
            let Some(name) = &unit.name else { continue };
            if let Some(source) = self.others.get(name) {
                let message = format!("unit `{name}` is declared by source `{source}` already");
                let mut clash = Diagnostic::error(unit.spot.clone(), &message);
                clash.help(
                    "give it another name; or apply these files in place of that source, with \
                     `--source NAME`, or from there, with `--only`",
                );
                found.push(clash);
            }
            if let Some(first) = units.get(name).filter(|first| first.spot != unit.spot) {
                let message = format!("unit `{name}` is declared twice");
                let mut again = Diagnostic::error(unit.spot.clone(), &message);
                again.label("again here").related(first.spot.clone(), "first here");
                found.push(again);
            }
        }
    }

    /// References to units that are nowhere, or to the unit itself; not more than are told of a file.
    fn unknown(&self, units: &BTreeMap<&UnitName, &Decoded>, found: &mut Vec<Diagnostic>) {
        let other_names = || self.other_specs.iter().map(|spec| &spec.name);
        let elsewhere: BTreeSet<&UnitName> = self.others.keys().chain(other_names()).gather();
        let mut told = 0;
        // What a unit takes from the one it extends is one mistake.
        let mut spots: BTreeSet<&Spot> = BTreeSet::new();
        for unit in units.values() {
            let Some(name) = &unit.name else { continue };
            for reference in &unit.references {
                let to = &reference.to;
                if to == name {
                    found.push(to_itself(name, reference));
                    continue;
                }
                let is_known = units.contains_key(to)
                    || elsewhere.contains(to)
                    || self.unread.contains(to.as_str());
                if is_known || !spots.insert(&reference.spot) {
                    continue;
                }
                let key = reference.key;
                if self.not_applied.contains(to) {
                    let message =
                        format!("`{key}` of unit `{name}` names `{to}`, which is not applied");
                    let mut missing = Diagnostic::error(reference.spot.clone(), &message);
                    missing.help(format!("apply it too, with `--only {to}`"));
                    found.push(missing);
                    continue;
                }
                let message =
                    format!("`{key}` of unit `{name}` names `{to}`, which does not exist");
                let mut missing = Diagnostic::error(reference.spot.clone(), &message);
                told += 1;
                if told > MISTAKES_MAX {
                    return;
                }
                if told <= SUGGESTED_MAX {
                    let names = units.keys().copied().chain(elsewhere.iter().copied());
                    let names = names.filter(|other| *other != name).map(UnitName::as_str);
                    missing.did_you_mean(suggest::nearest(to.as_str(), names));
                }
                found.push(missing);
            }
        }
    }

    /// Units that wait for one another.
    fn loops(&self, units: &BTreeMap<&UnitName, &Decoded>, found: &mut Vec<Diagnostic>) {
        let is_ordered = |spec: &&&Spec| needs_of(spec).next().is_some();
        let others = self.other_specs.iter().filter(|spec| !units.contains_key(&spec.name));
        let mut specs: Vec<Spec> = others.filter(is_ordered).map(|spec| (*spec).clone()).collect();
        specs.extend(units.values().filter_map(|unit| order_of(unit)));
        for _ in 0..LOOPS_MAX {
            let Some(names) = find_loop(&specs) else { return };
            // Each edge is declared by a unit of the loop: without them it is not found again.
            specs.retain(|spec| !names.contains(&spec.name));
            if let Some(diagnostic) = loop_of(&names, units) {
                found.push(diagnostic);
            }
        }
    }

    /// Units that exclude each other and would both be up.
    fn conflicts(&self, units: &BTreeMap<&UnitName, &Decoded>, found: &mut Vec<Diagnostic>) {
        let mut pairs: Vec<(&UnitName, &UnitName, &Spot)> = Vec::new();
        for (name, unit) in units {
            let own = unit.references.iter().filter(|reference| reference.tie == Tie::Conflict);
            pairs.extend(own.map(|reference| (*name, &reference.to, &reference.spot)));
        }
        for spec in self.other_specs {
            let named = spec.relations.conflicts.iter().filter_map(|to| units.get_key_value(to));
            pairs.extend(named.map(|(to, unit)| (&spec.name, *to, &unit.spot)));
        }
        let default = units.iter().find(|(name, _)| name.as_str() == DEFAULT_TARGET);
        // What a default target that cannot be read wants is not known.
        if pairs.is_empty() || default.is_some_and(|(_, unit)| unit.spec.is_none()) {
            return;
        }
        let graph = self.graph(units);
        let mut told = BTreeSet::new();
        for (one, other, spot) in pairs {
            let pair = if one < other { (one, other) } else { (other, one) };
            let is_news = one != other && told.insert(pair);
            if is_news && graph.is_wanted(one) && graph.is_wanted(other) {
                let message = format!("`{one}` and `{other}` conflict, and both would be up");
                let mut conflict = Diagnostic::error(spot.clone(), &message);
                conflict.help("give one of them `enabled: false`");
                found.push(conflict);
            }
        }
    }

    /// How all units hang together, those of other sources too.
    fn graph(&self, units: &BTreeMap<&UnitName, &Decoded>) -> Graph {
        let own = units.values().filter_map(|unit| unit.spec.as_deref());
        let others = self.other_specs.iter().copied();
        let all = others
            .chain(own)
            .map(|spec| (spec.name.clone(), Unit::new(Arc::new(spec.clone()), "")));
        Graph::build(&Desired { units: all.gather(), ..Desired::default() })
    }

    /// Files that two instances would write.
    fn log_files(&self, units: &BTreeMap<&UnitName, &Decoded>, found: &mut Vec<Diagnostic>) {
        let mut writers: BTreeMap<PathBuf, (InstanceId, Option<&Spot>)> = BTreeMap::new();
        for spec in self.other_specs.iter().filter(|spec| !units.contains_key(&spec.name)) {
            for (id, path) in log_paths(spec) {
                writers.entry(path).or_insert((id, None));
            }
        }
        for unit in units.values() {
            let (Some(spec), Some(spot)) = (&unit.spec, unit.log_spot.as_deref()) else { continue };
            for (id, path) in log_paths(spec) {
                let Some((first, first_spot)) = writers.get(&path) else {
                    writers.insert(path, (id, Some(spot)));
                    continue;
                };
                let path = quoted(&path.to_string_lossy());
                let message = format!("`{first}` and `{id}` would both write {path}");
                let mut clash = Diagnostic::error(spot.clone(), &message);
                if first.unit == id.unit {
                    clash.help("put `${instance}` into the path");
                } else if let Some(first_spot) = first_spot {
                    clash.related((*first_spot).clone(), "written here too");
                }
                found.push(clash);
                break;
            }
        }
    }
}

/// A reference to the unit that holds it.
fn to_itself(name: &UnitName, reference: &Reference) -> Diagnostic {
    let message = match reference.tie {
        Tie::After | Tie::Before => format!("`{name}` waits for itself"),
        Tie::Conflict => format!("`{name}` conflicts with itself"),
        Tie::Start => format!("`{name}` starts itself"),
    };
    let mut diagnostic = Diagnostic::error(reference.spot.clone(), &message);
    diagnostic.help(format!("take it out of `{}`", reference.key));
    diagnostic
}

/// The first unit of each name.
pub(super) fn by_name(units: &[Arc<Decoded>]) -> BTreeMap<&UnitName, &Decoded> {
    // Of several with one name the last that comes is taken.
    units.iter().rev().filter_map(|unit| Some((unit.name.as_ref()?, &**unit))).gather()
}

/// A spec that says only how the unit is ordered; so a unit with mistakes has one too. Nothing of one
/// that names no other.
fn order_of(unit: &Decoded) -> Option<Spec> {
    let is_order = |reference: &Reference| matches!(reference.tie, Tie::After | Tie::Before);
    let name = unit.name.as_ref().filter(|_| unit.references.iter().any(is_order))?;
    let mut spec = Spec::new(Kind::Service, name.clone());
    for reference in unit.references.iter().filter(|reference| reference.to != *name) {
        let dependency = Dependency { unit: reference.to.clone(), condition: Condition::Ready };
        match reference.tie {
            Tie::After => spec.relations.after.push(dependency),
            Tie::Before => spec.relations.before.push(dependency),
            Tie::Conflict | Tie::Start => {}
        }
    }
    Some(spec)
}

/// Tells a loop with the place of each of its edges; nothing for one of other sources alone.
fn loop_of(names: &[UnitName], units: &BTreeMap<&UnitName, &Decoded>) -> Option<Diagnostic> {
    let next = names.iter().cycle().skip(1);
    let mut places = names.iter().zip(next).filter_map(|(from, to)| {
        let after = |reference: &&Reference| reference.tie == Tie::After && reference.to == *to;
        let before = |reference: &&Reference| reference.tie == Tie::Before && reference.to == *from;
        let own = units.get(from).and_then(|unit| unit.references.iter().find(after));
        let theirs = || units.get(to).and_then(|unit| unit.references.iter().find(before));
        let reference = own.or_else(theirs)?;
        Some((format!("`{from}` waits for `{to}`"), reference.spot.clone()))
    });
    let (text, spot) = places.next()?;
    let mut path: Vec<String> =
        names.iter().take(LOOP_NAMES_MAX).map(|name| format!("`{name}`")).collect();
    let left = names.len().saturating_sub(path.len());
    path.extend((left > 0).then(|| format!("{left} more")));
    path.extend(path.first().cloned());
    let mut diagnostic =
        Diagnostic::error(spot, &format!("dependency loop: {}", path.join(" -> ")));
    diagnostic.label(text).help("a loop can never start: take one of these out");
    for (text, spot) in places.take(LOOP_PLACES_MAX) {
        diagnostic.related(spot, text);
    }
    Some(diagnostic)
}

/// The files that the instances of a unit write, where the unit names one.
fn log_paths(spec: &Spec) -> Vec<(InstanceId, PathBuf)> {
    let LogTarget::Path(template) = &spec.logs.to else { return Vec::new() };
    let Some(process) = spec.process.as_ref().filter(|_| spec.needs_keeper()) else {
        return Vec::new();
    };
    let base = process.base_dir.as_path();
    let ids = spec.instance_ids();
    ids.into_iter().map(|id| (id.clone(), log_path(template, base, spec, &id))).gather()
}

/// The file of one instance. What the environment brings is the same for all, so its name stands
/// for it.
fn log_path(template: &Template, base: &Path, spec: &Spec, id: &InstanceId) -> PathBuf {
    let index = spec.index_of(id).to_string();
    let filled = template.fill(&|variable| match variable {
        Variable::Env { name, .. } => OsString::from(format!("${{env:{name}}}")),
        Variable::UnitName => OsString::from(id.unit.as_str()),
        Variable::UnitDir => base.as_os_str().to_owned(),
        Variable::Instance => OsString::from(id.label().unwrap_or("1")),
        Variable::InstanceIndex => OsString::from(&index),
    });
    let mut path = PathBuf::new();
    for part in base.join(filled).components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                path.pop();
            }
            Component::Prefix(_) | Component::RootDir | Component::Normal(_) => path.push(part),
        }
    }
    path
}
