//! Choosing a provider.
//!
//! Pass one walks the index and stops when enough providers match (`candidates_wanted`, log2 of the pool). Only when
//! it finds none does pass two look at every provider, so that what can be placed is placed and what cannot is
//! explained completely; the queue makes sure that pass two runs once per shape and not per instance.

use std::collections::{BTreeMap, BTreeSet};

use super::ask::{Ask, Softness};
use super::explain;
use super::live::family;
use super::state::State;
use crate::model::*;

/// What was decided.
pub(super) struct Choice {
    pub provider: Option<ProviderId>,
    pub explanation: Explanation,
}

/// Lookups per wanted candidate before the walk gives up.
const PROBES_PER_CANDIDATE: usize = 16;
/// Lookups per wanted candidate among providers that may be a little too small.
const DOUBTFUL_PER_CANDIDATE: usize = 4;

/// Returns how many matching providers are compared: log2 of the pool, at least four.
pub fn candidates_wanted(pool: usize) -> usize {
    (pool.max(1).ilog2() as usize + 2).max(4)
}

/// How long a shape whose soft expressions nothing met is placed without them: the complete look that Swarm's rule
/// asks for is made once in this time and not for each of a thousand equal instances.
const SOFT_UNMET_MS: u64 = 10_000;
/// Shapes for which this is remembered.
const SOFT_UNMET_KEPT: usize = 4096;

fn blank(state: &State) -> Explanation {
    Explanation {
        at_ms: state.live.now_ms,
        pool: u32::try_from(state.providers.len()).unwrap_or(u32::MAX),
        ..Explanation::default()
    }
}

/// Takes the one provider that was found to match when its room was offered to those who wait.
pub(super) fn take(state: &mut State, ask: &Ask, provider: ProviderId) -> Choice {
    let fits = |record: &Provider| ask.refusals(state, record, Softness::Dropped, 1).is_empty();
    let provider = state.providers.get(&provider).filter(|record| fits(record)).map(|record| record.id);
    let mut explanation = Explanation { examined: 1, matched: 1, soft_dropped: ask.has_soft(), ..blank(state) };
    explanation.scores.extend(provider.map(|id| score(state, ask, id, 0)));
    Choice { provider, explanation }
}

/// Chooses a provider.
pub(super) fn choose(state: &mut State, ask: &Ask) -> Choice {
    let now = state.live.now_ms;
    let hopeless = ask.shape != 0 && state.live.soft_unmet.get(&ask.shape).is_some_and(|until| *until > now);
    let soft = if ask.has_soft() && !hopeless { Softness::All } else { Softness::Dropped };
    let mut explanation = Explanation { soft_dropped: hopeless, ..blank(state) };
    let mut found = sample(state, ask, soft, &mut explanation);
    if found.is_empty() {
        found = explain::all(state, ask, soft, &mut explanation);
    }
    if found.is_empty() && soft == Softness::All {
        // Swarm: nothing meets every soft expression, so all of them are dropped at once.
        explanation.soft_dropped = true;
        if state.live.soft_unmet.len() >= SOFT_UNMET_KEPT {
            state.live.soft_unmet.clear();
        }
        state.live.soft_unmet.insert(ask.shape, now + SOFT_UNMET_MS);
        found = sample(state, ask, Softness::Dropped, &mut explanation);
        if found.is_empty() {
            found = explain::all(state, ask, Softness::Dropped, &mut explanation);
        }
    }
    let mut scores = Vec::new();
    for id in &found {
        // Without a draw of its own each time the smallest id would win among equals.
        let draw = if ask.spec.strategy == Strategy::Random { state.random.number() } else { 0 };
        scores.push(score(state, ask, *id, draw));
    }
    scores.sort_by(|left, right| right.score.cmp(&left.score).then_with(|| left.provider.cmp(&right.provider)));
    scores.truncate(Explanation::SCORES_KEPT);
    let provider = scores.first().map(|best| best.provider);
    explanation.scores = scores;
    Choice { provider, explanation }
}

/// Looks at a few good providers.
fn sample(state: &mut State, ask: &Ask, soft: Softness, explanation: &mut Explanation) -> Vec<ProviderId> {
    let wanted = candidates_wanted(state.live.index.eligible());
    let start = if ask.spec.strategy == Strategy::Random { state.random.number() } else { 0 };
    state.count("placements_sampled");
    let state = &*state;
    let listed = known_places(state, ask);
    let mut walk = state.live.index.walk(&ask.spec.resources, ask.spec.strategy, start);
    let listed_only = listed.is_some();
    let mut from_list = listed.into_iter().flatten();
    let (mut found, mut doubtful, mut probes) = (Vec::new(), 0, 0);
    let (mut matched, mut filtered) = (0, BTreeMap::<String, u32>::new());
    while found.len() < wanted && probes < wanted * PROBES_PER_CANDIDATE {
        let next = if listed_only { from_list.next().map(|id| (id, true)) } else { walk.next() };
        let Some((id, certain)) = next else { break };
        probes += 1;
        let Some(provider) = state.providers.get(&id) else { continue };
        match ask.refusals(state, provider, soft, 1).first() {
            None => {
                matched += 1;
                found.push(id);
            }
            Some(reason) => *filtered.entry(reason.label()).or_default() += 1,
        }
        if !certain {
            doubtful += 1;
            if doubtful == wanted * DOUBTFUL_PER_CANDIDATE {
                walk.only_certain();
            }
        }
    }
    explanation.examined = u32::try_from(probes).unwrap_or(u32::MAX);
    explanation.matched = matched;
    explanation.filtered = filtered;
    found
}

/// Returns the few providers that the pin, a volume or a plain equality leaves, when there is such a thing.
fn known_places(state: &State, ask: &Ask) -> Option<BTreeSet<ProviderId>> {
    if let Some(pinned) = ask.pinned {
        return Some([pinned].into());
    }
    let volumes = ask.spec.volumes.iter().filter_map(|mount| state.volumes.get(&mount.volume)?.provider);
    if let Some(place) = volumes.into_iter().next() {
        return Some([place].into());
    }
    if let Some(claimed) = state.live.queue.claimed.get(&ask.instance) {
        return Some([*claimed].into());
    }
    let lists = ask.constraints.iter().filter_map(|expr| state.live.index.by_word(&expr.key, expr.literal()?));
    let shortest = lists.min_by_key(|list| list.len())?;
    // A long list is no help; the walk is in the strategy's order.
    (shortest.len() <= candidates_wanted(state.providers.len()) * PROBES_PER_CANDIDATE).then(|| shortest.clone())
}

/// Points for the strategy's whole range.
const STRATEGY_POINTS: i64 = 1000;
/// Points off for each relative that is there already.
const RELATIVE_POINTS: i64 = 200;
/// Points for an image that need not be pulled.
const IMAGE_POINTS: i64 = 50;
/// Points for one unit of a written weight.
const WEIGHT_POINTS: i64 = 20;

/// Scores one provider; `draw` is any number, for the strategy that asks for chance.
fn score(state: &State, ask: &Ask, id: ProviderId, draw: u64) -> ScoreLine {
    let mut parts = BTreeMap::new();
    if let (Some(provider), Some(live)) = (state.providers.get(&id), state.live.providers.get(&id)) {
        let after = live.reserved.plus(&ask.spec.resources);
        let load = i64::from(after.dominant_permille(&provider.capacity)).min(STRATEGY_POINTS);
        let trouble = (provider.silences_ms.len() + provider.troubles_ms.len()) as i64;
        let by_strategy = match ask.spec.strategy {
            Strategy::Spread => STRATEGY_POINTS - load,
            Strategy::Binpack => load,
            Strategy::Random => (draw % STRATEGY_POINTS.unsigned_abs()).cast_signed(),
            Strategy::Reliable => STRATEGY_POINTS - (trouble * 100).min(STRATEGY_POINTS),
            Strategy::Cheapest => -i64::try_from(provider.price).unwrap_or(i64::MAX / 4).min(i64::MAX / 4),
        };
        parts.insert("strategy".to_owned(), by_strategy);
        let relatives = family(&ask.owner).and_then(|family| state.live.together.get(&(family, id))).copied();
        // Only a service gains from distance; binpack asks for the opposite.
        if matches!(ask.owner, Owner::Service { .. }) && ask.spec.strategy != Strategy::Binpack {
            parts.insert("relatives".to_owned(), -RELATIVE_POINTS * i64::from(relatives.unwrap_or(0)));
        }
        if has_image(live.facts.get("images"), &ask.spec.image) {
            parts.insert("image".to_owned(), IMAGE_POINTS);
        }
        let preference = ask.preference(state, provider);
        if preference != 0 {
            parts.insert("weights".to_owned(), WEIGHT_POINTS * preference);
        }
    }
    ScoreLine { provider: id, score: parts.values().sum(), parts }
}

fn has_image(images: Option<&Fact>, image: &str) -> bool {
    match images.map(|fact| &fact.value) {
        Some(FactValue::Set(images)) => images.iter().any(|found| found == image),
        Some(FactValue::Text(found)) => found == image,
        _ => false,
    }
}
