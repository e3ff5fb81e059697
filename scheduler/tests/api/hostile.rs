//! Requests that are too large, too deep, too slow or ambiguous: S13, S14, S15, S16, A86.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use coracle_scheduler::server::{BODY_BYTES, JSON_DEPTH, Rate, URL_BYTES};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Env, instance};

async fn raw_body(env: &Env, body: Vec<u8>, headers: &[(&str, &str)]) -> u16 {
    let mut request = env.http.post(format!("{}/v1/instances/dry-run", env.base())).bearer_auth(&env.admin);
    for (key, value) in headers {
        request = request.header(*key, *value);
    }
    request.body(body).send().await.expect("answer").status().as_u16()
}

#[tokio::test]
async fn s13_limits_hold_to_the_byte() {
    let env = Env::start().await;
    let padded = |size: usize| {
        let mut body = serde_json::to_vec(&instance("x")).expect("body");
        body.resize(size, b' ');
        body
    };
    assert_eq!(raw_body(&env, padded(BODY_BYTES), &[]).await, 200);
    assert_eq!(raw_body(&env, padded(BODY_BYTES + 1), &[]).await, 413);
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth)).into_bytes();
    assert_eq!(raw_body(&env, nested(JSON_DEPTH + 1), &[]).await, 400);
    assert_eq!(raw_body(&env, nested(JSON_DEPTH), &[]).await, 422);
    assert_eq!(raw_body(&env, b"{".to_vec(), &[]).await, 400);
    assert_eq!(raw_body(&env, padded(400), &[("content-encoding", "gzip")]).await, 415);
    let path = |length: usize| format!("/v1/whoami?a={}", "x".repeat(length - "/v1/whoamia=".len()));
    env.get(&env.admin, &path(URL_BYTES)).await.expect(200);
    env.get(&env.admin, &path(URL_BYTES + 1)).await.expect(414);
    let parameters = |count: usize| format!("/v1/whoami?{}", vec!["a=1"; count].join("&"));
    env.get(&env.admin, &parameters(100)).await.expect(200);
    env.get(&env.admin, &parameters(101)).await.expect(400);
    let large = "x".repeat(20 * 1024);
    let reply = env.call_with(&env.admin, Method::GET, "/v1/whoami", None, &[("x-large", &large)]).await;
    assert_eq!(reply.status, 431);
}

/// Sends bytes and returns the answer up to the end of the connection or a second of silence.
fn talk(env: &Env, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(env.address()).expect("connect");
    stream.set_read_timeout(Some(Duration::from_secs(1))).expect("timeout");
    stream.write_all(bytes).expect("write");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn s15_ambiguous_requests_never_become_two() {
    let env = Env::start().await;
    let smuggled = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
    let head = "POST /v1/join HTTP/1.1\r\nHost: x\r\n";
    for (name, request) in [
        ("cl_and_te", format!("{head}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}")),
        ("two_lengths", format!("{head}Content-Length: 0\r\nContent-Length: {}\r\n\r\n{smuggled}", smuggled.len())),
        ("list_of_lengths", format!("{head}Content-Length: 0, {}\r\n\r\n{smuggled}", smuggled.len())),
        ("length_with_sign", format!("{head}Content-Length: +0\r\n\r\n{smuggled}")),
        ("blank_before_colon", format!("{head}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n{smuggled}")),
        ("unknown_coding", format!("{head}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{smuggled}")),
        ("bad_chunk_size", format!("{head}Transfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n{smuggled}")),
        ("huge_chunk_size", format!("{head}Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n\r\n{smuggled}")),
        ("folded_header", format!("{head}Content-Length: 0\r\n 1\r\n\r\n{smuggled}")),
        ("null_in_header", format!("{head}X-A: a\0b\r\n\r\n{smuggled}")),
    ] {
        let answer = talk(&env, request.as_bytes());
        let answers = answer.matches("HTTP/1.1 ").count();
        let healthy = answer.contains("HTTP/1.1 200");
        // `cl_and_te` may be read as chunked, which RFC 9112 allows, if the connection then ends.
        assert!(answers <= 1 && !healthy, "{name}: {answer}");
    }
    let answer = talk(&env, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 2, "the check can see two answers");
}

#[tokio::test(flavor = "multi_thread")]
async fn s14_slow_heads_and_bodies_are_cut_and_do_not_slow_others() {
    let env = Env::with(|options| {
        options.limits.header_time = Duration::from_millis(800);
        options.body_time = Duration::from_millis(800);
        options.limits.per_address = 600;
    })
    .await;
    let mut slow: Vec<TcpStream> = (0..500)
        .map(|_| {
            let mut stream = TcpStream::connect(env.address()).expect("connect");
            stream.write_all(b"GET /v1/whoami HTTP/1.1\r\nHost: x\r\nX-A: ").expect("write");
            stream
        })
        .collect();
    let mut times = Vec::new();
    for _ in 0..50 {
        let start = Instant::now();
        env.get(&env.admin, "/v1/whoami").await.expect(200);
        times.push(start.elapsed());
    }
    times.sort();
    assert!(times[48] < Duration::from_millis(500), "a healthy client waits {:?}", times[48]);
    for stream in slow.iter_mut().step_by(50) {
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("timeout");
        let start = Instant::now();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(start.elapsed() < Duration::from_secs(50), "a slow head is kept");
    }
    drop(slow);
    let request = format!(
        "POST /v1/groups HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Length: 9\r\n\r\n{{",
        env.admin
    );
    let mut stream = TcpStream::connect(env.address()).expect("connect");
    stream.write_all(request.as_bytes()).expect("write");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("timeout");
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 408");
}

#[tokio::test(flavor = "multi_thread")]
async fn s14_one_address_has_so_many_connections_and_no_more() {
    let env = Env::with(|options| options.limits.per_address = 5).await;
    let held: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(env.address()).expect("connect")).collect();
    let mut open = 0;
    for mut stream in held.iter() {
        stream.set_read_timeout(Some(Duration::from_millis(300))).expect("timeout");
        // A closed connection reads its end at once; an open one has nothing to say.
        open += usize::from(stream.read(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock));
    }
    assert_eq!(open, 5);
}

#[tokio::test]
async fn s16_a_token_that_asks_too_often_is_told_when_to_come_back() {
    let env = Env::with(|options| options.token_rate = Rate { per_s: 0.1, burst: 5.0 }).await;
    let mut answers = Vec::new();
    for _ in 0..8 {
        answers.push(env.get(&env.admin, "/v1/whoami").await);
    }
    let limited: Vec<_> = answers.iter().filter(|reply| reply.status == 429).collect();
    assert!(limited.len() >= 2);
    assert!(limited[0].headers["retry-after"].to_str().expect("text").parse::<u64>().expect("seconds") >= 1);
    assert_eq!(limited[0].body["type"], "about:blank#rate");
}

#[tokio::test]
async fn a86_no_spec_makes_the_scheduler_stumble() {
    let env = Env::start().await;
    let job = |spec: Value| env.post(&env.admin, "/v1/jobs", json!({ "spec": spec }));
    let template = json!({ "image": "a" });
    for spec in [
        json!({ "name": "j", "template": template, "count": 0 }),
        json!({ "name": "j", "template": template, "count": 10_001 }),
        json!({ "name": "j", "template": template, "count": 4_294_967_295u64 }),
        json!({ "name": "j", "template": template, "count": 257, "gang": true }),
        json!({ "name": "j", "template": template, "retries": 1_000_000 }),
        json!({ "name": "j", "template": template, "time_limit_ms": 0 }),
        json!({ "name": "j", "template": template, "time_limit_ms": u64::MAX }),
        json!({ "name": "j", "template": { "image": "a", "ttl_ms": u64::MAX } }),
        json!({ "name": "j", "template": { "image": "a", "resources": { "cpu_millis": u64::MAX } } }),
        json!({ "name": "j", "template": { "image": "a", "resources": { "cpu_millis": -1 } } }),
        json!({ "name": "j", "template": { "image": "a", "env": vec!["A=1"; 257] } }),
        json!({ "name": "j", "template": { "image": "a", "constraints": vec!["ab==c"; 33] } }),
        json!({ "name": "j", "template": { "image": "a", "constraints": ["ab==/(a{1000}){1000}/"] } }),
        json!({ "name": "j", "template": { "image": "a", "constraints": ["ab=~(((((((((((a{90}){90}){90}){90}){90}))))))"] } }),
        json!({ "name": "j", "template": { "image": "a", "ports": [{ "host": 0, "container": 1 }] } }),
        json!({ "name": "j", "template": { "image": "a", "unknown": 1 } }),
        json!({ "name": "j\u{0}", "template": template }),
        json!({ "name": "j", "template": { "image": "a\nb" } }),
        json!({ "name": "j", "template": { "image": "a", "env": ["A=\u{0}"] } }),
        json!({ "name": "j", "template": template, "depends_on": vec!["00000000000000000000000000"; 33] }),
    ] {
        let reply = job(spec.clone()).await;
        assert!((400..500).contains(&reply.status.as_u16()), "{spec}: {}", reply.text);
    }
    // The largest honest job is taken, and the scheduler stays quick while it is worked on.
    job(json!({ "name": "big", "template": template, "count": 10_000, "parallel": 10_000 })).await.expect(201);
    let mut worst = Duration::ZERO;
    for _ in 0..20 {
        let start = Instant::now();
        env.get(&env.admin, "/v1/whoami").await.expect(200);
        worst = worst.max(start.elapsed());
    }
    assert!(worst < Duration::from_secs(10), "a healthy client waits {worst:?}");
}
