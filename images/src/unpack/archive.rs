//! The entries of a tar stream, in one pass and with fixed memory.
//!
//! This is not `tar::Archive`: its iterator reads extended headers of any size into memory, splits
//! PAX records at newlines (so a binary attribute value can hide the `size` that frames the rest of
//! the archive) and knows only one of the four sparse formats. Header fields still come from the
//! tar crate. Which of several names and sizes counts: PAX before GNU long name before header.

use std::io::{self, BufRead};

use super::error::{ArchiveProblem, UnpackError};
use super::header::{self, BLOCK_BYTES, Fields, HeaderKind, Kind};
use super::pax::{self, Pax, Timestamp};
use super::sparse::{self, SparseMap};
use crate::limits;

/// One entry. Its body is read with [`Archive::read_body`].
#[derive(Debug)]
pub(crate) struct Entry {
    pub kind: Kind,
    pub path: Vec<u8>,
    /// Target of a link, else empty.
    pub link: Vec<u8>,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub mtime: Timestamp,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Attributes that the archive reader already dropped because of their size or number.
    pub xattrs_dropped: u64,
    /// Size of the file once unpacked.
    pub size_bytes: u64,
    pub sparse: Option<SparseMap>,
    /// Major and minor of a device, as stated.
    pub device: (i128, i128),
}

/// A tar stream.
#[derive(Debug)]
pub(crate) struct Archive<R> {
    reader: R,
    offset: u64,
    /// What is left of the current entry's body.
    body_left: u64,
    padding: u64,
}

/// What extension headers said about the entry that follows them.
#[derive(Debug, Default)]
struct Extensions {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pax: Option<Pax>,
}

impl<R: BufRead> Archive<R> {
    /// Starts at the beginning of `reader`.
    pub fn new(reader: R) -> Self {
        Archive { reader, offset: 0, body_left: 0, padding: 0 }
    }

    /// Skips what is left of the current entry and reads the next; `None` at the end.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, UnpackError> {
        let mut extensions = Extensions::default();
        let mut is_pending = false;
        loop {
            self.skip_body()?;
            let at = self.offset;
            let Some(block) = self.next_header()? else {
                return if is_pending { Err(damaged(at, ArchiveProblem::DanglingExtension)) } else { Ok(None) };
            };
            let fields = header::parse(&block).map_err(|problem| damaged(at, problem))?;
            match fields.kind {
                HeaderKind::Entry(_) | HeaderKind::GnuSparse => {
                    return self.entry(&block, &fields, extensions, at).map(Some);
                }
                HeaderKind::PaxGlobal => {
                    let body = self.extension_body(&fields, limits::PAX_BYTES_MAX, at)?;
                    pax::check_global(&body).map_err(|problem| damaged(at, problem))?;
                    continue;
                }
                HeaderKind::Pax => {
                    let body = self.extension_body(&fields, limits::PAX_BYTES_MAX, at)?;
                    let pax = pax::parse(&body).map_err(|problem| damaged(at, problem))?;
                    put(&mut extensions.pax, pax, at)?;
                }
                HeaderKind::LongName => {
                    let name = self.long_name(&fields, at)?;
                    put(&mut extensions.name, name, at)?;
                }
                HeaderKind::LongLink => {
                    let name = self.long_name(&fields, at)?;
                    put(&mut extensions.link, name, at)?;
                }
            }
            is_pending = true;
        }
    }

    /// Hands the next piece of the current body to `sink`, at most `max_bytes`; 0 at its end.
    pub fn read_body<E>(&mut self, max_bytes: u64, sink: impl FnOnce(&[u8]) -> Result<(), E>) -> Result<u64, E>
    where
        E: From<UnpackError>,
    {
        let want = max_bytes.min(self.body_left);
        if want == 0 {
            return Ok(0);
        }
        let available = match self.reader.fill_buf() {
            Ok([]) => return Err(damaged(self.offset, ArchiveProblem::Truncated).into()),
            Ok(available) => available,
            Err(source) => return Err(UnpackError::Read { source }.into()),
        };
        let take = usize::try_from(want).unwrap_or(usize::MAX).min(available.len());
        sink(&available[..take])?;
        self.reader.consume(take);
        self.offset += take as u64;
        self.body_left -= take as u64;
        Ok(take as u64)
    }

    /// How many bytes were read: right after `next_entry` this is where the body starts.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The reader, to read on behind the end of the archive.
    pub fn into_inner(self) -> R {
        self.reader
    }

    fn entry(
        &mut self,
        block: &[u8; BLOCK_BYTES],
        fields: &Fields,
        extensions: Extensions,
        at: u64,
    ) -> Result<Entry, UnpackError> {
        let mut pax = extensions.pax.unwrap_or_default();
        let mut kind = match fields.kind {
            HeaderKind::Entry(kind) => kind,
            _ => Kind::File,
        };
        let name = pax.path.take().or(extensions.name);
        let path = pax.sparse.name.take().or(name).unwrap_or_else(|| header::name(block));
        if kind == Kind::File && path.ends_with(b"/") {
            kind = Kind::Directory;
        }
        let stored_bytes = pax.size_bytes.unwrap_or(fields.size_bytes);
        // Only files have a body; Go, GNU tar and Python agree that other sizes mean nothing.
        self.set_body(if kind == Kind::File || matches!(fields.kind, HeaderKind::Entry(Kind::File)) {
            stored_bytes
        } else {
            0
        });
        let sparse = match fields.kind {
            HeaderKind::GnuSparse => Some(sparse::from_gnu(self, block, stored_bytes)),
            _ if kind == Kind::File && pax.sparse.is_present() => {
                Some(sparse::from_pax(self, &pax.sparse, stored_bytes))
            }
            _ => None,
        };
        let sparse = sparse.transpose().map_err(|failure| failure.at(at))?;
        Ok(Entry {
            kind,
            path,
            link: pax.link.or(extensions.link).unwrap_or_else(|| header::link_name(block)),
            mode: fields.mode,
            uid: pax.uid.unwrap_or(fields.uid),
            gid: pax.gid.unwrap_or(fields.gid),
            mtime: pax.mtime.unwrap_or(Timestamp { seconds: fields.mtime_s, nanoseconds: 0 }),
            xattrs: pax.xattrs,
            xattrs_dropped: pax.xattrs_dropped,
            size_bytes: sparse.as_ref().map_or(self.body_left, |map| map.real_size_bytes),
            sparse,
            device: device(block, kind).map_err(|problem| damaged(at, problem))?,
        })
    }

    /// The next header block; `None` after two zero blocks, or one and the end, or the end. An
    /// archive without its end blocks is complete as far as anybody can tell; what was cut off is
    /// found by the digest.
    fn next_header(&mut self) -> Result<Option<[u8; BLOCK_BYTES]>, UnpackError> {
        let at = self.offset;
        let Some(block) = self.read_block()? else { return Ok(None) };
        if !header::is_zero(&block) {
            return Ok(Some(block));
        }
        match self.read_block()? {
            Some(second) if !header::is_zero(&second) => Err(damaged(at, ArchiveProblem::LoneZeroBlock)),
            _ => Ok(None),
        }
    }

    /// Reads one block outside of bodies; `None` at the end of the stream.
    pub(super) fn read_block(&mut self) -> Result<Option<[u8; BLOCK_BYTES]>, UnpackError> {
        let mut block = [0u8; BLOCK_BYTES];
        let mut filled = 0;
        while filled < BLOCK_BYTES {
            let available = self.reader.fill_buf().map_err(|source| UnpackError::Read { source })?;
            if available.is_empty() {
                break;
            }
            let take = available.len().min(BLOCK_BYTES - filled);
            block[filled..filled + take].copy_from_slice(&available[..take]);
            self.reader.consume(take);
            filled += take;
        }
        let at = self.offset;
        self.offset += filled as u64;
        match filled {
            0 => Ok(None),
            BLOCK_BYTES => Ok(Some(block)),
            _ => Err(damaged(at, ArchiveProblem::Truncated)),
        }
    }

    /// Reads one block of the current body.
    pub(super) fn read_body_block(&mut self) -> Result<[u8; BLOCK_BYTES], UnpackError> {
        let at = self.offset;
        let left = self.body_left.checked_sub(BLOCK_BYTES as u64);
        let left = left.ok_or_else(|| damaged(at, ArchiveProblem::Sparse))?;
        let block = self.read_block()?.ok_or_else(|| damaged(at, ArchiveProblem::Truncated))?;
        self.body_left = left;
        Ok(block)
    }

    /// What is left of the current body.
    pub(super) fn body_left(&self) -> u64 {
        self.body_left
    }

    fn set_body(&mut self, size_bytes: u64) {
        const BLOCK: u64 = BLOCK_BYTES as u64;
        self.body_left = size_bytes;
        self.padding = (BLOCK - size_bytes % BLOCK) % BLOCK;
    }

    fn skip_body(&mut self) -> Result<(), UnpackError> {
        let skip = |this: &mut Self| this.read_body(u64::MAX, |_| Ok::<(), UnpackError>(()));
        while skip(self)? > 0 {}
        self.body_left = std::mem::take(&mut self.padding);
        while skip(self)? > 0 {}
        Ok(())
    }

    fn extension_body(&mut self, fields: &Fields, max_bytes: u64, at: u64) -> Result<Vec<u8>, UnpackError> {
        if fields.size_bytes > max_bytes {
            return Err(damaged(at, ArchiveProblem::ExtensionTooLarge));
        }
        self.set_body(fields.size_bytes);
        let mut body = Vec::new();
        let mut read = |this: &mut Self| {
            this.read_body(u64::MAX, |piece| {
                body.extend_from_slice(piece);
                Ok::<(), UnpackError>(())
            })
        };
        while read(self)? > 0 {}
        Ok(body)
    }

    fn long_name(&mut self, fields: &Fields, at: u64) -> Result<Vec<u8>, UnpackError> {
        let mut name = self.extension_body(fields, limits::PATH_BYTES_MAX as u64 + 1, at)?;
        if let Some(end) = name.iter().position(|byte| *byte == 0) {
            name.truncate(end);
        }
        Ok(name)
    }
}

/// An error about the bytes at `offset`.
pub(super) fn damaged(offset: u64, problem: ArchiveProblem) -> UnpackError {
    UnpackError::Archive { offset, problem }
}

fn put<T>(slot: &mut Option<T>, value: T, at: u64) -> Result<(), UnpackError> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(damaged(at, ArchiveProblem::DuplicateExtension)),
    }
}

fn device(block: &[u8; BLOCK_BYTES], kind: Kind) -> Result<(i128, i128), ArchiveProblem> {
    if !matches!(kind, Kind::CharDevice | Kind::BlockDevice) {
        return Ok((0, 0));
    }
    Ok((header::number(&block[329..337], "device major")?, header::number(&block[337..345], "device minor")?))
}

/// Reads everything behind the archive's end, so that its bytes are hashed too.
pub(crate) fn drain(mut reader: impl BufRead) -> io::Result<()> {
    loop {
        match reader.fill_buf()?.len() {
            0 => return Ok(()),
            length => reader.consume(length),
        }
    }
}
