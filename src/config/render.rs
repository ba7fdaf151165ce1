//! Mistakes as people read them: the line, the caret, what would be right, and a count.

use std::borrow::Cow;
use std::collections::BTreeMap;

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};

use super::diagnostic::{Diagnostic, Place, Severity, is_unprintable, printable};
use super::source::{Source, SourceFile};
use crate::model::FilePath;

/// Most mistakes that are drawn; the rest is counted. More than a screen is not read.
pub const DRAWN_MAX: usize = 20;

/// Draws mistakes with the lines they are on, and says how many there are.
///
/// `files` are those that were loaded; a place in another file is named and not drawn.
pub fn render(diagnostics: &[Diagnostic], files: &[SourceFile], colour: bool) -> String {
    if diagnostics.is_empty() {
        return String::new();
    }
    let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
    let mut sources = Sources { files: BTreeMap::new(), read: BTreeMap::new() };
    for file in files {
        sources.files.insert(&file.path, file);
    }
    let drawn = chosen(diagnostics);
    let mut out = String::new();
    for diagnostic in &drawn {
        out.push_str(&draw(diagnostic, &mut sources, &renderer));
        out.push_str("\n\n");
    }
    let left = diagnostics.len().saturating_sub(drawn.len());
    if left > 0 {
        out.extend(["… and ", &left.to_string(), " more\n\n"]);
    }
    out.push_str(&summary(diagnostics));
    out.push('\n');
    out
}

/// Which are drawn, in order: an error rather than a warning.
fn chosen(diagnostics: &[Diagnostic]) -> Vec<&Diagnostic> {
    let errors = diagnostics.iter().filter(|d| d.is_error()).count().min(DRAWN_MAX);
    let (mut errors, mut warnings) = (errors, DRAWN_MAX.saturating_sub(errors));
    let mut take = |diagnostic: &&Diagnostic| {
        let left = if diagnostic.is_error() { &mut errors } else { &mut warnings };
        let is_taken = *left > 0;
        *left = left.saturating_sub(1);
        is_taken
    };
    diagnostics.iter().filter(|diagnostic| take(diagnostic)).collect()
}

/// How many mistakes in how many files, and what that means.
fn summary(diagnostics: &[Diagnostic]) -> String {
    let errors = diagnostics.iter().filter(|d| d.is_error()).count();
    let warnings = diagnostics.len().saturating_sub(errors);
    let mut files: Vec<&FilePath> = diagnostics.iter().map(|d| &d.file).collect();
    files.sort_unstable();
    files.dedup();
    let files = plural(files.len(), "file");
    match (errors, warnings) {
        (0, _) => format!("{} in {files}", plural(warnings, "warning")),
        (_, 0) => format!("{} in {files}; nothing was changed", plural(errors, "error")),
        (_, _) => format!(
            "{} and {} in {files}; nothing was changed",
            plural(errors, "error"),
            plural(warnings, "warning")
        ),
    }
}

/// So many of something, in words.
pub(crate) fn plural(n: usize, word: &str) -> String {
    if n == 1 { format!("1 {word}") } else { format!("{n} {word}s") }
}

/// The files that were loaded; each is cut into lines when it is first needed.
struct Sources<'a> {
    files: BTreeMap<&'a FilePath, &'a SourceFile>,
    read: BTreeMap<&'a FilePath, Source<'a>>,
}

impl<'a> Sources<'a> {
    fn line(&mut self, place: &Place) -> Option<&'a str> {
        let file: &'a SourceFile = self.files.get(&place.file)?;
        let source = self.read.entry(&file.path).or_insert_with(|| Source::new(file, 0));
        source.line(place.line)
    }
}

fn draw<'a>(diagnostic: &'a Diagnostic, sources: &mut Sources<'a>, renderer: &Renderer) -> String {
    let level = match diagnostic.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let place =
        Place { file: diagnostic.file.clone(), line: diagnostic.line, column: diagnostic.column };
    let mut group = Group::with_title(level.primary_title(diagnostic.message.as_str()));
    group = show(group, &place, diagnostic.length, &diagnostic.label, true, sources);
    for related in &diagnostic.related {
        group = show(group, &related.place, related.length, &related.text, false, sources);
    }
    for help in &diagnostic.help {
        group = group.element(Level::HELP.message(help.as_str()));
    }
    renderer.render(&[group])
}

/// Adds a place: its line with a caret, or where the file is not there, its name.
fn show<'a>(
    group: Group<'a>,
    place: &Place,
    length: u32,
    label: &'a str,
    is_primary: bool,
    sources: &mut Sources<'a>,
) -> Group<'a> {
    let path = printable(&place.file.to_string());
    let line = usize::try_from(place.line).unwrap_or(1);
    let column = usize::try_from(place.column).unwrap_or(1);
    let Some(text) = sources.line(place) else {
        return group.element(Origin::path(path).line(line).char_column(column));
    };
    let text = drawable(text);
    let skipped = column.saturating_sub(1);
    let bytes = |text: &str, chars: usize| text.chars().take(chars).map(char::len_utf8).sum();
    let from: usize = bytes(&text, skipped);
    let inside: usize =
        bytes(text.get(from..).unwrap_or_default(), usize::try_from(length).unwrap_or(usize::MAX));
    let kind = if is_primary { AnnotationKind::Primary } else { AnnotationKind::Context };
    let mut annotation = kind.span(from..from.saturating_add(inside));
    if !label.is_empty() {
        annotation = annotation.label(label);
    }
    group.element(Snippet::source(text).path(path).line_start(line).annotation(annotation))
}

/// A line without what acts on a terminal, one character for one. The control characters of ASCII
/// are left to the drawing, which has pictures of them.
fn drawable(line: &str) -> Cow<'_, str> {
    let is_left_out = |c: char| is_unprintable(c) && !c.is_ascii();
    if line.contains(is_left_out) {
        line.replace(is_left_out, "\u{fffd}").into()
    } else {
        line.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::source::{At, Sink};

    fn drawn(text: &str, n: usize, colour: bool) -> String {
        let files = [SourceFile { path: FilePath::from("/u/web.yaml"), text: text.into() }];
        let mut sink = Sink::new();
        sink.open(&files[0]);
        for _ in 0..n {
            let start = text.find("restrat").unwrap();
            sink.error(At::new(start, 7), "unknown key `restrat`")
                .did_you_mean(Some("restart"))
                .help("see opm-unit(5)");
        }
        render(&sink.finish(), &files, colour)
    }

    #[test]
    fn a_mistake_is_drawn_with_its_line() {
        let expected = "\
error: unknown key `restrat`
 --> /u/web.yaml:2:1
  |
2 | restrat: on-failure
  | ^^^^^^^ did you mean `restart`?
  |
  = help: see opm-unit(5)

1 error in 1 file; nothing was changed
";
        assert_eq!(drawn("name: web\nrestrat: on-failure\n", 1, false), expected);
    }

    #[test]
    fn nothing_of_a_line_acts_on_a_terminal() {
        for c in (0..0x2_ffff).filter_map(char::from_u32).filter(|c| *c != '\n') {
            if is_unprintable(c) {
                let out = drawn(&format!("é{c} restrat: x{c}"), 1, false);
                assert!(!out.contains(|c: char| c != '\n' && is_unprintable(c)), "{c:?}: {out:?}");
                assert!(out.contains("restrat: x"), "{c:?}: {out:?}");
            }
        }
    }

    #[test]
    fn colour_is_asked_for() {
        assert!(drawn("restrat: x", 1, true).contains("\u{1b}["));
        assert!(!drawn("restrat: x", 1, false).contains('\u{1b}'));
    }

    #[test]
    fn not_more_than_twenty_are_drawn() {
        let text = drawn("restrat: x", 33, false);
        assert_eq!(text.matches("did you mean").count(), DRAWN_MAX);
        assert!(text.ends_with("… and 13 more\n\n33 errors in 1 file; nothing was changed\n"));
    }

    #[test]
    fn a_long_line_is_cut_round_the_place() {
        let text = format!("{}restrat{}", "x".repeat(100_000), "y".repeat(100_000));
        let out = drawn(&text, 1, false);
        assert!(out.contains("/u/web.yaml:1:100001"), "{out}");
        assert!(out.contains("xrestraty") && out.len() < 2_000, "{out}");
    }
}
