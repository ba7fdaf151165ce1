//! How often a task runs when its supervisor is killed at each step of its start and of its end.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use common::{World, watch_for};

/// A namespace where all else has been started: the next start is the task's. Nobody writes a log,
/// so that no log keeper runs.
fn ready_for_a_task(script: &str, policy: &str) -> Option<World> {
    let mut world = World::new()?;
    world.service("other", "exec sleep 1000", "");
    world.run();
    world.until_phase("other", "up");
    world.crash();
    let keys = format!("restart: {{policy: {policy}, delay: 10ms, factor: 1}}\n");
    world.task("once", &format!("echo $$ >> runs; {script}"), &keys);
    Some(world)
}

/// Kills the supervisor at a step of the task's start; how often the task runs in all, and where it
/// ends up.
fn killed_at(step: &str, policy: &str, runs: usize, phase: &str) {
    let Some(mut world) = ready_for_a_task(":", policy) else { return };
    world.env.push(("OPM_CRASH_AT".to_owned(), step.to_owned()));
    world.run();
    assert_eq!(world.wait_run(), 137, "killed {step}\n{}", world.log());
    world.env.clear();
    let first = usize::from(step == "after-go");
    world.until("its first run", || world.lines("runs").len() == first);
    world.until("its end", || {
        world.lines("runs").iter().all(|pid| !world.alive(pid.parse().unwrap()))
    });
    world.run();
    world.until_phase("once", phase);
    let said = format!("{step}, {policy}\n{}", world.log());
    assert_eq!(world.lines("runs").len(), runs, "{said}");
    assert_eq!(world.opm(&["restore"]).code, 0);
    let again = || world.lines("runs").len() > runs;
    watch_for(std::time::Duration::from_millis(100), again, &said);
}

#[test]
fn a_task_that_never_restarts_runs_at_most_once() {
    killed_at("after-fork", "never", 1, "done");
    killed_at("after-record", "never", 1, "done");
    killed_at("before-go", "never", 0, "failed");
    killed_at("after-go", "never", 1, "failed");
}

#[test]
fn a_task_that_restarts_runs_at_least_once() {
    killed_at("after-fork", "on-failure", 1, "done");
    killed_at("after-record", "on-failure", 1, "done");
    killed_at("before-go", "on-failure", 1, "done");
    killed_at("after-go", "on-failure", 2, "done");
}

#[test]
fn what_ends_while_nobody_looks_counts_by_its_policy_too() {
    for (policy, runs, phase) in [("never", 1, "failed"), ("on-failure", 2, "done")] {
        let script = "[ -e ended ] || until [ -e end ]; do sleep 0.02; done; echo > ended";
        let Some(mut world) = ready_for_a_task(script, policy) else { return };
        world.run();
        world.until_phase("once", "up");
        world.until("its first act", || world.lines("runs").len() == 1);
        world.crash();
        std::fs::write(world.path("end"), "").unwrap();
        let pid = world.pid_in("runs").unwrap();
        world.until("its end", || !world.alive(pid));
        world.run();
        world.until_phase("once", phase);
        assert_eq!(world.lines("runs").len(), runs, "{policy}\n{}", world.log());
    }
}
