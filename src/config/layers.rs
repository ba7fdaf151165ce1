//! Which file declares units, and which is laid over one: told by its path, before it is read.
//!
//! ```text
//! DIR/web.yaml              units
//! DIR/web.d/FILE.yaml       drop-in of the unit `web` of a file in DIR
//! DIR/web.prod.yaml         the same where the profile `prod` is chosen, if it names no other unit
//! DIR/web.d/web.prod.yaml   the same
//! ```
//!
//! A file with a dot in its stem is never a unit because of its name alone: what is left out with
//! one command must not be a unit with the next.

use std::borrow::Cow;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::sets;
use super::source::SourceFile;
use crate::model::{FilePath, UnitName};

/// Where the chosen profiles stand, as if they were a file: one a line.
const PROFILE_FILE: &str = "--profile";

/// What is laid over the units of a source, beside their drop-ins.
#[derive(Debug, Clone, Default)]
pub struct Layers<'a> {
    /// The source's name: a directory's path, or another word. Only below a directory there are
    /// drop-ins and profiles.
    pub source: Option<&'a str>,
    /// The chosen profiles, in order.
    pub profiles: &'a [String],
    /// Settings of the form `UNIT.KEY=VALUE`, in order.
    pub sets: &'a [String],
    /// Whether the places of all keys are wanted.
    pub origins: bool,
}

/// The words of the command line, as files.
#[derive(Debug)]
pub(super) struct Words {
    pub(super) profiles: SourceFile,
    pub(super) sets: SourceFile,
}

impl Words {
    pub(super) fn new(layers: &Layers<'_>) -> Self {
        Self { profiles: profile_file(layers.profiles), sets: sets::file(layers.sets) }
    }
}

/// What a file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role<'a> {
    /// It declares units.
    Units,
    /// It is of a profile, or declares a unit with a dot in its name: it says so itself.
    Dotted {
        /// The unit over which it is laid.
        unit: &'a str,
        /// The profile.
        profile: &'a str,
    },
    /// It is laid over a unit.
    DropIn {
        /// The unit.
        unit: &'a str,
        /// The profile without which it is left out.
        profile: Option<&'a str>,
    },
    /// It stands among drop-ins, and has a name of which nobody knows for which profile it is.
    Misnamed {
        /// The unit of the directory.
        unit: &'a str,
    },
}

/// What a file is for, and the directory of the files that may declare its unit.
pub(super) fn role<'a>(root: Option<&Path>, path: &'a Path) -> (Role<'a>, &'a Path) {
    let dir = path.parent().unwrap_or(path);
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let Some(root) = root else { return (Role::Units, dir) };
    let dotted = stem.rsplit_once('.');
    let dotted = dotted.filter(|(unit, profile)| !unit.is_empty() && !profile.is_empty());
    if dir != root
        && let Some(unit) = drop_in_unit(dir)
    {
        let home = dir.parent().unwrap_or(dir);
        let role = match dotted {
            None => Role::DropIn { unit, profile: None },
            Some((front, profile)) if front == unit => {
                Role::DropIn { unit, profile: Some(profile) }
            }
            Some(_) => Role::Misnamed { unit },
        };
        return (role, home);
    }
    match dotted {
        Some((unit, profile)) => (Role::Dotted { unit, profile }, dir),
        None => (Role::Units, dir),
    }
}

/// The unit whose drop-ins are in a directory of this name.
pub fn drop_in_unit(dir: &Path) -> Option<&str> {
    let name = dir.file_name()?.to_str()?;
    name.strip_suffix(".d").filter(|unit| !unit.is_empty() && !unit.starts_with('.'))
}

/// Whether a text can be the name of a profile: as that of a unit, without dots.
pub fn is_profile(text: &str) -> bool {
    !text.contains('.') && UnitName::parse(text).is_ok()
}

/// A directory's path as the name of a source. Bytes that are no text are written out: two
/// directories that differ in one of them are two sources.
pub fn source_name(dir: &Path) -> String {
    let mut name = String::new();
    for chunk in dir.as_os_str().as_bytes().utf8_chunks() {
        name.push_str(chunk.valid());
        name.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
    }
    name
}

/// The directory that a source is named after: one of those above its files. A source that is one
/// file is that file's directory without the others.
pub(super) fn root(source: &str, files: &[&SourceFile]) -> Option<PathBuf> {
    let source = Some(source).filter(|name| name.starts_with('/'))?;
    let path = files.first()?.path.as_path();
    let found = path.ancestors().find(|dir| source_name(dir) == source)?;
    let root = if found == path { path.parent()? } else { found };
    Some(root.to_owned())
}

/// The chosen profiles as a file, one a line.
pub(super) fn profile_file(profiles: &[String]) -> SourceFile {
    let lines: Vec<String> =
        profiles.iter().map(|name| name.replace(|c: char| c.is_control(), " ")).collect();
    SourceFile { path: FilePath::from(PROFILE_FILE), text: lines.join("\n").into_bytes() }
}

/// The files of a source, and what of the command line mistakes can be in, as it is drawn.
pub fn with_words<'a>(
    files: &'a [SourceFile],
    profiles: &[String],
    sets: &[String],
) -> Cow<'a, [SourceFile]> {
    if profiles.is_empty() && sets.is_empty() {
        return Cow::Borrowed(files);
    }
    let mut files = files.to_vec();
    files.extend([profile_file(profiles), sets::file(sets)]);
    Cow::Owned(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_tells_what_a_file_is_for() {
        let root = Path::new("/u/opm.d");
        let drop_in = |unit, profile| Role::DropIn { unit, profile };
        for (path, expected, home) in [
            ("/u/opm.d/web.yaml", Role::Units, "/u/opm.d"),
            ("/u/opm.d/more/web.yml", Role::Units, "/u/opm.d/more"),
            ("/u/opm.d/web.prod.yaml", Role::Dotted { unit: "web", profile: "prod" }, "/u/opm.d"),
            (
                "/u/opm.d/php8.2-fpm.prod.yaml",
                Role::Dotted { unit: "php8.2-fpm", profile: "prod" },
                "/u/opm.d",
            ),
            ("/u/opm.d/web.d/10-env.yaml", drop_in("web", None), "/u/opm.d"),
            ("/u/opm.d/web.d/web.prod.yaml", drop_in("web", Some("prod")), "/u/opm.d"),
            ("/u/opm.d/web.d/wbe.prod.yaml", Role::Misnamed { unit: "web" }, "/u/opm.d"),
            ("/u/opm.d/a/php8.2-fpm.d/x.yaml", drop_in("php8.2-fpm", None), "/u/opm.d/a"),
        ] {
            let found = role(Some(root), Path::new(path));
            assert_eq!(found, (expected, Path::new(home)), "{path}");
        }
        assert_eq!(role(None, Path::new("/u/web.d/a.b.yaml")).0, Role::Units);
    }

    #[test]
    fn the_root_is_the_directory_that_the_source_is_named_after() {
        let file = |path: &str| [SourceFile { path: FilePath::from(path), text: Vec::new() }];
        let root = |source, path: &str| root(source, &[&file(path)[0]]);
        assert_eq!(root("/u", "/u/a.d/b.yaml"), Some(PathBuf::from("/u")));
        assert_eq!(root("/u/a.yaml", "/u/a.yaml"), Some(PathBuf::from("/u")));
        assert_eq!(root("-", "/standard-input.yaml"), None);
        assert_eq!(root("/v", "/u/a.yaml"), None);
    }
}
