//! A program that forks away: its first process ends, and a file names the one that goes on.
//!
//! The number in a file is a hint. It is believed of a process of the run's own tree only: by its
//! session, its descent, or the run's number in its environment. Of a program that has written over
//! its environment, as many do to change their title, it is believed where it is an orphan that came
//! to us and can be no other run's ([`Linux::is_orphan`]). A file of before the start says nothing.

use std::fs;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::super::file_waits::{self, Tells};
use super::super::{Launch, plain, process, tree};
use super::said::Complaint;
use super::{Linux, Watched, owner_of};
use crate::model::{Event, Happening, Identity, Role, RunId, StartError, Word};

/// The longest first line of a pid file. A number has ten digits at most; where there is more it is
/// none, and no more is read.
const LINE_BYTES_MAX: usize = 64;

/// A run that has yet to name its main process.
#[derive(Debug, Clone)]
pub(super) struct Awaited {
    /// Where it does so.
    pub(super) path: PathBuf,
    /// The unit's user, where that is not ours.
    pub(super) owner: Option<u32>,
    /// The process that was made.
    pub(super) first: Identity,
}

impl Linux {
    /// Before a start: waits for the pid file, if there is to be one. Returns where.
    pub(super) fn expect_main(&mut self, launch: &Launch) -> Result<Option<PathBuf>, StartError> {
        let Some(path) = self.pid_file_of(launch) else { return Ok(None) };
        let before = file_waits::mark(&path);
        self.wait_for_file(launch.run, Tells::Main, path.clone(), before)?;
        Ok(Some(path))
    }

    /// The same for a run that an earlier supervisor began.
    pub(super) fn await_main_of(&mut self, launch: &Launch, first: &Identity) {
        let Some(path) = self.pid_file_of(launch) else { return };
        let before = file_waits::mark_older_than(&path, process::started_at(first.start));
        if let Err(error) = self.wait_for_file(launch.run, Tells::Main, path.clone(), before) {
            log::warn!("{}: {error}", launch.instance);
        }
        let is_child = self.children.get(first.pid).is_some();
        let kept = self.kept(&launch.instance, launch.run);
        // What it left behind may have gone elsewhere.
        kept.is_adopted |= !is_child;
        // Where nobody can say who it is, only root's word counts.
        let owner = owner_of(&launch.spec).unwrap_or_else(|error| {
            log::warn!("{}: cannot find its user: {error}", launch.instance);
            None
        });
        kept.awaited = Some(Box::new(Awaited { path, owner, first: *first }));
    }

    fn pid_file_of(&self, launch: &Launch) -> Option<PathBuf> {
        let template = launch.spec.process.as_ref()?.pid_file.as_ref()?;
        Some(self.path_of(launch, template))
    }

    /// What the pid file of a run says, if it is waited for.
    pub(super) fn take_pid_file(&mut self, run: RunId) -> Option<Event> {
        let awaited = self.runs.get(&run)?.awaited.clone()?;
        let path = awaited.path.display();
        if !self.files.is_there(run, Tells::Main) {
            if file_waits::mark(&awaited.path).is_some() {
                self.complain(run, Complaint::OldPidFile, || {
                    format!("`{path}` was there before the start, and says nothing of it; ignored")
                });
            }
            return None;
        }
        let (pid, owner) = match read(&awaited.path) {
            Ok(found) => found?,
            Err(why) => {
                self.complain(run, Complaint::BadPidFile, || {
                    format!("cannot take its main process from `{path}`: {why}")
                });
                return None;
            }
        };
        match self.main_in_file(run, &awaited, pid, owner) {
            Ok((identity, role)) => {
                let what = self.follow(run, &awaited, identity, role)?;
                self.event_of(run, what)
            }
            Err(why) => {
                self.complain(run, Complaint::NoMainInFile, || {
                    format!("cannot take its main process from `{path}`: {why}")
                });
                None
            }
        }
    }

    /// The process that a file of this owner names, if it can be the run's main one; else why not.
    fn main_in_file(
        &self,
        run: RunId,
        awaited: &Awaited,
        pid: i32,
        owner: u32,
    ) -> Result<(Identity, Option<Role>), String> {
        let stranger = || format!("process {pid} is none of the unit's");
        let (identity, role) = self.free_process(run, pid).ok_or_else(stranger)?;
        let stat = process::stat(pid).filter(|stat| stat.start == identity.start);
        let stat = stat.ok_or_else(stranger)?;
        let is_first = same(&identity, &awaited.first);
        if !is_first
            && !self.is_member(run, &identity, stat.session)
            && !self.is_orphan(run, awaited, &identity, &stat)
        {
            return Err(stranger());
        }
        // Whoever can write as the process's own user can do with it what he likes; others cannot.
        let own = nix::unistd::geteuid().as_raw();
        let known = [Some(0), Some(own), awaited.owner, process::user(pid)];
        if !known.contains(&Some(owner)) {
            return Err(format!("it belongs to user {owner}, who has no part in the unit"));
        }
        Ok((identity, role))
    }

    /// Whether a process can have been left to us by this run and by no other: it descends from
    /// something of ours, began after the run's first process, runs as its user, and neither its
    /// environment nor its session is another run's.
    fn is_orphan(
        &self,
        run: RunId,
        awaited: &Awaited,
        identity: &Identity,
        stat: &process::Stat,
    ) -> bool {
        let leads_other = match (self.children.get(stat.session), self.foreign.get(&stat.session)) {
            (Some(child), _) => child.run != run,
            (None, Some(token)) => match self.watched.get(token) {
                Some(Watched::Foreign { run: of, .. }) => *of != run,
                _ => false,
            },
            (None, None) => false,
        };
        // Root's units may make of their processes what they like.
        let is_its_user = awaited.owner.is_none_or(|uid| {
            uid == 0 || process::user(identity.pid).is_some_and(|user| user == uid)
        });
        // Without a capability nobody looks into another user's process: that it is that user's has to do then.
        let has_user = awaited.owner.is_some_and(|uid| uid != 0);
        stat.parent == self.own
            && stat.start >= awaited.first.start
            && is_its_user
            && !leads_other
            && tree::has_any_cookie(identity.pid).map_or(has_user, |has| !has)
    }

    /// The named process is the run's main one from now on.
    fn follow(
        &mut self,
        run: RunId,
        awaited: &Awaited,
        identity: Identity,
        role: Option<Role>,
    ) -> Option<Happening> {
        let before = self.pid_of_main(run);
        let was = self.runs.get(&run)?.said.as_ref().map_or(0, |said| said.next_former());
        let is_first = same(&identity, &awaited.first);
        if !is_first && !self.watch_main(run, &identity, role) {
            return None;
        }
        self.main_is_known(run);
        let kept = self.runs.get_mut(&run)?;
        if !is_first {
            kept.said.get_or_insert_default().knows_former(was, awaited.first);
            if before == Some(awaited.first.pid) {
                self.set_role(run, awaited.first.pid, Role::Former(was));
            }
        }
        Some(Happening::Word { run, word: Word::MainIs { identity, was } })
    }

    /// What the pid file of a run says does not matter any more: its main process is known, or it has
    /// failed before.
    pub(super) fn main_is_known(&mut self, run: RunId) {
        self.files.remove(run, Tells::Main);
        if let Some(kept) = self.runs.get_mut(&run) {
            kept.awaited = None;
        }
    }

    /// Of those that forked away and have not named anybody yet, who has left nobody that could.
    pub(super) fn left_by_those_that_forked_away(&mut self) -> Vec<Event> {
        let mut waiting = self.files.waiting(Tells::Main);
        waiting.retain(|run| {
            let kept = self.runs.get(run).filter(|kept| kept.awaited.is_some());
            kept.is_some_and(|kept| !kept.is_adopted) && self.pid_of_main(*run).is_none()
        });
        // An orphan comes to us: without one, all that live have a role.
        if waiting.is_empty() || self.strays().is_none_or(|strays| !strays.is_empty()) {
            return Vec::new();
        }
        let mut events = Vec::new();
        for run in waiting {
            self.complain(run, Complaint::NobodyLeft, || {
                "its first process has ended, and left none that could be its main one".to_owned()
            });
            events.extend(self.event_of(run, Happening::Tree { run, left: 0 }));
        }
        events
    }
}

fn same(one: &Identity, other: &Identity) -> bool {
    (one.pid, one.start) == (other.pid, other.start)
}

/// The number in a pid file and the file's owner; `None` while nothing is in it, or it is not there.
/// It is never waited for: what is no plain file is not opened.
fn read(path: &Path) -> Result<Option<(i32, u32)>, String> {
    let fail = |error: io::Error| {
        if error.kind() == ErrorKind::NotFound {
            return Ok(None);
        }
        Err(plain(&error.to_string()))
    };
    let no_file = || Err("it is no regular file, or a symbolic link".to_owned());
    match fs::symlink_metadata(path) {
        Ok(file) if !file.is_file() => return no_file(),
        Ok(_) => {}
        Err(error) => return fail(error),
    }
    let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW | libc::O_NOCTTY;
    let file = match fs::OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) => return fail(error),
    };
    let owner = match file.metadata() {
        Ok(about) if about.is_file() => about.uid(),
        Ok(_) => return no_file(),
        Err(error) => return fail(error),
    };
    let mut bytes = Vec::new();
    let limit = u64::try_from(LINE_BYTES_MAX).unwrap_or(u64::MAX).saturating_add(1);
    if let Err(error) = file.take(limit).read_to_end(&mut bytes) {
        return fail(error);
    }
    Ok(number(&bytes)?.map(|pid| (pid, owner)))
}

/// The number in the first line, as far as that was read.
fn number(bytes: &[u8]) -> Result<Option<i32>, String> {
    if bytes.iter().all(u8::is_ascii_whitespace) && bytes.len() <= LINE_BYTES_MAX {
        return Ok(None);
    }
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    if line.len() > LINE_BYTES_MAX {
        return Err(format!("its first line is longer than {LINE_BYTES_MAX} bytes"));
    }
    let text = std::str::from_utf8(line.trim_ascii()).unwrap_or_default();
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let pid = text.parse::<i32>().ok().filter(|pid| is_number && *pid > 0);
    pid.map(Some).ok_or_else(|| "its first line is no process number".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_is_a_number() {
        for text in ["42", "42\n", " 42 \n", "42\r\n", "42\n/var/lib/x\n5432\n", "0042"] {
            assert_eq!(number(text.as_bytes()), Ok(Some(42)), "{text:?}");
        }
        for text in ["", "\n", " \n\n"] {
            assert_eq!(number(text.as_bytes()), Ok(None), "{text:?}");
        }
        let long = format!("42{}", " ".repeat(LINE_BYTES_MAX));
        let zeros = "0".repeat(LINE_BYTES_MAX + 1);
        for text in ["0", "-1", "+1", "4 2", "x", "\n42", "2147483648", "\0", "4\u{663}", "1e3"] {
            assert!(number(text.as_bytes()).is_err(), "{text:?}");
        }
        assert!(number(long.as_bytes()).is_err() && number(zeros.as_bytes()).is_err());
        assert!(number(&[0xff, b'\n']).is_err());
        assert!(number(&[b' '; LINE_BYTES_MAX + 1]).is_err());
    }
}
