//! Single values: durations, signals, texts with `${…}`, names, sizes, command lines, log lines.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use opm::config::{self, SourceFile};
use opm::logs::Record;
use opm::model::{
    Command, FilePath, InstanceId, NAME_BYTES_MAX, ProcessSpec, Signal, Span, SpanError, Spec,
    Template, UnitName,
};

use super::in_double_quotes;

/// The first byte says what kind of value the rest is.
pub fn values(bytes: &[u8]) {
    let Some((kind, rest)) = bytes.split_first() else { return };
    let text = super::text(rest);
    match kind % 8 {
        0 => span(text),
        1 => signal(text),
        2 => template(text),
        3 => name(text),
        4 => size(text),
        5 => as_written(text),
        6 => words(text),
        _ => log_line(rest),
    }
}

fn span(text: &str) {
    let parsed = Span::parse(text);
    assert_eq!(Span::parse(text.trim()), parsed);
    match parsed {
        Ok(span) => {
            assert_eq!(Span::parse(&format!("{}ns", span.as_nanos())), Ok(span));
            assert!(!span.to_string().is_empty());
            assert!(u128::from(span.as_millis_up()) * 1_000_000 >= u128::from(span.as_nanos()));
        }
        Err(SpanError::NoUnit) => assert!(text.contains(|c: char| c.is_ascii_digit() || c == '.')),
        Err(SpanError::Malformed) => {}
        Err(SpanError::TooLong) => assert!(text.contains(|c: char| c.is_ascii_digit())),
    }
}

fn signal(text: &str) {
    let Some(signal) = Signal::parse(text) else { return };
    assert!((1..=64).contains(&signal.number()), "{text:?}");
    assert_eq!(Signal::parse(&signal.number().to_string()), Some(signal));
    // Numbers without a name are written as words.
    if ![29, 32, 33].contains(&signal.number()) {
        assert_eq!(Signal::parse(&signal.to_string()), Some(signal));
    }
    assert_eq!(Signal::parse(&text.to_ascii_lowercase()), Some(signal));
    let json = serde_json::to_string(&signal).unwrap();
    assert_eq!(serde_json::from_str::<Signal>(&json).unwrap(), signal);
}

fn template(text: &str) {
    let nothing = |_: &_| OsString::from("<>");
    let literal = Template::literal(text);
    assert_eq!(literal.fill(&nothing), text, "a literal text is itself");
    assert_eq!(Template::parse(literal.raw()).as_ref(), Ok(&literal));
    match Template::parse(text) {
        Ok(template) => {
            assert_eq!(template.raw(), text);
            let json = serde_json::to_string(&template).unwrap();
            assert_eq!(serde_json::from_str::<Template>(&json).unwrap(), template);
            let filled = template.fill(&nothing);
            assert_eq!(filled == text, !text.contains("${"), "{text:?}: {}", filled.display());
        }
        Err(error) => assert!(text[error.at..].starts_with("${"), "{text:?}: {error:?}"),
    }
}

fn name(text: &str) {
    if let Ok(id) = InstanceId::parse(text) {
        assert_eq!(id.to_string(), text);
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(serde_json::from_str::<InstanceId>(&json).unwrap(), id);
        assert!(text.len() <= 2 * NAME_BYTES_MAX + 1);
        assert!(!text.contains(['/', '\0']) && !text.starts_with(['.', '-']), "{text:?}");
        assert_eq!(UnitName::parse(text).is_ok(), id.label().is_none());
    } else {
        assert!(UnitName::parse(text).is_err(), "{text:?}");
    }
}

/// What a unit with these keys says; `None` where there is a mistake in it.
fn unit(keys: &str) -> Option<Spec> {
    let path = FilePath::from(Path::new("/units/web.yaml"));
    let file = SourceFile { path, text: keys.to_owned().into_bytes() };
    let loaded = config::load(&[file], &BTreeMap::new(), &[]);
    let first = loaded.diagnostics.first().map(|found| found.message.as_str());
    assert!(!first.is_some_and(|message| message.starts_with("not YAML")), "{first:?}: {keys:?}");
    assert_eq!(loaded.specs.is_empty(), config::has_errors(&loaded.diagnostics), "{keys:?}");
    loaded.specs.first().map(|spec| Spec::clone(spec))
}

fn process(spec: &Spec) -> &ProcessSpec {
    spec.process.as_ref().expect("a service has a process")
}

fn size(text: &str) {
    let scalar = in_double_quotes(text);
    let Some(spec) = unit(&format!("command: a\nlogs: {{max_size: {scalar}}}\n")) else { return };
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = text[digits.len()..].trim().to_ascii_lowercase();
    let base: u128 = if unit.len() == 2 { 1000 } else { 1024 };
    let power = ["", "k", "m", "g", "t"].iter().position(|letter| {
        unit == *letter || unit == format!("{letter}b") || unit == format!("{letter}ib")
    });
    let power = u32::try_from(power.expect("a known unit")).unwrap();
    let expected = digits.parse::<u128>().unwrap() * base.pow(power);
    assert_eq!(u128::from(spec.logs.max_size), expected, "{text:?}");
}

/// A text is what was written.
fn as_written(text: &str) {
    let scalar = in_double_quotes(text);
    let keys = format!("command: [a, {scalar}]\ndocumentation: [{scalar}]\nenv: {{A: {scalar}}}\n");
    let is_template = Template::parse(text).is_ok();
    let Some(spec) = unit(&keys) else {
        assert!(!is_template || text.contains('\0'), "{text:?} was refused");
        return;
    };
    assert_eq!(*spec.documentation, [text]);
    assert_eq!(process(&spec).env["A"].raw(), text);
    match &process(&spec).command {
        Command::Argv(words) => assert_eq!(words[1].raw(), text),
        Command::Shell(_) => panic!("{spec:?}"),
    }
}

/// A command line: without quotes it is parted at blanks, and a `'…'` is one word as it is.
fn words(text: &str) {
    if let Some(spec) = unit(&format!("command: {}\n", in_double_quotes(text))) {
        let Command::Argv(words) = &process(&spec).command else { panic!("{spec:?}") };
        assert!(!words.is_empty() && !words[0].raw().is_empty());
        if !text.contains(['\'', '"', '\\', '$']) {
            let expected: Vec<&str> = text.split_ascii_whitespace().collect();
            assert_eq!(words.iter().map(Template::raw).collect::<Vec<_>>(), expected);
        }
    }
    if !text.contains(['\'', '$', '\0']) {
        let spec = unit(&format!("command: {}\n", in_double_quotes(&format!("a '{text}' b"))));
        let spec = spec.unwrap_or_else(|| panic!("{text:?} in quotes was refused"));
        let Command::Argv(words) = &process(&spec).command else { panic!("{spec:?}") };
        assert_eq!(words.iter().map(Template::raw).collect::<Vec<_>>(), ["a", text, "b"]);
    }
}

fn log_line(line: &[u8]) {
    let record = Record::parse(line, "web", "before");
    let mut raw = super::output::raw(&record);
    raw.pop();
    assert_eq!(raw, line);
    assert_eq!(record.instance, "web");
    assert_eq!(record.time == "before", record.stream.is_empty(), "{record:?}");
}
