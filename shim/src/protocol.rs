//! What is said on a shim's socket: one SOCK_SEQPACKET message is one frame, a kind and its content.
//!
//! The first frame of a client is a request in JSON with the protocol's version; after `attach` both
//! sides send binary frames. Invariant: no frame is longer than [`FRAME_BYTES_MAX`], and a frame that
//! is not understood ends the connection, never the shim.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, recv, send, socket_with,
};
use serde::{Deserialize, Serialize};

/// The version that this build speaks. A shim serves its own and all older ones: it may be older than
/// the command that talks to it, and younger (F41).
pub const VERSION: u32 = 1;
/// The most bytes of a stream in one frame; half of what a pipe holds.
pub const DATA_BYTES_MAX: usize = 32 * 1024;
/// The longest frame: the kind and the data.
pub const FRAME_BYTES_MAX: usize = DATA_BYTES_MAX + 1;

/// Is a client's first frame.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Hello {
    /// The protocol's version.
    pub version: u32,
    /// What the client wants.
    pub request: Request,
}

/// What a client can want.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// The output from now on, and to write to standard input when `stdin` is set.
    Attach {
        /// Whether the client will send input.
        stdin: bool,
    },
    /// An `exited` frame at the end of this run.
    Wait,
    /// A signal for the container's first process.
    Signal(i32),
    /// A new size of the terminal.
    Resize {
        /// Lines.
        rows: u16,
        /// Characters in a line.
        columns: u16,
    },
    /// No further start by the restart policy.
    Cancel,
    /// What the shim has counted.
    Stats,
}

/// What a shim has counted since it began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Bytes of output that were read.
    pub output_bytes: u64,
    /// Bytes of output that the log could not take.
    pub log_dropped_bytes: u64,
    /// Clients that are connected, the asker included.
    pub clients: u64,
    /// Starts by the restart policy.
    pub restarts: u32,
}

/// Is a frame of an attached client.
#[derive(Debug, PartialEq, Eq)]
pub enum Input<'a> {
    /// Bytes for standard input.
    Data(&'a [u8]),
    /// No more input will come.
    End,
    /// A new size of the terminal.
    Resize {
        /// Lines.
        rows: u16,
        /// Characters in a line.
        columns: u16,
    },
    /// A signal for the container's first process.
    Signal(i32),
    /// The person leaves on purpose; a shim that does not know this frame ends the connection, too.
    Leave,
}

/// Is a frame of the shim.
#[derive(Debug, PartialEq, Eq)]
pub enum Output<'a> {
    /// Bytes of standard output, or of the terminal.
    Stdout(&'a [u8]),
    /// Bytes of standard error.
    Stderr(&'a [u8]),
    /// The program runs.
    Started,
    /// It could not be started: the owner's own text.
    Failed(&'a [u8]),
    /// The container has ended and that is written down.
    Exited(i32),
    /// The answer to a request, in JSON where there is anything to say.
    Answer(&'a [u8]),
    /// The shim does not serve this client any more, and why.
    Refused(&'a [u8]),
}

const DATA: u8 = 1;
const END: u8 = 2;
const RESIZE: u8 = 3;
const SIGNAL: u8 = 4;
const LEAVE: u8 = 5;

const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STARTED: u8 = 3;
const FAILED: u8 = 4;
const EXITED: u8 = 5;
const ANSWER: u8 = 6;
const REFUSED: u8 = 7;

impl<'a> Input<'a> {
    /// Reads a frame; None when it is not understood.
    pub fn parse(frame: &'a [u8]) -> Option<Self> {
        let (kind, rest) = frame.split_first()?;
        Some(match (*kind, rest) {
            (DATA, data) => Self::Data(data),
            (END, []) => Self::End,
            (RESIZE, &[a, b, c, d]) => {
                Self::Resize { rows: u16::from_le_bytes([a, b]), columns: u16::from_le_bytes([c, d]) }
            }
            (SIGNAL, &[a, b, c, d]) => Self::Signal(i32::from_le_bytes([a, b, c, d])),
            (LEAVE, []) => Self::Leave,
            _ => return None,
        })
    }

    /// Gives the frame's bytes.
    pub fn frame(&self) -> Vec<u8> {
        match self {
            Self::Data(data) => with_kind(DATA, data),
            Self::End => vec![END],
            Self::Resize { rows, columns } => {
                let ([a, b], [c, d]) = (rows.to_le_bytes(), columns.to_le_bytes());
                vec![RESIZE, a, b, c, d]
            }
            Self::Signal(number) => with_kind(SIGNAL, &number.to_le_bytes()),
            Self::Leave => vec![LEAVE],
        }
    }
}

impl<'a> Output<'a> {
    /// Reads a frame; None when it is not understood.
    pub fn parse(frame: &'a [u8]) -> Option<Self> {
        let (kind, rest) = frame.split_first()?;
        Some(match (*kind, rest) {
            (STDOUT, data) => Self::Stdout(data),
            (STDERR, data) => Self::Stderr(data),
            (STARTED, []) => Self::Started,
            (FAILED, text) => Self::Failed(text),
            (EXITED, &[a, b, c, d]) => Self::Exited(i32::from_le_bytes([a, b, c, d])),
            (ANSWER, text) => Self::Answer(text),
            (REFUSED, text) => Self::Refused(text),
            _ => return None,
        })
    }

    /// Gives the frame's bytes; what is too long is cut off.
    pub fn frame(&self) -> Vec<u8> {
        match self {
            Self::Stdout(data) => with_kind(STDOUT, data),
            Self::Stderr(data) => with_kind(STDERR, data),
            Self::Started => vec![STARTED],
            Self::Failed(text) => with_kind(FAILED, text),
            Self::Exited(code) => with_kind(EXITED, &code.to_le_bytes()),
            Self::Answer(text) => with_kind(ANSWER, text),
            Self::Refused(text) => with_kind(REFUSED, text),
        }
    }
}

fn with_kind(kind: u8, content: &[u8]) -> Vec<u8> {
    let content = content.get(..DATA_BYTES_MAX).unwrap_or(content);
    let mut frame = Vec::with_capacity(content.len() + 1);
    frame.push(kind);
    frame.extend_from_slice(content);
    frame
}

/// Sends one frame whole; `EAGAIN` when the socket does not block and has no room.
pub fn send_frame(socket: impl AsFd, frame: &[u8]) -> Result<(), Errno> {
    rustix::io::retry_on_intr(|| send(&socket, frame, SendFlags::NOSIGNAL)).map(drop)
}

/// Receives one frame into `buffer`; 0 is the end of the connection. A longer one is an error.
pub fn receive_frame(socket: impl AsFd, buffer: &mut [u8]) -> Result<usize, Errno> {
    let room = buffer.len();
    // TRUNC makes recv(2) tell the frame's true length.
    let (_, length) = rustix::io::retry_on_intr(|| recv(&socket, &mut *buffer, RecvFlags::TRUNC))?;
    if length > room { Err(Errno::MSGSIZE) } else { Ok(length) }
}

/// Makes a socket of the kind that shims speak on.
pub fn new_socket(flags: SocketFlags) -> Result<OwnedFd, Errno> {
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC | flags, None)
}

/// Gives `use_it` the address of a socket file, by its directory's descriptor: an address has room for
/// 107 bytes only (unix(7)).
pub fn with_address<T>(path: &Path, use_it: impl FnOnce(&SocketAddrUnix) -> Result<T, Errno>) -> Result<T, Errno> {
    use std::os::fd::AsRawFd;
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::INVAL) };
    let parent = rustix::fs::open(parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let short = Path::new("/proc/self/fd").join(parent.as_raw_fd().to_string()).join(name);
    use_it(&SocketAddrUnix::new(&short)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_as_they_were() {
        for input in
            [Input::Data(b"x"), Input::End, Input::Resize { rows: 300, columns: 7 }, Input::Signal(15), Input::Leave]
        {
            assert_eq!(Input::parse(&input.frame()), Some(Input::parse(&input.frame()).unwrap()));
            assert_eq!(Input::parse(&input.frame()).unwrap(), input);
        }
        for output in [Output::Stdout(b"a"), Output::Stderr(b""), Output::Started, Output::Exited(-1)] {
            assert_eq!(Output::parse(&output.frame()).unwrap(), output);
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for frame in [&b""[..], b"\0", b"\xff", b"\x02x", b"\x03\0", b"\x04\0\0\0\0\0"] {
            assert_eq!(Input::parse(frame), None, "{frame:?}");
        }
        assert_eq!(Output::parse(b"\x05\0"), None);
        assert!(serde_json::from_slice::<Hello>(b"{\"version\":1,\"request\":\"fly\"}").is_err());
    }

    #[test]
    fn a_frame_is_never_longer_than_its_bound() {
        assert_eq!(Output::Stdout(&vec![0; 1 << 20]).frame().len(), FRAME_BYTES_MAX);
    }
}
