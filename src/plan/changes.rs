//! The difference of two desired states: what an operator reads before it happens.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;

use super::fields::{Fields, conceal, fields_of};
use super::{View, downtime, ripple};
use crate::model::{
    Agenda, Desired, Gather, Graph, Kind, Observed, Phase, Spec, Unit, UnitName, Wall,
};

/// What an apply will do.
#[derive(Debug, Clone, PartialEq, Serialize, Default)]
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
    /// How many of its instances restart at a time, where not all of them do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rolling: Option<u32>,
    /// How long it is down at most, where it restarts: for the steps of its stop, and for its start.
    /// Absent where that has no end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub down_ms: Option<u64>,
    /// The hold that keeps it down all the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held: Option<String>,
}

impl Change {
    /// One that is not the unit's own.
    pub(super) fn by(cause: &UnitName, unit: UnitName, effect: Effect) -> Self {
        let because = Some(cause.clone());
        Self { unit, effect, fields: Vec::new(), because, rolling: None, down_ms: None, held: None }
    }
}

/// What happens to a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Effect {
    /// It goes away.
    Remove,
    /// It is known and not to be up any more.
    Stop,
    /// It restarts.
    Restart,
    /// It changes without a restart.
    Live,
    /// It was known and did not run, and is to run now.
    Start,
    /// It is new.
    Create,
}

impl Effect {
    /// The mark before its line in a plan.
    pub fn sign(self) -> &'static str {
        match self {
            Self::Remove | Self::Stop => "-",
            Self::Restart => "±",
            Self::Live => "~",
            Self::Create | Self::Start => "+",
        }
    }

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Remove => "remove",
            Self::Stop => "stop",
            Self::Restart => "restart",
            Self::Live => "change live",
            Self::Create => "create",
            Self::Start => "start",
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
    // Nothing else says what is wanted: what was wanted is, and no key differs.
    if old.units == new.units {
        return Plan::default();
    }
    let (was, graph) = (Graph::build(old), Graph::build(new));
    let wanted = |name: &UnitName| (was.is_wanted(name), graph.is_wanted(name));
    let names: BTreeSet<&UnitName> = old.units.keys().chain(new.units.keys()).gather();
    let mut changes: Vec<Change> = names
        .into_iter()
        .filter_map(|name| change(old, new, observed, name, wanted(name)))
        .collect();
    let agenda = Agenda::default();
    let (wall, shutdown) = (Wall::default(), None);
    let view = View { desired: new, graph: &graph, observed, shutdown, agenda: &agenda, wall };
    ripple::mark_lost(&mut changes, &view);
    ripple::add_dependents(&mut changes, new, &graph, observed);
    ripple::add_waiting(&mut changes, &was, &view);
    for change in &mut changes {
        // Where all instances are new, none of them was there to have a turn.
        let specs = [old, new].map(|of| of.units.get(&change.unit).map(|unit| &unit.spec));
        let is_all_new = matches!(specs, [Some(old), Some(new)] if new.has_only_new_instances(old));
        // What another unit takes along goes as a whole.
        let is_own = change.because.is_none();
        change.rolling = ripple::rolling(change, new).filter(|_| !is_all_new && is_own);
    }
    downtime::measure(&mut changes, old, new, &graph);
    changes.sort_by_key(|change| {
        let depth = graph.node(&change.unit).map_or(1, |node| node.depth);
        // What goes down does so dependents first, what comes up does so the other way round.
        let stage = match change.effect {
            Effect::Remove | Effect::Stop => u32::MAX.saturating_sub(depth),
            Effect::Restart | Effect::Live | Effect::Start | Effect::Create => depth,
        };
        (
            matches!(change.effect, Effect::Create | Effect::Start),
            !matches!(change.effect, Effect::Remove | Effect::Stop),
            stage,
            change.unit.clone(),
        )
    });
    Plan { changes }
}

/// What happens to a unit, which was wanted up and is wanted up, or not.
fn change(
    old: &Desired,
    new: &Desired,
    observed: &Observed,
    name: &UnitName,
    wanted: (bool, bool),
) -> Option<Change> {
    let before = old.units.get(name).filter(|unit| !unit.removed);
    let after = new.units.get(name).filter(|unit| !unit.removed);
    let held = after.and_then(|unit| unit.hold.as_ref()).map(|hold| hold.by.clone());
    let (effect, fields) = match (before, after) {
        (None, None) => return None,
        (None, Some(_)) => (Effect::Create, Vec::new()),
        (Some(_), None) => (Effect::Remove, Vec::new()),
        (Some(before), Some(after)) => {
            let is_same = Arc::ptr_eq(&before.spec, &after.spec);
            let moves = !is_same
                && (after.spec.has_only_new_instances(&before.spec)
                    || !after.spec.renumbered(&before.spec).is_empty());
            let mut fields =
                if is_same { Vec::new() } else { fields_that_differ(&before.spec, &after.spec) };
            let runs = observed.of_unit(name).any(|(_, instance)| instance.run.is_some());
            let is_task = before.spec.kind == Kind::Task && after.spec.kind == Kind::Task;
            let restarts = (before.hash != after.hash || moves) && !is_task;
            let is_moved = |field: &&mut FieldChange| moves && !is_task && field.key == "instances";
            for field in fields.iter_mut().filter(is_moved) {
                field.class = Class::Restart;
            }
            // A unit may come or go without a change of its own, as with those that want it.
            match wanted {
                (true, false) if runs => (Effect::Stop, fields),
                (false, true) if !runs => (Effect::Start, fields),
                _ if fields.is_empty() => return None,
                (_, true) if !runs && begins_anew(after, observed) => (Effect::Start, fields),
                _ if restarts && runs => (Effect::Restart, fields),
                _ => (Effect::Live, fields),
            }
        }
    };
    Some(Change {
        unit: name.clone(),
        effect,
        fields,
        because: None,
        rolling: None,
        down_ms: None,
        held,
    })
}

/// Whether an instance that has come to its end is to run again by this definition.
fn begins_anew(unit: &Unit, observed: &Observed) -> bool {
    let mut instances = observed.of_unit(&unit.spec.name);
    unit.spec.schedule.is_none()
        && instances.any(|(id, instance)| {
            let is_over = matches!(
                instance.phase,
                Phase::Done | Phase::Failed { .. } | Phase::Skipped { .. } | Phase::Backoff { .. }
            );
            let is_other = instance.hash != unit.hash || instance.epoch != unit.epoch_of(id);
            is_over && is_other && unit.spec.has_instance(id) && unit.hold_of(id).is_none()
        })
}

/// The keys in which two specs differ.
fn fields_that_differ(old: &Spec, new: &Spec) -> Vec<FieldChange> {
    if old == new {
        return Vec::new();
    }
    let moved = moved(old, new);
    let output = |spec: &Spec| spec.process.as_ref().map(|process| process.output);
    // Whether the log keeper reads the output is fixed at a start, and where it writes it is not.
    let is_rewired = output(old) != output(new);
    let (old, new) = (fields_of(old), fields_of(new));
    let keys: BTreeSet<&String> = old.keys().chain(new.keys()).gather();
    let keys = keys.into_iter();
    let changed = keys
        .filter(|key| {
            old.get(*key).map(|(value, _)| value) != new.get(*key).map(|(value, _)| value)
        })
        .map(|key| {
            let class = match old.get(key).or_else(|| new.get(key)) {
                _ if is_rewired && key.starts_with("logs.to") => Class::Restart,
                found => found.map_or(Class::Live, |(_, class)| *class),
            };
            let shown =
                |fields: &Fields| fields.get(key).map(|(value, _)| conceal(key, value.clone()));
            FieldChange { key: key.clone(), old: shown(&old), new: shown(&new), class }
        });
    changed.chain(moved).collect()
}

/// The directory of a unit's file, where it is another one: no key of the file, but relative paths
/// start there.
fn moved(old: &Spec, new: &Spec) -> Option<FieldChange> {
    let (before, after) = (old.base_dir()?, new.base_dir()?);
    let class = if new.process.is_some() { Class::Restart } else { Class::Live };
    let shown = |dir: &Path| Some(Value::from(dir.to_string_lossy()));
    (before != after).then(|| FieldChange {
        key: "unit.dir".to_owned(),
        old: shown(before),
        new: shown(after),
        class,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        Command, Condition, Dependency, FilePath, Happening, Hold, InstanceId, Monotonic,
        ProcessSpec, RunId, Span, SpecHash, Template, Unit, Wall,
    };

    fn name(text: &str) -> UnitName {
        UnitName::parse(text).unwrap()
    }

    fn spec(kind: Kind, unit: &str, requires: &[&str]) -> Spec {
        let mut spec = Spec::new(kind, name(unit));
        let command = Command::Argv(vec![Template::literal("true")]);
        spec.process = Some(ProcessSpec::new(command, FilePath::from("/")));
        let needs = requires.iter();
        spec.relations.requires = needs
            .map(|unit| Dependency { unit: name(unit), condition: Condition::Ready })
            .collect();
        spec
    }

    fn desired(specs: Vec<Spec>) -> Desired {
        let units = specs
            .into_iter()
            .map(|spec| (spec.name.clone(), Unit::new(Arc::new(spec), "-".to_owned())));
        Desired { generation: 1, units: units.collect(), ..Desired::default() }
    }

    fn running(units: &[&str]) -> Observed {
        let mut observed = Observed::default();
        for unit in units {
            let (run, hash, wall) = (RunId(1), SpecHash(0), Wall(0));
            let what = Happening::Began { run, epoch: 0, hash, wall, fresh: true, due: None };
            let instance = InstanceId::single(&name(unit));
            observed.apply(&crate::model::Event { instance, at: Monotonic::default(), what });
        }
        observed
    }

    fn env(spec: &mut Spec, key: &str, value: &str) {
        if let Some(process) = &mut spec.process {
            process.env.insert(key.to_owned(), Template::literal(value));
        }
    }

    /// A plan as text: sign, unit, and the unit because of which.
    fn lines(plan: &Plan) -> Vec<String> {
        let because = |change: &Change| {
            change.because.as_ref().map_or_else(String::new, |unit| format!(" < {unit}"))
        };
        let changes = plan.changes.iter();
        changes.map(|c| format!("{} {}{}", c.effect.sign(), c.unit, because(c))).collect()
    }

    #[test]
    fn a_file_that_moved_is_a_change_that_is_shown() {
        let old = spec(Kind::Service, "a", &[]);
        let mut new = old.clone();
        let command = Command::Argv(vec![Template::literal("true")]);
        new.process = Some(ProcessSpec::new(command, FilePath::from("/moved")));
        let fields = fields_that_differ(&old, &new);
        assert_eq!(fields.len(), 1);
        assert_eq!((fields[0].key.as_str(), fields[0].class), ("unit.dir", Class::Restart));
        assert_eq!(fields[0].new, Some(Value::from("/moved")));
    }

    #[test]
    fn what_is_new_gone_and_changed_is_said_in_the_order_in_which_it_happens() {
        let old = desired(vec![
            spec(Kind::Service, "db", &[]),
            spec(Kind::Service, "app", &["db"]),
            spec(Kind::Service, "old-db", &[]),
            spec(Kind::Service, "old-web", &["old-db"]),
        ]);
        let mut db = spec(Kind::Service, "db", &[]);
        env(&mut db, "A", "1");
        let mut new = desired(vec![
            db,
            spec(Kind::Service, "app", &["db"]),
            spec(Kind::Service, "top", &["base"]),
            spec(Kind::Service, "base", &[]),
        ]);
        // What is removed is known until its last run is over.
        for unit in ["old-db", "old-web"] {
            let mut unit = old.units[&name(unit)].clone();
            unit.removed = true;
            new.units.insert(unit.spec.name.clone(), unit);
        }
        let plan = plan(&old, &new, &running(&["db", "app", "old-db", "old-web"]));
        assert_eq!(
            lines(&plan),
            ["- old-web", "- old-db", "± db", "± app < db", "+ base", "+ top"]
        );
        assert_eq!(plan.changes[2].fields[0].key, "env.A");
        assert!(plan.changes[3].fields.is_empty(), "it has no change of its own");
    }

    #[test]
    fn only_what_runs_and_is_fixed_at_a_start_costs_a_restart() {
        let old = desired(vec![spec(Kind::Service, "web", &[])]);
        let mut fixed = spec(Kind::Service, "web", &[]);
        env(&mut fixed, "A", "1");
        let mut live = spec(Kind::Service, "web", &[]);
        live.restart.factor = 3.0;
        let (fixed, live) = (desired(vec![fixed]), desired(vec![live]));
        assert_eq!(lines(&plan(&old, &fixed, &running(&["web"]))), ["± web"]);
        assert_eq!(lines(&plan(&old, &fixed, &running(&[]))), ["~ web"]);
        assert_eq!(lines(&plan(&old, &live, &running(&["web"]))), ["~ web"]);
        assert!(plan(&old, &old, &running(&["web"])).changes.is_empty());
    }

    #[test]
    fn a_task_in_progress_is_left_alone_but_not_a_service_that_becomes_one() {
        let service = desired(vec![spec(Kind::Service, "job", &[])]);
        let task = desired(vec![spec(Kind::Task, "job", &[])]);
        let mut changed = spec(Kind::Task, "job", &[]);
        env(&mut changed, "A", "1");
        let changed = desired(vec![changed]);
        assert_eq!(lines(&plan(&task, &changed, &running(&["job"]))), ["~ job"]);
        assert_eq!(lines(&plan(&service, &task, &running(&["job"]))), ["± job"]);
        assert_eq!(lines(&plan(&task, &service, &running(&["job"]))), ["± job"]);
    }

    #[test]
    fn dependents_follow_along_requires_as_far_as_they_run() {
        let wants = |unit: &str, wanted: &str| {
            let mut spec = spec(Kind::Service, unit, &[]);
            let need = Dependency { unit: name(wanted), condition: Condition::Ready };
            spec.relations.wants.push(need);
            spec
        };
        let all = |db: Spec| {
            desired(vec![
                db,
                spec(Kind::Service, "app", &["db"]),
                spec(Kind::Service, "web", &["app"]),
                spec(Kind::Service, "down", &["db"]),
                wants("loose", "db"),
            ])
        };
        let mut changed = spec(Kind::Service, "db", &[]);
        env(&mut changed, "A", "1");
        let (old, new) = (all(spec(Kind::Service, "db", &[])), all(changed));
        let plan = plan(&old, &new, &running(&["db", "app", "web", "loose"]));
        assert_eq!(lines(&plan), ["± db", "± app < db", "± web < app"]);
    }

    #[test]
    fn values_of_secret_names_are_never_shown() {
        let mut before = spec(Kind::Service, "web", &[]);
        let mut after = before.clone();
        for key in ["DB_PASSWORD", "api_token", "PLAIN"] {
            env(&mut before, key, "hunter1");
            env(&mut after, key, "hunter2");
        }
        env(&mut after, "AWS_SECRET", "hunter3");
        let plan = plan(&desired(vec![before]), &desired(vec![after]), &running(&["web"]));
        let fields = &plan.changes[0].fields;
        assert_eq!(fields.len(), 4, "that they changed is said");
        for field in fields {
            let text = serde_json::to_string(field).unwrap();
            assert_eq!(text.contains("hunter"), field.key == "env.PLAIN", "{text}");
        }
        let new = fields.iter().find(|field| field.key == "env.AWS_SECRET").unwrap();
        assert_eq!((&new.old, new.class), (&None, Class::Restart));
    }

    #[test]
    fn a_restart_says_how_long_it_may_take_and_nothing_else_does() {
        let old = desired(vec![spec(Kind::Service, "web", &[]), spec(Kind::Service, "gone", &[])]);
        let mut web = spec(Kind::Service, "web", &[]);
        env(&mut web, "A", "1");
        web.start_timeout = Span::seconds(5);
        let mut new = desired(vec![web, spec(Kind::Service, "new", &[])]);
        let down = |new: &Desired| -> Vec<Option<u64>> {
            plan(&old, new, &running(&["web"])).changes.iter().map(|c| c.down_ms).collect()
        };
        assert_eq!(down(&new), [None, Some(15_000), None], "ten seconds are the default stop");
        let unit = new.units.get_mut(&name("web")).unwrap();
        Arc::make_mut(&mut unit.spec).start_timeout = Span::FOREVER;
        assert_eq!(down(&new), [None, None, None]);
    }

    #[test]
    fn a_hold_that_keeps_a_changed_unit_down_is_named() {
        let old = desired(vec![spec(Kind::Service, "web", &[])]);
        let mut new = old.clone();
        let unit = new.units.get_mut(&name("web")).unwrap();
        Arc::make_mut(&mut unit.spec).restart.factor = 3.0;
        let by = "me".to_owned();
        let hold = Hold { by, reason: String::new(), at: Wall(0), until: None, until_boot: false };
        unit.hold = Some(Box::new(hold));
        assert_eq!(plan(&old, &new, &running(&[])).changes[0].held.as_deref(), Some("me"));
    }
}
