//! What becomes of an instance whose provider falls silent: waited for, then given up by its policy or kept.

use super::consumption::{book, note_usage};
use super::instance::{GRACE_MS, HOUR_MS, failed, finish, requeue, tell, words};
use super::live::discharge;
use super::moving;
use super::state::State;
use super::timer::Timer;
use crate::model::*;

/// Moves because of a loss within an hour; more would be a storm (F35).
pub const MOVES_PER_HOUR: usize = 4;
/// Slack on top of `stop_after`, for clocks that run up to a tenth apart and for the stop itself.
const STOP_AFTER_SLACK_MS: u64 = 30_000;

/// Returns how long this instance's provider may be silent before it counts as lost.
pub(super) fn patience_ms(state: &State, found: &Instance) -> u64 {
    let asked = found.spec.lost_after_ms.unwrap_or(state.options.lost_after_ms);
    match found.spec.on_loss {
        OnLoss::StopAfter { after_ms } => {
            let grace = found.spec.stop_grace_ms.unwrap_or(GRACE_MS);
            asked.max(after_ms.saturating_add(after_ms / 10).saturating_add(grace).saturating_add(STOP_AFTER_SLACK_MS))
        }
        _ => asked,
    }
}

/// Notes that an instance's provider fell silent.
pub(super) fn silent(state: &mut State, id: InstanceId, epoch: u64, seen_ms: u64) {
    let Some(found) = state.instances.get(&id) else { return };
    let at = seen_ms + patience_ms(state, found);
    let stopping = found.state == InstanceState::Stopping;
    if let Some(found) = state.instance_mut(id).filter(|_| !stopping) {
        let kept = found.state == InstanceState::Halted;
        let what = if kept { "its data is most likely still there" } else { "it most likely still runs" };
        found.state = InstanceState::Unknown;
        found.reason = format!("its provider is silent; {what}");
    }
    state.live.arm(at, Timer::Lost(id, epoch));
}

/// Decides what becomes of an instance whose provider has been silent for too long.
pub(super) fn lost(state: &mut State, now: u64, id: InstanceId, epoch: u64) {
    let Some(found) = state.instances.get(&id) else { return };
    let Some(alloc) = found.alloc.as_ref().filter(|alloc| alloc.epoch == epoch) else { return };
    let place = alloc.provider;
    let away = matches!(found.state, InstanceState::Unknown | InstanceState::Stopping | InstanceState::Lost);
    let silent = state.providers.get(&place).is_none_or(|provider| provider.state != ProviderState::Ready);
    if found.state.is_final() || !away || !silent {
        return;
    }
    let seen = state.live.providers.get(&place).map_or(0, |live| live.seen_ms);
    let due = seen + patience_ms(state, found);
    if now < due {
        return state.live.arm(due, Timer::Lost(id, epoch));
    }
    give_up(state, now, id, epoch);
}

/// Applies an instance's policy for a provider that is not coming back in time, or ever.
pub(super) fn give_up(state: &mut State, now: u64, id: InstanceId, epoch: u64) {
    let Some(found) = state.instances.get(&id) else { return };
    let for_good = matches!(found.stop, Some(StopReason::Asked | StopReason::Ttl));
    if !for_good && moving::source(found).is_some() {
        abandon(state, now, id);
        moving::turn_back(state, now, id, "the provider it moved to is lost");
        return;
    }
    if let Some(reason) = found.stop {
        abandon(state, now, id);
        return match reason {
            StopReason::Asked | StopReason::Ttl => finish(state, now, id, InstanceState::Stopped, words(reason)),
            StopReason::TimeLimit => failed(state, now, id, words(reason)),
            StopReason::Preempted | StopReason::Drained => requeue(state, now, id, 0, words(reason)),
        };
    }
    let stays =
        found.spec.on_loss == OnLoss::Keep || found.halt || !found.spec.volumes.is_empty() || found.pinned.is_some();
    let recent: Vec<u64> = found.moves_ms.iter().copied().filter(|at| at + HOUR_MS > now).collect();
    let storm = recent.len() >= MOVES_PER_HOUR;
    let was = found.state;
    if stays || storm {
        if storm && !stays {
            state.live.arm(recent[0] + HOUR_MS, Timer::Lost(id, epoch));
        }
        if was != InstanceState::Lost
            && let Some(found) = state.instance_mut(id)
        {
            found.state = InstanceState::Lost;
            let why = if stays { "waits for its provider" } else { "was moved too often within an hour" };
            found.reason = why.to_owned();
            tell(state, now, id, "instance.lost", why.to_owned());
        }
        return;
    }
    abandon(state, now, id);
    if let Some(found) = state.instance_mut(id) {
        found.moves_ms = recent;
        found.moves_ms.push(now);
    }
    state.count("replacements");
    tell(state, now, id, "instance.lost", "its provider is lost; it is placed anew".to_owned());
    requeue(state, now, id, 0, "its provider is lost");
}

/// Gives the current allocation up while its provider is away. Its room stays reserved until the provider speaks.
pub(super) fn abandon(state: &mut State, now: u64, id: InstanceId) {
    note_usage(state, now, id, &Usage::default());
    book(state, id);
    discharge(state, id);
    if let Some(found) = state.instance_mut(id)
        && let Some(alloc) = found.alloc.take()
    {
        found.old.push(OldAllocation { provider: alloc.provider, epoch: alloc.epoch });
        found.epoch = found.epoch.max(alloc.epoch);
    }
}
