//! Memory of this process.

use std::ops::Range;

use rustix::event::{PollFd, Timespec, poll};
use rustix::io::Errno;
use rustix::mm::{Advice, madvise};

use super::clone::{EXIT_BROKEN, exit_now, is_single_threaded};

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

/// madvise(2) with MADV_DONTNEED on the segments of this program that are mapped without write permission.
///
/// Only while the process has one thread. Whatever runs next, this function first of all, comes back
/// from the page cache.
pub(crate) fn forget_program_segments() {
    extern "C" fn one(info: *mut libc::dl_phdr_info, _: usize, _: *mut libc::c_void) -> i32 {
        // SAFETY: dl_iterate_phdr(3) gives a description that is valid during the call.
        let info = unsafe { &*info };
        // SAFETY: the description names this many program headers in memory.
        let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
        for header in headers.iter().filter(|header| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0)
        {
            let (Ok(base), Ok(at), Ok(size)) =
                (usize::try_from(info.dlpi_addr), usize::try_from(header.p_vaddr), usize::try_from(header.p_memsz))
            else {
                continue;
            };
            let start = base.wrapping_add(at);
            // The kernel maps whole pages; a segment that may be written begins on a page of its own.
            let page = start & !(PAGE_BYTES - 1);
            forget(&(page..start + size));
        }
        // The first entry is the program; there is no other in a static one.
        1
    }
    // SAFETY: `one` keeps nothing and unwinds nowhere.
    unsafe { libc::dl_iterate_phdr(Some(one), std::ptr::null_mut()) };
}

/// The least page size; madvise(2) refuses a start that is no multiple of a larger one, and nothing happens.
const PAGE_BYTES: usize = 4096;

/// madvise(2) with MADV_DONTNEED on the part of the stack that no function uses now, from `low` on.
///
/// `low` is the beginning of the stack's mapping; a wrong one is refused or does nothing.
pub(crate) fn forget_unused_stack(low: usize) {
    /// More than the frames of this function and the system call below it.
    const USED_BYTES: usize = 64 * 1024;
    let here = 0_u8;
    let unused = below(&here, USED_BYTES, low);
    let start = std::ptr::without_provenance_mut(unused.start);
    // SAFETY: the stack grows downwards and this process has one thread and no signal handler, so nothing
    // below the frame of this function, and far below it, is in use; the next use reads zeroes first.
    unsafe { libc::madvise(start, unused.len(), libc::MADV_DONTNEED) };
}

/// Gives the whole pages of the stack that lie this far below a variable of the caller, from `low` on.
///
/// madvise(2) rounds a length up, so an end that is on no page boundary would take the page that is in use.
#[inline(always)]
fn below(here: &u8, used_bytes: usize, low: usize) -> Range<usize> {
    let end = std::ptr::from_ref(here).addr().saturating_sub(used_bytes) & !(PAGE_BYTES - 1);
    low..end.max(low)
}

/// Runs the rest of this process, whose callers are never returned to, and gives back the stack that they had.
///
/// `work` is all that it needs of them: it is on the heap, and a `'static` closure borrows from no frame.
#[inline(never)]
pub(crate) fn end_in(work: Box<dyn FnOnce() -> i32>) -> ! {
    /// More than the frame of this function.
    const USED_BYTES: usize = if cfg!(debug_assertions) { 8 } else { 4 } * 1024;
    let here = 0_u8;
    let first = (std::ptr::from_ref(&here).addr() + USED_BYTES).next_multiple_of(PAGE_BYTES);
    // What the kernel put there, arguments and environment, is above.
    let last = stack_start().unwrap_or(0) & !(PAGE_BYTES - 1);
    if last > first && is_single_threaded() {
        let start = std::ptr::without_provenance_mut(first);
        // SAFETY: the frames in this range belong to functions that are never returned to, because this one does not
        // return and catches what unwinds, and nothing that still runs borrows from them: `work` is 'static.
        unsafe { libc::madvise(start, last - first, libc::MADV_DONTNEED) };
    }
    let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or(EXIT_BROKEN);
    exit_now(code)
}

/// Gives the address at which the stack of this program began (proc_pid_stat(5), startstack).
fn stack_start() -> Option<usize> {
    /// Its place among the fields behind the program's name, the first of which is the state.
    const FIELD: usize = 25;
    let stat = fs_err::read_to_string("/proc/self/stat").ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(FIELD)?.parse().ok()
}

/// madvise(2) as in [`forget`] and [`forget_unused_stack`], and poll(2) right after it.
///
/// One function, so that the instructions which the process sleeps in are on one page.
#[inline(never)]
pub(crate) fn forget_and_poll(
    program: &[Range<usize>],
    stack: Option<usize>,
    fds: &mut [PollFd<'_>],
    timeout: Option<&Timespec>,
) -> Result<usize, Errno> {
    /// More than the frames of this function and, in a build without optimisation, of what is inlined into it else.
    const USED_BYTES: usize = if cfg!(debug_assertions) { 8 } else { 4 } * 1024;
    let here = 0_u8;
    let stack = stack.map(|low| below(&here, USED_BYTES, low));
    for pages in program.iter().cloned().chain(stack) {
        let start = std::ptr::without_provenance_mut(pages.start);
        // SAFETY: as in `forget` for pages of the program, and as in `forget_unused_stack` for the stack.
        let _ = unsafe { madvise(start, pages.len(), Advice::LinuxDontNeed) };
    }
    poll(fds, timeout)
}

/// Gives the pages that [`forget_and_poll`] is on: while they stay nothing has to come back for its end, and what
/// comes back brings its neighbours along (16 pages, the kernel's fault_around_bytes).
pub(crate) fn sleeping_pages() -> Range<usize> {
    let start = (forget_and_poll as *const ()).addr() & !(PAGE_BYTES - 1);
    start..start + 2 * PAGE_BYTES
}

/// malloc_trim(3): gives free memory of the allocator back to the kernel. A C library without it keeps it.
pub(crate) fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it touches free memory of the allocator only, under the allocator's own lock.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_of_the_stack_that_is_in_use_stays() {
        let here = 0_u8;
        let at = std::ptr::from_ref(&here).addr();
        for used in [4096, 5000, 8192, 65_536] {
            let unused = below(&here, used, 4096);
            // Rounded up to whole pages, as madvise(2) does, it still ends before what is used.
            let end = unused.start + unused.len().next_multiple_of(PAGE_BYTES);
            assert!(end <= at - used, "{unused:x?} {at:x}");
        }
        assert!(below(&here, 4096, usize::MAX - 4095).is_empty());
    }
}
