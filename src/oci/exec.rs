//! `exec`: one more process in a running container.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use coracle_runtime::bundle;
use coracle_runtime::caps::{self, CapSet, CapabilitySets};
use coracle_runtime::container::{Id, State, Status};
use coracle_runtime::{ExecOptions, LaunchFailure, Stdio, exec as launch_exec, seal};
use coracle_shim::Foreground;
use oci_spec::runtime::{Process, Spec};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use std::os::fd::{AsFd, OwnedFd};

use super::Context;
use super::arguments::{Given, Grammar, Words, switch, valued};
use super::create::{config_of, subject};
use super::error::OciError;
use super::streams::{check_console, connect_console, preserved, send_console, write_pid};

/// `exec`.
pub const EXEC: Grammar = Grammar {
    name: "exec",
    about: "Run a process in a container",
    flags: &[&[
        valued("process", "FILE", "Read the process from FILE, in the form of config.json's \"process\"").short('p'),
        switch("tty", "Give it a terminal").short('t'),
        switch("detach", "Return as soon as it runs").short('d'),
        valued("cwd", "DIR", "Start in DIR"),
        valued("env", "NAME=VALUE", "Set a variable").short('e').repeats(),
        valued("user", "UID[:GID]", "Run as this user, by numbers").short('u'),
        valued("additional-gids", "GID", "Add a supplementary group").short('g').repeats(),
        valued("cap", "NAME", "Add a capability").short('c').repeats(),
        valued("pid-file", "FILE", "Write its pid to FILE"),
        valued("console-socket", "SOCKET", "Send the terminal to the program that listens at SOCKET"),
        valued("preserve-fds", "N", "Give it N more descriptors, from 3 [default: 0]"),
        switch("no-new-privs", "Forbid gaining privileges by executing files; without it they may be, as with crun"),
        valued("apparmor", "PROFILE", "Refused by name, like config.json's process.apparmorProfile"),
        valued("process-label", "LABEL", "Refused by name, like config.json's process.selinuxLabel"),
        valued("cgroup", "PATH", "Start it in this cgroup below the container's"),
        switch("ignore-paused", "Start it although the container is paused; it stands still too"),
    ]],
    words: Words::IdAndProgram,
};

struct ExecArgs {
    process: Option<PathBuf>,
    tty: bool,
    detach: bool,
    cwd: Option<PathBuf>,
    env: Vec<String>,
    user: Option<String>,
    additional_gids: Vec<u32>,
    cap: Vec<String>,
    pid_file: Option<PathBuf>,
    console_socket: Option<PathBuf>,
    preserve_fds: u32,
    no_new_privs: bool,
    apparmor: Option<String>,
    process_label: Option<String>,
    cgroup: Option<PathBuf>,
    ignore_paused: bool,
    id: String,
    command: Vec<String>,
}

/// Runs `exec`.
pub fn exec(context: &Context, given: &Given) -> Result<ExitCode, OciError> {
    let args = ExecArgs::take(given)?;
    let id: Id = args.id.parse()?;
    seal::ensure_sealed(std::iter::empty()).map_err(OciError::Seal)?;
    let container = context.place.container(&id)?;
    let state = container.state()?;
    let status = container.status(state.as_ref())?;
    let Some(state) = state.filter(|_| matches!(status, Status::Running | Status::Created | Status::Paused)) else {
        return Err(OciError::Status { verb: "execute in", id, status });
    };
    if status == Status::Paused && !args.ignore_paused {
        return Err(OciError::Paused { verb: "execute in", id });
    }
    let place = place(&state, args.cgroup.as_deref())?;
    let config = config_of(&container)?;
    let process = args.to_process(context, &config.spec)?;
    let terminal = process.terminal().unwrap_or(false);
    let watched = !args.detach && args.console_socket.is_none();
    check_console(terminal, watched, args.console_socket.as_deref())?;
    let socket = args.console_socket.as_deref().map(connect_console).transpose()?;
    let keep_fds = preserved(args.preserve_fds, 0)?;
    let watch_failed = |source| OciError::Watch { id: id.clone(), source };
    let watch = if args.detach { None } else { Some(Foreground::prepare().map_err(watch_failed)?) };
    let Some(pidfd) = state.init.open()? else {
        return Err(OciError::Status { verb: "execute in", id, status: Status::Stopped });
    };
    let mut options = ExecOptions::new(state.init.pid, pidfd.as_fd(), &process);
    options.seccomp = config.spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    let subject = subject(&state);
    options.subject = Some(&subject);
    options.linux = config.spec.linux().as_ref();
    options.cgroup = place.as_ref().map(AsFd::as_fd);
    options.stdio = if terminal { Stdio::Console } else { Stdio::Inherit };
    options.keep_fds = &keep_fds;
    options.die_with_parent = watch.is_some();
    let failed = |source: LaunchFailure| OciError::Exec { id: id.clone(), source };
    let mut running = launch_exec(options).map_err(failed)?;
    if let (Some(socket), Some(path)) = (&socket, &args.console_socket)
        && let Some(master) = running.console.take()
    {
        send_console(socket, path, &master)?;
    }
    if let Some(path) = &args.pid_file {
        write_pid(path, running.pid)?;
    }
    let Some(watch) = watch else {
        return Ok(ExitCode::SUCCESS);
    };
    let exit = watch.run(&mut running, terminal && watched).map_err(watch_failed)?;
    Ok(ExitCode::from(u8::try_from(exit.status()).unwrap_or(u8::MAX)))
}

/// The cgroup to be born in: the container's, or one below it.
fn place(state: &State, below: Option<&Path>) -> Result<Option<OwnedFd>, OciError> {
    let Some(cgroup) = state.cgroup()? else {
        return match below {
            None => Ok(None),
            Some(_) => Err(OciError::NoCgroup { verb: "choose a cgroup in", id: state.id.parse()? }),
        };
    };
    let own = cgroup.fd()?;
    let Some(below) = below else { return Ok(Some(own)) };
    let relative = below.strip_prefix("/").unwrap_or(below);
    let relative = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // Never above the container's own (A21).
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let found = openat2(&own, relative, flags, Mode::empty(), resolve);
    found.map(Some).map_err(|errno| OciError::file("open cgroup", &cgroup.path().join(relative), &errno.into()))
}

impl ExecArgs {
    fn take(given: &Given) -> Result<Self, OciError> {
        Ok(Self {
            process: given.path("process"),
            tty: given.has("tty"),
            detach: given.has("detach"),
            cwd: given.path("cwd"),
            env: given.texts("env")?,
            user: given.text("user")?,
            additional_gids: given.numbers("additional-gids")?,
            cap: given.texts("cap")?,
            pid_file: given.path("pid-file"),
            console_socket: given.path("console-socket"),
            preserve_fds: given.number("preserve-fds")?.unwrap_or(0),
            no_new_privs: given.has("no-new-privs"),
            apparmor: given.text("apparmor")?,
            process_label: given.text("process-label")?,
            cgroup: given.path("cgroup"),
            ignore_paused: given.has("ignore-paused"),
            id: given.id()?,
            command: given.words(1)?,
        })
    }

    /// The process of the container's own specification with what the flags change.
    fn to_process(&self, context: &Context, spec: &Spec) -> Result<Process, OciError> {
        if let Some(path) = &self.process {
            let (process, warnings) = bundle::read_process(path)?;
            warnings.iter().for_each(|warning| context.journal.warn(warning));
            return Ok(process);
        }
        if self.command.is_empty() {
            return Err(OciError::NoProgram);
        }
        let mut process = spec.process().clone().unwrap_or_default();
        process.set_args(Some(self.command.clone())).set_terminal(Some(self.tty)).set_console_size(None);
        if let Some(cwd) = &self.cwd {
            process.set_cwd(cwd.clone());
        }
        let mut env = process.env().clone().unwrap_or_default();
        for variable in &self.env {
            if variable.split_once('=').is_none_or(|(name, _)| name.is_empty()) {
                return Err(OciError::Variable(variable.clone()));
            }
            // The last word counts, and programs look at the first one they find.
            let name = variable.split_inclusive('=').next().unwrap_or_default();
            env.retain(|known| !known.starts_with(name));
            env.push(variable.clone());
        }
        process.set_env(Some(env));
        self.set_user(&mut process)?;
        // As for crun: only a process of a file says itself whether it may gain privileges.
        process.set_no_new_privileges(Some(self.no_new_privs));
        // An empty word is runc's way to say "none".
        if self.apparmor.is_some() {
            process.set_apparmor_profile(self.apparmor.clone());
        }
        if self.process_label.is_some() {
            process.set_selinux_label(self.process_label.clone());
        }
        self.add_capabilities(context, &mut process)?;
        Ok(process)
    }

    /// Takes numbers alone, whole and in range: `-u 1` is user 1 (CVE-2026-30892).
    fn set_user(&self, process: &mut Process) -> Result<(), OciError> {
        let mut user = process.user().clone();
        if let Some(text) = &self.user {
            let (uid, gid) = match text.split_once(':') {
                Some((uid, gid)) => (uid, Some(gid)),
                None => (text.as_str(), None),
            };
            let number = |digits: &str| {
                let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
                digits.parse::<u32>().ok().filter(|_| plain).ok_or_else(|| OciError::User(text.clone()))
            };
            user.set_uid(number(uid)?);
            if let Some(gid) = gid {
                user.set_gid(number(gid)?);
            }
        }
        if !self.additional_gids.is_empty() {
            let mut groups = user.additional_gids().clone().unwrap_or_default();
            groups.extend(&self.additional_gids);
            user.set_additional_gids(Some(groups));
        }
        process.set_user(user);
        Ok(())
    }

    /// Adds to what an execve by root keeps, never to the inheritable and ambient sets (A22).
    fn add_capabilities(&self, context: &Context, process: &mut Process) -> Result<(), OciError> {
        if self.cap.is_empty() {
            return Ok(());
        }
        let mut added = CapSet::EMPTY;
        for name in &self.cap {
            // As in a config.json: what nobody knows is not granted and not fatal (C09).
            match caps::parse(name) {
                Ok(capability) => added = added.with(capability),
                Err(error) => context.journal.warn(&error.to_string()),
            }
        }
        let mut sets = CapabilitySets::from_spec(process.capabilities().as_ref())?;
        sets.bounding = sets.bounding.union(added);
        sets.permitted = sets.permitted.union(added);
        sets.effective = sets.effective.union(added);
        process.set_capabilities(Some(sets.to_spec()));
        Ok(())
    }
}
