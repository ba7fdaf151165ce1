//! What runs say on their notify sockets: whose word counts, and what comes of it.
//!
//! A message counts when it comes from a process of the run. What it says becomes events; who is the
//! main process is changed here in the same moment, so that the end of the one before, which may be
//! told next, is not taken for the end of the new one.

use std::collections::BTreeSet;
use std::os::fd::AsRawFd;

use mio::Token;

use super::super::notify::{NotifyMessage, Ping};
use super::super::process;
use super::{Linux, Watched};
use crate::model::{Event, Happening, Identity, Monotonic, RunId, Span, Word};
use crate::system::System;

/// Messages of one run that are taken at once: a run that floods its socket does not hold up others.
/// What is left is taken in the next turn.
const MESSAGES_AT_ONCE: usize = 64;
/// The most time that is given by one message, from now on. Who needs more asks again in that time;
/// one who asks for more at once gets this.
const MORE_TIME_MAX: Span = Span::seconds(3_600);
/// The time that was asked for ends at a whole second, rounded up: each later end is in the ledger,
/// and so there are few of them, however often it is asked for.
const MORE_TIME_STEP: Span = Span::seconds(1);
/// How often a run may name another main process or another time for its watchdog, as each is in the
/// ledger; what it says of these afterwards is passed over.
const CHANGES_MAX: u16 = 64;

/// What is known of a run's messages.
#[derive(Debug, Default)]
pub(super) struct Said {
    /// Who spoke last and was found to be of the run.
    heard: Option<Identity>,
    /// Those that were its main process before.
    former: Vec<Identity>,
    /// The number of the next one of them.
    next_former: u16,
    /// How often something was changed that is in the ledger.
    changes: u16,
    /// How long it last said that it may be silent.
    silence: Option<Span>,
    /// What was said in the log already.
    complaints: BTreeSet<Complaint>,
}

/// What can be wrong with a message. Each is said once for a run, and not for each message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Complaint {
    /// It is not of a process of the run.
    Stranger,
    /// A value cannot be read.
    Unread,
    /// It names a main process that is none of the run's.
    NoMain,
    /// It asks for too much time.
    TooMuchTime,
    /// It changes too much too often.
    TooOften,
    /// Its pid file was there before its start.
    OldPidFile,
    /// Its pid file cannot be read as one.
    BadPidFile,
    /// Its pid file names a process that is none of the run's.
    NoMainInFile,
    /// It forked away, and nobody is left.
    NobodyLeft,
}

impl Said {
    /// Whether the main process is another one than that which was made.
    pub(super) fn has_former(&self) -> bool {
        !self.former.is_empty()
    }

    /// Those that were the main process before.
    pub(super) fn former(&self) -> impl Iterator<Item = Identity> {
        self.former.iter().copied()
    }

    /// The number of the next one that is the main process no more.
    pub(super) fn next_former(&self) -> u16 {
        self.next_former
    }

    /// A process that was the main one is taken over.
    pub(super) fn knows_former(&mut self, number: u16, identity: Identity) {
        self.next_former = self.next_former.max(number.saturating_add(1));
        if !self.former.contains(&identity) {
            self.former.push(identity);
        }
    }
}

impl Linux {
    /// What has come on a notify socket.
    pub(super) fn take_messages(&mut self, token: Token) -> Vec<Event> {
        let mut events = Vec::new();
        for _ in 0..MESSAGES_AT_ONCE {
            let Some(Watched::Notify { run, is_readiness, socket }) = self.watched.get(&token)
            else {
                return events;
            };
            let (run, is_readiness) = (*run, *is_readiness);
            let Some(message) = socket.receive() else { return events };
            self.take_message(run, is_readiness, message, &mut events);
        }
        if let Some(Watched::Notify { socket, .. }) = self.watched.get(&token) {
            self.tell_again(token, socket.as_fd().as_raw_fd());
        }
        events
    }

    /// What a run has said and nobody has taken yet.
    pub(super) fn messages_of(&mut self, run: RunId) -> Vec<Event> {
        let is_notify =
            |token: &&Token| matches!(self.watched.get(token), Some(Watched::Notify { .. }));
        let token =
            self.runs.get(&run).and_then(|kept| kept.tokens.iter().find(is_notify).copied());
        token.map(|token| self.take_messages(token)).unwrap_or_default()
    }

    fn take_message(
        &mut self,
        run: RunId,
        is_readiness: bool,
        message: NotifyMessage,
        events: &mut Vec<Event>,
    ) {
        let Some(sender) = message.sender.filter(|sender| self.is_of_run(*sender, run)) else {
            let who = message.sender.map_or("a process".to_owned(), |pid| format!("process {pid}"));
            self.complain(run, Complaint::Stranger, || {
                format!("{who} is not of the unit whose notify socket it wrote to; ignored")
            });
            return;
        };
        if let Some(name) = message.unread {
            self.complain(run, Complaint::Unread, || {
                format!("what it says by `{name}=` on its notify socket cannot be read; ignored")
            });
        }
        let mut say = |system: &Self, what| events.extend(system.event_of(run, what));
        if let Some(pid) = message.main_pid
            && let Some(what) = self.name_main(run, pid)
        {
            say(self, what);
        }
        if let Some(status) = message.status {
            say(self, Happening::Said { run, status });
        }
        if message.ready && is_readiness {
            say(self, Happening::Ready { run });
        }
        if message.ready || message.doing.is_some() {
            say(self, Happening::Word { run, word: Word::Does(message.doing) });
        }
        if let Some(silence) = message.watchdog {
            if self.may_be_silent(run, silence) {
                say(self, Happening::Word { run, word: Word::Silence(silence) });
            }
            say(self, Happening::Word { run, word: Word::Well });
        }
        match message.ping {
            None => {}
            Some(Ping::Well) => say(self, Happening::Word { run, word: Word::Well }),
            Some(Ping::Failed) => say(self, Happening::Word { run, word: Word::Failed }),
        }
        if let Some(span) = message.more_time {
            let until = self.more_time(run, span);
            say(self, Happening::Word { run, word: Word::MoreTime(until) });
        }
        log::trace!("heard process {sender}");
    }

    /// Says what is wrong with a run's messages, unless that was said before.
    pub(super) fn complain(
        &mut self,
        run: RunId,
        complaint: Complaint,
        text: impl FnOnce() -> String,
    ) {
        let Some(kept) = self.runs.get_mut(&run) else { return };
        if kept.said.get_or_insert_default().complaints.insert(complaint) {
            log::warn!("{}: {}", kept.instance, text());
        }
    }

    /// Whether a run may change once more what is in the ledger.
    pub(super) fn may_change(&mut self, run: RunId) -> bool {
        let Some(kept) = self.runs.get_mut(&run) else { return false };
        let said = kept.said.get_or_insert_default();
        let may = said.changes < CHANGES_MAX;
        if may {
            said.changes = said.changes.saturating_add(1);
        } else {
            self.complain(run, Complaint::TooOften, || {
                format!(
                    "it has named another main process or watchdog time {CHANGES_MAX} times; what \
                     it says of these is ignored from now on"
                )
            });
        }
        may
    }

    /// Takes note of another watchdog time; whether it is another one.
    fn may_be_silent(&mut self, run: RunId, silence: Span) -> bool {
        let known = self.runs.get(&run).and_then(|kept| kept.said.as_ref()?.silence);
        if known == Some(silence) || !self.may_change(run) {
            return false;
        }
        if let Some(kept) = self.runs.get_mut(&run) {
            kept.said.get_or_insert_default().silence = Some(silence);
        }
        true
    }

    /// Until when a run has the time that it asked for.
    fn more_time(&mut self, run: RunId, span: Span) -> Monotonic {
        if span > MORE_TIME_MAX {
            self.complain(run, Complaint::TooMuchTime, || {
                format!("it asked for more time than {MORE_TIME_MAX} at once, and has that")
            });
        }
        let until = self.now().after(span.min(MORE_TIME_MAX));
        let (nanos, step) =
            (until.since(Monotonic::default()).as_nanos(), MORE_TIME_STEP.as_nanos());
        Monotonic::from_nanos(nanos.div_ceil(step).saturating_mul(step))
    }

    /// Whether a process is of a run. One that is gone already was let write by the socket's mode.
    fn is_of_run(&mut self, pid: i32, run: RunId) -> bool {
        if self.children.get(pid).is_some_and(|child| child.run == run) {
            return true;
        }
        let Some(stat) = process::stat(pid) else { return true };
        let sender = Identity { pid, start: stat.start, inode: None };
        let known = self.runs.get(&run).and_then(|kept| kept.said.as_ref()?.heard);
        if known == Some(sender) {
            return true;
        }
        let is_member = self.is_member(run, &sender, stat.session);
        if is_member && let Some(kept) = self.runs.get_mut(&run) {
            kept.said.get_or_insert_default().heard = Some(sender);
        }
        is_member
    }
}
