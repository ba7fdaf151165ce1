//! Units that are put together from several files, and from the command line: `tests/compose/NAME`
//! is a source, `NAME.err` what is said of it as it is drawn, `NAME.json` its specs where there is
//! no error. `UPDATE=1 cargo test --test compose` writes what comes out.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};

use opm::config::{self, Layers, Loaded, SourceFile};
use opm::model::{FilePath, Spec, UnitName};
use opm::plan;
use proptest::prelude::*;
use proptest::sample::subsequence;

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/compose")
}

fn file(name: &str, text: impl Into<Vec<u8>>) -> SourceFile {
    SourceFile { path: FilePath::from(Path::new("/units").join(name)), text: text.into() }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// What is said and what comes out, with profiles and settings.
fn load(files: &[SourceFile], profiles: &[&str], sets: &[&str]) -> (Loaded, String) {
    let (profiles, sets) = (words(profiles), words(sets));
    let layers = Layers { source: Some("/units"), profiles: &profiles, sets: &sets, origins: true };
    let loaded = config::load_with(files, &layers, &BTreeMap::new(), &[]);
    let files = config::with_words(files, &profiles, &sets);
    let drawn = config::render(&loaded.diagnostics, &files, false);
    (loaded, drawn)
}

fn plain(files: &[SourceFile]) -> Loaded {
    let (loaded, drawn) = load(files, &[], &[]);
    assert_eq!(drawn, "");
    loaded
}

fn name(text: &str) -> UnitName {
    UnitName::parse(text).unwrap()
}

/// All files below a directory.
fn read(dir: &Path, files: &mut Vec<SourceFile>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read(&path, files);
        } else {
            let name = path.strip_prefix(directory()).unwrap();
            let name: PathBuf = name.components().skip(1).collect();
            files.push(file(name.to_str().unwrap(), std::fs::read(&path).unwrap()));
        }
    }
}

/// Compares with what was kept, or keeps it.
fn compare(path: &Path, found: &str) {
    if std::env::var_os("UPDATE").is_some() {
        if found.is_empty() {
            drop(std::fs::remove_file(path));
        } else {
            std::fs::write(path, found).unwrap();
        }
        return;
    }
    let kept = std::fs::read_to_string(path).unwrap_or_default();
    assert!(kept == found, "{} differs; UPDATE=1 rewrites it\n{found}", path.display());
}

fn golden(source: &str, case: &str, profiles: &[&str], sets: &[&str]) -> Loaded {
    let mut files = Vec::new();
    read(&directory().join(source), &mut files);
    let (loaded, drawn) = load(&files, profiles, sets);
    let specs = if config::has_errors(&loaded.diagnostics) {
        String::new()
    } else {
        serde_json::to_string_pretty(&loaded.specs).unwrap() + "\n"
    };
    compare(&directory().join(format!("{case}.err")), &drawn);
    compare(&directory().join(format!("{case}.json")), &specs);
    loaded
}

fn env_of(loaded: &Loaded, unit: &str) -> String {
    let spec = loaded.specs.iter().find(|spec| spec.name.as_str() == unit).unwrap();
    let mut text = String::new();
    for (name, value) in &spec.process.as_ref().unwrap().env {
        write!(text, "{name}={value} ").unwrap();
    }
    text
}

#[test]
fn drop_ins_are_laid_over_their_unit_in_the_order_of_their_names() {
    let loaded = golden("drop_ins", "drop_ins", &[], &[]);
    assert_eq!(env_of(&loaded, "web"), "MODE=slow PORT=8081 ");
}

#[test]
fn what_is_wrong_with_drop_ins_is_told_where_it_stands() {
    golden("drop_ins_wrong", "drop_ins_wrong", &[], &[]);
}

#[test]
fn profiles_come_after_drop_ins_in_the_order_in_which_they_are_chosen() {
    for (chosen, env) in [
        (&[][..], "A=unit B=drop-in C=drop-in D=drop-in "),
        (&["prod"], "A=unit B=drop-in C=prod beside D=prod inside "),
        (&["dev", "prod"], "A=unit B=drop-in C=prod beside D=prod inside E=dev "),
        (&["prod", "dev"], "A=unit B=drop-in C=prod beside D=dev E=dev "),
    ] {
        let loaded = golden("profiles", &format!("profiles-{}", chosen.join("-")), chosen, &[]);
        assert_eq!(env_of(&loaded, "web"), env, "{chosen:?}");
        let left: Vec<&str> = loaded.left_out.iter().map(|left| left.profile.as_str()).collect();
        let expected: &[&str] = match chosen {
            [] => &["prod", "prod", "dev", "prod"],
            ["prod"] => &["dev"],
            _ => &[],
        };
        assert_eq!(left, expected);
        assert_eq!(loaded.specs.len(), 2);
    }
}

#[test]
fn a_file_of_a_profile_is_never_a_unit_of_its_own() {
    let loaded = golden("profiles_wrong", "profiles_wrong", &["prdo", "a.b"], &[]);
    assert!(!loaded.specs.iter().any(|spec| spec.name.as_str().contains('.')));
    golden("profiles_wrong", "profiles_wrong-dev", &["dev"], &[]);
}

#[test]
fn settings_come_last() {
    let sets = [
        "web.env.PORT=8080",
        "web.env.COLOUR=#fff",
        "web.env.A.B=x=y",
        "web.env.EMPTY=",
        "web.env.A=null",
        "web.env.TEXT=\"null\"",
        "web.command=[web, --now]",
        "web.restart.delay=1s",
        "web.labels={x: \"1\"}",
        "php8.2.nice=5",
        "web.description=a: b",
    ];
    let loaded = golden("sets", "sets", &[], &sets);
    assert_eq!(env_of(&loaded, "web"), "A.B=x=y COLOUR=#fff EMPTY= PORT=8080 TEXT=null ");
    let place = loaded.origins[&name("web")].of("env.PORT").unwrap();
    assert_eq!((place.file.to_string().as_str(), place.line), ("--set", 1));
}

#[test]
fn a_wrong_setting_is_told_with_its_number() {
    let sets = [
        "web.nice=5",
        "web",
        "web=a",
        "wbe.nice=1",
        "web.restrat=always",
        "web.nice=99",
        "web.command=[a",
        "web..b=1",
        "web.a\nb=1",
        "web.name=other",
        "web.kind=task",
        "web.env=x",
        "php8.nice=1",
    ];
    golden("sets", "sets_wrong", &[], &sets);
}

#[test]
fn relative_paths_start_where_they_stand() {
    let files = [
        file("base/base.yaml", "command: a\nworking_dir: data\nenv_files: [a, /b]\n"),
        file("web.yaml", "extends: base\nready: {file: up}\nwatch: {paths: [x]}\n"),
        file("web.d/a.yaml", "stdin: {file: in}\n"),
    ];
    let (loaded, drawn) = load(&files, &[], &["web.logs.to.path=out"]);
    assert_eq!(drawn, "");
    let json = serde_json::to_string(&loaded.specs[1]).unwrap();
    for path in [
        "/units/base/data",
        "/units/base/a",
        "\"/b\"",
        "/units/web.d/in",
        "\"up\"",
        "\"x\"",
        "\"out\"",
    ] {
        assert!(json.contains(path), "{path}: {json}");
    }
    assert!(json.contains(r#""base_dir":"/units""#), "{json}");
}

#[test]
fn each_key_knows_the_place_that_gave_it() {
    let files = [
        file("base.yaml", "command: a\nenv:\n  A: base\n  B: base\n"),
        file("web.yaml", "extends: base\nenv: {B: unit}\nrestart: always\n"),
        file("web.d/x.yaml", "nice: 1\n"),
        file("web.p.yaml", "umask: '077'\nrestart: {delay: 1s}\n"),
    ];
    let (loaded, drawn) = load(&files, &["p"], &["web.oom_score_adjust=1"]);
    assert_eq!(drawn, "");
    let origins = &loaded.origins[&name("web")];
    let told: Vec<String> =
        origins.keys().map(|(key, place)| format!("{key} {}:{}", place.file, place.line)).collect();
    assert_eq!(
        told,
        [
            "command /units/base.yaml:1",
            "env.A /units/base.yaml:3",
            "env.B /units/web.yaml:2",
            "extends /units/web.yaml:1",
            "nice /units/web.d/x.yaml:1",
            "oom_score_adjust --set:1",
            "restart.delay /units/web.p.yaml:2",
            "restart.policy /units/web.yaml:3",
            "umask /units/web.p.yaml:1",
        ]
    );
    assert_eq!(origins.of("start_timeout"), None);
    assert_eq!(origins.of("env").map(|place| place.line), Some(3));
}

#[test]
fn what_a_plan_shows_has_the_place_where_it_was_written_and_defaults_have_none() {
    let text = "\
shell: a
restart: always
ready: {http: \"http://a/\", interval: 2s}
health: {exec: [x], retries: 2}
stop: {signal: INT}
logs: {to: {path: /a}}
limits: {nofile: 10}
conditions: {command: [x]}
inherit_env: [PATH]
stdin: {file: /x}
env_files: [/x]
---
name: job
kind: task
command: a
calendar: daily
---
name: sock
kind: socket
listen: [{tcp: \"[::1]:1\"}]
for: web
";
    let files = [file("web.yaml", format!("name: web\n{text}"))];
    let (loaded, drawn) = load(&files, &[], &[]);
    assert_eq!(drawn, "");
    // Each line of the file gave a key that a plan shows.
    let mut lines = BTreeSet::new();
    for spec in &loaded.specs {
        let origins = &loaded.origins[&spec.name];
        let keys = plan::fields_of(spec).into_keys();
        lines.extend(keys.filter_map(|key| origins.of(&key).map(|place| place.line)));
    }
    assert!(lines.iter().copied().eq((1..=12).chain(14..=17).chain(19..=22)), "{lines:?}");
    let origins = &loaded.origins[&name("web")];
    let line = |key| origins.of(key).map(|place| place.line);
    assert_eq!(
        (line("shell"), line("restart.policy"), line("stop.signal")),
        (Some(2), Some(3), Some(6))
    );
    assert_eq!((line("restart.delay"), line("health.timeout"), line("jitter")), (None, None, None));
}

#[test]
fn a_file_that_cannot_be_read_is_no_reason_to_miss_its_units() {
    let files = [
        file("web.yaml", "name: web\ncommand: [\n"),
        file("web.d/a.yaml", "nice: 1\n"),
        file("web.p.yaml", "nice: 1\n"),
        file("api.yaml", "command: a\nextends: web\n"),
    ];
    let (loaded, drawn) = load(&files, &[], &["web.nice=1"]);
    assert_eq!(loaded.diagnostics.len(), 1, "{drawn}");
}

fn each(n: usize, text: &dyn Fn(usize) -> String) -> String {
    (0..n).map(text).collect()
}

#[test]
fn what_is_copied_has_a_limit() {
    let base = format!("command: a\ndocumentation: [{}]\n", "x,".repeat(200_000));
    let heirs = each(30, &|n| format!("---\nname: u{n}\nextends: base\n"));
    let files = [file("base.yaml", base), file("heirs.yaml", heirs)];
    let (loaded, drawn) = load(&files, &[], &[]);
    assert_eq!(loaded.diagnostics.len(), 1, "{drawn}");
    assert!(drawn.contains("more than 2000000 keys and values"), "{drawn}");
}

#[test]
fn a_long_loop_is_one_mistake() {
    let next = |n| format!("---\nname: u{n}\ncommand: a\nextends: u{}\n", (n + 1) % 5_000);
    let units = each(5_000, &next);
    let (loaded, drawn) = load(&[file("loop.yaml", units)], &[], &[]);
    assert_eq!(loaded.diagnostics.len(), 1, "{drawn}");
    assert_eq!(loaded.diagnostics[0].message, "5000 units extend one another in a loop");
}

/// Lines of a unit, each of which may be there or not.
const LINES: [&str; 22] = [
    "description: a thing",
    "enabled: false",
    "labels: {a: b, c: ''}",
    "env: {A: b, B: 'null'}",
    "env_files: [/a, {path: /b, optional: true}]",
    "inherit_env: [PATH]",
    "stdin: null",
    "user: nobody",
    "umask: '077'",
    "requires: [other]",
    "conditions: {env: [A]}",
    "instances: [eu, us]",
    "restart: always",
    "success_exit: [0, 3]",
    "on_failure: {start: other}",
    "ready: {tcp: 'localhost:1', interval: 2s}",
    "health: {exec: [x], retries: 2}",
    "stop: {steps: [{signal: INT}]}",
    "logs: {to: null}",
    "limits: {core: 0}",
    "pre_start: [[a], {command: b, ignore_failure: true}]",
    "watch: {paths: [/x], debounce: 1s}",
];

fn specs(unit: &str, over: Option<(&str, &str)>, profiles: &[&str]) -> Vec<Spec> {
    let mut files =
        vec![file("web.yaml", unit), file("other.yaml", "command: x\nenabled: false\n")];
    files.extend(over.map(|(path, text)| file(path, text)));
    let (loaded, drawn) = load(&files, profiles, &[]);
    assert_eq!(drawn, "", "{unit}");
    loaded.specs.iter().map(|spec| Spec::clone(spec)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_laid_over_a_unit_and_itself_laid_over_it_change_nothing(
        lines in subsequence(LINES.to_vec(), 0..=LINES.len()),
        is_shell in any::<bool>(),
    ) {
        let command = if is_shell { "shell: a b" } else { "command: [a, b]" };
        let unit = format!("{command}\n{}\n", lines.join("\n"));
        let plain = specs(&unit, None, &[]);
        for nothing in ["", "{}\n", "# nothing\n", "name: web\n", "kind: service\n"] {
            prop_assert_eq!(&specs(&unit, Some(("web.d/a.yaml", nothing)), &[]), &plain);
        }
        prop_assert_eq!(&specs(&unit, Some(("web.d/a.yaml", &unit)), &[]), &plain);
        prop_assert_eq!(&specs(&unit, Some(("web.p.yaml", &unit)), &["p"]), &plain);
        // All of it by a drop-in is as good.
        let whole = specs("command: z", Some(("web.d/a.yaml", &unit)), &[]);
        prop_assert_eq!(&whole, &plain);
    }
}

#[test]
fn units_that_are_put_together_are_read_as_others_are() {
    let mut files = Vec::new();
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config");
    for entry in std::fs::read_dir(units).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "yaml") {
            files.push((path.clone(), std::fs::read(path).unwrap()));
        }
    }
    for (path, text) in files {
        let source = [SourceFile { path: path.clone().into(), text }];
        let one = config::load(&source, &BTreeMap::new(), &[]);
        let layers = Layers { origins: true, ..Layers::default() };
        let other = config::load_with(&source, &layers, &BTreeMap::new(), &[]);
        assert_eq!(one.diagnostics, other.diagnostics, "{}", path.display());
        assert_eq!(one.specs, other.specs, "{}", path.display());
        assert_eq!(one.places(), other.places(), "{}", path.display());
    }
}

#[test]
fn a_plain_source_needs_no_unit_that_is_put_together() {
    let loaded = plain(&[file("web.yaml", "command: a\n")]);
    assert!(loaded.left_out.is_empty());
}
