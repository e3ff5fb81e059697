//! User names and passwords for registries, from the files that `docker login` and `podman login`
//! write.
//!
//! A credential is found for exactly one `host[:port]`, never for a similar one and never for
//! Docker Hub instead (security.md A63). A credential helper that is named and does not work is an
//! error: silently pulling without it would show up as "access denied" much later.

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use docker_credential::{CredentialRetrievalError, DockerCredential};

use crate::reference::{DEFAULT_REGISTRY, Reference};

/// The largest login file that is read.
const FILE_SIZE_MAX: u64 = 4 << 20;
/// How long a credential helper may take; some ask the user to unlock a key ring.
const HELPER_TIMEOUT: Duration = Duration::from_secs(60);
/// What helpers print when they know nothing about a host. The helper protocol has no other sign.
const HELPER_KNOWS_NOTHING: &str = "credentials not found in native keychain";
/// How much of a helper's complaint an error repeats.
const COMPLAINT_LENGTH_MAX: usize = 200;
/// The names under which tools store credentials for Docker Hub, most usual first.
pub(crate) const HUB_NAMES: [&str; 3] = ["https://index.docker.io/v1/", "docker.io", "index.docker.io"];

/// What opens a registry.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// A user name and a password or access token.
    Password {
        /// The user.
        user: String,
        /// The secret.
        password: String,
    },
    /// A refresh token of an OAuth2 token server.
    IdentityToken(String),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Credential::Password { .. } => "Password(..)",
            Credential::IdentityToken(_) => "IdentityToken(..)",
        })
    }
}

/// Why the login files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// A file exists and cannot be read.
    #[error("cannot read the login file")]
    Read(#[source] io::Error),
    /// A file is not what `docker login` writes.
    #[error("{} is not a valid login file", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
    },
    /// A helper is named and cannot be used.
    #[error("credential helper {helper}, named in {}, {problem}", path.display())]
    Helper {
        /// The program.
        helper: String,
        /// The file that names it.
        path: PathBuf,
        /// What happened.
        problem: HelperProblem,
    },
}

/// What is wrong with a credential helper.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each text says what the variant means")]
pub enum HelperProblem {
    #[error("has a name that is no program name")]
    Name,
    #[error("cannot be run")]
    CannotRun,
    #[error("gave an answer that is not a credential")]
    Answer,
    #[error("failed: {0}")]
    Failed(String),
    #[error("did not answer within {} s", HELPER_TIMEOUT.as_secs())]
    TimedOut,
}

/// The helpers that a login file names.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Helpers {
    creds_store: Option<String>,
    cred_helpers: Option<std::collections::HashMap<String, String>>,
}

/// Lists the login files that apply, the most explicit first; `get` reads an environment variable.
pub fn login_files(get: &dyn Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let dir = |name: &str| get(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = dir("HOME");
    let under_home = |path: &str| home.as_ref().map(|home| home.join(path));
    let docker = dir("DOCKER_CONFIG").or_else(|| under_home(".docker"));
    let config = dir("XDG_CONFIG_HOME").or_else(|| under_home(".config"));
    let files = [
        dir("REGISTRY_AUTH_FILE"),
        docker.map(|dir| dir.join("config.json")),
        dir("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json")),
        config.map(|dir| dir.join("containers/auth.json")),
    ];
    files.into_iter().flatten().collect()
}

/// Finds the credential for the registry of `reference` in `files`; the first file that has one wins.
pub fn find(files: &[PathBuf], reference: &Reference) -> Result<Option<Credential>, CredentialError> {
    let registry = reference.registry();
    for path in files {
        let Some(text) = read(path)? else { continue };
        let helpers: Helpers =
            serde_json::from_slice(&text).map_err(|_| CredentialError::Malformed { path: path.clone() })?;
        let names: &[&str] = if registry == DEFAULT_REGISTRY { &HUB_NAMES } else { &[registry] };
        for name in names {
            if let Some(credential) = find_in(path, &text, &helpers, name)? {
                return Ok(Some(credential));
            }
        }
    }
    Ok(None)
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, CredentialError> {
    let file = match fs_err::File::open(path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(CredentialError::Read(error)),
    };
    let mut text = Vec::new();
    file.take(FILE_SIZE_MAX).read_to_end(&mut text).map_err(CredentialError::Read)?;
    // An empty file is what `touch` and an interrupted login leave.
    Ok(if text.iter().all(u8::is_ascii_whitespace) { None } else { Some(text) })
}

fn find_in(path: &Path, text: &[u8], helpers: &Helpers, name: &str) -> Result<Option<Credential>, CredentialError> {
    let own_helper = helpers.cred_helpers.as_ref().and_then(|map| map.get(name)).filter(|helper| !helper.is_empty());
    let helper = own_helper.or(helpers.creds_store.as_ref().filter(|helper| !helper.is_empty()));
    let failed = |problem| CredentialError::Helper {
        helper: format!("docker-credential-{}", helper.map(|name| name.escape_debug().to_string()).unwrap_or_default()),
        path: path.to_owned(),
        problem,
    };
    let found = match helper {
        Some(helper) if !is_program_name(helper) => return Err(failed(HelperProblem::Name)),
        Some(_) => ask_in_time(text, name).ok_or_else(|| failed(HelperProblem::TimedOut))?,
        None => docker_credential::get_credential_from_reader(text, name),
    };
    match found {
        Ok(DockerCredential::UsernamePassword(user, password)) => Ok(Some(Credential::Password { user, password })),
        Ok(DockerCredential::IdentityToken(token)) => Ok(Some(Credential::IdentityToken(token))),
        Err(CredentialRetrievalError::NoCredentialConfigured) => Ok(None),
        Err(CredentialRetrievalError::HelperFailure { stdout, .. }) if stdout.trim() == HELPER_KNOWS_NOTHING => {
            Ok(None)
        }
        Err(CredentialRetrievalError::HelperFailure { stdout, stderr, .. }) => {
            Err(failed(HelperProblem::Failed(complaint(&stdout, &stderr))))
        }
        Err(CredentialRetrievalError::HelperCommunicationError) => Err(failed(HelperProblem::CannotRun)),
        Err(CredentialRetrievalError::MalformedHelperResponse) => Err(failed(HelperProblem::Answer)),
        Err(_) => Err(CredentialError::Malformed { path: path.to_owned() }),
    }
}

/// Looks the name up on a thread of its own, so that a helper that hangs does not hang the pull.
fn ask_in_time(text: &[u8], name: &str) -> Option<Result<DockerCredential, CredentialRetrievalError>> {
    let (sender, receiver) = mpsc::channel();
    let (text, name) = (text.to_owned(), name.to_owned());
    std::thread::spawn(move || {
        // Nobody listens after the timeout.
        let _ = sender.send(docker_credential::get_credential_from_reader(text.as_slice(), &name));
    });
    receiver.recv_timeout(HELPER_TIMEOUT).ok()
}

pub(crate) fn is_program_name(helper: &str) -> bool {
    helper.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

fn complaint(stdout: &str, stderr: &str) -> String {
    let said = if stderr.trim().is_empty() { stdout } else { stderr };
    let line = said.trim().lines().next().unwrap_or("no reason given");
    line.chars().take(COMPLAINT_LENGTH_MAX).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login_file(text: &str) -> (tempfile::TempDir, Vec<PathBuf>) {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("config.json");
        fs_err::write(&path, text).expect("write");
        (dir, vec![path])
    }

    fn user(files: &[PathBuf], image: &str) -> Option<String> {
        match find(files, &image.parse().expect(image)).expect("readable") {
            Some(Credential::Password { user, .. }) => Some(user),
            Some(Credential::IdentityToken(token)) => Some(format!("token {token}")),
            None => None,
        }
    }

    #[test]
    fn a63_only_the_exact_host_gets_credentials() {
        // dTpw is u:p.
        let (_dir, files) = login_file(
            r#"{"auths":{"a.io":{"auth":"dTpw"},"https://b.io:5000/v1/":{"auth":"dTpw"},"c.io/team":{"auth":"dTpw"}}}"#,
        );
        assert_eq!(user(&files, "a.io/x").as_deref(), Some("u"));
        assert_eq!(user(&files, "b.io:5000/x").as_deref(), Some("u"));
        let others = [
            "a.io.evil/x",
            "a.io:444/x",
            "A.io/x",
            "xa.io/x",
            "b.io/x",
            "c.io/x",
            "c.io/team/x",
            "busybox",
            "io/a.io/x",
        ];
        for image in others {
            assert_eq!(user(&files, image), None, "{image}");
        }
    }

    #[test]
    fn a63_docker_hub_has_its_names_and_lends_them_to_nobody() {
        for name in ["https://index.docker.io/v1/", "docker.io", "index.docker.io"] {
            let (_dir, files) = login_file(&format!(r#"{{"auths":{{"{name}":{{"auth":"dTpw"}}}}}}"#));
            assert_eq!(user(&files, "busybox").as_deref(), Some("u"), "{name}");
            assert_eq!(user(&files, "quay.io/busybox"), None, "{name}");
            assert_eq!(user(&files, "docker.io.evil/busybox"), None, "{name}");
        }
    }

    #[test]
    fn a63_a_broken_helper_is_an_error_and_no_other_credential_is_tried() {
        let (_dir, files) = login_file(
            r#"{"auths":{"https://index.docker.io/v1/":{"auth":"dTpw"}},"credHelpers":{"a.io":"does-not-exist-here","b.io":"../../bin/x"}}"#,
        );
        let error = find(&files, &"a.io/x".parse().expect("name")).expect_err("broken");
        let CredentialError::Helper { helper, problem, .. } = error else { panic!("{error}") };
        assert_eq!((helper.as_str(), problem), ("docker-credential-does-not-exist-here", HelperProblem::CannotRun));
        let error = find(&files, &"b.io/x".parse().expect("name")).expect_err("path");
        assert!(matches!(error, CredentialError::Helper { problem: HelperProblem::Name, .. }), "{error}");
        assert_eq!(user(&files, "c.io/x"), None);
    }

    #[test]
    fn identity_tokens_missing_files_and_junk() {
        let (_dir, files) = login_file(r#"{"auths":{"a.io":{"identitytoken":"t"},"b.io":{}}}"#);
        assert_eq!(user(&files, "a.io/x").as_deref(), Some("token t"));
        assert_eq!(user(&files, "b.io/x"), None);
        assert_eq!(user(&[PathBuf::from("/nonexistent/config.json")], "a.io/x"), None);
        let (_dir, files) = login_file("");
        assert_eq!(user(&files, "a.io/x"), None);
        for junk in ["{", "[]", r#"{"auths":{"a.io":{"auth":"%"}}}"#, r#"{"auths":{"a.io":{"auth":"bm9jb2xvbg=="}}}"#] {
            let (_dir, files) = login_file(junk);
            let error = find(&files, &"a.io/x".parse().expect("name")).expect_err(junk);
            assert!(matches!(error, CredentialError::Malformed { .. }), "{junk}: {error}");
        }
    }

    #[test]
    fn login_files_follow_the_environment() {
        let env = |name: &str| {
            let value = match name {
                "HOME" => "/h",
                "DOCKER_CONFIG" => "/d",
                "XDG_RUNTIME_DIR" => "/r",
                _ => return None,
            };
            Some(OsString::from(value))
        };
        let files: Vec<_> = login_files(&env).iter().map(|path| path.display().to_string()).collect();
        assert_eq!(files, ["/d/config.json", "/r/containers/auth.json", "/h/.config/containers/auth.json"]);
    }

    #[test]
    fn debug_output_hides_secrets() {
        let shown = format!("{:?}", Credential::Password { user: "u".into(), password: "secret".into() });
        assert!(!shown.contains("secret"));
    }
}
