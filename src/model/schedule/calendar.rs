//! Calendar expressions: `Mon..Fri 09:00`, `*-*-01 04:00`, `*:0/15`, `daily`; the common part of
//! systemd.time(7).

use super::ScheduleError;
use super::cron::digits;
use super::pattern::{Days, Pattern, Set};

/// Each with its short and long name; Sunday is 0.
const WEEKDAYS: [(&str, &str); 7] = [
    ("sun", "sunday"),
    ("mon", "monday"),
    ("tue", "tuesday"),
    ("wed", "wednesday"),
    ("thu", "thursday"),
    ("fri", "friday"),
    ("sat", "saturday"),
];

/// What a word stands for.
const WORDS: [(&str, &str); 9] = [
    ("minutely", "*-*-* *:*:00"),
    ("hourly", "*-*-* *:00:00"),
    ("daily", "*-*-* 00:00:00"),
    ("weekly", "Mon *-*-* 00:00:00"),
    ("monthly", "*-*-01 00:00:00"),
    ("quarterly", "*-01,04,07,10-01 00:00:00"),
    ("semiannually", "*-01,07-01 00:00:00"),
    ("yearly", "*-01-01 00:00:00"),
    ("annually", "*-01-01 00:00:00"),
];

/// Years that can be named.
const YEARS: (u32, u32) = (1970, 2199);

pub(super) fn parse(text: &str) -> Result<Pattern, ScheduleError> {
    let text = text.trim();
    if let Some((_, meaning)) = WORDS.iter().find(|(word, _)| word.eq_ignore_ascii_case(text)) {
        return parse(meaning);
    }
    let mut pattern = Pattern { rule: Days::Both, ..Pattern::always() };
    let mut parts = text.split_whitespace().peekable();
    if parts.peek().is_none() {
        return Err(ScheduleError("it is empty; write it as `Mon..Fri 09:00`".into()));
    }
    if let Some(part) = parts.next_if(|part| part.starts_with(|c: char| c.is_ascii_alphabetic())) {
        pattern.weekdays = weekdays(part)?;
    }
    if let Some(part) = parts.next_if(|part| part.contains('-')) {
        date(part, &mut pattern)?;
    }
    match parts.next_if(|part| part.contains(':')) {
        Some(part) => time(part, &mut pattern)?,
        None => time("00:00:00", &mut pattern)?,
    }
    match parts.next() {
        None => Ok(pattern),
        Some(rest) if rest.starts_with(|c: char| c.is_ascii_alphabetic()) => Err(ScheduleError(
            format!("`{rest}` is not understood here; a time zone has the key `timezone`"),
        )),
        Some(rest) => Err(ScheduleError(format!(
            "`{rest}` is not understood here; write it as `Mon..Fri 2026-*-01 09:00:00`"
        ))),
    }
}

/// `Mon`, `Mon..Fri`, `Sat,Sun`.
fn weekdays(text: &str) -> Result<Set, ScheduleError> {
    let number = |name: &str| {
        let known = WEEKDAYS.iter().zip(0u32..).find(|((short, long), _)| {
            name.eq_ignore_ascii_case(short) || name.eq_ignore_ascii_case(long)
        });
        known.map(|(_, number)| number).ok_or_else(|| {
            let words: Vec<&str> = WORDS.iter().map(|(word, _)| *word).collect();
            let words = words.join(", ");
            ScheduleError(format!("`{name}` is no day of the week (`Mon`), and none of {words}"))
        })
    };
    let mut set = Set::default();
    for part in text.split(',') {
        let (first, last) = match part.split_once("..") {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(part)?, number(part)?),
        };
        // A week goes round: `Fri..Mon` has four days.
        set = if first <= last {
            set.with(Set::range(first, last, 1))
        } else {
            set.with(Set::range(first, 6, 1)).with(Set::range(0, last, 1))
        };
    }
    Ok(set)
}

/// `YEAR-MONTH-DAY` or `MONTH-DAY`.
fn date(text: &str, pattern: &mut Pattern) -> Result<(), ScheduleError> {
    if text.contains('~') {
        return Err(ScheduleError("days counted from a month's end (`~`) are not known".into()));
    }
    let parts: Vec<&str> = text.split('-').collect();
    let (year, month, day) = match *parts.as_slice() {
        [year, month, day] => (year, month, day),
        [month, day] => ("*", month, day),
        _ => {
            return Err(ScheduleError(format!("`{text}` is no date, as `2026-12-24` or `*-*-01`")));
        }
    };
    if year != "*" {
        for part in year.split(',') {
            let (first, last) = part.split_once("..").unwrap_or((part, part));
            let number = |text: &str| {
                let year = digits(text).filter(|year| (YEARS.0..=YEARS.1).contains(year));
                let year = year.and_then(|year| i16::try_from(year).ok());
                let (first, last) = YEARS;
                year.ok_or_else(|| {
                    ScheduleError(format!("`{text}` is no year from {first} to {last}"))
                })
            };
            let (first, last) = (number(first)?, number(last)?);
            if last < first {
                return Err(ScheduleError(format!("`{part}` of the year goes backwards")));
            }
            pattern.years.push((first, last));
        }
    }
    pattern.months = set("month", month, 1, 12)?;
    pattern.days = set("day", day, 1, 31)?;
    Ok(())
}

/// `HOUR:MINUTE[:SECOND]`.
fn time(text: &str, pattern: &mut Pattern) -> Result<(), ScheduleError> {
    let parts: Vec<&str> = text.split(':').collect();
    let (hour, minute, second) = match *parts.as_slice() {
        [hour, minute] => (hour, minute, "00"),
        [hour, minute, second] => (hour, minute, second),
        _ => return Err(ScheduleError(format!("`{text}` is no time, as `09:00` or `*:0/15`"))),
    };
    let hours = set("hour", hour, 0, 23)?;
    pattern.hours = (hour != "*").then_some(hours);
    pattern.minutes = set("minute", minute, 0, 59)?;
    pattern.seconds = set("second", second, 0, 59)?;
    Ok(())
}

/// `*`, `N`, `N..M`, each with `/STEP`, as a list.
fn set(name: &str, text: &str, first: u32, last: u32) -> Result<Set, ScheduleError> {
    let number = |text: &str| {
        digits(text).filter(|n| (first..=last).contains(n)).ok_or_else(|| {
            ScheduleError(format!("`{text}` is no {name}: a number from {first} to {last}"))
        })
    };
    let mut all = Set::default();
    for part in text.split(',') {
        let (range, step) = match part.split_once('/') {
            None => (part, None),
            Some((range, step)) => {
                let number = digits(step).filter(|step| (1..=last).contains(step));
                let wrong = || ScheduleError(format!("`{step}` is no step of the {name}"));
                (range, Some(number.ok_or_else(wrong)?))
            }
        };
        let (low, high) = match range.split_once("..") {
            Some((low, high)) => (number(low)?, number(high)?),
            None if range == "*" => (first, last),
            None if step.is_some() => (number(range)?, last),
            None => (number(range)?, number(range)?),
        };
        if low > high {
            return Err(ScheduleError(format!("`{range}` of the {name} goes backwards")));
        }
        all = all.with(Set::range(low, high, step.unwrap_or(1)));
    }
    Ok(all)
}
