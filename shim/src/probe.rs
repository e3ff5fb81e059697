//! Health checks: when the next one is due, what one said, what follows. The process itself is started
//! by the owner.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant, SystemTime};

use coracle_runtime::Running;
use rustix::io::Errno;
use rustix::process::Signal;

/// What docker keeps of a check's output.
const OUTPUT_BYTES_MAX: usize = 4096;
/// Read and dropped beyond that, at once; a check that writes more is read again later.
const READ_BYTES: usize = 4096;

/// Is how often the container is asked.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    /// Between the end of one check and the start of the next.
    pub interval: Duration,
    /// A check that takes longer is killed and has failed.
    pub timeout: Duration,
    /// Between two checks until the first that succeeds, and for how long that holds.
    pub start: Option<(Duration, Duration)>,
}

/// Is what one check said.
#[derive(Debug)]
pub struct ProbeResult {
    /// When it began.
    pub started: SystemTime,
    /// When it ended.
    pub ended: SystemTime,
    /// None after the time limit, or where it could not be started.
    pub exit_code: Option<i32>,
    /// The beginning of what it wrote.
    pub output: Vec<u8>,
}

/// Is the clock of a container's checks.
#[derive(Debug)]
pub struct Prober {
    schedule: Schedule,
    since: Instant,
    /// One has succeeded.
    well: bool,
    next: Instant,
    current: Option<Probe>,
}

#[derive(Debug)]
struct Probe {
    running: Running,
    output: Option<OwnedFd>,
    kept: Vec<u8>,
    started: SystemTime,
    limit: Instant,
}

impl Prober {
    /// Begins with one interval of patience, as docker does.
    pub fn new(schedule: Schedule) -> Self {
        let since = Instant::now();
        let mut prober = Self { schedule, since, well: false, next: since, current: None };
        prober.next += prober.pause();
        prober
    }

    /// Gives the time until the next check.
    fn pause(&self) -> Duration {
        match self.schedule.start {
            Some((interval, period)) if !self.well && self.since.elapsed() < period => interval,
            _ => self.schedule.interval,
        }
    }

    /// Gives the moment at which something has to be done.
    pub fn deadline(&self) -> Instant {
        self.current.as_ref().map_or(self.next, |probe| probe.limit)
    }

    /// Gives what the check that runs is watched by: its end, and its output while somebody writes.
    pub fn watched(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let probe = self.current.as_ref();
        let end = probe.map(|probe| probe.running.pidfd.as_fd());
        end.into_iter().chain(probe.and_then(|probe| probe.output.as_ref()).map(AsFd::as_fd))
    }

    /// Does what is due; a result when a check has ended.
    ///
    /// `start` runs a check whose output goes to the descriptor it is given.
    pub fn advance(&mut self, start: impl FnOnce(BorrowedFd<'_>) -> Result<Running, String>) -> Option<ProbeResult> {
        let now = Instant::now();
        match self.current.take() {
            Some(probe) => self.follow(probe, now),
            None if now >= self.next => self.start(start, now),
            None => None,
        }
    }

    /// Ends a check that runs: its container is gone.
    pub fn abandon(&mut self) {
        if let Some(probe) = self.current.take() {
            let _ = probe.running.signal(Signal::KILL);
            let _ = probe.running.wait();
        }
    }

    fn start(
        &mut self,
        start: impl FnOnce(BorrowedFd<'_>) -> Result<Running, String>,
        now: Instant,
    ) -> Option<ProbeResult> {
        let started = SystemTime::now();
        let begun = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC | rustix::pipe::PipeFlags::NONBLOCK)
            .map_err(|errno| errno.to_string())
            .and_then(|(output, theirs)| Ok((start(theirs.as_fd())?, output)));
        match begun {
            Ok((running, output)) => {
                let limit = now + self.schedule.timeout;
                self.current = Some(Probe { running, output: Some(output), kept: Vec::new(), started, limit });
                None
            }
            Err(text) => {
                self.next = now + self.pause();
                Some(ProbeResult { started, ended: SystemTime::now(), exit_code: None, output: text.into_bytes() })
            }
        }
    }

    fn follow(&mut self, mut probe: Probe, now: Instant) -> Option<ProbeResult> {
        probe.read();
        let ended = has_ended(&probe.running);
        let late = now >= probe.limit;
        if !ended && !late {
            self.current = Some(probe);
            return None;
        }
        if !ended {
            let _ = probe.running.signal(Signal::KILL);
        }
        let exit = probe.running.wait().ok();
        probe.read();
        let exit_code = exit.filter(|_| ended).map(|exit| exit.status());
        self.well |= exit_code == Some(0);
        self.next = Instant::now() + self.pause();
        Some(ProbeResult { started: probe.started, ended: SystemTime::now(), exit_code, output: probe.kept })
    }
}

impl Probe {
    fn read(&mut self) {
        let mut buffer = [0; READ_BYTES];
        while let Some(output) = &self.output {
            match rustix::io::read(output, &mut buffer[..]) {
                Ok(count @ 1..) => {
                    let room = OUTPUT_BYTES_MAX.saturating_sub(self.kept.len());
                    self.kept.extend_from_slice(&buffer[..count.min(room)]);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                _ => self.output = None,
            }
        }
    }
}

/// Says whether a process has ended, without waiting.
fn has_ended(running: &Running) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(&running.pidfd, PollFlags::IN)], Some(&now)).is_ok_and(|count| count > 0)
}
