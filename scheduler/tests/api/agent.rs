//! Agents over real HTTP, simulated engines behind them: F03's scheduler side, F05, F31.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use coracle_scheduler::agent::{Agent, Client, FileKeeper, SimulatedEngine};
use coracle_scheduler::model::{DiskBackend, DiskReport, Resources};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

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

/// A way to a scheduler that takes longer than an agent takes to see a change.
async fn far_away(scheduler: std::net::SocketAddr) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let here = listener.local_addr().expect("address");
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let far = tokio::net::TcpStream::connect(scheduler).await.expect("scheduler");
            let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
            tokio::spawn(slowly(near_in, far_out));
            tokio::spawn(slowly(far_in, near_out));
        }
    });
    format!("http://{here}")
}

async fn slowly(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        tokio::time::sleep(Duration::from_millis(150)).await;
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_all_the_time_keeps_no_order_away() {
    let env = Env::start().await;
    let (_, token) = env.provider(&env.admin, "p1").await;
    let engine = engine();
    let client = Client::new(env.http.clone(), far_away(env.address()).await, &token);
    let task = live(client, env.folder.path().join("p1.incarnation"), &engine);
    let machine = Machine { engine: Arc::clone(&engine), task };
    let id = env.post(&env.admin, "/v1/instances", instance("web")).await.expect(201)["id"].clone();
    reaches(&env, &id, "running").await;
    let restless = tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_millis(7)).await;
            engine.lock().expect("engine").used.cpu_ms += 1;
        }
    });
    env.delete(&env.admin, &format!("/v1/instances/{}", id.as_str().expect("id"))).await.expect(200);
    reaches(&env, &id, "stopped").await;
    restless.abort();
    assert!(machine.engine.lock().expect("engine").running().is_empty());
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
async fn a_disk_is_shown_as_its_provider_says_and_nothing_is_written_for_it() {
    let mut env = Env::with(|options| options.core.heartbeat_ms = 50).await;
    let (_, token) = env.provider(&env.admin, "p1").await;
    env.options.listen = env.address();
    let machine = run(&env, "p1", &token, engine());
    let id = env.post(&env.admin, "/v1/instances", instance("web")).await.expect(201)["id"].clone();
    reaches(&env, &id, "running").await;
    assert!(state(&env, &id).await["alloc"]["disk"].is_null(), "it has no limit");
    let report = |used_bytes| DiskReport {
        backend: DiskBackend::Fuse,
        hard: true,
        limit_bytes: 64 << 20,
        limit_inodes: 1000,
        used_bytes: Some(used_bytes),
        used_inodes: Some(3),
        lost: false,
        exceeded: false,
    };
    let commits = |env: &Env| {
        let shared = &env.running.as_ref().expect("running").site.desk.shared;
        shared.commits.load(std::sync::atomic::Ordering::Relaxed)
    };
    let before = commits(&env);
    for used in [1 << 20, 40 << 20, 8 << 20] {
        let report = report(used);
        machine.engine.lock().expect("engine").disk = Some(report);
        let shown = until("it is shown", async || {
            let disk = state(&env, &id).await["alloc"]["disk"].clone();
            (disk["used_bytes"] == used).then_some(disk)
        })
        .await;
        assert_eq!(shown, serde_json::to_value(report).expect("report"));
    }
    assert_eq!(commits(&env), before);
    // A scheduler that was started anew hears it again.
    env.restart().await;
    until("it is shown again", async || {
        (state(&env, &id).await["alloc"]["disk"]["used_bytes"] == 8 << 20).then_some(())
    })
    .await;
    machine.engine.lock().expect("engine").disk = None;
    until("it is gone", async || state(&env, &id).await["alloc"]["disk"].is_null().then_some(())).await;
}

/// A pool with an honest provider that runs an instance, and the token of one that lies.
async fn beside_a_liar() -> (Env, Machine, Value, String) {
    let env = Env::start().await;
    let (_, honest) = env.provider(&env.admin, "honest").await;
    let machine = run(&env, "honest", &honest, engine());
    let id = env.post(&env.admin, "/v1/instances", instance("web")).await.expect(201)["id"].clone();
    reaches(&env, &id, "running").await;
    let (_, liar) = env.provider(&env.admin, "liar").await;
    (env, machine, id, liar)
}

#[tokio::test(flavor = "multi_thread")]
async fn s05_a_lying_provider_harms_only_its_own_instances() {
    let (env, machine, id, liar) = beside_a_liar().await;
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

/// Each field of a report once with what no honest agent says: the liar is refused, or only its own instances suffer.
#[tokio::test(flavor = "multi_thread")]
async fn s05_no_field_of_a_report_harms_others() {
    let (env, machine, id, liar) = beside_a_liar().await;
    let capacity = json!({ "cpu_millis": 8000, "memory_bytes": 8u64 << 30, "disk_bytes": 8u64 << 30 });
    let hello = json!({ "protocol_min": 1, "protocol_max": 1, "incarnation": 7, "boot_id": "b", "accepting": true,
        "capacity": capacity });
    let changed = |object: &Value, field: &str, value: Value| {
        let mut object = object.clone();
        object[field] = value;
        object
    };
    let fact = |report: Value| json!({ "load1": report });
    let facts = [
        fact(json!({ "value": "x".repeat(300) })),
        fact(json!({ "value": 1, "age_ms": -1 })),
        fact(json!({ "value": null })),
        fact(json!({ "value": { "a": 1 } })),
        json!({ "": { "value": 1 } }),
        (0..300).map(|number| (format!("fact{number}"), json!({ "value": 1 }))).collect(),
    ];
    let status = json!({ "instance": id, "epoch": 1, "phase": "halted" });
    let statuses = [
        json!([changed(&status, "epoch", json!(-1))]),
        json!([changed(&status, "instance", json!("../../web"))]),
        json!([changed(&status, "phase", json!("hibernating"))]),
        json!([changed(&status, "usage", json!({ "cpu_ms": -1 }))]),
        json!([changed(
            &status,
            "disk",
            json!({ "backend": "zfs", "hard": true, "limit_bytes": 1, "limit_inodes": 1 })
        )]),
        json!([changed(&status, "disk", json!({ "backend": "fuse", "hard": 1, "limit_bytes": 1, "limit_inodes": 1 }))]),
        json!([changed(
            &status,
            "disk",
            json!({ "backend": "fuse", "hard": true, "limit_bytes": -1, "limit_inodes": 1 })
        )]),
        json!([changed(&status, "disk", json!({ "backend": "fuse", "hard": true }))]),
        json!(vec![status.clone(); 10_001]),
    ];
    let bad_hellos = [
        ("protocol_min", json!(-1)),
        ("incarnation", json!(1.5)),
        ("boot_id", json!("b".repeat(10_000))),
        ("price", json!(-1)),
        ("drain_ms", json!(-1)),
        ("capacity", json!({ "cpu_millis": -1 })),
        ("capacity", json!({ "memory_bytes": u64::MAX })),
        ("accepting", json!("yes")),
        ("who", json!("else")),
    ];
    let bad_hellos = bad_hellos.into_iter().map(|(field, value)| changed(&hello, field, value));
    let bad_hellos = bad_hellos
        .chain(facts.iter().map(|facts| changed(&hello, "facts", facts.clone())))
        .chain(statuses.iter().map(|statuses| changed(&hello, "running", statuses.clone())));
    for bad in bad_hellos {
        let answer = env.post(&liar, "/v1/agent/hello", bad.clone()).await;
        assert!([400, 413, 422].contains(&answer.status.as_u16()), "{}: {bad}", answer.text);
    }
    // What a double cannot hold, and what no request may be as long as.
    for (body, expect) in [
        (hello.to_string().replacen('{', r#"{"facts":{"load1":{"value":1e999}},"#, 1), 422),
        (format!("{{\"boot_id\":\"{}\"}}", "x".repeat(100 << 20)), 413),
    ] {
        let request = env.http.post(format!("{}/v1/agent/hello", env.base())).bearer_auth(&liar);
        // Whoever stops reading need not say so to who still writes.
        if let Ok(answer) = request.header("content-type", "application/json").body(body).send().await {
            assert!([400, expect].contains(&answer.status().as_u16()), "{answer:?}");
        }
    }

    // Now what is taken: the greatest numbers there are.
    let most =
        json!({ "cpu_ms": u64::MAX, "memory_mib_s": u64::MAX, "disk_mib_s": u64::MAX, "network_bytes": u64::MAX });
    let old = fact(json!({ "value": 1e200, "age_ms": u64::MAX, "ttl_ms": u64::MAX }));
    let mut taken = changed(&changed(&hello, "facts", old.clone()), "price", json!(u64::MAX));
    let disk = json!({ "backend": "watch", "hard": true, "limit_bytes": u64::MAX, "limit_inodes": u64::MAX,
        "used_bytes": u64::MAX, "used_inodes": u64::MAX, "lost": true, "exceeded": true });
    let foreign = changed(&changed(&status, "usage", most.clone()), "disk", disk.clone());
    taken["running"] = json!([
        foreign,
        changed(&foreign, "epoch", json!(0)),
        changed(&foreign, "epoch", json!(2)),
        changed(&foreign, "epoch", json!(u64::MAX)),
    ]);
    let reply = env.post(&liar, "/v1/agent/hello", taken).await.expect(200);
    let mut own = instance("own");
    own["spec"]["constraints"] = json!(["node==liar"]);
    let own = env.post(&env.admin, "/v1/instances", own).await.expect(201)["id"].clone();
    let exit = json!({ "instance": own, "epoch": 1, "phase": "exited", "code": i32::MIN,
        "reason": "\u{1b}[2J<b>".repeat(1000), "usage": most });
    for (seq, statuses) in [
        (
            1,
            json!([{ "instance": own, "epoch": 1, "phase": "running", "healthy": true,
        "usage": most, "disk": disk }]),
        ),
        (2, json!([exit, exit, foreign])),
        (u64::MAX, json!([changed(&exit, "code", json!(0))])),
    ] {
        let sync = json!({ "session": reply["session"], "seq": seq, "applied": u64::MAX, "accepting": true,
            "facts": old, "statuses": statuses });
        env.post(&liar, "/v1/agent/sync", sync).await.expect(200);
        if seq == 1 {
            let shown = state(&env, &own).await["alloc"]["disk"].clone();
            let most = 1u64 << 60;
            assert_eq!((&shown["limit_bytes"], &shown["used_bytes"]), (&json!(most), &json!(most)), "{shown}");
            assert_eq!(shown["hard"], false, "nobody keeps it: {shown}");
        }
    }
    env.post(&liar, "/v1/agent/hello", changed(&changed(&hello, "incarnation", json!(8)), "drain_ms", json!(u64::MAX)))
        .await
        .expect(200);
    // The session before that, once more.
    let sync = json!({ "session": reply["session"], "seq": u64::MAX, "applied": 0, "drain_ms": u64::MAX });
    env.post(&liar, "/v1/agent/sync", sync).await.expect(409);

    // The honest one goes on, with what is its own and with what is new.
    assert_eq!(state(&env, &id).await["state"], "running");
    assert_eq!(state(&env, &id).await["epoch"], 1);
    assert!(state(&env, &id).await["alloc"]["disk"].is_null());
    assert_eq!(machine.engine.lock().expect("engine").running().len(), 1);
    let mut next = instance("next");
    next["spec"]["constraints"] = json!(["node==honest"]);
    let next = env.post(&env.admin, "/v1/instances", next).await.expect(201)["id"].clone();
    reaches(&env, &next, "running").await;
    assert_eq!(state(&env, &next).await["alloc"]["provider"], state(&env, &id).await["alloc"]["provider"]);
    let shown = state(&env, &own).await;
    assert!(!shown.to_string().contains("\\u001b") && shown.to_string().len() < 10_000, "{shown}");
    env.delete(&env.admin, &format!("/v1/instances/{}", id.as_str().expect("id"))).await.expect(200);
    reaches(&env, &id, "stopped").await;
    // What is reckoned for the honest one's work is not what the liar has said.
    let usage = env.get(&env.admin, "/v1/usage").await.expect(200);
    let honest = state(&env, &next).await["alloc"]["provider"].clone();
    let row = usage["items"]
        .as_array()
        .expect("rows")
        .iter()
        .find(|row| row["provider"] == honest)
        .unwrap_or_else(|| panic!("{usage}"));
    assert_eq!((&row["allocations"], &row["usage"]["network_bytes"]), (&json!(1), &json!(0)), "{usage}");
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
