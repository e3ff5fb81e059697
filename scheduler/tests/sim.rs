//! The simulator: one scheduler, many agents, a network that loses, delays, repeats and reorders, crashes on both
//! sides, clocks that run apart. Everything follows from a seed; the invariants hold after every step.
//!
//! A failing seed is printed; `CORACLE_SIM_SEED=<seed> cargo nextest run -p coracle-scheduler one_seed` replays it.
//! `CORACLE_SIM_SEEDS=<n>` asks for another number of seeds. Without optimisation (`OPT_LEVEL` 0, see `build.rs`) the
//! defaults are smaller, so that the suite stays within minutes.

#![expect(clippy::disallowed_methods, reason = "a failing seed is replayed by the environment")]
#![expect(clippy::cast_possible_truncation, reason = "dice are cut to small numbers")]
#![expect(clippy::print_stderr, reason = "a person asks for what a world did")]

mod world;

use world::{Options, World};

fn from_env(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

fn run(seed: u64, options: &Options) {
    let outcome = std::panic::catch_unwind(|| World::new(seed, options.clone()).run());
    if outcome.is_err() {
        panic!(
            "seed {seed} fails; replay: CORACLE_SIM_SEED={seed} cargo nextest run -p coracle-scheduler one_seed --no-capture"
        );
    }
}

/// Seeds that are tried when none are asked for.
const SEEDS: u64 = if cfg!(optimised) { 1_000 } else { 240 };

/// Seeds are cut into slices so that a test runner can use all cores.
fn slice(part: u64) {
    let seeds = from_env("CORACLE_SIM_SEEDS").unwrap_or(SEEDS);
    let options = Options::small();
    for seed in (0..seeds).filter(|seed| seed % 4 == part) {
        run(seed, &options);
    }
}

#[test]
fn many_seeds_0() {
    slice(0);
}

#[test]
fn many_seeds_1() {
    slice(1);
}

#[test]
fn many_seeds_2() {
    slice(2);
}

#[test]
fn many_seeds_3() {
    slice(3);
}

#[test]
fn one_seed() {
    run(from_env("CORACLE_SIM_SEED").unwrap_or(4_711), &Options::small());
}

#[test]
fn the_same_seed_gives_the_same_history() {
    let (mut left, mut right) = (World::new(7, Options::small()), World::new(7, Options::small()));
    left.run();
    right.run();
    assert_eq!(left.history, right.history);
    let mut other = World::new(8, Options::small());
    other.run();
    assert_ne!(left.history, other.history);
}

#[test]
fn ten_thousand_providers_and_a_hundred_thousand_instances() {
    // A tenth of it without optimisation, unless asked for; the name says what CI runs.
    let full = cfg!(optimised) || from_env("CORACLE_SIM_FULL").is_some();
    let (providers, instances) = if full { (10_000, 100_000) } else { (1_000, 10_000) };
    let mut world = World::new(from_env("CORACLE_SIM_SEED").unwrap_or(1), Options::large(providers, instances));
    world.run();
    assert!(world.placements() >= instances, "only {} placements", world.placements());
}
