//! The routes of the pull-through mirror: what the OCI distribution specification has for reading, below `/v2/`.
//!
//! Which registry is meant is the query parameter `ns`, as containerd asks its mirrors; without it Docker Hub is. In
//! the path a registry's port would be a colon in a repository's name, and two registries could share a name. Errors
//! have the specification's form here, whoever makes them.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde_json::json;
use std::sync::Arc;

use super::gate::Call;
use super::problem::Problem;
use crate::mirror::name::{Content, Repository, Wanted, is_repository};
use crate::mirror::{Mirror, MirrorError};
use crate::model::ProviderId;

/// Where the routes are.
pub const PREFIX: &str = "/v2/";
/// The registry that is meant when none is named.
const DEFAULT_REGISTRY: &str = "docker.io";
/// When to come back to a registry that does not say so.
const RETRY_S: u64 = 30;
/// Tells that the registry did not answer, and that this is what it said last (RFC 9111 has no code for it any more).
const STALE: &str = "x-coracle-mirror";

/// Gives the specification's word for a problem.
fn code_of(problem: &Problem) -> &'static str {
    match (problem.status, problem.kind.rsplit('#').next().unwrap_or_default()) {
        (401, _) => "UNAUTHORIZED",
        (403, _) => "DENIED",
        (429, _) => "TOOMANYREQUESTS",
        (_, "manifest") => "MANIFEST_UNKNOWN",
        (_, "blob") => "BLOB_UNKNOWN",
        (404, _) => "NAME_UNKNOWN",
        (_, "digest") => "DIGEST_INVALID",
        (_, "name") => "NAME_INVALID",
        (_, "size") => "SIZE_INVALID",
        _ => "UNSUPPORTED",
    }
}

/// Gives a problem in the form of the distribution specification.
pub fn refusal(problem: Problem) -> Response {
    let code = code_of(&problem);
    let body = json!({ "errors": [{ "code": code, "message": problem.detail, "detail": null }] }).to_string();
    let mut response = problem.into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().remove(header::CONTENT_LENGTH);
    *response.body_mut() = Body::from(body);
    response
}

fn mirror(call: &Call) -> Result<Arc<Mirror>, Problem> {
    let none = || Problem::new(StatusCode::NOT_FOUND, "mirror", "this scheduler runs no mirror");
    call.site.options.mirror.clone().ok_or_else(none)
}

/// Decides which registry is meant, and whether it is mirrored.
fn registry<'a>(call: &'a Call, mirror: &Mirror) -> Result<&'a str, Problem> {
    let registry = call.query("ns").unwrap_or(DEFAULT_REGISTRY);
    if mirror.mirrors(registry) {
        return Ok(registry);
    }
    let detail = format!("{} is not among the registries that this mirror mirrors", registry.escape_debug());
    Err(Problem::new(StatusCode::NOT_FOUND, "mirror", detail))
}

/// Tells that there is a mirror, of the registry that is asked for.
pub async fn root(call: Call) -> Result<Response, Problem> {
    let mirror = mirror(&call)?;
    registry(&call, &mirror)?;
    let mut response = (StatusCode::OK, [(header::CONTENT_TYPE, "application/json")], "{}").into_response();
    let version = HeaderValue::from_static("registry/2.0");
    response.headers_mut().insert("docker-distribution-api-version", version);
    Ok(response)
}

/// Gives a manifest or a blob.
pub async fn content(call: Call) -> Result<Response, Problem> {
    let mirror = mirror(&call)?;
    let registry = registry(&call, &mirror)?.to_owned();
    let asker = call.actor.and_then(|actor| actor.provider).ok_or_else(|| Problem::not_found("provider"))?;
    let name = |detail: &str| Problem::new(StatusCode::BAD_REQUEST, "name", detail);
    let path = call.uri.path().strip_prefix(PREFIX).unwrap_or_default();
    // Nothing that has a meaning here needs to be encoded.
    if path.contains('%') {
        return Err(name("percent signs belong in no name, tag or digest"));
    }
    let (of, reference) = path.rsplit_once('/').ok_or_else(|| Problem::not_found("route"))?;
    let (repository, kind) = of.rsplit_once('/').ok_or_else(|| Problem::not_found("route"))?;
    if !matches!(kind, "manifests" | "blobs") {
        return Err(Problem::not_found("route"));
    }
    if !is_repository(repository) {
        return Err(name("not the name of a repository"));
    }
    let at = Repository { registry, name: repository.to_owned() };
    let digest = || Problem::new(StatusCode::BAD_REQUEST, "digest", "neither a tag nor a digest");
    match kind {
        "manifests" => manifest(&mirror, at, Wanted::parse(reference).ok_or_else(digest)?).await,
        _ => blob(&call, mirror, at, Content::parse(reference).ok_or_else(digest)?, asker).await,
    }
}

async fn manifest(mirror: &Arc<Mirror>, at: Repository, wanted: Wanted) -> Result<Response, Problem> {
    let found = mirror.manifest(at, wanted).await.map_err(|error| problem(error, "manifest"))?;
    let length = found.bytes.len();
    let mut response = (StatusCode::OK, Body::from(found.bytes)).into_response();
    let headers = response.headers_mut();
    insert(headers, "content-type", &found.media_type);
    insert(headers, "content-length", &length.to_string());
    insert(headers, "docker-content-digest", &found.content.to_string());
    if found.stale {
        insert(headers, STALE, "stale");
    }
    Ok(response)
}

async fn blob(
    call: &Call,
    mirror: Arc<Mirror>,
    at: Repository,
    wanted: Content,
    asker: ProviderId,
) -> Result<Response, Problem> {
    let digest = wanted.to_string();
    let body = mirror.blob(at, wanted, asker).await.map_err(|error| problem(error, "blob"))?;
    let size = body.size_bytes();
    let asked = call.headers.get(header::RANGE).and_then(|value| value.to_str().ok());
    let (from, to, status) = match asked.map(|text| range(text, size)) {
        None | Some(Asked::All) => (0, size, StatusCode::OK),
        Some(Asked::Part(from, to)) => (from, to, StatusCode::PARTIAL_CONTENT),
        Some(Asked::Nothing) => {
            let problem = Problem::new(StatusCode::RANGE_NOT_SATISFIABLE, "range", "the blob has no such part");
            let mut response = refusal(problem);
            insert(response.headers_mut(), "content-range", &format!("bytes */{size}"));
            return Ok(response);
        }
    };
    let content = if call.head {
        Body::empty()
    } else {
        let pieces = body.pieces(from, to);
        Body::from_stream(futures_util::stream::unfold(pieces, async |mut pieces| {
            pieces.recv().await.map(|piece| (piece, pieces))
        }))
    };
    let mut response = (status, content).into_response();
    let headers = response.headers_mut();
    insert(headers, "content-type", "application/octet-stream");
    insert(headers, "content-length", &(to - from).to_string());
    insert(headers, "docker-content-digest", &digest);
    insert(headers, "accept-ranges", "bytes");
    if status == StatusCode::PARTIAL_CONTENT {
        insert(headers, "content-range", &format!("bytes {from}-{}/{size}", to - 1));
    }
    Ok(response)
}

fn insert(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

fn problem(error: MirrorError, kind: &str) -> Problem {
    let text = error.to_string();
    match error {
        MirrorError::NotThere(_) => Problem::new(StatusCode::NOT_FOUND, kind, text),
        MirrorError::Limited { retry_after_s } => {
            Problem::new(StatusCode::TOO_MANY_REQUESTS, "rate", text).retry(retry_after_s.unwrap_or(RETRY_S))
        }
        MirrorError::Busy | MirrorError::Deserted => Problem::new(StatusCode::TOO_MANY_REQUESTS, "busy", text).retry(1),
        MirrorError::Silent(_) => Problem::new(StatusCode::GATEWAY_TIMEOUT, "registry", text),
        MirrorError::Unusable(_) => Problem::new(StatusCode::BAD_GATEWAY, "registry", text),
        MirrorError::TooLarge(_) | MirrorError::Disk(_) => Problem::new(StatusCode::INSUFFICIENT_STORAGE, "size", text),
    }
}

/// What part of a blob is asked for.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    All,
    /// From a byte to before another.
    Part(u64, u64),
    Nothing,
}

/// Reads a `Range` (RFC 9110, 14.1). One that is not understood, and several at once, mean all.
fn range(text: &str, size: u64) -> Asked {
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return Asked::All;
    };
    let number =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten();
    match (number(first), number(last)) {
        _ if first.is_empty() && number(last) == Some(0) => Asked::Nothing,
        (None, Some(count)) if first.is_empty() && size > 0 => Asked::Part(size - count.min(size), size),
        (Some(first), _) if first >= size => Asked::Nothing,
        (Some(first), None) if last.is_empty() => Asked::Part(first, size),
        (Some(first), Some(last)) if first <= last => Asked::Part(first, last.saturating_add(1).min(size)),
        _ => Asked::All,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_that_puts_the_mirror_off_puts_its_askers_off() {
        let limited = MirrorError::Limited { retry_after_s: Some(77) };
        for (error, status, code, retry) in [
            (limited, 429, "TOOMANYREQUESTS", Some("77")),
            (MirrorError::Busy, 429, "TOOMANYREQUESTS", Some("1")),
            (MirrorError::NotThere("image"), 404, "MANIFEST_UNKNOWN", None),
            (MirrorError::Silent(String::new()), 504, "UNSUPPORTED", None),
            (MirrorError::TooLarge(1), 507, "SIZE_INVALID", None),
        ] {
            let said = problem(error, "manifest");
            let told = refusal(said.clone());
            assert_eq!(told.status(), status);
            let after = told.headers().get(header::RETRY_AFTER).map(|value| value.to_str().unwrap().to_owned());
            assert_eq!(after.as_deref(), retry, "{status}");
            assert_eq!(code_of(&said), code);
        }
    }

    #[test]
    fn a_range_is_one_part_or_everything() {
        for (text, expect) in [
            ("bytes=0-", Asked::Part(0, 10)),
            ("bytes=3-5", Asked::Part(3, 6)),
            ("bytes=3-99", Asked::Part(3, 10)),
            ("bytes=9-18446744073709551615", Asked::Part(9, 10)),
            ("bytes=-4", Asked::Part(6, 10)),
            ("bytes=-40", Asked::Part(0, 10)),
            ("bytes=10-", Asked::Nothing),
            ("bytes=-0", Asked::Nothing),
            ("bytes=5-3", Asked::All),
            ("bytes=0-1,3-4", Asked::All),
            ("bytes=+1-2", Asked::All),
            ("bytes=-", Asked::All),
            ("lines=0-1", Asked::All),
            ("", Asked::All),
        ] {
            assert_eq!(range(text, 10), expect, "{text}");
        }
        assert_eq!(range("bytes=0-", 0), Asked::Nothing);
    }
}
