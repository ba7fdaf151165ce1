//! The files of a source: which ones of a directory are read, in an order that is always the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, DirEntry, File, Metadata};
use std::io::{ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::{self, SourceFile, drop_in_unit, source_name};
use crate::supervisor::Source;
use crate::system::SystemError;

/// Most bytes of a file that are read; what is wrong with one of more than a unit file may have the loader
/// says, with its place.
const READ_BYTES_MAX: u64 = 4 * config::FILE_BYTES_MAX as u64;
/// Most files of a source: more than it may have units. A directory with more was not meant.
const FILES_MAX: usize = 50_000;
/// Most directories of a source, for the same reason: `-R /` ends soon.
const DIRECTORIES_MAX: usize = 10_000;
/// Deepest directory of a source, below the one that was given.
const DEPTH_MAX: usize = 32;

/// How a source is read and put together.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct SourceOptions {
    /// Whether subdirectories are read too.
    pub recursive: bool,
    /// The chosen profiles, in order.
    pub profiles: Vec<String>,
    /// Settings of the form `UNIT.KEY=VALUE`.
    pub sets: Vec<String>,
}

/// Reads every `*.yaml` and `*.yml` of a directory and of the `*.d` in it, in the order of their
/// names; of all below it where that is asked for.
///
/// # Errors
/// Where the directory or any file cannot be read: all of these.
pub fn read_source(dir: &Path, options: &SourceOptions) -> Result<Source, SystemError> {
    let (source, mut unread) = read_what_can_be(dir, options)?;
    let Some(first) = unread.first_mut() else { return Ok(source) };
    let mut first = std::mem::replace(first, SystemError::new("", "", ""));
    for other in unread.iter().skip(1) {
        first.reason = format!("{}; {other}", first.reason);
    }
    Err(first)
}

/// The same as far as the files can be read, and why each of the others cannot.
///
/// # Errors
/// Where a directory cannot be read, or holds too much.
pub fn read_what_can_be(
    dir: &Path,
    options: &SourceOptions,
) -> Result<(Source, Vec<SystemError>), SystemError> {
    let dir = full_path(dir).map_err(|error| fail(dir, &error))?;
    let mut walk = Walk { recursive: options.recursive, ..Walk::default() };
    let metadata = fs::metadata(&dir).map_err(|error| fail(&dir, &error))?;
    if metadata.is_file() {
        walk.files.push((dir.clone(), true));
    } else {
        walk.directory(&dir, &metadata, 0)?;
    }
    let (mut files, mut unread) = (Vec::with_capacity(walk.files.len()), Vec::new());
    for (path, is_file) in walk.files {
        match read_file(path, is_file) {
            Ok(file) => files.push(file),
            Err(error) => unread.push(error),
        }
    }
    let SourceOptions { profiles, sets, .. } = options.clone();
    Ok((Source { name: source_name(&dir), dir: None, files, profiles, sets }, unread))
}

/// The path of what is there, from the root on. Links stay in it as they were named: a deployment that turns one is
/// the same source as before, and what its units name is looked up anew at each start.
fn full_path(path: &Path) -> std::io::Result<PathBuf> {
    let metadata = fs::metadata(path)?;
    let whole = if path.is_absolute() { path.to_owned() } else { here()?.join(path) };
    let mut full = PathBuf::new();
    for part in whole.components() {
        match part {
            Component::ParentDir => drop(full.pop()),
            Component::Prefix(_)
            | Component::RootDir
            | Component::CurDir
            | Component::Normal(_) => full.push(part),
        }
    }
    // The parent of what a link leads to is not where the link is.
    let is_it = fs::metadata(&full).is_ok_and(|found| is_same(&found, &metadata));
    if is_it { Ok(full) } else { fs::canonicalize(path) }
}

/// The working directory, by the links by which the shell came there.
fn here() -> std::io::Result<PathBuf> {
    let own = fs::metadata(".")?;
    let told = std::env::var_os("PWD").map(PathBuf::from).filter(|told| {
        told.is_absolute() && fs::metadata(told).is_ok_and(|found| is_same(&found, &own))
    });
    told.map_or_else(std::env::current_dir, Ok)
}

fn is_same(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

fn fail(path: &Path, error: &dyn fmt::Display) -> SystemError {
    SystemError::new("read units from", path.display(), error)
}

/// Reads a file, which was a regular one a moment ago where `is_file`.
fn read_file(path: PathBuf, is_file: bool) -> Result<SourceFile, SystemError> {
    let text = read_bytes(&path, is_file).map_err(|reason| fail(&path, &reason))?;
    Ok(SourceFile { path: path.into(), text })
}

fn read_bytes(path: &Path, is_file: bool) -> Result<Vec<u8>, String> {
    let words = |error: std::io::Error| match fs::read_link(path) {
        Ok(target) if error.kind() == ErrorKind::NotFound => {
            format!("it is a link to `{}`, which does not exist", target.display())
        }
        _ => error.to_string(),
    };
    let none = || Err("it is no regular file".to_owned());
    // To open a device may do something.
    if !is_file && !fs::metadata(path).map_err(words)?.is_file() {
        return none();
    }
    // Whoever opens a FIFO waits for somebody to write, and a file may have become one.
    let mut options = File::options();
    let file = options.read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(words)?;
    let metadata = file.metadata().map_err(words)?;
    if !metadata.is_file() {
        return none();
    }
    let size = metadata.size();
    if size > READ_BYTES_MAX {
        let most = config::FILE_BYTES_MAX;
        return Err(format!("it has {size} bytes, a unit file has at most {most}"));
    }
    // With room for the read that finds the end. A file that grows meanwhile is read as far as any
    // may be, and the loader says that it is too large.
    let mut text = Vec::with_capacity(usize::try_from(size).unwrap_or(0).saturating_add(1));
    file.take(READ_BYTES_MAX).read_to_end(&mut text).map_err(words)?;
    Ok(text)
}

/// Goes through directories.
#[derive(Debug, Default)]
struct Walk {
    recursive: bool,
    /// Each with whether it is a regular file for sure.
    files: Vec<(PathBuf, bool)>,
    /// Those that were read, by what they are: none is read twice, whatever links lead to it.
    seen: BTreeSet<(u64, u64)>,
}

impl Walk {
    fn directory(
        &mut self,
        dir: &Path,
        metadata: &Metadata,
        depth: usize,
    ) -> Result<(), SystemError> {
        if !self.seen.insert((metadata.dev(), metadata.ino())) {
            return Ok(());
        }
        if self.seen.len() > DIRECTORIES_MAX {
            return Err(fail(dir, &format!("there are more than {DIRECTORIES_MAX} directories")));
        }
        if depth > DEPTH_MAX {
            let reason = format!("it is more than {DEPTH_MAX} directories deep");
            return Err(fail(dir, &reason));
        }
        let mut paths = BTreeMap::new();
        // The directory says what most entries are, so that not each has to be asked. A link is not
        // what it leads to.
        let is_file = |entry: &DirEntry| entry.file_type().is_ok_and(|kind| kind.is_file());
        for entry in fs::read_dir(dir).map_err(|error| fail(dir, &error))? {
            let entry = entry.map_err(|error| fail(dir, &error))?;
            if !entry.file_name().as_bytes().starts_with(b".") {
                paths.insert(entry.path(), is_file(&entry));
            }
        }
        let is_inside = depth > 0 && drop_in_unit(dir).is_some();
        for (path, is_file) in paths {
            self.path(path, is_file, depth, is_inside)?;
        }
        Ok(())
    }

    /// One name of a directory.
    fn path(
        &mut self,
        path: PathBuf,
        is_file: bool,
        depth: usize,
        is_inside: bool,
    ) -> Result<(), SystemError> {
        let is_yaml = path.extension().is_some_and(|end| end == "yaml" || end == "yml");
        let is_read = !is_inside && (self.recursive || drop_in_unit(&path).is_some());
        if !is_yaml && !is_read {
            return Ok(());
        }
        if is_file {
            return if is_yaml { self.file(path, true) } else { Ok(()) };
        }
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => {
                if is_read {
                    self.directory(&path, &metadata, depth.saturating_add(1))?;
                }
            }
            Ok(_) if !is_yaml => {}
            // What is wrong with it is told when it is read.
            Ok(_) | Err(_) if is_yaml => self.file(path, false)?,
            // A link to nothing that is no unit file.
            Ok(_) | Err(_) => {}
        }
        Ok(())
    }

    fn file(&mut self, path: PathBuf, is_file: bool) -> Result<(), SystemError> {
        self.files.push((path, is_file));
        match self.files.first() {
            Some((first, _)) if self.files.len() > FILES_MAX => {
                Err(fail(first, &format!("there are more than {FILES_MAX} files")))
            }
            Some(_) | None => Ok(()),
        }
    }
}
