//! YAML -> specs and every mistake: what an operator wrote, before anything is done about it.
//!
//! [`load`] is a function of the files' bytes and of what other sources declare: it reads no file
//! (but the system's table of time zones), no clock and no environment. It never stops at a mistake; with an error among what it returns,
//! the caller applies nothing of the source.
//!
//! ```text
//! source      bytes -> text with lines        keys     the one table of keys
//! yaml        text -> trees with places       suggest  did you mean …?
//! layers      path -> what a file is for      diagnostic, render   a mistake, and its drawing
//! compose     trees -> one tree for each unit: extends, drop_ins, sets, by the rules of merge
//! decode      tree -> spec                    origin   which place gave which key
//! cache       file -> what it declared when it was read before
//! check       what only the whole set shows
//! ```

mod cache;
mod check;
mod compose;
mod decode;
mod diagnostic;
mod drop_ins;
mod extends;
pub mod keys;
mod layers;
mod merge;
mod origin;
mod render;
mod sets;
mod shippers;
mod sockets;
mod source;
mod suggest;
mod syntax;
mod yaml;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use cache::Cache;
pub use compose::COMPOSED_NODES_MAX;
pub use decode::{Unread, command_words, due_times, parse_size};
pub use diagnostic::{Diagnostic, Place, Related, Severity, has_errors};
pub use extends::EXTENDS_MAX;
pub use keys::{Change, KEYS, Key, Units, key, key_of};
pub use layers::{Layers, drop_in_unit, is_profile, source_name, with_words};
pub use origin::Origins;
pub(crate) use render::plural;
pub use render::{DRAWN_MAX, render};
pub use source::{FILE_BYTES_MAX, MISTAKES_MAX, SourceFile};
pub use suggest::{nearest, nearest_signal};
pub use yaml::{ALIASES_MAX, DEPTH_MAX, DOCUMENTS_MAX, NODES_MAX};

use crate::model::{FilePath, Gather, Spec, UnitName};
use check::Set;
use compose::Composed;
use decode::Decoded;
use layers::Words;

/// Most units of one source. More is a directory that was not meant; the rest is not read.
pub const UNITS_MAX: usize = 20_000;

/// What a source declares.
#[derive(Debug, Clone, Default)]
pub struct Loaded {
    /// The units without a mistake of their own, by name.
    pub specs: Vec<Arc<Spec>>,
    /// Every unit, those with a mistake too; the first of each name counts.
    declared: Vec<Arc<Decoded>>,
    /// Where the keys of each unit were written, where [`Layers`] asks for it.
    pub origins: BTreeMap<UnitName, Origins>,
    /// The files of profiles that are not chosen.
    pub left_out: Vec<LeftOut>,
    /// Every mistake, by file, line and column.
    pub diagnostics: Vec<Diagnostic>,
}

impl Loaded {
    /// What goes wrong where only these of the units come to the side of others, which stay as they are.
    pub fn check_beside(&self, only: &[UnitName], rest: &[&Spec]) -> Vec<Diagnostic> {
        let is_taken =
            |unit: &&Arc<Decoded>| unit.name.as_ref().is_some_and(|name| only.contains(name));
        let (taken, left): (Vec<_>, Vec<_>) = self.declared.iter().partition(is_taken);
        let taken: Vec<Arc<Decoded>> = taken.into_iter().map(Arc::clone).collect();
        let (none, others) = (BTreeSet::new(), BTreeMap::new());
        let not_applied = left.iter().filter_map(|unit| unit.name.as_ref()).gather();
        let set =
            Set { units: &taken, unread: &none, others: &others, other_specs: rest, not_applied };
        let mut found = set.check(&set.by_name());
        found.sort_by(Diagnostic::order);
        found
    }

    /// Where each unit is declared, those with a mistake too.
    pub fn places(&self) -> BTreeMap<UnitName, Place> {
        let first = check::by_name(&self.declared).into_iter();
        first.map(|(name, unit)| (name.clone(), unit.spot.place.clone())).gather()
    }
}

/// A file of a profile that is not chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// The file.
    pub file: FilePath,
    /// The profile.
    pub profile: String,
}

/// The key whose path is closest to a text that is none.
pub fn nearest_key(text: &str) -> Option<&'static str> {
    nearest(text, KEYS.iter().map(|key| key.path))
}

/// All units of one source, and every mistake in them. Never stops at the first.
///
/// `others` are units that other sources declare, with the name of their source: a unit of the same
/// name is an error, a dependency on one is legal. `other_specs` are what those units say, for what
/// only all units together show. Each file declares units; with [`load_with`] some may be laid over
/// others.
pub fn load(
    files: &[SourceFile],
    others: &BTreeMap<UnitName, String>,
    other_specs: &[&Spec],
) -> Loaded {
    load_with(files, &Layers::default(), others, other_specs)
}

/// The same with what is laid over the units: drop-ins, profiles, settings.
pub fn load_with(
    files: &[SourceFile],
    layers: &Layers<'_>,
    others: &BTreeMap<UnitName, String>,
    other_specs: &[&Spec],
) -> Loaded {
    load_again(files, layers, others, other_specs, &mut Cache::new())
}

/// The same where some of the files may be known from a load before, whatever it was of. What comes
/// out is the same.
pub fn load_again(
    files: &[SourceFile],
    layers: &Layers<'_>,
    others: &BTreeMap<UnitName, String>,
    other_specs: &[&Spec],
    cache: &mut Cache,
) -> Loaded {
    let mut order: Vec<&SourceFile> = files.iter().collect();
    order.sort_by(|a, b| a.path.cmp(&b.path));
    let words = Words::new(layers);
    let read = compose::read(&order, &words, layers, others, cache);
    let Composed { units, unread, mut diagnostics, origins, left_out } = read;
    let not_applied = BTreeSet::new();
    let set = Set { units: &units, unread: &unread, others, other_specs, not_applied };
    let first = set.by_name();
    diagnostics.extend(set.check(&first));
    diagnostics.sort_by(Diagnostic::order);
    // A value that is named again by an alias is read again, and is one mistake all the same.
    diagnostics.dedup();
    let good = first.into_iter().filter(|(name, _)| !others.contains_key(*name));
    let specs = good.filter_map(|(_, unit)| unit.spec.clone()).collect();
    Loaded { specs, declared: units, origins, left_out, diagnostics }
}
