//! The time of receipt, as it stands at the head of a record: `2026-11-25T10:32:00.123456Z`.
//!
//! Of fixed width, so that stamps sort as text. Years before 0 and behind 9999 do not occur: the
//! clock is cut off there.

use nix::time::{ClockId, clock_gettime};

/// Length of a stamp, in bytes.
pub(super) const STAMP_BYTES: usize = 27;

/// The last second of the year 9999, as seconds since 1970.
const SECOND_MAX: i64 = 253_402_300_799;
/// The first second of the year 0.
const SECOND_MIN: i64 = -62_167_219_200;

/// A point in time as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    /// The text; ASCII.
    pub(super) text: [u8; STAMP_BYTES],
    /// The same in whole seconds since 1970.
    pub(super) second: i64,
    /// And in microseconds.
    pub(super) micros: i64,
}

impl Stamp {
    /// The wall clock's time. A clock that cannot be read is at 1970.
    pub(super) fn now() -> Self {
        match clock_gettime(ClockId::CLOCK_REALTIME) {
            Ok(now) => Self::at(now.tv_sec(), now.tv_nsec()),
            Err(_) => Self::at(0, 0),
        }
    }

    /// A time given in seconds since 1970 and nanoseconds.
    pub(super) fn at(second: i64, nanosecond: i64) -> Self {
        let second = second.clamp(SECOND_MIN, SECOND_MAX);
        let (year, month, day) = civil(second.div_euclid(86_400));
        let in_day = second.rem_euclid(86_400);
        let micro = nanosecond.clamp(0, 999_999_999) / 1_000;
        let ([y1, y2], [y3, y4]) = (two(year / 100), two(year));
        let ([m1, m2], [d1, d2]) = (two(month), two(day));
        let ([h1, h2], [n1, n2]) = (two(in_day / 3_600), two(in_day % 3_600 / 60));
        let [s1, s2] = two(in_day % 60);
        let ([u1, u2], [u3, u4], [u5, u6]) = (two(micro / 10_000), two(micro / 100), two(micro));
        let text = [
            y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2, b'T', h1, h2, b':', n1, n2, b':', s1, s2,
            b'.', u1, u2, u3, u4, u5, u6, b'Z',
        ];
        Self { text, second, micros: second.saturating_mul(1_000_000).saturating_add(micro) }
    }
}

/// The last two digits of a number that is not negative.
fn two(number: i64) -> [u8; 2] {
    let digit = |n: i64| b'0' + u8::try_from(n % 10).unwrap_or(0);
    [digit(number / 10), digit(number)]
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar.
///
/// Years are counted from March, so that the leap day is the last of its year; 400 years are
/// 146,097 days.
fn civil(days: i64) -> (i64, i64, i64) {
    let from_march_0 = days + 719_468;
    let era = from_march_0.div_euclid(146_097);
    let day_of_era = from_march_0.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(second: i64, nanosecond: i64) -> String {
        String::from_utf8(Stamp::at(second, nanosecond).text.to_vec()).unwrap()
    }

    #[test]
    fn known_times_have_their_text() {
        assert_eq!(text(0, 0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(text(951_782_400, 123_456_789), "2000-02-29T00:00:00.123456Z");
        assert_eq!(text(1_795_602_720, 5_000), "2026-11-25T10:32:00.000005Z");
        assert_eq!(text(-1, 999_999_999), "1969-12-31T23:59:59.999999Z");
        assert_eq!(text(i64::MAX, 0), "9999-12-31T23:59:59.000000Z");
        assert_eq!(text(i64::MIN, 0), "0000-01-01T00:00:00.000000Z");
    }

    proptest! {
        #[test]
        fn jiff_writes_the_same(second in -62_000_000_000_i64..253_000_000_000, micro in 0..1_000_000_i64) {
            let time = jiff::Timestamp::new(second, 0).unwrap();
            let expected = format!("{}.{micro:06}Z", time.strftime("%Y-%m-%dT%H:%M:%S"));
            prop_assert_eq!(text(second, micro * 1_000), expected);
        }
    }
}
