//! The time of one placement in the core, from a hundred providers to ten thousand, as a plot.

use std::fmt::Write as _;
use std::time::Instant;

use coracle_scheduler::core::{Action, Answer, Event, Options, Request, State, Wish, authenticate, step};
use coracle_scheduler::model::*;

/// Placements that are measured for each size.
const PLACEMENTS: u32 = 2_000;
/// Rounds for each size, of which the median counts: the first one meets cold caches.
const ROUNDS: usize = 3;
const SIZES: [u64; 5] = [100, 300, 1_000, 3_000, 10_000];

fn ask(state: &mut State, actor: Option<Actor>, wish: Wish) -> Key {
    let request = Request { actor, id: "r".to_owned(), key: None, digest: String::new(), wish };
    let actions = step(state, 1_000_000, Event::Request { ticket: 1, request: Box::new(request) });
    let answer = actions.into_iter().find_map(|action| match action {
        Action::Answer(1, answer) => answer.ok(),
        _ => None,
    });
    let Some(Answer::Object(key)) = answer else { panic!("{answer:?}") };
    key
}

fn measure(providers: u64) -> f64 {
    let name = |text: &str| text.parse::<Name>().unwrap();
    let mut state = State::new(Options::default(), [7; 32]);
    ask(&mut state, None, Wish::Bootstrap { group: name("ops"), user: name("root"), hash: "root".to_owned() });
    let admin = authenticate(&state, 1_000_000, "root").unwrap();
    for number in 0..providers {
        let (provider, hash) = (name(&format!("p{number}")), format!("j{number}"));
        let (group, tier, ttl_ms) = (admin.group, Tier::New, 60_000);
        ask(
            &mut state,
            Some(admin),
            Wish::CreateJoin { group, name: provider.clone(), tier, ttl_ms, hash: hash.clone() },
        );
        let join = Wish::Join { join_hash: hash, name: provider, hash: format!("a{number}"), key: String::new() };
        let Key::Provider(id) = ask(&mut state, None, join) else { panic!("no provider") };
        let capacity =
            Resources { cpu_millis: 64_000, memory_bytes: 64 << 30, disk_bytes: 1 << 40, ..Resources::default() };
        let hello = Hello {
            protocol_min: PROTOCOL_MIN,
            protocol_max: PROTOCOL_MAX,
            incarnation: 1,
            boot_id: "b".to_owned(),
            capacity,
            price: 0,
            accepting: true,
            drain_ms: None,
            facts: Default::default(),
            running: Vec::new(),
        };
        step(&mut state, 1_000_000, Event::Hello { ticket: 2, provider: id, hello: Box::new(hello) });
    }
    let start = Instant::now();
    for _ in 0..PLACEMENTS {
        let resources = Resources { cpu_millis: 100, memory_bytes: 100 << 20, ..Resources::default() };
        let spec = InstanceSpec { image: "a".to_owned(), resources, ..InstanceSpec::default() };
        ask(&mut state, Some(admin), Wish::CreateInstance { group: admin.group, name: None, spec: Box::new(spec) });
    }
    start.elapsed().as_secs_f64() * 1e6 / f64::from(PLACEMENTS)
}

/// Measures, prints and writes the plot: pool size by its logarithm, time in microseconds.
pub fn plot(path: &str) {
    let median = |size: u64| {
        let mut costs: Vec<f64> = (0..ROUNDS).map(|_| measure(size)).collect();
        costs.sort_by(f64::total_cmp);
        costs[ROUNDS / 2]
    };
    let costs: Vec<(u64, f64)> = SIZES.iter().map(|size| (*size, median(*size))).collect();
    let most = costs.iter().map(|(_, cost)| *cost).fold(1.0, f64::max);
    let mut points = String::new();
    let mut labels = String::new();
    for (size, cost) in &costs {
        println!("{:<58} {cost:>11.1} us", format!("one placement in the core at {size} providers"));
        let (x, y) = (60.0 + ((*size as f64).log10() - 2.0) * 250.0, 260.0 - cost / most * 220.0);
        let _ = write!(points, "{x:.0},{y:.0} ");
        let _ = write!(
            labels,
            "<text x='{x:.0}' y='280' text-anchor='middle'>{size}</text><circle cx='{x:.0}' cy='{y:.0}' r='3'/><text x='{x:.0}' y='{:.0}' text-anchor='middle'>{cost:.0} us</text>",
            y - 8.0
        );
    }
    let growth = costs[costs.len() - 1].1 / costs[0].1;
    println!(
        "{:<58} {growth:>13.2}x   target <= 2x (log10 of the pool doubles)",
        "growth from 100 to 10,000 providers"
    );
    let svg = format!(
        "<svg xmlns='http://www.w3.org/2000/svg' width='640' height='300' font-family='sans-serif' font-size='12'><text x='10' y='16'>time of one placement by providers in the pool (log)</text><polyline fill='none' stroke='black' points='{points}'/>{labels}</svg>\n"
    );
    fs_err::write(path, svg).unwrap();
}
