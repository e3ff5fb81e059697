//! A pool that is kicked at random for a while and left alone: afterwards everything is as it was asked for.
//!
//! Agents speak real HTTP through a proxy that cuts connections; scheduler and agents are killed; a client repeats what
//! got no answer under the same key. `CORACLE_SOAK_S=<seconds>` soaks for longer, `CORACLE_SIM_SEED=<seed>` kicks
//! otherwise.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use coracle_scheduler::agent::{Client, SimulatedEngine};
use reqwest::Method;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

use crate::agent::{engine, live};
use crate::faults::{Process, call};
use crate::support::{DEADLINE, http, instance, name, until};

/// Machines of the pool.
const AGENTS: usize = 4;
/// Instances that are made at most: one page shows them all.
const MADE_MAX: usize = 900;
/// Seconds of chaos unless more are asked for.
const SOAK_S: u64 = 6;

struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % limit
    }
}

fn from_env(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

/// A stable address before a scheduler that comes and goes; it can cut every connection at once.
pub struct Proxy {
    address: SocketAddr,
    pub to: Arc<RwLock<SocketAddr>>,
    conversations: Arc<Mutex<Vec<tokio::task::JoinHandle<()>>>>,
}

impl Proxy {
    pub async fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
        let address = listener.local_addr().expect("address");
        let proxy = Self { address, to: Arc::new(RwLock::new(to)), conversations: Arc::default() };
        let (to, conversations) = (Arc::clone(&proxy.to), Arc::clone(&proxy.conversations));
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let to = *to.read().expect("address");
                let talk = tokio::spawn(async move {
                    if let Ok(mut far) = TcpStream::connect(to).await {
                        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                    }
                });
                let mut all = conversations.lock().expect("conversations");
                all.retain(|talk: &tokio::task::JoinHandle<()>| !talk.is_finished());
                all.push(talk);
            }
        });
        proxy
    }

    fn cut(&self) {
        self.conversations.lock().expect("conversations").drain(..).for_each(|talk| talk.abort());
    }
}

pub struct Host {
    token: String,
    pub engine: Arc<Mutex<SimulatedEngine>>,
    pub task: tokio::task::JoinHandle<()>,
}

/// Runs the agent of a host behind the proxy until the task is aborted.
fn revive(
    proxy: &Proxy,
    folder: &std::path::Path,
    number: usize,
    token: &str,
    engine: &Arc<Mutex<SimulatedEngine>>,
) -> tokio::task::JoinHandle<()> {
    let client = Client::new(http(), format!("http://{}", proxy.address), token);
    live(client, folder.join(format!("incarnation{number}")), engine)
}

/// Makes a machine of the pool.
pub async fn join(proxy: &Proxy, folder: &std::path::Path, number: usize, admin: &str) -> Host {
    let provider = format!("p{number}");
    let body = json!({ "provider_name": provider, "ttl_ms": 60_000 });
    let join = call(proxy.address, admin, Method::POST, "/v1/joins", Some(body), "").await.expect("join").1;
    let base = format!("http://{}", proxy.address);
    let client = Client::new(http(), base, join["secret"].as_str().expect("secret"));
    let token = client.join(name(&provider)).await.expect("joined").secret;
    let engine = engine();
    // Room for all of them, so that whatever waits at the end waits for no good reason.
    engine.lock().expect("engine").capacity.cpu_millis = 1_000_000;
    let task = revive(proxy, folder, number, &token, &engine);
    Host { token, engine, task }
}

async fn states(proxy: &Proxy, admin: &str) -> Option<BTreeMap<String, (String, String)>> {
    let (_, list) = call(proxy.address, admin, Method::GET, "/v1/instances?limit=1000", None, "").await?;
    let text = |item: &Value, key: &str| item[key].as_str().unwrap_or_default().to_owned();
    let each =
        list["items"].as_array()?.iter().map(|item| (text(item, "name"), (text(item, "id"), text(item, "state"))));
    Some(each.collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_was_kicked_for_a_while_agrees_with_itself_when_it_is_left_alone() {
    let seed = from_env("CORACLE_SIM_SEED", 7);
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let folder = tempfile::tempdir().expect("folder");
    let mut process = Process::start_on(folder.path(), "", "");
    let admin = fs_err::read_to_string(folder.path().join("secret")).expect("secret");
    let proxy = Proxy::start(process.address.expect("address")).await;
    let mut hosts = Vec::new();
    for number in 0..AGENTS {
        hosts.push(join(&proxy, folder.path(), number, &admin).await);
    }
    let (mut made, mut stopped, mut open) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
    let (mut next, mut kills) = (0u64, 0);
    let start = Instant::now();
    let soak = Duration::from_secs(from_env("CORACLE_SOAK_S", SOAK_S));
    while start.elapsed() < soak {
        match dice.below(40) {
            0 => {
                process.signal(Signal::KILL);
                drop(process);
                process = Process::start_on(folder.path(), "", "");
                *proxy.to.write().expect("address") = process.address.expect("address");
                kills += 1;
            }
            1 | 2 => {
                let number = usize::try_from(dice.below(AGENTS as u64)).expect("small");
                let host = &mut hosts[number];
                host.task.abort();
                let _ = (&mut host.task).await;
                host.task = revive(&proxy, folder.path(), number, &host.token, &host.engine);
            }
            3..6 => proxy.cut(),
            6..12 if !made.is_empty() => {
                let pick = usize::try_from(dice.below(made.len() as u64)).expect("small");
                let (name, id): (&String, &String) = made.iter().nth(pick).expect("one");
                let gone = call(proxy.address, &admin, Method::DELETE, &format!("/v1/instances/{id}"), None, "").await;
                if gone.is_some_and(|(status, _)| status == 200) {
                    stopped.insert(name.clone());
                }
            }
            _ if made.len() >= MADE_MAX => tokio::time::sleep(Duration::from_millis(20)).await,
            _ => {
                // Half of the time something is asked again that got no answer.
                let again = open.iter().next().cloned().filter(|_| dice.below(2) == 0);
                let name = again.unwrap_or_else(|| {
                    next += 1;
                    format!("i{next}")
                });
                let body = Some(instance(&name));
                match call(proxy.address, &admin, Method::POST, "/v1/instances", body, &name).await {
                    Some((201, found)) => {
                        open.remove(&name);
                        let id = found["id"].as_str().expect("id").to_owned();
                        let before = made.insert(name.clone(), id.clone());
                        assert!(before.is_none_or(|before| before == id), "seed {seed}: {name} was made twice");
                    }
                    Some((status, problem)) => assert!([429, 503].contains(&status), "seed {seed}: {problem}"),
                    None => drop(open.insert(name)),
                }
            }
        }
    }
    assert!(made.len() > 20, "too little happened: {}", made.len());
    println!("{} made, {} stopped, {kills} kills of the scheduler", made.len(), stopped.len());
    // Left alone.
    for name in open {
        let id = until("an answer", async || {
            let body = Some(instance(&name));
            let (status, found) = call(proxy.address, &admin, Method::POST, "/v1/instances", body, &name).await?;
            (status == 201).then(|| found["id"].as_str().expect("id").to_owned())
        })
        .await;
        made.insert(name, id);
    }
    let begun = Instant::now();
    loop {
        let found = states(&proxy, &admin).await.unwrap_or_default();
        let runs: BTreeSet<String> = hosts
            .iter()
            .flat_map(|host| host.engine.lock().expect("engine").running())
            .map(|(id, _)| id.to_string())
            .collect();
        let count: usize = hosts.iter().map(|host| host.engine.lock().expect("engine").running().len()).sum();
        let wanted: BTreeSet<String> =
            made.iter().filter(|(name, _)| !stopped.contains(*name)).map(|(_, id)| id.clone()).collect();
        let all = made.iter().all(|(name, id)| {
            found.get(name).is_some_and(|(found, state)| {
                // A stop whose answer was lost may have been heard.
                let good =
                    if stopped.contains(name) { state == "stopped" } else { state == "running" || state == "stopped" };
                found == id && good
            })
        });
        let running: BTreeSet<String> =
            found.values().filter(|(_, state)| state == "running").map(|(id, _)| id.clone()).collect();
        if all && runs == running && running.is_subset(&wanted) && count == runs.len() {
            break;
        }
        assert!(begun.elapsed() < 2 * DEADLINE, "seed {seed}: {found:#?} but {runs:?} run");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for host in &hosts {
        let engine = host.engine.lock().expect("engine");
        assert!(engine.starts.values().all(|starts| *starts == 1), "seed {seed}: begun twice");
        host.task.abort();
    }
}
