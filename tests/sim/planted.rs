//! The simulator is tested too: each of these faults, planted, is found within so many seeds. They
//! are faults that supervisors have had; none is in the product, they are planted in the simulated
//! machine and in the world's loop.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::setting::Fault;
use crate::story::Story;

/// A fault that takes more seeds is one that the simulator does not find.
const SEEDS_MAX: u64 = 3000;

const FAULTS: [Fault; 14] = [
    Fault::NoGate,
    Fault::LedgerAfterGo,
    Fault::PidIsIdentity,
    Fault::LeaderOnly,
    Fault::NoSync,
    Fault::SaveErrorsIgnored,
    Fault::TornLedger,
    Fault::WallDeadlines,
    Fault::NoRecovery,
    Fault::NoLock,
    Fault::HoldsForgotten,
    Fault::Monitor,
    Fault::NoOrder,
    Fault::EndsNotKept,
];

/// The first seed that finds a fault, and what it says.
fn found(fault: Fault) -> Option<(u64, String)> {
    (0..SEEDS_MAX).find_map(|seed| {
        let lived = std::panic::catch_unwind(|| Story::new(seed, Some(fault)).live());
        let why = lived.unwrap_or_else(|_| Err("the supervisor panics".to_owned())).err()?;
        let what = why.lines().find(|line| line.trim().len() > 1).unwrap_or_default();
        Some((seed, what.trim().to_owned()))
    })
}

#[test]
fn planted_faults_are_found() {
    let next = AtomicUsize::new(0);
    let missed = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(fault) = FAULTS.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match found(*fault) {
                        Some((seed, what)) => eprintln!("{fault:?}: seed {seed}: {what}"),
                        None => missed.lock().unwrap().push(*fault),
                    }
                }
            });
        }
    });
    let missed = missed.into_inner().unwrap();
    assert!(missed.is_empty(), "not found in {SEEDS_MAX} seeds: {missed:?}");
}
