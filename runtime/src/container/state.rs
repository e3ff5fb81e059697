//! What is written down about a container, and what is concluded from it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use oci_spec::runtime::{Hooks, Spec};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::identity::Identity;
use crate::cgroup::Cgroup;

/// Where a container is in its life, in the words of the runtime specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Its directory exists and somebody is still making it.
    Creating,
    /// Its first process waits for `start`.
    Created,
    /// Its program runs.
    Running,
    /// Its cgroup is frozen.
    Paused,
    /// Its first process is gone.
    Stopped,
}

/// The content of the file `status`.
///
/// The first fields are those of the specification's state; the rest is ours. The status is not
/// written, because it would be wrong as soon as a process ends.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// Version of the specification that the bundle names.
    pub oci_version: String,
    /// The container's id.
    pub id: String,
    /// The bundle's directory.
    pub bundle: PathBuf,
    /// The bundle's annotations.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// The root filesystem.
    pub rootfs: PathBuf,
    /// When it was created, RFC 3339 in UTC.
    pub created: String,
    /// Its first process.
    pub init: Identity,
    /// The host user who created it.
    pub owner_uid: u32,
    /// The hooks that are still to run: poststart and poststop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hooks: Option<Hooks>,
    /// Its cgroup, in the form that `cgroup::Cgroup` writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cgroup: Option<Value>,
    /// What its standard streams were at create, as a JSON array in a text: crun's form, which
    /// checkpointing tools read.
    #[serde(rename = "external_descriptors", default)]
    pub streams: String,
    /// Whether `create` has finished. Published first without it, as soon as the process exists, so
    /// that a process whose creator is killed can be found and ended.
    pub ready: bool,
}

/// What is known about a new container.
#[derive(Debug)]
pub struct Beginning<'a> {
    /// The specification.
    pub spec: &'a Spec,
    /// The container's id.
    pub id: &'a str,
    /// The bundle's directory.
    pub bundle: &'a Path,
    /// The root filesystem.
    pub rootfs: PathBuf,
    /// Its first process.
    pub init: Identity,
    /// Its cgroup.
    pub cgroup: Option<&'a Cgroup>,
}

impl State {
    /// The state of a container that is being made by the calling user.
    pub fn begin(beginning: Beginning<'_>) -> Result<Self, serde_json::Error> {
        let spec = beginning.spec;
        let mut state = Self {
            oci_version: spec.version().clone(),
            id: beginning.id.to_owned(),
            bundle: beginning.bundle.to_owned(),
            annotations: spec.annotations().clone().unwrap_or_default().into_iter().collect(),
            rootfs: beginning.rootfs,
            created: timestamp(SystemTime::now()),
            init: beginning.init,
            owner_uid: rustix::process::getuid().as_raw(),
            hooks: late_hooks(spec),
            cgroup: None,
            streams: streams(),
            ready: false,
        };
        state.set_cgroup(beginning.cgroup)?;
        Ok(state)
    }

    /// Its cgroup.
    pub fn cgroup(&self) -> Result<Option<Cgroup>, serde_json::Error> {
        self.cgroup.clone().map(serde_json::from_value).transpose()
    }

    /// Writes its cgroup down.
    pub fn set_cgroup(&mut self, cgroup: Option<&Cgroup>) -> Result<(), serde_json::Error> {
        self.cgroup = cgroup.map(serde_json::to_value).transpose()?;
        Ok(())
    }
}

/// The hooks that other commands will run.
fn late_hooks(spec: &Spec) -> Option<Hooks> {
    let hooks = spec.hooks().as_ref()?;
    let mut late = Hooks::default();
    late.set_poststart(hooks.poststart().clone()).set_poststop(hooks.poststop().clone());
    (late != Hooks::default()).then_some(late)
}

/// What descriptors 0, 1 and 2 are.
fn streams() -> String {
    let one = |number: u32| {
        let target = fs_err::read_link(format!("/proc/self/fd/{number}")).unwrap_or_default();
        target.display().to_string()
    };
    serde_json::to_string(&[0, 1, 2].map(one)).unwrap_or_default()
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

const SECONDS_PER_DAY: u64 = 86_400;
/// The Gregorian calendar repeats after 400 years.
const DAYS_PER_ERA: u64 = 146_097;
/// Days from 1 March of year 0 to 1 January 1970.
const DAYS_TO_EPOCH: u64 = 719_468;

/// A moment in RFC 3339, in UTC, to the nanosecond.
pub fn timestamp(moment: SystemTime) -> String {
    let since = moment.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let (days, second) = (since.as_secs() / SECONDS_PER_DAY, since.as_secs() % SECONDS_PER_DAY);
    // Years counted from March have the leap day last, which makes months regular: five months are
    // 153 days.
    let day = days + DAYS_TO_EPOCH;
    let (era, of_era) = (day / DAYS_PER_ERA, day % DAYS_PER_ERA);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day_of_month = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day_of_month:02}T{:02}:{:02}:{:02}.{:09}Z",
        second / 3600,
        second / 60 % 60,
        second % 60,
        since.subsec_nanos()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps() {
        let check = |seconds: u64, nanos: u32, expect: &str| {
            assert_eq!(timestamp(UNIX_EPOCH + Duration::new(seconds, nanos)), expect);
        };
        check(0, 0, "1970-01-01T00:00:00.000000000Z");
        check(951_782_399, 5, "2000-02-28T23:59:59.000000005Z");
        check(951_782_400, 0, "2000-02-29T00:00:00.000000000Z");
        check(951_868_800, 0, "2000-03-01T00:00:00.000000000Z");
        check(1_798_761_599, 999_999_999, "2026-12-31T23:59:59.999999999Z");
        check(4_107_542_400, 0, "2100-03-01T00:00:00.000000000Z");
    }
}
