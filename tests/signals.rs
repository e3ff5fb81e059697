//! Signals to `coracle run` reach the command; a death of either side leaves nothing.

use nix::sys::signal::Signal;

use crate::env::{TestEnv, leak, wait_until};
use crate::require;

#[test]
fn signals_are_forwarded() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    env.coracle(&["pull", &image]).ok();
    for (signal, name, code) in [
        (Signal::SIGTERM, "TERM", 11),
        (Signal::SIGINT, "INT", 12),
        (Signal::SIGHUP, "HUP", 13),
        (Signal::SIGUSR1, "USR1", 14),
        (Signal::SIGQUIT, "QUIT", 15),
    ] {
        let script = format!("trap 'echo got; exit {code}' {name}; echo ready; while :; do sleep 0.05; done");
        let mut run = env.container(&[&image, "sh", "-c", &script]).spawn();
        run.wait_for("ready");
        run.signal(signal);
        let outcome = run.wait();
        outcome.code(code);
        assert!(outcome.text().ends_with("got"), "{outcome}");
    }
}

#[test]
fn with_init_an_unprepared_command_ends_by_sigterm() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    env.coracle(&["pull", &image]).ok();
    let mut run = env.container(&["--init", &image, "sh", "-c", "echo ready; exec sleep 1000"]).spawn();
    run.wait_for("ready");
    run.signal(Signal::SIGTERM);
    run.wait().code(143);
}

#[test]
fn the_init_of_a_killed_container_is_137() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    env.coracle(&["pull", &image]).ok();
    let mut run = env.container(&[&image, "sh", "-c", "echo ready; while :; do sleep 1; done"]).spawn();
    run.wait_for("ready");
    let family = leak::below(run.pid());
    let init = family.into_iter().find(|pid| is_init(*pid)).expect("the container's pid 1");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(init), Signal::SIGKILL).unwrap();
    run.wait().code(137);
}

/// Says whether a process is pid 1 of a namespace below ours and runs the shell.
fn is_init(pid: i32) -> bool {
    let status = fs_err::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let inner = status.lines().find(|line| line.starts_with("NSpid:")).unwrap_or_default();
    inner.split_whitespace().count() == 3 && inner.ends_with("\t1") && status.starts_with("Name:\tsh")
}

#[test]
fn kill_9_of_run_ends_the_container_too() {
    require!();
    let env = TestEnv::new();
    env.containers_may_stay();
    let image = env.image("busybox");
    env.coracle(&["pull", &image]).ok();
    for flags in [&["--name", "victim"][..], &["--name", "victim", "--init"]] {
        let mut run = env.container(flags).args(&[&image, "sh", "-c", "echo ready; while :; do sleep 1; done"]).spawn();
        run.wait_for("ready");
        let family = leak::below(run.pid());
        assert!(!family.is_empty());
        run.signal(Signal::SIGKILL);
        wait_until("the container's processes to end", || {
            family.iter().all(|pid| {
                let stat = fs_err::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
                stat.is_empty() || stat.contains(") Z ") || stat.contains(") X ")
            })
        });
        drop(run);
        // The name is free again and the store works.
        env.container(&["--name", "victim", &image, "true"]).ok();
    }
    let left = fs_err::read_dir(env.root().join("containers")).unwrap().count();
    assert_eq!(left, 0, "a later command clears what the killed ones left");
}

#[test]
fn kill_9_of_run_at_many_moments_leaves_nothing_running() {
    require!();
    let env = TestEnv::new();
    env.containers_may_stay();
    let image = env.image("busybox");
    env.coracle(&["pull", &image]).ok();
    for step in 0..40_u64 {
        let run = env.container(&[&image, "sleep", "1000"]).spawn();
        let moment = std::time::Duration::from_micros(step * 700);
        crate::env::poll(moment, || false);
        run.signal(Signal::SIGKILL);
        drop(run);
    }
    env.container(&[&image, "true"]).ok();
}
