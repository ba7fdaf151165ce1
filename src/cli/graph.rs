//! `graph`: how units hang together, of a daemon or of files alone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Value, json};

use super::args;
use super::draw::{self, How, Picture, Shown, Tie};
use super::{Error, Exit, Outcome, apply, output, world};
use crate::config;
use crate::model::{Gather, Graph, Instance, InstanceId, Phase, Unit, UnitName};
use crate::supervisor::State;

/// `opm graph`.
pub(super) fn graph(global: &args::Global, args: &args::Graph) -> Outcome {
    let (state, names, is_live) = look(global, &args.what)?;
    let mut picture = picture(&state, is_live);
    if !names.is_empty() {
        picture.keep(&around(&picture, names)?);
    }
    if global.json {
        output::json(&as_json(&picture))?;
    } else if args.dot {
        output::raw(draw::dot(&picture).as_bytes())?;
    } else if args.mermaid {
        output::raw(draw::mermaid(&picture).as_bytes())?;
    } else {
        output::raw(draw::text(&picture).as_bytes())?;
    }
    Ok(Exit::Done)
}

/// What is looked at, the units that were named, and whether it is a daemon's.
///
/// The first argument is a directory where it could be no unit's name, or has unit files.
fn look<'a>(
    global: &args::Global,
    what: &'a [String],
) -> Result<(State, &'a [String], bool), Error> {
    // Units on another machine are no files here.
    if let Some((first, names)) = what.split_first().filter(|_| global.host().is_none()) {
        let is_name = InstanceId::parse(first).is_ok();
        if !is_name {
            return Ok((world::of_files(Path::new(first))?, names, false));
        }
        match apply::source(Path::new(first)) {
            Ok(source) if source.files.is_empty() => {}
            Ok(source) => return Ok((world::of_source(&source)?, names, false)),
            Err(error) if Path::new(first).is_dir() => return Err(error),
            Err(_) => {}
        }
    }
    Ok((world::live(global)?, what, true))
}

fn picture(state: &State, is_live: bool) -> Picture {
    let graph = Graph::build(&state.desired);
    let mut picture = Picture::default();
    let mut missing: BTreeSet<UnitName> = BTreeSet::new();
    for (name, unit) in &state.desired.units {
        let Some(node) = graph.node(name) else { continue };
        picture.units.insert(name.clone(), shown(state, &graph, unit, is_live));
        for need in &node.needs {
            missing.insert(need.unit.clone());
            let how = How::from(need.strength);
            let tie = Tie { how, to: need.unit.clone(), condition: need.condition };
            picture.ties.entry(name.clone()).or_default().push(tie);
        }
        for other in &node.conflicts {
            missing.insert(other.clone());
            picture.conflicts.insert((name.clone().min(other.clone()), name.max(other).clone()));
        }
    }
    for ties in picture.ties.values_mut() {
        ties.sort_unstable_by(|a, b| (&a.to, a.condition, a.how).cmp(&(&b.to, b.condition, b.how)));
        ties.dedup_by(|a, b| a.to == b.to && a.condition == b.condition);
        ties.sort_unstable_by(|a, b| (a.how, &a.to).cmp(&(b.how, &b.to)));
    }
    for name in missing {
        picture.units.entry(name).or_insert_with(Shown::missing);
    }
    picture
}

fn shown(state: &State, graph: &Graph, unit: &Unit, is_live: bool) -> Shown {
    let name = &unit.spec.name;
    let mut ids: BTreeSet<InstanceId> = unit.spec.instance_ids().into_iter().gather();
    let known = state.instances.keys().filter(|id| id.unit == *name);
    ids.extend(known.cloned());
    let phase = |id: &InstanceId| {
        let phase = state.instances.get(id).map_or(&Phase::Down, |Instance { phase, .. }| phase);
        (id.clone(), phase.as_str())
    };
    Shown {
        kind: Some(unit.spec.kind),
        is_wanted: graph.is_wanted(name),
        is_enabled: unit.spec.enabled || unit.started,
        held_by: unit.hold.as_ref().map(|hold| hold.by.clone()),
        stage: graph.node(name).map_or(1, |node| node.depth.max(1)),
        instances: ids.len(),
        phases: if is_live { ids.iter().map(phase).gather() } else { BTreeMap::new() },
    }
}

/// The named units with all that they need and all that needs them, however far away.
fn around(picture: &Picture, names: &[String]) -> Result<BTreeSet<UnitName>, Error> {
    let mut down: BTreeMap<&UnitName, Vec<&UnitName>> = BTreeMap::new();
    let mut up: BTreeMap<&UnitName, Vec<&UnitName>> = BTreeMap::new();
    for (from, ties) in &picture.ties {
        for tie in ties {
            down.entry(from).or_default().push(&tie.to);
            up.entry(&tie.to).or_default().push(from);
        }
    }
    let mut kept = BTreeSet::new();
    for name in names {
        let id = InstanceId::parse(name).ok();
        let unit = id.and_then(|id| picture.units.get_key_value(&id.unit));
        let Some((unit, _)) = unit else {
            let known = picture.units.keys().map(UnitName::as_str);
            let near = config::nearest(name, known);
            let hint = near.map(|near| format!("; did you mean `{near}`?"));
            let message = format!("no unit `{name}`{}", hint.unwrap_or_default());
            return Err(Error::new(Exit::Refused, message));
        };
        for ties in [&down, &up] {
            let mut seen: BTreeSet<&UnitName> = BTreeSet::new();
            let mut open = vec![unit];
            while let Some(at) = open.pop() {
                if seen.insert(at) {
                    open.extend(ties.get(at).into_iter().flatten());
                }
            }
            kept.extend(seen.into_iter().cloned());
        }
    }
    Ok(kept)
}

fn as_json(picture: &Picture) -> Value {
    let units: Vec<Value> = picture
        .units
        .iter()
        .map(|(name, shown)| {
            json!({
                "unit": name, "kind": shown.kind, "stage": shown.stage, "wanted": shown.is_wanted,
                "enabled": shown.is_enabled, "held_by": shown.held_by, "phases": shown.phases,
            })
        })
        .collect();
    let needs = picture.ties.iter().flat_map(|(from, ties)| {
        let edge = move |tie: &Tie| {
            let condition = tie.condition.as_str();
            json!({ "from": from, "to": tie.to, "how": tie.how.as_str(), "condition": condition })
        };
        ties.iter().map(edge)
    });
    let conflicts = picture.conflicts.iter();
    let conflicts =
        conflicts.map(|(a, b)| json!({ "from": a, "to": b, "how": How::Conflicts.as_str() }));
    json!({ "units": units, "edges": needs.chain(conflicts).collect::<Vec<Value>>() })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::config::{self, SourceFile};
    use crate::model::FilePath;

    /// The units of a file of several documents.
    pub(in crate::cli) fn state_of(text: &str) -> State {
        let path = FilePath::from("/units/all.yaml");
        let files = [SourceFile { path, text: text.as_bytes().to_vec() }];
        let loaded = config::load(&files, &BTreeMap::new(), &[]);
        let drawn = config::render(&loaded.diagnostics, &files, false);
        assert!(loaded.diagnostics.is_empty(), "{drawn}");
        State::of_specs(loaded.specs, "/units")
    }

    pub(in crate::cli) fn picture_of(text: &str) -> Picture {
        picture(&state_of(text), false)
    }

    /// A picture of a daemon in which these instances are in these phases, all others down.
    pub(in crate::cli) fn live_picture(text: &str, phases: &[(&str, Phase)]) -> Picture {
        let mut state = state_of(text);
        for (id, phase) in phases {
            let instance = Instance { phase: phase.clone(), ..Instance::default() };
            state.instances.insert(InstanceId::parse(id).unwrap(), instance);
        }
        picture(&state, true)
    }

    const SLEEP: &str = "command: [sleep, '9']\n";

    #[test]
    fn only_what_a_unit_needs_and_what_needs_it() {
        let text = format!(
            "name: a\n{SLEEP}---\nname: b\n{SLEEP}requires: [a]\n---\nname: c\n{SLEEP}wants: [b]\n\
             ---\nname: d\n{SLEEP}requires: [a]\n---\nname: e\n{SLEEP}"
        );
        let picture = picture_of(&text);
        for (names, kept) in [
            (&["b"][..], "a b c"),
            (&["a"], "a b c d"),
            (&["e"], "e"),
            (&["e", "d"], "a d e"),
            (&["c"], "a b c"),
        ] {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let found = around(&picture, &names).unwrap();
            let found: Vec<&str> = found.iter().map(UnitName::as_str).collect();
            assert_eq!(found.join(" "), kept, "{names:?}");
        }
        let error = around(&picture, &["aa".to_owned()]).unwrap_err();
        assert_eq!(error.message, "no unit `aa`; did you mean `a`?");
    }

    #[test]
    fn an_edge_that_is_declared_twice_is_drawn_once_by_its_strongest_word() {
        let text = format!(
            "name: a\n{SLEEP}before: [b]\n---\nname: b\n{SLEEP}requires: [a]\nconflicts: [c]\n\
             ---\nname: c\n{SLEEP}conflicts: [b]\nenabled: false\n"
        );
        let json = as_json(&picture_of(&text));
        let edges = serde_json::to_string(&json["edges"]).unwrap();
        assert_eq!(
            edges,
            r#"[{"condition":"ready","from":"b","how":"requires","to":"a"},{"from":"b","how":"conflicts","to":"c"}]"#
        );
    }
}
