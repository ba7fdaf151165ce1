//! A mistake in a unit file: what, where, and what would be right. Drawing is in `render.rs`.
//!
//! Texts are made printable here, once: whatever a file holds, no control character of it reaches
//! a terminal or a log.

use serde::{Deserialize, Serialize};

use crate::model::FilePath;

/// Longest piece of the user's text that a message repeats, in characters; the rest is cut off.
const QUOTED_CHARS_MAX: usize = 60;

/// A place in a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    /// Which file.
    pub file: FilePath,
    /// The line, from 1.
    pub line: u32,
    /// The column, from 1, in characters.
    pub column: u32,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{}", printable(&self.file.to_string()), self.line, self.column)
    }
}

/// A place and how many characters from there are meant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Spot {
    /// Where it begins.
    pub place: Place,
    /// How many characters it has on that line.
    pub length: u32,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Nothing of the source is applied.
    Error,
    /// Legal, and hardly meant.
    Warning,
}

/// Another place that has to do with a mistake.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Related {
    /// Where.
    #[serde(flatten)]
    pub place: Place,
    /// How many characters from there are meant.
    pub length: u32,
    /// What is there.
    pub text: String,
}

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, in one line.
    pub message: String,
    /// The file.
    pub file: FilePath,
    /// The line, from 1.
    pub line: u32,
    /// The column, from 1, in characters.
    pub column: u32,
    /// How many characters from there are meant.
    pub length: u32,
    /// What is said at the place itself, such as `did you mean …?`; empty for nothing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub label: String,
    /// What would be right.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub help: Vec<String>,
    /// Other places that have to do with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub related: Vec<Related>,
}

impl Diagnostic {
    /// An error at this place.
    pub(super) fn error(spot: Spot, message: &str) -> Self {
        Self {
            severity: Severity::Error,
            message: printable(message),
            file: spot.place.file,
            line: spot.place.line,
            column: spot.place.column,
            length: spot.length,
            label: String::new(),
            help: Vec::new(),
            related: Vec::new(),
        }
    }

    /// A warning at this place.
    pub(super) fn warning(spot: Spot, message: &str) -> Self {
        Self { severity: Severity::Warning, ..Self::error(spot, message) }
    }

    /// Says something at the place itself.
    pub(super) fn label(&mut self, text: impl AsRef<str>) -> &mut Self {
        self.label = printable(text.as_ref());
        self
    }

    /// Asks whether this word was meant, where there is one.
    pub(super) fn did_you_mean(&mut self, word: Option<&str>) -> &mut Self {
        match word {
            Some(word) => self.label(format!("did you mean {}?", quoted(word))),
            None => self,
        }
    }

    /// Adds what would be right.
    pub(super) fn help(&mut self, text: impl AsRef<str>) -> &mut Self {
        self.help.push(printable(text.as_ref()));
        self
    }

    /// Adds another place.
    pub(super) fn related(&mut self, spot: Spot, text: impl AsRef<str>) -> &mut Self {
        let text = printable(text.as_ref());
        self.related.push(Related { place: spot.place, length: spot.length, text });
        self
    }

    /// Whether the source cannot be applied because of it.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// By file, line and column; an error before a warning.
    pub(super) fn order(&self, other: &Self) -> std::cmp::Ordering {
        let place = |d: &Self| (d.line, d.column, d.severity);
        self.file
            .cmp(&other.file)
            .then_with(|| place(self).cmp(&place(other)))
            .then_with(|| self.message.cmp(&other.message))
    }
}

/// Whether one of them forbids to apply the source.
pub fn has_errors(diagnostics: &[Diagnostic]) -> bool {
    diagnostics.iter().any(Diagnostic::is_error)
}

/// A piece of the user's text in back-ticks, cut off where it is long.
pub(super) fn quoted(text: &str) -> String {
    let mut short: String = text.chars().take(QUOTED_CHARS_MAX).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    format!("`{}`", printable(&short))
}

/// A text in which every character that acts on a terminal is written as an escape.
pub(super) fn printable(text: &str) -> String {
    if !text.chars().any(is_unprintable) {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            c if is_unprintable(c) => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out
}

/// Control characters, and those that turn the direction of text or take no room.
pub(super) fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_text_is_made_printable() {
        assert_eq!(quoted("a\u{1b}[31m\nb\u{202e}"), "`a\\u{1b}[31m\\nb\\u{202e}`");
        assert_eq!(quoted(&"x".repeat(100)), format!("`{}…`", "x".repeat(QUOTED_CHARS_MAX)));
        assert_eq!(printable("wörk dir"), "wörk dir");
    }

    #[test]
    fn a_diagnostic_travels_as_flat_json() {
        let place = Place { file: FilePath::from("/u/a.yaml"), line: 2, column: 3 };
        let spot = Spot { place, length: 4 };
        let mut diagnostic = Diagnostic::error(spot.clone(), "wrong");
        diagnostic.did_you_mean(Some("right")).related(spot, "here too");
        let json = serde_json::to_string(&diagnostic).unwrap();
        assert!(json.contains(r#""file":"/u/a.yaml","line":2,"column":3"#), "{json}");
        assert_eq!(serde_json::from_str::<Diagnostic>(&json).unwrap(), diagnostic);
    }
}
