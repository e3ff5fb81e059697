//! Services: a number of equal instances is kept up, and replaced a few at a time when the template changes.

use std::collections::BTreeSet;

use super::ask::{Ask, Filter, Softness};
use super::instance::{self, New};
use super::state::State;
use super::timer::Timer;
use crate::model::*;

/// Instances made in one step; the rest in the next.
const STEP_INSTANCES: usize = 256;
/// Failures of one replica of a new revision that halt its update.
const UPDATE_FAILURES: u32 = 3;

/// Notes that something about a service's members changed.
pub(super) fn changed(state: &mut State, now: u64, id: ServiceId) {
    state.live.arm(now, Timer::Service(id));
}

/// Offers a provider that changed to every global service.
pub(super) fn provider_changed(state: &mut State, now: u64, _provider: ProviderId) {
    let global: Vec<ServiceId> =
        state.services.values().filter(|found| found.spec.global).map(|found| found.id).collect();
    for id in global {
        changed(state, now, id);
    }
}

/// What the members of a service are doing.
#[derive(Default)]
struct Members {
    /// Not told to stop, of the wanted revision.
    new: Vec<InstanceId>,
    /// Not told to stop, of an earlier revision.
    old: Vec<InstanceId>,
    /// Told to stop.
    stopping: usize,
}

fn members(state: &State, service: &Service) -> Members {
    let mut members = Members::default();
    for id in state.live.by_service.get(&service.id).into_iter().flatten() {
        let Some(found) = state.instances.get(id) else { continue };
        let revision = match found.owner {
            Owner::Service { revision, .. } => revision,
            _ => continue,
        };
        if matches!(found.stop, Some(StopReason::Asked | StopReason::Ttl)) {
            members.stopping += 1;
        } else if revision == service.revision {
            members.new.push(*id);
        } else {
            members.old.push(*id);
        }
    }
    members
}

/// Brings a service's members closer to what is wanted.
pub(super) fn reconcile(state: &mut State, now: u64, id: ServiceId) {
    let Some(service) = state.services.get(&id).cloned() else { return };
    let found = members(state, &service);
    if service.removing {
        for member in found.new.iter().chain(&found.old) {
            instance::stop(state, now, *member, StopReason::Asked);
        }
        if state.live.by_service.get(&id).is_none_or(BTreeSet::is_empty) {
            forget(state, now, &service);
        }
    } else if service.spec.global {
        global(state, now, &service, &found);
    } else {
        replicated(state, now, &service, &found);
    }
}

fn forget(state: &mut State, now: u64, service: &Service) {
    state.live.by_service.remove(&service.id);
    state.live.service_names.remove(&(service.group, service.spec.name.clone()));
    state.notice(now, service.group, "service.removed", service.id.to_string(), String::new());
    state.erase(Key::Service(service.id));
}

fn replicated(state: &mut State, now: u64, service: &Service, found: &Members) {
    let (want, have) = (service.spec.replicas as usize, found.new.len() + found.old.len());
    if have < want {
        let missing = (want - have).min(STEP_INSTANCES);
        (0..missing).for_each(|_| make(state, now, service.id, None));
        if want - have > missing {
            changed(state, now, service.id);
        }
        return;
    }
    if have > want {
        // Those that do not run go first, then those of an old revision, then the newest.
        let mut order: Vec<(bool, bool, std::cmp::Reverse<InstanceId>)> = Vec::new();
        for (old, id) in found.old.iter().map(|id| (true, id)).chain(found.new.iter().map(|id| (false, id))) {
            let runs = state.instances.get(id).is_some_and(|found| found.state == InstanceState::Running);
            order.push((runs, !old, std::cmp::Reverse(*id)));
        }
        order.sort();
        for (_, _, std::cmp::Reverse(id)) in order.into_iter().take(have - want) {
            instance::stop(state, now, id, StopReason::Asked);
        }
        return;
    }
    update(state, now, service, found);
}

/// Replaces a few members of an earlier revision.
fn update(state: &mut State, now: u64, service: &Service, found: &Members) {
    if found.old.is_empty() || service.halted.is_some() {
        return;
    }
    let mut unsettled = found.stopping;
    for id in &found.new {
        let Some(member) = state.instances.get(id) else { continue };
        if member.failures >= UPDATE_FAILURES {
            return halt(state, now, service, &member.reason.clone());
        }
        let alloc = member.alloc.as_ref();
        let since = alloc.and_then(|alloc| alloc.healthy_since_ms);
        match since.filter(|_| member.state == InstanceState::Running) {
            Some(since) if since + service.spec.healthy_ms <= now => {}
            Some(since) => {
                unsettled += 1;
                state.live.arm(since + service.spec.healthy_ms, Timer::Service(service.id));
            }
            None => unsettled += 1,
        }
    }
    let parallel = service.spec.max_parallel.unwrap_or(1) as usize;
    // A member that does not run is replaced before one that does.
    let mut old: Vec<(bool, InstanceId)> = Vec::new();
    for id in &found.old {
        let runs = state.instances.get(id).is_some_and(|found| found.state == InstanceState::Running);
        old.push((runs, *id));
    }
    old.sort_unstable();
    for (_, id) in old.into_iter().take(parallel.saturating_sub(unsettled)) {
        instance::stop(state, now, id, StopReason::Asked);
        changed(state, now, service.id);
    }
}

fn halt(state: &mut State, now: u64, service: &Service, reason: &str) {
    let text = format!("update to revision {} stands still: {reason}", service.revision);
    if let Some(found) = state.service_mut(service.id) {
        found.halted = Some(text.clone());
    }
    state.notice(now, service.group, "service.halted", service.id.to_string(), text);
}

fn make(state: &mut State, now: u64, id: ServiceId, pinned: Option<ProviderId>) {
    let Some(service) = state.service_mut(id) else { return };
    service.made += 1;
    let number = service.made;
    let mut stem = service.spec.name.to_string();
    // The number needs room in a name of 63.
    stem.truncate(40);
    let Ok(name) = format!("{stem}.{number}").parse::<Name>() else { return };
    let new = New {
        group: service.group,
        user: service.user,
        owner: Owner::Service { service: id, revision: service.revision },
        name,
        spec: service.spec.template.clone(),
        pinned,
        gang: None,
        unnamed: false,
        time_limit_ms: None,
    };
    instance::create(state, now, new);
}

/// Keeps one member on every provider that matches.
fn global(state: &mut State, now: u64, service: &Service, found: &Members) {
    let template = service.spec.template.clone();
    let owner = Owner::Service { service: service.id, revision: service.revision };
    let ask = Ask::ahead(state, service.group, owner, template);
    let place = |id: &InstanceId| state.instances.get(id).and_then(|member| member.pinned);
    let taken: BTreeSet<ProviderId> = found.new.iter().chain(&found.old).filter_map(place).collect();
    let fits = |provider: &&Provider| {
        let refusals = ask.refusals(state, provider, Softness::Dropped, usize::MAX);
        // Room and health come and go; the rest is what "matches" means. A drained provider does not.
        refusals.iter().all(|refusal| match refusal {
            Filter::Resource(..) | Filter::Port(_) | Filter::Pinned | Filter::Same => true,
            Filter::Closed(why) => *why != "drain",
            _ => false,
        })
    };
    let wanted: BTreeSet<ProviderId> = state.providers.values().filter(fits).map(|provider| provider.id).collect();
    let (mut surplus, mut vanished) = (Vec::new(), Vec::new());
    for id in found.new.iter().chain(&found.old) {
        match place(id) {
            Some(provider) if !state.providers.contains_key(&provider) => vanished.push(*id),
            Some(provider) if !wanted.contains(&provider) => surplus.push(*id),
            _ => {}
        }
    }
    for id in vanished.into_iter().chain(surplus) {
        instance::stop(state, now, id, StopReason::Asked);
    }
    let missing: Vec<ProviderId> = wanted.difference(&taken).copied().collect();
    for provider in missing.iter().take(STEP_INSTANCES) {
        make(state, now, service.id, Some(*provider));
    }
    if missing.len() > STEP_INSTANCES {
        return changed(state, now, service.id);
    }
    update(state, now, service, found);
}
