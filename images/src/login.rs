//! `docker login`: checks credentials with the registry and keeps them where docker and podman look.
//!
//! The file is `$REGISTRY_AUTH_FILE`, else docker's `config.json`; everything else in it stays as it
//! is. Where it names a credential helper for the registry, the helper keeps the secret and the file
//! does not. The file is 0600 and replaced by rename, so that it is never half, and nobody else ever
//! reads it.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fs_err::os::unix::fs::OpenOptionsExt;
use serde_json::{Map, Value};

use crate::credentials::{Credential, HUB_NAMES, HelperProblem, is_program_name};
use crate::pull::PullOptions;
use crate::reference::{DEFAULT_REGISTRY, Reference, ReferenceError};
use crate::registry::{Access, Registry, RegistryError};

/// The largest login file that is read, as for pulling.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// How long a helper may take; some ask the user to unlock a key ring.
const HELPER_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a helper is looked at meanwhile.
const HELPER_POLL: Duration = Duration::from_millis(5);

/// Why logging in or out failed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each text says what the variant means")]
pub enum LoginError {
    #[error("{registry:?} is no registry")]
    Name {
        registry: String,
        #[source]
        source: ReferenceError,
    },
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error("no place for credentials: neither REGISTRY_AUTH_FILE, DOCKER_CONFIG nor HOME is set")]
    NoFile,
    #[error("cannot {op} the login file {}", path.display())]
    File {
        op: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is not a valid login file", path.display())]
    Malformed { path: PathBuf },
    #[error("credential helper {helper}, named in {}, {problem}", path.display())]
    Helper { helper: String, path: PathBuf, problem: HelperProblem },
    #[error("not logged in to {registry}")]
    NotLoggedIn { registry: String },
}

/// Names the file that logins are written to; `get` reads an environment variable.
pub fn login_file(get: &dyn Fn(&str) -> Option<OsString>) -> Result<PathBuf, LoginError> {
    let dir = |name: &str| get(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let docker = dir("DOCKER_CONFIG").or_else(|| Some(dir("HOME")?.join(".docker")));
    let file = dir("REGISTRY_AUTH_FILE").or_else(|| Some(docker?.join("config.json")));
    file.ok_or(LoginError::NoFile)
}

/// Gives the registry that a person means by a host, a URL or nothing.
pub fn registry_name(text: &str) -> Result<Reference, LoginError> {
    let host = text.trim_start_matches("https://").trim_start_matches("http://");
    let host = host.split('/').next().unwrap_or_default();
    let host = if host.is_empty() { DEFAULT_REGISTRY } else { host };
    // Any repository: only the registry of the reference is looked at.
    let reference: Result<Reference, _> = format!("{host}/library/any").parse();
    let reference = reference.map_err(|source| LoginError::Name { registry: text.to_owned(), source })?;
    let is_meant = reference.registry() == host || HUB_NAMES.iter().any(|name| name.contains(host));
    if is_meant {
        return Ok(reference);
    }
    // A bare word is no host in the grammar of images, and not Docker Hub either.
    let named: Result<Reference, _> = format!("{host}:443/library/any").parse();
    named.map_err(|source| LoginError::Name { registry: text.to_owned(), source })
}

/// Asks the registry whether it takes the credentials.
pub fn verify(registry: &Reference, user: &str, password: &str, options: &PullOptions) -> Result<(), LoginError> {
    let credential = Credential::Password { user: user.to_owned(), password: password.to_owned() };
    let insecure = options.insecure_registries.iter().any(|name| name == registry.registry());
    let client = Registry::open(registry, options.registry(insecure, Some(credential), Access::Login))?;
    Ok(client.log_in(&|_| ())?)
}

/// Keeps credentials for a registry.
pub fn keep(file: &Path, registry: &Reference, user: &str, password: &str) -> Result<(), LoginError> {
    change(file, |config| {
        let name = key(registry);
        if let Some(helper) = helper(config, name) {
            let secret = serde_json::json!({"ServerURL": name, "Username": user, "Secret": password});
            ask(file, &helper, "store", secret.to_string().as_bytes())?;
            // That docker lists it as a login; the helper has the secret.
            entry(config, file)?.insert(name.to_owned(), Value::Object(Map::new()));
            return Ok(());
        }
        let auth = STANDARD.encode(format!("{user}:{password}"));
        entry(config, file)?.insert(name.to_owned(), serde_json::json!({ "auth": auth }));
        Ok(())
    })
}

/// Forgets the credentials for a registry.
pub fn forget(file: &Path, registry: &Reference) -> Result<(), LoginError> {
    change(file, |config| {
        let names: &[&str] = if registry.registry() == DEFAULT_REGISTRY { &HUB_NAMES } else { &[registry.registry()] };
        let mut found = false;
        for name in names {
            found |= entry(config, file)?.remove(*name).is_some();
        }
        if let Some(helper) = helper(config, key(registry)) {
            ask(file, &helper, "erase", key(registry).as_bytes())?;
            found = true;
        }
        if found { Ok(()) } else { Err(LoginError::NotLoggedIn { registry: registry.registry().to_owned() }) }
    })
}

/// Under which name docker keeps it.
fn key(registry: &Reference) -> &str {
    if registry.registry() == DEFAULT_REGISTRY { HUB_NAMES[0] } else { registry.registry() }
}

fn entry<'a>(config: &'a mut Map<String, Value>, file: &Path) -> Result<&'a mut Map<String, Value>, LoginError> {
    let auths = config.entry("auths").or_insert_with(|| Value::Object(Map::new()));
    auths.as_object_mut().ok_or_else(|| LoginError::Malformed { path: file.to_owned() })
}

fn helper(config: &Map<String, Value>, name: &str) -> Option<String> {
    let own = config.get("credHelpers").and_then(|map| map.get(name)).and_then(Value::as_str);
    let all = config.get("credsStore").and_then(Value::as_str);
    own.filter(|helper| !helper.is_empty()).or(all.filter(|helper| !helper.is_empty())).map(str::to_owned)
}

/// Reads the file, changes it, and puts it back whole.
fn change(file: &Path, act: impl FnOnce(&mut Map<String, Value>) -> Result<(), LoginError>) -> Result<(), LoginError> {
    // A link stays a link: people keep such files elsewhere.
    let real = fs_err::canonicalize(file).unwrap_or_else(|_| file.to_owned());
    let failed = |op| {
        let path = real.clone();
        move |source| LoginError::File { op, path, source }
    };
    let mut text = Vec::new();
    match fs_err::File::open(&real) {
        Ok(open) => drop(open.take(FILE_BYTES_MAX).read_to_end(&mut text).map_err(failed("read"))?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("read")(error)),
    }
    let mut config: Map<String, Value> = if text.iter().all(u8::is_ascii_whitespace) {
        Map::new()
    } else {
        serde_json::from_slice(&text).map_err(|_| LoginError::Malformed { path: real.clone() })?
    };
    act(&mut config)?;
    let directory = real.parent().unwrap_or(Path::new("."));
    fs_err::create_dir_all(directory).map_err(failed("create"))?;
    let mut name = OsString::from(".");
    name.push(real.file_name().unwrap_or_default());
    name.push(format!(".{}", std::process::id()));
    let draft = real.with_file_name(name);
    let write = || -> io::Result<()> {
        // Made anew, so that its mode is ours from the first byte on.
        let mut out = fs_err::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
        out.write_all(serde_json::to_string_pretty(&config)?.as_bytes())?;
        out.write_all(b"\n")?;
        out.sync_all()?;
        fs_err::rename(&draft, &real)
    };
    write().map_err(|source| {
        // The first failure is the one to tell.
        let _ = fs_err::remove_file(&draft);
        failed("write")(source)
    })
}

/// Runs `docker-credential-NAME VERB` with `input`.
fn ask(file: &Path, helper: &str, verb: &str, input: &[u8]) -> Result<(), LoginError> {
    let program = format!("docker-credential-{helper}");
    let failed =
        |problem| LoginError::Helper { helper: program.escape_debug().to_string(), path: file.to_owned(), problem };
    if !is_program_name(helper) {
        return Err(failed(HelperProblem::Name));
    }
    let mut command = Command::new(&program);
    command.arg(verb).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(|_| failed(HelperProblem::CannotRun))?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read is judged by how it ends.
        let _ = stdin.write_all(input);
    }
    let end = Instant::now() + HELPER_TIMEOUT;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(_)) => {
                let mut said = String::new();
                let _ = child.stdout.take().map(|out| out.take(200).read_to_string(&mut said));
                let line = said.lines().next().unwrap_or("no reason given").escape_debug().to_string();
                return Err(failed(HelperProblem::Failed(line)));
            }
            Ok(None) if Instant::now() >= end => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(failed(HelperProblem::TimedOut));
            }
            Ok(None) => std::thread::sleep(HELPER_POLL),
            Err(_) => return Err(failed(HelperProblem::CannotRun)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a63_logins_are_kept_private_and_everything_else_stays() {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("sub/config.json");
        let registry = registry_name("r.example:5000").expect("name");
        keep(&file, &registry, "me", "pass:word").expect("kept");
        assert_eq!(fs_err::metadata(&file).expect("stat").permissions().mode() & 0o777, 0o600);
        let found =
            credentials::find(std::slice::from_ref(&file), &"r.example:5000/x".parse().expect("name")).expect("read");
        assert_eq!(found, Some(Credential::Password { user: "me".into(), password: "pass:word".into() }));
        let text = fs_err::read_to_string(&file).expect("read");
        fs_err::write(&file, text.replacen('{', r#"{"psFormat":"x","#, 1)).expect("write");
        keep(&file, &registry_name("").expect("hub"), "hub", "p").expect("kept");
        forget(&file, &registry).expect("forgotten");
        let text = fs_err::read_to_string(&file).expect("read");
        assert!(text.contains("psFormat") && text.contains("index.docker.io") && !text.contains("r.example"), "{text}");
        assert!(matches!(forget(&file, &registry), Err(LoginError::NotLoggedIn { .. })));
        fs_err::write(&file, "[]").expect("write");
        assert!(matches!(keep(&file, &registry, "a", "b"), Err(LoginError::Malformed { .. })));
    }

    #[test]
    fn names_of_registries() {
        let check = |text: &str, expect: Option<&str>| {
            let name = registry_name(text).ok().map(|reference| reference.registry().to_owned());
            assert_eq!(name.as_deref(), expect, "{text}");
        };
        check("", Some("docker.io"));
        check("https://index.docker.io/v1/", Some("docker.io"));
        check("quay.io", Some("quay.io"));
        check("https://r.example:5000/v2/", Some("r.example:5000"));
        check("localhost", Some("localhost"));
        check("a b", None);
        check("-x", None);
    }
}
