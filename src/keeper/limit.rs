//! How many lines of one instance are taken in a time: `logs.rate`. Pure: time is an argument.
//!
//! A time begins with its first line. A line is taken or dropped whole, with all of its parts.

use crate::model::LogRate;

/// The lines of an instance, counted.
#[derive(Debug)]
pub(super) struct Limit {
    rate: LogRate,
    /// When the time is over that began with a line, in milliseconds.
    until: Option<u64>,
    /// Lines that were taken in it.
    taken: u32,
    /// Whether the line that is under way is dropped.
    is_dropping: bool,
}

impl Limit {
    pub(super) fn new(rate: LogRate) -> Self {
        Self { rate, until: None, taken: 0, is_dropping: false }
    }

    /// Takes over a changed rate; what was counted counts on.
    pub(super) fn change(&mut self, rate: LogRate) {
        if self.rate.per != rate.per {
            self.until = None;
        }
        self.rate = rate;
    }

    /// Whether a part of a line is taken; `begins`: it is the first one of its line.
    pub(super) fn takes(&mut self, begins: bool, now: u64) -> bool {
        if begins {
            if self.is_over(now) {
                self.until = Some(now.saturating_add(self.rate.per.as_millis_up()));
                self.taken = 0;
            }
            self.is_dropping = self.taken >= self.rate.lines;
            self.taken = self.taken.saturating_add(u32::from(!self.is_dropping));
        }
        !self.is_dropping
    }

    /// Whether the next line begins a new time.
    pub(super) fn is_over(&self, now: u64) -> bool {
        self.until.is_none_or(|until| now >= until)
    }

    /// When the time is over.
    pub(super) fn until(&self) -> Option<u64> {
        self.until
    }

    /// Why lines were dropped, for the record about them.
    pub(super) fn reason(&self) -> String {
        format!("more than {} in {}", self.rate.lines, self.rate.per)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Span;

    #[test]
    fn so_many_lines_are_taken_in_each_time() {
        let mut limit = Limit::new(LogRate { lines: 2, per: Span::millis(100) });
        let mut taken = |begins, now| limit.takes(begins, now);
        assert!(taken(true, 5));
        assert!(taken(true, 104), "the second");
        assert!(!taken(true, 104), "the third");
        assert!(!taken(false, 105), "its rest, although the time is over");
        assert!(taken(true, 105));
        assert!(taken(true, 105));
        assert!(!taken(true, 204));
        assert!(taken(true, 205));
        assert!(taken(false, 999), "the rest of a line that was taken");
        assert_eq!(limit.reason(), "more than 2 in 100ms");
    }
}
