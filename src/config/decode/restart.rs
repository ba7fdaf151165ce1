//! When a unit is started again, and what follows when it has ended for good.

use super::Decoder;
use crate::config::diagnostic::quoted;
use crate::config::yaml::{Node, Value};
use crate::model::{
    AtLimit, EndAction, ExitMatch, Kind, Restart, RestartPolicy, Signal, StartLimit,
};

/// Largest `restart.factor`; more is a wrong number.
const FACTOR_MAX: f64 = 100.0;

impl Decoder<'_, '_> {
    /// A policy, or a map with all that can be said.
    pub(super) fn restart(&mut self, node: &Node, restart: &mut Restart) {
        if !matches!(node.value, Value::Map(_)) {
            let policy = self.policy("restart", node);
            restart.policy = policy.unwrap_or(restart.policy);
            return;
        }
        let Some(fields) = self.fields("restart", node) else { return };
        if let Some(node) = fields.get("policy") {
            let policy = self.policy("restart.policy", node);
            restart.policy = policy.unwrap_or(restart.policy);
        }
        if let Some(node) = fields.get("delay") {
            restart.delay = self.span("restart.delay", node).unwrap_or(restart.delay);
            // A longer first wait than the default's longest is meant, not a mistake.
            restart.max_delay = restart.max_delay.max(restart.delay);
        }
        if let Some(node) = fields.get("factor") {
            let factor = self.decimal("restart.factor", node, 1.0, FACTOR_MAX);
            restart.factor = factor.unwrap_or(restart.factor);
        }
        if let Some(node) = fields.get("max_delay") {
            restart.max_delay = self.span("restart.max_delay", node).unwrap_or(restart.max_delay);
            if restart.max_delay < restart.delay {
                let message = format!(
                    "`restart.max_delay` is {}, less than `restart.delay` of {}",
                    restart.max_delay, restart.delay
                );
                self.sink.error(node.at, message);
            }
        }
        if let Some(node) = fields.get("jitter") {
            let jitter = self.decimal("restart.jitter", node, 0.0, 1.0);
            restart.jitter = jitter.unwrap_or(restart.jitter);
        }
        if let Some(node) = fields.get("reset_after") {
            let reset = self.span("restart.reset_after", node);
            restart.reset_after = reset.unwrap_or(restart.reset_after);
        }
        if let Some(node) = fields.get("limit") {
            restart.limit = self.start_limit(node);
        }
        if let Some(node) = fields.get("at_limit") {
            restart.at_limit = self.at_limit(node);
            if fields.get("limit").is_none() {
                self.sink
                    .error(node.at, "`restart.at_limit` needs `restart.limit`")
                    .help("without one, starts are never too many");
            }
        }
    }

    fn policy(&mut self, key: &str, node: &Node) -> Option<RestartPolicy> {
        let words = [RestartPolicy::Always, RestartPolicy::OnFailure, RestartPolicy::Never];
        let words = words.map(|policy| (policy.as_str(), policy));
        let errors = self.sink.errors();
        let policy = self.choice(key, node, &words, &[]);
        if let (true, Value::Text(text)) = (self.sink.errors() > errors, &node.value) {
            match text.as_str() {
                "no" | "false" | "off" => self.sink.help_last("to leave it down write `never`"),
                "yes" | "true" | "on" | "unless-stopped" => {
                    self.sink
                        .help_last("write `always`; a unit that was stopped stays down anyway");
                }
                _ => {}
            }
        }
        if self.kind == Kind::Task && policy == Some(RestartPolicy::Always) {
            self.sink
                .error(node.at, "a task runs to completion, `restart: always` is for services")
                .help("write `kind: service`, or `restart: on-failure`");
            return None;
        }
        policy
    }

    fn start_limit(&mut self, node: &Node) -> Option<StartLimit> {
        let errors = self.sink.errors();
        let fields = self.fields("restart.limit", node)?;
        let (Some(starts), Some(within)) = (fields.get("starts"), fields.get("within")) else {
            if self.sink.errors() == errors {
                self.sink
                    .error(node.at, "`restart.limit` needs both `starts` and `within`")
                    .help("write it as `{starts: 5, within: 60s}`");
            }
            return None;
        };
        let most = i64::from(StartLimit::STARTS_MAX);
        let starts = self.number("restart.limit.starts", starts, 1, most);
        let span = self.span("restart.limit.within", within);
        if span.is_some_and(|span| span.as_nanos() == 0) {
            self.sink.error(within.at, "`restart.limit.within` must be longer than nothing");
        }
        Some(StartLimit { starts: u32::try_from(starts?).ok()?, within: span? })
    }

    fn at_limit(&mut self, node: &Node) -> AtLimit {
        let key = "restart.at_limit";
        match &node.value {
            Value::Map(_) => self.start_of(key, node).map_or(AtLimit::Fail, AtLimit::Start),
            Value::Null | Value::Text(_) | Value::List(_) => {
                let words = [("fail", AtLimit::Fail), ("shutdown", AtLimit::Shutdown)];
                self.choice(key, node, &words, &[]).unwrap_or(AtLimit::Fail)
            }
        }
    }

    /// What follows when it ended for good.
    pub(super) fn end_action(&mut self, key: &'static str, node: &Node) -> EndAction {
        match &node.value {
            Value::Map(_) => self.start_of(key, node).map_or(EndAction::None, EndAction::Start),
            Value::Null | Value::Text(_) | Value::List(_) => {
                let words = [("none", EndAction::None), ("shutdown", EndAction::Shutdown)];
                let errors = self.sink.errors();
                let chosen = self.choice(key, node, &words, &[]);
                if self.sink.errors() > errors {
                    self.sink.help_last("to start another unit write `{start: NAME}`");
                }
                chosen.unwrap_or(EndAction::None)
            }
        }
    }

    /// Exit codes, and signals by their names.
    pub(super) fn success_exit(&mut self, node: &Node) -> Vec<ExitMatch> {
        let key = "success_exit";
        let mut matches = Vec::new();
        for item in self.list(key, node).unwrap_or_default() {
            let Some(text) = self.scalar(key, "an exit code or a signal", item) else { continue };
            let is_number = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
            if is_number && !text.is_empty() {
                let code = self.number(key, item, 0, 255).and_then(|code| u8::try_from(code).ok());
                matches.extend(code.map(ExitMatch::Code));
            } else if let Some(signal) = Signal::parse(text) {
                matches.push(ExitMatch::Signal(signal));
            } else {
                let message = format!("`{key}`: {} is no exit code and no signal", quoted(text));
                self.sink
                    .error(item.at, message)
                    .help("write codes and signals: `[0, 143, SIGTERM]`");
            }
        }
        matches
    }
}
