//! Points in time as people write them: `today`, `10:00`, `1h`, `1h ago`, RFC 3339.

use jiff::civil::{Date, DateTime, Time};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ZonedDateTime};

use crate::model::Span;

/// What is understood, for the message about what is not.
const FORMS: &str = "`2026-11-26T10:00:00Z`, `2026-11-26 10:00`, `2026-11-26`, `10:00`, `today`, `yesterday`, \
     `now`, `1h`, `-1h` or `1h ago`";
/// A day with a time of day, with and without seconds.
const DATE_TIMES: [&str; 4] =
    ["%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M"];
/// A time of day.
const TIMES: [&str; 2] = ["%H:%M:%S%.f", "%H:%M"];

/// The time that a text means at this moment, in this time zone, as logs are stamped. A duration is
/// a time before now; a time of day is today's.
pub(super) fn parse(text: &str, now: Timestamp, zone: &TimeZone) -> Result<String, String> {
    stamp(moment(text, now, zone)?).ok_or_else(|| bad(text))
}

/// The same as a time.
pub(super) fn moment(text: &str, now: Timestamp, zone: &TimeZone) -> Result<Timestamp, String> {
    point(text.trim(), now, zone).ok_or_else(|| bad(text))
}

fn bad(text: &str) -> String {
    format!("`{text}` is no time; write it as {FORMS}")
}

/// A time as it stands at the head of a record.
pub(super) fn stamp(time: Timestamp) -> Option<String> {
    let year = time.to_zoned_datetime(TimeZone::UTC).year();
    // The stamps of logs have years of four digits.
    (0..=9999).contains(&year).then(|| time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string())
}

fn point(text: &str, now: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Some(time);
    }
    let today = now.to_zoned_datetime(zone.clone());
    let begin = |day: ZonedDateTime| Some(day.start_of_day().ok()?.timestamp());
    match text {
        "now" => return Some(now),
        "today" => return begin(today),
        "yesterday" => return begin(today.yesterday().ok()?),
        _ => {}
    }
    let of = |time: DateTime| Some(time.to_zoned_datetime(zone.clone()).ok()?.timestamp());
    if let Some(time) = DATE_TIMES.iter().find_map(|form| DateTime::strptime(form, text).ok()) {
        return of(time);
    }
    if let Ok(date) = Date::strptime("%Y-%m-%d", text) {
        return of(date.to_datetime(Time::midnight()));
    }
    if let Some(time) = TIMES.iter().find_map(|form| Time::strptime(form, text).ok()) {
        return of(today.date().to_datetime(time));
    }
    let before = text.strip_prefix('-').or_else(|| text.strip_suffix(" ago")).unwrap_or(text);
    let span = Span::parse(before.trim()).ok()?;
    let micros = i64::try_from(span.as_nanos() / 1_000).ok()?;
    Timestamp::from_microsecond(now.as_microsecond().checked_sub(micros)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_what_people_mean_by_it() {
        let now: Timestamp = "2026-11-26T10:32:00.5Z".parse().unwrap();
        let zone = TimeZone::get("Europe/Berlin").unwrap_or(TimeZone::fixed(jiff::tz::offset(1)));
        for (text, expected) in [
            ("2026-11-26T10:00:00Z", "2026-11-26T10:00:00.000000Z"),
            ("2026-11-26T10:00:00.25+01:00", "2026-11-26T09:00:00.250000Z"),
            ("2026-11-26 10:00", "2026-11-26T09:00:00.000000Z"),
            ("2026-11-26T10:00:07.5", "2026-11-26T09:00:07.500000Z"),
            ("2026-11-25", "2026-11-24T23:00:00.000000Z"),
            ("10:00", "2026-11-26T09:00:00.000000Z"),
            ("23:59:59", "2026-11-26T22:59:59.000000Z"),
            ("today", "2026-11-25T23:00:00.000000Z"),
            ("yesterday", "2026-11-24T23:00:00.000000Z"),
            ("now", "2026-11-26T10:32:00.500000Z"),
            ("-1h", "2026-11-26T09:32:00.500000Z"),
            ("1h ago", "2026-11-26T09:32:00.500000Z"),
            ("1h30m", "2026-11-26T09:02:00.500000Z"),
            ("90s", "2026-11-26T10:30:30.500000Z"),
        ] {
            assert_eq!(parse(text, now, &zone).as_deref(), Ok(expected), "{text}");
        }
        for text in ["", "soon", "25:00", "2026-13-01", "1", "10", "-", "ago", "1h later"] {
            let error = parse(text, now, &zone).unwrap_err();
            assert!(error.starts_with(&format!("`{text}` is no time; write it as")), "{error}");
            assert!(error.ends_with(" `now`, `1h`, `-1h` or `1h ago`"), "{error}");
        }
    }
}
