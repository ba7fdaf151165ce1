//! What was applied, and when: the way back.
//!
//! Each apply, rollback and revert is a [`Record`] under the generation that it made. A record says
//! for every source which [`Revision`] of it was in force: the generation at which the source was
//! last applied. Going back to a record puts its revisions in force and nothing else: holds, epochs
//! and what was started by hand are the operator's, and stay.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::path::FilePath;
use super::spec::Spec;
use super::time::{Monotonic, Span, Wall};

/// Longest message of an apply, in bytes. A line for people; what is longer belongs in a file.
pub const MESSAGE_BYTES_MAX: usize = 1_024;

/// For each source, the generation of its revision.
pub type Sources = BTreeMap<String, u64>;

/// Who changed what is applied, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Author {
    /// Who: `uid 0`, or `opm` at boot and at a revert.
    pub by: String,
    /// Why, in their words.
    #[serde(default)]
    pub message: String,
}

/// One change of what is applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The generation that it made.
    pub generation: u64,
    /// The record before; 0 for the first.
    pub before: u64,
    /// When.
    pub at: Wall,
    /// Who, and why.
    pub author: Author,
    /// By what.
    pub cause: Cause,
    /// What is applied since.
    pub sources: Sources,
}

/// By what the applied units changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// A source was applied.
    Apply {
        /// Which one.
        source: String,
    },
    /// Somebody went back.
    Rollback {
        /// To the record of this generation; 0: to nothing.
        to: u64,
    },
    /// Nobody confirmed a trial in time.
    Revert {
        /// Back to the record of this generation; 0: to nothing.
        to: u64,
    },
}

/// A source as it was applied once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
pub struct Revision {
    /// Its name.
    pub source: String,
    /// What it declared.
    pub specs: Vec<Arc<Spec>>,
    /// The files that said so.
    pub files: Vec<KeptFile>,
    /// The directory of these files, where that is not the source's name.
    #[serde(default)]
    pub dir: Option<String>,
    /// The profiles that were chosen, in order.
    #[serde(default)]
    pub profiles: Vec<String>,
    /// The settings of the command line.
    #[serde(default)]
    pub sets: Vec<String>,
}

/// A file of a revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptFile {
    /// Where it was.
    pub path: FilePath,
    /// Its text; what was no text is left out.
    pub text: String,
}

/// An apply that is taken back unless somebody confirms it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// What was applied before.
    pub sources: Sources,
    /// The record of that; 0: nothing was.
    pub before: u64,
    /// How many instances of a unit may be away at a time when it is taken back.
    #[serde(default)]
    pub rolling: Option<u32>,
    /// How long it was given.
    pub span: Span,
    /// When it ends, by the wall clock: for after a reboot.
    pub until: Wall,
    /// When it ends, by the clock that counts from boot and never steps.
    pub deadline: Monotonic,
    /// The boot that counts from.
    pub boot: String,
}

impl Trial {
    /// How much of it is left in a boot, at a time of both clocks.
    ///
    /// After a reboot the wall clock must do. It may be wrong then (a machine without a clock of its
    /// own starts in the past), so that what is left is never more than what was given.
    pub fn left(&self, boot: &str, steady: Monotonic, wall: Wall) -> Span {
        if self.boot == boot {
            self.deadline.since(steady).min(self.span)
        } else {
            self.until.since(wall).min(self.span)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial() -> Trial {
        Trial {
            sources: Sources::new(),
            before: 0,
            rolling: None,
            span: Span::seconds(60),
            until: Wall(1_000_000_000),
            deadline: Monotonic::default().after(Span::seconds(500)),
            boot: "a".to_owned(),
        }
    }

    fn steady(seconds: u64) -> Monotonic {
        Monotonic::default().after(Span::seconds(seconds))
    }

    #[test]
    fn in_one_boot_the_wall_clock_does_not_count() {
        for wall in [Wall(0), Wall(1_000_000_000), Wall(i64::MAX)] {
            assert_eq!(trial().left("a", steady(470), wall), Span::seconds(30));
            assert_eq!(trial().left("a", steady(501), wall), Span::ZERO);
        }
    }

    #[test]
    fn after_a_reboot_the_wall_clock_counts_and_never_gives_more_than_was_given() {
        let left = |wall| trial().left("b", steady(1), Wall(wall));
        assert_eq!(left(990_000_000), Span::seconds(10));
        assert_eq!(left(1_000_000_001), Span::ZERO);
        assert_eq!(left(0), Span::seconds(60), "a clock that starts in the past");
    }
}
