//! One 512-byte tar header, read strictly.
//!
//! The tar crate's `Header` finds the fields; the numbers are read here, because the crate takes a
//! negative base-256 size for a huge positive one, and two readers that disagree about a size see
//! two different archives.

use tar::Header;

use super::error::ArchiveProblem;

/// The unit of the tar format.
pub(super) const BLOCK_BYTES: usize = 512;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names of file types say it all")]
pub enum Kind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// What a header stands for: an entry, or something about the next entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeaderKind {
    Entry(Kind),
    /// An entry of the old GNU sparse format; its map starts in this header.
    GnuSparse,
    /// GNU `L`: the next entry's name is this header's body.
    LongName,
    /// GNU `K`: the next entry's link target is this header's body.
    LongLink,
    /// PAX `x`: records about the next entry.
    Pax,
    /// PAX `g`: records about all following entries.
    PaxGlobal,
}

/// The fields of a header as numbers.
#[derive(Debug, Clone)]
pub(super) struct Fields {
    pub kind: HeaderKind,
    pub size_bytes: u64,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub mtime_s: i64,
}

/// Whether this block is one of the zero blocks that end an archive.
pub(super) fn is_zero(block: &[u8; BLOCK_BYTES]) -> bool {
    block.iter().all(|byte| *byte == 0)
}

/// Checks the sum of a header and reads its fields.
pub(super) fn parse(block: &[u8; BLOCK_BYTES]) -> Result<Fields, ArchiveProblem> {
    check_sum(block)?;
    let header = Header::from_byte_slice(block);
    let old = header.as_old();
    let kind = match old.linkflag[0] {
        b'0' | b'7' | 0 => HeaderKind::Entry(Kind::File),
        b'1' => HeaderKind::Entry(Kind::HardLink),
        b'2' => HeaderKind::Entry(Kind::Symlink),
        b'3' => HeaderKind::Entry(Kind::CharDevice),
        b'4' => HeaderKind::Entry(Kind::BlockDevice),
        b'5' => HeaderKind::Entry(Kind::Directory),
        b'6' => HeaderKind::Entry(Kind::Fifo),
        b'S' if header.as_gnu().is_some() => HeaderKind::GnuSparse,
        b'L' => HeaderKind::LongName,
        b'K' => HeaderKind::LongLink,
        b'x' => HeaderKind::Pax,
        b'g' => HeaderKind::PaxGlobal,
        flag => return Err(ArchiveProblem::UnknownType(flag)),
    };
    Ok(Fields {
        kind,
        size_bytes: unsigned(&old.size, "size")?,
        mode: (unsigned(&old.mode, "mode")? & 0o7777) as u32,
        uid: unsigned(&old.uid, "uid")?,
        gid: unsigned(&old.gid, "gid")?,
        mtime_s: clamped(number(&old.mtime, "mtime")?),
    })
}

/// The name in the header, prefix included.
pub(super) fn name(block: &[u8; BLOCK_BYTES]) -> Vec<u8> {
    Header::from_byte_slice(block).path_bytes().into_owned()
}

/// The link target in the header.
pub(super) fn link_name(block: &[u8; BLOCK_BYTES]) -> Vec<u8> {
    Header::from_byte_slice(block).link_name_bytes().map(|name| name.into_owned()).unwrap_or_default()
}

/// The sum of all bytes with the sum field taken as spaces; ancient writers summed signed bytes.
fn check_sum(block: &[u8; BLOCK_BYTES]) -> Result<(), ArchiveProblem> {
    let stated = number(&block[148..156], "checksum")?;
    let summed = block[..148].iter().chain(&[b' '; 8]).chain(&block[156..]);
    let (mut unsigned, mut signed) = (0i128, 0i128);
    for byte in summed {
        unsigned += i128::from(*byte);
        signed += i128::from(byte.cast_signed());
    }
    if stated == unsigned || stated == signed { Ok(()) } else { Err(ArchiveProblem::Checksum) }
}

/// Times beyond what the kernel takes stop at the end (T30).
fn clamped(number: i128) -> i64 {
    i64::try_from(number).unwrap_or(if number < 0 { i64::MIN } else { i64::MAX })
}

fn unsigned(field: &[u8], what: &'static str) -> Result<u64, ArchiveProblem> {
    u64::try_from(number(field, what)?).map_err(|_| ArchiveProblem::Number(what))
}

/// Octal text between blanks, nothing at all (zero), or base-256 with its sign (GNU).
pub(super) fn number(field: &[u8], what: &'static str) -> Result<i128, ArchiveProblem> {
    let first = *field.first().ok_or(ArchiveProblem::Number(what))?;
    if first & 0x80 != 0 {
        let negative = first & 0x40 != 0;
        let top = i128::from(first & 0x7f) - if negative { 0x80 } else { 0 };
        let wide = field[1..].iter().fold(top, |value, byte| (value << 8) | i128::from(*byte));
        return Ok(wide);
    }
    let is_blank = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| *byte != b' ').unwrap_or(field.len());
    let text = &field[start..];
    let digits = text.iter().position(is_blank).unwrap_or(text.len());
    let clean = text[..digits].iter().all(|byte| matches!(byte, b'0'..=b'7'));
    if !clean || (digits == 0 && !text.iter().all(is_blank)) {
        return Err(ArchiveProblem::Number(what));
    }
    Ok(text[..digits].iter().fold(0, |value, digit| value * 8 + i128::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        let check = |field: &[u8], expect: Option<i128>| {
            assert_eq!(number(field, "size").ok(), expect, "{field:?}");
        };
        check(b"0000644\0", Some(0o644));
        check(b"  644 \0\0", Some(0o644));
        check(b"\0\0\0\0\0\0\0\0", Some(0));
        check(b"        ", Some(0));
        check(b"77777777", Some(0o7777_7777));
        check(b"8\0\0\0\0\0\0\0", None);
        check(b"-1\0\0\0\0\0\0", None);
        check(b"12a4567\0", None);
        check(b"\x80\0\0\0\0\0\x01\0", Some(256));
        check(b"\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1));
        check(b"\x80\0\0\0\x80\0\0\0\0\0\0\0", Some(1 << 63));
        assert!(unsigned(b"\xff\xff\xff\xff\xff\xff\xff\xff", "size").is_err());
        assert!(unsigned(b"\x80\0\0\x01\0\0\0\0\0\0\0\0", "size").is_err());
    }
}
