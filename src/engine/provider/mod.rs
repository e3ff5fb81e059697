//! This machine as a provider of a pool: the scheduler crate's `Engine`, by containers that outlive the agent.
//!
//! Every allocation has a line in the ledger before anything is made, and a container of a name that only it has.
//! Containers are made, stopped and removed by this program's own commands as children, because the agent has
//! threads and may not clone; what is reported is read from the containers' own records. So a killed agent changes
//! nothing: the next one reads ledger and containers and goes on.

mod commands;
mod extras;
pub mod facts;
mod ledger;
mod listing;
pub mod moved;
pub mod policy;
pub mod presence;
mod reboot;
mod secrets;
mod sftp;
pub mod shares;
pub mod ssh;
mod words;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use coracle_runtime::memory;
use coracle_scheduler::agent::{self, Asked, EngineStream};
use coracle_scheduler::model::{
    AllocStatus, Delivered, FactReport, FactValue, InstanceId, OnLoss, Phase, Resources, StreamKind, StreamOrder, Usage,
};
use coracle_scheduler::ssh::Authority;

use super::consumption;
use super::containers::{self, Container, Status};
use super::record::STOP_TIMEOUT_S;
pub use extras::bad as bad_facts;

use commands::{Children, Outcome, Verb};
pub use ledger::LedgerError;
use ledger::{Arrival, Entry, Halt, Ledger};
pub use listing::{containers_here, list};
pub use presence::hide_memory;
pub use secrets::forget_all as forget_secrets;
pub use shares::Shares;
use words::Given;

/// How old an answer about the containers may be; the agent asks twenty times a second.
const LOOK: Duration = Duration::from_millis(250);
/// How often what is used is measured; it is told when an allocation ends.
const MEASURE: Duration = Duration::from_secs(10);

/// How often facts are measured: a sixth of the time for which the quickest are believed.
const FACTS: Duration = Duration::from_secs(10);

/// How long it is tried to start again what stands still: while a machine boots, its systemd is not always quick enough.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// How long after a try the next one begins.
const START_PAUSE: Duration = Duration::from_secs(2);

/// What an allocation is called in the ledger, in lists and as a container.
type Key = (InstanceId, u64);

/// Gives the container's name of an allocation.
pub fn container_name((instance, epoch): Key) -> String {
    format!("pool-{instance}-{epoch}")
}

/// Runs allocations as containers.
pub struct Provider {
    root: PathBuf,
    folder: PathBuf,
    ledger: Ledger,
    children: Children,
    used: BTreeMap<Key, Usage>,
    /// When starting again failed for the first and for the last time.
    failed: BTreeMap<Key, (Instant, Instant)>,
    measured: Option<Instant>,
    report: Vec<AllocStatus>,
    reported: Option<Instant>,
    extras: extras::Extras,
    facts: Option<(Instant, BTreeMap<String, FactReport>)>,
}

impl Provider {
    /// Reads what an earlier agent has left in `folder`; containers live in `root`.
    pub fn open(root: &Path, folder: &Path) -> Result<Self, LedgerError> {
        let mut ledger = Ledger::open(&folder.join("allocations"))?;
        reboot::take_in(root, folder, &mut ledger)?;
        Ok(Self {
            root: root.to_owned(),
            folder: folder.to_owned(),
            ledger,
            children: Children::new(root),
            used: BTreeMap::new(),
            failed: BTreeMap::new(),
            measured: None,
            report: Vec::new(),
            reported: None,
            extras: extras::Extras::new(folder),
            facts: None,
        })
    }

    fn container(&self, key: Key) -> Option<Container> {
        containers::find(&self.root, &container_name(key)).ok()
    }

    /// Looks at every allocation, writes down what has become of it and goes on with what was left undone.
    fn look(&mut self) -> Vec<AllocStatus> {
        self.extras.step();
        for (key, outcome) in self.children.reap() {
            self.take_in(key, &outcome);
        }
        let measure = self.measured.is_none_or(|at| at.elapsed() >= MEASURE);
        if measure {
            self.measured = Some(Instant::now());
            // Most of the program was used once, to begin or by a burst of work; an agent idles for days.
            memory::release_program();
        }
        let keys: Vec<Key> = self.ledger.keys().collect();
        if shares::drain_ms(&self.folder) == Some(0) {
            keys.iter().for_each(|key| self.evict(*key));
        }
        keys.into_iter().filter_map(|key| self.status(key, measure)).collect()
    }

    /// Takes in how a command ended.
    fn take_in(&mut self, key: Key, outcome: &Outcome) {
        match outcome.verb {
            Verb::Run if outcome.success => self.ledger.change(key, |entry| entry.begun = true),
            // The child of a killed agent may have been quicker.
            Verb::Run if self.is_made(key) => {
                self.ledger.change(key, |entry| entry.begun = true);
            }
            Verb::Run => {
                let said = outcome.said.clone();
                self.ledger.change(key, |entry| entry.end(None, said));
            }
            Verb::Start if !outcome.success => self.not_started(key, &outcome.said),
            Verb::Remove if outcome.success || self.container(key).is_none() => {
                secrets::forget(&self.root, key);
                moved::forget(&self.folder, key);
                self.ledger.remove(key);
                if !self.ledger.keys().any(|(instance, _)| instance == key.0) {
                    ssh::forget_host(&self.folder, key.0);
                }
            }
            // Tried again at the next look.
            Verb::Start | Verb::Stop | Verb::Remove => {}
        }
    }

    /// Tells whether an allocation's container is what its making makes.
    fn is_made(&self, key: Key) -> bool {
        let awaited = self.ledger.get(key).is_some_and(|entry| entry.arrival == Arrival::Awaited);
        self.container(key).is_some_and(|container| awaited || container.status() != Status::Created)
    }

    /// Stops what the owner wants gone, with the scheduler or without it. What stands still stays until the scheduler
    /// has moved its data or ends it: it uses nothing, and its data would be lost.
    fn evict(&mut self, key: Key) {
        let moves = |entry: &Entry| entry.end.is_none() && !entry.stopping && entry.halt == Halt::No;
        if self.ledger.get(key).is_some_and(moves) {
            self.ledger.change(key, |entry| {
                entry.halt = Halt::Wanted;
                entry.grace_s = entry.spec.stop_grace_ms.map_or(STOP_TIMEOUT_S, |ms| ms.div_ceil(1000));
            });
            if self.children.verb(key) == Some(Verb::Run) {
                self.children.give_up(key);
            }
        }
    }

    /// Takes in that a halted container could not be started again.
    fn not_started(&mut self, key: Key, said: &str) {
        let now = Instant::now();
        let (first, last) = self.failed.entry(key).or_insert((now, now));
        *last = now;
        if first.elapsed() < START_PATIENCE {
            return;
        }
        self.failed.remove(&key);
        let Some(Halt::Resuming { after_run }) = self.ledger.get(key).map(|entry| entry.halt) else { return };
        if self.container(key).is_none_or(|container| container.run() <= after_run && !container.status().is_active()) {
            self.ledger.change(key, |entry| entry.end(None, said.to_owned()));
        }
    }

    fn status(&mut self, key: Key, measure: bool) -> Option<AllocStatus> {
        let entry = self.ledger.get(key)?.clone();
        let busy = self.children.verb(key);
        if entry.forgotten {
            if busy.is_none() {
                self.children.remove(key);
            }
            return None;
        }
        let container = self.container(key);
        if measure && let Some(used) = container.as_ref().and_then(consumption::measure) {
            let (received, sent) = used.network_bytes;
            let usage =
                Usage { cpu_ms: used.cpu_us / 1000, network_bytes: received.saturating_add(sent), ..Usage::default() };
            self.used.insert(key, usage);
        }
        let phase = self.phase(key, &entry, container.as_ref(), busy);
        let ended = matches!(phase, Phase::Exited { .. });
        // While it runs only the phase is compared; sums are told once.
        let usage = if ended { self.used.get(&key).copied().unwrap_or_default() } else { Usage::default() };
        Some(AllocStatus { instance: key.0, epoch: key.1, phase, usage })
    }

    fn phase(&mut self, key: Key, entry: &Entry, container: Option<&Container>, busy: Option<Verb>) -> Phase {
        if let Some(end) = &entry.end {
            return Phase::Exited { code: end.code, reason: end.reason.clone() };
        }
        let status = container.map(|container| (container, container.status()));
        let starting = busy == Some(Verb::Start);
        match status {
            // There is a shim and no process yet: who is told that it runs may want to enter.
            Some((container, Status::Running)) if busy.is_some() && container.init().is_none() => match entry.halt {
                Halt::Resuming { .. } => Phase::Halted,
                Halt::No | Halt::Wanted => Phase::Pulling,
            },
            Some((container, Status::Running | Status::Paused | Status::Restarting)) => {
                if matches!(entry.halt, Halt::Resuming { .. }) && busy.is_none() {
                    self.ledger.change(key, |entry| entry.halt = Halt::No);
                    self.failed.remove(&key);
                }
                if (entry.stopping || entry.halt == Halt::Wanted) && busy.is_none() {
                    self.children.stop(key, entry.grace_s);
                }
                let healthy = container.health().is_none_or(|health| health.status == "healthy");
                Phase::Running { healthy }
            }
            // Its shim is about to write its end down, or is stopped and will when it goes on.
            Some((container, Status::Exited)) if container.is_undecided() && !starting => {
                Phase::Running { healthy: false }
            }
            Some((_, Status::Exited)) if entry.halt == Halt::Wanted && !entry.stopping => Phase::Halted,
            Some((container, Status::Exited | Status::Created)) if is_resumed(entry, container) => {
                let rests = self.failed.get(&key).is_some_and(|(_, last)| last.elapsed() < START_PAUSE);
                if busy.is_none() && !rests {
                    self.children.start(key);
                }
                Phase::Halted
            }
            // It came from elsewhere and waits, for its data or for a start.
            Some((_, Status::Created)) if entry.halt == Halt::Wanted && !entry.stopping => match entry.arrival {
                Arrival::Whole => Phase::Halted,
                Arrival::Awaited => self.arriving(key),
            },
            Some((container, Status::Exited)) if busy != Some(Verb::Run) => {
                let code = container.exit.as_ref().filter(|exit| !exit.unknown).map(|exit| exit.exit_code);
                let reason = match code {
                    Some(code) => format!("exited with {code}"),
                    None => "was killed with its shim".to_owned(),
                };
                let (code, reason) = match entry.evicted {
                    true => (None, "the owner emptied its provider".to_owned()),
                    false => (code, reason),
                };
                self.ledger.change(key, |entry| entry.end(code, reason.clone()));
                Phase::Exited { code, reason }
            }
            None if busy.is_none() => self.missing(key, entry),
            // Being made.
            Some((_, Status::Created)) if busy.is_none() => self.missing(key, entry),
            _ => Phase::Pulling,
        }
    }

    /// Looks whether all data of an allocation has come.
    fn arriving(&mut self, key: Key) -> Phase {
        match moved::outcome(&self.folder, key) {
            None => Phase::Pulling,
            Some(Ok(())) => {
                self.ledger.change(key, |entry| entry.arrival = Arrival::Whole);
                moved::forget(&self.folder, key);
                Phase::Halted
            }
            Some(Err(reason)) => {
                self.ledger.change(key, |entry| entry.end(None, reason.clone()));
                Phase::Exited { code: None, reason }
            }
        }
    }

    /// Decides about an allocation of which nothing runs and nothing is being made.
    fn missing(&mut self, key: Key, entry: &Entry) -> Phase {
        let reason = if entry.stopping {
            "stopped before it began"
        } else if entry.begun {
            "removed on the provider"
        } else {
            let shares = Shares::read(&self.folder).unwrap_or_default();
            let missing = facts::missing_limits(&self.root, &shares);
            let secrets_of = secrets::folder(&self.root, key);
            let given = Given { shares: &shares, missing: &missing, secrets: secrets_of.as_deref() };
            match entry.arrival {
                Arrival::Whole => self.children.run(key, &entry.spec, &given),
                Arrival::Awaited => self.children.make(key, &entry.spec, &given),
            }
            return Phase::Pulling;
        };
        self.ledger.change(key, |entry| entry.end(None, reason.to_owned()));
        Phase::Exited { code: None, reason: reason.to_owned() }
    }
}

/// Tells whether a container is to be started again and was not yet.
fn is_resumed(entry: &Entry, container: &Container) -> bool {
    matches!(entry.halt, Halt::Resuming { after_run } if container.run() <= after_run) && !entry.stopping
}

/// Says why the owner lets nothing new in, if so. What the owner said and cannot be read is a no.
pub fn closed(folder: &Path) -> Option<&'static str> {
    if shares::is_paused(folder) {
        return Some("the owner has paused this provider");
    }
    if shares::drain_ms(folder).is_some() {
        return Some("the owner empties this provider");
    }
    match Shares::read(folder) {
        Ok(shares) if shares.policy == policy::Policy::default() => None,
        Ok(shares) => shares.policy.closed(policy::Now::look()),
        Err(_) => Some("what the owner lends cannot be read"),
    }
}

fn refuse(op: &'static str, key: Key, reason: impl ToString) -> agent::EngineError {
    agent::EngineError { op, instance: key.0, reason: reason.to_string() }
}

impl agent::Engine for Provider {
    fn capacity(&self) -> Resources {
        Shares::read(&self.folder).unwrap_or_default().offer(&self.root)
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
        if self.reported.is_none_or(|at| at.elapsed() >= LOOK) {
            self.report = self.look();
            self.reported = Some(Instant::now());
        }
        self.report.clone()
    }

    fn forget(&mut self, instance: InstanceId, epoch: u64) {
        let key = (instance, epoch);
        self.used.remove(&key);
        self.failed.remove(&key);
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
