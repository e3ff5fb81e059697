//! `coracle version`.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::error::{CliError, line};
use super::format::Format;

/// Docker's API whose objects `inspect` follows.
const API_VERSION: &str = "1.43";

/// Show the version of coracle
#[derive(Args)]
pub struct VersionArgs {
    /// json, or a Go template such as '{{.Client.Version}}'
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
}

/// Prints the version; the "server" is the same program, for scripts that ask for it.
pub fn run(args: &VersionArgs) -> Result<ExitCode, CliError> {
    let uname = rustix::system::uname();
    let (version, kernel) = (env!("CARGO_PKG_VERSION"), uname.release().to_string_lossy());
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    if let Some(format) = args.format.as_deref().map(Format::parse).transpose()? {
        let half = json!({
            "Version": version, "ApiVersion": API_VERSION, "Os": "linux", "Arch": arch, "KernelVersion": kernel,
        });
        let platform = json!({"Name": format!("coracle {version}")});
        let mut both = json!({"Client": half, "Server": half});
        both["Client"]["Platform"] = platform.clone();
        both["Server"]["Platform"] = platform;
        format.print(&[both])?;
        return Ok(ExitCode::SUCCESS);
    }
    line("Client: coracle");
    for (name, value) in [("Version", version), ("OS/Arch", &format!("linux/{arch}")), ("Kernel", &kernel)] {
        line(&format!(" {:<18}{value}", format!("{name}:")));
    }
    line("Server: none; every container is looked after by its own process");
    Ok(ExitCode::SUCCESS)
}
