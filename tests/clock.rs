//! Cases CLOCK: the wall clock is stepped while units start, wait and stop. A library that is loaded
//! before the others tells opm another time than the kernel's.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::LazyLock;
use std::time::Duration;

use common::{World, now, skip};

/// `FAKE_CLOCK` names a file with eight bytes: how many seconds are added to the wall clock.
const LIBRARY: &str = r#"
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *step;

__attribute__((constructor)) static void open_step(void) {
    const char *path = getenv("FAKE_CLOCK");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *page = mmap(0, 8, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (page != MAP_FAILED) step = page;
}

int clock_gettime(clockid_t clock, struct timespec *out) {
    int result = syscall(SYS_clock_gettime, clock, out);
    int is_wall = clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE;
    if (result == 0 && step && is_wall) out->tv_sec += *step;
    return result;
}

int gettimeofday(struct timeval *restrict out, void *restrict zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    out->tv_sec = now.tv_sec;
    out->tv_usec = now.tv_nsec / 1000;
    return 0;
}

/* A timer on the wall clock is due by the clock that opm sees. */
int timerfd_settime(int fd, int flags, const struct itimerspec *new, struct itimerspec *old) {
    struct itimerspec real = *new;
    if (step && (flags & TFD_TIMER_ABSTIME) && real.it_value.tv_sec > *step)
        real.it_value.tv_sec -= *step;
    return syscall(SYS_timerfd_settime, fd, flags, &real, old);
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
"#;

const HOUR: i64 = 3600;

/// A namespace in which opm's wall clock can be stepped, and the file that does so.
fn stepped() -> Option<(World, File)> {
    let mut world = World::new()?;
    std::fs::write(world.path("clock.c"), LIBRARY).unwrap();
    let made = common::shell(world.dir.path(), "cc -O1 -shared -fPIC -o clock.so clock.c");
    if !made.status.success() {
        skip("no C compiler (cc) for a library that steps the clock");
        return None;
    }
    std::fs::write(world.path("step"), [0; 8]).unwrap();
    let clock = File::options().write(true).open(world.path("step")).unwrap();
    world.env.push(("LD_PRELOAD".to_owned(), world.path("clock.so").display().to_string()));
    world.env.push(("FAKE_CLOCK".to_owned(), world.path("step").display().to_string()));
    Some((world, clock))
}

fn set(clock: &File, seconds: i64) {
    clock.write_all_at(&seconds.to_ne_bytes(), 0).unwrap();
}

/// When the runs in the ledger began, by the wall clock, in microseconds.
fn walls(world: &World) -> Vec<i64> {
    let text = std::fs::read_to_string(world.ledger()).unwrap();
    let after = text.split("\"wall\":").skip(1);
    after.filter_map(|rest| rest.split([',', '}']).next()?.parse().ok()).collect()
}

/// A span in which opm may be late, and not early: the machine is busy.
fn assert_took(what: &str, took: Duration, millis: u64) {
    let (least, most) = (Duration::from_millis(millis), Duration::from_millis(millis + 10_000));
    assert!(took + Duration::from_millis(20) >= least && took < most, "{what}: {took:?}");
}

#[test]
fn case_103_a_stepped_clock_changes_no_wait() {
    let Some((mut world, clock)) = stepped() else { return };
    let restart = "restart: {policy: always, delay: 1s, factor: 1, jitter: 0}\n";
    let note = "cut -d' ' -f1 /proc/uptime >> $OPM_UNIT.starts; ";
    world.service("s", &format!("{note}sleep 0.5; exit 1"), restart);
    let late = "ready: {notify: true}\nstart_timeout: 1500ms\n";
    world.service("late", &format!("{note}exec sleep 1000"), &format!("{late}{restart}"));
    let stubborn = "trap '' TERM; echo > trap; while :; do sleep 0.05; done";
    world.service("stubborn", stubborn, "stop: {timeout: 1500ms}\n");
    world.service("soon", "exec sleep 1000", "ready: {delay: 1500ms}\n");
    world.run();
    let began = now();
    // In the middle of a start, a run and a backoff, back and forth.
    let mut at = 0;
    for n in 1..=6 {
        world.until("the next start", || world.lines("s.starts").len() >= n);
        for turn in [HOUR, -HOUR] {
            at = if n % 2 == 0 { turn } else { -turn };
            set(&clock, at);
            if n == 2 && turn == HOUR {
                world.until_phase("soon", "up");
                assert_took("ready after a delay", began.elapsed(), 1_500);
            }
            if turn == HOUR {
                world.until("its end", || world.phase("s") == "backoff");
            }
        }
    }
    // The one starts its half second when it has noted the time, the other's time begins before that.
    for (unit, millis) in [("s", 1_500), ("late", 2_000)] {
        let starts: Vec<f64> = world
            .lines(&format!("{unit}.starts"))
            .iter()
            .map(|line| line.parse().unwrap())
            .collect();
        assert!(starts.len() >= 3, "{unit}: {starts:?}");
        for (before, after) in starts.iter().zip(starts.iter().skip(1)) {
            assert_took(unit, Duration::from_secs_f64(after - before), millis);
        }
    }
    world.until("its trap", || world.path("trap").exists());
    for turn in [-HOUR, HOUR] {
        let began = now();
        let stop = world.begin(&["stop", "stubborn"]);
        world.until_phase("stubborn", "stopping");
        set(&clock, at + turn);
        assert_eq!(common::Said::of_child(stop).code, 0);
        assert_took("a stop", began.elapsed(), 1_500);
        std::fs::remove_file(world.path("trap")).unwrap();
        assert_eq!(world.opm(&["start", "stubborn"]).code, 0);
        world.until("its trap", || world.path("trap").exists());
    }
    // opm did see the clock go back and forth.
    let walls = walls(&world);
    let micros = HOUR * 1_000_000;
    let differ = |back: bool| {
        walls.iter().zip(walls.iter().skip(1)).any(|(before, after)| {
            if back { before - after > micros / 2 } else { after - before > micros / 2 }
        })
    };
    assert!(differ(true) && differ(false), "{walls:?}");
    assert_eq!(world.opm(&["shutdown"]).code, 0);
    assert_eq!(world.wait_run(), 0);
}

#[test]
fn case_104_a_clock_that_is_stepped_all_the_time_harms_nobody() {
    let Some((mut world, clock)) = stepped() else { return };
    let seed = std::env::var("OPM_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| u64::from(std::process::id()));
    eprintln!("seed {seed} (OPM_SEED runs it again)");
    let restart = "restart: {policy: always, delay: 50ms, factor: 1}\ninstances: 20\n";
    world.service("job", "sleep 0.1", restart);
    world.unit("talks", "shell: 'while :; do echo x; sleep 0.01; done'\nlogs: {max_size: 4K}\n");
    world.run();
    world.until("all to have begun", || world.rows().len() == 21);
    let daemon = world.daemon_pid();
    let restarts = |world: &World| -> Vec<u64> {
        let rows = world.rows();
        let jobs = rows.iter().filter(|row| row.get("unit").is_some_and(|unit| unit == "job"));
        jobs.filter_map(|row| row.get("restarts")?.as_u64()).collect()
    };
    let mut random = seed;
    let mut before = restarts(&world);
    for round in 0..20 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        // Up to a year to both sides, and before 1970 now and then.
        let seconds = i64::try_from(random >> 38).unwrap() - (1 << 25);
        set(&clock, if round % 5 == 4 { -3_000_000_000 } else { seconds });
        world.until("every job to run again", || {
            restarts(&world).iter().zip(&before).all(|(now, before)| now > before)
        });
        before = restarts(&world);
        assert_eq!(before.len(), 20, "round {round}, seed {seed}");
    }
    assert_eq!(world.daemon_pid(), daemon);
    assert!(!world.log().contains("opm itself failed"), "{}", world.log());
    let said = world.opm(&["logs", "-n", "5", "talks"]);
    assert_eq!((said.code, said.out.lines().count()), (0, 5), "{said:?}");
    assert_eq!(world.opm(&["shutdown"]).code, 0);
    assert_eq!(world.wait_run(), 0);
}

/// The day after the one on which the test began: what is due on it was not before opm began.
fn tomorrow() -> jiff::civil::Date {
    static DATE: LazyLock<jiff::civil::Date> = LazyLock::new(|| {
        let real = jiff::Timestamp::now().to_zoned_datetime(jiff::tz::TimeZone::UTC);
        real.date().tomorrow().unwrap()
    });
    *DATE
}

/// Sets opm's wall clock to a time of that day.
fn set_unseen(clock: &File, time: &str) {
    let wanted: jiff::Timestamp = format!("{}T{time}Z", tomorrow()).parse().unwrap();
    set(clock, wanted.as_second() - jiff::Timestamp::now().as_second());
}

/// The same, and lets opm see it. The real kernel would wake it.
fn set_time(world: &World, clock: &File, time: &str) {
    set_unseen(clock, time);
    // Whatever it is told makes it look at the clock.
    assert_eq!(world.opm(&["save"]).code, 0);
}

/// A namespace with one task that is due at noon.
fn at_noon(keys: &str) -> Option<(World, File)> {
    let (mut world, clock) = stepped()?;
    world.env.push(("TZ".to_owned(), "UTC".to_owned()));
    world.task("noon", "echo x >> runs", &format!("schedule: '0 12 * * *'\n{keys}"));
    world.unit("other", "command: [sleep, '1000']\n");
    // Whatever time it is now: no noon comes before that one.
    set_unseen(&clock, "09:00:00");
    world.run();
    world.until_phase("other", "up");
    set_time(&world, &clock, "10:00:00");
    Some((world, clock))
}

#[test]
fn case_109_a_schedule_follows_the_clock_and_runs_once_for_each_due_time() {
    let Some((world, clock)) = at_noon("") else { return };
    assert_eq!(world.lines("runs").len(), 0);
    let next = world.row("noon")["next_run"].as_str().unwrap().to_owned();
    assert!(next.ends_with("T12:00:00+00:00"), "{next}");
    set_time(&world, &clock, "11:59:58");
    world.until("the run at noon", || world.phase("noon") == "done");
    assert_eq!(world.lines("runs").len(), 1);
    // Back, and over noon again: it was served.
    set_time(&world, &clock, "11:00:00");
    let next = world.row("noon")["next_run"].as_str().unwrap().to_owned();
    assert!(next.ends_with("T12:00:00+00:00"), "{next}");
    set_time(&world, &clock, "11:59:58");
    let again = || world.lines("runs").len() > 1;
    common::watch_for(Duration::from_secs(4), again, "a second run for the same noon");
    assert_eq!(world.opm(&["shutdown"]).code, 0);
}

#[test]
fn a_due_time_that_was_missed_is_made_up_for_once_or_passed_over() {
    for (keys, runs) in [("catch_up: true\n", 1), ("catch_up: false\n", 0)] {
        let Some((mut world, clock)) = at_noon(keys) else { return };
        assert_eq!(world.opm(&["shutdown"]).code, 0);
        assert_eq!(world.wait_run(), 0);
        // As after a reboot: what was let run is not known any more.
        std::fs::remove_dir_all(world.root().join("run")).unwrap();
        let later: jiff::Timestamp = format!("{}T15:30:00Z", tomorrow()).parse().unwrap();
        set(&clock, later.as_second() - jiff::Timestamp::now().as_second());
        world.run();
        world.until_phase("other", "up");
        world.until("it to be due later", || {
            let row = world.row("noon");
            row["next_run"].is_string() && row["phase"] == if runs == 1 { "done" } else { "down" }
        });
        assert_eq!(world.lines("runs").len(), runs, "{keys}{}", world.log());
        let next = world.row("noon")["next_run"].as_str().unwrap().to_owned();
        let day_after = tomorrow().tomorrow().unwrap();
        assert_eq!(next, format!("{day_after}T12:00:00+00:00"));
        // Another start of opm makes up for nothing.
        world.crash();
        world.run();
        world.until_phase("other", "up");
        assert_eq!(world.lines("runs").len(), runs, "{keys}{}", world.log());
        assert_eq!(world.opm(&["shutdown"]).code, 0);
    }
}

#[test]
fn a_due_time_of_just_now_is_served_whatever_was_missed_before_it() {
    let Some((mut world, clock)) = at_noon("") else { return };
    world.task("minutely", "echo x >> minutes", "schedule: '* * * * *'\n");
    world.apply(0);
    assert_eq!(world.opm(&["shutdown"]).code, 0);
    assert_eq!(world.wait_run(), 0);
    let before = world.lines("minutes").len();
    let later: jiff::Timestamp = format!("{}T15:30:10Z", tomorrow()).parse().unwrap();
    set(&clock, later.as_second() - jiff::Timestamp::now().as_second());
    world.run();
    world.until("the run of now", || world.lines("minutes").len() == before + 1);
    assert_eq!(world.lines("runs").len(), 0, "that of noon was missed");
    assert_eq!(world.opm(&["shutdown"]).code, 0);
}

#[test]
fn a_jitter_that_changes_changes_the_next_run() {
    let Some((world, _clock)) = at_noon("jitter: 2h\n") else { return };
    let next = || world.row("noon")["next_run"].as_str().unwrap().to_owned();
    let jittered = next();
    world.task("noon", "echo x >> runs", "schedule: '0 12 * * *'\n");
    world.apply(0);
    assert!(next().ends_with("T12:00:00+00:00"), "{}", next());
    assert_ne!(next(), jittered);
    assert_eq!(world.opm(&["shutdown"]).code, 0);
}

#[test]
fn an_interval_is_as_long_as_before_when_the_clock_is_set() {
    let Some((mut world, clock)) = stepped() else { return };
    world.task("tick", "echo x >> runs", "every: 1s\n");
    let began = now();
    world.run();
    for (n, turn) in [-HOUR, HOUR, -3 * HOUR].into_iter().enumerate() {
        let before = world.lines("runs").len();
        world.until("a run", || world.lines("runs").len() > before);
        set(&clock, turn);
        assert_eq!(world.opm(&["save"]).code, 0);
        let before = world.lines("runs").len();
        world.until("a run by the other clock", || world.lines("runs").len() > before + 1);
        // The next supervisor does not count the hour either.
        world.crash();
        world.run();
        let before = world.lines("runs").len();
        world.until("a run after a crash", || world.lines("runs").len() > before);
        let (runs, passed) = (world.lines("runs").len() as u64, began.elapsed().as_secs());
        assert!(runs <= passed, "turn {n}: {runs} runs in {passed} s");
    }
    assert_eq!(world.opm(&["shutdown"]).code, 0);
}
