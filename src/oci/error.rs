//! What goes wrong in `coracle-oci`, one variant per statement to the caller.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use coracle_runtime::bundle::BundleError;
use coracle_runtime::caps::CapError;
use coracle_runtime::cgroup::CgroupError;
use coracle_runtime::container::{ContainerError, Id, IdentityError, InvalidId, Status};
use coracle_runtime::{LaunchFailure, SysError};

/// What a shell sees when the runtime itself failed; runc's.
const EXIT_FAILED: u8 = 1;

/// runc's exit code where `exec` could not run the program.
const EXIT_EXEC_FAILED: u8 = 255;

/// Says why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    #[error("flag {0} is not implemented")]
    UnknownFlag(String),
    #[error("command {0} is not implemented")]
    UnknownCommand(String),
    #[error("argument {0} is missing")]
    MissingArgument(String),
    #[error("{0}")]
    Usage(String),
    #[error("no command is given; --help lists them")]
    NoCommand,
    #[error(transparent)]
    Id(#[from] InvalidId),
    #[error(transparent)]
    Container(#[from] ContainerError),
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Process(#[from] IdentityError),
    #[error("cannot create container {id}")]
    Create { id: Id, source: LaunchFailure },
    #[error("cannot start container {id}")]
    Start { id: Id, source: LaunchFailure },
    #[error("cannot execute in container {id}")]
    Exec { id: Id, source: LaunchFailure },
    #[error("cannot {verb} container {id}: it is {status}")]
    Status { verb: &'static str, id: Id, status: Status },
    #[error("container {id} has ended and left no specification")]
    NoConfig { id: Id },
    #[error("container {id} has not ended within {seconds} seconds of SIGKILL")]
    Unkillable { id: Id, seconds: u64 },
    #[error("cannot {verb} container {id}: it has no cgroup of its own")]
    NoCgroup { verb: &'static str, id: Id },
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error("cannot understand what is written down about a container's cgroup")]
    CgroupState(#[from] serde_json::Error),
    #[error("the limits are not of the form of linux.resources")]
    Resources(#[source] serde_json::Error),
    #[error("linux.resources.devices cannot be changed after a container was made")]
    DeviceRules,
    #[error("invalid regular expression {0:?}")]
    Pattern(String),
    #[error("cannot {verb} container {id}: it is paused; --ignore-paused does it all the same")]
    Paused { verb: &'static str, id: Id },
    #[error("invalid signal {0:?}")]
    Signal(String),
    #[error("cannot signal container {id}")]
    Kill { id: Id, source: rustix::io::Errno },
    #[error("invalid user {0:?}: uid or uid:gid, as numbers")]
    User(String),
    #[error(transparent)]
    Ids(#[from] coracle_runtime::idmap::IdMapError),
    #[error("invalid environment variable {0:?}: NAME=VALUE is wanted")]
    Variable(String),
    #[error("process.capabilities")]
    Capability(#[from] CapError),
    #[error("a terminal that nobody watches needs --console-socket")]
    TerminalUnwatched,
    #[error("--console-socket makes sense with a terminal alone, and without a watcher")]
    ConsoleSocketIdle,
    #[error("no command to execute is given")]
    NoProgram,
    #[error(transparent)]
    File(SysError),
    #[error("{} already exists", .0.display())]
    ConfigExists(PathBuf),
    #[error("cannot watch container {id}")]
    Watch { id: Id, source: std::io::Error },
    #[error("the state directory {} is not the one of user {user:?}", path.display())]
    StateOwner { path: PathBuf, user: String },
    #[error("cannot become uid {uid}, the owner of {}", path.display())]
    Become { path: PathBuf, uid: u32, source: nix::errno::Errno },
    #[error("no directory for the state of containers: XDG_RUNTIME_DIR is not set; give one by --root")]
    NoStateDirectory,
    #[error("cannot make this program safe from its containers")]
    Seal(#[source] coracle_runtime::seal::SealError),
    #[error("cannot write JSON")]
    Json(#[source] serde_json::Error),
    #[error("cannot protect file descriptor {0}, it is not open")]
    PreservedFd(i32),
}

impl OciError {
    /// A file that could not be used.
    pub fn file(op: &'static str, path: &Path, error: &io::Error) -> Self {
        // fs_err puts the path before the kernel's answer; we do so ourselves.
        let inner = error.source().and_then(|source| source.downcast_ref::<io::Error>()).unwrap_or(error);
        let errno = inner.raw_os_error().unwrap_or(nix::libc::EIO);
        Self::File(SysError::new(op, path.display().to_string(), errno))
    }

    /// What the shell sees.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Exec { .. } => EXIT_EXEC_FAILED,
            _ => EXIT_FAILED,
        }
    }
}
