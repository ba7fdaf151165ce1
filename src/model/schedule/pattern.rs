//! A set of local times, and the search for the next one.

use jiff::civil::{Date, DateTime, Time};
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{Timestamp, ToSpan};

use crate::model::time::Wall;

/// How many days are looked at for a due time, those of years that do not count left out: the 29th of
/// February on a given weekday comes every 28 years, every 40 over a year like 2100.
const DAYS_MAX: u32 = 41 * 366;
/// Most due times counted up to the present; what is missed for longer is told by the last of them.
const COUNTED_MAX: u32 = 2_000;

/// Numbers below 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Set(u64);

impl Set {
    /// These numbers, from one to another, each so many.
    pub(super) fn range(first: u32, last: u32, step: u32) -> Self {
        let step = usize::try_from(step.max(1)).unwrap_or(1);
        Self((first..=last.min(63)).step_by(step).fold(0, |set, n| set | (1 << n)))
    }

    pub(super) fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(super) fn has(self, n: i8) -> bool {
        u32::try_from(n).is_ok_and(|n| n < 64 && self.0 & (1 << n) != 0)
    }

    /// All members that are not below `least`, in order.
    fn from(self, least: i8) -> impl Iterator<Item = i8> {
        (least.max(0)..64).filter(move |n| self.has(*n))
    }
}

/// Which days count where both days of the month and of the week are given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Days {
    /// Those that are both.
    Both,
    /// Those that are one of them, as cron has it.
    Either,
}

/// A set of local times, in whole seconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern {
    /// First and last years; none: all.
    pub(super) years: Vec<(i16, i16)>,
    pub(super) months: Set,
    pub(super) days: Set,
    /// Sunday is 0.
    pub(super) weekdays: Set,
    pub(super) rule: Days,
    /// `None`: every hour that passes, in real time.
    pub(super) hours: Option<Set>,
    pub(super) minutes: Set,
    pub(super) seconds: Set,
}

impl Pattern {
    /// Every second of every day.
    pub(super) fn always() -> Self {
        Self {
            years: Vec::new(),
            months: Set::range(1, 12, 1),
            days: Set::range(1, 31, 1),
            weekdays: Set::range(0, 6, 1),
            rule: Days::Both,
            hours: None,
            minutes: Set::range(0, 59, 1),
            seconds: Set::range(0, 59, 1),
        }
    }

    /// This day, or the first one after it whose year counts.
    fn in_year(&self, date: Date) -> Option<Date> {
        let year = date.year();
        if self.years.is_empty() || self.years.iter().any(|(a, b)| (*a..=*b).contains(&year)) {
            return Some(date);
        }
        let later = self.years.iter().map(|(first, _)| *first).filter(|first| *first > year).min();
        Date::new(later?, 1, 1).ok()
    }

    /// Whether a day counts in a year that does.
    fn has_day(&self, date: Date) -> bool {
        let is_day = self.days.has(date.day());
        let is_weekday = self.weekdays.has(date.weekday().to_sunday_zero_offset());
        let is_either = match self.rule {
            Days::Both => is_day && is_weekday,
            Days::Either => is_day || is_weekday,
        };
        self.months.has(date.month()) && is_either
    }

    /// The first time of the set strictly after `time`.
    pub(super) fn next_after(&self, time: Wall, zone: &TimeZone) -> Option<Wall> {
        let after = Timestamp::from_microsecond(time.0).ok()?;
        let mut date = zone.to_datetime(after).date().checked_sub(1.day()).ok()?;
        for _ in 0..DAYS_MAX {
            date = self.in_year(date)?;
            if self.has_day(date)
                && let Some(found) = self.on_day(date, after, zone)
            {
                return Some(Wall(found.as_microsecond()));
            }
            date = date.tomorrow().ok()?;
        }
        None
    }

    /// The first time of the set on a day that is after a time.
    fn on_day(&self, date: Date, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let Some(hours) = self.hours else { return self.in_real_time(date, after, zone) };
        for hour in hours.from(0) {
            // An hour that is over is not looked at minute by minute.
            let end = instant(date.to_datetime(Time::new(hour, 59, 59, 0).ok()?), zone)?;
            if end <= after {
                continue;
            }
            for minute in self.minutes.from(0) {
                for second in self.seconds.from(0) {
                    let local = date.to_datetime(Time::new(hour, minute, second, 0).ok()?);
                    let found = instant(local, zone)?;
                    if found > after {
                        return Some(found);
                    }
                }
            }
        }
        None
    }

    /// The same where every hour that passes counts.
    fn in_real_time(&self, date: Date, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let begin = instant(date.to_datetime(Time::midnight()), zone)?;
        let second =
            Timestamp::from_second(after.as_second()).ok()?.checked_add(1.second()).ok()?;
        let mut at = begin.max(second);
        loop {
            let local = zone.to_datetime(at);
            if local.date() != date {
                return None;
            }
            let found = self.seconds.from(local.second()).next();
            if let Some(second) = found.filter(|_| self.minutes.has(local.minute())) {
                let wait = i64::from(second - local.second());
                return at.checked_add(wait.seconds()).ok();
            }
            let rest = i64::from(60 - local.second());
            at = at.checked_add(rest.seconds()).ok()?;
        }
    }

    /// The latest time of the set that is not after `now`, where `due` is one.
    pub(super) fn latest(&self, due: Wall, now: Wall, zone: &TimeZone) -> Wall {
        let mut latest = due;
        for _ in 0..COUNTED_MAX {
            match self.next_after(latest, zone).filter(|next| *next <= now) {
                Some(next) => latest = next,
                None => return latest,
            }
        }
        // It was missed so often that the exact time says nothing: a time between is as good.
        now
    }
}

/// The moment of a local time: at the end of the gap where there is none, the first where there are
/// two.
fn instant(local: DateTime, zone: &TimeZone) -> Option<Timestamp> {
    let ambiguous = zone.to_ambiguous_timestamp(local);
    match ambiguous.offset() {
        AmbiguousOffset::Unambiguous { offset } => offset.to_timestamp(local).ok(),
        AmbiguousOffset::Fold { before, .. } => before.to_timestamp(local).ok(),
        AmbiguousOffset::Gap { after, .. } => {
            let earlier = after.to_timestamp(local).ok()?;
            zone.following(earlier).next().map(|transition| transition.timestamp())
        }
    }
}
