//! What a running container uses at this moment: from its cgroup, or summed over its processes.

use super::containers::Container;
use super::network::Plan;
use super::networks::connect;
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
    pub network_packets: (u64, u64),
    /// What its devices and its rates dropped.
    pub network_drops: (u64, u64),
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
    let Traffic { bytes: network_bytes, packets: network_packets, drops } = match container.record.network {
        Plan::Host => Traffic::default(),
        _ => {
            fs_err::read_to_string(format!("/proc/{}/net/dev", init.pid)).map(|text| traffic(&text)).unwrap_or_default()
        }
    };
    let dropped = connect::drops(container);
    let network_drops = (drops.0.saturating_add(dropped.0), drops.1.saturating_add(dropped.1));
    let cgroup = container.state.as_ref().and_then(|state| state.cgroup.as_ref());
    let counted = cgroup.and_then(|cgroup| cgroup.stats().ok());
    if let Some((stats, memory)) = counted.as_ref().and_then(|stats| Some((stats, stats.memory.as_ref()?))) {
        return Some(Usage {
            cpu_us: stats.cpu.usage_us,
            memory_bytes: memory.used_bytes(),
            memory_limit_bytes: memory.limit_bytes,
            network_bytes,
            network_packets,
            network_drops,
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
        network_packets,
        network_drops,
        disk_bytes: (0, 0),
        tasks: threads(&processes),
        from_cgroup: false,
    })
}

fn threads(processes: &[Process]) -> u64 {
    processes.iter().map(|process| process.threads).sum()
}

/// What went over the devices of a network, received and sent.
#[derive(Debug, Default, PartialEq, Eq)]
struct Traffic {
    bytes: (u64, u64),
    packets: (u64, u64),
    drops: (u64, u64),
}

/// Sums the devices of proc_pid_net(5)'s dev, the loopback left out.
fn traffic(text: &str) -> Traffic {
    let mut sum = Traffic::default();
    for line in text.lines() {
        let Some((name, counters)) = line.split_once(':') else { continue };
        let counters: Vec<u64> = counters.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        if name.trim() == "lo" {
            continue;
        }
        for (pair, place) in [(&mut sum.bytes, 0), (&mut sum.packets, 1), (&mut sum.drops, 3)] {
            pair.0 = pair.0.saturating_add(counters.get(place).copied().unwrap_or(0));
            pair.1 = pair.1.saturating_add(counters.get(place + 8).copied().unwrap_or(0));
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
        let sum = Traffic { bytes: (11, 22), packets: (1, 1), drops: (0, 0) };
        assert_eq!(traffic(text), sum);
        assert_eq!(traffic("x: y"), Traffic::default());
    }
}
