//! Work that must happen as root of a user namespace: unpacking and removing files that belong to
//! subordinate ids. It runs in a child; its result comes back as data through a file in memory.

use std::fs::File;
use std::io::{Read, Seek, Write};

use coracle_runtime::{IdMap, userns};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::EngineError;
use crate::report;

/// Is an error that happened in the child, already put into words there.
#[derive(Debug, Clone, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Elsewhere {
    pub message: String,
    pub hints: Vec<String>,
    pub exit_code: Option<u8>,
}

/// A child's answer is an image's description at most; its limits are far below this.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// Runs `work` where `map` holds, and gives its result.
///
/// A map of one id needs no namespace: everything belongs to the caller. Root with all ids needs none
/// either. The caller is single-threaded.
pub fn call<T, F>(map: &IdMap, work: F) -> Result<T, EngineError>
where
    T: Serialize + DeserializeOwned,
    F: FnOnce() -> Result<T, EngineError>,
{
    if map.is_single() || is_identity(map) {
        return work();
    }
    // A file in memory, not a pipe: the child never waits for a reader.
    let answers = rustix::fs::memfd_create("coracle-answer", rustix::fs::MemfdFlags::CLOEXEC)
        .map_err(|error| EngineError::State(error.into()))?;
    let mut answers = File::from(answers);
    let mut child_end = answers.try_clone().map_err(EngineError::State)?;
    let status = userns::run_in(map, move || {
        let answer = work().map_err(|error| report::elsewhere(&error));
        i32::from(send(&mut child_end, &answer).is_err())
    })
    .map_err(EngineError::UserNamespace)?;
    let mut text = Vec::new();
    answers.rewind().map_err(EngineError::State)?;
    answers.take(ANSWER_BYTES_MAX).read_to_end(&mut text).map_err(EngineError::State)?;
    match serde_json::from_slice::<Result<T, Elsewhere>>(&text) {
        Ok(answer) => answer.map_err(EngineError::Elsewhere),
        Err(_) => Err(EngineError::Elsewhere(Elsewhere {
            message: format!("the helper process ended with status {status} and no answer"),
            hints: Vec::new(),
            exit_code: None,
        })),
    }
}

fn send<T: Serialize>(end: &mut File, answer: &T) -> std::io::Result<()> {
    end.write_all(&serde_json::to_vec(answer)?)
}

/// Says whether every id means the same inside and outside.
fn is_identity(map: &IdMap) -> bool {
    map.uids.iter().chain(&map.gids).all(|range| range.container == range.host) && rustix::process::geteuid().is_root()
}
