//! An opm that has nothing to do: it gives back what it does not need, and makes no system call.

mod common;

use std::time::Duration;

use common::{World, until, watch_for};

#[test]
fn an_idle_opm_and_its_keeper_let_go_of_the_program_and_wake_no_more() {
    let Some(mut world) = World::new() else { return };
    world.unit("a", "command: [sleep, '100000']\n");
    world.run();
    world.until_phase("a", "up");
    let opm = world.daemon_pid().unwrap();
    let keeper =
        world.pids().into_iter().find(|pid| world.command_line(*pid).contains(" log-keeper "));
    for pid in [opm, keeper.unwrap()] {
        until("the program to be let go of", || world.has_let_go(pid));
        let before = world.waits(pid);
        watch_for(Duration::from_secs(2), || world.waits(pid) != before, "it woke for nothing");
        assert!(world.has_let_go(pid));
    }
    // What is needed comes back: all goes on.
    let first = world.pid("a").unwrap();
    world.kill("KILL", first);
    world.until("the next one", || world.pid("a").is_some_and(|pid| pid != first));
    world.assert_no_doubles();
}
