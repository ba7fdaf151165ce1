//! What is fixed when a run starts: the program, its environment, its user, its limits.

use std::collections::BTreeMap;

use super::Decoder;
use super::fields::Fields;
use super::value::parse_size;
use crate::config::diagnostic::quoted;
use crate::config::source::At;
use crate::config::yaml::{Node, Value};
use crate::model::{
    Command, EnvFile, FilePath, InheritEnv, Limit, ProcessSpec, Ready, Resource, Stdin, Template,
};

/// Highest user or group number; the kernel takes the next one for "no change".
const ACCOUNT_MAX: u64 = 0xffff_fffe;

impl Decoder<'_, '_> {
    /// The process of a service or task; nothing where there is no command.
    pub(super) fn process(
        &mut self,
        unit: &Node,
        fields: &Fields<'_>,
        base: &FilePath,
    ) -> Option<ProcessSpec> {
        let command = self.main_command(unit, fields);
        // Without a command the rest is still looked through for mistakes.
        let stand_in = || Command::Argv(vec![Template::literal("")]);
        let mut process = ProcessSpec::new(command.clone().unwrap_or_else(stand_in), base.clone());
        if let Some(node) = fields.get("working_dir") {
            process.working_dir = self.path("working_dir", node).map(Box::new);
        }
        if let Some(node) = fields.get("env") {
            process.env = self.env(node).into();
        }
        if let Some(node) = fields.get("env_files") {
            process.env_files = self.env_files(node).into();
        }
        if let Some(node) = fields.get("inherit_env") {
            process.inherit_env = self.inherit_env(node).into();
        }
        if let Some(node) = fields.get("stdin") {
            process.stdin = self.stdin(node).into();
        }
        process.user = fields.get("user").and_then(|node| self.account("user", node));
        process.group = fields.get("group").and_then(|node| self.account("group", node));
        if let Some(node) = fields.get("supplementary_groups") {
            let items = self.list("supplementary_groups", node).unwrap_or_default();
            let groups = items.iter().filter_map(|n| self.account("supplementary_groups", n));
            process.supplementary_groups = groups.collect::<Vec<_>>().into();
        }
        process.umask = fields.get("umask").and_then(|node| self.octal("umask", "022", node));
        if let Some(node) = fields.get("limits") {
            process.limits = self.limits(node).into();
        }
        let whole = |number: i64| i32::try_from(number).ok();
        if let Some(node) = fields.get("nice") {
            process.nice = self.number("nice", node, -20, 19).and_then(whole);
        }
        if let Some(node) = fields.get("oom_score_adjust") {
            let score = self.number("oom_score_adjust", node, -1000, 1000);
            process.oom_score_adjust = score.and_then(whole);
        }
        if let Some(node) = fields.get("ready") {
            process.ready = self.ready(node).unwrap_or(Ready::Started).into();
        }
        process.watchdog = fields.get("watchdog").and_then(|node| self.watchdog(node));
        let pid_file = fields.get("pid_file").and_then(|node| self.path("pid_file", node));
        process.pid_file = pid_file.map(Box::new);
        command.map(|_| process)
    }

    /// `command` or `shell`: one of them.
    fn main_command(&mut self, unit: &Node, fields: &Fields<'_>) -> Option<Command> {
        match (fields.get("command"), fields.get("shell")) {
            (Some(command), None) => self.command("command", command),
            (None, Some(shell)) => self.shell(shell),
            (Some(_), Some(shell)) => {
                let message = "`command` and `shell` exclude each other";
                self.sink.error(shell.at, message).help("`shell` is run by /bin/sh -c");
                None
            }
            (None, None) => {
                if !self.is_command_excused {
                    let kind = self.kind.as_str();
                    let message = format!("a {kind} needs `command` or `shell`");
                    self.sink.error(At::new(unit.at.start, 0), message);
                }
                None
            }
        }
    }

    fn env(&mut self, node: &Node) -> BTreeMap<String, Template> {
        let Value::Map(entries) = &node.value else {
            self.wrong("env", "a map", node);
            return BTreeMap::new();
        };
        let mut env = BTreeMap::new();
        for entry in entries {
            if !self.is_variable("env", &entry.key, entry.key_at) {
                continue;
            }
            let key = format!("env.{}", crate::config::diagnostic::printable(&entry.key));
            if entry.value.value == Value::Null {
                // The place of nothing is behind the colon; the key is what people look for.
                self.sink
                    .error(entry.key_at, format!("`{key}` has no value"))
                    .help("write `\"\"` for an empty one, `\"null\"` or `\"~\"` for that text");
            } else if let Some(value) = self.template(&key, &entry.value) {
                env.insert(entry.key.clone(), value);
            }
        }
        env
    }

    fn env_files(&mut self, node: &Node) -> Vec<EnvFile> {
        let mut files = Vec::new();
        for item in self.list("env_files", node).unwrap_or_default() {
            let (path, optional) = match &item.value {
                Value::Map(_) => {
                    let errors = self.sink.errors();
                    let Some(fields) = self.fields("env_files", item) else { continue };
                    if fields.get("path").is_none() && errors == self.sink.errors() {
                        self.sink.error(item.at, "`env_files`: a file without a `path`");
                    }
                    let path = fields.get("path").and_then(|n| self.path("env_files.path", n));
                    let optional =
                        fields.get("optional").and_then(|n| self.boolean("env_files.optional", n));
                    (path, optional.unwrap_or(false))
                }
                Value::Null | Value::Text(_) | Value::List(_) => {
                    (self.path("env_files", item), false)
                }
            };
            files.extend(path.map(|path| EnvFile { path, optional }));
        }
        files
    }

    fn inherit_env(&mut self, node: &Node) -> InheritEnv {
        match &node.value {
            Value::List(_) => InheritEnv::Only(self.variables("inherit_env", node)),
            Value::Null | Value::Text(_) | Value::Map(_) => {
                match self.boolean("inherit_env", node) {
                    Some(false) => InheritEnv::Only(Vec::new()),
                    Some(true) | None => InheritEnv::All,
                }
            }
        }
    }

    fn stdin(&mut self, node: &Node) -> Stdin {
        match &node.value {
            Value::Null => Stdin::Null,
            Value::Text(_) => self
                .choice("stdin", node, &[("null", Stdin::Null), ("logs", Stdin::Logs)], &["tty"])
                .unwrap_or(Stdin::Null),
            Value::List(_) => {
                self.wrong("stdin", "`null`, `logs` or `{file: path}`", node);
                Stdin::Null
            }
            Value::Map(_) => {
                let file = self.only("stdin", node);
                let path = file.and_then(|(_, node)| self.path("stdin.file", node));
                path.map_or(Stdin::Null, Stdin::File)
            }
        }
    }

    /// A user or group, by name or number.
    pub(super) fn account(&mut self, key: &str, node: &Node) -> Option<String> {
        let text = self.scalar(key, "a name or a number", node)?;
        if text.bytes().all(|byte| byte.is_ascii_digit()) && !text.is_empty() {
            if text.len() > 1 && text.starts_with('0') {
                self.ambiguous(key, node, text);
                return None;
            }
            if text.parse::<u64>().ok().is_none_or(|number| number > ACCOUNT_MAX) {
                self.wrong(key, &format!("a number up to {ACCOUNT_MAX}"), node);
                return None;
            }
            return Some(text.to_owned());
        }
        let is_bad = |c: char| c.is_whitespace() || c.is_control() || ":/,{}".contains(c);
        if text.is_empty() || text.starts_with('-') || text.contains(is_bad) {
            self.wrong(key, "a name or a number", node);
            return None;
        }
        Some(text.to_owned())
    }

    /// Octal digits, quoted or not.
    pub(super) fn octal(&mut self, key: &str, example: &str, node: &Node) -> Option<u32> {
        let text = self.scalar(key, "octal digits", node)?;
        let digits = text.strip_prefix("0o").unwrap_or(text);
        let is_octal = !digits.is_empty() && digits.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
        let mask = u32::from_str_radix(digits, 8).ok().filter(|mask| is_octal && *mask <= 0o777);
        if mask.is_none() {
            self.sink
                .error(node.at, format!("`{key}` must be octal digits, not {}", quoted(text)))
                .help(format!("write it as `{example}` or `0077`, at most `0777`"));
        }
        mask
    }

    fn limits(&mut self, node: &Node) -> BTreeMap<Resource, Limit> {
        let mut limits = BTreeMap::new();
        let fields = self.fields("limits", node);
        for (key, entry) in fields.iter().flat_map(|fields| &fields.known) {
            let resource = Resource::ALL.iter().find(|(name, _)| *name == key.name());
            let limit = self.limit(key.path, key.types == "size", &entry.value);
            if let (Some((_, resource)), Some(limit)) = (resource, limit) {
                limits.insert(*resource, limit);
            }
        }
        limits
    }

    /// `N`, `SOFT:HARD`, or `unlimited` for either.
    fn limit(&mut self, key: &str, is_size: bool, node: &Node) -> Option<Limit> {
        let what = if is_size { "a size" } else { "a number" };
        let expected = format!("{what}, `soft:hard`, or `unlimited`");
        let text = self.scalar(key, &expected, node)?;
        let one = |text: &str| match text.trim() {
            "unlimited" => Some(None),
            text if is_size => parse_size(text).map(Some),
            text if text.len() > 1 && text.starts_with('0') => None,
            text if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().ok().map(Some),
            _ => None,
        };
        let (soft, hard) = text.split_once(':').unwrap_or((text, text));
        let (Some(soft), Some(hard)) = (one(soft), one(hard)) else {
            self.wrong(key, &expected, node);
            return None;
        };
        if hard.is_some_and(|hard| soft.is_none_or(|soft| soft > hard)) {
            self.sink.error(node.at, format!("`{key}`: the soft limit is above the hard one"));
            return None;
        }
        Some(Limit { soft, hard })
    }
}
