//! Tasks that run when they are due. What a clock that is set does to them is in `clock.rs`; when an
//! expression is due, in `src/model/schedule/tests.rs`; what must hold in any world, in `sim/once.rs`.

mod common;

use std::time::Duration;

use common::{World, now};

#[test]
fn a_task_runs_at_its_times_and_not_twice_over_a_crash() {
    let Some(mut world) = World::new() else { return };
    world.task("tick", "echo $$ >> runs", "every: 1s\n");
    let began = now();
    world.run();
    for runs in [2, 4] {
        world.until("it to run", || world.lines("runs").len() >= runs);
        world.crash();
        world.run();
        // One due time comes in each second that passed, and none at the beginning.
        let (count, passed) = (world.lines("runs").len(), began.elapsed());
        assert!(count as u64 <= passed.as_secs(), "{count} runs in {passed:?}\n{}", world.log());
    }
    world.until("it to run", || world.lines("runs").len() >= 5);
    world.assert_no_doubles();
    assert_eq!(world.opm(&["shutdown"]).code, 0);
}

#[test]
fn the_first_start_of_a_task_that_nobody_wanted_runs_it() {
    let Some(mut world) = World::new() else { return };
    let hourly = "enabled: false\nevery: 1h\n";
    world.task("dump", "echo $$ >> dumps", hourly);
    world.task("report", "echo $$ >> reports", hourly);
    world.task("backup", "true", "on_success: {start: report}\n");
    world.run();
    world.until("the report after the first backup", || world.lines("reports").len() == 1);
    for runs in 1..=2 {
        assert_eq!(world.opm(&["start", "dump"]).code, 0);
        assert_eq!(world.lines("dumps").len(), runs);
    }
    // What ran in the default target's time only by hand is one of those too.
    world.unit("default", "kind: target\nrequires: [backup]\n");
    world.task("aside", "echo $$ >> asides", "every: 1h\n");
    world.apply(0);
    assert_eq!(world.opm(&["start", "aside"]).code, 0);
    assert_eq!(world.lines("asides").len(), 1);
    world.crash();
    world.run();
    world.until("opm to be there", || world.phase("aside") == "done");
    assert_eq!((world.lines("asides").len(), world.lines("dumps").len()), (1, 2));
    world.task("other", "echo $$ >> others", hourly);
    world.apply(0);
    assert_eq!(world.opm(&["restart", "other"]).code, 0);
    assert_eq!(world.lines("others").len(), 1, "what is down is started");
}

#[test]
fn a_change_of_a_task_that_failed_is_not_run_before_it_is_due() {
    let Some(mut world) = World::new() else { return };
    world.task("backup", "echo $$ >> runs; exit 1", "every: 1h\nrestart: never\n");
    world.task("unmet", "echo $$ >> met", "every: 1h\nconditions: {path_exists: [nowhere]}\n");
    world.run();
    world.until_phase("unmet", "down");
    assert_eq!(world.opm(&["start", "backup"]).code, 1);
    world.opm(&["start", "unmet"]);
    assert_eq!(
        (world.phase("backup").as_str(), world.phase("unmet").as_str()),
        ("failed", "skipped")
    );
    world.task("backup", "echo $$ >> runs", "every: 1h\nrestart: never\n");
    world.task("unmet", "echo $$ >> met", "every: 1h\n");
    world.apply(0);
    assert_eq!((world.lines("runs").len(), world.lines("met").len()), (1, 0));
    assert_eq!(world.opm(&["start", "backup", "unmet"]).code, 0);
    assert_eq!((world.lines("runs").len(), world.lines("met").len()), (2, 1));
}

#[test]
fn a_task_that_was_due_and_waits_is_known_to_wait_by_the_next_supervisor() {
    let Some(mut world) = World::new() else { return };
    world.staying("db", "enabled: false\n");
    world.task("tick", "echo $$ >> runs", "every: 1s\nrequires: [db]\n");
    world.run();
    world.until("the daemon", || world.phase("db") != "absent");
    assert_eq!(world.opm(&["stop", "db"]).code, 0);
    world.until_phase("tick", "waiting");
    // Else, a minute later, it would be taken for one that nobody was there to start.
    let is_kept = |line: &str| line.contains("\"tick\"") && line.contains("\"waits\"");
    let ledger = || std::fs::read_to_string(world.ledger()).unwrap_or_default();
    world.until("its wait in the ledger", || ledger().lines().any(is_kept));
    assert_eq!(world.opm(&["reexec"]).code, 0);
    world.until_phase("tick", "waiting");
    assert_eq!(world.lines("runs").len(), 0);
    assert_eq!(world.opm(&["start", "db"]).code, 0);
    world.until("its run", || !world.lines("runs").is_empty());
}

#[test]
fn a_task_is_not_run_by_an_apply_and_runs_at_once_when_it_is_started() {
    let Some(mut world) = World::new() else { return };
    world.run();
    world.task("yearly", "echo $$ >> runs", "schedule: '@yearly'\n");
    // Nothing is under way, so that there is nothing to wait for.
    world.apply(0);
    assert_eq!(world.opm(&["wait", "--for", "settled", "yearly"]).code, 0);
    let waits = ["wait", "--for", "completed", "--timeout", "200ms", "yearly"];
    assert_eq!(world.opm(&waits).code, 5, "it comes by itself, in time");
    assert_eq!(world.lines("runs").len(), 0);
    let row = world.row("yearly");
    assert_eq!((row["phase"].as_str(), row["settled"].as_bool()), (Some("down"), Some(true)));
    assert!(row["next_run"].as_str().unwrap().contains("-01-01T00:00:00"), "{row}");
    assert!(row["last_run"].is_null(), "{row}");
    // It is where it should be.
    assert_eq!(world.opm(&["status", "yearly"]).code, 0);
    let why = world.opm(&["why", "yearly"]);
    assert!(why.out.contains("it runs when it is due; next run"), "{}", why.out);
    for runs in 1..=2 {
        assert_eq!(world.opm(&["start", "yearly"]).code, 0);
        assert_eq!(world.lines("runs").len(), runs);
    }
    let row = world.row("yearly");
    assert!(row["last_run"].is_string() && row["next_run"].is_string(), "{row}");
    // A new definition, and an opm that is started anew, run it neither.
    world.task("yearly", "echo $$ >> runs; exit 0", "schedule: '@yearly'\n");
    world.apply(0);
    world.crash();
    world.run();
    world.until("opm to be there", || world.phase("yearly") == "done");
    assert_eq!(world.lines("runs").len(), 2);
    assert_eq!(world.opm(&["shutdown"]).code, 0);
}

#[test]
fn a_run_that_goes_on_when_the_next_is_due_is_left_followed_or_ended() {
    // The first run goes on until it is let go; later ones end at once.
    let script =
        "echo $$ >> runs; [ -e free ] || { : > first; until [ -e free ]; do sleep 0.05; done; }";
    for overlap in ["skip", "queue", "kill"] {
        let Some(mut world) = World::new() else { return };
        world.task("job", script, &format!("every: 1s\noverlap: {overlap}\n"));
        world.run();
        world.until("its first run", || world.path("first").exists());
        let first: i32 = world.lines("runs")[0].parse().unwrap();
        if overlap == "kill" {
            world.until("a second run", || world.lines("runs").len() >= 2);
            assert!(!world.alive(first), "two runs at once");
            std::fs::write(world.path("free"), "").unwrap();
        } else {
            let second = || world.lines("runs").len() > 1;
            common::watch_for(
                Duration::from_millis(2_500),
                second,
                "a second run beside the first",
            );
            assert_eq!(world.opm(&["stop", "job", "--no-wait"]).code, 0);
            world.until("its end", || !world.alive(first));
            std::fs::write(world.path("free"), "").unwrap();
            // Held, it runs not even where a run was queued.
            assert_eq!(world.lines("runs").len(), 1, "{overlap}");
            assert_eq!(world.opm(&["release", "job"]).code, 0);
            world.until("another run", || world.lines("runs").len() >= 2);
        }
        world.assert_no_doubles();
        assert_eq!(world.opm(&["shutdown"]).code, 0);
    }
}

#[test]
fn who_requires_a_task_with_a_schedule_waits_until_it_has_completed_once() {
    let Some(mut world) = World::new() else { return };
    world.task("fetch", "echo x >> runs", "every: 1s\n");
    world.service("web", "cat runs > seen; exec sleep 1000", "requires: [fetch]\n");
    world.run();
    world.until_phase("web", "up");
    world.until("what it saw", || !world.lines("seen").is_empty());
    assert_eq!(world.lines("seen").len(), 1);
    let pid = world.pid("web");
    world.until("two more runs", || world.lines("runs").len() >= 3);
    assert_eq!(world.pid("web"), pid, "a run of what it requires is no reason to restart");
    assert_eq!(world.opm(&["shutdown"]).code, 0);
}

#[test]
fn an_apply_does_not_wait_for_a_task_that_happens_to_run() {
    let Some(mut world) = World::new() else { return };
    world.task("backup", "echo x >> runs; exec sleep 1000", "every: 1s\n");
    world.service("web", "exec sleep 1000", "");
    world.run();
    world.until("the task to run", || world.lines("runs").len() == 1);
    for web in ["exec sleep 1000", "exec sleep 1001"] {
        world.service("web", web, "");
        let said = world.opm(&["apply", "--rollback-on-failure", "--timeout", "20s", "units"]);
        assert_eq!(said.code, 0, "{said:?}");
    }
    assert_eq!(world.lines("runs").len(), 1, "it was left alone");
    world.service("web", "exec sleep 1002", "");
    world.apply(0);
    assert_eq!(world.opm(&["rollback"]).code, 0);
    assert_eq!(world.opm(&["shutdown"]).code, 0);
}

#[test]
fn one_more_run_of_a_task_is_no_recovery_and_no_restart_to_those_who_require_it() {
    let Some(mut world) = World::new() else { return };
    world.task("tick", "echo x >> runs; sleep 0.2", "every: 1s\n");
    let more = "requires: [tick]\non_dependency_restart: restart\n";
    world.service("follows", "echo x >> follows; exec sleep 1000", more);
    let more = "requires: [tick]\non_dependency_restart: reload\nreload: {command: [sh, -c, 'echo x >> reloads']}\n";
    world.service("reloads", "exec sleep 1000", more);
    let more = "requires: [tick]\nrestart: {delay: 0s, limit: {starts: 2, within: 1m}}\n";
    world.service("broken", "echo x >> broken; exit 1", more);
    world.run();
    world.until_phase("broken", "failed");
    world.until_phase("follows", "up");
    let runs = world.lines("runs").len();
    world.until("more runs", || world.lines("runs").len() >= runs + 3);
    assert_eq!(world.lines("broken").len(), 2, "failed for good\n{}", world.log());
    assert_eq!(world.lines("follows").len(), 1, "nothing restarted\n{}", world.log());
    assert_eq!(world.lines("reloads").len(), 0, "nothing restarted\n{}", world.log());
    assert_eq!(world.opm(&["shutdown"]).code, 0);
}

#[test]
fn a_broken_agenda_is_set_aside_and_schedules_begin_anew() {
    let Some(mut world) = World::new() else { return };
    world.task("yearly", "echo x >> runs", "schedule: '@yearly'\ncatch_up: true\n");
    world.run();
    let file = world.root().join("state/agenda.json");
    world.until("its due time to be saved", || file.exists());
    world.crash();
    std::fs::write(&file, "opm-agenda 1 0 0\n{").unwrap();
    world.run();
    world.until("opm to be there", || world.row("yearly")["next_run"].is_string());
    assert!(world.log().contains("schedules begin anew"), "{}", world.log());
    assert_eq!(world.lines("runs").len(), 0);
    assert_eq!(world.opm(&["shutdown"]).code, 0);
}

#[test]
fn a_run_that_ends_because_of_what_it_requires_is_done_again_when_that_is_back() {
    let Some(mut world) = World::new() else { return };
    world.service("db", "exec sleep 1000", "");
    world.task(
        "backup",
        "echo begun >> runs; until [ -e go ]; do sleep 0.02; done; echo done >> runs",
        "requires: [db]\nschedule: '0 0 1 1 *'\n",
    );
    world.run();
    world.until_phase("db", "up");
    assert_eq!(world.opm(&["start", "--no-wait", "backup"]).code, 0);
    world.until("its run", || world.lines("runs") == ["begun"]);
    assert_eq!(world.opm(&["restart", "db"]).code, 0);
    world.until("its next run", || world.lines("runs") == ["begun", "begun"]);
    // As long as that is away it waits.
    assert_eq!(world.opm(&["stop", "db"]).code, 0);
    world.until_phase("backup", "waiting");
    assert_eq!(world.opm(&["start", "db"]).code, 0);
    world.until("the third run", || world.lines("runs").len() == 3);
    std::fs::write(world.path("go"), "").unwrap();
    world.until_phase("backup", "done");
    assert_eq!(world.lines("runs"), ["begun", "begun", "begun", "done"]);
    assert_eq!(world.opm(&["restart", "db"]).code, 0);
    assert_eq!(world.lines("runs").len(), 4, "what has ended is done");
}
