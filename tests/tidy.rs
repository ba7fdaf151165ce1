//! The house rules that no lint sees: floors, unsafe, sizes, words, the manual against the program,
//! samples, links, and files that nobody compiles.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test stops at the first surprise")]
#![expect(clippy::disallowed_methods, reason = "tests run programs")]
#![expect(clippy::print_stderr, reason = "a test that is skipped says why")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use opm::config::{KEYS, SourceFile};
use opm::model::FilePath;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const OPM: &str = env!("CARGO_BIN_EXE_opm");

/// Which floors a floor may use: those below it, and of these only what it has to know.
const FLOORS: [(&str, &[&str]); 11] = [
    ("model", &[]),
    ("config", &["model"]),
    ("plan", &["model"]),
    ("protocol", &["model"]),
    ("system", &["model"]),
    ("logs", &["model", "system"]),
    ("keeper", &["model", "system", "logs"]),
    ("supervisor", &["model", "config", "plan", "system"]),
    ("simulate", &["model", "plan", "system", "supervisor"]),
    ("daemon", &["model", "config", "plan", "protocol", "system", "supervisor"]),
    (
        "cli",
        &[
            "model",
            "config",
            "plan",
            "protocol",
            "system",
            "supervisor",
            "simulate",
            "daemon",
            "keeper",
            "logs",
        ],
    ),
];

/// The files with `unsafe` in them.
const UNSAFE: [&str; 6] = [
    "src/system/child.rs",
    "src/system/memory.rs",
    "src/system/raw.rs",
    "src/system/spawn.rs",
    "src/system/stacks.rs",
    "src/system/sys.rs",
];

/// More lines than this need a reason.
const LINES_MAX: usize = 500;
/// Longer files, and why they are not two.
const LONG: [(&str, &str); 9] = [
    ("tests/phases.rs", "every event, in every phase, in one table"),
    ("src/system/linux.rs", "the whole trait System; what it needs is in the files beside it"),
    ("tests/sim/story.rs", "one story, from its first act to its end"),
    ("tests/sim/machine.rs", "one machine: processes, clocks and the wire share their state"),
    ("tests/sim/system.rs", "the whole trait System once more, as src/system/linux.rs has it"),
    ("tests/reconcile.rs", "one scene and its properties"),
    ("tests/sockets.rs", "one server and one client, and all that may happen between them"),
    ("src/keeper/store_tests.rs", "one store, and each way in which a disk can be"),
    ("tests/tidy.rs", "a dozen rules that share what reads the tree"),
];

/// Words that stand for work that was left undone. They are put together here so that this file
/// does not hold them.
fn unfinished() -> [String; 5] {
    [["TO", "DO"], ["FIX", "ME"], ["XX", "X"], ["todo", "!("], ["unimplemented", "!("]]
        .map(|parts| parts.concat())
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn at(path: &str) -> PathBuf {
    Path::new(ROOT).join(path)
}

/// All files below a directory of the tree whose names end so, in order, by their paths in the tree.
fn files(dir: &str, suffix: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![at(dir)];
    while let Some(dir) = open.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for path in entries.map(|entry| entry.unwrap().path()) {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                open.push(path);
            } else if name.ends_with(suffix) {
                found.push(path.strip_prefix(ROOT).unwrap().to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    found
}

fn fail_with(rule: &str, offences: &[String]) {
    assert!(offences.is_empty(), "{rule}:\n  {}", offences.join("\n  "));
}

/// Where a test may not be run; `OPM_TESTS=all` makes that a failure.
fn skip(why: &str) {
    assert!(std::env::var("OPM_TESTS").as_deref() != Ok("all"), "may not be skipped here: {why}");
    eprintln!("skipped: {why}");
}

// The tree.

/// The floors that a line of code names.
fn floors_named(line: &str) -> Vec<String> {
    let code = line.split("//").next().unwrap_or_default();
    let mut found = Vec::new();
    for (place, _) in code.match_indices("crate::") {
        let rest = &code[place + "crate::".len()..];
        let list = rest.strip_prefix('{').map_or(rest, |list| list.split('}').next().unwrap());
        let is_list = rest.starts_with('{');
        for item in list.split(',').take(if is_list { usize::MAX } else { 1 }) {
            let end = item.trim().find(|c: char| !c.is_alphanumeric() && c != '_');
            let name = item.trim();
            found.push(name[..end.unwrap_or(name.len())].to_owned());
        }
    }
    found
}

#[test]
fn a_floor_uses_the_floors_below_it_and_nothing_else() {
    assert_eq!(floors_named("use crate::{plan::why, model}; // crate::cli"), ["plan", "model"]);
    let rules: BTreeMap<&str, &[&str]> = FLOORS.into_iter().collect();
    let mut offences = Vec::new();
    for file in files("src", ".rs") {
        let floor = file.split('/').nth(1).unwrap().trim_end_matches(".rs");
        if floor == "lib" || floor == "main" {
            continue;
        }
        let Some(below) = rules.get(floor) else {
            offences.push(format!("{file}: no such floor in tests/tidy.rs"));
            continue;
        };
        for (line, text) in (1..).zip(read(&at(&file)).lines()) {
            for used in floors_named(text) {
                if used != floor && !below.contains(&used.as_str()) {
                    offences.push(format!("{file}:{line}: `{floor}` may not use `{used}`"));
                }
            }
        }
    }
    fail_with("floors", &offences);
}

#[test]
fn unsafe_is_where_it_may_be() {
    let mut offences = Vec::new();
    for file in files("src", ".rs") {
        let text = read(&at(&file));
        let is_unsafe = |line: &&str| {
            let code = line.split("//").next().unwrap_or_default();
            ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"]
                .iter()
                .any(|word| code.contains(word))
        };
        let found = text.lines().any(|line| is_unsafe(&line));
        if found != UNSAFE.contains(&file.as_str()) {
            offences.push(format!("{file}: unsafe here: {found}"));
        }
    }
    fail_with("unsafe is in the files that tests/tidy.rs names, and in no other", &offences);
}

#[test]
fn long_files_have_a_reason() {
    let mut offences = Vec::new();
    let mut long: BTreeMap<&str, &str> = LONG.into_iter().collect();
    for file in files("src", ".rs").into_iter().chain(files("tests", ".rs")) {
        let lines = read(&at(&file)).lines().count();
        let known = long.remove(file.as_str()).is_some();
        if lines > LINES_MAX && !known {
            offences.push(format!("{file}: {lines} lines, and no reason in tests/tidy.rs"));
        }
        if lines <= LINES_MAX && known {
            offences.push(format!("{file}: {lines} lines; it needs no reason any more"));
        }
    }
    offences.extend(long.keys().map(|file| format!("{file}: there is no such file")));
    fail_with("long files", &offences);
}

#[test]
fn nothing_is_left_unfinished() {
    let words = unfinished();
    let mut offences = Vec::new();
    for file in ["src", "tests", "man", "docs", "units"].iter().flat_map(|dir| files(dir, "")) {
        let Ok(text) = fs::read_to_string(at(&file)) else { continue };
        for (line, text) in (1..).zip(text.lines()) {
            if let Some(word) = words.iter().find(|word| text.contains(word.as_str())) {
                offences.push(format!("{file}:{line}: {word}"));
            }
        }
    }
    fail_with("unfinished", &offences);
}

/// The files that a module's file declares.
fn submodules(file: &str) -> Vec<String> {
    let path = Path::new(file);
    let stem = path.file_stem().unwrap().to_str().unwrap();
    let parent = path.parent().unwrap();
    let dir = match stem {
        "mod" | "lib" | "main" => parent.to_owned(),
        _ => parent.join(stem),
    };
    let mut found = Vec::new();
    let mut named: Option<String> = None;
    for line in read(&at(file)).lines() {
        let line = line.trim();
        if let Some(path) = line.strip_prefix("#[path = \"") {
            named = path.split('"').next().map(str::to_owned);
        }
        let declares = line.strip_suffix(';').and_then(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["mod", name] | ["pub" | "pub(crate)" | "pub(super)", "mod", name] => Some(name),
                _ => None,
            }
        });
        let Some(name) = declares else { continue };
        let candidates = match named.take() {
            Some(path) => vec![parent.join(path)],
            None => vec![dir.join(format!("{name}.rs")), dir.join(name).join("mod.rs")],
        };
        let there = candidates.iter().find(|path| at(path.to_str().unwrap()).exists());
        let there = there.unwrap_or_else(|| panic!("{file}: where is `mod {name}`?"));
        found.push(there.to_str().unwrap().to_owned());
    }
    found
}

#[test]
fn every_file_is_compiled() {
    let mut seen: BTreeSet<String> = BTreeSet::new();
    let mut open = vec!["src/lib.rs".to_owned(), "src/main.rs".to_owned()];
    while let Some(file) = open.pop() {
        if seen.insert(file.clone()) {
            open.extend(submodules(&file));
        }
    }
    let all: BTreeSet<String> = files("src", ".rs").into_iter().collect();
    let unused: Vec<String> = all.difference(&seen).cloned().collect();
    fail_with("files that no module declares", &unused);
}

/// The names of Rust files in a text, as it writes them: `a.rs`, `dir/a.rs`.
fn rust_files_named(text: &str) -> BTreeSet<String> {
    let quoted = text.split('`').skip(1).step_by(2);
    let is_rust = |word: &&str| Path::new(word).extension().is_some_and(|end| end == "rs");
    quoted.filter(is_rust).map(str::to_owned).collect()
}

#[test]
fn the_code_map_names_every_file_and_no_other() {
    let text = read(&at("docs/ARCHITECTURE.md"));
    let map = text.split("\n## ").find(|part| part.starts_with("Code map\n")).unwrap();
    let mut offences = Vec::new();
    let mut seen = BTreeSet::new();
    // Each paragraph begins with the module that it is about, in bold.
    for part in map.split("\n\n**`").skip(1) {
        let (module, part) = part.split_once('`').unwrap();
        let named = rust_files_named(part);
        let files = files(&format!("src/{module}"), ".rs");
        for name in &named {
            if !files.iter().any(|path| path.ends_with(&format!("/{name}"))) {
                offences.push(format!("docs/ARCHITECTURE.md: no `{name}` in `{module}`"));
            }
        }
        // What is in a directory is described with it, or with the file that is named like it.
        let covers = |path: &str| {
            let inside = path.strip_prefix(&format!("src/{module}/")).unwrap_or(path);
            let dirs = inside.match_indices('/').map(|(end, _)| &inside[..end]);
            named.contains(inside)
                || inside == "mod.rs"
                || inside.ends_with("tests.rs")
                // One file for each group of commands.
                || module == "cli"
                || dirs.clone().any(|dir| part.contains(&format!("`{dir}/`")))
        };
        let missing = files.iter().filter(|path| !covers(path));
        offences.extend(missing.map(|path| format!("docs/ARCHITECTURE.md: `{path}` is not in it")));
        seen.insert(module.to_owned());
    }
    let floors = FLOORS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(seen, floors, "modules in the code map");
    fail_with("the code map", &offences);
}

#[test]
fn every_file_says_what_it_is_for() {
    let silent = |file: &String| !read(&at(file)).starts_with("//!");
    let all = files("src", ".rs").into_iter().chain(files("tests", ".rs"));
    let offences: Vec<String> = all.filter(silent).collect();
    fail_with("files without a head (`//!`)", &offences);
}

// The manual.

/// What `opm COMMAND --help` prints.
fn help(args: &[&str]) -> String {
    let output = Command::new(OPM).args(args).arg("--help").output().unwrap();
    assert!(output.status.success(), "{args:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The commands of the program with their aliases.
fn commands() -> BTreeMap<String, Vec<String>> {
    let text = help(&[]);
    let list = text.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let lines = list.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    lines
        .map(|line| {
            let aliases = line.split("[alias").nth(1).and_then(|rest| rest.split(':').nth(1));
            let aliases = aliases.map_or(Vec::new(), |list| {
                list.trim_end_matches(']').split(',').map(|alias| alias.trim().to_owned()).collect()
            });
            (line.split_whitespace().next().unwrap().to_owned(), aliases)
        })
        .collect()
}

/// The long options in a help text.
fn options(text: &str) -> BTreeSet<String> {
    let lines = text.lines().map(str::trim_start).filter(|line| line.starts_with('-'));
    let words = lines.flat_map(|line| line.split_whitespace().take(2));
    let long = words.filter_map(|word| word.strip_prefix("--"));
    long.map(|word| word.trim_end_matches(['.', ','])).map(str::to_owned).collect()
}

/// A manual page, with the roff for a hyphen undone; `None` while there is none.
fn page(name: &str) -> Option<String> {
    let text = fs::read_to_string(at("man").join(name)).ok();
    if text.is_none() {
        skip(&format!("there is no man/{name} yet"));
    }
    text.map(|text| text.replace("\\-", "-"))
}

/// The lines of one section.
fn section<'a>(page: &'a str, name: &str) -> Vec<&'a str> {
    let head = format!(".Sh {name}");
    let lines = page.lines().skip_while(|line| *line != head).skip(1);
    let lines: Vec<&str> = lines.take_while(|line| !line.starts_with(".Sh ")).collect();
    assert!(!lines.is_empty(), "no section {name}");
    lines
}

/// The options that a line of the manual names, as `.Fl -long`.
fn options_named(line: &str) -> impl Iterator<Item = String> + '_ {
    let long = line.split("Fl -").skip(1).filter_map(|rest| rest.split_whitespace().next());
    long.filter(|word| *word != "Ar").map(str::to_owned)
}

#[test]
fn every_command_and_option_is_in_the_manual_and_back() {
    let Some(page) = page("opm.1") else { return };
    let global = options(&help(&[]));
    let mut offences = Vec::new();
    let described = section(&page, "COMMANDS");
    // `.It Cm name …` begins a command; what follows is its own.
    let mut manual: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    let mut current = None;
    for line in &described {
        if let Some(rest) = line.strip_prefix(".It Cm ") {
            current = rest.split_whitespace().next();
        }
        let named = current.map(|command| manual.entry(command).or_default());
        if let (Some(options), true) = (named, line.starts_with(".It ")) {
            options.extend(options_named(line));
        }
    }
    let text = described.join("\n");
    let waiting = ["wait", "no-wait", "timeout"];
    let commands = commands();
    for (command, aliases) in &commands {
        let Some(manual) = manual.get(command.as_str()) else {
            offences.push(format!("`{command}` is not in opm(1)"));
            continue;
        };
        for alias in aliases.iter().filter(|alias| !text.contains(&format!(".Cm {alias}\n"))) {
            offences.push(format!("`{alias}`, for `{command}`, is not in opm(1)"));
        }
        if command == "help" {
            continue;
        }
        let program = &options(&help(&[command])) - &global;
        // These are described once for all of these.
        let is_shared = |option: &&String| {
            matches!(command.as_str(), "start" | "stop" | "restart" | "reload")
                && waiting.contains(&option.as_str())
        };
        for option in program.difference(manual).filter(|option| !is_shared(option)) {
            offences.push(format!("`{command} --{option}` is not in opm(1)"));
        }
        for option in manual.difference(&program).filter(|option| !global.contains(*option)) {
            offences.push(format!("opm(1) has `{command} --{option}`, the program has not"));
        }
    }
    for command in manual.keys().filter(|command| !commands.contains_key(**command)) {
        offences.push(format!("opm(1) has `{command}`, the program has not"));
    }
    let everywhere: BTreeSet<String> =
        section(&page, "DESCRIPTION").iter().flat_map(|line| options_named(line)).collect();
    for option in global.difference(&everywhere) {
        offences.push(format!("`--{option}`, of every command, is not in opm(1)"));
    }
    fail_with("opm(1) and the arguments", &offences);
}

#[test]
fn the_page_on_deployments_names_only_what_there_is() {
    let Some(page) = page("opm-apply.1") else { return };
    let commands = commands();
    let mut known = options(&help(&[]));
    let with_help = commands.keys().filter(|command| *command != "help");
    known.extend(with_help.flat_map(|command| options(&help(&[command]))));
    let mut offences = Vec::new();
    for line in page.lines() {
        let in_text = line
            .split("--")
            .skip(1)
            .filter_map(|rest| rest.split(|c: char| !c.is_ascii_lowercase() && c != '-').next());
        let named = in_text.map(str::to_owned).chain(options_named(line));
        let unknown = named.filter(|option| !option.is_empty() && !known.contains(option));
        offences.extend(unknown.map(|option| format!("--{option}: {line}")));
        let command = line.split("opm ").nth(1).and_then(|rest| rest.split(' ').next());
        let is_word = |word: &&str| word.starts_with(|c: char| c.is_ascii_lowercase());
        if let Some(word) = command.filter(|_| line.starts_with(".Ql opm ")).filter(is_word)
            && !commands.contains_key(word)
        {
            offences.push(format!("opm {word}: {line}"));
        }
    }
    fail_with("opm-apply(1) and the arguments", &offences);
}

#[test]
fn every_exit_code_is_in_the_manual_and_back() {
    let Some(page) = page("opm.1") else { return };
    let lines = section(&page, "EXIT STATUS");
    let manual: BTreeMap<&str, String> = (0..lines.len())
        .filter_map(|place| {
            let code = lines[place].strip_prefix(".It ")?;
            Some((code, lines.get(place + 1)?.to_lowercase()))
        })
        .collect();
    let program = opm::cli::Exit::ALL.map(|(exit, _)| (exit as u8).to_string());
    let in_manual: Vec<&str> = manual.keys().copied().collect();
    assert_eq!(in_manual, program, "the codes of opm(1), EXIT STATUS, and those of the program");
    for (exit, meaning) in opm::cli::Exit::ALL {
        let text = &manual[(exit as u8).to_string().as_str()];
        let first = meaning.split([',', ' ']).next().unwrap();
        assert!(text.contains(first), "{exit:?}: `{meaning}` in the program, `{text}` in opm(1)");
    }
}

#[test]
fn every_field_of_a_row_of_status_is_in_the_manual_and_back() {
    let Some(page) = page("opm.1") else { return };
    let lines = section(&page, "COMMANDS");
    let of_status = lines.iter().skip_while(|line| !line.starts_with(".It Cm status"));
    let named = of_status.skip(1).take_while(|line| !line.starts_with(".It Cm "));
    let described: BTreeSet<&str> = named
        .filter_map(|line| line.strip_prefix(".It Va "))
        .flat_map(|names| names.split(" , "))
        .filter(|name| name.chars().all(|c| !c.is_uppercase()))
        .collect();
    let types = opm::protocol::CONTROL_DESCRIPTION;
    let (_, row) = types.split_once("type Instance (").unwrap();
    let (row, _) = row.split_once("\n)").unwrap();
    let known = row.lines().filter_map(|line| Some(line.split_once(':')?.0.trim())).collect();
    assert_eq!(described, known, "opm(1), status, and the type Instance");
}

#[test]
fn every_key_is_in_the_manual_and_back() {
    let Some(page) = page("opm-unit.5") else { return };
    let mut described = BTreeSet::new();
    for name in ["KEYS OF EVERY UNIT", "KEYS OF SERVICES AND TASKS", "KEYS OF SOCKETS"] {
        for line in section(&page, name) {
            if let Some(keys) = line.strip_prefix(".It Ic ") {
                described.extend(keys.split(" , Ic ").map(str::trim));
            }
        }
    }
    let later = section(&page, "KEYS THAT ARE NOT SUPPORTED YET");
    let later: BTreeSet<&str> = later
        .iter()
        .filter_map(|line| line.strip_prefix(".Ic ")?.split_whitespace().next())
        .collect();
    let mut offences = Vec::new();
    for key in KEYS {
        let (here, there) = if key.supported { (&described, &later) } else { (&later, &described) };
        if !here.contains(key.path) {
            let kind = if key.supported { "supported" } else { "not supported" };
            offences.push(format!("`{}`, which is {kind}, is not there in opm-unit(5)", key.path));
        }
        if key.supported && there.contains(key.path) {
            offences.push(format!("`{}` is supported; opm-unit(5) says it is not", key.path));
        }
    }
    let known: BTreeSet<&str> = KEYS.iter().map(|key| key.path).collect();
    for key in described.union(&later).filter(|key| !known.contains(**key)) {
        offences.push(format!("opm-unit(5) has `{key}`, the table of keys has not"));
    }
    fail_with("opm-unit(5) and the table of keys", &offences);
}

#[test]
fn manual_pages_are_clean() {
    let pages = files("man", "");
    if pages.is_empty() {
        return skip("there are no manual pages yet");
    }
    let mut mandoc = Command::new("mandoc");
    mandoc.args(["-T", "lint", "-W", "warning"]).args(&pages).current_dir(ROOT);
    match mandoc.output() {
        Err(error) => skip(&format!("no mandoc: {error}")),
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && text.is_empty(), "{text}");
        }
    }
}

// What else is in the tree.

#[test]
fn the_sample_units_have_no_mistake() {
    let names = files("units", ".yaml");
    assert!(!names.is_empty(), "no sample units");
    let source = |name: &String| SourceFile {
        path: FilePath::from(at(name).as_path()),
        text: fs::read(at(name)).unwrap(),
    };
    let sources: Vec<SourceFile> = names.iter().map(source).collect();
    let loaded = opm::config::load(&sources, &BTreeMap::new(), &[]);
    let said: Vec<String> = loaded
        .diagnostics
        .iter()
        .map(|said| format!("{}:{}: {}", said.file, said.line, said.message))
        .collect();
    fail_with("sample units", &said);
    assert!(loaded.specs.len() >= names.len());
}

#[test]
fn the_changelog_has_its_form() {
    let text = read(&at("CHANGELOG.md"));
    // Those of Keep a Changelog, and what an operator should not expect.
    let kinds = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security", "Known limits"];
    let mut offences = Vec::new();
    let mut versions = Vec::new();
    for (line, text) in (1..).zip(text.lines()) {
        if let Some(kind) = text.strip_prefix("### ") {
            if !kinds.contains(&kind) {
                offences.push(format!("line {line}: `{kind}` is none of {kinds:?}"));
            }
        } else if let Some(version) = text.strip_prefix("## ") {
            versions.push(version);
            let dated = version.strip_prefix('[').and_then(|rest| rest.split_once("] - "));
            let is_date = |date: &str| {
                date.len() == 10 && date.chars().all(|c| c.is_ascii_digit() || c == '-')
            };
            let fits = version == "[Unreleased]"
                || dated
                    .is_some_and(|(number, date)| number.split('.').count() == 3 && is_date(date));
            if !fits {
                offences.push(format!("line {line}: write `## [1.2.3] - 2026-01-31`"));
            }
        }
    }
    fail_with("CHANGELOG.md", &offences);
    assert!(text.starts_with("# Changelog\n"));
    assert_eq!(versions.first(), Some(&"[Unreleased]"), "what is not released comes first");
    let current = format!("[{}]", env!("CARGO_PKG_VERSION"));
    let released = versions.iter().any(|version| version.starts_with(&current));
    assert!(released || versions.len() == 1, "no entry for {current}");
}

#[test]
fn links_lead_somewhere() {
    let mut offences = Vec::new();
    for file in files("", ".md") {
        let text = read(&at(&file));
        for (place, _) in text.match_indices("](") {
            let Some(target) = text[place + 2..].split([')', ' ', '\n']).next() else { continue };
            let target = target.split('#').next().unwrap_or_default();
            if target.is_empty() || target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let dir = at(&file).parent().unwrap().to_owned();
            if !dir.join(target).exists() {
                offences.push(format!("{file}: `{target}` does not exist"));
            }
        }
    }
    fail_with("links", &offences);
}
