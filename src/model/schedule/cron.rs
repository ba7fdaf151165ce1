//! Cron expressions: five fields, names, ranges, steps, and words like `@daily`; crontab(5).

use super::ScheduleError;
use super::pattern::{Days, Pattern, Set};

const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// What a field may hold.
struct Field {
    name: &'static str,
    first: u32,
    last: u32,
    /// Names for its numbers, from `first` on.
    names: &'static [&'static str],
}

const MINUTE: Field = Field { name: "minute", first: 0, last: 59, names: &[] };
const HOUR: Field = Field { name: "hour", first: 0, last: 23, names: &[] };
const DAY: Field = Field { name: "day of the month", first: 1, last: 31, names: &[] };
const MONTH: Field = Field { name: "month", first: 1, last: 12, names: &MONTHS };
/// Both 0 and 7 are Sunday.
const WEEKDAY: Field = Field { name: "day of the week", first: 0, last: 7, names: &WEEKDAYS };

/// What a word stands for.
const WORDS: [(&str, &str); 7] = [
    ("@hourly", "0 * * * *"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@weekly", "0 0 * * 0"),
    ("@monthly", "0 0 1 * *"),
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
];

pub(super) fn parse(text: &str) -> Result<Pattern, ScheduleError> {
    let text = text.trim();
    if text.starts_with('@') {
        let known = WORDS.iter().find(|(word, _)| word.eq_ignore_ascii_case(text));
        return match known {
            Some((_, meaning)) => parse(meaning),
            None if text.eq_ignore_ascii_case("@reboot") => Err(ScheduleError(
                "`@reboot` is what a task without a schedule does: it runs once per boot".into(),
            )),
            None => {
                let words: Vec<&str> = WORDS.iter().map(|(word, _)| *word).collect();
                Err(ScheduleError(format!("`{text}` is none of {}", words.join(", "))))
            }
        };
    }
    let parts: Vec<&str> = text.split_whitespace().collect();
    let &[minute, hour, day, month, weekday] = parts.as_slice() else {
        return Err(ScheduleError(format!(
            "a cron expression has five fields (minute, hour, day of the month, month, day of the \
             week), not {}",
            parts.len()
        )));
    };
    let weekdays = WEEKDAY.read(weekday)?;
    let sunday = if weekdays.has(7) { Set::range(0, 0, 1) } else { Set::default() };
    let (days, is_any_day) = (DAY.read(day)?, day.starts_with('*'));
    let is_any_weekday = weekday.starts_with('*');
    let hours = HOUR.read(hour)?;
    let pattern = Pattern {
        minutes: MINUTE.read(minute)?,
        hours: (hour != "*").then_some(hours),
        days,
        months: MONTH.read(month)?,
        weekdays: weekdays.with(sunday),
        rule: if is_any_day || is_any_weekday { Days::Both } else { Days::Either },
        seconds: Set::range(0, 0, 1),
        ..Pattern::always()
    };
    Ok(pattern)
}

impl Field {
    /// A list of ranges.
    fn read(&self, text: &str) -> Result<Set, ScheduleError> {
        let mut set = Set::default();
        for part in text.split(',') {
            set = set.with(self.range(part)?);
        }
        Ok(set)
    }

    /// `*`, `N`, `N-M`, each with `/STEP`.
    fn range(&self, text: &str) -> Result<Set, ScheduleError> {
        let (range, step) = match text.split_once('/') {
            None => (text, 1),
            Some((range, step)) => {
                let number = step.parse().ok().filter(|n| (1..=self.last).contains(n));
                let step = number.ok_or_else(|| {
                    ScheduleError(format!("`{step}` is no step of the {}", self.name))
                })?;
                (range, step)
            }
        };
        if range == "*" {
            return Ok(Set::range(self.first, self.last, step));
        }
        let (first, last) = match range.split_once('-') {
            Some((first, last)) => (self.number(first)?, self.number(last)?),
            None if text.contains('/') => (self.number(range)?, self.last),
            None => (self.number(range)?, self.number(range)?),
        };
        if first > last {
            return Err(ScheduleError(format!(
                "`{range}` of the {} goes backwards; write it as two ranges",
                self.name
            )));
        }
        Ok(Set::range(first, last, step))
    }

    fn number(&self, text: &str) -> Result<u32, ScheduleError> {
        let named =
            (self.first..).zip(self.names).find(|(_, name)| name.eq_ignore_ascii_case(text));
        let number = named.map(|(number, _)| number).or_else(|| digits(text));
        number.filter(|n| (self.first..=self.last).contains(n)).ok_or_else(|| {
            let or_name =
                self.names.first().map_or_else(String::new, |name| format!(", or `{name}`"));
            let (name, first, last) = (self.name, self.first, self.last);
            ScheduleError(format!(
                "`{text}` is no {name}: a number from {first} to {last}{or_name}"
            ))
        })
    }
}

/// A number without a sign.
pub(super) fn digits(text: &str) -> Option<u32> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok()).flatten()
}
