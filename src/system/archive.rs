//! The history of what was applied, on disk: a record for each change, and what each source said.
//!
//! Both are written and synced before the desired state that names them, and never change. Records
//! form a chain from the one that the desired state names: a record that a crash left behind, of a
//! change that was never acknowledged, is on no chain, is never shown, and goes with the next keep.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::SystemError;
use super::disk::{Disk, Files};
use super::seal::{BYTES_MAX, checksum, seal, unseal};
use crate::model::{Gather, Record, Revision, Sources};

/// Records that are kept. With one apply an hour that is two days, with one a day seven weeks.
pub const RECORDS_MAX: usize = 50;

/// First word of a record's file, and of that with a source.
/// Its directory, in the state directory.
pub(super) const DIR: &str = "history";
const RECORD: &str = "opm-record";
const SOURCE: &str = "opm-source";

/// The directory of the history.
#[derive(Debug)]
pub struct Archive<D: Disk = Files> {
    disk: D,
    dir: PathBuf,
}

impl<D: Disk> Archive<D> {
    /// The history under a state directory.
    pub fn new(disk: D, state: &Path) -> Self {
        Self { disk, dir: state.join(DIR) }
    }

    fn record_path(&self, generation: u64) -> PathBuf {
        self.dir.join(record_name(generation))
    }

    fn source_path(&self, source: &str, generation: u64) -> PathBuf {
        self.dir.join(source_name(source, generation))
    }

    /// Keeps a record and the revisions that came with it. When this returns, they survive power
    /// loss. What is too old goes, but for what the chain or `pinned` still needs.
    pub fn keep(
        &mut self,
        record: &Record,
        revisions: &[Revision],
        pinned: Option<&Sources>,
    ) -> Result<(), SystemError> {
        let fail = |path: &Path, error: std::io::Error| {
            SystemError::new("keep the history in", path.display(), error)
        };
        self.disk.make_dir(&self.dir).map_err(|error| fail(&self.dir, error))?;
        for revision in revisions {
            let path = self.source_path(&revision.source, record.generation);
            self.write(&path, SOURCE, revision).map_err(|error| fail(&path, error))?;
        }
        let path = self.record_path(record.generation);
        self.write(&path, RECORD, record).map_err(|error| fail(&path, error))?;
        self.disk.sync_dir(&self.dir).map_err(|error| fail(&self.dir, error))?;
        self.prune(record, pinned);
        Ok(())
    }

    fn write<T: Serialize>(&mut self, path: &Path, magic: &str, value: &T) -> std::io::Result<()> {
        let bytes = seal(magic, value).map_err(std::io::Error::other)?;
        let written = self.disk.create(path).and_then(|mut file| {
            self.disk.write(&mut file, &bytes)?;
            self.disk.sync(&file)
        });
        if written.is_err()
            && let Err(error) = self.disk.remove(path)
        {
            log::debug!("cannot remove {}: {error}", path.display());
        }
        written
    }

    /// Removes all but what the newest records need; nothing where not all of them can be read, since
    /// nobody knows what those need that cannot.
    fn prune(&mut self, newest: &Record, pinned: Option<&Sources>) {
        let (records, problem) = self.records(newest.generation);
        if let Some(problem) = problem {
            log::warn!("{problem}; nothing of the history is removed");
            return;
        }
        let sources = records.iter().map(|record| &record.sources).chain(pinned);
        let mut needed: BTreeSet<String> =
            sources.flatten().map(|(source, generation)| source_name(source, *generation)).gather();
        needed.extend(records.iter().map(|record| record_name(record.generation)));
        let found = self.disk.names(&self.dir).unwrap_or_default();
        let is_ours = |name: &str| name.ends_with(".record") || name.ends_with(".source");
        for name in found.iter().filter_map(|name| name.to_str()) {
            if is_ours(name)
                && !needed.contains(name)
                && let Err(error) = self.disk.remove(&self.dir.join(name))
            {
                log::debug!("cannot remove {name}: {error}");
            }
        }
    }

    /// The records from the latest back, at most [`RECORDS_MAX`], and what was wrong with the first
    /// that could not be read: those before it are out of reach.
    pub fn records(&self, latest: u64) -> (Vec<Record>, Option<SystemError>) {
        let mut records: Vec<Record> = Vec::new();
        let mut next = latest;
        while next > 0 && records.len() < RECORDS_MAX {
            match self.read::<Record>(&self.record_path(next), RECORD) {
                // A chain that leads on, or to itself, is none of ours.
                Ok(record) if record.generation == next && record.before < next => {
                    next = record.before;
                    records.push(record);
                }
                Ok(record) => {
                    let path = self.record_path(next);
                    let reason = format!("it says generation {}", record.generation);
                    return (records, Some(SystemError::new("read", path.display(), reason)));
                }
                // The oldest that is kept names one that is not.
                Err((ErrorKind::NotFound, _)) if !records.is_empty() => break,
                Err((_, error)) => return (records, Some(error)),
            }
        }
        (records, None)
    }

    /// A source as it was applied at a generation.
    pub fn revision(&self, source: &str, generation: u64) -> Result<Revision, SystemError> {
        self.read(&self.source_path(source, generation), SOURCE).map_err(|(_, error)| error)
    }

    fn read<T: DeserializeOwned>(
        &self,
        path: &Path,
        magic: &str,
    ) -> Result<T, (ErrorKind, SystemError)> {
        let bytes = self.disk.read(path, BYTES_MAX).map_err(|error| {
            (error.kind(), SystemError::new("read the history in", path.display(), error))
        })?;
        unseal(magic, &bytes).map_err(|reason| {
            let error = SystemError::new("read the history in", path.display(), reason);
            (ErrorKind::InvalidData, error)
        })
    }
}

fn record_name(generation: u64) -> String {
    format!("{generation}.record")
}

/// Sources are paths, too long and too free for a file name.
fn source_name(source: &str, generation: u64) -> String {
    format!("{generation}-{:016x}.source", checksum(source.as_bytes()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::model::{Author, Cause, Wall};

    fn record(generation: u64, sources: &[(&str, u64)]) -> Record {
        Record {
            generation,
            before: generation - 1,
            at: Wall(0),
            author: Author::default(),
            cause: Cause::Apply { source: "/units".to_owned() },
            sources: sources.iter().map(|(name, at)| ((*name).to_owned(), *at)).collect(),
        }
    }

    fn revision(source: &str) -> Revision {
        Revision { source: source.to_owned(), ..Revision::default() }
    }

    fn names(dir: &Path) -> usize {
        fs::read_dir(dir.join("history")).unwrap().count()
    }

    #[test]
    fn what_is_kept_is_read_back_along_the_chain() {
        let dir = tempfile::tempdir().unwrap();
        let mut archive = Archive::new(Files, dir.path());
        assert_eq!(archive.records(0).0, []);
        archive.keep(&record(1, &[("/a", 1)]), &[revision("/a")], None).unwrap();
        archive.keep(&record(2, &[("/a", 1), ("/b", 2)]), &[revision("/b")], None).unwrap();
        let (records, problem) = archive.records(2);
        assert_eq!(problem, None);
        assert_eq!(records.iter().map(|r| r.generation).collect::<Vec<_>>(), [2, 1]);
        assert_eq!(archive.revision("/a", 1).unwrap(), revision("/a"));
        assert!(archive.revision("/a", 2).is_err());
    }

    #[test]
    fn a_record_of_a_change_that_was_never_acknowledged_is_not_shown_and_goes() {
        let dir = tempfile::tempdir().unwrap();
        let mut archive = Archive::new(Files, dir.path());
        archive.keep(&record(1, &[("/a", 1)]), &[revision("/a")], None).unwrap();
        archive.keep(&record(2, &[("/a", 2)]), &[revision("/a")], None).unwrap();
        assert_eq!(archive.records(1).0.len(), 1);
        let mut third = record(3, &[("/a", 3)]);
        third.before = 1;
        archive.keep(&third, &[revision("/a")], None).unwrap();
        assert_eq!(archive.records(3).0.len(), 2);
        assert_eq!(names(dir.path()), 4, "two records with a source each");
    }

    #[test]
    fn the_number_of_records_is_bounded_and_what_they_need_stays() {
        let dir = tempfile::tempdir().unwrap();
        let mut archive = Archive::new(Files, dir.path());
        archive.keep(&record(1, &[("/old", 1)]), &[revision("/old")], None).unwrap();
        let pinned = Sources::from([("/pinned".to_owned(), 2)]);
        let last = 2 + u64::try_from(RECORDS_MAX).unwrap();
        for generation in 2..=last {
            let source = if generation == 2 { "/pinned" } else { "/new" };
            let record = record(generation, &[("/old", 1), (source, generation)]);
            archive.keep(&record, &[revision(source)], Some(&pinned)).unwrap();
        }
        let (records, problem) = archive.records(last);
        assert_eq!((records.len(), problem), (RECORDS_MAX, None));
        assert_eq!(archive.revision("/old", 1).unwrap(), revision("/old"));
        assert_eq!(archive.revision("/pinned", 2).unwrap(), revision("/pinned"));
        assert_eq!(names(dir.path()), 2 * RECORDS_MAX + 2);
    }

    #[test]
    fn what_a_record_needs_stays_while_a_record_cannot_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let mut archive = Archive::new(Files, dir.path());
        for generation in 1..=2 {
            archive.keep(&record(generation, &[("/a", 1)]), &[revision("/a")], None).unwrap();
        }
        fs::write(dir.path().join("history/2.record"), "torn").unwrap();
        archive.keep(&record(3, &[("/a", 1)]), &[], None).unwrap();
        assert_eq!(archive.revision("/a", 1).unwrap(), revision("/a"));
    }

    #[test]
    fn a_broken_record_ends_the_chain_and_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let mut archive = Archive::new(Files, dir.path());
        for generation in 1..=3 {
            archive.keep(&record(generation, &[]), &[], None).unwrap();
        }
        fs::write(dir.path().join("history/2.record"), "nonsense").unwrap();
        let (records, problem) = archive.records(3);
        assert_eq!(records.len(), 1);
        assert!(problem.unwrap().to_string().contains("2.record"));
    }
}
