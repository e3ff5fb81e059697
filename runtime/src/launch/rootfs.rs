//! The root filesystem: mounted, attached where the caller's own tree hides it from nobody, and made `/`.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, fstat, stat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount, move_mount, unmount,
};
use rustix::process::{chroot, fchdir, pivot_root};

use super::fault::Fault;
use super::inside::{is_directory, open_host};
use super::join::{self, Joined};
use super::mounting::{attach, clone_tree, explain};
use super::options::Rootfs;
use crate::failure::{LaunchFailure, Stage};
use crate::plan::flags;
use crate::sys::{MountAttr, mount_setattr};

const STAGE: Stage = Stage::Rootfs;

/// fsconfig(2) takes strings of up to 255 bytes.
const CONFIG_STRING_MAX: usize = 255;
/// mount(2) takes one page of options, its end included.
const MOUNT_DATA_MAX: usize = 4095;

/// Keeps mounts of the container from reaching the host, before the first one is made.
///
/// A mount namespace that came with its user namespace is a slave of the host's already.
pub(crate) fn detach_propagation(propagation: u64, owns_namespace: bool) -> Result<(), LaunchFailure> {
    if owns_namespace && propagation == libc::MS_SLAVE {
        return Ok(());
    }
    let all = open_host(Path::new("/")).fault(STAGE, "open", "/")?;
    let before = if propagation == libc::MS_PRIVATE { libc::MS_PRIVATE } else { libc::MS_SLAVE };
    let attr = MountAttr { propagation: before, ..MountAttr::default() };
    mount_setattr(all.as_fd(), true, &attr).fault(STAGE, "set propagation of", "/")
}

/// Mounts the root filesystem and returns its top.
pub(crate) fn mount_root(rootfs: &Rootfs) -> Result<OwnedFd, LaunchFailure> {
    match rootfs {
        Rootfs::Directory(path) => {
            let place = check_directory(path)?;
            let tree = clone_tree(path, true)?;
            let attr = MountAttr { propagation: flags::PRIVATE, ..MountAttr::default() };
            mount_setattr(tree.as_fd(), true, &attr).fault(STAGE, "set propagation of", path.display())?;
            attach(&tree, &place).fault(STAGE, "mount root on", path.display())?;
            Ok(tree)
        }
        Rootfs::Overlay { lower, upper, work, volatile } => {
            overlay(lower.iter().map(|path| path.as_path()), upper, work, *volatile)
        }
    }
}

fn check_directory(path: &Path) -> Result<OwnedFd, LaunchFailure> {
    let place = open_host(path).fault(STAGE, "open root", path.display())?;
    if !is_directory(&place).fault(STAGE, "stat", path.display())? {
        return Err(LaunchFailure::new(STAGE, "use as root", path.display(), Errno::NOTDIR));
    }
    let (own, host) = (fstat(&place).fault(STAGE, "stat", path.display())?, stat("/").fault(STAGE, "stat", "/")?);
    if (own.st_dev, own.st_ino) == (host.st_dev, host.st_ino) {
        return Err(LaunchFailure::rule(STAGE, path.display(), "the host's root cannot be a container's"));
    }
    Ok(place)
}

/// A path for fsconfig(2): itself, or a short name of an open descriptor.
struct ShortPath {
    text: Vec<u8>,
    _held: Option<OwnedFd>,
}

fn shorten(path: &Path) -> Result<ShortPath, LaunchFailure> {
    use std::os::fd::AsRawFd;
    let bytes = path.as_os_str().as_encoded_bytes();
    if bytes.len() <= CONFIG_STRING_MAX {
        return Ok(ShortPath { text: bytes.to_vec(), _held: None });
    }
    let held = open_host(path).fault(STAGE, "open", path.display())?;
    let text = format!("/proc/self/fd/{}", held.as_raw_fd()).into_bytes();
    Ok(ShortPath { text, _held: Some(held) })
}

fn overlay<'a>(
    lower: impl DoubleEndedIterator<Item = &'a Path> + Clone,
    upper: &Path,
    work: &Path,
    volatile: bool,
) -> Result<OwnedFd, LaunchFailure> {
    let shown = upper.display();
    let place = open_host(upper).fault(STAGE, "open", &shown)?;
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).fault(STAGE, "open filesystem", "overlay")?;
    let failed = |errno: Errno, op: &str, what: &Path| {
        LaunchFailure::new(STAGE, op, explain(&context, &what.display().to_string()), errno)
    };
    fsconfig_set_string(&context, "source", "overlay").map_err(|errno| failed(errno, "set source for", upper))?;
    // Top first, as overlayfs counts.
    let mut held = Vec::new();
    for (index, layer) in lower.clone().rev().enumerate() {
        let short = shorten(layer)?;
        match fsconfig_set_string(&context, "lowerdir+", short.text.as_slice()) {
            // Before Linux 6.8 there is only the list with colons.
            Err(Errno::INVAL) if index == 0 && layer.is_absolute() && open_host(layer).is_ok() => {
                return old_overlay(lower, upper, work, volatile, &place);
            }
            result => result.map_err(|errno| failed(errno, "add layer", layer))?,
        }
        held.push(short);
    }
    for (key, path) in [("upperdir", upper), ("workdir", work)] {
        let short = shorten(path)?;
        fsconfig_set_string(&context, key, short.text.as_slice())
            .map_err(|errno| failed(errno, &format!("set {key}"), path))?;
        held.push(short);
    }
    // Marks of deleted files are `user.overlay.*` in our layers, whoever mounts them.
    fsconfig_set_flag(&context, "userxattr").map_err(|errno| failed(errno, "set userxattr for", upper))?;
    if volatile {
        fsconfig_set_flag(&context, "volatile").map_err(|errno| failed(errno, "set volatile for", upper))?;
    }
    if let Err(errno) = fsconfig_create(&context) {
        let new = failed(errno, "create overlay on", upper);
        // Before Linux 6.5 overlayfs reads all its options only now, and does not know "lowerdir+".
        return match errno {
            Errno::INVAL => old_overlay(lower, upper, work, volatile, &place).map_err(|_| new),
            _ => Err(new),
        };
    }
    let tree = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
        .map_err(|errno| failed(errno, "mount overlay on", upper))?;
    attach(&tree, &place).fault(STAGE, "mount root on", shown)?;
    Ok(tree)
}

/// The same by mount(2), for kernels whose overlayfs takes its layers as one string.
fn old_overlay<'a>(
    lower: impl DoubleEndedIterator<Item = &'a Path>,
    upper: &Path,
    work: &Path,
    volatile: bool,
    place: &OwnedFd,
) -> Result<OwnedFd, LaunchFailure> {
    use std::os::fd::AsRawFd;
    let data = old_options(lower, upper, work, volatile);
    if data.len() > MOUNT_DATA_MAX {
        return Err(LaunchFailure::rule(STAGE, upper.display(), "has too many layers for this kernel's overlayfs"));
    }
    let data =
        std::ffi::CString::new(data).map_err(|_| Errno::INVAL).fault(STAGE, "mount overlay on", upper.display())?;
    let target = format!("/proc/self/fd/{}", place.as_raw_fd());
    mount("overlay", &target, "overlay", MountFlags::empty(), data.as_c_str()).fault(
        STAGE,
        "mount overlay on",
        upper.display(),
    )?;
    open_host(upper).fault(STAGE, "open root", upper.display())
}

fn old_options<'a>(
    lower: impl DoubleEndedIterator<Item = &'a Path>,
    upper: &Path,
    work: &Path,
    volatile: bool,
) -> Vec<u8> {
    let mut data = b"lowerdir=".to_vec();
    for (index, layer) in lower.rev().enumerate() {
        if index > 0 {
            data.push(b':');
        }
        escape(layer, b"\\:,", &mut data);
    }
    for (key, path) in [(b",upperdir=".as_slice(), upper), (b",workdir=".as_slice(), work)] {
        data.extend_from_slice(key);
        escape(path, b"\\,", &mut data);
    }
    data.extend_from_slice(b",userxattr");
    if volatile {
        data.extend_from_slice(b",volatile");
    }
    data
}

fn escape(path: &Path, special: &[u8], data: &mut Vec<u8>) {
    for byte in path.as_os_str().as_encoded_bytes() {
        if special.contains(byte) {
            data.push(b'\\');
        }
        data.push(*byte);
    }
}

/// Makes the mounted root `/` and drops the host's tree.
pub(crate) fn enter(root: &OwnedFd, no_pivot: bool) -> Result<(), LaunchFailure> {
    fchdir(root).fault(STAGE, "enter", "root")?;
    if no_pivot {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(root, "", CWD, "/", flags).fault(STAGE, "move root to", "/")?;
        chroot(".").fault(STAGE, "chroot to", "root")?;
    } else {
        // Both arguments the same directory: the old root ends up on top of the new one, and
        // taking it away there needs no place inside the container (pivot_root(2), Notes).
        pivot_root(".", ".").fault(STAGE, "pivot to", "root")?;
        unmount(".", UnmountFlags::DETACH).fault(STAGE, "detach", "the host's root")?;
    }
    rustix::process::chdir("/").fault(STAGE, "enter", "/")
}

/// Goes into a mount namespace that others live in, and keeps its own root.
///
/// The finished tree goes along as a copy that is in no mount namespace at all: nothing of it appears to
/// the others, nothing of it is left when the last process that uses it ends, and above its top there is
/// nothing, so that who may chroot(2) cannot climb out of it as out of a directory of theirs. When the
/// last descriptor of such a copy is closed the kernel lets go of it as a whole, mounts and all.
pub(crate) fn carry_into(joined: &Joined) -> Result<(), LaunchFailure> {
    let tree = clone_tree(Path::new("/"), true)?;
    join::enter(joined)?;
    take_root(&tree)
}

/// Makes an open directory this process's root.
pub(crate) fn take_root(root: &OwnedFd) -> Result<(), LaunchFailure> {
    fchdir(root).fault(STAGE, "enter", "root")?;
    chroot(".").fault(STAGE, "chroot to", "root")
}

/// Propagation that the finished root itself was asked to have.
pub(crate) fn share(root: &OwnedFd, propagation: u64) -> Result<(), LaunchFailure> {
    if propagation & (libc::MS_SHARED | libc::MS_UNBINDABLE) == 0 {
        return Ok(());
    }
    let attr = MountAttr { propagation, ..MountAttr::default() };
    mount_setattr(root.as_fd(), false, &attr).fault(STAGE, "set propagation of", "root")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_kernels_get_one_escaped_string() {
        let layers = [Path::new("/l/a"), Path::new("/l/b:c"), Path::new("/l/d,e\\")];
        let text = old_options(layers.into_iter(), Path::new("/u:1"), Path::new("/w,2"), true);
        let expect = r"lowerdir=/l/d\,e\\:/l/b\:c:/l/a,upperdir=/u:1,workdir=/w\,2,userxattr,volatile";
        assert_eq!(String::from_utf8(text).expect("text"), expect);
    }
}
