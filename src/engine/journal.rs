//! Files of lines that are rotated while they are read: the logs of containers and the events.
//!
//! `NAME` is the newest file, `NAME.1` the one before it, and so on; a rotation renames upwards and never
//! changes what is inside. Invariant: a follower gives every line once and in order as long as it sees a
//! file before that is rotated away; if it does not, it says so ([`Chunk::Lost`]).
//!
//! Files are known by their inodes. The follower keeps the newest file that it knows open, so that its
//! inode cannot come back under another file.

use std::collections::VecDeque;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use fs_err::File;
use fs_err::os::unix::fs::OpenOptionsExt;
use rustix::fs::OFlags;

/// Read at once; a line that is longer than this is read in several steps.
const CHUNK_BYTES: usize = 128 << 10;
/// No line that we write comes near; a file with a longer one is not ours.
const LINE_BYTES_MAX: usize = 1 << 20;
/// Files that are open at once; each costs a descriptor, and 1024 is the usual limit.
const FILES_OPEN_MAX: usize = 512;

/// Looks before a flood is left to itself for a moment: one takes some microseconds, a rotation at least a hundred.
const LOOKS_MAX: usize = 8;

/// Names a journal on disk.
#[derive(Debug, Clone)]
pub struct Journal {
    pub directory: PathBuf,
    pub name: &'static str,
    /// How many files there are at most, the newest included.
    pub files_max: u32,
}

/// Is what a reader gets.
#[derive(Debug, PartialEq, Eq)]
pub enum Chunk<'a> {
    /// Whole lines, each with its newline.
    Lines(&'a [u8]),
    /// Files were rotated away before they were seen: lines are missing here.
    Lost,
    /// There is no more at this moment.
    End,
}

/// Reads a journal from its oldest line, or from one near its end.
pub struct Reader {
    journal: Journal,
    files: VecDeque<File>,
    /// Bytes that were read and not given out: the beginning of a line.
    rest: Vec<u8>,
    given: usize,
    /// Without following, the newest file is read only as far as it had come at the beginning.
    end_of_newest: Option<u64>,
    position: u64,
    follow: bool,
    lost: bool,
}

impl Journal {
    fn path(&self, number: u32) -> PathBuf {
        match number {
            0 => self.directory.join(self.name),
            number => self.directory.join(format!("{}.{number}", self.name)),
        }
    }

    /// Starts at the oldest line; a journal that does not exist yet is empty.
    ///
    /// Files whose last change lies before `since` are left out.
    pub fn read(&self, follow: bool, since: Option<SystemTime>) -> io::Result<Reader> {
        let mut files = VecDeque::new();
        self.newer_than(None, &mut files)?;
        if let Some(since) = since {
            let old = |file: &File| file.metadata().and_then(|meta| meta.modified()).is_ok_and(|time| time < since);
            while files.len() > 1 && files.front().is_some_and(old) {
                files.pop_front();
            }
        }
        let end_of_newest = match files.back() {
            Some(newest) if !follow => Some(newest.metadata()?.len()),
            _ => None,
        };
        let (rest, journal) = (Vec::new(), self.clone());
        Ok(Reader { journal, files, rest, given: 0, end_of_newest, position: 0, follow, lost: false })
    }

    /// Starts so that `lines` lines are left before the end.
    pub fn read_tail(&self, follow: bool, lines: usize) -> io::Result<Reader> {
        let mut reader = self.read(follow, None)?;
        let mut wanted = lines;
        let mut first = reader.files.len();
        let mut start = 0;
        let newest = reader.end_of_newest;
        for (at, file) in reader.files.iter().enumerate().rev() {
            let end = match newest {
                Some(end) if at + 1 == reader.files.len() => end,
                _ => file.metadata()?.len(),
            };
            (first, start) = (at, start_of_last(file, end, &mut wanted)?);
            if wanted == 0 {
                break;
            }
        }
        // Without any file there is nothing to skip.
        if first < reader.files.len() {
            reader.files.drain(..first);
            if let Some(file) = reader.files.front_mut() {
                file.seek(SeekFrom::Start(start))?;
                reader.position = start;
            }
        }
        Ok(reader)
    }

    /// Opens the files that are newer than a known one, oldest first; says whether the known one was met.
    fn newer_than(&self, known: Option<u64>, files: &mut VecDeque<File>) -> io::Result<bool> {
        self.steady(known, files, |_| ())
    }

    /// Does that; `seen` is called after each number. While a flood never lets it look in peace it finds nothing new.
    fn steady(&self, known: Option<u64>, files: &mut VecDeque<File>, mut seen: impl FnMut(u32)) -> io::Result<bool> {
        for _ in 0..LOOKS_MAX {
            if let Some(met) = self.scan(known, files, &mut seen)? {
                return Ok(met);
            }
        }
        Ok(true)
    }

    /// Looks once; `None` says that a rotation has ended meanwhile, and nothing was opened.
    ///
    /// Numbers only grow while this looks from 0 upwards, so a file can be met twice, but none is missed. A file that
    /// came after the first one would be met behind it, in a wrong place: the first one is the newest still at the end.
    fn scan(
        &self,
        known: Option<u64>,
        files: &mut VecDeque<File>,
        seen: &mut impl FnMut(u32),
    ) -> io::Result<Option<bool>> {
        let mut found: Vec<(u64, File)> = Vec::new();
        let mut met = known.is_none();
        let mut newest = None;
        for number in 0..self.files_max.max(2) {
            if found.len() >= FILES_OPEN_MAX {
                break;
            }
            let file = match open_own(&self.path(number)) {
                Ok(file) => file,
                // In the middle of a rotation any number can be missing.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let inode = file.metadata()?.ino();
            if number == 0 {
                newest = Some(inode);
            }
            if Some(inode) == known {
                met = true;
                break;
            }
            match found.iter().position(|(before, _)| *before == inode) {
                Some(at) => found.truncate(at + 1),
                None => found.push((inode, file)),
            }
            seen(number);
        }
        // It is open, here or by the caller, so that its inode has not come back under another file.
        if !found.is_empty() && self.newest()? != newest {
            return Ok(None);
        }
        files.extend(found.into_iter().rev().map(|(_, file)| file));
        Ok(Some(met))
    }

    fn newest(&self) -> io::Result<Option<u64>> {
        match fs_err::symlink_metadata(self.path(0)) {
            Ok(meta) => Ok(Some(meta.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Opens a file of ours and nothing that somebody put in its place: no link, no fifo, no file of another
/// user or with a second name (A44).
fn open_own(path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let mut options = fs_err::OpenOptions::new();
    let file = options.read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() || meta.uid() != rustix::process::geteuid().as_raw() || meta.nlink() > 1 {
        let text = format!("{} is not a file that coracle wrote", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(file)
}

impl Reader {
    /// Gives what comes next. After [`Chunk::End`] a follower may ask again.
    pub fn next(&mut self) -> io::Result<Chunk<'_>> {
        self.rest.drain(..self.given);
        self.given = 0;
        loop {
            if std::mem::take(&mut self.lost) {
                return Ok(Chunk::Lost);
            }
            if self.files.is_empty() && !(self.follow && self.look()?) {
                return Ok(Chunk::End);
            }
            if self.fill()? > 0 {
                match memrchr(&self.rest) {
                    Some(end) => {
                        self.given = end + 1;
                        return Ok(Chunk::Lines(&self.rest[..self.given]));
                    }
                    None if self.rest.len() > LINE_BYTES_MAX => {
                        return Err(io::Error::new(io::ErrorKind::InvalidData, "a line without end in a log"));
                    }
                    None => continue,
                }
            }
            // The end of this file. Only after a newer one is there does nothing come to it any more, so it is
            // asked once more after that was seen.
            if self.files.len() == 1 && !(self.follow && self.look()?) {
                return Ok(Chunk::End);
            }
            if self.fill()? == 0 {
                self.files.pop_front();
                self.position = 0;
                // Half a line at the end of a file was left by a writer that was killed.
                self.rest.clear();
            } else if let Some(end) = memrchr(&self.rest) {
                self.given = end + 1;
                return Ok(Chunk::Lines(&self.rest[..self.given]));
            }
        }
    }

    /// Looks for newer files; says whether there are any.
    fn look(&mut self) -> io::Result<bool> {
        let known = self.files.back().map(|file| file.metadata().map(|meta| meta.ino())).transpose()?;
        let before = self.files.len();
        let met = self.journal.newer_than(known, &mut self.files)?;
        self.lost |= !met && self.files.len() > before;
        Ok(self.files.len() > before)
    }

    fn fill(&mut self) -> io::Result<usize> {
        if self.follow && self.files.len() == 1 {
            // A flood rotates often: the next file is opened while it still exists.
            self.look()?;
        }
        let newest = self.files.len() == 1;
        let Some(file) = self.files.front_mut() else { return Ok(0) };
        let room = match self.end_of_newest {
            Some(end) if newest => usize::try_from(end.saturating_sub(self.position)).unwrap_or(CHUNK_BYTES),
            _ => CHUNK_BYTES,
        };
        let old = self.rest.len();
        self.rest.resize(old + room.min(CHUNK_BYTES), 0);
        let count = file.read(&mut self.rest[old..]);
        let count = count.inspect_err(|_| self.rest.truncate(old))?;
        self.rest.truncate(old + count);
        self.position += count as u64;
        Ok(count)
    }
}

fn memrchr(bytes: &[u8]) -> Option<usize> {
    bytes.iter().rposition(|byte| *byte == b'\n')
}

/// Finds where the last `wanted` lines before `end` begin, and takes what it found off `wanted`.
fn start_of_last(file: &File, end: u64, wanted: &mut usize) -> io::Result<u64> {
    if *wanted == 0 {
        return Ok(end);
    }
    let mut block = vec![0; CHUNK_BYTES];
    let (mut at, mut seen) = (end, 0);
    while at > 0 {
        let size = at.min(CHUNK_BYTES as u64);
        let part = &mut block[..usize::try_from(size).unwrap_or(CHUNK_BYTES)];
        file.file().read_exact_at(part, at - size)?;
        at -= size;
        for (offset, byte) in part.iter().enumerate().rev() {
            // The newline at the very end closes the last line; each earlier one lies before a line.
            if *byte == b'\n' && at + offset as u64 + 1 < end {
                seen += 1;
                if seen == *wanted {
                    *wanted = 0;
                    return Ok(at + offset as u64 + 1);
                }
            }
        }
    }
    *wanted -= if end > 0 { seen + 1 } else { 0 };
    Ok(0)
}

/// Wakes up when a file of a directory changes, where the kernel gives an inotify instance.
pub struct Watch(Option<std::os::fd::OwnedFd>);

impl Watch {
    /// Watches directories; without inotify the wait is just short.
    pub fn new(directories: &[&Path]) -> Self {
        use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};
        let Ok(inotify) = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK) else { return Self(None) };
        let flags = WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::DELETE;
        for directory in directories {
            // A directory that is not there yet is found by the time limit of the wait.
            let _ = add_watch(&inotify, *directory, flags);
        }
        Self(Some(inotify))
    }

    /// Waits for a change, but not longer than a while: a container's end shows in no file when its shim
    /// was killed.
    pub fn wait(&self) {
        /// Seen as "at once" by a person, and nothing to the machine.
        const WITH_INOTIFY_MS: i64 = 250;
        const WITHOUT_MS: i64 = 50;
        let time = |ms: i64| rustix::event::Timespec { tv_sec: 0, tv_nsec: ms * 1_000_000 };
        let Some(inotify) = &self.0 else {
            let _ = rustix::event::poll(&mut [], Some(&time(WITHOUT_MS)));
            return;
        };
        let mut polled = [rustix::event::PollFd::new(inotify, rustix::event::PollFlags::IN)];
        let _ = rustix::event::poll(&mut polled, Some(&time(WITH_INOTIFY_MS)));
        // What changed does not matter, only that something did.
        let mut events = [0u8; 4096];
        while rustix::io::read(inotify, &mut events).is_ok_and(|count| count > 0) {}
    }
}

#[cfg(test)]
mod tests;
