//! The command under measurement, and light agents that beat and report.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// How long a beat is held.
const HOLD_MS: u64 = 10_000;
/// Ticks of a second in /proc.
const TICKS: f64 = 100.0;

type Starts = Arc<Mutex<BTreeMap<String, Instant>>>;

pub struct Pool {
    child: Child,
    command: String,
    folder: tempfile::TempDir,
    store: String,
    listen: String,
    pub token: String,
    http: reqwest::Client,
    starts: Starts,
    asked: Mutex<Vec<(String, Instant)>>,
    agents: Vec<tokio::task::JoinHandle<()>>,
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.agents.iter().for_each(tokio::task::JoinHandle::abort);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn percentile(times: &mut [Duration], part: f64) -> Duration {
    times.sort_unstable();
    times[((times.len() - 1) as f64 * part) as usize]
}

fn serve(command: &str, folder: &tempfile::TempDir, store: &str, listen: &str) -> (Child, String) {
    let mut serve = Command::new(command);
    serve.env("CORACLE_ROOT", folder.path()).args(["scheduler", "serve", "--plain-http", "--log", "off", "--listen"]);
    serve.arg(listen);
    if !store.is_empty() {
        serve.args(["--store", store]);
    }
    let mut child = serve.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (child, line.trim().trim_start_matches("http://").to_owned())
}

/// Every agent has an address of its own, as it would.
fn client(number: usize) -> reqwest::Client {
    let [.., high, low] = (number as u32 + 256).to_be_bytes();
    let own = IpAddr::V4(Ipv4Addr::new(127, 1, high, low));
    reqwest::Client::builder().no_proxy().local_address(own).build().unwrap()
}

impl Pool {
    pub async fn start(command: &str, store: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut init = Command::new(command);
        init.env("CORACLE_ROOT", folder.path()).args(["scheduler", "init"]);
        if !store.is_empty() {
            init.args(["--store", store]);
        }
        let token = init.stderr(Stdio::null()).output().unwrap().stdout;
        let token = String::from_utf8(token).unwrap().trim().to_owned();
        let (child, listen) = serve(command, &folder, store, "127.0.0.1:0");
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let (command, store) = (command.to_owned(), store.to_owned());
        Self {
            child,
            command,
            folder,
            store,
            listen,
            token,
            http,
            starts: Starts::default(),
            asked: Mutex::default(),
            agents: Vec::new(),
        }
    }

    /// Ends it and starts it again; returns when it answers. One on PostgreSQL is asked to end: whoever comes after a
    /// killed leader waits for its lease by design.
    pub async fn restart(&mut self) {
        if self.store.is_empty() {
            self.child.kill().unwrap();
        } else {
            let pid = rustix::process::Pid::from_child(&self.child);
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        }
        self.child.wait().unwrap();
        (self.child, _) = serve(&self.command, &self.folder, &self.store, &self.listen);
        self.get("/v1/instances?limit=1").await;
    }

    pub async fn post(&self, http: &reqwest::Client, token: &str, path: &str, body: &Value) -> Value {
        post(http, &self.listen, token, path, body).await.unwrap()
    }

    pub async fn get(&self, path: &str) -> Value {
        let url = format!("http://{}{path}", self.listen);
        let answer = self.http.get(url).bearer_auth(&self.token).send().await.unwrap();
        assert!(answer.status().is_success(), "{path}: {}", answer.status());
        answer.json().await.unwrap_or(Value::Null)
    }

    /// Lets so many agents join and beat.
    pub async fn join(&mut self, count: usize) {
        for number in 0..count {
            let http = client(number);
            let name = format!("p{number}");
            let body = json!({ "provider_name": name, "ttl_ms": 3_600_000 });
            let join = self.post(&self.http, &self.token, "/v1/joins", &body).await;
            let joined = self.post(&http, join["secret"].as_str().unwrap(), "/v1/join", &json!({ "name": name })).await;
            let token = joined["secret"].as_str().unwrap().to_owned();
            let (listen, starts) = (self.listen.clone(), Arc::clone(&self.starts));
            self.agents.push(tokio::spawn(async move { live(http, listen, token, starts).await }));
        }
        tokio::time::sleep(Duration::from_secs(3)).await;
    }

    /// Fills the pool by jobs and waits until everything runs.
    pub async fn fill(&self, instances: usize) {
        for job in 0..instances.div_ceil(10_000) {
            let template = json!({ "image": "a", "resources": { "cpu_millis": 10, "memory_bytes": 1 << 20 } });
            let spec =
                json!({ "name": format!("fill{job}"), "template": template, "count": 10_000, "parallel": 10_000 });
            self.post(&self.http, &self.token, "/v1/jobs", &json!({ "spec": spec })).await;
        }
        let start = Instant::now();
        while self.starts.lock().unwrap().len() < instances {
            assert!(start.elapsed() < Duration::from_secs(300), "only {}", self.starts.lock().unwrap().len());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        println!("filled with {instances} instances in {:.1} s", start.elapsed().as_secs_f64());
    }

    /// Makes one more token of the administrator's.
    pub async fn new_token(&self) -> String {
        let body = json!({ "role": "admin", "ttl_ms": 3_600_000 });
        let made = self.post(&self.http, &self.token, "/v1/tokens", &body).await;
        made["secret"].as_str().unwrap().to_owned()
    }

    /// Asks for one instance.
    pub async fn ask(&self, token: &str, name: &str) {
        let resources = json!({ "cpu_millis": 10, "memory_bytes": 1 << 20 });
        let body = json!({ "name": name, "spec": { "image": "a", "resources": resources } });
        let made = self.post(&self.http, token, "/v1/instances", &body).await;
        self.asked.lock().unwrap().push((made["id"].as_str().unwrap().to_owned(), Instant::now()));
    }

    /// Tells how long after each acceptance the agent had the order.
    pub async fn delays(&self) -> Vec<Duration> {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let starts = self.starts.lock().unwrap();
        let asked = self.asked.lock().unwrap();
        // An order may be there before the answer is.
        let delays =
            asked.iter().map(|(id, at)| starts.get(id).map_or(Duration::MAX, |got| got.saturating_duration_since(*at)));
        delays.collect()
    }

    pub async fn commits(&self) -> u64 {
        let url = format!("http://{}/metrics", self.listen);
        let text = self.http.get(url).bearer_auth(&self.token).send().await.unwrap().text().await.unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("coracle_commits_total ")).unwrap();
        line.parse().unwrap()
    }

    pub fn cpu(&self) -> Duration {
        let stat = fs_err::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        let ticks: f64 = [11, 12].iter().map(|field| fields[*field].parse::<f64>().unwrap()).sum();
        Duration::from_secs_f64(ticks / TICKS)
    }
}

async fn post(http: &reqwest::Client, listen: &str, token: &str, path: &str, body: &Value) -> Result<Value, String> {
    let request = http.post(format!("http://{listen}{path}")).bearer_auth(token).json(body);
    let answer = request.send().await.map_err(|error| format!("{error:?}"))?;
    let status = answer.status();
    let value: Value = answer.json().await.map_err(|error| format!("{error:?}"))?;
    if status.is_success() { Ok(value) } else { Err(format!("{path}: {value}")) }
}

/// An agent that says everything it is told to start runs.
async fn live(http: reqwest::Client, listen: String, token: String, starts: Starts) {
    let mut running: BTreeMap<String, Value> = BTreeMap::new();
    let mut incarnation = 0;
    loop {
        incarnation += 1;
        let capacity = json!({ "cpu_millis": 64_000, "memory_bytes": 256u64 << 30, "disk_bytes": 1u64 << 40 });
        let hello = json!({ "protocol_min": 1, "protocol_max": 1, "incarnation": incarnation, "boot_id": "b",
            "capacity": capacity, "accepting": true, "running": running.values().collect::<Vec<_>>() });
        let Ok(mut reply) = post(&http, &listen, &token, "/v1/agent/hello", &hello).await else {
            tokio::time::sleep(Duration::from_secs(1)).await;
            continue;
        };
        let session = reply["session"].clone();
        let (mut seq, mut applied) = (0u64, json!(0));
        loop {
            let mut news = Vec::new();
            for command in reply["commands"].as_array().into_iter().flatten() {
                applied = command["seq"].clone();
                let command = &command["command"];
                let id = command["instance"].as_str().unwrap_or_default().to_owned();
                if command["do"] == "start" {
                    starts.lock().unwrap().entry(id.clone()).or_insert_with(Instant::now);
                    let status =
                        json!({ "instance": id, "epoch": command["epoch"], "phase": "running", "healthy": true });
                    news.push(status.clone());
                    running.insert(id, status);
                }
            }
            seq += 1;
            let sync =
                json!({ "session": session, "seq": seq, "applied": applied, "accepting": true, "statuses": news });
            let path = format!("/v1/agent/sync?wait_ms={HOLD_MS}");
            match post(&http, &listen, &token, &path, &sync).await {
                Ok(next) => reply = next,
                Err(_) => break,
            }
        }
    }
}
