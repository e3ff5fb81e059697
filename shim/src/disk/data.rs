//! What is in files: reading, writing, allocating, and the charges for it.

use std::ffi::CStr;
use std::fs::File;
use std::io::Result;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::{
    FallocateFlags, Mode, SeekFrom, XattrFlags, fallocate, fchmod, fdatasync, fgetxattr, fsetxattr, fstat, fsync,
    ftruncate, seek,
};
use rustix::io::Errno;

use super::account::{PAGE_BLOCKS, PAGE_BYTES, worst_case};
use super::passthrough::Passthrough;

/// FUSE_WRITE_CACHE of linux/fuse.h: pages that somebody changed through a mapping, which takes no rights from a file.
const WRITE_CACHE: u32 = 1 << 0;
/// What a file may do for whoever executes it; write(2) takes it from the file, for us as for everybody.
const CAPABILITY: &CStr = c"security.capability";
/// `struct vfs_ns_cap_data` of linux/capability.h has 24.
const CAPABILITY_BYTES_MAX: usize = 64;

impl Passthrough {
    pub(super) fn file(&self, id: u64) -> Result<Arc<File>> {
        // An open file is the same wherever its name is by now.
        if let Some(open) = self.nodes().open_file(id) {
            return Ok(open);
        }
        let _tree = self.read_tree();
        self.nodes().file(id)
    }

    /// Charges an open file for what it has now; the caller holds its stripe.
    pub(super) fn settle_file(&self, id: u64, file: &File) -> Result<()> {
        let blocks = fstat(file)?.st_blocks;
        self.settle(id, u64::try_from(blocks).unwrap_or(0));
        Ok(())
    }

    pub(super) fn read_file(&self, id: u64, to: &mut [u8], offset: u64) -> Result<usize> {
        self.file(id)?.read_at(to, offset)
    }

    pub(super) fn write_file(&self, id: u64, bytes: &[u8], offset: u64, flags: u32) -> Result<usize> {
        let file = self.file(id)?;
        let _stripe = self.stripe(id);
        let rights = if flags & WRITE_CACHE == 0 { None } else { Some(Rights::of(&file)?) };
        let written = self.write_charged(id, &file, bytes, offset);
        if let Some(rights) = rights {
            rights.restore(&file)?;
        }
        written
    }

    fn write_charged(&self, id: u64, file: &File, bytes: &[u8], offset: u64) -> Result<usize> {
        match self.account.reserve(worst_case(offset, bytes.len() as u64), 0) {
            Some(_room) => {
                let written = file.write_at(bytes, offset);
                self.settle_file(id, file)?;
                written
            }
            None => self.write_pages(id, file, bytes, offset),
        }
    }

    /// Writes page by page near the limit: what is allocated already may always be written over.
    fn write_pages(&self, id: u64, file: &File, bytes: &[u8], offset: u64) -> Result<usize> {
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let in_page = usize::try_from(PAGE_BYTES - at % PAGE_BYTES).unwrap_or(1);
            let end = bytes.len().min(done + in_page);
            let page = &bytes[done..end];
            let allocated = is_data(file, at);
            let room = match allocated {
                true => None,
                false => match self.reserve(worst_case(at, page.len() as u64), 0) {
                    Ok(room) => Some(room),
                    Err(_) if done > 0 => return Ok(done),
                    Err(error) => return Err(error),
                },
            };
            let written = file.write_at(page, at);
            self.settle_file(id, file)?;
            drop(room);
            match written {
                Ok(count) if count == page.len() => done = end,
                Ok(count) => return Ok(done + count),
                Err(_) if done > 0 => return Ok(done),
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    pub(super) fn truncate(&self, id: u64, size: u64) -> Result<()> {
        let file = self.file(id)?;
        let _stripe = self.stripe(id);
        // The page in which the new end lies may have to be written.
        let shorter = fstat(&*file)?.st_size.cast_unsigned() >= size;
        let _room = if shorter { None } else { Some(self.reserve(PAGE_BLOCKS, 0)?) };
        ftruncate(&*file, size)?;
        self.settle_file(id, &file)
    }

    pub(super) fn allocate(&self, id: u64, mode: u32, offset: u64, length: u64) -> Result<()> {
        let flags = FallocateFlags::from_bits_retain(mode);
        let file = self.file(id)?;
        let _stripe = self.stripe(id);
        let frees = flags.contains(FallocateFlags::PUNCH_HOLE);
        let _room = if frees { None } else { Some(self.reserve(worst_case(offset, length), 0)?) };
        let result = fallocate(&*file, flags, offset, length);
        self.settle_file(id, &file)?;
        Ok(result?)
    }

    pub(super) fn sync_file(&self, id: u64, data_only: bool) -> Result<()> {
        let file = self.file(id)?;
        if data_only {
            fdatasync(&*file)?
        } else {
            fsync(&*file)?
        }
        Ok(())
    }

    pub(super) fn seek_file(&self, id: u64, offset: u64, whence: u32) -> Result<u64> {
        let from = match i32::try_from(whence) {
            Ok(libc::SEEK_DATA) => SeekFrom::Data(offset),
            Ok(libc::SEEK_HOLE) => SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL.into()),
        };
        let file = self.file(id)?;
        Ok(seek(&*file, from)?)
    }
}

/// Says whether the page at an offset has been written before.
fn is_data(file: &File, offset: u64) -> bool {
    seek(file, SeekFrom::Data(offset)).is_ok_and(|at| at == offset)
}

/// Is what the kernel takes from a file that we write, and not from one that the container writes through a mapping.
///
/// In a user namespace nobody may write without it (CAP_FSETID is asked of the first one), so it is given back.
struct Rights {
    mode: u32,
    capability: Option<Vec<u8>>,
}

impl Rights {
    fn of(file: &File) -> Result<Self> {
        let mut value = [0; CAPABILITY_BYTES_MAX];
        let capability = match fgetxattr(file, CAPABILITY, &mut value[..]) {
            Ok(length) => value.get(..length).map(<[u8]>::to_vec),
            Err(_) => None,
        };
        Ok(Self { mode: fstat(file)?.st_mode, capability })
    }

    fn restore(self, file: &File) -> Result<()> {
        if self.mode & (libc::S_ISUID | libc::S_ISGID) != 0 {
            fchmod(file, Mode::from_raw_mode(self.mode & 0o7777))?;
        }
        if let Some(value) = self.capability {
            fsetxattr(file, CAPABILITY, &value, XattrFlags::empty())?;
        }
        Ok(())
    }
}
