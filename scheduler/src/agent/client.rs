//! The agent over HTTP: dials out, speaks the protocol of [`Machine`], drives an [`Engine`].

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::StatusCode;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::engine::Engine;
use super::fetch::Fetches;
use super::identity::{Identity, IdentityError};
use super::machine::{Machine, REPLY_MAX_MS};
use super::stream::{self, Streams};
use crate::model::*;
use crate::server::Problem;
use crate::server::agents::WAIT_MAX_MS;
use crate::server::shapes::{Certificate, CertificateNew, JoinBody, Joined, StreamRefused};
use crate::server::streams::PROTOCOL;

/// First wait after a call that failed.
const RETRY: Duration = Duration::from_millis(200);
/// Longest wait after calls that failed.
const RETRY_MAX: Duration = Duration::from_secs(20);
/// What is waited for at least so long is waited for with as little memory as can be.
const REST_MIN: Duration = Duration::from_secs(1);
/// After a sync the first look comes so soon: the sync is on its way, and an agent that rests has not even sent it.
const SETTLE: Duration = Duration::from_millis(200);

/// So many syncs in a row may be given up at once for a newer one, so that news is quick.
const HURRIED_MAX: u32 = 5;
/// The next ones live so long first, and for several ways there and back: an instance that changes all the time must not
/// keep the scheduler's answers away.
const LIFE_MIN: Duration = Duration::from_millis(250);
/// For as many ways as a connection, its TLS and a question take.
const LIFE_ROUND_TRIPS: u32 = 4;
/// What a way is taken to be that was not measured.
const ROUND_TRIP: Duration = Duration::from_millis(250);

/// How often the way to the scheduler and back is measured.
const RTT_EVERY: Duration = Duration::from_secs(60);
/// Nothing else is done while it is measured.
const RTT_MAX: Duration = Duration::from_secs(2);
/// How long what was measured is believed: two failures in a row are not the end of it.
const RTT_TTL_MS: u64 = 180_000;

/// Says why a call to the scheduler came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No answer.
    #[error("cannot reach the scheduler for {op}")]
    Send {
        /// What was asked.
        op: &'static str,
        /// Why.
        source: reqwest::Error,
    },
    /// A refusal.
    #[error("the scheduler refuses {op} with {status}: {detail}")]
    Refused {
        /// What was asked.
        op: &'static str,
        /// The status.
        status: u16,
        /// The kind of the problem.
        kind: String,
        /// The words of the problem.
        detail: String,
    },
    /// The agent's own key or certificate cannot be used.
    #[error("cannot use the agent's identity")]
    Identity(#[from] IdentityError),
    /// The count of hellos cannot be kept.
    #[error("cannot keep the count of hellos")]
    Incarnation(#[source] std::io::Error),
}

/// Keeps the number of the last hello over restarts; a number must be kept before it is used.
pub trait Keeper: Send {
    /// Keeps it.
    fn keep(&mut self, incarnation: u64) -> Result<(), std::io::Error>;
}

impl Keeper for () {
    fn keep(&mut self, _incarnation: u64) -> Result<(), std::io::Error> {
        Ok(())
    }
}

/// Keeps it in a file, replaced by rename.
#[derive(Debug)]
pub struct FileKeeper(pub std::path::PathBuf);

impl FileKeeper {
    /// Reads the number; 0 when there is no file yet.
    pub fn read(&self) -> Result<u64, std::io::Error> {
        match fs_err::read_to_string(&self.0) {
            Ok(text) => text.trim().parse().map_err(std::io::Error::other),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error),
        }
    }
}

impl Keeper for FileKeeper {
    fn keep(&mut self, incarnation: u64) -> Result<(), std::io::Error> {
        let fresh = self.0.with_extension("new");
        fs_err::write(&fresh, incarnation.to_string())?;
        fs_err::File::open(&fresh)?.sync_all()?;
        fs_err::rename(&fresh, &self.0)
    }
}

/// Calls one scheduler with one token.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    token: String,
}

/// An identity with the authorities that the scheduler's certificate must come from.
struct Enrolled {
    identity: Identity,
    authorities: String,
}

impl Client {
    /// Makes a client; `http` carries the trusted certificates.
    pub fn new(http: reqwest::Client, base: impl Into<String>, token: impl Into<String>) -> Self {
        Self { http, base: base.into(), token: token.into() }
    }

    async fn post<T: DeserializeOwned>(
        &self,
        op: &'static str,
        path: &str,
        body: &impl serde::Serialize,
    ) -> Result<T, ClientError> {
        let send = |source| ClientError::Send { op, source };
        let request = self.http.post(format!("{}{path}", self.base)).bearer_auth(&self.token);
        let request = request.timeout(Duration::from_millis(REPLY_MAX_MS)).json(body);
        let response = request.send().await.map_err(send)?;
        let status = response.status();
        if status.is_success() {
            return response.json().await.map_err(send);
        }
        Err(refusal(op, response).await)
    }

    /// Measures the shortest way there and back, by a request that costs the scheduler nothing; on a connection that
    /// stands already, as it does after another call.
    async fn round_trip(&self) -> Option<Duration> {
        let request = self.http.get(format!("{}/healthz", self.base)).timeout(RTT_MAX);
        let start = Instant::now();
        let response = request.send().await.ok()?;
        let took = start.elapsed();
        // Read to its end, so that the connection can be used again.
        response.bytes().await.ok().map(|_| took)
    }

    /// Leaves HTTP by a route that allows it; what follows are the stream's own bytes.
    pub(super) async fn leave_http(&self, op: &'static str, path: &str) -> Result<reqwest::Upgraded, ClientError> {
        let send = |source| ClientError::Send { op, source };
        let request = self.http.post(format!("{}{path}", self.base)).bearer_auth(&self.token);
        let request = request.header("connection", "upgrade").header("upgrade", PROTOCOL);
        let response = request.send().await.map_err(send)?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(refusal(op, response).await);
        }
        response.upgrade().await.map_err(send)
    }

    /// Tells who waits for a stream why there is none; who is not told gives up by himself.
    pub(super) async fn refuse_stream(&self, path: &str, reason: String) {
        let request = self.http.post(format!("{}{path}", self.base)).bearer_auth(&self.token);
        let _ = request.timeout(Duration::from_millis(REPLY_MAX_MS)).json(&StreamRefused { reason }).send().await;
    }

    /// Joins with a join token as this client's token, has the identity's key signed and keeps the certificate.
    pub async fn enrol(&self, name: Name, identity: &mut Identity) -> Result<Joined, ClientError> {
        let body = JoinBody { name, request: Some(identity.request()?) };
        let joined: Joined = self.post("join", "/v1/join", &body).await?;
        if let Some(certificate) = &joined.certificate {
            identity.keep(certificate.clone())?;
        }
        Ok(joined)
    }

    /// Joins with a join token as this client's token.
    pub async fn join(&self, name: Name) -> Result<Joined, ClientError> {
        self.post("join", "/v1/join", &JoinBody { name, request: None }).await
    }
}

async fn refusal(op: &'static str, response: reqwest::Response) -> ClientError {
    let status = response.status().as_u16();
    let problem: Option<Problem> = response.json().await.ok();
    let (kind, detail) = problem.map(|problem| (problem.kind, problem.detail)).unwrap_or_default();
    ClientError::Refused { op, status, kind, detail }
}

fn is_hello_needed(error: &ClientError) -> bool {
    matches!(error, ClientError::Refused { status, kind, .. }
        if *status == StatusCode::CONFLICT.as_u16() && kind.ends_with("#hello-needed"))
}

/// Waits until the engine says that something has happened; for ever where it says nothing.
async fn happened(changes: Option<&AsyncFd<OwnedFd>>) {
    match changes {
        // Whoever takes in what has happened makes it so that the next wait is for something else.
        Some(changes) => {
            if let Ok(mut ready) = changes.readable().await {
                ready.clear_ready();
            }
        }
        None => std::future::pending().await,
    }
}

/// An agent: a client, a machine and an engine.
pub struct Agent<E: Engine, K: Keeper> {
    client: Client,
    machine: Machine,
    engine: Arc<Mutex<E>>,
    keeper: K,
    start: Instant,
    failures: u32,
    enrolled: Option<Enrolled>,
    streams: Streams,
    fetches: Fetches,
    round_trip: Option<(Instant, Duration)>,
    round_trip_tried: Option<Instant>,
    /// Syncs that were given up since the last answer.
    hurried: u32,
    changes: Option<AsyncFd<OwnedFd>>,
}

impl<E: Engine, K: Keeper> Agent<E, K> {
    /// Makes an agent that has said `incarnation` hellos before.
    pub fn new(client: Client, engine: Arc<Mutex<E>>, keeper: K, incarnation: u64) -> Self {
        Self {
            client,
            machine: Machine::new(incarnation, 0),
            engine,
            keeper,
            start: Instant::now(),
            failures: 0,
            enrolled: None,
            streams: Streams::default(),
            fetches: Fetches::default(),
            round_trip: None,
            round_trip_tried: None,
            hurried: 0,
            changes: None,
        }
    }

    /// Lets the agent speak with a certificate of its own key, which it renews by itself.
    pub fn enrolled(mut self, identity: Identity, authorities: String) -> Result<Self, ClientError> {
        self.client.http = identity.http(&authorities)?;
        self.enrolled = Some(Enrolled { identity, authorities });
        Ok(self)
    }

    /// Asks for the next certificate while the last one still has a third of its life, or when there is none.
    async fn renew(&mut self) -> Result<(), ClientError> {
        let Some(enrolled) = self.enrolled.as_mut().filter(|enrolled| enrolled.identity.is_due()) else {
            return Ok(());
        };
        // An ended certificate would end the handshake: it is not shown any more.
        self.client.http = enrolled.identity.http(&enrolled.authorities)?;
        let body = CertificateNew { request: enrolled.identity.request()? };
        let signed: Certificate = self.client.post("certificate", "/v1/agent/certificate", &body).await?;
        enrolled.identity.keep(signed.certificate)?;
        self.client.http = enrolled.identity.http(&enrolled.authorities)?;
        Ok(())
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn with<T>(&mut self, work: impl FnOnce(&mut Machine, &mut E) -> T) -> T {
        let mut engine = self.engine.lock().unwrap_or_else(PoisonError::into_inner);
        work(&mut self.machine, &mut engine)
    }

    /// Works until the scheduler says that this provider is not its own any more, or the task is dropped.
    pub async fn run(&mut self) -> Result<(), ClientError> {
        #[expect(deprecated, reason = "its successor is unsafe; an OwnedFd is its own as long as it lives")]
        let watched = |changes| AsyncFd::with_interest(changes, Interest::READABLE).ok();
        self.changes = self.with(|_, engine| engine.changes()).and_then(watched);
        loop {
            let now = self.now_ms();
            self.with(|machine, engine| machine.tick(engine, now));
            let outcome = match self.renew().await {
                Ok(()) if self.machine.is_open() => {
                    self.look_at_the_way().await;
                    self.sync().await
                }
                Ok(()) => self.hello().await,
                Err(error) => Err(error),
            };
            match outcome {
                Ok(()) => self.failures = 0,
                Err(error) if is_hello_needed(&error) => {}
                Err(
                    error @ (ClientError::Refused { status: 401 | 403, .. }
                    | ClientError::Incarnation(_)
                    | ClientError::Identity(_)),
                ) => {
                    return Err(error);
                }
                Err(_) => self.pause().await,
            }
        }
    }

    /// Gives back what a wait needs no more, where nothing is on its way.
    fn rest(&mut self) {
        self.with(|_, engine| {
            if engine.look_in() >= REST_MIN {
                engine.rest();
            }
        });
    }

    /// Waits after a failure, longer each time; what may not run alone is still looked after.
    async fn pause(&mut self) {
        let wait = RETRY.saturating_mul(1 << self.failures.min(10)).min(RETRY_MAX);
        self.failures += 1;
        let until = Instant::now() + wait;
        while Instant::now() < until {
            self.rest();
            tokio::time::sleep(RETRY.min(wait)).await;
            let now = self.now_ms();
            self.with(|machine, engine| machine.tick(engine, now));
        }
    }

    async fn hello(&mut self) -> Result<(), ClientError> {
        let sent = self.now_ms();
        let hello = self.with(|machine, engine| machine.hello(engine));
        self.keeper.keep(hello.incarnation).map_err(ClientError::Incarnation)?;
        let reply: HelloReply = self.client.post("hello", "/v1/agent/hello", &hello).await?;
        let now = self.now_ms();
        self.with(|machine, engine| machine.on_hello(engine, now, sent, reply));
        Ok(())
    }

    /// Measures the way to the scheduler when that is due, and says how old the last measure is.
    async fn look_at_the_way(&mut self) {
        if self.round_trip_tried.is_none_or(|at| at.elapsed() >= RTT_EVERY) {
            self.round_trip_tried = Some(Instant::now());
            let measured = self.client.round_trip().await.map(|took| (Instant::now(), took));
            self.round_trip = measured.or(self.round_trip);
        }
        self.machine.network_rtt = self.round_trip.map(|(at, took)| FactReport {
            // To the microsecond: on one machine it is less than a millisecond.
            value: FactValue::Number((took.as_secs_f64() * 1e6).round() / 1e3),
            age_ms: u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX),
            ttl_ms: Some(RTT_TTL_MS),
        });
    }

    /// For how long a sync may be answered before a newer one takes its place.
    fn life(&self) -> Duration {
        if self.hurried < HURRIED_MAX {
            return Duration::ZERO;
        }
        let round_trip = self.round_trip.map_or(ROUND_TRIP, |(_, took)| took);
        round_trip.saturating_mul(LIFE_ROUND_TRIPS).max(LIFE_MIN)
    }

    async fn sync(&mut self) -> Result<(), ClientError> {
        let sent = self.now_ms();
        // Looked at before the sync is made: what happens in between is said twice and not forgotten.
        let before = self.with(|_, engine| (engine.report(), engine.accepting(), engine.drain_ms().is_some()));
        let Some(sync) = self.with(|machine, engine| machine.sync(engine)) else { return Ok(()) };
        let session = sync.session;
        let wait = self.machine.interval_ms.min(WAIT_MAX_MS);
        let path = format!("/v1/agent/sync?wait_ms={wait}");
        // Facts and a talk over TLS need different parts of the program.
        self.rest();
        let client = self.client.clone();
        let call = client.post::<SyncReply>("sync", &path, &sync);
        tokio::pin!(call);
        let begun = Instant::now();
        let life = self.life();
        let (mut settled, mut news) = (false, false);
        let outcome = loop {
            let look_in = self.with(|_, engine| engine.look_in());
            if settled {
                self.rest();
            }
            let look_in = if settled { look_in } else { look_in.min(SETTLE) };
            let look_in = if news { look_in.min(life.saturating_sub(begun.elapsed())) } else { look_in };
            tokio::select! {
                outcome = &mut call => break outcome,
                () = happened(self.changes.as_ref()) => {}
                () = tokio::time::sleep(look_in) => settled = true,
            }
            let now = self.now_ms();
            self.fetches.go_on(&self.client, &self.engine);
            news = self.with(|machine, engine| {
                machine.tick(engine, now);
                (engine.report(), engine.accepting(), engine.drain_ms().is_some()) != before
            });
            // Something happened here: say so now instead of waiting for an order.
            if news && begun.elapsed() >= life {
                self.hurried += 1;
                return Ok(());
            }
        };
        match outcome {
            Ok(mut reply) => {
                self.hurried = 0;
                for order in self.streams.fresh(std::mem::take(&mut reply.streams)) {
                    let place = self.streams.place();
                    let opened = match &place {
                        Some(_) => self.with(|_, engine| engine.stream(&order)),
                        None => Err(stream::no_place(&order)),
                    };
                    let carried = stream::carry(self.client.clone(), order, opened);
                    tokio::spawn(async move {
                        carried.await;
                        drop(place);
                    });
                }
                let now = self.now_ms();
                self.with(|machine, engine| machine.on_sync(engine, now, sent, reply));
                Ok(())
            }
            Err(error) => {
                if is_hello_needed(&error) {
                    self.machine.on_hello_needed(session);
                }
                Err(error)
            }
        }
    }
}
