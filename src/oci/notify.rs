//! sd_notify(3) from inside a container: `NOTIFY_SOCKET` of the caller becomes a socket of ours inside.
//!
//! The service manager asks which process a message is from, and a process of the container is none
//! that it waits for; so we receive and say READY=1 in its place, as runc and crun do. Nothing else of a
//! message gets through: a container may not speak for the caller.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use coracle_runtime::container::Container;
use oci_spec::runtime::{MountBuilder, Spec};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::error::OciError;
use crate::env;

const VARIABLE: &str = "NOTIFY_SOCKET";
/// The directory in a container's state, and the socket in it; inside it is named the same.
const NAME: &str = "notify";
const READY: &[u8] = b"READY=1";
/// sd_notify(3) messages are some lines; systemd itself reads as much.
const MESSAGE_BYTES_MAX: usize = 4096;
/// Every user of the container may say that it is ready.
const SOCKET_MODE: u32 = 0o777;

/// The socket that a container's processes see.
pub struct Notify {
    socket: UnixDatagram,
    caller: PathBuf,
}

impl Notify {
    /// Makes the socket for a new container and shows it inside; `None` where nobody waits for a message.
    pub fn offer(container: &Container, spec: &mut Spec) -> Result<Option<Self>, OciError> {
        let Some(caller) = caller() else { return Ok(None) };
        let directory = container.path().join(NAME);
        fs_err::create_dir(&directory).map_err(|error| OciError::file("make", &directory, &error))?;
        let notify = Self::bind(&directory, caller)?;
        let options = ["bind", "rprivate", "nosuid", "nodev", "noexec"].map(str::to_owned).to_vec();
        let mount = MountBuilder::default().destination(&notify.caller).typ("bind").source(&directory).options(options);
        let mut mounts = spec.mounts().clone().unwrap_or_default();
        mounts.extend(mount.build());
        spec.set_mounts(Some(mounts));
        if let Some(process) = spec.process_mut() {
            let mut variables = process.env().clone().unwrap_or_default();
            variables.retain(|entry| !entry.starts_with("NOTIFY_SOCKET="));
            variables.push(format!("{VARIABLE}={}", notify.caller.join(NAME).display()));
            process.set_env(Some(variables));
        }
        Ok(Some(notify))
    }

    /// Takes the place of the socket that `create` made.
    pub fn take_over(container: &Container) -> Result<Option<Self>, OciError> {
        let directory = container.path().join(NAME);
        match caller().filter(|_| directory.is_dir()) {
            Some(caller) => Self::bind(&directory, caller).map(Some),
            None => Ok(None),
        }
    }

    fn bind(directory: &Path, caller: PathBuf) -> Result<Self, OciError> {
        let path = directory.join(NAME);
        let failed = |error: std::io::Error| OciError::file("listen at", &path, &error);
        // A socket's address has room for 107 bytes; a descriptor's name is short.
        let held = fs_err::File::open(directory).map_err(failed)?;
        let address = format!("/proc/self/fd/{}/{NAME}", held.as_raw_fd());
        let _ = fs_err::remove_file(&path);
        let socket = UnixDatagram::bind(address).map_err(failed)?;
        fs_err::set_permissions(&path, std::fs::Permissions::from_mode(SOCKET_MODE)).map_err(failed)?;
        Ok(Self { socket, caller })
    }

    /// Waits until the container says that it is ready, or has ended, and tells the caller.
    pub fn wait(&self, pid: i32) {
        self.wait_for(open(pid).as_ref());
    }

    /// Without a process, what it said before it ended is all.
    fn wait_for(&self, process: Option<&OwnedFd>) {
        let mut message = [0_u8; MESSAGE_BYTES_MAX];
        let at_once = Timespec::default();
        loop {
            let other = process.map_or(self.socket.as_fd(), AsFd::as_fd);
            let mut ready = [PollFd::new(&self.socket, PollFlags::IN), PollFd::from_borrowed_fd(other, PollFlags::IN)];
            match poll(&mut ready, process.is_none().then_some(&at_once)) {
                Err(Errno::INTR) => continue,
                Err(_) => return,
                Ok(_) => {}
            }
            let spoken = !ready[0].revents().is_empty();
            let ended = process.is_none() || !ready[1].revents().is_empty();
            if spoken && let Ok(length) = self.socket.recv(&mut message) {
                let lines = message.get(..length).unwrap_or_default().split(|byte| *byte == b'\n');
                if lines.into_iter().any(|line| line == READY) {
                    // Whoever asked may have gone; the container goes on.
                    let _ = UnixDatagram::unbound().and_then(|socket| socket.send_to(READY, &self.caller));
                    return;
                }
            } else if ended {
                return;
            }
        }
    }

    /// Does the same beside the one who watches the container, whose child has not been reaped yet. What is
    /// returned has to be joined: a container may say that it is ready and end at once.
    pub fn wait_aside(self, pid: i32) -> JoinHandle<()> {
        let process = open(pid);
        std::thread::spawn(move || self.wait_for(process.as_ref()))
    }
}

fn open(pid: i32) -> Option<OwnedFd> {
    Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
}

/// Where the caller listens. Abstract sockets belong to a network namespace; those are not passed on.
fn caller() -> Option<PathBuf> {
    env::value(VARIABLE).map(PathBuf::from).filter(|path| path.is_absolute())
}
