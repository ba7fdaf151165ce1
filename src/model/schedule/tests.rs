//! The zones are written out, so that no zone file of a machine decides.

use jiff::Timestamp;
use proptest::prelude::*;

use super::*;

fn berlin() -> TimeZone {
    TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap()
}

fn sydney() -> TimeZone {
    TimeZone::posix("AEST-10AEDT,M10.1.0,M4.1.0/3").unwrap()
}

fn wall(text: &str) -> Wall {
    Wall(text.parse::<Timestamp>().unwrap().as_microsecond())
}

fn cron(text: &str) -> When {
    When::Schedule(Cron::parse(text).unwrap())
}

fn calendar(text: &str) -> When {
    When::Calendar(Calendar::parse(text).unwrap())
}

/// The due times after one moment and up to another, in UTC.
fn due(when: &When, zone: &TimeZone, from: &str, to: &str) -> Vec<String> {
    let (mut time, end) = (wall(from), wall(to));
    let mut all = Vec::new();
    while let Some(next) = when.next_after(time, zone).filter(|next| *next <= end) {
        assert!(next > time, "{next:?} is not after {time:?}");
        all.push(Timestamp::from_microsecond(next.0).unwrap().to_string());
        time = next;
    }
    all
}

#[test]
fn case_106_a_time_in_the_spring_gap_comes_at_its_end_and_the_day_goes_on() {
    let times =
        due(&calendar("*-*-* 02/4:30"), &sydney(), "2019-10-05T14:00:00Z", "2019-10-06T12:00:00Z");
    // 03:00 instead of 02:30; then 06:30, 10:30, 14:30, 18:30, 22:30 of Sydney's summer time.
    let expected = ["16:00", "19:30", "23:30"].map(|time| format!("2019-10-05T{time}:00Z"));
    let next = ["03:30", "07:30", "11:30"].map(|time| format!("2019-10-06T{time}:00Z"));
    assert_eq!(times, [expected, next].concat());
    let daily = due(&cron("0 2 * * *"), &sydney(), "2019-10-04T00:00:00Z", "2019-10-07T00:00:00Z");
    assert_eq!(daily, ["2019-10-04T16:00:00Z", "2019-10-05T16:00:00Z", "2019-10-06T15:00:00Z"]);
}

#[test]
fn case_107_the_hour_that_comes_twice_has_all_its_minutes_and_a_fixed_time_comes_once() {
    let (from, to) = ("2023-10-29T00:00:00Z", "2023-10-29T02:00:00Z");
    for minutely in [calendar("*:*:00"), cron("* * * * *"), calendar("minutely")] {
        assert_eq!(due(&minutely, &berlin(), from, to).len(), 120, "{minutely}");
    }
    for fixed in [calendar("02:30"), cron("30 2 * * *"), cron("30 2 29 10 *")] {
        assert_eq!(due(&fixed, &berlin(), from, to), ["2023-10-29T00:30:00Z"], "{fixed}");
    }
    let hourly = due(&cron("@hourly"), &berlin(), from, "2023-10-29T03:00:00Z");
    assert_eq!(hourly.len(), 3);
}

#[test]
fn two_times_in_one_gap_are_one() {
    let times =
        due(&cron("0,15,30 2 * * *"), &berlin(), "2026-03-28T12:00:00Z", "2026-03-29T12:00:00Z");
    assert_eq!(times, ["2026-03-29T01:00:00Z"]);
}

#[test]
fn words_names_lists_ranges_and_steps_mean_what_they_say() {
    let (from, to) = ("2026-11-25T12:00:00Z", "2026-12-25T12:00:00Z");
    for (one, other) in [
        (cron("@daily"), calendar("daily")),
        (cron("@weekly"), calendar("Sun 00:00")),
        (cron("0 9 * * mon-fri"), calendar("Mon..Fri 09:00")),
        (cron("0 9 * * MON-FRI"), calendar("monday..friday 09:00:00")),
        (cron("*/15 * * * *"), calendar("*:0/15")),
        (cron("5/20 3 * * *"), calendar("03:05/20")),
        (cron("0 0 * * 6,7"), calendar("Sat,Sun")),
        (cron("0 0 1,15 * *"), calendar("*-*-01,15")),
        (cron("0 0 24 dec *"), calendar("2026-12-24 00:00")),
        (cron("0 22 * * 5-7"), calendar("Fri..Sun 22:00")),
    ] {
        let times = due(&one, &TimeZone::UTC, from, to);
        assert!(!times.is_empty(), "{one}");
        assert_eq!(times, due(&other, &TimeZone::UTC, from, to), "{one} and {other}");
    }
    // In crontab(5) two restrictions of the day are two reasons; in a calendar expression they are
    // two conditions.
    assert_eq!(due(&cron("0 0 13 * fri"), &TimeZone::UTC, from, to).len(), 6);
    assert_eq!(due(&calendar("Fri *-*-13"), &TimeZone::UTC, from, to).len(), 0);
    assert_eq!(
        due(&calendar("12:00:00/20"), &TimeZone::UTC, from, "2026-11-25T13:00:00Z").len(),
        2
    );
}

#[test]
fn what_is_no_expression_is_said_to_be_none() {
    for (text, says) in [
        ("", "five fields"),
        ("* * * *", "not 4"),
        ("60 * * * *", "`60` is no minute"),
        ("* 24 * * *", "`24` is no hour"),
        ("* * 0 * *", "`0` is no day"),
        ("* * * 13 *", "`13` is no month"),
        ("* * * * 8", "`8` is no day of the week"),
        ("* * * * foo", "`foo` is no day of the week: a number from 0 to 7, or `sun`"),
        ("5-1 * * * *", "goes backwards"),
        ("*/0 * * * *", "`0` is no step"),
        ("*/x * * * *", "`x` is no step"),
        ("+5 * * * *", "`+5` is no minute"),
        ("1,,2 * * * *", "`` is no minute"),
        ("0 0 L * *", "`L` is no day"),
        ("@reboot", "once per boot"),
        ("@fortnightly", "none of @hourly"),
    ] {
        let error = Cron::parse(text).unwrap_err().to_string();
        assert!(error.contains(says), "{text}: {error}");
    }
    for (text, says) in [
        ("", "it is empty"),
        ("Foo 09:00", "`Foo` is no day of the week"),
        ("25:00", "`25` is no hour"),
        ("09", "`09` is not understood"),
        ("09:00 Europe/Berlin", "`timezone`"),
        ("*-02~01", "not known"),
        ("1-2-3-4 09:00", "is no date"),
        ("1969-01-01", "`1969` is no year"),
        ("1:2:3:4", "is no time"),
        ("2030..2026-12-24", "`2030..2026` of the year goes backwards"),
    ] {
        let error = Calendar::parse(text).unwrap_err().to_string();
        assert!(error.contains(says), "{text}: {error}");
    }
}

#[test]
fn what_never_comes_is_found_to_be_so() {
    let [past, no_leap_year] = ["2020,2022..2025-*-*", "2100-02-29"].map(calendar);
    for when in [cron("0 0 30 2 *"), past, no_leap_year, calendar("*-04-31")] {
        assert_eq!(when.next_after(wall("2026-01-01T00:00:00Z"), &berlin()), None, "{when}");
    }
    let leap =
        due(&cron("0 0 29 2 *"), &TimeZone::UTC, "2026-01-01T00:00:00Z", "2033-01-01T00:00:00Z");
    assert_eq!(leap, ["2028-02-29T00:00:00Z", "2032-02-29T00:00:00Z"]);
}

#[test]
fn a_year_may_be_far_away() {
    for (text, comes) in [
        ("2026-12-24 18:00", "2026-12-24T18:00:00Z"),
        ("2199,2198-*-*", "2198-01-01T00:00:00Z"),
        ("2100..2150-02-29", "2104-02-29T00:00:00Z"),
        ("Mon 2097..2199-02-29 01:02:03", "2112-02-29T01:02:03Z"),
        ("2027,2020..2024,2040-06-01", "2027-06-01T00:00:00Z"),
    ] {
        let found = calendar(text).next_after(wall("2026-01-01T00:00:00Z"), &TimeZone::UTC);
        assert_eq!(found, Some(wall(comes)), "{text}");
        assert!(calendar(text).next_after(Wall(0), &TimeZone::UTC).is_some(), "{text}");
    }
}

proptest! {
    /// Whatever day is named, in whatever zone, it comes, and nothing else does.
    #[test]
    fn a_named_day_comes_once(
        year in 1970..2200i16, month in 1..13i8, day in 1..29i8, hour in 0..24i8, from in 0i64..6_000_000_000
    ) {
        prop_assume!((year, month, day) > (1970, 1, 2));
        let when = calendar(&format!("{year}-{month}-{day} {hour}:00"));
        let comes = when.next_after(Wall(0), &TimeZone::UTC).unwrap();
        let local = TimeZone::UTC.to_datetime(Timestamp::from_microsecond(comes.0).unwrap());
        prop_assert_eq!((local.year(), local.month(), local.day(), local.hour()), (year, month, day, hour));
        let from = Wall(from * 1_000_000);
        prop_assert_eq!(when.next_after(from, &TimeZone::UTC), (comes > from).then_some(comes));
    }
}

#[test]
fn what_was_missed_is_told_by_the_latest_of_it() {
    let hourly = cron("0 * * * *");
    let zone = TimeZone::UTC;
    let (first, now) = (wall("2026-01-01T01:00:00Z"), wall("2026-01-01T05:30:00Z"));
    assert_eq!(hourly.latest(first, now, &zone), wall("2026-01-01T05:00:00Z"));
    assert_eq!(hourly.latest(first, first, &zone), first);
    let every = When::Every(Span::seconds(600));
    assert_eq!(every.latest(first, now, &zone), wall("2026-01-01T05:30:00Z"));
    assert_eq!(every.latest(first, Wall(now.0 - 1), &zone), wall("2026-01-01T05:20:00Z"));
    // After years nothing is counted, and no time is after the present.
    let minutely = cron("* * * * *");
    let late = wall("2036-01-01T00:00:30Z");
    assert!(minutely.latest(first, late, &zone) <= late);
}

#[test]
fn chance_is_the_same_for_one_due_time_and_fills_the_jitter() {
    let schedule = Schedule {
        when: cron("@daily"),
        timezone: None,
        jitter: Span::seconds(100),
        catch_up: false,
        overlap: Overlap::Skip,
    };
    let id = InstanceId::parse("backup").unwrap();
    let delay = |n: i64| schedule.delay(&id, Wall(n * 86_400_000_000));
    assert_eq!(delay(1), delay(1));
    let delays: Vec<Span> = (0..200).map(delay).collect();
    assert!(delays.iter().all(|delay| *delay <= Span::seconds(100)));
    for tenth in 0..10 {
        let range = Span::seconds(tenth * 10)..=Span::seconds(tenth * 10 + 10);
        assert!(delays.iter().any(|delay| range.contains(delay)), "{tenth}");
    }
}

#[test]
fn an_expression_survives_its_json() {
    for when in [cron("30 2 * * *"), calendar("Mon..Fri 09:00"), When::Every(Span::seconds(9))] {
        let json = serde_json::to_string(&when).unwrap();
        assert_eq!(serde_json::from_str::<When>(&json).unwrap(), when, "{json}");
    }
    assert!(serde_json::from_str::<When>(r#"{"schedule":"nonsense"}"#).is_err());
}

/// A field of a cron expression, with the numbers that it stands for.
fn field(first: u32, last: u32) -> impl Strategy<Value = (String, Vec<u32>)> {
    prop_oneof![
        2 => Just(("*".to_owned(), (first..=last).collect())),
        2 => (first..=last).prop_map(|n| (n.to_string(), vec![n])),
        1 => (first..=last, first..=last).prop_map(|(a, b)| {
            let (a, b) = (a.min(b), a.max(b));
            (format!("{a}-{b}"), (a..=b).collect())
        }),
        1 => (2..=last.min(20)).prop_map(move |step| {
            (format!("*/{step}"), (first..=last).step_by(step as usize).collect())
        }),
        1 => (first..=last, first..=last)
            .prop_map(|(a, b)| (format!("{a},{b}"), vec![a, b])),
    ]
}

proptest! {
    /// The next time is the first minute that fits, found by looking at each.
    #[test]
    fn the_next_time_is_the_first_that_fits(
        (minute, minutes) in field(0, 59),
        (hour, hours) in field(0, 23),
        (weekday, weekdays) in field(0, 6),
        start in 0i64..2_000_000,
        offset in -12i8..=12,
    ) {
        let zone = jiff::tz::Offset::constant(offset).to_time_zone();
        let text = format!("{minute} {hour} * * {weekday}");
        let start = Wall(start * 1_000_000_000 + 1_234_567);
        let found = cron(&text).next_after(start, &zone).unwrap();
        let fits = |minute_of: i64| {
            let time = Timestamp::from_second(minute_of * 60).unwrap();
            let local = zone.to_datetime(time);
            let is_in = |set: &[u32], n: i8| set.contains(&u32::try_from(n).unwrap());
            is_in(&minutes, local.minute())
                && is_in(&hours, local.hour())
                && is_in(&weekdays, local.weekday().to_sunday_zero_offset())
        };
        let first = start.0.div_euclid(60_000_000) + 1;
        let expected = (first..first + 8 * 1_440).find(|minute| fits(*minute)).unwrap();
        prop_assert_eq!(found, Wall(expected * 60_000_000), "{}", text);
    }

    /// Whatever the clocks do, times go forward, and every day that fits has one.
    #[test]
    fn a_daily_time_comes_every_day(hour in 0u32..24, minute in 0u32..60, start in 0i64..900) {
        for zone in [berlin(), sydney()] {
            let when = cron(&format!("{minute} {hour} * * *"));
            let mut time = Wall((20_000 + start) * 86_400_000_000);
            for _ in 0..30 {
                let next = when.next_after(time, &zone).unwrap();
                let hours = next.since(time).as_nanos() / 3_600_000_000_000;
                prop_assert!(next > time && hours <= 25, "{:?} {:?}", time, next);
                time = next;
            }
        }
    }

    #[test]
    fn no_text_is_too_strange(text in "\\PC{0,40}") {
        drop(Cron::parse(&text));
        drop(Calendar::parse(&text));
    }
}
