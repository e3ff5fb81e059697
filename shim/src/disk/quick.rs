//! The requests that come most often, answered by us with one system call for the reply and no memory taken: the
//! rest goes through the FUSE crate. Layouts are those of linux/fuse.h.

use std::ffi::CStr;
use std::io::{Error, Result};
use std::os::fd::BorrowedFd;

use fuse_backend_rs::abi::fuse_abi::{FsOptions, Opcode};
use rustix::io::Errno;

use super::passthrough::Passthrough;
use super::serve::MAX_DATA_BYTES;

/// `struct fuse_in_header` and `struct fuse_out_header`.
pub const IN_HEADER_BYTES: usize = 40;
const OUT_HEADER_BYTES: usize = 16;
/// `struct fuse_write_in`.
const WRITE_IN_BYTES: usize = 40;
/// `struct fuse_getxattr_in`.
const GETXATTR_IN_BYTES: usize = 8;
/// XATTR_SIZE_MAX of linux/limits.h.
const XATTR_BYTES_MAX: usize = 65536;
/// The protocol that we speak, and the version in which FUSE_HANDLE_KILLPRIV_V2 came (Linux 5.12).
const MAJOR: u32 = 7;
const MINOR: u32 = 33;
const PAGE_BYTES: u32 = 4096;

/// A request as the kernel wrote it; the space behind it takes the reply.
#[derive(Debug)]
pub struct Request<'a> {
    pub device: BorrowedFd<'a>,
    pub buffer: &'a mut [u8],
    pub length: usize,
}

/// Says what has become of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Done {
    Answered,
    /// It is for the FUSE crate.
    Not,
}

impl Request<'_> {
    fn word(&self, at: usize) -> u32 {
        self.buffer[..self.length].get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes)
    }

    fn long(&self, at: usize) -> u64 {
        self.buffer[..self.length].get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_ne_bytes)
    }

    /// The kernel's number for the kind of request.
    pub fn opcode(&self) -> u32 {
        self.word(4)
    }

    /// Names the request in its reply.
    pub fn unique(&self) -> u64 {
        self.long(8)
    }

    fn node(&self) -> u64 {
        self.long(16)
    }

    /// The bytes of data that a READ or WRITE is about.
    pub fn data_bytes(&self) -> usize {
        self.word(IN_HEADER_BYTES + 16) as usize
    }

    /// Answers it if it is one of ours.
    pub fn answer(&mut self, filesystem: &Passthrough) -> Done {
        let opcode = self.opcode();
        if opcode == Opcode::Getxattr as u32 {
            self.get_attribute(filesystem);
        } else if opcode == Opcode::Write as u32 {
            let written = self.write(filesystem).and_then(|count| Ok(u32::try_from(count).map_err(|_| Errno::FBIG)?));
            // `struct fuse_write_out`: the count and four bytes of nothing.
            self.reply(written.map(|count| u64::from(count).to_le_bytes()));
        } else if opcode == Opcode::Read as u32 {
            self.read(filesystem);
        } else if opcode == Opcode::Init as u32 {
            let reply = self.begin(filesystem);
            self.reply(Ok(reply));
        } else {
            return Done::Not;
        }
        Done::Answered
    }

    /// Sends a small reply, or an error.
    fn reply<const N: usize>(&self, result: Result<[u8; N]>) {
        /// The largest is `struct fuse_init_out`.
        const REPLY_BYTES_MAX: usize = OUT_HEADER_BYTES + 64;
        let mut reply = [0; REPLY_BYTES_MAX];
        let body: &[u8] = match &result {
            Ok(body) => body,
            Err(_) => &[],
        };
        let length = OUT_HEADER_BYTES + body.len();
        reply[OUT_HEADER_BYTES..length].copy_from_slice(body);
        reply[..OUT_HEADER_BYTES].copy_from_slice(&header(length, result.as_ref().err(), self.unique()));
        self.send(&reply[..length]);
    }

    fn send(&self, reply: &[u8]) {
        // A request whose asker was killed meanwhile takes no answer.
        let _ = rustix::io::write(self.device, reply);
    }

    fn get_attribute(&mut self, filesystem: &Passthrough) {
        let (unique, node) = (self.unique(), self.node());
        let room = (self.word(IN_HEADER_BYTES) as usize).min(XATTR_BYTES_MAX);
        let (request, space) = self.buffer.split_at_mut(self.length);
        let name = request.get(IN_HEADER_BYTES + GETXATTR_IN_BYTES..).map(CStr::from_bytes_until_nul);
        let Some(Ok(name)) = name else { return self.reply::<0>(Err(Errno::INVAL.into())) };
        let value = &mut space[OUT_HEADER_BYTES..OUT_HEADER_BYTES + room];
        match filesystem.get_attribute(node, name, value) {
            // Only the length was asked for: `struct fuse_getxattr_out`.
            Ok(length) if room == 0 => self.reply(Ok((length as u64).to_le_bytes())),
            Ok(length) => self.reply_behind(unique, length.min(room)),
            Err(error) => self.reply::<0>(Err(error)),
        }
    }

    fn write(&self, filesystem: &Passthrough) -> Result<usize> {
        let (size, offset) = (self.data_bytes(), self.long(IN_HEADER_BYTES + 8));
        let flags = self.word(IN_HEADER_BYTES + 20);
        let begin = IN_HEADER_BYTES + WRITE_IN_BYTES;
        let bytes = self.buffer[..self.length].get(begin..begin + size).ok_or(Errno::INVAL)?;
        filesystem.write_file(self.node(), bytes, offset, flags)
    }

    fn read(&mut self, filesystem: &Passthrough) {
        let (unique, node, offset) = (self.unique(), self.node(), self.long(IN_HEADER_BYTES + 8));
        let size = self.data_bytes();
        let (_, space) = self.buffer.split_at_mut(self.length);
        let result = match space.get_mut(OUT_HEADER_BYTES..OUT_HEADER_BYTES + size) {
            Some(to) => filesystem.read_file(node, to, offset),
            None => Err(Errno::INVAL.into()),
        };
        match result {
            Ok(count) => self.reply_behind(unique, count),
            Err(error) => self.reply::<0>(Err(error)),
        }
    }

    /// Sends what was put behind the request, after the room for a header.
    fn reply_behind(&mut self, unique: u64, count: usize) {
        let length = OUT_HEADER_BYTES + count;
        let begin = self.length;
        self.buffer[begin..begin + OUT_HEADER_BYTES].copy_from_slice(&header(length, None, unique));
        self.send(&self.buffer[begin..begin + length]);
    }

    /// Agrees with the kernel on what both can do (`struct fuse_init_in`, `struct fuse_init_out`).
    fn begin(&self, filesystem: &Passthrough) -> [u8; 64] {
        let readahead = self.word(IN_HEADER_BYTES + 8);
        let low = self.word(IN_HEADER_BYTES + 12);
        let high = if u64::from(low) & FsOptions::INIT_EXT.bits() == 0 { 0 } else { self.word(IN_HEADER_BYTES + 16) };
        let capable = FsOptions::from_bits_truncate(u64::from(low) | u64::from(high) << 32);
        filesystem.note_resend(capable.contains(FsOptions::HAS_RESEND));
        let flags = (capable & wanted(filesystem.first_namespace)).bits();
        let mut reply = [0; 64];
        let mut put = |at: usize, word: u32| reply[at..at + 4].copy_from_slice(&word.to_ne_bytes());
        let (low, high) = halves(flags);
        put(0, MAJOR);
        put(4, MINOR);
        put(8, readahead);
        put(12, low);
        // As many requests in the background as there can be, none is held back.
        put(16, u32::from(u16::MAX) | u32::from(u16::MAX) << 16);
        put(20, MAX_DATA_BYTES);
        // Times are exact to the nanosecond.
        put(24, 1);
        put(28, MAX_DATA_BYTES / PAGE_BYTES);
        put(32, high);
        reply
    }
}

/// Gives the lower and the upper half.
fn halves(number: u64) -> (u32, u32) {
    let half = |number: u64| u32::try_from(number & u64::from(u32::MAX)).unwrap_or(0);
    (half(number), half(number >> 32))
}

fn header(length: usize, error: Option<&Error>, unique: u64) -> [u8; OUT_HEADER_BYTES] {
    let number = error.map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO));
    let mut header = [0; OUT_HEADER_BYTES];
    header[..4].copy_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
    header[4..8].copy_from_slice(&(-number).to_ne_bytes());
    header[8..].copy_from_slice(&unique.to_ne_bytes());
    header
}

/// Never WRITEBACK_CACHE: with it a write beyond the limit seems to succeed until close(2).
///
/// With HANDLE_KILLPRIV_V2 the kernel sends no SETATTR that takes set-user-id from a file that is written: below us it is
/// taken all the same, because we may not keep it either. In the first user namespace we may (CAP_FSETID), and
/// overlayfs writes as root whoever asked, so there the kernel has to tell us.
fn wanted(first_namespace: bool) -> FsOptions {
    let kill = if first_namespace { FsOptions::empty() } else { FsOptions::HANDLE_KILLPRIV_V2 };
    kill | FsOptions::ASYNC_READ
        | FsOptions::BIG_WRITES
        | FsOptions::MAX_PAGES
        | FsOptions::DONT_MASK
        | FsOptions::PARALLEL_DIROPS
        | FsOptions::POSIX_ACL
        | FsOptions::CACHE_SYMLINKS
        | FsOptions::ZERO_MESSAGE_OPEN
        | FsOptions::ZERO_MESSAGE_OPENDIR
        | FsOptions::ASYNC_DIO
        | FsOptions::INIT_EXT
        | FsOptions::HAS_RESEND
}
