//! Routes about the scheduler itself: health, metrics, its own description.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::gate::{Call, json};
use super::problem::Problem;
use super::shapes::Whoami;
use crate::mirror::Mirror;

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

/// One family of metrics: kind, meaning, values by label.
struct Family {
    kind: &'static str,
    help: &'static str,
    values: BTreeMap<String, u64>,
}

/// Families by name, in a fixed order.
#[derive(Default)]
struct Families(BTreeMap<String, Family>);

impl Families {
    fn add(&mut self, name: &str, kind: &'static str, help: &'static str, label: String, value: u64) {
        let family = Family { kind, help, values: BTreeMap::new() };
        *self.0.entry(name.to_owned()).or_insert(family).values.entry(label).or_default() += value;
    }

    fn gauge(&mut self, name: &str, help: &'static str, label: String, value: u64) {
        self.add(name, "gauge", help, label, value);
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for (name, Family { kind, help, values }) in &self.0 {
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
            for (label, value) in values {
                let _ = writeln!(text, "{name}{label} {value}");
            }
        }
        text
    }
}

/// Writes a state as the API does.
fn state_label(state: impl serde::Serialize) -> String {
    let word = serde_json::to_value(state).ok();
    format!("{{state=\"{}\"}}", word.as_ref().and_then(|word| word.as_str()).unwrap_or_default())
}

/// Adds what a mirror has done since the scheduler started.
fn mirrored(all: &mut Families, mirror: &Mirror) {
    let (held_bytes, evicted) = mirror.held();
    let counts = &mirror.counts;
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let mut add = |name: &str, help, value| {
        all.add(&format!("coracle_mirror_{name}_total"), "counter", help, String::new(), value);
    };
    add("hits", "Answers from the mirror's disk.", read(&counts.hits));
    add("misses", "Fetches from registries.", read(&counts.misses));
    add("shared", "Answers from another asker's fetch.", read(&counts.shared));
    add("stale", "Tags given as they were because their registry did not answer.", read(&counts.stale));
    add("damaged", "Files of the mirror that were something else when they were read.", read(&counts.damaged));
    add("evicted", "Files that made room.", evicted);
    add("fetched_bytes", "Bytes from registries.", read(&counts.fetched_bytes));
    add("served_bytes", "Bytes to agents.", read(&counts.served_bytes));
    all.gauge("coracle_mirror_held_bytes", "Bytes that the mirror keeps.", String::new(), held_bytes);
}

/// Returns metrics. No label is made of a name that a tenant chooses, so that their number is bounded (S10).
pub async fn metrics(call: Call) -> Result<Response, Problem> {
    let look = call.site.desk.look(|state, _, _| {
        let mut all = Families::default();
        for found in state.instances.values() {
            all.gauge("coracle_instances", "Instances by state.", state_label(found.state), 1);
        }
        for found in state.providers.values() {
            all.gauge("coracle_providers", "Providers by state.", state_label(found.state), 1);
            for ((name, offered), (_, reserved)) in
                found.capacity.dimensions().into_iter().zip(state.reserved(found.id).dimensions())
            {
                let label = || format!("{{resource=\"{name}\"}}");
                all.gauge("coracle_offered", "What providers lend.", label(), offered);
                all.gauge("coracle_reserved", "What instances and volumes hold of it.", label(), reserved);
            }
        }
        for (name, count) in state.counters() {
            let name = format!("coracle_{name}_total");
            all.add(&name, "counter", "Counted since this scheduler leads.", String::new(), *count);
        }
        all.gauge("coracle_waiting", "Instances that wait for a place.", String::new(), state.waiting() as u64);
        all.gauge("coracle_leader_epoch", "The epoch this scheduler leads with.", String::new(), state.options.leader);
        all
    });
    let mut all = look.await?;
    let shared = &call.site.desk.shared;
    for (name, help, count) in [
        ("coracle_commits_total", "Transactions.", &shared.commits),
        ("coracle_steps_total", "Steps of the core.", &shared.steps),
    ] {
        all.add(name, "counter", help, String::new(), count.load(Ordering::Relaxed));
    }
    if let Some(mirror) = &call.site.options.mirror {
        mirrored(&mut all, mirror);
    }
    Ok((StatusCode::OK, [(header::CONTENT_TYPE, "text/plain; version=0.0.4")], all.text()).into_response())
}
