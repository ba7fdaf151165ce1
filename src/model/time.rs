//! Points and lengths of time. Nothing here reads a clock: time is always an argument.

use std::fmt;

use serde::{Deserialize, Serialize};

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// A length of time, in nanoseconds. [`Span::FOREVER`] never passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct Span(u64);

/// Why a text is not a length of time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SpanError {
    /// A number without a unit: opm does not guess between seconds and milliseconds.
    NoUnit,
    /// Not a sequence of number and unit.
    Malformed,
    /// Longer than fits.
    TooLong,
}

impl fmt::Display for SpanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoUnit => "a duration needs a unit, as in `500ms`, `10s`, `2m`, `1h30m`",
            Self::Malformed => "not a duration; write it as `500ms`, `10s`, `2m`, `1h30m`, `1d`",
            Self::TooLong => "a duration longer than 500 years",
        })
    }
}

impl std::error::Error for SpanError {}

impl Span {
    /// No time at all.
    pub const ZERO: Self = Self(0);
    /// Longer than any wait.
    pub const FOREVER: Self = Self(u64::MAX);

    /// So many milliseconds.
    pub const fn millis(n: u64) -> Self {
        Self(n.saturating_mul(1_000_000))
    }

    /// So many seconds.
    pub const fn seconds(n: u64) -> Self {
        Self(n.saturating_mul(NANOS_PER_SECOND))
    }

    /// So many nanoseconds.
    pub const fn nanos(n: u64) -> Self {
        Self(n)
    }

    /// The length in whole nanoseconds.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The length in whole milliseconds, rounded up, so that a wait never ends early.
    pub const fn as_millis_up(self) -> u64 {
        self.0.div_ceil(1_000_000)
    }

    /// Multiplies by a factor that is not negative; stops at [`Span::FOREVER`].
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a float cast saturates, and a delay needs no nanosecond"
    )]
    pub fn scale(self, factor: f64) -> Self {
        Self((self.0 as f64 * factor) as u64)
    }

    /// This length and another one.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// What is left of this length without another.
    #[must_use]
    pub fn less(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// An equal share of this length for each of `parts`, at least one.
    #[must_use]
    pub fn share(self, parts: u32) -> Self {
        Self(self.0 / u64::from(parts.max(1)))
    }

    /// The whole length in units of its own, so that [`Span::parse`] reads the same: `1h30m5s`, `1500ms`.
    pub fn in_full(self) -> String {
        if self == Self::FOREVER || self == Self::ZERO {
            return self.to_string();
        }
        let mut units = ["d", "h", "m", "s", "ms", "µs", "ns"].as_slice();
        // Less than a minute with a part of a second is one number, as people write it.
        if self < Self::seconds(60) && !self.0.is_multiple_of(NANOS_PER_SECOND) {
            let is_whole =
                |unit: &str| unit_nanos(unit).is_some_and(|nanos| self.0.is_multiple_of(nanos));
            let whole = units.iter().position(|unit| is_whole(unit));
            units = whole.and_then(|at| units.get(at..)).unwrap_or(units);
        }
        let mut rest = self.0;
        let mut text = String::new();
        for (unit, nanos) in units.iter().filter_map(|unit| Some((unit, unit_nanos(unit)?))) {
            let (count, left) = (rest / nanos, rest % nanos);
            if count > 0 {
                text.push_str(&count.to_string());
                text.push_str(unit);
            }
            rest = left;
        }
        text
    }

    /// Reads `500ms`, `10s`, `1h30m`. A bare number is refused, but `0` is clear without a unit.
    pub fn parse(text: &str) -> Result<Self, SpanError> {
        let text = text.trim();
        if text == "0" {
            return Ok(Self::ZERO);
        }
        if !text.is_empty() && text.chars().all(|c| c.is_ascii_digit() || c == '.') {
            return Err(SpanError::NoUnit);
        }
        let mut total = 0u64;
        let mut rest = text;
        if rest.is_empty() {
            return Err(SpanError::Malformed);
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or(SpanError::NoUnit)?;
            let (number, tail) = rest.split_at(digits);
            if number.is_empty() {
                return Err(SpanError::Malformed);
            }
            let letters =
                tail.find(|c: char| !c.is_ascii_alphabetic() && c != 'µ').unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(letters);
            let nanos = unit_nanos(unit).ok_or(SpanError::Malformed)?;
            let number: u64 = number.parse().map_err(|_| SpanError::TooLong)?;
            let part = number.checked_mul(nanos).ok_or(SpanError::TooLong)?;
            total = total.checked_add(part).ok_or(SpanError::TooLong)?;
            rest = tail.trim_start();
        }
        Ok(Self(total))
    }
}

/// Nanoseconds in a unit of time, by its name in unit files.
fn unit_nanos(unit: &str) -> Option<u64> {
    Some(match unit {
        "ns" => 1,
        "us" | "µs" => 1_000,
        "ms" => 1_000_000,
        "s" | "sec" => NANOS_PER_SECOND,
        "m" | "min" => 60 * NANOS_PER_SECOND,
        "h" => 3_600 * NANOS_PER_SECOND,
        "d" => 86_400 * NANOS_PER_SECOND,
        _ => return None,
    })
}

impl fmt::Display for Span {
    /// The two largest units, as people say it: `1h30m`, `2.5s`, `300ms`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::FOREVER {
            return f.write_str("never");
        }
        let millis = self.0 / 1_000_000;
        let seconds = millis / 1_000;
        if self.0 == 0 {
            f.write_str("0s")
        } else if millis == 0 {
            write!(f, "{}µs", (self.0 / 1_000).max(1))
        } else if seconds == 0 {
            write!(f, "{millis}ms")
        } else if seconds < 60 {
            match millis % 1_000 / 100 {
                0 => write!(f, "{seconds}s"),
                tenths => write!(f, "{seconds}.{tenths}s"),
            }
        } else {
            let (days, hours, minutes) =
                (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
            match (days, hours, minutes, seconds % 60) {
                (0, 0, m, 0) => write!(f, "{m}m"),
                (0, 0, m, s) => write!(f, "{m}m{s}s"),
                (0, h, 0, _) => write!(f, "{h}h"),
                (0, h, m, _) => write!(f, "{h}h{m}m"),
                (d, 0, _, _) => write!(f, "{d}d"),
                (d, h, _, _) => write!(f, "{d}d{h}h"),
            }
        }
    }
}

/// A point on `CLOCK_MONOTONIC`: counts from boot, never steps, the same for all processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct Monotonic(u64);

impl Monotonic {
    /// So many nanoseconds after the clock's beginning.
    pub const fn from_nanos(n: u64) -> Self {
        Self(n)
    }

    /// The point `span` later; stays at the end of time.
    #[must_use]
    pub const fn after(self, span: Span) -> Self {
        Self(self.0.saturating_add(span.0))
    }

    /// How long after `earlier` this is; zero if it is not.
    pub const fn since(self, earlier: Self) -> Span {
        Span(self.0.saturating_sub(earlier.0))
    }

    /// Nanoseconds since the clock's beginning.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }
}

/// A point on the wall clock, in microseconds since 1970; for people's eyes and schedules only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct Wall(pub i64);

impl Wall {
    /// The time so much later; `None` past the end of time.
    pub fn after(self, span: Span) -> Option<Self> {
        let micros = i64::try_from(span.0 / 1_000).ok()?;
        self.0.checked_add(micros).map(Self)
    }

    /// The time so much earlier.
    #[must_use]
    pub fn before(self, span: Span) -> Self {
        Self(self.0.saturating_sub(i64::try_from(span.0 / 1_000).unwrap_or(i64::MAX)))
    }

    /// How long after `earlier` this is; nothing if it is not.
    pub fn since(self, earlier: Self) -> Span {
        let micros = u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0);
        Span(micros.saturating_mul(1_000))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_printed() {
        for (text, span, print) in [
            ("500ms", Span::millis(500), "500ms"),
            ("10s", Span::seconds(10), "10s"),
            ("08s", Span::seconds(8), "8s"),
            ("1h30m", Span::seconds(5400), "1h30m"),
            ("1h 30m", Span::seconds(5400), "1h30m"),
            ("2min", Span::seconds(120), "2m"),
            ("1d", Span::seconds(86_400), "1d"),
            ("1500ms", Span::millis(1500), "1.5s"),
            ("90s", Span::seconds(90), "1m30s"),
            ("0", Span::ZERO, "0s"),
            ("7us", Span::nanos(7_000), "7µs"),
        ] {
            assert_eq!(Span::parse(text), Ok(span), "{text}");
            assert_eq!(span.to_string(), print, "{text}");
            assert_eq!(Span::parse(&span.in_full()), Ok(span), "{text}");
        }
        let odd = Span::parse("1d1h30m5s7ms8us9ns").unwrap();
        assert_eq!(
            (odd.in_full().as_str(), Span::parse(&odd.in_full())),
            ("1d1h30m5s7ms8µs9ns", Ok(odd))
        );
        assert_eq!(Span::FOREVER.in_full(), "never");
        assert_eq!(Span::millis(1_500).in_full(), "1500ms");
        assert_eq!(Span::millis(90_500).in_full(), "1m30s500ms");
    }

    #[test]
    fn a_duration_without_a_unit_is_refused() {
        for text in ["10", "1.5", "1h30"] {
            assert_eq!(Span::parse(text), Err(SpanError::NoUnit), "{text}");
        }
        for text in ["", "s", "10 weeks", "-5s", "1x"] {
            assert_eq!(Span::parse(text), Err(SpanError::Malformed), "{text}");
        }
        assert_eq!(Span::parse("99999999999999d"), Err(SpanError::TooLong));
    }

    #[test]
    fn time_never_wraps() {
        let end = Monotonic::from_nanos(5).after(Span::FOREVER);
        assert_eq!(end.after(Span::seconds(1)), end);
        assert_eq!(Monotonic::from_nanos(3).since(Monotonic::from_nanos(9)), Span::ZERO);
        assert_eq!(Span::seconds(1).scale(2.5), Span::millis(2500));
        assert_eq!(Span::FOREVER.scale(2.0), Span::FOREVER);
        assert_eq!(Span::seconds(1).as_millis_up(), 1000);
        assert_eq!(Span::nanos(1).as_millis_up(), 1);
    }
}
