//! One life, cut off at each of its operations: every system call of a start, a save, a signal, a
//! write to the ledger is the last one once, by `kill -9`, by a panic, and by a loss of power. What
//! follows must be as if nothing had happened.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::setting::{Doom, Setting};
use crate::story::Story;

/// The life of three units, up to its end; cut off at an operation, if that comes.
fn live(doom: Option<(u64, Doom)>, setting: Setting) -> Result<u64, String> {
    let mut story = Story::fixed(setting);
    story.world.machine().doom = doom;
    story.follow_script()?;
    Ok(story.world.machine().ops)
}

fn cut_off_everywhere(doom: Doom, setting: Setting) {
    let ops = live(None, setting).unwrap();
    assert!(ops > 300, "a life of {ops} operations is none");
    let next = AtomicU64::new(1);
    let failed = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at > ops || !failed.lock().unwrap().is_empty() {
                        break;
                    }
                    if let Err(why) = live(Some((at, doom)), setting) {
                        failed.lock().unwrap().push(format!("{doom:?} at {at}: {why}"));
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

const DAEMON: Setting = Setting {
    is_pid_one: false,
    has_inodes: true,
    tells_foreign: false,
    has_keeper: false,
    is_unordered: false,
    delay_max: 3,
    slots: None,
    fault: None,
};

#[test]
fn a_kill_at_any_operation_changes_nothing() {
    cut_off_everywhere(Doom::Kill, DAEMON);
}

#[test]
fn a_panic_at_any_operation_of_pid_one_changes_nothing() {
    cut_off_everywhere(Doom::Panic, Setting { is_pid_one: true, ..DAEMON });
}

#[test]
fn a_loss_of_power_at_any_operation_changes_nothing() {
    cut_off_everywhere(Doom::PowerLoss, DAEMON);
}
