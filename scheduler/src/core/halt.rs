//! Instances that are stopped with their data kept, and started again.
//!
//! A halted instance keeps its allocation and its room, so that a start cannot fail for want of either, and it is
//! never placed elsewhere by itself: what it wrote is on its provider.

use super::state::State;
use super::{Refusal, instance, moving, provider};
use crate::model::*;

/// Finds an instance that may be halted or started: a person's, with a place.
pub(super) fn own(state: &State, id: InstanceId) -> Result<&Instance, Refusal> {
    let found = state.instances.get(&id).ok_or(Refusal::NotFound("instance"))?;
    if found.owner != Owner::User {
        return Err(Refusal::Conflict(format!("{} belongs to a service or a job, which looks after it", found.name)));
    }
    if found.state.is_final() || found.stop.is_some() {
        return Err(Refusal::Conflict(format!("{} has ended; only a new instance can be started", found.name)));
    }
    if found.alloc.is_none() {
        return Err(Refusal::Conflict(format!("{} waits for a place and has no data yet", found.name)));
    }
    Ok(found)
}

/// Wants an instance stopped and its data kept.
pub(super) fn halt(state: &mut State, now: u64, id: InstanceId) -> Result<(), Refusal> {
    if own(state, id)?.halt {
        // Also where it moves to.
        if let Some(moving) = state.instance_mut(id).and_then(|found| found.moving.as_mut()) {
            moving.resume = false;
        }
        return Ok(());
    }
    if let Some(found) = state.instance_mut(id) {
        found.halt = true;
        // Of a silent provider nothing is known, also not that it stops anything.
        if !matches!(found.state, InstanceState::Unknown | InstanceState::Lost) {
            found.state = InstanceState::Stopping;
        }
        found.reason = "stopped on request, its data is kept".to_owned();
    }
    send(state, id);
    instance::tell(state, now, id, "instance.stopping", String::new());
    Ok(())
}

/// Wants it to run again.
pub(super) fn resume(state: &mut State, now: u64, id: InstanceId) -> Result<(), Refusal> {
    if !own(state, id)?.halt {
        return Ok(());
    }
    let under_way = state.instances.get(&id).is_some_and(|found| moving::source(found).is_some());
    if let Some(found) = state.instance_mut(id) {
        found.halt = false;
        if under_way {
            // It starts where it arrives.
            return Ok(());
        }
        found.moving = None;
        if !matches!(found.state, InstanceState::Unknown | InstanceState::Lost) {
            found.state = InstanceState::Placed;
        }
        found.reason = "started again".to_owned();
    }
    send(state, id);
    instance::tell(state, now, id, "instance.starting", String::new());
    Ok(())
}

/// Tells the provider what is wanted.
pub(super) fn send(state: &mut State, id: InstanceId) {
    let Some(found) = state.instances.get(&id) else { return };
    let Some(alloc) = &found.alloc else { return };
    let (to, epoch) = (alloc.provider, alloc.epoch);
    let grace_ms = found.spec.stop_grace_ms.unwrap_or(instance::GRACE_MS);
    let command = match found.halt {
        true => Command::Halt { instance: id, epoch, grace_ms },
        false => Command::Resume { instance: id, epoch, secrets: Vec::new() },
    };
    provider::send(state, to, command);
}

/// Says again what is wanted to a provider whose report shows that it does not know: the command of an earlier session
/// may never have arrived.
pub(super) fn remind(state: &mut State, id: InstanceId, reported: &Phase) {
    let Some(found) = state.instances.get(&id).filter(|found| found.stop.is_none()) else { return };
    let other = match reported {
        Phase::Halted => !found.halt,
        Phase::Running { .. } | Phase::Pulling => found.halt,
        Phase::Exited { .. } => false,
    };
    if other {
        send(state, id);
    }
}
