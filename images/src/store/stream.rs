//! The bytes of a blob: from a file, or from what was kept and then from its source.
//!
//! Every byte that passes is hashed, kept if there is where to keep it, and counted; one more than
//! announced is an error.

use std::io::{self, BufRead, Read, Write};

use super::ingest::{OpenSource, SourceError};
use crate::digest::{Digest, Hasher};
use crate::limits;
use crate::progress::Progress;

/// How much is read at once.
const BUFFER_BYTES: usize = 256 << 10;

/// Where a blob comes from.
pub(super) enum Origin<'a, 'o> {
    /// A file that holds all of it.
    File(fs_err::File),
    /// The network, after what is kept already.
    Source {
        /// Opens the rest.
        open: &'a mut OpenSource<'o>,
        /// A file for what arrives, and how many bytes it holds already.
        keep: Option<(fs_err::File, u64)>,
    },
}

/// Why a blob could not be read to its end.
#[derive(Debug)]
pub(super) enum StreamFailure {
    Source(SourceError),
    TooLong,
    WrongDigest(Digest),
    Keep(io::Error),
}

/// Marks errors that come from the source and not from the data.
#[derive(Debug, thiserror::Error)]
#[error("the source failed")]
pub(super) struct SourceFailed;

/// A blob as it passes.
pub(super) struct BlobStream<'a, 'o> {
    origin: Origin<'a, 'o>,
    /// The open source.
    current: Option<Box<dyn Read + Send>>,
    /// What is still to be read from the kept file.
    replay_bytes: u64,
    size_bytes: u64,
    count: u64,
    hasher: Hasher,
    reopens: u32,
    is_end_checked: bool,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    failure: Option<StreamFailure>,
    progress: Option<(&'a dyn Progress, &'a str)>,
}

impl<'a, 'o> BlobStream<'a, 'o> {
    /// Starts at the first byte.
    pub fn new(digest: &Digest, size_bytes: u64, origin: Origin<'a, 'o>) -> Self {
        let replay_bytes = match &origin {
            Origin::Source { keep: Some((_, kept_bytes)), .. } => *kept_bytes,
            _ => 0,
        };
        let small = usize::try_from(size_bytes).unwrap_or(BUFFER_BYTES).clamp(1, BUFFER_BYTES);
        BlobStream {
            origin,
            current: None,
            replay_bytes,
            size_bytes,
            count: 0,
            hasher: Hasher::new(digest.algorithm()),
            reopens: 0,
            is_end_checked: false,
            buffer: vec![0; small],
            start: 0,
            end: 0,
            failure: None,
            progress: None,
        }
    }

    /// Tells `progress` about every byte, under the name `what`.
    pub fn report_to(&mut self, progress: &'a dyn Progress, what: &'a str) {
        self.progress = Some((progress, what));
    }

    /// Whether a part came from an earlier attempt.
    pub fn is_resumed(&self) -> bool {
        matches!(&self.origin, Origin::Source { keep: Some((_, kept_bytes)), .. } if *kept_bytes > 0)
    }

    /// Why reading failed, if it did.
    pub fn take_failure(&mut self) -> Option<StreamFailure> {
        self.failure.take()
    }

    /// Reads what is left and checks the digest of it all.
    pub fn finish(mut self, expected: &Digest) -> Result<(), StreamFailure> {
        loop {
            match self.fill_buf().map(<[u8]>::len) {
                Ok(0) => break,
                Ok(length) => self.consume(length),
                Err(error) => return Err(self.failure.unwrap_or_else(|| StreamFailure::Source(error.into()))),
            }
        }
        let actual = self.hasher.finish();
        if actual == *expected { Ok(()) } else { Err(StreamFailure::WrongDigest(actual)) }
    }

    fn refill(&mut self) -> Result<usize, StreamFailure> {
        if self.count == self.size_bytes {
            return self.check_end().map(|()| 0);
        }
        let left = usize::try_from(self.size_bytes - self.count).unwrap_or(usize::MAX);
        let want = left.min(self.buffer.len());
        let read = loop {
            let is_replay = self.replay_bytes > 0;
            let read = self.read_some(want)?;
            if read > 0 {
                break if is_replay { read } else { self.keep(read)? };
            }
        };
        self.hasher.update(&self.buffer[..read]);
        self.count += read as u64;
        if let Some((progress, what)) = self.progress {
            progress.advance(what, read as u64);
        }
        Ok(read)
    }

    /// Reads once; 0 means try again, the failure limits know how often.
    fn read_some(&mut self, want: usize) -> Result<usize, StreamFailure> {
        let buffer = &mut self.buffer[..want];
        match &mut self.origin {
            Origin::File(file) => match retry_interrupted(|| file.read(buffer)) {
                Ok(0) => Err(StreamFailure::Source(io::Error::from(io::ErrorKind::UnexpectedEof).into())),
                Ok(read) => Ok(read),
                Err(error) => Err(StreamFailure::Source(error.into())),
            },
            Origin::Source { keep: Some((file, _)), .. } if self.replay_bytes > 0 => {
                let want = want.min(usize::try_from(self.replay_bytes).unwrap_or(usize::MAX));
                let read = retry_interrupted(|| file.read(&mut buffer[..want])).map_err(StreamFailure::Keep)?;
                self.replay_bytes = if read == 0 { 0 } else { self.replay_bytes - read as u64 };
                Ok(read)
            }
            Origin::Source { open, .. } => {
                let source = match &mut self.current {
                    Some(source) => source,
                    None => self.current.insert(open(self.count).map_err(StreamFailure::Source)?),
                };
                let error = match retry_interrupted(|| source.read(buffer)) {
                    Ok(0) => io::Error::from(io::ErrorKind::UnexpectedEof),
                    Ok(read) => {
                        self.reopens = 0;
                        return Ok(read);
                    }
                    Err(error) => error,
                };
                self.current = None;
                self.reopens += 1;
                if self.reopens > limits::SOURCE_REOPENS_MAX { Err(StreamFailure::Source(error.into())) } else { Ok(0) }
            }
        }
    }

    fn keep(&mut self, read: usize) -> Result<usize, StreamFailure> {
        if let Origin::Source { keep: Some((file, _)), .. } = &mut self.origin {
            file.write_all(&self.buffer[..read]).map_err(StreamFailure::Keep)?;
        }
        Ok(read)
    }

    /// Looks for one byte too many. A source that breaks now has given all it had to.
    fn check_end(&mut self) -> Result<(), StreamFailure> {
        if std::mem::replace(&mut self.is_end_checked, true) {
            return Ok(());
        }
        let mut extra = [0u8];
        let read = match (&mut self.origin, &mut self.current) {
            (Origin::File(file), _) => retry_interrupted(|| file.read(&mut extra)),
            (_, Some(source)) => retry_interrupted(|| source.read(&mut extra)),
            _ => Ok(0),
        };
        if matches!(read, Ok(1..)) { Err(StreamFailure::TooLong) } else { Ok(()) }
    }
}

fn retry_interrupted(mut read: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match read() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

impl BufRead for BlobStream<'_, '_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.start == self.end {
            if self.failure.is_some() {
                return Err(io::Error::other(SourceFailed));
            }
            (self.start, self.end) = (0, 0);
            match self.refill() {
                Ok(read) => self.end = read,
                Err(failure) => {
                    self.failure = Some(failure);
                    return Err(io::Error::other(SourceFailed));
                }
            }
        }
        Ok(&self.buffer[self.start..self.end])
    }

    fn consume(&mut self, amount: usize) {
        self.start += amount;
    }
}

impl Read for BlobStream<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let take = available.len().min(buffer.len());
        buffer[..take].copy_from_slice(&available[..take]);
        self.consume(take);
        Ok(take)
    }
}
