//! Logs, read back from their files; works without a keeper and without a supervisor.
//!
//! Prints nothing and joins nothing: records go to the caller one by one, in the order of their
//! stamps over all instances, and in the order of the file within one. Files are never read whole:
//! memory is bounded by a block per instance, or by one record where that is longer.
//!
//! Reading backwards finds where to begin ([`backward`]), reading forwards gives the records and
//! goes over from one file to the next ([`cursor`]), and following waits for changes ([`follow`]).
//! Where a time is asked for, its place is found by bisection ([`find`]), also in a large log; a run is
//! found from the end ([`runs`]).
//! A reader that falls behind by more than the files that are kept misses some, and gets a record
//! of opm that says so.

mod backward;
mod cursor;
mod find;
mod follow;
pub(crate) mod packed;
pub mod record;
mod runs;
pub mod segment;
mod select;

#[cfg(test)]
mod find_tests;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use record::Record;
pub use runs::Which;
pub use select::{BadPattern, Pattern, Select, Whose};

use backward::Backward;
use cursor::Cursor;
use find::Bounds;

/// Which records are wanted.
#[derive(Debug, Clone)]
pub struct Query {
    /// The directory with one directory for each instance.
    pub dir: PathBuf,
    /// The instances; a unit's name stands for all of its instances. Empty: all there are.
    pub instances: Vec<String>,
    /// Only so many of the last records, over all instances together; `None`: all.
    pub lines: Option<usize>,
    /// Whether to wait for more.
    pub follow: bool,
    /// What the records have to be like.
    pub select: Arc<Select>,
    /// Only those of one run of each instance.
    pub run: Option<Which>,
    /// Whether each record is to say which run it is of, where reading begins in the middle.
    pub names_runs: bool,
}

impl Query {
    /// All that these instances have written.
    pub fn of(dir: &Path, instances: &[&str]) -> Self {
        Self {
            dir: dir.to_owned(),
            instances: instances.iter().map(|name| (*name).to_owned()).collect(),
            lines: None,
            follow: false,
            select: Arc::default(),
            run: None,
            names_runs: false,
        }
    }

    /// Whether this directory's log is wanted.
    fn wants(&self, instance: &str) -> bool {
        let is_named = |name: &String| {
            instance
                .strip_prefix(name.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('@'))
        };
        self.instances.is_empty() || self.instances.iter().any(is_named)
    }

    /// The wanted logs that there are, by name.
    fn present(&self) -> Result<Vec<String>, LogsError> {
        let fail = |error| LogsError::Read { path: self.dir.clone(), error };
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            if let Some(name) = entry.file_name().to_str()
                && self.wants(name)
                && entry.path().is_dir()
            {
                names.push(name.to_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }
}

/// Why reading ended.
#[derive(Debug)]
pub enum LogsError {
    /// A file cannot be read.
    Read {
        /// Which one, or in which directory.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
    /// The caller could not use a record, for example because its reader is gone.
    Output(io::Error),
}

impl fmt::Display for LogsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read { path, error } => {
                write!(f, "cannot read log `{}`: {error}", path.display())
            }
            Self::Output(error) => write!(f, "cannot write: {error}"),
        }
    }
}

impl std::error::Error for LogsError {}

/// What is done with a record; an error ends the reading.
pub type Each<'a> = dyn FnMut(Record) -> io::Result<()> + 'a;

/// Gives the wanted records, the oldest first.
///
/// Blocking: with `follow`, until `each` fails, or until `output` has lost its reader. Without,
/// what is written while it reads is left out, so that it comes to an end.
pub fn read(
    query: &Query,
    output: Option<BorrowedFd<'_>>,
    each: &mut Each<'_>,
) -> Result<(), LogsError> {
    if query.follow {
        return follow::follow(query, output, each);
    }
    give(start(query, &query.present()?)?, each)
}

/// Gives what is there now.
fn give(cursors: Vec<Cursor>, each: &mut Each<'_>) -> Result<(), LogsError> {
    let mut merge = Merge::new(cursors);
    for cursor in &mut merge.cursors {
        cursor.end_here().map_err(|error| cursor.error(error))?;
    }
    merge.wake_all()?;
    while merge.step(each)? {}
    Ok(())
}

/// The last records of one instance, the oldest first; none where there is no log to read.
pub fn last_lines(dir: &Path, instance: &str, lines: usize) -> Vec<Record> {
    let query = Query { lines: Some(lines), ..Query::of(dir, &[instance]) };
    let mut records = Vec::new();
    let mut each = |record| {
        records.push(record);
        Ok(())
    };
    let read = start(&query, &[instance.to_owned()]).and_then(|cursors| {
        let mut merge = Merge::new(cursors);
        merge.wake_all()?;
        // Bounded by the number, since the log may grow faster than it is read.
        for _ in 0..lines {
            if !merge.step(&mut each)? {
                break;
            }
        }
        Ok(())
    });
    if let Err(error) = read {
        log::debug!("{error}");
    }
    records
}

/// Cursors of these instances, at the first record that is wanted.
fn start(query: &Query, names: &[String]) -> Result<Vec<Cursor>, LogsError> {
    let mut cursors = Vec::new();
    let mut backs = Vec::new();
    for name in names {
        let fail = |error| LogsError::Read { path: query.dir.join(name), error };
        let mut cursor = Cursor::at_begin(&query.dir, name, &query.select);
        let dir = query.dir.join(name);
        let mut bounds = match &query.run {
            Some(which) => {
                let (bounds, run) = runs::bounds(&dir, which).map_err(fail)?;
                cursor.is_of(run);
                bounds
            }
            None => Bounds::of(&dir, &query.select).map_err(fail)?,
        };
        if bounds.is_empty {
            cursor.end_at_once();
            // Nothing is looked at.
            bounds.end = None;
        } else if let Some(end) = bounds.end_of_cursor().map_err(fail)? {
            cursor.end_at(end);
        }
        if query.lines.is_none() {
            cursor.go_to(bounds.first);
        } else if !bounds.is_empty {
            let back = Backward::new(&dir, bounds).map_err(fail)?;
            // What is written while it goes back is none of the last.
            if !query.follow
                && let Some(end) = back.end().map_err(fail)?
            {
                cursor.end_at(end);
            }
            backs.push((cursors.len(), back));
        }
        cursors.push(cursor);
    }
    if let Some(lines) = query.lines {
        go_back(query, names, lines, &mut backs)?;
    }
    for (index, back) in backs {
        if let Some(cursor) = cursors.get_mut(index) {
            cursor.go_to(back.into_start());
        }
    }
    if query.names_runs {
        for cursor in &mut cursors {
            cursor.find_run().map_err(|error| cursor.error(error))?;
        }
    }
    Ok(cursors)
}

/// Goes back by so many wanted records, over all logs together.
fn go_back(
    query: &Query,
    names: &[String],
    lines: usize,
    backs: &mut [(usize, Backward)],
) -> Result<(), LogsError> {
    let mut heap = BinaryHeap::new();
    let step = |index: usize, (name, back): &mut (usize, Backward)| {
        let name = names.get(*name).map_or("", String::as_str);
        let fail = |error| LogsError::Read { path: query.dir.join(name), error };
        let time = step_back(back, query, name).map_err(fail)?;
        Ok::<_, LogsError>(time.map(|time| (time, index)))
    };
    if lines > 0 {
        for (index, back) in backs.iter_mut().enumerate() {
            heap.extend(step(index, back)?);
        }
    }
    for taken in 1..=lines {
        let Some((_, index)) = heap.pop() else { break };
        if let Some(back) = backs.get_mut(index) {
            back.1.take();
            if taken < lines {
                heap.extend(step(index, back)?);
            }
        }
    }
    Ok(())
}

/// The time of the wanted record before.
fn step_back(back: &mut Backward, query: &Query, name: &str) -> io::Result<Option<String>> {
    while let Some(record) = back.step(name)? {
        // Who asks since when is given what is known to be so young.
        let is_asked = query.select.since.is_some() && back.is_without_time();
        if query.select.wants(&record) && !is_asked {
            return Ok(Some(record.time));
        }
    }
    Ok(None)
}

/// Several logs as one, by time.
#[derive(Debug)]
struct Merge {
    cursors: Vec<Cursor>,
    /// The time of each cursor's next record, and the cursor's index.
    heap: BinaryHeap<Reverse<(String, usize)>>,
}

impl Merge {
    fn new(cursors: Vec<Cursor>) -> Self {
        Self { cursors, heap: BinaryHeap::new() }
    }

    fn wake_all(&mut self) -> Result<(), LogsError> {
        (0..self.cursors.len()).try_for_each(|index| self.wake(index))
    }

    /// Looks whether a cursor that had nothing has something now.
    fn wake(&mut self, index: usize) -> Result<(), LogsError> {
        if let Some(cursor) = self.cursors.get_mut(index)
            && !cursor.has_next()
        {
            cursor.advance().map_err(|error| cursor.error(error))?;
            self.heap.extend(cursor.next_time().map(|time| Reverse((time.to_owned(), index))));
        }
        Ok(())
    }

    /// Gives the oldest record that is there; whether there was one.
    fn step(&mut self, each: &mut Each<'_>) -> Result<bool, LogsError> {
        let Some(Reverse((_, index))) = self.heap.pop() else { return Ok(false) };
        if let Some(record) = self.cursors.get_mut(index).and_then(Cursor::take) {
            each(record).map_err(LogsError::Output)?;
        }
        self.wake(index)?;
        Ok(true)
    }
}
