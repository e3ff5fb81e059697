//! Memory of this process.

use std::ops::Range;

/// madvise(2) with MADV_DONTNEED on pages of a file that were never written.
///
/// `pages` must come from a mapping without private copies: the next access reads the same bytes from
/// the file again.
pub(crate) fn forget(pages: &Range<usize>) {
    let start = std::ptr::without_provenance_mut(pages.start);
    // SAFETY: nothing is lost, because the caller found no private copy of any page in the range and
    // no thread but this one exists that could have made one since; a wrong range is refused.
    unsafe { libc::madvise(start, pages.len(), libc::MADV_DONTNEED) };
}

/// malloc_trim(3): gives free memory of the allocator back to the kernel. A C library without it keeps it.
pub(crate) fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it touches free memory of the allocator only, under the allocator's own lock.
    unsafe {
        libc::malloc_trim(0);
    }
}
