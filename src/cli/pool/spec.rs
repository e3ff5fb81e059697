//! The flags of `pool run`, and the instance that they ask for.

use clap::{Args, ValueEnum};
use coracle_scheduler::client::Pool;
use coracle_scheduler::model::{
    Class, InstanceSpec, LimitOptions, OnLoss, Port, ProcessOptions, Resources, Restart, SecretMount, Strategy, Tier,
    VolumeMount, limits,
};
use serde_json::json;

use super::ask::RunArgs;
use super::word;
use crate::cli::error::CliError;
use crate::cli::moment;
use crate::engine::limits::parse_nano_cpus;
use crate::engine::networks::Rate;
use crate::engine::size::parse_size_bytes;

/// Where it may run, and for how long.
#[derive(Args)]
#[command(next_help_heading = "Place")]
pub struct PlaceArgs {
    /// Only providers of which this is true, e.g. 'memory>=8GiB' or 'limit_disk==hard'
    #[arg(long, value_name = "EXPRESSION")]
    constraint: Vec<String>,
    /// Near or far from other instances, e.g. 'container==db'
    #[arg(long, value_name = "EXPRESSION")]
    affinity: Vec<String>,
    /// How to choose among those that match
    #[arg(long, value_enum, default_value = "spread")]
    strategy: StrategyArg,
    /// The least trusted machine that may run it: new, rated, audited or org
    #[arg(long, value_name = "TIER", value_parser = tier, default_value = "new")]
    min_tier: Tier,
    /// When its provider is lost: replace, keep, or stop-after:SECONDS
    #[arg(long, value_name = "POLICY", value_parser = on_loss, default_value = "replace")]
    on_loss: OnLoss,
    /// Seconds of silence after which its provider counts as lost [default: the pool's, five minutes]
    #[arg(long, value_name = "SECONDS")]
    lost_after: Option<u64>,
    /// Start it again when it has ended: no, on-failure[:N] or always
    #[arg(long, value_name = "POLICY", default_value = "no", value_parser = restart)]
    restart: Restart,
    /// End it after so many seconds [default: seven days]
    #[arg(long, value_name = "SECONDS")]
    ttl: Option<u64>,
    /// 0 to 100; larger goes first [default: 50]
    #[arg(long, value_name = "NUMBER")]
    priority: Option<u8>,
    /// It may stop instances whose priority is at least 10 lower
    #[arg(long)]
    preempt: bool,
    /// Use only room that nobody else wants just now
    #[arg(long)]
    backfill: bool,
}

/// How its process is begun, in the words of `coracle run`.
#[derive(Args)]
#[command(next_help_heading = "Process")]
pub struct ProcessArgs {
    /// Set NAME=VALUE in its environment; constraint:… and affinity:… are taken as in Docker Swarm
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Give it a label
    #[arg(short, long, value_name = "NAME=VALUE")]
    label: Vec<String>,
    /// Put a volume of the pool at a path
    #[arg(short, long, value_name = "VOLUME:PATH")]
    volume: Vec<String>,
    /// Give it a secret of the group, as a variable or as a file in memory
    #[arg(long, value_name = "SECRET,env=NAME|file=PATH")]
    secret: Vec<String>,
    /// A port of the provider for a port of the instance
    #[arg(short, long, value_name = "HOST:CONTAINER", value_parser = port)]
    publish: Vec<Port>,
    /// Replace the image's entry point
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// User and group, by name or number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Working directory
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Host name inside
    #[arg(short = 'h', long, value_name = "NAME")]
    hostname: Option<String>,
    /// Mount the root filesystem read-only
    #[arg(long)]
    read_only: bool,
    /// Run an init that reaps processes and forwards signals
    #[arg(long)]
    init: bool,
    /// Mount memory
    #[arg(long, value_name = "DESTINATION[:OPTIONS]")]
    tmpfs: Vec<String>,
    /// Drop a capability
    #[arg(long, value_name = "CAP")]
    cap_drop: Vec<String>,
    /// Size of /dev/shm
    #[arg(long, value_name = "SIZE")]
    shm_size: Option<String>,
    /// Signal that stops it
    #[arg(long, value_name = "SIGNAL")]
    stop_signal: Option<String>,
    /// Seconds between the stop signal and SIGKILL [default: 10]
    #[arg(long, value_name = "SECONDS")]
    stop_timeout: Option<u64>,
    /// Command that says whether it is well
    #[arg(long, value_name = "COMMAND")]
    health_cmd: Option<String>,
    /// Time between two checks [default: 30s]
    #[arg(long, value_name = "TIME")]
    health_interval: Option<String>,
    /// Do not run the image's health check
    #[arg(long)]
    no_healthcheck: bool,
}

/// What it gets and may not exceed.
#[derive(Args)]
#[command(next_help_heading = "Limits")]
pub struct RoomArgs {
    /// Processors, e.g. 0.5
    #[arg(long, value_name = "NUMBER")]
    cpus: Option<String>,
    /// Weight against other containers when processors are short
    #[arg(short = 'c', long, value_name = "WEIGHT")]
    cpu_shares: Option<u64>,
    /// Memory, e.g. 512m
    #[arg(short, long, value_name = "SIZE")]
    memory: Option<String>,
    /// Memory that is left to it when others run short
    #[arg(long, value_name = "SIZE")]
    memory_reservation: Option<String>,
    /// Processes and threads
    #[arg(long, value_name = "NUMBER")]
    pids_limit: Option<u64>,
    /// Weight against other containers at block devices, 10 to 1000
    #[arg(long, value_name = "WEIGHT")]
    blkio_weight: Option<u64>,
    /// Disk, e.g. 2g; a write beyond it fails
    #[arg(long, value_name = "SIZE")]
    disk: Option<String>,
    /// Rates, up=RATE,down=RATE; the larger one is reserved and holds for both
    #[arg(long, value_name = "RATES")]
    net_rate: Option<Rate>,
    /// What happens to limits that its provider cannot enforce: strict refuses, best-effort goes on
    #[arg(long, value_enum, default_value = "strict")]
    limits: LimitsArg,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LimitsArg {
    Strict,
    BestEffort,
}

#[derive(Clone, Copy, ValueEnum)]
enum StrategyArg {
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

fn port(text: &str) -> Result<Port, String> {
    let (host, container) = text.split_once(':').ok_or("expected HOST:CONTAINER")?;
    let number = |text: &str| text.parse().map_err(|_| format!("{text:?} is no port"));
    Ok(Port { host: number(host)?, container: number(container)? })
}

fn tier(text: &str) -> Result<Tier, String> {
    serde_json::from_value(json!(text)).map_err(|_| "expected new, rated, audited or org".to_owned())
}

fn on_loss(text: &str) -> Result<OnLoss, String> {
    match text.split_once(':') {
        None if text == "replace" => Ok(OnLoss::Replace),
        None if text == "keep" => Ok(OnLoss::Keep),
        Some(("stop-after", seconds)) => {
            let seconds: u64 = seconds.parse().map_err(|_| format!("{seconds:?} is no number"))?;
            Ok(OnLoss::StopAfter { after_ms: seconds.saturating_mul(1000) })
        }
        _ => Err("expected replace, keep or stop-after:SECONDS".to_owned()),
    }
}

fn restart(text: &str) -> Result<Restart, String> {
    match text.split_once(':') {
        None if text == "no" => Ok(Restart::Never),
        None if text == "always" => Ok(Restart::Always),
        None if text == "on-failure" => Ok(Restart::OnFailure { max: limits::RESTARTS }),
        Some(("on-failure", max)) => {
            max.parse().map(|max| Restart::OnFailure { max }).map_err(|_| format!("{max:?} is no number"))
        }
        _ => Err("expected no, on-failure[:N] or always".to_owned()),
    }
}

fn size(text: &Option<String>) -> Result<Option<u64>, CliError> {
    Ok(text.as_deref().map(parse_size_bytes).transpose()?)
}

impl RunArgs {
    /// Puts the flags together; volumes and secrets are looked up by their names.
    pub fn spec(&self, pool: &Pool) -> Result<InstanceSpec, CliError> {
        let place = &self.place;
        Ok(InstanceSpec {
            image: self.image.clone(),
            command: self.command.clone(),
            env: self.process.env.clone(),
            labels: self.process.label.iter().map(|text| label(text)).collect(),
            resources: self.limits.resources()?,
            limits: self.limits.more()?,
            process: self.process.options()?,
            ports: self.process.publish.clone(),
            constraints: place.constraint.clone(),
            affinities: place.affinity.clone(),
            strategy: match place.strategy {
                StrategyArg::Spread => Strategy::Spread,
                StrategyArg::Binpack => Strategy::Binpack,
                StrategyArg::Random => Strategy::Random,
                StrategyArg::Reliable => Strategy::Reliable,
                StrategyArg::Cheapest => Strategy::Cheapest,
            },
            min_tier: place.min_tier,
            on_loss: place.on_loss,
            lost_after_ms: place.lost_after.map(|seconds| seconds.saturating_mul(1000)),
            restart: place.restart,
            ttl_ms: place.ttl.map(|seconds| seconds.saturating_mul(1000)),
            priority: place.priority,
            preempts: place.preempt,
            class: if place.backfill { Class::Backfill } else { Class::Normal },
            stop_grace_ms: self.process.stop_timeout.map(|seconds| seconds.saturating_mul(1000)),
            volumes: self.process.volumes(pool)?,
            secrets: self.process.secrets(pool)?,
        })
    }
}

/// Splits NAME=VALUE; a name alone has an empty value.
fn label(text: &str) -> (String, String) {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    (name.to_owned(), value.to_owned())
}

fn id<T: std::str::FromStr>(pool: &Pool, path: &str, kind: &'static str, name: &str) -> Result<T, CliError> {
    let found = pool.find(path, kind, name)?;
    word(&found, "id").parse().map_err(|_| CliError::message(format!("the scheduler's {kind} {name} has no id")))
}

impl ProcessArgs {
    fn options(&self) -> Result<ProcessOptions, CliError> {
        let interval = self.health_interval.as_deref().map(|text| {
            let span = moment::duration(text).and_then(|span| std::time::Duration::try_from(span).ok());
            span.ok_or_else(|| CliError::message(format!("invalid duration {text:?}: expected as in 30s")))
        });
        let interval = interval.transpose()?.map(|span| u64::try_from(span.as_millis()).unwrap_or(u64::MAX));
        Ok(ProcessOptions {
            entrypoint: self.entrypoint.clone(),
            user: self.user.clone(),
            workdir: self.workdir.clone(),
            hostname: self.hostname.clone(),
            stop_signal: self.stop_signal.clone(),
            read_only: self.read_only,
            init: self.init,
            tmpfs: self.tmpfs.clone(),
            cap_drop: self.cap_drop.clone(),
            shm_bytes: size(&self.shm_size)?,
            health_command: self.health_cmd.clone(),
            health_interval_ms: interval,
            no_health_check: self.no_healthcheck,
        })
    }

    fn volumes(&self, pool: &Pool) -> Result<Vec<VolumeMount>, CliError> {
        let one = |text: &String| {
            let (name, path) = text.split_once(':').filter(|(name, _)| !name.contains('/')).ok_or_else(|| {
                CliError::message(format!("--volume {text}: expected VOLUME:PATH, the name of a volume of the pool"))
            })?;
            Ok(VolumeMount { volume: id(pool, "/v1/volumes", "volume", name)?, path: path.to_owned() })
        };
        self.volume.iter().map(one).collect()
    }

    fn secrets(&self, pool: &Pool) -> Result<Vec<SecretMount>, CliError> {
        let one = |text: &String| {
            let expected =
                || CliError::message(format!("--secret {text}: expected SECRET,env=NAME or SECRET,file=PATH"));
            let (name, how) = text.split_once(',').ok_or_else(expected)?;
            let (kind, value) = how.split_once('=').ok_or_else(expected)?;
            let (env, file) = match kind {
                "env" => (Some(value.to_owned()), None),
                "file" => (None, Some(value.to_owned())),
                _ => return Err(expected()),
            };
            Ok(SecretMount { secret: id(pool, "/v1/secrets", "secret", name)?, env, file })
        };
        self.secret.iter().map(one).collect()
    }
}

impl RoomArgs {
    fn resources(&self) -> Result<Resources, CliError> {
        let nanos = self.cpus.as_deref().map_or(Ok(0), parse_nano_cpus)?;
        let bits = self.net_rate.map_or(0, |rate| rate.up_bits.max(rate.down_bits).unwrap_or(0));
        if self.net_rate.is_some_and(|rate| rate.burst_bytes.is_some()) {
            return Err(CliError::message("--net-rate: a burst cannot be asked of a pool"));
        }
        Ok(Resources {
            cpu_millis: nanos / 1_000_000,
            memory_bytes: size(&self.memory)?.unwrap_or(0),
            disk_bytes: size(&self.disk)?.unwrap_or(0),
            bandwidth_bps: bits / 8,
            ..Resources::default()
        })
    }

    fn more(&self) -> Result<LimitOptions, CliError> {
        Ok(LimitOptions {
            memory_soft_bytes: size(&self.memory_reservation)?,
            pids: self.pids_limit,
            cpu_weight: self.cpu_shares,
            io_weight: self.blkio_weight,
            best_effort: self.limits == LimitsArg::BestEffort,
        })
    }
}
