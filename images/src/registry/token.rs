//! Fetching a token from a realm that passed the rules of `challenge`.
//!
//! What a token server says is bounded and never reaches a header unchecked (security.md A65). We
//! ask for our own scope, whatever the challenge says, and ignore how long the token claims to
//! live: a 401 is the only reliable sign that it has ended. No redirect is followed.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use reqwest::header::HeaderValue;
use url::form_urlencoded;

use super::RegistryError;
use super::body::Body;
use super::challenge::Realm;
use super::transport::{Follow, Request, Transport, host_of};
use crate::credentials::Credential;
use crate::limits::TOKEN_BYTES_MAX;

/// How we call ourselves in an OAuth2 exchange.
const CLIENT_ID: &str = "coracle";

/// What is wrong with a token server's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each text says what the variant means")]
pub enum TokenProblem {
    #[error("it answered {0}")]
    Status(u16),
    #[error("its answer is not the JSON of a token")]
    NotJson,
    #[error("its answer has no token")]
    Missing,
    #[error("the token has characters that no header may have")]
    BadCharacter,
}

#[derive(serde::Deserialize)]
struct Grant {
    token: Option<String>,
    access_token: Option<String>,
}

/// Makes the header of basic authentication.
pub(super) fn basic(user: &str, password: &str) -> HeaderValue {
    let encoded = STANDARD.encode(format!("{user}:{password}"));
    secret(&format!("Basic {encoded}")).unwrap_or_else(|| HeaderValue::from_static("Basic Og=="))
}

/// Asks `realm` for a token for `scope` and makes the header that carries it.
pub(super) async fn fetch(
    transport: &Transport,
    realm: &Realm,
    service: Option<&str>,
    scope: &str,
    credential: Option<&Credential>,
) -> Result<HeaderValue, RegistryError> {
    let host = host_of(&realm.url);
    let problem = |problem| RegistryError::Token { host: host.clone(), problem };
    let (request, authorization) = token_request(realm, service, scope, credential);
    let answer = transport.send(&request, authorization.as_ref()).await?;
    let status = answer.response.status().as_u16();
    match status {
        200..=299 => {}
        401 | 403 => {
            let registry = host_of(transport.base());
            return Err(RegistryError::Unauthorized { registry, rejected: credential.is_some() });
        }
        429 => return Err(super::session::rate_limited(&host, answer.response.headers())),
        _ => return Err(problem(TokenProblem::Status(status))),
    }
    let body = Body::new(answer, transport.timeouts).read_all("a token", TOKEN_BYTES_MAX as u64).await?;
    let grant: Grant = serde_json::from_slice(&body).map_err(|_| problem(TokenProblem::NotJson))?;
    let token = [grant.token, grant.access_token].into_iter().flatten().find(|token| !token.is_empty());
    let token = token.ok_or_else(|| problem(TokenProblem::Missing))?;
    secret(&format!("Bearer {token}"))
        .filter(|_| token.bytes().all(|byte| byte.is_ascii_graphic()))
        .ok_or_else(|| problem(TokenProblem::BadCharacter))
}

/// A GET as Docker makes it, or the OAuth2 exchange of an identity token.
fn token_request(
    realm: &Realm,
    service: Option<&str>,
    scope: &str,
    credential: Option<&Credential>,
) -> (Request, Option<HeaderValue>) {
    let mut url = realm.url.clone();
    let mut request = Request::new(Method::GET, url.clone(), Follow::No);
    if let Some(Credential::IdentityToken(identity)) = credential {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "refresh_token").append_pair("client_id", CLIENT_ID);
        if !scope.is_empty() {
            form.append_pair("scope", scope);
        }
        form.append_pair("refresh_token", identity);
        if let Some(service) = service {
            form.append_pair("service", service);
        }
        request.method = Method::POST;
        request.form = Some(form.finish());
        return (request, None);
    }
    {
        let mut query = url.query_pairs_mut();
        if let Some(service) = service {
            query.append_pair("service", service);
        }
        for one in scope.split(' ').filter(|one| !one.is_empty()) {
            query.append_pair("scope", one);
        }
        if let Some(Credential::Password { user, .. }) = credential {
            query.append_pair("account", user);
        }
    }
    request.url = url;
    let authorization = match credential {
        Some(Credential::Password { user, password }) => Some(basic(user, password)),
        _ => None,
    };
    (request, authorization)
}

/// Makes a header value that debug output hides; `None` when it cannot be a header.
fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}
