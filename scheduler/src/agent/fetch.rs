//! Data of instances that move to this provider: asked for until the engine has it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinHandle;

use super::client::Client;
use super::engine::Engine;
use crate::model::InstanceId;

/// Wait before the second try; it doubles.
const RETRY: Duration = Duration::from_millis(500);
/// Longest wait between two tries.
const RETRY_MAX: Duration = Duration::from_secs(20);
/// Tries before a move is given up: some five minutes for a source whose laptop is on its way.
const TRIES: u32 = 20;
/// Silence of the other provider after which a try has failed: it only reads its disk, and may have gone to sleep.
const STALL: Duration = Duration::from_secs(60);
/// Bytes that are moved at once.
const PIECE_BYTES: usize = 64 * 1024;
/// How often an engine's process that has everything is looked for.
const LOOK: Duration = Duration::from_millis(20);

#[derive(Debug)]
struct Fetch {
    task: JoinHandle<String>,
    tries: u32,
    next: Option<Instant>,
}

/// The data that is on its way.
#[derive(Debug, Default)]
pub struct Fetches(BTreeMap<(InstanceId, u64), Fetch>);

impl Fetches {
    /// Begins what nobody has begun, and what failed some time ago.
    pub fn go_on<E: Engine>(&mut self, client: &Client, engine: &Arc<Mutex<E>>) {
        let awaited = engine.lock().unwrap_or_else(PoisonError::into_inner).awaits_data();
        self.0.retain(|key, fetch| awaited.contains(key) || !fetch.task.is_finished());
        for key in awaited {
            let begin = || tokio::spawn(fetch(client.clone(), Arc::clone(engine), key));
            let Some(known) = self.0.get_mut(&key) else {
                self.0.insert(key, Fetch { task: begin(), tries: 1, next: None });
                continue;
            };
            if !known.task.is_finished() {
                continue;
            }
            let wait = RETRY.saturating_mul(1 << known.tries.min(10)).min(RETRY_MAX);
            let at = *known.next.get_or_insert_with(|| Instant::now() + wait);
            if known.tries >= TRIES {
                let reason = "its data cannot be had from where it was".to_owned();
                engine.lock().unwrap_or_else(PoisonError::into_inner).no_data(key.0, key.1, reason);
            } else if Instant::now() >= at {
                *known = Fetch { task: begin(), tries: known.tries + 1, next: None };
            }
        }
    }
}

/// Carries the data of one allocation once; gives a word about why it ended, for debuggers.
async fn fetch<E: Engine>(client: Client, engine: Arc<Mutex<E>>, (instance, epoch): (InstanceId, u64)) -> String {
    let path = format!("/v1/agent/moves/{instance}");
    let mut far = match tokio::time::timeout(STALL, client.leave_http("data", &path)).await {
        Ok(Ok(far)) => far,
        Ok(Err(error)) => return error.to_string(),
        Err(late) => return late.to_string(),
    };
    let opened = engine.lock().unwrap_or_else(PoisonError::into_inner).take_data(instance, epoch);
    let mut taken = match opened {
        Ok(taken) => taken,
        Err(error) => return error.to_string(),
    };
    let socket = taken.socket.set_nonblocking(true).and_then(|()| tokio::net::UnixStream::from_std(taken.socket));
    let carried = match socket {
        Ok(mut socket) => carry_in(&mut far, &mut socket, STALL).await,
        Err(error) => Err(error),
    };
    // Half of it is nothing; all of it may still have to reach the disk.
    if carried.is_err() {
        let _ = taken.child.kill();
    }
    while matches!(taken.child.try_wait(), Ok(None)) {
        tokio::time::sleep(LOOK).await;
    }
    carried.map_or_else(|error| error.to_string(), |()| "carried".to_owned())
}

/// Copies to the end of what comes, which is never silent for longer than `stall`. The other side may take its time: a
/// disk does.
async fn carry_in(
    far: &mut (impl AsyncRead + Unpin),
    near: &mut (impl AsyncWrite + Unpin),
    stall: Duration,
) -> std::io::Result<()> {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match tokio::time::timeout(stall, far.read(&mut piece)).await?? {
            0 => return near.shutdown().await,
            count => near.write_all(piece.get(..count).unwrap_or_default()).await?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_comes_is_carried_to_its_end_and_silence_is_an_error() {
        let bytes: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
        let (mut source, mut far) = tokio::io::duplex(1000);
        let (mut near, mut sink) = tokio::io::duplex(1000);
        let sent = bytes.clone();
        let give = tokio::spawn(async move { source.write_all(&sent).await.map(|()| source) });
        let take = tokio::spawn(async move {
            let mut taken = Vec::new();
            sink.read_to_end(&mut taken).await.map(|_| taken)
        });
        let carry = tokio::spawn(async move { carry_in(&mut far, &mut near, Duration::from_secs(3600)).await });
        drop(give.await.unwrap().unwrap());
        carry.await.unwrap().unwrap();
        assert!(take.await.unwrap().unwrap() == bytes);

        // It has begun and says no more, but has not ended.
        let (mut source, mut far) = tokio::io::duplex(1000);
        let (mut near, _sink) = tokio::io::duplex(1000);
        source.write_all(b"some").await.unwrap();
        let error = carry_in(&mut far, &mut near, Duration::from_millis(20)).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
        drop(source);
    }
}
