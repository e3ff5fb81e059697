//! One request for a place, and whether one provider can grant it.

use std::sync::Arc;

use super::index::{closed, free};
use super::state::State;
use crate::expr::{Expr, Found, Verdict, Weight};
use crate::model::*;

/// A request for a place, compiled.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    pub instance: InstanceId,
    /// Equal for requests that placement cannot tell apart.
    pub shape: u128,
    pub group: GroupId,
    pub owner: Owner,
    pub pinned: Option<ProviderId>,
    pub spec: InstanceSpec,
    pub constraints: Vec<Arc<Expr>>,
    pub affinities: Vec<Arc<Expr>>,
}

/// Why a provider cannot grant it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Filter {
    /// Takes no new work: state, drain, owner, trouble.
    Closed(&'static str),
    /// Another provider is required.
    Pinned,
    /// A volume is elsewhere.
    Volume,
    /// Not trusted enough.
    Tier,
    /// It holds an earlier allocation of the same instance.
    Same,
    /// A port is taken.
    Port(u16),
    /// Too little left of this, by this much.
    Resource(&'static str, u64),
    /// An affinity does not hold.
    Affinity(String),
    /// A constraint does not hold.
    Constraint(String),
    /// A fact is too old.
    Stale(String),
}

impl Filter {
    /// The words under which it is counted.
    pub(super) fn label(&self) -> String {
        match self {
            Self::Closed(why) => (*why).to_owned(),
            Self::Pinned => "provider".to_owned(),
            Self::Volume => "volume".to_owned(),
            Self::Tier => "min_tier".to_owned(),
            Self::Same => "earlier allocation".to_owned(),
            Self::Port(port) => format!("port {port}"),
            Self::Resource(name, _) => (*name).to_owned(),
            Self::Affinity(text) => format!("affinity:{text}"),
            Self::Constraint(text) => format!("constraint:{text}"),
            Self::Stale(text) => format!("old fact in {text}"),
        }
    }
}

/// Which soft expressions must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Softness {
    /// Swarm's first pass: all of them.
    All,
    /// Swarm's second pass: none of them.
    Dropped,
}

impl Ask {
    /// Compiles a request.
    pub(super) fn of(state: &mut State, instance: &Instance) -> Self {
        // Whoever waits has a shape already; it costs a digest to make one.
        let shape = state.live.queue.shape(instance.id).unwrap_or_else(|| super::queue::shape_of(instance));
        let spec = instance.spec.clone();
        let mut compile = |texts: &[String]| texts.iter().filter_map(|text| state.live.expression(text)).collect();
        Self {
            instance: instance.id,
            shape,
            group: instance.group,
            owner: instance.owner,
            pinned: instance.pinned,
            constraints: compile(&spec.constraints),
            affinities: compile(&spec.affinities),
            spec,
        }
    }

    /// Compiles a request of nobody's, for a look ahead.
    pub(super) fn ahead(state: &mut State, group: GroupId, owner: Owner, spec: InstanceSpec) -> Self {
        let mut compile = |texts: &[String]| texts.iter().filter_map(|text| state.live.expression(text)).collect();
        Self {
            instance: InstanceId::new(0),
            shape: 0,
            group,
            owner,
            pinned: None,
            constraints: compile(&spec.constraints),
            affinities: compile(&spec.affinities),
            spec,
        }
    }

    /// Tells whether any expression is Swarm's soft kind.
    pub(super) fn has_soft(&self) -> bool {
        self.constraints.iter().chain(&self.affinities).any(|expr| expr.weight == Weight::Soft)
    }

    /// Returns what the instance may take on a provider: its own claim is its own.
    pub(super) fn room(&self, state: &State, provider: ProviderId) -> Resources {
        let own = state.live.providers.get(&provider).and_then(|live| live.claims.get(&self.instance));
        let room = free(state, provider);
        match (own, state.providers.get(&provider), state.live.providers.get(&provider)) {
            (Some(own), Some(record), Some(live)) => {
                room.plus(&own.resources).min_with(&record.capacity.minus(&live.reserved))
            }
            _ => room,
        }
    }

    /// Lists why a provider cannot grant it, at most `most` reasons; none means it can.
    pub(super) fn refusals(&self, state: &State, provider: &Provider, soft: Softness, most: usize) -> Vec<Filter> {
        let mut found = Vec::new();
        self.place_refusals(state, provider, &mut found);
        if found.len() < most
            && let Some((name, short)) = self.spec.resources.shortage(&self.room(state, provider.id))
        {
            found.push(Filter::Resource(name, short));
        }
        if found.len() < most {
            self.expression_refusals(state, provider, soft, most, &mut found);
        }
        found.truncate(most);
        found
    }

    fn place_refusals(&self, state: &State, provider: &Provider, found: &mut Vec<Filter>) {
        let Some(live) = state.live.providers.get(&provider.id) else { return };
        if self.pinned.is_some_and(|pinned| pinned != provider.id) {
            found.push(Filter::Pinned);
        }
        found.extend(closed(state, provider).map(Filter::Closed));
        let volumes = self.spec.volumes.iter().filter_map(|mount| state.volumes.get(&mount.volume));
        let mut new_disk = 0u64;
        for volume in volumes {
            match volume.provider {
                Some(place) if place != provider.id => found.push(Filter::Volume),
                Some(_) => {}
                None => new_disk = new_disk.saturating_add(volume.size_bytes),
            }
        }
        if new_disk > 0 {
            let want = Resources { disk_bytes: new_disk, ..Resources::default() }.plus(&self.spec.resources);
            let short = want.shortage(&self.room(state, provider.id)).filter(|(name, _)| *name == "disk");
            found.extend(short.map(|(name, short)| Filter::Resource(name, short)));
        }
        if provider.tier < self.spec.min_tier {
            found.push(Filter::Tier);
        }
        let none = (self.instance, 0);
        if live.allocs.range(none..).next().is_some_and(|(id, _)| *id == self.instance) {
            found.push(Filter::Same);
        }
        let taken = self.spec.ports.iter().find(|port| live.ports.contains(&port.host));
        found.extend(taken.map(|port| Filter::Port(port.host)));
    }

    fn expression_refusals(
        &self,
        state: &State,
        provider: &Provider,
        soft: Softness,
        most: usize,
        found: &mut Vec<Filter>,
    ) {
        let must = |expr: &&Arc<Expr>| match expr.weight {
            Weight::Hard => true,
            Weight::Soft => soft == Softness::All,
            Weight::Scored(_) => false,
        };
        for expr in self.affinities.iter().filter(must) {
            if found.len() < most && expr.test(&present(state, provider, &expr.key, self)) != Verdict::True {
                found.push(Filter::Affinity(expr.text.clone()));
            }
        }
        for expr in self.constraints.iter().filter(must) {
            if found.len() >= most {
                return;
            }
            match expr.test(&fact(state, provider, &expr.key)) {
                Verdict::True => {}
                Verdict::False => found.push(Filter::Constraint(expr.text.clone())),
                Verdict::Unknown => found.push(Filter::Stale(expr.text.clone())),
            }
        }
    }

    /// Sums the weights of the scored expressions that hold.
    pub(super) fn preference(&self, state: &State, provider: &Provider) -> i64 {
        let scored = |expr: &Arc<Expr>, found: Found| match (expr.weight, expr.test(&found)) {
            (Weight::Scored(weight), Verdict::True) => i64::from(weight),
            _ => 0,
        };
        let constraints = self.constraints.iter().map(|expr| scored(expr, fact(state, provider, &expr.key)));
        let affinities = self.affinities.iter().map(|expr| scored(expr, present(state, provider, &expr.key, self)));
        constraints.chain(affinities).sum()
    }
}

/// Looks a constraint's key up: what the scheduler itself knows first, so that an agent cannot claim it.
pub(super) fn fact(state: &State, provider: &Provider, key: &str) -> Found {
    let words = |words: &[String]| Found::Words(words.to_vec());
    match key {
        "node" => return words(&[provider.name.to_string(), provider.id.to_string()]),
        "tier" => return words(&[tier_word(provider.tier).to_owned()]),
        "group" => return words(&[provider.group.to_string()]),
        "price" => return words(&[provider.price.to_string()]),
        _ => {}
    }
    match state.live.providers.get(&provider.id).and_then(|live| live.facts.get(key)) {
        None => Found::Words(Vec::new()),
        Some(fact) if fact.is_fresh(state.live.now_ms) => Found::Words(fact.value.words()),
        Some(_) => Found::Stale,
    }
}

fn tier_word(tier: Tier) -> &'static str {
    match tier {
        Tier::New => "new",
        Tier::Rated => "rated",
        Tier::Audited => "audited",
        Tier::Org => "org",
    }
}

/// Looks an affinity's key up: instances of the same group that hold a reservation, by name or id; images that are
/// present; else an instance label. Other groups' instances do not exist here (S10).
fn present(state: &State, provider: &Provider, key: &str, ask: &Ask) -> Found {
    let Some(live) = state.live.providers.get(&provider.id) else { return Found::Words(Vec::new()) };
    if key == "image" {
        return fact_images(live.facts.get("images"), state.live.now_ms);
    }
    let instances = live.allocs.iter().filter_map(|(id, _)| state.instances.get(id));
    let own = instances.filter(|found| found.group == ask.group && found.id != ask.instance);
    Found::Words(match key {
        "container" => own.flat_map(|found| [found.name.to_string(), found.id.to_string()]).collect(),
        label => own.filter_map(|found| found.spec.labels.get(label).cloned()).collect(),
    })
}

fn fact_images(images: Option<&Fact>, now_ms: u64) -> Found {
    let Some(images) = images else { return Found::Words(Vec::new()) };
    if !images.is_fresh(now_ms) {
        return Found::Stale;
    }
    // Swarm matches the id, the repository and repository:tag.
    let mut words = images.value.words();
    let repositories = words.iter().filter_map(|word| {
        let (name, tag) = word.rsplit_once(':')?;
        (!tag.contains('/')).then(|| name.to_owned())
    });
    let repositories: Vec<String> = repositories.collect();
    words.extend(repositories);
    Found::Words(words)
}
