//! `coracle pool ssh-config`, `connect`: an instance by the stock OpenSSH client, with every check on.
//!
//! What a provider's authority is called is believed once and pinned; a client that is told another one later is not
//! let through silently. Each instance has a line of its own in the list of known hosts, so that no provider can
//! speak for an instance of another.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use clap::Args;
use coracle_scheduler::client::Pool;
use coracle_scheduler::model::{InstanceId, StreamKind};
use serde_json::{Value, json};

use super::folder;
use crate::cli::error::{CliError, line, note};
use crate::engine::container;
use crate::engine::provider::ssh::AUTHORITY_FACT;

/// The authorities that are believed, by provider.
const PINNED: &str = "ssh_authorities.json";
/// What `ssh-config --write` writes when no file is named.
const CONFIG: &str = "ssh_config";
const KNOWN_HOSTS: &str = "ssh_known_hosts";

/// Write a configuration for ssh, scp, sftp and rsync with an entry for each of your instances
///
/// Use it by `ssh -F FILE NAME`, or by a line `Include FILE` in ~/.ssh/config.
#[derive(Args)]
pub struct SshConfigArgs {
    /// Write FILE instead of standard output [default FILE: ssh_config in coracle's configuration directory]
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true)]
    write: Option<Option<PathBuf>>,

    /// The private key to log in by [default: ssh's own choice]
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,

    /// Believe the new authority of this provider, which was set up anew
    #[arg(long, value_name = "PROVIDER")]
    trust: Vec<String>,
}

/// Speak with an instance's SSH server on standard input and output, as ssh's ProxyCommand
#[derive(Args)]
pub struct ConnectArgs {
    /// Name or id
    instance: String,
}

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object[field].as_str().unwrap_or_default()
}

fn pinned(folder: &Path) -> Result<BTreeMap<String, String>, CliError> {
    match fs_err::read(folder.join(PINNED)) {
        Ok(text) => Ok(serde_json::from_slice(&text)?),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(error) => Err(error.into()),
    }
}

/// Gives the authority of a provider: what it says, unless something else was believed before.
fn told(
    pool: &Pool,
    provider: &str,
    pinned: &mut BTreeMap<String, String>,
    trust: &[String],
) -> Result<String, CliError> {
    let found = pool.get(&format!("/v1/providers/{provider}"))?;
    let name = text(&found, "name");
    let says = text(&found["facts"][AUTHORITY_FACT], "value").to_owned();
    let plain = says.starts_with("ssh-") && says.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
    if !plain {
        return Err(CliError::message(format!("provider {name} has no SSH authority; its agent may be an older one")));
    }
    let renewed = trust.iter().any(|wanted| wanted == name || wanted == provider);
    match pinned.get(provider) {
        Some(before) if *before != says && !renewed => Err(CliError::message(format!(
            "the SSH authority of provider {name} has changed: somebody may be in between, or its machine was set up \
             anew; then coracle pool ssh-config --trust {name} believes it"
        ))),
        _ => {
            pinned.insert(provider.to_owned(), says.clone());
            Ok(says)
        }
    }
}

fn configuration_folder() -> Result<PathBuf, CliError> {
    let folder = folder()?;
    std::fs::DirBuilder::new().mode(0o700).recursive(true).create(&folder)?;
    Ok(folder)
}

/// Gives the authority of a provider as it is pinned here; it is asked only the first time.
pub fn authority(pool: &Pool, provider: &str) -> Result<String, CliError> {
    let folder = configuration_folder()?;
    let mut pinned = pinned(&folder)?;
    if let Some(known) = pinned.get(provider) {
        return Ok(known.clone());
    }
    let says = told(pool, provider, &mut pinned, &[])?;
    container::publish_json(&folder, PINNED, &pinned, true)?;
    Ok(says)
}

/// Writes the configuration and the list of known hosts.
pub fn config(pool: &Pool, args: &SshConfigArgs) -> Result<(), CliError> {
    let folder = configuration_folder()?;
    let me = pool.get("/v1/whoami")?;
    let mut pinned = pinned(&folder)?;
    let (mut hosts, mut entries) = (String::new(), String::new());
    let known_hosts = folder.join(KNOWN_HOSTS);
    let mut asked = BTreeMap::new();
    // The newest of a name is the one that is meant: ssh takes the first entry.
    for instance in pool.list("/v1/instances")?.iter().rev() {
        let over = matches!(text(instance, "state"), "stopped" | "failed" | "lost");
        let Some(provider) = instance["alloc"]["provider"].as_str().filter(|_| !over) else { continue };
        if instance["user"] != me["user"] {
            continue;
        }
        let authority = match asked.get(provider) {
            Some(known) => String::clone(known),
            None => told(pool, provider, &mut pinned, &args.trust)?,
        };
        let id = text(instance, "id");
        let _ = writeln!(hosts, "@cert-authority {id} {authority}");
        entries.push_str(&entry(text(instance, "name"), id, &known_hosts, args.identity.as_deref())?);
        asked.insert(provider.to_owned(), authority);
    }
    container::publish_json(&folder, PINNED, &pinned, true)?;
    write(&known_hosts, &hosts)?;
    let Some(file) = &args.write else {
        line(entries.trim_end());
        return Ok(());
    };
    let file = file.clone().unwrap_or_else(|| folder.join(CONFIG));
    write(&file, &entries)?;
    note(&format!("note: {} entries in {}", hosts.lines().count(), file.display()));
    Ok(())
}

/// Writes a file aside and renames it, so that an ssh that starts this moment reads a whole one.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let mut draft = path.as_os_str().to_owned();
    draft.push(".new");
    fs_err::write(&draft, text)?;
    fs_err::rename(&draft, path)
}

/// Quotes a word for the shell that runs a ProxyCommand, and for ssh, which replaces what follows a percent sign.
fn quoted(path: &Path) -> Result<String, CliError> {
    let text = path.to_str().ok_or_else(|| CliError::message(format!("{} is no text", path.display())))?;
    Ok(format!("'{}'", text.replace('\'', r"'\''").replace('%', "%%")))
}

fn entry(name: &str, id: &str, known_hosts: &Path, identity: Option<&Path>) -> Result<String, CliError> {
    let coracle = quoted(&std::env::current_exe()?)?;
    let file = |path: &Path| format!("\"{}\"", path.display().to_string().replace('%', "%%"));
    let mut entry = format!(
        "Host {name}\n  HostName {id}\n  HostKeyAlias {id}\n  User {name}\n  ProxyCommand {coracle} pool connect {id}\n  \
         UserKnownHostsFile {}\n  GlobalKnownHostsFile none\n  StrictHostKeyChecking yes\n  \
         HostKeyAlgorithms ssh-ed25519-cert-v01@openssh.com\n  CheckHostIP no\n  ForwardAgent no\n  ForwardX11 no\n",
        file(known_hosts)
    );
    if let Some(identity) = identity {
        let identity = std::path::absolute(identity)?;
        let _ = write!(entry, "  IdentityFile {}\n  IdentitiesOnly yes\n", file(&identity));
    }
    entry.push('\n');
    Ok(entry)
}

/// Carries SSH between the caller's streams and an instance.
pub fn connect(pool: Pool, args: &ConnectArgs) -> Result<(), CliError> {
    // An id needs no question.
    let id = match args.instance.parse::<InstanceId>() {
        Ok(id) => id.to_string(),
        Err(_) => text(&pool.find("/v1/instances", "instance", &args.instance)?, "id").to_owned(),
    };
    let done = pool.stream(&format!("/v1/instances/{id}/streams"), &json!({ "kind": StreamKind::Ssh }), false);
    pool.end();
    Ok(done?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_turns_no_check_off() {
        let entry = entry("web", "01X", Path::new("/h/100%/known"), None).unwrap();
        assert!(entry.starts_with("Host web\n  HostName 01X\n  HostKeyAlias 01X\n  User web\n  ProxyCommand '/"));
        assert!(entry.contains("  UserKnownHostsFile \"/h/100%%/known\"\n"), "{entry}");
        assert!(entry.contains("  StrictHostKeyChecking yes\n") && !entry.contains("/dev/null"), "{entry}");
        assert_eq!(quoted(Path::new("/a'b/%h")).unwrap(), r"'/a'\''b/%%h'");
    }
}
