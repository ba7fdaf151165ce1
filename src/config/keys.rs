//! The one table of keys. Decoding asks it which keys are legal at a place; `opm explain`, the
//! schema and the check of opm-unit(5) print it. What a value means is in `decode`.

use serde::Serialize;

use crate::model::Kind;

/// Which kinds of unit have a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Units {
    /// All kinds.
    All,
    /// Those with a process: services and tasks.
    Runs,
    /// Services only.
    Service,
    /// Tasks only.
    Task,
    /// Sockets only.
    Socket,
}

impl Units {
    /// Whether a unit of this kind has it.
    pub fn has(self, kind: Kind) -> bool {
        match self {
            Self::All => true,
            Self::Runs => matches!(kind, Kind::Service | Kind::Task),
            Self::Service => kind == Kind::Service,
            Self::Task => kind == Kind::Task,
            Self::Socket => kind == Kind::Socket,
        }
    }

    /// The words for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::All => "all kinds",
            Self::Runs => "a service or a task",
            Self::Service => "a service",
            Self::Task => "a task",
            Self::Socket => "a socket",
        }
    }
}

/// What a change of a key costs a unit that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// It is taken over at once.
    Live,
    /// The run is restarted.
    Restart,
}

impl Change {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Restart => "restart",
        }
    }
}

/// A key of unit files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Key {
    /// Its name with those of the maps it is in: `restart.limit.starts`. What is in a list has the
    /// list's name before it: `stop.steps.wait`.
    pub path: &'static str,
    /// Which kinds of unit have it.
    pub units: Units,
    /// What its value is, in words.
    pub types: &'static str,
    /// What holds where it is not given, in words; empty for nothing.
    pub default: &'static str,
    /// What a change of it costs.
    pub change: Change,
    /// What it means, in one line.
    pub meaning: &'static str,
    /// False: refused as not supported yet.
    pub supported: bool,
}

impl Key {
    /// The name alone.
    pub fn name(&self) -> &'static str {
        self.path.rsplit_once('.').map_or(self.path, |(_, name)| name)
    }

    /// Whether this is its name alone. Asked a hundred times for each unit, so it looks at the end
    /// first, which tells nearly all keys apart.
    pub(super) fn is_named(&self, name: &str) -> bool {
        let above = self.path.strip_suffix(name);
        above.is_some_and(|above| above.is_empty() || above.ends_with('.'))
    }

    /// The map it is in; empty for the unit itself.
    pub fn parent(&self) -> &'static str {
        self.path.rsplit_once('.').map_or("", |(parent, _)| parent)
    }

    /// Whether `null` is a value of it, and not its absence.
    pub(super) fn takes_null(&self) -> bool {
        self.types.split([' ', ',']).any(|word| word == "null")
    }

    /// Whether it is a map in which every key is the operator's own.
    pub(super) fn is_free(&self) -> bool {
        self.types == "map of texts"
    }

    /// What is left of the path in this map; nothing for a key of another one.
    fn name_in(&self, parent: &str) -> Option<&'static str> {
        if parent.is_empty() {
            return Some(self.path);
        }
        self.path.strip_prefix(parent).and_then(|rest| rest.strip_prefix('.'))
    }
}

/// The key with this path.
pub fn key(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// The key of which this is a value: the one with this path, or the map of an operator's own words in
/// which it is, as `env.PORT` is in `env`.
pub fn key_of(path: &str) -> Option<&'static Key> {
    let free = || path.split_once('.').and_then(|(map, _)| key(map)).filter(|map| map.is_free());
    key(path).or_else(free)
}

/// The keys of a map, in the order of the table; of the unit itself for an empty path.
pub fn children(parent: &str) -> impl Iterator<Item = &'static Key> {
    let is_child = move |key: &&Key| key.name_in(parent).is_some_and(|rest| !rest.contains('.'));
    KEYS.iter().filter(is_child)
}

/// The key of this name in this map.
pub(super) fn child(parent: &str, name: &str) -> Option<&'static Key> {
    let is_it = |key: &&Key| key.name_in(parent) == Some(name);
    KEYS.iter().find(is_it).filter(|_| !name.contains('.'))
}

use Change::{Live, Restart};
use Units::{All, Runs, Service, Socket, Task};

/// A row of the table.
const fn now(
    path: &'static str,
    units: Units,
    types: &'static str,
    default: &'static str,
    change: Change,
    meaning: &'static str,
) -> Key {
    Key { path, units, types, default, change, meaning, supported: true }
}

/// A row for a key of the unit format that is not built.
const fn later(
    path: &'static str,
    units: Units,
    types: &'static str,
    default: &'static str,
    change: Change,
    meaning: &'static str,
) -> Key {
    Key { path, units, types, default, change, meaning, supported: false }
}

/// Every key of opm-unit(5), in its order.
#[rustfmt::skip] // One key, one line: a table.
pub const KEYS: &[Key] = &[
    now("kind", All, "service, task, socket or target", "service", Restart, "what the unit is"),
    now("name", All, "name", "the file's stem", Restart, "its name; needed where a file has several documents"),
    now("description", All, "text", "", Live, "one line for people"),
    now("documentation", All, "list of texts", "[]", Live, "where to read more"),
    now("enabled", All, "true or false", "true", Live, "false: known, but down until `opm start`"),
    now("extends", All, "unit", "", Live, "copies another unit's keys, then these override"),
    now("labels", All, "map of texts", "{}", Live, "for choosing units, as in `opm status -l tier=front`"),
    now("command", Runs, "list of texts, or text", "needed, or shell", Restart, "the program and its arguments: a list as written, a text split by shell quoting, without a shell"),
    now("shell", Runs, "text", "", Restart, "instead of command: run by /bin/sh -c"),
    now("working_dir", Runs, "path", "the unit file's directory", Restart, "where the program runs"),
    now("env", Runs, "map of texts", "{}", Restart, "variables, each the text that was written"),
    now("env_files", Runs, "list of paths", "[]", Restart, "files of NAME=value lines; later ones win, env wins over all"),
    now("env_files.path", Runs, "path", "needed", Restart, "which file"),
    now("env_files.optional", Runs, "true or false", "false", Restart, "whether it may be missing"),
    now("inherit_env", Runs, "true, false or list of names", "true", Restart, "what is taken from the supervisor's own environment"),
    later("secrets", Runs, "map", "{}", Restart, "files in $OPM_SECRETS_DIR, never in the environment"),
    later("secrets.file", Runs, "path", "", Restart, "where the secret is read"),
    now("stdin", Runs, "null, logs or {file: path}", "null", Restart, "standard input; logs: what the units write whose `logs.to` names it"),
    now("stdin.file", Runs, "path", "", Restart, "the file it reads"),
    later("tty", Runs, "path", "null", Restart, "the terminal it runs on"),
    now("user", Runs, "name or number", "the supervisor's", Restart, "the user it runs as"),
    now("group", Runs, "name or number", "the user's own", Restart, "the group it runs as"),
    now("supplementary_groups", Runs, "list of names or numbers", "[]", Restart, "groups beside those that the user has anyway"),
    now("umask", Runs, "octal digits", "022", Restart, "file mode creation mask; octal, quoted or not"),
    later("directories", Runs, "map", "{}", Restart, "directories made and owned for the unit"),
    later("directories.runtime", Runs, "list of names", "[]", Restart, "directories for what lives as long as the run"),
    later("directories.state", Runs, "list of names", "[]", Restart, "directories for lasting data"),
    later("directories.logs", Runs, "list of names", "[]", Restart, "directories for log files"),
    later("directories.cache", Runs, "list of names", "[]", Restart, "directories for what can be made again"),
    now("requires", All, "list of units", "[]", Live, "ordered after these, and not up unless they are"),
    now("requires.unit", All, "unit", "needed", Live, "the other unit"),
    now("requires.condition", All, "started, ready or completed", "ready", Live, "how far it must have come"),
    now("wants", All, "list of units", "[]", Live, "ordered after these, and goes on without one that fails"),
    now("wants.unit", All, "unit", "needed", Live, "the other unit"),
    now("wants.condition", All, "started, ready or completed", "ready", Live, "how far it must have come"),
    now("after", Runs, "list of units", "[]", Live, "ordered after these, where they are wanted anyway"),
    now("after.unit", Runs, "unit", "needed", Live, "the other unit"),
    now("after.condition", Runs, "started, ready or completed", "ready", Live, "how far it must have come"),
    now("before", Runs, "list of units", "[]", Live, "ordered before these, where they are wanted anyway"),
    now("before.unit", Runs, "unit", "needed", Live, "the other unit"),
    now("before.condition", Runs, "started, ready or completed", "ready", Live, "how far it must have come"),
    now("conflicts", Runs, "list of units", "[]", Live, "never up at the same time as these"),
    now("on_dependency_restart", Runs, "ignore, restart or reload", "ignore", Live, "what follows when a required unit restarted by itself"),
    now("conditions", Runs, "map", "{}", Live, "what must hold for it to start at all; else it is skipped"),
    now("conditions.path_exists", Runs, "list of paths", "[]", Live, "these paths exist"),
    now("conditions.env", Runs, "list of names", "[]", Live, "these variables are set and not empty"),
    now("conditions.command", Runs, "list of texts, or text", "", Live, "this command exits 0"),
    now("instances", Runs, "number from 1 to 1000, or list of names", "1", Live, "how many run, or one for each name; ${instance} tells them apart"),
    now("restart", Runs, "always, on-failure or never, or map", "on-failure; a task: never", Live, "which ends lead to another run"),
    now("restart.policy", Runs, "always, on-failure or never", "on-failure; a task: never", Live, "which ends lead to another run"),
    now("restart.delay", Runs, "duration", "200ms", Live, "the wait before the first restart"),
    now("restart.factor", Runs, "number from 1 to 100", "2", Live, "by how much each further wait grows"),
    now("restart.max_delay", Runs, "duration", "30s", Live, "the longest wait"),
    now("restart.jitter", Runs, "number from 0 to 1", "0.1", Live, "which part of the wait is left to chance"),
    now("restart.reset_after", Runs, "duration", "10s", Live, "so long ready counts as stable: waits begin anew"),
    now("restart.limit", Runs, "map", "no limit", Live, "how many starts are too many"),
    now("restart.limit.starts", Runs, "number from 1 to 100", "needed", Live, "the most starts"),
    now("restart.limit.within", Runs, "duration above 0", "needed", Live, "in this time"),
    now("restart.at_limit", Runs, "fail, shutdown or {start: unit}", "fail", Live, "what follows at the limit"),
    now("restart.at_limit.start", Runs, "unit", "", Live, "this unit is started"),
    now("success_exit", Runs, "list of exit codes and signals", "[0]", Live, "which ends are successes"),
    now("on_success", Runs, "none, shutdown or {start: unit}", "none", Live, "what follows when it ended well for good"),
    now("on_success.start", Runs, "unit", "", Live, "this unit is started"),
    now("on_failure", Runs, "none, shutdown or {start: unit}", "none", Live, "what follows when it failed for good"),
    now("on_failure.start", Runs, "unit", "", Live, "this unit is started"),
    now("essential", Runs, "true or false", "false", Live, "true: when it ends for good, opm shuts down with its exit code"),
    now("ready", Service, "map with one key", "ready when its program runs", Restart, "how it says that it is ready"),
    now("ready.notify", Service, "true", "", Restart, "by READY=1 on the notify socket, sd_notify(3)"),
    now("ready.fd", Service, "number from 3 to 1023", "", Restart, "by a newline on this descriptor"),
    now("ready.file", Service, "path", "", Restart, "when this file is there, made or changed since the start"),
    now("ready.delay", Service, "duration", "", Restart, "this time after its program runs"),
    now("ready.tcp", Service, "address", "", Restart, "when this address takes a connection"),
    now("ready.unix", Service, "path", "", Restart, "when this socket takes a connection"),
    now("ready.http", Service, "URL", "", Restart, "when this URL answers"),
    now("ready.expect", Service, "number from 100 to 599", "any from 200 to 399", Restart, "the status that http must answer"),
    now("ready.exec", Service, "list of texts, or text", "", Restart, "when this command exits 0"),
    now("ready.interval", Service, "duration of 10ms or more", "1s", Restart, "how often tcp, unix, http and exec ask"),
    now("ready.timeout", Service, "duration of 10ms or more", "3s", Restart, "how long one answer may take"),
    now("ready.log", Service, "regular expression", "", Restart, "when a line of its output matches"),
    now("start_timeout", Runs, "duration or never", "60s", Live, "how long it may take from its start to ready"),
    now("health", Service, "map", "none", Live, "how it is watched while it is up"),
    now("health.http", Service, "URL", "", Live, "this URL answers"),
    now("health.tcp", Service, "address", "", Live, "this address takes a connection"),
    now("health.exec", Service, "list of texts, or text", "", Live, "this command exits 0"),
    now("health.memory", Service, "size", "", Live, "its processes hold less than this"),
    now("health.interval", Service, "duration of 10ms or more", "10s", Live, "how often"),
    now("health.timeout", Service, "duration of 10ms or more", "3s", Live, "how long one check may take"),
    now("health.retries", Service, "number from 1 to 100", "3", Live, "how many failures in a row count"),
    now("health.start_period", Service, "duration", "30s", Live, "so long failures do not count"),
    now("health.on_failure", Service, "restart, none or shutdown", "restart", Live, "what follows"),
    now("watchdog", Service, "duration of 10ms or more", "none", Restart, "the longest silence on the notify socket once it is ready, sd_notify(3)"),
    now("pid_file", Service, "path", "none", Restart, "where a program that forks away writes its main process"),
    now("pre_start", Runs, "list of commands", "[]", Live, "one after another before the main process"),
    now("pre_start.command", Runs, "list of texts, or text", "needed", Live, "what is run"),
    now("pre_start.ignore_failure", Runs, "true or false", "false", Live, "whether its failure is passed over"),
    now("pre_start.user", Runs, "name or number", "the unit's user", Live, "as whom"),
    now("post_start", Runs, "list of commands", "[]", Live, "one after another when the run is ready"),
    now("post_start.command", Runs, "list of texts, or text", "needed", Live, "what is run"),
    now("post_start.ignore_failure", Runs, "true or false", "false", Live, "whether its failure is passed over"),
    now("post_start.user", Runs, "name or number", "the unit's user", Live, "as whom"),
    now("pre_stop", Runs, "list of commands", "[]", Live, "one after another before a stop that was asked for"),
    now("pre_stop.command", Runs, "list of texts, or text", "needed", Live, "what is run"),
    now("pre_stop.ignore_failure", Runs, "true or false", "false", Live, "whether its failure is passed over"),
    now("pre_stop.user", Runs, "name or number", "the unit's user", Live, "as whom"),
    now("post_stop", Runs, "list of commands", "[]", Live, "one after another when all its processes are gone, however it ended"),
    now("post_stop.command", Runs, "list of texts, or text", "needed", Live, "what is run"),
    now("post_stop.ignore_failure", Runs, "true or false", "false", Live, "whether its failure is passed over"),
    now("post_stop.user", Runs, "name or number", "the unit's user", Live, "as whom"),
    now("reload", Service, "map with one key", "none", Live, "how it is told to read its configuration again"),
    now("reload.signal", Service, "signal", "", Live, "by a signal to its main process"),
    now("reload.command", Service, "list of texts, or text", "", Live, "by a command"),
    now("stop", Runs, "map", "{signal: TERM, timeout: 10s, to: all}", Live, "how it is stopped, before KILL to all of it"),
    now("stop.signal", Runs, "signal", "TERM", Live, "what is sent first"),
    now("stop.timeout", Runs, "duration or never", "10s", Live, "how long it may take to end"),
    now("stop.to", Runs, "all or main", "all", Live, "who gets the signals: all its processes, or the main one"),
    now("stop.steps", Runs, "list of maps", "", Live, "instead of signal and timeout: what is tried, in order"),
    now("stop.steps.signal", Runs, "signal", "", Live, "sends a signal"),
    now("stop.steps.command", Runs, "list of texts, or text", "", Live, "runs a command"),
    now("stop.steps.wait", Runs, "duration or never", "10s", Live, "how long it may take to work"),
    later("stop.leave", Runs, "true or false", "false", Live, "true: only the main process is ended"),
    now("watch", Service, "map", "none", Live, "files whose change restarts or reloads it while it is up"),
    now("watch.paths", Service, "list of paths", "needed", Live, "which files; a directory with all below it"),
    now("watch.debounce", Service, "duration", "500ms", Live, "how long it must be quiet after a change"),
    now("watch.action", Service, "restart or reload", "restart", Live, "what follows"),
    now("logs", Runs, "map", "{to: file}", Live, "where its output goes and how much is kept"),
    now("logs.to", Runs, "file, console, inherit, null, syslog or map with one key", "file", Live, "where its output goes; to or from inherit or null: restart"),
    now("logs.to.path", Runs, "path", "", Live, "this file"),
    now("logs.to.syslog", Runs, "map", "", Live, "a syslog daemon"),
    now("logs.to.syslog.address", Runs, "/socket, udp://host:port or tcp://host:port", "/dev/log", Live, "where it listens"),
    now("logs.to.syslog.facility", Runs, "facility", "daemon", Live, "what kind of program the unit is"),
    now("logs.to.syslog.format", Runs, "rfc5424 or rfc3164", "rfc3164 at a socket, else rfc5424", Live, "which form of message it understands"),
    now("logs.to.unit", Runs, "unit", "", Live, "the standard input of this service, which has `stdin: logs`"),
    now("logs.format", Runs, "text, json or raw", "text; to path raw, to unit json", Live, "how a line is written"),
    now("logs.max_size", Runs, "size of 1K or more", "10M", Live, "how large one file may become"),
    now("logs.keep", Runs, "number from 0 to 1000", "5", Live, "how many finished files are kept"),
    now("logs.max_age", Runs, "duration of 1ms or more", "none", Live, "how long finished files are kept"),
    now("logs.compress", Runs, "true or false", "false", Live, "whether finished files are compressed"),
    now("logs.rate", Runs, "map", "none", Live, "how many lines are taken"),
    now("logs.rate.lines", Runs, "number from 1 to 1000000000", "needed", Live, "so many lines"),
    now("logs.rate.per", Runs, "duration of 1ms or more", "1s", Live, "in this time"),
    now("limits", Runs, "map", "unchanged", Restart, "resource limits: a number, a size where bytes are meant, soft:hard, or unlimited"),
    now("limits.as", Runs, "size", "unchanged", Restart, "address space, in bytes"),
    now("limits.core", Runs, "size", "unchanged", Restart, "core file, in bytes"),
    now("limits.cpu", Runs, "number", "unchanged", Restart, "processor time, in seconds"),
    now("limits.data", Runs, "size", "unchanged", Restart, "data segment, in bytes"),
    now("limits.fsize", Runs, "size", "unchanged", Restart, "a written file, in bytes"),
    now("limits.locks", Runs, "number", "unchanged", Restart, "file locks"),
    now("limits.memlock", Runs, "size", "unchanged", Restart, "locked memory, in bytes"),
    now("limits.msgqueue", Runs, "size", "unchanged", Restart, "message queues, in bytes"),
    now("limits.nice", Runs, "number", "unchanged", Restart, "ceiling of nice, as 20 less the nice value"),
    now("limits.nofile", Runs, "number", "unchanged", Restart, "one more than the highest descriptor"),
    now("limits.nproc", Runs, "number", "unchanged", Restart, "processes of the user"),
    now("limits.rss", Runs, "size", "unchanged", Restart, "resident memory, in bytes"),
    now("limits.rtprio", Runs, "number", "unchanged", Restart, "real-time priority"),
    now("limits.rttime", Runs, "number", "unchanged", Restart, "real-time processor time, in microseconds"),
    now("limits.sigpending", Runs, "number", "unchanged", Restart, "queued signals"),
    now("limits.stack", Runs, "size", "unchanged", Restart, "stack, in bytes"),
    later("resources", Runs, "map", "{}", Live, "limits of its cgroup"),
    later("resources.memory", Runs, "size", "none", Live, "the most memory"),
    later("resources.memory_high", Runs, "size", "none", Live, "memory from which it is slowed"),
    later("resources.cpu", Runs, "number", "none", Live, "the most processors"),
    later("resources.cpu_weight", Runs, "number", "none", Live, "its share of the processors"),
    later("resources.pids", Runs, "number", "none", Live, "the most processes"),
    later("resources.io_weight", Runs, "number", "none", Live, "its share of input and output"),
    now("nice", Runs, "number from -20 to 19", "unchanged", Restart, "scheduling niceness"),
    later("io_priority", Runs, "map", "unchanged", Restart, "input and output priority"),
    later("io_priority.class", Runs, "realtime, best-effort or idle", "best-effort", Restart, "the class"),
    later("io_priority.level", Runs, "number from 0 to 7", "4", Restart, "the level in the class"),
    now("oom_score_adjust", Runs, "number from -1000 to 1000", "unchanged", Restart, "the kernel's out-of-memory preference"),
    later("cpu_affinity", Runs, "list of numbers", "unchanged", Restart, "the processors it may use"),
    later("scheduler", Runs, "other, batch, idle, fifo or rr", "other", Restart, "the scheduling policy"),
    later("security", Runs, "map", "{}", Restart, "what it may not do"),
    later("security.no_new_privileges", Runs, "true or false", "true when user is not root", Restart, "whether it may gain rights by exec"),
    later("security.capabilities", Runs, "list of names", "unchanged", Restart, "exactly these, ambient"),
    later("security.filesystem", Runs, "map", "unrestricted", Restart, "what it may touch, by Landlock"),
    later("security.filesystem.read", Runs, "list of paths", "[]", Restart, "what it may read"),
    later("security.filesystem.write", Runs, "list of paths", "[]", Restart, "what it may write"),
    later("security.filesystem.execute", Runs, "list of paths", "[]", Restart, "what it may run"),
    later("security.system_calls", Runs, "map", "unrestricted", Restart, "which system calls it may make"),
    later("security.system_calls.deny", Runs, "list of names", "[]", Restart, "these are refused"),
    later("security.private_tmp", Runs, "true or false", "false", Restart, "a /tmp of its own"),
    later("security.private_network", Runs, "true or false", "false", Restart, "a network of its own"),
    later("security.read_only_paths", Runs, "list of paths", "[]", Restart, "it cannot write these"),
    later("security.hidden_paths", Runs, "list of paths", "[]", Restart, "it cannot see these"),
    now("schedule", Task, "cron expression", "none", Live, "when it runs"),
    now("every", Task, "duration of 1s or more", "none", Live, "how often it runs"),
    now("calendar", Task, "calendar expression", "none", Live, "when it runs"),
    now("timezone", Task, "time zone", "the system's", Live, "what its times mean"),
    now("jitter", Task, "duration", "0", Live, "how much of its time is left to chance"),
    now("catch_up", Task, "true or false", "false", Live, "whether a missed run is made up for"),
    now("overlap", Task, "skip, queue or kill", "skip", Live, "what follows when it is due while it runs"),
    now("listen", Socket, "list of maps", "needed", Restart, "where it listens; what is in the old list and in the new one stays open"),
    now("listen.tcp", Socket, "ADDRESS:PORT", "", Restart, "a TCP address"),
    now("listen.udp", Socket, "ADDRESS:PORT", "", Restart, "a UDP address"),
    now("listen.unix", Socket, "path", "", Restart, "a Unix stream socket"),
    now("listen.name", Socket, "text", "the unit's name", Restart, "its name in LISTEN_FDNAMES"),
    now("listen.mode", Socket, "octal digits", "0660", Restart, "the mode of a Unix socket"),
    now("listen.user", Socket, "name or number", "the supervisor's", Restart, "the owner of a Unix socket"),
    now("listen.group", Socket, "name or number", "the supervisor's", Restart, "the group of a Unix socket"),
    now("for", Socket, "unit", "needed", Restart, "the service that gets the sockets"),
    now("accept", Socket, "lazy or eager", "lazy", Live, "whether the first connection starts the service, or whatever starts the socket"),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::model::Resource;

    #[test]
    fn no_key_is_there_twice_and_each_has_its_parent() {
        let mut seen = BTreeSet::new();
        for row in KEYS {
            assert!(seen.insert(row.path), "{} twice", row.path);
            assert!(row.parent().is_empty() || seen.contains(row.parent()), "{}", row.path);
            let parent = key(row.parent());
            assert!(parent.is_none_or(|parent| parent.supported || !row.supported), "{}", row.path);
            assert_eq!(child(row.parent(), row.name()), Some(row));
            assert!(KEYS.iter().all(|key| key.is_named(row.name()) == (key.name() == row.name())));
            assert!(!row.meaning.is_empty() && !row.meaning.ends_with('.'), "{}", row.path);
        }
    }

    #[test]
    fn the_limits_are_those_of_the_kernel() {
        let table: Vec<&str> = children("limits").map(Key::name).collect();
        assert_eq!(table, Resource::ALL.map(|(name, _)| name));
    }

    #[test]
    fn a_key_is_found_by_its_path() {
        assert_eq!(key("restart.delay").map(|key| key.default), Some("200ms"));
        assert_eq!(key("restart.limit.starts").map(Key::parent), Some("restart.limit"));
        assert_eq!(key("web.restart"), None);
        assert_eq!(key_of("env.A.B").map(|key| key.path), Some("env"));
        assert_eq!(key_of("restart.A"), None);
        assert!(children("stop").any(|key| key.name() == "leave" && !key.supported));
        assert_eq!(child("", "restart.delay"), None);
    }

    #[test]
    fn the_words_for_values_tell_where_null_is_one_and_which_maps_are_free() {
        let those = |is: fn(&Key) -> bool| -> Vec<&str> {
            KEYS.iter().filter(|key| is(key)).map(|key| key.path).collect()
        };
        assert_eq!(those(Key::takes_null), ["stdin", "logs.to"]);
        assert_eq!(those(Key::is_free), ["labels", "env"]);
    }
}
