//! What tells the agent that something may have changed here, so that it need not look again and again: the ends of its
//! children, the records that shims publish, and the files by which the owner speaks.
//!
//! A wake-up and no truth: whoever wakes reads the records. Where the kernel has no watch left, and for what no file
//! tells (a shim that was killed), the agent looks by itself, more slowly.

use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::fs::inotify;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::Key;

/// Events that are taken at once; more are taken at the next look.
const EVENTS_MAX: usize = 32;
/// Bytes of notices that are read at once; a name has 255 at most.
const NOTICE_BYTES: usize = 4096;

/// Wakes the agent.
pub struct Watch {
    all: OwnedFd,
    files: OwnedFd,
    containers: BTreeMap<Key, i32>,
}

impl Watch {
    /// Watches what the owner says in `folder`. None where the kernel gives no more watches: one then looks more often.
    pub fn new(folder: &Path) -> Option<Self> {
        let all = epoll::create(epoll::CreateFlags::CLOEXEC).ok()?;
        let files = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).ok()?;
        epoll::add(&all, &files, epoll::EventData::new_u64(0), epoll::EventFlags::IN).ok()?;
        let said = inotify::WatchFlags::MOVED_TO | inotify::WatchFlags::CLOSE_WRITE | inotify::WatchFlags::DELETE;
        inotify::add_watch(&files, folder, said).ok()?;
        Some(Self { all, files, containers: BTreeMap::new() })
    }

    /// Gives a descriptor that can be read from when something has happened.
    pub fn descriptor(&self) -> Option<OwnedFd> {
        self.all.try_clone().ok()
    }

    /// Wakes when a child ends. What is returned is held for as long as that is of interest.
    pub fn child(&self, pid: u32) -> Option<OwnedFd> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
        let process = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // Once: it can be read from until it is reaped.
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ONESHOT;
        epoll::add(&self.all, &process, epoll::EventData::new_u64(1), flags).ok()?;
        Some(process)
    }

    /// Wakes when a container's records change; tells whether that is new, so that what happened before is looked for.
    pub fn container(&mut self, key: Key, directory: &Path) -> bool {
        if self.containers.contains_key(&key) {
            return false;
        }
        let watched = inotify::add_watch(&self.files, directory, inotify::WatchFlags::MOVED_TO);
        watched.is_ok_and(|watched| self.containers.insert(key, watched).is_none())
    }

    /// Stops watching a container.
    pub fn forget(&mut self, key: Key) {
        if let Some(watched) = self.containers.remove(&key) {
            // The kernel forgets it by itself with the directory.
            let _ = inotify::remove_watch(self.files.as_fd(), watched);
        }
    }

    /// Tells whether something has happened since the last call.
    pub fn happened(&self) -> bool {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        let none = Timespec { tv_sec: 0, tv_nsec: 0 };
        let found = epoll::wait(&self.all, spare_capacity(&mut events), Some(&none));
        if !matches!(found, Ok(1..)) {
            return false;
        }
        let mut room = [MaybeUninit::uninit(); NOTICE_BYTES];
        let mut notices = inotify::Reader::new(self.files.as_fd(), &mut room);
        loop {
            match notices.next() {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return true,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coracle_scheduler::model::InstanceId;

    #[test]
    fn it_wakes_for_a_file_a_record_and_a_child_and_for_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let container = tempfile::tempdir().unwrap();
        let key = (InstanceId::new(1), 1);
        let mut watch = Watch::new(folder.path()).unwrap();
        assert!(!watch.happened());
        fs_err::write(folder.path().join("drain"), "1").unwrap();
        assert!(watch.happened() && !watch.happened());
        fs_err::remove_file(folder.path().join("drain")).unwrap();
        assert!(watch.happened() && !watch.happened());
        fs_err::write(container.path().join("new"), "{}").unwrap();
        assert!(watch.container(key, container.path()) && !watch.container(key, container.path()));
        assert!(!watch.happened());
        fs_err::rename(container.path().join("new"), container.path().join("exit.json")).unwrap();
        assert!(watch.happened() && !watch.happened());
        watch.forget(key);
        while watch.happened() {}
        fs_err::rename(container.path().join("exit.json"), container.path().join("new")).unwrap();
        assert!(!watch.happened());
        let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
        let held = watch.child(child.id()).unwrap();
        let process = Pid::from_child(&child);
        let ended = rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT;
        rustix::process::waitid(rustix::process::WaitId::Pid(process), ended).unwrap();
        assert!(watch.happened() && !watch.happened());
        child.wait().unwrap();
        drop(held);
        assert!(!watch.happened());
    }
}
