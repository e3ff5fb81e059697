//! Invariants of the state, asserted by the simulator after every step and by tests after every request.

use std::collections::BTreeMap;

use super::index;
use super::live::{self, Used};
use super::request::audit_hash;
use super::state::State;
use crate::model::*;

/// Lists every violated invariant in words; an empty list is the only good answer.
pub fn violations(state: &State) -> Vec<String> {
    let mut found = Vec::new();
    state.instances.values().for_each(|one| instance(state, one, &mut found));
    let mut fixed = BTreeMap::<ProviderId, u64>::new();
    for volume in state.volumes.values() {
        if let Some(place) = volume.provider {
            *fixed.entry(place).or_default() += volume.size_bytes;
        }
    }
    for one in state.providers.values() {
        provider(state, one, fixed.get(&one.id).copied().unwrap_or(0), &mut found);
    }
    rebuilt(state, &mut found);
    found
}

/// Finds the first row of a group's audit chain that does not follow from the one before it: edited, removed, put in
/// or moved. `head` is the newest hash that was published; a chain that does not reach it was cut off.
pub fn broken_link(rows: &[Audit], head: &str) -> Option<u64> {
    let mut previous = "";
    for (place, row) in rows.iter().enumerate() {
        let sound = row.previous == previous && row.group_seq == place as u64 + 1 && row.hash == audit_hash(row);
        if !sound {
            return Some(row.group_seq);
        }
        previous = &row.hash;
    }
    (previous != head).then_some(rows.len() as u64 + 1)
}

/// Looks at one instance.
pub(super) fn instance(state: &State, instance: &Instance, found: &mut Vec<String>) {
    let (id, state_of) = (instance.id, instance.state);
    let waits = state.live.queue.contains(id);
    let retry = instance.retry_at_ms.is_some_and(|at| at >= state.live.now_ms);
    let holds = |provider: ProviderId, epoch: u64| {
        state.live.providers.get(&provider).is_some_and(|live| live.allocs.contains(&(id, epoch)))
    };
    match (state_of, &instance.alloc) {
        (InstanceState::Pending, None) if waits || retry => {}
        (InstanceState::Pending, _) => found.push(format!("{id} is pending and in no line, or has a place")),
        (InstanceState::Stopped | InstanceState::Failed, alloc) => {
            if waits || alloc.as_ref().is_some_and(|alloc| holds(alloc.provider, alloc.epoch)) {
                found.push(format!("{id} is final and still waits or holds room"));
            }
        }
        (_, None) => found.push(format!("{id} is {state_of:?} without a place")),
        (_, Some(alloc)) => {
            if !holds(alloc.provider, alloc.epoch) || waits {
                found.push(format!("{id} is {state_of:?} without a reservation, or waits too"));
            }
            // One that could not move is back at the last place that had its data.
            if alloc.epoch > instance.epoch {
                found.push(format!("{id} has epoch {} and an allocation of {}", instance.epoch, alloc.epoch));
            }
        }
    }
    if instance.old.iter().any(|old| !holds(old.provider, old.epoch)) {
        found.push(format!("{id} gave an allocation up whose room is gone"));
    }
    if instance.moving.and_then(|moving| moving.source).is_some() && (state_of.is_final() || instance.alloc.is_none()) {
        found.push(format!("{id} moves and has no place to move to"));
    }
    let mut epochs: Vec<u64> = instance.old.iter().map(|old| old.epoch).collect();
    epochs.extend(instance.alloc.as_ref().map(|alloc| alloc.epoch));
    epochs.sort_unstable();
    if epochs.windows(2).any(|pair| pair[0] == pair[1]) {
        found.push(format!("{id} has two allocations of one epoch"));
    }
}

/// Looks at one provider, on which volumes take `fixed` bytes.
pub(super) fn provider(state: &State, provider: &Provider, fixed: u64, found: &mut Vec<String>) {
    let Some(live) = state.live.providers.get(&provider.id) else {
        return found.push(format!("{} is unknown to the index", provider.id));
    };
    let stopping = live.allocs.iter().filter_map(|(id, epoch)| {
        let instance = state.instances.get(id)?;
        let leaves = instance.stop.is_some() || instance.alloc.as_ref().is_none_or(|alloc| alloc.epoch != *epoch);
        leaves.then_some(instance.spec.resources)
    });
    // What is being stopped after the owner lends less may still be there; nothing else may be too much.
    let staying = stopping.fold(live.reserved, |sum, resources| sum.minus(&resources));
    let allowed = provider.capacity.disk_bytes.max(fixed);
    if !staying.fits(&Resources { disk_bytes: allowed, ..provider.capacity }) {
        found.push(format!("{} has {:?} reserved of {:?}", provider.id, live.reserved, provider.capacity));
    }
    if live.slot.is_some() != index::closed(state, provider).is_none() {
        found.push(format!("{} is in the index against its state", provider.id));
    }
}

/// Compares what was kept step by step with what the records alone give.
fn rebuilt(state: &State, found: &mut Vec<String>) {
    let mut other = state.clone();
    live::rebuild(&mut other, state.live.now_ms);
    let (kept, fresh) = (&state.live, &other.live);
    let used = |live: &live::Live| -> BTreeMap<GroupId, Used> {
        live.used.iter().filter(|(_, used)| **used != Used::default()).map(|(id, used)| (*id, *used)).collect()
    };
    if used(kept) != used(fresh) {
        found.push(format!("groups use {:?} and records say {:?}", used(kept), used(fresh)));
    }
    for (id, live) in &kept.providers {
        let Some(fresh) = fresh.providers.get(id) else {
            found.push(format!("{id} is no record"));
            continue;
        };
        if live.allocs != fresh.allocs || live.reserved != fresh.reserved || live.ports != fresh.ports {
            found.push(format!("{id} keeps {:?} and records say {:?}", live.reserved, fresh.reserved));
        }
        if !state.providers.contains_key(id) {
            found.push(format!("{id} was removed and is still indexed"));
        }
    }
    if kept.together != fresh.together {
        found.push("relatives are miscounted".to_owned());
    }
    if kept.total != fresh.total {
        found.push(format!("the pool has {:?} and records say {:?}", kept.total, fresh.total));
    }
    let names = kept.instance_names == fresh.instance_names
        && kept.service_names == fresh.service_names
        && kept.job_names == fresh.job_names
        && kept.provider_names == fresh.provider_names
        && kept.token_hashes == fresh.token_hashes
        && kept.join_hashes == fresh.join_hashes
        && kept.secret_names == fresh.secret_names
        && kept.remembered == fresh.remembered;
    if !names {
        found.push("names or hashes are out of step with the records".to_owned());
    }
}
