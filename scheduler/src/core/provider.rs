//! Providers: sessions, reports, silence, drain.
//!
//! A provider is believed about its own allocations and nothing else (S05). It becomes ready by a full report, never
//! by a mere heartbeat (F31). A heartbeat that says nothing new writes nothing.

use std::collections::{BTreeMap, BTreeSet};

use super::index::{refresh, refresh_words};
use super::live::release;
use super::state::State;
use super::timer::Timer;
use super::{Action, Answer, Refusal, drain, instance, loss, moving, service};
use crate::model::*;

/// Facts of one provider.
const FACTS_MAX: usize = 256;
/// Bytes of one fact's key.
const FACT_KEY_BYTES: usize = 64;
/// Bytes of one word of a fact.
const FACT_WORD_BYTES: usize = 256;
/// Words of one fact: images on a busy host.
const FACT_WORDS: usize = 1024;
/// Statuses of one report: more instances than any one machine holds.
const STATUSES_MAX: usize = 10_000;
/// Silences and troubles that are remembered.
const REMEMBERED: usize = 16;
/// Silences within an hour after which a provider gets no new work for a while (F35).
const FLAPS: usize = 3;
/// Troubles within [`TROUBLE_MS`] after which a provider gets no new work for a while.
const TROUBLES: usize = 5;
/// How long a trouble counts.
const TROUBLE_MS: u64 = 600_000;
/// How long a provider that flaps or fails gets no new work.
const COOL_MS: u64 = 600_000;
/// Images whose failures are remembered.
const IMAGES_REMEMBERED: usize = 10_000;
/// Sessions without a sync before silence counts, beside two intervals.
const SLACK_INTERVALS: u64 = 2;

/// Returns how often agents are to report: the pool's size decides.
pub(super) fn interval_ms(state: &State) -> u64 {
    let pool = state.providers.len() as u64;
    state.options.heartbeat_ms.max(pool * 1000 / state.options.heartbeats_per_s.max(1))
}

/// Returns how long a provider may be silent.
pub(super) fn term_ms(state: &State) -> u64 {
    interval_ms(state) * SLACK_INTERVALS + state.options.heartbeat_ms
}

/// Lists the allocations on a provider that count, without given-up ones.
pub(super) fn current_on(state: &State, id: ProviderId) -> Vec<(InstanceId, u64)> {
    let Some(live) = state.live.providers.get(&id) else { return Vec::new() };
    let current = |(instance, epoch): &&(InstanceId, u64)| {
        let alloc = state.instances.get(instance).and_then(|found| found.alloc.as_ref());
        alloc.is_some_and(|alloc| alloc.epoch == *epoch && alloc.provider == id)
    };
    live.allocs.iter().filter(current).copied().collect()
}

/// Queues a command, unless the last one that waits for its allocation is the same: what came before that is undone.
pub(super) fn send(state: &mut State, to: ProviderId, command: Command) {
    let Some(live) = state.live.providers.get_mut(&to) else { return };
    if !live.open {
        return;
    }
    let last = live.commands.iter().rev().find(|queued| queued.command.allocation() == command.allocation());
    if last.is_some_and(|queued| queued.command == command) {
        return;
    }
    live.command += 1;
    live.commands.push_back(NumberedCommand { seq: live.command, command });
    state.act(Action::Wake(to));
}

/// Lists commands of the session after `applied`.
pub(super) fn commands_after(state: &State, provider: ProviderId, applied: u64) -> Vec<NumberedCommand> {
    let live = state.live.providers.get(&provider);
    live.map(|live| live.commands.iter().filter(|command| command.seq > applied).cloned().collect()).unwrap_or_default()
}

fn check_facts(facts: &BTreeMap<String, FactReport>) -> Result<(), Refusal> {
    let refuse = |reason: String| Err(Refusal::Invalid { field: "facts", reason });
    if facts.len() > FACTS_MAX {
        return refuse(format!("more than {FACTS_MAX}"));
    }
    for (key, fact) in facts {
        let plain =
            key.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte));
        if key.is_empty() || key.len() > FACT_KEY_BYTES || !plain {
            return refuse(format!(
                "{:?} is not a key in a-z0-9._-",
                key.chars().take(FACT_KEY_BYTES).collect::<String>()
            ));
        }
        let words = fact.value.words();
        let long = words.iter().any(|word| word.len() > FACT_WORD_BYTES || word.chars().any(char::is_control));
        if words.len() > FACT_WORDS || long {
            return refuse(format!("{key} is too long or has control characters"));
        }
        if matches!(fact.value, FactValue::Number(number) if !number.is_finite()) {
            return refuse(format!("{key} is not a finite number"));
        }
    }
    Ok(())
}

fn check_statuses(statuses: &[AllocStatus]) -> Result<(), Refusal> {
    if statuses.len() > STATUSES_MAX {
        return Err(Refusal::Invalid { field: "statuses", reason: format!("more than {STATUSES_MAX}") });
    }
    Ok(())
}

/// Opens a session with a full report.
pub(super) fn hello(state: &mut State, now: u64, id: ProviderId, hello: Hello) -> Result<Answer, Refusal> {
    let Some(record) = state.providers.get(&id) else { return Err(Refusal::NotFound("provider")) };
    let protocol = hello.protocol_max.min(PROTOCOL_MAX);
    if protocol < hello.protocol_min.max(PROTOCOL_MIN) {
        return Err(Refusal::Protocol(PROTOCOL_MIN, PROTOCOL_MAX));
    }
    if hello.incarnation <= record.incarnation {
        let group = record.group;
        state.count("hellos_duplicate");
        state.notice(now, group, "provider.duplicate", id.to_string(), format!("incarnation {}", hello.incarnation));
        return Err(Refusal::Duplicate(hello.incarnation));
    }
    if !hello.capacity.is_sane() {
        return Err(Refusal::Invalid { field: "capacity", reason: "an amount above 2^60".to_owned() });
    }
    if hello.boot_id.len() > FACT_KEY_BYTES {
        return Err(Refusal::Invalid { field: "boot_id", reason: "too long".to_owned() });
    }
    check_facts(&hello.facts)?;
    check_statuses(&hello.running)?;
    open(state, now, id, &hello);
    drain::owner_drains(state, now, id, hello.drain_ms);
    reconcile(state, now, id, hello.running.clone());
    shrink(state, now, id);
    service::provider_changed(state, now, id);
    state.live.queue.gain(id);
    let session = state.providers.get(&id).map_or(0, |record| record.session);
    Ok(Answer::Hello(HelloReply {
        protocol,
        session,
        incarnation: hello.incarnation,
        leader: state.options.leader,
        interval_ms: interval_ms(state),
        commands: commands_after(state, id, 0),
    }))
}

fn open(state: &mut State, now: u64, id: ProviderId, hello: &Hello) {
    let facts: BTreeMap<String, Fact> =
        hello.facts.iter().map(|(key, report)| (key.clone(), report.clone().into_fact(now))).collect();
    let Some(record) = state.provider_mut(id) else { return };
    let (before, old_capacity, group) = (record.state, record.capacity, record.group);
    record.session += 1;
    record.incarnation = hello.incarnation;
    record.boot_id.clone_from(&hello.boot_id);
    record.capacity = hello.capacity;
    record.price = hello.price;
    record.accepting = hello.accepting;
    record.facts.clone_from(&facts);
    record.state = ProviderState::Ready;
    if before == ProviderState::Ready {
        state.live.total = state.live.total.minus(&old_capacity);
    }
    state.live.total = state.live.total.plus(&hello.capacity);
    let live = state.live.providers.entry(id).or_default();
    live.seen_ms = now;
    live.seq = 0;
    live.open = true;
    live.accepting = hello.accepting;
    live.facts = facts;
    live.commands.clear();
    live.command = 0;
    state.live.arm(now + term_ms(state), Timer::Silence(id));
    refresh_words(state, id);
    refresh(state, id);
    if before != ProviderState::Ready {
        state.notice(now, group, "provider.ready", id.to_string(), String::new());
    }
}

/// Compares a full report with what should be there.
fn reconcile(state: &mut State, now: u64, id: ProviderId, running: Vec<AllocStatus>) {
    let reported: BTreeSet<(InstanceId, u64)> = running.iter().map(|status| (status.instance, status.epoch)).collect();
    for status in running {
        instance::status(state, now, id, status);
    }
    let expected: Vec<(InstanceId, u64)> =
        state.live.providers.get(&id).map(|live| live.allocs.iter().copied().collect()).unwrap_or_default();
    let mut vanished = false;
    for (instance, epoch) in expected {
        if !reported.contains(&(instance, epoch)) {
            vanished |= missing(state, now, id, instance, epoch);
        } else if state.instances.get(&instance).is_some_and(|found| found.stop.is_some()) {
            // The stop of an earlier session may never have arrived.
            instance::stop(state, now, instance, StopReason::Drained);
        }
    }
    if vanished {
        blame(state, now, id);
    }
}

/// Deals with an allocation that should be on a provider and is not; tells whether it ran and is gone. However many
/// are gone with one reboot, it is one trouble.
fn missing(state: &mut State, now: u64, id: ProviderId, instance: InstanceId, epoch: u64) -> bool {
    let Some(found) = state.instances.get(&instance) else { return false };
    let gone = OldAllocation { provider: id, epoch };
    if found.old.contains(&gone) {
        if let Some(found) = state.instance_mut(instance) {
            found.old.retain(|old| *old != gone);
        }
        release(state, instance, id, epoch);
        return false;
    }
    let Some(alloc) = found.alloc.as_ref().filter(|alloc| alloc.epoch == epoch) else { return false };
    let begins = !found.halt || moving::source(found).is_some();
    if alloc.started_at_ms.is_none() && found.stop.is_none() && begins {
        // The start never arrived, or what it began is gone; the same allocation may begin again.
        if found.state != InstanceState::Placed
            && let Some(found) = state.instance_mut(instance)
        {
            found.state = InstanceState::Placed;
            found.reason = String::new();
        }
        instance::start(state, instance);
        return false;
    }
    let asked = found.stop.is_some() || found.halt;
    instance::over(state, now, instance, None, "was gone when its provider came back");
    !asked
}

/// Empties a provider that lends less than is reserved on it, the newest first.
fn shrink(state: &mut State, now: u64, id: ProviderId) {
    let (Some(record), Some(live)) = (state.providers.get(&id), state.live.providers.get(&id)) else { return };
    let mut over = live.reserved;
    let capacity = record.capacity;
    if over.fits(&capacity) {
        return;
    }
    let current = |(instance, epoch): &(InstanceId, u64)| {
        let found = state.instances.get(instance)?;
        (found.alloc.as_ref()?.epoch == *epoch).then_some((found.created_at_ms, *instance, found.spec.resources))
    };
    let mut newest: Vec<_> = live.allocs.iter().filter_map(current).collect();
    newest.sort_by_key(|(created, instance, _)| std::cmp::Reverse((*created, *instance)));
    for (_, instance, resources) in newest {
        if over.fits(&capacity) {
            return;
        }
        over = over.minus(&resources);
        instance::stop(state, now, instance, StopReason::Drained);
    }
}

/// Takes in a report.
pub(super) fn sync(state: &mut State, now: u64, id: ProviderId, sync: Sync) -> Result<Answer, Refusal> {
    let Some(record) = state.providers.get(&id) else { return Err(Refusal::NotFound("provider")) };
    let known = state.live.providers.get(&id).is_some_and(|live| live.open);
    if !known || record.session != sync.session || record.state != ProviderState::Ready {
        state.count("syncs_without_session");
        return Err(Refusal::HelloNeeded);
    }
    check_facts(&sync.facts)?;
    check_statuses(&sync.statuses)?;
    let seq = state.live.providers.get(&id).map_or(0, |live| live.seq);
    if sync.seq > seq {
        take(state, now, id, &sync)?;
        drain::owner_drains(state, now, id, sync.drain_ms);
        for status in sync.statuses {
            instance::status(state, now, id, status);
        }
    } else {
        state.count("syncs_repeated");
    }
    Ok(Answer::Sync(SyncReply {
        session: sync.session,
        leader: state.options.leader,
        acked: seq.max(sync.seq),
        interval_ms: interval_ms(state),
        commands: commands_after(state, id, sync.applied),
        streams: Vec::new(),
    }))
}

fn take(state: &mut State, now: u64, id: ProviderId, sync: &Sync) -> Result<(), Refusal> {
    let Some(live) = state.live.providers.get_mut(&id) else { return Err(Refusal::NotFound("provider")) };
    if live.facts.len() + sync.facts.keys().filter(|key| !live.facts.contains_key(*key)).count() > FACTS_MAX {
        return Err(Refusal::Invalid { field: "facts", reason: format!("more than {FACTS_MAX}") });
    }
    live.seen_ms = now;
    live.seq = sync.seq;
    while live.commands.front().is_some_and(|command| command.seq <= sync.applied) {
        live.commands.pop_front();
    }
    let mut words = false;
    for (key, report) in &sync.facts {
        let fact = report.clone().into_fact(now);
        let before = live.facts.insert(key.clone(), fact.clone());
        words |= fact.ttl_ms.is_none() && before.is_none_or(|before| before.value != fact.value);
    }
    let turned = live.accepting != sync.accepting;
    live.accepting = sync.accepting;
    if turned && let Some(record) = state.provider_mut(id) {
        record.accepting = sync.accepting;
    }
    if words {
        refresh_words(state, id);
    }
    if turned {
        refresh(state, id);
    }
    if turned || !sync.facts.is_empty() {
        state.live.queue.gain(id);
    }
    Ok(())
}

/// Looks whether a provider has been silent for too long.
pub(super) fn silence(state: &mut State, now: u64, id: ProviderId) {
    let (Some(record), Some(live)) = (state.providers.get(&id), state.live.providers.get(&id)) else { return };
    if record.state != ProviderState::Ready {
        return;
    }
    let (seen, due) = (live.seen_ms, live.seen_ms + term_ms(state));
    if now < due {
        return state.live.arm(due, Timer::Silence(id));
    }
    let allocs = current_on(state, id);
    let (group, capacity) = (record.group, record.capacity);
    state.live.total = state.live.total.minus(&capacity);
    if let Some(live) = state.live.providers.get_mut(&id) {
        live.open = false;
        live.commands.clear();
    }
    if let Some(record) = state.provider_mut(id) {
        record.state = ProviderState::Unknown;
        remember(&mut record.silences_ms, now);
        let recent = record.silences_ms.iter().filter(|at| **at + instance::HOUR_MS > now).count();
        if recent >= FLAPS {
            record.cool_until_ms = now + COOL_MS;
        }
    }
    let cool = state.providers.get(&id).map_or(0, |record| record.cool_until_ms);
    if cool > now {
        state.live.arm(cool, Timer::Cool(id));
    }
    for (instance, epoch) in allocs {
        loss::silent(state, instance, epoch, seen);
    }
    refresh(state, id);
    state.live.arm(seen + state.options.lost_after_ms.max(term_ms(state) + 1), Timer::Gone(id));
    state.notice(now, group, "provider.unknown", id.to_string(), String::new());
}

/// Calls a provider that is still silent lost.
pub(super) fn gone(state: &mut State, now: u64, id: ProviderId) {
    let Some(record) = state.providers.get(&id).filter(|record| record.state == ProviderState::Unknown) else { return };
    let group = record.group;
    let due = state.live.providers.get(&id).map_or(0, |live| live.seen_ms) + state.options.lost_after_ms;
    if now < due {
        return state.live.arm(due, Timer::Gone(id));
    }
    if let Some(record) = state.provider_mut(id) {
        record.state = ProviderState::Lost;
    }
    state.notice(now, group, "provider.lost", id.to_string(), String::new());
}

fn remember(list: &mut Vec<u64>, now: u64) {
    list.push(now);
    if list.len() > REMEMBERED {
        list.remove(0);
    }
}

/// Counts a failure against the provider, unless the image fails elsewhere too.
pub(super) fn trouble(state: &mut State, now: u64, id: ProviderId, image: &str) {
    let live = &mut state.live;
    if live.image_failures.len() >= IMAGES_REMEMBERED && !live.image_failures.contains_key(image) {
        live.image_failures.pop_first();
    }
    let places = live.image_failures.entry(image.to_owned()).or_default();
    places.retain(|_, at| *at + instance::HOUR_MS > now);
    places.insert(id, now);
    if places.len() >= 2 {
        // The image is to blame; whoever ran it is not.
        return;
    }
    blame(state, now, id);
}

fn blame(state: &mut State, now: u64, id: ProviderId) {
    let Some(record) = state.provider_mut(id) else { return };
    remember(&mut record.troubles_ms, now);
    let recent = record.troubles_ms.iter().filter(|at| **at + TROUBLE_MS > now).count();
    if recent >= TROUBLES {
        record.cool_until_ms = now + COOL_MS;
        let group = record.group;
        state.live.arm(now + COOL_MS, Timer::Cool(id));
        state.notice(now, group, "provider.cooling", id.to_string(), format!("{recent} failures in ten minutes"));
    }
    refresh(state, id);
}

/// Forgets a provider for good: what it held is placed anew at once.
pub(super) fn remove(state: &mut State, now: u64, id: ProviderId) {
    let Some(record) = state.providers.get(&id) else { return };
    let (name, group, ready, capacity) =
        (record.name.clone(), record.group, record.state == ProviderState::Ready, record.capacity);
    if let Some(live) = state.live.providers.get_mut(&id) {
        live.open = false;
    }
    if let Some(record) = state.provider_mut(id) {
        record.state = ProviderState::Lost;
    }
    refresh(state, id);
    let allocs: Vec<(InstanceId, u64)> =
        state.live.providers.get(&id).map(|live| live.allocs.iter().copied().collect()).unwrap_or_default();
    for (instance, epoch) in allocs {
        let current = state
            .instances
            .get(&instance)
            .and_then(|found| found.alloc.as_ref())
            .is_some_and(|alloc| alloc.epoch == epoch);
        if current {
            loss::give_up(state, now, instance, epoch);
        }
        if state.instances.get(&instance).is_some_and(|found| found.state == InstanceState::Lost) {
            loss::abandon(state, now, instance);
            instance::finish(state, now, instance, InstanceState::Failed, "its provider was removed");
        }
        let gone = OldAllocation { provider: id, epoch };
        if let Some(found) = state.instance_mut(instance) {
            found.old.retain(|old| *old != gone);
        }
        release(state, instance, id, epoch);
    }
    super::volume::unbind_all(state, id);
    let tokens: Vec<TokenId> = state
        .tokens
        .values()
        .filter(|token| token.stands_for == TokenKind::Provider { provider: id })
        .map(|token| token.id)
        .collect();
    for token in tokens {
        super::tenant::revoke(state, token);
    }
    if ready {
        state.live.total = state.live.total.minus(&capacity);
    }
    state.live.provider_names.remove(&name);
    state.erase(Key::Provider(id));
    refresh_words(state, id);
    state.live.providers.remove(&id);
    state.notice(now, group, "provider.removed", id.to_string(), String::new());
}
