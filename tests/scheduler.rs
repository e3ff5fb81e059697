//! The real `coracle scheduler`: a pool is made, served over TLS, killed, served again, backed up, restored.

use std::path::PathBuf;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::env::command::Running;
use crate::env::{Run, TestEnv, fixtures};
use crate::require;

/// A served pool and how to call it.
struct Pool<'a> {
    env: &'a TestEnv,
    ca: PathBuf,
    running: Running,
    url: String,
    token: String,
}

impl<'a> Pool<'a> {
    fn serve(env: &'a TestEnv, token: &str, listen: &str) -> Self {
        let tls = fixtures::images().unwrap().join("tls");
        let (cert, key) = (tls.join("server.crt"), tls.join("server.key"));
        let serve = env.coracle(&["scheduler", "serve", "--listen", listen, "--log", "requests"]);
        let serve = serve.args(&["--tls-cert".as_ref(), cert.as_os_str(), "--tls-key".as_ref(), key.as_os_str()]);
        Self::spawn(env, serve, token, tls.join("ca.crt"))
    }

    fn serve_own(env: &'a TestEnv, token: &str) -> Self {
        let serve = env.coracle(&["scheduler", "serve", "--listen", "127.0.0.1:0", "--log", "off"]);
        Self::spawn(env, serve, token, env.root().join("scheduler/ca.crt"))
    }

    fn spawn(env: &'a TestEnv, serve: Run, token: &str, ca: PathBuf) -> Self {
        let mut running = serve.spawn();
        running.wait_for("\n");
        let url = running.stdout_so_far().trim().to_owned();
        assert!(url.starts_with("https://127.0.0.1:"), "{url}");
        Self { env, ca, running, url, token: token.to_owned() }
    }

    fn curl(&self, path: &str, more: &[&str]) -> (u16, Value) {
        let (header, url) = (format!("Authorization: Bearer {}", self.token), format!("{}{path}", self.url));
        let curl = self.env.program("curl").args(&["-sS", "--max-time", "20", "-w", "\n%{http_code}", "--cacert"]);
        let said = curl.args(&[&self.ca]).args(&["-H", &header, &url]).args(more).ok();
        let (body, status) = said.rsplit_once('\n').unwrap();
        (status.parse().unwrap(), serde_json::from_str(body).unwrap_or(Value::Null))
    }

    fn make(&self, name: &str) -> Value {
        let body = format!(r#"{{"name":"{name}","spec":{{"image":"alpine"}}}}"#);
        let key = format!("Idempotency-Key: {name}");
        let (status, made) =
            self.curl("/v1/instances", &["-H", "Content-Type: application/json", "-H", &key, "-d", &body]);
        assert_eq!(status, 201, "{made}");
        made["id"].clone()
    }

    fn list(&self) -> Vec<Value> {
        let (status, list) = self.curl("/v1/instances", &[]);
        assert_eq!(status, 200, "{list}");
        list["items"].as_array().unwrap().iter().map(|item| item["id"].clone()).collect()
    }
}

#[test]
fn a_pool_over_tls_survives_kill_9_and_is_backed_up_and_restored() {
    require!("curl");
    let env = TestEnv::new();
    let token = env.coracle(&["scheduler", "init"]).ok();
    let pool = Pool::serve(&env, &token, "127.0.0.1:0");
    let listen = pool.url.trim_start_matches("https://").to_owned();
    // A client that does not know the authority is not fooled, and the port speaks nothing but TLS.
    env.program("curl").args(&["-sS", &format!("{}/healthz", pool.url)]).outcome().code(60);
    let plain = env.program("curl").args(&["-sS", &format!("http://{listen}/healthz")]).outcome();
    assert_ne!(plain.code, 0, "{plain}");
    let first = pool.make("first");
    env.coracle(&["scheduler", "backup", "copy.db"]).ok();
    let second = pool.make("second");
    env.coracle(&["scheduler", "backup", "copy.db"])
        .outcome()
        .error(1, "error: cannot back up the store [DIR]/root/scheduler/pool.db: cannot make copy.db: file exists");
    env.coracle(&["scheduler", "restore", "copy.db"]).outcome().refused(1).says("another scheduler uses");

    pool.running.signal(Signal::SIGKILL);
    let killed = pool.running.wait();
    assert_eq!(killed.signal, Some(9));
    let logged = killed.stderr;
    // The same port at once, and everything acknowledged is there; a retry makes nothing twice.
    let pool = Pool::serve(&env, &token, &listen);
    assert_eq!(pool.list(), [first.clone(), second.clone()]);
    assert_eq!(pool.make("second"), second);
    assert_eq!(pool.list().len(), 2);
    pool.running.signal(Signal::SIGTERM);
    let stopped = pool.running.wait();
    stopped.code(0);

    // Logs: one object a line, every change in them, and no secret (A80).
    let mut requests = 0;
    for line in logged.lines().chain(stopped.stderr.lines()) {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        requests += usize::from(line["event"] == "request" && line["method"] == "POST" && line["status"] == 201);
    }
    assert_eq!(requests, 3, "{logged}");
    assert!(logged.contains("instance.") && stopped.stderr.contains("\"stopped\""), "{logged}");
    assert!(!logged.contains(&token[4..]) && !stopped.stderr.contains(&token[4..]), "a token is in the log");

    env.coracle(&["scheduler", "restore", "copy.db"]).ok();
    let again = env.coracle(&["scheduler", "token", "--role", "reader"]).ok();
    // This time with the certificate of the pool's own authority, which `init` has made.
    let pool = Pool::serve_own(&env, &again);
    assert_eq!(pool.list(), [first], "the pool is the one of the backup");
    assert_eq!(pool.curl("/v1/instances", &["-X", "POST", "-d", "{}"]).0, 403, "the token only reads");
    pool.running.signal(Signal::SIGTERM);
    pool.running.wait().code(0);
}

#[test]
fn a_scheduler_says_what_it_cannot_do() {
    let env = TestEnv::new();
    env.coracle(&["scheduler", "serve", "--listen", "0.0.0.0:0"]).outcome().error(
        1,
        "error: listening on 0.0.0.0:0 without TLS would show every token; give a certificate, or ask for plain HTTP",
    );
    env.coracle(&["scheduler", "serve", "--store", "mysql://x"]).outcome().refused(125).says("mysql");
    env.coracle(&["scheduler", "init"]).ok();
    env.coracle(&["scheduler", "init"])
        .outcome()
        .error(1, "error: the pool in [DIR]/root/scheduler/pool.db has an administrator already");
    env.coracle(&["scheduler", "token", "--user", "nobody"])
        .outcome()
        .error(1, "error: there is no user nobody in group ops");
    let secret = env.write("store", "postgres://pool:s3cret@127.0.0.1:1/pool\n");
    let unreachable = env.coracle(&["scheduler", "init", "--store-from"]).args(&[secret]).outcome();
    unreachable.refused(1).says("cannot open the store postgres://127.0.0.1:1/pool");
    assert!(!unreachable.stderr.contains("s3cret"), "a80: {unreachable}");
}

#[test]
fn s30_another_process_of_the_same_user_does_not_look_into_a_scheduler() {
    require!();
    if nix::unistd::getuid().is_root() {
        return fixtures::elsewhere("root looks into every process");
    }
    let env = TestEnv::new();
    let token = env.coracle(&["scheduler", "init"]).ok();
    let pool = Pool::serve_own(&env, &token);
    let process = PathBuf::from(format!("/proc/{}", pool.running.pid()));
    for file in ["environ", "mem", "maps"] {
        let refused = fs_err::File::open(process.join(file)).and_then(|mut file| {
            let mut text = [0; 16];
            std::io::Read::read(&mut file, &mut text)
        });
        assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::PermissionDenied, "{file}");
    }
    pool.running.signal(Signal::SIGTERM);
    pool.running.wait().code(0);
}
