//! How much all finished files of all logs may be together: the oldest go first, whoever's they are.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::time::SystemTime;

use crate::logs::packed;
use crate::logs::segment;

/// The limit.
#[derive(Debug, Clone)]
pub(super) struct Quota {
    /// The directory with one directory for each instance.
    pub(super) dir: PathBuf,
    /// Most bytes.
    pub(super) bytes: u64,
}

impl Quota {
    /// Removes the oldest files until the others are no more than the limit.
    pub(super) fn keep(&self) -> io::Result<()> {
        let mut files = self.finished()?;
        let mut total: u64 = files.iter().map(|(_, _, bytes)| bytes).sum();
        files.sort_unstable();
        for (_, path, bytes) in files {
            if total <= self.bytes {
                break;
            }
            match fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => total = total.saturating_sub(bytes),
            }
        }
        Ok(())
    }

    /// All finished files: when each was written last, and how large it is.
    fn finished(&self) -> io::Result<Vec<(SystemTime, PathBuf, u64)>> {
        let mut files = Vec::new();
        for dir in fs::read_dir(&self.dir)? {
            let dir = dir?;
            if !dir.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            for file in fs::read_dir(dir.path())? {
                let file = file?;
                // One that is gone meanwhile takes no room.
                if is_finished(&file.file_name())
                    && let Ok(metadata) = file.metadata()
                {
                    files.push((metadata.modified()?, file.path(), metadata.len()));
                }
            }
        }
        Ok(files)
    }
}

fn is_finished(name: &std::ffi::OsStr) -> bool {
    let suffixes = [segment::SUFFIX.to_owned(), format!("{}{}", segment::SUFFIX, packed::SUFFIX)];
    suffixes.iter().any(|suffix| segment::number_of(name, b"", suffix.as_bytes()).is_some())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_oldest_go_whoevers_they_are_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().to_owned();
        let write = |name: &str, age: u64| {
            let path = dir.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, [0; 100]).unwrap();
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 - age);
            fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        };
        let all = [
            ("a/00000001.log", 50),
            ("a/00000002.log.gz", 20),
            ("b/00000007.log", 40),
            ("b/00000008.log", 10),
            ("b/current", 90),
            ("b/notes.log", 90),
            ("opm.log", 90),
        ];
        for (name, age) in all {
            write(name, age);
        }
        for (bytes, gone) in [(400, 0), (399, 1), (299, 2), (200, 2), (99, 4), (0, 4)] {
            Quota { dir: dir.clone(), bytes }.keep().unwrap();
            let left: Vec<&str> =
                all.iter().map(|(name, _)| *name).filter(|name| dir.join(name).exists()).collect();
            let oldest =
                ["a/00000001.log", "b/00000007.log", "a/00000002.log.gz", "b/00000008.log"];
            let expected: Vec<&str> = all
                .iter()
                .map(|(name, _)| *name)
                .filter(|name| !oldest[..gone].contains(name))
                .collect();
            assert_eq!(left, expected, "{bytes}");
        }
    }
}
