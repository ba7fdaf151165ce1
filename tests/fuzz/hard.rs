//! Large unit files, each the worst for some way to read them: none takes long, and what is said of
//! it is short. An engine that looks for new paths does not come to them.

use std::collections::BTreeMap;
use std::path::Path;

use opm::config::{self, SourceFile};
use opm::model::FilePath;

use crate::targets::check_said;

/// Longest time for one file, in a test build on a busy machine; what it bounds is a square or worse
/// of the file's length, which would take minutes.
const LOAD_MAX: std::time::Duration = std::time::Duration::from_secs(20);

/// Large texts that are the worst for some parser.
fn hard_texts() -> Vec<String> {
    let repeat = |piece: &str| piece.repeat(50_000 / piece.len());
    let each = |n: usize, text: &dyn Fn(usize) -> String| (0..n).map(text).collect::<String>();
    let mut texts: Vec<String> = [
        "[", "{", "- ", "? ", "a: ", "[a,", "{a: ", "!a ", "&a ", "*a ", "'", "\"", "\n", "x: y\n",
        "k\n", "--- a\n", "%", "#\n", "x", "a:\n ", "é", "&a [",
    ]
    .map(repeat)
    .into();
    texts.extend([
        format!("command: \"{}\"", repeat("${env:A} ")),
        format!("command: {}", repeat("'a ")),
        format!("env: {{{}}}", repeat("A: b, ")),
        format!("requires: [{}]", repeat("abc, ")),
        format!("requires: [{}]", each(10_000, &|n| format!("u{n},"))),
        format!("requires: [{}]", repeat("é, ")),
        format!("{}{}{}", "&a [".repeat(60), repeat("b,"), "]".repeat(60)),
        each(7_000, &|n| format!("k{n}: v\n")),
        each(7_000, &|n| format!("k{n}: &a{n} v\n")),
        each(5_000, &|n| format!("---\nname: u{n}\n")),
        each(2_000, &|n| format!("---\nname: u{n}\ncommand: a\nafter: [u{}]\n", (n + 1) % 2_000)),
        each(5_000, &|n| format!("---\nname: u{n}\ncommand: a\nafter: [u{}]\n", (n + 1) % 2_000)),
    ]);
    texts
}

/// Each key with a long text in the place of its value, of an item of it and of a key in it.
fn long_texts() -> Vec<String> {
    let mut texts = Vec::new();
    for long in ["x".repeat(3_000), format!("/${{{}}}", "é".repeat(2_000)), "/x".repeat(1_500)] {
        let forms = [
            format!("\"{long}\""),
            format!("[\"{long}\", \"{long}\"]"),
            format!("{{\"{long}\": \"{long}\"}}"),
        ];
        for value in forms {
            texts.push(config::KEYS.iter().map(|key| unit_with(key.path, &value)).collect());
        }
        texts.push(format!("? \"{long}\"\n: a\n\"{long}\": b\n"));
        let writer = |name: &str| {
            format!("---\nname: {name}\ncommand: a\nlogs: {{to: {{path: \"{long}\"}}}}\n")
        };
        texts.push(writer("a") + &writer("b"));
    }
    texts
}

/// A document in which one key has this value.
fn unit_with(key: &str, value: &str) -> String {
    let mut text = format!("---\nname: k-{key}");
    if !["command", "shell", "name"].contains(&key) {
        text += "\ncommand: a";
    }
    for (depth, part) in key.split('.').enumerate() {
        text = format!("{text}\n{}{part}:", "  ".repeat(depth));
    }
    format!("{text} {value}\n")
}

/// Loads and draws, and checks what was said.
#[expect(clippy::disallowed_methods, reason = "how long it takes is what is tested")]
fn try_text(text: String) {
    let start: String = text.chars().take(40).collect();
    let begun = std::time::Instant::now();
    let path = FilePath::from(Path::new("/units/unit.yaml"));
    let files = [SourceFile { path, text: text.into() }];
    let loaded = config::load(&files, &BTreeMap::new(), &[]);
    let drawn = config::render(&loaded.diagnostics, &files, false);
    let passed = begun.elapsed();
    assert!(passed < LOAD_MAX, "{start}: {passed:?}");
    check_said(&files, &loaded.diagnostics, &drawn);
}

#[test]
fn no_file_takes_long() {
    hard_texts().into_iter().for_each(try_text);
}

#[test]
fn what_is_said_of_a_long_text_is_short() {
    long_texts().into_iter().for_each(try_text);
}
