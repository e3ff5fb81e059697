//! Keeps containers from writing to the program that starts them (CVE-2019-5736).
//!
//! A process of a container can reach the launching program's file through /proc/PID/exe, or by
//! being started from it. Root of a rootless container is the caller, so a file that belongs to the
//! caller has no other protection than not being that file: the program then runs from a sealed copy
//! in memory.

use std::ffi::{CString, OsString};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use nix::fcntl::AtFlags;
use nix::unistd::execveat;
use rustix::fs::{
    MemfdFlags, Mode, OFlags, SealFlags, StatVfsMountFlags, fcntl_add_seals, fcntl_get_seals, fstat, fstatvfs,
    memfd_create, open, sendfile,
};
use rustix::io::Errno;

use crate::container::Identity;

/// Why the program could not be protected.
#[derive(Debug, thiserror::Error)]
#[error("cannot protect the program from its containers: {op}")]
pub struct SealError {
    /// What failed.
    pub op: &'static str,
    /// Why.
    #[source]
    pub source: std::io::Error,
}

const PROGRAM: &str = "/proc/self/exe";
/// What the name begins with that /proc/PID/exe and `ps` show.
const NAME: &str = "coracle";
/// Bytes moved by one call; the kernel's own limit is just under 2 GiB.
const COPY_BYTES_MAX: usize = 1 << 30;
/// `MFD_EXEC` of linux/memfd.h (Linux 6.3): without it `vm.memfd_noexec` may take the right away.
const MFD_EXEC: u32 = 0x10;
/// How often a seal is asked for; the kernel itself waits up to 150 ms for each (memfd_wait_for_pins, mm/memfd.c).
const SEAL_TRIES: u32 = 20;

/// Re-executes this program from a sealed copy in memory if a container could write to its file.
///
/// Call it first in every command that starts a process in a container. It returns when the running
/// program is safe: already sealed, on a read-only filesystem, or owned by nobody a container can be.
/// `sharers` are processes of this program that may run from a copy already: the first one that runs from a copy of
/// this very file lends it, which saves the memory and the time of another.
pub fn ensure_sealed(sharers: impl Iterator<Item = Identity>) -> Result<(), SealError> {
    let file = open(PROGRAM, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(fail("open the program"))?;
    if is_safe(&file).map_err(fail("examine the program"))? {
        return Ok(());
    }
    let name = name_of_copy(&file).map_err(fail("examine the program"))?;
    let copy = match sharers.into_iter().find_map(|sharer| lent_copy(&sharer, &name)) {
        Some(copy) => copy,
        None => sealed_copy(&file, &name)?,
    };
    let args = strings(std::env::args_os());
    let env = strings(std::env::vars_os().map(|(key, value)| {
        let mut entry = key;
        entry.push("=");
        entry.push(value);
        entry
    }));
    match execveat(&copy, c"", &args, &env, AtFlags::AT_EMPTY_PATH) {
        Ok(never) => match never {},
        Err(errno) => Err(fail("execute the copy")(Errno::from_raw_os_error(errno as i32))),
    }
}

/// Whether the running program is a sealed copy in memory.
pub fn is_sealed() -> bool {
    open(PROGRAM, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).is_ok_and(|file| has_seals(&file))
}

fn is_safe(file: &OwnedFd) -> Result<bool, Errno> {
    if has_seals(file) || fstatvfs(file)?.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Ok(true);
    }
    let stat = fstat(file)?;
    let writable_by_others = Mode::from_raw_mode(stat.st_mode).intersects(Mode::WGRP | Mode::WOTH);
    // Root's file in the hands of somebody else: no container of theirs can be root of the host.
    // Any other owner may be one of the subordinate ids, now or tomorrow.
    Ok(stat.st_uid == 0 && !rustix::process::geteuid().is_root() && !writable_by_others)
}

fn has_seals(file: &OwnedFd) -> bool {
    let needed = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    // EINVAL: not a file in memory.
    fcntl_get_seals(file).is_ok_and(|seals| seals.contains(needed))
}

/// Names a copy after the state of the file that it was made of: every write changes it.
fn name_of_copy(file: &OwnedFd) -> Result<String, Errno> {
    let stat = fstat(file)?;
    let changed = (stat.st_mtime, stat.st_mtime_nsec, stat.st_ctime, stat.st_ctime_nsec);
    Ok(format!("{NAME}-{:x}-{:x}-{:x}-{changed:x?}", stat.st_dev, stat.st_ino, stat.st_size).replace([' ', '/'], ""))
}

/// Opens the copy that a process runs from, if it is one of this name.
///
/// The process is one of ours because the caller's own records say so, and it is still that process after its program
/// was opened; so the name and the content are what `sealed_copy` of that process wrote.
fn lent_copy(sharer: &Identity, name: &str) -> Option<OwnedFd> {
    sharer.open().ok()??;
    let path = format!("/proc/{}/exe", sharer.pid);
    let target = fs_err::read_link(&path).ok()?;
    if target.as_os_str() != format!("/memfd:{name} (deleted)").as_str() {
        return None;
    }
    let copy = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    (has_seals(&copy) && sharer.is_alive().is_ok_and(|alive| alive)).then_some(copy)
}

fn sealed_copy(file: &OwnedFd, name: &str) -> Result<OwnedFd, SealError> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let copy = match memfd_create(name, flags | MemfdFlags::from_bits_retain(MFD_EXEC)) {
        Err(Errno::INVAL) => memfd_create(name, flags),
        result => result,
    }
    .map_err(fail("make a file in memory"))?;
    loop {
        match sendfile(&copy, file, None, COPY_BYTES_MAX) {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(fail("copy the program")(errno)),
        }
    }
    seal(&copy).map_err(fail("seal the copy"))?;
    debug_assert!(copy.as_raw_fd() > 2, "the standard streams are open");
    Ok(copy)
}

/// Takes the right to write from everybody.
///
/// EBUSY means that somebody else refers to a page, who might write to it. Nobody who would has this file; but a kernel
/// that moves memory about on a busy machine refers to pages, too, for longer than the kernel waits.
fn seal(copy: &OwnedFd) -> Result<(), Errno> {
    let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    for _ in 1..SEAL_TRIES {
        match fcntl_add_seals(copy, seals) {
            Err(Errno::BUSY) => {}
            result => return result,
        }
    }
    fcntl_add_seals(copy, seals)
}

fn strings(list: impl Iterator<Item = OsString>) -> Vec<CString> {
    // The kernel handed them over as C strings, so none contains a NUL.
    list.filter_map(|text| CString::new(text.into_vec()).ok()).collect()
}

fn fail(op: &'static str) -> impl Fn(Errno) -> SealError {
    move |errno| SealError { op, source: std::io::Error::from_raw_os_error(errno.raw_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustix::pipe::{SpliceFlags, pipe, splice};

    use super::*;

    #[test]
    fn a_copy_whose_pages_are_referred_to_for_a_while_is_sealed() {
        let copy = memfd_create("copy", MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::io::write(&copy, &[1; 4096]).unwrap();
        // A pipe refers to the page itself until it is read.
        let (reader, writer) = pipe().unwrap();
        let spliced = splice(&copy, Some(&mut 0), &writer, None, 4096, SpliceFlags::empty()).unwrap();
        assert_eq!(spliced, 4096);
        let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        assert_eq!(fcntl_add_seals(&copy, seals), Err(Errno::BUSY), "the case is not made");
        let release = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(400));
            drop((reader, writer));
        });
        seal(&copy).unwrap();
        assert!(has_seals(&copy));
        release.join().unwrap();
    }
}
