//! The shim's side of its socket: who is connected, what each still has to get.
//!
//! Nobody but the owner of the shim is served (SO_PEERCRED, unix(7)). One frame of each output waits for a
//! client at most: while it does, no further output is read from the container, so that nothing is lost and
//! nothing piles up. A client that takes nothing for [`PATIENCE`] is cut off: the container goes on.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{SocketFlags, accept_with, bind, listen};

use crate::protocol::{self, FRAME_BYTES_MAX, Hello, Input, Output, Request, VERSION};

/// Far more than people look at one container at the same time.
const CLIENTS_MAX: usize = 64;
/// How many connections may wait to be accepted; the shim does so at once.
const BACKLOG: i32 = 16;
/// How long a client may hold up the container's output.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Is one connection.
#[derive(Debug)]
pub struct Client {
    socket: OwnedFd,
    kind: Kind,
    /// Frames that did not fit into the socket, ...
    pending: VecDeque<Vec<u8>>,
    /// ... and since when the first of them waits, or one before it.
    since: Instant,
    gone: bool,
}

/// Says what a client has asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Nothing yet.
    New,
    /// Attached; sends input too when set.
    Attached { stdin: bool },
    /// Hears of the start and the end only.
    Waiting,
}

/// Is what a client wants done now.
#[derive(Debug, PartialEq, Eq)]
pub enum Wish {
    /// A first frame.
    Request(Request),
    /// A signal, from an attached client.
    Signal(i32),
    /// A size, from an attached client.
    Resize(u16, u16),
    /// Bytes for standard input.
    Stdin(Vec<u8>),
    /// The end of standard input.
    StdinEnd,
}

/// Is everybody who is connected, and the socket where others come in.
#[derive(Debug)]
pub struct Clients {
    listener: Option<OwnedFd>,
    list: Vec<Client>,
    /// Somebody who was attached went away without a word.
    lost_one: bool,
}

impl Clients {
    /// Starts with the command that made this shim, which waits for the start.
    pub fn new(first: Option<(OwnedFd, bool)>) -> Self {
        let mut clients = Self { listener: None, list: Vec::new(), lost_one: false };
        if let Some((socket, attached)) = first
            && rustix::io::ioctl_fionbio(&socket, true).is_ok()
        {
            let kind = if attached { Kind::Attached { stdin: true } } else { Kind::Waiting };
            clients.list.push(Client::new(socket, kind));
        }
        clients
    }

    /// Listens at a path, which nobody else does: its container's lock is held.
    pub fn listen(&mut self, path: &Path) -> Result<(), Errno> {
        match rustix::fs::unlink(path) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
        let socket = protocol::new_socket(SocketFlags::NONBLOCK)?;
        // Before it has a name: so the file is never anybody else's (unix(7)).
        rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
        protocol::with_address(path, |address| bind(&socket, address))?;
        listen(&socket, BACKLOG)?;
        self.listener = Some(socket);
        Ok(())
    }

    /// Gives the socket where others come in.
    pub fn listener(&self) -> Option<BorrowedFd<'_>> {
        self.listener.as_ref().map(AsFd::as_fd).filter(|_| self.list.len() < CLIENTS_MAX)
    }

    /// Says whether somebody who was attached went away without a word: killed, or without a terminal any more.
    pub fn lost_one(&self) -> bool {
        self.lost_one
    }

    /// Counts the connections.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Gives each socket, whether to listen to it, and whether it must take something first.
    pub fn sockets(&self, stdin_open: bool) -> impl Iterator<Item = (BorrowedFd<'_>, bool, bool)> {
        self.list.iter().map(move |client| {
            // Input that nobody can take yet stays in the socket: so a pipe into attach slows down.
            let listens = stdin_open || client.kind != Kind::Attached { stdin: true };
            (client.socket.as_fd(), listens, !client.pending.is_empty())
        })
    }

    /// Says whether output may be read: everybody has got what was there.
    pub fn ready(&self) -> bool {
        self.list.iter().all(|client| client.pending.is_empty())
    }

    /// Gives the moment at which a client that takes nothing is cut off.
    pub fn deadline(&self) -> Option<Instant> {
        self.list.iter().filter(|client| !client.pending.is_empty()).map(|client| client.since + PATIENCE).min()
    }

    /// Lets everybody in who knocks.
    pub fn accept(&mut self) {
        while self.list.len() < CLIENTS_MAX
            && let Some(listener) = &self.listener
            && let Ok(socket) = accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
        {
            let own = rustix::process::geteuid();
            if socket_peercred(&socket).is_ok_and(|peer| peer.uid == own || peer.uid.is_root()) {
                self.list.push(Client::new(socket, Kind::New));
            }
        }
    }

    /// Reads what client `index` sends.
    #[inline(never)]
    pub fn read(&mut self, index: usize) -> Option<Wish> {
        let client = self.list.get_mut(index)?;
        let mut buffer = [0; FRAME_BYTES_MAX];
        let frame = match protocol::receive_frame(&client.socket, &mut buffer) {
            Ok(0) => None,
            Ok(length) => buffer.get(..length),
            Err(Errno::AGAIN) => return None,
            Err(_) => None,
        };
        let Some(frame) = frame else {
            client.gone = true;
            self.lost_one |= matches!(client.kind, Kind::Attached { .. });
            return None;
        };
        match client.kind {
            Kind::New => client.greet(frame),
            Kind::Attached { stdin } => match Input::parse(frame) {
                Some(Input::Data(bytes)) if stdin => Some(Wish::Stdin(bytes.to_vec())),
                Some(Input::End) if stdin => Some(Wish::StdinEnd),
                Some(Input::Signal(number)) => Some(Wish::Signal(number)),
                Some(Input::Resize { rows, columns }) => Some(Wish::Resize(rows, columns)),
                Some(Input::Leave) => {
                    client.gone = true;
                    None
                }
                _ => client.refuse("a frame that is not understood"),
            },
            Kind::Waiting => client.refuse("nothing is expected"),
        }
    }

    /// Answers client `index`, who asked for something that is done.
    pub fn answer(&mut self, index: usize, text: &[u8]) {
        if let Some(client) = self.list.get_mut(index) {
            client.send(Output::Answer(text).frame());
        }
    }

    /// Sends what client `index` still has to get.
    pub fn flush(&mut self, index: usize) {
        if let Some(client) = self.list.get_mut(index) {
            client.flush();
        }
    }

    /// Sends output to everybody who is attached.
    pub fn output(&mut self, output: &Output<'_>) {
        let mut frame = None;
        for client in self.list.iter_mut().filter(|client| matches!(client.kind, Kind::Attached { .. })) {
            client.send(frame.get_or_insert_with(|| output.frame()).clone());
        }
    }

    /// Tells everybody who waits for a start or an end.
    pub fn announce(&mut self, output: &Output<'_>) {
        for client in self.list.iter_mut().filter(|client| client.kind != Kind::New) {
            client.send(output.frame());
        }
    }

    /// Ends the connections that are over, and those of clients that have taken nothing for too long.
    pub fn sweep(&mut self, now: Instant) {
        for client in &mut self.list {
            if !client.pending.is_empty() && now >= client.since + PATIENCE {
                client.pending.clear();
                client.gone = true;
            }
        }
        self.list.retain(|client| !client.gone);
        if self.list.is_empty() {
            self.list = Vec::new();
        }
    }

    /// Ends the connections of everybody who was attached or waited; what they still have to get is tried once.
    pub fn dismiss(&mut self) {
        for index in 0..self.list.len() {
            self.flush(index);
        }
        self.list.retain(|client| client.kind == Kind::New);
    }
}

impl Client {
    fn new(socket: OwnedFd, kind: Kind) -> Self {
        Self { socket, kind, pending: VecDeque::new(), since: Instant::now(), gone: false }
    }

    fn greet(&mut self, frame: &[u8]) -> Option<Wish> {
        let Ok(hello) = serde_json::from_slice::<Hello>(frame) else {
            return self.refuse("the request is not understood");
        };
        if hello.version == 0 || hello.version > VERSION {
            return self.refuse(&format!("this shim speaks version {VERSION}, not {}", hello.version));
        }
        self.kind = match hello.request {
            Request::Attach { stdin } => Kind::Attached { stdin },
            Request::Wait => Kind::Waiting,
            _ => Kind::New,
        };
        Some(Wish::Request(hello.request))
    }

    fn refuse(&mut self, why: &str) -> Option<Wish> {
        self.send(Output::Refused(why.as_bytes()).frame());
        self.gone = true;
        None
    }

    /// Sends a frame, behind those that wait.
    fn send(&mut self, frame: Vec<u8>) {
        if self.gone {
            return;
        }
        if self.pending.is_empty() {
            self.since = Instant::now();
        }
        self.pending.push_back(frame);
        self.flush();
    }

    fn flush(&mut self) {
        while let Some(frame) = self.pending.front() {
            match protocol::send_frame(&self.socket, frame) {
                Ok(()) => self.pending.pop_front(),
                Err(Errno::AGAIN) => return,
                Err(_) => {
                    self.gone = true;
                    break;
                }
            };
        }
        // A process that only waits keeps no room.
        self.pending = VecDeque::new();
    }
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketType, socketpair};

    use super::*;

    #[test]
    fn what_a_client_does_not_take_waits_in_its_order() {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let mut clients = Clients::new(Some((ours, true)));
        let mut sent = 0;
        while clients.ready() {
            clients.output(&Output::Stdout(&[sent; 1000]));
            sent += 1;
        }
        // Whoever reads both outputs before he looks has one more, and the container may end.
        clients.output(&Output::Stderr(b"error"));
        clients.announce(&Output::Exited(7));
        let mut buffer = [0; FRAME_BYTES_MAX];
        let mut heard = Vec::new();
        while let Ok(length @ 1..) = protocol::receive_frame(&theirs, &mut buffer) {
            heard.push(buffer[..length].to_vec());
            clients.flush(0);
        }
        let mut expected: Vec<_> = (0..sent).map(|number| Output::Stdout(&[number; 1000]).frame()).collect();
        expected.extend([Output::Stderr(b"error").frame(), Output::Exited(7).frame()]);
        assert!(heard == expected, "{} of {} frames", heard.len(), expected.len());
        assert!(clients.ready());
    }
}
