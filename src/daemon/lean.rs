//! When memory is given back that is of no more use.
//!
//! What a change needed for a moment may be many times what is kept of it: that goes in the turn of the
//! change. Most of the program is needed for reading, planning and answering, and not to supervise: its
//! pages are let go of when nothing has changed for a while after the begin of opm, a change, or the last
//! word of a client. A restart lets nothing go, so that what it needs is there for the next one.

use crate::model::Monotonic;
use crate::system::{self, LET_GO_AFTER};

/// What was given back, and what is to be.
#[derive(Debug)]
pub(super) struct Lean {
    /// The generation since which free blocks were given back.
    generation: u64,
    /// When the program's pages are to be let go of.
    due: Option<Monotonic>,
}

impl Lean {
    /// At the begin of opm.
    pub(super) fn new(now: Monotonic) -> Self {
        Self { generation: 0, due: Some(now.after(LET_GO_AFTER)) }
    }

    /// A client has said something.
    pub(super) fn heard(&mut self, now: Monotonic) {
        self.due = Some(now.after(LET_GO_AFTER));
    }

    /// At the end of a turn. `has_changed`: whether anything happened in it that clients may see.
    pub(super) fn look(&mut self, now: Monotonic, generation: u64, has_changed: bool) {
        if generation != self.generation {
            self.generation = generation;
            system::give_back_memory();
            self.heard(now);
        } else if has_changed && self.due.is_some() {
            self.heard(now);
        }
    }

    /// When the wait for the kernel is to end, so that the program's pages can be let go of.
    pub(super) fn wake_at(&self) -> Option<Monotonic> {
        self.due
    }

    /// Whether to let go of them right before that wait, which needs few of them: they are due, and
    /// are not any more from now on.
    pub(super) fn take_due(&mut self, now: Monotonic) -> bool {
        self.due.take_if(|due| *due <= now).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Span;

    fn at(millis: u64) -> Monotonic {
        Monotonic::from_nanos(0).after(Span::millis(millis))
    }

    #[test]
    fn the_program_is_let_go_of_once_after_all_that_follows_a_word() {
        let mut lean = Lean::new(at(0));
        assert_eq!(lean.wake_at(), Some(at(1000)));
        // What the word has set off goes on for a while.
        lean.look(at(900), 1, true);
        lean.look(at(1500), 1, true);
        lean.look(at(2400), 1, false);
        assert!(!lean.take_due(at(2499)));
        assert_eq!(lean.wake_at(), Some(at(2500)));
        assert!(lean.take_due(at(2500)));
        assert_eq!(lean.wake_at(), None);
        assert!(!lean.take_due(at(2501)));
        // A restart is no word; an idle opm wakes no more.
        lean.look(at(9000), 1, true);
        assert_eq!(lean.wake_at(), None);
        lean.heard(at(9000));
        assert!(lean.take_due(at(10_000)));
        // Nor does a change by no client go unseen, such as a schedule that was kept.
        lean.look(at(20_000), 2, true);
        assert_eq!(lean.wake_at(), Some(at(21_000)));
    }
}
