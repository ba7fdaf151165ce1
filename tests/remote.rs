//! `-H`: commands for other machines. ssh is a script here, which runs the command line that it
//! gets in a shell, as sshd does, in the host's directory; `remote_sshd.rs` has the real one.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]
#![expect(clippy::disallowed_methods, reason = "tests run programs")]

mod common;

use std::fs;
use std::io::Write;
use std::process::Stdio;

use common::far::{Far, program};
use common::{Said, in_shell, until};
use serde_json::{Value, json};

const HOSTS: [&str; 3] = ["a", "b", "c"];

fn host_name() -> String {
    nix::unistd::gethostname().unwrap().into_string().unwrap()
}

const SLEEP: &str = "command: [sleep, '1000']\nlogs: {to: null}\n";

#[test]
fn a_deployment_to_another_machine() {
    let Some(far) = Far::new(&HOSTS) else { return };
    far.world.unit("web", SLEEP);
    let said = far.opm(&["-H", "a", "apply", "units"]);
    assert_eq!((said.code, said.out.as_str()), (3, ""), "{said:?}");
    let expected = "opm: cannot reach opm on `a`: no daemon can be reached there\n";
    assert!(said.err.ends_with(expected) && said.err.contains("start one with"), "{said:?}");
    assert!(!far.host("a").join("root/state").exists(), "no daemon is started there");

    far.daemons(&["a"]);
    let plan = far.opm(&["-H", "a", "plan", "--exit-code", "units"]);
    assert_eq!(
        (plan.code, plan.out.as_str()),
        (2, "+ web (create)\n1 to change: 1 create\n"),
        "{plan:?}"
    );
    let said = far.opm(&["-H", "a", "apply", "units"]);
    assert_eq!(said.out, "+ web (create)\n1 changed, generation 1\n", "{said:?}");
    assert_eq!(far.opm(&["apply", "-H", "a", "units"]).out, "no change, generation 1\n");
    let shown: Value = serde_json::from_str(&far.on("a", &["show", "--json", "web"]).out).unwrap();
    let dir = fs::canonicalize(far.world.path("units")).unwrap();
    assert_eq!(shown["source"], json!(format!("{}:{}", host_name(), dir.display())));
    // What stands in this machine's environment is not for the other.
    assert_eq!(far.ssh_words()[1..], ["-o", "BatchMode=yes", "--", "a", "opm proxy"]);

    // The same directory on the machine itself is another source, and prunes nothing of this one.
    let said = far.on("a", &["apply", "units"]);
    assert_eq!(said.code, 2);
    assert!(said.err.contains("is declared by source `"), "{said:?}");

    assert_eq!(far.opm(&["-H", "a", "stop", "--reason", "lunch", "web"]).code, 0);
    let why = far.opm(&["-H", "a", "why", "web"]);
    assert!(why.out.contains("lunch"), "{why:?}");
    assert_eq!(far.opm(&["-H", "a", "status", "web"]).code, 3);
    assert_eq!(far.opm(&["-H", "a", "status", "nobody"]).code, 4);
    assert_eq!(far.opm(&["-H", "a", "start", "web"]).code, 0);
    assert_eq!(far.opm(&["-H", "a", "wait", "--for", "up", "web"]).code, 0);
    assert!(far.opm(&["-H", "a", "graph"]).out.starts_with("web: up\n"));
    let said = far.opm(&["-H", "a", "graph", "units/"]);
    assert_eq!((said.code, said.err.as_str()), (4, "opm: no unit `units/`\n"));
    let said = far.opm(&["-H", "a", "reexec"]);
    assert!(said.code == 0 && said.out.contains("goes on as process"), "{said:?}");
    assert_eq!(far.opm(&["-H", "a", "shutdown"]).code, 0);
    assert_eq!(far.opm(&["-H", "a", "restore"]).code, 3);
}

#[test]
fn a_source_can_be_named() {
    let Some(far) = Far::new(&HOSTS) else { return };
    far.daemons(&["a"]);
    far.world.unit("web", SLEEP);
    assert_eq!(far.opm(&["-H", "a", "apply", "--source", "site", "units"]).code, 0);
    // From another directory, on the machine itself: the same source.
    fs::rename(far.world.path("units"), far.world.path("checkout")).unwrap();
    // Relative paths start elsewhere now, which is a change.
    let said = far.on("a", &["plan", "--source", "site", "checkout"]);
    assert!(
        said.out.starts_with("± web (restart, down for 1m10s at most)\n    unit.dir: "),
        "{said:?}"
    );
    assert_eq!(said.out.lines().count(), 3, "{said:?}");
    let said = far.on("a", &["apply", "--source", "site", "checkout"]);
    assert!(said.out.ends_with("1 changed, generation 2\n"), "{said:?}");
    let said = far.on("a", &["apply", "--source", "site", "checkout"]);
    assert_eq!(said.out, "no change, generation 2\n", "{said:?}");
    for bad in ["", "(command line)", "a\nb", &"x".repeat(256)] {
        assert_eq!(far.on("a", &["apply", "--source", bad, "checkout"]).code, 2, "{bad:?}");
    }
}

#[test]
fn units_that_fail_there_are_told_with_their_last_words() {
    let Some(far) = Far::new(&HOSTS) else { return };
    far.daemons(&["a"]);
    far.world.unit(
        "db",
        &format!("{}restart: never\nready: {{fd: 3}}\n", in_shell("echo no disk; exit 7")),
    );
    let said = far.opm(&["-H", "a", "apply", "units"]);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.err.contains("opm: `db` is failed: exited 7\n"), "{said:?}");
    // What was written is there at last; the next failure shows it.
    until("the log", || far.opm(&["-H", "a", "logs", "db"]).out.contains("no disk"));
    let said = far.opm(&["-H", "a", "start", "db"]);
    assert!(said.err.contains("    db | no disk\n"), "{said:?}");
    far.world.unit("db", "comand: [true]\n");
    let said = far.opm(&["-H", "a", "apply", "units"]);
    assert_eq!(said.code, 2);
    assert!(said.err.contains("units/db.yaml:1:1"), "{said:?}");
}

#[test]
fn logs_are_read_there() {
    let Some(far) = Far::new(&HOSTS) else { return };
    far.daemons(&["a", "b"]);
    far.world.unit("web", &in_shell("echo one; echo two; exec sleep 1000"));
    assert_eq!(far.opm(&["-H", "a", "-H", "b", "apply", "units"]).code, 0);
    for host in ["a", "b"] {
        until("the logs", || far.opm(&["-H", host, "logs", "--raw", "web"]).out == "one\ntwo\n");
    }
    assert_eq!(far.ssh_words()[4..], ["b", "opm logs --raw -- web"]);
    let said = far.opm(&["-H", "a", "-H", "b", "logs", "--raw", "-n1", "web"]);
    assert_eq!((said.code, said.out.as_str()), (0, "a:\ntwo\n\nb:\ntwo\n"), "{said:?}");
    let said = far.opm(&["-H", "a", "-H", "b", "logs", "--json", "-n", "1"]);
    let values: Vec<Value> =
        said.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&values[0]["host"], &values[1]["host"]), (&json!("a"), &json!("b")), "{said:?}");
    assert_eq!(values[1]["value"]["line"], "two");
    // A name with anything in it arrives as it is.
    let name = "it's a $(touch /tmp/x) \\ \"unit\";";
    let said = far.opm(&["-H", "a", "logs", name]);
    assert_eq!(said.code, 4);
    assert!(said.err.contains(&format!("no log of `{name}`")), "{said:?}");
}

#[test]
fn each_of_several_hosts_is_named() {
    let Some(far) = Far::new(&HOSTS) else { return };
    far.daemons(&["a", "c"]);
    far.world.unit("web", SLEEP);
    let said = far.opm(&["-H", "a", "apply", "-H", "c", "units"]);
    let expected = "+ web (create)\n1 changed, generation 1\n";
    assert_eq!(said.out, format!("a:\n{expected}\nc:\n{expected}"), "{said:?}");

    let said = far.opm(&["-H", "a", "-H", "c", "--json", "status", "web"]);
    let values: Vec<Value> =
        serde_json::Deserializer::from_str(&said.out).into_iter().map(Result::unwrap).collect();
    assert_eq!((values.len(), &values[1]["host"]), (2, &json!("c")), "{said:?}");
    assert_eq!(values[1]["value"][0]["instance"], "web");

    // An answer is no failure: the other hosts are asked too.
    assert_eq!(far.opm(&["-H", "a", "stop", "web"]).code, 0);
    let said = far.opm(&["-H", "a", "-H", "c", "status", "web"]);
    assert!(said.code == 3 && said.out.contains("\nc:\n"), "{said:?}");

    let said = far.opm(&["-H", "a", "-H", "b", "-H", "c", "stop", "web"]);
    assert_eq!((said.code, said.out.as_str()), (3, "a:\n\nb:\n"), "{said:?}");
    let expected = "opm: stopped at `b`; nothing was asked of `c`\n";
    assert!(said.err.ends_with(expected), "{said:?}");
    assert_eq!(far.opm(&["-H", "c", "status", "web"]).code, 0, "it is as it was");

    // Standard input is for all of them.
    let mut child = far
        .command(&["-Ha", "-Hc", "apply", "--source=in", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let text = format!("name: more\n{SLEEP}");
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let said = Said::of_child(child);
    assert_eq!(said.out.matches("+ more (create)").count(), 2, "{said:?}");
}

#[test]
fn what_makes_no_sense_there_is_refused_before_anything_is_asked() {
    let far = Far::bare(&HOSTS);
    far.world.unit("web", SLEEP);
    for args in [
        &["run", "units"][..],
        &["daemon"],
        &["check", "units"],
        &["explain"],
        &["completions", "bash"],
        &["proxy"],
        &["simulate", "units", "--fail", "web"],
        &["events", "-H", "b"],
        &["logs", "-f", "-H", "b"],
        &["status", "-H=-oProxyCommand=touch x"],
        &["status", "-H", ""],
        &["status", "--ssh", ""],
    ] {
        let said = far.opm(&[&["-H", "a"], args].concat());
        assert_eq!((said.code, said.out.as_str()), (2, ""), "{args:?}: {said:?}");
        assert!(!far.world.path("ssh.arguments").exists(), "{args:?}");
    }
}

#[test]
fn a_machine_that_cannot_be_reached_is_named_with_the_reason() {
    let far = Far::bare(&HOSTS);
    let talk = "cat > /dev/null";
    let no_answer = |said| {
        format!(
            "`{said}` came from there and not its answer; a shell that is not interactive may \
             print nothing (is it in ~/.bashrc there?)"
        )
    };
    for (shell, code, reason) in [
        (
            "echo 'sh: opm: not found' >&2; exit 127",
            3,
            "there is no opm; install it there, or say with --remote-opm where it is",
        ),
        ("exit 126", 3, "its opm cannot be run"),
        ("exit 2", 3, "the opm there knows no `proxy`; is it older than this one?"),
        ("exit 4", 4, "it was refused there"),
        ("exit 0", 3, "it closed the connection"),
        ("kill -9 $$", 3, "ssh was ended by signal 9"),
        ("exec > /dev/null; cat > /dev/null; exit 255", 3, "ssh failed"),
        (&format!("echo; echo '  Welcome to a!  '; {talk}"), 3, &no_answer("Welcome to a!")),
        ("printf '{no JSON}'", 3, &no_answer("{no JSON}")),
    ] {
        far.shell("a", shell);
        for args in [&["status"][..], &["apply", "units"], &["shutdown"], &["events"]] {
            let said = far.opm(&[&["-H", "a"], args].concat());
            let last = said.err.lines().last().unwrap_or_default();
            let expected = format!("opm: cannot reach opm on `a`: {reason}");
            assert_eq!(
                (said.code, last, said.out.as_str()),
                (code, expected.as_str(), ""),
                "{args:?}"
            );
        }
    }
    far.shell("a", "exit 127");
    let said = far.opm(&["-H", "a", "logs"]);
    assert!(said.code == 3 && said.err.contains("there is no opm"), "{said:?}");
    let said = far.opm(&["-H", "nowhere", "status"]);
    assert_eq!(said.code, 3);
    let expected =
        "ssh: Could not resolve hostname nowhere\nopm: cannot reach opm on `nowhere`: ssh failed\n";
    assert_eq!(said.err, expected);
    assert_eq!(far.opm(&["-H", "nowhere", "logs"]).err, expected);
    let said = far.opm(&["-H", "a", "--ssh", "/nowhere/ssh -v", "status"]);
    let expected = "opm: cannot run `/nowhere/ssh`: no such file or directory; install an ssh \
                    client, or name another with --ssh\n";
    assert_eq!((said.code, said.err.as_str()), (3, expected));
}

#[test]
fn root_and_program_on_the_far_side_may_have_any_name() {
    let Some(far) = Far::new(&HOSTS) else { return };
    let odd = far.host("a").join("it's $HOME; \"a\" \\ * root\n");
    let odd = odd.to_str().unwrap();
    let sudo = far.host("a").join("a b");
    program(&sudo, "#!/bin/sh\n[ \"$1\" = -n ] && shift && exec \"$@\"\n");
    assert_eq!(far.on("a", &["--root", odd, "daemon"]).code, 0);
    let program = format!("'{}' -n opm", sudo.display());
    for args in [&["status"][..], &["logs"]] {
        let global = ["-H", "a", "--root", odd, "--remote-opm", &program];
        let said = far.opm(&[&global, args].concat());
        assert_eq!(said.code, 0, "{said:?}");
    }
    // A relative one begins where the remote shell does.
    assert_eq!(far.opm(&["-H", "a", "--root", "root", "status"]).code, 3);
    far.daemons(&["a"]);
    assert_eq!(far.opm(&["-H", "a", "--root", "root", "status"]).code, 0);
}

/// The process of the ssh that was started last for a host.
fn last_ssh(far: &Far, host: &str) -> Option<i32> {
    let pids = far.world.lines(&format!("hosts/{host}/ssh.pids"));
    pids.last()?.parse().ok()
}

#[test]
fn an_ssh_that_dies_in_the_middle_ends_the_command() {
    let Some(far) = Far::new(&HOSTS) else { return };
    far.daemons(&["a"]);
    far.world.unit("slow", "command: [sleep, '1000']\nready: {delay: 600s}\nstart_timeout: 700s\n");
    // The script becomes the proxy, so that its end is that of ssh and of the far side in one.
    let mut command = far.command(&["-H", "a", "apply", "units"]);
    let file = |name: &str| fs::File::create(far.world.path(name)).unwrap();
    let mut child = command.stdout(file("out")).stderr(file("err")).spawn().unwrap();
    // It waits for it once it has said what was applied.
    let applied = "+ slow (create)\n1 changed, generation 1\n";
    far.world.until("what was applied", || far.world.read("out") == applied);
    far.world.kill("KILL", last_ssh(&far, "a").unwrap());
    let code = child.wait().unwrap().code();
    let said = Said { code: code.unwrap(), out: far.world.read("out"), err: far.world.read("err") };
    assert_eq!((said.code, said.out.as_str()), (3, applied));
    let expected = "opm: lost opm on `a`: ssh was ended by signal 9; what was asked for may have \
                    been done, or go on\n";
    assert!(said.err.ends_with(expected), "{said:?}");

    // The daemon ends while somebody follows it.
    let events = far.begin(&["-H", "a", "events"]);
    until("the second ssh", || far.world.lines("hosts/a/ssh.pids").len() == 2);
    assert_eq!(far.on("a", &["shutdown"]).code, 0);
    let said = Said::of_child(events);
    assert_eq!(said.code, 3, "{said:?}");
    assert!(
        said.err.contains("closed the connection") || said.err.contains("cannot reach"),
        "{said:?}"
    );
}

/// Sends bytes to `opm proxy` and closes its standard input; what came back.
fn through_proxy(far: &Far, bytes: &[u8]) -> Said {
    let mut command = far.command(&["proxy"]);
    command.env("OPM_ROOT", far.host("a").join("root")).stdin(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // While somebody reads what comes back.
    let (mut stdin, bytes) = (child.stdin.take().unwrap(), bytes.to_vec());
    let writer = std::thread::spawn(move || stdin.write_all(&bytes).ok());
    let said = Said::of_child(child);
    writer.join().unwrap();
    said
}

#[test]
fn proxy_passes_bytes_both_ways_until_one_side_ends() {
    let Some(far) = Far::new(&HOSTS) else { return };
    let said = through_proxy(&far, b"");
    assert_eq!((said.code, said.out.as_str()), (3, ""));
    far.daemons(&["a"]);
    let call = b"{\"method\":\"org.varlink.service.GetInfo\"}\0";
    let said = through_proxy(&far, call);
    assert!(said.code == 0 && said.out.contains("io.opm.Control"), "{said:?}");
    // More than any pipe holds, in both directions.
    let many = call.repeat(20_000);
    let said = through_proxy(&far, &many);
    assert_eq!((said.code, said.out.matches('\0').count()), (0, 20_000));
    // One who asks for more than there is, and goes, is not waited for.
    let said = through_proxy(&far, b"{\"method\":\"io.opm.Control.Events\",\"more\":true}\0");
    assert_eq!((said.code, said.out.as_str()), (0, ""), "{said:?}");
    // A reader that is gone.
    let mut command = far.command(&["proxy"]);
    command.env("OPM_ROOT", far.host("a").join("root")).stdin(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let stdin = child.stdin.take();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    drop(stdin);
}
