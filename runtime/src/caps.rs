//! The five capability sets of a container process: reading names, and putting the sets on.
//!
//! A set is plain data ([`CapSet`], one bit per capability) until [`CapabilitySets::limit_bounding`]
//! and [`CapabilitySets::apply`] hand it to the kernel. Nothing here ever adds a capability that was
//! not asked for: a name the kernel lacks, or one this process may not pass on, makes the result
//! smaller and is reported, never larger.
//!
//! Invariant: after [`CapabilitySets::apply`] the inheritable and the ambient set hold exactly what
//! was asked for, which is nothing by default (capabilities(7); CVE-2022-24769 and its relatives
//! came from runtimes that left inheritable filled).

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;

use ::caps::{CapSet as KernelSet, CapsHashSet};
use oci_spec::runtime::{Capabilities, Capability as SpecCapability, LinuxCapabilities};
use rustix::thread::{CapabilitySet as KernelBits, capability_is_in_bounding_set, remove_capability_from_bounding_set};

use crate::sys::SysError;

pub use ::caps::Capability;

/// The kernel keeps capabilities in 64-bit masks, so no capability number reaches this.
const CAPABILITY_BITS: u8 = 64;

/// A set of capabilities, one bit per capability number.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct CapSet(u64);

/// The five sets of capabilities(7) for one process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CapabilitySets {
    /// What the process and its children can ever gain by executing a file.
    pub bounding: CapSet,
    /// What the kernel checks.
    pub effective: CapSet,
    /// What the process may make effective.
    pub permitted: CapSet,
    /// What survives an execve of a file that has the same bit inheritable.
    pub inheritable: CapSet,
    /// What survives an execve of any ordinary file as a user other than root.
    pub ambient: CapSet,
}

/// A capability request that is refused before anything is started.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CapError {
    /// The name is no capability that this build knows.
    #[error("unknown capability {name:?}")]
    Unknown {
        /// The name as it was written.
        name: String,
    },
    /// capset(2) refuses an effective set that is not within the permitted one.
    #[error("effective capabilities {extra} are not in the permitted set")]
    EffectiveNotPermitted {
        /// What is effective but not permitted.
        extra: CapSet,
    },
}

/// Reads one capability name in Docker's spelling.
///
/// Upper or lower case, with or without `CAP_`. `ALL` is no capability: see [`adjust`].
pub fn parse(name: &str) -> Result<Capability, CapError> {
    let unknown = || CapError::Unknown { name: name.to_owned() };
    // to_uppercase would also fold letters like U+0131; no capability name leaves ASCII.
    if !name.is_ascii() {
        return Err(unknown());
    }
    Capability::from_str(&::caps::to_canonical(name)).map_err(|_| unknown())
}

/// Applies `--cap-add` and `--cap-drop` to a set, with Docker's meaning of `ALL`.
///
/// With `--cap-add=ALL` the dropped names are taken away from everything; with `--cap-drop=ALL`
/// only the added names remain; else names are dropped first, so one that is in both lists stays.
pub fn adjust(base: CapSet, add: &[String], drop: &[String]) -> Result<CapSet, CapError> {
    let (add_all, added) = parse_list(add)?;
    let (drop_all, dropped) = parse_list(drop)?;
    Ok(if drop_all && !add_all {
        added
    } else if add_all {
        CapSet::known().without(dropped)
    } else {
        base.without(dropped).union(added)
    })
}

fn parse_list(names: &[String]) -> Result<(bool, CapSet), CapError> {
    let mut all = false;
    let mut set = CapSet::EMPTY;
    for name in names {
        if name.eq_ignore_ascii_case("ALL") {
            all = true;
        } else {
            set = set.with(parse(name)?);
        }
    }
    Ok((all, set))
}

impl CapSet {
    /// The set without any capability.
    pub const EMPTY: Self = Self(0);

    /// Every capability that has a name in this build.
    pub fn known() -> Self {
        ::caps::all().into_iter().collect()
    }

    /// The capabilities that this process holds and could pass on.
    pub fn held() -> Result<Self, SysError> {
        let held = ::caps::read(None, KernelSet::Permitted).map_err(|_| last_error("capget", "permitted"))?;
        Ok(held.into_iter().collect())
    }

    /// This set and one more.
    pub fn with(self, capability: Capability) -> Self {
        Self(self.0 | capability.bitmask())
    }

    /// What is in either set.
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What is in both sets.
    pub fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// What is in this set and not in the other.
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Says whether the capability is in the set.
    pub fn contains(self, capability: Capability) -> bool {
        self.0 & capability.bitmask() != 0
    }

    /// Says whether nothing is in the set.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The mask as `/proc/PID/status` prints it.
    pub fn bits(self) -> u64 {
        self.0
    }

    /// The capabilities in the order of their numbers.
    pub fn iter(self) -> impl Iterator<Item = Capability> {
        let mut all: Vec<Capability> = ::caps::all().into_iter().collect();
        all.sort_by_key(Capability::index);
        all.into_iter().filter(move |capability| self.contains(*capability))
    }

    /// The set in the form that a `config.json` holds.
    pub fn to_spec(self) -> Capabilities {
        self.iter()
            .filter_map(|capability| {
                let name = capability.to_string();
                SpecCapability::from_str(name.strip_prefix("CAP_").unwrap_or(&name)).ok()
            })
            .collect()
    }

    fn from_spec(set: Option<&HashSet<SpecCapability>>) -> Result<Self, CapError> {
        let mut result = Self::EMPTY;
        for capability in set.into_iter().flatten() {
            result = result.with(parse(&capability.to_string())?);
        }
        Ok(result)
    }

    fn to_kernel(self) -> CapsHashSet {
        self.iter().collect()
    }
}

impl FromIterator<Capability> for CapSet {
    fn from_iter<I: IntoIterator<Item = Capability>>(capabilities: I) -> Self {
        capabilities.into_iter().fold(Self::EMPTY, Self::with)
    }
}

impl fmt::Display for CapSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, capability) in self.iter().enumerate() {
            if position > 0 {
                f.write_str(" ")?;
            }
            write!(f, "{capability}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for CapSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CapSet({:#x}: {self})", self.0)
    }
}

impl CapabilitySets {
    /// The sets of a process that may use `granted` as root of its user namespace.
    ///
    /// A process that is started as another user keeps them in its bounding set alone, because the
    /// kernel empties the rest when it executes a file (A30).
    pub fn granting(granted: CapSet) -> Self {
        Self { bounding: granted, effective: granted, permitted: granted, ..Self::default() }
    }

    /// Reads `process.capabilities`; an absent object means no capability at all.
    pub fn from_spec(spec: Option<&LinuxCapabilities>) -> Result<Self, CapError> {
        let Some(spec) = spec else {
            return Ok(Self::default());
        };
        let sets = Self {
            bounding: CapSet::from_spec(spec.bounding().as_ref())?,
            effective: CapSet::from_spec(spec.effective().as_ref())?,
            permitted: CapSet::from_spec(spec.permitted().as_ref())?,
            inheritable: CapSet::from_spec(spec.inheritable().as_ref())?,
            ambient: CapSet::from_spec(spec.ambient().as_ref())?,
        };
        let extra = sets.effective.without(sets.permitted);
        if extra.is_empty() { Ok(sets) } else { Err(CapError::EffectiveNotPermitted { extra }) }
    }

    /// The sets in the form that a `config.json` holds.
    pub fn to_spec(self) -> LinuxCapabilities {
        let mut spec = LinuxCapabilities::default();
        spec.set_bounding(Some(self.bounding.to_spec()))
            .set_effective(Some(self.effective.to_spec()))
            .set_permitted(Some(self.permitted.to_spec()))
            .set_inheritable(Some(self.inheritable.to_spec()))
            .set_ambient(Some(self.ambient.to_spec()));
        spec
    }

    /// Splits off what cannot be granted by a process that holds `held`.
    ///
    /// The runtime specification wants a warning and a smaller set here, not a failure. An ambient
    /// capability that is not both permitted and inheritable cannot be granted either
    /// (capabilities(7), PR_CAP_AMBIENT_RAISE). Returns the reachable sets and what they lack.
    pub fn grantable(self, held: CapSet) -> (Self, CapSet) {
        let permitted = self.permitted.intersection(held);
        let inheritable = self.inheritable.intersection(held);
        let reachable = Self {
            bounding: self.bounding.intersection(held),
            effective: self.effective.intersection(held),
            permitted,
            inheritable,
            ambient: self.ambient.intersection(permitted).intersection(inheritable),
        };
        let lost = self
            .bounding
            .union(self.permitted)
            .union(self.inheritable)
            .without(held)
            .union(self.ambient.without(reachable.ambient));
        (reachable, lost)
    }

    /// Drops from the bounding set whatever is not to stay in it.
    ///
    /// Needs CAP_SETPCAP, so it comes before the user id changes and before [`Self::apply`].
    pub fn limit_bounding(&self) -> Result<(), SysError> {
        for number in 0..CAPABILITY_BITS {
            let bit = 1_u64 << number;
            if self.bounding.0 & bit != 0 {
                continue;
            }
            // By number and not by name, so that a capability younger than this build goes too.
            let kernel_bit = KernelBits::from_bits_retain(bit);
            match capability_is_in_bounding_set(kernel_bit) {
                Ok(true) => remove_capability_from_bounding_set(kernel_bit).map_err(|errno| {
                    SysError::new("prctl(PR_CAPBSET_DROP)", number.to_string(), errno.raw_os_error())
                })?,
                Ok(false) => {}
                // The kernel's last capability lies below this number.
                Err(_) => break,
            }
        }
        Ok(())
    }

    /// Asks the kernel to keep the permitted set when the user id changes away from 0.
    ///
    /// execve clears the request again (prctl(2), PR_SET_KEEPCAPS).
    pub fn keep_across_setuid() -> Result<(), SysError> {
        ::caps::securebits::set_keepcaps(true).map_err(|_| last_error("prctl(PR_SET_KEEPCAPS)", "1"))
    }

    /// Puts the four thread sets on; the last step before seccomp and execve, after setresuid.
    ///
    /// Order: ambient is emptied, effective is raised within what is still permitted, then lowered
    /// together with permitted, and ambient comes last because it needs permitted and inheritable.
    pub fn apply(&self) -> Result<(), SysError> {
        ::caps::clear(None, KernelSet::Ambient)
            .map_err(|_| last_error("prctl(PR_CAP_AMBIENT_CLEAR_ALL)", "ambient"))?;
        // Inheritable may exceed permitted only with CAP_SETPCAP effective, which a change of user
        // id has switched off; it is still permitted here, so switch it on for this one call.
        let working = self.effective.with(Capability::CAP_SETPCAP).intersection(CapSet::held()?);
        let steps = [
            (KernelSet::Effective, "effective", working),
            (KernelSet::Inheritable, "inheritable", self.inheritable),
            (KernelSet::Effective, "effective", self.effective),
            (KernelSet::Permitted, "permitted", self.permitted),
        ];
        for (set, name, value) in steps {
            ::caps::set(None, set, &value.to_kernel()).map_err(|_| last_error("capset", name))?;
        }
        for capability in self.ambient.iter() {
            ::caps::raise(None, KernelSet::Ambient, capability)
                .map_err(|_| last_error("prctl(PR_CAP_AMBIENT_RAISE)", &capability.to_string()))?;
        }
        Ok(())
    }
}

/// The errno of the call that the caps crate made last; the crate itself keeps only a sentence.
fn last_error(op: &'static str, target: &str) -> SysError {
    let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EPERM);
    SysError::new(op, target, errno)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    fn set(list: &[&str]) -> CapSet {
        list.iter().map(|name| parse(name).expect("a known name")).collect()
    }

    #[test]
    fn c09_names() {
        for name in ["CAP_NET_RAW", "net_raw", "NET_RAW", "cap_net_raw", "Cap_Net_Raw"] {
            assert_eq!(parse(name), Ok(Capability::CAP_NET_RAW), "{name}");
        }
        for name in ["", "CAP_", "CAP_FOO", "ALL", "CAP_CAP_KILL", "kıll", "KILL ", "KILL\n", "0"] {
            assert_eq!(parse(name), Err(CapError::Unknown { name: name.to_owned() }), "{name:?}");
        }
    }

    #[test]
    fn add_and_drop_follow_docker() {
        let base = set(&["CHOWN", "KILL"]);
        let check = |add: &[&str], drop: &[&str], expect: CapSet| {
            assert_eq!(adjust(base, &names(add), &names(drop)), Ok(expect), "+{add:?} -{drop:?}");
        };
        check(&[], &[], base);
        check(&["net_raw"], &["KILL"], set(&["CHOWN", "NET_RAW"]));
        check(&[], &["ALL"], CapSet::EMPTY);
        check(&["SYS_TIME"], &["all"], set(&["SYS_TIME"]));
        check(&["ALL"], &["SYS_ADMIN"], CapSet::known().without(set(&["SYS_ADMIN"])));
        check(&["KILL"], &["KILL"], base);
        check(&["ALL"], &["ALL"], CapSet::known());
        assert!(adjust(base, &names(&["CAP_FOO"]), &[]).is_err());
    }

    #[test]
    fn spec_round_trip_keeps_every_capability() {
        let sets = CapabilitySets::granting(CapSet::known());
        assert_eq!(CapabilitySets::from_spec(Some(&sets.to_spec())), Ok(sets));
        assert_eq!(CapabilitySets::from_spec(None), Ok(CapabilitySets::default()));
    }

    #[test]
    fn c09_effective_outside_permitted_is_refused() {
        let spec =
            CapabilitySets { effective: set(&["KILL", "CHOWN"]), permitted: set(&["KILL"]), ..Default::default() };
        assert_eq!(
            CapabilitySets::from_spec(Some(&spec.to_spec())),
            Err(CapError::EffectiveNotPermitted { extra: set(&["CHOWN"]) })
        );
    }

    #[test]
    fn a22_granting_leaves_inheritable_and_ambient_empty() {
        let sets = CapabilitySets::granting(CapSet::known());
        assert!(sets.inheritable.is_empty() && sets.ambient.is_empty());
    }

    #[test]
    fn c09_what_cannot_be_granted_is_split_off() {
        let wanted = CapabilitySets {
            bounding: set(&["KILL", "SYS_ADMIN"]),
            effective: set(&["KILL", "SYS_ADMIN"]),
            permitted: set(&["KILL", "SYS_ADMIN"]),
            inheritable: set(&["KILL"]),
            ambient: set(&["KILL", "CHOWN"]),
        };
        let (reachable, lost) = wanted.grantable(set(&["KILL", "CHOWN"]));
        assert_eq!(reachable.effective, set(&["KILL"]));
        assert_eq!(reachable.ambient, set(&["KILL"]), "CHOWN is neither permitted nor inheritable");
        assert_eq!(lost, set(&["SYS_ADMIN", "CHOWN"]));
    }
}
