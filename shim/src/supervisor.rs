//! The shim's whole life: start, watch, serve, write down the end, start again or go away.
//!
//! One thread, one poll loop, no timer but the poll's own. It knows nothing of records and images: what
//! a start and an end mean is the [`Owner`]'s. Invariants: the end is written down before anybody hears
//! of it and before this process goes away; output that was read is in the log before anybody else has it or
//! anything but more output is looked at. What is rarely done is never inlined: its frame would stay on the stack of a
//! process that only waits.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use coracle_runtime::{Exit, Running, Stdio, failpoint, memory, signal_process};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::clients::{Clients, Wish};
use crate::log::{JsonLog, LogLimits};
use crate::probe::{ProbeResult, Prober, Schedule};
use crate::protocol::{DATA_BYTES_MAX, Output, Request, Stats};
use crate::streams::{Streams, Theirs};

/// A container that has been quiet for this long is worth giving memory back for.
const SETTLED: Duration = Duration::from_millis(300);
/// How often output is read before anything else is looked at again.
const READS_AT_ONCE: usize = 8;
/// What is read of the output after the end at most: what was in the pipes, and a terminal's queue.
const DRAIN_READS_MAX: usize = 64;

/// What a shim is told about its container.
#[derive(Debug)]
pub struct ShimOptions {
    /// Where to listen; None serves nobody but the first.
    pub socket: Option<PathBuf>,
    /// The program ends when the first client does, unless that client leaves by the keys.
    pub ends_with_client: bool,
    /// Where the log is written, if there is one.
    pub log: Option<(PathBuf, LogLimits)>,
    /// The container has a terminal.
    pub terminal: bool,
    /// Standard input is a pipe that clients write to.
    pub open_stdin: bool,
    /// Standard input ends when an attached client's does.
    pub stdin_once: bool,
    /// Health checks.
    pub probes: Option<Schedule>,
    /// The command that made the shim, and whether it is attached.
    pub first: Option<(OwnedFd, bool)>,
}

/// Says what follows the end of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// The shim goes away.
    Gone,
    /// Another start after this time, if the owner still wants it then.
    Again(Duration),
}

/// Whose container it is: decides and writes down.
pub trait Owner {
    /// Starts the container; the text of a failure is for whoever waits.
    ///
    /// # Errors
    /// The failure in the owner's own words, which go to the waiting command as they are.
    fn launch(&mut self, stdio: Stdio<'_>) -> Result<Running, Vec<u8>>;
    /// Writes down that the program runs.
    ///
    /// # Errors
    /// It cannot be written down, so nobody could reach it; it is ended.
    fn started(&mut self, running: &Running) -> Result<(), Vec<u8>>;
    /// Writes down how it ended, or that it never ran, and decides; the exit code is what is announced.
    fn ended(&mut self, exit: Result<Exit, Vec<u8>>, running: Option<Running>) -> (i32, After);
    /// Says whether the next start is still wanted.
    fn wants_restart(&mut self) -> bool;
    /// A person does not want further starts.
    fn cancel(&mut self);
    /// Asks the container to end, as `stop` does.
    fn ask_to_stop(&mut self, running: &Running);
    /// Starts a health check with this output.
    ///
    /// # Errors
    /// Why it could not be started.
    fn probe(&mut self, running: &Running, output: BorrowedFd<'_>) -> Result<Running, String>;
    /// Takes the result of a health check.
    fn probed(&mut self, result: ProbeResult);
}

/// Is the shim.
pub struct Shim<O> {
    options: ShimOptions,
    owner: O,
    clients: Clients,
    log: Option<JsonLog>,
    signals: SignalFd,
    stats: Stats,
    cancelled: bool,
}

/// Is what exists while the program runs.
struct Live {
    running: Running,
    streams: Streams,
    prober: Option<Prober>,
    quiet_since: Instant,
    /// Memory was given back, and nothing has happened since.
    released: bool,
}

impl Live {
    /// Says, once, that it has been quiet for long enough.
    fn is_settled(&mut self) -> bool {
        let settled = !self.released && self.quiet_since.elapsed() >= SETTLED;
        self.released |= settled;
        settled
    }

    fn wake(&mut self) {
        self.quiet_since = Instant::now();
        self.released = false;
    }
}

impl<O: Owner> Shim<O> {
    /// Prepares everything that can fail before the container is started.
    ///
    /// # Errors
    /// The log or the socket cannot be made.
    pub fn new(mut options: ShimOptions, owner: O) -> std::io::Result<Self> {
        let mut set = SigSet::all();
        set.remove(Signal::SIGCHLD);
        set.thread_block()?;
        let mut wanted = SigSet::empty();
        wanted.add(Signal::SIGTERM);
        let signals = SignalFd::with_flags(&wanted, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let mut clients = Clients::new(options.first.take());
        if let Some(socket) = &options.socket {
            clients.listen(socket)?;
        }
        let log = options.log.as_ref().map(|(path, limits)| JsonLog::open(path, *limits)).transpose()?;
        Ok(Self { options, owner, clients, log, signals, stats: Stats::default(), cancelled: false })
    }

    /// Runs the container until nobody wants it any more.
    pub fn run(mut self) {
        loop {
            let after = match self.launch() {
                Ok(live) => self.watch(live),
                Err(text) => {
                    let (_, after) = self.owner.ended(Err(text.clone()), None);
                    self.clients.announce(&Output::Failed(&text));
                    self.clients.dismiss();
                    after
                }
            };
            let After::Again(delay) = after else { return };
            if self.cancelled || !self.pause(delay) {
                return;
            }
            self.stats.restarts += 1;
        }
    }

    #[inline(never)]
    fn launch(&mut self) -> Result<Live, Vec<u8>> {
        let pipes = |open| Streams::pipes(open).map_err(|errno| errno.to_string().into_bytes());
        let (streams, theirs): (Option<Streams>, Option<Theirs>) = if self.options.terminal {
            (None, None)
        } else {
            let (ours, theirs) = pipes(self.options.open_stdin)?;
            (Some(ours), Some(theirs))
        };
        let stdio = theirs.as_ref().map_or(Stdio::Console, |theirs| Stdio::Fds(theirs.fds()));
        let mut running = self.owner.launch(stdio)?;
        drop(theirs);
        let streams = match (streams, running.console.take()) {
            (Some(streams), _) => streams,
            (None, Some(master)) => Streams::terminal(master).unwrap_or_default(),
            (None, None) => Streams::default(),
        };
        if let Err(text) = self.owner.started(&running) {
            let _ = running.signal(rustix::process::Signal::KILL);
            let _ = running.wait();
            return Err(text);
        }
        self.clients.announce(&Output::Started);
        let prober = self.options.probes.map(Prober::new);
        Ok(Live { running, streams, prober, quiet_since: Instant::now(), released: false })
    }

    /// Serves until the program has ended, then writes that down and tells.
    fn watch(&mut self, mut live: Live) -> After {
        while !self.turn(Some(&mut live), None) {}
        // The step is about writing it down; a failure of the failpoint itself has nobody to hear it.
        let _ = failpoint::hit("exit_seen");
        let exit = live.running.wait().unwrap_or(Exit { code: 255, signal: None });
        if let Some(prober) = live.prober.as_mut() {
            prober.abandon();
        }
        self.drain(&mut live.streams);
        // A machine that goes down tells everybody at once, and the program may have been quicker than this.
        if matches!(self.signals.read_signal(), Ok(Some(_))) {
            self.terminate(Some(&live));
        }
        if let Some(log) = self.log.as_mut() {
            log.finish();
        }
        let (code, after) = self.owner.ended(Ok(exit), Some(live.running));
        let _ = failpoint::hit("exit_reported");
        self.clients.announce(&Output::Exited(code));
        self.wait_for_clients();
        self.clients.dismiss();
        after
    }

    /// Waits before the next start; false when it is not wanted any more.
    fn pause(&mut self, delay: Duration) -> bool {
        memory::trim_heap();
        let end = Instant::now() + delay;
        while Instant::now() < end {
            self.turn(None, Some(end));
            if self.cancelled || !self.owner.wants_restart() {
                return false;
            }
        }
        self.owner.wants_restart()
    }

    /// Waits for one round of events and serves them; true when the program has ended.
    fn turn(&mut self, mut live: Option<&mut Live>, until: Option<Instant>) -> bool {
        let rest = live.as_deref_mut().is_some_and(Live::is_settled);
        if rest && let Some(log) = self.log.as_mut() {
            log.rest();
        }
        let ready = self.wait(live.as_deref(), until, rest);
        if ready.signal {
            self.terminate(live.as_deref());
        }
        if ready.knock {
            self.clients.accept();
        }
        for (index, readable, writable) in ready.clients {
            if writable {
                self.clients.flush(index);
            }
            if readable && let Some(wish) = self.clients.read(index) {
                self.grant(index, wish, live.as_deref_mut());
            }
        }
        self.clients.sweep(Instant::now());
        let Some(live) = live else { return false };
        if self.options.ends_with_client && self.clients.lost_one() {
            // Gone already, which is as good.
            let _ = live.running.signal(rustix::process::Signal::KILL);
        }
        live.streams.flush();
        if self.clients.ready() {
            self.pass_output(&mut live.streams);
        }
        if let Some(prober) = live.prober.as_mut()
            && let Some(result) = prober.advance(|output| self.owner.probe(&live.running, output))
        {
            self.owner.probed(result);
            live.wake();
        }
        if ready.anything {
            live.wake();
        }
        ready.ended
    }

    /// Sleeps until something happens; with `rest` it gives back what memory it can first.
    fn wait(&self, live: Option<&Live>, until: Option<Instant>, rest: bool) -> Ready {
        let mut deadlines = vec![until, self.clients.deadline()];
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN)];
        let listener = self.clients.listener().map(|fd| add(&mut fds, fd, PollFlags::IN));
        let mut ended = None;
        let mut places = Vec::new();
        let takes_input = live.is_none_or(|live| live.streams.takes_input());
        for (index, (fd, listens, pending)) in self.clients.sockets(takes_input).enumerate() {
            let mut wanted = PollFlags::empty();
            wanted.set(PollFlags::IN, listens);
            wanted.set(PollFlags::OUT, pending);
            // Without a wish it would only report a hang-up for ever.
            if !wanted.is_empty() {
                places.push((index, add(&mut fds, fd, wanted)));
            }
        }
        if let Some(live) = live {
            ended = Some(add(&mut fds, live.running.pidfd.as_fd(), PollFlags::IN));
            if self.clients.ready() {
                for (_, fd) in live.streams.outputs() {
                    add(&mut fds, fd, PollFlags::IN);
                }
            }
            if let Some(fd) = live.streams.wants_to_write() {
                add(&mut fds, fd, PollFlags::OUT);
            }
            if let Some(prober) = &live.prober {
                deadlines.push(Some(prober.deadline()));
                for fd in prober.watched() {
                    add(&mut fds, fd, PollFlags::IN);
                }
            }
            if !live.released {
                deadlines.push(Some(live.quiet_since + SETTLED));
            }
        }
        let deadline = deadlines.into_iter().flatten().min();
        let timeout = deadline.map(|end| end.saturating_duration_since(Instant::now()));
        let timeout = timeout.and_then(|left| Timespec::try_from(left).ok());
        let sleep = if rest { memory::rest } else { poll };
        let count = match sleep(&mut fds, timeout.as_ref()) {
            Ok(count) => count,
            Err(Errno::INTR) => 0,
            // Nothing can be watched any more; the container's own end is all that counts.
            Err(_) => 0,
        };
        let at = |place: usize, flags: PollFlags| fds.get(place).is_some_and(|fd| fd.revents().intersects(flags));
        let any = PollFlags::IN | PollFlags::HUP | PollFlags::ERR;
        Ready {
            anything: count > 0,
            signal: at(0, any),
            knock: listener.is_some_and(|place| at(place, any)),
            ended: ended.is_some_and(|place| at(place, any)),
            clients: places
                .into_iter()
                .map(|(index, place)| (index, at(place, any), at(place, PollFlags::OUT | PollFlags::ERR)))
                .collect(),
        }
    }

    /// Passes on what there is, for a while: others want to be served, too.
    fn pass_output(&mut self, streams: &mut Streams) -> bool {
        let mut any = false;
        let mut dry = [false; 2];
        for turn in 1..=READS_AT_ONCE {
            self.pass_once(streams, &mut dry);
            any |= dry != [true; 2];
            if dry == [true; 2] || !self.clients.ready() {
                break;
            }
            if turn == READS_AT_ONCE {
                streams.widen();
            }
        }
        if let Some(log) = self.log.as_mut() {
            log.flush();
        }
        any
    }

    /// Reads each output once that is not dry, so that neither can starve the other. Not inlined: its buffer would stay
    /// on the stack of a process that only waits.
    #[inline(never)]
    fn pass_once(&mut self, streams: &mut Streams, dry: &mut [bool; 2]) {
        let mut buffer = [0; DATA_BYTES_MAX];
        for stream in [crate::log::Stream::Stdout, crate::log::Stream::Stderr] {
            if dry[stream as usize] {
                continue;
            }
            let Some(bytes) = streams.read(stream, &mut buffer) else {
                dry[stream as usize] = true;
                continue;
            };
            self.stats.output_bytes += bytes.len() as u64;
            if let Some(log) = self.log.as_mut() {
                log.write(stream, bytes);
                if self.clients.len() > 0 {
                    log.flush();
                }
            }
            self.clients.output(&match stream {
                crate::log::Stream::Stdout => Output::Stdout(bytes),
                crate::log::Stream::Stderr => Output::Stderr(bytes),
            });
        }
    }

    /// Waits until everybody has what was sent, or is cut off.
    fn wait_for_clients(&mut self) {
        while !self.clients.ready() {
            let end = self.clients.deadline();
            self.turn(None, end);
        }
    }

    /// Takes what the container wrote before it ended, at the clients' pace.
    #[inline(never)]
    fn drain(&mut self, streams: &mut Streams) {
        for _ in 0..DRAIN_READS_MAX {
            self.wait_for_clients();
            if !self.pass_output(streams) {
                return;
            }
        }
    }

    #[inline(never)]
    fn grant(&mut self, index: usize, wish: Wish, live: Option<&mut Live>) {
        match wish {
            Wish::Stdin(bytes) => live.into_iter().for_each(|live| live.streams.write(bytes.clone())),
            Wish::StdinEnd if self.options.stdin_once => {
                live.into_iter().for_each(|live| live.streams.end_input());
            }
            Wish::StdinEnd => {}
            Wish::Signal(number) => signal(live, number),
            Wish::Resize(rows, columns) => live.into_iter().for_each(|live| live.streams.resize(rows, columns)),
            Wish::Request(request) => self.serve(index, request, live),
        }
    }

    fn serve(&mut self, index: usize, request: Request, live: Option<&mut Live>) {
        match request {
            Request::Attach { .. } | Request::Wait => {}
            Request::Signal(number) => signal(live, number),
            Request::Resize { rows, columns } => live.into_iter().for_each(|live| live.streams.resize(rows, columns)),
            Request::Cancel => {
                self.cancelled = true;
                self.owner.cancel();
            }
            Request::Stats => {
                self.stats.clients = self.clients.len() as u64;
                self.stats.log_dropped_bytes = self.log.as_ref().map_or(0, JsonLog::dropped_bytes);
                let text = serde_json::to_vec(&self.stats).unwrap_or_default();
                return self.clients.answer(index, &text);
            }
        }
        self.clients.answer(index, b"");
    }

    /// A SIGTERM for the shim is one for its container, once and for all.
    #[inline(never)]
    fn terminate(&mut self, live: Option<&Live>) {
        while matches!(self.signals.read_signal(), Ok(Some(_))) {}
        self.cancelled = true;
        self.owner.cancel();
        if let Some(live) = live {
            self.owner.ask_to_stop(&live.running);
        }
    }
}

/// Watches one more descriptor; gives its place.
fn add<'a>(fds: &mut Vec<PollFd<'a>>, fd: BorrowedFd<'a>, wanted: PollFlags) -> usize {
    fds.push(PollFd::from_borrowed_fd(fd, wanted));
    fds.len() - 1
}

/// Is what poll said.
struct Ready {
    anything: bool,
    signal: bool,
    knock: bool,
    ended: bool,
    clients: Vec<(usize, bool, bool)>,
}

fn signal(live: Option<&mut Live>, number: i32) {
    if let Some(live) = live {
        // Gone already, which the next poll tells.
        let _ = signal_process(&live.running.pidfd, number);
    }
}
