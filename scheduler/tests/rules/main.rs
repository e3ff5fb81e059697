//! Rules of the core, each with one small story: placement (`placement`), the lives of services, jobs and drains
//! (`life`), what people are granted (`people`), moves (`moving`), and here fair share, volumes, dependencies, failures and who is to blame, a provider that lends less,
//! silence and return (F31, F35).

mod halt;
mod life;
mod moving;
mod people;
mod placement;
mod pool;

use coracle_scheduler::core::{Event, Refusal, Wish};
use coracle_scheduler::model::*;
use pool::{GIB, Pool, after, cpus, name};

#[test]
fn room_goes_to_the_group_that_has_less_for_its_weight() {
    let mut pool = Pool::new();
    let (greedy, modest, heavy) = (pool.group("greedy", 1), pool.group("modest", 1), pool.group("heavy", 2));
    pool.provider("p1", 8);
    let first: Vec<_> = (0..8).map(|_| pool.instance(greedy, cpus(1))).collect();
    // Everything is taken; the greedy group is also first in line with eight more.
    let mut waiting: Vec<_> = (0..8).map(|_| (greedy, pool.instance(greedy, cpus(1)))).collect();
    waiting.extend((0..8).map(|_| (modest, pool.instance(modest, cpus(1)))).collect::<Vec<_>>());
    waiting.extend((0..8).map(|_| (heavy, pool.instance(heavy, cpus(1)))).collect::<Vec<_>>());
    for id in first {
        pool.exit(id, 0);
    }
    let has = |group: GroupId| waiting.iter().filter(|(owner, id)| *owner == group && pool.on(*id).is_some()).count();
    assert_eq!((has(greedy), has(modest), has(heavy)), (2, 2, 4));
}

#[test]
fn an_instance_comes_back_to_its_volume_and_nowhere_else() {
    let mut pool = Pool::new();
    let group = pool.admin.expect("admin").group;
    let (one, two) = (pool.provider("p1", 4), pool.provider("p2", 4));
    let Key::Volume(volume) = pool.ask(Wish::CreateVolume { group, name: name("data"), size_bytes: GIB }) else {
        panic!()
    };
    let mut spec = cpus(1);
    spec.volumes = vec![VolumeMount { volume, path: "/data".to_owned() }];
    let first = pool.instance(group, spec.clone());
    let home = pool.on(first).expect("placed");
    pool.exit(first, 0);
    assert_eq!(pool.state.volumes[&volume].provider, Some(home));
    // Its machine is full: the next one waits for it, although the other machine is empty.
    let mut filler = cpus(4);
    filler.constraints = vec![format!("node=={}", pool.state.providers[&home].name)];
    let filler = pool.instance(group, filler);
    assert_eq!(pool.on(filler), Some(home));
    let second = pool.instance(group, spec);
    assert_eq!(pool.on(second), None);
    pool.exit(filler, 0);
    assert_eq!(pool.on(second), Some(home));
    // Its machine falls silent for good: it is not started elsewhere, where its data is not.
    let other = if home == one { two } else { one };
    pool.report(second, Phase::Running { healthy: true });
    pool.pass(700_000, &[other]);
    assert_eq!(pool.on(second), Some(home));
    assert!(pool.try_ask(Wish::DeleteVolume { id: volume }).is_err(), "somebody uses it");
}

#[test]
fn jobs_wait_for_the_whole_chain_before_them_and_fall_with_it() {
    let mut pool = Pool::new();
    pool.provider("p1", 4);
    let a = pool.job("a", &[]);
    let b = pool.job("b", &[a]);
    let c = pool.job("c", &[a, b]);
    assert!(pool.member(b).is_none() && pool.member(c).is_none());
    pool.exit(pool.member(a).expect("a runs"), 0);
    pool.step(Event::Tick);
    let member = pool.member(b).expect("b starts when a succeeded");
    assert!(pool.member(c).is_none(), "c waits for b too");
    pool.exit(member, 3);
    pool.pass(5_000, &[]);
    assert_eq!(pool.state.jobs[&b].state, JobState::Failed);
    assert_eq!(pool.state.jobs[&c].state, JobState::Failed, "c never can");
    assert!(pool.member(c).is_none());
    let group = pool.admin.expect("admin").group;
    let nowhere = after("d", &[JobId::new(1)]);
    assert!(matches!(pool.try_ask(Wish::CreateJob { group, spec: Box::new(nowhere) }), Err(Refusal::NotFound(_))));
}

#[test]
fn a_machine_where_much_fails_rests_and_an_image_that_fails_everywhere_blames_no_machine() {
    let mut pool = Pool::new();
    let group = pool.admin.expect("admin").group;
    let (bad, good) = (pool.provider("bad", 40), pool.provider("good", 40));
    let at = |node: &str, image: &str| {
        let constraints = vec![format!("node=={node}")];
        InstanceSpec { image: image.to_owned(), constraints, ..cpus(1) }
    };
    // One image that fails on both machines: nobody is to blame after the first machine.
    for _ in 0..6 {
        for node in ["good", "bad"] {
            let id = pool.instance(group, at(node, "broken:1"));
            pool.exit(id, 1);
        }
    }
    assert_eq!(pool.state.providers[&good].cool_until_ms, 0);
    assert_eq!(pool.state.providers[&bad].cool_until_ms, 0);
    // Images that fail on one machine only.
    for number in 0..5 {
        let id = pool.instance(group, at("bad", &format!("fine:{number}")));
        pool.exit(id, 1);
    }
    assert!(pool.state.providers[&bad].cool_until_ms > pool.now, "five failures in ten minutes");
    let id = pool.instance(group, at("bad", "fine:9"));
    assert_eq!(pool.on(id), None);
    let why = format!("{:?}", pool.state.blocked(id).expect("it says why"));
    assert!(why.contains("trouble"), "{why}");
    let other = pool.instance(group, cpus(1));
    assert_eq!(pool.on(other), Some(good), "others go elsewhere");
    pool.pass(601_000, &[bad, good]);
    assert_eq!(pool.on(id), Some(bad), "the rest is over");
}

#[test]
fn a_reboot_with_many_instances_is_one_trouble() {
    let mut pool = Pool::new();
    let one = pool.provider("p1", 8);
    let spec = InstanceSpec { restart: Restart::Always, ..cpus(1) };
    let ids: Vec<_> = (0..8).map(|_| pool.make(spec.clone())).collect();
    ids.iter().for_each(|id| pool.run(*id));
    pool.hello(one, Vec::new());
    assert_eq!(pool.state.providers[&one].troubles_ms.len(), 1);
    pool.pass(5_000, &[one]);
    assert!(ids.iter().all(|id| pool.on(*id) == Some(one)), "they run again where they were, soon");
}

#[test]
fn a_provider_that_lends_less_gives_back_the_newest() {
    let mut pool = Pool::new();
    let group = pool.admin.expect("admin").group;
    let one = pool.provider("p1", 4);
    let mut ids = Vec::new();
    for _ in 0..4 {
        pool.now += 1_000;
        let id = pool.instance(group, cpus(1));
        pool.report(id, Phase::Running { healthy: true });
        ids.push(id);
    }
    pool.hosts.get_mut(&one).expect("host").capacity.cpu_millis = 2_000;
    let running = ids.iter().map(|id| pool.status(*id, Phase::Running { healthy: true })).collect();
    let commands = pool.hello(one, running);
    let stops = |id: &InstanceId| {
        commands.iter().any(|command| matches!(&command.command, Command::Stop { instance, .. } if instance == id))
    };
    assert_eq!(ids.iter().map(stops).collect::<Vec<_>>(), [false, false, true, true]);
    for id in &ids[2..] {
        pool.exit(*id, 143);
        assert_eq!(pool.found(*id).state, InstanceState::Pending, "it is not lost, it waits for room");
    }
    let two = pool.provider("p2", 2);
    assert_eq!((pool.on(ids[2]), pool.on(ids[3])), (Some(two), Some(two)));
}

#[test]
fn f31_silence_is_unknown_then_lost_and_who_returns_keeps_what_runs() {
    let mut pool = Pool::new();
    let group = pool.admin.expect("admin").group;
    let one = pool.provider("p1", 4);
    let id = pool.instance(group, cpus(1));
    pool.report(id, Phase::Running { healthy: true });
    pool.pass(60_000, &[]);
    assert_eq!(pool.found(id).state, InstanceState::Unknown, "unknown is not lost");
    assert_eq!(pool.state.providers[&one].state, ProviderState::Unknown);
    let epoch = pool.found(id).epoch;
    // A mere heartbeat does not make it ready; a full report does, and nothing is started twice.
    assert!(matches!(pool.sync(one, Vec::new()), Err(Refusal::HelloNeeded)));
    assert_eq!(pool.state.providers[&one].state, ProviderState::Unknown);
    let running = pool.status(id, Phase::Running { healthy: true });
    let commands = pool.hello(one, vec![running]);
    assert!(commands.is_empty(), "{commands:?}");
    assert_eq!((pool.found(id).state, pool.found(id).epoch), (InstanceState::Running, epoch));
    pool.pass(400_000, &[]);
    assert_eq!(pool.state.providers[&one].state, ProviderState::Lost);
}

#[test]
fn f35_a_provider_that_flaps_moves_nothing_and_rests() {
    let mut pool = Pool::new();
    let group = pool.admin.expect("admin").group;
    let (one, two) = (pool.provider("p1", 4), pool.provider("p2", 4));
    let mut spec = cpus(1);
    spec.constraints = vec!["node==~p1".to_owned()];
    let id = pool.instance(group, spec);
    let home = pool.on(id).expect("placed");
    pool.report(id, Phase::Running { healthy: true });
    let other = if home == one { two } else { one };
    let epoch = pool.found(id).epoch;
    for _ in 0..5 {
        pool.pass(45_000, &[other]);
        assert_eq!(pool.found(id).state, InstanceState::Unknown);
        let running = pool.status(id, Phase::Running { healthy: true });
        pool.hello(home, vec![running]);
    }
    assert_eq!((pool.on(id), pool.found(id).epoch), (Some(home), epoch), "nothing moved");
    assert!(pool.state.providers[&home].cool_until_ms > pool.now, "and nothing new goes there");
    for _ in 0..3 {
        let next = pool.instance(group, cpus(1));
        assert_eq!(pool.on(next), Some(other));
    }
}
