//! One request: where it goes, hop by hop, and for how long.
//!
//! Two HTTP clients share nothing but settings: `home` talks to the registry's host and trusts its
//! `certs.d`; `away` talks to places the registry named and cannot be led inside (see `dns`).
//! Redirects are followed here, never by the library: authorization is dropped at the first hop to
//! another origin and does not come back, even when a later hop leads home (security.md A62).

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, HeaderMap, HeaderValue, LOCATION};
use reqwest::redirect::Policy;
use reqwest::{Client, Method, NoProxy, Proxy, Response, Url};
use rustls::RootCertStore;
use tokio::sync::OnceCell;

use super::destination::{self, Reach};
use super::dns::{NameFiles, Names};
use super::tls::{self, HostCertificates};
use super::{CertificateError, DestinationProblem, RegistryError};
use crate::limits::{HEADER_BLOCK_BYTES_MAX, PARALLEL_MAX, REDIRECTS_MAX, RETRY_AFTER_SECONDS_MAX};

/// How much of one HTTP/2 stream may wait unread: 2 MiB fill a 100 ms path with 160 Mbit/s.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
/// Enough that streams whose readers are slow cannot starve the others.
#[expect(clippy::cast_possible_truncation, reason = "PARALLEL_MAX is 8")]
const CONNECTION_WINDOW_BYTES: u32 = STREAM_WINDOW_BYTES * (PARALLEL_MAX as u32 + 1);
/// How long an unused connection is kept; registries close theirs after a minute or more.
const POOL_IDLE: Duration = Duration::from_secs(30);
/// How much longer an answer may take where content goes up: a chunk over a slow line, and what the
/// registry does with it.
const UPLOAD_PATIENCE: Duration = Duration::from_secs(300);
const USER_AGENT: &str = concat!("coracle/", env!("CARGO_PKG_VERSION"));

/// How long to wait for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For name, TCP and TLS together.
    pub connect: Duration,
    /// For the response's headers, once connected.
    pub headers: Duration,
    /// For the next bytes of a body.
    pub idle: Duration,
    /// Over this much time spent waiting for the network, ...
    pub rate_window: Duration,
    /// ... a body must deliver this much per second.
    pub rate_min_bytes_per_second: u64,
    /// The first pause before a retry; later ones grow.
    pub backoff: Duration,
    /// How long the pauses of one request may be together; none means that nothing is tried twice.
    pub patience: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts {
            connect: Duration::from_secs(10),
            headers: Duration::from_secs(30),
            idle: Duration::from_secs(30),
            rate_window: Duration::from_secs(60),
            rate_min_bytes_per_second: 1024,
            backoff: Duration::from_millis(250),
            patience: Duration::from_secs(RETRY_AFTER_SECONDS_MAX),
        }
    }
}

/// Which proxies to use, as the usual environment variables say it.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    /// For http registries (`http_proxy`).
    pub http: Option<String>,
    /// For https registries (`https_proxy`).
    pub https: Option<String>,
    /// Hosts without a proxy (`no_proxy`); this machine never has one.
    pub none: Option<String>,
}

impl std::fmt::Debug for Proxies {
    // A proxy URL may hold a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxies").finish_non_exhaustive()
    }
}

/// What a transport needs to know.
pub(super) struct TransportOptions {
    pub timeouts: Timeouts,
    pub proxies: Proxies,
    pub certs_dirs: Vec<PathBuf>,
    /// Whether a certificate of our own in `certs_dirs` is used.
    pub shows_certificate: bool,
    pub name_files: NameFiles,
    /// Who alone is trusted and who we are there, instead of the system's roots and `certs_dirs`.
    pub only: Option<HostCertificates>,
}

/// Sends requests on behalf of one registry.
pub(super) struct Transport {
    base: Url,
    /// The port in the registry's name; a URL forgets one that is its scheme's default.
    port: Option<u16>,
    home: Client,
    away: OnceCell<Client>,
    reach: OnceCell<Reach>,
    names: Names,
    roots: RootCertStore,
    pub timeouts: Timeouts,
    proxies: Proxies,
}

/// One request, before anybody adds an authorization.
#[derive(Clone)]
pub(super) struct Request {
    pub method: Method,
    pub url: Url,
    pub headers: HeaderMap,
    /// The body of a form, for POST.
    pub form: Option<String>,
    /// Content, for PUT and PATCH.
    pub body: Option<Bytes>,
    pub follow: Follow,
}

impl Request {
    /// A request without headers and body.
    pub fn new(method: Method, url: Url, follow: Follow) -> Request {
        Request { method, url, headers: HeaderMap::new(), form: None, body: None, follow }
    }
}

/// Whether redirects are followed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Follow {
    Yes,
    /// Token requests and pings: a redirect is an answer like any other.
    No,
}

/// A response and where it came from.
pub(super) struct Answer {
    pub response: Response,
    /// Whether the request that got it still had the registry's authorization to offer.
    pub at_home: bool,
}

impl Answer {
    pub fn host(&self) -> String {
        host_of(self.response.url())
    }
}

impl Transport {
    /// Prepares for the registry `host` (`host[:port]`), whose certificates are named `registry`.
    pub fn new(host: &str, registry: &str, options: TransportOptions) -> Result<Transport, RegistryError> {
        let bad_host = || RegistryError::BadHost { registry: registry.to_owned() };
        let base = Url::parse(&format!("https://{host}/")).map_err(|_| bad_host())?;
        let named = base.host_str().ok_or_else(bad_host)?;
        let (expected, port) = match host.rsplit_once(':') {
            Some((name, digits)) if !digits.ends_with(']') => (name, Some(digits.parse().map_err(|_| bad_host())?)),
            _ => (host, None),
        };
        // What we show and look credentials up for must be what the URL really means.
        if !named.eq_ignore_ascii_case(expected) && !expected.starts_with('[') {
            return Err(bad_host());
        }
        let (certificates, roots) = match options.only {
            Some(only) => (Ok(only), RootCertStore::empty()),
            None => {
                let read = HostCertificates::read(&options.certs_dirs, registry, options.shows_certificate);
                (read, tls::system_roots())
            }
        };
        let refused = |source: CertificateError| RegistryError::Certificates { registry: registry.to_owned(), source };
        let config = tls::client_config(roots.clone(), certificates.map_err(refused)?).map_err(refused)?;
        let trusted = proxy_hosts(&options.proxies);
        let names = Names::new(options.name_files, trusted);
        let home = build_client(names.clone(), config, &options.timeouts, &options.proxies)?;
        Ok(Transport {
            base,
            port,
            home,
            away: OnceCell::new(),
            reach: OnceCell::new(),
            names,
            roots,
            timeouts: options.timeouts,
            proxies: options.proxies,
        })
    }

    /// The registry's origin with the scheme in use, path `/`.
    pub fn base(&self) -> &Url {
        &self.base
    }

    /// Speaks plain http from now on. Only for registries that the user named insecure.
    pub fn use_plain_http(&mut self) {
        // Both schemes are special ones with a host, so neither call can fail.
        let _ = self.base.set_scheme("http");
        let _ = self.base.set_port(self.port);
    }

    /// How far the registry itself reaches; what it may point to depends on that.
    pub async fn reach(&self) -> Reach {
        let find = async {
            let host = self.base.host();
            let Some(host) = host else { return Reach::Public };
            if let Some(reach) = Reach::of_host(&host) {
                return reach;
            }
            // One public address makes it public; so does a name that only a proxy can resolve.
            let found = self.names.lookup(&host.to_string()).await.unwrap_or_default();
            found.into_iter().map(Reach::of).min().unwrap_or(Reach::Public)
        };
        *self.reach.get_or_init(|| find).await
    }

    /// Sends `request`; `authorization` goes to the registry's own origin or the first hop only.
    pub async fn send(&self, request: &Request, authorization: Option<&HeaderValue>) -> Result<Answer, RegistryError> {
        let mut url = request.url.clone();
        let mut authorization = authorization.cloned();
        let mut at_home = true;
        for _ in 0..=REDIRECTS_MAX {
            let response = self.send_once(request, &url, authorization.as_ref()).await?;
            if request.follow == Follow::No || !is_redirect(&response) {
                return Ok(Answer { response, at_home });
            }
            let refuse = |problem| RegistryError::Redirect { host: host_of(&url), problem };
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let location = location.ok_or_else(|| refuse(DestinationProblem::NoLocation))?;
            let target = destination::redirect(&url, location, self.reach().await).map_err(refuse)?;
            if target.origin() != url.origin() {
                authorization = None;
                at_home = false;
            }
            url = target;
        }
        Err(RegistryError::Redirect { host: host_of(&url), problem: DestinationProblem::TooMany })
    }

    async fn send_once(
        &self,
        request: &Request,
        url: &Url,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, RegistryError> {
        let client = if url.host_str() == self.base.host_str() { &self.home } else { self.away().await? };
        let mut builder = client
            .request(request.method.clone(), url.clone())
            .headers(request.headers.clone())
            .header(ACCEPT_ENCODING, "identity");
        if let Some(authorization) = authorization {
            builder = builder.header(AUTHORIZATION, authorization.clone());
        }
        if let Some(form) = &request.form {
            builder =
                builder.header(reqwest::header::CONTENT_TYPE, "application/x-www-form-urlencoded").body(form.clone());
        }
        let mut patience = self.timeouts.connect + self.timeouts.headers;
        if let Some(body) = &request.body {
            builder = builder.body(body.clone());
            patience += UPLOAD_PATIENCE;
        }
        let host = host_of(url);
        match tokio::time::timeout(patience, builder.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) if error.is_connect() && error.is_timeout() => {
                Err(RegistryError::from_exchange(&host, error))
            }
            Ok(Err(error)) => Err(RegistryError::from_exchange(&host, error)),
            Err(_) => Err(RegistryError::timed_out(&host)),
        }
    }

    /// Sends a body of `size_bytes` that comes as a stream, once, and follows no redirect.
    pub async fn send_stream(
        &self,
        request: &Request,
        authorization: Option<&HeaderValue>,
        size_bytes: u64,
        body: reqwest::Body,
    ) -> Result<Answer, RegistryError> {
        let is_home = request.url.host_str() == self.base.host_str();
        let client = if is_home { &self.home } else { self.away().await? };
        let mut builder = client.request(request.method.clone(), request.url.clone()).headers(request.headers.clone());
        if let Some(authorization) = authorization {
            builder = builder.header(AUTHORIZATION, authorization.clone());
        }
        let sent = builder.header(CONTENT_LENGTH, size_bytes).body(body).send().await;
        let response = sent.map_err(|error| RegistryError::from_exchange(&host_of(&request.url), error))?;
        Ok(Answer { response, at_home: is_home })
    }

    async fn away(&self) -> Result<&Client, RegistryError> {
        let make = || async {
            let refused = |source| RegistryError::Certificates { registry: host_of(&self.base), source };
            let config = tls::client_config(self.roots.clone(), HostCertificates::default()).map_err(refused)?;
            let names = self.names.restricted(self.reach().await);
            build_client(names, config, &self.timeouts, &self.proxies)
        };
        self.away.get_or_try_init(make).await
    }
}

/// Gives `host[:port]` of a URL, for people.
pub(super) fn host_of(url: &Url) -> String {
    match (url.host_str(), url.port()) {
        (Some(host), Some(port)) => format!("{host}:{port}"),
        (Some(host), None) => host.to_owned(),
        (None, _) => url.scheme().to_owned(),
    }
}

fn is_redirect(response: &Response) -> bool {
    matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308)
}

fn build_client(
    names: Names,
    config: rustls::ClientConfig,
    timeouts: &Timeouts,
    proxies: &Proxies,
) -> Result<Client, RegistryError> {
    let mut builder = Client::builder()
        .tls_backend_preconfigured(config)
        .dns_resolver(std::sync::Arc::new(names))
        .redirect(Policy::none())
        .referer(false)
        .no_proxy()
        .user_agent(USER_AGENT)
        .connect_timeout(timeouts.connect)
        .pool_idle_timeout(POOL_IDLE)
        .http2_initial_stream_window_size(STREAM_WINDOW_BYTES)
        .http2_initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_max_header_list_size(HEADER_BLOCK_BYTES_MAX);
    let direct = format!("{},localhost,127.0.0.0/8,::1", proxies.none.as_deref().unwrap_or_default());
    let schemes = [(&proxies.http, Proxy::http as fn(String) -> _), (&proxies.https, Proxy::https)];
    for (setting, make) in schemes {
        let Some(setting) = setting else { continue };
        let proxy = make(setting.clone()).map_err(|_| RegistryError::Proxy { value: without_password(setting) })?;
        builder = builder.proxy(proxy.no_proxy(NoProxy::from_string(&direct)));
    }
    builder.build().map_err(|error| RegistryError::SetUp(std::io::Error::other(error)))
}

fn proxy_hosts(proxies: &Proxies) -> Vec<String> {
    let settings = [&proxies.http, &proxies.https];
    let hosts = settings.into_iter().flatten().filter_map(|setting| {
        let url = Url::parse(setting).or_else(|_| Url::parse(&format!("http://{setting}"))).ok()?;
        url.host_str().map(str::to_owned)
    });
    hosts.collect()
}

fn without_password(setting: &str) -> String {
    let shown = setting.rsplit_once('@').map_or(setting, |(_, host)| host);
    shown.escape_debug().collect()
}
