//! `coracle update`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::error::{CliError, note};
use super::limits::LimitArgs;
use super::several::each;
use crate::engine::Engine;
use crate::engine::networks::Rate;
use crate::engine::record::RestartPolicy;
use crate::engine::update::{UpdateOptions, update};

/// Change limits and restart policies of containers
#[derive(Args)]
pub struct UpdateArgs {
    /// Start it again after it ended: no, on-failure[:N], always or unless-stopped
    #[arg(long, value_name = "POLICY")]
    restart: Option<RestartPolicy>,
    /// Rates of the network of a container that was made with some
    #[arg(long, value_name = "RATES")]
    net_rate: Option<Rate>,
    #[command(flatten)]
    limits: LimitArgs,
    /// Containers, by name or id
    #[arg(required = true)]
    containers: Vec<String>,
}

/// Changes each container.
pub fn run(root: Option<PathBuf>, args: UpdateArgs) -> Result<ExitCode, CliError> {
    let options = UpdateOptions { limits: args.limits.options()?, restart: args.restart, net_rate: args.net_rate };
    let engine = Engine::open(root)?;
    let mut tell = |text: &str| note(&format!("note: {text}"));
    each(&args.containers, |wanted| Ok(update(&engine, wanted, &options, &mut tell)?))
}
