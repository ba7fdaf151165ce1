//! Bytes from outside, whatever they are: each target of `tests/fuzz/` over its corpus in
//! `fuzz/corpus/`, and over a few thousand changes of it. `OPM_SEED=n cargo test --test fuzz NAME`
//! runs one of these again. `fuzz/README.md` tells how to look for more.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that cannot go on ends")]

#[path = "fuzz/hard.rs"]
mod hard;
#[path = "fuzz/mod.rs"]
mod targets;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use targets::{TARGETS, Target};

/// Most files of all corpora, and most bytes: they are in every clone.
const CORPUS_FILES_MAX: usize = 250;
/// Most bytes of all corpora.
const CORPUS_BYTES_MAX: u64 = 200 * 1024;

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target)
}

/// Whether there is a corpus. A crate as it is published has none, since `fuzz/` is a crate too.
#[expect(clippy::print_stderr, reason = "a test that is skipped says why")]
fn has_corpus() -> bool {
    let is_there = corpus("").is_dir();
    if !is_there {
        let why = "there is no fuzz/corpus/ here";
        assert!(std::env::var("OPM_TESTS").as_deref() != Ok("all"), "may not be skipped: {why}");
        eprintln!("skipped: {why}");
    }
    is_there
}

/// The files of a directory, in order.
fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<PathBuf> = entries.filter(|path| path.is_file()).collect();
    paths.sort();
    paths
}

/// The files of a target's corpus, by name; those of `tests/config/` are unit files too.
fn samples(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let mut paths = files(&corpus(target));
    if target == "yaml" {
        let others = files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config"));
        paths.extend(
            others.into_iter().filter(|path| path.extension().is_some_and(|e| e == "yaml")),
        );
    }
    paths.into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

/// Says what was being run, where that ends in a panic.
struct Telling(String, Vec<u8>);

impl Drop for Telling {
    #[expect(clippy::print_stderr, reason = "this is what the reader of a failure needs")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}: \"{}\"", self.0, self.1.escape_ascii());
        }
    }
}

fn run(target: Target, said: String, bytes: Vec<u8>) {
    let telling = Telling(said, bytes);
    target(&telling.1);
}

/// A target over its corpus, and over so many changes of it.
fn smoke(name: &str, changes: u64) {
    if !has_corpus() {
        return;
    }
    let (_, target) = TARGETS.into_iter().find(|(known, _)| *known == name).unwrap();
    let samples = samples(name);
    let seed: Option<u64> = std::env::var("OPM_SEED").ok().and_then(|seed| seed.parse().ok());
    if seed.is_none() {
        for (path, bytes) in &samples {
            run(target, path.display().to_string(), bytes.clone());
        }
    }
    for seed in seed.map_or(0..changes, |seed| seed..seed + 1) {
        let bytes = changed(&samples, seed);
        let said = format!("OPM_SEED={seed} cargo test --test fuzz {name}");
        run(target, said, bytes);
    }
}

macro_rules! targets {
    ($($name:ident $changes:literal)+) => {
        $(#[test] fn $name() { smoke(stringify!($name), $changes); })+

        #[test]
        fn every_target_has_a_test_and_a_corpus() {
            let all: BTreeSet<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
            assert_eq!(all, BTreeSet::from([$(stringify!($name)),+]));
            if !has_corpus() {
                return;
            }
            let entries = std::fs::read_dir(corpus("")).unwrap().map(|entry| entry.unwrap());
            let there: BTreeSet<String> =
                entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
            assert_eq!(all.into_iter().map(str::to_owned).collect::<BTreeSet<_>>(), there);
        }
    };
}

targets! {
    yaml 2000
    protocol 1500
    ledger 1000
    saved 3000
    stat 3000
    split 100
    reader 40
    instruction 3000
    notify 3000
    values 3000
}

#[test]
fn the_corpus_is_small() {
    if !has_corpus() {
        return;
    }
    let all: Vec<PathBuf> = TARGETS.iter().flat_map(|(name, _)| files(&corpus(name))).collect();
    let bytes: u64 = all.iter().map(|path| path.metadata().unwrap().len()).sum();
    assert!(all.len() <= CORPUS_FILES_MAX, "{} files", all.len());
    assert!(bytes <= CORPUS_BYTES_MAX, "{bytes} bytes");
}

/// A target that fails on purpose: what looks for faults finds one.
#[test]
fn a_fault_would_be_found() {
    let canary: Target = |bytes| assert!(!bytes.windows(2).any(|two| two == b"${"));
    let samples = [(PathBuf::new(), b"a: b".to_vec())];
    let found = (0..3_000).any(|seed| {
        let bytes = changed(&samples, seed);
        std::panic::catch_unwind(|| canary(&bytes)).is_err()
    });
    assert!(found);
}

/// Numbers that look random, the same for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % n.max(1)
    }
}

/// Pieces that mean something to YAML, to JSON, or to opm.
const PIECES: [&[u8]; 60] = [
    b"[",
    b"]",
    b"{",
    b"}",
    b": ",
    b"- ",
    b"\n",
    b"\t",
    b"&a ",
    b"*a",
    b"!t ",
    b"<<: ",
    b"? ",
    b"|\n",
    b">-\n",
    b"'",
    b"\"",
    b"#",
    b"---\n",
    b"...\n",
    b"%YAML 1.2\n",
    b"${",
    b"$",
    b"\\",
    b"\0",
    b"\xff",
    b"\xfe",
    b"\xe2\x80\xae",
    b"name: a\n",
    b"command: ",
    b"requires: [a]\n",
    b"~",
    b"null",
    b"\r\n",
    b"  ",
    b"restart: ",
    b"9999999999999999999999",
    b"-1",
    b"\"\\x00\"",
    b"{fd: 3}",
    b"\xef\xbb\xbf",
    b",",
    b"\"s\":",
    b"\"run\":",
    b"\"i\":\"web\"",
    b"forgotten",
    b"1e308",
    b"0.1",
    b"true",
    b"\\ud800",
    b"\x1c",
    b"\x1d",
    b"18446744073709551615",
    b"2026-11-25T10:32:00.123456Z stdout F ",
    b"READY=1\n",
    b"STATUS=",
    b") ",
    b" (",
    b"10ms",
    b"RTMIN+",
];

/// One of the samples with a few changes, or pieces alone.
fn changed(samples: &[(PathBuf, Vec<u8>)], seed: u64) -> Vec<u8> {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    if random.below(8) == 0 {
        let pieces = (0..random.below(100)).map(|_| PIECES[random.below(PIECES.len())]);
        return pieces.flat_map(<[u8]>::to_vec).collect();
    }
    let mut bytes = samples[random.below(samples.len())].1.clone();
    for _ in 0..=random.below(8) {
        let at = random.below(bytes.len() + 1);
        let end = (at + random.below(12)).min(bytes.len());
        let new: Vec<u8> = match random.below(5) {
            0 => Vec::new(),
            1 => PIECES[random.below(PIECES.len())].to_vec(),
            2 => (0..random.below(6)).map(|_| u8::try_from(random.below(256)).unwrap()).collect(),
            3 => {
                // Of another sample, or of this one.
                let other = &samples[random.below(samples.len())].1;
                let from = random.below(other.len() + 1);
                other[from..(from + random.below(60)).min(other.len())].to_vec()
            }
            _ => [&bytes[at..end], &bytes[at..end]].concat(),
        };
        let is_inserted = random.below(2) == 0;
        bytes.splice(if is_inserted { at..at } else { at..end }, new).for_each(drop);
    }
    bytes
}
