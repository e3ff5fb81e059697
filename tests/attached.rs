//! People and pipes at containers that have a shim: attach, detach, logs under load.

use std::os::fd::AsFd;
use std::path::Path;

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv, send, socket_with,
};
use serde_json::Value;

use crate::env::terminal::Terminal;
use crate::env::{TestEnv, fixtures, poll, tree, wait_until};
use crate::life::{detached, directory, json, pid, status};
use crate::require;

/// How often somebody attaches and leaves; the number of the issue.
const CYCLES: usize = 2000;
/// What goes through exec and log in the usual suite; CORACLE_TEST_FULL=1 makes it the issue's 1 GiB.
const MEGABYTES: usize = 48;
/// Most of a shim's memory are the relocations of its program, which a build for tests has twice as many
/// of; the bench measures the release.
pub const SHIM_KIB_MAX: u64 = 2560;
/// A shim may grow by this while it is used, in KiB.
const GROWTH_KIB_MAX: u64 = 256;

/// Connects to a shim and sends a request.
fn ask(env: &TestEnv, id: &str, request: &str) -> std::os::fd::OwnedFd {
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let dir = fs_err::File::open(directory(env, id)).unwrap();
    let path = format!("/proc/self/fd/{}/shim.sock", std::os::fd::AsRawFd::as_raw_fd(&dir));
    connect(&socket, &SocketAddrUnix::new(Path::new(&path)).unwrap()).unwrap();
    send(&socket, request.as_bytes(), SendFlags::empty()).unwrap();
    socket
}

fn answer(socket: impl AsFd) -> Vec<u8> {
    let mut buffer = vec![0; 64 * 1024];
    let (_, length) = recv(socket, &mut buffer[..], RecvFlags::empty()).unwrap();
    buffer.truncate(length);
    buffer
}

fn descriptors(pid: i32) -> usize {
    fs_err::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// Gives the memory in KiB that a process has written; what it only reads of its program is the page cache's, or
/// of the sealed copy that root runs from (A01).
pub fn private_kib(pid: i32) -> u64 {
    let rollup = fs_err::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let of = |line: &str| line.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok());
    rollup.lines().filter(|line| line.starts_with("Anonymous:")).filter_map(of).sum()
}

/// As above; nothing for a process that is gone.
fn anonymous_kib(pid: i32) -> u64 {
    let status = fs_err::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn f23_attaching_and_leaving_costs_nothing_that_stays() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    let id = detached(&env, &["-i", &image, "sh", "-c", "echo up; cat"]);
    let shim = pid(&env, &id, "watcher");
    let attach = r#"{"version":1,"request":{"attach":{"stdin":true}}}"#;
    let cycle = || {
        let socket = ask(&env, &id, attach);
        assert_eq!(answer(&socket), [6], "an empty answer");
    };
    (0..50).for_each(|_| cycle());
    wait_until("the clients to be gone", || descriptors(shim) < 16);
    let (fds, memory) = (descriptors(shim), private_kib(shim));
    (0..CYCLES).for_each(|_| cycle());
    // The last of the first ones may have been there still.
    wait_until("all clients to be gone", || descriptors(shim) <= fds);
    let grown = private_kib(shim).saturating_sub(memory);
    assert!(grown <= GROWTH_KIB_MAX, "the shim grew by {grown} KiB");
    let stats: Value =
        serde_json::from_slice(&answer(ask(&env, &id, r#"{"version":1,"request":"stats"}"#))[1..]).unwrap();
    assert_eq!((stats["clients"].as_u64(), stats["output_bytes"].as_u64()), (Some(1), Some(3)));
    env.coracle(&["rm", "-f", &id]).ok();
}

#[test]
fn f41_a_newer_client_and_nonsense_are_refused_and_the_shim_goes_on() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    let id = detached(&env, &[&image, "sleep", "1000"]);
    for request in [r#"{"version":2,"request":"stats"}"#, "nonsense", r#"{"version":1,"request":"fly"}"#, "{}"] {
        assert_eq!(answer(ask(&env, &id, request))[0], 7, "{request}");
    }
    let long = "x".repeat(100_000);
    let socket = ask(&env, &id, &long);
    let mut buffer = [0; 16];
    assert!(recv(&socket, &mut buffer, RecvFlags::empty()).is_ok_and(|(_, length)| length == 0), "cut off");
    assert_eq!(answer(ask(&env, &id, r#"{"version":1,"request":"stats"}"#))[0], 6);
    env.coracle(&["rm", "-f", &id]).ok();
}

#[test]
fn two_people_see_the_same_and_one_leaves_by_the_keys() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    detached(&env, &["-it", "--name", "c", &image, "sh"]);
    let program = fixtures::coracle().display().to_string();
    let root = env.root().display().to_string();
    let attach = |columns, rows| Terminal::start(&env, columns, rows, &program, &["--root", &root, "attach", "c"]);
    let mut first = attach(90, 30);
    first.wait_raw();
    first.type_in("stty size; echo one-$((1 + 1))\r");
    first.expect("one-2");
    first.expect("30 90");
    let mut second = attach(70, 20);
    second.wait_raw();
    second.type_in("echo two-$((2 + 2))\r");
    first.expect("two-4");
    second.expect("two-4");
    second.resize(60, 15);
    wait_until("the new size", || {
        first.type_in("stty size\r");
        first.screen().contains("15 60")
    });
    first.type_in("\u{10}\u{11}");
    assert_eq!(first.exit_code(), 0);
    assert!(first.is_cooked(), "the terminal is given back");
    assert_eq!(status(&env, "c"), "running");
    second.type_in("exit 8\r");
    assert_eq!(second.exit_code(), 8);
    env.coracle(&["rm", "c"]).ok();
}

#[test]
fn a_command_at_a_terminal_is_left_by_the_keys_and_ends_with_its_terminal_otherwise() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    detached(&env, &["--name", "c", &image, "sleep", "1000"]);
    let program = fixtures::coracle().display().to_string();
    let root = env.root().display().to_string();
    let exec = |keys: &str, script: &str| {
        let args = ["--root", &root, "exec", "-it", "--detach-keys", keys, "c", "sh", "-c", script];
        Terminal::start(&env, 80, 25, &program, &args)
    };
    let there = |name: &str| env.coracle(&["top", "c"]).ok().contains(name);
    let mut left = exec("ctrl-a,x", "stty size; exec sleep 2001");
    left.wait_raw();
    left.expect("25 80");
    left.type_in("\u{1}x");
    assert_eq!(left.exit_code(), 0);
    assert!(left.is_cooked(), "the terminal is given back");
    assert!(there("sleep 2001"), "it runs on");
    let mut ended = exec("ctrl-a,x", "read line; echo got $line; exit 7");
    ended.wait_raw();
    ended.type_in("words\r");
    ended.expect("got words");
    assert_eq!(ended.exit_code(), 7);
    let closed = exec("ctrl-a,x", "trap '' HUP TERM; echo ready; sleep 2002");
    closed.expect("ready");
    drop(closed);
    wait_until("the command of a closed terminal to be gone", || !there("sleep 2002"));
    assert!(there("sleep 2001"));
    env.coracle(&["exec", "-it", "--detach-keys", "ctrl-", "c", "true"]).outcome().refused(125).says("ctrl-");
    env.coracle(&["rm", "-f", "c"]).ok();
}

#[test]
fn a_client_that_reads_nothing_holds_its_container_up_for_a_while_only() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    let id = detached(
        &env,
        &["--log-driver", "none", "--name", "c", &image, "sh", "-c", "sleep 0.2; yes | head -c 9000000; exit 3"],
    );
    let socket = ask(&env, &id, r#"{"version":1,"request":{"attach":{"stdin":false}}}"#);
    assert_eq!(answer(&socket), [6]);
    assert_eq!(env.coracle(&["wait", "c"]).ok(), "3");
    env.coracle(&["rm", "c"]).ok();
}

#[test]
fn a_lot_of_bytes_goes_through_exec_unharmed() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    detached(&env, &["--name", "c", &image, "sleep", "1000"]);
    let megabytes = if fixtures::is_full() { 1024 } else { MEGABYTES };
    let script = format!(
        "head -c {} /dev/urandom | tee '{}' | \"$0\" exec -i c cat > '{}'",
        megabytes << 20,
        env.path("in").display(),
        env.path("out").display()
    );
    env.program("sh").args(&["-c", &script]).args(&[fixtures::coracle()]).time_limit(600).ok();
    assert_eq!(tree::sha256_file(&env.path("in")), tree::sha256_file(&env.path("out")));
    env.coracle(&["rm", "-f", "c"]).ok();
}

#[test]
fn f26_a_flood_stays_bounded_in_order_and_in_memory() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    // Lines from memory in large blocks: written faster than a GiB in a second by itself, so the shim is what limits it.
    let (count, rounds) = if fixtures::is_full() { (1_000_000, 160) } else { (200_000, 4) };
    let options = ["--log-opt", "max-size=4m", "--log-opt", "max-file=3", "--name", "c"];
    let script = format!(
        "seq 1 {count} >/dev/shm/block; for n in $(seq {rounds}); do cat /dev/shm/block; done; echo end; sleep 1000"
    );
    let id = detached(&env, &[&options[..], &[&image, "sh", "-c", &script]].concat());
    let shim = pid(&env, &id, "watcher");
    let logs = directory(&env, &id).join("logs");
    let last = r#"{"log":"end\n""#;
    assert!(poll(std::time::Duration::from_secs(600), || {
        fs_err::read_to_string(logs.join("current.json")).unwrap_or_default().contains(last)
    }));
    assert!(private_kib(shim) < 2 * SHIM_KIB_MAX, "{} KiB of the shim's own memory", private_kib(shim));
    let mut files: Vec<_> = fs_err::read_dir(&logs).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert_eq!(files.len(), 3, "{files:?}");
    let mut expected = None;
    for file in ["current.json.2", "current.json.1", "current.json"] {
        let text = fs_err::read_to_string(logs.join(file)).unwrap();
        assert!(text.len() <= 4 << 20, "{file} has {} bytes", text.len());
        for line in text.lines().filter(|line| !line.starts_with(last)) {
            let entry: Value = serde_json::from_str(line).unwrap();
            let number: u64 = entry["log"].as_str().unwrap().trim().parse().unwrap();
            assert_eq!(number, *expected.get_or_insert(number), "order is kept over rotations");
            expected = Some(number % count + 1);
        }
    }
    assert_eq!(expected, Some(1), "the last block is whole");
    env.coracle(&["rm", "-f", "c"]).ok();
}

#[test]
fn f26_a_follower_of_a_flood_gets_it_in_order_once_and_stays_small() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    let count: u64 = if fixtures::is_full() { 20_000_000 } else { 600_000 };
    let sizes = ["--log-opt", "max-size=256k", "--log-opt", "max-file=2", "--name", "c"];
    let script = format!("until [ -e /go ]; do sleep 0.02; done; seq 1 {count}");
    let id = detached(&env, &[&sizes[..], &[&image, "sh", "-c", &script]].concat());
    let out = env.path("followed");
    let mut follower =
        env.coracle(&["logs", "-f", "c"]).stdout_to(fs_err::File::create(&out).unwrap().into_file()).spawn();
    env.coracle(&["exec", "c", "touch", "/go"]).ok();
    let mut largest = 0;
    let end = std::time::Duration::from_secs(600);
    assert!(poll(end, || {
        if !follower.has_ended() {
            largest = largest.max(anonymous_kib(follower.pid()));
        }
        follower.has_ended()
    }));
    follower.wait().code(0);
    assert!(largest < 16 * 1024, "{largest} KiB");
    // What was rotated away before it was read is lost, and nothing else: no line twice, none torn, none out of turn.
    let mut last = 0;
    for line in std::io::BufRead::lines(std::io::BufReader::new(fs_err::File::open(&out).unwrap())) {
        let number: u64 = line.unwrap().parse().unwrap();
        assert!(number > last, "{number} after {last}");
        last = number;
    }
    assert_eq!(last, count, "the end is seen");
    let logs = directory(&env, &id).join("logs");
    let size: u64 = fs_err::read_dir(logs).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    assert!(size <= 512 << 10, "{size} bytes of log");
    env.coracle(&["rm", "c"]).ok();
}

#[test]
fn f26_one_endless_line_and_bytes_that_are_no_text() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    let megabytes = if fixtures::is_full() { 100 } else { 4 };
    let script = format!("head -c {} /dev/zero | tr '\\0' a; printf '\\377\\303\\050\\303\\244\\n'", megabytes << 20);
    let id = detached(&env, &["--log-opt", "max-size=-1", "--name", "c", &image, "sh", "-c", &script]);
    assert_eq!(env.coracle(&["wait", "c"]).time_limit(300).ok(), "0");
    let text = fs_err::read_to_string(directory(&env, &id).join("logs/current.json")).unwrap();
    let mut bytes = 0;
    let mut tail = String::new();
    for line in text.lines() {
        let entry: Value = serde_json::from_str(line).unwrap();
        let part = entry["log"].as_str().unwrap();
        assert!(part.len() <= 17_000, "a part of {} bytes", part.len());
        bytes += part.bytes().filter(|byte| *byte == b'a').count();
        tail = part.to_owned();
    }
    assert_eq!(bytes, megabytes << 20);
    assert!(tail.ends_with("\u{fffd}\u{fffd}(ä\n"), "{:?}", &tail[tail.len().saturating_sub(20)..]);
    env.coracle(&["rm", "c"]).ok();
    let _ = json;
}
