//! What a service tells opm by `sd_notify(3)`, with real programs: watchdogs, more time, another main
//! process, barriers; and what strangers tell.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use common::{World, skip, watch_for};
use std::path::PathBuf;
use std::time::Duration;

/// Does what it reads from the FIFO `NAME.in`, line by line; `|` stands for a newline in what it
/// says. `every` says the same again and again.
const TALKER: &str = r#"
import array, os, select, signal, socket, sys
name = sys.argv[1]

def say(text, descriptors=()):
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
    try:
        peer.sendmsg([text.replace("|", "\n").encode()], rights if descriptors else [], 0,
                     os.environ["NOTIFY_SOCKET"])
    except ConnectionRefusedError:
        pass
    peer.close()

def note(what, text):
    with open(name + "." + what, "a") as file:
        file.write(str(text) + "\n")

def begin():
    note("pids", os.getpid())
    if not os.path.exists(name + ".in"):
        os.mkfifo(name + ".in")
    return os.fdopen(os.open(name + ".in", os.O_RDWR), "r", buffering=1)

def told(number, frame):
    note("signals", number)

def ends_late(number, frame):
    global repeated, left
    repeated, left = "EXTEND_TIMEOUT_USEC=4000000", 40

repeated, left = None, None
signal.signal(signal.SIGHUP, told)
lines = begin()
for name_of in ("WATCHDOG_USEC", "WATCHDOG_PID", "NOTIFY_SOCKET"):
    note("env", name_of + "=" + os.environ.get(name_of, ""))
while True:
    if not select.select([lines], [], [], 0.05)[0]:
        if repeated:
            say(repeated)
        if left is not None:
            left -= 1
            if left == 0:
                sys.exit(0)
        continue
    word, _, rest = lines.readline().rstrip("\n").partition(" ")
    if word == "say":
        say(rest)
    elif word == "every":
        repeated = rest
    elif word == "late":
        signal.signal(signal.SIGTERM, ends_late)
    elif word == "rights":
        count, _, text = rest.partition(" ")
        reading, writing = os.pipe()
        say(text, [writing] * int(count))
        os.close(writing)
        os.read(reading, 1)
        os.close(reading)
    elif word == "fork":
        if os.fork() == 0:
            name = name + ".child"
            lines.close()
            lines = begin()
            continue
    elif word == "session":
        os.setsid()
    elif word == "exit":
        os._exit(int(rest))
    note("done", word)
"#;

/// Whether there is such a program.
fn has(version: &str) -> bool {
    let has = common::shell(std::path::Path::new("/"), version).status.success();
    if !has {
        skip(&format!("`{version}` does not work here"));
    }
    has
}

/// A world with a talker `a`, whose unit has these keys more.
fn world(keys: &str) -> Option<World> {
    if !has("python3 -V") {
        return None;
    }
    let mut world = World::new()?;
    std::fs::write(world.path("talker.py"), TALKER).unwrap();
    world.service("a", "exec python3 talker.py a", keys);
    world.run();
    Some(world)
}

/// Has the talker of this name do something, and waits until it is done.
fn tell(world: &World, name: &str, what: &str) {
    let fifo = world.path(&format!("{name}.in"));
    world.until("the talker", || fifo.exists());
    let done = format!("{name}.done");
    let before = world.lines(&done).len();
    std::fs::write(fifo, format!("{what}\n")).unwrap();
    // What ends it may do so before it can note that it is done.
    if !what.starts_with("exit") && !what.starts_with("say WATCHDOG") {
        world.until(what, || world.lines(&done).len() > before);
    }
}

/// The pid of the child that the talker has made.
fn fork(world: &World) -> i32 {
    tell(world, "a", "fork");
    world.until("the child", || world.pid_in("a.child.pids").is_some());
    world.pid_in("a.child.pids").unwrap()
}

fn socket(world: &World) -> PathBuf {
    world.root().join("run/notify/a.sock")
}

/// Says something as a process that is not of the unit.
fn say_as_stranger(world: &World, text: &str) {
    let script = format!(
        "import socket, array, sys\n\
         peer = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n\
         rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [0]))]\n\
         for with_rights in (rights, []):\n\
         \x20   peer.sendmsg([b'{text}'], with_rights, 0, '{}')\n\
         open('stranger.said', 'w').close()\n\
         sys.stdin.read()\n",
        socket(world).display()
    );
    // It stays until it was looked at: of one that is gone nobody can tell whose it was.
    let mut command = world.command("python3");
    command.args(["-c", &script]).stdin(std::process::Stdio::piped());
    let mut stranger = command.spawn().unwrap();
    world.until("the stranger", || world.path("stranger.said").exists());
    world.until("its warning", || world.log().contains("is not of the unit"));
    drop(stranger.stdin.take());
    assert!(stranger.wait().unwrap().success());
}

fn ledger(world: &World) -> String {
    std::fs::read_to_string(world.ledger()).unwrap()
}

fn count(text: &str, part: &str) -> usize {
    text.matches(part).count()
}

const WATCHDOG: &str = "watchdog: 3s\nrestart: {policy: never, delay: 1h, max_delay: 1h}\n";

#[test]
fn a_run_that_goes_on_pinging_goes_on_and_its_pings_are_not_in_the_ledger() {
    let Some(world) = world(WATCHDOG) else { return };
    tell(&world, "a", "every WATCHDOG=1");
    world.until_phase("a", "up");
    let pid = world.pid("a").unwrap();
    assert_eq!(
        world.lines("a.env"),
        [
            "WATCHDOG_USEC=3000000".to_owned(),
            format!("WATCHDOG_PID={pid}"),
            format!("NOTIFY_SOCKET={}", socket(&world).display()),
        ]
    );
    let before = ledger(&world);
    let is_another = || world.pid("a") != Some(pid);
    watch_for(Duration::from_secs(4), is_another, "it pings, and is left alone");
    assert_eq!(ledger(&world), before);
}

#[test]
fn a_run_that_falls_silent_is_ended_and_another_is_due_whatever_its_policy() {
    let Some(world) = world(WATCHDOG) else { return };
    tell(&world, "a", "every WATCHDOG=1");
    world.until_phase("a", "up");
    tell(&world, "a", "every");
    world.until_phase("a", "backoff");
    let why = world.opm(&["why", "a"]).out;
    assert!(why.contains("longer than its watchdog allows"), "{why}");
    assert!(world.log().contains("longer than its watchdog allows"), "{}", world.log());
}

#[test]
fn a_run_can_say_that_it_failed_and_can_have_another_time() {
    let Some(world) = world(&WATCHDOG.replace("3s", "1h")) else { return };
    tell(&world, "a", "say WATCHDOG=trigger");
    world.until_phase("a", "backoff");
    let why = world.opm(&["why", "a"]).out;
    assert!(why.contains("said by its watchdog that it failed"), "{why}");
    assert_eq!(world.opm(&["restart", "a"]).code, 0);
    world.until_phase("a", "up");
    tell(&world, "a", "say WATCHDOG_USEC=300000");
    world.until_phase("a", "backoff");
    let why = world.opm(&["why", "a"]).out;
    assert!(why.contains("longer than its watchdog allows"), "{why}");
}

#[test]
fn the_clock_of_a_watchdog_begins_anew_with_another_supervisor() {
    let Some(mut world) = world(WATCHDOG) else { return };
    tell(&world, "a", "every WATCHDOG=1");
    world.until_phase("a", "up");
    let pid = world.pid("a").unwrap();
    for _ in 0..3 {
        world.crash();
        let is_over = || !world.alive(pid);
        watch_for(Duration::from_millis(3_100), is_over, "nobody listens, and that is no silence");
        world.run();
        world.until_phase("a", "up");
        assert_eq!(world.pid("a"), Some(pid));
    }
    assert_eq!(world.opm(&["reexec"]).code, 0);
    world.until_phase("a", "up");
    let is_another = || world.lines("a.pids").len() > 1;
    watch_for(Duration::from_millis(3_500), is_another, "it is heard");
    tell(&world, "a", "every");
    world.until_phase("a", "backoff");
}

const NOTIFY: &str = "ready: {notify: true}\nrestart: {policy: never, delay: 1h, max_delay: 1h}\n";

#[test]
fn a_start_has_more_time_while_it_goes_on_asking_for_it() {
    let Some(world) = world(&format!("{NOTIFY}start_timeout: 3s\n")) else { return };
    tell(&world, "a", "every EXTEND_TIMEOUT_USEC=600000");
    let is_over = || world.phase("a") != "starting";
    watch_for(Duration::from_secs(4), is_over, "it asks for time");
    tell(&world, "a", "every");
    tell(&world, "a", "say READY=1");
    world.until_phase("a", "up");
    assert_eq!(world.opm(&["restart", "a"]).code, 1, "this time it never says that it is ready");
    world.until_phase("a", "failed");
    let why = world.opm(&["why", "a"]).out;
    assert!(why.contains("not ready in time"), "{why}");
}

#[test]
fn a_stop_has_more_time_while_it_goes_on_asking_for_it() {
    let Some(world) = world(&format!("{NOTIFY}stop: {{timeout: 500ms}}\n")) else { return };
    tell(&world, "a", "late");
    tell(&world, "a", "say READY=1");
    world.until_phase("a", "up");
    assert_eq!(world.opm(&["stop", "a"]).code, 0);
    let row = world.row("a");
    assert_eq!(row["last"], "exited 0", "{row}\n{}", world.log());
}

#[test]
fn a_stop_that_goes_on_under_another_supervisor_and_definition_has_more_time_too() {
    let keys = format!("{NOTIFY}stop: {{timeout: 500ms}}\n");
    let Some(mut world) = world(&keys) else { return };
    tell(&world, "a", "late");
    tell(&world, "a", "say READY=1");
    world.until_phase("a", "up");
    // It says nothing any more by its new definition.
    world.service("a", "exec sleep 1000", "stop: {timeout: 500ms}\n");
    assert_eq!(world.opm(&["apply", "--no-wait", "units"]).code, 0);
    world.until_phase("a", "stopping");
    world.crash();
    world.run();
    world.until_phase("a", "up");
    let row = world.row("a");
    assert_eq!(row["last"], "exited 0", "{row}\n{}", world.log());
}

#[test]
fn whoever_speaks_while_opm_is_replaced_is_heard() {
    // It speaks without a pause, and notes what it could not say.
    let speak = "import os, socket\n\
                 peer = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n\
                 said = 0\n\
                 while not os.path.exists('over'):\n\
                 \x20   try:\n\
                 \x20       peer.sendto(b'READY=1\\nSTATUS=%d' % said, os.environ['NOTIFY_SOCKET'])\n\
                 \x20   except OSError as error:\n\
                 \x20       open('refused', 'a').write('%s\\n' % error)\n\
                 \x20   said += 1\n\
                 peer.sendto(b'STATUS=over', os.environ['NOTIFY_SOCKET'])\n\
                 while True: input()\n";
    if !has("python3 -V") {
        return;
    }
    let Some(mut world) = World::new() else { return };
    std::fs::write(world.path("speak.py"), speak).unwrap();
    world.service("a", "mkfifo in; exec python3 speak.py <> in", NOTIFY);
    world.run();
    world.until_phase("a", "up");
    for _ in 0..10 {
        assert_eq!(world.opm(&["reexec"]).code, 0);
    }
    std::fs::write(world.path("over"), "").unwrap();
    world.until("its last words", || world.row("a")["says"] == "over");
    assert_eq!(world.lines("refused"), Vec::<String>::new());
    assert_eq!(world.opm(&["shutdown"]).code, 0);
}

#[test]
fn what_a_run_is_doing_is_shown_and_changes_no_phase() {
    let Some(world) = world(NOTIFY) else { return };
    tell(&world, "a", "say READY=1|STATUS=well");
    world.until_phase("a", "up");
    tell(&world, "a", "say RELOADING=1|MONOTONIC_USEC=5");
    world.until("it reloads", || world.row("a")["doing"] == "reloading");
    assert_eq!(world.phase("a"), "up");
    let table = world.opm(&["status"]).out;
    assert!(table.contains("reloading: well"), "{table}");
    tell(&world, "a", "say READY=1");
    world.until("it has reloaded", || world.row("a")["doing"].is_null());
    tell(&world, "a", "say STOPPING=1");
    world.until("it stops", || world.row("a")["doing"] == "stopping");
    assert_eq!(world.phase("a"), "up");
    tell(&world, "a", "exit 0");
    world.until_phase("a", "done");
}

#[test]
fn a_process_of_its_own_that_a_run_names_is_its_main_one() {
    let keys = format!("{NOTIFY}reload: {{signal: HUP}}\n");
    let Some(world) = world(&keys) else { return };
    let child = fork(&world);
    let first = world.pid("a").unwrap();
    tell(&world, "a", &format!("say MAINPID={child}|READY=1"));
    world.until("another main process", || world.pid("a") == Some(child));
    assert!(ledger(&world).contains("main-is"), "it is kept");
    tell(&world, "a", "exit 7");
    world.until("the end of the first one", || !world.alive(first));
    world.until_phase("a", "up");
    assert_eq!(world.opm(&["reload", "a"]).code, 0);
    world.until("its signal", || !world.read("a.child.signals").is_empty());
    assert_eq!((world.pid("a"), world.phase("a").as_str()), (Some(child), "up"));
    tell(&world, "a.child", "exit 3");
    world.until_phase("a", "failed");
    let row = world.row("a");
    assert_eq!((row["last"].as_str(), row["code"].as_u64()), (Some("exited 3"), Some(3)));
}

#[test]
fn who_forks_away_and_says_so_before_it_ends_has_not_ended() {
    let fork = "import os, socket, time\n\
                child = os.fork()\n\
                if child == 0:\n\
                \x20   time.sleep(1000)\n\
                open('forked', 'a').write('%d\\n' % os.getpid())\n\
                while not os.path.exists('go'):\n\
                \x20   time.sleep(0.01)\n\
                peer = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n\
                text = 'MAINPID=%d\\nREADY=1' % child\n\
                peer.sendto(text.encode(), os.environ['NOTIFY_SOCKET'])\n\
                os._exit(0)\n";
    if !has("python3 -V") {
        return;
    }
    let Some(mut world) = World::new() else { return };
    std::fs::write(world.path("fork.py"), fork).unwrap();
    world.service("d", "exec python3 fork.py", &format!("{NOTIFY}instances: 16\n"));
    world.run();
    world.until("all of them", || world.lines("forked").len() == 16);
    // All is to be told at once: of each that it speaks, and that it ends.
    let daemon = world.daemon_pid().unwrap();
    world.kill("STOP", daemon);
    std::fs::write(world.path("go"), "").unwrap();
    let first: Vec<i32> = world.lines("forked").iter().map(|pid| pid.parse().unwrap()).collect();
    world.until("their ends", || first.iter().all(|pid| !world.alive(*pid)));
    world.kill("CONT", daemon);
    let up = || world.rows().iter().filter(|row| row["phase"] == "up").count();
    world.until("all of them", || up() == 16);
    assert_eq!(count(&world.log(), "its main process is"), 16, "each is up for the first time");
    assert_eq!(world.lines("forked").len(), 16);
}

#[test]
fn a_main_process_of_another_parent_tells_how_it_ended_and_a_stop_ends_all() {
    let Some(world) = world(&NOTIFY.replace("policy: never", "policy: always")) else { return };
    let child = fork(&world);
    tell(&world, "a.child", "session");
    tell(&world, "a.child", &format!("say MAINPID={child}|READY=1"));
    world.until("another main process", || world.pid("a") == Some(child));
    let first: i32 = world.lines("a.pids")[0].parse().unwrap();
    assert!(world.alive(first), "it lives on beside the new one");
    assert_eq!(world.opm(&["stop", "a"]).code, 0);
    assert!(!world.alive(first) && !world.alive(child));
}

#[test]
fn a_stranger_is_never_the_main_process_and_that_is_said_once() {
    let Some(world) = world(NOTIFY) else { return };
    world.until_phase("a", "starting");
    let first = world.pid("a").unwrap();
    let daemon = world.daemon_pid().unwrap();
    for pid in [1, daemon, 999_999, 0, -1] {
        tell(&world, "a", &format!("say MAINPID={pid}"));
    }
    tell(&world, "a", "say MAINPID=99999999999999999999|WATCHDOG_USEC=soon|WATCHDOG_USEC=-1");
    tell(&world, "a", "say EXTEND_TIMEOUT_USEC=|EXTEND_TIMEOUT_USEC=1e3|READY=1");
    world.until_phase("a", "up");
    assert_eq!(world.pid("a"), Some(first));
    let log = world.log();
    assert_eq!(count(&log, "named by `MAINPID=`"), 1, "{log}");
    assert_eq!(count(&log, "cannot be read"), 1, "{log}");
}

#[test]
fn a_named_main_process_is_adopted_by_the_next_supervisor() {
    let Some(mut world) = world(&NOTIFY.replace("1h, max_delay: 1h", "10ms")) else { return };
    let child = fork(&world);
    tell(&world, "a", &format!("say MAINPID={child}|READY=1"));
    world.until("another main process", || world.pid("a") == Some(child));
    for with_first in [true, false] {
        world.crash();
        if !with_first {
            tell(&world, "a", "exit 7");
        }
        world.run();
        world.until_phase("a", "up");
        assert_eq!(world.pid("a"), Some(child), "{}", world.log());
    }
    let is_another = || world.lines("a.pids").len() > 1;
    watch_for(Duration::from_millis(300), is_another, "it runs on");
    tell(&world, "a.child", "exit 0");
    world.until("its end", || world.phase("a") != "up");
    assert!(!world.alive(child));
}

#[test]
fn descriptors_that_come_with_a_message_are_closed() {
    let Some(world) = world(NOTIFY) else { return };
    world.until_phase("a", "starting");
    let daemon = world.daemon_pid().unwrap();
    let open = || {
        let found = world.proc().unwrap().join(format!("{daemon}/fd"));
        std::fs::read_dir(found).unwrap().count()
    };
    let before = open();
    // Each waits until the other ends of its pipe are closed.
    for count in [1, 2, 253] {
        tell(&world, "a", &format!("rights {count} BARRIER=1"));
        tell(&world, "a", &format!("rights {count} FDSTORE=1|FDNAME=x|STATUS=kept"));
    }
    // A client of ours may have gone meanwhile.
    world.until("no more descriptors than before", || open() <= before);
    tell(&world, "a", "rights 253 READY=1");
    world.until_phase("a", "up");
}

#[test]
fn a_stranger_is_not_heard_with_descriptors_or_without_and_that_is_said_once() {
    let Some(world) = world(NOTIFY) else { return };
    world.until_phase("a", "starting");
    say_as_stranger(&world, "READY=1");
    // What is said later is heard later.
    tell(&world, "a", "say STATUS=still starting");
    world.until("its words", || world.row("a")["says"] == "still starting");
    assert_eq!(world.phase("a"), "starting");
    assert_eq!(count(&world.log(), "is not of the unit"), 1, "{}", world.log());
}

#[test]
fn systemd_notify_is_understood() {
    if !has("systemd-notify --version") {
        return;
    }
    let Some(mut world) = World::new() else { return };
    let script = "sleep 1000 & echo $! > b.sleeps; \
                  systemd-notify --ready --status=fine --pid=$! && echo > b.said; exec sleep 1001";
    world.service("b", script, NOTIFY);
    world.run();
    // It waits for its barrier before it ends.
    world.until("its end", || world.path("b.said").exists());
    world.until_phase("b", "up");
    assert_eq!(
        (world.pid("b"), world.row("b")["says"].as_str()),
        (world.pid_in("b.sleeps"), Some("fine"))
    );
}

#[test]
fn a_notify_socket_for_a_watchdog_is_no_word_about_readiness() {
    let keys = format!("{WATCHDOG}ready: {{file: there}}\n").replace("3s", "1h");
    let Some(world) = world(&keys) else { return };
    tell(&world, "a", "say READY=1|STATUS=not yet");
    world.until("its words", || world.row("a")["says"] == "not yet");
    assert_eq!(world.phase("a"), "starting");
}
