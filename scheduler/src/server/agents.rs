//! The provider protocol over HTTP: join, hello, sync.
//!
//! A sync with `wait_ms` is held until there is a command or the time is up, so that an agent learns of an order at
//! once without asking often. Nothing is written for a sync that says nothing new.

use std::time::Duration;

use axum::http::StatusCode;
use axum::response::Response;

use super::gate::{Call, bearer, json};
use super::problem::Problem;
use super::secret::{Secret, TOKEN_PREFIX};
use super::shapes::{JoinBody, Joined};
use crate::core::{Answer, Event, Wish};
use crate::model::{Hello, Key, ProviderId, Sync};

/// Longest hold of a sync: below the time after which an agent drops an answer.
pub const WAIT_MAX_MS: u64 = 20_000;

fn unauthorized() -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, "token", "a valid token is needed")
}

/// Joins a machine.
pub async fn join(call: Call) -> Result<Response, Problem> {
    let body: JoinBody = call.json()?;
    let shown = bearer(&call.headers).ok_or_else(unauthorized)?;
    let secret = Secret::generate(TOKEN_PREFIX).map_err(|_| unauthorized())?;
    let wish = Wish::Join { join_hash: shown.hash(), name: body.name, hash: secret.hash() };
    match call.wish(wish).await {
        Ok(Answer::Object(Key::Provider(provider))) => {
            json(StatusCode::CREATED, &Joined { provider, secret: secret.reveal() })
        }
        Ok(_) => Err(unauthorized()),
        Err(problem) if problem.status == StatusCode::NOT_FOUND.as_u16() => Err(unauthorized()),
        Err(problem) => Err(problem),
    }
}

fn provider(call: &Call) -> Result<ProviderId, Problem> {
    call.actor.and_then(|actor| actor.provider).ok_or_else(unauthorized)
}

/// Opens a session.
pub async fn hello(call: Call) -> Result<Response, Problem> {
    let provider = provider(&call)?;
    let hello: Hello = call.json()?;
    let event = move |ticket| Event::Hello { ticket, provider, hello: Box::new(hello) };
    match call.site.desk.submit(event).await? {
        Answer::Hello(reply) => json(StatusCode::OK, &reply),
        _ => Err(unauthorized()),
    }
}

/// Takes a report and answers with commands.
pub async fn sync(call: Call) -> Result<Response, Problem> {
    let provider = provider(&call)?;
    let sync: Sync = call.json()?;
    let applied = sync.applied;
    let wait = call.query("wait_ms").and_then(|text| text.parse().ok()).unwrap_or(0u64).min(WAIT_MAX_MS);
    // Registered before the state is looked at, so that no command falls between.
    let wake = call.site.desk.shared.wake(provider);
    let event = move |ticket| Event::Sync { ticket, provider, sync: Box::new(sync) };
    let Answer::Sync(mut reply) = call.site.desk.submit(event).await? else { return Err(unauthorized()) };
    let until = tokio::time::Instant::now() + Duration::from_millis(wait);
    while reply.commands.is_empty() && tokio::time::timeout_at(until, wake.notified()).await.is_ok() {
        // A token that was revoked meanwhile gets no command any more (S03).
        let token = call.actor.map(|actor| actor.token).ok_or_else(unauthorized)?;
        let valid = call.site.desk.look(move |state, _, _| state.tokens.contains_key(&token)).await?;
        if !valid {
            return Err(unauthorized());
        }
        reply.commands = call.site.desk.commands(provider, applied).await?;
    }
    json(StatusCode::OK, &reply)
}
