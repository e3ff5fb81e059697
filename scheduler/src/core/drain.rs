//! Emptying a provider, as an administrator or its owner wants it.

use super::index::refresh;
use super::provider::current_on;
use super::state::State;
use super::timer::Timer;
use super::{instance, moving, service};
use crate::model::*;

/// How often it is looked whether there is room elsewhere for what is left.
const AGAIN_MS: u64 = 30_000;

/// Takes in whether the owner empties the machine. What an administrator began, only an administrator ends.
pub(super) fn owner_drains(state: &mut State, now: u64, id: ProviderId, left_ms: Option<u64>) {
    let before = state.providers.get(&id).is_some_and(|record| record.owner_drains);
    if before == left_ms.is_some() {
        return;
    }
    if let Some(record) = state.provider_mut(id) {
        record.owner_drains = left_ms.is_some();
    }
    drain(state, now, id, left_ms.map(|left| Drain { deadline_ms: now.saturating_add(left) }));
    if left_ms.is_some() {
        // Who lends the machine wants it back: no reason to wait for the last moment.
        for (instance, _) in current_on(state, id) {
            if state.instances.get(&instance).is_some_and(moving::may_move) {
                moving::emptied(state, now, instance);
            }
        }
    }
}

/// Starts or ends the emptying of a provider.
pub(super) fn drain(state: &mut State, now: u64, id: ProviderId, drain: Option<Drain>) {
    let Some(record) = state.provider_mut(id) else { return };
    record.drain = drain;
    let group = record.group;
    refresh(state, id);
    let Some(drain) = drain else {
        moving::stay(state, now, id);
        state.live.queue.gain(id);
        service::provider_changed(state, now, id);
        return state.notice(now, group, "provider.undrained", id.to_string(), String::new());
    };
    state.live.arm(drain.deadline_ms, Timer::Drain(id));
    state.notice(now, group, "provider.draining", id.to_string(), String::new());
    for (instance, _) in current_on(state, id) {
        let Some(found) = state.instances.get(&instance) else { continue };
        if found.halt && moving::may_move(found) {
            moving::emptied(state, now, instance);
            continue;
        }
        // Batch work may end in peace until the deadline; services move now.
        if matches!(found.owner, Owner::Service { .. }) && found.spec.volumes.is_empty() {
            let reason = if found.pinned.is_some() { StopReason::Asked } else { StopReason::Drained };
            instance::stop(state, now, instance, reason);
        }
    }
}

/// Stops what is left when a drain's time is up.
pub(super) fn drain_due(state: &mut State, now: u64, id: ProviderId) {
    let due = state.providers.get(&id).and_then(|record| record.drain).is_some_and(|drain| drain.deadline_ms <= now);
    if due {
        for (instance, _) in current_on(state, id) {
            match state.instances.get(&instance) {
                // A person's goes with its data, as soon as there is room for it.
                Some(found) if moving::may_move(found) => moving::emptied(state, now, instance),
                // What is halted uses nothing, and elsewhere its data would be missing.
                Some(found) if found.halt => {}
                _ => instance::stop(state, now, instance, StopReason::Drained),
            }
        }
        state.live.arm(now + AGAIN_MS, Timer::Drain(id));
    }
}
