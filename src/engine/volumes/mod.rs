//! Volumes: directories that outlive containers.
//!
//! ```text
//! volumes/<name>/
//!   lock          flock, held while the volume is filled or taken away
//!   volume.json   labels, when it was made, for which container if nobody named it
//!   data/         what containers see
//!   fresh         there until the first container has used it: data/ may still be filled from its image
//!   filling/      an image's files on their way to data/; of no use when its maker was killed
//!   limit/ usage  of one with a limit of its own, see src/engine/quota/directories.rs
//! volumes/.new-*  a volume that is being made     volumes/.gone-*  one that is being removed
//! ```
//! Invariants: a volume appears and goes away by one rename; data/ is filled by one rename and never
//! again, so what a person or a container put there is never overwritten (A45). A volume is in use
//! as long as a container's record names it, whether that runs or not: the record is written before
//! the volume is made ready, and a removal looks at the records after it has the lock.

mod fill;
mod usage;

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use fs_err::File;
use fs_err::os::unix::fs::OpenOptionsExt;
use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

pub use fill::{make_anonymous, make_ready};
pub use usage::users_of;

use super::container::{self, ContainerError};
use super::events::{self, Kind};
use super::quota::{self, Charge, DiskLimit};
use super::{Engine, EngineError, elsewhere};

/// Docker's grammar bounds nothing; this leaves room in NAME_MAX for what is put before a name.
const NAME_BYTES_MAX: usize = 200;
/// The form of volume.json.
const VERSION: u32 = 1;
/// Begins the names of volumes that are being made and removed; no volume's name begins with a dot.
const NEW_PREFIX: &str = ".new-";
const GONE_PREFIX: &str = ".gone-";
/// How long a draft is taken for one that somebody is making; making one takes milliseconds.
const YOUNG_S: u64 = 60;
/// How often a volume that disappears while it is opened is looked for again.
const OPEN_ATTEMPTS_MAX: usize = 16;

/// Says what is wrong with a volume.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("invalid volume name {0:?}: letters, digits, and _ . - after the first, {NAME_BYTES_MAX} at most")]
    InvalidName(String),
    #[error("no such volume: {0}")]
    Unknown(String),
    #[error("volume {name} is used by container {container}")]
    InUse { name: String, container: String },
    #[error("volume {name} comes and goes too often to be used")]
    Unsteady { name: String },
    #[error("cannot {op} {}", path.display())]
    Io { op: &'static str, path: PathBuf, source: std::io::Error },
    #[error("volume {name} was written by a newer coracle (form {version})")]
    Newer { name: String, version: u32 },
    #[error("{} is damaged", path.display())]
    Damaged { path: PathBuf, source: serde_json::Error },
}

impl VolumeError {
    fn io(op: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { op, path, source }
    }
}

/// Is what is kept about a volume.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VolumeRecord {
    version: u32,
    pub name: String,
    /// Nanoseconds since the epoch.
    pub created_ns: u64,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The container that it was made for, when nobody named it.
    #[serde(default)]
    pub anonymous_for: Option<String>,
    /// What may be written at most.
    #[serde(default)]
    pub disk: Option<DiskLimit>,
}

/// Is a volume that is here.
#[derive(Debug, Clone)]
pub struct Volume {
    pub record: VolumeRecord,
    path: PathBuf,
}

impl Volume {
    /// Gives the directory that is the volume's alone.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the directory that containers see.
    pub fn data(&self) -> PathBuf {
        self.path.join("data")
    }
}

/// Checks a name by the grammar that is safe as a file name and in every output.
pub fn check_name(name: &str) -> Result<(), VolumeError> {
    let clean = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'));
    let first = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if clean && first && name.len() <= NAME_BYTES_MAX { Ok(()) } else { Err(VolumeError::InvalidName(name.to_owned())) }
}

/// Gives the directory of a volume's data, whether it is there or not.
pub fn data_path(root: &Path, name: &str) -> PathBuf {
    root.join("volumes").join(name).join("data")
}

/// Makes a volume unless it is there; gives it, and whether it is new.
pub fn create(
    root: &Path,
    name: &str,
    labels: BTreeMap<String, String>,
    anonymous_for: Option<&str>,
    charge: Charge<'_>,
) -> Result<(Volume, bool), EngineError> {
    check_name(name)?;
    if let Some(volume) = find(root, name)? {
        return Ok((volume, false));
    }
    let all = root.join("volumes");
    private_dir(&all, true)?;
    let draft = all.join(format!("{NEW_PREFIX}{}", container::new_id()?));
    private_dir(&draft, false)?;
    let mut record = VolumeRecord {
        version: VERSION,
        name: name.to_owned(),
        created_ns: super::prepare::now_ns(),
        labels,
        anonymous_for: anonymous_for.map(str::to_owned),
        disk: None,
    };
    let path = all.join(name);
    let made = quota::charge(root, &draft, &path, charge).map_err(EngineError::from).and_then(|disk| {
        record.disk = disk;
        fill_draft(&draft, &record)?;
        match renameat_with(CWD, &draft, CWD, &path, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(Some(Volume { record, path })),
            Err(Errno::EXIST | Errno::NOTEMPTY) => Ok(None),
            Err(errno) => Err(VolumeError::io("publish", &path)(errno.into()).into()),
        }
    });
    match made {
        Ok(Some(volume)) => {
            events::emit(root, Kind::Volume, "create", name, &[("driver", "local")]);
            Ok((volume, true))
        }
        other => {
            let _ = coracle_images::remove_tree(&draft);
            other?;
            // Somebody else was faster.
            Ok((find(root, name)?.ok_or_else(|| VolumeError::Unsteady { name: name.to_owned() })?, false))
        }
    }
}

fn fill_draft(draft: &Path, record: &VolumeRecord) -> Result<(), VolumeError> {
    let failed = |op| VolumeError::io(op, draft);
    let data = draft.join("data");
    let mode = |mode| <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(mode);
    // Containers reach data/ by its descriptor, so nobody needs to get through the directory above it.
    fs_err::create_dir(&data).and_then(|()| fs_err::set_permissions(&data, mode(0o755))).map_err(failed("make"))?;
    for name in ["lock", "fresh"] {
        private_file(&draft.join(name)).map_err(failed("make"))?;
    }
    let text = serde_json::to_vec(record)
        .map_err(|source| VolumeError::Damaged { path: draft.join("volume.json"), source })?;
    let mut file = private_file(&draft.join("volume.json")).map_err(failed("make"))?;
    file.write_all(&text).and_then(|()| file.sync_all()).map_err(failed("write"))
}

/// Finds a volume by its whole name.
pub fn find(root: &Path, name: &str) -> Result<Option<Volume>, VolumeError> {
    check_name(name)?;
    let path = root.join("volumes").join(name);
    let text = match fs_err::read(path.join("volume.json")) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(VolumeError::Io { op: "read", path, source }),
    };
    let record: VolumeRecord =
        serde_json::from_slice(&text).map_err(|source| VolumeError::Damaged { path: path.clone(), source })?;
    if record.version > VERSION {
        return Err(VolumeError::Newer { name: name.to_owned(), version: record.version });
    }
    Ok(Some(Volume { record, path }))
}

/// Lists the volumes by name; one that cannot be read is left out.
pub fn list(root: &Path) -> Vec<Volume> {
    let entries = fs_err::read_dir(root.join("volumes")).into_iter().flatten();
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut all: Vec<Volume> = names.filter_map(|name| find(root, &name).ok().flatten()).collect();
    all.sort_by(|a, b| a.record.name.cmp(&b.record.name));
    all
}

/// Is a volume that nobody else fills or removes.
struct Locked {
    path: PathBuf,
    _lock: File,
}

/// Waits for the lock of a volume; None when there is no such volume.
fn lock(root: &Path, name: &str) -> Result<Option<Locked>, VolumeError> {
    let path = root.join("volumes").join(name);
    let file = path.join("lock");
    for _ in 0..OPEN_ATTEMPTS_MAX {
        let open = match File::open(&file) {
            Ok(open) => open,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(VolumeError::Io { op: "open", path: file, source }),
        };
        rustix::io::retry_on_intr(|| flock(&open, FlockOperation::LockExclusive))
            .map_err(|errno| VolumeError::io("lock", &file)(errno.into()))?;
        // Removed, and perhaps made anew, while we waited?
        let same = |a: &std::fs::Metadata, b: &std::fs::Metadata| {
            use std::os::unix::fs::MetadataExt;
            (a.dev(), a.ino()) == (b.dev(), b.ino())
        };
        let held = open.metadata().map_err(VolumeError::io("examine", &file))?;
        if fs_err::metadata(&file).is_ok_and(|found| same(&held, &found)) {
            return Ok(Some(Locked { path, _lock: open }));
        }
    }
    Err(VolumeError::Unsteady { name: name.to_owned() })
}

/// Takes a volume away unless a container other than `but` uses it.
///
/// # Errors
/// [`VolumeError::Unknown`] and [`VolumeError::InUse`] leave everything as it was.
pub fn remove(engine: &Engine, name: &str, but: Option<&str>) -> Result<(), EngineError> {
    check_name(name)?;
    let gone = unname(engine.root(), name, but)?;
    events::emit(engine.root(), Kind::Volume, "destroy", name, &[("driver", "local")]);
    let idmap = engine.idmap(coracle_runtime::UserNs::Auto)?;
    elsewhere::call(&idmap, || {
        coracle_images::remove_tree(&gone).map_err(VolumeError::io("remove", &gone))?;
        Ok(())
    })
}

/// Renames a volume so that nobody finds it any more; gives where it is to be removed.
fn unname(root: &Path, name: &str, but: Option<&str>) -> Result<PathBuf, EngineError> {
    let unknown = || VolumeError::Unknown(name.to_owned());
    let locked = lock(root, name)?.ok_or_else(unknown)?;
    if let Some(user) = users_of(root, name).into_iter().find(|user| Some(user.as_str()) != but) {
        let container = container::short_id(&user).to_owned();
        return Err(VolumeError::InUse { name: name.to_owned(), container }.into());
    }
    let gone = root.join("volumes").join(format!("{GONE_PREFIX}{}", container::new_id()?));
    fs_err::rename(&locked.path, &gone).map_err(VolumeError::io("remove", &locked.path))?;
    Ok(gone)
}

/// Names the volumes that were made for a container because it has to have some.
pub fn anonymous_of(root: &Path, record: &super::record::Record) -> Vec<String> {
    let names = record.mounts.iter().filter_map(|mount| mount.name.clone());
    let anonymous =
        |name: &String| find(root, name).ok().flatten().is_some_and(|volume| volume.record.anonymous_for.is_some());
    names.filter(anonymous).collect()
}

/// Removes those of these volumes that no container uses any more (`rm -v`).
pub fn remove_unused(engine: &Engine, names: &[String]) -> Result<(), EngineError> {
    for name in names {
        match remove(engine, name, None) {
            Err(EngineError::Volume(VolumeError::InUse { .. } | VolumeError::Unknown(_))) => {}
            other => other?,
        }
    }
    Ok(())
}

/// Takes away the volumes that were made for a container, which is going away; the caller is root of
/// the user namespace that owns the files. One that another container has taken over stays.
pub fn remove_anonymous(root: &Path, id: &str, names: &[String]) -> Result<(), ContainerError> {
    for name in names {
        let ours = find(root, name).ok().flatten().is_some_and(|found| found.record.anonymous_for.is_some());
        if !ours {
            continue;
        }
        if let Ok(gone) = unname(root, name, Some(id)) {
            coracle_images::remove_tree(&gone)?;
        }
    }
    Ok(())
}

/// Gives what a volume's files take on disk.
pub fn size(engine: &Engine, volume: &Volume) -> Result<u64, EngineError> {
    let idmap = engine.idmap(coracle_runtime::UserNs::Auto)?;
    elsewhere::call(&idmap, || Ok(super::usage::tree_bytes(&volume.data())))
}

/// Removes what killed commands left half made and half removed.
pub fn sweep(engine: &Engine) -> Result<(), EngineError> {
    let entries = fs_err::read_dir(engine.root().join("volumes")).into_iter().flatten();
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let left: Vec<PathBuf> = paths.filter(|path| is_rubbish(path)).collect();
    if left.is_empty() {
        return Ok(());
    }
    let idmap = engine.idmap(coracle_runtime::UserNs::Auto)?;
    elsewhere::call(&idmap, || {
        for path in &left {
            coracle_images::remove_tree(path).map_err(VolumeError::io("remove", path))?;
        }
        Ok(())
    })
}

fn is_rubbish(path: &Path) -> bool {
    let name = path.file_name().map(std::ffi::OsStr::as_encoded_bytes).unwrap_or_default();
    let age = || fs_err::metadata(path).ok()?.modified().ok()?.elapsed().ok();
    name.starts_with(GONE_PREFIX.as_bytes())
        || (name.starts_with(NEW_PREFIX.as_bytes()) && age().is_some_and(|age| age.as_secs() >= YOUNG_S))
}

fn private_dir(path: &Path, may_exist: bool) -> Result<(), VolumeError> {
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if may_exist && error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        made => made.map_err(VolumeError::io("make", path)),
    }
}

fn private_file(path: &Path) -> std::io::Result<File> {
    fs_err::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}
