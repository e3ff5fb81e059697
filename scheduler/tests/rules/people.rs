//! What people are granted: quotas, keys; and agents that speak another protocol.

use coracle_scheduler::core::{Event, Refusal, Wish};
use coracle_scheduler::model::*;

use crate::pool::{GIB, Pool, after, cpus, name};

#[test]
fn a_quota_bounds_a_group_and_says_so() {
    let mut pool = Pool::new();
    let one = pool.provider("p1", 8);
    let resources = Resources { cpu_millis: 2_000, memory_bytes: GIB, ..Resources::default() };
    let quota = Quota { resources: Some(resources), instances: Some(4) };
    let Key::Group(group) = pool.ask(Wish::CreateGroup { name: name("small"), quota, weight: 1 }) else { panic!() };
    let ids: Vec<_> = (0..4).map(|_| pool.instance(group, cpus(1))).collect();
    let placed = ids.iter().filter(|id| pool.on(**id) == Some(one)).count();
    assert_eq!(placed, 2, "the machine has room for all, the group has not");
    let why = pool.state.blocked(ids[3]).expect("why").sentence();
    assert!(why.contains("quota"), "{why}");
    let fifth = pool.try_ask(Wish::CreateInstance { group, name: None, spec: Box::new(cpus(1)) });
    assert!(matches!(fifth, Err(Refusal::Quota(_))), "{fifth:?}");
    let spec = JobSpec { count: Some(2), ..after("array", &[]) };
    let job = pool.try_ask(Wish::CreateJob { group, spec: Box::new(spec) });
    assert!(matches!(job, Err(Refusal::Quota(_))), "members count before they are made: {job:?}");
    pool.exit(ids[0], 0);
    let never = pool.try_ask(Wish::CreateInstance { group, name: None, spec: Box::new(cpus(3)) });
    assert!(matches!(never, Err(Refusal::Quota(_))), "it could never run: {never:?}");
    let now_on = ids.iter().filter(|id| pool.on(**id) == Some(one) && !pool.found(**id).state.is_final()).count();
    assert_eq!(now_on, 2, "who ends makes room for who waits");
    pool.ask(Wish::UpdateGroup { id: group, quota: Quota::default(), weight: 1 });
    assert!(ids[1..].iter().all(|id| pool.on(*id) == Some(one)), "a quota that is lifted lets them in");
}

#[test]
fn a_user_has_ssh_keys_that_only_the_user_and_administrators_change() {
    let mut pool = Pool::new();
    let group = pool.own();
    let Key::User(user) = pool.ask(Wish::CreateUser { group, name: name("ada"), role: Role::Member }) else { panic!() };
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHRlc3RrZXl0ZXN0a2V5dGVzdGtleXRlc3RrZXl0ZXN0 ada@laptop";
    pool.ask(Wish::SetKeys { id: user, keys: vec![key.to_owned()] });
    assert_eq!(pool.state.users[&user].ssh_keys, [key]);
    for bad in [
        "",
        "not a key",
        "ssh-ed25519",
        "ssh-ed25519 me@laptop",
        "ssh-ed25519 AAAA\nssh-rsa BBBB",
        "command=\"x\" ssh-ed25519 AAAA",
    ] {
        let refused = pool.try_ask(Wish::SetKeys { id: user, keys: vec![bad.to_owned()] });
        assert!(refused.is_err(), "{bad:?} is taken for a key");
    }
    assert_eq!(pool.state.users[&user].ssh_keys, [key], "a refusal changes nothing");
}

#[test]
fn f33_an_agent_that_speaks_another_protocol_is_told_which_one_is_spoken() {
    let mut pool = Pool::new();
    let provider = pool.provider("p1", 1);
    let hello = |protocol_min, protocol_max, incarnation| Hello {
        protocol_min,
        protocol_max,
        incarnation,
        boot_id: "b".to_owned(),
        capacity: Resources::default(),
        price: 0,
        accepting: true,
        drain_ms: None,
        facts: Default::default(),
        running: Vec::new(),
    };
    // A newer agent that still speaks the old one gets the old one.
    let newer = Box::new(hello(PROTOCOL_MIN, PROTOCOL_MAX + 1, 5));
    let Ok(coracle_scheduler::core::Answer::Hello(reply)) =
        pool.answer(Event::Hello { ticket: 1, provider, hello: newer })
    else {
        panic!("refused")
    };
    assert_eq!(reply.protocol, PROTOCOL_MAX);
    for (least, most) in [(PROTOCOL_MAX + 1, PROTOCOL_MAX + 2), (0, PROTOCOL_MIN - 1)] {
        let strange = Box::new(hello(least, most, 6));
        let refused = pool.answer(Event::Hello { ticket: 1, provider, hello: strange });
        assert_eq!(refused, Err(Refusal::Protocol(PROTOCOL_MIN, PROTOCOL_MAX)));
    }
}
