//! One tree -> one spec, or every mistake in it.
//!
//! A field that is wrong is complained of once and then left at its default, so that nothing that
//! follows from it is complained of too. What only the whole set of units shows is in `check`.

mod command;
mod fields;
mod logs;
mod probe;
mod process;
mod relations;
mod restart;
mod schedule;
mod socket;
mod stop;
mod value;
mod watch;

pub use command::command_words;
pub use schedule::{Unread, due_times};
pub(super) use value::described;
pub use value::parse_size;

use std::sync::Arc;

use super::diagnostic::{Spot, quoted};
use super::source::{At, Sink};
use super::yaml::{Entry, Node, Tree, Value};
use crate::model::{FilePath, Hooks, Kind, Relations, Shared, Spec, UnitName};

/// How the names of opm's own units begin.
const OWN_PREFIX: &str = "_opm";
/// The file of opm's own messages, which is beside the units' directories in LOGDIR. What opm makes
/// elsewhere has a suffix behind the unit's name, or begins as no name does.
const OWN_FILE: &str = "opm.log";

/// A unit of a file, as far as it could be read.
#[derive(Debug)]
pub(super) struct Decoded {
    /// Its name, where it has one.
    pub name: Option<UnitName>,
    /// What it says; nothing where there is a mistake in it.
    pub spec: Option<Arc<Spec>>,
    /// Where its name is, or where it begins.
    pub spot: Spot,
    /// Where it names other units.
    pub references: Vec<Reference>,
    /// Where it says which file its log goes to.
    pub log_spot: Option<Box<Spot>>,
}

/// How a unit names another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tie {
    /// It is ordered after the other one.
    After,
    /// It is ordered before the other one.
    Before,
    /// It may not be up with the other one.
    Conflict,
    /// It starts the other one.
    Start,
}

/// A place where a unit names another one.
#[derive(Debug, Clone)]
pub(super) struct Reference {
    /// How.
    pub tie: Tie,
    /// The key that names it.
    pub key: &'static str,
    /// The other unit.
    pub to: UnitName,
    /// Where.
    pub spot: Spot,
}

/// What is read, and what is known of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading<'a> {
    /// The unit.
    pub tree: &'a Tree,
    /// The name of a unit that gives none; `None` where its file has several.
    pub stem: Option<&'a str>,
    /// The directory of its file.
    pub base: &'a FilePath,
    /// Whether something that may have been its command was complained of already.
    pub is_excused: bool,
    /// Whether parts of it may stand in other files.
    pub is_merged: bool,
}

impl<'a> Reading<'a> {
    /// A document that stands for itself.
    pub(super) fn plain(tree: &'a Tree, stem: Option<&'a str>, base: &'a FilePath) -> Self {
        Self { tree, stem, base, is_excused: false, is_merged: false }
    }
}

/// A key of a map, with its value.
pub(super) fn entry<'n>(node: &'n Node, key: &str) -> Option<&'n Entry> {
    match &node.value {
        Value::Map(entries) => entries.iter().find(|entry| entry.key == key),
        Value::Null | Value::Text(_) | Value::List(_) => None,
    }
}

/// Reads one unit.
pub(super) fn unit(reading: &Reading<'_>, sink: &mut Sink<'_>) -> Decoded {
    let Reading { tree, stem, base, is_excused, is_merged } = *reading;
    let node = &tree.root;
    let errors_before = sink.errors();
    let spot = sink.spot(At::new(node.at.start, 0));
    let mut reader = Decoder {
        sink,
        kind: Kind::Service,
        unit: String::new(),
        is_command_excused: is_excused || !tree.complete,
        dir: is_merged.then_some(base),
        references: Vec::new(),
        log_spot: None,
    };
    let mut decoded =
        Decoded { name: None, spec: None, spot, references: Vec::new(), log_spot: None };
    let Value::Map(_) = &node.value else {
        let message = format!("a unit is a map of keys, not {}", described(node));
        reader.sink.error(node.at, message).help("write it as `command: […]`, one key a line");
        return decoded;
    };
    reader.name(node, stem, &mut decoded);
    let spec = reader.kind(node).and_then(|kind| {
        reader.kind = kind;
        reader.spec(node, decoded.name.clone(), base)
    });
    // It is kept for as long as the file says the same.
    reader.references.shrink_to_fit();
    decoded.references = reader.references;
    decoded.log_spot = reader.log_spot.map(Box::new);
    decoded.spec = spec.filter(|_| tree.complete && sink.errors() == errors_before).map(Arc::new);
    decoded
}

/// Reads one unit.
struct Decoder<'s, 'a> {
    /// Where mistakes go.
    sink: &'s mut Sink<'a>,
    /// The unit's kind.
    kind: Kind,
    /// Its name, for messages.
    unit: String,
    /// Whether something that may have been its command was complained of already.
    is_command_excused: bool,
    /// The directory of its file, where parts of it may stand in others.
    dir: Option<&'s FilePath>,
    references: Vec<Reference>,
    log_spot: Option<Spot>,
}

impl Decoder<'_, '_> {
    /// The unit's name: given, or else its file's stem.
    fn name(&mut self, node: &Node, stem: Option<&str>, decoded: &mut Decoded) {
        let Value::Map(entries) = &node.value else { return };
        if let Some(entry) = entries.iter().find(|entry| entry.key == "name") {
            decoded.spot = self.sink.spot(entry.value.at);
            decoded.name = self.unit_name("name", &entry.value);
        } else if let Some(stem) = stem {
            decoded.name = UnitName::parse(stem).ok();
            if decoded.name.is_none() {
                let message = format!("the file's stem {} is no unit name", quoted(stem));
                self.sink.error(At::new(node.at.start, 0), message).help("give it a `name:`");
            }
        } else {
            self.sink
                .error(At::new(node.at.start, 0), "a unit without a name")
                .help("where a file has several documents, each needs a `name:`");
        }
        let is_own =
            |name: &UnitName| name.as_str().starts_with(OWN_PREFIX) || name.as_str() == OWN_FILE;
        if decoded.name.as_ref().is_some_and(is_own) {
            let given = entries.iter().find(|entry| entry.key == "name");
            let at = given.map_or(At::new(node.at.start, 0), |entry| entry.value.at);
            let message =
                format!("`{OWN_FILE}` and names that begin with `{OWN_PREFIX}` are opm's own");
            self.sink.error(at, message).help("give it another `name:`");
            decoded.name = None;
        }
        self.unit = decoded.name.as_ref().map(ToString::to_string).unwrap_or_default();
    }

    /// The unit's kind; nothing where the rest cannot be judged.
    fn kind(&mut self, node: &Node) -> Option<Kind> {
        let Value::Map(entries) = &node.value else { return None };
        let Some(entry) = entries.iter().find(|entry| entry.key == "kind") else {
            return Some(Kind::Service);
        };
        let kinds = Kind::ALL.map(|kind| (kind.as_str(), kind));
        self.choice("kind", &entry.value, &kinds, &[])
    }

    /// The unit itself, with what went wrong left at its default.
    fn spec(&mut self, node: &Node, name: Option<UnitName>, base: &FilePath) -> Option<Spec> {
        let fields = self.fields("", node)?;
        // Without a name the rest is still looked through for mistakes.
        let mut spec = Spec::new(self.kind, name.clone().or_else(|| UnitName::parse("_").ok())?);
        if let Some(node) = fields.get("description") {
            let text = self.text("description", node).unwrap_or_default();
            text.trim().clone_into(&mut spec.description);
            if spec.description.contains('\n') {
                self.sink.error(node.at, "`description` must be one line");
            }
        }
        if let Some(node) = fields.get("documentation") {
            spec.documentation = self.texts("documentation", node).into();
        }
        if let Some(enabled) = fields.get("enabled").and_then(|n| self.boolean("enabled", n)) {
            spec.enabled = enabled;
        }
        if let Some(node) = fields.get("labels") {
            spec.labels = self.labels(node).into();
        }
        if let Some(node) = fields.get("extends") {
            // What it names was copied before.
            self.unit_name("extends", node);
        }
        let mut relations = Relations::default();
        self.relations(&fields, &mut relations);
        spec.relations = relations.into();
        match self.kind {
            Kind::Target => return name.map(|_| spec),
            Kind::Socket => {
                spec.socket = self.socket(node, &fields, base).map(Box::new);
                return name.map(|_| spec);
            }
            Kind::Service | Kind::Task => {}
        }
        self.lasting(&fields, &mut spec);
        spec.process = self.process(node, &fields, base);
        self.logs(&fields, &mut spec);
        self.output_is_read(&fields, &spec);
        name.map(|_| spec)
    }

    /// What a change of is taken over at once.
    fn lasting(&mut self, fields: &fields::Fields<'_>, spec: &mut Spec) {
        if let Some(node) = fields.get("conditions") {
            spec.conditions = self.conditions(node).into();
        }
        if let Some(node) = fields.get("instances") {
            spec.instances = self.instances(node).map(Shared::from).unwrap_or_default();
        }
        if let Some(node) = fields.get("restart") {
            self.restart(node, &mut spec.restart);
        }
        if let Some(node) = fields.get("success_exit") {
            spec.success_exit = self.success_exit(node).into();
        }
        if let Some(node) = fields.get("on_success") {
            spec.on_success = self.end_action("on_success", node).into();
        }
        if let Some(node) = fields.get("on_failure") {
            spec.on_failure = self.end_action("on_failure", node).into();
        }
        if let Some(essential) = fields.get("essential").and_then(|n| self.boolean("essential", n))
        {
            spec.essential = essential;
        }
        if let Some(node) = fields.get("start_timeout") {
            spec.start_timeout = self.wait("start_timeout", node).unwrap_or(spec.start_timeout);
            if spec.start_timeout.as_nanos() == 0 {
                self.sink
                    .error(node.at, "`start_timeout` must be longer than nothing")
                    .help("`never` waits as long as it takes");
            }
        }
        if let Some(node) = fields.get("stop") {
            self.stop(node, &mut spec.stop);
        }
        if let Some(node) = fields.get("reload") {
            spec.reload = self.reload(node).map(Box::new);
        }
        if let Some(node) = fields.get("health") {
            spec.health = self.health(node).map(Box::new);
        }
        let watch = fields.get("watch").and_then(|node| self.watch(node, spec.reload.is_some()));
        spec.watch = watch.map(Box::new);
        spec.schedule = self.schedule(fields).map(Box::new);
        let hooks = Hooks {
            pre_start: self.hooks("pre_start", fields),
            post_start: self.hooks("post_start", fields),
            pre_stop: self.hooks("pre_stop", fields),
            post_stop: self.hooks("post_stop", fields),
        };
        spec.hooks = hooks.into();
    }

    /// Notes where the unit names another one.
    fn refer(&mut self, tie: Tie, key: &'static str, to: &UnitName, at: At) {
        let spot = self.sink.spot(at);
        self.references.push(Reference { tie, key, to: to.clone(), spot });
    }
}
