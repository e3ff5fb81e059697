//! A connection to PostgreSQL: names without the C library, TLS without a choice of weakness.
//!
//! `sslmode` in the URL: `disable` speaks plainly; everything else speaks TLS and checks the certificate against the
//! authorities of the host and those in `SSL_CERT_FILE`. Without `sslmode` a server on this machine (loopback or a
//! socket) is spoken to plainly and any other by TLS: the channel carries what the pool believes.

use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::{Client, Config, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::StoreError;
use crate::names;

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);
/// What every session is set to. A leader that is stopped inside a transaction must not hold the lead's row for ever.
const SETTINGS: &str = "SET statement_timeout = '8s'; SET idle_in_transaction_session_timeout = '5s';
    SET synchronous_commit = on; SET timezone = 'UTC'";

/// Connects to a server that takes writes.
pub async fn connect(url: &str) -> Result<Client, StoreError> {
    let pg = |op| move |source| StoreError::Postgres { op, source: Box::new(source) };
    let mut config: Config = url.parse().map_err(pg("read the URL"))?;
    config.connect_timeout(CONNECT).application_name("coracle scheduler");
    let here = resolve(&mut config).await?;
    let asked = url.contains("sslmode=");
    let plain = if asked { config.get_ssl_mode() == SslMode::Disable } else { here };
    let client = if plain {
        config.ssl_mode(SslMode::Disable);
        let (client, connection) = config.connect(NoTls).await.map_err(pg("connect"))?;
        tokio::spawn(async move { drop(connection.await) });
        client
    } else {
        config.ssl_mode(SslMode::Require);
        let tls = MakeRustlsConnect::new(trust()?);
        let (client, connection) = config.connect(tls).await.map_err(pg("connect by TLS"))?;
        tokio::spawn(async move { drop(connection.await) });
        client
    };
    // A standby that was promoted late, or a server that is read-only after a failover, is no place to write.
    let standby = client.query_one("SELECT pg_is_in_recovery()", &[]).await.map_err(pg("look at the server"))?;
    client.batch_execute(SETTINGS).await.map_err(pg("set the session"))?;
    if standby.get(0) { Err(StoreError::Standby) } else { Ok(client) }
}

/// Gives every host its address; tells whether all of them are this machine.
async fn resolve(config: &mut Config) -> Result<bool, StoreError> {
    if !config.get_hostaddrs().is_empty() {
        return Ok(config.get_hostaddrs().iter().all(|address| address.is_loopback()));
    }
    let mut names = Vec::new();
    for host in config.get_hosts() {
        match host {
            Host::Tcp(name) => names.push(name.clone()),
            // A socket has no address, and the driver wants all or none.
            Host::Unix(_) => return Ok(true),
        }
    }
    let mut here = true;
    for name in names {
        let found = names::lookup(&name).await.map_err(StoreError::Name)?;
        let Some(address) = found.first() else { continue };
        here &= address.is_loopback();
        config.hostaddr(*address);
    }
    Ok(here)
}

fn trust() -> Result<rustls::ClientConfig, StoreError> {
    let mut roots = rustls::RootCertStore::empty();
    // Certificates that cannot be read are no reason to refuse the others.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    Ok(builder.map_err(StoreError::Tls)?.with_root_certificates(roots).with_no_client_auth())
}
