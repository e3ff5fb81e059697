//! `commit` and `import`: a container's changes, or an archive, become an image.

mod changes;

use std::fs::File;
use std::io::Read;

use coracle_images::author::{self, AuthorError, DraftLayer, Work};
use coracle_images::pack::{PackOptions, Style, pack};
use coracle_images::{Image, Platform, Progress, Reference};
use coracle_runtime::UserNs;
use coracle_runtime::cgroup::Cgroup;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, openat, statat};
use serde_json::{Map, Value, json};

use super::containers::{self, Container, Status};
use super::image::ImageError;
use super::run::Notes;
use super::transfer::{TransferError, export};
use super::{Engine, EngineError, elsewhere, layer_space};

pub use changes::ChangeError;

/// Is what a person says about a new image.
#[derive(Debug, Clone, Default)]
pub struct AuthorOptions {
    /// None leaves the image without a name.
    pub name: Option<String>,
    pub author: Option<String>,
    pub message: Option<String>,
    /// Instructions of a Dockerfile.
    pub changes: Vec<String>,
}

/// Makes an image of what a container is now; gives its id.
pub fn commit(
    engine: &Engine,
    wanted: &str,
    options: &AuthorOptions,
    pause: Pause,
    progress: &(impl Progress + Notes),
) -> Result<String, EngineError> {
    let container = containers::find(engine.root(), wanted)?;
    let name = parse_name(options)?;
    let image_id = &container.record.image_id;
    let base = engine.store().find(image_id)?.ok_or_else(|| EngineError::UnknownImage(image_id.clone()))?;
    let mut config = read_config(engine, &base)?;
    adopt(&mut config, &container);
    for change in &options.changes {
        changes::apply(section(&mut config, "config"), change)?;
    }
    let file = author::scratch(engine.store()).map_err(ImageError::from)?;
    let paused = Paused::of(&container, pause, progress)?;
    let draft = pack_changes(&container, &file);
    drop(paused);
    let draft = draft?;
    let created_by = container.record.argv.join(" ");
    let is_copy = export::copied(&container).is_some();
    if is_copy {
        progress.note("overlayfs was refused to this container, so the image has one layer with everything in it");
        config.insert("rootfs".into(), json!({"type": "layers", "diff_ids": []}));
        config.remove("history");
    }
    complete(&mut config, &draft, options, &created_by);
    publish(engine, Some(&base).filter(|_| !is_copy), (&file, &draft), &config, name.as_ref(), progress)
}

/// Makes an image of one archive; gives its id.
pub fn import(
    engine: &Engine,
    archive: impl Read,
    platform: Option<&Platform>,
    options: &AuthorOptions,
    progress: &dyn Progress,
) -> Result<String, EngineError> {
    let name = parse_name(options)?;
    let file = author::scratch(engine.store()).map_err(ImageError::from)?;
    let host = Platform::host();
    let platform = platform.unwrap_or(&host);
    let mut config = Map::new();
    config.insert("architecture".into(), json!(platform.architecture()));
    config.insert("os".into(), json!(platform.os()));
    config.insert("rootfs".into(), json!({"type": "layers", "diff_ids": []}));
    for change in &options.changes {
        changes::apply(section(&mut config, "config"), change)?;
    }
    let draft = author::take_archive(&file, archive).map_err(ImageError::from)?;
    complete(&mut config, &draft, options, "");
    publish(engine, None, (&file, &draft), &config, name.as_ref(), progress)
}

fn parse_name(options: &AuthorOptions) -> Result<Option<Reference>, EngineError> {
    let name: Option<Reference> = options.name.as_deref().map(str::parse).transpose().map_err(ImageError::from)?;
    match name {
        Some(name) if name.digest().is_some() => Err(EngineError::NoDestination(name.to_string())),
        name => Ok(name),
    }
}

fn publish(
    engine: &Engine,
    base: Option<&Image>,
    layer: (&File, &DraftLayer),
    config: &Map<String, Value>,
    name: Option<&Reference>,
    progress: &dyn Progress,
) -> Result<String, EngineError> {
    let idmap = engine.idmap(UserNs::Auto)?;
    let space = layer_space(&idmap);
    elsewhere::call(&idmap, || {
        let config = serde_json::to_vec(config).map_err(AuthorError::Json).map_err(ImageError::from)?;
        let work = Work { base, layer, config: &config, name, space: &space };
        Ok(author::make(engine.store(), &work, progress).map_err(ImageError::from)?.id.to_string())
    })
}

/// Says whether a container's processes stand still while its changes are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pause {
    No,
    /// Where the host can do it, as podman does; else a note says that it cannot.
    WherePossible,
    /// It was asked for by name.
    Required,
}

/// Is a container whose processes stand still; they go on when this is dropped.
struct Paused<'a>(&'a Cgroup);

impl<'a> Paused<'a> {
    /// Stops a running container; one that the person has paused stays so.
    fn of(container: &'a Container, pause: Pause, notes: &impl Notes) -> Result<Option<Self>, EngineError> {
        if pause == Pause::No || container.status() != Status::Running {
            return Ok(None);
        }
        let cgroup = container.state.as_ref().and_then(|state| state.cgroup.as_ref());
        let name = container.record.called();
        let frozen = cgroup.ok_or_else(|| EngineError::NoFreezer(name.to_owned())).and_then(|cgroup| {
            cgroup.freeze()?;
            Ok(Self(cgroup))
        });
        match frozen {
            Ok(paused) => Ok(Some(paused)),
            Err(error) if pause == Pause::Required => Err(error),
            Err(_) => {
                notes.note(&format!("container {name} runs on meanwhile: it has no cgroup that could be frozen"));
                Ok(None)
            }
        }
    }
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        // A container that cannot go on has ended.
        let _ = self.0.thaw();
    }
}

/// Writes the container's writable layer as a layer of an image.
fn pack_changes(container: &Container, file: &File) -> Result<DraftLayer, EngineError> {
    let (upper, style) = match export::copied(container) {
        Some(copy) => (copy, Style::Plain),
        None => (export::layers(container)?.1, Style::Layer),
    };
    let stubs = export::mount_points(container);
    elsewhere::call(&container.record.idmap, || {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || openat(CWD, upper, flags, Mode::empty());
        let shown = upper.display().to_string();
        let failed =
            |errno: rustix::io::Errno| TransferError::Io { op: "open", path: shown.clone(), source: errno.into() };
        let (top, again) = (open().map_err(failed)?, open().map_err(failed)?);
        let leave_out = |path: &[u8]| {
            let absolute = [b"/", path].concat();
            statat(&again, path, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| export::is_stub(&stubs, &absolute, &stat))
        };
        let options = PackOptions { name: b"", style, cross_mounts: false, owner: None, leave_out: &leave_out };
        let fill =
            |out: &mut dyn std::io::Write| pack(top, &options, out).map_err(|error| AuthorOrPack::Pack(error.into()));
        let (_, draft) = author::write_layer(file, fill)?;
        Ok(draft)
    })
}

/// What can go wrong while a layer is packed.
enum AuthorOrPack {
    Author(AuthorError),
    Pack(TransferError),
}

impl From<AuthorError> for AuthorOrPack {
    fn from(error: AuthorError) -> Self {
        Self::Author(error)
    }
}

impl From<AuthorOrPack> for EngineError {
    fn from(error: AuthorOrPack) -> Self {
        match error {
            AuthorOrPack::Author(error) => ImageError::from(error).into(),
            AuthorOrPack::Pack(error) => error.into(),
        }
    }
}

/// Reads the configuration as it is, with every key that we do not know.
fn read_config(engine: &Engine, image: &Image) -> Result<Map<String, Value>, EngineError> {
    let bytes = engine.store().read_blob(&image.id)?;
    let mut config: Map<String, Value> =
        serde_json::from_slice(&bytes).map_err(AuthorError::Json).map_err(ImageError::from)?;
    // Docker's notes about the container that the image was made from.
    for key in ["container", "container_config", "docker_version"] {
        config.remove(key);
    }
    Ok(config)
}

/// Takes over what the person asked of the container, as docker does.
fn adopt(config: &mut Map<String, Value>, container: &Container) {
    let spec: Option<oci_spec::runtime::Spec> = containers::read_json(&container.path.join("config.json"));
    let section = section(config, "config");
    let list = |section: &Map<String, Value>, key: &str| -> Vec<String> {
        let items = section.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
        items.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect()
    };
    let (entrypoint, argv) = (list(section, "Entrypoint"), &container.record.argv);
    match argv.strip_prefix(entrypoint.as_slice()) {
        Some(rest) => {
            if rest != list(section, "Cmd") {
                section.insert("Cmd".into(), json!(rest));
            }
        }
        None => {
            section.remove("Entrypoint");
            section.insert("Cmd".into(), json!(argv));
        }
    }
    let labels: Map<String, Value> =
        container.record.labels.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
    if !labels.is_empty() {
        section.insert("Labels".into(), Value::Object(labels));
    }
    let Some(process) = spec.and_then(|spec| spec.process().clone()) else { return };
    let cwd = process.cwd().display().to_string();
    if cwd != "/" || section.contains_key("WorkingDir") {
        section.insert("WorkingDir".into(), json!(cwd));
    }
    // Those that are made up for every container do not belong to the image.
    const MADE_UP: [&str; 4] = ["HOSTNAME", "HOME", "TERM", "container"];
    let of_image = list(section, "Env");
    let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let known = |wanted: &str| of_image.iter().any(|entry| name(entry) == wanted);
    let env: Vec<String> = process.env().iter().flatten().cloned().collect();
    let kept: Vec<String> =
        env.into_iter().filter(|entry| known(&name(entry)) || !MADE_UP.contains(&name(entry).as_str())).collect();
    if kept != of_image {
        section.insert("Env".into(), json!(kept));
    }
}

/// Adds the layer, the moment and the person.
fn complete(config: &mut Map<String, Value>, draft: &DraftLayer, options: &AuthorOptions, created_by: &str) {
    let now = jiff::Timestamp::now().to_string();
    config.insert("created".into(), json!(now));
    if let Some(author) = &options.author {
        config.insert("author".into(), json!(author));
    }
    let rootfs = section(config, "rootfs");
    rootfs.insert("type".into(), json!("layers"));
    push(rootfs, "diff_ids", json!(draft.diff_id()));
    let mut step = Map::new();
    step.insert("created".into(), json!(now));
    if !created_by.is_empty() {
        step.insert("created_by".into(), json!(created_by));
    }
    for (key, value) in [("author", &options.author), ("comment", &options.message)] {
        step.extend(value.as_ref().map(|value| (key.to_owned(), json!(value))));
    }
    push(config, "history", Value::Object(step));
}

fn push(object: &mut Map<String, Value>, key: &str, item: Value) {
    match object.get_mut(key).and_then(Value::as_array_mut) {
        Some(list) => list.push(item),
        None => drop(object.insert(key.to_owned(), Value::Array(vec![item]))),
    }
}

/// Gives an object inside of another, made when it is missing.
fn section<'a>(object: &'a mut Map<String, Value>, key: &str) -> &'a mut Map<String, Value> {
    let slot = object.entry(key).or_insert_with(|| Value::Object(Map::new()));
    if !slot.is_object() {
        *slot = Value::Object(Map::new());
    }
    match slot {
        Value::Object(section) => section,
        _ => unreachable!("it was made an object above"),
    }
}
