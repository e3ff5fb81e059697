//! Whether a helper hangs in a loop of its own.
//!
//! Debian 12's pasta (2023-03-09) does so for ever when it reads two packets of one new connection at once, as after a
//! SYN that was sent again to a busy pasta: it takes a whole processor and answers nobody any more.

use std::time::Duration;

/// How often to look. A hang lasts one to two of these.
pub const EVERY: Duration = Duration::from_secs(5);
/// Time of its own (clock ticks, of which Linux has 100 a second) below which it may just have had little to do.
const OWN_TICKS_MIN: u64 = 10;
/// Who moves data is mostly in the kernel; an interrupt may be counted there for who is not.
const OWN_PER_KERNEL: u64 = 20;

/// Is what the kernel has counted for a process until now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    own_ticks: u64,
    kernel_ticks: u64,
    /// How often it waited for something.
    waits: u64,
}

impl Counts {
    /// Reads them (proc_pid_stat(5), proc_pid_status(5)); None where they cannot be seen.
    pub fn of(pid: i32) -> Option<Self> {
        let stat = fs_err::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name before may have anything in it.
        let mut numbers = stat.rsplit_once(") ")?.1.split(' ').skip(11).map(str::parse);
        let status = fs_err::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let waits = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
        Some(Self {
            own_ticks: numbers.next()?.ok()?,
            kernel_ticks: numbers.next()?.ok()?,
            waits: waits.trim().parse().ok()?,
        })
    }

    /// Says whether it did nothing since `before` but compute: it waited for nothing and asked the kernel nothing.
    pub fn hangs_since(&self, before: &Self) -> bool {
        let own = self.own_ticks.saturating_sub(before.own_ticks);
        let kernel = self.kernel_ticks.saturating_sub(before.kernel_ticks);
        own >= OWN_TICKS_MIN && kernel * OWN_PER_KERNEL <= own && self.waits == before.waits
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};
    use std::thread::sleep;

    use super::*;

    struct Running(Child);

    impl Drop for Running {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// Looks at a process until it has used a second, or has been looked at often; says whether it ever hung.
    fn hangs(script: &str) -> bool {
        let child = Command::new("sh").args(["-c", script]).stdout(Stdio::null()).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let _running = Running(child);
        // It becomes what it shall be first.
        sleep(Duration::from_millis(500));
        let first = Counts::of(pid).unwrap();
        for _ in 0..100 {
            sleep(Duration::from_millis(100));
            let now = Counts::of(pid).unwrap();
            if now.own_ticks + now.kernel_ticks > first.own_ticks + first.kernel_ticks + 100 {
                return now.hangs_since(&first);
            }
        }
        Counts::of(pid).unwrap().hangs_since(&first)
    }

    #[test]
    fn a_loop_hangs_and_work_does_not() {
        assert!(hangs("while :; do :; done"));
        assert!(!hangs("exec dd if=/dev/zero of=/dev/null bs=512 status=none"));
        assert!(!hangs("exec sleep 1000"));
    }
}
