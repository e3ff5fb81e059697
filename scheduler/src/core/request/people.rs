//! Requests about who belongs here: groups, users, tokens, machines that join.

use super::*;

pub(super) fn bootstrap(state: &mut State, now: u64, group: Name, user: Name, hash: String) -> Result<Answer, Refusal> {
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

pub(super) fn grant_group(state: &mut State, now: u64, wish: Wish) -> Result<Answer, Refusal> {
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
            crate::core::queue::quota_freed(state, id);
            Ok(Answer::Object(Key::Group(id)))
        }
        Wish::DeleteGroup { id } => {
            let group = state.groups.get(&id).ok_or(Refusal::NotFound("group"))?;
            let name = group.name.clone();
            let busy = state.users.values().any(|found| found.group == id)
                || state.instances.values().any(|found| found.group == id && !found.state.is_final())
                || state.providers.values().any(|found| found.group == id)
                || state.volumes.values().any(|found| found.group == id)
                || state.secrets.values().any(|found| found.group == id)
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

pub(super) fn grant_user(state: &mut State, now: u64, actor: Option<Actor>, wish: Wish) -> Result<Answer, Refusal> {
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
                let mut words = key.split(' ');
                let (kind, blob) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
                let known = [
                    "ssh-ed25519",
                    "ssh-rsa",
                    "ecdsa-sha2-nistp256",
                    "ecdsa-sha2-nistp384",
                    "sk-ssh-ed25519@openssh.com",
                ];
                let base64 = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte);
                let least = if kind == "ssh-rsa" { RSA_BYTES_LEAST } else { KEY_BYTES_LEAST };
                let whole = blob.len() >= least && blob.bytes().all(base64);
                key.len() <= KEY_BYTES && known.contains(&kind) && whole && !key.chars().any(char::is_control)
            };
            if keys.len() > KEYS_MAX || !keys.iter().all(plain) {
                return invalid(
                    "keys",
                    "at most 64 public keys in OpenSSH's one-line form, RSA with 2048 bits or more",
                );
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

pub(super) fn grant_token(state: &mut State, now: u64, actor: Option<Actor>, wish: Wish) -> Result<Answer, Refusal> {
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
            if !(limits::TTL_MIN_MS..=TOKEN_MS).contains(&ttl_ms) {
                return invalid("ttl_ms", "not between a second and 366 days");
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

pub(super) fn grant_join(state: &mut State, now: u64, actor: Option<Actor>, wish: Wish) -> Result<Answer, Refusal> {
    let actor = need(actor, Role::Member)?;
    match wish {
        Wish::CreateJoin { group, name, tier, ttl_ms, hash } => {
            room(state.joins.len(), OBJECTS_MAX, "100000 join tokens")?;
            let group = seen(actor, state.groups.contains_key(&group).then_some(group), "group")?;
            if tier > Tier::New && actor.role != Role::Admin {
                return Err(Refusal::Forbidden);
            }
            if !(limits::TTL_MIN_MS..=JOIN_MS).contains(&ttl_ms) {
                return invalid("ttl_ms", "not between a second and an hour");
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

pub(super) fn join(
    state: &mut State,
    now: u64,
    join_hash: &str,
    name: Name,
    hash: String,
    key: String,
) -> Result<Answer, Refusal> {
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
    state.live.providers.insert(id, crate::core::live::LiveProvider::default());
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
        owner_drains: false,
        silences_ms: Vec::new(),
        troubles_ms: Vec::new(),
        cool_until_ms: 0,
        joined_at_ms: now,
        key,
    });
    crate::core::index::refresh_words(state, id);
    let token = TokenId::new(state.random.id(now));
    let stands_for = TokenKind::Provider { provider: id };
    put_token(state, Token { id: token, group: join.group, stands_for, hash, expires_at_ms: None, created_at_ms: now });
    state.notice(now, join.group, "provider.joined", id.to_string(), String::new());
    Ok(Answer::Object(Key::Provider(id)))
}

/// An agent puts a new key in the place of the old one. Only the agent itself asks for that; the server has seen that
/// it has the old key.
pub(super) fn set_key(state: &mut State, actor: Option<Actor>, key: String) -> Result<Answer, Refusal> {
    let id = actor.and_then(|actor| actor.provider).ok_or(Refusal::Forbidden)?;
    let provider = state.provider_mut(id).ok_or(Refusal::NotFound("provider"))?;
    provider.key = key;
    Ok(Answer::Object(Key::Provider(id)))
}
