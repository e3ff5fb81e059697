//! Every environment variable that coracle reads, declared once.
//!
//! Nothing else in this package reads the environment, so that a test (or a person) sees the whole
//! interface here.

use std::ffi::OsString;
use std::path::PathBuf;

/// Where images and containers are kept, instead of `$XDG_DATA_HOME/coracle`.
pub const CORACLE_ROOT: &str = "CORACLE_ROOT";
/// Registries that may be spoken to in plain http, comma separated `host[:port]`.
pub const CORACLE_INSECURE_REGISTRIES: &str = "CORACLE_INSECURE_REGISTRIES";
/// Token servers that may see a registry's credentials although they are other hosts, comma separated
/// `REGISTRY=TOKEN_HOST`.
pub const CORACLE_TOKEN_HOSTS: &str = "CORACLE_TOKEN_HOSTS";
/// Set by the agent for the commands that it starts: the folder of a membership in a pool whose mirror may be asked.
pub const CORACLE_POOL_MIRROR: &str = "CORACLE_POOL_MIRROR";
/// `NAME=abort|error|delay`: lets a step go wrong, in builds with debug assertions.
const CORACLE_FAILPOINT: &str = "CORACLE_FAILPOINT";
const XDG_DATA_HOME: &str = "XDG_DATA_HOME";
const HOME: &str = "HOME";
/// What the caller's terminal is called.
const TERM: &str = "TERM";

/// Gives any variable to code that is told which ones it may ask for: the registry client reads
/// `DOCKER_CONFIG`, `REGISTRY_AUTH_FILE`, `XDG_CONFIG_HOME`, `XDG_RUNTIME_DIR`, `HOME`, `SSL_CERT_FILE`
/// and the proxy variables.
pub fn value(name: &str) -> Option<OsString> {
    read(name)
}

/// Gives a variable that is set and not empty.
#[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
fn read(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// Gives the kind of the caller's terminal.
pub fn term() -> Option<String> {
    read(TERM)?.into_string().ok()
}

/// Gives the state directory named by the caller, if any.
pub fn coracle_root() -> Option<PathBuf> {
    read(CORACLE_ROOT).map(PathBuf::from)
}

/// Gives the folder of a membership whose mirror may be asked.
pub fn pool_mirror() -> Option<PathBuf> {
    read(CORACLE_POOL_MIRROR).map(PathBuf::from).filter(|path| path.is_absolute())
}

/// Gives the registries named insecure by the caller.
pub fn insecure_registries() -> Vec<String> {
    list(CORACLE_INSECURE_REGISTRIES)
}

/// Gives the pairs of registry and token server that the caller trusts.
pub fn token_hosts() -> Vec<(String, String)> {
    let pairs = list(CORACLE_TOKEN_HOSTS);
    pairs.iter().filter_map(|pair| pair.split_once('=')).map(|(a, b)| (a.to_owned(), b.to_owned())).collect()
}

/// Gives the entries of a comma separated variable.
fn list(name: &str) -> Vec<String> {
    let text = read(name).and_then(|list| list.into_string().ok()).unwrap_or_default();
    text.split(',').map(str::trim).filter(|entry| !entry.is_empty()).map(str::to_owned).collect()
}

/// Gives the XDG base directory for data, absolute paths only as the specification says.
pub fn xdg_data_home() -> Option<PathBuf> {
    read(XDG_DATA_HOME).map(PathBuf::from).filter(|path| path.is_absolute())
}

/// Gives the XDG base directory for configuration, absolute paths only.
pub fn xdg_config_home() -> Option<PathBuf> {
    read("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute())
}

/// Arms the failpoint that a test names, in builds that have any.
pub fn arm_failpoint() {
    if let Some(text) = read(CORACLE_FAILPOINT).and_then(|text| text.into_string().ok()) {
        coracle_runtime::failpoint::arm(&text);
    }
}

/// Gives the caller's home directory.
pub fn home() -> Option<PathBuf> {
    read(HOME).map(PathBuf::from).filter(|path| path.is_absolute())
}

/// Gives the value of a variable that the person named with `-e NAME`.
pub fn named(name: &str) -> Option<String> {
    read_named(name)?.into_string().ok()
}

#[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
fn read_named(name: &str) -> Option<OsString> {
    let valid = !name.is_empty() && !name.contains(['=', '\0']);
    if valid { std::env::var_os(name) } else { None }
}
