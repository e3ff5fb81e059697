//! What is used, reserved and allowed. Pure: nothing here touches a file.
//!
//! Invariant: `used` is the sum of the charges of all inodes, and a charge is only ever replaced by the
//! next one of the same inode. What a call may need at most is reserved before it, so parallel calls
//! cannot pass the limit together.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// st_blocks counts in these, whatever the filesystem's own block is (stat(2)).
pub const BLOCK_BYTES: u64 = 512;
/// The unit in which filesystems give out space; also what statfs(2) shows.
pub const PAGE_BYTES: u64 = 4096;
pub const PAGE_BLOCKS: u64 = PAGE_BYTES / BLOCK_BYTES;

/// Is what may be used at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// In units of 512 bytes.
    pub blocks: u64,
    pub inodes: u64,
}

/// Is what is used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// In units of 512 bytes.
    pub used: u64,
    reserved: u64,
    pub inodes: u64,
}

/// Keeps the sums.
#[derive(Debug)]
pub struct Account {
    pub limits: Limits,
    counts: Mutex<Counts>,
}

/// Is room that nobody else can have; given back when it is dropped, whatever was charged meanwhile.
#[derive(Debug)]
pub struct Reservation<'a> {
    account: &'a Account,
    blocks: u64,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let mut counts = self.account.lock();
        counts.reserved = counts.reserved.saturating_sub(self.blocks);
    }
}

impl Account {
    pub fn new(limits: Limits, used: u64, inodes: u64) -> Self {
        Self { limits, counts: Mutex::new(Counts { used, reserved: 0, inodes }) }
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn counts(&self) -> Counts {
        *self.lock()
    }

    /// Reserves room for `blocks`; with an overdraft the limit may be passed by that much.
    pub fn reserve(&self, blocks: u64, overdraft: u64) -> Option<Reservation<'_>> {
        let mut counts = self.lock();
        let sum = counts.used.checked_add(counts.reserved)?.checked_add(blocks)?;
        if sum > self.limits.blocks.saturating_add(overdraft) {
            return None;
        }
        counts.reserved += blocks;
        Some(Reservation { account: self, blocks })
    }

    /// Replaces one charge by another.
    pub fn replace(&self, before: u64, after: u64) {
        let mut counts = self.lock();
        counts.used = counts.used.saturating_sub(before).saturating_add(after);
    }

    /// Counts one more inode; false at the limit.
    pub fn claim_inode(&self, overdraft: u64) -> bool {
        let mut counts = self.lock();
        let free = counts.inodes < self.limits.inodes.saturating_add(overdraft);
        if free {
            counts.inodes += 1;
        }
        free
    }

    pub fn release_inode(&self) {
        let mut counts = self.lock();
        counts.inodes = counts.inodes.saturating_sub(1);
    }
}

/// Gives the blocks that writing `length` bytes at `offset` can need at most: every page that is touched,
/// and what the filesystem may need to find them.
pub fn worst_case(offset: u64, length: u64) -> u64 {
    /// A new leaf and a new index of an extent tree.
    const TREE_PAGES: u64 = 2;
    let end = offset.saturating_add(length).div_ceil(PAGE_BYTES);
    (end - (offset / PAGE_BYTES).min(end)).saturating_add(TREE_PAGES).saturating_mul(PAGE_BLOCKS)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { blocks: 100, inodes: 2 };

    #[test]
    fn reservations_keep_parallel_calls_apart() {
        let account = Account::new(LIMITS, 10, 0);
        let first = account.reserve(60, 0).unwrap();
        assert!(account.reserve(60, 0).is_none(), "only 30 are left");
        let second = account.reserve(30, 0).unwrap();
        drop(first);
        assert!(account.reserve(60, 0).is_some());
        drop(second);
        assert_eq!(account.counts(), Counts { used: 10, reserved: 0, inodes: 0 });
    }

    #[test]
    fn charges_are_replaced_and_never_wrap() {
        let account = Account::new(LIMITS, 0, 0);
        account.replace(0, 40);
        account.replace(40, 8);
        assert_eq!(account.counts().used, 8);
        // A directory that grew unseen and is refunded whole must not wrap the sum.
        account.replace(16, 0);
        assert_eq!(account.counts().used, 0);
        assert!(account.reserve(100, 0).is_some());
    }

    #[test]
    fn overdraft_and_inodes() {
        let account = Account::new(LIMITS, 100, 0);
        assert!(account.reserve(1, 0).is_none());
        assert!(account.reserve(8, 8).is_some());
        assert!(account.reserve(u64::MAX, 0).is_none(), "no overflow");
        assert!(account.claim_inode(0) && account.claim_inode(0) && !account.claim_inode(0));
        account.release_inode();
        assert!(account.claim_inode(0));
    }

    #[test]
    fn worst_cases() {
        for (offset, length, pages) in [(0, 1, 1), (0, 4096, 1), (4095, 2, 2), (1 << 20, 1 << 20, 256), (10, 0, 1)] {
            assert_eq!(worst_case(offset, length), (pages + 2) * 8, "{offset} {length}");
        }
        assert!(worst_case(u64::MAX, u64::MAX) > 0);
    }
}
