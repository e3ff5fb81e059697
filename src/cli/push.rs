//! `coracle push`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::error::{CliError, line};
use super::progress::Bars;
use crate::engine::Engine;

/// Send an image to a registry
#[derive(Args)]
pub struct PushArgs {
    /// Push every tag of the repository
    #[arg(short, long, conflicts_with = "destination")]
    all_tags: bool,
    /// Say nothing but the name
    #[arg(short, long)]
    quiet: bool,
    /// Image to send
    image: String,
    /// Name on the registry, if not the image's own
    destination: Option<String>,
}

/// Pushes, and prints the digest.
pub fn run(root: Option<PathBuf>, args: PushArgs) -> Result<ExitCode, CliError> {
    let engine = Engine::open(root)?;
    let bars = if args.quiet { Bars::quiet() } else { Bars::new() };
    let last = args.image.rsplit('/').next().unwrap_or_default();
    if args.all_tags && last.contains([':', '@']) {
        return Err(CliError::message("a tag cannot be given together with --all-tags"));
    }
    let names = if args.all_tags { engine.tags_of(&args.image)? } else { vec![args.image] };
    for name in names {
        let (reference, pushed) = engine.push(&name, args.destination.as_deref(), &bars)?;
        if args.quiet {
            line(&reference.familiar());
        } else {
            let tag = reference.tag().unwrap_or("latest");
            line(&format!("{tag}: digest: {} size: {}", pushed.digest, pushed.size_bytes));
        }
    }
    Ok(ExitCode::SUCCESS)
}
