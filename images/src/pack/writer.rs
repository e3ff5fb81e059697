//! One entry of an archive: a ustar header, and PAX records for what does not fit there (pax(1)).

use std::io::{self, Write};

use tar::EntryType;

const BLOCK_BYTES: u64 = 512;
/// Longest name that the header's own field holds.
const NAME_BYTES_MAX: usize = 100;
/// Largest user or group id of seven octal digits.
const ID_MAX: u64 = 0o777_7777;
/// Largest size and time of eleven octal digits.
const NUMBER_MAX: u64 = 0o777_7777_7777;

/// What is said about an entry.
#[derive(Debug, Clone)]
pub(super) struct Entry<'a> {
    pub kind: EntryType,
    pub path: &'a [u8],
    /// Target of a link, else empty.
    pub link: &'a [u8],
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since the epoch; layers have no fractions, as docker writes them.
    pub mtime_s: i64,
    pub size_bytes: u64,
    pub device: (u32, u32),
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// An archive that is being written.
pub(super) struct ArchiveWriter<'a> {
    out: &'a mut dyn Write,
    /// Of the current entry's body.
    left: u64,
    padding: u64,
}

impl<'a> ArchiveWriter<'a> {
    pub fn new(out: &'a mut dyn Write) -> Self {
        Self { out, left: 0, padding: 0 }
    }

    /// Starts an entry; its body follows by [`ArchiveWriter::body`].
    pub fn entry(&mut self, entry: &Entry<'_>) -> io::Result<()> {
        let records = records(entry);
        if !records.is_empty() {
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(EntryType::XHeader);
            header.set_size(records.len() as u64);
            header.set_mode(0o644);
            header.as_old_mut().name[..9].copy_from_slice(b"PaxHeader");
            header.set_cksum();
            self.out.write_all(header.as_bytes())?;
            self.out.write_all(&records)?;
            self.zeros(padding(records.len() as u64))?;
        }
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(entry.kind);
        header.set_mode(entry.mode & 0o7777);
        header.set_uid(u64::from(entry.uid).min(ID_MAX));
        header.set_gid(u64::from(entry.gid).min(ID_MAX));
        header.set_size(entry.size_bytes.min(NUMBER_MAX));
        header.set_mtime(u64::try_from(entry.mtime_s).unwrap_or(0).min(NUMBER_MAX));
        if matches!(entry.kind, EntryType::Char | EntryType::Block) {
            header.set_device_major(entry.device.0)?;
            header.set_device_minor(entry.device.1)?;
        }
        let raw = header.as_old_mut();
        let (name, link) = (cut(entry.path), cut(entry.link));
        raw.name[..name.len()].copy_from_slice(name);
        raw.linkname[..link.len()].copy_from_slice(link);
        header.set_cksum();
        self.out.write_all(header.as_bytes())?;
        (self.left, self.padding) = (entry.size_bytes, padding(entry.size_bytes));
        Ok(())
    }

    /// Adds a piece of the body; more than was announced is cut off. Gives what is still missing.
    pub fn body(&mut self, piece: &[u8]) -> io::Result<u64> {
        let length = usize::try_from(self.left).unwrap_or(usize::MAX).min(piece.len());
        self.out.write_all(&piece[..length])?;
        self.left -= length as u64;
        Ok(self.left)
    }

    /// Completes the body with zeros.
    pub fn end_body(&mut self) -> io::Result<()> {
        let rest = std::mem::take(&mut self.left) + std::mem::take(&mut self.padding);
        self.zeros(rest)
    }

    /// Completes the archive.
    pub fn finish(mut self) -> io::Result<()> {
        self.zeros(2 * BLOCK_BYTES)?;
        self.out.flush()
    }

    fn zeros(&mut self, mut count: u64) -> io::Result<()> {
        const ZEROS: [u8; 4096] = [0; 4096];
        while count > 0 {
            let length = count.min(ZEROS.len() as u64);
            self.out.write_all(&ZEROS[..usize::try_from(length).unwrap_or(ZEROS.len())])?;
            count -= length;
        }
        Ok(())
    }
}

fn padding(size_bytes: u64) -> u64 {
    (BLOCK_BYTES - size_bytes % BLOCK_BYTES) % BLOCK_BYTES
}

fn cut(name: &[u8]) -> &[u8] {
    name.get(..NAME_BYTES_MAX).unwrap_or(name)
}

fn records(entry: &Entry<'_>) -> Vec<u8> {
    let mut records = Vec::new();
    if entry.path.len() > NAME_BYTES_MAX {
        record(&mut records, b"path", entry.path);
    }
    if entry.link.len() > NAME_BYTES_MAX {
        record(&mut records, b"linkpath", entry.link);
    }
    for (key, id) in [(b"uid", entry.uid), (b"gid", entry.gid)] {
        if u64::from(id) > ID_MAX {
            record(&mut records, key, id.to_string().as_bytes());
        }
    }
    if entry.size_bytes > NUMBER_MAX {
        record(&mut records, b"size", entry.size_bytes.to_string().as_bytes());
    }
    if u64::try_from(entry.mtime_s).map_or(true, |seconds| seconds > NUMBER_MAX) {
        record(&mut records, b"mtime", entry.mtime_s.to_string().as_bytes());
    }
    for (name, value) in &entry.xattrs {
        record(&mut records, &[b"SCHILY.xattr.", name.as_slice()].concat(), value);
    }
    records
}

/// `length key=value\n`, where the length counts its own digits.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(format!("{length} ").as_bytes());
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_count_their_own_length() {
        for length in [1, 5, 80, 90, 91, 92, 93, 94, 985, 986, 987, 9_980] {
            let mut out = Vec::new();
            record(&mut out, b"path", &vec![b'x'; length]);
            let blank = out.iter().position(|byte| *byte == b' ').expect("blank");
            let said: usize = String::from_utf8_lossy(&out[..blank]).parse().expect("number");
            assert_eq!(said, out.len(), "{length}");
        }
    }

    #[test]
    fn what_does_not_fit_the_header_is_read_back_by_the_tar_crate() {
        let path = format!("{}/end", "long-name/".repeat(30));
        let entry = Entry {
            kind: EntryType::Regular,
            path: path.as_bytes(),
            link: b"",
            mode: 0o4755,
            uid: 4_000_000_000,
            gid: 7,
            mtime_s: 1_600_000_000,
            size_bytes: 3,
            device: (0, 0),
            // No line feed: that crate takes it for a record's end, whatever the record's length says.
            xattrs: vec![(b"user.a".to_vec(), b"1=2".to_vec())],
        };
        let mut bytes = Vec::new();
        let mut writer = ArchiveWriter::new(&mut bytes);
        writer.entry(&entry).expect("entry");
        writer.body(b"abcd").expect("body");
        writer.end_body().expect("end");
        writer.finish().expect("finish");
        let mut archive = tar::Archive::new(bytes.as_slice());
        let mut read = archive.entries().expect("entries").next().expect("one").expect("good");
        assert_eq!(read.path_bytes().as_ref(), path.as_bytes());
        let pax: Vec<(String, Vec<u8>)> = read
            .pax_extensions()
            .expect("pax")
            .expect("some")
            .map(|record| record.expect("record"))
            .map(|record| (record.key().expect("key").to_owned(), record.value_bytes().to_vec()))
            .collect();
        assert!(pax.contains(&("uid".into(), b"4000000000".to_vec())), "{pax:?}");
        let mut text = String::new();
        io::Read::read_to_string(&mut read, &mut text).expect("read");
        assert_eq!(text, "abc");
    }
}
