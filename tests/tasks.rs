//! How often a task runs when it ends while no supervisor lives. What a supervisor's end in the middle
//! of its start leads to is in `trace.rs`.

mod common;

use common::World;

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
