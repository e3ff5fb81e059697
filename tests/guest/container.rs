//! A container in the guest, and what the kernel counts of it.

use crate::host::{CORACLE, Guest, IMAGE, Output, Running, User};

/// How long processor time and bytes are counted. A period of the bandwidth controller is 0.1 s.
pub const WINDOW_SECONDS: u32 = 6;

/// A container of the foreground; dropping it ends it.
pub struct Container<'a> {
    guest: &'a Guest,
    user: User,
    pub name: &'a str,
    running: Running,
}

impl<'a> Container<'a> {
    /// Starts `sh -c script` in a container and waits until its process is there.
    #[track_caller]
    pub fn start(guest: &'a Guest, user: User, name: &'a str, flags: &[&str], script: &str) -> Self {
        guest.prepare(user);
        guest.run(user, &[CORACLE, "rm", "-f", name]);
        let mut argv = vec![CORACLE, "run", "--network", "none", "--name", name];
        argv.extend(flags);
        argv.extend([IMAGE, "sh", "-c", script]);
        let running = guest.start(user, &argv);
        let container = Self { guest, user, name, running };
        let pid = format!("test $({CORACLE} inspect -f '{{{{.State.Pid}}}}' {name}) -gt 0");
        guest.wait_for(user, &pid, "the container runs");
        container
    }

    #[track_caller]
    pub fn inspect(&self, field: &str) -> String {
        let format = format!("{{{{.{field}}}}}");
        self.guest.run(self.user, &[CORACLE, "inspect", "-f", &format, self.name]).ok().to_owned()
    }

    /// The directory of its cgroup, as the host sees it.
    #[track_caller]
    pub fn cgroup(&self) -> String {
        let pid = self.inspect("State.Pid");
        let path = self.guest.run(User::Root, &["sed", "s/^0:://", &format!("/proc/{pid}/cgroup")]).ok().to_owned();
        assert!(path.contains("/user@1001.service/") || self.user != User::Alice, "{path}");
        format!("/sys/fs/cgroup{path}")
    }

    /// A file of its cgroup, as the host sees it.
    #[track_caller]
    pub fn outside(&self, file: &str) -> String {
        self.guest.run(User::Root, &["cat", &format!("{}/{file}", self.cgroup())]).ok().to_owned()
    }

    /// Changes its limits while it runs.
    #[track_caller]
    pub fn update(&self, flags: &[&str]) {
        let argv: Vec<&str> = [CORACLE, "update"].iter().chain(flags).copied().chain([self.name]).collect();
        self.guest.run(self.user, &argv).ok();
    }

    /// Runs a line of shell inside.
    #[track_caller]
    pub fn inside(&self, line: &str) -> Output {
        self.guest.run(self.user, &[CORACLE, "exec", self.name, "sh", "-c", line])
    }

    /// Ends it, as a terminal that goes away does.
    pub fn end(self) {
        drop(self.running);
    }
}

/// Processor time that cgroups used while a clock went on, in microseconds: (of each cgroup, of the clock).
#[track_caller]
pub fn usage(guest: &Guest, cgroups: &[String]) -> (Vec<f64>, f64) {
    let files: String = cgroups.iter().map(|cgroup| format!("{cgroup}/cpu.stat ")).collect();
    let line = format!("cut -d' ' -f1 /proc/uptime; grep -h usage_usec {files}");
    let output = guest.sh(User::Root, &format!("{line}; sleep {WINDOW_SECONDS}; {line}"));
    let numbers: Vec<f64> =
        output.ok().lines().map(|line| line.trim_start_matches("usage_usec ").parse().unwrap()).collect();
    let (before, after) = numbers.split_at(cgroups.len() + 1);
    let used = before.iter().zip(after).skip(1).map(|(before, after)| after - before).collect();
    (used, (after[0] - before[0]) * 1e6)
}

/// Windows that are measured until one is as it should be: other people's work on the machine under the guest
/// disturbs one now and then, and a limit that nobody enforces is wrong in all of them.
const WINDOWS: u32 = 5;

/// Measures until a value is between `low` and `high`; panics with all of them when none was.
#[track_caller]
pub fn settles_within(low: f64, high: f64, what: &str, mut measure: impl FnMut() -> f64) {
    let mut seen = Vec::new();
    for _ in 0..WINDOWS {
        let value = measure();
        println!("{what}: {value:.3}, wanted {low:.3} to {high:.3}");
        if (low..=high).contains(&value) {
            return;
        }
        seen.push(value);
    }
    panic!("{what}: none of {seen:.3?} is within {low:.3} to {high:.3}");
}
