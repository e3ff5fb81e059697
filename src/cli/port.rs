//! `coracle port`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::error::{CliError, line};
use super::words;
use crate::engine::{Engine, containers};

/// Show which ports of the host lead to a container
#[derive(Args)]
pub struct PortArgs {
    /// Container, by name or id
    container: String,
    /// Show only where this port of the container is found
    #[arg(value_name = "PORT[/PROTOCOL]")]
    port: Option<String>,
}

/// Says that a port is not published; docker's words.
#[derive(Debug, thiserror::Error)]
#[error("no public port {port:?} published for {container}")]
pub struct PortError {
    port: String,
    container: String,
}

/// Prints `80/tcp -> 0.0.0.0:8080`, or only the host's side of one port.
pub fn run(root: Option<PathBuf>, args: PortArgs) -> Result<ExitCode, CliError> {
    let engine = Engine::open(root)?;
    let container = containers::find(engine.root(), &args.container)?;
    let mut ports: Vec<_> = container.record.ports().iter().collect();
    ports.sort_by_key(|mapping| (mapping.container, mapping.container_side(), mapping.host));
    let Some(asked) = args.port else {
        for mapping in ports {
            line(&format!("{} -> {}", mapping.container_side(), words::host_side(mapping)));
        }
        return Ok(ExitCode::SUCCESS);
    };
    let port = if asked.contains('/') { asked } else { format!("{asked}/tcp") };
    let found: Vec<_> = ports.into_iter().filter(|mapping| mapping.container_side() == port).collect();
    if found.is_empty() {
        return Err(PortError { port, container: args.container }.into());
    }
    for mapping in found {
        line(&words::host_side(mapping));
    }
    Ok(ExitCode::SUCCESS)
}
