//! A container's cgroup: made before its first process, asked and removed after its end.

use coracle_runtime::cgroup::{self, Cgroup, Kind, LimitState, Request};
use oci_spec::runtime::Spec;

use super::EngineError;
use super::container::ContainerDir;
use super::record::Record;

/// What became of each limit, in a container's directory: a list of [`LimitState`].
pub const LIMITS_FILE: &str = "limits.json";

/// Makes the cgroup and puts the limits on it; a limit that cannot be enforced is an error unless the
/// record says otherwise, and then it is told to `note`.
///
/// With `accounted` there is one wherever one can be had, else only where a limit was asked for.
pub fn make(
    directory: &ContainerDir,
    record: &Record,
    spec: &Spec,
    accounted: bool,
    note: &mut dyn FnMut(&str),
) -> Result<Option<Cgroup>, EngineError> {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    if !accounted && resources.is_none() {
        return Ok(None);
    }
    let best_effort = record.best_effort_limits;
    let made = cgroup::make(&Request { kind: Kind::Auto, id: &directory.id, path: None, resources, best_effort })?;
    tell(&made.limits, note);
    if !made.limits.is_empty() {
        publish(directory, &made.limits)?;
    }
    Ok(made.cgroup)
}

/// Says which limits do not hold.
pub fn tell(limits: &[LimitState], note: &mut dyn FnMut(&str)) {
    for state in limits.iter().filter(|state| !state.enforced) {
        note(&format!("{} is not enforced: {}", state.name, state.why.as_deref().unwrap_or("for no known reason")));
    }
}

/// Writes down what became of the limits.
pub fn publish(directory: &ContainerDir, limits: &[LimitState]) -> Result<(), EngineError> {
    Ok(directory.publish(LIMITS_FILE, &limits)?)
}

/// Says after its end whether the kernel killed any of it for want of memory, and removes the cgroup.
///
/// Nothing of it is left running: what escaped from its pid namespace is still in its cgroup (F11).
pub fn end(cgroup: &Cgroup) -> bool {
    // Before it goes: these numbers go with it (F10). Whatever fails here, the container has ended.
    let killed = cgroup.oom_kills().is_ok_and(|count| count > 0);
    let _ = cgroup.kill();
    let _ = cgroup.remove();
    killed
}
