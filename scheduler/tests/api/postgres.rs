//! The same promises on PostgreSQL, and two schedulers of which one leads: F04, F06, F34.
//!
//! The server is Debian's, started in a temporary directory by an ordinary user on a port of its own.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use coracle_scheduler::core::{Options as CoreOptions, State};
use coracle_scheduler::store::{Batch, PostgresStore, Store as _, StoreError};
use reqwest::Method;
use rustix::process::Signal;
use serde_json::Value;

use crate::faults::{Process, TEST_LEASE, call, everyday_points, kill_at};
use crate::support::{DEADLINE, instance};

pub struct Postgres {
    child: Child,
    pub port: u16,
    _folder: tempfile::TempDir,
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        // SIGQUIT is PostgreSQL's immediate shutdown: its children go with it.
        let _ = rustix::process::kill_process(pid, Signal::QUIT);
        let _ = self.child.wait();
    }
}

fn find(name: &str) -> Option<PathBuf> {
    let versions = ["17", "16", "15", "14"].map(|version| format!("/usr/lib/postgresql/{version}/bin"));
    let places = ["/usr/local/bin".to_owned(), "/usr/bin".to_owned()].into_iter().chain(versions);
    places.map(|place| Path::new(&place).join(name)).find(|path| path.exists())
}

/// PostgreSQL refuses to be root; its Debian package brings a user.
fn as_user(program: &Path) -> Command {
    if !rustix::process::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program);
    command
}

impl Postgres {
    fn start(test: &str) -> Option<Self> {
        Self::start_with(test, |_| Vec::new())
    }

    /// `prepare` puts files into the server's folder and returns more of its settings.
    pub fn start_with(test: &str, prepare: impl FnOnce(&Path) -> Vec<String>) -> Option<Self> {
        let (Some(initdb), Some(server)) = (find("initdb"), find("postgres")) else {
            let reason = format!("SKIP {test}: PostgreSQL is not installed; apt install postgresql");
            assert_ne!(std::env::var("CORACLE_TEST_REQUIRE").as_deref(), Ok("all"), "{reason}");
            println!("{reason}");
            return None;
        };
        let folder = tempfile::tempdir().expect("folder");
        let data = folder.path().join("data");
        fs_err::create_dir(&data).expect("data");
        let more = prepare(folder.path());
        if rustix::process::geteuid().is_root() {
            let owned = Command::new("chown").arg("-R").arg("postgres").arg(folder.path()).status().expect("chown");
            assert!(owned.success());
        }
        let made =
            as_user(&initdb).args(["-A", "trust", "-U", "coracle", "-D"]).arg(&data).stdout(Stdio::null()).status();
        assert!(made.expect("initdb").success());
        let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("port").port();
        let child = as_user(&server)
            .arg("-D")
            .arg(&data)
            .args(["-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1", "-c"])
            .arg(format!("unix_socket_directories={}", folder.path().display()))
            .args(more.iter().flat_map(|setting| ["-c", setting]))
            .stderr(Stdio::null())
            .spawn()
            .expect("postgres");
        let server = Self { child, port, _folder: folder };
        let start = Instant::now();
        while PostgresStore::open(&server.url("postgres"), TEST_LEASE).is_err() {
            assert!(start.elapsed() < DEADLINE, "PostgreSQL does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(server)
    }

    pub fn url(&self, database: &str) -> String {
        format!("postgres://coracle@127.0.0.1:{}/{database}", self.port)
    }

    /// Makes a fresh database.
    pub async fn database(&self, name: &str) -> String {
        let (client, connection) =
            tokio_postgres::connect(&self.url("postgres"), tokio_postgres::NoTls).await.expect("connect");
        let task = tokio::spawn(connection);
        client.batch_execute(&format!("CREATE DATABASE {name}")).await.expect("database");
        task.abort();
        self.url(name)
    }
}

/// One server for all of this: a start costs seconds, a database milliseconds.
#[tokio::test(flavor = "multi_thread")]
async fn f04_f34_everything_holds_on_postgresql_too() {
    let started = tokio::task::spawn_blocking(|| Postgres::start("f04_f34_everything_holds_on_postgresql_too"));
    let Some(server) = started.await.expect("start") else { return };
    for point in everyday_points() {
        let url = server.database(&format!("kill_{point}")).await;
        kill_at(point, "kill", &url).await;
    }
    for point in
        ["txn_begun", "row_written", "audit_written", "before_commit", "after_commit", "outbox_sent", "ack_recorded"]
    {
        let url = server.database(&format!("error_{point}")).await;
        kill_at(point, "error", &url).await;
    }
    fenced(&server.database("fenced").await).await;
    for signal in [Signal::KILL, Signal::STOP] {
        let url = server.database(if signal == Signal::KILL { "killed" } else { "stopped" }).await;
        failover(&url, signal).await;
    }
}

/// Starts a server and a fresh database on it.
pub async fn server(test: &'static str) -> Option<(Postgres, String)> {
    let server = tokio::task::spawn_blocking(|| Postgres::start(test)).await.expect("start")?;
    let url = server.database("pool").await;
    Some((server, url))
}

/// A store without the lead writes nothing, whatever it believes.
async fn fenced(url: &str) {
    let url = url.to_owned();
    let work = tokio::task::spawn_blocking(move || {
        let mut old = PostgresStore::open(&url, TEST_LEASE).expect("store");
        let first = old.lead().expect("lead");
        let mut new = PostgresStore::open(&url, TEST_LEASE).expect("store");
        old.give_up_lead();
        let second = new.lead().expect("lead");
        assert!(second > first);
        let state = State::new(CoreOptions::default(), [0; 32]);
        let mut batch = Batch::default();
        for record in state.records() {
            batch.records.insert(coracle_scheduler::model::Key::Meta, Some(Box::new(record)));
        }
        assert!(matches!(old.commit(&batch), Err(StoreError::Deposed(_))));
        assert!(new.load().expect("load").is_empty(), "the old one wrote");
        new.commit(&batch).expect("the new one writes");
        assert_eq!(new.load().expect("load").len(), 1);
    });
    work.await.expect("fenced");
}

pub async fn ask(address: SocketAddr, token: &str, number: usize) -> Option<Value> {
    let body = Some(instance(&format!("i{number}")));
    match call(address, token, Method::POST, "/v1/instances", body, &format!("key{number}")).await {
        Some((201, made)) => Some(made["id"].clone()),
        _ => None,
    }
}

/// The leader is killed or stopped; the other one takes over; the old one does no harm when it wakes up.
async fn failover(url: &str, signal: Signal) {
    let folder = tempfile::tempdir().expect("folder");
    let mut old = Process::start_on(folder.path(), "", url);
    let old_address = old.address.expect("address");
    let token = fs_err::read_to_string(folder.path().join("secret")).expect("secret");
    let first = ask(old_address, &token, 0).await.expect("made");
    let (path, address) = (folder.path().to_owned(), url.to_owned());
    // The standby waits for the lead before it listens.
    let standby = tokio::task::spawn_blocking(move || Process::start_on(&path, "", &address));
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!standby.is_finished(), "two lead");
    old.signal(signal);
    let begun = Instant::now();
    let new = standby.await.expect("standby");
    let new_address = new.address.expect("address");
    assert!(begun.elapsed() < Duration::from_secs(25), "taking over took {:?}", begun.elapsed());
    assert_eq!(ask(new_address, &token, 0).await, Some(first), "the retry gives what was acknowledged");
    let second = ask(new_address, &token, 1).await.expect("made");
    if signal == Signal::STOP {
        old.signal(Signal::CONT);
        // It may refuse or be gone, but neither write nor show what it remembers.
        assert_eq!(ask(old_address, &token, 2).await, None, "a deposed leader wrote");
        let read = call(old_address, &token, Method::GET, "/v1/instances", None, "").await;
        assert!(read.is_none_or(|(status, _)| status == 503), "a deposed leader answers");
        let start = Instant::now();
        while !old.is_dead() {
            assert!(start.elapsed() < DEADLINE, "a deposed leader stays");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    let (_, list) = call(new_address, &token, Method::GET, "/v1/instances", None, "").await.expect("list");
    let ids: Vec<&Value> = list["items"].as_array().expect("items").iter().map(|item| &item["id"]).collect();
    assert_eq!(ids.len(), 2);
    assert_eq!(ids[1], &second);
}
