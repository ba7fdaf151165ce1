//! Processes of a world's namespace, as its /proc shows them.

use std::fs;

use super::World;

impl World {
    /// Whether a pid of the namespace is a process that is not dead.
    pub fn alive(&self, pid: i32) -> bool {
        let proc = self.proc().unwrap_or_else(|| "/proc".into());
        let stat = fs::read_to_string(proc.join(format!("{pid}/stat"))).unwrap_or_default();
        stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
    }

    /// The pids of the namespace, zombies too.
    pub fn pids(&self) -> Vec<i32> {
        let proc = self.proc().expect("a namespace");
        let entries = fs::read_dir(proc).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }

    /// A line of a process's `status` file, without its name.
    pub fn status_line(&self, pid: i32, name: &str) -> Option<String> {
        let path = self.proc()?.join(format!("{pid}/status"));
        let text = fs::read_to_string(path).ok()?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value.map(|value| value.trim().to_owned())
    }

    /// How often the threads of a process have gone to wait.
    pub fn waits(&self, pid: i32) -> u64 {
        let threads = fs::read_dir(self.proc().unwrap().join(format!("{pid}/task"))).unwrap();
        let waits = threads.map(|thread| {
            let status = fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
            let mut lines = status.lines();
            let line = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            line.unwrap().trim().parse::<u64>().unwrap()
        });
        waits.sum()
    }

    /// Whether an opm has let go of most of its program, as an idle one does: then none of what came
    /// before has it wake once more.
    pub fn has_let_go(&self, pid: i32) -> bool {
        let path = self.proc().unwrap().join(format!("{pid}/smaps"));
        let smaps = fs::read_to_string(path).unwrap();
        let (_, code) = smaps.split_once(" r-xp ").unwrap();
        let kib = |name| {
            let value = code.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            value.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
        };
        kib("Rss:") < kib("Size:") / 3
    }

    /// The pid that a process of the namespace has here.
    pub fn host_pid(&self, pid: i32) -> Option<i32> {
        let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let ours = namespace(&self.init().to_string())?;
        let entries = fs::read_dir("/proc").ok()?.flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let mut found = names.filter(|name| {
            let text = fs::read_to_string(format!("/proc/{name}/status")).unwrap_or_default();
            let pids = text.lines().find_map(|line| line.strip_prefix("NSpid:"));
            let last = pids.and_then(|pids| pids.split_ascii_whitespace().last()?.parse().ok());
            last == Some(pid) && namespace(name).as_ref() == Some(&ours)
        });
        found.next()?.parse().ok()
    }

    /// The session of a process of the namespace.
    pub fn session(&self, pid: i32) -> Option<i32> {
        let text = fs::read_to_string(self.proc()?.join(format!("{pid}/stat"))).ok()?;
        let (_, rest) = text.rsplit_once(')')?;
        rest.split_ascii_whitespace().nth(3)?.parse().ok()
    }

    /// The arguments of a process of the namespace, with blanks between them.
    pub fn command_line(&self, pid: i32) -> String {
        let proc = self.proc().expect("a namespace");
        let bytes = fs::read(proc.join(format!("{pid}/cmdline"))).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\0', " ")
    }

    /// The live processes that were started for a unit, found by their environment.
    pub fn processes_of(&self, unit: &str) -> Vec<i32> {
        let proc = self.proc().expect("a namespace");
        let mark = format!("OPM_UNIT={unit}");
        let is_of_it = |pid: &i32| {
            let environ = fs::read(proc.join(format!("{pid}/environ"))).unwrap_or_default();
            environ.split(|byte| *byte == 0).any(|entry| entry == mark.as_bytes())
        };
        self.pids().into_iter().filter(is_of_it).collect()
    }
}
