//! Where helper programs of the host are.

use std::path::PathBuf;

use rustix::fs::{Access, FileType, access, stat};

/// What is searched when the caller has no PATH.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin";

/// Finds a program in the caller's PATH; relative directories in it do not count.
#[expect(clippy::disallowed_methods, reason = "PATH is where every program of the host is found")]
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
    let is_program = |path: &PathBuf| {
        let kind = stat(path).map(|stat| FileType::from_raw_mode(stat.st_mode));
        kind == Ok(FileType::RegularFile) && access(path, Access::EXEC_OK).is_ok()
    };
    std::env::split_paths(&path).filter(|dir| dir.is_absolute()).map(|dir| dir.join(name)).find(is_program)
}
