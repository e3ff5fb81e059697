//! Instances that move to another provider with what they have written.
//!
//! A move begins with a halt. Standing still, the instance gets a place elsewhere in the same step in which its old
//! allocation becomes the *source*: given up, but with its room and its data kept and never told to end. The new
//! provider fetches the data and reports the allocation as halted; only then the source is told to end, and the
//! instance is started. Whatever goes wrong before that, the source is the instance again, as it stood still.

use super::ask::Ask;
use super::live::charge;
use super::state::State;
use super::timer::Timer;
use super::{Refusal, halt, instance, loss, place, provider};
use crate::model::*;

/// Tries of a move that is nobody's express wish before it is left alone.
const TRIES: u32 = 3;

/// Gives the allocation that has the data of an instance that is under way.
pub(super) fn source(found: &Instance) -> Option<OldAllocation> {
    found.moving.and_then(|moving| moving.source)
}

/// Tells whether an instance could move: a person's, which has no volume that others use too.
pub(super) fn may_move(found: &Instance) -> bool {
    found.owner == Owner::User && found.spec.volumes.is_empty() && found.stop.is_none() && found.alloc.is_some()
}

/// Wants an instance elsewhere.
pub(super) fn wish(state: &mut State, now: u64, id: InstanceId, to: Option<ProviderId>) -> Result<(), Refusal> {
    let found = halt::own(state, id)?;
    let here = found.alloc.as_ref().map(|alloc| alloc.provider);
    if !may_move(found) {
        return Err(Refusal::Conflict(format!("{} uses a volume of the pool, which stays where it is", found.name)));
    }
    if source(found).is_some() {
        return Err(Refusal::Conflict(format!("{} is under way already", found.name)));
    }
    if matches!(found.state, InstanceState::Unknown | InstanceState::Lost) {
        return Err(Refusal::Conflict(format!("the provider of {} is silent, and its data with it", found.name)));
    }
    if let Some(to) = to {
        state.providers.get(&to).ok_or(Refusal::NotFound("provider"))?;
        if Some(to) == here {
            return Err(Refusal::Conflict(format!("{} is there already", found.name)));
        }
    }
    begin(state, now, id, Moving { to, resume: !found.halt, patient: false, failures: 0, source: None });
    Ok(())
}

/// Wants an instance away from a provider that is being emptied.
pub(super) fn emptied(state: &mut State, now: u64, id: InstanceId) {
    let Some(found) = state.instances.get(&id) else { return };
    if source(found).is_some() {
        return;
    }
    match found.moving {
        Some(moving) if moving.failures >= TRIES => {}
        Some(_) => depart(state, now, id),
        None => {
            let resume = !found.halt;
            begin(state, now, id, Moving { to: None, resume, patient: true, failures: 0, source: None });
        }
    }
}

fn begin(state: &mut State, now: u64, id: InstanceId, moving: Moving) {
    if let Some(found) = state.instance_mut(id) {
        found.moving = Some(moving);
    }
    if state.instances.get(&id).is_some_and(|found| found.state == InstanceState::Halted) {
        return depart(state, now, id);
    }
    // A halt that is on its way already ends in the same.
    let _ = halt::halt(state, now, id);
    if let Some(found) = state.instance_mut(id) {
        found.moving = Some(moving);
        found.reason = "stopped to be moved".to_owned();
    }
}

/// Lets those stay that only left because their provider was being emptied.
pub(super) fn stay(state: &mut State, now: u64, id: ProviderId) {
    for (id, _) in provider::current_on(state, id) {
        let waits = |found: &Instance| found.moving.is_some_and(|moving| moving.patient && moving.source.is_none());
        if state.instances.get(&id).is_some_and(waits) {
            remain(state, now, id, "its provider is not being emptied any more");
        }
    }
}

/// Takes in that an owner who empties the machine has stopped an instance and kept its data.
pub(super) fn put_still(state: &mut State, status: &AllocStatus) {
    let Some(found) = state.instances.get(&status.instance) else { return };
    let place = found.alloc.as_ref().and_then(|alloc| state.providers.get(&alloc.provider));
    let emptied = place.is_some_and(|record| record.owner_drains);
    if emptied && status.phase == Phase::Halted && !found.halt && found.moving.is_none() && may_move(found) {
        let moving = Moving { to: None, resume: true, patient: true, failures: 0, source: None };
        if let Some(found) = state.instance_mut(status.instance) {
            found.halt = true;
            found.moving = Some(moving);
        }
    }
}

/// Finds a place for an instance that stands still and is to move, and sends it there.
pub(super) fn depart(state: &mut State, now: u64, id: InstanceId) {
    let Some(found) = state.instances.get(&id).filter(|found| found.state == InstanceState::Halted) else { return };
    let Some(moving) = found.moving.filter(|moving| moving.source.is_none() && found.stop.is_none()) else { return };
    let copy = found.clone();
    let mut ask = Ask::of(state, &copy);
    // Not what an earlier look for the same shape said.
    ask.shape = 0;
    ask.pinned = moving.to.or(ask.pinned);
    let choice = place::choose(state, &ask);
    let (Some(to), Some(alloc)) = (choice.provider, copy.alloc) else {
        let why = format!("it cannot move: {}", choice.explanation.sentence());
        if !moving.patient {
            remain(state, now, id, &why);
        } else if let Some(found) = state.instance_mut(id).filter(|found| found.reason != why) {
            found.reason = why;
        }
        return;
    };
    loss::abandon(state, now, id);
    if let Some(found) = state.instance_mut(id) {
        let source = Some(OldAllocation { provider: alloc.provider, epoch: alloc.epoch });
        found.moving = Some(Moving { source, ..moving });
        found.halt = !moving.resume;
    }
    instance::placed(state, now, id, to, choice.explanation);
    if let Some(found) = state.instance_mut(id) {
        found.reason = "its data is on its way".to_owned();
    }
    instance::tell(state, now, id, "instance.moving", String::new());
}

/// Gives a move up that has not left yet: it stays, and runs again if it ran.
fn remain(state: &mut State, now: u64, id: InstanceId, why: &str) {
    let Some(found) = state.instance_mut(id) else { return };
    let Some(moving) = found.moving.take() else { return };
    found.reason = why.to_owned();
    if let Some(alloc) = &mut found.alloc {
        alloc.explanation.hints = vec![why.to_owned()];
    }
    instance::tell(state, now, id, "instance.stays", why.to_owned());
    if moving.resume {
        let _ = halt::resume(state, now, id);
        if let Some(found) = state.instance_mut(id) {
            found.reason = why.to_owned();
        }
    }
}

/// Takes in what the new provider says before it has the data; tells whether that was all.
pub(super) fn status(state: &mut State, now: u64, status: &AllocStatus) -> bool {
    let id = status.instance;
    let Some(found) = state.instances.get(&id) else { return false };
    let (Some(source), Some(alloc)) = (source(found), found.alloc.as_ref()) else { return false };
    let (provider, stopping) = (alloc.provider, found.stop.is_some());
    match status.phase {
        Phase::Exited { .. } => return false,
        Phase::Halted if !stopping => {
            if let Some(found) = state.instance_mut(id) {
                found.moving = None;
                found.reason = String::new();
            }
            instance::send_stop(state, id, source.provider, source.epoch);
            instance::tell(state, now, id, "instance.moved", String::new());
            return false;
        }
        // It began without its data, as an agent does that knows of no moves.
        Phase::Running { .. } if !stopping => instance::send_stop(state, id, provider, status.epoch),
        _ => {}
    }
    let next = if stopping { InstanceState::Stopping } else { InstanceState::Pulling };
    if state.instances.get(&id).is_some_and(|found| found.state != next)
        && let Some(found) = state.instance_mut(id)
    {
        found.state = next;
        instance::tell(state, now, id, "instance.pulling", String::new());
    }
    true
}

/// Says again to the provider that has the data that nothing may run there.
pub(super) fn keep_still(state: &mut State, source: OldAllocation, status: &AllocStatus) {
    if status.phase != Phase::Halted {
        let command = Command::Halt { instance: status.instance, epoch: source.epoch, grace_ms: instance::GRACE_MS };
        provider::send(state, source.provider, command);
    }
}

/// Makes the place that has the data the instance's own again, after the new allocation is over; tells whether it was
/// under way at all. The caller has taken the new allocation out of the books.
pub(super) fn turn_back(state: &mut State, now: u64, id: InstanceId, why: &str) -> bool {
    let Some(found) = state.instances.get(&id) else { return false };
    let (Some(moving), Some(source)) = (found.moving, source(found)) else { return false };
    if !found.old.contains(&source) {
        if let Some(found) = state.instance_mut(id) {
            found.moving = None;
        }
        instance::finish(state, now, id, InstanceState::Failed, "its data was lost with the provider it came from");
        return true;
    }
    let ready = state.providers.get(&source.provider).is_some_and(|record| record.state == ProviderState::Ready);
    let seen = state.live.providers.get(&source.provider).map_or(now, |live| live.seen_ms);
    let resume = !found.halt;
    let explanation = Explanation { at_ms: now, hints: vec![why.to_owned()], ..Explanation::default() };
    if let Some(found) = state.instance_mut(id) {
        found.old.retain(|old| *old != source);
        found.stop = None;
        found.alloc = Some(Allocation {
            provider: source.provider,
            epoch: source.epoch,
            placed_at_ms: now,
            started_at_ms: Some(now),
            healthy: false,
            healthy_since_ms: None,
            usage: Usage::default(),
            disk: None,
            explanation,
        });
        let again = Moving { source: None, resume, failures: moving.failures + 1, ..moving };
        found.moving = moving.patient.then_some(again);
        found.halt = true;
        found.state = InstanceState::Halted;
        found.reason = format!("it could not move: {why}");
    }
    charge(state, id);
    instance::tell(state, now, id, "instance.stays", why.to_owned());
    if !ready {
        loss::silent(state, id, source.epoch, seen);
    } else if resume && !moving.patient {
        let _ = halt::resume(state, now, id);
    } else if moving.patient {
        state.live.arm(now, Timer::Drain(source.provider));
    }
    true
}

/// Ends what an instance that is over has left behind on its way.
pub(super) fn forget(state: &mut State, id: InstanceId) {
    let Some(moving) = state.instances.get(&id).and_then(|found| found.moving) else { return };
    if let Some(found) = state.instance_mut(id) {
        found.moving = None;
    }
    if let Some(source) = moving.source {
        instance::send_stop(state, id, source.provider, source.epoch);
    }
}
