//! What an agent needs from whatever runs containers, and a simulated one.

use std::collections::{BTreeMap, BTreeSet};

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::time::Duration;

use crate::model::*;

/// How often an engine is looked at that tells nothing by itself.
const LOOK: Duration = Duration::from_millis(50);

/// Says why an engine could not do something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot {op} instance {instance}: {reason}")]
pub struct EngineError {
    /// What was tried.
    pub op: &'static str,
    /// On what.
    pub instance: InstanceId,
    /// Why it failed.
    pub reason: String,
}

/// The engine's end of a stream: a process that speaks by a socket, and ends with the stream.
#[derive(Debug)]
pub struct EngineStream {
    /// What it reads and writes.
    pub socket: UnixStream,
    /// The process.
    pub child: Child,
}

/// What an allocation is to be.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// What to run.
    pub spec: &'a InstanceSpec,
    /// The name of the group that asks.
    pub group: &'a str,
    /// The secrets that the spec asks for, in its order.
    pub secrets: &'a [Delivered],
    /// Its data is elsewhere and comes first; then it stands still.
    pub moved: bool,
}

/// Runs containers. Every call returns at once; progress shows in `report`.
pub trait Engine: Send + 'static {
    /// Gives a descriptor that can be read from when something has happened; the next report takes that in.
    fn changes(&self) -> Option<OwnedFd> {
        None
    }
    /// How soon a report may differ although nothing has been told.
    fn look_in(&self) -> Duration {
        LOOK
    }
    /// Gives back what is not needed while nothing happens.
    fn rest(&mut self) {}
    /// What the owner lends.
    fn capacity(&self) -> Resources;
    /// Whether the owner lets new work in.
    fn accepting(&self) -> bool;
    /// How long what is here has left, when the owner empties this machine.
    fn drain_ms(&self) -> Option<u64> {
        None
    }
    /// What a unit of work costs here.
    fn price(&self) -> u64 {
        0
    }
    /// Changes at every boot of the host.
    fn boot_id(&self) -> String;
    /// Everything that is known about the host.
    fn facts(&mut self) -> BTreeMap<String, FactReport>;
    /// Begins an allocation; one that is here already, ended or not, is left alone. Secrets go into the container's own
    /// memory or a file in memory that only its user reads, and nowhere else.
    fn start(&mut self, instance: InstanceId, epoch: u64, asked: Asked<'_>) -> Result<(), EngineError>;
    /// Stops an allocation and keeps what it has written; one that is halted already is left alone.
    fn halt(&mut self, instance: InstanceId, epoch: u64, grace_ms: u64) -> Result<(), EngineError>;
    /// Starts an allocation again that was halted; any other is left alone, and so is one whose secrets are neither here
    /// nor given.
    fn resume(&mut self, instance: InstanceId, epoch: u64, secrets: &[Delivered]) -> Result<(), EngineError>;
    /// Ends an allocation; one that is not here is no error.
    fn stop(&mut self, instance: InstanceId, epoch: u64, grace_ms: u64) -> Result<(), EngineError>;
    /// Lists every allocation that is here, ended ones included until they are forgotten.
    fn report(&mut self) -> Vec<AllocStatus>;
    /// Forgets an ended allocation, whose end the scheduler has made durable.
    fn forget(&mut self, instance: InstanceId, epoch: u64);
    /// Tells how long an allocation may run without the scheduler; `None` means for ever.
    fn alone_ms(&self, instance: InstanceId, epoch: u64) -> Option<u64>;
    /// Names the allocations that are ready for data that is elsewhere.
    fn awaits_data(&mut self) -> Vec<(InstanceId, u64)> {
        Vec::new()
    }
    /// Takes such data in, from its first byte to its last.
    fn take_data(&mut self, instance: InstanceId, _epoch: u64) -> Result<EngineStream, EngineError> {
        Err(EngineError { op: "move", instance, reason: "it takes no data".to_owned() })
    }
    /// Gives a move up whose data cannot be had.
    fn no_data(&mut self, _instance: InstanceId, _epoch: u64, _reason: String) {}
    /// Opens a stream to an allocation that runs.
    fn stream(&mut self, order: &StreamOrder) -> Result<EngineStream, EngineError> {
        Err(EngineError { op: "open a stream to", instance: order.instance, reason: "it has none".to_owned() })
    }
}

/// An engine that runs nothing and believes everything: for the simulator, the tests and the benchmarks.
#[derive(Debug, Clone, Default)]
pub struct SimulatedEngine {
    /// What it lends.
    pub capacity: Resources,
    /// Whether it lets new work in.
    pub paused: bool,
    /// What it says about itself.
    pub facts: BTreeMap<String, FactReport>,
    /// Changes when the simulated host boots.
    pub boot: u64,
    /// What every allocation has used.
    pub used: Usage,
    allocs: BTreeMap<(InstanceId, u64), (InstanceSpec, Phase)>,
    /// How often each allocation was begun.
    pub starts: BTreeMap<(InstanceId, u64), u32>,
    /// Allocations whose data has not come yet.
    pub awaited: BTreeSet<(InstanceId, u64)>,
    /// What came with each start.
    pub secrets: BTreeMap<(InstanceId, u64), Vec<Delivered>>,
    /// What is said about the disk of each.
    pub disk: Option<DiskReport>,
}

impl SimulatedEngine {
    /// Lets everything that is pulling run.
    pub fn advance(&mut self) {
        for (key, (_, phase)) in &mut self.allocs {
            if *phase == Phase::Pulling && !self.awaited.contains(key) {
                *phase = Phase::Running { healthy: true };
            }
        }
    }

    /// Ends a move: the data is there, or cannot be had.
    pub fn fetched(&mut self, instance: InstanceId, epoch: u64, well: bool) {
        if self.awaited.remove(&(instance, epoch)) {
            let failed = Phase::Exited { code: None, reason: "its data cannot be had".to_owned() };
            self.turn(instance, epoch, |phase| *phase == Phase::Pulling, if well { Phase::Halted } else { failed });
        }
    }

    /// Tells whether an allocation stands still with what it has written.
    pub fn keeps(&self, instance: InstanceId, epoch: u64) -> bool {
        matches!(self.allocs.get(&(instance, epoch)), Some((_, Phase::Halted)))
    }

    /// Ends an allocation by itself.
    pub fn exit(&mut self, instance: InstanceId, epoch: u64, code: i32) {
        if let Some((_, phase)) = self.allocs.get_mut(&(instance, epoch))
            && !matches!(phase, Phase::Exited { .. })
        {
            *phase = Phase::Exited { code: Some(code), reason: format!("exited with {code}") };
        }
    }

    fn turn(&mut self, instance: InstanceId, epoch: u64, when: impl Fn(&Phase) -> bool, to: Phase) {
        if let Some((_, phase)) = self.allocs.get_mut(&(instance, epoch)).filter(|(_, phase)| when(phase)) {
            *phase = to;
        }
    }

    /// Lists what runs or is about to.
    pub fn running(&self) -> Vec<(InstanceId, u64)> {
        let alive = self.allocs.iter().filter(|(_, (_, phase))| !matches!(phase, Phase::Exited { .. } | Phase::Halted));
        alive.map(|(key, _)| *key).collect()
    }

    /// Returns what was asked for an allocation.
    pub fn spec(&self, instance: InstanceId, epoch: u64) -> Option<&InstanceSpec> {
        self.allocs.get(&(instance, epoch)).map(|(spec, _)| spec)
    }

    /// Boots the host: everything is gone.
    pub fn reboot(&mut self) {
        self.boot += 1;
        self.allocs.clear();
        self.awaited.clear();
    }
}

impl Engine for SimulatedEngine {
    fn capacity(&self) -> Resources {
        self.capacity
    }

    fn accepting(&self) -> bool {
        !self.paused
    }

    fn boot_id(&self) -> String {
        format!("boot-{}", self.boot)
    }

    fn facts(&mut self) -> BTreeMap<String, FactReport> {
        self.facts.clone()
    }

    fn start(&mut self, instance: InstanceId, epoch: u64, asked: Asked<'_>) -> Result<(), EngineError> {
        self.secrets.insert((instance, epoch), asked.secrets.to_vec());
        if !self.allocs.contains_key(&(instance, epoch)) {
            *self.starts.entry((instance, epoch)).or_default() += 1;
            self.allocs.insert((instance, epoch), (asked.spec.clone(), Phase::Pulling));
            if asked.moved {
                self.awaited.insert((instance, epoch));
            }
        }
        Ok(())
    }

    fn halt(&mut self, instance: InstanceId, epoch: u64, _grace_ms: u64) -> Result<(), EngineError> {
        if !self.awaited.contains(&(instance, epoch)) {
            self.turn(instance, epoch, |phase| !matches!(phase, Phase::Exited { .. }), Phase::Halted);
        }
        Ok(())
    }

    fn resume(&mut self, instance: InstanceId, epoch: u64, secrets: &[Delivered]) -> Result<(), EngineError> {
        self.secrets.insert((instance, epoch), secrets.to_vec());
        self.turn(instance, epoch, |phase| *phase == Phase::Halted, Phase::Running { healthy: true });
        Ok(())
    }

    fn stop(&mut self, instance: InstanceId, epoch: u64, _grace_ms: u64) -> Result<(), EngineError> {
        if let Some((_, phase)) = self.allocs.get_mut(&(instance, epoch))
            && !matches!(phase, Phase::Exited { .. })
        {
            *phase = Phase::Exited { code: Some(143), reason: "stopped".to_owned() };
        }
        Ok(())
    }

    fn report(&mut self) -> Vec<AllocStatus> {
        let each = self.allocs.iter().map(|((instance, epoch), (_, phase))| AllocStatus {
            instance: *instance,
            epoch: *epoch,
            phase: phase.clone(),
            usage: self.used,
            disk: self.disk,
        });
        each.collect()
    }

    fn forget(&mut self, instance: InstanceId, epoch: u64) {
        if matches!(self.allocs.get(&(instance, epoch)), Some((_, Phase::Exited { .. }))) {
            self.allocs.remove(&(instance, epoch));
        }
    }

    fn alone_ms(&self, instance: InstanceId, epoch: u64) -> Option<u64> {
        match self.allocs.get(&(instance, epoch))?.0.on_loss {
            OnLoss::StopAfter { after_ms } => Some(after_ms),
            _ => None,
        }
    }
}
