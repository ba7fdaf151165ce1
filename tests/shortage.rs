//! No descriptor is to be had for a while: what cannot be looked at then counts as there, and what cannot be done is
//! done later.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use common::{Said, World, in_shell, until, witness};

/// Leaves opm no descriptor to open, or gives them back.
fn limit(world: &World, opm: i32, soft: &str) {
    let mut prlimit = world.command("prlimit");
    let limit = format!("--nofile={soft}:");
    assert!(prlimit.args(["--pid", &opm.to_string(), &limit]).status().unwrap().success());
}

/// A service that leaves something behind in another session that heeds no TERM, and says so.
fn with_leftover(world: &World, timeout: &str) {
    let leftover =
        "setsid sh -c 'trap \"\" TERM; echo $$ > leftover; while :; do sleep 1000; done'";
    let script = format!("{}{leftover} & wait", witness("a"));
    let keys = format!(
        "stop: {{timeout: {timeout}}}\nrestart: {{policy: always, delay: 10ms}}\nlogs: {{to: null}}\n"
    );
    world.unit("a", &format!("{}{keys}", in_shell(&script)));
}

#[test]
fn what_cannot_be_counted_counts_as_left() {
    for is_adopted in [false, true] {
        let Some(mut world) = World::new() else { return };
        with_leftover(&world, "100ms");
        world.run();
        world.apply(0);
        world.until("what it leaves", || world.pid_in("leftover").is_some());
        if is_adopted {
            world.crash();
            world.run();
            world.until_phase("a", "up");
        }
        let (opm, main) = (world.daemon_pid().unwrap(), world.pid("a").unwrap());
        let leftover = world.pid_in("leftover").unwrap();
        limit(&world, opm, "3");
        let before = world.waits(opm);
        world.kill("KILL", main);
        // All that follows from the end is in one turn.
        until("that opm has seen the end and waits again", || {
            !world.alive(main) && world.waits(opm) > before
        });
        limit(&world, opm, "1024");
        world.until("another start", || world.starts("a") == 2);
        assert!(!world.alive(leftover), "adopted: {is_adopted}");
        world.assert_no_doubles();
    }
}

#[test]
fn a_kill_that_finds_nobody_for_want_of_a_descriptor_is_repeated() {
    let Some(mut world) = World::new() else { return };
    with_leftover(&world, "2s");
    world.run();
    world.apply(0);
    world.until("what it leaves", || world.pid_in("leftover").is_some());
    let (opm, leftover) = (world.daemon_pid().unwrap(), world.pid_in("leftover").unwrap());
    let stop = world.begin(&["stop", "a"]);
    world.until_phase("a", "stopping");
    limit(&world, opm, "3");
    world.until("the kill", || world.log().contains("killing what is left"));
    assert!(world.alive(leftover), "it heeds no signal but the kill");
    limit(&world, opm, "1024");
    world.until("its end", || !world.alive(leftover));
    assert_eq!(Said::of_child(stop).code, 0);
}

#[test]
fn a_shutdown_kills_by_number_what_it_has_no_descriptor_to_look_at() {
    let Some(mut world) = World::new() else { return };
    world.service(
        "a",
        "trap '' TERM; echo $$ > main; while :; do sleep 0.1; done",
        "stop: {timeout: 1s}\n",
    );
    world.run_with(&["run", "--shutdown-timeout", "3s", "units"]);
    world.until("its pid", || world.pid_in("main").is_some());
    let (opm, main) = (world.daemon_pid().unwrap(), world.pid_in("main").unwrap());
    limit(&world, opm, "3");
    world.kill("TERM", opm);
    world.wait_run();
    assert!(!world.alive(main), "{}", world.log());
}
