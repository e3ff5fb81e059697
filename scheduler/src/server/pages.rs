//! Routes about the scheduler itself: health, metrics, its own description.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::Ordering;

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::gate::{Call, json};
use super::problem::Problem;
use super::shapes::Whoami;
use crate::model::Resources;

/// Tells that the process lives.
pub async fn healthz(_call: Call) -> Result<Response, Problem> {
    Ok(StatusCode::OK.into_response())
}

/// Tells that this scheduler leads and can write.
pub async fn readyz(call: Call) -> Result<Response, Problem> {
    let alive = call.site.desk.look(|_, _, _| ()).await.is_ok();
    if alive && call.site.desk.shared.ready.load(Ordering::Relaxed) {
        Ok(StatusCode::OK.into_response())
    } else {
        Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not-ready", "this scheduler does not lead or cannot write"))
    }
}

/// Returns the OpenAPI document.
pub async fn openapi(call: Call) -> Result<Response, Problem> {
    json(StatusCode::OK, &call.site.openapi)
}

/// Tells who the token stands for.
pub async fn whoami(call: Call) -> Result<Response, Problem> {
    let actor = call.actor.ok_or_else(|| Problem::not_found("user"))?;
    json(StatusCode::OK, &Whoami { group: actor.group, user: actor.user, role: actor.role })
}

/// Returns metrics. No label is made of a name that a tenant chooses, so that their number is bounded (S10).
pub async fn metrics(call: Call) -> Result<Response, Problem> {
    let look = call.site.desk.look(|state, _, _| {
        let mut lines = BTreeMap::<String, u64>::new();
        for found in state.instances.values() {
            *lines.entry(format!("coracle_instances{{state=\"{:?}\"}}", found.state)).or_default() += 1;
        }
        for found in state.providers.values() {
            *lines.entry(format!("coracle_providers{{state=\"{:?}\"}}", found.state)).or_default() += 1;
        }
        let (mut offered, mut reserved) = (Resources::default(), Resources::default());
        for found in state.providers.values() {
            offered = offered.plus(&found.capacity);
            reserved = reserved.plus(&state.reserved(found.id));
        }
        for ((name, offered), (_, reserved)) in offered.dimensions().into_iter().zip(reserved.dimensions()) {
            lines.insert(format!("coracle_offered{{resource=\"{name}\"}}"), offered);
            lines.insert(format!("coracle_reserved{{resource=\"{name}\"}}"), reserved);
        }
        for (name, count) in state.counters() {
            lines.insert(format!("coracle_{name}_total"), *count);
        }
        lines.insert("coracle_waiting".to_owned(), state.waiting() as u64);
        lines.insert("coracle_leader_epoch".to_owned(), state.options.leader);
        lines
    });
    let mut lines = look.await?;
    let shared = &call.site.desk.shared;
    lines.insert("coracle_commits_total".to_owned(), shared.commits.load(Ordering::Relaxed));
    lines.insert("coracle_steps_total".to_owned(), shared.steps.load(Ordering::Relaxed));
    let mut text = String::new();
    for (name, value) in lines {
        let _ = writeln!(text, "{name} {value}");
    }
    Ok((StatusCode::OK, [(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response())
}
