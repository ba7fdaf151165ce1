//! Maps and sets of what an iterator gives.

/// Like [`Iterator::collect`], for maps and sets.
///
/// Theirs first makes a list and sorts it, and is compiled for each type with a sort of its own: five
/// kilobytes, of which there were eighty. What is there in order already is put in as fast one by one, but
/// leaves room to spare: large maps that stay as they are had better be collected.
pub trait Gather: Iterator + Sized {
    /// All of it, the last of those that are the same.
    fn gather<C: Default + Extend<Self::Item>>(self) -> C {
        let mut all = C::default();
        all.extend(self);
        all
    }
}

impl<I: Iterator> Gather for I {}
