//! Tokens that were found good, so that a request need not queue to be known.
//!
//! The desk's thread alone adds to it, and takes away what a commit has changed before it tells anybody of the commit:
//! a token that was revoked is refused from the moment its revocation is answered. Only good tokens are kept, so that
//! guesses take no room.

use std::collections::{BTreeMap, HashMap};
use std::sync::{PoisonError, RwLock};

use crate::core::{self, State};
use crate::model::{Actor, Key, ProviderId, TokenId};

/// Who a token stands for.
#[derive(Clone, Debug)]
pub struct Bearer {
    /// The actor.
    pub actor: Actor,
    /// The public key a provider joined with.
    pub key: String,
    /// When the token ends.
    expires_at_ms: Option<u64>,
}

#[derive(Debug, Default)]
struct Tables {
    by_hash: HashMap<String, Bearer>,
    by_token: BTreeMap<TokenId, String>,
    by_provider: BTreeMap<(ProviderId, TokenId), String>,
}

impl Tables {
    fn remove(&mut self, hash: &str) {
        if let Some(Bearer { actor, .. }) = self.by_hash.remove(hash) {
            self.by_token.remove(&actor.token);
            if let Some(provider) = actor.provider {
                self.by_provider.remove(&(provider, actor.token));
            }
        }
    }
}

/// The tokens.
#[derive(Debug, Default)]
pub struct Known(RwLock<Tables>);

impl Known {
    /// Finds a token by its hash.
    pub fn get(&self, hash: &str, now_ms: u64) -> Option<Bearer> {
        let tables = self.0.read().unwrap_or_else(PoisonError::into_inner);
        tables.by_hash.get(hash).filter(|found| found.expires_at_ms.is_none_or(|at| at > now_ms)).cloned()
    }

    /// Looks a token up in the state and keeps it. To be called on the desk's thread only.
    pub fn learn(&self, state: &State, hash: &str, now_ms: u64) -> Option<Bearer> {
        let actor = core::authenticate(state, now_ms, hash)?;
        let key = actor.provider.and_then(|provider| Some(state.providers.get(&provider)?.key.clone()));
        let expires_at_ms = state.tokens.get(&actor.token)?.expires_at_ms;
        let found = Bearer { actor, key: key.unwrap_or_default(), expires_at_ms };
        let mut tables = self.0.write().unwrap_or_else(PoisonError::into_inner);
        tables.by_token.insert(actor.token, hash.to_owned());
        if let Some(provider) = actor.provider {
            tables.by_provider.insert((provider, actor.token), hash.to_owned());
        }
        tables.by_hash.insert(hash.to_owned(), found.clone());
        Some(found)
    }

    /// Takes away what may be known otherwise now.
    pub fn forget<'a>(&self, changed: impl Iterator<Item = &'a Key>) {
        let changed: Vec<&Key> =
            changed.filter(|key| matches!(key, Key::User(_) | Key::Token(_) | Key::Provider(_))).collect();
        if changed.is_empty() {
            return;
        }
        let mut tables = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for key in changed {
            match key {
                // Rare, and a user has any number of tokens.
                Key::User(_) => *tables = Tables::default(),
                Key::Token(id) => {
                    if let Some(hash) = tables.by_token.get(id).cloned() {
                        tables.remove(&hash);
                    }
                }
                Key::Provider(id) => {
                    let own = (*id, TokenId::new(0))..=(*id, TokenId::new(u128::MAX));
                    let own: Vec<String> = tables.by_provider.range(own).map(|(_, hash)| hash.clone()).collect();
                    own.iter().for_each(|hash| tables.remove(hash));
                }
                _ => {}
            }
        }
    }

    /// Takes everything away.
    pub fn clear(&self) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Tables::default();
    }
}
