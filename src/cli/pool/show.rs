//! Commands that look at a pool.

use clap::Args;
use coracle_scheduler::client::Pool;
use serde_json::{Value, json};

use crate::cli::error::CliError;
use crate::cli::format::Format;
use crate::cli::table::{human_memory, human_size, print_json};

/// List instances
#[derive(Args)]
pub struct PsArgs {
    /// Also those that have ended
    #[arg(short, long)]
    all: bool,
    /// json, or a Go template such as '{{.Name}}'
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
}

/// Show everything about an instance or a provider, as JSON
#[derive(Args)]
pub struct InspectArgs {
    /// Name or id
    name: String,
}

/// List the machines that are lent
#[derive(Args)]
pub struct ProvidersArgs {
    /// json, or a Go template such as '{{.Name}}'
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
}

/// Show what was used, by group, user and provider
#[derive(Args)]
pub struct UsageArgs {
    /// json, or a Go template
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
}

fn number(object: &Value, field: &str) -> u64 {
    object[field].as_u64().unwrap_or(0)
}

/// Gives what a provider says about an instance's disk, under the names that `coracle inspect` has for it.
fn disk(reported: &Value) -> Value {
    if reported.is_null() {
        return Value::Null;
    }
    json!({
        "Backend": reported["backend"],
        "Hard": reported["hard"],
        "LimitBytes": reported["limit_bytes"],
        "LimitInodes": reported["limit_inodes"],
        "UsedBytes": reported["used_bytes"],
        "UsedInodes": reported["used_inodes"],
        "Lost": reported["lost"],
        "Exceeded": reported["exceeded"],
    })
}

/// Lists instances, newest last.
pub fn ps(pool: &Pool, args: &PsArgs) -> Result<(), CliError> {
    const COLUMNS: &str = "{{.Name}}\t{{.Image}}\t{{.State}}\t{{.Provider}}\t{{.Reason}}";
    let providers = pool.list("/v1/providers")?;
    let called = |id: &Value| {
        let found = providers.iter().find(|provider| &provider["id"] == id);
        found.map_or(Value::Null, |provider| provider["name"].clone())
    };
    let ended = |state: &Value| matches!(state.as_str(), Some("stopped" | "failed"));
    let rows: Vec<Value> = pool
        .list("/v1/instances")?
        .into_iter()
        .filter(|instance| args.all || !ended(&instance["state"]))
        .map(|instance| {
            json!({
                "ID": instance["id"],
                "Name": instance["name"],
                "Image": instance["spec"]["image"],
                "State": instance["state"],
                "Provider": called(&instance["alloc"]["provider"]).as_str().unwrap_or_default(),
                "Reason": instance["reason"],
                "Disk": disk(&instance["alloc"]["disk"]),
            })
        })
        .collect();
    Ok(Format::listing(args.format.as_deref(), COLUMNS)?.print(&rows)?)
}

/// Shows one object.
pub fn inspect(pool: &Pool, args: &InspectArgs) -> Result<(), CliError> {
    let found = pool
        .find("/v1/instances", "instance", &args.name)
        .or_else(|_| pool.find("/v1/providers", "instance or provider", &args.name))?;
    print_json(&found)
}

/// Lists providers.
pub fn providers(pool: &Pool, args: &ProvidersArgs) -> Result<(), CliError> {
    const COLUMNS: &str = "{{.Name}}\t{{.State}}\t{{.Cpus}}\t{{.Memory}}\t{{.Disk}}\t{{.Accepting}}\t{{.Tier}}";
    let rows: Vec<Value> = pool
        .list("/v1/providers")?
        .into_iter()
        .map(|provider| {
            let capacity = &provider["capacity"];
            json!({
                "ID": provider["id"],
                "Name": provider["name"],
                "State": provider["state"],
                "Cpus": number(capacity, "cpu_millis").to_string().parse::<f64>().unwrap_or(0.0) / 1000.0,
                "Memory": human_memory(number(capacity, "memory_bytes")),
                "Disk": human_size(number(capacity, "disk_bytes")),
                "Accepting": provider["accepting"],
                "Tier": provider["tier"],
            })
        })
        .collect();
    Ok(Format::listing(args.format.as_deref(), COLUMNS)?.print(&rows)?)
}

/// Shows what was used.
pub fn usage(pool: &Pool, args: &UsageArgs) -> Result<(), CliError> {
    const COLUMNS: &str = "{{.Group}}\t{{.User}}\t{{.Provider}}\t{{.CpuSeconds}}\t{{.MemoryGiBSeconds}}\t{{.Network}}";
    let rows: Vec<Value> = pool
        .list("/v1/usage")?
        .into_iter()
        .map(|record| {
            let usage = &record["usage"];
            json!({
                "Group": record["group"],
                "User": record["user"],
                "Provider": record["provider"],
                "CpuSeconds": number(usage, "cpu_ms") / 1000,
                "MemoryGiBSeconds": number(usage, "memory_mib_s") / 1024,
                "Network": human_size(number(usage, "network_bytes")),
            })
        })
        .collect();
    Ok(Format::listing(args.format.as_deref(), COLUMNS)?.print(&rows)?)
}
