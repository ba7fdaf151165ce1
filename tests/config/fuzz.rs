//! Files that somebody with bad luck or bad will wrote: none panics, none takes long.

use opm::config::{self, Diagnostic};

use super::{directory, file, load};

/// A small random number generator: the same numbers for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % n.max(1)
    }
}

/// Pieces that mean something to YAML or to opm.
const PIECES: [&[u8]; 40] = [
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
    b"}",
    b"\\",
    b"\0",
    b"\xff",
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
];

fn mutated(random: &mut Random, text: &[u8]) -> Vec<u8> {
    let mut text = text.to_vec();
    for _ in 0..=random.below(8) {
        let at = random.below(text.len() + 1);
        let end = (at + random.below(12)).min(text.len());
        match random.below(4) {
            0 => drop(text.drain(at..end)),
            1 => text
                .splice(at..at, PIECES[random.below(PIECES.len())].iter().copied())
                .for_each(drop),
            2 => text
                .splice(
                    at..end,
                    (0..random.below(6))
                        .map(|_| u8::try_from(random.below(256)).unwrap())
                        .collect::<Vec<_>>(),
                )
                .for_each(drop),
            _ => {
                let piece = text[at..end].to_vec();
                let to = random.below(text.len() + 1);
                text.splice(to..to, piece).for_each(drop);
            }
        }
    }
    text
}

/// 2,000 files that somebody with bad luck or bad will wrote: none of them panics, and none takes
/// long. The seed is printed when one does; `SEED=n` runs it again.
#[test]
fn no_file_makes_it_panic() {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = seed.map_or(0..2_000, |seed: u64| seed..seed + 1);
    let mut samples: Vec<Vec<u8>> = Vec::new();
    for entry in std::fs::read_dir(directory()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            samples.push(std::fs::read(path).unwrap());
        }
    }
    samples.sort();
    for seed in seeds {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let sample = random.below(samples.len());
        let text = if random.below(4) == 0 {
            let pieces = (0..random.below(400)).map(|_| PIECES[random.below(PIECES.len())]);
            pieces.flat_map(<[u8]>::to_vec).collect()
        } else {
            mutated(&mut random, &samples[sample])
        };
        println!("seed {seed}: {:?}", String::from_utf8_lossy(&text));
        let files = [file("unit.yaml", text)];
        let loaded = load(&files);
        let drawn = config::render(&loaded.diagnostics, &files, false);
        assert!(drawn.chars().all(|c| c == '\n' || !c.is_control()), "seed {seed}: {drawn:?}");
        assert!(
            loaded.diagnostics.iter().all(|found: &Diagnostic| found.line > 0 && found.column > 0)
        );
    }
}

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
        each(5_000, &|n| format!("---\nname: u{n}\ncommand: a\nafter: [u{}]\n", (n + 1) % 2_000)),
    ]);
    texts
}

#[test]
#[expect(clippy::disallowed_methods, reason = "how long it takes is what is tested")]
fn no_file_takes_long() {
    for text in hard_texts() {
        let start: String = text.chars().take(20).collect();
        let files = [file("unit.yaml", text)];
        let begun = std::time::Instant::now();
        let loaded = load(&files);
        let drawn = config::render(&loaded.diagnostics, &files, false);
        assert!(begun.elapsed() < LOAD_MAX, "{start}: {:?}", begun.elapsed());
        println!("{start:?}: {:?}", begun.elapsed());
        assert!(drawn.len() < 200_000, "{start}: {}", drawn.len());
    }
}
