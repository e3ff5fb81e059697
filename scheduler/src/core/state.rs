//! The whole state: durable records, and what is derived from them.
//!
//! Durable records change only through the `*_mut`, `put_*` and `erase` functions here, which note the key; at the end
//! of a step the noted keys become the step's writes. Invariant: `State::load` of everything ever written gives the
//! same durable records, and the same derived data up to what agents will report again.

use std::collections::{BTreeMap, BTreeSet};

use super::live::Live;
use super::random::Random;
use super::{Action, Answer, Refusal};
use crate::model::*;

/// Numbers an operator may choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// How often a small pool's agents report.
    pub heartbeat_ms: u64,
    /// Reports a second that the scheduler wants at most; larger pools report less often.
    pub heartbeats_per_s: u64,
    /// When a silent provider's instances count as lost.
    pub lost_after_ms: u64,
    /// How long finished instances and jobs are shown.
    pub keep_final_ms: u64,
    /// How long an idempotency key is remembered.
    pub keep_remembered_ms: u64,
    /// The leader epoch of this scheduler.
    pub leader: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            heartbeat_ms: 10_000,
            heartbeats_per_s: 500,
            lost_after_ms: 300_000,
            keep_final_ms: 24 * 3_600_000,
            keep_remembered_ms: 24 * 3_600_000,
            leader: 1,
        }
    }
}

/// Everything the scheduler knows.
#[derive(Clone, Debug)]
pub struct State {
    /// Numbers an operator may choose.
    pub options: Options,
    /// Numbers of the whole pool.
    pub meta: Meta,
    /// Tenants.
    pub groups: BTreeMap<GroupId, Group>,
    /// People and robots.
    pub users: BTreeMap<UserId, User>,
    /// Bearer tokens.
    pub tokens: BTreeMap<TokenId, Token>,
    /// Unused join tokens.
    pub joins: BTreeMap<JoinId, Join>,
    /// Lent machines.
    pub providers: BTreeMap<ProviderId, Provider>,
    /// Instances, finished ones included for a while.
    pub instances: BTreeMap<InstanceId, Instance>,
    /// Services.
    pub services: BTreeMap<ServiceId, Service>,
    /// Jobs, finished ones included for a while.
    pub jobs: BTreeMap<JobId, Job>,
    /// Volumes.
    pub volumes: BTreeMap<VolumeId, Volume>,
    /// Secrets, sealed.
    pub secrets: BTreeMap<SecretId, StoredSecret>,
    /// What was used.
    pub usage: BTreeMap<(GroupId, UserId, ProviderId), UsageRecord>,
    /// Idempotency keys.
    pub remembered: BTreeMap<(UserId, String), Remembered>,
    /// Heads of the audit chains: rows and hash.
    pub chains: BTreeMap<GroupId, (u64, String)>,
    pub(super) live: Live,
    pub(super) random: Random,
    dirty: BTreeSet<Key>,
    actions: Vec<Action>,
}

macro_rules! tables {
    ($($map:ident $id:ident $record:ident $kind:ident $mutable:ident $put:ident;)*) => {
        impl State { $(
            pub(super) fn $mutable(&mut self, id: $id) -> Option<&mut $record> {
                self.dirty.insert(Key::$kind(id));
                self.$map.get_mut(&id)
            }
            pub(super) fn $put(&mut self, record: $record) {
                self.dirty.insert(Key::$kind(record.id));
                self.$map.insert(record.id, record);
            }
        )* }
        // The table is uniform; not every kind of record is changed in place.
        $(const _: fn(&mut State, $id) -> Option<&mut $record> = State::$mutable;)*
    };
}

tables! {
    groups GroupId Group Group group_mut put_group;
    users UserId User User user_mut put_user;
    tokens TokenId Token Token token_mut put_token;
    joins JoinId Join Join join_mut put_join;
    providers ProviderId Provider Provider provider_mut put_provider;
    instances InstanceId Instance Instance instance_mut put_instance;
    services ServiceId Service Service service_mut put_service;
    jobs JobId Job Job job_mut put_job;
    volumes VolumeId Volume Volume volume_mut put_volume;
    secrets SecretId StoredSecret Secret secret_mut put_secret;
}

impl State {
    /// Makes an empty pool.
    pub fn new(options: Options, seed: [u8; 32]) -> Self {
        Self {
            options,
            meta: Meta::default(),
            groups: BTreeMap::new(),
            users: BTreeMap::new(),
            tokens: BTreeMap::new(),
            joins: BTreeMap::new(),
            providers: BTreeMap::new(),
            instances: BTreeMap::new(),
            services: BTreeMap::new(),
            jobs: BTreeMap::new(),
            volumes: BTreeMap::new(),
            secrets: BTreeMap::new(),
            usage: BTreeMap::new(),
            remembered: BTreeMap::new(),
            chains: BTreeMap::new(),
            live: Live::default(),
            random: Random::new(seed),
            dirty: BTreeSet::new(),
            actions: Vec::new(),
        }
    }

    /// Rebuilds a pool from its records. Nobody is lost by it: every provider has a full term to report again.
    pub fn load(options: Options, seed: [u8; 32], now_ms: u64, records: impl IntoIterator<Item = Record>) -> Self {
        let mut state = Self::new(options, seed);
        for record in records {
            state.adopt(record);
        }
        let now = now_ms.max(state.meta.now_ms);
        super::live::rebuild(&mut state, now);
        state.dirty.clear();
        state
    }

    fn adopt(&mut self, record: Record) {
        match record {
            Record::Meta(meta) => self.meta = meta,
            Record::Group(record) => drop(self.groups.insert(record.id, record)),
            Record::User(record) => drop(self.users.insert(record.id, record)),
            Record::Token(record) => drop(self.tokens.insert(record.id, record)),
            Record::Join(record) => drop(self.joins.insert(record.id, record)),
            Record::Provider(record) => drop(self.providers.insert(record.id, *record)),
            Record::Instance(record) => drop(self.instances.insert(record.id, *record)),
            Record::Service(record) => drop(self.services.insert(record.id, *record)),
            Record::Job(record) => drop(self.jobs.insert(record.id, *record)),
            Record::Volume(record) => drop(self.volumes.insert(record.id, record)),
            Record::Secret(record) => drop(self.secrets.insert(record.id, record)),
            Record::Usage(record) => {
                self.usage.insert((record.group, record.user, record.provider), record);
            }
            Record::Remembered(user, key, record) => drop(self.remembered.insert((user, key), record)),
            Record::Chain(group, rows, hash) => drop(self.chains.insert(group, (rows, hash))),
        }
    }

    /// Returns the record of a key, as it would be written.
    pub fn record(&self, key: &Key) -> Option<Record> {
        Some(match key {
            Key::Meta => Record::Meta(self.meta),
            Key::Group(id) => Record::Group(self.groups.get(id)?.clone()),
            Key::User(id) => Record::User(self.users.get(id)?.clone()),
            Key::Token(id) => Record::Token(self.tokens.get(id)?.clone()),
            Key::Join(id) => Record::Join(self.joins.get(id)?.clone()),
            Key::Provider(id) => Record::Provider(Box::new(self.providers.get(id)?.clone())),
            Key::Instance(id) => Record::Instance(Box::new(self.instances.get(id)?.clone())),
            Key::Service(id) => Record::Service(Box::new(self.services.get(id)?.clone())),
            Key::Job(id) => Record::Job(Box::new(self.jobs.get(id)?.clone())),
            Key::Volume(id) => Record::Volume(self.volumes.get(id)?.clone()),
            Key::Secret(id) => Record::Secret(self.secrets.get(id)?.clone()),
            Key::Usage(group, user, provider) => Record::Usage(*self.usage.get(&(*group, *user, *provider))?),
            Key::Remembered(user, key) => {
                let found = self.remembered.get(&(*user, key.clone()))?;
                Record::Remembered(*user, key.clone(), found.clone())
            }
            Key::Chain(group) => {
                let (rows, hash) = self.chains.get(group)?;
                Record::Chain(*group, *rows, hash.clone())
            }
        })
    }

    /// Lists every record: what a snapshot holds.
    pub fn records(&self) -> Vec<Record> {
        let keys = self.groups.keys().map(|id| Key::Group(*id));
        let keys = keys.chain(self.users.keys().map(|id| Key::User(*id)));
        let keys = keys.chain(self.tokens.keys().map(|id| Key::Token(*id)));
        let keys = keys.chain(self.joins.keys().map(|id| Key::Join(*id)));
        let keys = keys.chain(self.providers.keys().map(|id| Key::Provider(*id)));
        let keys = keys.chain(self.instances.keys().map(|id| Key::Instance(*id)));
        let keys = keys.chain(self.services.keys().map(|id| Key::Service(*id)));
        let keys = keys.chain(self.jobs.keys().map(|id| Key::Job(*id)));
        let keys = keys.chain(self.volumes.keys().map(|id| Key::Volume(*id)));
        let keys = keys.chain(self.secrets.keys().map(|id| Key::Secret(*id)));
        let keys = keys.chain(self.usage.keys().map(|(group, user, provider)| Key::Usage(*group, *user, *provider)));
        let keys = keys.chain(self.remembered.keys().map(|(user, key)| Key::Remembered(*user, key.clone())));
        let keys = keys.chain(self.chains.keys().map(|group| Key::Chain(*group)));
        keys.chain([Key::Meta]).filter_map(|key| self.record(&key)).collect()
    }

    /// Returns the latest time the core has seen.
    pub fn now_ms(&self) -> u64 {
        self.live.now_ms
    }

    /// Returns when the next timer is due.
    pub fn next_timer_ms(&self) -> Option<u64> {
        self.live.timers.first().map(|(at, _)| *at)
    }

    /// Returns how long a provider may be silent, in milliseconds.
    pub fn term_ms(&self) -> u64 {
        super::provider::term_ms(self)
    }

    /// Returns a provider's facts as they are now.
    pub fn facts(&self, provider: ProviderId) -> BTreeMap<String, Fact> {
        self.live.providers.get(&provider).map(|live| live.facts.clone()).unwrap_or_default()
    }

    /// Returns what is reserved on a provider.
    pub fn reserved(&self, provider: ProviderId) -> Resources {
        self.live.providers.get(&provider).map(|live| live.reserved).unwrap_or_default()
    }

    /// Returns what a group's normal instances reserve.
    pub fn used(&self, group: GroupId) -> Resources {
        self.live.used.get(&group).map(|used| used.resources).unwrap_or_default()
    }

    /// Lists the instances on a provider, given-up ones included.
    pub fn instances_on(&self, provider: ProviderId) -> Vec<InstanceId> {
        let live = self.live.providers.get(&provider);
        live.map(|live| live.allocs.iter().map(|(id, _)| *id).collect()).unwrap_or_default()
    }

    /// Returns why an instance cannot be placed just now.
    pub fn blocked(&self, instance: InstanceId) -> Option<Explanation> {
        self.live.queue.explanation(instance)
    }

    /// Returns counters of things that are not objects.
    pub fn counters(&self) -> &BTreeMap<&'static str, u64> {
        &self.live.counters
    }

    /// Counts instances that wait.
    pub fn waiting(&self) -> usize {
        self.live.queue.len()
    }

    pub(super) fn count(&mut self, what: &'static str) {
        *self.live.counters.entry(what).or_default() += 1;
    }

    pub(super) fn erase(&mut self, key: Key) {
        match &key {
            Key::Meta | Key::Usage(..) | Key::Chain(_) => return,
            Key::Group(id) => drop(self.groups.remove(id)),
            Key::User(id) => drop(self.users.remove(id)),
            Key::Token(id) => drop(self.tokens.remove(id)),
            Key::Join(id) => drop(self.joins.remove(id)),
            Key::Provider(id) => drop(self.providers.remove(id)),
            Key::Instance(id) => drop(self.instances.remove(id)),
            Key::Service(id) => drop(self.services.remove(id)),
            Key::Job(id) => drop(self.jobs.remove(id)),
            Key::Volume(id) => drop(self.volumes.remove(id)),
            Key::Secret(id) => drop(self.secrets.remove(id)),
            Key::Remembered(user, text) => drop(self.remembered.remove(&(*user, text.clone()))),
        }
        self.dirty.insert(key);
    }

    pub(super) fn touch(&mut self, key: Key) {
        self.dirty.insert(key);
    }

    pub(super) fn act(&mut self, action: Action) {
        self.actions.push(action);
    }

    pub(super) fn answer(&mut self, ticket: u64, outcome: Result<Answer, Refusal>) {
        self.actions.push(Action::Answer(ticket, Box::new(outcome)));
    }

    pub(super) fn notice(&mut self, now: u64, group: GroupId, kind: &str, subject: String, text: String) {
        self.meta.notice += 1;
        self.dirty.insert(Key::Meta);
        let notice = Notice { seq: self.meta.notice, at_ms: now, group, kind: kind.to_owned(), subject, text };
        self.actions.push(Action::Notice(Box::new(notice)));
    }

    /// Ends a step: noted keys become writes, writes come first.
    pub(super) fn drain(&mut self, now: u64) -> Vec<Action> {
        let later = std::mem::take(&mut self.actions);
        if self.dirty.is_empty() {
            return later;
        }
        self.meta.now_ms = now;
        self.dirty.insert(Key::Meta);
        let dirty = std::mem::take(&mut self.dirty);
        let writes = dirty.into_iter().map(|key| match self.record(&key) {
            Some(record) => Action::Write(key, Box::new(record)),
            None => Action::Erase(key),
        });
        writes.chain(later).collect()
    }
}
