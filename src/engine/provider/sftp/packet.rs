//! SFTP version 3 on the wire (draft-ietf-secsh-filexfer-02): requests are taken apart, answers are put together.

use std::io::{Read, Result, Write};

use rustix::fs::Stat;
use rustix::io::Errno;

/// Longest packet; OpenSSH's own server takes as much.
pub const PACKET_BYTES_MAX: usize = 256 * 1024;
/// Bytes of a read or a write, which leaves room for the rest of its packet.
pub const DATA_BYTES_MAX: usize = PACKET_BYTES_MAX - 1024;

const STATUS: u8 = 101;
const HANDLE: u8 = 102;
const DATA: u8 = 103;
const NAME: u8 = 104;
const ATTRS: u8 = 105;

const ATTR_SIZE: u32 = 1;
const ATTR_OWNER: u32 = 2;
const ATTR_MODE: u32 = 4;
const ATTR_TIMES: u32 = 8;

/// The end of a file or a directory, among the codes of section 7.
pub const END: u32 = 1;
const OK: u32 = 0;
const NO_SUCH_FILE: u32 = 2;
const PERMISSION_DENIED: u32 = 3;
const FAILURE: u32 = 4;
/// A packet that is none.
pub const BAD_MESSAGE: u32 = 5;
/// A request that is not known.
pub const UNSUPPORTED: u32 = 8;

/// Reads one packet: its kind and what follows. `None` at the end.
pub fn read(from: &mut impl Read) -> Result<Option<(u8, Vec<u8>)>> {
    let mut head = [0; 4];
    match from.read_exact(&mut head) {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let bytes = usize::try_from(u32::from_be_bytes(head)).unwrap_or(usize::MAX);
    if bytes == 0 || bytes > PACKET_BYTES_MAX {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    let mut packet = vec![0; bytes];
    from.read_exact(&mut packet)?;
    let rest = packet.split_off(1);
    Ok(Some((packet[0], rest)))
}

/// What a request says about a file; absent is untouched.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Attributes {
    pub size: Option<u64>,
    pub owner: Option<(u32, u32)>,
    pub mode: Option<u32>,
    /// Last access and last change, in seconds.
    pub times: Option<(u32, u32)>,
}

/// A request that is taken apart from its front; what is missing is no request.
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    pub fn number(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }

    pub fn long(&mut self) -> Option<u64> {
        Some(u64::from_be_bytes(self.take(8)?.try_into().ok()?))
    }

    pub fn bytes(&mut self) -> Option<&'a [u8]> {
        let count = usize::try_from(self.number()?).ok()?;
        self.take(count)
    }

    /// Takes a handle, which is a number of ours.
    pub fn handle(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.bytes()?.try_into().ok()?))
    }

    pub fn attributes(&mut self) -> Option<Attributes> {
        let flags = self.number()?;
        let mut found = Attributes::default();
        if flags & ATTR_SIZE != 0 {
            found.size = Some(self.long()?);
        }
        if flags & ATTR_OWNER != 0 {
            found.owner = Some((self.number()?, self.number()?));
        }
        if flags & ATTR_MODE != 0 {
            found.mode = Some(self.number()?);
        }
        if flags & ATTR_TIMES != 0 {
            found.times = Some((self.number()?, self.number()?));
        }
        Some(found)
    }
}

/// An answer that is put together.
pub struct Answer(Vec<u8>);

impl Answer {
    /// Begins one of a kind, without the number of a request.
    pub fn begin(kind: u8) -> Self {
        Self(vec![0, 0, 0, 0, kind])
    }

    fn to(kind: u8, request: u32) -> Self {
        Self::begin(kind).number(request)
    }

    pub fn number(mut self, number: u32) -> Self {
        self.0.extend(number.to_be_bytes());
        self
    }

    pub fn long(mut self, number: u64) -> Self {
        self.0.extend(number.to_be_bytes());
        self
    }

    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self = self.number(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        self.0.extend(bytes);
        self
    }

    fn attributes(self, stat: &Stat) -> Self {
        let seconds = |time: i64| u32::try_from(time).unwrap_or(if time < 0 { 0 } else { u32::MAX });
        self.number(ATTR_SIZE | ATTR_OWNER | ATTR_MODE | ATTR_TIMES)
            .long(u64::try_from(stat.st_size).unwrap_or(0))
            .number(stat.st_uid)
            .number(stat.st_gid)
            .number(stat.st_mode)
            .number(seconds(stat.st_atime))
            .number(seconds(stat.st_mtime))
    }

    /// Says how a request ended.
    pub fn status(request: u32, code: u32, text: &str) -> Self {
        Self::to(STATUS, request).number(code).bytes(text.as_bytes()).bytes(b"en")
    }

    pub fn ok(request: u32) -> Self {
        Self::status(request, OK, "")
    }

    pub fn failed(request: u32, errno: Errno) -> Self {
        let code = match errno {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP => NO_SUCH_FILE,
            Errno::PERM | Errno::ACCESS | Errno::ROFS => PERMISSION_DENIED,
            Errno::NOSYS => UNSUPPORTED,
            Errno::BADMSG => BAD_MESSAGE,
            _ => FAILURE,
        };
        Self::status(request, code, &errno.to_string())
    }

    pub fn handle(request: u32, handle: u32) -> Self {
        Self::to(HANDLE, request).bytes(&handle.to_be_bytes())
    }

    pub fn data(request: u32, bytes: &[u8]) -> Self {
        Self::to(DATA, request).bytes(bytes)
    }

    pub fn stat(request: u32, stat: &Stat) -> Self {
        Self::to(ATTRS, request).attributes(stat)
    }

    /// Gives one name without attributes.
    pub fn name(request: u32, name: &[u8]) -> Self {
        Self::to(NAME, request).number(1).bytes(name).bytes(name).number(0)
    }

    /// Gives the entries of a directory, each with a line as of `ls -l`.
    pub fn names(request: u32, entries: &[(Vec<u8>, Stat)]) -> Self {
        let mut answer = Self::to(NAME, request).number(u32::try_from(entries.len()).unwrap_or(0));
        for (name, stat) in entries {
            answer = answer.bytes(name).bytes(&long_name(name, stat)).attributes(stat);
        }
        answer
    }

    /// Sends it.
    pub fn send(mut self, to: &mut impl Write) -> Result<()> {
        let bytes = u32::try_from(self.0.len() - 4).unwrap_or(u32::MAX).to_be_bytes();
        self.0[..4].copy_from_slice(&bytes);
        to.write_all(&self.0)
    }
}

/// Writes an entry as people know it from `ls -l`; clients show it as it is.
fn long_name(name: &[u8], stat: &Stat) -> Vec<u8> {
    let kind = match rustix::fs::FileType::from_raw_mode(stat.st_mode) {
        rustix::fs::FileType::Directory => 'd',
        rustix::fs::FileType::Symlink => 'l',
        rustix::fs::FileType::CharacterDevice => 'c',
        rustix::fs::FileType::BlockDevice => 'b',
        rustix::fs::FileType::Fifo => 'p',
        rustix::fs::FileType::Socket => 's',
        _ => '-',
    };
    let rights: String =
        (0..9).map(|bit| if stat.st_mode & (0o400 >> bit) == 0 { '-' } else { ['r', 'w', 'x'][bit % 3] }).collect();
    let at = jiff::Timestamp::from_second(stat.st_mtime).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    let at = at.strftime("%b %e  %Y");
    let line =
        format!("{kind}{rights} {:>4} {:<8} {:<8} {:>8} {at} ", stat.st_nlink, stat.st_uid, stat.st_gid, stat.st_size);
    [line.as_bytes(), name].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s27_a_packet_that_is_cut_off_or_too_long_is_none() {
        assert!(read(&mut [0u8, 0, 0].as_slice()).unwrap().is_none());
        for bad in [vec![0, 0, 0, 0], vec![0xff; 4], vec![0, 4, 0, 1, 7], vec![0, 0, 0, 9, 3, 0, 0]] {
            assert!(read(&mut bad.as_slice()).is_err(), "{bad:?}");
        }
        // A string that is longer than its packet, and attributes that end early.
        assert_eq!(Fields(&[0, 0, 0, 9, b'a']).bytes(), None);
        assert_eq!(Fields(&[0, 0, 0, 5, 0, 0]).attributes(), None);
        assert_eq!(Fields(&[0, 0, 0, 3, 0, 0, 1]).handle(), None);
    }

    #[test]
    fn attributes_are_read_in_their_order() {
        let packet = [0, 0, 0, 13, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0xa4, 0, 0, 0, 1, 0, 0, 0, 2];
        let found = Fields(&packet).attributes().unwrap();
        assert_eq!(found, Attributes { size: Some(256), owner: None, mode: Some(0o644), times: Some((1, 2)) });
    }
}
