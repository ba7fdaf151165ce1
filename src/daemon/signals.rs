//! Signals, as something the poll can wait for. They are blocked but for that wait.

use std::io;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::unistd::Pid;
use signal_hook_mio::v1_0::Signals as Source;

/// A child ended, or stopped.
pub(super) const CHILD: i32 = libc::SIGCHLD;

/// Signals that have a meaning for opm or none: with a handler they end nothing.
const TAKEN: [i32; 12] = [
    libc::SIGCHLD,
    libc::SIGTERM,
    libc::SIGINT,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGWINCH,
    libc::SIGALRM,
    libc::SIGPWR,
    libc::SIGTSTP,
    libc::SIGTTOU,
];
/// The last signal there is.
const LAST: i32 = 64;
/// Signals that the supervisor of one command leaves alone: nobody can take the first two; those that
/// follow say of opm itself that it has made a mistake; PIPE is ignored by Rust's runtime; and glibc keeps
/// two for itself.
const LEFT: [i32; 12] = [
    libc::SIGKILL,
    libc::SIGSTOP,
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGABRT,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGSEGV,
    libc::SIGSYS,
    libc::SIGPIPE,
    32,
    33,
];

/// The installed handlers.
pub(super) struct Signals(Source);

impl Signals {
    /// Installs handlers. Signals stay blocked, but for where they are [let through](let_through).
    /// `passes_on`: for all signals that the supervisor of one command can pass on.
    pub(super) fn install(
        registry: &mio::Registry,
        token: mio::Token,
        passes_on: bool,
    ) -> io::Result<Self> {
        let mut source = if passes_on {
            Source::new((1..=LAST).filter(|number| !LEFT.contains(number)))?
        } else {
            Source::new(TAKEN)?
        };
        registry.register(&mut source, token, mio::Interest::READABLE)?;
        Ok(Self(source))
    }

    /// Those that came since this was last asked; several of a kind count once.
    pub(super) fn pending(&mut self) -> Vec<i32> {
        self.0.pending().collect()
    }

    /// While signals are blocked: those that came are pending again, also over an exec. Who ended is
    /// looked for anyway.
    pub(super) fn put_back(&mut self) {
        for number in self.0.pending().filter(|number| *number != CHILD) {
            let sent = Signal::try_from(number).and_then(|signal| kill(Pid::this(), signal));
            if let Err(errno) = sent {
                log::error!("signal {number} is lost over an exec: {errno}");
            }
        }
    }
}

/// Has the loop look for children that have ended, as if one had.
pub(super) fn look_for_ended() {
    if let Err(errno) = kill(Pid::this(), Signal::SIGCHLD) {
        log::error!("cannot wake the loop: {errno}");
    }
}

pub(super) fn block_all() {
    mask(&SigSet::all());
}

/// Lets signals through while we wait for something, and at no other time: those that a thousand children
/// send in one turn are one then, and interrupt nothing.
pub(super) fn let_through<T>(wait: impl FnOnce() -> T) -> T {
    mask(&SigSet::empty());
    let waited = wait();
    block_all();
    waited
}

fn mask(set: &SigSet) {
    if let Err(errno) = sigprocmask(SigmaskHow::SIG_SETMASK, Some(set), None) {
        log::error!("cannot set the signal mask: {errno}");
    }
}
