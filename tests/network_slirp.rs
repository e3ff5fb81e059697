//! A host without pasta: slirp4netns stands in and says so, and what it cannot do is refused by name.

use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::symlink;

use crate::env::{Run, TestEnv, fixtures, free_ports, wait_until};
use crate::network_outside::said;
use crate::network_rate::SERVER;
use crate::require;

/// A search path on which these programs are, and what containers with several ids need.
fn path_of(env: &TestEnv, programs: &[&str]) -> String {
    let dir = env.path("programs");
    fs_err::create_dir_all(&dir).unwrap();
    for name in ["newuidmap", "newgidmap"].iter().chain(programs) {
        if let Some(found) = fixtures::find_program(name) {
            symlink(found, dir.join(name)).unwrap();
        }
    }
    dir.display().to_string()
}

#[test]
fn slirp4netns_stands_in_for_pasta() {
    require!("slirp4netns");
    let env = TestEnv::new();
    let path = path_of(&env, &["slirp4netns"]);
    let image = env.image("python3");
    let coracle = |args: &[&str]| -> Run { env.coracle(args).env("PATH", &path) };
    coracle(&["network", "create", "net"]).ok();
    let host = TcpListener::bind("127.0.0.1:0").unwrap();
    host.set_nonblocking(true).unwrap();
    let host_port = host.local_addr().unwrap().port().to_string();
    let port = free_ports(4);
    // No answers: what keeps a container from the host's loopback keeps them from callers there.
    let taker = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('', 81))\n\
                 while True: d = s.recv(99); open('/got', 'ab').write(d)";
    for (place, network) in [&[][..], &["--network", "net"]].into_iter().enumerate() {
        let name = format!("server{place}");
        let tcp = port + 2 * u16::try_from(place).unwrap();
        let (publish, datagrams) = (format!("127.0.0.1:{tcp}:80"), format!("127.0.0.1:{}:81/udp", tcp + 1));
        let flags = ["run", "-d", "--name", &name, "-p", &publish, "-p", &datagrams];
        let started = coracle(&flags).args(network).args(&[&image, "python3", "-c", SERVER, "80"]).outcome();
        assert!(started.code == 0 && started.stderr.contains("slirp4netns connects"), "{started}");
        wait_until("the published port", || !said(tcp, b"who\n").is_empty());
        assert_eq!(said(tcp, b"get 1000000\n").len(), 1_000_000);
        env.coracle(&["exec", "-d", &name, "python3", "-c", taker]).ok();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        wait_until("a datagram to arrive", || {
            socket.send_to(b"datagram", ("127.0.0.1", tcp + 1)).unwrap();
            env.coracle(&["exec", &name, "cat", "/got"]).outcome().text().contains("datagram")
        });
        // A71: neither its own word for the host nor anything else leads to the host's loopback.
        let reach = "import socket, sys\nfor host in ('10.0.2.2', '10.0.2.3', '127.0.0.1'):\n\
                     \x20   try: socket.create_connection((host, int(sys.argv[1])), 1); print('reached', host)\n\
                     \x20   except OSError: pass\nprint('done')";
        assert_eq!(env.coracle(&["exec", &name, "python3", "-c", reach, &host_port]).ok(), "done");
    }
    assert!(host.accept().is_err(), "the host's loopback was reached");
    // It comes and goes with the networks as pasta does.
    coracle(&["network", "disconnect", "net", "server1"]).ok();
    assert!(said(port + 2, b"who\n").is_empty());
    coracle(&["network", "connect", "net", "server1"]).ok();
    wait_until("the published port again", || !said(port + 2, b"who\n").is_empty());
    env.coracle(&["rm", "-f", "server0", "server1"]).ok();
    let refused = |args: &[&str], why: &str| {
        coracle(&[&["run", "--rm"], args, &[image.as_str(), "true"]].concat()).outcome().refused(125).says(why);
    };
    refused(&["--network", "pasta"], "pasta is not installed");
    refused(&["--net-rate", "up=1mbit"], "pasta is not installed");
    refused(&["--net-rate", "up=1mbit", "--network", "net"], "slirp4netns it is not implemented");
    refused(&["-p", "[::1]::80"], "slirp4netns, which stands in for pasta, knows IPv4 only");
}

#[test]
fn without_any_helper_nothing_is_weakened_in_silence() {
    require!();
    let env = TestEnv::new();
    let path = path_of(&env, &[]);
    let image = env.image("busybox");
    let coracle = |args: &[&str]| env.coracle(args).env("PATH", &path).outcome();
    env.coracle(&["network", "create", "net"]).ok();
    env.coracle(&["network", "create", "--internal", "inner"]).ok();
    let shared = coracle(&["run", "--rm", &image, "true"]);
    assert!(shared.code == 0 && shared.stderr.contains("shares the host's"), "{shared}");
    for network in [&["-p", "80"][..], &["--network", "net"]] {
        let outcome = coracle(&[&["run", "--rm"], network, &[image.as_str(), "true"]].concat());
        outcome.refused(125).says("neither pasta nor slirp4netns is installed");
    }
    assert_eq!(coracle(&["run", "--rm", "--network", "inner", &image, "echo", "ran"]).text(), "ran");
}
