//! Many units at once, and few descriptors.
#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test stops at the first surprise, and times are printed"
)]

mod common;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use common::{OPM, World};

/// How long `opm status` may take, in a debug build on a busy machine.
const STATUS_MAX: Duration = Duration::from_secs(2);

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
    let began = common::now();
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
    let began = common::now();
    world.run();
    world.until("all to be up", || count(&world, "up") == count_of_units);
    let up = began.elapsed();
    assert_eq!(status(&world).lines().count(), count_of_units + 1);
    assert!(world.pids().len() >= before + count_of_units);
    let again = world.apply(0);
    assert!(again.out.starts_with("no change"), "{again:?}");
    let began = common::now();
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

/// `opm run` with a hard limit of 256 descriptors.
fn run_with_few_descriptors(world: &mut World) {
    let mut command = world.command("sh");
    let log = std::fs::File::create(world.path("opm.out")).unwrap();
    command.args(["-c", "ulimit -n 256; exec \"$0\" --root root run --quiet units", OPM]);
    command.stdout(log.try_clone().unwrap()).stderr(log);
    world.spawn(command);
}

#[test]
fn six_hundred_units_need_no_descriptor_each() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(mut world) = World::new() else { return };
    many(&world, 600, "logs: {to: null}\nrestart: {policy: always, factor: 1}\n");
    run_with_few_descriptors(&mut world);
    world.until("all to be up", || count(&world, "up") == 600);
    status(&world);
    assert_eq!(world.opm(&["shutdown"]).code, 0);
}

#[test]
fn with_too_few_descriptors_opm_lives_and_says_so() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(mut world) = World::new() else { return };
    many(&world, 300, "restart: {policy: always, delay: 1s}\n");
    run_with_few_descriptors(&mut world);
    let mut up = 0;
    world.until("most to be up", || {
        up = count(&world, "up");
        up >= 200
    });
    assert!(up < 300, "there are not descriptors enough for all");
    let daemon = world.daemon_pid().unwrap();
    let said = status(&world);
    assert!(said.contains("oo many open files"), "{said}");
    // What runs can be stopped, which makes room for others.
    let running = world.rows().into_iter().find(|row| row["phase"] == "up").unwrap();
    let name = running["instance"].as_str().unwrap();
    assert_eq!(world.opm(&["stop", name]).code, 0);
    assert!(world.log().contains("oo many open files"), "{}", world.log());
    assert!(world.alive(daemon));
    assert_eq!(world.opm(&["shutdown"]).code, 0, "{}", world.log());
    assert_eq!(world.wait_run(), 0);
}
