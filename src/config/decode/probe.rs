//! How a unit says, or is asked, whether it is ready, and whether it is healthy.

use super::Decoder;
use super::fields::Fields;
use crate::config::diagnostic::quoted;
use crate::config::keys::Key;
use crate::config::yaml::Node;
use crate::model::{Health, HealthAction, Probe, Question, RETRIES_MAX, Ready, Span, Template};

/// Highest descriptor for `ready: {fd: N}`; the usual soft limit of descriptors is one more.
const READY_FD_MAX: i64 = 1023;
/// Shortest time between two questions: each costs a process.
const INTERVAL_MIN: Span = Span::millis(10);
/// Shortest silence that can be too long: a service pings twice in this time, and has to be heard.
const WATCHDOG_MIN: Span = Span::millis(10);
/// Where nothing is said: how often a unit is asked whether it is ready, and healthy.
const READY_INTERVAL: Span = Span::seconds(1);
const HEALTH_INTERVAL: Span = Span::seconds(10);
const TIMEOUT: Span = Span::seconds(3);
const RETRIES: u32 = 3;
const START_PERIOD: Span = Span::seconds(30);

/// Whether a text is the number of a port, or becomes one.
fn is_port(text: &str) -> bool {
    text.contains("${") || text.parse::<u16>().is_ok_and(|port| port > 0)
}

impl Decoder<'_, '_> {
    pub(super) fn ready(&mut self, node: &Node) -> Option<Ready> {
        let (fields, key, value) =
            self.one_of("ready", node, &["expect", "interval", "timeout"])?;
        let name = key.name();
        let is_question = matches!(name, "tcp" | "unix" | "http" | "exec");
        for other in ["interval", "timeout", "expect"] {
            let belongs = if other == "expect" { name == "http" } else { is_question };
            if let Some(node) = fields.get(other).filter(|_| !belongs) {
                let message = format!("`ready.{other}` means nothing with {}", quoted(key.path));
                self.sink.error(node.at, message);
            }
        }
        match name {
            "notify" => {
                let is_asked = self.boolean(key.path, value)?;
                Some(if is_asked { Ready::Notify } else { Ready::Started })
            }
            "fd" => {
                let fd = self.number(key.path, value, 3, READY_FD_MAX)?;
                u16::try_from(fd).ok().map(Ready::Fd)
            }
            "delay" => self.span(key.path, value).map(Ready::Delay),
            "file" => self.path(key.path, value).map(Ready::File),
            "log" => self.pattern(key.path, value).map(Ready::Log),
            _ => {
                let question = self.question(key, value, fields.get("expect"));
                let interval = self.interval("ready.interval", &fields, READY_INTERVAL);
                let timeout = self.interval("ready.timeout", &fields, TIMEOUT);
                Some(Ready::Asked(Box::new(Probe { question: question?, interval, timeout })))
            }
        }
    }

    /// A regular expression.
    fn pattern(&mut self, key: &str, node: &Node) -> Option<String> {
        let text = self.text(key, node)?.to_owned();
        if let Err(error) = regex_lite::Regex::new(&text) {
            let message = format!("`{key}` is no regular expression: {error}");
            self.sink.error(node.at, message);
            return None;
        }
        Some(text)
    }

    pub(super) fn health(&mut self, node: &Node) -> Option<Health> {
        let beside = ["interval", "timeout", "retries", "start_period", "on_failure"];
        let (fields, key, value) = self.one_of("health", node, &beside)?;
        let question = self.question(key, value, None);
        let interval = self.interval("health.interval", &fields, HEALTH_INTERVAL);
        let timeout = self.interval("health.timeout", &fields, TIMEOUT);
        let retries = fields
            .get("retries")
            .and_then(|node| self.number("health.retries", node, 1, i64::from(RETRIES_MAX)));
        let start_period =
            fields.get("start_period").and_then(|node| self.span("health.start_period", node));
        let actions = [
            ("restart", HealthAction::Restart),
            ("none", HealthAction::None),
            ("shutdown", HealthAction::Shutdown),
        ];
        let on_failure = fields
            .get("on_failure")
            .and_then(|node| self.choice("health.on_failure", node, &actions, &[]));
        Some(Health {
            probe: Probe { question: question?, interval, timeout },
            retries: retries.and_then(|n| u32::try_from(n).ok()).unwrap_or(RETRIES),
            start_period: start_period.unwrap_or(START_PERIOD),
            on_failure: on_failure.unwrap_or(HealthAction::Restart),
        })
    }

    fn question(&mut self, key: &Key, value: &Node, expect: Option<&Node>) -> Option<Question> {
        match key.name() {
            "tcp" => self.address(key.path, value).map(Question::Tcp),
            "unix" => self.socket_path(key.path, value).map(Question::Unix),
            "memory" => {
                let size = self.size(key.path, value)?;
                if size == 0 {
                    self.wrong(key.path, "more than nothing", value);
                    return None;
                }
                Some(Question::Memory(size))
            }
            "exec" => self.command(key.path, value).map(Question::Exec),
            _ => {
                let url = self.url(key.path, value);
                let expect = match expect {
                    Some(node) => self.number("ready.expect", node, 100, 599),
                    None => None,
                };
                let expect = expect.and_then(|status| u16::try_from(status).ok());
                Some(Question::Http { url: url?, expect })
            }
        }
    }

    /// `HOST:PORT`.
    fn address(&mut self, key: &str, node: &Node) -> Option<Template> {
        let text = self.text(key, node)?;
        let has_port =
            text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && is_port(port));
        if !has_port {
            self.wrong(key, "`HOST:PORT`", node);
            return None;
        }
        self.template(key, node)
    }

    fn url(&mut self, key: &str, node: &Node) -> Option<Template> {
        let text = self.text(key, node)?;
        let host = text.strip_prefix("http://").filter(|rest| !rest.starts_with('/'));
        // A port is what follows the last colon, but for one within the brackets of an address.
        let authority = host.and_then(|host| host.split(['/', '?', '#']).next());
        let authority = authority.filter(|all| !all.contains("${"));
        let port = authority.and_then(|all| all.rsplit_once(':')).map(|(_, port)| port);
        if port.is_some_and(|port| !port.contains(']') && !is_port(port)) {
            self.wrong(key, "a URL with a port from 1 to 65535", node);
            return None;
        }
        if host.is_none_or(str::is_empty) {
            self.wrong(
                key,
                "a URL that begins with `http://` (for https, use `exec` with curl)",
                node,
            );
            return None;
        }
        self.template(key, node)
    }

    /// The longest silence of a service.
    pub(super) fn watchdog(&mut self, node: &Node) -> Option<Span> {
        let span = self.span("watchdog", node)?;
        if span < WATCHDOG_MIN {
            self.sink.error(node.at, format!("`watchdog` must be {WATCHDOG_MIN} or more"));
        }
        Some(span)
    }

    /// A time that is long enough for a process.
    fn interval(&mut self, key: &'static str, fields: &Fields<'_>, default: Span) -> Span {
        let name = key.rsplit_once('.').map_or(key, |(_, name)| name);
        let Some(node) = fields.get(name) else { return default };
        let Some(span) = self.span(key, node) else { return default };
        if span < INTERVAL_MIN {
            self.sink.error(node.at, format!("`{key}` must be {INTERVAL_MIN} or more"));
        }
        span
    }
}
