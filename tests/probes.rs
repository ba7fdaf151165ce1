//! Whether a unit is ready, and whether it is healthy, where opm asks: with real servers, and with
//! questions that hang.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use common::{World, skip, watch_for};
use std::time::Duration;

/// Answers on whatever it is told, once the file `go` is there; `status` is what HTTP gets.
const SERVER: &str = r#"
import os, socket, sys, time
kind, where, status = sys.argv[1:4]
while not os.path.exists("go"):
    time.sleep(0.01)
if kind == "unix":
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(where)
else:
    listener = socket.create_server(("127.0.0.1", int(where)))
listener.listen()
while True:
    peer, _ = listener.accept()
    if kind == "http":
        peer.recv(4096)
        peer.sendall(b"HTTP/1.1 " + status.encode() + b" Whatever\r\nContent-Length: 0\r\n\r\n")
    peer.close()
"#;

fn world() -> Option<World> {
    if !common::shell(std::path::Path::new("/"), "python3 -V").status.success() {
        skip("needs python3");
        return None;
    }
    let world = World::new()?;
    std::fs::write(world.path("server.py"), SERVER).unwrap();
    Some(world)
}

/// A port that nobody has.
fn free_port() -> u16 {
    std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

fn server(kind: &str, place: &str, status: u16) -> String {
    format!("exec python3 server.py {kind} {place} {status}")
}

#[test]
fn a_unit_is_ready_when_its_address_answers_and_not_before() {
    let Some(mut world) = world() else { return };
    let (tcp, http, redirected) = (free_port(), free_port(), free_port());
    let asks = |how: &str| format!("ready: {{{how}, interval: 50ms}}\n");
    let unit = |world: &World, name: &str, script: String, ready: String| {
        world.service(name, &script, &ready);
    };
    let tcp_at = asks(&format!("tcp: \"localhost:{tcp}\""));
    unit(&world, "tcp", server("tcp", &tcp.to_string(), 0), tcp_at);
    unit(&world, "unix", server("unix", "sock", 0), asks("unix: ../sock"));
    let http_at = asks(&format!("http: \"http://127.0.0.1:{http}/healthz\""));
    unit(&world, "http", server("http", &http.to_string(), 200), http_at);
    let redirected_at = asks(&format!("http: \"http://127.0.0.1:{redirected}/\", expect: 302"));
    unit(&world, "redirected", server("http", &redirected.to_string(), 302), redirected_at);
    world.unit("file", &(common::in_shell("exec sleep 1000") + &asks("exec: [test, -e, go]")));
    let all = ["tcp", "unix", "http", "redirected", "file"];
    world.run();
    for name in all {
        world.until_phase(name, "starting");
    }
    let any_up = || all.iter().any(|name| world.phase(name) == "up");
    watch_for(Duration::from_millis(300), any_up, "nobody is ready before it answers");
    std::fs::write(world.path("go"), "").unwrap();
    for name in all {
        world.until_phase(name, "up");
        assert_eq!(world.row(name)["restarts"], 0, "{name}");
    }
    world.assert_no_doubles();
}

#[test]
fn another_status_is_no_answer() {
    let Some(mut world) = world() else { return };
    std::fs::write(world.path("go"), "").unwrap();
    let port = free_port();
    let ready = format!(
        "ready: {{http: \"http://127.0.0.1:{port}/\", interval: 50ms}}\nstart_timeout: 1500ms\n\
         restart: never\n"
    );
    world.service("sick", &server("http", &port.to_string(), 503), &ready);
    world.run();
    world.until_phase("sick", "failed");
    let why = world.opm(&["why", "sick"]).out;
    assert!(why.contains("not ready in time"), "{why}");
    assert!(world.log().contains("readiness check: its answer is 5xx"), "{}", world.log());
}

/// Answers as told in pieces, and writes down what it was sent first, and how its writes ended.
const SLOW_SERVER: &str = r#"
import socket, sys, time
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    peer, _ = listener.accept()
    first = peer.recv(4096)
    try:
        peer.sendall(sys.argv[2].encode().decode("unicode_escape").encode())
        time.sleep(0.03)
        peer.sendall(b"all well\n")
        time.sleep(0.03)
        peer.sendall(b"still\n")
        peer.close()
        end = "whole"
    except OSError as error:
        end = str(error)
    with open("asked", "a") as asked:
        print(first.endswith(b"\r\n\r\n"), end, file=asked)
"#;

#[test]
fn a_server_gets_the_whole_request_at_once_and_is_heard_to_the_end() {
    let Some(mut world) = world() else { return };
    std::fs::write(world.path("slow.py"), SLOW_SERVER).unwrap();
    let port = free_port();
    let health = format!("health: {{http: \"http://127.0.0.1:{port}/\", interval: 50ms}}\n");
    world.service(
        "web",
        &format!("exec python3 slow.py {port} 'HTTP/1.1 200 OK\\r\\n\\r\\n'"),
        &health,
    );
    world.run();
    world.until("some questions", || world.lines("asked").len() >= 5);
    assert!(
        world.lines("asked").iter().all(|line| line == "True whole"),
        "{:?}",
        world.lines("asked")
    );
    assert_eq!(world.row("web")["healthy"], true);
}

#[test]
fn what_a_no_was_is_said() {
    let Some(mut world) = world() else { return };
    std::fs::write(world.path("slow.py"), SLOW_SERVER).unwrap();
    let (status, language, nobody) = (free_port(), free_port(), free_port());
    let slow = |port: u16, head: &str| format!("exec python3 slow.py {port} '{head}\\r\\n'");
    let ready =
        |port: u16| format!("ready: {{http: \"http://127.0.0.1:{port}/\", interval: 50ms}}\n");
    world.service("status", &slow(status, "HTTP/1.1 404 No"), &ready(status));
    world.service("language", &slow(language, "SSH-2.0-x"), &ready(language));
    world.service("nobody", "exec sleep 1000", &ready(nobody));
    world.service("exec", "exec sleep 1000", "ready: {exec: [sh, -c, 'exit 7'], interval: 50ms}\n");
    let hangs = "ready: {exec: [sleep, '1000'], interval: 50ms, timeout: 50ms}\n";
    world.service("hangs", "exec sleep 1000", hangs);
    world.run();
    for (unit, said) in [
        ("status", "its answer is 4xx"),
        ("language", "its answer is not HTTP"),
        ("nobody", "nobody takes a connection"),
        ("exec", "it exited 7"),
        ("hangs", "no answer in time"),
    ] {
        world.until(said, || world.opm(&["why", unit]).out.contains(said));
    }
}

#[test]
fn what_makes_one_unhealthy_is_said() {
    let Some(mut world) = world() else { return };
    let script = "test -e sick && exit 3; exit 0";
    let health =
        format!("health: {{exec: [sh, -c, '{script}'], interval: 50ms, on_failure: none}}\n");
    world.service("web", "exec sleep 1000", &health);
    world.run();
    world.until_phase("web", "up");
    std::fs::write(world.path("sick"), "").unwrap();
    world.until("the reason", || {
        let why = world.row("web")["why"].to_string();
        why.contains("unhealthy: ") && why.contains("times in a row: it exited 3")
    });
}

#[test]
fn case_061_a_question_that_hangs_is_killed_with_its_group_and_never_joined_by_another() {
    let Some(mut world) = world() else { return };
    // Each question leaves a child, and says so when it finds another one.
    let ask = "exec 9>>lock; flock -w 0.1 9 || echo two >> doubles; echo $$ >> asks; \
               sleep 1000 & echo $! >> asks; wait";
    let ready = format!(
        "ready: {{exec: [sh, -c, {}], interval: 10ms, timeout: 150ms}}\nstart_timeout: 1h\n",
        serde_json::to_string(ask).unwrap()
    );
    world.service("slow", "exec sleep 1000", &ready);
    world.run();
    world.until("five questions", || world.lines("asks").len() >= 10);
    assert_eq!(world.opm(&["stop", "slow"]).code, 0);
    for pid in world.lines("asks") {
        assert!(!world.alive(pid.parse().unwrap()), "{pid} is left over");
    }
    assert_eq!(world.read("doubles"), "");
}

const HEALTH: &str = "health: {exec: [sh, -c, 'echo >> asks; test -e well'], interval: 50ms, \
                      retries: 3, start_period: 0s}\nrestart: {policy: always, delay: 10ms}\n";

#[test]
fn an_unhealthy_run_is_ended_and_another_follows() {
    let Some(mut world) = world() else { return };
    std::fs::write(world.path("well"), "").unwrap();
    world.service("a", "exec sleep 1000", HEALTH);
    world.run();
    world.until("it is asked", || world.lines("asks").len() >= 3);
    let pid = world.pid("a");
    assert_eq!(
        (world.row("a")["healthy"].as_bool(), world.phase("a").as_str()),
        (Some(true), "up")
    );
    std::fs::remove_file(world.path("well")).unwrap();
    world.until("another run", || world.pid("a").is_some_and(|new| Some(new) != pid));
    assert!(world.log().contains("health check failed too often"), "{}", world.log());
    std::fs::write(world.path("well"), "").unwrap();
    world.until("it is well", || world.row("a")["healthy"] == true);
    world.assert_no_doubles();
}

#[test]
fn case_046_a_run_that_is_killed_while_it_is_unhealthy_is_followed_by_another() {
    let Some(mut world) = world() else { return };
    std::fs::write(world.path("well"), "").unwrap();
    // It is killed, and does not end for what it answers.
    world.service("a", "exec sleep 1000", &HEALTH.replace("retries: 3", "retries: 100"));
    world.run();
    for _ in 0..5 {
        world.until("it is well", || world.row("a")["healthy"] == true);
        let pid = world.pid("a").unwrap();
        let asked = world.lines("asks").len();
        std::fs::remove_file(world.path("well")).unwrap();
        world.until("it is asked", || world.lines("asks").len() > asked);
        world.kill("KILL", pid);
        std::fs::write(world.path("well"), "").unwrap();
        world.until("another run", || world.pid("a").is_some_and(|new| new != pid));
    }
    world.assert_no_doubles();
}

#[test]
fn case_059_failures_in_the_start_period_do_not_count_and_a_success_ends_it() {
    let Some(mut world) = world() else { return };
    world.service("a", "exec sleep 1000", &HEALTH.replace("start_period: 0s", "start_period: 1h"));
    world.run();
    world.until("more failures than it may have", || world.lines("asks").len() > 6);
    assert_eq!((world.row("a")["restarts"].as_u64(), world.phase("a").as_str()), (Some(0), "up"));
    std::fs::write(world.path("well"), "").unwrap();
    let asked = world.lines("asks").len();
    world.until("a success", || world.lines("asks").len() > asked + 1);
    std::fs::remove_file(world.path("well")).unwrap();
    world.until("another run", || world.row("a")["restarts"].as_u64() > Some(0));
}

#[test]
fn health_that_is_only_shown_ends_nothing() {
    let Some(mut world) = world() else { return };
    let keys = HEALTH.replace("start_period: 0s", "start_period: 0s, on_failure: none");
    world.service("a", "exec sleep 1000", &keys);
    world.run();
    world.until("it is unhealthy", || world.row("a")["healthy"] == false);
    let row = world.row("a");
    assert_eq!((row["phase"].as_str(), row["restarts"].as_u64()), (Some("up"), Some(0)));
    assert!(row["why"].as_str().unwrap().starts_with("unhealthy: `exec sh` failed"), "{row}");
    std::fs::write(world.path("well"), "").unwrap();
    world.until("it is well again", || world.row("a")["healthy"] == true);
}

#[test]
fn memory_is_that_of_all_processes_of_the_run() {
    let Some(mut world) = world() else { return };
    let hog = "sleep 1000 & exec python3 -c 'import time; x = b\"x\" * 60000000; time.sleep(1000)'";
    let keys = "health: {memory: 40M, interval: 100ms, retries: 1, start_period: 0s}\n\
                restart: {policy: never, delay: 50ms}\n";
    world.service("hog", hog, keys);
    world.service("small", "exec sleep 1000", keys);
    world.run();
    // Its policy is about ends, and not about health.
    world.until("another run", || world.row("hog")["restarts"].as_u64() > Some(0));
    world.until_phase("small", "up");
    assert_eq!(world.row("small")["healthy"], true);
}

#[test]
fn a_supervisor_that_dies_between_question_and_answer_asks_again() {
    let Some(mut world) = world() else { return };
    std::fs::write(world.path("well"), "").unwrap();
    world.service("a", "exec sleep 1000", HEALTH);
    world.run();
    world.until_phase("a", "up");
    let pid = world.pid("a");
    for _ in 0..5 {
        let asked = world.lines("asks").len();
        world.until("it is asked", || world.lines("asks").len() > asked);
        world.crash();
        world.run();
        world.until_phase("a", "up");
    }
    world.until("it is well", || world.row("a")["healthy"] == true);
    assert_eq!((world.pid("a"), world.lines("a.starts").len()), (pid, 0));
    world.assert_no_doubles();
}

#[test]
fn why_one_is_not_ready_names_the_answer() {
    let Some(mut world) = world() else { return };
    let ready = |how: &str| format!("ready: {{{how}, interval: 20ms}}\nstart_timeout: 1h\n");
    for (unit, how, says) in [
        ("code", "exec: [sh, -c, 'exit 3']", "is ready: it exited 3"),
        ("none", "exec: [no-such-program]", "cannot find program `no-such-program`"),
        ("tcp", "tcp: 127.0.0.1:1", "nobody takes a connection"),
    ] {
        world.service(unit, "exec sleep 1000", &ready(how));
        if unit == "code" {
            world.run();
            world.until_phase("code", "starting");
        } else {
            world.opm(&["apply", "--no-wait", "units"]);
        }
        let why = || world.opm(&["why", unit]).out;
        world.until("the answer", || why().contains(says));
    }
}

#[test]
fn another_question_begins_with_no_answer() {
    let Some(world) = World::new() else { return };
    let health = |command: &str, follows: &str| {
        format!(
            "health: {{exec: {command}, interval: 20ms, start_period: 0s, retries: 3, on_failure: {follows}}}\n"
        )
    };
    world.staying("web", &health("[sh, -c, 'echo >> asked; exit 1']", "none"));
    world.apply(0);
    let pid = world.pid("web");
    world.until("it to be unhealthy", || world.row("web")["healthy"] == false);
    // Were what failed held against the new one, it would be restarted before that is asked.
    world.staying("web", &health("[sh, -c, 'echo >> again; exit 0']", "restart"));
    world.apply(0);
    world.until("answers", || world.lines("again").len() >= 3);
    assert_eq!((world.pid("web"), &world.row("web")["healthy"]), (pid, &true.into()));
    assert_eq!(world.starts("web"), 1);
}
