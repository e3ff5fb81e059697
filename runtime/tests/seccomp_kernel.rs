//! The default filter in a real kernel. A filter binds one thread, so each case has its own.

use std::os::fd::AsFd;
use std::process::Command;

use coracle_runtime::caps::{CapSet, parse};
use coracle_runtime::{defaults, seccomp};
use nix::sched::CloneFlags;
use rustix::io::Errno;
use rustix::mount::{FsOpenFlags, MountFlags, OpenTreeFlags};
use rustix::net::{AddressFamily, Protocol, SocketType, socket};

/// Runs `case` in a thread under the default filter for these capabilities.
fn under_filter<T: Send + 'static>(capabilities: CapSet, case: impl FnOnce() -> T + Send + 'static) -> T {
    let profile = seccomp::default_profile(capabilities);
    let programs = seccomp::compile(&profile).expect("compile");
    std::thread::spawn(move || {
        rustix::thread::set_no_new_privs(true).expect("no_new_privs");
        seccomp::install(&programs, seccomp::flags(&profile)).expect("install");
        case()
    })
    .join()
    .expect("the thread lives under the filter")
}

fn open_socket(family: u16, protocol: u32) -> Result<(), Errno> {
    let protocol = std::num::NonZeroU32::new(protocol).map(Protocol::from_raw);
    socket(AddressFamily::from_raw(family), SocketType::DGRAM, protocol).map(drop)
}

#[test]
fn section7_ordinary_work_goes_on() {
    under_filter(defaults::capabilities(), || {
        // glibc tries clone3 first: it must fall back, for threads and for processes.
        assert_eq!(std::thread::spawn(|| 7).join().expect("a thread"), 7);
        let output = Command::new("/bin/sh").args(["-c", "echo hi | cat"]).output().expect("a process");
        assert_eq!(output.stdout, b"hi\n");
        for family in [AddressFamily::UNIX, AddressFamily::INET, AddressFamily::INET6, AddressFamily::NETLINK] {
            assert_eq!(socket(family, SocketType::DGRAM, None).map(drop), Ok(()), "{family:?}");
        }
        assert_eq!(nix::sched::unshare(CloneFlags::CLONE_FILES), Ok(()));
        assert!(nix::sys::personality::get().is_ok());
        let file = tempfile::tempfile().expect("a file");
        assert!(file.metadata().expect("statx").len() == 0);
    });
}

#[test]
fn section7_refusals() {
    under_filter(defaults::capabilities(), || {
        let perm = Some(nix::errno::Errno::EPERM);
        for flag in [
            CloneFlags::CLONE_NEWUSER,
            CloneFlags::CLONE_NEWNS,
            CloneFlags::CLONE_NEWNET,
            CloneFlags::CLONE_NEWPID,
            CloneFlags::CLONE_NEWIPC,
            CloneFlags::CLONE_NEWUTS,
            CloneFlags::CLONE_NEWCGROUP,
        ] {
            assert_eq!(nix::sched::unshare(flag).err(), perm, "{flag:?}");
        }
        let own = fs_err::File::open("/proc/self/ns/uts").expect("own namespace");
        assert_eq!(nix::sched::setns(own.file().as_fd(), CloneFlags::empty()).err(), perm);
        let mount = rustix::mount::mount("none", "/nonexistent", "tmpfs", MountFlags::empty(), None);
        assert_eq!(mount, Err(Errno::PERM));
        assert_eq!(rustix::mount::fsopen("tmpfs", FsOpenFlags::empty()).err(), Some(Errno::PERM));
        let tree = rustix::mount::open_tree(rustix::fs::CWD, "/", OpenTreeFlags::empty());
        assert_eq!(tree.err(), Some(Errno::PERM));
        assert_eq!(nix::unistd::pivot_root("/nonexistent", "/nonexistent").err(), perm);
        let randomise = nix::sys::personality::Persona::ADDR_NO_RANDOMIZE;
        assert_eq!(nix::sys::personality::set(randomise).err(), perm);
    });
}

#[test]
fn section7_socket_families() {
    under_filter(defaults::capabilities(), || {
        for family in [3_u16, 9, 15, 21, 29, 31, 33, 38, 40, 43, 44] {
            assert_eq!(open_socket(family, 1), Err(Errno::AFNOSUPPORT), "family {family}");
        }
        assert_eq!(open_socket(17, 3), Err(Errno::PERM), "AF_PACKET");
        assert_eq!(open_socket(16, 9), Err(Errno::AFNOSUPPORT), "NETLINK_AUDIT, which useradd asks for");
    });
}

#[test]
fn the_kernel_takes_the_profile_of_every_capability() {
    for capability in CapSet::known().iter() {
        under_filter(CapSet::EMPTY.with(capability), || {});
    }
    let admin = defaults::capabilities().with(parse("SYS_ADMIN").expect("a capability"));
    let answer = under_filter(admin, || nix::sched::unshare(CloneFlags::CLONE_NEWUSER));
    // The kernel itself answers: a thread cannot leave the user namespace of its process.
    assert_eq!(answer, Err(nix::errno::Errno::EINVAL));
}
