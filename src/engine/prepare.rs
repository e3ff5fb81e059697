//! Everything between options and a launch: what is decided and refused before anything is made, and
//! what is then made on disk. Nothing here starts a process but the chown of a keep-id layer.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use coracle_images::open_in_layers;
use coracle_runtime::caps::CapSet;
use coracle_runtime::seccomp::{self, Conditioned};
use coracle_runtime::userns::{Ahead, Maker};
use coracle_runtime::{IdMap, Rootfs, UserNs, failpoint};
use oci_spec::image::Config;
use oci_spec::runtime::{LinuxResources, Spec};

use super::container::{self, ContainerDir, short_id};
use super::health::{self, ImageHealth};
use super::isolation::NetworkOf;
use super::limits;
use super::mounts::{MountRequest, MountSource, checked_destination};
use super::network::{OutsidePlan, Plan};
use super::networks::NetworksPlan;
use super::options::{RunOptions, SeccompChoice, VolumesFrom};
use super::ports::{PortMapping, parse_publish};
use super::process::{self, EnvironmentInputs};
use super::quota::{self, DiskLimit, QuotaError};
use super::record::{HealthCheck, MountRecord, Record, STOP_TIMEOUT_S, VERSION};
use super::spec::{self, ResolvedMount, SeccompInput, SpecInputs};
use super::user::{self, ProcessUser};
use super::{Engine, EngineError, containers, elsewhere, events, files, hello, volumes};
use crate::env;

/// A seccomp profile is far smaller; the bound keeps a wrong path from filling the memory.
const SECCOMP_FILE_BYTES_MAX: u64 = 1 << 20;
/// security.md's bound for passwd and group files of an image.
const IDENTITY_FILE_BYTES_MAX: u64 = 1 << 20;

/// Is an image that is ready to be a root filesystem.
pub struct Source {
    pub image_id: String,
    pub config: Config,
    /// The image's HEALTHCHECK, which oci_spec does not know.
    pub health: Option<ImageHealth>,
    pub layers: Vec<PathBuf>,
}

/// Gives a free host port to each port that the image exposes; what is no port is left out.
pub fn exposed_ports(config: &Config) -> Vec<PortMapping> {
    let exposed = config.exposed_ports().iter().flatten();
    exposed.filter_map(|text| parse_publish(text).ok()).flatten().filter(|mapping| mapping.host == 0).collect()
}

/// Is a container that only has to be launched.
pub struct Prepared {
    pub directory: ContainerDir,
    pub spec: Spec,
    pub record: Record,
    /// Its user namespace, when it was begun already.
    pub ahead: Option<(Ahead, Maker)>,
}

/// Is everything that can be decided, and refused, before anything is made on disk.
pub struct Decided<'a> {
    options: &'a RunOptions,
    source: Source,
    id: String,
    hostname: String,
    user: ProcessUser,
    argv: Vec<String>,
    environment: Vec<String>,
    cwd: String,
    stop_signal: Option<String>,
    seccomp: Option<SeccompInput>,
    resources: Option<LinuxResources>,
    labels: BTreeMap<String, String>,
    health: Option<HealthCheck>,
    disk: Option<DiskLimit>,
}

pub fn decide<'a>(
    root: &Path,
    options: &'a RunOptions,
    source: Source,
    idmap: &IdMap,
) -> Result<Decided<'a>, EngineError> {
    let id = container::new_id()?;
    let hostname = options.isolation.hostname(options.hostname.as_deref(), short_id(&id))?;
    let user = resolve_user(options, &source, idmap)?;
    let argv = process::arguments(
        source.config.entrypoint().as_deref().unwrap_or_default(),
        source.config.cmd().as_deref().unwrap_or_default(),
        options.entrypoint.as_deref(),
        &options.command,
    )?;
    let environment = process::environment(&EnvironmentInputs {
        image: source.config.env().as_deref().unwrap_or_default(),
        entries: &options.env,
        hostname: &hostname,
        home: &user.home,
        tty: options.terminal.tty,
    })?;
    let cwd = process::working_directory(
        source.config.working_dir().as_deref().filter(|dir| !dir.is_empty()),
        options.workdir.as_deref(),
    )?;
    let stop_signal = options.stop_signal.clone().or_else(|| source.config.stop_signal().clone());
    if let Some(signal) = &stop_signal {
        coracle_shim::parse_signal(signal).ok_or_else(|| EngineError::UnknownSignal(signal.clone()))?;
    }
    let seccomp = seccomp_input(&options.security.seccomp)?;
    let facts = limits::Facts { processors: &limits::processors, device: &limits::block_device };
    let resources = options.limits.resources(&facts)?;
    // Labels of the image first: the person's win.
    let mut labels: BTreeMap<String, String> = source.config.labels().clone().unwrap_or_default().into_iter().collect();
    labels.extend(options.labels.clone());
    let health = health::decide(&options.health, source.health.as_ref())?;
    let disk = disk_limit(root, options, &source, idmap)?;
    Ok(Decided {
        options,
        source,
        id,
        hostname,
        user,
        argv,
        environment,
        cwd,
        stop_signal,
        seccomp,
        resources,
        labels,
        health,
        disk,
    })
}

/// Chooses what keeps the disk limit, if there is one.
fn disk_limit(
    root: &Path,
    options: &RunOptions,
    source: &Source,
    idmap: &IdMap,
) -> Result<Option<DiskLimit>, QuotaError> {
    let Some(size) = options.disk.size()? else { return Ok(None) };
    if source.layers.is_empty() {
        return Err(QuotaError::NoOverlay);
    }
    let requests = with_image_volumes(options.mounts.clone(), &source.config);
    let wanted = quota::Wanted {
        root,
        idmap,
        size,
        ephemeral: options.auto_remove,
        memory_bytes: options.limits.memory_bytes.filter(|bytes| *bytes > 0),
        own_volumes: requests.iter().any(|request| matches!(request.source, MountSource::Anonymous)),
        best_effort: options.limits.best_effort,
    };
    quota::choose(&wanted).map(Some)
}

pub fn prepare(engine: &Engine, idmap: &IdMap, decided: Decided<'_>, mut plan: Plan) -> Result<Prepared, EngineError> {
    let options = decided.options;
    let directory = ContainerDir::create(engine.root(), &decided.id, options.name.as_deref(), options.auto_remove)?;
    match fill(engine, &directory, idmap, decided, &mut plan) {
        Ok((spec, record)) => {
            events::emit_container(engine.root(), &record, "create", &[]);
            Ok(Prepared { directory, spec, record, ahead: None })
        }
        Err(error) => {
            // Nothing in it belongs to anybody else yet.
            let _ = directory.discard();
            Err(error)
        }
    }
}

/// Writes the container's directory: record, files, volumes, writable layer, bundle.
fn fill(
    engine: &Engine,
    directory: &ContainerDir,
    idmap: &IdMap,
    mut decided: Decided<'_>,
    plan: &mut Plan,
) -> Result<(Spec, Record), EngineError> {
    let options = decided.options;
    let rootfs = rootfs(engine.root(), directory, &mut decided)?;
    failpoint::hit("quota_set")?;
    let requests = with_others(engine, options)?;
    let requests = with_image_volumes(requests, &decided.source.config);
    let files = shared_files(directory, options, &decided.hostname, plan)?;
    let mounts = resolve_mounts(engine.root(), requests)?;
    let record = record(&decided, idmap, &mounts, (rootfs, plan.clone()));
    // Before the volumes are made: whoever removes one looks at the records.
    // Of a container in the background that is done while its shim starts it.
    let durable = !options.detach;
    directory.publish_as("container.json", &record, durable)?;
    make_volumes(engine.root(), &record, idmap, &decided.source.layers, &mounts)?;
    options.isolation.check(network_of(plan), options.shm_size_bytes.is_some())?;
    let spec = spec::build(&SpecInputs {
        options,
        argv: decided.argv,
        env: decided.environment,
        cwd: decided.cwd,
        user: &decided.user,
        idmap,
        hostname: &decided.hostname,
        own_network: *plan != Plan::Host,
        ping: plan.outside().is_some() || !plan.attachments().is_empty(),
        files,
        mounts,
        seccomp: decided.seccomp,
        resources: decided.resources,
    })?;
    directory.publish_as("config.json", &spec, durable)?;
    failpoint::hit("state_written")?;
    if options.userns.0 == UserNs::KeepId && !idmap.is_single() {
        own_by_root(idmap, &record.rootfs)?;
    }
    Ok((spec, record))
}

fn network_of(plan: &Plan) -> NetworkOf {
    match plan {
        Plan::Host => NetworkOf::Host,
        Plan::Container(_) => NetworkOf::Other,
        _ => NetworkOf::Itself,
    }
}

/// Collects what has to be known about the container later.
fn record(decided: &Decided<'_>, idmap: &IdMap, mounts: &[ResolvedMount], (rootfs, network): (Rootfs, Plan)) -> Record {
    let options = decided.options;
    Record {
        version: VERSION,
        id: decided.id.clone(),
        name: options.name.clone(),
        image: options.image.clone(),
        image_id: decided.source.image_id.clone(),
        argv: decided.argv.clone(),
        auto_remove: options.auto_remove,
        stop_signal: decided.stop_signal.clone(),
        stop_timeout_s: options.stop_timeout_s.unwrap_or(STOP_TIMEOUT_S),
        idmap: idmap.clone(),
        created_ns: now_ns(),
        labels: decided.labels.clone(),
        tty: options.terminal.tty,
        open_stdin: options.terminal.interactive,
        stdin_once: options.terminal.interactive && !options.detach,
        init: options.init,
        isolation: options.isolation.clone(),
        exposed: options.expose.iter().map(PortMapping::container_side).collect(),
        hostname: decided.hostname.clone(),
        restart: options.restart,
        health: decided.health.clone(),
        log: options.log.clone(),
        best_effort_limits: options.limits.best_effort,
        disk: decided.disk.clone(),
        mounts: mounts.iter().map(mount_record).collect(),
        rootfs,
        network,
    }
}

fn mount_record(mount: &ResolvedMount) -> MountRecord {
    let kind = match mount.request.source {
        MountSource::Bind { .. } => "bind",
        MountSource::Tmpfs { .. } => "tmpfs",
        MountSource::Anonymous | MountSource::Volume { .. } => "volume",
    };
    MountRecord {
        kind: kind.to_owned(),
        name: mount.volume.clone(),
        source: mount.source.clone(),
        destination: mount.request.destination.clone(),
        read_only: mount.request.read_only,
    }
}

/// Gives nanoseconds since the epoch.
pub fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| u64::try_from(elapsed.as_nanos()).unwrap_or(0))
}

fn resolve_user(options: &RunOptions, source: &Source, idmap: &IdMap) -> Result<ProcessUser, EngineError> {
    let keep_id = options.userns.0 == UserNs::KeepId;
    let caller = keep_id.then(|| {
        let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        format!("{uid}:{gid}")
    });
    let asked = options.user.as_deref().or(caller.as_deref());
    let spec = asked.or(source.config.user().as_deref()).unwrap_or_default();
    let passwd = identity_file(&source.layers, "etc/passwd");
    let group = identity_file(&source.layers, "etc/group");
    let mut user = user::resolve(spec, &passwd, &group)?;
    if idmap.is_single() {
        user.fit_single(idmap, asked.is_none());
    }
    for extra in &options.group_add {
        let gid = user::resolve_group(extra, extra, &group)?;
        if !user.groups.contains(&gid) {
            user.groups.push(gid);
        }
    }
    Ok(user)
}

/// Reads passwd or group out of the layers; what is missing, odd or not text counts as empty.
pub fn identity_file(layers: &[PathBuf], path: &str) -> String {
    use std::io::Read;
    let mut bytes = Vec::new();
    if let Ok(Some(file)) = open_in_layers(layers, Path::new(path)) {
        let _ = file.take(IDENTITY_FILE_BYTES_MAX).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn seccomp_input(choice: &SeccompChoice) -> Result<Option<SeccompInput>, EngineError> {
    use std::io::Read;
    let path = match choice {
        SeccompChoice::Default => return Ok(Some(SeccompInput::Default)),
        SeccompChoice::Unconfined => return Ok(None),
        SeccompChoice::File(path) => path,
    };
    let fail = |source| EngineError::SeccompFile { path: path.clone(), source };
    let mut text = Vec::new();
    let file = fs_err::File::open(path).map_err(fail)?;
    file.take(SECCOMP_FILE_BYTES_MAX).read_to_end(&mut text).map_err(fail)?;
    let refuse = |reason: String| EngineError::SeccompProfile { path: path.clone(), reason };
    // Its conditions are decided when the capabilities are known; whether it can be read is known now.
    seccomp::read_profile(&text, Conditioned::here(CapSet::EMPTY))
        .map_err(|error| refuse(crate::report::chain(&error)))?;
    Ok(Some(SeccompInput::Profile(text)))
}

/// Adds the image's VOLUMEs as anonymous volumes where the person mounts nothing else.
fn with_image_volumes(mut requests: Vec<MountRequest>, config: &Config) -> Vec<MountRequest> {
    for volume in config.volumes().iter().flatten() {
        // An image's bad path (A45) is dropped: it is no reason to refuse the container.
        let Ok(destination) = checked_destination(volume) else {
            continue;
        };
        if !requests.iter().any(|request| request.destination == destination) {
            requests.push(MountRequest {
                source: MountSource::Anonymous,
                destination,
                read_only: false,
                options: Vec::new(),
            });
        }
    }
    requests
}

/// Adds the mounts of other containers (`--volumes-from`) where the person mounts nothing else.
fn with_others(engine: &Engine, options: &RunOptions) -> Result<Vec<MountRequest>, EngineError> {
    let mut requests = options.mounts.clone();
    for VolumesFrom { container, read_only } in &options.volumes_from {
        let other = containers::find(engine.root(), container)?;
        for mount in other.record.mounts {
            let source = match (mount.kind.as_str(), mount.name, mount.source) {
                ("volume", Some(name), _) => MountSource::Volume { name, copy: false },
                ("bind", _, Some(path)) => MountSource::Bind { path, create_dir: false },
                // Memory cannot be shared.
                _ => continue,
            };
            if !requests.iter().any(|request| request.destination == mount.destination) {
                let read_only = mount.read_only || *read_only;
                let destination = mount.destination;
                requests.push(MountRequest { source, destination, read_only, options: Vec::new() });
            }
        }
    }
    Ok(requests)
}

/// Decides where every mount comes from; nothing but missing bind sources is made.
fn resolve_mounts(state: &Path, requests: Vec<MountRequest>) -> Result<Vec<ResolvedMount>, EngineError> {
    let mut resolved = Vec::with_capacity(requests.len());
    for request in requests {
        let (source, volume) = match &request.source {
            MountSource::Tmpfs { .. } => (None, None),
            MountSource::Anonymous => {
                let name = container::new_id()?;
                (Some(volumes::data_path(state, &name)), Some(name))
            }
            MountSource::Volume { name, .. } => (Some(volumes::data_path(state, name)), Some(name.clone())),
            MountSource::Bind { path, create_dir } => (Some(bind_source(state, path, *create_dir)?), None),
        };
        resolved.push(ResolvedMount { request, source, volume });
    }
    Ok(resolved)
}

fn make_volumes(
    state: &Path,
    record: &Record,
    idmap: &IdMap,
    layers: &[PathBuf],
    mounts: &[ResolvedMount],
) -> Result<(), EngineError> {
    for mount in mounts {
        let Some(name) = &mount.volume else { continue };
        match &mount.request.source {
            MountSource::Volume { copy, .. } => {
                let copy = copy.then_some((layers, mount.request.destination.as_path()));
                volumes::make_ready(state, name, idmap, copy)?;
            }
            _ => volumes::make_anonymous(state, name, &record.id, record.disk.as_ref())?,
        }
    }
    Ok(())
}

/// Resolves a bind's source once; what lies in coracle's own state is refused.
fn bind_source(state: &Path, path: &Path, create_dir: bool) -> Result<PathBuf, EngineError> {
    let fail = |source| EngineError::MountSource { path: path.to_owned(), source };
    let path = match path.strip_prefix("~") {
        Ok(rest) => env::home().unwrap_or_default().join(rest),
        Err(_) => path.to_owned(),
    };
    if create_dir && !path.exists() {
        fs_err::create_dir_all(&path).map_err(fail)?;
    }
    let real = fs_err::canonicalize(&path).map_err(fail)?;
    let state = fs_err::canonicalize(state).map_err(EngineError::State)?;
    if real.starts_with(&state) {
        return Err(EngineError::OwnState { path: real });
    }
    Ok(real)
}

fn shared_files(
    directory: &ContainerDir,
    options: &RunOptions,
    hostname: &str,
    plan: &mut Plan,
) -> Result<Vec<(&'static str, PathBuf)>, EngineError> {
    if let Plan::Container(id) = plan {
        // One network, one set of names.
        let other = directory.path.with_file_name(&*id);
        let hostname = directory.write_shared("hostname", &format!("{hostname}\n"))?;
        let shared = [("/etc/hosts", other.join("hosts")), ("/etc/resolv.conf", other.join("resolv.conf"))];
        return Ok([("/etc/hostname", hostname)].into_iter().chain(shared).collect());
    }
    let mut list = vec![
        ("/etc/hosts", directory.write_shared("hosts", &files::hosts(hostname, &options.add_hosts))?),
        ("/etc/hostname", directory.write_shared("hostname", &format!("{hostname}\n"))?),
    ];
    let host = fs_err::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let (text, forward) = files::resolver(&files::ResolverInputs {
        host: if *plan == Plan::None { "" } else { &host },
        servers: &options.dns,
        search: &options.dns_search,
        options: &options.dns_options,
        host_network: *plan == Plan::Host,
        forwarder: plan.outside().map_or(files::FORWARDED_DNS, OutsidePlan::forwarder),
    });
    let text = match plan {
        Plan::Networks(plan) if !plan.attachments.is_empty() => files::networked(&text),
        Plan::Networks(NetworksPlan { outside: Some(pasta), .. }) | Plan::Pasta(pasta) => {
            pasta.forward_dns = forward;
            text
        }
        _ => text,
    };
    list.push(("/etc/resolv.conf", directory.write_shared("resolv.conf", &text)?));
    Ok(list)
}

fn rootfs(root: &Path, directory: &ContainerDir, decided: &mut Decided<'_>) -> Result<Rootfs, EngineError> {
    let source = &decided.source;
    if source.layers.is_empty() {
        let path = directory.make_dir("rootfs", 0o755)?;
        hello::fill(&path)?;
        return Ok(Rootfs::Directory(path));
    }
    let (upper, work) = match &mut decided.disk {
        Some(limit) => quota::make_directories(root, directory, limit)?,
        None => (directory.make_dir("upper", 0o755)?, directory.make_dir("work", 0o700)?),
    };
    Ok(Rootfs::Overlay { lower: source.layers.clone(), upper, work, volatile: decided.options.auto_remove })
}

/// Gives the writable layer to the container's root where that is not the caller.
fn own_by_root(idmap: &IdMap, rootfs: &Rootfs) -> Result<(), EngineError> {
    let owned: Vec<PathBuf> = match rootfs {
        Rootfs::Directory(path) => vec![path.clone()],
        Rootfs::Overlay { upper, work, .. } => vec![upper.clone(), work.clone()],
    };
    elsewhere::call(idmap, || {
        for path in &owned {
            std::os::unix::fs::chown(path, Some(0), Some(0)).map_err(EngineError::State)?;
        }
        Ok(())
    })
}
