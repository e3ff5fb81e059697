//! Walks the directory below once: what is used, and after a crash which inode has which names.
//!
//! One descriptor at a time, however deep: the way up is "..", which is safe because nobody else moves
//! anything there.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::io::Result;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Statx, openat, unlinkat};

use super::nodes::{Alias, Nodes};
use super::passthrough::{id_of, look_at};

/// Is what a walk found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sums {
    /// In units of 512 bytes, hard links once.
    pub blocks: u64,
    pub inodes: u64,
}

/// Is one name that a walk found.
pub struct Found<'a> {
    pub parent: u64,
    pub name: &'a CStr,
    pub stat: &'a Statx,
}

pub fn open_dir(dir: &OwnedFd, name: &CStr) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(dir, name, flags, Mode::empty())?)
}

/// Sums everything below and including a directory.
pub fn scan(root: &OwnedFd, visit: &mut dyn FnMut(&Found<'_>)) -> Result<Sums> {
    let mut linked = HashSet::new();
    let top = look_at(root, c".")?;
    let mut sums = Sums { blocks: top.stx_blocks, inodes: 1 };
    let mut dir = open_dir(root, c".")?;
    // The directories still to be entered, for every level that we are in.
    let mut levels = vec![level(&dir, id_of(&top), &mut sums, &mut linked, visit)?];
    loop {
        let Some(pending) = levels.last_mut() else { return Ok(sums) };
        match pending.pop() {
            Some((name, id)) => {
                dir = open_dir(&dir, &name)?;
                levels.push(level(&dir, id, &mut sums, &mut linked, visit)?);
            }
            None => {
                levels.pop();
                if !levels.is_empty() {
                    dir = open_dir(&dir, c"..")?;
                }
            }
        }
    }
}

/// Sums the names in one directory; gives the directories among them.
fn level(
    dir: &OwnedFd,
    parent: u64,
    sums: &mut Sums,
    linked: &mut HashSet<u64>,
    visit: &mut dyn FnMut(&Found<'_>),
) -> Result<Vec<(CString, u64)>> {
    let mut inner = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let stat = look_at(dir, name)?;
        let is_dir = FileType::from_raw_mode(stat.stx_mode.into()).is_dir();
        if is_dir || stat.stx_nlink < 2 || linked.insert(stat.stx_ino) {
            sums.blocks = sums.blocks.saturating_add(stat.stx_blocks);
            sums.inodes += 1;
        }
        visit(&Found { parent, name, stat: &stat });
        if is_dir {
            inner.push((name.to_owned(), id_of(&stat)));
        }
    }
    Ok(inner)
}

/// Deletes what a run that is over kept for its open files.
pub fn empty(orphans: &OwnedFd) -> Result<()> {
    let mut names = Vec::new();
    for entry in Dir::read_from(orphans)? {
        let entry = entry?;
        if entry.file_name() != c"." && entry.file_name() != c".." {
            names.push(entry.file_name().to_owned());
        }
    }
    for name in names {
        unlinkat(orphans, &name, AtFlags::empty())?;
    }
    Ok(())
}

/// Knows a name as the server knew it that died; nobody knows how often the kernel was told.
pub fn inherit(nodes: &mut Nodes, found: &Found<'_>, parent: u64, orphans: u64) {
    let id = id_of(found.stat);
    let fixed = nodes.map.get(&id).is_some_and(|node| node.pin().is_some());
    let node = nodes.map.entry(id).or_default();
    node.inherited = true;
    node.blocks = found.stat.stx_blocks;
    if fixed {
        return;
    }
    let alias = Alias { parent, name: found.name.into() };
    if parent == orphans {
        node.orphan = true;
    }
    // The name under which it is kept is the one that lasts.
    node.add(alias, parent == orphans);
}
