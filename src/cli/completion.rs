//! `coracle completion`: what a shell needs to complete command lines, made from the definitions of the arguments.

use std::io::Write;
use std::process::ExitCode;

use clap::Args;
use clap_complete::Shell;

use super::error::CliError;

/// Write the completion script of a shell to standard output
#[derive(Args)]
#[command(after_help = "bash: coracle completion bash > ~/.local/share/bash-completion/completions/coracle\n\
    zsh:  coracle completion zsh > a directory of $fpath, as _coracle\n\
    fish: coracle completion fish > ~/.config/fish/completions/coracle.fish")]
pub struct CompletionArgs {
    /// The shell
    shell: Shell,
}

/// Writes the script.
pub fn run(args: &CompletionArgs, mut command: clap::Command) -> Result<ExitCode, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "coracle", &mut script);
    let _ = std::io::stdout().lock().write_all(&script);
    Ok(ExitCode::SUCCESS)
}
