//! The saved desired state: a file that is replaced whole, with a checksum and the copy before. And
//! the due times of schedules, which change more often, in a file of their own.
//!
//! Write new, sync, rename, sync the directory: what was acknowledged survives power loss. A file
//! that cannot be read is set aside, never taken for an empty one.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::disk::{Disk, Files};
use super::seal::{BYTES_MAX, seal, unseal};
use super::{SystemError, sys};
use crate::model::{Agenda, Desired};

/// First word of the file with the desired state, and of that with the due times.
const DESIRED: &str = "opm-desired";
const AGENDA: &str = "opm-agenda";

/// Their names.
pub(super) const DESIRED_FILE: &str = "desired.json";
pub(super) const PREVIOUS_FILE: &str = "desired.previous.json";
pub(super) const AGENDA_FILE: &str = "agenda.json";

/// What was found saved.
#[derive(Debug, Default, PartialEq)]
pub struct Loaded {
    /// The desired state; `None` where none was ever saved, or none can be read.
    pub desired: Option<Desired>,
    /// When schedules were served; nothing where that cannot be read: they begin anew.
    pub agenda: Agenda,
    /// What was wrong with what was found, and what was done about it, in words.
    pub problems: Vec<String>,
}

/// The file's bytes: one line with version, checksum and length, then JSON.
pub fn encode(desired: &Desired) -> Result<Vec<u8>, String> {
    seal(DESIRED, desired)
}

/// Reads the file's bytes back.
pub fn decode(bytes: &[u8]) -> Result<Desired, String> {
    unseal(DESIRED, bytes)
}

/// The file and its directory.
#[derive(Debug)]
pub struct Store<D: Disk = Files> {
    disk: D,
    dir: PathBuf,
    /// Whether the current file is known to survive power loss.
    is_sure: bool,
}

impl<D: Disk> Store<D> {
    /// The file in this directory.
    pub fn new(disk: D, dir: &Path) -> Self {
        Self { disk, dir: dir.to_owned(), is_sure: false }
    }

    fn current(&self) -> PathBuf {
        self.dir.join(DESIRED_FILE)
    }

    fn previous(&self) -> PathBuf {
        self.dir.join(PREVIOUS_FILE)
    }

    /// Whether a generation that was saved is not there, or it is not sure that it is this one that
    /// is, and that it survives power loss. Generation 0 was never saved.
    pub fn has_lost(&self, generation: u64) -> bool {
        if self.disk.exists(&self.current()) { !self.is_sure } else { generation > 0 }
    }

    /// The file is not what is in force any more.
    pub fn doubt(&mut self) {
        self.is_sure = false;
    }

    /// The saved state: the current file, or the one before where that is broken. A file that is
    /// there and cannot be read now is an error: the one before it is not what was acknowledged
    /// last, and the next save would put it in its place.
    ///
    /// A supervisor that was killed in the middle of a save may have left a file that is not synced
    /// and that nobody was told of. It is in force from now on, so that it is synced here.
    pub fn load(&mut self) -> Result<Loaded, SystemError> {
        match self.disk.sync_dir(&self.dir) {
            Ok(()) => self.is_sure = true,
            Err(error) => log::warn!("cannot sync `{}`: {error}", self.dir.display()),
        }
        let mut loaded = Loaded::default();
        self.load_agenda(&mut loaded)?;
        for path in [self.current(), self.previous()] {
            let bytes = match self.disk.read(&path, BYTES_MAX) {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => {
                    return Err(SystemError::new("read saved state", path.display(), error));
                }
                Ok(bytes) => bytes,
            };
            match decode(&bytes) {
                Ok(desired) => {
                    if path == self.previous() && !loaded.problems.is_empty() {
                        let (generation, path) = (desired.generation, path.display());
                        loaded.problems.push(format!("using generation {generation} from {path}"));
                    }
                    loaded.desired = Some(desired);
                    return Ok(loaded);
                }
                Err(reason) => {
                    let (path, aside) = (path.display(), self.set_aside(&path));
                    let problem = format!("cannot read saved state `{path}`: {reason}; {aside}");
                    loaded.problems.push(problem);
                }
            }
        }
        Ok(loaded)
    }

    /// Saves the state. When this returns, it survives power loss; when it fails, the state that was
    /// there is still there.
    pub fn save(&mut self, desired: &Desired) -> Result<(), SystemError> {
        let path = self.current();
        let fail = |error| SystemError::new("save desired state", path.display(), error);
        let bytes = encode(desired).map_err(|reason| fail(std::io::Error::other(reason)))?;
        let new = self.dir.join("desired.new");
        self.write_new(&new, &bytes).map_err(fail)?;
        // Whoever is cut off from here on, by a panic, does not know which of the two is in force.
        self.is_sure = false;
        match self.disk.rename(&path, &self.previous()) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(fail(error)),
            _ => {}
        }
        let replaced = self.disk.rename(&new, &path).and_then(|()| self.disk.sync_dir(&self.dir));
        self.is_sure = replaced.is_ok();
        replaced.map_err(|error| {
            // It is refused, so that it must not come into force at the next start.
            let back = match self.disk.rename(&self.previous(), &path) {
                Err(error) if error.kind() == ErrorKind::NotFound => self.disk.remove(&path),
                other => other,
            };
            if let Err(error) = back {
                log::error!("cannot put back {}: {error}", path.display());
            }
            fail(error)
        })
    }

    /// Writes a file and syncs it; what could not be written whole is removed.
    fn write_new(&mut self, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
        let written = self.disk.create(path).and_then(|mut file| {
            self.disk.write(&mut file, bytes)?;
            self.disk.sync(&file)
        });
        if written.is_err()
            && let Err(error) = self.disk.remove(path)
        {
            log::debug!("cannot remove {}: {error}", path.display());
        }
        written
    }

    /// Saves when schedules were served. When this returns, it survives power loss.
    pub fn save_agenda(&mut self, agenda: &Agenda) -> Result<(), SystemError> {
        let path = self.dir.join(AGENDA_FILE);
        let fail = |error| SystemError::new("save due times", path.display(), error);
        let bytes = seal(AGENDA, agenda).map_err(|reason| fail(std::io::Error::other(reason)))?;
        let new = self.dir.join("agenda.new");
        self.write_new(&new, &bytes)
            .and_then(|()| self.disk.rename(&new, &path))
            .and_then(|()| self.disk.sync_dir(&self.dir))
            .map_err(fail)
    }

    fn load_agenda(&mut self, loaded: &mut Loaded) -> Result<(), SystemError> {
        let path = self.dir.join(AGENDA_FILE);
        if !self.disk.exists(&path) {
            return Ok(());
        }
        let bytes = self
            .disk
            .read(&path, BYTES_MAX)
            .map_err(|error| SystemError::new("read due times", path.display(), error))?;
        match unseal(AGENDA, &bytes) {
            Ok(agenda) => loaded.agenda = agenda,
            Err(reason) => {
                let (path, aside) = (path.display(), self.set_aside(&path));
                loaded.problems.push(format!(
                    "cannot read due times `{path}`: {reason}; {aside}, and schedules begin anew"
                ));
            }
        }
        Ok(())
    }

    /// Keeps a file that cannot be read for somebody who can.
    fn set_aside(&self, path: &Path) -> String {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".corrupt-{}", sys::wall_now().0));
        match self.disk.rename(path, Path::new(&name)) {
            Ok(()) => format!("set aside as `{}`", Path::new(&name).display()),
            Err(error) => format!("and it cannot be set aside: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::sync::Arc;

    use super::*;
    use crate::model::{Kind, Spec, Unit, UnitName};

    fn state(generation: u64) -> Desired {
        Desired { generation, ..Desired::default() }
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::new(Files, dir.path());
        assert_eq!(store.load(), Ok(Loaded::default()));
        store.save(&state(1)).unwrap();
        store.save(&state(2)).unwrap();
        assert_eq!(store.load().unwrap().desired, Some(state(2)));
    }

    #[test]
    fn a_fifo_in_the_place_of_the_file_keeps_nobody_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::new(Files, dir.path());
        store.save(&state(1)).unwrap();
        store.save(&state(2)).unwrap();
        fs::remove_file(store.current()).unwrap();
        let mode = nix::sys::stat::Mode::from_bits_truncate(0o600);
        nix::unistd::mkfifo(&store.current(), mode).unwrap();
        let loaded = store.load().unwrap();
        assert_eq!((loaded.desired, loaded.problems.len()), (Some(state(1)), 2));
    }

    #[test]
    fn case_129_a_broken_file_is_set_aside_and_the_one_before_is_used() {
        for broken in [&b""[..], b"opm-desired 1", b"\0\0\0\0\0\0", b"nonsense\n{}\n"] {
            let dir = tempfile::tempdir().unwrap();
            let mut store = Store::new(Files, dir.path());
            store.save(&state(1)).unwrap();
            store.save(&state(2)).unwrap();
            fs::write(store.current(), broken).unwrap();
            let loaded = store.load().unwrap();
            assert_eq!(loaded.desired, Some(state(1)), "{broken:?}");
            assert_eq!(loaded.problems.len(), 2, "{:?}", loaded.problems);
            let kept = fs::read_dir(dir.path()).unwrap().flatten().any(|entry| {
                entry.file_name().to_string_lossy().contains(".corrupt-")
                    && fs::read(entry.path()).unwrap() == broken
            });
            assert!(kept, "the broken file is kept");
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_now_is_no_reason_to_use_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::new(Files, dir.path());
        store.save(&state(1)).unwrap();
        store.save(&state(2)).unwrap();
        fs::remove_file(store.current()).unwrap();
        // A directory can be opened and not read.
        fs::create_dir(store.current()).unwrap();
        let error = store.load().unwrap_err();
        assert_eq!(error.doing, "read saved state");
    }

    #[test]
    fn any_number_of_a_spec_is_read_back_as_it_was() {
        let mut factor = 1.0_f64;
        for _ in 0..1_000 {
            factor = factor * 1.002_260_146_354_716_3 + 1e-9;
            let name = UnitName::parse("web").unwrap();
            let mut spec = Spec::new(Kind::Service, name.clone());
            (spec.restart.factor, spec.restart.jitter) = (factor, factor.fract());
            let unit = Unit::new(Arc::new(spec), String::new());
            let desired = Desired {
                generation: 1,
                units: BTreeMap::from([(name, unit)]),
                ..Desired::default()
            };
            assert_eq!(decode(&encode(&desired).unwrap()), Ok(desired), "{factor}");
        }
    }

    #[test]
    fn any_flipped_byte_is_noticed() {
        let bytes = encode(&state(7)).unwrap();
        for place in 0..bytes.len() - 1 {
            let mut broken = bytes.clone();
            broken[place] ^= 0x11;
            assert_ne!(decode(&broken), Ok(state(7)), "byte {place}");
            assert_ne!(decode(&bytes[..place]), Ok(state(7)), "cut at {place}");
        }
    }

    #[test]
    fn a_save_that_fails_keeps_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::new(Files, dir.path());
        store.save(&state(1)).unwrap();
        fs::create_dir(dir.path().join("desired.new")).unwrap();
        assert!(store.save(&state(2)).is_err());
        assert_eq!(store.load().unwrap().desired, Some(state(1)));
    }
}
