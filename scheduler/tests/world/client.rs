//! A client that makes and removes things, repeats what got no answer, and remembers what was acknowledged.

use std::collections::BTreeSet;

use coracle_scheduler::core::{Answer, Wish};
use coracle_scheduler::model::*;

use super::World;

#[derive(Default)]
pub struct Client {
    pub admin: Option<Actor>,
    left: u64,
    batch: u64,
    number: u64,
    /// A wish without an answer, with its key.
    open: Vec<(Wish, String)>,
    /// Objects whose making was acknowledged.
    pub acknowledged: BTreeSet<Key>,
    services: Vec<ServiceId>,
}

impl Client {
    pub fn set_up(&mut self, instances: u64) {
        self.left = instances;
        self.batch = instances.div_ceil(20);
    }
}

fn spec(world: &mut World) -> InstanceSpec {
    let on_loss = match world.dice.below(4) {
        0 => OnLoss::Keep,
        1 => OnLoss::StopAfter { after_ms: 30_000 },
        _ => OnLoss::Replace,
    };
    let mut spec = InstanceSpec {
        image: "alpine:3".to_owned(),
        resources: Resources {
            cpu_millis: 100 + world.dice.below(400),
            memory_bytes: (64 + world.dice.below(256)) << 20,
            disk_bytes: 1 << 30,
            ..Resources::default()
        },
        on_loss,
        priority: Some(u8::try_from(world.dice.below(101)).unwrap_or(50)),
        preempts: world.dice.chance(200),
        restart: if world.dice.chance(500) { Restart::Always } else { Restart::OnFailure { max: 3 } },
        ..InstanceSpec::default()
    };
    if world.dice.chance(100) {
        spec.resources.cpu_millis = 4_000;
    }
    if world.dice.chance(200) {
        spec.class = Class::Backfill;
    }
    if world.dice.chance(200) {
        spec.constraints.push("zone==eu".to_owned());
    }
    if world.dice.chance(100) {
        spec.constraints.push("zone==~us".to_owned());
    }
    spec.strategy = [Strategy::Spread, Strategy::Binpack, Strategy::Random, Strategy::Reliable, Strategy::Cheapest]
        [world.dice.below(5) as usize];
    spec
}

fn wish(world: &mut World, group: GroupId) -> (Wish, u64) {
    let large = world.options.providers >= 100;
    let number = world.client.number;
    let name: Name = format!("n{number}").parse().unwrap_or_else(|error| panic!("{error}"));
    let template = spec(world);
    match if large { 0 } else { world.dice.below(6) } {
        0 if large => {
            let count = u32::try_from(world.client.left.min(5_000)).unwrap_or(1);
            let spec = JobSpec {
                name,
                template: InstanceSpec { restart: Restart::Never, ..template },
                count: Some(count),
                parallel: Some(count),
                retries: 2,
                time_limit_ms: None,
                depends_on: Vec::new(),
                gang: false,
            };
            (Wish::CreateJob { group, spec: Box::new(spec) }, u64::from(count))
        }
        1 => {
            let gang = world.dice.chance(500);
            let spec = JobSpec {
                name,
                template,
                count: Some(3),
                parallel: None,
                retries: 1,
                time_limit_ms: world.dice.chance(300).then_some(100_000),
                depends_on: Vec::new(),
                gang,
            };
            (Wish::CreateJob { group, spec: Box::new(spec) }, 3)
        }
        2 => {
            let global = world.dice.chance(300);
            let spec = ServiceSpec { name, template, replicas: 3, global, max_parallel: Some(2), healthy_ms: 5_000 };
            (Wish::CreateService { group, spec: Box::new(spec) }, 3)
        }
        _ => (Wish::CreateInstance { group, name: Some(name), spec: Box::new(template) }, 1),
    }
}

/// Does a few things.
pub fn act(world: &mut World) {
    let Some(admin) = world.client.admin else { return };
    for (wish, key) in std::mem::take(&mut world.client.open) {
        submit(world, admin, wish, key);
    }
    let mut batch = world.client.batch;
    while batch > 0 && world.client.left > 0 {
        world.client.number += 1;
        let (wish, made) = wish(world, admin.group);
        world.client.left = world.client.left.saturating_sub(made);
        batch = batch.saturating_sub(made);
        let key = format!("key{}", world.client.number);
        submit(world, admin, wish, key);
    }
    if world.options.providers < 100 {
        disturb(world, admin);
    }
}

fn submit(world: &mut World, admin: Actor, wish: Wish, key: String) {
    match world.ask_with_key(Some(admin), wish.clone(), Some(key.clone())) {
        None => world.client.open.push((wish, key)),
        Some(Ok(Answer::Object(made))) => {
            if let Key::Service(id) = made {
                world.client.services.push(id);
            }
            assert!(world.client.acknowledged.insert(made), "one object for two keys");
        }
        Some(other) => panic!("{wish:?} was answered with {other:?}"),
    }
}

/// Stops, drains, updates and removes now and then.
fn disturb(world: &mut World, admin: Actor) {
    if world.dice.chance(200) {
        let ids: Vec<InstanceId> = world.state.instances.keys().copied().collect();
        if !ids.is_empty() {
            let id = ids[world.dice.below(ids.len() as u64) as usize];
            world.ask(Some(admin), Wish::DeleteInstance { id });
        }
    }
    if world.dice.chance(300) {
        let own = world.state.instances.values().filter(|found| found.owner == Owner::User && found.alloc.is_some());
        let own: Vec<(InstanceId, bool)> =
            own.filter(|found| !found.state.is_final()).map(|found| (found.id, found.halt)).collect();
        if !own.is_empty() {
            let (id, halted) = own[world.dice.below(own.len() as u64) as usize];
            let change = if halted { Wish::ResumeInstance { id } } else { Wish::HaltInstance { id } };
            let moves = world.dice.chance(400);
            world.ask(Some(admin), if moves { Wish::MoveInstance { id, to: None } } else { change });
        }
    }
    let provider = world.agents[world.dice.below(world.options.providers) as usize].id;
    if world.dice.chance(50) {
        world.ask(Some(admin), Wish::Drain { id: provider, within_ms: 20_000 });
    }
    if world.dice.chance(400) || !world.faults {
        let drained = world.state.providers.values().find(|found| found.drain.is_some()).map(|found| found.id);
        if let Some(id) = drained {
            world.ask(Some(admin), Wish::Undrain { id });
        }
    }
    if world.dice.chance(100) && !world.client.services.is_empty() {
        let id = world.client.services[world.dice.below(world.client.services.len() as u64) as usize];
        if let Some(service) = world.state.services.get(&id).cloned() {
            let mut spec = service.spec;
            spec.template.labels.insert("v".to_owned(), world.now.to_string());
            world.ask(Some(admin), Wish::UpdateService { id, spec: Box::new(spec) });
        }
    }
}
