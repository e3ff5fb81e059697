//! User-defined networks: containers that find each other by name, and nobody else.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::env::{TestEnv, free_ports, wait_until};
use crate::require;

/// Answers every connection with its own words.
const ECHO: &str = "while :; do echo $WORD | nc -l -p 80; done";

/// Starts a container that answers on port 80 with a word.
pub fn server(env: &TestEnv, name: &str, networks: &[&str], more: &[&str]) {
    let image = env.image("busybox");
    let word = format!("WORD=this-is-{name}");
    let mut args = vec!["run", "-d", "--name", name, "-e", &word];
    for network in networks {
        args.extend(["--network", network]);
    }
    args.extend(more);
    args.extend([image.as_str(), "sh", "-c", ECHO]);
    env.coracle(&args).ok();
}

/// What one container hears from another; empty when it cannot reach it.
fn heard(env: &TestEnv, from: &str, address: &str) -> String {
    let script = format!("nc -w 2 {address} 80 </dev/null");
    env.coracle(&["exec", from, "sh", "-c", &script]).outcome().text()
}

/// Waits until one container hears another, whose server may still start.
fn reaches(env: &TestEnv, from: &str, to: &str, name: &str) {
    let wanted = format!("this-is-{to}");
    wait_until(&format!("{from} to hear {to} as {name}"), || heard(env, from, name) == wanted);
}

pub fn inspect(env: &TestEnv, container: &str) -> Value {
    serde_json::from_str(&env.coracle(&["inspect", container, "--format", "json"]).ok()).unwrap()
}

pub fn address(env: &TestEnv, container: &str, network: &str) -> String {
    let all = inspect(env, container);
    let all = all.as_array().map_or(&all, |list| &list[0]);
    all["NetworkSettings"]["Networks"][network]["IPAddress"].as_str().unwrap().to_owned()
}

pub fn remove(env: &TestEnv, containers: &[&str]) {
    env.coracle(&["rm", "-f"]).args(containers).ok();
}

#[test]
fn containers_of_one_network_talk_by_name_and_others_do_not() {
    require!("pasta");
    let env = TestEnv::new();
    env.coracle(&["network", "create", "shop"]).ok();
    env.coracle(&["network", "create", "elsewhere"]).ok();
    server(&env, "web", &["shop"], &[]);
    server(&env, "app", &["shop"], &["--network-alias", "backend"]);
    server(&env, "db", &["shop"], &["--ip", &nth(&env, "shop", 77)]);
    server(&env, "stranger", &["elsewhere"], &[]);
    reaches(&env, "web", "app", "app");
    reaches(&env, "web", "app", "backend");
    reaches(&env, "app", "db", "db");
    reaches(&env, "db", "web", &address(&env, "web", "shop"));
    assert!(address(&env, "db", "shop").ends_with(".77"));
    let db = address(&env, "db", "shop");
    for name in ["db", "web", db.as_str()] {
        assert_eq!(heard(&env, "stranger", name), "", "a74: {name} is reached from another network");
    }
    remove(&env, &["web", "app", "db", "stranger"]);
}

/// Gives the address with this last number in a network.
pub fn nth(env: &TestEnv, network: &str, last: u8) -> String {
    let all: Value = serde_json::from_str(&env.coracle(&["network", "inspect", network]).ok()).unwrap();
    let gateway = all[0]["IPAM"]["Config"][0]["Gateway"].as_str().unwrap();
    format!("{}.{last}", gateway.rsplit_once('.').unwrap().0)
}

#[test]
fn containers_are_connected_and_disconnected_while_they_run() {
    require!("pasta");
    let env = TestEnv::new();
    env.coracle(&["network", "create", "one"]).ok();
    env.coracle(&["network", "create", "two"]).ok();
    server(&env, "first", &["one"], &[]);
    server(&env, "second", &["two"], &[]);
    reaches(&env, "second", "second", "second");
    assert_eq!(heard(&env, "second", "first"), "");
    env.coracle(&["network", "connect", "--alias", "guest", "one", "second"]).ok();
    reaches(&env, "second", "first", "first");
    reaches(&env, "first", "second", "guest");
    reaches(&env, "second", "second", "second");
    env.coracle(&["network", "connect", "one", "second"]).outcome().refused(1).says("already");
    env.coracle(&["network", "rm", "one"]).outcome().refused(1).says("is used by container");
    env.coracle(&["network", "disconnect", "one", "second"]).ok();
    assert_eq!(heard(&env, "second", "first"), "");
    assert_eq!(heard(&env, "first", "guest"), "");
    // What was connected is there after the next start, too.
    env.coracle(&["network", "connect", "one", "second"]).ok();
    env.coracle(&["restart", "-t", "0", "second"]).ok();
    reaches(&env, "second", "first", "first");
    remove(&env, &["first", "second"]);
    env.coracle(&["network", "prune", "-f"]).ok();
    assert_eq!(env.coracle(&["network", "ls", "-q"]).ok(), "");
}

/// Finds the processes of this test's holders.
fn holders(env: &TestEnv) -> Vec<i32> {
    let root = env.root();
    let mut found = Vec::new();
    for entry in fs_err::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let line = fs_err::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        if line.contains("__network-holder") && line.contains(&*root.to_string_lossy()) {
            found.push(pid);
        }
    }
    found
}

#[test]
fn a_holder_that_is_killed_under_traffic_is_replaced() {
    require!("pasta");
    let env = TestEnv::new();
    env.coracle(&["network", "create", "net"]).ok();
    server(&env, "server", &["net"], &[]);
    let image = env.image("busybox");
    // Each line is one connection that worked.
    let script = "while :; do nc -w 1 server 80 </dev/null; done";
    let mut traffic = env.coracle(&["run", "--rm", "--network", "net", &image, "sh", "-c", script]).spawn();
    traffic.wait_for("this-is-server");
    let before = holders(&env);
    assert_eq!(before.len(), 1, "{before:?}");
    kill(Pid::from_raw(before[0]), Signal::SIGKILL).unwrap();
    wait_until("another holder", || holders(&env).iter().any(|pid| !before.contains(pid)));
    let lines = |run: &crate::env::command::Running| run.stdout_so_far().lines().count();
    let then = lines(&traffic);
    wait_until("connections after it", || lines(&traffic) > then + 2);
    // Containers that come now find the old ones: it is the same network.
    let script = "until nc -w 1 server 80 </dev/null | grep this; do :; done";
    let other = env.coracle(&["run", "--rm", "--network", "net", &image, "sh", "-c", script]).ok();
    assert_eq!(other, "this-is-server");
    drop(traffic);
    remove(&env, &["server"]);
    wait_until("the holder to end with its last container", || holders(&env).is_empty());
}

#[test]
fn a_network_is_shared_with_another_container() {
    require!("pasta");
    let env = TestEnv::new();
    env.coracle(&["network", "create", "net"]).ok();
    server(&env, "owner", &["net"], &[]);
    let image = env.image("busybox");
    // Between two connections busybox's nc does not listen: a refusal is no failure.
    let script = "for to in 127.0.0.1 owner; do until nc -w 2 $to 80 </dev/null | grep this; do :; done; done";
    let guest = env.coracle(&["run", "--rm", "--network", "container:owner", &image, "sh", "-c", script]).ok();
    assert_eq!(guest, "this-is-owner\nthis-is-owner");
    let refused = env.coracle(&["run", "--rm", "--network", "container:owner", "-p", "80", &image, "true"]).outcome();
    refused.refused(125);
    env.coracle(&["run", "--rm", "--network", "container:nobody", &image, "true"]).outcome().refused(125);
    remove(&env, &["owner"]);
}

#[test]
fn ports_are_published_from_a_user_network() {
    require!("pasta");
    let env = TestEnv::new();
    env.coracle(&["network", "create", "net"]).ok();
    let port = free_ports(1);
    server(&env, "server", &["net"], &["-p", &format!("127.0.0.1:{port}:80")]);
    let answer = || {
        let mut text = String::new();
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return text };
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let _ = stream.write_all(b"\n");
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_string(&mut text);
        text
    };
    wait_until("the published port to answer", || answer() == "this-is-server\n");
    remove(&env, &["server"]);
}

#[test]
fn networks_are_listed_examined_and_refused_by_name() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    env.coracle(&["network", "create", "--subnet", "10.77.1.0/24", "--gateway", "10.77.1.9", "--label", "a=b", "x"])
        .ok();
    let text = env.coracle(&["network", "inspect", "x"]).ok();
    let all: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(all[0]["IPAM"]["Config"][0]["Subnet"], "10.77.1.0/24");
    assert_eq!(all[0]["IPAM"]["Config"][0]["Gateway"], "10.77.1.9");
    assert_eq!(all[0]["Labels"]["a"], "b");
    assert_eq!(env.coracle(&["network", "ls", "--format", "{{.Name}} {{.Driver}}"]).ok(), "x bridge");
    let refused = |args: &[&str], why: &str| {
        let code = if args[0] == "run" { 125 } else { 1 };
        env.coracle(args).outcome().refused(code).says(why);
    };
    refused(&["network", "create", "x"], "exists already");
    refused(&["network", "create", "host"], "meaning of its own");
    refused(&["network", "create", "../x"], "invalid network name");
    refused(&["network", "create", "--subnet", "10.77.0.0/16", "y"], "overlaps");
    refused(&["network", "create", "--subnet", "10.78.0.0/24", "--gateway", "10.79.0.1", "y"], "gateway");
    refused(&["network", "create", "--opt", "mtu=9", "y"], "mtu");
    refused(&["network", "create", "--driver", "macvlan", "y"], "macvlan");
    refused(&["network", "rm", "nothing"], "no such network: nothing");
    refused(&["run", "--network", "nothing", &image, "true"], "no such network: nothing");
    refused(&["run", "--network", "x", "--ip", "10.9.9.9", &image, "true"], "10.9.9.9");
    refused(&["run", "--network", "x", "--ip", "10.77.1.9", &image, "true"], "10.77.1.9");
    refused(&["run", "--network", "host", "--ip", "10.77.1.3", &image, "true"], "user-defined network");
    refused(&["run", "--network", "x", "--network", "host", &image, "true"], "one of several");
    env.coracle(&["network", "rm", "x"]).ok();
    assert_eq!(env.coracle(&["network", "ls", "-q"]).ok(), "");
}

#[test]
fn a74_an_internal_network_leads_nowhere() {
    require!();
    let env = TestEnv::new();
    env.coracle(&["network", "create", "--internal", "--ipv6", "inner"]).ok();
    server(&env, "a", &["inner"], &[]);
    server(&env, "b", &["inner"], &[]);
    reaches(&env, "a", "b", "b");
    let devices = env.coracle(&["exec", "a", "ls", "/sys/class/net"]).ok();
    assert_eq!(devices, "eth0\nlo");
    let routes = env
        .coracle(&["exec", "a", "sh", "-c", "ip route; ip -6 route | grep -v ^f | grep -v multicast"])
        .outcome()
        .text();
    assert!(!routes.contains("default") && routes.lines().count() == 1, "{routes}");
    // The name server itself forwards nothing, whatever the container asks.
    let outside = env.coracle(&["exec", "a", "nslookup", "example.org"]).outcome();
    assert!(outside.code != 0 && outside.text().contains("NXDOMAIN"), "{outside}");
    let believes = "cat /proc/sys/net/ipv6/conf/eth0/accept_ra /proc/sys/net/ipv6/conf/eth0/accept_redirects";
    assert_eq!(env.coracle(&["exec", "a", "sh", "-c", believes]).ok(), "0\n0");
    let image = env.image("busybox");
    let refused = env.coracle(&["run", "--rm", "--network", "inner", "-p", "80", &image, "true"]).outcome();
    refused.refused(125);
    // Not even after another holder has come.
    let before = holders(&env);
    before.iter().for_each(|pid| kill(Pid::from_raw(*pid), Signal::SIGKILL).unwrap());
    wait_until("another holder", || holders(&env).iter().any(|pid| !before.contains(pid)));
    reaches(&env, "a", "b", "b");
    let outside = env.coracle(&["exec", "a", "nslookup", "example.org"]).outcome();
    assert!(outside.code != 0 && outside.text().contains("NXDOMAIN"), "{outside}");
    remove(&env, &["a", "b"]);
}

#[test]
fn ipv6_works_between_containers() {
    require!();
    let env = TestEnv::new();
    env.coracle(&["network", "create", "--internal", "--ipv6", "six"]).ok();
    server(&env, "a", &["six"], &[]);
    let image = env.image("busybox");
    let script = "grep -q ^fd /proc/net/if_inet6 && nslookup a | grep -i 'Address.*fd'";
    let found = env.coracle(&["run", "--rm", "--network", "six", &image, "sh", "-c", script]).ok();
    let ip = found.split_whitespace().last().unwrap().to_owned();
    let dial = format!("until nc -w 1 {ip} 80 </dev/null | grep this; do :; done");
    let answer = env.coracle(&["run", "--rm", "--network", "six", &image, "sh", "-c", &dial]).ok();
    assert_eq!(answer, "this-is-a");
    remove(&env, &["a"]);
}
