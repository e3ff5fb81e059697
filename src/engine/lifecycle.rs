//! What a person does with a container that is there: start, stop, kill, restart, pause, wait, remove.
//!
//! Everything works on the container's first process by pidfd, so that it works with a shim that is
//! stopped or gone. Who changes a container at rest holds its lock; who finds it held looks again.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use coracle_runtime::{failpoint, signal_process};
use coracle_shim::client::Client;
use coracle_shim::protocol::Request;
use rustix::io::Errno;
use rustix::process::Signal;

use super::container::{ContainerDir, short_id};
use super::containers::{self, Container, Status};
use super::record::{ExitRecord, RestartPolicy, UNKNOWN_EXIT_CODE};
use super::shim::{self, Known, STOPPED};
use super::signals::wait_for_end;
use super::{Engine, EngineError, elsewhere, events};

/// A shim writes an end down in milliseconds; a busy disk takes longer.
const RECORD_LIMIT: Duration = Duration::from_secs(10);
/// Between two looks at what has no descriptor to wait on.
const LOOK_PAUSE: Duration = Duration::from_millis(2);

/// Takes the lock of a container at rest.
///
/// Somebody else may hold it for a moment: a shim that writes an end down, a command that removes it.
pub fn take(engine: &Engine, id: &str) -> Result<ContainerDir, EngineError> {
    let end = Instant::now() + RECORD_LIMIT;
    loop {
        let unknown = || EngineError::UnknownContainer(short_id(id).to_owned());
        let container = Container::read(engine.root(), id)?.ok_or_else(unknown)?;
        if let Some(directory) = ContainerDir::take(engine.root(), &container.record)? {
            containers::settle(&directory)?;
            return Ok(directory);
        }
        if container.status().is_active() && !container.is_undecided() {
            return Err(EngineError::ContainerRuns(container.record.called().to_owned()));
        }
        if Instant::now() >= end {
            return Err(EngineError::Held(container.record.called().to_owned()));
        }
        std::thread::sleep(LOOK_PAUSE);
    }
}

/// Starts a container that rests; gives the connection to its shim, None when it runs already.
pub fn start(engine: &Engine, wanted: &str, attached: bool) -> Result<Option<(Container, OwnedFd)>, EngineError> {
    let found = containers::find(engine.root(), wanted)?;
    if found.status() == Status::Paused {
        return Err(EngineError::ContainerPaused(wanted.to_owned()));
    }
    let directory = match take(engine, found.id()) {
        Err(EngineError::ContainerRuns(_)) => return Ok(None),
        taken => taken?,
    };
    // As it is now that nobody else can change it.
    let container =
        Container::read(engine.root(), found.id())?.ok_or_else(|| EngineError::UnknownContainer(wanted.to_owned()))?;
    let channel = shim::spawn(engine.root(), directory, container.record.clone(), attached, Known::default())?;
    Ok(Some((container, channel)))
}

/// Starts a container and waits until its program runs.
pub fn start_and_leave(engine: &Engine, wanted: &str) -> Result<(), EngineError> {
    match start(engine, wanted, false)? {
        Some((container, channel)) => super::attach::wait_for_start(&Client::from_socket(channel), container.id()),
        None => Ok(()),
    }
}

/// Asks a container to end, and ends it when it does not within `limit` (None: what it was made with).
pub fn stop(engine: &Engine, wanted: &str, limit: Option<i64>, signal: Option<i32>) -> Result<(), EngineError> {
    let found = containers::find(engine.root(), wanted)?;
    let seconds = limit.unwrap_or_else(|| i64::try_from(found.record.stop_timeout_s).unwrap_or(i64::MAX));
    // Docker's -1 waits for ever.
    let limit = u64::try_from(seconds).ok().map(Duration::from_secs);
    let signal = signal.unwrap_or_else(|| shim::stop_signal(&found.record));
    let (root, record) = (engine.root(), found.record.clone());
    let ran = found.status().is_active();
    end(engine, found, signal, limit)?;
    if ran {
        events::emit_container(root, &record, "stop", &[]);
    }
    Ok(())
}

/// Ends a container at once.
fn end_now(engine: &Engine, container: Container) -> Result<(), EngineError> {
    end(engine, container, Signal::KILL.as_raw(), None)
}

/// Signals each run of a container until it rests.
fn end(engine: &Engine, found: Container, signal: i32, limit: Option<Duration>) -> Result<(), EngineError> {
    let id = found.id().to_owned();
    let mut container = found;
    let mut signalled = 0;
    loop {
        if !container.status().is_active() {
            // Only now it is known whether its shim starts it once more.
            match settle_down(engine, &container)? {
                Some(now) if now.status().is_active() => container = now,
                _ => return Ok(()),
            }
        }
        // Before the signal: the shim looks at it when the container has ended.
        fs_err::write(container.path.join(STOPPED), b"")?;
        match container.init().map(|init| init.open()).transpose()?.flatten() {
            Some(pidfd) if signalled != container.run() => {
                signalled = container.run();
                let frozen = container.status() == Status::Paused;
                signal_or_gone(&pidfd, signal)?;
                if frozen {
                    thaw(&container)?;
                }
                failpoint::hit("stop_term_sent")?;
                let limit = if signal == Signal::KILL.as_raw() { Some(RECORD_LIMIT) } else { limit };
                if !wait_for_end(&pidfd, limit) {
                    signal_or_gone(&pidfd, Signal::KILL.as_raw())?;
                    must_end(&pidfd, &container)?;
                }
            }
            // Between two runs, or before the first process is written down.
            _ => cancel(&container),
        }
        let Some(now) = Container::read(engine.root(), &id)? else { return Ok(()) };
        if now.status().is_active() && signalled == now.run() {
            std::thread::sleep(LOOK_PAUSE);
        }
        container = now;
    }
}

/// Waits for a process that was killed; one in the hands of a broken device or file system stays.
fn must_end(pidfd: &OwnedFd, container: &Container) -> Result<(), EngineError> {
    if wait_for_end(pidfd, Some(RECORD_LIMIT)) {
        return Ok(());
    }
    Err(EngineError::Undying(container.record.called().to_owned()))
}

/// Waits until the end of a container is written down; one whose shim is stopped is at rest without it.
/// Gives it as it is then, None when it is gone.
fn settle_down(engine: &Engine, container: &Container) -> Result<Option<Container>, EngineError> {
    let end = Instant::now() + RECORD_LIMIT;
    let mut now = Container::read(engine.root(), container.id())?;
    while let Some(found) = &now
        && found.is_undecided()
        && Instant::now() < end
    {
        std::thread::sleep(LOOK_PAUSE);
        now = Container::read(engine.root(), container.id())?;
    }
    Ok(now)
}

/// Tells a shim between two runs that there shall be no other.
fn cancel(container: &Container) {
    if let Ok(client) = Client::connect(&container.socket()) {
        // It may go away at this moment; the mark it looks for is there in any case.
        let _ = client.ask(Request::Cancel);
    }
    std::thread::sleep(LOOK_PAUSE);
}

fn signal_or_gone(pidfd: &OwnedFd, number: i32) -> Result<(), EngineError> {
    match signal_process(pidfd, number) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(errno) => Err(EngineError::Supervise(errno.into())),
    }
}

/// Sends a signal to a container's first process.
pub fn kill(engine: &Engine, wanted: &str, signal: i32) -> Result<(), EngineError> {
    let container = containers::find(engine.root(), wanted)?;
    let gone = || EngineError::NotRunning(wanted.to_owned());
    let deadly = signal == Signal::KILL.as_raw();
    if container.status() == Status::Restarting && deadly {
        return end_now(engine, container);
    }
    let pidfd = container.init().ok_or_else(gone)?.open()?.ok_or_else(gone)?;
    if deadly || signal == shim::stop_signal(&container.record) {
        fs_err::write(container.path.join(STOPPED), b"")?;
    }
    signal_process(&pidfd, signal).map_err(|errno| match errno {
        Errno::SRCH => gone(),
        errno => EngineError::Supervise(errno.into()),
    })?;
    events::emit_container(engine.root(), &container.record, "kill", &[("signal", &signal.to_string())]);
    if deadly {
        // So that a command that follows finds it at rest.
        wait_for_end(&pidfd, Some(RECORD_LIMIT));
        let now = Container::read(engine.root(), container.id())?;
        now.filter(|now| now.run() == container.run()).map_or(Ok(None), |now| settle_down(engine, &now))?;
    }
    Ok(())
}

/// Stops a container and starts it again.
pub fn restart(engine: &Engine, wanted: &str, limit: Option<i64>, signal: Option<i32>) -> Result<(), EngineError> {
    let found = containers::find(engine.root(), wanted)?;
    if found.record.auto_remove && found.status().is_active() {
        return Err(EngineError::RestartOrRemove);
    }
    stop(engine, found.id(), limit, signal)?;
    start_and_leave(engine, found.id())?;
    events::emit_container(engine.root(), &found.record, "restart", &[]);
    Ok(())
}

/// Freezes every process of a container.
pub fn pause(engine: &Engine, wanted: &str) -> Result<(), EngineError> {
    let container = containers::find(engine.root(), wanted)?;
    match container.status() {
        Status::Running => {}
        Status::Paused => return Err(EngineError::ContainerPaused(wanted.to_owned())),
        _ => return Err(EngineError::NotRunning(wanted.to_owned())),
    }
    let cgroup = container.state.as_ref().and_then(|state| state.cgroup.as_ref());
    // SIGSTOP is none: the container can undo it, and its parent sees it.
    let cgroup = cgroup.ok_or_else(|| EngineError::NoFreezer(wanted.to_owned()))?;
    cgroup.freeze()?;
    events::emit_container(engine.root(), &container.record, "pause", &[]);
    Ok(())
}

/// Lets a paused container go on.
pub fn unpause(engine: &Engine, wanted: &str) -> Result<(), EngineError> {
    let container = containers::find(engine.root(), wanted)?;
    if container.status() != Status::Paused {
        return Err(EngineError::NotPaused(wanted.to_owned()));
    }
    thaw(&container)?;
    events::emit_container(engine.root(), &container.record, "unpause", &[]);
    Ok(())
}

fn thaw(container: &Container) -> Result<(), EngineError> {
    match container.state.as_ref().and_then(|state| state.cgroup.as_ref()) {
        Some(cgroup) => Ok(cgroup.thaw()?),
        None => Ok(()),
    }
}

/// Waits until the run of a container that goes on now has ended, and gives its exit code.
pub fn wait(engine: &Engine, wanted: &str) -> Result<i32, EngineError> {
    let found = containers::find(engine.root(), wanted)?;
    // Opened before the end: of a `--rm` container nothing else is left then.
    let lock = fs_err::File::open(found.path.join("lock")).ok();
    let run = found.run();
    let mut container = found;
    loop {
        let ended = !container.status().is_active() || container.run() != run;
        if let Some(exit) = container.exit.as_ref().filter(|exit| exit.run == run || ended) {
            return Ok(exit.exit_code);
        }
        // Docker waits for the first end of a container that was only created.
        if container.run() != run && run != 0 {
            return Ok(UNKNOWN_EXIT_CODE);
        }
        match container.init().and_then(|init| init.open().ok().flatten()) {
            Some(pidfd) => drop(wait_for_end(&pidfd, None)),
            None => std::thread::sleep(LOOK_PAUSE),
        }
        container = match Container::read(engine.root(), container.id())? {
            Some(now) => now,
            None => return Ok(last_word(lock)),
        };
    }
}

/// Reads the exit record that a removed container left in its lock.
fn last_word(lock: Option<fs_err::File>) -> i32 {
    let exit = lock.and_then(|lock| serde_json::from_reader::<_, ExitRecord>(lock).ok());
    exit.map_or(UNKNOWN_EXIT_CODE, |exit| exit.exit_code)
}

/// Removes a container; with `force` one that runs is ended first.
pub fn remove(engine: &Engine, wanted: &str, force: bool) -> Result<(), EngineError> {
    let found = containers::find(engine.root(), wanted)?;
    let (id, record) = (found.id().to_owned(), found.record.clone());
    let idmap = record.idmap.clone();
    if found.status().is_active() && !force {
        return Err(EngineError::ContainerRuns(wanted.to_owned()));
    }
    // At rest it may still be started once more.
    if force && (found.status().is_active() || record.restart != RestartPolicy::No) {
        end_now(engine, found)?;
    }
    let directory = match take(engine, &id) {
        // Gone by itself, which was wanted.
        Err(EngineError::UnknownContainer(_)) => return Ok(()),
        // Its shim is stopped: it has nothing to look after any more.
        Err(EngineError::Held(_)) if force => {
            end_watcher(engine, &id)?;
            take(engine, &id)?
        }
        taken => taken?,
    };
    match elsewhere::call(&idmap, || Ok(directory.remove()?)) {
        Err(_) if !directory.path.exists() => {}
        removed => removed?,
    }
    events::emit_container(engine.root(), &record, "destroy", &[]);
    Ok(())
}

fn end_watcher(engine: &Engine, id: &str) -> Result<(), EngineError> {
    let container = Container::read(engine.root(), id)?;
    let watcher = container.and_then(|container| container.state).map(|state| state.watcher);
    if let Some(pidfd) = watcher.map(|watcher| watcher.open()).transpose()?.flatten() {
        signal_or_gone(&pidfd, Signal::KILL.as_raw())?;
        wait_for_end(&pidfd, None);
    }
    Ok(())
}

/// Gives id and name of what the restart policies want to run after a reboot.
pub fn wanted_after_boot(engine: &Engine) -> Vec<(String, String)> {
    let wanted = |container: &Container| {
        let lost = container.exit.as_ref().is_some_and(|exit| exit.unknown);
        let stopped = container.path.join(STOPPED).exists();
        let policy = match container.record.restart {
            RestartPolicy::No => false,
            RestartPolicy::Always => container.run() > 0,
            RestartPolicy::UnlessStopped => container.run() > 0 && !stopped,
            RestartPolicy::OnFailure(_) => lost && !stopped,
        };
        policy && !container.status().is_active()
    };
    let all = containers::list(engine.root()).into_iter().filter(wanted);
    all.map(|container| (container.id().to_owned(), container.record.called().to_owned())).collect()
}
