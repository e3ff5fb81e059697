//! Changes of a container that exists: its limits, at once where it runs, and its restart policy.

use coracle_runtime::cgroup;
use oci_spec::runtime::LinuxResources;
use serde_json::Value;

use super::confinement::{self, LIMITS_FILE};
use super::containers::{self, Container, read_json};
use super::limits::{self, LimitOptions};
use super::networks::{Rate, connect};
use super::record::RestartPolicy;
use super::{Engine, EngineError, container, events};

/// What is to be different.
#[derive(Debug, Default)]
pub struct UpdateOptions {
    pub limits: LimitOptions,
    pub restart: Option<RestartPolicy>,
    pub net_rate: Option<Rate>,
}

/// Says why a container cannot be changed.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    #[error("nothing to change: give a limit, --net-rate or --restart")]
    Nothing,
    #[error("container {0} runs without a cgroup, so its limits cannot change before it starts again")]
    NoCgroup(String),
    #[error("limits have no form of the runtime specification")]
    Form(#[source] serde_json::Error),
}

/// Changes one container; what the kernel refuses changes nothing. Limits that are only wished for and do not
/// hold are told to `note`.
pub fn update(
    engine: &Engine,
    wanted: &str,
    options: &UpdateOptions,
    note: &mut dyn FnMut(&str),
) -> Result<(), EngineError> {
    let facts = limits::Facts { processors: &limits::processors, device: &limits::block_device };
    let resources = options.limits.resources(&facts)?;
    if resources.is_none() && options.restart.is_none() && options.net_rate.is_none() {
        return Err(UpdateError::Nothing.into());
    }
    let found = containers::find(engine.root(), wanted)?;
    let gone = || EngineError::UnknownContainer(wanted.to_owned());
    containers::edit(engine.root(), found.id(), |edited| {
        if let Some(policy) = options.restart {
            if edited.record.auto_remove && policy != RestartPolicy::No {
                return Err(EngineError::RestartOrRemove);
            }
            edited.record.restart = policy;
        }
        if let Some(rate) = options.net_rate {
            let now = Container::read(engine.root(), found.id())?.ok_or_else(gone)?;
            connect::change_rate(&mut edited.record.network, rate, &now)?;
        }
        if let Some(resources) = &resources {
            // Read again: now nobody else changes it.
            let now = Container::read(engine.root(), found.id())?.ok_or_else(gone)?;
            // The next start gets the same limits and must not fail for them either.
            edited.record.best_effort_limits |= options.limits.best_effort;
            if now.init().is_some() {
                change(&now, resources, options.limits.best_effort, note)?;
            }
            keep(&now, serde_json::to_value(resources).map_err(UpdateError::Form)?)?;
        }
        Ok(())
    })?;
    events::emit_container(engine.root(), &found.record, "update", &[]);
    Ok(())
}

/// Changes the limits of a container that runs.
fn change(
    now: &Container,
    resources: &LinuxResources,
    best_effort: bool,
    note: &mut dyn FnMut(&str),
) -> Result<(), EngineError> {
    let cgroup = now.state.as_ref().and_then(|state| state.cgroup.as_ref());
    let Some(mut cgroup) = cgroup.cloned() else {
        if !best_effort {
            return Err(UpdateError::NoCgroup(now.record.called().to_owned()).into());
        }
        let states = cgroup::unenforced(resources, "the container runs without a cgroup");
        confinement::tell(&states, note);
        return Ok(container::publish_json(&now.path, LIMITS_FILE, &states, true)?);
    };
    confinement::tell(&cgroup.update(resources, best_effort)?, note);
    Ok(container::publish_json(&now.path, LIMITS_FILE, &cgroup.limits(), true)?)
}

/// Writes the limits where the next start reads them.
fn keep(container: &Container, resources: Value) -> Result<(), EngineError> {
    let missing = || EngineError::NoBundle(container.record.called().to_owned());
    let mut spec: Value = read_json(&container.path.join("config.json")).ok_or_else(missing)?;
    merge(&mut spec["linux"]["resources"], resources);
    Ok(container::publish_json(&container.path, "config.json", &spec, true)?)
}

/// Puts new values over old ones; what is not named stays.
fn merge(old: &mut Value, new: Value) {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            for (key, value) in new {
                merge(old.entry(key).or_insert(Value::Null), value);
            }
        }
        (_, Value::Null) => {}
        (old, new) => *old = new,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_not_named_stays() {
        let mut old = json!({"memory": {"limit": 1, "swap": 2}, "pids": {"limit": 3}});
        merge(&mut old, json!({"memory": {"limit": 9, "swap": null}, "cpu": {"shares": 4}}));
        assert_eq!(old, json!({"memory": {"limit": 9, "swap": 2}, "pids": {"limit": 3}, "cpu": {"shares": 4}}));
        let mut none = Value::Null;
        merge(&mut none, json!({"pids": {"limit": 3}}));
        assert_eq!(none, json!({"pids": {"limit": 3}}));
    }
}
