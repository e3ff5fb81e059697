//! The life of one foreground container: from options to an exit code.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use coracle_images::{Image, Progress, flatten};
use coracle_runtime::cgroup::Cgroup;
use coracle_runtime::container::Identity;
use coracle_runtime::{
    IdMap, LaunchFailure, LaunchOptions, Rootfs, Running, Stage, Stdio, host, launch, programs, userns,
};
use coracle_shim::{Foreground, Keeper};
use rustix::fs::{Mode, OFlags, open};

use super::container::{self, ContainerDir, Unwatched, short_id};
use super::health::ImageHealth;
use super::network::{self, Plan};
use super::options::RunOptions;
use super::prepare::{self, Prepared, Source};
use super::record::{ExitRecord, Phase, State, VERSION};
use super::{Engine, EngineError, confinement, elsewhere, hello};

/// What a person hears of a container that ran into its memory limit.
const OOM_NOTE: &str = "the container ran out of memory: the kernel killed a process of it";

/// Hears what a person should know while a container starts.
pub trait Notes {
    fn note(&self, text: &str);
}

/// Runs a container until it ends and gives its exit code as a shell would.
pub fn run<P: Progress + Notes>(engine: &Engine, options: &RunOptions, progress: &P) -> Result<u8, EngineError> {
    if options.terminal.tty && options.terminal.interactive && !rustix::termios::isatty(std::io::stdin()) {
        return Err(EngineError::NoTerminal);
    }
    if let Some(name) = &options.name {
        container::check_name(name)?;
    }
    let idmap = engine.idmap(options.userns.0)?;
    remove_abandoned(engine.root());
    let source = source(engine, options, &idmap, progress)?;
    let mut publish = options.publish.clone();
    if options.publish_all {
        publish.extend(prepare::exposed_ports(&source.config));
    }
    let (plan, note) = network::plan(options.network, &publish, &programs::find)?;
    if let Some(note) = note {
        progress.note(note);
    }
    let mut prepared = prepare::prepare(engine, &idmap, prepare::decide(options, source, &idmap)?, plan)?;
    let mut outcome = prepared.run(options, progress);
    if let Some(refusal) = overlay_refused(engine, &prepared, &outcome) {
        progress.note(&format!("overlayfs does not work here ({refusal}), so the image is copied"));
        outcome = prepared.copy_rootfs().and_then(|()| prepared.run(options, progress));
    }
    let Prepared { directory, .. } = &prepared;
    match outcome {
        Ok((exit_code, oom_killed, userns)) => {
            if oom_killed {
                progress.note(OOM_NOTE);
            }
            finish(directory, options.auto_remove, (exit_code, oom_killed), userns)?;
            Ok(u8::try_from(exit_code).unwrap_or(u8::MAX))
        }
        Err(error) => {
            // The first failure is what the person has to hear; the leftovers are swept by the next run.
            let _ = elsewhere::call(&idmap, || Ok(directory.remove()?));
            Err(error)
        }
    }
}

/// Says why overlayfs is refused, if a launch failed at its root filesystem and a trial fails too.
fn overlay_refused(
    engine: &Engine,
    prepared: &Prepared,
    outcome: &Result<(i32, bool, OwnedFd), EngineError>,
) -> Option<LaunchFailure> {
    let overlay = matches!(prepared.record.rootfs, Rootfs::Overlay { .. });
    match outcome {
        Err(EngineError::Launch { source, .. }) if overlay && source.stage == Stage::Rootfs => {
            host::overlay_works(engine.root()).err()
        }
        _ => None,
    }
}

fn source<P: Progress>(
    engine: &Engine,
    options: &RunOptions,
    idmap: &IdMap,
    progress: &P,
) -> Result<Source, EngineError> {
    if hello::is_hello(&options.image) && engine.store().find(&options.image)?.is_none() {
        return Ok(Source { image_id: hello::NAME.into(), config: hello::config(), health: None, layers: Vec::new() });
    }
    let (image, layers): (Image, Vec<PathBuf>) =
        engine.ready_image(&options.image, options.pull, options.platform.as_ref(), idmap, progress)?;
    let config = image.config.config().clone().unwrap_or_default();
    let health = ImageHealth::from_configuration(&engine.store().read_blob(&image.id)?);
    Ok(Source { image_id: image.id.to_string(), config, health, layers })
}

impl Prepared {
    /// Replaces the overlay by a plain directory with the layers' merged content.
    fn copy_rootfs(&mut self) -> Result<(), EngineError> {
        let Rootfs::Overlay { lower, .. } = &self.record.rootfs else { return Ok(()) };
        let path = self.directory.make_dir("rootfs", 0o755)?;
        elsewhere::call(&self.record.idmap, || Ok(flatten(lower, &path)?))?;
        self.record.rootfs = Rootfs::Directory(path);
        Ok(self.directory.publish("container.json", &self.record)?)
    }

    /// Launches and watches over it; gives the exit code, whether it ran out of memory, and the user
    /// namespace for the clean-up.
    fn run(&self, options: &RunOptions, notes: &impl Notes) -> Result<(i32, bool, OwnedFd), EngineError> {
        let note = &mut |text: &str| notes.note(text);
        let cgroup = confinement::make(&self.directory, &self.record, &self.spec, false, note)?;
        let ended = self.run_in(options, cgroup.as_ref());
        let oom_killed = cgroup.as_ref().is_some_and(confinement::end);
        let (exit_code, userns) = ended?;
        Ok((exit_code, oom_killed, userns))
    }

    fn run_in(&self, options: &RunOptions, cgroup: Option<&Cgroup>) -> Result<(i32, OwnedFd), EngineError> {
        let cgroup = cgroup.map(Cgroup::fd).transpose()?;
        let mut keeper: Option<Keeper> = None;
        let mut network_failure = None;
        let watch = Foreground::prepare().map_err(EngineError::Supervise)?;
        let running = {
            let mut connect = |namespaces: &coracle_runtime::Namespaces<'_>| {
                let Plan::Pasta(pasta) = &self.record.network else {
                    return Ok(());
                };
                match self.connect(pasta, namespaces) {
                    Ok(started) => {
                        keeper = Some(started);
                        Ok(())
                    }
                    Err(error) => {
                        network_failure = Some(error);
                        Err(LaunchFailure::rule(Stage::Network, "pasta", "cannot connect the container"))
                    }
                }
            };
            self.launch(options, cgroup.as_ref().map(AsFd::as_fd), &mut connect)
        };
        let mut running = match (running, network_failure) {
            (_, Some(error)) => return Err(error),
            (Ok(running), None) => running,
            (Err(source), None) => {
                return Err(EngineError::Launch { id: short_id(&self.directory.id).to_owned(), source });
            }
        };
        self.publish_state(running.pid)?;
        let exit = watch.run(&mut running, options.terminal.interactive).map_err(EngineError::Supervise)?;
        if let Some(keeper) = keeper {
            keeper.finish();
        }
        Ok((exit.status(), running.userns))
    }

    /// Writes down which process this is, so that others can reach it.
    fn publish_state(&self, pid: i32) -> Result<(), EngineError> {
        let own = Identity::of(rustix::process::getpid().as_raw_pid())?;
        Ok(self.directory.publish_soon(
            "state.json",
            &State {
                version: VERSION,
                run: 1,
                phase: Phase::Running,
                // A program that has ended already needs no signal.
                init: Identity::of(pid).ok(),
                watcher: own,
                foreground: true,
                started_ns: prepare::now_ns(),
                restarts: 0,
            },
        )?)
    }

    fn launch(
        &self,
        options: &RunOptions,
        cgroup: Option<BorrowedFd<'_>>,
        connect: &mut dyn FnMut(&coracle_runtime::Namespaces<'_>) -> Result<(), LaunchFailure>,
    ) -> Result<Running, LaunchFailure> {
        let null = open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| LaunchFailure::new(Stage::Prepare, "open", "/dev/null", errno))?;
        let (input, output, errors) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
        let stdin = if options.terminal.interactive { input.as_fd() } else { null.as_fd() };
        let stdio =
            if options.terminal.tty { Stdio::Console } else { Stdio::Fds([stdin, output.as_fd(), errors.as_fd()]) };
        launch(LaunchOptions {
            idmap: Some(self.record.idmap.clone()),
            stdio,
            die_with_parent: true,
            init_reaper: options.init,
            cgroup,
            on_namespaces: Some(connect),
            ..LaunchOptions::new(&self.directory.id, &self.spec, &self.directory.path, self.record.rootfs.clone())
        })
    }

    fn connect(
        &self,
        pasta: &network::PastaPlan,
        namespaces: &coracle_runtime::Namespaces<'_>,
    ) -> Result<Keeper, EngineError> {
        Ok(pasta.start(namespaces.pid, &self.directory.path)?)
    }
}

/// Records the end, or removes everything for `--rm`.
fn finish(
    directory: &ContainerDir,
    auto_remove: bool,
    (exit_code, oom_killed): (i32, bool),
    userns: OwnedFd,
) -> Result<(), EngineError> {
    if auto_remove {
        userns::enter(userns.as_fd()).map_err(EngineError::UserNamespace)?;
        directory.remove()?;
    } else {
        directory.publish_exit(&ExitRecord {
            version: VERSION,
            run: 1,
            exit_code,
            finished_ns: prepare::now_ns(),
            oom_killed,
            unknown: false,
            error: None,
        })?;
    }
    Ok(())
}

/// Removes what `--rm` runs left behind that were killed before they could.
fn remove_abandoned(state: &Path) {
    for left in container::abandoned(state) {
        // Best effort: a container that cannot be removed now is found again by the next run.
        let _ = remove_unwatched(&left);
    }
}

/// Removes a container's directory where its files' owners are known.
pub fn remove_unwatched(container: &Unwatched) -> Result<(), EngineError> {
    match container.idmap() {
        Some(map) => elsewhere::call(map, || Ok(container.remove()?)),
        None => Ok(container.remove()?),
    }
}
