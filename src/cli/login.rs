//! `coracle login` and `coracle logout`.

use std::io::{BufRead, IsTerminal, Read};
use std::process::ExitCode;

use clap::Args;
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use super::error::{CliError, line, note};
use crate::engine::registry;

/// Longest secret that is read; tokens of cloud registries have a few KiB.
const SECRET_BYTES_MAX: u64 = 64 << 10;

/// Check credentials for a registry and keep them
///
/// They go to $REGISTRY_AUTH_FILE, else to docker's config.json, or to the credential helper that
/// is named there.
#[derive(Args)]
pub struct LoginArgs {
    /// User name
    #[arg(short, long, value_name = "NAME")]
    username: Option<String>,
    /// Password; others on this machine may see it, --password-stdin is better
    #[arg(short, long, value_name = "SECRET", conflicts_with = "password_stdin")]
    password: Option<String>,
    /// Read the password from standard input
    #[arg(long, requires = "username")]
    password_stdin: bool,
    /// Registry, HOST[:PORT] [default: docker.io]
    registry: Option<String>,
}

/// Forget the credentials for a registry
#[derive(Args)]
pub struct LogoutArgs {
    /// Registry, HOST[:PORT] [default: docker.io]
    registry: Option<String>,
}

/// Logs in.
pub fn login(args: LoginArgs) -> Result<ExitCode, CliError> {
    let user = match args.username {
        Some(user) => user,
        None => ask("Username: ", true)?,
    };
    let password = match args.password {
        Some(password) => {
            note("note: other users of this machine can see a password on a command line; --password-stdin hides it");
            password
        }
        None if args.password_stdin => from_stdin()?,
        None => ask("Password: ", false)?,
    };
    if user.is_empty() || password.is_empty() {
        return Err(CliError::message("user name and password may not be empty"));
    }
    registry::log_in(args.registry.as_deref().unwrap_or_default(), &user, &password)?;
    line("Login Succeeded");
    Ok(ExitCode::SUCCESS)
}

/// Logs out.
pub fn logout(args: LogoutArgs) -> Result<ExitCode, CliError> {
    let name = registry::log_out(args.registry.as_deref().unwrap_or_default())?;
    line(&format!("Removed login credentials for {name}"));
    Ok(ExitCode::SUCCESS)
}

/// Reads a secret up to the end of the input; the newline of `echo` does not belong to it.
fn from_stdin() -> Result<String, CliError> {
    let mut text = String::new();
    std::io::stdin().take(SECRET_BYTES_MAX).read_to_string(&mut text)?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    Ok(text.strip_suffix('\r').unwrap_or(text).to_owned())
}

/// Asks the person, who sees what is typed only with `echo`.
fn ask(prompt: &str, echo: bool) -> Result<String, CliError> {
    let input = std::io::stdin();
    if !input.is_terminal() {
        return Err(CliError::message("the input is no terminal; give --username and --password-stdin"));
    }
    let before = tcgetattr(&input)?;
    if !echo {
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        tcsetattr(&input, OptionalActions::Flush, &silent)?;
    }
    prompt_text(prompt);
    let mut text = String::new();
    let read = input.lock().take(SECRET_BYTES_MAX).read_line(&mut text);
    if !echo {
        tcsetattr(&input, OptionalActions::Flush, &before)?;
        note("");
    }
    read?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

#[expect(clippy::print_stderr, reason = "a prompt has no line of its own")]
fn prompt_text(prompt: &str) {
    eprint!("{prompt}");
}
