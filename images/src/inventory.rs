//! What a tree was like at one moment, and what is different since: for a root filesystem that is a plain copy of an
//! image, where no overlay keeps the changes apart.
//!
//! A file that was only touched counts as changed: the change time and the inode tell, which nobody inside can set back.
//! The tree may be in use, so it is walked by one name at a time that is never followed (A42).

use std::collections::HashMap;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{self, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::diff::{Change, DiffError, entries, failed};
use crate::unpack::quote;

/// More files than any image has; each is kept in memory while the two are compared.
const ENTRIES_MAX: usize = 1 << 20;
/// Each level holds two descriptors; a process may have 1024.
const DEPTH_MAX: usize = 200;

/// Writes down every file below `root` but the root itself.
///
/// # Errors
/// The tree cannot be read, or `out` not written.
pub fn take(root: &Path, out: &mut dyn Write) -> Result<(), DiffError> {
    walk(root, &mut |path, stat| {
        let line = [mark(stat).as_bytes(), b" ", path, b"\0"].concat();
        out.write_all(&line).map_err(|source| DiffError::Io { op: "write down", path: quote(path), source })?;
        Ok(())
    })
}

/// Lists what is different from what [`take`] wrote, by absolute path, sorted; docker's words, as in
/// [`changes`](crate::diff::changes).
///
/// # Errors
/// The tree cannot be read, or there is too much of it.
pub fn changes(
    root: &Path,
    taken: &[u8],
    leave_out: &dyn Fn(&[u8], &Stat) -> bool,
) -> Result<Vec<(Change, Vec<u8>)>, DiffError> {
    let mut before: HashMap<&[u8], &[u8]> = HashMap::new();
    for line in taken.split(|byte| *byte == 0) {
        // Only the path can contain the sign.
        let Some(end) = line.iter().position(|byte| *byte == b' ') else { continue };
        if before.len() >= ENTRIES_MAX {
            return Err(DiffError::TooMany);
        }
        before.insert(&line[end + 1..], &line[..end]);
    }
    let mut found: Vec<(Change, Vec<u8>)> = Vec::new();
    walk(root, &mut |path, stat| {
        let change = match before.remove(path) {
            Some(old) if old == mark(stat).as_bytes() => None,
            _ if leave_out(path, stat) => None,
            Some(_) => Some(Change::Changed),
            None => Some(Change::Added),
        };
        if found.len() >= ENTRIES_MAX {
            return Err(DiffError::TooMany);
        }
        found.extend(change.map(|change| (change, path.to_vec())));
        Ok(())
    })?;
    // Of a directory that is gone docker names the top only.
    let gone = |path: &[u8]| before.contains_key(path);
    let deleted = before.keys().filter(|path| !parent(path).is_some_and(gone));
    found.extend(deleted.map(|path| (Change::Deleted, path.to_vec())));
    add_parents(&mut found);
    found.sort_by(|a, b| a.1.cmp(&b.1));
    Ok(found)
}

/// A directory whose content changed is itself changed.
fn add_parents(found: &mut Vec<(Change, Vec<u8>)>) {
    let mut known: std::collections::HashSet<Vec<u8>> = found.iter().map(|(_, path)| path.clone()).collect();
    for index in 0..found.len() {
        let mut path = found[index].1.clone();
        while let Some(above) = parent(&path).map(<[u8]>::to_vec) {
            if !known.insert(above.clone()) {
                break;
            }
            found.push((Change::Changed, above.clone()));
            path = above;
        }
    }
}

fn parent(path: &[u8]) -> Option<&[u8]> {
    let end = path.iter().rposition(|byte| *byte == b'/').filter(|end| *end > 0)?;
    path.get(..end)
}

/// Gives what tells one state of a file from another. Of a directory the rights only: what is in it speaks for itself.
fn mark(stat: &Stat) -> String {
    let rights = format!("{:o},{},{}", stat.st_mode, stat.st_uid, stat.st_gid);
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        return rights;
    }
    let times = [stat.st_mtime, stat.st_mtime_nsec as i64, stat.st_ctime, stat.st_ctime_nsec as i64];
    format!("{rights},{},{},{},{:?}", stat.st_size, stat.st_rdev, stat.st_ino, times).replace(' ', "")
}

/// Looks at a file, by its absolute path.
type See<'a> = dyn FnMut(&[u8], &Stat) -> Result<(), DiffError> + 'a;

/// Shows every file below the root with its absolute path, a directory before what is in it.
fn walk(root: &Path, see: &mut See<'_>) -> Result<(), DiffError> {
    let top = fs::openat(CWD, root, directory_flags(), Mode::empty()).map_err(|errno| failed("open", b"/", errno))?;
    below(&top, b"", DEPTH_MAX, see)
}

fn directory_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

fn below(here: &OwnedFd, path: &[u8], depth_left: usize, see: &mut See<'_>) -> Result<(), DiffError> {
    let depth_left = depth_left.checked_sub(1).ok_or_else(|| DiffError::TooDeep { path: quote(path) })?;
    entries(here, path, |name, path, stat| {
        see(path, stat)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return Ok(());
        }
        match fs::openat(here, name, directory_flags(), Mode::empty()) {
            // Something else by now.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(()),
            other => below(&other.map_err(|errno| failed("open", path, errno))?, path, depth_left, see),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn every_kind_of_change_is_seen_even_if_size_and_time_are_as_before() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path();
        let at = |name: &str| root.join(name);
        for directory in ["etc", "gone/deep", "quiet", "stub"] {
            fs_err::create_dir_all(at(directory)).unwrap();
        }
        for file in ["etc/same", "etc/new text", "etc/forged", "gone/deep/file", "quiet/file", "mode"] {
            fs_err::write(at(file), "old").unwrap();
        }
        symlink("a", at("link")).unwrap();
        let mut taken = Vec::new();
        take(root, &mut taken).unwrap();
        let forged = fs_err::metadata(at("etc/forged")).unwrap().modified().unwrap();
        fs_err::write(at("etc/new text"), "new").unwrap();
        fs_err::write(at("etc/forged"), "bad").unwrap();
        fs_err::OpenOptions::new().write(true).open(at("etc/forged")).unwrap().file().set_modified(forged).unwrap();
        fs_err::remove_dir_all(at("gone")).unwrap();
        fs_err::set_permissions(at("mode"), PermissionsExt::from_mode(0o700)).unwrap();
        fs_err::remove_file(at("link")).unwrap();
        symlink("b", at("link")).unwrap();
        fs_err::create_dir_all(at("added/below")).unwrap();
        fs_err::write(at("stub/mount point"), "").unwrap();
        let leave_out = |path: &[u8], _: &Stat| path == b"/stub/mount point";
        let said: Vec<String> = changes(root, &taken, &leave_out)
            .unwrap()
            .into_iter()
            .map(|(change, path)| format!("{} {}", change.letter(), String::from_utf8_lossy(&path)))
            .collect();
        let expected = [
            "A /added",
            "A /added/below",
            "C /etc",
            "C /etc/forged",
            "C /etc/new text",
            "D /gone",
            "C /link",
            "C /mode",
        ];
        assert_eq!(said, expected);
    }
}
