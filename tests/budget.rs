//! The time that a shutdown has, against the time that the units ask for.

mod common;

use common::World;

const SLEEP: &str = "command: [sleep, '1000']\nlogs: {to: null}\n";
/// It goes only when it is killed.
const STUBBORN: &str = "trap '' TERM; echo > $OPM_UNIT.trap; while :; do sleep 0.05; done";

const WARNING: &str = "warning: stopping `web`, then `db` may take 15s, and a shutdown has 3s: who is \
                       not gone when its part of that is over is killed\n";

fn chain(world: &World) {
    world.unit("db", &format!("{SLEEP}stop: {{timeout: 5s}}\n"));
    world.unit("web", &format!("{SLEEP}requires: [db]\n"));
    world.unit("alone", SLEEP);
}

#[test]
fn a_chain_of_stops_that_does_not_fit_is_warned_of() {
    let Some(mut world) = World::new() else { return };
    chain(&world);
    world.run_with(&["run", "units", "--shutdown-timeout", "3s"]);
    world.until_phase("web", "up");
    assert!(world.log().contains(&format!("opm: {WARNING}")), "{}", world.log());
    for args in [
        &["plan", "units"][..],
        &["apply", "units"],
        &["check", "--shutdown-timeout", "3s", "units"],
    ] {
        let said = world.opm(args);
        assert_eq!(said.code, 0, "{said:?}");
        assert_eq!(said.err.matches(WARNING).count(), 1, "{said:?}");
    }
    // Without a time it is the daemon's own.
    let said = world.opm(&["simulate", "--shutdown"]);
    assert!(said.out.contains("2      web    0s    1.5s  10s         cut short\n"), "{said:?}");
    for args in [&["check", "units"][..], &["check", "--shutdown-timeout", "15s", "units"]] {
        assert_eq!(world.opm(args).err, "");
    }
    world.unit("web", &format!("{SLEEP}requires: [db]\nstop: {{timeout: 1s}}\n"));
    world.unit("db", &format!("{SLEEP}stop: {{timeout: 2s}}\n"));
    let said = world.opm(&["apply", "units"]);
    assert!(!said.err.contains("warning"), "{said:?}");
}

#[test]
fn pid_one_has_nine_seconds_by_itself() {
    let mut world = World::bare();
    chain(&world);
    if !world.start_pid_one(&["run", "units"]) {
        return;
    }
    world.until("the warning", || {
        world.log().contains("stopping `web`, then `db` may take 15s, and a shutdown has 9s")
    });
}

#[test]
fn the_end_says_who_was_cut_short() {
    let Some(mut world) = World::new() else { return };
    world.service("web", STUBBORN, "requires: [db]\n");
    world.service("db", STUBBORN, "stop: {timeout: 100ms}\n");
    world.service("easy", "exec sleep 1000", "");
    world.run_with(&["run", "units", "--shutdown-timeout", "800ms"]);
    world.until_phase("easy", "up");
    let has_trap = |unit: &str| world.path(&format!("{unit}.trap")).exists();
    world.until("their traps", || has_trap("web") && has_trap("db"));
    assert_eq!(world.opm(&["shutdown"]).code, 0);
    assert_eq!(world.wait_run(), 0);
    let log = world.log();
    let last = "opm: warning: killed before their own time was over, as a shutdown has 800ms: `web` \
                (10s)\n";
    assert!(log.contains(last), "{log}");
}

#[test]
fn a_shutdown_in_time_says_nothing_of_that() {
    let Some(mut world) = World::new() else { return };
    chain(&world);
    world.run_with(&["run", "units", "--shutdown-timeout", "20s"]);
    world.until_phase("web", "up");
    assert_eq!(world.opm(&["shutdown"]).code, 0);
    assert_eq!(world.wait_run(), 0);
    assert!(!world.log().contains("warning"), "{}", world.log());
}

/// Who needs more than an equal share gets what those after it do not need.
#[test]
fn what_fits_by_the_units_own_times_is_not_cut() {
    let Some(mut world) = World::new() else { return };
    let drains =
        "trap 'sleep 1.6; exit 0' TERM; echo > $OPM_UNIT.trap; while :; do sleep 0.05; done";
    world.service("web", drains, "requires: [db]\nstop: {timeout: 2s, to: main}\n");
    world.service("db", STUBBORN, "stop: {timeout: 500ms}\n");
    world.run_with(&["run", "units", "--shutdown-timeout", "3s"]);
    let has_trap = |unit: &str| world.path(&format!("{unit}.trap")).exists();
    world.until("their traps", || has_trap("web") && has_trap("db"));
    assert_eq!(world.opm(&["shutdown"]).code, 0);
    assert_eq!(world.wait_run(), 0);
    let log = world.log();
    assert!(!log.contains("killed before their own time"), "{log}");
    assert!(log.contains("web: down (exited 0)"), "{log}");
}

#[test]
fn who_cannot_be_killed_keeps_no_shutdown_from_its_end() {
    if !common::is_root() {
        return common::skip("who is not root kills all of its own");
    }
    let Some(mut world) = World::new() else { return };
    world.unit(
        "other",
        "command: [sleep, '1000']\nuser: nobody\nworking_dir: /\nlogs: {to: null}\n",
    );
    for (more, signals) in [(&["--shutdown-timeout", "500ms"][..], 1), (&[], 3)] {
        let log = std::fs::File::options().append(true).create(true).open(world.path("opm.out"));
        let log = log.unwrap();
        let mut command = world.command("setpriv");
        command.args(["--bounding-set=-kill", "--inh-caps=-all", common::OPM, "--root"]);
        command.arg(world.root()).args(["run", "units"]).args(more);
        command.stdout(log.try_clone().unwrap()).stderr(log);
        world.spawn(command);
        world.until_phase("other", "up");
        let pid = world.pid("other").unwrap();
        let ends = || world.log().matches("SIGTERM").count();
        let before = ends();
        for signal in 1..=signals {
            world.kill("TERM", world.daemon_pid().unwrap());
            world.until("it to be heard", || ends() >= before + signal);
        }
        assert_eq!(world.wait_run(), 1, "{}", world.log());
        assert!(
            world.log().contains("not gone although they were killed: `other`"),
            "{}",
            world.log()
        );
        assert!(world.alive(pid));
        // The next supervisor knows it, and may be able to.
        world.run();
        world.until("the end of the old one", || !world.alive(pid));
        world.until_phase("other", "up");
        assert_eq!(world.opm(&["shutdown"]).code, 0);
        world.wait_run();
    }
}

#[test]
fn who_leaves_the_order_out_leaves_each_unit_its_hooks() {
    let Some(mut world) = World::new() else { return };
    let hook = |name: &str| format!("[[sh, -c, 'echo {name} >> hooks']]");
    let hooks = format!("pre_stop: {}\npost_stop: {}\n", hook("pre"), hook("post"));
    // What requires it holds up its end, until the order does not count any more.
    world.service("db", "exec sleep 1000", &hooks);
    let slow = "trap 'echo asked >> asked' TERM; while :; do sleep 0.05; done";
    world.service("web", slow, "requires: [db]\nstop: {timeout: 1h}\n");
    world.run();
    world.until_phase("web", "up");
    let opm = world.daemon_pid().unwrap();
    world.kill("TERM", opm);
    world.until("the stop of what comes first", || world.read("asked").lines().count() == 1);
    assert_eq!(world.read("hooks"), "");
    world.kill("TERM", opm);
    world.until("the hooks", || world.lines("hooks") == ["pre", "post"]);
    world.kill("TERM", opm);
    world.wait_run();
    assert_eq!(world.lines("hooks"), ["pre", "post"]);
}
