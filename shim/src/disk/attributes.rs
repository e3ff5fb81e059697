//! Owners, modes, times and extended attributes.

use std::ffi::CStr;
use std::io::Result;

use fuse_backend_rs::abi::fuse_abi::stat64;
use fuse_backend_rs::api::filesystem::{ListxattrReply, SetattrValid};
use rustix::fs::{
    AtFlags, Gid, Mode, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid, XattrFlags, chmodat, chownat, lgetxattr,
    llistxattr, lremovexattr, lsetxattr, utimensat,
};
use rustix::io::Errno;

use super::account::{PAGE_BLOCKS, PAGE_BYTES};
use super::nodes::Place;
use super::passthrough::{Passthrough, attributes, look, stand_in};

/// XATTR_SIZE_MAX and XATTR_LIST_MAX of linux/limits.h.
const XATTR_BYTES_MAX: usize = 65536;
/// What a SETATTR changes.
const CHANGES: SetattrValid = SetattrValid::SIZE
    .union(SetattrValid::MODE)
    .union(SetattrValid::UID)
    .union(SetattrValid::GID)
    .union(SetattrValid::ATIME)
    .union(SetattrValid::MTIME);

impl Passthrough {
    pub(super) fn attributes_of(&self, id: u64) -> Result<stat64> {
        let _tree = self.read_tree();
        let orphan = self.is_orphan(id);
        Ok(attributes(&self.look_at_node(id)?, orphan))
    }

    pub(super) fn change(&self, id: u64, wanted: &stat64, valid: SetattrValid) -> Result<stat64> {
        if valid.contains(SetattrValid::SIZE) {
            self.truncate(id, wanted.st_size.cast_unsigned())?;
        }
        let _tree = self.read_tree();
        let _stripe = self.stripe(id);
        let place = self.place(id)?;
        // Of a change that only takes rights (a write as overlayfs sees it, a chown to nobody) nothing is left in the request
        // (FUSE_HANDLE_KILLPRIV_V2); a chown to nobody takes them.
        let takes_rights = !valid.intersects(CHANGES);
        // In this order: a change of owner clears bits of the mode.
        if takes_rights || valid.intersects(SetattrValid::UID | SetattrValid::GID) {
            let uid = valid.contains(SetattrValid::UID).then(|| Uid::from_raw(wanted.st_uid));
            let gid = valid.contains(SetattrValid::GID).then(|| Gid::from_raw(wanted.st_gid));
            chownat(&place.dir, &*place.name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        if valid.contains(SetattrValid::MODE) {
            chmodat(&place.dir, &*place.name, Mode::from_raw_mode(wanted.st_mode & 0o7777), AtFlags::empty())?;
        }
        if valid.intersects(SetattrValid::ATIME | SetattrValid::MTIME) {
            let times = Timestamps {
                last_access: time(
                    (valid.contains(SetattrValid::ATIME), valid.contains(SetattrValid::ATIME_NOW)),
                    (wanted.st_atime, wanted.st_atime_nsec),
                ),
                last_modification: time(
                    (valid.contains(SetattrValid::MTIME), valid.contains(SetattrValid::MTIME_NOW)),
                    (wanted.st_mtime, wanted.st_mtime_nsec),
                ),
            };
            utimensat(&place.dir, &*place.name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        let stat = look(&place)?;
        self.settle(id, stat.stx_blocks);
        Ok(attributes(&stat, self.is_orphan(id)))
    }

    /// Does something to a node by a path that works for every kind of inode.
    fn with_path<T>(&self, id: u64, work: impl FnOnce(&Place) -> rustix::io::Result<T>) -> Result<T> {
        let place = self.place(id)?;
        stand_in(&place.dir)?;
        Ok(work(&place)?)
    }

    /// Reads an attribute into `value`, or only its length where there is no room; gives the length.
    pub(super) fn get_attribute(&self, id: u64, name: &CStr, value: &mut [u8]) -> Result<usize> {
        let _tree = self.read_tree();
        self.with_path(id, |place| lgetxattr(&*place.name, name, value))
    }

    pub(super) fn list_attributes(&self, id: u64, size: u32) -> Result<ListxattrReply> {
        let _tree = self.read_tree();
        let mut names = vec![0_u8; (size as usize).min(XATTR_BYTES_MAX)];
        let length = self.with_path(id, |place| llistxattr(&*place.name, &mut names[..]))?;
        if size == 0 {
            return Ok(ListxattrReply::Count(u32::try_from(length).unwrap_or(u32::MAX)));
        }
        names.truncate(length);
        Ok(ListxattrReply::Names(names))
    }

    pub(super) fn set_attribute(&self, id: u64, name: &CStr, value: &[u8], flags: u32) -> Result<()> {
        let _tree = self.read_tree();
        let _stripe = self.stripe(id);
        let pages = (value.len() as u64).div_ceil(PAGE_BYTES) + 1;
        let _room = self.reserve(pages * PAGE_BLOCKS, 0)?;
        let flags = XattrFlags::from_bits_retain(flags);
        let result = self.with_path(id, |place| {
            let result = lsetxattr(&*place.name, name, value, flags);
            Ok((result, look(place)?.stx_blocks))
        });
        self.conclude(id, result)
    }

    pub(super) fn remove_attribute(&self, id: u64, name: &CStr) -> Result<()> {
        let _tree = self.read_tree();
        let _stripe = self.stripe(id);
        let result = self.with_path(id, |place| {
            let result = lremovexattr(&*place.name, name);
            Ok((result, look(place)?.stx_blocks))
        });
        self.conclude(id, result)
    }

    fn conclude(&self, id: u64, result: Result<(std::result::Result<(), Errno>, u64)>) -> Result<()> {
        let (result, blocks) = result?;
        self.settle(id, blocks);
        Ok(result?)
    }
}

fn time((set, now): (bool, bool), (seconds, nanoseconds): (i64, i64)) -> Timespec {
    match (set, now) {
        (false, _) => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        (true, true) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        (true, false) => Timespec { tv_sec: seconds, tv_nsec: nanoseconds },
    }
}
