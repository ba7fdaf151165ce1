//! Builds the parts and runs the one poll loop, in a thread for which the first one waits.
//!
//! Nothing here blocks but the poll. A turn: whatever the kernel has to tell becomes events, the
//! supervisor takes its turn, then clients and the log are told. With nothing due, poll waits
//! without a timeout: an idle opm makes no system call.

mod background;
mod calls;
mod clients;
mod files;
mod lean;
mod report;
mod setup;
mod signals;
mod wait;

use std::ffi::OsString;
use std::path::PathBuf;

use mio::{Events, Poll, Token};

pub use background::{Started, start_in_background};
pub use files::{SourceOptions, read_source, read_what_can_be};
pub use setup::BootFailure;

use crate::model::{Monotonic, Signal, Span};
use crate::protocol::Failure;
use crate::supervisor::{Source, Supervisor};
use crate::system::{Dirs, Environment, Linux, LockError, System, SystemError, messages};
use clients::{Clients, Pending};
use lean::Lean;
use signals::Signals;

/// Events taken from the kernel at once.
const EVENTS_AT_ONCE: usize = 256;
/// Calls taken from one client in a turn: one that floods us does not hold up the others.
const CALLS_PER_TURN: usize = 64;
/// Bytes of the supervisor's stack: as many as a first thread has.
const STACK_BYTES: usize = 8 << 20;
/// How long processes that no unit owns get between TERM and KILL at the very end.
const STRAYS_WAIT: Span = Span::seconds(2);
/// How long those that were killed may take to be gone.
const STRAYS_KILL_WAIT: Span = Span::seconds(1);

/// So many panics in so long a time, and nothing is started any more.
const PANICS_MAX: usize = 3;
const PANICS_WITHIN: Span = Span::seconds(60);
/// The wait before what was removed is made again once more, and before opm begins again where it has to.
const MAKE_AGAIN: Span = Span::seconds(1);
/// Exit code after a bug of opm's own (`EX_SOFTWARE` of sysexits(3)).
const EXIT_BUG: u8 = 70;

const SIGNALS: Token = Token(0);
const LISTENER: Token = Token(1);
/// First token of clients; those of the system begin at [`Linux::FIRST_TOKEN`].
const FIRST_CLIENT: usize = 2;

/// How the supervisor is started.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its directories.
    pub dirs: Dirs,
    /// The directory of units to apply after boot.
    pub units: Option<PathBuf>,
    /// How that is read.
    pub reading: SourceOptions,
    /// The command of `opm run -- CMD`: an essential unit without a file.
    pub command: Vec<OsString>,
    /// How long a shutdown may take; `None`: as long as the units' own times.
    pub shutdown_budget: Option<Span>,
    /// Whether the units' output goes to standard output too.
    pub console: bool,
    /// Whether that is coloured.
    pub colour: bool,
    /// Most bytes of all finished log files together.
    pub log_quota: Option<u64>,
    /// Whether nothing but the command is supervised: no lock, no socket, no saved state.
    pub stateless: bool,
    /// What units inherit of the environment.
    pub env: Environment,
    /// The arguments with which `opm reexec` runs the program on disk.
    pub arguments: Vec<OsString>,
}

/// The parts of a running daemon.
struct Daemon {
    poll: Poll,
    signals: Signals,
    supervisor: Supervisor<Linux>,
    clients: Option<Clients>,
    options: Options,
    /// Whether the program on disk is to run in our place.
    reexec: bool,
    /// Why the run directory could not be made again when it was last tried.
    unmade: Option<String>,
    panics: Vec<Monotonic>,
    repeats: report::Repeats,
    cut_short: report::CutShort,
    /// The patience of the shutdown as far as it was reported.
    hurry: Option<crate::plan::Hurry>,
    lean: Lean,
}

/// Why a directory was not applied at the start: what was saved runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PassedOver {
    /// Whether its files have mistakes, or cannot be read.
    pub is_mistaken: bool,
    /// What is wrong, for people.
    pub text: String,
}

/// Who is told that the supervisor can be reached.
pub type Ready<'a> = &'a mut (dyn FnMut(Option<PassedOver>) + Send);

/// Runs the supervisor until it is over. Returns its exit code.
///
/// `ready` is called once it can be reached, with why its directory was not applied, if it was not.
///
/// The supervisor has a thread of its own, and the first thread waits for it. The kernel keeps a list
/// of children for each thread, and gives orphans to the first one: so whatever a service has left
/// behind stands in a list of its own, and is found without a look at all services. Where no thread
/// can be made, as in containers whose filter refuses clone3(2), the first one does it all.
pub fn run(options: Options, ready: Ready<'_>) -> Result<u8, BootFailure> {
    crate::system::keep_memory_small();
    messages::wait_for_nobody();
    crate::system::take_usual_umask();
    signals::block_all();
    let mut options = Some(options);
    let mut begin = || options.take().map(|options| supervise(options, &mut *ready));
    let over = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("opm".to_owned()).stack_size(STACK_BYTES);
        match thread.spawn_scoped(scope, &mut begin) {
            Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            Err(error) => {
                log::debug!("cannot make a thread: {error}");
                None
            }
        }
    });
    let code = over.or_else(begin).unwrap_or(Ok(EXIT_BUG));
    messages::finish();
    code
}

fn supervise(options: Options, ready: Ready<'_>) -> Result<u8, BootFailure> {
    let (arguments, limit) = (options.arguments.clone(), crate::system::limit_of_descriptors());
    let built = setup::build(options);
    let (mut daemon, passed_over) =
        built.map_err(|failure| setup::begin_again(&arguments, limit, failure))?;
    ready(passed_over);
    loop {
        if let Some(code) = daemon.run() {
            if daemon.supervisor.is_over().is_some() {
                daemon.end();
            }
            return Ok(code);
        }
        if std::mem::take(&mut daemon.reexec) {
            let error = daemon.replace_program();
            log::error!("{error}; going on as before");
            daemon.tell_failure(&error);
        }
    }
}

impl Daemon {
    /// The loop; ends with the exit code, or with `None` for an exec.
    fn run(&mut self) -> Option<u8> {
        let mut kernel = Events::with_capacity(EVENTS_AT_ONCE);
        // Whoever died before the handlers were there is found by this look, not by a signal.
        let mut events = self.supervisor.system_mut().catch_up();
        loop {
            let taken = std::mem::take(&mut events);
            let cycle = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                self.turn(taken);
                let goes_on = self.sleep(&mut kernel, &mut events);
                if self.reexec {
                    // Who ended in the same moment is reaped, and the next program cannot see it.
                    self.turn(std::mem::take(&mut events));
                }
                goes_on
            }));
            match cycle {
                Ok(true) => {}
                Ok(false) => return self.supervisor.is_over().filter(|_| !self.reexec),
                Err(_) => {
                    if let Some(code) = self.panicked() {
                        return Some(code);
                    }
                }
            }
        }
    }

    /// Waits for the kernel, unless the loop is over, and takes what it has to tell. Returns whether
    /// the loop goes on.
    fn sleep(&mut self, kernel: &mut Events, events: &mut Vec<crate::model::Event>) -> bool {
        if self.reexec || self.supervisor.is_over().is_some() {
            return false;
        }
        // A signal that interrupts the wait has made its descriptor readable, or means nothing.
        loop {
            let now = self.supervisor.system().now();
            let lets_go = self.lean.take_due(now);
            let talk = messages::try_again().map(|again| now.after(again));
            let timeout = self.wake_at().into_iter().chain(talk).min();
            let timeout =
                timeout.map(|at| std::time::Duration::from_millis(at.since(now).as_millis_up()));
            if lets_go {
                crate::system::become_lean();
            }
            match signals::let_through(|| self.poll.poll(kernel, timeout)) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => {
                    log::error!("cannot wait for events: {error}");
                    break;
                }
                Ok(()) => break,
            }
        }
        for event in &*kernel {
            match event.token() {
                SIGNALS => self.take_signals(events),
                LISTENER => self.accept(),
                Token(number) if number >= Linux::FIRST_TOKEN => {
                    events.extend(self.supervisor.system_mut().ready(Token(number)));
                }
                token => {
                    let gone = event.is_write_closed();
                    if let Some(clients) = &mut self.clients {
                        clients.stirred(token, gone);
                    }
                }
            }
        }
        events.extend(self.supervisor.system_mut().look_again());
        let now = self.supervisor.system().now();
        if self.clients.as_ref().is_some_and(|clients| clients.may_accept_again(now)) {
            self.accept();
        }
        let busy = self.clients.as_ref().map(Clients::busy).unwrap_or_default();
        for token in busy {
            self.hear(token);
        }
        true
    }

    fn wake_at(&self) -> Option<Monotonic> {
        let now = self.supervisor.system().now();
        let waits = self.clients.as_ref().and_then(|clients| clients.wake_at(now));
        let looks = self.supervisor.system().wake_at();
        // Without a socket no client wakes us.
        let again = self.unmade.as_ref().map(|_| now.after(MAKE_AGAIN));
        let lean = self.lean.wake_at();
        [self.supervisor.wake_at(), waits, looks, again, lean].into_iter().flatten().min()
    }

    fn turn(&mut self, events: Vec<crate::model::Event>) {
        if self.unmade.is_some() || self.clients.as_ref().is_some_and(Clients::is_removed) {
            self.come_back();
        }
        self.supervisor.turn(events);
        let notices = self.supervisor.take_notices();
        for notice in &notices {
            self.cut_short.hear(&self.supervisor, notice);
            // The command of `opm run -- CMD` speaks for itself, unless there is none.
            if !self.options.stateless || report::is_failed_start(notice) {
                report::log(&self.supervisor, notice, &mut self.repeats);
            }
        }
        let hurry = self.supervisor.shutdown().map(|shutdown| shutdown.hurry);
        if hurry != self.hurry && !self.options.stateless {
            report::shutdown(&self.supervisor);
        }
        self.hurry = hurry;
        if let Some(clients) = &mut self.clients {
            clients.notify(&self.supervisor, &notices, self.poll.registry());
        }
        let now = self.supervisor.system().now();
        self.lean.look(now, self.supervisor.desired().generation, !notices.is_empty());
    }

    /// A cycle broke an invariant. As PID 1 we go on: facts are in the ledger and in the kernel, and
    /// the next turn looks at everything anew; after the third time in a minute nothing is started
    /// any more. Else we end, and the next supervisor adopts what runs.
    fn panicked(&mut self) -> Option<u8> {
        if std::process::id() != 1 {
            log::error!("opm itself failed; this is a bug. What runs goes on running");
            return Some(EXIT_BUG);
        }
        let now = self.supervisor.system().now();
        self.panics.retain(|at| now.since(*at) < PANICS_WITHIN);
        self.panics.push(now);
        log::error!("opm itself failed; this is a bug ({} in a minute)", self.panics.len());
        if let Some(clients) = &mut self.clients {
            clients.drop_heard(self.poll.registry());
        }
        // A shutdown in minimal mode needs the facts too.
        let recovery = std::panic::AssertUnwindSafe(|| self.supervisor.recover());
        let has_failed = std::panic::catch_unwind(recovery).is_err();
        // Who had ended by then may not have been reaped.
        signals::look_for_ended();
        if has_failed || self.panics.len() >= PANICS_MAX {
            self.supervisor.enter_minimal_mode();
        }
        None
    }

    /// The control socket was removed, and perhaps directories with it: all are there again, and so is the
    /// ledger, unless another opm has them by now: then nothing is started here any more. FIFOs that are
    /// gone stay so for those that have them open. What cannot be made is tried again at each turn, and told
    /// once.
    fn come_back(&mut self) {
        if self.unmade.is_none() {
            let dirs = &self.options.dirs;
            let socket = dirs.socket();
            let what = if socket.exists() { "replaced" } else { "removed" };
            log::warn!("{} was {what}; it is made again", socket.display());
            if !dirs.fifos().exists() {
                log::error!(
                    "{} was removed; it is made again, and units that were up write to nowhere until \
                     opm and they are started anew",
                    dirs.run.display()
                );
            }
        }
        let unmade = self.make_again().err().map(|error| error.to_string());
        if let Some(error) = unmade.as_ref().filter(|_| unmade != self.unmade) {
            log::error!("{error}");
        }
        self.unmade = unmade;
    }

    fn make_again(&mut self) -> Result<(), SystemError> {
        match self.supervisor.system_mut().make_again() {
            Ok(()) => {}
            Err(LockError::Failed(error)) => return Err(error),
            Err(error @ LockError::Held { .. }) => {
                // It has our place, and may have started all of this too.
                if self.unmade.is_none() {
                    self.supervisor.enter_minimal_mode();
                }
                let socket = self.options.dirs.socket();
                return Err(SystemError::new("have again", socket.display(), error));
            }
        }
        if let Some(clients) = self.clients.as_mut().filter(|clients| clients.is_removed()) {
            clients.rebind(self.poll.registry())?;
        }
        self.supervisor.put_back()
    }

    fn take_signals(&mut self, events: &mut Vec<crate::model::Event>) {
        for signal in self.signals.pending() {
            match signal {
                signals::CHILD => events.extend(self.supervisor.system_mut().reap()),
                number => self.take_signal(number),
            }
        }
    }

    fn take_signal(&mut self, number: i32) {
        let Some(signal) = Signal::from_number(number) else { return };
        if self.options.stateless {
            // A better tini: the program gets what we get, and decides itself.
            self.supervisor.signal_command(signal);
            return;
        }
        match number {
            libc::SIGTERM | libc::SIGINT => {
                let budget = self.options.shutdown_budget;
                self.supervisor.ask_to_shut_down(budget, signal.to_string());
            }
            libc::SIGHUP => self.reapply(),
            _ => log::info!("{signal} has no meaning for opm"),
        }
    }

    /// Reads the directory of units again and applies it.
    fn reapply(&mut self) {
        self.lean.heard(self.supervisor.system().now());
        let Some(dir) = self.options.units.clone() else {
            log::info!("SIGHUP: there is no directory to read again");
            return;
        };
        match read_source(&dir, &self.options.reading) {
            Ok(source) => self.apply(&source),
            Err(error) => log::error!("{error}"),
        }
    }

    fn apply(&mut self, source: &Source) {
        match self.supervisor.apply_source(source, &setup::own_manner("SIGHUP")) {
            Ok(applied) => report::applied(&applied, source),
            Err(refusal) => log::error!("cannot apply `{}`: {refusal}", source.name),
        }
    }

    fn accept(&mut self) {
        if let Some(clients) = &mut self.clients {
            let system = self.supervisor.system();
            clients.accept(self.poll.registry(), system.now(), system.clients_end());
        }
    }

    /// Answers what a client asks, one call after the other.
    fn hear(&mut self, token: Token) {
        let Some(clients) = &mut self.clients else { return };
        clients.begin_to_hear(token);
        self.lean.heard(self.supervisor.system().now());
        for _ in 0..CALLS_PER_TURN {
            let mut call = match clients.next_call(token) {
                None => break,
                Some(Ok(call)) => call,
                Some(Err(failure)) => {
                    clients.send(token, &failure.into(), self.poll.registry());
                    clients.dismiss(token);
                    break;
                }
            };
            let answer =
                calls::answer(&mut self.supervisor, &self.options, clients, token, &mut call);
            match answer {
                calls::Answer::Reply(reply) if !call.oneway => {
                    clients.send(token, &reply, self.poll.registry());
                }
                calls::Answer::Reply(_) | calls::Answer::Later => {}
                calls::Answer::Reexec => {
                    self.reexec = true;
                    if !call.oneway {
                        clients.set_pending(token, Pending::Reexec);
                    }
                }
            }
        }
        clients.flush(token, self.poll.registry());
    }

    /// Runs the program on disk in our place. Signals stay blocked over it: one that comes before
    /// the new handlers are there waits for them, even as PID 1; and so does one that the old ones
    /// have taken already.
    fn replace_program(&mut self) -> SystemError {
        // What came in the last turn, after it was asked for, has to be known to the next one too.
        if let Err(refusal) = setup::hand_over(&mut self.supervisor) {
            return SystemError::new("exec", "opm", refusal);
        }
        self.signals.put_back();
        messages::finish();
        setup::exec_again(&self.options, self.supervisor.system(), self.clients.as_ref())
    }

    /// Tells those who asked for the program on disk why it does not run.
    fn tell_failure(&mut self, error: &SystemError) {
        let Some(clients) = &mut self.clients else { return };
        let failure = Failure::Refused(format!("{error}; the old program goes on"));
        clients.answer_reexec(&failure.into(), self.poll.registry());
    }

    /// All runs are over: what no unit owns gets TERM and, after a while, KILL. PID 1 leaves last.
    fn end(&mut self) {
        if !self.options.stateless {
            self.cut_short.say(&self.supervisor);
        }
        report::left_behind(&self.supervisor);
        // Of the time for a shutdown they get what is left.
        let now = self.supervisor.system().now();
        let deadline = self.supervisor.shutdown().and_then(|shutdown| shutdown.deadline);
        let wait = deadline.map_or(STRAYS_WAIT, |deadline| STRAYS_WAIT.min(deadline.since(now)));
        let left = self.sweep(Signal::TERM, wait);
        if left > 0 && self.sweep(Signal::KILL, STRAYS_KILL_WAIT) > 0 {
            log::warn!("processes are left that could not be killed");
        }
        self.supervisor.close();
        if let Some(clients) = &mut self.clients {
            clients.close();
        }
    }

    /// Sends a signal to everything that no unit owns, and waits until it is gone. Returns how many
    /// are left when the time is over.
    fn sweep(&mut self, signal: Signal, wait: Span) -> usize {
        let deadline = self.supervisor.system().now().after(wait);
        let mut kernel = Events::with_capacity(EVENTS_AT_ONCE);
        let mut send = Some(signal);
        loop {
            self.supervisor.system_mut().reap();
            let left = self.supervisor.system().sweep(send.take());
            let now = self.supervisor.system().now();
            if left == 0 || now >= deadline {
                return left;
            }
            let time = std::time::Duration::from_millis(deadline.since(now).as_millis_up());
            if let Err(error) = signals::let_through(|| self.poll.poll(&mut kernel, Some(time))) {
                log::debug!("interrupted: {error}");
            }
            self.signals.pending();
        }
    }
}
