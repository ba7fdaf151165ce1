//! The way from one opm to the next: where it had its directories. Which ones are chosen depends on the
//! environment and on what can be written, and both may be others by then; who chose anew would find
//! none of what runs, and start it again.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::dirs::{Dirs, is_trusted, make};
use super::ledger::may_be_of_one_life;

/// Names the directories in use, in the state directory and in the run directory.
const FILE: &str = "places.json";
/// The file before it has its name.
const FILE_NEW: &str = "places.new";
/// Largest such file that is read, in bytes: four paths of 4,096 bytes, each byte written as six.
const FILE_BYTES_MAX: u64 = 128 * 1024;

/// Variables that hand the directories over an exec.
const KEPT_RUN: &str = "OPM_KEPT_RUN";
const KEPT_STATE: &str = "OPM_KEPT_STATE";
const KEPT_LOGS: &str = "OPM_KEPT_LOGS";

/// What is in the file. Paths that are not UTF-8 cannot be, and there is none then.
#[derive(Debug, Serialize, Deserialize, PartialEq)]
struct Places {
    /// The state directory that was asked for.
    r#for: PathBuf,
    run: PathBuf,
    state: PathBuf,
    logs: PathBuf,
}

/// Writes down which directories are used, where the next opm looks: also where that depends on no environment, if
/// the state is not where it was to be. All are tried; an error is the first one.
pub(super) fn note(dirs: &Dirs) -> io::Result<()> {
    let Dirs { asked, run, state, logs, .. } = dirs.clone();
    let is_moved = state != asked;
    let places = Places { r#for: asked, run, state, logs };
    let Ok(text) = serde_json::to_vec(&places) else { return Ok(()) };
    let elsewhere = dirs.elsewhere().filter(|_| is_moved).find(|dir| make(dir, 0o755).is_ok());
    let places_to_write = [&dirs.run, &dirs.state].into_iter().chain(&elsewhere);
    let missing = places_to_write.filter(|dir| read(dir).as_ref() != Some(&places));
    let written: Vec<io::Result<()>> = missing.map(|dir| write(dir, &text)).collect();
    written.into_iter().collect()
}

fn write(dir: &Path, text: &[u8]) -> io::Result<()> {
    let new = dir.join(FILE_NEW);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(text)?;
    fs::rename(&new, dir.join(FILE))
}

/// The directories of an opm that was asked for the same ones, where it noted them and has left a ledger of this
/// life: what it let run is known there and nowhere else. Of several it is the ledger that was written last.
pub(super) fn left(asked: &Dirs, ledger: &str) -> Option<Dirs> {
    let trusted = noted(asked).filter(|left| is_trusted(&left.state));
    let written = trusted.filter_map(|left| {
        let names = fs::read_dir(&left.run).ok()?.flatten().map(|entry| entry.file_name());
        let names = names.filter_map(|name| name.into_string().ok());
        let of_life = names.filter(|name| may_be_of_one_life(name, ledger));
        let nearest = of_life.max_by_key(|name| name == ledger)?;
        let ledger = fs::metadata(left.run.join(nearest)).ok()?;
        Some((ledger.modified().ok()?, left))
    });
    written.max_by_key(|(at, _)| *at).map(|(_, left)| left)
}

/// All that is noted by those who were asked for these, and where nobody else has noted since that it has them.
pub(super) fn noted(asked: &Dirs) -> impl Iterator<Item = Dirs> {
    let dirs = [asked.state.clone(), asked.run.clone()].into_iter().chain(asked.elsewhere());
    let noted = dirs.filter(|dir| is_trusted(dir)).filter_map(|dir| read(&dir));
    let is_its = |places: &Places| places.r#for == asked.asked;
    let noted = noted.filter(move |places| {
        is_its(places)
            && is_trusted(&places.run)
            && read(&places.run).is_some_and(|own| is_its(&own))
    });
    noted.map(|Places { run, state, logs, .. }| Dirs { run, state, logs, ..asked.clone() })
}

fn read(dir: &Path) -> Option<Places> {
    let mut text = Vec::new();
    let path = dir.join(FILE);
    // A FIFO would have us wait.
    fs::metadata(&path).ok().filter(fs::Metadata::is_file)?;
    File::open(&path).ok()?.take(FILE_BYTES_MAX).read_to_end(&mut text).ok()?;
    let read = serde_json::from_slice(&text);
    if let Err(error) = &read {
        log::warn!("cannot read {}: {error}", path.display());
    }
    read.ok()
}

/// The variables that tell the program that runs in our place where all is.
pub(crate) fn hand_over(dirs: &Dirs) -> [(&'static str, PathBuf); 3] {
    let Dirs { run, state, logs, .. } = dirs.clone();
    [(KEPT_RUN, run), (KEPT_STATE, state), (KEPT_LOGS, logs)]
}

/// What the program before us, which was asked for the same, has handed over.
pub(crate) fn handed_over(asked: &Dirs) -> Option<Dirs> {
    let dir = |name| std::env::var_os(name).map(PathBuf::from).filter(|dir| dir.is_absolute());
    let (run, state, logs) = (dir(KEPT_RUN)?, dir(KEPT_STATE)?, dir(KEPT_LOGS)?);
    Some(Dirs { run, state, logs, ..asked.clone() })
}
