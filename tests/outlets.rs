//! Output that goes to a syslog daemon or into another unit: whole, in order, counted where it is lost,
//! and never in the way of a service for good.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test stops at the first surprise"
)]

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::Duration;

use common::{World, in_shell};

/// Longer than anything here takes: a lost message ends the test instead of hanging it.
const PATIENCE: Duration = Duration::from_secs(30);
/// Reads lines and writes each as it comes.
const READER: &str = "while IFS= read -r line; do printf '%s\\n' \"$line\" >> got; done";

/// A service whose output goes where `more` says.
fn service(world: &World, name: &str, script: &str, more: &str) {
    world.unit(name, &format!("{}{more}", in_shell(script)));
}

fn task(world: &World, name: &str, script: &str, more: &str) {
    service(world, name, script, &format!("kind: task\n{more}"));
}

fn reader(world: &World, more: &str) {
    service(world, "ship", READER, &format!("stdin: logs\n{more}"));
}

/// What the reader was given: each is a whole object.
fn objects(world: &World) -> Vec<serde_json::Value> {
    // The last one may be on its way.
    let got = world.read("got");
    let whole = got.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    whole.map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The lines, and what opm says.
fn got(world: &World) -> (Vec<String>, Vec<String>) {
    let mut both = (Vec::new(), Vec::new());
    for json in objects(world) {
        let text = json["line"].as_str().unwrap().to_owned();
        if json["stream"] == "opm" { both.1.push(text) } else { both.0.push(text) }
    }
    both
}

/// How many bytes of output were given.
fn bytes(world: &World) -> usize {
    let objects = objects(world);
    let own = objects.iter().filter(|json| json["stream"] == "stdout");
    own.map(|json| {
        json["line"].as_str().unwrap().len() + usize::from(!json["partial"].as_bool().unwrap())
    })
    .sum()
}

#[test]
fn a_unit_reads_what_others_write_and_what_came_while_it_was_away() {
    let Some(mut world) = World::new() else { return };
    reader(&world, "");
    let to = "logs: {to: {unit: ship}}\nrestart: never\n";
    for name in ["a", "b"] {
        let script =
            format!("seq 1 100; until [ -e go ]; do sleep 0.02; done; seq 101 200; : {name}");
        task(&world, name, &script, to);
    }
    world.run();
    let of = |name: &str, world: &World| {
        let lines = world.lines("got");
        let json =
            lines.iter().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let own = json.filter(|json| json["instance"] == name);
        own.map(|json| json["line"].as_str().unwrap().parse().unwrap()).collect::<Vec<u32>>()
    };
    world.until("the first lines", || got(&world).0.len() == 200);
    // Nobody reads now; what comes waits.
    assert_eq!(world.opm(&["stop", "ship"]).code, 0);
    fs::write(world.path("go"), "").unwrap();
    world.until_phase("a", "done");
    world.until_phase("b", "done");
    assert_eq!(world.opm(&["start", "ship"]).code, 0);
    world.until("the other lines", || got(&world).0.len() == 400);
    let all: Vec<u32> = (1..=200).collect();
    assert_eq!((of("a", &world), of("b", &world)), (all.clone(), all));
    let first: serde_json::Value = serde_json::from_str(&world.lines("got")[0]).unwrap();
    assert_eq!(first["run"].as_str().unwrap().len(), 16);
    assert_eq!(got(&world).1, Vec::<String>::new());
    assert_eq!(world.opm(&["shutdown"]).code, 0);
}

#[test]
fn a_reader_that_was_removed_and_is_there_again_reads_on() {
    let Some(mut world) = World::new() else { return };
    let to = "logs: {to: {unit: ship}}\nrestart: never\n";
    // The log keeper has something to do all the time.
    service(&world, "stays", "exec sleep 1000", "");
    let mut expected = Vec::new();
    for n in 1..=3 {
        reader(&world, "");
        service(&world, "a", &format!("echo {n}; exec sleep 1000"), to);
        if n == 1 {
            world.run();
        } else {
            world.apply(0);
        }
        expected.push(n.to_string());
        world.until("its line", || got(&world).0 == expected);
        for unit in ["a", "ship"] {
            world.remove_unit(unit);
        }
        world.apply(0);
    }
    assert_eq!(got(&world).1, Vec::<String>::new());
    assert_eq!(world.opm(&["shutdown"]).code, 0);
}

#[test]
fn a_reader_whose_instance_gets_another_name_reads_on() {
    let Some(mut world) = World::new() else { return };
    reader(&world, "instances: [eu]\n");
    let script = "echo 1; until [ -e go ]; do sleep 0.02; done; echo 2; exec sleep 1000";
    service(&world, "a", script, "logs: {to: {unit: ship}}\n");
    world.run();
    world.until("the first line", || got(&world).0 == ["1"]);
    reader(&world, "instances: [us]\n");
    world.apply(0);
    world.until("the old one to be forgotten", || world.rows().len() == 2);
    fs::write(world.path("go"), "").unwrap();
    world.until("the second line", || got(&world).0 == ["1", "2"]);
    assert_eq!(world.opm(&["shutdown"]).code, 0);
}

#[test]
fn an_input_that_somebody_removed_is_made_anew_and_found_by_those_who_write_to_it() {
    let Some(mut world) = World::new() else { return };
    reader(&world, "");
    let script = "echo 1; until [ -e go ]; do sleep 0.02; done; echo 2; exec sleep 1000";
    service(&world, "a", script, "logs: {to: {unit: ship}}\n");
    world.run();
    world.until("the first line", || got(&world).0 == ["1"]);
    world.crash();
    fs::remove_file(world.root().join("run/log/ship.in")).unwrap();
    world.run();
    world.until_phase("ship", "up");
    assert_eq!(world.opm(&["restart", "ship"]).code, 0);
    fs::write(world.path("go"), "").unwrap();
    world.until("the second line", || got(&world).0 == ["1", "2"]);
    assert_eq!(world.opm(&["shutdown"]).code, 0);
}

/// How many bytes opm says are missing.
fn told(text: &str) -> usize {
    let rest = text.strip_prefix("[opm: dropped ").unwrap();
    let (bytes, why) = rest.split_once(" bytes: ").unwrap();
    assert!(why.starts_with("`ship` takes nothing"), "{why}");
    bytes.parse().unwrap()
}

#[test]
fn who_has_nobody_to_read_it_is_held_up_once_and_told_what_was_lost() {
    let Some(mut world) = World::new() else { return };
    reader(&world, "enabled: false\n");
    // Much more than the FIFOs and queues between them take.
    let script = "head -c 3000000 /dev/zero | tr '\\0' x | fold -w 99; : > written; \
                  until [ -e go ]; do sleep 0.02; done; while :; do echo last; sleep 0.1; done";
    service(&world, "web", script, "logs: {to: {unit: ship}}\n");
    world.run();
    world.until("all is written", || world.path("written").exists());
    assert!(world.log().contains("`ship` takes nothing"), "{}", world.log());
    assert_eq!(world.opm(&["start", "ship"]).code, 0);
    fs::write(world.path("go"), "").unwrap();
    world
        .until("the last line", || got(&world).0.last().is_some_and(|line| line.ends_with("last")));
    // 30,303 lines of 99, and one of 3 without a newline, on which the first of the last ones follows.
    // What is lost while later lines are under way is told with those that come after them.
    let (mut read, mut dropped) = (0, 0);
    world.until("each byte to be read or told", || {
        let (_, said) = got(&world);
        read = bytes(&world);
        dropped = said.iter().map(|text| told(text)).sum();
        let last = (read + dropped).checked_sub(3_000_000 + 30_303);
        last.is_some_and(|last: usize| last > 0 && last.is_multiple_of("last\n".len()))
    });
    assert!(dropped > 0, "{read} read");
    assert_eq!(world.opm(&["shutdown"]).code, 0);
}

#[test]
fn messages_are_datagrams_at_a_socket_and_lines_say_how_bad_they_are() {
    let Some(mut world) = World::new() else { return };
    let path = world.path("log.sock");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let to =
        format!("logs: {{to: {{syslog: {{address: {}, facility: local3}}}}}}\n", path.display());
    service(&world, "web", "echo one; echo '<3>two'; printf three; exec sleep 1000", &to);
    world.run();
    for (priority, text) in [(158, "one"), (155, "two"), (158, "three")] {
        let message = datagram(|buffer| socket.recv(buffer));
        let rest = message.strip_prefix(&format!("<{priority}>")).unwrap();
        assert!(rest.ends_with(&format!(" web: {text}")), "{message}");
    }
    assert_eq!(world.opm(&["shutdown"]).code, 0);
}

fn datagram(mut receive: impl FnMut(&mut [u8]) -> std::io::Result<usize>) -> String {
    let mut buffer = vec![0; 65_536];
    let length = receive(&mut buffer).unwrap();
    String::from_utf8(buffer[..length].to_vec()).unwrap()
}

#[test]
fn rfc_5424_goes_over_udp() {
    let Some(mut world) = World::new() else { return };
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let address = socket.local_addr().unwrap();
    let to = format!("logs: {{to: {{syslog: {{address: \"udp://{address}\"}}}}}}\n");
    service(&world, "web", "echo one; exec sleep 1000", &to);
    world.run();
    let message = datagram(|buffer| socket.recv(buffer));
    let words: Vec<&str> = message.split(' ').collect();
    assert_eq!(
        (words[0], words[3], words[5], words[6]),
        ("<30>1", "web", "stdout", "-"),
        "{message}"
    );
    assert_eq!((words[4].len(), words[7]), (16, "one"), "{message}");
    assert_eq!(world.opm(&["shutdown"]).code, 0);
}

/// The next message of a stream: its length, a blank, and so many bytes.
fn framed(stream: &mut BufReader<TcpStream>) -> Option<String> {
    let mut length = Vec::new();
    stream.read_until(b' ', &mut length).unwrap();
    let length = String::from_utf8(length).unwrap();
    let mut message = vec![0; length.trim_end().parse().ok()?];
    stream.read_exact(&mut message).unwrap();
    Some(String::from_utf8(message).unwrap())
}

fn accept(listener: &TcpListener) -> BufReader<TcpStream> {
    listener.set_nonblocking(true).unwrap();
    let mut accepted = None;
    common::until("a connection", || {
        accepted = listener.accept().ok();
        accepted.is_some()
    });
    let (stream, _) = accepted.unwrap();
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    BufReader::new(stream)
}

#[test]
fn a_stream_is_taken_up_again_where_it_broke() {
    let Some(mut world) = World::new() else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let to = format!("logs: {{to: {{syslog: {{address: \"tcp://{address}\"}}}}}}\n");
    let script = "echo one; until [ -e go ]; do sleep 0.02; done; seq 1 1000; exec sleep 1000";
    service(&world, "web", script, &to);
    world.run();
    let mut stream = accept(&listener);
    assert!(framed(&mut stream).unwrap().ends_with(" one"));
    // The other side goes away while nothing is under way, and nobody listens for a while.
    drop(stream);
    drop(listener);
    fs::write(world.path("go"), "").unwrap();
    let listener = TcpListener::bind(address).unwrap();
    let mut stream = accept(&listener);
    for number in 1..=1000 {
        let message = framed(&mut stream).unwrap();
        assert!(message.ends_with(&format!(" - {number}")), "{message}");
    }
    assert_eq!(world.opm(&["shutdown"]).code, 0);
}

#[test]
fn what_is_lost_on_the_way_is_told_where_output_goes_next() {
    let Some(mut world) = World::new() else { return };
    let script = "seq 1 100; : > NAME.written; exec sleep 1000";
    let units = |to: &str, world: &World| {
        for name in ["late", "soon"] {
            service(world, name, &script.replace("NAME", name), to);
        }
    };
    units(
        &format!("logs: {{to: {{syslog: {{address: {}}}}}}}\n", world.path("none").display()),
        &world,
    );
    world.run();
    let is_written = |name: &str| world.path(&format!("{name}.written")).exists();
    world.until("all is written", || is_written("late") && is_written("soon"));
    // Nobody has waited for the destination in vain yet.
    service(&world, "soon", &script.replace("NAME", "soon"), "");
    world.apply(0);
    world.until("the others to be dropped", || world.log().contains("takes nothing"));
    units("", &world);
    world.apply(0);
    for name in ["late", "soon"] {
        world.until("each byte to be read or told", || {
            let said = world.opm(&["logs", name, "--raw"]).out;
            let (told, lines): (Vec<&str>, Vec<&str>) =
                said.lines().partition(|line| line.starts_with("[opm: dropped "));
            let read: usize = lines.iter().map(|line| line.len() + 1).sum();
            let told = told.iter().map(|text| text.split(' ').nth(2).unwrap());
            let told: usize = told.map(|count| count.parse::<usize>().unwrap()).sum();
            told > 0 && read + told == 9 * 2 + 90 * 3 + 4
        });
    }
    assert_eq!(world.opm(&["shutdown"]).code, 0);
}

#[test]
fn a_real_rsyslogd_understands_every_way() {
    let program = ["/usr/sbin/rsyslogd", "/sbin/rsyslogd"].map(PathBuf::from);
    let Some(program) = program.into_iter().find(|path| path.exists()) else {
        return common::skip("no rsyslogd");
    };
    let Some(mut world) = World::new() else { return };
    let socket = world.path("log.sock");
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let got = world.path("got");
    let config = format!(
        "module(load=\"imuxsock\" SysSock.Name=\"{}\")\n\
         module(load=\"imtcp\")\ninput(type=\"imtcp\" port=\"{port}\" address=\"127.0.0.1\")\n\
         module(load=\"imudp\")\ninput(type=\"imudp\" port=\"{port}\" address=\"127.0.0.1\")\n\
         template(name=\"plain\" type=\"string\" \
         string=\"%app-name%|%syslogfacility-text%|%syslogseverity-text%|%procid%|%msg%\\n\")\n\
         *.* action(type=\"omfile\" file=\"{}\" template=\"plain\")\n",
        socket.display(),
        got.display()
    );
    fs::write(world.path("rsyslog.conf"), config).unwrap();
    let command = serde_json::json!([
        program,
        "-n",
        "-f",
        world.path("rsyslog.conf"),
        "-i",
        world.path("rsyslog.pid")
    ]);
    let ready = serde_json::json!({"exec": ["test", "-S", socket]});
    world.unit("rsyslog", &format!("command: {command}\nready: {ready}\n"));
    for (name, address) in [
        ("local", socket.display().to_string()),
        ("tcp", format!("tcp://127.0.0.1:{port}")),
        ("udp", format!("udp://127.0.0.1:{port}")),
    ] {
        let to = format!("{{syslog: {{address: \"{address}\", facility: local1}}}}");
        let script = "echo 'hello  <world>'; echo '<4>careful'";
        task(&world, name, script, &format!("logs: {{to: {to}}}\nrequires: [rsyslog]\n"));
    }
    world.run();
    world.until("all messages", || {
        let lines = world.lines("got");
        ["local", "tcp", "udp"].iter().all(|name| {
            lines.iter().filter(|line| line.starts_with(&format!("{name}|"))).count() == 2
        })
    });
    for line in world.lines("got") {
        let fields: Vec<&str> = line.splitn(5, '|').collect();
        let [name, facility, severity, run, text] = fields[..] else { panic!("{line}") };
        if !["local", "tcp", "udp"].contains(&name) {
            continue;
        }
        assert_eq!(facility, "local1");
        let (expected, words) =
            if severity == "info" { ("info", "hello  <world>") } else { ("warning", "careful") };
        assert_eq!((severity, text.trim_start()), (expected, words), "{line}");
        assert_eq!(run.len() == 16, name != "local", "{line}");
    }
    assert_eq!(world.opm(&["shutdown"]).code, 0);
}

#[test]
fn logs_have_the_form_that_is_asked_for_and_are_read_back() {
    let Some(mut world) = World::new() else { return };
    for format in ["text", "json", "raw"] {
        let script = "echo \"$RUN one\"; printf 'two\\tb'";
        let more = format!("logs: {{format: {format}}}\n");
        task(&world, format, script, &more);
    }
    world.run();
    for format in ["text", "json", "raw"] {
        world.until_phase(format, "done");
        // What has no newline is no line of a raw log yet.
        let expected = if format == "raw" { &[" one"][..] } else { &[" one", "two\tb"] };
        let count = || world.opm(&["logs", "--json", format]).out.lines().count();
        world.until("all lines", || count() == expected.len());
        let said = world.opm(&["logs", format, "--json"]).out;
        let lines: Vec<serde_json::Value> =
            said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let texts: Vec<&str> = lines.iter().map(|json| json["line"].as_str().unwrap()).collect();
        assert_eq!(texts, expected, "{format}");
        assert_eq!(lines[0]["run"].is_string(), format != "raw", "{format}: {said}");
    }
    let raw = || fs::read_to_string(world.root().join("log/raw/current")).unwrap();
    world.until("its last word", || raw() == " one\ntwo\tb");
    assert_eq!(world.opm(&["shutdown"]).code, 0);
}

#[test]
fn the_runs_of_a_task_are_read_one_by_one() {
    let Some(mut world) = World::new() else { return };
    task(&world, "job", "echo begin; cat text; printf 'no end'", "");
    fs::write(world.path("text"), "first\n").unwrap();
    world.run();
    world.until_phase("job", "done");
    for text in ["second", "third"] {
        fs::write(world.path("text"), format!("{text}\n")).unwrap();
        assert_eq!(world.opm(&["start", "job"]).code, 0);
    }
    // A line without an end is ended by the next run.
    let of = |run: &str| {
        let said = world.opm(&["logs", "job", "--raw", "--run", run]).out;
        said.trim_end_matches('\n').to_owned()
    };
    let expected = |text: &str| format!("begin\n{text}\nno end");
    world.until("the last run's lines", || of("0") == expected("third"));
    assert_eq!(
        (of("0"), of("-1"), of("-2")),
        (expected("third"), expected("second"), expected("first"))
    );
    assert_eq!(of("-3"), "");
    let json = world.opm(&["logs", "job", "--json", "--run", "-1", "-n", "1"]).out;
    let run = serde_json::from_str::<serde_json::Value>(&json).unwrap()["run"].clone();
    let run = run.as_str().unwrap().to_owned();
    assert_eq!(of(&run[..8]), expected("second"));
    let wrong = world.opm(&["logs", "job", "--run", "5"]);
    assert_eq!(wrong.code, 2);
    assert!(wrong.err.contains("write 0 for the latest run"), "{wrong:?}");
    // All of it was written since the machine began.
    let all = world.opm(&["logs", "job", "--boot", "--raw"]).out;
    assert_eq!(all.matches("no end").count(), 3, "{all}");
    assert_eq!(world.opm(&["shutdown"]).code, 0);
}
