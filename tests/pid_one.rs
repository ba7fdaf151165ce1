//! opm as PID 1: what the kernel gives it, what it owes, and when it leaves.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::process::Stdio;
use std::time::Duration;

use common::{OPM, World, has_namespaces, is_root, skip, until, witness};

/// `opm run -- CMD` as PID 1 of a fresh namespace; its exit code and what it printed.
fn tini(script: &str) -> Option<(i32, String)> {
    if !has_namespaces() {
        return None;
    }
    let world = World::bare();
    let mut command = world.command("unshare");
    command.args(["--pid", "--fork", "--mount-proc", "--kill-child"]);
    if !is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    let output = command.args([OPM, "run", "--", "sh", "-c", script]).output().unwrap();
    let code = output.status.code().unwrap_or(-1);
    Some((code, String::from_utf8_lossy(&output.stdout).into_owned()))
}

#[test]
fn the_command_s_exit_code_is_opm_s() {
    for (script, code) in
        [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", 137), ("kill -TERM $$", 143)]
    {
        let Some((found, _)) = tini(script) else { return };
        assert_eq!(found, code, "{script}");
    }
}

#[test]
fn a_command_that_is_not_there_is_127_and_one_that_cannot_be_run_126() {
    let world = World::bare();
    std::fs::write(world.path("data"), "").unwrap();
    for (program, code, words) in [
        ("no-such-program", 127, "cannot find program `no-such-program`"),
        ("/no/such/program", 127, "cannot find program `/no/such/program`"),
        ("./none", 127, "cannot find program `"),
        ("./data", 126, "it is not executable"),
    ] {
        let output = world.command(OPM).args(["run", "--", program]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{program}: {said}");
        assert!(said.contains(words), "{program}: {said}");
    }
}

#[test]
fn opm_and_the_command_are_the_only_processes() {
    let Some((code, out)) = tini("set -- /proc/[0-9]*; echo $#") else { return };
    assert_eq!((code, out.trim()), (0, "2"));
}

#[test]
fn signals_go_to_the_group_of_the_command() {
    let Some(world) = World::new() else { return };
    let script = "trap 'echo usr1 >> got' USR1; trap 'echo term >> got; exit 5' TERM; \
                  sh -c 'trap \"echo child >> got; exit\" USR1; echo >> ready; while :; do sleep 0.02; done' & \
                  while :; do wait; done";
    let mut command = world.command(OPM);
    let mut opm = command.args(["run", "--", "sh", "-c", script]).spawn().unwrap();
    world.until("the child", || !world.read("ready").is_empty());
    let own = until_child(opm.id());
    signal(own, "USR1");
    world.until("both to have it", || world.lines("got").len() == 2);
    signal(own, "TERM");
    assert_eq!(opm.wait().unwrap().code(), Some(5));
    let mut got = world.lines("got");
    got.sort();
    assert_eq!(got, ["child", "term", "usr1"]);
}

#[test]
fn every_signal_that_can_be_passed_on_is() {
    let Some(world) = World::new() else { return };
    // What comes of a signal that another handler of the shell's would hide; it notes each by its number.
    let script = "import os, signal, sys\n\
                  passed = [n for n in range(1, 65) if n not in (4, 5, 6, 7, 8, 9, 11, 13, 17, 19, 31, 32, 33)]\n\
                  def note(number, _): os.write(1, f'{number}\\n'.encode())\n\
                  for n in passed: signal.signal(n, note)\n\
                  os.write(1, b'ready\\n')\n\
                  while True: signal.pause()\n";
    std::fs::write(world.path("note.py"), script).unwrap();
    let out = std::fs::File::create(world.path("got")).unwrap();
    let mut command = world.command(OPM);
    let mut opm = command.args(["run", "--", "python3", "note.py"]).stdout(out).spawn().unwrap();
    world.until("the program", || world.lines("got") == ["ready"]);
    let own = until_child(opm.id());
    let reserved = [4, 5, 6, 7, 8, 9, 11, 13, 17, 19, 31, 32, 33];
    for number in (1..=64).filter(|number| !reserved.contains(number)) {
        signal(own, &number.to_string());
        let text = number.to_string();
        world.until(&format!("signal {number}"), || world.lines("got").last() == Some(&text));
    }
    signal(own, "KILL");
    opm.wait().unwrap();
}

/// The process in the namespace behind an nsenter.
fn until_child(nsenter: u32) -> u32 {
    let path = format!("/proc/{nsenter}/task/{nsenter}/children");
    let child = || std::fs::read_to_string(&path).ok()?.split_whitespace().next()?.parse().ok();
    until("nsenter's child", || child().is_some());
    child().unwrap()
}

fn signal(pid: u32, name: &str) {
    let world = World::bare();
    let status = world.command("kill").args(["-s", name, &pid.to_string()]).status().unwrap();
    assert!(status.success());
}

#[test]
fn standard_input_and_output_are_the_command_s_own() {
    use std::io::Write;
    let world = World::bare();
    let mut opm = world
        .command(OPM)
        .args(["run", "--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    opm.stdin.take().unwrap().write_all(b"to the cat").unwrap();
    let output = opm.wait_with_output().unwrap();
    assert_eq!((output.stdout.as_slice(), output.status.code()), (&b"to the cat"[..], Some(0)));
}

#[test]
fn shutdown_stops_dependents_first_and_leaves_nothing() {
    let mut world = World::bare();
    let service = |name: &str, requires: &str| {
        format!(
            "shell: |\n  trap 'echo {name} >> order; exit 0' TERM\n  echo {name} >> up\n  \
             while :; do sleep 0.02; done\nrequires: [{requires}]\nworking_dir: ..\n"
        )
    };
    world.unit("base", &service("base", ""));
    world.unit("mid", &service("mid", "base"));
    world.unit("top", &service("top", "mid"));
    if !world.start_pid_one(&["run", "units"]) {
        return;
    }
    until("all to be up", || world.lines("up").len() == 3);
    signal(world.init(), "TERM");
    assert_eq!(world.wait_init(), 0, "{}", world.log());
    assert_eq!(world.lines("order"), ["top", "mid", "base"]);
}

#[test]
fn what_ignores_term_is_killed_within_the_budget() {
    let mut world = World::bare();
    for name in ["a", "b"] {
        let requires = if name == "b" { "requires: [a]\n" } else { "" };
        let text = format!(
            "shell: |\n  trap '' TERM\n  echo >> up\n  while :; do sleep 0.05; done\n\
             stop: {{timeout: 60s}}\nworking_dir: ..\n{requires}"
        );
        world.unit(name, &text);
    }
    if !world.start_pid_one(&["run", "--shutdown-timeout", "2s", "units"]) {
        return;
    }
    until("both to be up", || world.lines("up").len() == 2);
    let began = common::now();
    signal(world.init(), "TERM");
    assert_eq!(world.wait_init(), 0);
    let took = began.elapsed();
    assert!(took < Duration::from_secs(10), "took {took:?}");
    assert!(took > Duration::from_millis(1500), "gave up early: {took:?}");
}

#[test]
fn a_second_and_third_signal_shorten_the_shutdown() {
    let mut world = World::bare();
    let text = "shell: |\n  trap '' TERM\n  echo >> up\n  while :; do sleep 0.05; done\n\
                stop: {timeout: 60s}\nworking_dir: ..\n";
    world.unit("a", text);
    world.unit("b", &format!("{text}requires: [a]\n"));
    if !world.start_pid_one(&["run", "--shutdown-timeout", "100s", "units"]) {
        return;
    }
    until("both to be up", || world.lines("up").len() == 2);
    signal(world.init(), "TERM");
    until("the first", || world.log().contains("shutting down"));
    signal(world.init(), "INT");
    until("the second", || world.log().contains("stopping everything at once"));
    signal(world.init(), "INT");
    let began = common::now();
    assert_eq!(world.wait_init(), 0);
    assert!(began.elapsed() < Duration::from_secs(10), "took {:?}", began.elapsed());
}

#[test]
fn an_essential_unit_ends_opm_with_its_code() {
    for (end, code) in [("exit 3", 3), ("kill -9 $$", 137), ("exit 0", 0)] {
        let mut world = World::bare();
        world.unit("other", "command: [sleep, '1000']\nlogs: {to: null}\n");
        let text =
            format!("command: [sh, -c, 'sleep 0.1; {end}']\nessential: true\nrestart: never\n");
        world.unit("main", &text);
        if !world.start_pid_one(&["run", "units"]) {
            return;
        }
        assert_eq!(world.wait_init(), code, "{end}\n{}", world.log());
    }
}

#[test]
fn a_failing_task_with_on_failure_shutdown_ends_opm_with_its_code() {
    let mut world = World::bare();
    world.unit("init", "kind: task\ncommand: [sh, -c, 'exit 3']\non_failure: shutdown\n");
    if !world.start_pid_one(&["run", "units"]) {
        return;
    }
    assert_eq!(world.wait_init(), 3, "{}", world.log());
}

#[test]
fn bad_units_and_nothing_saved_are_exit_2() {
    let mut world = World::bare();
    world.unit("a", "comand: [true]\n");
    if !world.start_pid_one(&["run", "units"]) {
        return;
    }
    assert_eq!(world.wait_init(), 2);
    assert!(world.log().contains("did you mean `command`?"), "{}", world.log());
}

#[test]
fn orphans_are_reaped_and_a_fork_storm_leaves_no_zombies() {
    let mut world = World::bare();
    let storm = "shell: |\n  for i in 1 2 3 4 5 6 7 8 9 10; do\n    for j in 1 2 3 4 5 6 7 8 9 10; do \
                 (sleep 0.01 &); done\n  done\n  echo done >> storm\n  exec sleep 1000\nworking_dir: ..\n\
                 logs: {to: null}\n";
    world.unit("storm", storm);
    if !world.start_pid_one(&["run", "units"]) {
        return;
    }
    until("the storm", || !world.read("storm").is_empty());
    let zombies = || {
        let proc = world.proc().unwrap();
        std::fs::read_dir(proc)
            .unwrap()
            .flatten()
            .filter(|entry| {
                let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
                stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'))
            })
            .count()
    };
    until("all zombies to be reaped", || zombies() == 0);
}

#[test]
fn a_read_only_root_and_any_uid_will_do() {
    if !is_root() {
        skip("needs root to make a read-only root");
        return;
    }
    if !has_namespaces() {
        return;
    }
    let world = World::bare();
    world.unit("ok", "kind: task\ncommand: [sh, -c, 'id -u; echo fine']\nlogs: {to: inherit}\non_success: shutdown\n");
    common::shell(world.dir.path(), "chmod -R a+rX .");
    let script = format!(
        "mount --rbind / /mnt && mount -t proc proc /mnt/proc && mount -o remount,bind,ro /mnt && \
         exec chroot --userspec=1000780000:0 /mnt {OPM} run {}",
        world.path("units").display()
    );
    let output = world
        .command("unshare")
        .args(["--pid", "--fork", "--mount", "--kill-child", "sh", "-c", &script])
        .output()
        .unwrap();
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{out}{err}");
    assert!(out.contains("1000780000\nfine"), "{out}{err}");
}

#[test]
fn beside_pid_one_opm_is_a_subreaper_and_stop_finds_what_escaped() {
    let Some(world) = World::new() else { return };
    let script =
        witness("f") + "(setsid sh -c 'echo $$ > escaped; exec sleep 1000' &); exec sleep 1000";
    world.unit("f", &format!("command: [sh, -c, {script:?}]\nworking_dir: ..\n"));
    world.apply(0);
    world.until("the escapee", || !world.read("escaped").is_empty());
    let escaped: i32 = world.read("escaped").trim().parse().unwrap();
    assert!(world.alive(escaped));
    world.opm(&["stop", "f"]);
    assert!(!world.alive(escaped), "it was stopped with its unit");
    world.assert_no_doubles();
}

#[test]
fn a_next_program_that_cannot_begin_does_not_end_pid_one() {
    if !is_root() {
        skip("needs root to mount something over a file of /proc");
        return;
    }
    let mut world = World::bare();
    world.staying("a", "");
    if !world.start_pid_one(&["run", "units"]) {
        return;
    }
    world.until_phase("a", "up");
    let main = world.pid("a");
    // Without this number it cannot know which ledger is its own. Nobody can read the first byte of a memory.
    let boot_id = "/proc/sys/kernel/random/boot_id";
    let done = |mut command: std::process::Command| assert!(command.status().unwrap().success());
    let mut hide = world.command("mount");
    hide.args(["--bind", "/proc/1/mem", boot_id]);
    done(hide);
    let mut reexec = world.begin(&["reexec"]);
    world.until("two tries", || world.log().matches("trying again, as processes run").count() == 2);
    assert!(!reexec.wait().unwrap().success());
    let mut show = world.command("umount");
    show.arg(boot_id);
    done(show);
    world.until("one that could", || world.phase("a") == "up");
    assert_eq!(world.pid("a"), main);
    assert_eq!(world.starts("a"), 1);
    world.assert_no_doubles();
}

#[test]
fn a_proc_of_another_namespace_is_refused() {
    if !has_namespaces() {
        return;
    }
    if !is_root() {
        skip("needs root for a pid namespace without a user namespace");
        return;
    }
    let world = World::bare();
    world.staying("a", "");
    let mut command = world.command("unshare");
    command.args(["--pid", "--fork", "--kill-child", OPM, "--root"]).arg(world.root());
    let output = command.args(["run", "units"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("cannot use `/proc`: it is of another pid namespace"), "{said}");
    assert_eq!(world.starts("a"), 0);
}
