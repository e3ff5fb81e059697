//! What the agent asks of this machine, as the scheduler crate's `Engine`.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use coracle_runtime::memory;
use coracle_scheduler::agent::{self, Asked, EngineStream};
use coracle_scheduler::model::{
    AllocStatus, Delivered, FactReport, FactValue, InstanceId, OnLoss, Resources, StreamKind, StreamOrder,
};
use coracle_scheduler::ssh::Authority;

use super::commands::Verb;
use super::ledger::{Arrival, Entry, Halt};
use super::words::{self, Given};
use super::{
    FACTS, Key, LOOK, LOOK_CALM, LOOK_SHARE, Provider, Shares, closed, facts, moved, secrets, shares, ssh, watch,
};

fn refuse(op: &'static str, key: Key, reason: impl ToString) -> agent::EngineError {
    agent::EngineError { op, instance: key.0, reason: reason.to_string() }
}

impl agent::Engine for Provider {
    fn capacity(&self) -> Resources {
        Shares::read(&self.folder).unwrap_or_default().offer(&self.root)
    }

    fn changes(&self) -> Option<OwnedFd> {
        self.children.watch.as_ref()?.descriptor()
    }

    fn look_in(&self) -> Duration {
        // What has woken us is looked for as soon as it may be.
        let pause = self.reported.map_or(Duration::ZERO, |at| self.look_pause.saturating_sub(at.elapsed()));
        if self.woken { pause } else { self.look_in }
    }

    fn rest(&mut self) {
        memory::release_program();
    }

    fn accepting(&self) -> bool {
        closed(&self.folder).is_none()
    }

    fn drain_ms(&self) -> Option<u64> {
        shares::drain_ms(&self.folder)
    }

    fn boot_id(&self) -> String {
        facts::boot_id()
    }

    fn facts(&mut self) -> BTreeMap<String, FactReport> {
        let due = self.facts.as_ref().is_none_or(|(at, _)| at.elapsed() >= FACTS);
        if due {
            let mut facts = facts::measure(&self.root, &Shares::read(&self.folder).unwrap_or_default());
            // Without one nobody gets in, and everything else goes on.
            if let Ok(authority) = Authority::open(&ssh::keys_folder(&self.folder)).and_then(|own| own.public_line()) {
                let value = FactValue::Text(authority);
                facts.insert(ssh::AUTHORITY_FACT.to_owned(), FactReport { value, age_ms: 0, ttl_ms: None });
            }
            self.facts = Some((Instant::now(), facts));
        }
        let mut facts = self.facts.as_ref().map(|(_, facts)| facts.clone()).unwrap_or_default();
        self.extras.add_to(&mut facts);
        facts
    }

    fn start(
        &mut self,
        instance: InstanceId,
        epoch: u64,
        Asked { spec, group, secrets, moved }: Asked<'_>,
    ) -> Result<(), agent::EngineError> {
        let key = (instance, epoch);
        if self.ledger.get(key).is_some() {
            return Ok(());
        }
        let shares = Shares::read(&self.folder).map_err(|error| refuse("start", key, error))?;
        shares.allow(spec, group).map_err(|reason| refuse("start", key, reason))?;
        if let Some(reason) = closed(&self.folder) {
            return Err(refuse("start", key, reason));
        }
        let missing = facts::missing_limits(&self.root, &shares);
        let secrets_of = secrets::folder(&self.root, key);
        let given = Given { shares: &shares, missing: &missing, secrets: secrets_of.as_deref() };
        if let Some(reason) = words::unenforced(spec, &given) {
            return Err(refuse("start", key, reason));
        }
        secrets::keep(&self.root, key, secrets).map_err(|reason| refuse("start", key, reason))?;
        self.ledger.add(key, spec.clone(), group, moved).map_err(|error| refuse("start", key, error))?;
        if moved {
            self.children.make(key, spec, &given);
        } else {
            self.children.run(key, spec, &given);
        }
        self.reported = None;
        Ok(())
    }

    fn halt(&mut self, instance: InstanceId, epoch: u64, grace_ms: u64) -> Result<(), agent::EngineError> {
        let key = (instance, epoch);
        let asked = self.ledger.get(key).is_some_and(|entry| entry.halt != Halt::Wanted && entry.end.is_none());
        if asked {
            self.ledger.change(key, |entry| {
                entry.halt = Halt::Wanted;
                entry.grace_s = grace_ms.div_ceil(1000);
            });
            self.reported = None;
        }
        Ok(())
    }

    fn resume(&mut self, instance: InstanceId, epoch: u64, secrets: &[Delivered]) -> Result<(), agent::EngineError> {
        let key = (instance, epoch);
        // Neither before its data is here, nor without its secrets (it stays halted, and the scheduler asks again), nor
        // while the owner wants nothing to run.
        let may = |entry: &Entry| entry.rests() && secrets::restore(&self.root, key, &entry.spec, secrets);
        if shares::drain_ms(&self.folder) != Some(0) && self.ledger.get(key).is_some_and(may) {
            let after_run = self.container(key).map_or(0, |container| container.run());
            self.ledger.change(key, |entry| entry.halt = Halt::Resuming { after_run });
            self.reported = None;
        }
        Ok(())
    }

    fn stop(&mut self, instance: InstanceId, epoch: u64, grace_ms: u64) -> Result<(), agent::EngineError> {
        let key = (instance, epoch);
        let Some(entry) = self.ledger.get(key) else { return Ok(()) };
        if entry.stopping && self.children.verb(key).is_some() {
            return Ok(());
        }
        self.ledger.change(key, |entry| {
            entry.stopping = true;
            entry.grace_s = grace_ms.div_ceil(1000);
        });
        if self.children.verb(key) == Some(Verb::Run) {
            self.children.give_up(key);
        }
        self.reported = None;
        Ok(())
    }

    fn report(&mut self) -> Vec<AllocStatus> {
        self.woken |= self.children.watch.as_ref().is_some_and(watch::Watch::happened);
        let wait = if self.woken { self.look_pause } else { self.look_in };
        if self.reported.is_none_or(|at| at.elapsed() >= wait) {
            self.woken = false;
            let begun = Instant::now();
            self.report = self.look();
            self.reported = Some(Instant::now());
            self.look_pause = begun.elapsed().saturating_mul(LOOK_SHARE).min(LOOK_CALM);
            self.look_in = if self.is_calm() { LOOK_CALM } else { LOOK };
        }
        self.report.clone()
    }

    fn forget(&mut self, instance: InstanceId, epoch: u64) {
        let key = (instance, epoch);
        self.used.remove(&key);
        self.disks.remove(&key);
        self.failed.remove(&key);
        self.farewells.remove(&key);
        self.ledger.change(key, |entry| entry.forgotten = true);
        self.reported = None;
    }

    fn awaits_data(&mut self) -> Vec<Key> {
        let ready = |key: &Key| {
            let waits = |entry: &Entry| entry.arrival == Arrival::Awaited && !entry.stopping && entry.end.is_none();
            self.ledger.get(*key).is_some_and(waits)
                && self.children.verb(*key).is_none()
                && self.is_made(*key)
                && moved::outcome(&self.folder, *key).is_none()
        };
        self.ledger.keys().filter(ready).collect()
    }

    fn take_data(&mut self, instance: InstanceId, epoch: u64) -> Result<EngineStream, agent::EngineError> {
        let key = (instance, epoch);
        moved::take(&self.root, &self.folder, key).map_err(|error| refuse("take the data of", key, error))
    }

    fn no_data(&mut self, instance: InstanceId, epoch: u64, reason: String) {
        self.ledger.change((instance, epoch), |entry| entry.end(None, reason));
        self.reported = None;
    }

    fn stream(&mut self, order: &StreamOrder) -> Result<EngineStream, agent::EngineError> {
        let key = (order.instance, order.epoch);
        let Some(entry) = self.ledger.get(key).filter(|entry| !entry.forgotten) else {
            return Err(refuse("open a stream to", key, "it is not here"));
        };
        if order.kind == StreamKind::Data && (entry.stopping || !entry.rests()) {
            return Err(refuse("open a stream to", key, "it does not stand still"));
        }
        self.children.stream(key, order, &self.folder).map_err(|error| refuse("open a stream to", key, error))
    }

    fn alone_ms(&self, instance: InstanceId, epoch: u64) -> Option<u64> {
        match self.ledger.get((instance, epoch))?.spec.on_loss {
            OnLoss::StopAfter { after_ms } => Some(after_ms),
            _ => None,
        }
    }
}
