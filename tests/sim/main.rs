//! The real supervisor over a simulated machine. One seed makes one world; what a world finds is
//! found again with its seed:
//!
//! ```sh
//! SEED=42 cargo test --test sim random -- --nocapture       # that world, and what happened in it
//! make soak HOURS=1                                          # new seeds, as many as there is time for
//! ```
//!
//! - `machine.rs`, `drive.rs`, `program.rs`: processes, clocks and a disk that forgets; `setting.rs`:
//!   what they are like, and what goes wrong.
//! - `system.rs`: the supervisor's seam to them, with the real ledger and saved state.
//! - `world.rs`: what the daemon's loop does.
//! - `scene.rs`: what was seen. `check.rs`, `once.rs`: what must hold of it.
//! - `file.rs`, `story.rs`, `goal.rs`: random worlds, and where they must come to. `small.rs`: all
//!   small ones.
//! - `watchdog.rs`: who pings, and who falls silent. `edits.rs`: who watches files that change.
//! - `points.rs`: one life, cut off at each of its operations. `planted.rs`: faults to be found.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a test stops at the first surprise, and says what it saw; a soak is timed"
)]

mod back;
mod calls;
mod chance;
mod check;
mod clock;
mod conformance;
mod drive;
mod edits;
mod file;
mod foretold;
mod goal;
mod hubs;
mod machine;
mod once;
mod planted;
mod points;
mod ports;
mod program;
mod scene;
mod setting;
mod small;
mod story;
mod system;
mod watchdog;
mod world;

use std::panic::catch_unwind;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use story::Story;

/// So many that failed are enough to look at.
const FAILURES_MAX: usize = 8;
/// Seeds of a plain `cargo test`.
const SEEDS: u64 = 2_000;

/// A soak says how far it is after so many worlds.
const SAYS_EVERY: u64 = 10_000;

/// Seeds of worlds in which a soak found a fault.
const FOUND: [u64; 39] = [
    77_000_000_915,
    77_000_001_022,
    77_100_021_456,
    77_100_041_922,
    77_200_042_646,
    77_800_003_053,
    77_800_006_173,
    77_900_016_423,
    77_900_022_573,
    88_000_005_193,
    88_600_083_969,
    88_800_092_721,
    88_800_219_445,
    90_000_016_282,
    90_000_152_689,
    91_000_014_151,
    95_000_018_834,
    97_000_006_699,
    301_000_342_709,
    301_000_392_429,
    402_000_316_221,
    604_000_004_437,
    705_000_003_906,
    132_000_007_305,
    132_000_292_949,
    30_126_062_604_127_187,
    30_126_062_604_128_453,
    30_126_062_604_130_338,
    30_126_062_604_130_981,
    30_126_062_604_133_436,
    30_126_062_604_136_303,
    30_126_062_604_136_427,
    211_000_051_333,
    213_000_008_534,
    214_000_021_209,
    215_000_022_158,
    217_000_012_942,
    217_000_052_942,
    218_000_027_027,
];

/// One world; `Err` says what was wrong with it.
fn live(seed: u64, says_all: bool) -> Result<(), String> {
    let mut story = Story::new(seed, None);
    let lived = story.live();
    if says_all {
        eprintln!("{}\n{}", story.files(), world::lines(&story.world.timeline));
    }
    lived.map_err(|why| {
        format!("seed {seed}: {why}\nrun it alone: SEED={seed} cargo test --test sim random")
    })
}

/// Worlds on every processor, until one fails or all are lived: how many were.
fn live_all(seeds: impl Fn(u64) -> Option<u64> + Sync) -> u64 {
    let next = AtomicU64::new(0);
    let failed = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(seed) = seeds(next.fetch_add(1, Ordering::Relaxed)) {
                    let lived = catch_unwind(|| live(seed, false));
                    let lived = lived.unwrap_or_else(|_| Err(format!("seed {seed} panics")));
                    if let Err(why) = lived {
                        eprintln!("seed {seed} fails");
                        failed.lock().unwrap().push(why);
                    }
                    if failed.lock().unwrap().len() >= FAILURES_MAX {
                        break;
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
    next.into_inner() - u64::try_from(threads).unwrap()
}

#[test]
fn random_worlds_keep_every_promise() {
    if let Ok(seed) = std::env::var("SEED") {
        live(seed.parse().unwrap(), true).unwrap();
        return;
    }
    let found = |n: u64| FOUND.get(usize::try_from(n).unwrap()).copied();
    live_all(|n| n.checked_sub(SEEDS).map_or(Some(n), found));
}

/// `make soak`: worlds that nobody has seen, for as long as the hours that are given.
#[test]
#[ignore = "runs for hours"]
fn soak() {
    let hours: f64 = std::env::var("HOURS").map_or(1.0, |hours| hours.parse().unwrap());
    let first = std::env::var("FIRST").map_or_else(
        |_| SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() << 24,
        |first| first.parse().unwrap(),
    );
    let began = Instant::now();
    let end = Duration::from_secs_f64(hours * 3_600.0);
    let lived = live_all(|n| {
        let passed = began.elapsed();
        if n > 0 && n % SAYS_EVERY == 0 {
            eprintln!("{n} worlds, {} s", passed.as_secs());
        }
        (passed < end).then_some(first + n)
    });
    let seconds = began.elapsed().as_secs_f64();
    eprintln!("{lived} worlds from seed {first}: {seconds:.0} s");
}
