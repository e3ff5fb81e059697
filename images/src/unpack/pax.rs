//! PAX extended headers: records `length key=value\n` about the next entry.
//!
//! Values are binary (extended attributes hold newlines), so records are cut by their length and
//! never by searching for line ends. Anything malformed is an error: a record that is skipped is a
//! file that another reader sees differently (T10, T11).

use super::error::ArchiveProblem;
use crate::limits;

/// A point in time as an archive states it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Timestamp {
    pub seconds: i64,
    pub nanoseconds: u32,
}

/// What records say about an entry; empty values mean "as in the header" (POSIX pax).
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Pax {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size_bytes: Option<u64>,
    pub uid: Option<u64>,
    pub gid: Option<u64>,
    pub mtime: Option<Timestamp>,
    /// Name and value in the order of the archive, at most `XATTRS_PER_FILE_MAX`.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Attributes beyond that number or too long.
    pub xattrs_dropped: u64,
    pub sparse: SparseRecords,
}

/// `GNU.sparse.*` in its three versions.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct SparseRecords {
    pub major: Option<u64>,
    pub minor: Option<u64>,
    pub name: Option<Vec<u8>>,
    /// `GNU.sparse.size` (0.x) or `GNU.sparse.realsize` (1.0).
    pub real_size_bytes: Option<u64>,
    /// Version 0.0: pairs in order; version 0.1: the map. Offset, length, alternating.
    pub numbers: Vec<u64>,
}

impl SparseRecords {
    /// Whether any record was about sparseness.
    pub fn is_present(&self) -> bool {
        *self != SparseRecords::default()
    }
}

/// Reads all records of a local (`x`) header.
pub(super) fn parse(body: &[u8]) -> Result<Pax, ArchiveProblem> {
    let mut pax = Pax::default();
    for record in Records(body) {
        let (key, value) = record?;
        pax.apply(key, value)?;
    }
    Ok(pax)
}

/// Checks a global (`g`) header: comments are fine, anything that changes entries is not.
pub(super) fn check_global(body: &[u8]) -> Result<(), ArchiveProblem> {
    let mut pax = Pax::default();
    for record in Records(body) {
        let (key, value) = record?;
        pax.apply(key, value)?;
    }
    if pax == Pax::default() { Ok(()) } else { Err(ArchiveProblem::GlobalPax) }
}

struct Records<'a>(&'a [u8]);

impl<'a> Iterator for Records<'a> {
    type Item = Result<(&'a [u8], &'a [u8]), ArchiveProblem>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let record = split_record(self.0);
        match record {
            Ok((key, value, rest)) => {
                self.0 = rest;
                Some(Ok((key, value)))
            }
            Err(problem) => {
                self.0 = &[];
                Some(Err(problem))
            }
        }
    }
}

type Record<'a> = (&'a [u8], &'a [u8], &'a [u8]);

fn split_record(data: &[u8]) -> Result<Record<'_>, ArchiveProblem> {
    // The block limit has seven digits, so a longer length is nonsense.
    const LENGTH_DIGITS_MAX: usize = 7;
    let malformed = ArchiveProblem::MalformedPax;
    let blank = data.iter().take(LENGTH_DIGITS_MAX + 1).position(|b| *b == b' ').ok_or(malformed)?;
    let length = usize::try_from(decimal(&data[..blank]).ok_or(malformed)?).map_err(|_| malformed)?;
    // Shortest record: blank, one byte of key, equals sign, newline.
    if length < blank + 4 || length > data.len() || data[length - 1] != b'\n' {
        return Err(malformed);
    }
    let content = &data[blank + 1..length - 1];
    let equals = content.iter().position(|byte| *byte == b'=').ok_or(malformed)?;
    let key = &content[..equals];
    if key.is_empty() || key.contains(&0) {
        return Err(malformed);
    }
    Ok((key, &content[equals + 1..], &data[length..]))
}

impl Pax {
    fn apply(&mut self, key: &[u8], value: &[u8]) -> Result<(), ArchiveProblem> {
        const XATTR: &[u8] = b"SCHILY.xattr.";
        const SPARSE: &[u8] = b"GNU.sparse.";
        if let Some(name) = key.strip_prefix(XATTR) {
            return self.add_xattr(name, value);
        }
        if let Some(name) = key.strip_prefix(SPARSE) {
            return self.sparse.apply(name, value);
        }
        if value.is_empty() {
            return Ok(());
        }
        let malformed = ArchiveProblem::MalformedPax;
        match key {
            b"path" => set(&mut self.path, value.to_vec()),
            b"linkpath" => set(&mut self.link, value.to_vec()),
            b"size" => set(&mut self.size_bytes, decimal(value).ok_or(malformed)?),
            b"uid" => set(&mut self.uid, decimal(value).ok_or(malformed)?),
            b"gid" => set(&mut self.gid, decimal(value).ok_or(malformed)?),
            b"mtime" => set(&mut self.mtime, timestamp(value).ok_or(malformed)?),
            _ => Ok(()),
        }
    }

    fn add_xattr(&mut self, name: &[u8], value: &[u8]) -> Result<(), ArchiveProblem> {
        let fits = self.xattrs.len() < limits::XATTRS_PER_FILE_MAX
            && (1..=limits::XATTR_NAME_BYTES_MAX).contains(&name.len())
            && value.len() <= limits::XATTR_VALUE_BYTES_MAX;
        if !fits {
            self.xattrs_dropped += 1;
        } else if self.xattrs.iter().any(|(known, _)| known == name) {
            return Err(ArchiveProblem::DuplicatePaxKey);
        } else {
            self.xattrs.push((name.to_vec(), value.to_vec()));
        }
        Ok(())
    }
}

impl SparseRecords {
    fn apply(&mut self, name: &[u8], value: &[u8]) -> Result<(), ArchiveProblem> {
        let number = || decimal(value).ok_or(ArchiveProblem::Sparse);
        match name {
            b"major" => set(&mut self.major, number()?),
            b"minor" => set(&mut self.minor, number()?),
            b"name" => set(&mut self.name, value.to_vec()),
            b"size" | b"realsize" => set(&mut self.real_size_bytes, number()?),
            b"offset" | b"numbytes" => {
                let is_offset = name == b"offset";
                if is_offset != self.numbers.len().is_multiple_of(2) {
                    return Err(ArchiveProblem::Sparse);
                }
                self.push(number()?)
            }
            b"map" => {
                if !self.numbers.is_empty() {
                    return Err(ArchiveProblem::DuplicatePaxKey);
                }
                for part in value.split(|byte| *byte == b',').filter(|_| !value.is_empty()) {
                    self.push(decimal(part).ok_or(ArchiveProblem::Sparse)?)?;
                }
                Ok(())
            }
            b"numblocks" => number().map(|_| ()),
            _ => Err(ArchiveProblem::Sparse),
        }
    }

    fn push(&mut self, number: u64) -> Result<(), ArchiveProblem> {
        if self.numbers.len() >= limits::SPARSE_SEGMENTS_MAX * 2 {
            return Err(ArchiveProblem::SparseSegments);
        }
        self.numbers.push(number);
        Ok(())
    }
}

/// POSIX lets the last of two equal keys win, others the first: refused.
fn set<T>(slot: &mut Option<T>, value: T) -> Result<(), ArchiveProblem> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(ArchiveProblem::DuplicatePaxKey),
    }
}

/// Plain decimal digits, nothing else.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    text.iter().try_fold(0u64, |value, digit| value.checked_mul(10)?.checked_add(u64::from(digit - b'0')))
}

/// Seconds with an optional sign and fraction; beyond what fits it stops at the end (T30).
fn timestamp(text: &[u8]) -> Option<Timestamp> {
    const NANOSECOND_DIGITS: usize = 9;
    let (negative, text) = match text.split_first() {
        Some((b'-', rest)) => (true, rest),
        _ => (false, text),
    };
    let (whole, fraction) = match text.iter().position(|byte| *byte == b'.') {
        Some(point) => (&text[..point], &text[point + 1..]),
        None => (text, &[][..]),
    };
    if whole.is_empty() || !whole.iter().chain(fraction).all(u8::is_ascii_digit) {
        return None;
    }
    let seconds = decimal(whole).and_then(|value| i64::try_from(value).ok()).unwrap_or(i64::MAX);
    let nanoseconds =
        (0..NANOSECOND_DIGITS).fold(0u32, |value, at| value * 10 + u32::from(fraction.get(at).unwrap_or(&b'0') - b'0'));
    Some(match (negative, nanoseconds) {
        (false, _) => Timestamp { seconds, nanoseconds },
        (true, 0) => Timestamp { seconds: -seconds, nanoseconds: 0 },
        (true, _) => Timestamp { seconds: (-seconds).saturating_sub(1), nanoseconds: 1_000_000_000 - nanoseconds },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t11_malformed_pax() {
        for bad in [
            &b"12 path=abc"[..],
            b"13 path=abc\n",
            b"11 path=abc\n",
            b"0 path=abc\n",
            b"path=abc\n",
            b" 12 path=abc\n",
            b"99999999999999999999 path=abc\n",
            b"+12 path=abc\n",
            b"8 =abcd\n",
            b"6 path\n",
            b"13 pa\0th=abc\n",
            b"12 path=abc\n12 path=abd\n",
            b"9 size=-1\n",
            b"10 size=1 \n",
            b"4 \n\n\n",
        ] {
            let result = parse(bad);
            assert!(result.is_err(), "{:?} gave {result:?}", bad.escape_ascii().to_string());
        }
    }

    #[test]
    fn binary_values_do_not_hide_later_records() {
        let pax = parse(b"30 SCHILY.xattr.user.a=1\n2\0=3\n11 size=77\n").expect("valid");
        assert_eq!(pax.xattrs, [(b"user.a".to_vec(), b"1\n2\0=3".to_vec())]);
        assert_eq!(pax.size_bytes, Some(77));
    }

    #[test]
    fn empty_value_means_header() {
        assert_eq!(parse(b"8 path=\n"), Ok(Pax::default()));
    }

    #[test]
    fn global_header() {
        assert_eq!(check_global(b"16 comment=abcd\n"), Ok(()));
        assert_eq!(check_global(b"12 path=abc\n"), Err(ArchiveProblem::GlobalPax));
    }

    #[test]
    fn t30_times() {
        let check = |text: &str, expect: Option<(i64, u32)>| {
            let time = timestamp(text.as_bytes()).map(|t| (t.seconds, t.nanoseconds));
            assert_eq!(time, expect, "{text}");
        };
        check("0", Some((0, 0)));
        check("-0", Some((0, 0)));
        check("1350244992.023960108", Some((1_350_244_992, 23_960_108)));
        check("1.5", Some((1, 500_000_000)));
        check("-1.25", Some((-2, 750_000_000)));
        check("-7", Some((-7, 0)));
        check("1.1234567899999", Some((1, 123_456_789)));
        check("99999999999999999999999", Some((i64::MAX, 0)));
        check("-99999999999999999999999.5", Some((i64::MIN, 500_000_000)));
        for bad in ["", "nan", "inf", "1e400", "-", ".5", "1.2.3", "+1", " 1", "1_0"] {
            check(bad, None);
        }
    }
}
