//! Which drop-ins and which files of profiles are laid over which unit.
//!
//! They belong to a unit that a file in the directory beside them declares. Drop-ins come first, in
//! the order of their names; then the chosen profiles, in the order in which they were chosen.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::compose::{Reader, text_of};
use super::diagnostic::quoted;
use super::layers::is_profile;
use super::source::At;
use super::suggest;
use super::yaml::{Tree, Value};
use crate::model::{FilePath, Gather};

/// A file that is laid over a unit.
#[derive(Debug)]
pub(super) struct DropIn<'a> {
    /// The unit.
    pub(super) unit: &'a str,
    /// The directory of the files that may declare it.
    pub(super) home: &'a Path,
    /// The profile without which it is left out.
    pub(super) profile: Option<&'a str>,
    /// The file.
    pub(super) path: &'a FilePath,
    /// The beginning of the file.
    pub(super) start: At,
    /// What it says; nothing where it is empty, wrong or left out.
    pub(super) tree: Option<Tree>,
}

impl DropIn<'_> {
    /// Whether it is in a directory of drop-ins.
    fn is_inside(&self) -> bool {
        self.path.as_path().parent() != Some(self.home)
    }
}

impl Reader<'_> {
    /// Puts each drop-in over its unit, and tells of those that have none. The sink has the names of
    /// the profiles at hand.
    pub(super) fn place_drop_ins(&mut self, names: &BTreeMap<String, usize>) {
        let drop_ins = std::mem::take(&mut self.drop_ins);
        self.profiles(&drop_ins);
        let mut homes: BTreeMap<(&Path, &str), usize> = BTreeMap::new();
        for (number, document) in self.documents.iter().enumerate() {
            if let Some(name) = &document.name {
                homes.entry((&document.home, name)).or_insert(number);
            }
        }
        let find = |drop_in: &DropIn<'_>| homes.get(&(drop_in.home, drop_in.unit)).copied();
        let numbers: Vec<Option<usize>> = drop_ins.iter().map(find).collect();
        let mut told = BTreeSet::new();
        let mut laid: Vec<(Option<usize>, bool, usize, Tree)> = Vec::new();
        for (drop_in, number) in drop_ins.into_iter().zip(numbers) {
            let Some(number) = number else {
                if !drop_in.is_inside() || told.insert((drop_in.home, drop_in.unit)) {
                    self.without_unit(&drop_in, names);
                }
                continue;
            };
            let last = |profile: &str| self.layers.profiles.iter().rposition(|p| p == profile);
            let place = drop_in.profile.and_then(last);
            let is_inside = drop_in.is_inside();
            laid.extend(drop_in.tree.map(|tree| (place, is_inside, number, tree)));
        }
        // Stable: those of one place stay in the order of their names.
        laid.sort_by_key(|(place, is_inside, _, _)| (*place, *is_inside));
        for (_, _, number, tree) in laid {
            self.put_over(number, tree);
        }
    }

    /// The chosen profiles: what is no name of one, and those that nothing is for.
    fn profiles(&mut self, drop_ins: &[DropIn<'_>]) {
        let known: BTreeSet<&str> = drop_ins.iter().filter_map(|drop_in| drop_in.profile).gather();
        let mut start = self.sink.start().start;
        for name in self.layers.profiles {
            let at = At::new(start, name.len());
            start = at.end.saturating_add(1);
            if !is_profile(name) {
                let message = format!("{} is no name of a profile", quoted(name));
                let help = "it has letters, digits, `_` and `-`, at most 64";
                self.sink.error(at, message).help(help);
            } else if !known.contains(name.as_str()) {
                let message = format!("no file is of the profile {}", quoted(name));
                let meant = suggest::nearest(name, known.iter().copied());
                self.sink.warning(at, message).did_you_mean(meant);
            }
        }
    }

    /// Tells of a drop-in whose unit is not declared where it should be.
    fn without_unit(&mut self, drop_in: &DropIn<'_>, names: &BTreeMap<String, usize>) {
        let unit = drop_in.unit;
        if self.done.unread.contains(unit) {
            return;
        }
        let elsewhere = names.get(unit).and_then(|number| self.documents.get(*number));
        let elsewhere = elsewhere.map(|document| {
            format!("`{unit}` is declared in {}", quoted(&document.home.to_string_lossy()))
        });
        let meant = suggest::nearest(unit, names.keys().map(String::as_str));
        let name = quoted(unit);
        let found = match drop_in.profile {
            Some(profile) if !drop_in.is_inside() => {
                let message = format!(
                    "this is of the profile `{profile}` of {name}, which no file in this \
                     directory declares"
                );
                let found = self.sink.error(drop_in.start, message);
                found.help(format!("where it is a unit of its own, write `name: {unit}.{profile}`"))
            }
            Some(_) | None => {
                let message = format!(
                    "these drop-ins are for {name}, which no file in the directory above declares"
                );
                self.sink.warning(drop_in.start, message)
            }
        };
        match elsewhere {
            Some(help) => found.help(help),
            None => found.did_you_mean(meant),
        };
    }

    /// Lays a tree over a unit, whose name it may repeat.
    pub(super) fn put_over(&mut self, number: usize, mut tree: Tree) {
        let Some(document) = self.documents.get_mut(number) else { return };
        let name = document.name.as_deref().unwrap_or_default();
        let entry = super::decode::entry(&tree.root, "name");
        if let Some(at) =
            entry.filter(|_| text_of(&tree.root, "name") != Some(name)).map(|e| e.value.at)
        {
            let message = format!("this is laid over {}, and cannot name it anew", quoted(name));
            self.sink.error(at, message).help("leave `name` out here");
            tree.complete = false;
        }
        if let Value::Map(entries) = &mut tree.root.value {
            entries.retain(|entry| entry.key != "name");
        }
        document.over.push(tree);
    }
}
