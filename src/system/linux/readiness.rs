//! How a run says that it is ready: what is opened for it before its start, and opened again by the
//! next supervisor.

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use super::super::file_waits::{self, Mark, Tells};
use super::super::notify::NotifySocket;
use super::super::run_mark::Begin;
use super::super::{Launch, child, fifo, process, set_inheritable, sockets};
use super::{Linux, Watched, owner_of, prepare_error};
use crate::model::{Gather, Identity, Monotonic, ProcessSpec, Ready, RunId, Stage, StartError};
use crate::system::System;

/// Most bytes of the variable that hands notify sockets over; the kernel takes 128 KiB, execve(2). The
/// others are bound anew.
const HANDED_BYTES_MAX: usize = 64 * 1024;

/// What a process is given to say that it is ready.
#[derive(Debug, Default)]
pub(super) struct Readiness {
    /// Descriptors, and their numbers in the child.
    pub(super) owned: Vec<(OwnedFd, RawFd)>,
    /// Variables.
    pub(super) extra: Vec<(&'static str, OsString)>,
}

impl Linux {
    /// Everything by which a main process can say how it is, and what it is told of that.
    pub(super) fn open_channels(
        &mut self,
        launch: &Launch,
        process: &ProcessSpec,
    ) -> Result<Readiness, StartError> {
        let mut readiness = self.open_readiness(launch, &process.ready)?;
        if hears(process) {
            let path = self.open_notify(launch, process)?;
            readiness.extra.push(("NOTIFY_SOCKET", path.into()));
        }
        if let Some(silence) = process.watchdog {
            let micros = (silence.as_nanos() / 1_000).to_string();
            readiness.extra.push(("WATCHDOG_USEC", micros.into()));
            // The child adds its number.
            readiness.extra.push((child::WATCHDOG_PID, OsString::new()));
        }
        Ok(readiness)
    }

    /// Everything by which a main process can say that it is ready, the notify socket apart.
    fn open_readiness(&mut self, launch: &Launch, ready: &Ready) -> Result<Readiness, StartError> {
        let (id, run) = (&launch.instance, launch.run);
        match ready {
            Ready::Fd(number) => {
                let path = self.dirs.readiness(id);
                let fail = |error: std::io::Error| prepare_error(path.display(), &error);
                let fifo =
                    fifo::make(&path, owner_of(&launch.spec).map_err(fail)?).map_err(fail)?;
                let theirs = fifo::child_end(&fifo).map_err(fail)?;
                let fd = fifo.as_raw_fd();
                self.watch(Some(run), fd, Watched::ReadyFd { run, fifo }).map_err(fail)?;
                Ok(Readiness { owned: vec![(theirs, RawFd::from(*number))], extra: Vec::new() })
            }
            Ready::File(template) => {
                let path = self.path_of(launch, template);
                let before = file_waits::mark(&path);
                self.wait_for_file(run, Tells::Ready, path, before)?;
                Ok(Readiness::default())
            }
            Ready::Log(_) => {
                self.open_answer(launch, Some(self.now()))?;
                self.mark_output(launch, Begin::Main)?;
                Ok(Readiness::default())
            }
            Ready::Started | Ready::Notify | Ready::Delay(_) | Ready::Asked(_) => {
                Ok(Readiness::default())
            }
        }
    }

    /// The FIFO on which the log keeper says that a run's line has come.
    fn open_answer(&mut self, launch: &Launch, began: Option<Monotonic>) -> Result<(), StartError> {
        let path = self.dirs.readiness(&launch.instance);
        let fail = |error: std::io::Error| prepare_error(path.display(), &error);
        let fifo = fifo::make(&path, None).map_err(fail)?;
        let (run, fd) = (launch.run, fifo.as_raw_fd());
        self.watch(Some(run), fd, Watched::ReadyLog { run, began, fifo }).map(drop).map_err(fail)
    }

    fn open_notify(
        &mut self,
        launch: &Launch,
        process: &ProcessSpec,
    ) -> Result<PathBuf, StartError> {
        let path = self.dirs.notify_socket(&launch.instance);
        let owner =
            owner_of(&launch.spec).map_err(|error| prepare_error(path.display(), &error))?;
        let socket = match self.handed_notify.remove(&launch.instance) {
            Some(fd) => NotifySocket::inherited(fd),
            None => NotifySocket::bind(&path, owner).map_err(|reason| {
                let (stage, subject) = (Stage::Prepare, path.display().to_string());
                StartError { stage, subject, reason, passing: false }
            })?,
        };
        let fd = socket.as_fd().as_raw_fd();
        let run = launch.run;
        if let Some(kept) = self.runs.get_mut(&run) {
            kept.notify = Some(path.clone());
        }
        let is_readiness = process.ready == Ready::Notify;
        self.watch(Some(run), fd, Watched::Notify { run, is_readiness, socket })
            .map_err(|error| prepare_error(path.display(), &error))?;
        Ok(path)
    }

    /// Keeps the notify sockets open over an exec, so that nothing that is said meanwhile is refused or
    /// lost; returns the variable's value that hands them over.
    pub fn hand_over_notify(&self) -> String {
        let mut text = String::new();
        for (run, socket) in self.notify_sockets() {
            let Some(id) = self.runs.get(&run).map(|kept| &kept.instance) else { continue };
            let item = format!("{}:{id} ", socket.as_fd().as_raw_fd());
            if text.len() + item.len() <= HANDED_BYTES_MAX {
                set_inheritable(socket.as_fd(), true);
                text.push_str(&item);
            }
        }
        text
    }

    /// The exec failed: the notify sockets are close-on-exec again.
    pub fn take_back_notify(&self) {
        for (_, socket) in self.notify_sockets() {
            set_inheritable(socket.as_fd(), false);
        }
    }

    /// Takes the notify sockets that the program before us handed over by this value. They are for the
    /// runs that are adopted.
    pub fn take_notify(&mut self, handed: &str) {
        self.handed_notify = sockets::inherited_descriptors(handed).into_iter().gather();
    }

    fn notify_sockets(&self) -> impl Iterator<Item = (RunId, &NotifySocket)> {
        self.watched.values().filter_map(|watched| {
            let Watched::Notify { run, socket, .. } = watched else { return None };
            Some((*run, socket))
        })
    }

    pub(super) fn wait_for_file(
        &mut self,
        run: RunId,
        tells: Tells,
        path: PathBuf,
        before: Mark,
    ) -> Result<(), StartError> {
        let fail = |error: std::io::Error| prepare_error("watch for a file", &error);
        if let Some(fd) = self.files.add(run, tells, path, before).map_err(fail)? {
            self.watch(None, fd, Watched::Files).map_err(fail)?;
        }
        Ok(())
    }

    /// For a run of an earlier supervisor: whatever it still has to say, it says to us.
    pub(super) fn reopen_channels(&mut self, launch: &Launch, main: &Identity) {
        let Some(process) = &launch.spec.process else { return };
        let has_file = matches!(*process.ready, Ready::Fd(_) | Ready::File(_) | Ready::Log(_));
        // Its socket is there though its definition has changed: that may come back.
        let is_heard = hears(process) || self.dirs.notify_socket(&launch.instance).exists();
        let has_any = is_heard || has_file;
        if has_any && !self.descriptors.for_start(self.null.as_fd()) {
            self.later.readiness.push((launch.clone(), *main));
            self.later.again(self.now());
            return;
        }
        let notify = if is_heard { self.open_notify(launch, process).map(|_| ()) } else { Ok(()) };
        let ready = match &*process.ready {
            Ready::Started | Ready::Notify | Ready::Delay(_) | Ready::Asked(_) => Ok(()),
            Ready::File(template) => {
                let path = self.path_of(launch, template);
                let before = file_waits::mark_older_than(&path, process::started_at(main.start));
                self.wait_for_file(launch.run, Tells::Ready, path, before)
            }
            // The log keeper knows what has come, and holds the FIFO.
            Ready::Log(_) => self.open_answer(launch, None),
            ready @ Ready::Fd(_) => self.reopen_ready_fifo(launch, ready),
        };
        for error in [notify, ready].into_iter().filter_map(Result::err) {
            log::warn!("{}: {error}", launch.instance);
        }
    }

    /// A descriptor that is closed has said what it had to say, perhaps while nobody held the FIFO:
    /// then it is lost, and is said again.
    fn reopen_ready_fifo(&mut self, launch: &Launch, ready: &Ready) -> Result<(), StartError> {
        let path = self.dirs.readiness(&launch.instance);
        let is_closed = fifo::has_writer(&path).is_ok_and(|has| !has);
        self.open_readiness(launch, ready)?;
        if is_closed {
            let fail = |error: std::io::Error| prepare_error(path.display(), &error);
            fifo::say_newline(&path).map_err(fail)?;
        }
        Ok(())
    }
}

/// Whether a unit's process has a notify socket.
fn hears(process: &ProcessSpec) -> bool {
    process.ready == Ready::Notify || process.watchdog.is_some()
}
