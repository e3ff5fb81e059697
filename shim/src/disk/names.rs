//! Names that come and go: lookups, new inodes, links, renames, deletions, and what the kernel forgets.

use std::ffi::CStr;
use std::io::Result;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use fuse_backend_rs::api::filesystem::{Context, Entry};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RenameFlags, Statx, linkat, makedev, mkdirat, mknodat, openat, renameat_with,
    symlinkat, unlinkat,
};
use rustix::io::Errno;

use super::account::BLOCK_BYTES;
use super::nodes::{Alias, Node, ROOT, name_of};
use super::passthrough::{
    FOREVER, NAME_BLOCKS, OVERDRAFT_BLOCKS, OVERDRAFT_INODES, Passthrough, REPEATED, act_as, id_of, look, look_at, mask,
};

/// What has more than 8 MiB is not deleted in an instant.
const LARGE_BLOCKS: u64 = (8 << 20) / BLOCK_BYTES;
/// Where the shared state keeps the latest exchange.
const STATE_EXCHANGE: u64 = 64;

fn kind(stat: &Statx) -> FileType {
    FileType::from_raw_mode(stat.stx_mode.into())
}

impl Passthrough {
    pub(super) fn look_up(&self, parent: u64, name: &CStr) -> Result<Entry> {
        self.parting.wait(parent, name, |wait| self.turns.away(wait));
        let _tree = self.read_tree();
        if let Some(volume) = self.volume(parent, name) {
            return self.entry(parent, name, &look_at(volume, c".")?, false);
        }
        let dir = self.directory(parent)?;
        match look_at(&dir, name) {
            Ok(stat) => self.entry(parent, name, &stat, false),
            // Known to be missing until we make it.
            Err(Errno::NOENT) => Ok(Entry { entry_timeout: FOREVER, ..Entry::default() }),
            Err(error) => Err(error.into()),
        }
    }

    fn volume(&self, parent: u64, name: &CStr) -> Option<&OwnedFd> {
        let number = name.to_str().ok()?.strip_prefix("volume").filter(|_| parent == ROOT)?;
        self.volumes.get(number.parse::<usize>().ok()?).map(|(_, dir)| dir)
    }

    /// Makes an inode by `make` and tells the kernel of it.
    fn create(
        &self,
        context: &Context,
        (parent, name): (u64, &CStr),
        overdraft: bool,
        make: impl FnOnce(&OwnedFd) -> rustix::io::Result<()>,
    ) -> Result<Entry> {
        let _tree = self.read_tree();
        let (blocks, inodes) = if overdraft { (OVERDRAFT_BLOCKS, OVERDRAFT_INODES) } else { (0, 0) };
        let _room = self.reserve(NAME_BLOCKS, blocks)?;
        let dir = self.directory(parent)?;
        self.claim_inode(inodes)?;
        let made = act_as(context.uid, context.gid).and_then(|()| Ok(make(&dir)?));
        if let Err(error) = made {
            self.account.release_inode();
            // The server that died over this request had made it: nobody else can have.
            if REPEATED.get() && error.raw_os_error() == Some(libc::EEXIST) {
                return self.entry(parent, name, &look_at(&dir, name)?, false);
            }
            return Err(error);
        }
        let entry = self.entry(parent, name, &look_at(&dir, name)?, true)?;
        self.settle_directory(parent, &dir);
        Ok(entry)
    }

    pub(super) fn make_node(
        &self,
        context: &Context,
        parent: u64,
        name: &CStr,
        (mode, rdev, umask): (u32, u32, u32),
    ) -> Result<Entry> {
        let kind = FileType::from_raw_mode(mode);
        // A character device 0/0 is overlayfs' mark of a deleted file.
        let whiteout = kind == FileType::CharacterDevice && rdev == 0;
        let device = makedev((rdev & 0x000f_ff00) >> 8, (rdev & 0xff) | ((rdev >> 12) & 0x000f_ff00));
        self.create(context, (parent, name), whiteout, |dir| {
            mask(umask);
            mknodat(dir, name, kind, Mode::from_raw_mode(mode & 0o7777), device)
        })
    }

    pub(super) fn make_directory(
        &self,
        context: &Context,
        parent: u64,
        name: &CStr,
        (mode, umask): (u32, u32),
    ) -> Result<Entry> {
        self.create(context, (parent, name), false, |dir| {
            mask(umask);
            mkdirat(dir, name, Mode::from_raw_mode(mode & 0o7777))
        })
    }

    pub(super) fn make_link(&self, context: &Context, target: &CStr, parent: u64, name: &CStr) -> Result<Entry> {
        self.create(context, (parent, name), false, |dir| symlinkat(target, dir, name))
    }

    pub(super) fn add_name(&self, id: u64, parent: u64, name: &CStr) -> Result<Entry> {
        let _tree = self.write_tree();
        // Overlayfs links its one whiteout to many names.
        let _room = self.reserve(NAME_BLOCKS, OVERDRAFT_BLOCKS)?;
        let from = self.place(id)?;
        let dir = self.directory(parent)?;
        match linkat(&from.dir, &*from.name, &dir, name, AtFlags::empty()) {
            Err(Errno::EXIST) if REPEATED.get() => {}
            result => result?,
        }
        let entry = self.entry(parent, name, &look_at(&dir, name)?, false)?;
        self.settle_directory(parent, &dir);
        Ok(entry)
    }

    /// Keeps an inode that is about to lose its last name for as long as the kernel knows it.
    ///
    /// `take` moves the name itself; else a second one is made. None when there is nothing to keep.
    fn keep(&self, (parent, dir): (u64, &OwnedFd), name: &CStr, stat: &Statx, take: bool) -> Result<Option<u64>> {
        let id = id_of(stat);
        let mut nodes = self.nodes();
        if !nodes.is_last_alias(id, parent, name) {
            return Ok(None);
        }
        let kept = name_of(id);
        let orphans = nodes.directory(self.orphans)?;
        match take {
            true => renameat_with(dir, name, &orphans, &kept, RenameFlags::empty())?,
            false => match linkat(dir, name, &orphans, &kept, AtFlags::empty()) {
                // No further link is possible: what has it open loses it.
                Err(Errno::MLINK) => return Ok(None),
                result => result?,
            },
        }
        Ok(Some(id))
    }

    /// Notes that an inode has no name any more but the one that keeps it.
    fn note_orphan(&self, id: u64) {
        let mut nodes = self.nodes();
        let alias = Alias { parent: self.orphans, name: name_of(id).into_boxed_c_str() };
        if let Some(node) = nodes.map.get_mut(&id) {
            node.keep_only(Some(alias), None);
            node.orphan = true;
            self.note_leaving();
        }
    }

    /// Gives back what an inode without a name was charged, unless the kernel still knows it.
    fn refund_unknown(&self, stat: &Statx) {
        if !self.nodes().map.contains_key(&id_of(stat)) {
            self.account.replace(stat.stx_blocks, 0);
            self.account.release_inode();
            self.touch();
        }
    }

    pub(super) fn remove_name(&self, parent: u64, name: &CStr) -> Result<()> {
        let _tree = self.write_tree();
        let dir = self.directory(parent)?;
        let stat = match look_at(&dir, name) {
            Err(Errno::NOENT) if REPEATED.get() => return Ok(()),
            result => result?,
        };
        if kind(&stat).is_dir() {
            return Err(Errno::ISDIR.into());
        }
        self.part(parent, name, &stat)?;
        match self.keep((parent, &dir), name, &stat, true)? {
            Some(id) => self.note_orphan(id),
            None => {
                unlinkat(&dir, name, AtFlags::empty())?;
                self.nodes().remove_alias(id_of(&stat), parent, name);
                if stat.stx_nlink < 2 {
                    self.refund_unknown(&stat);
                }
            }
        }
        self.settle_directory(parent, &dir);
        Ok(())
    }

    /// Keeps a directory that is about to lose its name open while the kernel knows it.
    fn pin(&self, id: u64, dir: &OwnedFd, name: &CStr) -> Result<Option<Arc<OwnedFd>>> {
        if !self.nodes().map.contains_key(&id) {
            return Ok(None);
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Some(Arc::new(openat(dir, name, flags, Mode::empty())?)))
    }

    fn note_pinned(&self, stat: &Statx, pin: Option<Arc<OwnedFd>>) {
        let mut nodes = self.nodes();
        let id = id_of(stat);
        nodes.close_directory(id);
        if let Some(node) = nodes.map.get_mut(&id) {
            node.keep_only(None, pin);
            node.orphan = true;
            self.note_leaving();
            return;
        }
        drop(nodes);
        self.refund_unknown(stat);
    }

    pub(super) fn remove_directory(&self, parent: u64, name: &CStr) -> Result<()> {
        let _tree = self.write_tree();
        let dir = self.directory(parent)?;
        let stat = match look_at(&dir, name) {
            Err(Errno::NOENT) if REPEATED.get() => return Ok(()),
            result => result?,
        };
        let pin = self.pin(id_of(&stat), &dir, name)?;
        unlinkat(&dir, name, AtFlags::REMOVEDIR)?;
        self.note_pinned(&stat, pin);
        self.settle_directory(parent, &dir);
        Ok(())
    }

    pub(super) fn move_name(
        &self,
        (parent, name): (u64, &CStr),
        (new_parent, new_name): (u64, &CStr),
        flags: u32,
    ) -> Result<()> {
        let flags = RenameFlags::from_bits_retain(flags);
        let _tree = self.write_tree();
        let (dir, new_dir) = (self.directory(parent)?, self.directory(new_parent)?);
        let stat = match look_at(&dir, name) {
            Err(Errno::NOENT) if REPEATED.get() && look_at(&new_dir, new_name).is_ok() => return Ok(()),
            result => result?,
        };
        let target = match look_at(&new_dir, new_name) {
            Err(Errno::NOENT) => None,
            result => Some(result?),
        };
        let exchange = flags.contains(RenameFlags::EXCHANGE);
        if target.as_ref().is_some_and(|target| target.stx_ino == stat.stx_ino) && !exchange {
            // Two names of one inode: nothing happens (rename(2)).
            renameat_with(&dir, name, &new_dir, new_name, flags)?;
            return Ok(());
        }
        if exchange && self.was_exchanged((parent, new_parent), &stat, target.as_ref())? {
            return Ok(());
        }
        let replaced = target.as_ref().filter(|_| !exchange && !flags.contains(RenameFlags::NOREPLACE));
        if let Some(target) = replaced.filter(|target| !kind(target).is_dir()) {
            self.part(new_parent, new_name, target)?;
        }
        let whiteout = flags.contains(RenameFlags::WHITEOUT);
        let _room = self.reserve(NAME_BLOCKS, OVERDRAFT_BLOCKS)?;
        if whiteout {
            self.claim_inode(OVERDRAFT_INODES)?;
        }
        let overwritten = target.as_ref().filter(|_| !exchange);
        let renamed = self.rename((&dir, name), (new_parent, &new_dir, new_name), overwritten, flags);
        if renamed.is_err() && whiteout {
            self.account.release_inode();
        }
        renamed?;
        self.note_move((parent, name), (new_parent, new_name), &stat, target.as_ref().filter(|_| exchange));
        self.settle_directory(parent, &dir);
        if new_parent != parent {
            self.settle_directory(new_parent, &new_dir);
        }
        Ok(())
    }

    /// Says whether an exchange was done by the server that died over it: a second one would undo it.
    ///
    /// What is about to be exchanged is noted in memory that outlives us.
    fn was_exchanged(&self, (parent, new_parent): (u64, u64), stat: &Statx, target: Option<&Statx>) -> Result<bool> {
        let numbers = [parent, new_parent, stat.stx_ino, target.map_or(0, |target| target.stx_ino)];
        let mut noted = [0; 32];
        if REPEATED.get() && self.state.read_exact_at(&mut noted, STATE_EXCHANGE).is_ok() {
            let noted: Vec<u64> = noted.as_chunks().0.iter().map(|number| u64::from_ne_bytes(*number)).collect();
            // The source is where the target was, and the other way round.
            if noted == [numbers[0], numbers[1], numbers[3], numbers[2]] {
                return Ok(true);
            }
        }
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_ne_bytes()).collect();
        self.state.write_all_at(&bytes, STATE_EXCHANGE)?;
        Ok(false)
    }

    /// Renames, and keeps what is overwritten as long as the kernel knows it.
    fn rename(
        &self,
        (dir, name): (&OwnedFd, &CStr),
        (new_parent, new_dir, new_name): (u64, &OwnedFd, &CStr),
        overwritten: Option<&Statx>,
        flags: RenameFlags,
    ) -> Result<()> {
        let Some(target) = overwritten else {
            return Ok(renameat_with(dir, name, new_dir, new_name, flags)?);
        };
        if kind(target).is_dir() {
            let pin = self.pin(id_of(target), new_dir, new_name)?;
            renameat_with(dir, name, new_dir, new_name, flags)?;
            self.note_pinned(target, pin);
            return Ok(());
        }
        // A second name first, so that a crash in between loses neither file.
        let kept = if flags.contains(RenameFlags::NOREPLACE) {
            None
        } else {
            self.keep((new_parent, new_dir), new_name, target, false)?
        };
        let renamed = renameat_with(dir, name, new_dir, new_name, flags);
        match (kept, renamed) {
            (Some(id), Err(error)) => {
                let _ = unlinkat(&*self.directory(self.orphans)?, name_of(id), AtFlags::empty());
                return Err(error.into());
            }
            (_, Err(error)) => return Err(error.into()),
            (Some(id), Ok(())) => self.note_orphan(id),
            (None, Ok(())) => {
                self.nodes().remove_alias(id_of(target), new_parent, new_name);
                if target.stx_nlink < 2 {
                    self.refund_unknown(target);
                }
            }
        }
        Ok(())
    }

    fn note_move(&self, old: (u64, &CStr), new: (u64, &CStr), stat: &Statx, exchanged: Option<&Statx>) {
        let mut nodes = self.nodes();
        let mut pass = |stat: &Statx, from: (u64, &CStr), to: (u64, &CStr)| {
            nodes.move_alias(id_of(stat), from, to);
        };
        pass(stat, old, new);
        if let Some(other) = exchanged {
            pass(other, new, old);
        }
    }

    /// Gives back what a node had that the kernel has forgotten.
    pub(super) fn forget_node(&self, id: u64, count: u64) {
        let (node, orphans) = {
            let mut nodes = self.nodes();
            let Some(node) = nodes.forget(id, count) else { return };
            if !node.orphan {
                return;
            }
            (node, nodes.directory(self.orphans))
        };
        // A large file takes its time on a slow disk.
        if node.blocks > LARGE_BLOCKS {
            self.turns.away(|| self.note_left(|| self.give_back(node, orphans)));
        } else {
            self.note_left(|| self.give_back(node, orphans));
        }
    }

    fn give_back(&self, node: Node, orphans: Result<Arc<OwnedFd>>) {
        let blocks = node.blocks;
        if node.pin().is_none() {
            let (Ok(orphans), Some(alias)) = (orphans, node.alias()) else { return };
            let links = look_at(&orphans, &alias.name).map_or(0, |stat| stat.stx_nlink);
            if unlinkat(&orphans, &*alias.name, AtFlags::empty()).is_err() || links > 1 {
                return;
            }
        }
        drop(node);
        self.account.replace(blocks, 0);
        self.account.release_inode();
        self.touch();
    }

    /// Looks at a node.
    pub(super) fn look_at_node(&self, id: u64) -> Result<Statx> {
        let place = self.place(id)?;
        Ok(look(&place)?)
    }
}
