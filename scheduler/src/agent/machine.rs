//! The agent's session, without clock or network.
//!
//! Invariants: commands of a session are applied in order and once; an answer from an older leader, an older session
//! or to an older hello is dropped; an end that is not acknowledged is reported again; an allocation with
//! `stop_after` ends by itself that long after the last request that the scheduler is known to have heard.

use std::collections::BTreeMap;

use super::engine::{Asked, Engine, EngineError};
use crate::model::*;

/// An answer that took longer is dropped unread; the scheduler's own patience is longer than this.
pub const REPLY_MAX_MS: u64 = 30_000;
/// Syncs whose statuses are remembered for their acknowledgement.
const UNACKED_MAX: usize = 64;

#[derive(Debug, Clone)]
struct Session {
    id: u64,
    seq: u64,
    applied: u64,
}

/// The agent's side of the protocol.
#[derive(Debug, Clone)]
pub struct Machine {
    incarnation: u64,
    leader: u64,
    session: Option<Session>,
    /// What the scheduler is known to have, by allocation.
    acked: BTreeMap<(InstanceId, u64), (Phase, Option<DiskReport>)>,
    /// What each unacknowledged sync said.
    said: BTreeMap<u64, Vec<AllocStatus>>,
    contact_ms: u64,
    /// How often to sync.
    pub interval_ms: u64,
    /// What the last hello said.
    hello_said: Vec<AllocStatus>,
    /// The facts that the scheduler is known to have.
    facts: BTreeMap<String, FactReport>,
    /// What each unacknowledged sync said about facts.
    facts_said: BTreeMap<u64, BTreeMap<String, FactReport>>,
    /// How long the way to the scheduler and back takes, when that was measured.
    pub network_rtt: Option<FactReport>,
    /// Allocations that are not here although the scheduler spoke of them, with the reason.
    phantoms: BTreeMap<(InstanceId, u64), String>,
}

/// The fact of how long the way to the scheduler and back takes, in milliseconds.
pub const NETWORK_RTT: &str = "network_rtt";

impl Machine {
    /// Begins with the number of the last hello, which the caller keeps on disk.
    pub fn new(incarnation: u64, now_ms: u64) -> Self {
        Self {
            incarnation,
            leader: 0,
            session: None,
            acked: BTreeMap::new(),
            said: BTreeMap::new(),
            contact_ms: now_ms,
            interval_ms: 1_000,
            hello_said: Vec::new(),
            facts: BTreeMap::new(),
            facts_said: BTreeMap::new(),
            network_rtt: None,
            phantoms: BTreeMap::new(),
        }
    }

    /// What the engine knows about the host, and the agent about its way to the scheduler.
    fn all_facts(&self, engine: &mut dyn Engine) -> BTreeMap<String, FactReport> {
        let mut facts = engine.facts();
        facts.extend(self.network_rtt.clone().map(|fact| (NETWORK_RTT.to_owned(), fact)));
        facts
    }

    fn report(&self, engine: &mut dyn Engine) -> Vec<AllocStatus> {
        let mut all = engine.report();
        for ((instance, epoch), reason) in &self.phantoms {
            let phase = Phase::Exited { code: None, reason: reason.clone() };
            all.push(AllocStatus { instance: *instance, epoch: *epoch, phase, usage: Usage::default(), disk: None });
        }
        all
    }

    /// Returns the number of the last hello; the caller saves it before the hello is sent.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Tells whether there is a session.
    pub fn is_open(&self) -> bool {
        self.session.is_some()
    }

    /// Makes the next hello.
    pub fn hello(&mut self, engine: &mut dyn Engine) -> Hello {
        self.incarnation += 1;
        self.session = None;
        let running = self.report(engine);
        self.facts = self.all_facts(engine);
        self.facts_said.clear();
        self.hello_said.clone_from(&running);
        Hello {
            protocol_min: PROTOCOL_MIN,
            protocol_max: PROTOCOL_MAX,
            incarnation: self.incarnation,
            boot_id: engine.boot_id(),
            capacity: engine.capacity(),
            price: engine.price(),
            accepting: engine.accepting(),
            drain_ms: engine.drain_ms(),
            facts: self.facts.clone(),
            running,
        }
    }

    /// Takes in the answer to a hello that was sent at `sent_ms`.
    pub fn on_hello(&mut self, engine: &mut dyn Engine, now_ms: u64, sent_ms: u64, reply: HelloReply) {
        let late = now_ms.saturating_sub(sent_ms) > REPLY_MAX_MS;
        if late || reply.incarnation != self.incarnation || reply.leader < self.leader || self.session.is_some() {
            return;
        }
        self.leader = reply.leader;
        self.contact_ms = self.contact_ms.max(sent_ms);
        self.interval_ms = reply.interval_ms;
        self.session = Some(Session { id: reply.session, seq: 0, applied: 0 });
        self.acked.clear();
        self.said.clear();
        let said = std::mem::take(&mut self.hello_said);
        self.acknowledge(engine, said);
        self.apply(engine, reply.commands);
    }

    fn acknowledge(&mut self, engine: &mut dyn Engine, said: Vec<AllocStatus>) {
        for status in said {
            if matches!(status.phase, Phase::Exited { .. }) {
                engine.forget(status.instance, status.epoch);
                self.phantoms.remove(&(status.instance, status.epoch));
                self.acked.remove(&(status.instance, status.epoch));
            } else {
                self.acked.insert((status.instance, status.epoch), (status.phase, status.disk));
            }
        }
    }

    /// Makes the next sync; `None` without a session.
    pub fn sync(&mut self, engine: &mut dyn Engine) -> Option<Sync> {
        let all = self.report(engine);
        let facts = self.all_facts(engine);
        let session = self.session.as_mut()?;
        session.seq += 1;
        // A fact that ages is said again each time: its age is the news.
        let known = &self.facts;
        let news = facts.into_iter().filter(|(key, fact)| fact.ttl_ms.is_some() || known.get(key) != Some(fact));
        let facts: BTreeMap<String, FactReport> = news.collect();
        if !facts.is_empty() {
            self.facts_said.insert(session.seq, facts.clone());
            if self.facts_said.len() > UNACKED_MAX {
                self.facts_said.pop_first();
            }
        }
        let acked = &self.acked;
        let changed = |status: &AllocStatus| match acked.get(&(status.instance, status.epoch)) {
            Some((phase, told)) => *phase != status.phase || is_disk_news(status.disk, *told),
            None => true,
        };
        let statuses: Vec<AllocStatus> = all.into_iter().filter(changed).collect();
        if !statuses.is_empty() {
            self.said.insert(session.seq, statuses.clone());
            if self.said.len() > UNACKED_MAX {
                self.said.pop_first();
            }
        }
        Some(Sync {
            session: session.id,
            seq: session.seq,
            applied: session.applied,
            accepting: engine.accepting(),
            drain_ms: engine.drain_ms(),
            statuses,
            facts,
        })
    }

    /// Takes in the answer to a sync that was sent at `sent_ms`.
    pub fn on_sync(&mut self, engine: &mut dyn Engine, now_ms: u64, sent_ms: u64, reply: SyncReply) {
        let late = now_ms.saturating_sub(sent_ms) > REPLY_MAX_MS;
        let ours = self.session.as_ref().is_some_and(|session| session.id == reply.session);
        if late || !ours || reply.leader < self.leader {
            return;
        }
        self.leader = reply.leader;
        self.contact_ms = self.contact_ms.max(sent_ms);
        self.interval_ms = reply.interval_ms;
        // The newest acknowledged sync said everything that the older ones said, or something later.
        let later = self.said.split_off(&(reply.acked + 1));
        let said = std::mem::replace(&mut self.said, later);
        for (seq, statuses) in said {
            if seq <= reply.acked {
                self.acknowledge(engine, statuses);
            }
        }
        let later = self.facts_said.split_off(&(reply.acked + 1));
        for (_, facts) in std::mem::replace(&mut self.facts_said, later) {
            self.facts.extend(facts);
        }
        self.apply(engine, reply.commands);
    }

    /// Takes in that the scheduler does not know the session.
    pub fn on_hello_needed(&mut self, session: u64) {
        if self.session.as_ref().is_some_and(|own| own.id == session) {
            self.session = None;
        }
    }

    fn apply(&mut self, engine: &mut dyn Engine, commands: Vec<NumberedCommand>) {
        for numbered in commands {
            let Some(session) = self.session.as_mut() else { return };
            if numbered.seq != session.applied + 1 {
                continue;
            }
            session.applied = numbered.seq;
            match numbered.command {
                Command::Start { instance, epoch, spec, group, moved, secrets } => {
                    // Half of what it needs to know would make it run wrongly.
                    let outcome = if secrets.len() == spec.secrets.len() {
                        let asked = Asked { spec: &spec, group: &group, secrets: &secrets, moved };
                        engine.start(instance, epoch, asked).map_err(|error| error.to_string())
                    } else {
                        Err("a secret cannot be opened by the scheduler".to_owned())
                    };
                    if let Err(reason) = outcome {
                        self.phantoms.insert((instance, epoch), reason);
                    }
                }
                Command::Stop { instance, epoch, grace_ms } => {
                    self.told(engine, instance, epoch, |engine| engine.stop(instance, epoch, grace_ms));
                }
                Command::Halt { instance, epoch, grace_ms } => {
                    self.told(engine, instance, epoch, |engine| engine.halt(instance, epoch, grace_ms));
                }
                Command::Resume { instance, epoch, secrets } => {
                    self.told(engine, instance, epoch, |engine| engine.resume(instance, epoch, &secrets));
                }
            }
        }
    }

    /// Carries an order about an allocation out, which may not be here any more.
    fn told(
        &mut self,
        engine: &mut dyn Engine,
        instance: InstanceId,
        epoch: u64,
        order: impl FnOnce(&mut dyn Engine) -> Result<(), EngineError>,
    ) {
        let here = engine.report().iter().any(|found| (found.instance, found.epoch) == (instance, epoch));
        // A halt and a start at once leave it as it was, and the scheduler waits to hear that.
        self.acked.remove(&(instance, epoch));
        if order(engine).is_err() || !here {
            self.phantoms.insert((instance, epoch), "is not here".to_owned());
        }
    }

    /// Ends allocations that may not run alone for so long.
    pub fn tick(&mut self, engine: &mut dyn Engine, now_ms: u64) {
        for status in engine.report() {
            let alone = engine.alone_ms(status.instance, status.epoch);
            let over = alone.is_some_and(|most| now_ms.saturating_sub(self.contact_ms) >= most);
            if over && !matches!(status.phase, Phase::Exited { .. } | Phase::Halted) {
                let _ = engine.stop(status.instance, status.epoch, 0);
            }
        }
    }
}

fn is_disk_news(disk: Option<DiskReport>, told: Option<DiskReport>) -> bool {
    match (disk, told) {
        (Some(disk), Some(told)) => disk.is_news(&told),
        (disk, told) => disk != told,
    }
}
