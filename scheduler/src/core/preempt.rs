//! Making room by stopping what matters less.
//!
//! Backfill gives way to everything else; a normal instance only to one that may preempt and whose priority is at
//! least ten higher. The room is claimed while the victims stop, so that nobody slips in; victims go back to the queue.

use super::ask::{Ask, Filter, Softness};
use super::live::Claim;
use super::state::State;
use super::timer::Timer;
use super::{index, instance};
use crate::model::*;

/// Distance in priority that justifies a loss of work.
const PRIORITY_GAP: u8 = 10;
/// How long room is kept for an instance; victims that have not stopped by then keep theirs.
const CLAIM_MS: u64 = 120_000;
/// Victims of one preemption; more would be a storm.
const VICTIMS_MAX: usize = 16;

struct Plan {
    cost: u64,
    provider: ProviderId,
    victims: Vec<InstanceId>,
}

/// Finds the cheapest set of victims on one provider, stops them and claims the room.
pub(super) fn attempt(state: &mut State, now: u64, ask: &Ask) {
    if state.live.queue.claimed.contains_key(&ask.instance) || ask.spec.class == Class::Backfill {
        return;
    }
    let plans = state.providers.values().filter_map(|provider| plan(state, ask, provider));
    let Some(best) = plans.min_by_key(|plan| (plan.cost, plan.provider)) else { return };
    let claim = Claim { resources: ask.spec.resources, until_ms: now + CLAIM_MS };
    if let Some(live) = state.live.providers.get_mut(&best.provider) {
        live.claims.insert(ask.instance, claim);
    }
    state.live.queue.claimed.insert(ask.instance, best.provider);
    state.live.arm(claim.until_ms, Timer::Claim(best.provider, ask.instance));
    index::refresh(state, best.provider);
    for victim in best.victims {
        state.count("preemptions");
        instance::stop(state, now, victim, StopReason::Preempted);
    }
}

/// Drops a claim that was not used in time.
pub(super) fn expire(state: &mut State, provider: ProviderId, id: InstanceId) {
    if state.live.queue.claimed.get(&id) == Some(&provider) {
        state.live.queue.claimed.remove(&id);
        if let Some(live) = state.live.providers.get_mut(&provider) {
            live.claims.remove(&id);
        }
        index::refresh(state, provider);
        state.live.queue.gain(provider);
    }
}

fn plan(state: &State, ask: &Ask, provider: &Provider) -> Option<Plan> {
    // Only a lack of room can be helped by stopping somebody.
    let refusals = ask.refusals(state, provider, Softness::Dropped, 2);
    if !matches!(refusals.as_slice(), [Filter::Resource(..)]) {
        return None;
    }
    let live = state.live.providers.get(&provider.id)?;
    let mut room = ask.room(state, provider.id);
    let candidates = live.allocs.iter().filter_map(|(id, epoch)| victim(state, ask, *id, *epoch));
    let mut candidates: Vec<&Instance> = candidates.collect();
    let newest_first = |found: &&Instance| std::cmp::Reverse(found.created_at_ms);
    candidates.sort_by_key(|found| (found.spec.class == Class::Normal, found.spec.priority(), newest_first(found)));
    let (mut cost, mut victims) = (0, Vec::new());
    for found in candidates.into_iter().take(VICTIMS_MAX) {
        if ask.spec.resources.fits(&room) {
            break;
        }
        room = room.plus(&found.spec.resources);
        if found.stop.is_none() {
            cost += 1 + u64::from(found.spec.priority()) * u64::from(found.spec.class == Class::Normal);
            victims.push(found.id);
        }
    }
    ask.spec.resources.fits(&room).then_some(Plan { cost, provider: provider.id, victims })
}

/// Returns an instance that may be stopped for the request, or is being stopped already.
fn victim<'a>(state: &'a State, ask: &Ask, id: InstanceId, epoch: u64) -> Option<&'a Instance> {
    let found = state.instances.get(&id)?;
    let current = found.alloc.as_ref().is_some_and(|alloc| alloc.epoch == epoch);
    let lower = found.spec.priority().saturating_add(PRIORITY_GAP) <= ask.spec.priority();
    // What is halted would lose what it is halted for.
    let lower = lower && !found.halt;
    let yields = found.spec.class == Class::Backfill || (ask.spec.preempts && lower && found.spec.volumes.is_empty());
    (current && (yields || found.stop.is_some())).then_some(found)
}
