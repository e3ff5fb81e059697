//! Instances that wait, and whose turn it is.
//!
//! Turn: the higher priority; among equals the group that uses the smaller share of the pool for its weight; then the
//! older. An instance that nothing matches is *blocked* under its shape (everything placement depends on), so that a
//! thousand equal ones cost one look at the pool. A provider that gains room is offered to blocked shapes in turn.
//! Invariant: a pending instance that is not waiting for a retry time is in exactly one spot.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest, Sha256};

use super::ask::{Ask, Softness};
use super::state::State;
use super::timer::Timer;
use super::{gang, instance, place, preempt};
use crate::model::*;

/// Priority (inverted), age, id.
type Order = (u8, u64, InstanceId);
/// A digest of everything that placement depends on.
type Shape = u128;

/// Placements of one step; the rest follows at once in the next, so that requests are not starved by a large job.
const STEP_PLACEMENTS: usize = 256;
/// Blocked shapes that a provider's gain is offered to.
const SHAPES_PER_GAIN: usize = 64;
/// Blocked shapes of one group that are offered a gain however many groups wait.
const SHAPES_PER_GROUP: usize = 4;
/// Blocked shapes that are tried anew by a sweep.
const SHAPES_PER_SWEEP: usize = 16;
/// How often blocked shapes are tried anew without any gain: facts age silently.
const SWEEP_MS: u64 = 30_000;
/// How soon gangs are tried anew after a gain: each try may look at the pool once per member.
const GANGS_MS: u64 = 1_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spot {
    Ready,
    Blocked,
    Quota,
    Gang,
}

#[derive(Clone, Debug)]
struct Entry {
    spot: Spot,
    order: Order,
    shape: Shape,
    group: GroupId,
    gang: Option<JobId>,
}

#[derive(Clone, Debug, Default)]
struct Blocked {
    waiting: BTreeSet<Order>,
    explanation: Explanation,
}

/// Everything that waits.
#[derive(Clone, Debug, Default)]
pub(super) struct Queue {
    entries: BTreeMap<InstanceId, Entry>,
    ready: BTreeMap<GroupId, BTreeSet<Order>>,
    fair: BTreeSet<(u8, u64, GroupId)>,
    ranks: BTreeMap<GroupId, (u8, u64)>,
    blocked: BTreeMap<Shape, Blocked>,
    /// The first of each blocked shape, by group: a shape is one group's.
    heads: BTreeMap<GroupId, BTreeSet<Order>>,
    quota: BTreeMap<GroupId, BTreeSet<Order>>,
    gained: BTreeSet<ProviderId>,
    swept: Shape,
    /// Members of gangs that wait.
    pub gangs: BTreeMap<JobId, BTreeSet<InstanceId>>,
    gang_explanations: BTreeMap<JobId, Explanation>,
    /// Where victims are being stopped for whom.
    pub claimed: BTreeMap<InstanceId, ProviderId>,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn shape(&self, id: InstanceId) -> Option<Shape> {
        self.entries.get(&id).map(|entry| entry.shape)
    }

    pub(super) fn contains(&self, id: InstanceId) -> bool {
        self.entries.contains_key(&id)
    }

    pub(super) fn explanation(&self, id: InstanceId) -> Option<Explanation> {
        let entry = self.entries.get(&id)?;
        match entry.spot {
            Spot::Blocked => self.blocked.get(&entry.shape).map(|blocked| blocked.explanation.clone()),
            Spot::Gang => entry.gang.and_then(|job| self.gang_explanations.get(&job).cloned()),
            Spot::Quota => Some(Explanation {
                hints: vec!["the group's quota is used up; it would be placed when others of the group end".to_owned()],
                ..Explanation::default()
            }),
            Spot::Ready => None,
        }
    }

    /// Notes that a provider may have room it did not have.
    pub(super) fn gain(&mut self, provider: ProviderId) {
        if !self.blocked.is_empty() || !self.gang_explanations.is_empty() {
            self.gained.insert(provider);
        }
    }

    fn set_spot(&mut self, id: InstanceId, spot: Spot) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let (old, order, shape, group) = (entry.spot, entry.order, entry.shape, entry.group);
        entry.spot = spot;
        self.unlist(old, order, shape, group);
        match spot {
            Spot::Ready => drop(self.ready.entry(group).or_default().insert(order)),
            Spot::Quota => drop(self.quota.entry(group).or_default().insert(order)),
            Spot::Blocked => {
                self.unhead(shape);
                self.blocked.entry(shape).or_default().waiting.insert(order);
                self.rehead(shape);
            }
            Spot::Gang => {}
        }
    }

    fn unlist(&mut self, spot: Spot, order: Order, shape: Shape, group: GroupId) {
        match spot {
            Spot::Ready => remove_from(&mut self.ready, group, order),
            Spot::Quota => remove_from(&mut self.quota, group, order),
            Spot::Blocked => {
                self.unhead(shape);
                if let Some(blocked) = self.blocked.get_mut(&shape) {
                    blocked.waiting.remove(&order);
                    if blocked.waiting.is_empty() {
                        self.blocked.remove(&shape);
                    }
                }
                self.rehead(shape);
            }
            Spot::Gang => {}
        }
    }

    fn unhead(&mut self, shape: Shape) {
        if let Some(first) = self.blocked.get(&shape).and_then(|blocked| blocked.waiting.first()) {
            let (first, group) = (*first, self.entries.get(&first.2).map(|entry| entry.group));
            if let Some(group) = group {
                remove_from(&mut self.heads, group, first);
            }
        }
    }

    fn rehead(&mut self, shape: Shape) {
        if let Some(first) = self.blocked.get(&shape).and_then(|blocked| blocked.waiting.first()) {
            let (first, group) = (*first, self.entries.get(&first.2).map(|entry| entry.group));
            if let Some(group) = group {
                self.heads.entry(group).or_default().insert(first);
            }
        }
    }
}

fn remove_from(map: &mut BTreeMap<GroupId, BTreeSet<Order>>, group: GroupId, order: Order) {
    if let Some(set) = map.get_mut(&group) {
        set.remove(&order);
        if set.is_empty() {
            map.remove(&group);
        }
    }
}

pub(super) fn shape_of(instance: &Instance) -> Shape {
    let spec = &instance.spec;
    let parts = (
        (instance.group, instance.pinned, spec.resources, &spec.ports, &spec.constraints, &spec.affinities),
        (spec.priority(), spec.class, spec.preempts, spec.min_tier, &spec.volumes, !instance.old.is_empty()),
        // An instance that must avoid its own earlier provider has a shape of its own.
        if instance.old.is_empty() { None } else { Some(instance.id) },
    );
    let text = serde_json::to_vec(&parts).unwrap_or_default();
    let digest = Sha256::digest(&text);
    let mut half = [0u8; 16];
    half.copy_from_slice(&digest[..16]);
    u128::from_le_bytes(half)
}

/// Reckons which part of the pool a group uses for its weight.
fn share(state: &State, group: GroupId) -> u64 {
    let used = state.live.used.get(&group).map(|used| used.resources).unwrap_or_default();
    let weight = state.groups.get(&group).map_or(1, |group| u64::from(group.weight.max(1)));
    u64::from(used.dominant_permille(&state.live.total)) * 1000 / weight
}

/// Lists the first of each blocked shape in their turn: priority, then the group's share, then age.
fn heads_in_turn(state: &State) -> Vec<InstanceId> {
    let heads = &state.live.queue.heads;
    let each = (SHAPES_PER_GAIN / heads.len().max(1)).max(SHAPES_PER_GROUP);
    let mut turns: Vec<(u8, u64, Order)> = Vec::new();
    for (group, orders) in heads {
        let share = share(state, *group);
        turns.extend(orders.iter().take(each).map(|order| (order.0, share, *order)));
    }
    turns.sort_unstable();
    turns.truncate(SHAPES_PER_GAIN);
    turns.into_iter().map(|(_, _, order)| order.2).collect()
}

/// Brings a group's turn up to date.
pub(super) fn rank(state: &mut State, group: GroupId) {
    let share = share(state, group);
    let queue = &mut state.live.queue;
    let rank = queue.ready.get(&group).and_then(BTreeSet::first).map(|order| (order.0, share));
    let before = match rank {
        Some(rank) => queue.ranks.insert(group, rank),
        None => queue.ranks.remove(&group),
    };
    if before != rank {
        if let Some((priority, share)) = before {
            queue.fair.remove(&(priority, share, group));
        }
        if let Some((priority, share)) = rank {
            queue.fair.insert((priority, share, group));
        }
    }
}

/// Puts a pending instance in line, or arms its retry.
pub(super) fn enqueue(state: &mut State, now: u64, id: InstanceId) {
    let Some(instance) = state.instances.get(&id) else { return };
    if let Some(at) = instance.retry_at_ms.filter(|at| *at > now) {
        state.live.arm(at, Timer::Retry(id));
        return;
    }
    let group = instance.group;
    let gang = instance.gang.map(|gang| gang.job);
    let order = (limits::PRIORITY - instance.spec.priority().min(limits::PRIORITY), instance.created_at_ms, id);
    let entry = Entry { spot: Spot::Gang, order, shape: shape_of(instance), group, gang };
    let queue = &mut state.live.queue;
    queue.entries.insert(id, entry);
    if let Some(job) = gang {
        queue.gangs.entry(job).or_default().insert(id);
    }
    queue.set_spot(id, Spot::Ready);
    rank(state, group);
}

/// Takes an instance out of line.
pub(super) fn dequeue(state: &mut State, id: InstanceId) {
    let queue = &mut state.live.queue;
    if let Some(provider) = queue.claimed.remove(&id) {
        if let Some(live) = state.live.providers.get_mut(&provider) {
            live.claims.remove(&id);
        }
        super::index::refresh(state, provider);
        state.live.queue.gain(provider);
    }
    let queue = &mut state.live.queue;
    let Some(entry) = queue.entries.get(&id).cloned() else { return };
    queue.unlist(entry.spot, entry.order, entry.shape, entry.group);
    queue.entries.remove(&id);
    if let Some(job) = entry.gang
        && let Some(members) = queue.gangs.get_mut(&job)
    {
        members.remove(&id);
        if members.is_empty() {
            queue.gangs.remove(&job);
            queue.gang_explanations.remove(&job);
        }
    }
    rank(state, entry.group);
}

/// Lets instances that waited for quota try again.
pub(super) fn quota_freed(state: &mut State, group: GroupId) {
    let waiting: Vec<Order> = state.live.queue.quota.get(&group).into_iter().flatten().copied().collect();
    for (_, _, id) in waiting {
        state.live.queue.set_spot(id, Spot::Ready);
    }
    rank(state, group);
}

/// Tells whether a group may reserve that much more.
pub(super) fn within_quota(state: &State, group: GroupId, more: &Resources) -> bool {
    let quota = state.groups.get(&group).and_then(|group| group.quota.resources);
    let used = state.live.used.get(&group).map(|used| used.resources).unwrap_or_default();
    quota.is_none_or(|quota| used.plus(more).fits(&quota))
}

/// Places what can be placed.
pub(super) fn schedule(state: &mut State, now: u64) {
    let mut left = STEP_PLACEMENTS;
    let mut forced = None;
    loop {
        while left > 0 {
            let next = match forced.take() {
                Some((id, place)) => Some((id, Try::At(place))),
                None => pop(state).map(|id| (id, Try::Queued)),
            };
            let Some((id, how)) = next else { break };
            left -= 1;
            attempt(state, now, id, how);
        }
        if left == 0 {
            state.live.arm(now, Timer::Schedule);
            return;
        }
        forced = offer_gain(state, now);
        if forced.is_none() {
            return;
        }
    }
}

fn pop(state: &State) -> Option<InstanceId> {
    let (_, _, group) = state.live.queue.fair.first()?;
    state.live.queue.ready.get(group)?.first().map(|(_, _, id)| *id)
}

/// How an instance is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Try {
    /// In its turn; not at all when its shape is known to be blocked.
    Queued,
    /// Anew, although its shape is known to be blocked.
    Anew,
    /// At the one provider that gained room: nothing else matched when the shape was blocked.
    At(ProviderId),
}

fn attempt(state: &mut State, now: u64, id: InstanceId, how: Try) {
    let Some(found) = state.instances.get(&id).cloned() else { return dequeue(state, id) };
    if found.spec.class == Class::Normal && !within_quota(state, found.group, &found.spec.resources) {
        state.live.queue.set_spot(id, Spot::Quota);
        return rank(state, found.group);
    }
    if let Some(gang) = found.gang
        && gang::whole(state, gang.job)
    {
        return gang::attempt(state, now, gang);
    }
    let shape = state.live.queue.entries.get(&id).map(|entry| entry.shape).unwrap_or_default();
    if how == Try::Queued && state.live.queue.blocked.contains_key(&shape) {
        state.live.queue.set_spot(id, Spot::Blocked);
        return rank(state, found.group);
    }
    let ask = Ask::of(state, &found);
    let choice = match how {
        Try::At(provider) => place::take(state, &ask, provider),
        Try::Queued | Try::Anew => place::choose(state, &ask),
    };
    match choice.provider {
        Some(provider) => instance::placed(state, now, id, provider, choice.explanation),
        None => {
            preempt::attempt(state, now, &ask);
            block(state, id, choice.explanation);
        }
    }
}

fn block(state: &mut State, id: InstanceId, explanation: Explanation) {
    let Some((group, shape)) = state.live.queue.entries.get(&id).map(|entry| (entry.group, entry.shape)) else {
        return;
    };
    state.count("placements_blocked");
    state.live.queue.set_spot(id, Spot::Blocked);
    if let Some(blocked) = state.live.queue.blocked.get_mut(&shape) {
        blocked.explanation = explanation;
    }
    rank(state, group);
}

/// Parks a whole gang.
pub(super) fn park_gang(state: &mut State, now: u64, job: JobId, explanation: Explanation) {
    let members: Vec<InstanceId> = state.live.queue.gangs.get(&job).into_iter().flatten().copied().collect();
    let Some(first) = members.first().and_then(|id| state.live.queue.entries.get(id)) else { return };
    let group = first.group;
    for id in members {
        state.live.queue.set_spot(id, Spot::Gang);
    }
    if state.live.queue.gang_explanations.is_empty() {
        state.live.arm(now + SWEEP_MS, Timer::Gangs);
    }
    state.live.queue.gang_explanations.insert(job, explanation);
    rank(state, group);
}

/// Lets parked gangs try again.
pub(super) fn unpark_gangs(state: &mut State) {
    let jobs = std::mem::take(&mut state.live.queue.gang_explanations);
    for job in jobs.keys() {
        let members: Vec<InstanceId> = state.live.queue.gangs.get(job).into_iter().flatten().copied().collect();
        for id in members {
            state.live.queue.set_spot(id, Spot::Ready);
            if let Some(group) = state.live.queue.entries.get(&id).map(|entry| entry.group) {
                rank(state, group);
            }
        }
    }
}

/// Offers gained room to blocked shapes; returns an instance that fits there.
fn offer_gain(state: &mut State, now: u64) -> Option<(InstanceId, ProviderId)> {
    while let Some(provider) = state.live.queue.gained.first().copied() {
        if !state.live.queue.gang_explanations.is_empty() {
            state.live.arm(now + GANGS_MS, Timer::Gangs);
        }
        let room = state.providers.contains_key(&provider);
        for id in heads_in_turn(state).into_iter().filter(|_| room) {
            let Some(found) = state.instances.get(&id).cloned() else { continue };
            let ask = Ask::of(state, &found);
            let record = &state.providers[&provider];
            let room_in_quota =
                found.spec.class == Class::Backfill || within_quota(state, found.group, &found.spec.resources);
            if room_in_quota && ask.refusals(state, record, Softness::Dropped, 1).is_empty() {
                return Some((id, provider));
            }
        }
        state.live.queue.gained.remove(&provider);
    }
    None
}

/// Tries a few blocked shapes anew, each in its turn.
pub(super) fn sweep(state: &mut State, now: u64) {
    state.live.arm(now + SWEEP_MS, Timer::Sweep);
    let queue = &state.live.queue;
    let after = queue.blocked.range((std::ops::Bound::Excluded(queue.swept), std::ops::Bound::Unbounded));
    let turn: Vec<(Shape, InstanceId)> = after
        .chain(queue.blocked.range(..=queue.swept))
        .take(SHAPES_PER_SWEEP)
        .filter_map(|(shape, blocked)| Some((*shape, blocked.waiting.first()?.2)))
        .collect();
    for (shape, id) in turn {
        state.live.queue.swept = shape;
        attempt(state, now, id, Try::Anew);
    }
}
