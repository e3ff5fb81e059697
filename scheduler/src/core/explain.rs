//! The complete look at the pool, for what the index did not find.

use std::collections::BTreeMap;

use super::ask::{Ask, Filter, Softness};
use super::state::State;
use crate::model::*;

/// Hints that are kept, the most helpful first.
const HINTS_KEPT: usize = 4;

/// Looks at every provider; returns those that match and says why the others do not.
pub(super) fn all(state: &mut State, ask: &Ask, soft: Softness, explanation: &mut Explanation) -> Vec<ProviderId> {
    state.count("placements_scanned");
    let state = &*state;
    let mut found = Vec::new();
    let mut near: BTreeMap<String, (u32, u64)> = BTreeMap::new();
    explanation.filtered.clear();
    for provider in state.providers.values() {
        let refusals = ask.refusals(state, provider, soft, 2);
        match refusals.as_slice() {
            [] => found.push(provider.id),
            [first, rest @ ..] => {
                *explanation.filtered.entry(first.label()).or_default() += 1;
                // Exactly one reason: without it the provider would match.
                if rest.is_empty() {
                    let entry = near.entry(first.label()).or_insert((0, u64::MAX));
                    entry.0 += 1;
                    if let Filter::Resource(_, short) = first {
                        entry.1 = entry.1.min(*short);
                    }
                }
            }
        }
    }
    explanation.examined = explanation.pool;
    explanation.matched = u32::try_from(found.len()).unwrap_or(u32::MAX);
    explanation.hints = if found.is_empty() { hints(state, near) } else { Vec::new() };
    found
}

fn hints(state: &State, near: BTreeMap<String, (u32, u64)>) -> Vec<String> {
    if state.providers.is_empty() {
        return vec!["no provider has joined".to_owned()];
    }
    let mut near: Vec<(String, (u32, u64))> = near.into_iter().collect();
    near.sort_by_key(|(label, (count, _))| (std::cmp::Reverse(*count), label.clone()));
    let say = |(label, (count, short)): (String, (u32, u64))| match (label.as_str(), short) {
        ("state", _) => format!("{count} would match if they were in touch"),
        ("drain", _) => format!("{count} would match if they were not drained"),
        ("owner", _) => format!("{count} would match if their owners let new work in"),
        ("trouble", _) => format!("{count} will match when their cool-off after failures is over"),
        (label, u64::MAX) => format!("{count} would match without {label}"),
        (label, short) => format!("{count} would match with {short} less {label}"),
    };
    near.into_iter().take(HINTS_KEPT).map(say).collect()
}
