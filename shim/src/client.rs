//! The command's side of a shim's socket: one question, one answer.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SocketFlags, connect};

use crate::protocol::{self, FRAME_BYTES_MAX, Hello, Output, Request, Stats, VERSION};

/// A shim answers in microseconds; one that is stopped or swapped out does not (F06).
const ANSWER_TIMEOUT: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

/// Says why a shim could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no shim, or nobody listens.
    #[error("no shim answers")]
    Connect(#[source] std::io::Error),
    /// The connection broke.
    #[error("the shim went away")]
    Lost(#[source] std::io::Error),
    /// It is stopped, or very busy.
    #[error("the shim does not answer within {} s", ANSWER_TIMEOUT.tv_sec)]
    Silent,
    /// The shim's own words.
    #[error("the shim refuses: {0}")]
    Refused(String),
}

/// Is a connection to a shim.
#[derive(Debug)]
pub struct Client {
    socket: OwnedFd,
}

impl Client {
    /// Connects to the shim that listens at a path.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let socket = protocol::new_socket(SocketFlags::empty()).map_err(|errno| ClientError::Connect(errno.into()))?;
        protocol::with_address(path, |address| connect(&socket, address))
            .map_err(|errno| ClientError::Connect(errno.into()))?;
        Ok(Self { socket })
    }

    /// Takes a connection that was made otherwise.
    pub fn from_socket(socket: OwnedFd) -> Self {
        Self { socket }
    }

    /// Gives the socket, to be polled.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Sends a request; `Attach` and `Wait` have frames for an answer, the others one.
    ///
    /// # Errors
    /// The shim is gone.
    pub fn send(&self, request: Request) -> Result<(), ClientError> {
        // Plain data always has a form in JSON.
        let hello = serde_json::to_vec(&Hello { version: VERSION, request }).unwrap_or_default();
        self.send_frame(&hello)
    }

    /// Sends one frame as it is.
    ///
    /// # Errors
    /// The shim is gone.
    pub fn send_frame(&self, frame: &[u8]) -> Result<(), ClientError> {
        protocol::send_frame(&self.socket, frame).map_err(|errno| ClientError::Lost(errno.into()))
    }

    /// Receives one frame into `buffer`; None at the end of the connection.
    ///
    /// # Errors
    /// The connection broke, or a frame is not understood.
    pub fn receive<'b>(&self, buffer: &'b mut [u8; FRAME_BYTES_MAX]) -> Result<Option<Output<'b>>, ClientError> {
        let lost = |errno: Errno| ClientError::Lost(errno.into());
        match protocol::receive_frame(&self.socket, buffer) {
            Ok(0) | Err(Errno::CONNRESET) => Ok(None),
            Ok(length) => Output::parse(&buffer[..length]).map(Some).ok_or_else(|| lost(Errno::PROTO)),
            Err(errno) => Err(lost(errno)),
        }
    }

    /// Asks for something that has one answer, and waits for it.
    ///
    /// # Errors
    /// The shim is gone, silent, or refuses.
    pub fn ask(&self, request: Request) -> Result<Vec<u8>, ClientError> {
        self.send(request)?;
        let mut buffer = [0; FRAME_BYTES_MAX];
        loop {
            let mut fds = [PollFd::from_borrowed_fd(self.socket(), PollFlags::IN)];
            match poll(&mut fds, Some(&ANSWER_TIMEOUT)) {
                Ok(0) => return Err(ClientError::Silent),
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(ClientError::Lost(errno.into())),
            }
            match self.receive(&mut buffer)? {
                Some(Output::Answer(text)) => return Ok(text.to_vec()),
                Some(Output::Refused(text)) => {
                    return Err(ClientError::Refused(String::from_utf8_lossy(text).into_owned()));
                }
                Some(_) => {}
                None => return Err(ClientError::Lost(Errno::CONNRESET.into())),
            }
        }
    }

    /// Asks for the shim's counters.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn stats(&self) -> Result<Stats, ClientError> {
        let text = self.ask(Request::Stats)?;
        serde_json::from_slice(&text).map_err(|error| ClientError::Refused(error.to_string()))
    }
}
