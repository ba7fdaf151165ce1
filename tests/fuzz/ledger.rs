//! The ledger: text to facts.

use std::collections::BTreeSet;

use opm::model::{
    Event, Happening, Instance, InstanceId, Observed, Phase, RunId, STATUS_BYTES_MAX, StartLimit,
};
use opm::system::{compact_text, replay_text};
use serde::Deserialize;

/// Most problems that are told of one ledger.
const PROBLEMS_MAX: usize = 101;

/// A line that sets the facts as a whole.
#[derive(Deserialize)]
struct Whole {
    #[serde(rename = "s")]
    _id: InstanceId,
    facts: Instance,
}

/// Any text gives facts. A text that was cut off gives no run that is not in it, and the facts
/// written anew are the same facts, also for all that is written behind them.
pub fn ledger(text: &[u8]) {
    let all = replay_text(text);
    assert!(all.problems.len() <= PROBLEMS_MAX, "{} problems", all.problems.len());
    let (runs, is_events_only) = runs_of(text);
    check(&all.observed, &runs, is_events_only);
    rewritten(&all.observed);
    let ends = text.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
    let ends: Vec<usize> = ends.collect();
    let somewhere = super::number_of(text) % (text.len() + 1);
    for cut in [somewhere, text.len() / 2, text.len().saturating_sub(1)] {
        let whole = ends.iter().rev().find(|end| **end <= cut).copied().unwrap_or(0);
        let cut_off = replay_text(&text[..cut]).observed;
        assert_eq!(cut_off, replay_text(&text[..whole]).observed, "half a line was acted on");
        check(&cut_off, &runs_of(&text[..whole]).0, is_events_only);
        // From here on a compacted ledger goes on as the long one.
        let mut again = rewritten(&cut_off);
        again.extend_from_slice(&text[whole..]);
        let goes_on = replay_text(&again).observed;
        assert_eq!(lines(&goes_on), lines(&all.observed), "compacted at byte {whole}");
    }
}

fn lines(observed: &Observed) -> String {
    String::from_utf8(compact_text(observed).expect("facts can be written")).expect("text")
}

/// The facts as a ledger of their own, which says the same.
fn rewritten(observed: &Observed) -> Vec<u8> {
    let text = compact_text(observed).expect("facts can be written");
    let again = replay_text(&text);
    assert_eq!(again.problems, [""; 0]);
    // How many processes were counted is not in it.
    assert_eq!(lines(&again.observed), lines(observed));
    text
}

/// The runs that the whole lines of a text begin, and whether all of them are events.
fn runs_of(text: &[u8]) -> (BTreeSet<RunId>, bool) {
    let mut runs = BTreeSet::new();
    let mut is_events_only = true;
    let mut lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').collect();
    lines.pop();
    for line in lines {
        if let Ok(Event { what: Happening::Began { run, .. }, .. }) = serde_json::from_slice(line) {
            runs.insert(run);
        }
        if let Ok(whole) = serde_json::from_slice::<Whole>(line) {
            is_events_only = false;
            runs.extend(whole.facts.run.map(|run| run.id));
        }
    }
    (runs, is_events_only)
}

fn check(observed: &Observed, runs: &BTreeSet<RunId>, is_events_only: bool) {
    for (id, facts) in observed.iter() {
        if let Some(run) = &facts.run {
            assert!(runs.contains(&run.id), "{id}: nobody began run {}", run.id);
        }
        if !is_events_only {
            continue;
        }
        let is_with_run = match facts.phase {
            Phase::Starting | Phase::Up | Phase::Stopping { .. } | Phase::Unproven { .. } => true,
            Phase::Down
            | Phase::Waiting { .. }
            | Phase::Backoff { .. }
            | Phase::Failed { .. }
            | Phase::Done
            | Phase::Skipped { .. } => false,
        };
        assert_eq!(facts.run.is_some(), is_with_run, "{id}: {facts:?}");
        assert!(facts.starts.len() <= StartLimit::STARTS_MAX as usize, "{id}");
        let said = facts.run.as_ref().map_or(0, |run| run.status.len());
        assert!(said <= STATUS_BYTES_MAX, "{id} says {said} bytes");
    }
}
