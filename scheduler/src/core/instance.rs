//! The life of one instance.
//!
//! Every way out of a reservation ends in `ended` (the provider said so) or `loss::abandon` (the provider is away and its
//! room stays reserved). An exit that was written is never changed: a final instance answers reports with `Stop` only.

use super::consumption::{book, note_disk, note_usage};
use super::live::{charge, discharge, register, release, reserve, unregister};
use super::state::State;
use super::timer::Timer;
use super::{halt, job, loss, moving, provider, queue, service};
use crate::model::*;

/// One hour.
pub(super) const HOUR_MS: u64 = 3_600_000;
/// First wait before another try; doubled by each failure.
const BACKOFF_MS: u64 = 1_000;
/// Longest wait before another try.
const BACKOFF_MAX_MS: u64 = 300_000;
/// Polite time before the final signal, when none is asked: Docker's.
pub(super) const GRACE_MS: u64 = 10_000;
/// Instances of one user on one provider that get a number: each new one looks through them.
const NUMBERS_MAX: u32 = 1_000;
/// Bytes of an agent's words that are kept.
const REASON_BYTES: usize = 200;

/// What a new instance is made of.
pub(super) struct New {
    pub group: GroupId,
    pub user: UserId,
    pub owner: Owner,
    pub name: Name,
    /// Nobody chose the name.
    pub unnamed: bool,
    pub spec: InstanceSpec,
    pub pinned: Option<ProviderId>,
    pub gang: Option<Gang>,
    pub time_limit_ms: Option<u64>,
}

/// Makes an instance and puts it in line.
pub(super) fn create(state: &mut State, now: u64, new: New) -> InstanceId {
    let id = InstanceId::new(state.random.id(now));
    let ends_at_ms = now + new.spec.ttl_ms.unwrap_or(limits::DEFAULT_TTL_MS);
    state.put_instance(Instance {
        id,
        name: new.name,
        unnamed: new.unnamed,
        group: new.group,
        user: new.user,
        owner: new.owner,
        spec: new.spec,
        pinned: new.pinned,
        gang: new.gang,
        time_limit_ms: new.time_limit_ms,
        state: InstanceState::Pending,
        reason: String::new(),
        epoch: 0,
        alloc: None,
        old: Vec::new(),
        stop: None,
        halt: false,
        moving: None,
        exit: None,
        failures: 0,
        moves_ms: Vec::new(),
        retry_at_ms: None,
        created_at_ms: now,
        ends_at_ms,
        ended_at_ms: None,
        usage: Usage::default(),
    });
    register(state, id);
    state.live.used.entry(new.group).or_default().instances += 1;
    state.live.arm(ends_at_ms, Timer::Ttl(id));
    queue::enqueue(state, now, id);
    tell(state, now, id, "instance.pending", String::new());
    id
}

pub(super) fn tell(state: &mut State, now: u64, id: InstanceId, kind: &str, text: String) {
    if let Some(group) = state.instances.get(&id).map(|found| found.group) {
        state.notice(now, group, kind, id.to_string(), text);
    }
}

/// Gives a pending instance its place and tells the provider.
pub(super) fn placed(state: &mut State, now: u64, id: InstanceId, provider: ProviderId, explanation: Explanation) {
    queue::dequeue(state, id);
    let sentence = explanation.sentence();
    let Some(found) = state.instance_mut(id) else { return };
    found.epoch += 1;
    let epoch = found.epoch;
    found.state = InstanceState::Placed;
    found.reason = String::new();
    found.retry_at_ms = None;
    found.alloc = Some(Allocation {
        provider,
        epoch,
        placed_at_ms: now,
        started_at_ms: None,
        healthy: false,
        healthy_since_ms: None,
        usage: Usage::default(),
        disk: None,
        explanation,
    });
    let volumes: Vec<VolumeId> = found.spec.volumes.iter().map(|mount| mount.volume).collect();
    for volume in volumes {
        super::volume::bind(state, volume, provider);
    }
    reserve(state, id, provider, epoch);
    charge(state, id);
    call_by_place(state, id, provider);
    state.count("placements");
    start(state, id);
    tell(state, now, id, "instance.placed", sentence);
}

/// Gives an instance that nobody named the first free name of `<user>-<provider>-<n>`, once: it keeps it when it moves.
fn call_by_place(state: &mut State, id: InstanceId, provider: ProviderId) {
    let Some(found) = state.instances.get(&id).filter(|found| found.unnamed) else { return };
    let (user, place) = (state.users.get(&found.user), state.providers.get(&provider));
    let Some((user, place)) = user.zip(place) else { return };
    let (group, stem) = (found.group, format!("{}-{}", user.name, place.name));
    let names = (1..=NUMBERS_MAX).map_while(|number| format!("{stem}-{number}").parse::<Name>().ok());
    let Some(name) = names.map(|name| (group, name)).find(|name| !state.live.instance_names.contains_key(name)) else {
        return;
    };
    let Some(found) = state.instance_mut(id) else { return };
    let before = std::mem::replace(&mut found.name, name.1.clone());
    found.unnamed = false;
    state.live.instance_names.remove(&(group, before));
    state.live.instance_names.insert(name, id);
}

/// Tells the provider to start the current allocation.
pub(super) fn start(state: &mut State, id: InstanceId) {
    let Some(found) = state.instances.get(&id) else { return };
    let Some(alloc) = &found.alloc else { return };
    let (to, epoch) = (alloc.provider, alloc.epoch);
    let group = state.groups.get(&found.group).map(|group| group.name.to_string()).unwrap_or_default();
    let spec = Box::new(found.spec.clone());
    let moved = moving::source(found).is_some();
    let command = Command::Start { instance: id, epoch, spec, group, moved, secrets: Vec::new() };
    provider::send(state, to, command);
}

pub(super) fn send_stop(state: &mut State, id: InstanceId, provider: ProviderId, epoch: u64) {
    let grace = state.instances.get(&id).and_then(|found| found.spec.stop_grace_ms).unwrap_or(GRACE_MS);
    provider::send(state, provider, Command::Stop { instance: id, epoch, grace_ms: grace });
}

/// Wants an instance stopped.
pub(super) fn stop(state: &mut State, now: u64, id: InstanceId, reason: StopReason) {
    let Some(found) = state.instances.get(&id).filter(|found| !found.state.is_final()) else { return };
    let for_good = matches!(reason, StopReason::Asked | StopReason::Ttl);
    match found.state {
        InstanceState::Pending if for_good => return finish(state, now, id, InstanceState::Stopped, words(reason)),
        InstanceState::Pending => return,
        InstanceState::Lost if for_good => {
            loss::abandon(state, now, id);
            return finish(state, now, id, InstanceState::Stopped, words(reason));
        }
        _ => {}
    }
    let stronger = for_good || found.stop.is_none();
    let place = found.alloc.as_ref().map(|alloc| (alloc.provider, alloc.epoch));
    if let Some(found) = state.instance_mut(id).filter(|_| stronger) {
        found.stop = Some(reason);
        found.state = InstanceState::Stopping;
        found.reason = words(reason).to_owned();
    }
    if let Some((provider, epoch)) = place {
        send_stop(state, id, provider, epoch);
    }
    tell(state, now, id, "instance.stopping", words(reason).to_owned());
}

pub(super) fn words(reason: StopReason) -> &'static str {
    match reason {
        StopReason::Asked => "stopped on request",
        StopReason::Ttl => "lived as long as it may",
        StopReason::TimeLimit => "ran longer than its time limit",
        StopReason::Preempted => "gave way to a more important instance",
        StopReason::Drained => "its provider is being emptied",
    }
}

/// Takes in what a provider says about one allocation.
pub(super) fn status(state: &mut State, now: u64, provider: ProviderId, status: AllocStatus) {
    let (id, epoch) = (status.instance, status.epoch);
    let exited = matches!(status.phase, Phase::Exited { .. });
    let Some(found) = state.instances.get(&id) else {
        // Nothing of ours, or long forgotten: it must not run. A lie about somebody else's instance ends here (S05).
        state.count("statuses_unknown");
        if !exited {
            send_stop(state, id, provider, epoch);
        }
        return;
    };
    let current = found.alloc.as_ref().is_some_and(|alloc| alloc.provider == provider && alloc.epoch == epoch);
    if current && !found.state.is_final() {
        return current_status(state, now, status);
    }
    let gone = OldAllocation { provider, epoch };
    if moving::source(found) == Some(gone) && !exited {
        moving::keep_still(state, gone, &status);
    } else if found.old.contains(&gone) && exited {
        if let Some(found) = state.instance_mut(id) {
            found.old.retain(|old| *old != gone);
        }
        release(state, id, provider, epoch);
    } else if found.old.contains(&gone) && !adopt_again(state, now, &status, gone) {
        send_stop(state, id, provider, epoch);
    } else if !found_place(state, id, provider, epoch) {
        state.count("statuses_foreign");
        if !exited {
            send_stop(state, id, provider, epoch);
        }
    }
}

fn found_place(state: &State, id: InstanceId, provider: ProviderId, epoch: u64) -> bool {
    state.live.providers.get(&provider).is_some_and(|live| live.allocs.contains(&(id, epoch)))
}

/// Takes a given-up allocation back when its replacement has no place yet: nothing healthy is killed needlessly.
fn adopt_again(state: &mut State, now: u64, status: &AllocStatus, gone: OldAllocation) -> bool {
    let id = status.instance;
    let newest = state.instances.get(&id).is_some_and(|found| {
        let waits = found.state == InstanceState::Pending && found.alloc.is_none();
        waits && found.epoch == gone.epoch && queue::within_quota(state, found.group, &found.spec.resources)
    });
    if !newest {
        return false;
    }
    queue::dequeue(state, id);
    if let Some(found) = state.instance_mut(id) {
        found.old.retain(|old| *old != gone);
        found.retry_at_ms = None;
        found.alloc = Some(Allocation {
            provider: gone.provider,
            epoch: gone.epoch,
            placed_at_ms: now,
            started_at_ms: None,
            healthy: false,
            healthy_since_ms: None,
            usage: Usage::default(),
            disk: None,
            explanation: Explanation {
                at_ms: now,
                hints: vec!["its provider came back in time".to_owned()],
                ..Explanation::default()
            },
        });
        found.state = InstanceState::Unknown;
    }
    charge(state, id);
    current_status(state, now, status.clone());
    true
}

fn current_status(state: &mut State, now: u64, status: AllocStatus) {
    let id = status.instance;
    note_usage(state, now, id, &status.usage);
    note_disk(state, id, status.disk);
    if moving::status(state, now, &status) {
        return;
    }
    moving::put_still(state, &status);
    let Some(found) = state.instances.get(&id) else { return };
    let before = (found.state, found.alloc.as_ref().is_some_and(|alloc| alloc.healthy));
    let (gone, halt) = (found.stop.is_some(), found.halt);
    let stopping = gone || halt;
    halt::remind(state, id, &status.phase);
    let after = match status.phase {
        Phase::Exited { code, reason } => return ended(state, now, id, code, &clean(&reason)),
        Phase::Halted if gone => (InstanceState::Stopping, false),
        Phase::Halted if halt => (InstanceState::Halted, false),
        Phase::Halted => (InstanceState::Placed, false),
        Phase::Pulling if stopping => (InstanceState::Stopping, false),
        Phase::Pulling => (InstanceState::Pulling, false),
        Phase::Running { healthy } if stopping => (InstanceState::Stopping, healthy),
        Phase::Running { healthy } => (InstanceState::Running, healthy),
    };
    if before == after {
        return;
    }
    let Some(found) = state.instance_mut(id) else { return };
    found.state = after.0;
    if !stopping {
        found.reason = String::new();
    }
    let limit = found.time_limit_ms;
    let first =
        after.0 == InstanceState::Running && found.alloc.as_ref().is_some_and(|alloc| alloc.started_at_ms.is_none());
    if let Some(alloc) = &mut found.alloc {
        alloc.healthy = after.1;
        alloc.healthy_since_ms = alloc.healthy_since_ms.or(Some(now)).filter(|_| after.1);
        if first {
            alloc.started_at_ms = Some(now);
        }
    }
    let epoch = found.alloc.as_ref().map_or(found.epoch, |alloc| alloc.epoch);
    if let Some(limit) = limit.filter(|_| first) {
        state.live.arm(now + limit, Timer::Limit(id, epoch));
    }
    if before.0 != after.0 {
        let kind = match after.0 {
            InstanceState::Running => Some("instance.running"),
            InstanceState::Pulling => Some("instance.pulling"),
            InstanceState::Halted => Some("instance.halted"),
            _ => None,
        };
        kind.into_iter().for_each(|kind| tell(state, now, id, kind, String::new()));
    }
    if let Some(Owner::Service { service, .. }) = state.instances.get(&id).map(|found| found.owner) {
        service::changed(state, now, service);
    }
    if after.0 == InstanceState::Halted {
        moving::depart(state, now, id);
    }
}

/// Takes in that the current allocation is over, as its agent says.
fn ended(state: &mut State, now: u64, id: InstanceId, code: Option<i32>, reason: &str) {
    let place = state.instances.get(&id).and_then(|found| found.alloc.as_ref()).map(|alloc| alloc.provider);
    let emptied = place.and_then(|place| state.providers.get(&place)).is_some_and(|record| record.owner_drains);
    if emptied
        && code.is_none()
        && let Some(found) = state.instance_mut(id).filter(|found| found.stop.is_none())
    {
        found.stop = Some(StopReason::Drained);
    }
    let Some(found) = state.instances.get(&id) else { return };
    if code != Some(0)
        && found.stop.is_none()
        && moving::source(found).is_none()
        && let Some(alloc) = &found.alloc
    {
        let (place, image) = (alloc.provider, found.spec.image.clone());
        provider::trouble(state, now, place, &image);
    }
    over(state, now, id, code, reason);
}

/// Takes in that the current allocation is over, whoever is to blame.
pub(super) fn over(state: &mut State, now: u64, id: InstanceId, code: Option<i32>, reason: &str) {
    note_usage(state, now, id, &Usage::default());
    book(state, id);
    let Some(found) = state.instances.get(&id) else { return };
    let Some(alloc) = found.alloc.clone() else { return };
    let (stop, owner, restart) = (found.stop, found.owner, found.spec.restart);
    let halted = found.halt;
    release(state, id, alloc.provider, alloc.epoch);
    discharge(state, id);
    if let Some(found) = state.instance_mut(id) {
        found.exit = Some(Exit { epoch: alloc.epoch, code, reason: reason.to_owned(), at_ms: now });
    }
    if !matches!(stop, Some(StopReason::Asked | StopReason::Ttl)) && moving::turn_back(state, now, id, reason) {
        return;
    }
    let good = code == Some(0);
    match (stop, owner) {
        (Some(StopReason::Asked), _) => finish(state, now, id, InstanceState::Stopped, words(StopReason::Asked)),
        (Some(StopReason::Ttl), _) => finish(state, now, id, InstanceState::Stopped, words(StopReason::Ttl)),
        (Some(StopReason::Preempted | StopReason::Drained), _) if halted => {
            finish(state, now, id, InstanceState::Stopped, "its provider lends less, its data is gone");
        }
        (Some(reason @ (StopReason::Preempted | StopReason::Drained)), _) => requeue(state, now, id, 0, words(reason)),
        (None, _) if halted && code != Some(0) => finish(state, now, id, InstanceState::Failed, reason),
        (None, Owner::Service { .. }) => again(state, now, id, reason),
        (None, _) if good && restart == Restart::Always => again(state, now, id, "ended and is started again"),
        (None, _) if good => finish(state, now, id, InstanceState::Stopped, "completed"),
        (None | Some(StopReason::TimeLimit), _) => failed(state, now, id, reason),
    }
}

pub(super) fn failed(state: &mut State, now: u64, id: InstanceId, reason: &str) {
    let Some(found) = state.instances.get(&id) else { return };
    let most = match found.spec.restart {
        Restart::Never => 0,
        Restart::OnFailure { max } => max,
        Restart::Always => u32::MAX,
    };
    if found.failures < most {
        again(state, now, id, reason);
    } else {
        finish(state, now, id, InstanceState::Failed, reason);
    }
}

/// Counts a failure and tries again after a wait.
fn again(state: &mut State, now: u64, id: InstanceId, reason: &str) {
    let Some(found) = state.instance_mut(id) else { return };
    found.failures = found.failures.saturating_add(1);
    let wait = BACKOFF_MS.saturating_mul(1 << found.failures.min(20).saturating_sub(1)).min(BACKOFF_MAX_MS);
    requeue(state, now, id, wait, reason);
}

/// Puts an instance whose allocation is over back in line.
pub(super) fn requeue(state: &mut State, now: u64, id: InstanceId, wait_ms: u64, reason: &str) {
    let Some(found) = state.instance_mut(id) else { return };
    found.alloc = None;
    found.stop = None;
    found.halt = false;
    found.moving = None;
    found.state = InstanceState::Pending;
    found.reason = reason.to_owned();
    found.retry_at_ms = (wait_ms > 0).then_some(now + wait_ms);
    let owner = found.owner;
    queue::enqueue(state, now, id);
    tell(state, now, id, "instance.pending", reason.to_owned());
    if let Owner::Service { service, .. } = owner {
        service::changed(state, now, service);
    }
}

/// Makes an instance final.
pub(super) fn finish(state: &mut State, now: u64, id: InstanceId, last: InstanceState, reason: &str) {
    queue::dequeue(state, id);
    unregister(state, id);
    moving::forget(state, id);
    let keep = state.options.keep_final_ms;
    let Some(found) = state.instance_mut(id) else { return };
    found.state = last;
    found.reason = reason.to_owned();
    found.ended_at_ms = Some(now);
    let (group, owner) = (found.group, found.owner);
    if let Some(used) = state.live.used.get_mut(&group) {
        used.instances = used.instances.saturating_sub(1);
    }
    state.live.arm(now + keep, Timer::PurgeInstance(id));
    let kind = if last == InstanceState::Failed { "instance.failed" } else { "instance.stopped" };
    tell(state, now, id, kind, reason.to_owned());
    match owner {
        Owner::User => {}
        Owner::Service { service, .. } => service::changed(state, now, service),
        Owner::Job { job, .. } => job::member_ended(state, now, job, id),
    }
}

/// Removes a final instance, unless something of it may still run somewhere.
pub(super) fn purge(state: &mut State, now: u64, id: InstanceId) {
    let Some(found) = state.instances.get(&id) else { return };
    if !found.state.is_final() {
        return;
    }
    if !found.old.is_empty() {
        return state.live.arm(now + HOUR_MS, Timer::PurgeInstance(id));
    }
    tell(state, now, id, "instance.removed", String::new());
    state.erase(Key::Instance(id));
}

/// Makes an agent's words fit for logs and pages: one line, no control characters, bounded (S05, S11).
pub(super) fn clean(text: &str) -> String {
    let mut kept: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(REASON_BYTES).collect();
    while kept.len() > REASON_BYTES {
        kept.pop();
    }
    kept
}
