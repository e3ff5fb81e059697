//! Which process is meant: a pid alone is never enough, because numbers come back.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

/// A process of one boot: the number, when it started, and which boot.
///
/// Two processes with the same number never start in the same clock tick, because the kernel hands
/// out all other numbers first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// The number in the pid namespace of whoever recorded it.
    pub pid: i32,
    /// Clock ticks since boot at its start (proc_pid_stat(5), field 22).
    pub start_ticks: u64,
    /// The kernel's random name of this boot.
    pub boot_id: String,
}

/// The process table could not be read.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Reading below /proc failed for another reason than that the process is gone.
    #[error("cannot look at process {pid}")]
    Look {
        /// The process.
        pid: i32,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The process is gone, or the number is none.
    #[error("process {pid} does not exist")]
    Gone {
        /// The process.
        pid: i32,
    },
    /// `/proc/PID/stat` has another form than proc_pid_stat(5) says.
    #[error("cannot understand the state of process {pid}")]
    Form {
        /// The process.
        pid: i32,
    },
}

/// What `/proc/PID/stat` says that matters here.
struct Stat {
    dead: bool,
    start_ticks: u64,
}

impl Identity {
    /// Takes down a living process.
    pub fn of(pid: i32) -> Result<Self, IdentityError> {
        let stat = stat(pid)?.ok_or(IdentityError::Gone { pid })?;
        Ok(Self { pid, start_ticks: stat.start_ticks, boot_id: boot_id(pid)?.to_owned() })
    }

    /// Says whether the process still runs; a zombie does not.
    pub fn is_alive(&self) -> Result<bool, IdentityError> {
        if boot_id(self.pid)? != self.boot_id {
            return Ok(false);
        }
        Ok(stat(self.pid)?.is_some_and(|stat| !stat.dead && stat.start_ticks == self.start_ticks))
    }

    /// A descriptor for the process, `None` when it is gone.
    ///
    /// The descriptor is opened before the comparison: while the recorded process lives nobody else
    /// can have its number, so what was opened is what was compared.
    pub fn open(&self) -> Result<Option<OwnedFd>, IdentityError> {
        let Some(pid) = Pid::from_raw(self.pid) else {
            return Ok(None);
        };
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(Errno::SRCH) => return Ok(None),
            Err(errno) => {
                return Err(IdentityError::Look { pid: self.pid, source: errno.into() });
            }
        };
        Ok(self.is_alive()?.then_some(pidfd))
    }
}

/// The name of this boot, which no process outlives: read once.
fn boot_id(pid: i32) -> Result<&'static str, IdentityError> {
    static BOOT_ID: OnceLock<String> = OnceLock::new();
    if let Some(id) = BOOT_ID.get() {
        return Ok(id);
    }
    let text = fs_err::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_err(|source| IdentityError::Look { pid, source })?;
    Ok(BOOT_ID.get_or_init(|| text.trim().to_owned()))
}

/// Reads `/proc/PID/stat`; `None` when the process is gone.
fn stat(pid: i32) -> Result<Option<Stat>, IdentityError> {
    let text = match fs_err::read(format!("/proc/{pid}/stat")) {
        Ok(text) => text,
        Err(error) if is_gone(&error) => return Ok(None),
        Err(source) => return Err(IdentityError::Look { pid, source }),
    };
    parse(&text).map(Some).ok_or(IdentityError::Form { pid })
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || Errno::from_io_error(error) == Some(Errno::SRCH)
}

/// Reads the fields behind the program's name, which is free text and ends at the last bracket.
fn parse(text: &[u8]) -> Option<Stat> {
    let name_end = text.iter().rposition(|byte| *byte == b')')?;
    let fields = std::str::from_utf8(&text[name_end + 1..]).ok()?;
    let mut fields = fields.split_ascii_whitespace();
    // Field 3, then field 22.
    let state = fields.next()?;
    let start_ticks = fields.nth(18)?.parse().ok()?;
    Some(Stat { dead: matches!(state, "Z" | "X" | "x"), start_ticks })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> i32 {
        rustix::process::getpid().as_raw_nonzero().get()
    }

    #[test]
    fn reads_the_fields_behind_a_hostile_name() {
        let line = b"12 (a) Z 9 (b)) S 1 12 12 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 98765 1 2 3";
        let stat = parse(line).expect("a valid line");
        assert!(!stat.dead);
        assert_eq!(stat.start_ticks, 98765);
        assert!(parse(b"12 (x) Z").is_none() && parse(b"").is_none());
    }

    #[test]
    fn f14_same_number_other_start_is_another_process() {
        let own = Identity::of(own()).expect("this process");
        assert!(own.is_alive().expect("alive") && own.open().expect("open").is_some());
        let reused = Identity { start_ticks: own.start_ticks + 1, ..own.clone() };
        assert!(!reused.is_alive().expect("look") && reused.open().expect("look").is_none());
    }

    #[test]
    fn f15_same_number_other_boot_is_another_process() {
        let own = Identity::of(own()).expect("this process");
        let before = Identity { boot_id: "00000000-0000-0000-0000-000000000000".to_owned(), ..own };
        assert!(!before.is_alive().expect("look") && before.open().expect("look").is_none());
    }

    #[test]
    fn a_dead_child_is_not_alive() {
        let mut child = std::process::Command::new("/bin/true").spawn().expect("true");
        let identity = Identity::of(i32::try_from(child.id()).expect("a pid")).expect("a zombie is still there");
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while identity.is_alive().expect("look") {
            assert!(std::time::Instant::now() < deadline, "true does not end");
            std::thread::yield_now();
        }
        child.wait().expect("reap");
        assert!(!identity.is_alive().expect("look"));
        assert!(matches!(Identity::of(identity.pid), Err(IdentityError::Gone { .. })));
    }
}
