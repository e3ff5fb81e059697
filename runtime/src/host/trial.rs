//! Finds out by trying, in children that leave nothing behind.

use std::path::Path;

use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;

use crate::failure::{LaunchFailure, Stage, describe};
use crate::idmap::{self, IdMap, IdRange};
use crate::launch::channel::{self, Message};
use crate::launch::fault::Fault;
use crate::launch::{Launched, Rootfs, close_in_child, mount_root};
use crate::sys::{CloneFlags, CloneOptions, clone_process, default_child_signal};

/// How user namespaces are refused.
#[derive(Debug)]
pub(super) enum Refused {
    /// They cannot be created.
    Create(Errno),
    /// They can, and give no rights inside (AppArmor's restriction works so).
    Powerless(LaunchFailure),
}

impl Refused {
    pub(super) fn describe(&self) -> String {
        match self {
            Refused::Create(errno) => describe(errno.raw_os_error()),
            Refused::Powerless(failure) => failure.to_string(),
        }
    }
}

/// Creates a user namespace with a mount namespace and uses both.
pub(super) fn user_namespace() -> Result<(), Refused> {
    try_inside(|| {
        let tmpfs = rustix::mount::fsopen("tmpfs", rustix::mount::FsOpenFlags::FSOPEN_CLOEXEC);
        tmpfs.map(drop).fault(Stage::Mounts, "open filesystem", "tmpfs")
    })
    .map_err(|failure| match failure.stage {
        Stage::Namespaces => Refused::Create(Errno::from_raw_os_error(failure.errno)),
        _ => Refused::Powerless(failure),
    })
}

/// Tries overlayfs in a user namespace, with its layers in this directory: mounts it, changes a file
/// of the lower layer and removes another, as a container would.
pub fn overlay_works(directory: &Path) -> Result<(), LaunchFailure> {
    let failed = |error: &std::io::Error| {
        let errno = Errno::from_io_error(error).unwrap_or(Errno::IO);
        LaunchFailure::new(Stage::Prepare, "make directories in", directory.display(), errno)
    };
    let base = directory.join(format!(".overlay-trial-{}", rustix::process::getpid().as_raw_pid()));
    let made = make_layers(&base).map_err(|error| failed(&error));
    let result = made.and_then(|rootfs| {
        try_inside(|| {
            let root = mount_root(&rootfs)?;
            let shown = directory.display();
            let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC;
            rustix::fs::openat(&root, "changed", flags, Mode::empty())
                .and_then(|file| rustix::io::write(&file, b"new"))
                .fault(Stage::Rootfs, "change a file through overlayfs in", &shown)?;
            rustix::fs::unlinkat(&root, "removed", rustix::fs::AtFlags::empty()).fault(
                Stage::Rootfs,
                "remove a file through overlayfs in",
                &shown,
            )
        })
    });
    // overlayfs leaves a directory of mode 0 in its work directory. It is ours; open it to remove it.
    let _ = rustix::fs::chmod(base.join("work/work"), Mode::RWXU);
    let removed = fs_err::remove_dir_all(&base);
    result.and(removed.map_err(|error| failed(&error)))
}

/// Tries a limit: mounts something limited by `mount`, overlayfs with its upper directory on it, and writes
/// beyond the limit there, all in new user and mount namespaces that nobody else sees.
///
/// The lower directory of `rootfs` has to be there, with a directory `removed` in which is a file `inner`; the other
/// two are there after `mount`.
pub fn limit_holds(
    rootfs: &Rootfs,
    limit_bytes: u64,
    mount: impl FnOnce() -> std::io::Result<()>,
) -> Result<(), LaunchFailure> {
    const REFUSED: [Errno; 2] = [Errno::NOSPC, Errno::DQUOT];
    try_inside(|| {
        mount().map_err(|error| LaunchFailure::rule(Stage::Rootfs, "the limited filesystem", &error.to_string()))?;
        let root = mount_root(rootfs)?;
        let (create, step) = (rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CREATE, [1_u8; 1 << 16]);
        // On Linux before 6.6 overlayfs on tmpfs mounts, and then no directory of the image can be replaced.
        rustix::fs::unlinkat(&root, "removed/inner", AtFlags::empty())
            .and_then(|()| rustix::fs::unlinkat(&root, "removed", AtFlags::REMOVEDIR))
            .and_then(|()| rustix::fs::mkdirat(&root, "removed", Mode::RWXU))
            .fault(Stage::Rootfs, "replace a directory on", "the limited filesystem")?;
        let file = rustix::fs::openat(&root, "filling", create, Mode::RUSR | Mode::WUSR).fault(
            Stage::Rootfs,
            "make a file on",
            "the limited filesystem",
        )?;
        let mut written = 0;
        while written <= limit_bytes {
            match rustix::io::write(&file, &step) {
                Ok(bytes) => written += bytes as u64,
                Err(errno) if REFUSED.contains(&errno) => return Ok(()),
                Err(errno) => return Err(errno).fault(Stage::Rootfs, "write to", "the limited filesystem"),
            }
        }
        Err(LaunchFailure::rule(Stage::Rootfs, "the limited filesystem", "let more than its limit be written"))
    })
}

fn make_layers(base: &Path) -> std::io::Result<Rootfs> {
    let [lower, upper, work] = ["lower", "upper", "work"].map(|name| base.join(name));
    for dir in [base, &lower, &upper, &work] {
        fs_err::create_dir(dir)?;
    }
    fs_err::write(lower.join("changed"), "old")?;
    fs_err::write(lower.join("removed"), "old")?;
    Ok(Rootfs::Overlay { lower: vec![lower], upper, work, volatile: false })
}

/// Runs `attempt` as the only user of a new user namespace with its own mounts.
fn try_inside(attempt: impl FnOnce() -> Result<(), LaunchFailure>) -> Result<(), LaunchFailure> {
    default_child_signal();
    let (ours, theirs) = channel::pair().fault(Stage::Prepare, "make", "channel")?;
    let flags = CloneFlags::USER.with(CloneFlags::MOUNT);
    let cloned = clone_process(&CloneOptions { flags, cgroup: None }, || {
        close_in_child(&ours);
        if !matches!(channel::receive(&theirs), Ok(Some(Message::Mapped))) {
            return 1;
        }
        let message = match attempt() {
            Ok(()) => Message::Ready,
            Err(failure) => Message::Failure(failure),
        };
        i32::from(channel::send(&theirs, &message).is_err())
    })
    .fault(Stage::Namespaces, "create", "user namespace")?;
    let trial = Launched { cloned, channel: ours };
    let result = judge(&trial);
    trial.abandon();
    result
}

fn judge(trial: &Launched) -> Result<(), LaunchFailure> {
    let one = |host: u32| vec![IdRange { container: 0, host, size: 1 }];
    let uids = one(rustix::process::geteuid().as_raw());
    let gids = one(rustix::process::getegid().as_raw());
    idmap::write(trial.cloned.pid, &IdMap { uids, gids })?;
    trial.say(&Message::Mapped)?;
    match channel::receive(&trial.channel).fault(Stage::Prepare, "hear from", "trial")? {
        Some(Message::Ready) => Ok(()),
        Some(Message::Failure(failure)) => Err(failure),
        _ => Err(LaunchFailure::rule(Stage::Prepare, "trial", "ended without a word")),
    }
}

/// Whether a helper can do what root may: setuid root, or file capabilities.
pub(super) fn is_privileged(helper: &Path) -> bool {
    let Ok(stat) = rustix::fs::stat(helper) else {
        return false;
    };
    let setuid = Mode::from_raw_mode(stat.st_mode).contains(Mode::SUID) && stat.st_uid == 0;
    setuid || rustix::fs::getxattr(helper, "security.capability", &mut [0_u8; 64]).is_ok()
}
