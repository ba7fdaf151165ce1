//! What an end leads to: for opm, for other units, and for whoever waits.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::time::Duration;

use common::{Said, World, until, watch_for};

/// Ends after TERM when it has drained for a second.
const DRAINS: &str = "trap 'sleep 1; echo >> drained; exit' TERM; echo >> up; \
                      while :; do sleep 0.02; done";
/// Takes no notice of TERM.
const STUBBORN: &str = "trap '' TERM INT QUIT; echo >> up; while :; do sleep 0.02; done";

fn signal(pid: u32, name: &str) {
    let world = World::bare();
    let status = world.command("kill").args(["-s", name, &pid.to_string()]).status().unwrap();
    assert!(status.success());
}

/// As PID 1 with this much time for a shutdown, which begins when so many are up. What opm said.
fn shut_down(mut world: World, budget: &str, up: usize) -> Option<(World, Duration)> {
    if !world.start_pid_one(&["run", "--shutdown-timeout", budget, "units"]) {
        return None;
    }
    until("all to be up", || world.lines("up").len() == up);
    let began = common::now();
    signal(world.init(), "TERM");
    assert_eq!(world.wait_init(), 0, "{}", world.log());
    Some((world, began.elapsed()))
}

#[test]
fn what_does_not_run_takes_no_part_of_the_time_for_a_shutdown() {
    let world = World::bare();
    for n in 1..=4 {
        let requires = if n == 1 { String::new() } else { format!("requires: [t{}]\n", n - 1) };
        world.task(&format!("t{n}"), "true", &requires);
    }
    world.service("app", DRAINS, "requires: [t4]\nstop: {timeout: 60s}\n");
    let Some((world, _)) = shut_down(world, "4s", 1) else { return };
    assert_eq!(world.lines("drained").len(), 1, "{}", world.log());
}

#[test]
fn the_steps_of_a_stop_share_the_time_of_one_stage() {
    let world = World::bare();
    let step = |signal: &str| format!("{{signal: {signal}, wait: 60s}}");
    let steps = ["TERM", "INT", "QUIT"].map(step).join(", ");
    world.service("db", DRAINS, "stop: {timeout: 60s}\n");
    world.service("web", STUBBORN, &format!("requires: [db]\nstop: {{steps: [{steps}]}}\n"));
    let Some((world, _)) = shut_down(world, "4s", 2) else { return };
    assert_eq!(world.lines("drained").len(), 1, "{}", world.log());
    assert!(world.log().contains("killed before their own time was over"), "{}", world.log());
}

#[test]
fn what_follows_a_stop_that_was_cut_short_has_its_time_too_and_so_has_the_log_keeper() {
    let world = World::bare();
    world.unit(
        "app",
        &format!(
            "{}post_stop: [[sh, -c, 'sleep 0.2; echo >> after']]\nworking_dir: ..\n\
             stop: {{timeout: 60s}}\n",
            common::in_shell(STUBBORN).replace("working_dir: ..\n", "")
        ),
    );
    let Some((world, took)) = shut_down(world, "3s", 1) else { return };
    assert_eq!(world.lines("after").len(), 1, "{}", world.log());
    assert!(!world.log().contains("_opm-log-keeper ("), "{}", world.log());
    assert!(took < Duration::from_secs(8), "{took:?}");
}

#[test]
fn what_no_unit_owns_takes_no_time_beyond_that_for_the_shutdown() {
    let world = World::bare();
    let stray = "(setsid env -i sh -c \"trap '' TERM; while :; do sleep 0.02; done\" &); ";
    world.service("app", &format!("{stray}{STUBBORN}"), "stop: {timeout: 60s}\n");
    let Some((world, took)) = shut_down(world, "2s", 1) else { return };
    // A while for a busy machine; their own two seconds would come on top of the two.
    assert!(took < Duration::from_millis(3_700), "{took:?}\n{}", world.log());
}

#[test]
fn who_asks_first_for_a_shutdown_that_goes_on_does_not_ask_again() {
    let mut world = World::bare();
    world.service("db", DRAINS, "");
    let web = DRAINS.replace("drained", "web_drained");
    world.service("web", &web, "requires: [db]\n");
    let main = "while [ ! -e go ]; do sleep 0.02; done; exit 5";
    world.service("main", main, "restart: never\nessential: true\n");
    if !world.start_pid_one(&["run", "units"]) {
        return;
    }
    until("both to be up", || world.lines("up").len() == 2);
    std::fs::write(world.path("go"), "").unwrap();
    until("the shutdown", || world.log().contains("shutting down"));
    signal(world.init(), "TERM");
    assert_eq!(world.wait_init(), 5, "{}", world.log());
    assert!(!world.log().contains("at once"), "{}", world.log());
    assert_eq!((world.lines("web_drained").len(), world.lines("drained").len()), (1, 1));
}

#[test]
fn the_code_is_that_of_the_end_that_came_first() {
    let mut world = World::bare();
    let main = format!("({STUBBORN}) & while [ ! -e go ]; do sleep 0.02; done; exit 7");
    world.service("main", &main, "restart: never\nessential: true\nstop: {timeout: 3s}\n");
    if !world.start_pid_one(&["run", "units"]) {
        return;
    }
    until("it to be up", || world.lines("up").len() == 1);
    std::fs::write(world.path("go"), "").unwrap();
    until("its end", || world.log().contains("main process is gone"));
    signal(world.init(), "TERM");
    assert_eq!(world.wait_init(), 7, "{}", world.log());
}

#[test]
fn an_end_before_a_unit_was_made_essential_is_no_reason_to_go_down() {
    let Some(world) = World::new() else { return };
    world.service("other", "exec sleep 1000", "");
    world.service("web", "exit 7", "restart: never\n");
    world.task("job", "true", "");
    world.opm(&["apply", "--no-wait", "units"]);
    for (unit, phase) in [("job", "done"), ("web", "failed"), ("other", "up")] {
        world.until_phase(unit, phase);
    }
    let pid = world.pid("other");
    world.staying("web", "restart: never\nessential: true\non_failure: shutdown\n");
    world.task("job", "true", "on_success: shutdown\n");
    let plan = world.opm(&["plan", "units"]).out;
    assert!(plan.contains("+ web (start)") && plan.contains("~ job (change live)"), "{plan}");
    world.apply(0);
    assert_eq!((world.phase("web").as_str(), world.starts("web")), ("up", 1));
    assert_eq!((world.phase("job").as_str(), world.pid("other")), ("done", pid));
}

#[test]
fn a_task_that_ends_opm_runs_in_each_of_its_lives_and_locks_nobody_out() {
    let Some(mut world) = World::new() else { return };
    world.task(
        "job",
        "echo >> runs; while [ -e wait ]; do sleep 0.02; done",
        "on_success: shutdown\n",
    );
    for runs in [1, 2] {
        world.run();
        assert_eq!(world.wait_run(), 0, "{}", world.log());
        assert_eq!(world.lines("runs").len(), runs);
    }
    std::fs::write(world.path("wait"), "").unwrap();
    world.remove_unit("job");
    world.staying("web", "");
    world.apply(0);
    assert_eq!(world.phase("web"), "up");
}

#[test]
fn who_waits_hears_that_opm_goes_down() {
    for (ready, more) in [("", ""), ("ready: {file: never}\n", "--rollback-on-failure")] {
        let Some(world) = World::new() else { return };
        world.staying("web", "");
        world.apply(0);
        world.task("job", "sleep 0.2; exit 3", "on_failure: shutdown\n");
        world.staying("slow", ready);
        let args: Vec<&str> =
            ["apply", "units", more].into_iter().filter(|a| !a.is_empty()).collect();
        let said = world.opm(&args);
        assert_eq!(said.code, 1, "{said:?}");
        assert!(said.err.contains("opm is shutting down: `job` ended for good"), "{said:?}");
    }
}

#[test]
fn a_start_by_hand_while_a_run_comes_to_its_end_is_carried_out() {
    let Some(world) = World::new() else { return };
    let leaves =
        format!("echo >> runs; ({STUBBORN}) & while [ ! -e go ]; do sleep 0.02; done; exit 1");
    world.service("never", &leaves, "restart: never\nstop: {timeout: 1s}\n");
    world.service("later", &leaves, "restart: {delay: 1h}\nstop: {timeout: 1s}\n");
    world.apply(0);
    until("both to be up", || world.lines("up").len() == 2);
    std::fs::write(world.path("go"), "").unwrap();
    for unit in ["never", "later"] {
        world.until_phase(unit, "stopping");
    }
    std::fs::remove_file(world.path("go")).unwrap();
    let said = world.opm(&["start", "never", "later"]);
    assert_eq!(said.code, 0, "{said:?}\n{}", world.log());
    assert_eq!(world.lines("runs").len(), 4);
}

#[test]
fn units_that_start_each_other_wait_longer_and_longer() {
    let Some(world) = World::new() else { return };
    world.task("a", "echo >> runs; false", "restart: never\non_failure: {start: b}\n");
    world.task("b", "echo >> runs; false", "restart: never\non_failure: {start: a}\n");
    // Its limit counts these starts too.
    let limit = "restart: {delay: 1ms, limit: {starts: 3, within: 1h}}\n";
    world.service(
        "web",
        "echo >> web_runs; exit 1",
        &format!("{limit}on_failure: {{start: repair}}\n"),
    );
    world.task("repair", "true", "enabled: false\non_success: {start: web}\n");
    world.opm(&["apply", "--no-wait", "units"]);
    until("a few rounds", || world.lines("runs").len() >= 6 && world.lines("web_runs").len() == 3);
    let many = || world.lines("runs").len() > 14 || world.lines("web_runs").len() > 3;
    watch_for(Duration::from_secs(2), many, "they start each other without a wait");
    world.opm(&["start", "web"]);
    until("a start by hand, which begins anew", || world.lines("web_runs").len() > 3);
}

#[test]
fn tasks_with_schedules_that_start_each_other_wait_longer_and_longer_too() {
    let Some(world) = World::new() else { return };
    for (task, other) in [("a", "b"), ("b", "a")] {
        let keys = format!("every: 1h\non_success: {{start: {other}}}\n");
        world.task(task, "echo >> runs", &keys);
    }
    world.apply(0);
    world.opm(&["start", "--no-wait", "a"]);
    until("a few rounds", || world.lines("runs").len() >= 5);
    watch_for(Duration::from_secs(2), || world.lines("runs").len() > 14, "they do not wait");
}

#[test]
fn a_start_by_hand_waits_for_no_start_that_is_to_come() {
    let Some(world) = World::new() else { return };
    let limit = "restart: {delay: 1ms, limit: {starts: 2, within: 1h}}\n";
    let web = "echo >> runs; [ -e well ] && exec sleep 1000; exit 1";
    world.service("web", web, &format!("{limit}on_failure: {{start: repair}}\n"));
    world.task("repair", "echo >> repairs", "enabled: false\non_success: {start: web}\n");
    world.opm(&["apply", "--no-wait", "units"]);
    until("the repair", || world.lines("repairs").len() == 1);
    world.until_phase("repair", "done");
    assert_eq!((world.phase("web").as_str(), world.lines("runs").len()), ("failed", 2));
    std::fs::write(world.path("well"), "").unwrap();
    for stop in [true, false] {
        if stop {
            assert_eq!(world.opm(&["stop", "web"]).code, 0);
        }
        assert_eq!(world.opm(&["start", "web"]).code, 0);
        world.until_phase("web", "up");
    }
}

#[test]
fn more_time_that_is_asked_for_is_given_where_a_shutdown_has_it() {
    let world = World::bare();
    let app = "trap 'systemd-notify EXTEND_TIMEOUT_USEC=20000000; sleep 1; echo >> drained; exit' TERM; \
               echo >> up; systemd-notify --ready; while :; do sleep 0.02; done";
    world.service("app", app, "ready: {notify: true}\nstop: {timeout: 300ms}\n");
    let Some((world, _)) = shut_down(world, "20s", 1) else { return };
    assert_eq!(world.lines("drained").len(), 1, "{}", world.log());
}

#[test]
fn a_task_that_completes_and_ends_opm_is_no_failure_for_who_waits() {
    for (wait, more) in
        [(&["apply", "units"][..], ""), (&["wait", "--for", "completed", "job"], "")]
    {
        let Some(world) = World::new() else { return };
        world.staying("web", more);
        world.apply(0);
        world.task("job", "while [ ! -e go ]; do sleep 0.02; done", "on_success: shutdown\n");
        if wait[0] == "wait" {
            world.opm(&["apply", "--no-wait", "units"]);
        }
        let waiting = world.begin(wait);
        world.until_phase("job", "up");
        std::fs::write(world.path("go"), "").unwrap();
        let said = Said::of_child(waiting);
        assert_eq!(said.code, 0, "{said:?}");
    }
}

#[test]
fn what_is_started_after_something_else_each_time_does_not_wait() {
    let Some(world) = World::new() else { return };
    world.task("first", "echo >> firsts", "enabled: false\non_success: {start: second}\n");
    world.task("second", "echo >> seconds", "enabled: false\nrestart: {delay: 1h}\n");
    world.apply(0);
    for times in 1..=5 {
        assert_eq!(world.opm(&["start", "first"]).code, 0);
        world.until("the second", || world.lines("seconds").len() == times);
        world.until_phase("second", "done");
    }
}

#[test]
fn a_dependency_that_comes_back_while_one_waits_for_it_clears_its_counters() {
    let Some(world) = World::new() else { return };
    world.staying("db", "restart: {delay: 1s, factor: 1}\n");
    let web = "echo >> up; while [ ! -e go ]; do sleep 0.02; done; rm go; exit 1";
    world.service("web", web, "requires: [db]\nrestart: {delay: 500ms, factor: 1}\n");
    world.apply(0);
    for times in [1, 2] {
        until("its run", || world.lines("up").len() == times);
        std::fs::write(world.path("go"), "").unwrap();
        world.until_phase("web", "backoff");
    }
    world.kill("KILL", world.pid("db").unwrap());
    world.until_phase("web", "waiting");
    world.until_phase("web", "up");
    assert_eq!(world.row("web")["restarts"], 0, "{}", world.row("web"));
}

#[test]
fn one_more_instance_of_a_dependency_is_no_restart_of_it() {
    let Some(world) = World::new() else { return };
    world.service("db", "exec sleep 1000", "instances: 2\n");
    world.staying("web", "requires: [db]\non_dependency_restart: restart\n");
    world.apply(0);
    world.service("db", "exec sleep 1000", "instances: 3\n");
    world.apply(0);
    world.until_phase("db@3", "up");
    watch_for(Duration::from_millis(300), || world.starts("web") > 1, "it restarted");
    world.kill("KILL", world.pid("db@1").unwrap());
    until("a restart with one that came back", || world.starts("web") == 2);
}

#[test]
fn a_plan_says_what_runs_and_a_word_about_a_unit_runs_nothing() {
    let Some(world) = World::new() else { return };
    world.task("done", "echo >> done.runs", "");
    world.task("failed", "echo >> failed.runs; false", "restart: never\n");
    world.apply(1);
    world.task("done", "echo >> done.runs; true", "");
    world.task("failed", "echo >> failed.runs; false", "restart: never\ndescription: words\n");
    let plan = world.opm(&["plan", "units"]).out;
    assert!(plan.contains("+ done (start)") && plan.contains("~ failed (change live)"), "{plan}");
    world.apply(1);
    assert_eq!((world.lines("done.runs").len(), world.lines("failed.runs").len()), (2, 1));
    world.task("failed", "echo >> failed.runs; false", "restart: never\nsuccess_exit: [0, 1]\n");
    let plan = world.opm(&["plan", "units"]).out;
    assert!(plan.contains("+ failed (start)"), "{plan}");
    world.apply(0);
    assert_eq!((world.phase("failed").as_str(), world.lines("failed.runs").len()), ("done", 2));
}

#[test]
fn a_service_that_is_done_goes_on_by_a_policy_that_says_so() {
    let Some(world) = World::new() else { return };
    world.service("web", "echo >> runs; [ -e stay ] && exec sleep 1000; exit 0", "");
    world.apply(0);
    world.until_phase("web", "done");
    std::fs::write(world.path("stay"), "").unwrap();
    world.service(
        "web",
        "echo >> runs; [ -e stay ] && exec sleep 1000; exit 0",
        "restart: always\n",
    );
    let plan = world.opm(&["plan", "units"]).out;
    assert!(plan.contains("+ web (start)"), "{plan}");
    world.apply(0);
    assert_eq!((world.phase("web").as_str(), world.lines("runs").len()), ("up", 2));
}

#[test]
fn a_task_that_fails_late_is_tried_again_later_and_later() {
    let Some(world) = World::new() else { return };
    let restart = "restart: {policy: on-failure, delay: 100ms, factor: 4, jitter: 0, max_delay: 1h, reset_after: 50ms}\n";
    world.task("job", "date +%s%N >> t; sleep 0.2; exit 1", restart);
    world.opm(&["apply", "--no-wait", "units"]);
    world.until("four tries", || world.lines("t").len() == 4);
    let times: Vec<u64> = world.lines("t").iter().map(|line| line.parse().unwrap()).collect();
    assert!((times[3] - times[2]) / 1_000_000 >= 1_600, "{times:?}");
}

#[test]
fn a_trial_that_ends_while_one_waits_takes_back_one_change_and_is_a_failure() {
    let Some(world) = World::new() else { return };
    for text in ["", "nice: 1\n"] {
        world.staying("web", text);
        world.apply(0);
    }
    let before = world.opm(&["history", "--json"]).out;
    world.staying("web", "nice: 2\nready: {file: never}\nstart_timeout: 1m\n");
    for more in [&["--rollback-on-failure"][..], &["--rollback-on-failure", "--timeout", "3s"], &[]]
    {
        let said = world.opm(&[&["apply", "units", "--confirm", "1s"], more].concat());
        assert_eq!(said.code, 1, "{said:?}\n{before}");
        let show = world.opm(&["show", "web"]).out;
        assert!(show.contains("nice: 1"), "one change was taken back: {show}");
    }
}

#[test]
fn a_source_does_not_take_away_what_another_one_requires() {
    let Some(world) = World::new() else { return };
    world.staying("db", "");
    world.apply(0);
    let other = world.path("other");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("web.yaml"), "command: [sleep, '1000']\nrequires: [db]\n").unwrap();
    assert_eq!(world.opm(&["apply", "other"]).code, 0);
    world.remove_unit("db");
    world.staying("new", "");
    let said = world.opm(&["apply", "units"]);
    assert_eq!(said.code, 4, "{said:?}");
    assert!(said.err.contains("`web` of source") && said.err.contains("requires `db`"), "{said:?}");
    assert_eq!((world.phase("db").as_str(), world.starts("new")), ("up", 0));
    std::fs::write(other.join("web.yaml"), "command: [sleep, '1000']\n").unwrap();
    assert_eq!(world.opm(&["apply", "other"]).code, 0);
    world.apply(0);
}

#[test]
fn a_program_that_is_no_opm_does_not_take_its_place() {
    let Some(world) = World::new() else { return };
    let program = world.path("opm");
    std::fs::copy(env!("CARGO_BIN_EXE_opm"), &program).unwrap();
    world.staying("web", "");
    let run = |args: &[&str]| {
        let mut command = world.command(program.to_str().unwrap());
        command.arg("--root").arg(world.root()).args(args);
        command.output().unwrap()
    };
    assert!(run(&["apply", "units"]).status.success());
    let pid = world.daemon_pid();
    let keep = world.path("opm.old");
    std::fs::copy(&program, &keep).unwrap();
    std::fs::remove_file(&program).unwrap();
    for (what, text) in
        [("nothing", None), ("a script", Some("#!/bin/sh\nexit 1\n")), ("no program", Some("x"))]
    {
        if let Some(text) = text {
            use std::os::unix::fs::PermissionsExt;
            std::fs::write(&program, text).unwrap();
            std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        }
        let said = world.opm(&["reexec"]);
        assert_eq!(said.code, 4, "{what}: {said:?}");
        assert!(said.err.contains("the old program goes on"), "{what}: {said:?}");
        // Whoever asks past this command hears it too.
        assert_eq!((world.daemon_pid(), world.phase("web").as_str()), (pid, "up"), "{what}");
    }
    std::fs::rename(&keep, &program).unwrap();
    assert_eq!(world.opm(&["reexec"]).code, 0);
    assert_eq!((world.daemon_pid(), world.starts("web")), (pid, 1));
}

#[test]
fn a_name_without_end_holds_nobody_up() {
    let Some(world) = World::new() else { return };
    for n in 0..600 {
        world.unit(&format!("unit-with-a-long-name-{n}"), "kind: target\nenabled: false\n");
    }
    world.apply(0);
    let said: Said = world.opm(&["status", &"x".repeat(120_000)]);
    assert_eq!(said.code, 4, "{}", said.err.len());
}

#[test]
fn of_several_instances_all_end_well_or_the_first_that_fails_tells_the_code() {
    for (script, code) in [
        (
            "[ ${instance} = 2 ] && { until [ -e 1.done ]; do sleep 0.02; done; sleep 0.3; exit 77; }; echo > ${instance}.done",
            77,
        ),
        (
            "[ ${instance} = 2 ] && { until [ -e 1.done ]; do sleep 0.02; done; sleep 0.3; }; echo > ${instance}.done",
            0,
        ),
    ] {
        let Some(mut world) = World::new() else { return };
        world.task("c", script, "instances: 3\nessential: true\nrestart: never\n");
        world.run();
        assert_eq!(world.wait_run(), code, "{}", world.log());
        let is_whole = world.path("2.done").exists();
        assert_eq!(is_whole, code == 0, "it was cut short\n{}", world.log());
    }
}
