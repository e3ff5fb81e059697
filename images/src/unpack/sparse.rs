//! Maps of sparse files: the old GNU format and PAX versions 0.0, 0.1 and 1.0.
//!
//! A map is a list of segments in ascending order that do not overlap, whose lengths add up to the
//! bytes in the archive. Nothing is allocated from a count in a header (T19).

use std::io::BufRead;

use super::archive::{Archive, damaged};
use super::error::{ArchiveProblem, UnpackError};
use super::header::{self, BLOCK_BYTES};
use super::pax::{self, SparseRecords};
use crate::limits;

/// Where the bytes of a sparse file's body go.
#[derive(Debug, Default)]
pub(crate) struct SparseMap {
    /// Size of the file with its holes.
    pub real_size_bytes: u64,
    /// Offset and length of each segment.
    pub segments: Vec<(u64, u64)>,
}

/// A broken map, or a broken archive below it.
#[derive(Debug)]
pub(super) enum SparseFailure {
    Map(ArchiveProblem),
    Archive(UnpackError),
}

impl SparseFailure {
    /// As an error about the entry at `offset`.
    pub fn at(self, offset: u64) -> UnpackError {
        match self {
            SparseFailure::Map(problem) => damaged(offset, problem),
            SparseFailure::Archive(error) => error,
        }
    }
}

impl From<UnpackError> for SparseFailure {
    fn from(error: UnpackError) -> Self {
        SparseFailure::Archive(error)
    }
}

const MALFORMED: SparseFailure = SparseFailure::Map(ArchiveProblem::Sparse);

/// Bytes of one offset and length in a header.
const GNU_PAIR_BYTES: usize = 24;

/// Reads the map out of an old GNU header and the blocks that continue it.
pub(super) fn from_gnu<R: BufRead>(
    archive: &mut Archive<R>,
    block: &[u8; BLOCK_BYTES],
    stored_bytes: u64,
) -> Result<SparseMap, SparseFailure> {
    const FIRST_PAIRS: std::ops::Range<usize> = 386..482;
    const FIRST_CONTINUES: usize = 482;
    const REAL_SIZE: std::ops::Range<usize> = 483..495;
    const NEXT_PAIRS: std::ops::Range<usize> = 0..504;
    const NEXT_CONTINUES: usize = 504;
    let mut numbers = Vec::new();
    gnu_pairs(&block[FIRST_PAIRS], &mut numbers)?;
    let mut continues = block[FIRST_CONTINUES] != 0;
    while continues {
        let next = archive.read_block()?.ok_or(SparseFailure::Map(ArchiveProblem::Truncated))?;
        gnu_pairs(&next[NEXT_PAIRS], &mut numbers)?;
        continues = next[NEXT_CONTINUES] != 0;
    }
    build(&numbers, gnu_number(&block[REAL_SIZE])?, stored_bytes)
}

/// Reads the map out of PAX records, or for version 1.0 out of the start of the body.
pub(super) fn from_pax<R: BufRead>(
    archive: &mut Archive<R>,
    records: &SparseRecords,
    stored_bytes: u64,
) -> Result<SparseMap, SparseFailure> {
    let real_size_bytes = records.real_size_bytes.ok_or(MALFORMED)?;
    match (records.major.unwrap_or(0), records.minor.unwrap_or(0)) {
        (0, 0 | 1) => build(&records.numbers, real_size_bytes, stored_bytes),
        (1, 0) => {
            let numbers = numbers_in_body(archive)?;
            let left = archive.body_left();
            build(&numbers, real_size_bytes, left)
        }
        _ => Err(MALFORMED),
    }
}

/// Version 1.0: decimal lines, a count of pairs and then the pairs, padded to a whole block.
fn numbers_in_body<R: BufRead>(archive: &mut Archive<R>) -> Result<Vec<u64>, SparseFailure> {
    const DIGITS_MAX: usize = 20;
    let mut numbers: Vec<u64> = Vec::new();
    let mut wanted: Option<usize> = None;
    let mut line = Vec::new();
    loop {
        let block = archive.read_body_block()?;
        for byte in block {
            if wanted == Some(numbers.len()) {
                return Ok(numbers);
            }
            if byte != b'\n' {
                line.push(byte);
                if line.len() > DIGITS_MAX {
                    return Err(MALFORMED);
                }
                continue;
            }
            let number = pax::decimal(&line).ok_or(MALFORMED)?;
            line.clear();
            match wanted {
                Some(_) => numbers.push(number),
                None if number <= limits::SPARSE_SEGMENTS_MAX as u64 => {
                    wanted = Some(usize::try_from(number).map_err(|_| MALFORMED)? * 2);
                }
                None => return Err(SparseFailure::Map(ArchiveProblem::SparseSegments)),
            }
        }
        if wanted == Some(numbers.len()) {
            return Ok(numbers);
        }
    }
}

fn gnu_pairs(table: &[u8], numbers: &mut Vec<u64>) -> Result<(), SparseFailure> {
    for pair in table.as_chunks::<GNU_PAIR_BYTES>().0 {
        if pair[0] == 0 {
            break;
        }
        if numbers.len() >= limits::SPARSE_SEGMENTS_MAX * 2 {
            return Err(SparseFailure::Map(ArchiveProblem::SparseSegments));
        }
        numbers.push(gnu_number(&pair[..12])?);
        numbers.push(gnu_number(&pair[12..])?);
    }
    Ok(())
}

fn gnu_number(field: &[u8]) -> Result<u64, SparseFailure> {
    let number = header::number(field, "sparse map").map_err(SparseFailure::Map)?;
    u64::try_from(number).map_err(|_| MALFORMED)
}

fn build(numbers: &[u64], real_size_bytes: u64, stored_bytes: u64) -> Result<SparseMap, SparseFailure> {
    let (pairs, rest) = numbers.as_chunks::<2>();
    let (mut end, mut sum) = (0u64, 0u64);
    let mut segments = Vec::new();
    for [offset, length] in pairs {
        if *offset < end {
            return Err(MALFORMED);
        }
        end = offset.checked_add(*length).ok_or(MALFORMED)?;
        sum = sum.checked_add(*length).ok_or(MALFORMED)?;
        if *length > 0 {
            segments.push((*offset, *length));
        }
    }
    if !rest.is_empty() || end > real_size_bytes || sum != stored_bytes {
        return Err(MALFORMED);
    }
    Ok(SparseMap { real_size_bytes, segments })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t19_maps() {
        let check = |numbers: &[u64], real, stored, good| {
            assert_eq!(build(numbers, real, stored).is_ok(), good, "{numbers:?} {real} {stored}");
        };
        check(&[], 0, 0, true);
        check(&[], 1 << 60, 0, true);
        check(&[0, 10, 20, 5], 25, 15, true);
        check(&[0, 10, 20, 5], 100, 15, true);
        check(&[0, 10, 20, 5, 100, 0], 100, 15, true);
        check(&[0, 10, 20, 5], 24, 15, false);
        check(&[0, 10, 20, 5], 25, 14, false);
        check(&[0, 10, 9, 5], 25, 15, false);
        check(&[20, 5, 0, 10], 25, 15, false);
        check(&[u64::MAX, 2], u64::MAX, 2, false);
        check(&[0, 10, 20], 25, 10, false);
    }
}
