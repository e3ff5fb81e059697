//! Structured logs: one JSON object a line, on standard error.
//!
//! Lines tell of the start and the end, of every notice of the core, of every request that changed or was refused
//! something, and with `requests` of all of them. Texts of tenants and providers are JSON strings without control
//! characters, so that no name breaks a line or colours a terminal (S11). No line has a token: nothing that was in a
//! header or a body is logged.

use std::io::Write as _;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::http::{Method, StatusCode};
use serde_json::{Map, Value, json};

use super::Site;
use super::table::Route;
use crate::model::{Actor, InstanceId};

/// Notices that are logged at once.
const CHUNK: usize = 256;
/// Bytes of one text of somebody else in a line.
const TEXT: usize = 256;

/// Where lines go.
#[derive(Clone, Debug, Default)]
pub enum Sink {
    /// Nowhere.
    #[default]
    Quiet,
    /// To standard error.
    Stderr,
    /// Into memory, for tests.
    Memory(Arc<Mutex<Vec<String>>>),
}

/// What is logged, and where.
#[derive(Clone, Debug, Default)]
pub struct Log {
    /// Where.
    pub sink: Sink,
    /// Requests that only read and agents' reports too.
    pub requests: bool,
}

/// Takes what could break out of a line or a terminal out of every text.
fn tame(value: &mut Value) {
    match value {
        Value::String(text) if text.len() > TEXT || text.chars().any(char::is_control) => {
            *text = text.chars().map(|char| if char.is_control() { '\u{fffd}' } else { char }).take(TEXT).collect();
        }
        Value::Array(items) => items.iter_mut().for_each(tame),
        Value::Object(fields) => fields.values_mut().for_each(tame),
        _ => {}
    }
}

/// One request, as it is logged.
pub struct Asked {
    /// Its name.
    pub request: String,
    /// Who asked.
    pub actor: Option<Actor>,
    /// From where.
    pub peer: IpAddr,
    /// The object of the path.
    pub id: String,
    /// How it was answered.
    pub status: StatusCode,
    /// How long it took.
    pub took: Duration,
}

impl Log {
    /// Writes a line.
    pub fn line(&self, level: &str, event: &str, at_ms: u64, fields: Value) {
        if matches!(self.sink, Sink::Quiet) {
            return;
        }
        let mut line = Map::new();
        line.insert("at_ms".to_owned(), at_ms.into());
        line.insert("level".to_owned(), level.into());
        line.insert("event".to_owned(), event.into());
        if let Value::Object(fields) = fields {
            line.extend(fields);
        }
        let mut line = Value::Object(line);
        tame(&mut line);
        match &self.sink {
            Sink::Quiet => {}
            // A reader that has gone away must not end the scheduler.
            Sink::Stderr => drop(writeln!(std::io::stderr().lock(), "{line}")),
            Sink::Memory(lines) => {
                lines.lock().unwrap_or_else(PoisonError::into_inner).push(line.to_string());
            }
        }
    }

    /// Logs a request, if it is one to be logged.
    pub fn request(&self, at_ms: u64, route: &Route, asked: Asked) {
        let refused = asked.status.is_client_error() || asked.status.is_server_error();
        // Whoever asks for a mirror where there is none, or for what is nowhere, does nothing wrong.
        let nothing = asked.status == StatusCode::NOT_FOUND && !route.is_described();
        let refused = refused && !nothing;
        let quiet = route.method == Method::GET || route.path.starts_with("/v1/agent/");
        if matches!(self.sink, Sink::Quiet) || (quiet && !refused && !self.requests) {
            return;
        }
        let level = if asked.status.is_server_error() { "error" } else { "info" };
        let mut fields = json!({
            "request": asked.request, "method": route.method.as_str(), "route": route.path,
            "status": asked.status.as_u16(), "ms": u64::try_from(asked.took.as_millis()).unwrap_or(u64::MAX),
            "peer": asked.peer.to_string(),
        });
        // Only what is an id: somebody may have put a secret into the path.
        if let Ok(id) = asked.id.parse::<InstanceId>() {
            fields["object"] = id.to_string().into();
        }
        if let Some(actor) = asked.actor {
            fields["group"] = actor.group.to_string().into();
            match (actor.user, actor.provider) {
                (Some(user), _) => fields["user"] = user.to_string().into(),
                (None, Some(provider)) => fields["provider"] = provider.to_string().into(),
                (None, None) => {}
            }
        }
        self.line(level, "request", at_ms, fields);
    }
}

/// Logs every notice of the core until the server ends.
pub async fn follow(site: Arc<Site>) {
    if matches!(site.options.log.sink, Sink::Quiet) {
        return;
    }
    let shared = Arc::clone(&site.desk.shared);
    let mut newest = shared.follow();
    let mut after = *newest.borrow_and_update();
    loop {
        let notices = match shared.notices(after, CHUNK) {
            Some(notices) => notices,
            None => {
                // The ring has moved on: the lines are lost, the events are in the store.
                let to = *newest.borrow();
                site.options.log.line("warn", "notices-skipped", site.clock.now_ms(), json!({ "count": to - after }));
                after = to;
                continue;
            }
        };
        for notice in &notices {
            after = notice.seq;
            let fields = serde_json::to_value(notice).unwrap_or_default();
            site.options.log.line("info", "notice", notice.at_ms, json!({ "notice": fields }));
        }
        if notices.is_empty() && newest.changed().await.is_err() {
            return;
        }
    }
}
