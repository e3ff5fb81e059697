//! Batch jobs: arrays whose members are made a window at a time, retried, and counted.

use super::instance::{self, New};
use super::state::State;
use super::timer::Timer;
use crate::model::*;

/// Members made in one step; the rest in the next (nomad's lesson: large batches must not lock the store).
const STEP_MEMBERS: u32 = 256;

/// Starts a job, or lets it wait for the jobs it depends on.
pub(super) fn begin(state: &mut State, now: u64, id: JobId) {
    let Some(job) = state.jobs.get(&id) else { return };
    let wanted = job.spec.depends_on.clone();
    let name = (job.group, job.spec.name.clone());
    state.live.job_names.insert(name, id);
    for other in wanted {
        state.live.waiters.entry(other).or_default().insert(id);
    }
    consider(state, now, id);
}

/// Looks whether a waiting job may start, or never will.
fn consider(state: &mut State, now: u64, id: JobId) {
    let Some(job) = state.jobs.get(&id).filter(|job| job.state == JobState::Waiting) else { return };
    let states = job.spec.depends_on.iter().map(|other| state.jobs.get(other).map(|other| other.state));
    let states: Vec<Option<JobState>> = states.collect();
    let broken = states.iter().any(|found| matches!(found, None | Some(JobState::Failed | JobState::Cancelled)));
    if broken {
        return finish(state, now, id, JobState::Failed, "a job it depends on did not succeed");
    }
    if states.iter().all(|found| *found == Some(JobState::Succeeded)) {
        if let Some(job) = state.job_mut(id) {
            job.state = JobState::Active;
        }
        state.live.arm(now, Timer::Job(id));
    }
}

/// Makes members while the window has room.
pub(super) fn fill(state: &mut State, now: u64, id: JobId) {
    consider(state, now, id);
    let Some(job) = state.jobs.get(&id).filter(|job| job.state == JobState::Active) else { return };
    let spec = job.spec.clone();
    let (group, user) = (job.group, job.user);
    let window = if spec.gang { spec.count() } else { spec.parallel.unwrap_or(JobSpec::DEFAULT_PARALLEL) };
    let open = job.made - job.succeeded - job.failed - job.stopped;
    let room = window.saturating_sub(open).min(spec.count() - job.made);
    for _ in 0..room.min(STEP_MEMBERS) {
        let Some(job) = state.job_mut(id) else { return };
        let index = job.made;
        job.made += 1;
        let mut template = spec.template.clone();
        template.restart = Restart::OnFailure { max: spec.retries };
        template.env.push(format!("CORACLE_INDEX={index}"));
        let mut stem = spec.name.to_string();
        // The number needs room in a name of 63.
        stem.truncate(40);
        let Ok(name) = format!("{stem}-{index}").parse::<Name>() else { return };
        let gang = spec.gang.then(|| Gang { job: id, size: spec.count() });
        let owner = Owner::Job { job: id, index };
        let limit = spec.time_limit_ms;
        instance::create(
            state,
            now,
            New { group, user, owner, name, unnamed: false, spec: template, pinned: None, gang, time_limit_ms: limit },
        );
    }
    if room > STEP_MEMBERS {
        state.live.arm(now, Timer::Job(id));
    }
}

/// Counts a member that is final.
pub(super) fn member_ended(state: &mut State, now: u64, id: JobId, member: InstanceId) {
    let Some(found) = state.instances.get(&member) else { return };
    let good = found.state == InstanceState::Stopped && found.stop.is_none();
    let failed = found.state == InstanceState::Failed;
    let Some(job) = state.job_mut(id) else { return };
    if failed {
        job.failed += 1;
    } else if good {
        job.succeeded += 1;
    } else {
        job.stopped += 1;
    }
    if job.ended_at_ms.is_some() {
        return;
    }
    if job.succeeded + job.failed + job.stopped < job.spec.count() {
        return state.live.arm(now, Timer::Job(id));
    }
    let (failed, stopped) = (job.failed, job.stopped);
    match (failed, stopped) {
        (0, 0) => finish(state, now, id, JobState::Succeeded, "every member succeeded"),
        (0, _) => finish(state, now, id, JobState::Cancelled, "members were stopped"),
        _ => finish(state, now, id, JobState::Failed, &format!("{failed} members failed")),
    }
}

/// Stops a job and all its members.
pub(super) fn cancel(state: &mut State, now: u64, id: JobId) {
    if state.jobs.get(&id).is_none_or(|job| job.ended_at_ms.is_some()) {
        return;
    }
    finish(state, now, id, JobState::Cancelled, "cancelled");
    let members: Vec<InstanceId> = state.live.by_job.get(&id).into_iter().flatten().copied().collect();
    for member in members {
        instance::stop(state, now, member, StopReason::Asked);
    }
}

fn finish(state: &mut State, now: u64, id: JobId, last: JobState, reason: &str) {
    let keep = state.options.keep_final_ms;
    let Some(job) = state.job_mut(id) else { return };
    job.state = last;
    job.reason = reason.to_owned();
    job.ended_at_ms = Some(now);
    let (group, name) = (job.group, job.spec.name.clone());
    if state.live.job_names.get(&(group, name.clone())) == Some(&id) {
        state.live.job_names.remove(&(group, name));
    }
    state.live.arm(now + keep, Timer::PurgeJob(id));
    state.notice(now, group, "job.ended", id.to_string(), reason.to_owned());
    for waiter in state.live.waiters.remove(&id).unwrap_or_default() {
        // Through a timer, so that a chain of failures is no recursion.
        state.live.arm(now, Timer::Job(waiter));
    }
}

/// Forgets a finished job whose members are forgotten.
pub(super) fn purge(state: &mut State, now: u64, id: JobId) {
    let Some(job) = state.jobs.get(&id).filter(|job| job.ended_at_ms.is_some()) else { return };
    let group = job.group;
    if state.live.by_job.get(&id).is_some_and(|members| !members.is_empty()) {
        return state.live.arm(now + instance::HOUR_MS, Timer::PurgeJob(id));
    }
    state.live.by_job.remove(&id);
    state.notice(now, group, "job.removed", id.to_string(), String::new());
    state.erase(Key::Job(id));
}
