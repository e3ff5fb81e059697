//! `network connect` and `disconnect`: in the container's record, and at once where it runs.

use std::net::IpAddr;

use super::error::NetworksError;
use super::link::{Question, Reply};
use super::plan::{Attachment, NetworksPlan};
use super::rate::Rate;
use super::{record, watch};
use crate::engine::containers::{self, Container};
use crate::engine::network::{self, OUTSIDE_DEVICE, OutsidePlan, Plan};
use crate::engine::{Engine, EngineError, events};
use coracle_runtime::programs;

/// Puts a container into one more network.
pub fn connect(engine: &Engine, wanted: &str, attachment: &Attachment) -> Result<(), EngineError> {
    let network = record::find(engine.root(), &attachment.network)?;
    let attachment = Attachment { network: network.name.clone(), ..attachment.clone() };
    for ip in &attachment.ips {
        record::check_address(&network, *ip)?;
    }
    let found = containers::find(engine.root(), wanted)?;
    containers::edit(engine.root(), found.id(), |edited| {
        let called = edited.record.called().to_owned();
        let now = running(engine, &found);
        let plan = networks(&mut edited.record.network, now.is_some(), &called)?;
        if plan.attachments.iter().any(|one| one.network == network.name) {
            return Err(NetworksError::Joined { container: called, network: network.name.clone() }.into());
        }
        if plan.outside.is_none() && !network.internal {
            plan.outside = Some(network::named_outside(&[], &programs::find)?.0);
        }
        if let Some(now) = &now {
            let outside = plan.outside.clone();
            obey(now, &Question::Connect { attachment: attachment.clone(), outside })?;
        }
        plan.attachments.push(attachment.clone());
        Ok(())
    })?;
    events::emit(engine.root(), events::Kind::Network, "connect", &network.name, &[("container", found.id())]);
    Ok(())
}

/// Takes a container out of a network.
pub fn disconnect(engine: &Engine, wanted: &str, network: &str, force: bool) -> Result<(), EngineError> {
    let name = record::find(engine.root(), network).map(|record| record.name);
    let name = if force { name.unwrap_or_else(|_| network.to_owned()) } else { name? };
    let found = containers::find(engine.root(), wanted)?;
    containers::edit(engine.root(), found.id(), |edited| {
        let missing = NetworksError::NotJoined { container: edited.record.called().to_owned(), network: name.clone() };
        let Plan::Networks(plan) = &mut edited.record.network else { return Err(missing.into()) };
        if plan.rate.is_some() {
            return Err(NetworksError::RateNeedsOne.into());
        }
        let place = plan.attachments.iter().position(|one| one.network == name);
        plan.attachments.remove(place.ok_or(missing)?);
        match running(engine, &found) {
            Some(now) => obey(&now, &Question::Disconnect { network: name.clone() }),
            None => Ok(()),
        }
    })?;
    events::emit(engine.root(), events::Kind::Network, "disconnect", &name, &[("container", found.id())]);
    Ok(())
}

/// Changes a container's rate, at once where it runs; the caller keeps the record.
pub fn change_rate(plan: &mut Plan, rate: Rate, now: &Container) -> Result<(), EngineError> {
    let called = || NetworksError::NoRate(now.record.called().to_owned());
    let Plan::Networks(plan) = plan else { return Err(called().into()) };
    let changed = plan.rate.ok_or_else(called)?.changed(rate);
    if now.init().is_some() {
        obey(now, &Question::Rate { rate: changed })?;
    }
    plan.rate = Some(changed);
    Ok(())
}

/// Gives the packets that a rate dropped, to the container and from it; 0 where there is none.
pub fn drops(container: &Container) -> (u64, u64) {
    let rated = matches!(&container.record.network, Plan::Networks(plan) if plan.rate.is_some());
    match rated.then(|| watch::ask_link(container, &Question::Drops)) {
        Some(Ok(Some(Reply::Drops { to, from }))) => (to, from),
        _ => (0, 0),
    }
}

fn running(engine: &Engine, found: &Container) -> Option<Container> {
    Container::read(engine.root(), found.id()).ok().flatten().filter(|now| now.init().is_some())
}

fn networks<'a>(plan: &'a mut Plan, runs: bool, called: &str) -> Result<&'a mut NetworksPlan, NetworksError> {
    if let Plan::Pasta(pasta) = plan
        && !runs
    {
        let outside = OutsidePlan { device: Some(OUTSIDE_DEVICE.to_owned()), ..pasta.clone() };
        *plan = Plan::Networks(NetworksPlan::of_default(outside));
    }
    match plan {
        Plan::Networks(plan) if plan.rate.is_some() => Err(NetworksError::RateNeedsOne),
        Plan::Networks(plan) => Ok(plan),
        _ => Err(NetworksError::NotConnectable(called.to_owned())),
    }
}

fn obey(container: &Container, question: &Question) -> Result<(), EngineError> {
    match watch::ask_link(container, question)? {
        Some(Reply::Refused { reason }) => Err(NetworksError::Link(reason).into()),
        Some(_) => Ok(()),
        None => Err(NetworksError::NotConnectable(container.record.called().to_owned()).into()),
    }
}

/// Gives the addresses of the containers that are in a network now.
pub fn members(root: &std::path::Path, network: &str) -> Vec<(String, Vec<IpAddr>)> {
    let path = record::directory(root, network).join(super::holder::MEMBERS_FILE);
    let members: Vec<super::names::Member> = containers::read_json(&path).unwrap_or_default();
    members.into_iter().map(|member| (member.container, member.ips)).collect()
}
