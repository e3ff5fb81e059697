//! Commands that change instances: `pool run` and `pool stop`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use coracle_scheduler::client::Pool;
use coracle_scheduler::model::{InstanceSpec, Name, Port, Resources, Restart, Strategy};
use serde_json::{Value, json};

use crate::cli::error::{CliError, line, note};
use crate::engine::limits::parse_nano_cpus;
use crate::engine::size::parse_size_bytes;

/// How often an instance is looked at while somebody waits for it.
const LOOK: Duration = Duration::from_millis(100);
/// Time in which a stop is awaited: more than the grace that people give.
const STOP_PATIENCE: Duration = Duration::from_secs(60);

/// Ask for an instance and wait until it runs; prints its name
#[derive(Args)]
pub struct RunArgs {
    /// Name of the instance [default: made up]
    #[arg(long, value_name = "NAME")]
    name: Option<Name>,
    /// Do not wait until it runs
    #[arg(short, long)]
    detach: bool,
    /// Tell where it would be placed, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Set NAME=VALUE in its environment; constraint:… and affinity:… are taken as in Docker Swarm
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Give it a label
    #[arg(short, long, value_name = "NAME=VALUE")]
    label: Vec<String>,
    /// Only providers of which this is true, e.g. 'memory>=8GiB' or 'arch==x86_64'
    #[arg(long, value_name = "EXPRESSION")]
    constraint: Vec<String>,
    /// Near or far from other instances, e.g. 'container==db'
    #[arg(long, value_name = "EXPRESSION")]
    affinity: Vec<String>,
    /// How to choose among those that match
    #[arg(long, value_enum, default_value = "spread")]
    strategy: Choice,
    /// Processors, e.g. 0.5
    #[arg(long, value_name = "NUMBER")]
    cpus: Option<String>,
    /// Memory, e.g. 512m
    #[arg(short, long, value_name = "SIZE")]
    memory: Option<String>,
    /// Disk, e.g. 2g
    #[arg(long, value_name = "SIZE")]
    disk: Option<String>,
    /// A port of the provider for a port of the instance
    #[arg(short, long, value_name = "HOST:CONTAINER", value_parser = port)]
    publish: Vec<Port>,
    /// Start it again when it has ended: no, on-failure[:N] or always
    #[arg(long, value_name = "POLICY", default_value = "no", value_parser = restart)]
    restart: Restart,
    /// End it after so many seconds [default: seven days]
    #[arg(long, value_name = "SECONDS")]
    ttl: Option<u64>,
    /// 0 to 100; larger goes first [default: 50]
    #[arg(long, value_name = "NUMBER")]
    priority: Option<u8>,
    /// The image
    image: String,
    /// Command and arguments [default: the image's]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Choice {
    /// The least loaded
    Spread,
    /// The most loaded that has room
    Binpack,
    /// Any
    Random,
    /// The one with the fewest troubles
    Reliable,
    /// The one with the lowest price
    Cheapest,
}

/// Stop instances, which ends them for the pool
#[derive(Args)]
pub struct StopArgs {
    /// Names or ids
    #[arg(required = true, value_name = "INSTANCE")]
    instances: Vec<String>,
    /// Do not wait until they have ended
    #[arg(long)]
    no_wait: bool,
}

fn port(text: &str) -> Result<Port, String> {
    let (host, container) = text.split_once(':').ok_or("expected HOST:CONTAINER")?;
    let number = |text: &str| text.parse().map_err(|_| format!("{text:?} is no port"));
    Ok(Port { host: number(host)?, container: number(container)? })
}

fn restart(text: &str) -> Result<Restart, String> {
    match text.split_once(':') {
        None if text == "no" => Ok(Restart::Never),
        None if text == "always" => Ok(Restart::Always),
        None if text == "on-failure" => Ok(Restart::OnFailure { max: coracle_scheduler::model::limits::RESTARTS }),
        Some(("on-failure", max)) => {
            max.parse().map(|max| Restart::OnFailure { max }).map_err(|_| format!("{max:?} is no number"))
        }
        _ => Err("expected no, on-failure[:N] or always".to_owned()),
    }
}

fn spec(args: &RunArgs) -> Result<InstanceSpec, CliError> {
    let bytes = |size: &Option<String>| size.as_deref().map_or(Ok(0), parse_size_bytes);
    let nanos = args.cpus.as_deref().map_or(Ok(0), parse_nano_cpus)?;
    let label = |text: &String| {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        (name.to_owned(), value.to_owned())
    };
    Ok(InstanceSpec {
        image: args.image.clone(),
        command: args.command.clone(),
        env: args.env.clone(),
        labels: args.label.iter().map(label).collect(),
        resources: Resources {
            cpu_millis: nanos / 1_000_000,
            memory_bytes: bytes(&args.memory)?,
            disk_bytes: bytes(&args.disk)?,
            ..Resources::default()
        },
        ports: args.publish.clone(),
        constraints: args.constraint.clone(),
        affinities: args.affinity.clone(),
        strategy: match args.strategy {
            Choice::Spread => Strategy::Spread,
            Choice::Binpack => Strategy::Binpack,
            Choice::Random => Strategy::Random,
            Choice::Reliable => Strategy::Reliable,
            Choice::Cheapest => Strategy::Cheapest,
        },
        restart: args.restart,
        ttl_ms: args.ttl.map(|seconds| seconds.saturating_mul(1000)),
        priority: args.priority,
        ..InstanceSpec::default()
    })
}

/// Asks for an instance.
pub fn run(pool: &Pool, args: RunArgs) -> Result<ExitCode, CliError> {
    let mut body = json!({ "spec": spec(&args)? });
    if let Some(name) = &args.name {
        body["name"] = json!(name);
    }
    if args.dry_run {
        crate::cli::table::print_json(&pool.post("/v1/instances/dry-run", &body)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let made = pool.post("/v1/instances", &body)?;
    let name = word(&made, "name");
    if args.detach {
        line(name);
        return Ok(ExitCode::SUCCESS);
    }
    let mut said = String::new();
    loop {
        let now = pool.get(&format!("/v1/instances/{}", made["id"].as_str().unwrap_or_default()))?;
        let (state, reason) = (word(&now, "state"), word(&now, "reason"));
        match state {
            "running" => {
                line(name);
                return Ok(ExitCode::SUCCESS);
            }
            "failed" | "lost" => return Err(CliError::message(format!("the instance {state}: {reason}"))),
            "stopped" => {
                line(name);
                note(&format!("note: it has ended: {reason}"));
                return Ok(ExitCode::SUCCESS);
            }
            _ if said != reason => {
                said = reason.to_owned();
                note(&format!("note: {state}: {reason}"));
            }
            _ => {}
        }
        std::thread::sleep(LOOK);
    }
}

fn word<'a>(object: &'a Value, field: &str) -> &'a str {
    object[field].as_str().unwrap_or_default()
}

/// Stops instances; one that cannot be stopped does not keep the others.
pub fn stop(pool: &Pool, args: &StopArgs) -> Result<(), CliError> {
    let mut failed = None;
    for wanted in &args.instances {
        match stop_one(pool, wanted, !args.no_wait) {
            Ok(()) => line(wanted),
            Err(error) => failed = Some(error),
        }
    }
    failed.map_or(Ok(()), Err)
}

fn stop_one(pool: &Pool, wanted: &str, wait: bool) -> Result<(), CliError> {
    let found = pool.find("/v1/instances", "instance", wanted)?;
    let path = format!("/v1/instances/{}", word(&found, "id"));
    pool.delete(&path)?;
    if !wait {
        return Ok(());
    }
    let start = Instant::now();
    loop {
        let now = pool.get(&path)?;
        if matches!(word(&now, "state"), "stopped" | "failed" | "lost") {
            return Ok(());
        }
        // An instance on a provider that is away cannot end now.
        if start.elapsed() > STOP_PATIENCE {
            return Err(CliError::message(format!("{wanted} is told to stop, but its provider has not answered yet")));
        }
        std::thread::sleep(LOOK);
    }
}
