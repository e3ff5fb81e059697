//! How long things live, and how they end: services, updates, drains, time limits, arrays, usage, owners' policies.

use std::collections::BTreeSet;

use coracle_scheduler::core::{Answer, Event, Wish};
use coracle_scheduler::model::*;

use crate::pool::{GIB, Pool, after, cpus, name};

fn service(replicas: u32) -> ServiceSpec {
    ServiceSpec { name: name("web"), template: cpus(1), replicas, global: false, max_parallel: None, healthy_ms: 0 }
}

fn members(pool: &Pool, service: ServiceId) -> Vec<InstanceId> {
    let of = |found: &&Instance| matches!(found.owner, Owner::Service { service: owner, .. } if owner == service);
    pool.state.instances.values().filter(of).filter(|found| !found.state.is_final()).map(|found| found.id).collect()
}

/// Members of the newest revision that run, and members of earlier ones that are not told to stop.
fn revisions(pool: &Pool, service: ServiceId) -> (usize, usize) {
    let newest = pool.state.services[&service].revision;
    let of = |id: &InstanceId, wanted: bool| match pool.found(*id).owner {
        Owner::Service { revision, .. } => (revision == newest) == wanted,
        _ => false,
    };
    let members = members(pool, service);
    let new = members.iter().filter(|id| of(id, true) && pool.state_of(**id) == InstanceState::Running).count();
    let old = members.iter().filter(|id| of(id, false) && pool.found(**id).stop.is_none()).count();
    (new, old)
}

impl Pool {
    fn serve(&mut self, spec: ServiceSpec) -> ServiceId {
        let group = self.own();
        let Key::Service(id) = self.ask(Wish::CreateService { group, spec: Box::new(spec) }) else { panic!() };
        self.step(Event::Tick);
        id
    }

    /// Lets agents do at once what they were told: what should run runs with this health, what should stop ends.
    fn obey(&mut self, healthy: impl Fn(&Instance) -> bool) {
        let in_touch = |found: &&Instance| {
            let place = found.alloc.as_ref().map(|alloc| alloc.provider);
            place.is_some_and(|place| self.state.providers[&place].state == ProviderState::Ready)
        };
        let current = self.state.instances.values().filter(|found| !found.state.is_final()).filter(in_touch);
        let current: Vec<Instance> = current.cloned().collect();
        for found in current {
            if found.stop.is_some() {
                self.exit(found.id, 143);
            } else if found.state != InstanceState::Running {
                let healthy = healthy(&found);
                self.report(found.id, Phase::Running { healthy });
            }
        }
        self.step(Event::Tick);
    }
}

#[test]
fn a_global_service_has_one_on_every_machine_that_matches() {
    let mut pool = Pool::new();
    let machine = |pool: &mut Pool, name: &str, zone: &str| {
        let zone = FactReport { value: FactValue::Text(zone.to_owned()), age_ms: 0, ttl_ms: None };
        pool.provider_with(name, 4, |host| drop(host.facts.insert("zone".to_owned(), zone)))
    };
    let (one, two) = (machine(&mut pool, "p1", "eu"), machine(&mut pool, "p2", "eu"));
    machine(&mut pool, "p3", "us");
    let template = InstanceSpec { constraints: vec!["zone==eu".to_owned()], ..cpus(1) };
    let id = pool.serve(ServiceSpec { template, global: true, ..service(0) });
    let places =
        |pool: &Pool| -> BTreeSet<ProviderId> { members(pool, id).iter().filter_map(|id| pool.on(*id)).collect() };
    assert_eq!(places(&pool), [one, two].into());
    pool.obey(|_| true);
    let four = machine(&mut pool, "p4", "eu");
    pool.step(Event::Tick);
    assert_eq!(places(&pool), [one, two, four].into(), "a machine that joins gets one");
    pool.ask(Wish::Drain { id: two, within_ms: 60_000 });
    pool.step(Event::Tick);
    pool.obey(|_| true);
    assert_eq!(places(&pool), [one, four].into(), "a machine that is emptied loses it");
    pool.ask(Wish::Undrain { id: two });
    pool.step(Event::Tick);
    assert_eq!(places(&pool), [one, two, four].into());
    assert_eq!(members(&pool, id).len(), 3);
}

#[test]
fn an_update_goes_on_only_while_what_is_new_is_well() {
    let mut pool = Pool::new();
    let one = pool.provider("p1", 16);
    let id = pool.serve(ServiceSpec { max_parallel: Some(2), healthy_ms: 10_000, ..service(4) });
    pool.obey(|_| true);
    assert_eq!(revisions(&pool, id), (4, 0));
    let template = InstanceSpec { image: "alpine:4".to_owned(), ..cpus(1) };
    let update = ServiceSpec { template, max_parallel: Some(2), healthy_ms: 10_000, ..service(4) };
    pool.ask(Wish::UpdateService { id, spec: Box::new(update) });
    pool.step(Event::Tick);
    assert_eq!(revisions(&pool, id), (0, 2), "two at once");
    pool.obey(|_| false);
    pool.obey(|_| false);
    pool.pass(60_000, &[one]);
    assert_eq!(revisions(&pool, id), (2, 2), "not well, so nothing more is replaced");
    for member in members(&pool, id) {
        pool.run(member);
    }
    pool.pass(5_000, &[one]);
    assert_eq!(revisions(&pool, id), (2, 2), "well, but not for long enough");
    for _ in 0..4 {
        pool.pass(10_000, &[one]);
        pool.obey(|_| true);
    }
    assert_eq!(revisions(&pool, id), (4, 0));
    assert_eq!(members(&pool, id).len(), 4);
}

#[test]
fn an_update_that_fails_stands_still_and_says_why() {
    let mut pool = Pool::new();
    let one = pool.provider("p1", 16);
    let id = pool.serve(service(3));
    pool.obey(|_| true);
    let template = InstanceSpec { image: "broken:1".to_owned(), ..cpus(1) };
    pool.ask(Wish::UpdateService { id, spec: Box::new(ServiceSpec { template, ..service(3) }) });
    for _ in 0..20 {
        pool.step(Event::Tick);
        for member in members(&pool, id) {
            let found = pool.found(member).clone();
            if found.spec.image == "broken:1" && found.alloc.is_some() {
                pool.exit(member, 1);
            } else if found.stop.is_some() {
                pool.exit(member, 143);
            }
        }
        pool.pass(20_000, &[one]);
    }
    let halted = pool.state.services[&id].halted.clone().expect("it stands still");
    assert!(halted.starts_with("update to revision 2 stands still"), "{halted}");
    assert_eq!(revisions(&pool, id).1, 2, "two of the old ones serve on");
}

#[test]
fn a_service_keeps_its_number() {
    let mut pool = Pool::new();
    let (one, two) = (pool.provider("p1", 8), pool.provider("p2", 8));
    let id = pool.serve(service(4));
    pool.obey(|_| true);
    let at = |pool: &Pool, place| members(pool, id).iter().filter(|id| pool.on(**id) == Some(place)).count();
    assert_eq!((at(&pool, one), at(&pool, two)), (2, 2), "spread");
    // One of its machines is lost.
    for _ in 0..8 {
        pool.pass(60_000, &[two]);
        pool.obey(|_| true);
    }
    assert_eq!((at(&pool, two), members(&pool, id).len()), (4, 4), "{:?}", pool.state.instances);
    for (replicas, expect) in [(6, 6), (2, 2)] {
        pool.ask(Wish::UpdateService { id, spec: Box::new(service(replicas)) });
        for _ in 0..4 {
            pool.step(Event::Tick);
            pool.obey(|_| true);
        }
        assert_eq!(members(&pool, id).len(), expect);
    }
    pool.ask(Wish::DeleteService { id });
    for _ in 0..3 {
        pool.obey(|_| true);
    }
    assert!(pool.state.services.is_empty() && members(&pool, id).is_empty());
}

#[test]
fn a_drain_moves_services_now_and_batch_work_at_the_deadline() {
    let mut pool = Pool::new();
    let one = pool.provider("p1", 8);
    let web = pool.serve(service(1));
    let batch = pool.make(cpus(1));
    pool.obey(|_| true);
    let two = pool.provider("p2", 8);
    pool.ask(Wish::Drain { id: one, within_ms: 120_000 });
    pool.obey(|_| true);
    pool.obey(|_| true);
    assert_eq!(members(&pool, web).iter().filter_map(|id| pool.on(*id)).collect::<Vec<_>>(), [two]);
    assert_eq!((pool.on(batch), pool.found(batch).stop), (Some(one), None), "it may end in peace");
    let next = pool.make(InstanceSpec { strategy: Strategy::Binpack, ..cpus(1) });
    assert_eq!(pool.on(next), Some(two), "nothing new goes there");
    pool.pass(115_000, &[one, two]);
    assert!(!pool.found(batch).halt);
    pool.pass(10_000, &[one, two]);
    assert!(pool.found(batch).halt, "a person's goes with what it has written");
    pool.report(batch, Phase::Halted);
    assert_eq!((pool.on(batch), pool.state_of(batch)), (Some(two), InstanceState::Placed));
    assert_ne!(pool.state.reserved(one), Resources::default(), "its data is still there");
    pool.report(batch, Phase::Pulling);
    pool.report(batch, Phase::Halted);
    assert!(pool.found(batch).moving.is_none() && !pool.found(batch).halt, "and goes on elsewhere");
    pool.report_of(batch, one, 1, Phase::Exited { code: Some(143), reason: "stopped".to_owned() });
    assert_eq!(pool.state.reserved(one), Resources::default());
}

#[test]
fn nothing_outlives_its_time() {
    let mut pool = Pool::new();
    let one = pool.provider("p1", 1);
    let placed = pool.make(InstanceSpec { ttl_ms: Some(60_000), restart: Restart::Always, ..cpus(1) });
    let waiting = pool.make(InstanceSpec { ttl_ms: Some(90_000), ..cpus(1) });
    let plain = pool.make(cpus(1));
    assert_eq!(pool.found(plain).ends_at_ms - pool.now, 7 * 24 * 3_600_000, "every instance has an end");
    pool.run(placed);
    pool.pass(55_000, &[one]);
    assert_eq!(pool.state_of(placed), InstanceState::Running);
    pool.pass(10_000, &[one]);
    assert_eq!(pool.found(placed).stop, Some(StopReason::Ttl));
    pool.exit(placed, 143);
    assert_eq!(pool.state_of(placed), InstanceState::Stopped, "for good, whatever its restart policy");
    assert_eq!(pool.on(waiting), Some(one));
    pool.pass(30_000, &[one]);
    assert_eq!(pool.found(waiting).stop, Some(StopReason::Ttl));
}

#[test]
fn an_array_has_an_index_a_window_retries_and_a_time_limit() {
    let mut pool = Pool::new();
    let one = pool.provider("p1", 8);
    let group = pool.own();
    let spec =
        JobSpec { count: Some(3), parallel: Some(2), retries: 1, time_limit_ms: Some(30_000), ..after("array", &[]) };
    let Key::Job(job) = pool.ask(Wish::CreateJob { group, spec: Box::new(spec) }) else { panic!() };
    pool.step(Event::Tick);
    let member = |pool: &Pool, wanted: u32| {
        let of = |found: &&Instance| found.owner == Owner::Job { job, index: wanted };
        pool.state.instances.values().find(of).map(|found| found.id)
    };
    let (first, second) = (member(&pool, 0).expect("first"), member(&pool, 1).expect("second"));
    assert_eq!(member(&pool, 2), None, "two at once");
    assert!(pool.found(second).spec.env.contains(&"CORACLE_INDEX=1".to_owned()));
    // The first one fails once and is tried again; the second one hangs twice.
    pool.run(first);
    pool.exit(first, 7);
    assert_eq!((pool.state_of(first), pool.found(first).failures), (InstanceState::Pending, 1));
    pool.pass(5_000, &[one]);
    pool.run(first);
    pool.exit(first, 0);
    assert_eq!(pool.state_of(first), InstanceState::Stopped);
    pool.step(Event::Tick);
    let third = member(&pool, 2).expect("the window moved on");
    for _ in 0..2 {
        pool.run(second);
        pool.pass(31_000, &[one]);
        assert_eq!(pool.found(second).stop, Some(StopReason::TimeLimit));
        pool.exit(second, 137);
        pool.pass(10_000, &[one]);
    }
    assert_eq!(pool.state_of(second), InstanceState::Failed);
    pool.run(third);
    pool.exit(third, 0);
    let job = &pool.state.jobs[&job];
    assert_eq!((job.state, job.succeeded, job.failed), (JobState::Failed, 2, 1));
    assert_eq!(job.reason, "1 members failed");
}

#[test]
fn usage_is_booked_on_group_user_and_machine_and_no_lie_goes_beyond_what_was_reserved() {
    let mut pool = Pool::new();
    let one = pool.provider("p1", 8);
    let resources = Resources { cpu_millis: 2_000, memory_bytes: GIB, disk_bytes: 2 * GIB, ..Resources::default() };
    let id = pool.make(InstanceSpec { resources, ..cpus(1) });
    pool.run(id);
    pool.pass(100_000, &[one]);
    // Honest at first, then shameless: a century of CPU time.
    for cpu_ms in [150_000, u64::MAX, 10] {
        let usage = Usage { cpu_ms, network_bytes: 5_000, ..Usage::default() };
        let status = AllocStatus { usage, ..pool.status(id, Phase::Running { healthy: true }) };
        pool.sync(one, vec![status]).expect("taken");
    }
    pool.exit(id, 0);
    let (group, user) = (pool.own(), pool.admin.and_then(|admin| admin.user).expect("user"));
    let record = pool.state.usage[&(group, user, one)];
    assert_eq!(record.allocations, 1);
    assert_eq!(record.usage.cpu_ms, 200_000, "two cores for a hundred seconds at most, and never less than before");
    assert_eq!(record.usage.memory_mib_s, 1024 * 100);
    assert_eq!(record.usage.disk_mib_s, 2048 * 100);
    assert_eq!(record.usage.network_bytes, 5_000);
    assert_eq!(pool.found(id).usage, record.usage);
}

#[test]
fn each_instance_has_its_own_answer_to_a_loss() {
    let mut pool = Pool::new();
    let one = pool.provider("p1", 8);
    let with = |on_loss| InstanceSpec { on_loss, lost_after_ms: Some(60_000), ..cpus(1) };
    let replaced = pool.make(with(OnLoss::Replace));
    let kept = pool.make(with(OnLoss::Keep));
    let alone = pool.make(with(OnLoss::StopAfter { after_ms: 120_000 }));
    for id in [replaced, kept, alone] {
        pool.run(id);
    }
    let two = pool.provider("p2", 8);
    pool.pass(70_000, &[two]);
    assert_eq!(pool.on(replaced), Some(two), "replaced");
    assert_eq!((pool.on(kept), pool.state_of(kept)), (Some(one), InstanceState::Lost), "kept");
    assert_eq!(pool.on(alone), Some(one), "its agent has not stopped it yet for sure");
    // 120 s, a tenth for clocks, ten for the signal, thirty of slack.
    pool.pass(110_000, &[two]);
    assert_eq!(pool.on(alone), Some(two));
    assert_eq!(pool.state.instances_on(one).len(), 3, "room is kept for all that may still run there");
    let epochs: Vec<AllocStatus> = [replaced, kept, alone]
        .iter()
        .map(|id| AllocStatus {
            instance: *id,
            epoch: 1,
            phase: Phase::Running { healthy: true },
            usage: Usage::default(),
            disk: None,
        })
        .collect();
    let stops = pool.hello(one, epochs);
    let stopped: BTreeSet<InstanceId> = stops
        .iter()
        .filter_map(|command| match &command.command {
            Command::Stop { instance, epoch: 1, .. } => Some(*instance),
            _ => None,
        })
        .collect();
    assert_eq!(stopped, [replaced, alone].into(), "who comes back keeps what was kept and stops what was replaced");
    assert_eq!(pool.state_of(kept), InstanceState::Running);
}

#[test]
fn nothing_is_lost_because_the_scheduler_was_away() {
    let mut pool = Pool::new();
    let (one, two) = (pool.provider("p1", 4), pool.provider("p2", 4));
    let ids: Vec<_> = (0..6).map(|_| pool.make(cpus(1))).collect();
    ids.iter().for_each(|id| pool.run(*id));
    pool.restart(6 * 3_600_000);
    pool.step(Event::Tick);
    for id in &ids {
        assert_eq!((pool.state_of(*id), pool.found(*id).epoch), (InstanceState::Running, 1));
    }
    // Nobody gets anything before the full report; then nothing is told to anybody.
    assert!(pool.sync(one, Vec::new()).is_err(), "a heartbeat of before is not enough");
    for place in [one, two] {
        let here: Vec<InstanceId> = ids.iter().filter(|id| pool.on(**id) == Some(place)).copied().collect();
        let running = here.iter().map(|id| pool.status(*id, Phase::Running { healthy: true })).collect();
        assert!(pool.hello(place, running).is_empty());
    }
    pool.pass(60_000, &[one, two]);
    assert!(ids.iter().all(|id| pool.state_of(*id) == InstanceState::Running && pool.found(*id).epoch == 1));
}

#[test]
fn a_larger_pool_beats_more_slowly() {
    let interval = |count: usize| {
        let mut pool = Pool::new();
        let mut ids = Vec::new();
        for number in 0..count {
            ids.push(pool.provider(&format!("p{number}"), 1));
        }
        match pool.sync(ids[0], Vec::new()) {
            Ok(Answer::Sync(reply)) => reply.interval_ms,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(interval(1), 10_000);
    let mut pool = Pool::new();
    pool.state.options.heartbeats_per_s = 2;
    let ids: Vec<_> = (0..40).map(|number| pool.provider(&format!("p{number}"), 1)).collect();
    let Ok(Answer::Sync(reply)) = pool.sync(ids[0], Vec::new()) else { panic!() };
    assert_eq!(reply.interval_ms, 20_000, "forty machines, two beats a second");
    // And nobody is silent by that pace.
    pool.pass(25_000, &[]);
    assert!(ids.iter().all(|id| pool.state.providers[id].state == ProviderState::Ready));
}
