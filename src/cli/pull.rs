//! `coracle pull`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use coracle_images::Platform;
use coracle_runtime::UserNs;

use super::error::{CliError, line};
use super::progress::Bars;
use crate::engine::Engine;

/// Fetch an image from a registry
#[derive(Args)]
pub struct PullArgs {
    /// Platform of the image, OS/ARCH[/VARIANT]
    #[arg(long)]
    platform: Option<Platform>,
    /// Say nothing but the image's id
    #[arg(short, long)]
    quiet: bool,
    /// Image to fetch; short names mean docker.io/library
    image: String,
}

/// Pulls, and prints the image's id.
pub fn run(root: Option<PathBuf>, args: PullArgs) -> Result<ExitCode, CliError> {
    let engine = Engine::open(root)?;
    let bars = if args.quiet { Bars::quiet() } else { Bars::new() };
    let idmap = engine.idmap(UserNs::Auto)?;
    let image = engine.pull(&args.image, args.platform.as_ref(), &idmap, &bars)?;
    line(&image.id.to_string());
    Ok(ExitCode::SUCCESS)
}
