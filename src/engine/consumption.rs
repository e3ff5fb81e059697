//! What a running container uses at this moment: from its cgroup, or summed over its processes.

use super::containers::Container;
use super::network::Plan;
use super::processes::{self, Process, TICKS_PER_SECOND};

/// Is what is in use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processor time since the start, in microseconds; of processes that have ended only with a cgroup.
    pub cpu_us: u64,
    pub memory_bytes: u64,
    pub memory_limit_bytes: Option<u64>,
    /// Received and sent; 0 in the host's own network.
    pub network_bytes: (u64, u64),
    /// Read and written; 0 without a cgroup.
    pub disk_bytes: (u64, u64),
    /// Threads.
    pub tasks: u64,
    pub from_cgroup: bool,
}

/// Measures; None when the container does not run.
pub fn measure(container: &Container) -> Option<Usage> {
    let init = container.init()?;
    let processes = processes::list(container);
    let ticks: u64 = processes.iter().map(|process| process.cpu_ticks).sum();
    let network_bytes = match container.record.network {
        Plan::Host => (0, 0),
        _ => fs_err::read_to_string(format!("/proc/{}/net/dev", init.pid)).map_or((0, 0), |text| traffic(&text)),
    };
    let cgroup = container.state.as_ref().and_then(|state| state.cgroup.as_ref());
    let counted = cgroup.and_then(|cgroup| cgroup.stats().ok());
    if let Some((stats, memory)) = counted.as_ref().and_then(|stats| Some((stats, stats.memory.as_ref()?))) {
        return Some(Usage {
            cpu_us: stats.cpu.usage_us,
            memory_bytes: memory.used_bytes(),
            memory_limit_bytes: memory.limit_bytes,
            network_bytes,
            disk_bytes: stats.io.iter().fold((0, 0), |(read, written), device| {
                (read.saturating_add(device.read_bytes), written.saturating_add(device.write_bytes))
            }),
            tasks: stats.pids.as_ref().map_or_else(|| threads(&processes), |pids| pids.current),
            from_cgroup: true,
        });
    }
    Some(Usage {
        cpu_us: ticks.saturating_mul(1_000_000 / TICKS_PER_SECOND),
        memory_bytes: processes.iter().map(|process| process.resident_bytes).sum(),
        memory_limit_bytes: None,
        network_bytes,
        disk_bytes: (0, 0),
        tasks: threads(&processes),
        from_cgroup: false,
    })
}

fn threads(processes: &[Process]) -> u64 {
    processes.iter().map(|process| process.threads).sum()
}

/// Sums the bytes of all interfaces but the loopback (proc_pid_net(5), dev).
fn traffic(text: &str) -> (u64, u64) {
    let mut sum = (0u64, 0u64);
    for line in text.lines() {
        let Some((name, counters)) = line.split_once(':') else { continue };
        let counters: Vec<u64> = counters.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        if name.trim() != "lo" {
            sum.0 = sum.0.saturating_add(counters.first().copied().unwrap_or(0));
            sum.1 = sum.1.saturating_add(counters.get(8).copied().unwrap_or(0));
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_leaves_the_loopback_out() {
        let text = "Inter-|   Receive\n face |bytes packets\n    lo: 99 1 0 0 0 0 0 0 99 1\n  eth0: 10 1 0 0 0 0 0 0 20 1\n tap0: 1 0 0 0 0 0 0 0 2 0\n";
        assert_eq!(traffic(text), (11, 22));
        assert_eq!(traffic("x: y"), (0, 0));
    }
}
