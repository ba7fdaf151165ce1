//! Pids that are given out again: to another unit, and to strangers. In a pid namespace the next
//! pid can be chosen (`/proc/sys/kernel/ns_last_pid`), so that each reuse is exact.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use common::{World, skip, watch_for};

/// Whether the next pid can be chosen here.
fn can_choose(world: &World) -> bool {
    let set = "echo $(cat /proc/sys/kernel/ns_last_pid) > /proc/sys/kernel/ns_last_pid";
    let can = world.command("sh").args(["-c", set]).status().unwrap().success();
    if !can {
        skip("no say in which pid is next (/proc/sys/kernel/ns_last_pid)");
    }
    can
}

/// Has opm do something without any process being made for the asking.
fn ask(world: &World, method: &str, unit: &str) {
    let mut stream = UnixStream::connect(world.root().join("run/control.sock")).unwrap();
    let call = format!(
        "{{\"method\":\"io.opm.Control.{method}\",\"parameters\":{{\"units\":[\"{unit}\"]}}}}\0"
    );
    stream.write_all(call.as_bytes()).unwrap();
    let mut reply = Vec::new();
    BufReader::new(stream).read_until(0, &mut reply).unwrap();
    assert!(!String::from_utf8_lossy(&reply).contains("error"), "{reply:?}");
}

/// The next process of the namespace gets this pid.
fn choose(world: &World, pid: i32) {
    let set = format!("echo {} > /proc/sys/kernel/ns_last_pid", pid - 1);
    assert!(world.command("sh").args(["-c", &set]).status().unwrap().success());
}

/// A unit whose hook has ended and left its number; also one process of the hook's session that
/// nothing else ties to its unit. Its run goes on.
fn with_a_dead_leader(world: &World) {
    let hook = "echo $$ > hook.pid; env -i sleep 1000 & echo $! > left.pid";
    let hook = serde_json::to_string(hook).unwrap();
    let keys = format!("pre_start: [[sh, -c, {hook}]]\nrestart: never\nstop: {{timeout: 30s}}\n");
    world.service("a", "echo > a.up; exec sleep 1000", &keys);
}

/// What was signalled says so.
const TELL: &str = "trap 'echo TERM >> signalled; exit' TERM; echo $$ > victim.pid; \
                    while :; do read x < gate; done";

/// The pid of the hook, once nobody has it.
fn free_pid(world: &World) -> i32 {
    world.until("the first unit to be up", || world.path("a.up").exists());
    let pid = world.pid_in("hook.pid").unwrap();
    // What is left of its session keeps the number of the session, so that nobody can get it.
    let left = world.pid_in("left.pid").unwrap();
    world.kill("KILL", left);
    world.until("a free number", || !world.pids().contains(&left) && !world.pids().contains(&pid));
    pid
}

fn until_told(world: &World) -> i32 {
    world.until("the other one", || world.pid_in("victim.pid").is_some());
    world.pid_in("victim.pid").unwrap()
}

/// Stops unit `a`, and sees that this process does not notice.
fn stop_harms_nobody(world: &World, victim: i32) {
    assert_eq!(world.opm(&["stop", "a"]).code, 0);
    assert_eq!(world.phase("a"), "down");
    let harmed = || !world.alive(victim) || !world.read("signalled").is_empty();
    watch_for(Duration::from_millis(300), harmed, "a stranger was signalled");
}

#[test]
fn what_a_dead_hook_left_in_its_session_ends_with_the_unit() {
    let Some(mut world) = World::new() else { return };
    with_a_dead_leader(&world);
    world.run();
    world.until("the unit to be up", || world.path("a.up").exists());
    let left = world.pid_in("left.pid").unwrap();
    assert!(world.alive(left));
    assert_eq!(world.opm(&["stop", "a"]).code, 0);
    assert!(!world.alive(left));
}

#[test]
fn another_unit_with_the_number_of_a_dead_leader_is_left_alone() {
    let Some(mut world) = World::new().filter(can_choose) else { return };
    with_a_dead_leader(&world);
    assert!(common::shell(world.dir.path(), "mkfifo gate").status.success());
    world.service("b", TELL, "enabled: false\n");
    world.run();
    let pid = free_pid(&world);
    choose(&world, pid);
    ask(&world, "Start", "b");
    assert_eq!(until_told(&world), pid);
    world.until_phase("b", "up");
    stop_harms_nobody(&world, pid);
    assert_eq!(world.pid("b"), Some(pid));
    // It is not deaf.
    assert_eq!(world.opm(&["stop", "b"]).code, 0);
    assert_eq!(world.read("signalled"), "TERM\n");
}

/// A stranger gets the number, begins a session of that number, leaves a process in it, and ends.
fn stranger_in_session(world: &World, pid: i32) -> i32 {
    std::fs::write(world.path("victim.sh"), TELL).unwrap();
    std::fs::write(world.path("leader.sh"), "echo $$ > leader.pid; sh victim.sh &\n").unwrap();
    // The clock of start times has hundredths of a second.
    let script = format!(
        "sleep 0.05; echo {} > /proc/sys/kernel/ns_last_pid; setsid sh leader.sh & wait",
        pid - 1
    );
    assert!(world.command("sh").args(["-c", &script]).status().unwrap().success());
    assert_eq!(world.pid_in("leader.pid"), Some(pid));
    world.until("its leader to be gone", || !world.pids().contains(&pid));
    let victim = until_told(world);
    let stat = std::fs::read_to_string(world.proc().unwrap().join(format!("{victim}/stat")));
    let stat = stat.unwrap();
    let session = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(3).unwrap();
    assert_eq!(session, pid.to_string());
    victim
}

#[test]
fn a_stranger_in_a_session_with_the_number_of_a_dead_leader_is_left_alone() {
    // As PID 1, so that the stranger becomes a child of opm.
    let mut world = World::bare();
    with_a_dead_leader(&world);
    assert!(common::shell(world.dir.path(), "mkfifo gate").status.success());
    if !world.start_pid_one(&["run", "units"]) || !can_choose(&world) {
        return;
    }
    let pid = free_pid(&world);
    let stranger = stranger_in_session(&world, pid);
    stop_harms_nobody(&world, stranger);
}

#[test]
fn after_an_adoption_too() {
    let Some(mut world) = World::new().filter(can_choose) else { return };
    with_a_dead_leader(&world);
    assert!(common::shell(world.dir.path(), "mkfifo gate").status.success());
    world.run();
    let pid = free_pid(&world);
    world.crash();
    world.run();
    world.until_phase("a", "up");
    let stranger = stranger_in_session(&world, pid);
    stop_harms_nobody(&world, stranger);
}
