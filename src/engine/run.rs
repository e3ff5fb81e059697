//! The life of one container: from options to an exit code, or to a shim that goes on.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use coracle_images::{Image, Progress};
use coracle_runtime::cgroup::Cgroup;
use coracle_runtime::container::Identity;
use coracle_runtime::userns::{Ahead, Maker};
use coracle_runtime::{IdMap, Stdio, programs, userns};
use coracle_shim::Foreground;
use coracle_shim::attach::{AttachOptions, DetachKeys, Muted};
use coracle_shim::client::Client;
use rustix::fs::{Mode, OFlags, open};
use rustix::process::Signal;

use super::container::{self, ContainerDir, Unwatched};
use super::containers::Container;
use super::health::ImageHealth;
use super::launching::{Launched, Launching};
use super::options::{Network, RunOptions};
use super::prepare::{self, Prepared, Source};
use super::record::{ExitRecord, Phase, RestartPolicy, State, VERSION};
use super::shim::{self, Known};
use super::{Engine, EngineError, attach, confinement, elsewhere, events, hello, lifecycle, networks};

/// What a person hears of a container that ran into its memory limit.
const OOM_NOTE: &str = "the container ran out of memory: the kernel killed a process of it";

/// Hears what a person should know while a container starts.
pub trait Notes {
    fn note(&self, text: &str);
}

/// Says what came of `coracle run`.
pub enum Ran {
    /// It ran until its end; the code as a shell would see it.
    Ended(u8),
    /// It runs on; its id.
    Detached(String),
}

/// How somebody is attached to a container that has a shim.
#[derive(Debug, Clone, Default)]
pub struct Attaching {
    pub keys: DetachKeys,
    pub pass_signals: bool,
    /// Hears the id where no stream would show that it runs.
    pub tell_id: Option<fn(&str)>,
}

/// Runs a container: until it ends, or with `-d` until its program runs.
pub fn run<P: Progress + Notes>(
    engine: &Engine,
    options: &RunOptions,
    attaching: &Attaching,
    progress: &P,
) -> Result<Ran, EngineError> {
    if options.terminal.tty && options.terminal.interactive && !options.detach {
        require_terminal()?;
    }
    let made = make(engine, options, progress, true)?;
    let cid_file = options.cid_file.as_deref().map(|path| write_cid_file(path, &made.directory.id)).transpose();
    match cid_file.and_then(|_| follow(engine, options, attaching, made, progress)) {
        Err(error) => {
            if let Some(path) = &options.cid_file
                && !matches!(error, EngineError::CidFile { .. })
            {
                let _ = fs_err::remove_file(path);
            }
            Err(error)
        }
        ran => ran,
    }
}

/// Starts what was made.
fn follow<P: Progress + Notes>(
    engine: &Engine,
    options: &RunOptions,
    attaching: &Attaching,
    mut made: Prepared,
    progress: &P,
) -> Result<Ran, EngineError> {
    if options.detach || options.wants_shim || made.record.restart != RestartPolicy::No || made.record.health.is_some()
    {
        return with_shim(engine, options, attaching, made);
    }
    match foreground(engine, &mut made, options.terminal.interactive, progress) {
        Ok((exit_code, oom_killed, userns)) => {
            if oom_killed {
                progress.note(OOM_NOTE);
            }
            finish(&made.directory, options.auto_remove, (exit_code, oom_killed), userns)?;
            if options.auto_remove {
                events::emit_container(engine.root(), &made.record, "destroy", &[]);
            }
            Ok(Ran::Ended(u8::try_from(exit_code).unwrap_or(u8::MAX)))
        }
        Err(error) => {
            // The first failure is what the person has to hear; the leftovers are swept by the next run.
            let _ = elsewhere::call(&made.record.idmap, || Ok(made.directory.discard()?));
            Err(error)
        }
    }
}

/// Makes a container without starting it; gives its id.
pub fn create<P: Progress + Notes>(engine: &Engine, options: &RunOptions, progress: &P) -> Result<String, EngineError> {
    let made = make(engine, options, progress, false)?;
    if let Some(path) = &options.cid_file
        && let Err(error) = write_cid_file(path, &made.directory.id)
    {
        let _ = elsewhere::call(&made.record.idmap, || Ok(made.directory.discard()?));
        return Err(error);
    }
    made.directory.set_abandonable(false)?;
    if !made.record.auto_remove {
        container::make_durable(engine.root(), &made.record.id);
    }
    Ok(made.record.id)
}

/// Decides, refuses and makes the container's directory; for one that `starts`, its user namespace is made meanwhile.
fn make<P: Progress + Notes>(
    engine: &Engine,
    options: &RunOptions,
    progress: &P,
    starts: bool,
) -> Result<Prepared, EngineError> {
    if options.auto_remove && options.restart != RestartPolicy::No {
        return Err(EngineError::RestartOrRemove);
    }
    if let Some(name) = &options.name {
        container::check_name(name)?;
    }
    if let Some(path) = options.cid_file.as_ref().filter(|path| path.exists()) {
        let source = std::io::ErrorKind::AlreadyExists.into();
        return Err(EngineError::CidFile { path: path.clone(), source });
    }
    let idmap = engine.idmap(options.userns.0)?;
    let ahead = if starts { begin(options, &idmap) } else { None };
    remove_abandoned(engine);
    let source = source(engine, options, &idmap, progress)?;
    let mut publish = options.publish.clone();
    if options.publish_all {
        let exposed = prepare::exposed_ports(&source.config).into_iter().chain(options.expose.iter().copied());
        for port in exposed {
            if !publish.contains(&port) {
                publish.push(port);
            }
        }
    }
    let (plan, note) = networks::plan::decide(engine.root(), options, &publish, &programs::find)?;
    if let Some(note) = note {
        progress.note(note);
    }
    let decided = prepare::decide(engine.root(), options, source, &idmap)?;
    Ok(Prepared { ahead, ..prepare::prepare(engine, &idmap, decided, plan)? })
}

/// Begins the namespaces that a container will have whatever its image is.
fn begin(options: &RunOptions, idmap: &IdMap) -> Option<(Ahead, Maker)> {
    match options.network {
        // Its user namespace is another container's, or made inside another one.
        Network::Container(_) | Network::Named(_) => None,
        _ if options.net_rate.is_some() => None,
        Network::Auto | Network::Host | Network::None | Network::Pasta => Ahead::begin(idmap),
    }
}

/// Gives the container a shim, and the caller a place at it unless it is to be left alone.
fn with_shim(engine: &Engine, options: &RunOptions, attaching: &Attaching, made: Prepared) -> Result<Ran, EngineError> {
    let Prepared { directory, spec, record, ahead } = made;
    let (ahead, _maker) = ahead.unzip();
    let known = Known { spec: Some(spec), ahead };
    let (id, idmap, lasting) = (record.id.clone(), record.idmap.clone(), !record.auto_remove);
    let started = shim::spawn(engine.root(), directory, record, !options.detach, known).and_then(|channel| {
        let client = Client::from_socket(channel);
        if lasting {
            // Before anybody hears its id, and while the shim works.
            container::make_durable(engine.root(), &id);
        }
        if options.detach {
            return attach::wait_for_start(&client, &id).map(|()| Ran::Detached(id.clone()));
        }
        let session = AttachOptions {
            stdin: options.terminal.interactive,
            terminal: options.terminal.tty,
            pass_signals: attaching.pass_signals && !options.terminal.tty,
            keys: attaching.keys.clone(),
            muted: muted(options),
        };
        if session.muted == Muted::ALL
            && let Some(tell) = attaching.tell_id
        {
            tell(&id);
        }
        Ok(match attach::follow(client, session, &id)? {
            Some(code) => Ran::Ended(u8::try_from(code).unwrap_or(u8::MAX)),
            None => Ran::Detached(String::new()),
        })
    });
    if started.is_err() {
        // A container that never ran is no use to anybody: the foreground removes it too.
        remove_unstarted(engine, &id, &idmap);
    }
    started
}

/// Says which outputs `-a` leaves out.
fn muted(options: &RunOptions) -> Muted {
    options.attach.map_or_else(Muted::default, |attached| Muted { stdout: !attached.stdout, stderr: !attached.stderr })
}

/// Removes a container whose first start failed, once its shim is gone.
fn remove_unstarted(engine: &Engine, id: &str, idmap: &IdMap) {
    let never_ran = || Container::read(engine.root(), id).ok().flatten().filter(|found| found.run() <= 1);
    let Some(found) = never_ran().filter(|found| found.exit.as_ref().is_none_or(|exit| exit.error.is_some())) else {
        return;
    };
    if let Ok(directory) = lifecycle::take(engine, found.id()) {
        // What cannot be removed now is listed, and can be removed later.
        let _ = elsewhere::call(idmap, || Ok(directory.discard()?));
    }
}

/// Says what is missing where a terminal is asked for.
pub fn require_terminal() -> Result<(), EngineError> {
    if rustix::termios::isatty(std::io::stdin()) { Ok(()) } else { Err(EngineError::NoTerminal) }
}

fn write_cid_file(path: &Path, id: &str) -> Result<(), EngineError> {
    use std::io::Write;
    let file = fs_err::OpenOptions::new().write(true).create_new(true).open(path);
    file.and_then(|mut file| file.write_all(id.as_bytes()))
        .map_err(|source| EngineError::CidFile { path: path.to_owned(), source })
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

/// Launches and watches over it; gives the exit code and the user namespace for the clean-up.
fn foreground<P: Progress + Notes>(
    engine: &Engine,
    made: &mut Prepared,
    interactive: bool,
    progress: &P,
) -> Result<(i32, bool, OwnedFd), EngineError> {
    let watch = Foreground::prepare().map_err(EngineError::Supervise)?;
    let null = open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| EngineError::Supervise(errno.into()))?;
    let (input, output, errors) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let stdin = if interactive { input.as_fd() } else { null.as_fd() };
    let stdio = if made.record.tty { Stdio::Console } else { Stdio::Fds([stdin, output.as_fd(), errors.as_fd()]) };
    let Prepared { directory, spec, record, ahead } = made;
    let (ahead, maker) = ahead.take().unzip();
    let mut launching = Launching { root: engine.root(), directory, record, spec, ahead };
    let Launched { mut running, helpers, cgroup } = launching.launch(stdio, false, &mut |text| progress.note(text))?;
    drop(maker);
    if let Err(error) = publish_state(directory, running.pid, cgroup.as_ref().and_then(shim::copy)) {
        let _ = running.signal(Signal::KILL);
        let _ = running.wait();
        return Err(error);
    }
    events::emit_container(engine.root(), record, "start", &[]);
    let exit = watch.run(&mut running, interactive).map_err(EngineError::Supervise)?;
    helpers.finish();
    let oom_killed = cgroup.as_ref().is_some_and(confinement::end);
    events::emit_end(engine.root(), record, exit.status(), oom_killed);
    Ok((exit.status(), oom_killed, running.userns))
}

/// Writes down which process this is, so that others can reach it.
fn publish_state(directory: &ContainerDir, pid: i32, cgroup: Option<Cgroup>) -> Result<(), EngineError> {
    let watcher = Identity::of(rustix::process::getpid().as_raw_pid())?;
    let state = State {
        version: VERSION,
        run: 1,
        phase: Phase::Running,
        // A program that has ended already needs no signal.
        init: Identity::of(pid).ok(),
        watcher,
        foreground: true,
        started_ns: prepare::now_ns(),
        restarts: 0,
        cgroup,
    };
    Ok(directory.publish_soon("state.json", &state)?)
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
            restarting: false,
            terminated: false,
            error: None,
        })?;
    }
    Ok(())
}

/// Removes what `--rm` runs left behind that were killed before they could.
pub fn remove_abandoned(engine: &Engine) {
    for left in container::abandoned(engine.root()) {
        // Best effort: a container that cannot be removed now is found again by the next run.
        let _ = remove_unwatched(engine, &left);
    }
}

/// Removes a container's directory where its files' owners are known; a half removed one tells no more.
pub fn remove_unwatched(engine: &Engine, container: &Unwatched) -> Result<(), EngineError> {
    let idmap = match container.idmap() {
        Some(map) => map.clone(),
        None => engine.idmap(coracle_runtime::UserNs::Auto)?,
    };
    elsewhere::call(&idmap, || Ok(container.remove()?))
}
