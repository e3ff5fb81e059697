//! What a mirror has on disk, under the names of its digests.
//!
//! ```text
//! lock               held by the scheduler that uses the folder
//! blobs/sha256/<hex> whole and verified: renamed into place after it was synced
//! tags/<hex>.json    what a tag meant when the registry was last asked
//! incoming/          what is on its way in or out; nothing in it survives a start
//! ```
//! What is there and what is on its way never take more than the cap together: the least recently used makes room. Who
//! reads a file that goes has its descriptor and notices nothing.

use std::collections::{BTreeMap, HashMap};
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use fs_err::os::unix::fs::OpenOptionsExt as _;
use rustix::fs::{FlockOperation, flock};

use super::name::Content;
use super::{MANIFEST_BYTES_MAX, ShelfError};

/// Bytes that are read at once.
const PIECE_BYTES: u64 = 64 * 1024;

#[derive(Debug, Default)]
struct Items {
    known: HashMap<Content, Item>,
    /// Least recently used first.
    order: BTreeMap<u64, Content>,
    held_bytes: u64,
    reserved_bytes: u64,
    tick: u64,
}

#[derive(Debug, Clone, Copy)]
struct Item {
    size_bytes: u64,
    used: u64,
}

impl Items {
    fn insert(&mut self, content: Content, size_bytes: u64) {
        self.remove(&content);
        self.tick += 1;
        self.held_bytes += size_bytes;
        self.order.insert(self.tick, content.clone());
        self.known.insert(content, Item { size_bytes, used: self.tick });
    }

    fn remove(&mut self, content: &Content) {
        if let Some(item) = self.known.remove(content) {
            self.order.remove(&item.used);
            self.held_bytes -= item.size_bytes;
        }
    }

    fn touch(&mut self, content: &Content) -> Option<u64> {
        let item = self.known.get_mut(content)?;
        self.tick += 1;
        self.order.remove(&item.used);
        item.used = self.tick;
        self.order.insert(self.tick, content.clone());
        Some(item.size_bytes)
    }
}

/// Room for content that is on its way; given back when it is dropped.
#[derive(Debug)]
pub struct Reservation {
    shelf: Arc<Shelf>,
    bytes: u64,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shelf.items().reserved_bytes -= self.bytes;
    }
}

/// The files of a mirror.
#[derive(Debug)]
pub struct Shelf {
    folder: PathBuf,
    cap_bytes: u64,
    items: Mutex<Items>,
    number: AtomicU64,
    /// How often something had to make room.
    pub evicted: AtomicU64,
    _lock: std::fs::File,
}

impl Shelf {
    /// Opens a folder, making it when it is missing, and forgets what was on its way when the last user ended.
    pub fn open(folder: &Path, cap_bytes: u64) -> Result<Arc<Self>, ShelfError> {
        let failed = |source| ShelfError::File { path: folder.to_owned(), source };
        let lock = Self::prepare(folder).map_err(failed)?;
        if flock(lock.as_fd(), FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(ShelfError::Taken { path: folder.to_owned() });
        }
        for left in fs_err::read_dir(folder.join("incoming")).map_err(failed)? {
            fs_err::remove_file(left.map_err(failed)?.path()).map_err(failed)?;
        }
        let items = Mutex::new(Self::found(folder).map_err(failed)?);
        let number = AtomicU64::new(0);
        let evicted = AtomicU64::new(0);
        let shelf = Arc::new(Self { folder: folder.to_owned(), cap_bytes, items, number, evicted, _lock: lock });
        // The cap may have been larger the last time.
        drop(shelf.reserve(0));
        Ok(shelf)
    }

    fn prepare(folder: &Path) -> std::io::Result<std::fs::File> {
        use std::os::unix::fs::DirBuilderExt as _;
        let mut builder = std::fs::DirBuilder::new();
        let builder = builder.recursive(true).mode(0o700);
        for part in ["blobs/sha256", "blobs/sha512", "tags", "incoming"] {
            builder.create(folder.join(part))?;
        }
        let mut options = fs_err::OpenOptions::new();
        let lock = options.write(true).create(true).truncate(false).mode(0o600).open(folder.join("lock"))?;
        Ok(lock.into_parts().0)
    }

    /// Lists what is there, by the time of its last use.
    fn found(folder: &Path) -> std::io::Result<Items> {
        let mut all: Vec<(SystemTime, Content, u64)> = Vec::new();
        for algorithm in ["sha256", "sha512"] {
            for entry in fs_err::read_dir(folder.join("blobs").join(algorithm))? {
                let entry = entry?;
                let name = entry.file_name();
                let content = name.to_str().and_then(|hex| Content::parse(&format!("{algorithm}:{hex}")));
                let about = entry.metadata()?;
                match content.filter(|_| about.is_file()) {
                    Some(content) => all.push((about.modified()?, content, about.len())),
                    None => {
                        return Err(std::io::Error::other(format!("{} does not belong here", entry.path().display())));
                    }
                }
            }
        }
        all.sort_by_key(|(used, ..)| *used);
        let mut items = Items::default();
        all.into_iter().for_each(|(_, content, size_bytes)| items.insert(content, size_bytes));
        Ok(items)
    }

    fn items(&self) -> MutexGuard<'_, Items> {
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where something of the mirror's own is.
    pub fn path(&self, part: &str) -> PathBuf {
        self.folder.join(part)
    }

    fn place(&self, content: &Content) -> PathBuf {
        self.folder.join("blobs").join(content.folder()).join(content.hex())
    }

    fn passing(&self) -> PathBuf {
        self.folder.join("incoming").join(self.number.fetch_add(1, Ordering::Relaxed).to_string())
    }

    /// How many bytes are there.
    pub fn held_bytes(&self) -> u64 {
        self.items().held_bytes
    }

    /// Tells how large something is that is there, without using it.
    pub fn size_bytes(&self, content: &Content) -> Option<u64> {
        self.items().known.get(content).map(|item| item.size_bytes)
    }

    /// Tells whether something is there, without using it.
    pub fn has(&self, content: &Content) -> bool {
        self.items().known.contains_key(content)
    }

    /// Opens what is there; it has been used now.
    pub fn get(&self, content: &Content) -> Option<(std::fs::File, u64)> {
        let mut items = self.items();
        let size_bytes = items.touch(content)?;
        match fs_err::File::open(self.place(content)) {
            Ok(file) => {
                let (file, _) = file.into_parts();
                // For the order after the next start; without it something else makes room.
                let _ = file.set_modified(SystemTime::now());
                Some((file, size_bytes))
            }
            // What is there and cannot be opened now, for want of descriptors say, still takes its room.
            Err(error) => {
                if error.kind() == std::io::ErrorKind::NotFound {
                    items.remove(content);
                }
                None
            }
        }
    }

    /// Reads a manifest that is there and what it should be; one that is damaged goes. What is larger is no manifest,
    /// and stays: anybody may ask for the digest of a layer here.
    pub fn read(&self, content: &Content) -> Option<Result<Vec<u8>, ()>> {
        let (file, size_bytes) = self.get(content)?;
        if size_bytes > MANIFEST_BYTES_MAX {
            return None;
        }
        let mut bytes = Vec::new();
        let read = file.take(MANIFEST_BYTES_MAX + 1).read_to_end(&mut bytes);
        if read.is_ok() && content.is(&bytes) {
            return Some(Ok(bytes));
        }
        self.remove(content);
        Some(Err(()))
    }

    /// Makes room; `None` when something would not fit even if all that is kept went. Then nothing goes.
    pub fn reserve(self: &Arc<Self>, bytes: u64) -> Option<Reservation> {
        let mut condemned = Vec::new();
        let room = {
            let mut items = self.items();
            if items.reserved_bytes.saturating_add(bytes) > self.cap_bytes {
                return None;
            }
            loop {
                let used = items.held_bytes.saturating_add(items.reserved_bytes);
                if used.saturating_add(bytes) <= self.cap_bytes {
                    items.reserved_bytes += bytes;
                    break true;
                }
                let Some(oldest) = items.order.values().next().cloned() else { break false };
                // Its place may be taken again before it is gone.
                let aside = self.passing();
                if fs_err::rename(self.place(&oldest), &aside).is_ok() {
                    condemned.push(aside);
                }
                items.remove(&oldest);
                self.evicted.fetch_add(1, Ordering::Relaxed);
            }
        };
        // To end a large file takes a while.
        condemned.iter().for_each(|path| drop(fs_err::remove_file(path)));
        room.then(|| Reservation { shelf: Arc::clone(self), bytes })
    }

    /// Takes away what turned out to be something else.
    pub fn remove(&self, content: &Content) {
        let mut items = self.items();
        let _ = fs_err::remove_file(self.place(content));
        items.remove(content);
    }

    /// Begins a file that nobody sees yet.
    pub fn begin(&self) -> std::io::Result<Incoming> {
        let path = self.passing();
        let mut options = fs_err::OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Incoming { file: Arc::new(file.into_parts().0), path })
    }

    /// Gives a verified file its name.
    pub fn publish(&self, incoming: Incoming, content: &Content, mut room: Reservation) -> std::io::Result<()> {
        incoming.file.sync_all()?;
        let size_bytes = incoming.file.metadata()?.len();
        let place = self.place(content);
        let mut items = self.items();
        fs_err::rename(&incoming.path, &place)?;
        items.insert(content.clone(), size_bytes);
        // What was reserved is held now; it never counts twice, which could refuse something else.
        items.reserved_bytes -= std::mem::take(&mut room.bytes);
        drop(items);
        match place.parent() {
            Some(folder) => fs_err::File::open(folder)?.sync_all(),
            None => Ok(()),
        }
    }

    /// Takes verified bytes in; what there is no room for is not kept.
    pub fn add(self: &Arc<Self>, content: &Content, bytes: &[u8]) -> std::io::Result<()> {
        let Some(room) = self.reserve(bytes.len() as u64) else { return Ok(()) };
        let incoming = self.begin()?;
        (&*incoming.file).write_all(bytes)?;
        self.publish(incoming, content, room)
    }

    /// Replaces a small file of the mirror's own.
    pub fn replace(&self, path: &Path, text: &[u8]) -> std::io::Result<()> {
        let incoming = self.begin()?;
        (&*incoming.file).write_all(text)?;
        incoming.file.sync_all()?;
        fs_err::rename(&incoming.path, path)
    }
}

/// A file on its way in. Dropped before it was published, it is gone.
#[derive(Debug)]
pub struct Incoming {
    /// What is written, and read by who waits for it.
    pub file: Arc<std::fs::File>,
    path: PathBuf,
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // After a rename there is nothing of this name.
        let _ = fs_err::remove_file(&self.path);
    }
}

/// Reads a piece of a file.
pub fn piece(file: &std::fs::File, at: u64, end: u64) -> std::io::Result<Vec<u8>> {
    use std::os::unix::fs::FileExt as _;
    let mut bytes = vec![0; usize::try_from(end.saturating_sub(at).min(PIECE_BYTES)).unwrap_or(0)];
    file.read_exact_at(&mut bytes, at)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(shelf: &Arc<Shelf>, bytes: &[u8]) -> Content {
        let content = Content::of(bytes);
        shelf.add(&content, bytes).unwrap();
        content
    }

    #[test]
    fn the_least_recently_used_makes_room_and_readers_notice_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(folder.path(), 30).unwrap();
        let (a, b) = (add(&shelf, b"aaaaaaaaaa"), add(&shelf, b"bbbbbbbbbb"));
        let c = add(&shelf, b"cccccccccc");
        let (reader, size) = shelf.get(&a).unwrap();
        assert_eq!((size, shelf.held_bytes()), (10, 30));
        let d = add(&shelf, b"dddddddddd");
        assert!(shelf.get(&b).is_none() && shelf.has(&a) && shelf.has(&c) && shelf.has(&d));
        // What is on its way counts, and what is larger than everything is not kept.
        let room = shelf.reserve(25).unwrap();
        assert_eq!((shelf.held_bytes(), shelf.reserve(6).is_none()), (0, true));
        assert_eq!(piece(&reader, 2, 5).unwrap(), b"aaa");
        drop(room);
        assert!(shelf.reserve(31).is_none() && shelf.reserve(30).is_some());
        assert_eq!(fs_err::read_dir(folder.path().join("incoming")).unwrap().count(), 0);
    }

    #[test]
    fn the_next_start_finds_whole_files_in_their_order_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(folder.path(), 100).unwrap();
        let (a, b) = (add(&shelf, b"aaaaaaaaaa"), add(&shelf, b"bbbbbbbbbb"));
        assert!(matches!(Shelf::open(folder.path(), 100), Err(ShelfError::Taken { .. })));
        let old = SystemTime::now() - std::time::Duration::from_secs(60);
        shelf.get(&b).unwrap().0.set_modified(old).unwrap();
        let left = shelf.begin().unwrap();
        (&*left.file).write_all(b"half").unwrap();
        std::mem::forget(left);
        drop(shelf);
        let shelf = Shelf::open(folder.path(), 10).unwrap();
        assert!(shelf.has(&a) && !shelf.has(&b), "the cap is smaller now");
        assert_eq!(fs_err::read_dir(folder.path().join("incoming")).unwrap().count(), 0);
        fs_err::write(folder.path().join("blobs/sha256").join(a.hex()), "rotten....").unwrap();
        assert_eq!(shelf.read(&a), Some(Err(())));
        assert_eq!((shelf.read(&a), shelf.held_bytes()), (None, 0));
    }

    #[test]
    fn what_can_never_fit_makes_no_room() {
        let folder = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(folder.path(), 30).unwrap();
        let (a, b, c) = (add(&shelf, b"aaaaaaaaaa"), add(&shelf, b"bbbbbbbbbb"), add(&shelf, b"cccccccccc"));
        assert!(shelf.reserve(31).is_none());
        assert!(shelf.has(&a) && shelf.has(&b) && shelf.has(&c));
        // What is on its way does not go for anything either.
        let room = shelf.reserve(5).unwrap();
        assert!(shelf.reserve(26).is_none() && shelf.reserve(u64::MAX).is_none());
        assert!(!shelf.has(&a) && shelf.has(&b) && shelf.has(&c));
        drop(room);
        assert!(shelf.reserve(30).is_some());
    }

    #[test]
    fn what_cannot_be_opened_now_is_not_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(folder.path(), 30).unwrap();
        let a = add(&shelf, b"aaaaaaaaaa");
        let (place, aside) = (folder.path().join("blobs/sha256").join(a.hex()), folder.path().join("aside"));
        fs_err::rename(&place, &aside).unwrap();
        // A link to itself cannot be opened by anybody.
        fs_err::os::unix::fs::symlink(&place, &place).unwrap();
        assert!(shelf.get(&a).is_none() && shelf.has(&a));
        fs_err::remove_file(&place).unwrap();
        fs_err::rename(&aside, &place).unwrap();
        assert!(shelf.get(&a).is_some());
        fs_err::remove_file(&place).unwrap();
        assert!(shelf.get(&a).is_none());
        assert_eq!((shelf.has(&a), shelf.held_bytes()), (false, 0));
    }
}
