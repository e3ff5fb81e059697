//! What happened to containers, images and volumes: lines appended to a file that stays small.
//!
//! `events.jsonl` in the state directory holds one JSON object a line; when it has grown past
//! [`FILE_BYTES_MAX`] the next event makes it `events.jsonl.1`. Telling an event never fails and never waits
//! for long: an event that cannot be written is lost, the command that told it goes on.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use fs_err::File;
use fs_err::os::unix::fs::OpenOptionsExt;
use jiff::Timestamp;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::journal::{Chunk, Journal, Watch};
use super::record::Record;

const NAME: &str = "events.jsonl";
/// About twenty thousand events; with the file before it, at most twice this is kept.
const FILE_BYTES_MAX: u64 = 4 << 20;
const FILES_MAX: u32 = 2;
/// An event is a line of some hundred bytes; labels of a hostile image are cut off here.
const LINE_BYTES_MAX: usize = 32 << 10;
/// A rotation takes microseconds; who holds the lock for longer was stopped, and is not waited for.
const LOCK_TRIES: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(1);

/// Names what an event is about, in docker's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Container,
    Image,
    Volume,
    Network,
}

impl Kind {
    /// Gives docker's word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Image => "image",
            Self::Volume => "volume",
            Self::Network => "network",
        }
    }
}

/// Is something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub kind: Kind,
    pub action: String,
    pub id: String,
    pub attributes: BTreeMap<String, String>,
    /// Nanoseconds since the epoch.
    pub time_ns: u64,
}

/// Tells that something happened.
pub fn emit(root: &Path, kind: Kind, action: &str, id: &str, attributes: &[(&str, &str)]) {
    let attributes = attributes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    tell(root, kind, action, id, attributes);
}

/// Tells that something happened to a container; its image, name and labels are added as docker does.
pub fn emit_container(root: &Path, record: &Record, action: &str, more: &[(&str, &str)]) {
    let mut attributes = record.labels.clone();
    attributes.insert("image".to_owned(), record.image.clone());
    attributes.insert("name".to_owned(), record.called().to_owned());
    attributes.extend(more.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    tell(root, Kind::Container, action, &record.id, attributes);
}

/// Tells that a container has ended, and first that the kernel killed some of it for want of memory.
pub fn emit_end(root: &Path, record: &Record, exit_code: i32, oom_killed: bool) {
    if oom_killed {
        emit_container(root, record, "oom", &[]);
    }
    emit_container(root, record, "die", &[("exitCode", &exit_code.to_string())]);
}

fn tell(root: &Path, kind: Kind, action: &str, id: &str, attributes: BTreeMap<String, String>) {
    let time_ns = super::prepare::now_ns();
    let mut event = Event { kind, action: action.to_owned(), id: id.to_owned(), attributes, time_ns };
    let mut line = serde_json::to_vec(&event).unwrap_or_default();
    if line.len() > LINE_BYTES_MAX {
        event
            .attributes
            .retain(|key, value| ["image", "name", "exitCode", "signal"].contains(&key.as_str()) && value.len() < 1024);
        line = serde_json::to_vec(&event).unwrap_or_default();
    }
    line.push(b'\n');
    let _ = append(root, &line);
}

fn append(root: &Path, line: &[u8]) -> io::Result<()> {
    let path = root.join(NAME);
    let mut file = open(&path)?;
    for _ in 0..LOCK_TRIES {
        let full = file.metadata()?.len() > FILE_BYTES_MAX;
        // Many may append at once, but nobody while the file is renamed. Who finds it full asks for it alone
        // at once: one that only turned its shared lock into an exclusive one would starve beside busy writers.
        let lock = if full { FlockOperation::NonBlockingLockExclusive } else { FlockOperation::NonBlockingLockShared };
        if flock(&file, lock).is_err() {
            std::thread::sleep(LOCK_PAUSE);
            continue;
        }
        let same =
            fs_err::metadata(&path).is_ok_and(|now| Some(now.ino()) == file.metadata().ok().map(|meta| meta.ino()));
        if same && !full {
            break;
        }
        if same {
            fs_err::rename(&path, root.join(format!("{NAME}.1")))?;
        }
        // It was rotated, now or between opening and locking.
        file = open(&path)?;
    }
    // One write of one line: O_APPEND keeps lines of several processes apart (open(2)).
    file.write_all(line)
}

fn open(path: &Path) -> io::Result<File> {
    fs_err::OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// Reads events from `since` on, until `until` or forever; `take` gives false to end it, and hears None
/// when nothing comes for a while.
pub fn read(
    root: &Path,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    take: &mut dyn FnMut(Option<Event>) -> bool,
) -> io::Result<()> {
    let start = since.unwrap_or_else(Timestamp::now);
    let nanoseconds = |moment: Timestamp| u64::try_from(moment.as_nanosecond()).unwrap_or(0);
    let (start_ns, end_ns) = (nanoseconds(start), until.map(nanoseconds));
    let journal = Journal { directory: root.to_owned(), name: NAME, files_max: FILES_MAX };
    let watch = Watch::new(&[root]);
    let mut reader = journal.read(true, Some(start.into()))?;
    loop {
        // Asked before reading, so that nothing of the time before the end is missed.
        let over = until.is_some_and(|until| Timestamp::now() >= until);
        loop {
            match reader.next()? {
                Chunk::End => break,
                Chunk::Lost => {}
                Chunk::Lines(lines) => {
                    for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                        let Ok(event) = serde_json::from_slice::<Event>(line) else { continue };
                        let wanted = event.time_ns >= start_ns && end_ns.is_none_or(|end| event.time_ns <= end);
                        if wanted && !take(Some(event)) {
                            return Ok(());
                        }
                    }
                }
            }
        }
        if over || !take(None) {
            return Ok(());
        }
        watch.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(root: &Path) -> Vec<Event> {
        let mut events = Vec::new();
        let mut take = |event: Option<Event>| {
            events.extend(event);
            true
        };
        read(root, Some(Timestamp::UNIX_EPOCH), Some(Timestamp::now()), &mut take).unwrap();
        events
    }

    #[test]
    fn events_of_several_writers_stay_whole_and_the_files_small() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path();
        let big = "x".repeat(8000);
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let big = &big;
                scope.spawn(move || {
                    for number in 0..600 {
                        emit(root, Kind::Container, "start", &format!("{writer}-{number}"), &[("name", big)]);
                    }
                });
            }
        });
        let events = all(root);
        // 19 MB were written; the newest of each writer are there, in their order, each once.
        for writer in 0..4 {
            let prefix = format!("{writer}-");
            let numbers: Vec<u32> =
                events.iter().filter_map(|event| event.id.strip_prefix(&prefix)?.parse().ok()).collect();
            assert_eq!(numbers.last(), Some(&599), "writer {writer}");
            assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]), "writer {writer}: {numbers:?}");
        }
        for name in [NAME, "events.jsonl.1"] {
            let size = fs_err::metadata(root.join(name)).unwrap().len();
            // One line of each writer, and now and then one that did not wait for a lock any longer.
            assert!(size < FILE_BYTES_MAX + FILE_BYTES_MAX / 8, "{name}: {size}");
        }
    }

    #[test]
    fn an_event_too_long_for_a_line_keeps_what_matters() {
        let place = tempfile::tempdir().unwrap();
        let long = "y".repeat(LINE_BYTES_MAX);
        emit(place.path(), Kind::Image, "pull", "i", &[("label", &long), ("name", "box")]);
        let events = all(place.path());
        assert_eq!(events[0].attributes, BTreeMap::from([("name".to_owned(), "box".to_owned())]));
    }
}
