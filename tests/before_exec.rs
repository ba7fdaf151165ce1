//! A start that hangs between the gate and its program, here in the open of a FIFO that nobody writes to: it holds
//! up nobody, holds nothing that is the supervisor's, and is ended and adopted as what it is.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::fs;
use std::net::{TcpListener, TcpStream};

use common::World;

/// A world in which `hangs` has been let go and cannot go on.
fn world(more: &str) -> Option<World> {
    let world = World::new()?;
    nix::unistd::mkfifo(&world.path("gate"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let hangs =
        format!("command: [sleep, '1000']\nstdin: {{file: ../gate}}\nlogs: {{to: null}}\n{more}");
    world.unit("hangs", &hangs);
    world.unit("other", "command: [sleep, '1000']\nlogs: {to: null}\n");
    assert_eq!(world.opm(&["apply", "units", "--no-wait"]).code, 0);
    world.until_phase("other", "up");
    world.until("the child", || world.pid("hangs").is_some_and(|pid| in_fifo(&world, pid)));
    Some(world)
}

/// Whether a process waits for the other end of a FIFO.
fn in_fifo(world: &World, pid: i32) -> bool {
    let path = world.proc().unwrap().join(pid.to_string()).join("wchan");
    fs::read_to_string(path).is_ok_and(|at| at.contains("wait_for_partner"))
}

/// Lets the child go on, and keeps its standard input open.
fn open(world: &World) -> fs::File {
    fs::File::options().write(true).open(world.path("gate")).unwrap()
}

fn crash(world: &World) {
    world.kill("KILL", world.daemon_pid().unwrap());
    world.until("its end", || world.daemon_pid().is_none_or(|pid| !world.alive(pid)));
}

#[test]
fn after_a_crash_it_is_starting_still_and_keeps_no_supervisor_away() {
    let Some(world) = world("") else { return };
    let pids = || (world.pid("hangs"), world.pid("other"));
    let before = pids();
    crash(&world);
    let said = world.opm(&["status"]);
    assert!(said.code == 3 && said.err.contains("no daemon runs"), "{said:?}");
    assert_eq!(world.opm(&["daemon"]).code, 0);
    world.until_phase("other", "up");
    assert_eq!((pids(), world.phase("hangs").as_str()), (before, "starting"));
    let _input = open(&world);
    world.until_phase("hangs", "up");
    assert_eq!(pids(), before);
    world.assert_no_doubles();
}

#[test]
fn after_a_reexec_it_is_starting_still_and_its_time_to_start_counts() {
    let Some(world) = world("start_timeout: 3s\nrestart: never\n") else { return };
    assert_eq!(world.opm(&["reexec"]).code, 0);
    world.until_phase("other", "up");
    world.until_phase("hangs", "failed");
    let why = world.opm(&["why", "hangs"]).out;
    assert!(why.contains("in time") || why.contains("timeout"), "{why}");
}

#[test]
fn a_stop_ends_it_by_its_signal() {
    // Were the signal lost, nothing would ever end it.
    let Some(world) = world("stop: {timeout: never}\n") else { return };
    let pid = world.pid("hangs").unwrap();
    assert_eq!(world.opm(&["stop", "hangs"]).code, 0);
    assert!(!world.alive(pid));
}

#[test]
fn it_has_no_copy_of_what_opm_listens_at() {
    let Some(world) = World::new() else { return };
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let at = format!("listen: [{{tcp: '127.0.0.1:{port}'}}]");
    world.unit("s", &format!("kind: socket\nfor: other\n{at}\n"));
    world.unit("other", "command: [sleep, '1000']\nlogs: {to: null}\nenabled: false\n");
    world.apply(0);
    let address = ("127.0.0.1", port);
    drop(TcpStream::connect(address).unwrap());
    nix::unistd::mkfifo(&world.path("gate"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    world.unit("hangs", "command: [sleep, '1000']\nstdin: {file: ../gate}\nlogs: {to: null}\n");
    assert_eq!(world.opm(&["apply", "units", "--no-wait"]).code, 0);
    world.until("the child", || world.pid("hangs").is_some_and(|pid| in_fifo(&world, pid)));
    let fds = world.proc().unwrap().join(format!("{}/fd", world.pid("hangs").unwrap()));
    // Null, its outputs, and by which it says how it fares.
    assert_eq!(fs::read_dir(fds).unwrap().count(), 4);
    assert_eq!(world.opm(&["stop", "s"]).code, 0);
    assert!(TcpStream::connect(address).is_err(), "somebody listens still");
    assert_eq!(world.opm(&["start", "s"]).code, 0);
}

#[test]
fn a_limit_of_its_own_is_no_shortage_that_passes() {
    let Some(world) = World::new() else { return };
    fs::write(world.path("input"), "").unwrap();
    let few = "limits: {nofile: 3}\nrestart: {policy: never, limit: {starts: 2, within: 60s}}\n";
    let base = "command: [sleep, '1000']\nlogs: {to: null}\n";
    world.unit("read", &format!("{base}{few}stdin: {{file: ../input}}\n"));
    world.unit("killed_first", &format!("{base}{few}oom_score_adjust: 10\n"));
    world.apply(1);
    for unit in ["read", "killed_first"] {
        let why = world.opm(&["why", unit]).out;
        assert!(why.contains("too many open files, by its own `limits.nofile`"), "{unit}: {why}");
        assert_eq!((world.phase(unit).as_str(), world.starts(unit)), ("failed", 0));
    }
}
