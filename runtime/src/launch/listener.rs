//! Hands the descriptor of a filter that asks back to the agent that answers (runtime-spec,
//! "linux.seccomp.listenerPath").
//!
//! The agent's socket is opened before anything is made, so that a wrong path costs nothing, and the
//! process under the filter sends the descriptor itself, right after the filter is loaded.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat, readlinkat};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    connect, sendmsg, socket_with,
};
use serde_json::{Value, json};

use super::fault::Fault;
use crate::failure::{LaunchFailure, Stage};
use crate::plan::ListenerPlan;

const STAGE: Stage = Stage::Seccomp;
/// The version of this message in the runtime specification's own example, which agents compare.
const MESSAGE_VERSION: &str = "0.2.0";
/// The name that the specification gives the descriptor.
const DESCRIPTOR_NAME: &str = "seccompFd";

/// The agent, reached.
pub(crate) struct Listener {
    socket: OwnedFd,
    /// The caller's procfs: what it calls `self` is the number the agent knows the process by.
    proc: OwnedFd,
    metadata: String,
    /// The container's state; a process is added to it.
    state: Value,
}

/// What is sent with the descriptor.
pub(crate) struct Announcement<'a> {
    pub(crate) socket: BorrowedFd<'a>,
    text: Vec<u8>,
}

impl Listener {
    /// Connects to the agent.
    pub(crate) fn connect(plan: &ListenerPlan, state: Value) -> Result<Self, LaunchFailure> {
        let shown = plan.path.display();
        let failed = |result: Result<(), Errno>, op: &str| result.fault(STAGE, op, &shown);
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).fault(
            STAGE,
            "make socket for",
            &shown,
        )?;
        // Through a descriptor, because a socket address has room for 107 bytes only.
        let place = openat(CWD, &plan.path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        let place = place.fault(STAGE, "open listener", &shown)?;
        let short = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&place));
        let address = SocketAddrUnix::new(Path::new(&short)).fault(STAGE, "name listener", &shown)?;
        failed(connect(&socket, &address), "connect to listener")?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let proc = openat(CWD, "/proc", flags, Mode::empty()).fault(STAGE, "open", "/proc")?;
        Ok(Self { socket, proc, metadata: plan.metadata.clone(), state })
    }

    /// Writes the message; to be called by the process that it is about.
    pub(crate) fn announcement(&self) -> Result<Announcement<'_>, LaunchFailure> {
        let link = readlinkat(&self.proc, "self", Vec::new()).fault(STAGE, "read", "/proc/self")?;
        let pid: i32 = std::str::from_utf8(link.as_bytes()).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
        let mut state = self.state.clone();
        if state["pid"] == 0 {
            state["pid"] = pid.into();
        }
        let message = json!({
            "ociVersion": MESSAGE_VERSION,
            "fds": [DESCRIPTOR_NAME],
            "pid": pid,
            "metadata": self.metadata,
            "state": state,
        });
        Ok(Announcement { socket: self.socket.as_fd(), text: message.to_string().into_bytes() })
    }
}

impl Announcement<'_> {
    /// Sends the descriptor. From here on the agent answers.
    pub(crate) fn send(&self, notify: &OwnedFd) -> Result<(), LaunchFailure> {
        let fds = [notify.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&fds));
        let sent = sendmsg(self.socket, &[IoSlice::new(&self.text)], &mut control, SendFlags::NOSIGNAL);
        match sent {
            Ok(length) if length == self.text.len() => Ok(()),
            Ok(_) => Err(Errno::MSGSIZE),
            Err(errno) => Err(errno),
        }
        .fault(STAGE, "send to", "seccomp listener")
    }
}
