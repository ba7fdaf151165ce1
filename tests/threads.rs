//! A process whose first thread has ended, and which lives on in others: the kernel shows it as a zombie.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::fs;
use std::path::Path;

use common::{World, skip, witness};

/// It says who it is, and then its first thread ends, by exit(2) of that thread alone.
const PROGRAM: &str = r"
import ctypes, os, threading, time
threading.Thread(target=lambda: time.sleep(1000)).start()
with open('there.new', 'w') as f: print(os.getpid(), file=f)
os.rename('there.new', 'there')
ctypes.CDLL(None).syscall(60, 0)
";

/// A unit that runs it, by this line of a shell.
fn world(script: &str, more: &str) -> Option<World> {
    if !Path::new("/usr/bin/python3").exists() {
        skip("no python3");
        return None;
    }
    let world = World::new()?;
    fs::write(world.path("program.py"), PROGRAM).unwrap();
    world.service("t", &(witness("t") + script), more);
    world.apply(0);
    until_headless(&world);
    Some(world)
}

fn until_headless(world: &World) -> i32 {
    let is_zombie = || {
        let pid = world.pid_in("there")?;
        let state = world.status_line(pid, "State")?;
        state.contains('Z').then_some(pid)
    };
    world.until("the end of its first thread", || is_zombie().is_some());
    is_zombie().unwrap()
}

/// Whether any of its threads lives.
fn runs(world: &World, pid: i32) -> bool {
    world.status_line(pid, "Threads").is_some_and(|threads| threads.contains('2'))
}

#[test]
fn it_is_adopted_after_a_crash_and_not_started_again() {
    let Some(mut world) = world("exec /usr/bin/python3 program.py", "") else { return };
    let pid = world.pid("t").unwrap();
    world.crash();
    world.run();
    world.until_phase("t", "up");
    assert_eq!((world.pid("t"), world.starts("t")), (Some(pid), 1));
    assert_eq!(world.opm(&["stop", "t"]).code, 0);
    assert!(!runs(&world, pid));
}

#[test]
fn it_is_ended_by_each_way_of_a_stop() {
    for stop in ["", "stop: {to: main, timeout: 120s}\n", "stop: {steps: [{signal: KILL}]}\n"] {
        let Some(world) = world("exec /usr/bin/python3 program.py", stop) else { return };
        let pid = world.pid("t").unwrap();
        assert!(runs(&world, pid));
        assert_eq!(world.opm(&["stop", "t"]).code, 0, "{stop}");
        assert!(!runs(&world, pid), "{stop}");
        assert_eq!(world.opm(&["start", "t"]).code, 0);
        assert_eq!(world.opm(&["kill", "-s", "KILL", "t"]).code, 0);
        world.until("another", || world.starts("t") == 3);
    }
}

#[test]
fn one_that_has_left_the_session_is_found_by_its_environment() {
    let script = "setsid /usr/bin/python3 program.py & exec sleep 1000";
    let Some(world) = world(script, "") else { return };
    let pid = world.pid_in("there").unwrap();
    assert!(runs(&world, pid));
    assert_eq!(world.opm(&["stop", "t"]).code, 0);
    assert!(!runs(&world, pid));
    fs::remove_file(world.path("there")).unwrap();
    assert_eq!(world.opm(&["start", "t"]).code, 0);
    until_headless(&world);
    world.assert_no_doubles();
}
