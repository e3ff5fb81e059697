//! Events: pages, and a stream that goes on where it was cut.
//!
//! Streams read a ring in memory; the store is read only by a stream that is far behind. A stream looks again whether
//! its token is still good every few seconds, and ends when it is not (A84).

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::gate::{Call, page};
use super::problem::Problem;
use crate::model::{Actor, GroupId, Notice, Role};
use crate::store::ROWS_MAX;

/// How often a stream looks whether its token is still good, and says that it is alive.
const LOOK: Duration = Duration::from_secs(2);
/// Notices that are read at once.
const CHUNK: usize = 256;

fn actor(call: &Call) -> Result<Actor, Problem> {
    call.actor.ok_or_else(|| Problem::new(StatusCode::UNAUTHORIZED, "token", "a valid bearer token is needed"))
}

fn number(call: &Call, name: &'static str) -> Result<Option<u64>, Problem> {
    let read = |text: &str| text.parse().map_err(|_| Problem::invalid(name, "not a number"));
    call.query(name).map(read).transpose()
}

/// Reads how many rows are wanted.
fn limit(call: &Call) -> Result<usize, Problem> {
    let asked = number(call, "limit")?.unwrap_or(100);
    let asked = usize::try_from(asked).ok().filter(|asked| (1..=ROWS_MAX).contains(asked));
    asked.ok_or_else(|| Problem::invalid("limit", format!("not a number between 1 and {ROWS_MAX}")))
}

/// An administrator sees every group's events, everybody else the own group's.
fn scope(actor: &Actor) -> Option<GroupId> {
    (actor.role != Role::Admin).then_some(actor.group)
}

/// Lists or streams events.
pub async fn events(call: Call) -> Result<Response, Problem> {
    let actor = actor(&call)?;
    let accept = call.headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let stream = accept.contains("text/event-stream");
    let last = call.headers.get("last-event-id").and_then(|value| value.to_str().ok()?.parse().ok());
    let after = last.or(number(&call, "after")?);
    if stream {
        return Ok(streamed(call, actor, after));
    }
    let limit = limit(&call)?;
    let (group, after) = (scope(&actor), after.unwrap_or(0));
    let rows = call.site.desk.look(move |_, store, _| store.notices(after, group, limit)).await?;
    let rows =
        rows.map_err(|_| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "store", "the event log cannot be read"))?;
    let next = rows.last().filter(|_| rows.len() == limit).map(|row| row.seq.to_string());
    page(rows.iter().map(|row| json!(row)).collect(), next)
}

/// Lists audit rows.
pub async fn audit(call: Call) -> Result<Response, Problem> {
    let after = number(&call, "after")?.unwrap_or(0);
    let limit = limit(&call)?;
    let group = match call.query("group") {
        None => None,
        Some(text) => Some(text.parse::<GroupId>().map_err(|_| Problem::not_found("group"))?),
    };
    let rows = call.site.desk.look(move |_, store, _| store.audits(after, group, limit)).await?;
    let rows =
        rows.map_err(|_| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "store", "the audit log cannot be read"))?;
    let next = rows.last().filter(|_| rows.len() == limit).map(|row| row.seq.to_string());
    page(rows.iter().map(|row| json!(row)).collect(), next)
}

struct Stream {
    call: Call,
    actor: Actor,
    after: u64,
    newest: tokio::sync::watch::Receiver<u64>,
}

fn streamed(call: Call, actor: Actor, after: Option<u64>) -> Response {
    let newest = call.site.desk.shared.follow();
    let after = after.unwrap_or(*newest.borrow());
    let stream = Stream { call, actor, after, newest };
    // A first comment makes clients see the stream open at once.
    let hello = futures_util::stream::once(async { Ok::<Bytes, Infallible>(Bytes::from_static(b": open\n\n")) });
    let rest = futures_util::stream::unfold(stream, |mut stream| async {
        let chunk = stream.next().await?;
        Some((Ok(Bytes::from(chunk)), stream))
    });
    let body = Body::from_stream(futures_util::StreamExt::chain(hello, rest));
    (StatusCode::OK, [(header::CONTENT_TYPE, "text/event-stream")], body).into_response()
}

impl Stream {
    /// Returns the next piece of text; `None` ends the stream.
    async fn next(&mut self) -> Option<String> {
        let token = self.actor.token;
        let valid = move |state: &mut crate::core::State, _: &mut dyn crate::store::Store, now: u64| {
            let found = state.tokens.get(&token)?;
            found.expires_at_ms.is_none_or(|at| at > now).then_some(())
        };
        self.call.site.desk.look(valid).await.ok()??;
        let fresh = self.read().await?;
        if let Some(last) = fresh.last() {
            self.after = last.seq;
            let group = scope(&self.actor);
            let seen = fresh.iter().filter(|notice| group.is_none_or(|group| group == notice.group));
            return Some(seen.map(event).collect());
        }
        match tokio::time::timeout(LOOK, self.newest.changed()).await {
            Ok(Err(_)) => None,
            Ok(Ok(())) => Some(String::new()),
            Err(_) => Some(": alive\n\n".to_owned()),
        }
    }

    async fn read(&self) -> Option<Vec<Notice>> {
        if let Some(found) = self.call.site.desk.shared.notices(self.after, CHUNK) {
            return Some(found);
        }
        let after = self.after;
        let rows = self.call.site.desk.look(move |_, store, _| store.notices(after, None, CHUNK)).await.ok()?;
        rows.ok()
    }
}

fn event(notice: &Notice) -> String {
    // The JSON has no line break, so that one line is one event.
    let data = serde_json::to_string(notice).unwrap_or_default();
    format!("id: {}\nevent: {}\ndata: {data}\n\n", notice.seq, notice.kind)
}
