//! A server in a temporary directory, and clients of every role.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Once;
use std::time::{Duration, Instant};

use coracle_scheduler::server::{self, Options, Running};
use coracle_scheduler::store::StorePlace;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

/// What waits for something waits at most so long.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// An HTTP client that trusts nothing but what a test gives it.
pub fn http() -> reqwest::Client {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
    reqwest::Client::builder().no_proxy().build().expect("client")
}

pub struct Env {
    pub folder: tempfile::TempDir,
    pub running: Option<Running>,
    pub http: reqwest::Client,
    pub admin: String,
    pub options: Options,
}

pub struct Reply {
    pub status: StatusCode,
    pub headers: reqwest::header::HeaderMap,
    pub body: Value,
    pub text: String,
}

impl Reply {
    #[track_caller]
    pub fn expect(self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        self.body
    }
}

impl Env {
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut Options)) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let mut options =
            Options::new(SocketAddr::from(([127, 0, 0, 1], 0)), StorePlace::Sqlite(folder.path().join("pool.db")));
        change(&mut options);
        let running = server::start(options.clone()).await.expect("start");
        let secret =
            server::bootstrap(&running.site, name("ops"), name("root")).await.expect("bootstrap").expect("first");
        Self { folder, running: Some(running), http: http(), admin: secret.reveal(), options }
    }

    pub fn address(&self) -> SocketAddr {
        self.running.as_ref().expect("running").address
    }

    pub fn base(&self) -> String {
        let scheme = if self.options.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address())
    }

    pub async fn call(&self, token: &str, method: Method, path: &str, body: Option<Value>) -> Reply {
        self.call_with(token, method, path, body, &[]).await
    }

    pub async fn call_with(
        &self,
        token: &str,
        method: Method,
        path: &str,
        body: Option<Value>,
        headers: &[(&str, &str)],
    ) -> Reply {
        let mut request = self.http.request(method, format!("{}{path}", self.base())).timeout(DEADLINE);
        if !token.is_empty() {
            request = request.bearer_auth(token);
        }
        for (key, value) in headers {
            request = request.header(*key, *value);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.expect("answer");
        let (status, headers) = (response.status(), response.headers().clone());
        let text = response.text().await.expect("text");
        Reply { status, headers, body: serde_json::from_str(&text).unwrap_or(Value::Null), text }
    }

    pub async fn get(&self, token: &str, path: &str) -> Reply {
        self.call(token, Method::GET, path, None).await
    }

    pub async fn post(&self, token: &str, path: &str, body: Value) -> Reply {
        self.call(token, Method::POST, path, Some(body)).await
    }

    pub async fn delete(&self, token: &str, path: &str) -> Reply {
        self.call(token, Method::DELETE, path, None).await
    }

    /// Makes a group with a user of a role; returns the group's id, the user's id and a token.
    pub async fn tenant(&self, group: &str, role: &str) -> (String, String, String) {
        let made = self.post(&self.admin, "/v1/groups", json!({ "name": group })).await.expect(201);
        let group = made["id"].as_str().expect("id").to_owned();
        let (user, token) = self.user(&group, "u", role).await;
        (group, user, token)
    }

    pub async fn user(&self, group: &str, name: &str, role: &str) -> (String, String) {
        let body = json!({ "group": group, "name": name, "role": role });
        let user = self.post(&self.admin, "/v1/users", body).await.expect(201)["id"].as_str().expect("id").to_owned();
        let body = json!({ "user": user, "role": role, "ttl_ms": 3_600_000 });
        let token = self.post(&self.admin, "/v1/tokens", body).await.expect(201);
        (user, token["secret"].as_str().expect("secret").to_owned())
    }

    /// Joins a machine; returns its id and its token.
    pub async fn provider(&self, token: &str, name: &str) -> (String, String) {
        let join = self.post(token, "/v1/joins", json!({ "provider_name": name, "ttl_ms": 60_000 })).await.expect(201);
        let secret = join["secret"].as_str().expect("secret").to_owned();
        let joined = self.post(&secret, "/v1/join", json!({ "name": name })).await.expect(201);
        (joined["provider"].as_str().expect("id").to_owned(), joined["secret"].as_str().expect("secret").to_owned())
    }

    /// Stops the server and starts it again on the same file.
    pub async fn restart(&mut self) {
        drop(self.running.take());
        let start = Instant::now();
        // The lock is given back when the desk's thread ends, which it does when its last handle is gone.
        loop {
            match server::start(self.options.clone()).await {
                Ok(running) => {
                    self.running = Some(running);
                    return;
                }
                Err(error) => {
                    assert!(start.elapsed() < DEADLINE, "{error}");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        }
    }
}

pub fn name(text: &str) -> coracle_scheduler::model::Name {
    text.parse().expect("name")
}

/// An instance as a body.
pub fn instance(name: &str) -> Value {
    json!({ "name": name, "spec": { "image": "alpine:3", "resources": { "cpu_millis": 100, "memory_bytes": 1 << 20 } } })
}

/// Polls until something is true.
pub async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(start.elapsed() < DEADLINE, "{what} did not come about");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Reads a whole file as text, whatever is in it.
pub fn raw(path: &Path) -> String {
    String::from_utf8_lossy(&fs_err::read(path).unwrap_or_default()).into_owned()
}
