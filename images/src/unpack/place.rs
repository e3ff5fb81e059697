//! Where an entry's name says it goes: pure text work, no file is touched.
//!
//! Names are bytes. Leading slashes, `.` and doubled slashes mean nothing; a `..` is refused
//! wherever it stands (T01); `.wh.` names are whiteouts of the OCI layer specification.

use super::error::{EntryProblem, UnpackError, quote};
use super::tree::components;
use crate::limits;

/// Where an entry goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// The root directory itself.
    Root,
    /// `name` in the directory.
    Entry,
    /// Hides `name` of the lower layers.
    Whiteout,
    /// Hides all the directory has in the lower layers.
    Opaque,
    /// Bookkeeping of AUFS that is no part of the image.
    Ignored,
}

/// A cleaned name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub target: Target,
    /// The directory, components joined by single slashes, empty for the root.
    pub directory: Vec<u8>,
    /// The last component; for a whiteout the name that it hides.
    pub name: Vec<u8>,
}

const WHITEOUT_PREFIX: &[u8] = b".wh.";
const AUFS_PREFIX: &[u8] = b".wh..wh.";
const OPAQUE_NAME: &[u8] = b".wh..wh..opq";

/// Cleans the name of an entry.
pub(super) fn of_entry(path: &[u8]) -> Result<Place, UnpackError> {
    let refuse = |problem| UnpackError::Entry { path: quote(path), problem };
    let (directory, name) = split(path).map_err(refuse)?;
    let Some(name) = name else {
        return Ok(Place { target: Target::Root, directory, name: Vec::new() });
    };
    let in_aufs = |part: &[u8]| part.starts_with(AUFS_PREFIX) && part != OPAQUE_NAME;
    if in_aufs(&name) || components(&directory).any(in_aufs) {
        return Ok(Place { target: Target::Ignored, directory, name });
    }
    if components(&directory).any(|part| part.starts_with(WHITEOUT_PREFIX)) {
        return Err(refuse(EntryProblem::Whiteout));
    }
    if name == OPAQUE_NAME {
        return Ok(Place { target: Target::Opaque, directory, name });
    }
    let Some(hidden) = name.strip_prefix(WHITEOUT_PREFIX) else {
        return Ok(Place { target: Target::Entry, directory, name });
    };
    if matches!(hidden, b"" | b"." | b"..") {
        return Err(refuse(EntryProblem::Whiteout));
    }
    Ok(Place { target: Target::Whiteout, directory, name: hidden.to_vec() })
}

/// Cleans the name of an entry of an archive that is no layer: `.wh.` means nothing there.
pub(super) fn of_file(path: &[u8]) -> Result<Place, UnpackError> {
    let (directory, name) = split(path).map_err(|problem| UnpackError::Entry { path: quote(path), problem })?;
    let target = if name.is_some() { Target::Entry } else { Target::Root };
    Ok(Place { target, directory, name: name.unwrap_or_default() })
}

/// Cleans the target of a hard link in such an archive.
pub(super) fn of_plain_link(target: &[u8]) -> Result<(Vec<u8>, Vec<u8>), EntryProblem> {
    let (directory, name) = split(target)?;
    Ok((directory, name.ok_or(EntryProblem::HardLinkTarget)?))
}

/// Cleans the target of a hard link, which is named like an entry of the same archive.
pub(super) fn of_hard_link(target: &[u8]) -> Result<(Vec<u8>, Vec<u8>), EntryProblem> {
    let (directory, name) = split(target)?;
    let name = name.ok_or(EntryProblem::HardLinkTarget)?;
    if components(target).any(|part| part.starts_with(WHITEOUT_PREFIX)) {
        return Err(EntryProblem::HardLinkTarget);
    }
    Ok((directory, name))
}

fn split(path: &[u8]) -> Result<(Vec<u8>, Option<Vec<u8>>), EntryProblem> {
    if path.is_empty() {
        return Err(EntryProblem::EmptyName);
    }
    if path.contains(&0) {
        return Err(EntryProblem::NulByte);
    }
    if path.len() > limits::PATH_BYTES_MAX {
        return Err(EntryProblem::NameTooLong);
    }
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in components(path) {
        if part == b".." {
            return Err(EntryProblem::ParentComponent);
        }
        if part.len() > limits::COMPONENT_BYTES_MAX {
            return Err(EntryProblem::NameTooLong);
        }
        parts.push(part);
    }
    let name = parts.pop().map(<[u8]>::to_vec);
    Ok((parts.join(&b'/'), name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, expect: Option<(Target, &str, &str)>) {
        let place = of_entry(path.as_bytes()).ok();
        let expect =
            expect.map(|(target, directory, name)| Place { target, directory: directory.into(), name: name.into() });
        assert_eq!(place, expect, "{path:?}");
    }

    #[test]
    fn t01_t02_names() {
        for bad in ["../x", "a/../../x", "/../x", "./../x", "a/./..//../x", "..", "a/..", ""] {
            check(bad, None);
        }
        check(&"../".repeat(4000), None);
        check("/etc/x", Some((Target::Entry, "etc", "x")));
        check("//x", Some((Target::Entry, "", "x")));
        check("///", Some((Target::Root, "", "")));
        check("./", Some((Target::Root, "", "")));
        check(".", Some((Target::Root, "", "")));
        check("C:\\x", Some((Target::Entry, "", "C:\\x")));
        check("\\..\\x", Some((Target::Entry, "", "\\..\\x")));
        check("a/./b//c/", Some((Target::Entry, "a/b", "c")));
        check("...", Some((Target::Entry, "", "...")));
        check("a\0b", None);
        check(&"x".repeat(255), Some((Target::Entry, "", &"x".repeat(255))));
        check(&"x".repeat(256), None);
        check(&"x/".repeat(2049), None);
    }

    #[test]
    fn t26_t28_whiteouts() {
        check(".wh.x", Some((Target::Whiteout, "", "x")));
        check("a/.wh.x", Some((Target::Whiteout, "a", "x")));
        check("a/.wh.x/", Some((Target::Whiteout, "a", "x")));
        check("a/.wh....", Some((Target::Whiteout, "a", "...")));
        check("a/.wh..wh..opq", Some((Target::Opaque, "a", ".wh..wh..opq")));
        check(".wh..wh..opq", Some((Target::Opaque, "", ".wh..wh..opq")));
        check(".wh..wh.plnk", Some((Target::Ignored, "", ".wh..wh.plnk")));
        check(".wh..wh.plnk/1.2", Some((Target::Ignored, ".wh..wh.plnk", "1.2")));
        check(".wh..wh.aufs", Some((Target::Ignored, "", ".wh..wh.aufs")));
        for bad in [".wh.", ".wh..", ".wh...", "a/.wh.", "a/.wh..", "a/.wh...", ".wh.d/x", "dne/../.wh.etc"] {
            check(bad, None);
        }
        check(".who", Some((Target::Entry, "", ".who")));
        check("x.wh.y", Some((Target::Entry, "", "x.wh.y")));
    }

    #[test]
    fn t06_hard_link_targets() {
        let check = |target: &str, expect: Option<(&str, &str)>| {
            let expect = expect.map(|(directory, name)| (directory.into(), name.into()));
            assert_eq!(of_hard_link(target.as_bytes()).ok(), expect, "{target}");
        };
        check("/a/b", Some(("a", "b")));
        check("./b", Some(("", "b")));
        for bad in ["../b", "a/../b", "/", ".", "", ".wh.x", "a/.wh.b"] {
            check(bad, None);
        }
    }
}
