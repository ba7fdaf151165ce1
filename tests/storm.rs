//! `kill -9` of the supervisor and of the log keeper, at random, again and again, while services
//! write numbered lines and some of them crash: each run runs once, and each line is kept once.
//!
//! 200 kills in plain `cargo test`, 1,000 with `OPM_TESTS=all`. The seed is printed; `OPM_SEED` runs
//! it again, as far as the machine's own timing allows.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::time::Duration;

use common::random::Random;
use common::{World, in_shell, witness};
use opm::logs::{self, Query};

/// How many lines a run writes that ends by itself.
const LINES: u64 = 7;
/// Those that write for as long as they run.
const STEADY: [&str; 2] = ["steady-a", "steady-b"];
/// Those that end after some lines: by themselves, and by a signal.
const CRASHING: [&str; 2] = ["exits", "dies"];
/// Longest time that a supervisor lives, in microseconds, where a boot does not take long.
const LIFE_MICROS: u64 = 80_000;

const RESTART: &str = "restart: {policy: always, delay: 20ms, max_delay: 100ms}\n";

/// Sets `run` to the number of this run, and `line` to what writes the next line of it.
fn numbered(name: &str) -> String {
    witness(name)
        + &format!(
            "run=$(wc -l < {name}.starts); n=0; \
             line() {{ n=$((n+1)); echo \"{name} run $run line $n.\"; }}; "
        )
}

fn write_units(world: &World) {
    for name in STEADY {
        let script = numbered(name)
            + &format!(
                "trap 'trap \"\" TERM; echo \"$run $n\" > {name}.last; exit 0' TERM; \
                 while :; do line; line; line; sleep 0.02; done"
            );
        world.unit(name, &(in_shell(&script) + RESTART + "stop: {signal: TERM, to: main}\n"));
    }
    for (name, end) in CRASHING.into_iter().zip(["exit 3", "kill -9 $$"]) {
        let lines = "line; ".repeat(usize::try_from(LINES).unwrap());
        let script = numbered(name) + &lines + "sleep 0.1; " + end;
        // A log of many small files.
        world.unit(name, &(in_shell(&script) + RESTART + "logs: {max_size: 16K, keep: 1000}\n"));
    }
}

fn keeper(world: &World) -> Option<i32> {
    let is_keeper =
        |pid: &i32| world.alive(*pid) && world.command_line(*pid).contains("log-keeper");
    world.pids().into_iter().find(is_keeper)
}

#[test]
fn no_run_is_doubled_and_no_line_is_lost_by_a_storm_of_kills() {
    let Some(mut world) = World::new() else { return };
    write_units(&world);
    let mut random = Random::new();
    let kills = if common::tests_all() { 1_000 } else { 200 };
    let (mut supervisors, mut keepers) = (0, 0);
    let began = common::now();
    world.run_with(&["run", "--quiet", "units"]);
    let names = || STEADY.iter().chain(&CRASHING);
    world.until("all to have begun", || {
        names().all(|name| !world.lines(&format!("{name}.starts")).is_empty())
    });
    let boot = u64::try_from(began.elapsed().as_micros()).unwrap();
    let longest = LIFE_MICROS.max(2 * boot);
    while supervisors + keepers < kills {
        let life = Duration::from_micros(random.below(longest));
        common::watch_for(life, || false, "");
        // One that is killed again within a second comes back later each time: not too often.
        if random.below(12) == 0
            && let Some(pid) = keeper(&world).and_then(|pid| world.host_pid(pid))
        {
            let pid = nix::unistd::Pid::from_raw(pid);
            keepers += usize::from(nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL).is_ok());
            continue;
        }
        world.crash_if_any();
        supervisors += 1;
        world.run_with(&["run", "--quiet", "units"]);
        let doubles = world.read("doubles");
        assert_eq!(doubles, "", "seed {}, kill {}", random.seed, supervisors + keepers);
    }
    let took = began.elapsed();
    world.until("all to run", || {
        keeper(&world).is_some() && STEADY.iter().all(|name| world.phase(name) == "up")
    });
    world.assert_no_doubles();
    let said = world.opm(&["shutdown"]);
    assert_eq!(said.code, 0, "{said:?}\n{}", world.log());
    world.wait_run();

    let mut figures = Vec::new();
    for name in STEADY {
        let last = world.read(&format!("{name}.last"));
        let (run, line) = last.trim().split_once(' ').unwrap();
        assert_eq!(run, "1", "{name} was never started again");
        let line = line.parse().unwrap();
        figures.push(check(&world, name, |_, at| at < line, (1, line)));
    }
    for name in CRASHING {
        let runs = world.lines(&format!("{name}.starts")).len() as u64;
        assert!(runs > 20, "{name} ran {runs} times");
        // The last one was ended by the shutdown, anywhere.
        figures.push(check(&world, name, |_, at| at < LINES, (runs, 0)));
    }
    eprintln!(
        "seed {}: {supervisors} kills of the supervisor and {keepers} of the log keeper in {took:?}",
        random.seed
    );
    for Kept { name, lines, missing, gaps } in figures {
        eprintln!(
            "{name}: {lines} lines kept, {missing} missing in {gaps} gaps that the log tells of"
        );
    }
}

#[derive(Default)]
struct Kept {
    name: String,
    lines: u64,
    missing: u64,
    gaps: u64,
}

/// Every line follows the one before: the next of the same run while `goes_on`, else the first of
/// the next run. What is missing is missing behind a record of opm's own, and up to `last` all came.
fn check(world: &World, name: &str, goes_on: impl Fn(u64, u64) -> bool, last: (u64, u64)) -> Kept {
    let dir = world.root().join("log");
    let query = Query::of(&dir, &[name]);
    let mut kept = Kept { name: name.to_owned(), ..Kept::default() };
    let (mut before, mut told) = ((1, 0), false);
    logs::read(&query, None, &mut |record| {
        if record.stream == logs::record::STREAM_OPM {
            told = true;
            return Ok(());
        }
        let text = String::from_utf8_lossy(&record.bytes).into_owned();
        let Some(found) = parse(name, &text) else {
            assert!(told, "{name}: `{text}` is no line, and nothing says why");
            return Ok(());
        };
        let (run, line) = before;
        let next = if goes_on(run, line) { (run, line + 1) } else { (run + 1, 1) };
        assert!(found == next || (told && found > next), "{name}: {found:?} after {before:?}");
        if found != next {
            kept.gaps += 1;
            kept.missing +=
                if found.0 == next.0 { found.1 - next.1 } else { (found.0 - next.0) * LINES };
        }
        kept.lines += 1;
        (before, told) = (found, false);
        Ok(())
    })
    .unwrap();
    // A crashing one may have been ended before its first line.
    let is_last = before == last || (last.1 == 0 && before.0 + 1 >= last.0);
    assert!(is_last || told, "{name}: the last is {before:?}, and {last:?} was written");
    kept
}

/// Run and line of `NAME run N line N.`.
fn parse(name: &str, text: &str) -> Option<(u64, u64)> {
    let rest = text.strip_prefix(name)?.strip_prefix(" run ")?.strip_suffix('.')?;
    let (run, line) = rest.split_once(" line ")?;
    Some((run.parse().ok()?, line.parse().ok()?))
}
