//! Two things that die at once: F05. And an agent whose facts change.

use std::path::Path;
use std::sync::{Arc, Mutex};

use coracle_scheduler::agent::{Client, SimulatedEngine};
use coracle_scheduler::model::{FactReport, FactValue};
use reqwest::Method;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::agent::{engine, live, run};
use crate::faults::{Process, call};
use crate::support::{Env, http, instance, name, until};

/// Runs an agent against a scheduler process until the task is dropped.
fn agent(
    folder: &Path,
    process: &Process,
    token: &str,
    engine: &Arc<Mutex<SimulatedEngine>>,
) -> tokio::task::JoinHandle<()> {
    let base = format!("http://{}", process.address.expect("address"));
    live(Client::new(http(), base, token), folder.join("incarnation"), engine)
}

async fn states(process: &Process, token: &str) -> Option<Vec<(String, String)>> {
    let address = process.address.expect("address");
    let (_, list) = call(address, token, Method::GET, "/v1/instances?limit=1000", None, "").await?;
    let text = |item: &Value, key: &str| item[key].as_str().unwrap_or_default().to_owned();
    Some(list["items"].as_array()?.iter().map(|item| (text(item, "name"), text(item, "state"))).collect())
}

/// Both die while things are being started: in either order, with the host's containers or without.
#[tokio::test(flavor = "multi_thread")]
async fn f05_scheduler_and_agent_that_die_together_agree_again() {
    for (scheduler_first, reboot) in [(true, false), (false, false), (true, true), (false, true)] {
        let folder = tempfile::tempdir().expect("folder");
        let mut process = Process::start_on(folder.path(), "", "");
        let admin = fs_err::read_to_string(folder.path().join("secret")).expect("secret");
        let join = json!({ "provider_name": "p1", "ttl_ms": 60_000 });
        let address = process.address.expect("address");
        let (_, join) = call(address, &admin, Method::POST, "/v1/joins", Some(join), "").await.expect("join");
        let client = Client::new(http(), format!("http://{address}"), join["secret"].as_str().expect("secret"));
        let token = client.join(name("p1")).await.expect("joined").secret;
        let engine = engine();
        let mut task = agent(folder.path(), &process, &token, &engine);
        let mut made = Vec::new();
        for round in 0..4 {
            // The last ones are accepted and most likely nowhere yet.
            for number in 0..5 {
                let name = format!("i{round}-{number}");
                let mut body = instance(&name);
                body["spec"]["restart"] = json!({ "policy": "always" });
                let address = process.address.expect("address");
                let answer = call(address, &admin, Method::POST, "/v1/instances", Some(body), &name).await;
                assert_eq!(answer.map(|(status, _)| status), Some(201));
                made.push(name);
            }
            if scheduler_first {
                process.signal(Signal::KILL);
                task.abort();
            } else {
                task.abort();
                process.signal(Signal::KILL);
            }
            let _ = task.await;
            if reboot {
                engine.lock().expect("engine").reboot();
            }
            drop(process);
            process = Process::start_on(folder.path(), "", "");
            task = agent(folder.path(), &process, &token, &engine);
        }
        let all = until("everything runs", async || {
            let states = states(&process, &admin).await?;
            states.iter().all(|(_, state)| state == "running").then_some(states)
        })
        .await;
        let mut names: Vec<String> = all.into_iter().map(|(name, _)| name).collect();
        names.sort();
        assert_eq!(names, made, "what was acknowledged, and each once");
        let engine = engine.lock().expect("engine");
        assert_eq!(engine.running().len(), made.len(), "nothing runs twice and nothing that nobody knows");
        if !reboot {
            assert!(engine.starts.values().all(|starts| *starts == 1), "an allocation was begun twice");
        }
        task.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn facts_that_change_reach_the_scheduler_without_a_new_session() {
    let env = Env::start().await;
    let (_, token) = env.provider(&env.admin, "p1").await;
    let engine = engine();
    let fact = |value: f64, ttl_ms| FactReport { value: FactValue::Number(value), age_ms: 0, ttl_ms };
    engine.lock().expect("engine").facts.insert("load1".to_owned(), fact(9.0, Some(60_000)));
    let machine = run(&env, "p1", &token, engine);
    let body = json!({ "name": "calm", "spec": { "image": "a", "constraints": ["load1<1", "rack==b"] } });
    let id = env.post(&env.admin, "/v1/instances", body).await.expect(201)["id"].clone();
    let look = async || crate::agent::state(&env, &id).await;
    until("a reason", async || look().await["waiting"]["sentence"].as_str().map(str::to_owned)).await;
    {
        let mut engine = machine.engine.lock().expect("engine");
        engine.facts.insert("load1".to_owned(), fact(0.5, Some(60_000)));
        engine
            .facts
            .insert("rack".to_owned(), FactReport { value: FactValue::Text("b".to_owned()), age_ms: 0, ttl_ms: None });
    }
    // Something else makes the agent speak before its next beat.
    env.post(&env.admin, "/v1/instances", instance("other")).await.expect(201);
    crate::agent::reaches(&env, &id, "running").await;
    let session = env.get(&env.admin, "/v1/providers").await.expect(200)["items"][0]["session"].clone();
    assert_eq!(session, 1);
}
