//! The flags about what a container shares with the host, and Docker's flags that cannot be kept, each with its reason.

use clap::Args;

use super::error::CliError;
use crate::engine::isolation::{Ipc, Isolation};

/// Docker's flags of `run` and `create` that are refused: why, and what comes nearest.
const REFUSED: [(&str, &str); 9] = [
    ("--cgroup-parent", "a container gets its place below the cgroup that coracle runs in; start coracle there"),
    ("--device-cgroup-rule", "rules for devices need root; --device gives single devices"),
    ("--gpus", "the vendor's hook needs root; give the files with --device, as in --device /dev/dri/renderD128"),
    ("--link", "containers find each other by name in a network: coracle network create, then --network"),
    ("--link-local-ip", "the kernel chooses link-local addresses"),
    ("--mac-address", "the helper of the network chooses the address"),
    (
        "--privileged",
        "nobody here has privileges to give; name what is needed with --cap-add, --device and --security-opt",
    ),
    ("--runtime", "coracle is its own runtime; coracle-oci is one for others"),
    ("--isolation", "it exists on Windows only"),
];

/// Gives the reason for which a known flag of Docker's is refused.
pub fn refusal(flag: &str) -> Option<&'static str> {
    let name = flag.split('=').next().unwrap_or(flag);
    REFUSED.iter().find(|(refused, _)| *refused == name).map(|(_, reason)| *reason)
}

/// Is what is said about namespaces and devices.
#[derive(Args)]
pub struct IsolationArgs {
    /// Set a kernel parameter of the container's own namespaces
    #[arg(long, value_name = "NAME=VALUE")]
    sysctl: Vec<String>,
    /// NIS domain name inside
    #[arg(long, value_name = "NAME")]
    domainname: Option<String>,
    /// Add an annotation to the specification
    #[arg(long, value_name = "NAME=VALUE")]
    annotation: Vec<String>,
    /// Show a device of the host inside
    #[arg(long, value_name = "HOST[:INSIDE][:rwm]")]
    device: Vec<String>,
    /// Shared memory and queues: private, shareable, none or host [default: private]
    #[arg(long, value_name = "MODE")]
    ipc: Option<String>,
    /// Host name: private or host [default: private]
    #[arg(long, value_name = "MODE")]
    uts: Option<String>,
    /// What is seen of cgroups: private or host [default: private]
    #[arg(long, value_name = "MODE")]
    cgroupns: Option<String>,
    /// Processes that are seen: private [default: private]
    #[arg(long, value_name = "MODE")]
    pid: Option<String>,
    /// Who makes volumes: local
    #[arg(long, value_name = "NAME")]
    volume_driver: Option<String>,
}

impl IsolationArgs {
    /// Puts the flags together.
    pub fn isolation(self) -> Result<Isolation, CliError> {
        let mut isolation = Isolation::default();
        for text in &self.sysctl {
            isolation.add_sysctl(text)?;
        }
        for text in &self.annotation {
            isolation.add_annotation(text)?;
        }
        for text in &self.device {
            isolation.add_device(text)?;
        }
        if let Some(name) = self.domainname {
            isolation.set_domainname(name)?;
        }
        isolation.ipc = match self.ipc.as_deref() {
            None | Some("private" | "shareable") => Ipc::Private,
            Some("none") => Ipc::None,
            Some("host") => Ipc::Host,
            Some(other) if other.starts_with("container:") => {
                let problem = "--ipc=container: is not implemented: /dev/shm of a container cannot be reached from outside; \
                               give both the same directory with -v DIRECTORY:/dev/shm, or --ipc=host";
                return Err(CliError::message(problem));
            }
            Some(_) => return Err(CliError::message("--ipc: invalid IPC mode")),
        };
        isolation.host_uts = shares("--uts: invalid UTS mode", self.uts.as_deref())?;
        isolation.host_cgroup = shares("--cgroupns: invalid CGROUP mode", self.cgroupns.as_deref())?;
        match self.pid.as_deref() {
            None | Some("private") => {}
            Some(other) if other == "host" || other.starts_with("container:") => {
                let problem = format!(
                    "--pid={other} is not implemented: what a container starts must end with its first process, which \
                     only an own process namespace promises; coracle exec and coracle top look into a container"
                );
                return Err(CliError::message(problem));
            }
            Some(_) => return Err(CliError::message("--pid: invalid PID mode")),
        }
        match self.volume_driver.as_deref() {
            None | Some("local") => Ok(isolation),
            Some(other) => Err(CliError::message(format!(
                "volume driver {other:?} is not implemented: volumes are local directories"
            ))),
        }
    }
}

fn shares(problem: &str, mode: Option<&str>) -> Result<bool, CliError> {
    match mode {
        None | Some("private") => Ok(false),
        Some("host") => Ok(true),
        Some(_) => Err(CliError::message(problem)),
    }
}
