//! The log of a container: docker's json-file form, rotated, bounded, and never in the container's way.
//!
//! One line is `{"log":"…","stream":"stdout","time":"…"}`; a line of the container that is longer than
//! [`LINE_BYTES_MAX`] becomes several, of which only the last ends with a newline. Bytes that are not
//! UTF-8 become U+FFFD, as in docker. Invariant: the file ends with a whole line at every moment that a
//! reader can see it grow to; what cannot be written is counted, dropped and mentioned later.

use std::io::{Result, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use coracle_runtime::container::timestamp;
use coracle_runtime::failpoint;
use fs_err::File;
use fs_err::os::unix::fs::OpenOptionsExt;

/// Docker's own limit for one entry.
const LINE_BYTES_MAX: usize = 16 * 1024;
/// Encoded bytes that are written at once; more is not kept in memory. Large, because the page cache takes a quarter more
/// of large pieces in the same time.
const BUFFER_BYTES_MAX: usize = 256 * 1024;
/// The newest file; older ones have .1, .2 … behind it.
pub const CURRENT: &str = "current.json";

/// Names a stream of the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, or the terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

/// How large a log may become.
#[derive(Debug, Clone, Copy)]
pub struct LogLimits {
    /// A file larger than this is rotated; None lets it grow.
    pub file_bytes_max: Option<u64>,
    /// How many files there are, at least 1.
    pub files_max: u32,
}

/// Is a log that is being written.
#[derive(Debug)]
pub struct JsonLog {
    directory: PathBuf,
    limits: LogLimits,
    file: Option<File>,
    size_bytes: u64,
    /// Encoded lines that are not in the file yet.
    buffer: Vec<u8>,
    /// Beginnings of lines whose end has not come, by stream.
    open_lines: [Vec<u8>; 2],
    dropped_bytes: u64,
    dropped_unsaid: u64,
}

impl JsonLog {
    /// Opens or makes the log in a directory.
    pub fn open(directory: &Path, limits: LogLimits) -> Result<Self> {
        if !directory.exists() {
            fs_err::create_dir(directory)?;
        }
        let mut log = Self {
            directory: directory.to_owned(),
            limits,
            file: None,
            size_bytes: 0,
            buffer: Vec::new(),
            open_lines: [Vec::new(), Vec::new()],
            dropped_bytes: 0,
            dropped_unsaid: 0,
        };
        log.open_file()?;
        Ok(log)
    }

    /// Gives how many bytes of output were dropped because the file could not take them.
    pub fn dropped_bytes(&self) -> u64 {
        self.dropped_bytes
    }

    /// Takes output in; it is in the file after [`Self::flush`], but for a line that has not ended.
    pub fn write(&mut self, stream: Stream, mut bytes: &[u8]) {
        let ending = ending(stream, &timestamp(SystemTime::now()));
        // Lines of text are text: asked once for all of them.
        let is_text = std::str::from_utf8(bytes).is_ok();
        while !bytes.is_empty() {
            let open = &mut self.open_lines[stream as usize];
            let room = LINE_BYTES_MAX - open.len();
            let end = memchr::memchr(b'\n', bytes.get(..room).unwrap_or(bytes));
            let (line, rest) = match end {
                Some(end) => bytes.split_at(end + 1),
                None if bytes.len() < room => {
                    open.extend_from_slice(bytes);
                    break;
                }
                None => bytes.split_at(room),
            };
            bytes = rest;
            if open.is_empty() && end.is_some() {
                encode(&mut self.buffer, line, is_text, &ending);
            } else {
                self.close_line(stream, line, end.is_some(), &ending);
            }
            if self.buffer.len() >= BUFFER_BYTES_MAX {
                self.flush();
            }
        }
    }

    /// Writes the rest of lines that will not be ended any more.
    pub fn finish(&mut self) {
        let time = timestamp(SystemTime::now());
        for stream in [Stream::Stdout, Stream::Stderr] {
            let open = std::mem::take(&mut self.open_lines[stream as usize]);
            if !open.is_empty() {
                encode(&mut self.buffer, &open, false, &ending(stream, &time));
            }
        }
        self.flush();
        self.buffer = Vec::new();
    }

    /// Gives its memory back: nothing is written now.
    pub fn rest(&mut self) {
        self.buffer = Vec::new();
    }

    /// Writes a line that began earlier, or a part of one that is too long.
    fn close_line(&mut self, stream: Stream, line: &[u8], ended: bool, ending: &str) {
        let mut open = std::mem::take(&mut self.open_lines[stream as usize]);
        open.extend_from_slice(line);
        // A character that was cut in two waits for its other half.
        let whole = if ended { open.len() } else { open.len() - unfinished(&open) };
        encode(&mut self.buffer, &open[..whole], false, ending);
        open.drain(..whole);
        self.open_lines[stream as usize] = open;
    }

    /// Writes what was taken in.
    pub fn flush(&mut self) {
        if self.buffer.is_empty() {
            return;
        }
        if self.dropped_unsaid > 0 {
            self.mention_loss();
        }
        let buffer = std::mem::take(&mut self.buffer);
        // Rotated at line ends only, and a file takes at least one line.
        let mut rest = buffer.as_slice();
        while !rest.is_empty() {
            let fits = self.fitting(rest);
            let (now, later) = rest.split_at(fits);
            if self.append(now).is_err() {
                self.drop_bytes(now.len() as u64);
            }
            rest = later;
        }
        self.buffer = buffer;
        self.buffer.clear();
    }

    /// Says how much of these lines goes into the current file, rotating first when it is full.
    fn fitting(&mut self, lines: &[u8]) -> usize {
        let Some(max) = self.limits.file_bytes_max else { return lines.len() };
        let first = memchr::memchr(b'\n', lines).map_or(lines.len(), |end| end + 1);
        if self.size_bytes > 0 && self.size_bytes + first as u64 > max {
            // A log that cannot be rotated grows; that is said by the file system when it is full.
            let _ = self.rotate();
        }
        let room = usize::try_from(max.saturating_sub(self.size_bytes)).unwrap_or(usize::MAX);
        match lines.get(..room) {
            None => lines.len(),
            Some(part) => memchr::memrchr(b'\n', part).map_or(first, |end| end + 1),
        }
    }

    fn append(&mut self, lines: &[u8]) -> Result<()> {
        if self.file.is_none() {
            self.open_file()?;
        }
        let Some(file) = self.file.as_mut() else { return Ok(()) };
        let written = file.write_all(lines);
        match &written {
            Ok(()) => self.size_bytes += lines.len() as u64,
            // Half a line must not stay: the next one would be glued to it.
            Err(_) => drop(file.file().set_len(self.size_bytes)),
        }
        written
    }

    fn drop_bytes(&mut self, count: u64) {
        self.dropped_bytes += count;
        self.dropped_unsaid += count;
    }

    fn mention_loss(&mut self) {
        let text = format!("[coracle: {} bytes of log could not be written]\n", self.dropped_unsaid);
        let mut line = Vec::new();
        encode(&mut line, text.as_bytes(), true, &ending(Stream::Stderr, &timestamp(SystemTime::now())));
        if self.append(&line).is_ok() {
            self.dropped_unsaid = 0;
        }
    }

    fn open_file(&mut self) -> Result<()> {
        let path = self.directory.join(CURRENT);
        let file = fs_err::OpenOptions::new().append(true).read(true).create(true).mode(0o600).open(path)?;
        self.size_bytes = file.metadata()?.len();
        // A shim that was killed in the middle of a write leaves half a line.
        let mut last = [b'\n'];
        if self.size_bytes > 0 && file.file().read_exact_at(&mut last, self.size_bytes - 1).is_ok() && last != *b"\n" {
            file.file().set_len(self.last_line_end(&file)?)?;
            self.size_bytes = file.metadata()?.len();
        }
        self.file = Some(file);
        Ok(())
    }

    /// Finds where the last whole line ends; only as far back as one line can reach.
    fn last_line_end(&self, file: &File) -> Result<u64> {
        // Every byte can become six, and the rest of an entry is short.
        let reach = (LINE_BYTES_MAX * 6 + 256) as u64;
        let start = self.size_bytes.saturating_sub(reach);
        let mut tail = vec![0; usize::try_from(self.size_bytes - start).unwrap_or(0)];
        file.file().read_exact_at(&mut tail, start)?;
        Ok(memchr::memrchr(b'\n', &tail).map_or(start, |end| start + end as u64 + 1))
    }

    /// Gives every file the next number and begins a new one.
    ///
    /// A follower that has the current file open finds it again under its inode.
    fn rotate(&mut self) -> Result<()> {
        let name = |number: u32| match number {
            0 => self.directory.join(CURRENT),
            number => self.directory.join(format!("{CURRENT}.{number}")),
        };
        let oldest = self.limits.files_max.saturating_sub(1);
        // Not left to the rename: what takes the place of a file is written to the disk at once by ext4 (auto_da_alloc),
        // all of it, while the container waits.
        match fs_err::remove_file(name(oldest)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        for number in (0..oldest).rev() {
            match fs_err::rename(name(number), name(number + 1)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        failpoint::hit("log_rotated_mid")?;
        self.file = None;
        self.open_file()
    }
}

/// Gives what follows the text of an entry; the same for all that is read at once.
fn ending(stream: Stream, time: &str) -> String {
    let stream = match stream {
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
    };
    format!("\",\"stream\":\"{stream}\",\"time\":\"{time}\"}}\n")
}

/// Writes one entry.
fn encode(buffer: &mut Vec<u8>, line: &[u8], is_text: bool, ending: &str) {
    buffer.extend_from_slice(b"{\"log\":\"");
    // Nearly every line is text, and that is told much faster than where it is not.
    if is_text || std::str::from_utf8(line).is_ok() {
        escape(buffer, line);
    } else {
        for chunk in line.utf8_chunks() {
            escape(buffer, chunk.valid().as_bytes());
            if !chunk.invalid().is_empty() {
                buffer.extend_from_slice("\u{fffd}".as_bytes());
            }
        }
    }
    buffer.extend_from_slice(ending.as_bytes());
}

/// Writes text as the inside of a JSON string (RFC 8259, section 7).
fn escape(buffer: &mut Vec<u8>, mut text: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    loop {
        let (plain, rest) = text.split_at(plain_length(text));
        buffer.extend_from_slice(plain);
        let Some((byte, rest)) = rest.split_first() else { return };
        match byte {
            b'\n' => buffer.extend_from_slice(b"\\n"),
            b'\r' => buffer.extend_from_slice(b"\\r"),
            b'\t' => buffer.extend_from_slice(b"\\t"),
            byte @ (b'"' | b'\\') => buffer.extend_from_slice(&[b'\\', *byte]),
            byte => {
                let (high, low) = (HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]);
                buffer.extend_from_slice(&[b'\\', b'u', b'0', b'0', high, low]);
            }
        }
        text = rest;
    }
}

/// Counts the bytes at the beginning that stand for themselves in a JSON string.
fn plain_length(text: &[u8]) -> usize {
    /// Looked at together, without a branch for each: compilers make a few vector instructions of it.
    const BLOCK: usize = 16;
    let is_special = |byte: u8| (byte < b' ') | (byte == b'"') | (byte == b'\\');
    let blocks = text.chunks_exact(BLOCK);
    let any = |block: &&[u8]| block.iter().fold(false, |any, byte| any | is_special(*byte));
    let plain = BLOCK * blocks.take_while(|block| !any(block)).count();
    let rest = text.get(plain..).unwrap_or_default();
    plain + rest.iter().position(|byte| is_special(*byte)).unwrap_or(rest.len())
}

/// Counts the bytes at the end that begin a character of UTF-8 and do not finish it.
fn unfinished(bytes: &[u8]) -> usize {
    let last = bytes.utf8_chunks().last();
    let tail = last.map_or(&[][..], |chunk| chunk.invalid());
    // A sequence that is wrong and not only short ends before the last byte.
    let begins = |byte: &u8| matches!(byte, 0xc2..=0xf4);
    if bytes.ends_with(tail) && tail.first().is_some_and(begins) && tail.len() < 4 { tail.len() } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(line: &[u8], expected: &str) {
        let mut buffer = Vec::new();
        encode(&mut buffer, line, false, &ending(Stream::Stdout, "t"));
        let text = String::from_utf8(buffer).unwrap();
        assert_eq!(text, format!("{{\"log\":\"{expected}\",\"stream\":\"stdout\",\"time\":\"t\"}}\n"));
    }

    #[test]
    fn entries_are_json_at_every_place_of_a_block() {
        check(b"", "");
        check("\u{e4}\u{7f}\n".as_bytes(), "\u{e4}\u{7f}\\n");
        check(b"a\xffb\xc3", "a\u{fffd}b\u{fffd}");
        for before in 0..40 {
            let plain = "x".repeat(before);
            for (byte, escaped) in [("\"", "\\\""), ("\\", "\\\\"), ("\t", "\\t"), ("\r", "\\r"), ("\u{1f}", "\\u001f")]
            {
                check(format!("{plain}{byte}{plain}\n").as_bytes(), &format!("{plain}{escaped}{plain}\\n"));
            }
        }
    }
}
