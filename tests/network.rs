//! Networks: none, host, pasta, and published ports.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::env::{TestEnv, Who, free_ports, wait_until};
use crate::require;

/// Asks for a page as a browser would; empty when nobody answers.
fn page(port: u16) -> String {
    let mut answer = String::new();
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else {
        return answer;
    };
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let _ = stream.write_all(b"GET / HTTP/1.0\r\nHost: x\r\n\r\n");
    let _ = stream.read_to_string(&mut answer);
    answer
}

#[test]
fn none_has_loopback_only() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    let output = env
        .container(&[
            &image,
            "sh",
            "-c",
            "ls /sys/class/net; ping -c 1 -W 1 127.0.0.1 >/dev/null 2>&1; ip -o addr show dev lo | grep -c 127.0.0.1",
        ])
        .ok();
    assert_eq!(output, "lo\n1");
}

#[test]
fn host_is_the_hosts_network() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    let output = env.coracle(&["run", "--rm", "--network", "host", &image, "readlink", "/proc/self/ns/net"]).ok();
    assert_eq!(output, fs_err::read_link("/proc/self/ns/net").unwrap().display().to_string());
    let other = env.container(&[&image, "readlink", "/proc/self/ns/net"]).ok();
    assert_ne!(output, other);
}

#[test]
fn nginx_is_reached_through_a_published_port() {
    require!("pasta");
    let env = TestEnv::new();
    let image = env.image("nginx");
    env.coracle(&["pull", &image]).ok();
    let port = free_ports(1);
    let publish = format!("127.0.0.1:{port}:80");
    let mut args = vec!["run", "--rm", "-p", &publish, &image];
    if env.who() == Who::Single {
        // Its workers cannot become www-data where there is one id.
        let as_root = "sed -i 's/^user .*/user root;/' /etc/nginx/nginx.conf && exec nginx -g 'daemon off;'";
        args.extend(["sh", "-c", as_root]);
    }
    let run = env.coracle(&args).spawn();
    wait_until("nginx to answer", || page(port).contains("Welcome to nginx"));
    assert!(page(port).starts_with("HTTP/1.1 200"));
    run.signal(Signal::SIGTERM);
    run.wait().code(0);
    assert!(page(port).is_empty(), "the port is still served after the end");
}

#[test]
fn pasta_gives_an_own_network_and_not_the_hosts_loopback() {
    require!("pasta");
    let env = TestEnv::new();
    let image = env.image("busybox");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    listener.set_nonblocking(true).unwrap();
    let script = format!("readlink /proc/self/ns/net; nc -w 1 127.0.0.1 {port} </dev/null; ls /sys/class/net | wc -l");
    let output = env.coracle(&["run", "--rm", "--network", "pasta", &image, "sh", "-c", &script]).ok();
    let mut lines = output.lines();
    assert_ne!(lines.next().unwrap(), fs_err::read_link("/proc/self/ns/net").unwrap().display().to_string());
    assert!(listener.accept().is_err(), "the host's loopback was reached");
}

#[test]
fn udp_ports_are_published() {
    require!("pasta");
    let env = TestEnv::new();
    let image = env.image("debian");
    env.coracle(&["pull", &image]).ok();
    let receive = "use Socket; socket(S, PF_INET, SOCK_DGRAM, 0); bind(S, sockaddr_in(9000, INADDR_ANY)) or die; \
                   recv(S, $text, 99, 0); print $text";
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = free_ports(1);
    let publish = format!("{port}:9000/udp");
    let run = env.coracle(&["run", "--rm", "--init", "-p", &publish, &image, "perl", "-e", receive]).spawn();
    let mut run = run;
    wait_until("the datagram to arrive", || {
        socket.send_to(b"datagram\n", ("127.0.0.1", port)).unwrap();
        run.has_ended()
    });
    assert_eq!(run.wait().ok(), "datagram");
}

#[test]
fn a_port_in_use_is_an_error_with_its_number() {
    require!("pasta");
    let env = TestEnv::new();
    let image = env.image("busybox");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let publish = format!("127.0.0.1:{port}:80");
    let outcome = env.coracle(&["run", "--rm", "-p", &publish, &image, "true"]).outcome();
    outcome.refused(125).says(&port.to_string());
}

#[test]
fn bad_port_mappings_are_refused() {
    require!();
    let env = TestEnv::new();
    let image = env.image("busybox");
    for bad in ["80:70000", "x:80", "80:80/sctp", "1.2.3:80:80", "80:", "100-102:200-201"] {
        env.coracle(&["run", "--rm", "-p", bad, &image, "true"]).outcome().refused(125).says(bad);
    }
    env.coracle(&["run", "--rm", "--network", "none", "-p", "8080:80", &image, "true"]).outcome().refused(125);
    env.coracle(&["run", "--rm", "--network", "bridge", &image, "true"]).outcome().code(125);
}
