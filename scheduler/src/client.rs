//! A person's side of the API, for callers that know no async runtime: one call at a time, JSON in and out.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::runtime::Runtime;

use crate::dial::{self, DialError};
use crate::model::StreamKind;
use crate::server::Problem;
use crate::server::streams::PROTOCOL;
use crate::ssh;

/// An answer takes no longer; a leader that is being replaced needs some seconds.
const PATIENCE: Duration = Duration::from_secs(30);
/// A stream lasts as long as it lasts.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// A call that nobody answered is made again this often, with the same idempotency key.
const RETRIES: u32 = 5;
/// Longest wait before a stream of events is asked for again.
const FOLLOW_RETRY_MAX: Duration = Duration::from_secs(5);
/// Wait before the first repetition; it doubles.
const RETRY: Duration = Duration::from_millis(200);

/// Says why a call came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// No way to the scheduler.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// No key for a session.
    #[error(transparent)]
    Key(#[from] ssh::AuthorityError),
    /// A session that failed.
    #[error(transparent)]
    Session(#[from] ssh::ClientError),
    /// The runtime does not start.
    #[error("cannot start the client's runtime")]
    Runtime(#[source] std::io::Error),
    /// No answer.
    #[error("cannot reach the scheduler {scheduler}")]
    Send {
        /// Where.
        scheduler: String,
        /// Why.
        source: reqwest::Error,
    },
    /// No answer in time.
    #[error("the scheduler {0} does not answer")]
    Silent(String),
    /// A refusal.
    #[error("the scheduler refuses: {detail}")]
    Refused {
        /// The status.
        status: u16,
        /// The words of the problem.
        detail: String,
    },
    /// Something is not as asked.
    #[error("there is no {kind} {name:?}")]
    Unknown {
        /// What was looked for.
        kind: &'static str,
        /// Its name.
        name: String,
    },
}

/// A pool, as one person sees it.
pub struct Pool {
    runtime: Runtime,
    http: reqwest::Client,
    base: String,
    token: String,
}

impl Pool {
    /// Makes a client that trusts these authorities (PEM).
    pub fn new(scheduler: &str, token: &str, authorities: &str) -> Result<Self, PoolError> {
        let base = dial::base(scheduler)?;
        let http = dial::builder(authorities)?.timeout(PATIENCE).build().map_err(DialError::Client)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        Ok(Self { runtime: runtime.map_err(PoolError::Runtime)?, http, base, token: token.to_owned() })
    }

    /// Writes to a route.
    pub fn post(&self, path: &str, body: &Value) -> Result<Value, PoolError> {
        self.call(&Method::POST, path, Some(body))
    }

    /// Replaces what a route names.
    pub fn put(&self, path: &str, body: &Value) -> Result<Value, PoolError> {
        self.call(&Method::PUT, path, Some(body))
    }

    /// Deletes what a route names.
    pub fn delete(&self, path: &str) -> Result<Value, PoolError> {
        self.call(&Method::DELETE, path, None)
    }

    /// Calls a route. Whatever is not answered is asked again; a mutation carries a key, so that it happens once.
    fn call(&self, method: &Method, path: &str, body: Option<&Value>) -> Result<Value, PoolError> {
        let key = random_key();
        let mut wait = RETRY;
        for left in (0..RETRIES).rev() {
            match self.runtime.block_on(self.once(method, path, body, &key)) {
                Err(PoolError::Send { .. } | PoolError::Refused { status: 502..=504, .. }) if left > 0 => {
                    std::thread::sleep(wait);
                    wait *= 2;
                }
                outcome => return outcome,
            }
        }
        self.runtime.block_on(self.once(method, path, body, &key))
    }

    async fn once(&self, method: &Method, path: &str, body: Option<&Value>, key: &str) -> Result<Value, PoolError> {
        let send = |source| PoolError::Send { scheduler: self.base.clone(), source };
        let mut request = self.http.request(method.clone(), format!("{}{path}", self.base)).bearer_auth(&self.token);
        if *method != Method::GET {
            request = request.header("Idempotency-Key", key);
        }
        if let Some(body) = body.filter(|body| !body.is_null()) {
            request = request.json(body);
        }
        let response = request.send().await.map_err(send)?;
        let status = response.status();
        if status == StatusCode::NO_CONTENT {
            return Ok(Value::Null);
        }
        if status.is_success() {
            return response.json().await.map_err(send);
        }
        Err(refusal(response).await)
    }

    /// Leaves HTTP by a route that allows it and carries bytes between it and this process's standard input and output,
    /// until the far side ends. With `quiet` the input is not read.
    pub fn stream(&self, path: &str, body: &Value, quiet: bool) -> Result<(), PoolError> {
        self.runtime.block_on(async {
            let (mut from, mut to) = tokio::io::split(self.leave_http(path, body).await?);
            let sent = async {
                if quiet {
                    std::future::pending::<()>().await;
                }
                let _ = tokio::io::copy(&mut tokio::io::stdin(), &mut to).await;
                let _ = to.shutdown().await;
                // The far side ends the conversation, not the end of the input.
                std::future::pending::<()>().await;
            };
            let mut output = tokio::io::stdout();
            tokio::select! {
                () = sent => {}
                _ = tokio::io::copy(&mut from, &mut output) => {}
            }
            let _ = output.flush().await;
            Ok(())
        })
    }

    async fn leave_http(&self, path: &str, body: &Value) -> Result<reqwest::Upgraded, PoolError> {
        let send = |source| PoolError::Send { scheduler: self.base.clone(), source };
        let request = self.http.post(format!("{}{path}", self.base)).bearer_auth(&self.token).json(body);
        let request = request.header("connection", "upgrade").header("upgrade", PROTOCOL).timeout(FOREVER);
        let response = tokio::time::timeout(PATIENCE, request.send()).await;
        let response = response.map_err(|_| PoolError::Silent(self.base.clone()))?.map_err(send)?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(refusal(response).await);
        }
        response.upgrade().await.map_err(send)
    }

    /// Runs a program in an instance, or copies files, by a session of its own for a key that this call makes; gives
    /// the exit code.
    pub fn exec(&self, path: &str, request: &ssh::Request, ends: ssh::Ends) -> Result<u32, PoolError> {
        let key = ssh::one_time_key()?;
        let line = key.public_key().to_openssh().map_err(ssh::ClientError::Authority)?;
        self.runtime.block_on(async {
            let stream =
                self.leave_http(path, &json!({ "kind": StreamKind::Exec { key: line, files: request.copy } })).await?;
            Ok(ssh::run(stream, key, request, ends).await?)
        })
    }

    /// Ends without waiting for a read of the standard input that nobody will answer.
    pub fn end(self) {
        self.runtime.shutdown_background();
    }

    /// Reads a route.
    pub fn get(&self, path: &str) -> Result<Value, PoolError> {
        self.call(&Method::GET, path, None)
    }

    /// Reads every page of a list.
    pub fn list(&self, path: &str) -> Result<Vec<Value>, PoolError> {
        self.pages(path, String::new())
    }

    /// Reads every page of a list whose rows have numbers, after one of them.
    pub fn list_after(&self, path: &str, after: u64) -> Result<Vec<Value>, PoolError> {
        self.pages(path, format!("&after={after}"))
    }

    /// Calls `each` with every event after a number, and goes on with those that happen. A connection that is cut is
    /// made again and goes on after the last event; a scheduler that is away is waited for.
    pub fn follow(
        &self,
        path: &str,
        after: u64,
        mut each: impl FnMut(&Value) -> std::io::Result<()>,
    ) -> Result<(), PoolError> {
        let (mut after, mut wait) = (after, RETRY);
        loop {
            let before = after;
            let outcome = self.runtime.block_on(self.follow_once(path, &mut after, &mut each));
            if after > before {
                wait = RETRY;
            }
            match outcome {
                Ok(()) => return Ok(()),
                Err(PoolError::Send { .. } | PoolError::Refused { status: 502..=504, .. }) => {
                    std::thread::sleep(wait);
                    wait = (wait * 2).min(FOLLOW_RETRY_MAX);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads one connection's events; Ok means that nobody wants more.
    async fn follow_once(
        &self,
        path: &str,
        after: &mut u64,
        each: &mut impl FnMut(&Value) -> std::io::Result<()>,
    ) -> Result<(), PoolError> {
        let send = |source| PoolError::Send { scheduler: self.base.clone(), source };
        let request = self.http.get(format!("{}{path}", self.base)).bearer_auth(&self.token).timeout(FOREVER);
        let request = request.header("accept", "text/event-stream").header("last-event-id", after.to_string());
        let mut response = request.send().await.map_err(send)?;
        if !response.status().is_success() {
            return Err(refusal(response).await);
        }
        let mut text = Vec::new();
        loop {
            // A living stream says so every few seconds.
            let chunk = tokio::time::timeout(PATIENCE, response.chunk()).await;
            let chunk = chunk.map_err(|_| PoolError::Silent(self.base.clone()));
            let Some(chunk) = chunk.unwrap_or(Ok(None)).map_err(send)? else {
                return Err(PoolError::Refused { status: 503, detail: "the stream was cut".to_owned() });
            };
            text.extend_from_slice(&chunk);
            while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = text.drain(..=end).collect();
                let Some(event) = line.strip_prefix(b"data: ") else { continue };
                let Ok(event) = serde_json::from_slice::<Value>(event) else { continue };
                *after = event["seq"].as_u64().unwrap_or(*after);
                if each(&event).is_err() {
                    return Ok(());
                }
            }
        }
    }

    fn pages(&self, path: &str, mut after: String) -> Result<Vec<Value>, PoolError> {
        let mut all = Vec::new();
        loop {
            let page = self.get(&format!("{path}?limit=1000{after}"))?;
            all.extend(page["items"].as_array().cloned().unwrap_or_default());
            match page["next"].as_str() {
                Some(next) => after = format!("&after={next}"),
                None => return Ok(all),
            }
        }
    }

    /// Finds an object of a list by its id or its name; among several of one name, which only ended ones can be, the
    /// newest.
    pub fn find(&self, path: &str, kind: &'static str, wanted: &str) -> Result<Value, PoolError> {
        let found = self.list(path)?.into_iter().rfind(|item| item["id"] == wanted || item["name"] == wanted);
        found.ok_or_else(|| PoolError::Unknown { kind, name: wanted.to_owned() })
    }
}

async fn refusal(response: reqwest::Response) -> PoolError {
    let status = response.status();
    let problem: Option<Problem> = response.json().await.ok();
    let detail = problem.map_or_else(|| status.to_string(), |problem| problem.detail);
    PoolError::Refused { status: status.as_u16(), detail }
}

/// Makes a key that nobody else has; without random bytes the time must do.
fn random_key() -> String {
    let mut bytes = [0; 16];
    if getrandom::fill(&mut bytes).is_err() {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        bytes = now.as_nanos().to_le_bytes();
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
