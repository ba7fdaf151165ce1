//! Where opm keeps things, and the lock that says who owns them.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::seal::checksum;
use super::{SystemError, ledger, places, sys};
use crate::model::{InstanceId, Span};

/// How long a start waits for the half-born child of a killed supervisor to let the lock go.
const ORPHANED_LOCK_WAIT: Span = Span::seconds(5);
/// Variable that hands the lock over an exec.
const LOCK_FD: &str = "OPM_LOCK_FD";
/// The same for the lock on the run directory.
const RUN_LOCK_FD: &str = "OPM_RUN_LOCK_FD";
/// The control socket in the run directory.
const SOCKET: &str = "control.sock";
/// The file in a locked directory that names the holder, for people and for messages.
const HOLDER: &str = "lock";
/// Where a run directory goes that cannot be made where it should be. Anybody may make directories there.
const SHARED: [&str; 2] = ["/dev/shm", "/tmp"];
/// The files that say what is to run, and when what is due ran last.
const SAVED: [&str; 3] =
    [super::store::DESIRED_FILE, super::store::PREVIOUS_FILE, super::store::AGENDA_FILE];
/// The directory of what was applied, in the state directory.
const HISTORY: &str = super::archive::DIR;
/// Name of the state directory beside the run directory's own files, where there is no other.
const STATE: &str = "state";
/// Name of the directory of logs beside the run directory's own files, where there is no other.
const LOGS: &str = "logs";

/// The directories of one opm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dirs {
    /// The state directory that was asked for, wherever it had to go: by it an opm knows its own.
    pub asked: PathBuf,
    /// Under which name it has directories where all opms of a user may have some: another one for each root.
    pub name: String,
    /// Sockets, FIFOs and the ledger; best on tmpfs.
    pub run: PathBuf,
    /// The saved desired state and the lock.
    pub state: PathBuf,
    /// The units' logs.
    pub logs: PathBuf,
}

impl Dirs {
    /// Everything under one directory.
    pub fn under(root: &Path) -> Self {
        let name = format!("root-{:016x}", checksum(root.as_os_str().as_bytes()));
        Self { name, ..Self::of(root.join("run"), root.join("state"), root.join("log")) }
    }

    fn of(run: PathBuf, state: PathBuf, logs: PathBuf) -> Self {
        Self { asked: state.clone(), name: String::new(), run, state, logs }
    }

    /// The directories of the system scope for root, else those of the user by the XDG rules.
    /// `variable` looks up the caller's environment.
    pub fn of_scope(variable: &dyn Fn(&str) -> Option<PathBuf>) -> Self {
        if sys::own_uid() == 0 {
            return Self::of("/run/opm".into(), "/var/lib/opm".into(), "/var/log/opm".into());
        }
        let uid = sys::own_uid();
        let home = variable("HOME").filter(|home| home.is_absolute() && home.is_dir());
        let [_, volatile] = in_shared(uid);
        let run = variable("XDG_RUNTIME_DIR").filter(|dir| dir.is_dir());
        let run = run.map_or_else(|| volatile.join("run"), |dir| dir.join("opm"));
        let state = variable("XDG_STATE_HOME")
            .or_else(|| home.map(|home| home.join(".local/state")))
            .map_or_else(|| volatile.join("state"), |dir| dir.join("opm"));
        let logs = state.join("log");
        Self::of(run, state, logs)
    }

    /// Where clients find the daemon.
    pub fn socket(&self) -> PathBuf {
        self.run.join(SOCKET)
    }

    /// The process that took the state directory last, where it lives and may be opm. Nobody, where nobody
    /// has it: the number may be one of another pid namespace.
    pub fn holder(&self) -> Option<i32> {
        // A look: to try the lock would keep an opm that begins now from having it.
        let inode = fs::metadata(&self.state).ok()?.ino();
        let locks = fs::read_to_string("/proc/locks");
        let is_its = |line: &str| line.contains("FLOCK") && line.contains(&format!(":{inode} "));
        if locks.is_ok_and(|locks| !locks.lines().any(is_its)) {
            return None;
        }
        let pid = holder(&self.state.join(HOLDER))?;
        let lives = super::process::stat(pid).is_some_and(|stat| !stat.is_dead());
        // Of another user's process nobody knows what it runs.
        let runs = fs::read_link(format!("/proc/{pid}/exe"));
        let may_be = runs.map_or(true, |path| path.to_string_lossy().contains("opm"));
        (lives && may_be).then_some(pid)
    }

    /// Where the units' output FIFOs are.
    pub fn fifos(&self) -> PathBuf {
        self.run.join("log")
    }

    /// Where the notify sockets are.
    pub fn notify(&self) -> PathBuf {
        self.run.join("notify")
    }

    /// An instance's notify socket. Each has a suffix, as names may have dots.
    pub fn notify_socket(&self, id: &InstanceId) -> PathBuf {
        self.notify().join(format!("{id}.sock"))
    }

    /// The FIFO by which an instance, or the log keeper for it, says that it is ready.
    pub fn readiness(&self, id: &InstanceId) -> PathBuf {
        self.notify().join(format!("{id}.ready"))
    }

    /// Makes the directories; where an opm of this life has let something run, its own. On a root that cannot be
    /// written, those that cannot be made move to `/dev/shm` or `/tmp`. Returns what is elsewhere, in words. Those
    /// of another user are an error: no command would look for this user's daemon elsewhere. None is left that
    /// another opm has.
    pub fn prepare(&mut self) -> Result<Vec<String>, LockError> {
        let mut moved = Vec::new();
        let ledger = ledger::name().map_err(LockError::Failed)?;
        if let Some(left) = places::left(self, &ledger) {
            let changes = [(&self.run, &left.run), (&self.state, &left.state)];
            for (other, dir) in changes.into_iter().filter(|(other, dir)| other != dir) {
                let (other, dir) = (other.display(), dir.display());
                moved.push(format!("using {dir} and not {other}, as opm did before in this boot"));
            }
            *self = left;
        }
        if let Err(error) = make(&self.run, 0o755) {
            may_leave(&self.run, &error)?;
            let found = self.elsewhere().find(|place| make(place, 0o755).is_ok());
            let found = found.ok_or(LockError::Failed(error))?;
            moved.push(format!("{} cannot be made; using {}", self.run.display(), found.display()));
            copy_missing(&self.run, &found, &[&ledger]);
            self.run = found;
        }
        for (dir, name, mode) in [(&mut self.state, STATE, 0o700), (&mut self.logs, LOGS, 0o750)] {
            if let Err(error) = make(dir, mode) {
                may_leave(dir, &error)?;
                let found = self.run.join(name);
                make(&found, mode).map_err(LockError::Failed)?;
                if name == STATE {
                    copy_saved(dir, &found);
                }
                moved.push(format!(
                    "{} cannot be made; using {}, which does not survive a reboot",
                    dir.display(),
                    found.display()
                ));
                *dir = found;
            }
        }
        self.make_inner().map_err(LockError::Failed)?;
        Ok(moved)
    }

    /// Makes those anew that somebody removed while we run.
    pub fn make_again(&self) -> Result<(), SystemError> {
        make(&self.run, 0o755)?;
        // One that is there may have become one that nobody can write in.
        for (dir, mode) in [(&self.state, 0o700), (&self.logs, 0o750)] {
            if !dir.exists() {
                make(dir, mode)?;
            }
        }
        self.make_inner()
    }

    /// Those in the run directory, with the modes that they are to have: whoever made them.
    fn make_inner(&self) -> Result<(), SystemError> {
        for (dir, mode) in [(self.fifos(), 0o700), (self.notify(), 0o711)] {
            make(&dir, mode)?;
            fs::set_permissions(&dir, fs::Permissions::from_mode(mode))
                .map_err(|error| SystemError::new("set the mode of", dir.display(), error))?;
        }
        Ok(())
    }

    /// The directories that a daemon has which was asked for these, also where none runs any more.
    #[must_use]
    pub fn where_found(self) -> Self {
        let listens = |dirs: &Self| is_trusted(&dirs.run) && is_listened_at(&dirs.socket());
        let noted: Vec<Self> = places::noted(&self).collect();
        let moved = self.elsewhere().map(|run| Self { logs: run.join(LOGS), run, ..self.clone() });
        let moved: Vec<Self> = moved.collect();
        let mut others = noted.iter().chain(&moved).filter(|dirs| dirs.run != self.run);
        let mut found = if others.any(|dirs| dirs.socket().exists()) {
            // In an image that cannot be written there may be the socket of a daemon that ran as it was built.
            let mut all = noted.iter().chain([&self]).chain(&moved);
            all.find(|dirs| listens(dirs)).unwrap_or(&self).clone()
        } else {
            // Nobody is to be woken to see that he is there.
            let here = noted.iter().find(|dirs| dirs.run == self.run);
            here.or(noted.first()).unwrap_or(&self).clone()
        };
        let beside = found.run.join(LOGS);
        let logs = noted.iter().chain(&moved).map(|dirs| &dirs.logs);
        if !can_be_used(&found.logs)
            && let Some(logs) = [&beside].into_iter().chain(logs).find(|logs| is_trusted(logs))
        {
            found.logs.clone_from(logs);
        }
        found
    }

    /// The run directories that are used where the one that was asked for cannot be.
    pub(super) fn elsewhere(&self) -> impl Iterator<Item = PathBuf> {
        in_shared(sys::own_uid()).map(|place| place.join(&self.name).join("run")).into_iter()
    }

    /// The user who has put a run directory where this user's daemon would have it.
    #[must_use]
    pub fn stranger(&self) -> Option<u32> {
        stranger(&self.run)
    }
}

/// Our directories where anybody may make some.
fn in_shared(uid: u32) -> [PathBuf; 2] {
    SHARED.map(|place| Path::new(place).join(format!("opm-{uid}")))
}

/// The other user who owns a directory of ours where anybody may make some, or one on the way to it.
fn stranger(dir: &Path) -> Option<u32> {
    let uid = sys::own_uid();
    let place = in_shared(uid).into_iter().find(|place| dir.starts_with(place))?;
    let way = dir.ancestors().take_while(|dir| dir.starts_with(&place));
    let mut owners = way.filter_map(|dir| fs::symlink_metadata(dir).ok()).map(|found| found.uid());
    owners.find(|owner| *owner != uid)
}

/// Whether somebody accepts connections there, or may do so.
fn is_listened_at(socket: &Path) -> bool {
    let nobody = [ErrorKind::NotFound, ErrorKind::ConnectionRefused];
    UnixStream::connect(socket).map_or_else(|error| !nobody.contains(&error.kind()), |_| true)
}

/// Whether a directory that cannot be made may be left for another place: not one that is another user's, or that
/// another opm has.
fn may_leave(dir: &Path, error: &SystemError) -> Result<(), LockError> {
    if is_of_another(dir) {
        return Err(LockError::Failed(error.clone()));
    }
    let held = File::open(dir).is_ok_and(|dir| match dir.try_lock() {
        Err(fs::TryLockError::WouldBlock) => true,
        Ok(()) | Err(fs::TryLockError::Error(_)) => false,
    });
    if !held {
        return Ok(());
    }
    Err(LockError::Held { pid: holder(&dir.join(HOLDER)), path: dir.to_owned() })
}

/// Copies what was saved, with its history.
fn copy_saved(from: &Path, to: &Path) {
    copy_missing(from, to, &SAVED);
    let (from, to) = (from.join(HISTORY), to.join(HISTORY));
    let names = fs::read_dir(&from).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let names: Vec<String> = names.filter_map(|name| name.into_string().ok()).collect();
    if names.is_empty() {
        return;
    }
    if let Err(error) = make(&to, 0o700) {
        log::error!("{error}");
        return;
    }
    copy_missing(&from, &to, &names.iter().map(String::as_str).collect::<Vec<_>>());
}

/// Copies files to where they can be written. Those that are there stay: they are newer.
fn copy_missing(from: &Path, to: &Path, names: &[&str]) {
    for name in names {
        let (there, new) = (to.join(name), to.join(format!("{name}.new")));
        if there.exists() || !from.join(name).is_file() {
            continue;
        }
        let copied = fs::copy(from.join(name), &new).and_then(|_| fs::rename(&new, &there));
        if let Err(error) = copied {
            log::error!("cannot copy {}: {error}", from.join(name).display());
        }
    }
}

/// Whether a directory is there and belongs to another user, where that matters.
fn is_of_another(dir: &Path) -> bool {
    let own = sys::own_uid();
    own != 0 && fs::metadata(dir).is_ok_and(|metadata| metadata.is_dir() && metadata.uid() != own)
}

/// Whether there is a directory that nobody else but root has put there.
pub(super) fn is_trusted(dir: &Path) -> bool {
    let trusted = [0, sys::own_uid()];
    let is_ours = |found: fs::Metadata| found.is_dir() && trusted.contains(&found.uid());
    fs::metadata(dir).is_ok_and(is_ours) && stranger(dir).is_none()
}

/// Whether we can make files in a directory.
fn can_be_used(dir: &Path) -> bool {
    let flags = nix::unistd::AccessFlags::W_OK | nix::unistd::AccessFlags::X_OK;
    dir.is_dir() && nix::unistd::access(dir, flags).is_ok()
}

/// Makes a directory that is ours and writable.
pub(super) fn make(dir: &Path, mode: u32) -> Result<(), SystemError> {
    let fail =
        |reason: &dyn fmt::Display| SystemError::new("make directory", dir.display(), reason);
    let foreign = |uid: u32| fail(&format!("it belongs to user {uid}"));
    if let Some(uid) = stranger(dir) {
        return Err(foreign(uid));
    }
    DirBuilder::new().recursive(true).mode(mode).create(dir).map_err(|error| fail(&error))?;
    let metadata = fs::metadata(dir).map_err(|error| fail(&error))?;
    if metadata.uid() != sys::own_uid() && sys::own_uid() != 0 {
        return Err(foreign(metadata.uid()));
    }
    // Who was quicker than we.
    if let Some(uid) = stranger(dir) {
        return Err(foreign(uid));
    }
    nix::unistd::access(dir, nix::unistd::AccessFlags::W_OK | nix::unistd::AccessFlags::X_OK)
        .map_err(|errno| fail(&std::io::Error::from(errno)))
}

/// The lock that makes one supervisor the owner of a state directory.
///
/// It is on the directory itself, so that no file that somebody removes can take it away; and on the
/// run directory too, so that nobody comes in beside us where one of them is removed or replaced:
/// the ledger is in the other. It belongs to the open directories, so that a child at the gate holds it too:
/// a new supervisor cannot read the ledger while a child of the old one exists that may not be in it.
#[derive(Debug)]
pub(super) struct Lock {
    state: File,
    run: File,
}

/// Why the lock could not be had.
#[derive(Debug)]
pub enum LockError {
    /// Another opm has it.
    Held {
        /// Its pid, as it wrote it.
        pid: Option<i32>,
        /// What is locked.
        path: PathBuf,
    },
    /// The file cannot be used.
    Failed(SystemError),
}

impl fmt::Display for LockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held { pid: Some(pid), path } => {
                write!(f, "opm runs already: process {pid} holds `{}`", path.display())
            }
            Self::Held { pid: None, path } => {
                write!(f, "opm runs already: `{}` is locked", path.display())
            }
            Self::Failed(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for LockError {}

impl Lock {
    /// Takes the lock, or the one that the program before us handed over by exec.
    pub(super) fn take(dirs: &Dirs) -> Result<Self, LockError> {
        let state = lock(&dirs.state, LOCK_FD)?;
        let run = lock(&dirs.run, RUN_LOCK_FD)?;
        for dir in [&dirs.state, &dirs.run] {
            let name = dir.join(HOLDER);
            if let Err(error) = sign(&name) {
                // A full disk does not unlock; only the message to others will be poorer.
                log::warn!("cannot write {}: {error}", name.display());
            }
        }
        Ok(Self { state, run })
    }

    /// Takes the lock of directories that were removed, and made anew by us or by somebody else.
    pub(super) fn renew(&mut self, dirs: &Dirs) -> Result<(), LockError> {
        for (file, path) in [(&mut self.state, &dirs.state), (&mut self.run, &dirs.run)] {
            let fail = |error| LockError::Failed(SystemError::new("lock", path.display(), error));
            let place = |found: fs::Metadata| (found.dev(), found.ino());
            let dir = File::open(path).map_err(fail)?;
            if dir.metadata().map(place).map_err(fail)?
                == file.metadata().map(place).map_err(fail)?
            {
                continue;
            }
            dir.try_lock().map_err(|error| match error {
                fs::TryLockError::WouldBlock => {
                    LockError::Held { pid: holder(&path.join(HOLDER)), path: path.clone() }
                }
                fs::TryLockError::Error(error) => fail(error),
            })?;
            *file = dir;
            if let Err(error) = sign(&path.join(HOLDER)) {
                log::warn!("cannot write {}: {error}", path.join(HOLDER).display());
            }
        }
        Ok(())
    }

    /// Lets the lock live on over an exec of opm; returns the variables that say where it is.
    pub(super) fn hand_over(&self) -> [(&'static str, RawFd); 2] {
        self.set_inheritable(true);
        [(LOCK_FD, self.state.as_raw_fd()), (RUN_LOCK_FD, self.run.as_raw_fd())]
    }

    /// The exec failed: children must not inherit the lock beyond their own exec.
    pub(super) fn take_back(&self) {
        self.set_inheritable(false);
    }

    fn set_inheritable(&self, inheritable: bool) {
        sys::set_inheritable(self.state.as_fd(), inheritable);
        sys::set_inheritable(self.run.as_fd(), inheritable);
    }
}

/// Locks a directory, or takes its lock over from the program before us.
fn lock(path: &Path, variable: &str) -> Result<File, LockError> {
    let fail =
        |error: std::io::Error| LockError::Failed(SystemError::new("lock", path.display(), error));
    let mut dir = File::open(path).map_err(fail)?;
    if let Some(inherited) = handed_over(&dir, variable) {
        dir = inherited;
    }
    let mut waited = Span::ZERO;
    while let Err(error) = dir.try_lock() {
        let fs::TryLockError::WouldBlock = error else {
            return Err(fail(std::io::Error::from(error)));
        };
        let pid = holder(&path.join(HOLDER));
        // A holder that wrote its pid and lives is a supervisor. One that is dead has left a child
        // between fork and exec, which ends by itself.
        let alive = pid.is_none_or(|pid| super::process::stat(pid).is_some_and(|s| !s.is_dead()));
        if alive || waited >= ORPHANED_LOCK_WAIT {
            return Err(LockError::Held { pid, path: path.to_owned() });
        }
        waited = Span::nanos(waited.as_nanos().saturating_add(Span::millis(5).as_nanos()));
        // Waiting for another process's exec; there is nothing to poll for.
        match nix::poll::poll(&mut [], nix::poll::PollTimeout::from(5u8)) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(fail(errno.into())),
        }
    }
    Ok(dir)
}

fn sign(name: &Path) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(name)?;
    writeln!(file, "{}", std::process::id())
}

fn holder(name: &Path) -> Option<i32> {
    let mut text = String::new();
    File::open(name).ok()?.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// The descriptor that an opm before us left open for us, if it is the lock's.
fn handed_over(file: &File, variable: &str) -> Option<File> {
    let fd: RawFd = std::env::var(variable).ok()?.parse().ok()?;
    let (ours, theirs) = (file.metadata().ok()?, fs::metadata(format!("/proc/self/fd/{fd}")).ok()?);
    if (ours.dev(), ours.ino()) != (theirs.dev(), theirs.ino()) || fd == file.as_raw_fd() {
        return None;
    }
    let inherited = File::from(sys::take_inherited(fd));
    fcntl(&inherited, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).ok()?;
    Some(inherited)
}
