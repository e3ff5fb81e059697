//! Asks compiled filters call by call, through the interpreter.

mod default_profile;
mod libseccomp;
mod rules;

use oci_spec::runtime::LinuxSeccomp;

use super::compile::{Program, compile};
use super::interpreter::{Call, judge};
use super::names::{Architecture, Names};
use super::profile::default_profile;
use crate::caps::CapSet;

const ALLOW: u32 = 0x7fff_0000;
const EPERM: u32 = 0x0005_0001;
const ENOSYS: u32 = 0x0005_0000 + 38;
const EAFNOSUPPORT: u32 = 0x0005_0000 + 97;
const KILL_PROCESS: u32 = 0x8000_0000;
const KILL_THREAD: u32 = 0;

/// A compiled profile that can be asked by name.
struct Filter {
    programs: Vec<Program>,
    names: Names,
    arch: Architecture,
}

impl Filter {
    fn new(profile: &LinuxSeccomp) -> Self {
        let arch = Architecture::native();
        Self { programs: compile(profile).expect("a valid profile"), names: arch.names(), arch }
    }

    fn default_with(capabilities: CapSet) -> Self {
        Self::new(&default_profile(capabilities))
    }

    fn json(text: &str) -> Self {
        Self::new(&parse_profile(text))
    }

    fn number(&self, number: u32, args: &[u64]) -> u32 {
        let mut call = Call { number, arch: self.arch.audit(), args: [0; 6] };
        call.args[..args.len()].copy_from_slice(args);
        judge(&self.programs, &call)
    }

    fn ask(&self, name: &str, args: &[u64]) -> u32 {
        self.number(self.names.number(name).expect(name), args)
    }
}

fn parse_profile(text: &str) -> LinuxSeccomp {
    serde_json::from_str(text).expect("a profile")
}
