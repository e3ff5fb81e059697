//! One more process in a container that runs: a person's `exec`, and health checks.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use coracle_runtime::container::Identity;
use coracle_runtime::detach::detach;
use coracle_runtime::{ExecOptions, Exit, LaunchFailure, Rootfs, Running, Stdio, exec as launch_exec, memory};
use coracle_shim::attach::{AttachOptions, DetachKeys, Muted};
use coracle_shim::client::Client;
use coracle_shim::{After, Foreground, Owner, ProbeResult, Shim, ShimOptions};
use oci_spec::runtime::{BoxBuilder, Process, Spec, UserBuilder};
use rustix::fs::{Mode, OFlags, open};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::Signal;

use super::container::short_id;
use super::containers::{self, Container, Status, read_json};
use super::options::{EnvEntry, Terminal};
use super::prepare::identity_file;
use super::process::{self, EnvironmentInputs};
use super::record::Record;
use super::user::ProcessUser;
use super::{Elsewhere, Engine, EngineError, attach, events, user};
use crate::report;

/// A failure in words is far shorter.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

/// Is everything `coracle exec` can be told, with Docker's meanings.
#[derive(Debug, Clone, Default)]
pub struct ExecRequest {
    pub command: Vec<String>,
    pub env: Vec<EnvEntry>,
    pub user: Option<String>,
    pub workdir: Option<String>,
    pub terminal: Terminal,
    pub detach: bool,
    /// What the person types to leave a command with a terminal.
    pub detach_keys: DetachKeys,
    /// Lines and characters of a line that the terminal begins with.
    pub size: Option<(u16, u16)>,
}

/// Runs a command in a container that runs; gives its exit code, 0 at once with `detach`.
pub fn exec(engine: &Engine, wanted: &str, request: &ExecRequest) -> Result<u8, EngineError> {
    let terminal = request.terminal;
    if request.detach {
        return exec_and_leave(engine.root(), wanted, request);
    }
    if terminal.tty && terminal.interactive && !rustix::termios::isatty(std::io::stdin()) {
        return Err(EngineError::NoTerminal);
    }
    if terminal.tty && terminal.interactive {
        return exec_at_terminal(engine.root(), wanted, request);
    }
    let watch = Foreground::prepare().map_err(EngineError::Supervise)?;
    let mut running = start(engine.root(), wanted, request)?;
    let exit = watch.run(&mut running, terminal.interactive).map_err(EngineError::Supervise)?;
    Ok(u8::try_from(exit.status()).unwrap_or(u8::MAX))
}

/// Runs a command with a terminal that the person can leave: a process of its own holds the other side of it.
fn exec_at_terminal(root: &Path, wanted: &str, request: &ExecRequest) -> Result<u8, EngineError> {
    let failed = |errno: rustix::io::Errno| EngineError::Supervise(errno.into());
    let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    let (ours, theirs) = pair.map_err(failed)?;
    let keep = [theirs.as_raw_fd()];
    detach(&keep, move || {
        let options = ShimOptions {
            socket: None,
            ends_with_client: true,
            log: None,
            terminal: true,
            open_stdin: true,
            stdin_once: false,
            probes: None,
            first: Some((theirs, true)),
        };
        let command = Command { root, wanted, request };
        // Without it the caller hears the end of the connection.
        Shim::new(options, command).map_or(1, |shim| {
            shim.run();
            0
        })
    })
    .map_err(failed)?;
    let options = AttachOptions {
        stdin: true,
        terminal: true,
        pass_signals: false,
        keys: request.detach_keys.clone(),
        muted: Muted::default(),
    };
    let code = attach::follow(Client::from_socket(ours), options, wanted)?;
    Ok(code.map_or(0, |code| u8::try_from(code).unwrap_or(u8::MAX)))
}

/// Is a command of `exec` that a process watches over as a shim does over a container.
struct Command<'a> {
    root: &'a Path,
    wanted: &'a str,
    request: &'a ExecRequest,
}

impl Owner for Command<'_> {
    fn launch(&mut self, _: Stdio<'_>) -> Result<Running, Vec<u8>> {
        start(self.root, self.wanted, self.request)
            .map_err(|error| serde_json::to_vec(&report::elsewhere(&error)).unwrap_or_default())
    }

    fn started(&mut self, _: &Running) -> Result<(), Vec<u8>> {
        Ok(())
    }

    fn ended(&mut self, exit: Result<Exit, Vec<u8>>, _: Option<Running>) -> (i32, After) {
        (exit.map_or(i32::from(u8::MAX), |exit| exit.status()), After::Gone)
    }

    fn wants_restart(&mut self) -> bool {
        false
    }

    fn cancel(&mut self) {}

    fn ask_to_stop(&mut self, running: &Running) {
        let _ = running.signal(Signal::TERM);
    }

    fn probe(&mut self, _: &Running, _: BorrowedFd<'_>) -> Result<Running, String> {
        Err("a command has no health check".to_owned())
    }

    fn probed(&mut self, _: ProbeResult) {}
}

/// Runs a command and leaves it to a process that reaps it: the end of a container waits for every
/// process that was put into it, until its parent has taken note (pid_namespaces(7)).
fn exec_and_leave(root: &Path, wanted: &str, request: &ExecRequest) -> Result<u8, EngineError> {
    let failed = |errno: rustix::io::Errno| EngineError::Supervise(errno.into());
    let (answer, theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(failed)?;
    let keep = [theirs.as_raw_fd()];
    detach(&keep, move || {
        let started = start(root, wanted, request);
        let said = serde_json::to_vec(&started.as_ref().map(drop).map_err(|error| report::elsewhere(error)));
        let _ = File::from(theirs).write_all(&said.unwrap_or_default());
        memory::release_program();
        started.map_or(1, |running| running.wait().map_or(1, |exit| exit.status()))
    })
    .map_err(failed)?;
    let mut text = Vec::new();
    File::from(answer).take(ANSWER_BYTES_MAX).read_to_end(&mut text).map_err(EngineError::Supervise)?;
    match serde_json::from_slice::<Result<(), Elsewhere>>(&text) {
        Ok(answer) => answer.map(|()| 0).map_err(EngineError::Elsewhere),
        Err(_) => Err(EngineError::NotRunning(wanted.to_owned())),
    }
}

/// Starts the process: with the caller's streams, a terminal, or nothing.
fn start(root: &Path, wanted: &str, request: &ExecRequest) -> Result<Running, EngineError> {
    let terminal = request.terminal;
    let container = containers::find(root, wanted)?;
    match container.status() {
        Status::Running => {}
        Status::Paused => return Err(EngineError::ContainerPaused(wanted.to_owned())),
        _ => return Err(EngineError::NotRunning(wanted.to_owned())),
    }
    let gone = || EngineError::NotRunning(wanted.to_owned());
    let init = container.init().ok_or_else(gone)?;
    let pidfd = init.open()?.ok_or_else(gone)?;
    let spec = spec_of(&container.path, container.record.called())?;
    let process = process(&container.record, &spec, request)?;
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let null = open("/dev/null", flags, Mode::empty()).map_err(|errno| EngineError::Supervise(errno.into()))?;
    let (input, output, errors) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let stdin = if terminal.interactive { input.as_fd() } else { null.as_fd() };
    let stdio = match (request.detach, terminal.tty) {
        (true, _) => Stdio::Fds([null.as_fd(), null.as_fd(), null.as_fd()]),
        (false, true) => Stdio::Console,
        (false, false) => Stdio::Fds([stdin, output.as_fd(), errors.as_fd()]),
    };
    let cgroup = container.state.as_ref().and_then(|state| state.cgroup.as_ref()).map(|cgroup| cgroup.fd());
    let cgroup = cgroup.transpose()?;
    let mut options = ExecOptions::new(init.pid, pidfd.as_fd(), &process);
    options.seccomp = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    options.stdio = stdio;
    options.cgroup = cgroup.as_ref().map(AsFd::as_fd);
    options.die_with_parent = true;
    let failed = |source: LaunchFailure| EngineError::Exec { id: short_id(container.id()).to_owned(), source };
    let running = launch_exec(options).map_err(failed)?;
    events::emit_container(root, &container.record, "exec_start", &[]);
    Ok(running)
}

/// Starts a health check; what it writes goes to `output`.
pub fn probe(
    directory: &Path,
    init: &Identity,
    pidfd: BorrowedFd<'_>,
    argv: &[String],
    output: BorrowedFd<'_>,
) -> Result<Running, EngineError> {
    let spec = spec_of(directory, "")?;
    let mut process = spec.process().clone().unwrap_or_default();
    process.set_args(Some(argv.to_vec())).set_terminal(Some(false)).set_console_size(None);
    let null = open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| EngineError::Supervise(errno.into()))?;
    let mut options = ExecOptions::new(init.pid, pidfd, &process);
    options.seccomp = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    options.stdio = Stdio::Fds([null.as_fd(), output, output]);
    options.die_with_parent = true;
    launch_exec(options).map_err(|source| EngineError::Exec { id: "health check".to_owned(), source })
}

fn spec_of(directory: &Path, called: &str) -> Result<Spec, EngineError> {
    read_json(&directory.join("config.json")).ok_or_else(|| EngineError::NoBundle(called.to_owned()))
}

/// Says as whom a person who names a user, or nobody, works in a container that runs, and where he begins.
pub fn stands(container: &Container, wanted: Option<&str>) -> Result<(ProcessUser, PathBuf), EngineError> {
    let spec = spec_of(&container.path, container.record.called())?;
    let process = spec.process().clone().unwrap_or_default();
    let user = match wanted {
        Some(wanted) => named(&container.record, wanted)?,
        None => ProcessUser {
            uid: process.user().uid(),
            gid: process.user().gid(),
            groups: process.user().additional_gids().clone().unwrap_or_default(),
            home: String::new(),
        },
    };
    Ok((user, process.cwd().clone()))
}

/// Finds a user by what the image says.
fn named(record: &Record, wanted: &str) -> Result<ProcessUser, EngineError> {
    let layers = layers(record);
    let (passwd, group) = (identity_file(&layers, "etc/passwd"), identity_file(&layers, "etc/group"));
    let mut found = user::resolve(wanted, &passwd, &group)?;
    // As at a start: groups that only the image names are no reason to refuse a person with one id.
    found.fit_single(&record.idmap, false);
    super::spec::check_user(&record.idmap, &found)?;
    Ok(found)
}

/// The container's own process with what the person changes.
fn process(record: &Record, spec: &Spec, request: &ExecRequest) -> Result<Process, EngineError> {
    let mut process = spec.process().clone().unwrap_or_default();
    let own = process.env().clone().unwrap_or_default();
    let mut env: Vec<String> = own;
    let mut home = None;
    if let Some(wanted) = &request.user {
        let found = named(record, wanted)?;
        process.set_capabilities(Some(super::spec::capabilities_for(process.capabilities().as_ref(), &found)?));
        if let Ok(user) =
            UserBuilder::default().uid(found.uid).gid(found.gid).additional_gids(found.groups.clone()).build()
        {
            process.set_user(user);
        }
        env.retain(|entry| !entry.starts_with("HOME="));
        home = Some(found.home);
    }
    let inputs = EnvironmentInputs {
        image: &env,
        entries: &request.env,
        hostname: &record.hostname,
        home: home.as_deref().unwrap_or("/"),
        tty: request.terminal.tty,
    };
    process.set_env(Some(process::environment(&inputs)?));
    process.set_args(Some(process::arguments(&[], &[], None, &request.command)?));
    let size = request.size.and_then(|(rows, columns)| {
        BoxBuilder::default().height(u64::from(rows)).width(u64::from(columns)).build().ok()
    });
    process.set_terminal(Some(request.terminal.tty && !request.detach)).set_console_size(size);
    if let Some(workdir) = &request.workdir {
        process.set_cwd(PathBuf::from(process::working_directory(None, Some(workdir))?));
    }
    Ok(process)
}

/// The directories that make the container's root filesystem, the writable one last.
fn layers(record: &Record) -> Vec<PathBuf> {
    match &record.rootfs {
        Rootfs::Directory(path) => vec![path.clone()],
        Rootfs::Overlay { lower, upper, .. } => lower.iter().chain([upper]).cloned().collect(),
    }
}
