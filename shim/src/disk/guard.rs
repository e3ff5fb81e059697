//! The process that mounts the filesystem and outlives its servers.
//!
//! It holds /dev/fuse, so requests wait while there is no server. It ends with the mount, or when a
//! server cannot be replaced: before Linux 6.9 requests that a dead server had taken are lost.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{Error, Read, Result, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use coracle_runtime::fork::fork;
use coracle_runtime::userns;
use rustix::fs::{
    AtFlags, CWD, FlockOperation, MemfdFlags, Mode, OFlags, StatxFlags, flock, fstat, memfd_create, open, statx,
};
use rustix::io::{Errno, write};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::process::{
    DumpableBehavior, Pid, PidfdFlags, Resource, Rlimit, Signal, chdir, chroot, fchdir, getrlimit, pidfd_open,
    set_dumpable_behavior, set_parent_process_death_signal, setrlimit, setsid,
};
use rustix::thread::{
    CapabilitiesSecureBits, LinkNameSpaceType, move_into_link_name_space, set_capabilities_secure_bits,
};

use super::account::{BLOCK_BYTES, Limits};
use super::filter::Filter;
use super::serve::{STATE_RESEND, Serving, serve};
use super::teller::Teller;
use super::usage::{Phase, Usage};
use super::{IN_USE, ORPHANS, READY, memory, watch};

/// A server that dies sooner than this has done nothing.
const SHORT_LIFE: Duration = Duration::from_millis(20);
/// So many in a row, which take a second or two, mean that the next one will die, too. Somebody who kills each one as soon
/// as it has answered does not come to so many by accident.
const SHORT_LIVES_MAX: u32 = 200;

/// PROC_USER_INIT_INO of the kernel's proc_ns.h, USER_NS_INIT_INO of linux/nsfs.h since 6.18.
const FIRST_USER_NAMESPACE: u64 = 0xEFFF_FFFD;

/// Is the guard's whole life: says on standard output that it is ready, or why not.
pub fn guard(arguments: &[OsString]) -> Result<()> {
    let [kind, arguments @ ..] = arguments else { return Err(Errno::INVAL.into()) };
    let opened = Opened::from(arguments);
    match kind.to_str() {
        Some("passthrough") => told(opened.and_then(begin))?.keep_serving(),
        Some("memory") => told(opened.and_then(|opened| {
            enter_user_namespace(&opened.user)?;
            memory::mount_limited(&opened.mounts, &opened.mount_point, opened.bytes, opened.inodes)
        })),
        Some("watch") => told(opened.and_then(|opened| {
            enter_user_namespace(&opened.user)?;
            confine(&opened.root)?;
            Ok(opened)
        }))?
        .watch(),
        _ => Err(Errno::INVAL.into()),
    }
}

/// Says how it went; the starter reads until the end.
fn told<T>(begun: Result<T>) -> Result<T> {
    let answer = match &begun {
        Ok(_) => READY.to_owned(),
        Err(error) => error.to_string(),
    };
    std::io::stdout().write_all(answer.as_bytes())?;
    std::io::stdout().flush()?;
    // Nobody may open anything by now: the input is /dev/null.
    rustix::stdio::dup2_stdout(rustix::stdio::stdin())?;
    begun
}

/// Is everything that is opened while the caller's paths mean something.
struct Opened {
    user: OwnedFd,
    mounts: OwnedFd,
    init: OwnedFd,
    root: OwnedFd,
    volumes: Vec<OwnedFd>,
    usage: File,
    mount_point: PathBuf,
    bytes: u64,
    inodes: u64,
}

/// Is a mounted filesystem.
struct Mounted {
    device: OwnedFd,
    root: OwnedFd,
    volumes: Vec<OwnedFd>,
    usage: File,
    state: File,
    limits: Limits,
    first_namespace: bool,
    filter: Filter,
    /// Ends the connection whoever holds /dev/fuse, where the host has its control filesystem mounted.
    abort: Option<File>,
}

fn named(what: &str) -> impl Fn(Errno) -> Error {
    move |errno| Error::other(format!("{what}: {errno}"))
}

impl Opened {
    fn from(arguments: &[OsString]) -> Result<Self> {
        let [backing, mount_point, usage, numbers @ ..] = arguments else {
            return Err(Errno::INVAL.into());
        };
        let [pid, bytes, inodes, volumes @ ..] = numbers else { return Err(Errno::INVAL.into()) };
        let number = |text: &OsString| text.to_str().and_then(|text| text.parse::<u64>().ok()).ok_or(Errno::INVAL);
        let (pid, bytes, inodes) = (number(pid)?, number(bytes)?, number(inodes)?);
        // A terminal's signals are for the container.
        setsid().map_err(named("make session"))?;
        let opened = |path: &Path, flags| open(path, flags | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR);
        let usage = opened(Path::new(usage), OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW)
            .map_err(named("open usage file"))?;
        let root = opened(Path::new(backing), OFlags::RDONLY | OFlags::DIRECTORY).map_err(named("open disk"))?;
        let volumes = volumes
            .iter()
            .map(|path| opened(Path::new(path), OFlags::RDONLY | OFlags::DIRECTORY).map_err(named("open volume")));
        let volumes = volumes.collect::<Result<Vec<_>>>()?;
        // Somebody who finds it unlocked and not ended knows that nobody serves any more.
        flock(&usage, FlockOperation::NonBlockingLockExclusive).map_err(|errno| match errno {
            Errno::WOULDBLOCK => Error::other(IN_USE),
            errno => named("lock usage file")(errno),
        })?;
        let namespace = |name: &str| {
            opened(Path::new(&format!("/proc/{pid}/ns/{name}")), OFlags::RDONLY).map_err(named("open namespace"))
        };
        let (user, mounts) = (namespace("user")?, namespace("mnt")?);
        let init = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)?;
        Ok(Self {
            user,
            mounts,
            init: pidfd_open(init, PidfdFlags::empty()).map_err(named("open init"))?,
            root,
            volumes,
            usage: File::from(usage),
            mount_point: mount_point.into(),
            bytes,
            inodes,
        })
    }

    fn watch(self) -> Result<()> {
        let trees: Vec<OwnedFd> = [self.root].into_iter().chain(self.volumes).collect();
        watch::watch(&trees, &self.usage, (self.bytes, self.inodes), &self.init)
    }
}

fn begin(opened: Opened) -> Result<Mounted> {
    let Opened { user, mounts, root, volumes, usage, mount_point, bytes, inodes, .. } = opened;
    enter_user_namespace(&user)?;
    let first_namespace = rustix::fs::stat("/proc/self/ns/user")?.st_ino == FIRST_USER_NAMESPACE;
    // Opened here, because the kernel wants the opener's user namespace to be the mount's.
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let device = open("/dev/fuse", flags, Mode::empty()).map_err(named("open /dev/fuse"))?;
    let (mut number, tell) = std::io::pipe()?;
    mount_in(&mounts, || {
        let numbers = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        mount_at(&mount_point, "fuse", &format!("{numbers},default_permissions,allow_other"))?;
        // Nobody answers yet, so nothing may be asked.
        let found = statx(CWD, &mount_point, AtFlags::STATX_DONT_SYNC, StatxFlags::empty())?;
        write(&tell, &found.stx_dev_minor.to_ne_bytes()).map(drop)
    })?;
    let mut connection = [0; size_of::<u32>()];
    number.read_exact(&mut connection)?;
    let abort = format!("/sys/fs/fuse/connections/{}/abort", u32::from_ne_bytes(connection));
    let abort = open(abort, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).ok().map(File::from);
    let filter = Filter::new()?;
    // The command line and the mount needed far more than waiting for the end of a server does.
    coracle_runtime::memory::release_program();
    confine(&root)?;
    let state = memfd_create("coracle-disk", MemfdFlags::CLOEXEC)?;
    let limits = Limits { blocks: bytes / BLOCK_BYTES, inodes };
    Ok(Mounted { device, root, volumes, usage, state: File::from(state), limits, first_namespace, filter, abort })
}

/// Becomes root of the container's user namespace, unless it has none of its own.
fn enter_user_namespace(user: &OwnedFd) -> Result<()> {
    let (own, theirs) = (rustix::fs::stat("/proc/self/ns/user")?, fstat(user)?);
    if (own.st_dev, own.st_ino) == (theirs.st_dev, theirs.st_ino) {
        return Ok(());
    }
    userns::enter(user.as_fd()).map_err(|failure| Error::other(failure.to_string()))
}

/// Mounts in another mount namespace, by a child that goes there: the mount must end with it.
pub fn mount_in(mounts: &OwnedFd, work: impl FnOnce() -> rustix::io::Result<()>) -> Result<()> {
    let child = fork(|| match enter_mounts(mounts).and_then(|()| work()) {
        Ok(()) => 0,
        Err(errno) => errno.raw_os_error(),
    })?;
    match child.wait()?.code {
        0 => Ok(()),
        code => Err(named("mount")(Errno::from_raw_os_error(code))),
    }
}

fn enter_mounts(mounts: &OwnedFd) -> rustix::io::Result<()> {
    move_into_link_name_space(mounts.as_fd(), Some(LinkNameSpaceType::Mount))?;
    // Where root makes no user namespace, the new mounts are still the host's peers.
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
}

/// Mounts one filesystem.
pub fn mount_at(mount_point: &Path, kind: &str, data: &str) -> rustix::io::Result<()> {
    let data = CString::new(data).map_err(|_| Errno::INVAL)?;
    mount("coracle", mount_point, kind, MountFlags::NOSUID | MountFlags::NODEV, &*data)
}

/// Gives up what a server does not need.
fn confine(root: &OwnedFd) -> Result<()> {
    let files = getrlimit(Resource::Nofile);
    // Fewer are enough, more are faster.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: files.maximum, maximum: files.maximum });
    set_capabilities_secure_bits(CapabilitiesSecureBits::NO_SETUID_FIXUP).map_err(named("keep capabilities"))?;
    // Nothing is reached but through the disk's own descriptor.
    fchdir(root).map_err(named("enter disk"))?;
    chroot(".").map_err(named("enter disk"))?;
    chdir("/").map_err(named("enter disk"))?;
    // The container's root has our ids and all capabilities in our namespace.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(named("hide"))
}

impl Mounted {
    fn keep_serving(&self) -> Result<()> {
        let (mut takeovers, mut short_lives) = (0, 0);
        let mut teller = Teller::start(self.device(), &self.filter)?;
        loop {
            if teller.is_gone() {
                teller.finish()?;
                teller = Teller::start(self.device(), &self.filter)?;
            }
            let begin = Instant::now();
            let exit = fork(|| i32::from(self.serve_once(takeovers, &teller).is_err()))?.wait()?;
            if exit.signal.is_none() && exit.code == 0 {
                return teller.finish();
            }
            short_lives = if begin.elapsed() < SHORT_LIFE { short_lives + 1 } else { 0 };
            let mut resend = [0];
            let known = self.state.read_exact_at(&mut resend, STATE_RESEND).is_ok();
            if !known || resend == [0] || short_lives > SHORT_LIVES_MAX {
                return self.give_up();
            }
            takeovers += 1;
        }
    }

    fn serve_once(&self, takeovers: u32, teller: &Teller) -> Result<()> {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        serve(Serving {
            device: self.device(),
            root: self.root.try_clone()?,
            volumes: self.volumes.iter().map(OwnedFd::try_clone).collect::<Result<_>>()?,
            limits: self.limits,
            state: self.state.try_clone()?,
            usage: self.usage.try_clone()?,
            takeovers,
            first_namespace: self.first_namespace,
            filter: &self.filter,
            teller,
        })
    }

    fn device(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }

    /// Ends the filesystem; the container gets an error instead of waiting for ever.
    fn give_up(&self) -> Result<()> {
        let lost = |last| Usage { phase: Phase::Lost, ..last }.write(&self.usage);
        let written = Usage::of(&self.usage).map_or(Ok(()), lost);
        // A teller may wait in the kernel for somebody whom only the server could answer, and no signal ends that: the
        // descriptor that it holds would keep all others waiting, too.
        if let Some(abort) = &self.abort {
            (&*abort).write_all(b"1")?;
        }
        written?;
        Err(Error::other(format!("the server of {} cannot be replaced", ORPHANS.to_string_lossy())))
    }
}
