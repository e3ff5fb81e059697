//! Rules of the core, each with one small story: fair share, volumes, dependencies, failures and who is to blame,
//! a provider that lends less, silence and return (F31, F35).

use coracle_scheduler::core::check::violations;
use coracle_scheduler::core::{Action, Answer, Event, Options, Refusal, Request, State, Wish, authenticate, step};
use coracle_scheduler::model::*;

const GIB: u64 = 1 << 30;

fn name(text: &str) -> Name {
    text.parse().expect("name")
}

/// What an agent would know.
#[derive(Default)]
struct Host {
    session: u64,
    seq: u64,
    incarnation: u64,
    capacity: Resources,
}

struct Pool {
    state: State,
    now: u64,
    admin: Option<Actor>,
    hosts: std::collections::BTreeMap<ProviderId, Host>,
}

impl Pool {
    fn new() -> Self {
        let state = State::new(Options::default(), [7; 32]);
        let mut pool = Self { state, now: 1_000_000, admin: None, hosts: Default::default() };
        pool.ask(Wish::Bootstrap { group: name("ops"), user: name("root"), hash: "root".to_owned() });
        pool.admin = authenticate(&pool.state, pool.now, "root");
        pool
    }

    fn step(&mut self, event: Event) -> Vec<Action> {
        let actions = step(&mut self.state, self.now, event);
        assert_eq!(violations(&self.state), Vec::<String>::new());
        actions
    }

    fn answer(&mut self, event: Event) -> Result<Answer, Refusal> {
        let actions = self.step(event);
        let found = actions.into_iter().find_map(|action| match action {
            Action::Answer(1, answer) => Some(*answer),
            _ => None,
        });
        found.expect("an answer")
    }

    fn try_ask(&mut self, wish: Wish) -> Result<Answer, Refusal> {
        let request = Request { actor: self.admin, id: "r".to_owned(), key: None, digest: String::new(), wish };
        self.answer(Event::Request { ticket: 1, request: Box::new(request) })
    }

    fn ask(&mut self, wish: Wish) -> Key {
        match self.try_ask(wish) {
            Ok(Answer::Object(key)) => key,
            other => panic!("{other:?}"),
        }
    }

    fn group(&mut self, group: &str, weight: u32) -> GroupId {
        match self.ask(Wish::CreateGroup { name: name(group), quota: Quota::default(), weight }) {
            Key::Group(id) => id,
            other => panic!("{other:?}"),
        }
    }

    fn provider(&mut self, provider: &str, cpus: u64) -> ProviderId {
        let group = self.admin.expect("admin").group;
        let (tier, ttl_ms, join) = (Tier::New, 60_000, format!("join {provider}"));
        self.ask(Wish::CreateJoin { group, name: name(provider), tier, ttl_ms, hash: join.clone() });
        let (hash, key) = (format!("token {provider}"), String::new());
        let Key::Provider(id) = self.ask(Wish::Join { join_hash: join, name: name(provider), hash, key }) else {
            panic!("no provider")
        };
        let capacity = Resources {
            cpu_millis: cpus * 1000,
            memory_bytes: 64 * GIB,
            disk_bytes: 100 * GIB,
            ..Resources::default()
        };
        self.hosts.insert(id, Host { capacity, ..Host::default() });
        self.hello(id, Vec::new());
        id
    }

    fn hello(&mut self, provider: ProviderId, running: Vec<AllocStatus>) -> Vec<NumberedCommand> {
        let host = self.hosts.get_mut(&provider).expect("host");
        host.incarnation += 1;
        host.seq = 0;
        let hello = Hello {
            protocol_min: PROTOCOL_MIN,
            protocol_max: PROTOCOL_MAX,
            incarnation: host.incarnation,
            boot_id: "b".to_owned(),
            capacity: host.capacity,
            price: 0,
            accepting: true,
            facts: Default::default(),
            running,
        };
        match self.answer(Event::Hello { ticket: 1, provider, hello: Box::new(hello) }) {
            Ok(Answer::Hello(reply)) => {
                self.hosts.get_mut(&provider).expect("host").session = reply.session;
                reply.commands
            }
            other => panic!("{other:?}"),
        }
    }

    fn sync(&mut self, provider: ProviderId, statuses: Vec<AllocStatus>) -> Result<Answer, Refusal> {
        let host = self.hosts.get_mut(&provider).expect("host");
        host.seq += 1;
        let (session, seq) = (host.session, host.seq);
        let sync = Sync { session, seq, applied: 0, accepting: true, statuses, facts: Default::default() };
        self.answer(Event::Sync { ticket: 1, provider, sync: Box::new(sync) })
    }

    fn instance(&mut self, group: GroupId, spec: InstanceSpec) -> InstanceId {
        match self.ask(Wish::CreateInstance { group, name: None, spec: Box::new(spec) }) {
            Key::Instance(id) => id,
            other => panic!("{other:?}"),
        }
    }

    fn found(&self, id: InstanceId) -> &Instance {
        &self.state.instances[&id]
    }

    fn on(&self, id: InstanceId) -> Option<ProviderId> {
        self.found(id).alloc.as_ref().map(|alloc| alloc.provider)
    }

    fn status(&self, id: InstanceId, phase: Phase) -> AllocStatus {
        AllocStatus { instance: id, epoch: self.found(id).epoch, phase, usage: Usage::default() }
    }

    fn report(&mut self, id: InstanceId, phase: Phase) {
        let (provider, status) = (self.on(id).expect("placed"), self.status(id, phase));
        self.sync(provider, vec![status]).expect("taken");
    }

    fn exit(&mut self, id: InstanceId, code: i32) {
        self.report(id, Phase::Exited { code: Some(code), reason: String::new() });
    }

    /// Lets time pass; the hosts named are heard of, the others are silent.
    fn pass(&mut self, ms: u64, heard: &[ProviderId]) {
        let until = self.now + ms;
        while self.now < until {
            self.now = (self.now + 5_000).min(until);
            for provider in heard {
                let _ = self.sync(*provider, Vec::new());
            }
            self.step(Event::Tick);
        }
    }

    fn job(&mut self, job: &str, depends_on: &[JobId]) -> JobId {
        let group = self.admin.expect("admin").group;
        let spec = after(job, depends_on);
        match self.ask(Wish::CreateJob { group, spec: Box::new(spec) }) {
            Key::Job(id) => id,
            other => panic!("{other:?}"),
        }
    }

    fn member(&self, job: JobId) -> Option<InstanceId> {
        let of = |found: &&Instance| matches!(found.owner, Owner::Job { job: owner, .. } if owner == job);
        self.state.instances.values().find(of).map(|found| found.id)
    }
}

fn after(job: &str, depends_on: &[JobId]) -> JobSpec {
    JobSpec {
        name: name(job),
        template: cpus(1),
        count: None,
        parallel: None,
        retries: 0,
        time_limit_ms: None,
        depends_on: depends_on.to_vec(),
        gang: false,
    }
}

fn cpus(count: u64) -> InstanceSpec {
    let resources = Resources { cpu_millis: count * 1000, memory_bytes: 1 << 20, ..Resources::default() };
    InstanceSpec { image: "alpine:3".to_owned(), resources, ..InstanceSpec::default() }
}

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
