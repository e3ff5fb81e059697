//! `coracle network`: create, ls, inspect, rm, connect, disconnect, prune.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::super::confirm::confirm;
use super::super::error::{CliError, line};
use super::super::filter::Filters;
use super::super::format::Format;
use super::super::network::check_alias;
use super::super::{moment, table};
use crate::engine::networks::record::{self, CreateOptions, NetworkRecord};
use crate::engine::networks::subnet::Subnet;
use crate::engine::networks::{Attachment, NetworksError, connect};
use crate::engine::{Engine, containers, events};

const COLUMNS: &str = "{{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.Scope}}";
const HEADINGS: [(&str, &str); 1] = [("ID", "NETWORK ID")];
/// The one kind there is.
const DRIVER: &str = "bridge";
const SHORT_ID: usize = 12;

/// Manage networks
#[derive(Args)]
#[command(disable_help_subcommand = true)]
pub struct NetworkCommandArgs {
    #[command(subcommand)]
    command: NetworkCommand,
}

#[derive(Subcommand)]
#[command(defer = true)]
enum NetworkCommand {
    Create(CreateArgs),
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    Inspect(InspectArgs),
    #[command(visible_alias = "remove")]
    Rm(RmArgs),
    Connect(ConnectArgs),
    Disconnect(DisconnectArgs),
    Prune(PruneArgs),
}

/// Make a network
#[derive(Args)]
struct CreateArgs {
    /// Nothing leads out of it
    #[arg(long)]
    internal: bool,
    /// Range of addresses, as in 10.1.2.0/24
    #[arg(long, value_name = "RANGE")]
    subnet: Vec<Subnet>,
    /// The network's own address
    #[arg(long, value_name = "IP")]
    gateway: Vec<IpAddr>,
    /// Give it IPv6 addresses too
    #[arg(long)]
    ipv6: bool,
    /// Set a label
    #[arg(long, value_name = "KEY[=VALUE]")]
    label: Vec<String>,
    /// Option under docker's name com.docker.network.KEY: driver.mtu, bridge.enable_icc,
    /// bridge.host_binding_ipv4, bridge.enable_ip_masquerade=true
    #[arg(short, long, value_name = "KEY=VALUE")]
    opt: Vec<String>,
    /// Kind of network; only bridge
    #[arg(short, long, default_value = DRIVER)]
    driver: String,
    /// Name
    name: String,
}

/// List networks
#[derive(Args)]
struct LsArgs {
    /// Show only ids
    #[arg(short, long)]
    quiet: bool,
    /// Show whole ids
    #[arg(long)]
    no_trunc: bool,
    /// Keep networks with dangling=, driver=, id=, label= or name=
    #[arg(short, long = "filter", value_name = "KEY=VALUE")]
    filters: Vec<String>,
    /// json, or a Go template such as '{{.Name}}'
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
}

/// Show everything about networks as JSON
#[derive(Args)]
struct InspectArgs {
    /// json, or a Go template such as '{{.Name}}'
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// Networks, by name
    #[arg(required = true)]
    networks: Vec<String>,
}

/// Remove networks that no container is in
#[derive(Args)]
struct RmArgs {
    /// A network that is not there is no error
    #[arg(short, long)]
    force: bool,
    /// Networks, by name
    #[arg(required = true)]
    networks: Vec<String>,
}

/// Put a container into a network
#[derive(Args)]
struct ConnectArgs {
    /// Address in the network
    #[arg(long, value_name = "IP")]
    ip: Option<Ipv4Addr>,
    /// IPv6 address in the network
    #[arg(long, value_name = "IP")]
    ip6: Option<Ipv6Addr>,
    /// One more name in the network
    #[arg(long, value_name = "NAME")]
    alias: Vec<String>,
    /// Network, by name
    network: String,
    /// Container, by name or id
    container: String,
}

/// Take a container out of a network
#[derive(Args)]
struct DisconnectArgs {
    /// Also out of a network that is gone
    #[arg(short, long)]
    force: bool,
    /// Network, by name
    network: String,
    /// Container, by name or id
    container: String,
}

/// Remove the networks that no container is in
#[derive(Args)]
struct PruneArgs {
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Keep networks without label=, or with label!=
    #[arg(long = "filter", value_name = "KEY=VALUE")]
    filters: Vec<String>,
}

/// Runs one of the commands.
pub fn run(root: Option<PathBuf>, args: NetworkCommandArgs) -> Result<ExitCode, CliError> {
    let engine = Engine::open(root)?;
    match args.command {
        NetworkCommand::Create(args) => create(&engine, args)?,
        NetworkCommand::Ls(args) => ls(&engine, &args)?,
        NetworkCommand::Inspect(args) => inspect(&engine, args)?,
        NetworkCommand::Rm(args) => return Ok(rm(&engine, args)),
        NetworkCommand::Connect(args) => {
            args.alias.iter().try_for_each(|alias| check_alias(alias))?;
            let ips = args.ip.map(IpAddr::V4).into_iter().chain(args.ip6.map(IpAddr::V6)).collect();
            let attachment = Attachment { network: args.network, aliases: args.alias, ips };
            connect::connect(&engine, &args.container, &attachment)?;
        }
        NetworkCommand::Disconnect(args) => {
            connect::disconnect(&engine, &args.container, &args.network, args.force)?;
        }
        NetworkCommand::Prune(args) => prune(&engine, &args)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn pairs(list: &[String]) -> BTreeMap<String, String> {
    let pair = |text: &String| {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        (key.to_owned(), value.to_owned())
    };
    list.iter().map(pair).collect()
}

fn create(engine: &Engine, args: CreateArgs) -> Result<(), CliError> {
    if args.driver != DRIVER {
        return Err(CliError::message(format!("network driver {:?} is not implemented; there is bridge", args.driver)));
    }
    let options = CreateOptions {
        internal: args.internal,
        subnets: args.subnet,
        gateways: args.gateway,
        ipv6: args.ipv6,
        labels: pairs(&args.label),
        options: pairs(&args.opt),
    };
    let made = record::create(engine.root(), &args.name, &options)?;
    events::emit(engine.root(), events::Kind::Network, "create", &made.name, &[("type", DRIVER)]);
    line(&made.id);
    Ok(())
}

fn ls(engine: &Engine, args: &LsArgs) -> Result<(), CliError> {
    let filters = Filters::parse(&args.filters, &["dangling", "driver", "id", "label", "name"])?;
    let dangling = filters.truth("dangling")?;
    let format = Format::listing(args.format.as_deref(), COLUMNS)?.headed(&HEADINGS);
    let mut rows = Vec::new();
    for network in record::list(engine.root()) {
        let kept = filters.labels("label", |key| network.labels.get(key).map(String::as_str))
            && filters.any("name", |part| network.name.contains(part))
            && filters.any("id", |part| network.id.starts_with(part))
            && filters.any("driver", |driver| driver == DRIVER)
            && dangling.is_none_or(|wanted| wanted == record::users(engine.root(), &network.name).is_empty());
        if kept {
            rows.push(row(&network, args.no_trunc));
        }
    }
    if args.quiet {
        rows.iter().for_each(|row| line(row["ID"].as_str().unwrap_or_default()));
        return Ok(());
    }
    Ok(format.print(&rows)?)
}

fn row(network: &NetworkRecord, whole: bool) -> Value {
    let id = if whole { network.id.as_str() } else { network.id.get(..SHORT_ID).unwrap_or(&network.id) };
    let seconds = i64::try_from(network.created_ns / 1_000_000_000).unwrap_or(i64::MAX);
    let labels: Vec<String> = network.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    json!({
        "ID": id,
        "Name": network.name,
        "Driver": DRIVER,
        "Scope": "local",
        "Internal": network.internal.to_string(),
        "IPv6": network.v6.is_some().to_string(),
        "CreatedAt": moment::created_at(seconds),
        "Labels": labels.join(","),
    })
}

fn inspect(engine: &Engine, args: InspectArgs) -> Result<(), CliError> {
    let mut rows = Vec::new();
    for name in args.networks {
        rows.push(describe(engine, &record::find(engine.root(), &name)?));
    }
    match args.format.as_deref() {
        None => table::print_json(&rows)?,
        Some(format) => Format::parse(format)?.print(&rows)?,
    }
    Ok(())
}

/// Gives a network under docker's names.
fn describe(engine: &Engine, network: &NetworkRecord) -> Value {
    let seconds = i64::try_from(network.created_ns / 1_000_000_000).unwrap_or(i64::MAX);
    let created = jiff::Timestamp::from_second(seconds).map(|at| at.to_string()).unwrap_or_default();
    let ranges = network.ranges().map(|range| json!({"Subnet": range.subnet.to_string(), "Gateway": range.gateway}));
    let all = containers::list(engine.root());
    let mut members = Map::new();
    for (id, ips) in connect::members(engine.root(), &network.name) {
        let name = all.iter().find(|one| one.id() == id).map(|one| one.record.called().to_owned());
        let with_bits = |ip: &IpAddr| {
            let range = network.ranges().find(|range| range.subnet.contains(*ip));
            range.map_or_else(String::new, |range| format!("{ip}/{}", range.subnet.prefix()))
        };
        let of = |v6: bool| ips.iter().find(|ip| ip.is_ipv6() == v6).map(with_bits).unwrap_or_default();
        members.insert(id, json!({"Name": name, "IPv4Address": of(false), "IPv6Address": of(true)}));
    }
    json!({
        "Name": network.name,
        "Id": network.id,
        "Created": created,
        "Scope": "local",
        "Driver": DRIVER,
        "EnableIPv6": network.v6.is_some(),
        "IPAM": {"Driver": "default", "Options": {}, "Config": ranges.collect::<Vec<_>>()},
        "Internal": network.internal,
        "Attachable": false,
        "Ingress": false,
        "Containers": members,
        "Options": network.options,
        "Labels": network.labels,
    })
}

/// Removes each network; what fails is said, and the others are removed nevertheless.
fn rm(engine: &Engine, args: RmArgs) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for name in args.networks {
        match record::remove(engine.root(), &name) {
            Ok(gone) => {
                events::emit(engine.root(), events::Kind::Network, "destroy", &gone.name, &[("type", DRIVER)]);
                line(&name);
            }
            Err(NetworksError::Unknown(_)) if args.force => line(&name),
            Err(error) => code = CliError::from(error).report(),
        }
    }
    code
}

fn prune(engine: &Engine, args: &PruneArgs) -> Result<(), CliError> {
    if !args.force && !confirm("WARNING! This will remove all networks that no container is in.") {
        return Ok(());
    }
    let filters = Filters::parse(&args.filters, &["label"])?;
    let mut gone = Vec::new();
    for network in record::list(engine.root()) {
        if !filters.labels("label", |key| network.labels.get(key).map(String::as_str)) {
            continue;
        }
        match record::remove(engine.root(), &network.name) {
            Ok(network) => gone.push(network.name),
            // Taken into use, or removed by somebody else, this moment.
            Err(NetworksError::InUse { .. } | NetworksError::Unknown(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if !gone.is_empty() {
        line("Deleted Networks:");
        gone.iter().for_each(|name| line(name));
        line("");
    }
    Ok(())
}
