//! `coracle load`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use coracle_images::Reference;
use coracle_runtime::UserNs;

use super::error::{CliError, line, note};
use super::progress::Bars;
use crate::engine::Engine;

/// Where standard input can be read again from; the archive formats need to seek.
const STDIN: &str = "/dev/stdin";

/// Take images out of an archive or a layout directory
///
/// Reads docker-archive and oci-archive files, compressed or not, and OCI layout directories.
#[derive(Args)]
pub struct LoadArgs {
    /// Read FILE or directory instead of standard input
    #[arg(short, long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Name the image; the names that the archive claims are not used then
    #[arg(long, value_name = "NAME")]
    tag: Option<Reference>,
    /// Say nothing but the result
    #[arg(short, long)]
    quiet: bool,
}

/// Loads, and prints what each image is called.
pub fn run(root: Option<PathBuf>, args: LoadArgs) -> Result<ExitCode, CliError> {
    let engine = Engine::open(root)?;
    let bars = if args.quiet { Bars::quiet() } else { Bars::new() };
    let idmap = engine.idmap(UserNs::Auto)?;
    let source = args.input.unwrap_or_else(|| STDIN.into());
    for image in engine.load(&source, args.tag, &idmap, &bars)? {
        for (name, id) in &image.moved {
            note(&format!("note: {name} was {id} until now; --tag loads an image under a name of its own"));
        }
        line(&format!("Loaded image: {}", image.name));
    }
    Ok(ExitCode::SUCCESS)
}
