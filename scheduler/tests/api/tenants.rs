//! Isolation of tenants: S10, A83, S17, A85.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Env, instance};

/// Makes one object of each kind; returns their paths.
async fn objects(env: &Env, token: &str, user: &str) -> Vec<String> {
    let make = async |path: &str, body: Value| {
        let made = env.post(token, path, body).await.expect(201);
        format!("{path}/{}", made["id"].as_str().expect("id"))
    };
    let template = json!({ "image": "alpine" });
    vec![
        make("/v1/instances", instance("job")).await,
        make("/v1/services", json!({ "spec": { "name": "job", "template": template, "replicas": 1 } })).await,
        make("/v1/jobs", json!({ "spec": { "name": "job", "template": template } })).await,
        make("/v1/volumes", json!({ "name": "job", "size_bytes": 1000 })).await,
        make("/v1/tokens", json!({ "role": "reader", "ttl_ms": 60_000 })).await,
        make("/v1/joins", json!({ "provider_name": "laptop", "ttl_ms": 60_000 })).await,
        format!("/v1/users/{user}"),
    ]
}

#[tokio::test]
async fn a83_s10_tenants_with_similar_names_see_nothing_of_each_other() {
    let env = Env::start().await;
    let mut tenants = Vec::new();
    for name in ["a", "ab", "a.b", "A"] {
        let (group, user, token) = env.tenant(name, "member").await;
        let mut paths = objects(&env, &token, &user).await;
        paths.push(format!("/v1/groups/{group}"));
        tenants.push((group, token, paths));
    }
    for (own, token, _) in &tenants {
        for (foreign, _, paths) in tenants.iter().filter(|(group, ..)| group != own) {
            for path in paths {
                let missing = format!("{}/00000000000000000000000000", path.rsplit_once('/').expect("path").0);
                for method in [Method::GET, Method::DELETE] {
                    let reply = env.call(token, method.clone(), path, None).await;
                    let expect = env.call(token, method.clone(), &missing, None).await;
                    // Not to be told from an object that never was; what a role may not do at all is refused before.
                    let same = (reply.status, &reply.body) == (expect.status, &expect.body);
                    assert!(same, "{method} {path}: {} but {}", reply.text, expect.text);
                    assert!([403, 404, 405].contains(&reply.status.as_u16()), "{method} {path}: {}", reply.text);
                }
            }
            let list = env.get(token, &format!("/v1/instances?group={foreign}")).await;
            assert_eq!(list.status, 404);
            let body = json!({ "group": foreign, "name": "x", "spec": { "image": "alpine" } });
            env.post(token, "/v1/instances", body.clone()).await.expect(404);
            env.post(token, "/v1/instances/dry-run", body).await.expect(404);
        }
        for list in ["instances", "services", "jobs", "volumes", "tokens", "joins", "users", "groups", "usage"] {
            let items = env.get(token, &format!("/v1/{list}?limit=1000")).await.expect(200)["items"].clone();
            for item in items.as_array().expect("items") {
                let group = item.get("group").or(item.get("id")).expect("group");
                assert_eq!(group, own, "{list} shows {item}");
            }
        }
        let events = env.get(token, "/v1/events?limit=1000").await.expect(200)["items"].clone();
        let events = events.as_array().expect("events").clone();
        assert!(!events.is_empty() && events.iter().all(|event| event["group"] == **own));
    }
}

#[tokio::test]
async fn s10_volumes_and_dependencies_of_others_do_not_exist() {
    let env = Env::start().await;
    let (_, _, one) = env.tenant("a", "member").await;
    let (_, _, two) = env.tenant("b", "member").await;
    let volume =
        env.post(&one, "/v1/volumes", json!({ "name": "v", "size_bytes": 10 })).await.expect(201)["id"].clone();
    let spec = json!({ "image": "alpine", "volumes": [{ "volume": volume, "path": "/data" }] });
    env.post(&two, "/v1/instances", json!({ "spec": spec })).await.expect(404);
    let job = env
        .post(&one, "/v1/jobs", json!({ "spec": { "name": "j", "template": { "image": "alpine" } } }))
        .await
        .expect(201);
    let spec = json!({ "name": "j", "template": { "image": "alpine" }, "depends_on": [job["id"]] });
    env.post(&two, "/v1/jobs", json!({ "spec": spec })).await.expect(404);
}

#[tokio::test]
async fn s10_an_affinity_does_not_feel_for_other_tenants() {
    let env = Env::start().await;
    let (_, agent) = env.provider(&env.admin, "p1").await;
    let hello = json!({ "protocol_min": 1, "protocol_max": 1, "incarnation": 1, "boot_id": "b", "accepting": true,
        "capacity": { "cpu_millis": 4000, "memory_bytes": 1 << 30 } });
    env.post(&agent, "/v1/agent/hello", hello).await.expect(200);
    let (_, _, one) = env.tenant("a", "member").await;
    let (_, _, two) = env.tenant("b", "member").await;
    env.post(&one, "/v1/instances", instance("db")).await.expect(201);
    let mut near = instance("x");
    near["spec"]["affinities"] = json!(["container==db"]);
    assert_eq!(env.post(&one, "/v1/instances/dry-run", near.clone()).await.expect(200)["matched"], 1);
    assert_eq!(env.post(&two, "/v1/instances/dry-run", near).await.expect(200)["matched"], 0);
}

#[tokio::test]
async fn s17_a85_paths_in_ids_lead_nowhere() {
    let env = Env::start().await;
    for id in [
        "..%2f..%2fetc%2fpasswd",
        "%2e%2e",
        "%00",
        "..%5c",
        "%c0%ae%c0%ae",
        "a;b",
        "0000000000000000000000000.",
        "%252e%252e",
    ] {
        for kind in ["instances", "providers", "jobs", "volumes"] {
            let reply = env.get(&env.admin, &format!("/v1/{kind}/{id}")).await;
            assert!([400, 404].contains(&reply.status.as_u16()), "{kind}/{id}: {}", reply.status);
            assert!(!reply.text.contains("root:"));
        }
    }
}
