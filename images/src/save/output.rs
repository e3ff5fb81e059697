//! Where files of an archive or layout go.

use std::collections::HashSet;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use fs_err::os::unix::fs::OpenOptionsExt;

use super::SaveError;

/// A tar archive or a directory that is being written.
pub(super) enum Output {
    Archive { builder: tar::Builder<Box<dyn Write>>, place: Option<(PathBuf, PathBuf)>, directories: HashSet<PathBuf> },
    Directory { path: PathBuf, is_new: bool, written: Vec<PathBuf> },
}

impl Output {
    /// Writes an archive to standard output.
    pub fn stdout() -> Output {
        Output::Archive {
            builder: tar::Builder::new(Box::new(io::stdout().lock())),
            place: None,
            directories: HashSet::new(),
        }
    }

    /// Writes an archive to a file, which gets its name at the end. A pipe or device is written to.
    pub fn file(path: &Path) -> Result<Output, SaveError> {
        let failed = |path: &Path| {
            let path = path.to_path_buf();
            move |source| SaveError::Io { op: "create", path, source }
        };
        let mut options = fs_err::OpenOptions::new();
        options.write(true);
        if fs_err::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
            let file = options.open(path).map_err(failed(path))?;
            return Ok(Output::Archive {
                builder: tar::Builder::new(Box::new(file)),
                place: None,
                directories: HashSet::new(),
            });
        }
        let mut name = std::ffi::OsString::from(".");
        name.push(path.file_name().unwrap_or_default());
        name.push(format!(".{}", std::process::id()));
        let temporary = path.with_file_name(name);
        let file = options.create(true).truncate(true).mode(0o600).open(&temporary).map_err(failed(path))?;
        let writer = io::BufWriter::with_capacity(1 << 18, file);
        let place = Some((temporary, path.to_path_buf()));
        Ok(Output::Archive { builder: tar::Builder::new(Box::new(writer)), place, directories: HashSet::new() })
    }

    /// Writes files into a new or empty directory.
    pub fn directory(path: &Path) -> Result<Output, SaveError> {
        let failed = |source| SaveError::Io { op: "create", path: path.to_path_buf(), source };
        let is_new = match fs_err::create_dir(path) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(failed(error)),
        };
        if !is_new && fs_err::read_dir(path).map_err(failed)?.next().is_some() {
            return Err(SaveError::Exists { path: path.to_path_buf() });
        }
        Ok(Output::Directory { path: path.to_path_buf(), is_new, written: Vec::new() })
    }

    /// Writes one file; `content` must have exactly that size.
    pub fn put(&mut self, name: &str, size_bytes: u64, content: &mut dyn Read) -> Result<(), SaveError> {
        match self {
            Output::Archive { builder, directories, .. } => {
                put_parents(builder, directories, Path::new(name))?;
                let mut header = header(tar::EntryType::Regular, 0o644, size_bytes);
                builder
                    .append_data(&mut header, name, content.take(size_bytes))
                    .map_err(|source| SaveError::Write { source })
            }
            Output::Directory { path, written, .. } => {
                let path = path.join(name);
                let mut write = || {
                    path.parent().map_or(Ok(()), fs_err::create_dir_all)?;
                    let mut file = fs_err::OpenOptions::new().write(true).create_new(true).open(&path)?;
                    io::copy(content, &mut file).map(|_| ())
                };
                let result = write().map_err(|source| SaveError::Io { op: "write", path: path.clone(), source });
                written.push(path);
                result
            }
        }
    }

    /// Gives the file its name.
    pub fn finish(self) -> Result<(), SaveError> {
        let Output::Archive { builder, place, .. } = self else { return Ok(()) };
        let write = builder.into_inner().and_then(|mut writer| writer.flush());
        let Some((temporary, path)) = place else { return write.map_err(|source| SaveError::Write { source }) };
        let renamed = write.and_then(|()| fs_err::rename(&temporary, &path));
        renamed.map_err(|source| {
            // The first failure is the one to tell.
            let _ = fs_err::remove_file(&temporary);
            SaveError::Io { op: "write", path, source }
        })
    }

    /// Takes away what was written, as far as that is possible.
    pub fn discard(self) {
        match self {
            Output::Archive { place: Some((temporary, _)), .. } => drop(fs_err::remove_file(temporary)),
            Output::Archive { .. } => {}
            Output::Directory { path, is_new: true, .. } => drop(crate::removal::remove_tree(&path)),
            Output::Directory { written, .. } => {
                for path in written {
                    drop(fs_err::remove_file(path));
                }
            }
        }
    }
}

/// Lists the directories of a file, topmost first, each once. skopeo gives directories that are not
/// listed to root, which an ordinary user may not.
fn put_parents(
    builder: &mut tar::Builder<Box<dyn Write>>,
    known: &mut HashSet<PathBuf>,
    name: &Path,
) -> Result<(), SaveError> {
    let parents: Vec<&Path> = name.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()).collect();
    for parent in parents.into_iter().rev() {
        if known.insert(parent.to_path_buf()) {
            let mut header = header(tar::EntryType::Directory, 0o755, 0);
            builder.append_data(&mut header, parent, io::empty()).map_err(|source| SaveError::Write { source })?;
        }
    }
    Ok(())
}

/// The same images make the same archive for the same user.
fn header(kind: tar::EntryType, mode: u32, size_bytes: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size_bytes);
    header.set_mode(mode);
    header.set_mtime(0);
    // skopeo gives what it unpacks to the owner stated here, which must be allowed.
    header.set_uid(rustix::process::geteuid().as_raw().into());
    header.set_gid(rustix::process::getegid().as_raw().into());
    header
}
