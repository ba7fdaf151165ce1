//! What plans and `opm show` print of a unit: keys of opm-unit(5), with values as they are written there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use opm::config::{self, KEYS, Loaded, SourceFile};
use opm::model::{Desired, FilePath, Observed, Spec, Unit};
use opm::plan;
use serde_json::Value;

fn load_one(text: impl Into<Vec<u8>>) -> Loaded {
    let file = SourceFile { path: FilePath::from("/units/unit.yaml"), text: text.into() };
    config::load(&[file], &BTreeMap::new(), &[])
}

/// With those of `every_key.yaml`: each key that is built, in each form.
const FORMS: &str = "\
{name: a, command: x, ready: {fd: 3}, on_success: {start: t}, on_failure: shutdown,
 restart: {limit: {starts: 2, within: 2m}, at_limit: shutdown}, instances: 3, umask: '7',
 logs: {to: {syslog: {address: 'udp://h:1', facility: local3, format: rfc3164}}}}
---
{name: b, shell: 'a | b', ready: {delay: 1500ms}, stop: {signal: INT, timeout: never, to: main},
 reload: {command: [a]}, logs: {to: syslog}, start_timeout: never, success_exit: []}
---
{name: c, command: x, ready: {tcp: 'h:1', interval: 5s, timeout: 1h30m5s}, after: [a],
 health: {http: 'http://h/', interval: 1234ms, timeout: 5s, retries: 5, start_period: 0},
 watch: {paths: [a], debounce: 2s, action: restart}, env: {EMPTY: ''},
 logs: {to: {unit: r}, format: json, max_age: 30d, compress: true, rate: {lines: 5, per: 2s}}}
---
{name: d, command: x, ready: {unix: /s}, health: {tcp: 'h:1', on_failure: none}, stop: {steps: []},
 logs: {to: console}, inherit_env: false, stdin: null}
---
{name: e, command: x, ready: {http: 'http://h/', expect: 204}, health: {exec: [a, b]},
 limits: {as: 1G, core: 1000, cpu: 5, data: 1K, fsize: 2T, locks: 1, memlock: 3, msgqueue: 4K, nice: 1,
  nofile: '1024:65536', nproc: unlimited, rss: 8M, rtprio: 2, rttime: 3, sigpending: 4,
  stack: '8M:unlimited'}}
---
{name: f, command: x, ready: {exec: [a]}, health: {memory: 300M}, logs: {to: inherit}}
---
{name: g, command: x, ready: {log: 'a.*b'}, success_exit: [SIGRTMIN+3, 29], stop: {signal: 29}}
---
{name: h, command: x, ready: {file: x}, logs: {to: null}}
---
{name: r, command: x, stdin: logs}
---
{name: t, kind: task, command: x, schedule: 1 2 * * *, timezone: UTC, jitter: 90s, catch_up: true,
 overlap: queue}
---
{name: u, kind: task, command: x, calendar: 'Mon..Fri 09:00'}
---
{name: v, kind: task, command: x, every: 90m}
---
{name: s, kind: socket, for: d, accept: eager, listen: [{tcp: '[::1]:1', name: x},
 {unix: /x, mode: '0600', user: a, group: b}, {udp: '0.0.0.0:1'}]}
";

/// What a plan shows of a spec, as the text of a unit file.
fn written(spec: &Spec) -> String {
    let mut unit = Value::Object(serde_json::Map::new());
    for (key, (value, _)) in plan::fields_of(spec) {
        let (at, name) = match key.split_once('.') {
            Some((map @ ("env" | "labels"), name)) => (map, name),
            _ => key.rsplit_once('.').unwrap_or(("", &key)),
        };
        let mut map = &mut unit;
        for step in at.split('.').filter(|step| !step.is_empty()) {
            map = &mut map[step];
        }
        map[name] = value;
    }
    unit.to_string()
}

#[test]
fn what_a_plan_shows_is_keys_of_the_format_with_values_that_read_back() {
    let text = fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config/every_key.yaml"),
    )
    .unwrap();
    let loaded = load_one(format!("{text}---\n{FORMS}"));
    assert!(loaded.diagnostics.is_empty(), "{:?}", loaded.diagnostics);
    let mut shown = BTreeSet::new();
    for spec in &loaded.specs {
        for (key, (_, class)) in plan::fields_of(spec) {
            let map = key.split_once('.').map_or("", |(map, _)| map);
            let known = config::key(if ["env", "labels"].contains(&map) { map } else { &key });
            let known = known.unwrap_or_else(|| panic!("{}: there is no key `{key}`", spec.name));
            assert!(known.units.has(spec.kind), "{}: {key}", spec.name);
            // Two have a class that the new value alone does not tell.
            let restarts = class == plan::Class::Restart;
            let is_said = restarts == (known.change == config::Change::Restart);
            assert!(is_said || ["name", "logs.to"].contains(&known.path), "{key}");
            shown.insert(known.path);
        }
    }
    let all: String = loaded.specs.iter().map(|spec| written(spec) + "\n---\n").collect();
    let again = load_one(all.trim_end_matches("---\n"));
    assert!(again.diagnostics.is_empty(), "{:?}", again.diagnostics);
    for (spec, again) in loaded.specs.iter().zip(&again.specs) {
        assert_eq!(spec, again, "{}", written(spec));
    }
    let is_of_list = |key: &str| config::key(key).is_some_and(|key| key.types.starts_with("list"));
    let is_one = |key: &&config::Key| {
        key.supported
            && KEYS.iter().all(|other| other.parent() != key.path)
            && !is_of_list(key.parent())
    };
    let left: Vec<_> = KEYS.iter().filter(is_one).filter(|key| !shown.contains(key.path)).collect();
    assert!(left.iter().all(|key| key.path == "extends"), "{left:?}");
}

#[test]
fn a_change_that_is_small_or_restarts_is_shown_as_such() {
    let desired = |lines: &str| {
        let units = load_one(format!("name: m\ncommand: a\n{lines}\n")).specs;
        let units = units.into_iter().map(|spec| (spec.name.clone(), Unit::new(spec, "-")));
        Desired { units: units.collect(), ..Desired::default() }
    };
    for (old, new, expected) in [
        ("logs: {to: file}", "logs: {to: inherit}", "logs.to: restart"),
        ("logs: {to: {path: /a}}", "logs: {to: null}", "logs.to: restart, logs.to.path: restart"),
        ("logs: {to: null}", "logs: {to: inherit}", "logs.to: restart"),
        ("logs: {to: file}", "logs: {to: console}", "logs.to: live"),
        ("start_timeout: 1234ms", "start_timeout: 1250ms", "start_timeout: live"),
        ("env: {A: ''}", "", "env.A: restart"),
    ] {
        let plan = plan::plan(&desired(old), &desired(new), &Observed::default());
        let fields = plan.changes.iter().flat_map(|change| &change.fields);
        let word = |class| if class == plan::Class::Live { "live" } else { "restart" };
        let fields: Vec<_> = fields.map(|f| format!("{}: {}", f.key, word(f.class))).collect();
        assert_eq!(fields.join(", "), expected, "{old} to {new}");
    }
}
