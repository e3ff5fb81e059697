//! How to pull: what the user's environment and the command line say.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::credentials;
use crate::layer::LayerSpace;
use crate::platform::Platform;
use crate::registry::{MirrorAccess, NameFiles, Proxies, Timeouts, TokenHost};

/// How many blobs are fetched at the same time unless told otherwise; what Docker does.
const PARALLEL_DEFAULT: usize = 3;

/// How to pull.
#[derive(Debug, Clone)]
pub struct PullOptions {
    /// Which image of an index; this host's when absent.
    pub platform: Option<Platform>,
    /// Where layers are unpacked to.
    pub space: LayerSpace,
    /// Files of `docker login` and `podman login`; the first that knows the registry counts.
    pub login_files: Vec<PathBuf>,
    /// Registries, as `host` or `host:port`, that may be talked to over plain http.
    pub insecure_registries: Vec<String>,
    /// Directories with `<host[:port]>/*.crt`, authorities for one registry each.
    pub certs_dirs: Vec<PathBuf>,
    /// Whether `*.cert` with `*.key` in there, our own certificate, is shown to its registry.
    pub shows_certificate: bool,
    /// Token servers on other hosts than their registry.
    pub token_hosts: Vec<TokenHost>,
    /// Which proxies to use.
    pub proxies: Proxies,
    /// How many blobs are fetched at the same time, 1 to [`PARALLEL_MAX`](crate::limits::PARALLEL_MAX).
    pub parallel: usize,
    /// How long to wait for what.
    pub timeouts: Timeouts,
    /// Where names are looked up.
    pub name_files: NameFiles,
    /// A mirror that may have what has a digest.
    pub mirror: Option<MirrorAccess>,
}

impl PullOptions {
    /// Knows the well-known token servers and the system's directories, nothing of any user.
    pub fn new(space: LayerSpace) -> PullOptions {
        PullOptions {
            platform: None,
            space,
            login_files: Vec::new(),
            insecure_registries: Vec::new(),
            certs_dirs: vec!["/etc/containers/certs.d".into(), "/etc/docker/certs.d".into()],
            shows_certificate: true,
            token_hosts: TokenHost::well_known(),
            proxies: Proxies::default(),
            parallel: PARALLEL_DEFAULT,
            timeouts: Timeouts::default(),
            name_files: NameFiles::default(),
            mirror: None,
        }
    }

    /// Takes login files, certificates and proxies from where a user's environment says they are.
    pub fn from_environment(space: LayerSpace, get: &dyn Fn(&str) -> Option<OsString>) -> PullOptions {
        let mut options = PullOptions::new(space);
        options.login_files = credentials::login_files(get);
        let text = |name: &str| get(name).and_then(|value| value.into_string().ok()).filter(|value| !value.is_empty());
        let either = |lower: &str, upper: &str| text(lower).or_else(|| text(upper));
        let all = either("all_proxy", "ALL_PROXY");
        options.proxies = Proxies {
            http: either("http_proxy", "HTTP_PROXY").or_else(|| all.clone()),
            https: either("https_proxy", "HTTPS_PROXY").or(all),
            none: either("no_proxy", "NO_PROXY"),
        };
        let config = text("XDG_CONFIG_HOME").map(PathBuf::from);
        let config = config.or_else(|| text("HOME").map(|home| PathBuf::from(home).join(".config")));
        if let Some(config) = config {
            options.certs_dirs.insert(0, config.join("containers/certs.d"));
        }
        options
    }
}
