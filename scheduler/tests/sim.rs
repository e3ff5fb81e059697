//! The simulator: one scheduler, many agents, a network that loses, delays, repeats and reorders, crashes on both
//! sides, clocks that run apart. Everything follows from a seed; the invariants hold after every step.
//!
//! A failing seed is printed; `CORACLE_SIM_SEED=<seed> cargo nextest run -p coracle-scheduler one_seed` replays it.
//! `CORACLE_SIM_SEEDS=<n>` asks for another number of seeds. After every step the ledger compares what the step touched
//! with the records; in small worlds everything is compared after every step, in the large one now and then.

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
const SEEDS: u64 = 1_000;

/// Seeds are cut into slices so that a test runner can use all cores.
const SLICES: u64 = 8;

fn slice(part: u64) {
    let seeds = from_env("CORACLE_SIM_SEEDS").unwrap_or(SEEDS);
    let options = Options::small();
    for seed in (0..seeds).filter(|seed| seed % SLICES == part) {
        run(seed, &options);
    }
}

macro_rules! slices {
    ($($name:ident $part:literal)*) => { $(
        #[test]
        fn $name() {
            slice($part);
        }
    )* };
}

slices! {
    many_seeds_0 0 many_seeds_1 1 many_seeds_2 2 many_seeds_3 3 many_seeds_4 4 many_seeds_5 5 many_seeds_6 6 many_seeds_7 7
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
    let (seed, instances) = (from_env("CORACLE_SIM_SEED").unwrap_or(1), 100_000);
    let mut world = World::new(seed, Options::large(10_000, instances));
    world.run();
    assert!(world.placements() >= instances, "only {} placements", world.placements());
    assert!(world.crashes() > 0, "the scheduler never crashed");
}
