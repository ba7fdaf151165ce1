//! Services that are ready when they have written a line.

mod common;

use std::fs;
use std::time::Duration;

use common::World;

/// Writes a first line, waits for a file, and says that it is ready.
const APP: &str = "echo booting; until [ -e go ]; do sleep 0.02; done; \
                   echo 'Listening on port 80'; exec sleep 1000";
const READY: &str = "ready: {log: '(?i)listening on port \\d+'}\nrestart: always\n";

fn app(script: &str) -> Option<World> {
    app_with(script, "")
}

fn app_with(script: &str, more: &str) -> Option<World> {
    let mut world = World::new()?;
    let command = serde_json::json!(["/bin/sh", "-c", script]);
    world.unit("app", &format!("command: {command}\nworking_dir: ..\n{READY}{more}"));
    world.service("web", "exec sleep 1000", "requires: [app]\n");
    world.run();
    world.until("its first line", || raw(&world).contains("booting\n"));
    Some(world)
}

fn raw(world: &World) -> String {
    world.opm(&["logs", "--raw", "app"]).out
}

fn assert_starting(world: &World) {
    let is_up = || world.phase("app") != "starting" || world.phase("web") != "waiting";
    common::watch_for(Duration::from_millis(400), is_up, "it is ready too early");
}

fn go(world: &World) {
    fs::write(world.path("go"), "").unwrap_or_default();
    world.until_phase("app", "up");
    world.until_phase("web", "up");
}

#[test]
fn a_line_that_matches_says_that_a_run_is_ready() {
    let Some(world) = app(APP) else { return };
    assert_starting(&world);
    let why = world.opm(&["why", "app"]).out;
    assert!(why.contains("no line of its output has matched"), "{why}");
    go(&world);
    world.until("its lines", || raw(&world) == "booting\nListening on port 80\n");
    assert_eq!(world.opm(&["shutdown"]).code, 0);
}

#[test]
fn what_an_earlier_run_wrote_does_not_count() {
    // Its last words match, and have no newline.
    let script = format!("trap 'printf \"listening on port 1\"; exit 0' TERM; {APP}");
    let script = script.replace("exec sleep 1000", "while :; do sleep 0.05; done");
    let Some(world) = app(&script) else { return };
    go(&world);
    fs::remove_file(world.path("go")).unwrap_or_default();
    assert_eq!(world.opm(&["restart", "--no-wait", "app"]).code, 0);
    world.until("the next run", || raw(&world).matches("booting").count() == 2);
    assert_starting(&world);
    go(&world);
    let all = "booting\nListening on port 80\nlistening on port 1\n\
               booting\nListening on port 80\n";
    // The shell itself may have a word for the end of its sleep. No mark is stored, each line is ended.
    world.until("all lines as they are", || raw(&world).replace("Terminated\n", "") == all);
    assert_eq!(world.opm(&["shutdown"]).code, 0);
}

#[test]
fn a_line_that_comes_while_nobody_listens_counts() {
    let Some(mut world) = app(APP) else { return };
    world.crash();
    fs::write(world.path("go"), "").unwrap_or_default();
    let log = world.root().join("log/app/current");
    let has_line = || fs::read_to_string(&log).is_ok_and(|log| log.contains("Listening"));
    world.until("its line", has_line);
    world.run();
    world.until_phase("web", "up");
    assert_eq!(world.opm(&["shutdown"]).code, 0);
}

#[test]
fn a_log_keeper_that_was_killed_is_followed_by_one_that_looks_on() {
    let Some(world) = app(APP) else { return };
    kill_keeper(&world);
    assert_starting(&world);
    go(&world);
    assert_eq!(world.opm(&["shutdown"]).code, 0);
}

fn keeper(world: &World) -> Option<i32> {
    let rows = world.opm(&["status", "--all", "--json"]).out;
    let rows: Vec<serde_json::Value> = serde_json::from_str(&rows).unwrap_or_default();
    let keeper = rows.iter().find(|row| row["unit"] == "_opm-log-keeper")?;
    i32::try_from(keeper["pid"].as_i64()?).ok()
}

/// Kills the log keeper; the next one.
fn kill_keeper(world: &World) -> i32 {
    let pid = keeper(world).unwrap_or_default();
    assert!(pid > 1);
    world.kill("KILL", pid);
    let mut next = None;
    world.until("another keeper", || {
        next = keeper(world).filter(|next| *next != pid && *next > 1);
        next.is_some() && !world.alive(pid)
    });
    next.unwrap_or_default()
}

/// Whether a process has a file of this name open.
fn holds(world: &World, pid: i32, name: &str) -> bool {
    let fds = world.proc().map(|proc| proc.join(format!("{pid}/fd")));
    let fds = fds.and_then(|fds| fs::read_dir(fds).ok()).into_iter().flatten().flatten();
    let mut links = fds.filter_map(|fd| fs::read_link(fd.path()).ok());
    links.any(|link| link.ends_with(name))
}

#[test]
fn what_a_hook_writes_does_not_count() {
    let hook = "pre_start: [{command: [sh, -c, 'echo Listening on port 7']}]\n";
    let Some(mut world) = app_with(APP, hook) else { return };
    assert_starting(&world);
    go(&world);
    // Another keeper, which knows no run yet.
    fs::remove_file(world.path("go")).unwrap_or_default();
    assert_eq!(world.opm(&["shutdown"]).code, 0);
    world.wait_run();
    world.run();
    world.until("the next run", || raw(&world).matches("booting").count() == 2);
    assert_starting(&world);
    go(&world);
    assert_eq!(world.opm(&["shutdown"]).code, 0);
}

#[test]
fn what_an_earlier_run_wrote_to_a_keeper_that_did_not_see_it_begin_does_not_count() {
    let script = format!("trap 'echo \"listening on port 1\"; exit 0' TERM; {APP}");
    let script = script.replace("exec sleep 1000", "while :; do sleep 0.05; done");
    let Some(world) = app(&script) else { return };
    go(&world);
    let keeper = kill_keeper(&world);
    fs::remove_file(world.path("go")).unwrap_or_default();
    // It reads the last words of the one run when the other has begun.
    world.until("its FIFO", || holds(&world, keeper, "app.fifo"));
    world.kill("STOP", keeper);
    let pid = world.pid("app");
    assert_eq!(world.opm(&["restart", "--no-wait", "app"]).code, 0);
    world.until("the next run", || world.pid("app").is_some_and(|next| Some(next) != pid));
    world.kill("CONT", keeper);
    world.until("its first line", || raw(&world).matches("booting").count() == 2);
    assert_starting(&world);
    go(&world);
    assert_eq!(world.opm(&["shutdown"]).code, 0);
}

#[test]
fn a_line_with_a_pause_in_it_is_one_line() {
    let script = "echo booting; printf 'Listening '; until [ -e go ]; do sleep 0.02; done; \
                  echo 'on port 80'; exec sleep 1000";
    let Some(world) = app(script) else { return };
    world.until("its begin to be stored", || raw(&world).contains("Listening "));
    go(&world);
    world.until("its lines", || raw(&world) == "booting\nListening on port 80\n");
    assert_eq!(world.opm(&["shutdown"]).code, 0);
}
