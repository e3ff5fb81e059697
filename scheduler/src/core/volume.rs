//! Volumes: a piece of one provider's disk that instances come back to.

use super::index::refresh;
use super::state::State;
use crate::model::*;

/// Gives a volume its place when its first user gets one.
pub(super) fn bind(state: &mut State, id: VolumeId, provider: ProviderId) {
    let Some(size) = state.volumes.get(&id).filter(|volume| volume.provider.is_none()).map(|volume| volume.size_bytes)
    else {
        return;
    };
    if let Some(volume) = state.volume_mut(id) {
        volume.provider = Some(provider);
    }
    if let Some(live) = state.live.providers.get_mut(&provider) {
        live.reserved.disk_bytes = live.reserved.disk_bytes.saturating_add(size);
    }
    refresh(state, provider);
}

/// Gives a volume's room back.
pub(super) fn forget(state: &mut State, id: VolumeId) {
    let Some(volume) = state.volumes.get(&id).cloned() else { return };
    if let Some(provider) = volume.provider {
        if let Some(live) = state.live.providers.get_mut(&provider) {
            live.reserved.disk_bytes = live.reserved.disk_bytes.saturating_sub(volume.size_bytes);
        }
        refresh(state, provider);
        state.live.queue.gain(provider);
    }
    state.live.volume_names.remove(&(volume.group, volume.name));
    state.live.volume_users.remove(&id);
    state.erase(Key::Volume(id));
}

/// Notes that a provider is gone for good and its volumes with it: they are empty again, wherever they go.
pub(super) fn unbind_all(state: &mut State, provider: ProviderId) {
    let held = state.volumes.values().filter(|volume| volume.provider == Some(provider));
    let held: Vec<VolumeId> = held.map(|volume| volume.id).collect();
    for id in held {
        if let Some(volume) = state.volume_mut(id) {
            volume.provider = None;
        }
    }
}
