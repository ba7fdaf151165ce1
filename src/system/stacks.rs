//! Stacks for children that share our memory until their exec.
//!
//! A child has a stack of its own, below a page that nobody may touch. It and all that the child was
//! given stay as they are until the child has left our memory, by exec or by its end: the kernel
//! says so by a zero in [`Berth::there`], as for the end of a thread (`CLONE_CHILD_CLEARTID`), and a
//! child that was reaped is gone in any case. What nobody ever said to be free stays for ever.
#![expect(unsafe_code, reason = "maps memory")]

use std::cell::Cell;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::child::{BORN, Start};

/// Most children that are on their way to their exec with our memory; more get a copy of it.
pub(super) const STACKS: usize = 64;
/// Bytes from one stack to the next: all that the child calls needs less than a tenth.
const STRIDE: usize = 64 * 1024;
/// Bytes below each that nobody may touch: a page, where stacks are used at all.
const GUARD: usize = 4 * 1024;
/// So many stacks keep their pages when nobody uses them.
const KEPT: usize = 2;

/// All stacks. They are mapped when the first one is needed, and never unmapped.
#[derive(Debug, Default)]
pub(super) struct Stacks {
    base: Option<NonNull<u8>>,
    used: Vec<Option<Rc<Berth>>>,
    /// How many have had a user since their pages were given back.
    touched: usize,
}

/// A child's place.
#[derive(Debug)]
pub(super) struct Berth {
    pub(super) start: Start,
    /// The lowest address of the stack.
    pub(super) stack: *mut u8,
    pub(super) bytes: usize,
    /// Zero once the child cannot use our memory any more; before, what it is, `child.rs`.
    pub(super) there: AtomicU32,
    /// Its number, once it has one.
    pub(super) pid: Cell<i32>,
}

impl Stacks {
    /// A place for a child; what it starts with comes back where there is none.
    pub(super) fn take(&mut self, start: Start) -> Result<Rc<Berth>, Start> {
        self.look();
        let free = self.used.iter().position(Option::is_none).unwrap_or(self.used.len());
        let Some(base) = self.base().filter(|_| free < STACKS) else { return Err(start) };
        let stack = base.as_ptr().wrapping_add(free.saturating_mul(STRIDE)).wrapping_add(GUARD);
        let bytes = STRIDE.saturating_sub(GUARD);
        if free >= self.used.len() {
            if !is_usable(stack, bytes) {
                return Err(start);
            }
            self.used.push(None);
        }
        let berth =
            Rc::new(Berth { start, stack, bytes, there: AtomicU32::new(BORN), pid: Cell::new(0) });
        if let Some(place) = self.used.get_mut(free) {
            *place = Some(Rc::clone(&berth));
        }
        self.touched = self.touched.max(free.saturating_add(1));
        Ok(berth)
    }

    /// Takes back the places of those who have left.
    pub(super) fn look(&mut self) {
        for place in &mut self.used {
            // What the child did with our memory came before.
            if place.as_ref().is_some_and(|berth| berth.there.load(Ordering::Acquire) == 0) {
                *place = None;
            }
        }
        if self.touched > KEPT && self.used.iter().all(Option::is_none) {
            self.give_back();
        }
    }

    /// A child was reaped. Of one that dumped core the kernel says nothing else.
    pub(super) fn gone(&mut self, pid: i32) {
        for berth in self.used.iter().flatten().filter(|berth| berth.pid.get() == pid) {
            berth.there.store(0, Ordering::Release);
        }
        self.look();
    }

    /// The pages of many starts at once are of no more use.
    fn give_back(&mut self) {
        let Some(base) = self.base else { return };
        let from = base.as_ptr().wrapping_add(KEPT.saturating_mul(STRIDE));
        let bytes = self.touched.saturating_sub(KEPT).saturating_mul(STRIDE);
        // SAFETY: the range is of our mapping, and nobody uses a stack in it.
        if unsafe { libc::madvise(from.cast(), bytes, libc::MADV_DONTNEED) } < 0 {
            log::debug!("cannot give back stacks: {}", std::io::Error::last_os_error());
        }
        self.touched = KEPT;
    }

    fn base(&mut self) -> Option<NonNull<u8>> {
        if self.base.is_none() {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            let bytes = STACKS.saturating_mul(STRIDE);
            let null = std::ptr::null_mut();
            // SAFETY: a new mapping at a place of the kernel's choice takes nothing from anybody.
            let base = unsafe { libc::mmap(null, bytes, libc::PROT_NONE, flags, -1, 0) };
            self.base = (base != libc::MAP_FAILED).then(|| NonNull::new(base.cast())).flatten();
        }
        self.base
    }
}

impl Drop for Stacks {
    fn drop(&mut self) {
        self.look();
        for berth in self.used.drain(..).flatten() {
            // Its child may use it still: it is nobody's from now on.
            let _forgotten = Rc::into_raw(berth);
        }
    }
}

/// Makes a stack of what nobody could touch.
fn is_usable(stack: *mut u8, bytes: usize) -> bool {
    // SAFETY: the range is of our mapping, and nobody uses it yet.
    let done = unsafe { libc::mprotect(stack.cast(), bytes, libc::PROT_READ | libc::PROT_WRITE) };
    done == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::child::{Pointers, Prepared};

    fn start() -> Start {
        let prepared = Rc::new(Prepared::default());
        let pointers = Pointers::of(&prepared);
        Start { prepared, pointers, gate: -1, other: -1, descriptors_end: None, reset: 0 }
    }

    #[test]
    fn a_stack_is_free_when_its_child_has_left() {
        let mut stacks = Stacks::default();
        let all: Vec<Rc<Berth>> = (0..STACKS).map(|_| stacks.take(start()).unwrap()).collect();
        assert!(stacks.take(start()).is_err(), "there is none left");
        let mut places: Vec<*mut u8> = all.iter().map(|berth| berth.stack).collect();
        places.dedup();
        assert_eq!(places.len(), STACKS);
        all[7].there.store(0, Ordering::Release);
        let next = stacks.take(start()).unwrap();
        assert_eq!(next.stack, all[7].stack);
        all[3].pid.set(42);
        stacks.gone(42);
        assert!(stacks.used[3].is_none() && stacks.used[4].is_some());
        for berth in all.iter().chain([&next]) {
            berth.there.store(0, Ordering::Release);
        }
        stacks.look();
        assert!(stacks.used.iter().all(Option::is_none));
        assert_eq!(stacks.touched, KEPT);
        assert_eq!(stacks.take(start()).unwrap().stack, all[0].stack);
    }
}
