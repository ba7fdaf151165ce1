//! Crash at every system call: the supervisor, or the log keeper, is killed at each stop of an
//! operation, and another one takes over. Nothing may run twice, and nothing may be lost.
//!
//! In plain `cargo test` every so many-th stop is taken, from an offset that the seed gives
//! (`OPM_SEED` runs it again); with `OPM_EVERY_STOP=1` every one, which takes half an hour.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test stops at the first surprise")]
#![expect(clippy::disallowed_methods, reason = "tests run programs, and wait for them")]

mod common;
#[path = "trace/tracer.rs"]
mod tracer;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::process::{Child, Stdio};

use common::{Said, World, skip, witness};
use opm::logs::{self, Query};
use opm::model::{Desired, InstanceId, UnitName};
use opm::system::instruction::{self, Instruction};
use tracer::{End, Point, Traced};

/// So many stops there are at most from the birth of a process until it has been let go.
const BIRTH_STOPS: u64 = 36;

/// A world in which processes can be traced.
fn world() -> Option<World> {
    if !tracer::is_allowed() {
        skip("processes may not be traced here");
        return None;
    }
    World::new()
}

/// Where to kill, one after the other: at every `step`-th stop, or at all of them.
fn points(step: u64) -> impl Iterator<Item = Point> {
    let step = if std::env::var_os("OPM_EVERY_STOP").is_some() { 1 } else { step };
    let mut random = common::random::Random::new();
    let offset = random.below(step);
    (0..).map(move |number| Point { call: None, stops: offset + number * step })
}

/// What is on the disk now: what the supervisor that is dead has left.
fn saved(world: &World) -> Desired {
    let bytes = std::fs::read(world.root().join("state/desired.json"))
        .or_else(|_| std::fs::read(world.root().join("state/desired.previous.json")));
    opm::system::decode_saved(&bytes.unwrap()).unwrap()
}

fn is_held(world: &World, unit: &str) -> bool {
    saved(world).units.get(&UnitName::parse(unit).unwrap()).unwrap().hold.is_some()
}

/// Traces the supervisor while `client` asks it for something, and kills it.
fn kill_in(
    world: &mut World,
    point: Point,
    args: &[&str],
    mut is_done: impl FnMut(&World) -> bool,
) -> (End, Said) {
    let pid = world.host_pid(world.daemon_pid().unwrap()).unwrap();
    let traced = Traced::seize(pid);
    let mut client: Child = world.begin(args);
    let end = traced.kill_at(point, || client.try_wait().unwrap().is_some() && is_done(world));
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
    let query = Query::of(&dir, &[instance]);
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
        let up: Vec<i32> = world
            .rows()
            .iter()
            .filter_map(|row| row["pid"].as_i64())
            .map(|pid| i32::try_from(pid).unwrap())
            .collect();
        let daemon = world.daemon_pid();
        let is_known = |pid: &i32| {
            let session = world.session(*pid);
            let is_keeper = world.command_line(*pid).contains("log-keeper");
            // PID 1 of the namespace, which is opm with two threads, and its command.
            *pid <= 3
                || Some(*pid) == daemon
                || is_keeper
                || up.iter().any(|one| Some(*one) == session)
        };
        let all = world.pids().into_iter().filter(|pid| world.alive(*pid));
        all.filter(|pid| !is_known(pid))
            .map(|pid| (pid, world.command_line(pid)))
            .collect::<Vec<_>>()
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
        "command: [sh, -c, {}]\nworking_dir: ..\nready: {{fd: 3}}\nstart_timeout: 20s\n\
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
        for line in &found_lines {
            *found.entry(line).or_default() += 1;
        }
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
    // From the birth of the main process until it was let go, at every stop: the hook's is the
    // first birth, with two stops.
    let call = Some((libc::SYS_clone3, 3));
    let birth = (0..BIRTH_STOPS).map(|stops| Point { call, stops });
    for point in birth.chain(points(7)) {
        if start_over && stop_over {
            break;
        }
        rounds += 1;
        let before = world.lines("x.starts").len();
        let begun = |world: &World| world.lines("x.starts").len() > before;
        let (end, said) = kill_in(&mut world, point, &["start", "--no-wait", "x"], begun);
        let at = format!("start, {point:?}, {end:?}");
        start_over |= end == End::Over && point.call.is_none();
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
        let (end, said) = kill_in(&mut world, point, &["stop", "--no-wait", "x"], ended);
        let at = format!("stop, {point:?}, {end:?}");
        stop_over |= end == End::Over && point.call.is_none();
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

#[test]
fn a_task_whose_start_is_cut_off_runs_as_often_as_it_may() {
    // decisions/0013: at most once, or at least once.
    for (policy, least, most) in [("never", 0, 1), ("on-failure", 1, 2)] {
        let Some(mut world) = world() else { return };
        let keys =
            format!("restart: {{policy: {policy}, delay: 10ms, factor: 1}}\nenabled: false\n");
        world.task("once", "echo $$ >> runs", &keys);
        world.apply(0);
        let offset = common::random::Random::new().below(3);
        let call = Some((libc::SYS_clone3, 1));
        for stops in (offset..BIRTH_STOPS).step_by(3) {
            let before = world.lines("runs").len();
            let begun = |world: &World| world.lines("runs").len() > before;
            let point = Point { call, stops };
            let (end, said) = kill_in(&mut world, point, &["start", "--no-wait", "once"], begun);
            let at = format!("{policy}, {point:?}, {end:?}");
            take_over(&world, &at);
            world.until(&at, || matches!(world.phase("once").as_str(), "done" | "failed" | "down"));
            let runs = world.lines("runs").len() - before;
            let least = if said.code == 0 { least } else { 0 };
            assert!((least..=most).contains(&runs), "{at}: {runs} runs\n{}", world.log());
            // And so it stays: everything is looked at once more.
            assert_eq!(world.opm(&["restore"]).code, 0, "{at}");
            assert_eq!(world.lines("runs").len() - before, runs, "{at}\n{}", world.log());
        }
    }
}

/// A service of the version that it says it is.
fn versioned(name: &str, version: &str) -> String {
    let script = witness(name) + &format!("echo {version} >> {name}.versions; exec sleep 1000");
    common::in_shell(&script)
        + "logs: {to: null}\nrestart: {policy: always, delay: 20ms, max_delay: 50ms}\n"
}

/// Two sets of units: `a` changes, `b` and `c` take each other's place, `d` stays as it is.
fn write_set(world: &World, version: usize) {
    let (there, gone) = if version.is_multiple_of(2) { ("b", "c") } else { ("c", "b") };
    world.unit("a", &versioned("a", &version.to_string()));
    world.unit(there, &versioned(there, "-"));
    std::fs::remove_file(world.path(&format!("units/{gone}.yaml"))).ok();
}

#[test]
fn killed_at_any_system_call_of_an_apply() {
    let Some(mut world) = world() else { return };
    world.unit("d", &versioned("d", "-"));
    write_set(&world, 0);
    world.apply(0);
    // Up is who runs the program, and may not have said so yet.
    let is_begun = |name: &&str| world.lines(&format!("{name}.starts")).len() == 1;
    world.until("the first ones", || ["a", "b", "d"].iter().all(is_begun));
    let d = world.pid("d");
    let mut rounds = 0;
    for point in points(14) {
        rounds += 1;
        write_set(&world, rounds);
        let (there, gone) = if rounds.is_multiple_of(2) { ("b", "c") } else { ("c", "b") };
        let before = saved(&world).generation;
        let starts = |world: &World, name: &str| world.lines(&format!("{name}.starts")).len();
        let (a, b) = (starts(&world, "a"), starts(&world, there));
        let done = |world: &World| {
            world.lines("a.versions").last() == Some(&rounds.to_string())
                && starts(world, there) > b
        };
        let (end, said) =
            kill_in(&mut world, point, &["apply", "--no-daemon", "--no-wait", "units"], done);
        let at = format!("apply, {point:?}, {end:?}");
        let is_new = saved(&world).generation > before;
        assert!(said.code != 0 || is_new, "{at}: acknowledged and lost");
        take_over(&world, &at);
        if is_new {
            world.until(&at, || {
                let phases = ["a", there].map(|name| world.phase(name));
                phases == ["up", "up"] && world.phase(gone) == "absent"
            });
        } else {
            world.until(&at, || ["a", gone].iter().all(|name| world.phase(name) == "up"));
            assert_eq!(world.phase(there), "absent", "{at}");
            assert_eq!(starts(&world, "a"), a, "{at}: the old ones run on");
        }
        world.apply(0);
        for name in ["a", there] {
            world.until_phase(name, "up");
        }
        world.until("the new version", || done(&world));
        assert_eq!((starts(&world, "a"), starts(&world, there)), (a + 1, b + 1), "{at}");
        assert_eq!(world.pid("d"), d, "{at}: d is none of its business");
        assert_eq!(world.read("doubles"), "", "{at}\n{}", world.log());
        until_nobody_is_left_over(&world, &at);
        if end == End::Over {
            break;
        }
    }
    eprintln!("{rounds} kills of an apply");
}

/// Starts a supervisor that is traced from the first system call of its program on.
///
/// Its shell waits for a line in the FIFO that comes back too.
fn traced_run(world: &mut World) -> (Traced, File) {
    let log = File::options().append(true).create(true).open(world.path("opm.out")).unwrap();
    let go = world.path("go");
    if !go.exists() {
        nix::unistd::mkfifo(&go, nix::sys::stat::Mode::S_IRWXU).unwrap();
    }
    let mut command = world.command("sh");
    let root = world.root();
    command.args([
        "-c",
        "read -r go < go; exec \"$0\" --root \"$1\" run --quiet units",
        common::OPM,
    ]);
    command.arg(root).stdout(log.try_clone().unwrap()).stderr(log);
    let nsenter = world.spawn(command).id();
    let mut pid = None;
    common::until("the shell to wait in open(2)", || {
        pid = common::child_of(nsenter);
        let stat = pid.map(|pid| std::fs::read_to_string(format!("/proc/{pid}/stat")));
        stat.is_some_and(|stat| stat.is_ok_and(|stat| stat.contains("(sh) S ")))
    });
    let pid = i32::try_from(pid.unwrap()).unwrap();
    let traced = Traced::seize(pid);
    let mut go = File::options().read(true).write(true).open(go).unwrap();
    go.write_all(b"\n").unwrap();
    (traced, go)
}

#[test]
fn killed_at_any_system_call_of_a_boot() {
    let Some(mut world) = world() else { return };
    for name in ["a", "b"] {
        world.unit(name, &versioned(name, "-"));
    }
    world.unit("c", &(versioned("c", "-") + "requires: [b]\n"));
    world.apply(0);
    let has_begun = |name: &str| !world.lines(&format!("{name}.starts")).is_empty();
    world.until("their first acts", || ["a", "b", "c"].into_iter().all(has_begun));
    let kept = [world.pid("a"), world.pid("c")];
    let mut rounds = 0;
    for point in points(16) {
        rounds += 1;
        // One dies while nobody looks, the others live.
        let starts = |world: &World, name: &str| world.lines(&format!("{name}.starts")).len();
        let before = starts(&world, "b");
        let pid = world.pid("b").unwrap();
        world.crash();
        world.kill("KILL", pid);
        common::until("its death", || !world.alive(pid));
        let (traced, _go) = traced_run(&mut world);
        let end = traced.kill_at(point, || starts(&world, "b") > before);
        let at = format!("boot, {point:?}, {end:?}");
        world.reap_daemons();
        take_over(&world, &at);
        for name in ["a", "b", "c"] {
            world.until_phase(name, "up");
        }
        world.until("the first act of b", || starts(&world, "b") > before);
        assert_eq!(starts(&world, "b"), before + 1, "{at}: one start\n{}", world.log());
        assert_eq!([world.pid("a"), world.pid("c")], kept, "{at}: they run on");
        assert_eq!(world.read("doubles"), "", "{at}\n{}", world.log());
        until_nobody_is_left_over(&world, &at);
        if end == End::Over {
            break;
        }
    }
    eprintln!("{rounds} kills of a boot");
}

/// The keeper alone, with a FIFO and a descriptor that holds it, as a supervisor makes them.
struct Kept {
    dir: tempfile::TempDir,
    fifo: File,
}

impl Kept {
    fn new(instruction: impl FnOnce(opm::model::FilePath) -> Instruction) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let id = InstanceId::parse("x").unwrap();
        let path = instruction::fifo_path(dir.path(), &id);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let fifo = File::options().read(true).write(true).open(path).unwrap();
        instruction(dir.path().join("log-files/x").into()).write(dir.path(), &id).unwrap();
        Self { dir, fifo }
    }

    fn keeper(&self) -> Child {
        let mut command = std::process::Command::new(common::OPM);
        command.args(["log-keeper", "--run-dir"]).arg(self.dir.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap()
    }

    fn is_read(&self) -> bool {
        opm::system::bytes_queued(self.fifo.as_fd()) == 0
    }

    /// Numbers of lines, and `None` for what the log says about itself.
    fn records(&self) -> Vec<Option<u64>> {
        let dir = self.dir.path().join("log-files");
        let query = Query::of(&dir, &["x"]);
        let mut records = Vec::new();
        // Before the first line there is no log.
        logs::read(&query, None, &mut |record| {
            let text = String::from_utf8_lossy(&record.bytes).into_owned();
            let number = text.split(' ').nth(1).and_then(|word| word.parse().ok());
            records.push(number.filter(|_| record.stream == logs::record::STREAM_OUTPUT));
            Ok(())
        })
        .ok();
        records
    }
}

#[test]
fn the_log_keeper_killed_at_any_system_call_of_a_rotation() {
    if !tracer::is_allowed() {
        return skip("processes may not be traced here");
    }
    let mut rounds = 0;
    let mut gaps = 0;
    for point in points(2) {
        rounds += 1;
        // Ten lines of a hundred bytes fill a file; all files are kept.
        let kept = Kept::new(|dir| Instruction {
            max_size: 1400,
            keep: 1000,
            ..Instruction::in_dir(dir.as_path())
        });
        let line = |number: u64| format!("line {number} {}\n", "x".repeat(90));
        let write = |numbers: std::ops::Range<u64>| {
            let text: String = numbers.map(line).collect();
            (&kept.fifo).write_all(text.as_bytes()).unwrap();
        };
        let mut keeper = kept.keeper();
        write(0..8);
        common::until("the first lines", || kept.records().len() == 8);
        let traced = Traced::seize(i32::try_from(keeper.id()).unwrap());
        write(8..30);
        let end = traced.kill_at(point, || kept.is_read());
        // The tracer has waited for it.
        keeper.wait().ok();
        write(30..40);
        let mut keeper = kept.keeper();
        let at = format!("rotation, {point:?}, {end:?}");
        common::until(&at, || kept.records().last() == Some(&Some(39)));
        let records = kept.records();
        keeper.kill().unwrap();
        keeper.wait().unwrap();
        // A number may be missing where the log says so, and nowhere else; none comes twice.
        let mut next = 0;
        let mut is_told = false;
        for record in &records {
            match record {
                None => is_told = true,
                Some(number) => {
                    assert!(*number == next || (is_told && *number > next), "{at}: {records:?}");
                    gaps += usize::from(*number > next);
                    next = number + 1;
                    is_told = false;
                }
            }
        }
        if end == End::Over {
            break;
        }
    }
    eprintln!("{rounds} kills of the keeper in a rotation; {gaps} of them lost a read");
    assert!(gaps > 0, "no kill came between a read and a write");
}
