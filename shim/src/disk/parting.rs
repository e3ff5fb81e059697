//! Names that go while their file has others.
//!
//! Overlayfs reaches a file by the name under which it first saw it, also when another one is asked for, and asks FUSE
//! each time whether that name still holds. Once it was unlinked or renamed over it does not, and all other names of the
//! file are ESTALE for as long as the kernel remembers them. So before such a name goes the kernel is told to let go of
//! it (by the [`teller`](super::teller)): overlayfs keeps what it has, which stays good for ever once it is asked for again, and
//! a second one is made that goes. That is asked for by an ESTALE, after which unlink(2) and rename(2) begin anew.
//!
//! The names that were answered so are in the state that outlives a server: the kernel's second question may reach the
//! next one, and a second ESTALE would be the container's.
//!
//! What is left: FUSE asks for the name that is gone where one of the others is to be made anew (O_EXCL, mkdir, link) or
//! renamed over. Nobody can tell that question from one for a new file of that name, so it is answered as such, and these
//! calls give ESTALE; unlinking first, or waiting until the kernel has forgotten the file, helps.
//!
//! Telling the kernel more or sooner does not mend that. With LOOKUP_EXCL and LOOKUP_RENAME_TARGET fuse_dentry_revalidate()
//! asks whatever timeout was given, by a LOOKUP that has nothing of its own. FUSE_NOTIFY_INVAL_ENTRY (with or without
//! EXPIRE_ONLY), DELETE and INVAL_INODE reach what the kernel has cached, but overlayfs holds the name in its own inode and
//! takes another only with another inode; it answers its own callers ESTALE and keeps that inode as long as one of the
//! file's names is cached or open. Only a rename through the kernel gives what it holds another name: somebody would have
//! to move the file, by a mount of ours, to a name that lasts, and link the old one anew, while nobody looks.

use std::collections::VecDeque;
use std::ffi::CStr;
use std::fs::File;
use std::io::Result;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::teller::Teller;

/// What is remembered of names that were to go; the kernel comes back for them at once, unless its asker was killed.
const NAMES_MAX: usize = 256;
/// How long a lookup waits until the kernel has been told. It never has to, unless the machine is busy.
const PATIENCE: Duration = Duration::from_secs(1);
/// Where the shared state keeps the names: behind what else is in it, a slot for each.
const STATE_NAMES: u64 = 4096;
/// NAME_MAX bytes and their end.
const NAME_BYTES: usize = 256;
/// A number of the record's own and that of a directory come first.
const RECORD_BYTES: usize = 2 * size_of::<u64>() + NAME_BYTES;
/// In the shared state it is followed by whether the kernel has been told, who must not be told twice: overlayfs gives
/// EIO for a name that goes while it is renamed.
const SLOT_BYTES: usize = RECORD_BYTES + 1;

/// Is a name in a directory that is to go once, as it is kept and sent to the teller; without letters it is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record([u8; RECORD_BYTES]);

impl Default for Record {
    fn default() -> Self {
        Self([0; RECORD_BYTES])
    }
}

impl Record {
    pub fn new(parent: u64, name: &CStr) -> Self {
        let mut record = Self::default();
        let (numbers, letters) = record.0.split_at_mut(2 * size_of::<u64>());
        // Servers come and go, the clock goes on.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos());
        numbers[..size_of::<u64>()].copy_from_slice(&u64::try_from(now).unwrap_or_default().to_ne_bytes());
        numbers[size_of::<u64>()..].copy_from_slice(&parent.to_ne_bytes());
        // A longer one does not exist (NAME_MAX); the last byte ends it.
        for (place, letter) in letters[..NAME_BYTES - 1].iter_mut().zip(name.to_bytes()) {
            *place = *letter;
        }
        record
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }

    /// Gives the directory and the name.
    pub fn name(&self) -> Option<(u64, &CStr)> {
        let (parent, letters) = self.0.get(size_of::<u64>()..)?.split_first_chunk()?;
        let name = CStr::from_bytes_until_nul(letters).ok().filter(|name| !name.is_empty())?;
        Some((u64::from_ne_bytes(*parent), name))
    }

    /// Says whether it is this name, whenever it was to go.
    fn is(&self, parent: u64, name: &CStr) -> bool {
        self.name() == Some((parent, name))
    }
}

#[derive(Debug)]
struct Name {
    record: Record,
    /// Its place in the shared state.
    slot: usize,
    /// The kernel has been told.
    told: bool,
}

/// Keeps the names that are about to go.
#[derive(Debug)]
pub struct Parting {
    count: AtomicUsize,
    names: Mutex<VecDeque<Name>>,
    told: Condvar,
    state: File,
}

impl Parting {
    /// Begins with what a server before this one has kept in the shared state.
    pub fn new(state: File) -> Self {
        let read = |slot| {
            let mut bytes = [0; SLOT_BYTES];
            // Behind the end there is nothing.
            state.read_exact_at(&mut bytes, place(slot)).ok()?;
            let (record, told) = bytes.split_first_chunk()?;
            let record = Record(*record);
            record.name()?;
            Some(Name { record, slot, told: told != [0] })
        };
        let names: VecDeque<Name> = (0..NAMES_MAX).filter_map(read).collect();
        Self { count: AtomicUsize::new(names.len()), names: Mutex::new(names), told: Condvar::new(), state }
    }

    fn names(&self) -> MutexGuard<'_, VecDeque<Name>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says whether a name may go; if not, somebody has to [`tell`](Self::tell) the kernel, which then asks again.
    pub fn may_go(&self, parent: u64, name: &CStr) -> bool {
        if self.forget(parent, name) {
            return true;
        }
        let mut names = self.names();
        if names.len() == NAMES_MAX {
            names.pop_front();
        }
        let is_free = |slot: &usize| names.iter().all(|one| one.slot != *slot);
        let slot = (0..NAMES_MAX).find(is_free).unwrap_or_default();
        let one = Name { record: Record::new(parent, name), slot, told: false };
        self.write(&one);
        names.push_back(one);
        self.count.store(names.len(), Ordering::Release);
        false
    }

    /// Forgets a name; says whether it was about to go.
    pub fn forget(&self, parent: u64, name: &CStr) -> bool {
        if self.count.load(Ordering::Acquire) == 0 {
            return false;
        }
        let mut names = self.names();
        let at = names.iter().position(|one| one.record.is(parent, name));
        let found = at.and_then(|at| names.remove(at));
        let known = found.is_some();
        if let Some(one) = found {
            self.write(&Name { record: Record::default(), ..one });
        }
        self.count.store(names.len(), Ordering::Release);
        known
    }

    fn write(&self, one: &Name) {
        let mut bytes = [u8::from(one.told); SLOT_BYTES];
        bytes[..RECORD_BYTES].copy_from_slice(one.record.bytes());
        // Without memory for it the next server gives one more ESTALE.
        let _ = self.state.write_all_at(&bytes, place(one.slot));
    }

    /// Waits until the kernel has been told of a name that is about to go.
    pub fn wait(&self, parent: u64, name: &CStr, away: impl FnOnce(&mut dyn FnMut())) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        let waits = |names: &mut VecDeque<Name>| names.iter().any(|one| one.record.is(parent, name) && !one.told);
        if waits(&mut self.names()) {
            away(&mut || drop(self.told.wait_timeout_while(self.names(), PATIENCE, waits)));
        }
    }

    /// Has the kernel told of every name it has not been told of. That waits for whoever has the directory, so no thread
    /// that answers requests can do it.
    pub fn tell(&self, teller: &Teller) -> Result<()> {
        loop {
            let next = self.names().iter().find(|one| !one.told).map(|one| one.record.clone());
            let Some(record) = next else { return Ok(()) };
            teller.tell(&record, |heard| {
                for one in self.names().iter_mut().filter(|one| one.record == *heard) {
                    one.told = true;
                    self.write(one);
                }
                self.told.notify_all();
            })?;
        }
    }
}

fn place(slot: usize) -> u64 {
    STATE_NAMES + (slot * SLOT_BYTES) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parting() -> Parting {
        Parting::new(tempfile::tempfile().unwrap())
    }

    #[test]
    fn a_name_goes_when_it_is_asked_for_again() {
        let parting = parting();
        assert!(!parting.may_go(1, c"a"));
        assert!(!parting.may_go(1, c"b") && !parting.may_go(2, c"a"));
        assert!(parting.may_go(1, c"a"));
        assert!(!parting.may_go(1, c"a"), "it is there again");
        for number in 0..2 * NAMES_MAX {
            parting.may_go(number as u64 + 3, c"a");
        }
        assert_eq!(parting.names().len(), NAMES_MAX);
    }

    #[test]
    fn a_name_goes_when_the_next_server_is_asked_for_it_again() {
        let state = tempfile::tempfile().unwrap();
        let server = || Parting::new(state.try_clone().unwrap());
        let long = std::ffi::CString::new(vec![b'x'; 255]).unwrap();
        let first = server();
        assert!(!first.may_go(1, c"a") && !first.may_go(2, &long) && !first.may_go(3, c"c"));
        assert!(first.may_go(1, c"a"));
        let second = server();
        assert!(second.may_go(2, &long) && !second.may_go(2, c"x") && !second.may_go(1, c"a"));
        {
            let mut names = second.names();
            names[0].told = true;
            // c, in the third slot.
            second.write(&names[0]);
        }
        let third = server();
        assert_eq!(third.names().iter().map(|one| one.told).collect::<Vec<_>>(), [false, false, true]);
        assert!(third.may_go(3, c"c") && third.may_go(2, c"x") && third.may_go(1, c"a"));
        assert_eq!(server().names().len(), 0);
    }

    #[test]
    fn lookups_wait_until_the_kernel_was_told() {
        let parting = parting();
        let waited = |parent, name: &CStr| {
            let mut waited = false;
            parting.wait(parent, name, |_| waited = true);
            waited
        };
        assert!(!waited(1, c"a"));
        parting.may_go(1, c"a");
        assert!(waited(1, c"a") && !waited(1, c"b"));
        for one in parting.names().iter_mut() {
            one.told = true;
        }
        assert!(!waited(1, c"a"));
    }
}
