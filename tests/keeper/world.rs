//! A keeper as a process, with directories of its own, and what a supervisor does for it.

use std::fs::{self, File, OpenOptions};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};

use opm::logs::{self, Query};
use opm::model::InstanceId;
use opm::system::instruction::{self, Instruction};

/// How long a fact may take to come true.
pub(crate) const DEADLINE: Duration = Duration::from_mins(1);
/// The variable that makes the test binary a keeper in this directory.
pub(crate) const RUN_DIR: &str = "OPM_TEST_KEEPER_RUN_DIR";
/// The variable that makes it copy all lines to its standard output.
pub(crate) const CONSOLE: &str = "OPM_TEST_KEEPER_CONSOLE";

/// Waits for a fact.
pub(crate) fn until(what: &str, mut fact: impl FnMut() -> bool) {
    let start = Instant::now();
    while !fact() {
        assert!(start.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A process that ends with this value, also when its test fails.
pub(crate) struct Helper(pub(crate) Child);

impl Drop for Helper {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A keeper with its directories; all of it ends with this value.
pub(crate) struct World {
    pub(crate) root: tempfile::TempDir,
    pub(crate) keeper: Child,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(|command| command.stdout(Stdio::null()))
    }

    pub(crate) fn with(set: impl FnOnce(&mut Command) -> &mut Command) -> Self {
        let root = tempfile::tempdir().unwrap();
        let keeper = spawn(root.path(), set);
        Self { root, keeper }
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.root.path().join("logs")
    }

    pub(crate) fn instruction(&self, name: &str, max_size: u64, keep: u32) -> Instruction {
        Instruction { max_size, keep, ..Instruction::in_dir(&self.logs().join(name)) }
    }

    /// Makes a unit as the supervisor does: the FIFO, a descriptor that holds it, the instruction.
    pub(crate) fn unit(&self, name: &str, max_size: u64, keep: u32) -> File {
        self.unit_as(name, &self.instruction(name, max_size, keep))
    }

    pub(crate) fn unit_as(&self, name: &str, instruction: &Instruction) -> File {
        let id = InstanceId::parse(name).unwrap();
        let path = instruction::fifo_path(self.root.path(), &id);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        let fifo = OpenOptions::new().read(true).write(true).open(path).unwrap();
        instruction.write(self.root.path(), &id).unwrap();
        fifo
    }

    /// Every line of the log so far, joined from its parts, with its newline.
    pub(crate) fn text(&self, name: &str) -> Vec<u8> {
        let query = Query::of(&self.logs(), &[name]);
        let mut text = Vec::new();
        // A log that does not exist yet has no text.
        let read = logs::read(&query, None, &mut |record| {
            text.extend_from_slice(&record.bytes);
            text.extend((!record.partial).then_some(b'\n'));
            Ok(())
        });
        if read.is_err() { Vec::new() } else { text }
    }

    pub(crate) fn until_text(&self, name: &str, expected: &[u8]) {
        let is_end = |record: &logs::Record| {
            let rest = expected.strip_suffix(if record.partial { &b""[..] } else { b"\n" });
            rest.is_some_and(|rest| rest.ends_with(&record.bytes))
        };
        until(&format!("{} bytes in the log of {name}", expected.len()), || {
            // The whole log is read only when its end looks right.
            logs::last_lines(&self.logs(), name, 1).iter().all(is_end)
                && self.text(name).len() >= expected.len()
        });
        let text = self.text(name);
        assert!(text == expected, "the log of {name} differs; it has {} bytes", text.len());
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.keeper.id().try_into().unwrap()), signal).unwrap();
    }

    /// Ends the keeper by `SIGTERM`; it has to end well.
    pub(crate) fn stop(&mut self) {
        self.signal(Signal::SIGTERM);
        let mut status = None;
        until("the keeper ends", || {
            status = self.keeper.try_wait().unwrap();
            status.is_some()
        });
        assert_eq!(status.unwrap().into_raw(), 0);
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.keeper.try_wait().unwrap().is_none()
    }

    pub(crate) fn status(&self, field: &str) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.keeper.id())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        line.trim_matches([':', '\t', ' ', 'k', 'B']).parse().unwrap()
    }

    /// What the keeper has open.
    pub(crate) fn open_files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(format!("/proc/{}/fd", self.keeper.id())).unwrap();
        entries.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok()).collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.keeper.kill());
        drop(self.keeper.wait());
    }
}

pub(crate) fn spawn(run_dir: &Path, set: impl FnOnce(&mut Command) -> &mut Command) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "keeper_process", "--nocapture"]).env(RUN_DIR, run_dir);
    command.stderr(Stdio::null()).stdin(Stdio::null());
    set(&mut command).spawn().unwrap()
}
