//! Texts that want to be commands, URLs and secrets: S11, S12, S30, A80.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use coracle_scheduler::server::{Log, Sink};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Env, instance, raw};

/// A server whose log is kept.
async fn logged() -> (Env, Arc<Mutex<Vec<String>>>) {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let sink = Sink::Memory(Arc::clone(&lines));
    let env = Env::with(|options| options.log = Log { sink, requests: true }).await;
    (env, lines)
}

const HOSTILE: [&str; 6] = [
    "a'; DROP TABLE record; --",
    "x\r\nSet-Cookie: a=b",
    "\u{1b}[31mred\u{7}",
    "%00' OR '1'='1",
    "=cmd|'/c calc'!A1",
    "{\"at_ms\":1}\n{\"level\":\"error\"}",
];

#[tokio::test(flavor = "multi_thread")]
async fn s11_no_text_becomes_sql_a_header_or_a_line_of_the_log() {
    let (env, lines) = logged().await;
    let (_, agent) = env.provider(&env.admin, "p1").await;
    let hello = json!({ "protocol_min": 1, "protocol_max": 1, "incarnation": 1, "boot_id": "b", "accepting": true,
        "capacity": { "cpu_millis": 4000, "memory_bytes": 1 << 30 } });
    let session = env.post(&agent, "/v1/agent/hello", hello).await.expect(200)["session"].clone();
    for (number, text) in HOSTILE.into_iter().enumerate() {
        let name = format!("i{number}");
        let mut body = instance(&name);
        body["spec"]["labels"] = json!({ "note": text });
        body["spec"]["command"] = json!(["sh", "-c", text]);
        let reply = env.post(&env.admin, "/v1/instances", body).await;
        if reply.status == 201 {
            // What was taken comes back as it was given, and the tables are still there.
            let id = reply.body["id"].as_str().expect("id").to_owned();
            let found = env.get(&env.admin, &format!("/v1/instances/{id}")).await.expect(200);
            assert_eq!(found["spec"]["command"][2], text);
            let statuses =
                json!([{ "instance": id, "epoch": found["epoch"], "phase": "exited", "code": 1, "reason": text }]);
            let sync =
                json!({ "session": session, "seq": number + 1, "applied": 0, "accepting": true, "statuses": statuses });
            env.post(&agent, "/v1/agent/sync", sync).await.expect(200);
        } else {
            assert_eq!(reply.status, 422, "{text:?}: {}", reply.text);
        }
        for path in ["/v1/instances?after=", "/v1/instances?state=", "/v1/events?after=", "/v1/audit?group="] {
            let mut url = reqwest::Url::parse(&env.base()).expect("url");
            let (path, query) = path.split_once('?').expect("query");
            url.set_path(path);
            url.query_pairs_mut().append_pair(query.trim_end_matches('='), text);
            let reply = env.http.get(url).bearer_auth(&env.admin).send().await.expect("answer");
            assert!([404, 422].contains(&reply.status().as_u16()), "{path} {text:?}: {}", reply.status());
            assert!(!reply.headers().contains_key("set-cookie"));
        }
        let id: String = text.chars().filter(char::is_ascii_graphic).collect();
        let reply = env.call_with(&env.admin, Method::GET, "/v1/whoami", None, &[("x-request-id", &id)]).await;
        assert_eq!(reply.status, 200);
    }
    let events = env.get(&env.admin, "/v1/events?limit=1000").await.expect(200).to_string();
    assert!(!events.contains("\\u001b") && !events.contains("\\r"), "{events}");
    let lines = lines.lock().expect("lines");
    assert!(lines.len() > 20, "{}", lines.len());
    for line in lines.iter() {
        assert!(!line.chars().any(char::is_control) && !line.contains("\\u001b") && !line.contains("\\n"), "{line}");
        let line: Value = serde_json::from_str(line).expect("json");
        assert!(line["event"].is_string() && line["at_ms"].as_u64() > Some(1), "{line}");
    }
}

/// Lists the dotted names of every text that a body may have.
fn texts(document: &Value, schema: &Value, at: &str, seen: &mut Vec<String>, found: &mut BTreeSet<String>) {
    if let Some(name) = schema["$ref"].as_str() {
        if seen.iter().any(|earlier| earlier == name) {
            return;
        }
        seen.push(name.to_owned());
        let target = document.pointer(name.trim_start_matches('#')).expect("target");
        texts(document, target, at, seen, found);
        seen.pop();
        return;
    }
    for key in ["oneOf", "allOf", "anyOf"] {
        for part in schema[key].as_array().into_iter().flatten() {
            texts(document, part, at, seen, found);
        }
    }
    for (name, part) in schema["properties"].as_object().into_iter().flatten() {
        texts(document, part, name, seen, found);
    }
    for inner in ["items", "additionalProperties", "propertyNames"] {
        if schema[inner].is_object() {
            texts(document, &schema[inner], at, seen, found);
        }
    }
    let kind = schema["type"].to_string();
    if kind.contains("\"string\"") && schema["enum"].is_null() && schema["pattern"].is_null() {
        found.insert(at.to_owned());
    }
}

#[tokio::test]
async fn s12_no_request_has_a_url_that_the_scheduler_would_follow() {
    let env = Env::start().await;
    let document = env.get("", "/v1/openapi.json").await.expect(200);
    let mut found = BTreeSet::new();
    for (_, path) in document["paths"].as_object().expect("paths") {
        for (_, operation) in path.as_object().expect("operations") {
            let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
            texts(&document, schema, "", &mut Vec::new(), &mut found);
        }
    }
    let found: Vec<&str> = found.iter().map(String::as_str).collect();
    // Whoever adds a text decides here whether it is an address that the scheduler connects to. None of these is: the
    // image and what is beside it travel to the agent unread, and the scheduler dials nobody but its database.
    let known = [
        "affinities",
        "boot_id",
        "cap_drop",
        "command",
        "constraints",
        "entrypoint",
        "env",
        "facts",
        "file",
        "health_command",
        "hostname",
        "image",
        "key",
        "keys",
        "labels",
        "path",
        "reason",
        "request",
        "stop_signal",
        "tmpfs",
        "user",
        "value",
        "workdir",
    ];
    assert_eq!(found, known);
}

#[tokio::test(flavor = "multi_thread")]
async fn s30_a80_no_output_and_no_file_shows_a_secret() {
    let (env, lines) = logged().await;
    let (_, agent) = env.provider(&env.admin, "p1").await;
    let (_, _, member) = env.tenant("a", "member").await;
    let join = env.post(&env.admin, "/v1/joins", json!({ "provider_name": "p2", "ttl_ms": 60_000 })).await.expect(201);
    let join = join["secret"].as_str().expect("secret").to_owned();
    env.post(&member, "/v1/instances", instance("web")).await.expect(201);
    // Secrets in places where they do not belong are refused without being repeated.
    let mut everything = String::new();
    for secret in [&env.admin, &agent, &member, &join] {
        let reply = env.get(secret, &format!("/v1/instances/{secret}")).await;
        everything.push_str(&reply.text);
        let reply = env.post(secret, "/v1/instances", json!({ "name": secret })).await;
        everything.push_str(&reply.text);
        let reply =
            env.call_with("", Method::GET, "/v1/whoami", None, &[("authorization", &format!("Basic {secret}"))]).await;
        everything.push_str(&reply.text);
    }
    for path in [
        "/v1/tokens",
        "/v1/joins",
        "/v1/users",
        "/v1/groups",
        "/v1/providers",
        "/v1/instances",
        "/v1/events",
        "/v1/audit",
        "/v1/usage",
        "/v1/services",
        "/v1/jobs",
        "/v1/volumes",
        "/v1/secrets",
        "/metrics",
        "/v1/openapi.json",
        "/v1/whoami",
    ] {
        everything.push_str(&env.get(&env.admin, path).await.text);
    }
    for entry in fs_err::read_dir(env.folder.path()).expect("folder") {
        everything.push_str(&raw(&entry.expect("entry").path()));
    }
    let copy = env.folder.path().join("copy.db");
    env.options.store.backup(&copy).expect("backup");
    everything.push_str(&raw(&copy));
    everything.push_str(&lines.lock().expect("lines").join("\n"));
    everything.push_str(&format!("{:?}", env.options));
    assert!(everything.len() > 100_000, "too little was looked at");
    for secret in [&env.admin, &agent, &member, &join] {
        let shown = everything.find(&secret[4..]).map(|at| everything[at.saturating_sub(200)..at].to_owned());
        assert_eq!(shown, None);
    }
}
