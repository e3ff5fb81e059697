//! The provider protocol over HTTP: join, hello, sync.
//!
//! A sync with `wait_ms` is held until there is a command or the time is up, so that an agent learns of an order at
//! once without asking often. Nothing is written for a sync that says nothing new.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use axum::http::StatusCode;
use axum::response::Response;

use super::authority::{Authority, AuthorityError};
use super::desk::DeskError;
use super::gate::{Call, bearer, json};
use super::problem::Problem;
use super::secret::{Secret, TOKEN_PREFIX};
use super::shapes::{Certificate, CertificateNew, JoinBody, Joined};
use crate::core::{self, Answer, Event, Wish};
use crate::failpoint;
use crate::model::{Command, Delivered, Hello, InstanceId, Key, NumberedCommand, Phase, ProviderId, SecretMount, Sync};

/// Longest hold of a sync: below the time after which an agent drops an answer.
pub const WAIT_MAX_MS: u64 = 20_000;

fn unauthorized() -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, "token", "a valid token is needed")
}

fn unsigned(error: &AuthorityError) -> Problem {
    Problem::invalid("request", error.to_string())
}

/// Joins a machine. Where there is an authority its key is signed in the same breath.
pub async fn join(call: Call) -> Result<Response, Problem> {
    let body: JoinBody = call.json()?;
    let shown = bearer(&call.headers).ok_or_else(unauthorized)?;
    let secret = Secret::generate(TOKEN_PREFIX).map_err(|_| unauthorized())?;
    // Looked at before the token is used up, but told only to who has a good one.
    let request = body.request.as_deref().map(Authority::read).transpose();
    let key = match (&call.site.authority, &request) {
        (None, _) => String::new(),
        (Some(_), Ok(Some((_, key)))) => key.clone(),
        (Some(_), _) if !is_join(&call, shown.hash()).await? => return Err(unauthorized()),
        (Some(_), Ok(None)) => return Err(Problem::invalid("request", "a signing request is needed here")),
        (Some(_), Err(error)) => return Err(unsigned(error)),
    };
    let wish = Wish::Join { join_hash: shown.hash(), name: body.name, hash: secret.hash(), key };
    match call.wish(wish).await {
        Ok(Answer::Object(Key::Provider(provider))) => {
            let signed = match (&call.site.authority, request) {
                (Some(authority), Ok(Some((request, _)))) => authority.sign(request, provider).ok(),
                _ => None,
            };
            let certificate = signed.map(|signed| signed.certificate);
            json(StatusCode::CREATED, &Joined { provider, secret: secret.reveal(), certificate })
        }
        Ok(_) => Err(unauthorized()),
        Err(problem) if problem.status == StatusCode::NOT_FOUND.as_u16() => Err(unauthorized()),
        Err(problem) => Err(problem),
    }
}

async fn is_join(call: &Call, hash: String) -> Result<bool, Problem> {
    Ok(call.site.desk.look(move |state, _, _| state.joins.values().any(|join| join.hash == hash)).await?)
}

/// Signs an agent's key again. The key it joined with is signed for whoever shows the token and can sign with the key,
/// so that a laptop that slept for a week comes back; another key only over a connection that shows the old one.
pub async fn certificate(call: Call) -> Result<Response, Problem> {
    let provider = provider(&call)?;
    let body: CertificateNew = call.json()?;
    let Some(authority) = &call.site.authority else {
        return Err(Problem::not_found("authority for agents"));
    };
    let (request, key) = Authority::read(&body.request).map_err(|error| unsigned(&error))?;
    let known = call.site.desk.look(move |state, _, _| state.providers.get(&provider).map(|found| found.key.clone()));
    if known.await?.ok_or_else(unauthorized)? != key {
        if !call.enrolled {
            let detail = "a new key is taken over a connection that shows the old one";
            return Err(Problem::new(StatusCode::FORBIDDEN, "certificate", detail));
        }
        call.wish(Wish::SetKey { key }).await?;
    }
    let signed = authority.sign(request, provider).map_err(|error| unsigned(&error))?;
    json(StatusCode::OK, &Certificate { certificate: signed.certificate })
}

fn pass(point: &'static str) -> Result<(), Problem> {
    failpoint::hit(point).map_err(|_| DeskError::Unavailable.into())
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
        Answer::Hello(mut reply) => {
            deliver(&call, &mut reply.commands).await?;
            json(StatusCode::OK, &reply)
        }
        _ => Err(unauthorized()),
    }
}

/// Takes a report and answers with commands.
pub async fn sync(call: Call) -> Result<Response, Problem> {
    let provider = provider(&call)?;
    let sync: Sync = call.json()?;
    let applied = sync.applied;
    let wait = call.query("wait_ms").map_or(Ok(0), str::parse::<u64>);
    let wait = wait.map_err(|_| Problem::invalid("wait_ms", "not a number of milliseconds"))?.min(WAIT_MAX_MS);
    // An agent removes what ended when it knows that the end is durable: it should not wait for that.
    let ended = sync.statuses.iter().any(|status| matches!(status.phase, Phase::Exited { .. }));
    let wait = if ended { 0 } else { wait };
    let reports = !sync.statuses.is_empty();
    // Registered before the state is looked at, so that no command falls between.
    let wake = call.site.desk.shared.wake(provider);
    let event = move |ticket| Event::Sync { ticket, provider, sync: Box::new(sync) };
    let Answer::Sync(mut reply) = call.site.desk.submit(event).await? else { return Err(unauthorized()) };
    if reports {
        pass("ack_recorded")?;
    }
    reply.streams = call.site.streams.orders(provider);
    let until = tokio::time::Instant::now() + Duration::from_millis(wait);
    while reply.commands.is_empty()
        && reply.streams.is_empty()
        && tokio::time::timeout_at(until, wake.notified()).await.is_ok()
    {
        // A token that was revoked meanwhile gets no command any more (S03).
        let token = call.actor.map(|actor| actor.token).ok_or_else(unauthorized)?;
        let commands = call.site.desk.look(move |state, _, _| {
            let valid = state.tokens.contains_key(&token);
            valid.then(|| core::commands_after(state, provider, applied))
        });
        reply.commands = commands.await?.ok_or_else(unauthorized)?;
        reply.streams = call.site.streams.orders(provider);
    }
    deliver(&call, &mut reply.commands).await?;
    json(StatusCode::OK, &reply)
}

/// Adds the values of the secrets that are asked for, on the way out: nobody but this agent gets them, and only with an
/// order to start. What cannot be opened is left out, and the agent refuses to start without it.
async fn deliver(call: &Call, commands: &mut [NumberedCommand]) -> Result<(), Problem> {
    if !commands.is_empty() {
        pass("outbox_sent")?;
    }
    let starts = |command: &Command| match command {
        Command::Start { spec, .. } => !spec.secrets.is_empty(),
        Command::Resume { .. } => true,
        Command::Stop { .. } | Command::Halt { .. } => false,
    };
    let begun = commands.iter().filter(|numbered| starts(&numbered.command));
    let begun: BTreeSet<InstanceId> = begun.map(|numbered| numbered.command.allocation().0).collect();
    let Some(seal) = call.site.seal.clone().filter(|_| !begun.is_empty()) else { return Ok(()) };
    let opened = call.site.desk.look(move |state, _, _| -> BTreeMap<InstanceId, Vec<Delivered>> {
        let open = |mount: &SecretMount| {
            let secret = state.secrets.get(&mount.secret)?;
            let value = seal.open_for(secret.group, &secret.name, &secret.sealed)?;
            Some(Delivered { env: mount.env.clone(), file: mount.file.clone(), value })
        };
        let instances = begun.iter().filter_map(|id| state.instances.get(id));
        instances.map(|found| (found.id, found.spec.secrets.iter().filter_map(open).collect())).collect()
    });
    let opened = opened.await?;
    for numbered in commands {
        let (id, _) = numbered.command.allocation();
        if let Command::Start { secrets, .. } | Command::Resume { secrets, .. } = &mut numbered.command {
            *secrets = opened.get(&id).cloned().unwrap_or_default();
        }
    }
    Ok(())
}
