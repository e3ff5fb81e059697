//! The scheduler as a process that is killed and stopped: F04, F06, F33.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use coracle_scheduler::core::check::broken_link;
use coracle_scheduler::failpoint::POINTS;
use coracle_scheduler::model::Audit;
use coracle_scheduler::server::{self, Log, Options, Sink};
use coracle_scheduler::store::{SqliteStore, Store as _, StoreError, StorePlace};
use reqwest::Method;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::chaos::{Host, Proxy, join};
use crate::support::{DEADLINE, http, instance, name, until};

/// Where a child finds its folder.
const FOLDER: &str = "CORACLE_TEST_SCHEDULER_FOLDER";
/// The lead of a child that was killed must end soon.
pub const TEST_LEASE: Duration = Duration::from_millis(900);
/// Points that a scheduler with nothing beside it does not come to: it is current, and nobody takes its lead.
const RARE: [&str; 2] = ["lease_lost", "migrate_step"];
/// Where a child finds its PostgreSQL; empty means SQLite.
const POSTGRES: &str = "CORACLE_TEST_SCHEDULER_POSTGRES";
/// How often agents report to a child, in milliseconds, when it is not as always.
const HEARTBEAT: &str = "CORACLE_TEST_SCHEDULER_HEARTBEAT_MS";

/// Not a test: the scheduler process of the tests below.
#[test]
#[ignore = "only a child process of other tests"]
fn child() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    runtime.block_on(async {
        let folder = Path::new(&folder);
        let mut options =
            Options::new(SocketAddr::from(([127, 0, 0, 1], 0)), StorePlace::Sqlite(folder.join("pool.db")));
        options.lease = TEST_LEASE;
        options.log = Log { sink: Sink::Stderr, requests: false };
        if let Some(url) = std::env::var(POSTGRES).ok().filter(|url| !url.is_empty()) {
            options.store = StorePlace::Postgres(url);
        }
        if let Some(heartbeat_ms) = std::env::var(HEARTBEAT).ok().and_then(|text| text.parse().ok()) {
            options.core.heartbeat_ms = heartbeat_ms;
        }
        let mut running = server::start(options).await.expect("start");
        let secret = server::bootstrap(&running.site, name("ops"), name("root")).await.expect("bootstrap");
        if let Some(secret) = secret {
            fs_err::write(folder.join("secret"), secret.reveal()).expect("secret");
        }
        let mut out = std::io::stdout();
        writeln!(out, "\nlistening {}", running.address).expect("line");
        out.flush().expect("flush");
        running.wait().await;
    });
}

/// The points that a scheduler comes to again and again.
pub fn everyday_points() -> impl Iterator<Item = &'static str> {
    POINTS.into_iter().filter(|point| !RARE.contains(point))
}

pub struct Process {
    child: Child,
    pub address: Option<SocketAddr>,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    /// Starts a scheduler on SQLite; `fail` arms a failpoint.
    pub fn start(folder: &Path, fail: &str) -> Self {
        Self::start_on(folder, fail, "")
    }

    /// Starts a scheduler and waits until it leads and listens.
    pub fn start_on(folder: &Path, fail: &str, postgres: &str) -> Self {
        Self::start_in(folder, fail, postgres, &[])
    }

    /// The same with more in its environment.
    pub fn start_in(folder: &Path, fail: &str, postgres: &str, more: &[(&str, &std::ffi::OsStr)]) -> Self {
        let program = Command::new(std::env::current_exe().expect("own path"));
        Self::start_as(program, folder, fail, postgres, more, Stdio::null())
    }

    /// The same by a command that becomes this program, with its standard error.
    pub fn start_as(
        mut program: Command,
        folder: &Path,
        fail: &str,
        postgres: &str,
        more: &[(&str, &std::ffi::OsStr)],
        errors: Stdio,
    ) -> Self {
        let mut child = program
            .args(["--exact", "faults::child", "--ignored", "--nocapture", "--test-threads=1"])
            .env(FOLDER, folder)
            .env("CORACLE_FAIL", fail)
            .env(POSTGRES, postgres)
            .envs(more.iter().copied())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .expect("spawn");
        let out = child.stdout.take().expect("stdout");
        let mut lines = BufReader::new(out).lines().map_while(Result::ok);
        let address = lines.find_map(|line| line.strip_prefix("listening ")?.parse().ok());
        // Whatever it still says goes nowhere, and must not block it.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, address }
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("signal");
        let start = Instant::now();
        // Stopping takes a moment for each thread.
        while signal == Signal::STOP && !self.is_stopped() {
            assert!(start.elapsed() < DEADLINE);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn is_stopped(&self) -> bool {
        let tasks = fs_err::read_dir(format!("/proc/{}/task", self.child.id())).expect("tasks");
        tasks.map_while(Result::ok).all(|task| {
            let stat = fs_err::read_to_string(task.path().join("stat")).unwrap_or_default();
            stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
        })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn is_dead(&mut self) -> bool {
        self.child.try_wait().expect("wait").is_some()
    }
}

pub async fn call(
    address: SocketAddr,
    token: &str,
    method: Method,
    path: &str,
    body: Option<Value>,
    key: &str,
) -> Option<(u16, Value)> {
    let mut request =
        http().request(method, format!("http://{address}{path}")).bearer_auth(token).timeout(Duration::from_secs(5));
    if !key.is_empty() {
        request = request.header("idempotency-key", key);
    }
    if let Some(body) = body {
        request = request.json(&body);
    }
    let response = request.send().await.ok()?;
    let status = response.status().as_u16();
    Some((status, response.json().await.unwrap_or(Value::Null)))
}

/// Makes instances until the scheduler dies or ten are made; returns what was acknowledged, by key.
async fn make(process: &Process, token: &str, acknowledged: &mut Vec<(usize, Value)>) {
    let Some(address) = process.address else { return };
    for number in 0..10 {
        let body = Some(instance(&format!("i{number}")));
        match call(address, token, Method::POST, "/v1/instances", body, &format!("key{number}")).await {
            Some((201, made)) => acknowledged.push((number, made["id"].clone())),
            Some((503, _)) => {}
            Some(other) => panic!("{other:?}"),
            None => return,
        }
    }
}

/// Instances that run on a machine.
fn runs(host: &Host) -> usize {
    host.engine.lock().expect("engine").running().len()
}

/// Kills the scheduler, or fails it, at a point while a client makes instances and a machine takes them.
pub async fn kill_at(point: &str, effect: &str, postgres: &str) {
    let folder = tempfile::tempdir().expect("folder");
    let (token, proxy, host) = {
        let first = Process::start_on(folder.path(), "", postgres);
        let token = fs_err::read_to_string(folder.path().join("secret")).expect("secret");
        let proxy = Proxy::start(first.address.expect("address")).await;
        let host = join(&proxy, folder.path(), 0, &token).await;
        (token, proxy, host)
    };
    let mut acknowledged = Vec::new();
    for after in [0, 3, 17] {
        let mut process = Process::start_on(folder.path(), &format!("{point}={effect}@{after}"), postgres);
        if let Some(address) = process.address {
            *proxy.to.write().expect("address") = address;
        }
        make(&process, &token, &mut acknowledged).await;
        let dies = effect == "kill" && !RARE.contains(&point);
        let start = Instant::now();
        // What only an agent comes to takes a moment; what is passed less often than that is done when all run.
        while dies && !process.is_dead() && (after == 0 || runs(&host) < 10) {
            assert!(start.elapsed() < DEADLINE, "{point} was never reached");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    let last = Process::start_on(folder.path(), "", postgres);
    let address = last.address.expect("it starts again");
    *proxy.to.write().expect("address") = address;
    let mut again = Vec::new();
    make(&last, &token, &mut again).await;
    assert_eq!(again.len(), 10, "{point}: every request can be repeated");
    for (number, id) in acknowledged {
        assert_eq!(again[number].1, id, "{point}: request {number} was acknowledged and gives another object now");
    }
    until("all run", async || {
        let (_, list) = call(address, &token, Method::GET, "/v1/instances?limit=1000", None, "").await?;
        let items = list["items"].as_array().expect("items");
        assert_eq!(items.len(), 10, "{point}: nothing is there twice");
        (items.iter().all(|item| item["state"] == "running") && runs(&host) == 10).then_some(())
    })
    .await;
    {
        let engine = host.engine.lock().expect("engine");
        assert!(engine.starts.values().all(|starts| *starts == 1), "{point}: begun twice");
        assert_eq!(engine.starts.len(), 10, "{point}: placed twice");
    }
    host.task.abort();
    let (_, audit) = call(address, &token, Method::GET, "/v1/audit?limit=1000", None, "").await.expect("audit");
    let rows: Vec<Audit> = serde_json::from_value(audit["items"].clone()).expect("rows");
    assert_eq!(broken_link(&rows, &rows.last().expect("rows").hash), None);
    assert_eq!(rows.iter().filter(|row| row.verb == "instance.create").count(), 10, "{point}: rows are mutations");
}

#[tokio::test(flavor = "multi_thread")]
async fn f04_nothing_acknowledged_is_lost_whereever_the_scheduler_is_killed() {
    for point in POINTS {
        kill_at(point, "kill", "").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f04_nothing_acknowledged_is_lost_when_a_call_fails() {
    for point in POINTS {
        if point != "lease_taken" {
            kill_at(point, "error", "").await;
        }
    }
}

/// A second client asks for the same and a third one for something else while the first is held up at each point.
#[tokio::test(flavor = "multi_thread")]
async fn f04_a_request_that_is_held_up_anywhere_is_made_once() {
    for point in everyday_points() {
        let folder = tempfile::tempdir().expect("folder");
        let process = Process::start(folder.path(), &format!("{point}=sleep@3"));
        let address = process.address.expect("address");
        let token = fs_err::read_to_string(folder.path().join("secret")).expect("secret");
        let ask = async |number: usize| {
            until("made", async || {
                let body = Some(instance(&format!("i{number}")));
                let (status, made) =
                    call(address, &token, Method::POST, "/v1/instances", body, &format!("key{number}")).await?;
                (status == 201).then(|| made["id"].clone())
            })
            .await
        };
        let (first, second, other) = tokio::join!(ask(0), ask(0), ask(1));
        assert_eq!(first, second, "{point}: one request, two objects");
        assert_ne!(first, other, "{point}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f06_a_stopped_scheduler_goes_on_where_it_stood() {
    let folder = tempfile::tempdir().expect("folder");
    let process = Process::start(folder.path(), "");
    let address = process.address.expect("address");
    let token = fs_err::read_to_string(folder.path().join("secret")).expect("secret");
    process.signal(Signal::STOP);
    let waiting = tokio::spawn(async move {
        let body = Some(instance("web"));
        (call(address, &token, Method::POST, "/v1/instances", body, "k").await, token)
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!waiting.is_finished());
    process.signal(Signal::CONT);
    let (answer, token) = waiting.await.expect("task");
    let made = answer.filter(|(status, _)| *status == 201).expect("an answer").1;
    let repeated =
        call(address, &token, Method::POST, "/v1/instances", Some(instance("web")), "k").await.expect("answer");
    assert_eq!(repeated.1["id"], made["id"]);
}

/// Nobody was silent towards a scheduler that did not listen: what it should have lost meanwhile it has not.
#[tokio::test(flavor = "multi_thread")]
async fn f06_a_scheduler_that_stood_still_loses_nobody() {
    let folder = tempfile::tempdir().expect("folder");
    let process = Process::start_in(folder.path(), "", "", &[(HEARTBEAT, "1000".as_ref())]);
    let address = process.address.expect("address");
    let token = fs_err::read_to_string(folder.path().join("secret")).expect("secret");
    let proxy = Proxy::start(address).await;
    let host = join(&proxy, folder.path(), 0, &token).await;
    let mut body = instance("web");
    body["spec"]["lost_after_ms"] = json!(8_000);
    let made = call(address, &token, Method::POST, "/v1/instances", Some(body), "k").await.expect("answer").1;
    let path = format!("/v1/instances/{}", made["id"].as_str().expect("id"));
    let look = async || Some(call(address, &token, Method::GET, &path, None, "").await?.1);
    until("runs", async || look().await.filter(|found| found["state"] == "running")).await;
    process.signal(Signal::STOP);
    // Longer than the provider may be silent, and than the instance waits for it.
    tokio::time::sleep(Duration::from_secs(12)).await;
    process.signal(Signal::CONT);
    until("runs", async || look().await.filter(|found| found["state"] == "running")).await;
    let (_, list) = call(address, &token, Method::GET, "/v1/events?limit=1000", None, "").await.expect("events");
    let kinds: Vec<&str> =
        list["items"].as_array().expect("items").iter().filter_map(|item| item["kind"].as_str()).collect();
    assert!(!kinds.contains(&"instance.lost") && !kinds.contains(&"provider.lost"), "{kinds:?}");
    assert_eq!(host.engine.lock().expect("engine").starts.values().copied().collect::<Vec<_>>(), [1]);
    host.task.abort();
}

#[test]
fn f33_a_migration_that_is_killed_is_done_again() {
    let folder = tempfile::tempdir().expect("folder");
    let process = Process::start(folder.path(), "migrate_step=kill");
    assert_eq!(process.address, None, "the point was not reached");
    drop(process);
    assert!(Process::start(folder.path(), "").address.is_some());
}

#[test]
fn f34_a_store_whose_lead_was_taken_writes_nothing() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("pool.db");
    let mut store = SqliteStore::open(&path).expect("store");
    let epoch = store.lead().expect("lead");
    let other = rusqlite::Connection::open(&path).expect("open");
    other.execute("UPDATE leader SET epoch = epoch + 1", []).expect("update");
    let batch = coracle_scheduler::store::Batch::default();
    assert!(matches!(store.commit(&batch), Err(StoreError::Deposed(found)) if found == epoch + 1));
    assert!(store.lead().expect("lead") > epoch + 1);
    store.commit(&batch).expect("it leads again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_a_pool_that_can_be_restored() {
    let folder = tempfile::tempdir().expect("folder");
    let (live, copy) = (folder.path().join("pool.db"), folder.path().join("copy.db"));
    let process = Process::start(folder.path(), "");
    let token = fs_err::read_to_string(folder.path().join("secret")).expect("secret");
    let address = process.address.expect("address");
    call(address, &token, Method::POST, "/v1/instances", Some(instance("kept")), "").await.expect("made");
    drop(process);
    SqliteStore::copy(&live, &copy).expect("backup");
    let process = Process::start(folder.path(), "");
    let address = process.address.expect("address");
    call(address, &token, Method::POST, "/v1/instances", Some(instance("later")), "").await.expect("made");
    assert!(matches!(SqliteStore::restore(&copy, &live), Err(StoreError::Busy(_))), "not under a running scheduler");
    drop(process);
    SqliteStore::restore(&copy, &live).expect("restore");
    let process = Process::start(folder.path(), "");
    let (_, list) =
        call(process.address.expect("address"), &token, Method::GET, "/v1/instances", None, "").await.expect("list");
    let names: Vec<&Value> = list["items"].as_array().expect("items").iter().map(|item| &item["name"]).collect();
    assert_eq!(names, [&json!("kept")]);
}
