//! Commands that change instances: `pool stop`, `pool start` and `pool rm`.

use std::time::{Duration, Instant};

use clap::Args;
use coracle_scheduler::client::Pool;
use serde_json::{Value, json};

use super::{ask, word};
use crate::cli::error::{CliError, line, note};

/// How often an instance is looked at while somebody waits for it.
const LOOK: Duration = Duration::from_millis(100);
/// Time in which an end is awaited: more than the grace that people give.
const PATIENCE: Duration = Duration::from_secs(60);

/// Stop instances and keep their data; pool start starts them again
#[derive(Args)]
pub struct StopArgs {
    #[command(flatten)]
    which: Which,
}

/// Start instances again that were stopped, with their data
#[derive(Args)]
pub struct StartArgs {
    #[command(flatten)]
    which: Which,
}

/// Remove instances and their data
#[derive(Args)]
pub struct RmArgs {
    /// Also those that run
    #[arg(short, long)]
    force: bool,
    #[command(flatten)]
    which: Which,
}

/// Move an instance to another provider, with everything it has written
///
/// It is stopped, its writable layer and its own volumes are carried over, and it is started again if it ran. The old
/// copy is removed when the new provider has all of it; until then it is what counts.
#[derive(Args)]
pub struct MoveArgs {
    /// Only to this provider, by name or id
    #[arg(long, value_name = "PROVIDER")]
    to: Option<String>,
    /// Do not wait until it is there
    #[arg(long)]
    no_wait: bool,
    /// Name or id
    instance: String,
}

#[derive(Args)]
struct Which {
    /// Names or ids
    #[arg(required = true, value_name = "INSTANCE")]
    instances: Vec<String>,
    /// Do not wait until it is done
    #[arg(long)]
    no_wait: bool,
}

impl Which {
    /// Does something to each; one that cannot be changed does not keep the others.
    fn each(&self, work: impl Fn(&str) -> Result<(), CliError>) -> Result<(), CliError> {
        let mut failed = None;
        for wanted in &self.instances {
            match work(wanted) {
                Ok(()) => line(wanted),
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(()), Err)
    }
}

fn path(found: &Value) -> String {
    format!("/v1/instances/{}", word(found, "id"))
}

/// Stops instances.
pub fn stop(pool: &Pool, args: &StopArgs) -> Result<(), CliError> {
    args.which.each(|wanted| {
        let path = path(&pool.find("/v1/instances", "instance", wanted)?);
        pool.post(&format!("{path}/stop"), &Value::Null)?;
        if args.which.no_wait { Ok(()) } else { wait(pool, &path, wanted, &["halted", "stopped", "failed"]) }
    })
}

/// Starts instances again.
pub fn start(pool: &Pool, args: &StartArgs) -> Result<(), CliError> {
    args.which.each(|wanted| {
        let found = pool.find("/v1/instances", "instance", wanted)?;
        pool.post(&format!("{}/start", path(&found)), &Value::Null)?;
        if args.which.no_wait { Ok(()) } else { ask::wait_until_it_runs(pool, &found, false).map(drop) }
    })
}

/// Removes instances.
pub fn rm(pool: &Pool, args: &RmArgs) -> Result<(), CliError> {
    args.which.each(|wanted| {
        let found = pool.find("/v1/instances", "instance", wanted)?;
        if !args.force && matches!(word(&found, "state"), "running" | "unknown" | "pulling" | "placed") {
            let state = word(&found, "state");
            return Err(CliError::message(format!("{wanted} is {state}: stop it first, or remove it with --force")));
        }
        let path = path(&found);
        pool.delete(&path)?;
        if args.which.no_wait { Ok(()) } else { wait(pool, &path, wanted, &["stopped", "failed"]) }
    })
}

/// Moves an instance, and waits until it is there or stays where it was.
pub fn migrate(pool: &Pool, args: &MoveArgs) -> Result<(), CliError> {
    let found = pool.find("/v1/instances", "instance", &args.instance)?;
    let to = args.to.as_ref().map(|to| pool.find("/v1/providers", "provider", to)).transpose()?;
    let before = found["alloc"]["provider"].clone();
    let to = to.map_or(Value::Null, |to| to["id"].clone());
    let path = path(&found);
    pool.post(&format!("{path}/move"), &json!({ "to": to }))?;
    if !args.no_wait {
        arrive(pool, &path, &args.instance, &before)?;
    }
    line(&args.instance);
    Ok(())
}

/// Waits until an instance is elsewhere than before, or is not going to be.
fn arrive(pool: &Pool, path: &str, name: &str, before: &Value) -> Result<(), CliError> {
    let mut said = String::new();
    loop {
        let now = pool.get(path)?;
        let (state, reason) = (word(&now, "state"), word(&now, "reason"));
        let settled = now["moving"].is_null() && matches!(state, "running" | "halted" | "stopped" | "failed" | "lost");
        if settled && now["alloc"]["provider"] != *before && matches!(state, "running" | "halted") {
            return Ok(());
        }
        if settled {
            let why = now["alloc"]["explanation"]["hints"][0].as_str().unwrap_or(reason);
            return Err(CliError::message(format!("{name} has not moved and is {state}: {why}")));
        }
        if said != reason {
            said = reason.to_owned();
            note(&format!("note: {state}: {reason}"));
        }
        std::thread::sleep(LOOK);
    }
}

/// Waits until an instance is in one of these states.
pub fn wait(pool: &Pool, path: &str, wanted: &str, states: &[&str]) -> Result<(), CliError> {
    let start = Instant::now();
    while !states.contains(&word(&pool.get(path)?, "state")) {
        // An instance on a provider that is away cannot change now.
        if start.elapsed() > PATIENCE {
            return Err(CliError::message(format!("{wanted} is told to, but its provider has not answered yet")));
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// Empties a provider, or lets new work in again.
pub fn drain(pool: &Pool, provider: &str, within_s: Option<u64>) -> Result<(), CliError> {
    let provider = pool.find("/v1/providers", "provider", provider)?;
    let path = format!("/v1/providers/{}/drain", word(&provider, "id"));
    match within_s {
        None => pool.delete(&path)?,
        Some(seconds) => pool.post(&path, &json!({ "within_ms": seconds.saturating_mul(1000) }))?,
    };
    Ok(())
}
