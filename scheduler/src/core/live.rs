//! What is derived from the records: reservations, names, timers, queue and index.
//!
//! Nothing here is stored. `reserve` and `release` are the only functions that change what a provider has left, and
//! `rebuild` must arrive at the same numbers from the records alone (`check` compares them in every simulation step).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::index::{Index, Slot};
use super::queue::Queue;
use super::state::State;
use super::timer::Timer;
use crate::expr::Expr;
use crate::model::*;

/// Room that is kept for an instance whose victims are being stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    pub resources: Resources,
    pub until_ms: u64,
}

/// What is known of a provider beyond its record.
#[derive(Clone, Debug, Default)]
pub(super) struct LiveProvider {
    /// The newest sync or hello.
    pub seen_ms: u64,
    /// The newest sync of the session.
    pub seq: u64,
    /// A session was opened since this scheduler started.
    pub open: bool,
    pub accepting: bool,
    pub facts: BTreeMap<String, Fact>,
    pub reserved: Resources,
    pub ports: BTreeSet<u16>,
    /// Every allocation that holds a reservation, given-up ones included.
    pub allocs: BTreeSet<(InstanceId, u64)>,
    pub claims: BTreeMap<InstanceId, Claim>,
    pub commands: VecDeque<NumberedCommand>,
    pub command: u64,
    /// Where it stands in the index.
    pub slot: Option<Slot>,
    /// The words it is found by in the index.
    pub words: BTreeSet<(String, String)>,
}

/// What a group holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Used {
    pub resources: Resources,
    /// Instances that are not final.
    pub instances: u32,
}

/// Everything derived.
#[derive(Clone, Debug, Default)]
pub(super) struct Live {
    pub now_ms: u64,
    pub providers: BTreeMap<ProviderId, LiveProvider>,
    pub index: Index,
    pub queue: Queue,
    pub timers: BTreeSet<(u64, Timer)>,
    pub used: BTreeMap<GroupId, Used>,
    /// Capacity of all providers that are in touch.
    pub total: Resources,
    pub group_names: BTreeMap<Name, GroupId>,
    pub user_names: BTreeMap<(GroupId, Name), UserId>,
    pub provider_names: BTreeMap<Name, ProviderId>,
    pub instance_names: BTreeMap<(GroupId, Name), InstanceId>,
    pub service_names: BTreeMap<(GroupId, Name), ServiceId>,
    pub job_names: BTreeMap<(GroupId, Name), JobId>,
    pub volume_names: BTreeMap<(GroupId, Name), VolumeId>,
    pub secret_names: BTreeMap<(GroupId, Name), SecretId>,
    pub token_hashes: BTreeMap<String, TokenId>,
    pub join_hashes: BTreeMap<String, JoinId>,
    /// Idempotency keys of each user, the oldest first.
    pub remembered: BTreeMap<UserId, BTreeSet<(u64, String)>>,
    pub by_service: BTreeMap<ServiceId, BTreeSet<InstanceId>>,
    pub by_job: BTreeMap<JobId, BTreeSet<InstanceId>>,
    /// Jobs that wait for a job.
    pub waiters: BTreeMap<JobId, BTreeSet<JobId>>,
    /// Replicas of a service or members of a job on a provider.
    pub together: BTreeMap<(u128, ProviderId), u32>,
    pub volume_users: BTreeMap<VolumeId, BTreeSet<InstanceId>>,
    /// When an image failed where.
    pub image_failures: BTreeMap<String, BTreeMap<ProviderId, u64>>,
    /// Until when a shape is placed without its soft expressions.
    pub soft_unmet: BTreeMap<u128, u64>,
    /// Where the last long look for a shape ended.
    pub looked: BTreeMap<u128, ProviderId>,
    /// Parsed expressions by text.
    pub expressions: BTreeMap<String, Arc<Expr>>,
    pub counters: BTreeMap<&'static str, u64>,
}

/// Parsed expressions that are kept: a pool has few distinct ones, and a tenant may make up many.
const EXPRESSIONS_KEPT: usize = 4096;

impl Live {
    /// Parses an expression or finds it parsed. Texts in the state are valid.
    pub(super) fn expression(&mut self, text: &str) -> Option<Arc<Expr>> {
        if let Some(found) = self.expressions.get(text) {
            return Some(Arc::clone(found));
        }
        let parsed = Arc::new(Expr::parse(text).ok()?);
        if self.expressions.len() >= EXPRESSIONS_KEPT {
            self.expressions.clear();
        }
        self.expressions.insert(text.to_owned(), Arc::clone(&parsed));
        Some(parsed)
    }

    pub(super) fn arm(&mut self, at_ms: u64, timer: Timer) {
        self.timers.insert((at_ms, timer));
    }
}

/// What an owner's instances have in common on a provider.
pub(super) fn family(owner: &Owner) -> Option<u128> {
    match owner {
        Owner::User => None,
        Owner::Service { service, .. } => Some(service.get()),
        Owner::Job { job, .. } => Some(job.get()),
    }
}

/// Takes room on a provider for an allocation.
pub(super) fn reserve(state: &mut State, instance: InstanceId, provider: ProviderId, epoch: u64) {
    let Some(found) = state.instances.get(&instance) else { return };
    let (resources, family) = (found.spec.resources, family(&found.owner));
    let ports: Vec<u16> = found.spec.ports.iter().map(|port| port.host).collect();
    let live = state.live.providers.entry(provider).or_default();
    live.claims.remove(&instance);
    if live.allocs.insert((instance, epoch)) {
        live.reserved = live.reserved.plus(&resources);
        live.ports.extend(ports);
        if let Some(family) = family {
            *state.live.together.entry((family, provider)).or_default() += 1;
        }
    }
    super::index::refresh(state, provider);
}

/// Gives the room of an allocation back and offers it to whoever waits.
pub(super) fn release(state: &mut State, instance: InstanceId, provider: ProviderId, epoch: u64) {
    give_back(state, instance, provider, epoch);
    state.live.queue.gain(provider);
}

/// Gives the room of an allocation back quietly, for a try that came to nothing.
pub(super) fn give_back(state: &mut State, instance: InstanceId, provider: ProviderId, epoch: u64) {
    let Some(found) = state.instances.get(&instance) else { return };
    let (resources, family) = (found.spec.resources, family(&found.owner));
    let ports: Vec<u16> = found.spec.ports.iter().map(|port| port.host).collect();
    let Some(live) = state.live.providers.get_mut(&provider) else { return };
    if live.allocs.remove(&(instance, epoch)) {
        live.reserved = live.reserved.minus(&resources);
        // Two allocations of one instance on one provider would share its ports; the filter forbids it.
        live.ports.retain(|port| !ports.contains(port));
        if let Some(family) = family
            && let Some(count) = state.live.together.get_mut(&(family, provider))
        {
            *count -= 1;
            if *count == 0 {
                state.live.together.remove(&(family, provider));
            }
        }
    }
    super::index::refresh(state, provider);
}

/// Adds what an instance counts towards its group's quota.
pub(super) fn charge(state: &mut State, instance: InstanceId) {
    if let Some(found) = state.instances.get(&instance)
        && found.spec.class == Class::Normal
    {
        let used = state.live.used.entry(found.group).or_default();
        used.resources = used.resources.plus(&found.spec.resources);
        super::queue::rank(state, state.instances[&instance].group);
    }
}

/// Takes it off again.
pub(super) fn discharge(state: &mut State, instance: InstanceId) {
    if let Some(found) = state.instances.get(&instance)
        && found.spec.class == Class::Normal
    {
        let group = found.group;
        let used = state.live.used.entry(group).or_default();
        used.resources = used.resources.minus(&found.spec.resources);
        super::queue::quota_freed(state, group);
    }
}

/// Derives everything from the records.
pub(super) fn rebuild(state: &mut State, now: u64) {
    state.live = Live { now_ms: now, ..Live::default() };
    let live = &mut state.live;
    live.group_names = state.groups.values().map(|group| (group.name.clone(), group.id)).collect();
    live.user_names = state.users.values().map(|user| ((user.group, user.name.clone()), user.id)).collect();
    live.token_hashes = state.tokens.values().map(|token| (token.hash.clone(), token.id)).collect();
    live.join_hashes = state.joins.values().map(|join| (join.hash.clone(), join.id)).collect();
    live.service_names =
        state.services.values().map(|found| ((found.group, found.spec.name.clone()), found.id)).collect();
    let jobs = state.jobs.values().filter(|job| job.ended_at_ms.is_none());
    live.job_names = jobs.map(|job| ((job.group, job.spec.name.clone()), job.id)).collect();
    live.secret_names = state.secrets.values().map(|found| ((found.group, found.name.clone()), found.id)).collect();
    live.volume_names = state.volumes.values().map(|found| ((found.group, found.name.clone()), found.id)).collect();
    live.provider_names = state.providers.values().map(|found| (found.name.clone(), found.id)).collect();
    for ((user, key), found) in &state.remembered {
        live.remembered.entry(*user).or_default().insert((found.at_ms, key.clone()));
    }
    for job in state.jobs.values().filter(|job| job.state == JobState::Waiting) {
        for wanted in &job.spec.depends_on {
            live.waiters.entry(*wanted).or_default().insert(job.id);
        }
    }
    for provider in state.providers.values() {
        let known = LiveProvider { seen_ms: now, facts: provider.facts.clone(), ..LiveProvider::default() };
        live.providers.insert(provider.id, known);
        if provider.state == ProviderState::Ready {
            live.total = live.total.plus(&provider.capacity);
        }
    }
    for volume in state.volumes.values() {
        if let Some(found) = volume.provider.and_then(|provider| live.providers.get_mut(&provider)) {
            found.reserved.disk_bytes = found.reserved.disk_bytes.saturating_add(volume.size_bytes);
        }
    }
    for id in state.instances.keys().copied().collect::<Vec<_>>() {
        rebuild_instance(state, now, id);
    }
    for id in state.providers.keys().copied().collect::<Vec<_>>() {
        super::index::refresh_words(state, id);
        super::index::refresh(state, id);
    }
    super::timer::rearm(state, now);
}

fn rebuild_instance(state: &mut State, now: u64, id: InstanceId) {
    let Some(instance) = state.instances.get(&id) else { return };
    let (alloc, old) = (instance.alloc.clone(), instance.old.clone());
    let (group, is_final, pending) =
        (instance.group, instance.state.is_final(), instance.state == InstanceState::Pending);
    register(state, id);
    for gone in old {
        reserve(state, id, gone.provider, gone.epoch);
    }
    if let Some(alloc) = alloc.filter(|_| !is_final) {
        reserve(state, id, alloc.provider, alloc.epoch);
        charge(state, id);
    }
    if !is_final {
        state.live.used.entry(group).or_default().instances += 1;
    }
    if pending {
        super::queue::enqueue(state, now, id);
    }
}

/// Makes an instance findable by its name, owner and volumes.
pub(super) fn register(state: &mut State, id: InstanceId) {
    let Some(instance) = state.instances.get(&id) else { return };
    if !instance.state.is_final() {
        state.live.instance_names.insert((instance.group, instance.name.clone()), id);
        for mount in &instance.spec.volumes {
            state.live.volume_users.entry(mount.volume).or_default().insert(id);
        }
        match instance.owner {
            Owner::User => {}
            Owner::Service { service, .. } => drop(state.live.by_service.entry(service).or_default().insert(id)),
            Owner::Job { job, .. } => drop(state.live.by_job.entry(job).or_default().insert(id)),
        }
    }
}

/// Undoes [`register`] for an instance that became final.
pub(super) fn unregister(state: &mut State, id: InstanceId) {
    let Some(instance) = state.instances.get(&id) else { return };
    let live = &mut state.live;
    let name = (instance.group, instance.name.clone());
    if live.instance_names.get(&name) == Some(&id) {
        live.instance_names.remove(&name);
    }
    for mount in &instance.spec.volumes {
        if let Some(users) = live.volume_users.get_mut(&mount.volume) {
            users.remove(&id);
        }
    }
    match instance.owner {
        Owner::User => {}
        Owner::Service { service, .. } => {
            if let Some(members) = live.by_service.get_mut(&service) {
                members.remove(&id);
            }
        }
        Owner::Job { job, .. } => {
            if let Some(members) = live.by_job.get_mut(&job) {
                members.remove(&id);
            }
        }
    }
}
