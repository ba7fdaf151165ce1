//! Cases ENV, YAML, PATHS and USER: what a unit file says, as the program received it.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::{OPM, World, in_shell, is_root};

/// A program that is a shell script.
fn program(path: &Path, script: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn case_076_values_are_literal_apart_from_what_is_asked_for() {
    let Some(world) = World::new() else { return };
    let value = r#"a%2Bb%%c %(x)s $HOME $$ `id` \n 'q' "d" #h $(id) "#;
    let yaml = serde_json::to_string(&format!("{value}$${{Y}} ${{env:Y:-y}}")).unwrap();
    world.task("e", "printf %s \"$S\" > s.txt", &format!("env: {{S: {yaml}}}\n"));
    world.apply(0);
    assert_eq!(world.read("s.txt"), format!("{value}${{Y}} y"));
    world.task("e", "true", "env: {S: 'x ${Y} y'}\n");
    let said = world.apply(2);
    assert!(said.err.contains("${Y}") && said.err.contains("$${"), "{said:?}");
}

#[test]
fn case_077_any_byte_in_the_environment_and_in_paths() {
    let Some(mut world) = World::new() else { return };
    let dir = world.dir.path().join(OsStr::from_bytes(b"units-\xe9"));
    let other = world.dir.path().join(OsStr::from_bytes(b"units-\xea"));
    for (dir, name) in [(&dir, "e"), (&other, "f")] {
        fs::create_dir(dir).unwrap();
        let script = "printf %s \"$BAD\" > ../$OPM_UNIT.bin; pwd > ../$OPM_UNIT.pwd";
        let keys = format!("kind: task\ncommand: [sh, -c, '{script}']\nlogs: {{to: null}}\n");
        fs::write(dir.join(format!("{name}.yaml")), keys).unwrap();
    }
    let mut command = world.command(OPM);
    command.arg("--root").arg(world.root()).arg("run").arg(&dir);
    command.env("BAD", OsStr::from_bytes(b"\xa3\xff"));
    world.spawn(command);
    world.until_phase("e", "done");
    assert_eq!(fs::read(world.path("e.bin")).unwrap(), b"\xa3\xff");
    let mut pwd = dir.as_os_str().as_bytes().to_vec();
    pwd.push(b'\n');
    assert_eq!(fs::read(world.path("e.pwd")).unwrap(), pwd);
    // Two directories that differ in such a byte alone are two sources.
    let mut command = world.command(OPM);
    command.arg("--root").arg(world.root()).arg("apply").arg(&other);
    assert!(command.status().unwrap().success(), "{}", world.log());
    assert_eq!((world.phase("e"), world.phase("f")), ("done".into(), "done".into()));
}

#[test]
fn case_079_the_callers_environment_means_nothing() {
    let Some(mut world) = World::new() else { return };
    world.env = [("X", "shell"), ("Z", "1")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    let script = "env > e.new; echo >> starts; mv e.new e.env; exec sleep 1000";
    world.service("e", script, "env: {X: unit}\nrestart: {policy: always, delay: 10ms}\n");
    world.apply(0);
    for (times, way) in (1..).zip(["apply", "restart", "crash", "change", "restore"]) {
        world.until(way, || world.lines("starts").len() == times && world.path("e.env").exists());
        let env = world.lines("e.env");
        assert!(env.contains(&"X=unit".to_owned()), "{way}: {env:?}");
        assert!(!env.iter().any(|line| line.starts_with("Z=")), "{way}: {env:?}");
        fs::remove_file(world.path("e.env")).unwrap();
        match way {
            "apply" => assert_eq!(world.opm(&["restart", "e"]).code, 0),
            "restart" => world.kill("KILL", world.pid("e").unwrap()),
            "crash" => {
                world.service("e", script, "env: {X: unit, Y: new}\nrestart: always\n");
                world.apply(0);
            }
            "change" => {
                let pid = world.pid("e").unwrap();
                world.crash();
                world.kill("KILL", pid);
                assert_eq!(world.opm(&["restore"]).code, 0);
            }
            _ => {}
        }
    }
}

#[test]
fn case_081_colons_make_no_numbers() {
    let Some(world) = World::new() else { return };
    let words = "22:22, 1:59, 52:54:00:44:49:56, 0o17, 1e3, 1_000";
    world.unit("s", &format!("kind: task\ncommand: [echo, {words}]\n"));
    world.apply(0);
    world.until("its line", || !world.opm(&["logs", "--raw", "s"]).out.is_empty());
    assert_eq!(world.opm(&["logs", "--raw", "s"]).out, format!("{}\n", words.replace(',', "")));
}

#[test]
fn case_082_modes_are_octal() {
    let Some(world) = World::new() else { return };
    let masks = [("a", "0027"), ("b", "\"0027\""), ("c", "0o27"), ("d", "27"), ("e", "'027'")];
    for (name, mask) in masks {
        let script = format!("umask > {name}.umask; touch {name}.file");
        world.task(name, &script, &format!("umask: {mask}\n"));
    }
    world.apply(0);
    for (name, mask) in masks {
        assert_eq!(world.read(&format!("{name}.umask")).trim(), "0027", "{mask}");
        let mode = fs::metadata(world.path(&format!("{name}.file"))).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640, "{mask}");
    }
    world.task("e", "true", "umask: 0028\n");
    let said = world.apply(2);
    assert!(said.err.contains("e.yaml:5:8") && said.err.contains("octal"), "{said:?}");
}

#[test]
fn case_083_environment_values_are_the_text_that_was_written() {
    let Some(world) = World::new() else { return };
    let env =
        "A: yes, B: Y, C: off, D: no, E: true, F: 010, G: 1.10, H: 1e3, I: 0x1F, J: 2024-01-02";
    let script = "echo $A $B $C $D $E $F $G $H $I $J > out";
    world.task("e", script, &format!("env: {{{env}}}\n"));
    world.apply(0);
    assert_eq!(world.read("out"), "yes Y off no true 010 1.10 1e3 0x1F 2024-01-02\n");
    world.task("e", script, "env: {A: , B: [x], C: {y: z}}\n");
    let said = world.apply(2);
    for key in ["env.A", "env.B", "env.C"] {
        assert!(said.err.contains(key), "{key}: {said:?}");
    }
}

#[test]
fn case_084_nothing_is_said_twice() {
    let Some(world) = World::new() else { return };
    world.service("ok", "exec sleep 1000", "");
    world.apply(0);
    let pid = world.pid("ok");
    world.unit("a", "command: [sleep, '1']\nkind: task\ncommand: [sleep, '2']\n");
    world.unit("b", "command: ['true']\nenv:\n  A: 1\n  B: 2\n  A: 3\n");
    world.unit("c", "name: same\ncommand: ['true']\n---\nname: same\ncommand: ['true']\n");
    let said = world.apply(2);
    for text in [
        "duplicate key `command`: lines 1 and 3",
        "duplicate key `A`: lines 3 and 5",
        "unit `same` is declared twice",
        "c.yaml:4",
        "c.yaml:1",
    ] {
        assert!(said.err.contains(text), "{text}: {said:?}");
    }
    assert_eq!(world.pid("ok"), pid);
    assert_eq!(world.rows().len(), 1);
}

#[test]
fn case_087_leading_zeros_are_text_or_an_error() {
    let Some(world) = World::new() else { return };
    let keys = "env: {H: 08, I: 009}\nstop: {timeout: 08s}\n";
    world.task("e", "echo $H $I > out", keys);
    let said = world.opm(&["apply", "units"]);
    if said.code == 0 {
        let shown = world.opm(&["show", "e", "--json"]).out;
        assert!(shown.contains("8000000000") || shown.contains("\"8s\""), "{shown}");
    } else {
        assert!(said.err.contains("e.yaml:6") && said.err.contains("08s"), "{said:?}");
        world.task("e", "echo $H $I > out", "env: {H: 08, I: 009}\n");
        world.apply(0);
    }
    assert_eq!(world.read("out"), "08 009\n");
    world.task("u", "id -u", "user: 0101\n");
    let said = world.apply(2);
    assert!(said.err.contains("u.yaml:5:7") && said.err.contains("0101"), "{said:?}");
}

#[test]
fn case_088_relative_paths_are_relative_to_the_unit_file() {
    let Some(world) = World::new() else { return };
    program(&world.path("units/sub/run.sh"), "echo ran; pwd");
    let keys = "kind: task\ncommand: [./run.sh]\nworking_dir: .\nlogs: {to: {path: x.log}}\n";
    fs::write(world.path("units/sub/x.yml"), keys).unwrap();
    for (n, (dir, argument)) in
        [(".", "units/sub"), ("units", "sub"), ("units/sub", ".")].iter().enumerate()
    {
        let mut command = world.command("sh");
        let script = "cd \"$1\" && exec \"$2\" --root \"$3\" apply \"$4\"";
        command.args(["-c", script, "sh", dir, OPM]).arg(world.root()).arg(argument);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}\n{}", world.log());
        let changed = !String::from_utf8_lossy(&output.stdout).contains("no change");
        assert_eq!(changed, n == 0, "from {dir}: {output:?}");
    }
    let expected =
        format!("ran\n{}\n", fs::canonicalize(world.path("units/sub")).unwrap().display());
    world.until("its log", || world.read("units/sub/x.log") == expected);
    let cwd = world.proc().unwrap().join(format!("{}/cwd", world.daemon_pid().unwrap()));
    assert_eq!(fs::read_link(cwd).unwrap(), Path::new("/"));
}

#[test]
fn case_089_programs_are_found_as_the_child_would_find_them() {
    let Some(world) = World::new() else { return };
    program(&world.path("units/app/tool"), "echo p > ../../p.ran");
    program(&world.path("t2/tool2"), "echo q > ../q.ran");
    world.unit("p", "kind: task\nworking_dir: app\ncommand: [./tool]\nlogs: {to: null}\n");
    let path = format!("{}:/bin:/usr/bin", world.path("t2").display());
    let unit =
        format!("kind: task\ncommand: [tool2]\nenv: {{PATH: {path:?}}}\nlogs: {{to: null}}\n");
    world.unit("q", &unit);
    world.apply(0);
    assert_eq!((world.read("p.ran"), world.read("q.ran")), ("p\n".into(), "q\n".into()));
    fs::remove_file(world.path("t2/tool2")).unwrap();
    let said = world.opm(&["restart", "q"]);
    assert_eq!(said.code, 1);
    assert!(said.err.contains("`tool2`") && said.err.contains(&path), "{said:?}");
}

#[test]
fn case_092_spaces_and_quotes_in_paths_are_only_bytes() {
    let Some(world) = World::new() else { return };
    let dir = world.path("my units 'x' é");
    let argv = r#"printf '%s\n' "$@" > argv; echo logged"#;
    program(&dir.join("wörk dir/run me.sh"), argv);
    let keys = "kind: task\ncommand: [\"./run me.sh\", \"a b\", \"\", \"$HOME\"]\n\
                working_dir: \"wörk dir\"\nlogs: {to: {path: \"l og.txt\"}}\n";
    fs::write(dir.join("s.yaml"), keys).unwrap();
    let said = world.opm(&["apply", dir.to_str().unwrap()]);
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(fs::read_to_string(dir.join("wörk dir/argv")).unwrap(), "a b\n\n$HOME\n");
    let log = dir.join("l og.txt");
    world.until("its log", || fs::read_to_string(&log).is_ok_and(|text| text == "logged\n"));
}

/// A world in which others than root can write; nothing where we are not root.
fn for_users() -> Option<World> {
    if !is_root() {
        common::skip("only root can become another user");
        return None;
    }
    let world = World::new()?;
    fs::set_permissions(world.dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    Some(world)
}

/// Shows a file of ours in the place of one of the machine's; in this namespace only.
fn cover(world: &World, path: &str, text: &str) {
    let own = world.path(&path.replace('/', "_"));
    fs::write(&own, text).unwrap();
    assert!(world.command("mount").arg("--bind").arg(own).arg(path).status().unwrap().success());
}

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/none:/bin/false\n\
                      alice:x:1000:1001::/home/alice:/bin/ash\n";
const GROUP: &str = "root:x:0:\nadm2:x:900:bob,alice\nadm3:x:901:bob\nalice:x:1001:\nvideo:x:44:\n\
                     nogroup:x:65534:\n";

#[test]
fn case_098_account_variables_go_with_the_user() {
    let Some(mut world) = for_users() else { return };
    cover(&world, "/etc/passwd", PASSWD);
    let script = "echo $HOME $USER $LOGNAME $SHELL > $OPM_UNIT.out";
    world.task("h", script, "user: alice\n");
    world.task("i", script, "user: alice\nenv: {HOME: /tmp/h}\n");
    world.task("n", script, "user: nobody\n");
    world.apply(0);
    assert_eq!(world.read("h.out"), "/home/alice alice alice /bin/ash\n");
    assert_eq!(world.read("i.out"), "/tmp/h alice alice /bin/ash\n");
    assert_eq!(world.read("n.out"), "/none nobody nobody /bin/false\n");
    // The same where opm itself has no environment at all, or root's.
    assert_eq!(world.opm(&["shutdown"]).code, 0);
    fs::remove_file(world.path("h.out")).unwrap();
    let mut command = world.command("env");
    command.args(["-i", OPM, "--root"]).arg(world.root()).args(["run", "units"]);
    world.spawn(command);
    world.until("a daemon", || world.opm(&["status"]).code == 0);
    assert_eq!(world.opm(&["restart", "h"]).code, 0);
    assert_eq!(world.read("h.out"), "/home/alice alice alice /bin/ash\n");
}

#[test]
fn case_099_groups_are_those_of_the_user_and_none_of_roots() {
    let Some(world) = for_users() else { return };
    cover(&world, "/etc/passwd", PASSWD);
    cover(&world, "/etc/group", GROUP);
    let script = "echo $(id -u) $(id -g) $(id -G | tr ' ' '\\n' | sort -n) > $OPM_UNIT.out";
    world.task("g", script, "user: alice\n");
    world.task("v", script, "user: alice\ngroup: video\n");
    world.task("s", script, "user: alice\nsupplementary_groups: [adm3]\n");
    world.task("x", "touch x.ran", "user: mallory\n");
    world.task("y", "touch y.ran", "user: alice\ngroup: nowhere\n");
    let said = world.apply(1);
    assert_eq!(world.read("g.out"), "1000 1001 900 1001\n");
    assert_eq!(world.read("v.out"), "1000 44 44 900\n");
    assert_eq!(world.read("s.out"), "1000 1001 900 901 1001\n");
    assert!(said.err.contains("`mallory`") && said.err.contains("`nowhere`"), "{said:?}");
    assert!(!world.path("x.ran").exists() && !world.path("y.ran").exists());
}

#[test]
fn case_100_a_uid_without_an_account_will_do() {
    let Some(mut world) = for_users() else { return };
    let script = "id -u > $OPM_UNIT.out; exec sleep 1000";
    // As root, for such a user.
    world.service("r", script, "user: 12345\n");
    world.apply(0);
    world.until("its line", || world.read("r.out") == "12345\n");
    assert_eq!(world.opm(&["shutdown"]).code, 0);
    // As such a user; then without /etc/passwd too.
    world.remove_unit("r");
    world.service("s", script, "");
    world.task("a", "touch a.ran", "user: alice\n");
    world.unit("o", &(in_shell("echo logged; exec sleep 1000") + "user: 1000780000\n"));
    fs::remove_dir_all(world.root()).unwrap();
    for round in ["no entry", "no /etc"] {
        if round == "no /etc" {
            let mut mount = world.command("mount");
            assert!(mount.args(["-t", "tmpfs", "none", "/etc"]).status().unwrap().success());
        }
        fs::remove_file(world.path("s.out")).ok();
        let mut command = world.command("setpriv");
        command.args(["--reuid", "1000780000", "--regid", "0", "--clear-groups", OPM, "--root"]);
        command.arg(world.root()).args(["run", "units"]);
        let log =
            fs::File::options().append(true).create(true).open(world.path("opm.out")).unwrap();
        command.stderr(log);
        world.spawn(command);
        world.until(round, || world.read("s.out") == "1000780000\n");
        world.until("a log", || world.opm(&["logs", "--raw", "o"]).out.contains("logged"));
        world.until_phase("a", "failed");
        let why = world.row("a")["why"].to_string();
        assert!(why.contains("alice"), "{round}: {why}");
        assert!(!world.path("a.ran").exists());
        assert_eq!(world.opm(&["shutdown"]).code, 0);
        world.wait_run();
    }
}
