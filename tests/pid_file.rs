//! Programs that fork away and write in a file who their main process is: nginx as it comes, daemons
//! of a shell, and files that are wrong.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use common::{World, skip, watch_for};

const KEYS: &str = "pid_file: ../${unit.name}.pid\nstop: {timeout: 5s}\n";
const NEVER: &str = "restart: {policy: never}\n";

/// A daemon as the book has it: the first process makes one in a session of its own, and ends with
/// `code`. The daemon does what `daemon` says, with its number in `$pid`, and then ends with the
/// code that it reads from the FIFO `NAME.end`.
fn forks(daemon: &str, code: u8) -> String {
    let daemon = format!(
        "pid=$$; n=$OPM_INSTANCE; echo $pid >> $n.pids; trap \"echo hup >> $n.hups\" HUP; \
         [ -p $n.end ] || mkfifo $n.end; {daemon}; exec 7<>$n.end; \
         while ! read -r code <&7; do :; done; exit $code"
    );
    format!("setsid sh -c '{daemon}' </dev/null >/dev/null 2>&1 & exit {code}")
}

/// The usual one: its file is written when somebody lets it, by making `NAME.go`.
fn when_let(write: &str) -> String {
    format!("while [ ! -e $n.go ]; do sleep 0.01; done; {write}")
}

const WRITE: &str = "echo $pid > $n.pid";

fn daemon_of(world: &World, name: &str) -> i32 {
    let file = format!("{name}.pids");
    world.until("the daemon", || !world.lines(&file).is_empty());
    world.lines(&file).last().unwrap().parse().unwrap()
}

fn end(world: &World, name: &str, code: u8) {
    fs::write(world.path(&format!("{name}.end")), format!("{code}\n")).unwrap();
}

#[test]
fn the_process_that_the_file_names_is_the_main_one() {
    let Some(mut world) = World::new() else { return };
    let keys = format!("{KEYS}{NEVER}reload: {{signal: HUP}}\n");
    world.service("d", &forks(&when_let(WRITE), 0), &keys);
    world.service("after", "exec sleep 1000", "requires: [d]\n");
    world.run();
    let pid = daemon_of(&world, "d");
    world.until("the first one's end", || world.pid("d").is_none());
    let row = world.row("d");
    assert_eq!(row["phase"], "starting", "{row}");
    assert!(row["why"].as_str().unwrap().contains("`pid_file`"), "{row}");
    assert_eq!(world.phase("after"), "waiting");
    fs::write(world.path("d.go"), "").unwrap();
    world.until_phase("after", "up");
    assert_eq!((world.phase("d").as_str(), world.pid("d")), ("up", Some(pid)), "{}", world.log());
    assert_eq!(world.opm(&["reload", "d"]).code, 0);
    world.until("its signal", || world.lines("d.hups") == ["hup"]);
    end(&world, "d", 3);
    world.until_phase("d", "failed");
    let row = world.row("d");
    assert_eq!((row["last"].as_str(), row["code"].as_u64()), (Some("exited 3"), Some(3)));
    assert_eq!(world.opm(&["restart", "d"]).code, 0, "{}", world.log());
    let again = daemon_of(&world, "d");
    assert_eq!((world.pid("d"), world.lines("d.pids").len()), (Some(again), 2));
    assert_eq!(world.opm(&["stop", "d"]).code, 0);
    assert!(!world.alive(again), "{}", world.log());
}

#[test]
fn a_main_process_that_a_file_named_outlives_kills_of_opm_and_its_exec() {
    let Some(mut world) = World::new() else { return };
    let keys = format!("{KEYS}restart: {{policy: always, delay: 10ms}}\n");
    world.service("d", &forks(WRITE, 0), &keys);
    world.run();
    world.until_phase("d", "up");
    let pid = daemon_of(&world, "d");
    assert_eq!(world.pid("d"), Some(pid));
    world.crash();
    world.run();
    world.until_phase("d", "up");
    assert_eq!(world.opm(&["reexec"]).code, 0);
    world.until_phase("d", "up");
    assert_eq!(world.pid("d"), Some(pid), "{}", world.log());
    world.kill("KILL", pid);
    world.until("another one", || world.lines("d.pids").len() == 2);
    world.until_phase("d", "up");
    assert_eq!(world.pid("d"), Some(daemon_of(&world, "d")));
}

#[test]
fn what_a_file_named_while_opm_was_away_counts() {
    let Some(mut world) = World::new() else { return };
    world.service("d", &forks(&when_let(WRITE), 0), &format!("{KEYS}{NEVER}"));
    world.run();
    let pid = daemon_of(&world, "d");
    world.until("the first one's end", || world.pid("d").is_none());
    world.crash();
    fs::write(world.path("d.go"), "").unwrap();
    world.until("its file", || world.pid_in("d.pid").is_some());
    world.run();
    world.until_phase("d", "up");
    assert_eq!((world.pid("d"), world.lines("d.pids").len()), (Some(pid), 1), "{}", world.log());
    assert_eq!(world.opm(&["stop", "d"]).code, 0);
    assert!(!world.alive(pid));
}

#[test]
fn a_new_opm_goes_on_waiting_for_the_file() {
    let Some(mut world) = World::new() else { return };
    world.service("d", &forks(&when_let(WRITE), 0), &format!("{KEYS}{NEVER}"));
    world.run();
    let pid = daemon_of(&world, "d");
    world.until("the first one's end", || world.pid("d").is_none());
    world.crash();
    world.run();
    world.until_phase("d", "starting");
    assert_eq!(world.opm(&["reexec"]).code, 0);
    world.until_phase("d", "starting");
    fs::write(world.path("d.go"), "").unwrap();
    world.until_phase("d", "up");
    assert_eq!((world.pid("d"), world.lines("d.pids").len()), (Some(pid), 1), "{}", world.log());
}

#[test]
fn a_daemon_with_nothing_of_its_environment_left_is_known_as_an_orphan() {
    let Some(mut world) = World::new() else { return };
    let daemon = "while [ ! -e go ]; do sleep 0.01; done; echo $$ > d.pid; exec sleep 1000";
    let script = format!("setsid env -i PATH=$PATH sh -c '{daemon}' & exit 0");
    world.service("d", &script, &format!("{KEYS}{NEVER}"));
    world.run();
    world.until("the first one's end", || world.phase("d") != "absent" && world.pid("d").is_none());
    fs::write(world.path("go"), "").unwrap();
    world.until_phase("d", "up");
    let pid = world.pid_in("d.pid").unwrap();
    assert_eq!(world.pid("d"), Some(pid));
    world.crash();
    world.run();
    world.until_phase("d", "up");
    assert_eq!(world.opm(&["stop", "d"]).code, 0);
    assert!(!world.alive(pid));
}

#[test]
fn no_other_rule_makes_it_ready_before_its_main_process_is_known() {
    let Some(mut world) = World::new() else { return };
    world.service("d", &forks(&when_let(WRITE), 0), &format!("{KEYS}ready: {{file: ../ready}}\n"));
    world.run();
    let pid = daemon_of(&world, "d");
    fs::write(world.path("ready"), "").unwrap();
    world.until("its word", || world.row("d")["ready"] == true);
    assert_eq!(world.phase("d"), "starting");
    fs::write(world.path("d.go"), "").unwrap();
    world.until_phase("d", "up");
    assert_eq!(world.pid("d"), Some(pid));
}

#[test]
fn who_stays_may_name_itself_or_a_child() {
    let Some(mut world) = World::new() else { return };
    let own = "while [ ! -e go ]; do sleep 0.01; done; echo $$ > own.pid; exec sleep 1000";
    world.service("own", own, KEYS);
    world.service("child", "sleep 1000 & echo $! > child.pid; wait", KEYS);
    world.run();
    world.until_phase("child", "up");
    assert_eq!(world.pid("child"), world.pid_in("child.pid"));
    assert_eq!(world.phase("own"), "starting");
    let pid = world.pid("own");
    fs::write(world.path("go"), "").unwrap();
    world.until_phase("own", "up");
    assert_eq!(world.pid("own"), pid);
    assert_eq!(world.opm(&["stop", "own", "child"]).code, 0);
}

/// A unit, how it writes a wrong file, and what is said of that.
const BAD: [(&str, &str, &str); 12] = [
    ("text", "echo sleep > $n.pid", "no process number"),
    ("zero", "echo 0 > $n.pid", "no process number"),
    ("minus", "echo -$pid > $n.pid", "no process number"),
    ("one", "echo 1 > $n.pid", "process 1 is none"),
    ("large", "echo 99999999999999999999 > $n.pid", "no process number"),
    ("long", "head -c 100000000 /dev/zero > $n.pid", "longer than 64 bytes"),
    ("absent", "echo 4194303 > $n.pid", "process 4194303 is none"),
    ("stranger", "cat stranger > $n.pid", "is none of the unit"),
    ("other", "cat good.pid > $n.pid", "is none of the unit"),
    ("opm", "cat root/state/lock > $n.pid", "is none of the unit"),
    ("fifo", "mkfifo $n.fifo; ln -s $n.fifo $n.pid", "no regular file"),
    ("dir", "mkdir $n.pid", "no regular file"),
];

#[test]
fn a_file_that_names_none_of_the_unit_is_not_believed_and_a_good_one_is_waited_for() {
    let Some(mut world) = World::new() else { return };
    let mut stranger = world.command("sh");
    stranger.args(["-c", "echo $$ > stranger; exec sleep 1000"]);
    let mut stranger = stranger.spawn().unwrap();
    world.until("the stranger", || world.pid_in("stranger").is_some());
    world.service("good", &forks(WRITE, 0), KEYS);
    let then = when_let("rm -rf $n.pid; echo $pid > $n.new; mv $n.new $n.pid");
    for (name, bad, _) in BAD {
        let script = forks(&format!("{bad}; {then}"), 0);
        world.service(name, &script, &format!("{KEYS}requires: [good]\n"));
    }
    world.service("empty", &forks(&format!(": > $n.pid; {then}"), 0), KEYS);
    if common::is_root() {
        // Theirs from the first moment.
        let give = "echo $pid > $n.own; chown 12345 $n.own; mv $n.own $n.pid";
        let script = forks(&format!("{give}; {then}"), 0);
        world.service("theirs", &script, KEYS);
    }
    world.run();
    let says = |name: &str, what: &str| {
        let is_it = |line: &str| line.contains(&format!("{name}: ")) && line.contains(what);
        world.log().lines().any(is_it)
    };
    let mut all: Vec<(&str, &str)> = BAD.iter().map(|(name, _, what)| (*name, *what)).collect();
    if common::is_root() {
        all.push(("theirs", "user 12345"));
    }
    for (name, what) in &all {
        world.until(&format!("a word on {name}"), || says(name, what));
        assert_eq!((world.phase(name).as_str(), world.pid(name)), ("starting", None), "{name}");
    }
    world.until_phase("empty", "starting");
    all.push(("empty", ""));
    for (name, _) in &all {
        fs::write(world.path(&format!("{name}.go")), "").unwrap();
        world.until_phase(name, "up");
        assert_eq!(world.pid(name), Some(daemon_of(&world, name)), "{name}\n{}", world.log());
    }
    assert!(!says("empty", "cannot"), "{}", world.log());
    assert!(stranger.try_wait().unwrap().is_none());
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

#[test]
fn a_file_of_before_the_start_is_not_believed_whoever_it_names() {
    let Some(mut world) = World::new() else { return };
    world.service("d", &forks(&when_let(WRITE), 0), &format!("{KEYS}start_timeout: 20s\n"));
    world.task("old", "echo 1 > d.pid", "before: [d]\n");
    world.run();
    let pid = daemon_of(&world, "d");
    world.until("a word on it", || world.log().contains("was there before the start"));
    assert_eq!(world.phase("d"), "starting");
    fs::write(world.path("d.go"), "").unwrap();
    world.until_phase("d", "up");
    assert_eq!(world.pid("d"), Some(pid));
}

#[test]
fn who_leaves_nobody_has_failed_at_once() {
    let late = "setsid sh -c 'while [ ! -e go ]; do sleep 0.01; done' & exit 0";
    for script in ["exit 0", late] {
        let Some(mut world) = World::new() else { return };
        world.service("d", script, &format!("{KEYS}{NEVER}"));
        world.run();
        world.until("the first one's end", || {
            world.phase("d") != "absent" && world.pid("d").is_none()
        });
        fs::write(world.path("go"), "").unwrap();
        world.until_phase("d", "failed");
        let log = world.log();
        assert!(log.contains("d: its first process has ended, and left none"), "{log}");
    }
}

#[test]
fn a_first_process_that_fails_before_a_main_one_is_named_is_a_failure() {
    let Some(mut world) = World::new() else { return };
    let fails = forks(&when_let(WRITE), 7);
    let fails = fails.replace("& exit 7", "& while [ ! -s d.pids ]; do sleep 0.01; done; exit 7");
    world.service("d", &fails, &format!("{KEYS}{NEVER}"));
    world.run();
    world.until_phase("d", "failed");
    assert_eq!(world.row("d")["code"], 7);
    assert!(!world.alive(daemon_of(&world, "d")));
    assert!(!world.log().contains("left none"), "{}", world.log());
}

#[test]
fn one_that_never_writes_its_file_is_stopped_with_all_that_it_left() {
    let Some(mut world) = World::new() else { return };
    world.service("d", &forks(":", 0), &format!("{KEYS}{NEVER}start_timeout: 3s\n"));
    world.service("held", &forks(":", 0), KEYS);
    world.run();
    let (pid, held) = (daemon_of(&world, "d"), daemon_of(&world, "held"));
    world.until_phase("d", "failed");
    let why = world.opm(&["why", "d"]).out;
    assert!(why.contains("not ready in time"), "{why}");
    assert!(!world.alive(pid));
    world.until("the first one's end", || world.pid("held").is_none());
    assert_eq!(world.opm(&["stop", "held"]).code, 0);
    assert!(!world.alive(held), "a stop ends what it has not named, too");
}

/// Status line and body of nginx's only page.
fn page(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    text.rsplit_once("\r\n\r\n").map(|(_, body)| body.trim().to_owned())
}

fn nginx_conf(world: &World, port: u16, edition: &str) {
    let dir = world.dir.path().display();
    let user = if common::is_root() { "user root root;\n" } else { "" };
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {dir}/nginx-{name};\n"))
        .concat();
    let conf = format!(
        "{user}pid {dir}/nginx.pid;\nworker_processes 2;\nevents {{ }}\nhttp {{\naccess_log off;\n\
         {temporary}server {{ listen 127.0.0.1:{port}; \
         location / {{ return 200 \"{edition}\\n\"; }} }}\n}}\n"
    );
    fs::write(world.path("nginx.conf"), conf).unwrap();
}

#[test]
fn nginx_as_it_comes_forks_away_and_is_followed() {
    if !common::shell(std::path::Path::new("/"), "command -v nginx").status.success() {
        skip("nginx is not installed");
        return;
    }
    let Some(mut world) = World::new() else { return };
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    nginx_conf(&world, port, "first");
    let dir = world.dir.path().display().to_string();
    world.unit(
        "nginx",
        &format!(
            "command: [nginx, -e, {dir}/error.log, -c, {dir}/nginx.conf]\nlogs: {{to: null}}\n\
             pid_file: {dir}/nginx.pid\nreload: {{signal: HUP}}\nstop: {{signal: QUIT}}\n\
             restart: {{policy: always, delay: 10ms}}\n"
        ),
    );
    world.run();
    world.until_phase("nginx", "up");
    let master = world.pid_in("nginx.pid").unwrap();
    assert_eq!(world.pid("nginx"), Some(master));
    assert_eq!(page(port).as_deref(), Some("first"));
    nginx_conf(&world, port, "second");
    assert_eq!(world.opm(&["reload", "nginx"]).code, 0);
    world.until("its second page", || page(port).as_deref() == Some("second"));
    world.crash();
    world.run();
    world.until_phase("nginx", "up");
    let is_another = || world.pid("nginx") != Some(master);
    watch_for(Duration::from_millis(300), is_another, "it is adopted");
    // Its workers keep the port: the next one must not begin beside them.
    world.kill("KILL", master);
    world.until("another master", || world.pid("nginx").is_some_and(|pid| pid != master));
    world.until_phase("nginx", "up");
    assert_eq!(world.pid_in("nginx.pid"), world.pid("nginx"), "{}", world.log());
    assert_eq!(page(port).as_deref(), Some("second"));
    let starts = world.log().matches("from now on").count();
    assert_eq!(starts, 2, "one of each start\n{}", world.log());
    assert_eq!(world.opm(&["stop", "nginx"]).code, 0);
    TcpListener::bind(("127.0.0.1", port)).unwrap();
}

#[test]
fn the_daemon_of_another_user_is_found_where_opm_may_not_look_into_it() {
    if !common::is_root() {
        return skip("needs root to run something as another user");
    }
    let Some(mut world) = World::new() else { return };
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    fs::set_permissions(world.dir.path(), open).unwrap();
    world.service("d", &forks(&when_let(WRITE), 0), &format!("{KEYS}{NEVER}user: nobody\n"));
    // As containers have it that were given no more. (CAP_PERFMON lets look too, since Linux 6.13.)
    let mut command = world.command("setpriv");
    let few = "--bounding-set=-all,+chown,+dac_override,+fowner,+kill,+setgid,+setuid";
    command.args([few, "--inh-caps=-all", common::OPM, "--root"]);
    command.arg(world.root()).args(["run", "units"]);
    world.spawn(command);
    let pid = daemon_of(&world, "d");
    // By then nothing else tells whose it is.
    world.until("the first one's end", || {
        world.phase("d") == "starting" && world.pid("d").is_none()
    });
    fs::write(world.path("d.go"), "").unwrap();
    world.until_phase("d", "up");
    assert_eq!(world.pid("d"), Some(pid));
    assert_eq!(world.opm(&["stop", "d"]).code, 0);
    assert!(!world.alive(pid), "{}", world.log());
}
