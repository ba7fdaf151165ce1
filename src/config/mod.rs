//! YAML -> specs and every mistake: what an operator wrote, before anything is done about it.
//!
//! [`load`] is a function of the files' bytes and of what other sources declare: it reads no file
//! (but the system's table of time zones), no clock and no environment. It never stops at a mistake; with an error among what it returns,
//! the caller applies nothing of the source.
//!
//! ```text
//! source      bytes -> text with lines        keys     the one table of keys
//! yaml        text -> trees with places       suggest  did you mean …?
//! decode      tree -> spec                    diagnostic, render   a mistake, and its drawing
//! check       what only the whole set shows
//! ```

mod check;
mod decode;
mod diagnostic;
pub mod keys;
mod render;
mod sockets;
mod source;
mod suggest;
mod yaml;

use std::collections::{BTreeMap, BTreeSet};

pub use decode::command_words;
pub use diagnostic::{Diagnostic, Place, Related, Severity, has_errors};
pub use keys::{Change, KEYS, Key, Units, key};
pub use render::{DRAWN_MAX, render};
pub use source::{FILE_BYTES_MAX, MISTAKES_MAX, SourceFile};
pub use suggest::nearest;
pub use yaml::{ALIASES_MAX, DEPTH_MAX, DOCUMENTS_MAX, NODES_MAX};

use crate::model::{FilePath, Spec, UnitName};
use check::Set;
use decode::Decoded;
use source::{At, Sink, Source};

/// Most units of one source. More is a directory that was not meant; the rest is not read.
pub const UNITS_MAX: usize = 20_000;

/// What a source declares.
#[derive(Debug, Clone, Default)]
pub struct Loaded {
    /// The units without a mistake of their own, by name.
    pub specs: Vec<Spec>,
    /// Where each unit is declared, those with a mistake too.
    pub places: BTreeMap<UnitName, Place>,
    /// Every mistake, by file, line and column.
    pub diagnostics: Vec<Diagnostic>,
}

/// The key whose path is closest to a text that is none.
pub fn nearest_key(text: &str) -> Option<&'static str> {
    nearest(text, KEYS.iter().map(|key| key.path))
}

/// All units of one source, and every mistake in them. Never stops at the first.
///
/// `others` are units that other sources declare, with the name of their source: a unit of the same
/// name is an error, a dependency on one is legal. `other_specs` are what those units say, for what
/// only all units together show.
pub fn load(
    files: &[SourceFile],
    others: &BTreeMap<UnitName, String>,
    other_specs: &[&Spec],
) -> Loaded {
    let mut order: Vec<&SourceFile> = files.iter().collect();
    order.sort_by(|a, b| a.path.cmp(&b.path));
    let mut reader = Reader::default();
    for file in order {
        reader.read(file);
    }
    let Reader { units, unread, mut diagnostics, .. } = reader;
    let set = Set { units: &units, unread: &unread, others, other_specs };
    diagnostics.extend(set.check());
    diagnostics.sort_by(Diagnostic::order);
    // A value that is named again by an alias is read again, and is one mistake all the same.
    diagnostics.dedup();
    let first = set.by_name();
    let places = first.iter().map(|(name, unit)| ((*name).clone(), unit.spot.place.clone()));
    let places = places.collect();
    let good = first.into_iter().filter(|(name, _)| !others.contains_key(*name));
    let specs = good.filter_map(|(_, unit)| unit.spec.clone()).collect();
    Loaded { specs, places, diagnostics }
}

/// Reads one file after another.
#[derive(Debug, Default)]
struct Reader {
    units: Vec<Decoded>,
    /// Names of units that are declared in a way that could not be read.
    unread: BTreeSet<String>,
    diagnostics: Vec<Diagnostic>,
    is_full: bool,
}

impl Reader {
    fn read(&mut self, file: &SourceFile) {
        if self.is_full {
            return;
        }
        let source = Source::new(file);
        let mut sink = Sink::new(&source);
        let documents = yaml::parse(&mut sink, file.text.len());
        let path = file.path.as_path();
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let base = FilePath::from(path.parent().unwrap_or(path));
        let is_only = documents.complete && documents.trees.len() == 1;
        for tree in &documents.trees {
            if self.units.len() >= UNITS_MAX {
                let message = format!("more than {UNITS_MAX} units in one source");
                sink.error(At::new(tree.root.at.start, 0), message);
                self.is_full = true;
                break;
            }
            let stem = is_only.then_some(&*stem);
            self.units.push(decode::unit(tree, &mut sink, stem, &base));
            if sink.is_full() {
                break;
            }
        }
        let is_nameless =
            self.units.iter().rev().take(documents.trees.len()).any(|u| u.name.is_none());
        if !documents.complete || is_nameless || sink.is_full() {
            self.unread.insert(stem.into_owned());
            self.unread.extend(names_in(source.text));
        }
        self.diagnostics.extend(sink.finish());
    }
}

/// What look like names of units in a text that is not YAML, so that nobody is told that these
/// units do not exist.
fn names_in(text: &str) -> impl Iterator<Item = String> + '_ {
    let values = text.lines().filter_map(|line| line.strip_prefix("name:"));
    values.map(|value| {
        let value = value.split(" #").next().unwrap_or_default();
        value.trim().trim_matches(['"', '\'']).to_owned()
    })
}
