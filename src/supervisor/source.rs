//! What a source says, and where it says it.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::config::{self, Layers, Loaded, Origins, SourceFile};
use crate::model::{KeptFile, Revision, UnitName};

/// A source as it is to be from now on.
#[derive(Debug, Clone, Default)]
pub struct Source {
    /// Its name: a directory's path, `-`, or what it was given.
    pub name: String,
    /// The directory of its files, where that is not its name.
    pub dir: Option<String>,
    /// All its files.
    pub files: Vec<SourceFile>,
    /// The chosen profiles, in order.
    pub profiles: Vec<String>,
    /// Settings of the command line, `UNIT.KEY=VALUE`.
    pub sets: Vec<String>,
}

impl From<Revision> for Source {
    fn from(revision: Revision) -> Self {
        let Revision { source, dir, files, profiles, sets, .. } = revision;
        let files = files.into_iter();
        let files = files.map(|KeptFile { path, text }| SourceFile { path, text: text.into() });
        Self { name: source, dir, files: files.collect(), profiles, sets }
    }
}

impl Source {
    /// What is laid over its units.
    pub fn layers(&self) -> Layers<'_> {
        let source = self.dir.as_deref().or(Some(&self.name));
        Layers { source, profiles: &self.profiles, sets: &self.sets, origins: false }
    }

    /// Its units and their mistakes, where nothing is known of other sources.
    pub fn load(&self) -> Loaded {
        config::load_with(&self.files, &self.layers(), &BTreeMap::new(), &[])
    }

    /// Which place gave which key of each of its units.
    pub fn origins(&self) -> BTreeMap<UnitName, Origins> {
        let layers = Layers { origins: true, ..self.layers() };
        config::load_with(&self.files, &layers, &BTreeMap::new(), &[]).origins
    }

    /// Its files, and what of the command line mistakes can be in, for the drawing of mistakes.
    pub fn shown(&self) -> Cow<'_, [SourceFile]> {
        config::with_words(&self.files, &self.profiles, &self.sets)
    }
}
