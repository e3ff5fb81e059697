//! Secrets of a group: sealed in the store, shown to nobody, given to the agent that starts who asks for them (S30).

use std::os::unix::fs::PermissionsExt as _;
use std::sync::{Arc, Mutex};

use coracle_scheduler::server::{Log, Sink};
use serde_json::{Value, json};

use crate::agent::{engine, reaches, run, state};
use crate::support::{Env, Reply, instance, raw, until};

/// What must be found nowhere.
const CANARY: &str = "canary-7f3a9c";

async fn start() -> (Env, Arc<Mutex<Vec<String>>>) {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let sink = Sink::Memory(Arc::clone(&lines));
    let env = Env::with(|options| {
        options.log = Log { sink, requests: true };
        options.secrets_key = Some(format!("{}.key", options.store).into());
    })
    .await;
    (env, lines)
}

async fn keep(env: &Env, token: &str, name: &str, value: &str) -> Reply {
    let body = json!({ "name": name, "value": value });
    env.call_with(token, reqwest::Method::POST, "/v1/secrets", Some(body), &[("idempotency-key", name)]).await
}

fn wanting(name: &str, mounts: &Value) -> Value {
    let mut body = instance(name);
    body["spec"]["secrets"] = mounts.clone();
    body
}

#[tokio::test(flavor = "multi_thread")]
async fn s30_a_secret_reaches_its_container_and_is_seen_nowhere_else() {
    let (env, lines) = start().await;
    let (_, token) = env.provider(&env.admin, "p1").await;
    let made = keep(&env, &env.admin, "db-password", CANARY).await;
    let mut everything = made.text.clone();
    let id = made.expect(201)["id"].clone();
    // The same request again is the same object; another value under its key is refused, which nobody can probe without
    // the token.
    assert_eq!(keep(&env, &env.admin, "db-password", CANARY).await.expect(201)["id"], id);
    assert_eq!(keep(&env, &env.admin, "db-password", "other").await.status, 409);
    let mounts = json!([{ "secret": id, "env": "PASSWORD" }, { "secret": id, "file": "/run/secrets/db" }]);
    let running = env.post(&env.admin, "/v1/instances", wanting("web", &mounts)).await.expect(201)["id"].clone();
    let machine = run(&env, "p1", &token, engine());
    reaches(&env, &running, "running").await;
    let got = machine.engine.lock().expect("engine").secrets.clone();
    let got: Vec<_> = got.into_values().flatten().collect();
    let seen: Vec<_> =
        got.iter().map(|found| (found.env.as_deref(), found.file.as_deref(), found.value.expose())).collect();
    assert_eq!(seen, [(Some("PASSWORD"), None, CANARY), (None, Some("/run/secrets/db"), CANARY)]);
    everything.push_str(&format!(
        "{got:?} {:?}",
        machine.engine.lock().expect("engine").spec(running.as_str().expect("id").parse().expect("id"), 1)
    ));
    // Mistakes with a value in them are refused without it.
    for body in [
        json!({ "name": "x", "value": CANARY, "more": CANARY }),
        json!({ "name": "BAD NAME", "value": CANARY }),
        json!([null, "x", CANARY]),
        json!({ "name": CANARY, "value": 7 }),
        json!({ "name": "x", "value": format!("{CANARY}\0") }),
        json!({ "name": "db-password", "value": CANARY }),
    ] {
        let reply = env.post(&env.admin, "/v1/secrets", body).await;
        assert!([409, 422].contains(&reply.status.as_u16()), "{}", reply.text);
        everything.push_str(&reply.text);
    }
    for path in ["secrets", "instances", "events", "audit", "usage", "providers", "groups", "users", "tokens"] {
        everything.push_str(&env.get(&env.admin, &format!("/v1/{path}?limit=1000")).await.text);
    }
    for id in [&id, &running] {
        let kind = if *id == running { "instances" } else { "secrets" };
        everything.push_str(&env.get(&env.admin, &format!("/v1/{kind}/{}", id.as_str().expect("id"))).await.text);
    }
    everything.push_str(&env.get(&env.admin, "/metrics").await.text);
    everything.push_str(&lines.lock().expect("lines").join("\n"));
    let copy = env.folder.path().join("copy.db");
    env.options.store.backup(&copy).expect("backup");
    for entry in fs_err::read_dir(env.folder.path()).expect("folder") {
        everything.push_str(&raw(&entry.expect("entry").path()));
    }
    let listed = env.get(&env.admin, "/v1/secrets").await.expect(200);
    assert_eq!(listed["items"][0]["name"], "db-password");
    assert!(!listed.to_string().contains("v1:"), "not even what is sealed is shown");
    assert!(raw(&copy).contains("v1:"), "it is in the backup, sealed");
    assert!(everything.len() > 50_000, "too little was looked at");
    assert_eq!(everything.find(CANARY), None);
    let key = std::path::PathBuf::from(format!("{}.key", env.options.store));
    assert_eq!(fs_err::metadata(&key).expect("key").permissions().mode() & 0o777, 0o600);
    let digits = fs_err::read_to_string(&key).expect("key");
    assert!(!raw(&copy).contains(digits.trim()), "the key is not where the lock is");
}

#[tokio::test(flavor = "multi_thread")]
async fn s30_a_secret_belongs_to_its_group_and_goes_to_trusted_machines_only() {
    let (env, _) = start().await;
    let (provider, token) = env.provider(&env.admin, "p1").await;
    let (_, _, one) = env.tenant("one", "member").await;
    let (_, _, two) = env.tenant("two", "member").await;
    let id = keep(&env, &one, "key", CANARY).await.expect(201)["id"].clone();
    keep(&env, &two, "key", "another").await.expect(201);
    let path = format!("/v1/secrets/{}", id.as_str().expect("id"));
    assert_eq!(env.get(&two, &path).await.status, 404);
    assert_eq!(env.delete(&two, &path).await.status, 404);
    let mounts = json!([{ "secret": id, "env": "KEY" }]);
    assert_eq!(env.post(&two, "/v1/instances", wanting("thief", &mounts)).await.status, 404);
    for bad in [
        json!([{ "secret": id }]),
        json!([{ "secret": id, "env": "A", "file": "/a" }]),
        json!([{ "secret": id, "env": "A=B" }]),
        json!([{ "secret": id, "file": "/a/../b" }]),
        json!([{ "secret": id, "file": "a" }]),
    ] {
        assert_eq!(env.post(&one, "/v1/instances", wanting("bad", &bad)).await.status, 422, "{bad}");
    }
    // The owner of the secret says how far a machine must be trusted (S05).
    let mut careful = wanting("careful", &mounts);
    careful["spec"]["min_tier"] = json!("org");
    let waiting = env.post(&one, "/v1/instances", careful).await.expect(201)["id"].clone();
    let machine = run(&env, "p1", &token, engine());
    let other = env.post(&one, "/v1/instances", instance("other")).await.expect(201)["id"].clone();
    reaches(&env, &other, "running").await;
    assert_eq!(state(&env, &waiting).await["state"], "pending");
    let seen =
        |machine: &crate::agent::Machine| machine.engine.lock().expect("engine").secrets.values().flatten().count();
    assert_eq!(seen(&machine), 0);
    env.call(
        &env.admin,
        reqwest::Method::PUT,
        &format!("/v1/providers/{provider}/tier"),
        Some(json!({ "tier": "org" })),
    )
    .await
    .expect(200);
    reaches(&env, &waiting, "running").await;
    assert_eq!(seen(&machine), 1);
    assert_eq!(env.delete(&one, &path).await.status, 409, "somebody uses it");
    env.delete(&one, &format!("/v1/instances/{}", waiting.as_str().expect("id"))).await.expect(200);
    reaches(&env, &waiting, "stopped").await;
    assert_eq!(env.delete(&one, &path).await.status, 204);
    assert_eq!(env.get(&one, &path).await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn s30_without_its_key_a_secret_opens_for_nobody() {
    let (mut env, _) = start().await;
    let (_, token) = env.provider(&env.admin, "p1").await;
    let id = keep(&env, &env.admin, "key", CANARY).await.expect(201)["id"].clone();
    // A thief of the database starts a scheduler of their own on it.
    env.options.secrets_key = Some(env.folder.path().join("forged.key"));
    env.restart().await;
    let mounts = json!([{ "secret": id, "env": "KEY" }]);
    let asked = env.post(&env.admin, "/v1/instances", wanting("web", &mounts)).await.expect(201)["id"].clone();
    let machine = run(&env, "p1", &token, engine());
    until("a refusal", async || (state(&env, &asked).await["state"] == "failed").then_some(())).await;
    let reason = state(&env, &asked).await["reason"].clone();
    assert_eq!(reason, "a secret cannot be opened by the scheduler");
    assert!(machine.engine.lock().expect("engine").secrets.is_empty());
    // Without any key nothing is taken that could not be kept.
    env.options.secrets_key = None;
    env.restart().await;
    assert_eq!(keep(&env, &env.admin, "late", CANARY).await.status, 409);
}
