//! An instance in words of `coracle run`.

use std::path::Path;

use coracle_scheduler::model::InstanceSpec;

use super::commands::LABEL;
use super::{Key, Shares, container_name};

/// Is what the agent knows beside the spec.
pub struct Given<'a> {
    pub shares: &'a Shares,
    /// Limits that this host cannot enforce: `disk`, `bandwidth`. The cgroup's are known to the runtime.
    pub missing: &'a [&'static str],
    /// Where the secrets are, one file each, called by their numbers.
    pub secrets: Option<&'a Path>,
}

/// Says why an instance cannot get its limits here, if so: each is named.
pub fn unenforced(spec: &InstanceSpec, given: &Given) -> Option<String> {
    if is_best_effort(spec, given) {
        return None;
    }
    let asked = [("disk", spec.resources.disk_bytes), ("bandwidth", spec.resources.bandwidth_bps)];
    let names: Vec<&str> = asked
        .iter()
        .filter(|(name, amount)| *amount > 0 && given.missing.contains(name))
        .map(|(name, _)| *name)
        .collect();
    (!names.is_empty()).then(|| format!("this provider cannot enforce the limit of {}", names.join(" and ")))
}

fn is_best_effort(spec: &InstanceSpec, given: &Given) -> bool {
    spec.limits.best_effort || given.shares.best_effort
}

/// Puts it together; what follows `--` is the image's.
pub fn of(key: Key, spec: &InstanceSpec, given: &Given) -> Vec<String> {
    after(&["run", "-d"], key, spec, given)
}

/// The same for a container that is not started yet.
pub fn making(key: Key, spec: &InstanceSpec, given: &Given) -> Vec<String> {
    after(&["create"], key, spec, given)
}

fn after(command: &[&str], key: Key, spec: &InstanceSpec, given: &Given) -> Vec<String> {
    let mut words = Words(command.iter().map(|&word| word.to_owned()).collect());
    words.0.extend(["--name".into(), container_name(key)]);
    words.add("--label", format!("{LABEL}={}", key.0));
    for (name, value) in &spec.labels {
        words.add("--label", format!("{name}={value}"));
    }
    for entry in &spec.env {
        words.add("--env", entry);
    }
    limits(&mut words, spec, given);
    for port in &spec.ports {
        words.add("--publish", format!("{}:{}", port.host, port.container));
    }
    for mount in &spec.volumes {
        words.add("--volume", format!("pool-{}:{}", mount.volume, mount.path));
    }
    for (number, mount) in spec.secrets.iter().enumerate() {
        if let Some((folder, file)) = given.secrets.zip(mount.file.as_ref()) {
            words.add("--volume", format!("{}:{file}:ro", folder.join(number.to_string()).display()));
        }
    }
    process(&mut words, spec);
    if let Some(network) = &given.shares.network {
        words.add("--network", network);
    }
    words.0.push("--".into());
    words.0.push(spec.image.clone());
    words.0.extend(spec.command.iter().cloned());
    words.0
}

struct Words(Vec<String>);

impl Words {
    /// Adds a flag with its value in one word, so that no value is taken for a flag.
    fn add(&mut self, flag: &str, value: impl std::fmt::Display) {
        self.0.push(format!("{flag}={value}"));
    }

    fn some(&mut self, flag: &str, value: Option<impl std::fmt::Display>) {
        if let Some(value) = value {
            self.add(flag, value);
        }
    }

    fn switch(&mut self, flag: &str, on: bool) {
        self.0.extend(on.then(|| flag.to_owned()));
    }
}

fn limits(words: &mut Words, spec: &InstanceSpec, given: &Given) {
    let (asked, more) = (&spec.resources, &spec.limits);
    let positive = |amount: u64| (amount > 0).then_some(amount);
    let enforced = |name: &str, amount: u64| positive(amount).filter(|_| !given.missing.contains(&name));
    if asked.cpu_millis > 0 {
        words.add("--cpus", format!("{}.{:03}", asked.cpu_millis / 1000, asked.cpu_millis % 1000));
    }
    words.some("--memory", positive(asked.memory_bytes));
    words.some("--memory-reservation", more.memory_soft_bytes);
    words.some("--pids-limit", more.pids);
    words.some("--cpu-shares", more.cpu_weight);
    words.some("--blkio-weight", more.io_weight);
    words.some("--disk", enforced("disk", asked.disk_bytes));
    // A rate is told in bits; below the smallest that the kernel holds it is that one.
    let flows = given.shares.network.as_deref() != Some("none");
    let bits = enforced("bandwidth", asked.bandwidth_bps).filter(|_| flows);
    let bits = bits.map(|bytes| bytes.saturating_mul(8).max(RATE_BITS_MIN));
    words.some("--net-rate", bits.map(|bits| format!("up={bits},down={bits}")));
    if is_best_effort(spec, given) {
        words.add("--limits", "best-effort");
    }
}

/// The smallest rate that `--net-rate` takes.
const RATE_BITS_MIN: u64 = 64_000;

fn process(words: &mut Words, spec: &InstanceSpec) {
    let process = &spec.process;
    words.some("--entrypoint", process.entrypoint.as_ref());
    words.some("--user", process.user.as_ref());
    words.some("--workdir", process.workdir.as_ref());
    words.some("--hostname", process.hostname.as_ref());
    words.some("--stop-signal", process.stop_signal.as_ref());
    words.switch("--read-only", process.read_only);
    words.switch("--init", process.init);
    process.tmpfs.iter().for_each(|place| words.add("--tmpfs", place));
    process.cap_drop.iter().for_each(|capability| words.add("--cap-drop", capability));
    words.some("--shm-size", process.shm_bytes);
    words.some("--health-cmd", process.health_command.as_ref());
    words.some("--health-interval", process.health_interval_ms.map(|ms| format!("{ms}ms")));
    words.switch("--no-healthcheck", process.no_health_check);
    words.some("--stop-timeout", spec.stop_grace_ms.map(|ms| ms.div_ceil(1000)));
}

#[cfg(test)]
mod tests {
    use coracle_scheduler::model::{InstanceId, LimitOptions, Port, ProcessOptions, Resources};

    use super::*;

    #[test]
    fn an_instance_is_one_command_line() {
        let spec = InstanceSpec {
            image: "busybox:1".into(),
            command: vec!["sh".into(), "-c".into(), "--rm".into()],
            env: vec!["A=b c".into()],
            resources: Resources {
                cpu_millis: 1500,
                memory_bytes: 64 << 20,
                disk_bytes: 1 << 30,
                bandwidth_bps: 1_000_000,
                ..Resources::default()
            },
            ports: vec![Port { host: 8080, container: 80 }],
            process: ProcessOptions { user: Some("--rm".into()), read_only: true, ..ProcessOptions::default() },
            limits: LimitOptions { pids: Some(9), ..LimitOptions::default() },
            ..InstanceSpec::default()
        };
        let words =
            of((InstanceId::new(1), 3), &spec, &Given { shares: &Shares::default(), missing: &[], secrets: None });
        let name = "pool-00000000000000000000000001-3";
        let expected = [
            "run",
            "-d",
            "--name",
            name,
            "--label=coracle.pool.instance=00000000000000000000000001",
            "--env=A=b c",
            "--cpus=1.500",
            "--memory=67108864",
            "--pids-limit=9",
            "--disk=1073741824",
            "--net-rate=up=8000000,down=8000000",
            "--publish=8080:80",
            "--user=--rm",
            "--read-only",
            "--",
            "busybox:1",
            "sh",
            "-c",
            "--rm",
        ];
        assert_eq!(words, expected);
    }

    #[test]
    fn a_limit_that_cannot_hold_is_named_unless_best_effort_is_asked() {
        let resources = Resources { disk_bytes: 1, bandwidth_bps: 1, ..Resources::default() };
        let mut spec = InstanceSpec { resources, ..InstanceSpec::default() };
        let shares = Shares::default();
        let given = Given { shares: &shares, missing: &["bandwidth", "disk"], secrets: None };
        let said = unenforced(&spec, &given);
        assert_eq!(said.as_deref(), Some("this provider cannot enforce the limit of disk and bandwidth"));
        assert_eq!(unenforced(&spec, &Given { missing: &[], ..given }), None);
        spec.limits.best_effort = true;
        let given = Given { shares: &shares, missing: &["disk"], secrets: None };
        assert_eq!(unenforced(&spec, &given), None);
        let words = of((InstanceId::new(1), 1), &spec, &given);
        assert!(!words.iter().any(|word| word.starts_with("--disk")), "{words:?}");
        assert!(words.contains(&"--limits=best-effort".to_owned()), "{words:?}");
    }
}
