//! What people ask for, in one place: scope, idempotency, effect, audit.
//!
//! Scope is decided here and not at the edge: an object of another group does not exist (S10, A83). A request either
//! changes nothing and is refused, or is applied whole with one audit row in the same transaction (S31).

mod people;
mod work;

use sha2::{Digest, Sha256};

use super::ask::Ask;
use super::instance::{self, New};
use super::state::State;
use super::timer::Timer;
use super::{Action, Answer, Refusal, drain, halt, job, moving, place, provider, service, tenant, volume};
use crate::model::*;
use people::{bootstrap, grant_group, grant_join, grant_token, grant_user, join, set_key};
use work::{grant_instance, grant_job, grant_provider, grant_secret, grant_service, grant_volume};

/// A request with who asks and how to recognise a repetition.
#[derive(Clone, Debug)]
pub struct Request {
    /// Who asks; `None` where the wish carries its own credential.
    pub actor: Option<Actor>,
    /// The request's id, for the audit log.
    pub id: String,
    /// Idempotency key.
    pub key: Option<String>,
    /// SHA-256 of the request in hex, to tell a repetition from another request.
    pub digest: String,
    /// What is asked.
    pub wish: Wish,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each field is the one of the record it makes or names")]
pub enum Wish {
    /// The first group and its administrator, in an empty pool.
    Bootstrap {
        group: Name,
        user: Name,
        hash: String,
    },
    CreateGroup {
        name: Name,
        quota: Quota,
        weight: u32,
    },
    UpdateGroup {
        id: GroupId,
        quota: Quota,
        weight: u32,
    },
    DeleteGroup {
        id: GroupId,
    },
    CreateUser {
        group: GroupId,
        name: Name,
        role: Role,
    },
    SetKeys {
        id: UserId,
        keys: Vec<String>,
    },
    DeleteUser {
        id: UserId,
    },
    CreateToken {
        user: UserId,
        role: Role,
        ttl_ms: u64,
        hash: String,
    },
    DeleteToken {
        id: TokenId,
    },
    CreateJoin {
        group: GroupId,
        name: Name,
        tier: Tier,
        ttl_ms: u64,
        hash: String,
    },
    DeleteJoin {
        id: JoinId,
    },
    /// A machine joins by a join token's hash.
    Join {
        join_hash: String,
        name: Name,
        hash: String,
        key: String,
    },
    /// An agent changes its key.
    SetKey {
        key: String,
    },
    SetTier {
        id: ProviderId,
        tier: Tier,
    },
    Drain {
        id: ProviderId,
        within_ms: u64,
    },
    Undrain {
        id: ProviderId,
    },
    DeleteProvider {
        id: ProviderId,
    },
    CreateInstance {
        group: GroupId,
        name: Option<Name>,
        spec: Box<InstanceSpec>,
    },
    DeleteInstance {
        id: InstanceId,
    },
    /// Stops an instance and keeps its data.
    HaltInstance {
        id: InstanceId,
    },
    /// Starts it again.
    ResumeInstance {
        id: InstanceId,
    },
    /// Moves it to another provider with its data.
    MoveInstance {
        id: InstanceId,
        to: Option<ProviderId>,
    },
    DryRun {
        group: GroupId,
        spec: Box<InstanceSpec>,
    },
    CreateService {
        group: GroupId,
        spec: Box<ServiceSpec>,
    },
    UpdateService {
        id: ServiceId,
        spec: Box<ServiceSpec>,
    },
    DeleteService {
        id: ServiceId,
    },
    CreateJob {
        group: GroupId,
        spec: Box<JobSpec>,
    },
    CancelJob {
        id: JobId,
    },
    CreateVolume {
        group: GroupId,
        name: Name,
        size_bytes: u64,
    },
    DeleteVolume {
        id: VolumeId,
    },
    CreateSecret {
        group: GroupId,
        name: Name,
        sealed: Sealed,
    },
    DeleteSecret {
        id: SecretId,
    },
}

impl Wish {
    /// Names what is done, for the audit log.
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Bootstrap { .. } => "pool.bootstrap",
            Self::CreateGroup { .. } => "group.create",
            Self::UpdateGroup { .. } => "group.update",
            Self::DeleteGroup { .. } => "group.delete",
            Self::CreateUser { .. } => "user.create",
            Self::SetKeys { .. } => "user.keys",
            Self::DeleteUser { .. } => "user.delete",
            Self::CreateToken { .. } => "token.create",
            Self::DeleteToken { .. } => "token.delete",
            Self::CreateJoin { .. } => "join.create",
            Self::DeleteJoin { .. } => "join.delete",
            Self::Join { .. } => "provider.join",
            Self::SetKey { .. } => "provider.key",
            Self::SetTier { .. } => "provider.tier",
            Self::Drain { .. } => "provider.drain",
            Self::Undrain { .. } => "provider.undrain",
            Self::DeleteProvider { .. } => "provider.delete",
            Self::CreateInstance { .. } => "instance.create",
            Self::DeleteInstance { .. } => "instance.delete",
            Self::HaltInstance { .. } => "instance.stop",
            Self::ResumeInstance { .. } => "instance.start",
            Self::MoveInstance { .. } => "instance.move",
            Self::DryRun { .. } => "instance.dry-run",
            Self::CreateService { .. } => "service.create",
            Self::UpdateService { .. } => "service.update",
            Self::DeleteService { .. } => "service.delete",
            Self::CreateJob { .. } => "job.create",
            Self::CancelJob { .. } => "job.cancel",
            Self::CreateVolume { .. } => "volume.create",
            Self::DeleteVolume { .. } => "volume.delete",
            Self::CreateSecret { .. } => "secret.create",
            Self::DeleteSecret { .. } => "secret.delete",
        }
    }

    /// Names the object that is there before.
    fn target(&self) -> Option<Key> {
        Some(match self {
            Self::UpdateGroup { id, .. } | Self::DeleteGroup { id } => Key::Group(*id),
            Self::SetKeys { id, .. } | Self::DeleteUser { id } => Key::User(*id),
            Self::DeleteToken { id } => Key::Token(*id),
            Self::DeleteJoin { id } => Key::Join(*id),
            Self::SetTier { id, .. } | Self::Drain { id, .. } | Self::Undrain { id } | Self::DeleteProvider { id } => {
                Key::Provider(*id)
            }
            Self::DeleteInstance { id }
            | Self::HaltInstance { id }
            | Self::ResumeInstance { id }
            | Self::MoveInstance { id, .. } => Key::Instance(*id),
            Self::UpdateService { id, .. } | Self::DeleteService { id } => Key::Service(*id),
            Self::CancelJob { id } => Key::Job(*id),
            Self::DeleteVolume { id } => Key::Volume(*id),
            Self::DeleteSecret { id } => Key::Secret(*id),
            _ => return None,
        })
    }
}

/// Instances that the pool holds, finished ones included.
const INSTANCES_MAX: usize = 500_000;
/// Objects of each other kind that the pool holds.
const OBJECTS_MAX: usize = 100_000;
/// Longest life of a user's token.
const TOKEN_MS: u64 = 366 * 24 * HOUR_MS;
/// Longest life of a join token (S03).
const JOIN_MS: u64 = HOUR_MS;
/// Longest drain.
const DRAIN_MS: u64 = 30 * 24 * HOUR_MS;
/// One hour.
const HOUR_MS: u64 = 3_600_000;
/// Largest weight of a group.
const WEIGHT_MAX: u32 = 1000;
/// Public keys of one user.
const KEYS_MAX: usize = 64;
/// Bytes of one public key: RSA with 16384 bits and a comment.
const KEY_BYTES: usize = 4096;
/// Characters of the shortest public key there is.
const KEY_BYTES_LEAST: usize = 60;
/// Characters of an RSA key of 2048 bits; one of 1024 has 204.
const RSA_BYTES_LEAST: usize = 372;
/// Bytes of an idempotency key.
const IDEMPOTENCY_KEY_BYTES: usize = 128;

/// Grants or refuses a request.
pub(super) fn handle(state: &mut State, now: u64, request: Request) -> Result<Answer, Refusal> {
    let user = request.actor.and_then(|actor| actor.user);
    if let (Some(user), Some(key)) = (user, &request.key) {
        let plain = key.bytes().all(|byte| byte.is_ascii_graphic());
        if key.is_empty() || key.len() > IDEMPOTENCY_KEY_BYTES || !plain {
            return Err(Refusal::Invalid {
                field: "idempotency-key",
                reason: "1 to 128 visible ASCII characters".to_owned(),
            });
        }
        if let Some(found) = state.remembered.get(&(user, key.clone())) {
            let same = found.digest == request.digest;
            return if same { Ok(Answer::Object(found.key.clone())) } else { Err(Refusal::KeyReused) };
        }
    }
    let verb = request.wish.verb();
    let target = request.wish.target();
    let before = target.as_ref().and_then(|key| state.record(key));
    let outcome = grant(state, now, request.actor, request.wish)?;
    let object = match &outcome {
        Answer::Object(key) => Some(key.clone()),
        _ => target,
    };
    if let Some(object) = object.filter(|_| !matches!(outcome, Answer::Plan(_))) {
        let group = group_of(before.as_ref()).or_else(|| group_of(state.record(&object).as_ref()));
        let group = group.or(request.actor.map(|actor| actor.group)).unwrap_or(GroupId::new(0));
        audit(state, now, group, request.actor, &request.id, verb, &object, before.as_ref());
        if let (Some(user), Some(key), Answer::Object(made)) = (user, request.key, &outcome) {
            tenant::remember(state, now, user, key, request.digest, made.clone());
        }
    }
    Ok(outcome)
}

fn group_of(record: Option<&Record>) -> Option<GroupId> {
    Some(match record? {
        Record::Group(found) => found.id,
        Record::User(found) => found.group,
        Record::Token(found) => found.group,
        Record::Join(found) => found.group,
        Record::Provider(found) => found.group,
        Record::Instance(found) => found.group,
        Record::Service(found) => found.group,
        Record::Job(found) => found.group,
        Record::Volume(found) => found.group,
        Record::Secret(found) => found.group,
        _ => return None,
    })
}

fn digest(record: Option<&Record>) -> String {
    record
        .and_then(|record| serde_json::to_vec(record).ok())
        .map(|json| hex(&Sha256::digest(&json)))
        .unwrap_or_default()
}

/// Writes bytes as lower-case hex.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reckons the hash of an audit row from everything else in it.
pub(crate) fn audit_hash(row: &Audit) -> String {
    let bare = Audit { hash: String::new(), ..row.clone() };
    hex(&Sha256::digest(serde_json::to_vec(&bare).unwrap_or_default()))
}

#[expect(clippy::too_many_arguments, reason = "one row has as many parts")]
fn audit(
    state: &mut State,
    now: u64,
    group: GroupId,
    actor: Option<Actor>,
    request: &str,
    verb: &str,
    object: &Key,
    before: Option<&Record>,
) {
    let (rows, previous) = state.chains.get(&group).cloned().unwrap_or_default();
    state.meta.audit += 1;
    let (kind, id) = object.columns();
    let mut row = Audit {
        seq: state.meta.audit,
        group_seq: rows + 1,
        at_ms: now,
        group,
        actor: actor.map(|actor| actor.token.to_string()).unwrap_or_default(),
        request: instance::clean(request),
        verb: verb.to_owned(),
        object: format!("{kind}/{id}"),
        before: digest(before),
        after: digest(state.record(object).as_ref()),
        previous,
        hash: String::new(),
    };
    row.hash = audit_hash(&row);
    state.chains.insert(group, (rows + 1, row.hash.clone()));
    state.touch(Key::Chain(group));
    state.act(Action::Audit(Box::new(row)));
}

fn invalid<T>(field: &'static str, reason: &str) -> Result<T, Refusal> {
    Err(Refusal::Invalid { field, reason: reason.to_owned() })
}

fn need(actor: Option<Actor>, role: Role) -> Result<Actor, Refusal> {
    let actor = actor.filter(|actor| actor.user.is_some()).ok_or(Refusal::Forbidden)?;
    if actor.role >= role { Ok(actor) } else { Err(Refusal::Forbidden) }
}

/// Finds the group of a request: what the actor does not see does not exist.
fn seen(actor: Actor, group: Option<GroupId>, what: &'static str) -> Result<GroupId, Refusal> {
    group.filter(|group| actor.sees(*group)).ok_or(Refusal::NotFound(what))
}

fn room(len: usize, most: usize, what: &'static str) -> Result<(), Refusal> {
    if len < most { Ok(()) } else { Err(Refusal::Full(what)) }
}

fn taken(what: &str, name: &Name) -> Refusal {
    Refusal::Conflict(format!("there is a {what} {name} already"))
}

fn grant(state: &mut State, now: u64, actor: Option<Actor>, wish: Wish) -> Result<Answer, Refusal> {
    match wish {
        Wish::Bootstrap { group, user, hash } => bootstrap(state, now, group, user, hash),
        Wish::Join { join_hash, name, hash, key } => join(state, now, &join_hash, name, hash, key),
        Wish::SetKey { key } => set_key(state, actor, key),
        Wish::CreateGroup { .. } | Wish::UpdateGroup { .. } | Wish::DeleteGroup { .. } => {
            need(actor, Role::Admin)?;
            grant_group(state, now, wish)
        }
        Wish::CreateUser { .. } | Wish::SetKeys { .. } | Wish::DeleteUser { .. } => grant_user(state, now, actor, wish),
        Wish::CreateToken { .. } | Wish::DeleteToken { .. } => grant_token(state, now, actor, wish),
        Wish::CreateJoin { .. } | Wish::DeleteJoin { .. } => grant_join(state, now, actor, wish),
        Wish::SetTier { .. } | Wish::Drain { .. } | Wish::Undrain { .. } | Wish::DeleteProvider { .. } => {
            grant_provider(state, now, actor, wish)
        }
        Wish::CreateInstance { .. }
        | Wish::DeleteInstance { .. }
        | Wish::HaltInstance { .. }
        | Wish::ResumeInstance { .. }
        | Wish::MoveInstance { .. }
        | Wish::DryRun { .. } => grant_instance(state, now, actor, wish),
        Wish::CreateService { .. } | Wish::UpdateService { .. } | Wish::DeleteService { .. } => {
            grant_service(state, now, actor, wish)
        }
        Wish::CreateJob { .. } | Wish::CancelJob { .. } => grant_job(state, now, actor, wish),
        Wish::CreateVolume { .. } | Wish::DeleteVolume { .. } => grant_volume(state, now, actor, wish),
        Wish::CreateSecret { .. } | Wish::DeleteSecret { .. } => grant_secret(state, now, actor, wish),
    }
}
