//! What went wrong below HTTP, read off the types in an error's chain, never off its text.

use std::error::Error;
use std::io;

use rustls::{CertificateError, Error as RustlsError};

use super::dns::ResolveError;

/// Why no answer came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each text says what the variant means")]
pub enum Fault {
    #[error("no name server is configured")]
    NoNameServer,
    #[error("the name server does not answer")]
    NameServerSilent,
    #[error("the host name does not resolve")]
    NameNotFound,
    #[error("the host name leads to a network that the registry is not on")]
    Inside,
    #[error("connection refused")]
    Refused,
    #[error("no route to the host")]
    NoRoute,
    #[error("timed out")]
    TimedOut,
    #[error("the connection broke")]
    Broken,
    #[error("{0}")]
    Tls(TlsFault),
    #[error("the answer is not valid HTTP")]
    NotHttp,
}

/// Why a TLS connection was refused by us or by the other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each text says what the variant means")]
pub enum TlsFault {
    #[error("its certificate is signed by an unknown authority")]
    UnknownAuthority,
    #[error("its certificate has expired or is not valid yet")]
    Expired,
    #[error("its certificate is for another name")]
    WrongName,
    #[error("its certificate is not valid")]
    Certificate,
    #[error("it does not speak TLS")]
    NotTls,
    #[error("the TLS handshake failed")]
    Handshake,
}

impl Fault {
    /// Classifies an error of the HTTP client.
    pub fn of(error: &reqwest::Error) -> Fault {
        let mut next: Option<&(dyn Error + 'static)> = Some(error);
        while let Some(link) = next {
            if let Some(fault) = classify(link) {
                return fault;
            }
            // An io::Error hides what it wraps from `source`.
            let wrapped = link.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
            next = match wrapped {
                Some(inner) => Some(inner),
                None => link.source(),
            };
        }
        match () {
            () if error.is_timeout() => Fault::TimedOut,
            () if error.is_connect() || error.is_body() || error.is_request() => Fault::Broken,
            () => Fault::NotHttp,
        }
    }

    /// Tells whether trying again may help.
    pub fn is_passing(self) -> bool {
        matches!(self, Fault::Broken | Fault::TimedOut)
    }

    /// Tells whether the other side may be a plain http server: it never got as far as TLS.
    pub fn may_be_plain_http(self) -> bool {
        matches!(self, Fault::Tls(TlsFault::NotTls) | Fault::Broken | Fault::Refused)
    }
}

fn classify(link: &(dyn Error + 'static)) -> Option<Fault> {
    if let Some(error) = link.downcast_ref::<ResolveError>() {
        return Some(match error {
            ResolveError::NoServer => Fault::NoNameServer,
            ResolveError::TimedOut => Fault::NameServerSilent,
            ResolveError::Lookup(_) => Fault::NameNotFound,
            ResolveError::Inside => Fault::Inside,
        });
    }
    if let Some(error) = link.downcast_ref::<RustlsError>() {
        return Some(Fault::Tls(tls_fault(error)));
    }
    let error = link.downcast_ref::<io::Error>()?;
    if error.get_ref().is_some_and(|inner| inner.is::<RustlsError>() || inner.is::<ResolveError>()) {
        return None;
    }
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Some(Fault::Refused),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Some(Fault::NoRoute),
        io::ErrorKind::TimedOut => Some(Fault::TimedOut),
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::UnexpectedEof => Some(Fault::Broken),
        _ => None,
    }
}

fn tls_fault(error: &RustlsError) -> TlsFault {
    match error {
        RustlsError::InvalidCertificate(problem) => match problem {
            CertificateError::UnknownIssuer => TlsFault::UnknownAuthority,
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => TlsFault::Expired,
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => TlsFault::WrongName,
            _ => TlsFault::Certificate,
        },
        RustlsError::InvalidMessage(_) => TlsFault::NotTls,
        _ => TlsFault::Handshake,
    }
}
