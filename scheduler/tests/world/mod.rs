//! The world that the simulator runs: state, store, agents and network as plain data, time as a number.

mod client;
mod judge;

use std::collections::{BTreeMap, BTreeSet};

use coracle_scheduler::agent::{Machine, SimulatedEngine};
use coracle_scheduler::core::ledger::Ledger;
use coracle_scheduler::core::{Action, Answer, Event, Options as CoreOptions, Refusal, Request, State, Wish, step};
use coracle_scheduler::model::*;

use judge::Judge;

/// Numbers of one world.
#[derive(Clone, Debug)]
pub struct Options {
    pub providers: u64,
    pub instances: u64,
    /// Simulated time with faults.
    pub storm_ms: u64,
    /// Simulated time without faults, after which everything must be in order.
    pub calm_ms: u64,
    /// Faults in thousandths.
    pub loss: u64,
    pub duplicate: u64,
    pub delay_max_ms: u64,
    pub crash_agent: u64,
    /// A crash in so many steps of the scheduler.
    pub crash_every: u64,
    /// After how many steps everything is looked at; what a step has touched is looked at after every one.
    pub check_every: u64,
    /// How often agents are looked after.
    pub beat_ms: u64,
    /// How long an agent may be cut off.
    pub partition_max_ms: u64,
}

impl Options {
    pub fn small() -> Self {
        Self {
            providers: 5,
            instances: 24,
            storm_ms: 600_000,
            calm_ms: 700_000,
            loss: 100,
            duplicate: 100,
            delay_max_ms: 40_000,
            crash_agent: 10,
            crash_every: 200,
            check_every: 1,
            beat_ms: 10_000,
            partition_max_ms: 200_000,
        }
    }

    pub fn large(providers: u64, instances: u64) -> Self {
        Self {
            providers,
            instances,
            storm_ms: 60_000,
            calm_ms: 150_000,
            loss: 20,
            duplicate: 20,
            delay_max_ms: 5_000,
            crash_agent: 10,
            // A handful in all: each reads a hundred thousand records again.
            crash_every: 20_000,
            check_every: 50_000,
            beat_ms: 20_000,
            partition_max_ms: 40_000,
        }
    }
}

/// A generator for faults: xorshift, seeded.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }
    pub fn chance(&mut self, permille: u64) -> bool {
        self.below(1000) < permille
    }
}

/// Something on its way.
#[derive(Clone, Debug)]
enum Message {
    Hello(usize, u64, Hello),
    Sync(usize, u64, Sync),
    HelloReply(usize, u64, HelloReply),
    SyncReply(usize, u64, SyncReply),
    HelloNeeded(usize, u64),
    Beat(usize),
    Client,
}

/// One simulated provider.
pub struct Agent {
    pub id: ProviderId,
    pub machine: Machine,
    pub engine: SimulatedEngine,
    /// Thousandths by which its clock runs: 950 to 1050.
    rate: u64,
    /// What its clock showed at the beginning.
    offset_ms: u64,
    /// Nothing gets through to it or from it before.
    cut_until: u64,
}

impl Agent {
    fn clock(&self, now: u64) -> u64 {
        self.offset_ms + now * self.rate / 1000
    }
}

/// Everything.
pub struct World {
    pub options: Options,
    pub dice: Dice,
    pub now: u64,
    pub state: State,
    /// What a disk would hold.
    pub store: BTreeMap<(&'static str, String), Record>,
    pub agents: Vec<Agent>,
    by_id: BTreeMap<ProviderId, usize>,
    net: BTreeMap<(u64, u64), Message>,
    sent: u64,
    down_until: u64,
    ticket: u64,
    /// Who waits for which answer.
    agents_waiting: BTreeMap<u64, (usize, u64, u64)>,
    pub client: client::Client,
    judge: Judge,
    ledger: Ledger,
    steps: u64,
    faults: bool,
    leader: u64,
    seed: u64,
    pub history: Vec<String>,
    placements_before: u64,
    quiet_from: u64,
}

impl World {
    pub fn new(seed: u64, options: Options) -> Self {
        let core = CoreOptions { lost_after_ms: 60_000, ..CoreOptions::default() };
        let mut world = Self {
            dice: Dice::new(seed + 1),
            now: 1_000_000,
            state: State::new(core, [seed as u8; 32]),
            store: BTreeMap::new(),
            agents: Vec::new(),
            by_id: BTreeMap::new(),
            net: BTreeMap::new(),
            sent: 0,
            down_until: 0,
            ticket: 0,
            agents_waiting: BTreeMap::new(),
            client: client::Client::default(),
            judge: Judge::default(),
            ledger: Ledger::default(),
            steps: 0,
            faults: false,
            leader: 1,
            seed,
            history: Vec::new(),
            placements_before: 0,
            quiet_from: 0,
            options,
        };
        world.set_up();
        world
    }

    pub fn placements(&self) -> u64 {
        self.placements_before + self.state.counters().get("placements").copied().unwrap_or(0)
    }

    pub fn crashes(&self) -> u64 {
        self.leader - 1
    }

    fn set_up(&mut self) {
        let name = |text: &str| text.parse::<Name>().unwrap_or_else(|error| panic!("{error}"));
        self.ask(None, Wish::Bootstrap { group: name("ops"), user: name("root"), hash: "root".to_owned() });
        let actor = self.actor("root");
        self.client.admin = Some(actor);
        for index in 0..self.options.providers {
            let (provider, join, hash) = (name(&format!("p{index}")), format!("join{index}"), format!("agent{index}"));
            let wish = Wish::CreateJoin {
                group: actor.group,
                name: provider.clone(),
                tier: Tier::New,
                ttl_ms: 3_600_000,
                hash: join.clone(),
            };
            self.ask(Some(actor), wish);
            let joined = self.ask(None, Wish::Join { join_hash: join, name: provider, hash, key: String::new() });
            let Some(Ok(Answer::Object(Key::Provider(id)))) = joined else { panic!("cannot join: {joined:?}") };
            self.add_agent(id, index);
        }
        self.client.set_up(self.options.instances);
        self.send(0, Message::Client);
    }

    fn add_agent(&mut self, id: ProviderId, index: u64) {
        let mut engine = SimulatedEngine::default();
        engine.capacity = Resources {
            cpu_millis: 4_000 * (1 + self.dice.below(4)),
            memory_bytes: (4 << 30) * (1 + self.dice.below(4)),
            disk_bytes: 100 << 30,
            bandwidth_bps: 1 << 30,
            gpus: 0,
        };
        let zone = ["eu", "us", "ap"][(index % 3) as usize].to_owned();
        engine.facts.insert("zone".to_owned(), FactReport { value: FactValue::Text(zone), age_ms: 0, ttl_ms: None });
        let rate = 950 + self.dice.below(101);
        let offset_ms = self.dice.below(1_000_000_000);
        let agent = Agent {
            id,
            machine: Machine::new(0, offset_ms + self.now * rate / 1000),
            engine,
            rate,
            offset_ms,
            cut_until: 0,
        };
        self.by_id.insert(id, self.agents.len());
        self.agents.push(agent);
        let beat = self.dice.below(self.options.beat_ms);
        self.send(beat, Message::Beat(self.agents.len() - 1));
    }

    fn send(&mut self, delay: u64, message: Message) {
        self.sent += 1;
        self.net.insert((self.now + delay, self.sent), message);
    }

    /// Sends over the bad network.
    fn transmit(&mut self, message: Message) {
        let (Message::Hello(agent, ..)
        | Message::Sync(agent, ..)
        | Message::HelloReply(agent, ..)
        | Message::SyncReply(agent, ..)
        | Message::HelloNeeded(agent, _)
        | Message::Beat(agent)) = &message
        else {
            return;
        };
        if self.now < self.agents[*agent].cut_until {
            return;
        }
        let copies = if !self.faults {
            1
        } else if self.dice.chance(self.options.loss) {
            0
        } else {
            1 + u64::from(self.dice.chance(self.options.duplicate))
        };
        for _ in 0..copies {
            // Most messages are quick; some are very late, which also reorders them.
            let late = self.faults && self.dice.chance(100);
            let most = if late { self.options.delay_max_ms } else { 200 };
            let delay = 1 + self.dice.below(most);
            self.send(delay, message.clone());
        }
    }

    pub fn actor(&self, hash: &str) -> Actor {
        coracle_scheduler::core::authenticate(&self.state, self.now, hash).unwrap_or_else(|| panic!("no token {hash}"))
    }

    /// Asks the scheduler directly, as a client on a good line would; `None` while it is down or when it crashes.
    pub fn ask(&mut self, actor: Option<Actor>, wish: Wish) -> Option<Result<Answer, Refusal>> {
        self.ask_with_key(actor, wish, None)
    }

    pub fn ask_with_key(
        &mut self,
        actor: Option<Actor>,
        wish: Wish,
        key: Option<String>,
    ) -> Option<Result<Answer, Refusal>> {
        if self.now < self.down_until {
            return None;
        }
        self.ticket += 1;
        let ticket = self.ticket;
        let digest = format!("{wish:?}");
        let request = Request { actor, id: format!("r{ticket}"), key, digest, wish };
        let answers = self.step(Event::Request { ticket, request: Box::new(request) });
        answers.into_iter().find(|(found, _)| *found == ticket).map(|(_, answer)| answer)
    }

    /// Applies an event: commit, then deliver; a crash may come before, between or after.
    fn step(&mut self, event: Event) -> Vec<(u64, Result<Answer, Refusal>)> {
        let crash = self.faults && self.dice.below(self.options.crash_every) == 0;
        let lost = crash && self.dice.chance(500);
        let actions = step(&mut self.state, self.now, event);
        if lost {
            self.crash();
            return Vec::new();
        }
        for action in &actions {
            match action {
                Action::Write(key, record) => {
                    self.judge.wrote(record);
                    self.store.insert(key.columns(), (**record).clone());
                }
                Action::Erase(key) => {
                    self.judge.erased(key);
                    self.store.remove(&key.columns());
                }
                Action::Audit(row) => self.judge.audited(row),
                Action::Notice(notice) => {
                    self.judge.noticed(notice);
                    if self.options.providers < 100 {
                        self.history.push(format!("{} {} {}", notice.at_ms, notice.kind, notice.subject));
                    }
                }
                Action::Answer(..) | Action::Wake(_) => {}
            }
        }
        self.steps += 1;
        let found = self.ledger.after(&self.state, &actions);
        assert!(found.is_empty(), "at {} of seed {}: {found:#?}", self.now, self.seed);
        // A step that writes nothing changes no record, so most of the check would look at the same things again.
        let wrote = actions.iter().any(|action| matches!(action, Action::Write(..) | Action::Erase(_)));
        if wrote && self.steps.is_multiple_of(self.options.check_every) {
            self.check();
        }
        if crash {
            self.crash();
            return Vec::new();
        }
        self.deliver(actions)
    }

    fn deliver(&mut self, actions: Vec<Action>) -> Vec<(u64, Result<Answer, Refusal>)> {
        let mut answers = Vec::new();
        for action in actions {
            let Action::Answer(ticket, answer) = action else { continue };
            match (self.agents_waiting.remove(&ticket), *answer) {
                (Some((agent, sent, _)), Ok(Answer::Hello(reply))) => {
                    self.transmit(Message::HelloReply(agent, sent, reply))
                }
                (Some((agent, sent, _)), Ok(Answer::Sync(reply))) => {
                    self.transmit(Message::SyncReply(agent, sent, reply))
                }
                (Some((agent, _, session)), Err(Refusal::HelloNeeded)) => {
                    self.transmit(Message::HelloNeeded(agent, session));
                }
                (Some(_), _) => {}
                (None, answer) => answers.push((ticket, answer)),
            }
        }
        answers
    }

    fn crash(&mut self) {
        self.placements_before += self.state.counters().get("placements").copied().unwrap_or(0);
        self.leader += 1;
        self.down_until = self.now + self.dice.below(60_000);
        self.agents_waiting.clear();
        let core = CoreOptions { leader: self.leader, ..self.state.options };
        let mut seed = [self.seed as u8; 32];
        seed[31] = self.leader as u8;
        self.state = State::load(core, seed, self.down_until, self.store.values().cloned());
        self.check();
    }

    fn check(&self) {
        let found = coracle_scheduler::core::check::violations(&self.state);
        assert!(found.is_empty(), "at {} of seed {}: {found:#?}", self.now, self.seed);
        self.judge.check_store(&self.store);
    }

    pub fn run(&mut self) {
        let storm_until = self.now + self.options.storm_ms;
        let calm_until = storm_until + self.options.calm_ms;
        self.quiet_from = storm_until + self.options.calm_ms / 3;
        self.faults = true;
        while let Some(((at, number), _)) = self.net.first_key_value() {
            let (at, number) = (*at, *number);
            if at >= calm_until {
                break;
            }
            // Timers between messages.
            let due = self.state.next_timer_ms().filter(|due| *due < at && self.now.max(*due) >= self.down_until);
            if let Some(due) = due {
                self.now = self.now.max(due);
                self.step(Event::Tick);
                continue;
            }
            let Some(message) = self.net.remove(&(at, number)) else { break };
            self.now = at.max(self.now);
            if self.faults && self.now >= storm_until {
                self.faults = false;
            }
            self.receive(message);
        }
        self.check();
        self.judge.check_end(self);
        if std::env::var_os("CORACLE_SIM_TALK").is_some() {
            let mut kinds = BTreeMap::<String, u64>::new();
            for line in &self.history {
                *kinds.entry(line.split(' ').nth(1).unwrap_or_default().to_owned()).or_default() += 1;
            }
            let states: Vec<_> = self.state.instances.values().map(|found| found.state).collect();
            eprintln!(
                "{} steps, leader {}, {kinds:#?} {:?} {states:?}",
                self.steps,
                self.leader,
                self.state.counters()
            );
        }
    }

    fn receive(&mut self, message: Message) {
        match message {
            Message::Beat(agent) => self.beat(agent),
            Message::Client => {
                // The end is quiet, so that what was begun last has time to end.
                if self.now < self.quiet_from {
                    client::act(self);
                }
                let next = self.options.storm_ms / 60;
                self.send(next.max(1), Message::Client);
            }
            Message::Hello(agent, sent, hello) => self.deliver_to_scheduler((agent, sent, 0), |provider, ticket| {
                Event::Hello { ticket, provider, hello: Box::new(hello) }
            }),
            Message::Sync(agent, sent, sync) => {
                self.deliver_to_scheduler((agent, sent, sync.session), |provider, ticket| Event::Sync {
                    ticket,
                    provider,
                    sync: Box::new(sync),
                })
            }
            Message::HelloReply(index, sent, reply) => {
                let agent = &mut self.agents[index];
                let clock = agent.clock(self.now);
                agent.machine.on_hello(&mut agent.engine, clock, sent, reply);
                self.look(index);
            }
            Message::SyncReply(index, sent, reply) => {
                let agent = &mut self.agents[index];
                let clock = agent.clock(self.now);
                agent.machine.on_sync(&mut agent.engine, clock, sent, reply);
                self.look(index);
            }
            Message::HelloNeeded(index, session) => self.agents[index].machine.on_hello_needed(session),
        }
    }

    fn look(&mut self, index: usize) {
        let agent = &self.agents[index];
        self.judge.look(index, &agent.engine);
        if self.agents.len() < 100 {
            self.judge.alone(index, &self.agents);
        }
    }

    fn deliver_to_scheduler(&mut self, from: (usize, u64, u64), event: impl FnOnce(ProviderId, u64) -> Event) {
        if self.now < self.down_until {
            return;
        }
        self.ticket += 1;
        self.agents_waiting.insert(self.ticket, from);
        let event = event(self.agents[from.0].id, self.ticket);
        self.step(event);
    }

    fn beat(&mut self, index: usize) {
        let now = self.now;
        if self.faults && self.dice.chance(self.options.crash_agent) {
            let reboot = self.dice.chance(500);
            let agent = &mut self.agents[index];
            if reboot {
                agent.engine.reboot();
                self.judge.rebooted(index);
            }
            let incarnation = agent.machine.incarnation();
            let clock = agent.clock(now);
            agent.machine = Machine::new(incarnation, clock);
        }
        let (exits, code) = (self.faults && self.dice.chance(30), i32::from(self.dice.chance(300)));
        let pick = self.dice.next();
        let agent = &mut self.agents[index];
        let clock = agent.clock(now);
        agent.machine.tick(&mut agent.engine, clock);
        agent.engine.advance();
        self.carry_data(index);
        let agent = &mut self.agents[index];
        let running = agent.engine.running();
        if exits && !running.is_empty() {
            let (instance, epoch) = running[(pick % running.len() as u64) as usize];
            agent.engine.exit(instance, epoch, code);
        }
        let message = match agent.machine.sync(&mut agent.engine) {
            Some(sync) => Message::Sync(index, clock, sync),
            None => Message::Hello(index, clock, agent.machine.hello(&mut agent.engine)),
        };
        self.look(index);
        self.transmit(message);
        // A partition: the agent works on, and nobody hears it.
        if self.faults && self.dice.chance(10) {
            self.agents[index].cut_until = now + self.dice.below(self.options.partition_max_ms);
        }
        let beat = self.options.beat_ms;
        self.send(beat, Message::Beat(index));
    }

    /// Lets data come that an agent waits for, if it is where the scheduler says; a bad network may have it in vain.
    fn carry_data(&mut self, index: usize) {
        let awaited: Vec<(InstanceId, u64)> = self.agents[index].engine.awaited.iter().copied().collect();
        for (instance, epoch) in awaited {
            let cut = self.now < self.down_until || self.now < self.agents[index].cut_until;
            if cut || (self.faults && self.dice.chance(300)) {
                continue;
            }
            let found = self.state.instances.get(&instance);
            let meant = found.filter(|found| found.alloc.as_ref().is_some_and(|alloc| alloc.epoch == epoch));
            let source = meant.and_then(|found| found.moving?.source);
            let well = source.is_some_and(|source| {
                let giver = &self.agents[self.by_id[&source.provider]];
                self.now >= giver.cut_until && giver.engine.keeps(instance, source.epoch)
            });
            let agent = &mut self.agents[index];
            agent.engine.fetched(instance, epoch, well && !(self.faults && self.dice.chance(100)));
        }
    }

    /// Lists what really runs where.
    pub fn running(&self) -> BTreeMap<InstanceId, BTreeSet<(usize, u64)>> {
        let mut found: BTreeMap<InstanceId, BTreeSet<(usize, u64)>> = BTreeMap::new();
        for (index, agent) in self.agents.iter().enumerate() {
            for (instance, epoch) in agent.engine.running() {
                found.entry(instance).or_default().insert((index, epoch));
            }
        }
        found
    }
}
