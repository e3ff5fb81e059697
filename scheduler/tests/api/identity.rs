//! Tokens, scopes, policies: S01, S02, S03, A80, A84.

use coracle_scheduler::model::Role;
use coracle_scheduler::server::{Policy, routes};
use reqwest::Method;
use serde_json::json;

use crate::support::{DEADLINE, Env, instance, raw, until};

#[tokio::test]
async fn s01_the_database_holds_no_usable_secret() {
    let env = Env::start().await;
    let (_, _, member) = env.tenant("a", "member").await;
    let (_, agent) = env.provider(&env.admin, "p1").await;
    let join = env.post(&env.admin, "/v1/joins", json!({ "provider_name": "p2", "ttl_ms": 60_000 })).await.expect(201);
    let join = join["secret"].as_str().expect("secret").to_owned();
    let mut dump = String::new();
    for entry in fs_err::read_dir(env.folder.path()).expect("folder") {
        dump.push_str(&raw(&entry.expect("entry").path()));
    }
    assert!(dump.contains("cpu_millis") || dump.contains("record"), "the dump is of nothing");
    for secret in [&env.admin, &member, &agent, &join] {
        assert_eq!(secret.len(), 4 + 64);
        assert!(!dump.contains(secret.as_str()) && !dump.contains(&secret[4..]), "a secret is in the database");
    }
}

#[tokio::test]
async fn s01_a_token_counts_in_its_header_only_and_no_answer_shows_it() {
    let env = Env::start().await;
    assert_eq!(env.get(&env.admin, "/v1/whoami").await.status, 200);
    for path in ["access_token", "token", "authorization"] {
        let path = format!("/v1/whoami?{path}={}", env.admin);
        assert_eq!(env.get("", &path).await.status, 401);
    }
    for path in [
        "/v1/tokens",
        "/v1/joins",
        "/v1/audit",
        "/v1/events",
        "/v1/users",
        "/v1/providers",
        "/metrics",
        "/v1/openapi.json",
    ] {
        let reply = env.get(&env.admin, path).await;
        assert_eq!(reply.status, 200, "{path}");
        assert!(!reply.text.contains(&env.admin[4..]), "a80: {path} shows a secret");
        assert!(!reply.text.contains("\"hash\":\"") || path == "/v1/audit", "{path} shows a hash");
    }
    let two = [("authorization", "Bearer x")];
    let reply = env.call_with(&env.admin, Method::GET, "/v1/whoami", None, &two).await;
    assert_eq!(reply.status, 401, "two credentials are none");
}

/// Who may pass a policy.
fn admitted(policy: Policy, who: &str) -> bool {
    match (policy, who) {
        (Policy::Open, _) => true,
        (Policy::Agent | Policy::Renew, who) => who == "agent",
        (Policy::User(Role::Reader), who) => ["reader", "member", "admin"].contains(&who),
        (Policy::User(Role::Member), who) => ["member", "admin"].contains(&who),
        (Policy::User(Role::Admin), who) => who == "admin",
        (Policy::Join, _) => false,
    }
}

#[tokio::test]
async fn s02_every_route_holds_its_policy_for_every_role() {
    let env = Env::start().await;
    let (group, _, member) = env.tenant("a", "member").await;
    let (_, reader) = env.user(&group, "r", "reader").await;
    let (_, agent) = env.provider(&member, "p1").await;
    let callers = [
        ("nobody", ""),
        ("stranger", "crc_00"),
        ("reader", &reader),
        ("member", &member),
        ("admin", &env.admin),
        ("agent", &agent),
    ];
    let mut checked = 0;
    for route in routes() {
        // An id of nothing: whoever passes the policy gets past 401 and 403, and nothing is changed by it.
        let path = route.path.replace("{id}", "00000000000000000000000000").replace("{*id}", "a/manifests/b");
        let body = (route.policy == Policy::Join).then(|| json!({ "name": "p9" }));
        for (who, token) in callers {
            let reply = env.call(token, route.method.clone(), &path, body.clone()).await;
            let refused = [401, 403].contains(&reply.status.as_u16());
            assert_eq!(!refused, admitted(route.policy, who), "{who} {} {}: {}", route.method, route.path, reply.text);
            if refused {
                let known = who != "nobody" && who != "stranger" && route.policy != Policy::Join;
                assert_eq!(reply.status, if known { 403 } else { 401 }, "{who} {}", route.path);
                let form = if route.is_described() { "application/problem+json" } else { "application/json" };
                assert_eq!(reply.headers["content-type"], form);
            }
            checked += 1;
        }
    }
    assert!(checked >= 6 * 50, "only {checked} cells");
}

#[tokio::test]
async fn s02_no_token_makes_a_stronger_one_and_expired_or_revoked_ones_end() {
    let env = Env::start().await;
    let (_, user, member) = env.tenant("a", "member").await;
    env.post(&member, "/v1/tokens", json!({ "role": "admin", "ttl_ms": 1000 })).await.expect(403);
    let reader = env.post(&member, "/v1/tokens", json!({ "role": "reader", "ttl_ms": 60_000 })).await.expect(201);
    let reader = reader["secret"].as_str().expect("secret").to_owned();
    env.post(&reader, "/v1/tokens", json!({ "role": "member", "ttl_ms": 1000 })).await.expect(403);
    env.post(&reader, "/v1/instances", instance("x")).await.expect(403);
    let short = env.post(&member, "/v1/tokens", json!({ "role": "reader", "ttl_ms": 1000 })).await.expect(201);
    let short = short["secret"].as_str().expect("secret").to_owned();
    until("the end of a token", async || (env.get(&short, "/v1/whoami").await.status == 401).then_some(())).await;
    // With the user go all its tokens.
    env.delete(&env.admin, &format!("/v1/users/{user}")).await.expect(204);
    for token in [&member, &reader] {
        env.get(token, "/v1/whoami").await.expect(401);
    }
}

#[tokio::test]
async fn s03_a_join_token_works_once_for_its_name_and_not_after_its_time() {
    let env = Env::start().await;
    let join =
        |name: &str, ttl: u64| env.post(&env.admin, "/v1/joins", json!({ "provider_name": name, "ttl_ms": ttl }));
    join("p", 3_600_001).await.expect(422);
    join("p", 999).await.expect(422);
    let made = join("p1", 60_000).await.expect(201);
    let secret = made["secret"].as_str().expect("secret");
    env.post(secret, "/v1/join", json!({ "name": "other" })).await.expect(401);
    let tries: Vec<_> = (0..8).map(|_| env.post(secret, "/v1/join", json!({ "name": "p1" }))).collect();
    let answers = futures_util::future::join_all(tries).await;
    let won = answers.iter().filter(|reply| reply.status == 201).count();
    assert_eq!(won, 1, "used in parallel, exactly one wins");
    assert!(answers.iter().all(|reply| [201, 401].contains(&reply.status.as_u16())));
    let made = join("p2", 1000).await.expect(201);
    let secret = made["secret"].as_str().expect("secret").to_owned();
    until("the end of a join token", async || {
        let listed = env.get(&env.admin, "/v1/joins").await.expect(200);
        listed["items"].as_array().expect("items").iter().all(|item| item["provider_name"] != "p2").then_some(())
    })
    .await;
    env.post(&secret, "/v1/join", json!({ "name": "p2" })).await.expect(401);
    let made = join("p3", 60_000).await.expect(201);
    env.delete(&env.admin, &format!("/v1/joins/{}", made["id"].as_str().expect("id"))).await.expect(204);
    env.post(made["secret"].as_str().expect("secret"), "/v1/join", json!({ "name": "p3" })).await.expect(401);
    // An API token is no join token, and a join token is no API token.
    env.post(&env.admin, "/v1/join", json!({ "name": "p4" })).await.expect(401);
}

#[tokio::test]
async fn s03_guessing_join_tokens_is_slowed_down() {
    let env = Env::start().await;
    let mut limited = false;
    for number in 0..40 {
        let reply = env.post(&format!("crj_{number}"), "/v1/join", json!({ "name": "p" })).await;
        if reply.status == 429 {
            assert!(reply.headers.contains_key("retry-after"));
            limited = true;
        }
    }
    assert!(limited);
    // Ordinary requests have their own bucket.
    env.get(&env.admin, "/v1/whoami").await.expect(200);
}

#[tokio::test]
async fn s03_revoking_a_provider_ends_its_sync() {
    let env = Env::start().await;
    let (provider, agent) = env.provider(&env.admin, "p1").await;
    let hello = json!({ "protocol_min": 1, "protocol_max": 1, "incarnation": 1, "boot_id": "b", "capacity": {} });
    let session = env.post(&agent, "/v1/agent/hello", hello).await.expect(200)["session"].clone();
    env.delete(&env.admin, &format!("/v1/providers/{provider}")).await.expect(204);
    let sync = json!({ "session": session, "seq": 1, "applied": 0 });
    env.post(&agent, "/v1/agent/sync", sync).await.expect(401);
}

#[tokio::test]
async fn a84_a_stream_ends_soon_after_its_token() {
    let env = Env::start().await;
    let (_, _, member) = env.tenant("a", "member").await;
    let made = env.post(&member, "/v1/tokens", json!({ "role": "reader", "ttl_ms": 600_000 })).await.expect(201);
    let (id, reader) = (made["id"].as_str().expect("id"), made["secret"].as_str().expect("secret"));
    let request = env.http.get(format!("{}/v1/events", env.base())).bearer_auth(reader);
    let mut stream = request.header("accept", "text/event-stream").send().await.expect("stream");
    assert_eq!(stream.status(), 200);
    assert!(stream.chunk().await.expect("chunk").is_some(), "the stream is open");
    env.delete(&member, &format!("/v1/tokens/{id}")).await.expect(204);
    let end = async { while stream.chunk().await.expect("chunk").is_some() {} };
    tokio::time::timeout(DEADLINE, end).await.expect("an end");
}
