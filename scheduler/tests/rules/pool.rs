//! A pool of which a test is clock, agents and client at once; the invariants are looked at after every step.

use std::collections::BTreeMap;

use coracle_scheduler::core::check::violations;
use coracle_scheduler::core::{Action, Answer, Event, Options, Refusal, Request, State, Wish, authenticate, step};
use coracle_scheduler::model::*;

pub const GIB: u64 = 1 << 30;

pub fn name(text: &str) -> Name {
    text.parse().expect("name")
}

/// What an agent would know.
#[derive(Default)]
pub struct Host {
    session: u64,
    seq: u64,
    incarnation: u64,
    pub capacity: Resources,
    pub price: u64,
    pub facts: BTreeMap<String, FactReport>,
}

pub struct Pool {
    pub state: State,
    pub now: u64,
    pub admin: Option<Actor>,
    pub hosts: BTreeMap<ProviderId, Host>,
}

impl Pool {
    pub fn new() -> Self {
        let state = State::new(Options::default(), [7; 32]);
        let mut pool = Self { state, now: 1_000_000, admin: None, hosts: Default::default() };
        pool.ask(Wish::Bootstrap { group: name("ops"), user: name("root"), hash: "root".to_owned() });
        pool.admin = authenticate(&pool.state, pool.now, "root");
        pool
    }

    pub fn step(&mut self, event: Event) -> Vec<Action> {
        let actions = step(&mut self.state, self.now, event);
        assert_eq!(violations(&self.state), Vec::<String>::new());
        actions
    }

    pub fn answer(&mut self, event: Event) -> Result<Answer, Refusal> {
        let actions = self.step(event);
        let found = actions.into_iter().find_map(|action| match action {
            Action::Answer(1, answer) => Some(*answer),
            _ => None,
        });
        found.expect("an answer")
    }

    pub fn try_ask(&mut self, wish: Wish) -> Result<Answer, Refusal> {
        let request = Request { actor: self.admin, id: "r".to_owned(), key: None, digest: String::new(), wish };
        self.answer(Event::Request { ticket: 1, request: Box::new(request) })
    }

    pub fn ask(&mut self, wish: Wish) -> Key {
        match self.try_ask(wish) {
            Ok(Answer::Object(key)) => key,
            other => panic!("{other:?}"),
        }
    }

    pub fn group(&mut self, group: &str, weight: u32) -> GroupId {
        match self.ask(Wish::CreateGroup { name: name(group), quota: Quota::default(), weight }) {
            Key::Group(id) => id,
            other => panic!("{other:?}"),
        }
    }

    pub fn provider(&mut self, provider: &str, cpus: u64) -> ProviderId {
        self.provider_with(provider, cpus, |_| {})
    }

    /// A machine with facts and a price.
    pub fn provider_with(&mut self, provider: &str, cpus: u64, change: impl FnOnce(&mut Host)) -> ProviderId {
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
        let mut host = Host { capacity, ..Host::default() };
        change(&mut host);
        self.hosts.insert(id, host);
        self.hello(id, Vec::new());
        id
    }

    pub fn hello(&mut self, provider: ProviderId, running: Vec<AllocStatus>) -> Vec<NumberedCommand> {
        let host = self.hosts.get_mut(&provider).expect("host");
        host.incarnation += 1;
        host.seq = 0;
        let hello = Hello {
            protocol_min: PROTOCOL_MIN,
            protocol_max: PROTOCOL_MAX,
            incarnation: host.incarnation,
            boot_id: "b".to_owned(),
            capacity: host.capacity,
            price: host.price,
            accepting: true,
            drain_ms: None,
            facts: host.facts.clone(),
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

    pub fn sync(&mut self, provider: ProviderId, statuses: Vec<AllocStatus>) -> Result<Answer, Refusal> {
        let host = self.hosts.get_mut(&provider).expect("host");
        host.seq += 1;
        let (session, seq) = (host.session, host.seq);
        let sync =
            Sync { session, seq, applied: 0, accepting: true, drain_ms: None, statuses, facts: Default::default() };
        self.answer(Event::Sync { ticket: 1, provider, sync: Box::new(sync) })
    }

    pub fn instance(&mut self, group: GroupId, spec: InstanceSpec) -> InstanceId {
        match self.ask(Wish::CreateInstance { group, name: None, spec: Box::new(spec) }) {
            Key::Instance(id) => id,
            other => panic!("{other:?}"),
        }
    }

    pub fn found(&self, id: InstanceId) -> &Instance {
        &self.state.instances[&id]
    }

    pub fn on(&self, id: InstanceId) -> Option<ProviderId> {
        self.found(id).alloc.as_ref().map(|alloc| alloc.provider)
    }

    pub fn status(&self, id: InstanceId, phase: Phase) -> AllocStatus {
        let found = self.found(id);
        let epoch = found.alloc.as_ref().map_or(found.epoch, |alloc| alloc.epoch);
        AllocStatus { instance: id, epoch, phase, usage: Usage::default(), disk: None }
    }

    pub fn report(&mut self, id: InstanceId, phase: Phase) {
        let (provider, status) = (self.on(id).expect("placed"), self.status(id, phase));
        self.sync(provider, vec![status]).expect("taken");
    }

    /// Reports about an allocation that need not be the current one.
    pub fn report_of(&mut self, id: InstanceId, provider: ProviderId, epoch: u64, phase: Phase) {
        let status = AllocStatus { instance: id, epoch, phase, usage: Usage::default(), disk: None };
        self.sync(provider, vec![status]).expect("taken");
    }

    pub fn exit(&mut self, id: InstanceId, code: i32) {
        self.report(id, Phase::Exited { code: Some(code), reason: String::new() });
    }

    /// Lets time pass; the hosts named are heard of, the others are silent.
    pub fn pass(&mut self, ms: u64, heard: &[ProviderId]) {
        let until = self.now + ms;
        while self.now < until {
            self.now = (self.now + 5_000).min(until);
            for provider in heard {
                let _ = self.sync(*provider, Vec::new());
            }
            self.step(Event::Tick);
        }
    }

    /// The scheduler is away for a while and reads its records again.
    pub fn restart(&mut self, away_ms: u64) {
        self.now += away_ms;
        self.state = State::load(self.state.options, [9; 32], self.now, self.state.records());
        assert_eq!(violations(&self.state), Vec::<String>::new());
    }

    /// Reports that an instance runs and is well.
    pub fn run(&mut self, id: InstanceId) {
        self.report(id, Phase::Running { healthy: true });
    }

    pub fn own(&self) -> GroupId {
        self.admin.expect("admin").group
    }

    /// Asks for an instance of the administrator's group.
    pub fn make(&mut self, spec: InstanceSpec) -> InstanceId {
        let group = self.own();
        self.instance(group, spec)
    }

    pub fn state_of(&self, id: InstanceId) -> InstanceState {
        self.found(id).state
    }

    pub fn job(&mut self, job: &str, depends_on: &[JobId]) -> JobId {
        let group = self.admin.expect("admin").group;
        let spec = after(job, depends_on);
        match self.ask(Wish::CreateJob { group, spec: Box::new(spec) }) {
            Key::Job(id) => id,
            other => panic!("{other:?}"),
        }
    }

    pub fn member(&self, job: JobId) -> Option<InstanceId> {
        let of = |found: &&Instance| matches!(found.owner, Owner::Job { job: owner, .. } if owner == job);
        self.state.instances.values().find(of).map(|found| found.id)
    }
}

pub fn after(job: &str, depends_on: &[JobId]) -> JobSpec {
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

pub fn cpus(count: u64) -> InstanceSpec {
    let resources = Resources { cpu_millis: count * 1000, memory_bytes: 1 << 20, ..Resources::default() };
    InstanceSpec { image: "alpine:3".to_owned(), resources, ..InstanceSpec::default() }
}
