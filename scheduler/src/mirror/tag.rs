//! What tags meant when their registries were last asked. Kept on disk, so that it is known after a restart too.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::MirrorError;
use super::name::Content;
use super::shelf::Shelf;

/// Tags that are remembered; the one that was asked for longest ago makes room.
const TAGS_MAX: usize = 10_000;
/// Longest file of a tag: a name, a digest and a time.
const FILE_BYTES_MAX: u64 = 4096;

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    name: String,
    digest: String,
    asked_ms: u64,
}

#[derive(Debug)]
struct Tag {
    record: Record,
    /// When the registry last did not answer, and how.
    silent: Option<(Instant, MirrorError)>,
}

/// The tags.
#[derive(Debug, Default)]
pub struct Tags(Mutex<BTreeMap<String, Tag>>);

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn place(shelf: &Shelf, name: &str) -> PathBuf {
    // A name may be longer than a file's.
    shelf.path("tags").join(format!("{}.json", Content::of(name.as_bytes()).hex()))
}

impl Tags {
    /// Reads what is there; what cannot be read is forgotten.
    pub fn open(shelf: &Shelf) -> std::io::Result<Self> {
        let mut tags = BTreeMap::new();
        for entry in fs_err::read_dir(shelf.path("tags"))? {
            let path = entry?.path();
            let small = fs_err::metadata(&path)?.len() <= FILE_BYTES_MAX;
            let text = if small { fs_err::read(&path)? } else { Vec::new() };
            match serde_json::from_slice::<Record>(&text) {
                Ok(record) if Content::parse(&record.digest).is_some() && tags.len() < TAGS_MAX => {
                    tags.insert(record.name.clone(), Tag { record, silent: None });
                }
                _ => fs_err::remove_file(&path)?,
            }
        }
        Ok(Self(Mutex::new(tags)))
    }

    fn tags(&self) -> MutexGuard<'_, BTreeMap<String, Tag>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a tag means, if its registry said so lately. A time to come is none.
    pub fn fresh(&self, name: &str, within: Duration) -> Option<Content> {
        let tags = self.tags();
        let record = &tags.get(name)?.record;
        let age_ms = now_ms().checked_sub(record.asked_ms)?;
        (u128::from(age_ms) < within.as_millis()).then(|| Content::parse(&record.digest))?
    }

    /// What a tag meant last.
    pub fn last(&self, name: &str) -> Option<Content> {
        Content::parse(&self.tags().get(name)?.record.digest)
    }

    /// How its registry did not answer lately.
    pub fn silent(&self, name: &str, within: Duration) -> Option<MirrorError> {
        let tags = self.tags();
        let (when, error) = tags.get(name)?.silent.as_ref()?;
        (when.elapsed() < within).then(|| error.clone())
    }

    /// Takes in that its registry did not answer.
    pub fn was_silent(&self, name: &str, error: MirrorError) {
        if let Some(tag) = self.tags().get_mut(name) {
            let lately = tag.silent.as_ref().is_some_and(|(when, _)| when.elapsed() < super::PAUSE);
            if !lately {
                tag.silent = Some((Instant::now(), error));
            }
        }
    }

    /// Takes in what a tag means now.
    pub fn keep(&self, shelf: &Shelf, name: &str, content: &Content) -> std::io::Result<()> {
        let record = Record { name: name.to_owned(), digest: content.to_string(), asked_ms: now_ms() };
        let text = serde_json::to_vec(&record).map_err(std::io::Error::other)?;
        let oldest = {
            let mut tags = self.tags();
            tags.insert(name.to_owned(), Tag { record, silent: None });
            let oldest = tags.iter().min_by_key(|(_, tag)| tag.record.asked_ms).map(|(name, _)| name.clone());
            oldest.filter(|_| tags.len() > TAGS_MAX)
        };
        if let Some(oldest) = oldest {
            self.forget(shelf, &oldest);
        }
        shelf.replace(&place(shelf, name), &text)
    }

    /// Lets a tag be one of long ago.
    #[cfg(test)]
    pub fn age(&self, name: &str) {
        if let Some(tag) = self.tags().get_mut(name) {
            tag.record.asked_ms = 0;
        }
    }

    /// Forgets a tag.
    pub fn forget(&self, shelf: &Shelf, name: &str) {
        if self.tags().remove(name).is_some() {
            // Without its file it is forgotten at the next start; with it, asked for again.
            let _ = fs_err::remove_file(place(shelf, name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_known_after_a_restart_and_old_after_a_while() {
        let folder = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(folder.path(), 1000).unwrap();
        let tags = Tags::open(&shelf).unwrap();
        let content = Content::of(b"x");
        tags.keep(&shelf, "r/a:1", &content).unwrap();
        assert_eq!(tags.fresh("r/a:1", Duration::from_secs(3600)), Some(content.clone()));
        assert_eq!(tags.fresh("r/a:1", Duration::ZERO), None);
        fs_err::write(folder.path().join("tags/broken.json"), "{").unwrap();
        let tags = Tags::open(&shelf).unwrap();
        assert_eq!(tags.last("r/a:1"), Some(content));
        assert!(!folder.path().join("tags/broken.json").exists());
        tags.was_silent("r/a:1", MirrorError::Busy);
        assert_eq!(tags.silent("r/a:1", Duration::from_secs(3600)), Some(MirrorError::Busy));
        tags.forget(&shelf, "r/a:1");
        assert_eq!((tags.last("r/a:1"), Tags::open(&shelf).unwrap().last("r/a:1")), (None, None));
    }
}
