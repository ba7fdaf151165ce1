//! When a task is due by the calendar or the clock.
//!
//! - A due time is strictly after the one before it.
//! - A local time that a change of the clocks leaves out is due at the end of the gap; one that comes
//!   twice is due the first time. Where the hour is left open (`*`), real time counts: every hour
//!   that passes, the repeated one too, and none that does not.
//!
//! Time and time zone are arguments: nothing here reads a clock.

mod calendar;
mod cron;
mod pattern;

use std::fmt;

use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use super::agenda::Due;
use super::name::InstanceId;
use super::spec::SpecHash;
use super::time::{Span, Wall};
use pattern::Pattern;

/// Shortest time between two runs by [`When::Every`].
pub const EVERY_MIN: Span = Span::seconds(1);

/// When a task is due, and what follows when it cannot run then.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// When.
    pub when: When,
    /// The time zone of its times, by its name in the IANA database; `None`: the system's.
    pub timezone: Option<String>,
    /// Up to how much later it runs; how much is left to chance, and the same for one due time.
    pub jitter: Span,
    /// Whether one run makes up for due times at which opm was not there.
    pub catch_up: bool,
    /// What follows when it is due and its last run goes on.
    pub overlap: Overlap,
}

/// How due times are given.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum When {
    /// By a cron expression, crontab(5).
    Schedule(Cron),
    /// By a calendar expression, systemd.time(7).
    Calendar(Calendar),
    /// By a length of time.
    Every(Span),
}

/// What follows when a task is due while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Overlap {
    /// This due time is passed over.
    Skip,
    /// It runs once more when the run is over.
    Queue,
    /// The run is stopped, and another one begins.
    Kill,
}

/// Why a text is no cron or calendar expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScheduleError(String);

impl fmt::Display for ScheduleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ScheduleError {}

/// A cron expression with its meaning.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cron {
    text: String,
    pattern: Pattern,
}

impl Cron {
    /// Reads five fields, or a word like `@daily`.
    pub fn parse(text: &str) -> Result<Self, ScheduleError> {
        let pattern = cron::parse(text)?;
        Ok(Self { text: text.trim().to_owned(), pattern })
    }
}

impl TryFrom<String> for Cron {
    type Error = ScheduleError;

    fn try_from(text: String) -> Result<Self, ScheduleError> {
        Self::parse(&text)
    }
}

impl From<Cron> for String {
    fn from(cron: Cron) -> Self {
        cron.text
    }
}

/// A calendar expression with its meaning.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Calendar {
    text: String,
    pattern: Pattern,
}

impl Calendar {
    /// Reads `[WEEKDAYS] [YEAR-MONTH-DAY] [HOUR:MINUTE[:SECOND]]`, or a word like `daily`.
    pub fn parse(text: &str) -> Result<Self, ScheduleError> {
        let pattern = calendar::parse(text)?;
        Ok(Self { text: text.trim().to_owned(), pattern })
    }
}

impl TryFrom<String> for Calendar {
    type Error = ScheduleError;

    fn try_from(text: String) -> Result<Self, ScheduleError> {
        Self::parse(&text)
    }
}

impl From<Calendar> for String {
    fn from(calendar: Calendar) -> Self {
        calendar.text
    }
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Schedule(cron) => f.write_str(&cron.text),
            Self::Calendar(calendar) => f.write_str(&calendar.text),
            Self::Every(span) => write!(f, "every {span}"),
        }
    }
}

impl When {
    /// The first due time strictly after a time; `None` where there is none any more.
    pub fn next_after(&self, time: Wall, zone: &TimeZone) -> Option<Wall> {
        match self {
            Self::Schedule(Cron { pattern, .. }) | Self::Calendar(Calendar { pattern, .. }) => {
                pattern.next_after(time, zone)
            }
            Self::Every(span) => time.after(*span),
        }
    }

    /// The latest due time that is not after `now`, where `due` is one.
    pub fn latest(&self, due: Wall, now: Wall, zone: &TimeZone) -> Wall {
        match self {
            // However long that was, no counting.
            Self::Every(span) => {
                let step = i64::try_from(span.as_nanos() / 1_000).unwrap_or(i64::MAX).max(1);
                let passed = now.0.saturating_sub(due.0).max(0);
                Wall(due.0.saturating_add(passed - passed.checked_rem(step).unwrap_or(0)))
            }
            Self::Schedule(Cron { pattern, .. }) | Self::Calendar(Calendar { pattern, .. }) => {
                pattern.latest(due, now, zone)
            }
        }
    }
}

impl Schedule {
    /// Fingerprint of when it is due: two schedules with the same one are due at the same times.
    pub fn hash(&self) -> SpecHash {
        SpecHash::of(&(&self.when, &self.timezone))
    }

    /// The first due time strictly after a time, and when it is to run.
    pub fn due_after(&self, id: &InstanceId, time: Wall, zone: &TimeZone) -> Option<Due> {
        let time = self.when.next_after(time, zone)?;
        let at = time.after(self.delay(id, time)).unwrap_or(time);
        Some(Due { time, at })
    }

    /// By how much a run at this due time is later, out of its `jitter`.
    pub fn delay(&self, id: &InstanceId, due: Wall) -> Span {
        let key = format!("{id} {}", due.0);
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for byte in key.bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        // The upper bits of a product are the well mixed ones.
        let part = u16::try_from(hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48).unwrap_or(0);
        self.jitter.scale(f64::from(part) / f64::from(u16::MAX))
    }
}

#[cfg(test)]
mod tests;
