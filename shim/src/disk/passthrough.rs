//! The filesystem that the kernel sees: every call is done on the directory below and charged.
//!
//! Order of locks: `tree`, then a stripe, then `nodes`, then the account. `tree` is
//! taken for writing by whatever changes where a node is found.

use std::cell::{Cell, RefCell};
use std::ffi::CStr;
use std::fs::File;
use std::io::Result;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicIsize, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use fuse_backend_rs::abi::fuse_abi::{Attr, stat64};
use fuse_backend_rs::api::filesystem::Entry;
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use rustix::fs::{AtFlags, Mode, Statx, StatxFlags, statx};
use rustix::io::Errno;
use rustix::process::umask;

use super::account::{Account, Limits, PAGE_BLOCKS};
use super::nodes::{Nodes, Place, ROOT};
use super::parting::Parting;
use super::scan;
use super::turns::Turns;

/// We are the only writer, so nothing the kernel knows grows old.
pub const FOREVER: Duration = Duration::from_secs(1 << 31);
/// What names may pass the limit by, so that something can still be deleted when it is reached: a
/// deleted file of the image needs a whiteout, which is an inode and a name.
pub const OVERDRAFT_BLOCKS: u64 = 32 * PAGE_BLOCKS;
pub const OVERDRAFT_INODES: u64 = 64;
/// Room for a name: a directory grows by a page, an index of it by another.
pub const NAME_BLOCKS: u64 = 2 * PAGE_BLOCKS;
/// Inodes that are there before the container makes one: the root, upper, work, orphans, and two that
/// overlayfs makes in work.
const OWN_INODES: u64 = 6;
/// How long what lost its last name may be held by the kernel alone.
const LATELY: Duration = Duration::from_secs(2);
/// And how long a write waits at most for what is being given back.
const PATIENCE: Duration = Duration::from_secs(30);
/// Charges of different inodes rarely wait for each other.
const STRIPES: usize = 64;

/// Is everything that the threads share.
#[derive(Debug)]
pub struct Passthrough {
    pub account: Account,
    /// Something has changed since the usage was last written down.
    pub dirty: AtomicBool,
    pub(super) orphans: u64,
    /// Directories elsewhere that are seen at the top.
    pub(super) volumes: Vec<(u64, OwnedFd)>,
    /// Nodes without a name, which give their room back when the kernel forgets them.
    pub(super) leaving: AtomicIsize,
    /// Those of them that are being given back this moment.
    going: AtomicIsize,
    /// When the last of them lost its name or was given back, after the beginning.
    left_ms: AtomicU64,
    begin: Instant,
    /// A thread waits for what is leaving.
    patient: AtomicBool,
    pub(super) device: (u32, u32),
    /// The server has its capabilities everywhere.
    pub first_namespace: bool,
    pub(super) state: File,
    nodes: Mutex<Nodes>,
    tree: RwLock<()>,
    stripes: [Mutex<()>; STRIPES],
    /// Who waits for requests.
    pub turns: Turns,
    pub parting: Parting,
    waker: std::thread::Thread,
}

thread_local! {
    static IDS: Cell<(u32, u32)> = const { Cell::new((u32::MAX, u32::MAX)) };
    static UMASK: Cell<u32> = const { Cell::new(u32::MAX) };
    static CWD: RefCell<Option<Arc<OwnedFd>>> = const { RefCell::new(None) };
    /// The request that is being answered may have been done by a server that died over it.
    pub static REPEATED: Cell<bool> = const { Cell::new(false) };
}

/// Gives the number under which the kernel knows an inode.
pub fn id_of(stat: &Statx) -> u64 {
    stat.stx_ino.wrapping_add(1)
}

/// Looks at an inode by name, never through a link.
pub fn look(place: &Place) -> rustix::io::Result<Statx> {
    look_at(&place.dir, &place.name)
}

/// Looks at an inode by name, never through a link.
pub fn look_at(dir: &OwnedFd, name: &CStr) -> rustix::io::Result<Statx> {
    let mask = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    statx(dir, name, AtFlags::SYMLINK_NOFOLLOW, mask)
}

impl Passthrough {
    /// Measures what is there; `taken_over` keeps the names of a server that died.
    pub fn new(
        (root, volumes): (OwnedFd, Vec<OwnedFd>),
        limits: Limits,
        state: File,
        (taken_over, first_namespace): (bool, bool),
        turns: Turns,
    ) -> Result<Self> {
        let top = look_at(&root, c".")?;
        let orphans = scan::open_dir(&root, super::ORPHANS)?;
        let kept = look_at(&orphans, c".")?;
        if !taken_over {
            scan::empty(&orphans)?;
        }
        let mut nodes = Nodes::new(root.try_clone()?, (id_of(&kept), orphans));
        let volumes = volumes.into_iter().map(|dir| Ok((id_of(&look_at(&dir, c".")?), dir)));
        let volumes = volumes.collect::<Result<Vec<_>>>()?;
        for (id, dir) in &volumes {
            nodes.fix(*id, dir.try_clone()?);
        }
        let mut visit = |found: &scan::Found<'_>| {
            if taken_over {
                let parent = if found.parent == id_of(&top) { ROOT } else { found.parent };
                scan::inherit(&mut nodes, found, parent, id_of(&kept));
            }
        };
        let mut sums = scan::scan(&root, &mut visit)?;
        for (_, dir) in &volumes {
            let more = scan::scan(dir, &mut visit)?;
            (sums.blocks, sums.inodes) = (sums.blocks.saturating_add(more.blocks), sums.inodes + more.inodes);
        }
        let limits = Limits { inodes: limits.inodes.saturating_add(OWN_INODES), ..limits };
        Ok(Self {
            account: Account::new(limits, sums.blocks, sums.inodes),
            dirty: AtomicBool::new(true),
            orphans: id_of(&kept),
            volumes,
            // What was inherited is not waited for.
            leaving: AtomicIsize::new(0),
            going: AtomicIsize::new(0),
            left_ms: AtomicU64::new(0),
            begin: Instant::now(),
            patient: AtomicBool::new(false),
            device: (top.stx_dev_major, top.stx_dev_minor),
            first_namespace,
            parting: Parting::new(state.try_clone()?),
            state,
            nodes: Mutex::new(nodes),
            tree: RwLock::new(()),
            stripes: [const { Mutex::new(()) }; STRIPES],
            turns,
            waker: std::thread::current(),
        })
    }

    pub(super) fn nodes(&self) -> MutexGuard<'_, Nodes> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn read_tree(&self) -> RwLockReadGuard<'_, ()> {
        self.tree.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write_tree(&self) -> RwLockWriteGuard<'_, ()> {
        self.tree.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps others from changing and charging the same inode.
    pub(super) fn stripe(&self, id: u64) -> MutexGuard<'_, ()> {
        let number = usize::try_from(id % STRIPES as u64).unwrap_or(0);
        self.stripes[number].lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn place(&self, id: u64) -> Result<Place> {
        self.nodes().place(id)
    }

    pub(super) fn directory(&self, id: u64) -> Result<Arc<OwnedFd>> {
        self.nodes().directory(id)
    }

    /// Charges an inode for what it has now.
    pub(super) fn settle(&self, id: u64, blocks: u64) {
        let before = match self.nodes().map.get_mut(&id) {
            Some(node) => std::mem::replace(&mut node.blocks, blocks),
            None => return,
        };
        if before != blocks {
            self.account.replace(before, blocks);
            self.touch();
        }
    }

    /// Charges a directory after a name came or went.
    pub(super) fn settle_directory(&self, id: u64, dir: &OwnedFd) {
        if let Ok(stat) = look_at(dir, c".") {
            self.settle(id, stat.stx_blocks);
        }
    }

    /// Remembers beyond this server's life whether the kernel can send requests again.
    pub(super) fn note_resend(&self, can: bool) {
        // Without it a server that dies cannot be replaced, which is what happens then.
        let _ = self.state.write_all_at(&[u8::from(can)], super::serve::STATE_RESEND);
    }

    /// Has the usage written down soon.
    pub fn touch(&self) {
        if !self.dirty.swap(true, Ordering::Relaxed) {
            self.waker.unpark();
        }
    }

    /// Fails with ESTALE where the name is about to go by which overlayfs knows a file; the kernel then asks again.
    pub(super) fn part(&self, parent: u64, name: &CStr, stat: &Statx) -> Result<()> {
        if stat.stx_nlink < 2 || !self.nodes().is_known_by(id_of(stat), parent, name) {
            return Ok(());
        }
        if REPEATED.get() {
            // A server before this one may have answered so already.
            self.parting.forget(parent, name);
            return Ok(());
        }
        if self.parting.may_go(parent, name) {
            self.nodes().note_parted(id_of(stat));
            return Ok(());
        }
        self.waker.unpark();
        Err(Errno::STALE.into())
    }

    /// Reserves room. What was deleted a moment ago is given back when the kernel forgets it, on
    /// another thread, so a full disk is looked at again for a short time.
    pub(super) fn reserve(&self, blocks: u64, overdraft: u64) -> Result<super::account::Reservation<'_>> {
        self.patiently(PATIENCE, || self.account.reserve(blocks, overdraft)).ok_or_else(|| Errno::NOSPC.into())
    }

    pub(super) fn claim_inode(&self, overdraft: u64) -> Result<()> {
        self.patiently(PATIENCE, || self.account.claim_inode(overdraft).then_some(()))
            .ok_or_else(|| Errno::NOSPC.into())
    }

    /// Attempts again while something is leaving that may free what is wanted.
    ///
    /// The kernel's flusher may hold a deleted file for a moment. What has been without a name for longer is held by
    /// somebody who has it open. One thread alone is patient: another has to hear what the kernel forgets.
    pub(super) fn patiently<T>(&self, most: Duration, mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
        const PAUSE: Duration = Duration::from_millis(1);
        let got = attempt();
        if got.is_some() || self.patient.swap(true, Ordering::AcqRel) {
            return got;
        }
        let (mut got, begin) = (None, Instant::now());
        if self.leaves_soon() {
            self.turns.away(|| {
                while got.is_none() && begin.elapsed() < most && self.leaves_soon() {
                    std::thread::sleep(PAUSE);
                    got = attempt();
                }
            });
        }
        self.patient.store(false, Ordering::Release);
        got.or_else(attempt)
    }

    /// Notes that something lost its last name and gives its room back when the kernel forgets it.
    pub(super) fn note_leaving(&self) {
        self.leaving.fetch_add(1, Ordering::AcqRel);
        self.note_moment();
    }

    fn note_moment(&self) {
        let now = u64::try_from(self.begin.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.left_ms.store(now, Ordering::Release);
    }

    /// Gives back what the kernel has forgotten. A large file takes its time on a slow disk.
    pub(super) fn note_left(&self, give_back: impl FnOnce()) {
        self.going.fetch_add(1, Ordering::AcqRel);
        give_back();
        self.note_moment();
        self.leaving.fetch_sub(1, Ordering::AcqRel);
        self.going.fetch_sub(1, Ordering::AcqRel);
    }

    fn leaves_soon(&self) -> bool {
        let lately = || self.begin.elapsed() < Duration::from_millis(self.left_ms.load(Ordering::Acquire)) + LATELY;
        self.leaving.load(Ordering::Acquire) > 0 && (self.going.load(Ordering::Acquire) > 0 || lately())
    }

    /// Tells the kernel of an inode, once more or for the first time, and charges it.
    pub(super) fn entry(&self, parent: u64, name: &CStr, stat: &Statx, made: bool) -> Result<Entry> {
        if (stat.stx_dev_major, stat.stx_dev_minor) != self.device {
            return Err(Errno::XDEV.into());
        }
        let id = id_of(stat);
        let is_dir = rustix::fs::FileType::from_raw_mode(stat.stx_mode.into()).is_dir();
        let mut nodes = self.nodes();
        let known = nodes.map.contains_key(&id);
        let node = nodes.add_alias(id, parent, name, !is_dir && stat.stx_nlink > 1);
        node.lookups = node.lookups.saturating_add(1);
        if !known {
            node.blocks = stat.stx_blocks;
        }
        let orphan = node.orphan;
        drop(nodes);
        if made {
            self.account.replace(0, stat.stx_blocks);
            self.touch();
        }
        Ok(Entry {
            inode: id,
            generation: generation(stat),
            attr: attributes(stat, orphan),
            attr_flags: 0,
            attr_timeout: FOREVER,
            entry_timeout: FOREVER,
        })
    }

    pub(super) fn is_orphan(&self, id: u64) -> bool {
        self.nodes().map.get(&id).is_some_and(|node| node.orphan)
    }
}

/// Tells two inodes of the same number apart: when it was made.
fn generation(stat: &Statx) -> u64 {
    let seconds = stat.stx_btime.tv_sec.cast_unsigned();
    (seconds << 30) | u64::from(stat.stx_btime.tv_nsec)
}

/// Describes an inode to the kernel. The name that keeps a deleted file is not the container's.
pub fn attributes(stat: &Statx, orphan: bool) -> stat64 {
    let (major, minor) = (stat.stx_rdev_major, stat.stx_rdev_minor);
    stat64::from(Attr {
        ino: stat.stx_ino,
        size: stat.stx_size,
        blocks: stat.stx_blocks,
        atime: stat.stx_atime.tv_sec.cast_unsigned(),
        mtime: stat.stx_mtime.tv_sec.cast_unsigned(),
        ctime: stat.stx_ctime.tv_sec.cast_unsigned(),
        atimensec: stat.stx_atime.tv_nsec,
        mtimensec: stat.stx_mtime.tv_nsec,
        ctimensec: stat.stx_ctime.tv_nsec,
        mode: stat.stx_mode.into(),
        nlink: stat.stx_nlink - u32::from(orphan && stat.stx_nlink > 0),
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        // The kernel's own 32-bit form (new_encode_dev).
        rdev: (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12),
        blksize: stat.stx_blksize,
        flags: 0,
    })
}

/// Makes what this thread makes belong to somebody. Capabilities stay (SECBIT_NO_SETUID_FIXUP).
pub(super) fn act_as(uid: u32, gid: u32) -> Result<()> {
    if IDS.get() == (uid, gid) {
        return Ok(());
    }
    IDS.set((u32::MAX, u32::MAX));
    setfsgid(Gid::from_raw(gid));
    setfsuid(Uid::from_raw(uid));
    // The calls tell no failure but by what is set afterwards.
    if setfsgid(Gid::from_raw(gid)).as_raw() != gid || setfsuid(Uid::from_raw(uid)).as_raw() != uid {
        return Err(Errno::OVERFLOW.into());
    }
    IDS.set((uid, gid));
    Ok(())
}

/// Sets this thread's umask: the filesystem below applies it where no default ACL says otherwise.
pub(super) fn mask(bits: u32) {
    if UMASK.get() != bits {
        umask(Mode::from_raw_mode(bits & 0o777));
        UMASK.set(bits);
    }
}

/// Makes a directory this thread's own: extended attributes of what cannot be opened have a path only.
pub(super) fn stand_in(dir: &Arc<OwnedFd>) -> Result<()> {
    CWD.with_borrow_mut(|cwd| {
        if !cwd.as_ref().is_some_and(|cwd| Arc::ptr_eq(cwd, dir)) {
            rustix::process::fchdir(dir)?;
            *cwd = Some(dir.clone());
        }
        Ok(())
    })
}
