//! The system call filter: our default profile as data, and the compiler from profile to BPF.
//!
//! `table` holds the rows, `profile` turns them into the form of a `config.json`, `compile` turns
//! that form, ours or anybody's, into classic BPF through seccompiler, `dispatch` finds a call by
//! its number, and `names` knows the numbers.
//! [`install`] is the only system call here.

mod compile;
mod dispatch;
mod docker;
mod names;
mod profile;
mod table;

#[cfg(test)]
mod interpreter;
#[cfg(test)]
mod tests;

pub use compile::{Program, SeccompError, compile};
pub use docker::{Conditioned, DockerProfileError, read_profile};
pub use names::{Architecture, Names};
pub use profile::{allow_only, default_profile};

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompFilterFlag};

use crate::sys::{SysError, load_filter};

/// Puts the calling thread under the filters, in order; the last call before execve.
///
/// Needs no_new_privs or CAP_SYS_ADMIN in the user namespace. The programs themselves must allow
/// seccomp(2) while more than one is to be installed.
pub fn install(programs: &[Program], flags: u32) -> Result<(), SysError> {
    for program in programs {
        load_filter(program, flags).map_err(|errno| SysError::new("seccomp", "filter", errno.raw_os_error()))?;
    }
    Ok(())
}

/// The flags of a profile as seccomp(2) takes them.
///
/// TSYNC is left out: the calling process has one thread, and the kernel would ask every thread.
pub fn flags(profile: &LinuxSeccomp) -> u32 {
    let bit = |flag: &LinuxSeccompFilterFlag| match flag {
        LinuxSeccompFilterFlag::SeccompFilterFlagLog => FILTER_FLAG_LOG,
        LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => FILTER_FLAG_SPEC_ALLOW,
        LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => FILTER_FLAG_WAIT_KILLABLE_RECV,
        LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
    };
    profile.flags().iter().flatten().fold(0, |flags, flag| flags | bit(flag))
}

/// SECCOMP_FILTER_FLAG_LOG and SECCOMP_FILTER_FLAG_SPEC_ALLOW of linux/seccomp.h.
const FILTER_FLAG_LOG: u32 = 1 << 1;
const FILTER_FLAG_SPEC_ALLOW: u32 = 1 << 2;
/// Linux 5.19; only with a listener.
pub(crate) const FILTER_FLAG_WAIT_KILLABLE_RECV: u32 = 1 << 5;
