//! Things that happen by themselves when their time comes.
//!
//! Timers are derived: `rearm` recreates every one of them from the records. A timer that fires too early re-arms
//! itself from what is true then, so that moving a deadline never needs a search.

use super::state::State;
use super::{drain, instance, job, loss, preempt, provider, queue, service, tenant};
use crate::model::*;

/// What is due.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timer {
    /// Go on placing.
    Schedule,
    /// Try parked gangs.
    Gangs,
    /// Try blocked shapes; forget old idempotency keys.
    Sweep,
    /// Look whether a provider is silent.
    Silence(ProviderId),
    /// Look whether a silent provider is lost.
    Gone(ProviderId),
    /// A cool-off may be over.
    Cool(ProviderId),
    /// A drain's time is up.
    Drain(ProviderId),
    /// A claim's time is up.
    Claim(ProviderId, InstanceId),
    /// Look whether an instance's provider is lost for it.
    Lost(InstanceId, u64),
    /// An instance lived long enough.
    Ttl(InstanceId),
    /// One try ran long enough.
    Limit(InstanceId, u64),
    /// Try a failed instance again.
    Retry(InstanceId),
    /// Forget a finished instance.
    PurgeInstance(InstanceId),
    /// Forget a finished job.
    PurgeJob(JobId),
    /// Go on with a service.
    Service(ServiceId),
    /// Go on with a job.
    Job(JobId),
    /// Forget a join token.
    Join(JoinId),
    /// Forget a token.
    Token(TokenId),
}

/// Timers that fire in one step; the rest in the next.
const STEP_TIMERS: usize = 4096;

/// Fires what is due.
pub(super) fn run(state: &mut State, now: u64) {
    if state.live.timers.is_empty() {
        queue::sweep(state, now);
    }
    for _ in 0..STEP_TIMERS {
        match state.live.timers.first() {
            Some((at, _)) if *at <= now => {}
            _ => return,
        }
        let Some((_, timer)) = state.live.timers.pop_first() else { return };
        fire(state, now, timer);
    }
}

fn fire(state: &mut State, now: u64, timer: Timer) {
    match timer {
        // The end of the step schedules anyway.
        Timer::Schedule => {}
        Timer::Gangs => queue::unpark_gangs(state),
        Timer::Sweep => {
            queue::sweep(state, now);
            tenant::forget_remembered(state, now);
        }
        Timer::Silence(id) => provider::silence(state, now, id),
        Timer::Gone(id) => provider::gone(state, now, id),
        Timer::Cool(id) => {
            super::index::refresh(state, id);
            state.live.queue.gain(id);
        }
        Timer::Drain(id) => drain::drain_due(state, now, id),
        Timer::Claim(provider, id) => preempt::expire(state, provider, id),
        Timer::Lost(id, epoch) => loss::lost(state, now, id, epoch),
        Timer::Ttl(id) => instance::stop(state, now, id, StopReason::Ttl),
        Timer::Limit(id, epoch) => {
            let current = |found: &Instance| found.alloc.as_ref().is_some_and(|alloc| alloc.epoch == epoch);
            if state.instances.get(&id).is_some_and(current) {
                instance::stop(state, now, id, StopReason::TimeLimit);
            }
        }
        Timer::Retry(id) => {
            let waits = |found: &Instance| found.state == InstanceState::Pending;
            if state.instances.get(&id).is_some_and(waits) && !state.live.queue.contains(id) {
                queue::enqueue(state, now, id);
            }
        }
        Timer::PurgeInstance(id) => instance::purge(state, now, id),
        Timer::PurgeJob(id) => job::purge(state, now, id),
        Timer::Service(id) => service::reconcile(state, now, id),
        Timer::Job(id) => job::fill(state, now, id),
        Timer::Join(id) => {
            if state.joins.get(&id).is_some_and(|join| join.expires_at_ms <= now) {
                tenant::forget_join(state, id);
            }
        }
        Timer::Token(id) => {
            if state.tokens.get(&id).is_some_and(|token| token.expires_at_ms.is_some_and(|at| at <= now)) {
                tenant::revoke(state, id);
            }
        }
    }
}

/// Arms every timer that the records call for.
pub(super) fn rearm(state: &mut State, now: u64) {
    let term = provider::term_ms(state);
    let mut timers = vec![(now, Timer::Sweep)];
    for record in state.providers.values() {
        timers.push((now + term, Timer::Silence(record.id)));
        if record.state == ProviderState::Unknown {
            timers.push((now + state.options.lost_after_ms, Timer::Gone(record.id)));
        }
        if record.cool_until_ms > now {
            timers.push((record.cool_until_ms, Timer::Cool(record.id)));
        }
        timers.extend(record.drain.map(|drain| (drain.deadline_ms, Timer::Drain(record.id))));
    }
    for found in state.instances.values() {
        if found.state.is_final() {
            let ended = found.ended_at_ms.unwrap_or(now);
            timers.push((ended + state.options.keep_final_ms, Timer::PurgeInstance(found.id)));
            continue;
        }
        timers.push((found.ends_at_ms, Timer::Ttl(found.id)));
        let Some(alloc) = &found.alloc else { continue };
        let started = found.time_limit_ms.zip(alloc.started_at_ms);
        timers.extend(started.map(|(limit, at)| (at + limit, Timer::Limit(found.id, alloc.epoch))));
        if matches!(found.state, InstanceState::Unknown | InstanceState::Lost | InstanceState::Stopping) {
            // A full term from now: the provider had no chance to speak while the scheduler was away.
            timers.push((now + loss::patience_ms(state, found), Timer::Lost(found.id, alloc.epoch)));
        }
    }
    for job in state.jobs.values() {
        timers.push(match job.ended_at_ms {
            Some(at) => (at + state.options.keep_final_ms, Timer::PurgeJob(job.id)),
            None => (now, Timer::Job(job.id)),
        });
    }
    timers.extend(state.services.keys().map(|id| (now, Timer::Service(*id))));
    timers.extend(state.joins.values().map(|join| (join.expires_at_ms, Timer::Join(join.id))));
    timers.extend(state.tokens.values().filter_map(|token| Some((token.expires_at_ms?, Timer::Token(token.id)))));
    state.live.timers.extend(timers);
}
