//! What this process keeps in memory, and what it gives back.
#![expect(unsafe_code, reason = "advice to the allocator and to the kernel")]

use std::ffi::c_void;
use std::ops::Range;

use crate::model::Span;

/// How long nothing is asked and nothing changes before the program's pages are let go of.
pub const LET_GO_AFTER: Span = Span::seconds(1);

/// Lets large blocks of memory come from the kernel and go back to it, always: else the allocator
/// keeps what was once needed for a moment. All threads share what it keeps.
pub fn keep_memory_small() {
    /// Bytes from which on a block is large: the allocator's own default, which is not raised then.
    #[cfg(target_env = "gnu")]
    const LARGE: libc::c_int = 128 * 1024;
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [(libc::M_MMAP_THRESHOLD, LARGE), (libc::M_ARENA_MAX, 1)] {
        // SAFETY: changes a number of the allocator.
        if unsafe { libc::mallopt(parameter, value) } == 0 {
            log::debug!("the allocator takes no advice");
        }
    }
}

/// Gives blocks that are not used back to the kernel.
pub fn give_back_memory() {
    // SAFETY: the allocator looks at its own free blocks.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0)
    };
}

/// Lets go of free blocks, and of the pages of the program itself. These stay in the kernel's page cache, as what it drops
/// first when memory is short, and each comes back when it is needed: for a fault of about a microsecond
/// and 64 KiB, where it is still there. What is mapped counts as ours, and the kernel clings to it.
///
/// A break point that a debugger has set in them goes with them, madvise(2), `MADV_DONTNEED`.
pub fn become_lean() {
    give_back_memory();
    for pages in program() {
        let start = std::ptr::without_provenance_mut::<c_void>(pages.start);
        // SAFETY: pages of a file that nobody can write to through this mapping: the kernel reads the same
        // bytes again.
        if unsafe { libc::madvise(start, pages.len(), libc::MADV_DONTNEED) } < 0 {
            log::debug!("cannot let go of the program: {}", std::io::Error::last_os_error());
        }
    }
}

/// The addresses of the program's whole pages of which all are as in its file: code and constants.
fn program() -> Vec<Range<usize>> {
    let mut found = Vec::new();
    // SAFETY: `note` is called before this returns, and with what it expects.
    let _stopped = unsafe { libc::dl_iterate_phdr(Some(note), (&raw mut found).cast()) };
    found
}

/// Notes the segments of the first object, which is the program, `dl_iterate_phdr(3)`; then ends the round.
///
/// # Safety
///
/// `info` is what the dynamic linker knows of an object, and `found` is a `Vec<Range<usize>>`.
unsafe extern "C" fn note(
    info: *mut libc::dl_phdr_info,
    _bytes: usize,
    found: *mut c_void,
) -> libc::c_int {
    // SAFETY: as the caller has promised.
    let info = unsafe { &*info };
    // SAFETY: likewise.
    let found = unsafe { &mut *found.cast::<Vec<Range<usize>>>() };
    // SAFETY: the linker has so many headers there.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
    let page = page_bytes();
    let address = |number| usize::try_from(number).unwrap_or(0);
    for header in headers {
        if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W != 0 {
            continue;
        }
        let start = address(info.dlpi_addr).wrapping_add(address(header.p_vaddr));
        let end = start.saturating_add(address(header.p_filesz)) / page * page;
        let start = start.next_multiple_of(page);
        if start < end {
            found.push(start..end);
        }
    }
    1
}

fn page_bytes() -> usize {
    // SAFETY: asks for a number.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(bytes).unwrap_or(0).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kibibytes of the program that are mapped.
    fn mapped(pages: &[Range<usize>]) -> u64 {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut is_ours = false;
        let mut sum = 0;
        for line in smaps.lines() {
            let first = line.split_ascii_whitespace().next().unwrap();
            if let Some((start, end)) = first.split_once('-') {
                let number = |text| usize::from_str_radix(text, 16);
                let (Ok(start), Ok(end)) = (number(start), number(end)) else { continue };
                is_ours = pages.iter().any(|pages| start <= pages.start && pages.end <= end);
            } else if is_ours && first == "Rss:" {
                sum += line.split_ascii_whitespace().nth(1).unwrap().parse::<u64>().unwrap();
            }
        }
        sum
    }

    #[test]
    fn what_was_let_go_of_is_mapped_no_more_and_runs_on() {
        let pages = program();
        let here = what_was_let_go_of_is_mapped_no_more_and_runs_on as *const () as usize;
        assert!(pages.iter().any(|pages| pages.contains(&here)), "{pages:x?}, {here:x}");
        // Each page is read, so that each is mapped.
        let smaps = mapped(&pages);
        assert!(smaps > 0);
        become_lean();
        let left = mapped(&pages);
        assert!(left < smaps, "{left} of {smaps} KiB");
    }
}
