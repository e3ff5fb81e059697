//! Unpacks an archive of files into a tree that is there already: cp into a container and out of one.
//!
//! The same care as for layers, and two rules more: what is in the way is replaced only by its own
//! kind, and nothing that the archive does not list is touched. Where the archive goes is decided
//! when its first entry is known, because docker's rules depend on whether that is a directory.

use std::io::BufRead;
use std::os::fd::OwnedFd;

use super::archive::{Archive, Entry};
use super::directories::Notes;
use super::error::{EntryProblem, UnpackError, quote};
use super::header::Kind;
use super::ids::Ids;
use super::tree::{Tree, components};
use super::{Extractor, UnpackOptions, UnpackReport, drain};
use crate::layer::Ownership;
use crate::limits::Limits;

/// What the top of a copied tree is called on its way; its name is given where it arrives.
pub const TOP: &[u8] = b"top";

/// Where the entries of an archive go.
#[derive(Debug)]
pub struct Destination {
    /// An open directory.
    pub directory: OwnedFd,
    /// The name that [`TOP`] gets there. Empty: what is in it goes straight into the directory.
    /// `None`: the archive's own names count.
    pub name: Option<Vec<u8>>,
}

/// How an archive is unpacked.
#[derive(Debug, Clone)]
pub struct ExtractOptions<'a> {
    /// What happens to owners.
    pub ownership: Ownership,
    /// The mode bits that are taken over.
    pub mode_mask: u32,
    /// Bounds.
    pub limits: &'a Limits,
}

/// Unpacks the archive in `reader` to where `choose` says when it hears what the first entry is, and
/// reads the stream to its end. An empty archive changes nothing.
///
/// # Errors
/// What was unpacked before stays.
pub fn extract<E: From<UnpackError>>(
    reader: impl BufRead,
    choose: impl FnOnce(Kind) -> Result<Destination, E>,
    options: &ExtractOptions<'_>,
) -> Result<UnpackReport, E> {
    let mut archive = Archive::new(reader);
    let mode_mask = options.mode_mask;
    let options = UnpackOptions { ownership: options.ownership, limits: options.limits };
    let mut report = UnpackReport::default();
    if let Some(first) = archive.next_entry()? {
        let Destination { directory, name } = choose(first.kind)?;
        let mut extractor = Extractor {
            tree: Tree::shared(directory),
            ids: Ids::current()?,
            notes: Notes::default(),
            report,
            options: &options,
            is_layer: false,
        };
        let mut next = Some(first);
        while let Some(mut entry) = next {
            rebase(&mut entry, name.as_deref())?;
            entry.mode &= mode_mask;
            // The directory itself is not the archive's.
            if components(&entry.path).next().is_some() {
                extractor.apply(&entry, &mut archive)?;
            }
            next = archive.next_entry()?;
        }
        report = extractor.finish()?.report;
    }
    drain(archive.into_inner()).map_err(|source| UnpackError::Read { source })?;
    Ok(report)
}

/// Puts `name` in place of [`TOP`] at the beginning of an entry's names.
fn rebase(entry: &mut Entry, name: Option<&[u8]>) -> Result<(), UnpackError> {
    let Some(name) = name else { return Ok(()) };
    let refuse = |problem| UnpackError::Entry { path: quote(&entry.path), problem };
    let path = moved(&entry.path, name).ok_or_else(|| refuse(EntryProblem::EmptyName))?;
    if entry.kind == Kind::HardLink {
        entry.link = moved(&entry.link, name).ok_or_else(|| refuse(EntryProblem::HardLinkTarget))?;
    }
    entry.path = path;
    Ok(())
}

fn moved(path: &[u8], name: &[u8]) -> Option<Vec<u8>> {
    let mut parts = components(path);
    if parts.next()? != TOP {
        return None;
    }
    let rest = parts.map(<[u8]>::to_vec);
    let all: Vec<Vec<u8>> = std::iter::once(name.to_vec()).filter(|name| !name.is_empty()).chain(rest).collect();
    Some(if all.is_empty() { b".".to_vec() } else { all.join(&b'/') })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_top_gets_its_name() {
        let check = |path: &str, name: &str, expect: Option<&str>| {
            let moved = moved(path.as_bytes(), name.as_bytes());
            assert_eq!(moved.as_deref(), expect.map(str::as_bytes), "{path}");
        };
        check("top", "x", Some("x"));
        check("top/a/b", "x", Some("x/a/b"));
        check("top/a/b", "", Some("a/b"));
        check("top/", "", Some("."));
        check("other/a", "x", None);
        check("", "x", None);
    }
}
