//! Which cgroups the host has and whether limits can be set without root.

use rustix::fs::{Access, access, statfs};

use super::Fact;

/// `CGROUP2_SUPER_MAGIC` of linux/magic.h.
const CGROUP2_MAGIC: u64 = 0x6367_7270;
/// The controllers behind the limits that people ask for.
const CONTROLLERS: [&str; 4] = ["cpu", "io", "memory", "pids"];
/// What systemd needs to be told to delegate them all.
const DELEGATE_FIX: &str = "sudo mkdir -p /etc/systemd/system/user@.service.d && printf '[Service]\\nDelegate=cpu cpuset io memory pids\\n' | sudo tee /etc/systemd/system/user@.service.d/delegate.conf && sudo systemctl daemon-reload";
const NAME: &str = "cgroups";

pub(super) fn fact() -> Fact {
    let is_unified = |path: &str| statfs(path).is_ok_and(|stat| stat.f_type as u64 == CGROUP2_MAGIC);
    if is_unified("/sys/fs/cgroup") {
        return unified();
    }
    let hybrid = is_unified("/sys/fs/cgroup/unified");
    let value = if hybrid { "hybrid v1 and v2" } else { "v1 or none" };
    Fact::lacking(
        NAME,
        value,
        false,
        "limits for memory, CPU, IO and processes cannot be set",
        "boot with systemd.unified_cgroup_hierarchy=1",
    )
}

fn unified() -> Fact {
    let own = fs_err::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let path = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    let dir = format!("/sys/fs/cgroup{}", path.trim_end_matches('/'));
    let writable = access(format!("{dir}/cgroup.procs"), Access::WRITE_OK).is_ok();
    let controllers = fs_err::read_to_string(format!("{dir}/cgroup.controllers")).unwrap_or_default();
    judge(path, writable, &controllers)
}

fn judge(path: &str, writable: bool, controllers: &str) -> Fact {
    let present: Vec<&str> = controllers.split_ascii_whitespace().collect();
    let lacking: Vec<&str> = CONTROLLERS.into_iter().filter(|name| !present.contains(name)).collect();
    let value = format!("v2, {path}, controllers: {}", if present.is_empty() { "none" } else { controllers.trim() });
    if !writable {
        return Fact::lacking(
            NAME,
            value,
            false,
            "our cgroup is not delegated to us: limits cannot be set",
            DELEGATE_FIX,
        );
    }
    if lacking.is_empty() {
        return Fact::fine(NAME, value);
    }
    let effect = format!("limits for {} cannot be set", lacking.join(", "));
    Fact::lacking(NAME, value, false, &effect, DELEGATE_FIX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_what_is_not_delegated() {
        assert_eq!(judge("/user.slice", true, "cpuset cpu io memory pids\n").missing, None);
        let partly = judge("/user.slice", true, "memory pids\n").missing.expect("something is missing");
        assert_eq!(partly.effect, "limits for cpu, io cannot be set");
        assert!(judge("/", false, "cpu io memory pids").missing.is_some());
    }
}
