//! What must never happen, and what must be true when the storm is over.

use std::collections::{BTreeMap, BTreeSet};

use coracle_scheduler::agent::{Engine as _, SimulatedEngine};
use coracle_scheduler::model::*;

use super::{Agent, World};

#[derive(Default)]
pub struct Judge {
    epochs: BTreeMap<InstanceId, u64>,
    exits: BTreeMap<(InstanceId, u64), Exit>,
    finals: BTreeMap<InstanceId, (InstanceState, Option<Exit>)>,
    incarnations: BTreeMap<ProviderId, (u64, u64)>,
    removed: BTreeSet<String>,
    /// Instances whose data is on its way.
    under_way: BTreeSet<InstanceId>,
    audit: u64,
    chains: BTreeMap<GroupId, String>,
    notice: u64,
    /// Since when instances are stopping.
    stopping: BTreeMap<String, u64>,
    /// Where each allocation was ever begun.
    begun: BTreeMap<(InstanceId, u64), usize>,
    /// Allocations that may be begun again on their host, which lost everything.
    rebooted: BTreeSet<usize>,
}

impl Judge {
    /// Looks at a record that became durable.
    pub fn wrote(&mut self, record: &Record) {
        match record {
            Record::Instance(found) => self.wrote_instance(found),
            Record::Provider(found) => {
                let before = self.incarnations.insert(found.id, (found.incarnation, found.session)).unwrap_or_default();
                assert!(before.0 <= found.incarnation && before.1 <= found.session, "{} went back in time", found.id);
            }
            _ => {}
        }
    }

    fn wrote_instance(&mut self, found: &Instance) {
        let under_way = found.moving.is_some_and(|moving| moving.source.is_some());
        assert!(
            !(self.under_way.contains(&found.id) && found.state == InstanceState::Pending),
            "{}: its data was thrown away on the way",
            found.id
        );
        if under_way {
            self.under_way.insert(found.id)
        } else {
            self.under_way.remove(&found.id)
        };
        let before = self.epochs.insert(found.id, found.epoch).unwrap_or(0);
        assert!(before <= found.epoch, "{}: epoch {before} became {}", found.id, found.epoch);
        if let Some(exit) = &found.exit {
            let first = self.exits.entry((found.id, exit.epoch)).or_insert_with(|| exit.clone());
            assert_eq!(first, exit, "{}: an exit changed", found.id);
        }
        if let Some(last) = self.finals.get(&found.id) {
            assert_eq!(last, &(found.state, found.exit.clone()), "{}: a final instance changed", found.id);
        }
        if found.state.is_final() {
            self.finals.insert(found.id, (found.state, found.exit.clone()));
        }
    }

    pub fn erased(&mut self, key: &Key) {
        self.removed.insert(key.columns().1);
    }

    /// Audit rows count mutations without a gap and are chained.
    pub fn audited(&mut self, row: &Audit) {
        assert_eq!(row.seq, self.audit + 1);
        self.audit = row.seq;
        let head = self.chains.insert(row.group, row.hash.clone()).unwrap_or_default();
        assert_eq!(head, row.previous, "the chain of {} is broken", row.group);
    }

    pub fn noticed(&mut self, notice: &Notice) {
        assert_eq!(notice.seq, self.notice + 1, "notices have a gap");
        self.notice = notice.seq;
        match notice.kind.as_str() {
            "instance.stopping" => {
                self.stopping.entry(notice.subject.clone()).or_insert(notice.at_ms);
            }
            "instance.pending" | "instance.stopped" | "instance.failed" | "instance.halted" | "instance.starting" => {
                self.stopping.remove(&notice.subject);
            }
            _ => {}
        }
        if notice.kind.ends_with(".removed") {
            self.removed.insert(notice.subject.clone());
        }
    }

    /// The store holds what was acknowledged, or a recorded removal.
    pub fn check_store(&self, store: &BTreeMap<(&'static str, String), Record>) {
        for (id, epoch) in &self.epochs {
            if let Some(Record::Instance(found)) = store.get(&("instance", id.to_string())) {
                assert_eq!(found.epoch, *epoch);
            } else {
                assert!(self.removed.contains(&id.to_string()), "{id} vanished");
            }
        }
    }

    pub fn rebooted(&mut self, agent: usize) {
        self.rebooted.insert(agent);
    }

    /// An allocation is begun on one provider only, and once unless the host lost it.
    pub fn look(&mut self, agent: usize, engine: &SimulatedEngine) {
        for ((instance, epoch), starts) in &engine.starts {
            let place = self.begun.entry((*instance, *epoch)).or_insert(agent);
            assert_eq!(*place, agent, "{instance} epoch {epoch} was begun on two providers");
            assert!(
                *starts == 1 || self.rebooted.contains(&agent),
                "{instance} epoch {epoch} was begun {starts} times"
            );
        }
    }

    /// Of an instance with `stop_after`, two never run at once.
    pub fn alone(&self, index: usize, agents: &[Agent]) {
        for (instance, epoch) in agents[index].engine.running() {
            if agents[index].engine.alone_ms(instance, epoch).is_none() {
                continue;
            }
            for (other, agent) in agents.iter().enumerate().filter(|(other, _)| *other != index) {
                let twice = agent.engine.running().iter().any(|(found, _)| *found == instance);
                assert!(!twice, "{instance} may not run twice and does, at {index} and {other}");
            }
        }
    }

    /// When everything has been calm for a while, what runs is what should run.
    pub fn check_end(&self, world: &World) {
        let running = world.running();
        for key in &world.client.acknowledged {
            let there = world.state.record(key).is_some() || self.removed.contains(&key.columns().1);
            assert!(there, "{key:?} was acknowledged and is gone");
        }
        for instance in world.state.instances.values() {
            let here = running.get(&instance.id).map_or(0, BTreeSet::len);
            match instance.state {
                InstanceState::Running | InstanceState::Pulling => {
                    assert_eq!(here, 1, "{} is {:?} and runs {here} times", instance.id, instance.state);
                }
                InstanceState::Pending | InstanceState::Halted | InstanceState::Stopped | InstanceState::Failed => {
                    assert_eq!(here, 0, "{} is {:?} and runs {here} times", instance.id, instance.state);
                }
                InstanceState::Placed => assert!(here <= 1),
                // A rolling update may just have begun with it; its agent has not reported yet.
                InstanceState::Stopping => {
                    let since = self.stopping.get(&instance.id.to_string()).copied().unwrap_or(0);
                    assert!(since + 60_000 > world.now, "{} is stopping since {since}, now {}", instance.id, world.now);
                }
                other => panic!("{} is still {other:?}: {}", instance.id, instance.reason),
            }
            assert!(instance.old.is_empty(), "{} still waits for an old allocation", instance.id);
        }
        for (instance, places) in &running {
            assert!(world.state.instances.contains_key(instance), "{instance} runs at {places:?} and nobody knows it");
        }
        for service in world.state.services.values().filter(|found| !found.spec.global && found.halted.is_none()) {
            let of = |found: &&Instance| matches!(found.owner, Owner::Service { service: id, .. } if id == service.id);
            let live = world
                .state
                .instances
                .values()
                .filter(of)
                .filter(|found| !found.state.is_final() && found.stop.is_none());
            assert_eq!(live.count(), service.spec.replicas as usize, "service {}", service.spec.name);
        }
    }
}
