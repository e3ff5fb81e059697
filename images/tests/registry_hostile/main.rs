//! The registry client against a registry that lies: security.md A50, A51, A53, A54, A60 to A65 and
//! F27 to F29, each by its id. Everything is on loopback and in this process.

mod manifests;
mod mirrors;
mod platforms;
mod redirects;
mod server;
mod site;
mod tls;
mod tokens;
mod transfers;
