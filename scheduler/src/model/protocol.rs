//! What an agent and the scheduler say to each other.
//!
//! The agent speaks first, always. `Hello` opens a session with a full report; `Sync` carries what changed and fetches
//! commands. Each is safe to lose, repeat, delay or reorder: sessions and sequence numbers only grow (F32), commands
//! are numbered within a session and applied in order, statuses are cumulative until acknowledged.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Delivered, DiskReport, FactReport, InstanceId, InstanceSpec, Resources, Usage};

/// The oldest protocol this scheduler speaks.
pub const PROTOCOL_MIN: u32 = 1;
/// The newest protocol this scheduler speaks.
pub const PROTOCOL_MAX: u32 = 1;

/// Where an allocation is on its provider.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "phase")]
pub enum Phase {
    /// Accepted; nothing runs yet.
    Pulling,
    /// Runs.
    Running {
        /// Its health check passes, or it has none.
        healthy: bool,
    },
    /// Stopped with its data kept.
    Halted,
    /// Ended.
    Exited {
        /// Exit code, when there is one.
        code: Option<i32>,
        /// The agent's words.
        reason: String,
    },
}

/// The state of one allocation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AllocStatus {
    /// Which instance.
    pub instance: InstanceId,
    /// Which allocation of it.
    pub epoch: u64,
    /// Where it is.
    #[serde(flatten)]
    pub phase: Phase,
    /// What it used since it started.
    #[serde(default)]
    pub usage: Usage,
    /// How full its disk is, if it has a limit of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskReport>,
}

/// Opens a session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// Oldest protocol the agent speaks.
    pub protocol_min: u32,
    /// Newest protocol the agent speaks.
    pub protocol_max: u32,
    /// Counts hellos of this provider for ever; kept on the agent's disk. A number that was seen before is a clone or
    /// a replay and is refused.
    pub incarnation: u64,
    /// The host's boot id.
    pub boot_id: String,
    /// What the owner lends.
    pub capacity: Resources,
    /// What a unit of work costs here; any scale the pool agrees on.
    #[serde(default)]
    pub price: u64,
    /// The owner lets new work in.
    #[serde(default)]
    pub accepting: bool,
    /// The owner empties this machine: what is here has so many milliseconds left.
    #[serde(default)]
    pub drain_ms: Option<u64>,
    /// All facts.
    #[serde(default)]
    pub facts: BTreeMap<String, FactReport>,
    /// Everything that is here, ended and unacknowledged ones included.
    #[serde(default)]
    pub running: Vec<AllocStatus>,
}

/// Answers a hello.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HelloReply {
    /// The protocol of this session.
    pub protocol: u32,
    /// The session; every sync names it.
    pub session: u64,
    /// The hello that is answered; an agent drops an answer to any but its last.
    pub incarnation: u64,
    /// The scheduler's own epoch; an answer with an older one is from a deposed leader and must be dropped.
    pub leader: u64,
    /// How often to sync.
    pub interval_ms: u64,
    /// What to do.
    pub commands: Vec<NumberedCommand>,
}

/// Reports changes and fetches commands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Sync {
    /// Which session.
    pub session: u64,
    /// Grows by each sync of the session.
    pub seq: u64,
    /// The last command that was applied.
    pub applied: u64,
    /// The owner lets new work in.
    #[serde(default)]
    pub accepting: bool,
    /// The owner empties this machine: what is here has so many milliseconds left.
    #[serde(default)]
    pub drain_ms: Option<u64>,
    /// Every status that changed and is not acknowledged yet.
    #[serde(default)]
    pub statuses: Vec<AllocStatus>,
    /// Facts that changed.
    #[serde(default)]
    pub facts: BTreeMap<String, FactReport>,
}

/// Answers a sync.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SyncReply {
    /// The session it belongs to.
    pub session: u64,
    /// The scheduler's own epoch.
    pub leader: u64,
    /// The highest sync that is durable; its statuses need not be sent again.
    pub acked: u64,
    /// How often to sync.
    pub interval_ms: u64,
    /// Commands after `applied`.
    pub commands: Vec<NumberedCommand>,
    /// Streams that wait for the agent to dial back; each is named until it did.
    #[serde(default)]
    pub streams: Vec<StreamOrder>,
}

/// What flows in a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "of", deny_unknown_fields)]
pub enum StreamKind {
    /// What the instance has written, as it was written.
    Logs {
        /// Goes on until the instance ends.
        #[serde(default)]
        follow: bool,
        /// Only so many of the last lines.
        #[serde(default)]
        tail: Option<u64>,
    },
    /// SSH, of which the provider is the server, for the registered keys of the instance's owner.
    Ssh,
    /// Everything that a halted instance has written, for the provider that it moves to; nobody else may ask for it.
    Data,
    /// SSH for one key that was made for this stream: who may open it may run commands.
    Exec {
        /// The public key, in OpenSSH's one-line form.
        key: String,
        /// Only files are copied: then the instance may stand still.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        files: bool,
    },
}

/// A stream that somebody waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StreamOrder {
    /// Names the stream; known to the scheduler and the agent only.
    pub id: String,
    /// Which instance.
    pub instance: InstanceId,
    /// Which allocation of it.
    pub epoch: u64,
    /// What flows.
    pub kind: StreamKind,
    /// The SSH keys that may log in, in OpenSSH's one-line form.
    pub keys: Vec<String>,
    /// What the instance is called.
    #[serde(default)]
    pub name: String,
    /// Who asked, by name.
    #[serde(default)]
    pub asker: String,
}

/// A command with its place in the session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NumberedCommand {
    /// 1, 2, 3 … within a session.
    pub seq: u64,
    /// What to do.
    pub command: Command,
}

/// What an agent is told. Each is idempotent by (instance, epoch).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "do")]
pub enum Command {
    /// Start this allocation unless it is here already.
    Start {
        /// Which instance.
        instance: InstanceId,
        /// Which allocation of it.
        epoch: u64,
        /// What to run.
        spec: Box<InstanceSpec>,
        /// Whose it is: the owner of a provider may let in only some.
        #[serde(default)]
        group: String,
        /// It was elsewhere before: its data is to be fetched, then it is reported as halted and waits.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        moved: bool,
        /// The secrets that the spec asks for, in its order; only in the answer to the agent.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        secrets: Vec<Delivered>,
    },
    /// Stop this allocation; an agent that does not have it answers that it exited.
    Stop {
        /// Which instance.
        instance: InstanceId,
        /// Which allocation of it.
        epoch: u64,
        /// Time between the polite and the final signal.
        grace_ms: u64,
    },
    /// Stop this allocation and keep what it has written.
    Halt {
        /// Which instance.
        instance: InstanceId,
        /// Which allocation of it.
        epoch: u64,
        /// Time between the polite and the final signal.
        grace_ms: u64,
    },
    /// Start an allocation again that was halted; one that runs is left alone.
    Resume {
        /// Which instance.
        instance: InstanceId,
        /// Which allocation of it.
        epoch: u64,
        /// Its secrets, in the order of its spec: a machine that was booted anew has lost them. Only in the answer to the
        /// agent.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        secrets: Vec<Delivered>,
    },
}

impl Eq for Command {}

impl Command {
    /// Returns the instance and the epoch of the allocation that it is about.
    pub fn allocation(&self) -> (InstanceId, u64) {
        match self {
            Self::Start { instance, epoch, .. }
            | Self::Stop { instance, epoch, .. }
            | Self::Halt { instance, epoch, .. }
            | Self::Resume { instance, epoch, .. } => (*instance, *epoch),
        }
    }
}
