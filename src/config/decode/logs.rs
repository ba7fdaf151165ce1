//! Where a unit's output goes and how much of it is kept.

use super::fields::Fields;
use super::{Decoder, Tie};
use crate::config::diagnostic::quoted;
use crate::config::yaml::{Node, Value};
use crate::model::{
    Condition, Dependency, FACILITIES, LogFormat, LogRate, LogTarget, Logs, Output, Ready, Span,
    Spec, Syslog, SyslogAddress, SyslogForm,
};

/// Smallest file before it is finished; less would be files of a few lines.
const SIZE_MIN: u64 = 1024;

/// Most finished files that are kept.
const KEEP_MAX: i64 = 1_000;

/// Most lines of `logs.rate`: more than a log takes in the shortest time.
const RATE_LINES_MAX: i64 = 1_000_000_000;

/// In how long so many lines are taken, where it is not said.
const RATE_PER: Span = Span::seconds(1);

/// What `logs.to` says: who reads the output, and where it is written.
type Target = (Output, LogTarget);

impl Decoder<'_, '_> {
    /// Who is ready when it has written a line needs somebody who reads it.
    pub(super) fn output_is_read(&mut self, fields: &Fields<'_>, spec: &Spec) {
        let is_unread = spec.process.as_ref().is_some_and(|process| {
            matches!(*process.ready, Ready::Log(_)) && process.output != Output::Keeper
        });
        if let Some(node) = fields.get("ready").filter(|_| is_unread) {
            let message = "`ready.log` needs output that the log keeper reads";
            let help = "leave `logs.to` out, or write `logs: {to: file}`";
            self.sink.error(node.at, message).help(help);
        }
    }

    /// All of `logs`.
    pub(super) fn logs(&mut self, fields: &Fields<'_>, spec: &mut Spec) {
        let Some(node) = fields.get("logs") else { return };
        let Some(fields) = self.fields("logs", node) else { return };
        let mut logs = Logs::default();
        if let Some(node) = fields.get("to") {
            let (output, target) =
                self.log_target(node).unwrap_or((Output::Keeper, LogTarget::File));
            if let LogTarget::Path(_) = &target {
                self.log_spot = Some(self.sink.spot(node.at));
            }
            if let LogTarget::Unit(unit) = &target {
                // Whoever reads is there before and after those that write.
                let place = self.only("logs.to", node).map_or(node, |(_, place)| place);
                self.refer(Tie::After, "logs.to", unit, place.at);
                let condition = Condition::Started;
                spec.relations.after.push(Dependency { unit: unit.clone(), condition });
            }
            logs.to = target;
            if let Some(process) = &mut spec.process {
                process.output = output;
            }
        }
        if let Some(node) = fields.get("format") {
            logs.format = self.log_format(node, &logs.to);
        }
        if let Some(node) = fields.get("max_size") {
            let size = self.size("logs.max_size", node);
            logs.max_size = size.unwrap_or(logs.max_size);
            if logs.max_size < SIZE_MIN {
                let message = format!("`logs.max_size` must be at least {SIZE_MIN} bytes");
                self.sink.error(node.at, message);
            }
        }
        if let Some(node) = fields.get("keep") {
            let keep = self.number("logs.keep", node, 0, KEEP_MAX);
            let keep = keep.and_then(|keep| u32::try_from(keep).ok());
            logs.keep = keep.unwrap_or(logs.keep);
        }
        if let Some(node) = fields.get("max_age") {
            logs.max_age = self.some_time("logs.max_age", node);
        }
        if let Some(node) = fields.get("compress") {
            logs.compress = self.boolean("logs.compress", node).unwrap_or(false);
        }
        if let Some(node) = fields.get("rate") {
            logs.rate = self.log_rate(node);
        }
        spec.logs = logs.into();
    }

    /// A duration that is longer than nothing.
    fn some_time(&mut self, key: &str, node: &Node) -> Option<Span> {
        let span = self.span(key, node)?;
        if span < Span::millis(1) {
            self.sink.error(node.at, format!("`{key}` must be at least 1ms"));
        }
        Some(span)
    }

    fn log_rate(&mut self, node: &Node) -> Option<LogRate> {
        let fields = self.fields("logs.rate", node)?;
        let Some(lines) = fields.get("lines") else {
            self.sink
                .error(node.at, "`logs.rate` needs `lines`")
                .help("write it as `{lines: 10000, per: 1s}`");
            return None;
        };
        let lines = self.number("logs.rate.lines", lines, 1, RATE_LINES_MAX);
        let per = match fields.get("per") {
            Some(node) => self.some_time("logs.rate.per", node),
            None => Some(RATE_PER),
        };
        Some(LogRate { lines: u32::try_from(lines?).ok()?, per: per? })
    }

    fn log_format(&mut self, node: &Node, to: &LogTarget) -> Option<LogFormat> {
        let words = [("text", LogFormat::Text), ("json", LogFormat::Json), ("raw", LogFormat::Raw)];
        let format = self.choice("logs.format", node, &words, &[])?;
        let place = match to {
            LogTarget::File | LogTarget::Path(_) | LogTarget::Unit(_) => return Some(format),
            LogTarget::Console => "on the console",
            LogTarget::Syslog(_) => "at a syslog daemon",
        };
        let message = format!("`logs.format` says nothing {place}");
        self.sink.error(node.at, message).help("take it out");
        None
    }

    fn log_target(&mut self, node: &Node) -> Option<Target> {
        let to = match &node.value {
            Value::Null => return Some((Output::Null, LogTarget::File)),
            Value::Map(_) => {
                let (key, value) = self.only("logs.to", node)?;
                match key.name() {
                    "syslog" => LogTarget::Syslog(self.syslog(value)?),
                    "unit" => LogTarget::Unit(self.unit_name(key.path, value)?),
                    _ => LogTarget::Path(self.path(key.path, value)?),
                }
            }
            Value::Text(_) | Value::List(_) => {
                let local = Syslog::at(SyslogAddress::default());
                let words = [
                    ("file", (Output::Keeper, LogTarget::File)),
                    ("console", (Output::Keeper, LogTarget::Console)),
                    ("inherit", (Output::Inherit, LogTarget::File)),
                    ("null", (Output::Null, LogTarget::File)),
                    ("syslog", (Output::Keeper, LogTarget::Syslog(local))),
                ];
                return self.choice("logs.to", node, &words, &[]);
            }
        };
        Some((Output::Keeper, to))
    }

    fn syslog(&mut self, node: &Node) -> Option<Syslog> {
        let fields = self.fields("logs.to.syslog", node)?;
        let address = match fields.get("address") {
            Some(node) => self.syslog_address(node)?,
            None => SyslogAddress::default(),
        };
        let mut syslog = Syslog::at(address);
        if let Some(node) = fields.get("facility") {
            let words: Vec<(&str, u8)> = FACILITIES.into_iter().zip(0..).collect();
            syslog.facility = self.choice("logs.to.syslog.facility", node, &words, &[])?;
        }
        if let Some(node) = fields.get("format") {
            let words = [("rfc5424", SyslogForm::Rfc5424), ("rfc3164", SyslogForm::Rfc3164)];
            syslog.form = self.choice("logs.to.syslog.format", node, &words, &[])?;
        }
        Some(syslog)
    }

    fn syslog_address(&mut self, node: &Node) -> Option<SyslogAddress> {
        let key = "logs.to.syslog.address";
        let text = self.scalar(key, "an address", node)?;
        if let Ok(address) = text.parse() {
            return Some(address);
        }
        let message = format!("`{key}`: {} is no address of a syslog daemon", quoted(text));
        self.sink
            .error(node.at, message)
            .help("write `/dev/log`, `udp://host:514` or `tcp://host:601`");
        None
    }
}
