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
    let (answers, child) = child(work)?;
    let status = userns::run_in(map, child).map_err(EngineError::UserNamespace)?;
    read_answer(answers, status)
}

/// Runs `work` in a child that is root of a new user namespace with this map, whatever the map, and
/// `beside` on a thread of this process meanwhile. The child has copies of all descriptors.
pub fn beside<T, F, U>(map: &IdMap, work: F, beside: impl FnOnce() -> U + Send) -> Result<(T, U), EngineError>
where
    T: Serialize + DeserializeOwned,
    F: FnOnce() -> Result<T, EngineError>,
    U: Send,
{
    let (answers, child) = child(work)?;
    let (status, given) = userns::run_beside(map, child, beside).map_err(EngineError::UserNamespace)?;
    Ok((read_answer(answers, status)?, given))
}

/// Makes what runs in the child, and the file that its answer will be in.
fn child<T: Serialize>(
    work: impl FnOnce() -> Result<T, EngineError>,
) -> Result<(File, impl FnOnce() -> i32), EngineError> {
    // A file in memory, not a pipe: the child never waits for a reader.
    let answers = rustix::fs::memfd_create("coracle-answer", rustix::fs::MemfdFlags::CLOEXEC)
        .map_err(|error| EngineError::State(error.into()))?;
    let answers = File::from(answers);
    let mut child_end = answers.try_clone().map_err(EngineError::State)?;
    let child = move || {
        let answer = work().map_err(|error| report::elsewhere(&error));
        i32::from(send(&mut child_end, &answer).is_err())
    };
    Ok((answers, child))
}

fn read_answer<T: DeserializeOwned>(mut answers: File, status: i32) -> Result<T, EngineError> {
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
pub fn is_identity(map: &IdMap) -> bool {
    map.uids.iter().chain(&map.gids).all(|range| range.container == range.host) && rustix::process::geteuid().is_root()
}
