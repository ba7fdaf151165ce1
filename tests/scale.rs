//! Many units at once, and few descriptors.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test stops at the first surprise, and times are printed"
)]

mod common;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use common::{OPM, World, now, watch_for, witness};

/// How long `opm status` may take, in a debug build on a busy machine.
const STATUS_MAX: Duration = Duration::from_secs(10);

/// One after the other: each keeps the machine busy.
static ALONE: Mutex<()> = Mutex::new(());

/// Writes so many units into one file.
fn many(world: &World, count: usize, more: &str) {
    let unit = |n| format!("name: s{n:04}\ncommand: [sleep, '100000']\n{more}");
    let units: Vec<String> = (0..count).map(unit).collect();
    world.unit("many", &units.join("---\n"));
}

/// How many instances are in a phase.
fn count(world: &World, phase: &str) -> usize {
    world.rows().iter().filter(|row| row["phase"] == phase).count()
}

/// `opm status`, which has to be quick.
fn status(world: &World) -> String {
    let began = now();
    let said = world.opm(&["status"]);
    let took = began.elapsed();
    assert_eq!(said.code, 0, "{said:?}");
    assert!(took < STATUS_MAX, "status took {took:?}");
    said.out
}

/// The pids of the namespace whose state in /proc is one of these.
fn in_state(world: &World, states: &str) -> usize {
    let is_so = |pid: &i32| {
        world
            .status_line(*pid, "State")
            .is_some_and(|line| line.starts_with(|c| states.contains(c)))
    };
    world.pids().iter().filter(|pid| is_so(pid)).count()
}

/// Brings so many units up and down again.
fn up_and_down(count_of_units: usize, more: &str) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(mut world) = World::new() else { return };
    many(&world, count_of_units, more);
    let before = world.pids().len();
    let began = now();
    world.run();
    world.until("all to be up", || count(&world, "up") == count_of_units);
    let up = began.elapsed();
    assert_eq!(status(&world).lines().count(), count_of_units + 1);
    assert!(world.pids().len() >= before + count_of_units);
    let again = world.apply(0);
    assert!(again.out.starts_with("no change"), "{again:?}");
    let began = now();
    let names: Vec<String> = (0..count_of_units).map(|n| format!("s{n:04}")).collect();
    let args: Vec<&str> =
        ["stop", "--no-wait"].into_iter().chain(names.iter().map(String::as_str)).collect();
    let said = world.opm(&args);
    assert_eq!(said.code, 0, "{said:?}\n{}", world.log());
    world.until("all to be down", || count(&world, "down") == count_of_units);
    let down = began.elapsed();
    assert_eq!(in_state(&world, "ZX"), 0, "no zombies");
    assert_eq!(world.opm(&["shutdown"]).code, 0);
    assert_eq!(world.wait_run(), 0);
    world.until("nothing to be left", || world.pids().len() <= before);
    eprintln!("{count_of_units} units: up in {up:?}, down in {down:?}");
}

#[test]
fn a_thousand_units_come_up_and_go_down() {
    up_and_down(1_000, "logs: {to: null}\n");
}

#[test]
fn three_hundred_units_with_logs_come_up_and_go_down() {
    up_and_down(300, "");
}

#[test]
fn a_child_of_an_opm_with_many_descriptors_has_a_table_for_its_own() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(mut world) = World::new() else { return };
    // Two thirds of them are begun when there are many already.
    many(&world, 400, "");
    world.run();
    world.until("all to be up", || count(&world, "up") == 400);
    let rows = world.rows();
    let pids = rows.iter().map(|row| i32::try_from(row["pid"].as_i64().unwrap()).unwrap());
    let pids: Vec<i32> = pids.collect();
    let is_small = |pid: &&i32| {
        let size = world.status_line(**pid, "FDSize").unwrap();
        size.trim().parse::<u32>().unwrap() <= 256
    };
    let small = pids.iter().filter(is_small).count();
    assert!(small > 200, "{small} of 400");
    for pid in &pids {
        let open = std::fs::read_dir(world.proc().unwrap().join(format!("{pid}/fd")));
        assert_eq!(open.unwrap().count(), 3, "standard descriptors, and no other");
    }
    // Why one could not become its program is told as ever.
    std::fs::write(world.path("no-program"), "text").unwrap();
    world.unit("bad", "command: [../no-program]\nrestart: never\n");
    assert_eq!(world.opm(&["apply", "units"]).code, 1);
    let why = world.opm(&["why", "bad"]).out;
    assert!(why.contains("it is not executable"), "{why}");
}

#[test]
fn a_crash_amid_the_starts_of_many_leaves_nobody_at_the_gate_and_doubles_nothing() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(mut world) = World::new() else { return };
    let unit = |n| {
        let name = format!("s{n:04}");
        let script = format!("{}exec sleep 100000", witness(&name));
        let script = serde_json::to_string(&script).unwrap();
        format!("name: {name}\ncommand: [sh, -c, {script}]\nworking_dir: ..\n")
    };
    world.unit("many", &(0..300).map(unit).collect::<Vec<_>>().join("---\n"));
    let begun = |world: &World| {
        (0..300).filter(|n| world.path(&format!("s{n:04}.starts")).exists()).count()
    };
    // Past those of which there are few.
    for least in [140, 170, 200, 230, 260] {
        world.run();
        world.until("some to have begun", || begun(&world) >= least);
        world.crash_if_any();
        // A child at the gate is opm yet, as is the first process of the test's world; the log keeper is not.
        world.until("nobody to be at the gate", || {
            let name = |pid| world.status_line(pid, "Name").unwrap_or_default();
            world.pids().into_iter().all(|pid| pid == 1 || name(pid) != "opm")
        });
        world.assert_no_doubles();
    }
    world.run();
    world.until("all to be up", || count(&world, "up") == 300);
    world.assert_no_doubles();
    let again = (0..300).filter(|n| world.lines(&format!("s{n:04}.starts")).len() > 1).count();
    assert_eq!(again, 0, "what lives is taken over, and what was not let go has not begun");
}

/// `opm run` with a hard limit of so many descriptors.
fn run_with_descriptors(world: &mut World, limit: u32) {
    let mut command = world.command("sh");
    let log = std::fs::File::options().append(true).create(true).open(world.path("opm.out"));
    let log = log.unwrap();
    let script = format!("ulimit -n {limit}; exec \"$0\" --root root run --quiet units");
    command.args(["-c", &script, OPM]);
    command.stdout(log.try_clone().unwrap()).stderr(log);
    world.spawn(command);
}

/// How often opm complained of too few descriptors.
fn complaints(world: &World) -> usize {
    world.log().lines().filter(|line| line.to_lowercase().contains("too many open files")).count()
}

/// How often opm gave up the processor to wait, so far: all its threads.
fn sleeps(world: &World) -> u64 {
    let tasks = world.proc().unwrap().join(format!("{}/task", world.daemon_pid().unwrap()));
    let statuses = std::fs::read_dir(tasks).unwrap().map(|task| {
        let text = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let count = text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        count.unwrap().trim().parse::<u64>().unwrap()
    });
    statuses.sum()
}

/// The processor time that opm has used, in ticks.
fn ticks(world: &World) -> u64 {
    let path = world.proc().unwrap().join(format!("{}/stat", world.daemon_pid().unwrap()));
    let text = std::fs::read_to_string(path).unwrap();
    let fields = text.rsplit_once(')').unwrap().1.split_whitespace();
    // proc_pid_stat(5): utime and stime, fields 14 and 15; the state is field 3.
    fields.skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum()
}

/// How often opm has read and written so far, and the bytes that it has read.
fn calls(world: &World) -> [u64; 2] {
    let path = world.proc().unwrap().join(format!("{}/io", world.daemon_pid().unwrap()));
    let text = std::fs::read_to_string(path).unwrap();
    let number = |name: &str| -> u64 {
        text.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().parse().unwrap()
    };
    [number("syscr:") + number("syscw:"), number("rchar:")]
}

/// How often opm reads and writes for a restart among so many units, and the bytes that it reads.
fn calls_of_a_restart(count_of_units: usize) -> Option<[u64; 2]> {
    const RESTARTS: u64 = 10;
    let mut world = World::new()?;
    many(&world, count_of_units, "logs: {to: null}\nrestart: {policy: always, delay: 0s}\n");
    world.run();
    world.until("all to be up", || count(&world, "up") == count_of_units);
    let rests = |before: &mut [u64; 2]| {
        let now = calls(&world);
        std::mem::replace(before, now) == now
    };
    let mut before = [0; 2];
    world.until("rest", || rests(&mut before));
    let began = before;
    for _ in 0..RESTARTS {
        let of_unit = world.processes_of("s0000");
        world.kill("KILL", of_unit[0]);
        world.until("the next one", || {
            let now = world.processes_of("s0000");
            now.len() == 1 && now != of_unit
        });
        world.until("rest", || rests(&mut before));
    }
    assert_eq!(world.opm(&["shutdown"]).code, 0);
    Some([0, 1].map(|place| (before[place] - began[place]) / RESTARTS))
}

#[test]
fn a_restart_takes_as_many_calls_among_many_units_as_among_few() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let few_and_many = [3, 300].map(calls_of_a_restart);
    let [Some(among_few), Some(among_many)] = few_and_many else { return };
    let figures =
        format!("reads and writes, bytes read: {among_few:?} of 3, {among_many:?} of 300");
    eprintln!("{figures}");
    assert!(among_many[0] <= among_few[0], "{figures}");
    // The numbers of processes are longer. A list of all children has at least three bytes for each.
    assert!(among_many[1] <= among_few[1] + 300, "{figures}");
}

#[test]
fn units_that_begin_again_without_end_keep_no_other_from_beginning() {
    const UNITS: usize = 150;
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(mut world) = World::new() else { return };
    for number in 0..UNITS {
        let keys = "logs: {to: null}\nrestart: {policy: always, delay: 0s}\n";
        world.unit(&format!("s{number:04}"), &format!("command: ['true']\n{keys}"));
    }
    world.run();
    let mut fewest = 0;
    let all_begin = || {
        let rows = world.rows();
        fewest = rows.iter().filter_map(|row| row["restarts"].as_u64()).min().unwrap_or(0);
        rows.len() == UNITS && fewest >= 3
    };
    world.until("each to have begun again three times", all_begin);
    assert_eq!(world.opm(&["shutdown"]).code, 0);
    assert_eq!(world.wait_run(), 0);
}

/// How many processes of opm's are not what they are to be yet.
fn under_way_by_proc(world: &World) -> usize {
    let is_opm = |pid: &i32| world.status_line(*pid, "Name").as_deref() == Some("opm");
    world.pids().iter().filter(|pid| is_opm(pid)).count()
}

#[test]
fn six_hundred_units_need_no_descriptor_each() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for limit in [64, 256] {
        let Some(mut world) = World::new() else { return };
        many(&world, 600, "logs: {to: null}\nrestart: {policy: always, delay: 100s}\n");
        run_with_descriptors(&mut world, limit);
        world.until("all to be up", || count(&world, "up") == 600);
        // None of them failed on the way: with that delay it would not be up.
        assert_eq!(complaints(&world), 0, "{}", world.log());
        status(&world);
        assert_eq!(world.opm(&["shutdown"]).code, 0);
    }
}

#[test]
fn an_apply_that_cannot_fit_is_refused_before_anything_is_touched() {
    let Some(mut world) = World::new() else { return };
    world.unit("first", "command: [sleep, '1000']\nlogs: {to: null}\n");
    run_with_descriptors(&mut world, 128);
    world.until("the first", || count(&world, "up") == 1);
    std::fs::create_dir(world.path("more")).unwrap();
    let many = |instances: u32, more: &str| {
        let text = format!("command: [sleep, '1000']\ninstances: {instances}\n{more}");
        std::fs::write(world.path("more/many.yaml"), text).unwrap();
    };
    many(100, "");
    let why =
        "take 100 descriptors, and the limit of 128 (RLIMIT_NOFILE) leaves them 86; `many` alone";
    let planned = world.opm(&["plan", "more"]);
    assert!(planned.code == 0 && planned.err.contains(why), "{planned:?}");
    let said = world.opm(&["apply", "more"]);
    assert!(said.code == 4 && said.err.contains(why), "{said:?}");
    assert!(said.err.contains("a hard limit of 148 or more"), "{said:?}");
    assert_eq!(world.rows().len(), 1, "nothing was touched");
    // What takes none fits.
    many(100, "logs: {to: null}\n");
    assert_eq!(world.opm(&["apply", "more"]).code, 0, "{}", world.log());
    assert_eq!(count(&world, "up"), 101);
}

#[test]
fn starts_wait_their_turn_while_others_hold_all_descriptors() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(mut world) = World::new() else { return };
    // Opening a FIFO for its input keeps each from its exec until somebody opens the other end.
    let keys = "logs: {to: null}\nstdin: {file: fifo}\nrestart: never\n";
    many(&world, 150, &format!("{keys}pre_stop: [[sh, -c, 'echo >> stops']]\n"));
    nix::unistd::mkfifo(&world.path("units/fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    run_with_descriptors(&mut world, 64);
    world.until("starts under way", || {
        world.rows().iter().filter(|row| row["pid"].is_number()).count() > 10
    });
    let before = world.rows().iter().filter(|row| row["pid"].is_number()).count();
    let (slept, worked) = (sleeps(&world), ticks(&world));
    let stays = under_way_by_proc(&world);
    let changes = || under_way_by_proc(&world) != stays;
    watch_for(Duration::from_secs(1), changes, "a start although there is no room");
    let (slept, worked) = (sleeps(&world) - slept, ticks(&world) - worked);
    assert!(slept < 20 && worked < 20, "{slept} wakeups, {worked} ticks in a second of waiting");
    assert!(before < 64, "{before}");
    // One that waits for its turn can be stopped.
    let row = world.rows().into_iter().find(|row| !row["pid"].is_number()).unwrap();
    assert_eq!(world.opm(&["stop", row["instance"].as_str().unwrap()]).code, 0);
    let _open = std::fs::File::options().read(true).write(true).open(world.path("units/fifo"));
    world.until("all others to be up", || count(&world, "up") == 149);
    assert_eq!(complaints(&world), 0, "{}", world.log());
    // What ends them takes descriptors too, all at once.
    assert_eq!(world.opm(&["shutdown"]).code, 0);
    assert_eq!(world.wait_run(), 0);
    assert_eq!(world.lines("units/stops").len(), 149, "{}", world.log());
}

#[test]
fn with_too_few_descriptors_opm_lives_and_says_so_once() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(mut world) = World::new() else { return };
    let restart = "restart: {policy: always, delay: 200ms, factor: 1}\n";
    many(&world, 300, restart);
    run_with_descriptors(&mut world, 256);
    let mut up = 0;
    world.until("most to be up", || {
        up = count(&world, "up");
        up >= 190
    });
    assert!(up < 300, "there are not descriptors enough for all");
    let daemon = world.daemon_pid().unwrap();
    world.until("the others to say why", || status(&world).contains("oo many open files"));
    // Hundreds of tries fail meanwhile.
    world.until("a tenth try", || {
        world.rows().iter().any(|row| row["restarts"].as_u64().unwrap() >= 10)
    });
    assert_eq!(complaints(&world), 1, "{}", world.log());
    assert!(!world.log().contains("restart number"), "{}", world.log());
    // What runs can be stopped, which makes room for others.
    let running = world.rows().into_iter().find(|row| row["phase"] == "up").unwrap();
    let name = running["instance"].as_str().unwrap();
    assert_eq!(world.opm(&["stop", name]).code, 0);
    assert!(world.alive(daemon));
    assert_eq!(world.opm(&["shutdown"]).code, 0, "{}", world.log());
    assert_eq!(world.wait_run(), 0);
}

#[test]
fn with_too_few_descriptors_every_run_is_adopted_all_the_same() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(mut world) = World::new() else { return };
    // One that starts processes of its own, and one that says late that it is ready.
    let ready = "ready: {file: told}\nstart_timeout: 600s\n";
    world.service("told", "echo $$ > told.pid; exec sleep 1000", ready);
    world.service("family", "sleep 1000 & sleep 1000 & echo > born; exec sleep 1000", "");
    many(&world, 150, "logs: {to: null}\n");
    world.run();
    world.until("all to be up", || count(&world, "up") == 151 && world.path("born").exists());
    let pids = |world: &World| -> Vec<i64> {
        world.rows().iter().filter_map(|row| row["pid"].as_i64()).collect()
    };
    let before = pids(&world);
    world.crash();
    run_with_descriptors(&mut world, 64);
    world.until("all to be known", || world.rows().len() == 152);
    assert_eq!(count(&world, "up"), 151, "{}", world.log());
    assert_eq!(count(&world, "unproven"), 0, "{}", world.log());
    assert_eq!(pids(&world), before);
    // The ends of those that find no descriptor are noticed too: of the first and of the last.
    for unit in ["family", "s0000", "s0149"] {
        let pid = world.pid(unit).unwrap();
        world.kill("KILL", pid);
        world.until(&format!("a new run of {unit}"), || {
            world.phase(unit) == "up" && world.pid(unit) != Some(pid)
        });
    }
    std::fs::write(world.path("units/told"), "").unwrap();
    world.until_phase("told", "up");
    // It does not go on looking: what is over makes room.
    let names: Vec<String> = (0..150).map(|n| format!("s{n:04}")).collect();
    let args: Vec<&str> = ["stop"].into_iter().chain(names.iter().map(String::as_str)).collect();
    assert_eq!(world.opm(&args).code, 0);
    let mut slept = (now(), sleeps(&world));
    world.until("three seconds without a wakeup", || {
        let so_far = sleeps(&world);
        if so_far > slept.1 {
            slept = (now(), so_far);
        }
        slept.0.elapsed() > Duration::from_secs(3)
    });
    assert_eq!(world.opm(&["shutdown"]).code, 0);
}

#[test]
fn a_run_is_over_when_the_last_of_many_is_gone() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(mut world) = World::new() else { return };
    // More than are watched at once; they go one after the other, when all have begun.
    let child = "setsid sh -c 'trap \"\" TERM; echo >> begun; read x < \"$1\"; echo >> ended' - ";
    let script = format!(
        "i=0; while [ $i -lt 150 ]; do i=$((i+1)); mkfifo gate$i; {child} \
         gate$i & done; until [ \"$(wc -l < begun)\" = 150 ]; do sleep 0.02; done"
    );
    world.service("family", &script, "restart: never\nstop: {timeout: 600s}\n");
    world.run();
    world.until("the others to be left", || world.log().contains("150 others are left"));
    for n in 1..=150 {
        assert_eq!(world.phase("family"), "stopping", "{n}");
        std::fs::write(world.path(&format!("gate{n}")), "\n").unwrap();
    }
    world.until_phase("family", "done");
    assert_eq!(world.lines("ended").len(), 150);
}
