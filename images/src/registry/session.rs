//! One repository on one registry: scheme, authorization, retries, and what statuses mean.
//!
//! Authorization is found out from a 401 of the registry's own origin, at most once per request: a
//! second 401 is an answer. A 401 from a place a redirect led to is never answered.

use std::time::Duration;

use reqwest::header::{ACCEPT, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Method, Url};
use tokio::sync::{Mutex, mpsc};

use super::body::Body;
use super::challenge::{Challenge, Realm, RealmProblem, TokenHost};
use super::client::Notice;
use super::transport::{Answer, Follow, Request, Transport, host_of};
use super::{RegistryError, backoff, manifest, token};
use crate::credentials::Credential;
use crate::limits::{ATTEMPTS_MAX, ERROR_BODY_BYTES_MAX};

/// The longest error code of a registry that is repeated.
const CODE_LENGTH_MAX: usize = 64;

/// What a request is about; decides what a failure means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Subject {
    Ping,
    Login,
    Manifest,
    Blob,
    Upload,
}

/// Talks about one repository.
pub(super) struct Session {
    pub transport: Transport,
    /// The registry as the user knows it.
    registry: String,
    repository: String,
    /// The image's full name, for errors.
    image: String,
    credential: Option<Credential>,
    token_hosts: Vec<TokenHost>,
    scope: String,
    namespace: Option<String>,
    authorization: Mutex<Authorization>,
}

/// The authorization in use. The generation tells who else has renewed it meanwhile.
#[derive(Default)]
struct Authorization {
    header: Option<HeaderValue>,
    generation: u64,
    /// Whether the registry wants passwords, not tokens: the same one again is of no use.
    is_basic: bool,
}

/// What a session is about.
pub(super) struct SessionOptions {
    pub registry: String,
    pub repository: String,
    pub image: String,
    pub credential: Option<Credential>,
    pub token_hosts: Vec<TokenHost>,
    /// What tokens are asked for: scopes of the token specification, separated by spaces, or nothing.
    pub scope: String,
    /// What a mirror is asked for and how it knows us.
    pub mirrored: Option<Mirrored>,
}

/// What makes a session one with a mirror.
pub(super) struct Mirrored {
    /// The registry that is mirrored.
    pub namespace: String,
    /// Sent with every request, and never anything else.
    pub authorization: HeaderValue,
}

impl Session {
    /// Prepares a session; `may_be_plain` registries are asked whether they speak TLS at all.
    pub async fn open(
        mut transport: Transport,
        options: SessionOptions,
        may_be_plain: bool,
    ) -> Result<Session, RegistryError> {
        if may_be_plain {
            let url = join(transport.base(), "v2/");
            let ping = Request::new(Method::GET, url, Follow::No);
            match transport.send(&ping, None).await {
                // A bad certificate is no reason to talk without one (security.md A64).
                Err(error) if speaks_no_tls(&error) => transport.use_plain_http(),
                Err(error) => return Err(error),
                Ok(_) => {}
            }
        }
        let (namespace, authorization) = match options.mirrored {
            // Like a password: there is no better one to be had by asking.
            Some(Mirrored { namespace, authorization }) => {
                (Some(namespace), Authorization { header: Some(authorization), generation: 0, is_basic: true })
            }
            None => (None, Authorization::default()),
        };
        Ok(Session {
            transport,
            registry: options.registry,
            repository: options.repository,
            image: options.image,
            credential: options.credential,
            token_hosts: options.token_hosts,
            scope: options.scope,
            namespace,
            authorization: Mutex::new(authorization),
        })
    }

    /// Asks for a manifest by tag or digest.
    pub async fn manifest(&self, method: Method, name: &str, notices: &Notices) -> Result<Answer, RegistryError> {
        let mut headers = HeaderMap::new();
        for media_type in manifest::ACCEPTED {
            headers.append(ACCEPT, HeaderValue::from_static(media_type));
        }
        let url = self.url(&format!("manifests/{name}"));
        let request = Request { headers, ..Request::new(method, url, Follow::Yes) };
        self.request(&request, Subject::Manifest, notices).await
    }

    /// Asks for a blob, from a byte on.
    pub async fn blob(&self, digest: &str, headers: HeaderMap, notices: &Notices) -> Result<Answer, RegistryError> {
        let url = self.url(&format!("blobs/{digest}"));
        let request = Request { headers, ..Request::new(Method::GET, url, Follow::Yes) };
        self.request(&request, Subject::Blob, notices).await
    }

    /// Asks for the API's root with the credentials, to learn whether they are good.
    pub async fn log_in(&self, notices: &Notices) -> Result<(), RegistryError> {
        let url = self.named(join(self.transport.base(), "v2/"));
        let request = Request::new(Method::GET, url, Follow::No);
        self.request(&request, Subject::Login, notices).await.map(drop)
    }

    /// The address of something of the repository. Its parts come from parsed references and digests.
    pub fn url(&self, rest: &str) -> Url {
        self.named(join(self.transport.base(), &format!("v2/{}/{rest}", self.repository)))
    }

    /// Adds which registry a mirror is asked for, as containerd does.
    fn named(&self, mut url: Url) -> Url {
        if let Some(namespace) = &self.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        url
    }

    /// The authorization in use, for a request that cannot be repeated by [`Session::request`].
    pub async fn authorization(&self) -> Option<HeaderValue> {
        self.authorization.lock().await.header.clone()
    }

    /// Sends `request` until there is an answer that waiting would not change.
    pub async fn request(
        &self,
        request: &Request,
        subject: Subject,
        notices: &Notices,
    ) -> Result<Answer, RegistryError> {
        let mut patience = self.transport.timeouts.patience;
        let mut attempt = 0;
        loop {
            attempt += 1;
            let outcome = self.authorized(request, subject).await;
            let pause = match &outcome {
                Ok(answer) => retry_pause(answer),
                Err(error) if error.is_passing() => Some(None),
                Err(RegistryError::Token { problem: token::TokenProblem::Status(500..=599), .. }) => Some(None),
                Err(_) => None,
            };
            // A mirror that fails is left; one that says when to come back is there.
            let limited = matches!(&outcome, Ok(answer) if answer.response.status().as_u16() == 429);
            let pause = pause.filter(|_| self.namespace.is_none() || limited);
            let Some(pause) = pause else { return self.settle(outcome?, subject).await };
            let pause = pause.unwrap_or_else(|| backoff(self.transport.timeouts.backoff, attempt));
            if attempt >= ATTEMPTS_MAX || pause > patience {
                return self.settle(outcome?, subject).await;
            }
            patience -= pause;
            notices.send(Notice::Waiting { milliseconds: u64::try_from(pause.as_millis()).unwrap_or(u64::MAX) });
            tokio::time::sleep(pause).await;
        }
    }

    /// Sends `request` with the authorization we have, or get when the registry asks for one.
    async fn authorized(&self, request: &Request, subject: Subject) -> Result<Answer, RegistryError> {
        let mut renewed = false;
        loop {
            let (header, generation, is_basic) = {
                let current = self.authorization.lock().await;
                (current.header.clone(), current.generation, current.is_basic)
            };
            let header = header.filter(|_| self.is_home(request));
            let answer = self.transport.send(request, header.as_ref()).await?;
            let asks = answer.response.status().as_u16() == 401 && answer.at_home && self.is_home(request);
            if !asks || subject == Subject::Ping {
                return Ok(answer);
            }
            if renewed || (is_basic && header.is_some()) {
                return Ok(answer);
            }
            self.renew(answer.response.headers(), generation).await?;
            renewed = true;
        }
    }

    /// Whether a request goes to the registry itself: an upload may have to go elsewhere.
    pub fn is_home(&self, request: &Request) -> bool {
        request.url.origin() == self.transport.base().origin()
    }

    /// Gets what a challenge asks for, unless another request has done so since `seen`.
    async fn renew(&self, headers: &HeaderMap, seen: u64) -> Result<(), RegistryError> {
        let mut current = self.authorization.lock().await;
        if current.generation != seen {
            return Ok(());
        }
        let unauthorized = |rejected| RegistryError::Unauthorized { registry: self.registry.clone(), rejected };
        let (header, is_basic) = match (Challenge::from_headers(headers), &self.credential) {
            (Some(Challenge::Basic), Some(Credential::Password { user, password })) => {
                (token::basic(user, password), true)
            }
            (Some(Challenge::Basic) | None, None) => return Err(unauthorized(false)),
            (Some(Challenge::Basic) | None, Some(_)) => return Err(unauthorized(true)),
            (Some(Challenge::Bearer { realm, service }), credential) => {
                let checked =
                    Realm::check(&realm, self.transport.base(), self.transport.reach().await, &self.token_hosts);
                let realm = checked.map_err(|problem| self.realm_error(&realm, problem))?;
                let credential = credential.as_ref().filter(|_| realm.credentials);
                (token::fetch(&self.transport, &realm, service.as_deref(), &self.scope, credential).await?, false)
            }
        };
        *current = Authorization { header: Some(header), generation: seen + 1, is_basic };
        Ok(())
    }

    fn realm_error(&self, realm: &str, problem: RealmProblem) -> RegistryError {
        // Scheme and host are what the user must see; the rest may be anything.
        let shown = match Url::parse(realm) {
            Ok(url) => format!("{}://{}", url.scheme(), host_of(&url)),
            Err(_) => "an unreadable address".to_owned(),
        };
        let realm = shown.escape_debug().take(CODE_LENGTH_MAX * 2).collect();
        RegistryError::Realm { registry: self.registry.clone(), realm, problem }
    }

    /// Turns an answer that is no success into the error it means.
    pub async fn settle(&self, answer: Answer, subject: Subject) -> Result<Answer, RegistryError> {
        let status = answer.response.status().as_u16();
        if (200..=299).contains(&status) {
            return Ok(answer);
        }
        if status == 429 {
            return Err(rate_limited(&self.registry, answer.response.headers()));
        }
        let (host, at_home) = (answer.host(), answer.at_home);
        let is_basic = self.authorization.lock().await.is_basic;
        let body = Body::new(answer, self.transport.timeouts).read_some(ERROR_BODY_BYTES_MAX).await;
        let code = error_code(&body);
        let (image, authenticated) = (self.image.clone(), self.credential.is_some());
        Err(match (status, subject) {
            (401, _) if at_home && is_basic => {
                RegistryError::Unauthorized { registry: self.registry.clone(), rejected: true }
            }
            (401, Subject::Login) if at_home => {
                RegistryError::Unauthorized { registry: self.registry.clone(), rejected: authenticated }
            }
            (401 | 403, _) if at_home => RegistryError::Denied { image, authenticated, code },
            (404, Subject::Manifest) if at_home => RegistryError::UnknownImage { image, code },
            _ => {
                let what = match subject {
                    Subject::Ping | Subject::Login => "the API version",
                    Subject::Upload => "an upload",
                    Subject::Manifest => "a manifest",
                    Subject::Blob => "a blob",
                };
                RegistryError::Status { host, what: what.to_owned(), status, code }
            }
        })
    }
}

/// Where a request says that it waits; lost when nobody listens.
#[derive(Clone)]
pub(super) struct Notices(pub Option<mpsc::UnboundedSender<Notice>>);

impl Notices {
    fn send(&self, notice: Notice) {
        if let Some(sender) = &self.0 {
            // The listener may have left.
            let _ = sender.send(notice);
        }
    }
}

/// Makes the error for a 429, with what the headers say about it.
pub(super) fn rate_limited(registry: &str, headers: &HeaderMap) -> RegistryError {
    let remaining = headers.get("ratelimit-remaining").and_then(|value| value.to_str().ok());
    RegistryError::RateLimited {
        registry: registry.to_owned(),
        retry_after_seconds: retry_after(headers).map(|wait| wait.as_secs()),
        remaining: remaining.map(|text| text.chars().take(CODE_LENGTH_MAX).collect()),
    }
}

/// Says whether an answer is worth another try, and when, if the registry says so.
fn retry_pause(answer: &Answer) -> Option<Option<Duration>> {
    let headers = answer.response.headers();
    match answer.response.status().as_u16() {
        // An empty account is filled again in hours, not in seconds.
        429 if retry_after(headers).is_none() && is_used_up(headers) => None,
        408 | 429 | 500 | 502 | 503 | 504 => Some(retry_after(headers)),
        _ => None,
    }
}

fn is_used_up(headers: &HeaderMap) -> bool {
    let remaining = headers.get("ratelimit-remaining").and_then(|value| value.to_str().ok());
    remaining.is_some_and(|text| text.split(';').next().is_some_and(|count| count.trim() == "0"))
}

/// Reads `Retry-After`: seconds or a date. Nonsense counts as absent.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(std::time::SystemTime::now()).unwrap_or_default())
}

/// Finds the first error code of the Distribution specification in a body.
fn error_code(body: &[u8]) -> Option<String> {
    let body: serde_json::Value = serde_json::from_slice(body).ok()?;
    let code = body.get("errors")?.get(0)?.get("code")?.as_str()?;
    let is_code = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
    (code.len() <= CODE_LENGTH_MAX && code.bytes().all(is_code)).then(|| code.to_owned())
}

fn speaks_no_tls(error: &RegistryError) -> bool {
    match error {
        RegistryError::Unreachable { fault, .. } => fault.may_be_plain_http(),
        RegistryError::Tls { fault, .. } => super::Fault::Tls(*fault).may_be_plain_http(),
        _ => false,
    }
}

/// Puts `path` behind the registry's origin. Its parts come from parsed references and digests.
fn join(base: &Url, path: &str) -> Url {
    let mut url = base.clone();
    url.set_path(path);
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f27_retry_after_in_every_spelling() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, HeaderValue::from_str(text).expect(text));
            retry_after(&headers).map(|wait| wait.as_secs())
        };
        assert_eq!(read("5"), Some(5));
        assert_eq!(read(" 0 "), Some(0));
        assert_eq!(read("1000000000"), Some(1_000_000_000));
        assert_eq!(read("-1"), None);
        assert_eq!(read("soon"), None);
        assert_eq!(read("99999999999999999999999"), None);
        assert_eq!(read("Sun, 06 Nov 1994 08:49:37 GMT"), Some(0));
        assert!(read("Fri, 31 Dec 9999 23:59:59 GMT").is_some_and(|wait| wait > 1_000_000));
    }

    #[test]
    fn f27_only_real_error_codes_are_repeated() {
        let code = |text: &str| error_code(text.as_bytes());
        assert_eq!(code(r#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#).as_deref(), Some("MANIFEST_UNKNOWN"));
        assert_eq!(code(r#"{"errors":[{"code":"\u001b[31m"}]}"#), None);
        assert_eq!(code(r#"{"errors":[]}"#), None);
        assert_eq!(code("<html>"), None);
    }
}
