//! The conversation between a launching parent and the child that sets itself up.
//!
//! A pair of SOCK_SEQPACKET sockets, so that one message is one packet. Both ends close on `execve`:
//! end of file without a failure before it means that the program runs.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use crate::failure::{LaunchFailure, WIRE_MAX};

/// What one side tells the other.
#[derive(Debug)]
pub(crate) enum Message {
    /// Parent: the ids are mapped.
    Mapped,
    /// Parent: its own work on the namespaces is done.
    Proceed,
    /// Parent: execute now.
    Start,
    /// Child: all mounts are made, the root is not yet changed.
    Mounted,
    /// Child: only the gate, the filter and `execve` are left.
    Ready,
    /// Child: the master side of its terminal.
    Console(OwnedFd),
    /// Intermediate child: the process it made, by a descriptor and its number here.
    Process(OwnedFd),
    /// Helper: a detached mount.
    Tree(OwnedFd),
    /// Maker of namespaces: one of them, the one for users first.
    Namespace(OwnedFd),
    /// Child: it gave up.
    Failure(LaunchFailure),
}

const MAPPED: u8 = b'M';
const PROCEED: u8 = b'N';
const START: u8 = b'G';
const MOUNTED: u8 = b'H';
const READY: u8 = b'R';
const CONSOLE: u8 = b'C';
const PROCESS: u8 = b'P';
const TREE: u8 = b'T';
const NAMESPACE: u8 = b'U';
const FAILURE: u8 = b'F';

/// A new pair: the parent's end and the child's.
pub(crate) fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

/// Sends one message. `EPIPE` when the other side is gone.
pub(crate) fn send(channel: impl AsFd, message: &Message) -> Result<(), Errno> {
    let channel = channel.as_fd();
    match message {
        Message::Mapped => send_parts(channel, &[MAPPED], &[], None),
        Message::Proceed => send_parts(channel, &[PROCEED], &[], None),
        Message::Start => send_parts(channel, &[START], &[], None),
        Message::Mounted => send_parts(channel, &[MOUNTED], &[], None),
        Message::Ready => send_parts(channel, &[READY], &[], None),
        Message::Console(fd) => send_parts(channel, &[CONSOLE], &[], Some(fd.as_fd())),
        Message::Process(fd) => send_parts(channel, &[PROCESS], &[], Some(fd.as_fd())),
        Message::Tree(fd) => send_parts(channel, &[TREE], &[], Some(fd.as_fd())),
        Message::Namespace(fd) => send_parts(channel, &[NAMESPACE], &[], Some(fd.as_fd())),
        Message::Failure(failure) => send_parts(channel, &[FAILURE], &failure.encode(), None),
    }
}

fn send_parts(channel: BorrowedFd<'_>, tag: &[u8], body: &[u8], fd: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = fd.map(|fd| [fd]);
    if let Some(fds) = &fds
        && !control.push(SendAncillaryMessage::ScmRights(fds))
    {
        return Err(Errno::NOBUFS);
    }
    let parts = [IoSlice::new(tag), IoSlice::new(body)];
    retry_on_intr(|| sendmsg(channel, &parts, &mut control, SendFlags::NOSIGNAL))?;
    Ok(())
}

/// Receives one message; `None` at the end. `EPROTO` for what nobody sends.
pub(crate) fn receive(channel: impl AsFd) -> Result<Option<Message>, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0_u8; WIRE_MAX + 1];
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = loop {
        match recvmsg(&channel, &mut parts, &mut control, flags) {
            // The other side left our last message unread; what it said before is still here, and
            // the kernel reports this once.
            Err(Errno::CONNRESET | Errno::INTR) => {}
            result => break result?.bytes,
        }
    };
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let Some((tag, body)) = bytes[..received].split_first() else {
        return Ok(None);
    };
    let message = match (*tag, fd) {
        (MAPPED, _) => Message::Mapped,
        (PROCEED, _) => Message::Proceed,
        (START, _) => Message::Start,
        (MOUNTED, _) => Message::Mounted,
        (READY, _) => Message::Ready,
        (CONSOLE, Some(fd)) => Message::Console(fd),
        (PROCESS, Some(fd)) => Message::Process(fd),
        (TREE, Some(fd)) => Message::Tree(fd),
        (NAMESPACE, Some(fd)) => Message::Namespace(fd),
        (FAILURE, _) => Message::Failure(LaunchFailure::decode(body).ok_or(Errno::PROTO)?),
        _ => return Err(Errno::PROTO),
    };
    Ok(Some(message))
}
