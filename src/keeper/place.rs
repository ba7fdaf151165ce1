//! The files behind a [`Store`](super::store::Store): their names, opening and rotation.
//!
//! Knows nothing of records, except that each ends with a newline where they are stamped: the rest
//! of one that a killed keeper left behind is cut off when the file is opened.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use nix::fcntl::OFlag;

use super::split::PART_BYTES_MAX;
use super::stamp::{STAMP_BYTES, Stamp};
use super::store::{Failure, RUN_EVERY_BYTES};
use crate::logs::record::{self, Record};
use crate::logs::segment::{self, FileId, NUMBER_DIGITS_MIN, packed_path};
use crate::model::{LogFormat, RunId, Span, Wall};
use crate::system::instruction::{Destination, Instruction};

/// Most bytes behind the last newline that are taken for a torn record and cut off. More were not
/// written by a keeper: they get a newline and stay.
const TORN_BYTES_MAX: u64 = PART_BYTES_MAX as u64 + 64;
/// The same of what begins as a JSON object: a control character is an escape of six.
const TORN_JSON_BYTES_MAX: u64 = 6 * PART_BYTES_MAX as u64 + 256;
/// How far back from the end of a file a run is looked for, in bytes.
const RUN_SCAN_BYTES: u64 = RUN_EVERY_BYTES + 64 * 1024;
/// Mode of a log file.
const FILE_MODE: u32 = 0o640;
/// Mode of a log directory.
const DIR_MODE: u32 = 0o750;

/// The file that is being written.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) file: File,
    id: FileId,
    /// How long it is, in bytes; zero for a device.
    pub(super) length: u64,
    /// When its first record was written, in microseconds since 1970, where that is known.
    pub(super) first: Option<i64>,
    /// When the last record was written that was there when it was opened, the same.
    pub(super) last: Option<i64>,
    /// The run that it tells of last, where it does near its end.
    pub(super) run: Option<RunId>,
    /// False for devices and FIFOs: they are not rotated, and nothing can be cut off.
    pub(super) regular: bool,
}

/// Where an instance's output is kept, and what of it.
#[derive(Debug)]
pub(super) struct Place {
    to: Destination,
    path: PathBuf,
    keep: usize,
    max_age: Option<Span>,
    compress: bool,
    /// Whether each line is a record with a stamp.
    is_stamped: bool,
    /// The number of the next finished file, where no larger one is found.
    next: u64,
}

impl Place {
    pub(super) fn new(instruction: &Instruction) -> Self {
        let keep = usize::try_from(instruction.keep).unwrap_or(usize::MAX);
        let path = path_of(instruction);
        let Instruction { to, max_age, compress, .. } = instruction;
        let (max_age, compress) = (*max_age, *compress);
        let is_stamped = instruction.format != LogFormat::Raw;
        Self { to: to.clone(), path, keep, max_age, compress, is_stamped, next: 1 }
    }

    /// Takes over a changed instruction; whether the open file is still the right one.
    pub(super) fn change(&mut self, instruction: &Instruction) -> bool {
        let new = Self::new(instruction);
        (self.keep, self.max_age, self.compress) = (new.keep, new.max_age, new.compress);
        let same = (&self.path, &self.to, self.is_stamped) == (&new.path, &new.to, new.is_stamped);
        if !same {
            *self = new;
        }
        same
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether there are no files at all.
    pub(super) fn is_nowhere(&self) -> bool {
        self.path.as_os_str().is_empty()
    }

    /// Whether it is in a directory of opm's own.
    fn is_ours(&self) -> bool {
        self.to == Destination::File
    }

    /// Whether this file is the one at the path; takes over how long it has become.
    pub(super) fn still_has(&self, open: &mut Open) -> bool {
        match fs::metadata(&self.path) {
            Ok(metadata) if FileId::of(&metadata) == open.id => {
                if open.regular {
                    open.length = metadata.size();
                }
                true
            }
            Ok(_) | Err(_) => false,
        }
    }

    /// Opens the file at the path; makes it, and its directory, where they are missing.
    pub(super) fn open(&self) -> Result<Open, Failure> {
        let file = match self.open_file() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if let Some(dir) = self.path.parent() {
                    DirBuilder::new()
                        .recursive(true)
                        .mode(DIR_MODE)
                        .create(dir)
                        .map_err(Failure::of("make the directory of log"))?;
                }
                self.open_file()
            }
            file => file,
        };
        let file = file.map_err(Failure::of("open log"))?;
        let metadata = file.metadata().map_err(Failure::of("look at log"))?;
        // What a link leads to is somebody else's, as standard output is by `/dev/stdout`: its name
        // stays, and so does the link.
        let is_link = fs::symlink_metadata(&self.path).is_ok_and(|file| file.is_symlink());
        let regular = metadata.is_file() && !is_link;
        let mut open = Open {
            file,
            id: FileId::of(&metadata),
            length: if regular { metadata.size() } else { 0 },
            first: None,
            last: None,
            run: None,
            regular,
        };
        if regular && self.is_stamped {
            let torn = mend(&mut open).map_err(Failure::of("mend log"))?;
            if torn > 0 {
                log::warn!("cut {torn} bytes of a torn record off `{}`", self.path.display());
            }
            if self.max_age.is_some() {
                open.first = first_stamp(&open).map_err(Failure::of("look at log"))?;
            }
            (open.run, open.last) = last_of(&open).map_err(Failure::of("look at log"))?;
        }
        Ok(open)
    }

    fn open_file(&self) -> io::Result<File> {
        // O_NONBLOCK: a FIFO or a terminal at this path must not stop us.
        let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        OpenOptions::new()
            .read(self.is_stamped)
            .append(true)
            .create(true)
            .mode(FILE_MODE)
            .custom_flags(flags.bits())
            .open(&self.path)
    }

    /// Gives the current file its number. One that is gone already is none to finish.
    pub(super) fn finish(&mut self) -> Result<(), Failure> {
        let doing = "rotate log";
        let last = self.numbers().map_err(Failure::of(doing))?.last().copied().unwrap_or(0);
        let number = self.next.max(last.saturating_add(1));
        match fs::rename(&self.path, self.finished_path(number)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(Failure::of(doing)(error)),
            Ok(()) | Err(_) => {
                self.next = number.saturating_add(1);
                Ok(())
            }
        }
    }

    /// Whether the open file has a record that is too old, so that it has to be finished.
    pub(super) fn is_old(&self, open: Option<&Open>, now: Stamp) -> bool {
        let (Some(open), Some(max_age)) = (open, self.max_age) else { return false };
        let is_old = |first| now.micros.saturating_sub(first) >= micros(max_age);
        open.regular && open.length > 0 && open.first.is_some_and(is_old)
    }

    /// Removes the oldest finished files that are too many, and those that are too old. When the
    /// next one will be.
    pub(super) fn prune(&self, now: Wall) -> Result<Option<Wall>, Failure> {
        let doing = "remove old files";
        let numbers = self.numbers().map_err(Failure::of(doing))?;
        let surplus = numbers.len().saturating_sub(self.keep);
        let mut due = None;
        for (index, number) in numbers.into_iter().enumerate() {
            let path = self.finished_path(number);
            if index >= surplus {
                let Some(age) = self.max_age else { break };
                // The time of the last write is that of the last record.
                let written = fs::metadata(&path).or_else(|_| fs::metadata(packed_path(&path)));
                let Ok(written) = written else { continue };
                let part = written.mtime_nsec() / 1_000;
                let written = written.mtime().saturating_mul(1_000_000).saturating_add(part);
                let end = Wall(written.saturating_add(micros(age)));
                if end > now {
                    due = due.into_iter().chain([end]).min();
                    continue;
                }
            }
            for path in [&path, &packed_path(&path)] {
                match fs::remove_file(path) {
                    Err(error) if error.kind() != ErrorKind::NotFound => {
                        return Err(Failure::of(doing)(error));
                    }
                    Ok(()) | Err(_) => {}
                }
            }
        }
        Ok(due)
    }

    /// The finished files, where they are to be compressed.
    pub(super) fn to_pack(&self) -> Option<Finished> {
        (self.compress && !self.is_nowhere()).then(|| self.finished())
    }

    fn finished(&self) -> Finished {
        Finished { path: self.path.clone(), is_ours: self.is_ours() }
    }

    fn numbers(&self) -> io::Result<Vec<u64>> {
        self.finished().numbers()
    }

    fn finished_path(&self, number: u64) -> PathBuf {
        self.finished().path_of(number)
    }
}

/// The finished files of a log, by number.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Finished {
    path: PathBuf,
    /// Whether they are named as in opm's own directories, not after the file.
    is_ours: bool,
}

impl Finished {
    /// The file that is being written.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Their numbers, the oldest first; none where there is no directory.
    pub(super) fn numbers(&self) -> io::Result<Vec<u64>> {
        let dir = self.path.parent().unwrap_or(Path::new("/"));
        let found = segment::numbers_in(dir, &|name| {
            if self.is_ours {
                return segment::number_of(name, b"", segment::SUFFIX.as_bytes());
            }
            let mut prefix = self.path.file_name().unwrap_or_default().to_owned();
            prefix.push(".");
            // Nobody's but a name of ours, zero included: that of another program may be a date.
            let number = segment::number_of(name, prefix.as_encoded_bytes(), b"")?;
            (self.path_of(number).file_name() == Some(name)).then_some(number)
        });
        match found {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            numbers => numbers,
        }
    }

    /// Where the one with this number is, when it is not compressed.
    pub(super) fn path_of(&self, number: u64) -> PathBuf {
        if self.is_ours {
            return segment::finished_path(self.path.parent().unwrap_or(Path::new("/")), number);
        }
        let mut path: OsString = self.path.clone().into_os_string();
        let width = NUMBER_DIGITS_MIN - 1;
        path.push(format!(".0{number:0width$}"));
        path.into()
    }
}

fn path_of(instruction: &Instruction) -> PathBuf {
    match &instruction.to {
        Destination::File => instruction.dir.as_path().join(segment::CURRENT),
        Destination::Path(path) => path.as_path().to_owned(),
        Destination::Console | Destination::Syslog(_) | Destination::Unit(_) => PathBuf::new(),
    }
}

fn micros(span: Span) -> i64 {
    i64::try_from(span.as_nanos() / 1_000).unwrap_or(i64::MAX)
}

/// When the first record of a file was written; `None` where it has none.
fn first_stamp(open: &Open) -> io::Result<Option<i64>> {
    let mut head = [0; 2 * STAMP_BYTES];
    let count = open.file.read_at(&mut head, 0)?;
    Ok(stamp_of(head.get(..count).unwrap_or_default()))
}

fn stamp_of(line: &[u8]) -> Option<i64> {
    let time = record::time_of(line)?.parse::<Timestamp>().ok();
    time.map(Timestamp::as_microsecond)
}

/// The run that the last records are of, which the keeper before knew, and the last stamp.
fn last_of(open: &Open) -> io::Result<(Option<RunId>, Option<i64>)> {
    let from = open.length.saturating_sub(RUN_SCAN_BYTES);
    let mut tail = vec![0; usize::try_from(open.length - from).unwrap_or(0)];
    open.file.read_exact_at(&mut tail, from)?;
    let mut lines = tail.split(|byte| *byte == b'\n').rev();
    let last = lines.clone().find_map(stamp_of);
    let run = lines.find_map(|line| Record::parse(line, "", "").run);
    Ok((run, last))
}

/// Cuts off what a killed keeper left of a record; how many bytes that were. What is no piece of one, as a
/// line of a log that was raw before, gets the end that it lacks.
fn mend(open: &mut Open) -> io::Result<u64> {
    let torn = torn_bytes(open)?;
    let head = usize::try_from(torn).unwrap_or(STAMP_FORM.len()).min(STAMP_FORM.len());
    let mut head = vec![0; head];
    open.file.read_exact_at(&mut head, open.length.saturating_sub(torn))?;
    let most = match head.first() {
        None => return Ok(0),
        Some(b'{') => TORN_JSON_BYTES_MAX,
        Some(_) if begins_with_stamp(&head) => TORN_BYTES_MAX,
        Some(_) => 0,
    };
    if torn > most {
        open.file.write_all(b"\n")?;
        open.length += 1;
        return Ok(0);
    }
    open.length = open.length.saturating_sub(torn);
    open.file.set_len(open.length)?;
    Ok(torn)
}

/// What a stamp looks like: a digit for each zero.
const STAMP_FORM: &[u8] = b"0000-00-00T00:00:00.000000Z";

/// Whether bytes are a stamp as far as they go.
fn begins_with_stamp(head: &[u8]) -> bool {
    head.iter().zip(STAMP_FORM).all(|(byte, form)| match form {
        b'0' => byte.is_ascii_digit(),
        _ => byte == form,
    })
}

/// How many bytes stand behind the last newline; not counted far beyond [`TORN_JSON_BYTES_MAX`].
fn torn_bytes(open: &Open) -> io::Result<u64> {
    let mut last = [b'\n'];
    if let Some(end) = open.length.checked_sub(1) {
        open.file.read_exact_at(&mut last, end)?;
    }
    if last == *b"\n" {
        return Ok(0);
    }
    let from = open.length.saturating_sub(TORN_JSON_BYTES_MAX + 1);
    let mut tail = vec![0; usize::try_from(open.length - from).unwrap_or(0)];
    open.file.read_exact_at(&mut tail, from)?;
    let kept = tail.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    Ok((tail.len() - kept) as u64)
}
