//! What this provider was asked to run, one file an allocation, written before anything is done about it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use coracle_scheduler::model::InstanceSpec;
use serde::{Deserialize, Serialize};

use super::Key;
use crate::engine::container::{self, ContainerError};

/// Says why the ledger cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("cannot keep the list of allocations")]
    File(#[from] std::io::Error),
    #[error("cannot write an allocation down")]
    Write(#[from] ContainerError),
}

/// Is one allocation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Entry {
    pub spec: InstanceSpec,
    /// The group that asked for it.
    #[serde(default)]
    pub group: String,
    /// Its container was made.
    #[serde(default)]
    pub begun: bool,
    /// It is to end, its processes getting `grace_s` seconds.
    #[serde(default)]
    pub stopping: bool,
    #[serde(default)]
    pub grace_s: u64,
    /// It is to be stopped with its data kept, or to run again.
    #[serde(default)]
    pub halt: Halt,
    /// The owner wants it gone.
    #[serde(default)]
    pub evicted: bool,
    /// It has ended.
    #[serde(default)]
    pub end: Option<End>,
    /// The scheduler knows that it has ended: what is left of it may go.
    #[serde(default)]
    pub forgotten: bool,
    /// It comes from another provider, and so far is its data.
    #[serde(default)]
    pub arrival: Arrival,
}

/// Is where the data of an allocation is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arrival {
    /// It begins without any, or all of it is here.
    #[default]
    Whole,
    /// It is on another provider.
    Awaited,
}

/// Is what is wanted of a container that may stand still.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Halt {
    /// It runs until it ends.
    #[default]
    No,
    /// It stands still, with what it has written.
    Wanted,
    /// It is to be started once after this run of the container, so that a killed agent does not start it twice.
    Resuming { after_run: u64 },
}

/// Is how an allocation ended. Once written it never changes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct End {
    pub code: Option<i32>,
    pub reason: String,
}

impl Entry {
    /// Tells whether it is wanted to stand still and all its data is here.
    pub fn rests(&self) -> bool {
        self.halt == Halt::Wanted && self.arrival == Arrival::Whole
    }

    /// Writes the end down unless there is one.
    pub fn end(&mut self, code: Option<i32>, reason: String) {
        self.end.get_or_insert(End { code, reason });
    }
}

/// Is all of them.
pub struct Ledger {
    folder: PathBuf,
    entries: BTreeMap<Key, Entry>,
}

fn file_name((instance, epoch): Key) -> String {
    format!("{instance}.{epoch}")
}

fn parse(name: &str) -> Option<Key> {
    let (instance, epoch) = name.split_once('.')?;
    Some((instance.parse().ok()?, epoch.parse().ok()?))
}

impl Ledger {
    /// Reads the folder, making it when it is missing. What was half written was never begun.
    pub fn open(folder: &Path) -> Result<Self, LedgerError> {
        fs_err::create_dir_all(folder)?;
        let mut entries = BTreeMap::new();
        for file in fs_err::read_dir(folder)? {
            let file = file?;
            let name = file.file_name().into_string().unwrap_or_default();
            if let Some(key) = parse(&name) {
                entries
                    .insert(key, serde_json::from_slice(&fs_err::read(file.path())?).map_err(std::io::Error::other)?);
            }
        }
        Ok(Self { folder: folder.to_owned(), entries })
    }

    /// Lists the allocations.
    pub fn keys(&self) -> impl Iterator<Item = Key> {
        self.entries.keys().copied()
    }

    /// Gives one of them.
    pub fn get(&self, key: Key) -> Option<&Entry> {
        self.entries.get(&key)
    }

    /// Adds one; it is on the disk when this returns.
    pub fn add(&mut self, key: Key, spec: InstanceSpec, group: &str, moved: bool) -> Result<(), LedgerError> {
        let entry = Entry {
            spec,
            group: group.to_owned(),
            begun: false,
            stopping: false,
            grace_s: 0,
            // What has moved stands still until it is told to start.
            halt: if moved { Halt::Wanted } else { Halt::No },
            arrival: if moved { Arrival::Awaited } else { Arrival::Whole },
            evicted: false,
            end: None,
            forgotten: false,
        };
        container::publish_json(&self.folder, &file_name(key), &entry, true)?;
        self.entries.insert(key, entry);
        Ok(())
    }

    /// Changes one. Where the disk refuses it is changed here only: the next agent will find the same out again.
    pub fn change(&mut self, key: Key, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.entries.get_mut(&key) {
            change(entry);
            let _ = container::publish_json(&self.folder, &file_name(key), entry, true);
        }
    }

    /// Takes one out.
    pub fn remove(&mut self, key: Key) {
        if fs_err::remove_file(self.folder.join(file_name(key))).is_ok() {
            self.entries.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use coracle_scheduler::model::InstanceId;

    use super::*;

    #[test]
    fn what_was_written_is_read_and_an_end_stays() {
        let folder = tempfile::tempdir().unwrap();
        let key = (InstanceId::new(7), 2);
        let mut ledger = Ledger::open(folder.path()).unwrap();
        ledger.add(key, InstanceSpec { image: "busybox".into(), ..InstanceSpec::default() }, "ops", false).unwrap();
        ledger.change(key, |entry| entry.end(Some(3), "first".into()));
        ledger.change(key, |entry| entry.end(None, "second".into()));
        fs_err::write(folder.path().join("0000.new"), "{").unwrap();
        let again = Ledger::open(folder.path()).unwrap();
        assert_eq!(again.keys().collect::<Vec<_>>(), [key]);
        let end = again.get(key).unwrap().end.clone().unwrap();
        assert_eq!((end.code, end.reason.as_str()), (Some(3), "first"));
        ledger.remove(key);
        assert_eq!(Ledger::open(folder.path()).unwrap().keys().count(), 0);
    }
}
