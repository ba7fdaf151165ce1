//! Stops a process at its system calls with ptrace(2), and kills it at one of them.
//!
//! Only the process itself is traced, with all its threads, and not what it starts. Each entry into a system call and each
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
    /// All its threads, that one included.
    threads: Vec<Pid>,
    /// The one that stopped last.
    at: Pid,
    ended: bool,
}

impl Traced {
    /// Takes hold of a process and stops it.
    pub(crate) fn seize(pid: i32) -> Self {
        // The kernel tells a new thread from a new process by the signal of its end.
        let options = Options::PTRACE_O_TRACESYSGOOD
            | Options::PTRACE_O_EXITKILL
            | Options::PTRACE_O_TRACECLONE;
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let numbers = tasks.map(|task| task.unwrap().file_name().to_str().unwrap().parse());
        let threads: Vec<Pid> = numbers.map(|number| Pid::from_raw(number.unwrap())).collect();
        for thread in &threads {
            ptrace::seize(*thread, options).unwrap();
            ptrace::interrupt(*thread).unwrap();
            let stop = waitpid(*thread, Some(WaitPidFlag::__WALL)).unwrap();
            assert!(
                matches!(stop, WaitStatus::PtraceEvent(..) | WaitStatus::Stopped(..)),
                "not stopped: {stop:?}"
            );
        }
        let pid = Pid::from_raw(pid);
        let traced = Self { pid, threads, at: pid, ended: false };
        for thread in traced.threads.iter().filter(|thread| **thread != pid) {
            Self::go_on(*thread, None);
        }
        traced
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
            Self::go_on(self.at, signal.take());
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
                Some(WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_CLONE)) => {
                    let thread = ptrace::getevent(self.at).unwrap();
                    self.threads.push(Pid::from_raw(i32::try_from(thread).unwrap()));
                }
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
        let text = fs::read_to_string(format!("/proc/{}/syscall", self.at));
        text.unwrap_or_default().trim().to_owned()
    }

    fn go_on(thread: Pid, signal: Option<Signal>) {
        match ptrace::syscall(thread, signal) {
            // Killed by somebody else: the next wait tells.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => panic!("cannot go on: {error}"),
        }
    }

    /// Waits for the next stop of any thread; `None` where it rests and is over.
    fn next_stop(&mut self, is_over: &mut impl FnMut() -> bool) -> Option<WaitStatus> {
        let began = Instant::now();
        loop {
            let flags = WaitPidFlag::__WALL | WaitPidFlag::WNOHANG;
            for thread in &self.threads {
                let stop = waitpid(*thread, Some(flags)).unwrap();
                if stop != WaitStatus::StillAlive {
                    self.at = *thread;
                    return Some(stop);
                }
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
            // The first thread is over when all others are.
            self.threads.sort_by_key(|thread| *thread == self.pid);
            for thread in &self.threads {
                while let Ok(status) = waitpid(*thread, Some(WaitPidFlag::__WALL)) {
                    if matches!(status, WaitStatus::Signaled(..) | WaitStatus::Exited(..)) {
                        break;
                    }
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
