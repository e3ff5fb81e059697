//! Objects, pages, idempotency, events, audit, the OpenAPI document: S18, S31.

use coracle_scheduler::core::check::broken_link;
use coracle_scheduler::model::Audit;
use coracle_scheduler::server::routes;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{DEADLINE, Env, instance};

#[tokio::test]
async fn an_instance_that_fits_nowhere_says_why_and_what_would_help() {
    let env = Env::start().await;
    let made = env.post(&env.admin, "/v1/instances", instance("web")).await.expect(201);
    let path = format!("/v1/instances/{}", made["id"].as_str().expect("id"));
    let shown = env.get(&env.admin, &path).await.expect(200);
    assert_eq!(shown["state"], "pending");
    assert_eq!(shown["waiting"]["sentence"], "0 of 0 providers match; no provider has joined");
    let (_, agent) = env.provider(&env.admin, "p1").await;
    let hello = json!({ "protocol_min": 1, "protocol_max": 1, "incarnation": 1, "boot_id": "b", "accepting": true,
        "capacity": { "cpu_millis": 50, "memory_bytes": 1 << 30 }, "facts": { "zone": { "value": "eu" } } });
    env.post(&agent, "/v1/agent/hello", hello).await.expect(200);
    let plan = env.post(&env.admin, "/v1/instances/dry-run", instance("x")).await.expect(200);
    assert_eq!(plan["filtered"], json!({ "cpu": 1 }));
    assert_eq!(plan["hints"], json!(["1 would match with 50 less cpu"]));
    let mut far = instance("y");
    far["spec"]["resources"]["cpu_millis"] = json!(10);
    far["spec"]["env"] = json!(["A=1", "constraint:zone==us"]);
    let plan = env.post(&env.admin, "/v1/instances/dry-run", far.clone()).await.expect(200);
    assert_eq!(plan["hints"], json!(["1 would match without constraint:zone==us"]));
    far["spec"]["env"] = json!(["constraint:zone==eu"]);
    let plan = env.post(&env.admin, "/v1/instances/dry-run", far).await.expect(200);
    assert_eq!((plan["matched"].clone(), plan["pool"].clone()), (json!(1), json!(1)));
}

#[tokio::test]
async fn lists_are_read_page_by_page_without_gap_or_repetition() {
    let env = Env::start().await;
    let mut made = Vec::new();
    for number in 0..25 {
        let body = instance(&format!("i{number}"));
        made.push(env.post(&env.admin, "/v1/instances", body).await.expect(201)["id"].clone());
    }
    let (mut seen, mut after) = (Vec::new(), String::new());
    loop {
        let page = env.get(&env.admin, &format!("/v1/instances?limit=10{after}")).await.expect(200);
        seen.extend(page["items"].as_array().expect("items").iter().map(|item| item["id"].clone()));
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    made.sort_by_key(|id| id.as_str().map(str::to_owned));
    assert_eq!(seen, made);
    for bad in ["limit=0", "limit=1001", "limit=x", "after=x", "state=gone"] {
        env.get(&env.admin, &format!("/v1/instances?{bad}")).await.expect(422);
    }
}

#[tokio::test]
async fn s18_a_repeated_request_gives_the_same_object_and_another_one_is_refused() {
    let env = Env::start().await;
    let (_, _, other) = env.tenant("a", "member").await;
    let key = [("idempotency-key", "k1")];
    let make =
        async |token: &str, body: Value| env.call_with(token, Method::POST, "/v1/instances", Some(body), &key).await;
    let first = make(&env.admin, instance("web")).await.expect(201);
    let again = make(&env.admin, instance("web")).await.expect(201);
    assert_eq!(first["id"], again["id"]);
    let reused = make(&env.admin, instance("other")).await;
    assert_eq!((reused.status.as_u16(), reused.body["type"].as_str()), (409, Some("about:blank#key-reused")));
    // Another tenant's key is another key.
    let foreign = make(&other, instance("web")).await.expect(201);
    assert_ne!(first["id"], foreign["id"]);
    let long = "k".repeat(129);
    for bad in ["", "a b", long.as_str()] {
        let headers = [("idempotency-key", bad)];
        env.call_with(&env.admin, Method::POST, "/v1/instances", Some(instance("z")), &headers).await.expect(422);
    }
    // A secret is shown once: the repetition gives the token's id without it.
    let body = json!({ "role": "reader", "ttl_ms": 60_000 });
    let headers = [("idempotency-key", "k2")];
    let first = env.call_with(&env.admin, Method::POST, "/v1/tokens", Some(body.clone()), &headers).await.expect(201);
    let again = env.call_with(&env.admin, Method::POST, "/v1/tokens", Some(body), &headers).await.expect(201);
    assert_eq!(first["id"], again["id"]);
    assert!(first["secret"].is_string() && again["secret"].is_null());
}

#[tokio::test]
async fn events_go_on_where_a_stream_was_cut() {
    let mut env = Env::start().await;
    for number in 0..5 {
        env.post(&env.admin, "/v1/instances", instance(&format!("i{number}"))).await.expect(201);
    }
    let all = env.get(&env.admin, "/v1/events?limit=1000").await.expect(200)["items"].clone();
    let all: Vec<u64> = all.as_array().expect("items").iter().filter_map(|event| event["seq"].as_u64()).collect();
    assert!(all.len() >= 5 && all.windows(2).all(|pair| pair[0] + 1 == pair[1]));
    // Once from the ring in memory, once from the store after a restart.
    for round in 0..2 {
        let cut = all[1];
        let request = env.http.get(format!("{}/v1/events", env.base())).bearer_auth(&env.admin);
        let request = request.header("accept", "text/event-stream").header("last-event-id", cut.to_string());
        let mut stream = request.send().await.expect("stream");
        let mut text = String::new();
        while text.matches("id: ").count() < all.len() - 2 {
            let chunk =
                tokio::time::timeout(DEADLINE, stream.chunk()).await.expect("in time").expect("chunk").expect("more");
            text.push_str(&String::from_utf8_lossy(&chunk));
        }
        let ids: Vec<u64> = text.lines().filter_map(|line| line.strip_prefix("id: ")?.parse().ok()).collect();
        assert_eq!(ids, all[2..], "round {round}");
        drop(stream);
        if round == 0 {
            env.restart().await;
        }
    }
}

async fn audits(env: &Env) -> Vec<Audit> {
    let rows = env.get(&env.admin, "/v1/audit?limit=1000").await.expect(200)["items"].clone();
    serde_json::from_value(rows).expect("rows")
}

#[tokio::test]
async fn s31_every_mutation_has_a_row_and_tampering_shows() {
    let env = Env::start().await;
    let (group, ..) = env.tenant("a", "member").await;
    let made = env.post(&env.admin, "/v1/instances", instance("web")).await.expect(201);
    env.delete(&env.admin, &format!("/v1/instances/{}", made["id"].as_str().expect("id"))).await.expect(200);
    let before = audits(&env).await.len();
    // What is refused changes nothing and leaves no row; what only looks neither.
    env.post(&env.admin, "/v1/instances", json!({ "spec": { "image": "" } })).await.expect(422);
    env.post(&env.admin, "/v1/instances/dry-run", instance("x")).await.expect(200);
    let rows = audits(&env).await;
    assert_eq!(rows.len(), before);
    let verbs: Vec<&str> = rows.iter().map(|row| row.verb.as_str()).collect();
    let expect =
        ["pool.bootstrap", "group.create", "user.create", "token.create", "instance.create", "instance.delete"];
    assert_eq!(verbs, expect);
    let of = |id: &str| rows.iter().filter(|row| row.group.to_string() == id).cloned().collect::<Vec<_>>();
    let (theirs, ours) = (of(&group), of(&rows[0].group.to_string()));
    for chain in [&theirs, &ours] {
        let head = &chain.last().expect("rows").hash;
        assert_eq!(broken_link(chain, head), None);
        let mut edited = chain.clone();
        edited[1].actor = "somebody else".to_owned();
        assert_eq!(broken_link(&edited, head), Some(2), "edited");
        let mut removed = chain.clone();
        removed.remove(1);
        assert!(broken_link(&removed, head).is_some(), "removed");
        let mut swapped = chain.clone();
        swapped.swap(0, 1);
        assert!(broken_link(&swapped, head).is_some(), "moved");
        assert!(broken_link(&chain[..chain.len() - 1], head).is_some(), "cut off");
    }
    drop(env.running);
    let database = rusqlite::Connection::open(env.folder.path().join("pool.db")).expect("database");
    assert!(database.execute("DELETE FROM audit WHERE seq = 1", []).is_err());
    assert!(database.execute("UPDATE audit SET body = ''", []).is_err());
}

#[tokio::test]
async fn the_openapi_document_lists_every_route_and_every_reference_resolves() {
    let env = Env::start().await;
    let document = env.get("", "/v1/openapi.json").await.expect(200);
    for route in routes().iter().filter(|route| route.is_described()) {
        let operation = &document["paths"][route.path][route.method.as_str().to_ascii_lowercase()];
        assert!(operation["summary"].is_string(), "{} {}", route.method, route.path);
        assert_eq!(operation["security"].is_array(), route.policy != coracle_scheduler::server::Policy::Open);
    }
    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(object) => {
                if let Some(Value::String(to)) = object.get("$ref") {
                    found.push(to.clone());
                }
                object.values().for_each(|value| references(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(found.len() > 50);
    for to in found {
        let name = to.strip_prefix("#/components/schemas/").expect("a schema");
        assert!(document["components"]["schemas"][name].is_object(), "{to}");
    }
}
