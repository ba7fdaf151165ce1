//! What changes, as an operator reads it: a line for each unit, and one for each of its keys.
//!
//! The signs are the plan's own (`+`, `-`, `±`, `~`), so that a plan, what an apply says, and the
//! difference of two generations look alike. Without a terminal there is no colour, and every line
//! stays as it is over versions: scripts search in it.

use serde_json::Value;
use similar::algorithms::{Capture, Replace, myers};
use similar::udiff::UnifiedHunkHeader;
use similar::{ChangeTag, DiffOp, group_diff_ops};

use super::{Error, output};

/// Lines around a change in a text of several lines.
const CONTEXT_LINES: usize = 2;

/// The lines for these changes.
pub(super) fn print(changes: &[Value]) -> Result<(), Error> {
    let paint = Paint { colour: output::is_terminal() };
    let mut text = String::new();
    for change in changes {
        text.push_str(&paint.change(change));
    }
    output::raw(text.as_bytes())
}

/// How many changes there are, and of each kind: `3 to change: 1 create, 2 restart`.
pub(super) fn summary(changes: &[Value]) -> String {
    let words = [
        ("create", "create"),
        ("start", "start"),
        ("remove", "remove"),
        ("stop", "stop"),
        ("restart", "restart"),
        ("live", "change live"),
    ];
    let parts = words.iter().filter_map(|(effect, word)| {
        let is_such = |change: &&Value| text(change, "effect") == *effect;
        let count = changes.iter().filter(is_such).count();
        (count > 0).then(|| format!("{count} {word}"))
    });
    format!("{} to change: {}", changes.len(), parts.collect::<Vec<_>>().join(", "))
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

struct Paint {
    colour: bool,
}

impl Paint {
    fn in_colour(&self, number: u8, text: &str) -> String {
        if self.colour { format!("\x1b[{number}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn taken(&self, text: &str) -> String {
        self.in_colour(31, text)
    }

    fn added(&self, text: &str) -> String {
        self.in_colour(32, text)
    }

    fn change(&self, change: &Value) -> String {
        let (sign, word, colour) = match text(change, "effect") {
            "create" => ("+", "create", 32),
            "remove" => ("-", "remove", 31),
            "stop" => ("-", "stop", 31),
            "start" => ("+", "start", 32),
            "restart" => ("±", "restart", 33),
            _ => ("~", "change live", 36),
        };
        let mut notes = vec![word.to_owned()];
        if let Some(batch) = change.get("rolling").and_then(Value::as_u64) {
            notes.push(format!("{batch} at a time"));
        }
        if let Some(down) = change.get("down_ms").and_then(Value::as_u64) {
            let down = crate::model::Span::millis(down);
            notes.push(format!("down for {down} at most"));
        }
        match text(change, "because") {
            "" => {}
            unit => notes.push(format!("because of `{unit}`")),
        }
        match text(change, "held") {
            "" => {}
            by => notes.push(format!("held down by {by}")),
        }
        let head = format!("{sign} {}", text(change, "unit"));
        let mut lines = format!("{} ({})\n", self.in_colour(colour, &head), notes.join(", "));
        for field in change.get("fields").and_then(Value::as_array).into_iter().flatten() {
            lines.push_str(&self.field(field));
        }
        lines
    }

    fn field(&self, field: &Value) -> String {
        let (key, class) = (text(field, "key"), text(field, "class"));
        let (old, new) = (field.get("old"), field.get("new"));
        if let (Some(Value::Array(old)), Some(Value::Array(new))) = (old, new) {
            return format!("    {key}: {} ({class})\n", self.words(old, new));
        }
        if let (Some(Value::String(old)), Some(Value::String(new))) = (old, new)
            && (old.contains('\n') || new.contains('\n'))
        {
            return format!("    {key}: ({class})\n{}", self.lines(old, new));
        }
        let old = old.map_or_else(|| "-".to_owned(), Value::to_string);
        let new = new.map_or_else(|| "-".to_owned(), Value::to_string);
        format!("    {key}: {} → {} ({class})\n", self.taken(&old), self.added(&new))
    }

    /// A list with what went out of it as `[-x-]`, and what came in as `{+x+}`.
    fn words(&self, old: &[Value], new: &[Value]) -> String {
        let shown = |value: &Value| value.to_string();
        let (old, new): (Vec<String>, Vec<String>) =
            (old.iter().map(shown).collect(), new.iter().map(shown).collect());
        let [old, new] = [&old, &new].map(|all| all.iter().map(String::as_str).collect::<Vec<_>>());
        let mut words = Vec::new();
        for part in operations(&old, &new) {
            for change in part.iter_changes(&old, &new) {
                words.push(match change.tag() {
                    ChangeTag::Equal => change.value().to_owned(),
                    ChangeTag::Delete => self.taken(&format!("[-{}-]", change.value())),
                    ChangeTag::Insert => self.added(&format!("{{+{}+}}", change.value())),
                });
            }
        }
        format!("[{}]", words.join(", "))
    }

    /// A text of several lines as a unified difference.
    fn lines(&self, old: &str, new: &str) -> String {
        let [old, new] = [old, new].map(|text| text.split_inclusive('\n').collect::<Vec<_>>());
        let mut text = String::new();
        for hunk in group_diff_ops(operations(&old, &new), CONTEXT_LINES) {
            text.extend(["        ", &UnifiedHunkHeader::new(&hunk).to_string(), "\n"]);
            for change in hunk.iter().flat_map(|part| part.iter_changes(&old, &new)) {
                let line = output::plain(change.value().trim_end_matches('\n'));
                let line = match change.tag() {
                    ChangeTag::Equal => format!(" {line}"),
                    ChangeTag::Delete => self.taken(&format!("-{line}")),
                    ChangeTag::Insert => self.added(&format!("+{line}")),
                };
                text.extend(["        ", &line, "\n"]);
            }
        }
        text
    }
}

/// What makes one list of the other: by one algorithm, where the library's own choice compiles all.
fn operations(old: &[&str], new: &[&str]) -> Vec<DiffOp> {
    let mut hook = Replace::new(Capture::new());
    // A hook that notes cannot fail.
    let Ok(()) = myers::diff(&mut hook, old, 0..old.len(), new, 0..new.len());
    hook.into_inner().into_ops()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn drawn(change: &Value) -> String {
        Paint { colour: false }.change(change)
    }

    #[test]
    fn one_word_of_a_command_and_one_line_of_a_script_are_shown_as_such() {
        let change = json!({
            "unit": "web", "effect": "restart", "because": "db", "down_ms": 70_000,
            "fields": [
                { "key": "command", "old": ["nginx", "-g", "a b"], "new": ["nginx", "-c", "f"],
                  "class": "restart" },
                { "key": "restart.delay", "old": "200ms", "class": "live" },
                { "key": "shell", "old": "a\nb\nc\n", "new": "a\nB\nc\n", "class": "restart" },
            ],
        });
        assert_eq!(
            drawn(&change),
            "± web (restart, down for 1m10s at most, because of `db`)\n    \
             command: [\"nginx\", [-\"-g\"-], [-\"a b\"-], {+\"-c\"+}, {+\"f\"+}] (restart)\n    \
             restart.delay: \"200ms\" → - (live)\n    \
             shell: (restart)\n        \
             @@ -1,3 +1,3 @@\n         a\n        -b\n        +B\n         c\n"
        );
    }

    #[test]
    fn a_script_moves_no_cursor() {
        let field =
            json!({ "key": "shell", "old": "a\n", "new": "\x1b[2Jb\n", "class": "restart" });
        let change = json!({ "unit": "web", "effect": "live", "fields": [field] });
        assert!(!drawn(&change).contains('\x1b'));
    }

    #[test]
    fn the_kinds_are_counted() {
        let effects = ["restart", "create", "restart", "live"].map(|e| json!({ "effect": e }));
        assert_eq!(summary(&effects), "4 to change: 1 create, 2 restart, 1 change live");
    }
}
