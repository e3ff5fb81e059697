//! What stands before every handler: limits, authentication, policy.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt, Limited};
use hyper::upgrade::OnUpgrade;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sha2::{Digest, Sha256};
use zeroize::Zeroize as _;

use super::desk::DeskError;
use super::known::Bearer;
use super::log::Asked;
use super::peer::Peer;
use super::problem::Problem;
use super::secret::{Secret, hex};
use super::table::{Policy, Route};
use super::{Site, mirror, shapes};
use crate::core::{Answer, Event, Request as CoreRequest, State, Wish};
use crate::failpoint;
use crate::model::Actor;

/// Bytes of a body, unless the route has a reason for more.
pub const BODY_BYTES: usize = 1 << 20;
/// Depth of JSON; the deepest honest body has eight levels.
pub const JSON_DEPTH: usize = 64;
/// Bytes of path and query.
pub const URL_BYTES: usize = 8 * 1024;
/// Query parameters.
pub const PARAMETERS: usize = 100;
/// Bytes of a request id that a client may choose.
const REQUEST_ID_BYTES: usize = 64;

/// A request that has passed the gate.
pub struct Call {
    /// The server.
    pub site: Arc<Site>,
    /// Who asks; `None` on open routes and when joining.
    pub actor: Option<Actor>,
    /// The agent has shown the certificate of its own key.
    pub enrolled: bool,
    /// The path parameter `{id}`.
    pub id: String,
    /// What was asked for, as it was written.
    pub uri: Uri,
    /// Only the head of the answer is wanted.
    pub head: bool,
    /// Query parameters.
    pub query: Vec<(String, String)>,
    /// The headers.
    pub headers: HeaderMap,
    /// The connection itself, for a request that asks to leave HTTP.
    pub upgrade: Option<OnUpgrade>,
    /// The body.
    pub body: Vec<u8>,
    /// Names the request in the audit log.
    pub request: String,
    /// SHA-256 of method, path and body, for idempotency.
    pub digest: String,
}

impl Call {
    /// Returns a query parameter.
    pub fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Reads the body as JSON.
    pub fn json<T: DeserializeOwned + serde::Serialize>(&self) -> Result<T, Problem> {
        if depth(&self.body) > JSON_DEPTH {
            return Err(Problem::new(StatusCode::BAD_REQUEST, "json", format!("nested deeper than {JSON_DEPTH}")));
        }
        let read: T = serde_json::from_slice(&self.body).map_err(|error| {
            let kind = if error.is_data() { StatusCode::UNPROCESSABLE_ENTITY } else { StatusCode::BAD_REQUEST };
            Problem::new(kind, "json", error.to_string())
        })?;
        // serde takes an array for a struct, in the order of its fields; the API's description knows objects only.
        if self.body.contains(&b'[') {
            let given = serde_json::from_slice(&self.body).unwrap_or_default();
            if !alike(&given, &serde_json::to_value(&read).unwrap_or_default()) {
                let detail = "an array where an object belongs";
                return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "json", detail));
            }
        }
        Ok(read)
    }

    /// Reads a body that must not stay in memory.
    pub fn sensitive<T: DeserializeOwned>(&mut self) -> Result<T, Problem> {
        // An object and not an array: serde would take either for a struct.
        let object = self.body.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{');
        let read = if object { serde_json::from_slice(&self.body).ok() } else { None };
        self.body.zeroize();
        // What serde says may quote the value.
        read.ok_or_else(|| Problem::invalid("body", "not what the description of this route says"))
    }

    /// Reads the path's id. A text that is no id names nothing.
    pub fn id<T: std::str::FromStr>(&self, what: &str) -> Result<T, Problem> {
        self.id.parse().map_err(|_| Problem::not_found(what))
    }

    /// Puts a wish before the core.
    pub async fn wish(&self, wish: Wish) -> Result<Answer, Problem> {
        Ok(self.wish_then(wish, |answer, _| answer).await??)
    }

    /// Puts a wish before the core and looks at what came of it in the same turn.
    pub async fn wish_then<T: Send + 'static>(
        &self,
        wish: Wish,
        then: impl FnOnce(Result<Answer, DeskError>, &State) -> T + Send + 'static,
    ) -> Result<T, Problem> {
        let request = CoreRequest {
            actor: self.actor,
            id: self.request.clone(),
            key: self.idempotency_key()?,
            digest: self.digest.clone(),
            wish,
        };
        let event = move |ticket| Event::Request { ticket, request: Box::new(request) };
        Ok(self.site.desk.submit_then(event, then).await?)
    }

    fn idempotency_key(&self) -> Result<Option<String>, Problem> {
        let Some(value) = self.headers.get("idempotency-key") else { return Ok(None) };
        let text = value.to_str().map_err(|_| Problem::invalid("idempotency-key", "not visible ASCII"))?;
        Ok(Some(text.to_owned()))
    }
}

/// Tells whether no array was taken for an object.
fn alike(given: &Value, taken: &Value) -> bool {
    match (given, taken) {
        (Value::Array(_), Value::Object(_)) => false,
        (Value::Array(given), Value::Array(taken)) => given.iter().zip(taken).all(|(given, taken)| alike(given, taken)),
        (Value::Object(given), Value::Object(taken)) => {
            given.iter().all(|(key, given)| taken.get(key).is_none_or(|taken| alike(given, taken)))
        }
        _ => true,
    }
}

/// Counts how deep a JSON text is nested, without recursion.
fn depth(body: &[u8]) -> usize {
    let (mut depth, mut most, mut quoted, mut escaped) = (0usize, 0, false, false);
    for byte in body {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'[' | b'{' if !quoted => {
                depth += 1;
                most = most.max(depth);
            }
            b']' | b'}' if !quoted => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    most
}

/// Lets a request through to its handler, or answers it.
pub async fn pass(
    site: Arc<Site>,
    route: &'static Route,
    peer: IpAddr,
    id: String,
    request: Request<Body>,
) -> Response {
    let number = site.number();
    let chosen = request.headers().get("x-request-id").and_then(|value| value.to_str().ok());
    let plain = |text: &&str| text.len() <= REQUEST_ID_BYTES && text.bytes().all(|byte| byte.is_ascii_graphic());
    let name = chosen.filter(plain).map_or_else(|| format!("r{number:x}"), str::to_owned);
    let begun = Instant::now();
    let mut asked = Asked {
        request: name.clone(),
        actor: None,
        peer,
        id: id.clone(),
        status: StatusCode::OK,
        took: Duration::ZERO,
    };
    let outcome = admit(Arc::clone(&site), route, peer, id, request, name.clone()).await;
    let answer = match outcome {
        Ok(call) => {
            asked.actor = call.actor;
            (route.handler)(call).await
        }
        Err(problem) => Err(problem),
    };
    let refuse = if route.path.starts_with(mirror::PREFIX) { mirror::refusal } else { IntoResponse::into_response };
    let mut response = answer.unwrap_or_else(refuse);
    (asked.status, asked.took) = (response.status(), begun.elapsed());
    site.options.log.request(site.clock.now_ms(), route, asked);
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    headers.insert("x-content-type-options", header::HeaderValue::from_static("nosniff"));
    if let Ok(value) = header::HeaderValue::from_str(&name) {
        headers.insert("x-request-id", value);
    }
    response
}

fn limited(outcome: Result<(), u64>) -> Result<(), Problem> {
    outcome.map_err(|seconds| Problem::new(StatusCode::TOO_MANY_REQUESTS, "rate", "too many requests").retry(seconds))
}

async fn admit(
    site: Arc<Site>,
    route: &'static Route,
    peer: IpAddr,
    id: String,
    request: Request<Body>,
    name: String,
) -> Result<Call, Problem> {
    let now = site.clock.now_ms();
    limited(if route.policy == Policy::Join {
        site.join_limit.take(peer, now)
    } else {
        site.peer_limit.take(peer, now)
    })?;
    let (mut parts, body) = request.into_parts();
    let upgrade = parts.extensions.remove::<OnUpgrade>();
    let query = parse_query(&parts.uri)?;
    if parts.headers.contains_key(header::CONTENT_ENCODING) {
        let detail = "compressed bodies are not taken";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "encoding", detail));
    }
    let shown = parts.extensions.get::<Arc<Peer>>().cloned();
    let (actor, enrolled) = authenticate(&site, route, &parts.headers, shown.as_deref()).await?;
    if let Some(actor) = &actor {
        limited(site.token_limit.take(actor.token, now))?;
    }
    let _ = failpoint::hit("req_authed");
    let most = if route.policy == Policy::Agent { 8 * BODY_BYTES } else { BODY_BYTES };
    let read = tokio::time::timeout(site.options.body_time, Limited::new(body, most).collect());
    let body = match read.await {
        Err(_) => return Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "slow", "the body took too long")),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            return Err(Problem::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "body",
                format!("a body has at most {most} bytes"),
            ));
        }
        Ok(Err(_)) => return Err(Problem::new(StatusCode::BAD_REQUEST, "body", "the body ended early")),
        Ok(Ok(body)) => body.to_bytes().to_vec(),
    };
    let digest = Sha256::new()
        .chain_update(route.method.as_str())
        .chain_update([0])
        .chain_update(parts.uri.path())
        .chain_update([0])
        .chain_update(&body);
    let digest = hex(&digest.finalize());
    let (uri, head) = (parts.uri, parts.method == Method::HEAD);
    let headers = parts.headers;
    Ok(Call { site, actor, enrolled, id, uri, head, query, headers, upgrade, body, request: name, digest })
}

fn parse_query(uri: &axum::http::Uri) -> Result<Vec<(String, String)>, Problem> {
    let length = uri.path().len() + uri.query().map_or(0, str::len);
    if length > URL_BYTES {
        return Err(Problem::new(StatusCode::URI_TOO_LONG, "url", format!("a URL has at most {URL_BYTES} bytes")));
    }
    let pairs = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(uri);
    let pairs = pairs.map_err(|_| Problem::new(StatusCode::BAD_REQUEST, "query", "the query cannot be read"))?.0;
    if pairs.len() > PARAMETERS {
        return Err(Problem::new(StatusCode::BAD_REQUEST, "query", format!("more than {PARAMETERS} parameters")));
    }
    Ok(pairs)
}

/// Reads the bearer token; it travels in this header only (S01).
pub fn bearer(headers: &HeaderMap) -> Option<Secret> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (first, second) = (values.next()?, values.next());
    let text = first.to_str().ok().filter(|_| second.is_none())?;
    let (scheme, token) = text.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| Secret::shown(token))
}

/// Finds out who asks, and whether the certificate shown is the asking agent's.
async fn authenticate(
    site: &Arc<Site>,
    route: &Route,
    headers: &HeaderMap,
    shown: Option<&Peer>,
) -> Result<(Option<Actor>, bool), Problem> {
    if matches!(route.policy, Policy::Open | Policy::Join) {
        return Ok((None, false));
    }
    let refused = || Problem::new(StatusCode::UNAUTHORIZED, "token", "a valid bearer token is needed");
    let hash = bearer(headers).ok_or_else(refused)?.hash();
    let now = site.clock.now_ms();
    let shared = Arc::clone(&site.desk.shared);
    let found = match shared.known.get(&hash, now) {
        Some(found) => Some(found),
        None => site.desk.look(move |state, _, now| shared.known.learn(state, &hash, now)).await?,
    };
    let Bearer { actor, key, .. } = found.ok_or_else(refused)?;
    let enrolled = actor.provider.zip(shown).is_some_and(|(provider, shown)| shown.is(provider, &key, now));
    let allowed = match route.policy {
        Policy::Agent | Policy::Renew => actor.provider.is_some(),
        Policy::User(role) => actor.user.is_some() && actor.role >= role,
        Policy::Open | Policy::Join => true,
    };
    if !allowed {
        return Err(Problem::new(StatusCode::FORBIDDEN, "forbidden", "this token may not do that"));
    }
    if route.policy == Policy::Agent && site.authority.is_some() && !enrolled {
        let detail = "the certificate of this provider's own key is needed beside its token";
        return Err(Problem::new(StatusCode::FORBIDDEN, "certificate", detail));
    }
    Ok((Some(actor), enrolled))
}

/// Answers with JSON.
pub fn json(status: StatusCode, value: &impl serde::Serialize) -> Result<Response, Problem> {
    let body = serde_json::to_vec(value)
        .map_err(|_| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "json", "the answer cannot be written"))?;
    Ok((status, [(header::CONTENT_TYPE, "application/json")], body).into_response())
}

/// Answers with a page.
pub fn page(items: Vec<serde_json::Value>, next: Option<String>) -> Result<Response, Problem> {
    json(StatusCode::OK, &shapes::Page { items, next })
}

#[cfg(test)]
mod tests {
    use super::depth;

    #[test]
    fn s13_depth_is_counted_outside_strings_only() {
        for (text, expect) in
            [("", 0), ("1", 0), ("[[]]", 2), (r#"{"a":[{"b":1}]}"#, 3), (r#"["[[[[","\"[["]"#, 1), ("]]][", 1)]
        {
            assert_eq!(depth(text.as_bytes()), expect, "{text}");
        }
    }
}
