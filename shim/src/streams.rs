//! The container's standard streams as the shim holds them: three pipes, or the master of a terminal.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::log::Stream;
use crate::protocol::DATA_BYTES_MAX;

/// What a pipe holds for a container that writes more than can be read at once: fewer turns between the two. The kernel
/// lets a user have 64 MiB of them in all (pipe(7), pipe-user-pages-soft), so nobody else gets one.
const WIDE_BYTES: usize = 1 << 20;

/// Is our side of the streams.
#[derive(Debug, Default)]
pub struct Streams {
    /// A pipe to standard input, or the terminal.
    input: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    terminal: bool,
    wide: bool,
    /// What the container has not taken yet, and how much of it is gone.
    unwritten: (Vec<u8>, usize),
    /// No more input will come: the pipe is closed once everything is written.
    ending: bool,
}

/// Is the container's side, until it has been launched.
#[derive(Debug)]
pub struct Theirs([OwnedFd; 3]);

impl Theirs {
    /// Gives them in their order.
    pub fn fds(&self) -> [BorrowedFd<'_>; 3] {
        let [stdin, stdout, stderr] = &self.0;
        [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()]
    }
}

impl Streams {
    /// Makes pipes; standard input is /dev/null unless it is to be held open.
    pub fn pipes(open_stdin: bool) -> Result<(Self, Theirs), Errno> {
        let (stdin, input) = if open_stdin {
            let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC)?;
            (theirs, Some(ours))
        } else {
            (open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?, None)
        };
        let (stdout, their_stdout) = pipe_with(PipeFlags::CLOEXEC)?;
        let (stderr, their_stderr) = pipe_with(PipeFlags::CLOEXEC)?;
        for ours in [Some(&stdout), Some(&stderr), input.as_ref()].into_iter().flatten() {
            rustix::io::ioctl_fionbio(ours, true)?;
        }
        let streams = Self { input, stdout: Some(stdout), stderr: Some(stderr), ..Self::default() };
        Ok((streams, Theirs([stdin, their_stdout, their_stderr])))
    }

    /// Takes the master of a terminal.
    pub fn terminal(master: OwnedFd) -> Result<Self, Errno> {
        rustix::io::ioctl_fionbio(&master, true)?;
        let input = rustix::io::fcntl_dupfd_cloexec(&master, 3)?;
        Ok(Self { input: Some(input), stdout: Some(master), terminal: true, ..Self::default() })
    }

    /// Gives what there is to read, with its stream.
    pub fn outputs(&self) -> impl Iterator<Item = (Stream, BorrowedFd<'_>)> {
        let pairs = [(Stream::Stdout, &self.stdout), (Stream::Stderr, &self.stderr)];
        pairs.into_iter().filter_map(|(stream, fd)| Some((stream, fd.as_ref()?.as_fd())))
    }

    /// Gives standard input where something is to be written to it.
    pub fn wants_to_write(&self) -> Option<BorrowedFd<'_>> {
        self.input.as_ref().filter(|_| self.has_unwritten()).map(AsFd::as_fd)
    }

    /// Says whether more input can be taken.
    pub fn takes_input(&self) -> bool {
        !self.has_unwritten()
    }

    fn has_unwritten(&self) -> bool {
        self.unwritten.1 < self.unwritten.0.len()
    }

    /// Reads once; None when there is nothing now. An end closes the stream.
    pub fn read<'b>(&mut self, stream: Stream, buffer: &'b mut [u8; DATA_BYTES_MAX]) -> Option<&'b [u8]> {
        let slot = if stream == Stream::Stdout { &mut self.stdout } else { &mut self.stderr };
        match rustix::io::read(slot.as_ref()?, &mut buffer[..]) {
            Ok(0) => *slot = None,
            Ok(count) => return buffer.get(..count),
            Err(Errno::AGAIN | Errno::INTR) => {}
            // EIO: the last process that had the terminal open is gone.
            Err(_) => *slot = None,
        }
        None
    }

    /// Makes the pipes of a container larger that floods them, once.
    pub fn widen(&mut self) {
        if self.wide || self.terminal {
            return;
        }
        self.wide = true;
        for pipe in [&self.stdout, &self.stderr].into_iter().flatten() {
            // One that stays as it is only costs time.
            let _ = fcntl_setpipe_size(pipe, WIDE_BYTES);
        }
    }

    /// Takes input; what nobody reads is dropped.
    pub fn write(&mut self, bytes: Vec<u8>) {
        if self.input.is_some() && !self.ending {
            self.unwritten = (bytes, 0);
            self.flush();
        }
    }

    /// Closes standard input as soon as everything is written; a terminal stays.
    pub fn end_input(&mut self) {
        if !self.terminal {
            self.ending = true;
            self.flush();
        }
    }

    /// Writes what the container takes now.
    pub fn flush(&mut self) {
        while self.has_unwritten()
            && let Some(input) = &self.input
        {
            match rustix::io::write(input, &self.unwritten.0[self.unwritten.1..]) {
                Ok(count) => self.unwritten.1 += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => self.input = None,
            }
        }
        self.unwritten = (Vec::new(), 0);
        if self.ending {
            self.input = None;
        }
    }

    /// Gives the terminal another size; pipes have none.
    pub fn resize(&self, rows: u16, columns: u16) {
        if let (true, Some(master)) = (self.terminal, &self.stdout) {
            let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
            // A terminal that is gone needs no size.
            let _ = tcsetwinsize(master, size);
        }
    }
}
