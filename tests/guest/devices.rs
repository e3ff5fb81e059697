//! What the guest's disk and swap show: weights at a device, and swap that ends where it was told to.

use crate::container::{Container, WINDOW_SECONDS, settles_within};
use crate::host::{CORACLE, Delegated, Guest, IMAGE, User};

/// Swap of the guest for one test; dropping it takes it away.
struct Swap<'a>(&'a Guest);

impl<'a> Swap<'a> {
    fn on(guest: &'a Guest) -> Self {
        let line = "fallocate -l 400M /swap && chmod 600 /swap && mkswap -q /swap && swapon /swap";
        guest.sh(User::Root, line).ok();
        Self(guest)
    }
}

impl Drop for Swap<'_> {
    fn drop(&mut self) {
        self.0.sh(User::Root, "swapoff /swap; rm -f /swap");
    }
}

#[test]
fn memory_swap_bites() {
    let Some(guest) = Guest::find("memory_swap_bites") else { return };
    guest.prepare(User::Alice);
    let _swap = Swap::on(&guest);
    let allocate = |total: &str| {
        let limits = ["--memory", "64m", "--memory-swap", total];
        let argv = [CORACLE, "run", "--rm", "--network", "none"].iter().chain(&limits).copied();
        let program = [IMAGE, "dd", "if=/dev/zero", "of=/dev/null", "bs=100M", "count=1"];
        guest.run(User::Alice, &argv.chain(program).collect::<Vec<_>>())
    };
    // 64 MiB of memory and none, or not enough, of swap: 100 MiB do not fit.
    for total in ["64m", "80m"] {
        let killed = allocate(total);
        assert_eq!(killed.status, 137, "--memory-swap {total}: {killed:?}");
        assert!(killed.stderr.contains("out of memory"), "--memory-swap {total}: {killed:?}");
    }
    allocate("192m").ok();
    // What is held is partly in memory and partly in swap, each below its limit.
    let hold = "dd if=/dev/zero bs=100M count=1 2>/dev/null | sleep 1000";
    let flags = ["--memory", "64m", "--memory-swap", "192m"];
    let holder = Container::start(&guest, User::Alice, "holder", &flags, hold);
    let current = format!("{}/memory.swap.current", holder.cgroup());
    guest.wait_for(User::Root, &format!("test $(cat {current}) -gt 30000000"), "a part of it is in swap");
    assert_eq!(holder.inside("cat /sys/fs/cgroup/memory.swap.max").ok(), (128 << 20).to_string());
    assert_eq!(holder.inspect("State.Running"), "true");
    holder.end();
}

#[test]
fn block_weights_share_a_device_in_proportion() {
    let Some(guest) = Guest::find("block_weights_share_a_device_in_proportion") else { return };
    guest.delegate(Delegated::All);
    guest.sh(User::Alice, "mkdir -p ~/data").ok();
    // The kernel's cost model (cgroup-v2.rst, io.cost.*) shares a device whose speed it was told: 2 MiB a
    // second here, which the emulated disk exceeds on a busy machine too.
    let model = "echo '254:0 ctrl=user model=linear rbps=2097152 rseqiops=10000 rrandiops=10000 wbps=2097152 \
                 wseqiops=10000 wrandiops=10000' >/sys/fs/cgroup/io.cost.model";
    let quality = "echo '254:0 enable=1 ctrl=user rpct=0 rlat=1000000 wpct=0 wlat=1000000 min=100 max=100' \
                   >/sys/fs/cgroup/io.cost.qos";
    guest.sh(User::Root, &format!("{model} && {quality}")).ok();
    let start = |name: &'static str, weight: &str| {
        let flags = ["-v", "/home/alice/data:/data", "--blkio-weight", weight];
        // Three writers each: a share is only used up where a request always waits.
        let write = format!(
            "for n in 1 2 3; do while :; do dd if=/dev/zero of=/data/{name}$n bs=64k count=256 oflag=direct \
             conv=notrunc 2>/dev/null; done & done; wait"
        );
        Container::start(&guest, User::Alice, name, &flags, &write)
    };
    let (heavy, light) = (start("heavy", "800"), start("light", "200"));
    let weight = |container: &Container<'_>| {
        container.outside("io.weight").trim_start_matches("default ").lines().next().unwrap().parse::<f64>().unwrap()
    };
    let wanted = weight(&heavy) / weight(&light);
    assert!((3.5..4.5).contains(&wanted), "{wanted}");
    assert_eq!(heavy.inside("cat /sys/fs/cgroup/io.weight").ok(), heavy.outside("io.weight"));
    let share = || {
        let files = format!("{}/io.stat {}/io.stat", heavy.cgroup(), light.cgroup());
        let line = format!("grep -ho '^254:0 .*wbytes=[0-9]*' {files} | sed 's/.*=//'");
        let seconds = 2 * WINDOW_SECONDS;
        let output = guest.sh(User::Root, &format!("{line}; sleep {seconds}; {line}"));
        let numbers: Vec<f64> = output.ok().lines().map(|line| line.parse().unwrap()).collect();
        assert_eq!(numbers.len(), 4, "{output:?}");
        (numbers[2] - numbers[0]) / (numbers[3] - numbers[1])
    };
    settles_within(wanted * 0.75, wanted * 1.25, "heavy to light", &share);
    // The other way round while both go on.
    heavy.update(&["--blkio-weight", "200"]);
    light.update(&["--blkio-weight", "800"]);
    assert_eq!((weight(&light) / weight(&heavy)).round(), wanted.round());
    settles_within(wanted * 0.75, wanted * 1.25, "light to heavy after the update", || 1.0 / share());
    guest.sh(User::Root, "echo '254:0 enable=0' >/sys/fs/cgroup/io.cost.qos").ok();
}
