//! Gives memory back while there is nothing to do but wait.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, Timespec};
use rustix::io::Errno;

use crate::sys;

/// Drops this program's clean pages from memory; those that are needed again come back from the page
/// cache. What stays is what the process has written and still uses.
///
/// Meant for a process that has started its container and now only waits for its end. Does nothing in
/// a process with threads.
pub fn release_program() {
    let threads = fs_err::read_dir("/proc/self/task").map_or(0, Iterator::count);
    if threads != 1 {
        return;
    }
    forget_program();
    // The parser of the command line alone leaves most of a MiB behind.
    trim_heap();
}

/// Whether [`step`] does anything.
static THRIFTY: AtomicBool = AtomicBool::new(false);

/// Lets [`step`] trade time for memory from now on: for a program whose own peak counts more than a fraction of a
/// millisecond.
pub fn be_thrifty() {
    THRIFTY.store(true, Ordering::Relaxed);
}

/// Drops the program's pages between two steps that use different parts of it, so that the peak is that
/// of the larger step and not the sum. Costs some tens of microseconds; what is used again comes back
/// from the page cache.
///
/// Only pages that nothing ever wrote to, of this process alone; nothing before [`be_thrifty`].
pub fn step() {
    if THRIFTY.load(Ordering::Relaxed) && sys::is_single_threaded() {
        sys::forget_program_segments();
    }
}

/// Waits as poll(2) does, for a wait that may be long: gives back everything that [`release_program`] does and
/// calls the kernel from the same few instructions, so that hardly a page of the program is there meanwhile.
///
/// # Errors
/// Those of poll(2).
pub fn rest(fds: &mut [PollFd<'_>], timeout: Option<&Timespec>) -> Result<usize, Errno> {
    let threads = fs_err::read_dir("/proc/self/task").map_or(0, Iterator::count);
    let unneeded = if threads == 1 { unneeded() } else { Unneeded::default() };
    let asleep = sys::sleeping_pages();
    let program: Vec<Range<usize>> =
        unneeded.program.iter().flat_map(|pages| without(pages, &asleep)).filter(|pages| !pages.is_empty()).collect();
    trim_heap();
    sys::forget_and_poll(&program, unneeded.stack, fds, timeout)
}

/// Gives what is before and behind a hole.
fn without(pages: &Range<usize>, hole: &Range<usize>) -> [Range<usize>; 2] {
    [pages.start..pages.end.min(hole.start), pages.start.max(hole.end)..pages.end]
}

/// Is what a process that waits does not need.
#[derive(Default)]
struct Unneeded {
    program: Vec<Range<usize>>,
    /// Where the stack's mapping begins; the set-up used far more of it than waiting does.
    stack: Option<usize>,
}

fn unneeded() -> Unneeded {
    let Ok(program) = fs_err::read_link("/proc/self/exe") else { return Unneeded::default() };
    let Ok(smaps) = fs_err::read_to_string("/proc/self/smaps") else { return Unneeded::default() };
    let stack = smaps.lines().find(|line| line.ends_with("[stack]")).and_then(mapping);
    Unneeded { program: clean_mappings(&smaps, &program.to_string_lossy()), stack: stack.map(|(pages, _)| pages.start) }
}

fn forget_program() {
    let unneeded = unneeded();
    for pages in &unneeded.program {
        sys::forget(pages);
    }
    if let Some(low) = unneeded.stack {
        sys::forget_unused_stack(low);
    }
}

/// Gives what the allocator holds but nobody uses back to the kernel.
pub fn trim_heap() {
    sys::trim_heap();
}

/// Lists the mappings of a file that hold no page of this process's own (proc_pid_smaps(5)).
fn clean_mappings(smaps: &str, file: &str) -> Vec<Range<usize>> {
    let mut found: Vec<Range<usize>> = Vec::new();
    for line in smaps.lines() {
        if let Some((range, rest)) = mapping(line) {
            if rest.ends_with(file) && rest.starts_with("r-") {
                found.push(range);
            } else {
                // An empty range stands for a mapping that is not looked at.
                found.push(0..0);
            }
        } else if let Some(size) = line.strip_prefix("Anonymous:")
            && size.trim() != "0 kB"
            && let Some(last) = found.last_mut()
        {
            *last = 0..0;
        }
    }
    found.retain(|range| !range.is_empty());
    found
}

/// Reads the head line of a mapping: `start-end perms offset device inode path`.
fn mapping(line: &str) -> Option<(Range<usize>, &str)> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let number = |text| usize::from_str_radix(text, 16).ok();
    Some((number(start)?..number(end)?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_read_only_mappings_without_copies() {
        let smaps = "1000-2000 r--p 0 08:01 7 /bin/x\nAnonymous: 0 kB\n\
                     2000-5000 r-xp 1000 08:01 7 /bin/x\nRss: 4 kB\nAnonymous:             0 kB\n\
                     5000-6000 r--p 4000 08:01 7 /bin/x\nAnonymous:             4 kB\n\
                     6000-7000 rw-p 5000 08:01 7 /bin/x\nAnonymous: 0 kB\n\
                     8000-9000 r-xp 0 08:01 9 /bin/other\nAnonymous: 0 kB\n";
        assert_eq!(clean_mappings(smaps, "/bin/x"), [0x1000..0x2000, 0x2000..0x5000]);
    }

    #[test]
    fn a_hole_splits_a_range_or_leaves_it() {
        let check = |(start, end): (usize, usize), expected: &[(usize, usize)]| {
            let parts = without(&(start..end), &(10..20)).into_iter().filter(|part| !part.is_empty());
            assert_eq!(parts.map(|part| (part.start, part.end)).collect::<Vec<_>>(), expected, "{start}..{end}");
        };
        check((0, 30), &[(0, 10), (20, 30)]);
        check((0, 5), &[(0, 5)]);
        check((25, 30), &[(25, 30)]);
        check((12, 18), &[]);
        check((12, 30), &[(20, 30)]);
        check((5, 15), &[(5, 10)]);
    }

    #[test]
    fn the_program_goes_on() {
        release_program();
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        let now = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
        let mut fds = [PollFd::new(&reader, rustix::event::PollFlags::IN)];
        assert_eq!(rest(&mut fds, Some(&now)), Ok(0));
        assert!(std::env::args().count() > 0);
    }
}
