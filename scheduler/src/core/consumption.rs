//! What allocations use: what their providers may say about it, and on whom it is booked.

use super::state::State;
use crate::model::*;

/// Keeps reported usage growing and within what was reserved (S05); memory and disk are reckoned here. No write: a
/// heartbeat that only counts further must stay out of the store.
pub(super) fn note_usage(state: &mut State, now: u64, id: InstanceId, reported: &Usage) {
    let Some(found) = state.instances.get_mut(&id) else { return };
    let resources = found.spec.resources;
    let Some(alloc) = &mut found.alloc else { return };
    let elapsed = now.saturating_sub(alloc.placed_at_ms);
    let whole = |product: u128| u64::try_from(product).unwrap_or(u64::MAX);
    let cpu_most = whole(u128::from(elapsed) * u128::from(resources.cpu_millis) / 1000);
    let area = |bytes: u64| whole(u128::from(bytes >> 20) * u128::from(elapsed) / 1000);
    alloc.usage = Usage {
        cpu_ms: reported.cpu_ms.min(cpu_most).max(alloc.usage.cpu_ms),
        memory_mib_s: area(resources.memory_bytes),
        disk_mib_s: area(resources.disk_bytes),
        network_bytes: reported.network_bytes.max(alloc.usage.network_bytes),
    };
}

/// Keeps what a provider says about the disk of its own allocation (S05). No write: a new session begins with a full report.
pub(super) fn note_disk(state: &mut State, id: InstanceId, reported: Option<DiskReport>) {
    if let Some(alloc) = state.instances.get_mut(&id).and_then(|found| found.alloc.as_mut()) {
        alloc.disk = reported.map(DiskReport::bounded);
    }
}

/// Books an allocation's usage on its group, user and provider.
pub(super) fn book(state: &mut State, id: InstanceId) {
    let Some(found) = state.instance_mut(id) else { return };
    let Some(alloc) = &found.alloc else { return };
    found.usage = found.usage.plus(&alloc.usage);
    let (key, usage) = ((found.group, found.user, alloc.provider), alloc.usage);
    let record = state.usage.entry(key).or_insert(UsageRecord {
        group: key.0,
        user: key.1,
        provider: key.2,
        allocations: 0,
        usage: Usage::default(),
    });
    record.allocations += 1;
    record.usage = record.usage.plus(&usage);
    state.touch(Key::Usage(key.0, key.1, key.2));
}
