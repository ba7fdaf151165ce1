//! Files -> units: reads the trees, puts those together that belong together, and decodes them.
//!
//! The order for one unit: what it extends, what its file says, its drop-ins, the chosen profiles,
//! the settings of the command line. Each is laid over what is before it (`merge`).
//!
//! As long as nothing of this is asked for, each file is decoded as soon as it is read, and its trees
//! are dropped. The first unit that extends another one has the whole source read again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::cache::Cache;
use super::decode::{self, Decoded, Reading};
use super::diagnostic::{Diagnostic, quoted};
use super::drop_ins::DropIn;
use super::extends::{Bases, Known};
use super::layers::{self, Layers, Role, Words};
use super::merge::{Merged, kind_of};
use super::origin::Origins;
use super::sets;
use super::source::{At, Sink, SourceFile};
use super::yaml::{self, Entry, Node, Tree, Value};
use super::{LeftOut, UNITS_MAX};
use crate::model::{FilePath, Kind, UnitName};

/// Most keys and values of a source that are kept at once, and most that are copied, where units are
/// put together: 20,000 units of a hundred keys. One large base with thousands of heirs would fill
/// the memory; what comes after is not read.
pub const COMPOSED_NODES_MAX: usize = 2_000_000;

/// A document that declares a unit.
#[derive(Debug)]
pub(super) struct Document {
    /// The number of its file.
    pub(super) file: usize,
    pub(super) tree: Tree,
    /// Its file's stem, where that is its name.
    stem: Option<String>,
    /// The directory of its file.
    pub(super) home: PathBuf,
    /// The name that it gives itself, whether it can be one or not.
    pub(super) name: Option<String>,
    /// What is laid over it, in order.
    pub(super) over: Vec<Tree>,
}

impl Document {
    /// All that is its own, in order.
    pub(super) fn trees(&self) -> impl Iterator<Item = &Tree> {
        std::iter::once(&self.tree).chain(&self.over)
    }
}

/// What was read.
#[derive(Debug, Default)]
pub(super) struct Composed {
    /// All units, in the order of their files.
    pub(super) units: Vec<Arc<Decoded>>,
    /// Names of units that are declared in a way that could not be read.
    pub(super) unread: BTreeSet<String>,
    pub(super) diagnostics: Vec<Diagnostic>,
    /// Where the keys of each unit were written, where that is wanted.
    pub(super) origins: BTreeMap<UnitName, Origins>,
    pub(super) left_out: Vec<LeftOut>,
}

/// Reads all files, which are in order; those that are known only where none is put together with
/// another.
pub(super) fn read(
    files: &[&SourceFile],
    words: &Words,
    layers: &Layers<'_>,
    others: &BTreeMap<UnitName, String>,
    cache: &mut Cache,
) -> Composed {
    let root = layers.source.and_then(|source| layers::root(source, files));
    let is_plain =
        |file: &&&SourceFile| layers::role(root.as_deref(), file.path.as_path()).0 == Role::Units;
    let is_asked = layers.origins || !layers.sets.is_empty() || !layers.profiles.is_empty();
    if !is_asked && files.iter().filter(|file| !is_plain(file)).count() == 0 {
        let mut reader = Reader::new(root.as_deref(), layers, false);
        if files.iter().all(|file| reader.read_plain(file, cache)) {
            cache.finish();
            let Reader { sink, done, .. } = reader;
            return Composed { diagnostics: sink.finish(), ..done };
        }
    }
    *cache = Cache::new();
    let mut reader = Reader::new(root.as_deref(), layers, true);
    for file in files {
        reader.read(file);
    }
    reader.compose(words, others)
}

/// Reads one file after another.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    root: Option<&'a Path>,
    pub(super) layers: &'a Layers<'a>,
    pub(super) sink: Sink<'a>,
    /// Whether trees are kept, to be put together.
    is_composed: bool,
    is_full: bool,
    pub(super) documents: Vec<Document>,
    pub(super) drop_ins: Vec<DropIn<'a>>,
    /// How many keys and values are kept or were copied.
    nodes: usize,
    /// The directory of the last file.
    base: Option<FilePath>,
    pub(super) done: Composed,
}

impl<'a> Reader<'a> {
    fn new(root: Option<&'a Path>, layers: &'a Layers<'a>, is_composed: bool) -> Self {
        Self {
            root,
            layers,
            sink: Sink::new(),
            is_composed,
            is_full: false,
            documents: Vec::new(),
            drop_ins: Vec::new(),
            nodes: 0,
            base: None,
            done: Composed::default(),
        }
    }

    /// Reads a file of units that are not put together, unless what it declares is known. False: one
    /// of them is.
    fn read_plain(&mut self, file: &'a SourceFile, cache: &mut Cache) -> bool {
        let before = self.done.units.len();
        let known = if self.is_full { None } else { cache.find(file) };
        if let Some(units) = known.filter(|units| before.saturating_add(units.len()) <= UNITS_MAX) {
            self.done.units.extend_from_slice(units);
            return true;
        }
        let found = self.sink.noted();
        let is_plain = self.read(file);
        if is_plain && !self.is_full && self.sink.noted() == found {
            cache.note(file, self.done.units.get(before..).unwrap_or_default());
        }
        is_plain
    }

    /// Reads a file. False: it holds a unit that extends another one, and no trees were kept.
    fn read(&mut self, file: &'a SourceFile) -> bool {
        if self.is_full {
            return true;
        }
        self.sink.open(file);
        let (role, home) = layers::role(self.root, file.path.as_path());
        match role {
            Role::Units => self.units(file),
            Role::Dotted { unit, profile } => self.dotted(file, home, unit, profile),
            Role::DropIn { unit, profile } => {
                let tree = if self.is_chosen(profile) {
                    let documents = yaml::parse(&mut self.sink, file.text.len());
                    self.count(documents.nodes);
                    self.only(documents)
                } else {
                    self.leave_out(file, profile.unwrap_or_default());
                    None
                };
                self.lay_over(file, home, unit, profile, tree);
                true
            }
            Role::Misnamed { unit } => {
                let message = "the name of a drop-in has no dot before its end";
                self.sink.error(self.sink.start(), message).help(format!(
                    "for a profile alone it is `{unit}.PROFILE.yaml`; else write `-` for the dot"
                ));
                true
            }
        }
    }

    fn is_chosen(&self, profile: Option<&str>) -> bool {
        profile.is_none_or(|profile| self.layers.profiles.iter().any(|chosen| chosen == profile))
    }

    fn leave_out(&mut self, file: &SourceFile, profile: &str) {
        self.done.left_out.push(LeftOut { file: file.path.clone(), profile: profile.to_owned() });
    }

    fn lay_over(
        &mut self,
        file: &'a SourceFile,
        home: &'a Path,
        unit: &'a str,
        profile: Option<&'a str>,
        tree: Option<Tree>,
    ) {
        let start = self.sink.start();
        self.drop_ins.push(DropIn { unit, home, profile, path: &file.path, start, tree });
    }

    /// The one document of a drop-in.
    fn only(&mut self, documents: yaml::Documents) -> Option<Tree> {
        let mut trees = documents.trees.into_iter();
        let first = trees.next()?;
        if let Some(second) = trees.next() {
            let at = At::new(second.root.at.start, 0);
            self.sink.error(at, "a drop-in is one document").help("make it a file of its own");
        }
        if !matches!(first.root.value, Value::Map(_)) {
            let message =
                format!("a drop-in is a map of keys, not {}", decode::described(&first.root));
            self.sink.error(first.root.at, message);
            return None;
        }
        Some(first)
    }

    /// Counts what is kept or copied.
    fn count(&mut self, nodes: usize) {
        self.nodes = self.nodes.saturating_add(nodes);
        if self.is_composed && self.nodes > COMPOSED_NODES_MAX && !self.is_full {
            let message = format!(
                "more than {COMPOSED_NODES_MAX} keys and values in a source whose units are put \
                 together"
            );
            self.sink.error(self.sink.start(), message);
            self.is_full = true;
        }
    }

    /// A file that is of a profile, unless it names units of its own.
    fn dotted(
        &mut self,
        file: &'a SourceFile,
        home: &'a Path,
        unit: &'a str,
        profile: &'a str,
    ) -> bool {
        let documents = yaml::parse(&mut self.sink, file.text.len());
        self.count(documents.nodes);
        let is_one = documents.complete && documents.trees.len() == 1;
        let name = documents.trees.first().map(|tree| text_of(&tree.root, "name"));
        let is_laid_over = is_one && name.is_some_and(|name| name.is_none_or(|name| name == unit));
        if !is_laid_over {
            return self.declare(file, documents, None);
        }
        let tree = if self.is_chosen(Some(profile)) {
            self.only(documents)
        } else {
            self.leave_out(file, profile);
            None
        };
        self.lay_over(file, home, unit, Some(profile), tree);
        true
    }

    /// A file that declares units.
    fn units(&mut self, file: &'a SourceFile) -> bool {
        let documents = yaml::parse(&mut self.sink, file.text.len());
        self.count(documents.nodes);
        let stem = file.path.as_path().file_stem().unwrap_or_default().to_string_lossy();
        let is_only = documents.complete && documents.trees.len() == 1;
        self.declare(file, documents, is_only.then_some(&*stem))
    }

    /// The directory of a file. Files of one directory share its name.
    fn base(&mut self, home: &Path) -> FilePath {
        match &self.base {
            Some(base) if base.as_path() == home => base.clone(),
            Some(_) | None => self.base.insert(FilePath::from(home)).clone(),
        }
    }

    fn declare(
        &mut self,
        file: &'a SourceFile,
        documents: yaml::Documents,
        stem: Option<&str>,
    ) -> bool {
        let path = file.path.as_path();
        let home = path.parent().unwrap_or(path);
        let base = self.base(home);
        let mut is_nameless = false;
        for tree in documents.trees {
            if self.done.units.len().saturating_add(self.documents.len()) >= UNITS_MAX {
                let message = format!("more than {UNITS_MAX} units in one source");
                self.sink.error(At::new(tree.root.at.start, 0), message);
                self.is_full = true;
                break;
            }
            if self.is_composed {
                let name = text_of(&tree.root, "name").or(stem).map(str::to_owned);
                is_nameless |= name.as_ref().is_none_or(|name| UnitName::parse(name).is_err());
                let stem = stem.map(str::to_owned);
                let (home, over) = (home.to_owned(), Vec::new());
                let file = self.sink.number();
                self.documents.push(Document { file, tree, stem, home, name, over });
                continue;
            }
            if decode::entry(&tree.root, "extends").is_some() {
                return false;
            }
            let reading = Reading::plain(&tree, stem, &base);
            let unit = decode::unit(&reading, &mut self.sink);
            is_nameless |= unit.name.is_none();
            self.done.units.push(Arc::new(unit));
            if self.sink.is_full() {
                break;
            }
        }
        if !documents.complete || is_nameless || self.sink.is_full() {
            self.unread(file);
        }
        true
    }

    /// Nobody is told that the units of this file do not exist.
    fn unread(&mut self, file: &SourceFile) {
        let stem = file.path.as_path().file_stem().unwrap_or_default().to_string_lossy();
        self.done.unread.insert(stem.into_owned());
        self.done.unread.extend(names_in(self.sink.reading().0));
    }

    /// Puts together what was read, and decodes it.
    fn compose(mut self, words: &'a Words, others: &BTreeMap<UnitName, String>) -> Composed {
        let mut names: BTreeMap<String, usize> = BTreeMap::new();
        for (number, document) in self.documents.iter().enumerate() {
            if let Some(name) = &document.name {
                names.entry(name.clone()).or_insert(number);
            }
        }
        self.sink.open(&words.profiles);
        self.place_drop_ins(&names);
        self.sink.open(&words.sets);
        let is_unread = |name: &str| self.done.unread.contains(name);
        for (number, tree) in sets::read(self.layers.sets, &names, &is_unread, &mut self.sink) {
            self.put_over(number, tree);
        }
        let known = Known { names: &names, unread: &self.done.unread, others };
        let bases = Bases::find(&self.documents, &known, &mut self.sink);
        let mut found: BTreeMap<usize, Decoded> = BTreeMap::new();
        let mut wrong = BTreeSet::new();
        for number in bases.order() {
            let Some(document) = self.documents.get(number) else { continue };
            self.sink.turn_to(document.file);
            if self.is_full || self.sink.is_full() {
                self.done.unread.extend(document.name.clone());
                continue;
            }
            let errors = self.sink.errors();
            if let Some(unit) = self.decode(number, &bases, &wrong) {
                found.insert(number, unit);
            }
            if self.sink.errors() > errors {
                wrong.insert(number);
            }
        }
        let Self { sink, mut done, .. } = self;
        done.units = found.into_values().map(Arc::new).collect();
        Composed { diagnostics: sink.finish(), ..done }
    }

    /// Decodes a unit with all that belongs to it.
    fn decode(&mut self, number: usize, bases: &Bases, wrong: &BTreeSet<usize>) -> Option<Decoded> {
        let mut merged = Merged::default();
        let chain = bases.chain(number);
        let is_alone = bases.of(number).is_none();
        let tree = match &chain {
            Some(_) if is_alone && self.documents.get(number)?.over.is_empty() => None,
            Some(chain) => Some(self.merge(chain, &mut merged)?),
            None => Some(Tree { complete: false, ..self.merge(&[number], &mut merged)? }),
        };
        for vain in &merged.vain {
            let message =
                format!("{} is null, and there is nothing to take away", quoted(&vain.path));
            self.sink.warning(vain.at, message).did_you_mean(vain.meant.as_deref());
        }
        let document = self.documents.get(number)?;
        let base = bases.of(number).filter(|_| chain.is_some());
        let reading = Reading {
            tree: tree.as_ref().unwrap_or(&document.tree),
            stem: document.stem.as_deref(),
            base: &FilePath::from(document.home.as_path()),
            is_excused: base.is_some_and(|base| wrong.contains(&base.number)),
            is_merged: tree.is_some(),
        };
        if let Some(base) = base {
            let own = document.trees().map(|tree| tree.root.at).collect();
            let name = quoted(document.name.as_deref().unwrap_or_default());
            self.sink.begin_heir(own, base.at, format!("{name} takes it over here"));
        }
        let unit = decode::unit(&reading, &mut self.sink);
        self.sink.end_heir();
        if self.layers.origins
            && let (Some(name), Value::Map(entries)) = (&unit.name, &reading.tree.root.value)
        {
            let origins = Origins::new(entries, &self.sink);
            self.done.origins.entry(name.clone()).or_insert(origins);
        }
        if self.sink.is_full() {
            self.done.unread.extend(names_in(self.sink.reading().0));
        }
        self.count(merged.copied);
        Some(unit)
    }

    /// Lays units over one another, and over each what is laid over it alone. The last one is the
    /// unit that is meant, and what is wrong with it is told.
    fn merge(&mut self, chain: &[usize], merged: &mut Merged) -> Option<Tree> {
        let last = *chain.last()?;
        let mut complete = true;
        let mut entries: Vec<Entry> = Vec::new();
        for number in chain {
            let document = self.documents.get(*number)?;
            complete &= document.trees().all(|tree| tree.complete);
            let Value::Map(own) = &document.tree.root.value else { continue };
            entries.retain(|entry| !NOT_INHERITED.contains(&entry.key.as_str()));
            let lower = kind_of(&entries).filter(|_| Some(number) != chain.first());
            if *number != last {
                merged.vain.clear();
            }
            if let Some(lower) = lower {
                merged.lay(&mut entries, own, "");
                let clash = kind_of(&entries).filter(|kind| *kind != lower);
                if let Some(kind) = clash {
                    if *number == last {
                        refuse_kind(&mut self.sink, document, lower, kind);
                    }
                    let tree = self.merge(&[last], merged)?;
                    return Some(Tree { complete: false, ..tree });
                }
            } else {
                entries = own.iter().map(|entry| merged.copy_entry(entry)).collect();
            }
            for over in &document.over {
                let Value::Map(upper) = &over.root.value else { continue };
                let kind = kind_of(&entries);
                merged.lay(&mut entries, upper, "");
                let clash = kind.zip(kind_of(&entries)).filter(|(lower, kind)| lower != kind);
                complete &= clash.is_none();
                if let Some((lower, kind)) = clash.filter(|_| *number == last) {
                    let (lower, kind) = (lower.as_str(), kind.as_str());
                    let at = decode::entry(&over.root, "kind").map_or(over.root.at, |e| e.key_at);
                    let name = quoted(document.name.as_deref().unwrap_or_default());
                    let message = format!("{name} is a {lower}, and this would make it a {kind}");
                    self.sink.error(at, message).help("leave `kind` out here");
                }
            }
        }
        let at = self.documents.get(last)?.tree.root.at;
        // A document that is no map is told as one.
        let is_map = matches!(self.documents.get(last)?.tree.root.value, Value::Map(_));
        let root = if is_map {
            Node { value: Value::Map(entries), at }
        } else {
            self.documents.get(last)?.tree.root.clone()
        };
        Some(Tree { root, complete })
    }
}

/// Keys that a unit does not take from the one it extends.
const NOT_INHERITED: [&str; 3] = ["name", "extends", "enabled"];

/// A unit and the one it extends are not of one kind.
fn refuse_kind(sink: &mut Sink<'_>, document: &Document, lower: Kind, kind: Kind) {
    let root = &document.tree.root;
    let at = decode::entry(root, "kind").map_or(root.at, |entry| entry.value.at);
    let (lower, kind) = (lower.as_str(), kind.as_str());
    let name = quoted(document.name.as_deref().unwrap_or_default());
    let extends = decode::entry(root, "extends").map(|entry| sink.spot(entry.value.at));
    let message = format!("{name} is a {kind}, and the unit that it extends is a {lower}");
    let found = sink.error(at, message);
    if let Some(spot) = extends {
        found.related(spot, format!("this is a {lower}"));
    }
}

/// The text of a key of a map.
pub(super) fn text_of<'n>(root: &'n Node, key: &str) -> Option<&'n str> {
    match &decode::entry(root, key)?.value.value {
        Value::Text(text) => Some(text),
        Value::Null | Value::List(_) | Value::Map(_) => None,
    }
}

/// What look like names of units in a text that is not YAML, so that nobody is told that these
/// units do not exist.
fn names_in(text: &str) -> impl Iterator<Item = String> + '_ {
    let values = text.lines().filter_map(|line| line.strip_prefix("name:"));
    values.map(|value| {
        let value = value.split(" #").next().unwrap_or_default();
        value.trim().trim_matches(['"', '\'']).to_owned()
    })
}
