//! Cases CTL, STATE and LOGDATA: the control socket, the saved state, and what units write.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use common::{OPM, Said, World, in_shell, now, witness};

/// Says what a command with another root than the world's says.
fn opm_under(world: &World, root: &PathBuf, args: &[&str]) -> Said {
    let mut command = world.command("timeout");
    command.args(["20", OPM, "--root"]).arg(root).args(args);
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    Said::of_child(command.spawn().unwrap())
}

#[test]
fn case_125_a_stale_socket_is_replaced_and_nothing_else_is() {
    let Some(mut world) = World::new() else { return };
    // Its first act is to ask how things are.
    let ask = format!("{OPM} --root root status > /dev/null && echo >> answered; exec sleep 1000");
    world.service("asks", &ask, "");
    world.run();
    for times in 1..=5 {
        world.until("its question to be answered", || world.lines("answered").len() == times);
        world.until_phase("asks", "up");
        assert_eq!(world.opm(&["restart", "asks"]).code, 0);
    }
    world.crash();
    assert!(world.root().join("run/control.sock").exists(), "it left its socket");
    assert_eq!(world.opm(&["status"]).code, 3);
    assert_eq!(world.opm(&["daemon"]).code, 0, "{}", world.log());
    assert_eq!(world.opm(&["status"]).code, 0);
    assert_eq!(world.opm(&["daemon"]).code, 4);
    assert_eq!(world.opm(&["shutdown"]).code, 0);
    // What is no socket is somebody's.
    let path = world.root().join("run/control.sock");
    fs::remove_file(&path).ok();
    fs::write(&path, "mine").unwrap();
    let said = world.opm(&["daemon"]);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.err.contains("control.sock") && said.err.contains("no socket"), "{said:?}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
}

/// A root below the scratch directory whose control socket has a path of so many bytes.
fn root_of(world: &World, tail: &str, socket_bytes: usize) -> PathBuf {
    let fixed = world.dir.path().as_os_str().len() + "/".len() + "/run/control.sock".len();
    let pad = socket_bytes - fixed - tail.len();
    let root = world.path(&format!("{}{tail}", "r".repeat(pad)));
    assert_eq!(root.join("run/control.sock").as_os_str().len(), socket_bytes);
    root
}

#[test]
fn case_126_a_socket_path_that_is_too_long_is_one_clear_line() {
    let Some(world) = World::new() else { return };
    let root = root_of(&world, "", 230);
    for args in [&["daemon"][..], &["status"], &["apply", "units"]] {
        let said = opm_under(&world, &root, args);
        assert!(matches!(said.code, 1 | 4), "{args:?}: {said:?}");
        let lines: Vec<&str> = said.err.lines().collect();
        assert_eq!(lines.len(), 1, "{args:?}: {said:?}");
        let said = lines[0];
        assert!(said.contains("230 bytes") && said.contains("107"), "{args:?}: {said}");
    }
    // Where the control socket just fits, the notify socket does too, or its unit says why not.
    let root = root_of(&world, "", 107);
    let notify = "perl -MSocket -e 'socket(S, AF_UNIX, SOCK_DGRAM, 0); \
                  send(S, \"READY=1\", 0, pack_sockaddr_un($ENV{NOTIFY_SOCKET}))'; exec sleep 1000";
    world.service("with-a-rather-long-name", notify, "ready: {notify: true}\nrestart: never\n");
    let said = opm_under(&world, &root, &["apply", "--timeout", "10s", "units"]);
    if said.code != 0 {
        assert_eq!(said.code, 1, "{said:?}");
        assert!(said.err.contains("107"), "{said:?}");
    }
}

#[test]
fn case_127_paths_are_never_cut() {
    let Some(world) = World::new() else { return };
    world.service("a", "exec sleep 1000", "");
    for (bytes, works) in [(106, true), (107, true), (108, false), (109, false)] {
        let root = root_of(&world, "", bytes);
        let said = opm_under(&world, &root, &["daemon"]);
        assert_eq!(said.code == 0, works, "{bytes}: {said:?}");
        if works {
            assert_eq!(opm_under(&world, &root, &["shutdown"]).code, 0);
        } else {
            assert!(said.err.contains("107"), "{bytes}: {said:?}");
        }
    }
    // Two that differ in their last bytes alone.
    let roots = ["1", "2"].map(|tail| root_of(&world, tail, 107));
    for root in &roots {
        assert_eq!(opm_under(&world, root, &["daemon"]).code, 0);
    }
    assert_eq!(opm_under(&world, &roots[0], &["apply", "units"]).code, 0);
    assert!(opm_under(&world, &roots[0], &["status"]).out.contains("a "));
    assert!(!opm_under(&world, &roots[1], &["status"]).out.contains("a "));
}

/// Services a and b that would notice a second copy.
fn two(world: &World) {
    for name in ["a", "b"] {
        world.service(name, &(witness(name) + "exec sleep 1000"), "");
    }
}

/// Waits until each has said that it starts.
fn both_started(world: &World) {
    world.until("their first acts", || {
        ["a", "b"].iter().all(|name| world.lines(&format!("{name}.starts")).len() == 1)
    });
}

#[test]
fn case_129_a_broken_file_is_kept_and_the_one_before_is_used() {
    let Some(mut world) = World::new() else { return };
    two(&world);
    world.apply(0);
    both_started(&world);
    let state = world.root().join("state");
    let current = state.join("desired.json");
    for name in ["empty", "half", "NUL", "random"] {
        // Twice, so that the copy before is of the same units.
        assert_eq!((world.opm(&["save"]).code, world.opm(&["save"]).code), (0, 0));
        world.crash();
        let whole = fs::read(&current).unwrap();
        let bytes: Vec<u8> = match name {
            "empty" => Vec::new(),
            "half" => whole[..whole.len() / 2].to_vec(),
            "NUL" => vec![0; whole.len()],
            _ => whole.iter().map(|byte| byte.wrapping_mul(31) ^ 7).collect(),
        };
        fs::write(&current, &bytes).unwrap();
        assert_eq!(world.opm(&["daemon"]).code, 0, "{name}: {}", world.log());
        assert_eq!((world.phase("a"), world.phase("b")), ("up".into(), "up".into()), "{name}");
        let kept = fs::read_dir(&state).unwrap().flatten().any(|entry| {
            entry.file_name().to_string_lossy().contains(".corrupt-")
                && fs::read(entry.path()).unwrap() == bytes
        });
        assert!(kept, "{name}: it is kept for somebody who can read it");
    }
    both_started(&world);
    world.assert_no_doubles();
}

#[test]
fn case_129_a_kill_in_the_middle_of_saves_leaves_a_whole_file() {
    let Some(mut world) = World::new() else { return };
    two(&world);
    world.apply(0);
    both_started(&world);
    for round in 0..10 {
        let saves: Vec<_> = (0..5).map(|_| world.begin(&["save"])).collect();
        let until = now() + Duration::from_micros(round * 1_500);
        while now() < until {
            std::hint::spin_loop();
        }
        world.crash();
        for save in saves {
            Said::of_child(save);
        }
        assert_eq!(world.opm(&["daemon"]).code, 0);
        assert_eq!((world.phase("a"), world.phase("b")), ("up".into(), "up".into()));
    }
    assert!(!world.log().contains("cannot read saved state"), "{}", world.log());
    both_started(&world);
    world.assert_no_doubles();
}

#[test]
fn case_130_broken_is_not_empty() {
    let Some(mut world) = World::new() else { return };
    two(&world);
    world.apply(0);
    both_started(&world);
    let pids = ["a", "b"].map(|name| world.pid(name));
    world.crash();
    let state = world.root().join("state");
    for name in ["desired.json", "desired.previous.json"] {
        fs::write(state.join(name), "broken").unwrap();
    }
    assert_eq!(world.opm(&["daemon"]).code, 0, "{}", world.log());
    let wrong = || pids.iter().flatten().any(|pid| !world.alive(*pid));
    common::watch_for(Duration::from_millis(300), wrong, "stopped for want of a saved state");
    assert!(world.log().contains("cannot read saved state"), "{}", world.log());
    world.apply(0);
    assert_eq!(["a", "b"].map(|name| world.pid(name)), pids);
    both_started(&world);
    let is_kept = |entry: fs::DirEntry| entry.file_name().to_string_lossy().contains(".corrupt-");
    assert!(fs::read_dir(&state).unwrap().flatten().any(is_kept));
    world.assert_no_doubles();
}

/// Waits until a unit's log, as it was written, is what it should be.
fn until_log(world: &World, unit: &str, what: &str, fact: impl Fn(&[u8]) -> bool) {
    let raw = || {
        let mut command = world.command(OPM);
        command.arg("--root").arg(world.root()).args(["logs", "--raw", unit]);
        command.output().unwrap().stdout
    };
    world.until(what, || fact(&raw()));
}

#[test]
fn case_062_log_bytes_are_bytes() {
    let Some(world) = World::new() else { return };
    let script =
        "printf 'a\\301b\\000c\\n'; seq -f 'line %.0f' 100000; touch done; exec sleep 1000";
    world.unit("b", &in_shell(script));
    world.unit("p", &(in_shell(script) + "logs: {to: {path: p.log}}\n"));
    world.apply(0);
    world.until("all to be written", || world.path("done").exists());
    let mut expected = b"a\xc1b\0c\n".to_vec();
    for n in 1..=100_000 {
        expected.extend_from_slice(format!("line {n}\n").as_bytes());
    }
    until_log(&world, "b", "every byte", |bytes| bytes == expected);
    world.until("every byte", || fs::read(world.path("units/p.log")).is_ok_and(|b| b == expected));
}

/// Resident memory of the largest opm in the namespace, in kB.
fn memory(world: &World) -> u64 {
    let is_opm = |pid: &i32| world.status_line(*pid, "Name").as_deref() == Some("opm");
    let resident = |pid| world.status_line(pid, "VmHWM")?.strip_suffix(" kB")?.parse().ok();
    world.pids().into_iter().filter(is_opm).filter_map(resident).max().unwrap_or(0)
}

#[test]
fn case_063_a_very_long_line_stops_nobody() {
    let Some(world) = World::new() else { return };
    world.unit("idle", &in_shell("exec sleep 1000"));
    world.apply(0);
    let before = memory(&world);
    let script = "head -c 20000000 /dev/zero | tr '\\0' x; echo; echo after; touch done; \
                  exec sleep 1000";
    world.unit("l", &in_shell(script));
    world.apply(0);
    world.until("all to be written", || world.path("done").exists());
    until_log(&world, "l", "the line after", |bytes| bytes.ends_with(b"x\nafter\n"));
    assert!(memory(&world) < before + 10_000, "{before} kB, then {}", memory(&world));
}

#[test]
fn case_064_an_over_long_line_costs_no_other_line() {
    let Some(world) = World::new() else { return };
    let script = "echo before; head -c 3000000 /dev/zero | tr '\\0' y; echo; \
                  for i in 1 2 3; do echo tail$i; done; printf 'no newline at end'";
    world.unit("l", &(in_shell(script) + "restart: never\n"));
    world.apply(0);
    let tail = b"\ntail1\ntail2\ntail3\nno newline at end";
    until_log(&world, "l", "every line", |bytes| {
        let ys = String::from_utf8_lossy(bytes).matches('y').count();
        bytes.starts_with(b"before\nyy")
            && bytes.trim_ascii_end().ends_with(tail)
            && ys == 3_000_000
    });
}

#[test]
fn case_065_what_is_written_during_a_stop_is_kept() {
    let Some(mut world) = World::new() else { return };
    let script =
        "trap 'seq -f \"bye %.0f\" 500; exit' TERM; echo > set; while :; do sleep 0.05; done";
    world.unit("g", &in_shell(script));
    world.run();
    let byes = |bytes: &[u8]| String::from_utf8_lossy(bytes).matches("bye ").count();
    for (how, expected) in [("stop", 500), ("shutdown", 1000)] {
        world.until("its trap", || world.path("set").exists());
        world.until_phase("g", "up");
        fs::remove_file(world.path("set")).unwrap();
        if how == "stop" {
            assert_eq!(world.opm(&["stop", "g"]).code, 0);
            until_log(&world, "g", "500 lines", |bytes| byes(bytes) == expected);
            assert_eq!(world.opm(&["start", "g"]).code, 0);
        } else {
            world.kill("TERM", world.daemon_pid().unwrap());
            assert_eq!(world.wait_run(), 0);
            let said = world.opm(&["logs", "--raw", "g"]);
            assert_eq!(byes(said.out.as_bytes()), expected);
        }
    }
}

#[test]
fn case_068_a_service_writes_on_when_opm_and_the_keeper_die() {
    let Some(mut world) = World::new() else { return };
    let script = "i=0; while :; do i=$((i+1)); echo $i; echo $i > said; sleep 0.01; done";
    world.unit("w", &in_shell(script));
    world.run();
    world.until_phase("w", "up");
    let pid = world.pid("w");
    let said = |world: &World| world.read("said").trim().parse::<usize>().unwrap_or(0);
    let whole = |bytes: &[u8], at_least: usize| {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let numbers: Vec<usize> = text.lines().filter_map(|line| line.parse().ok()).collect();
        assert!(numbers.iter().copied().eq(1..=numbers.len()), "a gap: {text}");
        numbers.len() >= at_least
    };
    world.until("some lines", || said(&world) > 20);
    world.crash();
    let then = said(&world) + 20;
    world.until("more lines while nobody supervises", || said(&world) > then);
    until_log(&world, "w", "those too", |bytes| whole(bytes, then));
    world.run();
    world.until_phase("w", "up");
    assert_eq!(world.pid("w"), pid);
    // A keeper that is ended from outside comes back; its FIFO was held meanwhile.
    let rows = world.opm(&["status", "--all", "--json"]).out;
    let rows: Vec<serde_json::Value> = serde_json::from_str(&rows).unwrap();
    let keeper = rows.iter().find(|row| row["instance"] == "_opm-log-keeper");
    let keeper = keeper.and_then(|row| row["pid"].as_i64()).expect("a log keeper");
    world.kill("TERM", i32::try_from(keeper).unwrap());
    let then = said(&world) + 20;
    until_log(&world, "w", "lines after that", |bytes| whole(bytes, then));
    assert_eq!(world.pid("w"), pid);
}

#[test]
fn what_was_saved_runs_on_where_the_directory_of_the_start_cannot_be_applied() {
    let Some(mut world) = World::new() else { return };
    world.unit("a", "command: [sleep, '1000']\nworking_dir: /\nlogs: {to: null}\n");
    let daemon = |world: &World| world.opm(&["daemon", "units"]);
    assert_eq!(daemon(&world).code, 0);
    world.until_phase("a", "up");
    let bad = |world: &World| world.unit("b", "comand: x\n");
    let away = |world: &World| fs::rename(world.path("units"), world.path("away")).unwrap();
    for (spoil, says) in [(&bad as &dyn Fn(&World), "comand"), (&away, "no such file")] {
        assert_eq!(world.opm(&["shutdown"]).code, 0);
        spoil(&world);
        let said = daemon(&world);
        assert_eq!(said.code, 2, "{said:?}");
        assert!(said.err.contains(says) && said.err.contains("runs what was saved"), "{said:?}");
        world.until_phase("a", "up");
    }
    assert_eq!(world.opm(&["shutdown"]).code, 0);
    // In the foreground too.
    world.run();
    world.until_phase("a", "up");
    assert_eq!(world.opm(&["shutdown"]).code, 0);
    assert_eq!(world.wait_run(), 0);
    // Where nothing is saved there is nothing to run.
    fs::remove_dir_all(world.root().join("state")).unwrap();
    let said = daemon(&world);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.err.contains("no such file"), "{said:?}");
}

#[test]
fn a_control_socket_that_was_removed_is_missed_with_what_brings_it_back() {
    let Some(mut world) = World::new() else { return };
    world.staying("web", "");
    world.apply(0);
    let socket = world.root().join("run/control.sock");
    // An opm that wakes misses it by itself.
    let pid = world.daemon_pid().unwrap();
    world.until("nothing to be left that wakes it", || world.has_let_go(pid));
    fs::remove_file(&socket).unwrap();
    for command in [&["status"][..], &["stop", "web"], &["apply", "units"]] {
        let said = world.opm(command);
        assert_eq!(said.code, 3, "{said:?}");
        assert!(said.err.contains(&format!("`kill -USR1 {pid}`")), "{said:?}");
    }
    world.kill("USR1", pid);
    world.until("the socket", || socket.exists());
    assert_eq!((world.opm(&["status", "web"]).code, world.starts("web")), (0, 1));
    world.crash();
    assert!(!world.opm(&["status"]).err.contains("kill"), "it is gone");
}

#[test]
fn opm_s_own_log_says_when_and_as_much_whoever_started_the_daemon() {
    for start in [&["daemon", "units"][..], &["apply", "units"]] {
        let Some(world) = World::new() else { return };
        world.service("web", "echo >> n; [ -e n2 ] && exec sleep 1000; : > n2; exit 3", "");
        world.opm(start);
        world.until("its restart", || world.lines("n").len() == 2);
        world.until_phase("web", "up");
        world.until("its line", || world.log().contains("exited 3"));
        let log = fs::read_to_string(world.root().join("log/opm.log")).unwrap();
        for line in log.lines() {
            let (time, rest) = line.split_once(' ').unwrap();
            assert!(time.starts_with("20") && time.ends_with('Z') && time.len() == 27, "{line}");
            assert!(rest.starts_with("opm: "), "{line}");
        }
    }
}

#[test]
fn who_asks_a_stopped_daemon_hears_so_and_gets_its_answer_when_it_goes_on() {
    let Some(world) = World::new() else { return };
    world.staying("a", "");
    world.apply(0);
    let pid = world.daemon_pid().unwrap();
    world.kill("STOP", pid);
    let waits = world.begin(&["wait", "a", "--for", "down", "--timeout", "1s"]);
    let asks = world.begin(&["status", "a"]);
    let said = Said::of_child(waits);
    assert_eq!(said.code, 5, "{said:?}");
    assert!(said.err.contains("does not answer"), "{said:?}");
    assert!(
        said.err.contains(&format!("process {pid}, which is to answer, is stopped")),
        "{said:?}"
    );
    world.kill("CONT", pid);
    let said = Said::of_child(asks);
    assert_eq!(said.code, 0, "{said:?}");
    assert!(said.out.contains("up"), "{said:?}");
}
