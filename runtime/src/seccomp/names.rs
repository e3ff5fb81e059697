//! System call names and numbers per architecture, from the `syscalls` crate's tables.
//!
//! Invariant: a number that no table names is *unknown* and is answered with ENOSYS, as an older
//! kernel would, so that programs fall back instead of failing (runc #2750).

use std::collections::HashMap;
use std::ops::RangeInclusive;

use oci_spec::runtime::Arch;
use seccompiler::TargetArch;

/// An instruction set whose system calls a filter judges; `linux/audit.h` calls it an audit arch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// 64-bit x86, without its x32 mode.
    X86_64,
    /// 32-bit x86, as run by a 64-bit kernel.
    X86,
    /// 64-bit ARM.
    Aarch64,
    /// 32-bit ARM (EABI), as run by a 64-bit kernel.
    Arm,
}

/// Numbers that the generic table names for 32-bit machines only; a 64-bit kernel has none of them.
const AARCH64_PHANTOMS: RangeInclusive<u32> = 403..=423;

/// libseccomp and profiles say `newfstatat` where the generic kernel table says `fstatat`.
const STAT_NAMES: (&str, &str) = ("newfstatat", "fstatat");

/// The names and numbers of one architecture.
pub struct Names {
    numbers: HashMap<&'static str, u32>,
    gaps: Vec<RangeInclusive<u32>>,
}

impl Architecture {
    /// The architecture that this build runs on.
    pub const fn native() -> Self {
        if cfg!(target_arch = "aarch64") { Self::Aarch64 } else { Self::X86_64 }
    }

    /// The architecture for its name in a `config.json`; `None` where this runtime has no table.
    ///
    /// x32 is `None` on purpose: its numbers are always answered with ENOSYS.
    pub fn from_spec(arch: Arch) -> Option<Self> {
        match arch {
            Arch::ScmpArchNative => Some(Self::native()),
            Arch::ScmpArchX86_64 => Some(Self::X86_64),
            Arch::ScmpArchX86 => Some(Self::X86),
            Arch::ScmpArchAarch64 => Some(Self::Aarch64),
            Arch::ScmpArchArm => Some(Self::Arm),
            _ => None,
        }
    }

    /// Says whether the running kernel can execute programs of this architecture at all.
    pub fn is_possible(self) -> bool {
        match Self::native() {
            Self::Aarch64 | Self::Arm => matches!(self, Self::Aarch64 | Self::Arm),
            Self::X86_64 | Self::X86 => matches!(self, Self::X86_64 | Self::X86),
        }
    }

    /// The value in `seccomp_data.arch` (linux/audit.h: ELF machine, plus 64-bit and endian bits).
    pub const fn audit(self) -> u32 {
        match self {
            Self::X86_64 => 0xc000_003e,
            Self::X86 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
            Self::Arm => 0x4000_0028,
        }
    }

    /// What seccompiler is told; it only decides the arch check, which is ours (see `compile`).
    pub(super) const fn target(self) -> TargetArch {
        match self {
            Self::X86_64 | Self::X86 => TargetArch::x86_64,
            Self::Aarch64 | Self::Arm => TargetArch::aarch64,
        }
    }

    /// The table of this architecture.
    pub fn names(self) -> Names {
        macro_rules! table {
            ($module:ident) => {
                Names::new(syscalls::$module::Sysno::last().id(), |id| {
                    syscalls::$module::Sysno::new(id).map(|sysno| sysno.name())
                })
            };
        }
        match self {
            Self::X86_64 => table!(x86_64),
            Self::X86 => table!(x86),
            Self::Aarch64 => table!(aarch64).without(AARCH64_PHANTOMS),
            Self::Arm => table!(arm),
        }
    }
}

impl Names {
    fn new(last: i32, name_of: impl Fn(usize) -> Option<&'static str>) -> Self {
        let last = u32::try_from(last).unwrap_or(0);
        let mut numbers = HashMap::with_capacity(last as usize + 1);
        let mut gaps: Vec<RangeInclusive<u32>> = Vec::new();
        for number in 0..=last {
            if let Some(name) = name_of(number as usize) {
                numbers.insert(name, number);
            } else {
                match gaps.last_mut() {
                    Some(gap) if *gap.end() + 1 == number => *gap = *gap.start()..=number,
                    _ => gaps.push(number..=number),
                }
            }
        }
        if let Some(number) = numbers.remove(STAT_NAMES.1) {
            numbers.insert(STAT_NAMES.0, number);
        }
        Self { numbers, gaps }
    }

    fn without(mut self, phantoms: RangeInclusive<u32>) -> Self {
        self.numbers.retain(|_, number| !phantoms.contains(number));
        self.gaps.push(phantoms);
        self
    }

    /// The number of a system call, `None` where the architecture has none of that name.
    pub fn number(&self, name: &str) -> Option<u32> {
        self.numbers.get(name).copied()
    }

    /// All names with their numbers, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u32)> {
        self.numbers.iter().map(|(name, number)| (*name, *number))
    }

    /// Ranges below the last number that belong to no system call.
    pub fn gaps(&self) -> &[RangeInclusive<u32>] {
        &self.gaps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_agree_with_libc() {
        let names = Architecture::native().names();
        for (name, number) in [
            ("read", libc::SYS_read),
            ("clone3", libc::SYS_clone3),
            ("seccomp", libc::SYS_seccomp),
            ("newfstatat", libc::SYS_newfstatat),
            ("umount2", libc::SYS_umount2),
            ("mseal", libc::SYS_mseal),
        ] {
            assert_eq!(names.number(name).map(i64::from), Some(number), "{name}");
        }
        assert_eq!(names.number("no_such_call"), None);
    }

    #[test]
    fn gaps_hold_no_name_and_are_few() {
        for arch in [Architecture::X86_64, Architecture::X86, Architecture::Aarch64] {
            let names = arch.names();
            assert!(names.gaps().len() < 8, "{arch:?}: {:?}", names.gaps());
            for (name, number) in names.iter() {
                assert!(!names.gaps().iter().any(|gap| gap.contains(&number)), "{name}");
            }
        }
        assert!(Architecture::X86_64.names().gaps().contains(&(337..=423)), "where x86 skipped ahead");
    }
}
