//! HTTP clients as everybody here makes them: own name lookup, no proxy, and secrets only where nobody listens.

use reqwest::{Certificate, ClientBuilder, Url};

use crate::names::Names;

/// Says why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The address is none.
    #[error("{0:?} is not https://HOST[:PORT]")]
    Address(String),
    /// A secret would travel in the open.
    #[error("http://{0} would show the token to the network; only https, or http to this machine itself")]
    Plain(String),
    /// The trusted certificates cannot be read.
    #[error("cannot use the certificates of authorities")]
    Authorities(#[source] reqwest::Error),
    /// The client cannot be made.
    #[error("cannot make an HTTP client")]
    Client(#[source] reqwest::Error),
}

/// Begins a client that trusts these authorities (PEM) and nobody else.
pub fn builder(authorities: &str) -> Result<ClientBuilder, DialError> {
    // Once a process; a second call finds it installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let roots = Certificate::from_pem_bundle(authorities.as_bytes()).map_err(DialError::Authorities)?;
    Ok(reqwest::Client::builder().no_proxy().dns_resolver(Names).tls_certs_only(roots))
}

/// Checks the address of a scheduler, without a slash at its end: https, or http to an address of this machine.
pub fn base(address: &str) -> Result<String, DialError> {
    let refuse = || DialError::Address(address.to_owned());
    let url = Url::parse(address).map_err(|_| refuse())?;
    let host = url.host_str().ok_or_else(refuse)?.to_owned();
    if url.path() != "/" || url.query().is_some() || !url.username().is_empty() || url.password().is_some() {
        return Err(refuse());
    }
    let own =
        host == "localhost" || host.trim_matches(['[', ']']).parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
    match url.scheme() {
        "https" => {}
        "http" if own => {}
        "http" => return Err(DialError::Plain(host)),
        _ => return Err(refuse()),
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_travel_over_tls_or_stay_here() {
        assert_eq!(base("https://pool.example:8640/").unwrap(), "https://pool.example:8640");
        assert_eq!(base("http://127.0.0.1:8640").unwrap(), "http://127.0.0.1:8640");
        assert_eq!(base("http://[::1]:8640").unwrap(), "http://[::1]:8640");
        assert!(matches!(base("http://pool.example"), Err(DialError::Plain(_))));
        for bad in ["", "pool.example", "ftp://127.0.0.1", "https://u:p@x", "https://x/path", "https://x?q"] {
            assert!(matches!(base(bad), Err(DialError::Address(_))), "{bad}");
        }
    }
}
