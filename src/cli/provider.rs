//! `coracle provider`: this machine lent to a pool, by an ordinary user, with calls that only go out.

use std::io::Read;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use clap::{Args, Subcommand};
use coracle_scheduler::agent::Membership;
use coracle_scheduler::model::Name;
use serde_json::json;

use super::error::{CliError, line, note};
use super::format::Format;
use super::{boot, pool};
use crate::engine::limits::parse_nano_cpus;
use crate::engine::networks::Rate;
use crate::engine::provider::policy::{Hours, Policy};
use crate::engine::provider::{self, Provider, Shares, shares};
use crate::engine::size::parse_size_bytes;
use crate::engine::{self, provider::presence::Presence};

const COLUMNS: &str = "{{.Name}}\t{{.Image}}\t{{.Status}}";

/// Lend this machine to a pool; nothing here listens, and the owner's word counts before the scheduler's
#[derive(Args)]
pub struct ProviderArgs {
    #[command(subcommand)]
    command: ProviderCommand,
}

#[derive(Subcommand)]
#[command(defer = true)]
enum ProviderCommand {
    Join(Box<JoinArgs>),
    /// Work for the pool until SIGTERM; instances go on without it
    Run,
    /// Show what is lent and what runs here, without asking the scheduler
    Status(StatusArgs),
    /// Let nothing new in; what runs goes on
    Pause,
    /// Let new work in again
    Resume,
    Admit(AdmitArgs),
    Drain(DrainArgs),
    /// Write a systemd user unit that works for the pool from boot on
    InstallUnit,
    /// Leave the pool: every instance here is removed, and nothing of it stays
    Leave,
}

/// Make this machine a member of a pool
#[derive(Args)]
struct JoinArgs {
    #[command(flatten)]
    pool: pool::Address,

    /// Read the join token from FILE; - is standard input
    #[arg(long, value_name = "FILE")]
    token_from: PathBuf,

    /// Name of this machine in the pool, the one that the join token was made for
    #[arg(long, value_name = "NAME")]
    name: Name,

    #[command(flatten)]
    shares: SharesArgs,
}

/// What is lent.
#[derive(Args)]
#[command(next_help_heading = "Lent")]
struct SharesArgs {
    /// Processors, e.g. 1.5 [default: all]
    #[arg(long, value_name = "NUMBER")]
    cpus: Option<String>,
    /// Memory [default: all]
    #[arg(short, long, value_name = "SIZE")]
    memory: Option<String>,
    /// Disk [default: half of what is free]
    #[arg(long, value_name = "SIZE")]
    disk: Option<String>,
    /// Network bandwidth, as in 50mbit [default: 1gbit]
    #[arg(long, value_name = "RATE")]
    bandwidth: Option<String>,
    /// Only images whose reference begins with this; may be given several times [default: all]
    #[arg(long, value_name = "REFERENCE")]
    allow_image: Vec<String>,
    /// Only instances of this group; may be given several times [default: all]
    #[arg(long, value_name = "GROUP")]
    allow_group: Vec<String>,
    #[command(flatten)]
    policy: PolicyArgs,
    /// Also start instances whose limits this host cannot enforce; the pool is told that they do not hold
    #[arg(long)]
    best_effort: bool,
    /// Pull images from their registries, never through the scheduler's mirror
    #[arg(long)]
    no_mirror: bool,
    /// The network of instances [default: that of `coracle run`]
    #[arg(long, value_name = "MODE")]
    network: Option<String>,
}

/// When new work is welcome.
#[derive(Args)]
struct PolicyArgs {
    /// Let new work in only at these hours of the day; may be given several times [default: always]
    #[arg(long, value_name = "HH:MM-HH:MM")]
    hours: Vec<Hours>,
    /// Let new work in only when nobody has typed for so many seconds
    #[arg(long, value_name = "SECONDS")]
    when_idle: Option<u64>,
    /// Let no new work in while a battery is drained
    #[arg(long)]
    not_on_battery: bool,
}

impl PolicyArgs {
    fn policy(self) -> Policy {
        Policy { hours: self.hours, idle_s: self.when_idle, mains_only: self.not_on_battery }
    }
}

/// Say anew when new work is welcome; it counts at once, and also without the scheduler
#[derive(Args)]
struct AdmitArgs {
    #[command(flatten)]
    policy: PolicyArgs,
}

/// Empty this machine: nothing new comes, and what is here is stopped, also without the scheduler
#[derive(Args)]
struct DrainArgs {
    /// Stop what has not ended after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    within: u64,
    /// Let work in again
    #[arg(long, conflicts_with = "within")]
    undo: bool,
}

#[derive(Args)]
struct StatusArgs {
    /// json, or a Go template over the instances
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
}

/// Runs one of the provider's commands.
pub fn run(root: Option<PathBuf>, args: ProviderArgs) -> Result<ExitCode, CliError> {
    let root = engine::state_directory(root)?;
    let folder = root.join("provider");
    std::fs::DirBuilder::new().mode(0o700).recursive(true).create(&folder)?;
    match args.command {
        ProviderCommand::Join(args) => join(&folder, *args)?,
        ProviderCommand::Run => {
            let member = Membership::read(&folder)?;
            let _presence = Presence::take(&folder)?;
            // What it is told on the way into a container is in no core file, and in no other program's reach.
            provider::hide_memory()?;
            let provider = Provider::open(&root, &folder)?;
            line(&format!("{} works for {}", member.name, member.scheduler));
            member.serve(&folder, Arc::new(Mutex::new(provider)))?;
        }
        ProviderCommand::Status(args) => status(&root, &folder, &args)?,
        ProviderCommand::Pause => shares::pause(&folder, true)?,
        ProviderCommand::Resume => shares::pause(&folder, false)?,
        ProviderCommand::Admit(args) => {
            Membership::read(&folder)?;
            Shares { policy: args.policy.policy(), ..Shares::read(&folder)? }.write(&folder)?;
        }
        ProviderCommand::Drain(args) => drain(&folder, &args)?,
        ProviderCommand::InstallUnit => install_unit(&root)?,
        ProviderCommand::Leave => leave(&root, &folder)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Longest token file that is read.
const TOKEN_BYTES_MAX: u64 = 4096;

/// Reads a token from a file, or from standard input for `-`.
pub fn read_token(from: &Path) -> Result<String, CliError> {
    match read_text(from, TOKEN_BYTES_MAX)?.trim() {
        "" => Err(CliError::message("the token is empty")),
        token => Ok(token.to_owned()),
    }
}

/// Reads the beginning of a file, or of standard input for `-`.
pub fn read_text(from: &Path, bytes_max: u64) -> Result<String, CliError> {
    let mut text = String::new();
    if from == Path::new("-") {
        std::io::stdin().take(bytes_max).read_to_string(&mut text)?;
    } else {
        fs_err::File::open(from)?.take(bytes_max).read_to_string(&mut text)?;
    }
    Ok(text)
}

/// Reads a rate of bits as bytes a second.
fn bandwidth_bps(text: &str) -> Result<u64, CliError> {
    let rate: Rate = format!("up={text}").parse()?;
    Ok(rate.up_bits.unwrap_or(0) / 8)
}

fn join(folder: &Path, args: JoinArgs) -> Result<(), CliError> {
    let token = read_token(&args.token_from)?;
    let lent = args.shares;
    let shares = Shares {
        cpu_millis: lent.cpus.as_deref().map(parse_nano_cpus).transpose()?.map(|nanos| nanos / 1_000_000),
        memory_bytes: lent.memory.as_deref().map(parse_size_bytes).transpose()?,
        disk_bytes: lent.disk.as_deref().map(parse_size_bytes).transpose()?,
        bandwidth_bps: lent.bandwidth.as_deref().map(bandwidth_bps).transpose()?,
        best_effort: lent.best_effort,
        network: lent.network,
        direct: lent.no_mirror,
        images: lent.allow_image,
        groups: lent.allow_group,
        policy: lent.policy.policy(),
    };
    let trusted = args.pool.authorities()?;
    let member = Membership::join(folder, &args.pool.scheduler, &token, args.name, &trusted)?;
    shares.write(folder)?;
    line(&member.provider.to_string());
    note("hint: coracle provider run starts to work for the pool");
    Ok(())
}

fn status(root: &Path, folder: &Path, args: &StatusArgs) -> Result<(), CliError> {
    let rows: Vec<_> = provider::list(root, folder)?.into_iter().map(|here| json!(here)).collect();
    if args.format.is_none() {
        let member = Membership::read(folder)?;
        let offer = Shares::read(folder)?.offer(root);
        line(&format!("pool       {}", member.scheduler));
        line(&format!("name       {}", member.name));
        line(&format!("agent      {}", if Presence::is_here(folder) { "running" } else { "not running" }));
        let paused = shares::is_paused(folder).then_some("paused");
        line(&format!("new work   {}", paused.or_else(|| provider::closed(folder)).unwrap_or("welcome")));
        for (name, reason) in provider::bad_facts(folder) {
            line(&format!("bad fact   {name}: {reason}"));
        }
        line(&format!("processors {}.{:03}", offer.cpu_millis / 1000, offer.cpu_millis % 1000));
        line(&format!("memory     {}", super::table::human_memory(offer.memory_bytes)));
        line(&format!("disk       {}", super::table::human_size(offer.disk_bytes)));
        line("");
    }
    Ok(Format::listing(args.format.as_deref(), COLUMNS)?.print(&rows)?)
}

fn drain(folder: &Path, args: &DrainArgs) -> Result<(), CliError> {
    Membership::read(folder)?;
    let until = shares::now_ms().saturating_add(args.within.saturating_mul(1000));
    Ok(shares::drain(folder, (!args.undo).then_some(until))?)
}

/// Writes the unit and says how to switch it on.
fn install_unit(root: &Path) -> Result<(), CliError> {
    Membership::read(&root.join("provider"))?;
    // The agent ends at SIGTERM, and what it has started belongs to the pool and not to the unit. Without Delegate=yes
    // it is in coracle.scope, or the unit could not start again: its cgroup would have children with controllers.
    let service = "Type=exec\nKillMode=process\nRestart=always\nRestartSec=5";
    let path = boot::write_unit(UNIT, "this machine lent to a pool by coracle", service, root, "provider run")?;
    line(&path.display().to_string());
    note("hint: systemctl --user enable --now coracle-provider.service, and loginctl enable-linger");
    Ok(())
}

/// Where systemd looks for a user's own units (systemd.unit(5)), below `$XDG_CONFIG_HOME`.
const UNIT: &str = "systemd/user/coracle-provider.service";

fn leave(root: &Path, folder: &Path) -> Result<(), CliError> {
    Membership::read(folder)?;
    // Nothing new comes in from here on, whatever happens next.
    shares::pause(folder, true)?;
    Presence::end(folder)?;
    let containers = provider::containers_here(root);
    for id in &containers {
        let removed = std::process::Command::new("/proc/self/exe")
            .arg("--root")
            .arg(root)
            .args(["rm", "-f", "-v", id])
            .stdout(std::process::Stdio::null())
            .status()?;
        if !removed.success() {
            return Err(CliError::message(format!("container {id} could not be removed; nothing else was done")));
        }
    }
    Membership::forget(folder)?;
    provider::forget_secrets(root);
    fs_err::remove_dir_all(folder)?;
    note(&format!("note: {} instances were removed; the scheduler will notice", containers.len()));
    Ok(())
}
