//! The descriptors that tell something: which there are, and what is done when one does.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use mio::unix::SourceFd;
use mio::{Interest, Token};

use super::super::alarm::Alarm;
use super::super::file_waits::Tells;
use super::super::notify::NotifySocket;
use super::super::{answer, fifo, process};
use super::Linux;
use super::births::Launching;
use crate::model::{Event, Happening, InstanceId, Monotonic, Role, RunId};
use crate::system::System;

/// A descriptor that tells something.
#[derive(Debug)]
pub(super) enum Watched {
    /// The channel of a process that has not run its program yet.
    Channel(Box<Launching>),
    /// The end of a process that is not our child.
    Foreign { run: RunId, role: Role, pid: i32, start: u64, pidfd: OwnedFd },
    /// The end of a process without a role, in a tree that is watched.
    Member { run: RunId, pidfd: OwnedFd },
    /// A notify socket, and whether the run says on it that it is ready.
    Notify { run: RunId, is_readiness: bool, socket: NotifySocket },
    /// A readiness descriptor.
    ReadyFd { run: RunId, fifo: OwnedFd },
    /// Where the log keeper says that a run's line has come, and when the run's main process began, if it
    /// is our child.
    ReadyLog { run: RunId, began: Option<Monotonic>, fifo: OwnedFd },
    /// The inotify instance of all file waits.
    Files,
    /// A socket whose service waits for a connection.
    Caller { socket: InstanceId, fd: RawFd },
    /// The inotify instance of all that units watch.
    Paths,
    /// The timer of all schedules.
    Alarm,
}

impl Linux {
    /// What the descriptor with this token has to tell.
    pub fn ready(&mut self, token: Token) -> Vec<Event> {
        let mut events = Vec::new();
        self.look.is_over();
        match self.watched.get(&token) {
            None => {}
            Some(Watched::Channel(_)) => self.channel_ready(token, &mut events),
            Some(Watched::Foreign { run, role, pid, .. }) => {
                let (run, role, pid) = (*run, *role, *pid);
                if role == Role::Main {
                    events.extend(self.messages_of(run));
                    events.extend(self.take_pid_file(run));
                }
                // If its parent ended since, it is our child, and nobody else can say how it ended.
                if process::stat(pid).is_some_and(|stat| stat.parent == self.own) {
                    events.extend(self.reap());
                }
                self.foreign_ready(token, &mut events);
            }
            Some(Watched::Member { run, .. }) => {
                let run = *run;
                self.unwatch(token);
                let tree = self.runs.get(&run).and_then(|kept| kept.tree.clone());
                if let Some(tree) = tree {
                    let left = self.watch_tree(&tree);
                    events.push(self.event(&tree.instance, Happening::Tree { run, left }));
                }
            }
            Some(Watched::Notify { .. }) => events.extend(self.take_messages(token)),
            Some(Watched::ReadyLog { run, began, fifo }) => {
                let run = *run;
                if answer::came(fifo, run, *began) {
                    events.extend(self.event_of(run, Happening::Ready { run }));
                }
            }
            Some(Watched::ReadyFd { run, fifo }) => {
                let run = *run;
                let heard = fifo::hear(fifo);
                let fd = fifo.as_raw_fd();
                if heard.more {
                    self.tell_again(token, fd);
                }
                if heard.newline {
                    events.extend(self.event_of(run, Happening::Ready { run }));
                }
            }
            Some(Watched::Files) => {
                self.files_ready(false, &mut events);
                if let Some(fd) = self.files.behind() {
                    self.tell_again(token, fd);
                }
            }
            Some(Watched::Caller { socket, .. }) => {
                let socket = socket.clone();
                self.watch_sockets_of(&socket, false);
                let run = self.sockets.get(&socket).and_then(|held| held.run);
                events.extend(run.map(|run| self.event(&socket, Happening::Called { run })));
            }
            Some(Watched::Paths) => self.paths_touched(token, &mut events),
            // The turn that follows looks at the clock.
            Some(Watched::Alarm) => {
                if let Some(Err(error)) = self.alarm.as_mut().map(Alarm::take) {
                    log::error!("cannot read a timer: {error}");
                }
            }
        }
        events
    }

    fn paths_touched(&mut self, token: Token, events: &mut Vec<Event>) {
        let Some(paths) = &mut self.paths else { return };
        let (touched, has_more) = paths.look();
        let fd = paths.as_fd().as_raw_fd();
        if has_more {
            self.tell_again(token, fd);
        }
        events.extend(
            touched.into_iter().filter_map(|run| self.event_of(run, Happening::Touched { run })),
        );
    }

    pub(super) fn files_ready(&mut self, everything: bool, events: &mut Vec<Event>) {
        for (run, tells) in self.files.look(everything) {
            match tells {
                Tells::Ready => {
                    self.files.remove(run, tells);
                    events.extend(self.event_of(run, Happening::Ready { run }));
                }
                Tells::Main => events.extend(self.take_pid_file(run)),
            }
        }
    }

    pub(super) fn watch(
        &mut self,
        run: Option<RunId>,
        fd: RawFd,
        watched: Watched,
    ) -> std::io::Result<Token> {
        let token = Token(self.next_token);
        self.next_token = self.next_token.wrapping_add(1).max(Self::FIRST_TOKEN);
        self.registry.register(&mut SourceFd(&fd), token, Interest::READABLE)?;
        match &watched {
            Watched::Foreign { pid, .. } => {
                self.foreign.insert(*pid, token);
            }
            Watched::Channel(_) => {
                self.starting.insert(token, self.now());
            }
            Watched::Member { .. }
            | Watched::Notify { .. }
            | Watched::ReadyFd { .. }
            | Watched::ReadyLog { .. }
            | Watched::Files
            | Watched::Caller { .. }
            | Watched::Paths
            | Watched::Alarm => {}
        }
        self.watched.insert(token, watched);
        if let Some(kept) = run.and_then(|run| self.runs.get_mut(&run)) {
            kept.tokens.push(token);
        }
        Ok(token)
    }

    /// Has poll tell of what is left in a descriptor: else it tells of what arrives.
    pub(super) fn tell_again(&self, token: Token, fd: RawFd) {
        let again = self.registry.reregister(&mut SourceFd(&fd), token, Interest::READABLE);
        if let Err(error) = again {
            log::warn!("cannot look at a descriptor again: {error}");
        }
    }

    pub(super) fn unwatch(&mut self, token: Token) -> Option<Watched> {
        let watched = self.watched.remove(&token)?;
        let (fd, run) = match &watched {
            Watched::Channel(launching) => {
                self.starting.remove(&token);
                (launching.channel.as_raw_fd(), Some(launching.launch.run))
            }
            Watched::Foreign { run, pid, pidfd, .. } => {
                if self.foreign.get(pid) == Some(&token) {
                    self.foreign.remove(pid);
                }
                (pidfd.as_raw_fd(), Some(*run))
            }
            Watched::Caller { fd, .. } => (*fd, None),
            Watched::Member { run, pidfd } => (pidfd.as_raw_fd(), Some(*run)),
            Watched::Notify { run, socket, .. } => (socket.as_fd().as_raw_fd(), Some(*run)),
            Watched::ReadyFd { run, fifo } | Watched::ReadyLog { run, fifo, .. } => {
                (fifo.as_raw_fd(), Some(*run))
            }
            Watched::Files | Watched::Paths | Watched::Alarm => return Some(watched),
        };
        if let Err(error) = self.registry.deregister(&mut SourceFd(&fd)) {
            log::debug!("cannot stop watching a descriptor: {error}");
        }
        if let Some(kept) = run.and_then(|run| self.runs.get_mut(&run)) {
            kept.tokens.retain(|known| *known != token);
            if kept.tokens.is_empty() {
                // Most have one only until their program runs.
                kept.tokens = Vec::new();
            }
        }
        Some(watched)
    }
}
