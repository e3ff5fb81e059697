//! `coracle pool`: a pool of lent machines as its users see it.

mod ask;
mod change;
mod cp;
mod events;
mod exec;
mod keys;
mod show;
mod spec;
mod ssh;

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use coracle_scheduler::client::Pool;
use coracle_scheduler::model::{Name, Role, StreamKind};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::error::{CliError, line, note};
use super::provider::read_token;
use crate::engine::container;
use crate::env;

/// What `login` keeps, in the person's configuration directory.
const FILE: &str = "pool.json";
/// Where distributions keep the certificates of well-known authorities.
const SYSTEM_AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";
/// How long a join token may be used when nobody says: an hour, the most.
const JOIN_MINUTES: u64 = 60;
/// Longest value of a secret that is read; the scheduler takes 64 KiB.
const SECRET_BYTES_MAX: u64 = 128 << 10;
/// Milliseconds of a minute.
const MINUTE_MS: u64 = 60_000;

/// A scheduler, and whom to believe that it is the one.
#[derive(Args)]
pub struct Address {
    /// Address of the scheduler, https://HOST[:PORT]
    #[arg(long, value_name = "URL")]
    pub scheduler: String,

    /// Certificates of the authorities that sign the scheduler's, PEM [default: the system's]
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
}

impl Address {
    /// Reads the certificates.
    pub fn authorities(&self) -> Result<String, CliError> {
        Ok(fs_err::read_to_string(self.ca.as_deref().unwrap_or(Path::new(SYSTEM_AUTHORITIES)))?)
    }
}

/// Ask a pool of lent machines for instances, and look after them
#[derive(Args)]
pub struct PoolArgs {
    #[command(subcommand)]
    command: PoolCommand,
}

#[derive(Subcommand)]
#[command(defer = true)]
enum PoolCommand {
    Login(LoginArgs),
    /// Forget the pool and its token
    Logout,
    Run(Box<ask::RunArgs>),
    Stop(change::StopArgs),
    Start(change::StartArgs),
    Rm(change::RmArgs),
    Move(change::MoveArgs),
    Events(events::EventsArgs),
    Keys(keys::KeysArgs),
    UserAdd(UserAddArgs),
    SecretAdd(SecretAddArgs),
    Logs(LogsArgs),
    Exec(exec::ExecArgs),
    Cp(cp::CpArgs),
    SshConfig(ssh::SshConfigArgs),
    Connect(ssh::ConnectArgs),
    Ps(show::PsArgs),
    Inspect(show::InspectArgs),
    Providers(show::ProvidersArgs),
    Usage(show::UsageArgs),
    Drain(DrainArgs),
    Token(TokenArgs),
    JoinToken(JoinTokenArgs),
}

/// Keep a pool's address and a token for it
#[derive(Args)]
struct LoginArgs {
    #[command(flatten)]
    pool: Address,

    /// Read the token from FILE; - is standard input
    #[arg(long, value_name = "FILE", default_value = "-")]
    token_from: PathBuf,
}

/// Empty a provider: nothing new is placed there, and what is there moves elsewhere with its data
#[derive(Args)]
struct DrainArgs {
    /// Name or id of the provider
    provider: String,

    /// Stop what has not ended after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    within: u64,

    /// Let new work in again
    #[arg(long, conflicts_with = "within")]
    undo: bool,
}

/// Show what an instance that runs has written
#[derive(Args)]
struct LogsArgs {
    /// Name or id
    instance: String,

    /// Go on until it ends
    #[arg(short, long)]
    follow: bool,

    /// Only so many of the last lines
    #[arg(short = 'n', long, value_name = "LINES")]
    tail: Option<u64>,
}

/// Make an API token; it is printed once
#[derive(Args)]
struct TokenArgs {
    /// The most it may do: reader, member or admin
    #[arg(long, value_name = "ROLE", default_value = "member", value_parser = role)]
    role: Role,

    /// How long it lives
    #[arg(long, value_name = "DAYS", default_value_t = 30)]
    days: u64,
}

/// Keep a secret for the instances of one's group; nobody is shown its value any more
#[derive(Args)]
struct SecretAddArgs {
    /// Unique in the group
    name: Name,

    /// File with the value; - is standard input
    #[arg(default_value = "-")]
    file: PathBuf,
}

/// Make a user in one's group; prints a token for it once
#[derive(Args)]
struct UserAddArgs {
    /// Unique in the group
    name: Name,

    /// The most it may do: reader, member or admin
    #[arg(long, value_name = "ROLE", default_value = "member", value_parser = role)]
    role: Role,

    /// How long the token lives
    #[arg(long, value_name = "DAYS", default_value_t = 30)]
    days: u64,
}

/// Make a token by which one machine may join; it is printed once
#[derive(Args)]
struct JoinTokenArgs {
    /// The only name that may join by it
    name: Name,

    /// How long it may be used, an hour at most
    #[arg(long, value_name = "MINUTES", default_value_t = JOIN_MINUTES)]
    minutes: u64,
}

fn role(text: &str) -> Result<Role, String> {
    serde_json::from_value(json!(text)).map_err(|_| "expected reader, member or admin".to_owned())
}

/// What `login` keeps.
#[derive(Serialize, Deserialize)]
struct Kept {
    scheduler: String,
    token: String,
    authorities: String,
}

fn folder() -> Result<PathBuf, CliError> {
    let home = || CliError::message("no home directory: neither XDG_CONFIG_HOME nor HOME is set");
    let config = env::xdg_config_home().or_else(|| Some(env::home()?.join(".config"))).ok_or_else(home)?;
    Ok(config.join("coracle"))
}

/// Makes a client of what `login` has kept.
fn open() -> Result<Pool, CliError> {
    let text = match fs_err::read_to_string(folder()?.join(FILE)) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(CliError::message("no pool is known here; coracle pool login keeps one"));
        }
        text => text?,
    };
    let kept: Kept = serde_json::from_str(&text)?;
    Ok(Pool::new(&kept.scheduler, &kept.token, &kept.authorities)?)
}

/// Runs one of the pool's commands.
pub fn run(args: PoolArgs) -> Result<ExitCode, CliError> {
    match args.command {
        PoolCommand::Login(args) => login(&args)?,
        PoolCommand::Logout => fs_err::remove_file(folder()?.join(FILE))?,
        PoolCommand::Run(args) => return ask::run(&open()?, *args),
        PoolCommand::Stop(args) => change::stop(&open()?, &args)?,
        PoolCommand::Start(args) => change::start(&open()?, &args)?,
        PoolCommand::Rm(args) => change::rm(&open()?, &args)?,
        PoolCommand::Move(args) => change::migrate(&open()?, &args)?,
        PoolCommand::Events(args) => events::events(&open()?, &args)?,
        PoolCommand::Keys(args) => keys::keys(&open()?, &args)?,
        PoolCommand::Logs(args) => logs(open()?, &args)?,
        PoolCommand::Exec(args) => return exec::exec(open()?, args),
        PoolCommand::Cp(args) => return cp::cp(open()?, &args),
        PoolCommand::SshConfig(args) => ssh::config(&open()?, &args)?,
        PoolCommand::Connect(args) => ssh::connect(open()?, &args)?,
        PoolCommand::Ps(args) => show::ps(&open()?, &args)?,
        PoolCommand::Inspect(args) => show::inspect(&open()?, &args)?,
        PoolCommand::Providers(args) => show::providers(&open()?, &args)?,
        PoolCommand::Usage(args) => show::usage(&open()?, &args)?,
        PoolCommand::Drain(args) => change::drain(&open()?, &args.provider, (!args.undo).then_some(args.within))?,
        PoolCommand::Token(args) => {
            let body = json!({ "role": args.role, "ttl_ms": args.days.saturating_mul(24 * 60 * MINUTE_MS) });
            secret(&open()?.post("/v1/tokens", &body)?)?;
        }
        PoolCommand::UserAdd(args) => {
            let pool = open()?;
            let group = pool.get("/v1/whoami")?["group"].clone();
            let made = pool.post("/v1/users", &json!({ "group": group, "name": args.name, "role": args.role }))?;
            let ttl_ms = args.days.saturating_mul(24 * 60 * MINUTE_MS);
            let body = json!({ "user": made["id"], "role": args.role, "ttl_ms": ttl_ms });
            secret(&pool.post("/v1/tokens", &body)?)?;
        }
        PoolCommand::SecretAdd(args) => {
            let value = super::provider::read_text(&args.file, SECRET_BYTES_MAX)?;
            open()?.post("/v1/secrets", &json!({ "name": args.name, "value": value }))?;
        }
        PoolCommand::JoinToken(args) => {
            let body = json!({ "provider_name": args.name, "ttl_ms": args.minutes.saturating_mul(MINUTE_MS) });
            secret(&open()?.post("/v1/joins", &body)?)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints a secret where only the caller's program reads it.
fn secret(answer: &serde_json::Value) -> Result<(), CliError> {
    let secret = answer["secret"].as_str().ok_or_else(|| CliError::message("the scheduler gave no secret"))?;
    line(secret);
    note("note: this token is shown once and kept nowhere");
    Ok(())
}

fn login(args: &LoginArgs) -> Result<(), CliError> {
    let kept = Kept {
        scheduler: args.pool.scheduler.clone(),
        token: read_token(&args.token_from)?,
        authorities: args.pool.authorities()?,
    };
    let who = Pool::new(&kept.scheduler, &kept.token, &kept.authorities)?.get("/v1/whoami")?;
    let folder = folder()?;
    std::fs::DirBuilder::new().mode(0o700).recursive(true).create(&folder)?;
    container::publish_json(&folder, FILE, &kept, true)?;
    note(&format!("note: {} as {}", kept.scheduler, who["role"].as_str().unwrap_or("somebody")));
    Ok(())
}

fn logs(pool: Pool, args: &LogsArgs) -> Result<(), CliError> {
    let found = pool.find("/v1/instances", "instance", &args.instance)?;
    let kind = StreamKind::Logs { follow: args.follow, tail: args.tail };
    let path = format!("/v1/instances/{}/streams", found["id"].as_str().unwrap_or_default());
    let done = pool.stream(&path, &json!({ "kind": kind }), true);
    pool.end();
    Ok(done?)
}

fn word<'a>(object: &'a Value, field: &str) -> &'a str {
    object[field].as_str().unwrap_or_default()
}
