//! The long look at the pool, for what the index did not find.
//!
//! It is complete when nothing matches, so that the explanation is. When something does, it ends with enough of it and
//! goes on from there for the next instance of the same shape: a thousand equal instances pass each provider once.

use std::collections::BTreeMap;

use super::ask::{Ask, Filter, Softness};
use super::place::candidates_wanted;
use super::state::State;
use crate::model::*;

/// Hints that are kept, the most helpful first.
const HINTS_KEPT: usize = 4;

/// Shapes for which it is remembered where the look ended.
const PLACES_KEPT: usize = 4096;

/// Looks at providers until enough match; says why the others do not.
pub(super) fn all(state: &mut State, ask: &Ask, soft: Softness, explanation: &mut Explanation) -> Vec<ProviderId> {
    state.count("placements_scanned");
    let wanted = candidates_wanted(state.providers.len());
    let from = state.live.looked.get(&ask.shape).copied().unwrap_or(ProviderId::new(0));
    let (found, near, last) = look(state, ask, soft, from, wanted, explanation);
    if let Some(last) = last.filter(|_| ask.shape != 0) {
        if state.live.looked.len() >= PLACES_KEPT {
            state.live.looked.clear();
        }
        state.live.looked.insert(ask.shape, last);
    }
    explanation.matched = u32::try_from(found.len()).unwrap_or(u32::MAX);
    explanation.hints = if found.is_empty() { hints(state, near) } else { Vec::new() };
    found
}

type Near = BTreeMap<String, (u32, u64)>;

fn look(
    state: &State,
    ask: &Ask,
    soft: Softness,
    from: ProviderId,
    wanted: usize,
    explanation: &mut Explanation,
) -> (Vec<ProviderId>, Near, Option<ProviderId>) {
    let (mut found, mut near, mut examined) = (Vec::new(), Near::new(), 0);
    explanation.filtered.clear();
    let providers = state.providers.range(from..).chain(state.providers.range(..from));
    let mut last = None;
    for (_, provider) in providers {
        // A look ahead of nobody's is complete: its count is what was asked for.
        if found.len() >= wanted && ask.shape != 0 {
            break;
        }
        examined += 1;
        last = Some(provider.id);
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
    explanation.examined = examined;
    (found, near, last)
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
