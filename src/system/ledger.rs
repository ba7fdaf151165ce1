//! The run journal: events that must outlive a crash of the supervisor, one JSON line each.
//!
//! It is worth nothing after the machine, or the container, went down: its name carries the boot,
//! the pid namespace and the start of that namespace's pid 1, so that another life's ledger is
//! never opened. For the same reason nothing is synced: what `write` has accepted survives any
//! death of the supervisor, and a power loss ends the processes too.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{SystemError, process, sys};
use crate::model::{Event, Instance, InstanceId, Observed};

/// A ledger is rewritten when it has grown by this many bytes, and by twice the facts' own size:
/// then the cost of rewriting is a constant part of the cost of writing.
const COMPACT_BYTES_MIN: u64 = 64 * 1024;
/// Largest ledger that is read, in bytes; 10,000 instances need about 10 MB.
const LEDGER_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Most bytes of events that wait while the ledger cannot be written.
const UNWRITTEN_BYTES_MAX: usize = 1024 * 1024;

/// What a ledger says.
#[derive(Debug, Default)]
pub struct Replay {
    /// The facts after its last line.
    pub observed: Observed,
    /// What could not be read, in words.
    pub problems: Vec<String>,
}

/// A line that sets an instance's facts as a whole.
#[derive(Serialize, Deserialize)]
struct Snapshot<'a> {
    #[serde(rename = "s")]
    instance: std::borrow::Cow<'a, InstanceId>,
    facts: std::borrow::Cow<'a, Instance>,
}

/// Reads a ledger's text. An unfinished last line was never acted on, and is passed over.
pub fn replay_text(text: &[u8]) -> Replay {
    let mut replay = Replay::default();
    let mut lines = text.split(|byte| *byte == b'\n').peekable();
    let mut number = 0usize;
    while let Some(line) = lines.next() {
        number += 1;
        if lines.peek().is_none() {
            if !line.is_empty() {
                replay.problems.push(format!("line {number} is unfinished"));
            }
            break;
        }
        if line.starts_with(b"{\"s\":") {
            match serde_json::from_slice::<Snapshot<'_>>(line) {
                Ok(snapshot) => {
                    let facts = snapshot.facts.into_owned();
                    replay.observed.insert(snapshot.instance.into_owned(), facts);
                }
                Err(error) => replay.problems.push(format!("line {number}: {error}")),
            }
        } else {
            match serde_json::from_slice::<Event>(line) {
                Ok(event) => {
                    replay.observed.apply(&event);
                }
                Err(error) => replay.problems.push(format!("line {number}: {error}")),
            }
        }
    }
    replay
}

/// The ledger of this boot and pid namespace.
#[derive(Debug)]
pub(super) struct Ledger {
    path: PathBuf,
    file: File,
    bytes: u64,
    bytes_compact: u64,
    unwritten: Vec<u8>,
    /// Set when events were dropped because they could not be written: only a whole new ledger
    /// tells the truth then.
    stale: bool,
}

impl Ledger {
    /// Opens the ledger, making it where there is none, and reads it.
    pub(super) fn open(dir: &Path) -> Result<(Self, Replay), SystemError> {
        let path = dir.join(name());
        let fail = |error: std::io::Error| SystemError::new("open ledger", path.display(), error);
        remove_others(dir, &path);
        let file = open(&path).map_err(fail)?;
        let bytes = file.metadata().map_err(fail)?.len();
        if bytes > LEDGER_BYTES_MAX {
            let reason = format!("it has {bytes} bytes, more than {LEDGER_BYTES_MAX}");
            return Err(SystemError::new("read ledger", path.display(), reason));
        }
        let text = fs::read(&path).map_err(fail)?;
        let replay = replay_text(&text);
        // An unfinished line must not be continued by the next one.
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let whole = u64::try_from(whole).unwrap_or(bytes);
        if whole != bytes {
            file.set_len(whole).map_err(fail)?;
        }
        let ledger = Self {
            path,
            file,
            bytes: whole,
            bytes_compact: 0,
            unwritten: Vec::new(),
            stale: false,
        };
        Ok((ledger, replay))
    }

    /// Whether somebody removed the file.
    pub(super) fn is_lost(&self) -> bool {
        !self.path.exists()
    }

    /// Notes an event for the next write.
    pub(super) fn note(&mut self, event: &Event) {
        if let Err(error) = serde_json::to_writer(&mut self.unwritten, event) {
            log::error!("cannot write an event as JSON: {error}");
            return;
        }
        self.unwritten.push(b'\n');
        if self.unwritten.len() > UNWRITTEN_BYTES_MAX {
            self.unwritten.clear();
            self.stale = true;
        }
    }

    /// Forgets what was noted last: it was not let happen.
    pub(super) fn forget_last_note(&mut self) {
        self.unwritten.pop();
        let end = self.unwritten.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        self.unwritten.truncate(end);
    }

    /// Writes what was noted, with one write. A part that was written is taken back.
    pub(super) fn flush(&mut self) -> Result<(), SystemError> {
        if self.stale {
            let reason = "it waits to be written anew";
            return Err(SystemError::new("write to ledger", self.path.display(), reason));
        }
        if self.unwritten.is_empty() {
            return Ok(());
        }
        let length = u64::try_from(self.unwritten.len()).unwrap_or(0);
        match self.file.write_all(&self.unwritten) {
            Ok(()) => {
                self.bytes = self.bytes.saturating_add(length);
                self.unwritten.clear();
                Ok(())
            }
            Err(error) => {
                if let Err(error) = self.file.set_len(self.bytes) {
                    log::error!("cannot take back a part of a ledger line: {error}");
                }
                Err(SystemError::new("write to ledger", self.path.display(), error))
            }
        }
    }

    /// Replaces the ledger by these facts, where it has grown enough, or `always`.
    pub(super) fn compact(&mut self, observed: &Observed, always: bool) -> Result<(), SystemError> {
        let limit = COMPACT_BYTES_MIN.saturating_add(self.bytes_compact.saturating_mul(3));
        if !always && !self.stale && self.bytes <= limit {
            return Ok(());
        }
        let mut text = Vec::new();
        for (id, facts) in observed.iter() {
            let snapshot = Snapshot {
                instance: std::borrow::Cow::Borrowed(id),
                facts: std::borrow::Cow::Borrowed(facts),
            };
            if let Err(error) = serde_json::to_writer(&mut text, &snapshot) {
                return Err(SystemError::new("write to ledger", self.path.display(), error));
            }
            text.push(b'\n');
        }
        let fail =
            |error: std::io::Error| SystemError::new("replace ledger", self.path.display(), error);
        let new = self.path.with_extension("new");
        if let Err(error) = fs::remove_file(&new)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(fail(error));
        }
        let mut file = open(&new).map_err(fail)?;
        file.write_all(&text).map_err(fail)?;
        fs::rename(&new, &self.path).map_err(fail)?;
        self.file = file;
        self.bytes = u64::try_from(text.len()).unwrap_or(0);
        self.bytes_compact = self.bytes;
        self.unwritten.clear();
        self.stale = false;
        Ok(())
    }
}

fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// Boot id, pid namespace, and when that namespace's pid 1 was started: a container that is
/// started again has the host's boot id, and perhaps the same inode.
fn name() -> String {
    let namespace = fs::metadata("/proc/self/ns/pid").map_or(0, |metadata| metadata.ino());
    let first = process::stat(1).map_or(0, |stat| stat.start);
    format!("ledger-{}-{namespace}-{first}.jsonl", sys::boot_id())
}

/// Ledgers of other lives are of no use to anybody.
fn remove_others(dir: &Path, own: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let is_ledger = path
            .file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.starts_with("ledger-"));
        if is_ledger
            && path != own
            && let Err(error) = fs::remove_file(&path)
        {
            log::warn!("cannot remove old ledger {}: {error}", path.display());
        }
    }
}
