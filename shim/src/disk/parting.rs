//! Names that go while their file has others.
//!
//! Overlayfs reaches a file by the name under which it first saw it, also when another one is asked for, and asks FUSE
//! each time whether that name still holds. Once it was unlinked or renamed over it does not, and all other names of the
//! file are ESTALE for as long as the kernel remembers them. So before such a name goes the kernel is told to let go of
//! it (FUSE_NOTIFY_INVAL_ENTRY): overlayfs keeps what it has, which stays good for ever once it is asked for again, and
//! a second one is made that goes. That is asked for by an ESTALE, after which unlink(2) and rename(2) begin anew.
//!
//! What is left: FUSE asks for the name that is gone where one of the others is to be made anew (O_EXCL, mkdir, link) or
//! renamed over. Nobody can tell that question from one for a new file of that name, so it is answered as such, and these
//! calls give ESTALE; unlinking first, or waiting until the kernel has forgotten the file, helps.

use std::collections::VecDeque;
use std::ffi::CStr;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What is remembered of names that were to go; the kernel comes back for them at once, unless its asker was killed.
const NAMES_MAX: usize = 256;
/// How long a lookup waits until the kernel has been told. It never has to, unless the machine is busy.
const PATIENCE: Duration = Duration::from_secs(1);
/// FUSE_NOTIFY_INVAL_ENTRY of linux/fuse.h.
const NOTIFY_INVAL_ENTRY: u32 = 3;

#[derive(Debug)]
struct Name {
    parent: u64,
    name: Box<CStr>,
    /// The kernel has been told.
    told: bool,
}

impl Name {
    fn is(&self, parent: u64, name: &CStr) -> bool {
        self.parent == parent && *self.name == *name
    }
}

/// Keeps the names that are about to go.
#[derive(Debug, Default)]
pub struct Parting {
    count: AtomicUsize,
    names: Mutex<VecDeque<Name>>,
    told: Condvar,
}

impl Parting {
    fn names(&self) -> MutexGuard<'_, VecDeque<Name>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says whether a name may go; if not, somebody has to [`tell`](Self::tell) the kernel, which then asks again.
    pub fn may_go(&self, parent: u64, name: &CStr) -> bool {
        let mut names = self.names();
        let found = names.iter().position(|one| one.is(parent, name));
        match found {
            Some(at) => drop(names.remove(at)),
            None => {
                if names.len() == NAMES_MAX {
                    names.pop_front();
                }
                names.push_back(Name { parent, name: name.into(), told: false });
            }
        }
        self.count.store(names.len(), Ordering::Release);
        found.is_some()
    }

    /// Waits until the kernel has been told of a name that is about to go.
    pub fn wait(&self, parent: u64, name: &CStr, away: impl FnOnce(&mut dyn FnMut())) {
        let waits = |names: &mut VecDeque<Name>| names.iter().any(|one| one.is(parent, name) && !one.told);
        if self.count.load(Ordering::Acquire) == 0 || !waits(&mut self.names()) {
            return;
        }
        away(&mut || drop(self.told.wait_timeout_while(self.names(), PATIENCE, waits)));
    }

    /// Tells the kernel of every name it has not been told of. It may wait for whoever has the directory, so no thread that
    /// answers requests can do it.
    pub fn tell(&self, device: BorrowedFd<'_>) {
        loop {
            let next = self.names().iter().find(|one| !one.told).map(|one| (one.parent, one.name.clone()));
            let Some((parent, name)) = next else { return };
            // A name that the kernel has forgotten meanwhile is what was wanted.
            let _ = rustix::io::write(device, &message(parent, &name));
            for one in self.names().iter_mut().filter(|one| one.is(parent, &name)) {
                one.told = true;
            }
            self.told.notify_all();
        }
    }
}

/// Gives `struct fuse_out_header`, `struct fuse_notify_inval_entry_out` and the name.
fn message(parent: u64, name: &CStr) -> Vec<u8> {
    const HEADERS_BYTES: usize = 32;
    let word = |number: usize| u32::try_from(number).unwrap_or(u32::MAX).to_ne_bytes();
    let (bytes, length) = (name.to_bytes_with_nul(), name.to_bytes().len());
    [
        &word(HEADERS_BYTES + bytes.len())[..],
        &NOTIFY_INVAL_ENTRY.to_ne_bytes(),
        &0_u64.to_ne_bytes(),
        &parent.to_ne_bytes(),
        &word(length),
        &0_u32.to_ne_bytes(),
        bytes,
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_goes_when_it_is_asked_for_again() {
        let parting = Parting::default();
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
    fn lookups_wait_until_the_kernel_was_told() {
        let parting = Parting::default();
        let waited = |parent, name: &CStr| {
            let mut waited = false;
            parting.wait(parent, name, |_| waited = true);
            waited
        };
        assert!(!waited(1, c"a"));
        parting.may_go(1, c"a");
        assert!(waited(1, c"a") && !waited(1, c"b"));
        let null = fs_err::File::options().write(true).open("/dev/null").unwrap().into_file();
        parting.tell(std::os::fd::AsFd::as_fd(&null));
        assert!(!waited(1, c"a"));
    }

    #[test]
    fn the_message_is_as_the_kernel_wants_it() {
        let message = message(7, c"name");
        assert_eq!(message.len(), 16 + 16 + 5);
        assert_eq!(
            (&message[..4], &message[24..28], &message[32..]),
            (&[37, 0, 0, 0][..], &[4, 0, 0, 0][..], &b"name\0"[..])
        );
    }
}
