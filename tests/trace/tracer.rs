//! Stops a process at its system calls with ptrace(2), and kills it at one of them.
//!
//! Only the process itself is traced, not what it starts. Each entry into a system call and each
//! return from one is a stop; what is killed at an entry does not make the call.

use std::fs;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// So long without a stop, and the process may be at rest: its end is asked for.
const REST: Duration = Duration::from_millis(60);
/// So long without a stop and without an end, and the test fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// How it went.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It was killed at a stop; the call by its number, and the first arguments.
    Killed(String),
    /// What it had to do was done before; it was killed then.
    Over,
}

/// Where to kill: so many stops after the begin, or after the n-th stop in a system call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Point {
    pub(crate) call: Option<(libc::c_long, u64)>,
    pub(crate) stops: u64,
}

/// Whether processes may be traced here.
pub(crate) fn is_allowed() -> bool {
    use std::process::{Command, Stdio};
    let mut sleep = Command::new("sleep").arg("100").stdin(Stdio::null()).spawn().unwrap();
    let pid = Pid::from_raw(i32::try_from(sleep.id()).unwrap());
    let result = ptrace::seize(pid, Options::empty());
    sleep.kill().unwrap();
    sleep.wait().unwrap();
    result.is_ok()
}

/// A process under trace. It ends with this value.
#[derive(Debug)]
pub(crate) struct Traced {
    pid: Pid,
    ended: bool,
}

impl Traced {
    /// Takes hold of a process and stops it.
    pub(crate) fn seize(pid: i32) -> Self {
        let pid = Pid::from_raw(pid);
        let options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL;
        ptrace::seize(pid, options).unwrap();
        ptrace::interrupt(pid).unwrap();
        let stop = waitpid(pid, Some(WaitPidFlag::__WALL)).unwrap();
        assert!(
            matches!(stop, WaitStatus::PtraceEvent(..) | WaitStatus::Stopped(..)),
            "not stopped: {stop:?}"
        );
        Self { pid, ended: false }
    }

    /// Lets it go to that point, or until it rests and `is_over` says that all is done; kills it
    /// then.
    pub(crate) fn kill_at(mut self, point: Point, mut is_over: impl FnMut() -> bool) -> End {
        let Point { mut call, stops: mut left } = point;
        let mut signal = None;
        loop {
            if call.is_none() && left == 0 {
                let at = self.call();
                self.kill();
                return End::Killed(at);
            }
            self.go_on(signal.take());
            match self.next_stop(&mut is_over) {
                None => {
                    self.kill();
                    return End::Over;
                }
                Some(WaitStatus::PtraceSyscall(_)) => match call {
                    Some((number, times)) if self.call().starts_with(&format!("{number} ")) => {
                        call = times
                            .checked_sub(1)
                            .filter(|left| *left > 0)
                            .map(|left| (number, left));
                    }
                    Some(_) => {}
                    None => left -= 1,
                },
                Some(WaitStatus::Stopped(_, due)) => signal = Some(due),
                Some(WaitStatus::PtraceEvent(..)) => {}
                Some(other) => {
                    self.ended = true;
                    panic!("ended by itself: {other:?}");
                }
            }
        }
    }

    /// The system call that it is in, by its number, and the arguments.
    fn call(&self) -> String {
        let text = fs::read_to_string(format!("/proc/{}/syscall", self.pid));
        text.unwrap_or_default().trim().to_owned()
    }

    fn go_on(&self, signal: Option<Signal>) {
        match ptrace::syscall(self.pid, signal) {
            // Killed by somebody else: the next wait tells.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => panic!("cannot go on: {error}"),
        }
    }

    /// Waits for the next stop; `None` where it rests and is over.
    fn next_stop(&self, is_over: &mut impl FnMut() -> bool) -> Option<WaitStatus> {
        let began = Instant::now();
        loop {
            let flags = WaitPidFlag::__WALL | WaitPidFlag::WNOHANG;
            let stop = waitpid(self.pid, Some(flags)).unwrap();
            if stop != WaitStatus::StillAlive {
                return Some(stop);
            }
            let rested = began.elapsed();
            if rested < Duration::from_micros(200) {
                std::thread::yield_now();
            } else {
                std::thread::sleep(Duration::from_micros(if rested < REST { 50 } else { 2_000 }));
            }
            if rested > REST && is_over() {
                return None;
            }
            assert!(rested < PATIENCE, "it neither makes a system call nor is it done");
        }
    }

    fn kill(&mut self) {
        if !self.ended {
            self.ended = true;
            nix::sys::signal::kill(self.pid, Signal::SIGKILL).unwrap();
            while let Ok(status) = waitpid(self.pid, Some(WaitPidFlag::__WALL)) {
                if matches!(status, WaitStatus::Signaled(..) | WaitStatus::Exited(..)) {
                    break;
                }
            }
        }
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        self.kill();
    }
}
