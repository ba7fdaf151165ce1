//! Runs whose definition changes: what is done to them is done with what they were begun with, and what
//! is new does not come beside them.

mod common;

use std::time::Duration;

use common::{OPM, World, skip, watch_for};

/// A service that says when it is there twice, by a lock of its number.
const ALONE: &str = "exec 9>lock.${instance.index}; \
                     flock -n 9 || echo ${instance.index} >> twice; \
                     echo ${instance} ${instance.index} >> begun; \
                     trap 'sleep 0.3; exit 0' TERM; while :; do sleep 0.02; done";

fn never_twice(world: &World) {
    assert_eq!(world.read("twice"), "", "{}", world.log());
}

#[test]
fn hooks_and_stop_commands_of_a_run_see_what_it_was_begun_with() {
    let Some(mut world) = World::new() else { return };
    let keys = |port: u32| {
        format!(
            "env: {{PORT: '{port}'}}\n\
             pre_stop: [[sh, -c, 'echo pre_stop $PORT >> seen']]\n\
             post_stop: [[sh, -c, 'echo post_stop $PORT >> seen']]\n\
             stop: {{steps: [{{command: [sh, -c, 'echo stop $PORT >> seen; kill -KILL $(cat pid)'], wait: 20s}}]}}\n"
        )
    };
    let script = "trap '' TERM; echo $$ > pid; while :; do sleep 0.02; done";
    world.service("web", script, &keys(1));
    world.run();
    world.until_phase("web", "up");
    world.until("its pid", || !world.read("pid").is_empty());
    world.service("web", script, &keys(2));
    world.apply(0);
    let first = ["pre_stop 1", "stop 1", "post_stop 1"];
    assert_eq!(world.lines("seen"), first, "{}", world.log());
    // Two changes on the way are none to the run.
    world.until("its pid", || !world.read("pid").is_empty());
    world.remove_unit("web");
    world.apply(0);
    assert_eq!(world.lines("seen")[3..], ["pre_stop 2", "stop 2", "post_stop 2"]);
}

#[test]
fn who_waits_for_a_turn_is_not_asked_what_only_the_next_definition_knows() {
    let Some(mut world) = World::new() else { return };
    let unit = |world: &World, word: &str| {
        let keys = format!(
            "instances: 3\nenv: {{WORD: {word}}}\n\
             ready: {{exec: [sh, -c, 'test -e {word}.ready'], interval: 20ms}}\n\
             health: {{exec: [sh, -c, 'test -e {word}.ready'], interval: 20ms, retries: 1, start_period: 0s}}\n\
             start_timeout: 20s\nrestart: never\n"
        );
        world.service("web", "exec sleep 1000", &keys);
    };
    unit(&world, "old");
    std::fs::write(world.path("old.ready"), "").unwrap();
    world.run();
    for id in ["web@1", "web@2", "web@3"] {
        world.until("it is up", || world.phase(id) == "up");
    }
    let pids: Vec<_> = ["web@2", "web@3"].map(|id| world.pid(id)).to_vec();
    unit(&world, "new");
    assert_eq!(world.opm(&["apply", "--rolling", "--no-wait", "units"]).code, 0);
    world.until("the first to try", || world.phase("web@1") == "starting");
    // As long as twenty questions would take.
    let others = || ["web@2", "web@3"].map(|id| world.pid(id)).to_vec();
    watch_for(Duration::from_millis(400), || others() != pids, "the others run on");
    std::fs::write(world.path("new.ready"), "").unwrap();
    world.until("all of them", || {
        ["web@1", "web@2", "web@3"].iter().all(|id| {
            world.phase(id) == "up" && !world.row(id)["outdated"].as_bool().unwrap_or(false)
        })
    });
}

#[test]
fn an_instance_does_not_begin_beside_one_that_the_unit_asks_for_no_more() {
    let Some(mut world) = World::new() else { return };
    world.service("web", ALONE, "instances: 1\n");
    world.run();
    world.until_phase("web", "up");
    for (count, waits) in [("2", "web@1"), ("1", "web"), ("[a, b]", "web@a"), ("3", "web@1")] {
        world.service("web", ALONE, &format!("instances: {count}\n"));
        let plan = world.opm(&["plan", "units"]).out;
        assert!(plan.contains("± web (restart"), "{count}: {plan}");
        world.apply(0);
        assert_eq!(world.phase(waits), "up", "{count}");
        never_twice(&world);
    }
    // Those that stay run on beside one that goes.
    let pid = world.pid("web@1");
    world.service("web", ALONE, "instances: 2\n");
    let plan = world.opm(&["plan", "units"]).out;
    assert!(plan.contains("~ web (change live"), "{plan}");
    world.apply(0);
    assert_eq!(world.pid("web@1"), pid);
}

#[test]
fn an_instance_whose_number_is_another_one_is_begun_anew_where_that_is_told() {
    let Some(mut world) = World::new() else { return };
    world.service("web", ALONE, "instances: [a, b, c]\n");
    world.service("other", "exec sleep 1000", "instances: [a, b]\n");
    world.run();
    for id in ["web@a", "web@b", "web@c", "other@b"] {
        world.until("it is up", || world.phase(id) == "up");
    }
    let other = world.pid("other@b");
    world.service("web", ALONE, "instances: [b, c, d]\n");
    world.service("other", "exec sleep 1000", "instances: [b]\n");
    let plan = world.opm(&["plan", "units"]).out;
    assert!(plan.contains("± web (restart") && plan.contains("~ other (change live"), "{plan}");
    world.apply(0);
    world.until("all of them", || {
        let begun = world.lines("begun");
        ["b 1", "c 2", "d 3"].iter().all(|line| begun.contains(&(*line).to_owned()))
    });
    never_twice(&world);
    assert_eq!(world.pid("other@b"), other, "nobody told it its number");
    let plan = world.opm(&["plan", "units"]).out;
    assert!(plan.contains("no change"), "{plan}");
}

#[test]
fn a_step_to_a_main_process_that_is_gone_is_for_what_it_left() {
    let Some(mut world) = World::new() else { return };
    let script = "sh -c 'trap \"echo told >> told; exit 0\" USR1; echo > there; while :; do sleep 0.02; done' & wait";
    let keys =
        "stop: {signal: USR1, timeout: 1h, to: main}\nrestart: {policy: always, delay: 0s}\n";
    world.service("master", script, keys);
    world.run();
    world.until("its worker", || world.path("there").exists());
    let main = world.pid("master").unwrap();
    world.kill("KILL", main);
    world.until("the next run", || world.pid("master").is_some_and(|pid| pid != main));
    assert_eq!(world.lines("told"), ["told"]);
    assert_eq!(world.opm(&["kill", "-s", "KILL", "--all", "master"]).code, 0);
}

#[test]
fn who_ends_while_opm_is_replaced_ends_as_it_did() {
    let Some(mut world) = World::new() else { return };
    let script = "until [ -e go ]; do sleep 0.01; done; exit 7";
    world.unit("job", &format!("kind: task\nshell: '{script}'\nrestart: never\nworking_dir: ..\n"));
    world.run();
    for round in 1..=20 {
        world.until("it runs", || world.phase("job") == "up");
        std::fs::write(world.path("go"), "").unwrap();
        // One that is asked for while the other one is under way.
        assert_eq!(world.opm(&["reexec"]).code, 0, "{round}");
        assert_eq!(world.opm(&["reexec"]).code, 0, "{round}");
        world.until_phase("job", "failed");
        assert_eq!(world.row("job")["last"], "exited 7", "{round}: {}", world.log());
        std::fs::remove_file(world.path("go")).unwrap();
        assert_eq!(world.opm(&["start", "--no-wait", "job"]).code, 0, "{round}");
    }
    std::fs::write(world.path("go"), "").unwrap();
}

#[test]
fn a_replaced_opm_gives_the_limits_that_the_first_one_was_started_with() {
    let Some(mut world) = World::new() else { return };
    world.service("web", "ulimit -Sn >> limits; exec sleep 1000", "");
    let mut command = world.command("sh");
    let log = std::fs::File::create(world.path("opm.out")).unwrap();
    let script = "ulimit -Sn 300; exec \"$0\" --root \"$1\" run units";
    command.args(["-c", script, OPM]).arg(world.root());
    command.stdout(log.try_clone().unwrap()).stderr(log);
    world.spawn(command);
    for count in 1..=3 {
        world.until("a run", || world.lines("limits").len() == count);
        world.until_phase("web", "up");
        assert_eq!(world.opm(&["reexec"]).code, 0);
        assert_eq!(world.opm(&["restart", "web"]).code, 0);
    }
    world.until("the last run", || world.lines("limits").len() == 4);
    assert!(
        world.lines("limits").iter().all(|limit| limit == "300"),
        "{:?}",
        world.lines("limits")
    );
}

#[test]
fn a_watchdog_of_the_next_definition_does_not_watch_this_one() {
    let Some(mut world) = World::new() else { return };
    let unit = |world: &World, watchdog: &str, go: &str| {
        let keys = format!(
            "instances: 2\nwatchdog: {watchdog}\nready: {{notify: true}}\nenv: {{GO: {go}}}\nrestart: never\n"
        );
        let script =
            "until [ -e $GO ]; do sleep 0.02; done; systemd-notify --ready; exec sleep 1000";
        world.service("web", script, &keys);
    };
    if !std::path::Path::new("/usr/bin/systemd-notify").exists() {
        return skip("no systemd-notify");
    }
    unit(&world, "1h", "first");
    std::fs::write(world.path("first"), "").unwrap();
    world.run();
    for id in ["web@1", "web@2"] {
        world.until("it is up", || world.phase(id) == "up");
    }
    let pid = world.pid("web@2");
    unit(&world, "100ms", "second");
    assert_eq!(world.opm(&["apply", "--rolling", "--no-wait", "units"]).code, 0);
    world.until("the first to try", || world.phase("web@1") == "starting");
    watch_for(Duration::from_millis(400), || world.pid("web@2") != pid, "the other runs on");
}

#[test]
fn of_two_that_run_and_are_to_conflict_the_first_by_name_stays() {
    let Some(mut world) = World::new() else { return };
    world.service("blue", "exec sleep 1000", "enabled: false\n");
    world.service("green", "exec sleep 1000", "enabled: false\n");
    world.service("web", "exec sleep 1000", "requires: [green]\n");
    world.run();
    world.until_phase("web", "waiting");
    assert_eq!(world.opm(&["start", "green", "blue"]).code, 0);
    world.until_phase("web", "up");
    let pid = world.pid("blue");
    world.service("green", "exec sleep 1000", "enabled: false\nconflicts: [blue]\n");
    assert_eq!(world.opm(&["apply", "--no-wait", "units"]).code, 0);
    for unit in ["green", "web"] {
        world.until_phase(unit, "waiting");
    }
    assert!(world.log().contains("it conflicts with `blue`, which runs"), "{}", world.log());
    assert_eq!((world.phase("blue").as_str(), world.pid("blue")), ("up", pid));
    assert_eq!(world.opm(&["stop", "blue"]).code, 0);
    world.until_phase("web", "up");
    assert_eq!(world.phase("blue"), "down");
}

#[test]
fn who_stays_is_not_held_up_by_one_that_goes() {
    let Some(mut world) = World::new() else { return };
    let script = "echo ${instance} >> begun; trap '' TERM; while :; do sleep 0.02; done";
    let keys = |count: u32| {
        format!(
            "instances: {count}\nstop: {{timeout: 1h}}\nrestart: {{policy: always, delay: 0s}}\n"
        )
    };
    world.service("web", script, &keys(3));
    world.run();
    for id in ["web@1", "web@2", "web@3"] {
        world.until("it is up", || world.phase(id) == "up");
    }
    world.until("all to begin", || world.lines("begun").len() == 3);
    world.service("web", script, &keys(2));
    assert_eq!(world.opm(&["apply", "--no-wait", "units"]).code, 0);
    world.until_phase("web@3", "stopping");
    world.kill("KILL", world.pid("web@1").unwrap());
    world.until("its next run", || world.lines("begun").len() == 4);
    // A start of the unit is one of what it asks for.
    assert_eq!(world.opm(&["start", "web"]).code, 0);
    world.kill("KILL", world.pid("web@3").unwrap());
    world.until("its end", || world.phase("web@3") == "absent");
}

#[test]
fn of_a_chain_of_conflicts_no_more_stop_than_have_to() {
    let Some(mut world) = World::new() else { return };
    for unit in ["a", "b", "c"] {
        world.service(unit, "exec sleep 1000", "enabled: false\n");
    }
    world.task("b-job", "exec sleep 1000", "enabled: false\n");
    world.run();
    world.until("it", || world.opm(&["status"]).code == 0);
    assert_eq!(world.opm(&["start", "--no-wait", "a", "b", "c", "b-job"]).code, 0);
    for unit in ["a", "b", "c", "b-job"] {
        world.until_phase(unit, "up");
    }
    let pids = ["a", "c", "b-job"].map(|unit| world.pid(unit));
    world.service("b", "exec sleep 1000", "enabled: false\nconflicts: [a, c]\n");
    world.task("b-job", "exec sleep 1000", "enabled: false\nconflicts: [a]\n");
    assert_eq!(world.opm(&["apply", "--no-wait", "units"]).code, 0);
    world.until_phase("b", "waiting");
    watch_for(
        Duration::from_millis(200),
        || ["a", "c", "b-job"].map(|unit| world.pid(unit)) != pids,
        "the others run on, and so does a task in progress",
    );
}

#[test]
fn instances_that_change_their_numbers_do_so_in_turns_where_that_is_asked_for() {
    let Some(mut world) = World::new() else { return };
    let script = "echo ${instance} ${instance.index} >> begun; exec sleep 1000";
    world.service("web", script, "instances: [a, b]\nready: {delay: 100ms}\n");
    world.run();
    for id in ["web@a", "web@b"] {
        world.until("it is up", || world.phase(id) == "up");
    }
    world.service("web", script, "instances: [b, a]\nready: {delay: 100ms}\n");
    let plan = world.opm(&["plan", "--rolling", "units"]).out;
    assert!(plan.contains("± web (restart, 1 at a time"), "{plan}");
    let said = world.opm(&["apply", "--rolling", "units"]);
    assert_eq!(said.code, 0, "{said:?}");
    world.until("both", || world.lines("begun").len() == 4);
    let log = world.log();
    let turns: Vec<&str> =
        log.lines().filter(|l| l.contains("web@") && !l.contains("waits")).collect();
    let last_up = turns.iter().rposition(|line| line.contains(": up")).unwrap();
    let second_stop = turns.iter().rposition(|line| line.contains("stopping")).unwrap();
    let first_again = turns[..second_stop].iter().filter(|line| line.contains(": up")).count();
    assert!(second_stop < last_up && first_again == 3, "one after the other:\n{log}");
}

#[test]
fn a_plan_says_of_those_who_require_a_unit_what_then_happens_where_only_some_instances_restart() {
    let Some(world) = World::new() else { return };
    let w = |names: &str, more: &str| {
        let script = "echo ${instance.index} > /dev/null; exec sleep 1000";
        world.service("w", script, &format!("instances: [{names}]\n{more}"));
    };
    w("a, b, c, d", "");
    world.staying("dep", "requires: [w]\n");
    world.apply(0);
    let dep = || world.pid("dep");
    let before = dep();
    // Two get another number, and one goes on.
    w("a, c, d", "");
    let plan = world.opm(&["plan", "units"]).out;
    assert!(plan.contains("± w") && !plan.contains("dep"), "{plan}");
    world.apply(0);
    assert_eq!(dep(), before);
    // Who is held comes not meanwhile.
    assert_eq!(world.opm(&["stop", "w@c"]).code, 0);
    w("a, c, d", "env: {A: b}\n");
    let plan = world.opm(&["plan", "units"]).out;
    assert!(plan.contains("± dep (restart, ") && plan.contains("because of `w`"), "{plan}");
    let said = world.opm(&["apply", "units", "--no-wait"]);
    assert_eq!(said.code, 0, "{said:?}");
    world.until("its restart", || dep() != before);
}

#[test]
fn a_plan_names_who_begins_or_goes_because_of_what_another_unit_needs_no_more_or_from_now_on() {
    let Some(world) = World::new() else { return };
    let off = |name: &str| world.staying(name, "enabled: false\n");
    let on = |name: &str| world.staying(name, "");
    off("p");
    world.staying("q", "requires: [p]\n");
    world.staying("r", "requires: [q]\n");
    assert_eq!(world.opm(&["apply", "units", "--no-wait"]).code, 0);
    world.until_phase("r", "waiting");
    // What the plan of a change says, and who is up then.
    let then = |case: &str, planned: &[&str], up: &[&str]| {
        let plan = world.opm(&["plan", "units"]).out;
        let lines: Vec<&str> =
            plan.lines().filter(|line| line.starts_with(['+', '-', '~', '±'])).collect();
        assert_eq!(lines, planned, "{case}");
        world.opm(&["apply", "units", "--no-wait"]);
        for unit in up {
            world.until_phase(unit, "up");
        }
        for unit in ["p", "q", "r"].iter().filter(|unit| !up.contains(unit)) {
            let is_down = || ["down", "waiting", "failed"].contains(&world.phase(unit).as_str());
            world.until(case, is_down);
        }
    };
    let all_begin = ["+ p (start)", "+ q (start, because of `p`)", "+ r (start, because of `q`)"];
    let (r_goes, q_goes) = ("- r (stop, because of `q`)", "- q (stop, because of `p`)");
    on("p");
    then("what they have waited for comes", &all_begin, &["p", "q", "r"]);
    off("p");
    then("it goes", &[r_goes, q_goes, "- p (stop)"], &[]);
    on("q");
    then("it is needed no more", &["+ q (start)", "+ r (start, because of `q`)"], &["q", "r"]);
    world.staying("q", "requires: [p]\n");
    then("it is needed again", &[r_goes, q_goes], &[]);
    world.unit("p", "command: ['false']\nrestart: never\nlogs: {to: null}\n");
    then("it comes, and fails", &all_begin, &[]);
    on("p");
    then("it is in order", &all_begin, &["p", "q", "r"]);
    let keys = "restart: {delay: 1h}\nlogs: {to: null}\n";
    world.unit("p", &format!("command: [./nowhere]\n{keys}"));
    world.opm(&["apply", "units", "--no-wait"]);
    world.until_phase("p", "backoff");
    world.unit("p", &format!("command: [sleep, '1000']\n{keys}"));
    let plan = world.opm(&["plan", "units"]).out;
    assert!(plan.contains("+ p (start)"), "{plan}");
    world.opm(&["apply", "units", "--no-wait"]);
    world.until_phase("p", "up");
}

#[test]
fn a_plan_says_of_a_roll_no_more_than_what_is_so() {
    let Some(world) = World::new() else { return };
    let unit = |name: &str, more: &str| {
        let times = "stop: {timeout: 1s}\nstart_timeout: 2s\n";
        world.staying(name, &format!("{times}{more}"));
    };
    unit("db", "");
    unit("web", "instances: 4\nrequires: [db]\n");
    unit("front", "requires: [web]\n");
    world.apply(0);
    let changed = "env: {A: b}\n";
    unit("web", &format!("instances: 4\nrequires: [db]\n{changed}"));
    unit("front", &format!("requires: [web]\n{changed}"));
    let plan = |world: &World| world.opm(&["plan", "units", "--rolling"]).out;
    // Who waits for all of them waits for each of their turns.
    let said = plan(&world);
    assert!(said.contains("± web (restart, 1 at a time)"), "{said}");
    assert!(said.contains("± front (restart, down for 15s at most)"), "{said}");
    // What takes all of them along leaves none to have a turn.
    unit("db", changed);
    let said = plan(&world);
    assert!(said.contains("± web (restart, down for 6s at most, because of `db`)"), "{said}");
    let said = world.opm(&["apply", "units", "--rolling"]);
    assert_eq!(said.code, 0, "{said:?}");
    let log = world.log();
    let places: Vec<usize> =
        (1..=4).map(|n| log.find(&format!("web@{n}: stopping")).expect("it stops")).collect();
    let first_up = log.rfind("web@").unwrap();
    let up = log.match_indices("db: up").last().map(|(place, _)| place).unwrap();
    assert!(places.iter().all(|place| *place < up) && up < first_up, "{log}");
}
