//! The way from one opm to the next: where it had its directories. Which ones are chosen depends on the
//! environment and on what can be written, and both may be others by then; who chose anew would find
//! none of what runs, and start it again.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::dirs::{Dirs, is_trusted, others};
use super::disk::{Disk, Files};

/// Names the directories in use, in the state directory and in the run directory.
const FILE: &str = "places.json";
/// The file before it has its name.
const FILE_NEW: &str = "places.new";
/// Largest such file that is read, in bytes: four paths of 4,096 bytes, each byte written as six.
const FILE_BYTES_MAX: u64 = 128 * 1024;

/// Variables that hand the directories over an exec.
const KEPT: &str = "OPM_KEPT_FOR";
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

impl From<&Dirs> for Places {
    fn from(dirs: &Dirs) -> Self {
        let Dirs { asked, run, state, logs } = dirs.clone();
        Self { r#for: asked, run, state, logs }
    }
}

impl From<Places> for Dirs {
    fn from(places: Places) -> Self {
        let Places { r#for: asked, run, state, logs } = places;
        Self { asked, run, state, logs }
    }
}

/// Writes down which directories are used, where the next opm looks. An error is one of the disk.
pub(super) fn note(dirs: &Dirs) -> io::Result<()> {
    let places = Places::from(dirs);
    let Ok(text) = serde_json::to_vec(&places) else { return Ok(()) };
    for dir in [&dirs.run, &dirs.state] {
        if read(dir).as_ref() == Some(&places) {
            continue;
        }
        let new = dir.join(FILE_NEW);
        let mut file = Files.create(&new)?;
        file.write_all(&text)?;
        fs::rename(&new, dir.join(FILE))?;
    }
    Ok(())
}

/// The directories of an opm that was asked for the same ones, where it noted them and has left a ledger of this
/// name: what it let run is known there and nowhere else. Of several it is the ledger that was written last.
pub(super) fn left(asked: &Dirs, ledger: &str) -> Option<Dirs> {
    let trusted = noted(asked).filter(|left| is_trusted(&left.run) && is_trusted(&left.state));
    let written = trusted.filter_map(|left| {
        let ledger = fs::metadata(left.run.join(ledger)).ok()?;
        Some((ledger.modified().ok()?, left))
    });
    written.max_by_key(|(at, _)| *at).map(|(_, left)| left)
}

/// All that is noted by those who were asked for these.
pub(super) fn noted(asked: &Dirs) -> impl Iterator<Item = Dirs> {
    let dirs = [asked.state.clone(), asked.run.clone()].into_iter().chain(others());
    let noted = dirs.filter(|dir| is_trusted(dir)).filter_map(|dir| read(&dir));
    noted.map(Dirs::from).filter(|left| left.asked == asked.asked)
}

fn read(dir: &Path) -> Option<Places> {
    let mut text = Vec::new();
    let path = dir.join(FILE);
    // A FIFO would have us wait.
    fs::metadata(&path).ok().filter(fs::Metadata::is_file)?;
    File::open(path).ok()?.take(FILE_BYTES_MAX).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

/// The variables that tell the program that runs in our place where all is.
pub(crate) fn hand_over(dirs: &Dirs) -> [(&'static str, PathBuf); 4] {
    let Dirs { asked, run, state, logs } = dirs.clone();
    [(KEPT, asked), (KEPT_RUN, run), (KEPT_STATE, state), (KEPT_LOGS, logs)]
}

/// What the program before us has handed over.
pub(crate) fn handed_over() -> Option<Dirs> {
    let dir = |name| std::env::var_os(name).map(PathBuf::from).filter(|dir| dir.is_absolute());
    let (asked, run) = (dir(KEPT)?, dir(KEPT_RUN)?);
    Some(Dirs { asked, run, state: dir(KEPT_STATE)?, logs: dir(KEPT_LOGS)? })
}
