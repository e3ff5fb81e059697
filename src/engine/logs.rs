//! The log of a container, read: docker's json-file entries, oldest first, while the shim writes and rotates.

use std::borrow::Cow;
use std::io;
use std::path::Path;

use jiff::Timestamp;
use serde::Deserialize;

use super::EngineError;
use super::containers::Container;
use super::journal::{Chunk, Journal, Reader, Watch};
use super::record::LogDriver;

/// The shim's name for the newest file.
const CURRENT: &str = "current.json";

/// What of a log is wanted.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogRange {
    pub follow: bool,
    /// None means all.
    pub tail: Option<usize>,
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
}

/// Is one entry: a line, or a part of one that is long.
#[derive(Debug, Deserialize)]
pub struct Entry<'a> {
    #[serde(borrow)]
    pub log: Cow<'a, str>,
    #[serde(borrow)]
    pub stream: Cow<'a, str>,
    #[serde(borrow)]
    pub time: Cow<'a, str>,
}

/// Takes what is read out of a log.
pub trait Sink {
    /// Takes an entry; false ends the reading.
    fn entry(&mut self, entry: &Entry<'_>) -> bool;
    /// Hears that lines were rotated away before they could be read.
    fn lost(&mut self);
    /// Hears that nothing more comes for a while: what was taken should be shown. False ends the reading.
    fn idle(&mut self) -> bool;
}

/// Says why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("container {0} ran in the foreground: its output went to its caller and not to a log")]
    Foreground(String),
    #[error("container {0} has no log: it was made with --log-driver none")]
    NoDriver(String),
    #[error("cannot read the log of container {id}")]
    Read { id: String, source: io::Error },
}

/// Reads the log of a container into a sink; follows it until the container has ended where that was asked.
pub fn read(root: &Path, container: &Container, range: &LogRange, sink: &mut dyn Sink) -> Result<(), EngineError> {
    let called = container.record.called().to_owned();
    if container.record.log.driver == LogDriver::None {
        return Err(LogError::NoDriver(called).into());
    }
    let directory = container.logs();
    if container.is_foreground() && !directory.join(CURRENT).exists() {
        return Err(LogError::Foreground(called).into());
    }
    let fail = |source| EngineError::from(LogError::Read { id: called.clone(), source });
    let journal = Journal { directory, name: CURRENT, files_max: container.record.log.max_files };
    let watch = range.follow.then(|| Watch::new(&[&journal.directory, &container.path]));
    let mut reader = match range.tail {
        Some(lines) => journal.read_tail(range.follow, lines),
        None => journal.read(range.follow, range.since.map(Into::into)),
    }
    .map_err(fail)?;
    loop {
        // Asked before reading: what the container wrote last is in the log when its end is known.
        let ended = !range.follow || has_ended(root, container.id());
        if !drain(&mut reader, range, sink).map_err(fail)? || ended || !sink.idle() {
            return Ok(());
        }
        if range.until.is_some_and(|until| Timestamp::now() > until) {
            return Ok(());
        }
        if let Some(watch) = &watch {
            watch.wait();
        }
    }
}

/// Reads what there is; false when the sink or the range wants no more.
fn drain(reader: &mut Reader, range: &LogRange, sink: &mut dyn Sink) -> io::Result<bool> {
    loop {
        match reader.next()? {
            Chunk::End => return Ok(true),
            Chunk::Lost => sink.lost(),
            Chunk::Lines(lines) => {
                for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                    // A line that a killed shim left half is no entry.
                    let Ok(entry) = serde_json::from_slice::<Entry<'_>>(line) else { continue };
                    if range.since.is_some() || range.until.is_some() {
                        let Ok(time) = entry.time.parse::<Timestamp>() else { continue };
                        if range.since.is_some_and(|since| time < since) {
                            continue;
                        }
                        if range.until.is_some_and(|until| time > until) {
                            return Ok(false);
                        }
                    }
                    if !sink.entry(&entry) {
                        return Ok(false);
                    }
                }
            }
        }
    }
}

/// Says whether nothing more will be written: the container has ended, or is gone. While its shim has not written down
/// how it ended, that still takes in what it wrote last.
fn has_ended(root: &Path, id: &str) -> bool {
    !matches!(Container::read(root, id), Ok(Some(now)) if now.status().is_active() || now.is_undecided())
}
