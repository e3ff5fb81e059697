//! The agent's end of streams: dials back for each, and carries bytes between it and the engine's process.

use std::collections::VecDeque;
use std::time::Duration;

use super::client::Client;
use super::engine::{EngineError, EngineStream};
use crate::model::StreamOrder;

/// Names of streams that are remembered: each is named again until the agent has dialled, which takes a moment.
const REMEMBERED: usize = 4096;
/// How often a process that was told to end is looked for.
const LOOK: Duration = Duration::from_millis(20);

/// The streams that were taken care of.
#[derive(Debug, Default)]
pub struct Streams(VecDeque<String>);

impl Streams {
    /// Keeps those that are named for the first time.
    pub fn fresh(&mut self, orders: Vec<StreamOrder>) -> Vec<StreamOrder> {
        let fresh: Vec<StreamOrder> = orders.into_iter().filter(|order| !self.0.contains(&order.id)).collect();
        self.0.extend(fresh.iter().map(|order| order.id.clone()));
        while self.0.len() > REMEMBERED {
            self.0.pop_front();
        }
        fresh
    }
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
        let _ = tokio::io::copy_bidirectional(&mut far, &mut socket).await;
    }
    let _ = engine.child.kill();
    while matches!(engine.child.try_wait(), Ok(None)) {
        tokio::time::sleep(LOOK).await;
    }
}
