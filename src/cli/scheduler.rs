//! `coracle scheduler`: the pool of lent machines, kept by one process.
//!
//! Only this command starts an async runtime in this process.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use coracle_images::login::registry_name;
use coracle_scheduler::command;
use coracle_scheduler::mirror::{CAP_BYTES, Mirror, MirrorOptions};
use coracle_scheduler::model::{Name, Role};
use coracle_scheduler::server::{AuthorityFiles, Log, Options, Secret, Sink, TlsFiles};
use coracle_scheduler::store::StorePlace;

use super::error::{CliError, line, note};
use crate::engine;
use crate::engine::mirror::Registries;
use crate::engine::size::parse_size_bytes;

/// Where a scheduler listens unless it is told: this machine only.
const LISTEN: &str = "127.0.0.1:8640";
/// Seconds of a day.
const DAY: u64 = 24 * 3600;

/// Run the scheduler of a pool of lent machines, and look after its store
#[derive(Args)]
pub struct SchedulerArgs {
    #[command(subcommand)]
    command: SchedulerCommand,
}

#[derive(Subcommand)]
#[command(defer = true)]
enum SchedulerCommand {
    Serve(ServeArgs),
    Init(InitArgs),
    Token(TokenArgs),
    Backup(BackupArgs),
    Restore(RestoreArgs),
}

/// Where the store is.
#[derive(Args)]
struct StoreArgs {
    /// A file, or postgres://USER@HOST/DATABASE [default: scheduler/pool.db in the state directory]
    #[arg(long, value_name = "STORE")]
    store: Option<StorePlace>,

    /// Read STORE from FILE, so that its password is on no command line
    #[arg(long, value_name = "FILE", conflicts_with = "store")]
    store_from: Option<PathBuf>,
}

impl StoreArgs {
    fn place(self, root: Option<PathBuf>) -> Result<StorePlace, CliError> {
        if let Some(place) = self.store {
            return Ok(place);
        }
        if let Some(path) = self.store_from {
            return Ok(fs_err::read_to_string(path)?.parse()?);
        }
        Ok(StorePlace::Sqlite(folder(root, None)?.join("pool.db")))
    }

    fn options(self, root: Option<PathBuf>, listen: SocketAddr) -> Result<Options, CliError> {
        Ok(Options::new(listen, self.place(root)?))
    }
}

/// Serve the pool's API until SIGTERM
#[derive(Args)]
struct ServeArgs {
    #[command(flatten)]
    store: StoreArgs,

    /// Address and port to listen on
    #[arg(long, value_name = "ADDRESS", default_value = LISTEN)]
    listen: SocketAddr,

    /// The server's certificate and those that sign it, PEM
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,

    /// The certificate's key, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,

    /// Directory of ca.crt and ca.key, which sign agents' keys, and of server.crt and server.key [default: scheduler in
    /// the state directory]
    #[arg(long, value_name = "DIR")]
    ca: Option<PathBuf>,

    /// The key that seals secrets; made when it is missing, the same for every scheduler of a pool, in no backup
    /// [default: secrets.key beside the certificates]
    #[arg(long, value_name = "FILE")]
    secrets_key: Option<PathBuf>,

    /// Speak HTTP without TLS, where something in front of it speaks TLS; agents then have no certificates
    #[arg(long, conflicts_with = "tls_cert")]
    plain_http: bool,

    /// How often the agents of a small pool report; three times as long without a report is silence
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=300))]
    heartbeat: u64,

    #[command(flatten)]
    mirror: MirrorArgs,

    /// What to log, as JSON lines on standard error
    #[arg(long, value_enum, default_value = "changes")]
    log: LogChoice,
}

/// The pull-through mirror, so that a pool pulls an image from its registry once.
#[derive(Args)]
#[command(next_help_heading = "Mirror")]
struct MirrorArgs {
    /// Fetch and keep what agents pull from REGISTRY, docker.io when none is said; may be given several times [default:
    /// no mirror]
    #[arg(long, value_name = "REGISTRY", num_args = 0..=1, require_equals = true, default_missing_value = "docker.io")]
    mirror: Vec<String>,

    /// Where the mirror keeps it [default: mirror beside the certificates]
    #[arg(long, value_name = "DIR", requires = "mirror")]
    mirror_dir: Option<PathBuf>,

    /// How much the mirror keeps; the least recently used makes room [default: 20g]
    #[arg(long, value_name = "SIZE", requires = "mirror")]
    mirror_size: Option<String>,

    /// Credentials for the mirrored registries, as `docker login` writes them; every member of the pool can then pull
    /// what they open [default: none, also where this user is logged in]
    #[arg(long, value_name = "FILE", requires = "mirror")]
    mirror_login: Option<PathBuf>,
}

impl MirrorArgs {
    fn open(self, folder: &Path, log: &Log) -> Result<Option<Arc<Mirror>>, CliError> {
        if self.mirror.is_empty() {
            return Ok(None);
        }
        let name = |text: &String| Ok(registry_name(text)?.registry().to_owned());
        let registries = self.mirror.iter().map(name).collect::<Result<Vec<_>, CliError>>()?;
        // A name that is wrong should be said now and not at the first pull.
        let login = self.mirror_login.map(fs_err::canonicalize).transpose()?;
        let options = MirrorOptions {
            folder: self.mirror_dir.unwrap_or_else(|| folder.join("mirror")),
            cap_bytes: self.mirror_size.as_deref().map(parse_size_bytes).transpose()?.unwrap_or(CAP_BYTES),
            registries,
            log: log.clone(),
        };
        Ok(Some(Mirror::open(options, Arc::new(Registries::new(login)))?))
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum LogChoice {
    /// Nothing
    Off,
    /// What happens to objects, requests that change something or are refused
    Changes,
    /// All requests too
    Requests,
}

/// Make the first group and administrator of a new pool; prints the administrator's token, once
#[derive(Args)]
struct InitArgs {
    #[command(flatten)]
    store: StoreArgs,

    /// Name of the first group
    #[arg(long, value_name = "NAME", default_value = "ops")]
    group: Name,

    /// Name of the administrator
    #[arg(long, value_name = "NAME", default_value = "root")]
    user: Name,

    /// Directory for the pool's certificate authority and the scheduler's certificate [default: scheduler in the state
    /// directory]
    #[arg(long, value_name = "DIR")]
    ca: Option<PathBuf>,

    /// Name or address by which clients and agents reach the scheduler; may be given several times
    #[arg(long, value_name = "NAME", default_values = ["localhost", "127.0.0.1", "::1"])]
    name: Vec<String>,
}

/// Make a token while no scheduler serves the store: the way back in for who lost the last one
#[derive(Args)]
struct TokenArgs {
    #[command(flatten)]
    store: StoreArgs,

    /// Group of the user
    #[arg(long, value_name = "NAME", default_value = "ops")]
    group: Name,

    /// For whom
    #[arg(long, value_name = "NAME", default_value = "root")]
    user: Name,

    /// The most it may do; never more than the user may
    #[arg(long, value_enum, default_value = "admin")]
    role: RoleChoice,

    /// How long it lives
    #[arg(long, value_name = "DAYS", default_value_t = 30)]
    days: u64,
}

#[derive(Clone, Copy, ValueEnum)]
enum RoleChoice {
    /// Look
    Reader,
    /// Ask for instances, lend machines
    Member,
    /// Everything
    Admin,
}

/// Write a consistent copy of the store into a new file, also while a scheduler serves it
#[derive(Args)]
struct BackupArgs {
    #[command(flatten)]
    store: StoreArgs,

    /// The new file, always in SQLite's format
    #[arg(value_name = "FILE")]
    to: PathBuf,
}

/// Put a backup in the place of a store that no scheduler serves
#[derive(Args)]
struct RestoreArgs {
    #[command(flatten)]
    store: StoreArgs,

    /// What `backup` wrote
    #[arg(value_name = "FILE")]
    from: PathBuf,
}

/// Runs one of the scheduler's commands.
pub fn run(root: Option<PathBuf>, args: SchedulerArgs) -> Result<ExitCode, CliError> {
    match args.command {
        SchedulerCommand::Serve(args) => serve(root, args)?,
        SchedulerCommand::Init(args) => {
            let folder = folder(root.clone(), args.ca)?;
            let options = args.store.options(root, LISTEN.parse()?)?;
            let secret = command::init(&options, args.group, args.user)?;
            command::certificates(&folder, &args.name)?;
            show(secret);
            note(&format!("note: clients trust this pool by {}", folder.join("ca.crt").display()));
        }
        SchedulerCommand::Token(args) => {
            let options = args.store.options(root, LISTEN.parse()?)?;
            let role = match args.role {
                RoleChoice::Reader => Role::Reader,
                RoleChoice::Member => Role::Member,
                RoleChoice::Admin => Role::Admin,
            };
            let life = Duration::from_secs(args.days.saturating_mul(DAY));
            show(command::token(&options, &args.group, &args.user, role, life)?);
        }
        SchedulerCommand::Backup(args) => command::backup(&args.store.place(root)?, &args.to)?,
        SchedulerCommand::Restore(args) => command::restore(&args.store.place(root)?, &args.from)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Finds the scheduler's own directory, making it when it is missing.
fn folder(root: Option<PathBuf>, given: Option<PathBuf>) -> Result<PathBuf, CliError> {
    let folder = match given {
        Some(folder) => folder,
        None => engine::state_directory(root)?.join("scheduler"),
    };
    fs_err::create_dir_all(&folder)?;
    Ok(folder)
}

/// Shows a secret where only the caller's program reads it; the rest is said aside.
fn show(secret: Secret) {
    line(&secret.reveal());
    note("note: this token is shown once and kept nowhere; send it as Authorization: Bearer");
}

fn serve(root: Option<PathBuf>, args: ServeArgs) -> Result<(), CliError> {
    let folder = folder(root.clone(), args.ca)?;
    let mut options = args.store.options(root, args.listen)?;
    let own = Some(TlsFiles::in_folder(&folder)).filter(|files| files.certificates.exists() && !args.plain_http);
    options.tls = match (args.tls_cert, args.tls_key) {
        (Some(certificates), Some(key)) => Some(TlsFiles { certificates, key }),
        _ => own,
    };
    options.authority = Some(AuthorityFiles::in_folder(&folder)).filter(|files| files.key.exists());
    options.secrets_key = Some(args.secrets_key.unwrap_or_else(|| folder.join("secrets.key")));
    options.core.heartbeat_ms = args.heartbeat * 1000;
    options.log = match args.log {
        LogChoice::Off => Log::default(),
        LogChoice::Changes => Log { sink: Sink::Stderr, requests: false },
        LogChoice::Requests => Log { sink: Sink::Stderr, requests: true },
    };
    options.mirror = args.mirror.open(&folder, &options.log)?;
    let scheme = if options.tls.is_some() { "https" } else { "http" };
    // Standard output has one line, for whoever started this: where requests are taken.
    Ok(command::serve(options, args.plain_http, |address| line(&format!("{scheme}://{address}")))?)
}
