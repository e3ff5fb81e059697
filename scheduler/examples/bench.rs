//! Measures a scheduler as users meet it: the real command in a process of its own, light agents over real HTTP.
//!
//! `bench COMMAND STORE-OR-EMPTY SVG-FILE` prints each number beside issue 7's target. Called by `tests/bench/scheduler`.
#![expect(clippy::print_stdout, reason = "the numbers are the point")]
#![expect(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a measurement that fails is no measurement")]

#[path = "bench/cost.rs"]
mod cost;
#[path = "bench/pool.rs"]
mod pool;

use std::time::{Duration, Instant};

use pool::{Pool, percentile};

/// Providers and instances of the pool that is measured.
const PROVIDERS: usize = 1_000;
const INSTANCES: usize = 30_000;
/// Clients that ask at once.
const CLIENTS: usize = 64;
/// Agents that only beat.
const BEATING: usize = 5_000;

fn say(what: &str, value: String, target: &str) {
    println!("{what:<58} {value:>14}   target {target}");
}

fn ms(times: &mut [Duration], part: f64) -> String {
    format!("{:.1} ms", percentile(times, part).as_secs_f64() * 1000.0)
}

fn main() {
    let mut args = std::env::args().skip(1);
    let (command, store, svg) = (args.next().unwrap(), args.next().unwrap(), args.next().unwrap());
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut pool = Pool::start(&command, &store).await;
        pool.join(PROVIDERS).await;
        pool.fill(INSTANCES).await;
        placements(&pool).await;
        reads(&pool).await;
        let start = Instant::now();
        pool.restart().await;
        say("restart with 30,000 instances", format!("{:.2} s", start.elapsed().as_secs_f64()), "< 3 s");
    });
    if !store.is_empty() {
        // Beats write nothing and a placement in the core knows no store: the default store's run has shown them.
        return;
    }
    runtime.block_on(async {
        let mut pool = Pool::start(&command, "").await;
        pool.join(BEATING).await;
        beats(&pool).await;
    });
    cost::plot(&svg);
}

async fn placements(pool: &Pool) {
    let mut times = Vec::new();
    for number in 0..500 {
        let start = Instant::now();
        pool.ask(&pool.token, &format!("one-{number}")).await;
        times.push(start.elapsed());
    }
    say("decision, one client (request to durable answer) p50", ms(&mut times, 0.5), "-");
    say("decision, one client (request to durable answer) p99", ms(&mut times, 0.99), "< 10 ms");
    let mut delays = pool.delays().await;
    say("accepted to agent p99", ms(&mut delays, 0.99), "< 250 ms");
    // A token each: one token may ask 500 times a second.
    let mut tokens = Vec::new();
    for _ in 0..CLIENTS {
        tokens.push(pool.new_token().await);
    }
    let (start, cpu, commits) = (Instant::now(), pool.cpu(), pool.commits().await);
    let clients = tokens.iter().enumerate().map(|(client, token)| async move {
        let mut made = 0u32;
        while start.elapsed() < Duration::from_secs(5) {
            pool.ask(token, &format!("many-{client}-{made}")).await;
            made += 1;
        }
        made
    });
    let made: u32 = futures_util::future::join_all(clients).await.into_iter().sum();
    let (rate, cpu) = (f64::from(made) / start.elapsed().as_secs_f64(), (pool.cpu() - cpu).as_secs_f64());
    say("durable placements, 64 clients", format!("{rate:.0}/s"), ">= 2000/s SQLite, >= 1000/s PostgreSQL");
    let each = cpu * 1e6 / f64::from(made);
    say("... the scheduler's CPU for each, reports included", format!("{each:.0} us"), "-");
    let shared = f64::from(made) / (pool.commits().await - commits) as f64;
    say("... placements of one commit", format!("{shared:.1}"), "-");
}

async fn reads(pool: &Pool) {
    let (mut lists, mut shows) = (Vec::new(), Vec::new());
    for _ in 0..200 {
        let start = Instant::now();
        let list = pool.get("/v1/instances?limit=100").await;
        lists.push(start.elapsed());
        let id = list["items"][50]["id"].as_str().unwrap().to_owned();
        let start = Instant::now();
        pool.get(&format!("/v1/instances/{id}")).await;
        shows.push(start.elapsed());
    }
    say("list 100 of 30,000 p99", ms(&mut lists, 0.99), "< 100 ms");
    say("inspect p99", ms(&mut shows, 0.99), "< 100 ms");
}

async fn beats(pool: &Pool) {
    let (commits, cpu, start) = (pool.commits().await, pool.cpu(), Instant::now());
    tokio::time::sleep(Duration::from_secs(20)).await;
    let used = (pool.cpu() - cpu).as_secs_f64() / start.elapsed().as_secs_f64();
    say("5,000 agents at 10 s: CPU of one core", format!("{:.1} %", used * 100.0), "< 20 %");
    say("5,000 agents at 10 s: durable writes", (pool.commits().await - commits).to_string(), "0");
}
