//! What was read of a file before, so that a file that has not changed is not read again.
//!
//! What a plain file declares is a function of its path and its bytes. It is known by a fingerprint of
//! both, and only where nothing at all was found in it: a mistake or a warning is looked for anew each
//! time. So are units with a schedule, whose time zone is a file of the system's.
//!
//! Whatever depends on other files, on other sources or on the command line is no part of this: units
//! that are put together are read anew, and the whole set is checked each time.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use super::decode::Decoded;
use super::source::SourceFile;
use crate::model::{Gather, Spec, UnitName};

/// Two independent 64-bit hashes of path and bytes. That two files of one life of a supervisor have
/// both in common is less likely than a fault of its memory.
type Fingerprint = [u64; 2];

/// What the files of one load declared.
#[derive(Debug, Default)]
pub struct Cache {
    known: BTreeMap<Fingerprint, Vec<Arc<Decoded>>>,
    /// What the load that goes on has used: at its end all else is forgotten.
    used: Vec<(Fingerprint, Vec<Arc<Decoded>>)>,
}

impl Cache {
    /// Nothing is known.
    pub fn new() -> Self {
        Self::default()
    }

    /// What a file declares, where that is known.
    pub(super) fn find(&mut self, file: &SourceFile) -> Option<&[Arc<Decoded>]> {
        let print = fingerprint(file);
        // One that comes twice is read, and told.
        let units = std::mem::take(self.known.get_mut(&print)?);
        if units.is_empty() {
            return None;
        }
        self.used.push((print, units));
        self.used.last().map(|(_, units)| units.as_slice())
    }

    /// Notes what a file declares, in which nothing was found.
    pub(super) fn note(&mut self, file: &SourceFile, units: &[Arc<Decoded>]) {
        let is_lasting = |unit: &Arc<Decoded>| {
            unit.spec.as_ref().is_some_and(|spec| spec.schedule.is_none()) && unit.name.is_some()
        };
        if !units.is_empty() && units.iter().all(is_lasting) {
            self.used.push((fingerprint(file), units.to_vec()));
        }
    }

    /// The load is over: what it did not use is forgotten.
    pub(super) fn finish(&mut self) {
        self.known = std::mem::take(&mut self.used).into_iter().gather();
    }

    /// Keeps the same copy of each spec as somebody else who has it: a unit is in memory once.
    pub fn share<'a>(&mut self, theirs: &dyn Fn(&UnitName) -> Option<&'a Arc<Spec>>) {
        for unit in self.known.values_mut().flatten() {
            let Some(other) = unit.name.as_ref().and_then(theirs) else { continue };
            let is_copy = |own: &Arc<Spec>| !Arc::ptr_eq(own, other) && own == other;
            if unit.spec.as_ref().is_some_and(is_copy)
                && let Some(unit) = Arc::get_mut(unit)
            {
                unit.spec = Some(Arc::clone(other));
            }
        }
    }
}

fn fingerprint(file: &SourceFile) -> Fingerprint {
    let half = |number: u8| {
        let mut hasher = DefaultHasher::new();
        (number, file.path.as_path().as_os_str(), &file.text).hash(&mut hasher);
        hasher.finish()
    };
    [half(0), half(1)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Layers, Loaded, has_errors, load_again, load_with};
    use crate::model::FilePath;

    fn file(path: &str, text: &str) -> SourceFile {
        SourceFile { path: FilePath::from(path), text: text.into() }
    }

    /// Loads with what is known, and compares that with a load that knows nothing.
    fn load(files: &[SourceFile], cache: &mut Cache) -> Loaded {
        let (layers, others) = (Layers::default(), BTreeMap::new());
        let loaded = load_again(files, &layers, &others, &[], cache);
        let fresh = load_with(files, &layers, &others, &[]);
        assert_eq!(loaded.specs, fresh.specs);
        assert_eq!(loaded.places(), fresh.places());
        assert_eq!(loaded.diagnostics, fresh.diagnostics);
        loaded
    }

    #[test]
    fn a_file_is_read_again_when_its_bytes_or_its_place_change() {
        let mut cache = Cache::new();
        let files = [file("/u/a.yaml", "command: x\n"), file("/u/b.yaml", "command: y\n")];
        let first = load(&files, &mut cache);
        let again = load(&files, &mut cache);
        assert!(first.specs.iter().zip(&again.specs).all(|(one, two)| Arc::ptr_eq(one, two)));
        let files = [file("/v/a.yaml", "command: x\n"), file("/u/b.yaml", "command: z\n")];
        let other = load(&files, &mut cache);
        assert!(first.specs.iter().zip(&other.specs).all(|(one, two)| one != two));
        assert_eq!(cache.known.len(), 2, "what is not used any more is forgotten");
    }

    #[test]
    fn what_only_the_set_shows_is_found_among_known_files_too() {
        let mut cache = Cache::new();
        let a = || file("/u/a.yaml", "command: x\nrequires: [b]\n");
        let b = |text: &str| file("/u/b.yaml", text);
        assert!(has_errors(&load(&[a()], &mut cache).diagnostics));
        assert!(!has_errors(&load(&[a(), b("command: y\n")], &mut cache).diagnostics));
        let looped = "command: y\nafter: [a]\n";
        assert!(has_errors(&load(&[a(), b(looped)], &mut cache).diagnostics));
        let twice = [a(), b("command: y\n"), file("/u/c.yaml", "name: a\ncommand: z\n")];
        assert!(has_errors(&load(&twice, &mut cache).diagnostics));
    }

    #[test]
    fn mistakes_schedules_and_units_put_together_are_not_kept() {
        let mut cache = Cache::new();
        let task = "kind: task\ncommand: x\nschedule: '0 0 * * *'\n";
        for text in ["command: [", "comand: x\n", task, ""] {
            load(&[file("/u/a.yaml", text)], &mut cache);
            assert!(cache.known.is_empty(), "{text}");
        }
        let files = [file("/u/a.yaml", "command: x\n"), file("/u/b.yaml", "extends: a\n")];
        for _ in 0..2 {
            assert_eq!(load(&files, &mut cache).specs.len(), 2);
            assert!(cache.known.is_empty());
        }
    }

    #[test]
    fn a_spec_that_somebody_else_has_too_is_kept_once() {
        let mut cache = Cache::new();
        let files = [file("/u/a.yaml", "command: x\n")];
        let theirs = Arc::new(Spec::clone(&load(&files, &mut cache).specs[0]));
        cache.share(&|_| Some(&theirs));
        assert!(Arc::ptr_eq(&load(&files, &mut cache).specs[0], &theirs));
        let other = Arc::new(Spec::new(crate::model::Kind::Service, theirs.name.clone()));
        cache.share(&|_| Some(&other));
        assert!(Arc::ptr_eq(&load(&files, &mut cache).specs[0], &theirs));
    }
}
