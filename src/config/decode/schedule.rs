//! When a task runs by the calendar or the clock.

use jiff::tz::TimeZone;

use super::Decoder;
use super::fields::Fields;
use super::value::alternatives;
use crate::config::diagnostic::quoted;
use crate::config::yaml::Node;
use crate::model::{
    Calendar, Cron, EVERY_MIN, Overlap, Schedule, ScheduleError, Span, SpanError, Wall, When,
};

/// The keys of which one says when.
const WHEN: [&str; 3] = ["schedule", "every", "calendar"];
/// The keys that mean something only with one of those.
const BESIDE: [&str; 4] = ["timezone", "jitter", "catch_up", "overlap"];

impl Decoder<'_, '_> {
    /// The schedule, where the unit has one.
    pub(super) fn schedule(&mut self, fields: &Fields<'_>) -> Option<Schedule> {
        let mut given = WHEN.iter().filter_map(|name| Some((*name, fields.get(name)?)));
        let Some((name, node)) = given.next() else {
            for (other, node) in BESIDE.iter().filter_map(|name| Some((name, fields.get(name)?))) {
                let message = format!("`{other}` means nothing without {}", alternatives(&WHEN));
                self.sink.error(node.at, message);
            }
            return None;
        };
        for (other, node) in given {
            let message = format!("`{name}` and `{other}` exclude each other");
            self.sink.error(node.at, message);
        }
        let when = self.when(name, node);
        let timezone = fields.get("timezone").and_then(|node| {
            if name == "every" {
                let message = "`timezone` means nothing with `every`: a length of time has none";
                self.sink.error(node.at, message);
            }
            self.timezone(node)
        });
        let jitter = fields.get("jitter").and_then(|node| self.span("jitter", node));
        let catch_up = fields.get("catch_up").and_then(|node| self.boolean("catch_up", node));
        let overlaps =
            [("skip", Overlap::Skip), ("queue", Overlap::Queue), ("kill", Overlap::Kill)];
        let overlap =
            fields.get("overlap").and_then(|node| self.choice("overlap", node, &overlaps, &[]));
        Some(Schedule {
            when: when?,
            timezone,
            jitter: jitter.unwrap_or(Span::ZERO),
            catch_up: catch_up.unwrap_or(false),
            overlap: overlap.unwrap_or(Overlap::Skip),
        })
    }

    fn when(&mut self, key: &'static str, node: &Node) -> Option<When> {
        if key == "every" {
            // Its own complaint about what is no duration.
            self.span(key, node)?;
        }
        let text = self.text(key, node)?;
        match due_times(key, text) {
            Ok(when) => Some(when),
            Err(Unread { problem, help }) => {
                let found = self.sink.error(node.at, problem);
                if let Some(help) = help {
                    found.help(help);
                }
                None
            }
        }
    }

    fn timezone(&mut self, node: &Node) -> Option<String> {
        let name = self.text("timezone", node)?;
        if let Err(error) = TimeZone::get(name) {
            log::debug!("{name}: {error}");
            let message = format!("there is no time zone {}", quoted(name));
            self.sink.error(node.at, message).help(
                "it needs a name like `Europe/Berlin` or `UTC`, and the time zone files of the \
                 system (Debian: tzdata)",
            );
            return None;
        }
        Some(name.to_owned())
    }
}

/// Why a text says no due times, and what would be right where that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unread {
    /// What is wrong.
    pub problem: String,
    /// What would be right.
    pub help: Option<String>,
}

impl Unread {
    fn new(problem: String) -> Self {
        Self { problem, help: None }
    }
}

/// When a task with this text behind `schedule`, `calendar` or `every` is due.
///
/// # Errors
/// Where units with it are refused.
pub fn due_times(key: &str, text: &str) -> Result<When, Unread> {
    let misread = |error: ScheduleError, help| Unread {
        problem: format!("`{key}` is not understood: {error}"),
        help,
    };
    let when = match key {
        "every" => {
            let bad = |error: SpanError| Unread::new(error.to_string());
            let span = Span::parse(text).map_err(bad)?;
            if span < EVERY_MIN {
                return Err(Unread::new(format!("`every` must be {EVERY_MIN} or more")));
            }
            When::Every(span)
        }
        "schedule" => When::Schedule(
            Cron::parse(text)
                .map_err(|error| misread(error, other_form(Calendar::parse(text), "calendar")))?,
        ),
        _ => When::Calendar(
            Calendar::parse(text)
                .map_err(|error| misread(error, other_form(Cron::parse(text), "schedule")))?,
        ),
    };
    if when.next_after(Wall(0), &TimeZone::UTC).is_none() {
        return Err(Unread::new(format!("{} never comes", quoted(text))));
    }
    Ok(when)
}

/// A hint where a text would be right under another key.
fn other_form<T>(parsed: Result<T, ScheduleError>, key: &str) -> Option<String> {
    parsed.ok().map(|_| format!("it is written as `{key}: …`"))
}
