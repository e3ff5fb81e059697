//! One pass over a layer: fetch, hash, keep, decompress | hash, unpack.
//!
//! Two threads with a bounded queue of buffers between them, so that two cores work and memory
//! stays at a few buffers however large the layer is. This side reads and decompresses on the
//! calling thread, the other side hashes the archive and unpacks it.

use std::io::{self, BufRead, Read};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;

use super::ingest::LayerIngest;
use super::stream::SourceFailed;
use crate::decompression::{Decoder, SNIFF_BYTES, sniff};
use crate::digest::{Digest, Hasher};
use crate::layer::Compression;
use crate::limits::Limits;
use crate::unpack::{UnpackError, UnpackOptions, Unpacked, drain, unpack_layer};

/// Size of one buffer between the threads.
const PIECE_BYTES: usize = 256 << 10;
/// Buffers in the queue; more do not make it faster, fewer let the threads wait for each other.
const PIECES_MAX: usize = 6;

/// How a pass failed, before anybody knows whose fault it was.
#[derive(Debug)]
pub(super) enum PassError {
    /// The source; the reader has the reason.
    Source,
    /// The compressed data.
    Decode(io::Error),
    /// The first bytes are of another format.
    Compression(Compression),
    /// The archive or the disk.
    Unpack(UnpackError),
    /// The thread could not be started.
    Thread(io::Error),
}

impl PassError {
    /// Whether the bytes are at fault, which their digest can confirm.
    pub fn is_about_data(&self) -> bool {
        match self {
            PassError::Decode(_) | PassError::Compression(_) => true,
            PassError::Unpack(error) => matches!(error, UnpackError::Archive { .. }),
            PassError::Source | PassError::Thread(_) => false,
        }
    }
}

/// Sends `source` through decompression and unpacks it into `target`, or only hashes the archive
/// when there is no target. Returns the digest of the archive.
pub(super) fn run(
    source: &mut (dyn BufRead + '_),
    layer: &LayerIngest<'_>,
    limits: &Limits,
    target: Option<OwnedFd>,
) -> Result<(Digest, Unpacked), PassError> {
    let start = peek(source).map_err(classify)?;
    if !start.is_empty() && sniff(&start) != layer.compression {
        return Err(PassError::Compression(sniff(&start)));
    }
    let (full_sender, full_receiver) = sync_channel(PIECES_MAX);
    let (empty_sender, empty_receiver) = channel();
    let pieces = Pieces {
        full: full_receiver,
        empty: empty_sender,
        current: Vec::new(),
        position: 0,
        is_over: false,
        hasher: Hasher::new(layer.diff_id.algorithm()),
    };
    let options = UnpackOptions { ownership: layer.space.ownership, limits };
    thread::scope(|scope| {
        let name = format!("unpack-{}", layer.blob.short());
        let consumer = thread::Builder::new().name(name).spawn_scoped(scope, || consume(pieces, target, &options));
        let consumer = consumer.map_err(PassError::Thread)?;
        let produced = produce(source, layer.compression, &full_sender, &empty_receiver);
        drop(full_sender);
        let consumed = match consumer.join() {
            Ok(consumed) => consumed,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        match (produced, consumed) {
            // The other side saw nothing but the end of the queue.
            (Err(error), _) => Err(error),
            (Ok(()), Err(error)) => Err(PassError::Unpack(error)),
            (Ok(()), Ok(done)) => Ok(done),
        }
    })
}

/// What travels from one thread to the other. A queue that ends without `End` was cut off.
enum Piece {
    Data(Vec<u8>),
    End,
}

/// Decompresses into the queue. That the other side hangs up is no error: it has its own.
fn produce(
    source: &mut (dyn BufRead + '_),
    compression: Compression,
    full: &SyncSender<Piece>,
    empty: &Receiver<Vec<u8>>,
) -> Result<(), PassError> {
    let mut decoder = Decoder::new(compression, source).map_err(PassError::Decode)?;
    loop {
        let mut buffer = empty.try_recv().unwrap_or_else(|_| Vec::with_capacity(PIECE_BYTES));
        buffer.resize(PIECE_BYTES, 0);
        let mut filled = 0;
        while filled < PIECE_BYTES {
            match decoder.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(classify(error)),
            }
        }
        if filled == 0 {
            break;
        }
        buffer.truncate(filled);
        if full.send(Piece::Data(buffer)).is_err() {
            return Ok(());
        }
    }
    // The rest of the blob belongs to its digest, though not to the archive.
    if let Some(rest) = decoder.into_inner() {
        drain(rest).map_err(classify)?;
    }
    // When nobody listens any more, the other side says why.
    full.send(Piece::End).or(Ok(()))
}

fn consume(
    mut pieces: Pieces,
    target: Option<OwnedFd>,
    options: &UnpackOptions<'_>,
) -> Result<(Digest, Unpacked), UnpackError> {
    let unpacked = match target {
        Some(target) => unpack_layer(&mut pieces, target, options)?,
        None => {
            drain(&mut pieces).map_err(|source| UnpackError::Read { source })?;
            Unpacked::default()
        }
    };
    Ok((pieces.hasher.finish(), unpacked))
}

fn classify(error: io::Error) -> PassError {
    match error.get_ref() {
        Some(inner) if inner.is::<SourceFailed>() => PassError::Source,
        _ => PassError::Decode(error),
    }
}

/// The first bytes, without consuming them.
fn peek(source: &mut (dyn BufRead + '_)) -> io::Result<Vec<u8>> {
    let available = source.fill_buf()?;
    Ok(available[..available.len().min(SNIFF_BYTES)].to_vec())
}

/// The receiving end of the queue as a reader; hashes every piece as it comes.
struct Pieces {
    full: Receiver<Piece>,
    empty: Sender<Vec<u8>>,
    current: Vec<u8>,
    position: usize,
    is_over: bool,
    hasher: Hasher,
}

impl BufRead for Pieces {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.position == self.current.len() && !self.is_over {
            let used = std::mem::take(&mut self.current);
            self.position = 0;
            if used.capacity() > 0 {
                // Nobody wants it back when the other side is done.
                let _ = self.empty.send(used);
            }
            match self.full.recv() {
                Ok(Piece::Data(data)) => {
                    self.hasher.update(&data);
                    self.current = data;
                }
                Ok(Piece::End) => self.is_over = true,
                Err(_) => return Err(io::Error::other(SourceFailed)),
            }
        }
        Ok(&self.current[self.position..])
    }

    fn consume(&mut self, amount: usize) {
        self.position += amount;
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let take = available.len().min(buffer.len());
        buffer[..take].copy_from_slice(&available[..take]);
        self.consume(take);
        Ok(take)
    }
}
