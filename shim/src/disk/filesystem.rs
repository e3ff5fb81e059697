//! The face that the FUSE crate knows: each call in its own words, handed on. [`quick`](super::quick) answers
//! INIT, READ, WRITE and GETXATTR before the crate sees them.

use std::ffi::CStr;
use std::io::Result;
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::{CreateIn, stat64, statvfs64};
use fuse_backend_rs::api::filesystem::{
    Context, DirEntry, Entry, FileSystem, ListxattrReply, OpenOptions, SetattrValid,
};
use rustix::fs::{SeekFrom, fstatvfs, fsync, readlinkat, seek};
use rustix::io::Errno;

use super::account::{PAGE_BLOCKS, PAGE_BYTES};
use super::passthrough::{FOREVER, Passthrough, mask};
use super::scan::open_dir;

/// What one READDIR asks the filesystem below for at a time.
const DIRENT_BYTES: usize = 32 * 1024;

/// What statfs(2) waits for what is leaving: it only looks.
const STATFS_PATIENCE: Duration = Duration::from_millis(50);

/// Has only the crate's own answers.
struct Plain;

impl FileSystem for Plain {
    type Inode = u64;
    type Handle = u64;
}

type Opened = (Option<u64>, OpenOptions, Option<u32>);

impl FileSystem for Passthrough {
    type Inode = u64;
    type Handle = u64;

    fn lookup(&self, _: &Context, parent: u64, name: &CStr) -> Result<Entry> {
        self.look_up(parent, name)
    }

    fn forget(&self, _: &Context, inode: u64, count: u64) {
        self.forget_node(inode, count);
    }

    fn batch_forget(&self, _: &Context, requests: Vec<(u64, u64)>) {
        for (inode, count) in requests {
            self.forget_node(inode, count);
        }
    }

    fn getattr(&self, _: &Context, inode: u64, _: Option<u64>) -> Result<(stat64, Duration)> {
        Ok((self.attributes_of(inode)?, FOREVER))
    }

    fn setattr(
        &self,
        _: &Context,
        inode: u64,
        attr: stat64,
        _: Option<u64>,
        valid: SetattrValid,
    ) -> Result<(stat64, Duration)> {
        Ok((self.change(inode, &attr, valid)?, FOREVER))
    }

    fn readlink(&self, _: &Context, inode: u64) -> Result<Vec<u8>> {
        let _tree = self.read_tree();
        let place = self.place(inode)?;
        Ok(readlinkat(&place.dir, &*place.name, Vec::new())?.into_bytes())
    }

    fn symlink(&self, context: &Context, target: &CStr, parent: u64, name: &CStr) -> Result<Entry> {
        self.make_link(context, target, parent, name)
    }

    fn mknod(&self, context: &Context, parent: u64, name: &CStr, mode: u32, device: u32, umask: u32) -> Result<Entry> {
        self.make_node(context, parent, name, (mode, device, umask))
    }

    fn mkdir(&self, context: &Context, parent: u64, name: &CStr, mode: u32, umask: u32) -> Result<Entry> {
        self.make_directory(context, parent, name, (mode, umask))
    }

    fn unlink(&self, _: &Context, parent: u64, name: &CStr) -> Result<()> {
        self.remove_name(parent, name)
    }

    fn rmdir(&self, _: &Context, parent: u64, name: &CStr) -> Result<()> {
        self.remove_directory(parent, name)
    }

    fn rename(&self, _: &Context, old: u64, name: &CStr, new: u64, new_name: &CStr, flags: u32) -> Result<()> {
        self.move_name((old, name), (new, new_name), flags)
    }

    fn link(&self, _: &Context, inode: u64, parent: u64, name: &CStr) -> Result<Entry> {
        self.add_name(inode, parent, name)
    }

    fn open(&self, _: &Context, _: u64, _: u32, _: u32) -> Result<Opened> {
        // The kernel asks once and never again: a node's number is enough for every call.
        Err(Errno::NOSYS.into())
    }

    fn opendir(&self, _: &Context, _: u64, _: u32) -> Result<(Option<u64>, OpenOptions)> {
        Err(Errno::NOSYS.into())
    }

    fn create(
        &self,
        _: &Context,
        _: u64,
        _: &CStr,
        _: CreateIn,
    ) -> Result<(Entry, Option<u64>, OpenOptions, Option<u32>)> {
        // Then the kernel makes the file by MKNOD.
        Err(Errno::NOSYS.into())
    }

    fn flush(&self, _: &Context, _: u64, _: u64, _: u64) -> Result<()> {
        Err(Errno::NOSYS.into())
    }

    fn access(&self, _: &Context, _: u64, _: u32) -> Result<()> {
        Err(Errno::NOSYS.into())
    }

    fn fsync(&self, _: &Context, inode: u64, data_only: bool, _: u64) -> Result<()> {
        self.sync_file(inode, data_only)
    }

    fn fsyncdir(&self, _: &Context, inode: u64, _: bool, _: u64) -> Result<()> {
        let dir = {
            let _tree = self.read_tree();
            open_dir(&*self.directory(inode)?, c".")?
        };
        Ok(fsync(dir)?)
    }

    fn fallocate(&self, _: &Context, inode: u64, _: u64, mode: u32, offset: u64, length: u64) -> Result<()> {
        self.allocate(inode, mode, offset, length)
    }

    fn lseek(&self, _: &Context, inode: u64, _: u64, offset: u64, whence: u32) -> Result<u64> {
        self.seek_file(inode, offset, whence)
    }

    fn statfs(&self, context: &Context, _: u64) -> Result<statvfs64> {
        let mut stat = Plain.statfs(context, 0)?;
        // What was deleted a moment ago is on its way out.
        let _ = self.patiently(STATFS_PATIENCE, || None::<()>);
        let (limits, counts) = (self.account.limits, self.account.counts());
        let pages = limits.blocks / PAGE_BLOCKS;
        let free = pages.saturating_sub(counts.used.div_ceil(PAGE_BLOCKS));
        // What the host has left may be less.
        let host = fstatvfs(&*self.directory(super::nodes::ROOT)?)?;
        let left = host.f_bavail.saturating_mul(host.f_frsize) / PAGE_BYTES;
        stat.f_bsize = PAGE_BYTES;
        stat.f_frsize = PAGE_BYTES;
        stat.f_blocks = pages;
        stat.f_bfree = free.min(left);
        stat.f_bavail = stat.f_bfree;
        stat.f_files = limits.inodes;
        stat.f_ffree = limits.inodes.saturating_sub(counts.inodes);
        stat.f_favail = stat.f_ffree;
        stat.f_namemax = host.f_namemax;
        Ok(stat)
    }

    fn setxattr(&self, _: &Context, inode: u64, name: &CStr, value: &[u8], flags: u32) -> Result<()> {
        self.set_attribute(inode, name, value, flags)
    }

    fn listxattr(&self, _: &Context, inode: u64, size: u32) -> Result<ListxattrReply> {
        self.list_attributes(inode, size)
    }

    fn removexattr(&self, _: &Context, inode: u64, name: &CStr) -> Result<()> {
        self.remove_attribute(inode, name)
    }

    fn readdir(
        &self,
        _: &Context,
        inode: u64,
        _: u64,
        _: u32,
        offset: u64,
        add: &mut dyn FnMut(DirEntry<'_>) -> Result<usize>,
    ) -> Result<()> {
        let dir = {
            let _tree = self.read_tree();
            open_dir(&*self.directory(inode)?, c".")?
        };
        if offset > 0 {
            seek(&dir, SeekFrom::Start(offset))?;
        }
        let mut space = Vec::with_capacity(DIRENT_BYTES);
        let mut entries = rustix::fs::RawDir::new(&dir, space.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            let found = DirEntry {
                ino: entry.ino(),
                offset: entry.next_entry_cookie(),
                type_: type_of(entry.file_type()),
                name,
            };
            if add(found)? == 0 {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// The kernel's directory entry types (DT_* of readdir(3)) are a mode's upper bits.
fn type_of(kind: rustix::fs::FileType) -> u32 {
    match kind {
        rustix::fs::FileType::Unknown => 0,
        known => (known.as_raw_mode() & libc::S_IFMT) >> 12,
    }
}

/// A thread starts with no mask of its own.
pub fn begin_thread() -> Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS)?;
    mask(0);
    Ok(())
}
