//! What people ask for, in one place: scope, idempotency, effect, audit.
//!
//! Scope is decided here and not at the edge: an object of another group does not exist (S10, A83). A request either
//! changes nothing and is refused, or is applied whole with one audit row in the same transaction (S31).

use sha2::{Digest, Sha256};

use super::ask::Ask;
use super::instance::{self, New};
use super::state::State;
use super::timer::Timer;
use super::{Action, Answer, Refusal, job, place, provider, service, tenant, volume};
use crate::model::*;

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
            Self::SetTier { .. } => "provider.tier",
            Self::Drain { .. } => "provider.drain",
            Self::Undrain { .. } => "provider.undrain",
            Self::DeleteProvider { .. } => "provider.delete",
            Self::CreateInstance { .. } => "instance.create",
            Self::DeleteInstance { .. } => "instance.delete",
            Self::DryRun { .. } => "instance.dry-run",
            Self::CreateService { .. } => "service.create",
            Self::UpdateService { .. } => "service.update",
            Self::DeleteService { .. } => "service.delete",
            Self::CreateJob { .. } => "job.create",
            Self::CancelJob { .. } => "job.cancel",
            Self::CreateVolume { .. } => "volume.create",
            Self::DeleteVolume { .. } => "volume.delete",
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
            Self::DeleteInstance { id } => Key::Instance(*id),
            Self::UpdateService { id, .. } | Self::DeleteService { id } => Key::Service(*id),
            Self::CancelJob { id } => Key::Job(*id),
            Self::DeleteVolume { id } => Key::Volume(*id),
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
        Wish::Join { join_hash, name, hash } => join(state, now, &join_hash, name, hash),
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
        Wish::CreateInstance { .. } | Wish::DeleteInstance { .. } | Wish::DryRun { .. } => {
            grant_instance(state, now, actor, wish)
        }
        Wish::CreateService { .. } | Wish::UpdateService { .. } | Wish::DeleteService { .. } => {
            grant_service(state, now, actor, wish)
        }
        Wish::CreateJob { .. } | Wish::CancelJob { .. } => grant_job(state, now, actor, wish),
        Wish::CreateVolume { .. } | Wish::DeleteVolume { .. } => grant_volume(state, now, actor, wish),
    }
}

fn bootstrap(state: &mut State, now: u64, group: Name, user: Name, hash: String) -> Result<Answer, Refusal> {
    if !state.groups.is_empty() {
        return Err(Refusal::Conflict("the pool has an administrator already".to_owned()));
    }
    let id = GroupId::new(state.random.id(now));
    put_group(state, now, id, group, Quota::default(), 1);
    let admin = put_user(state, now, id, user, Role::Admin);
    let token = TokenId::new(state.random.id(now));
    let expires_at_ms = Some(now + TOKEN_MS);
    let stands_for = TokenKind::User { user: admin, role: Role::Admin };
    put_token(state, Token { id: token, group: id, stands_for, hash, expires_at_ms, created_at_ms: now });
    Ok(Answer::Object(Key::User(admin)))
}

fn put_group(state: &mut State, now: u64, id: GroupId, name: Name, quota: Quota, weight: u32) {
    state.live.group_names.insert(name.clone(), id);
    state.put_group(Group { id, name, quota, weight, created_at_ms: now });
}

fn put_user(state: &mut State, now: u64, group: GroupId, name: Name, role: Role) -> UserId {
    let id = UserId::new(state.random.id(now));
    state.live.user_names.insert((group, name.clone()), id);
    state.put_user(User { id, group, name, role, ssh_keys: Vec::new(), created_at_ms: now });
    id
}

fn put_token(state: &mut State, token: Token) {
    state.live.token_hashes.insert(token.hash.clone(), token.id);
    if let Some(at) = token.expires_at_ms {
        state.live.arm(at, Timer::Token(token.id));
    }
    state.put_token(token);
}

fn grant_group(state: &mut State, now: u64, wish: Wish) -> Result<Answer, Refusal> {
    let sane = |quota: &Quota, weight: u32| {
        if !(1..=WEIGHT_MAX).contains(&weight) {
            return invalid("weight", "not between 1 and 1000");
        }
        if quota.resources.is_some_and(|resources| !resources.is_sane()) {
            return invalid("quota", "an amount above 2^60");
        }
        Ok(())
    };
    match wish {
        Wish::CreateGroup { name, quota, weight } => {
            room(state.groups.len(), OBJECTS_MAX, "100000 groups")?;
            sane(&quota, weight)?;
            if state.live.group_names.contains_key(&name) {
                return Err(taken("group", &name));
            }
            let id = GroupId::new(state.random.id(now));
            put_group(state, now, id, name, quota, weight);
            Ok(Answer::Object(Key::Group(id)))
        }
        Wish::UpdateGroup { id, quota, weight } => {
            sane(&quota, weight)?;
            let group = state.groups.contains_key(&id).then(|| state.group_mut(id)).flatten();
            let group = group.ok_or(Refusal::NotFound("group"))?;
            (group.quota, group.weight) = (quota, weight);
            super::queue::quota_freed(state, id);
            Ok(Answer::Object(Key::Group(id)))
        }
        Wish::DeleteGroup { id } => {
            let group = state.groups.get(&id).ok_or(Refusal::NotFound("group"))?;
            let name = group.name.clone();
            let busy = state.users.values().any(|found| found.group == id)
                || state.instances.values().any(|found| found.group == id && !found.state.is_final())
                || state.providers.values().any(|found| found.group == id)
                || state.volumes.values().any(|found| found.group == id)
                || state.services.values().any(|found| found.group == id)
                || state.jobs.values().any(|found| found.group == id && found.ended_at_ms.is_none());
            if busy {
                return Err(Refusal::Conflict("the group has users, providers or unfinished objects".to_owned()));
            }
            state.live.group_names.remove(&name);
            state.erase(Key::Group(id));
            Ok(Answer::Gone)
        }
        _ => Err(Refusal::Forbidden),
    }
}

fn grant_user(state: &mut State, now: u64, actor: Option<Actor>, wish: Wish) -> Result<Answer, Refusal> {
    match wish {
        Wish::CreateUser { group, name, role } => {
            need(actor, Role::Admin)?;
            room(state.users.len(), OBJECTS_MAX, "100000 users")?;
            if !state.groups.contains_key(&group) {
                return Err(Refusal::NotFound("group"));
            }
            if state.live.user_names.contains_key(&(group, name.clone())) {
                return Err(taken("user", &name));
            }
            Ok(Answer::Object(Key::User(put_user(state, now, group, name, role))))
        }
        Wish::SetKeys { id, keys } => {
            let actor = need(actor, Role::Reader)?;
            seen(actor, state.users.get(&id).map(|user| user.group), "user")?;
            if actor.role != Role::Admin && actor.user != Some(id) {
                return Err(Refusal::Forbidden);
            }
            let plain = |key: &String| {
                let kind = key.split(' ').next().unwrap_or_default();
                let known = [
                    "ssh-ed25519",
                    "ssh-rsa",
                    "ecdsa-sha2-nistp256",
                    "ecdsa-sha2-nistp384",
                    "sk-ssh-ed25519@openssh.com",
                ];
                key.len() <= KEY_BYTES && known.contains(&kind) && !key.chars().any(char::is_control)
            };
            if keys.len() > KEYS_MAX || !keys.iter().all(plain) {
                return invalid("keys", "at most 64 public keys in OpenSSH's one-line form");
            }
            let user = state.user_mut(id).ok_or(Refusal::NotFound("user"))?;
            user.ssh_keys = keys;
            Ok(Answer::Object(Key::User(id)))
        }
        Wish::DeleteUser { id } => {
            need(actor, Role::Admin)?;
            let user = state.users.get(&id).ok_or(Refusal::NotFound("user"))?;
            let admins = state.users.values().filter(|found| found.role == Role::Admin).count();
            if user.role == Role::Admin && admins == 1 {
                return Err(Refusal::Conflict("this is the last administrator".to_owned()));
            }
            tenant::forget_user(state, id);
            Ok(Answer::Gone)
        }
        _ => Err(Refusal::Forbidden),
    }
}

fn grant_token(state: &mut State, now: u64, actor: Option<Actor>, wish: Wish) -> Result<Answer, Refusal> {
    let actor = need(actor, Role::Reader)?;
    match wish {
        Wish::CreateToken { user, role, ttl_ms, hash } => {
            room(state.tokens.len(), OBJECTS_MAX, "100000 tokens")?;
            let owner = state.users.get(&user);
            let group = seen(actor, owner.map(|owner| owner.group), "user")?;
            // Nobody makes a token that can do more than the one it was made with.
            if role > actor.role || (actor.role != Role::Admin && actor.user != Some(user)) {
                return Err(Refusal::Forbidden);
            }
            if !(1..=TOKEN_MS).contains(&ttl_ms) {
                return invalid("ttl_ms", "not between a millisecond and 366 days");
            }
            let id = TokenId::new(state.random.id(now));
            let expires_at_ms = Some(now + ttl_ms);
            let stands_for = TokenKind::User { user, role };
            put_token(state, Token { id, group, stands_for, hash, expires_at_ms, created_at_ms: now });
            Ok(Answer::Object(Key::Token(id)))
        }
        Wish::DeleteToken { id } => {
            let token = state.tokens.get(&id);
            seen(actor, token.map(|token| token.group), "token")?;
            let own = token.is_some_and(
                |token| matches!(token.stands_for, TokenKind::User { user, .. } if Some(user) == actor.user),
            );
            if actor.role != Role::Admin && !own {
                return Err(Refusal::Forbidden);
            }
            tenant::revoke(state, id);
            Ok(Answer::Gone)
        }
        _ => Err(Refusal::Forbidden),
    }
}

fn grant_join(state: &mut State, now: u64, actor: Option<Actor>, wish: Wish) -> Result<Answer, Refusal> {
    let actor = need(actor, Role::Member)?;
    match wish {
        Wish::CreateJoin { group, name, tier, ttl_ms, hash } => {
            room(state.joins.len(), OBJECTS_MAX, "100000 join tokens")?;
            let group = seen(actor, state.groups.contains_key(&group).then_some(group), "group")?;
            if tier > Tier::New && actor.role != Role::Admin {
                return Err(Refusal::Forbidden);
            }
            if !(1..=JOIN_MS).contains(&ttl_ms) {
                return invalid("ttl_ms", "not between a millisecond and an hour");
            }
            let user = actor.user.ok_or(Refusal::Forbidden)?;
            let id = JoinId::new(state.random.id(now));
            let expires_at_ms = now + ttl_ms;
            state.live.join_hashes.insert(hash.clone(), id);
            state.live.arm(expires_at_ms, Timer::Join(id));
            state.put_join(Join { id, group, user, provider_name: name, tier, hash, expires_at_ms });
            Ok(Answer::Object(Key::Join(id)))
        }
        Wish::DeleteJoin { id } => {
            seen(actor, state.joins.get(&id).map(|join| join.group), "join token")?;
            tenant::forget_join(state, id);
            Ok(Answer::Gone)
        }
        _ => Err(Refusal::Forbidden),
    }
}

fn join(state: &mut State, now: u64, join_hash: &str, name: Name, hash: String) -> Result<Answer, Refusal> {
    let id = state.live.join_hashes.get(join_hash).copied();
    let join = id.and_then(|id| state.joins.get(&id)).filter(|join| join.expires_at_ms > now).cloned();
    // One answer for unknown, used, expired and meant for another name: nothing to learn by trying.
    let join = join.filter(|join| join.provider_name == name).ok_or(Refusal::NotFound("join token"))?;
    room(state.providers.len(), OBJECTS_MAX, "100000 providers")?;
    if state.live.provider_names.contains_key(&name) {
        return Err(taken("provider", &name));
    }
    tenant::forget_join(state, join.id);
    let id = ProviderId::new(state.random.id(now));
    state.live.provider_names.insert(name.clone(), id);
    state.live.providers.insert(id, super::live::LiveProvider::default());
    state.put_provider(Provider {
        id,
        name,
        group: join.group,
        user: join.user,
        tier: join.tier,
        state: ProviderState::Joined,
        capacity: Resources::default(),
        price: 0,
        accepting: false,
        facts: std::collections::BTreeMap::new(),
        boot_id: String::new(),
        session: 0,
        incarnation: 0,
        drain: None,
        silences_ms: Vec::new(),
        troubles_ms: Vec::new(),
        cool_until_ms: 0,
        joined_at_ms: now,
    });
    super::index::refresh_words(state, id);
    let token = TokenId::new(state.random.id(now));
    let stands_for = TokenKind::Provider { provider: id };
    put_token(state, Token { id: token, group: join.group, stands_for, hash, expires_at_ms: None, created_at_ms: now });
    state.notice(now, join.group, "provider.joined", id.to_string(), String::new());
    Ok(Answer::Object(Key::Provider(id)))
}

fn grant_provider(state: &mut State, now: u64, actor: Option<Actor>, wish: Wish) -> Result<Answer, Refusal> {
    let role = if matches!(wish, Wish::SetTier { .. }) { Role::Admin } else { Role::Member };
    let actor = need(actor, role)?;
    // Every user may know every provider; only its own group may touch it.
    let own = |state: &State, id: ProviderId| {
        let group = state.providers.get(&id).map(|found| found.group).ok_or(Refusal::NotFound("provider"))?;
        if actor.sees(group) { Ok(()) } else { Err(Refusal::Forbidden) }
    };
    match wish {
        Wish::SetTier { id, tier } => {
            own(state, id)?;
            state.provider_mut(id).ok_or(Refusal::NotFound("provider"))?.tier = tier;
            state.live.queue.gain(id);
            Ok(Answer::Object(Key::Provider(id)))
        }
        Wish::Drain { id, within_ms } => {
            own(state, id)?;
            if within_ms > DRAIN_MS {
                return invalid("within_ms", "above 30 days");
            }
            provider::drain(state, now, id, Some(Drain { deadline_ms: now + within_ms }));
            Ok(Answer::Object(Key::Provider(id)))
        }
        Wish::Undrain { id } => {
            own(state, id)?;
            provider::drain(state, now, id, None);
            Ok(Answer::Object(Key::Provider(id)))
        }
        Wish::DeleteProvider { id } => {
            own(state, id)?;
            provider::remove(state, now, id);
            Ok(Answer::Gone)
        }
        _ => Err(Refusal::Forbidden),
    }
}

/// Checks what only the state can tell about a spec.
fn check_spec(state: &State, group: GroupId, spec: &InstanceSpec) -> Result<(), Refusal> {
    spec.validate()?;
    for mount in &spec.volumes {
        if state.volumes.get(&mount.volume).is_none_or(|volume| volume.group != group) {
            return Err(Refusal::NotFound("volume"));
        }
    }
    let quota = state.groups.get(&group).and_then(|group| group.quota.resources);
    if spec.class == Class::Normal
        && let Some((name, short)) = quota.and_then(|quota| spec.resources.shortage(&quota))
    {
        return Err(Refusal::Quota(format!("one instance wants {short} more {name} than the group may ever hold")));
    }
    Ok(())
}

fn grant_instance(state: &mut State, now: u64, actor: Option<Actor>, wish: Wish) -> Result<Answer, Refusal> {
    let actor = need(actor, if matches!(wish, Wish::DryRun { .. }) { Role::Reader } else { Role::Member })?;
    match wish {
        Wish::CreateInstance { group, name, mut spec } => {
            let group = seen(actor, state.groups.contains_key(&group).then_some(group), "group")?;
            spec.normalise();
            check_spec(state, group, &spec)?;
            count_quota(state, group, 1)?;
            let name = match name {
                Some(name) => name,
                None => format!("i-{:08x}", state.random.number() >> 32).parse().map_err(|_| Refusal::Forbidden)?,
            };
            if state.live.instance_names.contains_key(&(group, name.clone())) {
                return Err(taken("instance", &name));
            }
            let user = actor.user.ok_or(Refusal::Forbidden)?;
            let new = New {
                group,
                user,
                owner: Owner::User,
                name,
                spec: *spec,
                pinned: None,
                gang: None,
                time_limit_ms: None,
            };
            Ok(Answer::Object(Key::Instance(instance::create(state, now, new))))
        }
        Wish::DeleteInstance { id } => {
            seen(actor, state.instances.get(&id).map(|found| found.group), "instance")?;
            instance::stop(state, now, id, StopReason::Asked);
            Ok(Answer::Object(Key::Instance(id)))
        }
        Wish::DryRun { group, mut spec } => {
            let group = seen(actor, state.groups.contains_key(&group).then_some(group), "group")?;
            spec.normalise();
            check_spec(state, group, &spec)?;
            Ok(Answer::Plan(dry_run(state, group, *spec)))
        }
        _ => Err(Refusal::Forbidden),
    }
}

fn dry_run(state: &mut State, group: GroupId, spec: InstanceSpec) -> Explanation {
    let ask = Ask::ahead(state, group, Owner::User, spec);
    let mut explanation = place::choose(state, &ask).explanation;
    if ask.spec.class == Class::Normal && !super::queue::within_quota(state, group, &ask.spec.resources) {
        explanation.hints.insert(0, "the group's quota is used up just now".to_owned());
    }
    explanation
}

fn count_quota(state: &State, group: GroupId, more: usize) -> Result<(), Refusal> {
    room(state.instances.len() + more - 1, INSTANCES_MAX, "500000 instances")?;
    let most = state.groups.get(&group).and_then(|group| group.quota.instances);
    let held = state.live.used.get(&group).map_or(0, |used| used.instances) as usize;
    if most.is_some_and(|most| held + more > most as usize) {
        return Err(Refusal::Quota(format!(
            "the group has {held} unfinished instances and may have {}",
            most.unwrap_or(0)
        )));
    }
    Ok(())
}

fn grant_service(state: &mut State, now: u64, actor: Option<Actor>, wish: Wish) -> Result<Answer, Refusal> {
    let actor = need(actor, Role::Member)?;
    match wish {
        Wish::CreateService { group, mut spec } => {
            let group = seen(actor, state.groups.contains_key(&group).then_some(group), "group")?;
            room(state.services.len(), OBJECTS_MAX, "100000 services")?;
            spec.template.normalise();
            spec.validate()?;
            check_spec(state, group, &spec.template)?;
            count_quota(state, group, spec.replicas.max(1) as usize)?;
            if state.live.service_names.contains_key(&(group, spec.name.clone())) {
                return Err(taken("service", &spec.name));
            }
            let user = actor.user.ok_or(Refusal::Forbidden)?;
            let id = ServiceId::new(state.random.id(now));
            state.live.service_names.insert((group, spec.name.clone()), id);
            let spec = *spec;
            state.put_service(Service {
                id,
                group,
                user,
                spec,
                revision: 1,
                made: 0,
                halted: None,
                created_at_ms: now,
                removing: false,
            });
            service::changed(state, now, id);
            Ok(Answer::Object(Key::Service(id)))
        }
        Wish::UpdateService { id, mut spec } => {
            let found = state.services.get(&id).cloned();
            let group = seen(actor, found.as_ref().map(|found| found.group), "service")?;
            let found = found.ok_or(Refusal::NotFound("service"))?;
            spec.template.normalise();
            spec.validate()?;
            check_spec(state, group, &spec.template)?;
            if spec.name != found.spec.name || spec.global != found.spec.global {
                return invalid("spec", "name and global cannot change");
            }
            let more = spec.replicas.saturating_sub(found.spec.replicas) as usize;
            if more > 0 {
                count_quota(state, group, more)?;
            }
            if found.removing {
                return Err(Refusal::Conflict("the service is being removed".to_owned()));
            }
            let service = state.service_mut(id).ok_or(Refusal::NotFound("service"))?;
            service.revision += u64::from(service.spec.template != spec.template);
            service.halted = None;
            service.spec = *spec;
            service::changed(state, now, id);
            Ok(Answer::Object(Key::Service(id)))
        }
        Wish::DeleteService { id } => {
            seen(actor, state.services.get(&id).map(|found| found.group), "service")?;
            state.service_mut(id).ok_or(Refusal::NotFound("service"))?.removing = true;
            service::changed(state, now, id);
            Ok(Answer::Object(Key::Service(id)))
        }
        _ => Err(Refusal::Forbidden),
    }
}

fn grant_job(state: &mut State, now: u64, actor: Option<Actor>, wish: Wish) -> Result<Answer, Refusal> {
    let actor = need(actor, Role::Member)?;
    match wish {
        Wish::CreateJob { group, mut spec } => {
            let group = seen(actor, state.groups.contains_key(&group).then_some(group), "group")?;
            room(state.jobs.len(), OBJECTS_MAX, "100000 jobs")?;
            spec.template.normalise();
            spec.validate()?;
            check_spec(state, group, &spec.template)?;
            count_quota(state, group, spec.count() as usize)?;
            for other in &spec.depends_on {
                // A job can only wait for jobs that exist already, so there are no circles.
                seen(actor, state.jobs.get(other).filter(|job| job.group == group).map(|job| job.group), "job")?;
            }
            if state.live.job_names.contains_key(&(group, spec.name.clone())) {
                return Err(taken("unfinished job", &spec.name));
            }
            let user = actor.user.ok_or(Refusal::Forbidden)?;
            let id = JobId::new(state.random.id(now));
            let spec = *spec;
            state.put_job(Job {
                id,
                group,
                user,
                spec,
                state: JobState::Waiting,
                reason: String::new(),
                made: 0,
                succeeded: 0,
                failed: 0,
                stopped: 0,
                created_at_ms: now,
                ended_at_ms: None,
            });
            job::begin(state, now, id);
            Ok(Answer::Object(Key::Job(id)))
        }
        Wish::CancelJob { id } => {
            seen(actor, state.jobs.get(&id).map(|found| found.group), "job")?;
            job::cancel(state, now, id);
            Ok(Answer::Object(Key::Job(id)))
        }
        _ => Err(Refusal::Forbidden),
    }
}

fn grant_volume(state: &mut State, now: u64, actor: Option<Actor>, wish: Wish) -> Result<Answer, Refusal> {
    let actor = need(actor, Role::Member)?;
    match wish {
        Wish::CreateVolume { group, name, size_bytes } => {
            let group = seen(actor, state.groups.contains_key(&group).then_some(group), "group")?;
            room(state.volumes.len(), OBJECTS_MAX, "100000 volumes")?;
            if !(1..=Resources::LIMIT).contains(&size_bytes) {
                return invalid("size_bytes", "not between 1 and 2^60");
            }
            if state.live.volume_names.contains_key(&(group, name.clone())) {
                return Err(taken("volume", &name));
            }
            let id = VolumeId::new(state.random.id(now));
            state.live.volume_names.insert((group, name.clone()), id);
            state.put_volume(Volume { id, name, group, size_bytes, provider: None, created_at_ms: now });
            Ok(Answer::Object(Key::Volume(id)))
        }
        Wish::DeleteVolume { id } => {
            seen(actor, state.volumes.get(&id).map(|found| found.group), "volume")?;
            if state.live.volume_users.get(&id).is_some_and(|users| !users.is_empty()) {
                return Err(Refusal::Conflict("an unfinished instance uses the volume".to_owned()));
            }
            volume::forget(state, id);
            Ok(Answer::Gone)
        }
        _ => Err(Refusal::Forbidden),
    }
}
