//! `coracle quota`: what an administrator sets up once, so that the filesystem itself keeps disk limits.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::json;

use super::error::{CliError, line};
use super::format::Format;
use super::table;
use crate::engine::quota::{self, Backend, DiskSize, Filesystem, Place, Setup};
use crate::engine::{Engine, user};

/// Slots cost nothing until they are used.
const SLOTS_DEFAULT: u64 = 16;
const SLOTS_MAX: u64 = 10_000;
const COLUMNS: &str = "{{.Path}}\t{{.Filesystem}}\t{{.User}}\t{{.Size}}\t{{.Inodes}}\t{{.Slots}}\t{{.Used}}";
const HEADINGS: [(&str, &str); 7] = [
    ("Path", "PATH"),
    ("Filesystem", "FILESYSTEM"),
    ("User", "UID"),
    ("Size", "SIZE"),
    ("Inodes", "INODES"),
    ("Slots", "SLOTS"),
    ("Used", "IN USE"),
];

/// Have ext4, xfs or btrfs keep disk limits: faster than what works without an administrator
#[derive(Args)]
#[command(disable_help_subcommand = true)]
pub struct QuotaArgs {
    #[command(subcommand)]
    command: QuotaCommand,
}

#[derive(Subcommand)]
enum QuotaCommand {
    Setup(SetupArgs),
    Ls(LsArgs),
}

/// Set limits up once, as root; for anybody else, say what root has to do
#[derive(Args)]
struct SetupArgs {
    /// What one container may write: SIZE[,inodes=N]
    #[arg(long, value_name = "SIZE[,inodes=N]")]
    size: DiskSize,
    /// Whose containers, by name or number [default: the caller]
    #[arg(long)]
    user: Option<String>,
    /// Where that user's state directory is [default: the caller's own]
    #[arg(long, value_name = "DIR")]
    path: Option<PathBuf>,
    /// How many containers at a time (ext4 and btrfs)
    #[arg(long, value_name = "NUMBER", default_value_t = SLOTS_DEFAULT, value_parser = clap::value_parser!(u64).range(1..=SLOTS_MAX))]
    slots: u64,
}

/// List what was set up
#[derive(Args)]
struct LsArgs {
    /// json, or a Go template such as '{{.Path}}'
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
}

/// Runs one of the commands.
pub fn run(root: Option<PathBuf>, args: QuotaArgs) -> Result<ExitCode, CliError> {
    match args.command {
        QuotaCommand::Setup(args) => setup(root, args),
        QuotaCommand::Ls(args) => ls(&args),
    }
}

fn setup(root: Option<PathBuf>, args: SetupArgs) -> Result<ExitCode, CliError> {
    let user = match &args.user {
        Some(name) => {
            let passwd = fs_err::read_to_string("/etc/passwd")?;
            user::resolve(name, &passwd, "")?.uid
        }
        None => rustix::process::getuid().as_raw(),
    };
    let path = match args.path {
        Some(path) => path,
        None => Engine::open(root)?.root().to_owned(),
    };
    let wanted = Setup { path, user, size: args.size, count: args.slots };
    if rustix::process::geteuid().is_root() {
        let place = quota::setup(&wanted)?;
        steps(&place).iter().for_each(|step| line(step));
        return Ok(ExitCode::SUCCESS);
    }
    let place = quota::plan(&wanted)?;
    let (bytes, inodes) = (place.bytes, place.inodes);
    let slots = if place.count > 0 { format!(" --slots {}", place.count) } else { String::new() };
    line("once, as root:");
    line(&format!(
        "    coracle quota setup --path {} --user {} --size {bytes},inodes={inodes}{slots}",
        place.path.display(),
        place.user
    ));
    line("which does the same as:");
    steps(&place).iter().for_each(|step| line(&format!("    {step}")));
    Ok(ExitCode::SUCCESS)
}

/// Tells in the words of the usual tools what a set-up is.
fn steps(place: &Place) -> Vec<String> {
    let (path, bytes, inodes, user) = (place.path.display(), place.bytes, place.inodes, place.user);
    let last = place.first + place.count.max(1) - 1;
    let kib = bytes / 1024;
    let mut steps = match place.filesystem {
        Filesystem::Xfs => vec![format!("xfs_quota -x -c 'limit -p -d bhard={kib}k ihard={inodes}' {path}")],
        Filesystem::Ext4 => (place.first..=last)
            .take(1)
            .map(|first| format!("setquota -P {first} 0 {kib} 0 {inodes} {path}  # and so on to {last}"))
            .collect(),
        Filesystem::Btrfs => vec![
            format!("btrfs quota enable {path}"),
            format!("btrfs qgroup create 1/{} {path}  # and so on to 1/{last}", place.first),
            format!("btrfs qgroup limit {bytes} 1/{} {path}  # and so on to 1/{last}", place.first),
        ],
    };
    steps.push(format!("# for {} of uid {user}, noted in /etc/coracle/disk.json", limits(place)));
    steps
}

fn limits(place: &Place) -> String {
    let backend = match place.filesystem {
        Filesystem::Btrfs => Backend::Btrfs,
        _ => Backend::Project,
    };
    format!("--disk {}{}", place.bytes, format_args!(",backend={}", backend.word()))
}

fn ls(args: &LsArgs) -> Result<ExitCode, CliError> {
    let format = Format::listing(args.format.as_deref(), COLUMNS)?.headed(&HEADINGS);
    let rows = quota::places()?.into_iter().map(|place| {
        json!({
            "Path": place.path,
            "Filesystem": place.filesystem,
            "User": place.user,
            "Size": table::human_size(place.bytes),
            "Bytes": place.bytes,
            "Inodes": place.inodes,
            "Slots": if place.count > 0 { place.count.to_string() } else { "any".to_owned() },
            "Used": quota::used_slots(&place),
        })
    });
    format.print(&rows.collect::<Vec<_>>())?;
    Ok(ExitCode::SUCCESS)
}
