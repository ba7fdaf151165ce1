//! Cases REAP, TREE, SIGNAL, EXIT and SHUTDOWN: whole trees, how they end, and how opm does.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::process::Stdio;
use std::time::Duration;

use common::{OPM, World, now, watch_for};

/// Pids of zombies in the namespace.
fn zombies(world: &World) -> usize {
    let is_zombie =
        |pid: &i32| world.status_line(*pid, "State").is_some_and(|s| s.starts_with('Z'));
    world.pids().into_iter().filter(is_zombie).count()
}

#[test]
fn case_012_pid_one_leaves_no_zombies() {
    let mut world = World::bare();
    world.service("noisy", "while :; do (sleep 0.1 & echo >> forks); sleep 0.02; done", "");
    if !world.start_pid_one(&["run", "units"]) {
        return;
    }
    world.until("orphans", || !world.lines("forks").is_empty());
    watch_for(Duration::from_secs(2), || zombies(&world) > 15, "zombies pile up");
    world.until("enough orphans to say something", || world.lines("forks").len() > 20);
}

#[test]
fn case_013_unknown_children_change_no_unit() {
    let mut world = World::bare();
    world.service("a", "(trap '' TERM; sleep 0.5; exit 7) & sleep 0.1; exit 0", "restart: never\n");
    world.service("b", "exec sleep 1000", "");
    if !world.start_pid_one(&["run", "units"]) {
        return;
    }
    world.until_phase("b", "up");
    let pid = world.pid("b");
    // An orphan of somebody who is nobody's.
    let stranger = "(sleep 0.2; exit 7) & echo $! > stranger";
    assert!(world.command("sh").args(["-c", stranger]).status().unwrap().success());
    let stranger = world.pid_in("stranger").unwrap();
    world.until_phase("a", "done");
    let row = world.row("a");
    assert_eq!((&row["code"], &row["last"]), (&0.into(), &"exited 0".into()));
    world.until("the stranger to be reaped", || !world.pids().contains(&stranger));
    assert_eq!(world.pid("b"), pid);
    assert!(world.alive(1));
}

#[test]
fn case_016_opm_is_a_subreaper_where_it_is_not_pid_one() {
    let Some(world) = World::new() else { return };
    let escape = "(setsid sh -c 'echo $$ > orphan; exec sleep 1000' &); exec sleep 1000";
    world.service("f", escape, "");
    world.apply(0);
    world.until("the orphan", || world.pid_in("orphan").is_some());
    let orphan = world.pid_in("orphan").unwrap();
    let daemon = world.daemon_pid().map(|pid| pid.to_string());
    world.until("opm to be its parent", || world.status_line(orphan, "PPid") == daemon);
    assert_eq!(world.opm(&["stop", "f"]).code, 0);
    assert!(!world.alive(orphan));
}

#[test]
fn case_017_a_stop_ends_grandchildren_that_ignore_it() {
    let Some(world) = World::new() else { return };
    let stubborn = "sh -c 'trap \"\" TERM; echo $$ > gc.pid; while :; do sleep 1; done' & wait";
    world.service("n", stubborn, "stop: {timeout: 1s}\n");
    world.apply(0);
    world.until("the grandchild", || world.pid_in("gc.pid").is_some());
    let pid = world.pid_in("gc.pid").unwrap();
    let began = now();
    assert_eq!(world.opm(&["stop", "n"]).code, 0);
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(1), "it was not given its time: {took:?}");
    assert!(took < Duration::from_secs(9), "{took:?}");
    assert!(!world.alive(pid));
    assert!(world.processes_of("n").is_empty());
}

#[test]
fn case_018_a_stop_reaches_the_program_behind_a_shell() {
    let Some(world) = World::new() else { return };
    world.unit("s", "command: \"sh -c 'sleep 0.1; sleep 1000; true'\"\nlogs: {to: null}\n");
    world.unit("t", "command: sleep 1000\nlogs: {to: null}\n");
    world.apply(0);
    world.until("its last child", || world.processes_of("s").len() == 2);
    let program = world.status_line(world.pid("t").unwrap(), "Name");
    assert_eq!(program.as_deref(), Some("sleep"), "a shell stands between");
    let began = now();
    assert_eq!(world.opm(&["stop", "s"]).code, 0);
    assert!(began.elapsed() < Duration::from_secs(9), "{:?}", began.elapsed());
    assert!(world.processes_of("s").is_empty());
}

#[test]
fn case_020_what_escapes_by_a_session_of_its_own_ends_with_its_unit() {
    let Some(mut world) = World::new() else { return };
    let escape = "setsid sh -c 'echo $$ > d.pid; exec sleep 1000' & \
         until [ -s d.pid ]; do sleep 0.02; done; [ -z \"$STAY\" ] || wait";
    world.service("d", escape, "restart: never\n");
    world.run();
    world.until_phase("d", "done");
    let pid = world.pid_in("d.pid").unwrap();
    assert!(!world.alive(pid), "a run is over when all of it is gone");
    assert!(world.log().contains("1 others are left"), "{}", world.log());
    // And while its main process lives, with a stop and with a shutdown.
    world.service("d", escape, "restart: never\nenv: {STAY: yes}\n");
    for how in ["stop", "shutdown"] {
        std::fs::remove_file(world.path("d.pid")).unwrap();
        world.apply(0);
        assert_eq!(world.opm(&["start", "d"]).code, 0);
        world.until("the escape", || world.pid_in("d.pid").is_some());
        let pid = world.pid_in("d.pid").unwrap();
        let args = if how == "stop" { vec![how, "d"] } else { vec![how] };
        assert_eq!(world.opm(&args).code, 0);
        assert!(!world.alive(pid), "{how}");
    }
}

#[test]
fn case_022_every_process_is_told_to_end_before_it_is_killed() {
    let mut world = World::bare();
    let daemon = |clean: &str, name: &str| {
        format!(
            "({clean} setsid sh -c 'trap \"echo bye > {name}.got; exit\" TERM; echo > {name}.set; \
             while :; do sleep 0.05; done' &); while ! [ -e {name}.set ]; do sleep 0.02; done"
        )
    };
    world.service("d", &daemon("", "d"), "restart: never\n");
    // One that nothing ties to its unit any more.
    world.service("e", &daemon("env -i \"PATH=$PATH\"", "e"), "restart: never\n");
    if !world.start_pid_one(&["run", "units"]) {
        return;
    }
    world.until("both to be over", || ["d", "e"].iter().all(|name| world.phase(name) == "done"));
    let began = now();
    world.kill("TERM", 1);
    assert_eq!(world.wait_init(), 0, "{}", world.log());
    assert!(began.elapsed() < Duration::from_secs(9));
    assert_eq!((world.read("d.got"), world.read("e.got")), ("bye\n".into(), "bye\n".into()));
}

/// Starts opm in the foreground as the leader of a session on a new terminal; returns the other
/// end of that.
fn run_on_terminal(world: &mut World) -> std::os::fd::OwnedFd {
    let pty = nix::pty::openpty(None, None).unwrap();
    let mut command = world.command("setsid");
    command.args(["--ctty", OPM, "--root"]).arg(world.root()).args(["run", "units"]);
    let end = || Stdio::from(pty.slave.try_clone().unwrap());
    command.stdin(end()).stdout(end()).stderr(end());
    world.spawn(command);
    pty.master
}

#[test]
fn case_023_a_hangup_is_passed_on_to_nobody() {
    let Some(mut world) = World::new() else { return };
    world.service(
        "a",
        "trap 'echo hup >> hups' HUP; echo >> starts; while :; do sleep 0.1; done",
        "",
    );
    for round in 1..=8 {
        let terminal = run_on_terminal(&mut world);
        world.until("its start", || world.lines("starts").len() == round);
        world.until_phase("a", "up");
        if round == 8 {
            let pid = world.pid("a");
            drop(terminal);
            watch_for(Duration::from_millis(300), || !world.read("hups").is_empty(), "a HUP");
            assert_eq!(world.phase("a"), "up");
            assert_eq!(world.pid("a"), pid);
            return;
        }
        assert_eq!(world.read("hups"), "");
        assert_eq!(world.opm(&["shutdown"]).code, 0);
        assert_eq!(world.wait_run(), 0);
    }
}

#[test]
fn case_025_fifty_deaths_at_once_are_all_noticed() {
    let Some(world) = World::new() else { return };
    let keys = "instances: 50\nrestart: {policy: always, delay: 100ms}\n";
    world.service("k", "exec sleep 1000", keys);
    world.apply(0);
    let pids = |world: &World| -> Vec<i64> {
        world.rows().iter().filter_map(|row| row["pid"].as_i64()).collect()
    };
    let before = pids(&world);
    assert_eq!(before.len(), 50);
    let mut kill = world.command("kill");
    kill.arg("-9").args(before.iter().map(ToString::to_string));
    assert!(kill.status().unwrap().success());
    let began = now();
    world.until("all fifty again", || {
        let after = pids(&world);
        after.len() == 50 && after.iter().all(|pid| !before.contains(pid))
    });
    assert!(began.elapsed() < Duration::from_secs(9), "{:?}", began.elapsed());
}

#[test]
fn case_026_a_failed_task_that_ends_opm_gives_it_its_code() {
    let mut world = World::bare();
    world.task("init", "exit 3", "on_failure: shutdown\n");
    world.service("other", "exec sleep 1000", "");
    if !world.start_pid_one(&["run", "units"]) {
        return;
    }
    assert_eq!(world.wait_init(), 3, "{}", world.log());
}

#[test]
fn case_027_death_by_a_signal_is_128_and_its_number() {
    let mut world = World::bare();
    world.service("main", "kill -9 $$", "restart: never\nessential: true\n");
    if !world.start_pid_one(&["run", "units"]) {
        return;
    }
    assert_eq!(world.wait_init(), 137, "{}", world.log());
    assert!(world.log().contains("killed by SIGKILL"), "{}", world.log());
}

#[test]
fn case_029_every_end_goes_through_the_same_policy() {
    let Some(world) = World::new() else { return };
    let until_told = "echo $$ > pid; while :; do \
                      if [ -e code ]; then c=$(cat code); rm code; exit $c; fi; sleep 0.02; done";
    let keys = |policy: &str| {
        format!("limits: {{core: 0}}\nrestart: {{policy: {policy}, delay: 20ms, factor: 1}}\n")
    };
    for policy in ["always", "on-failure"] {
        world.service("t", until_told, &keys(policy));
        world.apply(0);
        for end in ["KILL", "SEGV", "ABRT", "TERM", "1", "0"] {
            world.until("it to be up", || world.pid("t") == world.pid_in("pid"));
            let pid = world.pid("t").unwrap();
            match end {
                // As a whole: the shell may look at any moment.
                "0" | "1" => {
                    std::fs::write(world.path("new"), end).unwrap();
                    std::fs::rename(world.path("new"), world.path("code")).unwrap();
                }
                signal => world.kill(signal, pid),
            }
            if (policy, end) == ("on-failure", "0") {
                world.until_phase("t", "done");
                break;
            }
            world.until(&format!("a new run after {end}"), || {
                world.pid("t").is_some_and(|new| new != pid)
            });
        }
    }
}

#[test]
fn case_030_what_others_need_is_stopped_last() {
    let Some(mut world) = World::new() else { return };
    let stamp = |name: &str, wait: &str| {
        let trap = format!("trap '{wait} date +%s%N > {name}.t; exit' TERM");
        format!("{trap}; echo > {name}.set; while :; do sleep 0.05; done")
    };
    world.service("a", &stamp("a", ""), "");
    world.service("b", &stamp("b", "sleep 0.7;"), "requires: [a]\n");
    world.run();
    world.until("both traps", || world.path("a.set").exists() && world.path("b.set").exists());
    world.kill("TERM", world.daemon_pid().unwrap());
    assert_eq!(world.wait_run(), 0);
    let time = |name: &str| world.read(name).trim().parse::<u64>().unwrap();
    assert!(time("b.t") < time("a.t"));
}

#[test]
fn case_032_a_unit_that_is_not_ready_holds_up_no_shutdown() {
    let Some(mut world) = World::new() else { return };
    world.service("c", "exec sleep 1000", "ready: {notify: true}\nstart_timeout: 600s\n");
    world.run();
    world.until_phase("c", "starting");
    let began = now();
    world.kill("TERM", world.daemon_pid().unwrap());
    assert_eq!(world.wait_run(), 0);
    assert!(began.elapsed() < Duration::from_secs(9), "{:?}", began.elapsed());
}

#[test]
fn case_033_a_unit_gets_the_time_it_asked_for() {
    let Some(mut world) = World::new() else { return };
    let work =
        "trap 'sleep 6; echo done > ok; exit 0' TERM; echo > j.set; while :; do sleep 0.05; done";
    world.service("j", work, "stop: {timeout: never}\n");
    let hang = "trap '' TERM; echo $$ > k.pid; while :; do sleep 0.1; done";
    world.service("k", hang, "stop: {timeout: 1s}\n");
    world.run();
    world.until("both", || world.path("j.set").exists() && world.pid_in("k.pid").is_some());
    let k = world.pid_in("k.pid").unwrap();
    let began = now();
    world.kill("TERM", world.daemon_pid().unwrap());
    world.until("the end of k", || !world.alive(k));
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(1) && took < Duration::from_millis(5_500), "{took:?}");
    assert_eq!(world.read("ok"), "", "j has more time");
    assert_eq!(world.wait_run(), 0);
    assert_eq!(world.read("ok"), "done\n");
    assert!(began.elapsed() >= Duration::from_secs(6));
}

#[test]
fn case_035_a_third_interrupt_kills_what_is_left() {
    let Some(mut world) = World::new() else { return };
    let hang = "trap '' TERM INT; echo $$ > x.pid; while :; do sleep 0.1; done";
    world.service("x", hang, "stop: {timeout: 60s}\n");
    world.run();
    world.until("its trap", || world.pid_in("x.pid").is_some());
    let (x, daemon) = (world.pid_in("x.pid").unwrap(), world.daemon_pid().unwrap());
    world.kill("INT", daemon);
    world.until_phase("x", "stopping");
    // The second one skips the order of units, the third kills. Two of a kind may count once.
    world.kill("INT", daemon);
    world.kill("TERM", daemon);
    let began = now();
    world.wait_run();
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert!(!world.alive(x));
}

#[test]
fn what_is_between_two_programs_or_about_to_end_is_not_lost_sight_of() {
    const RUNS: usize = 400;
    for is_first in [true, false] {
        let Some(mut world) = (if is_first { Some(World::bare()) } else { World::new() }) else {
            return;
        };
        // None of them heeds the end of its session, and each is elsewhere by then.
        let execs = "setsid sh -c 'exec env env env env env sleep 4002' & exit 1";
        let forks = "setsid -f sleep 4002; exit 1";
        let more = "restart: {policy: always, delay: 1ms, factor: 1}\nstop: {timeout: 100ms}\n";
        world.service("execs", &format!("echo >> execs.starts; {execs}"), more);
        world.service("forks", &format!("echo >> forks.starts; {forks}"), more);
        if !is_first {
            world.run();
        } else if !world.start_pid_one(&["run", "--quiet", "units"]) {
            return;
        }
        world.until("many runs", || {
            ["execs", "forks"].iter().all(|name| world.starts(name) >= RUNS)
        });
        assert_eq!(world.opm(&["stop", "execs", "forks"]).code, 0);
        let left = world
            .pids()
            .into_iter()
            .filter(|pid| world.alive(*pid) && world.command_line(*pid).contains("4002"));
        let left: Vec<i32> = left.collect();
        assert!(left.is_empty(), "{left:?} outlived their units (opm is first: {is_first})");
    }
}

#[test]
fn who_is_begun_after_the_signal_of_a_stop_is_told_to_end_too() {
    let Some(world) = World::new() else { return };
    // It begins what tidies up, elsewhere, and ends without it.
    let late = "setsid sh -c 'trap \"echo bye > late.got; exit\" TERM; echo > late.set; \
                while :; do sleep 0.02; done' & until [ -e late.set ]; do sleep 0.02; done; exit";
    let script = "trap \"$LATE\" TERM; echo > main.set; while :; do sleep 0.02; done";
    let late = serde_json::to_string(late).unwrap();
    world.service("main", script, &format!("env: {{LATE: {late}}}\nstop: {{timeout: 60s}}\n"));
    world.apply(0);
    world.until("its handler", || world.path("main.set").exists());
    let began = now();
    assert_eq!(world.opm(&["stop", "main"]).code, 0);
    assert!(began.elapsed() < Duration::from_secs(30), "{}", world.log());
    assert_eq!(world.read("late.got"), "bye\n");
}

#[test]
fn a_stopped_process_ends_by_whatever_signal_a_stop_sends() {
    let Some(world) = World::new() else { return };
    for (name, stop) in
        [("int", "signal: INT"), ("quit", "signal: QUIT"), ("main", "to: main"), ("all", "to: all")]
    {
        let stop = format!("stop: {{{stop}, timeout: 60s}}\nlogs: {{to: null}}\n");
        world.unit(name, &format!("command: [sleep, '1000']\n{stop}"));
    }
    world.apply(0);
    for name in ["int", "quit", "main", "all"] {
        world.until_phase(name, "up");
        world.kill("STOP", world.pid(name).unwrap());
    }
    let began = now();
    assert_eq!(world.opm(&["stop", "int", "quit", "main", "all"]).code, 0);
    assert!(began.elapsed() < Duration::from_secs(30), "{}", world.log());
}
