//! Our own pid 1 (`--init`): reaps whatever is orphaned, forwards signals, ends with the program.
//!
//! It stays inside as the same user with the same limits, holds no descriptor but the standard
//! streams, and cannot be looked into: it is not dumpable.

use std::os::fd::OwnedFd;

use rustix::process::{WaitOptions, WaitStatus, getpid, setpgid, wait};
use rustix::termios::tcsetpgrp;

use super::program::{hide, report};
use crate::failure::{LaunchFailure, Stage};
use crate::sys::{self, SignalSet, fork_process, send_signal};

/// Shells report a program that a signal ended as 128 + the signal.
const SIGNAL_STATUS: i32 = 128;
/// The first descriptor that is no standard stream.
const FIRST_OTHER_FD: u32 = 3;

/// Runs `program` in a child and stays as its reaper; returns the program's exit status.
pub(super) fn run(channel: OwnedFd, program: impl FnOnce(&OwnedFd) -> i32) -> i32 {
    // Blocked in both until each is ready, so that no signal is lost in between.
    SignalSet::full().block_only();
    let child = fork_process(|| {
        own_group();
        // Not by returning: descriptors that this copy's callers own are closed by now.
        sys::exit_now(program(&channel))
    });
    let child = match child {
        Ok(child) => child,
        Err(errno) => {
            return report(&channel, LaunchFailure::new(Stage::Exec, "fork", "program", errno));
        }
    };
    // The program's own copy tells the launcher about execve; ours would keep it waiting.
    drop(channel);
    if hide().is_err() || sys::close_from(FIRST_OTHER_FD, u32::MAX).is_err() {
        // Nobody can hear why; without pid 1 nothing of the container stays.
        sys::exit_now(1);
    }
    attend(child)
}

/// A process group of its own, in the foreground of its terminal if it has one: Ctrl-C then reaches
/// the program once, from the terminal, and not a second time from us.
fn own_group() {
    let group = getpid();
    // Neither matters where there is no terminal.
    if setpgid(None, None).is_ok() {
        let _ = tcsetpgrp(rustix::stdio::stdin(), group);
    }
}

fn attend(program: i32) -> i32 {
    let all = SignalSet::full();
    loop {
        match all.wait() {
            libc::SIGCHLD => {
                if let Some(status) = reap(program) {
                    return status;
                }
            }
            // Gone or not, the next SIGCHLD tells.
            number => drop(send_signal(program, number)),
        }
    }
}

/// Collects everything that ended; the program's status if it is among it.
fn reap(program: i32) -> Option<i32> {
    let mut status = None;
    while let Ok(Some((pid, ended))) = wait(WaitOptions::NOHANG) {
        if pid.as_raw_pid() == program {
            status = Some(status_of(ended));
        }
    }
    status
}

fn status_of(ended: WaitStatus) -> i32 {
    match ended.terminating_signal() {
        Some(signal) => SIGNAL_STATUS + signal,
        None => ended.exit_status().unwrap_or(SIGNAL_STATUS),
    }
}
