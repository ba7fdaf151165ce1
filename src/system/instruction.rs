//! What the supervisor tells the log keeper: one small JSON file per instance beside its FIFO.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::model::{FilePath, LogTarget, Logs, Template};

/// Where an instance's output goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Destination {
    /// To files in the instance's own log directory, stamped.
    File,
    /// Only to the console.
    Console,
    /// To this file, as the bytes came.
    Path(FilePath),
}

/// How to treat an instance's output. A change is taken over at once; the file's removal means that
/// nothing more will come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instruction {
    /// Where it goes.
    pub to: Destination,
    /// How large one file may become, in bytes.
    pub max_size: u64,
    /// How many finished files are kept.
    pub keep: u32,
    /// The instance's own log directory.
    pub dir: FilePath,
}

impl Instruction {
    /// What a spec says about an instance's output; `path` fills in a path of the unit file.
    pub fn of(logs: &Logs, dir: &Path, path: &dyn Fn(&Template) -> PathBuf) -> Self {
        let to = match &logs.to {
            LogTarget::File => Destination::File,
            LogTarget::Console => Destination::Console,
            LogTarget::Path(template) => Destination::Path(path(template).into()),
        };
        Self { to, max_size: logs.max_size, keep: logs.keep, dir: dir.into() }
    }

    /// Where the instruction for an instance is.
    pub fn path(dir: &Path, instance: &str) -> PathBuf {
        dir.join(format!("{instance}.json"))
    }

    /// Writes the instruction, unless it is there already. A reader sees the old one or the new
    /// one, never a part.
    pub fn write(&self, dir: &Path, instance: &str) -> io::Result<()> {
        let text = serde_json::to_vec(self)?;
        let path = Self::path(dir, instance);
        if fs::read(&path).is_ok_and(|known| known == text) {
            return Ok(());
        }
        let new = dir.join(format!(".{instance}.json"));
        fs::write(&new, text)?;
        fs::rename(new, path)
    }
}
