//! The flags of docker's that say something about networks: each does what it says, or is refused by its name.

use crate::env::{TestEnv, free_ports, wait_until};
use crate::network_outside::said;
use crate::network_rate::SERVER;
use crate::networks::{address, inspect, nth, remove, server};
use crate::require;

#[test]
fn exposed_ports_are_published_by_a_capital_p() {
    require!("pasta");
    let env = TestEnv::new();
    // It exposes 8080/tcp.
    let image = env.image("config");
    let script = "while :; do echo hello | nc -l -p 8080; done";
    env.coracle(&["run", "-d", "--name", "all", "-P", "--entrypoint", "sh", &image, "-c", script]).ok();
    let port: u16 = env.coracle(&["port", "all", "8080/tcp"]).ok().rsplit_once(':').unwrap().1.parse().unwrap();
    wait_until("the exposed port", || said(port, b"\n").starts_with(b"hello"));
    // One that is said goes where it is said, beside the one that is picked.
    env.coracle(&["rm", "-f", "all"]).ok();
    let own = free_ports(1);
    let publish = format!("127.0.0.1:{own}:9090");
    let flags = ["run", "-d", "--name", "all", "-P", "-p", &publish, "--entrypoint", "sh"];
    env.coracle(&flags).args(&[&image, "-c", "sleep 1000"]).ok();
    let ports = env.coracle(&["port", "all"]).ok();
    assert!(ports.lines().count() == 2 && ports.contains(&format!("9090/tcp -> 127.0.0.1:{own}")), "{ports}");
    env.coracle(&["rm", "-f", "all"]).ok();
}

#[test]
fn names_and_addresses_are_the_ones_that_were_asked_for() {
    require!("pasta");
    let env = TestEnv::new();
    let six = ["network", "create", "--ipv6", "--subnet", "fd77:1::/64", "--subnet", "10.77.5.0/24", "net"];
    env.coracle(&six).ok();
    let ips = ["--ip", "10.77.5.9", "--ip6", "fd77:1::9"];
    let flags = [&ips[..], &["--network-alias", "store", "--network-alias", "old.store"]].concat();
    server(&env, "db", &["net"], &flags);
    assert_eq!(address(&env, "db", "net"), "10.77.5.9");
    let all = inspect(&env, "db");
    assert_eq!(all[0]["NetworkSettings"]["Networks"]["net"]["GlobalIPv6Address"], "fd77:1::9");
    // A name that is told wins over the network's name server, for the one that it is told to.
    let (image, python) = (env.image("busybox"), env.image("python3"));
    let told = ["--add-host", "db:10.77.5.77", "--add-host", "other:10.77.5.9", "--dns-search", "lab.example"];
    let script = "import socket\nfor name in ('db', 'other', 'store', 'old.store'):\n\
                  \x20   print(name, *sorted({one[4][0] for one in socket.getaddrinfo(name, 80)}))\n\
                  print(*(line for line in open('/etc/resolv.conf') if line.startswith('search')))";
    let run = env.coracle(&["run", "--rm", "--network", "net"]).args(&told);
    let said = run.args(&[&python, "python3", "-c", script]).ok();
    let both = "10.77.5.9 fd77:1::9";
    let expected = format!("db 10.77.5.77\nother 10.77.5.9\nstore {both}\nold.store {both}\nsearch lab.example");
    assert_eq!(said.trim_end(), expected);
    // The other spelling of the same.
    let spelled = "name=net,ip=10.77.5.20,alias=again";
    let script = "ip -o addr show eth0 | grep -c 10.77.5.20/24; nslookup again | grep -c 10.77.5.20";
    assert_eq!(env.coracle(&["run", "--rm", "--network", spelled, &image, "sh", "-c", script]).ok(), "1\n1");
    env.coracle(&["run", "--rm", "--network", "net", "--ip", "10.77.5.9", &image, "true"])
        .outcome()
        .refused(125)
        .says("10.77.5.9");
    let bad = ["--network", "net", "--network-alias", "not a name"];
    env.coracle(&["run", "--rm"]).args(&bad).args(&[&image, "true"]).outcome().refused(125).says("not a name");
    remove(&env, &["db"]);
}

/// Sends a datagram in one packet, and says how much of it came back.
const WHOLE: &str = r#"
import socket, sys
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.settimeout(2)
u.setsockopt(socket.IPPROTO_IP, 10, 2) # IP_MTU_DISCOVER, IP_PMTUDISC_DO: ip(7)
u.connect(("echo", 80)); sent = b"x" * int(sys.argv[1])
try: u.send(sent)
except OSError as error: sys.exit(print("too large") if error.errno == 90 else 1)
print(u.recv(65535).count(b"x"))
"#;

#[test]
fn dockers_options_of_a_bridge_hold_or_are_refused() {
    require!("pasta");
    let env = TestEnv::new();
    let create = |name: &str, options: &[&str]| {
        let options: Vec<&str> = options.iter().flat_map(|option| ["--opt", option]).collect();
        env.coracle(&["network", "create"]).args(&options).args(&[name]).outcome()
    };
    create("small", &["com.docker.network.driver.mtu=1400"]).code(0);
    create("large", &["mtu=9000"]).code(0);
    let image = env.image("busybox");
    let mtu = |more: &[&str]| {
        let args = [&["run", "--rm"], more, &[&image, "cat", "/sys/class/net/eth0/mtu"]].concat();
        env.coracle(&args).ok()
    };
    assert_eq!(mtu(&["--network", "small"]), "1400");
    assert_eq!(mtu(&["--network", "small", "--net-rate", "up=100mbit"]), "1400");
    assert_eq!(mtu(&["--network", "large", "--net-rate", "up=100mbit"]), "9000");
    // A packet of that size passes, whole, through both kinds of container.
    let python = env.image("python3");
    let flags = ["run", "-d", "--name", "echo", "--network", "large", "--net-rate", "up=100mbit"];
    env.coracle(&flags).args(&[&python, "python3", "-c", SERVER, "80"]).ok();
    env.coracle(&["run", "-d", "--name", "asker", "--network", "large", &python, "sleep", "1000"]).ok();
    wait_until("a large packet to come back", || {
        env.coracle(&["exec", "asker", "python3", "-c", WHOLE, "8950"]).outcome().text() == "8950"
    });
    assert_eq!(env.coracle(&["exec", "asker", "python3", "-c", WHOLE, "8990"]).ok(), "too large");
    remove(&env, &["echo", "asker"]);

    // Members of such a network have names and the outside, but not each other.
    create("apart", &["com.docker.network.bridge.enable_icc=false"]).code(0);
    create("together", &["com.docker.network.bridge.enable_icc=true"]).code(0);
    for network in ["apart", "together"] {
        server(&env, network, &[network], &[]);
        let other = nth(&env, network, 1);
        let script = format!(
            "until nslookup {network} {other} | grep -q {}; do :; done; echo the network; \
             for turn in 1 2 3 4 5; do nc -w 1 {network} 80 </dev/null | grep -q this-is && echo the other && break; done; true",
            address(&env, network, network)
        );
        let heard = env.coracle(&["run", "--rm", "--network", network, &image, "sh", "-c", &script]).ok();
        let expected = if network == "apart" { "the network" } else { "the network\nthe other" };
        assert_eq!(heard, expected, "in {network}");
    }
    remove(&env, &["apart", "together"]);

    // Where a port goes that names no address.
    create("shy", &["com.docker.network.bridge.host_binding_ipv4=127.0.0.1"]).code(0);
    let port = free_ports(1);
    let publish = format!("{port}:80");
    let flags = ["run", "-d", "--name", "shy", "--network", "shy", "-p", &publish];
    env.coracle(&flags).args(&[&python, "python3", "-c", SERVER, "80"]).ok();
    assert_eq!(env.coracle(&["port", "shy"]).ok(), format!("80/tcp -> 127.0.0.1:{port}"));
    wait_until("the published port", || !said(port, b"who\n").is_empty());
    remove(&env, &["shy"]);
    refused_by_name(&create);
}

fn refused_by_name(create: &impl Fn(&str, &[&str]) -> crate::env::Outcome) {
    for option in [
        "com.docker.network.bridge.name=br7",
        "com.docker.network.bridge.default_bridge=true",
        "com.docker.network.bridge.enable_ip_masquerade=false",
        "com.docker.network.bridge.gateway_mode_ipv4=routed",
        "com.docker.network.bridge.inhibit_ipv4=true",
        "com.docker.network.container_iface_prefix=net",
        "com.docker.network.driver.mtu=9",
        "com.docker.network.bridge.host_binding_ipv4=nowhere",
        "com.docker.network.bridge.enable_icc=perhaps",
        "isolate=true",
        "vlan=7",
    ] {
        create("no", &[option]).refused(1).says(option.split('=').next().unwrap());
    }
}

/// In a user-defined network they are asked by its own name server (`network_outside::f30_…`).
#[test]
fn the_name_servers_of_a_person_are_told() {
    require!("pasta");
    let env = TestEnv::new();
    let image = env.image("busybox");
    for network in [&["--network", "pasta"][..], &["--network", "none"]] {
        let args = [&["run", "--rm", "--dns", "192.0.2.7", "--dns", "192.0.2.8"], network].concat();
        let text = env.coracle(&args).args(&[&image, "grep", "^nameserver", "/etc/resolv.conf"]).ok();
        assert_eq!(text, "nameserver 192.0.2.7\nnameserver 192.0.2.8", "{network:?}");
    }
}
