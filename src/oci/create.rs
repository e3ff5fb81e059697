//! `create`, `start` and `run`: from a bundle to a process.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use coracle_runtime::bundle::{self, Config, Limits};
use coracle_runtime::cgroup::{Cgroup, Request};
use coracle_runtime::container::{Beginning, Container, Id, Identity, Lock, State, Status};
use coracle_runtime::hooks::{self, Moment, Subject};
use coracle_runtime::{
    Gate, LaunchFailure, LaunchOptions, Namespaces, Rootfs, Running, Stage, Stdio, launch, memory, open_gate, seal,
};
use coracle_shim::Foreground;
use oci_spec::runtime::Spec;

use super::arguments::{Flag, Given, Grammar, Words, switch, valued};
use super::error::OciError;
use super::notify::Notify;
use super::streams::{check_console, connect_console, preserved, send_console, write_pid};
use super::{Context, delete, rootless};
use crate::{env, report};

/// What `create` and `run` have in common.
pub struct BundleArgs {
    /// The bundle's directory [default: .]
    bundle: Option<PathBuf>,
    /// Read this file of the bundle in place of config.json, as crun does
    config: Option<PathBuf>,
    /// Send the terminal to the program that listens at SOCKET
    console_socket: Option<PathBuf>,
    /// Write the pid of the first process to FILE
    pid_file: Option<PathBuf>,
    /// Change the root without pivot_root, for an initramfs
    no_pivot: bool,
    /// Give the container N more descriptors, from 3
    preserve_fds: u32,
    /// The new container's id
    id: String,
}

const BUNDLE: &[Flag] = &[
    valued("bundle", "DIR", "The bundle's directory [default: .]").short('b'),
    valued("config", "FILE", "Read this file of the bundle in place of config.json, as crun does").short('f'),
    valued("console-socket", "SOCKET", "Send the terminal to the program that listens at SOCKET"),
    valued("pid-file", "FILE", "Write the pid of the first process to FILE"),
    switch("no-pivot", "Change the root without pivot_root, for an initramfs"),
    switch("no-new-keyring", "Accepted for runc's sake: no container gets a session keyring"),
    switch("no-subreaper", "Accepted for runc's sake: nothing here becomes a subreaper"),
    valued("preserve-fds", "N", "Give the container N more descriptors, from 3 [default: 0]"),
];

/// `create`.
pub const CREATE: Grammar =
    Grammar { name: "create", about: "Make a container; `start` runs its program", flags: &[BUNDLE], words: Words::Id };

/// `run`.
pub const RUN: Grammar = Grammar {
    name: "run",
    about: "Make a container and run its program",
    flags: &[
        &[
            switch("detach", "Return as soon as the program runs").short('d'),
            switch("keep", "Keep the container's state after its end"),
        ],
        BUNDLE,
    ],
    words: Words::Id,
};

/// `start`.
pub const START: Grammar =
    Grammar { name: "start", about: "Run the program of a container that was created", flags: &[], words: Words::Id };

impl BundleArgs {
    fn take(given: &Given) -> Result<Self, OciError> {
        Ok(Self {
            bundle: given.path("bundle"),
            config: given.path("config"),
            console_socket: given.path("console-socket"),
            pid_file: given.path("pid-file"),
            no_pivot: given.has("no-pivot"),
            preserve_fds: given.number("preserve-fds")?.unwrap_or(0),
            id: given.id()?,
        })
    }
}

/// Is a bundle that was read, with everything checked that needs no container.
struct Order<'a> {
    context: &'a Context,
    args: &'a BundleArgs,
    id: Id,
    directory: PathBuf,
    config: Config,
}

/// Runs `create`.
pub fn create(context: &Context, given: &Given) -> Result<ExitCode, OciError> {
    let args = BundleArgs::take(given)?;
    let mut order = Order::read(context, &args)?;
    check_console(order.terminal(), false, args.console_socket.as_deref())?;
    seal::ensure_sealed(std::iter::empty()).map_err(OciError::Seal)?;
    let root = context.place.make()?;
    let container = root.add(&order.id)?;
    let lock = container.lock()?;
    let (lock, _) = order.offer_notify(lock)?;
    order.or_remove(lock, |order, lock| {
        let gate = Gate::Socket(container.gate());
        order.launch(lock, gate, order.terminal(), false).map(|_| ExitCode::SUCCESS)
    })
}

/// Runs `start`.
pub fn start(context: &Context, given: &Given) -> Result<ExitCode, OciError> {
    let id: Id = given.id()?.parse()?;
    let container = context.place.container(&id)?;
    let lock = container.lock()?;
    let state = container.state()?;
    match container.status(state.as_ref())? {
        Status::Created => {}
        status => {
            return Err(OciError::Status { verb: "start", id, status });
        }
    }
    let notify = Notify::take_over(&container)?;
    open_gate(&container.gate()).map_err(|source| OciError::Start { id: id.clone(), source })?;
    let Some(state) = state else { return Ok(ExitCode::SUCCESS) };
    let pid = state.init.pid;
    poststart(context, lock, &state).map_err(|source| OciError::Start { id, source })?;
    if let Some(notify) = notify {
        notify.wait(pid);
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs the poststart hooks; a failure ends the container (runtime-spec 1.3, "Lifecycle").
fn poststart(context: &Context, lock: Lock<'_>, state: &State) -> Result<(), LaunchFailure> {
    let subject = subject(state);
    let result = hooks::run(state.hooks.as_ref(), Moment::Poststart, &subject, state.init.pid);
    if result.is_err() {
        let container = lock.container().id().clone();
        // The hook's failure is the one that tells why.
        if let Err(error) = delete::kill_and_remove(context, lock, Some(state)) {
            context.journal.warn(&format!("container {container} is left: {}", report::chain(&error)));
        }
    }
    result
}

/// What hooks are told about a container that exists.
pub fn subject(state: &State) -> Subject {
    Subject::of(&state.oci_version, &state.id, &state.bundle, &state.annotations)
}

/// Runs `run`.
pub fn run(context: &Context, given: &Given) -> Result<ExitCode, OciError> {
    let args = BundleArgs::take(given)?;
    let (detach, keep) = (given.has("detach"), given.has("keep"));
    let mut order = Order::read(context, &args)?;
    let terminal = order.terminal();
    let watched = !detach && args.console_socket.is_none();
    check_console(terminal, watched, args.console_socket.as_deref())?;
    seal::ensure_sealed(std::iter::empty()).map_err(OciError::Seal)?;
    let id = order.id.clone();
    let watch_failed = |source| OciError::Watch { id: id.clone(), source };
    // Before the container exists, so that no signal is lost.
    let watch = if detach { None } else { Some(Foreground::prepare().map_err(watch_failed)?) };
    let root = context.place.make()?;
    let container = root.add(&order.id)?;
    let (lock, notify) = order.offer_notify(container.lock()?)?;
    let mut running = order.or_remove(lock, |order, lock| {
        let mut running = order.launch(lock, Gate::Wait, terminal, watch.is_some())?;
        running.start().map_err(|source| OciError::Start { id: order.id.clone(), source })?;
        Ok(running)
    })?;
    if !Moment::Poststart.of(order.config.spec.hooks().as_ref()).is_empty()
        && let Some(state) = container.state()?
    {
        let failed = |source| OciError::Start { id: order.id.clone(), source };
        poststart(context, container.lock()?, &state).map_err(failed)?;
    }
    let Some(watch) = watch else {
        if let Some(notify) = notify {
            notify.wait(running.pid);
        }
        return Ok(ExitCode::SUCCESS);
    };
    // Starting is over, and then waiting; before there is a thread, and when there is none any more.
    memory::step();
    let notified = notify.map(|notify| notify.wait_aside(running.pid));
    let exit = watch.run(&mut running, terminal && watched).map_err(watch_failed)?;
    if let Some(notified) = notified {
        // Its container is gone, so it ends; it has nothing to say of its own.
        let _ = notified.join();
    }
    memory::step();
    if !keep {
        delete::remove(context, container.lock()?)?;
    }
    Ok(ExitCode::from(u8::try_from(exit.status()).unwrap_or(u8::MAX)))
}

impl<'a> Order<'a> {
    fn read(context: &'a Context, args: &'a BundleArgs) -> Result<Self, OciError> {
        let id: Id = args.id.parse()?;
        let given = args.bundle.as_deref().unwrap_or(Path::new("."));
        let directory = fs_err::canonicalize(given).map_err(|error| OciError::file("find bundle", given, &error))?;
        let config = bundle::read(&directory, args.config.as_deref(), Limits::Ignore)?;
        // Reading JSON is a large part of the program and of the heap, and nothing that follows needs it.
        memory::trim_heap();
        memory::step();
        let mut config = rootless::complete(config, &directory.display().to_string(), Limits::Ignore)?;
        for warning in &config.warnings {
            context.journal.warn(warning);
        }
        if !rustix::process::geteuid().is_root() && has_device_rules(&config.spec) {
            context.journal.warn(DEVICE_RULES_IDLE);
        }
        memory::step();
        context.journal.debug(&format!("container {id} from bundle {}", directory.display()));
        pass_listeners(&mut config.spec);
        Ok(Self { context, args, id, directory, config })
    }

    fn terminal(&self) -> bool {
        let process = self.config.spec.process().as_ref();
        process.and_then(|process| process.terminal()).unwrap_or(false)
    }

    fn rootfs(&self) -> PathBuf {
        let root = self.config.spec.root().as_ref();
        self.directory.join(root.map_or(Path::new(""), |root| root.path()))
    }

    /// Lets the container tell the caller's service manager that it is ready.
    fn offer_notify<'b>(&mut self, lock: Lock<'b>) -> Result<(Lock<'b>, Option<Notify>), OciError> {
        match Notify::offer(lock.container(), &mut self.config.spec) {
            Ok(notify) => Ok((lock, notify)),
            Err(error) => {
                // The first error is the one that tells why.
                let _ = lock.remove();
                Err(error)
            }
        }
    }

    /// Does something that may fail; what is left of the container then goes away.
    fn or_remove<T>(
        &self,
        lock: Lock<'_>,
        make: impl FnOnce(&Self, &Lock<'_>) -> Result<T, OciError>,
    ) -> Result<T, OciError> {
        match make(self, &lock) {
            Ok(made) => Ok(made),
            Err(error) => {
                // The first error is the one that tells why.
                let state = lock.container().state().ok().flatten();
                let _ = delete::kill_and_remove(self.context, lock, state.as_ref());
                Err(error)
            }
        }
    }

    /// Starts the first process in its cgroup and writes down that it exists.
    fn launch(&self, lock: &Lock<'_>, gate: Gate, terminal: bool, watched: bool) -> Result<Running, OciError> {
        lock.save_config(&self.config.text)?;
        let cgroup = self.cgroup()?;
        memory::step();
        let launched = self.launch_in(lock, gate, (terminal, watched), cgroup.as_ref());
        if let (Err(_), Some(cgroup)) = (&launched, &cgroup) {
            // The first error is the one that tells why.
            let _ = cgroup.kill().and_then(|()| cgroup.remove());
        }
        launched
    }

    fn launch_in(
        &self,
        lock: &Lock<'_>,
        gate: Gate,
        (terminal, watched): (bool, bool),
        cgroup: Option<&Cgroup>,
    ) -> Result<Running, OciError> {
        let keep_fds = preserved(self.args.preserve_fds, listeners())?;
        let socket = match &self.args.console_socket {
            Some(path) => Some((connect_console(path)?, path)),
            None => None,
        };
        let place = cgroup.map(Cgroup::fd).transpose()?;
        let mut options =
            LaunchOptions::new(self.id.as_str(), &self.config.spec, &self.directory, Rootfs::Directory(self.rootfs()));
        options.gate = gate;
        options.stdio = if terminal { Stdio::Console } else { Stdio::Inherit };
        options.keep_fds = &keep_fds;
        options.no_pivot = self.args.no_pivot;
        options.die_with_parent = watched;
        options.cgroup = place.as_ref().map(AsFd::as_fd);
        let mut state = None;
        // The creator may be killed at any moment from here on; what it started must be known.
        let mut record = |namespaces: &Namespaces<'_>| {
            let made = self.state(namespaces.pid, cgroup);
            let published = made.and_then(|made| Ok(lock.publish(state.insert(made))?));
            published.map_err(|error| LaunchFailure::rule(Stage::Prepare, &self.id, &report::chain(&error)))
        };
        options.on_namespaces = Some(&mut record);
        let mut running = launch(options).map_err(|source| self.failed(source))?;
        // Without a socket we ourselves are at the other end.
        if let Some((socket, path)) = socket
            && let Some(master) = running.console.take()
        {
            send_console(&socket, path, &master)?;
        }
        if let Some(path) = &self.args.pid_file {
            write_pid(path, running.pid)?;
        }
        if let Some(mut state) = state {
            state.ready = true;
            lock.publish(&state)?;
        }
        Ok(running)
    }

    fn failed(&self, source: LaunchFailure) -> OciError {
        OciError::Create { id: self.id.clone(), source }
    }

    fn state(&self, pid: i32, cgroup: Option<&Cgroup>) -> Result<State, OciError> {
        let beginning = Beginning {
            spec: &self.config.spec,
            id: self.id.as_str(),
            bundle: &self.directory,
            rootfs: self.rootfs(),
            init: Identity::of(pid)?,
            cgroup,
        };
        State::begin(beginning).map_err(OciError::Json)
    }

    /// Makes the container's cgroup with its limits; an error where a limit cannot be enforced.
    fn cgroup(&self) -> Result<Option<Cgroup>, OciError> {
        let linux = self.config.spec.linux().as_ref();
        let path = linux.and_then(|linux| linux.cgroups_path().as_deref()).map(|path| path.display().to_string());
        Ok(Cgroup::create(&Request {
            kind: self.context.cgroups,
            id: self.id.as_str(),
            path: path.as_deref().filter(|path| !path.is_empty()),
            resources: linux.and_then(|linux| linux.resources().as_ref()),
            best_effort: false,
        })?)
    }
}

/// What an ordinary user hears of rules that only root of the host can have the kernel keep.
const DEVICE_RULES_IDLE: &str = "linux.resources.devices is not enforced: the kernel takes such rules from root alone; \
     no device node can be made in a user namespace, and those that are bound keep their permissions";

fn has_device_rules(spec: &Spec) -> bool {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    resources.and_then(|resources| resources.devices().as_ref()).is_some_and(|rules| !rules.is_empty())
}

/// How many descriptors systemd's socket activation hands on (sd_listen_fds(3)).
fn listeners() -> u32 {
    env::value(LISTEN_FDS).and_then(|number| number.to_str()?.parse().ok()).unwrap_or(0)
}

const LISTEN_FDS: &str = "LISTEN_FDS";

/// Tells the program about them, under the number that it will have.
fn pass_listeners(spec: &mut Spec) {
    let count = listeners();
    if count == 0 {
        return;
    }
    let Some(process) = spec.process_mut() else { return };
    let mut env = process.env().clone().unwrap_or_default();
    if !env.iter().any(|entry| entry.starts_with("LISTEN_FDS=")) {
        env.extend([format!("{LISTEN_FDS}={count}"), "LISTEN_PID=1".to_owned()]);
        process.set_env(Some(env));
    }
}

/// Reads the specification that a container was created with.
pub fn config_of(container: &Container) -> Result<Config, OciError> {
    let text = container.config()?.ok_or_else(|| OciError::NoConfig { id: container.id().clone() })?;
    let what = container.path().join(bundle::CONFIG);
    Ok(bundle::parse(text, &what.display().to_string(), Limits::Ignore)?)
}
