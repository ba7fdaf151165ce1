//! A saved plan: a source's files with what the plan was made from. It is applied only while that
//! is still so.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::apply::Manner;
use super::{Error, Exit};
use crate::config::SourceFile;
use crate::daemon::{SourceOptions, read_source};
use crate::model::FilePath;
use crate::plan::Basis;
use crate::protocol::FileText;
use crate::supervisor::Source;

/// Version of the file. A higher one is refused.
const VERSION: u32 = 1;
/// How the file begins; no unit file does.
const MAGIC: &str = "{\"opm_plan\":";

/// The file. Its units may hold secrets, so that only its owner can read it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct PlanFile {
    /// The version; the first field, by which the file is known.
    opm_plan: u32,
    source: String,
    /// The directory of the source by its name, where it has another one.
    dir: Option<String>,
    /// Where the files are; absent where they came from standard input.
    path: Option<FilePath>,
    /// How they are read and put together.
    options: SourceOptions,
    files: Vec<File>,
    pub(super) manner: Manner,
    pub(super) basis: Basis,
    /// What it does, for those who look into the file.
    changes: Value,
}

#[derive(Debug, Serialize, Deserialize)]
struct File {
    path: FilePath,
    text: FileText,
}

impl PlanFile {
    /// A plan that the daemon has just made.
    pub(super) fn new(
        source: &Source,
        path: &Path,
        options: SourceOptions,
        manner: Manner,
        reply: &Value,
    ) -> Result<Self, Error> {
        let basis = reply.get("basis").cloned().unwrap_or_default();
        let basis = serde_json::from_value(basis)
            .map_err(|error| Error::new(Exit::Failed, format!("cannot save the plan: {error}")))?;
        let files = source
            .files
            .iter()
            .map(|file| File { path: file.path.clone(), text: FileText::from(file.text.clone()) });
        let path = (path != Path::new("-")).then(|| fs::canonicalize(path).map(FilePath::from));
        let path = path.transpose().map_err(|error| {
            Error::new(Exit::Failed, format!("cannot find `{}`: {error}", source.name))
        })?;
        Ok(Self {
            opm_plan: VERSION,
            source: source.name.clone(),
            dir: source.dir.clone(),
            path,
            options,
            files: files.collect(),
            manner,
            basis,
            changes: reply.get("changes").cloned().unwrap_or_default(),
        })
    }

    /// Writes it, in place of a file that is there.
    pub(super) fn write(&self, path: &Path) -> Result<(), Error> {
        let fail = |error: &dyn std::fmt::Display| {
            Error::new(Exit::Failed, format!("cannot write plan `{}`: {error}", path.display()))
        };
        let mut bytes = serde_json::to_vec(self).map_err(|error| fail(&error))?;
        bytes.push(b'\n');
        // Written beside it first: a plan that is cut off would be none.
        let mut name = path.as_os_str().to_owned();
        name.push(".new");
        let new = PathBuf::from(name);
        let mut options = fs::OpenOptions::new();
        let options = options.write(true).create(true).truncate(true).mode(0o600);
        let written = options.open(&new).and_then(|mut file| file.write_all(&bytes));
        written.and_then(|()| fs::rename(&new, path)).map_err(|error| fail(&error))
    }

    /// Reads it, if the file is one.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, Error> {
        if !path.is_file() {
            return Ok(None);
        }
        let Ok(text) = fs::read_to_string(path) else { return Ok(None) };
        if !text.starts_with(MAGIC) {
            return Ok(None);
        }
        let fail = |reason: &dyn std::fmt::Display| {
            let message = format!("cannot read plan `{}`: {reason}", path.display());
            Error::new(Exit::Bad, message)
        };
        let plan: Self = serde_json::from_slice(text.as_bytes()).map_err(|error| fail(&error))?;
        if plan.opm_plan > VERSION {
            let reason = format!("it is of version {}, this opm knows {VERSION}", plan.opm_plan);
            return Err(fail(&reason));
        }
        Ok(Some(plan))
    }

    /// The source, if its files are still those that the plan was made from.
    pub(super) fn source(self) -> Result<Source, Error> {
        let files: Vec<SourceFile> = self
            .files
            .into_iter()
            .map(|file| SourceFile { path: file.path, text: file.text.into() })
            .collect();
        if let Some(path) = &self.path {
            let now = read_source(path.as_path(), &self.options)
                .map_err(|error| moved(&error.to_string()))?;
            unchanged(&files, &now.files).map_err(|what| moved(&what))?;
        }
        let SourceOptions { profiles, sets, .. } = self.options;
        Ok(Source { name: self.source, dir: self.dir, files, profiles, sets })
    }
}

fn moved(what: &str) -> Error {
    let message = format!("the plan is out of date: {what}; make a new one");
    Error::new(Exit::Refused, message)
}

/// Says which file is not as it was.
fn unchanged(old: &[SourceFile], now: &[SourceFile]) -> Result<(), String> {
    let find = |files: &[SourceFile], path: &FilePath| {
        files.iter().find(|file| file.path == *path).map(|file| file.text.clone())
    };
    for file in old {
        match find(now, &file.path) {
            None => return Err(format!("`{}` is gone", file.path)),
            Some(text) if text != file.text => return Err(format!("`{}` has changed", file.path)),
            Some(_) => {}
        }
    }
    match now.iter().find(|file| find(old, &file.path).is_none()) {
        Some(new) => Err(format!("`{}` is new", new.path)),
        None => Ok(()),
    }
}
