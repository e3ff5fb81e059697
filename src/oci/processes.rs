//! `ps`, and which processes are a container's.

use std::process::ExitCode;

use coracle_runtime::container::{Id, Identity, State, Status};

use super::Context;
use super::arguments::{Given, Grammar, Words, valued};
use super::error::OciError;
use super::list::{print, wants_json};

/// The most entries of /proc that are looked at: the kernel's largest pid_max.
const PROCESSES_MAX: usize = 1 << 22;

/// `ps`.
pub const PS: Grammar = Grammar {
    name: "ps",
    about: "List the processes of a container, by their numbers on the host",
    flags: &[&[valued("format", "FORMAT", "Print a table or json [default: table]").short('f')]],
    words: Words::Id,
};

/// Runs `ps`.
pub fn ps(context: &Context, given: &Given) -> Result<ExitCode, OciError> {
    let id: Id = given.id()?.parse()?;
    let json = wants_json(given)?;
    let container = context.place.container(&id)?;
    let state = container.state()?;
    let status = container.status(state.as_ref())?;
    let Some(state) = state.filter(|_| status != Status::Stopped) else {
        return Err(OciError::Status { verb: "list the processes of", id, status });
    };
    let numbers = of(&state)?;
    if json {
        print(&serde_json::to_string(&numbers).map_err(OciError::Json)?);
    } else {
        let lines = numbers.iter().map(i32::to_string);
        print(&std::iter::once("PID".to_owned()).chain(lines).collect::<Vec<String>>().join("\n"));
    }
    Ok(ExitCode::SUCCESS)
}

/// The processes of a container in ascending order: those of its cgroup, else of its pid namespace.
pub fn of(state: &State) -> Result<Vec<i32>, OciError> {
    if let Some(cgroup) = state.cgroup()? {
        return Ok(cgroup.processes()?);
    }
    let mut numbers: Vec<i32> = in_namespace(&state.init).into_iter().map(|process| process.pid).collect();
    if state.init.is_alive()? && !numbers.contains(&state.init.pid) {
        numbers.push(state.init.pid);
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Every process of the container's pid namespace that can be found.
///
/// Where the container shares the caller's namespace only its first process is known to be its own.
pub fn in_namespace(init: &Identity) -> Vec<Identity> {
    let namespace = |pid: i32| fs_err::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let Some(wanted) = namespace(init.pid) else {
        return Vec::new();
    };
    if fs_err::read_link("/proc/self/ns/pid").is_ok_and(|own| own == wanted) {
        return Vec::new();
    }
    let Ok(entries) = fs_err::read_dir("/proc") else {
        return Vec::new();
    };
    let numbers = entries
        .take(PROCESSES_MAX)
        .flatten()
        .filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()));
    // Identified before it is looked at, so that who is looked at is who is meant.
    numbers
        .filter_map(|pid| Identity::of(pid).ok())
        .filter(|process| namespace(process.pid).as_ref() == Some(&wanted) && process.is_alive().unwrap_or(false))
        .collect()
}
