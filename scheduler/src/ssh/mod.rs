//! SSH into an instance, from end to end: the provider is the server, and whoever stands between sees ciphertext.
//!
//! One process serves one connection, so that whatever goes wrong in it ends nothing else. It knows keys, channels
//! and bounds; what touches the instance is behind [`Place`]. Only public keys open it, and only those that the
//! scheduler named for this stream; the decision is made about the key that was proven, never about one that was
//! offered (CVE-2024-45337). There is no way to a shell of the host, no way out of the instance's own network, no
//! agent, no X11, and nothing listens for a client (S26).

mod authority;
mod channel;
mod client;
mod program;
mod server;
mod terminal;

use std::process::Command;

use serde::{Deserialize, Serialize};

pub use authority::{Authority, AuthorityError, forget_host, one_time_key};
pub use client::{ClientError, Ends, Request, run};
pub use server::{ServeError, serve, serve_socket};

/// The subsystem by which `pool cp` copies, a blank and then its order; only for a key that was made for one stream.
const COPY: &str = "coracle-copy ";

/// What a session serves, and whom.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Session {
    /// What the instance is called: a login by this name is the image's own user.
    pub name: String,
    /// What the host certificate is made out to: the instance's id, which is never used twice.
    pub host: String,
    /// Who opened the stream, for the record.
    pub asker: String,
    /// The public keys that may log in, in OpenSSH's one-line form.
    pub keys: Vec<String>,
    /// A command is a JSON list of words instead of a line for the instance's shell.
    pub exact: bool,
}

/// A program that somebody wants to run in the instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Another user than the image's own.
    pub user: Option<String>,
    /// Program and arguments.
    pub words: Vec<String>,
    /// Variables.
    pub env: Vec<(String, String)>,
    /// It gets a terminal; then all its three streams are one already.
    pub terminal: bool,
}

/// What happened in a session, for the record (S29). What flows is never part of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Happened {
    /// `ssh_login`, `ssh_begin`, `ssh_end` or `ssh_forward`.
    pub action: &'static str,
    /// Who opened the stream.
    pub asker: String,
    /// The user's name of the login.
    pub login: String,
    /// SHA-256 of the key that was proven, as OpenSSH shows it.
    pub key: String,
    /// The command, `sftp`, or where a forwarded connection went.
    pub what: String,
    /// Bytes from the person and to the person.
    pub bytes: Option<(u64, u64)>,
    /// Exit code.
    pub exit: Option<u32>,
}

/// An instance as a session reaches it. Each command's streams are set by the session, which also ends it.
pub trait Place: Send + Sync + 'static {
    /// Runs a program.
    fn program(&self, asked: &Asked) -> Command;
    /// Speaks SFTP, version 3, on its standard streams.
    fn files(&self, user: Option<&str>) -> Command;
    /// Copies files between the instance and its standard streams; what and how is between the two ends.
    fn copy(&self, order: &str) -> Command;
    /// Connects to an address of the instance itself; sends the socket over its standard output, which is one.
    fn dial(&self, host: &str, port: u16) -> Command;
    /// Writes down what happened.
    fn happened(&self, happened: &Happened);
}
