//! The limit of last resort: looks again and again how much there is, and kills the container when it is too much.
//!
//! It is soft: between two looks a program writes what it can. Killing, not stopping, because a call that is under
//! way goes on under SIGSTOP.

use std::collections::HashSet;
use std::fs::File;
use std::io::Result;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, statat};
use rustix::process::{Signal, pidfd_send_signal};

use super::usage::{Phase, Usage};

/// How long it rests at least between two looks.
const PAUSE: Duration = Duration::from_millis(100);
/// A look at many files takes long; resting this many times as long bounds what it costs.
const PAUSE_FACTOR: u32 = 4;
/// Deeper than PATH_MAX allows anybody to reach by name.
const DEPTH_MAX: usize = 2048;

/// Is what was counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Measured {
    /// What is allocated, hard links once.
    pub bytes: u64,
    /// How many inodes there are.
    pub inodes: u64,
}

/// Watches directories until the container ends, which `init` tells.
pub fn watch(trees: &[OwnedFd], usage: &File, (bytes, inodes): (u64, u64), init: &OwnedFd) -> Result<()> {
    loop {
        let begin = Instant::now();
        let found = measure(trees);
        let exceeded = found.bytes > bytes || found.inodes > inodes;
        let report = |phase| {
            let (limit_bytes, limit_inodes, takeovers) = (bytes, inodes, 0);
            let (used_bytes, used_inodes) = (found.bytes, found.inodes);
            Usage { phase, limit_bytes, used_bytes, limit_inodes, used_inodes, takeovers }.write(usage)
        };
        if exceeded {
            // It may have ended by itself.
            let _ = pidfd_send_signal(init, Signal::KILL);
            return report(Phase::Exceeded);
        }
        let pause = PAUSE.max(begin.elapsed() * PAUSE_FACTOR);
        report(Phase::Serving)?;
        if has_ended(init, pause) {
            return report(Phase::Ended);
        }
    }
}

fn has_ended(init: &OwnedFd, pause: Duration) -> bool {
    let pause = Timespec::try_from(pause).ok();
    matches!(poll(&mut [PollFd::new(init, PollFlags::IN)], pause.as_ref()), Ok(1..))
}

/// Counts what is below directories, and them; what comes and goes meanwhile counts or does not.
pub fn measure(trees: &[OwnedFd]) -> Measured {
    let mut measured = Measured::default();
    let mut seen = HashSet::new();
    for tree in trees {
        below(tree, &mut measured, &mut seen, 0);
    }
    measured
}

fn below(dir: &OwnedFd, measured: &mut Measured, seen: &mut HashSet<u64>, depth: usize) {
    if let Ok(stat) = rustix::fs::fstat(dir) {
        measured.bytes = measured.bytes.saturating_add(u64::try_from(stat.st_blocks).unwrap_or(0) * 512);
        measured.inodes += 1;
    }
    let Ok(entries) = Dir::read_from(dir) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_name() != c"." && entry.file_name() != c"..") {
        let Ok(stat) = statat(dir, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) else { continue };
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match openat(dir, entry.file_name(), flags, Mode::empty()) {
                Ok(inner) if depth < DEPTH_MAX => below(&inner, measured, seen, depth + 1),
                _ => {}
            }
        } else if stat.st_nlink < 2 || seen.insert(stat.st_ino) {
            measured.bytes = measured.bytes.saturating_add(u64::try_from(stat.st_blocks).unwrap_or(0) * 512);
            measured.inodes += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_counted_as_du_does() {
        let place = tempfile::tempdir().unwrap();
        fs_err::create_dir(place.path().join("inner")).unwrap();
        fs_err::write(place.path().join("inner/file"), [1; 100_000]).unwrap();
        fs_err::hard_link(place.path().join("inner/file"), place.path().join("again")).unwrap();
        std::os::unix::fs::symlink("..", place.path().join("up")).unwrap();
        let dir: OwnedFd = fs_err::File::open(place.path()).unwrap().into_file().into();
        let found = measure(&[dir]);
        assert_eq!(found.inodes, 4);
        assert!((100_000..200_000).contains(&found.bytes), "{found:?}");
    }
}
