//! Where a unit's output goes and how much of it is kept.

use super::Decoder;
use super::fields::Fields;
use crate::config::yaml::{Node, Value};
use crate::model::{LogRate, LogTarget, Output, Ready, Span, Spec};

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
            matches!(process.ready, Ready::Log(_)) && process.output != Output::Keeper
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
        if let Some(node) = fields.get("to") {
            let (output, target) =
                self.log_target(node).unwrap_or((Output::Keeper, LogTarget::File));
            if let LogTarget::Path(_) = &target {
                self.log_spot = Some(self.sink.spot(node.at));
            }
            spec.logs.to = target;
            if let Some(process) = &mut spec.process {
                process.output = output;
            }
        }
        if let Some(node) = fields.get("format") {
            // Nothing to keep: there is one format.
            self.choice("logs.format", node, &[("text", ())], &["json", "raw"]).unwrap_or(());
        }
        if let Some(node) = fields.get("max_size") {
            let size = self.size("logs.max_size", node);
            spec.logs.max_size = size.unwrap_or(spec.logs.max_size);
            if spec.logs.max_size < SIZE_MIN {
                let message = format!("`logs.max_size` must be at least {SIZE_MIN} bytes");
                self.sink.error(node.at, message);
            }
        }
        if let Some(node) = fields.get("keep") {
            let keep = self.number("logs.keep", node, 0, KEEP_MAX);
            let keep = keep.and_then(|keep| u32::try_from(keep).ok());
            spec.logs.keep = keep.unwrap_or(spec.logs.keep);
        }
        if let Some(node) = fields.get("max_age") {
            spec.logs.max_age = self.some_time("logs.max_age", node);
        }
        if let Some(node) = fields.get("compress") {
            spec.logs.compress = self.boolean("logs.compress", node).unwrap_or(false);
        }
        if let Some(node) = fields.get("rate") {
            spec.logs.rate = self.log_rate(node);
        }
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

    fn log_target(&mut self, node: &Node) -> Option<Target> {
        match &node.value {
            Value::Null => Some((Output::Null, LogTarget::File)),
            Value::Map(_) => {
                let (key, value) = self.only("logs.to", node)?;
                self.path(key.path, value).map(|path| (Output::Keeper, LogTarget::Path(path)))
            }
            Value::Text(_) | Value::List(_) => {
                let words = [
                    ("file", (Output::Keeper, LogTarget::File)),
                    ("console", (Output::Keeper, LogTarget::Console)),
                    ("inherit", (Output::Inherit, LogTarget::File)),
                    ("null", (Output::Null, LogTarget::File)),
                ];
                self.choice("logs.to", node, &words, &["syslog"])
            }
        }
    }
}
