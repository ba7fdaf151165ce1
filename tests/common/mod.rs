//! A world for tests with real processes: a scratch directory and a pid namespace of its own, so
//! that the kernel cleans up whatever a test leaves behind.
//!
//! PID 1 of the namespace is `opm run -- sleep infinity`: it reaps, and does nothing else. The opm
//! under test runs beside it, or, with [`World::pid_one`], is PID 1 itself.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at the first surprise"
)]
#![expect(clippy::disallowed_methods, reason = "tests run programs, and wait for them")]
#![expect(dead_code, reason = "each test file uses a part")]
#![expect(unreachable_pub, clippy::print_stderr, reason = "read the code")]

pub mod far;
mod look;
pub mod postgres;
pub mod random;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long a test waits for a fact before it fails.
pub const PATIENCE: Duration = Duration::from_secs(90);

pub const OPM: &str = env!("CARGO_BIN_EXE_opm");

/// A service that says when it starts, and notices when it runs twice at the same time: it holds an
/// exclusive lock for as long as any of its processes lives.
pub fn witness(name: &str) -> String {
    format!(
        "exec 9>>{name}.lock; flock -n 9 || {{ echo {name} >> doubles; exit 99; }}; \
         echo $$ >> {name}.starts; "
    )
}

/// The keys of a unit that runs a shell script in the scratch directory. A JSON text is a YAML one.
pub fn in_shell(script: &str) -> String {
    let script = serde_json::to_string(script).unwrap();
    format!("command: [sh, -c, {script}]\nworking_dir: ..\n")
}

pub fn skip(why: &str) {
    assert!(!tests_all(), "may not be skipped here: {why}");
    eprintln!("skipped: {why}");
}

/// Whether everything is to be tried, however long it takes.
pub fn tests_all() -> bool {
    std::env::var("OPM_TESTS").as_deref() == Ok("all")
}

pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// The options of unshare(1) that give a pid namespace here.
fn unshare_options() -> Vec<&'static str> {
    let mut options = vec!["--pid", "--fork", "--mount-proc", "--kill-child"];
    if !is_root() {
        options.extend(["--user", "--map-root-user"]);
    }
    options
}

/// Whether pid namespaces can be had.
pub fn has_namespaces() -> bool {
    let works = Command::new("unshare")
        .args(unshare_options())
        .arg("true")
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !works {
        skip("no pid namespaces for this user");
    }
    works
}

pub struct World {
    pub dir: tempfile::TempDir,
    holder: Option<Child>,
    daemons: Vec<Child>,
    pub env: Vec<(String, String)>,
}

impl World {
    /// A namespace with a reaping PID 1; `None` where there are none.
    pub fn new() -> Option<Self> {
        if !has_namespaces() {
            return None;
        }
        let mut world = Self::bare();
        let holder = Command::new("unshare")
            .args(unshare_options())
            .args([OPM, "run", "--", "sleep", "infinity"])
            .stdin(Stdio::null())
            .spawn()
            .expect("unshare");
        let unshare = holder.id();
        world.holder = Some(holder);
        until("the namespace", || child_of(unshare).is_some());
        // The namespace's own /proc is mounted before PID 1 runs; until then ours is seen there.
        let device = |proc: &Path| fs::metadata(proc).ok().map(|found| found.dev());
        let ours = device(Path::new("/proc"));
        until("its /proc", || world.proc().is_some_and(|proc| device(&proc) != ours));
        until("the command of its PID 1", || world.pids().len() > 1);
        Some(world)
    }

    /// A scratch directory without a namespace.
    pub fn bare() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("units")).unwrap();
        Self { dir, holder: None, daemons: Vec::new(), env: Vec::new() }
    }

    /// A namespace whose PID 1 is opm itself, with these arguments after `opm --root ROOT`.
    pub fn pid_one(args: &[&str]) -> Option<Self> {
        let mut world = Self::bare();
        world.start_pid_one(args).then_some(world)
    }

    pub fn start_pid_one(&mut self, args: &[&str]) -> bool {
        if !has_namespaces() {
            return false;
        }
        let log = fs::File::options().append(true).create(true).open(self.path("opm.out")).unwrap();
        let holder = Command::new("unshare")
            .args(unshare_options())
            .arg(OPM)
            .arg("--root")
            .arg(self.root())
            .args(args)
            .envs(self.env.iter().cloned())
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("unshare");
        let unshare = holder.id();
        self.holder = Some(holder);
        until("the namespace", || child_of(unshare).is_some());
        true
    }

    /// Host pid of the namespace's PID 1.
    pub fn init(&self) -> u32 {
        child_of(self.holder.as_ref().expect("a namespace").id()).expect("its PID 1")
    }

    /// Waits until the namespace's PID 1 is over; its exit code.
    pub fn wait_init(&mut self) -> i32 {
        let holder = self.holder.as_mut().expect("a namespace");
        let began = Instant::now();
        loop {
            if let Some(status) = holder.try_wait().unwrap() {
                use std::os::unix::process::ExitStatusExt;
                return status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
            }
            assert!(began.elapsed() < PATIENCE, "PID 1 does not end\n{}", self.log());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The namespace's /proc as seen from here.
    pub fn proc(&self) -> Option<PathBuf> {
        let init = child_of(self.holder.as_ref()?.id())?;
        Some(PathBuf::from(format!("/proc/{init}/root/proc")))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn root(&self) -> PathBuf {
        self.path("root")
    }

    /// Writes a unit file.
    pub fn unit(&self, name: &str, text: &str) {
        fs::write(self.path("units").join(format!("{name}.yaml")), text).unwrap();
    }

    /// Writes a service that runs a shell script in the scratch directory; its output goes nowhere.
    pub fn service(&self, name: &str, script: &str, more: &str) {
        self.unit(name, &format!("{}logs: {{to: null}}\n{more}", in_shell(script)));
    }

    /// The same as a task.
    pub fn task(&self, name: &str, script: &str, more: &str) {
        self.service(name, script, &format!("kind: task\n{more}"));
    }

    /// A unit that stays, and writes its pid where [`World::starts`] counts.
    pub fn staying(&self, name: &str, more: &str) {
        self.service(name, &format!("echo $$ >> {name}.starts; exec sleep 1000"), more);
    }

    /// How often a unit of [`World::staying`] was started.
    pub fn starts(&self, name: &str) -> usize {
        self.lines(&format!("{name}.starts")).len()
    }

    pub fn remove_unit(&self, name: &str) {
        fs::remove_file(self.path("units").join(format!("{name}.yaml"))).unwrap();
    }

    /// A program in the namespace.
    pub fn command(&self, program: &str) -> Command {
        let mut command = match &self.holder {
            Some(_) => {
                let mut command = Command::new("nsenter");
                command.args(["-t", &self.init().to_string(), "-p", "-m"]);
                command.arg(format!("--wd={}", self.dir.path().display()));
                if !is_root() {
                    command.args(["-U", "--preserve-credentials"]);
                }
                command.arg("--").arg(program);
                command
            }
            None => Command::new(program),
        };
        command.envs(self.env.iter().cloned()).current_dir(self.dir.path()).stdin(Stdio::null());
        command
    }

    /// Runs `opm` with these arguments, and takes all it says.
    ///
    /// One that hangs is ended by timeout(1), with code 124.
    pub fn opm(&self, args: &[&str]) -> Said {
        let mut command = self.command("timeout");
        command.args(["120", OPM, "--root"]).arg(self.root()).args(args);
        Said::of(&command.output().expect("opm runs"))
    }

    /// `opm apply units/`, which has to end with this code.
    pub fn apply(&self, code: i32) -> Said {
        let said = self.opm(&["apply", "units"]);
        assert_eq!(said.code, code, "{said:?}\n{}", self.log());
        said
    }

    /// Starts `opm run units` in the foreground, beside the namespace's PID 1.
    pub fn run(&mut self) {
        self.run_with(&["run", "units"]);
    }

    pub fn run_with(&mut self, args: &[&str]) {
        let log = fs::File::options().append(true).create(true).open(self.path("opm.out")).unwrap();
        let mut command = self.command(OPM);
        command.arg("--root").arg(self.root()).args(args);
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.spawn(command);
    }

    /// Starts an opm that stays; it counts as the one that was started last.
    pub fn spawn(&mut self, mut command: Command) -> &mut Child {
        self.daemons.push(command.spawn().expect("opm runs"));
        self.daemons.last_mut().expect("the one just started")
    }

    /// Starts an `opm` command beside others; [`Said::of_child`] waits for it.
    pub fn begin(&self, args: &[&str]) -> Child {
        let mut command = self.command(OPM);
        command.arg("--root").arg(self.root()).args(args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("opm runs")
    }

    /// Waits for the opm that was started last; its exit code.
    pub fn wait_run(&mut self) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        let mut daemon = self.daemons.pop().expect("a running opm");
        let began = Instant::now();
        loop {
            if let Some(status) = daemon.try_wait().unwrap() {
                return status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
            }
            assert!(began.elapsed() < PATIENCE, "opm does not end\n{}", self.log());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The pid, in the namespace, of the opm that holds the lock.
    pub fn daemon_pid(&self) -> Option<i32> {
        // As the namespace sees it: a test may have mounted something there.
        let lock = self.root().join("state/lock");
        let lock = match self.proc() {
            Some(_) => format!("/proc/{}/root{}", self.init(), lock.display()).into(),
            None => lock,
        };
        fs::read_to_string(lock).ok()?.trim().parse().ok()
    }

    /// Sends a signal to a pid of the namespace.
    pub fn kill(&self, signal: &str, pid: i32) {
        // When PID 1 ends, so does every kill(1) in its namespace: that one is sent from outside.
        let (mut kill, pid) = match (&self.holder, pid) {
            (Some(_), 1) => (Command::new("kill"), self.init().to_string()),
            _ => (self.command("kill"), pid.to_string()),
        };
        let status = kill.args(["-s", signal, "--", &pid]).status();
        assert!(status.unwrap().success(), "kill -{signal} {pid}");
    }

    /// `kill -9` of the daemon, and waits until it is gone.
    pub fn crash(&mut self) {
        let pid = self.daemon_pid().expect("a daemon");
        self.kill("KILL", pid);
        until("the daemon's death", || !self.alive(pid));
        self.reap_daemons();
    }

    /// `kill -9` of whatever opm was started last, if it got so far as to be one.
    pub fn crash_if_any(&mut self) {
        for daemon in &mut self.daemons {
            // nsenter's own pid is not opm's: its child in the namespace is.
            let id = daemon.id();
            until("nsenter's child", || {
                child_of(id).is_some() || daemon.try_wait().unwrap().is_some()
            });
            if let Some(pid) = child_of(id) {
                Command::new("kill").args(["-9", &pid.to_string()]).output().unwrap();
            }
        }
        self.reap_daemons();
    }

    /// Waits for the opms that a test has ended by itself.
    pub fn reap_daemons(&mut self) {
        for mut daemon in self.daemons.drain(..) {
            daemon.wait().unwrap();
        }
    }

    /// The pid that a file in the scratch directory holds, once it is written whole.
    pub fn pid_in(&self, name: &str) -> Option<i32> {
        self.read(name).strip_suffix('\n')?.trim().parse().ok()
    }

    /// What a file in the scratch directory says; nothing where there is none.
    pub fn read(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.path(name)).unwrap_or_default()).into_owned()
    }

    /// The lines of a file in the scratch directory.
    pub fn lines(&self, name: &str) -> Vec<String> {
        self.read(name).lines().map(str::to_owned).collect()
    }

    /// The rows of `opm status --json`.
    pub fn rows(&self) -> Vec<serde_json::Value> {
        let said = self.opm(&["status", "--json"]);
        serde_json::from_str(&said.out).unwrap_or_default()
    }

    /// One row, by its instance.
    pub fn row(&self, instance: &str) -> serde_json::Value {
        self.rows()
            .into_iter()
            .find(|row| row["instance"] == instance)
            .unwrap_or(serde_json::Value::Null)
    }

    pub fn phase(&self, instance: &str) -> String {
        self.row(instance)
            .get("phase")
            .and_then(|phase| phase.as_str())
            .unwrap_or("absent")
            .to_owned()
    }

    pub fn pid(&self, instance: &str) -> Option<i32> {
        self.row(instance)
            .get("pid")
            .and_then(serde_json::Value::as_i64)
            .and_then(|pid| i32::try_from(pid).ok())
    }

    /// Waits until an instance is in a phase.
    pub fn until_phase(&self, instance: &str, phase: &str) {
        self.until(&format!("{instance} to be {phase}"), || self.phase(instance) == phase);
    }

    /// Waits for a fact; where it does not come, says how things are.
    pub fn until(&self, what: &str, fact: impl FnMut() -> bool) {
        if !comes_true(fact) {
            let status = self.opm(&["status"]);
            panic!("waited in vain for {what}\n{}\n{}\n{}", status.out, status.err, self.log());
        }
    }

    /// What opm itself said, without the times.
    pub fn log(&self) -> String {
        let background = fs::read(self.root().join("log/opm.log")).unwrap_or_default();
        let text = format!("{}{}", self.read("opm.out"), String::from_utf8_lossy(&background));
        let bare = |line: &str| match line.split_once(' ') {
            Some((time, rest)) if rest.starts_with("opm: ") && time.ends_with('Z') => {
                format!("{rest}\n")
            }
            _ => format!("{line}\n"),
        };
        text.lines().map(bare).collect()
    }

    /// The ledger's file.
    pub fn ledger(&self) -> PathBuf {
        let run = fs::read_dir(self.root().join("run")).unwrap();
        let is_ledger = |path: &PathBuf| path.extension().is_some_and(|end| end == "jsonl");
        run.map(|entry| entry.unwrap().path()).find(is_ledger).unwrap()
    }

    /// No witness ever saw a second copy of itself.
    pub fn assert_no_doubles(&self) {
        assert_eq!(self.read("doubles"), "", "ran twice at the same time\n{}", self.log());
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(holder) = &mut self.holder {
            holder.kill().ok();
            holder.wait().ok();
        }
        for daemon in &mut self.daemons {
            daemon.kill().ok();
            daemon.wait().ok();
        }
    }
}

/// What a command said, and how it ended.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Said {
    /// Waits for what [`World::begin`] started.
    pub fn of_child(child: Child) -> Self {
        Self::of(&child.wait_with_output().expect("opm ends"))
    }

    fn of(output: &Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// The first child of a process.
pub fn child_of(pid: u32) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    text.split_ascii_whitespace().next()?.parse().ok()
}

pub fn comes_true(mut fact: impl FnMut() -> bool) -> bool {
    let began = Instant::now();
    while !fact() {
        if began.elapsed() > PATIENCE {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

pub fn until(what: &str, fact: impl FnMut() -> bool) {
    assert!(comes_true(fact), "waited in vain for {what}");
}

pub fn now() -> Instant {
    Instant::now()
}

/// Lets time pass in which something must not happen.
pub fn watch_for(time: Duration, mut wrong: impl FnMut() -> bool, what: &str) {
    let began = Instant::now();
    while began.elapsed() < time {
        assert!(!wrong(), "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub fn shell(dir: &Path, script: &str) -> Output {
    Command::new("sh").args(["-c", script]).current_dir(dir).output().unwrap()
}
