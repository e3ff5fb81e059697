//! Copies what is in a file, as cheaply as the filesystem can.
//!
//! Shared extents first (btrfs, XFS, bcachefs), then a copy inside the kernel, then a buffer of
//! fixed size. Holes stay holes. Offsets are always given, so no descriptor's position matters.

use std::os::fd::BorrowedFd;

use rustix::fs::{self, SeekFrom, Stat};
use rustix::io::{self, Errno};

/// What the last resort reads at once: large enough that system calls cost little.
const BUFFER_BYTES: usize = 128 << 10;
/// What the kernel copies in one call, so that a signal is answered between two of them.
const KERNEL_COPY_BYTES_MAX: usize = 64 << 20;
/// Unit of `st_blocks` (stat(2)).
const BLOCK_BYTES: i128 = 512;

/// Copies files and remembers what the filesystem cannot do.
#[derive(Debug)]
pub(crate) struct Copier {
    may_clone: bool,
    may_copy_in_kernel: bool,
    buffer: Vec<u8>,
}

impl Copier {
    /// Knows nothing about the filesystem yet.
    pub fn new() -> Copier {
        Copier { may_clone: true, may_copy_in_kernel: true, buffer: Vec::new() }
    }

    /// Copies all of `from`, which `stat` describes, into the empty file `to`.
    pub fn copy(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, stat: &Stat) -> Result<(), Errno> {
        let size_bytes = u64::try_from(stat.st_size).map_err(|_| Errno::INVAL)?;
        if size_bytes == 0 || self.clone_whole(from, to) {
            return Ok(());
        }
        if i128::from(stat.st_blocks) * BLOCK_BYTES >= i128::from(stat.st_size) {
            return self.copy_range(from, to, 0, size_bytes);
        }
        // Each round leaves a hole or data behind, so it ends with the file.
        let mut offset = 0;
        while offset < size_bytes {
            let (start, end) = match fs::seek(from, SeekFrom::Data(offset)) {
                Ok(start) => (start, fs::seek(from, SeekFrom::Hole(start))?),
                Err(Errno::NXIO) => break,
                // A filesystem that does not know about holes.
                Err(Errno::INVAL | Errno::OPNOTSUPP) => (offset, size_bytes),
                Err(errno) => return Err(errno),
            };
            self.copy_range(from, to, start, end.min(size_bytes))?;
            offset = end;
        }
        fs::ftruncate(to, size_bytes)
    }

    /// Lets `to` share the extents of `from`; `false` when they have to be copied.
    fn clone_whole(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> bool {
        if !self.may_clone {
            return false;
        }
        let outcome = fs::ioctl_ficlone(to, from);
        // Anything else may be about this one file, and copying it says what is wrong.
        self.may_clone = !matches!(outcome, Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::NOTTY | Errno::NOSYS));
        outcome.is_ok()
    }

    fn copy_range(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, start: u64, end: u64) -> Result<(), Errno> {
        let mut offset = start;
        while self.may_copy_in_kernel && offset < end {
            let want = usize::try_from(end - offset).unwrap_or(usize::MAX).min(KERNEL_COPY_BYTES_MAX);
            match fs::copy_file_range(from, Some(&mut offset.clone()), to, Some(&mut offset.clone()), want) {
                // Some filesystems say this instead of an error (copy_file_range(2), "BUGS").
                Ok(0) => break,
                Ok(copied) => offset += copied as u64,
                Err(Errno::INTR) => {}
                Err(Errno::XDEV | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL | Errno::PERM) => {
                    self.may_copy_in_kernel = false;
                }
                Err(errno) => return Err(errno),
            }
        }
        self.buffer.resize(BUFFER_BYTES, 0);
        while offset < end {
            let want = usize::try_from(end - offset).unwrap_or(usize::MAX).min(BUFFER_BYTES);
            let read = match io::pread(from, &mut self.buffer[..want], offset) {
                // Shorter than it was when it was looked at, which a layer never is.
                Ok(0) => return Err(Errno::STALE),
                Ok(read) => read,
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno),
            };
            write_all_at(to, &self.buffer[..read], offset)?;
            offset += read as u64;
        }
        Ok(())
    }
}

fn write_all_at(to: BorrowedFd<'_>, mut bytes: &[u8], mut offset: u64) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match io::pwrite(to, bytes, offset) {
            Ok(written) => {
                bytes = &bytes[written..];
                offset += written as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use fs_err as fs;
    use std::os::fd::AsFd;
    use std::os::unix::fs::{FileExt, MetadataExt};

    /// Two pieces of data that are no multiple of any block or buffer, and holes around them.
    fn source(dir: &std::path::Path) -> fs::File {
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(dir.join("from"))
            .expect("create");
        file.file().write_all_at(&vec![b'a'; 300_001], 0).expect("write");
        file.file().write_all_at(&[b'b'; 77], 4 << 20).expect("write");
        file.set_len(8 << 20).expect("truncate");
        file
    }

    fn check(mut copier: Copier) {
        let dir = tempfile::tempdir().expect("temp dir");
        let from = source(dir.path());
        let stat = super::fs::fstat(from.as_fd()).expect("stat");
        let to = fs::File::create(dir.path().join("to")).expect("create");
        copier.copy(from.as_fd(), to.as_fd(), &stat).expect("copy");
        assert!(
            fs::read(dir.path().join("to")).expect("read") == fs::read(dir.path().join("from")).expect("read"),
            "{copier:?}"
        );
        let blocks = to.metadata().expect("stat").blocks();
        assert!(
            blocks <= 2 * from.metadata().expect("stat").blocks(),
            "{copier:?}: holes were filled: {blocks} blocks"
        );
    }

    #[test]
    fn copies_by_every_way_and_keeps_holes() {
        check(Copier::new());
        check(Copier { may_clone: false, ..Copier::new() });
        check(Copier { may_clone: false, may_copy_in_kernel: false, ..Copier::new() });
    }
}
