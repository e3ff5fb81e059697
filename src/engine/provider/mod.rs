//! This machine as a provider of a pool: the scheduler crate's `Engine`, by containers that outlive the agent.
//!
//! Every allocation has a line in the ledger before anything is made, and a container of a name that only it has.
//! Containers are made, stopped and removed by this program's own commands as children, because the agent has
//! threads and may not clone; what is reported is read from the containers' own records. So a killed agent changes
//! nothing: the next one reads ledger and containers and goes on.

mod commands;
mod disk;
mod extras;
pub mod facts;
mod ledger;
mod listing;
pub mod mirror;
pub mod moved;
mod orders;
pub mod policy;
pub mod presence;
mod reboot;
mod secrets;
mod sftp;
pub mod shares;
pub mod ssh;
mod watch;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use coracle_scheduler::model::{AllocStatus, DiskReport, FactReport, InstanceId, OnLoss, Phase, Usage};

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

/// How old an answer about the containers may be while something is on its way, unless something happens.
const LOOK: Duration = Duration::from_millis(250);
/// How old while all stands as it should: what no file tells (a killed shim) is seen so late.
const LOOK_CALM: Duration = Duration::from_secs(2);
/// A look takes one part in so many of the time at most: a container's health may change every millisecond.
const LOOK_SHARE: u32 = 20;
/// How often what is used is measured; it is told when an allocation ends, the disk when it differs.
const MEASURE: Duration = Duration::from_secs(10);

/// How often facts are measured: a sixth of the time for which the quickest are believed.
const FACTS: Duration = Duration::from_secs(10);

/// How long it is tried to start again what stands still: while a machine boots, its systemd is not always quick enough.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// How long after a try the next one begins.
const START_PAUSE: Duration = Duration::from_secs(2);

/// How long an end that was ordered by none of ours (SIGTERM for the shim) is not taken for one: the machine may be going
/// down, and the agent with it, in whatever order. After that this is one machine's life still.
const FAREWELL: Duration = Duration::from_secs(15);

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
    /// How full each one's disk was when that was measured last.
    disks: BTreeMap<Key, Option<DiskReport>>,
    /// When starting again failed for the first and for the last time.
    failed: BTreeMap<Key, (Instant, Instant)>,
    /// What an earlier agent had begun to make; its child may go on with that.
    inherited: BTreeSet<Key>,
    /// When a shim was first seen that was told to end.
    farewells: BTreeMap<Key, Instant>,
    measured: Option<Instant>,
    report: Vec<AllocStatus>,
    reported: Option<Instant>,
    /// How old the report may become.
    look_in: Duration,
    /// Something has happened since the last look.
    woken: bool,
    /// How long after a look the next one may begin, whatever happens.
    look_pause: Duration,
    extras: extras::Extras,
    facts: Option<(Instant, BTreeMap<String, FactReport>)>,
}

impl Provider {
    /// Reads what an earlier agent has left in `folder`; containers live in `root`.
    pub fn open(root: &Path, folder: &Path) -> Result<Self, LedgerError> {
        let mut ledger = Ledger::open(&folder.join("allocations"))?;
        reboot::take_in(root, folder, &mut ledger)?;
        let unmade = |entry: &Entry| !entry.begun && entry.end.is_none();
        let inherited = ledger.keys().filter(|key| ledger.get(*key).is_some_and(unmade)).collect();
        Ok(Self {
            inherited,
            root: root.to_owned(),
            folder: folder.to_owned(),
            ledger,
            children: Children::new(root, folder),
            used: BTreeMap::new(),
            disks: BTreeMap::new(),
            failed: BTreeMap::new(),
            farewells: BTreeMap::new(),
            measured: None,
            report: Vec::new(),
            reported: None,
            look_in: LOOK,
            woken: false,
            look_pause: Duration::ZERO,
            extras: extras::Extras::new(folder),
            facts: None,
        })
    }

    /// Tells whether everything stands as it should, and nothing is to be done at a certain moment.
    fn is_calm(&self) -> bool {
        let settled = |status: &AllocStatus| match status.phase {
            Phase::Running { healthy } => healthy,
            Phase::Halted => true,
            Phase::Pulling | Phase::Exited { .. } => false,
        };
        let waits = |key: Key| {
            let Some(entry) = self.ledger.get(key) else { return false };
            let alone = matches!(entry.spec.on_loss, OnLoss::StopAfter { .. });
            alone || entry.forgotten || entry.stopping || matches!(entry.halt, Halt::Resuming { .. })
        };
        let watched = self.children.watch.is_some() && self.children.is_idle();
        watched && self.report.iter().all(settled) && !self.ledger.keys().any(waits)
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
            Verb::Run if outcome.success => {
                self.failed.remove(&key);
                self.ledger.change(key, |entry| entry.begun = true);
            }
            // The child of a killed agent may have been quicker.
            Verb::Run if self.is_made(key) => {
                self.failed.remove(&key);
                self.ledger.change(key, |entry| entry.begun = true);
            }
            // Or is about to be: it has the name, and what it makes is looked for again.
            Verb::Run if self.is_contested(key) => {}
            Verb::Run => {
                let said = outcome.said.clone();
                self.ledger.change(key, |entry| entry.end(None, said));
            }
            Verb::Start if !outcome.success => self.not_started(key, &outcome.said),
            Verb::Remove if outcome.success || self.container(key).is_none() => {
                secrets::forget(&self.root, key);
                moved::forget(&self.folder, key);
                self.ledger.remove(key);
                if let Some(watch) = &mut self.children.watch {
                    watch.forget(key);
                }
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

    /// Tells whether somebody else, who can only be the child of a killed agent, has the name of an allocation's container
    /// and may still be making it.
    fn is_contested(&mut self, key: Key) -> bool {
        let taken = self.inherited.contains(&key) && self.root.join("names").join(container_name(key)).exists();
        let now = Instant::now();
        let (first, last) = self.failed.entry(key).or_insert((now, now));
        *last = now;
        taken && first.elapsed() < START_PATIENCE
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

    /// Tells whether a try has failed so lately that the next one waits.
    fn rests(&self, key: Key) -> bool {
        self.failed.get(&key).is_some_and(|(_, last)| last.elapsed() < START_PAUSE)
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
        let mut container = self.container(key);
        if let (Some(found), Some(watch)) = (&container, &mut self.children.watch)
            && watch.container(key, &found.path)
        {
            container = self.container(key);
        }
        if measure && let Some(used) = container.as_ref().and_then(consumption::measure) {
            let (received, sent) = used.network_bytes;
            let usage =
                Usage { cpu_ms: used.cpu_us / 1000, network_bytes: received.saturating_add(sent), ..Usage::default() };
            self.used.insert(key, usage);
        }
        if let Some(found) = container.as_ref().filter(|_| measure || !self.disks.contains_key(&key)) {
            self.disks.insert(key, disk::report(found));
        }
        let phase = self.phase(key, &entry, container.as_ref(), busy);
        let ended = matches!(phase, Phase::Exited { .. });
        // While it runs only the phase is compared; sums are told once.
        let usage = if ended { self.used.get(&key).copied().unwrap_or_default() } else { Usage::default() };
        let disk = self.disks.get(&key).copied().flatten();
        Some(AllocStatus { instance: key.0, epoch: key.1, phase, usage, disk })
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
                if busy.is_none() && !self.rests(key) {
                    self.children.start(key);
                }
                Phase::Halted
            }
            // It came from elsewhere and waits, for its data or for a start.
            Some((_, Status::Created)) if entry.halt == Halt::Wanted && !entry.stopping => match entry.arrival {
                Arrival::Whole => Phase::Halted,
                Arrival::Awaited => self.arriving(key),
            },
            Some((container, Status::Exited)) if self.may_be_going_down(key, entry, container) => {
                Phase::Running { healthy: false }
            }
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
            // Being made, by this agent's child or by an earlier one's.
            None | Some((_, Status::Created)) if busy.is_none() && !self.rests(key) => self.missing(key, entry),
            _ => Phase::Pulling,
        }
    }

    /// Tells whether a container has ended because its shim was told to, so lately that the machine may be going down.
    fn may_be_going_down(&mut self, key: Key, entry: &Entry, container: &Container) -> bool {
        let told = container.exit.as_ref().is_some_and(|exit| exit.terminated);
        told && !entry.stopping && self.farewells.entry(key).or_insert_with(Instant::now).elapsed() < FAREWELL
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
