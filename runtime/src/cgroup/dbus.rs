//! One method call at a time to systemd, over a Unix socket, with a deadline for everything.
//!
//! By hand because no crate fits a process that is about to clone: zbus brings threads and an async
//! runtime, dbus links C, rustbus waits for ever in its authentication and leaks its socket into
//! children. What is here is the specification's SASL EXTERNAL, the call, its answer and a signal.
//! Files of other users cannot be named as sockets: only addresses of the caller's own session and
//! those of the host are tried.

mod wire;

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, send, socket_with};

pub(super) use wire::{Body, Value};
use wire::{Call, Message};

/// How long the bus itself may take to let us in (row F20).
const BUS_TIMEOUT: Duration = Duration::from_secs(2);
/// How long systemd may take for an answer: it has one thread, and fifty starts may queue at it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest line of the authentication (the specification's own bound is 16 KiB).
const LINE_BYTES_MAX: usize = 1024;
/// Messages that are not for us which are read before an answer.
const STRANGERS_MAX: u32 = 10_000;

const BUS: &str = "org.freedesktop.DBus";
const SYSTEMD: &str = "org.freedesktop.systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";

/// A bus could not be used.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// There is no socket at any address.
    #[error("no bus of systemd is here")]
    None,
    /// The socket failed, or took too long.
    #[error("bus {path} fails at {step}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// What was done.
        step: &'static str,
        /// The kernel's answer; `WouldBlock` is a deadline that has passed.
        source: io::Error,
    },
    /// It does not know us.
    #[error("bus {path} refuses us: {answer:?}")]
    Refused {
        /// The socket.
        path: PathBuf,
        /// Its words.
        answer: String,
    },
    /// It said something that is no D-Bus message, or too much of it.
    #[error("bus {path} does not keep to the protocol")]
    Protocol {
        /// The socket.
        path: PathBuf,
    },
    /// The call failed at the other end.
    #[error("{member} fails: {name}: {message}")]
    Call {
        /// The method.
        member: &'static str,
        /// The error's name.
        name: String,
        /// Its words.
        message: String,
    },
}

/// Where a bus listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    path: PathBuf,
    /// systemd itself and not a bus: no greeting, no matches.
    direct: bool,
}

impl Address {
    /// Whether there is anything at it.
    pub(super) fn exists(&self) -> bool {
        self.path.exists()
    }
}

/// The addresses of the system's systemd.
pub(super) fn system() -> Vec<Address> {
    vec![
        Address { path: "/run/dbus/system_bus_socket".into(), direct: false },
        Address { path: "/run/systemd/private".into(), direct: true },
    ]
}

/// The addresses of a user's systemd, most specific first.
#[expect(clippy::disallowed_methods, reason = "these two are how a session names its bus")]
pub(super) fn user(uid: u32) -> Vec<Address> {
    let mut list = Vec::new();
    if let Some(path) = std::env::var("DBUS_SESSION_BUS_ADDRESS").ok().as_deref().and_then(path_of) {
        list.push(Address { path, direct: false });
    }
    let given = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    for directory in given.into_iter().chain([PathBuf::from(format!("/run/user/{uid}"))]) {
        list.push(Address { path: directory.join("bus"), direct: false });
        list.push(Address { path: directory.join("systemd/private"), direct: true });
    }
    list.sort_by_key(|address| address.direct);
    list.dedup();
    list
}

/// The socket in `unix:path=/run/user/1000/bus,guid=…`.
fn path_of(address: &str) -> Option<PathBuf> {
    let first = address.split(';').next()?.strip_prefix("unix:")?;
    let path = first.split(',').find_map(|pair| pair.strip_prefix("path="))?;
    (path.starts_with('/') && !path.contains('%')).then(|| path.into())
}

/// A connection to systemd.
pub(super) struct Connection {
    stream: UnixStream,
    address: Address,
    serial: u32,
    deadline: Instant,
}

impl Connection {
    /// Connects to the first address at which somebody listens and lets us in.
    pub(super) fn open(addresses: &[Address]) -> Result<Self, BusError> {
        let mut first = None;
        for address in addresses.iter().filter(|address| address.exists()) {
            match Self::open_at(address) {
                Ok(connection) => return Ok(connection),
                Err(error) => first = first.or(Some(error)),
            }
        }
        Err(first.unwrap_or(BusError::None))
    }

    fn open_at(address: &Address) -> Result<Self, BusError> {
        let failed = |step, source| BusError::Io { path: address.path.clone(), step, source };
        let stream = dial(&address.path).map_err(|source| failed("connect", source))?;
        let deadline = Instant::now() + BUS_TIMEOUT;
        let mut connection = Self { stream, address: address.clone(), serial: 0, deadline };
        connection.authenticate()?;
        if !address.direct {
            connection.call(&Call::new(BUS, "/org/freedesktop/DBus", BUS, "Hello"), Body::default())?;
        }
        Ok(connection)
    }

    /// Says nothing of who we are: the other end sees it in the socket, whatever our user namespace.
    fn authenticate(&mut self) -> Result<(), BusError> {
        self.send(b"\0AUTH EXTERNAL\r\n", "authentication")?;
        let mut answer = self.line()?;
        if answer.trim() == "DATA" {
            self.send(b"DATA\r\n", "authentication")?;
            answer = self.line()?;
        }
        if !answer.starts_with("OK ") {
            return Err(BusError::Refused { path: self.address.path.clone(), answer });
        }
        self.send(b"BEGIN\r\n", "authentication")
    }

    /// Calls a method of systemd's manager; gives the first word of the answer, if it has one.
    pub(super) fn manager(&mut self, member: &'static str, body: Body) -> Result<Option<String>, BusError> {
        self.deadline = Instant::now() + ANSWER_TIMEOUT;
        let answer = self.call(&Call::new(SYSTEMD, MANAGER_PATH, MANAGER, member), body)?;
        Ok(answer.strings().into_iter().next())
    }

    /// Has the bus pass on which jobs have ended; systemd itself tells everybody.
    pub(super) fn watch_jobs(&mut self) -> Result<(), BusError> {
        if self.address.direct {
            return Ok(());
        }
        let rule = format!("type='signal',sender='{SYSTEMD}',interface='{MANAGER}',member='JobRemoved'");
        let mut body = Body::default();
        body.string(&rule);
        self.call(&Call::new(BUS, "/org/freedesktop/DBus", BUS, "AddMatch"), body)?;
        Ok(())
    }

    /// Waits for a job's end and gives systemd's word for it; `done` is success.
    pub(super) fn job_result(&mut self, job: &str) -> Result<String, BusError> {
        self.deadline = Instant::now() + ANSWER_TIMEOUT;
        for _ in 0..STRANGERS_MAX {
            let message = self.receive()?;
            // Its own number, then the job, the unit and the result.
            let strings = message.strings();
            if message.is_signal("JobRemoved")
                && let [path, _unit, result, ..] = strings.as_slice()
                && path == job
            {
                return Ok(result.clone());
            }
        }
        Err(self.protocol())
    }

    fn call(&mut self, call: &Call, body: Body) -> Result<Message, BusError> {
        self.serial += 1;
        let bytes = call.encode(self.serial, body, self.address.direct);
        self.send(&bytes, call.member)?;
        for _ in 0..STRANGERS_MAX {
            let message = self.receive()?;
            if message.answers(self.serial) {
                return match message.error() {
                    None => Ok(message),
                    Some(name) => {
                        let message = message.strings().into_iter().next().unwrap_or_default();
                        Err(BusError::Call { member: call.member, name, message })
                    }
                };
            }
        }
        Err(self.protocol())
    }

    fn receive(&mut self) -> Result<Message, BusError> {
        let mut fixed = [0_u8; wire::FIXED_BYTES];
        self.fill(&mut fixed)?;
        let Some(rest) = wire::rest_bytes(&fixed) else {
            return Err(self.protocol());
        };
        let mut bytes = fixed.to_vec();
        bytes.resize(fixed.len() + rest, 0);
        self.fill(&mut bytes[fixed.len()..])?;
        Message::decode(bytes).ok_or_else(|| self.protocol())
    }

    fn line(&mut self) -> Result<String, BusError> {
        let mut line = Vec::new();
        let mut byte = [0_u8; 1];
        while !line.ends_with(b"\r\n") {
            if line.len() == LINE_BYTES_MAX {
                return Err(self.protocol());
            }
            self.fill(&mut byte)?;
            line.push(byte[0]);
        }
        Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
    }

    fn fill(&mut self, mut buffer: &mut [u8]) -> Result<(), BusError> {
        while !buffer.is_empty() {
            let read = self.wait().and_then(|()| self.stream.read(buffer));
            match read {
                Ok(0) => return Err(self.failed("read", io::ErrorKind::UnexpectedEof.into())),
                Ok(length) => buffer = &mut buffer[length..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed("read", error)),
            }
        }
        Ok(())
    }

    fn send(&mut self, bytes: &[u8], step: &'static str) -> Result<(), BusError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            // A bus that has gone away is an error, no signal.
            let sent = self.wait().and_then(|()| Ok(send(&self.stream, rest, SendFlags::NOSIGNAL)?));
            match sent {
                Ok(length) => rest = &rest[length..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed(step, error)),
            }
        }
        Ok(())
    }

    /// Lets the socket wait no longer than what is left.
    fn wait(&self) -> io::Result<()> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        self.stream.set_write_timeout(Some(left))
    }

    fn failed(&self, step: &'static str, source: io::Error) -> BusError {
        BusError::Io { path: self.address.path.clone(), step, source }
    }

    fn protocol(&self) -> BusError {
        BusError::Protocol { path: self.address.path.clone() }
    }
}

/// Connects; the send timeout bounds that too, should nobody accept (unix(7)).
fn dial(path: &Path) -> io::Result<UnixStream> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Send, Some(BUS_TIMEOUT))?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests;
