//! What is under way while a command waits: on a terminal a list that changes, elsewhere a line for
//! each change.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Once;

use signal_hook::consts::SIGINT;
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

use super::args::Global;
use super::output;
use crate::model::Span;
use crate::supervisor::Row;

/// Most instances that the list on a terminal names.
const OPEN_MAX: usize = 8;
/// Longest line of it, in characters: one that the terminal folds would be two to move over.
const LINE_CHARS_MAX: usize = 78;

/// The list, or the lines.
pub(super) struct Progress {
    silent: bool,
    terminal: bool,
    /// What was shown of each instance.
    shown: BTreeMap<String, String>,
    /// How each instance is, as far as was told.
    rows: BTreeMap<String, Row>,
    /// How many lines stand on the terminal.
    drawn: usize,
}

impl Progress {
    pub(super) fn new(global: &Global) -> Self {
        let terminal = output::stderr_is_terminal();
        let (shown, rows) = (BTreeMap::new(), BTreeMap::new());
        Self { silent: global.json, terminal, shown, rows, drawn: 0 }
    }

    pub(super) fn show(&mut self, rows: &[Row]) {
        if self.silent {
            return;
        }
        if self.terminal {
            self.rows.extend(rows.iter().map(|row| (row.instance.clone(), row.clone())));
            let lines = list(&self.rows);
            self.draw(&lines);
            return;
        }
        for row in rows {
            let state = if row.phase == "waiting" {
                format!("{} ({})", row.phase, row.why)
            } else {
                row.phase.clone()
            };
            if self.shown.get(&row.instance) != Some(&state) {
                output::note(&format!("{}: {}", row.instance, output::plain(&state)));
                self.shown.insert(row.instance.clone(), state);
            }
        }
    }

    /// Takes the list away.
    pub(super) fn end(&mut self) {
        self.draw(&[]);
    }

    fn draw(&mut self, lines: &[String]) {
        let mut text = String::new();
        if self.drawn > 0 {
            text = format!("\x1b[{}A\r\x1b[J", self.drawn);
        }
        for line in lines {
            text.extend([line, "\n"]);
        }
        self.drawn = lines.len();
        let mut err = std::io::stderr();
        if let Err(error) = err.write_all(text.as_bytes()).and_then(|()| err.flush()) {
            log::trace!("nobody looks: {error}");
        }
    }
}

/// How many are at rest, and those that are not: since when in which phase, and why.
fn list(rows: &BTreeMap<String, Row>) -> Vec<String> {
    let open: Vec<&Row> = rows.values().filter(|row| !row.settled).collect();
    let mut lines =
        vec![format!("{} of {} at rest", rows.len().saturating_sub(open.len()), rows.len())];
    for row in open.iter().take(OPEN_MAX) {
        let since = match row.since_ms {
            0 => String::new(),
            millis => format!(" for {}", Span::millis(millis)),
        };
        let why = if row.why.is_empty() { "" } else { ": " };
        let line =
            format!("  {} {}{since}{why}{}", row.instance, row.phase, output::plain(&row.why));
        lines.push(line.chars().take(LINE_CHARS_MAX).collect());
    }
    match open.len().checked_sub(OPEN_MAX) {
        None | Some(0) => {}
        Some(more) => lines.push(format!("  and {more} more")),
    }
    lines
}

/// An interrupt ends this command, and nothing of what it asked for: says how to follow that.
pub(super) fn tell_at_interrupt() {
    static TELLS: Once = Once::new();
    TELLS.call_once(|| {
        let Ok(mut signals) = Signals::new([SIGINT]) else { return };
        let told = std::thread::Builder::new().name("interrupt".to_owned()).spawn(move || {
            for signal in signals.forever() {
                output::note(
                    "opm: it goes on; `opm status` shows how it is, `opm wait` waits for it",
                );
                if let Err(error) = emulate_default_handler(signal) {
                    log::debug!("{error}");
                }
            }
        });
        if let Err(error) = told {
            log::debug!("an interrupt says nothing: {error}");
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(instance: &str, settled: bool, why: &str) -> Row {
        let row = serde_json::json!({
            "instance": instance, "unit": instance, "kind": "service", "phase": "waiting",
            "since_ms": 1_500, "wanted": true, "ready": false, "restarts": 0, "why": why,
            "adopted": false, "settled": settled,
        });
        serde_json::from_value(row).unwrap()
    }

    #[test]
    fn the_list_names_who_is_open_and_stays_small() {
        let mut rows: BTreeMap<String, Row> = BTreeMap::new();
        for n in 0..12 {
            let name = format!("u{n:02}");
            rows.insert(name.clone(), row(&name, n == 0, "waits for `db` to be ready"));
        }
        let lines = list(&rows);
        assert_eq!(lines[0], "1 of 12 at rest");
        assert_eq!(lines[1], "  u01 waiting for 1.5s: waits for `db` to be ready");
        assert_eq!(lines.len(), 1 + OPEN_MAX + 1);
        assert_eq!(lines[OPEN_MAX + 1], "  and 3 more");
        let long = BTreeMap::from([("x".to_owned(), row("x", false, &"\u{1b}é".repeat(100)))]);
        let lines = list(&long);
        assert!(lines[1].chars().count() <= LINE_CHARS_MAX && !lines[1].contains('\u{1b}'));
    }
}
