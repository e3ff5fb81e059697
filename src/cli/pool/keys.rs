//! `pool keys`: the SSH keys of one's account.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use coracle_scheduler::client::Pool;
use serde_json::{Value, json};

use super::word;
use crate::cli::error::{CliError, line};

/// Longest file of public keys that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Look after the SSH keys that open one's instances
#[derive(Args)]
pub struct KeysArgs {
    #[command(subcommand)]
    command: KeysCommand,
}

#[derive(Subcommand)]
enum KeysCommand {
    /// Add the public keys of a file, one a line, as in ~/.ssh/id_ed25519.pub
    Add(AddArgs),
    /// List them
    Ls,
    /// Remove those with this text, which may be the key or its comment
    Rm(RmArgs),
}

#[derive(Args)]
struct AddArgs {
    /// The file; - is standard input
    file: PathBuf,
}

#[derive(Args)]
struct RmArgs {
    /// The key or its comment
    key: String,
}

/// Changes or lists the keys.
pub fn keys(pool: &Pool, args: &KeysArgs) -> Result<(), CliError> {
    let who = pool.get("/v1/whoami")?;
    let path = format!("/v1/users/{}", word(&who, "user"));
    let user = pool.get(&path)?;
    let mut keys: Vec<String> = serde_json::from_value(user["ssh_keys"].clone()).unwrap_or_default();
    match &args.command {
        KeysCommand::Ls => {
            keys.iter().for_each(|key| line(key));
            return Ok(());
        }
        KeysCommand::Add(args) => {
            let text = crate::cli::provider::read_text(&args.file, FILE_BYTES_MAX)?;
            let new = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
            let new: Vec<String> = new.map(str::to_owned).collect();
            if new.is_empty() {
                return Err(CliError::message(format!("{} has no public key", args.file.display())));
            }
            if text.starts_with("-----") {
                return Err(CliError::message("this is a private key, which stays here; name the .pub file"));
            }
            keys.extend(new.into_iter().filter(|key| !keys.contains(key)).collect::<Vec<_>>());
        }
        KeysCommand::Rm(args) => {
            let before = keys.len();
            let is_meant = |key: &String| key == &args.key || key.split(' ').skip(1).any(|part| part == args.key);
            keys.retain(|key| !is_meant(key));
            if keys.len() == before {
                return Err(CliError::message(format!("there is no key {:?}", args.key)));
            }
        }
    }
    let _: Value = pool.put(&format!("{path}/keys"), &json!({ "keys": keys }))?;
    Ok(())
}
