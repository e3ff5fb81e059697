//! A second set of books, kept from what each step writes and from nothing else.
//!
//! `check::violations` looks at everything and costs as much as the pool is large. The ledger looks at what one step has
//! touched: from the records alone it keeps who holds what where, and compares that with what the core keeps for itself,
//! so that every step of a pool of ten thousand machines can be checked. It starts empty, with an empty pool.

use std::collections::{BTreeMap, BTreeSet};

use super::live::Used;
use super::state::State;
use super::{Action, check};
use crate::model::*;

/// What an instance's record says it holds.
#[derive(Clone, Debug, PartialEq)]
struct Held {
    group: GroupId,
    resources: Resources,
    places: Vec<(ProviderId, u64)>,
    /// Counts towards the quota by its resources.
    charged: bool,
    unfinished: bool,
}

/// What records say of one provider.
#[derive(Clone, Debug, Default)]
struct Books {
    allocs: BTreeSet<(InstanceId, u64)>,
    reserved: Resources,
    /// Bytes of volumes.
    fixed: u64,
}

/// The books.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    instances: BTreeMap<InstanceId, Held>,
    volumes: BTreeMap<VolumeId, (ProviderId, u64)>,
    providers: BTreeMap<ProviderId, Books>,
    groups: BTreeMap<GroupId, Used>,
    touched: BTreeSet<ProviderId>,
}

fn held(found: &Instance) -> Held {
    let unfinished = !found.state.is_final();
    let mut places: Vec<(ProviderId, u64)> = found.old.iter().map(|old| (old.provider, old.epoch)).collect();
    let current = found.alloc.as_ref().filter(|_| unfinished);
    places.extend(current.map(|alloc| (alloc.provider, alloc.epoch)));
    let charged = current.is_some() && found.spec.class == Class::Normal;
    Held { group: found.group, resources: found.spec.resources, places, charged, unfinished }
}

impl Ledger {
    /// Books a step's writes, then lists in words what the core keeps otherwise.
    pub fn after(&mut self, state: &State, actions: &[Action]) -> Vec<String> {
        let mut found = Vec::new();
        for action in actions {
            match action {
                Action::Write(key, record) => self.put(key, Some(record)),
                Action::Erase(key) => self.put(key, None),
                _ => {}
            }
        }
        for action in actions {
            if let Action::Write(Key::Instance(id), _) = action
                && let Some(one) = state.instances.get(id)
            {
                check::instance(state, one, &mut found);
            }
        }
        for id in std::mem::take(&mut self.touched) {
            self.compare(state, id, &mut found);
        }
        for (group, used) in &self.groups {
            let kept = state.live.used.get(group).copied().unwrap_or_default();
            if kept != *used {
                found.push(format!("group {group} uses {kept:?} and records say {used:?}"));
            }
        }
        found
    }

    fn put(&mut self, key: &Key, record: Option<&Record>) {
        match (key, record) {
            (Key::Instance(id), record) => {
                let new = match record {
                    Some(Record::Instance(found)) => Some(held(found)),
                    _ => None,
                };
                let old = match &new {
                    Some(new) => self.instances.insert(*id, new.clone()),
                    None => self.instances.remove(id),
                };
                if old != new {
                    old.iter().for_each(|old| self.book(*id, old, false));
                    new.iter().for_each(|new| self.book(*id, new, true));
                }
            }
            (Key::Volume(id), record) => {
                let new = match record {
                    Some(Record::Volume(found)) => found.provider.map(|place| (place, found.size_bytes)),
                    _ => None,
                };
                let old = match new {
                    Some(new) => self.volumes.insert(*id, new),
                    None => self.volumes.remove(id),
                };
                for ((place, size), sign) in old.map(|old| (old, false)).into_iter().chain(new.map(|new| (new, true))) {
                    let books = self.providers.entry(place).or_default();
                    let part = Resources { disk_bytes: size, ..Resources::default() };
                    (books.reserved, books.fixed) = match sign {
                        true => (books.reserved.plus(&part), books.fixed + size),
                        false => (books.reserved.minus(&part), books.fixed - size),
                    };
                    self.touched.insert(place);
                }
            }
            (Key::Provider(id), Some(_)) => drop(self.touched.insert(*id)),
            (Key::Provider(id), None) => drop(self.providers.remove(id)),
            _ => {}
        }
    }

    fn book(&mut self, id: InstanceId, held: &Held, more: bool) {
        let change = |sum: &Resources, part: &Resources| if more { sum.plus(part) } else { sum.minus(part) };
        for (place, epoch) in &held.places {
            let books = self.providers.entry(*place).or_default();
            let changed = if more { books.allocs.insert((id, *epoch)) } else { books.allocs.remove(&(id, *epoch)) };
            if changed {
                books.reserved = change(&books.reserved, &held.resources);
            }
            self.touched.insert(*place);
        }
        let used = self.groups.entry(held.group).or_default();
        if held.charged {
            used.resources = change(&used.resources, &held.resources);
        }
        if held.unfinished {
            used.instances = if more { used.instances + 1 } else { used.instances - 1 };
        }
    }

    fn compare(&self, state: &State, id: ProviderId, found: &mut Vec<String>) {
        let Some(record) = state.providers.get(&id) else {
            if state.live.providers.contains_key(&id) {
                found.push(format!("{id} was removed and is still known"));
            }
            return;
        };
        let books = self.providers.get(&id).cloned().unwrap_or_default();
        if let Some(live) = state.live.providers.get(&id)
            && (live.allocs != books.allocs || live.reserved != books.reserved)
        {
            found.push(format!("{id} keeps {:?} and the ledger says {:?}", live.reserved, books.reserved));
        }
        check::provider(state, record, books.fixed, found);
    }
}
