//! How a unit is stopped, and how it is told to reload.

use super::Decoder;
use crate::config::yaml::Node;
use crate::model::{Reload, Signal, Span, Stop, StopAction, StopStep, StopTo};

/// Most steps of a stop; more is no plan any more.
const STEPS_MAX: usize = 16;

/// How long a step may take to work where nothing is said.
const WAIT_DEFAULT: Span = Span::seconds(10);

impl Decoder<'_, '_> {
    /// A signal with a timeout, or steps.
    pub(super) fn stop(&mut self, node: &Node, stop: &mut Stop) {
        let Some(fields) = self.fields("stop", node) else { return };
        let to = fields.get("to").and_then(|node| {
            let words = [("all", StopTo::All), ("main", StopTo::Main)];
            self.choice("stop.to", node, &words, &[])
        });
        let to = to.unwrap_or(StopTo::All);
        let signal = fields.get("signal").map(|node| (node, self.signal("stop.signal", node)));
        let timeout = fields.get("timeout").map(|node| (node, self.wait("stop.timeout", node)));
        if let Some(steps) = fields.get("steps") {
            let others = [("signal", signal.map(|(n, _)| n)), ("timeout", timeout.map(|(n, _)| n))];
            for (name, node) in others.into_iter().filter_map(|(name, n)| Some((name, n?))) {
                let message = format!("`stop.{name}` and `stop.steps` exclude each other");
                self.sink
                    .error(node.at, message)
                    .help("say it in a step: `{signal: TERM, wait: 10s}`");
            }
            stop.steps = self.stop_steps(steps, to);
            return;
        }
        let signal = signal.and_then(|(_, signal)| signal).unwrap_or(Signal::TERM);
        let wait = timeout.and_then(|(_, wait)| wait).unwrap_or(WAIT_DEFAULT);
        stop.steps = vec![StopStep { action: StopAction::Signal(signal, to), wait }];
    }

    fn stop_steps(&mut self, node: &Node, to: StopTo) -> Vec<StopStep> {
        let items = self.list("stop.steps", node).unwrap_or_default();
        if items.len() > STEPS_MAX {
            let message = format!("`stop.steps` has {} steps, at most {STEPS_MAX}", items.len());
            self.sink.error(node.at, message);
        }
        items.iter().take(STEPS_MAX).filter_map(|item| self.stop_step(item, to)).collect()
    }

    fn stop_step(&mut self, node: &Node, to: StopTo) -> Option<StopStep> {
        let errors = self.sink.errors();
        let fields = self.fields("stop.steps", node)?;
        let wait = fields.get("wait").and_then(|node| self.wait("stop.steps.wait", node));
        let wait = wait.unwrap_or(WAIT_DEFAULT);
        let action = match (fields.get("signal"), fields.get("command")) {
            (Some(node), None) => StopAction::Signal(self.signal("stop.steps.signal", node)?, to),
            (None, Some(node)) => StopAction::Command(self.command("stop.steps.command", node)?),
            (Some(_), Some(node)) => {
                self.sink.error(node.at, "a stop step has `signal` or `command`, not both");
                return None;
            }
            (None, None) => {
                if self.sink.errors() == errors {
                    self.sink.error(node.at, "a stop step needs `signal` or `command`");
                }
                return None;
            }
        };
        Some(StopStep { action, wait })
    }

    /// A signal or a command.
    pub(super) fn reload(&mut self, node: &Node) -> Option<Reload> {
        let (key, value) = self.only("reload", node)?;
        if key.name() == "signal" {
            self.signal(key.path, value).map(Reload::Signal)
        } else {
            self.command(key.path, value).map(Reload::Command)
        }
    }
}
