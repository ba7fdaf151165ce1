//! A disk with the semantics of a crash: what a process wrote is there for the next process; after
//! a loss of power only what was synced is sure, the rest is there in part, in order, or not.
//! `/run` is a tmpfs, of which a loss of power leaves nothing.

use std::collections::BTreeMap;
use std::io::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};

use crate::chance::Chance;

#[derive(Debug, Default, Clone)]
struct Inode {
    data: Vec<u8>,
    synced: Vec<u8>,
}

/// A change of a directory that is not synced yet.
#[derive(Debug, Clone)]
enum Change {
    Put(PathBuf, usize),
    Gone(PathBuf),
    /// All or nothing.
    Moved(PathBuf, PathBuf),
}

/// The disk of a machine.
#[derive(Debug, Default)]
pub(crate) struct Drive {
    inodes: Vec<Inode>,
    names: BTreeMap<PathBuf, usize>,
    durable: BTreeMap<PathBuf, usize>,
    changes: Vec<Change>,
    /// So many bytes can still be written; `None`: as many as you like.
    pub(crate) room: Option<usize>,
    /// The operation that comes next but so many fails with an I/O error.
    pub(crate) error_in: Option<u32>,
    /// A planted fault: a sync says that it is done and does nothing.
    pub(crate) lies: bool,
    /// A planted fault: what was written in part is never taken back.
    pub(crate) never_cuts: bool,
}

impl Drive {
    fn fails(&mut self) -> Result<()> {
        if self.error_in.take_if(|left| *left == 0).is_some() {
            return Err(Error::other("input/output error"));
        }
        if let Some(left) = &mut self.error_in {
            *left -= 1;
        }
        Ok(())
    }

    fn put(&mut self, path: &Path, inode: usize) {
        self.names.insert(path.to_owned(), inode);
        self.changes.push(Change::Put(path.to_owned(), inode));
    }

    fn place(&self, path: &Path) -> Result<usize> {
        self.names.get(path).copied().ok_or_else(|| Error::from(ErrorKind::NotFound))
    }

    /// A file that is there from the beginning.
    pub(crate) fn put_file(&mut self, path: &str, data: Vec<u8>) {
        self.inodes.push(Inode { synced: data.clone(), data });
        self.names.insert(PathBuf::from(path), self.inodes.len() - 1);
        self.durable.clone_from(&self.names);
    }

    pub(crate) fn read(&mut self, path: &Path) -> Result<Vec<u8>> {
        let place = self.place(path)?;
        self.fails()?;
        Ok(self.inodes[place].data.clone())
    }

    pub(crate) fn open(&mut self, path: &Path, empty: bool) -> Result<usize> {
        self.fails()?;
        let place = self.place(path).unwrap_or_else(|_| {
            self.inodes.push(Inode::default());
            let place = self.inodes.len() - 1;
            self.put(path, place);
            place
        });
        if empty {
            self.inodes[place].data.clear();
        }
        Ok(place)
    }

    pub(crate) fn write(&mut self, inode: usize, bytes: &[u8]) -> Result<()> {
        let failed = self.fails();
        let room = self.room.unwrap_or(usize::MAX);
        let fits = bytes.len().min(room);
        let part = if failed.is_err() { fits / 2 } else { fits };
        self.inodes[inode].data.extend_from_slice(&bytes[..part]);
        if let Some(room) = &mut self.room {
            *room -= part;
        }
        failed?;
        if part < bytes.len() { Err(Error::from(ErrorKind::StorageFull)) } else { Ok(()) }
    }

    pub(crate) fn cut(&mut self, inode: usize, length: usize) -> Result<()> {
        self.fails()?;
        if !self.never_cuts {
            self.inodes[inode].data.truncate(length);
        }
        Ok(())
    }

    pub(crate) fn sync(&mut self, inode: usize) -> Result<()> {
        self.fails()?;
        if !self.lies {
            self.inodes[inode].synced = self.inodes[inode].data.clone();
        }
        Ok(())
    }

    pub(crate) fn sync_dir(&mut self, dir: &Path) -> Result<()> {
        self.fails()?;
        // As a journal does it: everything before, whatever it was about.
        if !self.lies && !dir.starts_with("/run") {
            self.durable.clone_from(&self.names);
            self.changes.clear();
        }
        Ok(())
    }

    pub(crate) fn rename(&mut self, from: &Path, to: &Path) -> Result<()> {
        let place = self.place(from)?;
        self.fails()?;
        self.names.remove(from);
        self.names.insert(to.to_owned(), place);
        self.changes.push(Change::Moved(from.to_owned(), to.to_owned()));
        Ok(())
    }

    pub(crate) fn remove(&mut self, path: &Path) -> Result<()> {
        self.place(path)?;
        self.fails()?;
        self.names.remove(path);
        self.changes.push(Change::Gone(path.to_owned()));
        Ok(())
    }

    pub(crate) fn exists(&self, path: &Path) -> bool {
        self.names.contains_key(path)
    }

    pub(crate) fn names(&self, dir: &Path) -> Vec<std::ffi::OsString> {
        let inside = self.names.keys().filter(|path| path.parent() == Some(dir));
        inside.filter_map(|path| path.file_name().map(ToOwned::to_owned)).collect()
    }

    /// The power goes: of what was not synced a part is left, in the order in which it was done.
    pub(crate) fn lose_power(&mut self, chance: &mut Chance) {
        let kept = chance.place(self.changes.len() + 1);
        let mut names = std::mem::take(&mut self.durable);
        for change in self.changes.drain(..).take(kept) {
            match change {
                Change::Put(path, inode) => names.insert(path, inode),
                Change::Gone(path) => names.remove(&path),
                Change::Moved(from, to) => {
                    names.remove(&from).and_then(|inode| names.insert(to, inode))
                }
            };
        }
        names.retain(|path, _| !path.starts_with("/run"));
        for inode in &mut self.inodes {
            if inode.data != inode.synced {
                let mut left = inode.data.clone();
                left.truncate(chance.place(left.len() + 1));
                inode.data = if chance.one_in(3) { inode.synced.clone() } else { left };
                inode.synced.clone_from(&inode.data);
            }
        }
        self.names = names.clone();
        self.durable = names;
    }
}
