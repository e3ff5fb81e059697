//! Objects as the state keeps and the store writes them: one record per key, serialised as JSON.
//!
//! The same types answer API requests, except that tokens and join tokens are shown without their hashes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    DiskReport, Explanation, Fact, Group, GroupId, InstanceId, InstanceSpec, InstanceState, JobId, JobSpec, Join,
    JoinId, Moving, Name, ProviderId, Resources, SecretId, ServiceId, ServiceSpec, StoredSecret, Tier, Token, TokenId,
    Usage, User, UserId, VolumeId,
};

/// A reservation on a provider.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Allocation {
    /// Where.
    pub provider: ProviderId,
    /// Counts the allocations of the instance; only grows.
    pub epoch: u64,
    /// When it was decided.
    pub placed_at_ms: u64,
    /// When the provider first said that it runs.
    pub started_at_ms: Option<u64>,
    /// Its health check passes.
    pub healthy: bool,
    /// Since when it does without a break.
    #[serde(default)]
    pub healthy_since_ms: Option<u64>,
    /// What it used.
    pub usage: Usage,
    /// How full its disk is, as its provider says, if it has a limit of its own.
    #[serde(default)]
    pub disk: Option<DiskReport>,
    /// Why there.
    pub explanation: Explanation,
}

/// An allocation that was given up while its provider was away; reserved until the provider says it is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub struct OldAllocation {
    /// Where.
    pub provider: ProviderId,
    /// Which allocation.
    pub epoch: u64,
}

/// How an allocation ended. Once written it never changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Exit {
    /// Which allocation.
    pub epoch: u64,
    /// Exit code, when there is one.
    pub code: Option<i32>,
    /// Words.
    pub reason: String,
    /// When the scheduler learned it.
    pub at_ms: u64,
}

/// Who made an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", tag = "of")]
pub enum Owner {
    /// A person.
    User,
    /// A service.
    Service {
        /// Which one.
        service: ServiceId,
        /// Which revision of it.
        revision: u64,
    },
    /// A job.
    Job {
        /// Which one.
        job: JobId,
        /// Which member.
        index: u32,
    },
}

/// Membership in a group of instances that are placed together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub struct Gang {
    /// The job whose members they are.
    pub job: JobId,
    /// How many there are.
    pub size: u32,
}

/// Why an instance was told to stop, and so what happens when it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// A person, a service or a job wants it gone.
    Asked,
    /// It lived as long as it may.
    Ttl,
    /// One try of a job member ran too long; counts as a failure.
    TimeLimit,
    /// Somebody more important needs the room; goes back to the queue.
    Preempted,
    /// The provider is being drained; goes back to the queue.
    Drained,
}

/// One instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Instance {
    /// Its id.
    pub id: InstanceId,
    /// Its name, unique among the group's unfinished instances.
    pub name: Name,
    /// Nobody chose the name: it gets one that says whose it is and where when it gets its first place.
    #[serde(default)]
    pub unnamed: bool,
    /// Its group.
    pub group: GroupId,
    /// Who asked for it.
    pub user: UserId,
    /// Who made it.
    pub owner: Owner,
    /// What was asked.
    pub spec: InstanceSpec,
    /// Only this provider will do.
    pub pinned: Option<ProviderId>,
    /// Placed with others or not at all.
    pub gang: Option<Gang>,
    /// How long one try may run.
    pub time_limit_ms: Option<u64>,
    /// Where it is.
    pub state: InstanceState,
    /// Why it is there, for people.
    pub reason: String,
    /// The number of the newest allocation.
    pub epoch: u64,
    /// The newest allocation; absent when there is none that counts.
    pub alloc: Option<Allocation>,
    /// Given up, but possibly still running on a silent provider.
    pub old: Vec<OldAllocation>,
    /// Told to stop, and why.
    pub stop: Option<StopReason>,
    /// Wanted stopped, with its data kept.
    #[serde(default)]
    pub halt: bool,
    /// On its way to another provider, with its data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving: Option<Moving>,
    /// How the last allocation ended.
    pub exit: Option<Exit>,
    /// Tries that ended badly.
    pub failures: u32,
    /// When it was moved because of a loss, the newest last; bounded.
    pub moves_ms: Vec<u64>,
    /// Not before; the wait after a failure.
    pub retry_at_ms: Option<u64>,
    /// When it was asked for.
    pub created_at_ms: u64,
    /// When it must end.
    pub ends_at_ms: u64,
    /// When it became final.
    pub ended_at_ms: Option<u64>,
    /// Used by earlier allocations.
    pub usage: Usage,
}

/// Whether a provider can be talked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProviderState {
    /// Joined, never said hello.
    Joined,
    /// In touch.
    Ready,
    /// Silent.
    Unknown,
    /// Silent for too long.
    Lost,
}

/// A request that a provider be emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Drain {
    /// When what remains is stopped.
    pub deadline_ms: u64,
}

/// One lent machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Provider {
    /// Its id.
    pub id: ProviderId,
    /// Its name, unique in the pool.
    pub name: Name,
    /// Whose it is.
    pub group: GroupId,
    /// Who lent it.
    pub user: UserId,
    /// How well it is known.
    pub tier: Tier,
    /// Whether it can be talked to.
    pub state: ProviderState,
    /// What the owner lends.
    pub capacity: Resources,
    /// What a unit of work costs here.
    pub price: u64,
    /// The owner lets new work in.
    pub accepting: bool,
    /// Facts as of the last hello; newer ones are in memory only.
    pub facts: BTreeMap<String, Fact>,
    /// The host's boot id.
    pub boot_id: String,
    /// Hellos accepted.
    pub session: u64,
    /// The agent's own count of hellos.
    pub incarnation: u64,
    /// Being emptied.
    pub drain: Option<Drain>,
    /// It is the owner who empties it.
    #[serde(default)]
    pub owner_drains: bool,
    /// When it fell silent lately, the newest last; bounded.
    pub silences_ms: Vec<u64>,
    /// When an instance failed here lately that did not fail elsewhere, the newest last; bounded.
    pub troubles_ms: Vec<u64>,
    /// No new work before.
    pub cool_until_ms: u64,
    /// When it joined.
    pub joined_at_ms: u64,
    /// SHA-256 of the public key that its agent made, in hex; empty where agents have no certificates.
    #[serde(default)]
    pub key: String,
}

/// One service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Service {
    /// Its id.
    pub id: ServiceId,
    /// Its group.
    pub group: GroupId,
    /// Who asked for it.
    pub user: UserId,
    /// What is wanted.
    pub spec: ServiceSpec,
    /// Counts changes of the template.
    pub revision: u64,
    /// Numbers the instances it ever made, for their names.
    pub made: u64,
    /// Why an update stands still.
    pub halted: Option<String>,
    /// When it was asked for.
    pub created_at_ms: u64,
    /// Being removed; gone when its last instance is.
    pub removing: bool,
}

/// Where a job is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Other jobs must succeed first.
    Waiting,
    /// Members are queued or run.
    Active,
    /// Every member succeeded.
    Succeeded,
    /// A member failed for good, or a job it depends on did.
    Failed,
    /// Somebody cancelled it.
    Cancelled,
}

/// One job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// Its group.
    pub group: GroupId,
    /// Who asked for it.
    pub user: UserId,
    /// What is wanted.
    pub spec: JobSpec,
    /// Where it is.
    pub state: JobState,
    /// Why, for people.
    pub reason: String,
    /// Members made so far.
    pub made: u32,
    /// Members that succeeded.
    pub succeeded: u32,
    /// Members that failed for good.
    pub failed: u32,
    /// Members stopped on request.
    pub stopped: u32,
    /// When it was asked for.
    pub created_at_ms: u64,
    /// When it became final.
    pub ended_at_ms: Option<u64>,
}

/// A piece of a provider's disk that outlives instances.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Volume {
    /// Its id.
    pub id: VolumeId,
    /// Its name, unique in the group.
    pub name: Name,
    /// Its group.
    pub group: GroupId,
    /// Its size; reserved on the provider once it has one.
    pub size_bytes: u64,
    /// Where it is; decided by the first instance that uses it.
    pub provider: Option<ProviderId>,
    /// When it was asked for.
    pub created_at_ms: u64,
}

/// What one user of one group used on one provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UsageRecord {
    /// The group.
    pub group: GroupId,
    /// The user.
    pub user: UserId,
    /// The provider.
    pub provider: ProviderId,
    /// Allocations that ended.
    pub allocations: u64,
    /// Their sum.
    pub usage: Usage,
}

/// The answer to an idempotency key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    /// SHA-256 of the request in hex.
    pub digest: String,
    /// The object that was made.
    pub key: Key,
    /// When.
    pub at_ms: u64,
}

/// Numbers that belong to the pool as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// The newest notice.
    pub notice: u64,
    /// The newest audit row.
    pub audit: u64,
    /// The latest time that was seen; time does not go back over a restart.
    pub now_ms: u64,
}

/// Something that happened, for streams and pages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Notice {
    /// 1, 2, 3 … for the whole pool.
    pub seq: u64,
    /// When.
    pub at_ms: u64,
    /// Whose it is.
    pub group: GroupId,
    /// What happened, such as `instance.running`.
    pub kind: String,
    /// The id of the object.
    pub subject: String,
    /// For people.
    pub text: String,
}

/// One mutation, chained to the one before it in the same group (S31).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Audit {
    /// 1, 2, 3 … for the whole pool.
    pub seq: u64,
    /// 1, 2, 3 … within the group.
    pub group_seq: u64,
    /// When.
    pub at_ms: u64,
    /// The group of the object.
    pub group: GroupId,
    /// The token that was shown; empty for the first administrator.
    pub actor: String,
    /// The request's id.
    pub request: String,
    /// What was done, such as `instance.create`.
    pub verb: String,
    /// The object.
    pub object: String,
    /// SHA-256 of the object before, or empty.
    pub before: String,
    /// SHA-256 of the object after, or empty.
    pub after: String,
    /// The hash of the row before.
    pub previous: String,
    /// SHA-256 over everything above.
    pub hash: String,
}

/// The place of a record in the store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Key {
    /// The pool's numbers.
    Meta,
    /// A group.
    Group(GroupId),
    /// A user.
    User(UserId),
    /// A token.
    Token(TokenId),
    /// A join token.
    Join(JoinId),
    /// A provider.
    Provider(ProviderId),
    /// An instance.
    Instance(InstanceId),
    /// A service.
    Service(ServiceId),
    /// A job.
    Job(JobId),
    /// A volume.
    Volume(VolumeId),
    /// A secret.
    Secret(SecretId),
    /// A usage record.
    Usage(GroupId, UserId, ProviderId),
    /// An idempotency key of a token's user.
    Remembered(UserId, String),
    /// The head of a group's audit chain.
    Chain(GroupId),
}

impl Key {
    /// Returns the kind and the id as the store's two columns.
    pub fn columns(&self) -> (&'static str, String) {
        match self {
            Self::Meta => ("meta", String::new()),
            Self::Group(id) => ("group", id.to_string()),
            Self::User(id) => ("user", id.to_string()),
            Self::Token(id) => ("token", id.to_string()),
            Self::Join(id) => ("join", id.to_string()),
            Self::Provider(id) => ("provider", id.to_string()),
            Self::Instance(id) => ("instance", id.to_string()),
            Self::Service(id) => ("service", id.to_string()),
            Self::Job(id) => ("job", id.to_string()),
            Self::Volume(id) => ("volume", id.to_string()),
            Self::Secret(id) => ("secret", id.to_string()),
            Self::Usage(group, user, provider) => ("usage", format!("{group}.{user}.{provider}")),
            Self::Remembered(user, key) => ("remembered", format!("{user}.{key}")),
            Self::Chain(group) => ("chain", group.to_string()),
        }
    }
}

/// Any record with its kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// The pool's numbers.
    Meta(Meta),
    /// A group.
    Group(Group),
    /// A user.
    User(User),
    /// A token.
    Token(Token),
    /// A join token.
    Join(Join),
    /// A provider.
    Provider(Box<Provider>),
    /// An instance.
    Instance(Box<Instance>),
    /// A service.
    Service(Box<Service>),
    /// A job.
    Job(Box<Job>),
    /// A volume.
    Volume(Volume),
    /// A secret.
    Secret(StoredSecret),
    /// A usage record.
    Usage(UsageRecord),
    /// An idempotency key.
    Remembered(UserId, String, Remembered),
    /// The head of a group's audit chain: rows and hash.
    Chain(GroupId, u64, String),
}
