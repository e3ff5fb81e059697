//! What an ordinary user's bundle leaves out: a user namespace, and the ids in it.
//!
//! crun starts such bundles and runc refuses them. Without a user namespace an ordinary user can make
//! none of the others, so there is only one thing the bundle can mean.

use coracle_runtime::bundle::{self, Config, Limits};
use coracle_runtime::idmap::{self, HostIds, IdRange, UserNs};
use serde_json::{Value, json};

use super::error::OciError;

/// Adds a user namespace, and the caller's ids as coracle maps them by default, where they are missing.
/// The completed text is what later commands read. Root's bundles stay as they are.
pub fn complete(config: Config, what: &str, limits: Limits) -> Result<Config, OciError> {
    let Some(linux) = config.spec.linux() else {
        return Ok(config);
    };
    let namespaces = linux.namespaces().as_deref().unwrap_or_default();
    let user = namespaces.iter().find(|one| one.typ() == oci_spec::runtime::LinuxNamespaceType::User);
    let joins = user.is_some_and(|one| one.path().is_some());
    let mapped = linux.uid_mappings().as_ref().is_some_and(|list| !list.is_empty());
    if rustix::process::geteuid().is_root() || joins || (user.is_some() && mapped) {
        return Ok(config);
    }
    let missing = user.is_none();
    let map = idmap::choose(UserNs::Auto, &HostIds::probe()?)?;
    let mut value: Value = serde_json::from_slice(&config.text).unwrap_or_default();
    let linux = &mut value["linux"];
    if missing {
        let mut list = linux["namespaces"].as_array().cloned().unwrap_or_default();
        list.push(json!({"type": "user"}));
        linux["namespaces"] = Value::Array(list);
    }
    if !mapped {
        linux["uidMappings"] = mappings(&map.uids);
        linux["gidMappings"] = mappings(&map.gids);
    }
    let mut completed = bundle::parse(value.to_string().into_bytes(), what, limits)?;
    completed.warnings = config.warnings;
    if missing {
        completed.warnings.push("an ordinary user's container needs a user namespace: one was added".to_owned());
    }
    Ok(completed)
}

fn mappings(ranges: &[IdRange]) -> Value {
    let one = |range: &IdRange| json!({"containerID": range.container, "hostID": range.host, "size": range.size});
    ranges.iter().map(one).collect()
}
