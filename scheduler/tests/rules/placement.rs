//! Where an instance goes, and what is said about it.

use std::collections::BTreeSet;

use coracle_scheduler::core::{Action, Answer, Event, Request, Wish};
use coracle_scheduler::model::*;

use crate::pool::{GIB, Pool, cpus, name};

fn fact(value: FactValue) -> FactReport {
    FactReport { value, age_ms: 0, ttl_ms: None }
}

fn text(value: &str) -> FactReport {
    fact(FactValue::Text(value.to_owned()))
}

fn where_(constraints: &[&str]) -> InstanceSpec {
    InstanceSpec { constraints: constraints.iter().map(|text| (*text).to_owned()).collect(), ..cpus(1) }
}

fn by(strategy: Strategy) -> InstanceSpec {
    InstanceSpec { strategy, ..cpus(1) }
}

#[test]
fn each_strategy_chooses_by_its_own_measure() {
    let mut pool = Pool::new();
    let full = pool.provider_with("full", 8, |host| host.price = 5);
    let filler = pool.make(InstanceSpec { constraints: vec!["node==full".to_owned()], ..cpus(6) });
    assert_eq!(pool.on(filler), Some(full));
    let cheap = pool.provider_with("cheap", 8, |host| host.price = 1);
    let empty = pool.provider_with("empty", 8, |host| host.price = 9);
    // One failure of its own makes the cheap one less reliable than the empty one.
    let broken = pool.make(where_(&["node==cheap"]));
    pool.exit(broken, 1);
    let filler = pool.make(where_(&["node==cheap"]));
    assert_eq!(pool.on(filler), Some(cheap));
    for (strategy, expect) in [(Strategy::Spread, empty), (Strategy::Binpack, full), (Strategy::Cheapest, cheap)] {
        let id = pool.make(by(strategy));
        assert_eq!(pool.on(id), Some(expect), "{strategy:?}: {:?}", pool.found(id).alloc);
    }
    let id = pool.make(by(Strategy::Reliable));
    assert_ne!(pool.on(id), Some(cheap), "reliable");
    let mut seen = BTreeSet::new();
    for _ in 0..40 {
        let id = pool.make(InstanceSpec { strategy: Strategy::Random, resources: Resources::default(), ..cpus(1) });
        seen.extend(pool.on(id));
    }
    assert_eq!(seen.len(), 3, "random goes everywhere");
}

#[test]
fn constraints_compare_numbers_units_versions_sets_and_words() {
    let mut pool = Pool::new();
    pool.provider_with("lab", 16, |host| {
        host.facts.insert("mem.free".to_owned(), fact(FactValue::Number((6 * GIB) as f64)));
        host.facts.insert("kernel".to_owned(), text("6.1.9"));
        host.facts.insert("images".to_owned(), fact(FactValue::Set(vec!["alpine:3".to_owned(), "redis:7".to_owned()])));
        host.facts.insert("zone".to_owned(), text("eu"));
        host.facts.insert("limit.memory".to_owned(), text("hard"));
        host.facts.insert("limit.disk".to_owned(), text("soft"));
        host.facts.insert("system_overload_10min".to_owned(), text("12"));
    });
    for (expression, fits) in [
        ("mem.free>=4GiB", true),
        ("mem.free>=6144MiB", true),
        ("mem.free>6GiB", false),
        ("mem.free<8GiB", true),
        ("kernel v>= 6.1.10", false),
        ("kernel v>= 6.1.2", true),
        ("kernel v< 6.2", true),
        ("zone in eu|us", true),
        ("zone notin eu|us", false),
        ("zone exists", true),
        ("gpu.model exists", false),
        ("images==redis*", true),
        ("images!=redis*", false),
        ("system_overload_10min==/[0-2][0-5]/", true),
        // Whether a limit holds hard is a fact like any other.
        ("limit.memory==hard", true),
        ("limit.disk==hard", false),
    ] {
        let id = pool.make(where_(&[expression]));
        assert_eq!(pool.on(id).is_some(), fits, "{expression}: {:?}", pool.state.blocked(id));
    }
}

#[test]
fn weights_move_the_choice_and_forbid_nothing() {
    let mut pool = Pool::new();
    let near = pool.provider_with("near", 8, |host| drop(host.facts.insert("zone".to_owned(), text("eu"))));
    let far = pool.provider_with("far", 8, |host| drop(host.facts.insert("zone".to_owned(), text("us"))));
    // Spread alone would prefer the empty one.
    let filler = pool.make(InstanceSpec { constraints: vec!["node==near".to_owned()], ..cpus(4) });
    assert_eq!(pool.on(filler), Some(near));
    let spread = pool.make(cpus(1));
    assert_eq!(pool.on(spread), Some(far));
    let drawn = pool.make(where_(&["zone==eu~50"]));
    assert_eq!(pool.on(drawn), Some(near), "{:?}", pool.found(drawn).alloc);
    let pushed = pool.make(where_(&["zone==us~-100"]));
    assert_eq!(pool.on(pushed), Some(near), "a negative weight pushes away");
    // A weight is a wish: with the other one full it goes where there is room.
    let rest = pool.make(InstanceSpec { constraints: vec!["zone==eu".to_owned()], ..cpus(2) });
    assert_eq!(pool.on(rest), Some(near));
    let wish = pool.make(where_(&["zone==eu~100"]));
    assert_eq!(pool.on(wish), Some(far));
}

#[test]
fn a_fact_that_is_too_old_meets_no_constraint_and_the_answer_says_so() {
    let mut pool = Pool::new();
    let one = pool.provider_with("p1", 8, |host| {
        let load = FactReport { value: FactValue::Number(0.5), age_ms: 1_000, ttl_ms: Some(30_000) };
        host.facts.insert("load5".to_owned(), load);
    });
    let fresh = pool.make(where_(&["load5<1"]));
    assert_eq!(pool.on(fresh), Some(one));
    pool.pass(35_000, &[one]);
    let stale = pool.make(where_(&["load5<1"]));
    assert_eq!(pool.on(stale), None);
    let why = pool.state.blocked(stale).expect("why");
    assert_eq!(why.filtered.get("old fact in load5<1"), Some(&1), "{why:?}");
}

#[test]
fn affinity_draws_together_and_keeps_apart() {
    let mut pool = Pool::new();
    let (one, two) = (pool.provider("p1", 8), pool.provider("p2", 8));
    let group = pool.own();
    let labels = [("role".to_owned(), "db".to_owned())].into();
    let spec = InstanceSpec { labels, ..where_(&["node==p1"]) };
    let db = pool.ask(Wish::CreateInstance { group, name: Some(name("db")), spec: Box::new(spec) });
    let Key::Instance(db) = db else { panic!() };
    assert_eq!(pool.on(db), Some(one));
    let with = |affinity: &str| InstanceSpec { affinities: vec![affinity.to_owned()], ..cpus(1) };
    for (affinity, expect) in [("container==db", one), ("container!=db", two), ("role==db", one), ("role!=db", two)] {
        for _ in 0..2 {
            let id = pool.make(with(affinity));
            assert_eq!(pool.on(id), Some(expect), "{affinity}");
        }
    }
}

#[test]
fn every_resource_is_reserved_and_stays_so_over_a_restart() {
    let mut pool = Pool::new();
    let one = pool.provider_with("p1", 8, |host| {
        host.capacity.gpus = 1;
        host.capacity.bandwidth_bps = 1_000_000;
    });
    let mut spec = cpus(1);
    spec.resources.gpus = 1;
    spec.resources.bandwidth_bps = 600_000;
    spec.resources.disk_bytes = 60 * GIB;
    spec.ports = vec![Port { host: 8080, container: 80 }];
    let first = pool.make(spec.clone());
    pool.run(first);
    let reserved = pool.state.reserved(one);
    assert_eq!(reserved, spec.resources);
    pool.restart(60_000);
    let running = pool.status(first, Phase::Running { healthy: true });
    assert!(pool.hello(one, vec![running]).is_empty(), "nothing is disturbed");
    assert_eq!(pool.state.reserved(one), reserved);
    let one_of = |change: fn(&mut InstanceSpec)| {
        let mut spec = cpus(1);
        change(&mut spec);
        spec
    };
    for (what, spec) in [
        ("gpus", one_of(|spec| spec.resources.gpus = 1)),
        ("bandwidth", one_of(|spec| spec.resources.bandwidth_bps = 600_000)),
        ("disk", one_of(|spec| spec.resources.disk_bytes = 60 * GIB)),
        ("port 8080", one_of(|spec| spec.ports = vec![Port { host: 8080, container: 81 }])),
    ] {
        let id = pool.make(spec);
        assert_eq!(pool.on(id), None, "{what} was given twice");
        let why = pool.state.blocked(id).expect("why");
        assert_eq!(why.filtered.get(what), Some(&1), "{why:?}");
    }
    let fits = pool.make(cpus(1));
    assert_eq!(pool.on(fits), Some(one));
}

#[test]
fn the_more_important_one_gets_room_and_the_other_one_waits() {
    let mut pool = Pool::new();
    let one = pool.provider("p1", 2);
    let (low, near) = (InstanceSpec { priority: Some(30), ..cpus(1) }, InstanceSpec { priority: Some(45), ..cpus(1) });
    let (low, near) = (pool.make(low), pool.make(near));
    pool.run(low);
    pool.run(near);
    // Ten points are needed, and the word that allows it.
    let polite = pool.make(InstanceSpec { priority: Some(50), ..cpus(1) });
    assert_eq!(pool.found(low).stop, None, "nobody asked for preemption");
    let urgent = pool.make(InstanceSpec { priority: Some(54), preempts: true, ..cpus(1) });
    assert_eq!(pool.found(low).stop, Some(StopReason::Preempted), "the least important one goes");
    assert_eq!(pool.found(near).stop, None, "nine points are not enough, and one victim is");
    pool.exit(low, 143);
    assert_eq!(pool.on(urgent), Some(one), "the room was kept for who claimed it, not for who waits longer");
    assert_eq!((pool.on(polite), pool.state_of(low)), (None, InstanceState::Pending));
    pool.run(urgent);
    pool.exit(urgent, 0);
    assert_eq!((pool.on(polite), pool.on(low)), (Some(one), None), "then the order is priority again");
}

#[test]
fn backfill_uses_what_nobody_wants_and_gives_way_to_anybody() {
    let mut pool = Pool::new();
    let one = pool.provider("p1", 2);
    let quota = Resources { cpu_millis: 1_000, memory_bytes: GIB, ..Resources::default() };
    let quota = Quota { resources: Some(quota), instances: None };
    let Key::Group(group) = pool.ask(Wish::CreateGroup { name: name("small"), quota, weight: 1 }) else { panic!() };
    let backfill = InstanceSpec { class: Class::Backfill, priority: Some(100), ..cpus(1) };
    let filling: Vec<_> = (0..2).map(|_| pool.instance(group, backfill.clone())).collect();
    for id in &filling {
        assert_eq!(pool.on(*id), Some(one), "it is not charged to the quota");
        pool.run(*id);
    }
    assert_eq!(pool.state.used(group), Resources::default());
    // An ordinary instance of low priority that may not preempt is still before any backfill.
    let plain = pool.make(InstanceSpec { priority: Some(0), ..cpus(1) });
    let stopped: Vec<_> = filling.iter().filter(|id| pool.found(**id).stop.is_some()).copied().collect();
    assert_eq!(stopped.len(), 1, "one is enough");
    pool.exit(stopped[0], 143);
    assert_eq!((pool.on(plain), pool.state_of(stopped[0])), (Some(one), InstanceState::Pending));
    pool.run(plain);
    pool.exit(plain, 0);
    assert_eq!(pool.on(stopped[0]), Some(one), "it comes back by itself");
}

#[test]
fn a_gang_is_placed_as_a_whole_or_not_at_all() {
    let mut pool = Pool::new();
    let group = pool.own();
    pool.provider("p1", 2);
    let spec = JobSpec { count: Some(4), gang: true, ..crate::pool::after("gang", &[]) };
    let Key::Job(job) = pool.ask(Wish::CreateJob { group, spec: Box::new(spec) }) else { panic!() };
    pool.pass(5_000, &[]);
    let members = |pool: &Pool| -> Vec<InstanceId> {
        let of = |found: &&Instance| matches!(found.owner, Owner::Job { job: owner, .. } if owner == job);
        pool.state.instances.values().filter(of).map(|found| found.id).collect()
    };
    let ids = members(&pool);
    assert_eq!(ids.len(), 4);
    assert!(ids.iter().all(|id| pool.on(*id).is_none()), "two would fit, so none is placed");
    let why = pool.state.blocked(ids[0]).expect("why").sentence();
    assert!(why.contains("2 of 4 members would fit"), "{why}");
    let small = pool.make(cpus(2));
    assert!(pool.on(small).is_some(), "a gang that waits holds nothing");
    pool.exit(small, 0);
    let two = pool.provider("p2", 2);
    pool.pass(10_000, &[two]);
    assert!(ids.iter().all(|id| pool.on(*id).is_some()), "{:?}", pool.state.blocked(ids[0]));
}

#[test]
fn a_dry_run_answers_and_changes_nothing() {
    let mut pool = Pool::new();
    let one = pool.provider("p1", 2);
    let group = pool.own();
    let mut plan = |spec: InstanceSpec| {
        let wish = Wish::DryRun { group, spec: Box::new(spec) };
        let request = Request { actor: pool.admin, id: "r".to_owned(), key: None, digest: String::new(), wish };
        let actions = pool.step(Event::Request { ticket: 1, request: Box::new(request) });
        match &actions[..] {
            [Action::Answer(1, answer)] => match &**answer {
                Ok(Answer::Plan(explanation)) => explanation.clone(),
                other => panic!("{other:?}"),
            },
            other => panic!("more than an answer: {other:?}"),
        }
    };
    let good = plan(cpus(1));
    assert_eq!((good.matched, good.scores[0].provider), (1, one));
    let bad = plan(cpus(3));
    assert_eq!((bad.matched, bad.filtered.get("cpu")), (0, Some(&1)));
    assert_eq!(bad.hints, ["1 would match with 1000 less cpu"]);
}

#[test]
fn an_explanation_counts_everybody_and_says_what_would_help() {
    let mut pool = Pool::new();
    for number in 0..6 {
        pool.provider_with(&format!("p{number}"), 2, |host| {
            host.facts.insert("zone".to_owned(), text(if number < 4 { "eu" } else { "us" }));
        });
    }
    let id = pool.make(InstanceSpec { constraints: vec!["zone==us".to_owned()], ..cpus(3) });
    let why = pool.state.blocked(id).expect("why");
    assert_eq!((why.pool, why.examined, why.matched), (6, 6, 0));
    assert_eq!(why.filtered.values().sum::<u32>(), 6, "{why:?}");
    assert!(why.sentence().starts_with("0 of 6 providers match; 6 filtered by cpu"), "{}", why.sentence());
    assert!(why.hints.iter().any(|hint| hint == "2 would match with 1000 less cpu"), "{why:?}");
    let id = pool.make(where_(&["zone==us"]));
    let alloc = pool.found(id).alloc.clone().expect("placed");
    assert_eq!(alloc.explanation.matched, 2, "{:?}", alloc.explanation);
    assert_eq!(alloc.explanation.scores[0].provider, alloc.provider, "the explanation is kept with the placement");
}
