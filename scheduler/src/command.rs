//! What the command line does, for callers that know no async runtime: serve, make the first administrator, make a
//! token, back up and restore. The runtime starts and ends in here.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::core::{Event, Request, Wish};
use crate::model::{Actor, Name, Role, TokenId};
use crate::server::desk::{Desk, DeskError};
use crate::server::{
    self, AGENT_LIFE, Authority, AuthorityError, AuthorityFiles, Options, Secret, ServerError, TOKEN_PREFIX, TlsFiles,
};
use crate::store::{StoreError, StorePlace};

/// Conversations get so long to end when the scheduler is asked to; agents ask again elsewhere.
const FAREWELL: Duration = Duration::from_secs(3);

/// Says why a command came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The runtime does not start.
    #[error("cannot start the scheduler's runtime")]
    Runtime(#[source] std::io::Error),
    /// The server does not start.
    #[error(transparent)]
    Server(#[from] Box<ServerError>),
    /// The store cannot be used.
    #[error("cannot {op} the store {place}")]
    Store {
        /// What was tried.
        op: &'static str,
        /// On which store.
        place: StorePlace,
        /// Why.
        source: Box<StoreError>,
    },
    /// A token would travel in the open.
    #[error("listening on {0} without TLS would show every token; give a certificate, or ask for plain HTTP")]
    Plain(SocketAddr),
    /// The pool has an administrator.
    #[error("the pool in {0} has an administrator already")]
    Bootstrapped(StorePlace),
    /// There is nobody of this name.
    #[error("there is no user {user} in group {group}")]
    NoUser {
        /// The group.
        group: Name,
        /// The user.
        user: Name,
    },
    /// The core refused.
    #[error("cannot make the token")]
    Refused(#[source] DeskError),
    /// The authority cannot be made or used.
    #[error("cannot make the scheduler's certificates")]
    Authority(#[source] AuthorityError),
    /// No random bytes.
    #[error("the kernel gives no random bytes")]
    Entropy(#[source] getrandom::Error),
}

fn runtime() -> Result<Runtime, CommandError> {
    // Once a process; a second call finds it installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
    tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(CommandError::Runtime)
}

/// Serves until SIGTERM or SIGINT. `told` hears where, as soon as requests are taken. `plain` allows tokens to travel
/// unencrypted to other machines.
pub fn serve(options: Options, plain: bool, told: impl Fn(SocketAddr)) -> Result<(), CommandError> {
    if options.tls.is_none() && !options.listen.ip().is_loopback() && !plain {
        return Err(CommandError::Plain(options.listen));
    }
    // What is sealed on disk must not be on disk in a core dump, nor read by another process of this user.
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    let runtime = runtime()?;
    let (log, place) = (options.log.clone(), options.store.clone());
    let ended = runtime.block_on(async {
        let stop = stop(signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
        let told = |address: SocketAddr| {
            let fields = json!({ "address": address.to_string(), "store": place.to_string(), "version": env!("CARGO_PKG_VERSION") });
            log.line("info", "listening", server::wall_ms(), fields);
            told(address);
        };
        server::run(options, told, stop).await
    });
    runtime.shutdown_timeout(FAREWELL);
    if let Some(thread) = ended.map_err(Box::new)? {
        // It writes what it holds and gives the lead up, so that a standby need not wait for the lease.
        let _ = thread.join();
    }
    log.line("info", "stopped", server::wall_ms(), json!({}));
    Ok(())
}

async fn stop(terminate: std::io::Result<Signal>, interrupt: std::io::Result<Signal>) {
    match (terminate, interrupt) {
        (Ok(mut terminate), Ok(mut interrupt)) => {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        }
        // Without handlers the kernel's own answer to the signals ends the process.
        _ => std::future::pending().await,
    }
}

/// Works with a pool that no scheduler serves.
fn with_desk<T>(
    options: &Options,
    work: impl AsyncFnOnce(&Desk) -> Result<T, CommandError>,
) -> Result<T, CommandError> {
    let runtime = runtime()?;
    let failed = |source| CommandError::Store { op: "open", place: options.store.clone(), source: Box::new(source) };
    let opened = options
        .store
        .open(options.lease)
        .and_then(|store| Desk::open(store, options.core, server::Clock::start(), server::Log::default()));
    let (desk, thread) = opened.map_err(failed)?;
    let done = runtime.block_on(work(&desk));
    drop(desk);
    let _ = thread.join();
    done
}

async fn submit(desk: &Desk, actor: Option<Actor>, wish: Wish) -> Result<(), DeskError> {
    let request = Request { actor, id: "command-line".to_owned(), key: None, digest: String::new(), wish };
    desk.submit(move |ticket| Event::Request { ticket, request: Box::new(request) }).await.map(drop)
}

fn secret() -> Result<Secret, CommandError> {
    Secret::generate(TOKEN_PREFIX).map_err(CommandError::Entropy)
}

/// Makes the first group and administrator of an empty pool and returns the administrator's token.
pub fn init(options: &Options, group: Name, user: Name) -> Result<Secret, CommandError> {
    let secret = secret()?;
    let wish = Wish::Bootstrap { group, user, hash: secret.hash() };
    with_desk(options, async |desk| match submit(desk, None, wish).await {
        Ok(()) => Ok(()),
        Err(DeskError::Refused(_)) => Err(CommandError::Bootstrapped(options.store.clone())),
        Err(error) => Err(CommandError::Refused(error)),
    })?;
    Ok(secret)
}

/// Makes what a pool's TLS needs in a folder: an authority, and a certificate of it for the scheduler by these names.
/// What is there already is kept.
pub fn certificates(folder: &Path, names: &[String]) -> Result<(), CommandError> {
    let files = AuthorityFiles::in_folder(folder);
    if !files.certificates.exists() {
        Authority::make(&files).map_err(CommandError::Authority)?;
    }
    let tls = TlsFiles::in_folder(folder);
    if !tls.certificates.exists() {
        let authority = Authority::open(&files, AGENT_LIFE).map_err(CommandError::Authority)?;
        authority.make_server(names, &tls.certificates, &tls.key).map_err(CommandError::Authority)?;
    }
    Ok(())
}

/// Makes a token for a user of a pool that no scheduler serves: the way back in for who lost the last one. Whoever may
/// write the store may do so; the audit log says that it came from the command line.
pub fn token(options: &Options, group: &Name, user: &Name, role: Role, ttl: Duration) -> Result<Secret, CommandError> {
    let secret = secret()?;
    let hash = secret.hash();
    let (group_name, user_name) = (group.clone(), user.clone());
    with_desk(options, async |desk| {
        let found = desk.look(move |state, _, _| {
            let group = state.groups.values().find(|found| found.name == group_name)?.id;
            state
                .users
                .values()
                .find(|found| found.group == group && found.name == user_name)
                .map(|user| (group, user.id))
        });
        let nobody = || CommandError::NoUser { group: group.clone(), user: user.clone() };
        let (of, id) = found.await.map_err(CommandError::Refused)?.ok_or_else(nobody)?;
        let actor = Actor { group: of, user: Some(id), provider: None, role: Role::Admin, token: TokenId::new(0) };
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        let wish = Wish::CreateToken { user: id, role, ttl_ms, hash };
        submit(desk, Some(actor), wish).await.map_err(CommandError::Refused)
    })?;
    Ok(secret)
}

/// Writes a consistent copy of a store into a new file, while a scheduler may be at work.
pub fn backup(place: &StorePlace, to: &Path) -> Result<(), CommandError> {
    place.backup(to).map_err(|source| CommandError::Store {
        op: "back up",
        place: place.clone(),
        source: Box::new(source),
    })
}

/// Puts a backup in the place of a store that no scheduler serves.
pub fn restore(place: &StorePlace, from: &Path) -> Result<(), CommandError> {
    place.restore(from).map_err(|source| CommandError::Store {
        op: "restore",
        place: place.clone(),
        source: Box::new(source),
    })
}
