//! The one place that knows images, runtime and shim together.
//!
//! A command line (and later an API) hands plain options in and gets typed errors out; nothing here
//! prints or exits.

pub mod attach;
pub mod author;
pub mod confinement;
pub mod consumption;
pub mod container;
pub mod containers;
mod elsewhere;
pub mod events;
pub mod exec;
mod files;
pub mod health;
pub mod hello;
pub mod housekeeping;
pub mod image;
pub mod isolation;
pub mod journal;
mod launching;
pub mod lifecycle;
pub mod limits;
pub mod logs;
pub mod mirror;
pub mod mounts;
pub mod network;
pub mod networks;
pub mod options;
pub mod ports;
mod prepare;
mod process;
pub mod processes;
pub mod provider;
pub mod quota;
pub mod record;
pub mod registry;
pub mod run;
pub mod sharing;
pub mod shim;
mod signals;
pub mod size;
mod spec;
pub mod transfer;
pub mod update;
pub mod usage;
pub mod user;
pub mod volumes;

use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use coracle_images::{LayerSpace, Ownership, Store, StoreError};
use coracle_runtime::idmap::{self, HostIds};
use coracle_runtime::{IdMap, IdMapError, LaunchFailure, UserNs};

pub use elsewhere::Elsewhere;
pub use network::NetworkError;
pub use spec::SpecError;

use crate::env;

/// Says what went wrong, one variant for each part the engine drives.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("no home directory: neither --root, CORACLE_ROOT, XDG_DATA_HOME nor HOME is set")]
    NoHome,
    #[error("cannot use the state directory")]
    State(#[source] std::io::Error),
    #[error("the state directory {path} belongs to user {owner}, not to you")]
    ForeignState { path: PathBuf, owner: u32 },
    #[error("the input device is not a terminal, but -t needs one")]
    NoTerminal,
    #[error("image {0} is not here and --pull=never was given")]
    NoImage(String),
    #[error("no such image: {0}")]
    UnknownImage(String),
    #[error("{0} is no name; say where the image is to go")]
    NoDestination(String),
    #[error("no such container: {0}")]
    UnknownContainer(String),
    #[error("{0} begins the ids of more than one container")]
    AmbiguousContainer(String),
    #[error("container {id} was written by a newer coracle (form {version})")]
    NewerRecord { id: String, version: u32 },
    #[error("cannot understand the record of container {id}")]
    BrokenRecord { id: String, source: serde_json::Error },
    #[error("container {0} is running")]
    ContainerRuns(String),
    #[error("container {0} is not running")]
    NotRunning(String),
    #[error("container {0} is paused")]
    ContainerPaused(String),
    #[error("container {0} is not paused")]
    NotPaused(String),
    #[error("container {0} is restarting")]
    Restarting(String),
    #[error("container {0} has no cgroup that could be frozen")]
    NoFreezer(String),
    #[error("container {0} runs in the foreground of its own command and cannot be attached to")]
    InForeground(String),
    #[error("container {0} is held by its shim, which does not answer")]
    Held(String),
    #[error("container {0} does not end although it was killed")]
    Undying(String),
    #[error("the shim of container {0} went away")]
    ShimLost(String),
    #[error("container {0} has lost its specification")]
    NoBundle(String),
    #[error("a restart policy and --rm exclude each other")]
    RestartOrRemove,
    #[error("cannot write the id to {path}")]
    CidFile { path: PathBuf, source: std::io::Error },
    #[error("cannot execute in container {id}")]
    Exec { id: String, source: LaunchFailure },
    #[error("cannot talk to the container's shim")]
    Shim(#[from] coracle_shim::client::ClientError),

    #[error("image {image} is for {found}, not for {wanted}")]
    WrongPlatform { image: String, found: String, wanted: String },
    #[error("cannot mount {path}")]
    MountSource { path: PathBuf, source: std::io::Error },
    #[error("{path} belongs to coracle itself and is never given to a container")]
    OwnState { path: PathBuf },
    #[error("cannot read the seccomp profile {path}")]
    SeccompFile { path: PathBuf, source: std::io::Error },
    #[error("seccomp profile {path}: {reason}")]
    SeccompProfile { path: PathBuf, reason: String },
    #[error("unknown signal {0:?}")]
    UnknownSignal(String),
    #[error("cannot watch over the container")]
    Supervise(#[source] std::io::Error),
    #[error(transparent)]
    Elsewhere(#[from] Elsewhere),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Image(#[from] image::ImageError),
    #[error(transparent)]
    IdMap(#[from] IdMapError),
    #[error("cannot start container {id}")]
    Launch { id: String, source: LaunchFailure },
    #[error("cannot enter a user namespace")]
    UserNamespace(#[source] LaunchFailure),
    #[error(transparent)]
    Flatten(#[from] coracle_images::FlattenError),
    #[error(transparent)]
    Container(#[from] container::ContainerError),
    #[error(transparent)]
    Cgroup(#[from] coracle_runtime::cgroup::CgroupError),
    #[error(transparent)]
    Limit(#[from] limits::LimitError),
    #[error(transparent)]
    Network(#[from] network::NetworkError),
    #[error(transparent)]
    Networks(#[from] networks::NetworksError),
    #[error(transparent)]
    Spec(#[from] spec::SpecError),
    #[error(transparent)]
    Process(#[from] process::ProcessError),
    #[error(transparent)]
    User(#[from] user::UserError),
    #[error(transparent)]
    Volume(#[from] volumes::VolumeError),
    #[error(transparent)]
    Transfer(#[from] transfer::TransferError),
    #[error(transparent)]
    Change(#[from] author::ChangeError),
    #[error(transparent)]
    Identity(#[from] coracle_runtime::container::IdentityError),
    #[error(transparent)]
    Update(#[from] update::UpdateError),
    #[error(transparent)]
    Log(#[from] logs::LogError),
    #[error(transparent)]
    Quota(#[from] quota::QuotaError),
    #[error(transparent)]
    Health(#[from] health::HealthError),
    #[error(transparent)]
    Isolation(#[from] isolation::IsolationError),
}

/// Is one user's images and containers.
pub struct Engine {
    root: PathBuf,
    store: Store,
    host_ids: HostIds,
}

impl Engine {
    /// Opens the state directory, making it when it is missing.
    pub fn open(root: Option<PathBuf>) -> Result<Self, EngineError> {
        let root = state_directory(root)?;
        let store = Store::open(&root)?;
        Ok(Self { root, store, host_ids: HostIds::probe()? })
    }

    /// Gives the images.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Gives the state directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Chooses the id map of a container.
    pub fn idmap(&self, mode: UserNs) -> Result<IdMap, EngineError> {
        Ok(idmap::choose(mode, &self.host_ids)?)
    }
}

/// Chooses an id map without any state directory.
pub fn choose_idmap(mode: UserNs) -> Result<IdMap, EngineError> {
    Ok(idmap::choose(mode, &HostIds::probe()?)?)
}

/// Names the unpacked layers that fit an id map.
pub fn layer_space(map: &IdMap) -> LayerSpace {
    if map.is_single() {
        LayerSpace { name: "squashed".into(), ownership: Ownership::Squash }
    } else {
        LayerSpace { name: map.name(), ownership: Ownership::Keep }
    }
}

/// Finds the state directory, making it when it is missing.
pub fn state_directory(root: Option<PathBuf>) -> Result<PathBuf, EngineError> {
    let root = default_state(root)?;
    open_state(&root)?;
    Ok(root)
}

/// Names the state directory, which may not be there.
fn default_state(root: Option<PathBuf>) -> Result<PathBuf, EngineError> {
    match root.or_else(env::coracle_root) {
        Some(root) => std::path::absolute(root).map_err(EngineError::State),
        None => default_root().ok_or(EngineError::NoHome),
    }
}

fn default_root() -> Option<PathBuf> {
    let data = env::xdg_data_home().or_else(|| Some(env::home()?.join(".local/share")))?;
    Some(data.join("coracle"))
}

/// Makes the directory private: it holds setuid files of images and other people's secrets (A32).
fn open_state(root: &Path) -> Result<(), EngineError> {
    if let Some(parent) = root.parent() {
        fs_err::create_dir_all(parent).map_err(EngineError::State)?;
    }
    match std::fs::DirBuilder::new().mode(0o700).create(root) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(EngineError::State(error));
        }
        _ => {}
    }
    let meta = fs_err::metadata(root).map_err(EngineError::State)?;
    if meta.uid() != rustix::process::geteuid().as_raw() {
        return Err(EngineError::ForeignState { path: root.to_owned(), owner: meta.uid() });
    }
    if meta.mode() & 0o077 != 0 {
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        fs_err::set_permissions(root, private).map_err(EngineError::State)?;
    }
    Ok(())
}
