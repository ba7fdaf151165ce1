//! The control socket, as others see it: a varlink client from elsewhere, clients that behave badly,
//! and users who may not.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test stops at the first surprise, and runs programs"
)]

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{OPM, World, is_root, skip};

/// How long an answer may take while others misbehave.
const SOON: Duration = Duration::from_secs(10);
/// How much more memory the daemon may hold because of clients that misbehave, in KiB.
const GROWTH_MAX: u64 = 48 * 1024;

fn socket(world: &World) -> PathBuf {
    world.root().join("run/control.sock")
}

/// Two services, one of which requires the other, and a daemon that has them up.
fn two() -> Option<World> {
    let mut world = World::new()?;
    world.unit("a", "command: [sleep, '1000']\nlogs: {to: null}\n");
    world.unit("b", "command: [sleep, '1000']\nlogs: {to: null}\nrequires: [a]\n");
    world.run();
    world.until("both to be up", || world.phase("b") == "up");
    Some(world)
}

#[test]
fn a_varlink_client_from_elsewhere_needs_no_knowledge_of_opm() {
    let package = Command::new("python3").args(["-c", "import varlink"]).output();
    if !package.is_ok_and(|output| output.status.success()) {
        skip("the Python package varlink is not installed (pip install varlink)");
        return;
    }
    let Some(world) = two() else { return };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/varlink/client.py");
    let output = Command::new("python3").arg(script).arg(socket(&world)).output().unwrap();
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(out, "all is well\n", "{err}\n{}", world.log());
    // Its command-line tool too.
    let address = format!("unix:{}/io.opm.Control", socket(&world).display());
    let output =
        Command::new("python3").args(["-m", "varlink.cli", "help", &address]).output().unwrap();
    let help = String::from_utf8_lossy(&output.stdout);
    for method in world.lines("root/methods") {
        assert!(help.contains(&format!("method {method}(")), "{method}: {help}");
    }
    assert!(world.lines("root/methods").contains(&"Apply".to_owned()));
}

/// Writes as much as the other side takes.
fn pour(stream: &mut UnixStream, bytes: &[u8]) {
    stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    // The daemon may hang up before it has all.
    stream.write_all(bytes).ok();
}

/// What comes until the other side hangs up; it has to, soon.
fn until_hung_up(stream: &mut UnixStream) -> String {
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut bytes = Vec::new();
    let hung_up = match stream.read_to_end(&mut bytes) {
        Ok(_) => true,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    };
    assert!(hung_up, "it does not hang up");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The daemon answers at once, and holds no more memory than it should.
fn assert_well(world: &World, memory: u64, after: &str) {
    let began = Instant::now();
    let said = world.opm(&["status"]);
    assert_eq!(said.code, 0, "after {after}: {said:?}\n{}", world.log());
    assert!(began.elapsed() < SOON, "after {after}: {:?}", began.elapsed());
    let grown = resident(world).saturating_sub(memory);
    assert!(grown < GROWTH_MAX, "after {after}: {grown} KiB more\n{}", world.log());
}

/// The daemon's resident memory in KiB.
fn resident(world: &World) -> u64 {
    let line = world.status_line(world.daemon_pid().unwrap(), "VmRSS").unwrap();
    line.trim_end_matches(" kB").parse().unwrap()
}

fn descriptors(world: &World) -> usize {
    let pid = world.daemon_pid().unwrap();
    fs::read_dir(world.proc().unwrap().join(format!("{pid}/fd"))).unwrap().count()
}

#[test]
fn clients_that_misbehave_harm_nobody_else() {
    let Some(world) = two() else { return };
    let connect = || UnixStream::connect(socket(&world)).unwrap();
    let (memory, before) = (resident(&world), descriptors(&world));
    let list = b"{\"method\":\"io.opm.Control.List\"}\0";

    for garbage in [
        &b"\0"[..],
        b"\xff\xfe\0",
        b"GET / HTTP/1.1\r\n\r\n\0",
        b"[]\0",
        b"{\"method\":1}\0",
        &b"[".repeat(100_000),
    ] {
        let mut client = connect();
        pour(&mut client, garbage);
        pour(&mut client, b"\0");
        let answer = until_hung_up(&mut client);
        let garbage = String::from_utf8_lossy(&garbage[..garbage.len().min(40)]);
        assert!(answer.contains("InvalidParameter"), "{garbage:?}: {answer}\n{}", world.log());
    }
    assert_well(&world, memory, "garbage");

    let mut half = connect();
    pour(&mut half, &list[..20]);
    assert_well(&world, memory, "half a message");
    pour(&mut half, &list[20..]);
    half.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(
        until_hung_up(&mut half).contains("\"b\""),
        "the other half comes late, and is answered"
    );

    let mut long = connect();
    pour(&mut long, &vec![b'x'; 2 << 20]);
    assert_well(&world, memory, "2 MiB without an end");
    drop(long);

    let mut deaf: Vec<UnixStream> = (0..8).map(|_| connect()).collect();
    for client in &mut deaf {
        for _ in 0..1_000 {
            pour_now(client, list);
        }
    }
    assert_well(&world, memory, "1,000 calls whose replies nobody reads");
    drop(deaf);

    for _ in 0..1_000 {
        drop(connect());
    }
    assert_well(&world, memory, "1,000 clients that vanished");
    for _ in 0..200 {
        pour_now(&mut connect(), b"{\"method\":\"io.opm.Control.Events\",\"more\":true}\0");
        pour_now(&mut connect(), b"{\"method\":\"io.opm.Control.Wait\",\"parameters\":{\"units\":[\"a\"],\"condition\":\"down\"},\"more\":true}\0");
    }
    assert_eq!(world.opm(&["restart", "b"]).code, 0);
    assert_well(&world, memory, "400 clients that vanished while they waited");
    world.until("all descriptors to be closed", || descriptors(&world) <= before);
    assert_eq!(world.phase("a"), "up");
}

/// A call without parameters.
fn call(method: &str) -> Vec<u8> {
    format!("{{\"method\":\"{method}\"}}\0").into_bytes()
}

/// So many replies.
fn replies(stream: &UnixStream, count: usize) -> Vec<String> {
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut stream = BufReader::new(stream);
    let reply = |n| {
        let mut bytes = Vec::new();
        let got = stream.read_until(0, &mut bytes);
        assert!(bytes.ends_with(b"\0"), "{n} of {count} replies, then {got:?}");
        String::from_utf8_lossy(&bytes).into_owned()
    };
    (0..count).map(reply).collect()
}

#[test]
fn every_call_is_answered_in_order_however_many_come_at_once() {
    let Some(world) = two() else { return };
    let memory = resident(&world);
    let (info, list) = (call("org.varlink.service.GetInfo"), call("io.opm.Control.List"));
    // Each number, since a limit may be off by one, and more than any buffer holds.
    for count in [1, 63, 64, 65, 128, 129, 1_000, 20_000] {
        let calls: Vec<u8> =
            (0..count).flat_map(|n| if n % 3 == 0 { list.clone() } else { info.clone() }).collect();
        let client = UnixStream::connect(socket(&world)).unwrap();
        let mut writer = client.try_clone().unwrap();
        let answers = std::thread::scope(|scope| {
            scope.spawn(move || writer.write_all(&calls).unwrap());
            // Who asks one thing is not behind all of these.
            assert_well(&world, memory, "calls at once");
            replies(&client, count)
        });
        for (n, answer) in answers.iter().enumerate() {
            let right = if n % 3 == 0 { "\"instances\"" } else { "\"vendor\"" };
            assert!(answer.contains(right), "reply {n} of {count}: {answer}");
        }
    }
    // Who hangs up its side at once has asked all the same.
    let mut client = UnixStream::connect(socket(&world)).unwrap();
    client.write_all(&info.repeat(200)).unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(until_hung_up(&mut client).matches("vendor").count(), 200);
}

#[test]
fn what_was_asked_before_a_mistake_is_answered_before_it() {
    let Some(world) = two() else { return };
    for (good, bad) in [(1, &b"garbage\0"[..]), (1, b"{}\0"), (64, b"\xff\0"), (70, b"[]\0")] {
        let mut client = UnixStream::connect(socket(&world)).unwrap();
        let calls = [call("io.opm.Control.List").repeat(good), bad.to_vec(), call("x")].concat();
        client.write_all(&calls).unwrap();
        let said = until_hung_up(&mut client);
        let said: Vec<&str> = said.trim_end_matches('\0').split('\0').collect();
        assert_eq!(said.len(), good + 1, "{said:?}");
        let (last, first) = said.split_last().unwrap();
        assert!(last.contains("InvalidParameter"), "{last}");
        assert!(first.iter().all(|reply| reply.contains("instances")), "{said:?}");
    }
}

#[test]
fn a_reply_that_comes_later_keeps_its_place() {
    let Some(world) = two() else { return };
    let wait =
        br#"{"method":"io.opm.Control.Wait","parameters":{"units":["b"],"condition":"down"}}"#;
    let mut client = UnixStream::connect(socket(&world)).unwrap();
    client.write_all(&[&wait[..], b"\0", &call("org.varlink.service.GetInfo")].concat()).unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    // It is heard once another's call is answered.
    assert_eq!(world.opm(&["status"]).code, 0);
    assert_eq!(world.opm(&["stop", "b"]).code, 0);
    let said = until_hung_up(&mut client);
    let (first, second) = said.split_once('\0').unwrap();
    assert!(first.contains("reached") && second.contains("vendor"), "{said}");
}

/// Writes without waiting for the other side.
fn pour_now(stream: &mut UnixStream, bytes: &[u8]) {
    stream.set_nonblocking(true).unwrap();
    stream.write_all(bytes).ok();
    stream.set_nonblocking(false).unwrap();
}

#[test]
fn the_socket_is_private_from_its_first_moment() {
    let Some(mut world) = World::new() else { return };
    world.unit("a", "command: [sleep, '1000']\nlogs: {to: null}\n");
    let run = world.root().join("run");
    let over = AtomicBool::new(false);
    let looks = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut looks = 0u32;
            while !over.load(Ordering::Relaxed) {
                for file in ["control.sock", "control.new_"] {
                    if let Ok(found) = fs::symlink_metadata(run.join(file)) {
                        looks += 1;
                        assert_eq!(found.mode() & 0o777, 0o600, "{file}");
                    }
                }
            }
            looks
        });
        for _ in 0..10 {
            let mut command = world.command("sh");
            let script = "umask 0; exec \"$0\" --root root run units";
            command.args(["-c", script, OPM]);
            world.spawn(command);
            world.until("a daemon", || world.opm(&["status"]).code == 0);
            world.crash();
        }
        over.store(true, Ordering::Relaxed);
        watcher.join().unwrap()
    });
    assert!(looks > 0);
}

#[test]
fn other_users_are_refused() {
    if !is_root() {
        skip("needs root to be another user");
        return;
    }
    let Some(world) = two() else { return };
    // Somewhere that everybody may go.
    fs::set_permissions(world.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::copy(OPM, world.path("opm")).unwrap();
    let as_nobody = |args: &[&str]| {
        let mut command = world.command("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
        command.arg(world.path("opm")).arg("--root").arg(world.root()).args(args);
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for args in [&["status"][..], &["stop", "a"], &["shutdown"]] {
        let (code, said) = as_nobody(args);
        assert_eq!(code, Some(4), "{args:?}: {said}");
        assert!(said.contains("ermission denied"), "{said}");
    }
    // Somebody opened the socket to all: the daemon itself looks who asks.
    fs::set_permissions(socket(&world), fs::Permissions::from_mode(0o666)).unwrap();
    for args in [&["status"][..], &["stop", "a"], &["apply", "units"], &["reexec"], &["shutdown"]] {
        let (code, said) = as_nobody(args);
        assert_eq!(code, Some(4), "{args:?}: {said}");
        assert!(said.contains("only root and the daemon's own user may do this"), "{said}");
    }
    assert_eq!(world.phase("a"), "up");
}
