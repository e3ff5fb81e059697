//! How the processes of a network talk: one packet is one JSON value, with descriptors beside it.
//!
//! Sockets are files below the state directory, which nobody but its owner may enter.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen, recvmsg, sendmsg,
    socket_with, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A container has a few networks and names; the kernel takes packets of this size at once.
const PACKET_BYTES_MAX: usize = 64 << 10;
/// Two user namespaces and a network namespace.
const DESCRIPTORS_MAX: usize = 3;
/// Starts of containers at once that a holder has not yet looked at.
const BACKLOG: i32 = 128;
/// Whoever does not answer in this time is stuck.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Says why two processes of a network did not understand each other.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("cannot {op} the socket {}", path.display())]
    Socket { op: &'static str, path: PathBuf, source: Errno },
    #[error("cannot speak to a process of the network")]
    Speak(#[source] Errno),
    #[error("a process of the network went away")]
    Gone,
    #[error("a process of the network says what nobody understands")]
    Form(#[source] serde_json::Error),
}

/// Makes a connected pair.
pub fn pair() -> Result<(OwnedFd, OwnedFd), WireError> {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).map_err(WireError::Speak)
}

/// Sends one value with descriptors.
pub fn send<T: Serialize>(socket: impl AsFd, value: &T, descriptors: &[BorrowedFd<'_>]) -> Result<(), WireError> {
    let bytes = serde_json::to_vec(value).map_err(WireError::Form)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(WireError::Speak(Errno::NOBUFS));
    }
    let parts = [IoSlice::new(&bytes)];
    match retry_on_intr(|| sendmsg(&socket, &parts, &mut control, SendFlags::NOSIGNAL)) {
        Ok(_) => Ok(()),
        Err(Errno::PIPE | Errno::CONNRESET) => Err(WireError::Gone),
        Err(errno) => Err(WireError::Speak(errno)),
    }
}

/// Receives one value with its descriptors. [`WireError::Gone`] at the end.
pub fn receive<T: DeserializeOwned>(socket: impl AsFd) -> Result<(T, Vec<OwnedFd>), WireError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = vec![0_u8; PACKET_BYTES_MAX];
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let received = retry_on_intr(|| recvmsg(&socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC));
    let received = match received {
        Ok(received) => received.bytes,
        Err(Errno::CONNRESET) => return Err(WireError::Gone),
        Err(errno) => return Err(WireError::Speak(errno)),
    };
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            descriptors.extend(fds);
        }
    }
    if received == 0 {
        return Err(WireError::Gone);
    }
    Ok((serde_json::from_slice(&bytes[..received]).map_err(WireError::Form)?, descriptors))
}

/// Asks and gives the answer.
pub fn ask<Q: Serialize, A: DeserializeOwned>(
    socket: impl AsFd,
    question: &Q,
    descriptors: &[BorrowedFd<'_>],
) -> Result<(A, Vec<OwnedFd>), WireError> {
    let wait = Some(ANSWER_TIMEOUT);
    rustix::net::sockopt::set_socket_timeout(&socket, rustix::net::sockopt::Timeout::Recv, wait)
        .map_err(WireError::Speak)?;
    send(&socket, question, descriptors)?;
    receive(&socket)
}

/// Calls whoever listens at a path; None when nobody does.
pub fn call(path: &Path) -> Result<Option<OwnedFd>, WireError> {
    let fail = |op| move |source| WireError::Socket { op, path: path.to_owned(), source };
    let socket =
        socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).map_err(fail("make"))?;
    let (_dir, address) = match address(path) {
        Ok(found) => found,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(fail("name")(errno)),
    };
    match connect(&socket, &address) {
        Ok(()) => Ok(Some(socket)),
        Err(Errno::NOENT | Errno::CONNREFUSED) => Ok(None),
        Err(errno) => Err(fail("call")(errno)),
    }
}

/// Listens at a path, in place of whoever listened there before.
pub fn listen_at(path: &Path) -> Result<OwnedFd, WireError> {
    let fail = |op| move |source| WireError::Socket { op, path: path.to_owned(), source };
    let socket =
        socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).map_err(fail("make"))?;
    let (_dir, address) = address(path).map_err(fail("name"))?;
    // One that is left of a killed process.
    let _ = fs_err::remove_file(path);
    bind(&socket, &address).map_err(fail("bind"))?;
    let own = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs_err::set_permissions(path, own).map_err(|_| fail("close")(Errno::PERM))?;
    listen(&socket, BACKLOG).map_err(fail("listen at"))?;
    Ok(socket)
}

/// Takes a caller; None for one that is somebody else (CVE-2020-15257), which could only come here by a
/// descriptor of the state directory.
pub fn accept(listener: &OwnedFd) -> Option<OwnedFd> {
    let socket = accept_with(listener, SocketFlags::CLOEXEC).ok()?;
    let peer = socket_peercred(&socket).ok()?;
    (peer.uid == rustix::process::geteuid()).then_some(socket)
}

/// Names a socket by its directory's descriptor, because an address has room for 107 bytes only.
fn address(path: &Path) -> Result<(OwnedFd, SocketAddrUnix), Errno> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Errno::INVAL);
    };
    let dir = rustix::fs::open(parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let short = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name);
    Ok((dir, SocketAddrUnix::new(&short)?))
}
