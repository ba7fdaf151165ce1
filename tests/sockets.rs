//! Socket units with real servers: what these are given, what starts them, and that nobody who
//! connects is refused while a service, or opm itself, comes and goes.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test stops at the first surprise"
)]

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use common::{World, comes_true, now, skip, watch_for};

/// It says what it was given, and then answers on its first socket.
const SERVER: &str = r"
import os, socket
fds = int(os.environ.get('LISTEN_FDS', '0'))
assert fds == 0 or os.environ['LISTEN_PID'] == str(os.getpid()), os.environ['LISTEN_PID']
names = os.environ.get('LISTEN_FDNAMES', '').split(':')
with open('given', 'a') as f:
    print(' '.join(f'{name}={socket.socket(fileno=os.dup(3 + n)).getsockname()}'
        for n, name in zip(range(fds), names)), file=f)
with open('pids', 'a') as f:
    print(os.getpid(), file=f)
server = socket.socket(fileno=3)
while True:
    if server.type == socket.SOCK_DGRAM:
        data, whom = server.recvfrom(100)
        server.sendto(b'served', whom)
    else:
        client, _ = server.accept()
        client.sendall(b'served')
        client.close()
";

/// A client that connects again and again until the file `enough` is there, and counts.
const CLIENT: &str = r"
import os, socket, sys
good = refused = other = 0
while not os.path.exists('enough'):
    try:
        with socket.create_connection(('127.0.0.1', int(sys.argv[1])), timeout=15) as s:
            if s.recv(100) == b'served': good += 1
            else: other += 1
    except ConnectionRefusedError: refused += 1
    except OSError as error: other += 1
    with open('counted.new', 'w') as f: print(good, refused, other, file=f)
    os.rename('counted.new', 'counted')
";

/// A world with a server; `None` where there is no namespace or no python3.
fn world() -> Option<World> {
    if !Path::new("/usr/bin/python3").exists() {
        skip("no python3");
        return None;
    }
    let world = World::new()?;
    std::fs::write(world.path("server.py"), SERVER).unwrap();
    std::fs::write(world.path("client.py"), CLIENT).unwrap();
    std::fs::set_permissions(world.dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
    Some(world)
}

fn server(world: &World, more: &str) {
    world.service("web", "exec /usr/bin/python3 server.py", more);
}

fn socket(world: &World, name: &str, listen: &str, more: &str) {
    let text = format!("kind: socket\nlisten: [{listen}]\nfor: web\n{more}");
    world.unit(name, &text);
}

/// A port that is free now.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn tcp(port: u16) -> String {
    format!("{{tcp: \"127.0.0.1:{port}\"}}")
}

fn connect(port: u16) -> std::io::Result<TcpStream> {
    TcpStream::connect(("127.0.0.1", port))
}

/// What the server says to one that connects.
fn ask(port: u16) -> String {
    let mut stream = connect(port).unwrap();
    stream.set_read_timeout(Some(common::PATIENCE)).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

fn begin_client(world: &World, port: u16) -> Child {
    let mut command = world.command("/usr/bin/python3");
    command.arg("client.py").arg(port.to_string()).spawn().unwrap()
}

fn counted(world: &World) -> Vec<u64> {
    world.read("counted").split_whitespace().map(|text| text.parse().unwrap()).collect()
}

fn served(world: &World) -> u64 {
    counted(world).first().copied().unwrap_or(0)
}

/// Waits until the client was served once more.
fn until_served(world: &World) {
    let before = served(world);
    world.until("clients to be served", || served(world) > before);
}

/// Ends the client: how many were served, refused, and cut off.
fn end_client(world: &World, mut client: Child) -> (u64, u64, u64) {
    std::fs::write(world.path("enough"), "").unwrap();
    client.wait().unwrap();
    let all = counted(world);
    (all[0], all[1], all[2])
}

/// The sockets that a process was given; what it has accepted itself is none of them.
fn inodes(world: &World, pid: i32) -> Vec<String> {
    let process = world.proc().unwrap().join(pid.to_string());
    let env = std::fs::read(process.join("environ")).unwrap();
    let count = env.split(|byte| *byte == 0).find_map(|pair| pair.strip_prefix(b"LISTEN_FDS="));
    let count: usize = String::from_utf8_lossy(count.unwrap()).parse().unwrap();
    let link = |fd: usize| std::fs::read_link(process.join(format!("fd/{fd}"))).unwrap();
    let mut links: Vec<String> =
        (3..3 + count).map(|fd| link(fd).to_string_lossy().into_owned()).collect();
    links.sort();
    links
}

#[test]
fn a_lazy_service_starts_with_the_first_connection_and_an_eager_one_at_once() {
    let Some(mut world) = world() else { return };
    let port = free_port();
    server(&world, "");
    socket(&world, "web-sock", &tcp(port), "");
    world.service("user", "exec sleep 1000", "requires: [web]\n");
    world.run();
    world.until_phase("web", "waiting");
    world.until_phase("web-sock", "up");
    let why = world.opm(&["why", "web"]).out;
    let at = format!("waits for a connection on tcp 127.0.0.1:{port} (`web-sock`)");
    assert!(why.contains(&at), "{why}");
    assert!(world.row("web-sock")["says"].as_str().unwrap().contains(&format!("{port}")));
    assert_eq!(world.row("web")["settled"], true);
    assert_eq!(world.apply(0).code, 0, "an apply does not wait for somebody who connects");
    // Who needs it may be the one to connect.
    world.until_phase("user", "up");
    assert_eq!(world.lines("pids").len(), 0);
    assert_eq!(ask(port), "served");
    world.until_phase("web", "up");
    assert_eq!(world.lines("given"), [format!("web-sock=('127.0.0.1', {port})")]);
    // Stopped by hand it is not started by a connection, which waits.
    assert_eq!(world.opm(&["stop", "web"]).code, 0);
    let mut waits = connect(port).unwrap();
    let starts = || world.lines("pids").len() > 1;
    watch_for(Duration::from_millis(500), starts, "a start although it is held");
    assert_eq!(world.opm(&["start", "web"]).code, 0);
    let mut text = String::new();
    waits.read_to_string(&mut text).unwrap();
    assert_eq!(text, "served");
    // Eager: the change is taken over while it is down, and `user` waits for it.
    assert_eq!(world.opm(&["stop", "web"]).code, 0);
    socket(&world, "web-sock", &tcp(port), "accept: eager\n");
    world.apply(0);
    assert_eq!(world.opm(&["release", "web"]).code, 0);
    world.until("a start", || world.lines("pids").len() == 3);
    // Without its socket it goes, and nobody listens any more.
    assert_eq!(world.opm(&["stop", "web-sock"]).code, 0);
    world.until_phase("web", "waiting");
    assert!(connect(port).is_err());
    assert_eq!(world.opm(&["shutdown"]).code, 0);
}

#[test]
fn a_start_by_hand_needs_no_connection_and_a_service_that_ends_well_waits_for_the_next() {
    let Some(mut world) = world() else { return };
    let port = free_port();
    let script = "echo $$ >> pids; exec /usr/bin/python3 -c \"import socket; \
                  c, _ = socket.socket(fileno=3).accept(); c.sendall(b'served')\"";
    world.service("web", script, "");
    socket(&world, "web-sock", &tcp(port), "");
    world.run();
    for starts in 1..=3 {
        world.until_phase("web", "waiting");
        assert_eq!(world.lines("pids").len(), starts - 1);
        assert_eq!(ask(port), "served");
        assert_eq!(world.lines("pids").len(), starts);
    }
    world.until_phase("web", "waiting");
    assert_eq!(world.opm(&["start", "web"]).code, 0);
    world.until("a start", || world.lines("pids").len() == 4);
    assert_eq!(world.opm(&["shutdown"]).code, 0);
}

#[test]
fn sockets_come_in_their_order_with_their_names_mode_and_owner() {
    let Some(mut world) = world() else { return };
    let (one, two, dgram) = (free_port(), free_port(), free_port());
    let owner = if common::is_root() { ", user: nobody, group: 7" } else { "" };
    let unix = world.path("units/w.sock");
    world.service("web", "echo >&9; exec /usr/bin/python3 server.py", "ready: {fd: 9}\n");
    let listen = format!("{}, {{unix: w.sock, mode: \"0622\"{owner}, name: un}}", tcp(one));
    socket(&world, "b", &listen, "accept: eager\n");
    let listen = format!("{{udp: \"127.0.0.1:{dgram}\", name: dns}}, {{tcp: \"[::1]:{two}\"}}");
    socket(&world, "a", &listen, "accept: eager\n");
    // A file that somebody left behind is no reason not to listen.
    drop(std::os::unix::net::UnixListener::bind(&unix).unwrap());
    world.run();
    world.until_phase("web", "up");
    let path = unix.to_str().unwrap();
    let given = format!(
        "dns=('127.0.0.1', {dgram}) a=('::1', {two}, 0, 0) b=('127.0.0.1', {one}) un={path}"
    );
    world.until("the server", || !world.lines("given").is_empty());
    assert_eq!(world.lines("given"), [given]);
    let found = std::fs::metadata(&unix).unwrap();
    assert!(found.file_type().is_socket());
    assert_eq!(found.mode() & 0o777, 0o622);
    if common::is_root() {
        assert_eq!((found.uid(), found.gid()), (65_534, 7));
    }
    let asks = UdpSocket::bind("127.0.0.1:0").unwrap();
    asks.set_read_timeout(Some(common::PATIENCE)).unwrap();
    asks.send_to(b"?", ("127.0.0.1", dgram)).unwrap();
    let mut answer = [0; 10];
    assert_eq!(asks.recv(&mut answer).unwrap(), 6);
    drop(UnixStream::connect(&unix).unwrap());
    assert_eq!(world.opm(&["shutdown"]).code, 0);
    assert!(!unix.exists(), "the file goes with the socket");
}

#[test]
fn a_socket_whose_file_somebody_removed_is_there_again_after_a_restart() {
    let Some(mut world) = world() else { return };
    server(&world, "");
    socket(&world, "s", "{unix: w.sock}", "");
    world.run();
    let unix = world.path("units/w.sock");
    world.until("the socket", || std::fs::remove_file(&unix).is_ok());
    assert_eq!(world.opm(&["restart", "s"]).code, 0);
    drop(UnixStream::connect(&unix).unwrap());
}

#[test]
fn a_datagram_starts_a_service_and_it_gets_it() {
    let Some(mut world) = world() else { return };
    let port = free_port();
    server(&world, "");
    socket(&world, "dns", &format!("{{udp: \"127.0.0.1:{port}\"}}"), "");
    world.run();
    world.until_phase("web", "waiting");
    let asks = UdpSocket::bind("127.0.0.1:0").unwrap();
    asks.set_read_timeout(Some(common::PATIENCE)).unwrap();
    asks.send_to(b"?", ("127.0.0.1", port)).unwrap();
    let mut answer = [0; 10];
    assert_eq!(asks.recv(&mut answer).unwrap(), 6);
    assert_eq!(world.opm(&["shutdown"]).code, 0);
}

#[test]
fn a_service_of_another_user_gets_a_port_that_only_root_may_have() {
    if !common::is_root() {
        return skip("not root");
    }
    let Some(mut world) = world() else { return };
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let Some(port) = (600..700).find(is_free) else { return skip("no privileged port is free") };
    server(&world, "user: nobody\n");
    socket(&world, "web-sock", &tcp(port), "");
    world.run();
    world.until_phase("web", "waiting");
    assert_eq!(ask(port), "served");
    let pid = world.pid("web").unwrap();
    let status = std::fs::read_to_string(world.proc().unwrap().join(format!("{pid}/status")));
    assert!(status.unwrap().contains("Uid:\t65534"));
    assert_eq!(world.opm(&["shutdown"]).code, 0);
}

#[test]
fn case_138_an_address_that_is_taken_is_a_failure_of_one_unit_until_it_is_free() {
    let Some(mut world) = world() else { return };
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, other) = (taken.local_addr().unwrap().port(), free_port());
    server(&world, "");
    socket(&world, "web-sock", &format!("{}, {}", tcp(other), tcp(port)), "accept: eager\n");
    world.service("o", "exec sleep 1000", "");
    world.run();
    world.until_phase("o", "up");
    world.until_phase("web-sock", "backoff");
    let why = world.opm(&["why", "web-sock"]).out;
    let reason = format!("cannot listen at `tcp 127.0.0.1:{port}`: address already in use");
    assert!(why.contains(&reason), "{why}");
    assert!(connect(other).is_err(), "it listens at all of its addresses or at none");
    assert_eq!(world.phase("web"), "waiting");
    drop(taken);
    world.until_phase("web", "up");
    assert_eq!(world.phase("o"), "up");
    // Taken by a file that is no socket.
    world.unit("x", "kind: socket\nlisten: [{unix: x.yaml}]\nfor: o\n");
    world.opm(&["apply", "units", "--no-wait"]);
    world.until_phase("x", "backoff");
    let why = world.opm(&["why", "x"]).out;
    assert!(why.contains("it is no socket"), "{why}");
    assert!(world.path("units/x.yaml").exists());
    assert_eq!(world.opm(&["shutdown"]).code, 0);
}

#[test]
fn case_138_nobody_is_refused_while_the_service_restarts_and_opm_is_replaced() {
    let Some(mut world) = world() else { return };
    let port = free_port();
    server(&world, "");
    socket(&world, "web-sock", &tcp(port), "");
    world.run();
    world.until_phase("web-sock", "up");
    let client = begin_client(&world, port);
    world.until_phase("web", "up");
    for restart in 1..=50 {
        assert_eq!(world.opm(&["restart", "web"]).code, 0, "{restart}");
        until_served(&world);
    }
    let sockets = inodes(&world, world.pid("web").unwrap());
    assert_eq!(world.opm(&["reexec"]).code, 0);
    assert_eq!(world.opm(&["restart", "web"]).code, 0);
    until_served(&world);
    assert_eq!(inodes(&world, world.pid("web").unwrap()), sockets, "the same socket");
    // Killed, opm has it again from the service.
    world.crash();
    world.run();
    world.until("opm to be there", || world.phase("web") == "up");
    assert_eq!(world.opm(&["restart", "web"]).code, 0);
    until_served(&world);
    assert_eq!(inodes(&world, world.pid("web").unwrap()), sockets, "the same socket");
    // What is in both lists stays open.
    let more = free_port();
    socket(&world, "web-sock", &format!("{}, {}", tcp(port), tcp(more)), "");
    let plan = world.opm(&["plan", "units"]).out;
    assert!(plan.contains("listen") && plan.contains("± web"), "{plan}");
    world.apply(0);
    until_served(&world);
    let after = inodes(&world, world.pid("web").unwrap());
    assert!(sockets.iter().all(|socket| after.contains(socket)), "{sockets:?} {after:?}");
    assert_eq!(after.len(), sockets.len() + 1);
    assert!(connect(more).is_ok());
    let (good, refused, cut) = end_client(&world, client);
    eprintln!("52 restarts, a reexec, a crash: {good} served, {refused} refused, {cut} cut off");
    assert_eq!(refused, 0);
    assert_eq!(world.opm(&["shutdown"]).code, 0);
}

#[test]
fn case_136_a_connection_to_a_service_that_fails_is_no_reason_to_spin() {
    let Some(mut world) = world() else { return };
    let ports = [free_port(), free_port(), free_port()];
    for (number, port) in ports.iter().enumerate() {
        let more = ["restart: never\n", "restart: {delay: 1s, jitter: 0}\n", ""][number];
        let script = format!("echo x >> starts{number}; exit {}", [1, 1, 0][number]);
        world.service(&format!("s{number}"), &script, more);
        let listen = format!("kind: socket\nlisten: [{}]\nfor: s{number}\n", tcp(*port));
        world.unit(&format!("k{number}"), &listen);
    }
    world.run();
    for number in 0..3 {
        world.until_phase(&format!("s{number}"), "waiting");
    }
    let cpu = |world: &World| {
        let stat = format!("{}/stat", world.daemon_pid().unwrap());
        let stat = std::fs::read_to_string(world.proc().unwrap().join(stat)).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let before = cpu(&world);
    let began = now();
    let mut clients: Vec<TcpStream> = ports.iter().map(|port| connect(*port).unwrap()).collect();
    world.until_phase("s0", "failed");
    let starts = || world.lines("starts0").len() > 1;
    watch_for(Duration::from_secs(5), starts, "a failed one starts again");
    let seconds = usize::try_from(began.elapsed().as_secs()).unwrap();
    let starts: Vec<usize> = (0..3).map(|n| world.lines(&format!("starts{n}")).len()).collect();
    let ticks = cpu(&world) - before;
    eprintln!("in {seconds} s with one connection each: {starts:?} starts, {ticks} ticks of opm");
    assert!(starts[0] == 1 && starts[1] <= 5 && starts[2] <= seconds + 2, "{starts:?}");
    assert!(ticks <= 50, "opm is busy: {ticks} ticks of 10 ms in {seconds} s");
    clients[0].write_all(b"still there").unwrap();
    assert_eq!(world.opm(&["shutdown"]).code, 0);
}

#[test]
fn a_socket_that_is_added_to_a_service_makes_it_restart_and_one_that_is_removed_too() {
    let Some(mut world) = world() else { return };
    let port = free_port();
    world.service("web", "echo \"$${LISTEN_FDS-none}\" >> fds; exec sleep 1000", "");
    world.run();
    world.until("its first run", || world.lines("fds") == ["none"]);
    socket(&world, "web-sock", &tcp(port), "");
    let plan = world.opm(&["plan", "units"]).out;
    assert!(plan.contains("+ web-sock") && plan.contains("± web"), "{plan}");
    world.apply(0);
    world.until("its second run", || world.lines("fds") == ["none", "1"]);
    world.remove_unit("web-sock");
    world.apply(0);
    world.until("its third run", || world.lines("fds") == ["none", "1", "none"]);
    assert!(comes_true(|| connect(port).is_err()));
    assert_eq!(world.opm(&["shutdown"]).code, 0);
}

/// Every way in which an address can go from one unit to another in one apply.
#[test]
fn an_address_that_goes_to_another_unit_is_there_at_once() {
    let Some(mut world) = world() else { return };
    let (port, other) = (free_port(), free_port());
    let unix = "{unix: server.sock}";
    server(&world, "");
    socket(&world, "m-sock", &format!("{}, {unix}", tcp(port)), "");
    world.run();
    world.until_phase("m-sock", "up");
    let failed = |world: &World| world.log().contains("already");
    // To a unit that is looked at before, and after.
    for (old, new) in [("m-sock", "a-sock"), ("a-sock", "z-sock")] {
        world.remove_unit(old);
        socket(&world, new, &format!("{}, {unix}", tcp(port)), "");
        world.apply(0);
        assert_eq!((world.phase(new).as_str(), ask(port).as_str()), ("up", "served"), "{new}");
        assert!(UnixStream::connect(world.path("units/server.sock")).is_ok(), "{new}");
        assert!(!failed(&world), "{}", world.log());
    }
    // Part of what a unit has, to one that is new; then two units change places.
    socket(&world, "z-sock", &tcp(port), "");
    socket(&world, "b-sock", &format!("{unix}, {}", tcp(other)), "");
    world.apply(0);
    assert!(connect(port).is_ok() && connect(other).is_ok());
    socket(&world, "z-sock", &format!("{unix}, {}", tcp(other)), "");
    socket(&world, "b-sock", &tcp(port), "");
    world.apply(0);
    assert!(connect(port).is_ok() && connect(other).is_ok());
    assert!(UnixStream::connect(world.path("units/server.sock")).is_ok());
    assert!(!failed(&world), "{}", world.log());
    assert_eq!(world.opm(&["shutdown"]).code, 0);
    assert!(!world.path("units/server.sock").exists());
}

#[test]
fn who_waits_for_a_connection_does_so_over_a_reexec_and_a_crash() {
    let Some(mut world) = world() else { return };
    let port = free_port();
    server(&world, "");
    socket(&world, "web-sock", &tcp(port), "");
    world.run();
    world.until_phase("web", "waiting");
    assert_eq!(world.opm(&["reexec"]).code, 0);
    world.until("opm to be there", || world.phase("web-sock") == "up");
    assert_eq!(ask(port), "served");
    world.until_phase("web", "up");
    assert_eq!(world.opm(&["stop", "web"]).code, 0);
    assert_eq!(world.opm(&["release", "web"]).code, 0);
    world.until_phase("web", "waiting");
    // Nobody has the socket while nobody runs; the next opm opens it anew.
    world.crash();
    assert!(connect(port).is_err());
    world.run();
    world.until("opm to be there", || world.phase("web") == "waiting");
    assert_eq!(world.phase("web-sock"), "up");
    assert_eq!(world.lines("pids").len(), 1);
    assert_eq!(ask(port), "served");
    assert_eq!(world.lines("pids").len(), 2);
    assert_eq!(world.opm(&["shutdown"]).code, 0);
}

#[test]
fn as_many_sockets_as_a_unit_may_have_come_whole() {
    let Some(mut world) = world() else { return };
    server(&world, "");
    for unit in ["a", "b"] {
        let all: Vec<String> =
            (0..32).map(|n| format!("{{unix: {unit}{n}.sock, name: {unit}{n}}}")).collect();
        socket(&world, unit, &all.join(", "), "accept: eager\n");
    }
    world.run();
    world.until("the server", || !world.lines("given").is_empty());
    let dir = world.path("units");
    let given: Vec<String> = ["a", "b"]
        .into_iter()
        .flat_map(|unit| (0..32).map(move |n| format!("{unit}{n}")))
        .map(|name| format!("{name}={}", dir.join(format!("{name}.sock")).display()))
        .collect();
    assert_eq!(world.lines("given"), [given.join(" ")]);
    assert_eq!(world.opm(&["shutdown"]).code, 0);
}

#[test]
fn gunicorn_serves_behind_a_socket_unit() {
    let Some(gunicorn) = std::env::var_os("PATH").and_then(|path| {
        let mut all = std::env::split_paths(&path).map(|dir| dir.join("gunicorn"));
        all.find(|program| program.exists())
    }) else {
        return skip("no gunicorn on PATH");
    };
    let Some(mut world) = world() else { return };
    let port = free_port();
    let app = "def app(environ, start):\n    start('200 OK', [])\n    return [b'served']\n";
    std::fs::write(world.path("app.py"), app).unwrap();
    let script = format!("exec {} app:app", gunicorn.display());
    world.service("web", &script, "ready: {notify: true}\nreload: {signal: HUP}\n");
    socket(&world, "web-sock", &tcp(port), "");
    world.run();
    world.until_phase("web", "waiting");
    let get = || {
        let mut stream = connect(port).unwrap();
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    assert!(get().ends_with("served"));
    world.until_phase("web", "up");
    for _ in 0..3 {
        assert_eq!(world.opm(&["restart", "web"]).code, 0);
        assert!(get().ends_with("served"));
    }
    assert_eq!(world.opm(&["reload", "web"]).code, 0);
    assert!(get().ends_with("served"));
    assert_eq!(world.opm(&["shutdown"]).code, 0);
}

#[test]
fn who_looks_whether_a_path_is_taken_calls_nobody() {
    let Some(mut world) = world() else { return };
    let listener = std::os::unix::net::UnixListener::bind(world.path("taken.sock")).unwrap();
    listener.set_nonblocking(true).unwrap();
    server(&world, "");
    let at = format!("{{unix: {}}}", world.path("taken.sock").display());
    socket(&world, "web-sock", &at, "");
    world.run();
    world.until_phase("web-sock", "backoff");
    let why = world.opm(&["why", "web-sock"]).out;
    assert!(why.contains("somebody listens there already"), "{why}");
    assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    // One that nobody has open any more is in nobody's way.
    drop(listener);
    world.until_phase("web-sock", "up");
}

#[test]
fn a_socket_unit_that_becomes_another_kind_leaves_its_address() {
    let Some(mut world) = world() else { return };
    let port = free_port();
    server(&world, "");
    socket(&world, "s", &tcp(port), "");
    world.run();
    world.until("an answer", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    world.unit("s", "command: [sleep, '1000']\nlogs: {to: null}\n");
    world.apply(0);
    assert_eq!(world.opm(&["restart", "web"]).code, 0);
    TcpListener::bind(("127.0.0.1", port)).unwrap();
}

#[test]
fn a_plan_says_that_a_service_goes_on_without_the_socket_that_it_had() {
    let Some(mut world) = world() else { return };
    server(&world, "");
    socket(&world, "web-sock", &tcp(free_port()), "accept: eager\n");
    world.run();
    world.until_phase("web", "up");
    world.remove_unit("web-sock");
    world.service("web", "exec sleep 1000", "");
    let plan = world.opm(&["plan", "units"]).out;
    assert!(plan.contains("± web (restart") && plan.contains("- web-sock (remove)"), "{plan}");
    world.apply(0);
    assert_eq!(world.phase("web"), "up");
}

#[test]
fn another_order_of_instances_starts_none_that_waits_for_a_connection() {
    let Some(mut world) = world() else { return };
    let port = free_port();
    socket(&world, "web-sock", &tcp(port), "");
    let web = |world: &World, instances: &str| {
        let script = "echo $0 >> starts; exec sleep 1000";
        world.unit(
            "web",
            &format!(
                "command: [sh, -c, '{script}', '${{instance.index}}']\nworking_dir: ..\n\
                 logs: {{to: null}}\ninstances: {instances}\n"
            ),
        );
    };
    web(&world, "[x, y]");
    world.run();
    world.until_phase("web@x", "waiting");
    web(&world, "[y, x]");
    assert_eq!(world.apply(0).code, 0);
    for id in ["web@x", "web@y"] {
        assert_eq!(world.phase(id), "waiting");
    }
    assert_eq!(world.read("starts"), "");
}
