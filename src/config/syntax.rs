//! What would be right where a text is no YAML: the parser says only what it did not expect.

use super::diagnostic::quoted;

/// Longest text that is written out in quotes as it should be, in characters.
const WRITTEN_OUT_MAX: usize = 40;

/// What to do about this complaint of the parser at this byte of the text, where that is known.
pub(super) fn help(text: &str, at: usize, problem: &str) -> Option<String> {
    let has = |words: &str| problem.contains(words);
    let line = text.get(..at).map_or("", |before| before.rsplit('\n').next().unwrap_or(before));
    let fixed = if has("found a tab") {
        "indent with spaces"
    } else if has("mapping values are not allowed") {
        return Some(second_colon(text, at, line));
    } else if has("did not find expected ',' or") && line.contains(": ") {
        "a text that holds a colon and a blank is put in quotes; a `[` is closed by `]`, a `{` by `}`"
    } else if has("did not find expected ',' or") || has("illegal placement of ':'") {
        "close the `[` before this with `]`, the `{` with `}`"
    } else if has("did not find expected key") || has("did not find expected '-'") {
        "what belongs together begins in one column: the keys of a map, the items of a list"
    } else if has("block sequence entries are not allowed") {
        "a list begins on the line below its key, or is written `[a, b]`"
    } else if has("unexpected character") {
        "a text that begins with this character is put in quotes"
    } else if has("unclosed quote") {
        "end the text with the quote that it begins with"
    } else if has("trailing content after") {
        "put the whole text in single quotes, where a `'` in it is written `''`"
    } else if has("simple key expected ':'") {
        "a key is followed by a colon and a blank: `restart: always`"
    } else if has("unknown escape") {
        "in single quotes a backslash is itself; in double quotes it is written `\\\\`"
    } else if has("scanning a block scalar") {
        "what follows `|` or `>` begins on the next line"
    } else {
        return None;
    };
    Some(fixed.to_owned())
}

/// A key where none may be: in a text with a colon, or too far to the right.
fn second_colon(text: &str, at: usize, line: &str) -> String {
    let Some((key, value)) = line.split_once(": ") else {
        let key = quoted(line.trim_start());
        return format!(
            "{key} is indented below a key that has a value already; keys of one map begin in one column"
        );
    };
    let rest = text.get(at..).and_then(|rest| rest.lines().next()).unwrap_or_default();
    let (key, value) = (key.trim_start(), format!("{value}{rest}"));
    let value = value.trim();
    let is_short = value.chars().count() <= WRITTEN_OUT_MAX && !value.contains(" #");
    // What may follow a dash or a brace is not only the key.
    if !is_short || key.contains([' ', '[', '{']) {
        return "a text that holds a colon and a blank is put in quotes".to_owned();
    }
    let written = if value.contains(['"', '\\']) {
        format!("'{}'", value.replace('\'', "''"))
    } else {
        format!("\"{value}\"")
    };
    format!("put the text in quotes: `{key}: {written}`")
}
