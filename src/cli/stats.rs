//! `coracle stats`: what containers use, from their cgroups or, where there are none, from /proc.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};

use super::error::{CliError, line, note};
use super::format::Format;
use super::table;
use crate::engine::Engine;
use crate::engine::consumption::{self, Usage};
use crate::engine::container::short_id;
use crate::engine::containers::{self, Container};
use crate::engine::provider::facts::memory_bytes;
use crate::engine::quota;

/// Docker's pace.
const INTERVAL: Duration = Duration::from_secs(1);
const COLUMNS: &str =
    "{{.ID}}\t{{.Name}}\t{{.CPUPerc}}\t{{.MemUsage}}\t{{.MemPerc}}\t{{.NetIO}}\t{{.BlockIO}}\t{{.PIDs}}";
const HEADINGS: [(&str, &str); 8] = [
    ("ID", "CONTAINER ID"),
    ("Container", "CONTAINER"),
    ("CPUPerc", "CPU %"),
    ("MemUsage", "MEM USAGE / LIMIT"),
    ("MemPerc", "MEM %"),
    ("NetIO", "NET I/O"),
    ("BlockIO", "BLOCK I/O"),
    ("PIDs", "PIDS"),
];

/// Show what containers use of the processors, memory, network and disks
#[derive(Args)]
pub struct StatsArgs {
    /// Also containers that do not run
    #[arg(short, long)]
    all: bool,
    /// Show it once
    #[arg(long)]
    no_stream: bool,
    /// Show whole ids
    #[arg(long)]
    no_trunc: bool,
    /// json, or a Go template such as '{{.Name}} {{.MemUsage}}'
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Containers, by name or id; all without any
    containers: Vec<String>,
}

/// Shows the table again and again, or once.
pub fn run(root: Option<PathBuf>, args: StatsArgs) -> Result<ExitCode, CliError> {
    let format = Format::listing(args.format.as_deref(), COLUMNS)?.headed(&HEADINGS);
    let engine = Engine::open(root)?;
    let mut before = measure(engine.root(), &args)?;
    if before.values().any(|measured| measured.usage.as_ref().is_some_and(|usage| !usage.from_cgroup)) {
        note("note: some containers have no cgroup; their numbers are sums over their processes");
    }
    let clears = std::io::stdout().is_terminal() && !args.no_stream;
    loop {
        // A busy processor is only seen between two looks.
        let _ = rustix::event::poll(&mut [], Some(&INTERVAL.try_into()?));
        let now = measure(engine.root(), &args)?;
        let rows: Vec<Value> = now.iter().map(|(id, now)| row(now, before.get(id), args.no_trunc)).collect();
        if clears {
            line("\u{1b}[2J\u{1b}[H");
        }
        if !format.print_open(&rows)? || args.no_stream {
            return Ok(ExitCode::SUCCESS);
        }
        before = now;
    }
}

struct Measured {
    at: Instant,
    container: Container,
    /// Nothing of one that does not run.
    usage: Option<Usage>,
}

/// Looks at the asked containers once, newest first.
fn measure(root: &Path, args: &StatsArgs) -> Result<BTreeMap<(std::cmp::Reverse<u64>, String), Measured>, CliError> {
    let found: Vec<Container> = if args.containers.is_empty() {
        let all = containers::list(root).into_iter();
        all.filter(|container| args.all || container.init().is_some()).collect()
    } else {
        args.containers.iter().map(|name| containers::find(root, name)).collect::<Result<_, _>>()?
    };
    let measured = found.into_iter().map(|container| {
        let key = (std::cmp::Reverse(container.record.created_ns), container.id().to_owned());
        let usage = consumption::measure(&container);
        (key, Measured { at: Instant::now(), container, usage })
    });
    Ok(measured.collect())
}

fn row(now: &Measured, before: Option<&Measured>, whole: bool) -> Value {
    let record = &now.container.record;
    let usage = now.usage.clone().unwrap_or_default();
    let earlier = before.and_then(|before| Some((before.at, before.usage.as_ref()?.cpu_us)));
    let hundredths = earlier.map_or(0, |(at, cpu_us)| {
        let passed_us = u64::try_from(now.at.duration_since(at).as_micros()).unwrap_or(0).max(1);
        usage.cpu_us.saturating_sub(cpu_us).saturating_mul(10_000) / passed_us
    });
    let limit = usage.memory_limit_bytes.unwrap_or_else(|| memory_bytes("MemTotal")).max(1);
    let memory_hundredths = u128::from(usage.memory_bytes) * 10_000 / u128::from(limit);
    let percent = |hundredths: u128| format!("{}.{:02}%", hundredths / 100, hundredths % 100);
    let pair = |(from, to): (u64, u64)| format!("{} / {}", table::human_size(from), table::human_size(to));
    let id = if whole { &record.id } else { short_id(&record.id) };
    let disk = quota::usage(&now.container);
    json!({
        "Container": id,
        "ID": id,
        "Name": record.called(),
        "CPUPerc": percent(u128::from(hundredths)),
        "MemUsage": format!("{} / {}", table::human_memory(usage.memory_bytes), table::human_memory(limit)),
        "MemPerc": percent(memory_hundredths),
        "NetIO": pair(usage.network_bytes),
        // Ours: packets, and what was dropped of them.
        "NetPackets": format!("{} / {}", usage.network_packets.0, usage.network_packets.1),
        "NetDrops": format!("{} / {}", usage.network_drops.0, usage.network_drops.1),
        "BlockIO": pair(usage.disk_bytes),
        "PIDs": usage.tasks.to_string(),
        // Ours: only where something is limited.
        "DiskUsage": disk.map(|disk| pair((disk.used_bytes.unwrap_or(0), disk.limit_bytes))),
        "DiskBackend": disk.map(|disk| disk.backend),
        "DiskHard": disk.map(|disk| disk.hard),
    })
}
