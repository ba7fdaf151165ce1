//! A real stack: nginx before a Python worker and a Node program, redis behind them. The programs
//! are those that people run, and what they do on SIGTERM, with pid files and with ports is theirs.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test stops at the first surprise, and runs programs"
)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use common::{World, skip};

/// The units, dependencies first.
const UNITS: [&str; 4] = ["redis", "worker", "slow", "nginx"];

/// The stack in a world's scratch directory.
struct Stack {
    python: String,
    port: u16,
    worker_port: u16,
    slow_port: u16,
    /// How long the worker takes to come up, in seconds.
    starts_in: &'static str,
}

impl Stack {
    /// `None` where a program is missing.
    fn new(starts_in: &'static str) -> Option<Self> {
        for program in ["nginx", "redis-server", "python3", "node"] {
            if !has(program) {
                skip(&format!("{program} is not installed"));
                return None;
            }
        }
        // Version managers put a shell script there; the program itself starts at once.
        let mut python = Command::new("python3");
        let python = output_of(python.args(["-c", "import sys; print(sys.executable)"]));
        let python = python.trim().to_owned();
        let [port, worker_port, slow_port] = free_ports();
        Some(Self { python, port, worker_port, slow_port, starts_in })
    }

    fn write(&self, world: &World) {
        let dir = world.dir.path().display();
        fs::create_dir(world.path("data")).unwrap();
        let conf = format!(
            "port 0\nunixsocket {dir}/redis.sock\ndir {dir}/data\nappendonly yes\n\
             appendfsync always\nsave \"\"\n"
        );
        fs::write(world.path("redis.conf"), conf).unwrap();
        fs::write(world.path("worker.py"), include_str!("e2e/worker.py")).unwrap();
        fs::write(world.path("slow.js"), include_str!("e2e/slow.js")).unwrap();
        self.nginx_conf(world, "first");
        unit(
            world,
            "redis",
            "[redis-server, redis.conf]",
            &format!("ready: {{file: {dir}/redis.sock}}\n"),
        );
        self.worker_unit(world, "hello", "");
        let more =
            format!("ready: {{fd: 3}}\nrequires: [redis]\nenv: {{PORT: \"{}\"}}\n", self.slow_port);
        unit(world, "slow", "[node, slow.js]", &more);
        let command = format!("[nginx, -e, stderr, -c, {dir}/nginx.conf]");
        let more = format!(
            "ready: {{file: {dir}/nginx.pid}}\nrequires: [worker, slow]\nreload: {{signal: HUP}}\n\
             stop: {{signal: QUIT}}\n"
        );
        unit(world, "nginx", &command, &more);
    }

    fn worker_unit(&self, world: &World, greeting: &str, more: &str) {
        let command = format!("[{}, worker.py]", self.python);
        let more = format!(
            "ready: {{notify: true}}\nrequires: [redis]\n\
             env: {{PORT: \"{}\", GREETING: {greeting}, STARTS_IN: \"{}\"}}\n{more}",
            self.worker_port, self.starts_in,
        );
        unit(world, "worker", &command, &more);
    }

    fn nginx_conf(&self, world: &World, edition: &str) {
        let conf = include_str!("e2e/nginx.conf")
            .replace("@DIR@", &world.dir.path().display().to_string())
            .replace("@PORT@", &self.port.to_string())
            .replace("@WORKER@", &self.worker_port.to_string())
            .replace("@SLOW@", &self.slow_port.to_string())
            .replace("@EDITION@", edition);
        let user = if common::is_root() { "user root root;\n" } else { "" };
        fs::write(world.path("nginx.conf"), format!("{user}{conf}")).unwrap();
    }

    /// Status and body of a page, through nginx; `None` where nobody answers.
    fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let (head, body) = text.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some((status, body.trim().to_owned()))
    }

    fn page(&self, world: &World, path: &str) -> String {
        let (status, body) = self.get(path).unwrap_or_default();
        assert_eq!(status, 200, "{path}: {body}\n{}", world.log());
        body
    }

    /// All ports can be bound: nobody holds them any more.
    fn assert_ports_free(&self) {
        for port in [self.port, self.worker_port, self.slow_port] {
            // What is in TIME_WAIT does not count: the standard library sets SO_REUSEADDR.
            TcpListener::bind(("127.0.0.1", port)).unwrap();
        }
    }
}

fn unit(world: &World, name: &str, command: &str, more: &str) {
    let text = format!(
        "command: {command}\nworking_dir: ..\npost_stop: [[sh, -c, \"echo {name} >> stopped\"]]\n{more}"
    );
    world.unit(name, &text);
}

fn has(program: &str) -> bool {
    Command::new("sh").args(["-c", "command -v \"$0\"", program]).output().unwrap().status.success()
}

fn output_of(command: &mut Command) -> String {
    String::from_utf8(command.output().unwrap().stdout).unwrap()
}

/// Three ports that nobody has at this moment.
fn free_ports() -> [u16; 3] {
    let listeners = [0; 3].map(|port: u16| TcpListener::bind(("127.0.0.1", port)).unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

fn pids(world: &World) -> BTreeMap<&'static str, i32> {
    UNITS.iter().filter_map(|name| Some((*name, world.pid(name)?))).collect()
}

fn all_up(world: &World) -> bool {
    UNITS.iter().all(|name| world.phase(name) == "up")
}

/// Units whose pid is another one now.
fn changed(
    before: &BTreeMap<&'static str, i32>,
    after: &BTreeMap<&'static str, i32>,
) -> Vec<String> {
    assert_eq!(after.len(), UNITS.len(), "all of them run: {after:?}");
    UNITS
        .iter()
        .filter(|name| before.get(*name) != after.get(*name))
        .map(|s| (*s).to_owned())
        .collect()
}

/// The units in the order in which opm's log says that they came up.
fn order_of_up(text: &str) -> Vec<&'static str> {
    let up =
        |line: &str| UNITS.into_iter().find(|name| line.starts_with(&format!("opm: {name}: up")));
    text.lines().filter_map(up).collect()
}

fn place(list: &[impl AsRef<str>], name: &str) -> usize {
    list.iter().position(|known| known.as_ref() == name).unwrap()
}

#[test]
fn a_web_stack_comes_up_changes_and_goes_down_in_order() {
    let Some(stack) = Stack::new("1") else { return };
    let mut world = World::bare();
    stack.write(&world);
    if !world.start_pid_one(&["run", "units"]) {
        return;
    }
    world.until("the stack to be up", || all_up(&world));
    let up = order_of_up(&world.log());
    assert_eq!(up.len(), UNITS.len(), "each came up once: {up:?}\n{}", world.log());
    assert_eq!((up.first(), up.last()), (Some(&"redis"), Some(&"nginx")), "in order: {up:?}");
    let first = pids(&world);
    assert_eq!(stack.page(&world, "/"), format!("{} hello 1", first["worker"]));
    assert_eq!(stack.page(&world, "/slow"), format!("{} slow", first["slow"]));

    // What asks for nothing changes nothing.
    assert!(world.apply(0).out.starts_with("no change"));
    assert_eq!(pids(&world), first);

    // Live keys, of a unit on which another depends.
    stack.worker_unit(
        &world,
        "hello",
        "restart: {policy: always, delay: 1s}\nlogs: {max_size: 2M}\n",
    );
    let said = world.apply(0);
    assert!(said.out.contains("1 changed"), "{said:?}");
    assert_eq!(pids(&world), first);

    // The environment of a process cannot change: it restarts, and what requires it.
    stack.worker_unit(
        &world,
        "goodbye",
        "restart: {policy: always, delay: 1s}\nlogs: {max_size: 2M}\n",
    );
    let said = world.opm(&["plan", "units"]);
    assert!(said.out.contains("env.GREETING"), "{said:?}");
    let said = world.apply(0);
    assert!(said.out.contains("2 changed"), "{said:?}");
    let second = pids(&world);
    assert_eq!(changed(&first, &second), ["worker", "nginx"]);
    assert_eq!(stack.page(&world, "/"), format!("{} goodbye 2", second["worker"]));
    assert!(world.apply(0).out.starts_with("no change"));

    // nginx reads its configuration again under the same pid.
    stack.nginx_conf(&world, "second");
    assert_eq!(stack.page(&world, "/edition"), "first");
    assert_eq!(world.opm(&["reload", "nginx"]).code, 0);
    world.until("the second edition", || stack.get("/edition") == Some((200, "second".to_owned())));
    assert_eq!(pids(&world), second);

    // A worker that dies is replaced; nginx runs on.
    world.kill("KILL", second["worker"]);
    world.until("another worker", || {
        world.pid("worker").is_some_and(|pid| pid != second["worker"]) && all_up(&world)
    });
    assert_eq!(changed(&second, &pids(&world)), ["worker"]);
    assert!(stack.page(&world, "/").ends_with("goodbye 3"));

    fs::remove_file(world.path("stopped")).unwrap();
    let began = common::now();
    world.kill("TERM", 1);
    assert_eq!(world.wait_init(), 0, "{}", world.log());
    let took = began.elapsed();
    assert!(took < Duration::from_secs(9), "within the budget of PID 1: {took:?}");
    let stopped = world.lines("stopped");
    assert_eq!(stopped.len(), UNITS.len(), "{stopped:?}\n{}", world.log());
    assert!(place(&stopped, "nginx") < place(&stopped, "worker"), "{stopped:?}");
    assert!(place(&stopped, "nginx") < place(&stopped, "slow"), "{stopped:?}");
    assert_eq!(stopped.last().map(String::as_str), Some("redis"));
    assert!(
        !world.log().contains("killing what is left"),
        "all ended by themselves\n{}",
        world.log()
    );
    stack.assert_ports_free();
    world.assert_no_doubles();

    // The next boot finds what redis was told.
    world.start_pid_one(&["run", "units"]);
    world.until("the stack to be up again", || all_up(&world));
    assert!(stack.page(&world, "/").ends_with("goodbye 4"), "{}", world.log());
}

#[test]
fn a_stack_outlives_its_supervisor_and_binds_no_port_twice() {
    let Some(stack) = Stack::new("0.1") else { return };
    let Some(mut world) = World::new() else { return };
    stack.write(&world);
    world.run();
    world.until("the stack to be up", || all_up(&world));
    let restarts = format!(
        "while ! [ -e enough ]; do {} --root {} restart --timeout 1s worker; sleep 0.05; done; \
         echo > ended",
        common::OPM,
        world.root().display(),
    );
    let mut client = world.command("sh");
    client.args(["-c", &restarts]).stdout(std::process::Stdio::null());
    let mut client = client.stderr(std::process::Stdio::null()).spawn().unwrap();
    let redis = world.pid("redis");
    let mut kills = 0;
    // Ten times at least, and until there was something to double.
    while kills < 10 || world.lines("binds").len() < 8 {
        world.until("a daemon", || world.opm(&["status"]).code == 0);
        // From the middle of a start to long after it.
        std::thread::sleep(Duration::from_millis(90 * (kills % 10)));
        kills += 1;
        world.crash();
        world.run();
    }
    fs::write(world.path("enough"), "").unwrap();
    world.until("the end of the restarts", || world.path("ended").exists());
    client.wait().unwrap();
    world.until("the stack to be up", || all_up(&world));
    let (status, body) = stack.get("/").unwrap();
    assert_eq!(status, 200, "{body}");
    assert!(body.starts_with(&format!("{} hello ", world.pid("worker").unwrap())), "{body}");
    assert_eq!(world.pid("redis"), redis, "nobody asked for another redis");
    world.assert_no_doubles();
    let binds = world.lines("binds");
    assert!(binds.iter().all(|line| line.contains(" bound ")), "{binds:?}");
    let logs = world.opm(&["logs", "--raw"]);
    for text in [&logs.out, &world.log()] {
        assert!(!text.to_lowercase().contains("address already in use"), "{text}");
    }
    let said = world.opm(&["shutdown"]);
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(world.wait_run(), 0);
    stack.assert_ports_free();
}

#[test]
fn a_ready_file_counts_though_it_came_while_no_supervisor_ran() {
    let Some(mut world) = World::new() else { return };
    let ready = world.path("ready");
    fs::create_dir(&ready).unwrap();
    let unit = |name: &str| {
        format!(
            "shell: while ! [ -e go-{name} ]; do sleep 0.02; done; echo > ready/{name}; exec sleep 1000\n\
             working_dir: ..\nready: {{file: {}/{name}}}\nlogs: {{to: null}}\n",
            ready.display()
        )
    };
    world.unit("early", &unit("early"));
    world.unit("late", &unit("late"));
    // What an earlier run left behind does not count.
    fs::write(ready.join("late"), "").unwrap();
    std::thread::sleep(Duration::from_millis(200));
    world.run();
    world.until("both to be started", || {
        ["early", "late"].iter().all(|name| world.pid(name).is_some())
    });
    world.crash();
    fs::write(world.path("go-early"), "").unwrap();
    common::until("its file", || ready.join("early").exists());
    world.run();
    world.until_phase("early", "up");
    assert_eq!(world.phase("late"), "starting");
    fs::write(world.path("go-late"), "").unwrap();
    world.until_phase("late", "up");
    assert_eq!(world.row("early")["restarts"], 0);
}
