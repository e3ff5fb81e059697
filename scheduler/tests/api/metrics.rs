//! What is said about the pool beside its API: metrics and the log.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use coracle_scheduler::server::{Log, Sink};
use serde_json::{Value, json};

use crate::agent::{engine, reaches, run};
use crate::support::{Env, instance, until};

/// Reads Prometheus' text format strictly: every sample belongs to a family that was declared before it.
async fn metrics(env: &Env) -> BTreeMap<String, u64> {
    let reply = env.get(&env.admin, "/metrics").await;
    assert_eq!(reply.headers["content-type"], "text/plain; version=0.0.4");
    let (mut family, mut kinds, mut found) = (String::new(), BTreeMap::new(), BTreeMap::new());
    for line in reply.text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            family = help.split(' ').next().expect("name").to_owned();
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').expect("kind");
            assert_eq!(name, family, "TYPE follows HELP");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            assert!(kinds.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} is declared twice");
        } else {
            let (name, value) = line.rsplit_once(' ').expect("value");
            let bare = name.split('{').next().expect("name");
            assert_eq!(bare, family, "{line}");
            assert!(bare.starts_with("coracle_") && bare.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'));
            assert!(found.insert(name.to_owned(), value.parse().expect("number")).is_none(), "{name} twice");
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_count_what_is_there_and_name_nobody() {
    let env = Env::start().await;
    let (_, token) = env.provider(&env.admin, "p1").await;
    let (_, _, member) = env.tenant("blabbermouth", "member").await;
    let _machine = run(&env, "p1", &token, engine());
    let mut id = Value::Null;
    for number in 0..3 {
        id = env.post(&member, "/v1/instances", instance(&format!("i{number}"))).await.expect(201)["id"].clone();
        reaches(&env, &id, "running").await;
    }
    let huge = json!({ "name": "huge", "spec": { "image": "a", "resources": { "cpu_millis": 1 << 30 } } });
    env.post(&member, "/v1/instances", huge).await.expect(201);
    let before = metrics(&env).await;
    for (name, value) in [
        ("coracle_instances{state=\"running\"}", 3),
        ("coracle_instances{state=\"pending\"}", 1),
        ("coracle_providers{state=\"ready\"}", 1),
        ("coracle_offered{resource=\"cpu\"}", 4_000),
        ("coracle_reserved{resource=\"cpu\"}", 300),
        ("coracle_reserved{resource=\"memory\"}", 3 << 20),
        ("coracle_waiting", 1),
        ("coracle_placements_total", 3),
        ("coracle_leader_epoch", 1),
    ] {
        assert_eq!(before.get(name), Some(&value), "{name} of {before:#?}");
    }
    assert!(before["coracle_placements_blocked_total"] >= 1);
    env.delete(&member, &format!("/v1/instances/{}", id.as_str().expect("id"))).await.expect(200);
    reaches(&env, &id, "stopped").await;
    let after = metrics(&env).await;
    assert_eq!(after["coracle_reserved{resource=\"cpu\"}"], 200);
    assert!(after["coracle_commits_total"] > before["coracle_commits_total"]);
    // More tenants with more names make no more metrics (S10).
    for number in 0..20 {
        env.tenant(&format!("loud{number}"), "member").await;
    }
    let many = metrics(&env).await;
    assert_eq!(many.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    let text = env.get(&env.admin, "/metrics").await.text;
    assert!(!text.contains("loud") && !text.contains("blabber") && !text.contains("p1"), "{text}");
    assert_eq!(env.get(&member, "/metrics").await.status, 403, "they are about everybody, so for administrators");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_has_one_object_for_each_change_and_each_refusal() {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let sink = Sink::Memory(Arc::clone(&lines));
    let env = Env::with(|options| options.log = Log { sink, requests: false }).await;
    let made = env.post(&env.admin, "/v1/instances", instance("web")).await;
    let (id, request) = (made.body["id"].clone(), made.headers["x-request-id"].to_str().expect("id").to_owned());
    env.get(&env.admin, "/v1/instances").await.expect(200);
    env.get("", "/v1/instances").await.expect(401);
    let read = || -> Vec<Value> {
        lines.lock().expect("lines").iter().map(|line| serde_json::from_str(line).expect("one object a line")).collect()
    };
    until("the notice", async || read().iter().any(|line| line["notice"]["subject"] == id).then_some(())).await;
    let all = read();
    let requests: Vec<&Value> = all.iter().filter(|line| line["event"] == "request").collect();
    let of = |status: u16| requests.iter().filter(|line| line["status"] == status).collect::<Vec<_>>();
    assert_eq!(of(200).len(), 0, "reads that are granted are not logged unless asked for");
    assert_eq!(of(401).len(), 1, "refusals are");
    let [line] = of(201)[..] else { panic!("{requests:?}") };
    assert_eq!(
        (&line["request"], &line["method"], &line["route"]),
        (&json!(request), &json!("POST"), &json!("/v1/instances"))
    );
    assert!(line["user"].is_string() && line["group"].is_string() && line["ms"].is_u64() && line["peer"].is_string());
    for line in &all {
        assert!(line["at_ms"].is_u64() && ["info", "warn", "error"].contains(&line["level"].as_str().expect("level")));
    }
}
