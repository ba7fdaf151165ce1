//! How a unit hangs together with others, what must hold for it to start, and how many run.

use std::collections::BTreeSet;

use super::fields::Fields;
use super::{Decoder, Tie};
use crate::config::diagnostic::quoted;
use crate::config::yaml::{Node, Value};
use crate::model::{
    Condition, Conditions, Dependency, INSTANCES_MAX, Instances, OnDependencyRestart, Relations,
    UnitName,
};

impl Decoder<'_, '_> {
    /// All that orders or binds the unit.
    pub(super) fn relations(&mut self, fields: &Fields<'_>, relations: &mut Relations) {
        relations.requires = self.dependencies("requires", Tie::After, fields);
        relations.wants = self.dependencies("wants", Tie::After, fields);
        relations.after = self.dependencies("after", Tie::After, fields);
        relations.before = self.dependencies("before", Tie::Before, fields);
        if let Some(node) = fields.get("conflicts") {
            for item in self.list("conflicts", node).unwrap_or_default() {
                if let Some(unit) = self.unit_name("conflicts", item) {
                    self.refer(Tie::Conflict, "conflicts", &unit, item.at);
                    relations.conflicts.push(unit);
                }
            }
        }
        if let Some(node) = fields.get("on_dependency_restart") {
            let words = [
                ("ignore", OnDependencyRestart::Ignore),
                ("restart", OnDependencyRestart::Restart),
                ("reload", OnDependencyRestart::Reload),
            ];
            let choice = self.choice("on_dependency_restart", node, &words, &[]);
            relations.on_dependency_restart = choice.unwrap_or_default();
            let is_reload = relations.on_dependency_restart == OnDependencyRestart::Reload;
            if is_reload && fields.get("reload").is_none() {
                self.sink
                    .error(node.at, "`on_dependency_restart: reload` needs `reload`")
                    .help("say how it reloads: `reload: {signal: HUP}`");
            }
        }
    }

    fn dependencies(
        &mut self,
        key: &'static str,
        tie: Tie,
        fields: &Fields<'_>,
    ) -> Vec<Dependency> {
        let Some(node) = fields.get(key) else { return Vec::new() };
        let items = self.list(key, node).unwrap_or_default();
        let mut found: Vec<Dependency> = Vec::new();
        let mut names: BTreeSet<UnitName> = BTreeSet::new();
        for item in items {
            let Some((dependency, place)) = self.dependency(key, item) else { continue };
            if !names.insert(dependency.unit.clone()) {
                let message = format!("`{key}` names `{}` twice", dependency.unit);
                self.sink.error(place.at, message);
                continue;
            }
            self.refer(tie, key, &dependency.unit, place.at);
            found.push(dependency);
        }
        found
    }

    /// A name, or a map with a name and a condition; with the node that holds the name.
    fn dependency<'n>(
        &mut self,
        key: &'static str,
        node: &'n Node,
    ) -> Option<(Dependency, &'n Node)> {
        match &node.value {
            Value::Map(_) => {}
            Value::Null | Value::Text(_) | Value::List(_) => {
                let unit = self.unit_name(key, node)?;
                return Some((Dependency { unit, condition: Condition::Ready }, node));
            }
        }
        let errors = self.sink.errors();
        let fields = self.fields(key, node)?;
        let condition = fields.get("condition").and_then(|node| {
            let words = [Condition::Started, Condition::Ready, Condition::Completed];
            let words = words.map(|condition| (condition.as_str(), condition));
            self.choice(&format!("{key}.condition"), node, &words, &[])
        });
        let Some(place) = fields.get("unit") else {
            if self.sink.errors() == errors {
                self.sink.error(node.at, format!("`{key}`: a dependency without a `unit`"));
            }
            return None;
        };
        let unit = self.unit_name(&format!("{key}.unit"), place)?;
        Some((Dependency { unit, condition: condition.unwrap_or(Condition::Ready) }, place))
    }

    /// What must hold for it to start.
    pub(super) fn conditions(&mut self, node: &Node) -> Conditions {
        let mut conditions = Conditions::default();
        let Some(fields) = self.fields("conditions", node) else { return conditions };
        if let Some(node) = fields.get("path_exists") {
            let key = "conditions.path_exists";
            let items = self.list(key, node).unwrap_or_default();
            conditions.path_exists = items.iter().filter_map(|item| self.path(key, item)).collect();
        }
        if let Some(node) = fields.get("env") {
            conditions.env = self.variables("conditions.env", node);
        }
        if let Some(node) = fields.get("command") {
            conditions.command = self.command("conditions.command", node);
        }
        conditions
    }

    /// How many, or one for each name.
    pub(super) fn instances(&mut self, node: &Node) -> Option<Instances> {
        let key = "instances";
        let Value::List(items) = &node.value else {
            let errors = self.sink.errors();
            let count = self.number(key, node, 1, i64::from(INSTANCES_MAX));
            if self.sink.errors() > errors {
                let is_none = matches!(&node.value, Value::Text(text) if text == "0");
                let help = if is_none {
                    "for none write `enabled: false`"
                } else {
                    "write a number, or a list of names: `[eu, us]`"
                };
                self.sink.help_last(help);
            }
            return count.and_then(|count| u32::try_from(count).ok()).map(Instances::Count);
        };
        if items.is_empty() {
            self.sink
                .error(node.at, "`instances` names none")
                .help("for none write `enabled: false`");
            return None;
        }
        if items.len() > usize::try_from(INSTANCES_MAX).unwrap_or(usize::MAX) {
            let message = format!("`instances` names {}, at most {INSTANCES_MAX}", items.len());
            self.sink.error(node.at, message);
            return None;
        }
        let names: Vec<(UnitName, &Node)> = items
            .iter()
            .filter_map(|item| self.unit_name(key, item).map(|name| (name, item)))
            .collect();
        self.distinct(key, names.iter().map(|(name, item)| (name.as_str(), item.at)));
        Some(Instances::Names(names.into_iter().map(|(name, _)| name).collect()))
    }

    /// The one unit of `{start: unit}`.
    pub(super) fn start_of(&mut self, key: &'static str, node: &Node) -> Option<UnitName> {
        let (inner, value) = self.only(key, node)?;
        let unit = self.unit_name(inner.path, value)?;
        if unit.as_str() == self.unit {
            let message = format!("`{}` starts {} itself", inner.path, quoted(&self.unit));
            self.sink.error(value.at, message).help("`restart` is how a unit starts again");
            return None;
        }
        self.refer(Tie::Start, inner.path, &unit, value.at);
        Some(unit)
    }
}
