//! The engine's side of a shim: how it is made, and what a start, an end and a health check mean for the
//! container's records. Runs in the shim itself, which is a fork of the command that asked for it.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use coracle_runtime::cgroup::Cgroup;
use coracle_runtime::container::Identity;
use coracle_runtime::detach::{detach, detach_child};
use coracle_runtime::userns::Ahead;
use coracle_runtime::{Exit, Running, Stdio, failpoint, memory, signal_process, userns};
use coracle_shim::{After, LogLimits, Owner, ProbeResult, Schedule, Shim, ShimOptions, parse_signal};
use oci_spec::runtime::Spec;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::Signal;

use super::container::ContainerDir;
use super::containers::{self, read_json};
use super::launching::{Helpers, Launched, Launching};
use super::prepare::now_ns;
use super::record::{ExitRecord, Health, HealthResult, LogDriver, Phase, Record, RestartPolicy, State, VERSION};
use super::{EngineError, confinement, events, exec, sharing};
use crate::report;

/// The first pause before a restart; each further one is twice as long.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// A run that lasted this long was a good one: the next pause is the first again.
const GOOD_RUN: Duration = Duration::from_secs(10);
/// What docker keeps of health checks.
const HEALTH_RESULTS_MAX: usize = 5;
/// The exit code of a start that failed without saying one, docker's.
const START_FAILED: i32 = 125;
/// Marks that a person stopped the container.
pub const STOPPED: &str = "stopped";

/// Makes the shim that starts a container; gives the connection on which the start is reported.
///
/// `directory` holds the container's lock, which goes over to the shim. `attached` connects the caller
/// to the container's streams from its first byte on. `known` is for the first start.
pub fn spawn(
    root: &Path,
    directory: ContainerDir,
    record: Record,
    attached: bool,
    known: Known,
) -> Result<OwnedFd, EngineError> {
    containers::settle(&directory)?;
    let previous: Option<State> = read_json(&directory.path.join("state.json"));
    let _ = fs_err::remove_file(directory.path.join(STOPPED));
    directory.set_abandonable(true)?;
    let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    let (ours, theirs) = pair.map_err(|errno| EngineError::Supervise(errno.into()))?;
    let mut keep = vec![directory.lock_fd().as_raw_fd(), theirs.as_raw_fd()];
    keep.extend(known.ahead.as_ref().map(|ahead| ahead.channel().as_raw_fd()));
    let watch = Watch {
        root: root.to_owned(),
        run: previous.map_or(0, |state| state.run),
        directory,
        record,
        known,
        watcher: None,
        restarts: 0,
        backoff: BACKOFF_MIN,
        cancelled: false,
        terminated: false,
        live: None,
        health: Health::default(),
    };
    let live = move || watch.live(theirs, attached);
    // Who is attached stays, and would have to reap it.
    let made = if attached { detach(&keep, live) } else { detach_child(&keep, live) };
    made.map_err(|errno| EngineError::Supervise(errno.into()))?;
    Ok(ours)
}

/// Is what whoever asks for a start has in its hands already.
#[derive(Default)]
pub struct Known {
    /// What config.json says.
    pub spec: Option<Spec>,
    /// The user namespace that was begun.
    pub ahead: Option<Ahead>,
}

/// Is a container as its shim knows it.
struct Watch {
    root: std::path::PathBuf,
    directory: ContainerDir,
    record: Record,
    known: Known,
    /// This process, once it was asked for.
    watcher: Option<Identity>,
    run: u64,
    restarts: u32,
    backoff: Duration,
    cancelled: bool,
    /// Was told to end, as everybody is by a machine that goes down.
    terminated: bool,
    live: Option<Live>,
    health: Health,
}

/// Is what belongs to one run.
struct Live {
    helpers: Helpers,
    cgroup: Option<Cgroup>,
    init: Option<Identity>,
    since: Instant,
    started_ns: u64,
}

impl Watch {
    /// Is the shim's whole life; its exit code is for nobody.
    fn live(self, first: OwnedFd, attached: bool) -> i32 {
        let record = &self.record;
        let log = (record.log.driver == LogDriver::JsonFile).then(|| {
            let limits = LogLimits { file_bytes_max: record.log.max_size_bytes, files_max: record.log.max_files };
            (self.directory.path.join("logs"), limits)
        });
        let probes = record.health.as_ref();
        let options = ShimOptions {
            socket: Some(self.directory.path.join("shim.sock")),
            ends_with_client: false,
            log,
            terminal: record.tty,
            open_stdin: record.open_stdin,
            stdin_once: record.stdin_once,
            probes: probes.map(|check| Schedule {
                interval: check.interval,
                timeout: check.timeout,
                start: check.start_interval.map(|interval| (interval, check.start_period)),
            }),
            first: Some((first, attached)),
        };
        sharing::offer(&self.root);
        match Shim::new(options, self) {
            Ok(shim) => shim.run(),
            // The caller hears the end of the connection; there is nothing else to undo.
            Err(_) => return 1,
        }
        0
    }

    #[inline(never)]
    fn try_launch(&mut self, stdio: Stdio<'_>) -> Result<Running, EngineError> {
        self.run += 1;
        self.publish_state(Phase::Starting, None)?;
        failpoint::hit("start_received")?;
        // A shim keeps no specification as long as it lives: each further start reads it again.
        let Known { spec, ahead } = std::mem::take(&mut self.known);
        let spec = spec
            .or_else(|| read_json(&self.directory.path.join("config.json")))
            .ok_or_else(|| EngineError::NoBundle(self.record.called().to_owned()))?;
        let mut launching =
            Launching { root: &self.root, directory: &self.directory, record: &mut self.record, spec: &spec, ahead };
        let Launched { running, helpers, cgroup } = launching.launch(stdio, true, &mut |_| {})?;
        let live = Live { helpers, cgroup, init: None, since: Instant::now(), started_ns: now_ns() };
        self.live = Some(live);
        match failpoint::hit("execed") {
            Ok(()) => Ok(running),
            Err(error) => {
                // Reported as a start that failed, so nothing of it may go on.
                let _ = running.signal(Signal::KILL);
                let _ = running.wait();
                Err(error.into())
            }
        }
    }

    fn publish_state(&mut self, phase: Phase, init: Option<Identity>) -> Result<(), EngineError> {
        let watcher = match &self.watcher {
            Some(watcher) => watcher.clone(),
            None => Identity::of(rustix::process::getpid().as_raw_pid())?,
        };
        self.watcher = Some(watcher.clone());
        let live = self.live.as_ref();
        self.directory.publish_soon(
            "state.json",
            &State {
                version: VERSION,
                run: self.run,
                phase,
                init,
                watcher,
                foreground: false,
                started_ns: live.map_or_else(now_ns, |live| live.started_ns),
                restarts: self.restarts,
                cgroup: live.and_then(|live| live.cgroup.as_ref()).and_then(copy),
            },
        )?;
        Ok(())
    }

    /// Decides whether there is a further start, and after which time.
    fn after(&mut self, code: i32, lasted: Duration) -> After {
        let wanted = match self.restart_policy() {
            RestartPolicy::No => false,
            RestartPolicy::OnFailure(most) => code != 0 && most.is_none_or(|most| self.restarts < most),
            RestartPolicy::Always | RestartPolicy::UnlessStopped => true,
        };
        // A first start that failed is the person's to mend.
        if !wanted || !self.wanted() || (lasted.is_zero() && self.run == 1) {
            return After::Gone;
        }
        if lasted >= GOOD_RUN {
            self.backoff = BACKOFF_MIN;
        }
        let pause = self.backoff;
        self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
        After::Again(pause)
    }

    /// As `update` may have changed it.
    fn restart_policy(&self) -> RestartPolicy {
        let now: Option<Record> = containers::read_json(&self.directory.path.join("container.json"));
        now.map_or(self.record.restart, |record| record.restart)
    }

    fn wanted(&self) -> bool {
        !self.cancelled && self.directory.path.exists() && !self.directory.path.join(STOPPED).exists()
    }

    /// Frees what one run had.
    fn clean_up(&mut self) -> (Duration, bool) {
        let Some(live) = self.live.take() else { return (Duration::ZERO, false) };
        live.helpers.finish();
        // The mounts went with their namespace.
        let _ = failpoint::hit("umounted");
        let oom_killed = live.cgroup.as_ref().is_some_and(confinement::end);
        let _ = failpoint::hit("cgroup_killed");
        (live.since.elapsed().max(Duration::from_nanos(1)), oom_killed)
    }

    /// Removes a `--rm` container; its files may belong to ids that only its user namespace has.
    fn remove(&self, userns: Option<&OwnedFd>) {
        if let Some(userns) = userns
            && userns::enter(userns.as_fd()).is_err()
        {
            // The next command finds it under its mark and sweeps it.
            return;
        }
        if self.directory.remove().is_ok() {
            events::emit_container(&self.root, &self.record, "destroy", &[]);
        }
    }

    fn publish_health(&self) {
        // Listings show the last one that could be written.
        let _ = self.directory.publish_soon("health.json", &self.health);
    }
}

// Never inlined: their frames would stay on the stack of a shim that only waits.
impl Owner for Watch {
    fn launch(&mut self, stdio: Stdio<'_>) -> Result<Running, Vec<u8>> {
        self.try_launch(stdio).map_err(|error| told(&error))
    }

    #[inline(never)]
    fn started(&mut self, running: &Running) -> Result<(), Vec<u8>> {
        let init = Identity::of(running.pid).ok();
        self.publish_state(Phase::Running, init.clone()).map_err(|error| told(&error))?;
        failpoint::hit("status_row").map_err(|error| told(&EngineError::from(error)))?;
        if let Some(live) = self.live.as_mut() {
            live.init = init;
        }
        events::emit_container(&self.root, &self.record, "start", &[]);
        if self.record.health.is_some() {
            self.health = Health { status: "starting".to_owned(), ..Health::default() };
            self.publish_health();
        }
        Ok(())
    }

    #[inline(never)]
    fn ended(&mut self, exit: Result<Exit, Vec<u8>>, running: Option<Running>) -> (i32, After) {
        // `update --restart` and `rename` may have changed it since the start.
        if let Some(now) = read_json::<Record>(&self.directory.path.join("container.json")) {
            (self.record.restart, self.record.name) = (now.restart, now.name);
        }
        let (lasted, oom_killed) = self.clean_up();
        let (exit_code, error) = match exit {
            Ok(exit) => (exit.status(), None),
            Err(text) => {
                let told: Option<super::Elsewhere> = serde_json::from_slice(&text).ok();
                let code = told.as_ref().and_then(|told| told.exit_code).map_or(START_FAILED, i32::from);
                (code, told.map(|told| told.message))
            }
        };
        let after = self.after(exit_code, lasted);
        let record = ExitRecord {
            version: VERSION,
            run: self.run,
            exit_code,
            finished_ns: now_ns(),
            oom_killed,
            unknown: false,
            restarting: after != After::Gone,
            terminated: self.terminated,
            error,
        };
        // Without it the run's end is reported as unknown, which is true then.
        let _ = self.directory.publish_exit(&record);
        events::emit_end(&self.root, &self.record, exit_code, oom_killed);
        if after == After::Gone {
            let _ = fs_err::remove_file(self.directory.path.join("shim.sock"));
            if self.record.auto_remove {
                self.remove(running.as_ref().map(|running| &running.userns));
            }
        } else {
            self.restarts += 1;
            let _ = self.publish_state(Phase::Restarting, None);
        }
        (exit_code, after)
    }

    fn wants_restart(&mut self) -> bool {
        self.wanted()
    }

    fn cancel(&mut self) {
        self.cancelled = true;
    }

    fn ask_to_stop(&mut self, running: &Running) {
        self.terminated = true;
        let _ = signal_process(&running.pidfd, stop_signal(&self.record));
    }

    #[inline(never)]
    fn probe(&mut self, running: &Running, output: BorrowedFd<'_>) -> Result<Running, String> {
        let Some(check) = &self.record.health else { return Err("no check".to_owned()) };
        let init = self.live.as_ref().and_then(|live| live.init.as_ref());
        let started = init.ok_or_else(|| "the container is gone".to_owned()).and_then(|init| {
            exec::probe(&self.directory.path, init, running.pidfd.as_fd(), &check.argv, output)
                .map_err(|error| report::chain(&error))
        });
        memory::trim_heap();
        started
    }

    #[inline(never)]
    fn probed(&mut self, result: ProbeResult) {
        let Some(check) = &self.record.health else { return };
        let healthy = result.exit_code == Some(0);
        let before = self.health.status.clone();
        let starting = self.live.as_ref().is_some_and(|live| live.since.elapsed() < check.start_period);
        if healthy {
            self.health.failing_streak = 0;
            self.health.status = "healthy".to_owned();
        } else if !(starting && self.health.status == "starting") {
            self.health.failing_streak += 1;
            if self.health.failing_streak >= check.retries {
                self.health.status = "unhealthy".to_owned();
            }
        }
        let late = format!("health check exceeded timeout ({} s)", check.timeout.as_secs_f64());
        let output = match (result.exit_code, result.output.is_empty()) {
            (None, true) => late,
            _ => String::from_utf8_lossy(&result.output).into_owned(),
        };
        self.health.log.push(HealthResult {
            started_ns: since_epoch_ns(result.started),
            ended_ns: since_epoch_ns(result.ended),
            exit_code: result.exit_code.unwrap_or(-1),
            output,
        });
        let surplus = self.health.log.len().saturating_sub(HEALTH_RESULTS_MAX);
        self.health.log.drain(..surplus);
        self.publish_health();
        if self.health.status != before {
            let action = format!("health_status: {}", self.health.status);
            events::emit_container(&self.root, &self.record, &action, &[]);
        }
    }
}

/// Gives the signal that asks a container to end.
pub fn stop_signal(record: &Record) -> i32 {
    record.stop_signal.as_deref().and_then(parse_signal).unwrap_or(Signal::TERM.as_raw())
}

/// Gives a cgroup once more; it is what it is in a file.
pub fn copy(cgroup: &Cgroup) -> Option<Cgroup> {
    serde_json::from_value(serde_json::to_value(cgroup).ok()?).ok()
}

/// Puts an error into words for the command that waits.
fn told(error: &EngineError) -> Vec<u8> {
    serde_json::to_vec(&report::elsewhere(error)).unwrap_or_default()
}

fn since_epoch_ns(moment: SystemTime) -> u64 {
    moment.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(0))
}
