//! The flags that make a container, which `run` and `create` share: from flags to `RunOptions`.

use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use coracle_images::Platform;
use coracle_runtime::UserNs;

use super::error::CliError;
use super::isolation::IsolationArgs;
use super::limits::LimitArgs;
use super::moment;
use super::network::NetworkArgs;
use crate::engine::mounts::MountRequest;
use crate::engine::options::{
    EnvEntry, HealthOptions, PullPolicy, RunOptions, SecurityOptions, Terminal, UserNsChoice, VolumesFrom,
};
use crate::engine::ports::{parse_expose, parse_publish};
use crate::engine::quota::DiskAsk;
use crate::engine::record::{LogDriver, LogOptions, RestartPolicy};
use crate::engine::size::{Ulimit, parse_size_bytes};
use crate::env;

/// The longest --env-file that is read; its content must fit into an environment anyway.
const ENV_FILE_BYTES_MAX: u64 = 1 << 20;
/// Each rotation renames every file.
const LOG_FILES_MAX: u32 = 1000;

/// Is everything that can be said about a container before its image.
#[derive(Args)]
pub struct ContainerArgs {
    /// Remove the container when it exits
    #[arg(long)]
    rm: bool,
    /// Keep standard input open
    #[arg(short, long)]
    interactive: bool,
    /// Give the container a terminal
    #[arg(short, long)]
    tty: bool,
    /// Set an environment variable, NAME=VALUE or NAME for the caller's value
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Read environment variables from a file
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Bind a host path or a named volume into the container
    #[arg(short, long, value_name = "[SOURCE:]DESTINATION[:OPTIONS]")]
    volume: Vec<String>,
    /// Mount type=bind|volume|tmpfs,source=…,target=…[,readonly]
    #[arg(long, value_name = "FIELDS")]
    mount: Vec<String>,
    /// Mount what another container mounts
    #[arg(long, value_name = "CONTAINER[:ro]")]
    volumes_from: Vec<VolumesFrom>,
    /// Mount memory
    #[arg(long, value_name = "DESTINATION[:OPTIONS]")]
    tmpfs: Vec<String>,
    /// Working directory
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// User and group, by name or number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Add a supplementary group
    #[arg(long, value_name = "GROUP")]
    group_add: Vec<String>,
    /// Replace the image's entry point
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Name the container
    #[arg(long)]
    name: Option<String>,
    /// Host name inside
    #[arg(short = 'h', long)]
    hostname: Option<String>,
    /// Mount the root filesystem read-only
    #[arg(long)]
    read_only: bool,
    /// Run an init that reaps processes and forwards signals
    #[arg(long)]
    init: bool,
    #[command(flatten)]
    networking: NetworkArgs,
    /// Publish a port
    #[arg(short, long, value_name = "[IP:]HOST:CONTAINER[/PROTOCOL]")]
    publish: Vec<String>,
    /// Publish every port the image exposes on a free port
    #[arg(short = 'P', long)]
    publish_all: bool,
    /// Expose a port or a range, for -P
    #[arg(long, value_name = "PORT[/PROTOCOL]")]
    expose: Vec<String>,
    /// Name server for the container
    #[arg(long, value_name = "IP")]
    dns: Vec<std::net::IpAddr>,
    /// Option of the resolver for the container, as in ndots:2
    #[arg(long, visible_alias = "dns-opt", value_name = "OPTION")]
    dns_option: Vec<String>,
    /// Search domain for the container
    #[arg(long, value_name = "DOMAIN")]
    dns_search: Vec<String>,
    /// Add a line to /etc/hosts
    #[arg(long, value_name = "NAME:IP")]
    add_host: Vec<String>,
    /// Add a capability
    #[arg(long, value_name = "CAP")]
    cap_add: Vec<String>,
    /// Drop a capability
    #[arg(long, value_name = "CAP")]
    cap_drop: Vec<String>,
    /// no-new-privileges[=false], seccomp=unconfined|FILE
    #[arg(long, value_name = "OPTION")]
    security_opt: Vec<String>,
    /// User namespace: auto, keep-id or single
    #[arg(long, value_enum, default_value = "auto")]
    userns: UserNsArg,
    /// Set a resource limit
    #[arg(long, value_name = "NAME=SOFT[:HARD]")]
    ulimit: Vec<Ulimit>,
    /// Size of /dev/shm
    #[arg(long, value_name = "SIZE")]
    shm_size: Option<String>,
    /// Signal that stops the container
    #[arg(long, value_name = "SIGNAL")]
    stop_signal: Option<String>,
    /// When to ask the registry
    #[arg(long, value_enum, default_value = "missing")]
    pull: PullArg,
    /// Platform of the image, OS/ARCH[/VARIANT]
    #[arg(long)]
    platform: Option<Platform>,
    /// How readily the kernel kills it when the machine runs out of memory, -1000 to 1000
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true, value_parser = clap::value_parser!(i32).range(-1000..=1000))]
    oom_score_adj: Option<i32>,
    #[command(flatten)]
    isolation: IsolationArgs,
    #[command(flatten)]
    limits: LimitArgs,
    /// What may be written: SIZE[,inodes=N][,backend=NAME]; a write beyond it fails; none [default: of config.json]
    #[arg(long, value_name = "SIZE[,inodes=N]", help_heading = "Limits")]
    disk: Option<String>,
    /// The same as --disk, for Docker's size=SIZE
    #[arg(long, value_name = "size=SIZE", help_heading = "Limits")]
    storage_opt: Vec<String>,
    /// Seconds between the stop signal and SIGKILL [default: 10]
    #[arg(long, value_name = "SECONDS")]
    stop_timeout: Option<u64>,
    /// What happens when it has ended: no, on-failure[:N], always or unless-stopped
    #[arg(long, value_name = "POLICY", default_value = "no", hide_default_value = true)]
    restart: RestartPolicy,
    /// Do not show the progress of a pull
    #[arg(short, long)]
    pub quiet: bool,
    /// Read labels from a file: NAME=VALUE lines
    #[arg(long, value_name = "FILE")]
    label_file: Vec<PathBuf>,
    /// Set a label
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    label: Vec<String>,
    /// Write the container's id to a file that does not exist yet
    #[arg(long, value_name = "FILE")]
    cidfile: Option<PathBuf>,
    /// Where the output of a container with a shim goes [default: json-file]
    #[arg(long, value_enum)]
    log_driver: Option<LogDriverArg>,
    /// max-size=SIZE of a log file, max-file=COUNT of them [default: 64m and 2]
    #[arg(long, value_name = "NAME=VALUE")]
    log_opt: Vec<String>,
    /// Command that says whether the container is well
    #[arg(long, value_name = "COMMAND")]
    health_cmd: Option<String>,
    /// Time between two checks [default: 30s]
    #[arg(long, value_name = "TIME")]
    health_interval: Option<String>,
    /// Time one check may take [default: 30s]
    #[arg(long, value_name = "TIME")]
    health_timeout: Option<String>,
    /// Time after the start in which failures do not count [default: 0s]
    #[arg(long, value_name = "TIME")]
    health_start_period: Option<String>,
    /// Time between two checks until the first that succeeds, within the start period [default: as later]
    #[arg(long, value_name = "TIME")]
    health_start_interval: Option<String>,
    /// Failures in a row that make it unhealthy [default: 3]
    #[arg(long, value_name = "COUNT")]
    health_retries: Option<u32>,
    /// Do not run the image's health check
    #[arg(long)]
    no_healthcheck: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogDriverArg {
    JsonFile,
    None,
}

#[derive(Clone, Copy, ValueEnum)]
enum UserNsArg {
    Auto,
    KeepId,
    Single,
}

#[derive(Clone, Copy, ValueEnum)]
enum PullArg {
    Always,
    Missing,
    Never,
}

/// Turns the flags into options; `command` is the image and what follows it.
pub fn options(args: ContainerArgs, mut command: Vec<String>) -> Result<RunOptions, CliError> {
    let mut mounts = Vec::new();
    for request in &args.volume {
        mounts.push(MountRequest::from_volume(request)?);
    }
    for request in &args.mount {
        mounts.push(MountRequest::from_mount(request)?);
    }
    for request in &args.tmpfs {
        mounts.push(MountRequest::from_tmpfs(request)?);
    }
    let mut publish = Vec::new();
    for request in &args.publish {
        publish.extend(parse_publish(request)?);
    }
    let mut expose = Vec::new();
    for request in &args.expose {
        expose.extend(parse_expose(request)?);
    }
    let mut security = SecurityOptions::default();
    for option in &args.security_opt {
        security.apply(option)?;
    }
    let mut add_hosts = Vec::new();
    for entry in &args.add_host {
        add_hosts.push(parse_add_host(entry)?);
    }
    let image = command.remove(0);
    Ok(RunOptions {
        image,
        command,
        name: args.name,
        hostname: args.hostname,
        auto_remove: args.rm,
        terminal: Terminal { interactive: args.interactive, tty: args.tty },
        env: env_entries(&args.env_file, &args.env)?,
        mounts,
        volumes_from: args.volumes_from,
        workdir: args.workdir,
        user: args.user,
        group_add: args.group_add,
        entrypoint: args.entrypoint,
        read_only: args.read_only,
        init: args.init,
        network: args.networking.network()?,
        net_rate: args.networking.net_rate,
        publish,
        publish_all: args.publish_all,
        expose,
        dns: args.dns.iter().map(ToString::to_string).collect(),
        dns_search: args.dns_search,
        dns_options: dns_options(args.dns_option)?,
        add_hosts,
        cap_add: args.cap_add,
        cap_drop: args.cap_drop,
        security,
        userns: UserNsChoice(match args.userns {
            UserNsArg::Auto => UserNs::Auto,
            UserNsArg::KeepId => UserNs::KeepId,
            UserNsArg::Single => UserNs::Single,
        }),
        ulimits: args.ulimit,
        shm_size_bytes: args.shm_size.as_deref().map(parse_size_bytes).transpose()?,
        stop_signal: args.stop_signal,
        pull: match args.pull {
            PullArg::Always => PullPolicy::Always,
            PullArg::Missing => PullPolicy::Missing,
            PullArg::Never => PullPolicy::Never,
        },
        platform: args.platform,
        limits: args.limits.options()?,
        isolation: args.isolation.isolation()?,
        disk: disk_size(args.disk.as_deref(), &args.storage_opt)?,
        oom_score_adj: args.oom_score_adj,
        stop_timeout_s: args.stop_timeout,
        detach: false,
        attach: None,
        wants_shim: !args.log_opt.is_empty() || args.log_driver.is_some(),
        cid_file: args.cidfile,
        labels: labels(&args.label_file, &args.label)?,
        restart: args.restart,
        log: log_options(args.log_driver, &args.log_opt)?,
        health: HealthOptions {
            disabled: args.no_healthcheck,
            command: args.health_cmd,
            interval: args.health_interval.as_deref().map(span).transpose()?,
            timeout: args.health_timeout.as_deref().map(span).transpose()?,
            start_period: args.health_start_period.as_deref().map(span).transpose()?,
            start_interval: args.health_start_interval.as_deref().map(span).transpose()?,
            retries: args.health_retries,
        },
    })
}

/// Reads --disk and Docker's words for it.
fn disk_size(disk: Option<&str>, options: &[String]) -> Result<DiskAsk, CliError> {
    let mut wanted = disk.map(str::parse::<DiskAsk>).transpose()?;
    for option in options {
        let size = option.strip_prefix("size=").ok_or_else(|| {
            CliError::message(format!("invalid storage option {option:?}: only size=SIZE is implemented"))
        })?;
        if wanted.is_some() {
            return Err(CliError::message("--disk and --storage-opt size= say the same thing; give one of them"));
        }
        wanted = Some(size.parse()?);
    }
    Ok(wanted.unwrap_or_default())
}

/// Reads the files first, then the flags, so that a flag wins.
fn labels(files: &[PathBuf], flags: &[String]) -> Result<Vec<(String, String)>, CliError> {
    let mut labels = Vec::new();
    for file in files {
        labels.extend(env_file_lines(file)?.iter().map(|line| label_pair(line)));
    }
    labels.extend(flags.iter().map(|label| label_pair(label)));
    Ok(labels)
}

/// Splits NAME=VALUE; a name alone has an empty value.
fn label_pair(text: &str) -> (String, String) {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    (name.to_owned(), value.to_owned())
}

/// Reads a span of time such as 30s or 1m30s.
fn span(text: &str) -> Result<Duration, CliError> {
    let span = moment::duration(text).and_then(|span| Duration::try_from(span).ok());
    span.ok_or_else(|| CliError::message(format!("invalid duration {text:?}: expected a number and a unit, as in 30s")))
}

fn log_options(driver: Option<LogDriverArg>, options: &[String]) -> Result<LogOptions, CliError> {
    let mut log = LogOptions::default();
    if matches!(driver, Some(LogDriverArg::None)) {
        log.driver = LogDriver::None;
    }
    for option in options {
        let fail = |reason: &str| CliError::message(format!("invalid log option {option:?}: {reason}"));
        match option.split_once('=') {
            Some(("max-size", "-1")) => log.max_size_bytes = None,
            Some(("max-size", size)) => {
                let bytes = parse_size_bytes(size)?;
                log.max_size_bytes = Some(if bytes > 0 { bytes } else { return Err(fail("the size is 0")) });
            }
            Some(("max-file", count)) => {
                let count = count.parse().ok().filter(|count| (1..=LOG_FILES_MAX).contains(count));
                log.max_files = count.ok_or_else(|| fail("expected 1 to 1000"))?;
            }
            _ => return Err(fail("only max-size and max-file are implemented")),
        }
    }
    Ok(log)
}

/// Refuses what would be more than one word of resolv.conf(5).
fn dns_options(options: Vec<String>) -> Result<Vec<String>, CliError> {
    let plain = |option: &String| !option.is_empty() && option.bytes().all(|byte| byte.is_ascii_graphic());
    match options.iter().find(|option| !plain(option)) {
        Some(bad) => Err(CliError::message(format!("invalid DNS option {bad:?}: expected one word such as ndots:2"))),
        None => Ok(options),
    }
}

fn parse_add_host(entry: &str) -> Result<(String, String), CliError> {
    let fail = || CliError::message(format!("invalid host entry {entry:?}: expected NAME:IP"));
    let (name, ip) = entry.split_once(':').ok_or_else(fail)?;
    let ip = ip.trim_start_matches('[').trim_end_matches(']');
    let valid = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
    let ip: std::net::IpAddr = ip.parse().map_err(|_| fail())?;
    if valid { Ok((name.to_owned(), ip.to_string())) } else { Err(fail()) }
}

/// Reads the files first, then the flags, so that a flag wins.
pub fn env_entries(files: &[PathBuf], flags: &[String]) -> Result<Vec<EnvEntry>, CliError> {
    let mut entries = Vec::new();
    for file in files {
        for line in env_file_lines(file)? {
            entries.push(env_entry(&line)?);
        }
    }
    for flag in flags {
        entries.push(env_entry(flag)?);
    }
    Ok(entries)
}

fn env_file_lines(path: &Path) -> Result<Vec<String>, CliError> {
    use std::io::Read;
    let file = fs_err::File::open(path)?;
    let mut lines = Vec::new();
    for line in std::io::BufReader::new(file.take(ENV_FILE_BYTES_MAX)).lines() {
        let line = line.map_err(|error| CliError::message(format!("cannot read {}: {error}", path.display())))?;
        let line = line.trim_start();
        if !line.is_empty() && !line.starts_with('#') {
            lines.push(line.to_owned());
        }
    }
    Ok(lines)
}

fn env_entry(text: &str) -> Result<EnvEntry, CliError> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, env::named(text)),
    };
    if name.is_empty() || name.contains(char::is_whitespace) {
        return Err(CliError::message(format!("invalid environment variable {text:?}")));
    }
    Ok(match value {
        Some(value) => EnvEntry::Set { name: name.to_owned(), value },
        None => EnvEntry::Unset { name: name.to_owned() },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn env_file_grammar() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("env");
        fs_err::write(&file, "# comment\n\nA=1\n  B=two words=x\nCORACLE_SURELY_UNSET\n").unwrap();
        let entries = env_entries(&[file], &["A=2".to_owned()]).unwrap();
        let set = |name: &str, value: &str| EnvEntry::Set { name: name.into(), value: value.into() };
        assert_eq!(
            entries,
            [
                set("A", "1"),
                set("B", "two words=x"),
                EnvEntry::Unset { name: "CORACLE_SURELY_UNSET".into() },
                set("A", "2")
            ]
        );
        assert!(env_entry("=x").is_err());
        assert!(env_entry("A B=x").is_err());
    }

    #[test]
    fn add_host_grammar() {
        assert_eq!(parse_add_host("db:10.0.0.1").unwrap(), ("db".into(), "10.0.0.1".into()));
        assert_eq!(parse_add_host("db:::1").unwrap().1, "::1");
        for bad in ["db", "db:x", ":1.2.3.4", "d b:1.2.3.4", "d\nb:1.2.3.4"] {
            assert!(parse_add_host(bad).is_err(), "{bad}");
        }
    }
}
