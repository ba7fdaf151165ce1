//! Programs that others wrote and that speak `sd_notify(3)` by themselves: `PostgreSQL`, and Python's
//! client of it.

mod common;

use std::fs;
use std::process::Stdio;

use common::postgres::Postgres;
use common::{World, skip};

struct Database {
    world: World,
    postgres: Postgres,
}

impl Database {
    fn new() -> Option<Self> {
        let mut world = World::new()?;
        let postgres = Postgres::new(&world)?;
        postgres.unit(&world);
        world.run();
        world.until_phase("db", "up");
        Some(Self { world, postgres })
    }

    fn ask(&self, statement: &str) -> String {
        self.postgres.ask(&self.world, statement)
    }
}

#[test]
fn postgresql_is_up_when_it_answers_and_comes_back_with_all_that_was_committed() {
    let Some(mut db) = Database::new() else { return };
    db.ask("create table kept (n int); insert into kept values (7)");
    let first = db.world.pid("db").unwrap();
    db.world.crash();
    db.world.run();
    db.world.until_phase("db", "up");
    assert_eq!(db.world.pid("db"), Some(first), "it is adopted");
    assert_eq!(db.world.opm(&["reload", "db"]).code, 0);
    let log = || db.world.read("pg/log");
    db.world.until("its reload", || log().contains("received SIGHUP"));
    assert_eq!(db.world.opm(&["restart", "db"]).code, 0);
    assert_eq!(db.ask("select n from kept"), "7");
    let second = db.world.pid("db").unwrap();
    assert_ne!(second, first);
    db.world.kill("KILL", second);
    let is_another = || db.world.pid("db").is_some_and(|pid| pid != second);
    db.world.until("another one", is_another);
    db.world.until_phase("db", "up");
    assert_eq!(db.ask("select n from kept"), "7");
}

#[test]
fn postgresql_is_stopped_by_its_fast_shutdown_whoever_is_connected() {
    let Some(db) = Database::new() else { return };
    let mut sleeper = db.postgres.psql(&db.world, "select pg_sleep(1000)");
    let mut sleeper = sleeper.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let asleep = "select count(*) from pg_stat_activity where query = 'select pg_sleep(1000)'";
    db.world.until("a session", || db.ask(asleep) == "1");
    assert_eq!(db.world.opm(&["stop", "db"]).code, 0);
    assert!(!sleeper.wait().unwrap().success(), "the session was ended");
    let row = db.world.row("db");
    assert_eq!((row["phase"].as_str(), row["last"].as_str()), (Some("down"), Some("exited 0")));
    let log = db.world.read("pg/log");
    assert!(log.contains("received fast shutdown request"), "{log}");
    assert!(log.contains("database system is shut down"), "{log}");
}

/// A worker with the sdnotify package, which does what it reads from the FIFO `in`.
const CLIENT: &str = r#"
import os, sys, threading, time
import sdnotify
notifier = sdnotify.SystemdNotifier()
pinging = threading.Event()
pinging.set()

def ping():
    while True:
        if pinging.is_set():
            notifier.notify("WATCHDOG=1")
        time.sleep(0.1)

if not os.path.exists("in"):
    os.mkfifo("in")
lines = os.fdopen(os.open("in", os.O_RDWR), "r", buffering=1)
notifier.notify("STATUS=loading")
for line in lines:
    word = line.strip()
    if word == "silence":
        pinging.clear()
    elif word == "ready":
        threading.Thread(target=ping, daemon=True).start()
        notifier.notify("READY=1\nSTATUS=serving")
    elif word == "end":
        notifier.notify("STOPPING=1\nSTATUS=draining")
    elif word == "exit":
        sys.exit(0)
"#;

#[test]
fn a_python_service_says_by_its_package_how_it_is() {
    let there = common::shell(std::path::Path::new("/"), "python3 -c 'import sdnotify'");
    if !there.status.success() {
        skip("Python's package sdnotify is not installed");
        return;
    }
    let Some(mut world) = World::new() else { return };
    fs::write(world.path("client.py"), CLIENT).unwrap();
    let keys = "ready: {notify: true}\nwatchdog: 5s\nrestart: {policy: never, delay: 10ms}\n";
    world.service("py", "exec python3 client.py", keys);
    world.run();
    let status = |what: &str| world.row("py")["says"] == what;
    let tell = |what: &str| fs::write(world.path("in"), format!("{what}\n")).unwrap();
    world.until("its first words", || status("loading"));
    assert_eq!(world.phase("py"), "starting");
    tell("ready");
    world.until_phase("py", "up");
    world.until("its status", || status("serving"));
    let pid = world.pid("py").unwrap();
    tell("silence");
    world.until("its end", || world.pid("py").is_some_and(|now| now != pid));
    assert!(world.log().contains("longer than its watchdog allows"), "{}", world.log());
    world.until("its first words again", || status("loading"));
    tell("ready");
    world.until_phase("py", "up");
    tell("end");
    world.until("its word", || world.row("py")["doing"] == "stopping" && status("draining"));
    assert_eq!(world.phase("py"), "up");
    tell("exit");
    world.until_phase("py", "done");
}
