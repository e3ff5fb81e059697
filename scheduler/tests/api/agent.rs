//! Agents over real HTTP, simulated engines behind them: F03's scheduler side, F05, F31.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use coracle_scheduler::agent::{Agent, Client, FileKeeper, SimulatedEngine};
use coracle_scheduler::model::Resources;
use serde_json::{Value, json};

use crate::support::{Env, instance, until};

pub struct Machine {
    pub engine: Arc<Mutex<SimulatedEngine>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Runs an agent, and an engine that lets things run soon after they are started, until the task is aborted.
pub fn live(client: Client, incarnation: PathBuf, engine: &Arc<Mutex<SimulatedEngine>>) -> tokio::task::JoinHandle<()> {
    let keeper = FileKeeper(incarnation);
    let last = keeper.read().expect("incarnation");
    let mut agent = Agent::new(client, Arc::clone(engine), keeper, last);
    let moved = Arc::clone(engine);
    tokio::spawn(async move {
        let advance = async {
            loop {
                tokio::time::sleep(Duration::from_millis(10)).await;
                moved.lock().expect("engine").advance();
            }
        };
        tokio::select! {
            _ = agent.run() => {}
            () = advance => {}
        }
    })
}

/// A machine of the pool: `live`, until it is dropped.
pub fn run(env: &Env, name: &str, token: &str, engine: Arc<Mutex<SimulatedEngine>>) -> Machine {
    let client = Client::new(env.http.clone(), env.base(), token);
    let task = live(client, env.folder.path().join(format!("{name}.incarnation")), &engine);
    Machine { engine, task }
}

pub fn engine() -> Arc<Mutex<SimulatedEngine>> {
    let mut engine = SimulatedEngine::default();
    engine.capacity =
        Resources { cpu_millis: 4_000, memory_bytes: 8 << 30, disk_bytes: 1 << 40, ..Resources::default() };
    Arc::new(Mutex::new(engine))
}

pub async fn state(env: &Env, id: &Value) -> Value {
    env.get(&env.admin, &format!("/v1/instances/{}", id.as_str().expect("id"))).await.expect(200)
}

pub async fn reaches(env: &Env, id: &Value, wanted: &str) {
    until(wanted, async || (state(env, id).await["state"] == wanted).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_lives_from_request_to_stop_over_real_http() {
    let env = Env::start().await;
    let (_, token) = env.provider(&env.admin, "p1").await;
    let machine = run(&env, "p1", &token, engine());
    let id = env.post(&env.admin, "/v1/instances", instance("web")).await.expect(201)["id"].clone();
    reaches(&env, &id, "running").await;
    let shown = state(&env, &id).await;
    assert_eq!(shown["alloc"]["explanation"]["matched"], 1);
    assert_eq!(machine.engine.lock().expect("engine").running().len(), 1);
    env.delete(&env.admin, &format!("/v1/instances/{}", id.as_str().expect("id"))).await.expect(200);
    reaches(&env, &id, "stopped").await;
    assert!(machine.engine.lock().expect("engine").running().is_empty());
    let usage = env.get(&env.admin, "/v1/usage").await.expect(200);
    assert_eq!(usage["items"][0]["allocations"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_scheduler_disturbs_nothing() {
    let mut env = Env::start().await;
    let (_, token) = env.provider(&env.admin, "p1").await;
    // A fixed port, so that the agent finds the scheduler again.
    env.options.listen = env.address();
    let machine = run(&env, "p1", &token, engine());
    let mut ids = Vec::new();
    for number in 0..10 {
        ids.push(
            env.post(&env.admin, "/v1/instances", instance(&format!("i{number}"))).await.expect(201)["id"].clone(),
        );
    }
    for id in &ids {
        reaches(&env, id, "running").await;
    }
    let before = machine.engine.lock().expect("engine").running();
    env.restart().await;
    // The agent says hello to the new process: its session counts on.
    until("a second session", async || {
        let provider = env.get(&env.admin, "/v1/providers").await.expect(200)["items"][0].clone();
        (provider["session"].as_u64() >= Some(2)).then_some(())
    })
    .await;
    let after = machine.engine.lock().expect("engine").clone();
    assert_eq!(after.running(), before);
    assert!(after.starts.values().all(|starts| *starts == 1));
    for id in &ids {
        reaches(&env, id, "running").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_that_say_nothing_new_write_nothing() {
    let env = Env::with(|options| options.core.heartbeat_ms = 50).await;
    let (_, token) = env.provider(&env.admin, "p1").await;
    let _machine = run(&env, "p1", &token, engine());
    let id = env.post(&env.admin, "/v1/instances", instance("web")).await.expect(201)["id"].clone();
    reaches(&env, &id, "running").await;
    let shared = &env.running.as_ref().expect("running").site.desk.shared;
    let read = || {
        (
            shared.commits.load(std::sync::atomic::Ordering::Relaxed),
            shared.steps.load(std::sync::atomic::Ordering::Relaxed),
        )
    };
    // The report that it runs may just be on its way to the disk.
    let before = until("calm", async || {
        let first = read();
        tokio::time::sleep(Duration::from_millis(200)).await;
        (read().0 == first.0).then_some(first)
    })
    .await;
    until("twenty heartbeats", async || (read().1 >= before.1 + 20).then_some(())).await;
    assert_eq!(read().0, before.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn s05_a_lying_provider_harms_only_its_own_instances() {
    let env = Env::start().await;
    let (_, honest) = env.provider(&env.admin, "honest").await;
    let machine = run(&env, "honest", &honest, engine());
    let id = env.post(&env.admin, "/v1/instances", instance("web")).await.expect(201)["id"].clone();
    reaches(&env, &id, "running").await;
    let (_, liar) = env.provider(&env.admin, "liar").await;
    let hello = |incarnation: u64, more: Value| {
        let mut body = json!({ "protocol_min": 1, "protocol_max": 1, "incarnation": incarnation, "boot_id": "b",
            "capacity": { "cpu_millis": 1u64 << 60, "memory_bytes": 1u64 << 60 } });
        body.as_object_mut().expect("object").extend(more.as_object().expect("object").clone());
        body
    };
    for bad in [
        json!({ "capacity": { "cpu_millis": u64::MAX } }),
        json!({ "facts": { "NODE": { "value": "x" } } }),
        json!({ "facts": { "zone": { "value": "\u{1b}[31m" } } }),
        json!({ "facts": { "zone": { "value": "x".repeat(300) } } }),
        json!({ "facts": { "zone": { "value": vec!["x"; 2000] } } }),
    ] {
        env.post(&liar, "/v1/agent/hello", hello(1, bad)).await.expect(422);
    }
    // It claims the honest provider's instance, and its name.
    let epoch = state(&env, &id).await["epoch"].clone();
    let claim =
        json!([{ "instance": id, "epoch": epoch, "phase": "exited", "code": 1, "reason": "<script>\u{1b}[31m" }]);
    let facts = json!({ "facts": { "node": { "value": "honest" }, "tier": { "value": "org" } }, "running": claim });
    let session = env.post(&liar, "/v1/agent/hello", hello(2, facts)).await.expect(200)["session"].clone();
    let sync = json!({ "session": session, "seq": 1, "applied": 0, "accepting": true, "statuses": claim });
    env.post(&liar, "/v1/agent/sync", sync).await.expect(200);
    assert_eq!(state(&env, &id).await["state"], "running");
    assert_eq!(machine.engine.lock().expect("engine").running().len(), 1);
    let mut near = instance("x");
    near["spec"]["constraints"] = json!(["node==honest"]);
    let plan = env.post(&env.admin, "/v1/instances/dry-run", near.clone()).await.expect(200);
    assert_eq!(plan["matched"], 1, "only the honest one: {plan}");
    near["spec"]["constraints"] = json!([]);
    near["spec"]["min_tier"] = json!("org");
    assert_eq!(env.post(&env.admin, "/v1/instances/dry-run", near).await.expect(200)["matched"], 0);
    // A replayed or cloned hello is refused.
    env.post(&liar, "/v1/agent/hello", hello(2, json!({}))).await.expect(409);
    // A report for a session that is not its own.
    let sync = json!({ "session": 99, "seq": 1, "applied": 0 });
    assert_eq!(env.post(&liar, "/v1/agent/sync", sync).await.expect(409)["type"], "about:blank#hello-needed");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_reaches_its_agent_at_once() {
    let env = Env::start().await;
    let (_, token) = env.provider(&env.admin, "p1").await;
    let machine = run(&env, "p1", &token, engine());
    let first = env.post(&env.admin, "/v1/instances", instance("first")).await.expect(201)["id"].clone();
    reaches(&env, &first, "running").await;
    let mut times = Vec::new();
    for number in 0..20 {
        let start = Instant::now();
        env.post(&env.admin, "/v1/instances", instance(&format!("i{number}"))).await.expect(201);
        until("the order", async || (machine.engine.lock().expect("engine").starts.len() == number + 2).then_some(()))
            .await;
        times.push(start.elapsed());
    }
    times.sort();
    // The heartbeat is ten seconds: whoever waits for the next one fails here on any machine.
    assert!(times[18] < Duration::from_secs(2), "{times:?}");
}

#[tokio::test]
async fn f32_an_old_report_that_comes_again_changes_nothing() {
    let env = Env::start().await;
    let (_, agent) = env.provider(&env.admin, "p1").await;
    let hello = json!({ "protocol_min": 1, "protocol_max": 1, "incarnation": 1, "boot_id": "b", "accepting": true,
        "capacity": { "cpu_millis": 4000, "memory_bytes": 1 << 30 } });
    let session = env.post(&agent, "/v1/agent/hello", hello).await.expect(200)["session"].clone();
    let id = env.post(&env.admin, "/v1/instances", instance("web")).await.expect(201)["id"].clone();
    let epoch = state(&env, &id).await["epoch"].clone();
    let sync = |seq: u64, phase: &str| {
        json!({ "session": session, "seq": seq, "applied": 1, "accepting": true,
            "statuses": [{ "instance": id, "epoch": epoch, "phase": phase, "healthy": true }] })
    };
    env.post(&agent, "/v1/agent/sync", sync(1, "pulling")).await.expect(200);
    env.post(&agent, "/v1/agent/sync", sync(2, "running")).await.expect(200);
    assert_eq!(state(&env, &id).await["state"], "running");
    let repeated = env.post(&agent, "/v1/agent/sync", sync(1, "pulling")).await.expect(200);
    assert_eq!(repeated["acked"], 2);
    assert_eq!(state(&env, &id).await["state"], "running");
}
