//! Whole unit files and all that is said of them: `tests/config/NAME.yaml` (or a directory of
//! files), `NAME.err` for its mistakes as they are drawn, `NAME.json` for its specs where there is
//! no error. `UPDATE=1 cargo test --test config` writes what comes out; review reads the difference.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends, also in its helpers")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use opm::config::{self, KEYS, Loaded, SourceFile};
use opm::model::{FilePath, Kind, Output, Spec, UnitName};

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config")
}

fn file(name: &str, text: impl Into<Vec<u8>>) -> SourceFile {
    SourceFile { path: FilePath::from(Path::new("/units").join(name)), text: text.into() }
}

fn load(files: &[SourceFile]) -> Loaded {
    config::load(files, &BTreeMap::new(), &[])
}

fn load_one(text: impl Into<Vec<u8>>) -> Loaded {
    load(&[file("unit.yaml", text)])
}

fn messages(loaded: &Loaded) -> Vec<&str> {
    loaded.diagnostics.iter().map(|found| found.message.as_str()).collect()
}

fn name(text: &str) -> UnitName {
    UnitName::parse(text).unwrap()
}

/// The files of a case: one, or all of a directory.
fn read(case: &str) -> Vec<SourceFile> {
    let folder = directory().join(case);
    if !folder.is_dir() {
        let yaml = format!("{case}.yaml");
        return vec![file(&yaml, std::fs::read(directory().join(&yaml)).unwrap())];
    }
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|e| file(&e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap()))
        .collect()
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
    assert!(
        kept == found,
        "{} differs; UPDATE=1 rewrites it\n--- kept\n{kept}\n--- found\n{found}",
        path.display()
    );
}

fn golden(case: &str) {
    let files = read(case);
    let loaded = load(&files);
    let drawn = config::render(&loaded.diagnostics, &files, false);
    let specs = if config::has_errors(&loaded.diagnostics) {
        String::new()
    } else {
        serde_json::to_string_pretty(&loaded.specs).unwrap() + "\n"
    };
    compare(&directory().join(format!("{case}.err")), &drawn);
    compare(&directory().join(format!("{case}.json")), &specs);
}

/// One test for each case, and one that none is left out.
macro_rules! goldens {
    ($($case:ident)+) => {
        $(#[test] fn $case() { golden(stringify!($case)); })+

        #[test]
        fn every_case_has_a_test() {
            let tested: BTreeSet<String> = [$(stringify!($case)),+].map(str::to_owned).into();
            let entries = std::fs::read_dir(directory()).unwrap().map(|entry| entry.unwrap().path());
            let stem = |path: PathBuf| path.file_stem().unwrap().to_str().unwrap().to_owned();
            let there: BTreeSet<String> = entries.map(stem).filter(|s| s != "bad stem").collect();
            assert_eq!(tested, there);
        }
    };
}

goldens! {
    a_target
    a_task
    accounts_wrong
    aliases
    aliases_wrong
    case_048_a_loop_is_refused_with_its_places
    case_048_a_unit_that_waits_for_itself_is_refused
    case_074_two_writers_of_one_file_are_refused
    case_076_percent_signs_are_themselves
    case_081_colon_pairs_stay_text
    case_082_a_umask_is_octal
    case_082_a_umask_with_8_or_9_is_refused
    case_083_env_values_are_the_text_written
    case_084_duplicate_keys_are_refused
    case_084_duplicate_names_are_refused
    case_087_leading_zeros_are_refused_in_numbers
    case_087_leading_zeros_are_text_in_text
    case_092_list_items_are_never_split
    cannot_work
    choices
    commands
    commands_wrong
    conditions_wrong
    conflicts
    conflicts_outside_the_default_target
    control_character_raw
    control_characters
    declared_twice
    defaults
    durations
    empty
    env_wrong
    every_key
    exclusive
    extends
    extends_base_wrong
    extends_deep
    extends_takes_away
    extends_wrong
    hooks_wrong
    instances_wrong
    key_at_the_wrong_depth
    log_limits
    logs_elsewhere
    logs_elsewhere_wrong
    log_limits_wrong
    long_delay
    many_mistakes
    max_delay_below_delay
    names
    no_follow_ups
    not_a_unit
    not_built
    not_yaml
    not_yaml_helps
    not_yaml_second_document
    numbers
    other_supervisors_keys
    output_inherit
    output_null
    own_names
    questions_wrong
    ready_delay
    ready_exec
    ready_fd
    ready_file
    ready_http
    ready_log
    ready_log_mistakes
    ready_tcp
    reload_missing
    schedule_mistakes
    schedules
    several_without_names
    shell_quotes_apart
    shell_words
    signals
    sizes
    sizes_and_times
    sockets
    sockets_together
    sockets_wrong
    tags_and_merge_keys
    target_with_process
    task_as_service
    to_itself
    two_loops
    two_writers
    unknown_key
    unknown_unit
    watch
    watch_mistakes
    wide_characters
    windows_lines
    wrong_types
}

#[test]
fn a_stem_that_is_no_name_is_refused() {
    golden("bad stem");
}

#[test]
fn bytes_that_are_not_utf_8_are_refused_where_they_are() {
    let files = [file("latin.yaml", &b"name: web\ndescription: caf\xe9\n"[..])];
    let loaded = load(&files);
    let found = &loaded.diagnostics[0];
    assert_eq!((found.line, found.column), (2, 17));
    assert!(found.message.contains("byte 0xe9 is not UTF-8"), "{found:?}");
    assert!(config::render(&loaded.diagnostics, &files, false).contains("description: caf"));
    assert!(load_one(&b"\xff\xfen\0a\0"[..]).diagnostics[0].message.contains("not UTF-8"));
}

#[test]
fn a_byte_order_mark_is_passed_over() {
    let loaded = load_one("\u{feff}nice: x\ncommand: a\n");
    assert_eq!(loaded.diagnostics[0].column, 7);
    assert!(load_one("\u{feff}command: a\n").diagnostics.is_empty());
}

#[test]
fn a_file_that_is_too_large_is_refused_unread() {
    let text = "#".repeat(config::FILE_BYTES_MAX + 1);
    assert!(messages(&load_one(text))[0].contains("at most 1048576"));
}

#[test]
fn units_of_other_sources_can_be_needed_and_not_declared_again() {
    let others =
        BTreeMap::from([(name("db"), "base".to_owned()), (name("web"), "base".to_owned())]);
    let files =
        [file("web.yaml", "command: a\n"), file("api.yaml", "command: b\nrequires: [db]\n")];
    let loaded = config::load(&files, &others, &[]);
    assert_eq!(messages(&loaded), ["unit `web` is declared by source `base` already"]);
    assert_eq!(loaded.specs.iter().map(|spec| spec.name.as_str()).collect::<Vec<_>>(), ["api"]);
}

#[test]
fn a_unit_of_another_source_cannot_be_extended() {
    let others = BTreeMap::from([(name("db"), "base".to_owned())]);
    let loaded = config::load(&[file("web.yaml", "extends: db\n")], &others, &[]);
    assert_eq!(messages(&loaded), ["`extends` of unit `web` names `db`, which does not exist"]);
    assert!(loaded.diagnostics[0].help[0].contains("of the source `base`"), "{loaded:?}");
}

#[test]
fn a_loop_through_another_source_is_found() {
    let db = load(&[
        file("db.yaml", "command: a\nbefore: [api]\nafter: [web]\n"),
        file("web.yaml", "command: a\n"),
        file("api.yaml", "command: a\n"),
    ]);
    let db = db.specs.iter().find(|spec| spec.name.as_str() == "db").unwrap();
    let others = BTreeMap::from([(name("db"), "base".to_owned())]);
    let files =
        [file("web.yaml", "command: a\nrequires: [api]\n"), file("api.yaml", "command: a\n")];
    let loaded = config::load(&files, &others, &[db]);
    assert_eq!(messages(&loaded), ["dependency loop: `api` -> `db` -> `web` -> `api`"]);
    assert_eq!(loaded.diagnostics[0].label, "`web` waits for `api`");
}

#[test]
fn places_are_those_of_the_names() {
    let loaded = load_one("command: a\nname: web\nnice: wrong\n");
    let places = loaded.places();
    let place = &places[&name("web")];
    assert_eq!((place.line, place.column), (2, 7));
    assert!(loaded.specs.is_empty());
}

#[test]
fn diagnostics_do_not_depend_on_the_order_of_the_files() {
    let mut files = read("unknown_unit");
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let one = load(&files).diagnostics;
    files.reverse();
    assert_eq!(one, load(&files).diagnostics);
}

#[test]
fn more_units_than_a_source_may_have_are_refused() {
    let unit = |n: usize| format!("---\nname: u{n}\ncommand: a\n");
    let half = config::UNITS_MAX / 2 + 1;
    let files = [
        file("a.yaml", (0..half).map(unit).collect::<String>()),
        file("b.yaml", (half..2 * half).map(unit).collect::<String>()),
    ];
    let loaded = load(&files);
    assert!(messages(&loaded).iter().any(|message| message.contains("documents in one file")));
    let files: Vec<_> = (0..5)
        .map(|k| {
            file(&format!("{k}.yaml"), (k * 5000..k * 5000 + 5000).map(unit).collect::<String>())
        })
        .collect();
    let loaded = load(&files);
    assert_eq!(messages(&loaded), ["more than 20000 units in one source"]);
}

/// A value for each key, other than its default.
const SAMPLES: &str = "\
description: x|documentation: [x]|enabled: false|labels: {a: b}|command: [x]|shell: x|\
working_dir: /x|env: {A: b}|env_files: [x]|inherit_env: false|stdin: {file: x}|user: x|group: x|\
supplementary_groups: [x]|umask: 077|requires: [other]|wants: [other]|after: [other]|\
before: [other]|conflicts: [off]|on_dependency_restart: restart|conditions: {env: [A]}|\
instances: 2|restart: always|success_exit: [3]|on_success: shutdown|on_failure: shutdown|\
essential: true|ready: {fd: 3}|start_timeout: 1s|pre_start: [x]|post_start: [x]|pre_stop: [x]|\
post_stop: [x]|reload: {signal: HUP}|health: {tcp: \"x:1\"}|watchdog: 1s|pid_file: a.pid|stop: {signal: INT}|logs: {to: console}|limits: {core: 0}|\
watch: {paths: [x]}|nice: 1|oom_score_adjust: 1|kind: task|name: x";

/// The same for keys of a task with a schedule.
const TASK_SAMPLES: &str = "schedule: \"@daily\"|calendar: daily|every: 1h|timezone: UTC|jitter: 1s|\
catch_up: true|overlap: kill";

/// The same for keys of a socket.
const SOCKET_SAMPLES: &str = "listen: [{tcp: \"[::1]:2\"}]|for: off|accept: eager";

fn sample(lines: &str) -> Spec {
    let named = if lines.contains("name:") { "" } else { "name: unit\n" };
    let command = if ["command:", "shell:", "kind: socket"].iter().any(|key| lines.contains(key)) {
        ""
    } else {
        "command: a\n"
    };
    let text = format!(
        "{named}{command}{lines}\n---\n{{name: other, command: a}}\n---\n{{name: off, command: a, enabled: false}}\n"
    );
    let loaded = load_one(text);
    assert!(loaded.diagnostics.is_empty(), "{lines}: {:?}", messages(&loaded));
    let specs = loaded.specs.iter();
    let mut specs = specs.filter(|spec| !["other", "off"].contains(&spec.name.as_str()));
    Spec::clone(specs.next().unwrap())
}

#[test]
fn the_table_of_keys_tells_what_a_change_costs() {
    let mut left: BTreeSet<&str> = KEYS
        .iter()
        .filter(|key| key.supported && key.parent().is_empty())
        .map(|key| key.path)
        .collect();
    let scheduled = |line: &str| {
        let is_when = ["schedule", "calendar", "every"].iter().any(|key| line.starts_with(key));
        let when = if is_when { "" } else { "schedule: 1 2 * * *\n" };
        (format!("kind: task\n{when}"), format!("kind: task\n{when}{line}"))
    };
    let listens = |line: &str| {
        let needed = ["listen: [{tcp: \"[::1]:1\"}]\n", "for: other\n"];
        let others = needed.iter().filter(|key| !line.starts_with(key.split(':').next().unwrap()));
        let others: String = others.copied().collect();
        (format!("kind: socket\n{}", needed.concat()), format!("kind: socket\n{others}{line}"))
    };
    let sockets = SOCKET_SAMPLES.split('|').map(|line| (line, listens(line)));
    let plain = SAMPLES.split('|').map(|line| (line, (String::new(), line.to_owned())));
    let tasks = TASK_SAMPLES.split('|').map(|line| (line, scheduled(line)));
    for (line, (without, with)) in plain.chain(tasks).chain(sockets) {
        let path = line.split(':').next().unwrap();
        assert!(left.remove(path), "{path}");
        let (plain, changed) = (sample(&without), sample(&with));
        assert_ne!(changed, plain, "{line} changes nothing");
        let restarts = changed.process_hash() != plain.process_hash() || changed.name != plain.name;
        let said = config::key(path).unwrap().change == config::Change::Restart;
        assert_eq!(restarts, said, "{path}");
    }
    // What it brings is of the other keys.
    assert!(left.remove("extends"));
    assert!(left.is_empty(), "no sample for {left:?}");
}

#[test]
fn the_least_values_are_those_of_the_table() {
    let units = [
        ("every", "kind: task\nevery: @"),
        ("health.interval", "health: {tcp: 'a:1', interval: @}"),
        ("health.timeout", "health: {tcp: 'a:1', timeout: @}"),
        ("logs.max_age", "logs: {max_age: @}"),
        ("logs.max_size", "logs: {max_size: @}"),
        ("logs.rate.per", "logs: {rate: {lines: 1, per: @}}"),
        ("ready.interval", "ready: {tcp: 'a:1', interval: @}"),
        ("ready.timeout", "ready: {tcp: 'a:1', timeout: @}"),
        ("watchdog", "ready: {notify: true}\nwatchdog: @"),
    ];
    let limited = KEYS.iter().filter(|key| key.supported && key.types.ends_with(" or more"));
    let limited: BTreeSet<&str> = limited.map(|key| key.path).collect();
    assert_eq!(limited, units.iter().map(|(path, _)| *path).collect());
    for (path, unit) in units {
        let types = config::key(path).unwrap().types;
        let least = types.rsplit(' ').nth(2).unwrap();
        let below = match least {
            "1s" => "999ms",
            "10ms" => "9ms",
            "1ms" => "999us",
            "1K" => "1023",
            other => panic!("{other}"),
        };
        for (value, mistakes) in [(least, 0), (below, 1)] {
            let loaded = load_one(format!("command: a\n{}\n", unit.replace('@', value)));
            assert_eq!(loaded.diagnostics.len(), mistakes, "{path}: {value}");
        }
    }
}

#[test]
fn every_key_that_is_not_built_says_so() {
    for key in KEYS.iter().filter(|key| !key.supported) {
        let mut text = String::new();
        for (depth, part) in key.path.split('.').enumerate() {
            text = format!("{text}\n{}{part}:", "  ".repeat(depth));
        }
        let loaded = load_one(format!("kind: service\ncommand: a{text} x\n"));
        let found: Vec<&str> = messages(&loaded);
        assert_eq!(found.len(), 1, "{}: {found:?}", key.path);
        assert!(found[0].ends_with("is not supported yet"), "{}: {found:?}", key.path);
    }
}

#[test]
fn every_key_that_is_built_is_known_where_it_stands() {
    for key in KEYS.iter().filter(|key| key.supported) {
        let mut text = String::new();
        for (depth, part) in key.path.split('.').enumerate() {
            text = format!("{text}\n{}{part}:", "  ".repeat(depth));
        }
        let loaded = load_one(format!("{text}\n"));
        for message in messages(&loaded) {
            assert!(
                !message.contains("unknown key") && !message.contains("supported"),
                "{}: {message}",
                key.path
            );
        }
    }
}

#[test]
fn an_output_that_opm_does_not_keep_needs_no_keeper() {
    for (to, output) in
        [("inherit", Output::Inherit), ("null", Output::Null), ("file", Output::Keeper)]
    {
        let loaded = load_one(format!("command: a\nlogs: {{to: {to}}}\n"));
        assert_eq!(loaded.specs[0].process.as_ref().unwrap().output, output);
        assert_eq!(loaded.specs[0].kind, Kind::Service);
    }
}
