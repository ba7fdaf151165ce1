//! The clock by which the keeper waits; what stands in a log is of another, [`stamp`](super::stamp).

use nix::time::{ClockId, clock_gettime};

/// The monotonic clock in milliseconds.
pub(super) fn now_ms() -> u64 {
    let Ok(now) = clock_gettime(ClockId::CLOCK_MONOTONIC) else { return 0 };
    let ms = now.tv_sec().saturating_mul(1_000).saturating_add(now.tv_nsec() / 1_000_000);
    u64::try_from(ms).unwrap_or(0)
}
