//! Cases CHILD, EXEC and LIMITS: what a program finds when it begins, and what opm survives.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{OPM, Said, World, now, watch_for};

/// `opm run units` behind a prefix: `sh -c SETUP` that ends in `exec "$@"`.
fn run_behind(world: &World, setup: &str) -> Command {
    let mut command = world.command("sh");
    command.args(["-c", &format!("{setup}; exec \"$@\""), "sh", OPM, "--root"]);
    command.arg(world.root()).args(["run", "units"]);
    let log = std::fs::File::create(world.path("opm.out")).unwrap();
    command.stdout(log.try_clone().unwrap()).stderr(log);
    command
}

#[test]
fn case_111_signals_are_as_a_program_expects_them() {
    let Some(mut world) = World::new() else { return };
    let look = |name: &str| format!("grep -E 'Sig(Blk|Ign)' /proc/self/status > {name}.masks");
    let hook = |name: &str| format!("[[sh, -c, \"{}\"]]", look(name));
    let keys = format!(
        "pre_start: {}\npost_start: {}\nconditions: {{command: [sh, -c, \"{}\"]}}\n",
        hook("pre"),
        hook("post"),
        look("condition")
    );
    let script =
        look("main") + "; yes 2> noise | head -1 > /dev/null; echo > done; exec sleep 1000";
    world.service("m", &script, &keys);
    let nohup = "exec env --ignore-signal=INT,HUP,PIPE --block-signal=USR1 \"$@\"";
    let command = run_behind(&world, nohup);
    world.spawn(command);
    world.until_phase("m", "up");
    world.until("its acts", || world.path("done").exists());
    for name in ["main", "pre", "post", "condition"] {
        let masks = world.read(&format!("{name}.masks"));
        assert_eq!(masks, format!("SigBlk:\t{0:016}\nSigIgn:\t{0:016}\n", 0), "{name}");
    }
    assert_eq!(world.read("noise"), "");
}

/// A call of the control interface, as bytes.
fn call(method: &str) -> Vec<u8> {
    format!("{{\"method\":\"io.opm.Control.{method}\",\"parameters\":{{}}}}\0").into_bytes()
}

#[test]
fn case_112_a_closed_pipe_or_client_ends_nothing() {
    let Some(mut world) = World::new() else { return };
    let script = "while :; do echo x; echo >> ticks; sleep 0.02; done";
    world.unit("w", &(common::in_shell(script) + "logs: {to: console}\n"));
    let errors = std::fs::File::create(world.path("opm.out")).unwrap();
    let mut command = world.command(OPM);
    command.arg("--root").arg(world.root()).args(["run", "units"]);
    command.stdout(Stdio::piped()).stderr(errors);
    let output = world.spawn(command).stdout.take().unwrap();
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line).unwrap();
    assert!(line.contains('x'), "{line:?}");
    let (pid, daemon) = (world.pid("w"), world.daemon_pid().unwrap());
    let socket = world.root().join("run/control.sock");
    for _ in 0..300 {
        let mut client = UnixStream::connect(&socket).unwrap();
        client.write_all(&call("List")).unwrap();
    }
    let ticks = world.lines("ticks").len();
    world.until("more ticks", || world.lines("ticks").len() > ticks + 20);
    assert!(world.alive(daemon));
    assert_eq!(world.pid("w"), pid);
    let complaints = || world.log().matches("standard output").count();
    world.until("a complaint", || complaints() > 0);
    assert_eq!(complaints(), 1, "{}", world.log());
}

#[test]
fn case_113_no_way_to_start_leaves_a_signal_blocked() {
    let Some(world) = World::new() else { return };
    let script = "grep SigBlk /proc/self/status >> $OPM_INSTANCE.blk; exec sleep 1000";
    let keys = "instances: 40\nrestart: {policy: always, delay: 10ms}\n";
    world.service("n", script, keys);
    world.apply(0);
    let all = |world: &World, times: usize| {
        (1..=40).all(|n| world.lines(&format!("n@{n}.blk")).len() == times)
    };
    world.until("the first starts", || all(&world, 1));
    assert_eq!(world.opm(&["restart", "n"]).code, 0);
    world.until("the restarts", || all(&world, 2));
    let pids = world.rows().into_iter().filter_map(|row| row["pid"].as_i64());
    let mut kill = world.command("kill");
    assert!(kill.arg("-9").args(pids.map(|pid| pid.to_string())).status().unwrap().success());
    world.until("the starts after a crash", || all(&world, 3));
    for n in 1..=40 {
        let lines = world.lines(&format!("n@{n}.blk"));
        assert!(lines.iter().all(|line| line == "SigBlk:\t0000000000000000"), "{n}: {lines:?}");
    }
    let began = now();
    assert_eq!(world.opm(&["stop", "n"]).code, 0);
    assert!(began.elapsed() < Duration::from_secs(9), "{:?}", began.elapsed());
}

#[test]
fn case_114_a_program_has_only_its_own_descriptors() {
    let Some(mut world) = World::new() else { return };
    // The fourth one is that of the directory itself.
    let script = "exec ls -x /proc/self/fd >> $OPM_INSTANCE.fds";
    // With logs, so that each has a pipe that others could be given.
    world.unit("f", &(common::in_shell(script) + "kind: task\ninstances: 30\n"));
    let extra: Vec<String> = (3..10).map(|fd| format!("{fd}</dev/null")).collect();
    let command = run_behind(&world, &format!("exec {}", extra.join(" ")));
    world.spawn(command);
    let socket = world.root().join("run/control.sock");
    world.until("the socket", || socket.exists());
    let mut clients: Vec<UnixStream> =
        (0..5).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    for client in &mut clients {
        client.write_all(&call("List")).unwrap();
    }
    let read = |n: u32| world.lines(&format!("f@{n}.fds"));
    for times in 1..=5 {
        world.until("all starts", || (1..=30).all(|n| read(n).len() == times));
        assert_eq!(world.opm(&["restart", "f"]).code, 0);
    }
    for n in 1..=30 {
        let foreign = read(n).into_iter().find(|line| line != "0  1  2  3");
        assert_eq!(foreign, None, "f@{n}");
    }
}

#[test]
fn case_116_idleness_and_many_clients_end_no_child() {
    let Some(world) = World::new() else { return };
    let script = "echo $$ >> starts; exec sleep 1000";
    world.service("s", script, "instances: 10\nrestart: {policy: always, delay: 10ms}\n");
    world.apply(0);
    world.until("ten starts", || world.lines("starts").len() == 10);
    for _ in 0..5 {
        let clients: Vec<_> = (0..20).map(|_| world.begin(&["status"])).collect();
        for client in clients {
            assert_eq!(Said::of_child(client).code, 0);
        }
    }
    watch_for(Duration::from_secs(1), || world.lines("starts").len() != 10, "another start");
}

#[test]
fn case_117_a_unit_has_no_terminal_and_no_input() {
    let Some(mut world) = World::new() else { return };
    let look = "cat; echo eof > $OPM_UNIT.eof; tty > $OPM_UNIT.tty; \
                ps -o sid= -p $$ > $OPM_UNIT.sid; echo $$ > $OPM_UNIT.pid";
    world.task("s", look, "");
    let pty = nix::pty::openpty(None, None).unwrap();
    let mut command = world.command("setsid");
    command.args(["--ctty", OPM, "--root"]).arg(world.root()).args(["run", "units"]);
    let end = || Stdio::from(pty.slave.try_clone().unwrap());
    command.stdin(end()).stdout(end()).stderr(end());
    world.spawn(command);
    world.until_phase("s", "done");
    assert_eq!(world.opm(&["shutdown"]).code, 0);
    world.wait_run();
    // And with a pipe on standard input that never ends.
    world.task("t", look, "");
    let mut command = run_behind(&world, "true");
    command.stdin(Stdio::piped());
    world.spawn(command);
    world.until_phase("t", "done");
    for name in ["s", "t"] {
        let read = |what: &str| world.read(&format!("{name}.{what}")).trim().to_owned();
        assert_eq!((&*read("eof"), &*read("tty")), ("eof", "not a tty"), "{name}");
        assert_eq!(read("sid"), read("pid"), "{name}");
    }
}

#[test]
fn case_133_a_failed_start_says_what_is_missing() {
    let Some(world) = World::new() else { return };
    std::fs::write(world.path("units/s.sh"), "#!/no/interpreter\n").unwrap();
    std::fs::write(world.path("units/plain"), "a text\n").unwrap();
    std::fs::write(world.path("units/dos.sh"), "#!/bin/sh\r\nexit\r\n").unwrap();
    std::fs::write(world.path("units/mine.sh"), "#!/bin/sh\n").unwrap();
    let modes = "chmod +x units/s.sh units/dos.sh; chmod 700 units/mine.sh; chmod 755 . units";
    assert!(common::shell(world.dir.path(), modes).status.success());
    let cases = [
        ("e1", "[nope]", "cannot find program `nope`: no such program on PATH (/".to_owned()),
        ("e2", "[./plain]", "plain`: it is not executable".to_owned()),
        (
            "e3",
            "[sh]\nworking_dir: /nope",
            "change to working directory `/nope`: no such".to_owned(),
        ),
        ("e4", "[./s.sh]", "s.sh`: its interpreter `/no/interpreter`".to_owned()),
        ("e5", "[/tmp]", "cannot run `/tmp`: it is a directory".to_owned()),
        ("e6", "[./dos.sh]", "dos.sh`: its lines end as on DOS".to_owned()),
        ("e7", "[sh]\nuser: nosuch", "cannot find user `nosuch`: no such user".to_owned()),
        ("e8", "[sh]\ngroup: nosuch", "cannot find group `nosuch`: no such group".to_owned()),
    ];
    let as_another =
        ("e9", "[./mine.sh]\nuser: '65534'", "permission denied, as user `65534`".to_owned());
    let cases = cases.into_iter().chain(common::is_root().then_some(as_another));
    let cases: Vec<_> = cases.collect();
    for (name, command, _) in &cases {
        world.unit(name, &format!("command: {command}\nrestart: never\n"));
    }
    let said = world.apply(1);
    for (name, _, message) in &cases {
        let line = said.err.lines().find(|line| line.contains(&format!("`{name}` is failed")));
        let line = line.unwrap_or_default().to_lowercase();
        assert!(line.contains(&message.to_lowercase()), "{name}: {line}\n{}", said.err);
        assert!(
            world.row(name)["why"].as_str().is_some_and(|why| line.contains(&why.to_lowercase()))
        );
    }
}

#[test]
fn case_134_a_missing_command_is_no_endless_loop() {
    let Some(mut world) = World::new() else { return };
    let restart = "{policy: always, delay: 50ms, limit: {starts: 4, within: 60s}}";
    world.unit("n", &format!("command: [nope]\nrestart: {restart}\n"));
    world.run();
    world.until_phase("n", "failed");
    assert_eq!(world.row("n")["restarts"], 3);
    watch_for(Duration::from_millis(300), || world.phase("n") != "failed", "another try");
    let began = now();
    world.kill("INT", world.daemon_pid().unwrap());
    world.wait_run();
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}

#[test]
fn case_119_hundreds_of_units_are_up_and_logged() {
    let Some(mut world) = World::new() else { return };
    let unit = |n: u32| format!("---\nname: u{n}\ncommand: [sleep, '1000']\n");
    world.unit("u", &(1..=400).map(unit).collect::<String>());
    // Fewer descriptors than opm and the log keeper need, unless they take what they may have.
    let command = run_behind(&world, "ulimit -Sn 64");
    world.spawn(command);
    world.until("the socket", || world.root().join("run/control.sock").exists());
    let said = world.opm(&["wait", "--for", "up", "--timeout", "90s"]);
    assert_eq!(said.code, 0, "{said:?}");
    let began = now();
    assert_eq!(world.rows().len(), 400);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    let log = world.log();
    let complaint = log.lines().find(|line| line.contains("Too many open files"));
    assert_eq!(complaint, None);
}

#[test]
fn case_119_what_finds_no_descriptor_starts_when_there_is_room() {
    let Some(mut world) = World::new() else { return };
    let keys = "command: [sleep, '1000']\nrestart: {delay: 50ms, max_delay: 200ms}\n";
    world.unit("first", &format!("{keys}instances: 100\n"));
    world.unit("second", &format!("{keys}instances: 50\n"));
    let command = run_behind(&world, "ulimit -n 128");
    world.spawn(command);
    world.until("as many as there is room for", || {
        let rows = world.rows();
        let up = rows.iter().filter(|row| row["phase"] == "up").count();
        up > 80 && rows.iter().any(|row| row["phase"] == "backoff")
    });
    let rows = world.rows();
    let why = rows.iter().find(|row| row["phase"] == "backoff").unwrap()["why"].to_string();
    assert!(why.to_lowercase().contains("too many open files"), "{why}");
    assert_eq!(world.opm(&["stop", "first"]).code, 0);
    world.until("the others", || {
        let rows = world.rows();
        rows.iter().filter(|row| row["unit"] == "second" && row["phase"] == "up").count() == 50
    });
}

#[test]
fn case_120_limits_are_those_that_opm_was_started_with() {
    let Some(mut world) = World::new() else { return };
    let print = "{ ulimit -Sn; ulimit -Hn; ulimit -c; } > $OPM_UNIT.limits";
    world.task("l", print, "limits: {nofile: 2048, core: 0}\n");
    world.task("d", print, "");
    world.task("u", print, "limits: {nofile: unlimited}\n");
    let command = run_behind(&world, "ulimit -Sn 1024; ulimit -Hn 4096; ulimit -c 512");
    world.spawn(command);
    for (unit, phase) in [("l", "done"), ("d", "done"), ("u", "failed")] {
        world.until_phase(unit, phase);
    }
    assert_eq!(world.lines("l.limits"), ["2048", "2048", "0"]);
    assert_eq!(world.lines("d.limits"), ["1024", "4096", "512"]);
    let why = world.row("u")["why"].to_string();
    assert!(why.contains("cannot set limit `nofile`"), "{why}");
}

#[test]
fn case_122_five_hundred_restarts_leave_nothing_behind() {
    let Some(world) = World::new() else { return };
    let restart = "restart: {policy: always, delay: 1ms, max_delay: 1ms}\n";
    world.service("r", "env | wc -c >> sizes; exit 1", restart);
    world.opm(&["apply", "--no-wait", "units"]);
    let daemon = world.daemon_pid().unwrap();
    let descriptors = |world: &World| {
        let dir = world.proc().unwrap().join(format!("{daemon}/fd"));
        std::fs::read_dir(dir).unwrap().count()
    };
    let memory = |world: &World| {
        let text = world.status_line(daemon, "VmRSS").unwrap_or_default();
        text.trim_end_matches(" kB").parse::<usize>().unwrap()
    };
    world.until("the first fifty", || world.lines("sizes").len() >= 50);
    let before = memory(&world);
    world.until("five hundred", || world.lines("sizes").len() >= 500);
    assert!(memory(&world) < before + 5_000, "{before} kB, then {}", memory(&world));
    // The last one may be cut off by the stop.
    let sizes = world.lines("sizes");
    assert_eq!(world.opm(&["stop", "r"]).code, 0);
    let idle = descriptors(&world);
    assert!(idle < 20, "{idle} descriptors");
    assert!(sizes.iter().all(|size| *size == sizes[0]), "the environment grows");
}

#[test]
fn who_writes_to_its_readiness_descriptor_without_end_holds_nobody_up() {
    let Some(mut world) = World::new() else { return };
    // Enough of them that the descriptor is never empty.
    let many = |program: &str| format!("for i in 1 2 3 4 5 6 7 8; do {program} >&3 & done; wait");
    world.service("talks", &many("yes"), "ready: {fd: 3}\n");
    world.service("blank", &many("cat /dev/zero"), "ready: {fd: 3}\n");
    world.service("other", "exec sleep 1000", "requires: [talks]\n");
    world.run();
    world.until_phase("other", "up");
    assert_eq!(world.phase("blank"), "starting");
    assert_eq!(world.opm(&["restart", "other"]).code, 0);
    assert_eq!(world.opm(&["shutdown"]).code, 0);
    assert_eq!(world.wait_run(), 0);
}
