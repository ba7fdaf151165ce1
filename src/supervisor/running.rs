//! How many runs there are, counted as they begin and end: a shutdown asks after every event.

use super::keeper_unit::is_keeper;
use super::neighbours::Visible;
use crate::model::{Observed, UnitName};

/// The counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Running {
    /// Runs, the log keeper's apart.
    runs: usize,
    /// Those that keep a shutdown from its end, the log keeper's too.
    open: usize,
}

impl Running {
    pub(super) fn of(observed: &Observed) -> Self {
        let mut running = Self::default();
        for (id, instance) in observed.iter() {
            running.change(&id.unit, None, Some(&Visible::of(instance)));
        }
        running
    }

    /// An instance was this before, and is that now; whether a run has begun or ended that counts.
    pub(super) fn change(
        &mut self,
        unit: &UnitName,
        before: Option<&Visible>,
        after: Option<&Visible>,
    ) -> bool {
        let open = |seen: Option<&Visible>| seen.is_some_and(|seen| seen.is_open);
        count(&mut self.open, open(before), open(after));
        let runs = |seen: Option<&Visible>| seen.is_some_and(|seen| seen.run) && !is_keeper(unit);
        count(&mut self.runs, runs(before), runs(after))
    }

    /// Whether nobody but the log keeper runs.
    pub(super) fn is_none(self) -> bool {
        self.runs == 0
    }

    /// Whether nothing keeps a shutdown from its end.
    pub(super) fn is_over(self) -> bool {
        self.open == 0
    }
}

fn count(number: &mut usize, before: bool, after: bool) -> bool {
    match (before, after) {
        (false, true) => *number = number.saturating_add(1),
        (true, false) => *number = number.saturating_sub(1),
        (true, true) | (false, false) => {}
    }
    before != after
}
