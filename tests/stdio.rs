//! Standard input, output and error without a terminal: the container has the caller's own.

use std::os::fd::OwnedFd;

use nix::fcntl::OFlag;
use nix::unistd::pipe2;

use crate::env::{TestEnv, fixtures};
use crate::require;

#[test]
fn a_gibibyte_goes_through_unchanged() {
    require!("openssl", "bash");
    let env = TestEnv::new();
    let image = env.image("busybox");
    env.coracle(&["pull", &image]).ok();
    let script = r#"
        set -euo pipefail
        openssl enc -aes-128-ctr -nosalt -pass pass:coracle -md sha256 -in /dev/zero 2>/dev/null | head -c 1073741824 |
            tee >(sha256sum >"$TMPDIR/in") | "$0" run --rm -i --network none "$1" cat | sha256sum >"$TMPDIR/out"
    "#;
    // openssl is ended by SIGPIPE when head has enough, which pipefail reports: look at the sums instead.
    let script = script
        .replace("head -c 1073741824 |", "head -c 1073741824 2>/dev/null |")
        .replace("set -euo pipefail", "set -eu");
    let coracle = fixtures::coracle().display().to_string();
    env.program("bash").args(&["-c", &script, &coracle, &image]).time_limit(240).ok();
    let sum = |name: &str| fs_err::read_to_string(env.path("tmp").join(name)).unwrap();
    crate::env::wait_until("both sums", || !sum("in").is_empty());
    assert_eq!(sum("in"), sum("out"));
    for name in ["in", "out"] {
        fs_err::remove_file(env.path("tmp").join(name)).unwrap();
    }
}

#[test]
fn without_i_the_command_reads_nothing() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    assert_eq!(env.container(&[&image, "cat"]).stdin("not for the container").ok(), "");
    assert_eq!(env.container(&["-i", &image, "cat"]).stdin("for the container").ok(), "for the container");
}

#[test]
fn output_and_errors_stay_apart_and_in_bytes() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    let outcome =
        env.container(&["-i", &image, "sh", "-c", "cat; printf 'e\\377' >&2"]).stdin([0, 255, 10, 13]).outcome();
    outcome.code(0);
    assert_eq!(outcome.stdout, [0, 255, 10, 13]);
    assert!(outcome.stderr.starts_with('e') || outcome.stderr.contains("\ne"), "{outcome}");
}

#[test]
fn the_container_has_the_callers_own_pipe() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    env.coracle(&["pull", &image]).ok();
    let (read, write) = pipe2(OFlag::O_CLOEXEC).unwrap();
    let inode = rustix::fs::fstat(&write).unwrap().st_ino;
    let run = env.container(&[&image, "sh", "-c", "target=$(readlink /proc/$$/fd/1); echo $target >&2"]);
    let outcome = run.stdout_to(write).outcome();
    outcome.code(0);
    assert!(
        outcome.stderr.contains(&format!("pipe:[{inode}]")),
        "copied instead of handed over, ours is {inode}: {outcome}"
    );
    drop::<OwnedFd>(read);
}

#[test]
fn a_reader_that_goes_away_ends_the_command() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    env.coracle(&["pull", &image]).ok();
    let coracle = fixtures::coracle().display().to_string();
    // Pid 1 gets no SIGPIPE from its own doing, but its write fails: the exit code is the loop's own.
    let script = r#""$0" run --rm --network none "$1" sh -c 'while echo y; do :; done; exit 7' | head -n 1; echo ${PIPESTATUS[0]}"#;
    let output = env.program("bash").args(&["-c", script, &coracle, &image]).ok();
    assert_eq!(output, "y\n7");
}

#[test]
fn no_descriptor_of_the_caller_or_of_coracle_is_inside() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    env.write("canary", "secret");
    let script =
        r#"exec 5<"$2" 9<"$2" 77</; exec "$0" run --rm --network none "$1" sh -c 'ls -l /proc/self/fd /proc/1/fd'"#;
    let coracle = fixtures::coracle().display().to_string();
    let canary = env.path("canary").display().to_string();
    let output = env.program("bash").args(&["-c", script, &coracle, &image, &canary]).ok();
    let numbers: Vec<&str> = output
        .lines()
        .filter_map(|line| line.split_once(" -> "))
        .filter(|(_, target)| !target.starts_with("/proc/"))
        .map(|(left, _)| left.rsplit(' ').next().unwrap())
        .collect();
    assert!(numbers.iter().all(|number| ["0", "1", "2"].contains(number)), "{output}");
    assert_eq!(numbers.len(), 6, "{output}");
}
