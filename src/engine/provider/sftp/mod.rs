//! An SFTP server over an instance's files, for sftp, scp and sshfs.
//!
//! It is our own because the crate there is takes paths for UTF-8 and brings an async runtime; here one process
//! serves one client, in the instance's ids, with nothing but a descriptor of its root. One request at a time.

mod files;
mod packet;

use std::collections::BTreeMap;
use std::io::{BufReader, BufWriter, Read, Result, Write};
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Dir, OFlags, fstat, fsync};
use rustix::io::Errno;

pub use files::Files;
use packet::{Answer, DATA_BYTES_MAX, END, Fields, PACKET_BYTES_MAX, UNSUPPORTED};

/// The version that OpenSSH speaks.
const VERSION: u32 = 3;
/// Files and directories that are open at once.
const HANDLES: usize = 256;
/// Entries in one answer about a directory.
const ENTRIES: usize = 128;
/// What is offered beyond the draft, as OpenSSH calls it.
const EXTENSIONS: [(&str, &str); 5] = [
    ("posix-rename@openssh.com", "1"),
    ("hardlink@openssh.com", "1"),
    ("fsync@openssh.com", "1"),
    ("lsetstat@openssh.com", "1"),
    ("limits@openssh.com", "1"),
];

const INIT: u8 = 1;
const EXTENDED: u8 = 200;
const EXTENDED_REPLY: u8 = 201;
const SERVER_VERSION: u8 = 2;

const READ: u32 = 1;
const WRITE: u32 = 2;
const APPEND: u32 = 4;
const CREATE: u32 = 8;
const TRUNCATE: u32 = 16;
const EXCLUSIVE: u32 = 32;

enum Open {
    File { file: OwnedFd, append: bool },
    Directory { fd: OwnedFd, entries: Dir },
}

struct Server {
    files: Files,
    open: BTreeMap<u32, Open>,
    next: u32,
}

/// Serves one client until it ends.
pub fn serve(files: Files, from: impl Read, to: impl Write) -> Result<()> {
    let (mut from, mut to) = (BufReader::with_capacity(PACKET_BYTES_MAX, from), BufWriter::new(to));
    let mut server = Server { files, open: BTreeMap::new(), next: 0 };
    while let Some((kind, packet)) = packet::read(&mut from)? {
        let answer = if kind == INIT {
            let mut answer = Answer::begin(SERVER_VERSION).number(VERSION);
            for (name, version) in EXTENSIONS {
                answer = answer.bytes(name.as_bytes()).bytes(version.as_bytes());
            }
            answer
        } else {
            let mut fields = Fields(&packet);
            // Without a number there is nobody to answer.
            let Some(request) = fields.number() else { return Err(std::io::ErrorKind::InvalidData.into()) };
            match server.answer(kind, request, &mut fields) {
                Ok(answer) => answer,
                Err(errno) => Answer::failed(request, errno),
            }
        };
        answer.send(&mut to)?;
        // More requests that are here already are answered first, so that answers leave in large pieces.
        if from.buffer().is_empty() {
            to.flush()?;
        }
    }
    to.flush()
}

/// Takes a field, or says that this is no request.
fn want<T>(field: Option<T>) -> std::result::Result<T, Errno> {
    field.ok_or(Errno::BADMSG)
}

impl Server {
    fn answer(&mut self, kind: u8, request: u32, fields: &mut Fields<'_>) -> std::result::Result<Answer, Errno> {
        match kind {
            3 => self.open_file(request, fields),
            4 => {
                let found = self.open.remove(&want(fields.handle())?);
                found.map(|_| Answer::ok(request)).ok_or(Errno::BADF)
            }
            5 => self.read(request, fields),
            6 => self.write(request, fields),
            7 => Ok(Answer::stat(request, &self.files.lstat(want(fields.bytes())?)?)),
            8 => Ok(Answer::stat(request, &fstat(self.any(want(fields.handle())?)?)?)),
            9 => {
                let (path, wanted) = (want(fields.bytes())?, want(fields.attributes())?);
                self.files.change(path, &wanted, true).map(|()| Answer::ok(request))
            }
            10 => {
                let (handle, wanted) = (want(fields.handle())?, want(fields.attributes())?);
                files::change(self.any(handle)?, &wanted).map(|()| Answer::ok(request))
            }
            11 => {
                let fd = self.files.directory(want(fields.bytes())?)?;
                let entries = Dir::read_from(&fd)?;
                self.keep(Open::Directory { fd, entries }).map(|handle| Answer::handle(request, handle))
            }
            12 => self.read_directory(request, fields),
            13 => self.files.remove(want(fields.bytes())?, AtFlags::empty()).map(|()| Answer::ok(request)),
            14 => {
                let (path, wanted) = (want(fields.bytes())?, want(fields.attributes())?);
                self.files.make_directory(path, wanted.mode).map(|()| Answer::ok(request))
            }
            15 => self.files.remove(want(fields.bytes())?, AtFlags::REMOVEDIR).map(|()| Answer::ok(request)),
            16 => Ok(Answer::name(request, &self.files.absolute(want(fields.bytes())?))),
            17 => Ok(Answer::stat(request, &self.files.stat(want(fields.bytes())?)?)),
            18 => {
                let (from, to) = (want(fields.bytes())?, want(fields.bytes())?);
                self.files.rename(from, to, false).map(|()| Answer::ok(request))
            }
            19 => Ok(Answer::name(request, &self.files.read_link(want(fields.bytes())?)?)),
            20 => {
                // OpenSSH's order, which is not the draft's: what it leads to comes first.
                let (target, path) = (want(fields.bytes())?, want(fields.bytes())?);
                self.files.symlink(target, path).map(|()| Answer::ok(request))
            }
            EXTENDED => self.extended(request, fields),
            _ => Ok(Answer::status(request, UNSUPPORTED, "not known here")),
        }
    }

    fn extended(&mut self, request: u32, fields: &mut Fields<'_>) -> std::result::Result<Answer, Errno> {
        match want(fields.bytes())? {
            b"posix-rename@openssh.com" => {
                let (from, to) = (want(fields.bytes())?, want(fields.bytes())?);
                self.files.rename(from, to, true).map(|()| Answer::ok(request))
            }
            b"hardlink@openssh.com" => {
                let (from, to) = (want(fields.bytes())?, want(fields.bytes())?);
                self.files.link(from, to).map(|()| Answer::ok(request))
            }
            b"fsync@openssh.com" => fsync(self.any(want(fields.handle())?)?).map(|()| Answer::ok(request)),
            b"lsetstat@openssh.com" => {
                let (path, wanted) = (want(fields.bytes())?, want(fields.attributes())?);
                self.files.change(path, &wanted, false).map(|()| Answer::ok(request))
            }
            b"limits@openssh.com" => {
                let bytes = |count: usize| u64::try_from(count).unwrap_or(0);
                let answer = Answer::begin(EXTENDED_REPLY).number(request).long(bytes(PACKET_BYTES_MAX));
                Ok(answer.long(bytes(DATA_BYTES_MAX)).long(bytes(DATA_BYTES_MAX)).long(bytes(HANDLES)))
            }
            _ => Ok(Answer::status(request, UNSUPPORTED, "not known here")),
        }
    }

    fn keep(&mut self, open: Open) -> std::result::Result<u32, Errno> {
        if self.open.len() >= HANDLES {
            return Err(Errno::MFILE);
        }
        while self.open.contains_key(&self.next) {
            self.next = self.next.wrapping_add(1);
        }
        self.open.insert(self.next, open);
        let handle = self.next;
        self.next = self.next.wrapping_add(1);
        Ok(handle)
    }

    fn any(&self, handle: u32) -> std::result::Result<&OwnedFd, Errno> {
        match self.open.get(&handle) {
            Some(Open::File { file, .. }) => Ok(file),
            Some(Open::Directory { fd, .. }) => Ok(fd),
            None => Err(Errno::BADF),
        }
    }

    fn open_file(&mut self, request: u32, fields: &mut Fields<'_>) -> std::result::Result<Answer, Errno> {
        let (path, asked, wanted) = (want(fields.bytes())?, want(fields.number())?, want(fields.attributes())?);
        let mut flags = match asked & (READ | WRITE) {
            READ => OFlags::RDONLY,
            WRITE => OFlags::WRONLY,
            _ => OFlags::RDWR,
        };
        for (bit, flag) in [(CREATE, OFlags::CREATE), (TRUNCATE, OFlags::TRUNC), (EXCLUSIVE, OFlags::EXCL)] {
            if asked & bit != 0 {
                flags |= flag;
            }
        }
        let append = asked & APPEND != 0;
        if append {
            flags |= OFlags::APPEND;
        }
        let file = self.files.open(path, flags, wanted.mode.unwrap_or(0o666))?;
        self.keep(Open::File { file, append }).map(|handle| Answer::handle(request, handle))
    }

    fn read(&mut self, request: u32, fields: &mut Fields<'_>) -> std::result::Result<Answer, Errno> {
        let (handle, offset, asked) = (want(fields.handle())?, want(fields.long())?, want(fields.number())?);
        let Some(Open::File { file, .. }) = self.open.get(&handle) else { return Err(Errno::BADF) };
        let mut buffer = vec![0; usize::try_from(asked).unwrap_or(usize::MAX).min(DATA_BYTES_MAX)];
        match rustix::io::pread(file, &mut buffer, offset)? {
            0 if !buffer.is_empty() => Ok(Answer::status(request, END, "")),
            count => Ok(Answer::data(request, &buffer[..count])),
        }
    }

    fn write(&mut self, request: u32, fields: &mut Fields<'_>) -> std::result::Result<Answer, Errno> {
        let (handle, mut offset, mut bytes) = (want(fields.handle())?, want(fields.long())?, want(fields.bytes())?);
        let Some(Open::File { file, append }) = self.open.get(&handle) else { return Err(Errno::BADF) };
        while !bytes.is_empty() {
            let written = match append {
                true => rustix::io::write(file, bytes)?,
                false => rustix::io::pwrite(file, bytes, offset)?,
            };
            if written == 0 {
                return Err(Errno::IO);
            }
            offset += u64::try_from(written).unwrap_or(0);
            bytes = &bytes[written..];
        }
        Ok(Answer::ok(request))
    }

    fn read_directory(&mut self, request: u32, fields: &mut Fields<'_>) -> std::result::Result<Answer, Errno> {
        let handle = want(fields.handle())?;
        let Some(Open::Directory { fd, entries }) = self.open.get_mut(&handle) else { return Err(Errno::BADF) };
        let mut found = Vec::new();
        while found.len() < ENTRIES {
            let Some(entry) = entries.read() else { break };
            let name = entry?.file_name().to_bytes().to_vec();
            // What went away meanwhile is not there.
            if let Ok(stat) = files::entry(fd, &name) {
                found.push((name, stat));
            }
        }
        if found.is_empty() {
            return Ok(Answer::status(request, END, ""));
        }
        Ok(Answer::names(request, &found))
    }
}
