//! Crash at every system call: the supervisor, or the log keeper, is killed at each stop of an
//! operation, and another one takes over. Nothing may run twice, and nothing may be lost.
//!
//! In plain `cargo test` every so many-th stop is taken, from an offset that the seed gives
//! (`OPM_SEED` runs it again); with `OPM_TESTS=all` every one.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test stops at the first surprise")]
#![expect(clippy::print_stderr, reason = "figures and seeds are printed")]
#![expect(clippy::disallowed_methods, reason = "tests run programs, and wait for them")]

mod common;
#[path = "trace/tracer.rs"]
mod tracer;

use std::collections::BTreeMap;
use std::process::Child;

use common::{Said, World, skip, witness};
use opm::logs::{self, Query};
use opm::model::{Desired, UnitName};
use tracer::{End, Traced};

/// A world in which processes can be traced.
fn world() -> Option<World> {
    if !tracer::is_allowed() {
        skip("processes may not be traced here");
        return None;
    }
    World::new()
}

/// After how many stops to kill, one after the other: every `step`-th, or all of them.
fn stops(step: u64) -> impl Iterator<Item = u64> {
    let step = if common::tests_all() { 1 } else { step };
    let mut random = common::Random::new();
    let offset = random.below(step);
    (0..).map(move |number| offset + number * step)
}

/// What is on the disk now: what the supervisor that is dead has left.
fn saved(world: &World) -> Desired {
    let bytes = std::fs::read(world.root().join("state/desired.json"))
        .or_else(|_| std::fs::read(world.root().join("state/desired.previous.json")));
    opm::system::decode_saved(&bytes.unwrap()).unwrap()
}

fn is_held(world: &World, unit: &str) -> bool {
    saved(world).units[&UnitName::parse(unit).unwrap()].hold.is_some()
}

/// Traces the supervisor while `client` asks it for something, and kills it.
fn kill_in(
    world: &mut World,
    stops: u64,
    args: &[&str],
    mut is_done: impl FnMut(&World) -> bool,
) -> (End, Said) {
    let pid = world.host_pid(world.daemon_pid().unwrap()).unwrap();
    let traced = Traced::seize(pid);
    let mut client: Child = world.begin(args);
    let end = traced.kill_after(stops, || client.try_wait().unwrap().is_some() && is_done(world));
    (end, Said::of_child(client))
}

/// The next supervisor.
fn take_over(world: &World, at: &str) {
    let said = world.opm(&["daemon"]);
    assert_eq!(said.code, 0, "{at}: {said:?}\n{}", world.log());
}

/// Every line of an instance's log, in order.
fn log_of(world: &World, instance: &str) -> Vec<String> {
    let dir = world.root().join("log");
    let query = Query { dir, instances: vec![instance.to_owned()], lines: None, follow: false };
    let mut lines = Vec::new();
    logs::read(&query, None, &mut |record| {
        lines.push(String::from_utf8_lossy(&record.bytes).into_owned());
        Ok(())
    })
    .unwrap();
    lines
}

/// Nothing runs but the units that are up, the supervisor and its log keeper.
fn until_nobody_is_left_over(world: &World, at: &str) {
    let left = || {
        let up: Vec<i32> = world.rows().iter().filter_map(|row| row["pid"].as_i64()).map(|pid| i32::try_from(pid).unwrap()).collect();
        let daemon = world.daemon_pid();
        let is_known = |pid: &i32| {
            let session = world.session(*pid);
            let is_keeper = world.command_line(*pid).contains("log-keeper");
            *pid <= 2 || Some(*pid) == daemon || is_keeper || up.iter().any(|one| Some(*one) == session)
        };
        let all = world.pids().into_iter().filter(|pid| world.alive(*pid));
        all.filter(|pid| !is_known(pid)).map(|pid| (pid, world.command_line(pid))).collect::<Vec<_>>()
    };
    let mut found = Vec::new();
    if !common::comes_true(|| {
        found = left();
        found.is_empty()
    }) {
        panic!("{at}: nobody owns {found:?}\n{}", world.log());
    }
}

/// A service with a hook, that says that it is ready, and writes to its log.
fn talker() -> String {
    let hook = witness("hook") + "echo \"$$ hook\"";
    let main = witness("x")
        + "echo \"$$ one\"; echo \"$$ two\"; \
           trap 'trap \"\" TERM; echo \"$$ bye\"; echo $$ >> x.ends; exit 0' TERM; \
           echo \"$$ three\"; echo >&3; exec 3>&-; sleep 1000 & wait $!";
    format!(
        "command: [sh, -c, {}]\nworking_dir: ..\nready: {{fd: 3}}\nstart_timeout: 8s\n\
         pre_start: [[sh, -c, {}]]\n\
         restart: {{policy: always, delay: 20ms, max_delay: 100ms}}\n",
        serde_json::to_string(&main).unwrap(),
        serde_json::to_string(&hook).unwrap()
    )
}

/// Whatever ran has written each of its lines once.
fn assert_talked(world: &World, at: &str) {
    let mut expected = Vec::new();
    for pid in world.lines("x.starts") {
        expected.extend(["one", "two", "three"].map(|word| format!("{pid} {word}")));
    }
    expected.extend(world.lines("x.ends").iter().map(|pid| format!("{pid} bye")));
    expected.extend(world.lines("hook.starts").iter().map(|pid| format!("{pid} hook")));
    expected.sort();
    let mut found_lines = Vec::new();
    if !common::comes_true(|| {
        found_lines = log_of(world, "x");
        // What the shell says of its sleep.
        found_lines.retain(|line| line != "Terminated");
        found_lines.sort();
        found_lines == expected
    }) {
        let mut found: BTreeMap<&String, usize> = BTreeMap::new();
        found_lines.iter().for_each(|line| *found.entry(line).or_default() += 1);
        let missing: Vec<_> = expected.iter().filter(|line| !found.contains_key(line)).collect();
        found.retain(|line, count| *count > 1 || !expected.contains(line));
        panic!("{at}: missing {missing:?}, doubled or unknown {found:?}\n{}", world.log());
    }
}

#[test]
fn killed_at_any_system_call_of_a_start_or_a_stop() {
    let Some(mut world) = world() else { return };
    world.unit("x", &talker());
    world.apply(0);
    assert_eq!(world.opm(&["stop", "x"]).code, 0);
    let (mut start_over, mut stop_over) = (false, false);
    let mut rounds = 0;
    for stops in stops(6) {
        if start_over && stop_over {
            break;
        }
        rounds += 1;
        let before = world.lines("x.starts").len();
        let begun = |world: &World| world.lines("x.starts").len() > before;
        let (end, said) = kill_in(&mut world, stops, &["start", "--no-wait", "x"], begun);
        let at = format!("start, {stops} stops, {end:?}");
        start_over |= end == End::Over;
        let held = is_held(&world, "x");
        assert!(said.code != 0 || !held, "{at}: acknowledged and lost");
        take_over(&world, &at);
        world.until_phase("x", if held { "down" } else { "up" });
        assert_eq!(world.opm(&["start", "x"]).code, 0, "{at}");
        world.until_phase("x", "up");
        assert_eq!(world.lines("x.starts").len(), before + 1, "{at}: one start\n{}", world.log());
        assert_eq!(world.read("doubles"), "", "{at}\n{}", world.log());
        until_nobody_is_left_over(&world, &at);

        let pid = world.pid("x");
        let ended = |world: &World| world.lines("x.ends").len() > before;
        let (end, said) = kill_in(&mut world, stops, &["stop", "--no-wait", "x"], ended);
        let at = format!("stop, {stops} stops, {end:?}");
        stop_over |= end == End::Over;
        let held = is_held(&world, "x");
        assert!(said.code != 0 || held, "{at}: acknowledged and lost");
        take_over(&world, &at);
        if held {
            world.until_phase("x", "down");
        } else {
            world.until_phase("x", "up");
            assert_eq!(world.pid("x"), pid, "{at}: it ran on");
        }
        assert_eq!(world.opm(&["stop", "x"]).code, 0, "{at}");
        assert_eq!(world.lines("x.starts").len(), before + 1, "{at}: no start\n{}", world.log());
        assert_eq!(world.read("doubles"), "", "{at}");
        until_nobody_is_left_over(&world, &at);
        assert_talked(&world, &at);
    }
    eprintln!("{rounds} kills of a start, and as many of a stop");
}
