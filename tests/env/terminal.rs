//! A person at a terminal: a pty that a command has as its controlling terminal.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{OpenptyResult, openpty};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use super::command::{Run, Running};
use super::{TestEnv, wait_until};

/// A terminal with a command in it.
pub struct Terminal {
    master: File,
    /// Stays open so that the modes can be looked at after the command has ended.
    slave: OwnedFd,
    screen: Arc<Mutex<Vec<u8>>>,
    running: Option<Running>,
    gone: Arc<AtomicBool>,
    reading: Option<JoinHandle<()>>,
}

/// What a program wrote reaches the window by a thread of the kernel; after this long without anything it has.
const QUIET_MS: u16 = 300;
/// How long the reader sleeps before it looks whether the window was closed.
const LOOK_MS: u16 = 50;

/// Collects what is shown until the other side, or the person, has gone.
fn show(mut terminal: File, screen: &Mutex<Vec<u8>>, gone: &AtomicBool) {
    let mut buffer = [0; 4096];
    while !gone.load(Ordering::SeqCst) {
        let mut wanted = [PollFd::new(terminal.as_fd(), PollFlags::POLLIN)];
        if poll(&mut wanted, PollTimeout::from(LOOK_MS)) == Ok(0) {
            continue;
        }
        // EIO says that the last holder of the other side has gone.
        let Ok(count @ 1..) = terminal.read(&mut buffer) else {
            break;
        };
        screen.lock().unwrap().extend_from_slice(&buffer[..count]);
    }
}

impl Terminal {
    /// Starts a program in a new terminal of this size.
    pub fn start(env: &TestEnv, columns: u16, rows: u16, program: &str, args: &[&str]) -> Self {
        let OpenptyResult { master, slave } = openpty(None, None).unwrap();
        // A program that held the window's own side could never see it close.
        rustix::io::fcntl_setfd(&master, rustix::io::FdFlags::CLOEXEC).unwrap();
        resize(&master, columns, rows);
        let slave_file = || File::from(slave.try_clone().unwrap());
        let run: Run = env.program("setsid").args(&["--ctty", "--wait", program]).args(args);
        let running =
            run.env("TERM", "xterm").stdin_from(slave_file()).stdout_to(slave_file()).stderr_to(slave_file()).spawn();
        let screen = Arc::new(Mutex::new(Vec::new()));
        let reader = File::from(master.try_clone().unwrap());
        let target = Arc::clone(&screen);
        let gone = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&gone);
        let reading = Some(std::thread::spawn(move || show(reader, &target, &stop)));
        Self { master: File::from(master), slave, screen, running: Some(running), gone, reading }
    }

    /// Closes the window as a person does, and gives the program's exit code.
    pub fn hang_up(mut self) -> i32 {
        let running = self.running.take().unwrap();
        self.stop_reading();
        drop(self.slave);
        // The last descriptor of this side: the kernel tells the other one.
        drop(self.master);
        running.wait().code
    }

    /// Types.
    pub fn type_in(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    /// Changes the size of the window.
    pub fn resize(&self, columns: u16, rows: u16) {
        resize(&self.master, columns, rows);
    }

    /// Gives everything shown so far.
    pub fn screen(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock().unwrap()).into_owned()
    }

    /// Waits until a text was shown.
    #[track_caller]
    pub fn expect(&self, text: &str) {
        let shown = super::poll(super::DEADLINE, || self.screen().contains(text));
        assert!(shown, "no {text:?} on the screen:\n{}", self.screen());
    }

    /// Says whether the terminal edits lines and echoes, as it does when no program has it raw.
    pub fn is_cooked(&self) -> bool {
        let modes = tcgetattr(self.slave.as_fd()).unwrap().local_modes;
        modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    /// Gives the process id of the program (setsid replaces itself by it).
    pub fn pid(&self) -> i32 {
        self.running.as_ref().unwrap().pid()
    }

    /// Waits until the program made the terminal raw.
    pub fn wait_raw(&self) {
        wait_until("raw mode", || !self.is_cooked());
    }

    /// Waits for the end and gives the exit code; the screen has everything then.
    pub fn exit_code(&mut self) -> i32 {
        let code = self.running.take().unwrap().wait().code;
        self.stop_reading();
        let mut buffer = [0; 4096];
        while poll(&mut [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)], PollTimeout::from(QUIET_MS)) == Ok(1) {
            let Ok(count @ 1..) = self.master.read(&mut buffer) else { break };
            self.screen.lock().unwrap().extend_from_slice(&buffer[..count]);
        }
        code
    }

    fn stop_reading(&mut self) {
        self.gone.store(true, Ordering::SeqCst);
        self.reading.take().unwrap().join().unwrap();
    }
}

fn resize(terminal: impl AsFd, columns: u16, rows: u16) {
    let size = Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).unwrap();
}
