//! Bytes between a channel and what is behind it, both ways at once and within bounds.
//!
//! The library grants a client more window as soon as bytes arrive, and stands still while a channel's queue is full;
//! then nothing leaves either. So input is taken in while output is stuck, up to a hard bound, and otherwise only
//! while little of it waits.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use axum::body::Bytes;
use russh::ChannelMsg;
use russh::server::Msg;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// Input that waits while output flows.
const BACKLOG_BYTES: usize = 4 << 20;
/// Input that waits at all; more comes only from a client that reads nothing of what it asks for.
const BACKLOG_BYTES_MAX: usize = 64 << 20;
/// Bytes that are moved at once: a packet.
const PIECE_BYTES: usize = 32 * 1024;

/// The sending half of a channel.
pub type Writer = russh::ChannelWriteHalf<Msg>;

/// Is what has flowed to the person, and whether something waits for him.
#[derive(Debug, Default)]
pub struct Gauge {
    writing: AtomicUsize,
    bytes: AtomicU64,
    changed: Notify,
}

impl Gauge {
    /// Bytes that were taken.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Tells whether something waits to be taken.
    pub fn is_stuck(&self) -> bool {
        self.writing.load(Ordering::Relaxed) > 0
    }
}

async fn pump(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, gauge: Arc<Gauge>) {
    let mut buffer = vec![0; PIECE_BYTES];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        gauge.writing.fetch_add(1, Ordering::Relaxed);
        gauge.changed.notify_one();
        let written = to.write_all(&buffer[..count]).await;
        gauge.writing.fetch_sub(1, Ordering::Relaxed);
        if written.is_err() {
            break;
        }
        gauge.bytes.fetch_add(u64::try_from(count).unwrap_or_default(), Ordering::Relaxed);
    }
}

/// Is everything that flows from what is behind a channel.
#[derive(Debug, Default)]
pub struct Outputs {
    /// What has flowed.
    pub gauge: Arc<Gauge>,
    pumps: JoinSet<()>,
}

impl Outputs {
    /// Lets something flow to the person; `extended` is the kind of extended data (RFC 4254, 5.2).
    pub fn add(&mut self, from: impl AsyncRead + Unpin + Send + 'static, to: &Writer, extended: Option<u32>) {
        let to = to.make_writer_ext(extended);
        self.pumps.spawn(pump(from, to, Arc::clone(&self.gauge)));
    }

    /// Waits until one of them has ended; true when none is left. Never returns while there are none.
    pub async fn one_ended(&mut self) -> bool {
        match self.pumps.join_next().await {
            Some(_) => self.pumps.is_empty(),
            None => std::future::pending().await,
        }
    }

    /// Tells whether all have ended.
    pub fn is_over(&self) -> bool {
        self.pumps.is_empty()
    }
}

/// Input on its way from the person.
#[derive(Debug)]
pub struct Inputs<W> {
    to: Option<W>,
    waiting: VecDeque<Bytes>,
    waiting_bytes: usize,
    ended: bool,
    /// Bytes that came.
    pub bytes: u64,
}

/// Says what to do after a message.
#[derive(Debug)]
pub enum Next {
    /// Nothing.
    Go,
    /// The person has closed the channel, or sends without end and takes nothing.
    Stop,
    /// Not for the stream.
    Other(ChannelMsg),
}

impl<W: AsyncWrite + Unpin> Inputs<W> {
    /// Begins.
    pub fn new(to: W) -> Self {
        Self { to: Some(to), waiting: VecDeque::new(), waiting_bytes: 0, ended: false, bytes: 0 }
    }

    /// Tells whether more may come in.
    pub fn has_room(&self, gauge: &Gauge) -> bool {
        self.waiting_bytes < BACKLOG_BYTES || gauge.is_stuck()
    }

    /// Takes a message.
    pub fn take(&mut self, message: Option<ChannelMsg>) -> Next {
        match message {
            Some(ChannelMsg::Data { data }) => {
                self.bytes += u64::try_from(data.len()).unwrap_or_default();
                if self.to.is_some() && !data.is_empty() {
                    self.waiting_bytes += data.len();
                    self.waiting.push_back(data);
                }
                if self.waiting_bytes > BACKLOG_BYTES_MAX { Next::Stop } else { Next::Go }
            }
            Some(ChannelMsg::Eof) => {
                self.ended = true;
                Next::Other(ChannelMsg::Eof)
            }
            None | Some(ChannelMsg::Close) => Next::Stop,
            Some(other) => Next::Other(other),
        }
    }

    /// Puts bytes in as if they had come.
    pub fn put(&mut self, bytes: &'static [u8]) {
        self.waiting_bytes += bytes.len();
        self.waiting.push_back(Bytes::from_static(bytes));
    }

    /// Writes what waits; returns after one piece, and never while there is none. Dropped half way nothing is lost.
    pub async fn write(&mut self) {
        if self.waiting.is_empty() && self.ended {
            // What is behind hears the end of its input.
            self.to = None;
        }
        let (Some(to), Some(front)) = (self.to.as_mut(), self.waiting.front_mut()) else {
            return std::future::pending().await;
        };
        if let Ok(count @ 1..) = to.write(front).await {
            let _ = front.split_to(count);
            self.waiting_bytes -= count;
            if front.is_empty() {
                self.waiting.pop_front();
            }
        } else {
            // Nobody reads any more; what comes is dropped, as sshd does.
            (self.to, self.waiting_bytes) = (None, 0);
            self.waiting.clear();
        }
    }
}

/// Waits until output has begun to wait: then input is taken again.
pub async fn stuck(gauge: &Gauge) {
    gauge.changed.notified().await;
}
