//! What an administrator sets up once, and the book about it.
//!
//! ```text
//! /etc/coracle/disk.json             the places: a directory, whose it is, and its slots
//! /var/lib/coracle/disk/<uid>/<n>    a slot that is in use: the path of what uses it; the directory is the user's
//! ```
//! A slot's limit is the kernel's, so a user who writes nonsense into the claims takes room from nobody else.

use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use coracle_runtime::quota;
use fs_err::File;
use fs_err::os::unix::fs::OpenOptionsExt;
use rustix::fs::{FlockOperation, flock, statfs};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::{DiskSize, QuotaError};

const BOOK: &str = "/etc/coracle/disk.json";
const CLAIMS: &str = "/var/lib/coracle/disk";
/// The form of the book.
const VERSION: u32 = 1;
/// Numbers that people rarely give to projects themselves.
const FIRST: u64 = 1_000_000;

/// Names a filesystem that can keep limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Filesystem {
    Ext4,
    Xfs,
    Btrfs,
}

/// Is a directory where limits were set up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Place {
    pub path: PathBuf,
    pub filesystem: Filesystem,
    /// Whose slots they are.
    pub user: u32,
    pub bytes: u64,
    pub inodes: u64,
    /// The first project or quota group.
    pub first: u64,
    /// How many there are; none on XFS, where every project has the default.
    pub count: u64,
}

/// Is what is to be set up.
#[derive(Debug, Clone)]
pub struct Setup {
    pub path: PathBuf,
    pub user: u32,
    pub size: DiskSize,
    pub count: u64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Book {
    version: u32,
    places: Vec<Place>,
}

/// Tells which of the filesystems a path is on.
pub fn filesystem(path: &Path) -> Result<Option<Filesystem>, QuotaError> {
    let found = statfs(path).map_err(|errno| QuotaError::io(path)(errno.into()))?;
    // Magic numbers of statfs(2).
    Ok(match found.f_type {
        0xEF53 => Some(Filesystem::Ext4),
        0x5846_5342 => Some(Filesystem::Xfs),
        0x9123_683E => Some(Filesystem::Btrfs),
        _ => None,
    })
}

/// Lists what was set up on this host.
pub fn places() -> Result<Vec<Place>, QuotaError> {
    let path = Path::new(BOOK);
    match fs_err::read(path) {
        Ok(text) => {
            let book: Book = serde_json::from_slice(&text)
                .map_err(|source| QuotaError::Configuration { path: path.to_owned(), source })?;
            Ok(book.places)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(QuotaError::Prepare { path: path.to_owned(), source }),
    }
}

/// Lists the caller's places above a state directory.
pub fn own_places(root: &Path) -> Result<Vec<Place>, QuotaError> {
    let real = fs_err::canonicalize(root).map_err(QuotaError::io(root))?;
    let (user, found) = (rustix::process::getuid().as_raw(), filesystem(&real)?);
    let ours = |place: &Place| place.user == user && Some(place.filesystem) == found && real.starts_with(&place.path);
    Ok(places()?.into_iter().filter(ours).collect())
}

/// Is a slot that was claimed.
pub struct Claim(PathBuf);

impl Claim {
    /// Frees the slot again.
    pub fn give_back(self) {
        let _ = fs_err::remove_file(self.0);
    }
}

fn claims_of(user: u32) -> PathBuf {
    Path::new(CLAIMS).join(user.to_string())
}

/// Claims a slot for as long as one of `holders` exists; `None` when it is in use.
pub fn claim(place: &Place, number: u64, holders: &[&Path]) -> Result<Option<Claim>, QuotaError> {
    let directory = claims_of(place.user);
    let path = directory.join(number.to_string());
    let lock = File::open(&directory).map_err(QuotaError::io(&directory))?;
    rustix::io::retry_on_intr(|| flock(&lock, FlockOperation::LockExclusive))
        .map_err(|errno| QuotaError::io(&directory)(errno.into()))?;
    if is_used(&path) {
        return Ok(None);
    }
    let mut file = fs_err::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&path)
        .map_err(QuotaError::io(&path))?;
    for holder in holders {
        let line = [holder.as_os_str().as_encoded_bytes(), b"\0"].concat();
        file.write_all(&line).map_err(QuotaError::io(&path))?;
    }
    Ok(Some(Claim(path)))
}

/// Says whether what claimed a slot is there, under one of its names.
pub fn is_used(claim: &Path) -> bool {
    let holders = fs_err::read(claim).unwrap_or_default();
    let mut holders = holders.split(|byte| *byte == 0).filter(|holder| !holder.is_empty());
    holders.any(|holder| fs_err::symlink_metadata(std::ffi::OsStr::from_bytes(holder)).is_ok())
}

/// Counts the slots of a place that are in use; 0 for who may not look.
pub fn used_slots(place: &Place) -> usize {
    let directory = claims_of(place.user);
    (place.first..place.first + place.count).filter(|number| is_used(&directory.join(number.to_string()))).count()
}

/// Gives what a set-up would be: the place that is there already, or a new one.
pub fn plan(wanted: &Setup) -> Result<Place, QuotaError> {
    let path = fs_err::canonicalize(&wanted.path).map_err(QuotaError::io(&wanted.path))?;
    let Some(filesystem) = filesystem(&path)? else {
        let found = statfs(&path).map_or(0, |found| found.f_type);
        return Err(QuotaError::OtherFilesystem { path, found: format!("of type {found:#x}") });
    };
    let places = places()?;
    let size = wanted.size;
    // Another size, or a larger number, is another place with numbers of its own.
    let (user, bytes, inodes, count) = match filesystem {
        Filesystem::Xfs => (wanted.user, size.bytes, size.inodes(), 0),
        _ => (wanted.user, size.bytes, size.inodes(), wanted.count),
    };
    let same = |place: &&Place| {
        (&place.path, place.user, place.bytes, place.inodes, place.count) == (&path, user, bytes, inodes, count)
    };
    let first = places.iter().map(|place| place.first + place.count).max().unwrap_or(FIRST);
    let known = places.iter().find(same).cloned();
    Ok(known.unwrap_or(Place { path: path.clone(), filesystem, user, bytes, inodes, first, count }))
}

/// Sets a place up, as root: limits, book and claims. Slots of what is gone are freed. Done twice it changes nothing.
pub fn setup(wanted: &Setup) -> Result<Place, QuotaError> {
    let place = plan(wanted)?;
    limit(&place)?;
    let mut book = Book { version: VERSION, places: places()? };
    if !book.places.contains(&place) {
        // XFS has one default.
        book.places.retain(|other| place.filesystem != Filesystem::Xfs || other.path != place.path);
        book.places.push(place.clone());
        publish(&book)?;
    }
    prepare_claims(&place)?;
    Ok(place)
}

/// Has the kernel keep the limits.
fn limit(place: &Place) -> Result<(), QuotaError> {
    let dir = File::open(&place.path).map_err(QuotaError::io(&place.path))?;
    let failed = |errno: Errno| match (errno, place.filesystem) {
        // Not switched on: ESRCH of quotactl(2), EOPNOTSUPP where the kernel has none.
        (Errno::SRCH | Errno::NOSYS | Errno::OPNOTSUPP, Filesystem::Ext4) => QuotaError::NotEnabled {
            path: place.path.clone(),
            fix: "unmount it, tune2fs -O quota,project -Q prjquota DEVICE, mount it with -o prjquota".to_owned(),
        },
        (Errno::SRCH | Errno::NOSYS | Errno::OPNOTSUPP, Filesystem::Xfs) => {
            QuotaError::NotEnabled { path: place.path.clone(), fix: "unmount it, mount it with -o prjquota".to_owned() }
        }
        _ => QuotaError::io(&place.path)(errno.into()),
    };
    let numbers = place.first..place.first + place.count;
    match place.filesystem {
        // Project 0 of XFS has everybody's default.
        Filesystem::Xfs => quota::set_project_limit(&dir, 0, place.bytes, place.inodes).map_err(failed),
        Filesystem::Ext4 => numbers.into_iter().try_for_each(|number| {
            let project = u32::try_from(number).map_err(|_| failed(Errno::RANGE))?;
            quota::set_project_limit(&dir, project, place.bytes, place.inodes).map_err(failed)
        }),
        Filesystem::Btrfs => {
            quota::enable_groups(&dir).map_err(failed)?;
            numbers
                .into_iter()
                .try_for_each(|number| quota::make_group(&dir, quota::group(1, number), place.bytes).map_err(failed))
        }
    }
}

fn publish(book: &Book) -> Result<(), QuotaError> {
    let path = Path::new(BOOK);
    let failed = |source| QuotaError::Configuration { path: path.to_owned(), source };
    let text = serde_json::to_vec_pretty(book).map_err(failed)?;
    let draft = path.with_extension("new");
    make_directory(Path::new("/etc/coracle"), 0o755)?;
    fs_err::write(&draft, text).map_err(QuotaError::io(&draft))?;
    fs_err::set_permissions(&draft, PermissionsExt::from_mode(0o644)).map_err(QuotaError::io(&draft))?;
    fs_err::rename(&draft, path).map_err(QuotaError::io(path))
}

/// Makes the user's directory of claims, and takes away those of what is gone.
fn prepare_claims(place: &Place) -> Result<(), QuotaError> {
    let directory = claims_of(place.user);
    for path in [Path::new("/var/lib/coracle"), Path::new(CLAIMS)] {
        make_directory(path, 0o755)?;
    }
    make_directory(&directory, 0o700)?;
    chown(&directory, Some(place.user), None).map_err(QuotaError::io(&directory))?;
    let entries = fs_err::read_dir(&directory).map_err(QuotaError::io(&directory))?;
    for claim in entries.flatten().map(|entry| entry.path()).filter(|claim| !is_used(claim)) {
        fs_err::remove_file(&claim).map_err(QuotaError::io(&claim))?;
    }
    Ok(())
}

fn make_directory(path: &Path, mode: u32) -> Result<(), QuotaError> {
    match fs_err::create_dir_all(path) {
        Ok(()) => fs_err::set_permissions(path, PermissionsExt::from_mode(mode)).map_err(QuotaError::io(path)),
        Err(source) => Err(QuotaError::Prepare { path: path.to_owned(), source }),
    }
}
