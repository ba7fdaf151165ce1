//! Deployments of real stacks: a queue in redis whose workers are scaled and rolled under load, and a
//! web program over `PostgreSQL` whose migration fails.
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
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::postgres::Postgres;
use common::{World, skip};

/// Most workers that the queue ever has.
const WORKERS_MAX: u16 = 6;

/// The Python that is meant, without the shell script that version managers put before it; `None`
/// where one of these programs is missing.
fn python_and(programs: &[&str]) -> Option<String> {
    for program in programs.iter().chain(&["python3"]) {
        let found = Command::new("sh").args(["-c", "command -v \"$0\"", program]).output().unwrap();
        if !found.status.success() {
            skip(&format!("{program} is not installed"));
            return None;
        }
    }
    let mut python = Command::new("python3");
    let output = python.args(["-c", "import sys; print(sys.executable)"]).output().unwrap();
    Some(String::from_utf8(output.stdout).unwrap().trim().to_owned())
}

/// A port after which so many are free at this moment.
fn free_ports(count: u16) -> u16 {
    let is_free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
    // Below those that the kernel gives to clients; where to begin is the process's own place.
    let first = 10_000 + u16::try_from(std::process::id() % 2_000).unwrap() * 10;
    let mut bases = (first..32_000).step_by(10);
    bases.find(|base| (*base..=base + count).all(is_free)).unwrap()
}

fn done(world: &World, args: &[&str]) -> String {
    let said = world.opm(args);
    assert_eq!(said.code, 0, "opm {}: {said:?}\n{}", args.join(" "), world.log());
    said.out
}

fn pids(world: &World) -> BTreeMap<String, i32> {
    let rows = world.rows();
    let pid = |row: &serde_json::Value| i32::try_from(row.get("pid")?.as_i64()?).ok();
    let name = |row: &serde_json::Value| Some(row.get("instance")?.as_str()?.to_owned());
    rows.iter().filter_map(|row| Some((name(row)?, pid(row)?))).collect()
}

/// Redis, workers, and a front end that requires the workers.
struct Queue {
    world: World,
    python: String,
    base_port: u16,
    producer: Option<Child>,
}

impl Queue {
    fn new() -> Option<Self> {
        let python = python_and(&["redis-server", "redis-cli"])?;
        let world = World::new()?;
        let dir = world.dir.path().display().to_string();
        fs::create_dir(world.path("data")).unwrap();
        let conf = format!(
            "port 0\nunixsocket {dir}/redis.sock\ndir {dir}/data\nappendonly yes\n\
             appendfsync always\nsave \"\"\n"
        );
        fs::write(world.path("redis.conf"), conf).unwrap();
        fs::write(world.path("worker.py"), include_str!("e2e/queue_worker.py")).unwrap();
        let ping = format!(
            "ready: {{exec: [sh, -c, \"redis-cli -s {dir}/redis.sock ping\"], interval: 50ms}}\n"
        );
        world.unit(
            "redis",
            &format!("command: [redis-server, redis.conf]\nworking_dir: ..\n{ping}"),
        );
        world.unit("front", "command: [sleep, infinity]\nrequires: [worker]\n");
        let base_port = free_ports(WORKERS_MAX);
        Some(Self { world, python, base_port, producer: None })
    }

    /// So many workers, of this release.
    fn workers(&self, count: u16, release: &str) {
        self.world.unit(
            "worker",
            &format!(
                "command: [{}, worker.py]\nworking_dir: ..\nrequires: [redis]\ninstances: {count}\n\
                 env: {{NAME: \"${{instance}}\", INDEX: \"${{instance.index}}\", \
                 BASE_PORT: \"{}\", RELEASE: \"{release}\"}}\n\
                 ready: {{notify: true}}\nstop: {{signal: TERM, timeout: 25s}}\n",
                self.python, self.base_port,
            ),
        );
    }

    fn redis(&self, words: &[&str]) -> String {
        let mut cli = self.world.command("redis-cli");
        let output = cli.args(["-s", "redis.sock"]).args(words).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Pushes jobs, each under a number of its own, until [`Self::stop_pushing`].
    fn push(&mut self) {
        let script = "i=0; until [ -e enough ]; do i=$((i+1)); \
                      until redis-cli -s redis.sock rpush jobs $i >said 2>&1 && \
                      grep -q '^[0-9]' said; do sleep 0.02; done; done; echo $i > pushed";
        let mut sh = self.world.command("sh");
        self.producer = Some(sh.args(["-c", script]).stdout(Stdio::null()).spawn().unwrap());
    }

    fn stop_pushing(&mut self) -> usize {
        fs::write(self.world.path("enough"), "").unwrap();
        self.producer.take().unwrap().wait().unwrap();
        self.world.read("pushed").trim().parse().unwrap()
    }

    fn done_so_far(&self) -> usize {
        self.redis(&["hlen", "done"]).parse().unwrap_or(0)
    }

    /// Waits until some more jobs are done: there is load.
    fn until_work(&self) {
        let before = self.done_so_far();
        self.world.until("work to go on", || self.done_so_far() > before + 3);
    }

    /// Applies, and says whose process is another one, new or gone, and whose stayed.
    fn changed(&self, args: &[&str]) -> Vec<String> {
        let before = pids(&self.world);
        done(&self.world, args);
        self.until_work();
        let after = pids(&self.world);
        let names = before.keys().chain(after.keys().filter(|name| !before.contains_key(*name)));
        let mut names: Vec<String> =
            names.filter(|name| before.get(*name) != after.get(*name)).cloned().collect();
        names.sort();
        names
    }

    /// Forgets the turns until now.
    fn begin_turns(&self) {
        fs::write(self.world.path("turns"), "").unwrap();
    }

    /// The least number of workers that were ready at a time since, of so many.
    fn least(&self, mut now: i32) -> i32 {
        let mut least = now;
        for line in self.world.lines("turns") {
            now += if line.starts_with('+') { 1 } else { -1 };
            least = least.min(now);
        }
        least
    }

    /// Each job was begun once and done once, and nobody left one half done.
    fn assert_each_once(&self, pushed: usize) {
        for list in ["begun", "done"] {
            assert_eq!(self.redis(&["hlen", list]), pushed.to_string(), "{list}: none is lost");
            let times = self.redis(&["hvals", list]);
            assert!(times.lines().all(|times| times == "1"), "{list}: none twice: {times}");
        }
        assert_eq!(self.redis(&["get", "abandoned"]), "", "{}", self.world.log());
        assert_eq!(self.redis(&["keys", "doing:*"]), "");
        self.world.assert_no_doubles();
    }
}

fn workers(numbers: std::ops::RangeInclusive<u16>) -> Vec<String> {
    numbers.map(|number| format!("worker@{number}")).collect()
}

#[test]
fn a_queue_is_scaled_and_rolled_under_load_and_each_job_is_done_once() {
    let Some(mut queue) = Queue::new() else { return };
    queue.workers(4, "1");
    queue.world.run();
    queue.world.until_phase("front", "up");
    queue.push();
    queue.until_work();
    let apply = ["apply", "units"];

    // Only the difference.
    queue.workers(6, "1");
    let plan = done(&queue.world, &["plan", "units"]);
    assert!(plan.contains("worker") && !plan.contains("front"), "{plan}");
    assert_eq!(queue.changed(&apply), workers(5..=6));
    let all = WORKERS_MAX.to_string();
    queue.world.until("each worker to do some", || queue.redis(&["hlen", "by"]) == all);
    queue.workers(2, "1");
    assert_eq!(queue.changed(&apply), workers(3..=6));
    queue.workers(4, "1");
    assert_eq!(queue.changed(&apply), workers(3..=4));
    assert!(done(&queue.world, &apply).starts_with("no change"));

    // One at a time, then a new release two at a time: nobody else is touched.
    queue.begin_turns();
    assert_eq!(queue.changed(&["restart", "--rolling", "worker"]), workers(1..=4));
    assert_eq!((queue.world.lines("turns").len(), queue.least(4)), (8, 3));
    queue.begin_turns();
    queue.workers(4, "2");
    let rolling = ["apply", "units", "--rolling", "--batch", "2"];
    assert_eq!(queue.changed(&rolling), workers(1..=4));
    assert_eq!((queue.world.lines("turns").len(), queue.least(4)), (8, 2));

    // A roll goes on where it was when opm is killed in it; a scaling in the middle of it, too.
    queue.begin_turns();
    queue.workers(4, "3");
    done(&queue.world, &["apply", "units", "--rolling", "--no-wait"]);
    queue.world.until("the first turn", || !queue.world.lines("turns").is_empty());
    queue.world.crash();
    queue.world.run();
    let is_new = |row: &serde_json::Value| {
        row["phase"] == "up" && row.get("outdated").is_none_or(serde_json::Value::is_null)
    };
    queue.world.until("all turns", || {
        queue.world.lines("turns").len() == 8 && queue.world.rows().iter().all(is_new)
    });
    assert_eq!(queue.least(4), 3, "{:?}", queue.world.lines("turns"));

    // What is at work when all goes down is finished first, and the rest is there at the next boot.
    queue
        .world
        .command("sh")
        .args([
            "-c",
            "for i in $(seq 200); do echo rpush jobs more-$i; done | \
        redis-cli -s redis.sock",
        ])
        .stdout(Stdio::null())
        .status()
        .unwrap();
    let pushed = queue.stop_pushing() + 200;
    assert_eq!(queue.world.opm(&["shutdown"]).code, 0);
    assert_eq!(queue.world.wait_run(), 0);
    queue.world.run();
    queue.world.until("all jobs to be done", || queue.done_so_far() == pushed);
    // The workers take a moment to write down the last one.
    queue.world.until("nothing to be at work", || queue.redis(&["keys", "doing:*"]).is_empty());
    queue.assert_each_once(pushed);
}

/// `PostgreSQL`, a migration, a web program and a worker.
struct Site {
    world: World,
    postgres: Postgres,
    python: String,
    port: u16,
}

impl Site {
    fn new() -> Option<Self> {
        let python = python_and(&[])?;
        let world = World::new()?;
        let postgres = Postgres::new(&world)?;
        postgres.unit(&world);
        fs::write(world.path("migrate.sh"), include_str!("e2e/migrate.sh")).unwrap();
        fs::write(world.path("app.py"), include_str!("e2e/app.py")).unwrap();
        Some(Self { world, postgres, python, port: free_ports(1) })
    }

    /// The whole site in a release, whose database is of a version.
    fn release(&self, release: &str, version: u32) {
        let psql = self.postgres.client(&self.world);
        self.world.unit(
            "migrate",
            &format!(
                "kind: task\ncommand: [sh, migrate.sh]\nworking_dir: ..\nrequires: [db]\n\
                 restart: never\nenv: {{PSQL: \"{psql}\", VERSION: \"{version}\"}}\n"
            ),
        );
        for part in ["web", "worker"] {
            self.world.unit(
                part,
                &format!(
                    "command: [{}, app.py, {part}]\nworking_dir: ..\nready: {{notify: true}}\n\
                     requires: [db, {{unit: migrate, condition: completed}}]\n\
                     env: {{PSQL: \"{psql}\", RELEASE: {release}, PORT: \"{}\"}}\n",
                    self.python, self.port,
                ),
            );
        }
    }

    fn migration(&self, version: u32, text: &str) {
        fs::write(self.world.path(&format!("to-{version}.sql")), text).unwrap();
    }

    /// What a page says.
    fn get(&self) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        write!(stream, "GET / HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some(text.split_once("\r\n\r\n")?.1.trim().to_owned())
    }

    fn page(&self, pid: i32) -> String {
        self.get().unwrap_or_default().replace(&format!(" {pid} "), " PID ")
    }

    /// Has a job done.
    fn job(&self) {
        self.postgres.ask(&self.world, "insert into jobs default values");
        let left = "select count(*) from jobs where done = 0";
        self.world.until("the job", || self.postgres.ask(&self.world, left) == "0");
    }

    /// The releases whose workers did the jobs, each once.
    fn by(&self) -> String {
        let once = "select count(*) from jobs where done <> 1";
        assert_eq!(self.postgres.ask(&self.world, once), "0");
        self.postgres.ask(&self.world, "select string_agg(by, ' ' order by id) from jobs")
    }
}

#[test]
fn a_migration_that_fails_takes_the_release_back() {
    let Some(mut site) = Site::new() else { return };
    site.migration(
        1,
        "create table pages (id int primary key, title text);\n\
         insert into pages values (1, 'old');\n\
         create table jobs (id serial primary key, done int default 0, by text);\n",
    );
    site.release("first", 1);
    site.world.run();
    site.world.until_phase("web", "up");
    site.world.until_phase("worker", "up");
    site.job();
    let first = pids(&site.world);
    assert_eq!(site.page(first["web"]), "first PID old");
    let before = site.postgres.dump(&site.world);

    // Half of it would have worked.
    site.migration(
        2,
        "alter table pages add column body text;\nupdate pages set title = 'new';\n\
         update pages set boddy = '';\n",
    );
    site.release("second", 2);
    let apply = ["apply", "units", "--rollback-on-failure", "-m", "release 2"];
    let said = site.world.opm(&apply);
    assert_eq!(said.code, 1, "{said:?}\n{}", site.world.log());
    for word in ["column \"boddy\"", "taken back to generation 1, as generation 3"] {
        assert!(said.err.contains(word), "{said:?}");
    }
    let second = pids(&site.world);
    assert_eq!(site.page(second["web"]), "first PID old");
    assert_eq!(site.postgres.dump(&site.world), before, "the database is as it was");
    assert_eq!(second["db"], first["db"]);
    site.job();
    assert_eq!(site.by(), "first first");

    // Mended, the same release comes up, and stays.
    site.migration(2, "alter table pages add column body text;\nupdate pages set title = 'new';\n");
    done(&site.world, &apply);
    let third = pids(&site.world);
    assert_eq!(site.page(third["web"]), "second PID new");
    assert_eq!(third["db"], first["db"]);
    site.job();
    assert_eq!(site.by(), "first first second");
    assert_eq!(site.world.opm(&["confirm"]).code, 0, "it is confirmed already");
    let asked = "select string_agg(version::text, ' ' order by version) from versions";
    assert_eq!(site.postgres.ask(&site.world, asked), "1 2");

    // After a crash of opm nothing is migrated again, and nobody is touched.
    let log =
        |world: &World| world.opm(&["logs", "--raw", "migrate"]).out.matches("to version").count();
    let migrations = log(&site.world);
    site.world.crash();
    assert_eq!(site.world.opm(&["daemon"]).code, 0);
    site.world.until("all to be adopted", || pids(&site.world) == third);
    assert_eq!(log(&site.world), migrations);
}
