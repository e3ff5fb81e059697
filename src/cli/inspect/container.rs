//! A container as Docker's API describes it, as far as the keys mean something here.

use coracle_runtime::Rootfs;
use coracle_runtime::cgroup::LimitState;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::image;
use crate::cli::words;
use crate::engine::confinement::LIMITS_FILE;
use crate::engine::containers::{Container, Status, read_json};
use crate::engine::isolation::Device;
use crate::engine::networks::{self, Attachment};
use crate::engine::record::{HealthCheck, LogDriver, MountRecord, Record, RestartPolicy};
use crate::engine::{Engine, EngineError, quota, usage};

/// Docker's moment for what has not happened.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// Describes a container.
pub fn describe(engine: &Engine, container: &Container, size: bool) -> Result<Value, EngineError> {
    let record = &container.record;
    let spec: Value = read_json(&container.path.join("config.json")).unwrap_or_default();
    let image = engine.store().find(&record.image_id).ok().flatten();
    let image_config = image.as_ref().and_then(|image| image::config(image).ok()).unwrap_or_default();
    let file = |name: &str| container.path.join(name).display().to_string();
    let mut all = json!({
        "Id": record.id,
        "Created": moment(record.created_ns),
        "Path": record.argv.first(),
        "Args": record.argv.get(1..).unwrap_or_default(),
        "State": state(container),
        "Image": record.image_id,
        "ResolvConfPath": file("resolv.conf"),
        "HostnamePath": file("hostname"),
        "HostsPath": file("hosts"),
        "LogPath": container.logs().join("current.json").display().to_string(),
        "Name": format!("/{}", record.called()),
        "RestartCount": container.state.as_ref().map_or(0, |state| state.restarts),
        "Driver": "overlay",
        "Platform": "linux",
        "AppArmorProfile": "",
        "ExecIDs": null,
        "HostConfig": host_config(record, &spec),
        "GraphDriver": {"Name": "overlay", "Data": layers(record)},
        "Mounts": record.mounts.iter().map(mount).collect::<Vec<_>>(),
        "Config": config(record, &spec, &image_config),
        "NetworkSettings": network(container),
        // Ours: what was asked of the cgroup, and whether the kernel enforces it.
        // Ours: what may be written, who enforces that, and what is used.
        "Disk": quota::usage(container),
        "Limits": read_json::<Vec<LimitState>>(&container.path.join(LIMITS_FILE)).unwrap_or_default(),
    });
    if size {
        let own = usage::written_bytes(container)?;
        all["SizeRw"] = own.into();
        all["SizeRootFs"] = own.saturating_add(image.map_or(0, |image| image.size_bytes)).into();
    }
    Ok(all)
}

fn layers(record: &Record) -> Value {
    match &record.rootfs {
        Rootfs::Overlay { upper, work, .. } => json!({"UpperDir": upper, "WorkDir": work}),
        Rootfs::Directory(path) => json!({"Directory": path}),
    }
}

fn moment(nanoseconds: u64) -> String {
    Timestamp::from_nanosecond(i128::from(nanoseconds)).map_or_else(|_| NEVER.to_owned(), |moment| moment.to_string())
}

fn state(container: &Container) -> Value {
    let (status, exit) = (container.status(), container.exit.as_ref());
    let mut state = json!({
        "Status": status.word(),
        "Running": status.is_active(),
        "Paused": status == Status::Paused,
        "Restarting": status == Status::Restarting,
        "OOMKilled": exit.is_some_and(|exit| exit.oom_killed),
        "Dead": false,
        "Pid": container.pid(),
        "ExitCode": exit.map_or(0, |exit| exit.exit_code),
        "Error": exit.and_then(|exit| exit.error.clone()).unwrap_or_default(),
        "StartedAt": container.state.as_ref().map_or_else(|| NEVER.to_owned(), |state| moment(state.started_ns)),
        "FinishedAt": exit.map_or_else(|| NEVER.to_owned(), |exit| moment(exit.finished_ns)),
    });
    if container.record.health.is_some() {
        let health = container.health().unwrap_or_default();
        let results = health.log.iter().map(|result| {
            json!({
                "Start": moment(result.started_ns), "End": moment(result.ended_ns),
                "ExitCode": result.exit_code, "Output": result.output,
            })
        });
        state["Health"] = json!({
            "Status": if health.status.is_empty() { "starting" } else { &health.status },
            "FailingStreak": health.failing_streak,
            "Log": results.collect::<Vec<_>>(),
        });
    }
    state
}

fn restart_policy(policy: RestartPolicy) -> Value {
    let (name, count) = match policy {
        RestartPolicy::OnFailure(count) => ("on-failure".to_owned(), count.unwrap_or(0)),
        other => (other.to_string(), 0),
    };
    json!({"Name": name, "MaximumRetryCount": count})
}

fn host_config(record: &Record, spec: &Value) -> Value {
    let binds = record.mounts.iter().filter_map(|mount| {
        let source = mount.name.clone().or_else(|| Some(mount.source.as_ref()?.display().to_string()))?;
        let mode = if mount.read_only { ":ro" } else { "" };
        let named = mount.kind == "bind" || mount.name.is_some();
        named.then(|| format!("{source}:{}{mode}", mount.destination.display()))
    });
    let tmpfs = record.mounts.iter().filter(|mount| mount.kind == "tmpfs");
    let tmpfs: Map<String, Value> =
        tmpfs.map(|mount| (mount.destination.display().to_string(), Value::from(""))).collect();
    let resources = &spec["linux"]["resources"];
    let number = |value: &Value| value.as_i64().unwrap_or(0);
    let mut log = Map::new();
    if let Some(bytes) = record.log.max_size_bytes {
        log.insert("max-size".to_owned(), bytes.to_string().into());
    }
    log.insert("max-file".to_owned(), record.log.max_files.to_string().into());
    json!({
        "AutoRemove": record.auto_remove,
        "Binds": binds.collect::<Vec<_>>(),
        "Tmpfs": tmpfs,
        "Init": record.init,
        "LogConfig": {
            "Type": if record.log.driver == LogDriver::None { "none" } else { "json-file" },
            "Config": log,
        },
        "NetworkMode": words::network(&record.network),
        "PortBindings": ports(record),
        "Privileged": false,
        "Annotations": record.isolation.annotations,
        "Sysctls": record.isolation.sysctls,
        "Devices": record.isolation.devices.iter().map(device).collect::<Vec<_>>(),
        "IpcMode": record.isolation.ipc.word(),
        "UTSMode": if record.isolation.host_uts { "host" } else { "" },
        "CgroupnsMode": if record.isolation.host_cgroup { "host" } else { "private" },
        "PidMode": "",
        "ReadonlyRootfs": spec["root"]["readonly"].as_bool().unwrap_or(false),
        "RestartPolicy": restart_policy(record.restart),
        "Runtime": "coracle",
        "StorageOpt": record.disk.as_ref().map(|limit| json!({"size": limit.bytes.to_string()})),
        "Memory": number(&resources["memory"]["limit"]),
        "MemoryReservation": number(&resources["memory"]["reservation"]),
        "MemorySwap": number(&resources["memory"]["swap"]),
        "CpuShares": number(&resources["cpu"]["shares"]),
        "CpuQuota": number(&resources["cpu"]["quota"]),
        "CpuPeriod": number(&resources["cpu"]["period"]),
        "CpusetCpus": resources["cpu"]["cpus"].as_str().unwrap_or_default(),
        "PidsLimit": number(&resources["pids"]["limit"]),
        "OomScoreAdj": number(&spec["process"]["oomScoreAdj"]),
        "CapAdd": null,
        "CapDrop": null,
    })
}

fn device(device: &Device) -> Value {
    json!({"PathOnHost": device.host, "PathInContainer": device.inside, "CgroupPermissions": "rwm"})
}

/// Adds what was exposed by word to what the image exposes.
fn exposed(record: &Record, image: &Value) -> Value {
    let mut ports = image["ExposedPorts"].as_object().cloned().unwrap_or_default();
    ports.extend(record.exposed.iter().map(|port| (port.clone(), json!({}))));
    if ports.is_empty() { image["ExposedPorts"].clone() } else { Value::Object(ports) }
}

fn mount(mount: &MountRecord) -> Value {
    let mut described = json!({
        "Type": mount.kind,
        "Source": mount.source.as_ref().map(|source| source.display().to_string()).unwrap_or_default(),
        "Destination": mount.destination.display().to_string(),
        "Mode": if mount.read_only { "ro" } else { "" },
        "RW": !mount.read_only,
        "Propagation": if mount.kind == "bind" { "rprivate" } else { "" },
    });
    if mount.kind == "volume" {
        described["Name"] = mount.name.clone().unwrap_or_default().into();
        described["Driver"] = "local".into();
    }
    described
}

fn config(record: &Record, spec: &Value, image: &Value) -> Value {
    let process = &spec["process"];
    let words = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|word| Some(word.as_str()?.to_owned())).collect()
    };
    // Only the whole command is kept; the image's entry point is told from it where it stands at its beginning.
    let entrypoint = words(&image["Entrypoint"]);
    let from_image = !entrypoint.is_empty() && record.argv.starts_with(&entrypoint);
    let (entrypoint, command) = record.argv.split_at(if from_image { entrypoint.len() } else { 0 });
    let user = match (process["user"]["uid"].as_u64(), process["user"]["gid"].as_u64()) {
        (Some(0) | None, Some(0) | None) => String::new(),
        (uid, gid) => format!("{}:{}", uid.unwrap_or(0), gid.unwrap_or(0)),
    };
    json!({
        "Hostname": record.hostname,
        "Domainname": record.isolation.domainname.as_deref().unwrap_or_default(),
        "User": user,
        "AttachStdin": record.stdin_once,
        "AttachStdout": true,
        "AttachStderr": true,
        "Tty": record.tty,
        "OpenStdin": record.open_stdin,
        "StdinOnce": record.stdin_once,
        "Env": words(&process["env"]),
        "Cmd": command,
        "Entrypoint": if from_image { json!(entrypoint) } else { Value::Null },
        "Image": record.image,
        "Volumes": image["Volumes"],
        "ExposedPorts": exposed(record, image),
        "WorkingDir": process["cwd"].as_str().unwrap_or_default(),
        "Labels": record.labels,
        "StopSignal": record.stop_signal.as_deref().unwrap_or("SIGTERM"),
        "StopTimeout": record.stop_timeout_s,
        "Healthcheck": record.health.as_ref().map(health_check),
    })
}

fn health_check(check: &HealthCheck) -> Value {
    let nanoseconds = |time: std::time::Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let mut test = vec!["CMD".to_owned()];
    test.extend(check.argv.iter().cloned());
    json!({
        "Test": test,
        "Interval": nanoseconds(check.interval),
        "Timeout": nanoseconds(check.timeout),
        "StartPeriod": nanoseconds(check.start_period),
        "StartInterval": check.start_interval.map_or(0, nanoseconds),
        "Retries": check.retries,
    })
}

/// Gives published ports by the container's side.
fn ports(record: &Record) -> Map<String, Value> {
    let mut ports = Map::new();
    for mapping in record.ports() {
        let host = mapping.ip.map_or_else(|| "0.0.0.0".to_owned(), |ip| ip.to_string());
        let binding = json!({"HostIp": host, "HostPort": mapping.host.to_string()});
        let bindings = ports.entry(mapping.container_side()).or_insert_with(|| json!([]));
        if let Some(bindings) = bindings.as_array_mut() {
            bindings.push(binding);
        }
    }
    ports
}

fn network(container: &Container) -> Value {
    let record = &container.record;
    let attachments = record.network.attachments();
    let mut networks = Map::new();
    for attachment in attachments {
        networks.insert(attachment.network.clone(), endpoint(container, attachment));
    }
    let first = attachments.first().map(|first| networks[&first.network].clone());
    let first = first.unwrap_or_else(|| json!({"IPAddress": "", "Gateway": "", "MacAddress": ""}));
    if attachments.is_empty() {
        networks.insert(words::network(&record.network), first.clone());
    }
    json!({
        "Ports": ports(record),
        "IPAddress": first["IPAddress"],
        "Gateway": first["Gateway"],
        "MacAddress": first["MacAddress"],
        "Networks": networks,
    })
}

/// Gives a container's place in a network; addresses only while it runs.
fn endpoint(container: &Container, attachment: &Attachment) -> Value {
    let root = container.path.ancestors().nth(2).unwrap_or(&container.path);
    let network = networks::record::find(root, &attachment.network).ok();
    let members = networks::connect::members(root, &attachment.network);
    let ips = members.into_iter().find(|(id, _)| id == container.id()).map(|(_, ips)| ips).unwrap_or_default();
    let of = |v6: bool| ips.iter().find(|ip| ip.is_ipv6() == v6).map(ToString::to_string).unwrap_or_default();
    let range = network.as_ref().map(|network| network.v4).filter(|_| !ips.is_empty());
    let mac = if ips.is_empty() { Vec::new() } else { networks::link::mac(&ips).to_vec() };
    json!({
        "NetworkID": network.as_ref().map(|network| network.id.clone()).unwrap_or_default(),
        "Aliases": attachment.aliases,
        "IPAddress": of(false),
        "IPPrefixLen": range.map_or(0, |range| range.subnet.prefix()),
        "Gateway": range.map(|range| range.gateway.to_string()).unwrap_or_default(),
        "GlobalIPv6Address": of(true),
        "MacAddress": mac.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":"),
    })
}
