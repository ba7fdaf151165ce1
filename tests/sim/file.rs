//! Unit files of random worlds: a program, and keys that were left to chance.

use std::fmt::Write;

use crate::chance::Chance;
use crate::story::NAMES;

/// An address at which the socket of a unit listens.
pub(crate) fn address(unit: &str, number: usize) -> String {
    let place = NAMES.iter().position(|name| *name == unit).unwrap_or(0);
    format!("127.0.0.1:{}", 1_000 + 10 * place + number)
}

/// A unit file of a random world.
#[derive(Debug, Clone)]
pub(crate) struct File {
    pub(crate) program: &'static str,
    pub(crate) kind: &'static str,
    /// Keys but for those that name other units.
    pub(crate) keys: String,
    pub(crate) needs: Vec<(&'static str, usize)>,
    /// Whether a hook or a condition keeps it from coming up.
    pub(crate) is_broken: bool,
    /// What starts it, where it has a socket, and at how many addresses that is.
    pub(crate) socket: Option<(&'static str, usize)>,
}

impl File {
    const PROGRAMS: [&'static str; 14] = [
        "forever",
        "forever",
        "forever",
        "late",
        "stubborn",
        "slow:200",
        "child",
        "breeder",
        "mute",
        "missing",
        "after:900:0",
        "after:300:1",
        "orphan:400:1",
        "exit:0",
    ];
    const HOOKS: [&'static str; 8] = [
        "",
        "",
        "pre_start: [[\"after:20:0\"]]\n",
        "pre_start: [{command: [\"exit:1\"], ignore_failure: true}, [\"exit:0\"]]\n",
        "post_start: [[\"after:20:0\"]]\npre_stop: [[\"after:50:0\"], [forever]]\n",
        "post_stop: [[\"after:30:1\"], [child]]\n",
        "conditions: {command: [\"exit:0\"]}\n",
        "pre_start: [[\"orphan:20:0\"]]\n",
    ];
    const BROKEN: [&'static str; 5] = [
        "health: {exec: [stubborn], interval: 200ms, timeout: 300ms, start_period: 1s}\n",
        "health: {exec: [\"exit:1\"], interval: 400ms, retries: 2, start_period: 0s}\n",
        "pre_start: [[\"after:20:1\"]]\n",
        "conditions: {command: [\"exit:1\"]}\n",
        "post_start: [[missing]]\n",
    ];
    const STOPS: [&'static str; 4] = [
        "stop: {timeout: 300ms}\n",
        "stop: {timeout: 300ms, to: main}\n",
        "stop: {steps: [{command: [stubborn], wait: 200ms}, {signal: TERM, wait: 200ms}]}\n",
        "stop: {steps: [{signal: INT, wait: 100ms}, {signal: TERM, wait: 300ms}]}\n",
    ];
    const RESTARTS: [&'static str; 5] = [
        "restart: {max_delay: 2s}\n",
        "restart: {policy: always, delay: 100ms, max_delay: 2s}\n",
        "restart: {policy: always, delay: 0s, jitter: 0, limit: {starts: 3, within: 5s}}\n",
        "restart: {policy: on-failure, delay: 50ms, factor: 1, limit: {starts: 5, within: 60s}}\n",
        "restart: never\n",
    ];

    const SCHEDULES: [&'static str; 5] = [
        "every: 1s\n",
        "every: 7s\n",
        "calendar: \"*:*:0/2\"\n",
        "schedule: \"* * * * *\"\n",
        "schedule: \"@yearly\"\n",
    ];

    pub(crate) fn any(place: usize, chance: &mut Chance) -> Self {
        if chance.one_in(12) {
            let needs = Self::needs(place, chance, &["requires", "wants"]);
            let keys = String::new();
            return Self {
                program: "",
                kind: "target",
                keys,
                needs,
                is_broken: false,
                socket: None,
            };
        }
        let program = *chance.pick(&Self::PROGRAMS);
        let is_task = program == "after:900:0" || (program == "exit:0" && chance.one_in(2));
        let is_broken = !is_task && chance.one_in(8);
        let mut keys = String::new();
        if is_task {
            keys += *chance.pick(&["", "", "restart: {policy: on-failure, max_delay: 2s}\n"]);
        } else {
            keys += *chance.pick(&Self::RESTARTS);
        }
        if matches!(program, "late" | "mute") {
            keys += *chance.pick(&["ready: {notify: true}\n", "ready: {fd: 3}\n"]);
            keys += "start_timeout: 3s\n";
        } else if !is_task && chance.one_in(3) {
            keys += *chance.pick(&[
                "ready: {delay: 300ms}\n",
                "ready: {file: /ready}\n",
                "ready: {exec: [\"after:10:0\"], interval: 100ms, timeout: 200ms}\n",
                "ready: {exec: [\"orphan:5:0\"]}\n",
            ]);
            keys += "start_timeout: 5s\n";
        }
        if !is_task && !is_broken && chance.one_in(5) {
            keys += *chance.pick(&[
                "health: {exec: [\"after:20:0\"], interval: 300ms}\n",
                "health: {exec: [\"exit:0\"], interval: 2s, on_failure: none}\n",
            ]);
        }
        keys += *chance.pick(if is_broken { &Self::BROKEN[..] } else { &Self::HOOKS[..] });
        keys += *chance.pick(&Self::STOPS);
        if !is_task && chance.one_in(4) {
            keys += *chance.pick(&[
                "on_dependency_restart: restart\n",
                "on_dependency_restart: reload\nreload: {signal: HUP}\n",
                "reload: {command: [\"after:40:0\"]}\n",
            ]);
        }
        keys += *chance.pick(&["", "", "", "instances: 2\n", "instances: [x, y]\n"]);
        keys += *chance.pick(&["", "logs: {to: null}\n"]);
        let needs = Self::needs(place, chance, &["requires", "requires", "wants", "after"]);
        if chance.one_in(8) || needs.iter().any(|(key, _)| *key == "conflicts") {
            keys += "enabled: false\n";
        }
        let kind = if is_task { "task" } else { "service" };
        Self { program, kind, keys, needs, is_broken, socket: None }
    }

    /// The same, perhaps with a socket.
    pub(crate) fn with_socket(self, chance: &mut Chance) -> Self {
        if self.kind != "service" || chance.one_in(3) {
            return self;
        }
        let socket = (*chance.pick(&["lazy", "lazy", "eager"]), 1 + chance.place(2));
        Self { socket: Some(socket), ..self }
    }

    /// The same, perhaps with files that it watches.
    pub(crate) fn watching(mut self, chance: &mut Chance) -> Self {
        if self.kind == "service" && !chance.one_in(3) {
            let can_reload = self.keys.contains("reload:");
            let action = if can_reload && chance.one_in(2) { "reload" } else { "restart" };
            let debounce = chance.pick(&["0s", "50ms", "400ms"]);
            writeln!(self.keys, "watch: {{paths: [/srv], debounce: {debounce}, action: {action}}}")
                .unwrap();
        }
        self
    }

    /// A task that runs when it is due.
    pub(crate) fn scheduled(place: usize, chance: &mut Chance) -> Self {
        let program = *chance.pick(&["after:900:0", "exit:0", "after:300:1", "after:2500:0"]);
        let keys = [
            *chance.pick(&["", "", "restart: {policy: on-failure, max_delay: 2s}\n"]),
            *chance.pick(&Self::HOOKS),
            *chance.pick(&Self::STOPS),
            *chance.pick(&["", "", "instances: 2\n"]),
            *chance.pick(&Self::SCHEDULES),
            *chance.pick(&["overlap: skip\n", "overlap: queue\n", "overlap: kill\n"]),
            *chance.pick(&["", "catch_up: true\n"]),
            *chance.pick(&["", "jitter: 500ms\n"]),
        ];
        let needs = Self::needs(place, chance, &["requires", "wants", "after"]);
        Self { program, kind: "task", keys: keys.concat(), needs, is_broken: false, socket: None }
    }

    /// Lets a program say more of itself, at times.
    pub(crate) fn speaking(mut self, chance: &mut Chance) -> Self {
        if self.program == "forever" && self.kind == "service" && chance.one_in(2) {
            self.program = *chance.pick(&["pings", "faints:2500", "hands:40"]);
            if self.program != "hands:40" {
                self.keys += "watchdog: 3s\n";
            }
        }
        self
    }

    fn needs(
        place: usize,
        chance: &mut Chance,
        from: &[&'static str],
    ) -> Vec<(&'static str, usize)> {
        let mut needs = Vec::new();
        for other in 0..place {
            if chance.one_in(2) {
                needs.push((*chance.pick(from), other));
            } else if chance.one_in(14) {
                let more = ["conflicts", "on_failure", "on_success"];
                needs.push((*chance.pick(&more), other));
            }
        }
        needs
    }

    /// A list of what this kind of key names, or the one unit that an end starts.
    fn relations(&self, text: &mut String, exists: &[bool]) {
        for key in ["requires", "wants", "after", "conflicts", "on_failure", "on_success"] {
            let named = self.needs.iter().filter(|(of, other)| *of == key && exists[*other]);
            let named: Vec<&str> = named.map(|(_, other)| NAMES[*other]).collect();
            let Some(first) = named.first() else { continue };
            if self.kind == "target" && !matches!(key, "requires" | "wants") {
                continue;
            }
            if key.starts_with("on_") {
                writeln!(text, "{key}: {{start: {first}}}").unwrap();
            } else {
                writeln!(text, "{key}: [{}]", named.join(", ")).unwrap();
            }
        }
    }

    pub(crate) fn text(&self, unit: &str, exists: &[bool]) -> String {
        let mut text = format!("name: {unit}\nkind: {}\n", self.kind);
        if self.kind != "target" {
            writeln!(text, "command: [\"{}\"]", self.program).unwrap();
        }
        text += &self.keys;
        self.relations(&mut text, exists);
        if let Some((accept, count)) = self.socket {
            // The first descriptors are sockets.
            text = text.replace("{fd: 3}", "{fd: 9}");
            let listen: Vec<String> =
                (0..count).map(|n| format!("{{tcp: \"{}\"}}", address(unit, n))).collect();
            let listen = listen.join(", ");
            writeln!(text, "---\nkind: socket\nname: {unit}-s\nlisten: [{listen}]").unwrap();
            writeln!(text, "for: {unit}\naccept: {accept}").unwrap();
        }
        text
    }

    /// Whether it comes up and stays so until it is stopped, once what it requires is there.
    pub(crate) fn stays(&self) -> bool {
        let runs = matches!(
            self.program,
            "" | "forever"
                | "late"
                | "stubborn"
                | "slow:200"
                | "child"
                | "breeder"
                | "pings"
                | "hands:40"
        );
        // What ends for good at the first end, or the third, was perhaps ended by somebody.
        let is_patient = !self.keys.contains("limit") && !self.keys.contains("never");
        runs && is_patient && !self.is_broken
    }

    /// Whether something happens to it again and again, so that it is never silent.
    pub(crate) fn is_restless(&self) -> bool {
        self.keys.contains("health:") || self.keys.contains("watchdog:") || self.is_scheduled()
    }

    /// Whether it runs when it is due.
    pub(crate) fn is_scheduled(&self) -> bool {
        self.keys.contains("overlap:")
    }
}
