//! The agent's end of streams: dials back for each, and carries bytes between it and the engine's process.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::client::Client;
use super::engine::{EngineError, EngineStream};
use crate::model::StreamOrder;

/// Names of streams that are remembered: each is named again until the agent has dialled, which takes a moment.
const REMEMBERED: usize = 4096;
/// Bytes that are moved at once: TLS records of 16 KiB, some at a time.
const PIECE_BYTES: usize = 64 * 1024;
/// Streams of one agent at once, logins that nobody has finished among them: each is a process (S27).
const CARRIED: usize = 256;
/// How often a process that was told to end is looked for.
const LOOK: Duration = Duration::from_millis(20);

/// The streams that were taken care of.
#[derive(Debug, Default)]
pub struct Streams {
    seen: VecDeque<String>,
    carried: Arc<()>,
}

impl Streams {
    /// Keeps those that are named for the first time.
    pub fn fresh(&mut self, orders: Vec<StreamOrder>) -> Vec<StreamOrder> {
        let fresh: Vec<StreamOrder> = orders.into_iter().filter(|order| !self.seen.contains(&order.id)).collect();
        self.seen.extend(fresh.iter().map(|order| order.id.clone()));
        while self.seen.len() > REMEMBERED {
            self.seen.pop_front();
        }
        fresh
    }

    /// Takes a place among the streams that are carried, while there is one.
    pub fn place(&self) -> Option<Arc<()>> {
        (Arc::strong_count(&self.carried) <= CARRIED).then(|| Arc::clone(&self.carried))
    }
}

/// Says that there are too many.
pub fn no_place(order: &StreamOrder) -> EngineError {
    let reason = format!("this provider carries {CARRIED} streams already");
    EngineError { op: "open a stream to", instance: order.instance, reason }
}

/// Carries one stream until either side ends it. Who waits for it is told why there is none.
pub async fn carry(client: Client, order: StreamOrder, opened: Result<EngineStream, EngineError>) {
    let path = format!("/v1/agent/streams/{}", order.id);
    let mut engine = match opened {
        Ok(engine) => engine,
        Err(error) => {
            client.refuse_stream(&path, error.to_string()).await;
            return;
        }
    };
    let socket = engine.socket.set_nonblocking(true).and_then(|()| tokio::net::UnixStream::from_std(engine.socket));
    if let Ok(mut socket) = socket
        && let Ok(mut far) = client.leave_http("stream", &path).await
    {
        let _ = tokio::io::copy_bidirectional_with_sizes(&mut far, &mut socket, PIECE_BYTES, PIECE_BYTES).await;
    }
    let _ = engine.child.kill();
    while matches!(engine.child.try_wait(), Ok(None)) {
        tokio::time::sleep(LOOK).await;
    }
}
