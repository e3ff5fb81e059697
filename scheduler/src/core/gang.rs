//! Gangs: all members are placed in one step, or none.

use super::ask::Ask;
use super::live::{give_back, reserve};
use super::state::State;
use super::{instance, place, queue};
use crate::model::*;

/// Tells whether no member has a place yet, so that all must get one together. A member that is tried again while
/// others run is placed alone.
pub(super) fn whole(state: &State, job: JobId) -> bool {
    let members = state.live.by_job.get(&job);
    members.is_some_and(|members| {
        members.iter().filter_map(|id| state.instances.get(id)).all(|found| found.alloc.is_none())
    })
}

/// Places every member, or parks the gang.
pub(super) fn attempt(state: &mut State, now: u64, gang: Gang) {
    let members: Vec<InstanceId> = state.live.queue.gangs.get(&gang.job).into_iter().flatten().copied().collect();
    if members.len() < gang.size as usize {
        let hint = format!("{} of {} members are waiting", members.len(), gang.size);
        return queue::park_gang(state, now, gang.job, Explanation { hints: vec![hint], ..Explanation::default() });
    }
    let mut held: Vec<(InstanceId, ProviderId, u64, Explanation)> = Vec::new();
    let mut failure = None;
    let mut sum = Resources::default();
    for id in members {
        let Some(found) = state.instances.get(&id).cloned() else { continue };
        sum = sum.plus(&found.spec.resources);
        if found.spec.class == Class::Normal && !queue::within_quota(state, found.group, &sum) {
            let hint = "the group's quota does not hold the whole gang".to_owned();
            failure = Some(Explanation { hints: vec![hint], ..Explanation::default() });
            break;
        }
        let ask = Ask::of(state, &found);
        let choice = place::choose(state, &ask);
        let Some(provider) = choice.provider else {
            let mut explanation = choice.explanation;
            explanation.hints.push(format!("{} of {} members would fit", held.len(), gang.size));
            failure = Some(explanation);
            break;
        };
        // Held under the epoch it will have, so that the next member sees the room as taken.
        reserve(state, id, provider, found.epoch + 1);
        held.push((id, provider, found.epoch + 1, choice.explanation));
    }
    for (id, provider, epoch, _) in &held {
        give_back(state, *id, *provider, *epoch);
    }
    match failure {
        Some(explanation) => queue::park_gang(state, now, gang.job, explanation),
        None => held.into_iter().for_each(|(id, provider, _, why)| instance::placed(state, now, id, provider, why)),
    }
}
