//! What directories get once everything is in them: owner, mode and time.
//!
//! Until then they are 0700 and ours, because an archive may list a directory without permissions
//! before its children, and every child changes its time. Notes are kept in one byte arena with a
//! bound, not as a million small allocations (T18).

use super::error::UnpackError;
use super::pax::Timestamp;
use crate::limits;

/// Metadata of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Metadata {
    /// The archive has no entry for it, only for something in it.
    pub is_implicit: bool,
    pub mode: u32,
    /// `None` leaves the owner alone.
    pub owner: Option<(u32, u32)>,
    pub mtime: Timestamp,
}

#[derive(Debug)]
struct Note {
    path_start: usize,
    path_length: usize,
    metadata: Metadata,
}

/// All notes of a layer.
#[derive(Debug, Default)]
pub(super) struct Notes {
    paths: Vec<u8>,
    notes: Vec<Note>,
}

impl Notes {
    /// Remembers metadata of a directory; a later note about the same path wins.
    pub fn add(&mut self, path: &[u8], metadata: Metadata) -> Result<(), UnpackError> {
        let used = self.paths.len() + (self.notes.len() + 1) * size_of::<Note>();
        if used + path.len() > limits::DIRECTORY_NOTES_BYTES_MAX {
            return Err(UnpackError::TooManyDirectories);
        }
        let path_start = self.paths.len();
        self.paths.extend_from_slice(path);
        self.notes.push(Note { path_start, path_length: path.len(), metadata });
        Ok(())
    }

    /// Calls `apply` once per path, children before their directories.
    pub fn for_each<E>(mut self, mut apply: impl FnMut(&[u8], &Metadata) -> Result<(), E>) -> Result<(), E> {
        let paths = &self.paths;
        let path_of = |note: &Note| &paths[note.path_start..note.path_start + note.path_length];
        // Stable, so notes about one path stay in the order of the archive.
        self.notes.sort_by(|a, b| path_of(a).cmp(path_of(b)));
        let mut done: Option<&[u8]> = None;
        for note in self.notes.iter().rev() {
            let path = path_of(note);
            if done != Some(path) {
                apply(path, &note.metadata)?;
                done = Some(path);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(mode: u32) -> Metadata {
        Metadata { is_implicit: false, mode, owner: None, mtime: Timestamp::default() }
    }

    #[test]
    fn children_first_and_last_note_wins() {
        let mut notes = Notes::default();
        for (path, mode) in [("a", 1), ("a/b", 2), ("", 3), ("a/b/c", 4), ("a-b", 5), ("a", 6)] {
            notes.add(path.as_bytes(), metadata(mode)).expect("small");
        }
        let mut seen = Vec::new();
        notes
            .for_each(|path, metadata| {
                seen.push((String::from_utf8_lossy(path).into_owned(), metadata.mode));
                Ok::<(), UnpackError>(())
            })
            .expect("no error");
        let position = |name: &str| seen.iter().position(|(path, _)| path == name).expect(name);
        assert!(position("a/b/c") < position("a/b") && position("a/b") < position("a"));
        assert_eq!(position(""), seen.len() - 1);
        assert_eq!(seen.len(), 5);
        assert_eq!(seen[position("a")].1, 6);
    }

    #[test]
    fn t18_memory_is_bounded() {
        let mut notes = Notes::default();
        let path = [b'x'; 4000];
        let failed = (0..100_000).find_map(|_| notes.add(&path, metadata(0)).err());
        assert!(matches!(failed, Some(UnpackError::TooManyDirectories)));
    }
}
