//! The promise itself: whatever is killed when, nothing runs twice and nothing is lost.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

use common::random::Random;
use common::{World, witness};

fn service(name: &str, requires: &str) -> String {
    format!(
        "command: [sh, -c, {:?}]\nrequires: [{requires}]\nworking_dir: ..\n\
         restart: {{policy: always, delay: 20ms, max_delay: 100ms}}\nlogs: {{to: null}}\n",
        witness(name) + "exec sleep 1000"
    )
}

/// Three services, one of them required by another.
fn three(world: &World) {
    world.unit("a", &service("a", ""));
    world.unit("b", &service("b", "a"));
    world.unit("c", &service("c", ""));
}

fn all_up(world: &World) -> bool {
    ["a", "b", "c"].iter().all(|name| world.phase(name) == "up")
}

#[test]
fn two_hundred_kills_at_random_times_under_load_double_nothing() {
    let Some(mut world) = World::new() else { return };
    three(&world);
    let mut random = Random::new();
    let mut adopted = 0;
    // How long it takes here until all run.
    let began = common::now();
    world.run();
    world.until("their first acts", || {
        ["a", "b", "c"].iter().all(|name| last_start(&world, name).is_some())
    });
    let longest = u64::try_from(began.elapsed().as_micros()).unwrap().max(15_000);
    world.crash();
    for round in 0..200 {
        world.run();
        // From before the lock is taken until all is up, and while services die.
        let until = common::now() + std::time::Duration::from_micros(random.below(longest));
        if random.below(2) == 0
            && let Some(pid) = last_start(&world, ["a", "b", "c"][random.index(3)])
        {
            world.command("kill").args(["-9", &pid]).output().unwrap();
        }
        while common::now() < until {
            std::hint::spin_loop();
        }
        let before = last_start(&world, "a");
        world.crash_if_any();
        let alive = before.is_some_and(|pid| world.alive(pid.parse().unwrap()));
        adopted += usize::from(alive);
        assert_eq!(world.read("doubles"), "", "round {round}, seed {}", random.seed);
    }
    world.run();
    world.until("all three to be up", || all_up(&world));
    world.assert_no_doubles();
    eprintln!("seed {}: a outlived its supervisor {adopted} times of 200", random.seed);
    assert!(adopted > 20, "the kills came too early to say anything: {adopted}");
    for name in ["a", "b", "c"] {
        let pid = world.pid(name).map(|pid| pid.to_string());
        world.until("its first act", || last_start(&world, name) == pid);
    }
}

#[test]
fn ready_that_was_said_to_nobody_is_heard() {
    let Some(mut world) = World::new() else { return };
    for (name, close) in [("closes", "exec 3>&-; "), ("keeps", "")] {
        let script = witness(name)
            + "while ! [ -e go ]; do sleep 0.02; done; echo >&3; "
            + close
            + &format!("touch {name}.said; exec sleep 1000");
        world.service(name, &script, "ready: {fd: 3}\nstart_timeout: 60s\n");
    }
    world.service("never", &(witness("never") + "exec sleep 1000"), "ready: {fd: 3}\n");
    assert_eq!(world.opm(&["apply", "--no-wait", "units"]).code, 0);
    let names = ["closes", "keeps", "never"];
    let all = |world: &World| names.iter().all(|name| last_start(world, name).is_some());
    world.until("their first act", || all(&world));
    world.crash();
    std::fs::write(world.path("go"), "").unwrap();
    let said = |name: &str| world.path(&format!("{name}.said")).exists();
    world.until("their word", || said("closes") && said("keeps"));
    assert_eq!(world.opm(&["daemon"]).code, 0, "{}", world.log());
    world.until_phase("closes", "up");
    world.until_phase("keeps", "up");
    assert_eq!(world.phase("never"), "starting", "it has said nothing yet");
    for name in names {
        assert_eq!(world.lines(&format!("{name}.starts")).len(), 1, "{name}");
    }
}

fn last_start(world: &World, name: &str) -> Option<String> {
    world.lines(&format!("{name}.starts")).pop()
}

#[test]
fn twenty_daemons_started_at_once_leave_one() {
    let Some(world) = World::new() else { return };
    three(&world);
    world.apply(0);
    let first = world.daemon_pid().unwrap();
    let mut starts: Vec<_> = (0..20)
        .map(|_| {
            let mut command = world.command(common::OPM);
            command.arg("--root").arg(world.root()).arg("daemon");
            command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
            command.spawn().unwrap()
        })
        .collect();
    for start in starts.drain(..) {
        let output = start.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(4), "{said}");
        assert!(said.contains(&format!("process {first} holds")), "{said}");
    }
    assert_eq!(world.daemon_pid(), Some(first));
    world.assert_no_doubles();
}

#[test]
fn twenty_applies_at_once_start_one_daemon_and_everything_once() {
    let Some(world) = World::new() else { return };
    three(&world);
    let applies: Vec<_> = (0..20)
        .map(|_| {
            let mut command = world.command(common::OPM);
            command.arg("--root").arg(world.root()).args(["apply", "units"]);
            command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
            command.spawn().unwrap()
        })
        .collect();
    for apply in applies {
        let output = apply.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}\n{}", world.log());
    }
    world.assert_no_doubles();
    for name in ["a", "b", "c"] {
        world.until("its first act", || world.lines(&format!("{name}.starts")).len() == 1);
    }
}

#[test]
fn reexec_keeps_pid_children_and_exit_codes() {
    let Some(world) = World::new() else { return };
    three(&world);
    world.unit("d", "command: [sh, -c, 'while ! [ -e go ]; do sleep 0.02; done; exit 7']\nrestart: never\nworking_dir: ..\nlogs: {to: null}\n");
    world.apply(0);
    let daemon = world.daemon_pid();
    let pids: Vec<_> = ["a", "b", "c", "d"].iter().map(|name| world.pid(name)).collect();
    for _ in 0..5 {
        let said = world.opm(&["reexec"]);
        assert_eq!(said.code, 0, "{said:?}\n{}", world.log());
    }
    assert_eq!(world.daemon_pid(), daemon);
    let after: Vec<_> = ["a", "b", "c", "d"].iter().map(|name| world.pid(name)).collect();
    assert_eq!(pids, after);
    std::fs::write(world.path("go"), "").unwrap();
    world.until_phase("d", "failed");
    assert_eq!(world.row("d")["last"], "exited 7", "the status of a child is known after an exec");
    world.assert_no_doubles();
}

#[test]
fn what_was_asked_of_the_command_of_opm_itself_is_known_after_a_reexec_and_a_crash() {
    let Some(mut world) = World::new() else { return };
    world.staying("a", "");
    let arguments = ["run", "units", "--", "sleep", "1000"];
    world.run_with(&arguments);
    world.until_phase("command", "up");
    assert_eq!(world.opm(&["restart", "command"]).code, 0);
    let pid = world.pid("command");
    assert_eq!(world.opm(&["reexec"]).code, 0);
    world.until_phase("command", "up");
    assert_eq!(world.pid("command"), pid, "a restart that was asked for once was made again");
    world.crash();
    world.run_with(&arguments);
    world.until("the next one", || world.phase("command") == "up");
    assert_eq!(world.pid("command"), pid, "the same after a crash");
    assert_eq!(world.opm(&["stop", "command", "--reason", "lunch"]).code, 0);
    assert_eq!(world.opm(&["reexec"]).code, 0);
    world.until_phase("a", "up");
    assert_eq!(world.phase("command"), "down");
    let why = world.opm(&["why", "command"]).out;
    assert!(why.contains("lunch"), "{why}");
    // Another command is another wish.
    world.crash();
    world.run_with(&["run", "units", "--", "sleep", "2000"]);
    world.until("the next one", || world.phase("command") == "up");
    let command = world.pid("command").unwrap();
    world.crash();
    world.run();
    // While nobody answers, nothing is there.
    world.until_phase("a", "up");
    world.until("its end", || world.phase("command") == "absent");
    assert!(!world.alive(command));
    world.until_phase("a", "up");
    world.assert_no_doubles();
}

#[test]
fn a_shutdown_is_not_lost_by_reexec() {
    let Some(world) = World::new() else { return };
    // It goes when it is let.
    let script = "trap '' TERM; echo >&3; until [ -e go ]; do sleep 0.02; done";
    world.service("slow", script, "ready: {fd: 3}\nstop: {timeout: never}\n");
    world.apply(0);
    let mut shutdown = world.begin(&["shutdown"]);
    world.until_phase("slow", "stopping");
    let said = world.opm(&["reexec"]);
    assert_eq!(said.code, 4, "{said:?}");
    assert!(said.err.contains("opm is shutting down"), "{said:?}");
    std::fs::write(world.path("go"), "").unwrap();
    assert!(shutdown.wait().unwrap().success());
    // It has hung up, and ends.
    world.until("the end of opm", || !world.daemon_pid().is_some_and(|pid| world.alive(pid)));
}

#[test]
fn what_comes_in_the_moment_of_a_reexec_is_not_lost() {
    for is_signal in [true, false] {
        let Some(world) = World::new() else { return };
        world.unit("d", "command: [sleep, '1000']\nrestart: never\nlogs: {to: null}\n");
        world.apply(0);
        let daemon = world.daemon_pid().unwrap();
        let socket = world.root().join("run/control.sock");
        let mut clients = [(); 2].map(|()| UnixStream::connect(&socket).unwrap());
        let call = |client: &mut UnixStream, method: &str| {
            client.write_all(format!("{{\"method\":\"{method}\"}}\0").as_bytes()).unwrap();
        };
        for client in &mut clients {
            call(client, "org.varlink.service.GetInfo");
            BufReader::new(client).read_until(0, &mut Vec::new()).unwrap();
        }
        let d = world.pid("d").unwrap();
        // All of it is there when it looks.
        world.kill("STOP", daemon);
        call(&mut clients[0], "io.opm.Control.Reexec");
        if is_signal {
            world.kill("TERM", daemon);
        } else {
            call(&mut clients[1], "io.opm.Control.Shutdown");
        }
        world.kill("CONT", daemon);
        world.until("the end of opm", || !world.alive(daemon));
        assert!(!world.alive(d));
    }
}

#[test]
fn a_client_that_restarts_in_a_loop_while_the_daemon_is_killed_doubles_nothing() {
    let Some(mut world) = World::new() else { return };
    three(&world);
    for _ in 0..15 {
        world.run();
        world.until("a daemon", || world.opm(&["status"]).code == 0);
        let mut restarts: Vec<_> = ["a", "b", "c"]
            .iter()
            .map(|name| {
                let mut command = world.command(common::OPM);
                command.arg("--root").arg(world.root()).args(["restart", "--no-wait", name]);
                command.stderr(std::process::Stdio::null());
                command.spawn().unwrap()
            })
            .collect();
        world.crash_if_any();
        for mut restart in restarts.drain(..) {
            restart.wait().unwrap();
        }
    }
    world.run();
    world.until("all three to be up", || all_up(&world));
    world.assert_no_doubles();
}

#[test]
fn what_proc_hides_at_one_time_and_not_at_another_doubles_nothing() {
    if !common::is_root() {
        common::skip("needs root to mount another /proc");
        return;
    }
    let Some(mut world) = World::new() else { return };
    three(&world);
    world.run();
    world.until_phase("c", "up");
    let pids: Vec<_> = ["a", "b", "c"].iter().map(|name| world.pid(name)).collect();
    // As under `ProcSubset=pid` of systemd.
    let mut hide = world.command("mount");
    hide.args(["-t", "proc", "-o", "subset=pid", "proc", "/proc"]);
    assert!(hide.status().unwrap().success());
    for is_hidden in [true, false] {
        world.crash();
        if !is_hidden {
            assert!(world.command("umount").arg("/proc").status().unwrap().success());
        }
        world.run();
        world.until_phase("c", "up");
        let after: Vec<_> = ["a", "b", "c"].iter().map(|name| world.pid(name)).collect();
        assert_eq!(pids, after, "hidden: {is_hidden}");
    }
    world.assert_no_doubles();
}
