//! A machine's membership in a pool: what joining leaves on its disk, and the agent that lives by it. For callers that
//! know no async runtime; it starts and ends in here.
//!
//! The folder holds `membership.json` (with the machine's token, mode 0600), the authorities that the scheduler's
//! certificate must come from, the agent's own key and certificate, and the count of hellos.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};

use super::client::{Agent, Client, ClientError, FileKeeper};
use super::engine::Engine;
use super::identity::{self, Identity, IdentityError};
use crate::dial::{self, DialError};
use crate::model::{Name, ProviderId};

/// Says why a machine is no member of a pool.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    /// It is one already.
    #[error("this machine is in the pool of {0} already")]
    Member(String),
    /// It is not.
    #[error("this machine is in no pool")]
    None,
    /// A file cannot be read or written.
    #[error("cannot keep the membership")]
    File(#[from] std::io::Error),
    /// What is kept cannot be understood.
    #[error("cannot understand {path}")]
    Broken {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// No way to the scheduler.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// No own key.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The scheduler said no, or nothing.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The runtime does not start.
    #[error("cannot start the agent's runtime")]
    Runtime(#[source] std::io::Error),
}

/// A membership.
#[derive(Clone, Serialize, Deserialize)]
pub struct Membership {
    /// Where the scheduler is.
    pub scheduler: String,
    /// This machine's id in the pool.
    pub provider: ProviderId,
    /// This machine's name in the pool.
    pub name: Name,
    token: String,
}

/// How a provider reaches its scheduler and is known there.
pub struct Reach {
    /// `https://HOST[:PORT]`, or http to this machine.
    pub scheduler: String,
    /// The provider's token.
    pub token: String,
    /// Whom the scheduler's certificate must come from, PEM.
    pub authorities: String,
    /// The provider's own certificate and key, PEM, where it has them and they last.
    pub own: Option<String>,
}

fn path(folder: &Path) -> PathBuf {
    folder.join("membership.json")
}

fn authorities(folder: &Path) -> PathBuf {
    folder.join("authorities.pem")
}

fn runtime() -> Result<Runtime, MembershipError> {
    // One thread: an idle agent should cost next to nothing.
    Builder::new_current_thread().enable_all().build().map_err(MembershipError::Runtime)
}

impl Membership {
    /// Reads what joining has left.
    pub fn read(folder: &Path) -> Result<Self, MembershipError> {
        match fs_err::read(path(folder)) {
            Ok(text) => {
                serde_json::from_slice(&text).map_err(|source| MembershipError::Broken { path: path(folder), source })
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(MembershipError::None),
            Err(error) => Err(error.into()),
        }
    }

    /// Joins by a join token, which is used up by it. `trusted` are the authorities, PEM.
    pub fn join(
        folder: &Path,
        scheduler: &str,
        token: &str,
        name: Name,
        trusted: &str,
    ) -> Result<Self, MembershipError> {
        match Self::read(folder) {
            Ok(member) => return Err(MembershipError::Member(member.scheduler)),
            Err(MembershipError::None) => {}
            Err(error) => return Err(error),
        }
        let scheduler = dial::base(scheduler)?;
        let http = dial::builder(trusted)?.build().map_err(DialError::Client)?;
        let mut identity = Identity::open(folder)?;
        let client = Client::new(http, scheduler.clone(), token);
        let joined = runtime()?.block_on(client.enrol(name.clone(), &mut identity))?;
        identity::write(&authorities(folder), trusted)?;
        let member = Self { scheduler, provider: joined.provider, name, token: joined.secret };
        identity::write(&path(folder), &serde_json::to_string(&member).map_err(std::io::Error::other)?)?;
        Ok(member)
    }

    /// Gives what another program of this machine needs to speak to the scheduler as this provider.
    pub fn reach(self, folder: &Path) -> Result<Reach, MembershipError> {
        let authorities = fs_err::read_to_string(authorities(folder))?;
        let own = if self.scheduler.starts_with("https:") { Identity::open(folder)?.pem() } else { None };
        Ok(Reach { scheduler: self.scheduler, token: self.token, authorities, own })
    }

    /// Works for the pool until SIGTERM, SIGINT, or the scheduler says that this machine is not one of its own.
    pub fn serve<E: Engine>(self, folder: &Path, engine: Arc<Mutex<E>>) -> Result<(), MembershipError> {
        let trusted = fs_err::read_to_string(authorities(folder))?;
        let http = dial::builder(&trusted)?.build().map_err(DialError::Client)?;
        let client = Client::new(http, self.scheduler.clone(), self.token);
        let keeper = FileKeeper(folder.join("incarnation"));
        let said = keeper.read()?;
        let mut agent = Agent::new(client, engine, keeper, said);
        if self.scheduler.starts_with("https:") {
            agent = agent.enrolled(Identity::open(folder)?, trusted)?;
        }
        runtime()?.block_on(async {
            let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
            tokio::select! {
                ended = agent.run() => ended?,
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            Ok(())
        })
    }

    /// Forgets the membership; the scheduler is not asked, so that it works without a network.
    pub fn forget(folder: &Path) -> Result<(), MembershipError> {
        for file in ["membership.json", "authorities.pem", "agent.key", "agent.crt", "incarnation"] {
            match fs_err::remove_file(folder.join(file)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }
}
