//! Unit files: bytes to specs, mistakes, and the drawing of mistakes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use opm::config::{self, Diagnostic, Layers, Loaded, MISTAKES_MAX, SourceFile};
use opm::model::{Command, Desired, FilePath, Kind, Spec, Unit, find_loop};
use opm::system::{decode_saved, encode_saved};

/// Parts one file from the next. A unit file cannot hold it.
const NEXT_FILE: u8 = 0x1c;
/// Most files; the rest of the bytes belongs to the last one.
const FILES_MAX: usize = 4;
/// Most settings of a command line that are tried.
const SETS_MAX: usize = 8;
/// Longest text of a mistake, in bytes: a few names and quoted pieces, each with escapes in it.
const MESSAGE_BYTES_MAX: usize = 2 * 1024;
/// Longest text about a loop, in bytes: it names the units in it.
const LOOP_BYTES_MAX: usize = 8 * 1024;
/// Longest drawing of all mistakes, in bytes.
const DRAWING_BYTES_MAX: usize = 256 * 1024;

/// Units from these bytes. Nothing panics; places lie in the files; what is accepted is whole and
/// survives the saved state.
pub fn yaml(bytes: &[u8]) {
    let mut files: Vec<SourceFile> = bytes
        .splitn(FILES_MAX, |byte| *byte == NEXT_FILE)
        .zip(["unit.yaml", "b.yaml", "c.yaml", "d.yaml"])
        .map(|(text, name)| SourceFile {
            path: FilePath::from(Path::new("/units").join(name)),
            text: text.to_vec(),
        })
        .collect();
    let loaded = config::load(&files, &BTreeMap::new(), &[]);
    let drawn = config::render(&loaded.diagnostics, &files, false);
    check_said(&files, &loaded.diagnostics, &drawn);
    check_specs(&loaded);
    files.reverse();
    let again = config::load(&files, &BTreeMap::new(), &[]);
    assert_eq!(loaded.diagnostics, again.diagnostics, "the order of the files counts");
    assert_eq!(loaded.specs, again.specs, "the order of the files counts");
    composed(bytes);
}

/// The same files where some are laid over others, and the last one is what a command line sets.
fn composed(bytes: &[u8]) {
    let names = ["unit.yaml", "more/b.yaml", "unit.d/c.yaml", "unit.prod.yaml"];
    let mut files: Vec<SourceFile> = bytes
        .splitn(FILES_MAX, |byte| *byte == NEXT_FILE)
        .zip(names)
        .map(|(text, name)| SourceFile {
            path: FilePath::from(Path::new("/units").join(name)),
            text: text.to_vec(),
        })
        .collect();
    let last = files.last().map(|file| super::text(&file.text).to_owned()).unwrap_or_default();
    let sets: Vec<String> = last.lines().take(SETS_MAX).map(str::to_owned).collect();
    let profiles = ["prod".to_owned()];
    let layers = Layers { source: Some("/units"), profiles: &profiles, sets: &sets, origins: true };
    let loaded = config::load_with(&files, &layers, &BTreeMap::new(), &[]);
    let all = config::with_words(&files, &profiles, &sets).into_owned();
    let drawn = config::render(&loaded.diagnostics, &all, false);
    check_said(&all, &loaded.diagnostics, &drawn);
    check_specs(&loaded);
    files.reverse();
    let again = config::load_with(&files, &layers, &BTreeMap::new(), &[]);
    assert_eq!(loaded.diagnostics, again.diagnostics, "the order of the files counts");
    assert_eq!(loaded.specs, again.specs, "the order of the files counts");
}

/// The places of all mistakes lie in the files, and all texts are short and printable.
pub fn check_said(files: &[SourceFile], found: &[Diagnostic], drawn: &str) {
    // Each kind of mistake that only the whole set shows is bounded as those of a file are.
    assert!(found.len() <= (files.len() + 5) * (MISTAKES_MAX + 1), "{} mistakes", found.len());
    let lengths: BTreeMap<&FilePath, Vec<usize>> =
        files.iter().map(|file| (&file.path, line_lengths(&file.text))).collect();
    for mistake in found {
        check_mistake(mistake, &lengths);
    }
    // Nor what turns the direction of text.
    let acts = |c: char| c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c);
    assert!(drawn.chars().all(|c| c == '\n' || !acts(c)), "{drawn:?}");
    assert!(drawn.len() <= DRAWING_BYTES_MAX, "a drawing of {} bytes", drawn.len());
    assert_eq!(drawn.is_empty(), found.is_empty());
}

/// How many characters each line of a file has, as far as it is text.
fn line_lengths(bytes: &[u8]) -> Vec<usize> {
    let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
    super::text(bytes).split('\n').map(|line| line.chars().count()).collect()
}

fn check_mistake(found: &Diagnostic, lengths: &BTreeMap<&FilePath, Vec<usize>>) {
    let places = found.related.iter().map(|other| (&other.place, other.length));
    let places = places.map(|(place, length)| (&place.file, place.line, place.column, length));
    let own = (&found.file, found.line, found.column, found.length);
    for (file, line, column, length) in std::iter::once(own).chain(places) {
        let lines = lengths.get(file).unwrap_or_else(|| panic!("no such file: {found:?}"));
        let line = lines.get(usize::try_from(line).unwrap().wrapping_sub(1));
        let line = line.unwrap_or_else(|| panic!("no such line: {found:?}"));
        let begin = usize::try_from(column).unwrap().checked_sub(1);
        let end = begin.map(|begin| begin + usize::try_from(length).unwrap());
        assert!(end.is_some_and(|end| end <= *line), "not in a line of {line}: {found:?}");
    }
    let related = found.related.iter().map(|other| &other.text);
    let said = [&found.message, &found.label].into_iter().chain(&found.help).chain(related);
    for text in said {
        assert!(!text.chars().any(char::is_control), "control characters: {text:?}");
        let is_loop = text.starts_with("dependency loop");
        let limit = if is_loop { LOOP_BYTES_MAX } else { MESSAGE_BYTES_MAX };
        assert!(text.len() <= limit, "{} bytes: {text:?}", text.len());
    }
    assert!(!found.message.is_empty());
    let json = serde_json::to_string(found).unwrap();
    assert_eq!(serde_json::from_str::<Diagnostic>(&json).unwrap(), *found);
}

fn check_specs(loaded: &Loaded) {
    let names: BTreeSet<_> = loaded.specs.iter().map(|spec| &spec.name).collect();
    assert_eq!(names.len(), loaded.specs.len(), "two units of one name");
    let places = loaded.places();
    for name in names {
        assert!(places.contains_key(name), "{name} is nowhere");
    }
    if config::has_errors(&loaded.diagnostics) {
        return;
    }
    assert_eq!(loaded.specs.len(), places.len(), "a unit was lost without a word");
    assert_eq!(find_loop(loaded.specs.iter().map(|spec| &**spec)), None, "a loop was accepted");
    for spec in &loaded.specs {
        check_spec(spec);
    }
    let unit = |spec: &Spec| Unit::new(Arc::new(spec.clone()), "/units".to_owned());
    let units = loaded.specs.iter().map(|spec| (spec.name.clone(), unit(spec))).collect();
    let desired = Desired { generation: 1, units, ..Desired::default() };
    let saved = encode_saved(&desired).expect("it can be saved");
    assert_eq!(decode_saved(&saved).expect("it can be read back"), desired);
}

fn check_spec(spec: &Spec) {
    assert_eq!(
        spec.process.is_none(),
        matches!(spec.kind, Kind::Target | Kind::Socket),
        "{spec:?}"
    );
    assert_eq!(spec.socket.is_some(), spec.kind == Kind::Socket, "{spec:?}");
    assert!(!spec.instance_ids().is_empty() || spec.kind == Kind::Target, "{spec:?}");
    for (place, id) in (1..).zip(spec.instance_ids()) {
        assert_eq!(spec.instance_index(&id), Some(place), "{id}");
    }
    let hooks = [&spec.hooks.pre_start, &spec.hooks.post_start];
    let hooks = hooks.into_iter().chain([&spec.hooks.pre_stop, &spec.hooks.post_stop]).flatten();
    let main = spec.process.iter().map(|process| &process.command);
    for command in main.chain(hooks.map(|hook| &hook.command)) {
        let program = match command {
            Command::Argv(words) => words.first().map_or("", |word| word.raw()),
            Command::Shell(text) => text.raw(),
        };
        assert!(!program.is_empty(), "no program: {spec:?}");
    }
    assert!(spec.start_timeout.as_nanos() > 0);
    assert!(spec.restart.delay <= spec.restart.max_delay, "{:?}", spec.restart);
    assert!((1.0..=100.0).contains(&spec.restart.factor), "{:?}", spec.restart);
    assert!((0.0..=1.0).contains(&spec.restart.jitter), "{:?}", spec.restart);
}
