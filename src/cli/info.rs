//! `coracle info`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use coracle_runtime::host;

use super::error::{CliError, line};
use super::table::{self, Format};
use crate::engine::Engine;

/// Show what this host offers to containers, and what would give more
#[derive(Args)]
pub struct InfoArgs {
    /// table or json
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
}

/// Probes the host and prints what was found.
pub fn run(root: Option<PathBuf>, args: InfoArgs) -> Result<ExitCode, CliError> {
    let engine = Engine::open(root)?;
    let facts = host::probe(engine.root());
    if args.format == Format::Json {
        table::print_json(&serde_json::json!({
            "version": env!("CARGO_PKG_VERSION"),
            "root": engine.root(),
            "facts": facts.facts,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    line(&format!("{:<22} {}", "coracle", env!("CARGO_PKG_VERSION")));
    line(&format!("{:<22} {}", "state directory", engine.root().display()));
    for fact in &facts.facts {
        line(&format!("{:<22} {}", fact.name, fact.value));
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
