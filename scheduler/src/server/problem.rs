//! Errors as `application/problem+json` (RFC 9457).

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::desk::DeskError;
use crate::core::Refusal;

/// What a refused request is answered with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// The kind, stable: `about:blank#<word>`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The status in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What is wrong with this request.
    pub detail: String,
    /// The offending field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// Seconds after which it may be tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_s: Option<u64>,
}

impl Problem {
    /// Makes a problem.
    pub fn new(status: StatusCode, kind: &str, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("about:blank#{kind}"),
            title: status.canonical_reason().unwrap_or("error").to_owned(),
            status: status.as_u16(),
            detail: detail.into(),
            field: None,
            retry_after_s: None,
        }
    }

    /// The one answer for an object that is not there or not the actor's (A83).
    pub fn not_found(what: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", format!("there is no such {what}"))
    }

    /// A part of the request that makes no sense.
    pub fn invalid(field: &str, detail: impl Into<String>) -> Self {
        let problem = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", detail);
        Self { field: Some(field.to_owned()), ..problem }
    }

    /// Tells when to come back.
    pub fn retry(self, seconds: u64) -> Self {
        Self { retry_after_s: Some(seconds), ..self }
    }
}

impl From<DeskError> for Problem {
    fn from(error: DeskError) -> Self {
        let unavailable = |kind| Self::new(StatusCode::SERVICE_UNAVAILABLE, kind, error.to_string()).retry(1);
        match &error {
            DeskError::Busy => unavailable("busy"),
            DeskError::Unavailable => unavailable("unavailable"),
            DeskError::Refused(refusal) => Self::from(refusal),
        }
    }
}

impl From<&Refusal> for Problem {
    fn from(refusal: &Refusal) -> Self {
        let (status, kind) = match refusal {
            Refusal::NotFound(_) => (StatusCode::NOT_FOUND, "not-found"),
            Refusal::Forbidden => (StatusCode::FORBIDDEN, "forbidden"),
            Refusal::Conflict(_) => (StatusCode::CONFLICT, "conflict"),
            Refusal::Invalid { field, reason } => return Self::invalid(field, reason.clone()),
            Refusal::Quota(_) => (StatusCode::CONFLICT, "quota"),
            Refusal::Full(_) => (StatusCode::CONFLICT, "full"),
            Refusal::KeyReused => (StatusCode::CONFLICT, "key-reused"),
            Refusal::HelloNeeded => (StatusCode::CONFLICT, "hello-needed"),
            Refusal::Duplicate(_) => (StatusCode::CONFLICT, "duplicate"),
            Refusal::Protocol(..) => (StatusCode::CONFLICT, "protocol"),
        };
        Self::new(status, kind, refusal.to_string())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
