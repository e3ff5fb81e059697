//! Providers in the orders that placement needs.
//!
//! Providers that take new work are sorted into classes by the logarithms of what they have free in each dimension, and
//! within a class by load, price, trouble and a fixed shuffle. A request walks only classes that can hold it, merged
//! in the order of its strategy, and stops after a few matches: O(log n) whatever the pool's size. Words of facts that
//! do not age point to their providers, so that `node==x` looks at one provider and not at all.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use super::state::State;
use crate::model::*;

/// A provider's place in the index, kept so that it can be taken out again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    class: Class5,
    room: [u64; 5],
    load: u64,
    price: u64,
    trouble: u64,
    shuffle: u64,
}

/// A logarithm for each dimension.
type Class5 = [u8; 5];

/// Providers of one class in several orders.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Orders {
    /// By what is free in each dimension, exactly.
    room: [BTreeSet<(u64, ProviderId)>; 5],
    load: BTreeSet<(u64, ProviderId)>,
    price: BTreeSet<(u64, ProviderId)>,
    trouble: BTreeSet<(u64, ProviderId)>,
    shuffle: BTreeSet<(u64, ProviderId)>,
}

/// The index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Index {
    classes: BTreeMap<Class5, Orders>,
    words: BTreeMap<(String, String), BTreeSet<ProviderId>>,
    eligible: usize,
}

/// Words of one fact that are indexed; a provider with more images is found by the walk.
const WORDS_INDEXED: usize = 64;

fn class_of(amount: u64) -> u8 {
    // 0 for nothing, else one more than the logarithm: at most 64.
    u8::try_from(u64::BITS - amount.leading_zeros()).unwrap_or(u8::MAX)
}

/// Finer steps than these would make many classes that no request can tell apart: whole cores' thousandths, MiB of
/// memory, GiB of disk, MiB a second, GPUs.
const SHIFTS: [u32; 5] = [0, 20, 30, 20, 0];

fn class(resources: &Resources) -> Class5 {
    let mut class = [0; 5];
    for (place, (_, amount)) in resources.dimensions().into_iter().enumerate() {
        class[place] = class_of(amount >> SHIFTS[place]);
    }
    class
}

fn shuffle(provider: ProviderId) -> u64 {
    // A fixed permutation of the random part; any odd multiplier does.
    u64::try_from(provider.get() & u128::from(u64::MAX)).unwrap_or(0).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl Index {
    /// Counts providers that take new work.
    pub(super) fn eligible(&self) -> usize {
        self.eligible
    }

    /// Lists the providers known by a word.
    pub(super) fn by_word(&self, key: &str, word: &str) -> Option<&BTreeSet<ProviderId>> {
        self.words.get(&(key.to_owned(), word.to_owned()))
    }

    fn put(&mut self, provider: ProviderId, slot: &Slot) {
        let orders = self.classes.entry(slot.class).or_default();
        for (order, room) in orders.room.iter_mut().zip(slot.room) {
            order.insert((room, provider));
        }
        orders.load.insert((slot.load, provider));
        orders.price.insert((slot.price, provider));
        orders.trouble.insert((slot.trouble, provider));
        orders.shuffle.insert((slot.shuffle, provider));
        self.eligible += 1;
    }

    fn take(&mut self, provider: ProviderId, slot: &Slot) {
        let Some(orders) = self.classes.get_mut(&slot.class) else { return };
        for (order, room) in orders.room.iter_mut().zip(slot.room) {
            order.remove(&(room, provider));
        }
        orders.load.remove(&(slot.load, provider));
        orders.price.remove(&(slot.price, provider));
        orders.trouble.remove(&(slot.trouble, provider));
        orders.shuffle.remove(&(slot.shuffle, provider));
        if orders.load.is_empty() {
            self.classes.remove(&slot.class);
        }
        self.eligible -= 1;
    }

    /// Walks providers that may hold `want`, best first for the strategy. `start` turns the shuffle.
    pub(super) fn walk(&self, want: &Resources, strategy: Strategy, start: u64) -> Walk<'_> {
        let least = class(want);
        let mut walk = Walk { queues: Vec::new(), heap: BinaryHeap::new() };
        let wanted = want.dimensions();
        for (class, orders) in &self.classes {
            if class.iter().zip(&least).any(|(has, least)| has < least) {
                continue;
            }
            // A class that shares a logarithm with the request holds providers that may be a little too small: there
            // the exact order of that dimension shows those that are not. Only binpack wants them first.
            let tight = (0..class.len()).find(|place| wanted[*place].1 > 0 && class[*place] == least[*place]);
            match tight {
                None => walk.add(orders.iter(strategy, start), true),
                Some(place) => {
                    let key = if strategy == Strategy::Binpack { 0 } else { u64::MAX };
                    let fitting = orders.room[place].range((wanted[place].1, ProviderId::new(0))..);
                    walk.add(Box::new(fitting.map(move |(_, id)| (key, *id))), false);
                }
            }
        }
        walk
    }
}

impl Orders {
    fn iter(&self, strategy: Strategy, start: u64) -> Box<dyn Iterator<Item = (u64, ProviderId)> + '_> {
        match strategy {
            Strategy::Spread => Box::new(self.load.iter().copied()),
            Strategy::Binpack => Box::new(self.load.iter().rev().map(|(load, id)| (u64::MAX - load, *id))),
            Strategy::Cheapest => Box::new(self.price.iter().copied()),
            Strategy::Reliable => Box::new(self.trouble.iter().copied()),
            Strategy::Random => {
                let from = (start, ProviderId::new(0));
                let turned = self.shuffle.range(from..).chain(self.shuffle.range(..from));
                Box::new(turned.map(move |(key, id)| (key.wrapping_sub(start), *id)))
            }
        }
    }
}

type Source<'a> = (Box<dyn Iterator<Item = (u64, ProviderId)> + 'a>, bool);

/// A merged walk over classes.
pub(super) struct Walk<'a> {
    queues: Vec<Source<'a>>,
    heap: BinaryHeap<Reverse<(u64, ProviderId, usize)>>,
}

impl<'a> Walk<'a> {
    fn add(&mut self, mut source: Box<dyn Iterator<Item = (u64, ProviderId)> + 'a>, certain: bool) {
        if let Some((key, id)) = source.next() {
            self.heap.push(Reverse((key, id, self.queues.len())));
            self.queues.push((source, certain));
        }
    }

    /// Drops the classes whose members may be too small.
    pub(super) fn only_certain(&mut self) {
        let queues = &self.queues;
        self.heap.retain(|Reverse((_, _, queue))| queues[*queue].1);
    }
}

impl Iterator for Walk<'_> {
    /// The provider, and whether it surely has room.
    type Item = (ProviderId, bool);

    fn next(&mut self) -> Option<Self::Item> {
        let Reverse((_, provider, queue)) = self.heap.pop()?;
        let (source, certain) = &mut self.queues[queue];
        if let Some((key, id)) = source.next() {
            self.heap.push(Reverse((key, id, queue)));
        }
        Some((provider, *certain))
    }
}

/// Tells what a provider has left for somebody who has no claim there.
pub(super) fn free(state: &State, provider: ProviderId) -> Resources {
    let (Some(record), Some(live)) = (state.providers.get(&provider), state.live.providers.get(&provider)) else {
        return Resources::default();
    };
    let claimed = live.claims.values().fold(Resources::default(), |sum, claim| sum.plus(&claim.resources));
    record.capacity.minus(&live.reserved).minus(&claimed)
}

/// Says why a provider takes no new work at all.
pub(super) fn closed(state: &State, provider: &Provider) -> Option<&'static str> {
    let live = state.live.providers.get(&provider.id)?;
    if provider.state != ProviderState::Ready || !live.open {
        Some("state")
    } else if provider.drain.is_some() {
        Some("drain")
    } else if !live.accepting {
        Some("owner")
    } else if provider.cool_until_ms > state.live.now_ms {
        Some("trouble")
    } else {
        None
    }
}

/// Brings a provider's place up to date.
pub(super) fn refresh(state: &mut State, provider: ProviderId) {
    let slot = state.providers.get(&provider).filter(|record| closed(state, record).is_none()).map(|record| {
        let left = free(state, provider);
        let used = record.capacity.minus(&left);
        Slot {
            class: class(&left),
            room: left.dimensions().map(|(_, amount)| amount),
            load: u64::from(used.dominant_permille(&record.capacity)),
            price: record.price,
            trouble: (record.silences_ms.len() + record.troubles_ms.len()) as u64,
            shuffle: shuffle(provider),
        }
    });
    let Some(live) = state.live.providers.get_mut(&provider) else { return };
    let before = std::mem::replace(&mut live.slot, slot);
    if before == slot {
        return;
    }
    if let Some(before) = before {
        state.live.index.take(provider, &before);
    }
    if let Some(slot) = slot {
        state.live.index.put(provider, &slot);
    }
}

/// Brings the words by which a provider is found up to date.
pub(super) fn refresh_words(state: &mut State, provider: ProviderId) {
    let Some(live) = state.live.providers.get_mut(&provider) else { return };
    let mut words = BTreeSet::new();
    if let Some(record) = state.providers.get(&provider) {
        words.insert(("node".to_owned(), record.name.to_string()));
        words.insert(("node".to_owned(), record.id.to_string()));
        for (key, fact) in live.facts.iter().filter(|(_, fact)| fact.ttl_ms.is_none()) {
            words.extend(fact.value.words().into_iter().take(WORDS_INDEXED).map(|word| (key.clone(), word)));
        }
    }
    let before = std::mem::replace(&mut live.words, words.clone());
    for gone in before.difference(&words) {
        if let Some(found) = state.live.index.words.get_mut(gone) {
            found.remove(&provider);
            if found.is_empty() {
                state.live.index.words.remove(gone);
            }
        }
    }
    for new in words.difference(&before) {
        state.live.index.words.entry(new.clone()).or_default().insert(provider);
    }
}
