//! What the kernel knows: nodes by number, their names, what they are charged, and a bounded number of
//! open descriptors.
//!
//! A node's number is its inode's plus one, so it means the same after a restart. It cannot pass to
//! another inode while the kernel knows it: whatever loses its last name is kept under a name in
//! [`ORPHANS`](super::ORPHANS), a directory by a descriptor, until the kernel forgets it.

use std::collections::{HashMap, VecDeque};
use std::ffi::{CStr, CString};
use std::fs::File;
use std::hash::Hash;
use std::io::Result;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;

/// FUSE_ROOT_ID of linux/fuse.h.
pub const ROOT: u64 = 1;
/// Directories that stay open between calls; a path that is deeper costs a few opens more.
const DIRECTORIES_MAX: usize = 256;
/// Files that stay open between calls.
const FILES_MAX: usize = 512;

/// Is one name of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alias {
    pub parent: u64,
    pub name: Box<CStr>,
}

/// Is an inode that the kernel knows. There may be hundreds of thousands, so what is rare lies apart.
#[derive(Debug, Default)]
pub struct Node {
    /// The name by which it is reached.
    alias: Option<Alias>,
    rare: Option<Box<Rare>>,
    /// Its charge, in units of 512 bytes.
    pub blocks: u64,
    /// How many times the kernel was told of it and has not yet forgotten.
    pub lookups: u32,
    /// Told of by a server that died, nobody knows how often.
    pub inherited: bool,
    /// Has no name that the container sees.
    pub orphan: bool,
    /// Overlayfs knows it by a name that is gone, see [`parting`](super::parting).
    parted: bool,
}

/// Is what few inodes have.
#[derive(Debug, Default)]
struct Rare {
    aliases: Vec<Alias>,
    /// Keeps a directory without a name, or one that is always there.
    pin: Option<Arc<OwnedFd>>,
}

impl Node {
    fn pinned(pin: Arc<OwnedFd>) -> Self {
        Self { rare: Some(Box::new(Rare { pin: Some(pin), ..Rare::default() })), inherited: true, ..Self::default() }
    }

    pub fn alias(&self) -> Option<&Alias> {
        self.alias.as_ref()
    }

    pub fn pin(&self) -> Option<&Arc<OwnedFd>> {
        self.rare.as_ref()?.pin.as_ref()
    }

    fn aliases(&self) -> impl Iterator<Item = &Alias> {
        self.alias.iter().chain(self.rare.iter().flat_map(|rare| &rare.aliases))
    }

    /// Forgets every name; this one is left, or a descriptor.
    pub fn keep_only(&mut self, alias: Option<Alias>, pin: Option<Arc<OwnedFd>>) {
        self.alias = alias;
        self.rare = pin.map(|pin| Box::new(Rare { pin: Some(pin), aliases: Vec::new() }));
    }

    /// Notes one more name, as the one by which it is reached if that is wanted.
    pub fn add(&mut self, alias: Alias, first: bool) {
        let Some(old) = &mut self.alias else {
            self.alias = Some(alias);
            return;
        };
        let other = if first { std::mem::replace(old, alias) } else { alias };
        self.rare.get_or_insert_default().aliases.push(other);
    }

    fn remove(&mut self, parent: u64, name: &CStr) {
        let is_it = |alias: &Alias| alias.parent == parent && *alias.name == *name;
        if let Some(rare) = &mut self.rare {
            rare.aliases.retain(|alias| !is_it(alias));
        }
        if self.alias.as_ref().is_some_and(is_it) {
            // The oldest of the others.
            self.alias = self.rare.as_mut().filter(|rare| !rare.aliases.is_empty()).map(|rare| rare.aliases.remove(0));
        }
    }
}

/// Is where an inode is reached: a directory, and a name in it that is never followed.
#[derive(Debug, Clone)]
pub struct Place {
    pub dir: Arc<OwnedFd>,
    pub name: Box<CStr>,
}

/// Keeps the most recent values, and those in use.
#[derive(Debug)]
struct Recent<K, V> {
    map: HashMap<K, Arc<V>>,
    order: VecDeque<K>,
    most: usize,
}

impl<K: Hash + Eq + Copy, V> Recent<K, V> {
    fn new(most: usize) -> Self {
        Self { map: HashMap::new(), order: VecDeque::new(), most }
    }

    fn insert(&mut self, key: K, value: Arc<V>) {
        if self.map.insert(key, value).is_none() {
            self.order.push_back(key);
        }
        self.shrink(self.most);
    }

    /// Drops the oldest that nobody uses, until at most `most` are left.
    fn shrink(&mut self, most: usize) {
        for _ in 0..self.order.len() {
            if self.map.len() <= most {
                return;
            }
            let Some(key) = self.order.pop_front() else { return };
            match self.map.get(&key) {
                Some(value) if Arc::strong_count(value) > 1 => self.order.push_back(key),
                _ => drop(self.map.remove(&key)),
            }
        }
    }

    fn remove(&mut self, key: &K) {
        if self.map.remove(key).is_some() {
            self.order.retain(|other| other != key);
        }
    }
}

/// Keeps all nodes.
#[derive(Debug)]
pub struct Nodes {
    pub map: HashMap<u64, Node>,
    directories: Recent<u64, OwnedFd>,
    files: Recent<u64, File>,
}

impl Nodes {
    /// Starts with the two directories that are always there.
    pub fn new(root: OwnedFd, orphans: (u64, OwnedFd)) -> Self {
        let fixed = |fd| Node { lookups: 1, ..Node::pinned(Arc::new(fd)) };
        Self {
            map: HashMap::from([(ROOT, fixed(root)), (orphans.0, fixed(orphans.1))]),
            directories: Recent::new(DIRECTORIES_MAX),
            files: Recent::new(FILES_MAX),
        }
    }

    /// Knows a directory for ever.
    pub fn fix(&mut self, id: u64, dir: OwnedFd) {
        self.map.insert(id, Node::pinned(Arc::new(dir)));
    }

    pub fn get(&self, id: u64) -> Result<&Node> {
        self.map.get(&id).ok_or_else(|| Errno::STALE.into())
    }

    /// Finds an inode by one of its names.
    pub fn place(&mut self, id: u64) -> Result<Place> {
        let node = self.get(id)?;
        if let Some(pin) = node.pin() {
            return Ok(Place { dir: pin.clone(), name: c".".into() });
        }
        let Alias { parent, name } = node.alias().ok_or(Errno::STALE)?.clone();
        Ok(Place { dir: self.directory(parent)?, name })
    }

    /// Gives a descriptor of a directory, opened from the nearest one above it that is open.
    pub fn directory(&mut self, id: u64) -> Result<Arc<OwnedFd>> {
        let mut missing = Vec::new();
        let mut current = id;
        let mut dir = loop {
            if let Some(open) = self.directories.map.get(&current) {
                break open.clone();
            }
            let node = self.get(current)?;
            if let Some(pin) = node.pin() {
                break pin.clone();
            }
            let alias = node.alias().ok_or(Errno::STALE)?;
            missing.push((current, alias.name.clone()));
            current = alias.parent;
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        for (id, name) in missing.into_iter().rev() {
            dir = Arc::new(self.with_room(|| openat(&dir, &*name, flags, Mode::empty()))?);
            self.directories.insert(id, dir.clone());
        }
        Ok(dir)
    }

    /// Opens a regular file for reading and writing, or gives the descriptor that is open.
    pub fn file(&mut self, id: u64) -> Result<Arc<File>> {
        if let Some(open) = self.open_file(id) {
            return Ok(open);
        }
        let place = self.place(id)?;
        // NONBLOCK only matters for what is no regular file, which nobody asks to open.
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = self.with_room(|| openat(&place.dir, &*place.name, flags, Mode::empty()))?;
        let file = Arc::new(File::from(fd));
        self.files.insert(id, file.clone());
        Ok(file)
    }

    /// Gives the descriptor of a file that is open already.
    pub fn open_file(&self, id: u64) -> Option<Arc<File>> {
        self.files.map.get(&id).cloned()
    }

    /// Opens once more with fewer kept descriptors where there are too many.
    fn with_room<T>(&mut self, mut open: impl FnMut() -> rustix::io::Result<T>) -> Result<T> {
        match open() {
            Err(Errno::MFILE | Errno::NFILE) => {
                self.files.shrink(0);
                self.directories.shrink(0);
                Ok(open()?)
            }
            result => Ok(result?),
        }
    }

    /// Notes one more name, or the only one of what cannot have two.
    pub fn add_alias(&mut self, id: u64, parent: u64, name: &CStr, many: bool) -> &mut Node {
        let node = self.map.entry(id).or_default();
        if node.pin().is_some() {
            return node;
        }
        if many {
            if !node.aliases().any(|alias| alias.parent == parent && *alias.name == *name) {
                node.add(Alias { parent, name: name.into() }, false);
            }
        } else if node.alias.as_ref().is_none_or(|alias| alias.parent != parent || *alias.name != *name) {
            node.keep_only(Some(Alias { parent, name: name.into() }), None);
        }
        node
    }

    /// Says whether overlayfs may know a file of several names by this one: the first that it heard of. Which that was of
    /// those that a server before this one told of, nobody knows.
    pub fn is_known_by(&self, id: u64, parent: u64, name: &CStr) -> bool {
        let is_it = |node: &Node| node.alias().is_some_and(|alias| alias.parent == parent && *alias.name == *name);
        self.map.get(&id).is_some_and(|node| node.inherited || (!node.parted && is_it(node)))
    }

    /// Notes that the name is going by which overlayfs knows a file.
    pub fn note_parted(&mut self, id: u64) {
        if let Some(node) = self.map.get_mut(&id) {
            node.parted = true;
        }
    }

    /// Gives a name to another place and keeps its rank.
    pub fn move_alias(&mut self, id: u64, (parent, name): (u64, &CStr), new: (u64, &CStr)) {
        let Some(node) = self.map.get_mut(&id) else { return };
        let others = node.rare.iter_mut().flat_map(|rare| &mut rare.aliases);
        let found = node.alias.iter_mut().chain(others).find(|alias| alias.parent == parent && *alias.name == *name);
        match found {
            Some(alias) => *alias = Alias { parent: new.0, name: new.1.into() },
            None => drop(self.add_alias(id, new.0, new.1, true)),
        }
    }

    /// Forgets a name.
    pub fn remove_alias(&mut self, id: u64, parent: u64, name: &CStr) {
        if let Some(node) = self.map.get_mut(&id) {
            node.remove(parent, name);
        }
    }

    /// Says whether the kernel knows it and this is the only name we know.
    pub fn is_last_alias(&self, id: u64, parent: u64, name: &CStr) -> bool {
        self.map.get(&id).is_some_and(|node| {
            node.aliases().all(|alias| alias.parent == parent && *alias.name == *name) && node.pin().is_none()
        })
    }

    /// Takes a node away when the kernel has forgotten it.
    pub fn forget(&mut self, id: u64, count: u64) -> Option<Node> {
        let node = self.map.get_mut(&id)?;
        node.lookups = node.lookups.saturating_sub(u32::try_from(count).unwrap_or(u32::MAX));
        // What a dead server told of is forgotten with what we told: the kernel sends the whole sum.
        let gone = if node.inherited { node.orphan } else { node.lookups == 0 };
        if !gone || id == ROOT {
            return None;
        }
        let node = self.map.remove(&id);
        self.files.remove(&id);
        self.directories.remove(&id);
        node
    }

    /// Forgets a descriptor of a directory that is about to lose its name.
    pub fn close_directory(&mut self, id: u64) {
        self.directories.remove(&id);
    }
}

/// Makes an owned name.
pub fn name_of(number: u64) -> CString {
    CString::new(number.to_string()).unwrap_or_default()
}
