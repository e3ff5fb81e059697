//! Groups, users, tokens: what authentication needs, and what falls with what.

use super::state::State;
use crate::model::*;

/// Idempotency keys of one user; the oldest make room (S18).
const REMEMBERED_PER_USER: usize = 10_000;

/// Tells who shows a token with this hash, if it is valid now. A token never does more than its user may today.
pub(super) fn authenticate(state: &State, now: u64, hash: &str) -> Option<Actor> {
    let token = state.tokens.get(state.live.token_hashes.get(hash)?)?;
    if token.expires_at_ms.is_some_and(|at| at <= now) {
        return None;
    }
    match token.stands_for {
        TokenKind::User { user, role } => {
            let found = state.users.get(&user)?;
            let role = role.min(found.role);
            Some(Actor { group: found.group, user: Some(user), provider: None, role, token: token.id })
        }
        TokenKind::Provider { provider } => {
            let found = state.providers.get(&provider)?;
            let provider = Some(provider);
            Some(Actor { group: found.group, user: None, provider, role: Role::Reader, token: token.id })
        }
    }
}

/// Takes a token away; streams that were opened with it close at their next look (A84).
pub(super) fn revoke(state: &mut State, id: TokenId) {
    if let Some(token) = state.tokens.get(&id) {
        state.live.token_hashes.remove(&token.hash);
        state.erase(Key::Token(id));
    }
}

/// Takes a join token away.
pub(super) fn forget_join(state: &mut State, id: JoinId) {
    if let Some(join) = state.joins.get(&id) {
        state.live.join_hashes.remove(&join.hash);
        state.erase(Key::Join(id));
    }
}

/// Removes a user and its tokens.
pub(super) fn forget_user(state: &mut State, id: UserId) {
    let tokens =
        state.tokens.values().filter(|token| matches!(token.stands_for, TokenKind::User { user, .. } if user == id));
    let tokens: Vec<TokenId> = tokens.map(|token| token.id).collect();
    tokens.into_iter().for_each(|token| revoke(state, token));
    let joins: Vec<JoinId> = state.joins.values().filter(|join| join.user == id).map(|join| join.id).collect();
    joins.into_iter().for_each(|join| forget_join(state, join));
    if let Some(user) = state.users.get(&id) {
        let name = (user.group, user.name.clone());
        state.live.user_names.remove(&name);
        state.erase(Key::User(id));
    }
}

/// Remembers the answer to an idempotency key.
pub(super) fn remember(state: &mut State, now: u64, user: UserId, key: String, digest: String, made: Key) {
    let own = state.live.remembered.entry(user).or_default();
    own.insert((now, key.clone()));
    let surplus = if own.len() > REMEMBERED_PER_USER { own.pop_first() } else { None };
    if let Some((_, oldest)) = surplus {
        state.erase(Key::Remembered(user, oldest));
    }
    state.remembered.insert((user, key.clone()), Remembered { digest, key: made, at_ms: now });
    state.touch(Key::Remembered(user, key));
}

/// Forgets idempotency keys that are too old to be retries.
pub(super) fn forget_remembered(state: &mut State, now: u64) {
    let keep = state.options.keep_remembered_ms;
    let mut old = Vec::new();
    for (user, own) in &mut state.live.remembered {
        while own.first().is_some_and(|(at, _)| at + keep <= now) {
            old.extend(own.pop_first().map(|(_, key)| (*user, key)));
        }
    }
    state.live.remembered.retain(|_, own| !own.is_empty());
    for (user, key) in old {
        state.erase(Key::Remembered(user, key));
    }
}
