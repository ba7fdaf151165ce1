//! Cases DOUBLE and PIDID: nothing runs twice, and no process is taken for another.

mod common;

use std::fs;

use common::{World, witness};

/// A service that would notice a second copy of itself.
fn lasting(world: &World, name: &str) {
    world.service(name, &(witness(name) + "exec sleep 1000"), "");
}

/// A daemon in the background with one such service.
fn with_web() -> Option<World> {
    let world = World::new()?;
    lasting(&world, "web");
    world.apply(0);
    started(&world, "web", 1);
    Some(world)
}

/// Waits until a witness has said so often that it starts.
fn started(world: &World, name: &str, times: usize) {
    let file = format!("{name}.starts");
    world.until("its first act", || world.lines(&file).len() >= times);
}

#[test]
fn case_001_a_restore_that_is_run_again_starts_nothing() {
    let Some(mut world) = with_web() else { return };
    let pid = world.pid("web");
    assert_eq!(world.opm(&["save"]).code, 0);
    for daemon in ["that runs", "that was killed"] {
        for _ in 0..3 {
            let said = world.opm(&["restore"]);
            assert_eq!(said.code, 0, "{daemon}: {said:?}");
            assert!(said.out.contains("no change"), "{daemon}: {said:?}");
        }
        assert_eq!(world.pid("web"), pid);
        world.crash();
    }
    assert_eq!(world.lines("web.starts").len(), 1);
    world.assert_no_doubles();
}

#[test]
fn case_002_a_killed_supervisor_adopts_the_survivor() {
    let Some(mut world) = World::new() else { return };
    lasting(&world, "db");
    world.run();
    world.until_phase("db", "up");
    started(&world, "db", 1);
    let pid = world.pid("db").unwrap();
    world.crash();
    assert!(world.alive(pid), "it outlives its supervisor");
    world.run();
    world.until_phase("db", "up");
    assert_eq!(world.pid("db"), Some(pid));
    assert_eq!(world.row("db")["adopted"], true);
    // One that died while nobody looked is started again, after the other is gone.
    world.crash();
    world.kill("KILL", pid);
    world.run();
    started(&world, "db", 2);
    world.until_phase("db", "up");
    assert_eq!(world.lines("db.starts").len(), 2);
    world.assert_no_doubles();
}

#[test]
fn case_005_state_files_that_were_lost_come_back() {
    let Some(world) = with_web() else { return };
    let (pid, daemon) = (world.pid("web"), world.daemon_pid());
    for name in ["desired.json", "desired.previous.json"] {
        fs::remove_file(world.root().join("state").join(name)).ok();
    }
    world.apply(0);
    assert_eq!((world.pid("web"), world.daemon_pid()), (pid, daemon));
    assert_eq!(world.lines("web.starts").len(), 1);
    let saved = fs::read_to_string(world.root().join("state/desired.json")).unwrap_or_default();
    assert!(saved.contains("web"), "the state file is back: {saved:?}");
    world.assert_no_doubles();
}

#[test]
fn case_005_a_lost_lock_file_lets_no_second_supervisor_in() {
    let Some(world) = with_web() else { return };
    let (pid, daemon) = (world.pid("web"), world.daemon_pid().unwrap());
    for entry in fs::read_dir(world.root().join("state")).unwrap().flatten() {
        if entry.path().is_dir() {
            fs::remove_dir_all(entry.path()).unwrap();
        } else {
            fs::remove_file(entry.path()).unwrap();
        }
    }
    for args in [&["daemon"][..], &["run", "units"]] {
        // One that wrongly comes up ends by timeout(1), so that the test does not hang.
        let mut command = world.command("timeout");
        command.arg("5").arg(common::OPM).arg("--root").arg(world.root()).args(args);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(4), "{args:?}: {output:?}\n{}", world.log());
    }
    assert!(world.alive(daemon));
    world.apply(0);
    assert_eq!(world.pid("web"), pid);
    assert_eq!(world.lines("web.starts").len(), 1);
    world.assert_no_doubles();
}

#[test]
fn case_006_a_frozen_supervisor_keeps_others_out() {
    let Some(world) = with_web() else { return };
    let (pid, daemon) = (world.pid("web"), world.daemon_pid().unwrap());
    world.kill("STOP", daemon);
    for args in [&["daemon"][..], &["run", "units"]] {
        let said = world.opm(args);
        assert_eq!(said.code, 4, "{said:?}");
        assert!(said.err.contains(&format!("process {daemon} holds")), "{said:?}");
    }
    world.kill("CONT", daemon);
    assert_eq!(world.daemon_pid(), Some(daemon));
    assert_eq!(world.pid("web"), pid);
    // And it goes on with its work.
    world.kill("KILL", pid.unwrap());
    started(&world, "web", 2);
    world.until_phase("web", "up");
    world.assert_no_doubles();
}

#[test]
fn case_006_a_directory_that_is_replaced_lets_nobody_in_beside_the_owner() {
    let Some(world) = with_web() else { return };
    let (pid, daemon) = (world.pid("web").unwrap(), world.daemon_pid());
    for name in ["state", "run"] {
        let (dir, old) = (world.root().join(name), world.root().join("old"));
        fs::rename(&dir, &old).unwrap();
        for args in [&["daemon"][..], &["run", "units"]] {
            let mut command = world.command("timeout");
            command.arg("5").arg(common::OPM).arg("--root").arg(world.root()).args(args);
            let output = command.output().unwrap();
            assert_eq!(output.status.code(), Some(4), "{name}, {args:?}: {output:?}");
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(said.contains(&format!("process {} holds", daemon.unwrap())), "{said}");
        }
        fs::remove_dir_all(&dir).unwrap();
        fs::rename(&old, &dir).unwrap();
    }
    assert_eq!((world.pid("web"), world.daemon_pid()), (Some(pid), daemon));
    // Over an exec it is owned too, and one owner restarts what ends, once.
    assert_eq!(world.opm(&["reexec"]).code, 0);
    fs::rename(world.root().join("state"), world.root().join("old")).unwrap();
    assert_eq!(world.opm(&["daemon"]).code, 4);
    world.kill("KILL", pid);
    started(&world, "web", 2);
    world.until_phase("web", "up");
    world.assert_no_doubles();
}

#[test]
fn case_007_a_stranger_with_a_recorded_pid_is_left_alone() {
    let Some(mut world) = with_web() else { return };
    let pid = world.pid("web").unwrap();
    world.crash();
    world.kill("KILL", pid);
    world.until("the pid to be free", || !world.pids().contains(&pid));
    let stranger = "echo $1 > /proc/sys/kernel/ns_last_pid && \
                    { setsid sleep 5000 </dev/null >/dev/null 2>&1 & echo $!; }";
    let before = (pid - 1).to_string();
    // Some other process may be faster; then once more.
    let is_it = (0..50).any(|_| {
        let output = world.command("sh").args(["-c", stranger, "sh", &before]).output().unwrap();
        let found = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        found == pid.to_string()
    });
    if !is_it {
        common::skip("no say in which pid is next");
        return;
    }
    let said = world.opm(&["restore"]);
    assert_eq!(said.code, 0, "{said:?}");
    started(&world, "web", 2);
    world.until_phase("web", "up");
    let fresh = world.pid("web").unwrap();
    assert_ne!(fresh, pid);
    assert_eq!(world.opm(&["stop", "web"]).code, 0);
    assert!(!world.alive(fresh));
    assert!(world.alive(pid), "the stranger was signalled");
    world.assert_no_doubles();
}

/// Who comes after a crash finds what runs.
fn assert_goes_on(mut world: World, pid: i32) {
    world.crash();
    world.run();
    world.until_phase("web", "up");
    assert_eq!(world.pid("web"), Some(pid));
    world.assert_no_doubles();
}

#[test]
fn a_run_directory_that_was_removed_is_there_again_and_nothing_runs_twice() {
    let Some(world) = with_web() else { return };
    let (pid, daemon) = (world.pid("web").unwrap(), world.daemon_pid().unwrap());
    // At once, as `rm -r` would not: opm may make files in it again before all of it is gone.
    let gone = world.root().join("gone");
    fs::rename(world.root().join("run"), &gone).unwrap();
    fs::remove_dir_all(&gone).unwrap();
    // Something happens, which makes it look.
    world.kill("WINCH", daemon);
    world.until("the socket", || world.root().join("run/control.sock").exists());
    assert_eq!(world.pid("web"), Some(pid));
    // The ledger is there too.
    assert_goes_on(world, pid);
}

#[test]
fn where_all_directories_were_removed_whoever_makes_them_again_has_them_alone() {
    let Some(mut world) = with_web() else { return };
    let (pid, daemon) = (world.pid("web").unwrap(), world.daemon_pid().unwrap());
    let remove = |world: &World| {
        for dir in ["run", "state"] {
            let gone = world.root().join("gone");
            fs::rename(world.root().join(dir), &gone).unwrap();
            fs::remove_dir_all(&gone).unwrap();
        }
    };
    remove(&world);
    world.kill("WINCH", daemon);
    world.until("the socket", || world.root().join("run/control.sock").exists());
    world.until("the saved state", || world.root().join("state/desired.json").exists());
    let said = world.opm(&["run", "units"]);
    assert!(said.code == 4 && said.err.contains("opm runs already"), "{said:?}");
    assert_eq!((world.pid("web"), world.starts("web")), (Some(pid), 1));
    // Who is quicker has them, and knows nothing of the other one's, which starts nothing any more.
    remove(&world);
    world.run();
    world.until("another", || world.daemon_pid().is_some_and(|pid| pid != daemon));
    world.kill("KILL", pid);
    world.until("the first to see it", || world.log().contains("minimal mode"));
    let told = format!("opm runs already: process {}", world.daemon_pid().unwrap());
    assert!(world.log().contains(&told), "{}", world.log());
    started(&world, "web", 2);
    world.kill("TERM", daemon);
    world.until("its end", || !world.alive(daemon));
    world.until_phase("web", "up");
    assert_eq!(world.starts("web"), 2);
}

#[test]
fn what_could_not_be_saved_again_with_the_socket_is_saved_later() {
    let Some(world) = with_web() else { return };
    let daemon = world.daemon_pid().unwrap();
    let state = world.root().join("state");
    fs::remove_dir_all(world.root().join("run")).unwrap();
    // Something is in the way of the saved state, and then no more.
    fs::remove_file(state.join("desired.json")).unwrap();
    fs::create_dir_all(state.join("desired.new/x")).unwrap();
    world.kill("WINCH", daemon);
    world.until("the socket", || world.root().join("run/control.sock").exists());
    world.until("what is told", || world.log().contains("cannot save desired state"));
    fs::remove_dir_all(state.join("desired.new")).unwrap();
    world.until("the saved state", || state.join("desired.json").exists());
    assert_eq!(world.starts("web"), 1);
}

#[test]
fn a_run_directory_that_cannot_be_made_again_is_told_of_once_and_made_when_it_can() {
    let Some(mut world) = World::new() else { return };
    lasting(&world, "web");
    world.run_with(&["-v", "run", "units"]);
    world.until_phase("web", "up");
    let (pid, daemon) = (world.pid("web").unwrap(), world.daemon_pid().unwrap());
    let (run, gone) = (world.root().join("run"), world.root().join("gone"));
    fs::rename(&run, &gone).unwrap();
    fs::write(&run, "in the way").unwrap();
    let turns = || world.log().matches("SIGWINCH has no meaning").count();
    for turn in 1..=3 {
        world.kill("WINCH", daemon);
        world.until("a turn", || turns() == turn);
    }
    fs::remove_file(&run).unwrap();
    world.kill("WINCH", daemon);
    world.until("the socket", || run.join("control.sock").exists());
    // That is bound before the ledger is written.
    world.until("the ledger", || world.log().contains("was removed; it is written again"));
    let log = world.log();
    assert_eq!(log.matches("was removed; it is made again, and units").count(), 1, "{log}");
    for said in ["file exists", "was removed; it is written again"] {
        assert_eq!(log.matches(said).count(), 1, "{said}: {log}");
    }
    // The file may go between the one and the other: then the reason is another one.
    assert!((1..=2).contains(&log.matches("cannot replace ledger").count()), "{log}");
    assert_goes_on(world, pid);
}

#[test]
fn a_ledger_that_was_removed_alone_is_there_again() {
    let Some(world) = with_web() else { return };
    let (pid, daemon) = (world.pid("web").unwrap(), world.daemon_pid().unwrap());
    let ledger = world.ledger();
    fs::remove_file(&ledger).unwrap();
    world.kill("WINCH", daemon);
    world.until("the ledger", || ledger.exists());
    assert_goes_on(world, pid);
}

#[test]
fn a_root_of_another_user_is_an_error_and_no_reason_to_go_elsewhere() {
    if !nix::unistd::geteuid().is_root() {
        return common::skip("who is not root cannot be another user");
    }
    let Some(world) = World::new() else { return };
    world.unit("a", "command: [sleep, '1000']\nlogs: {to: null}\n");
    world.apply(0);
    // Anybody may come as far as the root.
    let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(world.dir.path(), everybody).unwrap();
    let mut command = world.command("setpriv");
    let nobody = ["--reuid", "65534", "--regid", "65534", "--clear-groups"];
    let root = world.root();
    command.args(nobody).arg(common::OPM).arg("--root").arg(&root).arg("daemon");
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("it belongs to user 0"), "{said}");
    assert!(!std::path::Path::new("/dev/shm/opm-65534").exists());
    assert_eq!(world.phase("a"), "up");
}

#[test]
fn case_009_a_stale_pid_file_names_nobody() {
    let Some(mut world) = World::new() else { return };
    let mut stranger = world.command("sh");
    stranger.args(["-c", "echo $$ > units/d.pid; exec sleep 5000"]);
    let mut stranger = stranger.spawn().unwrap();
    world.until("the stranger", || world.pid_in("units/d.pid").is_some());
    let other = world.pid_in("units/d.pid").unwrap();
    world.unit("d", "command: [sh, -c, \"sleep 1000 & echo $! > d.pid; wait\"]\npid_file: d.pid\n");
    world.run();
    world.until_phase("d", "up");
    let named = world.pid_in("units/d.pid");
    assert!(named.is_some_and(|pid| pid != other));
    assert_eq!(world.pid("d"), named);
    assert_eq!(world.row("d")["restarts"], 0);
    assert_eq!(world.opm(&["stop", "d"]).code, 0);
    assert!(!world.alive(named.unwrap()));
    assert!(stranger.try_wait().unwrap().is_none(), "the stranger was signalled");
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

#[test]
fn case_010_a_zombie_is_dead() {
    let Some(mut world) = with_web() else { return };
    let pid = world.pid("web").unwrap();
    world.crash();
    // PID 1 gets the orphan and, while it is frozen, does not reap it.
    let init = world.init().to_string();
    common::shell(world.dir.path(), &format!("kill -STOP {init}"));
    world.kill("KILL", pid);
    world.until("a zombie", || world.status_line(pid, "State").is_some_and(|s| s.starts_with('Z')));
    let began = common::now();
    let said = world.opm(&["restore"]);
    assert_eq!(said.code, 0, "{said:?}\n{}", world.log());
    started(&world, "web", 2);
    world.until_phase("web", "up");
    assert_ne!(world.pid("web"), Some(pid));
    assert_eq!(world.opm(&["stop", "web"]).code, 0);
    assert!(began.elapsed().as_secs() < 30, "it waited for the zombie");
    assert_eq!(world.lines("web.starts").len(), 2);
    assert!(world.pids().contains(&pid), "the zombie was there all the time");
    common::shell(world.dir.path(), &format!("kill -CONT {init}"));
    world.assert_no_doubles();
}

#[test]
fn a_number_that_an_opm_of_another_namespace_left_is_nobody() {
    let world = World::bare();
    let mut other = world.command(common::OPM);
    let mut other = other.args(["run", "--", "sleep", "1000"]).spawn().unwrap();
    let state = world.root().join("state");
    fs::create_dir_all(&state).unwrap();
    fs::write(state.join("lock"), format!("{}\n", other.id())).unwrap();
    let said = world.opm(&["status"]);
    other.kill().unwrap();
    other.wait().unwrap();
    assert!(said.code == 3 && said.err.starts_with("opm: no daemon runs"), "{said:?}");
}
