//! The run journal: events that must outlive a crash of the supervisor, one JSON line each.
//!
//! It is worth nothing after the machine, or the container, went down: its name carries the boot,
//! the pid namespace and the start of that namespace's pid 1, so that another life's ledger is
//! never opened. For the same reason nothing is synced: what `write` has accepted survives any
//! death of the supervisor, and a power loss ends the processes too.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::disk::{Disk, Files};
use super::{SystemError, process};
use crate::model::{Event, Happening, Instance, InstanceId, Life, Observed};

/// A ledger is rewritten when it has grown by this many bytes, and by twice the facts' own size:
/// then the cost of rewriting is a constant part of the cost of writing.
const COMPACT_BYTES_MIN: u64 = 64 * 1024;
/// Largest ledger that is read, in bytes; 10,000 instances need about 10 MB.
const LEDGER_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Where the kernel tells the id of this boot, `random(4)`.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// How names of ledgers begin and end.
const PREFIX: &str = "ledger-";
const SUFFIX: &str = ".jsonl";
/// What stands in them for what `/proc` hides.
const HIDDEN_BOOT: &str = "unknown";
const HIDDEN_NUMBER: &str = "0";

/// Most lines that are told one by one when they cannot be read; others are counted. More is a file
/// that something else wrote over.
const PROBLEMS_MAX: usize = 100;

/// So much room for events is kept from one write to the next, in bytes.
const UNWRITTEN_BYTES_KEPT: usize = 8 * 1024;

/// Bytes of events that wait for the next write at most, where there can be one.
const UNWRITTEN_BYTES_WAIT: usize = 64 * 1024;

/// Most bytes of events that wait while the ledger cannot be written.
const UNWRITTEN_BYTES_MAX: usize = 1024 * 1024;

/// What a ledger says.
#[derive(Debug, Default)]
pub struct Replay {
    /// The facts after its last line.
    pub observed: Observed,
    /// What could not be read, in words.
    pub problems: Vec<String>,
    /// Whether there was none of this boot.
    pub is_first: bool,
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
    let mut unread = 0usize;
    while let Some(line) = lines.next() {
        number += 1;
        let read = if lines.peek().is_some() {
            read_line(line, &mut replay.observed).map_err(|error| format!("line {number}: {error}"))
        } else if line.is_empty() {
            Ok(())
        } else {
            Err(format!("line {number} is unfinished"))
        };
        if let Err(problem) = read {
            unread += 1;
            if unread <= PROBLEMS_MAX {
                replay.problems.push(problem);
            }
        }
    }
    if let Some(left @ 1..) = unread.checked_sub(PROBLEMS_MAX) {
        replay.problems.push(format!("{left} more lines cannot be read"));
    }
    replay
}

/// Takes one line into the facts.
fn read_line(line: &[u8], observed: &mut Observed) -> Result<(), serde_json::Error> {
    if line.starts_with(b"{\"s\":") {
        let snapshot: Snapshot<'_> = serde_json::from_slice(line)?;
        observed.insert(snapshot.instance.into_owned(), snapshot.facts.into_owned());
    } else {
        observed.apply(&serde_json::from_slice(line)?);
    }
    Ok(())
}

/// The text of a ledger that says these facts and nothing of how they came about.
pub fn compact_text(observed: &Observed) -> Result<Vec<u8>, serde_json::Error> {
    let mut text = Vec::new();
    for (id, facts) in observed.iter() {
        let snapshot = Snapshot {
            instance: std::borrow::Cow::Borrowed(id),
            facts: std::borrow::Cow::Borrowed(facts),
        };
        serde_json::to_writer(&mut text, &snapshot)?;
        text.push(b'\n');
    }
    Ok(text)
}

/// The ledger of this boot and pid namespace.
#[derive(Debug)]
pub struct Ledger<D: Disk = Files> {
    disk: D,
    path: PathBuf,
    file: D::File,
    bytes: u64,
    bytes_compact: u64,
    /// How long it was when it could not be replaced: not before it has grown is that tried again.
    bytes_refused: u64,
    unwritten: Vec<u8>,
    /// Set when events were dropped because they could not be written: only a whole new ledger
    /// tells the truth then.
    stale: bool,
}

impl<D: Disk> Ledger<D> {
    /// Opens the ledger of this name, making it where there is none, and reads it. One that may be of this
    /// life is given the name. Those of other lives are of no use to anybody, and are removed.
    pub fn open(disk: D, dir: &Path, name: &str) -> Result<(Self, Replay), SystemError> {
        let path = dir.join(name);
        let fail = |error: std::io::Error| SystemError::new("open ledger", path.display(), error);
        take_over(&disk, dir, name).map_err(fail)?;
        remove_others(&disk, dir, name);
        let is_first = !disk.exists(&path);
        let file = disk.append(&path).map_err(fail)?;
        let text = disk.read(&path, LEDGER_BYTES_MAX + 1).map_err(fail)?;
        let bytes = length(&text);
        if bytes > LEDGER_BYTES_MAX {
            let reason = format!("it has more than {LEDGER_BYTES_MAX} bytes");
            return Err(SystemError::new("read ledger", path.display(), reason));
        }
        let replay = Replay { is_first, ..replay_text(&text) };
        // An unfinished line must not be continued by the next one.
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let whole = u64::try_from(whole).unwrap_or(bytes);
        if whole != bytes {
            disk.cut(&file, whole).map_err(fail)?;
        }
        let ledger = Self {
            disk,
            path,
            file,
            bytes: whole,
            bytes_compact: 0,
            bytes_refused: 0,
            unwritten: Vec::new(),
            stale: false,
        };
        Ok((ledger, replay))
    }

    /// Whether somebody removed the file: what is written to it then, nobody will read.
    pub fn is_lost(&self) -> bool {
        !self.disk.exists(&self.path)
    }

    /// Notes an event for the next write.
    pub fn note(&mut self, event: &Event) {
        let before = self.unwritten.len();
        if let Err(error) = serde_json::to_writer(&mut self.unwritten, event) {
            log::error!("cannot write an event as JSON: {error}");
            return;
        }
        self.unwritten.push(b'\n');
        // A boot of thousands of units notes more than may wait, before it has to write.
        let parts = |bytes: usize| bytes / UNWRITTEN_BYTES_WAIT;
        if parts(self.unwritten.len()) > parts(before)
            && let Err(error) = self.flush()
        {
            log::debug!("{error}");
        }
        if self.unwritten.len() > UNWRITTEN_BYTES_MAX {
            self.unwritten.clear();
            self.stale = true;
        }
    }

    /// Forgets what was noted last, so many events: it was not let happen.
    pub fn forget_last_notes(&mut self, count: usize) {
        for _ in 0..count {
            self.unwritten.pop();
            let end =
                self.unwritten.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            self.unwritten.truncate(end);
        }
    }

    /// The facts after what is written and what is noted; `None` where some of it is lost. How far
    /// the last write came is looked up too, since it may have broken off; and so may have a
    /// replacement, so that the file that is open is opened anew by its name.
    pub fn recall(&mut self) -> Option<Replay> {
        if self.stale {
            return None;
        }
        let open = || self.disk.append(&self.path);
        // What is known without it is less: once more is worth it, here and below.
        match open().or_else(|_| open()) {
            Ok(file) => self.file = file,
            Err(error) => {
                log::error!("cannot open ledger `{}`: {error}", self.path.display());
                self.stale = true;
                return None;
            }
        }
        let read = || self.disk.read(&self.path, LEDGER_BYTES_MAX + 1);
        let mut text = match read().or_else(|_| read()) {
            Ok(text) => text,
            Err(error) => {
                log::error!("cannot read ledger `{}`: {error}", self.path.display());
                return None;
            }
        };
        self.bytes = length(&text);
        if text.ends_with(&self.unwritten) {
            self.unwritten.clear();
        }
        text.extend_from_slice(&self.unwritten);
        Some(replay_text(&text))
    }

    /// Writes what was noted, with one write. A part that was written is taken back.
    pub fn flush(&mut self) -> Result<(), SystemError> {
        if self.stale {
            let reason = "it waits to be written anew";
            return Err(SystemError::new("write to ledger", self.path.display(), reason));
        }
        if self.unwritten.is_empty() {
            return Ok(());
        }
        match self.disk.write(&mut self.file, &self.unwritten) {
            Ok(()) => {
                self.bytes = self.bytes.saturating_add(length(&self.unwritten));
                self.unwritten.clear();
                // What a boot of many units notes at once is not noted again.
                self.unwritten.shrink_to(UNWRITTEN_BYTES_KEPT);
                Ok(())
            }
            Err(error) => {
                if let Err(error) = self.disk.cut(&self.file, self.bytes) {
                    // The next line would be lost with the part that stands before it.
                    log::error!("cannot take back a part of a ledger line: {error}");
                    self.stale = true;
                }
                Err(SystemError::new("write to ledger", self.path.display(), error))
            }
        }
    }

    /// Replaces the ledger by these facts, where it has grown enough or somebody removed it, or
    /// `always`.
    pub fn compact(&mut self, observed: &Observed, always: bool) -> Result<(), SystemError> {
        if self.is_lost() {
            self.replace(observed)?;
            log::warn!("the ledger `{}` was removed; it is written again", self.path.display());
            return Ok(());
        }
        let limit = COMPACT_BYTES_MIN
            .saturating_add(self.bytes_compact.saturating_mul(3))
            .max(self.bytes_refused.saturating_add(COMPACT_BYTES_MIN));
        if !always && !self.stale && self.bytes <= limit {
            return Ok(());
        }
        self.bytes_refused = self.bytes;
        self.replace(observed)?;
        self.bytes_refused = 0;
        Ok(())
    }

    fn replace(&mut self, observed: &Observed) -> Result<(), SystemError> {
        let text = compact_text(observed).and_then(|text| with_let_go(text, observed));
        let text =
            text.map_err(|error| SystemError::new("write to ledger", self.path.display(), error))?;
        let fail =
            |error: std::io::Error| SystemError::new("replace ledger", self.path.display(), error);
        let new = self.path.with_extension("new");
        if let Err(error) = self.disk.remove(&new)
            && error.kind() != ErrorKind::NotFound
        {
            return Err(fail(error));
        }
        let mut file = self.disk.append(&new).map_err(fail)?;
        self.disk.write(&mut file, &text).map_err(fail)?;
        self.disk.rename(&new, &self.path).map_err(fail)?;
        self.file = file;
        self.bytes = length(&text);
        self.bytes_compact = self.bytes;
        self.unwritten.clear();
        self.stale = false;
        Ok(())
    }
}

/// Adds that those were let go who are not seen to run their programs yet: of the processes of a supervisor that
/// lives all were, and the ledger said so before; they may have run when somebody else reads it.
fn with_let_go(mut text: Vec<u8>, observed: &Observed) -> Result<Vec<u8>, serde_json::Error> {
    for (id, facts) in observed.iter() {
        let Some(run) = &facts.run else { continue };
        let born = run.processes().filter(|(_, process)| process.state == Life::Born);
        for (role, _) in born.filter(|(_, process)| process.identity.is_some()) {
            let what = Happening::Execed { run: run.id, role };
            let event = Event { instance: id.clone(), at: facts.since, what };
            serde_json::to_writer(&mut text, &event)?;
            text.push(b'\n');
        }
    }
    Ok(text)
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

/// Gives a ledger that may be of this life its name, where there is none of the name: what `/proc` shows of a life
/// can be hidden at one time and not at another.
fn take_over<D: Disk>(disk: &D, dir: &Path, own: &str) -> std::io::Result<()> {
    if disk.exists(&dir.join(own)) {
        return Ok(());
    }
    let names = disk.names(dir).unwrap_or_default();
    let mut names = names.iter().filter_map(|name| name.to_str());
    if let Some(other) = names.find(|name| may_be_of_one_life(name, own)) {
        log::warn!("/proc shows something else than before; ledger `{other}` is of this life");
        disk.rename(&dir.join(other), &dir.join(own))?;
    }
    Ok(())
}

/// Whether two ledgers differ in their names by nothing but what could not be read for one of them.
pub(super) fn may_be_of_one_life(one: &str, other: &str) -> bool {
    fn parts(name: &str) -> Option<[&str; 3]> {
        let life = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
        let mut parts = life.rsplitn(3, '-');
        Some([parts.next()?, parts.next()?, parts.next()?])
    }
    let (Some(one), Some(other)) = (parts(one), parts(other)) else { return false };
    let is_known = |part: &str| ![HIDDEN_NUMBER, HIDDEN_BOOT].contains(&part);
    one.iter().zip(other).all(|(one, other)| *one == other || !is_known(one) || !is_known(other))
}

fn remove_others<D: Disk>(disk: &D, dir: &Path, own: &str) {
    for name in disk.names(dir).unwrap_or_default() {
        let is_other = name.to_str().is_some_and(|name| name.starts_with(PREFIX) && name != own);
        if is_other && let Err(error) = disk.remove(&dir.join(&name)) {
            log::warn!("cannot remove old ledger {}: {error}", Path::new(&name).display());
        }
    }
}

/// Boot id, pid namespace, and when that namespace's pid 1 was started: a container that is
/// started again has the host's boot id, and perhaps the same inode.
///
/// What cannot be read only now is an error: by another name all would be started again.
pub(super) fn name() -> Result<String, SystemError> {
    let namespace = known("/proc/self/ns/pid", fs::metadata("/proc/self/ns/pid"))?;
    let namespace = namespace.map_or(0, |metadata| metadata.ino());
    let first = known("/proc/1/stat", process::try_stat(1))?.map_or(0, |stat| stat.start);
    Ok(format!("{PREFIX}{}-{namespace}-{first}{SUFFIX}", boot()?))
}

/// The id of this boot.
pub(super) fn boot() -> Result<String, SystemError> {
    let id = known(BOOT_ID, fs::read_to_string(BOOT_ID))?;
    Ok(id.map_or_else(|| HIDDEN_BOOT.to_owned(), |id| id.trim().to_owned()))
}

/// What could be read; nothing where it never can be, as in a `/proc` that hides other users' processes.
fn known<T>(what: &str, read: std::io::Result<T>) -> Result<Option<T>, SystemError> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => {
            Ok(None)
        }
        Err(error) => Err(SystemError::new("read", what, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Happening, Monotonic, RunId, UnitName};

    #[test]
    fn a_ledger_that_cannot_be_replaced_is_not_tried_at_every_turn() {
        let dir = tempfile::tempdir().unwrap();
        let (mut ledger, _) = Ledger::open(Files, dir.path(), "ledger-a").unwrap();
        // Something that cannot be removed like a file is where the new one has to go.
        fs::create_dir_all(ledger.path.with_extension("new").join("in the way")).unwrap();
        let event = Event {
            instance: InstanceId::single(&UnitName::parse("a").unwrap()),
            at: Monotonic::default(),
            what: Happening::Reloaded { run: RunId(1) },
        };
        let observed = Observed::default();
        let mut refused = Vec::new();
        while ledger.bytes < 4 * COMPACT_BYTES_MIN {
            ledger.note(&event);
            ledger.flush().unwrap();
            if ledger.compact(&observed, false).is_err() {
                refused.push(ledger.bytes / COMPACT_BYTES_MIN);
            }
        }
        assert_eq!(refused, [1, 2, 3], "once for so many bytes more");
        assert!(ledger.compact(&observed, true).is_err());
        fs::remove_dir_all(ledger.path.with_extension("new")).unwrap();
        ledger.compact(&observed, true).unwrap();
        assert_eq!(ledger.bytes, 0);
    }

    #[test]
    fn what_cannot_be_read_only_now_gives_the_ledger_no_other_name() {
        let error = |kind: i32| Err::<(), _>(std::io::Error::from_raw_os_error(kind));
        for hidden in [libc::ENOENT, libc::EACCES, libc::EPERM] {
            assert_eq!(known("it", error(hidden)), Ok(None), "{hidden}");
        }
        for shortage in [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::EIO, libc::EINTR] {
            assert!(known("it", error(shortage)).is_err(), "{shortage}");
        }
        assert_eq!(name(), name());
    }

    #[test]
    fn what_proc_hides_at_one_time_makes_no_other_life() {
        let whole = "ledger-5c21-a-7-100.jsonl";
        for (other, may_be) in [
            (whole, true),
            ("ledger-unknown-7-100.jsonl", true),
            ("ledger-5c21-a-7-0.jsonl", true),
            ("ledger-unknown-0-0.jsonl", true),
            ("ledger-5c21-a-7-101.jsonl", false),
            ("ledger-5c21-b-7-100.jsonl", false),
            ("ledger-unknown-8-100.jsonl", false),
            ("ledger-5c21-a-7-100.new", false),
            ("ledger-.jsonl", false),
        ] {
            assert_eq!(may_be_of_one_life(whole, other), may_be, "{other}");
            assert_eq!(may_be_of_one_life(other, whole), may_be, "{other}");
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join(other), "x").unwrap();
            let (_, replay) = Ledger::open(Files, dir.path(), whole).unwrap();
            assert_eq!(
                (replay.is_first, replay.problems.len()),
                (!may_be, may_be.into()),
                "{other}"
            );
        }
    }

    #[test]
    fn more_than_may_wait_is_written_meanwhile() {
        let dir = tempfile::tempdir().unwrap();
        let (mut ledger, _) = Ledger::open(Files, dir.path(), "ledger-a").unwrap();
        let count: u16 = 20_000;
        for n in 0..count {
            ledger.note(&Event {
                instance: InstanceId::single(&UnitName::parse(&format!("u{n}")).unwrap()),
                at: Monotonic::default(),
                what: Happening::Waits { on: Vec::new(), fresh: true, epoch: None },
            });
        }
        ledger.flush().unwrap();
        assert!(ledger.bytes > UNWRITTEN_BYTES_MAX as u64, "more than may wait");
        assert_eq!(ledger.recall().unwrap().observed.iter().count(), usize::from(count));
    }

    #[test]
    fn lines_that_cannot_be_read_are_told_up_to_a_number() {
        let known = b"{\"i\":\"a\",\"t\":1,\"e\":{\"waits\":{\"on\":[],\"fresh\":true}}}\n";
        for (bad, told) in [(1, 1), (PROBLEMS_MAX, PROBLEMS_MAX), (5_000, PROBLEMS_MAX + 1)] {
            let replay = replay_text(&[&b"x\n".repeat(bad)[..], known].concat());
            assert_eq!(replay.problems.len(), told, "{bad}");
            assert_eq!(replay.observed.iter().count(), 1, "what can be read is taken");
        }
        let last = replay_text(&b"x\n".repeat(5_000)).problems.pop();
        assert_eq!(last.as_deref(), Some("4900 more lines cannot be read"));
        assert_eq!(replay_text(b"x").problems, ["line 1 is unfinished"]);
    }
}
