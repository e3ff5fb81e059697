//! The HTTP server: the core and a store behind a table of routes.
//!
//! One thread owns the state (`desk`); everything else is I/O around it. `start` is what tests and `coracle
//! scheduler` call.

pub mod agents;
mod authority;
mod clock;
pub mod desk;
mod events;
mod gate;
pub mod known;
mod limit;
mod log;
mod mirror;
mod net;
mod objects;
mod openapi;
mod pages;
mod peer;
mod problem;
mod seal;
mod secret;
pub mod shapes;
pub mod streams;
mod table;
mod writes;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::RawPathParams;
use axum::http::{Method, Request, StatusCode};
use axum::response::IntoResponse;
use axum::routing::MethodFilter;
use tokio::net::TcpListener;

use crate::core::Refusal;
use crate::core::{Event, Options as CoreOptions, Request as CoreRequest, Wish};
use crate::mirror::Mirror;
use crate::model::Name;
use crate::store::{StoreError, StorePlace};
use desk::{Desk, DeskError};
use limit::Limiter;

pub use authority::{AGENT_LIFE, Authority, AuthorityError, AuthorityFiles};
pub use clock::{Clock, wall_ms};
pub use gate::{BODY_BYTES, JSON_DEPTH, PARAMETERS, URL_BYTES};
pub use limit::Rate;
pub use log::{Log, Sink};
pub use net::{Limits, TlsError, TlsFiles};
pub use problem::Problem;
pub use seal::{Seal, SealError};
pub use secret::{JOIN_PREFIX, Secret, TOKEN_PREFIX};
pub use table::{Policy, Route, routes};

/// What a server is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to listen; port 0 takes any.
    pub listen: SocketAddr,
    /// The store. Of several schedulers on one database one leads; the others wait without listening.
    pub store: StorePlace,
    /// How long the lead lasts without renewal.
    pub lease: Duration,
    /// Certificate and key; without them the server speaks plain HTTP.
    pub tls: Option<TlsFiles>,
    /// The authority that signs agents' keys; with it and TLS an agent needs its certificate beside its token.
    pub authority: Option<AuthorityFiles>,
    /// The file of the key that seals secrets; made when it is missing. Without it there are no secrets.
    pub secrets_key: Option<PathBuf>,
    /// How long an agent's certificate lasts.
    pub agent_life: Duration,
    /// The core's numbers.
    pub core: CoreOptions,
    /// Numbers about connections.
    pub limits: Limits,
    /// Requests of one token.
    pub token_rate: Rate,
    /// Requests from one address.
    pub peer_rate: Rate,
    /// Joins from one address.
    pub join_rate: Rate,
    /// How long a body may take.
    pub body_time: Duration,
    /// The mirror of registries, if there is one; it outlives the server, because its folder is used by one only.
    pub mirror: Option<Arc<Mirror>>,
    /// What is logged.
    pub log: Log,
}

impl Options {
    /// The defaults for a store.
    pub fn new(listen: SocketAddr, store: StorePlace) -> Self {
        Self {
            listen,
            store,
            lease: crate::store::LEASE,
            tls: None,
            authority: None,
            secrets_key: None,
            agent_life: AGENT_LIFE,
            core: CoreOptions::default(),
            limits: Limits::default(),
            token_rate: Rate { per_s: 500.0, burst: 2_000.0 },
            peer_rate: Rate { per_s: 5_000.0, burst: 20_000.0 },
            join_rate: Rate { per_s: 1.0, burst: 20.0 },
            body_time: Duration::from_secs(20),
            mirror: None,
            log: Log::default(),
        }
    }
}

/// Says why a server does not start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The store does not open, or cannot be trusted any more.
    #[error("cannot use the store {place}")]
    Store {
        /// Which one.
        place: StorePlace,
        /// Why.
        source: StoreError,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// Which one.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// TLS cannot be offered.
    #[error("cannot offer TLS")]
    Tls(#[source] TlsError),
    /// The authority for agents cannot be used.
    #[error("cannot sign agents' keys")]
    Authority(#[source] AuthorityError),
    /// There is no seal for secrets.
    #[error("cannot keep secrets")]
    Seal(#[source] SealError),
    /// The first administrator cannot be made.
    #[error("cannot make the first administrator")]
    Bootstrap(#[source] DeskError),
    /// The kernel gives no random bytes.
    #[error("the kernel gives no random bytes")]
    Entropy(#[source] getrandom::Error),
}

/// What handlers share.
pub struct Site {
    /// The way to the state.
    pub desk: Desk,
    /// The time.
    pub clock: Clock,
    /// What the server was started with.
    pub options: Options,
    /// What flows between people and instances.
    pub streams: Arc<streams::Streams>,
    authority: Option<Authority>,
    seal: Option<Arc<Seal>>,
    openapi: utoipa::openapi::OpenApi,
    token_limit: Limiter,
    peer_limit: Limiter,
    join_limit: Limiter,
    numbers: AtomicU64,
}

impl Site {
    /// Numbers a request.
    pub fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }
}

/// A server that runs.
pub struct Running {
    /// Where it listens.
    pub address: SocketAddr,
    /// What handlers share.
    pub site: Arc<Site>,
    task: tokio::task::JoinHandle<()>,
    log: tokio::task::JoinHandle<()>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Running {
    /// Waits until the server ends: it fails, or another scheduler leads.
    pub async fn wait(&mut self) {
        tokio::select! {
            _ = &mut self.task => {}
            () = self.site.desk.closed() => {}
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
        self.log.abort();
    }
}

fn filter(method: &Method) -> MethodFilter {
    match method.as_str() {
        "POST" => MethodFilter::POST,
        "PUT" => MethodFilter::PUT,
        "DELETE" => MethodFilter::DELETE,
        _ => MethodFilter::GET,
    }
}

fn router(site: &Arc<Site>) -> Router {
    // One table for the whole process; the server lives as long as it.
    let table: &'static [Route] = Box::leak(routes().into_boxed_slice());
    let mut router = Router::new();
    for route in table {
        let site = Arc::clone(site);
        let handler = move |parameters: RawPathParams, request: Request<Body>| {
            let peer = request.extensions().get::<SocketAddr>().map_or(IpAddr::from([0, 0, 0, 0]), SocketAddr::ip);
            let id = parameters.iter().next().map(|(_, value)| value.to_owned()).unwrap_or_default();
            gate::pass(Arc::clone(&site), route, peer, id, request)
        };
        router = router.route(route.path, axum::routing::on(filter(&route.method), handler));
    }
    let not_found =
        || async { Problem::new(StatusCode::NOT_FOUND, "not-found", "there is no such route").into_response() };
    let not_allowed = || async {
        Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method", "this route has other methods").into_response()
    };
    router.fallback(not_found).method_not_allowed_fallback(not_allowed)
}

/// Starts a server on the running tokio runtime.
pub async fn start(options: Options) -> Result<Running, ServerError> {
    let files = options.authority.as_ref().filter(|_| options.tls.is_some());
    let authority = files.map(|files| Authority::open(files, options.agent_life)).transpose();
    let authority = authority.map_err(ServerError::Authority)?;
    let signers = authority.as_ref().map(Authority::trusted);
    let tls = options.tls.as_ref().map(|files| net::acceptor(files, signers)).transpose().map_err(ServerError::Tls)?;
    let seal = options.secrets_key.as_deref().map(Seal::open).transpose().map_err(ServerError::Seal)?.map(Arc::new);
    let clock = Clock::start();
    let (desk, thread) = open(options.clone(), clock).await?;
    let refused = |source| ServerError::Listen { address: options.listen, source };
    let listener = TcpListener::bind(options.listen).await.map_err(refused)?;
    let address = listener.local_addr().map_err(refused)?;
    let site = Arc::new(Site {
        desk,
        clock,
        streams: Arc::default(),
        authority,
        seal,
        openapi: openapi::document(&routes()),
        token_limit: Limiter::new(options.token_rate),
        peer_limit: Limiter::new(options.peer_rate),
        join_limit: Limiter::new(options.join_rate),
        numbers: AtomicU64::new(0),
        options,
    });
    let log = tokio::spawn(log::follow(Arc::clone(&site)));
    let serve = net::serve(listener, tls, router(&site), site.options.limits);
    Ok(Running { address, site, task: tokio::spawn(serve), log, thread: Some(thread) })
}

/// Opens the store and takes the lead, on a thread that may wait for it.
async fn open(options: Options, clock: Clock) -> Result<(Desk, std::thread::JoinHandle<()>), ServerError> {
    let place = options.store.clone();
    let refused = |place: StorePlace| move |source| ServerError::Store { place, source };
    let opened = tokio::task::spawn_blocking(move || {
        Desk::open(options.store.open(options.lease)?, options.core, clock, options.log)
    });
    match opened.await {
        Ok(opened) => opened.map_err(refused(place)),
        Err(error) => {
            let source =
                StoreError::File { op: "open", path: place.to_string().into(), source: std::io::Error::other(error) };
            Err(refused(place)(source))
        }
    }
}

/// Runs a server until `stop` is over; a leader that was deposed waits for its next turn. `told` hears where it
/// listens, each time it does. Returns the thread that gives the lead up once every conversation is over.
pub async fn run(
    options: Options,
    told: impl Fn(SocketAddr),
    stop: impl Future<Output = ()>,
) -> Result<Option<std::thread::JoinHandle<()>>, ServerError> {
    let mut stop = std::pin::pin!(stop);
    loop {
        let mut running = tokio::select! {
            () = &mut stop => return Ok(None),
            started = start(options.clone()) => started?,
        };
        told(running.address);
        tokio::select! {
            () = &mut stop => return Ok(running.thread.take()),
            () = running.wait() => {}
        }
        // Going on would quietly forget what people were told; a person has to look and start it again.
        if let Some(source) = running.site.desk.shared.lost() {
            return Err(ServerError::Store { place: options.store.clone(), source });
        }
    }
}

/// Makes the first group and administrator of an empty pool; returns the secret, or `None` when there is one already.
pub async fn bootstrap(site: &Site, group: Name, user: Name) -> Result<Option<Secret>, ServerError> {
    let secret = Secret::generate(TOKEN_PREFIX).map_err(ServerError::Entropy)?;
    let wish = Wish::Bootstrap { group, user, hash: secret.hash() };
    let request = CoreRequest { actor: None, id: "bootstrap".to_owned(), key: None, digest: String::new(), wish };
    let event = move |ticket| Event::Request { ticket, request: Box::new(request) };
    match site.desk.submit(event).await {
        Ok(_) => Ok(Some(secret)),
        Err(DeskError::Refused(Refusal::Conflict(_))) => Ok(None),
        Err(error) => Err(ServerError::Bootstrap(error)),
    }
}
