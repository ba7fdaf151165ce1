//! One timer on the wall clock, for all schedules.
//!
//! It is armed with `TFD_TIMER_CANCEL_ON_SET`, `timerfd_create(2)`: it fires at its time even when the
//! machine slept before, and when the clock is set it is readable at once.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use crate::model::Wall;

const MICROS: i64 = 1_000_000;

/// The timer.
#[derive(Debug)]
pub(super) struct Alarm {
    timer: TimerFd,
    at: Option<Wall>,
}

impl Alarm {
    /// A timer that is not armed.
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        Ok(Self { timer: TimerFd::new(ClockId::CLOCK_REALTIME, flags)?, at: None })
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }

    /// Lets it fire at a time, or not at all.
    pub(super) fn set(&mut self, at: Option<Wall>) -> io::Result<()> {
        self.at = at;
        let Some(Wall(micros)) = at else { return Ok(self.timer.unset()?) };
        // Zero would disarm it, and what is past is due at once.
        let micros = micros.max(1);
        let time = TimeSpec::new(micros.div_euclid(MICROS), micros.rem_euclid(MICROS) * 1_000);
        let flags =
            TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
        let arm = || self.timer.set(Expiration::OneShot(time), flags);
        match arm() {
            // The clock was set, and nobody had been told yet.
            Err(Errno::ECANCELED) => Ok(arm()?),
            done => Ok(done?),
        }
    }

    /// Takes note that it is readable: it fired, or the clock was set and it has to be armed again.
    pub(super) fn take(&mut self) -> io::Result<()> {
        match self.timer.wait() {
            Err(Errno::ECANCELED) => self.set(self.at),
            Ok(()) | Err(Errno::EAGAIN) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}
