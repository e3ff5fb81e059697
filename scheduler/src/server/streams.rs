//! Streams between a person and an instance: bytes both ways, through a connection that the agent dials.
//!
//! A person's request is held, the provider's next sync names the stream, the agent dials back, and both connections
//! become one pipe. What flows is not looked at; an SSH session is ciphertext from end to end. Nothing of it is
//! stored, and a stream ends with its scheduler.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::sync::oneshot;

use super::gate::Call;
use super::objects::{self, actor};
use super::problem::Problem;
use super::secret::hex;
use super::shapes::{StreamNew, StreamRefused};
use crate::core::State;
use crate::model::{Actor, InstanceId, InstanceState, Key, ProviderId, Role, StreamKind, StreamOrder, UserId};

/// What both sides ask to switch to.
pub const PROTOCOL: &str = "coracle-stream";
/// How long a person waits for the agent: a sync is answered at once, so only a dead connection takes longer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is asked whether a stream may go on.
const RECHECK: Duration = Duration::from_secs(2);
/// Streams of one person at once: some terminals, copies and forwarded ports.
const PER_USER: usize = 64;
/// Bytes that are moved at once: TLS records of 16 KiB, some at a time.
const PIECE_BYTES: usize = 64 * 1024;
/// So much of an agent's reason is passed on.
const REASON_CHARS: usize = 512;
/// Streams of all at once: each is two connections and two buffers.
const ALL: usize = 4096;

/// The streams that wait or flow.
#[derive(Debug, Default)]
pub struct Streams(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    waiting: BTreeMap<String, Waiting>,
    open: BTreeMap<UserId, usize>,
}

#[derive(Debug)]
struct Waiting {
    provider: ProviderId,
    order: StreamOrder,
    agent: oneshot::Sender<Result<OnUpgrade, String>>,
}

/// One stream's place in the counts; given back when it is dropped.
struct Place {
    streams: Arc<Streams>,
    user: UserId,
    id: String,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = self.streams.table();
        table.waiting.remove(&self.id);
        if let Some(count) = table.open.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                table.open.remove(&self.user);
            }
        }
    }
}

impl Streams {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lists what a provider's agent should dial back for. One that was named before is named again until it did.
    pub fn orders(&self, provider: ProviderId) -> Vec<StreamOrder> {
        let table = self.table();
        let own = table.waiting.values().filter(|waiting| waiting.provider == provider);
        own.map(|waiting| waiting.order.clone()).collect()
    }

    fn wait(
        self: &Arc<Self>,
        user: UserId,
        provider: ProviderId,
        order: StreamOrder,
    ) -> Option<(Place, oneshot::Receiver<Result<OnUpgrade, String>>)> {
        let mut table = self.table();
        let all: usize = table.open.values().sum();
        let count = table.open.entry(user).or_default();
        if *count >= PER_USER || all >= ALL {
            return None;
        }
        *count += 1;
        let place = Place { streams: Arc::clone(self), user, id: order.id.clone() };
        let (agent, dialled) = oneshot::channel();
        table.waiting.insert(order.id.clone(), Waiting { provider, order, agent });
        Some((place, dialled))
    }
}

fn switching() -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, header::HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, header::HeaderValue::from_static(PROTOCOL));
    response
}

fn upgrade(call: &mut Call) -> Result<OnUpgrade, Problem> {
    let asked = call.headers.get(header::UPGRADE).is_some_and(|value| value == PROTOCOL);
    call.upgrade.take().filter(|_| asked).ok_or_else(|| {
        let detail = format!("this route is left for the protocol {PROTOCOL} by an Upgrade header");
        Problem::new(StatusCode::UPGRADE_REQUIRED, "upgrade", detail)
    })
}

/// Decides who may open what: an instance's log is its group's, its inside is its owner's and an administrator's.
/// Gives the keys that may log in.
fn rights(state: &State, actor: Actor, instance: InstanceId, kind: &StreamKind) -> Result<Vec<String>, Problem> {
    let gone = || Problem::not_found("instance");
    objects::seen(state, actor, &Key::Instance(instance)).ok_or_else(gone)?;
    if matches!(kind, StreamKind::Data) {
        let detail = "data goes from provider to provider only; a person has exec, ssh and cp";
        return Err(Problem::new(StatusCode::FORBIDDEN, "forbidden", detail));
    }
    let found = state.instances.get(&instance).ok_or_else(gone)?;
    let inside = matches!(kind, StreamKind::Ssh | StreamKind::Exec { .. });
    if inside && Some(found.user) != actor.user && actor.role != Role::Admin {
        let detail = "only its owner and administrators get into an instance";
        return Err(Problem::new(StatusCode::FORBIDDEN, "forbidden", detail));
    }
    Ok(match kind {
        StreamKind::Ssh => state.users.get(&found.user).map(|owner| owner.ssh_keys.clone()).unwrap_or_default(),
        StreamKind::Exec { .. } | StreamKind::Logs { .. } | StreamKind::Data => Vec::new(),
    })
}

/// Returns when a stream may not go on: its token is gone, or the right, or a key (A84). A key that was added is no
/// reason to end anything; one that was taken away is, because whose session it is only the provider knows.
async fn outlived(call: &Call, actor: Actor, instance: InstanceId, order: &StreamOrder) {
    loop {
        tokio::time::sleep(RECHECK).await;
        let (kind, keys) = (order.kind.clone(), order.keys.clone());
        let holds = call.site.desk.look(move |state, _, now| {
            let token = state.tokens.get(&actor.token)?;
            token.expires_at_ms.is_none_or(|at| at > now).then_some(())?;
            let now = rights(state, actor, instance, &kind).ok()?;
            keys.iter().all(|key| now.contains(key)).then_some(())
        });
        if !matches!(holds.await, Ok(Some(()))) {
            return;
        }
    }
}

/// Opens a stream to an instance that runs.
pub async fn open(mut call: Call) -> Result<Response, Problem> {
    let instance: InstanceId = call.id("instance")?;
    let body: StreamNew = call.json()?;
    let actor = actor(&call)?;
    let user = actor.user.ok_or_else(|| Problem::not_found("instance"))?;
    let (id, kind) = (fresh_id()?, body.kind);
    let granted = call.site.desk.look(move |state, _, _| {
        let keys = rights(state, actor, instance, &kind)?;
        let found = state.instances.get(&instance).ok_or_else(|| Problem::not_found("instance"))?;
        let still = found.state == InstanceState::Halted && matches!(kind, StreamKind::Exec { files: true, .. });
        let running = found.alloc.as_ref().filter(|_| found.state == InstanceState::Running || still);
        let alloc = running.ok_or_else(|| Problem::new(StatusCode::CONFLICT, "state", "the instance does not run"))?;
        let (name, asker) = (found.name.to_string(), state.users.get(&user).map(|user| user.name.to_string()));
        let asker = asker.unwrap_or_default();
        Ok::<_, Problem>((alloc.provider, StreamOrder { id, instance, epoch: alloc.epoch, kind, keys, name, asker }))
    });
    let (provider, order) = granted.await??;
    let person = upgrade(&mut call)?;
    let (place, agent) = dialled_back(&call, user, provider, &order).await?;
    tokio::spawn(async move {
        let _place = place;
        if let (Ok(person), Ok(agent)) = (person.await, agent.await) {
            tokio::select! {
                () = pipe(person, agent) => {}
                () = outlived(&call, actor, instance, &order) => {}
            }
        }
    });
    Ok(switching())
}

fn fresh_id() -> Result<String, Problem> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|_| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "entropy", "the kernel gives no random bytes"))?;
    Ok(hex(&bytes))
}

/// Has the agent of a provider dial back for a stream.
async fn dialled_back(
    call: &Call,
    user: UserId,
    provider: ProviderId,
    order: &StreamOrder,
) -> Result<(Place, OnUpgrade), Problem> {
    let Some((place, dialled)) = call.site.streams.wait(user, provider, order.clone()) else {
        let detail = format!("more than {PER_USER} streams of one user, or {ALL} of all");
        return Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, "streams", detail).retry(1));
    };
    call.site.desk.shared.wake(provider).notify_one();
    let Ok(Ok(agent)) = tokio::time::timeout(PATIENCE, dialled).await else {
        return Err(Problem::new(StatusCode::GATEWAY_TIMEOUT, "provider", "the provider does not answer"));
    };
    Ok((place, agent.map_err(|reason| Problem::new(StatusCode::CONFLICT, "refused", reason))?))
}

/// Gives the data of an instance to the provider that it moves to, from the one that has it.
pub async fn data(mut call: Call) -> Result<Response, Problem> {
    let instance: InstanceId = call.id("instance")?;
    let asker = call.actor.and_then(|actor| actor.provider);
    let id = fresh_id()?;
    let granted = call.site.desk.look(move |state, _, _| {
        let found = state.instances.get(&instance)?;
        let here = found.alloc.as_ref().is_some_and(|alloc| Some(alloc.provider) == asker);
        let source = found.moving.and_then(|moving| moving.source).filter(|_| here)?;
        let (kind, name) = (StreamKind::Data, found.name.to_string());
        let (keys, asker) = (Vec::new(), String::new());
        let order = StreamOrder { id, instance, epoch: source.epoch, kind, keys, name, asker };
        Some((found.user, source.provider, order))
    });
    let (user, provider, order) = granted.await?.ok_or_else(|| Problem::not_found("move"))?;
    let taker = upgrade(&mut call)?;
    let (place, giver) = dialled_back(&call, user, provider, &order).await?;
    tokio::spawn(async move {
        let _place = place;
        if let (Ok(taker), Ok(giver)) = (taker.await, giver.await) {
            pipe(taker, giver).await;
        }
    });
    Ok(switching())
}

async fn pipe(person: Upgraded, agent: Upgraded) {
    let (mut person, mut agent) = (TokioIo::new(person), TokioIo::new(agent));
    // Either side's end is passed on; an error ends both.
    let _ = tokio::io::copy_bidirectional_with_sizes(&mut person, &mut agent, PIECE_BYTES, PIECE_BYTES).await;
}

/// Takes the agent's end of a stream, or its reason why there is none.
pub async fn dial(mut call: Call) -> Result<Response, Problem> {
    let provider = call.actor.and_then(|actor| actor.provider);
    let id = call.id.clone();
    let unknown = || Problem::not_found("stream");
    let own = call.site.streams.table().waiting.get(&id).is_some_and(|waiting| Some(waiting.provider) == provider);
    if !own {
        return Err(unknown());
    }
    let agent = match call.body.is_empty() {
        true => Ok(upgrade(&mut call)?),
        false => Err(call.json::<StreamRefused>()?.reason.chars().take(REASON_CHARS).collect()),
    };
    let refused = agent.is_err();
    let waiting = call.site.streams.table().waiting.remove(&id).ok_or_else(unknown)?;
    waiting.agent.send(agent).map_err(|_| unknown())?;
    Ok(if refused { StatusCode::NO_CONTENT.into_response() } else { switching() })
}
