//! Watches over one container from the foreground: passes signals on, moves the bytes of a terminal,
//! waits for the end.
//!
//! Without a terminal no byte passes through here: the container has the caller's own descriptors.

use std::io::Result;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use coracle_runtime::{Exit, Running, memory};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::signals::PASSED_ON;
use crate::terminal::{RawTerminal, copy_size};

/// What one read of a terminal takes at most; a tty's own buffer is 4 KiB.
const RELAY_BYTES: usize = 16 * 1024;
/// How many times SIGINT or SIGTERM must come before the container is killed, as in docker run.
const IMPATIENCE: u32 = 3;

/// A container that has been quiet for this long is worth giving memory back for.
const SETTLED: Timespec = Timespec { tv_sec: 0, tv_nsec: 300_000_000 };
/// What a container gets to end after its terminal has gone, docker stop's time.
const HANG_UP_GRACE: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// Says what a quiet time means now.
#[derive(Debug, Clone, Copy)]
enum Phase {
    Settling,
    Settled,
    HungUp,
}

impl Phase {
    fn timeout(self) -> Option<&'static Timespec> {
        match self {
            Self::Settling => Some(&SETTLED),
            Self::Settled => None,
            Self::HungUp => Some(&HANG_UP_GRACE),
        }
    }
}

/// Is a watch that was prepared before the container exists, so that no signal is lost.
#[derive(Debug)]
pub struct Foreground {
    signals: SignalFd,
}

/// Is one direction of a terminal: bytes read but not yet written.
#[derive(Debug)]
struct Pending {
    bytes: Vec<u8>,
    start: usize,
}

/// Says where the terminal's two directions stand.
#[derive(Debug)]
struct Relay {
    master: OwnedFd,
    _raw: Option<RawTerminal>,
    to_container: Pending,
    to_person: Pending,
    input_open: bool,
    output_open: bool,
}

impl Foreground {
    /// Blocks the signals that will be passed on. The container's process must unblock them.
    pub fn prepare() -> Result<Self> {
        let mut set = SigSet::empty();
        for signal in PASSED_ON.into_iter().chain([Signal::SIGWINCH]) {
            set.add(signal);
        }
        set.thread_block()?;
        let signals = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Self { signals })
    }

    /// Waits until the container has ended.
    ///
    /// `interactive` moves the person's input to the container's terminal, if it has one.
    pub fn run(&self, running: &mut Running, interactive: bool) -> Result<Exit> {
        let mut relay = running.console.take().map(|master| Relay::new(master, interactive)).transpose()?;
        let (mut impatience, mut phase) = (0, Phase::Settling);
        loop {
            let ended = self.wait_for_event(running, relay.as_mut(), &mut phase)?;
            if ended {
                let exit = running.wait()?;
                if let Some(relay) = relay.as_mut() {
                    relay.drain();
                }
                return Ok(exit);
            }
            let hang_up = self.pass_signals(running, relay.as_ref(), &mut impatience)?;
            if relay.is_some() && (hang_up || relay.as_ref().is_some_and(|relay| interactive && !relay.input_open)) {
                // The person's terminal is gone: so is the container's, which says so to its processes.
                relay = None;
                phase = Phase::HungUp;
                send(running, Signal::SIGHUP)?;
            }
        }
    }

    /// Sleeps until something happens, moves terminal bytes, and says whether the container ended.
    fn wait_for_event(&self, running: &Running, relay: Option<&mut Relay>, phase: &mut Phase) -> Result<bool> {
        let (stdin, stdout) = (std::io::stdin(), std::io::stdout());
        let mut fds = vec![PollFd::new(&running.pidfd, PollFlags::IN), PollFd::new(&self.signals, PollFlags::IN)];
        let Some(relay) = relay else {
            wait(&mut fds, running, phase)?;
            return Ok(!fds[0].revents().is_empty());
        };
        // A descriptor nobody wants anything of stays out: poll would report its hang-up for ever.
        let (input, output, master) = relay.wanted();
        let mut add = |fd, wanted: PollFlags| {
            (!wanted.is_empty()).then(|| {
                fds.push(PollFd::from_borrowed_fd(fd, wanted));
                fds.len() - 1
            })
        };
        let places = [add(stdin.as_fd(), input), add(stdout.as_fd(), output), add(relay.master.as_fd(), master)];
        wait(&mut fds, running, phase)?;
        let [input, output, master] =
            places.map(|place| place.map_or(PollFlags::empty(), |place| fds[place].revents()));
        let ended = !fds[0].revents().is_empty();
        drop(fds);
        relay.advance((stdin.as_fd(), input), (stdout.as_fd(), output), master);
        Ok(ended)
    }

    /// Passes on what has come; says whether a hang-up was among it.
    fn pass_signals(&self, running: &Running, relay: Option<&Relay>, impatience: &mut u32) -> Result<bool> {
        let mut hang_up = false;
        while let Some(info) = self.signals.read_signal()? {
            let signal = i32::try_from(info.ssi_signo).ok().and_then(|raw| Signal::try_from(raw).ok());
            let Some(signal) = signal else { continue };
            if signal == Signal::SIGWINCH {
                if let Some(relay) = relay {
                    copy_size(std::io::stdin(), &relay.master);
                }
                continue;
            }
            if matches!(signal, Signal::SIGINT | Signal::SIGTERM) {
                *impatience += 1;
            }
            let passed = if *impatience >= IMPATIENCE { Signal::SIGKILL } else { signal };
            hang_up |= signal == Signal::SIGHUP;
            send(running, passed)?;
        }
        Ok(hang_up)
    }
}

fn send(running: &Running, signal: Signal) -> Result<()> {
    let Some(signal) = rustix::process::Signal::from_named_raw(signal as i32) else { return Ok(()) };
    match running.signal(signal) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Waits for an event, and does what a phase's time-out asks for.
fn wait(fds: &mut [PollFd<'_>], running: &Running, phase: &mut Phase) -> Result<()> {
    loop {
        match poll(fds, phase.timeout()) {
            Ok(0) => {
                match phase {
                    Phase::Settling => memory::release_program(),
                    Phase::HungUp => send(running, Signal::SIGKILL)?,
                    Phase::Settled => {}
                }
                *phase = Phase::Settled;
            }
            Ok(_) | Err(Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

impl Relay {
    fn new(master: OwnedFd, interactive: bool) -> Result<Self> {
        let stdin = std::io::stdin();
        copy_size(&stdin, &master);
        rustix::io::ioctl_fionbio(&master, true)?;
        Ok(Self {
            _raw: if interactive { RawTerminal::enter(stdin.as_fd())? } else { None },
            master,
            to_container: Pending::new(),
            to_person: Pending::new(),
            input_open: interactive,
            output_open: true,
        })
    }

    /// Says what to wait for on the person's input, the person's output and the container's terminal.
    fn wanted(&self) -> (PollFlags, PollFlags, PollFlags) {
        let when = |wanted, flag| if wanted { flag } else { PollFlags::empty() };
        let input = when(self.input_open && self.to_container.is_empty(), PollFlags::IN);
        let output = when(!self.to_person.is_empty(), PollFlags::OUT);
        let master = when(self.output_open && self.to_person.is_empty(), PollFlags::IN)
            | when(!self.to_container.is_empty(), PollFlags::OUT);
        (input, output, master)
    }

    fn advance(
        &mut self,
        (stdin, input): (BorrowedFd<'_>, PollFlags),
        (stdout, output): (BorrowedFd<'_>, PollFlags),
        master: PollFlags,
    ) {
        let ready = PollFlags::IN | PollFlags::HUP | PollFlags::ERR;
        if self.input_open && self.to_container.is_empty() && input.intersects(ready) {
            self.input_open = self.to_container.fill(stdin);
        }
        if self.output_open && self.to_person.is_empty() && master.intersects(ready) {
            self.output_open = self.to_person.fill(self.master.as_fd());
        }
        if !self.to_container.is_empty() && master.intersects(PollFlags::OUT) {
            self.to_container.write(self.master.as_fd());
        }
        if !self.to_person.is_empty() && output.intersects(PollFlags::OUT | PollFlags::ERR | PollFlags::HUP) {
            self.to_person.write(stdout);
        }
    }

    /// Moves what the container wrote before it ended.
    fn drain(&mut self) {
        let stdout = std::io::stdout();
        loop {
            while !self.to_person.is_empty() {
                self.to_person.write(stdout.as_fd());
            }
            if !self.output_open || !self.to_person.fill(self.master.as_fd()) || self.to_person.is_empty() {
                return;
            }
        }
    }
}

impl Pending {
    fn new() -> Self {
        Self { bytes: Vec::with_capacity(RELAY_BYTES), start: 0 }
    }

    fn is_empty(&self) -> bool {
        self.start == self.bytes.len()
    }

    /// Reads once; false when nothing more will ever come. A terminal whose last user is gone gives EIO.
    fn fill(&mut self, from: BorrowedFd<'_>) -> bool {
        self.bytes.resize(RELAY_BYTES, 0);
        self.start = 0;
        let read = rustix::io::read(from, &mut self.bytes[..]);
        self.bytes.truncate(*read.as_ref().unwrap_or(&0));
        matches!(read, Ok(1..) | Err(Errno::INTR | Errno::AGAIN))
    }

    /// Writes once; a reader that is gone loses the rest.
    fn write(&mut self, to: BorrowedFd<'_>) {
        match rustix::io::write(to, &self.bytes[self.start..]) {
            Ok(written) => self.start += written,
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(_) => self.start = self.bytes.len(),
        }
    }
}
