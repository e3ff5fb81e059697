//! `coracle info`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use coracle_runtime::{UserNs, host};
use serde_json::{Value, json};

use super::error::{CliError, line};
use super::format::Format;
use super::table;
use crate::engine::Engine;
use crate::engine::containers::{self, Status};
use crate::engine::provider::facts::memory_bytes;
use crate::engine::quota::{self, Offer};

/// Show what this host offers to containers, and what would give more
#[derive(Args)]
pub struct InfoArgs {
    /// json, or a Go template over the same object
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
}

/// Probes the host and prints what was found.
pub fn run(root: Option<PathBuf>, args: InfoArgs) -> Result<ExitCode, CliError> {
    let format = args.format.as_deref().map(Format::parse).transpose()?;
    let engine = Engine::open(root)?;
    let facts = host::probe(engine.root());
    if let Some(format) = format {
        format.print(&[document(&engine, &facts)?])?;
        return Ok(ExitCode::SUCCESS);
    }
    line(&format!("{:<22} {}", "coracle", env!("CARGO_PKG_VERSION")));
    line(&format!("{:<22} {}", "state directory", engine.root().display()));
    line(&format!("{:<22} {}", "memory", table::human_memory(memory_bytes("MemTotal"))));
    for fact in &facts.facts {
        line(&format!("{:<22} {}", fact.name, fact.value));
    }
    let (works, not): (Vec<_>, Vec<_>) = disk_limits(&engine)?.into_iter().partition(|(_, works)| works.is_ok());
    let words: Vec<_> = works.iter().map(|(backend, _)| backend.word()).collect();
    let words = if words.is_empty() { "none".to_owned() } else { words.join(", ") };
    line(&format!("{:<22} {words}", "disk limits"));
    for (backend, reason) in not {
        line(&format!("{:<22} not {}: {}", "", backend.word(), reason.err().unwrap_or_default()));
    }
    let missing: Vec<_> = facts.facts.iter().filter_map(|fact| Some((fact.name, fact.missing.as_ref()?))).collect();
    if !missing.is_empty() {
        line("\nmissing:");
    }
    for (name, missing) in missing {
        line(&format!("  {name}: {}", missing.effect));
        line(&format!("    fix: {}", missing.fix));
    }
    Ok(ExitCode::SUCCESS)
}

/// Tries what keeps disk limits, for a container that is thrown away.
fn disk_limits(engine: &Engine) -> Result<Vec<Offer>, CliError> {
    // Without the helpers for more, a container has one id.
    let map = engine.idmap(UserNs::Auto).or_else(|_| engine.idmap(UserNs::Single))?;
    Ok(quota::offers(engine.root(), &map))
}

/// Gives everything as one object, under Docker's names where Docker has one.
fn document(engine: &Engine, facts: &host::HostFacts) -> Result<Value, CliError> {
    let all = containers::list(engine.root());
    let count = |wanted: Status| all.iter().filter(|container| container.status() == wanted).count();
    let (running, paused) = (count(Status::Running) + count(Status::Restarting), count(Status::Paused));
    let uname = rustix::system::uname();
    let os = fs_err::read_to_string("/etc/os-release").unwrap_or_default();
    let os = os.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).map(|name| name.trim_matches('"'));
    Ok(json!({
        "Containers": all.len(),
        "ContainersRunning": running,
        "ContainersPaused": paused,
        "ContainersStopped": all.len() - running - paused,
        "Images": engine.store().list()?.len(),
        "Driver": "overlay",
        "DockerRootDir": engine.root(),
        "Name": uname.nodename().to_string_lossy(),
        "KernelVersion": uname.release().to_string_lossy(),
        "Architecture": uname.machine().to_string_lossy(),
        "OSType": "linux",
        "OperatingSystem": os.unwrap_or("linux"),
        "NCPU": std::thread::available_parallelism().map_or(1, usize::from),
        "MemTotal": memory_bytes("MemTotal"),
        "ServerVersion": env!("CARGO_PKG_VERSION"),
        "SecurityOptions": ["name=seccomp,profile=default", "name=rootless", "name=no-new-privileges"],
        "version": env!("CARGO_PKG_VERSION"),
        "root": engine.root(),
        "facts": facts.facts,
        "DiskLimits": disk_limits(engine)?.into_iter().map(|(backend, works)| json!({
            "Backend": backend.word(),
            "Works": works.is_ok(),
            "Hard": backend.is_hard(),
            "Missing": works.err(),
        })).collect::<Vec<_>>(),
    }))
}
