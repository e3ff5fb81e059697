//! A person at a container: moves bytes between the caller's streams and a shim until the container
//! ends, the person leaves by the detach keys, or one side goes away.

use std::io::Write;
use std::os::fd::AsFd;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::termios::tcgetwinsize;

use crate::client::{Client, ClientError};
use crate::protocol::{DATA_BYTES_MAX, FRAME_BYTES_MAX, Input, Output};
use crate::signals::PASSED_ON;
use crate::terminal::RawTerminal;

/// docker's default: Ctrl-p, Ctrl-q.
const DEFAULT_KEYS: [u8; 2] = [0x10, 0x11];

/// How somebody is attached.
#[derive(Debug, Clone)]
pub struct AttachOptions {
    /// The caller's standard input goes to the container.
    pub stdin: bool,
    /// The container has a terminal: the caller's becomes raw and their sizes follow each other.
    pub terminal: bool,
    /// Signals to the command go to the container.
    pub pass_signals: bool,
    /// What the person types to leave; none when empty.
    pub keys: DetachKeys,
    /// What of the output is not shown.
    pub muted: Muted,
}

/// Names outputs that somebody who is attached does not want to see.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Muted {
    /// Standard output, or the terminal.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
}

impl Muted {
    /// Nothing is shown.
    pub const ALL: Self = Self { stdout: true, stderr: true };
}

/// How it ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The container ended with this code.
    Exited(i32),
    /// It could not be started: the owner's words.
    Failed(Vec<u8>),
    /// The person left; the container runs on.
    Detached,
    /// The shim was killed, or cut this client off.
    Lost,
}

/// Is the sequence of bytes that detaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DetachKeys(Vec<u8>);

/// Says that detach keys were not understood.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("invalid detach keys {0:?}: expected a comma separated list of letters and ctrl-X")]
pub struct DetachKeysError(String);

impl Default for DetachKeys {
    fn default() -> Self {
        Self(DEFAULT_KEYS.to_vec())
    }
}

impl std::str::FromStr for DetachKeys {
    type Err = DetachKeysError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Ok(Self(Vec::new()));
        }
        let key = |part: &str| match (part.strip_prefix("ctrl-").map(str::as_bytes), part.as_bytes()) {
            (Some([letter @ b'a'..=b'z']), _) => Some(letter - b'a' + 1),
            (Some([b'@']), _) => Some(0),
            (Some([sign @ (b'[' | b'\\' | b']' | b'^' | b'_')]), _) => Some(sign - b'@'),
            (None, [byte]) if byte.is_ascii_graphic() => Some(*byte),
            _ => None,
        };
        let keys: Option<Vec<u8>> = text.split(',').map(key).collect();
        keys.map(Self).ok_or_else(|| DetachKeysError(text.to_owned()))
    }
}

/// Finds the detach keys in a stream of bytes that comes in pieces.
#[derive(Debug)]
struct Watcher {
    keys: Vec<u8>,
    seen: usize,
}

impl Watcher {
    /// Gives what is to be passed on, and whether the person leaves.
    fn pass(&mut self, bytes: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(bytes.len());
        for byte in bytes {
            if self.keys.get(self.seen) == Some(byte) {
                self.seen += 1;
                if self.seen == self.keys.len() {
                    return (passed, true);
                }
                continue;
            }
            // What looked like the beginning was none.
            passed.extend_from_slice(&self.keys[..self.seen]);
            self.seen = usize::from(self.keys.first() == Some(byte) && !self.keys.is_empty());
            if self.seen == 0 {
                passed.push(*byte);
            }
        }
        (passed, false)
    }
}

/// Is one person's session.
pub struct Session {
    client: Client,
    options: AttachOptions,
    signals: SignalFd,
    watcher: Watcher,
    stdin_open: bool,
    buffer: Box<[u8; FRAME_BYTES_MAX]>,
    _raw: Option<RawTerminal>,
}

impl Session {
    /// Prepares the caller's side; call it before the container can end, so that no signal is lost.
    ///
    /// # Errors
    /// The caller's signals or terminal cannot be prepared.
    pub fn new(client: Client, options: AttachOptions) -> std::io::Result<Self> {
        let mut set = SigSet::empty();
        if options.pass_signals {
            PASSED_ON.into_iter().for_each(|signal| set.add(signal));
        }
        set.add(Signal::SIGWINCH);
        set.thread_block()?;
        let signals = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let raw = if options.terminal && options.stdin { RawTerminal::enter(std::io::stdin().as_fd())? } else { None };
        // The keys mean something only where a person types.
        let keys = if raw.is_some() { options.keys.0.clone() } else { Vec::new() };
        Ok(Self {
            client,
            stdin_open: options.stdin,
            signals,
            watcher: Watcher { keys, seen: 0 },
            options,
            buffer: Box::new([0; FRAME_BYTES_MAX]),
            _raw: raw,
        })
    }

    /// Moves bytes until one side is done.
    ///
    /// # Errors
    /// The shim refuses to serve, or the caller's streams fail.
    pub fn run(mut self) -> Result<Outcome, ClientError> {
        self.tell_size();
        loop {
            let (socket, signal, input) = self.wait()?;
            if signal {
                self.pass_signals();
            }
            // The container's end counts more than what is still to be said to it.
            if socket && let Some(outcome) = self.hear()? {
                return Ok(outcome);
            }
            if input && self.speak() {
                self.tell(&Input::Leave);
                return Ok(Outcome::Detached);
            }
        }
    }

    fn wait(&self) -> Result<(bool, bool, bool), ClientError> {
        let stdin = std::io::stdin();
        let mut fds = vec![
            PollFd::from_borrowed_fd(self.client.socket(), PollFlags::IN),
            PollFd::new(&self.signals, PollFlags::IN),
        ];
        if self.stdin_open {
            fds.push(PollFd::new(&stdin, PollFlags::IN));
        }
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(ClientError::Lost(errno.into())),
        }
        let at = |place: usize| fds.get(place).is_some_and(|fd| !fd.revents().is_empty());
        Ok((at(0), at(1), at(2)))
    }

    /// Takes one frame of the shim.
    fn hear(&mut self) -> Result<Option<Outcome>, ClientError> {
        Ok(match self.client.receive(&mut self.buffer)? {
            Some(Output::Stdout(_)) if self.options.muted.stdout => None,
            Some(Output::Stderr(_)) if self.options.muted.stderr => None,
            Some(Output::Stdout(bytes)) => {
                // A reader of ours that went away is no reason to leave the container.
                let _ = std::io::stdout().write_all(bytes).and_then(|()| std::io::stdout().flush());
                None
            }
            Some(Output::Stderr(bytes)) => {
                let _ = std::io::stderr().write_all(bytes);
                None
            }
            Some(Output::Exited(code)) => Some(Outcome::Exited(code)),
            Some(Output::Failed(text)) => Some(Outcome::Failed(text.to_vec())),
            Some(Output::Refused(text)) => {
                return Err(ClientError::Refused(String::from_utf8_lossy(text).into_owned()));
            }
            Some(Output::Started) => {
                self.tell_size();
                None
            }
            Some(Output::Answer(_)) => None,
            None => Some(Outcome::Lost),
        })
    }

    /// Takes the caller's input; true when the person leaves.
    fn speak(&mut self) -> bool {
        let mut buffer = [0; DATA_BYTES_MAX];
        let count = match rustix::io::read(std::io::stdin(), &mut buffer[..]) {
            Ok(count) => count,
            Err(Errno::INTR | Errno::AGAIN) => return false,
            Err(_) => 0,
        };
        if count == 0 {
            self.stdin_open = false;
            self.tell(&Input::End);
            return false;
        }
        let (passed, leaves) = self.watcher.pass(&buffer[..count]);
        if !passed.is_empty() {
            self.tell(&Input::Data(&passed));
        }
        leaves
    }

    /// A shim that is gone is heard of by reading.
    fn tell(&self, input: &Input<'_>) {
        let _ = self.client.send_frame(&input.frame());
    }

    fn tell_size(&self) {
        if self.options.terminal
            && let Ok(size) = tcgetwinsize(std::io::stdin())
        {
            self.tell(&Input::Resize { rows: size.ws_row, columns: size.ws_col });
        }
    }

    fn pass_signals(&self) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            match i32::try_from(info.ssi_signo) {
                Ok(number) if number == Signal::SIGWINCH as i32 => self.tell_size(),
                Ok(number) => self.tell(&Input::Signal(number)),
                Err(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys() {
        assert_eq!("ctrl-p,ctrl-q".parse(), Ok(DetachKeys::default()));
        assert_eq!("a,ctrl-\\".parse(), Ok(DetachKeys(vec![b'a', 0x1c])));
        assert_eq!("".parse(), Ok(DetachKeys(vec![])));
        for bad in ["ctrl-", "ab", "ctrl-pp", ",", "ctrl-1", "é"] {
            assert!(bad.parse::<DetachKeys>().is_err(), "{bad}");
        }
    }

    #[test]
    fn keys_are_found_across_pieces_and_others_pass() {
        let mut watcher = Watcher { keys: DEFAULT_KEYS.to_vec(), seen: 0 };
        assert_eq!(watcher.pass(b"ab\x10"), (b"ab".to_vec(), false));
        assert_eq!(watcher.pass(b"c\x10"), (b"\x10c".to_vec(), false));
        assert_eq!(watcher.pass(b"\x10"), (b"\x10".to_vec(), false));
        assert_eq!(watcher.pass(b"\x11rest"), (b"".to_vec(), true));
        let mut none = Watcher { keys: Vec::new(), seen: 0 };
        assert_eq!(none.pass(b"\x10\x11"), (b"\x10\x11".to_vec(), false));
    }
}
