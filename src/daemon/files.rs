//! The files of a source: which ones of a directory are read, in an order that is always the same.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::{SourceFile, drop_in_unit, source_name};
use crate::supervisor::Source;
use crate::system::SystemError;

/// Largest unit file that is read, in bytes; the loader says what is wrong with a larger one.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;
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
pub fn read_source(dir: &Path, options: &SourceOptions) -> Result<Source, SystemError> {
    let dir = fs::canonicalize(dir).map_err(|error| fail(dir, &error))?;
    let mut walk = Walk { recursive: options.recursive, ..Walk::default() };
    let metadata = fs::metadata(&dir).map_err(|error| fail(&dir, &error))?;
    if metadata.is_file() {
        walk.files.push(dir.clone());
    } else {
        walk.directory(&dir, &metadata, 0)?;
    }
    let mut files = Vec::with_capacity(walk.files.len());
    for path in walk.files {
        files.push(read_file(path)?);
    }
    let SourceOptions { profiles, sets, .. } = options.clone();
    Ok(Source { name: source_name(&dir), dir: None, files, profiles, sets })
}

fn fail(path: &Path, error: &dyn fmt::Display) -> SystemError {
    SystemError::new("read units from", path.display(), error)
}

fn read_file(path: PathBuf) -> Result<SourceFile, SystemError> {
    let metadata = fs::metadata(&path).map_err(|error| fail(&path, &error))?;
    // Whoever opens a FIFO waits for somebody to write.
    if !metadata.is_file() {
        return Err(fail(&path, &"it is no regular file"));
    }
    if metadata.size() > FILE_BYTES_MAX {
        let reason = format!("it has {} bytes, more than {FILE_BYTES_MAX}", metadata.size());
        return Err(fail(&path, &reason));
    }
    let text = fs::read(&path).map_err(|error| fail(&path, &error))?;
    Ok(SourceFile { path: path.into(), text })
}

/// Goes through directories.
#[derive(Debug, Default)]
struct Walk {
    recursive: bool,
    files: Vec<PathBuf>,
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
        let mut paths = BTreeSet::new();
        for entry in fs::read_dir(dir).map_err(|error| fail(dir, &error))? {
            let path = entry.map_err(|error| fail(dir, &error))?.path();
            if path.file_name().is_some_and(|name| !name.as_bytes().starts_with(b".")) {
                paths.insert(path);
            }
        }
        let is_inside = depth > 0 && drop_in_unit(dir).is_some();
        for path in paths {
            self.path(path, depth, is_inside)?;
        }
        Ok(())
    }

    /// One name of a directory.
    fn path(&mut self, path: PathBuf, depth: usize, is_inside: bool) -> Result<(), SystemError> {
        let is_yaml = path.extension().is_some_and(|end| end == "yaml" || end == "yml");
        let is_read = !is_inside && (self.recursive || drop_in_unit(&path).is_some());
        if !is_yaml && !is_read {
            return Ok(());
        }
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => {
                if is_read {
                    self.directory(&path, &metadata, depth.saturating_add(1))?;
                }
            }
            Ok(_) if !is_yaml => {}
            // What is wrong with it is told when it is read.
            Ok(_) | Err(_) if is_yaml => {
                self.files.push(path);
                if self.files.len() > FILES_MAX {
                    let reason = format!("there are more than {FILES_MAX} files");
                    return Err(fail(self.files.first().unwrap_or(&PathBuf::new()), &reason));
                }
            }
            // A link to nothing that is no unit file.
            Ok(_) | Err(_) => {}
        }
        Ok(())
    }
}
